"""Tracking whole videos, frame by frame, in memory that does not grow with their length.

The masks are those of upstream's ``SAM2VideoPredictor``; docs/tracking.md has its conventions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from loguru import logger
from sam2.utils.misc import concat_points
from torch import Tensor
from torch.nn import functional as F

from sam2kit.data.transforms import resize_masks
from sam2kit.models.clip_tracking import FrameFeatures, upstream_inputs
from sam2kit.prompts.geometry import BOX_LABELS
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.frame_step import Answer, Call, FrameModel
from sam2kit.tracking.memory_bank import Horizon, ObjectBank
from sam2kit.utils.errors import DataError

PREVIOUS_LOGITS_LIMIT = 32.0  # upstream's clamp of the mask that clicks refine
ReadFrame = Callable[[int], np.ndarray]
"""Frame number -> ``[H,W,3]`` uint8 RGB, all frames of one size."""


@dataclass
class FrameTracks:
    """All objects on one frame.

    Attributes:
        frame: its number in the video.
        objects: O object numbers.
        mask_logits: ``[O,h,w]`` float32, at a quarter of the model's image size.
        iou: ``[O]`` predicted, 0 to 1; 1 for a mask prompt.
        object_score: ``[O]`` logits, above 0 where the object is seen.
        candidates: ``[O,3,h,w]`` where every object's mask was chosen among three, else None.
        candidate_iou: ``[O,3]`` predicted, for these.
        non_overlapping: see :class:`TrackerOptions`.
    """

    frame: int
    objects: list[int]
    mask_logits: Tensor
    iou: Tensor
    object_score: Tensor
    candidates: Tensor | None = None
    candidate_iou: Tensor | None = None
    non_overlapping: bool = False

    def logits(self, size: tuple[int, int]) -> Tensor:
        """``[O,H,W]`` at ``size`` (rows, columns), resized bilinearly as upstream does."""
        logits = F.interpolate(self.mask_logits[:, None], size, mode="bilinear")[:, 0]
        if self.non_overlapping:
            mine = (
                logits.argmax(0) == torch.arange(len(logits), device=logits.device)[:, None, None]
            )
            logits = torch.where(mine, logits, logits.clamp(max=-10.0))  # upstream's constant
        return logits

    def masks(self, size: tuple[int, int]) -> np.ndarray:
        """Bool ``[O,H,W]`` at the video's ``size`` (rows, columns)."""
        return (self.logits(size) > 0).cpu().numpy()


class VideoTracker(FrameModel):
    """A model and the options by which it tracks.

    Args:
        model: set to evaluation mode.
        options: None: the defaults.
        device: where the model is moved; None: where it is.
    """

    def open(
        self, read_frame: ReadFrame, num_frames: int, size: tuple[int, int]
    ) -> TrackingSession:
        """Begin a video.

        Args:
            read_frame: called with 0 to ``num_frames`` - 1; frames ``[H,W,3]`` uint8 RGB.
            size: H and W.
        """
        return TrackingSession(self, read_frame, num_frames, size)


