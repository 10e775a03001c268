"""Read TIFF stacks of microscopy, with labels in stacks or folders beside them."""

from __future__ import annotations

import logging
import lzma
import os
import re
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loguru import logger
from PIL import Image

from sam2kit.data.intensity import DEFAULT_RULE, IntensityRule
from sam2kit.data.lineage import read_tracks
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.listing import (
    Listing,
    first_number,
    interleaved,
    list_folder,
    natural_key,
    sort_files,
    stem,
)
from sam2kit.data.sources.mask_files import read_object_names
from sam2kit.data.sources.mask_search import (
    has_label_suffix,
    image_keys,
    is_mask_folder,
    label_base,
)
from sam2kit.data.sources.stacks import MAX_FRAME_BYTES, StackSource, check_size
from sam2kit.utils.errors import DataError, SAM2KitError
from sam2kit.utils.text import visible_text

TIFF_ENDINGS = (".tif", ".tiff", ".btf", ".tf8")
AXES = "TCZYXS"
LAYOUTS = (
    "VIDEO.tif with VIDEO_labels.tif or labels/VIDEO.tif, or VIDEO/00000.tif with "
    "VIDEO/labels/00000.tif or VIDEO_labels/00000.tif"
)
IMAGE_FOLDERS = ("images", "imagestr", "stacks", "raw", "frames")
TIFF_ERRORS = (Exception,)


class StackOptions(NamedTuple):
    """How the axes of a stack are read.

    Attributes:
        axes: letters of the axes, any of T, C, Z, Y, X and S (colour samples), in the order of the
            file. None (default): the metadata decide.
        channels: up to 3 channels that become red, green and blue; a single one becomes grey. None
            (default): all channels, if there are up to 3.
        z: how the Z axis of a stack with time is reduced: ``max``, ``mean`` or the index of a
            slice. None (default): such stacks are rejected.
    """

    axes: str | None = None
    channels: tuple[int, ...] | None = None
    z: str | None = None


DEFAULT_OPTIONS = StackOptions()


