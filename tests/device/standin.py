"""Pretend to have a GPU, to find without one the mistakes that only a GPU shows.

A tensor on the device ``standin`` keeps its values in main memory. Like a CUDA tensor it

- cannot be combined with a CPU tensor, except for scalars and index tensors,
- rejects random generators of the CPU and ``numpy()``, and has a random state of its own,
- follows CUDA's autocast policy,
- belongs to the stream that computed it. Another stream must wait before it reads the tensor.

Inside ``with StandIn() as gpu:`` each synchronization (the host waits for the device) is counted
with the line that causes it, and so is each kernel (an operation that is neither a view nor an
allocation). The casts of autocast are counted without its cache, and attention without dropout is
one kernel, as CUDA's fused one.

The device is built on torch's experimental Python backend for ``PrivateUse1``. Registering it
changes the whole process, so tests that import this module run in a process of their own
(:mod:`test_device_contract` starts it).
"""

from __future__ import annotations

import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch.nn import functional as F
from torch.utils._foreach_utils import _foreach_supported_types
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.backend_registration import (
    _DummyBackendModule,
    _setup_privateuseone_for_python_backend,
)
from torch.utils.checkpoint import set_checkpoint_early_stop

NAME = "standin"
PACKAGE = str(Path(__file__).parents[2] / "sam2kit")
aten = torch.ops.aten


class MixedDevices(RuntimeError):
    """An operation that CUDA would reject: tensors or generators of two devices."""


class StreamError(RuntimeError):
    """A race on CUDA: a stream reads a tensor of another one, which may not be complete."""


class Stream:
    """A stream of operations, which knows what happened before its next operation.

    Attributes:
        clock: number of operations that are complete before the next one, by stream.
    """

    def __init__(self, device: Any = None) -> None:
        self.clock: Counter[int] = Counter()

    def step(self) -> tuple[int, int]:
        """Count an operation, and return this stream and its number."""
        self.clock[id(self)] += 1
        return id(self), self.clock[id(self)]

    def record_event(self) -> Counter[int]:
        return self.clock.copy()

    def wait_event(self, event: Counter[int]) -> None:
        self.clock |= event

    def wait_stream(self, stream: Stream) -> None:
        self.wait_event(stream.clock)


class Backend(_DummyBackendModule):
    """What ``torch.standin`` offers: the parts of ``torch.cuda`` that torch itself calls."""

    _initialized = True
    random_state = torch.Generator().manual_seed(0).get_state()
    emptied = 0  # calls of empty_cache

    def get_amp_supported_dtype(self) -> list[torch.dtype]:
        return [torch.bfloat16, torch.float16, torch.float32]

    def set_device(self, device: Any) -> None:
        pass

    Stream = Stream
    streams = (Stream(),)  # the default one; the last one is current

    def current_stream(self, device: Any = None) -> Stream:
        return Backend.streams[-1]

    @contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        Backend.streams += (stream,)
        try:
            yield
        finally:
            Backend.streams = Backend.streams[:-1]

    @contextmanager
    def device(self, device: Any) -> Iterator[None]:
        yield

    def manual_seed_all(self, seed: int) -> None:
        Backend.random_state = torch.Generator().manual_seed(seed).get_state()

    def get_rng_state(self, device: Any = 0) -> torch.Tensor:
        return Backend.random_state.clone()

    def set_rng_state(self, state: torch.Tensor, device: Any = 0) -> None:
        Backend.random_state = state.clone()

    def synchronize(self, device: Any = None) -> None:
        _waits("synchronize")

    def empty_cache(self) -> None:
        Backend.emptied += 1


_setup_privateuseone_for_python_backend(NAME, Backend())
DEVICE = torch.device(NAME, 0)


class StandInTensor(torch.Tensor):
    """A tensor that claims to be on the stand-in; ``held`` has its values, on the CPU."""

    held: torch.Tensor

    @staticmethod
    def __new__(cls, held: torch.Tensor) -> StandInTensor:
        tensor = torch.Tensor._make_wrapper_subclass(
            cls,
            held.size(),
            strides=held.stride(),
            storage_offset=held.storage_offset(),
            dtype=held.dtype,
            layout=held.layout,
            device=DEVICE,
        )
        tensor.held = held
        tensor.stamp = Backend.streams[-1].step()
        tensor.readers = set()
        return tensor

    def record_stream(self, stream: Stream) -> None:
        self.readers.add(id(stream))

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(func, args, kwargs or {})

    def __repr__(self, *, tensor_contents: Any = None) -> str:
        return f"StandInTensor({self.held!r})"

    def numpy(self, *, force: bool = False) -> Any:
        raise TypeError(f"cannot convert a tensor on {DEVICE} to numpy; call cpu() first")

    def __array__(self, *args: Any, **kwargs: Any) -> Any:
        return self.numpy()

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def data_ptr(self) -> int:
        return self.held.data_ptr()

    def untyped_storage(self) -> torch.UntypedStorage:
        return self.held.untyped_storage()

    def __deepcopy__(self, memo: dict) -> torch.Tensor:
        copied = StandInTensor(self.held.clone())
        if isinstance(self, torch.nn.Parameter):
            copied = torch.nn.Parameter(copied, self.requires_grad)
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        _waits("saved")
        return self.held.clone().__reduce_ex__(protocol)


