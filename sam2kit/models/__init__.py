"""Build SAM 2 as a module that tracks clips; load, save and export its weights."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "checkpoints": [
            "HUB_CHECKPOINTS",
            "SHIPPED_CHECKPOINTS",
            "create_sam2_model",
            "find_checkpoint",
            "load_model",
            "load_weights",
            "save_weights",
        ],
        "exporter": ["Export", "export"],
        "outputs": ["TrackOutput"],
        "sam2": ["SAM2Model"],
    },
)
