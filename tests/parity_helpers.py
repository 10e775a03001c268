"""Run sam2kit's model and upstream's ``SAM2Train`` with the same weights on the same prompts.

``SAM2Train`` jitters boxes, requires corrections with click prompts and draws from global
generators. So the tests replace its prompts, record the clicks that it draws, and replay them in
sam2kit.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
import training.model.sam2 as upstream
from hydra.utils import instantiate
from torch import Tensor
from training.utils.data_utils import BatchedVideoDatapoint, BatchedVideoMetaData

from sam2kit.config.schema import Config
from sam2kit.data.clip import ClipBatch, VideoClip, collate
from sam2kit.data.transforms import normalize
from sam2kit.models.clip_tracking import upstream_inputs
from sam2kit.models.sam2 import SAM2Model, describe_model
from sam2kit.prompts.corrections import Corrections
from sam2kit.prompts.geometry import box_to_points, mask_to_box
from sam2kit.prompts.prompt import Prompt


class ReplaySAM2Train(upstream.SAM2Train):
    """``SAM2Train`` with fixed prompts instead of sampled ones."""

    prompts: list[Prompt]
    corrected: list[int]

    def prepare_prompt_inputs(self, backbone_out, input, start_frame_idx=0):
        frames = [prompt.frame for prompt in self.prompts]
        inputs = {prompt.frame: upstream_inputs(prompt) for prompt in self.prompts}
        return backbone_out | {
            "gt_masks_per_frame": {t: masks.unsqueeze(1) for t, masks in enumerate(input.masks)},
            "num_frames": input.num_frames,
            "use_pt_input": any(points is not None for points, _ in inputs.values()),
            "init_cond_frames": frames,
            "frames_not_in_init_cond": [t for t in range(input.num_frames) if t not in frames],
            "point_inputs_per_frame": {t: p for t, (p, _) in inputs.items() if p is not None},
            "mask_inputs_per_frame": {t: m for t, (_, m) in inputs.items() if m is not None},
            "frames_to_add_correction_pt": self.corrected,
        }


@dataclass(eq=False)
class ReplayedCorrections(Corrections):
    """Recorded clicks in order, with the predicted masks that upstream drew them from."""

    recorded: list[tuple[Tensor, Tensor, Tensor]] = field(default_factory=list)
    num_replayed: int = 0
    strict: bool = True  # whether the predicted masks must equal upstream's

    def click(self, frame, number, objects, predicted):
        points, labels, upstream_masks = self.recorded[self.num_replayed]
        self.num_replayed += 1
        assert not self.strict or torch.equal(predicted, upstream_masks[:, 0])
        return points, labels


def upstream_model(model: SAM2Model, config: Config) -> ReplaySAM2Train:
    """Build ``SAM2Train`` from the same YAML, with the same weights and in the same mode."""
    tree = describe_model(config)
    tree["_target_"] = "parity_helpers.ReplaySAM2Train"
    tree["add_all_frames_to_correct_as_cond"] = True
    tree["num_correction_pt_per_frame"] = 7
    upstream_train = instantiate(tree)
    upstream_train.load_state_dict(model.state_dict())
    return upstream_train.train(model.training)


@torch.no_grad()
def sharpen(model: SAM2Model) -> None:
    """Scale weights so that conventions matter: random logits and attention are almost flat."""
    model.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(5.0)
    for layer in model.memory_encoder.fuser.layers:
        layer.gamma.fill_(1.0)
    for layer in model.memory_attention.layers:
        layer.cross_attn_image.q_proj.weight *= 8.0
    model.maskmem_tpos_enc *= 50.0
    model.obj_ptr_tpos_proj.weight *= 8.0
    model.no_mem_embed *= 20.0


def no_dropout(model: torch.nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_p"):
            module.dropout_p = 0.0


def parity_config(size: str) -> Config:
    config = Config()
    config.model.size = size
    config.dataset.image_size = 128
    return config


def parity_batch(config: Config, num_objects: int, num_frames: int = 8) -> ClipBatch:
    """Make a batch of one normalised clip, whose objects move over a changing texture."""
    size, generator = config.dataset.image_size, torch.Generator().manual_seed(num_objects)
    noise = torch.rand(num_frames, 3, size // 8, size // 8, generator=generator)
    frames = torch.nn.functional.interpolate(noise, scale_factor=8, mode="bicubic").clamp(0, 1)
    masks = torch.zeros(num_frames, num_objects, size, size, dtype=torch.bool)
    height = size // num_objects
    for t in range(num_frames):
        for o in range(num_objects):
            left = size // 16 + t * size // 24 + o * size // 32
            masks[t, o, o * height + height // 8 : (o + 1) * height - height // 8] = (
                torch.arange(size) - left - size // 6
            ).abs() < size // 6
            frames[t, :, masks[t, o]] *= torch.rand(3, 1, generator=generator)
    annotated = torch.ones(num_frames, num_objects, dtype=torch.bool)
    batch = collate([VideoClip((frames * 255).to(torch.uint8), masks, annotated)])
    batch.frames = normalize(batch.frames)
    return batch


def join(batches: list[ClipBatch]) -> ClipBatch:
    """Join batches of one clip each into one batch."""
    return replace(
        batches[0],
        frames=torch.cat([b.frames for b in batches]),
        masks=torch.cat([b.masks for b in batches], dim=1),
        annotated=torch.cat([b.annotated for b in batches], dim=1),
        clip_of_object=torch.cat([b.clip_of_object + i for i, b in enumerate(batches)]),
        names=[name for b in batches for name in b.names],
        object_ids=[i for b in batches for i in b.object_ids],
    )


def parity_prompts(batch: ClipBatch, kind: str, frames: tuple[int, ...]) -> list[Prompt]:
    """Make prompts of a kind (mask, box, click, clicks) for all objects on each of ``frames``."""
    objects = torch.arange(batch.num_objects)
    prompts = []
    for t in frames:
        masks = batch.masks[t]
        if kind == "mask":
            prompts.append(Prompt(t, objects, masks=masks))
            continue
        points, labels = box_to_points(mask_to_box(masks))
        if kind != "box":
            middle = points.mean(1, keepdim=True).round()
            outside = points[:, :1] - torch.tensor([3.0, 2.0])
            clicks = [middle] if kind == "click" else [middle, middle + 4, outside]
            points = torch.cat(clicks, dim=1)
            labels = torch.tensor([1, 1, 0], dtype=torch.int32)[: len(clicks)].repeat(
                len(objects), 1
            )
        prompts.append(Prompt(t, objects, points=points, labels=labels))
    return prompts


def upstream_batch(batch: ClipBatch) -> BatchedVideoDatapoint:
    t, o = batch.num_frames, batch.num_objects
    frame = torch.arange(t)[:, None].expand(t, o)
    return BatchedVideoDatapoint(
        img_batch=batch.frames.transpose(0, 1),
        obj_to_frame_idx=torch.stack([frame, batch.clip_of_object.expand(t, o)], dim=-1),
        masks=batch.masks,
        metadata=BatchedVideoMetaData(
            unique_objects_identifier=torch.zeros(t, o, 3, dtype=torch.long),
            frame_orig_size=torch.zeros(t, o, 2, dtype=torch.long),
            batch_size=[t],
        ),
        dict_key="all",
        batch_size=[t],
    )


def run_upstream(
    model: ReplaySAM2Train, batch: ClipBatch, prompts: list[Prompt], corrected: list[int]
) -> tuple[list[dict], list[tuple[Tensor, Tensor, Tensor]]]:
    """Run upstream; return its outputs per frame, and its clicks with the masks they refine."""
    model.prompts, model.corrected = prompts, corrected
    recorded, draw = [], upstream.get_next_point

    def record(gt_masks, pred_masks, method):
        points, labels = draw(gt_masks, pred_masks, "uniform")
        recorded.append((points, labels, pred_masks))
        return points, labels

    upstream.get_next_point = record
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            outputs = model(upstream_batch(batch))
    finally:
        upstream.get_next_point = draw
    return outputs, recorded


def replayed(batch: ClipBatch, corrected: list[int], recorded: list) -> Corrections | None:
    """Make corrections that replay recorded clicks on the corrected frames."""
    if not corrected:
        return None
    frames = torch.zeros(batch.num_frames, batch.num_objects, dtype=torch.bool)
    frames[corrected] = True
    return ReplayedCorrections(frames, 7, batch.masks, [], recorded=recorded)
