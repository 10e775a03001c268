"""Load items in several processes where that pays, and bring their errors back unchanged."""

from __future__ import annotations

import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import cv2
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sam2kit.data.sources.base import VideoSource
from sam2kit.utils.errors import SAM2KitError
from sam2kit.utils.progress import log_progress

T = TypeVar("T")
VIDEOS_A_PROCESS = 4  # with fewer for each, fewer processes are started


def each_video(
    work: Callable[[VideoSource, int], T], source: VideoSource, workers: int, doing: str
) -> Iterator[T]:
    """Yield ``work(source, i)`` of every video in order, with a log line every ten seconds.

    Args:
        work: can be pickled; what it returns, too.
        workers: maximum number of processes; 0 works in this one (see :func:`load_items`).
        doing: begins the log lines, such as ``read``.

    Raises:
        SAM2KitError, OSError: what ``work`` raises.
    """
    processes = min(workers, len(source) // VIDEOS_A_PROCESS)
    results = load_items(_Work(work, source), processes)
    return log_progress(results, len(source), doing, "videos")


def load_items(items: Dataset[T], workers: int) -> Iterator[T]:
    """Yield the items of a data set in order, loaded by ``workers`` processes; 0: by this one.

    With any, OpenCV is set to one thread in this process too (see
    :func:`~sam2kit.data.loader.create_dataloader`).

    Raises:
        SAM2KitError, OSError: what the data set raises within :func:`errors_from_workers`.
    """
    if workers:
        cv2.setNumThreads(0)
    yield from DataLoader(items, None, num_workers=workers, collate_fn=_as_it_is)


class ErrorFromWorker(Exception):
    """Hold a pickled error on its way out of a loader process.

    Torch sends the class of an error and the text of its traceback, and calls the class with that
    text in the main process. This class's text ends in the pickled error, and the call returns it.
    """

    def __new__(cls, text: str) -> Any:
        return pickle.loads(bytes.fromhex(text.split()[-1]))


@contextmanager
def errors_from_workers() -> Iterator[None]:
    """Let errors raised in a loader process arrive with their own type, message and fields.

    Without it, torch raises them again with a whole traceback for a message.
    """
    try:
        yield
    except (SAM2KitError, OSError) as error:
        if get_worker_info() is None:
            raise
        carrier = Exception.__new__(ErrorFromWorker)
        carrier.args = (pickle.dumps(error).hex(),)
        raise carrier from None


class _Work(Dataset[Any]):
    """The results of a function, one for each video."""

    def __init__(self, work: Callable[[VideoSource, int], Any], source: VideoSource) -> None:
        self.work, self.source = work, source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Any:
        with errors_from_workers():
            return self.work(self.source, i)


def _as_it_is(result: Any) -> Any:
    return result
