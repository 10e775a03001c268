"""Sources of generated videos, and of generated objects on somebody's frames."""

from __future__ import annotations

from abc import abstractmethod
from pathlib import Path

import numpy as np

from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.synthetic.scene import Scene
from sam2kit.data.synthetic.textures import Photos
from sam2kit.utils.errors import DataError


class _GeneratedSource(VideoSource):
    """Draw the objects of video ``i`` as a :class:`Scene`, for any number ``i`` from 0 up."""

    def __init__(self, max_objects: int, seed: int, motion: float, max_distractors: int) -> None:
        _check_at_least(1, max_objects=max_objects)
        _check_at_least(0, seed=seed, motion=motion, max_distractors=max_distractors)
        self.max_objects = max_objects
        self.seed = seed
        self.motion = motion
        self.max_distractors = max_distractors
        self._recent: tuple[int, Scene] | None = None

    def index_in_epoch(self, i: int, epoch: int) -> int:
        return i + epoch * len(self)

    def scene(self, i: int) -> Scene:
        """Return the scene of video ``i``; the latest one is kept."""
        if self._recent is None or self._recent[0] != i:
            self._recent = i, self._draw(i)
        return self._recent[1]

    @abstractmethod
    def _draw(self, i: int) -> Scene: ...

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        return {n: mask for n, mask in self.scene(i).masks(t).items()}


class SyntheticDataset(_GeneratedSource):
    """Videos generated whole, background included, with true masks on every frame.

    One to ``max_objects`` textured objects move, turn, deform and hide one another, between shapes
    that are no objects and before a drifting background
    (:class:`sam2kit.data.synthetic.scene.Scene`). The pixels follow from ``(seed, video, frame)``
    alone. Every epoch of training sees new videos.

    Args:
        num_videos: the length of the source.
        num_frames: frames in each video.
        size: rows and columns, or one number for a square.
        max_objects: at most this many objects a video.
        seed: 0 or more; videos of different seeds are different.
        motion: mean way of an object on one frame as a share of its diameter.
        max_distractors: at most this many moving shapes without a mask.
        lifelike: share of the videos that are closer to filmed video, 0 to 1; see
            :class:`sam2kit.data.synthetic.scene.Scene`.
        photos: folder of pictures that lifelike videos take most surfaces from; None: none.

    Raises:
        DataError: a number that is too small.
    """

    def __init__(
        self,
        num_videos: int,
        num_frames: int,
        size: int | tuple[int, int] = 128,
        max_objects: int = 3,
        seed: int = 0,
        motion: float = 0.14,
        max_distractors: int = 2,
        lifelike: float = 0.0,
        photos: str | Path | None = None,
    ) -> None:
        self.size = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        super().__init__(max_objects, seed, motion, max_distractors)
        _check_at_least(1, num_videos=num_videos, num_frames=num_frames)
        _check_at_least(16, size=min(self.size))
        self.frames_per_video = num_frames
        self.lifelike = lifelike
        self.photos = None if photos is None else Photos(photos)
        self.names = [self.name(i) for i in range(num_videos)]

    def name(self, i: int) -> str:
        return f"synthetic_{self.seed}_{i:05d}"

    def num_frames(self, i: int) -> int:
        return self.frames_per_video

    def _draw(self, i: int) -> Scene:
        for attempt in range(20):  # all objects may be hidden, or out of view
            scene = Scene(
                np.random.default_rng((self.seed, i, attempt) if attempt else (self.seed, i)),
                self.frames_per_video,
                self.size,
                self.max_objects,
                self.max_distractors,
                self.motion,
                lifelike=self._is_lifelike(i),
                photos=self.photos,
            )
            if _begins_in_view(scene) if scene.lifelike else _shows_objects(scene):
                break
        return scene

    def _is_lifelike(self, i: int) -> bool:
        """Drawn apart from the scene, so that the share changes no video of either kind."""
        return bool(np.random.default_rng((i, self.seed)).random() < self.lifelike)

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return self.scene(i).frame(t)


class CompositedDataset(_GeneratedSource):
    """Generated objects laid over the frames of another source, so that their masks are true.

    For videos that nobody annotated: the objects are those of :class:`SyntheticDataset`, the world
    behind them is real, and masks the source may have are not used. The pixels follow from the
    source's frame and ``(seed, video, frame)``. Every epoch of training sees other objects on the
    same videos.

    Args:
        source: where the frames come from.
        max_objects: at most this many objects a video.
        seed: 0 or more.
        motion: mean way of an object on one frame as a share of its diameter.
        max_distractors: at most this many moving shapes without a mask.

    Raises:
        DataError: a number that is too small, or, on reading, frames of one video that differ in
            size.
    """

    def __init__(
        self,
        source: VideoSource,
        max_objects: int = 3,
        seed: int = 0,
        motion: float = 0.14,
        max_distractors: int = 2,
    ) -> None:
        super().__init__(max_objects, seed, motion, max_distractors)
        self.source = source
        self.names = list(source.names)

    def name(self, i: int) -> str:
        return self.names[i % len(self)]

    def num_frames(self, i: int) -> int:
        return self.source.num_frames(i % len(self))

    def frame_name(self, i: int, t: int) -> str:
        return self.source.frame_name(i % len(self), t)

    def _draw(self, i: int) -> Scene:
        return Scene(
            np.random.default_rng((self.seed, i)),
            self.num_frames(i),
            self.source.read_frame(i % len(self), 0).shape[:2],
            self.max_objects,
            self.max_distractors,
            self.motion,
            background=False,
        )

    def read_frame(self, i: int, t: int) -> np.ndarray:
        behind = self.source.read_frame(i % len(self), t)
        scene = self.scene(i)
        if behind.shape[:2] != scene.size:
            raise DataError(
                f"video {self.name(i)!r}: frame {self.frame_name(i, t)} has size "
                f"{behind.shape[:2]}, the first frame {scene.size}; make all frames the same size"
            )
        return scene.frame(t, behind)


def _begins_in_view(scene: Scene) -> bool:
    """Whether an object covers at least a hundredth of the first frame."""
    return any(mask.mean() >= 0.01 for mask in scene.masks(0).values())


def _shows_objects(scene: Scene) -> bool:
    """Whether there is anything to track at all: an object on some frame."""
    return any(scene.masks(t) for t in range(len(scene.light)))


def _check_at_least(least: float, **values: float) -> None:
    for name, value in values.items():
        if value < least:
            raise DataError(f"generated videos: {name} must be at least {least}, got {value}")
