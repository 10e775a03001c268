"""Call the model once on one frame, by the conventions of upstream's video predictor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from typing import NamedTuple

import cv2
import numpy as np
import torch
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.misc import fill_holes_in_mask_scores
from torch import Tensor
from torch.nn import functional as F

from sam2kit.data.transforms import normalize, resize_frames, resize_masks
from sam2kit.models.clip_tracking import FrameFeatures
from sam2kit.tracking.memory_bank import Memory, ObjectBank, Read, upstream_bank
from sam2kit.tracking.options import TrackerOptions


class Call(NamedTuple):
    """One object's part in a call of the model: a prompt, or nothing but its memories."""

    bank: ObjectBank
    read: Read | None  # None: an initial conditioning frame, which reads no memory
    reverse: bool | None
    points: dict[str, Tensor] | None = None  # upstream's form, [1,P,2] and [1,P]
    mask: Tensor | None = None  # [1,1,S,S]
    previous: Tensor | None = None  # [1,1,h,w]

    @property
    def key(self) -> tuple:
        """What objects must agree on to share a call."""
        count = None if self.points is None else self.points["point_labels"].shape[1]
        return self.read, self.reverse, count, self.mask is None, self.previous is None


class Answer(NamedTuple):
    """What became of one object in a call."""

    memory: Memory
    candidates: Tensor | None  # [1,3,h,w], if its mask was chosen among them
    candidate_iou: Tensor | None = None  # [1,3], predicted


