"""Connect model, prompts and loss to Lightning."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
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
from sam2kit.models.checkpoints import (
    CONFIG_KEY,
    NANO_KEY,
    NANO_VERSION,
    SPLITS_KEY,
    config_to_store,
    create_sam2_model,
)
from sam2kit.models.feature_cache import FeatureCache, create_cache, obstacle
from sam2kit.models.outputs import TrackOutput
from sam2kit.models.sam2 import SAM2Model, compile_model
from sam2kit.prompts.corrections import CorrectionGenerator, Corrections
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.prompt import Prompt
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.losses import NO_OBJ_SCORE, SAM2TrainingLoss
from sam2kit.training.optim import build_optimizer, build_scheduler
from sam2kit.training.resume import rewind
from sam2kit.utils.errors import ConfigError


def step_generator(seed: int, step: int, rank: int = 0) -> torch.Generator:
    """Return the random generator of one step, a function of (seed, step, rank) only.

    All ranks draw prompts from the generator of rank 0, so prompts do not depend on the world size.
    """
    # SeedSequence: with seed + step, the next seed would repeat the steps of this one.
    state = np.random.SeedSequence((seed, step, rank)).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))


MAX_WITHHELD = 0.05
"""Maximum share of visible object-frames with a withheld mask that causes no warning."""
WITHHELD = "withheld"  # key of that share in the values of a validation batch

Loss = Callable[[TrackOutput, ClipBatch, bool], dict[str, Tensor]]
"""Function of ``(output, batch, all_devices)`` that returns scalars by name.

