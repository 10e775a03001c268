"""Base class for sources of medical volumes, whose slices are the frames of a video."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sam2kit.data.geometry import VolumeGeometry
from sam2kit.data.intensity import DEFAULT_RULE, IntensityRule
from sam2kit.data.sources.dropped import geometry_remark
from sam2kit.data.sources.listing import list_folder, natural_key
from sam2kit.data.sources.mask_search import (
    has_label_suffix,
    image_keys,
    is_mask_folder,
    label_base,
)
from sam2kit.data.sources.stacks import StackSource
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text

Grid = tuple[np.ndarray, tuple[int, ...]]  # affine and shape


class Volume(NamedTuple):
    """The content of the headers of one volume.

    Attributes:
        shape: lengths of the axes of the volume.
        affine: from these axes to mm; see :class:`~sam2kit.data.geometry.VolumeGeometry`.
        has_labels: whether it has labels; then all its slices are annotated.
        content: what the source needs to load the volume.
    """

    shape: tuple[int, ...]
    affine: np.ndarray
    has_labels: bool
    content: Any


class VolumeSource(StackSource):
    """Base class for sources whose videos are volumes.

    The volume and the labels of one video are kept in memory. A subclass finds the files
    (:meth:`find`), reads their headers (:meth:`open`), and loads volumes with the axes of the
    geometry.

    Args:
        root: a directory or one file.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.
        masks_path: directory or file of the labels. None (default): as the subclass describes.
        rule: how values are scaled to 8 bits.
        axis: axis of the stored array along which slices become frames. None (default): the default
            of the subclass.
        reverse: play slices from the last to the first.
        strict: True raises an error for a volume that cannot be read. False: it is left out.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        masks_path: str | Path | None = None,
        rule: IntensityRule = DEFAULT_RULE,
        axis: int | None = None,
        reverse: bool = False,
        strict: bool = False,
    ) -> None:
        super().__init__(root, rule, strict)
        files = self.find(None if masks_path is None else Path(masks_path))
        self._volumes = self.open_videos(files, split, self.open)
        self._geometries = [
            VolumeGeometry(volume.affine, self.geometry_axis(axis), reverse)
            for volume in self._volumes
        ]
        self.has_masks = any(volume.has_labels for volume in self._volumes)
        self._recent: dict[str, tuple[int, np.ndarray | None]] = {}
        self.report(path for entry in files.values() for path in self.files_of(entry))

    def check_grid(self, labels: Path, grids: Sequence[Grid], volume: object) -> None:
        """Add a remark if labels and their volume have different positions.

        Args:
            labels: the file of the labels.
            grids: affine and shape of the labels, and of the volume.
            volume: file or name of the volume.
        """
        boxes = []
        for affine, shape in grids:
            corners = np.array(list(product(*[(0, n - 1) for n in shape[:3]])))
            points = corners @ affine[:3, :3].T + affine[:3, 3]
            boxes.append(np.stack([points.min(0), points.max(0)]))
        distance = float(np.linalg.norm(boxes[0] - boxes[1], axis=1).max())
        voxel = float(max(VolumeGeometry(grids[1][0]).spacing))
        if distance > voxel:
            self._dropped.remarks.append(geometry_remark(labels, volume, distance, voxel))

    @abstractmethod
    def find(self, masks: Path | None) -> dict[str, Any]:
        """Return the files of each volume by name, in the form that :meth:`open` takes.

        Raises:
            DataError: there are no volumes.
        """

    @abstractmethod
    def open(self, files: Any) -> Volume:
        """Read the headers of a volume and its labels; raises a DataError if they are damaged."""

    @abstractmethod
    def files_of(self, files: Any) -> Iterable[Path]:
        """Return all files of a volume, also those that are left out on purpose."""

    def geometry_axis(self, axis: int | None) -> int:
        """Return the axis of the geometry for one of the stored array; None is the default."""
        return 2 if axis is None else axis

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_recent": {}}

    @abstractmethod
    def load(self, i: int) -> np.ndarray:
        """Load the volume of video ``i``, with the axes of its geometry."""

    @abstractmethod
    def load_labels(self, i: int) -> np.ndarray | None:
        """Load the labels of video ``i``, with the axes of its geometry; None without labels."""

    def geometry(self, i: int) -> VolumeGeometry:
        return self._geometries[i]

    def num_frames(self, i: int) -> int:
        return self._geometries[i].num_frames(self._volumes[i].shape)

    def frame_size(self, i: int) -> tuple[int, int]:
        return self._geometries[i].frame_size(self._volumes[i].shape)

    def raw_frame(self, i: int, t: int) -> np.ndarray:
        self.check_index(i, t)
        volume = self._cached("volume", i, self.load)
        assert volume is not None
        return self._geometries[i].frame(volume, t)

    def is_annotated(self, i: int, t: int) -> bool:
        return self._volumes[i].has_labels

    def read_labels(self, i: int, t: int) -> np.ndarray | None:
        labels = self._cached("labels", i, self.load_labels)
        return None if labels is None else self._geometries[i].frame(labels, t)

    def _cached(
        self, kind: str, i: int, load: Callable[[int], np.ndarray | None]
    ) -> np.ndarray | None:
        if kind not in self._recent or self._recent[kind][0] != i:
            self._recent.pop(kind, None)  # free the memory before the next volume is loaded
            self._recent[kind] = i, load(i)
        return self._recent[kind][1]


