"""Read directories of frames with masks beside them: DAVIS, YouTube-VOS and similar layouts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from loguru import logger
from PIL import Image
from torchvision.io import decode_jpeg, read_file

from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.listing import (
    FRAME_ENDINGS,
    VIDEO_ENDINGS,
    Listing,
    list_folder,
    log_ignored,
    natural_key,
    read_split,
    sort_files,
    stem,
)
from sam2kit.data.sources.mask_files import MaskFiles
from sam2kit.utils.errors import DataError

LAYOUTS = (
    "ROOT/JPEGImages/VIDEO/00000.jpg with ROOT/Annotations/VIDEO/00000.png, either with a "
    "resolution such as 480p before VIDEO, or ROOT/VIDEO/00000.jpg without masks"
)


class MaskedFrames(VideoSource):
    """Base class for sources whose frames are image files with mask files beside them."""

    @abstractmethod
    def masks_of(self, i: int, t: int) -> tuple[MaskFiles | None, int]:
        """Return the mask files of video ``i`` and the index of frame ``t`` in them.

        The mask files are None if the source has no masks.
        """

    def mask_paths(self, i: int, t: int) -> list[Path]:
        files, k = self.masks_of(i, t)
        return [path for _, path in files.paths(k)] if files else []

    def annotated_frames(self, i: int) -> Iterator[int]:
        first_files, k = self.masks_of(i, 0)
        if first_files is None:
            return iter(())
        # Still images share one MaskFiles, in which the frame of an image is its position.
        end = k + self.num_frames(i)
        return iter([t - k for t in first_files.annotated() if k <= t < end])

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        path, (files, k) = self.frame_path(i, t), self.masks_of(i, t)
        if files is None or path is None or next(files.paths(k), None) is None:
            return None
        return files.read(k, str(path), image_size(path))

    def read_void(self, i: int, t: int) -> np.ndarray | None:
        files, k = self.masks_of(i, t)
        return files.read_void(k) if files else None


class VideoDataset(MaskedFrames):
    """Read a directory of videos, each a directory of frames, with masks beside them.

    The layouts are ``ROOT/JPEGImages/[RESOLUTION/]VIDEO/*.jpg`` with masks of the same names in
    ``ROOT/Annotations/[RESOLUTION/]VIDEO/`` (DAVIS, YouTube-VOS, MOSE, LVOS), and plain
    ``ROOT/VIDEO/*.jpg`` without masks. If one of the two directories is missing, the only directory
    with a longer name replaces it, such as ``JPEGImages_24fps``.

    Frames are jpg, jpeg, png, webp, tif or tiff files, in upper or lower case. They are sorted by
    name, with numbers compared by value (``2.jpg`` before ``10.jpg``); names need not be numbers,
    and numbers may have gaps. Hidden files, and files that are neither frames nor masks, are
    ignored and logged.

    Masks are read as described in :class:`~sam2kit.data.sources.mask_files.MaskFiles`: PNG files
    that hold object numbers, or one directory of PNG files per object. A frame without a mask file
    is unannotated.

    Directories are listed once, and no file is opened. Memory holds one string per video, so a
    million frames need no more than the length of their names.

    Args:
        root: the directory.
        split: the videos and their order: a text file with one name per line, or its name under
            ``ROOT/ImageSets`` without ``.txt``, such as ``2016/train``. Lines in the format of
            DAVIS 2016 (``/JPEGImages/480p/bear/00000.jpg ...``) are supported. None (default): all
            videos.
        resolution: the directory to use if there are several resolutions. None (default): 480p, if
            it exists.
        masks_path: the directory with one subdirectory of masks per video. None (default):
            ``ROOT/Annotations``.
        refused: called with the error of each unusable video, which is then skipped. None
            (default): the first such error is raised.

    Raises:
        DataError: no videos, an empty directory, a mask without a frame, two frames of one name, or
            a video of the split that does not exist; on reading, a file that cannot be read, a
            colour mask, or a mask whose size differs from its frame.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        resolution: str | None = None,
        masks_path: str | Path | None = None,
        refused: Callable[[DataError], None] | None = None,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder", hint=f"expected {LAYOUTS}")
        folder, listings, masks = self._find_folders(resolution)
        if masks_path is not None:
            masks = Path(masks_path)
            if (masks / folder.name).is_dir():  # of this resolution
                masks = masks / folder.name
        # With plain ROOT/VIDEO, lists and masks may be in directories beside the videos.
        no_videos = ("ImageSets", masks.name if masks and masks.parent == folder else "")
        videos = sorted((name for name in listings if name not in no_videos), key=natural_key)
        if not any(listings[name].files for name in videos):
            raise DataError(f"{self.root}: no videos found", hint=self._hint(folder))
        self._folder = folder
        self.names: list[str] = []
        self._frames: list[str] = []
        self._masks: list[MaskFiles | None] = []
        others: list[str] = []
        for name in videos if split is None else read_split(split, self.root, videos):
            try:
                others += self._add(name, listings[name], masks)
            except DataError as error:
                if refused is None:
                    raise
                refused(error)
        if not self.names:
            raise DataError(
                f"{self.root}: none of the videos can be used",
                hint="fix the errors of the single videos",
            )
        self.has_masks = any(files is not None for files in self._masks)
        if masks is not None and not self.has_masks:
            raise DataError(
                f"{masks} has no folder for any of the {len(self.names)} videos, such as "
                f"{self.names[0]!r}",
                hint=f"put the masks of a video into {masks / self.names[0]}",
            )
        log_ignored(self.root, others)

    def _add(self, name: str, listing: Listing, masks: Path | None) -> list[str]:
        """Add a video, and return the names in its directories that are neither frame nor mask."""
        files = sort_files(listing.files, self._folder / name)
        if not files:
            raise DataError(
                f"{self._folder / name} holds no frames ({', '.join(FRAME_ENDINGS)})",
                hint="remove the folder, or list the videos to use in dataset.split",
            )
        # An error of the masks must be raised before the video is added: it may be skipped.
        # A video without a folder of masks is unannotated, even if others have masks.
        mask_files = None
        if masks is not None and (masks / name).is_dir():
            mask_files = _masks_of(masks / name, files)
        self.names.append(name)
        self._frames.append("/".join(files))  # file names cannot contain a "/"
        self._masks.append(mask_files)
        return listing.others + (mask_files.others if mask_files else [])

    def _find_folders(self, resolution: str | None) -> tuple[Path, dict[str, Listing], Path | None]:
        """Find the frames and the masks.

        Returns:
            The directory of the videos, the listing of each video's directory, and the directory of
            the masks or None.
        """
        images, annotations = (_find_folder(self.root, n) for n in ("JPEGImages", "Annotations"))
        if images is None:
            if annotations is not None:
                raise DataError(
                    f"{self.root} has Annotations but no JPEGImages", hint=self._hint(self.root)
                )
            return self.root, _list_videos(self.root), None
        listings = _list_videos(images)
        # Directories of frames are videos; directories of directories only are resolutions.
        names = sorted(n for n, inner in listings.items() if inner.folders and not inner.files)
        flat = not names or any(inner.files for inner in listings.values())
        if flat and resolution is None:
            return images, listings, annotations
        if resolution is None and len(names) > 1 and "480p" in names:
            logger.info("{}: using 480p of the resolutions {}", images, names)
            resolution = "480p"
        chosen = resolution or (names[0] if len(names) == 1 else None)
        if chosen not in names:
            raise DataError(
                str(images),
                key="resolution",
                value=chosen,
                expected=f"one of {', '.join(names)}",
                hint="give one of these" if chosen else "there are several: keep one of them",
            )
        listings = _list_videos(images / chosen)
        if annotations is None:
            return images / chosen, listings, None
        if not (annotations / chosen).is_dir():
            raise DataError(
                f"{images / chosen} has no counterpart {annotations / chosen}",
                hint="put the masks there",
            )
        return images / chosen, listings, annotations / chosen

    def _hint(self, folder: Path) -> str:
        """Describe what is in the directory instead, and what to give."""
        inner = [p.parent.name for p in self.root.glob("*/JPEGImages*") if p.is_dir()]
        if inner:
            return f"it holds the data sets {', '.join(sorted(set(inner)))}: give one of them"
        if films := list_folder(self.root, VIDEO_ENDINGS).files:
            return f"it holds video files such as {min(films)}: set dataset.type=files"
        return f"expected {LAYOUTS}; {folder} holds {_summary(folder)}"

    def num_frames(self, i: int) -> int:
        return self._frames[i].count("/") + 1

    def frame_name(self, i: int, t: int) -> str:
        return stem(self._frames[i].split("/")[t])

    def frame_path(self, i: int, t: int) -> Path:
        """Return the file of frame ``t`` of video ``i``."""
        return self._folder / self.names[i] / self._frames[i].split("/")[t]

    def video_path(self, i: int) -> Path:
        """Return the folder of the frames of video ``i``."""
        return self._folder / self.names[i]

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_image(self.frame_path(i, t))

    def masks_of(self, i: int, t: int) -> tuple[MaskFiles | None, int]:
        return self._masks[i], t


