"""COCO JSON with videos: images that say which video they belong to, and where in it."""

from __future__ import annotations

import json
import math
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as mask_utils

from sam2kit.data.frames import image_size, read_image
from sam2kit.data.listing import natural_key, read_split
from sam2kit.data.source import ObjectId, VideoSource
from sam2kit.errors import DataError

_IDENTITIES = ("track_id", "instance_id")


class COCODataset(VideoSource):
    """Videos of a COCO JSON whose images have ``video_id`` and ``order_in_video``.

    *Videos* are named by ``video_id`` (number or text) and stand in natural order; their frames are
    in the order of ``order_in_video``, which may have gaps.

    *Files.* ``file_name``, or ``path`` where there is none, is looked for under the root; then,
    because such paths are often those of another computer, ever shorter tails of ``file_name`` and
    of ``path`` are; at last ``path`` itself as it stands. Two images that would share a file are an
    error, so a tail never matches the wrong video.

    *Objects.* An annotation's ``track_id`` or ``instance_id`` says which object it is, if the
    annotations have one (then all must). Else the category does: the objects of one category in
    one frame are merged into one. Several annotations of one object in one frame are merged too.
    Category ids may start at 0. ``iscrowd`` makes no difference.

    *Masks* are polygons, or run lengths compressed or not. A frame without annotations shows no
    object, and is known not to, unless the image has ``"annotated": false``: then nobody looked.

    Args:
        annotation_file: the JSON.
        root: where the files are; None: the JSON's folder.
        split: a text file with a video on each line, or its name under ``ROOT/ImageSets``.

    Raises:
        DataError: a damaged JSON, a missing key, an order given twice, an annotation of an unknown
            image, a file that is nowhere; on reading, run lengths that are damaged or not of the
            frame's size. The message names the file, the image or annotation, and the key.
    """

    def __init__(
        self, annotation_file: str | Path, root: str | Path | None = None, split: str | None = None
    ) -> None:
        self.file = Path(annotation_file)
        self.root = Path(root) if root is not None else self.file.parent
        if not self.root.is_dir():
            raise DataError(f"{self.root} (root of {self.file}) is not a folder")
        content = _load(self.file)
        videos = self._sort_images(content["images"])
        found = sorted(videos, key=natural_key)
        self.names = read_split(split, self.root, found) if split is not None else found
        self._images = [videos[name] for name in self.names]
        self._paths = self._find_files()
        self._annotations = self._sort_annotations(content["annotations"], content["images"])

    def _sort_images(self, images: list[Any]) -> dict[str, list[dict[str, Any]]]:
        """The images of each video in order."""
        by_video: dict[str, dict[Any, dict[str, Any]]] = defaultdict(dict)
        ids = set()
        for n, image in enumerate(images):
            where = f"{self.file}: image {image.get('id', f'number {n}')!r}"
            for key in ("id", "video_id", "order_in_video"):
                if image.get(key) is None:
                    raise DataError(f"{where} has no {key!r}; every image needs one")
            if not (image.get("file_name") or image.get("path")):
                raise DataError(f"{where} has neither 'file_name' nor 'path'; give one")
            if str(image["id"]) in ids:
                raise DataError(f"{where}: another image has the same 'id'; ids must be unique")
            ids.add(str(image["id"]))
            order = image["order_in_video"]
            number = isinstance(order, (int, float)) and not isinstance(order, bool)
            if not number or not math.isfinite(order):
                raise DataError(f"{where}: 'order_in_video' is {order!r}; it must be a number")
            video = by_video[str(image["video_id"])]
            if order in video:
                raise DataError(
                    f"{where}: 'order_in_video' {order} of video {image['video_id']!r} is taken by "
                    f"image {video[order]['id']!r}; number the frames of a video differently"
                )
            video[order] = image
        if not by_video:
            raise DataError(f"{self.file}: 'images' is empty; there is nothing to train on")
        return {name: [video[k] for k in sorted(video)] for name, video in by_video.items()}

    def _find_files(self) -> list[list[Path]]:
        owner: dict[Path, Any] = {}
        paths = []
        for images in self._images:
            paths.append([self._find_file(image) for image in images])
            for image, path in zip(images, paths[-1], strict=True):
                if path in owner:
                    raise DataError(
                        f"{self.file}: images {owner[path]!r} and {image['id']!r} would both be "
                        f"{path}; give each its own 'file_name' under {self.root}"
                    )
                owner[path] = image["id"]
        return paths

    def _find_file(self, image: dict[str, Any]) -> Path:
        stated = [str(image[k]).replace("\\", "/") for k in ("file_name", "path") if image.get(k)]
        tried = []
        for name in stated:
            parts = [p for p in name.split("/") if p not in ("", ".", "..")]
            tried += [self.root.joinpath(*parts[k:]) for k in range(len(parts))]
        tried += [Path(name) for name in stated if Path(name).is_absolute()]
        for path in tried:
            if path.is_file():
                return path
        raise DataError(
            f"{self.file}: the file of image {image['id']!r} is nowhere; tried "
            f"{', '.join(map(str, dict.fromkeys(tried)))}. Give the folder that its 'file_name' "
            "starts from as dataset.data_path"
        )

    def _sort_annotations(
        self, annotations: list[Any], images: list[Any]
    ) -> dict[str, list[tuple[ObjectId, dict[str, Any]]]]:
        """Object and annotation, by image id."""
        unlooked = {str(im["id"]): im.get("annotated") is False for im in images}
        identity = next((k for k in _IDENTITIES if any(k in a for a in annotations)), "category_id")
        by_image: dict[str, list[tuple[ObjectId, dict[str, Any]]]] = defaultdict(list)
        for n, annotation in enumerate(annotations):
            where = f"{self.file}: annotation {annotation.get('id', f'number {n}')!r}"
            for key in ("image_id", "segmentation", identity):
                if annotation.get(key) is None:
                    because = " (other annotations have it)" if key in _IDENTITIES else ""
                    raise DataError(f"{where} has no {key!r}{because}; every annotation needs one")
            image = str(annotation["image_id"])
            if image not in unlooked:
                raise DataError(f"{where}: 'image_id' {image!r} is not the id of any image")
            if unlooked[image]:
                raise DataError(
                    f"{where}: its image {image!r} says 'annotated': false; remove that"
                )
            by_image[image].append((_object_id(annotation[identity], where, identity), annotation))
        return by_image

    def num_frames(self, i: int) -> int:
        return len(self._images[i])

    def frame_name(self, i: int, t: int) -> str:
        return self._paths[i][t].stem

    def frame_path(self, i: int, t: int) -> Path:
        """The file of frame ``t`` of video ``i``."""
        return self._paths[i][t]

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_image(self._paths[i][t])

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        image = self._images[i][t]
        if image.get("annotated") is False:
            return None
        annotations = self._annotations.get(str(image["id"]), [])
        masks: dict[ObjectId, np.ndarray] = {}
        size = image_size(self._paths[i][t]) if annotations else (0, 0)
        for who, annotation in annotations:
            where = f"{self.file}: annotation {annotation.get('id')!r} (image {image['id']!r})"
            mask = decode(annotation["segmentation"], size, where)
            masks[who] = masks[who] | mask if who in masks else mask
        return masks


