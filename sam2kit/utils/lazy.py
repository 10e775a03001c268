"""Export names of a package without importing the modules that define them (PEP 562)."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from typing import Any

# BEGIN delete after the merge: names that other branches give to these functions.
_RENAMED = {
    ("sam2kit.config.loading", "load_config"): "compose",
    ("sam2kit.models.checkpoints", "load_model"): "load_source",
    ("sam2kit.tracking.tracking_job", "track_video"): "track",
    ("sam2kit.training.planner", "plan_training"): "plan",
}
# END delete after the merge, with the two lines below that read _RENAMED.


def lazy_exports(
    package: str, exports: Mapping[str, Sequence[str]]
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """Make the ``__getattr__``, ``__dir__`` and ``__all__`` of a package.

    A module is imported when one of its names is first read. ``__init__.pyi`` beside the package
    lists the same names for type checkers and editors; ``tests/integration/test_public_api.py``
    compares the two.

    Args:
        package: ``__name__`` of the package.
        exports: module, relative to the package, -> the names that it defines.

    Returns:
        the three values, in this order.
    """
    module_of = {name: f"{package}.{module}" for module, names in exports.items() for name in names}

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        module = import_module(module_of[name])
        if not hasattr(module, name) and (module.__name__, name) in _RENAMED:  # after the merge:
            return getattr(module, _RENAMED[module.__name__, name])  # delete these two lines
        value = getattr(module, name)
        setattr(sys.modules[package], name, value)  # later reads no longer come here
        return value

    def names_of_package() -> list[str]:
        return sorted({*vars(sys.modules[package]), *module_of})

    return load, names_of_package, sorted(module_of)
