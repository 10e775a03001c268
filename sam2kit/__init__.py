"""Fine-tune SAM 2 on your own videos, from Python, notebooks or the command line.

The names below are imported from their modules when they are first used: ``import sam2kit`` loads
neither torch nor Hydra nor numpy. docs/library.md shows how to use them.
"""

from sam2kit.utils.lazy import lazy_exports

__version__ = "0.1.0"

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "config": [
            "AugmentationConfig",
            "Config",
            "DatasetConfig",
            "EvaluationConfig",
            "FeaturesConfig",
            "LossConfig",
            "ModelConfig",
            "OptimizerConfig",
            "SchedulerConfig",
            "TrainerConfig",
            "ValDatasetConfig",
            "load_config",
            "save_config",
        ],
        "data": [
            "COCODataset",
            "ClipBatch",
            "ClipDataset",
            "VideoClip",
            "VideoDataset",
            "VideoSource",
            "collate",
            "convert",
            "create_dataloader",
            "open_source",
            "run_doctor",
        ],
        "evaluation": ["Evaluation", "evaluate_checkpoint", "evaluate_predictions"],
        "models": ["SAM2Model", "TrackOutput", "create_sam2_model", "export", "load_model"],
        "pipeline": ["run_stages"],
        "prompts": ["Prompt", "PromptGenerator"],
        "tracking": ["FrameTracks", "TrackerOptions", "VideoTracker", "track_video"],
        "training": [
            "FitResult",
            "SAM2LightningDataModule",
            "SAM2LightningModule",
            "SAM2TrainingLoss",
            "audit_config",
            "audit_gradients",
            "fit",
            "plan_training",
        ],
        "utils": [
            "CheckpointError",
            "ConfigError",
            "DataError",
            "PipelineError",
            "SAM2KitError",
            "TrainingError",
        ],
        "widgets": ["Annotator", "ClipBrowser", "PromptDebugger"],
    },
)