def decode(segmentation: Any, size: tuple[int, int], where: str) -> np.ndarray:
    """``[H,W]`` bool from COCO polygons or run lengths.

    Args:
        segmentation: a list of polygons ``[x0, y0, x1, y1, ...]``, or ``{"size": [H, W], "counts":
            ...}`` with a list of run lengths (down the columns) or COCO's compressed text.
        size: rows and columns of the frame.
        where: begins the message of an error.

    Raises:
        DataError: not of these forms, damaged, or not of the frame's size.
    """
    try:
        if isinstance(segmentation, list):
            if not segmentation or any(len(p) < 6 or len(p) % 2 for p in segmentation):
                raise ValueError("polygons need three points or more, as x0, y0, x1, y1, ...")
            return mask_utils.decode(
                mask_utils.merge(mask_utils.frPyObjects(segmentation, *size))
            ).astype(bool)
        stated, counts = tuple(segmentation["size"]), segmentation["counts"]
        if stated != size:
            raise ValueError(f"its size {list(stated)} is not the frame's {list(size)}")
        if not isinstance(counts, (list, str)):
            raise TypeError(f"its counts are {counts!r}, neither a list nor a text")
        lengths = counts if isinstance(counts, list) else run_lengths(counts)
        # pycocotools fills what the runs leave open with whatever the memory holds.
        if min(lengths, default=0) < 0 or sum(lengths) != size[0] * size[1]:
            raise ValueError(
                f"its runs must be 0 or more and add up to {size[0] * size[1]} pixels, not "
                f"{sum(lengths)}"
            )
        runs = mask_utils.frPyObjects({"size": list(size), "counts": lengths}, *size)
        return mask_utils.decode(runs).astype(bool)
    except KeyError as error:
        raise DataError(f"{where}: 'segmentation' has no {error}; export it again") from error
    except (ValueError, TypeError) as error:
        raise DataError(
            f"{where}: 'segmentation' cannot be used: {error}; export it again"
        ) from error


def run_lengths(text: str) -> list[int]:
    """The run lengths in COCO's compressed text.

    Each number is written in groups of five bits, lowest first, as characters from "0" on; bit 5
    says that another group follows, bit 4 of the last is the sign. From the fourth number on it is
    the difference from the number two places before (the format of pycocotools' ``maskApi.c``).

    Raises:
        ValueError: the text ends within a number or has other characters.
    """
    lengths: list[int] = []
    value, shift = 0, 0
    for character in text.encode():
        group = character - 48
        if not 0 <= group < 64:
            raise ValueError(f"its counts have the character {chr(character)!r}")
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        lengths.append(value + lengths[-2] if len(lengths) > 2 else value)
        value, shift = 0, 0
    if shift:
        raise ValueError("its counts end within a number")
    return lengths


def _load(path: Path) -> dict[str, list[Any]]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error}; check dataset.annotation_file") from error
    except ValueError as error:
        raise DataError(f"{path} is not a JSON file: {error}; export it again") from error
    for key in ("images", "annotations"):
        rows = content.get(key) if isinstance(content, dict) else None
        if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
            raise DataError(f"{path} has no list {key!r} of objects; is it a COCO JSON?")
    return content


def _object_id(value: Any, where: str, key: str) -> ObjectId:
    if isinstance(value, bool) or not isinstance(value, (int, str)):
        raise DataError(f"{where}: {key!r} is {value!r}; it must be a whole number or a text")
    return value