class TrackingSession:
    """One video being tracked. It keeps the memory bank and the last frame's features.

    Made by :meth:`VideoTracker.open`.
    """

    def __init__(
        self, frame_model: FrameModel, read_frame: ReadFrame, num_frames: int, size: tuple[int, int]
    ) -> None:
        self.num_frames, self.size = num_frames, size
        self.banks: dict[int, ObjectBank] = {}
        self._frame_model, self._read_frame = frame_model, read_frame
        self._options = frame_model.options
        self._horizon = Horizon(frame_model.model, self._options)
        self._encoded: tuple[int, FrameFeatures] | None = None

    @property
    def objects(self) -> list[int]:
        """The objects that were prompted, in the order of their first prompts."""
        return list(self.banks)

    def state_bytes(self) -> int:
        """Bytes of all tensors that are kept from one call to the next."""
        kept = [t for bank in self.banks.values() for t in bank.tensors()]
        if self._encoded is not None:
            kept += [*self._encoded[1].vision, *self._encoded[1].position]
        return sum(t.numel() * t.element_size() for t in kept)

    def add_prompt(self, prompt: Prompt, previous: Tensor | None = None) -> FrameTracks:
        """Prompt objects on a frame, new ones or known ones, and answer with their masks there.

        Clicks add up with those that were given on the frame before; a box or a mask replaces them.
        A frame that was tracked and is still kept is corrected; any other becomes a conditioning
        frame. Tracking reads the answer from the next frame on that it tracks.

        Args:
            previous: ``[N,1,h,w]`` logits at a quarter of the model's size, the masks that clicks
                refine; None: those that the objects have on the frame, if any.

        Raises:
            ValueError: the frame is not in the video.
        """
        if prompt.frame >= self.num_frames:
            raise ValueError(
                f"prompt on frame {prompt.frame} of a video of {self.num_frames} frames (from 0)"
            )
        with self._frame_model.applied():
            points, masks = upstream_inputs(prompt.to(self._frame_model.device))
            if masks is not None:
                side = self._frame_model.model.image_size
                masks = resize_masks(masks, (side, side))
                for row in (~masks.flatten(1).any(1)).nonzero().flatten().tolist():
                    logger.warning(
                        "object {} on frame {} is too small for {} pixels a side: its mask prompt "
                        "says that it is absent",
                        prompt.objects[row].item(),
                        prompt.frame,
                        side,
                    )
            self._features(prompt.frame)  # an unreadable frame leaves everything as it was
            calls = {}
            for row, number in enumerate(prompt.objects.tolist()):
                own = None if points is None else {k: v[row : row + 1] for k, v in points.items()}
                mask = None if masks is None else masks[row : row + 1].float()
                call = self._prompt_call(number, prompt.frame, own, mask)
                if previous is not None:
                    call = call._replace(previous=previous[row : row + 1])
                calls[number] = call
            answers = self._run(prompt.frame, calls)
        for number, call in calls.items():
            conditions = call.read is None or self._options.corrected_frames_condition
            call.bank.pending[conditions, prompt.frame] = answers[number].memory
        return self._tracks(prompt.frame, answers)

    def propagate(
        self, start: int | None = None, stop: int | None = None, reverse: bool = False
    ) -> Iterator[FrameTracks]:
        """Track all objects frame by frame, as the iterator is read.

        A frame on which an object was prompted gives the answer to its prompts again. Prompts may
        be added between two frames.

        Args:
            start: the first frame; None: the first one that was prompted.
            stop: the frame before which to stop (``reverse``: after which); None: the video's end.
            reverse: go backwards. From frame 0 there is nothing to track, as upstream has it.

        Raises:
            ValueError: nothing was prompted, or ``start`` is not in the video.
        """
        if not self.banks:
            raise ValueError("no object was prompted; call add_prompt first")
        start = self._first_prompted() if start is None else start
        if not 0 <= start < self.num_frames:
            raise ValueError(f"start is {start}, but the video has {self.num_frames} frames")
        if reverse:
            order = range(start, -1 if stop is None else stop, -1) if start else range(0)
        else:
            order = range(start, self.num_frames if stop is None else min(stop, self.num_frames))
        return (self._track(t, reverse) for t in order)

    def _first_prompted(self) -> int:
        return min(
            min([*bank.conditioning, *(t for conditions, t in bank.pending if conditions)])
            for bank in self.banks.values()
        )

    def _track(self, t: int, reverse: bool) -> FrameTracks:
        options, horizon = self._options, self._horizon
        answers: dict[int, Answer] = {}
        calls: dict[int, Call] = {}
        with self._frame_model.applied():
            for number, bank in self.banks.items():
                bank.settle()
                if t in bank.conditioning:
                    answers[number] = Answer(bank.conditioning[t], None)
                elif options.track_before_prompt or any(
                    (f > t if reverse else f < t) for f in bank.conditioning
                ):
                    calls[number] = Call(bank, horizon.read(bank, t, reverse), reverse)
            answers |= self._run(t, calls)
            tracks = self._tracks(t, {o: answers[o] for o in self.banks if o in answers})
            for number, call in calls.items():
                call.bank.others[t] = answers[number].memory
            for answer in answers.values():
                answer.memory.reverse = reverse
            anchor = self._first_prompted()
            for bank in self.banks.values():
                horizon.forget(bank, t, reverse, anchor)
        return tracks

    def _prompt_call(
        self, number: int, t: int, points: dict[str, Tensor] | None, mask: Tensor | None
    ) -> Call:
        bank = self.banks.setdefault(number, ObjectBank())
        kept = bank.get(t)
        reverse = None if kept is None else kept.reverse
        read = None if reverse is None else self._horizon.read(bank, t, reverse)
        conditions = read is None or self._options.corrected_frames_condition
        if t in bank.conditioning and not conditions:
            logger.warning(
                "object {} was tracked from its prompt on frame {}: tracking goes on from that "
                "prompt, not from the correction, unless corrected_frames_condition is set",
                number,
                t,
            )
        if points is None:
            bank.clicks.pop(t, None)
            return Call(bank, read, reverse, mask=mask)
        if not (points["point_labels"] == BOX_LABELS[0]).any():
            points = concat_points(bank.clicks.get(t), *points.values())
        bank.clicks[t] = points
        latest = bank.pending.get((conditions, t)) or kept
        previous = None
        if latest is not None and latest.mask_logits is not None:
            previous = latest.mask_logits.clamp(-PREVIOUS_LOGITS_LIMIT, PREVIOUS_LOGITS_LIMIT)
        return Call(bank, read, reverse, points, previous=previous)

    def _run(self, t: int, calls: dict[int, Call]) -> dict[int, Answer]:
        groups: dict[tuple, list[int]] = defaultdict(list)
        for number, call in calls.items():
            groups[call.key].append(number)
        answers: dict[int, Answer] = {}
        for group in groups.values():
            for i in range(0, len(group), self._options.object_chunk):
                part = group[i : i + self._options.object_chunk]
                found = self._frame_model.run(
                    t, self._features(t), [calls[o] for o in part], self.num_frames
                )
                answers |= dict(zip(part, found, strict=True))
        return answers

    def _features(self, t: int) -> FrameFeatures:
        if self._encoded is None or self._encoded[0] != t:
            self._encoded = None  # so that never two frames' are held
            frame = self._read_frame(t)
            if frame.shape != (*self.size, 3) or frame.dtype != np.uint8:
                raise DataError(
                    f"frame {t} is {frame.dtype} {frame.shape}, but the video's frames are uint8 "
                    f"{(*self.size, 3)}"
                )
            self._encoded = t, self._frame_model.encode(frame)
        return self._encoded[1]

    def _tracks(self, t: int, answers: dict[int, Answer]) -> FrameTracks:
        memories = [answer.memory for answer in answers.values()]
        masks = [m.mask_logits[:, 0] for m in memories if m.mask_logits is not None]
        candidates = [a.candidates for a in answers.values() if a.candidates is not None]
        several = len(candidates) == len(memories) > 0
        side, device = self._frame_model.model.image_size // 4, self._frame_model.device
        none = torch.zeros(0, device=device)
        return FrameTracks(
            t,
            list(answers),
            torch.cat([none.view(0, side, side), *masks]),
            torch.cat([none, *(m.iou for m in memories)]),
            torch.cat([none, *(m.object_score for m in memories)]),
            torch.cat([masks for masks, _ in candidates]) if several else None,
            torch.cat([iou for _, iou in candidates]) if several else None,
            self._options.non_overlapping,
        )
