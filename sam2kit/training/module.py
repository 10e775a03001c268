"""Connect model, prompts and loss to Lightning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from lightning.pytorch import LightningModule
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from loguru import logger
from torch import Tensor
from torch.distributed import all_gather_object

from sam2kit.config.schema import Config
from sam2kit.data.clip import ClipBatch
from sam2kit.evaluation.metrics import mean_tracked_iou
from sam2kit.models.checkpoints import CONFIG_KEY, config_to_store, create_sam2_model
from sam2kit.models.feature_cache import FeatureCache, create_cache, obstacle
from sam2kit.models.outputs import TrackOutput
from sam2kit.models.sam2 import SAM2Model
from sam2kit.prompts.corrections import CorrectionGenerator, Corrections
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.prompt import Prompt
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.losses import SAM2TrainingLoss
from sam2kit.training.optim import build_optimizer, build_scheduler
from sam2kit.training.resume import rewind
from sam2kit.utils.errors import ConfigError


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """The random numbers of one step: a function of (seed, step, rank) and of nothing else.

    Prompts are drawn from rank 0's by all, and so do not depend on the number of devices.
    """
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


Loss = Callable[[TrackOutput, ClipBatch, bool], dict[str, Tensor]]
"""``(output, batch, all_devices)`` -> scalars by name, of which ``loss`` is minimized and all are
logged. ``all_devices`` is explained by :class:`~sam2kit.training.losses.SAM2TrainingLoss`."""


class SAM2LightningModule(LightningModule):
    """Train a model with prompts drawn from the masks of each batch.

    Any Lightning ``Trainer`` and any loader of :class:`~sam2kit.data.clip.ClipBatch` es will do.
    The configuration is stored in each checkpoint, which :func:`sam2kit.load_model` then reads.

    Args:
        config: the run's configuration: prompts (``dataset``, ``valdataset``), ``loss``,
            ``optimizer``, ``scheduler`` and ``seed`` are read. None (default): the defaults.
        model: the model to train. None (default): the one that ``config`` describes.
        loss: a loss to use in place of :class:`~sam2kit.training.losses.SAM2TrainingLoss`; see
            :data:`Loss`. Parameters of its own are not optimized. None (default): that of
            ``config.loss``.

    Attributes:
        train_cache: the cache of the frozen encoder's features that training reads. None: every
            frame is encoded.

    Raises:
        ConfigError, CheckpointError: as :func:`~sam2kit.models.checkpoints.create_sam2_model`.
    """

    def __init__(
        self,
        config: Config | None = None,
        model: SAM2Model | None = None,
        loss: Loss | None = None,
    ) -> None:
        super().__init__()
        config = Config() if config is None else config
        self.config = config
        self.model = create_sam2_model(config) if model is None else model
        self.loss: Loss = SAM2TrainingLoss(config.loss) if loss is None else loss
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
        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        self.log("learning_rate", learning_rate, batch_size=1)
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
        data = getattr(self.trainer, "datamodule", None)  # absent with a user's own loaders
        if isinstance(data, SAM2LightningDataModule) and number >= len(data.val_batches):
            return  # the repeated batch of a rank that has fewer
        self.model.feature_cache = self._cache
        output = self(batch, self.val_prompts(batch, step_generator(self.config.seed, number)))
        # Weighted by object-frames, so that the mean over batches is the loss of the whole set.
        count = int((output.tracked & batch.annotated).sum())
        terms = self.loss(output, batch, False) if count else {}
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

    def configure_optimizers(self) -> OptimizerLRScheduler:
        optimizer = build_optimizer(self.model, self.config.optimizer)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build_scheduler(optimizer, self.config.scheduler, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = config_to_store(self.config)
        if "loops" in checkpoint:  # a user's ModelCheckpoint may save weights alone
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
