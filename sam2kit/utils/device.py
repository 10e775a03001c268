"""Resolve accelerator and precision names to what this machine supports."""

from __future__ import annotations

import gc
from functools import cache

import torch
from loguru import logger

from sam2kit.utils.errors import ConfigError


def resolve_accelerator(accelerator: str) -> str:
    """Replace ``auto`` with ``cuda`` if it is available, otherwise with ``cpu``.

    Apple GPUs (MPS) are not selected automatically, because sam2kit is not tested on them. Every
    command follows this rule, so that training and evaluation use the same device.

    Args:
        accelerator: a value of ``trainer.accelerator``.

    Returns:
        ``cpu``, ``cuda`` or ``mps``.

    Raises:
        ConfigError: this machine has no such device.
    """
    available = {
        "cpu": True,
        "cuda": torch.cuda.is_available(),
        "mps": torch.backends.mps.is_available(),
    }
    if accelerator == "auto":
        if available["mps"]:
            _log_unused_mps()
        return "cuda" if available["cuda"] else "cpu"
    name = "cuda" if accelerator == "gpu" else accelerator
    if not available[name]:
        names = [name for name, usable in available.items() if usable]
        raise ConfigError(
            key="trainer.accelerator",
            value=accelerator,
            expected=f"a device available on this machine: {', '.join(names)} or auto",
            hint="use mps for the Apple GPU" if available["mps"] else "try cpu or auto",
        )
    return name


@cache
def _log_unused_mps() -> None:
    logger.info(
        "Not using the Apple GPU, because sam2kit is not tested on it; set trainer.accelerator=mps "
        "to use it"
    )


def pick_device(accelerator: str, devices: str = "1") -> torch.device:
    """Return the torch device for work on one device.

    Args:
        accelerator: a value of ``trainer.accelerator``.
        devices: a value of ``trainer.devices``. A list of indices selects its first entry; a number
            of devices or ``auto`` selects the first device. Indices refer to the GPUs in
            ``CUDA_VISIBLE_DEVICES``.

    Raises:
        ConfigError: this machine has no such device.
    """
    name = resolve_accelerator(accelerator)
    if name != "cuda":
        return torch.device(name)
    first, count = _listed(devices)[0] if "," in devices else 0, torch.cuda.device_count()
    if first >= count:
        visible = "0" if count == 1 else f"0 to {count - 1}"
        raise ConfigError(
            key="trainer.devices",
            value=devices,
            expected=f"indices of visible GPUs ({visible})",
            hint="count GPUs from 0 within CUDA_VISIBLE_DEVICES",
        )
    return torch.device("cuda", first)


def _listed(devices: str) -> list[int]:
    return [int(part) for part in devices.split(",") if part.strip()]


def device_count(accelerator: str, devices: str) -> int:
    """Return the number of devices that are selected on this machine, at least 1.

    Args:
        accelerator: a value of ``trainer.accelerator``.
        devices: a value of ``trainer.devices``, in Lightning's syntax: ``0,2`` and ``4,`` list
            device indices, ``2`` is a number of devices.
    """
    if devices in ("auto", "-1"):
        gpus = accelerator in ("auto", "gpu", "cuda")
        return max(torch.cuda.device_count(), 1) if gpus else 1
    return len(_listed(devices)) if "," in devices else int(devices)


def gpu_memory(device: torch.device, devices: str = "1") -> int:
    """Return the total memory in bytes of the smallest selected GPU.

    Args:
        device: a CUDA device, which counts as selected.
        devices: a value of ``trainer.devices``.
    """
    count = torch.cuda.device_count()
    if "," in devices:
        selected = _listed(devices)
    else:
        selected = list(range(device_count("gpu", devices)))
    indices = {device.index or 0, *(index for index in selected if index < count)}
    return min(torch.cuda.get_device_properties(index).total_memory for index in indices)


def resolve_precision(precision: str, accelerator: str) -> str:
    """Replace ``auto`` with ``bf16-mixed`` on a GPU that supports it, otherwise with ``32-true``.

    CPUs use full precision, because bfloat16 is faster there only for some model sizes.
    """
    if precision != "auto":
        return precision
    gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    return "bf16-mixed" if gpu and torch.cuda.is_bf16_supported(False) else "32-true"


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Return the autocast context that training uses for a precision.

    Args:
        device: the device of the computation.
        precision: a value of ``trainer.precision`` except ``auto``.
    """
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "32-true")


def upload(values: torch.Tensor, device: torch.device) -> torch.Tensor:
    """Copy a tensor to a device without waiting for the device.

    CUDA would wait until earlier work is done if the memory were not page-locked.
    """
    if device.type == "cuda" and values.device.type == "cpu":
        values = values.pin_memory()
    return values.to(device, non_blocking=True)


class DeferredValues:
    """Copy numbers from a device to the host without blocking the device.

    Args:
        values: ``[N]``, on any device.
    """

    def __init__(self, values: torch.Tensor) -> None:
        self._ready: torch.cuda.Event | None = None
        if values.device.type == "cuda":
            # A copy to memory that is not page-locked would wait for the device.
            self._values = torch.empty_like(values, device="cpu", pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._ready = torch.cuda.Event()
            self._ready.record(torch.cuda.current_stream(values.device))
        else:
            self._values = values.to("cpu", non_blocking=values.device.type != "mps")

    def read(self) -> list[float]:
        """Wait until the device has computed the numbers, and return them."""
        if self._ready is not None:
            self._ready.synchronize()
        return self._values.tolist()


def release_memory(device: torch.device) -> None:
    """Release the memory that torch caches for later allocations.

    Other processes can then use it. Tensors that are still referenced keep their memory.
    """
    gc.collect()  # models and their hooks are in reference cycles
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()
