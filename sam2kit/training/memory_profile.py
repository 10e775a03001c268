"""Measure how much memory a training step takes."""

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
ADAMW_STATES = 2  # running means of the gradient and of its square
TIGHT = 0.9  # of what the device has; beyond it allocators begin to fail


@dataclass(frozen=True)
class StepMemory:
    """Bytes of tensors that training holds at the peak of a step.

    On a CPU the process itself and the loader's processes come on top (about 1 GB and 0.5 GB each).

    Attributes:
        weights: all parameters and buffers.
        optimizer: AdamW's two states of every trained parameter, and the averaged weights.
        step: gradients, activations and work space at the peak (:func:`peak_bytes`).
        device: where it was measured, and ``available`` its bytes in all.
    """

    weights: int
    optimizer: int
    step: int
    device: str
    available: int

    @property
    def total(self) -> int:
        return self.weights + self.optimizer + self.step

    @property
    def tight(self) -> bool:
        return self.total > TIGHT * self.available

    def __str__(self) -> str:
        return (
            f"memory of a step: about {self.total / GB:.2f} GB (weights {self.weights / GB:.2f}, "
            f"optimizer {self.optimizer / GB:.2f}, gradients and activations "
            f"{self.step / GB:.2f}), of the {self.available / GB:.0f} GB of {self.device}"
        )


def step_memory(model: nn.Module, step: int, averaged: bool) -> StepMemory:
    """Add to a measured step what the model on its device and the optimizer hold.

    Args:
        model: on the device that trains, with its trainable parameters set.
        step: bytes of gradients and activations, as :func:`peak_bytes` measures them.
        averaged: whether averaged weights are kept beside the trained ones.
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
    """Return the bytes of the gradients of all trained parameters."""
    return _bytes(p for p in model.parameters() if p.requires_grad)


def peak_bytes(run: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """Return the peak of the bytes that ``run`` allocates for tensors, work space included.

    On a GPU its allocator counts them. Elsewhere torch's profiler records each allocation and each
    release.

    Args:
        run: called once.
        device: the device of its tensors.
    """
    gc.collect()
    if torch.device(device).type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        run()
        return torch.cuda.max_memory_allocated() - before
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # it would print when it starts and stops
    activity = torch.profiler.ProfilerActivity.CPU
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Warning: Profiler clears events")  # none are wanted
        with torch.profiler.profile(activities=[activity], profile_memory=True) as profile:
            run()
    result = profile.profiler.kineto_results  # the public tables do not tell the order in time
    changes = sorted(
        (event.start_ns(), event.nbytes())
        for event in result.events()
        if event.name() == "[memory]"
    )
    return int(np.cumsum([size for _, size in changes]).max(initial=0))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
