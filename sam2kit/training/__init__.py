"""Fine-tune a model with Lightning: losses, modules, audit and plan."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "datamodule": ["SAM2LightningDataModule"],
        "gradient_audit": ["Audit", "audit_config", "audit_gradients"],
        "losses": [
            "SAM2TrainingLoss",
            "bce_loss",
            "dice_loss",
            "focal_loss",
            "iou_head_loss",
            "iou_loss",
            "temporal_loss",
        ],
        "module": ["SAM2LightningModule"],
        "planner": ["Plan", "plan_training"],
        "trainer": ["FitResult", "fit"],
    },
)
