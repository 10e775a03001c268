"""Write clips in DAVIS layout and COCO JSON, and measure how much their objects move."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from PIL import Image
from pycocotools import mask as coco_mask

from sam2kit.data.rle import encode_mask

PALETTE = [(0, 0, 0), (230, 75, 53), (77, 187, 213), (240, 190, 60), (120, 200, 120)]
PARTIAL = "partial"  # directory of clips that are being written


def write_clip(out: Path, name: str, frames: np.ndarray, ids: np.ndarray, quality: int) -> None:
    """Write a clip in DAVIS layout; its directory of masks is moved into place last.

    Args:
        out: Directory of the dataset.
        name: Name of the clip.
        frames: ``[T,H,W,3]`` uint8.
        ids: ``[T,H,W]`` uint8; 0 is background.
        quality: JPEG quality.
    """
    partial = out / PARTIAL / name
    shutil.rmtree(partial, ignore_errors=True)
    kinds = "JPEGImages", "Annotations"
    for kind in kinds:
        (partial / kind).mkdir(parents=True)
        (out / kind).mkdir(parents=True, exist_ok=True)
    for t, (frame, mask) in enumerate(zip(frames, ids, strict=True)):
        path = partial / "JPEGImages" / f"{t:05d}.jpg"
        Image.fromarray(frame).save(path, quality=quality, optimize=True)
        picture = Image.fromarray(mask)
        picture.putpalette([channel for colour in PALETTE for channel in colour])
        picture.save(partial / "Annotations" / f"{t:05d}.png", optimize=True)
    for kind in kinds:
        shutil.rmtree(out / kind / name, ignore_errors=True)
        os.replace(partial / kind, out / kind / name)
    partial.rmdir()


def coco_entries() -> dict[str, list[Any]]:
    """Return the content of a COCO JSON without images."""
    return {"images": [], "annotations": [], "categories": [{"id": 1, "name": "object"}]}


def add_to_coco(
    content: dict[str, list[Any]], name: str, ids: np.ndarray, polygons: bool = False
) -> None:
    """Add the images and masks of a clip to the content of a COCO JSON.

    Args:
        content: Result of :func:`coco_entries`, changed in place.
        name: Name of the clip.
        ids: ``[T,H,W]`` uint8; 0 is background.
        polygons: Whether masks without holes are written as polygons.
    """
    for t, frame_ids in enumerate(ids):
        image_id = len(content["images"]) + 1
        content["images"].append(
            {
                "id": image_id,
                "video_id": name,
                "order_in_video": t,
                "file_name": f"JPEGImages/{name}/{t:05d}.jpg",
                "height": frame_ids.shape[0],
                "width": frame_ids.shape[1],
            }
        )
        for n in (int(n) for n in np.unique(frame_ids) if n):
            annotation = _annotation(frame_ids == n, polygons)
            annotation |= {"id": len(content["annotations"]) + 1, "image_id": image_id}
            annotation |= {"category_id": 1, "track_id": n, "iscrowd": 0}
            content["annotations"].append(annotation)


def _annotation(mask: np.ndarray, polygons: bool) -> dict[str, Any]:
    """Return ``segmentation``, ``area`` and ``bbox`` (x, y, width, height) of a mask."""
    segmentation: Any = encode_mask(mask)
    bbox = coco_mask.toBbox(segmentation).tolist()
    if polygons:
        # OpenCV's contours connect pixel centres; at twice the size, they are close to pixel edges.
        double = np.kron(mask, np.ones((2, 2), bool)).astype(np.uint8)
        contours, hierarchy = cv2.findContours(double, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
        if (hierarchy[0, :, 3] < 0).all():  # COCO polygons cannot have holes
            segmentation = [((c.reshape(-1) + 0.5) / 2).tolist() for c in contours]
    return {"segmentation": segmentation, "area": int(mask.sum()), "bbox": bbox}


def copied_iou(ids: np.ndarray) -> float:
    """Compute the mean IoU of each object's first mask, copied to all later frames."""
    scores = []
    for k in range(1, int(ids.max()) + 1):
        masks = ids == k
        seen = np.flatnonzero(masks.any((1, 2)))
        first = masks[seen[0]]
        for mask in masks[seen[0] + 1 :]:
            scores.append((first & mask).sum() / (first | mask).sum())
    return float(np.mean(scores)) if scores else 1.0
