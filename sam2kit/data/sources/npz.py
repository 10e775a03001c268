"""Read volumes in NPZ files, as MedSAM and MedSAM2 write them."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from sam2kit.data.sources.stacks import MAX_VOLUME_BYTES, check_size
from sam2kit.data.sources.volumes import Volume, VolumeSource, find_volumes
from sam2kit.utils.errors import DataError, SAM2KitError
from sam2kit.utils.text import visible_text

LAYOUT = "CASE.npz with imgs [D,H,W] or [D,H,W,3], and optionally gts [D,H,W] and spacing [3]"
SMALL_BYTES = 1 << 10  # of the array spacing


class NPZDataset(VolumeSource):
    """Read NPZ files with the arrays of MedSAM2.

    ``imgs`` are the slices, ``gts`` their labels, and ``spacing`` the distances of voxels in mm in
    the order of SimpleITK: columns, rows, slices. ``boxes`` are prompts and are not used. Every
    slice of a file with ``gts`` is annotated. Nothing is unpickled: arrays of Python objects are
    rejected, or ignored if they are not needed.

    Args:
        root, split, rule, axis, reverse, strict: as in
            :class:`~sam2kit.data.sources.volumes.VolumeSource`. The default axis of ``imgs`` is 0.
        masks_path: must be None: the labels are in the same file.

    Raises:
        DataError: no files, or no readable one; with ``strict`` also a damaged file, a missing or
            too large array, or arrays of different shapes.
    """

    def find(self, masks: Path | None) -> dict[str, Path]:
        if masks is not None:
            raise DataError(
                key="dataset.masks_path",
                value=str(masks),
                expected="null with type=npz, whose labels are in the same file",
                hint="set dataset.masks_path=null",
            )
        files = {name: f.volume for name, f in find_volumes(self.root, (".npz",)).items()}
        if not files:
            raise DataError(f"{self.root} contains no NPZ files", hint=f"expected {LAYOUT}")
        return files

    def files_of(self, files: Path) -> list[Path]:
        return [files]

    def geometry_axis(self, axis: int | None) -> int:
        return 2 - (axis or 0)  # the geometry has columns, rows, slices; the file the reverse order

    def open(self, files: Path) -> Volume:
        path = files
        arrays = _headers(path)
        shape = arrays["imgs"][0] if "imgs" in arrays else ()
        colours = len(shape) == 4 and shape[3] in (1, 3)
        if len(shape) != 3 and not colours:
            known = ", ".join(f"{name} {size}" for name, (size, _) in arrays.items())
            raise DataError(
                f"{path} has {visible_text(known or 'no arrays')}", hint=f"expected {LAYOUT}"
            )
        has_labels = "gts" in arrays
        if has_labels and arrays["gts"][0] != shape[:3]:
            raise DataError(
                f"{path}: gts has the shape {arrays['gts'][0]}, but imgs has {shape}",
                hint="save one label image per slice",
            )
        spacing = _spacing(path) if "spacing" in arrays else (1.0, 1.0, 1.0)
        return Volume(shape[2::-1], np.diag([*spacing, 1.0]), has_labels, path)

    def load(self, i: int) -> np.ndarray:
        voxels = _read(self._volumes[i].content, "imgs")
        return voxels.transpose(2, 1, 0) if voxels.ndim == 3 else voxels.transpose(2, 1, 0, 3)

    def load_labels(self, i: int) -> np.ndarray | None:
        volume = self._volumes[i]
        return _read(volume.content, "gts").transpose(2, 1, 0) if volume.has_labels else None


def _headers(path: Path) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
    """Return the shapes and types of the arrays of a file, without decompressing them.

    Arrays of Python objects are left out and logged.
    """
    arrays, objects = {}, []
    try:
        with zipfile.ZipFile(path) as archive:
            for info in archive.infolist():
                if not info.filename.endswith(".npy"):
                    continue
                name = info.filename[:-4]
                with archive.open(info) as file:
                    shape, dtype, start = _read_header(file)
                if dtype.hasobject:
                    objects.append(name)
                    continue
                check_size(path, shape, dtype.itemsize, MAX_VOLUME_BYTES)
                size = int(np.prod(shape, dtype=object)) * dtype.itemsize
                if info.file_size - start != size:
                    raise ValueError(f"{name} has {info.file_size - start} bytes instead of {size}")
                arrays[name] = tuple(map(int, shape)), dtype
    except SAM2KitError:
        raise
    except Exception as error:  # the library raises many classes for damaged files
        raise _unreadable(path, error) from error
    if objects:
        logger.info(
            "{}: ignored {}, which contain pickled Python objects",
            path,
            ", ".join(visible_text(name) for name in objects[:3]),
        )
    return arrays


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """Return the shape and type of an array, and the number of bytes before its values."""
    version = np.lib.format.read_magic(file)
    read = np.lib.format.read_array_header_1_0
    if version != (1, 0):
        read = np.lib.format.read_array_header_2_0
    shape, _, dtype = read(file)
    return shape, dtype, file.tell()


def _read(path: Path, name: str) -> np.ndarray:
    """Read one array of a file."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as file:
            return np.lib.format.read_array(file, allow_pickle=False)
    except SAM2KitError:
        raise
    except Exception as error:  # the library raises many classes for damaged files
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    text = visible_text(str(error) or type(error).__name__)
    return DataError(f"{path} cannot be read as NPZ: {text}", hint="save the file again")


def _spacing(path: Path) -> tuple[float, float, float]:
    """Return the distances of columns, rows and slices in mm."""
    shape, dtype = _headers(path)["spacing"]
    check_size(path, shape, dtype.itemsize, SMALL_BYTES)
    values = _read(path, "spacing").reshape(-1)
    if len(values) != 3 or not all(np.isfinite(v) and v > 0 for v in values):
        raise DataError(
            f"{path}: spacing is {values.tolist()}",
            hint="expected three lengths in mm above 0: columns, rows, slices",
        )
    x, y, z = (float(v) for v in values)
    return x, y, z
