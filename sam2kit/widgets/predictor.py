"""Predict the masks of prompts with a model, on one frame or over a video."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch.nn import functional as F

from sam2kit.data.rle import encode_masks
from sam2kit.data.sources.base import ObjectId
from sam2kit.models.sam2 import SAM2Model
from sam2kit.prompts.annotations import ObjectFrame, TrackedMask
from sam2kit.prompts.io import video_prompts
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.tracking_job import OPTIONS
from sam2kit.tracking.video_tracker import FrameTracks, TrackingSession, VideoTracker
from sam2kit.widgets.frame_prompts import FramePrompt, add_centre_click, to_document

MASK_LOGIT = 10.0  # upstream converts a mask prompt to logits of +10 and -10


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


class MaskPredictor:
    """Predict the masks of prompts of one video.

    Args:
        model: set to evaluation mode.
        device: the model is moved to it. None: the model stays on its device.
        read_frame: returns a frame ``[H,W,3]`` uint8 RGB by its index.
        video: name of the video.
        num_frames: its length.
        size: H and W of its frames.
        model_name: name of the model in the provenance of masks. None (default): unknown.
    """

    def __init__(
        self,
        model: SAM2Model,
        device: torch.device | None,
        read_frame: Callable[[int], np.ndarray],
        video: str,
        num_frames: int,
        size: tuple[int, int],
        model_name: str | None = None,
    ) -> None:
        self.model, self.model_name = model, model_name
        self._read_frame, self._video = read_frame, video
        self._num_frames, self._size = num_frames, size
        self._tracker = VideoTracker(model, OPTIONS, device)
        # Predicts masks for prompts, separately from tracking; it caches the frame's features.
        self._prompting = self._open()

    def _open(self) -> TrackingSession:
        return self._tracker.open(self._read_frame, self._num_frames, self._size)

    def predict(self, key: ObjectFrame, prompt: FramePrompt) -> Prediction:
        """Predict the mask of one prompt, independently of all others."""
        if prompt.mask is not None and not prompt.clicked:
            return Prediction(prompt.mask, np.zeros((0, *self._size), bool), (), MASK_LOGIT)
        clicks = replace(prompt, mask=None)
        tracks = self._run_prompt(key, clicks)
        three = tracks
        if tracks.candidates is None:
            # The model returns one mask for unambiguous prompts (several clicks, a box). Its limit
            # is raised for a second pass, because the widget always shows three candidates.
            max_points = self.model.multimask_max_pt_num
            self.model.multimask_max_pt_num = 10**6
            try:
                three = self._run_prompt(key, clicks)
            finally:
                self.model.multimask_max_pt_num = max_points
        logits, ious = three.candidates, three.candidate_iou
        if logits is None or ious is None:  # the model is configured to return one mask only
            logits, ious = three.mask_logits[:, None], three.iou
        candidates = replace(three, mask_logits=logits[0]).masks(self._size)
        mask, score = tracks.masks(self._size)[0], tracks.object_score.item()
        return Prediction(mask, candidates, tuple(ious.flatten().tolist()), score)

    def _run_prompt(self, key: ObjectFrame, prompt: FramePrompt) -> FrameTracks:
        # Without memories, so that the result does not depend on earlier prompts.
        self._prompting.banks.clear()
        previous = None
        if prompt.base is not None:
            side = self.model.image_size // 4
            logits = torch.from_numpy(prompt.base)[None, None].float() * 2 * MASK_LOGIT - MASK_LOGIT
            previous = F.interpolate(logits, (side, side), mode="area")
            previous = previous.to(self._tracker.device)
            prompt = add_centre_click(prompt)
        for model_prompt in self._model_prompts({key: prompt})[0]:
            previous_logits = previous if model_prompt.kind == "point" else None
            tracks = self._prompting.add_prompt(model_prompt, previous_logits)
        return tracks

    def _model_prompts(
        self, prompts: Mapping[ObjectFrame, FramePrompt]
    ) -> tuple[list[Prompt], list[ObjectId]]:
        """Return the prompts as ``sam2kit track`` reads them, and the objects by position."""
        document = to_document(prompts, self._video, self._size)
        return video_prompts(
            document, "prompts", self._video, self._num_frames, self.model.image_size
        )

    def track(
        self, prompts: dict[ObjectFrame, FramePrompt], frames: range, reverse: bool
    ) -> Iterator[tuple[int, dict[ObjectId, TrackedMask]]]:
        """Track one pass; yield the masks of each frame."""
        session = self._open()
        model_prompts, identities = self._model_prompts(prompts)
        for prompt in model_prompts:
            session.add_prompt(prompt)
        if not frames:
            return
        for tracks in session.propagate(frames.start, frames.stop, reverse):
            runs = encode_masks(tracks.masks(self._size)) if tracks.objects else []
            scores = tracks.object_score.tolist()
            yield (
                tracks.frame,
                {
                    identities[n]: TrackedMask(
                        run["counts"], round(score, 4), self.model_name, backward=reverse
                    )
                    for n, run, score in zip(tracks.objects, runs, scores, strict=True)
                },
            )
