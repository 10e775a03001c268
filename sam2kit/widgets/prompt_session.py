"""Hold the prompts of one video, the model's predictions for them, and the tracked masks.

This is the state behind :class:`~sam2kit.widgets.annotator.PromptDebugger`, without a widget or a
thread, so scripts can use it too. All masks depend only on the prompts. ``sam2kit track`` therefore
produces the same masks from the file to which the prompts are saved:

* The clicks and the box of a frame are passed to the model together, as on an untracked frame.
* Clicks on a mask that does not come from clicks (tracked, painted or imported) refine this mask,
  and the result becomes a mask prompt. A candidate that is selected instead of the model's choice
  becomes a mask prompt too.
* If all clicks of a refinement are negative, a positive click at the centre of the mask is added:
  without memory, a model ignores the mask under negative clicks alone.
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
ObjectFrame = tuple[ObjectId, int]
"""An object and the index of a frame."""

UNDO_STEPS = 100
MASK_LOGIT = 10.0  # upstream converts a mask prompt to logits of +10 and -10


@dataclass(frozen=True, eq=False)
class FramePrompt:
    """Hold the prompt of one object on one frame, in pixels of the video's frames.

    Attributes:
        points: x and y of each click.
        labels: 1 for a positive click (on the object), 0 for a negative one (off the object).
        box: x0, y0, x1, y1, inclusive; None (default): no box.
        base: ``[H,W]`` bool, the mask that the clicks refine; None (default): no mask.
        mask: ``[H,W]`` bool, a mask prompt that replaces points and box; None (default): no mask.
    """

    points: tuple[Point, ...] = ()
    labels: tuple[int, ...] = ()
    box: Box | None = None
    base: np.ndarray | None = None
    mask: np.ndarray | None = None

    @property
    def clicked(self) -> bool:
        """Whether there is a click or a box."""
        return bool(self.points) or self.box is not None


@dataclass(frozen=True, eq=False)
class Prediction:
    """Hold the model's output for a :class:`FramePrompt`.

    Attributes:
        mask: ``[H,W]`` bool.
        candidates: ``[N,H,W]`` bool; N is 3 for clicks and boxes, 0 for mask prompts.
        ious: N IoUs, predicted by the model.
        score: the object score, a logit; above 0 the model predicts the object as visible.
    """

    mask: np.ndarray
    candidates: np.ndarray
    ious: tuple[float, ...]
    score: float


class PromptSession:
    """Edit the prompts of one video and compute the masks that follow from them.

    Args:
        source: the videos.
        i: index of the video.
        model: set to evaluation mode.
        device: the model is moved to it. None (default): the model stays on its device.

    Attributes:
        size: H and W of the video's frames.
        objects: the objects of the ground truth on the frames read so far, and the added ones.
        prompts: the prompts.
        tracked: run-length encoded masks of the last tracking.
        j: J of the tracked masks against the ground truth, on annotated frames.
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
        self.prompts: dict[ObjectFrame, FramePrompt] = {}
        self.tracked: dict[ObjectFrame, dict[str, Any]] = {}
        self.j: dict[ObjectFrame, float] = {}
        self._tracked_prompts: dict[ObjectFrame, FramePrompt] = {}
        self._history: list[dict[ObjectFrame, FramePrompt]] = []
        # Predictions of one frame only, so that memory does not grow with the number of prompts.
        self._predictions: dict[FramePrompt, Prediction] = {}
        self._predicted_frame = 0
        self._truth: tuple[int, tuple] | None = None
        self._model = model
        self._tracker = VideoTracker(model, OPTIONS, device)
        # Predicts masks for prompts, separately from tracking; it caches the frame's features.
        self._prompting = self._open()
        # The first annotated frame makes the objects of the ground truth known.
        for t in range(self.num_frames):
            if self.truth(t) is not None:
                break

    def _open(self) -> TrackingSession:
        return self._tracker.open(self.frame, self.num_frames, self.size)

    def frame(self, t: int) -> np.ndarray:
        """Return frame ``t``, ``[H,W,3]`` uint8 RGB."""
        return self.source.read_frame(self.i, t)

    def truth(self, t: int) -> dict[ObjectId, np.ndarray] | None:
        """Return the ground truth masks of a frame and add its objects to ``objects``.

        Returns:
            ``[H,W]`` bool by object; None if the frame is unannotated.
        """
        return self._read_truth(t)[0]

    def _read_truth(self, t: int) -> tuple[dict[ObjectId, np.ndarray] | None, np.ndarray | None]:
        """Return masks and void pixels of a frame; those of the last frame are cached."""
        if self._truth is None or self._truth[0] != t:
            masks, void = self.source.read_masks(self.i, t), self.source.read_void(self.i, t)
            self._truth = t, (masks, void)
            for identity in masks or ():
                self.add_object(identity)
        return self._truth[1]

    def add_object(self, identity: ObjectId | None = None) -> ObjectId:
        """Add an object unless it exists, and return its identity.

        Args:
            identity: None (default): one more than the largest number of an object.
        """
        if identity is None:
            identity = max([o for o in self.objects if isinstance(o, int)], default=0) + 1
        if identity not in self.objects:
            self.objects.append(identity)
        return identity

    # Edits of the prompts. undo() reverts each of them.

    def click(self, o: ObjectId, t: int, x: int, y: int, positive: bool = True) -> None:
        """Add a positive or a negative click.

        Raises:
            DataError: the click is outside the frame, or the mask that it refines becomes empty.
        """
        x, y = self._check_point(x, y)
        previous = self.prompts.get((o, t))
        if previous is None or not previous.clicked:
            # The first click refines the mask that is shown, if there is one.
            previous = FramePrompt(base=self.mask(o, t))
        points, labels = (*previous.points, (x, y)), (*previous.labels, int(positive))
        self._set_prompt((o, t), replace(previous, points=points, labels=labels, mask=None))

    def box(self, o: ObjectId, t: int, box: Box) -> None:
        """Replace the prompt by a box (x0, y0, x1, y1, inclusive; any two opposite corners).

        Raises:
            DataError: a corner is outside the frame.
        """
        corners = self._check_point(*box[:2]), self._check_point(*box[2:])
        (x0, x1), (y0, y1) = (sorted(values) for values in zip(*corners, strict=True))
        self._set_prompt((o, t), FramePrompt(box=(x0, y0, x1, y1)))

    def paint(self, o: ObjectId, t: int, mask: np.ndarray) -> None:
        """Replace the prompt by a mask ``[H,W]`` bool.

        Raises:
            DataError: the mask is empty or does not have the size of the frame.
        """
        if mask.shape != self.size:
            raise DataError(
                key="mask.shape",
                value=mask.shape,
                expected=f"{self.size}, the size of the frames",
                hint="resize the mask",
            )
        if not mask.any():
            raise DataError("the mask is empty", hint="clear the prompts of this frame instead")
        self._set_prompt((o, t), FramePrompt(mask=mask))

    def choose(self, o: ObjectId, t: int, candidate: int) -> None:
        """Make a candidate, counted from 0, the mask prompt.

        Raises:
            DataError: the candidate does not exist or is empty.
        """
        prompt, prediction = self.prompts.get((o, t)), self.prediction(o, t)
        if prompt is None or prediction is None or not 0 <= candidate < len(prediction.candidates):
            raise DataError(
                f"object {o} has no candidate {candidate} on frame {t}",
                key="candidate",
                value=candidate,
                hint="click on the object or draw a box first",
            )
        mask = prediction.candidates[candidate]
        if not mask.any():
            raise DataError(
                f"the mask of candidate {candidate} is empty",
                key="candidate",
                value=candidate,
                hint="choose another one",
            )
        chosen = replace(prompt, mask=mask)
        self._replace_prompts(self.prompts | {(o, t): chosen})
        self._store_prediction(t, chosen, prediction)

    def draw(self, o: ObjectId, t: int, recipe: DatasetConfig, seed: int) -> None:
        """Prompt an object as :class:`~sam2kit.prompts.generator.PromptGenerator` does in training.

        The prompt is drawn from the ground truth, or from the object's current mask if the ground
        truth does not contain the object.

        Raises:
            DataError: the object has no mask on the frame.
        """
        mask = (self.truth(t) or {}).get(o)
        mask = self.mask(o, t) if mask is None else mask
        if mask is None:
            raise DataError(
                f"object {o} is not visible on frame {t}", hint="go to a frame that shows it"
            )
        self._set_prompt(
            (o, t), draw_prompt((o, t), mask, self.video, self.image_size, recipe, seed)
        )

    def clear(self, o: ObjectId | None = None, t: int | None = None) -> None:
        """Remove prompts.

        Args:
            o: the object. None (default): all objects.
            t: the frame. None (default): all frames.
        """
        cleared = {k for k in self.prompts if o in (None, k[0]) and t in (None, k[1])}
        self._replace_prompts({k: p for k, p in self.prompts.items() if k not in cleared})

    def undo(self) -> None:
        """Revert the last edit, if there is one."""
        if self._history:
            self.prompts = self._history.pop()

    def _check_point(self, x: int, y: int) -> Point:
        if not (0 <= x < self.size[1] and 0 <= y < self.size[0]):
            raise DataError(
                key="point",
                value=(x, y),
                expected=f"inside the frame of {self.size[1]} x {self.size[0]} pixels",
                hint="give x before y, in pixels of the video's frames",
            )
        return int(x), int(y)

    def _set_prompt(self, key: ObjectFrame, prompt: FramePrompt) -> None:
        prediction = self._predict(key, prompt)
        if prompt.base is not None and prompt.mask is None:
            if not prediction.mask.any():
                raise DataError(
                    "the model finds no object at these clicks", hint="paint the mask instead"
                )
            # prompts.json cannot express the refined mask by clicks: it becomes a mask prompt.
            prompt = replace(prompt, mask=prediction.mask)
        self.add_object(key[0])
        self._replace_prompts(self.prompts | {key: prompt})
        self._store_prediction(key[1], prompt, prediction)

    def _replace_prompts(self, prompts: dict[ObjectFrame, FramePrompt]) -> None:
        if prompts != self.prompts:
            self._history = [*self._history[1 - UNDO_STEPS :], self.prompts]
            self.prompts = prompts

    # Predictions of the model.

    def prediction(self, o: ObjectId, t: int) -> Prediction | None:
        """Return the prediction for the prompt of an object on a frame; None without a prompt."""
        prompt = self.prompts.get((o, t))
        if prompt is None:
            return None
        if prompt not in self._predictions:
            self._store_prediction(t, prompt, self._predict((o, t), prompt))
        return self._predictions[prompt]

    def _store_prediction(self, t: int, prompt: FramePrompt, prediction: Prediction) -> None:
        stored = self._predictions if t == self._predicted_frame else {}
        current = set(self.prompts.values())
        self._predictions = {p: v for p, v in stored.items() if p in current} | {prompt: prediction}
        self._predicted_frame = t

    def mask(self, o: ObjectId, t: int) -> np.ndarray | None:
        """Return the mask ``[H,W]`` bool of an object on a frame, or None if it has none.

        A mask prompt comes first, then the prediction for other prompts, then the tracked mask.
        """
        prompt = self.prompts.get((o, t))
        if prompt is not None and prompt.mask is not None:
            return prompt.mask
        prediction = self.prediction(o, t)
        if prediction is not None:
            return prediction.mask
        tracked = self.tracked.get((o, t))
        return None if tracked is None else decode_mask(tracked, self.size)

    def _predict(self, key: ObjectFrame, prompt: FramePrompt) -> Prediction:
        if prompt.mask is not None and not prompt.clicked:
            return Prediction(prompt.mask, np.zeros((0, *self.size), bool), (), MASK_LOGIT)
        clicks = replace(prompt, mask=None)
        tracks = self._run_prompt(key, clicks)
        three = tracks
        if tracks.candidates is None:
            # The model returns one mask for unambiguous prompts (several clicks, a box). Its limit
            # is raised for a second pass, because the widget always shows three candidates.
            max_points = self._model.multimask_max_pt_num
            self._model.multimask_max_pt_num = 10**6
            try:
                three = self._run_prompt(key, clicks)
            finally:
                self._model.multimask_max_pt_num = max_points
        logits, ious = three.candidates, three.candidate_iou
        if logits is None or ious is None:  # the model is configured to return one mask only
            logits, ious = three.mask_logits[:, None], three.iou
        candidates = replace(three, mask_logits=logits[0]).masks(self.size)
        mask, score = tracks.masks(self.size)[0], tracks.object_score.item()
        return Prediction(mask, candidates, tuple(ious.flatten().tolist()), score)

    def _run_prompt(self, key: ObjectFrame, prompt: FramePrompt) -> FrameTracks:
        # Without memories, so that the result does not depend on earlier prompts.
        self._prompting.banks.clear()
        previous = None
        if prompt.base is not None:
            side = self.image_size // 4
            logits = torch.from_numpy(prompt.base)[None, None].float() * 2 * MASK_LOGIT - MASK_LOGIT
            previous = F.interpolate(logits, (side, side), mode="area")
            previous = previous.to(self._tracker.device)
            prompt = _add_centre_click(prompt)
        for model_prompt in self._model_prompts({key: prompt})[0]:
            previous_logits = previous if model_prompt.kind == "point" else None
            tracks = self._prompting.add_prompt(model_prompt, previous_logits)
        return tracks

    def _model_prompts(
        self, prompts: Mapping[ObjectFrame, FramePrompt]
    ) -> tuple[list[Prompt], list[ObjectId]]:
        """Return the prompts as ``sam2kit track`` reads them, and the objects by position."""
        document = to_document(prompts, self.video, self.size)
        return video_prompts(document, "prompts", self.video, self.num_frames, self.image_size)

    def propagate(self, start: int | None = None) -> Iterator[int]:
        """Track all objects as ``sam2kit track`` does, from their first prompt to the end.

        The masks tracked so far remain if the iteration is stopped.

        Args:
            start: begin at this frame with only the memories of the prompts. This is a quick
                preview, whose masks can differ. None (default): begin at the first prompt.

        Yields:
            The index of each frame after it has been tracked.

        Raises:
            DataError: no object has a prompt.
        """
        if not self.prompts:
            raise DataError("no object has a prompt", hint="click on an object first")
        return self._track(dict(self.prompts), start)

    def _track(self, prompts: dict[ObjectFrame, FramePrompt], start: int | None) -> Iterator[int]:
        session = self._open()
        model_prompts, identities = self._model_prompts(prompts)
        for prompt in model_prompts:
            session.add_prompt(prompt)
        earlier = {k: v for k, v in self.tracked.items() if start is not None and k[1] < start}
        self.tracked, self.j = earlier, {k: v for k, v in self.j.items() if k in earlier}
        self._tracked_prompts = prompts
        for tracks in session.propagate(start):
            masks = tracks.masks(self.size)
            for n, mask in zip(tracks.objects, masks, strict=True):
                key = identities[n], tracks.frame
                self.tracked[key] = encode_mask(mask)
                if (j := self.j_of(*key, mask)) is not None:
                    self.j[key] = j
            yield tracks.frame

    def j_of(self, o: ObjectId, t: int, mask: np.ndarray) -> float | None:
        """Return J of a mask against the ground truth, without void pixels.

        Returns:
            0 to 1; None if the frame is unannotated.
        """
        truth, void = self._read_truth(t)
        if truth is None:
            return None
        return float(iou(*outside_void(mask, truth.get(o), void)))

    @property
    def stale(self) -> bool:
        """Whether the prompts have changed since the last tracking."""
        return bool(self.tracked) and self.prompts != self._tracked_prompts

    # Files.

    def save(self, path: str | Path) -> Path:
        """Write ``prompts.json``, in pixels of the video's frames.

        Raises:
            DataError: there is no prompt, or the file cannot be written.
        """
        if not self.prompts:
            raise DataError(
                "no object has a prompt, so there is nothing to save",
                hint="click on an object first",
            )
        path = Path(path)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(
                json.dumps(to_document(self.prompts, self.video, self.size), indent=1) + "\n",
                "utf-8",
            )
        except OSError as error:
            raise DataError(
                f"{path} cannot be written ({error.strerror})", hint="name another file"
            ) from error
        return path

    def append(self, path: str | Path, t: int) -> list[ObjectId]:
        """Append the masks of a frame to a file of corrections.

        Objects that were neither prompted nor tracked on the frame keep their mask of the dataset.

        Returns:
            The objects whose masks were prompted or tracked.

        Raises:
            DataError: no object was prompted or tracked, or the file cannot be written.
        """
        corrected = {o: mask for o in self.objects if (mask := self.mask(o, t)) is not None}
        if not corrected:
            raise DataError(
                f"no object was prompted or tracked on frame {t}",
                hint="prompt an object on this frame, or track it up to this frame",
            )
        append_correction(path, self.video, t, (self.truth(t) or {}) | corrected, self.size)
        return list(corrected)


