"""Convert datasets to another layout, without loss or with an error."""

from __future__ import annotations

import re
import shutil
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loguru import logger
from PIL import Image

from sam2kit.config.schema import Config
from sam2kit.data.build import open_source
from sam2kit.data.cvat_writer import LABELS_JSON, write_cvat
from sam2kit.data.geometry import VolumeGeometry
from sam2kit.data.label_writers import (
    LabelRecorder,
    write_ctc_labels,
    write_image,
    write_nifti,
    write_nifti_labels,
    write_stack,
    write_tiff_labels,
)
from sam2kit.data.parallel import each_video
from sam2kit.data.pictures import image_size
from sam2kit.data.problems import frame_label
from sam2kit.data.rle import encode_mask
from sam2kit.data.sources.base import DerivedSource, ObjectId, VideoSource
from sam2kit.data.sources.listing import FRAME_ENDINGS, natural_key
from sam2kit.data.sources.mask_values import VOID
from sam2kit.data.writers import (
    coco_annotation,
    coco_image,
    write_coco,
    write_id_mask,
    write_object_names,
)
from sam2kit.utils.errors import ConfigError, DataError
from sam2kit.utils.paths import file_name
from sam2kit.utils.text import plural, visible_text
from sam2kit.utils.unfinished import remove_leftovers, unfinished

TARGETS = ("davis", "coco-video", "tiff", "ctc", "nifti", "cvat")
COCO_FILE = "annotations.json"
LABELS_FILE = "labels.json"  # of target cvat


def convert(
    what: str | Path | Config | VideoSource, out: str | Path, to: str, workers: int = 0
) -> Path:
    """Write the videos of any source in another layout.

    * ``davis``: ``JPEGImages/VIDEO/FRAME.jpg`` and, for annotated frames, a palette PNG
      ``Annotations/VIDEO/FRAME.png``. A pixel belongs to one object, so overlapping masks and more
      than 254 objects per video are rejected. Ids other than 1 to 254 are numbered from 1, and
      ``objects.json`` next to the masks maps the numbers to the ids, which are restored on reading.
    * ``coco-video``: ``annotations.json`` with ``video_id``, ``order_in_video``, ``track_id`` and
      compressed run lengths, and ``images/VIDEO/FRAME.jpg``. It supports any masks. Unannotated
      frames have ``"annotated": false``. Void pixels are lost, with a warning.

    * ``tiff``: stacks ``VIDEO.tif`` with the pixel values as stored, and ``VIDEO_labels.tif``, or a
      folder of that name if some frames are unannotated. ``VIDEO_labels.txt`` names parents.
    * ``ctc``: the layout of the Cell Tracking Challenge, with the pixel values as stored. The masks
      are both segmentation and markers; ``man_track.txt`` names parents. Videos are numbered from
      01 unless their names are such numbers.
    * ``nifti``: ``images/VIDEO.nii.gz`` and ``labels/VIDEO.nii.gz`` with the affine of the source.
      Every frame must be annotated.
    * ``cvat``: a task per video, ``VIDEO/annotations.xml`` ("CVAT for video 1.1") with
      ``VIDEO/images/FRAME.jpg``, and ``labels.json``, the definition of the label that CVAT needs
      to keep the ids. It supports any masks. Void pixels are lost, with a warning.

    ``tiff``, ``ctc`` and ``nifti`` store one object per pixel and reject overlapping masks. Only
    ``tiff`` and ``ctc`` store parents; the other formats lose them, with a warning.

    Frame files are copied byte for byte; frames from videos are written as PNG. Frames keep their
    names, unless the names contradict their order: then they are renumbered from 00000, with a
    warning. Videos whose names are not valid folder names, such as ``cam1/a``, are renamed
    (``cam1-a``), with a warning. Categories, scores and empty masks are not converted. The output
    is atomic: ``out`` appears only when everything is written.

    Args:
        what: the videos, as for :func:`~sam2kit.data.build.open_source`.
        out: new or empty folder.
        to: one of the formats above.
        workers: number of processes that write; 0 (default): this process.

    Returns:
        Path to use as the data path of the result: the folder, or the JSON file in it.

    Raises:
        ConfigError: ``to`` is unknown, or ``out`` is not empty or cannot be written.
        DataError: the source is invalid, or the target cannot represent its content (overlaps, too
            many objects). Names video, frame and object.
    """
    out = Path(out)
    if to not in TARGETS:
        raise ConfigError(
            key="--to",
            value=to,
            expected=f"one of {', '.join(TARGETS)}",
            hint="davis writes frame folders with palette PNG masks, coco-video one JSON file, "
            "tiff stacks, ctc the layout of the Cell Tracking Challenge, nifti volumes, cvat tasks "
            "of the annotation tool",
        )
    # Also beside a complete result: a process may have been killed just after it was published.
    remove_leftovers(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder", hint="choose a new folder")
    source = _with_folder_names(open_source(what))
    if not source.has_masks:
        logger.info("The source has no masks; writing frames only")
    # Written to a sibling folder that is renamed at the end, so that an interrupted conversion is
    # never mistaken for a complete one.
    try:
        with unfinished(out) as folder:
            work = partial(WRITERS[to], out=folder)
            written = each_video(work, source, workers, "wrote")
            counts = _gather(written, folder / COCO_FILE if to == "coco-video" else None)
            if to == "cvat":
                (folder / LABELS_FILE).write_text(LABELS_JSON, encoding="utf-8")
            folder.replace(out)
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be written: {error}",
            hint="check permissions and free disk space; no incomplete output was left",
        ) from error
    videos, frames = plural(len(source), "video"), plural(counts["frames"], "frame")
    logger.info("Wrote {}, {} to {}", videos, frames, out)
    for change in ("renumbered", "written as PNG", "without their void pixels"):
        if counts[change]:
            logger.warning("Frames {}: {}", change, counts[change])
    if counts["parents"]:
        logger.warning("Links to parents that {} cannot store: {}", to, counts["parents"])
    if counts["numbered videos"]:
        logger.warning("Videos numbered from 01, in their order: {}", len(source))
    return out / COCO_FILE if to == "coco-video" else out


