"""What the prompt debugger shows of a session: pictures as bytes, the rest as a dictionary."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import cv2
import numpy as np

from sam2kit.data.sources.base import ObjectId
from sam2kit.utils.text import label_text
from sam2kit.viz.overlays import ERROR_COLORS, PALETTE, draw_prompts, overlay
from sam2kit.widgets.base import display_size, encode_jpeg, encode_labels, encode_png, merge_labels
from sam2kit.widgets.prompt_session import Guess, PromptSession

THUMBNAIL = 160  # pixels, the longer side of a candidate
Masks = Mapping[ObjectId, np.ndarray | None]
"""``[H,W]`` bool by object; None: it has no mask on the frame."""


def object_colors(count: int) -> np.ndarray:
    """``[count,3]`` uint8."""
    return PALETTE[np.arange(count) % len(PALETTE)]


def draw_masks(
    size: tuple[int, int], found: Masks, o: ObjectId | None, truth: Masks | None, mode: str
) -> bytes:
    """Palette PNG of all masks; in the mode ``errors`` of where object ``o`` is right and wrong."""
    nothing, mask = np.zeros(size, bool), found.get(o) if o is not None else None
    if mode == "errors" and truth is not None and mask is not None:
        true = truth.get(o)
        true = nothing if true is None else true
        parts = np.stack([mask & true, true & ~mask, mask & ~true])
        colors = np.array(list(ERROR_COLORS.values()))
        return encode_labels(merge_labels(parts), colors, display_size(size))
    masks = np.stack([nothing if m is None else m for m in found.values()] or [nothing])
    return encode_labels(merge_labels(masks), object_colors(len(masks)), display_size(size))


def thumbnails(session: PromptSession, o: ObjectId, frame: np.ndarray, guess: Guess) -> list[bytes]:
    """The candidates of an object as small JPEG pictures."""
    size = np.array(frame.shape[1::-1])
    small = tuple(int(n) for n in (size * THUMBNAIL / size.max()).round().clip(1))
    place = session.objects.index(o)
    frame = cv2.resize(frame, small, interpolation=cv2.INTER_AREA)
    pictures = []
    for mask in guess.candidates:
        shown = cv2.resize(mask.astype(np.uint8), small, interpolation=cv2.INTER_NEAREST)
        color = object_colors(place + 1)[place:]
        pictures.append(encode_jpeg(overlay(frame, shown[None].astype(bool), color, 0.6)))
    return pictures


def describe(
    session: PromptSession, o: ObjectId | None, t: int, found: Masks, truth: Masks | None
) -> dict[str, Any]:
    """Everything about a frame and its chosen object that is no picture."""
    guess = None if o is None else session.guess(o, t)
    mask = None if o is None else found[o]
    candidates = () if guess is None else guess.candidates
    chosen = [n for n, c in enumerate(candidates) if mask is not None and (c == mask).all()]
    tracked = [value for (who, _), value in session.j.items() if who == o]
    colors = object_colors(len(session.objects)).tolist()
    return {
        "video": session.i,
        "frame": t,
        "frames": session.num_frames,
        "size": list(session.size),
        "objects": [
            {"name": label_text(who), "color": color, "mask": found[who] is not None}
            for who, color in zip(session.objects, colors, strict=True)
        ],
        "object": None if o is None else session.objects.index(o),
        "marks": [
            {
                "object": session.objects.index(who),
                "points": mark.points,
                "labels": mark.labels,
                "box": mark.box,
            }
            for (who, frame), mark in session.marks.items()
            if frame == t
        ],
        "prompted": sorted({frame for _, frame in session.marks}),
        "ious": [] if guess is None else list(guess.ious),
        "score": None if guess is None else guess.score,
        "chosen": chosen[0] if chosen else None,
        "annotated": truth is not None,
        "j": None if mask is None or o is None else session.j_of(o, t, mask),
        "mean_j": float(np.mean(tracked)) if tracked else None,
        "stale": session.stale,
    }


def picture_of(session: PromptSession, t: int, frame: np.ndarray) -> bytes:
    """PNG of a frame with the masks and prompts of all objects."""
    masks = {o: m for o in session.objects if (m := session.mask(o, t)) is not None}
    if masks:
        colors = object_colors(len(session.objects))[[session.objects.index(o) for o in masks]]
        frame = overlay(frame, np.stack(list(masks.values())), colors)
    for (_, number), mark in session.marks.items():
        if number == t:
            box = None if mark.box is None else np.array(mark.box)
            points = np.array(mark.points).reshape(-1, 2)
            frame = draw_prompts(frame, points, np.array(mark.labels), box)
    size = display_size(session.size)
    return encode_png(cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA))
