"""Draw the prompts of a batch as a contact sheet."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from matplotlib.figure import Figure

from sam2kit.data.clip import ClipBatch
from sam2kit.prompts.prompt import Prompt
from sam2kit.viz.overlays import PALETTE, contact_sheet, draw_prompts, frames_to_images, overlay


def prompt_sheet(batch: ClipBatch, prompts: Sequence[Prompt], max_columns: int = 6) -> Figure:
    """One image for each object's prompt, on the frame where it stands.

    A mask prompt is shown filled; under clicks and boxes the true mask is only outlined.
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
            factor = max(1, round(256 / image.shape[1]))  # clicks on small frames need room
            image = np.repeat(np.repeat(image, factor, axis=0), factor, axis=1)
            if prompt.points is not None and prompt.labels is not None:
                points = prompt.points[n].numpy() * factor + (factor - 1) / 2
                image = draw_prompts(image, points, prompt.labels[n].numpy())
            images.append(image)
            identity = batch.object_ids[position]
            labels.append(
                f"{batch.names[clip]}, object {identity}\n{prompt.kind}, frame {prompt.frame}"
            )
    starts = range(0, len(images), max_columns)
    rows = [images[i : i + max_columns] for i in starts]
    return contact_sheet(rows, captions=labels, cell_inches=2.2)
