"""Load clips in batches, in an order that a resumed run can reproduce."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import cv2
import numpy as np
from torch.utils.data import DataLoader, Sampler

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.clip import ClipBatch, VideoClip, collate
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.parallel import (
    SHARED_MEMORY,
    SHARED_MEMORY_HINT,
    ProcessLoader,
    to_shared_memory,
)
from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import MIB


@dataclass(eq=False)
class EpochSampler(Sampler[int]):
    """Yield the clip indices of an epoch, in an order that depends only on (seed, epoch).

    Lightning calls ``set_epoch`` at the start of each epoch.

    Args:
        dataset: the clips; its epoch is used.
        shuffle: shuffle by (seed, epoch). False: in the order of the dataset.
        seed: 0 or more.
        done: epoch, and number of its clips that were consumed before the run was interrupted and
            are skipped.
        share: (rank, world size): each rank yields every world-size-th clip. All ranks yield
            equally many; if the clips do not divide evenly, the first ones are repeated.
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
        rank, world_size = self.share
        # np.resize repeats the order from its start, so that all ranks make the same steps.
        order = np.resize(order, len(self) * world_size)[rank::world_size]
        epoch, clips = self.done
        return iter(order[clips if epoch == self.dataset.epoch else 0 :].tolist())

    def set_epoch(self, epoch: int) -> None:
        """Set the epoch of the dataset."""
        self.dataset.set_epoch(epoch)


PREFETCHED = 2  # batches per DataLoader worker that wait in shared memory, PyTorch's default


@dataclass(frozen=True)
class Collate:
    """Join the clips of a batch in a DataLoader worker, and put the batch into shared memory.

    Attributes:
        with_keys: see :func:`~sam2kit.data.clip.collate`.
    """

    with_keys: bool

    def __call__(self, clips: list[VideoClip]) -> ClipBatch:
        return to_shared_memory(collate(clips, self.with_keys), ClipBatch.share_memory)


def check_shared_memory(config: DatasetConfig, processes: int = 1) -> None:
    """Check that the batches which DataLoader workers prepare fit into shared memory.

    Args:
        config: ``batch_size``, ``num_workers`` and the size of a clip are read.
        processes: number of training processes that share the memory, one per device.

    Raises:
        DataError: the frames and the masks of one object do not fit; more objects need more.
    """
    if not config.num_workers or not SHARED_MEMORY.is_dir():  # macOS has no such directory
        return
    pixels = config.batch_size * config.video_clip_length * config.image_size**2
    needed = 4 * pixels * config.num_workers * PREFETCHED * processes  # three colours and a mask
    free = shutil.disk_usage(SHARED_MEMORY).free
    if needed > free:
        raise DataError(
            f"{SHARED_MEMORY} has {free / MIB:.0f} MiB free, and {config.num_workers} DataLoader "
            f"workers fill {needed / MIB:.0f} MiB with {PREFETCHED} batches each",
            key="dataset.num_workers",
            hint=SHARED_MEMORY_HINT,
        )


def create_dataloader(
    dataset: ClipDataset,
    config: DatasetConfig | None = None,
    training: bool | None = None,
    seed: int | None = None,
    done: tuple[int, int] = (0, 0),
    share: tuple[int, int] = (0, 1),
    with_keys: bool = False,
    batches: Sequence[list[int]] | None = None,
    pin_memory: bool = False,
) -> DataLoader[ClipBatch]:
    """Create a loader of :class:`~sam2kit.data.clip.ClipBatch`; the last batch may be smaller.

    The batches do not depend on ``config.num_workers``. A DataError raised in a DataLoader worker
    reaches the caller as a DataError with its own message. If DataLoader workers are used,
    OpenCV is limited to one thread in this process too.

    Args:
        dataset: the clips.
        config: ``batch_size`` and ``num_workers`` are read. None (default): the configuration of
            the dataset.
        training: shuffle by (seed, epoch). Lightning sets the epoch; in your own training loop,
            call ``dataset.set_epoch`` before each epoch. None (default): as in the dataset.
        seed: 0 or more. None (default): the seed of the dataset.
        done, share: see :class:`EpochSampler`.
        with_keys: see :func:`~sam2kit.data.clip.collate`.
        batches: clip indices of each batch; replaces the order described above. None (default):
            batches of ``config.batch_size`` clips.
        pin_memory: return batches in page-locked memory, from which copies to a CUDA device are
            faster.
    """
    config = dataset.config if config is None else config
    training = dataset.training if training is None else training
    seed = dataset.seed if seed is None else seed
    if config.num_workers:
        # OpenCV's threads do not survive a fork: a DataLoader worker that touches them, even to
        # disable them, hangs. So they are disabled here, before the first fork.
        cv2.setNumThreads(0)
    order: dict[str, Any] = {"batch_sampler": batches}
    if batches is None:
        sampler = EpochSampler(dataset, training, seed, done, share)
        order = {"sampler": sampler, "batch_size": config.batch_size}
    join = Collate(with_keys) if config.num_workers else partial(collate, with_keys=with_keys)
    return ProcessLoader(
        dataset,
        **order,
        num_workers=config.num_workers,
        persistent_workers=config.num_workers > 0,
        collate_fn=join,
        timeout=config.loader_timeout if config.num_workers else 0,
        pin_memory=pin_memory,
    )
