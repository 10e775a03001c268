"""Run sam2kit's tracker and upstream's video predictor on equal weights, frames and prompts."""

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
from sam2kit.tracking.frame_step import FrameModel
from sam2kit.tracking.memory_bank import Horizon
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import VideoTracker

SIZE = (72, 104)  # rows and columns of the test video; not square, and not the model's size


def read_frame(folder: Path, t: int) -> np.ndarray:
    return np.array(Image.open(folder / f"{t:05d}.jpg").convert("RGB"))


def write_video(folder: Path, num_frames: int) -> np.ndarray:
    """Write JPEG frames of moving bars with holes, and return the masks ``[T,3,H,W]``."""
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
    """Build upstream's predictor as users do, from files with the model's YAML and weights."""
    tree = OmegaConf.to_yaml(OmegaConf.create({"model": describe_model(config)}))
    (folder / "model.yaml").write_text(f"# @package _global_\n{tree}")
    torch.save({"model": model.state_dict()}, folder / "model.pt")
    predictor = build_sam2_video_predictor(
        "/" + str(folder / "model.yaml"), str(folder / "model.pt"), device="cpu"
    )
    # Without autocast, upstream fails for an object with memories but without a pointer (before its
    # first prompt), because bfloat16 memories meet float32 weights. In all other cases upstream
    # concatenates memories and pointers in float32.
    predictor.memory_attention.register_forward_pre_hook(
        lambda _, args, named: (args, named | {"memory": named["memory"].float()}), with_kwargs=True
    )
    return predictor


@dataclass(frozen=True)
class AddPrompt:
    """A step of a script that prompts objects on a frame.

    Attributes:
        kind: ``mask``, ``box`` or ``click``.
        t: the frame.
        objects: object numbers.
        clicks: (x, y, label) relative to the middle of each object's box.
    """

    kind: str
    t: int
    objects: tuple[int, ...] = (0,)
    clicks: tuple[tuple[float, float, int], ...] = ()


@dataclass(frozen=True)
class Track:
    """A step of a script that tracks all objects; ``stop`` is exclusive as in sam2kit."""

    start: int | None = None
    stop: int | None = None
    reverse: bool = False


@dataclass(eq=False)
class Scene:
    """A video on disk and its ground truth masks ``[T,3,H,W]``."""

    folder: Path
    masks: np.ndarray

    @property
    def num_frames(self) -> int:
        return len(self.masks)

    def box(self, t: int, o: int) -> list[float]:
        y, x = self.masks[t, o].nonzero()
        return [float(v) for v in (x.min(), y.min(), x.max(), y.max())]

    def clicks(self, step: AddPrompt, o: int) -> np.ndarray:
        """Return absolute clicks ``[P,2]``; a script's are relative to the middle of the box."""
        x0, y0, x1, y1 = self.box(step.t, o)
        middle = np.array([(x0 + x1) / 2, (y0 + y1) / 2], dtype=np.float32)
        return middle + np.array([c[:2] for c in step.clicks], dtype=np.float32)


Results = list[tuple[int, Tensor]]
"""Frames with logits ``[O,H,W]`` in the order of steps; a prompt returns its objects only."""


@torch.inference_mode()
def run_upstream(
    predictor: SAM2VideoPredictor, scene: Scene, script: Iterable[AddPrompt | Track]
) -> Results:
    state = predictor.init_state(str(scene.folder))
    results: Results = []
    for step in script:
        if isinstance(step, Track):
            start = step.start
            count = None
            if step.stop is not None:
                assert start is not None
                count = start - step.stop - 1 if step.reverse else step.stop - 1 - start
            for t, _, logits in predictor.propagate_in_video(state, start, count, step.reverse):
                results.append((t, logits[:, 0].clone()))
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
        results.append((step.t, logits[rows, 0].clone()))
    return results


def run_tracker(
    model: SAM2Model,
    scene: Scene,
    script: Iterable[AddPrompt | Track],
    options: TrackerOptions | None = None,
) -> Results:
    session = VideoTracker(model, options).open(
        lambda t: read_frame(scene.folder, t), scene.num_frames, SIZE
    )
    results: Results = []
    for step in script:
        if isinstance(step, Track):
            frames = session.propagate(step.start, step.stop, step.reverse)
            results += [(tracks.frame, tracks.logits(SIZE)) for tracks in frames]
        else:
            tracks = session.add_prompt(prompt(scene, step, model.image_size))
            results.append((tracks.frame, tracks.logits(SIZE)))
    return results


def prompt(scene: Scene, step: AddPrompt, side: int) -> Prompt:
    objects = torch.tensor(step.objects)
    if step.kind == "mask":
        masks = torch.from_numpy(scene.masks[step.t, list(step.objects)])
        return Prompt(step.t, objects, masks=masks)
    if step.kind == "box":
        points = [np.array(scene.box(step.t, o)).reshape(2, 2) for o in step.objects]
        labels = [2, 3]
    else:
        points = [scene.clicks(step, o) for o in step.objects]
        labels = [c[2] for c in step.clicks]
    scale = np.array([side / SIZE[1], side / SIZE[0]])
    return Prompt(
        step.t,
        objects,
        points=torch.from_numpy(np.stack(points) * scale).float(),
        labels=torch.tensor([labels] * len(objects), dtype=torch.int32),
    )


