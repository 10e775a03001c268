"""Assign videos to training, validation and test, and recognise them in later commands.

Which videos are held out depends on their names alone, not on a seed or on the other videos: the
hash of a name is a position from 0 to 1, and the videos with the lowest positions validate. A run
stores its assignment with hashes of some frames, so that a video is recognised even if it was
renamed or copied.
"""

from __future__ import annotations

import hashlib
import math
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, TypedDict

import numpy as np
from loguru import logger

from sam2kit.data.fingerprint import (
    HASHED_FRAMES,
    MAX_HASHED_VIDEOS,
    FrameHasher,
    full_video,
    identifying_frames,
    stored_videos,
)
from sam2kit.data.sources.base import VideoSource
from sam2kit.utils.errors import DataError, SAM2KitError
from sam2kit.utils.readers import check_types, read_json

SPLITS_FILE = "splits.json"
SCHEMA_VERSION = 1
TRAIN, VALIDATION, TEST = PARTS = ("train", "validation", "test")


class _StoredVideo(TypedDict):
    name: str
    frames: list[int]
    content: list[str]


class _StoredSplits(TypedDict):
    schema_version: int
    train: list[_StoredVideo]
    validation: list[_StoredVideo]
    test: list[_StoredVideo]
    trained_before: list[_StoredVideo]


@dataclass(frozen=True)
class SplitVideo:
    """Identify a video, or consecutive frames of one, in a stored split.

    Attributes:
        name: its name in its dataset.
        frames: index of its first frame in the full video, and index after its last one. The full
            video is the video before it was split by time.
        content: hashes of some frames of the full video, each as ``INDEX:HASH``; earlier versions
            stored no index. Empty if all frames have a single colour, or if the dataset is too
            large; then the name identifies the video.
    """

    name: str
    frames: tuple[int, int]
    content: tuple[str, ...] = ()

    def same_video(self, other: SplitVideo) -> bool:
        """Return whether both belong to the same full video, or to copies of different length.

        All frames that both have hashes of must be equal. A hash that occurs twice in a video, such
        as at the static start of a film by a fixed camera, identifies nothing. Without any other
        hash, the names decide.
        """
        ours, theirs = self._hashes, other._hashes
        if ours is None or theirs is None:
            return self._same_unordered(other)
        common = ours.keys() & theirs.keys()
        if any(ours[t] != theirs[t] for t in common):
            return False
        hashes = (*ours.values(), *theirs.values())
        return self.name == other.name or any(hashes.count(ours[t]) == 2 for t in common)

    @cached_property
    def _hashes(self) -> dict[int, str] | None:
        """The hashes by frame index; None if an earlier version stored them, without indices."""
        entries = [entry.partition(":") for entry in self.content]
        if not all(colon and index.isdecimal() for index, colon, _ in entries):
            return None
        return {int(index): digest for index, _, digest in entries}

    def _same_unordered(self, other: SplitVideo) -> bool:
        """Compare hashes of which some have no frame index; see :meth:`same_video`."""
        ours, theirs = (
            # Earlier versions did not hash the last frame.
            v.content
            if v._hashes is None
            else [v._hashes[t] for t in HASHED_FRAMES if t in v._hashes]
            for v in (self, other)
        )
        is_static = any(len(hashes) > 1 and len(set(hashes)) == 1 for hashes in (ours, theirs))
        if not ours or not theirs or is_static:
            return self.name == other.name
        return len({*ours} & {*theirs}) == min(len({*ours}), len({*theirs}))

    def overlaps(self, other: SplitVideo) -> bool:
        """Return whether both share frames of a full video; two parts of one video share none."""
        (start, stop), (other_start, other_stop) = self.frames, other.frames
        return start < other_stop and other_start < stop and self.same_video(other)


def _length(video: SplitVideo) -> int:
    return video.frames[1] - video.frames[0]


class _VideoLookup:
    """Find videos by their full video."""

    def __init__(self, videos: Iterable[SplitVideo]) -> None:
        self._by_key: dict[str, list[SplitVideo]] = defaultdict(list)
        for video in videos:
            for key in self._keys(video):
                self._by_key[key].append(video)

    @staticmethod
    def _keys(video: SplitVideo) -> set[str]:
        return {*(entry.rpartition(":")[2] for entry in video.content), f"name {video.name}"}

    def same_video(self, video: SplitVideo) -> Iterator[SplitVideo]:
        keys = sorted(self._keys(video))
        candidates = dict.fromkeys(v for key in keys for v in self._by_key.get(key, ()))
        return (v for v in candidates if v.same_video(video))


