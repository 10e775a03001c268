"""Draw the clips of a batch as a contact sheet."""

from __future__ import annotations

from matplotlib.figure import Figure

from sam2kit.data.clip import ClipBatch
from sam2kit.utils.sampling import evenly_spaced
from sam2kit.utils.text import plural
from sam2kit.viz.overlays import contact_sheet, frames_to_images, overlay


def clip_sheet(batch: ClipBatch, max_columns: int = 8) -> Figure:
    """Draw each clip of a batch as a row of frames, with its ground-truth masks as an overlay.

    Generated objects are labelled as such.

    Args:
        batch: clips with uint8 frames.
        max_columns: maximum number of frames per clip; longer clips show evenly spaced frames.
    """
    steps = evenly_spaced(batch.num_frames, max_columns)
    images, masks = frames_to_images(batch.frames), batch.masks.cpu().numpy()
    rows, labels = [], []
    for clip, name in enumerate(batch.names):
        objects = (batch.clip_of_object == clip).cpu().numpy()
        rows.append([overlay(images[clip, t], masks[t, objects]) for t in steps])
        noun = "generated object" if clip in batch.generated else "object"
        labels.append(f"{name}\n{plural(int(objects.sum()), noun)}")
    return contact_sheet(rows, labels, [f"frame {t}" for t in steps])
