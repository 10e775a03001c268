"""Read CVAT's own format, "CVAT for video 1.1" and "CVAT for images 1.1".

Format: https://docs.cvat.ai/docs/other/xml_format and
https://docs.cvat.ai/docs/dataset_management/formats/format-cvat. What these pages leave open is
taken from ``cvat/apps/dataset_manager/formats/cvat.py`` of https://github.com/cvat-ai/cvat: run
lengths of ``mask`` are row by row and start with background, ``width`` and ``height`` count pixels;
shapes that are not tracked are exported as tracks of one frame, and a mask is never tracked.
"""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree.ElementTree import Element

import numpy as np

from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.coco import list_files
from sam2kit.data.sources.frame_names import group_to_videos
from sam2kit.data.sources.listing import VIDEO_ENDINGS, list_folder, natural_key, stem
from sam2kit.data.sources.shapes import (
    AnnotatedVideo,
    Patch,
    Polygon,
    Problems,
    Shape,
    ShapeDataset,
    box_corners,
    ellipse_corners,
    find_frames,
    note_box,
)
from sam2kit.data.sources.video_decoder import VideoFile
from sam2kit.utils.errors import DataError
from sam2kit.utils.paths import file_name
from sam2kit.utils.readers import MAX_PIXELS, read_xml

ANNOTATIONS = "annotations.xml"
OBJECT_ATTRIBUTE = "object_id"
# Attributes of a shape that name its object, in order of preference.
ID_ATTRIBUTES = (OBJECT_ATTRIBUTE, "track_id", "instance_id")
NOT_MASKS = ("polyline", "points", "cuboid", "skeleton")
FRAME_FOLDERS = ("images", "images/default", "frames", "JPEGImages", "")


class CVATDataset(ShapeDataset):
    """Read tasks that were exported as "CVAT for video 1.1" or "CVAT for images 1.1".

    A task is one video: an XML file, its frames in ``images`` beside it, or its video file.
    ``ROOT`` is such a folder, a folder of them, or the XML file. ``annotation_file`` names XML
    files in other places.

    *Projects.* The XML file of a project has the shapes of all its tasks; ``task_id`` tells them
    apart, and each task is a video of its own, named like the task. Its frames are in a folder
    named like the task, in ``images/SUBSET``, in ``images`` or beside the XML file, or in its video
    file. CVAT writes the frames of all tasks of a subset to one folder, where frames of different
    videos have the same names, so tasks that would share their frames are rejected.

    *Frames.* ``frame`` is the number in ``frame_000012.png``, as CVAT names frames of videos (but
    not in tasks of images), and otherwise the index of the file in natural order, or the frame of
    the video file. Images of "CVAT for images" are found by their names, and grouped into videos by
    :func:`~sam2kit.data.sources.frame_names.group_frames`.

    *Masks* are polygons, masks (run lengths), ellipses and boxes (filled, with a warning). Shapes
    with ``outside="1"`` are not visible; ``occluded`` is ignored. Polylines, points, cuboids and
    skeletons are left out.

    *Annotation.* A frame is annotated if it has at least one visible shape at a key frame and no
    interpolated one (``keyframe="0"``), because interpolation is not ground truth;
    ``keyframes_only=False`` uses interpolated shapes too. CVAT does not record whether a frame
    without shapes was reviewed, so such a frame is unannotated. ``sam2kit convert --to cvat`` adds
    a list of the annotated frames.

    *Objects.* An attribute ``object_id``, ``track_id`` or ``instance_id`` names the object,
    otherwise the track does. If all tracks of a task have a single frame, they are shapes that were
    not tracked, and have no id (see :class:`~sam2kit.data.sources.shapes.ShapeDataset`). In "CVAT
    for images" the group of a shape is its object.

    Args:
        root: as above; with ``annotation_file`` the folder of the frames or the video file.
        annotation_file: XML file, list of files, or pattern. None (default): those in ``root``.
        split, identity: as in :class:`~sam2kit.data.sources.shapes.ShapeDataset`.
        keyframes_only: if False, interpolated shapes are used as ground truth.
        strict: True raises an error for shapes and frames that cannot be used.

    Raises:
        DataError: no XML file, an invalid one, no frames, or no usable shape.
    """

    def __init__(
        self,
        root: str | Path,
        annotation_file: str | Path | None = None,
        split: str | None = None,
        identity: str = "auto",
        keyframes_only: bool = True,
        strict: bool = False,
    ) -> None:
        root, problems = Path(root), Problems(strict)
        files = find_xml(root) if annotation_file is None else list_files(annotation_file)
        videos = []
        problems.read.update(files)
        for file in files:
            folders = [file.parent]
            if annotation_file is not None:
                folders = [root / file.stem, root] if len(files) > 1 else [root]
            videos += _Task(file, folders, keyframes_only, problems).videos()
        super().__init__(root, videos, problems, split, identity)


