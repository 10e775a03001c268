"""One piece of work for every video of a source, in several processes where that pays."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import cv2
from loguru import logger
from torch.utils.data import DataLoader, Dataset

from sam2kit.data.sources.base import VideoSource
from sam2kit.utils.errors import DataError

T = TypeVar("T")
LOG_SECONDS = 10
VIDEOS_A_PROCESS = 4  # with fewer for each, fewer processes are started


def each_video(
    work: Callable[[VideoSource, int], T], source: VideoSource, workers: int, doing: str
) -> Iterator[T]:
    """``work(source, i)`` of every video in order, with a log line every ten seconds.

    Args:
        work: can be pickled; what it returns, too.
        workers: at most so many processes; 0 works in this one. With any, OpenCV is set to one
            thread in this one too (see :func:`~sam2kit.data.loader.create_dataloader`).
        doing: begins the log lines, such as ``read``.

    Raises:
        DataError, OSError: what ``work`` raises.
    """
    processes = min(workers, len(source) // VIDEOS_A_PROCESS)
    if processes:
        cv2.setNumThreads(0)
    results = DataLoader(
        _Work(work, source), batch_size=None, num_workers=processes, collate_fn=_as_it_is
    )
    told = time.monotonic()
    for done, result in enumerate(results, 1):
        if isinstance(result, Exception):
            raise result
        yield result
        if time.monotonic() - told > LOG_SECONDS:
            told = time.monotonic()
            logger.info("{} {} of {} videos", doing, done, len(source))


class _Work(Dataset[Any]):
    """Results, and errors as results: raised in a loader process they would come as tracebacks."""

    def __init__(self, work: Callable[[VideoSource, int], Any], source: VideoSource) -> None:
        self.work, self.source = work, source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Any:
        try:
            return self.work(self.source, i)
        except (DataError, OSError) as error:
            return error


def _as_it_is(result: Any) -> Any:
    return result
