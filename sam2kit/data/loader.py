"""Load clips in batches, in an order that a resumed run can continue."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
import torch
from torch.utils.data import DataLoader, Sampler

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.clip import ClipBatch, collate
from sam2kit.data.clip_dataset import ClipDataset


@dataclass(eq=False)
class EpochSampler(Sampler[int]):
    """Indices in the order of the data set's epoch: shuffled by (seed, epoch), or as they stand.

    ``set_epoch`` is also what Lightning calls at the start of an epoch; it reaches the data set.

    Args:
        dataset: the clips; its epoch counts.
        shuffle: by (seed, epoch).
        seed: 0 or more.
        done: an epoch and the number of its clips that an earlier run has had, which are left out.
        share: a rank and how many there are; each takes every so many-th clip. So that all have
            equally many, the last ones may take one from the beginning, which counts twice then.
    """

    dataset: ClipDataset
    shuffle: bool
    seed: int
    done: tuple[int, int] = (0, 0)
    share: tuple[int, int] = (0, 1)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.share[1])

    def __iter__(self) -> Iterator[int]:
        order: np.ndarray = np.arange(len(self.dataset))
        if self.shuffle:
            order = np.random.default_rng((self.seed, self.dataset.epoch)).permutation(order)
        rank, ranks = self.share
        order = np.resize(order, len(self) * ranks)[rank::ranks]
        epoch, clips = self.done
        return iter(order[clips if epoch == self.dataset.epoch else 0 :].tolist())

    def set_epoch(self, epoch: int) -> None:
        self.dataset.set_epoch(epoch)


def create_dataloader(
    dataset: ClipDataset,
    config: DatasetConfig | None = None,
    training: bool | None = None,
    seed: int | None = None,
    done: tuple[int, int] = (0, 0),
    share: tuple[int, int] = (0, 1),
    with_keys: bool = False,
    batches: Sequence[list[int]] | None = None,
) -> DataLoader[ClipBatch]:
    """Load clips as :class:`~sam2kit.data.clip.ClipBatch` es; the last batch may be smaller.

    With any number of ``config.num_workers`` the batches are the same. A DataError raised in a
    loader process arrives as a DataError with its own message. With loader processes, OpenCV is
    set to one thread in this process too.

    Args:
        dataset: the clips.
        config: ``batch_size`` and ``num_workers`` are read. None (default): the data set's.
        training: shuffle by (seed, epoch). Lightning sets the epoch; in a loop of your own, call
            ``dataset.set_epoch`` before each epoch. None (default): the data set's.
        seed: 0 or more. None (default): the data set's.
        done, share: see :class:`EpochSampler`.
        with_keys: see :func:`~sam2kit.data.clip.collate`.
        batches: the indices of the clips of each batch, in place of all of the above order.
    """
    config = dataset.config if config is None else config
    training = dataset.training if training is None else training
    seed = dataset.seed if seed is None else seed
    if config.num_workers:
        # OpenCV's threads do not survive a fork: a loader process that touches them, even to switch
        # them off, waits for ever. So they go here, before there is one.
        cv2.setNumThreads(0)
    order: dict[str, Any] = {"batch_sampler": batches}
    if batches is None:
        sampler = EpochSampler(dataset, training, seed, done, share)
        order = {"sampler": sampler, "batch_size": config.batch_size}
    return DataLoader(
        dataset,  # type: ignore[arg-type]  # of clips, which collate turns into batches
        **order,
        num_workers=config.num_workers,
        persistent_workers=config.num_workers > 0,
        collate_fn=partial(collate, with_keys=with_keys),
        pin_memory=torch.cuda.is_available(),
    )
