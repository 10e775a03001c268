"""Base class for the exports of annotation tools: videos with drawn shapes and their objects.

A tool's module parses its files to :class:`AnnotatedVideo` entries. This module finds the objects
(:func:`identify`), fills the shapes, and counts what cannot be used.
"""

from __future__ import annotations

from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any

import numpy as np
from loguru import logger

from sam2kit.data.intensity import IntensityRule, VideoScaler
from sam2kit.data.pictures import image_size
from sam2kit.data.rle import decode
from sam2kit.data.sources.base import DEFAULT_FPS, LeftOut, ObjectId, VideoSource
from sam2kit.data.sources.components import match_masks
from sam2kit.data.sources.dropped import DroppedFiles
from sam2kit.data.sources.frame_folders import read_scaled
from sam2kit.data.sources.listing import (
    FRAME_ENDINGS,
    VIDEO_ENDINGS,
    list_folder,
    natural_key,
    read_split,
    sort_files,
    stem,
)
from sam2kit.data.sources.video_decoder import VideoFile
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text

_MAX_CACHED_VIDEOS = 64
ELLIPSE_CORNERS = 64  # of the polygon that replaces an ellipse; off by 0.1 % of its radius


class Shape:
    """A drawn shape: one part of one object on one frame.

    Args:
        label: its class.
        where: its name in error messages: file, and position in it.
        object_id: id of its object. If None (default), :func:`identify` assigns one.
        size: rows and columns of the frame as the tool knows it. None (default): not known.
    """

    def __init__(
        self,
        label: str,
        where: str,
        object_id: ObjectId | None = None,
        size: tuple[int, int] | None = None,
    ) -> None:
        self.label, self.where, self.object_id, self.size = label, where, object_id, size

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        """Fill the shape.

        Args:
            size: rows and columns of the frame.

        Returns:
            ``[H,W]`` bool.

        Raises:
            DataError: the shape cannot be used.
        """
        raise NotImplementedError


class Polygon(Shape):
    """A polygon, or a box or ellipse as a polygon.

    Args:
        corners: ``[N,2]`` x and y, in pixels (0 is the left or upper edge of the first pixel) or,
            if ``relative``, in shares of the frame's width and height.
        relative: whether the corners are shares. A polygon in pixels must be on a frame of its
            ``size``.
        about: as for :class:`Shape`.
    """

    def __init__(self, corners: Any, *about: Any, relative: bool = False, **keys: Any) -> None:
        super().__init__(*about, **keys)
        self.corners, self.relative = np.asarray(corners, np.float64), relative

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        corners = self.corners
        if self.relative:
            corners = corners * [size[1], size[0]]
        else:
            self._check(size)
        return decode([corners.ravel().tolist()], size, self.where)

    def _check(self, size: tuple[int, int]) -> None:
        check_frame_size(self.size, size, self.where)


class Patch(Shape):
    """A mask of a part of the frame.

    Args:
        read: returns ``[h,w]`` bool; raises a ValueError or DataError if it cannot be decoded.
        left, top: position of its first pixel in the frame.
        about: as for :class:`Shape`.
    """

    def __init__(
        self, read: Callable[[], np.ndarray], left: int, top: int, *about: Any, **keys: Any
    ) -> None:
        super().__init__(*about, **keys)
        self.read, self.left, self.top = read, left, top

    def mask(self, size: tuple[int, int]) -> np.ndarray:
        check_frame_size(self.size, size, self.where)
        try:
            patch = self.read()
        except (ValueError, TypeError, OverflowError, OSError, SyntaxError) as error:
            raise DataError(
                f"{self.where}: its mask cannot be decoded: {error}", hint="draw it again"
            ) from error
        mask = np.zeros(size, bool)
        top, left = max(self.top, 0), max(self.left, 0)
        inside = patch[top - self.top : size[0] - self.top, left - self.left : size[1] - self.left]
        mask[top : top + inside.shape[0], left : left + inside.shape[1]] = inside
        return mask


def check_frame_size(stored: tuple[int, int] | None, size: tuple[int, int], where: str) -> None:
    """Raise a DataError if the tool drew on a frame of a different size."""
    if stored is not None and all(stored) and stored != size:
        raise DataError(
            f"{where}: it was drawn on a frame of {stored[0]} rows and {stored[1]} columns, but "
            f"the frame has {size[0]} and {size[1]}",
            hint="use the frames that were annotated, or export the annotations again",
        )


def box_corners(x0: float, y0: float, x1: float, y1: float, rotation: float = 0.0) -> np.ndarray:
    """Return the corners ``[4,2]`` of a box that is turned about its centre.

    Args:
        x0, y0, x1, y1: the sides before the rotation.
        rotation: clockwise, in degrees.
    """
    corners = np.array([[x0, y0], [x1, y0], [x1, y1], [x0, y1]], np.float64)
    return turn(corners, ((x0 + x1) / 2, (y0 + y1) / 2), rotation)


