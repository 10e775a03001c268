"""Write the masks of a tracked video in the form in which its data came."""

from __future__ import annotations

import re
from pathlib import Path

from sam2kit.data.label_writers import (
    LabelRecorder,
    write_ctc_labels,
    write_nifti_labels,
    write_tiff_labels,
)
from sam2kit.data.sources.base import DerivedSource, VideoSource
from sam2kit.data.sources.ctc import CTCDataset
from sam2kit.data.sources.tiff import TiffDataset

LABELS = "labels"  # directory of stacks and volumes in a result folder


def result_form(source: VideoSource, i: int) -> str | None:
    """Return the form of the results of video ``i``: ``tiff``, ``ctc``, ``nifti`` or None."""
    if source.geometry(i) is not None:
        return "nifti"
    while isinstance(source, DerivedSource):
        source, i = source.locate(i)
    if isinstance(source, CTCDataset):
        return "ctc"
    return "tiff" if isinstance(source, TiffDataset) else None


def write_in_form(
    recorder: LabelRecorder, source: VideoSource, i: int, folder: Path, name: str
) -> Path:
    """Write the masks of a tracked video in the form of its source.

    Args:
        recorder: the masks. Frames that were not tracked are written without objects.
        source: a source for which :func:`result_form` is not None.
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
