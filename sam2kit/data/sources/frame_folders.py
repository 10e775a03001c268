"""Folders of frames with masks beside them, as DAVIS and its kin lay them out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
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
    in_order,
    list_folder,
    natural_key,
    read_split,
    stem,
    tell_others,
)
from sam2kit.data.sources.mask_files import MaskFiles
from sam2kit.utils.errors import DataError

LAYOUTS = (
    "ROOT/JPEGImages/VIDEO/00000.jpg with ROOT/Annotations/VIDEO/00000.png, either with a "
    "resolution such as 480p before VIDEO, or ROOT/VIDEO/00000.jpg without masks"
)


class MaskedFrames(VideoSource):
    """Read the masks of frames that are picture files, with files of masks beside them."""

    @abstractmethod
    def masks_of(self, i: int, t: int) -> tuple[MaskFiles | None, int]:
        """The mask files of video ``i``, if there are any, and the number of frame ``t`` there."""

    def mask_paths(self, i: int, t: int) -> list[Path]:
        files, k = self.masks_of(i, t)
        return [path for _, path in files.paths(k)] if files else []

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        path, (files, k) = self.frame_path(i, t), self.masks_of(i, t)
        if files is None or path is None or next(files.paths(k), None) is None:
            return None
        return files.read(k, str(path), image_size(path))

    def read_void(self, i: int, t: int) -> np.ndarray | None:
        files, k = self.masks_of(i, t)
        return files.read_void(k) if files else None


class VideoDataset(MaskedFrames):
    """A directory of videos, each a folder of frames, with masks beside them.

    Understood are ``ROOT/JPEGImages/[RESOLUTION/]VIDEO/*.jpg`` with masks of the same names in
    ``ROOT/Annotations/[RESOLUTION/]VIDEO/`` (DAVIS, YouTube-VOS, MOSE, LVOS; where there is no such
    folder, the only one whose name goes on, as in ``JPEGImages_24fps``), and plain
    ``ROOT/VIDEO/*.jpg`` without masks. Frames may be jpg, jpeg, png, webp, tif or tiff in any case.
    Names need not be numbers, and numbers may have gaps: frames stand in the order of their names,
    numbers within them by value (``2.jpg`` before ``10.jpg``). What is neither frame nor mask, and
    names that begin with a dot, are left out, which is logged.

    Masks are those of :class:`~sam2kit.data.sources.mask_files.MaskFiles`: PNG files that hold
    object numbers, or a folder of PNG files for each object. A frame without a mask file is one
    that nobody annotated.

    Folders are listed once and no file is opened. What stays in memory is a text for each video,
    so that a million frames take no more than their names do.

    Args:
        root: the directory.
        split: which videos, in which order: a text file with a name on each line, or its name
            under ``ROOT/ImageSets`` without ``.txt``, such as ``2016/train``. Lines as in
            DAVIS 2016 (``/JPEGImages/480p/bear/00000.jpg ...``) are understood. None: all videos.
        resolution: which folder, where there are several; None takes 480p if it is among them.
        masks_path: the folder in which each video's masks have a folder, where it is not
            ``ROOT/Annotations``.
        refused: is told of each video that cannot be used, which is then left out; None: the first
            one is an error.

    Raises:
        DataError: no videos, an empty folder, a mask without its frame, two frames of one name, a
            video of the split that does not exist; on reading, a file that cannot be read, a colour
            mask, a mask whose size is not its frame's.
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
            raise DataError(f"{self.root} is not a folder; expected {LAYOUTS}")
        folder, listings, masks = self._find_folders(resolution)
        if masks_path is not None:
            masks = Path(masks_path)
            if (masks / folder.name).is_dir():  # of this resolution
                masks = masks / folder.name
        no_videos = ("ImageSets", masks.name if masks and masks.parent == folder else "")
        found = sorted((name for name in listings if name not in no_videos), key=natural_key)
        if not any(listings[name].files for name in found):
            raise DataError(f"{self.root}: no videos found. {self._hint(folder)}")
        self._folder = folder
        self.names: list[str] = []
        self._frames: list[str] = []
        self._masks: list[MaskFiles] = []
        self.has_masks = masks is not None
        others: list[str] = []
        for name in found if split is None else read_split(split, self.root, found):
            try:
                others += self._add(name, listings[name], masks)
            except DataError as error:
                if refused is None:
                    raise
                refused(error)
        if not self.names:
            raise DataError(f"{self.root}: none of its videos can be used")
        tell_others(self.root, others)

    def _add(self, name: str, listing: Listing, masks: Path | None) -> list[str]:
        """Take a video in; the names in its folders that are no part of it."""
        files = in_order(listing.files, self._folder / name)
        if not files:
            raise DataError(
                f"{self._folder / name} holds no frames ({', '.join(FRAME_ENDINGS)}); remove "
                "the folder or list the videos to use in dataset.split"
            )
        own = [] if masks is None else [_masks_of(masks / name, files)]
        self.names.append(name)
        self._frames.append("/".join(files))  # no name of a file holds a "/"
        self._masks += own
        return listing.others + [other for files in own for other in files.others]

    def _find_folders(self, resolution: str | None) -> tuple[Path, dict[str, Listing], Path | None]:
        """The folder of the videos' frames, what each video's folder holds, the masks' folder."""
        images, annotations = (_folder_called(self.root, n) for n in ("JPEGImages", "Annotations"))
        if images is None:
            if annotations is not None:
                raise DataError(
                    f"{self.root} has Annotations but no JPEGImages. {self._hint(self.root)}"
                )
            return self.root, _list_videos(self.root), None
        listings = _list_videos(images)
        names = sorted(n for n, found in listings.items() if found.folders and not found.files)
        flat = not names or any(found.files for found in listings.values())
        if flat and resolution is None:
            return images, listings, annotations
        if resolution is None and len(names) > 1 and "480p" in names:
            logger.info("{}: of the resolutions {} 480p is used", images, names)
            resolution = "480p"
        chosen = resolution or (names[0] if len(names) == 1 else None)
        if chosen not in names:
            raise DataError(
                f"{images}: resolution {chosen!r} asked for, found {names}; name one of these"
                if chosen
                else f"{images}: several resolutions, {names}; keep one of them"
            )
        listings = _list_videos(images / chosen)
        if annotations is None:
            return images / chosen, listings, None
        if not (annotations / chosen).is_dir():
            raise DataError(
                f"{images / chosen} has no counterpart {annotations / chosen}; put the masks there"
            )
        return images / chosen, listings, annotations / chosen

    def _hint(self, folder: Path) -> str:
        """What lies there instead, and what to name."""
        inner = [p.parent.name for p in self.root.glob("*/JPEGImages*") if p.is_dir()]
        if inner:
            return f"It holds the data sets {sorted(set(inner))}; name one of these folders"
        if films := list_folder(self.root, VIDEO_ENDINGS).files:
            return f"It holds video files such as {min(films)}: give dataset.type=files"
        return f"Expected {LAYOUTS}. Found in {folder}: {_summary(folder)}"

    def num_frames(self, i: int) -> int:
        return self._frames[i].count("/") + 1

    def frame_name(self, i: int, t: int) -> str:
        return stem(self._frames[i].split("/")[t])

    def frame_path(self, i: int, t: int) -> Path:
        """The file of frame ``t`` of video ``i``."""
        return self._folder / self.names[i] / self._frames[i].split("/")[t]

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_image(self.frame_path(i, t))

    def masks_of(self, i: int, t: int) -> tuple[MaskFiles | None, int]:
        return self._masks[i] if self.has_masks else None, t


