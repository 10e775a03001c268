"""Call the model once on one frame, by the conventions of upstream's video predictor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.util import find_spec
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.utils.misc import fill_holes_in_mask_scores
from torch import Tensor
from torch.nn import functional as F

from sam2kit.data.transforms import normalize
from sam2kit.models.clip_tracking import FrameFeatures
from sam2kit.tracking.memory_bank import Memory, ObjectBank, Read, upstream_bank
from sam2kit.tracking.options import TrackerOptions

DECODER_SETTINGS = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}
"""What upstream's ``build_sam2_video_predictor`` sets on the mask decoder."""
MEMORY_DTYPE = torch.bfloat16
"""The type of spatial memories, even where all else is float32."""


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
    # Three masks [1,3,h,w] and their predicted IoU [1,3], if its mask was chosen among them.
    candidates: tuple[Tensor, Tensor] | None


class FrameModel:
    """A model that is run by :class:`TrackerOptions`; it keeps nothing of any video.

    Args:
        model: set to evaluation mode.
        device: where it is moved; None: where it is.
    """

    def __init__(
        self,
        model: SAM2Base,
        options: TrackerOptions | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        self.model = model.to(device or model.device).eval()
        self.options = options or TrackerOptions()
        self.device = self.model.device
        autocast = self.options.autocast
        if autocast is None:
            autocast = self.device.type == "cuda" and torch.cuda.is_bf16_supported(False)
        self._autocast = autocast
        self._position: list[Tensor] = []  # maskmem_pos_enc, the same for all memories

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Run the model by upstream's conventions, and leave it as it was."""
        decoder = self.model.sam_mask_decoder
        settings = [
            (self.model, "binarize_mask_from_pts_for_mem_enc", True),  # each call says whether
            (self.model, "non_overlap_masks_for_mem_enc", False),  # upstream has objects apart
            *((decoder, name, value) for name, value in DECODER_SETTINGS.items()),
        ]
        with ExitStack() as stack:
            for owner, name, value in settings:
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
            stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, self._autocast))
            yield

    def encode(self, frame: np.ndarray) -> FrameFeatures:
        """Compute the features of a frame ``[H,W,3]`` uint8 RGB of any size."""
        image = resize_frame(frame, self.model.image_size).to(self.device)
        cache = getattr(self.model, "feature_cache", None)
        backbone = (
            self.model.forward_image(normalize(image))
            if cache is None
            else cache.encode(self.model, image)
        )
        return FrameFeatures.from_backbone(self.model, backbone)

    def run(
        self, t: int, features: FrameFeatures, calls: Sequence[Call], num_frames: int
    ) -> list[Answer]:
        """Run the model once, for n objects that may share the call.

        Args:
            features: of frame ``t``, as :meth:`encode` gives them.
            num_frames: the video's length.
        """
        model = self.model
        _, read, reverse, points, mask, _ = calls[0]
        vision, position, _ = features.select([0] * len(calls))
        if points is not None:
            points = {k: torch.cat([c.points[k] for c in calls if c.points]) for k in points}
        _, outputs, _, _ = model._track_step(
            t,
            read is None,
            vision,
            position,
            features.sizes,
            points,
            _together([call.mask for call in calls]),
            upstream_bank([call.bank for call in calls], read or Read((), ()), self._position),
            num_frames,
            bool(reverse),
            _together([call.previous for call in calls]),
        )
        candidates, _, iou, logits, high_res, pointer, score = outputs
        filled = self._fill_holes(logits)
        prompted = points is not None or mask is not None
        if prompted:  # whose memory is made from the low-resolution mask, and cut at 0
            side = (model.image_size, model.image_size)
            high_res = F.interpolate(filled, side, mode="bilinear")
        memory, memory_position = model._encode_new_memory(
            vision, features.sizes, high_res, score, prompted
        )
        memory = memory.to(MEMORY_DTYPE)
        self._position = self._position or [x[:1].clone() for x in memory_position]
        if self.options.zero_memory:
            memory, pointer = torch.zeros_like(memory), torch.zeros_like(pointer)
        rows = (pointer, score[:, 0].float(), iou.amax(1).float(), memory, filled)
        several = candidates.shape[1] > 1
        return [
            Answer(
                # Cloned, or one object's row would keep those of all others alive.
                Memory(*(x[i : i + 1].clone() for x in rows), reverse=reverse),
                (candidates[i : i + 1], iou[i : i + 1].float()) if several else None,
            )
            for i in range(len(calls))
        ]

    def _fill_holes(self, logits: Tensor) -> Tensor:
        """Fill small holes of low-resolution masks, where upstream's compiled extension can."""
        area = self.options.fill_hole_area
        return fill_holes_in_mask_scores(logits, area) if area and can_fill(logits) else logits


def can_fill(logits: Tensor) -> bool:
    """Whether upstream's compiled extension, which it needs to fill holes, can be used."""
    return logits.is_cuda and find_spec("sam2._C") is not None


def resize_frame(frame: np.ndarray, side: int) -> Tensor:
    """Resize ``[H,W,3]`` uint8 to ``[1,3,side,side]`` by PIL's bicubic filter, as upstream does."""
    picture = Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def _together(parts: list[Tensor | None]) -> Tensor | None:
    return None if parts[0] is None else torch.cat([part for part in parts if part is not None])