class VolumeFiles(NamedTuple):
    """The files of a volume.

    Attributes:
        volume: the volume itself.
        labels: its labels. None: no labels.
        channels: further channels of the volume, which are not read.
    """

    volume: Path
    labels: Path | None
    channels: tuple[Path, ...] = ()


def find_volumes(
    root: Path, endings: tuple[str, ...], masks_path: Path | None = None
) -> dict[str, VolumeFiles]:
    """Find volumes and their labels in a directory and its subdirectories.

    Labels have the name of their volume with a label suffix or prefix (``CASE_seg``,
    ``CASE_manual``, ``mask_CASE``), or are in a directory such as ``labels`` or ``labelsTr`` under
    the name of the volume, beside the volume or beside its directory (``imagesTr``). Parts of names
    that only images have are ignored: ``volume-0`` has the labels ``segmentation-0``, and
    ``CASE_0000`` of nnU-Net the labels ``CASE``. In a directory of one volume they may be called
    ``label``, ``mask`` or ``seg``. Labels without a volume are not returned, unless there is
    no volume.

    Volumes with the same labels, such as ``CASE_t1`` and ``CASE_t2`` with ``CASE_seg``, are
    channels of one: the first is returned.

    Args:
        root: a directory or one file.
        endings: extensions of the files, in lower case.
        masks_path: a directory of labels, or one file if there is one volume. None (default): as
            above.

    Returns:
        The files by name of the volume, in natural order.

    Raises:
        DataError: two volumes have the same name, or a volume two files of labels.
    """
    paths = [root] if root.is_file() else _walk(root, endings)
    stems = {path: volume_stem(path, endings) for path in paths}
    volumes, labels = ([root], []) if root.is_file() else _split_labels(root, stems)
    if root.is_file():
        labels = [p for p in _walk(root.parent, endings) if p != root]
    if masks_path is not None:
        labels = [masks_path] if masks_path.is_file() else _walk(masks_path, endings)
    stems |= {path: volume_stem(path, endings) for path in labels}
    entries: dict[str, VolumeFiles] = {}
    for path in volumes:
        name = stems[path] if path.parent == root or root.is_file() else _name(root, path, stems)
        if name in entries:
            raise DataError(
                f"{path} and {entries[name].volume} both have the name {visible_text(name)}",
                hint="rename one of them",
            )
        if masks_path is not None and masks_path.is_file() and len(volumes) == 1:
            entries[name] = VolumeFiles(path, masks_path)
            continue
        near = [p for p in labels if _near(p, path, masks_path)]
        matches: list[Path] = []
        for key in image_keys(stems[path], modalities=True):
            matches = matches or [
                p
                for p in near
                if (stems[p] == key and p.parent != path.parent) or label_base(stems[p]) == key
            ]
        if not matches and not root.is_file():
            matches = [p for p in near if p.parent == path.parent and is_mask_folder(stems[p])]
        if len(matches) > 1:
            raise DataError(
                f"{', '.join(map(str, matches[:3]))} may all be the labels of {path}",
                hint="keep one of them, or set dataset.masks_path",
            )
        entries[name] = VolumeFiles(path, matches[0] if matches else None)
    entries = _join_channels(entries)
    return dict(sorted(entries.items(), key=lambda item: natural_key(item[0])))


