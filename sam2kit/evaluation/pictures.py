"""Draw several trackers on one video, as a figure and as an animation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure

from sam2kit.evaluation.metrics import after_first_visible, mean_tracked_iou
from sam2kit.utils.text import label_text
from sam2kit.viz.overlays import contact_sheet, evenly_spaced, overlay


def tracking_figure(
    frames: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    scored: np.ndarray | None = None,
    max_columns: int = 8,
    title: str | None = None,
    numbers: Sequence[int] | None = None,
    scores: Mapping[str, str] | None = None,
) -> Figure:
    """Trackers below each other, the truth on top, with each one's mean IoU beside its row.

    Args:
        frames: ``[T,H,W,3]`` uint8.
        truth: bool ``[T,O,H,W]``.
        predictions: name of the tracker to bool ``[T,O,H,W]``.
        scored: bool ``[T,O]``; None: the frames after each object's first.
        max_columns: at most so many frames are shown, evenly spread from the first to the last.
        numbers: T frame numbers to show; None: from 0.
        scores: what to show in place of the mean IoU, by tracker.
    """
    if scored is None:
        scored = after_first_visible(np.asarray(truth.any((2, 3))))
    steps = evenly_spaced(len(frames), max_columns)
    rows, labels = [[overlay(frames[t], truth[t]) for t in steps]], ["truth"]
    for name, prediction in predictions.items():
        _, mean = mean_tracked_iou(prediction, truth, scored)
        rows.append([overlay(frames[t], prediction[t]) for t in steps])
        labels.append(f"{name}\n{scores[name] if scores else f'mean IoU {mean:.2f}'}")
    numbers = range(len(frames)) if numbers is None else numbers
    return contact_sheet(rows, labels, [f"frame {numbers[t]}" for t in steps], title)


def tracking_frames(
    frames: np.ndarray, truth: np.ndarray, predictions: Mapping[str, np.ndarray]
) -> np.ndarray:
    """The truth and the trackers side by side under their names, to be animated.

    Arguments as for :func:`tracking_figure`.

    Returns:
        ``[T,H',W',3]`` uint8, each panel 192 to 256 pixels wide or so: its name can be read, and
        the whole is not too large for a GIF.
    """
    panels = {"truth": truth, **predictions}
    factor = min(max(1, -(-192 // frames.shape[2])), 256 / frames.shape[2])
    height, width = round(frames.shape[1] * factor), round(frames.shape[2] * factor)
    pictures = []
    for t, frame in enumerate(frames):
        row = []
        for name, masks in panels.items():
            image = overlay(frame, masks[t])
            image = cv2.resize(image, (width, height), interpolation=cv2.INTER_NEAREST)
            caption = np.full((20, width, 3), 255, dtype=np.uint8)
            font = cv2.FONT_HERSHEY_SIMPLEX
            text = label_text(name)
            cv2.putText(caption, text, (4, 14), font, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
            row.append(np.concatenate([caption, image]))
        pictures.append(np.concatenate(row, axis=1))
    return np.stack(pictures)
