"""Test that errors of DataLoader workers reach the caller unchanged."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from torch.utils.data import Dataset

from sam2kit.data.parallel import ReadAhead, WorkBehind, errors_from_workers, load_items
from sam2kit.utils.errors import ConfigError, DataError

ERRORS = [
    DataError("frame 3 is damaged", key="b.png", hint="replace it"),
    ConfigError(problems=[ConfigError(key="seed", value=-1, expected="at least 0")] * 2),
    FileNotFoundError(2, "No such file or directory", "a.png"),
]


class Failing(Dataset):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> int:
        with errors_from_workers():
            if i:
                raise self.error
            return i


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_keep_type_message_and_fields(error, workers):
    items = load_items(Failing(error), workers)
    assert next(items) == 0
    with pytest.raises(type(error)) as caught:
        next(items)
    assert type(caught.value) is type(error) and str(caught.value) == str(error)
    state = {k: v for k, v in vars(error).items() if k != "_problems"}
    assert {k: vars(caught.value)[k] for k in state} == state
    if isinstance(error, ConfigError):
        assert [p.key for p in caught.value.problems] == ["seed", "seed"]
    if isinstance(error, OSError):
        assert caught.value.errno == 2 and caught.value.filename == "a.png"


def test_next_frame_is_read_while_the_caller_works():
    """Each frame is read once, one frame ahead, and an error is raised at its frame."""
    read, second = [], threading.Event()

    def frame(t):
        read.append(t)
        if t == 2:
            second.set()
        if t == 3:
            raise ERRORS[0]
        return np.full(1, t)

    with ReadAhead(frame, 5) as frames:
        assert frames(0) == 0 and frames(0) == 0
        assert frames(1) == 1
        assert second.wait(60) and frames(2) == 2
        with pytest.raises(DataError) as caught:
            frames(3)
    assert caught.value is ERRORS[0] and read[:4] == [0, 1, 2, 3]


def test_several_frames_are_read_ahead_and_kept():
    """A caller that reads three frames at once finds each of them again, and the next three."""
    read, last = [], threading.Event()

    def frame(t):
        read.append((t, threading.current_thread().name))
        if t == 5:
            last.set()
        return t

    with ReadAhead(frame, 7, count=3) as frames:
        assert [frames(t) for t in (0, 1, 2)] == [0, 1, 2] and last.wait(60)
        assert [frames(t) for t in (0, 1, 2, 3, 4, 5, 3, 4, 5, 6)] == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6]
        assert frames.call(lambda: threading.current_thread().name) == read[0][1]
    assert [t for t, _ in read] == [0, 1, 2, 3, 4, 5, 6] and len({name for _, name in read}) == 1


def test_work_behind_the_caller_keeps_order_and_errors():
    done, may_end = [], threading.Event()

    def work(n):
        assert may_end.wait(60)
        if n == 2:
            raise ERRORS[0]
        done.append(n)

    with pytest.raises(DataError) as caught, WorkBehind() as behind:
        behind.submit(work, 0)
        assert done == []  # the caller does not wait
        may_end.set()
        behind.submit(work, 1)
        assert done == [0]
        behind.submit(work, 2)
        behind.submit(work, 3)
    assert caught.value is ERRORS[0] and done == [0, 1]
