"""Run the model on one frame, following the conventions of upstream's video predictor."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from sam2.modeling.sam2_base import SAM2Base
from sam2.modeling.sam2_utils import get_1d_sine_pe
from sam2.utils.misc import fill_holes_in_mask_scores
from torch import Tensor
from torch.nn import functional as F
from torch.utils._pytree import tree_map_only
from torchvision.transforms import InterpolationMode

from sam2kit.data.transforms import normalize, resize_frames
from sam2kit.models.cast_weights import CastWeights
from sam2kit.models.clip_tracking import FrameFeatures
from sam2kit.models.sam2 import DECODER_SETTINGS
from sam2kit.tracking.memory_bank import (
    Memory,
    MemoryFrames,
    MemoryInput,
    ObjectBank,
    read_memories,
)
from sam2kit.tracking.options import TrackerOptions
from sam2kit.utils.device import upload

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


class PreparedFrame(NamedTuple):
    """A frame of a video and the model's input from it.

    Attributes:
        frame: ``[H,W,3]`` uint8 RGB.
        image: ``[1,3,S,S]`` uint8, or ``[1,3,H,W]`` if the device resizes it.
    """

    frame: np.ndarray
    image: Tensor


class FeaturesAhead(NamedTuple):
    """Features that a stream of its own computes, and the event after which they exist."""

    features: FrameFeatures
    done: Any


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
        self._position: Tensor | None = None  # [1,HW,M], the same for all memories
        self._compiled: Callable[..., tuple[Tensor, ...]] | None = None
        self._forward_image: Callable[[Tensor], dict] = self.model.forward_image
        self._stream: Any = None
        if self.options.lookahead > 1 and self.device.type not in ("cpu", "mps"):
            self._stream = torch.get_device_module(self.device).Stream(self.device)

    def compile(self, **options: Any) -> None:
        """Compile the image encoder and the tracking of a frame with :func:`torch.compile`.

        Tracking is compiled from the frame on which the memory bank is full, about the 17th: from
        there on, all shapes are constant. Another number of objects or prompts compiles it again.

        Args:
            options: arguments of :func:`torch.compile`. With ``mode="reduce-overhead"``, a GPU
                replays the frame as CUDA graphs.
        """
        options = {"dynamic": False} | options
        side = self.model.image_size
        with self.applied():  # caches that the first call fills would compile the encoder twice
            self.model.forward_image(torch.zeros(1, 3, side, side, device=self.device))
        self.model.memory_attention.place_rotations(self.device)
        encode = torch.compile(self.model.forward_image, **options)
        compute = torch.compile(self._compute, **options)
        self._stream = None  # CUDA graphs share memory, so that only one can be run at a time
        # As CUDA graphs, the next call of either overwrites the tensors that this one returned.
        self._forward_image = lambda images: tree_map_only(Tensor, Tensor.clone, encode(images))
        self._compiled = lambda *inputs: tree_map_only(Tensor, Tensor.clone, compute(*inputs))

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

    def prepare(self, frame: np.ndarray) -> PreparedFrame:
        """Prepare a frame ``[H,W,3]`` uint8 RGB of any size; can be called in another thread."""
        if self.options.resize_on_device:
            return PreparedFrame(frame, torch.from_numpy(frame).permute(2, 0, 1)[None])
        return PreparedFrame(frame, resize_frame(frame, self.model.image_size))

    def encode(self, *frames: np.ndarray | PreparedFrame) -> FrameFeatures:
        """Compute the features of frames of equal size in one call; see :meth:`prepare`."""
        prepared = [x if isinstance(x, PreparedFrame) else self.prepare(x) for x in frames]
        images = upload(torch.cat([frame.image for frame in prepared]), self.device)
        if self.options.resize_on_device:
            side = self.model.image_size
            images = resize_frames(images, (side, side), InterpolationMode.BICUBIC)
        cache = getattr(self.model, "feature_cache", None)
        if cache is None:
            backbone = self._forward_image(normalize(images))
        else:
            # The cache identifies the encoder by its weights, so use the original weights.
            with self._original_weights():
                backbone = cache.encode(self.model, images)
        return FrameFeatures.from_backbone(self.model, backbone)

    def encode_ahead(self, *frames: np.ndarray | PreparedFrame) -> FeaturesAhead:
        """Start to encode frames while the GPU tracks earlier ones; see :meth:`wait_for`."""
        assert self._stream is not None
        streams = torch.get_device_module(self.device)
        # Work that is queued already may have made the weights, or copies of them.
        self._stream.wait_stream(streams.current_stream(self.device))
        with streams.stream(self._stream):
            return FeaturesAhead(self.encode(*frames), self._stream.record_event())

    def wait_for(self, ahead: FeaturesAhead) -> FrameFeatures:
        """Let the GPU, but not the host, wait until features have been computed."""
        stream = torch.get_device_module(self.device).current_stream(self.device)
        stream.wait_event(ahead.done)
        for tensor in (*ahead.features.vision, *ahead.features.position):
            tensor.record_stream(stream)  # or its memory could be reused before this stream read it
        return ahead.features

    @property
    def encodes_ahead(self) -> bool:
        """Whether :meth:`encode_ahead` can be used: on a GPU, with ``lookahead``."""
        return self._stream is not None

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
        _, frames, reverse, points, mask, _ = inputs[0]
        if points is not None:
            points = {k: torch.cat([x.points[k] for x in inputs if x.points]) for k in points}
        memories = None
        if frames is not None and mask is None:  # a mask prompt reads no memories
            banks = [x.bank for x in inputs]
            memories = read_memories(self.model, banks, frames, t, num_frames, bool(reverse))
        is_tracked = memories is not None and points is None
        compute = self._compute
        if self._compiled is not None and is_tracked and memories is not None and memories.is_full:
            compute = self._compiled
        *rows, candidates, iou = compute(
            features.select([0] * len(inputs)),
            memories,
            points,
            _concatenate([x.mask for x in inputs]),
            _concatenate([x.previous_logits for x in inputs]),
        )
        # A view of one row keeps the memory of all rows allocated. The rows of a tracked frame are
        # evicted together, but those of a prompt may be kept or replaced one by one.
        split = [x.split(1) if is_tracked else [row.clone() for row in x.split(1)] for x in rows]
        has_candidates = candidates.shape[1] > 1
        return [
            ObjectOutput(
                Memory(*tensors, reverse=reverse),
                (candidates[i : i + 1], iou[i : i + 1].float()) if has_candidates else None,
            )
            for i, tensors in enumerate(zip(*split, strict=True))
        ]

    def _compute(
        self,
        features: FrameFeatures,
        memories: MemoryInput | None,
        points: dict[str, Tensor] | None,
        mask: Tensor | None,
        previous_logits: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Compute the masks and memories of n objects; :meth:`run` has the arguments.

        This is a function of tensors alone, so that it can be compiled.

        Returns:
            The tensors of :class:`~sam2kit.tracking.memory_bank.Memory` for n objects, then the
            candidates and their predicted IoU.
        """
        model, (vision, position, sizes) = self.model, features
        if memories is None:
            empty: dict = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
            _, outputs, _, _ = model._track_step(
                0, True, vision, position, sizes, points, mask, empty, 1, False, previous_logits
            )
        else:
            *high_res, image = [
                x.permute(1, 2, 0).unflatten(-1, size)
                for x, size in zip(vision, sizes, strict=True)
            ]
            image = self._read(vision[-1], position[-1], memories).permute(1, 2, 0).view_as(image)
            multimask = model._use_multimask(False, points)
            outputs = model._forward_sam_heads(
                image, points, previous_logits, high_res or None, multimask
            )
        candidates, _, iou, logits, high_res_logits, pointer, score = outputs
        filled = self._fill_holes(logits)
        is_prompted = points is not None or mask is not None
        # Upstream encodes the memory of a prompted frame from the low-resolution mask with filled
        # holes, and of a tracked frame from the decoder's full-resolution mask.
        if is_prompted:
            side = (model.image_size, model.image_size)
            high_res_logits = F.interpolate(filled, side, mode="bilinear")
        memory, memory_position = model._encode_new_memory(
            vision, sizes, high_res_logits, score, is_prompted
        )
        memory = memory.to(MEMORY_DTYPE)
        if self._position is None:
            self._position = memory_position[-1][:1].flatten(2).transpose(1, 2).clone()
        if self.options.zero_memory:
            memory, pointer = torch.zeros_like(memory), torch.zeros_like(pointer)
        best = iou.amax(1).float()
        return pointer, score[:, 0].float(), best, memory, filled, candidates, iou

    def _read(self, vision: Tensor, position: Tensor, memories: MemoryInput) -> Tensor:
        """Read memories by attention, as upstream's ``_prepare_memory_conditioned_features``.

        n objects, HW positions in the frame, F spatial memories and P object pointers.

        Args:
            vision, position: features and positional encoding ``[HW,n,C]``.
            memories: the memories to read.

        Returns:
            The conditioned features ``[HW,n,C]``.
        """
        model = self.model
        assert self._position is not None
        tokens = torch.cat([x.flatten(2).transpose(1, 2) for x in memories.features], 1)
        rows = [model.num_maskmem - 1 - n for n in memories.temporal]
        temporal = torch.cat([model.maskmem_tpos_enc[n] for n in rows])
        positions = (self._position + temporal).flatten(0, 1)[None]  # [F,HW,M] to [1,F*HW,M]
        pointer_tokens = 0
        if memories.distances is not None:
            # Upstream splits a pointer into tokens of the memory's number of channels.
            pointers = torch.stack(memories.pointers, 1).unflatten(-1, (-1, model.mem_dim))
            encoding = self._encode_distances(memories.distances, pointers.shape[2])
            pointers = pointers.flatten(1, 2)
            pointer_tokens = pointers.shape[1]
            tokens = torch.cat([tokens.to(pointers.dtype), pointers], 1)
            positions = torch.cat([positions, encoding[None]], 1)
        else:
            tokens = tokens.to(vision.dtype)
        return model.memory_attention(
            curr=[vision],
            curr_pos=[position],
            memory=tokens.transpose(0, 1),
            memory_pos=positions.transpose(0, 1),
            num_obj_ptr_tokens=pointer_tokens,
        )

    def _encode_distances(self, distances: Tensor, repeats: int) -> Tensor:
        """Return the positional encoding ``[P*repeats,M]`` of object pointers."""
        model = self.model
        if not model.add_tpos_enc_to_obj_ptrs:
            return distances.new_zeros(len(distances) * repeats, model.mem_dim)
        channels = model.hidden_dim if model.proj_tpos_enc_in_obj_ptrs else model.mem_dim
        encoding = model.obj_ptr_tpos_proj(get_1d_sine_pe(distances, channels))
        return encoding.repeat_interleave(repeats, dim=0)

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
