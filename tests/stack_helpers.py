"""Write small stacks and volumes in the layouts that the sources read."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import nibabel
import numpy as np
import tifffile
from data_helpers import SIZE, square
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian, generate_uid

NUM_FRAMES = 6
# Values 100 t with this window become the grey values 10 t.
WINDOW = [0.0, 2550.0]


def stack(num_frames: int = NUM_FRAMES, dtype: str = "uint16") -> np.ndarray:
    """Make ``[T,H,W]`` whose frame t has the value 100 t."""
    frames = np.zeros((num_frames, *SIZE), dtype)
    frames[:] = 100 * np.arange(num_frames)[:, None, None]
    return frames


def labels(num_frames: int = NUM_FRAMES, ids: tuple[int, int] = (1, 2)) -> np.ndarray:
    """Make ``[T,H,W]`` labels of the two squares of every test dataset."""
    images = np.zeros((num_frames, *SIZE), np.uint16)
    for t, image in enumerate(images):
        image[square(0, 2 * t % 24)] = ids[0]
        image[square(12, 20)] = ids[1]
    return images


def save_tiff(path: Path, pixels: np.ndarray, **keys: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    if "axes" in keys:
        keys["metadata"] = {"axes": keys.pop("axes")}
    tifffile.imwrite(path, pixels, **({"photometric": "minisblack"} | keys))
    return path


def make_stacks(root: Path, names: tuple[str, ...] = ("a", "b"), **keys: Any) -> Path:
    """Write ``ROOT/a.tif`` with labels in ``ROOT/a_labels.tif``."""
    for name in names:
        save_tiff(root / f"{name}.tif", stack(), **({"axes": "TYX"} | keys))
        save_tiff(root / f"{name}_labels.tif", labels(), **({"axes": "TYX"} | keys))
    return root


def make_frames(root: Path, names: tuple[str, ...] = ("a", "b")) -> Path:
    """Write ``ROOT/a/img_0.tif`` with labels of even frames in ``ROOT/a/masks``."""
    for name in names:
        for t, (frame, mask) in enumerate(zip(stack(), labels(), strict=True)):
            save_tiff(root / name / f"img_{t}.tif", frame)
            if t % 2 == 0:
                save_tiff(root / name / "masks" / f"img_{t}_cp_masks.tif", mask)
    return root


def make_ctc(root: Path, names: tuple[str, ...] = ("01", "02"), ids=(1, 2)) -> Path:
    """Write gold truth with other labels than the markers on even frames."""
    for name in names:
        for t, (frame, mask) in enumerate(zip(stack(), labels(ids=ids), strict=True)):
            save_tiff(root / name / f"t{t:03d}.tif", frame)
            save_tiff(root / f"{name}_GT" / "TRA" / f"man_track{t:03d}.tif", mask)
            if t % 2 == 0:
                other = np.where(mask > 0, 20 - mask, 0).astype(np.uint16)
                save_tiff(root / f"{name}_GT" / "SEG" / f"man_seg{t:03d}.tif", other)
        lines = "".join(f"{n} 0 {NUM_FRAMES - 1} 0\n" for n in ids)
        (root / f"{name}_GT" / "TRA" / "man_track.txt").write_text(lines)
    return root


AFFINE = np.array([[0, 0.8, 0, -10], [-0.5, 0, 0, 20], [0, 0, 2.5, 30], [0, 0, 0, 1.0]])


def volume_of(frames: np.ndarray) -> np.ndarray:
    """Return frames ``[T,H,W]`` with the axes columns, rows, slices."""
    return frames.transpose(2, 1, 0)


def save_nifti(path: Path, frames: np.ndarray, affine: np.ndarray = AFFINE, **keys: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = nibabel.Nifti1Image(volume_of(frames), affine)
    for name, value in keys.items():
        getattr(image.header, f"set_{name}")(*value)
    nibabel.save(image, path)
    return path


def make_nifti(root: Path, names: tuple[str, ...] = ("a", "b"), ending: str = ".nii.gz") -> Path:
    for name in names:
        save_nifti(root / f"{name}{ending}", stack(dtype="int16"))
        save_nifti(root / f"{name}_seg{ending}", labels())
    return root


def make_npz(root: Path, names: tuple[str, ...] = ("a", "b"), **arrays: Any) -> Path:
    root.mkdir(parents=True, exist_ok=True)
    content = {"imgs": stack(), "gts": labels(), "spacing": np.array([0.5, 0.8, 2.5])}
    for name in names:
        np.savez_compressed(root / f"{name}.npz", **(content | arrays))
    return root


def save_dicom(path: Path, pixels: np.ndarray, z: float, number: int, **elements: Any) -> Path:
    """Write one slice of a series; values are 1000 above those of the frames."""
    path.parent.mkdir(parents=True, exist_ok=True)
    data = Dataset()
    data.file_meta = FileMetaDataset()
    data.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    data.file_meta.MediaStorageSOPClassUID = data.SOPClassUID = CTImageStorage
    data.file_meta.MediaStorageSOPInstanceUID = data.SOPInstanceUID = generate_uid()
    data.SeriesInstanceUID, data.SeriesNumber, data.Modality = "1.2.3", 1, "CT"
    data.ImagePositionPatient, data.InstanceNumber = [5, 6, z], number
    data.ImageOrientationPatient, data.PixelSpacing = [1, 0, 0, 0, 1, 0], [0.8, 0.5]
    data.SliceThickness, data.RescaleSlope, data.RescaleIntercept = 2.5, 1, -1000
    data.Rows, data.Columns = pixels.shape
    data.SamplesPerPixel, data.PhotometricInterpretation = 1, "MONOCHROME2"
    data.BitsAllocated = data.BitsStored = 16
    data.HighBit, data.PixelRepresentation = 15, 0
    data.PixelData = (pixels.astype(np.int32) + 1000).astype(np.uint16).tobytes()
    for name, value in elements.items():
        if value is None:
            delattr(data, name)
        else:
            setattr(data, name, value)
    data.save_as(path, enforce_file_format=True)
    return path


DICOM_AFFINE = np.array([[-0.5, 0, 0, -5], [0, -0.8, 0, -6], [0, 0, 2.5, 10], [0, 0, 0, 1.0]])


def make_dicom(root: Path, names: tuple[str, ...] = ("a", "b"), **elements: Any) -> Path:
    """Write slices whose names and instance numbers are in the reverse order of their positions."""
    for name in names:
        for t, frame in enumerate(stack()):
            file = root / name / f"IM{NUM_FRAMES - t:03d}.dcm"
            save_dicom(file, frame, 10 + 2.5 * t, NUM_FRAMES - t, **elements)
        # The labels have another orientation of the same voxels.
        turned = np.diag([-1.0, 1, 1, 1]) @ np.eye(4)
        affine = DICOM_AFFINE @ turned
        affine[:3, 3] = (DICOM_AFFINE @ [SIZE[1] - 1, 0, 0, 1])[:3]
        save_nifti(root / "labels" / f"{name}.nii.gz", labels()[:, :, ::-1], affine)
    return root
