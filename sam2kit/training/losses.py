"""The training loss: functions of mask logits and true masks, and their weighted sum.

The functions return one value for each object-frame (one object on one frame); reductions are the
business of :class:`SAM2TrainingLoss` alone.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.distributed import all_reduce, get_world_size, is_initialized
from torch.nn import functional as F
from torchvision.ops import sigmoid_focal_loss

from sam2kit.config.schema import LossConfig
from sam2kit.data.clip import ClipBatch
from sam2kit.models.outputs import TrackOutput, upsample


def bce_loss(logits: Tensor, truth: Tensor, positive_weight: float = 1.0) -> Tensor:
    """Binary cross-entropy, mean over pixels.

    Args:
        logits: ``[N,H,W]``.
        truth: ``[N,H,W]`` bool or float.
        positive_weight: object pixels weigh background pixels / object pixels, held between 1 and
            this value, so that small objects are not drowned by their background.

    Returns:
        ``[N]``, 0 or above.
    """
    truth = truth.to(logits.dtype)
    loss = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    if positive_weight > 1:
        inside = truth.flatten(1).sum(1)
        outside = truth[0].numel() - inside
        weight = (outside / inside.clamp(min=1)).clamp(1, positive_weight)
        loss = loss * torch.where(truth > 0.5, weight[:, None, None], 1.0)
    return loss.flatten(1).mean(1)


def focal_loss(logits: Tensor, truth: Tensor, alpha: float = 0.25, gamma: float = 2.0) -> Tensor:
    """``-a (1 - q)^gamma log(q)``, mean over pixels.

    q is the probability of what is true; a is ``alpha`` on object pixels, ``1 - alpha`` elsewhere.

    Args:
        logits: ``[N,H,W]``.
        truth: ``[N,H,W]`` bool or float.

    Returns:
        ``[N]``, 0 or above. Source: Lin et al. 2017 (arXiv 1708.02002); the constants are
        upstream's.
    """
    return sigmoid_focal_loss(logits, truth.to(logits.dtype), alpha, gamma).flatten(1).mean(1)


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """``1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1)`` with probabilities p and truth g.

    Args:
        logits: ``[N,H,W]``.
        truth: ``[N,H,W]`` bool or float.

    Returns:
        ``[N]`` between 0 and 1. Source of the form with 1 in both places: upstream's ``dice_loss``.
    """
    overlap, p, g = _areas(logits, truth)
    return 1 - (2 * overlap + 1) / (p + g + 1)


def iou_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 minus the soft Jaccard index: ``1 - (sum(p g) + 1) / (sum(p + g - p g) + 1)``.

    Args:
        logits: ``[N,H,W]``.
        truth: ``[N,H,W]`` bool or float.

    Returns:
        ``[N]`` between 0 and 1.
    """
    overlap, p, g = _areas(logits, truth)
    return 1 - (overlap + 1) / (p + g - overlap + 1)


def temporal_loss(
    logits: Tensor, previous_logits: Tensor, truth: Tensor, previous: Tensor
) -> Tensor:
    """Change of probability between two frames against the truth's change, mean over pixels.

    ``mean(|(p_t - p_{t-1}) - (g_t - g_{t-1})|)``: flicker where the truth stands still costs, and
    so does standing still where the truth moves.

    Args:
        logits, previous_logits: ``[N,H,W]`` of a frame and the one before it.
        truth, previous: ``[N,H,W]`` bool or float, likewise.

    Returns:
        ``[N]`` between 0 and 2.
    """
    change = logits.sigmoid() - previous_logits.sigmoid()
    true_change = truth.to(change.dtype) - previous.to(change.dtype)
    return (change - true_change).abs().flatten(1).mean(1)


def iou_head_loss(predicted_iou: Tensor, logits: Tensor, truth: Tensor) -> Tensor:
    """L1 between the IoU the model predicts for its mask and the IoU that the mask has.

    Args:
        predicted_iou: ``[N]``.
        logits: ``[N,H,W]``; the mask is where they are above 0. No gradient flows to them.
        truth: ``[N,H,W]`` bool or float.

    Returns:
        ``[N]``.
    """
    mask, truth = logits > 0, truth > 0.5
    union = (mask | truth).flatten(1).sum(1).clamp(min=1)
    reached = (mask & truth).flatten(1).sum(1) / union
    return (predicted_iou - reached).abs()


