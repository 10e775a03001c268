"""Draw overlays, plots and tables, and write video files."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "live_curves": ["show_live_curves"],
        "overlays": [
            "contact_sheet",
            "draw_prompts",
            "error_overlay",
            "frames_to_images",
            "overlay",
        ],
        "plots": ["curves", "interval_chart", "training_curves"],
        "tables": ["Caption", "Table", "markdown_table"],
        "video_writer": ["gif_html", "mp4_writer", "save_gif", "save_mp4"],
    },
)