def difference(actual: Results, expected: Results) -> float:
    """Return the maximum difference of logits; infinite if frames or objects differ."""
    if [(t, x.shape) for t, x in actual] != [(t, x.shape) for t, x in expected]:
        return float("inf")
    return max((a - b).abs().max().item() for (_, a), (_, b) in zip(actual, expected, strict=True))


# The conventions of upstream's predictor that the tracker follows, and a way to break each.


def connected_components(masks: Tensor) -> tuple[Tensor, Tensor]:
    """Label connected components with OpenCV, as upstream's compiled extension does.

    Args:
        masks: ``[N,1,H,W]`` bool.

    Returns:
        Labels (0 outside the masks), and for each pixel the area of its component, both
        ``[N,1,H,W]`` int32. Pixels that touch at a corner are connected.
    """
    labels, areas = [], []
    for mask in masks[:, 0].cpu().numpy().astype(np.uint8):
        _, label, statistics, _ = cv2.connectedComponentsWithStats(mask, connectivity=8)
        labels.append(label)
        areas.append(statistics[label, cv2.CC_STAT_AREA])
    both = torch.from_numpy(np.stack([labels, areas])).to(masks.device)
    return both[0].view(masks.shape), both[1].view(masks.shape)


def pretend_extension(patch: pytest.MonkeyPatch) -> None:
    """Make upstream and sam2kit fill holes as if upstream's extension were installed."""
    patch.setattr(sam2.utils.misc, "get_connected_components", connected_components)
    patch.setattr(frame_step, "can_fill", lambda logits: True)


def _change_argument(
    owner: object, name: str, position: int, change: Callable[..., object]
) -> Callable[[pytest.MonkeyPatch], None]:
    """Replace one argument of a function by ``change(*arguments)``."""

    def apply(patch: pytest.MonkeyPatch) -> None:
        original = getattr(owner, name)

        def changed(*arguments):
            before, after = arguments[:position], arguments[position + 1 :]
            return original(*before, change(*arguments), *after)

        patch.setattr(owner, name, changed)

    return apply


def _change_memory(
    choose: Callable[[Tensor, Tensor, Tensor, bool], Tensor] | None = None, binarize: bool = True
) -> Callable[[pytest.MonkeyPatch], None]:
    """Encode memories from another mask, or never from a binarized one.

    ``choose`` gets the decoder's mask at low and at full resolution, the mask that sam2kit encodes,
    and whether the frame was prompted.
    """

    def apply(patch: pytest.MonkeyPatch) -> None:
        encode = SAM2Base._encode_new_memory
        outputs: list[tuple] = []

        def recorded(name):
            original = getattr(SAM2Base, name)

            def call(self, *arguments, **named):
                outputs[:] = [original(self, *arguments, **named)]
                return outputs[0]

            return call

        def encode_memory(self, features, sizes, mask, score, prompted):
            if choose is not None:
                mask = choose(outputs[0][3], outputs[0][4], mask, prompted)
            return encode(self, features, sizes, mask, score, prompted and binarize)

        for name in ("_forward_sam_heads", "_use_mask_as_output"):
            patch.setattr(SAM2Base, name, recorded(name))
        patch.setattr(SAM2Base, "_encode_new_memory", encode_memory)

    return apply


def _enlarge(low: Tensor, full: Tensor) -> Tensor:
    return F.interpolate(low, full.shape[-2:], mode="bilinear")


def _read_one_direction(patch: pytest.MonkeyPatch) -> None:
    read = Horizon.read

    def read_same_direction(self, bank, t, reverse):
        frames = read(self, bank, t, reverse)
        others = tuple(f for f in frames.others if bank.others[f].reverse is reverse)
        return frames._replace(others=others)

    patch.setattr(Horizon, "read", read_same_direction)


def _as_in_training(frame: np.ndarray, side: int) -> Tensor:
    return resize_frames(torch.from_numpy(frame).permute(2, 0, 1)[None], (side, side))


BREAK_CONVENTION: dict[str, Callable[[pytest.MonkeyPatch], None]] = {
    "memory_in_bfloat16": lambda p: p.setattr(frame_step, "MEMORY_DTYPE", torch.float32),
    "reencode_prompted": _change_memory(lambda low, full, mask, prompted: full),
    "binarize_prompted": _change_memory(binarize=False),
    "choose_by_stability": lambda p: p.setitem(
        frame_step.DECODER_SETTINGS, "dynamic_multimask_via_stability", False
    ),
    "pointer_positions_by_length": _change_argument(
        frame_step, "read_memories", 4, lambda model, *a: max(a[3], model.max_obj_ptrs_in_encoder)
    ),
    "previous_logits": _change_argument(FrameModel, "_compute", 5, lambda *_: None),
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
"""Functions that make the tracker break one convention each, by name of the convention."""
