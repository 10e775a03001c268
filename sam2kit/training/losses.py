"""Compute the terms of the training loss and their weighted sum.

The functions return one value per object-frame (one object in one frame). Only
:class:`SAM2TrainingLoss` reduces over object-frames.
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
    """Compute the binary cross-entropy, averaged over pixels.

    Args:
        logits: ``[N,H,W]``.
        truth: ground truth ``[N,H,W]``, bool or float from 0 to 1.
        positive_weight: maximum weight of object pixels relative to background pixels. The weight
            is the number of background pixels divided by the number of object pixels, clamped to
            the range from 1 to ``positive_weight``, so that the background does not dominate small
            objects.

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
    """Compute the focal loss ``-a (1 - q)^gamma log(q)``, averaged over pixels.

    q is the predicted probability of the true class; a is ``alpha`` for object pixels and
    ``1 - alpha`` for background pixels. Source: Lin et al. 2017 (arXiv 1708.02002), with the
    constants of upstream's SAM 2 training.

    Args:
        logits: ``[N,H,W]``.
        truth: ground truth ``[N,H,W]``, bool or float from 0 to 1.
        alpha: weight of object pixels, 0 to 1.
        gamma: exponent, 0 or above; larger values reduce the weight of easy pixels.

    Returns:
        ``[N]``, 0 or above.
    """
    return sigmoid_focal_loss(logits, truth.to(logits.dtype), alpha, gamma).flatten(1).mean(1)


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute the Dice loss ``1 - (2 sum(p g) + 1) / (sum(p) + sum(g) + 1)``.

    p is the predicted probability and g the ground truth. The smoothing terms of 1 are as in
    upstream's ``dice_loss``.

    Args:
        logits: ``[N,H,W]``.
        truth: ground truth ``[N,H,W]``, bool or float from 0 to 1.

    Returns:
        ``[N]`` from 0 to 1.
    """
    overlap, p, g = _areas(logits, truth)
    return 1 - (2 * overlap + 1) / (p + g + 1)


def iou_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """Compute 1 minus the soft Jaccard index, ``1 - (sum(p g) + 1) / (sum(p + g - p g) + 1)``.

    p is the predicted probability and g the ground truth.

    Args:
        logits: ``[N,H,W]``.
        truth: ground truth ``[N,H,W]``, bool or float from 0 to 1.

    Returns:
        ``[N]`` from 0 to 1.
    """
    overlap, p, g = _areas(logits, truth)
    return 1 - (overlap + 1) / (p + g - overlap + 1)


def temporal_loss(
    logits: Tensor, previous_logits: Tensor, truth: Tensor, previous: Tensor
) -> Tensor:
    """Compare the change between two frames in the prediction and in the ground truth.

    The loss is ``mean(|(p_t - p_{t-1}) - (g_t - g_{t-1})|)`` over pixels. It penalizes flicker
    where the ground truth does not change, and a static mask where it does.

    Args:
        logits, previous_logits: ``[N,H,W]``, of a frame and of the previous frame.
        truth, previous: ground truth of these frames, ``[N,H,W]``, bool or float.

    Returns:
        ``[N]`` from 0 to 2.
    """
    change = logits.sigmoid() - previous_logits.sigmoid()
    true_change = truth.to(change.dtype) - previous.to(change.dtype)
    return (change - true_change).abs().flatten(1).mean(1)


def iou_head_loss(predicted_iou: Tensor, logits: Tensor, truth: Tensor) -> Tensor:
    """Compute the absolute error of the predicted IoU.

    Args:
        predicted_iou: ``[N]``, the IoU that the model predicts for its own masks.
        logits: ``[N,H,W]``; the mask is where they are above 0. They get no gradient.
        truth: ground truth ``[N,H,W]``, bool or float from 0 to 1.

    Returns:
        ``[N]``, 0 or above.
    """
    mask, truth = logits > 0, truth > 0.5
    union = (mask | truth).flatten(1).sum(1).clamp(min=1)
    actual_iou = (mask & truth).flatten(1).sum(1) / union
    return (predicted_iou - actual_iou).abs()


def _areas(logits: Tensor, truth: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the soft areas of the overlap, the mask and the ground truth, each ``[N]``."""
    p = logits.sigmoid().flatten(1)
    g = truth.to(p.dtype).flatten(1)
    return (p * g).sum(1), p.sum(1), g.sum(1)


NO_OBJ_SCORE = -1024.0  # as in sam2.modeling.sam2_base
ABSENT_LOGIT = -32.0
"""Logit that the loss uses for a mask withheld because the object is predicted to be absent.

Upstream sets such logits to -1024, a constant without gradient, with which one such frame would
outweigh hundreds of others in the cross-entropy. Upstream's predictor clamps logits to 32."""