def _masks_of(folder: Path, frames: list[str]) -> MaskFiles:
    """Index the masks of a video with the given frames."""
    indices = {stem(name): t for t, name in enumerate(frames)}
    hint = f"name masks like their frames (first frame: {frames[0]})"
    return MaskFiles(folder, len(frames), indices.get, hint)


def _find_folder(root: Path, name: str) -> Path | None:
    """Return the directory of this name, or else the only one named ``NAME_*``, or None."""
    if (root / name).is_dir():
        return root / name
    longer = sorted(p for p in root.glob(f"{name}_*") if p.is_dir())
    if len(longer) > 1:
        raise DataError(
            f"{root} has several candidates for {name}: {', '.join(p.name for p in longer)}",
            hint=f"rename the one to use to {name}",
        )
    return longer[0] if longer else None


def _list_videos(folder: Path) -> dict[str, Listing]:
    return {
        name: list_folder(folder / name, FRAME_ENDINGS)
        for name in list_folder(folder, FRAME_ENDINGS).folders
    }


def _summary(folder: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more or "nothing"


def list_frames(folder: Path) -> list[Path]:
    """List the frames of one video in the order of :class:`VideoDataset`.

    Raises:
        DataError: two files differ only in their extension.
    """
    return [folder / n for n in sort_files(list_folder(folder, FRAME_ENDINGS).files, folder)]


def read_image(path: Path) -> np.ndarray:
    """Read an image file as stored; an EXIF orientation is ignored, as masks do not have one.

    Returns:
        ``[H,W,3]`` uint8 RGB.

    Raises:
        DataError: the file is missing or damaged, has more than 8 bits per channel, or holds
            several images.
    """
    if path.suffix.lower() in (".jpg", ".jpeg") and (pixels := _read_jpeg(path)) is not None:
        return pixels
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(
                    f"{path} has more than 8 bits per channel", hint="convert it to 8 bits"
                )
            pages = getattr(image, "n_frames", 1)
            if image.format in ("TIFF", "WEBP") and pages > 1:
                raise DataError(f"{path} holds {pages} images", hint="save each in its own file")
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises for damaged files
        raise DataError(
            f"{path} cannot be read as an image: {error}", hint="replace the file"
        ) from error


def _read_jpeg(path: Path) -> np.ndarray | None:
    """Decode a JPEG of three channels to the pixels of Pillow, in a fifth of the time.

    Returns None for all other files, which Pillow must read.
    """
    try:
        decoded = decode_jpeg(read_file(str(path)))
    except (RuntimeError, ValueError):  # Pillow then reports whether it is missing or damaged
        return None
    return decoded.permute(1, 2, 0).contiguous().numpy() if len(decoded) == 3 else None


def image_size(path: Path) -> tuple[int, int]:
    """Read the rows and columns of an image from its header.

    Raises:
        DataError: the file is missing or damaged.
    """
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(
            f"{path} cannot be read as an image: {error}", hint="replace the file"
        ) from error
