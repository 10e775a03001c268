"""Prompt protocols: how a tracker is told what to follow in a video whose truth is known.

The video is read once, from its first frame to its last. An object is prompted on the first frame
that shows it and perhaps again later, always before that frame is tracked; what comes after it is
not known to the tracker. Prompts follow from the protocol's seed, the video, the object and the
frame, so that every tracker gets the same ones; correction clicks answer to what it made of them.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from sam2.modeling.sam2_utils import sample_one_point_from_error_center

from sam2kit.config.schema import EvaluationConfig
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.prompts.geometry import box_to_points, mask_center, mask_to_box
from sam2kit.prompts.noise import PromptNoise
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.video_tracker import FrameTracks, TrackingSession

Masks = Mapping[ObjectId, np.ndarray]


@dataclass
class PromptedFrame:
    """One frame of a video that is tracked by a protocol.

    Attributes:
        t: its number.
        truth: object -> bool ``[H,W]``; None where nobody annotated the frame.
        prompted: the objects that were prompted on it.
        objects: all that were prompted up to it, in the order of their numbers.
        tracks: what the tracker says of them; None before the first prompt.
    """

    t: int
    truth: Masks | None
    prompted: list[ObjectId]
    objects: list[ObjectId]
    tracks: FrameTracks | None

    def logits(self, size: tuple[int, int]) -> dict[ObjectId, np.ndarray]:
        """The predictions, float32 ``[H,W]`` at ``size`` (rows, columns), above 0 inside."""
        if self.tracks is None:
            return {}
        return self._by_object(self.tracks.logits(size).cpu().numpy())

    def object_scores(self) -> dict[ObjectId, float]:
        """Logits, above 0 where the tracker sees the object."""
        return {} if self.tracks is None else self._by_object(self.tracks.object_score.tolist())

    def _by_object(self, values: np.ndarray | list) -> dict:
        assert self.tracks is not None
        return {self.objects[n]: v for n, v in zip(self.tracks.objects, values, strict=True)}


@dataclass(frozen=True)
class PromptProtocol:
    """What an object is prompted with, and when.

    Attributes:
        kind: ``mask``, ``box`` (tight) or ``clicks``.
        clicks: on each prompted frame. The first stands on the pixel farthest from all that is not
            the object. Each further one is upstream's ``sample_one_point_from_error_center``: of
            the missed and the wrongly marked pixels, the one deepest in its region; an object
            without an error gets none.
        reprompt_every: an object is prompted again on the first frame that shows it, so many
            frames or more after its last prompt. None: once.
        noise: errors of the prompts (not of correction clicks).
        seed: of the errors.
    """

    kind: str = "mask"
    clicks: int = 1
    reprompt_every: int | None = None
    noise: PromptNoise = field(default_factory=PromptNoise)
    seed: int = 0

    @classmethod
    def from_config(
        cls, config: EvaluationConfig, seed: int, noise: float | None = None
    ) -> PromptProtocol:
        """Return the protocol of a configuration, with ``noise`` in place of its noise level."""
        level = config.noise if noise is None else noise
        errors = PromptNoise(level, tuple(config.noise_kinds))
        return cls(config.protocol, config.clicks, config.reprompt_every, errors, seed)

    def due(self, t: int, truth: Masks | None, last: Mapping[ObjectId, int]) -> list[ObjectId]:
        """The objects to prompt on frame ``t``; ``last`` is the frame of each one's last prompt."""
        pause = float("inf") if self.reprompt_every is None else self.reprompt_every
        return [
            o
            for o, mask in (truth or {}).items()
            if mask.any() and (o not in last or t - last[o] >= pause)
        ]

    def prompt(
        self,
        session: TrackingSession | CopiedMasks,
        t: int,
        truth: Masks,
        numbers: Mapping[ObjectId, int],
        video: str,
        image_size: int,
    ) -> None:
        """Prompt the objects of ``truth`` (none empty) on frame ``t``.

        Args:
            numbers: of each object in the session.
            video: its name, which seeds the errors.
            image_size: side of the model's frames, to which coordinates are scaled.
        """
        masks = np.stack(list(truth.values()))
        size: tuple[int, int] = (masks.shape[1], masks.shape[2])
        objects = torch.tensor([numbers[o] for o in truth])
        drawn = [
            self._draw(mask, np.random.default_rng((self.seed, zlib.crc32(key.encode()), t)))
            for key, mask in ((f"{video}/{o}", mask) for o, mask in truth.items())
        ]
        if self.kind == "mask":
            session.add_prompt(Prompt(t, objects, masks=torch.from_numpy(np.stack(drawn))))
            return
        points = to_resized(np.stack(drawn), size, image_size)
        if self.kind == "box":
            points, labels = box_to_points(points.flatten(1))
        else:
            labels = torch.ones(points.shape[:2], dtype=torch.int32)
        tracks = session.add_prompt(Prompt(t, objects, points=points, labels=labels))
        for _ in range(1, self.clicks):
            predicted = tracks.masks(size)
            wrong = (predicted != masks).any((1, 2))
            if not wrong.any():
                return
            masks, predicted, objects = masks[wrong], predicted[wrong], objects[wrong]
            deepest, labels = sample_one_point_from_error_center(
                torch.from_numpy(masks)[:, None], torch.from_numpy(predicted)[:, None]
            )
            points = to_resized(deepest.numpy(), size, image_size)
            tracks = session.add_prompt(Prompt(t, objects, points=points, labels=labels))

    def _draw(self, mask: np.ndarray, generator: np.random.Generator) -> np.ndarray:
        """Mask ``[H,W]``, box corners ``[2,2]`` or click ``[1,2]``, in pixels of the video."""
        if self.kind == "mask":
            return self.noise.mask(mask, generator)
        if self.kind == "box":
            box = mask_to_box(torch.from_numpy(mask)[None])[0].numpy()
            return self.noise.box(box, mask.shape, generator).reshape(2, 2)
        return self.noise.points(np.array([mask_center(mask)]), mask, generator)


