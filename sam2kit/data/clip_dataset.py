"""Sample clips from a source of videos."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable
from dataclasses import replace
from functools import cache, cached_property, partial
from itertools import pairwise

import cv2
import numpy as np
import torch
from loguru import logger
from torch import Tensor
from torch.utils.data import Dataset, get_worker_info

from sam2kit.config.schema import AugmentationConfig, DatasetConfig
from sam2kit.data.clip import VideoClip
from sam2kit.data.clip_windows import nearest_annotated, regular_window, window_to
from sam2kit.data.parallel import errors_from_workers
from sam2kit.data.problems import (
    frame_label,
    mask_size_mismatch,
    mixed_frame_sizes,
    nothing_visible,
    too_short,
    truth_out_of_reach,
)
from sam2kit.data.sources.base import ObjectId, VideoSource, is_new_each_epoch
from sam2kit.data.synthetic.dataset import SyntheticDataset
from sam2kit.data.transforms import augment, resize_frames, resize_mask
from sam2kit.utils.errors import DataError
from sam2kit.utils.sampling import evenly_spaced
from sam2kit.utils.text import plural

# Maximum number of videos checked before training: decoding a mask of 480p takes milliseconds.
MAX_CHECKED_VIDEOS = 256
TRIES = 8  # maximum number of first frames tried for one that shows config.min_objects
Masks = dict[ObjectId, np.ndarray] | None
ReadMasks = Callable[[int], Masks]
ReadResized = Callable[[int], "ResizedMasks | None"]


class ClipDataset(Dataset[VideoClip]):
    """Sample clips of ``config.video_clip_length`` frames from the videos of a source.

    Frames and masks are resized to squares of ``config.image_size`` pixels.

    *First frame.* A clip starts on a frame that shows an object at the size of the clip. In
    validation it is the first such frame of the video. In training it is drawn: first frames are
    tried in random order, those from which a whole clip fits into the video before the others. The
    first one that shows ``config.min_objects`` objects is used. If none of :data:`TRIES` frames
    does, the one with the most objects is used, or the next frame that shows any object.

    *Frames.* The clip continues with every ``config.frame_stride``-th frame. In training, up to
    ``config.max_gap`` further strides are skipped between two frames, as far as the length of the
    video allows. At the end of the video the clip reverses direction (0 1 2 1 0 ... in a video of
    three frames). ``config.short_videos=error`` rejects videos that are shorter than a clip.

    *Sparse annotation.* If none of the frames after the first one is annotated, the clip instead
    leads in equal steps to the annotated frame nearest to its first one, later in the video if
    possible, at most ``config.max_annotation_gap`` frames away; the frames between are tracked
    without a loss. If there is no annotated frame within that distance, the clip starts on another
    annotated frame.

    *Objects.* A clip contains the objects that are visible on at least one of its frames, except
    those first visible on its last frame, because nothing is left to track (in a clip of one frame,
    all visible objects). If there are more than ``config.max_objects``, training draws that many,
    and validation takes those that are largest on their first visible frame. An object that
    augmentation moves out of all frames counts as not visible.

    *Replay.* If ``config.replay`` is above 0, each training epoch also has generated clips
    (:class:`~sam2kit.data.synthetic.dataset.SyntheticDataset`), new ones in every epoch, so that
    this fraction of all its clips is generated. They follow the clips of the source.

    A training clip depends only on (seed, epoch, index), a validation clip only on its index.

    Args:
        source: the videos.
        config: the keys named above, ``clips_per_video`` and ``augment`` are read. None (default):
            the default configuration.
        training: draw ``clips_per_video`` random clips per video and epoch, or ``epoch_clips``
            per epoch, add the generated ones, and augment them if ``config.augment`` is set. False
            (default): one fixed clip per video.
        seed: 0 or more.
        augmentation: strengths of the augmentation. None (default): the default strengths.
        unannotated: also make clips of unannotated videos, without objects, to inspect them.

    Raises:
        DataError: the source is empty, or has short videos and ``config.short_videos`` is
            ``error``; on reading, a video without any object, or whose annotated frames are too far
            apart.
    """

    def __init__(
        self,
        source: VideoSource,
        config: DatasetConfig | None = None,
        training: bool = False,
        seed: int = 0,
        augmentation: AugmentationConfig | None = None,
        unannotated: bool = False,
    ) -> None:
        config = DatasetConfig() if config is None else config
        if len(source) == 0:
            raise DataError("the video source is empty", hint="give a source with videos")
        self.source = source
        self.config = config
        self.training = training
        self.seed = seed
        self.augmentation = augmentation
        self.unannotated = unannotated
        # Shared memory, because persistent DataLoader workers must see the epoch change.
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()
        # What each DataLoader worker is reading: its pid, video and frame (-1: between clips). The
        # main process looks it up after a DataLoader worker died.
        reading = torch.full((max(config.num_workers, 1), 3), -1)
        self._reading = reading.share_memory_()
        self._report_short_videos()
        self._replay = self._generated_clips() if training and config.replay else None

    def _generated_clips(self) -> ClipDataset:
        """Return the generated clips that ``config.replay`` adds to each epoch."""
        share = self.config.replay
        count = max(round(self.num_stored * share / (1 - share)), 1)
        config = replace(
            self.config,
            type="synthetic",
            replay=0.0,
            synthetic_videos=count,
            clips_per_video=1,
            epoch_clips=None,
        )
        source = SyntheticDataset.from_config(config, self.seed)
        return ClipDataset(source, config, True, self.seed, self.augmentation)

    def _report_short_videos(self) -> None:
        """Log or reject the videos that are shorter than a clip, in one message for all."""
        needed = (self.config.video_clip_length - 1) * self.config.frame_stride + 1
        short = [i for i in range(len(self.source)) if self.source.num_frames(i) < needed]
        if not short:
            return
        example = too_short(self.source.name(short[0]), self.source.num_frames(short[0]), needed)
        message = f"{len(short)} of {len(self.source)} videos are shorter than a clip: {example}"
        if self.config.short_videos == "error":
            raise DataError(
                message,
                hint="remove them from the split, use shorter clips (dataset.video_clip_length, "
                "dataset.frame_stride), or play them forwards and backwards "
                "(dataset.short_videos=turn_back)",
            )
        logger.info("{}; they are played forwards and backwards", message)

    def check_videos(self) -> None:
        """Check before training that each video shows an object, and that its masks are readable.

        The masks of each video are read up to its first object. If there are more than
        :data:`MAX_CHECKED_VIDEOS` videos, that many are checked, evenly spaced. Videos with
        generated objects always show one and are not checked.

        Raises:
            DataError: what reading a clip would raise.
        """
        for i in self._checked_videos():
            stored = cache(partial(self.source.read_masks, i))
            masks = cache(lambda t, stored=stored: self._resized(stored(t)))
            self._frames(i, stored, masks, None)

    def has_neighbours(self) -> bool:
        """Check whether clips can have masks on two neighbouring frames.

        The videos of :meth:`check_videos` are read until two such frames are found.
        """
        config = self.config
        length, stride = config.video_clip_length, config.frame_stride
        if length == 1:
            return False
        if len(self._fixed_videos) < len(self.source):
            return True  # generated objects have a mask on every frame
        reach = stride * (1 + (config.max_gap if self.training else 0))
        for i in self._checked_videos():
            for first, second in pairwise(self.source.annotated_frames(i)):
                distance = second - first
                if distance % stride == 0 and distance <= reach:
                    return True
                # Where no other frame is annotated, a clip is made to contain the nearest one.
                steps = min(max(round(distance / stride), 1), length - 1)
                if steps == 1 and distance <= config.max_annotation_gap:
                    return True
        return False

    @cached_property
    def _fixed_videos(self) -> list[int]:
        """Indices of the videos that are the same in every epoch, without generated objects."""
        return [i for i in range(len(self.source)) if not is_new_each_epoch(self.source, i)]

    def _checked_videos(self) -> list[int]:
        """Return the videos to check before training, evenly spaced."""
        videos = self._fixed_videos
        return [videos[k] for k in evenly_spaced(len(videos), MAX_CHECKED_VIDEOS)]

    def __len__(self) -> int:
        return self.num_stored + self.num_replayed

    @property
    def num_stored(self) -> int:
        """Number of clips per epoch of the videos of the source; the first clips are these."""
        if not self.training:
            return len(self.source)
        return self.config.epoch_clips or len(self.source) * self.config.clips_per_video

    @property
    def num_replayed(self) -> int:
        """Number of generated clips per epoch that ``config.replay`` adds."""
        return 0 if self._replay is None else len(self._replay)

    def epoch_text(self) -> str:
        """Return the number of clips per epoch, and how many of them are generated, as text."""
        text = plural(len(self), "clip")
        return f"{text}, {self.num_replayed} of them generated" if self.num_replayed else text

    @property
    def videos(self) -> str:
        """Number of videos and frames, and a checksum of names and lengths, to compare runs."""
        lengths = [(name, self.source.num_frames(i)) for i, name in enumerate(self.source.names)]
        total = sum(n for _, n in lengths)
        return f"{len(lengths)} videos, {total} frames, {zlib.crc32(repr(lengths).encode()):08x}"

    @property
    def epoch(self) -> int:
        """Epoch whose clips are drawn, from 0."""
        return int(self._epoch)

    def set_epoch(self, epoch: int) -> None:
        """Draw the clips of ``epoch``, also in DataLoader workers that are already running."""
        self._epoch.fill_(epoch)
        if self._replay is not None:
            self._replay.set_epoch(epoch)

    def __getitem__(self, index: int) -> VideoClip:
        if not 0 <= index < len(self):
            raise IndexError(f"clip index {index} is out of range for {len(self)} clips")
        if self._replay is not None and index >= self.num_stored:
            return self._replay[index - self.num_stored]
        with errors_from_workers():
            clip = self._clip(index)
            self._record_position(-1, -1)
            return clip

    def _clip(self, index: int) -> VideoClip:
        """Sample, read and augment one clip, and select its objects."""
        # Consecutive clips cycle through all videos, so that part of an epoch covers them evenly.
        i = index % len(self.source)
        generator = None
        if self.training:
            i = self._training_video(index)
            generator = np.random.default_rng((self.seed, self.epoch, index))
        # The search for the first frame and the clip use the same masks: decode and resize once.
        stored = cache(partial(self._read_masks, i))
        masks = cache(lambda t: self._resized(stored(t)))
        window = self._frames(i, stored, masks, generator)
        if generator is None or not self.config.augment:
            return self._read(i, window, stored, masks, partial(self._select, generator=generator))
        # Augmentation decides which objects are visible, so it needs all of them.
        clip = self._read(i, window, stored, masks)
        clip = augment(clip, generator, self.augmentation, self.config.min_objects)
        selected = self._select(clip.visible, lambda t, o: int(clip.masks[t, o].sum()), generator)
        return clip.select_objects(selected)

    def _training_video(self, index: int) -> int:
        """Return the video of a training clip."""
        count = len(self.source)
        if self.config.epoch_clips is None:
            return self.source.index_in_epoch(index % count, self.epoch)
        # An epoch continues the round through all videos where the previous epoch ended. The order
        # of a round is random, because a mixture has the positions of each source in one block.
        cycle, position = divmod(self.epoch * self.num_stored + index, count)
        order = np.random.default_rng((self.seed, cycle, count)).permutation(count)
        return self.source.index_in_epoch(int(order[position]), cycle)

    def _read_masks(self, i: int, t: int) -> Masks:
        self._record_position(i, t)
        return self.source.read_masks(i, t)

    def _record_position(self, i: int, t: int) -> None:
        """Record in shared memory which frame this DataLoader worker reads; -1: none."""
        if (info := get_worker_info()) is not None and info.id < len(self._reading):
            self._reading[info.id] = torch.tensor([os.getpid(), i, t])

    def being_read(self, pid: int) -> str | None:
        """Return the file or the name of the frame that a DataLoader worker was reading.

        Returns None if the process was between two clips, or is not a DataLoader worker of this
        dataset.
        """
        for reader, i, t in self._reading.tolist():
            if reader == pid and i >= 0:
                return frame_label(self.source, i, t)
        return None if self._replay is None else self._replay.being_read(pid)

    def _frames(
        self,
        i: int,
        stored: ReadMasks,
        masks: ReadResized,
        generator: np.random.Generator | None,
    ) -> list[int]:
        """Choose the T frames of a clip of video ``i``; see the class for the rule.

        Args:
            i: index of the video.
            stored: reads the masks of a frame at their stored size.
            masks: reads the masks of a frame at the size of the clip.
            generator: draws the clip. None: the fixed clip of validation.
        """
        steps = self._steps(i, generator)
        start = self._first_frame(i, steps, masks, generator)
        count, stride = self.source.num_frames(i), self.config.frame_stride
        window = regular_window(start, steps.tolist(), count, stride)
        # The masks of the window are read anyway, so this costs nothing for fully annotated videos.
        if len(window) == 1 or any(stored(t) is not None for t in window[1:]):
            return window
        annotated = list(self.source.annotated_frames(i))
        if not annotated and self.unannotated:
            return window
        limit = self.config.max_annotation_gap
        for t in sorted(annotated, key=lambda t: abs(t - start)):
            target = nearest_annotated(t, annotated, limit)
            if target is not None and _shows_object(masks(t)):
                return window_to(t, target, count, len(window), stride)
        if self.unannotated:
            return window
        shown = [t for t in annotated if _shows_object(masks(t))]
        raise truth_out_of_reach(self.source.name(i), annotated, shown, limit)

    def _steps(self, i: int, generator: np.random.Generator | None) -> np.ndarray:
        """Return ``[T]``: distance of each frame from the first one, in strides.

        Args:
            i: index of the video, whose length limits the gaps.
            generator: draws the gaps. None: no gaps.
        """
        steps = np.arange(self.config.video_clip_length)
        if generator is not None and self.config.max_gap:
            skipped = generator.integers(0, self.config.max_gap + 1, len(steps) - 1).cumsum()
            room = max((self.source.num_frames(i) - 1) // self.config.frame_stride - steps[-1], 0)
            steps[1:] += np.minimum(skipped, room)
        return steps

    def _first_frame(
        self,
        i: int,
        steps: np.ndarray,
        masks: ReadResized,
        generator: np.random.Generator | None,
    ) -> int:
        """Choose the first frame of a clip of video ``i``; see the class for the rule."""
        n = self.source.num_frames(i)
        starts: np.ndarray = np.arange(n)
        min_objects = 1
        if generator is not None:
            min_objects = self.config.min_objects
            # From frames before this one a whole clip fits into the video; they are tried first.
            fitting = max(n - int(steps[-1]) * self.config.frame_stride, 0)
            starts = np.concatenate(
                [generator.permutation(fitting), fitting + generator.permutation(n - fitting)]
            )
        best, max_visible = 0, 0
        for tried, t in enumerate(starts.tolist(), 1):
            frame_masks = masks(t)
            visible = 0 if frame_masks is None else len(frame_masks.visible)
            if visible > max_visible:
                best, max_visible = t, visible
            if max_visible >= min_objects or (max_visible and tried >= TRIES):
                return best
        if max_visible or self.unannotated:
            return best
        raise nothing_visible(self.source.name(i), n, self.config.image_size)

    def _resized(self, masks: Masks) -> ResizedMasks | None:
        """Return the masks at the size of the clip."""
        return None if masks is None else ResizedMasks(masks, self.config.image_size)

    def _read(
        self,
        i: int,
        window: list[int],
        stored: ReadMasks,
        masks: ReadResized,
        select: Callable[[Tensor, Callable[[int, int], int]], list[int]] | None = None,
    ) -> VideoClip:
        """Read the clip, with the objects that are visible on one of its frames.

        Args:
            i: index of the video.
            window: T frame numbers.
            stored: reads the masks of a frame at their stored size.
            masks: reads the masks of a frame at the size of the clip.
            select: selects objects as :meth:`_select` does; the others are not resized. None
                (default): all objects.
        """
        side = self.config.image_size
        sizes, mask_errors, frames = set(), [], {}
        for t in dict.fromkeys(window):  # a frame that occurs twice in the clip is read once
            self._record_position(i, t)
            frame = self.source.read_frame(i, t)
            label = frame_label(self.source, i, t)
            mask_errors.append(mask_size_mismatch(label, frame.shape[:2], stored(t)))
            sizes.add(frame.shape[:2])
            resized = resize_frames(torch.from_numpy(frame).permute(2, 0, 1), (side, side))
            frames[t] = resized.permute(1, 2, 0)
        # Frames that differ in size are reported first, because they explain masks that do not fit.
        if len(sizes) > 1:
            raise mixed_frame_sizes(self.source.name(i), sizes)
        for error in filter(None, mask_errors):
            raise error
        masks_by_frame = [masks(t) for t in window]
        seen = [m.visible if m is not None else frozenset() for m in masks_by_frame]
        # Integers before strings: ids of both kinds cannot be compared with each other.
        objects = sorted(frozenset().union(*seen), key=lambda o: (isinstance(o, str), o))
        if select is not None:
            visible = torch.tensor([[o in ids for o in objects] for ids in seen], dtype=torch.bool)

            def area(t: int, o: int) -> int:
                frame_masks = masks_by_frame[t]
                return 0 if frame_masks is None else np.count_nonzero(frame_masks[objects[o]])

            objects = [objects[k] for k in select(visible.view(len(window), -1), area)]
        stacked = torch.zeros(len(window), len(objects), side, side, dtype=torch.bool)
        for k, frame_masks in enumerate(masks_by_frame):
            for n, o in enumerate(objects):
                if frame_masks is not None and o in frame_masks.visible:
                    stacked[k, n] = torch.from_numpy(frame_masks[o])
        annotated = torch.tensor([frame_masks is not None for frame_masks in masks_by_frame])
        return VideoClip(
            # Channels last in memory, as the decoder returns them and OpenCV and resizing need
            # them.
            frames=torch.stack([frames[t] for t in window]).permute(0, 3, 1, 2),
            masks=stacked,
            annotated=annotated[:, None].expand(-1, len(objects)).clone(),
            name=self.source.name(i),
            frame_indices=list(window),
            object_ids=list(objects),
            size=sizes.pop(),
            generated=self.source.is_generated(i),
        )

    def _select(
        self,
        visible: Tensor,
        area: Callable[[int, int], int],
        generator: np.random.Generator | None,
    ) -> list[int]:
        """Select the objects that can be tracked, up to ``config.max_objects``.

        Args:
            visible: ``[T,O]`` bool.
            area: returns the area of object ``o`` on frame ``t`` of the clip.
            generator: draws the objects. None: the largest ones.

        Returns:
            Positions in the O axis, in increasing order.
        """
        if not visible.shape[1]:
            return []
        first = visible.to(torch.uint8).argmax(0)
        # An object first visible on the last frame is prompted there, and nothing is left to track.
        trackable = visible.any(0) & (first <= max(len(visible) - 2, 0))
        selected = trackable.nonzero().flatten().tolist()
        max_objects = self.config.max_objects
        if max_objects is not None and len(selected) > max_objects:
            if generator is not None:
                return sorted(generator.choice(selected, max_objects, replace=False).tolist())
            by_area = sorted(selected, key=lambda o: (-area(int(first[o]), o), o))
            selected = sorted(by_area[:max_objects])
        return selected


class ResizedMasks:
    """Resize the masks of one frame to the size of a clip, each on first access.

    A clip may contain only a few of many objects, and resizing takes longer than decoding.

    Args:
        masks: ``[H,W]`` bool per object.
        side: rows and columns of the clip.
    """

    def __init__(self, masks: dict[ObjectId, np.ndarray], side: int) -> None:
        self._stored, self._side = masks, side
        self._resized: dict[ObjectId, np.ndarray] = {}

    def __getitem__(self, object_id: ObjectId) -> np.ndarray:
        if object_id not in self._resized:
            self._resized[object_id] = resize_mask(self._stored[object_id], self._side)
        return self._resized[object_id]

    @cached_property
    def visible(self) -> frozenset[ObjectId]:
        """The objects whose masks are not empty at the size of the clip."""
        return frozenset(
            o
            for o, mask in self._stored.items()
            if survives_resize(mask, self._side) or (mask.any() and self[o].any())
        )


def survives_resize(mask: np.ndarray, side: int) -> bool:
    """Return True only if a mask ``[H,W]`` cannot become empty when it is resized to a square.

    This holds if the mask contains a rectangle that covers the whole area from which any new pixel
    is interpolated. Smaller masks may or may not become empty.
    """
    left, top, width, height = cv2.boundingRect(mask.view(np.uint8))
    scales = np.array(mask.shape) / side
    # A pixel is interpolated from this distance on both sides; new pixels are ``scales`` apart.
    rows, columns = np.ceil(2 * np.maximum(scales, 1) + scales).astype(int) + 1
    if height < rows or width < columns:
        return False
    inside = mask[top : top + height, left : left + width].view(np.uint8)
    kernel = np.ones((rows, columns), np.uint8)
    return bool(cv2.erode(inside, kernel, borderType=cv2.BORDER_CONSTANT, borderValue=0).any())


def _shows_object(masks: ResizedMasks | None) -> bool:
    return masks is not None and bool(masks.visible)
