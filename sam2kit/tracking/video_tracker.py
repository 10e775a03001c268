"""Track whole videos frame by frame, with memory usage independent of their length.

The masks equal those of upstream's ``SAM2VideoPredictor``; docs/tracking.md lists its conventions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
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
from sam2kit.tracking.frame_step import (
    FeaturesAhead,
    FrameModel,
    ObjectInput,
    ObjectOutput,
    PreparedFrame,
)
from sam2kit.tracking.memory_bank import Horizon, MemoryFrames, ObjectBank
from sam2kit.utils.errors import DataError

PREVIOUS_LOGITS_LIMIT = 32.0  # upstream clamps the logits of a mask that clicks refine
ReadFrame = Callable[[int], np.ndarray | PreparedFrame]
"""Function from a frame index to the frame, ``[H,W,3]`` uint8 RGB; all frames have equal size.

It can also return the result of :meth:`VideoTracker.prepare`, to resize frames in another thread.
"""


@dataclass
class FrameTracks:
    """The masks and scores of all objects on one frame.

    Attributes:
        frame: index of the frame, from 0.
        objects: O object numbers.
        mask_logits: ``[O,h,w]`` float32, at a quarter of the model's image size.
        iou: ``[O]`` predicted IoU, from 0 to 1; 1 for a mask prompt.
        object_score: ``[O]`` logits; above 0 the object is predicted to be visible.
        candidates: ``[O,3,h,w]`` logits if every object's mask was selected among three masks,
            otherwise None (default).
        candidate_iou: ``[O,3]`` predicted IoU of the candidates.
        non_overlapping: see :class:`~sam2kit.tracking.options.TrackerOptions`.
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
        """Resize the logits bilinearly, as upstream does.

        Args:
            size: H and W (rows and columns).

        Returns:
            ``[O,H,W]`` float32.
        """
        logits = F.interpolate(self.mask_logits[:, None], size, mode="bilinear")[:, 0]
        if self.non_overlapping:
            is_highest = (
                logits.argmax(0) == torch.arange(len(logits), device=logits.device)[:, None, None]
            )
            # -10 is upstream's constant.
            logits = torch.where(is_highest, logits, logits.clamp(max=-10.0))
        return logits

    def masks(self, size: tuple[int, int]) -> np.ndarray:
        """Threshold the resized logits at 0.

        Args:
            size: H and W (rows and columns).

        Returns:
            ``[O,H,W]`` bool.
        """
        return (self.logits(size) > 0).cpu().numpy()


class VideoTracker(FrameModel):
    """Open videos for tracking with a model and tracking options.

    Args:
        model: the model; it is set to evaluation mode.
        options: tracking options. If None (default), the default options.
        device: device to move the model to. If None (default), the model stays on its device.
    """

    def open(
        self, read_frame: ReadFrame, num_frames: int, size: tuple[int, int]
    ) -> TrackingSession:
        """Open a video for tracking without reading frames yet.

        Args:
            read_frame: function from a frame index (0 to ``num_frames`` - 1) to the frame,
                ``[H,W,3]`` uint8 RGB, or to the result of :meth:`prepare` for it.
            num_frames: number of frames of the video.
            size: H and W (rows and columns) of the frames.

        Returns:
            A session without prompts.
        """
        return TrackingSession(self, read_frame, num_frames, size)