class StandIn(TorchDispatchMode):
    """Make the device usable within a ``with`` block, and count what the program does with it.

    Attributes:
        waits: number of synchronizations by (line, reason).
        kernels: number of kernels by line.
    """

    active: StandIn | None = None

    def __init__(self) -> None:
        super().__init__()
        self.waits: Counter[tuple[str, str]] = Counter()
        self.kernels: Counter[str] = Counter()
        self._undo = ExitStack()

    def reset(self) -> None:
        self.waits.clear()
        self.kernels.clear()

    def report(self, rows: int = 25) -> str:
        """List the synchronizations and the lines with most kernels."""
        lines = [f"{self.waits.total()} synchronizations, {self.kernels.total()} kernels"]
        lines += [f"{n:6} {line} ({why})" for (line, why), n in self.waits.most_common(rows)]
        lines += ["kernels:"] + [f"{n:6} {line}" for line, n in self.kernels.most_common(rows)]
        return "\n".join(lines)

    def __enter__(self) -> StandIn:
        self._undo = undo = ExitStack()
        undo.callback(setattr, StandIn, "active", StandIn.active)
        StandIn.active = self
        # torch.tensor(..., device=...) makes a CPU tensor and copies it.
        undo.callback(torch._C._set_only_lift_cpu_tensors, torch._C._only_lift_cpu_tensors())
        torch._C._set_only_lift_cpu_tensors(True)
        # One thread: autograd's own device thread would need a device guard written in C++.
        undo.enter_context(torch.autograd.set_multithreading_enabled(False))
        # Stopping a recomputation early raises an error while a device guard is active, and its
        # Python methods cannot be called then.
        undo.enter_context(set_checkpoint_early_stop(False))
        # Inference mode does not support tensors with a Python class.
        undo.callback(setattr, torch, "inference_mode", torch.inference_mode)
        torch.inference_mode = _no_grad  # type: ignore[assignment,misc]
        # As on CUDA, optimizers and clipping use the operations on lists of tensors.
        _foreach_supported_types.append(StandInTensor)
        undo.callback(_foreach_supported_types.remove, StandInTensor)
        undo.callback(setattr, F, "scaled_dot_product_attention", _attention)
        F.scaled_dot_product_attention = _fused_attention
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._undo.close()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _execute(func, args, kwargs or {})


@contextmanager
def _no_grad(mode: bool = True) -> Iterator[None]:
    with torch.no_grad() if mode else nullcontext():
        yield


_attention = F.scaled_dot_product_attention


def _fused_attention(*args: Any, **kwargs: Any) -> torch.Tensor:
    """Compute attention without dropout in one operation, as on CUDA."""
    plain = len(args) == 3 and set(kwargs) <= {"dropout_p"} and not kwargs.get("dropout_p")
    if plain and isinstance(args[0], StandInTensor):
        return aten._scaled_dot_product_flash_attention_for_cpu(*args)[0]
    return _attention(*args, **kwargs)


# ---- Counting.


def _waits(why: str) -> None:
    if StandIn.active is not None:
        StandIn.active.waits[_line(), why] += 1


def _line() -> str:
    """Return the line of sam2kit that is being executed, or the part of torch that calls back."""
    frame, other = sys._getframe(2), ""
    while frame is not None:
        file = frame.f_code.co_filename
        if file.startswith(PACKAGE):
            line = f"{file[len(PACKAGE) + 1 :]}:{frame.f_lineno}"
            return f"{line} {other}".strip() if other in ("backward", "optimizer") else line
        if not other:
            if file.endswith("torch/autograd/graph.py"):
                other = "backward"
            elif "/torch/optim/" in file:
                other = "optimizer"
            elif "/lightning/" in file or "/sam2/" in file:
                other = f"{'/'.join(file.split('/')[-2:])}:{frame.f_lineno}"
        frame = frame.f_back  # type: ignore[assignment]
    return other or "elsewhere"


# ---- Executing operations.

_READ_BY_HOST = {
    "_local_scalar_dense": "item",
    "nonzero": "nonzero",
    "masked_select": "masked_select",
    "_unique2": "unique",
    "unique_dim": "unique",
    "unique_consecutive": "unique",
    "equal": "equal",
    "is_nonzero": "bool",
}
_INDEXING = ("index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index")
_NO_KERNEL = ("_unsafe_view", "_reshape_alias", "lift_fresh", "_local_scalar_dense", "is_nonzero")


