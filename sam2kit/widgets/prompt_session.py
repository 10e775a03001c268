"""Manage the prompts of one video, the model's predictions and the tracked masks.

This is the state of :class:`~sam2kit.widgets.annotator.Annotator` without widget or threads, so it
can also be used in scripts. All masks only depend on the prompts, so ``sam2kit track`` produces the
same masks from the saved prompt file:

* The clicks and the box of a frame are passed to the model together, as on an untracked frame.
* Clicks on a mask that is not the result of clicks (tracked, painted or imported) refine this mask,
    and the result becomes a mask prompt. A candidate selected instead of the model's choice also
    becomes a mask prompt.
* If all clicks of a refinement are negative, a positive click at the centre of the mask is added,
    because without memory a model ignores the mask if there are only negative clicks.

With an :class:`~sam2kit.prompts.annotations.AnnotationStore`, every change is saved to disk before
the method returns, and is loaded when the same video is opened again.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import cv2
import numpy as np
import torch

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.label_image import read_label_image
from sam2kit.data.rle import encode_mask
from sam2kit.data.sources.base import DerivedSource, ObjectId, VideoSource
from sam2kit.data.sources.corrected import append_correction
from sam2kit.data.synthetic.dataset import CompositedDataset
from sam2kit.evaluation.metrics import iou, outside_void
from sam2kit.models.sam2 import SAM2Model
from sam2kit.prompts.annotations import (
    AnnotationStore,
    ObjectFrame,
    StoredObject,
    StoredPrompt,
    TrackedMask,
    VideoState,
)
from sam2kit.prompts.io import (
    check_document,
    check_image_size,
    merge_documents,
    read_document,
    video_prompts,
    write_document,
)
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text
from sam2kit.widgets.check_list import FrameToCheck, find_suspects, frames_to_check
from sam2kit.widgets.frame_prompts import (
    Box,
    FramePrompt,
    Point,
    decode_stored,
    draw_prompt,
    from_entry,
    from_stored,
    to_document,
    to_stored,
)
from sam2kit.widgets.predictor import MaskPredictor, Prediction
from sam2kit.widgets.propagation import Direction, Pass, Propagation, TrackedMasks, passes
from sam2kit.widgets.proposals import Proposals

Color = tuple[int, int, int]

UNDO_STEPS = 100
SAVE_SECONDS = 2.0  # maximum time between two saves of tracked masks during a propagation


@dataclass(frozen=True)
class _Edits:
    """The state that undo() restores."""

    prompts: dict[ObjectFrame, FramePrompt]
    objects: tuple[ObjectId, ...]
    names: Mapping[ObjectId, str]
    colors: Mapping[ObjectId, Color]
    deleted: frozenset[ObjectId]
    accepted: frozenset[int]
    checked: frozenset[int]


@dataclass(frozen=True)
class _Step:
    """The state before an edit, and the tracked masks that the edit changed.

    Attributes:
        before: the state.
        tracks: tracked masks of the changed keys before the edit, None for no mask.
    """

    before: _Edits
    tracks: Mapping[ObjectFrame, TrackedMask | None]


class PromptSession:
    """Edit the prompts of one video and compute the resulting masks.

    Args:
        source: the videos. Objects generated onto unannotated videos are ignored.
        i: index of the video.
        model: the model; it is set to evaluation mode.
        device: device to move the model to. If None (default), the model stays on its device.
        store: store that saves all changes to disk, and from which existing annotations of this
            video are loaded. If None (default), changes are kept in memory only.
        model_name: name of the model in the provenance of masks. None (default): unknown.

    Attributes:
        size: H and W of the video's frames.
        objects: the objects of the ground truth on the frames read so far, and the added ones.
        names: display name of each object, by default its identity.
        colors: red, green and blue, 0 to 255, of the objects whose color the user set.
        hidden: objects that the view hides; their masks are still tracked, accepted and saved.
        prompts: the prompts.
        accepted: the frames whose masks are accepted.
        proposals: the masks of :meth:`propose_masks` that were neither accepted nor discarded.

    Raises:
        DataError: the video cannot be read, another process owns the store, or the annotations in
            it are damaged or belong to another video of this name.
    """

    def __init__(
        self,
        source: VideoSource,
        i: int,
        model: SAM2Model,
        device: torch.device | None = None,
        store: AnnotationStore | None = None,
        model_name: str | None = None,
    ) -> None:
        self.source, self.i = without_generated_objects(source, i)
        self.video = source.name(i)
        self.num_frames = self.source.num_frames(self.i)
        first = self.frame(0)
        self.size: tuple[int, int] = (first.shape[0], first.shape[1])
        self._thumbnail = _thumbnail(first)
        self.image_size = model.image_size
        self.store, self.model_name = store, model_name
        self.objects: list[ObjectId] = []
        self.names: dict[ObjectId, str] = {}
        self.colors: dict[ObjectId, Color] = {}
        self.hidden: set[ObjectId] = set()
        self.prompts: dict[ObjectFrame, FramePrompt] = {}
        self.accepted: set[int] = set()
        self.proposals = Proposals()
        self._checked: set[int] = set()
        self._deleted: set[ObjectId] = set()  # objects of the ground truth that are not annotated
        self._truth_objects: dict[ObjectId, None] = {}
        self._tracks = TrackedMasks(self.video, self.size)
        self._tracked_prompts: dict[ObjectFrame, FramePrompt] = {}
        self._history: list[_Step] = []
        self._undone: list[_Step] = []
        # Cache predictions of one frame only, so that memory does not grow with the prompts.
        self._predictions: dict[FramePrompt, Prediction] = {}
        self._predicted_frame = 0
        self._truth: tuple[int, tuple] | None = None
        self._annotated: list[int] | None = None
        # What the list of frames to check depends on, and the frames that it is selected from.
        self._suspects: tuple[Any, list[FrameToCheck]] = None, []
        # What is saved: the last revision, and prompts that are encoded already.
        self._revision = 0
        self._stored: WeakKeyDictionary[FramePrompt, StoredPrompt] = WeakKeyDictionary()
        self._predictor = MaskPredictor(
            model, device, self.frame, self.video, self.num_frames, self.size, model_name
        )
        if store is not None:
            store.acquire()
            self._load(store)
        # Read the first annotated frame to list the objects of the ground truth.
        for t in self.source.annotated_frames(self.i):
            self.truth(t)
            break

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
        """Return masks and void pixels of a frame; the latest frame is cached."""
        if self._truth is None or self._truth[0] != t:
            masks = self.source.read_masks(self.i, t)
            self._truth = t, (masks, self.source.read_void(self.i, t))
            for identity in masks or ():
                self._truth_objects[identity] = None
                if identity not in self._deleted:
                    self._list_object(identity)
        return self._truth[1]

    # Objects.

    def add_object(self, identity: ObjectId | None = None) -> ObjectId:
        """Add an object unless it exists, and return its identity.

        Args:
            identity: identity of the object. If None (default), one more than the largest number.
        """
        if identity is None:
            identity = self._next_number()
        if identity not in self.objects:
            edits = self._edits()
            self._list_object(identity)
            self._deleted.discard(identity)
            self._record(edits)
        return identity

    def _next_number(self) -> int:
        numbers = [o for o in (*self.objects, *self._deleted) if isinstance(o, int)]
        return max(numbers, default=0) + 1

    def _list_object(self, identity: ObjectId) -> None:
        if identity not in self.objects:
            self.objects.append(identity)
        self.names.setdefault(identity, str(identity))

    def rename(self, o: ObjectId, name: str) -> None:
        """Change the display name of an object; its identity does not change.

        Raises:
            DataError: there is no such object, or the name is empty.
        """
        self._check_object(o)
        if not (name := name.strip()):
            raise DataError(
                key="name", value=name, expected="a name", hint="enter at least one letter"
            )
        edits = self._edits()
        self.names[o] = name
        self._record(edits)

    def recolor(self, o: ObjectId, rgb: Sequence[int] | None) -> None:
        """Set the color of an object.

        Args:
            o: the object.
            rgb: red, green and blue, 0 to 255, or None for the automatic color.

        Raises:
            DataError: there is no such object, or the color is invalid.
        """
        self._check_object(o)
        edits = self._edits()
        if rgb is None:
            self.colors.pop(o, None)
        else:
            values = [int(v) for v in rgb]
            if len(values) != 3 or not all(0 <= v <= 255 for v in values):
                raise DataError(
                    key="rgb",
                    value=list(rgb),
                    expected="three numbers from 0 to 255",
                    hint="pass red, green and blue",
                )
            self.colors[o] = values[0], values[1], values[2]
        self._record(edits)

    def set_hidden(self, o: ObjectId, hidden: bool) -> None:
        """Hide an object in the view, or show it again; undo() does not revert this.

        Raises:
            DataError: there is no such object.
        """
        self._check_object(o)
        (self.hidden.add if hidden else self.hidden.discard)(o)
        self._save()

    def delete_object(self, o: ObjectId) -> None:
        """Remove an object with its prompts and tracked masks.

        Objects of the ground truth are not removed from the dataset. They are no longer listed,
        tracked or accepted, but :meth:`append` keeps their masks, and :meth:`add_object` lists them
        again.

        Raises:
            DataError: there is no such object.
        """
        self._check_object(o)
        edits = self._edits()
        self.objects.remove(o)
        self.names.pop(o, None)
        self.colors.pop(o, None)
        self.hidden.discard(o)
        if o in self._truth_objects:
            self._deleted.add(o)
        self.prompts = {k: p for k, p in self.prompts.items() if k[0] != o}
        self._record(edits, {k: None for k in self._tracks if k[0] == o})

    def _check_object(self, o: ObjectId) -> None:
        if o not in self.objects:
            raise DataError(
                key="object",
                value=o,
                expected="an object of the list",
                hint=f"choose from {', '.join(map(visible_text, self.objects[:15])) or 'none'}",
            )

    # Edits of the prompts. undo() reverts each of them.

    def click(self, o: ObjectId, t: int, x: int, y: int, positive: bool = True) -> None:
        """Add a positive or a negative click.

        Raises:
            DataError: the click is outside the frame, or the mask that it refines becomes empty.
        """
        x, y = self._check_point(x, y)
        previous = self.prompts.get((o, t))
        if previous is None or not previous.clicked:
            # The first click refines the displayed mask, if there is one.
            previous = FramePrompt(base=self.mask(o, t))
        points, labels = (*previous.points, (x, y)), (*previous.labels, int(positive))
        self._set_prompt((o, t), replace(previous, points=points, labels=labels, mask=None))

    def box(self, o: ObjectId, t: int, box: Box) -> None:
        """Replace the prompt with a box (x0, y0, x1, y1, inclusive; any two opposite corners).

        Raises:
            DataError: a corner is outside the frame.
        """
        corners = self._check_point(*box[:2]), self._check_point(*box[2:])
        (x0, x1), (y0, y1) = (sorted(values) for values in zip(*corners, strict=True))
        self._set_prompt((o, t), FramePrompt(box=(x0, y0, x1, y1)))

    def paint(self, o: ObjectId, t: int, mask: np.ndarray, provenance: str = "painted") -> None:
        """Replace the prompt with a mask ``[H,W]`` bool.

        Args:
            o: the object.
            t: the frame.
            mask: the mask.
            provenance: origin of the mask: ``painted`` (default), ``imported``, ``automatic`` or
                ``truth``.

        Raises:
            DataError: the mask is empty or does not have the size of the frame.
        """
        self._set_prompt((o, t), self._mask_prompt(mask, provenance))

    def _mask_prompt(self, mask: np.ndarray, provenance: str) -> FramePrompt:
        if mask.shape != self.size:
            raise DataError(
                key="mask.shape",
                value=mask.shape,
                expected=f"{self.size}, the size of the frames",
                hint="resize the mask",
            )
        if not mask.any():
            raise DataError("the mask is empty", hint="clear the prompts of this frame instead")
        return FramePrompt(mask=mask, provenance=provenance)

    def choose(self, o: ObjectId, t: int, candidate: int) -> None:
        """Use a candidate, counted from 0, as mask prompt.

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
                hint="choose another candidate",
            )
        chosen = replace(prompt, mask=mask)
        self._replace_prompts(self.prompts | {(o, t): chosen})
        self._store_prediction(t, chosen, prediction)

    def draw(self, o: ObjectId, t: int, recipe: DatasetConfig, seed: int) -> None:
        """Prompt an object as in training, with a random prompt.

        :class:`~sam2kit.prompts.generator.PromptGenerator` samples the prompt from the ground
        truth, or from the object's current mask if the object is not in the ground truth.

        Raises:
            DataError: the object has no mask on the frame.
        """
        mask = (self.truth(t) or {}).get(o)
        mask = self.mask(o, t) if mask is None else mask
        if mask is None:
            raise DataError(
                f"object {o} is not visible on frame {t}",
                hint="go to a frame in which it is visible",
            )
        self._set_prompt(
            (o, t),
            draw_prompt((o, t), mask, self.video, self.image_size, recipe, seed),
        )

    def add_label_image(
        self, t: int, file: str | Path | bytes, prefix: str | None = None
    ) -> list[ObjectId]:
        """Add a mask prompt for each nonzero value of a label image.

        A single undo() reverts all of them.

        Args:
            t: the frame.
            file: a palette, grey or 16-bit PNG or a TIFF at the size of the frames, or its bytes.
            prefix: prefix of the new objects' names, such as ``PREFIX 7`` for value 7. If None
                (default), the object is the number 7, whose prompt on this frame is replaced if it
                exists.

        Returns:
            The objects, in ascending order of their values.

        Raises:
            DataError: see :func:`~sam2kit.data.label_image.read_label_image`.
        """
        labels = read_label_image(file, self.size)
        masks: dict[ObjectId, np.ndarray] = {
            value if prefix is None else f"{prefix} {value}": mask for value, mask in labels.items()
        }
        return self._add_masks(t, masks, "imported")

    def _add_masks(
        self, t: int, masks: Mapping[ObjectId, np.ndarray], provenance: str
    ) -> list[ObjectId]:
        """Prompt objects with masks, in one edit."""
        edits = self._edits()
        prompts = {}
        for o, mask in masks.items():
            correction = (o, t) in self._tracks
            prompts[o, t] = replace(self._mask_prompt(mask, provenance), correction=correction)
        for o in masks:
            self._list_object(o)
            self._deleted.discard(o)
        self.prompts = self.prompts | prompts
        self._record(edits)
        return list(masks)

    def propose_masks(self, t: int, **limits: Any) -> Iterator[float]:
        """Segment objects without a mask on a frame, and store the result in ``proposals``.

        Args:
            t: the frame.
            **limits: see :func:`~sam2kit.models.automatic_masks.propose`.

        Yields:
            The completed fraction of the work, 0 to 1.
        """
        shown = (self.mask(o, t) for o in self.objects)
        existing = [mask for mask in shown if mask is not None]
        model = self._predictor.model
        yield from self.proposals.find(t, model, self.frame(t), existing, **limits)

    def accept_proposals(self, indices: Iterable[int] | None = None) -> list[ObjectId]:
        """Convert proposals to objects, in a single edit, and remove them from ``proposals``.

        Args:
            indices: positions in ``proposals``. If None (default), all proposals.

        Returns:
            The new objects.

        Raises:
            DataError: there is no such proposal.
        """
        chosen = self.proposals.take(indices)
        masks: dict[ObjectId, np.ndarray] = {
            n: proposal.mask for n, proposal in enumerate(chosen, self._next_number())
        }
        return self._add_masks(self.proposals.frame, masks, "automatic") if masks else []

    def clear(self, o: ObjectId | None = None, t: int | None = None) -> None:
        """Remove prompts.

        Args:
            o: the object. If None (default), all objects.
            t: the frame. If None (default), all frames.
        """
        cleared = {k for k in self.prompts if o in (None, k[0]) and t in (None, k[1])}
        self._replace_prompts({k: p for k, p in self.prompts.items() if k not in cleared})

    # Accepting masks.

    def accept(self, frames: Iterable[int]) -> None:
        """Accept the masks of frames as training annotations.

        Later propagations keep these masks. On annotated frames, objects without any other mask are
        accepted with their ground-truth mask. Frames accepted individually and frames with a prompt
        count as checked by a person.

        Raises:
            DataError: a frame is not in the video or has no masks.
        """
        chosen = self._check_frames(frames)
        added: dict[ObjectFrame, TrackedMask | None] = {}
        masked = {t for _, t in (*self.prompts, *self._tracks)}
        empty = []
        for t in sorted(chosen - self.accepted):
            truth = self.truth(t)
            if truth is None and t not in masked:
                empty.append(t)
            added |= {
                (o, t): TrackedMask(encode_mask(mask)["counts"], provenance="truth")
                for o, mask in (truth or {}).items()
                if o not in self._deleted and self.prompts.keys().isdisjoint([(o, t)])
                if (o, t) not in self._tracks
            }
        if empty:
            raise DataError(
                f"frames {', '.join(map(str, empty[:10]))} have no mask",
                key="frames",
                value=empty,
                hint="track the objects up to these frames, or add prompts on them",
            )
        edits = self._edits()
        self.accepted |= chosen
        prompted = {t for _, t in self.prompts}
        self._checked |= chosen if len(chosen) == 1 else chosen & prompted
        self._record(edits, added)

    def unaccept(self, frames: Iterable[int]) -> None:
        """Revert the acceptance of frames; other frames are ignored.

        Raises:
            DataError: a frame is not in the video.
        """
        chosen = self._check_frames(frames)
        edits = self._edits()
        self.accepted -= chosen
        self._checked -= chosen
        truth = [k for k, v in self._tracks.items() if k[1] in chosen and v.provenance == "truth"]
        self._record(edits, dict.fromkeys(truth))

    def _check_frames(self, frames: Iterable[int]) -> set[int]:
        chosen = {int(t) for t in frames}
        if outside := sorted(t for t in chosen if not 0 <= t < self.num_frames):
            raise DataError(
                key="frames",
                value=outside,
                expected=f"from 0 to {self.num_frames - 1}",
                hint="pass indices of frames, counted from 0",
            )
        return chosen

    # Undo and redo.

    @property
    def can_undo(self) -> bool:
        """Whether there is an edit to revert."""
        return bool(self._history)

    @property
    def can_redo(self) -> bool:
        """Whether there is an edit to redo."""
        return bool(self._undone)

    def undo(self) -> None:
        """Revert the last edit of prompts or objects, if there is one."""
        self._move(self._history, self._undone)

    def redo(self) -> None:
        """Redo the most recently reverted edit, unless another edit followed."""
        self._move(self._undone, self._history)

    def _move(self, steps: list[_Step], opposite: list[_Step]) -> None:
        if not steps:
            return
        step = steps.pop()
        tracks = {k: self._tracks.get(k) for k in step.tracks}
        opposite.append(_Step(self._edits(), tracks))
        edits = step.before
        self.prompts = edits.prompts
        annotated = [o for o in self._truth_objects if o not in edits.deleted]
        self.objects = list(dict.fromkeys([*edits.objects, *annotated]))
        self.names = {o: str(o) for o in self.objects} | dict(edits.names)
        self.colors, self._deleted = dict(edits.colors), set(edits.deleted)
        self.accepted, self._checked = set(edits.accepted), set(edits.checked)
        self._tracks.change(step.tracks)
        self._save()

    def _edits(self) -> _Edits:
        return _Edits(
            self.prompts,
            tuple(self.objects),
            dict(self.names),
            dict(self.colors),
            frozenset(self._deleted),
            frozenset(self.accepted),
            frozenset(self._checked),
        )

    def _record(
        self, before: _Edits, tracks: Mapping[ObjectFrame, TrackedMask | None] | None = None
    ) -> None:
        """Record an edit for undo() and save it, unless it changed nothing.

        Args:
            before: the state before the edit.
            tracks: tracked masks to change; None removes one.
        """
        tracks = tracks or {}
        if not tracks and before == self._edits():
            return
        step = _Step(before, {k: self._tracks.get(k) for k in tracks})
        self._history = [*self._history[1 - UNDO_STEPS :], step]
        self._undone = []
        self._tracks.change(tracks)
        self._save()

    def _check_point(self, x: int, y: int) -> Point:
        if not (0 <= x < self.size[1] and 0 <= y < self.size[0]):
            raise DataError(
                key="point",
                value=(x, y),
                expected=f"inside the frame of {self.size[1]} x {self.size[0]} pixels",
                hint="pass x before y, in pixels of the video's frames",
            )
        return int(x), int(y)

    def _set_prompt(self, key: ObjectFrame, prompt: FramePrompt) -> None:
        prompt, prediction = self._predicted(key, prompt)
        edits = self._edits()
        self._list_object(key[0])
        self._deleted.discard(key[0])
        self.prompts = self.prompts | {key: prompt}
        self._record(edits)
        self._store_prediction(key[1], prompt, prediction)

    def _predicted(self, key: ObjectFrame, prompt: FramePrompt) -> tuple[FramePrompt, Prediction]:
        """Predict the mask of a prompt, and return the updated prompt and the prediction."""
        prediction = self._predictor.predict(key, prompt)
        previous = self.prompts.get(key)
        correction = key in self._tracks if previous is None else previous.correction
        if prompt.base is not None and prompt.mask is None:
            if not prediction.mask.any():
                raise DataError(
                    "the model finds no object at these clicks", hint="paint the mask instead"
                )
            # prompts.json cannot express a refined mask with clicks, so store a mask prompt.
            prompt = replace(prompt, mask=prediction.mask)
        result = None if prompt.mask is not None else encode_mask(prediction.mask)["counts"]
        model = self.model_name if prompt.clicked else None
        return replace(prompt, result=result, correction=correction, model=model), prediction

    def _replace_prompts(self, prompts: dict[ObjectFrame, FramePrompt]) -> None:
        edits = self._edits()
        self.prompts = prompts
        self._record(edits)

    # Predictions of the model.

    def prediction(self, o: ObjectId, t: int) -> Prediction | None:
        """Return the prediction for an object's prompt on a frame, or None without a prompt."""
        prompt = self.prompts.get((o, t))
        if prompt is None:
            return None
        if prompt not in self._predictions:
            self._store_prediction(t, prompt, self._predictor.predict((o, t), prompt))
        return self._predictions[prompt]

    def _store_prediction(self, t: int, prompt: FramePrompt, prediction: Prediction) -> None:
        stored = self._predictions if t == self._predicted_frame else {}
        current = set(self.prompts.values())
        self._predictions = {p: v for p, v in stored.items() if p in current} | {prompt: prediction}
        self._predicted_frame = t

    def mask(self, o: ObjectId, t: int) -> np.ndarray | None:
        """Return the mask ``[H,W]`` bool of an object on a frame, or None if it has none.

        A mask prompt has priority, then the prediction for another prompt, then the tracked mask.

        Raises:
            DataError: the stored mask is damaged.
        """
        prompt = self.prompts.get((o, t))
        if prompt is not None and prompt.mask is not None:
            return prompt.mask
        if prompt is not None and prompt in self._predictions:
            return self._predictions[prompt].mask
        if prompt is not None and prompt.result is not None:
            return decode_stored(prompt.result, self.size, self.video, (o, t))
        track = self._tracks.get((o, t))
        return None if track is None else self._tracks.decode((o, t))

    def provenance(self, o: ObjectId, t: int) -> str | None:
        """Return the origin of an object's mask on a frame.

        Returns:
            ``click`` (also a box), ``painted``, ``propagated``, ``imported``, ``automatic``, or
            ``truth``; None without a mask.
        """
        if prompt := self.prompts.get((o, t)):
            return prompt.provenance
        track = self._tracks.get((o, t))
        return None if track is None else track.provenance

    def mask_model(self, o: ObjectId, t: int) -> str | None:
        """Return the name of the model that predicted an object's mask on a frame, if known."""
        mask = self.prompts.get((o, t)) or self._tracks.get((o, t))
        return None if mask is None else mask.model

    def score(self, o: ObjectId, t: int) -> float | None:
        """Return the object score (logit) of a tracked mask, or None without a mask."""
        track = self._tracks.get((o, t))
        return None if track is None else track.score

    def disagreement(self, o: ObjectId, t: int) -> float | None:
        """Return 1 - IoU of forward and backward tracking on a frame, or None if unknown."""
        track = self._tracks.get((o, t))
        return None if track is None else track.disagreement

    @property
    def tracked(self) -> Mapping[ObjectFrame, dict[str, Any]]:
        """The tracked masks, run-length encoded."""
        return self._tracks.runs()

    # Tracking.

    def propagation_frames(
        self, start: int | None = None, end: int | None = None, direction: Direction = "forward"
    ) -> list[int]:
        """Return the frames that :meth:`propagate` yields for the same arguments, in order.

        Raises:
            DataError: see :meth:`propagate`.
        """
        return [t for frames, _ in self._passes(start, end, direction) for t in frames]

    def _passes(self, start: int | None, end: int | None, direction: Direction) -> list[Pass]:
        self._check_frames(t for t in (start, end) if t is not None)
        return passes(self.prompts, self.num_frames, start, end, direction)

    def propagate(
        self,
        start: int | None = None,
        end: int | None = None,
        direction: Direction = "forward",
    ) -> Iterator[int]:
        """Track all objects from their first prompt to the end, as in ``sam2kit track``.

        If the iteration is stopped, masks tracked so far are kept, and the remaining frames keep
        their earlier masks. Masks of accepted frames do not change.

        Args:
            start: first frame of the range, whose frames are tracked only with memories of prompts
                and of the range; other frames keep their masks. If None (default), the first
                prompted frame, or frame 0 when tracking backward.
            end: last frame of the range. If None (default), the last frame, or the last prompted
                frame when tracking backward.
            direction: ``forward`` (default); ``backward``, from the last prompt towards the start;
                or ``both``, sequentially. Frames tracked in both passes keep the mask of the pass
                with the nearer prompt (forward if equal), and 1 - IoU as the disagreement.

        Yields:
            The index of each frame after tracking it, in the order of :meth:`propagation_frames`.

        Raises:
            DataError: no object has a prompt, or the range is invalid.
        """
        planned = self._passes(start, end, direction)
        whole = start is None and end is None
        return self._propagate(dict(self.prompts), planned, whole, end is None)

    def _propagate(
        self,
        prompts: dict[ObjectFrame, FramePrompt],
        planned: list[Pass],
        whole: bool,
        to_end: bool,
    ) -> Iterator[int]:
        propagation = Propagation(self._tracks, prompts, self.num_frames)
        if to_end:
            self._tracked_prompts = prompts
        if whole:
            propagation.drop_outdated(planned, self.accepted)
        self._save()
        last_save = time.monotonic()
        try:
            for frames, reverse in planned:
                for t, masks in self._predictor.track(prompts, frames, reverse):
                    accepted = t in self.accepted
                    stored = propagation.merge(t, masks, reverse, self.objects, accepted)
                    if stored and self.truth(t) is not None:
                        for o, track in stored.items():
                            track.j = self.j_of(o, t, self._tracks.decode((o, t)))
                    if time.monotonic() - last_save > SAVE_SECONDS:
                        self._save_tracks()
                        last_save = time.monotonic()
                    yield t
        finally:
            self._save_tracks()

    @property
    def j(self) -> dict[ObjectFrame, float]:
        """J of the tracked masks against the ground truth, on annotated frames."""
        return {key: track.j for key, track in self._tracks.items() if track.j is not None}

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
        return bool(self._tracks) and self.prompts != self._tracked_prompts

    # Overview of the video.

    def frames_to_check(self, limit: int = 20) -> list[FrameToCheck]:
        """List the tracked masks that are most likely wrong, the worst first.

        Reasons are a low object score, a large change of the area since the previous frame,
        disagreement between forward and backward tracking, and a mask that is almost equal to
        another object's mask. Accepted frames, prompted frames and neighbours of listed frames are
        skipped.

        Args:
            limit: maximum length of the list.
        """
        key = self._tracks.changes, dict(self.names)
        if self._suspects[0] != key:
            self._suspects = key, find_suspects(self._tracks, self.size, self.names)
        skipped = {k: None for k in self._tracks if k[1] in self.accepted} | self.prompts
        return frames_to_check(self._suspects[1], skipped, limit)

    def timeline(self) -> dict[str, list[int]]:
        """Return the frames to mark on the timeline, in ascending order.

        Returns:
            ``prompted``, ``corrected`` (prompted after the object had been tracked), ``tracked``,
            ``accepted`` and ``annotated`` (with ground truth).
        """
        if self._annotated is None:
            self._annotated = list(self.source.annotated_frames(self.i))
        frames = {
            "prompted": {t for _, t in self.prompts},
            "corrected": {t for (_, t), prompt in self.prompts.items() if prompt.correction},
            "tracked": {t for (_, t), v in self._tracks.items() if v.provenance == "propagated"},
            "accepted": self.accepted,
            "annotated": self._annotated,
        }
        return {kind: sorted(numbers) for kind, numbers in frames.items()}

    # Files.

    def save(self, path: str | Path) -> Path:
        """Write the prompts to ``prompts.json``, in pixels of the video's frames.

        Prompts of other videos in an existing file are kept.

        Raises:
            DataError: there is no prompt, or the file is not a prompt file or cannot be written.
        """
        if not self.prompts:
            raise DataError(
                "no object has a prompt, so there is nothing to save",
                hint="click on an object first",
            )
        document = to_document(self.prompts, self.video, self.size)
        write_document(path, merge_documents(path, document, self.video))
        return Path(path)

    def load(self, path: str | Path) -> None:
        """Replace the prompts with this video's prompts in a prompt file, in a single edit.

        Points and boxes are rounded to whole pixels of the frames.

        Raises:
            DataError: the file cannot be read, has no prompts for this video, or does not match it.
        """
        document = read_document(path)
        # Reading the prompts like a tracker checks all values.
        video_prompts(
            document,
            str(path),
            self.video,
            self.num_frames,
            self.image_size,
            self.size,
        )
        sizes, entries = check_document(document, str(path), [self.video])
        check_image_size(str(path), sizes[self.video], self.size)
        prompts: dict[ObjectFrame, FramePrompt] = {}
        for _, entry in entries:
            key = entry["object_id"], entry["frame_index"]
            prompts[key] = from_entry(entry, sizes[self.video], self.size, prompts.get(key))
        prompts = {
            key: prompt if prompt.mask is not None else self._predicted(key, prompt)[0]
            for key, prompt in prompts.items()
        }
        edits = self._edits()
        self.prompts = prompts
        for o, _ in prompts:
            self._list_object(o)
            self._deleted.discard(o)
        self._record(edits)

    def append(self, path: str | Path, t: int) -> list[ObjectId]:
        """Append the masks of a frame to a corrections file.

        Objects that were neither prompted nor tracked on the frame keep their mask in the dataset.

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

    # The store.

    def _save(self) -> None:
        """Save all changes if there is a store."""
        if self.store is None:
            self._tracks.unsaved_frames.clear()
            return
        listed = [(o, False) for o in self.objects] + [(o, True) for o in self._deleted]
        state = VideoState(
            self.video,
            self.size,
            self.num_frames,
            self._revision,
            [
                StoredObject(
                    o,
                    None if (name := self.names.get(o, str(o))) == str(o) else name,
                    self.colors.get(o),
                    o in self.hidden,
                    deleted,
                )
                for o, deleted in listed
            ],
            [self._stored_prompt(k, p) for k, p in self.prompts.items()],
            sorted(self.accepted),
            sorted(self._checked),
            self.stale,
            "" if (path := self.source.video_path(self.i)) is None else str(path.resolve()),
            self._thumbnail,
        )
        self.store.save(self.video, state)
        self._revision = state.revision
        self._save_tracks()

    def _save_tracks(self) -> None:
        """Append the frames whose tracked masks have changed."""
        if self.store is not None and self._tracks.unsaved_frames:
            frames: dict[int, list[tuple[ObjectId, TrackedMask]]] = {
                t: [] for t in sorted(self._tracks.unsaved_frames)
            }
            for (o, t), track in self._tracks.items():
                if t in frames:
                    frames[t].append((o, track))
            self.store.save_tracked(self.video, frames)
        self._tracks.unsaved_frames.clear()

    def _stored_prompt(self, key: ObjectFrame, prompt: FramePrompt) -> StoredPrompt:
        """Return a prompt in stored form; encoded masks are cached."""
        if prompt not in self._stored:
            self._stored[prompt] = to_stored(key, prompt)
        return self._stored[prompt]

    def _load(self, store: AnnotationStore) -> None:
        """Load the stored annotations of this video."""
        state = store.load(self.video)
        if state is None:
            return
        if (tuple(state.size), state.num_frames) != (self.size, self.num_frames):
            raise DataError(
                f"{store.folder}: the annotations of {visible_text(self.video)!r} are for "
                f"{state.num_frames} frames of {list(state.size)} pixels, but the video has "
                f"{self.num_frames} frames of {list(self.size)}",
                hint="open the annotated video, or use another directory for annotations",
            )
        # Allow for differences of a few grey levels between decoders.
        if state.thumbnail and np.abs(np.subtract(state.thumbnail, self._thumbnail)).mean() > 8:
            raise DataError(
                f"{store.folder}: the annotations of {visible_text(self.video)!r} are for another "
                "video of this name, with other pixels",
                hint="open the annotated video, or use another directory for annotations",
            )
        self._revision = state.revision
        for entry in state.objects:
            if entry.deleted:
                self._deleted.add(entry.id)
                continue
            self._list_object(entry.id)
            if entry.name is not None:
                self.names[entry.id] = entry.name
            if entry.color is not None:
                self.colors[entry.id] = entry.color
            if entry.hidden:
                self.hidden.add(entry.id)
        for stored in state.prompts:
            prompt = from_stored(stored, self.size, self.video)
            self.prompts[stored.object, stored.frame] = prompt
            self._stored[prompt] = stored
        self.accepted, self._checked = set(state.accepted), set(state.checked)
        tracks = store.load_tracked(self.video)
        self._tracks.update((k, v) for k, v in tracks.items() if k[0] in self.objects)
        # Remove masks of an object that was deleted just before the kernel was killed.
        self._tracks.unsaved_frames = {t for o, t in tracks if (o, t) not in self._tracks}
        self._tracked_prompts = {} if state.stale else self.prompts


def _thumbnail(frame: np.ndarray) -> list[int]:
    """Return 64 mean grey values of a frame."""
    gray = frame.mean(axis=2, dtype=np.float32)
    return (
        cv2.resize(gray, (8, 8), interpolation=cv2.INTER_AREA).round().astype(int).ravel().tolist()
    )


def without_generated_objects(source: VideoSource, i: int) -> tuple[VideoSource, int]:
    """Return the source and index of a video without generated objects."""
    below, k = source, i
    while isinstance(below, DerivedSource):
        below, k = below.locate(k)
    if isinstance(below, CompositedDataset):
        return without_generated_objects(below.source, k % len(below))
    return source, i
