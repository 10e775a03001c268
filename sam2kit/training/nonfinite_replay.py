"""Stop at a step with a non-finite loss or gradient, save the step and replay it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from pathlib import Path
from shlex import quote
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sam2kit.data.clip import ClipBatch
from sam2kit.models.checkpoint_io import read_checkpoint, write_checkpoint
from sam2kit.models.checkpoints import CONFIG_KEY, config_to_store, load_run
from sam2kit.models.sam2 import module_path
from sam2kit.training.module import SAM2LightningModule
from sam2kit.utils.device import DeferredValues
from sam2kit.utils.errors import CheckpointError, TrainingError
from sam2kit.utils.readers import on_one_line
from sam2kit.viz.tables import Table

STEP_KEY = "step_to_replay"


class StopAtNonFinite(Callback):
    """Stop training before non-finite values corrupt the weights, and save the step.

    The file ``replay.pt`` (``replay-R.pt`` for a rank R above 0) contains the configuration, the
    weights before the step, the batch, and the step and rank that seed the random numbers. If
    gradients are accumulated over several batches, it contains the last batch. With ``16-mixed``,
    gradients are not checked, because loss scaling makes some of them overflow by design.

    On a GPU, the optimizer skips such a step and the error is raised in the next one, because
    reading the values immediately would synchronize the GPU in every step.

    Args:
        run_dir: the directory in which to save the step.

    Raises:
        TrainingError: the loss or a gradient is not finite; the error names the modules, the clips
            and the saved file.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir
        self._pending: tuple[list[str], DeferredValues, _Step] | None = None

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: ClipBatch, batch_idx: int
    ) -> None:
        index = trainer.fit_loop.total_batch_idx
        self._step = _Step(batch.host or batch, index, trainer.global_step)

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        self._check_last_step(module)
        self._loss = loss.detach()
        if not _can_skip(trainer.optimizers[0]) and not torch.isfinite(loss):
            self._stop(module, self._step, f"the loss is {float(loss)}")

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(module, SAM2LightningModule)
        if module.config.trainer.precision == "16-mixed":
            return
        gradients = _gradients(module.model)
        norms = [nn.utils.get_total_norm(part) for part in gradients.values()]
        values = torch.stack([self._loss, *norms])
        if _can_skip(optimizer):
            optimizer.found_inf = (~values.isfinite().all()).float()  # type: ignore[attr-defined]
            self._pending = list(gradients), DeferredValues(values), self._step
        elif fault := _fault(list(gradients), values.tolist()):
            self._stop(module, self._step, fault)

    def on_train_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        self._check_last_step(module)

    def on_validation_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._check_last_step(module)

    def _check_last_step(self, module: LightningModule) -> None:
        """Raise if the optimizer skipped the last step because of non-finite values."""
        if self._pending is None:
            return
        names, values, step = self._pending
        self._pending = None
        if fault := _fault(names, values.read()):
            self._stop(module, step, fault)

    def _stop(self, module: LightningModule, step: _Step, fault: str) -> None:
        """Save a step, then raise TrainingError."""
        assert isinstance(module, SAM2LightningModule)
        batch, rank = step.batch.to("cpu"), module.global_rank
        path = self.run_dir / (f"replay-{rank}.pt" if rank else "replay.pt")
        content = {
            "state_dict": {f"model.{k}": v.cpu() for k, v in module.model.state_dict().items()},
            CONFIG_KEY: config_to_store(module.config),
            STEP_KEY: {
                "batch": {f.name: getattr(batch, f.name) for f in fields(batch) if f.init},
                "index": step.index,
                "rank": rank,
                "fault": fault,
            },
        }
        write_checkpoint(content, path)
        raise TrainingError(
            f"{fault} in step {step.number}, on clips of {', '.join(batch.names)}; the weights "
            "before this step are saved",
            hint=f"analyse the step with sam2kit replay {quote(str(path))}. Common causes are a "
            "high optimizer.lr or loss weight, and trainer.precision=16-mixed. Start a new run "
            "with lower values from the weights in last.ckpt",
        )


