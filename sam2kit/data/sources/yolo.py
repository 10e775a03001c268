"""Read the segmentation format of Ultralytics YOLO: one text file of polygons per image.

Format: https://docs.ultralytics.com/datasets/segment/ (rows, ``data.yaml``). With tracking,
``Results.save_txt`` of https://github.com/ultralytics/ultralytics appends the id of the track.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sam2kit.data.sources.base import ObjectId
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
    images to videos by folder and file name.

    *Masks.* A row is a class number and the corners of a polygon, in shares of the image's width
    and height. A row of five numbers is a box (filled, with a warning). An additional number at the
    end is the id of a track if it is a whole number, otherwise a confidence, which is ignored.

    *Annotated* is an image with a text file, also with an empty one. YOLO takes an image without a
    file as background; here it is unannotated, because a missing file may as well be missing work.

    *Objects* are tracks. Rows without a track have no id: see
    :class:`~sam2kit.data.sources.shapes.ShapeDataset`. Their label is the class name from
    ``data.yaml`` or ``classes.txt``, else the class number.

    Args:
        root: the folder.
        split, identity: as in :class:`~sam2kit.data.sources.shapes.ShapeDataset`.
        strict: True raises an error for rows that cannot be used.

    Raises:
        DataError: no images, no text files, or no usable row.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        identity: str = "auto",
        strict: bool = False,
    ) -> None:
        root, problems = Path(root), Problems(strict)
        names = _class_names(root)
        images = find_pairs(root)
        if not any(label for _, label in images):
            raise DataError(
                f"{root} holds no images with text files",
                hint="expected ROOT/images/a.jpg with ROOT/labels/a.txt, or both in one folder",
            )
        problems.read.update(label for _, label in images if label)
        _reject_orphans(problems)
        videos = []
        paths = [_video_path(path, root) for path, _ in images]
        for name, numbers in group_to_videos(paths, root).items():
            video = AnnotatedVideo(name, [images[n][0] for n in numbers])
            for t, n in enumerate(numbers):
                label = images[n][1]
                if label is not None:
                    video.annotated.add(t)
                    video.shapes[t] += _read_rows(label, names, problems)
            videos.append(video)
        super().__init__(root, videos, problems, split, identity)


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
    """Return the path of an image without the folder ``images``, which says nothing."""
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


def _read_rows(file: Path, names: dict[int, str], problems: Problems) -> list[Shape]:
    """Read the rows of a text file."""
    shapes: list[Shape] = []
    for n, line in enumerate(read_text(file, max_bytes=MAX_ROW_BYTES).splitlines(), 1):
        if not line.strip():
            continue
        where = f"{file}, line {n}"
        try:
            shape = _parse_row(line.split(), where, names, problems)
        except (ValueError, OverflowError) as fault:
            error = DataError(f"{where} cannot be read: {fault}", hint="export the labels again")
            problems.reject("damaged rows", error, where)
            continue
        shapes.append(shape)
    return shapes


def _parse_row(words: list[str], where: str, names: dict[int, str], problems: Problems) -> Shape:
    number = int(words[0])
    values = np.array(words[1:], np.float64)
    object_id: ObjectId | None = None
    # A class and corners make an odd number of words; one more is a track or a confidence.
    if len(words) % 2 == 0:
        if words[-1].isdecimal():
            object_id = int(words[-1])
        values = values[:-1]
    # A tolerance for corners that rounding has moved out of the image.
    if not ((values >= -0.1) & (values <= 1.1)).all():
        raise ValueError("corners must be shares of the width and height, from 0 to 1")
    label = names.get(number, str(number))
    if len(values) == 4:
        x, y, width, height = values.tolist()
        note_box(problems, where)
        corners = box_corners(x - width / 2, y - height / 2, x + width / 2, y + height / 2)
    elif len(values) >= 6:
        corners = values.reshape(-1, 2)
    else:
        raise ValueError("a polygon needs three points or more")
    return Polygon(corners, label, where, object_id, relative=True)