def _masks_of(folder: Path, frames: list[str]) -> MaskFiles:
    """The masks of the video that has these frames."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing, and other videos have masks; add it, or leave "
            f"{folder.name!r} out of the split"
        )
    place = {stem(name): t for t, name in enumerate(frames)}
    expected = f"name masks as their frames (first frame: {frames[0]})"
    return MaskFiles(folder, len(frames), place.get, expected)


def _folder_called(root: Path, name: str) -> Path | None:
    """The folder of this name, else the only one whose name begins so."""
    if (root / name).is_dir():
        return root / name
    longer = sorted(p for p in root.glob(f"{name}_*") if p.is_dir())
    if len(longer) > 1:
        raise DataError(f"{root} has {[p.name for p in longer]}; rename the one to use to {name}")
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
    """The frames of one video in order, as :class:`VideoDataset` orders them.

    Raises:
        DataError: two files that differ only in their ending.
    """
    return [folder / n for n in in_order(list_folder(folder, FRAME_ENDINGS).files, folder)]


def read_image(path: Path) -> np.ndarray:
    """``[H,W,3]`` uint8 RGB, as stored: a note in the file that it is to be turned is not heeded.

    Raises:
        DataError: missing, damaged, of more than 8 bits, or several pictures in one file.
    """
    if path.suffix.lower() in (".jpg", ".jpeg") and (pixels := _read_jpeg(path)) is not None:
        return pixels
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{path} has more than 8 bits a channel; convert it to 8 bits")
            pictures = getattr(image, "n_frames", 1)
            if image.format in ("TIFF", "WEBP") and pictures > 1:
                raise DataError(
                    f"{path} holds {pictures} pictures; write each to a file of its own"
                )
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
        raise DataError(f"{path} cannot be read as a picture: {error}; replace the file") from error


def _read_jpeg(path: Path) -> np.ndarray | None:
    """What Pillow makes of a JPEG of three colours, in a fifth of its time; None: ask Pillow."""
    try:
        decoded = decode_jpeg(read_file(str(path)))
    except (RuntimeError, ValueError):  # missing, damaged, no JPEG: Pillow says which
        return None
    return decoded.permute(1, 2, 0).contiguous().numpy() if len(decoded) == 3 else None


def image_size(path: Path) -> tuple[int, int]:
    """Rows and columns of a picture, from its header."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}; replace the file") from error
