"""How much memory a training step takes, measured on one of them."""

from __future__ import annotations

import gc
import os
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

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
        step: gradients, and what the forward pass keeps for the backward pass. On CUDA the
            allocator's peak; elsewhere the tensors that autograd saves, without work space.
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


class StepMeter:
    """Finds the largest of the steps that are measured.

    Args:
        model: on the device that trains, with its trainable parameters set.
        averaged: whether averaged weights are kept beside the trained ones.
    """

    def __init__(self, model: nn.Module, averaged: bool = False) -> None:
        own = [*model.parameters(), *model.buffers()]
        self._own, self._device = own, own[0].device
        self._gradients = _bytes(p for p in model.parameters() if p.requires_grad)
        self._copies = ADAMW_STATES * self._gradients + (_bytes(own) if averaged else 0)
        self._step = 0

    @contextmanager
    def measure(self) -> Iterator[None]:
        """Around a forward and a backward pass, which it leaves as they are."""
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
            before = torch.cuda.memory_allocated(self._device)
            yield
            step = torch.cuda.max_memory_allocated(self._device) - before
        else:
            kept: dict[int, int] = {}

            def keep(tensor: Tensor) -> Tensor:
                storage = tensor.untyped_storage()
                kept[storage.data_ptr()] = storage.nbytes()
                return tensor.detach()  # the tensor itself would keep itself alive

            with saved_tensors_hooks(keep, lambda tensor: tensor):
                yield
            for tensor in self._own:
                kept.pop(tensor.untyped_storage().data_ptr(), None)
            step = self._gradients + sum(kept.values())
        self._step = max(self._step, step)

    def result(self) -> StepMemory:
        available = (
            torch.cuda.get_device_properties(self._device).total_memory
            if self._device.type == "cuda"
            else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        )
        name = "the machine" if self._device.type == "cpu" else str(self._device)
        return StepMemory(_bytes(self._own), self._copies, self._step, name, available)


def peak_bytes(run: Callable[[], object], device: str | torch.device = "cpu") -> int:
    """The most that ``run`` holds at once in tensors, beyond what there was before it.

    On a GPU what its allocator counts. Elsewhere every allocation and release of torch's allocator
    is recorded by its profiler; so work space counts, too.

    Args:
        run: what is called once.
        device: where its tensors are.
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
