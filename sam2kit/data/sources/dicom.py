"""Read DICOM series as videos, with NIfTI label volumes as masks."""

from __future__ import annotations

import os
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loguru import logger

from sam2kit.data.geometry import VolumeGeometry
from sam2kit.data.sources.listing import list_folder, natural_key
from sam2kit.data.sources.mask_search import label_base
from sam2kit.data.sources.nifti import NIFTI_ENDINGS, load_nifti, open_nifti
from sam2kit.data.sources.stacks import MAX_FRAME_BYTES, MAX_VOLUME_BYTES, check_size
from sam2kit.data.sources.volumes import Volume, VolumeSource, volume_stem
from sam2kit.utils.errors import DataError, SAM2KitError
from sam2kit.utils.text import visible_text

CODED_LABELS = ("SEG", "RTSTRUCT")
NO_IMAGES = (*CODED_LABELS, "RTDOSE", "RTPLAN")  # modalities
NO_DICOM = (".txt", ".json", ".xml", ".csv", ".md", ".zip", ".png", ".jpg", *NIFTI_ENDINGS)
# Of a deflated file, which pydicom decompresses as a whole. One byte can expand to 1032.
MAX_DEFLATED_BYTES = MAX_FRAME_BYTES // 1032
HEADER_TAGS = [
    "SOPClassUID",
    "SeriesInstanceUID",
    "SeriesNumber",
    "Modality",
    "Rows",
    "Columns",
    "SamplesPerPixel",
    "BitsAllocated",
    "NumberOfFrames",
    "PhotometricInterpretation",
    "ImageOrientationPatient",
    "ImagePositionPatient",
    "InstanceNumber",
    "PixelSpacing",
    "SpacingBetweenSlices",
    "SliceThickness",
    "RescaleSlope",
    "RescaleIntercept",
    "WindowCenter",
    "WindowWidth",
]


class DicomSlice(NamedTuple):
    """One frame of a series.

    Attributes:
        path: the file.
        number: frame of a file of several frames; None if the file has one.
        slope, intercept: rescale values, as float.
    """

    path: Path
    number: int | None
    slope: float
    intercept: float


class DicomSeries(NamedTuple):
    """The frames of one series in order.

    Attributes:
        slices: the frames.
        size: rows and columns.
        samples: numbers per pixel, 1 or 3.
        geometry: position of the frames.
        window: lowest and highest value that the files recommend for display. None: no
            recommendation.
        inverted: whether low values are bright (MONOCHROME1).
    """

    slices: list[DicomSlice]
    size: tuple[int, int]
    samples: int
    geometry: VolumeGeometry
    window: tuple[float, float] | None
    inverted: bool


class DicomDataset(VolumeSource):
    """Read DICOM series: one folder per series, or one file of several frames.

    Slices are sorted by their position along the normal of the image plane, or by instance number
    if they have no position. Rescale slope and intercept are applied. Values are scaled by
    ``dataset.intensity_window``, by the window of the middle slice, or by percentiles. A folder
    with several series gives a video for each.

    Labels are NIfTI volumes, ``VIDEO.nii.gz`` or ``VIDEO_seg.nii.gz``, in ``masks_path``, in
    ``ROOT/labels`` or beside the folder of the series. Their affine aligns them with the
    orientation of the series. Every slice of a series with labels is annotated.

    Args:
        root: a folder with series in it or below it, or one file.
        split, rule, reverse, strict: as in :class:`~sam2kit.data.sources.volumes.VolumeSource`.
        masks_path: folder or file of the labels. None (default): as above.
        axis: axis of the volume (columns, rows, slices) along which frames follow each other. None
            (default): 2, the slices as stored.

    Raises:
        DataError: no series, or no readable one; with ``strict`` also a damaged file, slices of
            different sizes or orientations, two slices at one position, or damaged labels.
    """

    def find(self, masks: Path | None) -> dict[str, SeriesFiles]:
        content = find_series(self.root)
        self._dropped.coded_labels += content.coded
        if not content.series:
            hint = "expected one folder per series, VIDEO/*.dcm"
            if content.coded:
                hint += f"; {content.coded[0]} has segmentations only"
            raise DataError(f"{self.root} contains no DICOM images", hint=hint)
        self._others = content.others
        names = list(content.series)
        return {
            name: files._replace(labels=_find_labels(self.root, name, masks, names))
            for name, files in content.series.items()
        }

    def files_of(self, files: SeriesFiles) -> list[Path]:
        return [*files.paths, *([files.labels] if files.labels else []), *self._others]

    def open(self, files: SeriesFiles) -> Volume:
        if files.error is not None:
            raise files.error
        series = read_series(files.paths, files.name)
        shape = (series.size[1], series.size[0], len(series.slices))
        check_size(files.paths[0], shape, 4 * series.samples, MAX_VOLUME_BYTES)
        affine = series.geometry.affine
        if files.labels is not None:
            image, label_shape = open_nifti(files.labels)
            if affine[:3, 3].any():  # a series without positions has no location
                grids = [(image.affine, label_shape), (affine, shape)]
                self.check_grid(files.labels, grids, f"series {visible_text(files.name)}")
        return Volume(shape, affine, files.labels is not None, (series, files.labels))

    def _series(self, i: int) -> DicomSeries:
        return self._volumes[i].content[0]

    def window(self, i: int) -> tuple[float, float] | None:
        return self._series(i).window

    def read_frame(self, i: int, t: int) -> np.ndarray:
        frame = super().read_frame(i, t)
        return 255 - frame if self._series(i).inverted else frame

    def raw_frame(self, i: int, t: int) -> np.ndarray:
        if self._geometries[i].axis != 2:
            return super().raw_frame(i, t)
        self.check_index(i, t)
        index = self._geometries[i].slice_index(t, self.num_frames(i))
        return read_slice(self._series(i).slices[index], self._series(i))

    def load(self, i: int) -> np.ndarray:
        series = self._series(i)
        frames = np.stack([read_slice(one, series) for one in series.slices])
        return frames.transpose(2, 1, 0) if frames.ndim == 3 else frames.transpose(2, 1, 0, 3)

    def load_labels(self, i: int) -> np.ndarray | None:
        path = self._volumes[i].content[1]
        if path is None:
            return None
        from nibabel.orientations import apply_orientation, io_orientation, ornt_transform

        image, _ = open_nifti(path)
        turn = ornt_transform(
            io_orientation(image.affine), io_orientation(self._geometries[i].affine)
        )
        labels = apply_orientation(load_nifti(path), turn)
        if labels.shape != self._volumes[i].shape:
            raise DataError(
                f"{path} has the shape {labels.shape} in the orientation of its series, which has "
                f"{self._volumes[i].shape}",
                hint="export labels on the grid of the series",
            )
        return labels


