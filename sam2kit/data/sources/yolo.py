"""Read the segmentation format of Ultralytics YOLO: one text file of polygons per image.

Format: https://docs.ultralytics.com/datasets/segment/ (rows, ``data.yaml``). ``Results.save_txt``
of https://github.com/ultralytics/ultralytics appends the confidence, the id of the track, or both.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from loguru import logger

from sam2kit.config.schema import YOLO_COLUMNS
from sam2kit.data.sources.base import NOTE, Remark
from sam2kit.data.sources.frame_names import group_to_videos
from sam2kit.data.sources.listing import FRAME_ENDINGS, list_folder, natural_key
from sam2kit.data.sources.shapes import (
    AnnotatedVideo,
    Polygon,
    Problems,
    Shape,
    ShapeDataset,
    box_corners,
    note_box,
)
from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import read_text, read_yaml

NAME_FILES = ("data.yaml", "data.yml", "dataset.yaml", "classes.txt", "obj.names")
MAX_ROW_BYTES = 1 << 24  # of one text file: a million polygon corners


class YOLODataset(ShapeDataset):
    """Read images with a text file of polygons each.

    Images are in ``ROOT/images`` or ``ROOT/images/SUBSET`` with text files in ``ROOT/labels`` of
    the same structure, in ``ROOT/SUBSET/images`` with ``ROOT/SUBSET/labels`` (Roboflow's export),
    or beside their text files. :func:`~sam2kit.data.sources.frame_names.group_frames` groups the
    images into videos by folder and file name.

    *Masks.* A row is a class number and the corners of a polygon, in shares of the image's width
    and height. A row of four coordinates is a box (filled, with a warning). Rows of predictions end
    with a confidence, a track id or both; which is decided once per dataset
    (:func:`decide_columns`) and logged. Confidences are ignored.

    *Annotation.* An image is annotated if it has a text file, even an empty one. YOLO treats an
    image without a file as background; here it is unannotated, because it may not have been
    reviewed.

    *Objects* are tracks. Rows without a track have no id: see
    :class:`~sam2kit.data.sources.shapes.ShapeDataset`. Their label is the class name from
    ``data.yaml`` or ``classes.txt``, otherwise the class number.

    Args:
        root: the folder.
        split, identity: as in :class:`~sam2kit.data.sources.shapes.ShapeDataset`.
        strict: raise an error for rows that cannot be used.
        columns: what follows the corners: ``none``, ``confidence``, ``track``,
            ``confidence_track``, or ``auto`` (default), which decides from the rows.

    Raises:
        DataError: no images, no text files, or no usable row.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        identity: str = "auto",
        strict: bool = False,
        columns: str = "auto",
    ) -> None:
        root, problems = Path(root), Problems(strict)
        names = _class_names(root)
        images = find_pairs(root)
        if not any(label for _, label in images):
            raise DataError(
                f"{root} contains no images with text files",
                hint="expected ROOT/images/a.jpg with ROOT/labels/a.txt, or both in one folder",
            )
        problems.read.update(label for _, label in images if label)
        _reject_orphans(problems)
        rows = {label: _read_rows(label, problems) for _, label in images if label is not None}
        self.columns, self._reason = _resolve_columns(columns, list(rows.values()), root)
        videos = []
        paths = [_video_path(path, root) for path, _ in images]
        for name, numbers in group_to_videos(paths, root).items():
            video = AnnotatedVideo(name, [images[n][0] for n in numbers])
            for t, n in enumerate(numbers):
                label = images[n][1]
                if label is not None:
                    video.annotated.add(t)
                    video.shapes[t] += _shapes(rows[label], self.columns, names, problems)
            videos.append(video)
        super().__init__(root, videos, problems, split, identity)

    @property
    def remarks(self) -> list[Remark]:
        decided = [Remark(NOTE, str(self.root), self._reason)] if self._reason else []
        return [*super().remarks, *decided]


def find_pairs(root: Path) -> list[tuple[Path, Path | None]]:
    """List the images with their text files, or None for an image without one."""
    pairs: list[tuple[Path, Path | None]] = []
    for folder in _image_folders(root):
        files = sorted(list_folder(folder, FRAME_ENDINGS).files, key=natural_key)
        labels = _label_folder(folder, root)
        texts = set(list_folder(labels, (".txt",)).files) if labels.is_dir() else set()
        for name in files:
            text = f"{name.rpartition('.')[0]}.txt"
            pairs.append((folder / name, labels / text if text in texts else None))
    return pairs


