"""Score trackers on whole videos, and report and compare the scores."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "boundary": ["boundary_f", "region_and_boundary"],
        "compare_runs": [
            "comparison_figure",
            "comparison_rows",
            "comparison_warnings",
            "find_runs",
            "leaderboard_rows",
        ],
        "evaluate": ["Evaluation", "evaluate_checkpoint", "evaluate_predictions"],
        "metrics": ["after_first_visible", "copy_first_mask", "dice", "iou", "mean_tracked_iou"],
        "plots": ["difference_chart"],
        "predictions": ["score_predictions"],
        "report": [
            "differences",
            "example_sheet",
            "examples",
            "interval_figure",
            "over_time_figure",
            "ranked_objects",
            "score_rows",
            "spread_videos",
        ],
        "scores": ["CONVENTIONS", "Convention", "DataSetScores", "VideoScorer", "VideoScores"],
    },
)