class SeriesFiles(NamedTuple):
    """The files of one series.

    Attributes:
        name: name of the series.
        paths: its slices in any order.
        error: the error of a damaged file in its folder. None: no such file.
        labels: the label volume. None: no labels.
    """

    name: str
    paths: list[Path]
    error: DataError | None = None
    labels: Path | None = None


class FoundSeries(NamedTuple):
    """The content of a folder.

    Attributes:
        series: the image series by name.
        coded: files with segmentations (SEG, RTSTRUCT).
        others: all DICOM files without images.
    """

    series: dict[str, SeriesFiles]
    coded: list[Path]
    others: list[Path]


def find_series(root: Path) -> FoundSeries:
    """Find the image series in a folder and below it.

    A series is named after its folder, with the number of the series if it has several. A
    folder with a damaged ``.dcm`` file is one entry with its error, because slices are missing.
    """
    folders: dict[Path, list[Path]] = {}
    if root.is_file():
        folders[root] = [root]
    else:
        for name, inner, files in os.walk(root):
            inner[:] = sorted(n for n in inner if not n.startswith("."))
            paths = [Path(name) / n for n in files if not n.startswith(".") and n != "DICOMDIR"]
            folders[Path(name)] = [p for p in paths if not p.name.lower().endswith(NO_DICOM)]
    content = FoundSeries({}, [], [])
    ignored: Counter[str] = Counter()
    for folder, paths in folders.items():
        by_uid: dict[str, list[Path]] = defaultdict(list)
        numbers: dict[str, str] = {}
        error = None
        for path in sorted(paths):
            try:
                header = _header(path)
            except DataError as damage:
                error = error or damage
                continue
            if header is None:
                ignored["no DICOM file"] += 1
            elif "Rows" not in header or header.get("Modality") in NO_IMAGES:
                modality = header.get("Modality")
                ignored[str(modality or "without pixels")] += 1
                (content.coded if modality in CODED_LABELS else content.others).append(path)
            else:
                uid = str(header.get("SeriesInstanceUID", ""))
                by_uid[uid].append(path)
                numbers[uid] = str(header.get("SeriesNumber", ""))
        base = folder.relative_to(root).as_posix() if folder != root else ""
        base = base or (root.stem if root.is_file() else root.resolve().name)
        if error is not None:
            content.series[base] = SeriesFiles(base, paths, error)
            continue
        for uid, members in by_uid.items():
            name = base if len(by_uid) == 1 else f"{base}/{numbers[uid] or uid}"
            name = name if name not in content.series else f"{name}-{uid}"
            content.series[name] = SeriesFiles(name, members)
    if ignored:
        text = ", ".join(f"{count} {visible_text(kind)}" for kind, count in ignored.items())
        logger.info("{}: ignored files that contain no image series ({})", root, text)
    content.others.extend(content.coded)
    names = sorted(content.series, key=natural_key)
    return content._replace(series={name: content.series[name] for name in names})


