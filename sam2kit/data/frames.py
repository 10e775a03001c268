"""Folders of frames with masks beside them, as DAVIS lays them out."""

from __future__ import annotations

import re
from collections import Counter
from difflib import get_close_matches
from pathlib import Path

import numpy as np
from loguru import logger
from PIL import Image

from sam2kit.data.source import ObjectId, VideoSource
from sam2kit.errors import DataError

FRAME_ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff")
LAYOUTS = (
    "ROOT/JPEGImages/VIDEO/00000.jpg with ROOT/Annotations/VIDEO/00000.png, either with a "
    "resolution such as 480p before VIDEO, or ROOT/VIDEO/00000.jpg without masks"
)
# In palette masks, and in grey ones beside other ids, 255 marks pixels that nobody decided on.
VOID = 255
# Grey values above this are shades of a picture or of a soft edge, not numbers of objects.
_LARGEST_GREY_ID = 64


class VideoDataset(VideoSource):
    """A directory of videos, each a folder of frames, with masks beside them in DAVIS layout.

    Understood are ``ROOT/JPEGImages/[RESOLUTION/]VIDEO/*.jpg`` with masks of the same names in
    ``ROOT/Annotations/[RESOLUTION/]VIDEO/*.png``, and plain ``ROOT/VIDEO/*.jpg`` without masks.
    Frames may be jpg, jpeg, png, webp, tif or tiff in any case; numbers in names sort by value
    (``2.jpg`` before ``10.jpg``); other files, and those whose names begin with a dot, are no
    frames. A frame without a mask file is one that nobody annotated.

    Masks:
        * palette PNG: the pixel is the object, 0 is background, 255 is void;
        * grey PNG of 0 and 255 only (and 1-bit PNG): one object, number 1;
        * grey PNG with values up to 64: the pixel is the object, 255 beside them is void.

    Void pixels belong to no object. Colour pictures are refused: colours are not object numbers.

    Args:
        root: the directory.
        split: which videos, in which order: a text file with a name on each line, or its name
            under ``ROOT/ImageSets`` without ``.txt``, such as ``2016/train``. Lines as in
            DAVIS 2016 (``/JPEGImages/480p/bear/00000.jpg ...``) are understood. None: all videos.
        resolution: which folder, where there are several; None takes 480p if it is among them.

    Raises:
        DataError: no videos, an empty folder, a mask without its frame, two frames of one name, a
            video of the split that does not exist; on reading, a file that cannot be read, a colour
            mask, a mask whose size is not its frame's.
    """

    def __init__(
        self, root: str | Path, split: str | None = None, resolution: str | None = None
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder; expected {LAYOUTS}")
        frames_root, masks_root = self._find_folders(resolution)
        folders = [p.name for p in _folders(frames_root) if p.name != "ImageSets"]
        found = sorted(folders, key=natural_key)
        if not any(list_frames(frames_root / name) for name in found):
            raise DataError(
                f"{self.root}: no videos found. Expected {LAYOUTS}. Found in {frames_root}: "
                f"{_listing(frames_root)}"
            )
        self.names = found if split is None else read_split(split, self.root, found)
        self._frames = [list_frames(frames_root / name) for name in self.names]
        for name, frames in zip(self.names, self._frames, strict=True):
            if not frames:
                raise DataError(
                    f"{frames_root / name} holds no frames ({', '.join(FRAME_ENDINGS)}); remove "
                    "the folder or list the videos to use in dataset.split"
                )
        self.has_masks = masks_root is not None
        self._masks: list[dict[str, Path]] = [
            self._list_masks(masks_root / name, frames) if masks_root else {}
            for name, frames in zip(self.names, self._frames, strict=True)
        ]

    def _find_folders(self, resolution: str | None) -> tuple[Path, Path | None]:
        """The folder of the videos' frames and that of their masks, if there are masks."""
        images, annotations = self.root / "JPEGImages", self.root / "Annotations"
        if not images.is_dir():
            if annotations.is_dir():
                raise DataError(
                    f"{self.root} has Annotations but no JPEGImages; expected {LAYOUTS}"
                )
            return self.root, None
        below = [p for p in _folders(images) if not list_frames(p) and _folders(p)]
        if not below and resolution is None:
            return images, annotations if annotations.is_dir() else None
        names = sorted(p.name for p in below)
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
        if not annotations.is_dir():
            return images / chosen, None
        if not (annotations / chosen).is_dir():
            raise DataError(
                f"{images / chosen} has no counterpart {annotations / chosen}; put the masks there"
            )
        return images / chosen, annotations / chosen

    def _list_masks(self, folder: Path, frames: list[Path]) -> dict[str, Path]:
        """Mask files by frame name."""
        if not folder.is_dir():
            raise DataError(
                f"{folder} is missing, and other videos have masks; add it, or leave "
                f"{folder.name!r} out of the split"
            )
        files = [p for p in _files(folder) if p.suffix.lower() == ".png"]
        if not files:
            raise DataError(f"{folder} holds no PNG masks; masks are PNG files named as the frames")
        stems = {p.stem for p in frames}
        orphans = sorted(p.name for p in files if p.stem not in stems)
        if orphans:
            raise DataError(
                f"{folder}: {len(orphans)} masks without a frame of that name, such as "
                f"{orphans[0]}; name masks as their frames (first frame: {frames[0].name})"
            )
        return {p.stem: p for p in files}

    def num_frames(self, i: int) -> int:
        return len(self._frames[i])

    def frame_name(self, i: int, t: int) -> str:
        return self._frames[i][t].stem

    def frame_path(self, i: int, t: int) -> Path:
        """The file of frame ``t`` of video ``i``."""
        return self._frames[i][t]

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_image(self._frames[i][t])

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        frame = self._frames[i][t]
        path = self._masks[i].get(frame.stem)
        if path is None:
            return None
        ids = read_id_mask(path)
        size = image_size(frame)
        if ids.shape != size:
            raise DataError(
                f"{path} has {ids.shape[0]} rows and {ids.shape[1]} columns, its frame {frame} "
                f"{size[0]} and {size[1]}; masks must have their frame's size"
            )
        return {n: ids == n for n in values_in(ids) if n != 0}

    def read_void(self, i: int, t: int) -> np.ndarray | None:
        path = self._masks[i].get(self._frames[i][t].stem)
        if path is None:
            return None
        mode, pixels = _read_pixels(path)
        # In grey masks of 0 and 255 alone the latter is the object.
        named = mode == "P" or (mode == "L" and bool(((pixels > 0) & (pixels < VOID)).any()))
        return pixels == VOID if named else None


def read_image(path: Path) -> np.ndarray:
    """``[H,W,3]`` uint8 RGB.

    Raises:
        DataError: missing, damaged, or of more than 8 bits.
    """
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise DataError(f"{path} has more than 8 bits a channel; convert it to 8 bits")
            return np.array(image.convert("RGB"))
    except (OSError, SyntaxError, ValueError) as error:  # what Pillow raises on damaged files
        raise DataError(f"{path} cannot be read as a picture: {error}; replace the file") from error


def image_size(path: Path) -> tuple[int, int]:
    """Rows and columns of a picture, from its header."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a picture: {error}; replace the file") from error


def read_id_mask(path: Path) -> np.ndarray:
    """``[H,W]`` uint8: the object at each pixel, 0 where there is none (or void).

    :class:`VideoDataset` says which files are understood.

    Raises:
        DataError: damaged, in colour, or a grey picture that is no mask.
    """
    mode, pixels = _read_pixels(path)
    if mode == "1":
        return pixels.astype(np.uint8)
    if mode not in ("P", "L"):
        raise DataError(
            f"{path} is a picture of mode {mode}; colours are not object numbers. Save the mask as "
            "a palette PNG (the pixel is the object's number) or as grey 0 and 255 for one object"
        )
    if mode == "L":
        values = values_in(pixels)
        if set(values) <= {0, VOID}:
            return (pixels == VOID).astype(np.uint8)
        shades = [v for v in values if _LARGEST_GREY_ID < v != VOID]
        if shades:
            raise DataError(
                f"{path} has grey values such as {shades[0]}: shades, not object numbers; use "
                f"0 and 255 for one object, or numbers up to {_LARGEST_GREY_ID}"
            )
    return np.where(pixels == VOID, 0, pixels).astype(np.uint8)


def values_in(pixels: np.ndarray) -> list[int]:
    """The values of a uint8 picture in order; ``np.unique`` sorts all pixels, which takes longer
    than reading the file."""
    return np.flatnonzero(np.bincount(pixels.ravel(), minlength=256)).tolist()


def _read_pixels(path: Path) -> tuple[str, np.ndarray]:
    try:
        with Image.open(path) as image:
            return image.mode, np.array(image)
    except (OSError, SyntaxError, ValueError) as error:
        raise DataError(f"{path} cannot be read as a mask: {error}; replace the file") from error


def list_frames(folder: Path) -> list[Path]:
    """The frames of one video in order.

    Raises:
        DataError: two files that differ only in their ending.
    """
    frames = [p for p in _files(folder) if p.suffix.lower() in FRAME_ENDINGS]
    twice = [stem for stem, count in Counter(p.stem for p in frames).items() if count > 1]
    if twice:
        raise DataError(
            f"{folder}: several frames are called {twice[0]!r} and differ only in their ending; "
            "keep one of them"
        )
    return sorted(frames, key=lambda p: natural_key(p.stem))


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """Sorts numbers within names by value: frame2 before frame10."""
    parts = re.split(r"(\d+)", name)
    key = [(0, int(p), p) if p.isdecimal() else (1, 0, p) for p in parts if p]
    return key


def read_split(split: str, root: Path, found: list[str]) -> list[str]:
    """The video names that a split lists, each once, in its order.

    Args:
        split: a text file, or its name under ``root/ImageSets`` without ``.txt``.
        root: the data set's directory.
        found: the videos that exist.

    Raises:
        DataError: no such file, an empty one, or a name that does not exist.
    """
    candidates = [Path(split), root / "ImageSets" / f"{split}.txt", root / "ImageSets" / split]
    path = next((p for p in candidates if p.is_file()), None)
    if path is None:
        known = sorted(p.relative_to(root / "ImageSets") for p in root.glob("ImageSets/**/*.txt"))
        raise DataError(
            f"split {split!r} is neither a text file nor a list under {root / 'ImageSets'}; "
            f"lists there: {[p.with_suffix('').as_posix() for p in known] or 'none'}"
        )
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read as a list of videos: {error}") from error
    names = dict.fromkeys(_video_of_line(line, found) for line in lines if line.strip())
    if not names:
        raise DataError(f"{path} lists no videos; write one name on each line")
    missing = [name for name in names if name not in found]
    if missing:
        close = get_close_matches(missing[0], found, 3)
        hint = f"did you mean {' or '.join(close)}?" if close else f"there are {found[:5]} ..."
        raise DataError(
            f"{path} lists {len(missing)} videos that {root} does not have, such as "
            f"{missing[0]!r}; {hint}"
        )
    return list(names)


def _video_of_line(line: str, found: list[str]) -> str:
    line = line.strip()
    if line in found or "/" not in line:
        return line
    first = Path(line.split()[0])  # DAVIS 2016: /JPEGImages/480p/bear/00000.jpg /Annotations/...
    return first.parent.name if first.suffix.lower() in FRAME_ENDINGS else first.name


def _files(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_file() and not p.name.startswith(".")]


def _folders(folder: Path) -> list[Path]:
    return [p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")]


def _listing(folder: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    return (
        ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
        or "nothing"
    )
