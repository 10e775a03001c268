"""Provide training and validation clips to Lightning."""

from __future__ import annotations

from dataclasses import replace
from functools import cached_property
from typing import Any

import torch
from lightning.pytorch import LightningDataModule
from loguru import logger

from sam2kit.config.schema import Config
from sam2kit.data.build import DataSets, clips_of, open_sets, split_source
from sam2kit.data.clip import ClipBatch
from sam2kit.data.fingerprint import FrameHasher, sampled_content
from sam2kit.data.loader import check_shared_memory, create_dataloader
from sam2kit.data.sources.base import VideoSource
from sam2kit.data.splits import TEST, TRAIN, VALIDATION, Splits, SplitVideo, describe
from sam2kit.models.run_splits import earlier_splits
from sam2kit.training.resume import position
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text


class SAM2LightningDataModule(LightningDataModule):
    """Provide the training and validation clips of a configuration.

    Args:
        config: the run's configuration. The sections ``dataset``, ``valdataset``, ``testdataset``
            and ``augmentation`` and the key ``seed`` are used. The attribute ``config`` is a copy
            with the detected layout. Videos that the run of ``model.checkpoint`` or
            ``trainer.resume_from`` used stay in the same split
            (:func:`sam2kit.models.run_splits.earlier_splits`).
        devices: world size. Each rank gets its shard of an epoch's clips and of the validation
            batches.
        train_source: videos to train on. If None (default), the videos of ``config.dataset``.
        val_source: videos to validate on. If None (default), ``valdataset.fraction`` of the videos
            in ``train_source`` are held out; if ``train_source`` is None too, the videos of
            ``config.valdataset`` are used.

    Raises:
        ConfigError, DataError: as :func:`sam2kit.data.build_datasets`.
        ValueError: ``val_source`` is passed without ``train_source``.
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
        self.devices = devices
        self._earlier = earlier_splits(config)
        self._sets = _open(config, train_source, val_source, self._earlier)
        # Contains the detected layout and the split of a single video, which the run must store.
        self.config = self._sets.config
        self.train_clips, self.val_clips = clips_of(self._sets)
        self._hasher = FrameHasher()
        self._content: str | None = None
        # Whether training and validation batches contain frame keys for the feature cache.
        self.with_keys = (False, False)
        self._resume_position = (0, 0)  # epoch, and number of its clips already trained on

    def check_videos(self) -> None:
        """Check the videos before training, so that errors in the data are raised now.

        Raises:
            DataError: a video fails :meth:`ClipDataset.check_videos`, or a test video is also a
                training or validation video.
        """
        self.train_clips.check_videos()
        self.val_clips.check_videos()
        self._warn_of_unused_settings()
        per_machine = max(1, self.devices // self.config.trainer.num_nodes)
        check_shared_memory(self.config.dataset, per_machine)
        self._check_repeated_videos()

    def _warn_of_unused_settings(self) -> None:
        """Warn about settings that have no effect on these clips."""
        loss, default = self.config.loss, Config().augmentation
        changed = [
            f"augmentation.{name}={value}"
            for name, value in vars(self.config.augmentation).items()
            if value != getattr(default, name)
        ]
        if changed and not self.config.dataset.augment:
            logger.warning(
                "{}: no effect, because dataset.augment=false. Set dataset.augment=true",
                ", ".join(changed),
            )
        if loss.temporal > 0 and loss.type == "frames" and not self.train_clips.has_neighbours():
            logger.warning(
                "loss.temporal={} has no effect: it compares consecutive frames of a clip, and no "
                "clip has two consecutive annotated frames. Set loss.temporal=0, or set "
                "dataset.frame_stride to the distance between annotated frames",
                loss.temporal,
            )

    @cached_property
    def splits(self) -> Splits:
        """Videos of each split, identified by a few decoded frames."""
        sets, before = self._sets, self._earlier.trained_before if self._earlier else ()
        train, validation, test = (
            () if source is None else tuple(describe(source, self._hasher))
            for source in (sets.train, sets.validation, sets.test)
        )
        return Splits(train, validation, test, before)

    def _check_repeated_videos(self) -> None:
        """Warn about validation and test videos that this run or its initial weights train on.

        Raises:
            DataError: a test video is also a training or validation video.
        """
        for part, videos in ((VALIDATION, self.splits.validation), (TEST, self.splits.test)):
            repeated = self.splits.trained_on(videos)
            if not repeated:
                continue
            problem = (
                f"{len(repeated)} of {len(videos)} {part} videos are trained on, "
                f"{_such_as(*repeated[0])}"
            )
            if part == TEST and repeated[0][1] in self.splits.train:
                raise DataError(
                    problem,
                    key="testdataset",
                    hint="use other test videos, or remove these from dataset.split",
                )
            logger.warning(
                "{}; validation scores will be too high, and sam2kit evaluate rejects these videos",
                visible_text(problem, None),
            )
        selected = self.splits.selected_on(self.splits.test)
        if selected:
            raise DataError(
                f"{len(selected)} of {len(self.splits.test)} test videos are also validation "
                f"videos, which select the checkpoint, {_such_as(*selected[0])}",
                key="testdataset",
                hint="use other test videos, or remove these from valdataset.split",
            )

    def state_dict(self) -> dict[str, Any]:
        """Return the position in the data, digests of the videos, and the world size.

        Returns:
            ``videos`` and ``digest`` (of the frames and masks), and ``devices``; during training
            also ``epoch`` and ``clips``, the number of the epoch's clips that each rank has trained
            on.
        """
        if self._content is None:
            self._content = sampled_content(self.train_clips.source, self._hasher)
        state: dict[str, Any] = {
            "videos": self.train_clips.videos,
            "digest": self._content,
            "devices": self.devices,
        }
        if self.trainer is not None:
            epoch, batches = position(self.trainer)
            # The last batch may be smaller, so do not multiply at the end of an epoch.
            epoch_over = batches == self.trainer.num_training_batches
            size = self.config.dataset.batch_size
            clips = len(self.train_clips) if epoch_over else batches * size
            state |= {"epoch": epoch, "clips": clips}
        return state

    def transfer_batch_to_device(
        self, batch: ClipBatch, device: torch.device, dataloader_idx: int
    ) -> ClipBatch:
        """Copy a batch from pinned memory asynchronously.

        Lightning copies objects other than tensors synchronously by default.
        """
        return batch.to(device, non_blocking=True)

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._resume_position = (state_dict["epoch"], state_dict["clips"])
        # Lightning sets the epoch only after the DataLoader workers have started.
        self.train_clips.set_epoch(state_dict["epoch"])

    def train_dataloader(self) -> torch.utils.data.DataLoader:
        shard = (self.trainer.global_rank if self.trainer else 0, self.devices)
        return create_dataloader(
            self.train_clips,
            self.config.dataset,
            True,
            self.config.seed,
            self._resume_position,
            shard,
            self.with_keys[0],
            pin_memory=self._pin_memory,
        )

    @property
    def _pin_memory(self) -> bool:
        """Whether to pin memory, which speeds up copies to a CUDA device."""
        return self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"

    @cached_property
    def val_batches(self) -> list[list[int]]:
        """Clip indices of each validation batch, independent of the world size."""
        clips, size = range(len(self.val_clips)), self.config.validation_dataset().batch_size
        batches = [list(clips[i : i + size]) for i in range(0, len(clips), size)]
        return batches[: self.config.trainer.limit_val_batches]

    def val_dataloader(self) -> torch.utils.data.DataLoader:
        """Return a loader of this rank's validation batches.

        If other ranks have one more batch, the last batch is repeated, and the Lightning module
        ignores the repetition.
        """
        # With unequal numbers of batches, collective operations would deadlock.
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
            pin_memory=self._pin_memory,
        )


def _such_as(video: SplitVideo, other: SplitVideo) -> str:
    """Name a video and, if their names differ, the video that it repeats."""
    same = "" if video.name == other.name else f", whose frames are those of {other.name!r}"
    return f"such as {video.name!r}{same}"


def _open(
    config: Config,
    train_source: VideoSource | None,
    val_source: VideoSource | None,
    earlier: Splits | None,
) -> DataSets:
    """Open the videos of a configuration, or split the given sources."""
    if train_source is None:
        if val_source is not None:
            raise ValueError("val_source requires train_source; pass both")
        return open_sets(config, earlier)
    test_source = None
    if val_source is None:
        shares = {VALIDATION: config.valdataset.fraction}
        if config.testdataset.fraction:
            shares[TEST] = config.testdataset.fraction
        dataset, parts = split_source(train_source, config.dataset, shares, "train_source", earlier)
        config = replace(config, dataset=dataset)
        train_source, val_source, test_source = (
            parts.get(part) for part in (TRAIN, VALIDATION, TEST)
        )
    assert train_source is not None and val_source is not None
    return DataSets(config, train_source, val_source, test_source)