All scalars are logged, and ``loss`` is minimized. For ``all_devices`` see
:meth:`sam2kit.training.losses.SAM2TrainingLoss.forward`."""


class SAM2LightningModule(LightningModule):
    """Train a model with prompts sampled from the ground-truth masks of each batch.

    It works with any Lightning ``Trainer`` and any loader of
    :class:`~sam2kit.data.clip.ClipBatch`. Each checkpoint contains the configuration, so that
    :func:`sam2kit.load_model` can read it.

    Args:
        config: the run's configuration. The module reads the prompt settings (``dataset``,
            ``valdataset``), ``loss``, ``optimizer``, ``scheduler`` and ``seed``. If None (default),
            the default configuration is used.
        model: the model to train. If None (default), it is created from ``config``.
        loss: the loss function; see :data:`Loss`. If it has parameters, they are not optimized. If
            None (default), :class:`~sam2kit.training.losses.SAM2TrainingLoss` is used with
            ``config.loss``.

    Attributes:
        train_cache: cached features of the frozen image encoder. If None, every frame is encoded
            in every step.

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
        self._nano_version = NANO_VERSION
        self._cache: FeatureCache | None = None
        self.train_cache: FeatureCache | None = None
        self._compiled = False
        self._warned_of_withheld = False

    def use_features(self, data: SAM2LightningDataModule) -> None:
        """Read the frozen encoder's features from the cache if the configuration allows it.

        Logs whether training uses the cache and, if not, why.

        Args:
            data: the data module to train on; frame keys are added to its batches if the cache
                needs them.

        Raises:
            ConfigError: ``features.cache`` is ``on``, but training cannot use the cache.
        """
        self._cache = create_cache(self.config)
        if self._cache is None:
            return
        source = data.train_clips.source
        if reason := obstacle(self.config, self.model, source):
            if self.config.features.cache == "on":
                raise ConfigError(
                    f"the feature cache cannot be used: {reason}",
                    key="features.cache",
                    value="on",
                    hint="set features.cache=auto, or change that key",
                )
            logger.info("Encoding every frame in every step: {}", reason)
        else:
            self.train_cache = self._cache
            logger.info("Caching features of the frozen encoder in {}", self._cache.folder)
        data.with_keys = (self.train_cache is not None, self.model.encoder_is_frozen)

    def forward(
        self, batch: ClipBatch, prompts: list[Prompt], corrections: Corrections | None = None
    ) -> TrackOutput:
        return self.model(batch, prompts, corrections)

    def track_and_score(
        self, batch: ClipBatch, step: int, rank: int | None = None, all_devices: bool = False
    ) -> tuple[TrackOutput, dict[str, Tensor]]:
        """Run the model on a training batch and compute the loss.

        Prompts and corrections are a function of (seed, step) and of the object. Dropout is a
        function of (seed, step, rank); torch's global generator is seeded with it.

        Args:
            batch: the clips, on the module's device.
            step: number of the batch, from 0 at the start of the run.
            rank: rank from which dropout is seeded. If None (default), the rank of this process.
            all_devices: passed to the loss; see :data:`Loss`.

        Returns:
            the model's output and the loss terms by name; ``loss`` is their weighted sum.
        """
        self.model.feature_cache = self.train_cache
        rank = self.global_rank if rank is None else rank
        torch.manual_seed(step_generator(self.config.seed, step, rank).initial_seed())
        generator = step_generator(self.config.seed, step)
        # Sample prompts on the host: masks on a GPU would have to be copied back.
        host = batch.on_host()
        prompts = self.prompts(host, generator)
        corrections = self.corrections(host, prompts, generator)
        if corrections is not None:
            corrections = replace(corrections, masks=batch.masks)
        output = self(batch, prompts, corrections)
        return output, self.loss(output, batch, all_devices)

    def training_step(self, batch: ClipBatch, batch_idx: int) -> Tensor:
        step = self.trainer.fit_loop.total_batch_idx
        _, terms = self.track_and_score(batch, step, all_devices=True)
        self.log_dict(terms, batch_size=batch.num_clips, sync_dist=True)
        learning_rate = self.trainer.optimizers[0].param_groups[0]["lr"]
        # A CPU tensor: Lightning would copy a number to the device, which synchronizes.
        self.log("learning_rate", torch.tensor(learning_rate), batch_size=1)
        if not terms["loss"].requires_grad:
            raise ConfigError(
                "the loss of this batch depends on no trainable parameter",
                key="model.trainable_modules",
                value=self.config.model.trainable_modules,
                hint="run sam2kit audit to see which modules get gradients, and why others do not",
            )
        return terms["loss"]

    def on_validation_epoch_start(self) -> None:
        # Batch index -> term name -> (value, weight).
        self._validated: dict[int, dict[str, tuple[float, int]]] = {}

    def validation_step(self, batch: ClipBatch, batch_idx: int) -> None:
        number = batch_idx * self.trainer.world_size + self.global_rank
        data = getattr(self.trainer, "datamodule", None)  # None if the user passes DataLoaders
        if isinstance(data, SAM2LightningDataModule) and number >= len(data.val_batches):
            return  # padding: ranks with fewer batches repeat their last one
        self.model.feature_cache = self._cache
        output = self(
            batch, self.val_prompts(batch.on_host(), step_generator(self.config.seed, number))
        )
        # Weight by object-frames, so that the mean over batches is the loss of the whole dataset.
        count = int((output.tracked & batch.annotated).sum())
        terms = self.loss(output, batch, False) if count else {}
        values = {f"val_{name}": (float(value), count) for name, value in terms.items()}
        if len(per_object := tracked_iou(output, batch)):
            values["val_iou"] = (float(per_object.mean()), len(per_object))
        visible = output.tracked & ~output.prompted & batch.visible
        if shown := int(visible.sum()):
            withheld = (output.mask_logits <= NO_OBJ_SCORE).flatten(2).all(-1)
            values[WITHHELD] = (float((withheld & visible).sum()) / shown, shown)
        self._validated[number] = values

    def on_validation_epoch_end(self) -> None:
        """Log the metrics averaged over all batches of all ranks."""
        parts = [self._validated]
        if self.trainer.world_size > 1:
            parts = [{} for _ in range(self.trainer.world_size)]
            all_gather_object(parts, self._validated)
        batches = {number: values for part in parts for number, values in part.items()}
        # Sum in batch order, so that rounding does not depend on the world size.
        sums: dict[str, tuple[float, int]] = {}
        for number in sorted(batches):
            for name, (value, count) in batches[number].items():
                total, weight = sums.get(name, (0.0, 0))
                sums[name] = (total + value * count, weight + count)
        means = {name: total / weight for name, (total, weight) in sums.items()}
        self._warn_of_withheld(means.pop(WITHHELD, 0.0))
        self.log_dict(means)

    def _warn_of_withheld(self, share: float) -> None:
        """Warn once if the model withholds masks of visible objects and the loss cannot fix it."""
        weights = self.config.loss
        if weights.object_score > 0 or share <= MAX_WITHHELD or self._warned_of_withheld:
            return
        self._warned_of_withheld = True
        logger.warning(
            "The model predicts that the object is absent in {:.0%} of the validation frames in "
            "which it is visible. Masks of absent objects have no gradient, so the other loss "
            "terms cannot correct them. Set loss.object_score above 0, for example to 1",
            share,
        )

    def on_fit_start(self) -> None:
        """Compile the model if ``model.compile`` is set."""
        if self.config.model.compile and not self._compiled:
            compile_model(self.model)
            self._compiled = True

    def configure_gradient_clipping(
        self,
        optimizer: torch.optim.Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clip the global gradient norm; Lightning's version rejects fused optimizers."""
        if gradient_clip_val:
            parameters = [p for group in optimizer.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(parameters, gradient_clip_val)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        # With loss scaling, a fused optimizer would unscale the gradients only after clipping.
        fused = self.device.type != "cpu" and self.config.trainer.precision != "16-mixed"
        optimizer = build_optimizer(self.model, self.config.optimizer, fused)
        steps = int(self.trainer.estimated_stepping_batches)
        scheduler = build_scheduler(optimizer, self.config.scheduler, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": scheduler, "interval": "step"},
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._nano_version = checkpoint.get(NANO_KEY, 1)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint[CONFIG_KEY] = config_to_store(self.config)
        checkpoint[NANO_KEY] = self._nano_version
        data = getattr(self.trainer, "datamodule", None)  # None if the user passes DataLoaders
        # Only rank 0 writes the file.
        if isinstance(data, SAM2LightningDataModule) and self.trainer.is_global_zero:
            checkpoint[SPLITS_KEY] = data.splits.to_dict()
        if "loops" in checkpoint:  # a user's ModelCheckpoint may save weights only
            rewind(checkpoint["loops"], self.trainer)
        # Flush metrics.csv now: a run that resumes here does not repeat these steps.
        for log in self.trainer.loggers:
            log.save()


def tracked_iou(output: TrackOutput, batch: ClipBatch) -> np.ndarray:
    """Compute each object's mean IoU over frames that are tracked, annotated and unprompted.

    Returns:
        one value from 0 to 1 for each object with such a frame, in batch order.
    """
    # The output on a mask-prompted frame is the prompt itself, which would inflate the score.
    scored = output.tracked & ~output.prompted & batch.annotated
    masks = output.masks(batch.masks.shape[-2:])
    per_object, _ = mean_tracked_iou(
        masks.cpu().numpy(), batch.masks.cpu().numpy(), scored.cpu().numpy()
    )
    return per_object[~np.isnan(per_object)]
