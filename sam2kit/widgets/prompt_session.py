"""Prompting one video by hand: what was pointed at, what the model answers, what it tracks.

No widget and no thread: the state behind :class:`~sam2kit.widgets.annotator.PromptDebugger`,
for scripts too. What is shown is a function of the prompts alone, so the file they are saved to
gives the same masks to ``sam2kit track``:

* clicks and a box on a frame go to the model together, as on a frame that nobody tracked;
* clicks on a mask that did not come from clicks (tracked, painted or imported) refine it, and what
  comes out is a mask prompt (clicks beside the object alone go with one on it: without memory a
  model forgets the mask over them), as is a candidate that is chosen over the model's own choice.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from torch.nn import functional as F

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.clip import VideoClip, collate
from sam2kit.data.rle import decode_mask, encode_mask
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.corrected import append_correction
from sam2kit.data.transforms import resize_masks
from sam2kit.evaluation.metrics import iou, outside_void
from sam2kit.models.sam2 import SAM2Model
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.geometry import mask_center
from sam2kit.prompts.io import SCHEMA_VERSION, video_prompts
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.tracking_job import OPTIONS
from sam2kit.tracking.video_tracker import FrameTracks, TrackingSession, VideoTracker
from sam2kit.utils.errors import DataError

Point = tuple[int, int]
Box = tuple[int, int, int, int]
Place = tuple[ObjectId, int]
"""An object and a frame."""

UNDO_STEPS = 100
LOGIT = 10.0  # of a mask given as logits: what upstream makes of mask prompts


@dataclass(frozen=True, eq=False)
class Mark:
    """What was pointed at for one object on one frame, in pixels of the video's frames.

    Attributes:
        points: x and y.
        labels: 1 on the object, 0 beside it.
        box: x0, y0, x1, y1, inclusive.
        base: ``[H,W]`` bool that the clicks refine.
        mask: ``[H,W]`` bool that is the prompt in place of the rest.
    """

    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box: Box | None = None
    base: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def clicked(self) -> bool:
        return bool(self.points) or self.box is not None


@dataclass(frozen=True, eq=False)
class Guess:
    """The model's answer to a :class:`Mark`.

    Attributes:
        mask: ``[H,W]`` bool.
        candidates: ``[N,H,W]`` bool, three for clicks and boxes, none for masks.
        ious: N, predicted by the model.
        score: the object's, a logit above 0 where it is seen.
    """

    mask: np.ndarray
    candidates: np.ndarray
    ious: tuple[float, ...]
    score: float


class PromptSession:
    """The prompts, answers and tracked masks of one video.

    Args:
        source: the videos.
        i: which one.
        model: set to evaluation mode.
        device: where it is moved; None: where it is.

    Attributes:
        size: H and W of the video's frames.
        objects: those of the truth on the frames that were looked at, and those that were added.
        marks: the prompts.
        tracked: run lengths of the masks that were tracked last.
        j: their J against the truth, on annotated frames.
    """

    def __init__(
        self, source: VideoSource, i: int, model: SAM2Model, device: torch.device | None = None
    ) -> None:
        self.source, self.i, self.video = source, i, source.name(i)
        self.num_frames = source.num_frames(i)
        first = self.frame(0)
        self.size: tuple[int, int] = (first.shape[0], first.shape[1])
        self.image_size = model.image_size
        self.objects: list[ObjectId] = []
        self.marks: dict[Place, Mark] = {}
        self.tracked: dict[Place, dict[str, Any]] = {}
        self.j: dict[Place, float] = {}
        self._tracked_marks: dict[Place, Mark] = {}
        self._history: list[dict[Place, Mark]] = []
        self._guesses: dict[Mark, Guess] = {}  # of the prompts of one frame
        self._guessed = 0
        self._truth: tuple[int, tuple] | None = None
        self._model = model
        self._tracker = VideoTracker(model, OPTIONS, device)
        self._desk = self._open()  # answers prompts, one frame at a time; keeps its features
        for t in range(self.num_frames):
            if self.truth(t) is not None:
                break

    def _open(self) -> TrackingSession:
        return self._tracker.open(self.frame, self.num_frames, self.size)

    def frame(self, t: int) -> np.ndarray:
        """``[H,W,3]`` uint8 RGB."""
        return self.source.read_frame(self.i, t)

    def truth(self, t: int) -> dict[ObjectId, np.ndarray] | None:
        """The source's masks of a frame, whose objects become known; None: not annotated."""
        return self._read_truth(t)[0]

    def _read_truth(self, t: int) -> tuple[dict[ObjectId, np.ndarray] | None, np.ndarray | None]:
        """Masks and void pixels of a frame; those of the last one are kept."""
        if self._truth is None or self._truth[0] != t:
            masks, void = self.source.read_masks(self.i, t), self.source.read_void(self.i, t)
            self._truth = t, (masks, void)
            for identity in masks or ():
                self.add_object(identity)
        return self._truth[1]

    def add_object(self, identity: ObjectId | None = None) -> ObjectId:
        """A further object; None gives it the first number that is free."""
        if identity is None:
            identity = max([o for o in self.objects if isinstance(o, int)], default=0) + 1
        if identity not in self.objects:
            self.objects.append(identity)
        return identity

    # Prompts. Each of these can be undone.

    def click(self, o: ObjectId, t: int, x: int, y: int, positive: bool = True) -> None:
        """Say that a pixel is on the object, or beside it.

        Raises:
            DataError: outside the frame; or the model sees nothing where a mask was refined.
        """
        x, y = self._inside(x, y)
        old = self.marks.get((o, t))
        if old is None or not old.clicked:
            old = Mark(base=self.mask(o, t))
        points, labels = (*old.points, (x, y)), (*old.labels, int(positive))
        self._set((o, t), replace(old, points=points, labels=labels, mask=None))

    def box(self, o: ObjectId, t: int, box: Box) -> None:
        """Put a box (x0, y0, x1, y1, inclusive) in place of what was given on the frame."""
        corners = self._inside(*box[:2]), self._inside(*box[2:])
        (x0, x1), (y0, y1) = (sorted(values) for values in zip(*corners, strict=True))
        self._set((o, t), Mark(box=(x0, y0, x1, y1)))

    def paint(self, o: ObjectId, t: int, mask: np.ndarray) -> None:
        """Put a mask ``[H,W]`` bool in place of what was given on the frame."""
        if mask.shape != self.size:
            raise DataError(f"a mask of {mask.shape}, but the video's frames are {self.size}")
        if not mask.any():
            raise DataError("an empty mask says nothing; clear the frame's prompts instead")
        self._set((o, t), Mark(mask=mask))

    def choose(self, o: ObjectId, t: int, candidate: int) -> None:
        """Take one of the three candidates."""
        mark, guess = self.marks.get((o, t)), self.guess(o, t)
        if mark is None or guess is None or not 0 <= candidate < len(guess.candidates):
            raise DataError(f"object {o} has no candidate {candidate} on frame {t}")
        mask = guess.candidates[candidate]
        if not mask.any():
            raise DataError(f"candidate {candidate} is empty; choose another one")
        chosen = replace(mark, mask=mask)
        self._change(self.marks | {(o, t): chosen})
        self._keep(t, chosen, guess)

    def draw(self, o: ObjectId, t: int, recipe: DatasetConfig, seed: int) -> None:
        """Prompt an object as :class:`~sam2kit.prompts.generator.PromptGenerator` does in training.

        It is drawn from the truth, or from the object's mask where there is none.

        Raises:
            DataError: the object is not there.
        """
        mask = (self.truth(t) or {}).get(o)
        mask = self.mask(o, t) if mask is None else mask
        if mask is None:
            raise DataError(f"object {o} is not seen on frame {t}; go to a frame that shows it")
        self._set((o, t), draw_mark((o, t), mask, self.video, self.image_size, recipe, seed))

    def clear(self, o: ObjectId | None = None, t: int | None = None) -> None:
        """Forget the prompts of an object on a frame; of None: of all objects, on all frames."""
        cleared = {p for p in self.marks if o in (None, p[0]) and t in (None, p[1])}
        self._change({p: mark for p, mark in self.marks.items() if p not in cleared})

    def undo(self) -> None:
        """Take back the last change of the prompts, if there was one."""
        if self._history:
            self.marks = self._history.pop()

    def _inside(self, x: int, y: int) -> Point:
        if not (0 <= x < self.size[1] and 0 <= y < self.size[0]):
            raise DataError(
                f"({x}, {y}) lies outside the frame of {self.size[1]} by {self.size[0]}"
            )
        return int(x), int(y)

    def _set(self, place: Place, mark: Mark) -> None:
        guess = self._ask(place, mark)
        if mark.base is not None and mark.mask is None:
            if not guess.mask.any():
                raise DataError("the model finds no object there; paint the mask instead")
            mark = replace(mark, mask=guess.mask)
        self.add_object(place[0])
        self._change(self.marks | {place: mark})
        self._keep(place[1], mark, guess)

    def _change(self, marks: dict[Place, Mark]) -> None:
        if marks != self.marks:
            self._history = [*self._history[1 - UNDO_STEPS :], self.marks]
            self.marks = marks

    # What the model says.

    def guess(self, o: ObjectId, t: int) -> Guess | None:
        """The answer to the prompts of an object on a frame; None: there are none."""
        mark = self.marks.get((o, t))
        if mark is None:
            return None
        if mark not in self._guesses:
            self._keep(t, mark, self._ask((o, t), mark))
        return self._guesses[mark]

    def _keep(self, t: int, mark: Mark, guess: Guess) -> None:
        kept = self._guesses if t == self._guessed else {}
        current = set(self.marks.values())
        self._guesses = {m: g for m, g in kept.items() if m in current} | {mark: guess}
        self._guessed = t

    def mask(self, o: ObjectId, t: int) -> np.ndarray | None:
        """``[H,W]`` bool: what was painted or chosen, or answered, or tracked; or None."""
        mark = self.marks.get((o, t))
        if mark is not None and mark.mask is not None:
            return mark.mask
        guess = self.guess(o, t)
        if guess is not None:
            return guess.mask
        tracked = self.tracked.get((o, t))
        return None if tracked is None else decode_mask(tracked, self.size)

    def _ask(self, place: Place, mark: Mark) -> Guess:
        if mark.mask is not None and not mark.clicked:
            return Guess(mark.mask, np.zeros((0, *self.size), bool), (), LOGIT)
        clicks = replace(mark, mask=None)
        tracks = self._prompt(place, clicks)
        three = tracks
        if tracks.candidates is None:  # clicks and boxes that leave no doubt; shown all the same
            max_points = self._model.multimask_max_pt_num
            self._model.multimask_max_pt_num = 10**6
            try:
                three = self._prompt(place, clicks)
            finally:
                self._model.multimask_max_pt_num = max_points
        logits, ious = three.candidates, three.candidate_iou
        if logits is None or ious is None:  # a model that gives one mask
            logits, ious = three.mask_logits[:, None], three.iou
        candidates = replace(three, mask_logits=logits[0]).masks(self.size)
        mask, score = tracks.masks(self.size)[0], tracks.object_score.item()
        return Guess(mask, candidates, tuple(ious.flatten().tolist()), score)

    def _prompt(self, place: Place, mark: Mark) -> FrameTracks:
        self._desk.banks.clear()
        previous = None
        if mark.base is not None:
            side = self.image_size // 4
            logits = torch.from_numpy(mark.base)[None, None].float() * 2 * LOGIT - LOGIT
            previous = F.interpolate(logits, (side, side), mode="area")
            previous = previous.to(self._tracker.device)
            mark = _with_centre(mark)
        for prompt in self._prompts({place: mark})[0]:
            previous_logits = previous if prompt.kind == "point" else None
            tracks = self._desk.add_prompt(prompt, previous_logits)
        return tracks

    def _prompts(self, marks: Mapping[Place, Mark]) -> tuple[list[Prompt], list[ObjectId]]:
        """Return the prompts as ``sam2kit track`` reads them, and the objects by position."""
        document = to_document(marks, self.video, self.size)
        return video_prompts(document, "prompts", self.video, self.num_frames, self.image_size)

    def propagate(self, start: int | None = None) -> Iterator[int]:
        """Track all objects as ``sam2kit track`` does, from their first prompt to the end.

        Gives the number of each frame when it is done. Stop reading, and what was tracked stays.

        Args:
            start: begin there, with the memories of the prompts alone: a quick look, which the
                whole pass may differ from. None: at the first prompt.

        Raises:
            DataError: nothing was prompted.
        """
        if not self.marks:
            raise DataError("no object is prompted yet; click on one")
        return self._track(dict(self.marks), start)

    def _track(self, marks: dict[Place, Mark], start: int | None) -> Iterator[int]:
        session = self._open()
        prompts, identities = self._prompts(marks)
        for prompt in prompts:
            session.add_prompt(prompt)
        keep = {k: v for k, v in self.tracked.items() if start is not None and k[1] < start}
        self.tracked, self.j = keep, {k: v for k, v in self.j.items() if k in keep}
        self._tracked_marks = marks
        for tracks in session.propagate(start):
            masks = tracks.masks(self.size)
            for n, mask in zip(tracks.objects, masks, strict=True):
                place = identities[n], tracks.frame
                self.tracked[place] = encode_mask(mask)
                if (j := self.j_of(*place, mask)) is not None:
                    self.j[place] = j
            yield tracks.frame

    def j_of(self, o: ObjectId, t: int, mask: np.ndarray) -> float | None:
        """Return J of a mask against the truth, without void pixels; None: not annotated."""
        truth, void = self._read_truth(t)
        if truth is None:
            return None
        return float(iou(*outside_void(mask, truth.get(o), void)))

    @property
    def stale(self) -> bool:
        """Whether prompts have changed since masks were tracked."""
        return bool(self.tracked) and self.marks != self._tracked_marks

    # What is kept.

    def save(self, path: str | Path) -> Path:
        """Write ``prompts.json``, in pixels of the video's frames.

        Raises:
            DataError: there is nothing to write, or nothing can be written there.
        """
        if not self.marks:
            raise DataError("no object is prompted yet, so there is nothing to save")
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps(to_document(self.marks, self.video, self.size), indent=1) + "\n", "utf-8"
            )
        except OSError as error:
            raise DataError(
                f"{path}: cannot be written ({error.strerror}); name another"
            ) from error
        return path

    def append(self, path: str | Path, t: int) -> list[ObjectId]:
        """Append the masks of a frame to a file of corrections; whose they are.

        Objects that were neither prompted nor tracked there keep the mask that the data set has.

        Raises:
            DataError: no object has a mask there, or nothing can be written.
        """
        own = {o: mask for o in self.objects if (mask := self.mask(o, t)) is not None}
        if not own:
            raise DataError(f"no object was prompted or tracked on frame {t}: nothing to correct")
        append_correction(path, self.video, t, (self.truth(t) or {}) | own, self.size)
        return list(own)