class TrackingSession:
    """The state of tracking one video: memory banks, and features of the latest frames.

    Use :meth:`VideoTracker.open` to create one.

    Attributes:
        num_frames: number of frames of the video.
        size: H and W of the frames.
        banks: the memories of each object, by object number.
    """

    def __init__(
        self, frame_model: FrameModel, read_frame: ReadFrame, num_frames: int, size: tuple[int, int]
    ) -> None:
        self.num_frames, self.size = num_frames, size
        self.banks: dict[int, ObjectBank] = {}
        self._frame_model, self._read_frame = frame_model, read_frame
        self._options = frame_model.options
        self._horizon = Horizon(frame_model.model, self._options)
        self._encoded: dict[int, FrameFeatures] = {}
        self._ahead: tuple[list[int], FeaturesAhead] | None = None  # frames to track later
        self._upcoming = range(0)  # the frame to track, and those after it

    @property
    def objects(self) -> list[int]:
        """The prompted objects in the order of their first prompts."""
        return list(self.banks)

    def state_bytes(self) -> int:
        """Return the total size in bytes of all tensors that the session keeps between calls."""
        tensors = [t for bank in self.banks.values() for t in bank.tensors()]
        ahead = [] if self._ahead is None else [self._ahead[1].features]
        for features in (*self._encoded.values(), *ahead):
            tensors += [*features.vision, *features.position]
        return sum(t.numel() * t.element_size() for t in tensors)

    def add_prompt(self, prompt: Prompt, previous: Tensor | None = None) -> FrameTracks:
        """Prompt new or existing objects on a frame and predict their masks on this frame.

        Clicks are added to earlier clicks on the frame; a box or mask replaces them. If the frame
        was tracked and its memory has not been evicted, the prompt is a correction; otherwise the
        frame becomes a conditioning frame. Other frames read the result when they are tracked next.

        Args:
            prompt: the prompt of N objects.
            previous: ``[N,1,h,w]`` logits to refine with clicks, at a quarter of the model's image
                size. If None (default), the objects' current masks on the frame, if any.

        Returns:
            The masks of the N objects.

        Raises:
            ValueError: the frame is not in the video.
            DataError: the frame is invalid; the session is unchanged.
        """
        if prompt.frame >= self.num_frames:
            raise ValueError(
                f"prompt on frame {prompt.frame} of a video of {self.num_frames} frames; the last "
                f"frame is {self.num_frames - 1}"
            )
        with self._frame_model.applied():
            points, masks = upstream_inputs(prompt.to(self._frame_model.device))
            if masks is not None:
                side = self._frame_model.model.image_size
                masks = resize_masks(masks, (side, side))
                for row in (~masks.flatten(1).any(1)).nonzero().flatten().tolist():
                    logger.warning(
                        "Object {} on frame {} is too small: its mask is empty at the model's "
                        "image size of {} pixels, so the prompt marks the object as absent",
                        prompt.objects[row].item(),
                        prompt.frame,
                        side,
                    )
            # Read the frame before changing any state, so that a failure has no effect.
            self._features(prompt.frame)
            inputs = {}
            for row, number in enumerate(prompt.objects.tolist()):
                clicks = (
                    None if points is None else {k: v[row : row + 1] for k, v in points.items()}
                )
                mask = None if masks is None else masks[row : row + 1].float()
                object_input = self._prompt_input(number, prompt.frame, clicks, mask)
                if previous is not None:
                    object_input = object_input._replace(previous_logits=previous[row : row + 1])
                inputs[number] = object_input
            outputs = self._run(prompt.frame, inputs)
        for number, object_input in inputs.items():
            is_conditioning = (
                object_input.memory_frames is None or self._options.corrected_frames_condition
            )
            object_input.bank.pending[is_conditioning, prompt.frame] = outputs[number].memory
        return self._tracks(prompt.frame, outputs)

    def propagate(
        self, start: int | None = None, stop: int | None = None, reverse: bool = False
    ) -> Iterator[FrameTracks]:
        """Track all objects lazily, frame by frame.

        On an object's conditioning frames, the mask of its prompt is returned. Prompts can be added
        between two frames.

        Args:
            start: the first frame to track. If None (default), the first prompted frame.
            stop: the frame at which to stop, exclusive in both directions. If None (default), track
                to the end of the video, or to its beginning if ``reverse``.
            reverse: track backward. As in upstream, starting at frame 0 tracks nothing.

        Returns:
            An iterator over the tracked frames in tracking order.

        Raises:
            ValueError: no object was prompted, or ``start`` is not in the video.
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
        return (self._track(order[n:], reverse) for n in range(len(order)))

    def _first_prompted(self) -> int:
        """Return the first conditioning frame of any object."""
        return min(
            min([*bank.conditioning, *(t for conditioning, t in bank.pending if conditioning)])
            for bank in self.banks.values()
        )

    def _track(self, order: range, reverse: bool) -> FrameTracks:
        """Track all objects on the first frame of a pass, update banks and evict old memories."""
        t, self._upcoming = order[0], order
        options, horizon = self._options, self._horizon
        outputs: dict[int, ObjectOutput] = {}
        inputs: dict[int, ObjectInput] = {}
        with self._frame_model.applied():
            for number, bank in self.banks.items():
                bank.commit_pending()
                # A conditioning frame already has the result of its prompt.
                if t in bank.conditioning:
                    outputs[number] = ObjectOutput(bank.conditioning[t], None)
                elif options.track_before_prompt or any(
                    (f > t if reverse else f < t) for f in bank.conditioning
                ):
                    inputs[number] = ObjectInput(bank, horizon.read(bank, t, reverse), reverse)
            outputs |= self._run(t, inputs)
            tracks = self._tracks(t, {o: outputs[o] for o in self.banks if o in outputs})
            for number, object_input in inputs.items():
                outputs[number].memory.frames = object_input.memory_frames
                object_input.bank.others[t] = outputs[number].memory
            for output in outputs.values():
                output.memory.reverse = reverse
            # A later pass in the other direction would start here and need the memories around it.
            anchor = self._first_prompted()
            for bank in self.banks.values():
                horizon.evict(bank, t, reverse, anchor)
        return tracks

    def _prompt_input(
        self, number: int, t: int, points: dict[str, Tensor] | None, mask: Tensor | None
    ) -> ObjectInput:
        """Create the input for a prompted object, and store its clicks.

        Args:
            number: the object.
            t: the prompted frame.
            points: clicks or box corners in upstream's format, or None for a mask prompt.
            mask: ``[1,1,S,S]``, or None for points.
        """
        bank = self.banks.setdefault(number, ObjectBank())
        memory = bank.get(t)
        # As in upstream, the correction of a tracked frame reads the same memories as tracking did;
        # the first prompt of a frame reads none.
        reverse = None if memory is None else memory.reverse
        frames = None if reverse is None else self._horizon.read(bank, t, reverse)
        is_conditioning = frames is None or self._options.corrected_frames_condition
        tracked_with = None if memory is None else memory.frames
        # A mask prompt reads no memories.
        if tracked_with is not None and frames is not None and points is not None:
            self._warn_of_evicted(number, t, tracked_with, frames)
        if t in bank.conditioning and not is_conditioning:
            logger.warning(
                "Object {} was tracked from its prompt on frame {}. Tracking starts from that "
                "prompt and ignores the correction unless corrected_frames_condition is set",
                number,
                t,
            )
        if points is None:
            bank.clicks.pop(t, None)
            return ObjectInput(bank, frames, reverse, mask=mask)
        if not (points["point_labels"] == BOX_LABELS[0]).any():
            points = concat_points(bank.clicks.get(t), *points.values())
        bank.clicks[t] = points
        # Prefer the result of an earlier click on this frame to the tracked memory.
        latest = bank.pending.get((is_conditioning, t)) or memory
        previous = None
        if latest is not None and latest.mask_logits is not None:
            previous = latest.mask_logits.clamp(-PREVIOUS_LOGITS_LIMIT, PREVIOUS_LOGITS_LIMIT)
        return ObjectInput(bank, frames, reverse, points, previous_logits=previous)

    def _warn_of_evicted(self, number: int, t: int, then: MemoryFrames, now: MemoryFrames) -> None:
        """Warn if a correction cannot read all memories that tracking read on the frame.

        Args:
            number: the object.
            t: the corrected frame.
            then: the frames whose memories were read in tracking.
            now: the frames whose memories the correction reads.
        """
        evicted = {*then.conditioning, *then.others} - {*now.conditioning, *now.others}
        if evicted:
            logger.warning(
                "The correction of object {} on frame {} lacks {} of the {} memories that tracking "
                "read; they were evicted, so the mask is less accurate. To avoid this, set history "
                "in TrackerOptions or evaluation.tracker to the number of frames that you go back",
                number,
                t,
                len(evicted),
                len(then.conditioning) + len(then.others),
            )

    def _run(self, t: int, inputs: dict[int, ObjectInput]) -> dict[int, ObjectOutput]:
        """Run the model on a frame with as few calls as possible, and return outputs by object."""
        groups: dict[tuple, list[int]] = defaultdict(list)
        for number, object_input in inputs.items():
            groups[object_input.key].append(number)
        outputs: dict[int, ObjectOutput] = {}
        for group in groups.values():
            for i in range(0, len(group), self._options.object_chunk):
                chunk = group[i : i + self._options.object_chunk]
                chunk_outputs = self._frame_model.run(
                    t, self._features(t), [inputs[o] for o in chunk], self.num_frames
                )
                outputs |= dict(zip(chunk, chunk_outputs, strict=True))
        return outputs

    def _features(self, t: int) -> FrameFeatures:
        """Return the features of a frame; those of the latest frames are cached."""
        if t not in self._encoded:
            count, is_next = self._options.lookahead, self._upcoming[:1] == range(t, t + 1)
            ahead, self._ahead = self._ahead, None
            self._encoded = {}  # free the old features before allocating new ones
            if ahead is not None and t in ahead[0]:
                frames, features = ahead[0], self._frame_model.wait_for(ahead[1])
            else:
                read = self._read_some(self._upcoming[:count] if is_next else [t])
                frames, features = [*read], self._frame_model.encode(*read.values())
            self._encoded = {n: features.select([i]) for i, n in enumerate(frames)}
            if is_next and self._frame_model.encodes_ahead:
                following = [n for n in self._upcoming[: 2 * count] if n not in frames]
                if read := self._read_some(following[:count], or_none=True):
                    self._ahead = [*read], self._frame_model.encode_ahead(*read.values())
        return self._encoded[t]

    def _read_some(
        self, frames: Sequence[int], or_none: bool = False
    ) -> dict[int, np.ndarray | PreparedFrame]:
        """Read frames up to one that cannot be read, whose error is raised when it is tracked.

        Args:
            frames: the frames.
            or_none: do not raise an error of the first frame either.
        """
        read: dict[int, np.ndarray | PreparedFrame] = {}
        for n in frames:
            try:
                read[n] = self._read(n)
            except Exception:
                if not read and not or_none:
                    raise
                break
        return read

    def _read(self, t: int) -> np.ndarray | PreparedFrame:
        frame = self._read_frame(t)
        pixels = frame.frame if isinstance(frame, PreparedFrame) else frame
        if pixels.shape != (*self.size, 3) or pixels.dtype != np.uint8:
            raise DataError(
                f"frame {t} is {pixels.dtype} {pixels.shape}, but the video's frames are uint8 "
                f"{(*self.size, 3)}",
                hint="return all frames as uint8 RGB with the size passed to open()",
            )
        return frame

    def _tracks(self, t: int, outputs: dict[int, ObjectOutput]) -> FrameTracks:
        """Combine the outputs of objects on a frame."""
        memories = [output.memory for output in outputs.values()]
        masks = [m.mask_logits[:, 0] for m in memories if m.mask_logits is not None]
        candidates = [x.candidates for x in outputs.values() if x.candidates is not None]
        has_candidates = len(candidates) == len(memories) > 0
        side, device = self._frame_model.model.image_size // 4, self._frame_model.device
        empty = torch.zeros(0, device=device)  # torch.cat needs at least one tensor
        return FrameTracks(
            t,
            list(outputs),
            torch.cat([empty.view(0, side, side), *masks]),
            torch.cat([empty, *(m.iou for m in memories)]),
            torch.cat([empty, *(m.object_score for m in memories)]),
            torch.cat([masks for masks, _ in candidates]) if has_candidates else None,
            torch.cat([iou for _, iou in candidates]) if has_candidates else None,
            self._options.non_overlapping,
        )
