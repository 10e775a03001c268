"""Read NIfTI volumes as videos, with label volumes as masks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from sam2kit.data.geometry import VolumeGeometry
from sam2kit.data.intensity import DEFAULT_RULE, IntensityRule
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.listing import read_split
from sam2kit.data.sources.mask_files import read_object_names
from sam2kit.data.sources.stacks import MAX_VOLUME_BYTES, check_size
from sam2kit.data.sources.volumes import VolumeFiles, VolumeSource, find_volumes, volume_stem
from sam2kit.utils.errors import DataError, SAM2KitError
from sam2kit.utils.text import visible_text

NIFTI_ENDINGS = (".nii", ".nii.gz")
LAYOUTS = (
    "CASE.nii.gz with CASE_seg.nii.gz, or imagesTr/CASE.nii.gz (or CASE_0000.nii.gz) with "
    "labelsTr/CASE.nii.gz"
)


class NiftiDataset(VolumeSource):
    """Read NIfTI volumes: ``.nii`` and ``.nii.gz``.

    Frames are the slices along one axis of the stored array, whose first other axis is the columns
    of a frame and whose second other axis is its rows. The scale factor of the header is applied.
    Labels are found as described in :func:`~sam2kit.data.sources.volumes.find_volumes`; every slice
    of a volume with labels is annotated. The affine is kept (:meth:`geometry`).

    Args:
        root: a directory or one file.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.
        masks_path: directory or file of the labels. None (default): beside the volumes.
        rule: how values are scaled to 8 bits.
        axis: axis of the stored array along which slices become frames. None (default): 2.
        reverse: play slices from the last to the first.

    Raises:
        DataError: no volumes, a damaged file, a volume with time, or labels of another shape
            or orientation.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        masks_path: str | Path | None = None,
        rule: IntensityRule = DEFAULT_RULE,
        axis: int | None = None,
        reverse: bool = False,
    ) -> None:
        super().__init__(rule)
        self.root = Path(root)
        masks = None if masks_path is None else Path(masks_path)
        files = _without_channels(find_volumes(self.root, NIFTI_ENDINGS, masks))
        if not files:
            raise DataError(f"{root} holds no NIfTI volumes", hint=f"expected {LAYOUTS}")
        self.names = list(files) if split is None else read_split(split, self.root, files)
        self._files = [files[name] for name in self.names]
        for path, labels in self._files:
            image, shape = open_nifti(path)
            self._shapes.append(shape)
            geometry = VolumeGeometry(image.affine, 2 if axis is None else axis, reverse)
            self._geometries.append(geometry)
            if labels is not None:
                _check_labels(labels, path, shape, image.affine)
        self.has_masks = any(labels is not None for _, labels in self._files)

    def load(self, i: int) -> np.ndarray:
        return load_nifti(self._files[i].volume)

    def has_labels(self, i: int) -> bool:
        return self._files[i].labels is not None

    def load_labels(self, i: int) -> np.ndarray | None:
        path = self._files[i].labels
        return None if path is None else load_nifti(path)

    def object_names(self, i: int) -> dict[int, ObjectId]:
        path = self._files[i].labels
        if path is None:
            return {}
        return read_object_names(path.with_name(f"{volume_stem(path, NIFTI_ENDINGS)}.json"))


def open_nifti(path: Path) -> tuple[Any, tuple[int, ...]]:
    """Read the header of a volume.

    Returns:
        The image of nibabel, and the three lengths of its array.

    Raises:
        DataError: the file is damaged or too large, or holds no volume.
    """
    import nibabel  # imported here: most data sets have no volume

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


def _check_labels(labels: Path, path: Path, shape: tuple[int, ...], affine: np.ndarray) -> None:
    """Reject labels that do not lie on the voxels of their volume."""
    from nibabel.orientations import aff2axcodes

    image, label_shape = open_nifti(labels)
    if label_shape != shape:
        raise DataError(
            f"{labels} has the shape {label_shape}, but {path} has {shape}",
            hint="export labels on the grid of their volume",
        )
    codes, expected = aff2axcodes(image.affine), aff2axcodes(affine)
    if codes != expected:
        raise DataError(
            f"{labels} has the orientation {''.join(map(str, codes))}, but {path} has "
            f"{''.join(map(str, expected))}",
            hint="export labels in the orientation of their volume",
        )
    if not np.allclose(image.affine, affine, atol=1e-2):
        logger.warning(
            "{} and {} have different affines; the voxels are taken as equal", labels, path
        )


def _without_channels(files: dict[str, VolumeFiles]) -> dict[str, VolumeFiles]:
    """Name the volumes of nnU-Net by their case, and leave out all channels but the first."""
    cases: dict[str, VolumeFiles] = {}
    left_out = []
    for name, entry in files.items():
        case, _, channel = name.rpartition("_")
        if case and len(channel) == 4 and channel.isdecimal() and f"{case}_0000" in files:
            if channel != "0000":
                left_out.append(name)
                continue
            name = case
        cases[name] = entry
    if left_out:
        logger.warning(
            "{} volumes are further channels of a case and are left out, such as {}",
            len(left_out),
            visible_text(left_out[0]),
        )
    return cases
