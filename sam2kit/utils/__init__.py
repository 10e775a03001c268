"""Provide errors, files, paths, devices and processes to every other package."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "errors": [
            "CheckpointError",
            "ConfigError",
            "DataError",
            "PipelineError",
            "SAM2KitError",
            "TrainingError",
        ],
        "paths": ["new_run_dir", "open_run_dir"],
    },
)
