"""Read NIfTI volumes as videos, with label volumes as masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.mask_files import read_object_names
from sam2kit.data.sources.stacks import MAX_VOLUME_BYTES, check_size
from sam2kit.data.sources.volumes import (
    Grid,
    Volume,
    VolumeFiles,
    VolumeSource,
    find_volumes,
    volume_stem,
)
from sam2kit.utils.errors import DataError, SAM2KitError
from sam2kit.utils.text import plural, visible_text

NIFTI_ENDINGS = (".nii", ".nii.gz")
LAYOUTS = (
    "CASE.nii.gz with CASE_seg.nii.gz, or imagesTr/CASE.nii.gz (or CASE_0000.nii.gz) with "
    "labelsTr/CASE.nii.gz"
)


class NiftiDataset(VolumeSource):
    """Read NIfTI volumes: ``.nii`` and ``.nii.gz``.

    Frames are the slices along one axis of the stored array. The first of the other two axes gives
    the columns of a frame and the second one its rows. The scale factor of the header is applied.
    Labels are found as described in :func:`~sam2kit.data.sources.volumes.find_volumes`; every slice
    of a volume with labels is annotated. The affine is kept (:meth:`geometry`).

    Args:
        root, split, masks_path, rule, axis, reverse, strict: as in
            :class:`~sam2kit.data.sources.volumes.VolumeSource`. The default axis is 2; labels are
            searched beside the volumes.

    Raises:
        DataError: no volumes, or no readable one; with ``strict`` also a damaged file, a volume
            with time, or labels of a different shape or orientation.
    """

    def find(self, masks: Path | None) -> dict[str, VolumeFiles]:
        files = find_volumes(self.root, NIFTI_ENDINGS, masks)
        if not files:
            raise DataError(f"{self.root} contains no NIfTI volumes", hint=f"expected {LAYOUTS}")
        channels = [path for entry in files.values() for path in entry.channels]
        if channels:
            self._dropped.note(
                channels[0],
                f"{plural(len(channels), 'volume')} with further channels are not read, "
                "only the first of each case; to read another one, move it to a separate folder",
            )
        return files

    def open(self, files: VolumeFiles) -> Volume:
        path, labels = files.volume, files.labels
        image, shape = open_nifti(path)
        if labels is not None:
            label_image, label_shape = open_nifti(labels)
            label_grid, grid = (label_image.affine, label_shape), (image.affine, shape)
            _check_labels(labels, path, label_grid, grid)
            self.check_grid(labels, [label_grid, grid], path)
        return Volume(shape, image.affine, labels is not None, files)

    def files_of(self, files: VolumeFiles) -> list[Path]:
        return [files.volume, *([files.labels] if files.labels else []), *files.channels]

    def load(self, i: int) -> np.ndarray:
        return load_nifti(self._volumes[i].content.volume)

    def load_labels(self, i: int) -> np.ndarray | None:
        path = self._volumes[i].content.labels
        return None if path is None else load_nifti(path)

    def object_names(self, i: int) -> dict[int, ObjectId]:
        path = self._volumes[i].content.labels
        if path is None:
            return {}
        return read_object_names(path.with_name(f"{volume_stem(path, NIFTI_ENDINGS)}.json"))


def open_nifti(path: Path) -> tuple[Any, tuple[int, ...]]:
    """Read the header of a volume.

    Returns:
        The image of nibabel, and the three lengths of its array.

    Raises:
        DataError: the file is damaged or too large, or contains no volume.
    """
    import nibabel  # imported here: most datasets have no volume

    try:
        image: Any = nibabel.load(path)
        shape = tuple(int(n) for n in image.shape)
        dtype = image.get_data_dtype()
    except SAM2KitError:
        raise
    except Exception as e:  # the library raises many classes for damaged files
        raise _unreadable(path, e) from e
    while len(shape) > 3 and shape[-1] == 1:
        shape = shape[:-1]
    if len(shape) != 3 or 0 in shape:
        raise DataError(
            f"{path} has the shape {shape}, but a volume has three axes",
            hint="split a series of volumes into files of one volume each",
        )
    if dtype.fields is not None or np.issubdtype(dtype, np.complexfloating):
        raise DataError(f"{path} has values of type {dtype}", hint="save one number per voxel")
    check_size(path, shape, max(dtype.itemsize, 4), MAX_VOLUME_BYTES)
    return image, shape


def load_nifti(path: Path) -> np.ndarray:
    """Read the voxels of a volume: as stored, or float32 if the header has a scale factor.

    Raises:
        DataError: the file is damaged.
    """
    image, shape = open_nifti(path)
    data = image.dataobj
    try:
        if (data.slope, data.inter) == (1, 0):
            voxels = np.asanyarray(data)
        else:
            voxels = np.asarray(data, dtype=np.float32)
    except SAM2KitError:
        raise
    except Exception as error:  # the library raises many classes for damaged files
        raise _unreadable(path, error) from error
    return voxels.reshape(shape)


def _unreadable(path: Path, error: Exception) -> DataError:
    text = visible_text(str(error) or type(error).__name__)
    return DataError(f"{path} cannot be read as NIfTI: {text}", hint="replace the file")


def _check_labels(labels: Path, path: Path, label_grid: Grid, grid: Grid) -> None:
    """Reject labels that are not on the voxel grid of their volume."""
    from nibabel.orientations import aff2axcodes

    if label_grid[1] != grid[1]:
        raise DataError(
            f"{labels} has the shape {label_grid[1]}, but {path} has {grid[1]}",
            hint="export labels on the grid of their volume",
        )
    codes, expected = aff2axcodes(label_grid[0]), aff2axcodes(grid[0])
    if codes != expected:
        raise DataError(
            f"{labels} has the orientation {''.join(map(str, codes))}, but {path} has "
            f"{''.join(map(str, expected))}",
            hint="export labels in the orientation of their volume",
        )