def _image_folders(root: Path) -> list[Path]:
    """List the folders with images: directly, or up to two levels deep; not those of labels."""
    folders = [root]
    for folder in folders:
        if len(folder.relative_to(root).parts) < 3:
            inner = sorted(list_folder(folder, ()).folders, key=natural_key)
            folders += [folder / name for name in inner if name != "labels"]
    return [folder for folder in folders if list_folder(folder, FRAME_ENDINGS).files]


def _label_folder(folder: Path, root: Path) -> Path:
    """Return the folder of the text files: ``images`` in the path becomes ``labels``."""
    parts = list(folder.relative_to(root).parts)
    if "images" in parts:
        parts[len(parts) - 1 - parts[::-1].index("images")] = "labels"
        return root.joinpath(*parts)
    if folder == root.resolve() or not parts:
        beside = root.parent / "labels" if root.name == "images" else root / "labels"
        return beside if beside.is_dir() else root
    return folder


def _reject_orphans(problems: Problems) -> None:
    """Count the text files with rows that belong to no image."""
    for folder in sorted({path.parent for path in problems.read}):
        for name in sorted(list_folder(folder, (".txt",)).files, key=natural_key):
            path = folder / name
            if path in problems.read or name in NAME_FILES:
                continue
            with path.open("rb") as file:
                words = file.read(1 << 12).split(b"\n")[0].split()
            if len(words) < 5 or not words[0].isdigit():
                continue
            error = DataError(f"{path} has no image of its name", hint="add the image")
            problems.reject("text files without an image", error, str(path), "frames")


def _video_path(path: Path, root: Path) -> str:
    """Return the path of an image without the folder ``images``, which all paths share."""
    parts = path.relative_to(root).parts
    return "/".join(part for part in parts[:-1] if part != "images") + "/" + parts[-1]


def _class_names(root: Path) -> dict[int, str]:
    """Read the class names from ``data.yaml`` or ``classes.txt``; empty if there is neither."""
    file = next((root / name for name in NAME_FILES if (root / name).is_file()), None)
    if file is None:
        return {}
    if file.suffix not in (".yaml", ".yml"):
        return dict(enumerate(line.strip() for line in read_text(file).splitlines()))
    content = read_yaml(file, error=DataError, interpolations=False)
    names = content.get("names") if isinstance(content, dict) else None
    if isinstance(names, list):
        return {n: str(name) for n, name in enumerate(names)}
    if isinstance(names, dict) and all(type(n) is int for n in names):
        return {n: str(name) for n, name in names.items()}
    raise DataError(
        str(file),
        key="names",
        value=names,
        expected="the names of the classes, as a list or by number",
        hint="write names: [cell, nucleus]",
    )


class Row(NamedTuple):
    """A row of a text file.

    Attributes:
        number: its class.
        values: ``[N]`` float64: the coordinates and what follows them.
        ends_whole: whether the last value is a whole number, as the id of a track is.
        where: its file and line.
    """

    number: int
    values: np.ndarray
    ends_whole: bool
    where: str


def decide_columns(files: Sequence[Sequence[Row]]) -> str:
    """Decide what follows the corners in the rows of a dataset.

    Coordinates come in pairs, so an odd number of values has one more: the id of a track if it is
    a whole number on all such rows, otherwise a confidence. An even number of values has two more
    if all such rows end with a share and a whole number that is unlikely to be a coordinate: ids
    are unique in a file, and coordinates of exactly 1 at the end of all rows are rare. Trackers
    omit the id of an object that they do not track, so both kinds may occur.

    Args:
        files: the rows of each text file.

    Returns:
        ``none``, ``confidence``, ``track`` or ``confidence_track``.
    """
    # Boxes have four coordinates; shorter rows are damaged.
    used = [[row for row in rows if len(row.values) > 4] for rows in files]
    odd = [[row for row in rows if len(row.values) % 2] for rows in used]
    even = [[row for row in rows if len(row.values) % 2 == 0] for rows in used]
    if _end_with_ids(odd):
        return "track"
    others_are_shares = all(0 <= row.values[-1] <= 1 for rows in odd for row in rows)
    follow_shares = all(0 <= row.values[-2] <= 1 for rows in even for row in rows)
    if others_are_shares and follow_shares and _end_with_ids(even):
        return "confidence_track"
    return "confidence" if any(odd) else "none"