class TiffStack:
    """Read the frames of one TIFF file, page by page.

    Opening reads the headers of the pages. The file stays open after the first frame is read, once
    per process.

    Args:
        path: the file.
        options: how its axes are read.
        num_frames: number of frames that the file is expected to have, which determines the meaning
            of an axis without a name. None (default): unknown.

    Attributes:
        num_frames: number of frames.
        size: rows and columns.
        axes: letters of the axes.
        shape: their lengths.

    Raises:
        DataError: the file is damaged, too large, or its axes are ambiguous.
    """

    def __init__(
        self, path: Path, options: StackOptions = DEFAULT_OPTIONS, num_frames: int | None = None
    ) -> None:
        self.path, self._options = path, options
        self._open: tuple[int, Any, Any] | None = None  # process, file, memory map
        _LOG.lines.clear()
        try:
            tiff = open_tiff(path)
            with tiff:
                series = tiff.series
                if len(series) != 1:
                    sizes = sorted({s.shape for s in series})
                    raise DataError(
                        f"{path} contains {len(series)} images of different shapes, such as "
                        f"{sizes[:2]}",
                        hint="save the stack in a separate file",
                    )
                _check_parts(path, series[0])
                stored, self.shape = series[0].axes.upper(), tuple(map(int, series[0].shape))
                self.dtype = np.dtype(series[0].dtype)
                # Axes of the file that a page does not have.
                self._leading = len(self.shape) - len(series[0].keyframe.shape)
                self._is_mapped = series[0].dataoffset is not None
        except SAM2KitError:
            raise
        except Exception as error:  # the library raises many classes for damaged files
            raise _unreadable(path, error) from error
        if _LOG.lines:
            logger.warning("{}: the TIFF reader reports: {}", path, visible_text(_LOG.lines[0]))
        self.axes = _resolve_axes(path, stored, self.shape, options.axes, num_frames)
        lengths = dict(zip(self.axes, self.shape, strict=True))
        self.num_frames = lengths.get("T", 1)
        self.size = lengths["Y"], lengths["X"]
        self._lengths = lengths
        page = self.shape[self._leading :]
        itemsize = self.dtype.itemsize
        one_frame = [n for axis, n in lengths.items() if axis != "T"]
        check_size(path, one_frame if self._is_mapped else page, itemsize, MAX_FRAME_BYTES)
        self._check_options(lengths)

    def _check_options(self, lengths: dict[str, int]) -> None:
        z, channels = self._options.z, self._options.channels
        if lengths.get("Z", 1) > 1:
            index = int(z) if z is not None and z.isdecimal() else None
            if z is None or (index is not None and index >= lengths["Z"]):
                raise DataError(
                    f"{self.path} has {lengths['T']} frames of {lengths['Z']} slices",
                    key="dataset.stack_z",
                    value=z,
                    expected=f"max, mean, or the index of a slice from 0 to {lengths['Z'] - 1}",
                    hint="use dataset.stack_z=max to project the slices to one per frame",
                )
        count = lengths.get("C", 1)
        if (channels is None and count > 3) or max(channels or (0,)) >= count:
            raise DataError(
                f"{self.path} has {count} channels",
                key="dataset.stack_channels",
                value=None if channels is None else list(channels),
                expected=f"up to 3 indices from 0 to {count - 1}",
                hint="choose one channel (grey) or several (red, green, blue), such as "
                "dataset.stack_channels=[0]",
            )

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_open": None}

    def close(self) -> None:
        """Close the file; the next frame opens it again."""
        if self._open is not None and self._open[0] == os.getpid():
            self._open[1].close()
        self._open = None

    def read(self, t: int) -> np.ndarray:
        """Read frame ``t`` as stored.

        Returns:
            ``[H,W]``, or ``[H,W,C]`` with up to 3 channels.

        Raises:
            DataError: the frame cannot be decoded.
        """
        try:
            return self._arrange(self._select(t))
        except SAM2KitError:
            raise
        except Exception as error:  # the library raises many classes for damaged files
            self.close()
            raise _unreadable(self.path, error, f", frame {t}") from error

    def _select(self, t: int) -> np.ndarray:
        """Return the pixels of frame ``t`` with the axes of the file, where T has length 1."""
        _, tiff, mapped = self._file()
        wanted: list[Any] = [slice(None)] * len(self.shape)
        choices = {"T": [t] if "T" in self._lengths else None, "C": self._options.channels}
        if "Z" in self._lengths and self._options.z and self._options.z.isdecimal():
            choices["Z"] = [int(self._options.z)]
        for axis, indices in choices.items():
            if indices is not None and axis in self.axes:
                wanted[self.axes.index(axis)] = list(indices)
        leading, inner = wanted[: self._leading], wanted[self._leading :]
        if mapped is not None:
            pixels = mapped
            leading, inner = wanted, []
        else:
            counts = self.shape[: self._leading]
            numbers = np.arange(int(np.prod(counts, dtype=int))).reshape(counts)
            for k, index in enumerate(leading):
                numbers = numbers[(slice(None),) * k + (index,)]
            pages = [_decode_page(tiff.series[0][n]) for n in numbers.reshape(-1)]
            pixels = np.stack(pages).reshape(*numbers.shape, *pages[0].shape)
            leading = [slice(None)] * self._leading
        for k, index in enumerate([*leading, *inner]):
            if not isinstance(index, slice):
                pixels = pixels[(slice(None),) * k + (index,)]
        return np.array(pixels)

    def _arrange(self, pixels: np.ndarray) -> np.ndarray:
        """Reduce the axes of the file to rows, columns and channels."""
        axes = self.axes
        if "T" in axes:
            pixels, axes = pixels.squeeze(axes.index("T")), axes.replace("T", "")
        if "Z" in axes:
            z = axes.index("Z")
            reduce = np.mean if self._options.z == "mean" else np.max
            reduced = reduce(pixels, axis=z)
            pixels, axes = reduced.astype(pixels.dtype), axes.replace("Z", "")
        if "S" in axes and "C" in axes:
            raise DataError(
                f"{self.path} has both channels and colours", hint="save it with one of them"
            )
        channel = next((axes.index(axis) for axis in "CS" if axis in axes), None)
        if channel is not None:
            pixels = np.moveaxis(pixels, channel, -1)
            axes = axes[:channel] + axes[channel + 1 :]
            # Drop the transparency of colours; channels have been selected before.
            pixels = pixels[..., 0] if pixels.shape[-1] == 1 else pixels[..., :3]
        return np.swapaxes(pixels, 0, 1) if axes == "XY" else pixels

    def _file(self) -> tuple[int, Any, Any]:
        # A forked process shares the file position of its parent, so it must open the file itself.
        if self._open is None or self._open[0] != os.getpid():
            tiff = open_tiff(self.path)
            mapped = tiff.series[0].asarray(out="memmap") if self._is_mapped else None
            self._open = os.getpid(), tiff, mapped
        return self._open