@dataclass(frozen=True, eq=False)
class _Step:
    """A batch, its index, and the number of optimizer steps before it."""

    batch: ClipBatch
    index: int
    number: int


def _can_skip(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether the optimizer skips steps when its attribute ``found_inf`` is 1."""
    return all(group.get("fused") for group in optimizer.param_groups)


def _fault(modules: list[str], values: list[float]) -> str | None:
    """Describe which of the loss and the modules' gradient norms are not finite, or return None."""
    loss, *norms = values
    if not math.isfinite(loss):
        return f"the loss is {loss}"
    bad = [name for name, norm in zip(modules, norms, strict=True) if not math.isfinite(norm)]
    return f"the gradient of {', '.join(bad)} is not finite" if bad else None


def _gradients(model: nn.Module) -> dict[str, list[Tensor]]:
    """Return the gradients of each top-level module that has gradients."""
    gradients: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            gradients.setdefault(module_path(name)[0], []).append(parameter.grad)
    return gradients


@dataclass(frozen=True)
class Replay:
    """The result of replaying a saved step.

    Attributes:
        fault: why training stopped.
        videos: names of the clips' videos.
        terms: the loss and its unweighted terms, by name.
        first: first module, in execution order, with finite inputs and a non-finite output, or None
            if there is no such module.
        gradients: L2 norm of the gradient of each top-level module, by name.
    """

    fault: str
    videos: list[str]
    terms: dict[str, float]
    first: str | None
    gradients: dict[str, float]

    def __str__(self) -> str:
        terms = Table([{"term": k, "value": f"{v:.6g}"} for k, v in self.terms.items()])
        norms = Table(
            [{"module": k, "gradient norm": f"{v:.6g}"} for k, v in self.gradients.items()]
        )
        module = self.first or "none (the loss or a gradient is the first non-finite value)"
        return (
            f"training stopped because {self.fault}\nclips of {', '.join(self.videos)}\n\n"
            f"{terms}\n\nfirst module with a non-finite output: {module}\n\n{norms}"
        )


def replay(path: str | Path) -> Replay:
    """Replay a saved step on the CPU in full precision, without updating the weights.

    If the run used several devices, only the rank that wrote the file is replayed, and its loss is
    divided by its own number of object-frames.

    Args:
        path: a ``replay.pt`` written by :class:`StopAtNonFinite`.

    Raises:
        CheckpointError: the file is unreadable or contains no step.
    """
    content = read_checkpoint(Path(path))
    try:
        step = content[STEP_KEY]
        batch = ClipBatch(**step["batch"])
        index, rank, fault = int(step["index"]), int(step["rank"]), str(step["fault"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path} contains no step to replay",
            hint="pass the replay.pt that training writes if the loss or a gradient is not finite",
        ) from error
    config, model = load_run(path)
    module = SAM2LightningModule(config, model).train()
    sources: list[str] = []
    for name, part in model.named_modules():
        part.register_forward_hook(_watch(name, sources))
    try:
        _, terms = module.track_and_score(batch, index, rank)
        if terms["loss"].requires_grad:
            terms["loss"].backward()
    except (RuntimeError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(
            f"the step in {path} cannot be replayed ({on_one_line(error)})",
            hint="the file may be damaged or from another version of sam2kit; repeat the run with "
            "this version",
        ) from error
    return Replay(
        fault,
        batch.names,
        {k: float(v.detach()) for k, v in terms.items()},
        sources[0] if sources else None,
        {k: float(nn.utils.get_total_norm(g)) for k, g in _gradients(model).items()},
    )


def _watch(name: str, sources: list[str]) -> Any:
    """Return a forward hook that records ``name`` if the module is the first non-finite one."""

    def check(part: nn.Module, inputs: Any, outputs: Any) -> None:
        if not sources and _finite(inputs) and not _finite(outputs):
            sources.append(name)

    return check


def _finite(value: Any) -> bool:
    """Return whether all tensors in nested lists, tuples and dictionaries are finite."""
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        value = list(value.values())
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True
