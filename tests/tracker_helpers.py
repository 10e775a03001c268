"""The kit's tracker and upstream's video predictor on the same weights, frames and prompts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import pytest
import sam2.utils.misc
import torch
from omegaconf import OmegaConf
from PIL import Image
from sam2.build_sam import build_sam2_video_predictor
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor
from torch.nn import functional as F

from sam2kit.config.schema import Config
from sam2kit.data.transforms import resize_frames
from sam2kit.models.sam2 import SAM2Model, describe_model
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking import frame_step, video_tracker
from sam2kit.tracking.memory_bank import Horizon
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import VideoTracker

SIZE = (72, 104)  # rows and columns of the test video: neither square nor the model's


def read_frame(folder: Path, t: int) -> np.ndarray:
    return np.array(Image.open(folder / f"{t:05d}.jpg").convert("RGB"))


def write_video(folder: Path, num_frames: int) -> np.ndarray:
    """JPEG frames of moving bars with holes over a changing texture; the masks ``[T,3,H,W]``."""
    generator = torch.Generator().manual_seed(3)
    noise = torch.rand(num_frames, 3, SIZE[0] // 8, SIZE[1] // 8, generator=generator)
    frames = torch.nn.functional.interpolate(noise, SIZE, mode="bicubic").clamp(0, 1) * 255
    masks = torch.zeros(num_frames, 3, *SIZE, dtype=torch.bool)
    for t in range(num_frames):
        for o in range(3):
            top, left = 4 + o * 23, 5 + 2 * t + 11 * o
            masks[t, o, top : top + 19, left : left + 25] = True
            masks[t, o, top + 5 : top + 10, left + 6 : left + 11] = False
            frames[t, :, masks[t, o]] *= torch.rand(3, 1, generator=generator)
    for t, frame in enumerate(frames):
        image = Image.fromarray(frame.permute(1, 2, 0).to(torch.uint8).numpy())
        image.save(folder / f"{t:05d}.jpg", quality=95)
    return masks.numpy()


def predictor_of(model: SAM2Model, config: Config, folder: Path) -> SAM2VideoPredictor:
    """Upstream's predictor as its users build it, from files with the model's YAML and weights."""
    tree = OmegaConf.to_yaml(OmegaConf.create({"model": describe_model(config)}))
    (folder / "model.yaml").write_text(f"# @package _global_\n{tree}")
    torch.save({"model": model.state_dict()}, folder / "model.pt")
    predictor = build_sam2_video_predictor(
        "/" + str(folder / "model.yaml"), str(folder / "model.pt"), device="cpu"
    )
    # Without autocast upstream raises where an object has memories and no pointer yet (before its
    # first prompt): bfloat16 on float32 weights. Everywhere else the two are joined in float32.
    predictor.memory_attention.register_forward_pre_hook(
        lambda _, args, named: (args, named | {"memory": named["memory"].float()}), with_kwargs=True
    )
    return predictor


@dataclass(frozen=True)
class Give:
    """A prompt for objects on a frame: ``mask``, ``box``, or clicks as (x, y, label), all alike."""

    kind: str
    t: int
    objects: tuple[int, ...] = (0,)
    clicks: tuple[tuple[float, float, int], ...] = ()


@dataclass(frozen=True)
class Go:
    """A pass; ``stop`` is exclusive as in the kit."""

    start: int | None = None
    stop: int | None = None
    reverse: bool = False


@dataclass(eq=False)
class Scene:
    """A video on disk with its true masks."""

    folder: Path
    masks: np.ndarray

    @property
    def num_frames(self) -> int:
        return len(self.masks)

    def box(self, t: int, o: int) -> list[float]:
        y, x = self.masks[t, o].nonzero()
        return [float(v) for v in (x.min(), y.min(), x.max(), y.max())]

    def clicks(self, give: Give, o: int) -> np.ndarray:
        """``[P,2]``: a script's clicks count from the middle of the object's box."""
        x0, y0, x1, y1 = self.box(give.t, o)
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2], dtype=np.float32)
        return middle + np.array([c[:2] for c in give.clicks], dtype=np.float32)


Found = list[tuple[int, Tensor]]
"""What came out in turn: frame and logits ``[O,H,W]``, of a prompt those of its objects."""


@torch.inference_mode()
def upstream(predictor: SAM2VideoPredictor, scene: Scene, script: Iterable[Give | Go]) -> Found:
    state = predictor.init_state(str(scene.folder))
    found: Found = []
    for step in script:
        if isinstance(step, Go):
            start = step.start
            count = None
            if step.stop is not None:
                assert start is not None
                count = start - step.stop - 1 if step.reverse else step.stop - 1 - start
            for t, _, logits in predictor.propagate_in_video(state, start, count, step.reverse):
                found.append((t, logits[:, 0].clone()))
            continue
        for o in step.objects:
            if step.kind == "mask":
                _, ids, logits = predictor.add_new_mask(state, step.t, o, scene.masks[step.t, o])
            elif step.kind == "box":
                _, ids, logits = predictor.add_new_points_or_box(
                    state, step.t, o, box=scene.box(step.t, o)
                )
            else:
                labels = np.array([c[2] for c in step.clicks], dtype=np.int32)
                _, ids, logits = predictor.add_new_points_or_box(
                    *(state, step.t, o, scene.clicks(step, o), labels), clear_old_points=False
                )
        rows = [ids.index(o) for o in step.objects]
        found.append((step.t, logits[rows, 0].clone()))
    return found


def ours(
    model: SAM2Model,
    scene: Scene,
    script: Iterable[Give | Go],
    options: TrackerOptions | None = None,
) -> Found:
    session = VideoTracker(model, options).open(
        lambda t: read_frame(scene.folder, t), scene.num_frames, SIZE
    )
    found: Found = []
    for step in script:
        if isinstance(step, Go):
            tracks = session.propagate(step.start, step.stop, step.reverse)
            found += [(frame.frame, frame.logits(SIZE)) for frame in tracks]
        else:
            answer = session.add_prompt(prompt(scene, step, model.image_size))
            found.append((answer.frame, answer.logits(SIZE)))
    return found


def prompt(scene: Scene, give: Give, side: int) -> Prompt:
    objects = torch.tensor(give.objects)
    if give.kind == "mask":
        masks = torch.from_numpy(scene.masks[give.t, list(give.objects)])
        return Prompt(give.t, objects, masks=masks)
    if give.kind == "box":
        points = [np.array(scene.box(give.t, o)).reshape(2, 2) for o in give.objects]
        labels = [2, 3]
    else:
        points = [scene.clicks(give, o) for o in give.objects]
        labels = [c[2] for c in give.clicks]
    scale = np.array([side / SIZE[1], side / SIZE[0]])
    return Prompt(
        give.t,
        objects,
        points=torch.from_numpy(np.stack(points) * scale).float(),
        labels=torch.tensor([labels] * len(objects), dtype=torch.int32),
    )


def difference(found: Found, expected: Found) -> float:
    """The largest difference of any logit; infinite where frames or objects differ."""
    if [(t, x.shape) for t, x in found] != [(t, x.shape) for t, x in expected]:
        return float("inf")
    return max((a - b).abs().max().item() for (_, a), (_, b) in zip(found, expected, strict=True))


# Conventions of upstream's predictor, which the tracker follows, and how to break each of them


def connected_components(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Compute what upstream's compiled extension does, by OpenCV.

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


def pretend_extension(patch: pytest.MonkeyPatch) -> None:
    """Let upstream and the kit fill holes as if upstream's compiled extension were installed."""
    patch.setattr(sam2.utils.misc, "get_connected_components", connected_components)
    patch.setattr(frame_step, "can_fill", lambda logits: True)


