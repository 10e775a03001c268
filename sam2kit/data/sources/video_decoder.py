"""Read one video: a video file, decoded on access, or a folder of frames."""

from __future__ import annotations

import os
from collections.abc import Iterator
from copy import copy
from pathlib import Path
from typing import Any

import av
import av.container
import numpy as np
from av.video.stream import VideoStream

from sam2kit.data.intensity import IntensityRule, VideoScaler
from sam2kit.data.sources.base import DEFAULT_FPS, ObjectId, VideoSource
from sam2kit.data.sources.frame_folders import list_frames, read_scaled
from sam2kit.data.sources.listing import FRAME_ENDINGS, require_utf8
from sam2kit.utils.errors import DataError

_CONTAINERS = (
    "mov,mp4,matroska,webm,avi,asf,asf_o,mpeg,mpegts,mpegtsraw,mpegvideo,mxf,dv,flv,ogg,h264,hevc,"
    "m4v,ivf,nut,mjpeg,gif,wtv,rm"
)


def open_video(path: str | Path, intensity: IntensityRule | None = None) -> OneVideo:
    """Open a video file or a folder of frames as a source of one video without masks.

    Args:
        path: the file or folder.
        intensity: how frames of more than 8 bits are scaled. None (default): the default rule.

    Raises:
        DataError: ``path`` is neither of the two, or cannot be read.
    """
    return FrameFolder(path, intensity) if Path(path).is_dir() else VideoFile(path)


class OneVideo(VideoSource):
    """Base class for sources of one video without masks.

    Attributes:
        path: the video file or the folder of frames.
        fps: frames per second; 10 for a folder of frames, which does not define it.
    """

    has_masks = False
    fps = DEFAULT_FPS

    def __init__(self, path: Path) -> None:
        self.path = path
        self.names = [path.stem if path.is_file() else path.resolve().name]
        require_utf8(self.names[0])

    def annotated_frames(self, i: int) -> Iterator[int]:
        return iter(())

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        return None

    def frame_rate(self, i: int) -> float:
        return self.fps

    def video_path(self, i: int) -> Path | None:
        return self.path


class FrameFolder(OneVideo):
    """Read a folder of frames as one video.

    The order is as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.

    Args:
        path: the folder.
        intensity: how frames of more than 8 bits are scaled. None (default): the default rule.

    Raises:
        DataError: the folder has no frames.
    """

    def __init__(self, path: str | Path, intensity: IntensityRule | None = None) -> None:
        super().__init__(Path(path))
        self._frames = list_frames(self.path)
        self._scaler = VideoScaler(intensity or IntensityRule())
        if not self._frames:
            raise DataError(
                f"{path} contains no frames ({', '.join(FRAME_ENDINGS)})",
                hint="give a video file or a folder of frames",
            )

    def num_frames(self, i: int) -> int:
        return len(self._frames)

    def frame_name(self, i: int, t: int) -> str:
        return self._frames[t].stem

    def frame_path(self, i: int, t: int) -> Path:
        """Return the file of frame ``t``."""
        return self._frames[t]

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_scaled(self, self._scaler, i, t)


