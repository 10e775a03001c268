"""What stands in a video and what is wrong with it, found by reading all of it once."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, TypeVar

import cv2
import numpy as np

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.problems import nothing_visible, place, too_short, unlike_frames, unlike_mask
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.utils.errors import DataError

T = TypeVar("T")
LEAST_GRID_AREA = 4  # of the mask decoder's grid, which has a quarter of the training size
SAME_PLACE, ELSEWHERE, UNMOVED = 0.5, 0.1, 0.7  # IoU
COMPARED_PIXELS = 1 << 16  # masks are thinned out to about so many to be compared
LEAST_THIN_IDS = 4
TOLD_OF_A_KIND = 3  # in a video


@dataclass(frozen=True)
class Finding:
    """One problem.

    Attributes:
        severity: ``error``: training stops at it; ``warning``: training goes on, and suffers.
        kind: ``refused`` (a file or video that cannot be used), ``sizes``, ``empty`` (no object to
            train on), ``colours``, ``identity``, ``order``, ``duplicates``, ``absent``, ``tiny``,
            ``short``, ``shared`` (between training and validation).
        where: the file, or the video and frame.
        message: what is wrong, and what to do.
    """

    severity: str
    kind: str
    where: str
    message: str


@dataclass
class ObjectRecord:
    """How often and how large an object is seen.

    Attributes:
        areas: pixels on each annotated frame that shows it, as shares of the frame.
        survives: whether one of these masks is still there at the training size.
    """

    areas: list[float] = field(default_factory=list)
    survives: bool = False


@dataclass
class VideoRecord:
    """What one video holds.

    Attributes:
        part: ``training`` or ``validation``.
        size: rows and columns of the first frame that can be read; None: of none.
        annotated: number of annotated frames.
        objects: by their ids.
        visible: on each annotated frame, how many objects are seen.
        hashes: of each frame's pixels, uint64; 0 for frames of one colour and unreadable ones.
    """

    name: str
    part: str
    frames: int
    size: tuple[int, int] | None = None
    annotated: int = 0
    objects: dict[ObjectId, ObjectRecord] = field(default_factory=dict)
    visible: list[int] = field(default_factory=list)
    hashes: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint64))
    findings: list[Finding] = field(default_factory=list)

    def add(self, severity: str, kind: str, where: str, message: str) -> None:
        self.findings.append(Finding(severity, kind, where, message))

    def row(self) -> dict[str, Any]:
        """The video as a row of a table; shares are of annotated frames and of the frame."""
        seen = [o.areas for o in self.objects.values() if o.areas]
        shares = [np.median(areas) for areas in seen]
        return {
            "video": self.name,
            "part": self.part,
            "frames": self.frames,
            "size": f"{self.size[1]}x{self.size[0]}" if self.size else None,
            "annotated": self.annotated / self.frames,
            "objects": len(seen),
            "visible": sum(map(len, seen)) / (len(seen) * self.annotated) if seen else None,
            "smallest": float(min(shares)) if shares else None,
            "largest": float(max(shares)) if shares else None,
            "problems": len(self.findings),
        }


def read_video(source: VideoSource, i: int, settings: DatasetConfig, part: str) -> VideoRecord:
    """Read every frame and mask of video ``i``.

    Args:
        settings: ``image_size``, ``video_clip_length`` and ``frame_stride`` are those of training.
        part: ``training`` or ``validation``.
    """
    count = source.num_frames(i)
    record = VideoRecord(source.name(i), part, count, hashes=np.zeros(count, np.uint64))
    watch = IdentityWatch(record, lambda t: mask_place(source, i, t))
    sizes: Counter[tuple[int, int]] = Counter()
    soft: list[int] = []
    for t in range(count):
        where = place(source, i, t)
        frame = _attempt(record, where, partial(source.read_frame, i, t))
        if frame is not None:
            sizes[frame.shape[:2]] += 1
            record.size = record.size or frame.shape[:2]
            record.hashes[t] = _hash(frame)
        masks = _attempt(record, mask_place(source, i, t), partial(source.read_masks, i, t))
        if masks is None:
            continue
        if frame is not None and (fault := unlike_mask(where, frame.shape[:2], masks)):
            record.add("error", "sizes", where, fault)
        masks = {o: mask for o, mask in masks.items() if _note(record, o, mask, settings)}
        record.annotated += 1
        record.visible.append(len(masks))
        if has_soft_edges(masks.values()):
            soft.append(t)
        watch.see(t, masks)
    if len(sizes) > 1:
        record.add("error", "sizes", record.name, unlike_frames(record.name, sizes))
    if soft:
        record.add(
            "warning",
            "colours",
            mask_place(source, i, soft[0]),
            f"on {len(soft)} frames most objects are thin seams, as where a colour or JPEG picture "
            "or a smoothed mask became object numbers; write masks without smoothing, as PNG",
        )
    _judge_objects(record, source.has_masks, settings, bool(soft))
    _judge_frames(record, [source.frame_name(i, t) for t in range(count)], settings)
    record.findings = _shortened(record.findings)
    return record


def mask_place(source: VideoSource, i: int, t: int) -> str:
    """What to call the masks of a frame: their file, or the frame."""
    paths = source.mask_paths(i, t)
    return str(paths[0]) if len(paths) == 1 else place(source, i, t)


def _attempt(record: VideoRecord, where: str, read: Callable[[], T]) -> T | None:
    try:
        return read()
    except DataError as error:
        if not record.findings or record.findings[-1].message != str(error):
            record.add("error", "refused", where, str(error))
        return None


def _hash(frame: np.ndarray) -> int:
    if (frame == frame[:1, :1]).all():  # black frames are equal everywhere and mean nothing
        return 0
    digest = hashlib.blake2b(frame.tobytes(), digest_size=8)
    return int.from_bytes(digest.digest(), "little")


def _note(record: VideoRecord, who: ObjectId, mask: np.ndarray, settings: DatasetConfig) -> bool:
    """Whether the mask shows anything; if so, note it."""
    own = record.objects.setdefault(who, ObjectRecord())
    area = np.count_nonzero(mask)
    if area:
        own.areas.append(area / mask.size)
        own.survives = own.survives or _survives(mask, settings.image_size)
    return bool(area)


def _survives(mask: np.ndarray, size: int) -> bool:
    """Whether anything is left at the training size, by the rule of the clips."""
    import torch  # here, for processes that need no torch start in a fifth of the time

    from sam2kit.data.transforms import resize_masks

    return bool(resize_masks(torch.from_numpy(mask)[None], (size, size)).any())


def has_soft_edges(masks: Any) -> bool:
    """Whether most of a frame's masks, four at least, are nowhere three pixels wide."""
    masks = list(masks)
    if len(masks) < LEAST_THIN_IDS:
        return False
    kernel = np.ones((3, 3), np.uint8)
    thin = sum(not cv2.erode(mask.astype(np.uint8), kernel).any() for mask in masks)
    return thin >= LEAST_THIN_IDS and 2 * thin > len(masks)


