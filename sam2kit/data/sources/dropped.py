"""Collect the unread parts of a dataset, and report them as remarks."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from loguru import logger

from sam2kit.data.sources.base import GEOMETRY, IGNORED, NOTE, ORDER, Remark
from sam2kit.data.sources.listing import (
    FRAME_ENDINGS,
    OTHER_PICTURES,
    STACK_ENDINGS,
    SYSTEM_FOLDERS,
    VIDEO_ENDINGS,
    list_folder,
    log_ignored,
)
from sam2kit.data.sources.mask_search import (
    has_label_suffix,
    is_frame_folder,
    is_mask_folder,
    label_base,
)
from sam2kit.utils.errors import DataError
from sam2kit.utils.paths import unpack_hint
from sam2kit.utils.text import visible_text

# Files in which annotation tools and microscopy programs save masks, and which no source reads.
OTHER_LABELS = (".npy", ".mat", ".roi")
# Text in the first bytes of the files of annotation tools. YouTube-VOS, nnU-Net and others have
# JSON files without masks.
_ANNOTATIONS = re.compile(
    rb'"(?:shapes|segmentations?|polygons?|regions|masklet|imagePath|file_names?|_via_img_metadata)"'
    rb'|"annotations"\s*:\s*\[|<annotations?>'
)
HEAD_BYTES = 1 << 16  # read from a file to recognise it
MAX_HEADS = 64  # files to recognise
MAX_FOLDERS = 256  # folders to list in which nothing is read
MAX_READ_FOLDERS = 1 << 10  # folders to list in all; there may be one per video
# Levels to list below a folder in which something is read: SET/JPEGImages/480p/VIDEO of DAVIS.
MAX_DEPTH = 4


@dataclass
class DroppedFiles:
    """Collect unread files and folders by kind.

    Attributes:
        root: the dataset.
        labels: files of labels that belong to no video.
        mask_videos: videos of masks beside the videos.
        coded_labels: files with masks in a form that is not read, such as DICOM-SEG.
        jpeg_masks: JPEG files in folders of masks.
        other_masks: further kinds of masks beside the frames.
        orphans: folders of masks without frames.
        subfolders: folders with images in folders of frames.
        loose_frames: frames beside folders of videos.
        unclear_orders: folders of frames whose order depends on how names are read.
        others: names of other files.
        remarks: further remarks.
        is_listed: whether an annotation file lists the files to read.
        has_masks: whether masks are read. If so, other annotation files are only noted.
    """

    root: Path
    labels: list[Path] = field(default_factory=list)
    mask_videos: list[Path] = field(default_factory=list)
    coded_labels: list[Path] = field(default_factory=list)
    jpeg_masks: list[Path] = field(default_factory=list)
    other_masks: list[Path] = field(default_factory=list)
    orphans: list[Path] = field(default_factory=list)
    subfolders: list[Path] = field(default_factory=list)
    loose_frames: list[Path] = field(default_factory=list)
    unclear_orders: list[Path] = field(default_factory=list)
    others: list[Path] = field(default_factory=list)
    remarks: list[Remark] = field(default_factory=list)
    is_listed: bool = False
    has_masks: bool = True

    def add(self, folder: Path, names: Sequence[str]) -> None:
        """Add names in a folder that are neither frames nor masks."""
        self.others += [folder / name for name in names]

    def add_data(self, folder: Path, names: Sequence[str]) -> None:
        """Add those names in a folder that may be data: archives, videos and images."""
        self.add(folder, [name for name in names if _may_be_data(name)])

    def add_numbering(self, first: int | None, *folders: Path) -> None:
        """Note the number that masks give to the first frame; None: unknown, 0 is assumed."""
        if first == 0 or not folders:
            return
        text = f"mask numbers count frames from {first or 0}"
        if first is None:
            text += "; if yours count from 1, rename them, or add the mask of the last frame"
        self.note(min(folders), text)

    def add_unread(
        self,
        read: Iterable[str | Path],
        has_masks: bool = True,
        listed: bool = False,
        skip: Callable[[str], bool] | None = None,
    ) -> None:
        """Add the files in the dataset that may be data and that a source does not read.

        The folders from the dataset down to the files that are read are listed (the first
        thousand of them), and up to four levels of the other folders in them.

        Args:
            read: the files that the source reads.
            has_masks: whether it has found masks. If not, files of other programs are added.
            listed: whether an annotation file lists the files to read. Other images and videos
                are then a note: the annotation file may leave them out on purpose.
            skip: returns whether to skip a folder of this name. None (default): skip
                none.
        """
        if not self.root.is_dir():
            return
        self.is_listed, self.has_masks = listed, has_masks
        endings = (*FRAME_ENDINGS, *STACK_ENDINGS, *([] if has_masks else OTHER_LABELS))
        unlisted: list[Path] = []
        for path in _unread_files(self.root, read, skip):
            name, bare = path.name.lower(), _bare(path.name)
            in_masks = is_mask_folder(path.parent.name)
            is_label = in_masks or has_label_suffix(bare) or is_mask_folder(bare)
            if listed and not in_masks and name.endswith((*FRAME_ENDINGS, *VIDEO_ENDINGS)):
                unlisted.append(path)
            elif is_label and name.endswith(endings) and name[0] != ".":
                self.labels.append(path)
            else:
                self.others.append(path)
        if unlisted:
            text = f"{_not_read(unlisted, 'image{} or video{}')}: no annotation file lists them"
            self.note(min(unlisted), text)

    def add_masks_beside(self) -> None:
        """Add a remark if the dataset is part of a larger one that has masks."""
        root = self.root.resolve()
        for levels, folder in enumerate((root, *root.parents[:2]), 1):
            is_sequence = re.fullmatch(r"\d{2,3}", folder.name) is not None
            is_frames = is_frame_folder(folder.name) or folder.name.lower().startswith("imagest")
            if folder.parent == folder or not (is_sequence or is_frames):
                continue
            try:
                _, names, files = list_folder(folder.parent, ())
            except DataError:  # no permission
                return
            truth = (f"{folder.name}_GT", f"{folder.name}_ST") if is_sequence else ()
            masks = [n for n in names if n in truth or (is_frames and is_mask_folder(n))]
            exports = [n for n in sorted(files) if n.lower().endswith((".json", ".xml"))]
            exports = [n for n in exports[:MAX_HEADS] if is_annotation_file(folder.parent / n)]
            if masks or (is_frames and exports):
                # As the user wrote it: a relative path stays relative.
                outer = Path(os.path.normpath(os.path.join(self.root, *[".."] * levels)))
                path = outer / min(masks or exports)
                has_key = is_frames and levels == 1 and masks
                key = f", or set {shlex.quote(f'dataset.masks_path={path}')}" if has_key else ""
                message = f"it may contain the masks; open {outer} instead{key}"
                self.remarks.append(Remark(IGNORED, str(path), message))
                return

    def note(self, where: Path, message: str) -> None:
        """Add a note about how the data are read."""
        self.remarks.append(Remark(NOTE, str(where), message))

    def report(self) -> list[Remark]:
        """Log what is not read, and return the remarks about what may be data."""
        unread, further = list(self._remarks()), self.remarks
        for remarks, note_level in ((unread, "DEBUG"), (further, "INFO")):
            for remark in remarks:
                level = note_level if remark.kind == NOTE else "WARNING"
                where, message = visible_text(remark.where), visible_text(remark.message)
                logger.log(level, "{}: {}", where, message)
        log_ignored(self.root, [visible_text(path.name) for path in self.others])
        return [*unread, *further]

    def _remarks(self) -> Iterator[Remark]:
        for paths, noun, fix in self._groups():
            if paths:
                yield _remark(IGNORED, paths, f"{_not_read(paths, noun)}; {fix}")
        if archives := [path for path in self.others if unpack_hint(path)]:
            command = unpack_hint(min(archives))
            yield _remark(IGNORED, archives, f"{_not_read(archives, 'archive{}')}; {command}")
        if paths := self.unclear_orders:
            yield _remark(
                ORDER,
                paths,
                "frame numbers are read as decimals (1.25 before 1.5); if the part after the point "
                "is a number of its own (1.5 before 1.25), rename the frames, for example to "
                "00000, 00001, ...",
            )
        if paths := self._annotation_files():
            noun, fix = "annotation file{}", "pass the file to use as the data path"
            kind = NOTE if self.has_masks else IGNORED
            yield _remark(kind, paths, f"{_not_read(paths, noun)}; {fix}")

    def _groups(self) -> Iterator[tuple[Sequence[Path], str, str]]:
        """Yield files that are not read, what they are, and the fix; masks first."""
        noun = "label file{} without a video"
        fix = "add the video, name labels like it (VIDEO_labels, labels/VIDEO), or set "
        if self.is_listed:
            noun = "file{} in a folder of masks"
            fix = "the annotation file has the masks; to read these, set dataset.type=video and "
        yield self.labels, noun, f"{fix}dataset.masks_path"
        if self.mask_videos:
            video = min(self.mask_videos)
            folder = video.parent / "masks" / (label_base(video.stem) or video.stem)
            command = shlex.join(["ffmpeg", "-i", str(video), "-start_number", "0"])
            target = shlex.quote(str(folder / "%05d.png"))
            yield (
                self.mask_videos,
                "video{} of masks",
                "rename it if it has no masks; to read it, set dataset.mask_values=threshold after "
                f"mkdir -p {shlex.quote(str(folder))} && {command} {target}",
            )
        yield (
            self.coded_labels,
            "file{} with segmentations",
            "convert to NIfTI label volumes on the grid of the series",
        )
        yield self.jpeg_masks, "JPEG file{} among the masks", "export masks as PNG"
        yield self.other_masks, "further mask{} beside the frames", "remove them if not needed"
        yield (
            self.orphans,
            "folder{} of masks without frames",
            "add the frames or remove the masks",
        )
        yield (
            self.subfolders,
            "folder{} of images in a folder of frames",
            "make each a separate video, or delete what is not needed",
        )
        yield (
            self.loose_frames,
            "image{} beside the folders of videos",
            "move what is needed into a separate folder",
        )
        yield (
            [p for p in self._ending(FRAME_ENDINGS) if p.suffix.lower() not in STACK_ENDINGS],
            "image{} beside the data",
            "move what is needed to another folder, and read it with dataset.type=video",
        )
        yield (
            self._ending(STACK_ENDINGS),
            "stack{} or volume{} of a different kind",
            "move to another folder, or convert to the kind of the others",
        )
        yield self._ending(OTHER_PICTURES), "image{} of a different format", "convert to PNG"
        yield (
            self._ending(VIDEO_ENDINGS),
            "video file{} beside other data",
            "move to another folder, and read it with dataset.type=files",
        )
        yield (
            [path for path in self.others if path.name.lower() in SYSTEM_FOLDERS],
            "folder{} of the operating system or a file server",
            "delete what is not needed",
        )

    def _annotation_files(self) -> list[Path]:
        files = self._ending((".json", ".xml"))
        return [path for path in files[:MAX_HEADS] if is_annotation_file(path)]

    def _ending(self, endings: tuple[str, ...]) -> list[Path]:
        return [
            path
            for path in self.others
            if path.name.lower().endswith(endings) and not path.name.startswith(".")
        ]


def is_annotation_file(path: Path) -> bool:
    """Return whether a JSON or XML file begins as the files of annotation tools do."""
    try:
        with path.open("rb") as file:
            return bool(_ANNOTATIONS.search(file.read(HEAD_BYTES)))
    except OSError:
        return False


def geometry_remark(labels: Path, volume: object, distance: float, voxel: float) -> Remark:
    """Describe labels that are not at the position of their volume.

    Args:
        labels: the file of the labels.
        volume: the file or the name of the volume.
        distance: distance of the two grids in mm.
        voxel: the longest side of a voxel in mm.
    """
    message = (
        f"the labels are {distance:.3g} mm away from {volume}, whose voxels have up to "
        f"{voxel:.3g} mm; the grids are treated as equal; check that they belong together, or "
        "export the labels on the grid of the volume"
    )
    return Remark(GEOMETRY, str(labels), message)


def _may_be_data(name: str) -> bool:
    """Return whether a name that is neither frame nor mask may still be data."""
    endings = (*OTHER_PICTURES, *VIDEO_ENDINGS, *SYSTEM_FOLDERS, ".json", ".xml")
    return name[0] != "." and bool(name.lower().endswith(endings) or unpack_hint(name))


def _bare(name: str) -> str:
    """Return a file name without its one or two extensions."""
    return re.sub(r"(\.ome|\.nii)?\.[^.]+$", "", name, flags=re.IGNORECASE)


def _unread_files(
    root: Path, read: Iterable[str | Path], skip: Callable[[str], bool] | None
) -> Iterator[Path]:
    """Yield the files in a dataset that a source does not read, and system folders."""
    names: dict[str, set[str]] = {}
    for path in read:
        folder, name = os.path.split(path)
        names.setdefault(folder, set()).add(name)
    start = os.path.abspath(root)
    inside: dict[str, set[str]] = {start: set()}  # what is read, by folder
    for folder, files in names.items():
        folder = os.path.abspath(folder)
        inside.setdefault(folder, set()).update(files)
        while folder.startswith(start + os.sep):
            folder = os.path.dirname(folder)
            inside.setdefault(folder, set())
    folders = [(start, Path(root), 0)]
    others = 0
    for absolute, below, depth in folders:
        try:
            listing = list_folder(below, ("",))
        except DataError:  # no permission, or an invalid name of a file that is not read anyway
            continue
        known = inside.get(absolute, set())
        yield from (below / name for name in sorted({*listing.files, *listing.others} - known))
        for name in sorted(listing.folders):
            inner = os.path.join(absolute, name)
            if inner in inside:
                if len(folders) < MAX_READ_FOLDERS:
                    folders.append((inner, below / name, 0))
            elif depth < MAX_DEPTH and others < MAX_FOLDERS and not (skip and skip(name)):
                others += 1
                folders.append((inner, below / name, depth + 1))


def _not_read(paths: Sequence[Path], noun: str) -> str:
    is_one = len(paths) == 1
    text = noun.replace("{}", "" if is_one else "s")
    return f"{len(paths)} {text} {'is' if is_one else 'are'} not read"


def _remark(kind: str, paths: Sequence[Path], message: str) -> Remark:
    return Remark(kind, str(min(paths)), message)
