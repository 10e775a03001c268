"""Write masks as palette PNG in DAVIS layout, as SA-V JSON per video, or as one COCO JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sam2kit.data.rle import encode_mask
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.mask_files import OBJECTS_FILE
from sam2kit.data.sources.mask_values import VOID, davis_palette
from sam2kit.utils.errors import DataError
from sam2kit.utils.files import atomic_write, errors_name, write_text

LARGEST_NUMBER = 65535  # of a 16-bit PNG
COCO_CATEGORIES = [{"id": 1, "name": "object"}]


class MaskWriter:
    """Write the masks of one video: PNG frame by frame, SA-V JSON at the end.

    Up to 254 objects are written as palette PNG, where 255 is void, and more objects as 16-bit grey
    PNG. If all object ids are integers that a pixel can store (1 to 254, or to 65,535 with 16
    bits), they are the pixel values. Otherwise the objects are numbered from 1, and
    ``objects.json`` in the folder maps the numbers to the ids. A PNG has one object per pixel:
    where masks overlap, the highest logit wins, and the first object if logits are equal. The JSON
    keeps overlapping masks complete.

    Args:
        folder: folder of the PNG files, created if it does not exist. None: no PNG files.
        video: name of the video.
        object_ids: the objects, in the order of the output.

    Raises:
        DataError: more than 65,535 objects, and PNG files are to be written.
    """

    def __init__(
        self, folder: str | Path | None, video: str, object_ids: Sequence[ObjectId]
    ) -> None:
        folder = None if folder is None else Path(folder)
        self.folder, self.video, self.object_ids = folder, video, list(object_ids)
        self._frames: list[str] = []
        self._runs: list[list[dict[str, Any]]] = []
        self.wide = len(self.object_ids) >= VOID
        limit = LARGEST_NUMBER + 1 if self.wide else VOID
        ids_fit = all(isinstance(i, int) and 0 < i < limit for i in self.object_ids)
        self._numbers = [int(i) if ids_fit else n + 1 for n, i in enumerate(self.object_ids)]
        if folder is None:
            return
        if len(self.object_ids) > LARGEST_NUMBER:
            raise DataError(
                f"{video} has {len(self.object_ids)} objects, but a 16-bit PNG stores up to "
                f"{LARGEST_NUMBER}",
                hint="prompt fewer objects at a time",
            )
        folder.mkdir(parents=True, exist_ok=True)
        if not ids_fit:
            write_object_names(folder, dict(zip(self._numbers, self.object_ids, strict=True)))

    def add(self, frame_name: str, masks: Mapping[ObjectId, np.ndarray], size: Any) -> None:
        """Write the masks of one frame; call it for the frames in order.

        Args:
            frame_name: name of the frame without extension.
            masks: ``[H,W]`` logits by object, above 0 on the object, or bool. An object without a
                mask has an empty one.
            size: H and W.
        """
        self._frames.append(frame_name)
        empty = encode_mask(np.zeros(size, bool))
        stored = {i: encode_mask(np.asarray(masks[i]) > 0) for i in self.object_ids if i in masks}
        self._runs.append([stored.get(i, empty) for i in self.object_ids])
        if self.folder is None:
            return
        # One object at a time: a stack of 300 objects would take gigabytes.
        ids = np.zeros(size, np.uint16 if self.wide else np.uint8)
        highest = np.zeros(size, np.float32)
        for number, identity in zip(self._numbers, self.object_ids, strict=True):
            if identity in masks:
                logits = np.asarray(masks[identity], np.float32)
                ids[logits > highest] = number
                np.maximum(highest, logits, out=highest)
        write_id_mask(self.folder / f"{frame_name}.png", ids)

    def sav(self) -> dict[str, Any]:
        """Return the video in the format of SA-V's JSON files.

        ``masklet[t][o]`` are COCO run lengths, ``masklet_id`` the object ids. ``frame_names`` is an
        addition to the format: the T frame names.
        """
        areas = np.array([[coco_mask.area(r) for r in row] for row in self._runs])
        height, width = self._runs[0][0]["size"] if areas.size else (0, 0)
        return {
            "video_id": self.video,
            "video_frame_count": len(self._frames),
            "video_height": height,
            "video_width": width,
            "masklet": self._runs,
            "masklet_id": self.object_ids,
            "masklet_num": len(self.object_ids),
            "masklet_frame_count": [len(self._frames)] * len(self.object_ids),
            "masklet_first_appeared_frame": [
                int(np.flatnonzero(a)[0]) if a.any() else None for a in areas.T
            ],
            "masklet_type": ["predicted"] * len(self.object_ids),
            "frame_names": self._frames,
        }


def coco_json(videos: Iterable[Mapping[str, Any]], ending: str = ".jpg") -> dict[str, Any]:
    """Convert videos in SA-V's format (:meth:`MaskWriter.sav`) to one COCO JSON.

    A dataset of ``type=coco`` reads it. Annotations have ``track_id`` and run lengths; empty masks
    have no annotation.

    Args:
        videos: the videos.
        ending: extension of the frame files: ``file_name`` is ``VIDEO/FRAME`` and this.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for video in videos:
        name, size = video["video_id"], (video["video_height"], video["video_width"])
        for t, (frame, row) in enumerate(zip(video["frame_names"], video["masklet"], strict=True)):
            images.append(coco_image(len(images) + 1, name, t, f"{name}/{frame}{ending}", size))
            for identity, runs in zip(video["masklet_id"], row, strict=True):
                if coco_mask.area(runs):
                    annotations.append(
                        coco_annotation(len(annotations) + 1, len(images), identity, runs)
                    )
    return {"images": images, "annotations": annotations, "categories": COCO_CATEGORIES}


