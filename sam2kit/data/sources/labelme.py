"""Read LabelMe: one JSON file per frame.

Format: https://github.com/wkentaro/labelme, ``labelme/_label_file.py`` (the fields of the file) and
``labelme/_utils/shape.py`` (the area of each ``shape_type``; a ``mask`` is a PNG in base64 whose
first pixel is at the first point).
"""

from __future__ import annotations

import base64
import math
import os
from collections import defaultdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from sam2kit.data.pictures import opened
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.listing import FRAME_ENDINGS, list_folder, natural_key, sort_files, stem
from sam2kit.data.sources.shapes import (
    AnnotatedVideo,
    Patch,
    Polygon,
    Problems,
    Shape,
    ShapeDataset,
    box_corners,
    ellipse_corners,
    note_box,
)
from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import read_json


class LabelMeDataset(ShapeDataset):
    """Read folders of frames with a LabelMe JSON file beside each annotated one.

    Each folder with JSON files is one video, of all image files in it: ``ROOT/VIDEO/00000.jpg`` and
    ``ROOT/VIDEO/00000.json``, or both directly in ``ROOT``. JSON files in a separate folder
    (``imagePath`` is ``../frames/00000.jpg``) are used too, if ``ROOT`` contains both folders. A
    JSON file belongs to the image that ``imagePath`` names, else to the image of its own name.

    *Masks* are shapes of type polygon, mask, circle, oriented_rectangle and rectangle (filled, with
    a warning). Points and lines are left out.

    *Annotation.* A frame is annotated if it has a JSON file, even one without shapes.

    *Objects.* ``group_id`` is the object; if one number has several labels, the object is
    ``LABEL-NUMBER``. Shapes without it have no id: see
    :class:`~sam2kit.data.sources.shapes.ShapeDataset`.

    Args:
        root: the folder.
        split, identity: as in :class:`~sam2kit.data.sources.shapes.ShapeDataset`.
        strict: raise an error for shapes and files that cannot be used.

    Raises:
        DataError: no JSON files of LabelMe, no usable shape, or the images are outside ``ROOT``.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        identity: str = "auto",
        strict: bool = False,
    ) -> None:
        root, problems = Path(root), Problems(strict)
        videos = []
        for folder in _folders(root):
            videos += _read_folder(folder, root, problems)
        if not problems.read:
            raise DataError(
                f"{root} contains no JSON files of LabelMe",
                hint="expected FRAME.json beside FRAME.jpg, in the folder or in one per video",
            )
        super().__init__(root, videos, problems, split, identity)


def is_labelme(content: Any) -> bool:
    """Return whether a JSON file has the content of a LabelMe file."""
    return isinstance(content, dict) and isinstance(content.get("shapes"), list)


def _folders(root: Path) -> list[Path]:
    """List the folders with JSON files, down to two levels."""
    candidates = [root]
    for folder in candidates:
        if len(folder.relative_to(root).parts) < 2:
            inner = sorted(list_folder(folder, ()).folders, key=natural_key)
            candidates += [folder / name for name in inner]
    return [folder for folder in candidates if list_folder(folder, (".json",)).files]


def _read_folder(folder: Path, root: Path, problems: Problems) -> list[AnnotatedVideo]:
    """Read the JSON files of one folder; the result is empty if none of them is LabelMe's."""
    documents = []
    for name in sorted(list_folder(folder, (".json",)).files, key=natural_key):
        content = read_json(folder / name, hint="save it in LabelMe again")
        if is_labelme(content):
            documents.append((folder / name, content))
            problems.read.add(folder / name)
    if not documents:
        return []
    frames = _frames(folder, root, *documents[0])
    if not frames:
        error = DataError(
            f"{documents[0][0]}: its image {documents[0][1].get('imagePath')!r} does not exist",
            hint="put the images beside the JSON files",
        )
        for file, _ in documents:
            problems.reject("JSON files without an image", error, str(file), "frames")
        return []
    video = AnnotatedVideo(frames[0].parent.resolve().name, frames)
    by_name = {path.name: t for t, path in enumerate(frames)}
    by_stem = {stem(path.name): t for t, path in enumerate(frames)}
    for file, content in documents:
        name = str(content.get("imagePath") or "").replace("\\", "/").rpartition("/")[2]
        t = by_name.get(name, by_stem.get(stem(name), by_stem.get(file.stem)))
        if t is None:
            error = DataError(f"{file}: its image {name!r} does not exist", hint="add the image")
            problems.reject("JSON files without an image", error, str(file), "frames")
            continue
        video.annotated.add(t)
        size = _size(content)
        for n, row in enumerate(content["shapes"]):
            where = f"{file}: shapes[{n}]"
            try:
                shape = _shape(row, where, size, problems)
            except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as fault:
                error = DataError(
                    f"{where} cannot be read: {type(fault).__name__} {fault}", hint="draw it again"
                )
                problems.reject("damaged shapes", error, where)
                continue
            if shape is not None:
                video.shapes[t].append(shape)
    _separate_labels(video)
    return [video]