def ellipse_corners(
    x: float, y: float, radius_x: float, radius_y: float, rotation: float = 0.0
) -> np.ndarray:
    """Return corners ``[N,2]`` on an ellipse that is turned clockwise, in degrees."""
    angles = np.linspace(0, 2 * np.pi, ELLIPSE_CORNERS, endpoint=False)
    corners = np.stack([x + radius_x * np.cos(angles), y + radius_y * np.sin(angles)], axis=1)
    return turn(corners, (x, y), rotation)


def turn(corners: np.ndarray, centre: tuple[float, float], rotation: float) -> np.ndarray:
    """Turn points ``[N,2]`` clockwise about a centre, in degrees; y points down."""
    if not rotation:
        return corners
    c, s = np.cos(np.radians(rotation)), np.sin(np.radians(rotation))
    return (corners - centre) @ np.array([[c, s], [-s, c]]) + centre


@dataclass
class AnnotatedVideo:
    """The frames and the shapes of one video.

    Attributes:
        name: its name.
        frames: its image files in order, or its video file.
        shapes: the shapes by frame.
        annotated: the annotated frames; other frames are unannotated, even if they have shapes.
        numbers: the numbers of the frames in the tool. None: they count from 0.
    """

    name: str
    frames: list[Path] | Path
    shapes: dict[int, list[Shape]] = field(default_factory=lambda: defaultdict(list))
    annotated: set[int] = field(default_factory=set)
    numbers: list[int] | None = None


class Problems:
    """Count shapes and frames that cannot be used, by kind of problem.

    Args:
        strict: raise an error for the first one instead.

    Attributes:
        read: the annotation files that were read.
    """

    def __init__(self, strict: bool) -> None:
        self.strict = strict
        self.read: set[Path] = set()
        self.entries: dict[str, LeftOut] = {}

    def reject(self, problem: str, error: DataError, where: str, kind: str = "masks") -> None:
        """Count something that is left out; with ``strict`` raise the error."""
        if self.strict:
            raise error
        known = self.entries.get(problem)
        first = (known.where, known.message) if known else (where, str(error))
        self.entries[problem] = LeftOut(kind, known.count + 1 if known else 1, *first)

    def log(self, root: Path) -> None:
        """Log all problems in one line."""
        if not self.entries:
            return
        logger.warning(
            "{}: {}. The first: {}. dataset.strict=true makes them errors",
            root,
            "; ".join(f"{entry.count} {problem}" for problem, entry in self.entries.items()),
            next(iter(self.entries.values())).message,
        )


BOXES = "boxes, which are filled as if they were masks"


def note_box(problems: Problems, where: str) -> None:
    """Count a box that is used as a mask."""
    error = DataError(
        f"{where} is a box, not a mask",
        hint="draw polygons or masks; a model trained on boxes learns to draw boxes",
    )
    problems.reject(BOXES, error, where, "boxes")


