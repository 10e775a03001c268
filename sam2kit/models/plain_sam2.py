"""Track a clip with the plain ``sam2`` package, to prove an export.

``python -m sam2kit.models.plain_sam2 YAML WEIGHTS CLIP OUT`` builds the model as a user of ``sam2``
does, and imports no other module of sam2kit. :mod:`sam2kit.models.exporter` runs it in a fresh
process.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import torch
from sam2.build_sam import build_sam2, build_sam2_video_predictor
from sam2.modeling.sam2_base import SAM2Base
from sam2.sam2_video_predictor import SAM2VideoPredictor
from torch import Tensor


def track_folder(predictor: SAM2VideoPredictor, clip: dict[str, Any]) -> Tensor:
    """Track one object from its mask and another from its box, both on the first frame.

    Args:
        predictor: on the CPU, in evaluation mode.
        clip: ``folder`` of T JPEG frames, ``mask`` ``[H,W]`` bool and ``box`` ``[4]`` float32.

    Returns:
        Mask logits ``[T,2,H,W]`` at the size of the frames.
    """
    state = predictor.init_state(clip["folder"])
    predictor.add_new_mask(state, 0, 1, clip["mask"])
    predictor.add_new_points_or_box(state, 0, 2, box=clip["box"])
    return torch.stack([logits[:, 0] for _, _, logits in predictor.propagate_in_video(state)])


@torch.inference_mode()
def track_steps(model: SAM2Base, clip: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """Track one object from its mask with upstream's ``track_step``, frame by frame.

    Args:
        model: on the CPU, in evaluation mode.
        clip: ``images`` ``[T,3,S,S]`` float32, normalised, and ``mask`` ``[S,S]`` bool.

    Returns:
        Mask logits ``[T,S/4,S/4]``, and object scores ``[T]`` as logits.
    """
    bank: dict[str, dict[int, dict]] = {"cond_frame_outputs": {}, "non_cond_frame_outputs": {}}
    logits, scores = [], []
    for t, image in enumerate(clip["images"]):
        features = model.forward_image(image[None])
        _, *frame = model._prepare_backbone_features(features)
        mask = clip["mask"][None, None].float() if t == 0 else None
        entry = model.track_step(t, t == 0, *frame, None, mask, bank, len(clip["images"]))
        bank["cond_frame_outputs" if t == 0 else "non_cond_frame_outputs"][t] = entry
        logits.append(entry["pred_masks"][0, 0])
        scores.append(entry["object_score_logits"][0, 0])
    return torch.stack(logits), torch.stack(scores)


def main(yaml: str, weights: str, clip_file: str, out: str) -> None:
    """Build both models of ``sam2`` from the files, track the clip and save the results."""
    clip = torch.load(clip_file, weights_only=True)
    torch.set_num_threads(clip["threads"])
    # Hydra reads a file outside sam2's own configurations only as an absolute path after "/".
    name = "/" + os.path.abspath(yaml)
    plain = {"device": "cpu", "apply_postprocessing": False}
    predictor = build_sam2_video_predictor(name, weights, **plain)
    logits, scores = track_steps(build_sam2(name, weights, **plain), clip)
    results = {"predictor": track_folder(predictor, clip), "logits": logits, "scores": scores}
    torch.save(results, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
