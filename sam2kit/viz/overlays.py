"""Draw masks and prompts on frames, and arrange images in contact sheets.

Functions return RGB arrays or matplotlib figures and do not display them. Figures are created
without pyplot, which would keep every figure in global state.
"""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from matplotlib.figure import Figure
from torch import Tensor

from sam2kit.utils.text import figure_text

# The palette of Okabe and Ito (Color Universal Design, 2008), which is safe for colour-blind
# readers. Black is omitted because it is invisible on dark frames. The order maximises the contrast
# between the first colours on photographs.
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
# Three of these colours, which also differ in lightness.
ERROR_COLORS = {
    "hit": (0, 114, 178),  # blue
    "missed": (240, 228, 66),  # yellow
    "false alarm": (213, 94, 0),  # vermilion
}


def object_colors(positions: Sequence[int] | np.ndarray) -> np.ndarray:
    """Return one colour of :data:`PALETTE` per object, repeating the palette if necessary.

    Args:
        positions: ``[N]``, indices of the objects, from 0.

    Returns:
        RGB colours ``[N,3]`` uint8.
    """
    return PALETTE[np.asarray(positions, int) % len(PALETTE)]


def contrasting_palette(frame: np.ndarray) -> np.ndarray:
    """Sort :data:`PALETTE` by how well its colours stand out from a frame.

    A colour's contrast is the 2nd percentile of its CIELAB distances to the frame's pixels, so that
    small objects count. Colours are selected greedily by their contrast and their distance from the
    colours before them.

    Args:
        frame: ``[H,W,3]`` uint8.

    Returns:
        ``[N,3]`` uint8.
    """
    small = cv2.resize(frame, (48, 48), interpolation=cv2.INTER_AREA)
    pixels = cv2.cvtColor(small.astype(np.float32) / 255, cv2.COLOR_RGB2LAB).reshape(-1, 1, 3)
    colors = cv2.cvtColor(PALETTE[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)
    contrast = np.percentile(np.linalg.norm(pixels - colors, axis=2), 2, axis=0)
    between = np.linalg.norm(colors[0][:, None] - colors, axis=2)
    order = [int(contrast.argmax())]
    while len(order) < len(PALETTE):
        score = np.minimum(contrast, between[order].min(0) / 2)
        score[order] = -1
        order.append(int(score.argmax()))
    return PALETTE[order]


def frames_to_images(frames: Tensor) -> np.ndarray:
    """Convert frames ``[...,3,H,W]`` uint8 to images ``[...,H,W,3]`` uint8.

    Raises:
        ValueError: the frames are not uint8, for example because they are already normalised.
    """
    if str(frames.dtype) != "torch.uint8":
        raise ValueError(
            f"frames must be uint8, got {frames.dtype}; convert them before normalisation"
        )
    return np.ascontiguousarray(frames.movedim(-3, -1).cpu().numpy())


def overlay(
    frame: np.ndarray,
    masks: np.ndarray,
    colors: np.ndarray | None = None,
    alpha: float = 0.5,
    contours: bool = True,
) -> np.ndarray:
    """Draw masks on a frame; later objects are drawn over earlier ones.

    Args:
        frame: ``[H,W,3]`` uint8.
        masks: ``[O,H,W]`` bool.
        colors: ``[O,3]`` uint8. If None (default), :data:`PALETTE`, repeated if necessary.
        alpha: opacity of the masks, from 0 to 1.
        contours: whether to draw an opaque outline, one pixel wide, around each object.

    Returns:
        A new image ``[H,W,3]`` uint8.

    Raises:
        ValueError: the masks and the frame have different sizes.
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
    """Draw hits, misses and false alarms of a mask in :data:`ERROR_COLORS` on a grey frame.

    Args:
        frame: ``[H,W,3]`` uint8.
        prediction, truth: ``[H,W]`` bool.

    Returns:
        A new image ``[H,W,3]`` uint8.
    """
    # Use a dark grey frame, so that its colours do not compete with the error colours.
    grey = np.repeat(frame.mean(2, keepdims=True) * 0.7, 3, axis=2).astype(np.uint8)
    masks = np.stack([prediction & truth, truth & ~prediction, prediction & ~truth])
    return overlay(grey, masks, np.array(list(ERROR_COLORS.values())), 0.75, contours=False)


def draw_prompts(
    frame: np.ndarray,
    points: np.ndarray | None = None,
    labels: np.ndarray | None = None,
    box: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the clicks (discs: positive, crosses: negative) and the box of one object.

    Args:
        frame: ``[H,W,3]`` uint8.
        points: ``[P,2]``, x and y in pixels. None (default): no clicks.
        labels: ``[P]``: 1 for positive and 0 for negative clicks, 2 and 3 for the first and last
            corner of a box.
        box: ``[4]``, x0, y0, x1, y1 in pixels, inclusive. None (default): the corners in
            ``points``, if there are any.

    Returns:
        A new image ``[H,W,3]`` uint8.

    Raises:
        ValueError: the numbers of points and labels differ.
    """
    picture = frame.copy()
    points = np.zeros((0, 2)) if points is None else np.asarray(points)
    labels = np.zeros(0) if labels is None else np.asarray(labels)
    if len(points) != len(labels):
        raise ValueError(f"{len(points)} points but {len(labels)} labels")
    if box is None and (labels == 2).any() and (labels == 3).any():
        box = np.concatenate([points[labels == 2][0], points[labels == 3][0]])
    unit = max(1, round(min(frame.shape[:2]) / 128))  # line width, proportional to the frame size
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
    """Arrange images in a grid.

    Args:
        rows: images ``[H,W,3]`` uint8; rows may have different lengths.
        row_labels: one label per row, shown at its left; empty for no labels.
        column_labels: one label per column, shown above the first row; empty for no labels.
        title: title above the grid. If None (default), there is no title.
        captions: one caption of up to two lines per image, in reading order; empty for no captions.
        cell_inches: width of an image in inches; the height follows the shape of the first image.

    Raises:
        ValueError: there are no images, or the number of labels does not match the grid.
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
                f"a sheet of {count} rows and {columns} columns needs {expected} {kind} or none; "
                f"got {len(texts)}"
            )
    # Compute the space for text: matplotlib's layout engines take seconds for 40 images.
    first = next(image for row in rows for image in row)
    size = np.array([cell_inches, cell_inches * first.shape[0] / first.shape[1]])
    row_labels, remaining = list(map(figure_text, row_labels)), iter(captions)
    letters = max((len(line) for label in row_labels for line in label.splitlines()), default=0)
    left, gap = 0.08 * letters + 0.1, 0.05
    top = 0.3 * bool(column_labels) + 0.35 * bool(title) + 0.05
    caption_height = 0.38 if captions else 0.0  # two lines
    step = size + [gap, gap + caption_height]
    width, height = left + columns * step[0], top + count * step[1]
    figure = Figure((width, height), dpi=120)
    for r, c in np.ndindex(count, columns):
        x, y = left + c * step[0], height - top - (r + 1) * step[1] + gap
        rectangle = (x / width, y / height, size[0] / width, size[1] / height)
        axes = figure.add_axes(rectangle, xticks=[], yticks=[], frame_on=False)
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