def _frames(folder: Path, root: Path, file: Path, content: dict[str, Any]) -> list[Path]:
    """Return the images of a video: those beside the JSON files, else beside the first image.

    Args:
        folder: the folder of the JSON files.
        root: the dataset.
        file, content: the first JSON file.

    Raises:
        DataError: the first image is in a folder outside of the dataset. A downloaded file could
            otherwise name any images of the user.
    """
    candidates = [folder, *(folder.parent / n for n in ("images", "frames", "JPEGImages"))]
    image = str(content.get("imagePath") or "").replace("\\", "/")
    is_outside = False
    if image and "\0" not in image and not image.startswith("/"):
        # The shortest form of the path, so that a link before ".." does not lead elsewhere.
        named = Path(os.path.abspath(folder / image)).parent
        is_outside = not named.is_relative_to(os.path.abspath(root))
        if not is_outside:
            candidates.insert(1, named)
    for candidate in candidates:
        if candidate.is_dir() and (files := list_folder(candidate, FRAME_ENDINGS).files):
            return [candidate / name for name in sort_files(files, candidate)]
    if is_outside:
        raise DataError(
            str(file),
            key="imagePath",
            value=content["imagePath"],
            expected=f"an image in {root}",
            hint="put the images beside the JSON files, or open the folder that contains both",
        )
    return []


def _size(content: dict[str, Any]) -> tuple[int, int] | None:
    height, width = content.get("imageHeight"), content.get("imageWidth")
    return (height, width) if type(height) is int and type(width) is int else None


def _shape(
    row: dict[str, Any], where: str, size: tuple[int, int] | None, problems: Problems
) -> Shape | None:
    """Convert a shape; return None, and count it, if it is not a mask."""
    group = row.get("group_id")
    object_id: ObjectId | None = group if type(group) in (int, str) else None
    about = (str(row.get("label") or "object"), where, object_id, size)
    kind, points = row.get("shape_type") or "polygon", np.array(row["points"], np.float64)
    if points.ndim != 2 or points.shape[1] != 2 or not np.isfinite(points).all():
        raise ValueError("'points' must be a list of x, y")
    if kind == "mask":
        left, top = np.round(points[0]).astype(int).tolist()
        read = partial(_decode_png, str(row["mask"]), f"{where}: its mask")
        return Patch(read, left, top, *about)
    if kind in ("polygon", "oriented_rectangle"):
        if len(points) < 3:
            raise ValueError("a polygon needs three points or more")
        return Polygon(points, *about)
    if kind == "circle":
        (x, y), (px, py) = points.tolist()
        radius = math.hypot(px - x, py - y)
        return Polygon(ellipse_corners(x, y, radius, radius), *about)
    if kind == "rectangle":
        (x0, y0), (x1, y1) = points.min(0).tolist(), points.max(0).tolist()
        note_box(problems, where)
        return Polygon(box_corners(x0, y0, x1, y1), *about)
    error = DataError(f"{where} is a {kind}, not a mask", hint="draw a polygon")
    problems.reject("points and lines", error, where)
    return None


def _decode_png(text: str, where: str) -> np.ndarray:
    """Decode a PNG in base64 to ``[h,w]`` bool."""
    with opened(base64.b64decode(text, validate=True), "a PNG", where) as image:
        pixels = np.array(image.convert("L") if image.mode not in ("1", "L", "P") else image)
    return pixels.astype(bool)


def _separate_labels(video: AnnotatedVideo) -> None:
    """Add the label to the ids of groups whose number occurs with several labels."""
    labels: defaultdict[ObjectId, set[str]] = defaultdict(set)
    shapes = [shape for row in video.shapes.values() for shape in row]
    for shape in shapes:
        if shape.object_id is not None:
            labels[shape.object_id].add(shape.label)
    for shape in shapes:
        if shape.object_id is not None and len(labels[shape.object_id]) > 1:
            shape.object_id = f"{shape.label}-{shape.object_id}"
