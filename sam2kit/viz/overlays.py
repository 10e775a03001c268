"""Draw masks and prompts on frames, and lay images out in contact sheets.

Functions return RGB arrays or matplotlib figures and never show anything; a notebook displays what
it gets. Figures are made without pyplot, which keeps every figure in global state.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from sam2kit.utils.text import figure_text

# Okabe and Ito's eight colours (Color Universal Design, 2008) without black, which dark frames
# swallow, in an order that sets the first few apart best on photographs.
PALETTE = np.array(
    [
        [86, 180, 233],  # sky blue
        [230, 159, 0],  # orange
        [204, 121, 167],  # reddish purple
        [240, 228, 66],  # yellow
        [0, 158, 115],  # bluish green
        [213, 94, 0],  # vermilion
        [0, 114, 178],  # blue
    ],
    dtype=np.uint8,
)
POSITIVE, NEGATIVE, BOX = (0, 158, 115), (213, 94, 0), (240, 228, 66)
WHITE = (255, 255, 255)
# Of the same eight colours three that differ in lightness too, whatever the colour vision.
ERROR_COLORS = {
    "hit": (0, 114, 178),  # blue
    "missed": (240, 228, 66),  # yellow
    "false alarm": (213, 94, 0),  # vermilion
}


def object_colors(positions: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return the colours ``[N,3]`` uint8 of objects at N positions: :data:`PALETTE`, repeated."""
    return PALETTE[np.asarray(positions, int) % len(PALETTE)]


def frames_to_images(frames: Tensor) -> np.ndarray:
    """Frames ``[...,3,H,W]`` uint8 as images ``[...,H,W,3]`` uint8.

    Raises:
        ValueError: the frames are not uint8, for instance already normalised.
    """
    if str(frames.dtype) != "torch.uint8":
        raise ValueError(
            f"only uint8 frames can be shown, got {frames.dtype}; do so before normalising"
        )
    return np.ascontiguousarray(frames.movedim(-3, -1).cpu().numpy())


def overlay(
    frame: np.ndarray,
    masks: np.ndarray,
    colors: np.ndarray | None = None,
    alpha: float = 0.5,
    contours: bool = True,
) -> np.ndarray:
    """Colour the objects of a frame; where objects overlap, the later one is on top.

    Args:
        frame: ``[H,W,3]`` uint8.
        masks: bool ``[O,H,W]``.
        colors: ``[O,3]`` uint8; None: :data:`PALETTE`, repeated as needed.
        alpha: how opaque the colour is, from 0 to 1.
        contours: whether each object gets an opaque outline one pixel wide.

    Returns:
        A new ``[H,W,3]`` uint8.

    Raises:
        ValueError: shapes that disagree.
    """
    if masks.ndim != 3 or masks.shape[1:] != frame.shape[:2]:
        raise ValueError(f"masks of shape {masks.shape} do not fit a frame of {frame.shape}")
    if colors is None:
        colors = object_colors(range(len(masks)))
    picture = frame.astype(np.float32)
    for mask, color in zip(masks, colors, strict=True):
        picture[mask] = (1 - alpha) * picture[mask] + alpha * color
    picture = picture.round().astype(np.uint8)
    if contours:
        for mask, color in zip(masks, colors, strict=True):
            outlines, _ = cv2.findContours(
                mask.astype(np.uint8), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE
            )
            cv2.drawContours(picture, outlines, -1, tuple(int(c) for c in color), 1)
    return picture