def _add_centre_click(prompt: FramePrompt) -> FramePrompt:
    """Add a positive click at the centre of the refined mask if all clicks are negative.

    Discs around the negative clicks are removed from the mask before its centre is computed. If
    nothing remains, no click is added.
    """
    if prompt.base is None or any(prompt.labels):
        return prompt
    rest = np.array(prompt.base, np.uint8, order="C")
    radius = int(np.sqrt(rest.sum()) / 4)
    for point in prompt.points:
        cv2.circle(rest, point, radius, 0, -1)
    if not rest.any():
        return prompt
    return replace(
        prompt, points=(mask_center(rest > 0), *prompt.points), labels=(1, *prompt.labels)
    )


def to_document(
    prompts: Mapping[ObjectFrame, FramePrompt], video: str, size: tuple[int, int]
) -> dict[str, Any]:
    """Return the content of ``prompts.json``.

    Args:
        prompts: in pixels of the video's frames.
        video: name of the video.
        size: H and W of its frames.
    """
    entries: list[dict[str, Any]] = []
    for (o, t), prompt in prompts.items():
        head = {"video": video, "object_id": o, "frame_index": t}
        if prompt.mask is not None:
            entries.append(head | {"kind": "mask", "mask": encode_mask(prompt.mask)})
            continue
        if prompt.box is not None:
            entries.append(head | {"kind": "box", "box": list(prompt.box)})
        if prompt.points:
            points = {"points": [list(p) for p in prompt.points], "labels": list(prompt.labels)}
            entries.append(head | {"kind": "point"} | points)
    return {"version": SCHEMA_VERSION, "image_size": list(size), "prompts": entries}


