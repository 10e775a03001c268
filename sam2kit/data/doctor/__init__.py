"""Examine a data set and report its problems."""

from sam2kit.utils.lazy import lazy_exports

__getattr__, __dir__, __all__ = lazy_exports(
    __name__,
    {
        "report": ["Examination", "run_doctor"],
    },
)