def _areas(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    p = logits.sigmoid().flatten(1)
    g = truth.to(p.dtype).flatten(1)
    return (p * g).sum(1), p.sum(1), g.sum(1)


NO_OBJ_SCORE = -1024.0  # upstream's constant of that name in sam2.modeling.sam2_base
ABSENT_LOGIT = -32.0
"""What the loss takes for a mask that the model withheld by calling the object absent.

Upstream sets such logits to -1024, a constant without gradient. Taken literally, one such frame
would outweigh hundreds of others in the cross-entropy. 32 is where upstream's predictor clamps
logits."""


class SAM2TrainingLoss(nn.Module):
    """The weighted sum of the terms of :class:`~sam2kit.config.schema.LossConfig`.

    With ``loss.type`` ``frames`` every term is summed over the supervised object-frames of the
    batch (tracked by the model and annotated) and divided by their number, so that a batch's loss
    is the mean of its clips' losses weighted by their object-frames. The rules:

    - A frame without annotation, or before an object's first prompt, counts in nothing.
    - An annotated frame on which the object is absent counts in ``bce``, ``focal``, ``temporal``
      and ``object_score``; ``dice``, ``iou`` and ``iou_head`` are 0 there, for there is no region.
    - ``temporal`` needs the frame before to be supervised too, and is 0 where it is not.
    - A mask that the model withheld (it called the object absent) counts as :data:`ABSENT_LOGIT`.

    With ``steps`` it is upstream's ``MultiStepMultiMasksAndIous``: every answer of the decoder on
    an annotated frame counts, those to correction clicks too, and every term is summed over answers
    and divided by the number of tracked objects, not of frames.

    - Of three masks the one counts whose weighted mask terms are least; ``iou_head`` is the mean
      over all three.
    - Where the object is absent, ``object_score`` alone counts.
    - A withheld mask counts as the -1024 that it is (it has no gradient).
    """

    def __init__(self, config: LossConfig | None = None) -> None:
        super().__init__()
        self.config = LossConfig() if config is None else config

    def forward(
        self, output: TrackOutput, batch: ClipBatch, all_devices: bool = False
    ) -> dict[str, Tensor]:
        """Scalars: the terms, unweighted (``loss_bce``, ``loss_dice``, …), and their sum ``loss``.

        With ``all_devices`` the number that terms are divided by is the mean of all processes', so
        that the mean of their losses, and of their gradients, is that of all their clips in one
        batch. All processes must call it then.

        A term of weight 0 is left out. All are 0 when the batch has no supervised object-frame.
        """
        values, count = (
            self._of_steps(output, batch)
            if self.config.type == "steps"
            else self._of_frames(output, batch)
        )
        divisor = _mean_count(count, batch.masks.device) if all_devices else max(count, 1)
        terms = {f"loss_{name}": value.sum() / divisor for name, value in values.items()}
        weights = vars(self.config)
        total = sum(weights[name] * terms[f"loss_{name}"] for name in values)
        # An empty batch still has to give a tensor that can be differentiated.
        return {"loss": total + 0.0 * output.mask_logits.sum(), **terms}

    def _of_steps(self, output: TrackOutput, batch: ClipBatch) -> tuple[dict[str, Tensor], int]:
        """Each term of positive weight, summed for each answer; and the number of objects."""
        c = self.config
        sums: dict[str, list[Tensor]] = {}
        for step in output.steps:
            rows = batch.annotated[step.frame, step.objects]
            truth = batch.masks[step.frame, step.objects][rows]
            logits = upsample(step.mask_logits[rows], truth.shape[-2:])
            n, m = logits.shape[:2]
            flat, flat_truth = logits.flatten(0, 1), truth.repeat_interleave(m, dim=0)
            terms = {k: v.view(n, m) for k, v in self._mask_terms(flat, flat_truth).items()}
            weighted = sum(vars(c)[k] * v for k, v in terms.items())
            if m > 1 and terms:
                best = weighted.argmin(1, keepdim=True)
                terms = {k: v.gather(1, best) for k, v in terms.items()}
            if c.iou_head > 0:
                head = iou_head_loss(step.iou[rows].flatten(), flat, flat_truth)
                terms["iou_head"] = head.view(n, m).mean(1, keepdim=True)
            present = truth.flatten(1).any(1)
            values = {k: (v[:, 0] * present).sum() for k, v in terms.items()}
            if c.object_score > 0:
                values["object_score"] = F.binary_cross_entropy_with_logits(
                    step.object_score[rows], present.to(logits.dtype), reduction="sum"
                )
            for name, value in values.items():
                sums.setdefault(name, []).append(value)
        return {k: torch.stack(v) for k, v in sums.items()}, int(output.tracked.any(0).sum())

    def _of_frames(self, output: TrackOutput, batch: ClipBatch) -> tuple[dict[str, Tensor], int]:
        """Each term of positive weight for each supervised object-frame; and their number."""
        supervised = output.tracked & batch.annotated
        frames, objects = supervised.nonzero(as_tuple=True)
        logits = output.mask_logits[frames, objects]
        withheld = (logits <= NO_OBJ_SCORE).all(-1).all(-1)
        logits = logits.masked_fill(withheld[:, None, None], ABSENT_LOGIT)
        logits = upsample(logits, batch.masks.shape[-2:])
        c, truth = self.config, batch.masks[frames, objects]
        present = truth.flatten(1).any(1)
        values = self._mask_terms(logits, truth)
        values |= {name: values[name] * present for name in ("dice", "iou") if name in values}
        if c.temporal > 0:
            row = torch.full_like(supervised, -1, dtype=torch.long)
            row[supervised] = torch.arange(len(truth), device=row.device)
            now, before = row[1:].flatten(), row[:-1].flatten()
            pairs = (now >= 0) & (before >= 0)
            now, before = now[pairs], before[pairs]
            values["temporal"] = temporal_loss(
                logits[now], logits[before], truth[now], truth[before]
            )
        if c.iou_head > 0:
            values["iou_head"] = iou_head_loss(output.iou[supervised], logits, truth) * present
        if c.object_score > 0:
            values["object_score"] = F.binary_cross_entropy_with_logits(
                output.object_score[supervised], present.to(logits.dtype), reduction="none"
            )
        return values, len(frames)

    def _mask_terms(self, logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """The terms of positive weight that compare a mask with the truth, each ``[N]``."""
        c = self.config
        terms = {}
        if c.focal > 0:
            terms["focal"] = focal_loss(logits, truth)
        if c.bce > 0:
            terms["bce"] = bce_loss(logits, truth, c.bce_positive_weight)
        if c.dice > 0:
            terms["dice"] = dice_loss(logits, truth)
        if c.iou > 0:
            terms["iou"] = iou_loss(logits, truth)
        return terms


def _mean_count(count: int, device: torch.device) -> float:
    """The mean of all processes' counts, of which there is at least 1 in all."""
    if not is_initialized():
        return max(count, 1)
    total = torch.tensor(count, device=device)
    all_reduce(total)
    return max(int(total), 1) / get_world_size()
