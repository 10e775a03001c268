"""A step whose loss or gradients are not finite: stopped at, kept in a file, and run again."""

from __future__ import annotations

from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from sam2kit.data.clip import ClipBatch
from sam2kit.models.checkpoint_io import read_checkpoint, write_checkpoint
from sam2kit.models.checkpoints import CONFIG_KEY, config_to_store, load_run
from sam2kit.models.sam2 import module_path
from sam2kit.training.module import SAM2LightningModule
from sam2kit.utils.errors import CheckpointError, TrainingError
from sam2kit.viz.tables import Table

STEP_KEY = "step_to_replay"


class StopAtNonFinite(Callback):
    """Ends training before a step that would spoil the weights, and keeps what it was made of.

    The file ``replay.pt`` (of rank r above 0 ``replay-r.pt``) holds the configuration, the weights
    before the step, the batch (the last one, where gradients of several are accumulated), and what
    the random numbers of the step are a function of. Gradients
    are not looked at in ``16-mixed``, where the loss's scale makes some overflow on purpose.

    Raises:
        TrainingError: names the term or the modules, the clips and the file.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = run_dir

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: ClipBatch, batch_idx: int
    ) -> None:
        self._batch, self._index = batch, trainer.fit_loop.total_batch_idx

    def on_before_backward(self, trainer: Trainer, module: LightningModule, loss: Tensor) -> None:
        assert isinstance(module, SAM2LightningModule)
        if not torch.isfinite(loss):
            self._stop(module, f"the loss is {float(loss)}")

    def on_before_optimizer_step(
        self, trainer: Trainer, module: LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        assert isinstance(module, SAM2LightningModule)
        if module.config.trainer.precision == "16-mixed":
            return
        norm, gradients = nn.utils.get_total_norm, _gradients(module.model)
        if not torch.isfinite(norm([g for part in gradients.values() for g in part])):
            broken = [name for name, part in gradients.items() if not torch.isfinite(norm(part))]
            self._stop(module, f"the gradient of {', '.join(broken)} is not finite")

    def _stop(self, module: SAM2LightningModule, fault: str) -> None:
        batch, rank = self._batch.to("cpu"), module.global_rank
        path = self.run_dir / (f"replay-{rank}.pt" if rank else "replay.pt")
        content = {
            "state_dict": {f"model.{k}": v.cpu() for k, v in module.model.state_dict().items()},
            CONFIG_KEY: config_to_store(module.config),
            STEP_KEY: {
                "batch": {f.name: getattr(batch, f.name) for f in fields(batch)},
                "index": self._index,
                "rank": rank,
                "fault": fault,
            },
        }
        write_checkpoint(content, path)
        raise TrainingError(
            f"{fault} in step {module.trainer.global_step}, on clips of "
            f"{', '.join(batch.names)}; the weights are those before it. Look at it with: sam2kit "
            f"replay {path}. Usual causes: optimizer.lr or a weight of loss too high, or "
            "trainer.precision=16-mixed; go on from last.ckpt with lower ones as a new run"
        )


def _gradients(model: nn.Module) -> dict[str, list[Tensor]]:
    """Those of each top module that has any."""
    found: dict[str, list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.grad is not None:
            found.setdefault(module_path(name)[0], []).append(parameter.grad)
    return found


@dataclass(frozen=True)
class Replay:
    """What a kept step does when it is run again.

    Attributes:
        fault: what stopped the training.
        videos: the names of the clips' videos.
        terms: the loss and its terms, unweighted.
        first: the first module, in the order of computing, that answers with a value that is not
            finite, though what it was given is; None where there is none.
        gradients: the norm of each top module's gradient.
    """

    fault: str
    videos: list[str]
    terms: dict[str, float]
    first: str | None
    gradients: dict[str, float]

    def __str__(self) -> str:
        terms = Table([{"term": k, "value": f"{v:.6g}"} for k, v in self.terms.items()])
        norms = Table(
            [{"module": k, "norm of its gradient": f"{v:.6g}"} for k, v in self.gradients.items()]
        )
        where = self.first or "none; what is not finite arises in the loss or in the gradients"
        return (
            f"stopped because {self.fault}\nclips of {', '.join(self.videos)}\n\n{terms}\n\n"
            f"first module whose answer is not finite: {where}\n\n{norms}"
        )


def replay(path: str | Path) -> Replay:
    """Run the step of a ``replay.pt`` again, on the CPU and in full precision; nothing is trained.

    Of several devices the one that wrote the file is run alone, its loss divided by its own count.

    Raises:
        CheckpointError: unreadable, or not such a file.
    """
    content = read_checkpoint(Path(path))
    try:
        step = content[STEP_KEY]
        batch = ClipBatch(**step["batch"])
        index, rank, fault = int(step["index"]), int(step["rank"]), str(step["fault"])
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: holds no step to replay; training writes one as replay.pt when the loss or a "
            "gradient is not finite"
        ) from error
    config, model = load_run(path)
    module = SAM2LightningModule(config, model).train()
    found: list[str] = []
    for name, part in model.named_modules():
        part.register_forward_hook(_watch(name, found))
    _, terms = module.track_and_score(batch, index, rank)
    if terms["loss"].requires_grad:
        terms["loss"].backward()
    return Replay(
        fault,
        batch.names,
        {k: float(v.detach()) for k, v in terms.items()},
        found[0] if found else None,
        {k: float(nn.utils.get_total_norm(g)) for k, g in _gradients(model).items()},
    )


def _watch(name: str, found: list[str]) -> Any:
    def look(part: nn.Module, given: Any, answer: Any) -> None:
        if not found and _finite(given) and not _finite(answer):
            found.append(name)

    return look


def _finite(value: Any) -> bool:
    if isinstance(value, Tensor):
        return bool(torch.isfinite(value).all())
    if isinstance(value, dict):
        value = list(value.values())
    return all(map(_finite, value)) if isinstance(value, list | tuple) else True