class _Renamed(DerivedSource):
    """Rename the videos of another source."""

    def __init__(self, source: VideoSource, names: list[str]) -> None:
        self.source, self.names = source, names
        self.has_masks, self.generated = source.has_masks, source.generated

    def locate(self, i: int) -> tuple[VideoSource, int]:
        return self.source, i

    def name(self, i: int) -> str:
        return self.names[i]


def _with_folder_names(source: VideoSource) -> VideoSource:
    """Rename the videos whose names are not valid folder names, and log it."""
    names: dict[str, str] = {}  # new name -> name
    for name in source.names:
        new = name if file_name(name) == name else file_name(name.replace("/", "-"))
        new = new or "video"
        names[new if new not in names else file_name(f"{name}/")] = name
    renamed = [(name, new) for new, name in names.items() if new != name]
    if not renamed:
        return source
    logger.warning(
        "Videos renamed, because their names are not valid folder names: {}, such as {} to {}",
        *(len(renamed), visible_text(renamed[0][0]), visible_text(renamed[0][1])),
    )
    return _Renamed(source, list(names))


class _Written(NamedTuple):
    """Frame counts of a converted video, and its COCO image and annotation entries."""

    counts: Counter[str]
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]


def _gather(videos: Iterable[_Written], path: Path | None) -> Counter[str]:
    """Sum the counts of all videos, and write their COCO entries to ``path`` as they arrive.

    Args:
        videos: the converted videos, with ids that count from 1 within each video.
        path: the COCO JSON. None for targets without one.
    """
    if path is None:
        return sum((video.counts for video in videos), Counter())
    counts: Counter[str] = Counter()

    def parts() -> Iterator[dict[str, Any]]:
        for video in videos:
            counts.update(video.counts)
            yield {"images": video.images, "annotations": video.annotations}

    write_coco(path, parts())
    return counts


def _write_davis(source: VideoSource, i: int, out: Path) -> _Written:
    """Write frames and palette PNG of one video in DAVIS layout."""
    counts, files = _write_frames(source, i, out / "JPEGImages")
    counts["parents"] = len(source.parents(i))
    if source.has_masks:
        folder = out / "Annotations" / source.name(i)
        folder.mkdir(parents=True)
        stems = [path.stem for path in files]
        # Most ids fit. If one does not, the video is written again with numbered objects: finding
        # out beforehand would cost an extra pass over the masks of every video.
        if not _write_palette(source, i, folder, stems, None):
            numbers: dict[ObjectId, int] = {}
            _write_palette(source, i, folder, stems, numbers)
            write_object_names(folder, {n: identity for identity, n in numbers.items()})
        if not any(folder.iterdir()):
            # On reading, a video without masks among annotated ones is an error, not unannotated.
            raise DataError(
                f"video {source.name(i)!r} has no annotated frame, which DAVIS layout cannot "
                "represent next to videos with masks",
                hint="remove the video, or convert to coco-video",
            )
    return _Written(counts, [], [])