def find_xml(root: Path) -> list[Path]:
    """List the XML files of a folder or, if it has none, of its subfolders.

    Raises:
        DataError: there are none.
    """
    if root.is_file():
        return [root]
    listing = list_folder(root, (".xml",))
    files = [root / name for name in sorted(listing.files, key=natural_key)]
    if not files:
        for folder in sorted(listing.folders, key=natural_key):
            files += [root / folder / name for name in list_folder(root / folder, (".xml",)).files]
    if not files:
        raise DataError(
            f"{root} and its folders hold no XML files",
            hint="export the task as 'CVAT for video 1.1' and unpack the file",
        )
    return files


class _Part(NamedTuple):
    """The part of an XML file that belongs to one task.

    Attributes:
        name: name of the task.
        about: what the file says about it: ``meta``, or ``task`` in a project.
        folders: where its frames may be, best first.
        elements: its elements ``track`` or ``image``.
    """

    name: str
    about: Element
    folders: list[Path]
    elements: list[Element]


class _Task:
    """Parse one XML file: a task, or a project with several.

    Args:
        file: the file.
        folders: where its frames are.
        keyframes_only, problems: as in :class:`CVATDataset`.
    """

    def __init__(
        self, file: Path, folders: list[Path], keyframes_only: bool, problems: Problems
    ) -> None:
        self.file, self.keyframes_only, self.problems = file, keyframes_only, problems
        self.roots = folders
        self.root = read_xml(file, hint="export the task again")
        if self.root.tag != "annotations":
            raise DataError(
                f"{file} is not CVAT's format: its first element is {self.root.tag!r}",
                hint="export the task as 'CVAT for video 1.1'",
            )
        self.name = file.parent.resolve().name if file.name == ANNOTATIONS else file.stem

    def videos(self) -> list[AnnotatedVideo]:
        """Return the videos of the file: one per task for tracks, one or more for images."""
        elements = self.root.findall("image")
        read = self._from_images if elements else self._from_tracks
        elements = elements or self.root.findall("track")
        if any(element.get("task_id") for element in elements):
            return self._of_project(elements, read)
        meta = self.root.find("meta")
        about = Element("meta") if meta is None else meta
        return read(_Part(self.name, about, _in_each(self.roots, FRAME_FOLDERS), elements))

    def _of_project(
        self, elements: list[Element], read: Callable[[_Part], list[AnnotatedVideo]]
    ) -> list[AnnotatedVideo]:
        """Return the videos of all tasks of a project that have frames."""
        tasks = {e.findtext("id"): e for e in self.root.findall("meta/project/tasks/task")}
        groups: dict[str | None, list[Element]] = {}
        for element in elements:
            groups.setdefault(element.get("task_id"), []).append(element)
        names = {key: file_name(_task_name(tasks.get(key), key)) for key in groups}
        repeated = {name for name, count in Counter(names.values()).items() if count > 1}
        videos: list[AnnotatedVideo] = []
        for key, members in groups.items():
            name = f"{names[key]}-{key}" if names[key] in repeated else names[key]
            subset = file_name(members[0].get("subset") or "default")
            shared = [f"images/{subset}", *FRAME_FOLDERS, subset]
            named = [f"{p}/{name}" if p else name for p in shared]
            about = tasks.get(key)
            part = _Part(
                name,
                Element("task") if about is None else about,
                _in_each(self.roots, [*named, *shared]),
                members,
            )
            try:
                videos += read(part)
            except DataError as error:
                self.problems.reject("tasks without frames", error, str(self.file), "frames")
        self._check_shared(videos)
        return videos

    def _check_shared(self, videos: list[AnnotatedVideo]) -> None:
        """Raise if tasks of a project share frames, because one has overwritten the others."""
        owner: dict[Path, str] = {}
        for video in videos:
            files = [video.frames] if isinstance(video.frames, Path) else video.frames
            for path in files:
                if owner.setdefault(path, video.name) != video.name:
                    raise DataError(
                        f"{self.file}: its tasks {owner[path]!r} and {video.name!r} both have the "
                        f"frame {path}",
                        hint="CVAT writes the frames of all tasks of a subset to one folder; put "
                        f"those of each task into a folder of its own, such as images/{video.name}",
                    )

    def _from_tracks(self, part: _Part) -> list[AnnotatedVideo]:
        sources = [e.text or "" for e in part.about.iter("source") if e.text]
        # In a project, the only subfolder may be the one of another task.
        frames = find_frames(part.folders, sources, nested=part.about.tag != "task")
        video = AnnotatedVideo(part.name, frames)
        size = _size(part.about)
        position = self._positions(video.frames, part.about)
        count = len(position) if position is not None else VideoFile(_path(video)).num_frames(0)
        if position is not None and list(position) != list(range(count)):
            video.numbers = list(position)
        ids = self._track_ids(part.elements)
        interpolated: set[int] = set()
        for track, track_id in zip(part.elements, ids, strict=True):
            label = track.get("label", "object")
            for element in track:
                if element.get("outside") == "1" or element.tag == "attribute":
                    continue
                where = f"{self.file}: track {track.get('id')}, frame {element.get('frame')}"
                frame = _integer(element, "frame", where)
                t = frame if position is None else position.get(frame, -1)
                if not 0 <= t < count:
                    error = DataError(
                        f"{where}: there are {count} frames, and none has this number",
                        hint="use the frames of this task",
                    )
                    self.problems.reject("shapes on missing frames", error, where)
                    continue
                object_id = _object_of(element, track_id)
                if (shape := self._shape(element, label, where, object_id, size)) is None:
                    continue
                video.shapes[t].append(shape)
                video.annotated.add(t)
                if element.get("keyframe") == "0":
                    interpolated.add(t)
        if self.keyframes_only:
            video.annotated -= interpolated
        if (listed := part.about.findtext("sam2kit/annotated_frames")) is not None:
            video.annotated = _numbers(listed, count, self.file)
        return [video]

    def _positions(self, frames: list[Path] | Path, about: Element) -> dict[int, int] | None:
        """Map frame numbers to indices of image files, in their order; None for a video file."""
        if isinstance(frames, Path):
            return None
        stems = [stem(path.name) for path in frames]
        if (stored := about.findtext("sam2kit/frame_numbers")) is not None:
            numbers = [int(n) for n in stored.split(",") if n.isdecimal() and len(n) < 10]
            if len(set(numbers)) == len(stems):
                return {n: t for t, n in enumerate(numbers)}
        is_video = about.findtext(".//mode") != "annotation"
        if is_video and all(s.startswith("frame_") and s[6:].isdecimal() for s in stems):
            return {int(s[6:]): t for t, s in enumerate(stems)}
        # A task may begin later in its video, and its frames may have the numbers of that video.
        start = about.findtext(".//start_frame") or "0"
        matches = [re.search(r"(\d{1,9})$", stem) for stem in stems]
        numbers = [int(match[1]) for match in matches if match]
        begins_later = is_video and start.isdecimal() and 0 < int(start) == next(iter(numbers), 0)
        if begins_later and len(set(numbers)) == len(stems):
            return {n: t for t, n in enumerate(numbers)}
        return {t: t for t in range(len(stems))}

    def _track_ids(self, tracks: list[Element]) -> list[ObjectId | None]:
        """Return the ids of the tracks, or None for all if they are shapes of a single frame."""
        visible = [sum(e.get("outside") != "1" for e in track) for track in tracks]
        frames = {e.get("frame") for track in tracks for e in track if e.get("outside") != "1"}
        if max(visible, default=0) <= 1 and len(frames) > 1:
            return [None] * len(tracks)
        return [_identity(track.get("id")) for track in tracks]

    def _from_images(self, part: _Part) -> list[AnnotatedVideo]:
        images = part.elements
        names = [image.get("name", "") for image in images]
        files = [_image_file(name, part.folders) for name in names]
        groups = group_to_videos(names, self.file)
        video_names = {n: name for name, members in groups.items() for n in members}
        if len(groups) == 1:
            video_names = dict.fromkeys(range(len(names)), part.name)
        elif part.about.tag == "task":  # of a project, in which tasks may have equal folders
            video_names = {n: f"{part.name}/{name}" for n, name in video_names.items()}
        order = [n for members in groups.values() for n in members]
        videos: dict[str, AnnotatedVideo] = {}
        for n in order:
            where = f"{self.file}: image {names[n]!r}"
            file = files[n]
            if file is None:
                error = DataError(
                    f"{where} has no file in {part.folders[0]}",
                    hint="set dataset.data_path to the folder of the images",
                )
                self.problems.reject("frames without a file", error, where, "frames")
                continue
            name = video_names[n]
            video = videos.setdefault(name, AnnotatedVideo(name, [], numbers=[]))
            assert isinstance(video.frames, list) and video.numbers is not None
            t = len(video.frames)
            video.frames.append(file)
            number = _identity(images[n].get("id"))
            video.numbers.append(number if isinstance(number, int) else n)
            size = _integer(images[n], "height", where), _integer(images[n], "width", where)
            for element in images[n]:
                group = element.get("group_id")
                object_id = _object_of(element, _identity(group))
                label = element.get("label", "object")
                if shape := self._shape(element, label, where, object_id, size):
                    video.shapes[t].append(shape)
                    video.annotated.add(t)
        for video in videos.values():
            if video.numbers == list(range(len(video.frames))):  # type: ignore[arg-type]
                video.numbers = None
        return list(videos.values())

    def _shape(
        self,
        element: Element,
        label: str,
        where: str,
        object_id: ObjectId | None,
        size: tuple[int, int] | None,
    ) -> Shape | None:
        """Convert an element to a shape; return None, and count it, if it is not a mask."""
        about = (label, where, object_id, size)
        try:
            if element.tag == "polygon":
                points = [pair.split(",") for pair in element.get("points", "").split(";")]
                return _polygon(np.array(points, np.float64), *about)
            if element.tag == "mask":
                return _mask(element, *about)
            if element.tag in ("box", "ellipse"):
                turn = float(element.get("rotation", 0))
                if element.tag == "ellipse":
                    x, y, a, b = (float(element.attrib[k]) for k in ("cx", "cy", "rx", "ry"))
                    return _polygon(ellipse_corners(x, y, a, b, turn), *about)
                x, y, a, b = (float(element.attrib[k]) for k in ("xtl", "ytl", "xbr", "ybr"))
                shape = _polygon(box_corners(x, y, a, b, turn), *about)
                note_box(self.problems, where)
                return shape
        except (KeyError, ValueError, OverflowError) as fault:
            error = DataError(
                f"{where}: the {element.tag} cannot be read: {fault}", hint="draw it again"
            )
            self.problems.reject("damaged shapes", error, where)
            return None
        if element.tag in NOT_MASKS:
            error = DataError(f"{where} is a {element.tag}, not a mask", hint="draw a polygon")
            self.problems.reject(f"shapes of type {element.tag}", error, where)
        return None


