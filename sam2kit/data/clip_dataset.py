"""Sample clips from a source of videos."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from functools import cache, partial

import numpy as np
import torch
from loguru import logger
from torch.utils.data import Dataset, get_worker_info

from sam2kit.config.schema import AugmentationConfig, DatasetConfig
from sam2kit.data.clip import VideoClip
from sam2kit.data.parallel import errors_from_workers
from sam2kit.data.problems import nothing_visible, place, too_short, unlike_frames, unlike_mask
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.transforms import augment, resize_frames, resize_masks
from sam2kit.utils.errors import DataError

# So many first frames are tried for one that shows as many objects as asked for.
MOST_CHECKED = 256  # videos, before training; a mask of 480p takes some milliseconds
TRIES = 8
Masks = dict[ObjectId, np.ndarray] | None
ReadMasks = Callable[[int], Masks]


class ClipDataset(Dataset[VideoClip]):
    """Clips of ``config.video_clip_length`` frames, squashed to ``config.image_size``.

    *Where a clip begins.* On a frame that shows an object (at the clip's size). In training such a
    frame is drawn: the possible first frames are tried in random order, those first from which a
    whole clip fits into the video. Of the first :data:`TRIES` of them it is the first that shows
    ``config.min_objects``; where none does, the one of them that shows most; where these show
    nothing, the next that shows an object. In validation it is the video's first frame with an
    object.

    *Frames.* Every ``config.frame_stride``-th from there on; between two of a training clip up to
    ``config.max_gap`` more of these are left out, as far as the video's length allows. Where the
    video ends too soon, as one shorter than a clip does, the clip turns back at its last frame
    (0 1 2 1 0 ... of a video of three frames); ``config.short_videos`` may be ``error``, which
    refuses videos shorter than a clip.

    *Objects.* All that are visible on some frame of the clip, except those first seen on its last
    frame, of which nothing is left to track (with one frame, all that are visible on it). Of more
    than ``config.max_objects``, training draws that many and validation keeps the largest on their
    first visible frame. What augmentation takes out of the picture counts as not visible.

    A training clip depends on (seed, epoch, index) alone, a validation clip on its index alone.

    Args:
        source: the videos.
        config: the keys named above, ``video_clip_length``, ``clips_per_video``, ``image_size``
            and ``augment`` are read. None (default): the defaults.
        training: draw ``clips_per_video`` random clips from each video in an epoch, and augment
            them if the configuration says so. False (default): one fixed clip from each video.
        seed: 0 or more; 0 by default.
        augmentation: how strongly to augment. None (default): the defaults.

    Raises:
        DataError: the source is empty, or holds short videos that are to be refused; on reading, a
            video without any object.
    """

    def __init__(
        self,
        source: VideoSource,
        config: DatasetConfig | None = None,
        training: bool = False,
        seed: int = 0,
        augmentation: AugmentationConfig | None = None,
    ) -> None:
        config = DatasetConfig() if config is None else config
        if len(source) == 0:
            raise DataError("the source of clips holds no videos; give one with at least one")
        self.source = source
        self.config = config
        self.training = training
        self.seed = seed
        self.augmentation = augmentation
        # In shared memory, so that loader processes that outlive an epoch see the next one.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # What each loader process reads: its pid, and a video and frame, or -1.
        reading = torch.full((max(config.num_workers, 1), 3), -1)
        self._reading = reading.share_memory_()
        self._tell_short_videos()

    def _tell_short_videos(self) -> None:
        """One line for all of them, or the error that was asked for."""
        needed = (self.config.video_clip_length - 1) * self.config.frame_stride + 1
        short = [i for i in range(len(self.source)) if self.source.num_frames(i) < needed]
        if not short:
            return
        first = too_short(self.source.name(short[0]), self.source.num_frames(short[0]), needed)
        what = f"{len(short)} of {len(self.source)} videos are shorter than a clip: {first}"
        if self.config.short_videos == "error":
            raise DataError(
                f"{what}; leave them out of the split, ask for shorter clips "
                "(dataset.video_clip_length, dataset.frame_stride), or have them played back and "
                "forth (dataset.short_videos=turn_back)"
            )
        logger.info("{}; they are played forwards and backwards", what)

    def check_videos(self) -> None:
        """Read masks of each video up to its first object, so that training need not stop at it.

        Of more than ``MOST_CHECKED`` videos so many are read, evenly spread; of generated ones,
        which always show an object, none.

        Raises:
            DataError: what reading a clip would raise.
        """
        count = len(self.source)
        if self.source.index_in_epoch(0, 1) >= count:
            return
        for i in np.linspace(0, count - 1, min(count, MOST_CHECKED)).round().astype(int).tolist():
            masks = cache(lambda t, i=i: self._resized(self.source.read_masks(i, t)))
            self._first_frame(i, np.zeros(1, int), masks, None)

    def __len__(self) -> int:
        return len(self.source) * (self.config.clips_per_video if self.training else 1)

    @property
    def videos(self) -> str:
        """A text that stands for the videos: their number, names and lengths."""
        lengths = [(name, self.source.num_frames(i)) for i, name in enumerate(self.source.names)]
        total = sum(n for _, n in lengths)
        return f"{len(lengths)} videos, {total} frames, {zlib.crc32(repr(lengths).encode()):08x}"

    @property
    def epoch(self) -> int:
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw the clips of this epoch, also in loader processes that are already running."""
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> VideoClip:
        if not 0 <= index < len(self):
            raise IndexError(f"clip {index} of {len(self)}")
        with errors_from_workers():
            clip = self._clip(index)
            self._note(-1, -1)
            return clip

    def _clip(self, index: int) -> VideoClip:
        i = index % len(self.source)
        generator = None
        if self.training:
            i = self.source.index_in_epoch(i, self.epoch)
            generator = np.random.default_rng((self.seed, self.epoch, index))
        stored = cache(partial(self._stored, i))  # both once for a clip
        masks = cache(lambda t: self._resized(stored(t)))
        steps = self._steps(i, generator)
        start = self._first_frame(i, steps, masks, generator)
        clip = self._read(i, self._window(i, start, steps), stored, masks)
        if generator is not None and self.config.augment:
            clip = augment(clip, generator, self.augmentation, self.config.min_objects)
        return self._select(clip, generator)

    def _stored(self, i: int, t: int) -> Masks:
        self._note(i, t)
        return self.source.read_masks(i, t)

    def _note(self, i: int, t: int) -> None:
        if (info := get_worker_info()) is not None and info.id < len(self._reading):
            self._reading[info.id] = torch.tensor([os.getpid(), i, t])

    def being_read(self, pid: int) -> str | None:
        """The frame that a loader process was at, with its files; None: it was between clips."""
        for reader, i, t in self._reading.tolist():
            if reader == pid and i >= 0:
                return place(self.source, i, t)
        return None

    def _steps(self, i: int, generator: np.random.Generator | None) -> np.ndarray:
        """``[T]`` from 0: how many strides from its first each frame of a clip of video i lies."""
        steps = np.arange(self.config.video_clip_length)
        if generator is not None and self.config.max_gap:
            left_out = generator.integers(0, self.config.max_gap + 1, len(steps) - 1).cumsum()
            room = max((self.source.num_frames(i) - 1) // self.config.frame_stride - steps[-1], 0)
            steps[1:] += np.minimum(left_out, room)
        return steps

    def _first_frame(
        self,
        i: int,
        steps: np.ndarray,
        masks: ReadMasks,
        generator: np.random.Generator | None,
    ) -> int:
        """The first frame of a clip of video i; see the class for the rule."""
        n = self.source.num_frames(i)
        starts: np.ndarray = np.arange(n)
        wanted = 1
        if generator is not None:
            wanted = self.config.min_objects
            fitting = max(n - int(steps[-1]) * self.config.frame_stride, 0)
            starts = np.concatenate(
                [generator.permutation(fitting), fitting + generator.permutation(n - fitting)]
            )
        best, most = 0, 0
        for tried, t in enumerate(starts.tolist(), 1):
            shown = sum(bool(mask.any()) for mask in (masks(t) or {}).values())
            if shown > most:
                best, most = t, shown
            if most >= wanted or (most and tried >= TRIES):
                return best
        if most:
            return best
        raise DataError(nothing_visible(self.source.name(i), n, self.config.image_size))

    def _window(self, i: int, start: int, steps: np.ndarray) -> list[int]:
        """T frame numbers from ``start`` on, turning back at the ends of the video."""
        stride = self.config.frame_stride
        usable = range(start % stride, self.source.num_frames(i), stride)
        last = len(usable) - 1
        places = start // stride + steps
        turned = last - np.abs(places % max(2 * last, 1) - last)
        return [usable[k] for k in turned.tolist()]

    def _resized(self, masks: Masks) -> Masks:
        size = (self.config.image_size,) * 2
        if masks is None:
            return None
        return {o: resize_masks(torch.from_numpy(m), size).numpy() for o, m in masks.items()}

    def _read(self, i: int, window: list[int], stored: ReadMasks, masks: ReadMasks) -> VideoClip:
        """The clip with every object that is visible on one of its frames."""
        side = self.config.image_size
        unlike, faults, frames = set(), [], {}
        for t in dict.fromkeys(window):  # a frame that stands twice in the clip is read once
            self._note(i, t)
            frame = self.source.read_frame(i, t)
            faults.append(unlike_mask(place(self.source, i, t), frame.shape[:2], stored(t)))
            unlike.add(frame.shape[:2])
            resized = resize_frames(torch.from_numpy(frame).permute(2, 0, 1), (side, side))
            frames[t] = resized.permute(1, 2, 0)
        if len(unlike) > 1:
            raise DataError(unlike_frames(self.source.name(i), unlike))
        for fault in filter(None, faults):
            raise DataError(fault)
        by_frame = [masks(t) for t in window]
        seen = {o for shown in by_frame for o, mask in (shown or {}).items() if mask.any()}
        objects = sorted(seen, key=lambda o: (isinstance(o, str), o))
        stacked = torch.zeros(len(window), len(objects), side, side, dtype=torch.bool)
        for k, shown in enumerate(by_frame):
            for n, o in enumerate(objects):
                if shown and o in shown:
                    stacked[k, n] = torch.from_numpy(shown[o])
        annotated = torch.tensor([shown is not None for shown in by_frame])
        return VideoClip(
            # Colours lie side by side in memory, as decoded and as OpenCV and resizing want them.
            frames=torch.stack([frames[t] for t in window]).permute(0, 3, 1, 2),
            masks=stacked,
            annotated=annotated[:, None].expand(-1, len(objects)).clone(),
            name=self.source.name(i),
            frame_indices=list(window),
            object_ids=list(objects),
            size=unlike.pop(),
        )

    def _select(self, clip: VideoClip, generator: np.random.Generator | None) -> VideoClip:
        """The objects that can be tracked, at most ``max_objects`` of them."""
        visible = clip.visible
        first = visible.to(torch.uint8).argmax(0)
        trackable = visible.any(0) & (first <= max(len(visible) - 2, 0))
        kept = trackable.nonzero().flatten().tolist()
        most = self.config.max_objects
        if most is not None and len(kept) > most:
            if generator is not None:
                kept = sorted(generator.choice(kept, most, replace=False).tolist())
            else:
                areas = clip.masks.flatten(2).sum(-1)
                by_area = sorted(kept, key=lambda o: (-int(areas[first[o], o]), o))
                kept = sorted(by_area[:most])
        return clip.select_objects(kept)