class _LibraryLog(logging.Handler):
    """Keep what tifffile logs about a file, instead of printing it without the name of the file."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines: deque[str] = deque(maxlen=4)

    def emit(self, record: logging.LogRecord) -> None:
        # Its lines begin with the object that it reads, such as <tifffile.TiffFile 'a.tif'>.
        self.lines.append(re.sub(r"^<[^>]*>\s*", "", record.getMessage()))


_LOG = _LibraryLog()


def open_tiff(path: Path) -> Any:
    """Open a file with tifffile; raises one of :data:`TIFF_ERRORS` if it is damaged."""
    import tifffile  # imported here: most datasets have no TIFF stack

    library_logger = logging.getLogger("tifffile")
    if _LOG not in library_logger.handlers:
        library_logger.addHandler(_LOG)
        library_logger.propagate = False
    codecs: Any = tifffile.tifffile.imagecodecs
    if codecs.__name__ != "imagecodecs":  # tifffile's own decoders ignore the expected size
        codecs.zlib_decode = partial(_decompress, zlib.decompressobj)
        codecs.lzma_decode = partial(_decompress, lzma.LZMADecompressor)
    try:
        return tifffile.TiffFile(path)
    except tifffile.TiffFileError as error:
        raise ValueError(str(error)) from error


def _check_parts(path: Path, series: Any) -> None:
    """Reject a stack of several files if one of them is in another folder.

    OME's metadata and the index of NDTiff name these files. A downloaded stack could name any TIFF
    file of the user.
    """
    folder = os.path.dirname(os.path.abspath(path))
    for part in {page.parent.filehandle.path for page in series._pages if page is not None}:
        if os.path.dirname(os.path.abspath(part)) != folder:
            raise DataError(
                f"{path}: its metadata",
                key="FileName",
                value=str(part),
                expected=f"a file in {folder}",
                hint="put all files of the stack into one folder, or save it as one file",
            )


def _decompress(make: Callable[[], Any], data: bytes, /, *, out: Any = None) -> bytes:
    """Decompress a part of a page up to its size: a megabyte could expand to a gigabyte."""
    decoder, limit = make(), out if isinstance(out, int) else MAX_FRAME_BYTES
    decoded: bytes = decoder.decompress(data, limit + 1)
    if len(decoded) <= limit and not decoder.eof:
        raise ValueError("its compressed pixels are incomplete")
    return decoded


def _decode_page(page: Any) -> np.ndarray:
    """Decode one page, with Pillow where tifffile would need further packages, such as for LZW."""
    if page is None:
        raise ValueError("a page is missing")
    try:
        return page.asarray()
    except ValueError as error:
        if "imagecodecs" not in str(error):
            raise
        with Image.open(page.parent.filehandle.path, formats=["TIFF"]) as image:
            image.seek(page.index)
            pixels = np.array(image)
        if pixels.shape != tuple(page.shape):
            raise
        return pixels.astype(page.dtype)


def _unreadable(path: Path, error: Exception, where: str = "") -> DataError:
    if isinstance(error, DataError):
        return error
    text = str(error) or type(error).__name__
    hint = "replace the file"
    if "imagecodecs" in text:
        hint = "install its decoder: pip install imagecodecs"
    return DataError(f"{path}{where} cannot be read as TIFF: {visible_text(text)}", hint=hint)


def _resolve_axes(
    path: Path,
    stored: str,
    shape: tuple[int, ...],
    axes: str | None,
    num_frames: int | None,
) -> str:
    """Return the letters of the axes, each of which is one of T, C, Z, Y, X and S.

    Args:
        path: the file, for logs and errors.
        stored: letters that tifffile read from the metadata; Q and I are unknown.
        shape: lengths of the axes.
        axes: letters that the user set. None: use ``stored``.
        num_frames: expected number of frames. None: unknown.
    """
    if axes is not None:
        axes = axes.upper()
        if len(axes) != len(shape):
            # The file leaves out axes of length 1, such as the C of TCYX.
            raise _unclear(path, shape, stored, axes)
        if set(axes) - set(AXES) or len(set(axes)) < len(axes) or not {"Y", "X"} <= set(axes):
            raise _unclear(path, shape, stored, axes)
    else:
        axes = stored
        unknown = [k for k, axis in enumerate(axes) if axis not in AXES]
        if len(unknown) > 1 or (unknown and "T" in axes):
            raise _unclear(path, shape, stored, None)
        if unknown:
            length = shape[unknown[0]]
            # 2 to 4 pages without metadata may be channels or colours as well as frames.
            if 2 <= length <= 4 and length != num_frames:
                raise _unclear(path, shape, stored, None)
            axes = axes[: unknown[0]] + "T" + axes[unknown[0] + 1 :]
            if num_frames is None and length > 1:
                logger.info("{}: {} pages without metadata, read as frames", path, length)
    if "T" not in axes and "Z" in axes:
        axes = axes.replace("Z", "T")
        if num_frames is None:
            logger.info(
                "{}: no time axis; {} slices along Z are read as frames",
                path,
                shape[axes.index("T")],
            )
    if len(set(axes)) < len(axes) or not {"Y", "X"} <= set(axes):
        raise _unclear(path, shape, stored, None)
    return axes


def _unclear(path: Path, shape: tuple[int, ...], stored: str, axes: str | None) -> DataError:
    letters = {2: "YX", 3: "TYX", 4: "TCYX", 5: "TZCYX"}.get(len(shape), "TYX")
    other = ", or CYX for channels" if len(shape) == 3 else ""
    return DataError(
        f"{path} has the shape {shape}, and its metadata name the axes "
        f"{stored.replace('Q', '?').replace('I', '?')}",
        key="dataset.stack_axes",
        value=axes,
        expected=f"one letter of T, C, Z, Y, X, S for each of its {len(shape)} axes",
        hint=f"for example {letters}{other}",
    )


class TiffSequence:
    """Read TIFF files of one frame each as one stack.

    Args:
        files: the files in order. None is a frame without a file.
        options: how the axes of each file are read.

    Attributes:
        num_frames, size: as for :class:`TiffStack`.

    Raises:
        DataError: the first file is damaged, or has several frames.
    """

    def __init__(
        self, files: Sequence[Path | None], options: StackOptions = DEFAULT_OPTIONS
    ) -> None:
        self._files, self._options = list(files), options
        self.num_frames = len(files)
        self.size = self._stack(next(t for t, path in enumerate(files) if path)).size

    def has(self, t: int) -> bool:
        """Return whether frame ``t`` has a file."""
        return self._files[t] is not None

    def _stack(self, t: int) -> TiffStack:
        path = self._files[t]
        assert path is not None
        stack = TiffStack(path, self._options, num_frames=1)
        if stack.num_frames != 1:
            raise DataError(
                f"{path} contains {stack.num_frames} frames, but it is one of {self.num_frames} "
                "files in a folder that are read as one frame each",
                hint="move stacks and single frames to different folders",
            )
        return stack

    def read(self, t: int) -> np.ndarray:
        """Read frame ``t`` as stored; see :meth:`TiffStack.read`."""
        stack = self._stack(t)
        try:
            return stack.read(0)
        finally:
            stack.close()

    def close(self) -> None:
        """Do nothing: no file stays open."""


class _Video(NamedTuple):
    """The files of one video: stacks, or files of one frame each."""

    frames: TiffStack | TiffSequence
    names: list[str] | None  # of frames that have files
    labels: TiffStack | TiffSequence | None
    label_path: Path | None


class TiffDataset(StackSource):
    """Read microscopy videos in TIFF files.

    A video is one file of several pages, ``ROOT/VIDEO.tif``, or a folder of files with one frame
    each, ``ROOT/VIDEO/*.tif`` in the natural order of their names. ``ROOT`` may itself be one such
    file or folder. The metadata of ImageJ, OME and tifffile name the axes. Without metadata the
    pages are frames; 2 to 4 pages could also be channels and are rejected. Slices along Z of a
    stack without time are frames, too. Frames are read one by one.

    Labels are integer images of the same size, in which the value of a pixel is its object number
    and 0 is the background. They are in ``VIDEO_labels.tif``, ``VIDEO_masks.tif`` (also
    ``_cp_masks``, ``_seg``, ``_gt``, ``_manual``, or ``mask_VIDEO.tif``) beside a stack, in
    ``seg.tif`` beside the only stack, or in a folder ``labels`` or ``masks`` under the name of
    the video, with or without such a suffix. For frames in separate files the
    labels are files named like the frames in ``VIDEO/labels`` or ``VIDEO_labels``, or with a suffix
    beside the frames; frames without a file are unannotated. In a stack of labels every page is
    annotated. ``VIDEO_labels.txt`` beside the labels names parents, as in the Cell Tracking
    Challenge.

    Args:
        root: the folder or file.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.
        masks_path: folder of the labels, or one file if there is one video. None (default): as
            above.
        rule: how frames of more than 8 bits are scaled.
        options: how the axes of the frames are read.
        strict: raise an error for a video that cannot be read. If False, it is left out.

    Raises:
        DataError: no TIFF files, ambiguous axes, or no readable video; with ``strict``
            also a damaged file, or labels that do not fit their frames.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        masks_path: str | Path | None = None,
        rule: IntensityRule = DEFAULT_RULE,
        options: StackOptions = DEFAULT_OPTIONS,
        strict: bool = False,
    ) -> None:
        super().__init__(root, rule, strict)
        self._options = options
        files = find_tiffs(self.root)
        if masks_path is not None:
            files = {name: f.with_labels(Path(masks_path), len(files)) for name, f in files.items()}
        self._first_label = self._find_first_label(files.values())
        self._videos = self.open_videos(files, split, self._open_video)
        self.has_masks = any(video.labels is not None for video in self._videos)
        self._recent: int | None = None
        self.report(path for entry in files.values() for path in entry.all_files())

    def _find_first_label(self, videos: Iterable[TiffFiles]) -> int:
        """Return the number that single label files give to the first frame of a stack."""
        folders, numbers = [], []
        for files in videos:
            if files.stack is None or files.labels is None or files.labels.is_file():
                continue
            try:
                count = TiffStack(files.stack, self._options).num_frames
            except DataError:  # raised again when the video is opened
                continue
            folders.append(files.labels)
            stems = (_last_number(tiff_stem(path.name)) for path in files.label_files())
            numbers.append(({n for n in stems if n is not None}, count))
        first = first_number(numbers)
        self._dropped.add_numbering(first, *folders)
        return first or 0

    def _open_video(self, files: TiffFiles) -> _Video:
        if files.stack is not None:
            frames: TiffStack | TiffSequence = TiffStack(files.stack, self._options)
            names = None
        else:
            names = [tiff_stem(path.name) for path in files.frames]
            if pair := interleaved(names):
                raise DataError(
                    f"{files.frames[0].parent}: {pair[0]} and {pair[1]} are channels or slices of "
                    "one frame, but files are read as one frame each",
                    hint="put the files of each channel or slice into a separate folder, or "
                    "save them as one stack with axes such as TCYX",
                )
            frames = TiffSequence(files.frames, self._options)
        labels = self._open_labels(files, frames, names)
        if labels is not None and labels.size != frames.size:
            raise DataError(
                f"{files.labels} has {labels.size[0]} rows and {labels.size[1]} columns, but the "
                f"frames of {files.stack or files.frames[0]} have {frames.size[0]} and "
                f"{frames.size[1]}",
                hint="export labels at the size of their frames",
            )
        return _Video(frames, names, labels, files.labels)

    def _open_labels(
        self, files: TiffFiles, frames: TiffStack | TiffSequence, names: list[str] | None
    ) -> TiffStack | TiffSequence | None:
        count, path = frames.num_frames, files.labels
        # A slice index is also valid for labels; a maximum of labels is not a label.
        z = self._options.z if (self._options.z or "").isdecimal() else None
        if path is None:
            return None
        if path.is_file():
            labels = TiffStack(path, StackOptions(z=z), num_frames=count)
            if labels.num_frames != count:
                raise DataError(
                    f"{path} contains {labels.num_frames} label images, but its video has {count} "
                    "frames",
                    hint="save one label image per frame, empty where no object is visible; or "
                    "save annotated frames as single files in a folder named labels",
                )
            return labels
        label_files = files.label_files()
        if names is None:
            # The frames of a stack have no names, but numbers.
            names = [f"{t + self._first_label:05d}" for t in range(count)]
        return TiffSequence(match_labels(label_files, names, path), StackOptions(z=z))

    def num_frames(self, i: int) -> int:
        return self._videos[i].frames.num_frames

    def frame_size(self, i: int) -> tuple[int, int]:
        return self._videos[i].frames.size

    def frame_name(self, i: int, t: int) -> str:
        names = self._videos[i].names
        return super().frame_name(i, t) if names is None else names[t]

    def raw_frame(self, i: int, t: int) -> np.ndarray:
        self.check_index(i, t)
        frames = self._video(i).frames
        pixels = frames.read(t)
        if pixels.shape[:2] != frames.size:
            raise DataError(
                f"video {visible_text(self.name(i))}: its frames differ in size, {frames.size} and "
                f"{pixels.shape[:2]}",
                hint="make all frames of a video the same size",
            )
        return pixels

    def read_labels(self, i: int, t: int) -> np.ndarray | None:
        labels = self._video(i).labels
        return labels.read(t) if labels is not None and self.is_annotated(i, t) else None

    def is_annotated(self, i: int, t: int) -> bool:
        labels = self._videos[i].labels
        return labels.has(t) if isinstance(labels, TiffSequence) else labels is not None

    def object_names(self, i: int) -> dict[int, ObjectId]:
        path = self._videos[i].label_path
        return {} if path is None else read_object_names(sidecar(path, ".json"))

    def parents(self, i: int) -> dict[ObjectId, ObjectId]:
        path = self._videos[i].label_path
        if path is None or not sidecar(path, ".txt").is_file():
            return {}
        names = self.object_names(i)
        tracks = read_tracks(sidecar(path, ".txt"))
        return {
            names.get(n, n): names.get(track.parent, track.parent)
            for n, track in tracks.items()
            if track.parent
        }

    def _video(self, i: int) -> _Video:
        """Return video ``i``, and close the files of the video that was read before."""
        if self._recent is not None and self._recent != i:
            previous = self._videos[self._recent]
            previous.frames.close()
            if previous.labels is not None:
                previous.labels.close()
        self._recent = i
        return self._videos[i]


def sidecar(labels: Path, ending: str) -> Path:
    """Return the file beside a stack or folder of labels that contains names or parents."""
    return labels.with_name(f"{tiff_stem(labels.name) if labels.suffix else labels.name}{ending}")


def tiff_stem(name: str) -> str:
    """Return a file name without its extension, which may have two parts: ``a.ome.tif``."""
    return re.sub(r"\.ome$", "", stem(name), flags=re.IGNORECASE)


class TiffFiles(NamedTuple):
    """The files of one video.

    Attributes:
        stack: file of all frames. None: the frames are in separate files.
        frames: files of one frame each, in order.
        labels: stack or folder of the labels. None: there are no labels.
    """

    stack: Path | None
    frames: list[Path]
    labels: Path | None

    @property
    def name(self) -> str:
        """Name of the file or folder of the video, without extension."""
        return tiff_stem(self.stack.name) if self.stack else self.frames[0].parent.name

    def with_labels(self, masks: Path, num_videos: int) -> TiffFiles:
        """Return the files with labels from ``masks_path``."""
        if masks.is_file() and num_videos > 1:
            raise DataError(
                f"{masks} is one file, but there are {num_videos} videos",
                key="dataset.masks_path",
                value=str(masks),
                hint="give a folder with one file or folder of labels per video",
            )
        if masks.is_file():
            return self._replace(labels=masks)
        labels = find_labels(masks, self.name)
        if labels is None and num_videos == 1 and list_folder(masks, TIFF_ENDINGS).files:
            labels = masks
        return self._replace(labels=labels)

    def label_files(self) -> list[Path]:
        """Return the label files of single frames."""
        assert self.labels is not None
        names = list_folder(self.labels, TIFF_ENDINGS).files
        if self.frames and self.labels == self.frames[0].parent:
            frames = {path.name for path in self.frames}
            names = [name for name in names if name not in frames and label_base(tiff_stem(name))]
        return [self.labels / name for name in sort_files(names, self.labels)]

    def all_files(self) -> list[Path]:
        """Return the files of the frames and of the labels."""
        files = [self.stack] if self.stack else list(self.frames)
        if self.labels is None:
            return files
        return [*files, *([self.labels] if self.labels.is_file() else self.label_files())]


def match_labels(files: list[Path], names: list[str], folder: Path) -> list[Path | None]:
    """Return the label file of each frame, or None.

    A label file has the name of its frame, with or without a label suffix. If no file has such a
    name, the last number in the names is compared.

    Args:
        files: label files.
        names: names of the frames without extension.
        folder: folder of the labels, for the error.

    Raises:
        DataError: a file belongs to no frame, or two belong to the same frame.
    """
    positions = {name: t for t, name in enumerate(names)}
    stems = [tiff_stem(path.name) for path in files]
    matches = [_first(positions, name, label_base(name)) for name in stems]
    if all(t is None for t in matches):
        numbers = {_last_number(name): t for t, name in enumerate(names)}
        matches = [numbers.get(_last_number(name)) for name in stems]
    slots: list[Path | None] = [None] * len(names)
    for path, t in zip(files, matches, strict=True):
        if t is None or slots[t] is not None:
            problem = "belongs to no frame" if t is None else f"and {slots[t]} share a frame"
            raise DataError(
                f"{path} {problem}", hint=f"name labels like their frames (first: {names[0]})"
            )
        slots[t] = path
    if not files:
        raise DataError(f"{folder} contains no TIFF labels", hint="add labels or remove the folder")
    return slots


def _first(positions: dict[str, int], *names: str | None) -> int | None:
    return next((positions[name] for name in names if name in positions), None)


def _last_number(name: str) -> int | None:
    numbers = re.findall(r"\d+", name)
    return int(numbers[-1]) if numbers and len(numbers[-1]) < 19 else None


def find_tiffs(root: Path) -> dict[str, TiffFiles]:
    """Find the videos in a folder and their labels.

    Returns:
        The files by names of videos, in natural order.

    Raises:
        DataError: there are no TIFF files, or two videos with the same name.
    """
    if root.is_file():
        name = tiff_stem(root.name)
        return {name: TiffFiles(root, [], find_labels(root.parent, name, stack=root.name))}
    listing = list_folder(root, TIFF_ENDINGS)
    inner = next((n for n in listing.folders if n.lower() in IMAGE_FOLDERS), None)
    label_folders = sorted(n for n in listing.folders if is_mask_folder(n))
    if inner is not None and not listing.files:
        # ROOT/images beside ROOT/labels.
        videos = find_tiffs(root / inner)
        folder_labels = {n: _labels_in_folders(root, label_folders, n) for n in videos}
        if set(videos) == {inner}:  # the frames of one video
            folder_labels[inner] = root / label_folders[0] if label_folders else None
        return {n: v._replace(labels=v.labels or folder_labels[n]) for n, v in videos.items()}
    videos = _videos_in(root, listing, label_folders)
    for folder in sorted(set(listing.folders) - set(label_folders), key=natural_key):
        if label_base(folder) in {*listing.folders, *map(tiff_stem, listing.files)}:
            continue  # VIDEO_labels beside VIDEO
        below = list_folder(root / folder, TIFF_ENDINGS)
        if not below.files:
            continue
        inside = _videos_in(
            root / folder, below, sorted(n for n in below.folders if is_mask_folder(n))
        )
        for name, files in inside.items():
            is_folder = files.stack is None
            labels = files.labels or (find_labels(root, folder) if is_folder else None)
            labels = labels or _labels_in_folders(root, label_folders, name)
            videos[folder if is_folder else f"{folder}/{name}"] = files._replace(labels=labels)
    if not videos:
        raise DataError(f"{root} contains no TIFF files", hint=f"expected {LAYOUTS}")
    return dict(sorted(videos.items(), key=lambda item: natural_key(item[0])))


def _videos_in(root: Path, listing: Listing, label_folders: list[str]) -> dict[str, TiffFiles]:
    """Return the videos of the files that are directly in a folder."""
    names = sort_files(listing.files, root)
    stems = {name: tiff_stem(name) for name in names}
    if len(set(stems.values())) < len(names):
        twice = next(n for n in names if list(stems.values()).count(stems[n]) > 1)
        raise DataError(f"{root}: two files have the name {stems[twice]!r}", hint="rename one")
    frames, bare = _without_labels(names, stems)
    if not frames:
        return {}
    if len(frames) > 1 and _is_sequence([root / name for name in frames]):
        paths = [root / name for name in frames]
        beside = root if any(label_base(stems[n]) for n in set(names) - set(frames)) else None
        labels = root / label_folders[0] if label_folders else beside
        return {root.resolve().name: TiffFiles(None, paths, labels)}
    return {
        stems[n]: TiffFiles(
            root / n,
            [],
            find_labels(root, stems[n], stack=n)
            or _labels_in_folders(root, label_folders, stems[n])
            or (root / bare[0] if len(bare) == len(frames) == 1 else None),
        )
        for n in frames
    }


def _without_labels(names: list[str], stems: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the files whose names are not those of labels, and those named ``seg`` or ``labels``.

    Labels without frames are in neither list, unless there is nothing else.
    """
    bases = {name: label_base(stems[name]) for name in names}
    keys = {key for name in names for key in image_keys(stems[name])}
    frames = [n for n in names if bases[n] not in keys]
    bare = [n for n in frames if is_mask_folder(stems[n])]
    clear = [n for n in frames if n not in bare and not has_label_suffix(stems[n])]
    return (clear, bare) if clear else (frames, [])


def _is_sequence(paths: list[Path]) -> bool:
    """Return whether files are frames of one video instead of stacks; ignoring damaged ones."""
    for path in paths:
        try:
            return TiffStack(path, num_frames=1).num_frames == 1
        except DataError as error:
            if (error.key or "").startswith("dataset."):
                raise
    return False


def _labels_in_folders(root: Path, folders: list[str], name: str) -> Path | None:
    matches = (find_labels(root / folder, name) for folder in folders)
    return next((path for path in matches if path is not None), None)


def find_labels(folder: Path, name: str, stack: str | None = None) -> Path | None:
    """Return the file or folder of labels of a video, or None.

    Args:
        folder: the folder to search.
        name: name of the video.
        stack: name of the file of its frames, which is not a label file. None (default): the frames
            are in another folder, so that labels may have the same name.
    """
    listing = list_folder(folder, TIFF_ENDINGS)
    entries = [*((tiff_stem(n), n) for n in listing.files if n != stack)]
    entries += [(n, n) for n in listing.folders]
    exact = [n for base, n in entries if base == name and stack is None]
    matches: list[str] = []
    for key in image_keys(name):
        matches = matches or [n for base, n in entries if label_base(base) == key]
    if stack is None and (folder / name).is_dir() and not is_mask_folder(folder.name):
        exact = [n for n in exact if n != name]  # the folder of the frames themselves
    candidates = exact + sorted(matches)
    if len(candidates) > 1:
        raise DataError(
            f"{folder}: {', '.join(candidates[:3])} may all be the labels of {name}",
            hint="keep one of them, or set dataset.masks_path",
        )
    if not candidates and stack is not None:
        folders = [n for n in listing.folders if is_mask_folder(n)]
        return _labels_in_folders(folder, sorted(folders), name)
    return folder / candidates[0] if candidates else None
