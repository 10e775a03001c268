"""Plan the passes of a propagation and merge their masks into a video's tracked masks."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Any, Literal, get_args

import numpy as np

from sam2kit.data.sources.base import ObjectId
from sam2kit.evaluation.metrics import iou
from sam2kit.prompts.annotations import ObjectFrame, TrackedMask
from sam2kit.utils.errors import DataError
from sam2kit.widgets.frame_prompts import decode_stored

Direction = Literal["forward", "backward", "both"]
Pass = tuple[range, bool]
"""Frames of a pass, in tracking order, and whether it runs backward."""


def passes(
    prompts: Collection[ObjectFrame],
    num_frames: int,
    start: int | None,
    end: int | None,
    direction: Direction,
) -> list[Pass]:
    """Return the passes over a range of frames.

    Args:
        prompts: the objects and frames that have a prompt.
        num_frames: length of the video.
        start, end: first and last frame; see :meth:`PromptSession.propagate` for None.
        direction: ``forward``, ``backward`` or ``both``.

    Raises:
        DataError: no object has a prompt, or the range is invalid.
    """
    if not prompts:
        raise DataError("no object has a prompt", hint="click on an object first")
    if direction not in get_args(Direction):
        raise DataError(
            key="direction",
            value=direction,
            expected=f"one of {', '.join(get_args(Direction))}",
            hint="forward is the default",
        )
    if start is not None and end is not None and start > end:
        raise DataError(
            key="end", value=end, expected=f"{start} or more, the start", hint="swap them"
        )
    prompted = [t for _, t in prompts]
    # Tracking forward starts at the first prompt, and tracking backward at the last prompt.
    first = max(min(prompted), 0 if start is None else start)
    last = min(max(prompted), num_frames - 1 if end is None else end)
    forward = range(first, (num_frames - 1 if end is None else end) + 1)
    backward = range(last, (0 if start is None else start) - 1, -1)
    listed = [] if direction == "backward" else [(forward, False)]
    if direction != "forward" and last > 0:  # upstream tracks nothing backward from frame 0
        listed.append((backward, True))
    return listed


class _Runs(Mapping[ObjectFrame, dict[str, Any]]):
    """View of tracked masks as run lengths."""

    def __init__(self, tracks: Mapping[ObjectFrame, TrackedMask], size: tuple[int, int]) -> None:
        self._tracks, self._size = tracks, size

    def __getitem__(self, key: ObjectFrame) -> dict[str, Any]:
        return {"size": list(self._size), "counts": self._tracks[key].counts}

    def __iter__(self) -> Iterator[ObjectFrame]:
        return iter(self._tracks)

    def __len__(self) -> int:
        return len(self._tracks)


class TrackedMasks(dict[ObjectFrame, TrackedMask]):
    """The tracked masks of one video, and the frames whose masks are not saved yet.

    Args:
        video: name of the video.
        size: H and W of its frames.

    Attributes:
        unsaved_frames: the frames whose masks are not saved yet.
        changes: number of times that :meth:`change` changed masks.
    """

    def __init__(self, video: str, size: tuple[int, int]) -> None:
        super().__init__()
        self.video, self.size, self.changes = video, size, 0
        self.unsaved_frames: set[int] = set()

    def change(self, masks: Mapping[ObjectFrame, TrackedMask | None]) -> None:
        """Replace masks; None removes one."""
        self.changes += bool(masks)
        for key, mask in masks.items():
            if mask is None:
                self.pop(key, None)
            else:
                self[key] = mask
            self.unsaved_frames.add(key[1])

    def decode(self, key: ObjectFrame, mask: TrackedMask | None = None) -> np.ndarray:
        """Return a mask as ``[H,W]`` bool.

        Args:
            key: the object and the frame.
            mask: the mask to decode. If None (default), the stored mask.

        Raises:
            DataError: the stored mask is damaged.
        """
        return decode_stored((mask or self[key]).counts, self.size, self.video, key)

    def runs(self) -> Mapping[ObjectFrame, dict[str, Any]]:
        """Return the masks, run-length encoded."""
        return _Runs(self, self.size)


class Propagation:
    """Merge the masks of one propagation into the tracked masks.

    Args:
        tracks: the tracked masks, which change.
        prompts: the objects and frames that have a prompt.
        num_frames: length of the video.
    """

    def __init__(
        self, tracks: TrackedMasks, prompts: Collection[ObjectFrame], num_frames: int
    ) -> None:
        self._tracks, self._num_frames = tracks, num_frames
        self._prompted: dict[ObjectId, list[int]] = {}  # frames with a prompt by object
        for o, t in prompts:
            self._prompted.setdefault(o, []).append(t)
        self._fresh: set[ObjectFrame] = set()

    def drop_outdated(self, passes: Iterable[Pass], accepted: Collection[int]) -> None:
        """Remove stale tracked masks, which a run over the whole video would not produce.

        These are masks of objects without prompts, and masks in the direction of a pass on frames
        that the pass does not reach.

        Args:
            passes: the passes of the run.
            accepted: frames whose masks are kept.
        """
        reached = {reverse: set(frames) for frames, reverse in passes}
        outdated = [
            (o, t)
            for (o, t), track in self._tracks.items()
            if t not in accepted
            and (o not in self._prompted or t not in reached.get(track.backward, {t}))
        ]
        self._tracks.change(dict.fromkeys(outdated))

    def merge(
        self,
        t: int,
        masks: Mapping[ObjectId, TrackedMask],
        reverse: bool,
        objects: Collection[ObjectId],
        accepted: bool,
    ) -> dict[ObjectId, TrackedMask]:
        """Store the masks of a frame unless an accepted or better mask exists.

        Masks that were previously tracked in this direction, but are not now, are removed.

        Args:
            t: the frame.
            masks: masks of the frame.
            reverse: whether they were tracked backward.
            objects: existing objects; others were deleted during the propagation.
            accepted: whether the masks of the frame are accepted.

        Returns:
            The masks that were stored.
        """
        stored = {
            o: track
            for o, track in masks.items()
            if o in objects and self._is_nearer(o, t, track)
            if not accepted or (o, t) not in self._tracks
        }
        changes: dict[ObjectFrame, TrackedMask | None] = {
            (o, t): track for o, track in stored.items()
        }
        if not accepted:
            changes |= {
                (o, t): None
                for o in objects
                if (track := self._tracks.get((o, t))) is not None
                and o not in masks
                and (o, t) not in self._fresh
                and (track.backward == reverse or o not in self._prompted)
            }
        self._tracks.change(changes)
        self._fresh |= {(o, t) for o in masks}
        return stored

    def _is_nearer(self, o: ObjectId, t: int, track: TrackedMask) -> bool:
        """Return whether this pass has a nearer prompt than any other pass with a mask."""
        existing = self._tracks.get((o, t))
        if existing is None or (o, t) not in self._fresh:
            return True
        first, second = self._tracks.decode((o, t)), self._tracks.decode((o, t), track)
        existing.disagreement = track.disagreement = round(1 - float(iou(first, second)), 4)
        self._tracks.unsaved_frames.add(t)
        prompted = self._prompted.get(o, [])
        after = min((f - t for f in prompted if f >= t), default=self._num_frames)
        before = min((t - f for f in prompted if f <= t), default=self._num_frames)
        return before > after
