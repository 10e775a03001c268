"""Load items in several processes, or read and write in a thread while the caller computes.

Errors reach the caller unchanged.
"""

from __future__ import annotations

import pickle
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Generic, TypeVar

import cv2
import torch
from torch.utils.data import DataLoader, Dataset, get_worker_info

from sam2kit.data.sources.base import VideoSource
from sam2kit.utils.errors import DataError, SAM2KitError
from sam2kit.utils.processes import end_when_terminated, without_stop_signals
from sam2kit.utils.progress import log_progress

T = TypeVar("T")
R = TypeVar("R")
SHARED_MEMORY = Path("/dev/shm")
SHARED_MEMORY_HINT = (
    "set dataset.num_workers=0, or a smaller dataset.batch_size, dataset.video_clip_length or "
    "dataset.image_size; in a container, start it with more shared memory: docker run --shm-size=8g"
)
# Each process gets at least this many videos; starting one for fewer is not worthwhile.
MIN_VIDEOS_PER_PROCESS = 4


def each_video(
    work: Callable[[VideoSource, int], T], source: VideoSource, workers: int, doing: str
) -> Iterator[T]:
    """Yield ``work(source, i)`` for every video in order, and log the progress every ten seconds.

    Args:
        work: function of a source and the index of a video. It and its results must be picklable.
        source: the videos.
        workers: maximum number of processes; 0: work in this process (see :func:`load_items`).
        doing: start of the log lines, such as ``read``.

    Raises:
        SAM2KitError, OSError: what ``work`` raises.
    """
    processes = min(workers, len(source) // MIN_VIDEOS_PER_PROCESS)
    results = load_items(_ResultPerVideo(work, source), processes)
    return log_progress(results, len(source), doing, "videos")


def load_items(items: Dataset[T], workers: int) -> Iterator[T]:
    """Yield the items of a dataset in order, loaded by ``workers`` processes.

    If DataLoader workers are used, OpenCV is limited to one thread in this process too (see
    :func:`~sam2kit.data.loader.create_dataloader`).

    Args:
        items: the dataset.
        workers: number of processes; 0: load in this process.

    Raises:
        SAM2KitError, OSError: what the dataset raises within :func:`errors_from_workers`.
    """
    if workers:
        cv2.setNumThreads(0)
    join = _shared if workers else _identity
    results = iter(ProcessLoader(items, None, num_workers=workers, collate_fn=join))
    try:
        yield from results
    finally:
        # After an error the traceback keeps the iterator alive, and its processes with it. The
        # caller may be about to delete what they still write, so stop them here.
        if workers:
            results._shutdown_workers()


class ProcessLoader(DataLoader[T]):
    """A ``DataLoader`` whose processes ignore Ctrl-C, SIGTERM and SIGHUP.

    Terminals, ``timeout`` and SLURM send these to the whole process group. If the DataLoader
    workers ended, the main process could not finish its step and save a checkpoint.
    """

    def __init__(self, dataset: Any, batch_size: int | None = 1, **options: Any) -> None:
        super().__init__(dataset, batch_size, worker_init_fn=_start_process, **options)

    def __iter__(self) -> Any:
        with without_stop_signals():
            try:
                return super().__iter__()
            except OSError as error:  # such as too many open files
                _complete_iterators(error)
                raise


def _complete_iterators(error: BaseException) -> None:
    """Let iterators that could not start all of their processes stop those that they started.

    PyTorch sets these attributes when all processes have started. Without them, its destructor
    prints a traceback and leaves the processes running.
    """
    for frame, _ in traceback.walk_tb(error.__traceback__):
        iterator: Any = frame.f_locals.get("self")
        if hasattr(iterator, "_shutdown_workers") and not hasattr(iterator, "_workers_status"):
            iterator._workers_status = [True] * len(getattr(iterator, "_workers", ()))
            iterator._shutdown = not iterator._workers_status  # nothing to end


def _start_process(number: int) -> None:
    end_when_terminated()


class ErrorFromWorker(Exception):
    """Carry a pickled error out of a DataLoader worker.

    PyTorch sends the class of an error and the text of its traceback to the main process, and calls
    the class with that text there. The text of this class ends in the pickled error, and calling
    the class returns that error.
    """

    def __new__(cls, text: str) -> Any:
        return pickle.loads(bytes.fromhex(text.split()[-1]))


@contextmanager
def errors_from_workers() -> Iterator[None]:
    """Pass errors of a DataLoader worker to the caller with their type, message and fields.

    Without it, PyTorch raises them with the text of a whole traceback as their message.
    """
    try:
        yield
    except (SAM2KitError, OSError) as error:
        if get_worker_info() is None:
            raise
        carrier = Exception.__new__(ErrorFromWorker)
        carrier.args = (pickle.dumps(error).hex(),)
        raise carrier from None


class _ResultPerVideo(Dataset[Any]):
    """Apply a function to each video of a source."""

    def __init__(self, work: Callable[[VideoSource, int], Any], source: VideoSource) -> None:
        self.work, self.source = work, source

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, i: int) -> Any:
        with errors_from_workers():
            return self.work(self.source, i)