def _in_each(roots: list[Path], folders: Sequence[str]) -> list[Path]:
    """Return the folders in each root; a root that is a file is returned as it is."""
    return [root if root.is_file() else root / name for root in roots for name in folders]


def _task_name(task: Element | None, number: str | None) -> str:
    """Return the name of a task of a project, without the extension of a video."""
    name = "" if task is None else (task.findtext("name") or "").strip()
    return stem(name) if name.lower().endswith(VIDEO_ENDINGS) else name or f"task_{number}"


def _image_file(name: str, folders: list[Path]) -> Path | None:
    """Return the file of an image; leading folders of its name may be missing on disk."""
    parts = [part for part in name.replace("\\", "/").split("/") if part not in ("", "..")]
    for folder in folders:
        for k in range(len(parts)):
            path = folder.joinpath(*parts[k:])
            if path.is_file():
                return path
    return None


def _size(about: Element) -> tuple[int, int] | None:
    """Return the rows and columns of the frames of a video task, if the file has them."""
    element = about.find(".//original_size")
    if element is None:
        return None
    try:
        return int(element.findtext("height", "")), int(element.findtext("width", ""))
    except ValueError:
        return None


def _polygon(corners: np.ndarray, *about: Any) -> Polygon:
    if len(corners) < 3 or not np.isfinite(corners).all():
        raise ValueError("a polygon needs three points or more")
    return Polygon(corners, *about)