def _header(path: Path) -> Any:
    """Read the elements that describe an image; None if it is not a DICOM file."""
    import pydicom  # imported here: most datasets have no DICOM file

    try:
        syntax = pydicom.filereader.read_file_meta_info(path).get("TransferSyntaxUID")
        if syntax == pydicom.uid.DeflatedExplicitVRLittleEndian:
            if path.stat().st_size > MAX_DEFLATED_BYTES:
                raise DataError(
                    f"{path} is deflated as a whole, and may expand to more than a gigabyte",
                    hint="save it in another transfer syntax, such as Explicit VR Little Endian",
                )
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=HEADER_TAGS)
    except pydicom.errors.InvalidDicomError:
        if path.suffix.lower() != ".dcm":
            return None
        raise _unreadable(path, ValueError("it has no DICOM header")) from None
    except SAM2KitError:
        raise
    except Exception as error:  # the library raises many classes for damaged files
        raise _unreadable(path, error) from error


def read_series(paths: list[Path], name: str) -> DicomSeries:
    """Sort the slices of a series and read its geometry and window from the headers.

    Raises:
        DataError: the slices differ in size or orientation, or two have the same position.
    """
    headers = [(path, _header(path)) for path in paths]
    try:
        return _series(headers, name)
    except SAM2KitError:
        raise
    except Exception as error:  # the library raises many classes for damaged files
        raise _unreadable(paths[0], error) from error