def _execute(func: Any, args: tuple, kwargs: dict[str, Any]) -> Any:
    """Run an operation on the CPU, after the checks that CUDA makes."""
    values = _leaves((args, kwargs))
    here = [x for x in values if isinstance(x, StandInTensor)]
    cpu = [x for x in values if isinstance(x, torch.Tensor) and not isinstance(x, StandInTensor)]
    name, is_kernel, is_random = _describe(func)
    target = kwargs.get("device")
    on_device = bool(here) if target is None else torch.device(target).type == NAME
    if not here and not on_device:
        return func(*args, **kwargs)
    if here and cpu:
        _check_mixed(name, args, here, cpu)
    for tensor in here:
        _check_stream(tensor, name)
    if on_device and any(isinstance(x, torch.Generator) for x in values):
        raise MixedDevices(f"{func}: the generator is on cpu, but the tensors are on {DEVICE}")
    _count_waits(name, args, kwargs, bool(here), on_device)
    if on_device and StandIn.active is not None and is_kernel:
        StandIn.active.kernels[_line()] += 1
    if target is not None:
        kwargs = {k: v for k, v in kwargs.items() if k != "pin_memory"}
        kwargs["device"] = torch.device("cpu")
    # A lazy conjugate or negative is a property of the held tensor that its wrapper cannot have.
    func = {"_conj": aten.conj_physical.default, "_neg_view": aten.neg.default}.get(name, func)
    with _own_random_state(on_device and is_random):
        result = func(*_map(_unwrap, args), **_map(_unwrap, kwargs))
    if name == "copy_":
        if isinstance(args[0], StandInTensor):
            args[0].stamp = Backend.streams[-1].step()
        return args[0]
    wrappers = {id(x.held): x for x in here}  # operations in place return their argument

    def wrap(x: Any) -> Any:
        if not isinstance(x, torch.Tensor) or not on_device:
            return x
        if id(x) not in wrappers:
            return StandInTensor(x)
        wrappers[id(x)].stamp = Backend.streams[-1].step()
        return wrappers[id(x)]

    return _map(wrap, result)


def _leaves(x: Any) -> list[Any]:
    """Return the values in nested lists, tuples and dictionaries; pytree takes far longer."""
    if isinstance(x, dict):
        x = x.values()
    elif not isinstance(x, list | tuple):
        return [x]
    leaves = []
    for item in x:
        if isinstance(item, list | tuple | dict):
            leaves += _leaves(item)
        else:
            leaves.append(item)
    return leaves


def _map(function: Callable[[Any], Any], x: Any) -> Any:
    """Apply a function to the values in nested lists, tuples and dictionaries."""
    if isinstance(x, list):
        return [_map(function, item) for item in x]
    if isinstance(x, tuple):
        return tuple(_map(function, item) for item in x)
    if isinstance(x, dict):
        return {key: _map(function, item) for key, item in x.items()}
    return function(x)


def _unwrap(x: Any) -> Any:
    return x.held if isinstance(x, StandInTensor) else x


@contextmanager
def _own_random_state(random: bool) -> Iterator[None]:
    """Draw random numbers from the device's state."""
    if not random:
        yield
        return
    state = torch.get_rng_state()
    torch.set_rng_state(Backend.random_state)
    try:
        yield
    finally:
        Backend.random_state = torch.get_rng_state()
        torch.set_rng_state(state)


def _check_mixed(name: str, args: tuple, here: list, cpu: list) -> None:
    """Reject tensors of two devices, unless CUDA accepts them."""
    if name in ("_to_copy", "copy_"):
        return
    if name in _INDEXING and isinstance(args[0], StandInTensor):
        # Index tensors may be on the CPU, values not.
        cpu = [x for x in _leaves(args[2:3]) if isinstance(x, torch.Tensor)]
        cpu = [x for x in cpu if not isinstance(x, StandInTensor)]
    if all(x.ndim == 0 for x in cpu) and name not in ("cat", "stack"):
        return
    raise MixedDevices(
        f"{name} with tensors on {DEVICE} {[tuple(x.shape) for x in here]} and on the CPU "
        f"{[tuple(x.shape) for x in cpu]}\n{''.join(traceback.format_stack(limit=12))}"
    )


def _check_stream(tensor: StandInTensor, name: str) -> None:
    """Reject a tensor of another stream that may not be complete, or whose memory may be reused."""
    stream, number = tensor.stamp
    current = Backend.streams[-1]
    if stream == id(current):
        return
    if current.clock[stream] < number:
        raise StreamError(f"{name} does not wait for the stream of a tensor, at {_line()}")
    if stream != id(Backend.streams[0]) and id(current) not in tensor.readers:
        raise StreamError(f"{name} reads a tensor without record_stream, at {_line()}")


