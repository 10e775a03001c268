"""Propose masks of all objects of a frame with upstream's automatic mask generator."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from sam2.automatic_mask_generator import SAM2AutomaticMaskGenerator
from sam2.utils.amg import MaskData, rle_to_mask
from torchvision.ops import batched_nms

from sam2kit.models.sam2 import SAM2Model


@dataclass(frozen=True, eq=False)
class Proposal:
    """A mask that may be an object.

    Attributes:
        mask: ``[H,W]`` bool.
        score: predicted IoU times stability, 0 to 1.
    """

    mask: np.ndarray
    score: float


def propose(
    model: SAM2Model,
    frame: np.ndarray,
    existing: Sequence[np.ndarray] = (),
    points_per_side: int = 16,
    min_iou: float = 0.5,
    min_stability: float = 0.7,
    max_overlap: float = 0.5,
    max_area: float = 0.5,
) -> Iterator[tuple[float, list[Proposal]]]:
    """Prompt a model with a grid of points, and keep good masks that do not overlap.

    Args:
        model: any SAM 2; it is not changed.
        frame: ``[H,W,3]`` uint8.
        existing: ``[H,W]`` bool each: masks of objects that need no proposal.
        points_per_side: the grid has the square of this number of points.
        min_iou: minimum IoU that the model predicts for a mask. The small ``nano`` rarely predicts
            more than 0.7; for large models, upstream uses 0.8.
        min_stability: minimum IoU of the masks at a higher and a lower threshold; upstream uses
            0.95.
        max_overlap: maximum share of the smaller mask that another mask, or an existing one,
            covers. The mask with the higher score is kept.
        max_area: maximum share of the frame, because larger masks are mostly background.

    Yields:
        The completed share of the work, and the proposals, best first. The list is empty until the
        share is 1.
    """
    generator = SAM2AutomaticMaskGenerator(
        model,
        points_per_side,
        pred_iou_thresh=min_iou,
        stability_score_thresh=min_stability,
    )
    predictor = generator.predictor
    # Upstream's sizes are for an image size of 1024.
    predictor._bb_feat_sizes = [(model.image_size // stride,) * 2 for stride in (4, 8, 16)]
    height, width = frame.shape[:2]
    box, data = [0, 0, width, height], MaskData()
    points = generator.point_grids[0] * np.array([[width, height]])
    # The loop of upstream's _process_crop, with progress.
    with torch.inference_mode():
        predictor.set_image(frame)
    for start in range(0, len(points), generator.points_per_batch):
        yield start / len(points), []
        batch = points[start : start + generator.points_per_batch]
        with torch.inference_mode():
            size = (height, width)
            data.cat(generator._process_batch(batch, size, box, size, normalize=True))
    boxes, scores = data["boxes"].float(), data["iou_preds"] * data["stability_score"]
    best = batched_nms(boxes, scores, torch.zeros_like(boxes[:, 0]), generator.box_nms_thresh)
    candidates = [Proposal(rle_to_mask(data["rles"][n]), float(scores[n])) for n in best.tolist()]
    yield 1.0, _separate(candidates, existing, max_overlap, max_area)


def _separate(
    candidates: Sequence[Proposal],
    existing: Sequence[np.ndarray],
    max_overlap: float,
    max_area: float,
) -> list[Proposal]:
    """Select candidates, the best first, that overlap neither each other nor existing masks."""
    masks, proposals = [m for m in existing if m.any()], []
    for candidate in sorted(candidates, key=lambda c: -c.score):
        area = int(candidate.mask.sum())
        if not 0 < area <= max_area * candidate.mask.size:
            continue
        # Compare with the smaller mask, so that neither a part nor the whole is proposed again.
        if any(
            (candidate.mask & mask).sum() > max_overlap * min(area, mask.sum()) for mask in masks
        ):
            continue
        proposals.append(candidate)
        masks.append(candidate.mask)
    return proposals
