"""What Lightning drives: the module, the data module and the callbacks. They delegate, no more."""

from __future__ import annotations

import signal
import threading
import time
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from loguru import logger
from torch import Tensor
from torch.distributed import all_gather_object

from sam2kit.checkpoints import CONFIG_KEY, config_to_store, create_sam2_model
from sam2kit.clip import ClipBatch, TrackOutput
from sam2kit.config import Config
from sam2kit.corrections import CorrectionGenerator, Corrections
from sam2kit.data.build import build_datasets
from sam2kit.data.clips import create_dataloader
from sam2kit.errors import ConfigError
from sam2kit.features import FeatureCache, create_cache, obstacle
from sam2kit.losses import SAM2TrainingLoss
from sam2kit.metrics import mean_tracked_iou
from sam2kit.model import SAM2Model
from sam2kit.optim import build_optimizer, build_scheduler
from sam2kit.prompts import Prompt, PromptGenerator
from sam2kit.resume import position, rewind


def settle_precision(config: Config) -> Config:
    """The configuration with ``trainer.precision`` ``auto`` replaced by what it means here.

    On CPUs it is full precision: whether bfloat16 is faster there depends on the model's size.
    """
    if config.trainer.precision != "auto":
        return config
    gpu = config.trainer.accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    native = gpu and torch.cuda.is_bf16_supported(False)
    precision = "bf16-mixed" if native else "32-true"
    return replace(config, trainer=replace(config.trainer, precision=precision))


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The random numbers of one step: a function of (seed, step, rank) and of nothing else.

    Prompts are drawn from rank 0's by all, and so do not depend on the number of devices.
    """
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


class SAM2LightningModule(LightningModule):
    """A model, its prompts and its loss.

    Args:
        config: the run's configuration.
        model: a model to train; by default the one that ``config`` describes.

    Attributes:
        train_cache: what training reads the frozen encoder's features from; None: it encodes.
    """

    def __init__(self, config: Config, model: SAM2Model | None = None) -> None:
        super().__init__()
        self.config = config
        self.model = create_sam2_model(config) if model is None else model
        self.loss = SAM2TrainingLoss(config.loss)
        self.prompts = PromptGenerator.from_config(config.dataset)
        self.corrections = CorrectionGenerator.from_config(config.dataset)
        self.val_prompts = PromptGenerator.from_config(config.validation_dataset())
        self._cache: FeatureCache | None = None
        self.train_cache: FeatureCache | None = None

    def use_features(self, data: SAM2LightningDataModule) -> None:
        """Read the frozen encoder's features from the cache where the configuration allows it.

        A log line says whether training does, and why not.

        Raises:
            ConfigError: ``features.cache`` is ``on``, and training cannot.
        """
        self._cache = create_cache(self.config)
        if self._cache is None:
            return
        source = data.train_clips.source
        if why := obstacle(self.config, self.model, source):
            if self.config.features.cache == "on":
                raise ConfigError(f"features.cache is on, but {why}")
            logger.info("every frame is encoded in every step: {}", why)
        else:
            self.train_cache = self._cache
            logger.info("the encoder is frozen: its features are kept in {}", self._cache.folder)
        data.with_keys = (self.train_cache is not None, self.model.encoder_is_frozen)

    def forward(
        self, batch: ClipBatch, prompts: list[Prompt], corrections: Corrections | None = None
    ) -> TrackOutput:
        return self.model(batch, prompts, corrections)

    def track_and_score(
        self, batch: ClipBatch, step: int, rank: int | None = None, all_devices: bool = False
    ) -> tuple[TrackOutput, dict[str, Tensor]]:
        """What the model makes of a training batch, and the loss's terms (``loss`` is their sum).

        Prompts and corrections are a function of (seed, step) and of the object. Dropout is one of
        (seed, step, rank), by default this process's rank, with which torch's global generator is
        seeded. ``all_devices`` is the loss's.
        """
        self.model.feature_cache = self.train_cache
        rank = self.global_rank if rank is None else rank
        torch.manual_seed(step_generator(self.config.seed, step, rank).initial_seed())
        generator = step_generator(self.config.seed, step)
        prompts = self.prompts(batch, generator)
        output = self(batch, prompts, self.corrections(batch, prompts, generator))
        return output, self.loss(output, batch, all_devices)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        step = self.trainer.fit_loop.total_batch_idx
        _, terms = self.track_and_score(batch, step, all_devices=True)
        self.log_dict(terms, batch_size=batch.num_clips, sync_dist=True)
        self.log("learning_rate", self.optimizers().param_groups[0]["lr"], batch_size=1)
        if not terms["loss"].requires_grad:
            raise ConfigError(
                "model.trainable_modules: no module that is trained takes part in the loss of this "
                "batch; sam2kit audit tells which ones do, and why others do not"
            )
        return terms["loss"]

    def on_validation_epoch_start(self) -> None:
        self._validated: dict[int, dict[str, tuple[float, int]]] = {}

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        number = batch_idx * self.trainer.world_size + self.global_rank
        if number >= len(self.trainer.datamodule.val_batches):
            return
        self.model.feature_cache = self._cache
        output = self(batch, self.val_prompts(batch, step_generator(self.config.seed, number)))
        # Weighted by object-frames, so that the mean over batches is the loss of the whole set.
        count = int((output.tracked & batch.annotated).sum())
        terms = self.loss(output, batch) if count else {}
        values = {f"val_{name}": (float(value), count) for name, value in terms.items()}
        if len(per_object := tracked_iou(output, batch)):
            values["val_iou"] = (float(per_object.mean()), len(per_object))
        self._validated[number] = values

    def on_validation_epoch_end(self) -> None:
        """The means over all batches of all devices, summed in one order by any number of them."""
        found = [self._validated]
        if self.trainer.world_size > 1:
            found = [{} for _ in range(self.trainer.world_size)]
            all_gather_object(found, self._validated)
        batches = {number: values for part in found for number, values in part.items()}
        sums: dict[str, tuple[float, int]] = {}
        for number in sorted(batches):
            for name, (value, count) in batches[number].items():
                total, counted = sums.get(name, (0.0, 0))
                sums[name] = (total + value * count, counted + count)
        self.log_dict({name: total / counted for name, (total, counted) in sums.items()})

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = build_optimizer(self.model, self.config.optimizer)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build_scheduler(optimizer, self.config.scheduler, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = config_to_store(self.config)
        rewind(checkpoint["loops"], self.trainer)
        for log in self.trainer.loggers:  # the rows of the steps that a resumed run will not repeat
            log.save()


def tracked_iou(output: TrackOutput, batch: ClipBatch) -> np.ndarray:
    """Mean IoU of each object over its tracked, annotated and unprompted frames.

    Returns:
        one value for each object that has such a frame, 0 to 1, in the batch's order.
    """
    scored = output.tracked & ~output.prompted & batch.annotated
    masks = output.masks(batch.masks.shape[-2:])
    per_object, _ = mean_tracked_iou(
        masks.cpu().numpy(), batch.masks.cpu().numpy(), scored.cpu().numpy()
    )
    return per_object[~np.isnan(per_object)]


class SAM2LightningDataModule(LightningDataModule):
    """The training and validation clips of a configuration.

    Each of ``devices`` has a share of an epoch's clips, and of the batches of a validation.
    """

    def __init__(self, config: Config, devices: int = 1) -> None:
        super().__init__()
        self.config = config
        self.devices = devices
        self.train_clips, self.val_clips = build_datasets(config)
        self.with_keys = (False, False)  # whether training and validation frames are named
        self._done = (0, 0)  # an epoch, and how many of its clips are done

    def check_videos(self) -> None:
        """Raise now what would stop training later; see :meth:`ClipDataset.check_videos`."""
        self.train_clips.check_videos()
        self.val_clips.check_videos()

    def state_dict(self) -> dict[str, Any]:
        """How far training is in the data, and a text that stands for the videos."""
        state: dict[str, Any] = {"videos": self.train_clips.videos, "devices": self.devices}
        if self.trainer is not None:
            epoch, batches = position(self.trainer)
            epoch_over = batches == self.trainer.num_training_batches
            size = self.config.dataset.batch_size
            clips = len(self.train_clips) if epoch_over else batches * size
            state |= {"epoch": epoch, "clips": clips}
        return state

    def transfer_batch_to_device(
        self, batch: ClipBatch, device: torch.device, dataloader_idx: int
    ) -> ClipBatch:
        """From pinned memory while the device works; Lightning waits for what is no tensor."""
        return batch.to(device, non_blocking=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._done = (state_dict["epoch"], state_dict["clips"])
        self.train_clips.set_epoch(state_dict["epoch"])  # loader processes start before Lightning

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        share = (self.trainer.global_rank if self.trainer else 0, self.devices)
        return create_dataloader(
            self.train_clips,
            self.config.dataset,
            True,
            self.config.seed,
            self._done,
            share,
            self.with_keys[0],
        )

    @cached_property
    def val_batches(self) -> list[list[int]]:
        """The clips of each batch of a validation, the same for any number of devices."""
        clips, size = range(len(self.val_clips)), self.config.validation_dataset().batch_size
        batches = [list(clips[i : i + size]) for i in range(0, len(clips), size)]
        return batches[: self.config.trainer.limit_val_batches]

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        """This device's batches; the last one comes again where others have one more."""
        batches = self.val_batches
        batches = batches + batches[-1:] * (-len(batches) % self.devices)
        rank = self.trainer.global_rank if self.trainer else 0
        return create_dataloader(
            self.val_clips,
            self.config.validation_dataset(),
            training=False,
            seed=self.config.seed,
            with_keys=self.with_keys[1],
            batches=batches[rank :: self.devices],
        )


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
