"""Define, validate, load and save the configuration."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "loading": ["load_config", "override", "save_config"],
        "schema": [
            "AugmentationConfig",
            "Config",
            "DatasetConfig",
            "EvaluationConfig",
            "FeaturesConfig",
            "LossConfig",
            "ModelConfig",
            "OptimizerConfig",
            "PROMPT_TYPES",
            "SchedulerConfig",
            "TrainerConfig",
            "ValDatasetConfig",
        ],
    },
)