def _with_centre(mark: Mark) -> Mark:
    """Clicks beside a mask that is refined, with one at its centre where they leave some of it."""
    if mark.base is None or any(mark.labels):
        return mark
    left = np.array(mark.base, np.uint8, order="C")
    radius = int(np.sqrt(left.sum()) / 4)
    for point in mark.points:
        cv2.circle(left, point, radius, 0, -1)
    if not left.any():
        return mark
    return replace(mark, points=(mask_center(left > 0), *mark.points), labels=(1, *mark.labels))


def to_document(marks: Mapping[Place, Mark], video: str, size: tuple[int, int]) -> dict[str, Any]:
    """The content of ``prompts.json``, in pixels of the video's frames, which have ``size``."""
    entries: list[dict[str, Any]] = []
    for (o, t), mark in marks.items():
        place = {"video": video, "object_id": o, "frame_index": t}
        if mark.mask is not None:
            entries.append(place | {"kind": "mask", "mask": encode_mask(mark.mask)})
            continue
        if mark.box is not None:
            entries.append(place | {"kind": "box", "box": list(mark.box)})
        if mark.points:
            points = {"points": [list(p) for p in mark.points], "labels": list(mark.labels)}
            entries.append(place | {"kind": "point"} | points)
    return {"version": SCHEMA_VERSION, "image_size": list(size), "prompts": entries}