class FrameModel:
    """A model that is run by :class:`TrackerOptions`; it keeps nothing of any video."""

    def __init__(
        self, model: SAM2Base, options: TrackerOptions, device: torch.device | str | None = None
    ) -> None:
        self.model = model.to(device or model.device).eval()
        self.options = options
        self.device = self.model.device
        on = options.autocast
        if on is None:
            on = self.device.type == "cuda" and torch.cuda.is_bf16_supported(False)
        self._autocast = on
        self._position: list[Tensor] = []  # maskmem_pos_enc, the same for all memories

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run the model by these conventions, and leave it as it was."""
        decoder = self.model.sam_mask_decoder
        wanted = [
            (self.model, "binarize_mask_from_pts_for_mem_enc", True),  # each call says whether
            (self.model, "non_overlap_masks_for_mem_enc", False),  # upstream has objects apart
            (decoder, "dynamic_multimask_via_stability", self.options.choose_by_stability),
            (decoder, "dynamic_multimask_stability_delta", 0.05),  # of build_sam2_video_predictor
            (decoder, "dynamic_multimask_stability_thresh", 0.98),
        ]
        before = [(owner, name, getattr(owner, name)) for owner, name, _ in wanted]
        for owner, name, value in wanted:
            setattr(owner, name, value)
        autocast = torch.autocast(self.device.type, torch.bfloat16, enabled=self._autocast)
        try:
            with torch.inference_mode(), autocast:
                yield
        finally:
            for owner, name, value in before:
                setattr(owner, name, value)

    def encode(self, frame: np.ndarray) -> FrameFeatures:
        """The features of a frame ``[H,W,3]`` uint8 RGB of any size."""
        side = self.model.image_size
        picture = Image.fromarray(frame)
        if self.options.pil_bicubic:
            picture = picture.resize((side, side), Image.Resampling.BICUBIC)
        image = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(self.device)
        image = resize_frames(image, (side, side))
        cache = getattr(self.model, "feature_cache", None)
        backbone = (
            self.model.forward_image(normalize(image))
            if cache is None
            else cache.encode(self.model, image)
        )
        return FrameFeatures.of_backbone(self.model, backbone)

    def resize_masks(self, masks: Tensor) -> Tensor:
        """``[N,1,H,W]`` bool to the model's size, bool."""
        side = (self.model.image_size, self.model.image_size)
        if self.options.antialias_masks:
            return resize_masks(masks, side)
        return F.interpolate(masks.float(), side) > 0

    def run(
        self, t: int, features: FrameFeatures, calls: Sequence[Call], num_frames: int
    ) -> list[Answer]:
        """Run the model once, for n objects that may share the call.

        Args:
            features: of frame ``t``, as :meth:`encode` gives them.
            num_frames: the video's length.
        """
        model, options = self.model, self.options
        _, read, reverse, points, mask, _ = calls[0]
        vision, position, _ = features.of([0] * len(calls))
        if points is not None:
            points = {k: torch.cat([c.points[k] for c in calls if c.points]) for k in points}
        shortest = 0 if options.pointer_positions_by_length else model.max_obj_ptrs_in_encoder
        _, outputs, _, _ = model._track_step(
            t,
            read is None,
            vision,
            position,
            features.sizes,
            points,
            _together([call.mask for call in calls]),
            upstream_bank([call.bank for call in calls], read or Read((), ()), self._position),
            max(num_frames, shortest),
            bool(reverse),
            _together([call.previous for call in calls]),
        )
        candidates, _, iou, logits, high_res, pointer, score = outputs
        filled = self._fill_holes(logits)
        memory = self._encode_memory(
            (vision, features.sizes), (logits, filled, high_res), score, points, mask
        )
        if options.zero_memory:
            memory, pointer = torch.zeros_like(memory), torch.zeros_like(pointer)
        rows = (pointer, score[:, 0].float(), iou.amax(1).float(), memory, filled)
        several = candidates.shape[1] > 1
        return [
            Answer(
                # Cloned, or one object's row would keep those of all others alive.
                Memory(*(x[i : i + 1].clone() for x in rows), reverse=reverse),
                candidates[i : i + 1] if several else None,
                iou[i : i + 1].float() if several else None,
            )
            for i in range(len(calls))
        ]

    def _encode_memory(
        self,
        features: tuple[list[Tensor], list[tuple[int, int]]],
        masks: tuple[Tensor, Tensor, Tensor],
        score: Tensor,
        points: dict[str, Tensor] | None,
        mask: Tensor | None,
    ) -> Tensor:
        """The spatial memory ``[n,C,h,w]`` of a frame's masks: low, low and filled, full size."""
        options, side = self.options, (self.model.image_size, self.model.image_size)
        low, filled, full = masks
        prompted = points is not None or mask is not None
        fill_first = (
            options.fill_before_prompted_memory if prompted else options.fill_before_tracked_memory
        )
        seen = filled if fill_first else low
        if seen is not low or (prompted and options.reencode_prompted):
            full = F.interpolate(seen, side, mode="bilinear")
        binarize = options.binarize_prompted and (
            points is not None or (mask is not None and options.binarize_mask_prompts)
        )
        memory, position = self.model._encode_new_memory(*features, full, score, binarize)
        self._position = self._position or [x[:1].clone() for x in position]
        return memory.to(torch.bfloat16) if options.memory_in_bfloat16 else memory

    def _fill_holes(self, logits: Tensor) -> Tensor:
        """Low-resolution masks with small holes filled; the same tensor where nothing is done."""
        area = self.options.fill_hole_area
        if area and logits.is_cuda and find_spec("sam2._C") is not None:
            return fill_holes_in_mask_scores(logits, area)
        if not area or not self.options.fill_without_extension:
            return logits
        labels, areas = connected_components(logits <= 0)
        return torch.where((labels > 0) & (areas <= area), 0.1, logits)  # upstream's constant


def connected_components(masks: Tensor) -> tuple[Tensor, Tensor]:
    """What upstream's compiled extension computes, by OpenCV.

    Args:
        masks: ``[N,1,H,W]`` bool.

    Returns:
        labels, 0 outside the masks, and each pixel's component's area, both ``[N,1,H,W]`` int32;
        components are joined across corners.
    """
    labels, areas = [], []
    for mask in masks[:, 0].cpu().numpy().astype(np.uint8):
        _, label, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        labels.append(label)
        areas.append(statistics[label, cv2.CC_STAT_AREA])
    both = torch.from_numpy(np.stack([labels, areas])).to(masks.device)
    return both[0].view(masks.shape), both[1].view(masks.shape)


def _together(parts: list[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat([part for part in parts if part is not None])