class ShapeDataset(VideoSource):
    """Base class of the sources of annotation tools.

    *Objects.* ``identity`` is ``track`` (every shape must have an id of the tool), ``category``
    (all shapes of a label are one object) or ``auto``: a shape with an id is that object. Of the
    shapes without an id, all with the same label are one object if no frame has two of them.
    Otherwise they are matched from frame to frame by their IoU, as in
    :class:`~sam2kit.data.sources.components.ConnectedObjects`, and named ``LABEL-1`` and so on.

    Shapes that cannot be used are left out and counted, or are errors with ``strict``. Boxes are
    filled, with a warning.

    Args:
        root: the dataset, for messages.
        videos: the videos, in any order.
        problems: what parsing has left out already.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.
        identity: as above.

    Raises:
        DataError: there are no videos or no masks, two videos have the same name, or a shape has
            no id with identity=track.
    """

    def __init__(
        self,
        root: Path,
        videos: Sequence[AnnotatedVideo],
        problems: Problems,
        split: str | None = None,
        identity: str = "auto",
    ) -> None:
        self.root, self._problems = root, problems
        problems.log(root)
        by_name = {video.name: video for video in sorted(videos, key=lambda v: natural_key(v.name))}
        if len(by_name) < len(videos):
            name, _ = Counter(video.name for video in videos).most_common(1)[0]
            raise DataError(
                f"{root} has several videos with the name {name!r}", hint="rename their folders"
            )
        if not any(video.annotated for video in videos):
            first = next(iter(problems.entries.values()), None)
            raise DataError(
                f"{root}: no frame of its {len(videos)} videos has a mask that can be used"
                + (f". The first problem: {first.message}" if first else ""),
                hint="check that the annotations and the frames belong together",
            )
        self.names = list(by_name) if split is None else read_split(split, root, by_name)
        self._videos = [by_name[name] for name in self.names]
        identify(self._videos, identity, root)
        frames = [v.frames if isinstance(v.frames, list) else [v.frames] for v in videos]
        dropped = DroppedFiles(root)
        dropped.add_unread([*problems.read, *chain.from_iterable(frames)], listed=True)
        self._remarks = dropped.report()
        problems.read.clear()  # each DataLoader worker would copy it
        # How frames of more than 8 bits are scaled; data/build.py sets the configured rule.
        self.scaler = VideoScaler(IntensityRule())
        # Opening a video file reads all of its packets, so it is done once per file. The decoder of
        # only one file is kept open.
        self._files: dict[Path, VideoFile] = {}
        self._latest: VideoFile | None = None
        # Per video and frame: the ids of the shapes that are matched from frame to frame.
        self._matched: OrderedDict[int, dict[int, list[ObjectId]]] = OrderedDict()
        # Per video: the shapes that were left out on reading, by frame and number.
        self._unreadable: dict[int, dict[tuple[int, int], tuple[str, str]]] = {}

    def left_out(self) -> list[LeftOut]:
        return list(self._problems.entries.values())

    def frame_numbers(self, i: int) -> list[int] | None:
        """Return the numbers of the frames of video ``i`` in the tool; None: they count from 0."""
        return self._videos[i].numbers

    def labels(self, i: int) -> dict[ObjectId, str]:
        """Return the label of each object of video ``i`` that has an id of the tool."""
        rows = self._videos[i].shapes.values()
        return {s.object_id: s.label for row in rows for s in row if s.object_id is not None}

    def left_out_masks(self, i: int) -> list[LeftOut]:
        unreadable = self._unreadable.get(i)
        if not unreadable:
            return []
        where, message = next(iter(unreadable.values()))
        return [LeftOut("masks", len(unreadable), where, message)]

    def _video_file(self, path: Path) -> VideoFile:
        if path not in self._files:
            self._files[path] = VideoFile(path)
        return self._files[path]

    def num_frames(self, i: int) -> int:
        frames = self._videos[i].frames
        return len(frames) if isinstance(frames, list) else self._video_file(frames).num_frames(0)

    def _check(self, i: int, t: int) -> AnnotatedVideo:
        if not 0 <= t < self.num_frames(i):
            raise IndexError(f"frame {t} of {self.num_frames(i)}")
        return self._videos[i]

    def annotated_frames(self, i: int) -> Iterator[int]:
        return iter(sorted(self._videos[i].annotated))

    def frame_name(self, i: int, t: int) -> str:
        path = self.frame_path(i, t)
        return stem(path.name) if path else f"{t:05d}"

    def frame_path(self, i: int, t: int) -> Path | None:
        frames = self._check(i, t).frames
        return frames[t] if isinstance(frames, list) else None

    def frame_rate(self, i: int) -> float:
        frames = self._videos[i].frames
        return DEFAULT_FPS if isinstance(frames, list) else self._video_file(frames).fps

    def video_path(self, i: int) -> Path | None:
        frames = self._videos[i].frames
        if isinstance(frames, list) or [video.frames for video in self._videos].count(frames) > 1:
            return None  # a video file that several tasks share identifies none of them
        return frames

    def read_frame(self, i: int, t: int) -> np.ndarray:
        frames = self._check(i, t).frames
        if isinstance(frames, list):
            return read_scaled(self, self.scaler, i, t)
        file = self._video_file(frames)
        if self._latest is not None and self._latest is not file:
            self._latest.close()
        self._latest = file
        return file.read_frame(0, t)

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        if t not in self._check(i, t).annotated:
            return None
        masks: dict[ObjectId, np.ndarray] = {}
        unidentified = iter(self._matches(i).get(t, ()))
        for shape, mask in self._fill(i, t):
            object_id = next(unidentified) if shape.object_id is None else shape.object_id
            masks[object_id] = masks[object_id] | mask if object_id in masks else mask
        return masks

    def _fill(self, i: int, t: int) -> list[tuple[Shape, np.ndarray]]:
        """Return the usable shapes on a frame with their masks ``[H,W]``."""
        video = self._videos[i]
        shapes = video.shapes.get(t, [])
        if not shapes:
            return []
        if isinstance(video.frames, list):
            size = image_size(video.frames[t])
        else:
            size = self._video_file(video.frames).size
        filled = []
        for n, shape in enumerate(shapes):
            try:
                filled.append((shape, shape.mask(size)))
            except DataError as error:
                if self._problems.strict:
                    raise
                if not self._unreadable:
                    logger.warning(
                        "Left out a shape that cannot be used: {}. More are not logged; sam2kit "
                        "doctor counts them, and dataset.strict=true makes them errors",
                        error,
                    )
                self._unreadable.setdefault(i, {})[t, n] = shape.where, str(error)
        return filled

    def _matches(self, i: int) -> dict[int, list[ObjectId]]:
        """Return the ids of the shapes without one, by frame of video ``i``."""
        if i not in self._matched:
            video = self._videos[i]
            matched: dict[int, list[ObjectId]] = {}
            latest: defaultdict[str, list[np.ndarray]] = defaultdict(list)
            frames = [
                t
                for t in sorted(video.annotated & video.shapes.keys())
                if any(shape.object_id is None for shape in video.shapes[t])
            ]
            for t in frames:
                groups: defaultdict[str, list[np.ndarray]] = defaultdict(list)
                labels = []
                for shape, mask in self._fill(i, t):
                    if shape.object_id is None:
                        groups[shape.label].append(mask)
                        labels.append(shape.label)
                numbers = {
                    label: iter(match_masks(masks, latest[label]))
                    for label, masks in groups.items()
                }
                matched[t] = [f"{label}-{next(numbers[label])}" for label in labels]
            self._matched[i] = matched
            if len(self._matched) > _MAX_CACHED_VIDEOS:
                self._matched.popitem(last=False)
        return self._matched[i]