class IdentityWatch:
    """Finds ids that jump from one object to another between annotated frames, or flicker.

    *Jump*: where object a was, object b now is (IoU of the two masks 0.5 or more), and neither is
    where it was itself (IoU below 0.1, or absent). In both directions at once it is a swap.
    *Flicker*: an object is gone on one annotated frame alone, before and after it has the same
    place (IoU 0.7 or more), and meanwhile no other object covers a tenth of it.

    A false alarm is an object that leaves just as another takes its place, which happens where
    few frames are annotated, and one that something without a mask hides on a single frame.
    """

    def __init__(self, record: VideoRecord, place: Callable[[int], str]) -> None:
        self.record, self.place = record, place
        self._seen: list[tuple[int, dict[ObjectId, np.ndarray]]] = []  # the last two frames

    def see(self, t: int, masks: Mapping[ObjectId, np.ndarray]) -> None:
        """The next annotated frame, with the objects that are seen on it."""
        small = {o: _thinned(mask) for o, mask in masks.items()}
        if self._seen:
            self._find_jumps(self._seen[-1], small, t)
        if len(self._seen) > 1:
            self._find_flicker(small)
        self._seen = [*self._seen[-1:], (t, small)]

    def _find_jumps(
        self,
        earlier: tuple[int, dict[ObjectId, np.ndarray]],
        now: dict[ObjectId, np.ndarray],
        t: int,
    ) -> None:
        before, told = earlier[1], set()
        moved = {o for o in {*before, *now} if _iou(before.get(o), now.get(o)) < ELSEWHERE}
        for a in sorted(moved & set(before), key=str):
            for b in sorted((moved & set(now)) - {a}, key=str):
                if (b, a) in told or _iou(before[a], now[b]) < SAME_PLACE:
                    continue
                told.add((a, b))
                swapped = a in now and b in before and _iou(before[b], now[a]) >= SAME_PLACE
                where = self.place(earlier[0])
                what = (
                    f"objects {a!r} and {b!r} change places after {where}"
                    if swapped
                    else f"object {b!r} is where object {a!r} was on {where}"
                )
                what += "; where it is one object, give it one id"
                self.record.add("warning", "identity", self.place(t), what)

    def _find_flicker(self, now: dict[ObjectId, np.ndarray]) -> None:
        (_, before), (t, between) = self._seen
        for o in sorted(set(before) & set(now) - set(between), key=str):
            own = before[o]
            hidden = any(
                m.shape != own.shape or (own & m).sum() * 10 >= own.sum() for m in between.values()
            )
            if not hidden and _iou(before[o], now[o]) >= UNMOVED:
                self.record.add(
                    "warning",
                    "identity",
                    self.place(t),
                    f"object {o!r} is gone on this frame alone, and unmoved before and after; if "
                    "it is to be seen there, add its mask",
                )