def to_resized(points: np.ndarray, size: tuple[int, ...], image_size: int) -> torch.Tensor:
    """Pixel indices ``[...,2]`` of a frame of ``size`` (rows, columns) as those of the resized one.

    Pixel centres fall on pixel centres: (x + 0.5) * image_size / W - 0.5.
    """
    scale = image_size / np.array([size[1], size[0]])
    return torch.from_numpy(((points + 0.5) * scale - 0.5).astype(np.float32))


class CopiedMasks:
    """A session that never moves: each object's latest mask prompt is its mask on every frame.

    Its score says how little the objects move, and is what a tracker has to beat.
    """

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames
        self._masks: dict[int, torch.Tensor] = {}

    def add_prompt(self, prompt: Prompt) -> FrameTracks:
        assert prompt.masks is not None, "masks alone can be copied"
        self._masks |= dict(zip(prompt.objects.tolist(), prompt.masks, strict=True))
        return self._tracks(prompt.frame)

    def propagate(self, start: int, stop: int) -> Iterator[FrameTracks]:
        return (self._tracks(t) for t in range(start, stop))

    def _tracks(self, t: int) -> FrameTracks:
        logits = torch.stack(list(self._masks.values())) * 20.0 - 10.0
        unknown = torch.full((len(logits),), torch.nan)
        return FrameTracks(t, list(self._masks), logits, unknown, unknown)


def first_visible_frames(source: VideoSource, i: int) -> tuple[dict[ObjectId, int], list[int]]:
    """Return the first frame that shows each object of video ``i``, and the annotated frames."""
    first: dict[ObjectId, int] = {}
    annotated = []
    for t in range(source.num_frames(i)):
        if (masks := source.read_masks(i, t)) is not None:
            annotated.append(t)
            for identity, mask in masks.items():
                if identity not in first and mask.any():
                    first[identity] = t
    return first, annotated


def follow(
    session: TrackingSession | CopiedMasks,
    read_masks: Callable[[int], Masks | None],
    protocol: PromptProtocol,
    video: str,
    image_size: int,
) -> Iterator[PromptedFrame]:
    """Track a video by a protocol, frame by frame from its first to its last.

    Args:
        session: new.
        read_masks: the truth of a frame; see :class:`~sam2kit.data.sources.base.VideoSource`.
        video: its name.
        image_size: of the session's model.
    """
    numbers: dict[ObjectId, int] = {}
    last: dict[ObjectId, int] = {}
    for t in range(session.num_frames):
        truth = read_masks(t)
        due = protocol.due(t, truth, last)
        if truth is not None and due:
            for o in due:
                numbers.setdefault(o, len(numbers))
                last[o] = t
            protocol.prompt(session, t, {o: truth[o] for o in due}, numbers, video, image_size)
        tracks = next(session.propagate(t, t + 1)) if numbers else None
        yield PromptedFrame(t, truth, due, list(numbers), tracks)
