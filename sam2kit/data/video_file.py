"""One video as a source: a file that is decoded as it is read, or a folder of frames."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import av
import numpy as np

from sam2kit.data.frames import list_frames, read_image
from sam2kit.data.listing import FRAME_ENDINGS
from sam2kit.data.source import ObjectId, VideoSource
from sam2kit.errors import DataError


def open_video(path: str | Path) -> VideoSource:
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
    """A folder of frames, ordered as in :class:`~sam2kit.data.frames.VideoDataset`.

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

    One frame is held at a time. The next frame costs one decoding, any other one those since the
    last key frame. Frames are numbered by their time, so a number is the same frame in any order
    of reading.

    Raises:
        DataError: no such file, or one without a readable video; on reading, a damaged frame.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path))
        try:
            with av.open(str(path)) as container:
                if not container.streams.video:
                    raise DataError(f"{path} holds no video stream; name a video file")
                stream = container.streams.video[0]
                self.fps = float(stream.average_rate or OneVideo.fps)
                packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
                times = [packet.pts for packet in packets]
                if None in times:  # such packets tell a frame's time only once it is decoded
                    container.seek(0)
                    times = [frame.pts for frame in container.decode(stream)]
        except (av.FFmpegError, OSError) as error:
            raise DataError(f"{path} cannot be read as a video: {error}") from error
        self._times = sorted(times)
        if not self._times:
            raise DataError(f"{path} holds a video without frames; replace the file")
        self._decoder: tuple[int, Iterator[av.VideoFrame]] | None = None
        self._last: tuple[int, np.ndarray] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_decoder": None, "_last": None}

    def num_frames(self, i: int) -> int:
        return len(self._times)

    def read_frame(self, i: int, t: int) -> np.ndarray:
        if self._last is None or self._last[0] != t:
            try:
                self._last = t, self._decode(t)
            except (av.FFmpegError, OSError, StopIteration) as error:
                self._decoder = None
                raise DataError(
                    f"{self.path}: frame {t} cannot be decoded ({error or 'it is missing'}); "
                    "the file is damaged: write it anew"
                ) from error
        return self._last[1].copy()

    def _decode(self, t: int) -> np.ndarray:
        if self._decoder is None or self._decoder[0] != t:
            self._decoder = t, _frames_from(self.path, self._times[t])
        frames = self._decoder[1]
        frame = next(frame for frame in frames if frame.pts >= self._times[t])
        if frame.pts != self._times[t]:
            raise StopIteration
        self._decoder = t + 1, frames
        return np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))


def _frames_from(path: Path, time: int) -> Iterator[av.VideoFrame]:
    """Decoded frames from the key frame before ``time`` on, in the stream's units."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        stream.thread_type = "AUTO"
        container.seek(time, stream=stream)
        yield from container.decode(stream)