def _write_palette(
    source: VideoSource,
    i: int,
    folder: Path,
    stems: list[str],
    numbers: dict[ObjectId, int] | None,
) -> bool:
    """Write the masks of the annotated frames of a video.

    Args:
        source: the videos.
        i: index of the video.
        folder: folder of the PNG files.
        stems: file name of each frame without extension.
        numbers: pixel value of each object, filled from 1 on. None: the ids are the pixel values.

    Returns:
        False if ``numbers`` is None and an id is not a possible pixel value; the files are
        incomplete then. Otherwise True.
    """
    for t, name in enumerate(stems):
        masks = source.read_masks(i, t)
        if masks is None:
            continue
        visible = {object_id: mask for object_id, mask in masks.items() if mask.any()}
        if numbers is None:
            if not all(type(o) is int and 0 < o < VOID for o in visible):
                return False
            values = {o: int(o) for o in visible}
        else:
            values = {o: numbers.setdefault(o, len(numbers) + 1) for o in visible}
            if len(numbers) >= VOID:
                raise DataError(
                    f"video {source.name(i)!r} has at least {VOID} objects up to "
                    f"{frame_label(source, i, t)} (object {list(numbers)[-1]!r}), but a palette "
                    f"PNG can store up to {VOID - 1}",
                    hint="convert to coco-video",
                )
        void = source.read_void(i, t)
        size = next((m.shape for m in [*visible.values(), void] if m is not None), None)
        ids = np.zeros(size or source.read_frame(i, t).shape[:2], np.uint8)
        for object_id, mask in visible.items():
            if value := int(ids[mask].max()):
                other = next(o for o, n in values.items() if n == value)
                raise DataError(
                    f"{frame_label(source, i, t)}: objects {other!r} and {object_id!r} overlap, "
                    "but a palette PNG stores one object per pixel",
                    hint="convert to coco-video, which keeps both masks",
                )
            ids[mask] = values[object_id]
        if void is not None:
            ids[void & (ids == 0)] = VOID
        write_id_mask(folder / f"{name}.png", ids)
    return True


def _write_coco(source: VideoSource, i: int, out: Path) -> _Written:
    """Write the frames of one video, and make its COCO entries with ids from 1 on."""
    counts, files = _write_frames(source, i, out / "images")
    counts["parents"] = len(source.parents(i))
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for t, path in enumerate(files):
        masks = source.read_masks(i, t)
        size = next((m.shape for m in (masks or {}).values()), None) or image_size(path)
        image = coco_image(t + 1, source.name(i), t, path.relative_to(out).as_posix(), size)
        images.append(image if masks is not None else image | {"annotated": False})
        void = source.read_void(i, t)
        counts["without their void pixels"] += void is not None and bool(void.any())
        for identity, mask in (masks or {}).items():
            if mask.any():
                runs = encode_mask(mask)
                annotations.append(coco_annotation(len(annotations) + 1, t + 1, identity, runs))
    return _Written(counts, images, annotations)


def _write_cvat(source: VideoSource, i: int, out: Path) -> _Written:
    """Write the frames and the masks of one video as a CVAT task."""
    counts, files = _write_frames(source, i, out, "images")
    counts["parents"] = len(source.parents(i))

    def frames() -> Iterable[dict[ObjectId, np.ndarray] | None]:
        for t in range(len(files)):
            void = source.read_void(i, t)
            counts["without their void pixels"] += void is not None and bool(void.any())
            yield source.read_masks(i, t)

    path = out / source.name(i) / "annotations.xml"
    write_cvat(path, source.name(i), frames(), image_size(files[0]))
    return _Written(counts, [], [])


def _write_tiff(source: VideoSource, i: int, out: Path) -> _Written:
    """Write one video as a stack, and its labels beside it."""
    name = source.name(i)
    recorder, counts = _record(source, i)
    shape, dtype = _stored(source, i)
    frames = (source.raw_frame(i, t) for t in range(source.num_frames(i)))
    write_stack(out / f"{name}.tif", frames, (len(recorder), *shape), dtype, compress=False)
    names = [f"{t:05d}" for t in range(len(recorder))]
    if [source.frame_name(i, t) for t in range(len(recorder))] != names:
        counts["renumbered"] = len(recorder)
    if source.has_masks:
        write_tiff_labels(recorder, out / f"{name}_labels.tif", source.parents(i))
    return _Written(counts, [], [])


