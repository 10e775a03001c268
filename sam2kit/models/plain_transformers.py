"""Track a clip with plain transformers, to prove an export.

``python -m sam2kit.models.plain_transformers FOLDER CLIP OUT`` loads the model as a user of
transformers does, and imports no other module of sam2kit. :mod:`sam2kit.models.exporter` runs it in
a fresh process.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import Sam2VideoModel
from transformers.models.sam2_video.modeling_sam2_video import Sam2VideoInferenceSession


@torch.inference_mode()
def track(model: Sam2VideoModel, clip: dict[str, Any]) -> Tensor:
    """Track one object from its box and another from a click, both on the first frame.

    Args:
        model: on the CPU, in evaluation mode.
        clip: ``images`` ``[T,3,S,S]`` float32, normalised; ``box`` ``[4]`` and ``point`` ``[2]``.

    Returns:
        Mask logits ``[T,2,S,S]``.
    """
    images = clip["images"]
    size = tuple(images.shape[-2:])
    session = Sam2VideoInferenceSession(
        video=images, video_height=size[0], video_width=size[1], dtype=torch.float32
    )
    # A box is two points with the labels 2 and 3, as in sam2.
    prompts = ((clip["box"].reshape(2, 2), [2, 3]), (clip["point"][None], [1]))
    for number, (points, labels) in enumerate(prompts, start=1):
        inputs = {
            "point_coords": points[None, None],
            "point_labels": torch.tensor(labels, dtype=torch.int32)[None, None],
        }
        session.add_point_inputs(session.obj_id_to_idx(number), 0, inputs)
    session.obj_with_new_inputs = [1, 2]
    outputs = model.propagate_in_video_iterator(session, start_frame_idx=0)
    logits = torch.stack([output.pred_masks[:, 0] for output in outputs])
    return torch.nn.functional.interpolate(logits, size, mode="bilinear", align_corners=False)


def main(folder: str, clip_file: str, out: str) -> None:
    """Load the model from its folder, track the clip and save the logits."""
    clip = torch.load(clip_file, weights_only=True)
    torch.set_num_threads(clip["threads"])
    model = Sam2VideoModel.from_pretrained(folder).eval()
    torch.save({"logits": track(model, clip)}, Path(out))


if __name__ == "__main__":
    main(*sys.argv[1:])
