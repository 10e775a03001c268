"""Provide Lightning callbacks for progress, validation, checkpoints and interrupts."""

from __future__ import annotations

import math
import os
import signal
import threading
import time
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from queue import SimpleQueue
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, WeightAveraging
from loguru import logger
from torch import Tensor, nn

from sam2kit.config.schema import MONITORS
from sam2kit.data.sources.base import VideoSource
from sam2kit.models.lora import is_lora_a
from sam2kit.models.sam2 import SAM2Model
from sam2kit.utils.errors import CheckpointError, DataError
from sam2kit.utils.processes import STOP_SIGNALS

Scorer = Callable[[SAM2Model, VideoSource], float]
"""Function of a model and the validation videos that returns J&F, from 0 to 1.

If it has a method ``check(source)``, :func:`~sam2kit.training.trainer.fit` calls this method before
training, with the validation videos.
"""


class LogProgress(Callback):
    """Log progress after the first step, every ``every_n_steps`` steps, and after each validation.

    During slow steps and long validations, a line is logged at least every ``seconds``. Unlike a
    progress bar, which overwrites one line of a terminal, these lines are readable in a log file.
    """

    def __init__(self, every_n_steps: int, seconds: float = 30) -> None:
        self.every_n_steps, self.seconds = every_n_steps, seconds

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._start_time, self._first_step = time.monotonic(), trainer.global_step
        self._last_log_time, self._step = self._start_time, self._first_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        # With accumulated gradients, several batches have the same step.
        is_new, self._step = step != self._step, step
        is_due = step % self.every_n_steps == 0 or step in (total, self._first_step + 1)
        if not (is_new and is_due) and time.monotonic() < self._last_log_time + self.seconds:
            return
        self._last_log_time = time.monotonic()
        loss = float(trainer.callback_metrics["loss"])
        # Count from the first step of this process: a resumed run does not start at step 0.
        seconds = (time.monotonic() - self._start_time) / max(step - self._first_step, 1)
        logger.info(
            "epoch {} step {}/{} loss {:.4f} lr {:.2e} {:.2f} s/step, {:.0f} s left",
            trainer.current_epoch,
            step,
            total,
            loss,
            float(trainer.callback_metrics["learning_rate"]),
            seconds,
            seconds * (total - step),
        )

    def on_validation_batch_end(
        self,
        trainer: Trainer,
        module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        if time.monotonic() >= self._last_log_time + self.seconds:
            self._last_log_time = time.monotonic()
            total = sum(int(n) for n in trainer.num_val_batches)
            logger.info("validation batch {}/{}", batch_idx + 1, total)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = [
            f"{k} {float(v):.3f}" for k, v in trainer.callback_metrics.items() if k in MONITORS
        ]
        logger.info("epoch {} validation {}", trainer.current_epoch, " ".join(metrics))


class ScoreVideos(Callback):
    """Log ``val_jf`` at the end of each validation, before other callbacks read it.

    It must run before :class:`AverageWeights`, which restores the current weights. If the videos
    cannot be scored, ``last.ckpt`` is saved before the error is raised.

    Args:
        scorer: the function that computes J&F.
        source: the validation videos.
    """

    def __init__(self, scorer: Scorer, source: VideoSource) -> None:
        self.scorer, self.source = scorer, source
        self._error: DataError | None = None

    def on_validation_epoch_end(self, trainer: Trainer, module: LightningModule) -> None:
        start = time.monotonic()
        try:
            score = self.scorer(module.model, self.source)  # type: ignore[arg-type]
        except DataError as error:  # raised once the trained weights are restored and saved
            self._error = error
            return
        module.log("val_jf", score)
        logger.debug("val_jf took {:.1f} s", time.monotonic() - start)

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        if self._error is not None:
            trainer.save_checkpoint(Path(trainer.default_root_dir) / "last.ckpt")
            raise self._error


class AverageWeights(WeightAveraging):
    """Average the weights like ``EMAWeightAveraging``, but without slowing down a GPU.

    Lightning keeps the average in host memory, copies every parameter there in every step, and
    waits for each copy. This class keeps the average on the training device and updates it with a
    few operations.

    Args:
        decay: decay per step, from 0 to 1.
    """

    def __init__(self, decay: float) -> None:
        super().__init__()
        self.decay = decay

    @property
    def state_key(self) -> str:
        # Checkpoints of earlier versions contain the state of Lightning's class.
        return EMAWeightAveraging.__qualname__

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._device = trainer.strategy.root_device
        super().setup(trainer, pl_module, stage)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step <= self._latest_update_step:
            return  # gradients are being accumulated
        assert self._average_model is not None
        is_first = self._latest_update_step == 0
        self._latest_update_step = trainer.global_step
        self._average_model.n_averaged += 1
        self._update(self._average_model.module, pl_module, 1.0 if is_first else 1 - self.decay)

    @staticmethod
    @torch.no_grad()
    def _update(average: nn.Module, current: nn.Module, weight: float) -> None:
        """Move the average towards the current weights; with weight 1, copy them."""
        averaged: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for old, new in zip(_tensors(average), _tensors(current), strict=True):
            if weight == 1 or not old.is_floating_point():
                old.copy_(new)
            else:
                olds, news = averaged.setdefault(old.dtype, ([], []))
                olds.append(old)
                news.append(new)
        for olds, news in averaged.values():
            torch._foreach_lerp_(olds, news, weight)


def _tensors(module: nn.Module) -> list[Tensor]:
    return [x.detach() for x in (*module.parameters(), *module.buffers())]


def average_with_start(
    trained: Mapping[str, Tensor], start: Mapping[str, Tensor], share: float
) -> dict[str, Tensor]:
    """Average trained weights with those that training started from.

    LoRA's matrices B start at zero, also if the checkpoint had LoRA, which is merged before. The
    average of B times the trained A is therefore the average of the products BA; with an average of
    A it would not be.

    Args:
        trained: trained weights by name.
        start: starting weights by name.
        share: share of the starting weights, 0 to 1.

    Returns:
        The averages of the weights in ``start``, without integers and LoRA's matrices A.
    """
    return {
        name: torch.lerp(trained[name].detach(), weight.to(trained[name].device), share)
        for name, weight in start.items()
        if weight.is_floating_point() and not is_lora_a(name)
    }


class AverageWithStart(Callback):
    """Validate and save an average of the starting weights and the trained weights.

    Wortsman et al., "Robust fine-tuning of zero-shot models", CVPR 2022 (WiSE-FT): on the way from
    the starting weights to the trained ones, there are often models that have almost all of the
    gain and forget much less. Training itself continues from the trained weights, which checkpoints
    store as ``current_model_state``.

    Args:
        share: share of the starting weights, 0 to 1.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self._start: dict[str, Tensor] = {}
        self._trained: dict[str, Tensor] = {}  # while the module has the averaged weights
        self._is_over = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        # Called before a resumed run loads its checkpoint. Kept in main memory.
        parameters = pl_module.named_parameters()
        self._start = {
            name: p.detach().to("cpu", copy=True) for name, p in parameters if p.requires_grad
        }

    def on_validation_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_over:
            self._trained = {
                name: p.detach().clone()
                for name, p in pl_module.named_parameters()
                if name in self._start
            }
            self._set(pl_module, self._average(self._trained))

    def on_validation_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not self._is_over:
            self._set(pl_module, self._trained)
            self._trained = {}

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._set(pl_module, self._average(dict(pl_module.named_parameters())))
        self._is_over = True

    def _average(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        return average_with_start(trained, self._start, self.share)

    @staticmethod
    @torch.no_grad()
    def _set(module: LightningModule, weights: Mapping[str, Tensor]) -> None:
        for name, parameter in module.named_parameters():
            if name in weights:
                parameter.copy_(weights[name])

    def state_dict(self) -> dict[str, Any]:
        return {"start": self._checksum()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if state_dict["start"] != self._checksum():
            raise CheckpointError(
                "the starting weights in model.checkpoint are not those that the run started from",
                key="trainer.average_with_start",
                value=self.share,
                hint="restore that file, or start a new run",
            )

    def _checksum(self) -> int:
        checksum = 0
        for weights in self._start.values():
            checksum = zlib.crc32(weights.numpy().tobytes(), checksum)
        return checksum

    def on_save_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if not self._is_over:
            trained = checkpoint["state_dict"]
            checkpoint["current_model_state"] = trained
            checkpoint["state_dict"] = trained | self._average(trained)

    def on_load_checkpoint(
        self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        # The weights of "state_dict" have been loaded already.
        if "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])


class ValidateLastStep(Callback):
    """Validate after the last step of a run that ends at ``max_steps``.

    The callback stops training through ``should_stop``, after which Lightning validates even in
    the middle of an epoch. If Lightning itself stops at ``max_steps``, it does not validate.
    """

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True


class SaveWithinEpoch(Callback):
    """Save ``last.ckpt`` within an epoch, so that a killed run loses little work.

    The checkpoint is written before a step, because the loggers receive a step's metrics only after
    the end of the step.

    Args:
        path: the file to write.
        minutes: maximum number of minutes between two checkpoints. If None, no limit.
        steps: maximum number of optimizer steps between two checkpoints. If None, no limit.
    """

    def __init__(self, path: Path, minutes: float | None, steps: int | None) -> None:
        self.path, self.minutes, self.steps = path, minutes, steps

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._last_save_time, self._last_save_step = time.monotonic(), trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        minutes, steps = (
            (time.monotonic() - self._last_save_time) / 60,
            trainer.global_step - self._last_save_step,
        )
        due = batch_idx > 0 and (
            (self.minutes is not None and minutes >= self.minutes)
            or (self.steps is not None and steps >= self.steps)
        )
        # Saving is a collective operation, so all ranks must decide alike although clocks differ.
        if trainer.strategy.reduce_boolean_decision(due, all=False):
            trainer.save_checkpoint(self.path)
            self._last_save_time, self._last_save_step = time.monotonic(), trainer.global_step


class RunCheckpoint(ModelCheckpoint):
    """Save checkpoints in a run directory that may be moved before it is resumed.

    Lightning stores absolute paths and discards the best score if they differ. A resumed run would
    then overwrite ``best.ckpt`` with a worse checkpoint. This class stores file names.

    Args:
        run_dir: the run directory.
        same_run: whether the run resumes from a checkpoint in ``run_dir``. If not, the best score
            of the earlier run is ignored.
        filename: name of the file without ``.ckpt``.
        options: keyword arguments of ``ModelCheckpoint``.
    """

    _PATHS = ("best_model_path", "kth_best_model_path", "last_model_path")

    def __init__(self, run_dir: Path, same_run: bool, filename: str, **options: Any) -> None:
        super().__init__(run_dir, filename, enable_version_counter=False, **options)
        self.same_run = same_run

    def keep_best(self, value: float) -> None:
        """Start with an existing file that has this value, unless a stored state is loaded."""
        path, score = str(Path(self.dirpath or "") / f"{self.filename}.ckpt"), torch.tensor(value)
        self.best_model_path = self.kth_best_model_path = path
        self.best_model_score = self.kth_value = score
        self.best_k_models = {path: score}

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        value = trainer.callback_metrics.get(self.monitor or "")
        # StopAtNonFinite reports a training loss that is not finite.
        undefined = value is None or (self.monitor != "val_loss" and not math.isfinite(value))
        if self.monitor is not None and undefined:
            # Do not lose the epoch: the run can be resumed with another metric.
            trainer.save_checkpoint(Path(self.dirpath or "") / "last.ckpt")
            raise DataError(
                f"{self.monitor} has no value: no tracked frame of the validation clips can be "
                "scored",
                key="trainer.monitor",
                value=self.monitor,
                hint="set trainer.monitor=val_loss, or annotate more validation frames",
            )
        super().on_validation_end(trainer, pl_module)

    @property
    def state_key(self) -> str:
        # Checkpoints of earlier versions contain the state of Lightning's class.
        return super().state_key.replace(type(self).__qualname__, ModelCheckpoint.__qualname__, 1)

    def state_dict(self) -> dict[str, Any]:
        state = super().state_dict()
        names = {key: Path(state[key]).name for key in self._PATHS if state[key]}
        best = {Path(path).name: score for path, score in state["best_k_models"].items()}
        return {**state, **names, "best_k_models": best, "dirpath": "."}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if not self.same_run:
            return
        folder = Path(self.dirpath or "")
        paths = {k: str(folder / Path(state_dict[k]).name) for k in self._PATHS if state_dict[k]}
        scores = state_dict["best_k_models"].items()
        best = {str(folder / Path(path).name): score for path, score in scores}
        paths |= {"dirpath": str(self.dirpath)}
        super().load_state_dict({**state_dict, **paths, "best_k_models": best})


class StopOnInterrupt(Callback):
    """Stop after the current step on Ctrl-C, SIGTERM or SIGHUP; on a second signal, immediately.

    Cluster managers such as SLURM send SIGTERM before they reclaim a node, and a terminal that is
    closed sends SIGHUP. Lightning's own handler calls ``sys.exit`` and leaves SIGINT disabled,
    which breaks notebook kernels.

    Attributes:
        interrupted: whether a signal stopped training.
    """

    interrupted = False
    # The launcher and the cluster manager may both signal every process. A second signal within
    # this number of seconds is a duplicate and not a request to exit immediately.
    _duplicates_until = 0.0

    def __init__(self) -> None:
        self._previous_handlers = {n: signal.getsignal(n) for n in STOP_SIGNALS}
        if self._previous_handlers[signal.SIGHUP] == signal.SIG_IGN:  # started with nohup
            del self._previous_handlers[signal.SIGHUP]
        self._messages: SimpleQueue[str | None] = SimpleQueue()
        self._logging: threading.Thread | None = None
        self._terminals: list[int] = []

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Python allows signal handlers in the main thread only.
        if threading.current_thread() is not threading.main_thread():
            return
        # isatty returns False once the terminal has closed, so check it now.
        self._terminals = [descriptor for descriptor in (1, 2) if os.isatty(descriptor)]
        self._logging = threading.Thread(target=self._log, name="log signals", daemon=True)
        self._logging.start()
        # Lightning installs its SIGTERM handler after on_fit_start, so replace it here.
        for number in self._previous_handlers:
            signal.signal(number, self._stop)

    def _stop(self, number: int, frame: Any) -> None:
        """Request a stop; on a second signal, raise KeyboardInterrupt."""
        if self.interrupted:
            if time.monotonic() > self._duplicates_until:
                self._reinstall()
                signal.raise_signal(number)
            return
        self.interrupted, self._duplicates_until = True, time.monotonic() + 1
        if number == signal.SIGHUP:
            self._detach_from_terminal()
        # A signal can interrupt the main thread inside loguru, which is not reentrant, so let
        # another thread log. SimpleQueue.put is reentrant.
        self._messages.put("Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name)

    def _detach_from_terminal(self) -> None:
        """Discard output to a closed terminal, because writing to it would raise OSError."""
        nowhere = os.open(os.devnull, os.O_WRONLY)
        for descriptor in self._terminals:
            os.dup2(nowhere, descriptor)
        os.close(nowhere)

    def _log(self) -> None:
        """Log received signals until :meth:`restore` is called."""
        while (name := self._messages.get()) is not None:
            logger.warning(
                "Received {}; stopping after the current step. Send it again to exit immediately.",
                name,
            )

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # Ranks may receive the signal at different times, but must stop after the same step.
        if trainer.strategy.reduce_boolean_decision(self.interrupted, all=False):
            self.interrupted = trainer.should_stop = True
            if batch_idx + 1 < trainer.num_training_batches:
                # Skip validation: time is short, and an uninterrupted run would not validate here.
                trainer.limit_val_batches = 0

    def restore(self) -> None:
        """Restore the previous signal handlers; call this after training."""
        self._reinstall()
        self._messages.put(None)
        if self._logging is not None:
            self._logging.join(timeout=5)

    def _reinstall(self) -> None:
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._previous_handlers.items():
                signal.signal(number, handler)
