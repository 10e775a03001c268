"""Correction clicks: on chosen frames, clicks where a prediction is wrong, made while tracking."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sam2kit.config.schema import DatasetConfig
from sam2kit.config.validation import check_dataset
from sam2kit.data.clip import ClipBatch
from sam2kit.prompts.geometry import sample_points
from sam2kit.prompts.prompt import Prompt, video_frame


@dataclass(eq=False)
class Corrections:
    """Which objects are corrected on which frames, and the truth that the clicks are made from.

    Attributes:
        frames: ``[T,O]`` bool.
        clicks: clicks on each such frame, one decoder pass each, at least 1.
        masks: ``[T,O,H,W]`` bool, the truth.
        seeds: of each object; its clicks depend on this, the frame and the click's number alone.
        from_truth: probability that a click falls anywhere on the true object instead.
    """

    frames: Tensor
    clicks: int
    masks: Tensor
    seeds: Sequence[tuple[int, ...]]
    from_truth: float = 0.0

    def click(
        self, frame: int, number: int, objects: Tensor, predicted: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The next click for each of N objects.

        Args:
            frame: position in the clip.
            number: of the click on this frame, from 0.
            objects: ``[N]`` int64, positions in the batch's O axis.
            predicted: ``[N,H,W]`` bool, the masks to correct.

        Returns:
            points ``[N,1,2]`` float32 (x, y) and labels ``[N,1]`` int32, on the masks' device.
        """
        truth = self.masks[frame, objects].cpu().numpy()
        clicks = []
        for index, t, p in zip(objects.tolist(), truth, predicted.cpu().numpy(), strict=True):
            generator = np.random.default_rng((*self.seeds[index], frame, number))
            if generator.random() < self.from_truth:
                p = np.zeros_like(t)
            clicks.append(correction_click(t, p, generator))
        points = torch.from_numpy(np.stack([point for point, _ in clicks]))[:, None]
        labels = torch.tensor([[label] for _, label in clicks], dtype=torch.int32)
        return points.to(self.masks.device), labels.to(self.masks.device)


def correction_click(
    truth: np.ndarray, predicted: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """A pixel on which prediction and truth differ, all equally likely.

    Where they are equal it is a pixel of the background (upstream's rule), or of the object when
    that fills the frame.

    Args:
        truth, predicted: bool ``[H,W]``.

    Returns:
        the point ``[2]`` float32, x and y, and its label: 1 on the true object, 0 off it.
    """
    region = truth ^ predicted
    if not region.any():
        region = truth if truth.all() else ~truth
    point = sample_points(region, 1, generator)[0]
    return point, int(truth[int(point[1]), int(point[0])])


@dataclass(frozen=True)
class CorrectionGenerator:
    """Draws the frames that receive correction clicks.

    An object whose prompt is a mask receives none. Any other is corrected on all frames on which
    it is prompted and, if these are fewer than ``max_frames``, on further annotated ones behind
    the first: in all a number drawn from the number of prompted frames to ``max_frames``. This is
    the schedule of upstream's ``SAM2Train``. The frames are drawn once a clip, so that its objects
    are corrected together.

    Args:
        clicks: on each corrected frame; 0: no corrections at all.
        max_frames: at most this many corrected frames an object.
        from_truth: see :class:`Corrections`.

    Raises:
        ConfigError: a number out of its range.
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
        """The generator that a data set's configuration asks for."""
        return cls(
            config.correction_clicks, config.max_correction_frames, config.correction_from_truth
        )

    def __call__(
        self, batch: ClipBatch, prompts: list[Prompt], generator: torch.Generator
    ) -> Corrections | None:
        """Corrections for the objects of ``batch`` that ``prompts`` prompt; None: there are none.

        ``generator`` is advanced by one number if there can be any; that number and the names of
        video and object seed an object's clicks.
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
            seeds.append((seed, zlib.crc32("/".join(map(str, identity)).encode())))
            if not 0 < prompted[position] < self.max_frames:
                continue
            own = np.random.default_rng(
                (seed, zlib.crc32(batch.names[clip].encode()), video_frame(batch, clip, 0))
            )
            order = own.permutation(batch.num_frames).tolist()
            extra = own.integers(prompted[position], self.max_frames, endpoint=True)
            free = [
                t
                for t in order
                if t > first[position] and annotated[t, position] and not frames[t, position]
            ]
            frames[free[: extra - prompted[position]], position] = True
        if not frames.any():
            return None
        device = batch.masks.device
        return Corrections(frames.to(device), self.clicks, batch.masks, seeds, self.from_truth)