def _end_with_ids(files: Sequence[Sequence[Row]]) -> bool:
    """Return whether the last values of rows are track ids; False without rows."""
    rows = [row for group in files for row in group]
    if not rows or not all(row.ends_whole for row in rows):
        return False
    if max(row.values[-1] for row in rows) > 1:
        return True
    # Only 0 and 1: the ids of Ultralytics begin at 1, and an id is unique on a frame.
    unique = all(len({row.values[-1] for row in group}) == len(group) for group in files)
    return unique and len(rows) > 1 and min(row.values[-1] for row in rows) == 1


def _resolve_columns(columns: str, files: Sequence[Sequence[Row]], root: Path) -> tuple[str, str]:
    """Return what follows the corners, and a sentence about it; empty if nothing does."""
    if columns not in YOLO_COLUMNS:
        raise DataError(
            key="dataset.yolo_columns",
            value=columns,
            expected=f"one of {', '.join(YOLO_COLUMNS)}",
            hint="auto decides from the rows",
        )
    resolved = decide_columns(files) if columns == "auto" else columns
    if resolved == "none":
        return resolved, ""
    what = resolved.replace("_", " and ").replace("track", "track id")
    count = sum(map(len, files))
    how = "set by dataset.yolo_columns"
    if columns == "auto":
        how = "derived from the number and the last of the values; dataset.yolo_columns sets it"
    reason = f"rows end with {what} after the corners ({count} rows; {how})"
    logger.info("{}: {}", root, reason)
    return resolved, reason


def _read_rows(file: Path, problems: Problems) -> list[Row]:
    """Read the rows of a text file."""
    rows: list[Row] = []
    for n, line in enumerate(read_text(file, max_bytes=MAX_ROW_BYTES).splitlines(), 1):
        if not (words := line.split()):
            continue
        where = f"{file}, line {n}"
        try:
            values = np.array(words[1:], np.float64)
            last = values[-1] if len(values) else np.nan
            # Tools write a coordinate on the edge as 1.000000, and an id as 1.
            is_whole = words[-1].isdecimal() or (last > 1 and last == np.floor(last))
            ends_whole = bool(is_whole and last < 2**53)
            rows.append(Row(int(words[0]), values, ends_whole, where))
        except (ValueError, OverflowError) as fault:
            _reject(problems, where, fault)
    return rows


def _reject(problems: Problems, where: str, fault: Exception) -> None:
    error = DataError(f"{where} cannot be read: {fault}", hint="export the labels again")
    problems.reject("damaged rows", error, where)


def _shapes(
    rows: Sequence[Row], columns: str, names: dict[int, str], problems: Problems
) -> list[Shape]:
    """Convert the rows of a text file to shapes."""
    shapes: list[Shape] = []
    for row in rows:
        try:
            shapes.append(_parse_row(row, columns, names, problems))
        except ValueError as fault:
            _reject(problems, row.where, fault)
    return shapes


def _parse_row(row: Row, columns: str, names: dict[int, str], problems: Problems) -> Shape:
    values, object_id, where = row.values, None, row.where
    is_odd = len(values) % 2 == 1
    if columns == "none" and is_odd:
        raise ValueError(
            "corners are pairs, but one value is left over; if it is a confidence or the id of a "
            "track, set dataset.yolo_columns"
        )
    # With both columns, a row without an id has one value after its corners.
    if columns in ("track", "confidence_track") and is_odd == (columns == "track"):
        if not row.ends_whole:
            raise ValueError(f"the id of its track must be a whole number, not {values[-1]:g}")
        object_id, values = int(values[-1]), values[:-1]
    if len(values) % 2:
        if not 0 <= values[-1] <= 1:
            raise ValueError(f"a confidence must be from 0 to 1, not {values[-1]:g}")
        values = values[:-1]
    # A tolerance for corners that rounding has moved out of the image.
    if not ((values >= -0.1) & (values <= 1.1)).all():
        raise ValueError("corners must be shares of the width and height, from 0 to 1")
    label = names.get(row.number, str(row.number))
    if len(values) == 4:
        x, y, width, height = values.tolist()
        note_box(problems, where)
        corners = box_corners(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    elif len(values) >= 6:
        corners = values.reshape(-1, 2)
    else:
        raise ValueError("a polygon needs three points or more")
    return Polygon(corners, label, where, object_id, relative=True)