def _series(headers: list[tuple[Path, Any]], name: str) -> DicomSeries:
    forms = {(int(h.Rows), int(h.Columns), int(h.get("SamplesPerPixel", 1))) for _, h in headers}
    if len(forms) > 1:
        raise DataError(
            f"series {visible_text(name)} has slices of different sizes, {sorted(forms)[:2]}",
            hint="move the other images, such as the localizer, to a separate folder",
        )
    rows, columns, samples = forms.pop()
    path, header = headers[0]
    check_size(path, (rows, columns, samples), 4, MAX_FRAME_BYTES)
    frames = int(header.get("NumberOfFrames") or 1)
    if frames > 1 and len(headers) > 1:
        raise DataError(
            f"series {visible_text(name)} has {len(headers)} files, and {path.name} alone has "
            f"{frames} frames",
            hint="move each file of several frames to a separate folder",
        )
    affine = np.eye(4)
    if frames > 1:
        gaps = header.get("SpacingBetweenSlices") or header.get("SliceThickness") or 1
        rows_mm, columns_mm = map(float, header.get("PixelSpacing") or (1, 1))
        affine = np.diag([-columns_mm, -rows_mm, abs(float(gaps)) or 1.0, 1.0])
        slope, intercept = _rescale(header)
        slices = [DicomSlice(path, k, slope, intercept) for k in range(frames)]
    else:
        headers, affine = _sorted_slices(headers, name)
        slices = [DicomSlice(path, None, *_rescale(h)) for path, h in headers]
    header = headers[len(headers) // 2][1]
    window = None
    center, width = (_first(header.get(key)) for key in ("WindowCenter", "WindowWidth"))
    if center is not None and width is not None and width > 0 and samples == 1:
        window = center - width / 2, center + width / 2
    inverted = str(header.get("PhotometricInterpretation", "")).strip() == "MONOCHROME1"
    return DicomSeries(slices, (rows, columns), samples, VolumeGeometry(affine), window, inverted)


def _rescale(header: Any) -> tuple[float, float]:
    return float(header.get("RescaleSlope") or 1), float(header.get("RescaleIntercept") or 0)


def _first(value: Any) -> float | None:
    """Return a number, or the first of several, as a float."""
    if value is None or value == "":
        return None
    return float(value if isinstance(value, (int, float, str)) else next(iter(value)))


def _sorted_slices(
    headers: list[tuple[Path, Any]], name: str
) -> tuple[list[tuple[Path, Any]], np.ndarray]:
    """Sort slices along the normal of their plane.

    Returns:
        The slices, and ``[4,4]`` from columns, rows and slices to mm in RAS+.
    """
    keys = ("ImagePositionPatient", "ImageOrientationPatient")
    if not all(header.get(key) for _, header in headers for key in keys):
        logger.info("Series {}: no positions, sorted by instance number", visible_text(name))
        numbers = [h.get("InstanceNumber") for _, h in headers]
        if len(headers) > 1 and (None in numbers or len(set(numbers)) < len(numbers)):
            raise DataError(
                f"series {visible_text(name)} has slices with neither position nor unique instance "
                "number, so their order is unknown",
                hint="export the series again with ImagePositionPatient",
            )
        ordered = sorted(headers, key=lambda item: int(item[1].get("InstanceNumber") or 0))
        spacing = ordered[0][1].get("PixelSpacing") or (1, 1)
        thickness = float(ordered[0][1].get("SliceThickness") or 1)
        return ordered, np.diag([-float(spacing[1]), -float(spacing[0]), thickness, 1.0])
    planes = np.array([[float(v) for v in h.ImageOrientationPatient] for _, h in headers])
    if np.abs(planes - planes[0]).max() > 1e-3:
        raise DataError(
            f"series {visible_text(name)} has slices of different orientations",
            hint="move the other images, such as the localizer, to a separate folder",
        )
    positions = np.array([[float(v) for v in h.ImagePositionPatient] for _, h in headers])
    along_columns, along_rows = planes[0][:3], planes[0][3:]
    normal = np.cross(along_columns, along_rows)
    depths = positions @ normal
    order = np.argsort(depths, kind="stable")
    gaps = np.diff(depths[order])
    if len(gaps) and gaps.min() < 1e-3:
        first = headers[int(order[int(gaps.argmin())])][0]
        raise DataError(
            f"series {visible_text(name)} has two slices at the position of {first.name}",
            hint="move each time point or acquisition to a separate folder",
        )
    if len(gaps) and gaps.max() > 1.5 * np.median(gaps):
        logger.warning(
            "Series {}: a gap of {:.3g} mm between slices that are {:.3g} mm apart: slices may be "
            "missing",
            visible_text(name),
            gaps.max(),
            np.median(gaps),
        )
    ordered = [headers[k] for k in order.tolist()]
    header = ordered[0][1]
    rows_mm, columns_mm = (float(v) for v in header.get("PixelSpacing") or (1, 1))
    step = normal * float(header.get("SliceThickness") or 1)
    if len(order) > 1:
        step = (positions[order[-1]] - positions[order[0]]) / (len(order) - 1)
    affine = np.eye(4)
    # PixelSpacing has the distance of rows first. DICOM points to the left and back, NIfTI to the
    # right and front.
    affine[:3, 0], affine[:3, 1] = along_columns * columns_mm, along_rows * rows_mm
    affine[:3, 2], affine[:3, 3] = step, positions[order[0]]
    return ordered, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine


def read_slice(one: DicomSlice, series: DicomSeries) -> np.ndarray:
    """Decode a slice.

    Returns:
        ``[H,W]`` rescaled values, as stored if slope is 1 and intercept 0; ``[H,W,3]`` for colours.

    Raises:
        DataError: the slice cannot be decoded.
    """
    from pydicom.pixels import pixel_array

    try:
        pixels = pixel_array(one.path, index=one.number)
    except SAM2KitError:
        raise
    except Exception as error:  # the library raises many classes for damaged files
        raise _unreadable(one.path, error) from error
    if pixels.shape[:2] != series.size:
        raise _unreadable(one.path, ValueError(f"its pixels have the shape {pixels.shape}"))
    if series.samples > 1 or (one.slope, one.intercept) == (1, 0):
        return pixels
    if one.slope.is_integer() and one.intercept.is_integer():
        return pixels.astype(np.int32) * int(one.slope) + int(one.intercept)
    return pixels.astype(np.float32) * np.float32(one.slope) + np.float32(one.intercept)


def _unreadable(path: Path, error: Exception) -> DataError:
    if isinstance(error, DataError):
        return error
    text = visible_text(str(error) or type(error).__name__)
    hint = "replace the file"
    if "missing dependencies" in text or "Unable to decompress" in text:
        hint = "install a decoder (pip install pylibjpeg pylibjpeg-libjpeg), or decompress the file"
    return DataError(f"{path} cannot be read as DICOM: {text}", hint=hint)


def _find_labels(root: Path, name: str, masks: Path | None, names: list[str]) -> Path | None:
    """Return the label volume of a series, or None.

    Args:
        root: the dataset.
        name: name of the series: ``p1/st1/se1`` has the labels ``p1-st1-se1`` or, if no other
            series has this last part, ``se1``.
        masks: folder or file of the labels. None: beside the series.
        names: names of all series.
    """
    if masks is not None and masks.is_file():
        if len(names) > 1:
            raise DataError(
                f"{masks} is one file, but there are {len(names)} series",
                key="dataset.masks_path",
                value=str(masks),
                hint="give a folder with one label volume per series",
            )
        return masks
    last = name.rpartition("/")[2]
    keys = {name, name.replace("/", "-")}
    if sum(other.rpartition("/")[2] == last for other in names) == 1:
        keys.add(last)
    places = [masks] if masks else [root / "labels", root, root.parent / "labels", root.parent]
    for folder in places:
        if not folder.is_dir():
            continue
        for file in sorted(list_folder(folder, NIFTI_ENDINGS).files):
            stem = volume_stem(folder / file, NIFTI_ENDINGS)
            if keys & {stem, label_base(stem)}:
                return folder / file
    return None
