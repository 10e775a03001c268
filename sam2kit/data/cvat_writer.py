"""Write masks as a CVAT task in the format "CVAT for video 1.1".

:mod:`sam2kit.data.sources.cvat` describes the format and reads it back. CVAT does not track masks,
and imports only the first mask of a track. Therefore each mask is a track of one frame,
as in CVAT's own exports, and an attribute of the mask names its object.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from xml.etree.ElementTree import Element, ElementTree, SubElement, indent

import numpy as np

from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.cvat import OBJECT_ATTRIBUTE, frame_list, mask_element
from sam2kit.utils.errors import DataError

LABEL = "object"
_INVALID = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")  # in XML 1.0
# Input for CVAT's "Raw" label editor: without the attribute, CVAT drops the ids on import.
LABELS_JSON = (
    f'[{{"name": "{LABEL}", "type": "any", "attributes": [{{"name": "{OBJECT_ATTRIBUTE}", '
    '"input_type": "text", "mutable": false, "values": [""], "default_value": ""}]}]\n'
)


def write_cvat(
    path: Path,
    video: str,
    frames: Iterable[Mapping[ObjectId, np.ndarray] | None],
    size: tuple[int, int],
    labels: Mapping[ObjectId, str] | None = None,
    numbers: Sequence[int] | None = None,
) -> None:
    """Write the masks of one video.

    Args:
        path: the XML file.
        video: name of the task.
        frames: per frame, in order, ``[H,W]`` bool by object; empty masks are absent objects. None:
            the frame is unannotated.
        size: rows and columns of the frames.
        labels: the label of each object in CVAT. None (default), or an object without one:
            :data:`LABEL`.
        numbers: the number of each frame in CVAT. None (default): numbers from 0.

    Raises:
        DataError: XML cannot represent an object id.
    """
    names = {o: _INVALID.sub("_", label) for o, label in (labels or {}).items()}
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
                    f"video {video!r}: XML cannot represent the object id {object_id!r}",
                    hint="rename the object, or convert to coco-video",
                )
            label = names.get(object_id, LABEL)
            track = SubElement(
                root, "track", {"id": str(number), "label": label, "source": "manual"}
            )
            frame = str(t if numbers is None else numbers[t])
            about = {"frame": frame, "keyframe": "1", "outside": "0", "occluded": "0"}
            element = SubElement(track, "mask", about | mask_element(mask) | {"z_order": "0"})
            SubElement(element, "attribute", {"name": OBJECT_ATTRIBUTE}).text = text
            number += 1
    _write_meta(task, video, list(range(count)) if numbers is None else numbers, size, names)
    kit = SubElement(meta, "sam2kit")
    SubElement(kit, "annotated_frames").text = frame_list(annotated)
    if numbers is not None:
        SubElement(kit, "frame_numbers").text = ",".join(map(str, numbers))
    indent(root)
    ElementTree(root).write(path, encoding="utf-8", xml_declaration=True)


def _write_meta(
    task: Element,
    video: str,
    numbers: Sequence[int],
    size: tuple[int, int],
    names: Mapping[ObjectId, str],
) -> None:
    """Add the fields that CVAT writes about a task."""
    fields = {"name": _INVALID.sub("_", video), "size": str(len(numbers)), "mode": "annotation"}
    first, last = min(numbers, default=0), max(numbers, default=-1)
    for key, value in (fields | {"start_frame": str(first), "stop_frame": str(last)}).items():
        SubElement(task, key).text = value
    labels = SubElement(task, "labels")
    for name in dict.fromkeys([*names.values(), LABEL]):
        label = SubElement(labels, "label")
        SubElement(label, "name").text = name
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