def error_overlay(frame: np.ndarray, prediction: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Where a mask is right and wrong, in :data:`ERROR_COLORS` on the frame without its colours.

    Args:
        frame: ``[H,W,3]`` uint8.
        prediction, truth: bool ``[H,W]``.

    Returns:
        A new ``[H,W,3]`` uint8.
    """
    grey = np.repeat(frame.mean(2, keepdims=True) * 0.7, 3, axis=2).astype(np.uint8)
    masks = np.stack([prediction & truth, truth & ~prediction, prediction & ~truth])
    return overlay(grey, masks, np.array(list(ERROR_COLORS.values())), 0.75, contours=False)


def draw_prompts(
    frame: np.ndarray,
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    box: np.ndarray | None = None,
) -> np.ndarray:
    """Draw one object's clicks and box: positive ones as discs, negative ones as crosses.

    Args:
        frame: ``[H,W,3]`` uint8.
        points: ``[P,2]`` x and y, with ``labels`` ``[P]`` (1 and 0; 2 and 3 are a box's corners).
        box: x0, y0, x1, y1, inclusive.

    Returns:
        A new ``[H,W,3]`` uint8.

    Raises:
        ValueError: points without labels, or not as many.
    """
    picture = frame.copy()
    points = np.zeros((0, 2)) if points is None else np.asarray(points)
    labels = np.zeros(0) if labels is None else np.asarray(labels)
    if len(points) != len(labels):
        raise ValueError(f"{len(points)} points but {len(labels)} labels")
    if box is None and (labels == 2).any() and (labels == 3).any():
        box = np.concatenate([points[labels == 2][0], points[labels == 3][0]])
    unit = max(1, round(min(frame.shape[:2]) / 128))  # line width that suits the frame's size
    if box is not None:
        x0, y0, x1, y1 = (int(v) for v in box)
        cv2.rectangle(picture, (x0, y0), (x1, y1), BOX, unit)
    for (x, y), label in zip(points, labels, strict=True):
        center = (int(x), int(y))
        if label == 1:
            cv2.circle(picture, center, 3 * unit, WHITE, -1, cv2.LINE_AA)
            cv2.circle(picture, center, 2 * unit, POSITIVE, -1, cv2.LINE_AA)
        elif label == 0:
            cross = (cv2.MARKER_TILTED_CROSS, 5 * unit)
            cv2.drawMarker(picture, center, WHITE, *cross, 3 * unit, cv2.LINE_AA)
            cv2.drawMarker(picture, center, NEGATIVE, *cross, unit, cv2.LINE_AA)
    return picture


def contact_sheet(
    rows: Sequence[Sequence[np.ndarray]],
    row_labels: Sequence[str] = (),
    column_labels: Sequence[str] = (),
    title: str | None = None,
    captions: Sequence[str] = (),
    cell_inches: float = 1.6,
) -> Figure:
    """Lay out images ``[H,W,3]`` uint8 in a grid; rows may be of different lengths.

    Args:
        row_labels: one per row, or none; written at its left.
        column_labels: one per column, or none; written above the first row.
        captions: one per image in reading order, or none; written above it in up to two lines.
        cell_inches: the width of an image; its height follows the first image's shape.

    Raises:
        ValueError: no images, or labels that do not match the grid.
    """
    count, columns = len(rows), max(map(len, rows), default=0)
    if not columns:
        raise ValueError("a contact sheet needs at least one image")
    for kind, texts, expected in (
        ("row labels", row_labels, count),
        ("column labels", column_labels, columns),
        ("captions", captions, sum(map(len, rows))),
    ):
        if len(texts) not in (0, expected):
            raise ValueError(
                f"a sheet of {count} rows and {columns} columns takes {expected} {kind} or none, "
                f"got {len(texts)}"
            )
    # Room for text is computed here: matplotlib's layout engines take seconds for 40 images.
    first = next(image for row in rows for image in row)
    size = np.array([cell_inches, cell_inches * first.shape[0] / first.shape[1]])
    row_labels, remaining = list(map(figure_text, row_labels)), iter(captions)
    letters = max((len(line) for label in row_labels for line in label.splitlines()), default=0)
    left, gap = 0.08 * letters + 0.1, 0.05
    top = 0.3 * bool(column_labels) + 0.35 * bool(title) + 0.05
    above = 0.38 if captions else 0.0  # room over every row, for two lines
    step = size + [gap, gap + above]
    width, height = left + columns * step[0], top + count * step[1]
    figure = Figure((width, height), dpi=120)
    for r, c in np.ndindex(count, columns):
        x, y = left + c * step[0], height - top - (r + 1) * step[1] + gap
        place = (x / width, y / height, size[0] / width, size[1] / height)
        axes = figure.add_axes(place, xticks=[], yticks=[], frame_on=False)
        if row_labels and c == 0:
            axes.set_ylabel(row_labels[r], rotation=0, ha="right", va="center", fontsize=9)
        if column_labels and r == 0:
            axes.set_title(figure_text(column_labels[c]), fontsize=9)
        if c < len(rows[r]):
            axes.imshow(rows[r][c])
            if captions:
                axes.set_title(figure_text(next(remaining)), fontsize=8)
    if title:
        figure.text(0.5, 1 - 0.1 / height, figure_text(title), ha="center", va="top", fontsize=11)
    return figure


def evenly_spaced(count: int, max_count: int) -> list[int]:
    """Return up to ``max_count`` positions, evenly spread over ``count`` with both ends."""
    steps = np.linspace(0, count - 1, min(count, max_count)).round().astype(int)
    return sorted(set(steps.tolist()))