def _thinned(mask: np.ndarray) -> np.ndarray:
    step = max(1, round((mask.size / COMPARED_PIXELS) ** 0.5))
    return mask[::step, ::step]


def _iou(a: np.ndarray | None, b: np.ndarray | None) -> float:
    if a is None or b is None or a.shape != b.shape:
        return 0.0
    union = np.count_nonzero(a | b)
    return np.count_nonzero(a & b) / union if union else 0.0


def _judge_objects(
    record: VideoRecord, has_masks: bool, settings: DatasetConfig, soft: bool
) -> None:
    size = settings.image_size
    if has_masks and not any(o.survives for o in record.objects.values()):
        if not any(f.kind == "refused" for f in record.findings):  # which is why there is none
            fault = nothing_visible(record.name, record.frames, size)
            record.add("error", "empty", record.name, fault)
        return
    for who, own in record.objects.items():
        where = f"video {record.name!r}, object {who!r}"
        if not own.areas:
            record.add(
                "warning",
                "absent",
                where,
                "it never appears: all of its masks are empty; draw them or remove the object",
            )
            continue
        grid = float(np.median(own.areas)) * (size / 4) ** 2
        if not soft and (not own.survives or grid < LEAST_GRID_AREA):
            what = (
                f"it covers {grid:.1f} cells of the {size // 4} x {size // 4} that masks are "
                "predicted on"
                if own.survives
                else f"nothing of it is left at {size} pixels: it is never trained on"
            )
            record.add(
                "warning",
                "tiny",
                where,
                f"{what}; raise dataset.image_size, or crop the frames around the objects",
            )


def _judge_frames(record: VideoRecord, names: Sequence[str], settings: DatasetConfig) -> None:
    span = (settings.video_clip_length - 1) * settings.frame_stride + 1
    where = f"video {record.name!r}"
    if record.frames < span:
        stops = settings.short_videos == "error"
        fault = too_short(record.name, record.frames, span)
        more = "leave it out" if stops else "it is played back and forth (dataset.short_videos)"
        record.add("error" if stops else "warning", "short", where, f"{fault}; {more}")
    if order := order_fault(names):
        record.add("warning", "order", where, order)
    first: dict[int, int] = {}
    pairs = [
        (first[h], t)
        for t, h in enumerate(record.hashes.tolist())
        if h and first.setdefault(h, t) != t
    ]
    if pairs:
        a, b = (names[t] for t in pairs[0])
        more = f" ({len(pairs)} such frames)" if len(pairs) > 1 else ""
        record.add(
            "warning",
            "duplicates",
            where,
            f"frames {a} and {b} are the same picture{more}; remove what was copied",
        )


def order_fault(names: Sequence[str]) -> str | None:
    """What the numbers at the ends of the frames' names say against their order.

    Numbers that fall (most rise) contradict it; where most rise by the same step, larger steps are
    gaps. Names that differ in more than a number, and irregular ones such as times, say nothing.
    """
    found = [re.fullmatch(r"(.*?)(\d+)(\D*)", name) for name in names]
    if len(names) < 3 or len({m and (m[1].rstrip("0"), m[3]) for m in found}) > 1 or not found[0]:
        return None
    steps = np.diff([int(match[2]) for match in found if match])
    usual, times = Counter(steps.tolist()).most_common(1)[0]
    back = np.flatnonzero(steps <= 0)
    if 0 < 2 * len(back) < len(steps):
        t = int(back[0])
        return (
            f"frame {names[t + 1]} stands after {names[t]}, against the numbers in their names; "
            "number the frames in their order"
        )
    gaps = np.flatnonzero(steps > usual)
    if 2 * times <= len(steps) or usual <= 0 or not len(gaps):
        return None
    t = int(gaps[0])
    more = f", and at {len(gaps) - 1} more places" if len(gaps) > 1 else ""
    return (
        f"frames are missing between {names[t]} and {names[t + 1]}{more}, where the others count "
        f"in steps of {usual}; add them, or cut the video there"
    )


def _shortened(findings: list[Finding]) -> list[Finding]:
    """The first few of each kind, the last of which says how many there are."""
    kept, counts = [], Counter((f.kind, f.severity) for f in findings)
    told: Counter[tuple[str, str]] = Counter()
    for f in findings:
        key = (f.kind, f.severity)
        told[key] += 1
        if told[key] > TOLD_OF_A_KIND:
            continue
        more = counts[key] - TOLD_OF_A_KIND
        if told[key] == TOLD_OF_A_KIND and more > 0:
            f = Finding(*key[::-1], f.where, f"{f.message} (and {more} more in this video)")
        kept.append(f)
    return kept