class SAM2TrainingLoss(nn.Module):
    """Compute the weighted sum of the terms of :class:`~sam2kit.config.schema.LossConfig`.

    With ``loss.type=frames``, every term is averaged over the supervised object-frames of the batch
    (tracked by the model and annotated). A batch's loss is therefore the mean of its clips' losses,
    weighted by their object-frames. The rules:

    - Unannotated frames, and frames before an object's first prompt, do not contribute.
    - An annotated frame in which the object is absent contributes to ``bce``, ``focal``,
        ``temporal`` and ``object_score``. Its ``dice``, ``iou`` and ``iou_head`` are 0, because
        there is no region to compare.
    - ``temporal`` is 0 unless the previous frame is supervised, too.
    - A withheld mask (the object is predicted to be absent) has the logit :data:`ABSENT_LOGIT`.

    With ``loss.type=steps``, the loss is upstream's ``MultiStepMultiMasksAndIous``: every decoder
    output on an annotated frame contributes, including outputs after correction clicks. Every term
    is summed over outputs and divided by the number of tracked objects, not frames. The rules:

    - Of three candidate masks, only the one with the lowest weighted mask loss contributes;
        ``iou_head`` is averaged over all three.
    - If the object is absent, only ``object_score`` contributes.
    - A withheld mask keeps its logit of -1024, which has no gradient.

    Args:
        config: type and weights. If None (default), the default :class:`LossConfig` is used.
    """

    def __init__(self, config: LossConfig | None = None) -> None:
        super().__init__()
        self.config = LossConfig() if config is None else config

    def forward(
        self, output: TrackOutput, batch: ClipBatch, all_devices: bool = False
    ) -> dict[str, Tensor]:
        """Compute the loss of a batch.

        Args:
            output: the model's output for the batch.
            batch: the clips with ground truth.
            all_devices: divide by the count averaged over all ranks instead of this rank's count.
                The loss and gradients averaged over ranks then equal those of a single batch with
                the clips of all ranks. Every rank must make this call.

        Returns:
            scalars: ``loss``, the weighted sum, and the unweighted terms ``loss_bce``,
            ``loss_dice``, …. Terms with weight 0 are omitted. All values are 0 if the batch has no
            supervised object-frame.
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
        # Without supervised object-frames the sum is a constant, but Lightning needs a
        # differentiable tensor.
        return {"loss": total + 0.0 * output.mask_logits.sum(), **terms}

    def _of_steps(self, output: TrackOutput, batch: ClipBatch) -> tuple[dict[str, Tensor], int]:
        """Return the sums of each term per decoder output, and the number of tracked objects."""
        c = self.config
        sums: dict[str, list[Tensor]] = {}
        annotated, device = _annotated_on_host(batch), batch.masks.device
        for step in output.steps:
            indices = step.indices or step.objects.tolist()
            known = annotated[step.frame, indices].nonzero()[:, 0]
            # A slice or indices, because a boolean index would synchronize the device.
            rows = slice(None) if len(known) == len(indices) else _upload(known, device)
            truth = batch.masks[step.frame, step.objects][rows]
            logits = upsample(step.mask_logits[rows], truth.shape[-2:])
            n, m = logits.shape[:2]
            # Compare each of an object's m candidate masks with the same ground truth.
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
        count = int(output.tracked_on_host().any(0).sum())
        return {k: torch.stack(v) for k, v in sums.items()}, count

    def _of_frames(self, output: TrackOutput, batch: ClipBatch) -> tuple[dict[str, Tensor], int]:
        """Return each term per supervised object-frame, and the number of object-frames."""
        # Compute positions on the host to avoid synchronizing the device.
        device = batch.masks.device
        supervised = output.tracked_on_host() & _annotated_on_host(batch)
        positions = supervised.nonzero()
        frames, objects = _upload(positions, device).unbind(1)
        logits = output.mask_logits[frames, objects]
        withheld = (logits <= NO_OBJ_SCORE).all(-1).all(-1)
        logits = logits.masked_fill(withheld[:, None, None], ABSENT_LOGIT)
        logits = upsample(logits, batch.masks.shape[-2:])
        c, truth = self.config, batch.masks[frames, objects]
        present = truth.flatten(1).any(1)
        values = self._mask_terms(logits, truth)
        values |= {name: values[name] * present for name in ("dice", "iou") if name in values}
        if c.temporal > 0:
            # row[t, n]: index of a supervised object-frame, -1 for the others.
            row = torch.full_like(supervised, -1, dtype=torch.long)
            row[supervised] = torch.arange(len(truth))
            now, before = row[1:].flatten(), row[:-1].flatten()
            pairs = (now >= 0) & (before >= 0)
            now, before = _upload(torch.stack([now[pairs], before[pairs]]), device)
            values["temporal"] = temporal_loss(
                logits[now], logits[before], truth[now], truth[before]
            )
        if c.iou_head > 0:
            values["iou_head"] = iou_head_loss(output.iou[frames, objects], logits, truth) * present
        if c.object_score > 0:
            values["object_score"] = F.binary_cross_entropy_with_logits(
                output.object_score[frames, objects], present.to(logits.dtype), reduction="none"
            )
        return values, len(frames)

    def _mask_terms(self, logits: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """Compute the mask terms with positive weight, each ``[N]``."""
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


def _annotated_on_host(batch: ClipBatch) -> Tensor:
    """Return ``annotated`` on the host, without synchronizing the device if possible."""
    return (batch.on_host() if batch.host is not None else batch).annotated.cpu()


def _upload(indices: Tensor, device: torch.device) -> Tensor:
    return indices.to(device, non_blocking=True)


def _mean_count(count: int, device: torch.device) -> float | Tensor:
    """Return the count averaged over all ranks, with a total of at least 1."""
    if not is_initialized():
        return max(count, 1)
    total = torch.tensor(float(count)).to(device, non_blocking=True)
    all_reduce(total)
    return total.clamp(min=1) / get_world_size()