def _split_labels(root: Path, stems: dict[Path, str]) -> tuple[list[Path], list[Path]]:
    """Divide the files of a directory into volumes and labels by their names."""
    keys = {(path.parent, key) for path, name in stems.items() for key in image_keys(name, True)}
    volumes: list[Path] = []
    labels: list[Path] = []
    orphans: list[Path] = []
    for path, name in stems.items():
        base = label_base(name)
        in_folder = is_mask_folder(path.parent.name) and path.parent != root
        if in_folder or is_mask_folder(name) or (base and (path.parent, base) in keys):
            labels.append(path)
        elif has_label_suffix(name):
            orphans.append(path)
        else:
            volumes.append(path)
    return (volumes, labels + orphans) if volumes else (orphans, labels)


def _join_channels(entries: dict[str, VolumeFiles]) -> dict[str, VolumeFiles]:
    """Keep the first of the volumes with the same labels, and the first channel of nnU-Net."""
    joined: dict[str, VolumeFiles] = {}
    first_of: dict[Path | None, str] = {}
    for name in sorted(entries, key=natural_key):
        entry = entries[name]
        case, _, channel = name.rpartition("_")
        first = first_of.get(entry.labels)
        if case and len(channel) == 4 and channel.isdecimal() and f"{case}_0000" in entries:
            first = case if channel != "0000" else first
            name = case
        if first in joined:
            channels = (*joined[first].channels, entry.volume)
            joined[first] = joined[first]._replace(channels=channels)
            continue
        if entry.labels is not None:
            first_of[entry.labels] = name
        joined[name] = entry
    return joined


def _near(labels: Path, volume: Path, masks_path: Path | None) -> bool:
    """Return whether labels are beside a volume, in a folder of labels there, or one above."""
    if masks_path is not None:
        return True
    inside = is_mask_folder(labels.parent.name)
    places = (volume.parent, volume.parent.parent) if inside else ()
    return labels.parent == volume.parent or labels.parent.parent in places


def _walk(root: Path, endings: tuple[str, ...]) -> list[Path]:
    """Return the files in a directory and three levels below it, in natural order."""
    paths: list[Path] = []
    folders = [(root, 0)]
    while folders:
        folder, depth = folders.pop()
        listing = list_folder(folder, endings)
        paths += [folder / name for name in listing.files]
        if depth < 3:
            folders += [(folder / name, depth + 1) for name in listing.folders]
    return sorted(paths, key=lambda path: natural_key(path.relative_to(root).as_posix()))


def _name(root: Path, path: Path, stems: dict[Path, str]) -> str:
    """Name a volume in a subdirectory: by the directory if it is the only volume there."""
    if path.parent.parent == root and path.parent.name.lower().startswith(("images", "volumes")):
        return stems[path]
    others = [p for p in stems if p.parent == path.parent and p != path]
    alone = all(is_mask_folder(stems[p]) or label_base(stems[p]) for p in others)
    folder = path.parent.relative_to(root).as_posix()
    return folder if alone else f"{folder}/{stems[path]}"


def volume_stem(path: Path, endings: tuple[str, ...]) -> str:
    """Return the name of a file without its extension, which may have two parts (``.nii.gz``)."""
    name = path.name
    ending = max((e for e in endings if name.lower().endswith(e)), key=len, default="")
    return name[: len(name) - len(ending)] or name