def draw_prompt(
    key: ObjectFrame, mask: np.ndarray, video: str, side: int, recipe: DatasetConfig, seed: int
) -> FramePrompt:
    """Return what :class:`~sam2kit.prompts.generator.PromptGenerator` draws for an object.

    Args:
        key: the object and the frame.
        mask: ``[H,W]`` bool, of the object.
        video: name of the video.
        side: rows and columns of the model's input, in whose pixels training draws prompts.
        recipe: settings of the generator.
        seed: of the random draw.

    Raises:
        DataError: the mask is empty after resizing it to the model's input.
    """
    o, t = key
    resized = resize_masks(torch.from_numpy(mask)[None, None], (side, side))
    if not resized.any():
        raise DataError(
            f"object {o} is not visible on frame {t} at the model's size of {side} x {side} pixels",
            hint="go to a frame on which it is larger",
        )
    frames, annotated = torch.zeros(1, 3, side, side, dtype=torch.uint8), torch.ones(1, 1).bool()
    batch = collate([VideoClip(frames, resized, annotated, video, [t], [o])])
    generator = torch.Generator().manual_seed(seed)
    (prompt,) = PromptGenerator.from_config(recipe)(batch, generator)
    if prompt.points is None or prompt.labels is None:
        return FramePrompt(mask=mask)
    # From the model's input to the video's frames; a pixel centre has integer coordinates.
    size = np.array(mask.shape[::-1])
    scaled = ((prompt.points[0].numpy() + 0.5) * size / side - 0.5).round().astype(int)
    points = tuple((int(x), int(y)) for x, y in scaled.clip(0, size - 1))
    if prompt.kind == "box":
        return FramePrompt(box=(*points[0], *points[1]))
    return FramePrompt(points, tuple(prompt.labels[0].tolist()))