def _mask(element: Element, *about: Any) -> Patch:
    left, top, width, height = (int(element.attrib[k]) for k in ("left", "top", "width", "height"))
    if width < 1 or height < 1 or width * height > MAX_PIXELS:
        raise ValueError(f"a mask of {height} rows and {width} columns")
    runs = np.array(element.attrib["rle"].split(","), np.int64)
    if (runs < 0).any() or runs.sum() != width * height:
        raise ValueError(f"its runs must add up to {width * height} pixels, not {runs.sum()}")
    return Patch(partial(_fill_runs, runs, height, width), left, top, *about)


def _fill_runs(runs: np.ndarray, height: int, width: int) -> np.ndarray:
    values = np.arange(len(runs)) % 2 == 1  # background first
    return np.repeat(values, runs).reshape(height, width)


def mask_element(mask: np.ndarray) -> dict[str, str]:
    """Return the attributes ``rle``, ``left``, ``top``, ``width`` and ``height`` of a mask.

    Args:
        mask: ``[H,W]`` bool, not empty.
    """
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, left = int(rows[0]), int(columns[0])
    patch = mask[top : rows[-1] + 1, left : columns[-1] + 1]
    flat = patch.ravel()
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff(np.concatenate([[0], edges, [flat.size]])).tolist()
    if flat[0]:
        runs.insert(0, 0)
    return {
        "rle": ", ".join(map(str, runs)),
        "left": str(left),
        "top": str(top),
        "width": str(patch.shape[1]),
        "height": str(patch.shape[0]),
    }


