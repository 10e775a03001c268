"""Generate correction clicks, which are placed during tracking where a prediction is wrong."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from sam2kit.config.schema import DatasetConfig
from sam2kit.config.validation import check_dataset
from sam2kit.data.clip import ClipBatch
from sam2kit.prompts.prompt import Prompt, video_frame
from sam2kit.utils.text import text_checksum

NUMBERS_PER_CLICK = 4  # the probability that none of them is unbiased is below 2^-40


@dataclass(eq=False)
class Corrections:
    """Generate the correction clicks of a batch from its ground truth.

    Attributes:
        frames: ``[T,O]`` bool: which objects are corrected on which frames; kept in main memory,
            because the model would have to copy it there.
        clicks: number of clicks per corrected frame, one decoder pass each, at least 1.
        masks: ``[T,O,H,W]`` bool, the ground truth.
        seeds: a seed per object. Its clicks depend only on the seed, the frame, the number of the
            click, and the two masks.
        from_truth: probability that a click is drawn from the whole ground-truth object instead of
            the error.
    """

    frames: Tensor
    clicks: int
    masks: Tensor
    seeds: Sequence[tuple[int, ...]]
    from_truth: float = 0.0

    def click(
        self, frame: int, number: int, objects: Tensor, predicted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Draw the next click for each of N objects.

        Args:
            frame: position in the clip.
            number: number of the click on this frame, from 0.
            objects: ``[N]`` int64, positions in the O axis of the batch.
            predicted: ``[N,H,W]`` bool, the masks to correct.

        Returns:
            Points ``[N,1,2]`` float32 (x, y) and labels ``[N,1]`` int32, on the device of the
            masks. Does not wait for the device.
        """
        ignores_prediction, numbers = self._draws
        row = self._draw_rows[frame, number]
        # With an empty prediction, the error is the whole object.
        predicted = predicted & ~ignores_prediction[row, objects][:, None, None]
        return correction_clicks(
            self.masks[frame, objects], predicted, numbers[row, objects].unbind(1)
        )

    @cached_property
    def _draw_rows(self) -> dict[tuple[int, int], int]:
        """Map (frame, number of the click) to a row of :attr:`_draws`."""
        corrected = self.frames.any(1).cpu().nonzero()[:, 0].tolist()
        clicks = [(t, number) for t in corrected for number in range(self.clicks)]
        return {click: row for row, click in enumerate(clicks)}

    @cached_property
    def _draws(self) -> tuple[Tensor, Tensor]:
        """Draw the random numbers of all clicks at once, and copy them to the device once.

        Returns:
            ``[R,O]`` bool: whether the click ignores the prediction, and ``[R,O,K]`` int64 for
            :func:`correction_clicks`.
        """
        shape = (len(self._draw_rows), self.frames.shape[1])
        ignores_prediction = np.zeros(shape, bool)
        numbers = np.zeros((*shape, NUMBERS_PER_CLICK), np.int64)
        corrected = self.frames.cpu().numpy()
        for (frame, number), row in self._draw_rows.items():
            for index in np.flatnonzero(corrected[frame]).tolist():
                generator = np.random.default_rng((*self.seeds[index], frame, number))
                ignores_prediction[row, index] = generator.random() < self.from_truth
                numbers[row, index] = generator.integers(
                    2**32, size=NUMBERS_PER_CLICK, dtype=np.uint32
                )
        device = self.masks.device
        return (
            torch.from_numpy(ignores_prediction).to(device, non_blocking=True),
            torch.from_numpy(numbers).to(device, non_blocking=True),
        )


