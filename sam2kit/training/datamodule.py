"""Provide the training and validation clips to Lightning."""

from __future__ import annotations

from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule

from sam2kit.config.schema import Config
from sam2kit.data.build import build_datasets, hold_out
from sam2kit.data.clip import ClipBatch
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.loader import create_dataloader
from sam2kit.data.sources.base import VideoSource
from sam2kit.training.resume import position


class SAM2LightningDataModule(LightningDataModule):
    """Provide the training and validation clips of a configuration.

    Args:
        config: ``dataset``, ``valdataset``, ``augmentation`` and ``seed`` are read.
        devices: number of processes that train. Each gets its share of the clips of an epoch and of
            the batches of a validation.
        train_source: videos to train on. None (default): those of ``config.dataset``.
        val_source: videos to validate on. None (default): ``valdataset.fraction`` of the videos of
            ``train_source`` are held out; without ``train_source``, those of ``config.valdataset``.

    Raises:
        ConfigError, DataError: as :func:`sam2kit.data.build_datasets`.
        ValueError: ``val_source`` without ``train_source``.
    """

    def __init__(
        self,
        config: Config,
        devices: int = 1,
        *,
        train_source: VideoSource | None = None,
        val_source: VideoSource | None = None,
    ) -> None:
        super().__init__()
        self.config = config
        self.devices = devices
        self.train_clips, self.val_clips = _datasets(config, train_source, val_source)
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


def _datasets(
    config: Config, train_source: VideoSource | None, val_source: VideoSource | None
) -> tuple[ClipDataset, ClipDataset]:
    if train_source is None:
        if val_source is not None:
            raise ValueError("val_source needs train_source; pass both")
        return build_datasets(config)
    if val_source is None:
        fraction = config.valdataset.fraction
        train_source, val_source = hold_out(train_source, fraction, config.seed, "train_source")
    return (
        ClipDataset(train_source, config.dataset, True, config.seed, config.augmentation),
        ClipDataset(val_source, config.validation_dataset(), training=False, seed=config.seed),
    )
