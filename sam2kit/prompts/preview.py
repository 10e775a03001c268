"""Draw the prompts of a batch as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sam2kit.data.clip import ClipBatch
from sam2kit.prompts.prompt import Prompt
from sam2kit.viz.overlays import PALETTE, contact_sheet, draw_prompts, frames_to_images, overlay


def prompt_sheet(batch: ClipBatch, prompts: Sequence[Prompt], max_columns: int = 6) -> Figure:
    """Draw each object with its prompt, on the frame of the prompt.

    A mask prompt is filled; with clicks and boxes, the ground-truth mask is outlined. Without any
    prompt, the first frame of each clip is drawn.

    Args:
        batch: clips with uint8 frames.
        prompts: prompts of the batch.
        max_columns: maximum number of images per row.
    """
    images, labels = [], []
    for prompt in (prompt.to("cpu") for prompt in prompts):
        for n, position in enumerate(prompt.objects.tolist()):
            clip = int(batch.clip_of_object[position])
            frame = frames_to_images(batch.frames[clip, prompt.frame])
            color = PALETTE[None, position % len(PALETTE)]
            mask = batch.masks[prompt.frame, position].cpu().numpy()[None]
            if prompt.masks is not None:
                image = overlay(frame, prompt.masks[n].numpy()[None], color)
            else:
                image = overlay(frame, mask, color, alpha=0.0)
            # Small frames are enlarged, because click markers would cover the objects.
            factor = max(1, round(256 / image.shape[1]))
            image = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
            if prompt.points is not None and prompt.labels is not None:
                points = prompt.points[n].numpy() * factor + (factor - 1) / 2
                image = draw_prompts(image, points, prompt.labels[n].numpy())
            images.append(image)
            identity = batch.object_ids[position]
            labels.append(
                f"{batch.names[clip]}, object {identity}\n{prompt.kind}, frame {prompt.frame}"
            )
    if not images:  # unannotated videos
        images = [frames_to_images(clip_frames[0]) for clip_frames in batch.frames]
        labels = [f"{name}\nno annotated object" for name in batch.names]
    starts = range(0, len(images), max_columns)
    rows = [images[i : i + max_columns] for i in starts]
    return contact_sheet(rows, captions=labels, cell_inches=2.2)