def correction_clicks(
    truth: Tensor, predicted: Tensor, numbers: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Draw a click for each of N objects on their device, without waiting for it.

    Pixels on which prediction and ground truth differ are drawn with equal probability. If there
    is none, a background pixel is drawn (as in upstream ``sam2``), or a pixel of the object if the
    object fills the frame.

    Args:
        truth, predicted: ``[N,H,W]`` bool.
        numbers: at least one tensor ``[N]`` int64, drawn uniformly from 0 to 2^32 - 1. The next one
            is used for an object only if a number would favour some pixels; that happens less than
            once in 2^32 / (H * W) clicks.

    Returns:
        Points ``[N,1,2]`` float32 (x, y) and labels ``[N,1]`` int32: 1 on the ground-truth object,
        otherwise 0.
    """
    flat_truth = truth.flatten(1)
    region = flat_truth ^ predicted.flatten(1)
    fallback = torch.where(flat_truth.all(1, keepdim=True), flat_truth, ~flat_truth)
    region = torch.where(region.any(1, keepdim=True), region, fallback)
    ranks = region.cumsum(1)
    count = ranks[:, -1]
    # A multiplication maps a number to a pixel (Lemire 2019, arXiv 1805.10941), as in numpy.
    span = 2**32
    product = numbers[-1] * count
    for number in reversed(numbers[:-1]):
        candidate = number * count
        is_fair = candidate % span >= (span - count) % count
        product = torch.where(is_fair, candidate, product)
    chosen = product // span + 1
    pixel = torch.searchsorted(ranks, chosen[:, None])
    width = truth.shape[2]
    points = torch.stack([pixel % width, pixel // width], dim=2).float()
    return points, flat_truth.gather(1, pixel).int()


@dataclass(frozen=True)
class CorrectionGenerator:
    """Draw the frames on which objects receive correction clicks.

    An object that is prompted with a mask receives none. Any other object is corrected on all
    frames on which it is prompted. If these are fewer than ``max_frames``, it is also corrected on
    later annotated frames; the total is drawn between the number of prompted frames and
    ``max_frames``. This is the schedule of upstream's ``SAM2Train``. Frames are drawn once per
    clip, so that its objects are corrected on the same frames.

    Args:
        clicks: number of clicks per corrected frame; 0 (default): no corrections.
        max_frames: maximum number of corrected frames per object.
        from_truth: see :class:`Corrections`.

    Raises:
        ConfigError: a number is out of range.
    """

    clicks: int = 0
    max_frames: int = 1
    from_truth: float = 0.0

    def __post_init__(self) -> None:
        check_dataset(
            DatasetConfig(
                correction_clicks=self.clicks,
                max_correction_frames=self.max_frames,
                correction_from_truth=self.from_truth,
            )
        )

    @classmethod
    def from_config(cls, config: DatasetConfig) -> CorrectionGenerator:
        """Create the generator that the configuration of a dataset describes."""
        return cls(
            config.correction_clicks, config.max_correction_frames, config.correction_from_truth
        )

    def __call__(
        self, batch: ClipBatch, prompts: list[Prompt], generator: torch.Generator
    ) -> Corrections | None:
        """Draw the corrections for the prompted objects of a batch.

        Args:
            batch: the clips.
            prompts: the prompts of the batch.
            generator: advanced by one number, unless ``clicks`` is 0. This number and the names of
                video and object seed the clicks of an object.

        Returns:
            The corrections; None: no object is corrected.
        """
        if self.clicks == 0:
            return None
        seed = int(torch.randint(2**62, (1,), generator=generator, device=generator.device).item())
        frames = torch.zeros(batch.num_frames, batch.num_objects, dtype=torch.bool)
        for prompt in prompts:
            if prompt.kind != "mask":
                frames[prompt.frame, prompt.objects.cpu()] = True
        annotated, first = batch.annotated.cpu(), frames.to(torch.uint8).argmax(0).tolist()
        prompted = frames.sum(0).tolist()
        clip_of_object = batch.clip_of_object.tolist()
        seeds = []
        for position, clip in enumerate(clip_of_object):
            identity = (batch.names[clip], batch.object_ids[position])
            seeds.append((seed, text_checksum("/".join(map(str, identity)))))
            if not 0 < prompted[position] < self.max_frames:
                continue
            # Seeded by the clip and not by the object, so that all of its objects draw the same
            # frames.
            clip_generator = np.random.default_rng(
                (seed, text_checksum(batch.names[clip]), video_frame(batch, clip, 0))
            )
            order = clip_generator.permutation(batch.num_frames).tolist()
            total = clip_generator.integers(prompted[position], self.max_frames, endpoint=True)
            candidates = [
                t
                for t in order
                if t > first[position] and annotated[t, position] and not frames[t, position]
            ]
            frames[candidates[: total - prompted[position]], position] = True
        if not frames.any():
            return None
        device = batch.masks.device
        return Corrections(frames.to(device), self.clicks, batch.masks, seeds, self.from_truth)
