"""Prompt a tracker from a video's ground truth with a fixed protocol.

The video is read once, from the first frame to the last. An object is prompted on the first frame
in which it is visible and, depending on the protocol, again later. Prompts are added before their
frame is tracked, so the tracker never uses later frames. Prompts only depend on seed, video, object
and frame, so all trackers get the same ones. The exception is correction clicks, which depend on
the tracker's masks.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch
from sam2.modeling.sam2_utils import sample_one_point_from_error_center

from sam2kit.config.schema import EvaluationConfig
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.prompts.geometry import box_to_points, mask_center, mask_to_box, rescale_points
from sam2kit.prompts.noise import PromptNoise
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.video_tracker import FrameTracks, TrackingSession
from sam2kit.utils.text import text_checksum

Masks = Mapping[ObjectId, np.ndarray]


@dataclass
class PromptedFrame:
    """A tracked frame with its ground truth and prompts.

    Attributes:
        t: the frame number, from 0.
        truth: bool ``[H,W]`` by object, or None if the frame is unannotated.
        prompted: the objects that were prompted on this frame.
        objects: all objects prompted up to this frame; an object's index is its number in the
            session.
        tracks: the tracker's output, or None if no object has been prompted yet.
        void: bool ``[H,W]``, pixels that are not scored, or None.
    """

    t: int
    truth: Masks | None
    prompted: list[ObjectId]
    objects: list[ObjectId]
    tracks: FrameTracks | None
    void: np.ndarray | None = None

    def logits(self, size: tuple[int, int]) -> dict[ObjectId, np.ndarray]:
        """Return the predicted logits by object.

        Args:
            size: rows and columns of the result.

        Returns:
            Float32 ``[H,W]`` by object, above 0 inside the object; empty before the first prompt.
        """
        if self.tracks is None:
            return {}
        return self._by_object(self.tracks.logits(size).cpu().numpy())

    def object_scores(self) -> dict[ObjectId, float]:
        """Return a logit per object, above 0 if the object is predicted to be visible."""
        return {} if self.tracks is None else self._by_object(self.tracks.object_score.tolist())

    def _by_object(self, values: np.ndarray | list) -> dict:
        assert self.tracks is not None
        return {self.objects[n]: v for n, v in zip(self.tracks.objects, values, strict=True)}


@dataclass(frozen=True)
class PromptProtocol:
    """The type, number and times of the prompts of each object.

    Attributes:
        kind: ``mask``, ``box`` (the tight bounding box) or ``clicks``.
        clicks: number of clicks per object on each prompted frame. The first click is on the
            object's pixel farthest from the background. The others correct the tracker's mask:
            upstream's ``sample_one_point_from_error_center`` selects the missed or false-positive
            pixel deepest inside its error region. Objects without errors get no further clicks.
        reprompt_every: prompt an object again on its first visible frame at least N frames after
            its last prompt. If None (default), prompt each object once.
        noise: random errors of the prompts, except for correction clicks.
        seed: seed of the random errors.
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
        """Create the protocol from a configuration.

        Args:
            config: the section ``evaluation``.
            seed: seed of the random errors.
            noise: noise level. If None (default), ``config.noise``.
        """
        level = config.noise if noise is None else noise
        errors = PromptNoise(level, tuple(config.noise_kinds))
        return cls(config.protocol, config.clicks, config.reprompt_every, errors, seed)

    def due(self, t: int, truth: Masks | None, last: Mapping[ObjectId, int]) -> list[ObjectId]:
        """Return the objects to prompt on a frame.

        Args:
            t: the frame number.
            truth: bool ``[H,W]`` by object, or None if the frame is unannotated.
            last: frame of each object's last prompt.
        """
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
        """Prompt objects on a frame.

        Args:
            session: the tracker.
            t: the frame number.
            truth: bool ``[H,W]`` by object, for the objects to prompt; masks must not be empty.
            numbers: each object's number in the session.
            video: name of the video, which is part of the random seed.
            image_size: side length of the model's input in pixels, to which coordinates are scaled.
        """
        masks = np.stack(list(truth.values()))
        size: tuple[int, int] = (masks.shape[1], masks.shape[2])
        objects = torch.tensor([numbers[o] for o in truth])
        # Seed each object separately, so that its prompt does not depend on the other objects.
        drawn = [
            self._draw(mask, np.random.default_rng((self.seed, text_checksum(key), t)))
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
        # Add correction clicks for objects that still have errors.
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
        """Return an object's prompt with random errors, in pixels of the video.

        Returns:
            Mask ``[H,W]``, box corners ``[2,2]`` or click ``[1,2]``; x before y.
        """
        if self.kind == "mask":
            return self.noise.mask(mask, generator)
        if self.kind == "box":
            box = mask_to_box(torch.from_numpy(mask)[None])[0].numpy()
            return self.noise.box(box, mask.shape, generator).reshape(2, 2)
        return self.noise.points(np.array([mask_center(mask)]), mask, generator)


def to_resized(points: np.ndarray, size: tuple[int, ...], image_size: int) -> torch.Tensor:
    """Scale pixel coordinates of a frame to the model's square input.

    Args:
        points: ``[...,2]`` x and y in pixels of the frame.
        size: rows and columns of the frame.
        image_size: side length of the model's input in pixels.

    Returns:
        ``[...,2]`` float32.
    """
    resized = rescale_points(points, size, (image_size, image_size))
    return torch.from_numpy(resized.astype(np.float32))


class CopiedMasks:
    """A session that copies each object's latest mask prompt to every frame.

    This is a baseline that a tracker should exceed; it scores higher if objects move less. The
    methods are the same as in :class:`~sam2kit.tracking.video_tracker.TrackingSession`.
    """

    def __init__(self, num_frames: int) -> None:
        self.num_frames = num_frames
        self._masks: dict[int, torch.Tensor] = {}

    def add_prompt(self, prompt: Prompt) -> FrameTracks:
        assert prompt.masks is not None, "only mask prompts can be copied"
        self._masks |= dict(zip(prompt.objects.tolist(), prompt.masks, strict=True))
        return self._tracks(prompt.frame)

    def propagate(self, start: int, stop: int) -> Iterator[FrameTracks]:
        return (self._tracks(t) for t in range(start, stop))

    def _tracks(self, t: int) -> FrameTracks:
        logits = torch.stack(list(self._masks.values())) * 20.0 - 10.0  # 10 inside, -10 outside
        unknown = torch.full((len(logits),), torch.nan)
        return FrameTracks(t, list(self._masks), logits, unknown, unknown)


def first_visible_frames(source: VideoSource, i: int) -> tuple[dict[ObjectId, int], list[int]]:
    """Return each object's first visible frame in video ``i``, and the annotated frames.

    Objects without a visible pixel are omitted.
    """
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
    """Track a video with a protocol, frame by frame.

    Args:
        session: a new session.
        read_masks: function that reads the ground truth of a frame; see
            :class:`~sam2kit.data.sources.base.VideoSource`.
        protocol: the prompt protocol.
        video: name of the video.
        image_size: side length of the model's input in pixels.

    Yields:
        Every frame of the video, in order.
    """
    numbers: dict[ObjectId, int] = {}
    last: dict[ObjectId, int] = {}
    passes: Iterator[FrameTracks] | None = None
    for t in range(session.num_frames):
        # Prompt before tracking the frame, so that its result includes its prompts.
        truth = read_masks(t)
        due = protocol.due(t, truth, last)
        if truth is not None and due:
            for o in due:
                numbers.setdefault(o, len(numbers))
                last[o] = t
            protocol.prompt(session, t, {o: truth[o] for o in due}, numbers, video, image_size)
        if numbers and passes is None:
            passes = session.propagate(t, session.num_frames)
        tracks = None if passes is None else next(passes)
        yield PromptedFrame(t, truth, due, list(numbers), tracks)