def draw_mark(
    place: Place, mask: np.ndarray, video: str, side: int, recipe: DatasetConfig, seed: int
) -> Mark:
    """What :class:`~sam2kit.prompts.generator.PromptGenerator` gives for an object on a frame.

    Args:
        mask: ``[H,W]`` bool, of the object.
        side: rows and columns of the model's frames, in whose pixels training draws.

    Raises:
        DataError: nothing of the object is left at that size.
    """
    o, t = place
    shown = resize_masks(torch.from_numpy(mask)[None, None], (side, side))
    if not shown.any():
        raise DataError(f"object {o} is not seen on frame {t} at {side} pixels a side")
    frames, annotated = torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.ones(1, 1).bool()
    batch = collate([VideoClip(frames, shown, annotated, video, [t], [o])])
    generator = torch.Generator().manual_seed(seed)
    (prompt,) = PromptGenerator.from_config(recipe)(batch, generator)
    if prompt.points is None or prompt.labels is None:
        return Mark(mask=mask)
    size = np.array(mask.shape[::-1])
    places = ((prompt.points[0].numpy() + 0.5) * size / side - 0.5).round().astype(int)
    points = tuple((int(x), int(y)) for x, y in places.clip(0, size - 1))
    if prompt.kind == "box":
        return Mark(box=(*points[0], *points[1]))
    return Mark(points, tuple(prompt.labels[0].tolist()))