class VideoFile(OneVideo):
    """Decode a video file (MP4, MOV, MKV, AVI) with FFmpeg, rotated as players show it.

    Opening a file reads its packets but decodes nothing, unless frames must be counted. One frame
    is cached. Reading the next frame decodes one frame, reading a later one also decodes the frames
    between, and any other access decodes from the preceding key frame.

    Frames are numbered in presentation order, so an index means the same frame in any order of
    access; variable frame rates make no difference. Frames are identified by their timestamps. If a
    file has no reliable timestamps (AVI with B-frames, or duplicate timestamps), frames are counted
    from the beginning, which is slower.

    Args:
        path: the video file.

    Attributes:
        fps: average frames per second.

    Raises:
        DataError: the file is missing or has no readable video; on reading, a damaged frame.
    """

    def __init__(self, path: str | Path) -> None:
        super().__init__(Path(path))
        try:
            with open_container(path) as container:
                stream = container.streams.best("video")  # skips cover images
                if not isinstance(stream, VideoStream):
                    raise DataError(f"{path} contains no video stream", hint="give a video file")
                if stream.codec_context is None:
                    raise DataError(
                        f"{path} contains a video of an unknown codec", hint="convert it to H.264"
                    )
                self.fps = float(stream.average_rate or DEFAULT_FPS)
                packets = [p for p in container.demux(stream) if p.size and not p.is_discard]
                times = [packet.pts for packet in packets]
                # AVI stores the decoding order only, so FFmpeg guesses the times of B-frames.
                counted = container.format.name == "avi" and stream.codec_context.has_b_frames
                self._timed = not (counted or None in times or len(set(times)) < len(times))
            if not self._timed:  # opened again, because not all files can be rewound
                with open_container(path) as container:
                    frames = container.decode(container.streams.best("video"))
                    times = [*range(sum(1 for _ in frames))]
            elif packets and not (packets[0].is_keyframe and packets[0].pts == _earliest(times)):
                times = self._decodable(times)
        except (av.FFmpegError, OSError) as error:
            raise DataError(
                f"{path} cannot be read as a video: {error}", hint="give a readable video file"
            ) from error
        if not times:
            raise DataError(f"{path} contains a video without frames", hint="replace the file")
        self._times = np.sort(np.asarray(times, np.int64))
        keys = [p.pts for p in packets if p.is_keyframe] if self._timed else []
        keys = [key for key in keys if key >= self._times[0]]
        self._keys = np.unique(np.asarray([self._times[0], *keys], np.int64))
        self._missed: set[int] = set()  # key frames at which seeking has failed
        self._size: tuple[int, int] | None = None
        self._decoder: tuple[int, int, Iterator[Any]] | None = None  # process, next frame
        self._last: tuple[int, np.ndarray] | None = None

    def _decodable(self, times: list[int | None]) -> list[int | None]:
        """Return the times of frames from the first decodable frame on.

        A recording that begins between key frames, such as a part of a broadcast, begins with
        frames that refer to missing ones. Decoders skip them.
        """
        with open_container(self.path) as container:
            first = next(container.decode(container.streams.best("video")), None)
        begin = None if first is None else first.pts
        return [t for t in times if t is not None and begin is not None and t >= begin]

    def __getstate__(self) -> dict[str, Any]:
        # An open decoder cannot be pickled; the copy opens its own.
        return self.__dict__ | {"_decoder": None, "_last": None, "_missed": set(self._missed)}

    def num_frames(self, i: int) -> int:
        return len(self._times)

    @property
    def size(self) -> tuple[int, int]:
        """Rows and columns of the frames; the first access decodes the first frame."""
        if self._size is None:
            # In a copy, so that the position of this decoder and its cached frame are kept.
            self._size = copy(self).read_frame(0, 0).shape[:2]
        return self._size

    def close(self) -> None:
        """Close the file and drop the cached frame; the next access opens the file again."""
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
                    f"{self.path}: frame {t} cannot be decoded ({error or 'it is missing'})",
                    hint="the file is damaged; export it again",
                ) from error
        return self._last[1].copy()

    def _decode(self, t: int) -> np.ndarray:
        """Decode frame ``t``, with the open decoder if it has not passed the frame yet.

        Raises:
            LookupError: the file does not contain the frame.
        """
        key = int(np.searchsorted(self._keys, self._times[t], side="right")) - 1
        if self._decoder is not None:
            # A forked process shares the file position of its parent, so it must open the file
            # itself. Seeking is cheaper if a key frame comes between the next frame and frame t.
            process, position, frames = self._decoder
            if (
                process == os.getpid()
                and self._times[t] >= self._times[position] >= self._keys[key]
            ):
                if (frame := self._find(t, frames)) is not None:
                    return frame
            self.close()
        # Containers seek by decoding time, which may end behind the requested key frame, and a
        # transport stream cannot be searched near its end. Then earlier key frames are tried, and
        # at last the beginning.
        failure: Exception = LookupError()
        for start in _starts(key):
            if start and start in self._missed:
                continue
            try:
                if (frame := self._find(t, self._frames_from(start))) is not None:
                    return frame
            except (av.FFmpegError, OSError) as error:
                failure = error
        raise failure

    def _find(self, t: int, frames: Iterator[tuple[int, av.VideoFrame]]) -> np.ndarray | None:
        """Search the decoded frames for frame ``t``; None if they skip it."""
        for time, frame in frames:
            if time == self._times[t]:
                self._decoder = os.getpid(), min(t + 1, len(self._times) - 1), frames
                pixels = frame.to_ndarray(format="rgb24", threads=1)
                return np.rot90(pixels, round(frame.rotation / 90))
            if time > self._times[t]:
                break
        return None

    def _frames_from(self, key: int) -> Iterator[tuple[int, av.VideoFrame]]:
        """Yield times and frames from a key frame on; nothing if seeking ends behind it."""
        with open_container(self.path) as container:
            stream = container.streams.best("video")
            assert isinstance(stream, VideoStream)  # the constructor checked it
            # The decoder's threads would not survive a fork: a forked process that frees the
            # decoder, if only in its garbage collector, would wait for them forever.
            stream.codec_context.thread_count = 1
            if not self._timed:
                yield from enumerate(container.decode(stream))
                return
            number = key
            if key:
                self._missed.add(number)
                container.seek(int(self._keys[key]), stream=stream)
            for packet in container.demux(stream):
                # If the first packet is later, the seek ended behind the requested key frame. The
                # frames that follow may include frame t (open GOP: frames that are shown before a
                # key frame but stored after it), but they refer to frames that were skipped.
                if key and packet.pts is not None and packet.pts > self._keys[key]:
                    return
                self._missed.discard(number)
                key = 0
                for frame in stream.decode(packet):
                    if frame.pts is not None:
                        yield frame.pts, frame


def open_container(path: str | Path) -> av.container.InputContainer:
    """Open a video file; metadata that are not UTF-8, such as a title, are tolerated.

    FFmpeg chooses the demuxer by the content of the file. Playlists, whose demuxers open other
    files or addresses, are rejected. An absolute path never looks like an address.
    """
    options = {"format_whitelist": _CONTAINERS, "protocol_whitelist": "file"}
    return av.open(os.path.abspath(path), options=options, metadata_errors="replace")


def _earliest(times: list[int | None]) -> int | None:
    return min((time for time in times if time is not None), default=None)


def _starts(key: int) -> Iterator[int]:
    """Yield the numbers of key frames to decode from, in the order in which to try them."""
    yield key
    distance = 1
    while distance < key:
        yield key - distance
        distance *= 2
    if key:
        yield 0