def _write_ctc(source: VideoSource, i: int, out: Path) -> _Written:
    """Write one video as a sequence of the Cell Tracking Challenge."""
    recorder, counts = _record(source, i)
    numbered = not all(re.fullmatch(r"\d{2,3}", name) for name in source.names)
    name = f"{i + 1:02d}" if numbered else source.name(i)
    counts["numbered videos"] = numbered
    digits = max(3, len(str(len(recorder) - 1)))
    _, dtype = _stored(source, i)
    if not np.issubdtype(dtype, np.unsignedinteger):
        raise DataError(
            f"video {source.name(i)!r} has values of type {dtype}, but the Cell Tracking Challenge "
            "stores unsigned values of 8 or 16 bits",
            hint="convert to tiff",
        )
    names = [f"t{t:0{digits}d}" for t in range(len(recorder))]
    if [source.frame_name(i, t) for t in range(len(recorder))] != names:
        counts["renumbered"] = len(recorder)
    for t, frame in enumerate(names):
        write_image(out / name / f"{frame}.tif", source.raw_frame(i, t))
    if source.has_masks:
        truth = out / f"{name}_GT"
        marker = partial(_ctc_path, truth / "TRA" / "man_track", digits)
        write_ctc_labels(recorder, source.parents(i), marker, truth / "TRA" / "man_track.txt")
        (truth / "SEG").mkdir()
        for t, annotated in enumerate(recorder.annotated):
            if annotated:
                shutil.copyfile(marker(t), _ctc_path(truth / "SEG" / "man_seg", digits, t))
    return _Written(counts, [], [])


def _ctc_path(prefix: Path, digits: int, t: int) -> Path:
    return prefix.with_name(f"{prefix.name}{t:0{digits}d}.tif")


def _write_nifti(source: VideoSource, i: int, out: Path) -> _Written:
    """Write one video as a volume, and its labels as another one."""
    name = source.name(i)
    recorder, counts = _record(source, i)
    counts["parents"] = len(source.parents(i))
    geometry = source.geometry(i)
    if geometry is None:
        logger.info("{}: the spacing is unknown; writing 1 mm", source.name(i))
        geometry = VolumeGeometry.from_spacing((1, 1, 1))
    frames = np.stack([source.raw_frame(i, t) for t in range(len(recorder))])
    if frames.ndim == 4:
        if (frames != frames[..., :1]).any():
            raise DataError(
                f"video {source.name(i)!r} has colours, but a volume stores one number per voxel",
                hint="convert to tiff, davis or coco-video",
            )
        frames = frames[..., 0]
    write_nifti(out / "images" / f"{name}.nii.gz", geometry.volume(frames), geometry)
    if source.has_masks:
        (out / "labels").mkdir(exist_ok=True)
        write_nifti_labels(recorder, out / "labels" / f"{name}.nii.gz", geometry)
    return _Written(counts, [], [])


def _record(source: VideoSource, i: int) -> tuple[LabelRecorder, Counter[str]]:
    """Record the masks of a video as label images, and count its frames."""
    recorder = LabelRecorder(source.name(i))
    counts: Counter[str] = Counter({"frames": source.num_frames(i)})
    for t in range(source.num_frames(i)):
        masks = source.read_masks(i, t)
        size = next((m.shape for m in (masks or {}).values()), None)
        if size is None:  # the frame is needed for its size only
            size = source.raw_frame(i, t).shape[:2]
        recorder.add(masks, size)
        void = source.read_void(i, t)
        counts["without their void pixels"] += void is not None and bool(void.any())
    return recorder, counts


def _stored(source: VideoSource, i: int) -> tuple[tuple[int, ...], np.dtype]:
    """Return shape and type of the frames of a video, as they are stored."""
    frame = source.raw_frame(i, 0)
    return frame.shape, frame.dtype


def _write_frames(
    source: VideoSource, i: int, out: Path, below: str = ""
) -> tuple[Counter[str], list[Path]]:
    """Copy or write the frames of a video to ``out/VIDEO/below``.

    Returns:
        Numbers of frames: all, renumbered, and written as PNG; and the files in order.
    """
    video, count = source.name(i), source.num_frames(i)
    folder = out / video / below
    folder.mkdir(parents=True)
    names = [source.frame_name(i, t) for t in range(count)]
    # The reader sorts files by name, so the sorted names must give the order of the frames.
    ordered = names == sorted(set(names), key=natural_key)
    counts = Counter({"frames": count})
    if not ordered or any(file_name(name) != name for name in names):
        names = [f"{t:05d}" for t in range(count)]
        counts["renumbered"] = count
    files = []
    for t, name in enumerate(names):
        path = source.frame_path(i, t)
        if path is not None and path.suffix.lower() in FRAME_ENDINGS:
            files.append(folder / f"{name}{path.suffix}")
            shutil.copyfile(path, files[-1])
        else:
            files.append(folder / f"{name}.png")
            Image.fromarray(source.read_frame(i, t)).save(files[-1])
            counts["written as PNG"] += 1
    return counts, files


WRITERS = {
    "davis": _write_davis,
    "coco-video": _write_coco,
    "tiff": _write_tiff,
    "ctc": _write_ctc,
    "nifti": _write_nifti,
    "cvat": _write_cvat,
}