@dataclass(frozen=True)
class Splits:
    """The videos that a run trains on, validates on (to select its checkpoint) and tests on.

    Attributes:
        train, validation, test: the videos of the run.
        trained_before: videos that the weights from which the run started were trained on.
        seed: draw the held-out videos with this seed, as versions without stored splits did. If
            None (default), use the rule of :func:`assign`.
        is_selected: whether the validation videos selected the checkpoint that stores the splits,
            unlike ``last.ckpt``.
    """

    train: tuple[SplitVideo, ...] = ()
    validation: tuple[SplitVideo, ...] = ()
    test: tuple[SplitVideo, ...] = ()
    trained_before: tuple[SplitVideo, ...] = ()
    seed: int | None = field(default=None, compare=False)
    is_selected: bool = field(default=True, compare=False)

    @cached_property
    def _lookups(self) -> dict[str, _VideoLookup]:
        trained = {TRAIN: (*self.train, *self.trained_before)}
        return {part: _VideoLookup(v) for part, v in (self._parts() | trained).items()}

    def _parts(self) -> dict[str, tuple[SplitVideo, ...]]:
        return {TRAIN: self.train, VALIDATION: self.validation, TEST: self.test}

    def assigned(self, source: VideoSource) -> dict[int, str]:
        """Return the part (see :data:`PARTS`) of each video of a source, for known videos."""
        if not any(self._parts().values()) and not self.trained_before:
            return {}
        parts = {}
        for i, video in zip(stored_videos(source), describe(source), strict=True):
            matches = [(p, v) for p, seen in self._lookups.items() for v in seen.same_video(video)]
            # A dataset may have copies of a video in two parts.
            matches.sort(key=lambda match: match[1].name != video.name)
            if matches:
                parts[i] = matches[0][0]
        return parts

    def trained_on(self, videos: Iterable[SplitVideo]) -> list[tuple[SplitVideo, SplitVideo]]:
        """Return the videos that were trained on, each with the training video it repeats."""
        return self._repeated(TRAIN, videos)

    def selected_on(self, videos: Iterable[SplitVideo]) -> list[tuple[SplitVideo, SplitVideo]]:
        """Return the videos on which the checkpoint was selected; see :meth:`trained_on`."""
        return self._repeated(VALIDATION, videos)

    def _repeated(
        self, part: str, videos: Iterable[SplitVideo]
    ) -> list[tuple[SplitVideo, SplitVideo]]:
        known = self._lookups[part]
        pairs = ((v, next(filter(v.overlaps, known.same_video(v)), None)) for v in videos)
        return [(video, repeated) for video, repeated in pairs if repeated is not None]

    def resembling(
        self, videos: Iterable[SplitVideo], max_frames: int | None = None
    ) -> list[SplitVideo]:
        """Return the videos that may be copies of training or validation videos, encoded again.

        These have the name and the number of frames of such a video, but other pixels.

        Args:
            videos: videos that are neither trained on nor selected on.
            max_frames: the limit that was applied to ``videos``. None (default): no limit.
        """
        known: dict[str, set[int]] = defaultdict(set)
        for video in (*self.train, *self.trained_before, *self.validation):
            known[video.name].add(min(_length(video), max_frames or _length(video)))
        return [v for v in videos if v.content and _length(v) in known.get(v.name, ())]

    def training_checksum(self) -> str:
        """Return a checksum of the training videos, independent of their order."""
        videos = sorted(repr((v.name, v.frames, v.content)) for v in self.train)
        text = "\n".join(videos).encode("utf-8", "surrogatepass")
        return hashlib.blake2b(text, digest_size=8).hexdigest()

    def continued(self) -> Splits:
        """Return the splits for a run that starts from the weights of this one."""
        before = tuple(dict.fromkeys((*self.train, *self.trained_before)))
        # Unlike the draw of earlier versions, known videos keep their part if others are added.
        seed = None if self.train else self.seed
        return replace(self, trained_before=before, seed=seed)

    def to_dict(self) -> dict[str, Any]:
        """Return the content of ``splits.json``, also stored in checkpoints."""
        content: dict[str, Any] = {"schema_version": SCHEMA_VERSION}
        for part, videos in (self._parts() | {"trained_before": self.trained_before}).items():
            content[part] = [
                {"name": v.name, "frames": list(v.frames), "content": list(v.content)}
                for v in videos
            ]
        return content

    @staticmethod
    def from_dict(content: Any, where: object, error: type[SAM2KitError] = DataError) -> Splits:
        """Read the content of ``splits.json``.

        Args:
            content: the content.
            where: name of its file.
            error: class of the errors.

        Raises:
            SAM2KitError: of class ``error``: the content is damaged or from another version.
        """
        hint = "give splits.json or a checkpoint of a run of this version of sam2kit"
        check_types(content, _StoredSplits, where, hint, error)
        version = content["schema_version"]
        if version != SCHEMA_VERSION:
            raise error(
                f"{where}: splits",
                key="schema_version",
                value=version,
                expected=str(SCHEMA_VERSION),
                hint=hint,
            )
        parts = []
        for part in (*PARTS, "trained_before"):
            if any(len(v["frames"]) != 2 for v in content[part]):
                raise error(f"{where} is damaged: frames of {part} are not two numbers", hint=hint)
            parts.append(
                tuple(
                    SplitVideo(v["name"], (v["frames"][0], v["frames"][1]), tuple(v["content"]))
                    for v in content[part]
                )
            )
        train, validation, test, trained_before = parts
        return Splits(train, validation, test, trained_before)