def identify(videos: Sequence[AnnotatedVideo], identity: str, root: Path) -> None:
    """Decide which shapes are one object, as :class:`ShapeDataset` describes, and log the rule."""
    shapes = [shape for video in videos for row in video.shapes.values() for shape in row]
    if identity == "category":
        for shape in shapes:
            shape.object_id = shape.label
        return
    unidentified = [shape for shape in shapes if shape.object_id is None]
    if not unidentified:
        return
    if identity == "track":
        raise DataError(
            f"{unidentified[0].where} has no id, and {len(unidentified)} of {len(shapes)} shapes "
            "have none",
            key="dataset.identity",
            hint="use dataset.identity=auto, which matches shapes from frame to frame",
        )
    repeated = {
        label
        for video in videos
        for row in video.shapes.values()
        for label, count in Counter(s.label for s in row if s.object_id is None).items()
        if count > 1
    }
    for shape in unidentified:
        if shape.label not in repeated:
            shape.object_id = shape.label
    rules = []
    if single := {shape.label for shape in unidentified} - repeated:
        rules.append(f"one object per label ({_names(single)})")
    if repeated:
        rules.append(
            f"matched from frame to frame by overlap, because labels repeat within a frame "
            f"({_names(repeated)})"
        )
    logger.info(
        "{}: {} of {} shapes have no id; {}", root, len(unidentified), len(shapes), "; ".join(rules)
    )


def _names(labels: set[str]) -> str:
    names = sorted(labels, key=natural_key)
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(visible_text(name, 40) for name in names[:5]) + more


def find_frames(
    folders: Sequence[Path], video_names: Sequence[str] = (), nested: bool = True
) -> list[Path] | Path:
    """Find the frames of one video: image files in one of the folders, or a video file.

    Args:
        folders: where to look, in this order; a video file is used as it is.
        video_names: file names of the video, best first; compared also without their extension and
            without the prefix that upload servers put before a ``-``.
        nested: whether to look into the only subfolder of a folder, too.

    Raises:
        DataError: there are neither images nor a video.
    """
    for folder in folders:
        if folder.is_file():
            return folder
        if not folder.is_dir():
            continue
        video_files = list_folder(folder, VIDEO_ENDINGS).files
        for wanted in video_names:
            for name in video_files:
                if _same_file(wanted, name):
                    return folder / name
        if files := list_folder(folder, FRAME_ENDINGS).files:
            return [folder / name for name in sort_files(files, folder)]
        if len(video_files) == 1:
            return folder / video_files[0]
        inner = list_folder(folder, ()).folders
        if (
            nested
            and not video_files
            and len(inner) == 1
            and list_folder(folder / inner[0], FRAME_ENDINGS).files
        ):
            return find_frames([folder / inner[0]])
    raise DataError(
        f"no frames or video found in {', '.join(map(str, dict.fromkeys(folders)))}",
        hint="set dataset.data_path to the folder of the frames, or to the video file",
    )


def _same_file(wanted: str, name: str) -> bool:
    """Return whether a file has the wanted name, apart from an upload prefix or its extension."""
    wanted = wanted.replace("\\", "/").rpartition("/")[2]
    names = {wanted, wanted.partition("-")[2]} - {""}
    return name in names or stem(name) in {stem(n) for n in names}
