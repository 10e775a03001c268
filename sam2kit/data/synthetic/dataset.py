"""Generate videos, or composite generated objects onto the frames of another source."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.synthetic.scene import Scene
from sam2kit.data.synthetic.textures import Photos
from sam2kit.utils.errors import DataError

GENERATED_OBJECTS = 3  # maximum per generated video if dataset.synthetic_objects is 0


class _GeneratedSource(VideoSource):
    """Draw the objects of video ``i`` as a :class:`Scene`, for any ``i`` from 0 on."""

    generated = True

    def __init__(self, max_objects: int, seed: int, motion: float, max_distractors: int) -> None:
        _check_at_least(1, max_objects=max_objects)
        _check_at_least(0, seed=seed, motion=motion, max_distractors=max_distractors)
        self.max_objects = max_objects
        self.seed = seed
        self.motion = motion
        self.max_distractors = max_distractors
        self._recent: tuple[int, Scene] | None = None

    def index_in_epoch(self, i: int, epoch: int) -> int:
        # Generation costs nothing extra, so every epoch has new videos.
        return i + epoch * len(self)

    def scene(self, i: int) -> Scene:
        """Return the scene of video ``i``; only the latest one is cached."""
        if self._recent is None or self._recent[0] != i:
            self._recent = i, self._draw(i)
        return self._recent[1]

    def annotated_frames(self, i: int) -> Iterator[int]:
        return iter(range(self.num_frames(i)))

    @abstractmethod
    def _draw(self, i: int) -> Scene: ...

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        return {n: mask for n, mask in self.scene(i).masks(t).items()}


class SyntheticDataset(_GeneratedSource):
    """Generate complete videos with exact masks on every frame.

    One to ``max_objects`` textured objects move, rotate, deform and occlude each other, among
    distractors without masks and in front of a drifting background
    (:class:`sam2kit.data.synthetic.scene.Scene`). The pixels depend only on
    ``(seed, video, frame)``. Every training epoch has new videos.

    Args:
        num_videos: number of videos, at least 1.
        num_frames: number of frames per video, at least 1.
        size: rows and columns, or one number for a square; at least 16 pixels.
        max_objects: maximum number of objects per video, at least 1.
        seed: 0 or more; different seeds give different videos.
        motion: mean movement of an object per frame, as a share of its diameter; 0 or more.
        max_distractors: maximum number of moving shapes without a mask, 0 or more.
        lifelike: share of the videos that resemble filmed video, 0 to 1; see
            :class:`sam2kit.data.synthetic.scene.Scene`.
        photos: folder of images from which lifelike videos take most surfaces. None (default): all
            surfaces are generated.

    Raises:
        DataError: a number that is too small, or no images in ``photos``.
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

    @classmethod
    def from_config(cls, config: DatasetConfig, seed: int) -> SyntheticDataset:
        """Create ``config.synthetic_videos`` videos, each as long as a clip.

        Raises:
            DataError: as the constructor.
        """
        return cls(
            config.synthetic_videos,
            (config.video_clip_length - 1) * config.frame_stride + 1,
            config.image_size,
            config.synthetic_objects or GENERATED_OBJECTS,
            seed,
            config.synthetic_motion,
            lifelike=config.synthetic_lifelike,
            photos=config.synthetic_photos,
        )

    def name(self, i: int) -> str:
        return f"synthetic_{self.seed}_{i:05d}"

    def num_frames(self, i: int) -> int:
        return self.frames_per_video

    def _draw(self, i: int) -> Scene:
        # All objects may be hidden or out of view, so a few scenes are tried. The first attempt has
        # the seed (seed, video), so that videos that need no retry do not change.
        for attempt in range(20):
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
        """Draw whether video ``i`` is lifelike."""
        # A separate generator, so that the share does not change the videos of either kind.
        return bool(np.random.default_rng((i, self.seed)).random() < self.lifelike)

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return self.scene(i).frame(t)


class CompositedDataset(_GeneratedSource):
    """Composite generated objects onto the frames of another source, with exact masks.

    For unannotated videos: the objects are generated as in :class:`SyntheticDataset`, and the
    background is real. Masks of the source are not used. The pixels depend only on the frame of the
    source and ``(seed, video, frame)``. Every training epoch has other objects on the same videos.

    Args:
        source: source of the frames.
        max_objects: maximum number of objects per video, at least 1.
        seed: 0 or more.
        motion: mean movement of an object per frame, as a share of its diameter; 0 or more.
        max_distractors: maximum number of moving shapes without a mask, 0 or more.

    Raises:
        DataError: a number that is too small; on reading, frames of one video that differ in size.
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

    def frame_rate(self, i: int) -> float:
        return self.source.frame_rate(i % len(self))

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
                f"{behind.shape[:2]}, but the first frame has {scene.size}",
                hint="make all frames of a video the same size",
            )
        return scene.frame(t, behind)


def _begins_in_view(scene: Scene) -> bool:
    """Return whether an object covers at least 1 % of the first frame, where it is prompted."""
    return any(mask.mean() >= 0.01 for mask in scene.masks(0).values())


def _shows_objects(scene: Scene) -> bool:
    """Return whether an object is visible on at least one frame."""
    return any(scene.masks(t) for t in range(len(scene.light)))


def _check_at_least(minimum: float, **values: float) -> None:
    for name, value in values.items():
        if value < minimum:
            expected = f"at least {minimum}"
            raise DataError(
                "generated videos",
                key=name,
                value=value,
                expected=expected,
                hint="use a larger number",
            )
