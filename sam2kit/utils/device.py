"""Resolve the names of devices and precisions."""

from __future__ import annotations

import torch

from sam2kit.utils.errors import ConfigError


def pick_device(accelerator: str) -> torch.device:
    """The torch device of ``trainer.accelerator``; ``auto`` takes a GPU where there is one.

    Raises:
        ConfigError: there is no such device.
    """
    names = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}
    usable = {"cpu": True, "cuda": torch.cuda.is_available()}
    usable["mps"] = torch.backends.mps.is_available()
    if accelerator != "auto" and not usable[names[accelerator]]:
        key, expected = "trainer.accelerator", "a device of this machine"
        raise ConfigError(key=key, value=accelerator, expected=expected, hint="try cpu or auto")
    if accelerator == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(names[accelerator])


def resolve_precision(precision: str, accelerator: str) -> str:
    """Replace ``auto`` by ``bf16-mixed`` on a GPU that supports it, else by ``32-true``.

    CPUs get full precision: whether bfloat16 is faster there depends on the size of the model.
    """
    if precision != "auto":
        return precision
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(False) else "32-true"
