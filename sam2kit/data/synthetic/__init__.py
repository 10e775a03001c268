"""Generate videos with exact masks."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "dataset": ["CompositedDataset", "SyntheticDataset"],
    },
)