def _change_step(change: Callable[[list], list]) -> Callable[[pytest.MonkeyPatch], None]:
    """Change the arguments of ``_track_step``."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        step = SAM2Base._track_step
        patch.setattr(SAM2Base, "_track_step", lambda self, *a: step(self, *change([self, *a])[1:]))

    return apply


def _change_memory(
    choose: Callable[[Tensor, Tensor, Tensor, bool], Tensor] | None = None, binarize: bool = True
) -> Callable[[pytest.MonkeyPatch], None]:
    """Encode memories from another mask, or never from one that is cut at 0.

    ``choose`` gets the decoder's mask at low and at full size, the kit's choice, and whether the
    frame was prompted.
    """

    def apply(patch: pytest.MonkeyPatch) -> None:
        step, encode = SAM2Base._track_step, SAM2Base._encode_new_memory
        answers: list[tuple] = []

        def track_step(self, *arguments):
            result = step(self, *arguments)
            answers[:] = [result[1]]
            return result

        def encode_memory(self, features, sizes, mask, score, prompted):
            if choose is not None:
                mask = choose(answers[0][3], answers[0][4], mask, prompted)
            return encode(self, features, sizes, mask, score, prompted and binarize)

        patch.setattr(SAM2Base, "_track_step", track_step)
        patch.setattr(SAM2Base, "_encode_new_memory", encode_memory)

    return apply


def _enlarge(low: Tensor, full: Tensor) -> Tensor:
    return F.interpolate(low, full.shape[-2:], mode="bilinear")


def _read_one_direction(patch: pytest.MonkeyPatch) -> None:
    read = Horizon.read

    def read_own(self, bank, t, reverse):
        chosen = read(self, bank, t, reverse)
        others = tuple(f for f in chosen.others if bank.others[f].reverse is reverse)
        return chosen._replace(others=others)

    patch.setattr(Horizon, "read", read_own)


def _as_in_training(frame: np.ndarray, side: int) -> Tensor:
    return resize_frames(torch.from_numpy(frame).permute(2, 0, 1)[None], (side, side))


BREAK_CONVENTION: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "memory_in_bfloat16": lambda p: p.setattr(frame_step, "MEMORY_DTYPE", torch.float32),
    "reencode_prompted": _change_memory(lambda low, full, mask, prompted: full),
    "binarize_prompted": _change_memory(binarize=False),
    "choose_by_stability": lambda p: p.setitem(
        frame_step.DECODER_SETTINGS, "dynamic_multimask_via_stability", False
    ),
    "pointer_positions_by_length": _change_step(
        lambda a: [*a[:9], max(a[9], a[0].max_obj_ptrs_in_encoder), *a[10:]]
    ),
    "previous_logits": _change_step(lambda a: [*a[:-1], None]),
    "previous_logits_limit": lambda p: p.setattr(video_tracker, "PREVIOUS_LOGITS_LIMIT", 1.0),
    "fill_with_extension": lambda p: p.setattr(frame_step, "can_fill", lambda logits: False),
    "fill_before_prompted_memory": _change_memory(
        lambda low, full, mask, prompted: _enlarge(low, full) if prompted else mask
    ),
    "fill_after_tracked_memory": _change_memory(
        lambda low, full, mask, prompted: (
            mask if prompted else _enlarge(frame_step.fill_holes_in_mask_scores(low, 8), full)
        )
    ),
    "read_other_direction": _read_one_direction,
    "pil_bicubic": lambda p: p.setattr(frame_step, "resize_frame", _as_in_training),
    "antialias_masks": lambda p: p.setattr(
        video_tracker, "resize_masks", lambda masks, size: F.interpolate(masks.float(), size) > 0
    ),
}
"""What makes the tracker break one convention; each also works on upstream's own tracker."""
