"""Run the model on one frame, following the conventions of upstream's video predictor."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
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
from sam2kit.models.cast_weights import CastWeights
from sam2kit.models.clip_tracking import FrameFeatures
from sam2kit.tracking.memory_bank import Memory, MemoryFrames, ObjectBank, upstream_bank
from sam2kit.tracking.options import TrackerOptions

DECODER_SETTINGS = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}
"""Attributes that upstream's ``build_sam2_video_predictor`` sets on the mask decoder."""
MEMORY_DTYPE = torch.bfloat16
"""Dtype of stored spatial memories, as in upstream, even if the model runs in float32."""


class ObjectInput(NamedTuple):
    """One object's input to a model call: its memories and, optionally, a prompt.

    Attributes:
        bank: the memories of the object.
        memory_frames: the frames to read, or None for an initial conditioning frame, which reads
            none.
        reverse: whether tracking runs backward, or None if the frame was not tracked before it was
            prompted.
        points: upstream's ``point_coords`` ``[1,P,2]`` and ``point_labels`` ``[1,P]``.
        mask: ``[1,1,S,S]`` mask prompt at the model's image size.
        previous_logits: ``[1,1,h,w]`` mask that clicks refine.
    """

    bank: ObjectBank
    memory_frames: MemoryFrames | None
    reverse: bool | None
    points: dict[str, Tensor] | None = None
    mask: Tensor | None = None
    previous_logits: Tensor | None = None

    @property
    def key(self) -> tuple:
        """Properties that must be equal for objects to share a model call."""
        count = None if self.points is None else self.points["point_labels"].shape[1]
        return (
            self.memory_frames,
            self.reverse,
            count,
            self.mask is None,
            self.previous_logits is None,
        )


class ObjectOutput(NamedTuple):
    """One object's output of a model call.

    Attributes:
        memory: the object's memory of the frame, which includes its mask.
        candidates: three masks ``[1,3,h,w]`` and their predicted IoU ``[1,3]`` if the mask was
            selected among three, otherwise None.
    """

    memory: Memory
    candidates: tuple[Tensor, Tensor] | None


class FrameModel:
    """A model with tracking options, without the state of a video.

    Args:
        model: the model; it is set to evaluation mode.
        options: tracking options. If None (default), the default options.
        device: device to move the model to. If None (default), the model stays on its device.
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
        # including_emulation=False, because emulated bfloat16 is slower than float32.
        if autocast is None:
            autocast = self.device.type == "cuda" and torch.cuda.is_bf16_supported(False)
        self._autocast = autocast
        self._weights = CastWeights(self.model, torch.bfloat16) if autocast else None
        self._position: list[Tensor] = []  # maskmem_pos_enc, the same for all memories

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Apply upstream's conventions to the model for the duration of a ``with`` block."""
        decoder = self.model.sam_mask_decoder
        # The predictor differs from training in these attributes. Restore them afterwards, so that
        # the tracker can be used during training.
        settings = [
            # Upstream binarizes the memory masks of prompted frames only; run() selects them.
            (self.model, "binarize_mask_from_pts_for_mem_enc", True),
            # Upstream tracks objects independently, so they must not affect each other here.
            (self.model, "non_overlap_masks_for_mem_enc", False),
            *((decoder, name, value) for name, value in DECODER_SETTINGS.items()),
        ]
        with ExitStack() as stack:
            for owner, name, value in settings:
                stack.callback(setattr, owner, name, getattr(owner, name))
                setattr(owner, name, value)
            stack.enter_context(torch.inference_mode())
            stack.enter_context(torch.autocast(self.device.type, torch.bfloat16, self._autocast))
            if self._weights is not None:
                stack.enter_context(self._weights.applied())
            yield

    def encode(self, frame: np.ndarray) -> FrameFeatures:
        """Compute the features of a frame ``[H,W,3]`` uint8 RGB of any size."""
        image = resize_frame(frame, self.model.image_size).to(self.device, non_blocking=True)
        cache = getattr(self.model, "feature_cache", None)
        if cache is None:
            backbone = self.model.forward_image(normalize(image))
        else:
            # The cache identifies the encoder by its weights, so use the original weights.
            with self._original_weights():
                backbone = cache.encode(self.model, image)
        return FrameFeatures.from_backbone(self.model, backbone)

    def _original_weights(self) -> AbstractContextManager[None]:
        return nullcontext() if self._weights is None else self._weights.suspended()

    def run(
        self, t: int, features: FrameFeatures, inputs: Sequence[ObjectInput], num_frames: int
    ) -> list[ObjectOutput]:
        """Run the model once for n objects.

        Args:
            t: index of the frame.
            features: features of the frame from :meth:`encode`.
            inputs: n inputs with equal :attr:`ObjectInput.key`.
            num_frames: number of frames of the video.

        Returns:
            One output per object.
        """
        model = self.model
        _, frames, reverse, points, mask, _ = inputs[0]
        vision, position, _ = features.select([0] * len(inputs))
        if points is not None:
            points = {k: torch.cat([x.points[k] for x in inputs if x.points]) for k in points}
        _, outputs, _, _ = model._track_step(
            t,
            frames is None,
            vision,
            position,
            features.sizes,
            points,
            _concatenate([x.mask for x in inputs]),
            upstream_bank([x.bank for x in inputs], frames or MemoryFrames((), ()), self._position),
            num_frames,
            bool(reverse),
            _concatenate([x.previous_logits for x in inputs]),
        )
        candidates, _, iou, logits, high_res, pointer, score = outputs
        filled = self._fill_holes(logits)
        prompted = points is not None or mask is not None
        # As in upstream, the memory of a prompted frame is encoded from the low-resolution mask
        # with filled holes, and the memory of a tracked frame from the decoder's full-resolution
        # mask.
        if prompted:
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
        has_candidates = candidates.shape[1] > 1
        return [
            ObjectOutput(
                # Clone, because a view of one row would keep the memory of all rows allocated.
                Memory(*(x[i : i + 1].clone() for x in rows), reverse=reverse),
                (candidates[i : i + 1], iou[i : i + 1].float()) if has_candidates else None,
            )
            for i in range(len(inputs))
        ]

    def _fill_holes(self, logits: Tensor) -> Tensor:
        """Fill small holes in low-resolution masks if upstream's extension is available."""
        area = self.options.fill_hole_area
        return fill_holes_in_mask_scores(logits, area) if area and can_fill(logits) else logits


def can_fill(logits: Tensor) -> bool:
    """Return whether upstream's compiled extension for filling holes can be used."""
    return logits.is_cuda and find_spec("sam2._C") is not None


def resize_frame(frame: np.ndarray, side: int) -> Tensor:
    """Resize ``[H,W,3]`` uint8 to ``[1,3,side,side]`` with PIL's bicubic filter, as in upstream."""
    picture = Image.fromarray(frame).resize((side, side), Image.Resampling.BICUBIC)
    return torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None]


def _concatenate(parts: list[Tensor | None]) -> Tensor | None:
    """Concatenate tensors, or return None if all parts are None."""
    return None if parts[0] is None else torch.cat([part for part in parts if part is not None])