def _path(video: AnnotatedVideo) -> Path:
    assert isinstance(video.frames, Path)
    return video.frames


def _object_of(element: Element, default: ObjectId | None) -> ObjectId | None:
    """Return the object that an attribute of a shape names, or the default."""
    values = {a.get("name"): (a.text or "").strip() for a in element.iter("attribute")}
    return next((_identity(values[key]) for key in ID_ATTRIBUTES if values.get(key)), default)


def _identity(text: str | None) -> ObjectId | None:
    """Return an id as an integer if it is one, because XML has no types."""
    if text is None or not text:
        return None
    is_number = text.isascii() and text.isdecimal() and len(text) < 16
    return int(text) if is_number and str(int(text)) == text else text


def _integer(element: Element, key: str, where: str) -> int:
    value = element.get(key, "")
    if not (value.isascii() and value.isdecimal() and len(value) < 10):
        raise DataError(
            where, key=key, value=value, expected="a whole number", hint="export the task again"
        )
    return int(value)


def _numbers(text: str, count: int, file: Path) -> set[int]:
    """Parse a list of frames such as ``0-4,7``."""
    frames: set[int] = set()
    for part in filter(None, text.strip().split(",")):
        first, _, last = part.partition("-")
        try:
            begin, end = int(first), int(last or first)
        except ValueError:
            begin, end = -1, -1
        if not 0 <= begin <= end < count:
            raise DataError(
                str(file),
                key="annotated_frames",
                value=part,
                expected=f"frames from 0 to {count - 1}",
                hint="remove the element sam2kit",
            )
        frames.update(range(begin, end + 1))
    return frames


def frame_list(frames: list[int]) -> str:
    """Write sorted frames as a list such as ``0-4,7``, which :class:`CVATDataset` reads."""
    groups: defaultdict[int, list[int]] = defaultdict(list)
    for n, t in enumerate(frames):
        groups[t - n].append(t)
    return ",".join(f"{g[0]}-{g[-1]}" if len(g) > 1 else str(g[0]) for g in groups.values())
