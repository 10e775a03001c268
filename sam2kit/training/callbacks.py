"""Lightning callbacks: progress in the log, validation, checkpoints, interrupts."""

from __future__ import annotations

import signal
import threading
import time
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from loguru import logger


class LogProgress(Callback):
    """A log line every n steps and after each validation, which also a log file can show."""

    def __init__(self, every_n_steps: int) -> None:
        self.every_n_steps = every_n_steps

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._started, self._first_step = time.monotonic(), trainer.global_step

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        step, total = trainer.global_step, int(trainer.estimated_stepping_batches)
        if step % self.every_n_steps and step != total:
            return
        loss = float(trainer.callback_metrics["loss"])
        seconds = (time.monotonic() - self._started) / max(step - self._first_step, 1)
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

    def on_validation_end(self, trainer: Trainer, module: LightningModule) -> None:
        metrics = {
            k: f"{float(v):.4f}"
            for k, v in trainer.callback_metrics.items()
            if k in ("val_loss", "val_iou")
        }
        logger.info("epoch {} validation {}", trainer.current_epoch, metrics)


class ValidateLastStep(Callback):
    """Reach ``max_steps`` by asking to stop, for then Lightning validates, inside an epoch too."""

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == trainer.max_steps:
            trainer.should_stop = True


class SaveWithinEpoch(Callback):
    """Writes ``last.ckpt`` every so many minutes and steps, for a run that is killed.

    Before a step rather than after one, for only then has what the last step logged been logged.
    """

    def __init__(self, path: Path, minutes: float | None, steps: int | None) -> None:
        self.path, self.minutes, self.steps = path, minutes, steps

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        self._saved, self._step = time.monotonic(), trainer.global_step

    def on_train_batch_start(
        self, trainer: Trainer, module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        minutes, steps = (time.monotonic() - self._saved) / 60, trainer.global_step - self._step
        due = batch_idx > 0 and (
            (self.minutes is not None and minutes >= self.minutes)
            or (self.steps is not None and steps >= self.steps)
        )
        if trainer.strategy.reduce_boolean_decision(due, all=False):  # all processes, or none
            trainer.save_checkpoint(self.path)
            self._saved, self._step = time.monotonic(), trainer.global_step


class StopOnInterrupt(Callback):
    """An interrupt or SIGTERM ends training after the step in progress; a second one at once.

    SIGTERM is what SLURM and others send before they take a machine away. Lightning's own handling
    leaves the process with ``sys.exit`` and interrupts switched off, which a notebook's kernel does
    not survive in good order.
    """

    interrupted = False
    _until = 0.0  # before then another one is the same request, of one who signals all processes

    def __init__(self) -> None:
        self._before = {n: signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        # Not before: Lightning takes SIGTERM after on_fit_start.
        def stop(number: int, frame: Any) -> None:
            if self.interrupted:
                if time.monotonic() > self._until:
                    self.restore()
                    signal.raise_signal(number)
                return
            self.interrupted, self._until = True, time.monotonic() + 1
            what = "interrupted" if number == signal.SIGINT else "asked to end (SIGTERM)"
            logger.warning("{}: stopping after this step; once more to quit at once", what)

        if threading.current_thread() is threading.main_thread():
            for number in self._before:
                signal.signal(number, stop)

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        # All processes stop after the same step.
        if trainer.strategy.reduce_boolean_decision(self.interrupted, all=False):
            self.interrupted = trainer.should_stop = True
            if batch_idx + 1 < trainer.num_training_batches:
                # No time for a validation, nor is it one of the undisturbed run's.
                trainer.limit_val_batches = 0

    def restore(self) -> None:
        """Bring back what answered before this object was made; to be called after training."""
        if threading.current_thread() is threading.main_thread():
            for number, handler in self._before.items():
                signal.signal(number, handler)