def _count_waits(name: str, args: tuple, kwargs: dict, here: bool, on_device: bool) -> None:
    """Count what makes the host wait: copies to or from it, and sizes that depend on data."""
    if name == "_to_copy" and isinstance(args[0], StandInTensor) != on_device:
        if not kwargs.get("non_blocking"):
            _waits("copied to the device" if on_device else "copied to the host")
    elif name == "copy_" and isinstance(args[0], StandInTensor) != isinstance(
        args[1], StandInTensor
    ):
        if not (args[2] if len(args) > 2 else kwargs.get("non_blocking")):
            _waits("copied by copy_")
    elif here and name in _READ_BY_HOST:
        _waits(_READ_BY_HOST[name])
    elif here and name == "repeat_interleave" and kwargs.get("output_size") is None:
        _waits("repeat_interleave")
    elif here and name in _INDEXING:
        indices = [x for x in _leaves(args[1]) if isinstance(x, torch.Tensor)]
        if any(not isinstance(x, StandInTensor) for x in indices):
            _waits("index from the host")
        # One value for all selected elements is written without knowing their number.
        masked_fill = len(args) > 2 and args[2].numel() == 1
        if any(x.dtype == torch.bool for x in indices) and not masked_fill:
            _waits("boolean index")


@cache
def _describe(func: Any) -> tuple[str, bool, bool]:
    """Return the name of an operation, and whether it starts a kernel and draws random numbers."""
    name = func._schema.name.partition("::")[2]
    is_view = any(
        r.alias_info is not None and not r.alias_info.is_write for r in func._schema.returns
    )
    is_kernel = not (is_view or name in _NO_KERNEL or "empty" in name)
    return name, is_kernel, torch.Tag.nondeterministic_seeded in func.tags


# ---- CUDA's autocast policy, from ATen/autocast_mode.h.

_LOW = """conv1d conv2d conv3d convolution conv_transpose2d.input addmm addmv mm mv bmm baddbmm
addbmm matmul linear einsum prelu scaled_dot_product_attention
_scaled_dot_product_flash_attention_for_cpu"""
_FULL = """exp log log2 log10 log1p expm1 reciprocal rsqrt pow.Tensor_Scalar pow.Tensor_Tensor
pow.Scalar softplus layer_norm native_layer_norm group_norm binary_cross_entropy_with_logits l1_loss
mse_loss cdist logsumexp upsample_nearest2d upsample_nearest2d.vec upsample_bilinear2d
upsample_bilinear2d.vec _upsample_bilinear2d_aa _upsample_bilinear2d_aa.vec upsample_bicubic2d
upsample_bicubic2d.vec prod softmax.int log_softmax.int cumsum cumprod linalg_vector_norm sum
sum.dim_IntList"""
_WIDEST = "cat stack addcmul addcdiv atan2 grid_sampler index_put scatter_add"
_AUTOCAST_KEY = torch._C.DispatchKey.AutocastPrivateUse1


def _is_castable(x: Any) -> bool:
    return isinstance(x, torch.Tensor) and x.is_floating_point() and x.dtype != torch.float64


def _autocast_rule(operation: Any, choose: Callable[[set[torch.dtype]], torch.dtype]) -> Callable:
    """Return a kernel that casts the floating-point arguments of an operation and calls it."""

    def run(*args: Any, **kwargs: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(torch._C.DispatchKeySet(_AUTOCAST_KEY)):
            values = [x for x in _leaves((args, kwargs)) if _is_castable(x)]
            dtype = choose({x.dtype for x in values})

            def cast(x: Any) -> Any:
                return x.to(dtype) if _is_castable(x) and x.dtype != dtype else x

            return operation(*_map(cast, args), **_map(cast, kwargs))

    return run


def _register_autocast() -> list[torch.library.Library]:
    rest = torch.library.Library("_", "IMPL", _AUTOCAST_KEY.name)
    rest.fallback(torch.library.fallthrough_kernel)
    library = torch.library.Library("aten", "IMPL", _AUTOCAST_KEY.name)
    rules: list[tuple[str, Callable[[set[torch.dtype]], torch.dtype]]] = [
        (_LOW, lambda _: torch.get_autocast_dtype(NAME)),
        (_FULL, lambda _: torch.float32),
        (_WIDEST, lambda d: max(d, key=lambda x: x.itemsize, default=torch.float32)),
    ]
    for names, choose in rules:
        for name in names.split():
            base, _, overload = name.partition(".")
            operation = getattr(getattr(aten, base), overload or "default", None)
            if operation is not None:
                library.impl(name, _autocast_rule(operation, choose))
    return [rest, library]


_LIBRARIES = _register_autocast()  # unregistered when they are deleted
