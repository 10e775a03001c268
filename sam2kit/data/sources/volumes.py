"""Share what sources of medical volumes have in common: the slices of a volume are its frames."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from sam2kit.data.geometry import VolumeGeometry
from sam2kit.data.intensity import IntensityRule
from sam2kit.data.sources.listing import list_folder, natural_key
from sam2kit.data.sources.stacks import StackSource, is_label_folder, label_base
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import visible_text


class VolumeSource(StackSource):
    """Base class for sources whose videos are volumes.

    The volume and the labels of one video are kept in memory. A subclass appends to ``names``,
    ``_geometries`` and ``_shapes`` and loads volumes with the axes of the geometry.

    Args:
        rule: how values are scaled to 8 bits.
    """

    def __init__(self, rule: IntensityRule) -> None:
        super().__init__(rule)
        self.names: list[str] = []
        self._geometries: list[VolumeGeometry] = []
        self._shapes: list[tuple[int, ...]] = []
        self._recent: dict[str, tuple[int, np.ndarray | None]] = {}

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_recent": {}}

    @abstractmethod
    def load(self, i: int) -> np.ndarray:
        """Load the volume of video ``i``, with the axes of its geometry."""

    @abstractmethod
    def has_labels(self, i: int) -> bool:
        """Return whether video ``i`` has labels; then all its slices are annotated."""

    @abstractmethod
    def load_labels(self, i: int) -> np.ndarray | None:
        """Load the labels of video ``i``, with the axes of its geometry; None without labels."""

    def geometry(self, i: int) -> VolumeGeometry:
        return self._geometries[i]

    def num_frames(self, i: int) -> int:
        return self._geometries[i].num_frames(self._shapes[i])

    def frame_size(self, i: int) -> tuple[int, int]:
        return self._geometries[i].frame_size(self._shapes[i])

    def raw_frame(self, i: int, t: int) -> np.ndarray:
        self.check_index(i, t)
        volume = self._cached("volume", i, self.load)
        assert volume is not None
        return self._geometries[i].frame(volume, t)

    def is_annotated(self, i: int, t: int) -> bool:
        return self.has_labels(i)

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
    """The file of a volume and the file of its labels, or None."""

    volume: Path
    labels: Path | None


def find_volumes(
    root: Path, endings: tuple[str, ...], masks_path: Path | None = None
) -> dict[str, VolumeFiles]:
    """Find volumes and their labels in a directory and its subdirectories.

    Labels have the name of their volume with a label suffix (``CASE_seg``), or are in a directory
    such as ``labels`` or ``labelsTr`` under the name of the volume, beside the volume or beside its
    directory (``imagesTr``). The first channel of nnU-Net, ``CASE_0000``, has labels ``CASE``. In a
    directory of one volume they may be called ``label``, ``mask`` or ``seg``.

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
    beside = {(path.parent, stems[path]) for path in paths}
    volumes, labels = [], []
    for path in paths:
        base = label_base(stems[path])
        only_name = is_label_folder(stems[path])
        is_label = (path.parent, base) in beside or (path.parent, f"{base}_0000") in beside
        if is_label_folder(path.parent.name) and path != root:
            is_label = path.parent != root
        (labels if is_label or only_name else volumes).append(path)
    if root.is_file():
        volumes = [root]
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
        key = stems[path].removesuffix("_0000")
        names = {stems[path], key}
        matches = [
            p
            for p in labels
            if (stems[p] in names and p.parent != path.parent and _near(p, path, masks_path))
            or (label_base(stems[p]) in names and _near(p, path, masks_path))
            or (p.parent == path.parent and is_label_folder(stems[p]) and not root.is_file())
        ]
        if len(matches) > 1:
            raise DataError(
                f"{', '.join(map(str, matches[:3]))} may all be the labels of {path}",
                hint="keep one of them, or set dataset.masks_path",
            )
        entries[name] = VolumeFiles(path, matches[0] if matches else None)
    return dict(sorted(entries.items(), key=lambda item: natural_key(item[0])))


def _near(labels: Path, volume: Path, masks_path: Path | None) -> bool:
    """Return whether labels are beside a volume, in a folder of labels there, or one above."""
    if masks_path is not None:
        return True
    inside = is_label_folder(labels.parent.name)
    places = (volume.parent, volume.parent.parent) if inside else ()
    return labels.parent == volume.parent or labels.parent.parent in places


def _walk(root: Path, endings: tuple[str, ...]) -> list[Path]:
    """Return the files in a directory and two levels below it, in natural order."""
    paths: list[Path] = []
    folders = [(root, 0)]
    while folders:
        folder, depth = folders.pop()
        listing = list_folder(folder, endings)
        paths += [folder / name for name in listing.files]
        if depth < 2:
            folders += [(folder / name, depth + 1) for name in listing.folders]
    return sorted(paths, key=lambda path: natural_key(path.relative_to(root).as_posix()))


def _name(root: Path, path: Path, stems: dict[Path, str]) -> str:
    """Name a volume in a subdirectory: by the directory if it is the only volume there."""
    if path.parent.parent == root and path.parent.name.lower().startswith(("images", "volumes")):
        return stems[path]
    others = [p for p in stems if p.parent == path.parent and p != path]
    alone = all(is_label_folder(stems[p]) or label_base(stems[p]) for p in others)
    folder = path.parent.relative_to(root).as_posix()
    return folder if alone else f"{folder}/{stems[path]}"


def volume_stem(path: Path, endings: tuple[str, ...]) -> str:
    """Return the name of a file without its extension, which may have two parts (``.nii.gz``)."""
    name = path.name
    ending = max((e for e in endings if name.lower().endswith(e)), key=len, default="")
    return name[: len(name) - len(ending)] or name