def read_splits(path: str | Path) -> Splits:
    """Read ``splits.json``, or the one in a run directory.

    Raises:
        DataError: the file does not exist, or it is damaged.
    """
    path = Path(path)
    file = path / SPLITS_FILE if path.is_dir() else path
    hint = f"give the {SPLITS_FILE} of a run, or its run directory"
    try:
        return Splits.from_dict(read_json(file, hint=hint), file)
    except FileNotFoundError:
        raise DataError(
            f"{file} does not exist", key="valdataset.splits", value=str(path), hint=hint
        ) from None


def assign(
    names: Sequence[str],
    validation: float,
    test: float,
    known: Mapping[int, str] | None = None,
) -> list[str]:
    """Assign each video to a part by the hash of its name.

    The hash is a position from 0 to 1. Videos at positions below ``validation`` validate, videos at
    positions from ``1 - test`` on test, so a video keeps its part when other videos are added or
    removed. Only if a part would be empty, or get less than half or more than twice its share, the
    videos at the next positions are moved into or out of it.

    Args:
        names: names of the videos.
        validation: share of the videos to validate on, 0 to 1; 0: no videos.
        test: share of the videos to test on, 0 to 1; 0: no videos.
        known: part that an earlier run assigned, by index of the video. None (default): no earlier
            run.

    Returns:
        An item of :data:`PARTS` per video.
    """
    known = {} if known is None else known
    positions = {i: _position(names[i]) for i in range(len(names)) if i not in known}
    free = sorted(positions, key=lambda i: (positions[i], names[i]))
    parts = [known.get(i, TRAIN) for i in range(len(names))]
    for i in free:
        if positions[i] < validation:
            parts[i] = VALIDATION
        elif positions[i] >= 1 - test:
            parts[i] = TEST
    held_out = [(VALIDATION, validation, free), (TEST, test, free[::-1])]
    held_out = [(part, share * len(names), order) for part, share, order in held_out if share]
    max_count = len(names) - len(held_out)  # the other parts need one each
    counts = Counter(parts)
    for part, expected, order in held_out:
        high = min(max(1, math.ceil(2 * expected)), max_count)
        for i in reversed(order):
            too_many = counts[part] > high or (counts[part] > 1 and not counts[TRAIN])
            if too_many and parts[i] == part:
                parts[i] = TRAIN
                counts.update({part: -1, TRAIN: 1})
    for part, expected, order in held_out:
        low = max(1, math.floor(expected / 2))
        for i in order:
            if counts[part] < low and counts[TRAIN] > 1 and parts[i] == TRAIN:
                parts[i] = part
                counts.update({part: 1, TRAIN: -1})
    return parts


def _position(name: str) -> float:
    digest = hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=8).digest()
    return int.from_bytes(digest, "big") / 2**64


def drawn(names: Sequence[str], fraction: float, seed: int) -> list[str]:
    """Assign videos as versions without stored splits did: drawn with the seed of the run."""
    n = len(names)
    by_name = sorted(range(n), key=lambda i: names[i])
    shuffled = np.random.default_rng((seed, 0)).permutation(n)
    count = min(max(round(n * fraction), 1), n - 1)
    held_out = {by_name[k] for k in shuffled[:count].tolist()}
    return [VALIDATION if i in held_out else TRAIN for i in range(n)]


def describe(source: VideoSource, hasher: FrameHasher | None = None) -> list[SplitVideo]:
    """Identify the videos of a source, so that they are recognised after renaming or copying.

    Up to :data:`~sam2kit.data.fingerprint.SAMPLED_FRAMES` frames are decoded, but at least two of
    each video, up to :data:`~sam2kit.data.fingerprint.MAX_HASHED_VIDEOS` videos. Generated videos
    are not listed: every epoch has new ones.

    Args:
        source: the videos.
        hasher: keeps the hashes of frames. None (default): decode all frames.
    """
    hasher = hasher or FrameHasher()
    frames = identifying_frames(source, with_last=True)
    if len(frames) > MAX_HASHED_VIDEOS:
        logger.info("{} videos are too many to hash; identifying them by name", len(frames))
    videos = []
    for i, hashed in frames.items():
        full, k, start = full_video(source, i)
        content = _hashes(full, k, hashed, hasher)
        videos.append(SplitVideo(source.names[i], (start, start + source.num_frames(i)), content))
    return videos


def _hashes(full: VideoSource, i: int, frames: list[int], hasher: FrameHasher) -> tuple[str, ...]:
    """Hash the pixels of some frames of a full video, except those of a single colour.

    Returns:
        ``INDEX:HASH`` per frame.
    """
    hashes = []
    for t in frames:
        try:
            digest, is_plain = hasher(full, i, t)
        except (SAM2KitError, OSError):
            continue  # a frame that cannot be read is reported where it is needed
        if not is_plain:  # many videos contain black frames
            hashes.append(f"{t}:{digest}")
    return tuple(hashes)
