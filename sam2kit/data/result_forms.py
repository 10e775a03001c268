"""Write the masks of a tracked video in the format of its data."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from sam2kit.data.cvat_writer import LABELS_JSON, write_cvat
from sam2kit.data.label_writers import (
    LabelRecorder,
    write_ctc_labels,
    write_nifti_labels,
    write_tiff_labels,
)
from sam2kit.data.rle import decode_mask
from sam2kit.data.sources.base import ObjectId, VideoSource, innermost
from sam2kit.data.sources.ctc import CTCDataset
from sam2kit.data.sources.cvat import CVATDataset
from sam2kit.data.sources.tiff import TiffDataset
from sam2kit.utils.files import atomic_write, write_text

LABELS = "labels"  # directory of stacks, volumes and XML files in a result folder
LABEL_IMAGES = ("tiff", "ctc", "nifti")  # formats with one object per pixel


def result_form(source: VideoSource, i: int) -> str | None:
    """Return the format of the results of video ``i``.

    It is ``tiff``, ``ctc``, ``nifti``, ``cvat`` or None.
    """
    if source.geometry(i) is not None:
        return "nifti"
    source, _ = innermost(source, i)
    forms = {CTCDataset: "ctc", TiffDataset: "tiff", CVATDataset: "cvat"}
    return next((form for kind, form in forms.items() if isinstance(source, kind)), None)


def cvat_file(folder: Path, name: str) -> Path:
    """Return the XML file of a video in a result folder."""
    return folder / LABELS / f"{name}.xml"


def write_cvat_results(
    content: Mapping[str, Any], video: str, source: VideoSource, i: int, path: Path
) -> None:
    """Write the masks of a tracked video as a CVAT task.

    Objects and frames keep their labels and numbers if the video comes from CVAT.

    Args:
        content: COCO content of :func:`~sam2kit.data.writers.coco_json`. Frames that it lacks, and
            those before the first mask, are unannotated.
        video: name of the video in it.
        source, i: the video.
        path: the XML file; ``labels.json`` is written beside it.
    """
    images = {m["id"]: m["order_in_video"] for m in content["images"] if m["video_id"] == video}
    rows: dict[int, list[Mapping[str, Any]]] = {t: [] for t in images.values()}
    for row in content["annotations"]:
        if row["image_id"] in images:
            rows[images[row["image_id"]]].append(row)
    first = min((t for t, entries in rows.items() if entries), default=0)

    def masks(t: int) -> dict[ObjectId, np.ndarray] | None:
        if t not in rows or t < first:
            return None
        return {row["track_id"]: decode_mask(row["segmentation"]) for row in rows[t]}

    task, k = innermost(source, i)
    labels, numbers = None, None
    if isinstance(task, CVATDataset) and task.num_frames(k) == source.num_frames(i):
        labels, numbers = task.labels(k), task.frame_numbers(k)
    size = source.read_frame(i, 0).shape[:2]
    frames = (masks(t) for t in range(source.num_frames(i)))
    path.parent.mkdir(exist_ok=True)
    with atomic_write(path) as temporary:
        write_cvat(temporary, video, frames, (size[0], size[1]), labels, numbers)
    write_text(path.with_name("labels.json"), LABELS_JSON)


def write_in_form(
    recorder: LabelRecorder, source: VideoSource, i: int, folder: Path, name: str
) -> Path:
    """Write the masks of a tracked video in the format of its source.

    Args:
        recorder: the masks. Frames that were not tracked are written without objects.
        source: a source for which :func:`result_form` is one of :data:`LABEL_IMAGES`.
        i: index of the video.
        folder: result folder.
        name: name of the files.

    Returns:
        The file or directory: ``labels/NAME_labels.tif``, ``NAME_RES`` or ``labels/NAME.nii.gz``.
    """
    for _ in range(len(recorder), source.num_frames(i)):
        recorder.add({}, recorder.size)
    form = result_form(source, i)
    if form == "ctc":
        results = folder / f"{name}_RES"
        frame_names = [source.frame_name(i, t) for t in range(len(recorder))]
        numbers = [match[0] if (match := re.search(r"\d+$", n)) else None for n in frame_names]
        files = [results / f"mask{number or f'{t:03d}'}.tif" for t, number in enumerate(numbers)]
        write_ctc_labels(recorder, {}, files.__getitem__, results / "res_track.txt")
        return results
    (folder / LABELS).mkdir(exist_ok=True)
    if form == "tiff":
        path = folder / LABELS / f"{name}_labels.tif"
        write_tiff_labels(recorder, path, {})
        return path
    path = folder / LABELS / f"{name}.nii.gz"
    geometry = source.geometry(i)
    assert geometry is not None
    write_nifti_labels(recorder, path, geometry)
    return path