def to_shared_memory(result: T, share: Callable[[T], Any]) -> T:
    """Put a result of a DataLoader worker into shared memory.

    PyTorch does this later, in a thread of the process. Where ``/dev/shm`` is full, that thread
    prints a traceback and drops the result, and the main process waits for it forever.

    Args:
        result: the result.
        share: puts its tensors into shared memory, in place.

    Raises:
        DataError: there is too little shared memory.
    """
    with errors_from_workers():
        try:
            share(result)
        except RuntimeError as error:
            if "shared memory" not in str(error):
                raise
            raise DataError(
                f"{SHARED_MEMORY} is too small for the results of the DataLoader workers",
                key="dataset.num_workers",
                hint=SHARED_MEMORY_HINT,
            ) from None
    return result


class ReadAhead(Generic[T]):
    """Read frames in a thread, the next ones while the caller works with the latest one.

    Frames are read one after the other, and never by two threads at once. Calling the object with a
    frame number returns the frame or raises its error. Use it in a ``with`` block.

    Args:
        read: reads the frame of a given number.
        num_frames: number of frames.
        count: number of frames to read ahead, 1 or more. A caller can read this many frames at
            once and then read them again.
    """

    def __init__(self, read: Callable[[int], T], num_frames: int, count: int = 1) -> None:
        self._read, self._num_frames, self._count = read, num_frames, count
        self._thread = ThreadPoolExecutor(1)
        self._frames: dict[int, Future[T]] = {}

    def __call__(self, t: int) -> T:
        last = min(t + self._count, self._num_frames - 1) if t - 1 in self._frames else t
        window = range(t - self._count + 1, t + 2 * self._count)
        self._frames = {n: frame for n, frame in self._frames.items() if n in window}
        for n in range(t, last + 1):
            if n not in self._frames:
                self._frames[n] = self._thread.submit(self._read, n)
        return self._frames[t].result()

    def call(self, function: Callable[..., R], *arguments: Any) -> R:
        """Call a function that reads other things from the same files, in the same thread."""
        return self._thread.submit(function, *arguments).result()

    def __enter__(self) -> ReadAhead[T]:
        return self

    def __exit__(self, *error: object) -> None:
        self._frames.clear()
        self._thread.shutdown(cancel_futures=True)


class WorkBehind:
    """Run calls in order in a thread while the caller computes the arguments of the next one.

    At most one call is unfinished, so that memory is bounded. Use it in a ``with`` block, which
    ends when all calls have returned.
    """

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1)
        self._call: Future[object] | None = None

    def submit(self, work: Callable[..., object], *arguments: Any) -> None:
        """Wait for the earlier call, raise its error if there is one, and start another call."""
        self.finish()
        self._call = self._thread.submit(work, *arguments)

    def finish(self) -> None:
        """Wait for the earlier call, and raise its error if there is one."""
        if self._call is not None:
            self._call.result()
            self._call = None

    def __enter__(self) -> WorkBehind:
        return self

    def __exit__(self, error: type[BaseException] | None, *_: object) -> None:
        try:
            if error is None:
                self.finish()
        finally:
            self._thread.shutdown()


def _shared(result: Any) -> Any:
    parts = result if isinstance(result, tuple) else (result,)
    tensors = [part for part in parts if isinstance(part, torch.Tensor)]
    to_shared_memory(tensors, lambda tensors: [tensor.share_memory_() for tensor in tensors])
    return result


def _identity(result: Any) -> Any:
    # Replaces PyTorch's conversion of results to tensors; a lambda could not be pickled.
    return result