def select_video(content: Mapping[str, Any], video: str) -> dict[str, Any]:
    """Return the part of a COCO JSON that belongs to one video, with ids from 1."""
    images = [image for image in content["images"] if image["video_id"] == video]
    numbers = {image["id"]: n for n, image in enumerate(images, 1)}
    rows = [row for row in content["annotations"] if row["image_id"] in numbers]
    return {
        "images": [image | {"id": n} for n, image in enumerate(images, 1)],
        "annotations": [
            row | {"id": n, "image_id": numbers[row["image_id"]]} for n, row in enumerate(rows, 1)
        ],
    }


def write_coco(path: Path, videos: Iterable[Mapping[str, Any]]) -> None:
    """Write one COCO JSON atomically, with the annotations of only one video in memory.

    Args:
        path: the file.
        videos: ``images`` and ``annotations`` of each video, with ids from 1.
    """
    images: list[str] = []
    count = 0
    with atomic_write(path) as temporary, temporary.open("w", encoding="utf-8") as file:
        file.write('{"annotations": [\n')
        for video in videos:
            offset = len(images)
            for n, row in enumerate(video["annotations"], count + 1):
                ids = {"id": n, "image_id": row["image_id"] + offset}
                file.write((",\n" if n > 1 else "") + json.dumps(row | ids))
            count += len(video["annotations"])
            images += [json.dumps(row | {"id": row["id"] + offset}) for row in video["images"]]
        file.write('],\n"images": [\n' + ",\n".join(images))
        file.write(f'],\n"categories": {json.dumps(COCO_CATEGORIES)}}}\n')


def coco_image(number: int, video: str, t: int, file: str, size: tuple[int, ...]) -> dict[str, Any]:
    """Make the COCO image entry of frame ``t`` of a video; ``size`` is rows and columns."""
    return {
        "id": number,
        "video_id": video,
        "order_in_video": t,
        "file_name": file,
        "height": size[0],
        "width": size[1],
    }


def coco_annotation(
    number: int, image: int, identity: ObjectId, runs: dict[str, Any]
) -> dict[str, Any]:
    """Make the COCO annotation entry of a mask that is encoded as run lengths."""
    return {
        "id": number,
        "image_id": image,
        "category_id": 1,
        "track_id": identity,
        "segmentation": runs,
        "area": int(coco_mask.area(runs)),
        "bbox": coco_mask.toBbox(runs).tolist(),
        "iscrowd": 0,
    }


def write_id_mask(path: Path, ids: np.ndarray) -> None:
    """Write ``[H,W]`` object numbers: uint16 as a 16-bit grey PNG, others as a palette PNG."""
    if ids.dtype == np.uint16:
        image = Image.fromarray(ids)
    else:
        image = Image.fromarray(ids.astype(np.uint8))
        image.putpalette(davis_palette().tobytes())
    with errors_name(path):
        image.save(path, "png")


def write_object_names(folder: Path, names: Mapping[int, ObjectId]) -> None:
    """Write ``objects.json``, which maps the numbers in palette PNG files to object ids."""
    write_text(folder / OBJECTS_FILE, json.dumps(names))
