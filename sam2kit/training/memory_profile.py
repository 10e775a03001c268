"""Measure the memory that a training step needs."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import psutil
import torch
from torch import Tensor, nn

GB = 1e9
ADAMW_STATES = 2  # first and second moments
TIGHT = 0.9  # share of device memory above which fragmentation makes allocations fail


@dataclass(frozen=True)
class StepMemory:
    """Peak memory of a training step, in bytes.

    Only tensors are counted. On a CPU, the process itself needs about 1 GB more and each DataLoader
    worker about 0.5 GB.

    Attributes:
        weights: all parameters and buffers.
        optimizer: AdamW's two moments of every trainable parameter, and the averaged weights if
            any.
        step: gradients, activations and workspace at the peak (:func:`peak_bytes`).
        device: name of the device.
        available: total memory of the device.
    """

    weights: int
    optimizer: int
    step: int
    device: str
    available: int

    @property
    def total(self) -> int:
        """Sum of all parts."""
        return self.weights + self.optimizer + self.step

    @property
    def tight(self) -> bool:
        """Whether the step may not fit into the device's memory."""
        return self.total > TIGHT * self.available

    def __str__(self) -> str:
        return (
            f"memory per step: about {self.total / GB:.2f} GB (weights {self.weights / GB:.2f}, "
            f"optimizer {self.optimizer / GB:.2f}, gradients and activations "
            f"{self.step / GB:.2f}), of the {self.available / GB:.0f} GB of {self.device}"
        )


def step_memory(model: nn.Module, step: int, averaged: bool) -> StepMemory:
    """Return the memory of a step, including the model and the optimizer.

    Args:
        model: the model on the training device, with its trainable parameters set.
        step: bytes of gradients and activations, measured by :func:`peak_bytes`.
        averaged: whether training keeps averaged weights too (``trainer.ema_decay``).
    """
    device = next(model.parameters()).device
    weights = _bytes([*model.parameters(), *model.buffers()])
    optimizer = ADAMW_STATES * gradient_bytes(model) + (weights if averaged else 0)
    if device.type == "cuda":
        available = torch.cuda.get_device_properties(device).total_memory
    else:
        available = psutil.virtual_memory().total
    name = "the machine" if device.type == "cpu" else str(device)
    return StepMemory(weights, optimizer, step, name, available)


def gradient_bytes(model: nn.Module) -> int:
    """Return the size of all trainable parameters' gradients in bytes."""
    return _bytes(p for p in model.parameters() if p.requires_grad)


def peak_bytes(run: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Return the peak number of bytes that ``run`` allocates for tensors and workspace.

    On a GPU, torch's allocator reports the peak. On other devices, torch's profiler records each
    allocation and release.

    Args:
        run: the function to measure; it is called once.
        device: the device on which it allocates.
    """
    gc.collect()  # otherwise tensors in reference cycles may be freed during the measurement
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        run()
        return torch.cuda.max_memory_allocated(device) - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler prints when it starts and stops
    activity = torch.profiler.ProfilerActivity.CPU
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")  # earlier ones
        with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
            run()
    result = profile.profiler.kineto_results  # the public tables lack the order of events
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in result.events()
        if event.name() == "[memory]"
    )
    return int(np.cumsum([size for _, size in changes]).max(initial=0))


def is_out_of_memory(error: BaseException) -> bool:
    """Return whether an exception is a failed allocation, on a device or on the host."""
    # torch's CPU and pinned-memory allocators raise a plain RuntimeError.
    phrases = ("can't allocate memory", "not enough memory", "out of memory")
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return any(phrase in str(error) for phrase in phrases)


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
