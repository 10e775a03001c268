"""Read a video once, and record its content and its problems."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import cv2
import numpy as np

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.clip_windows import count_truth
from sam2kit.data.pictures import is_partly_damaged
from sam2kit.data.problems import (
    MAX_LISTED,
    frame_label,
    mask_size_mismatch,
    mixed_frame_sizes,
    nothing_visible,
    too_short,
    truth_out_of_reach,
)
from sam2kit.data.sources.base import LeftOut, ObjectId, VideoSource
from sam2kit.data.sources.listing import frame_numbers, interleaved
from sam2kit.utils.errors import DataError

T = TypeVar("T")
MIN_GRID_CELLS = 4  # smallest object, in cells of the mask decoder's grid (1/4 of the image size)
# IoU of two masks: from this value on, one object is where another was; below this, an object has
# moved away; from this value on, an object has not moved.
SAME_POSITION_IOU, MOVED_AWAY_IOU, UNMOVED_IOU = 0.5, 0.1, 0.7
COMPARED_PIXELS = 1 << 16  # masks are subsampled to about this many pixels to compare them
MIN_THIN_MASKS = 4
MAX_FINDINGS_PER_KIND = 3  # in one video
RANDOM_READS = 8  # frames of a video file that are read out of order


@dataclass(frozen=True)
class Finding:
    """Describe one problem.

    Attributes:
        severity: ``error``: training stops at it. ``warning``: training runs, but the model may be
            worse.
        kind: ``refused`` (a file or video that cannot be used), ``sizes``, ``empty`` (no object to
            train on), ``unannotated`` (no masks), ``supervision`` (no tracked frame has ground
            truth), ``colours``, ``identity``, ``order``, ``duplicates``, ``absent``, ``tiny``,
            ``short``, ``ignored`` (files that may be data and are not read), ``damaged`` (decoded
            in part), ``left out`` (videos, annotations and frames that cannot be used),
            ``geometry`` (labels that are not aligned with their volume), ``boxes`` (filled as if
            they were masks), ``shared`` (between training and validation).
        where: the file, or the video and frame.
        message: what is wrong, and how to fix it.
    """

    severity: str
    kind: str
    where: str
    message: str


@dataclass
class ObjectRecord:
    """Record how often and how large an object is visible.

    Attributes:
        areas: its area on each annotated frame that shows it, as a share of the frame.
        survives: whether at least one of its masks is not empty at the training size.
    """

    areas: list[float] = field(default_factory=list)
    survives: bool = False


@dataclass
class VideoRecord:
    """Record the content and the problems of one video.

    Attributes:
        name: name of the video.
        part: ``training`` or ``validation``.
        frames: number of frames.
        size: rows and columns of the first readable frame. None: no frame is readable.
        annotated: number of annotated frames.
        tracked_truth: mean number of tracked frames with ground truth per training clip. None for
            clips of one frame, or without annotated frames.
        objects: the objects by id.
        visible: number of visible objects on each annotated frame.
        hashes: ``[T]`` uint64 hashes of the pixels; 0 for unreadable frames and frames of a single
            colour.
        findings: the problems.
    """

    name: str
    part: str
    frames: int
    size: tuple[int, int] | None = None
    annotated: int = 0
    tracked_truth: float | None = None
    objects: dict[ObjectId, ObjectRecord] = field(default_factory=dict)
    visible: list[int] = field(default_factory=list)
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: str, kind: str, where: str, message: str) -> None:
        """Add a :class:`Finding`."""
        self.findings.append(Finding(severity, kind, where, message))

    def row(self) -> dict[str, Any]:
        """Return the video as a table row.

        ``annotated`` is a share of all frames, ``visible`` the mean share of annotated frames that
        show an object, ``tracked truth`` the mean number of tracked frames per training clip that
        have ground truth, ``smallest`` and ``largest`` median object areas as shares of the frame.
        """
        seen = [o.areas for o in self.objects.values() if o.areas]
        shares = [np.median(areas) for areas in seen]
        return {
            "video": self.name,
            "part": self.part,
            "frames": self.frames,
            "size": f"{self.size[1]}x{self.size[0]}" if self.size else None,
            "annotated": self.annotated / self.frames,
            "tracked truth": self.tracked_truth,
            "objects": len(seen),
            "visible": sum(map(len, seen)) / (len(seen) * self.annotated) if seen else None,
            "smallest": float(min(shares)) if shares else None,
            "largest": float(max(shares)) if shares else None,
            "problems": len(self.findings),
        }


def read_video(source: VideoSource, i: int, settings: DatasetConfig, part: str) -> VideoRecord:
    """Read every frame and mask of video ``i``.

    Args:
        source: the videos.
        i: index of the video.
        settings: ``image_size``, ``video_clip_length``, ``frame_stride`` and
            ``max_annotation_gap`` are those of training.
        part: ``training`` or ``validation``.
    """
    count = source.num_frames(i)
    record = VideoRecord(source.name(i), part, count, hashes=np.zeros(count, np.uint64))
    identities = IdentityChecker(record, lambda t: mask_label(source, i, t))
    sizes: Counter[tuple[int, int]] = Counter()
    soft_frames: list[int] = []
    annotated: dict[int, int] = {}  # annotated frame -> number of visible objects
    for t in range(count):
        where = frame_label(source, i, t)
        frame = _attempt(record, where, partial(source.read_frame, i, t))
        if frame is not None:
            sizes[frame.shape[:2]] += 1
            record.size = record.size or frame.shape[:2]
            record.hashes[t] = _hash(frame)
            _check_damage(record, source.frame_path(i, t))
        masks = _attempt(record, mask_label(source, i, t), partial(source.read_masks, i, t))
        if masks is None:
            continue
        if frame is not None and (error := mask_size_mismatch(where, frame.shape[:2], masks)):
            record.add("error", "sizes", where, str(error))
        masks = {o: mask for o, mask in masks.items() if _record_mask(record, o, mask, settings)}
        record.annotated += 1
        record.visible.append(len(masks))
        annotated[t] = len(masks)
        if has_soft_edges(masks.values()):
            soft_frames.append(t)
        identities.check_frame(t, masks)
    record.findings += [left_out_finding(entry) for entry in source.left_out_masks(i)]
    _read_at_random(record, source, i)
    if len(sizes) > 1:
        record.add("error", "sizes", record.name, str(mixed_frame_sizes(record.name, sizes)))
    if soft_frames:
        record.add(
            "warning",
            "colours",
            mask_label(source, i, soft_frames[0]),
            f"on {len(soft_frames)} frames most objects are thin seams, artefacts of colour, JPEG "
            "or smoothed masks; write masks as PNG, without "
            "smoothing",
        )
    _check_objects(record, source.has_masks, settings, bool(soft_frames))
    _check_supervision(record, annotated, settings)
    _check_frames(record, [source.frame_name(i, t) for t in range(count)], settings)
    record.findings = _shorten(record.findings)
    return record


def left_out_finding(entry: LeftOut) -> Finding:
    """Describe what a source has left out."""
    if entry.kind == "boxes":
        message = f"{entry.count} shapes are boxes, filled as masks. The first: {entry.message}"
        return Finding("warning", "boxes", entry.where, message)
    if entry.kind == "videos":
        message = f"it cannot be read and is left out: {entry.message}"
        return Finding("warning", "left out", entry.where, message)
    what = "frames without a file are" if entry.kind == "frames" else "annotations are"
    if entry.count == 1:
        what = "frame without a file is" if entry.kind == "frames" else "annotation is"
    effect = "" if entry.kind == "frames" else "; the object counts as absent there"
    message = f"{entry.count} {what} left out{effect}. The first: {entry.message}"
    return Finding("warning", "left out", entry.where, message)


def mask_label(source: VideoSource, i: int, t: int) -> str:
    """Name the masks of a frame in messages: by their file if there is one, else by the frame."""
    paths = source.mask_paths(i, t)
    return str(paths[0]) if len(paths) == 1 else frame_label(source, i, t)


def _attempt(record: VideoRecord, where: str, read: Callable[[], T]) -> T | None:
    """Return ``read()``; record a DataError as a finding and return None."""
    try:
        return read()
    except DataError as error:
        # Reading the frame and its masks can fail for the same reason; it is reported once.
        if not record.findings or record.findings[-1].message != str(error):
            record.add("error", "refused", where, str(error))
        return None


def _check_damage(record: VideoRecord, path: Path | None) -> None:
    """Find JPEG files that decoders read only in part, without an error."""
    if path is not None and is_partly_damaged(path):
        record.add(
            "warning",
            "damaged",
            str(path),
            "the file is damaged, and decoders fill the damaged part with grey or shifted blocks; "
            "replace the file",
        )


def _read_at_random(record: VideoRecord, source: VideoSource, i: int) -> None:
    """Read some frames of a video file out of order, as training does, and compare the pixels."""
    if source.frame_path(i, 0) is not None or source.is_generated(i) or record.frames < 2:
        return
    generator = np.random.default_rng(record.frames)
    picks = generator.integers(0, record.frames, RANDOM_READS - 1).tolist()
    for t in (record.frames - 1, *picks):
        where = f"{frame_label(source, i, t)}, read at random"
        frame = _attempt(record, where, partial(source.read_frame, i, t))
        if frame is not None and record.hashes[t] and _hash(frame) != record.hashes[t]:
            record.add(
                "error",
                "refused",
                where,
                "the frame differs from the one at this position when the file is read from its "
                "beginning; encode the file again, for example with ffmpeg -i FILE -c:v libx264 "
                "NEW.mp4",
            )


def _hash(frame: np.ndarray) -> int:
    """Hash the pixels of a frame to 64 bits; 0 for a frame of a single colour."""
    if (frame == frame[:1, :1]).all():  # equal black frames are no sign of a duplicate
        return 0
    digest = hashlib.blake2b(frame.tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _record_mask(
    record: VideoRecord, object_id: ObjectId, mask: np.ndarray, settings: DatasetConfig
) -> bool:
    """Record the area of a mask; return False if it is empty."""
    object_record = record.objects.setdefault(object_id, ObjectRecord())
    area = np.count_nonzero(mask)
    if area:
        object_record.areas.append(area / mask.size)
        object_record.survives = object_record.survives or _survives(mask, settings.image_size)
    return bool(area)


def _survives(mask: np.ndarray, size: int) -> bool:
    """Return whether the mask is not empty at the training size, resized as for clips."""
    import torch  # imported here, because processes without torch start five times as fast

    from sam2kit.data.transforms import resize_masks

    return bool(resize_masks(torch.from_numpy(mask)[None], (size, size)).any())


def has_soft_edges(masks: Any) -> bool:
    """Return whether most masks of a frame, and at least four, are nowhere three pixels wide.

    Smoothing or JPEG compression of a mask image leaves such seams of intermediate values along the
    edges of the objects.
    """
    masks = list(masks)
    if len(masks) < MIN_THIN_MASKS:
        return False
    kernel = np.ones((3, 3), np.uint8)
    thin = sum(not cv2.erode(mask.astype(np.uint8), kernel).any() for mask in masks)
    return thin >= MIN_THIN_MASKS and 2 * thin > len(masks)


class IdentityChecker:
    """Find ids that jump from one object to another between annotated frames, or flicker.

    *Jump*: object b is where object a was (IoU of the two masks at least 0.5), and neither is where
    it was itself (IoU below 0.1, or absent). A jump in both directions is a swap.
    *Flicker*: an object is missing on a single annotated frame, has the same position before and
    after (IoU at least 0.7), and no other object covers a tenth of it on that frame.

    There are two kinds of false alarm: an object leaves and another takes its position, which is
    likely with sparse annotations; and something without a mask hides an object on one frame.

    Args:
        record: receives the findings.
        label: names the masks of a frame in messages.
    """

    def __init__(self, record: VideoRecord, label: Callable[[int], str]) -> None:
        self.record, self.label = record, label
        # The last two annotated frames: a flicker shows only on the frame after it.
        self._previous: list[tuple[int, dict[ObjectId, np.ndarray]]] = []

    def check_frame(self, t: int, masks: Mapping[ObjectId, np.ndarray]) -> None:
        """Compare the next annotated frame with the previous ones.

        Args:
            t: number of the frame.
            masks: the masks of the visible objects, bool ``[H,W]``.
        """
        small = {o: _subsample(mask) for o, mask in masks.items()}
        if self._previous:
            self._find_jumps(self._previous[-1], small, t)
        if len(self._previous) > 1:
            self._find_flicker(small)
        self._previous = [*self._previous[-1:], (t, small)]

    def _find_jumps(
        self,
        previous: tuple[int, dict[ObjectId, np.ndarray]],
        now: dict[ObjectId, np.ndarray],
        t: int,
    ) -> None:
        before, reported = previous[1], set()
        moved = {o for o in {*before, *now} if _iou(before.get(o), now.get(o)) < MOVED_AWAY_IOU}
        for a in sorted(moved & set(before), key=str):
            for b in sorted((moved & set(now)) - {a}, key=str):
                if (b, a) in reported or _iou(before[a], now[b]) < SAME_POSITION_IOU:
                    continue
                reported.add((a, b))
                swapped = a in now and b in before and _iou(before[b], now[a]) >= SAME_POSITION_IOU
                where = self.label(previous[0])
                message = (
                    f"objects {a!r} and {b!r} swap positions after {where}"
                    if swapped
                    else f"object {b!r} is where object {a!r} was on {where}"
                )
                message += "; if it is the same object, give it the same id"
                self.record.add("warning", "identity", self.label(t), message)

    def _find_flicker(self, now: dict[ObjectId, np.ndarray]) -> None:
        (_, before), (t, between) = self._previous
        for o in sorted(set(before) & set(now) - set(between), key=str):
            mask = before[o]
            hidden = any(
                m.shape != mask.shape or (mask & m).sum() * 10 >= mask.sum()
                for m in between.values()
            )
            if not hidden and _iou(before[o], now[o]) >= UNMOVED_IOU:
                self.record.add(
                    "warning",
                    "identity",
                    self.label(t),
                    f"object {o!r} is missing on this frame only, and at the same position before "
                    "and after; if it is visible there, add its mask",
                )


def _subsample(mask: np.ndarray) -> np.ndarray:
    """Return every n-th row and column, about :data:`COMPARED_PIXELS` pixels."""
    step = max(1, round((mask.size / COMPARED_PIXELS) ** 0.5))
    return mask[::step, ::step]


def _iou(a: np.ndarray | None, b: np.ndarray | None) -> float:
    """Return the IoU of two masks; 0 if one is absent, if both are empty, or if sizes differ."""
    if a is None or b is None or a.shape != b.shape:
        return 0.0
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def _check_objects(
    record: VideoRecord, has_masks: bool, settings: DatasetConfig, has_seams: bool
) -> None:
    """Find videos without an object, and objects without a mask or too small to train on."""
    size = settings.image_size
    if not record.annotated:
        # If a mask could not be read, this explains why no frame is annotated.
        if has_masks and not any(f.kind == "refused" for f in record.findings):
            record.add(
                "warning",
                "unannotated",
                f"video {record.name!r}",
                "it has no masks, unlike other videos, and is not used for training; annotate "
                "it, or remove it",
            )
        return
    if has_masks and not any(o.survives for o in record.objects.values()):
        # If a mask could not be read, this explains why there is no object.
        if not any(f.kind == "refused" for f in record.findings):
            error = nothing_visible(record.name, record.frames, size)
            record.add("error", "empty", record.name, str(error))
        return
    for object_id, object_record in record.objects.items():
        where = f"video {record.name!r}, object {object_id!r}"
        if not object_record.areas:
            record.add(
                "warning",
                "absent",
                where,
                "it never appears, because all of its masks are empty; draw them or remove the "
                "object",
            )
            continue
        cells = float(np.median(object_record.areas)) * (size / 4) ** 2
        # Seams are small objects too, and are reported as such already.
        if not has_seams and (not object_record.survives or cells < MIN_GRID_CELLS):
            problem = (
                f"it covers {cells:.1f} cells of the {size // 4} x {size // 4} grid on which masks "
                "are predicted"
                if object_record.survives
                else f"it vanishes at {size} pixels, so it is never trained on"
            )
            record.add(
                "warning",
                "tiny",
                where,
                f"{problem}; increase dataset.image_size, or crop the frames around the objects",
            )


def _check_supervision(
    record: VideoRecord, annotated: Mapping[int, int], settings: DatasetConfig
) -> None:
    """Count the tracked frames that have ground truth, and find videos without any.

    Args:
        record: the video.
        annotated: the number of visible objects on each annotated frame.
        settings: see :func:`read_video`.
    """
    starts = [t for t, visible in annotated.items() if visible]
    length, limit = settings.video_clip_length, settings.max_annotation_gap
    if not starts or length < 2 or record.frames < 2:
        return
    frames = record.frames
    record.tracked_truth = count_truth(
        starts, annotated, frames, length, settings.frame_stride, limit
    )
    where = f"video {record.name!r}"
    if not record.tracked_truth:
        error = truth_out_of_reach(record.name, list(annotated), starts, limit)
        record.add("error", "supervision", where, str(error))
    elif all(len(o.areas) < 2 for o in record.objects.values()):
        ids = [repr(i) for i, o in record.objects.items() if o.areas]
        listed = ", ".join(ids[:MAX_LISTED]) + ", ..." * (len(ids) > MAX_LISTED)
        record.add(
            "error",
            "supervision",
            where,
            f"each object ({listed}) is visible on one annotated frame only, so no tracked frame "
            "shows an object that was prompted before; if these are the same object, give it the "
            "same id on all frames, otherwise annotate further frames",
        )


def _check_frames(record: VideoRecord, names: Sequence[str], settings: DatasetConfig) -> None:
    """Find short videos, frames out of order or missing, and duplicate frames."""
    span = (settings.video_clip_length - 1) * settings.frame_stride + 1
    where = f"video {record.name!r}"
    if record.frames < span:
        is_error = settings.short_videos == "error"
        problem = too_short(record.name, record.frames, span)
        advice = (
            "remove it from the split"
            if is_error
            else "it is played forwards and backwards (dataset.short_videos)"
        )
        record.add("error" if is_error else "warning", "short", where, f"{problem}; {advice}")
    if order := order_problem(names):
        record.add("warning", "order", where, order)
    first: dict[int, int] = {}
    pairs = [
        (first[h], t)
        for t, h in enumerate(record.hashes.tolist())
        if h and first.setdefault(h, t) != t
    ]
    if pairs:
        a, b = (names[t] for t in pairs[0])
        more = f" ({len(pairs)} such pairs)" if len(pairs) > 1 else ""
        record.add(
            "warning",
            "duplicates",
            where,
            f"frames {a} and {b} have the same pixels{more}; remove the copies",
        )


def order_problem(names: Sequence[str]) -> str | None:
    """Check the order of frames against the numbers at the ends of their names.

    A decreasing number contradicts the order if most numbers increase. If most numbers increase by
    the same step, a larger step is a gap. Names that differ in more than a number, and irregular
    numbers such as times, are not checked.

    Returns:
        The problem and its fix, or None.
    """
    if pair := interleaved(names):
        return (
            f"frames {pair[0]} and {pair[1]} are channels or slices of one time point, but read "
            "as consecutive frames; put each channel or slice into a separate folder"
        )
    matches = [re.fullmatch(r"(.*?)(\d+)(\D*)", name) for name in names]
    # Leading zeros belong to the number: f099 and f100 have the same prefix.
    parts = [m and (m[1].rstrip("0"), m[3]) for m in matches]
    numbers: Sequence[Any] | None = frame_numbers(names)
    if numbers is None and None not in parts and len(set(parts)) > 1:
        return _several_series([(p, int(m[2])) for p, m in zip(parts, matches, strict=True) if m])
    if len(names) < 3 or (numbers is None and (len(set(parts)) > 1 or not matches[0])):
        return None
    steps = np.diff(numbers or [int(match[2]) for match in matches if match])
    usual_step, frequency = Counter(steps.tolist()).most_common(1)[0]
    decreases = np.flatnonzero(steps <= 0)
    if 0 < 2 * len(decreases) < len(steps):
        t = int(decreases[0])
        return (
            f"frame {names[t + 1]} comes after {names[t]}, although its number is smaller; "
            "number the frames in their order"
        )
    gaps = np.flatnonzero(steps > usual_step)
    if 2 * frequency <= len(steps) or usual_step <= 0 or not len(gaps):
        return None
    t = int(gaps[0])
    more = f", and in {len(gaps) - 1} more gaps" if len(gaps) > 1 else ""
    return (
        f"frames are missing between {names[t]} and {names[t + 1]}{more}, where the other names "
        f"increase in steps of {usual_step}; add the frames, or split the video there"
    )


def _several_series(frames: Sequence[tuple[Any, int]]) -> str | None:
    """Describe frames of several series in one folder, such as left_0, right_0, left_1, ..."""
    series: dict[Any, set[int]] = {}
    for part, number in frames:
        series.setdefault(part, set()).add(number)
    first, second = sorted(series.values(), key=len)[-2:]
    if 3 * len(series) > len(frames) or 2 * len(first & second) < len(first):
        return None
    names = " and ".join(repr("".join((p[0], "N", p[1]))) for p in list(series)[:3])
    return (
        f"the frames are named in {len(series)} series, {names}, with the same numbers, and are "
        "read one series after the other; put each series into a separate folder"
    )


def _shorten(findings: list[Finding]) -> list[Finding]:
    """Keep the first findings of each kind; the last of them says how many more there are."""
    shortened, totals = [], Counter((f.kind, f.severity) for f in findings)
    counts: Counter[tuple[str, str]] = Counter()
    for f in findings:
        key = (f.kind, f.severity)
        counts[key] += 1
        if counts[key] > MAX_FINDINGS_PER_KIND:
            continue
        more = totals[key] - MAX_FINDINGS_PER_KIND
        if counts[key] == MAX_FINDINGS_PER_KIND and more > 0:
            f = Finding(*key[::-1], f.where, f"{f.message} (and {more} more in this video)")
        shortened.append(f)
    return shortened
