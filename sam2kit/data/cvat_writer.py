"""Write masks as a CVAT task in the format "CVAT for video 1.1".

:mod:`sam2kit.data.sources.cvat` describes the format and reads it back. CVAT does not track masks,
and of a track of masks it imports only the first one. Therefore each mask is a track of one frame,
as in CVAT's own exports, and an attribute of the mask names its object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np

from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.cvat import OBJECT_ATTRIBUTE, frame_list, mask_element
from sam2kit.utils.errors import DataError

LABEL = "object"
_INVALID = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0
# What CVAT's "Raw" editor of labels takes: without the attribute, CVAT drops the ids on import.
LABELS_JSON = (
    f'[{{"name": "{LABEL}", "type": "any", "attributes": [{{"name": "{OBJECT_ATTRIBUTE}", '
    '"input_type": "text", "mutable": false, "values": [""], "default_value": ""}]}]\n'
)


def write_cvat(
    path: Path,
    video: str,
    frames: Iterable[Mapping[ObjectId, np.ndarray] | None],
    size: tuple[int, int],
) -> None:
    """Write the masks of one video.

    Args:
        path: the XML file.
        video: name of the task.
        frames: per frame, in order, ``[H,W]`` bool by object; empty masks are absent objects. None:
            the frame is unannotated.
        size: rows and columns of the frames.

    Raises:
        DataError: XML cannot hold an object id.
    """
    root = Element("annotations")
    SubElement(root, "version").text = "1.1"
    meta = SubElement(root, "meta")
    task = SubElement(meta, "task")
    annotated, count, number = [], 0, 0
    for t, masks in enumerate(frames):
        count += 1
        if masks is None:
            continue
        annotated.append(t)
        for object_id, mask in masks.items():
            if not mask.any():
                continue
            text = str(object_id)
            if _INVALID.search(text):
                raise DataError(
                    f"video {video!r}: XML cannot hold the object id {object_id!r}",
                    hint="rename the object, or convert to coco-video",
                )
            track = SubElement(
                root, "track", {"id": str(number), "label": LABEL, "source": "manual"}
            )
            about = {"frame": str(t), "keyframe": "1", "outside": "0", "occluded": "0"}
            element = SubElement(track, "mask", about | mask_element(mask) | {"z_order": "0"})
            SubElement(element, "attribute", {"name": OBJECT_ATTRIBUTE}).text = text
            number += 1
    _write_meta(task, video, count, size)
    SubElement(SubElement(meta, "sam2kit"), "annotated_frames").text = frame_list(annotated)
    indent(root)
    ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _write_meta(task: Element, video: str, count: int, size: tuple[int, int]) -> None:
    """Add the fields that CVAT writes about a task."""
    fields = {"name": _INVALID.sub("_", video), "size": str(count), "mode": "annotation"}
    for key, value in (fields | {"start_frame": "0", "stop_frame": str(count - 1)}).items():
        SubElement(task, key).text = value
    label = SubElement(SubElement(task, "labels"), "label")
    SubElement(label, "name").text = LABEL
    SubElement(label, "type").text = "any"
    attribute = SubElement(SubElement(label, "attributes"), "attribute")
    for key, value in (
        ("name", OBJECT_ATTRIBUTE),
        ("mutable", "False"),
        ("input_type", "text"),
        ("default_value", ""),
        ("values", ""),
    ):
        SubElement(attribute, key).text = value
    original = SubElement(task, "original_size")
    SubElement(original, "width").text = str(size[1])
    SubElement(original, "height").text = str(size[0])
