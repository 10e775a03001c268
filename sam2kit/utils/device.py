"""Resolve accelerator and precision names to what this machine supports."""

from __future__ import annotations

import torch

from sam2kit.utils.errors import ConfigError


def pick_device(accelerator: str) -> torch.device:
    """Return the torch device of an accelerator name.

    Args:
        accelerator: a value of ``trainer.accelerator``; ``auto`` selects CUDA if it is available,
            otherwise the CPU.

    Raises:
        ConfigError: this machine has no such device.
    """
    names = {"cpu": "cpu", "gpu": "cuda", "cuda": "cuda", "mps": "mps"}
    usable = {"cpu": True, "cuda": torch.cuda.is_available()}
    usable["mps"] = torch.backends.mps.is_available()
    if accelerator != "auto" and not usable[names[accelerator]]:
        key, expected = "trainer.accelerator", "a device that this machine has"
        raise ConfigError(key=key, value=accelerator, expected=expected, hint="try cpu or auto")
    if accelerator == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device(names[accelerator])


def resolve_precision(precision: str, accelerator: str) -> str:
    """Replace ``auto`` by ``bf16-mixed`` on a GPU that supports it, otherwise by ``32-true``.

    CPUs use full precision, because whether bfloat16 is faster there depends on the model size.
    """
    if precision != "auto":
        return precision
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(False) else "32-true"
