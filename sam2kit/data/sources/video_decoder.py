"""One video as a source: a file that is decoded as it is read, or a folder of frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import av
import numpy as np
from av.video.stream import VideoStream

from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.frame_folders import list_frames, read_image
from sam2kit.data.sources.listing import FRAME_ENDINGS
from sam2kit.utils.errors import DataError


def open_video(path: str | Path) -> OneVideo:
    """A video file or a folder of frames as a source of one video, without masks.

    Raises:
        DataError: neither, or nothing that can be read.
    """
    return FrameFolder(path) if Path(path).is_dir() else VideoFile(path)


class OneVideo(VideoSource):
    """A source of one video without masks.

    Attributes:
        fps: frames a second; a folder says nothing about that and gets 10.
    """

    has_masks = False
    fps = 10.0

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = [path.stem if path.is_file() else path.resolve().name]

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        return None


class FrameFolder(OneVideo):
    """A folder of frames, ordered as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.

    Raises:
        DataError: no frames.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path))
        self._frames = list_frames(self.path)
        if not self._frames:
            raise DataError(f"{path} holds no frames ({', '.join(FRAME_ENDINGS)}); name a video")

    def num_frames(self, i: int) -> int:
        return len(self._frames)

    def frame_name(self, i: int, t: int) -> str:
        return self._frames[t].stem

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_image(self._frames[t])


class VideoFile(OneVideo):
    """A video file that FFmpeg decodes (MP4, MOV, MKV, AVI), upright as players show it.

    Opening reads the packets and decodes nothing, unless frames must be counted. One frame is held
    at a time: the next frame costs one decoding, one further on those between, any other one those
    since the last key frame.

    Frames are numbered in the order they are shown, so a number is the same frame in any order of
    reading; how long each is shown (variable frame rates) makes no difference. They are found by
    their times. Where a file has none that are reliable (AVI with frames that lean on later
    ones, or two frames at one time) they are counted from the beginning, which is slower.

    Raises:
        DataError: no such file, or one without a readable video; on reading, a damaged frame.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path))
        try:
            with av.open(str(path)) as container:
                stream = container.streams.best("video")  # which is no cover picture
                if not isinstance(stream, VideoStream):
                    raise DataError(f"{path} holds no video stream; name a video file")
                self.fps = float(stream.average_rate or OneVideo.fps)
                packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
                times = [packet.pts for packet in packets]
                # AVI knows the order of decoding alone: FFmpeg guesses the times.
                counted = container.format.name == "avi" and stream.codec_context.has_b_frames
                self._timed = not (counted or None in times or len(set(times)) < len(times))
                if not self._timed:
                    container.seek(0)
                    times = [*range(sum(1 for _ in container.decode(stream)))]
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{path} cannot be read as a video: {error}") from error
        if not times:
            raise DataError(f"{path} holds a video without frames; replace the file")
        self._times = np.sort(np.asarray(times, np.int64))
        keys = [p.pts for p in packets if p.is_keyframe] if self._timed else []
        self._keys = np.unique(np.asarray([self._times[0], *keys], np.int64))
        self._size: tuple[int, int] | None = None
        self._decoder: tuple[int, int, Iterator[Any]] | None = None  # process, next frame
        self._last: tuple[int, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_decoder": None, "_last": None}

    def num_frames(self, i: int) -> int:
        return len(self._times)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns; the first call decodes the first frame."""
        if self._size is None:
            self._size = copy(self).read_frame(0, 0).shape[:2]
        return self._size

    def close(self) -> None:
        """Let go of the open file and the frame that is held; reading opens it again."""
        self._decoder = self._last = None

    def read_frame(self, i: int, t: int) -> np.ndarray:
        if not 0 <= t < len(self._times):
            raise IndexError(f"frame {t} of {self.path}, which has {len(self._times)}")
        if self._last is None or self._last[0] != t:
            try:
                self._last = t, self._decode(t)
            except (av.FFmpegError, OSError, LookupError) as error:
                self.close()
                raise DataError(
                    f"{self.path}: frame {t} cannot be decoded ({error or 'it is missing'}); "
                    "the file is damaged: write it anew"
                ) from error
        return self._last[1].copy()

    def _decode(self, t: int) -> np.ndarray:
        key = int(np.searchsorted(self._keys, self._times[t], side="right")) - 1
        if self._decoder is not None:
            process, at, frames = self._decoder
            if process == os.getpid() and self._times[t] >= self._times[at] >= self._keys[key]:
                if (frame := self._find(t, frames)) is not None:
                    return frame
            self.close()
        # Containers seek by the order of decoding, which may lead past the key frame asked for.
        for earlier in range(key, max(key - 3, -1), -1):
            if (frame := self._find(t, self._frames_from(earlier))) is not None:
                return frame
        raise LookupError

    def _find(self, t: int, frames: Iterator[tuple[int, av.VideoFrame]]) -> np.ndarray | None:
        """Frame ``t`` among those that follow, or None where it is left out."""
        for time, frame in frames:
            if time == self._times[t]:
                self._decoder = os.getpid(), min(t + 1, len(self._times) - 1), frames
                pixels = frame.to_ndarray(format="rgb24", threads=1)
                return np.rot90(pixels, round(frame.rotation / 90))
            if time > self._times[t]:
                break
        return None

    def _frames_from(self, key: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Times and decoded frames from a key frame on; nothing where it cannot be sought."""
        with av.open(str(self.path)) as container:
            stream = container.streams.best("video")
            assert isinstance(stream, VideoStream)  # checked when the file was opened
            # Threads would not survive a fork, and a decoder that is let go of in a process forked
            # from this one, be it by the garbage collector, would wait for them for ever.
            stream.codec_context.thread_count = 1
            if not self._timed:
                yield from enumerate(container.decode(stream))
                return
            if key:
                container.seek(int(self._keys[key]), stream=stream)
            for packet in container.demux(stream):
                # Frames shown before a key frame that follow it in the file lean on earlier ones.
                if key and packet.pts is not None and packet.pts > self._keys[key]:
                    return
                key = 0
                for frame in stream.decode(packet):
                    if frame.pts is not None:
                        yield frame.pts, frame
