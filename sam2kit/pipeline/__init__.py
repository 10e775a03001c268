"""Run the staged notebooks unattended, once or for each point of a grid."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "runner": ["PipelineResult", "run_stages"],
        "status": ["read_status"],
        "sweep": ["Trial", "run_sweep"],
    },
)
