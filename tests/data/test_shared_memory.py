"""DataLoader workers that fill the shared memory end with an error, and do not hang."""

from __future__ import annotations

import shutil
import time
from collections import namedtuple

import pytest
import torch
from torch import Tensor

from sam2kit.data import ClipDataset, SyntheticDataset, create_dataloader
from sam2kit.data.loader import check_shared_memory
from sam2kit.data.parallel import load_items
from sam2kit.utils.errors import DataError

Usage = namedtuple("Usage", "total used free")
ERROR = "unable to allocate shared memory(shm) for file </torch_1>: No space left on device (28)"


@pytest.fixture
def clips(toy_config):
    toy_config.dataset.num_workers = 1
    return ClipDataset(SyntheticDataset(4, 2, 32), toy_config.dataset, training=True, seed=0)


@pytest.fixture
def full(monkeypatch):
    """Make shared memory full, also in DataLoader workers, which are forked."""

    def share_memory(tensor: Tensor) -> Tensor:
        raise RuntimeError(ERROR)

    monkeypatch.setattr(Tensor, "share_memory_", share_memory)


@pytest.mark.skipif(not shutil.which("mount"), reason="needs /dev/shm")
def test_batches_that_do_not_fit_are_rejected_before_training(toy_config, monkeypatch):
    needed = 4 * 2 * 32 * 32 * 2 * 2  # 2 frames, of 2 processes with 2 batches each
    toy_config.dataset.num_workers = 2
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(0, 0, needed))
    check_shared_memory(toy_config.dataset)
    with pytest.raises(DataError) as caught:
        check_shared_memory(toy_config.dataset, processes=2)
    assert caught.value.key == "dataset.num_workers" and "/dev/shm" in str(caught.value)
    toy_config.dataset.num_workers = 0
    check_shared_memory(toy_config.dataset, processes=2)


def test_a_full_shared_memory_is_an_error_of_the_loader(clips, full, capfd):
    with pytest.raises(DataError) as caught:
        next(iter(create_dataloader(clips)))
    assert caught.value.key == "dataset.num_workers" and "num_workers=0" in caught.value.hint
    assert "Traceback" not in capfd.readouterr().err


def test_a_full_shared_memory_is_an_error_of_other_loaders(full):
    with pytest.raises(DataError):
        next(load_items([torch.zeros(3)], 1))


def test_batches_in_shared_memory_equal_others(clips, toy_config):
    shared = next(iter(create_dataloader(clips)))
    toy_config.dataset.num_workers = 0
    plain = next(iter(create_dataloader(clips)))
    assert torch.equal(shared.frames, plain.frames) and torch.equal(shared.masks, plain.masks)


class Slow(ClipDataset):
    def __getitem__(self, i):
        time.sleep(60)


def test_a_loader_that_delivers_nothing_reaches_its_time_limit(toy_config):
    toy_config.dataset.num_workers, toy_config.dataset.loader_timeout = 1, 1
    clips = Slow(SyntheticDataset(4, 2, 32), toy_config.dataset, training=True, seed=0)
    with pytest.raises(RuntimeError, match="timed out"):
        next(iter(create_dataloader(clips)))
