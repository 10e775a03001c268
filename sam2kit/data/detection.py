"""Detect the layout of a data set from its files, in one place for all commands and widgets.

:data:`DETECTORS` is the table of layouts, in the order in which they are tried. Another format is
one more function and one more entry. A detector looks at names and, where names do not decide, at
the beginning of a file; it decodes nothing.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from loguru import logger

from sam2kit.data.sources.images import picture_folders
from sam2kit.data.sources.listing import FRAME_ENDINGS, VIDEO_ENDINGS, Listing, list_folder
from sam2kit.data.sources.training_set import INDEX_FILE
from sam2kit.utils.errors import DataError
from sam2kit.utils.paths import missing
from sam2kit.utils.text import plural, visible_text

SAV_KINDS = ("manual", "auto")
# Folders that never hold videos of their own: masks, lists of videos, and what file servers and
# archivers leave behind. Compared in lower case; a suffix such as _6fps is ignored.
OTHER_FOLDERS = ("annotations", "masks", "mask", "labels", "imagesets", "@eadir", "__macosx")
HEAD_BYTES = 1 << 16  # read of a JSON file to recognise it
_COCO_KEY = re.compile(rb'"(images|videos|annotations|categories|licenses|info)"\s*:\s*[\[{]')


@dataclass(frozen=True)
class Layout:
    """Describe how a data set is read.

    Attributes:
        type: the value of ``dataset.type``.
        reason: what the detection is based on: a phrase for logs, such as "3 video files, such as
            a.mp4".
        data_path: the value of ``dataset.data_path``. None: not set.
        masks_path: the value of ``dataset.masks_path``. None: the default of the type.
        annotation_file: the value of ``dataset.annotation_file``. None: not set.
    """

    type: str
    reason: str
    data_path: Path | None = None
    masks_path: Path | None = None
    annotation_file: Path | None = None


class Candidate:
    """Give detectors the names in a directory, which is listed once.

    Args:
        path: an existing file or directory.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_folder = path.is_dir()

    @cached_property
    def listing(self) -> Listing:
        """All visible files, directories and the rest of the directory."""
        return list_folder(self.path, ("",)) if self.is_folder else Listing([], [], [])

    def files(self, endings: tuple[str, ...]) -> list[str]:
        """Return the names of the files with one of the extensions, sorted."""
        return sorted(name for name in self.listing.files if name.lower().endswith(endings))

    @cached_property
    def video_files(self) -> list[Path]:
        """The video files in the directory and in the first subdirectory that has any."""
        names = self.files(VIDEO_ENDINGS)
        paths = [self.path / name for name in names]
        for folder in self.data_folders:
            if inner := list_folder(self.path / folder, VIDEO_ENDINGS).files:
                return paths + [self.path / folder / name for name in sorted(inner)]
        return paths

    @cached_property
    def data_folders(self) -> list[str]:
        """The names of the subdirectories that may hold videos or frames, sorted."""
        return sorted(name for name in self.listing.folders if not is_other_folder(name))

    @cached_property
    def frame_folders(self) -> list[str]:
        """The names of the subdirectories that hold image files directly."""
        return [name for name in self.data_folders if _holds(self.path / name, FRAME_ENDINGS)]

    @cached_property
    def coco_files(self) -> list[Path]:
        """The COCO JSON files in the directory or, if it has none, in its ``annotations``."""
        for folder in (self.path, self.path / "annotations"):
            if folder.is_dir():
                names = sorted(list_folder(folder, (".json",)).files)
                if files := [folder / name for name in names if is_coco(folder / name)]:
                    return files
        return []

    def find_folder(self, name: str) -> Path | None:
        """Return the subdirectory ``name``, or the first named ``NAME_*``, as in DAVIS and SA-V."""
        matches = [n for n in self.listing.folders if n == name or n.startswith(f"{name}_")]
        return self.path / min(matches) if matches else None


Detector = Callable[[Candidate], Layout | None]


def detect_layout(path: str | Path) -> Layout:
    """Detect how the data at a path are to be read.

    The first detector of :data:`DETECTORS` that recognises the path decides. A directory that mixes
    kinds of data is rejected, because part of it would be ignored otherwise.

    Args:
        path: a file or directory.

    Raises:
        DataError: the path does not exist, mixes kinds of data, or is an incomplete data set.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            missing(path), hint="check the path; it is relative to the working directory"
        )
    candidate = Candidate(path)
    for detector in DETECTORS:
        if (layout := detector(candidate)) is not None:
            return layout
    # The source of this type describes all layouts in its error.
    return Layout("video", "no other layout matches", path)


def is_other_folder(name: str) -> bool:
    """Return whether a directory of this name holds masks or lists instead of videos."""
    name = name.lower()
    return name in OTHER_FOLDERS or name.startswith(tuple(f"{n}_" for n in OTHER_FOLDERS))


def is_coco(path: Path) -> bool:
    """Return whether a JSON file begins with a key of the COCO format."""
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError:
        return False
    return head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"{") and bool(_COCO_KEY.search(head))


def has_sav_masklets(video: Path) -> bool:
    """Return whether an SA-V annotation file is beside a video file."""
    return any(video.with_name(f"{video.stem}_{kind}.json").is_file() for kind in SAV_KINDS)


def _holds(folder: Path, endings: tuple[str, ...]) -> bool:
    """Return whether a directory holds a visible file with one of the extensions."""
    try:
        with os.scandir(folder) as entries:  # stops at the first one: directories may be large
            return any(
                e.name.lower().endswith(endings) and not e.name.startswith(".") and e.is_file()
                for e in entries
            )
    except OSError:
        return False


def _examples(names: list[str], noun: str) -> str:
    """Count names and give the first one: "3 video files, such as a.mp4"."""
    such_as = ", such as " if len(names) > 1 else ", "
    return f"{plural(len(names), noun)}{such_as}{visible_text(names[0])}"


# --- the detectors, in the order of the table ---------------------------------------------------


def coco_file(candidate: Candidate) -> Layout | None:
    """Recognise a JSON file: COCO, with image paths relative to its directory."""
    path = candidate.path
    if candidate.is_folder or path.suffix.lower() != ".json":
        return None
    return Layout("coco", "a JSON file", annotation_file=path)


def video_file(candidate: Candidate) -> Layout | None:
    """Recognise any other file: one video, with SA-V masks if their JSON file is beside it."""
    path = candidate.path
    if candidate.is_folder:
        return None
    if has_sav_masklets(path):
        return Layout("sav", "a video file with SA-V masklets beside it", path)
    return Layout("files", "a video file", path)


def training_set(candidate: Candidate) -> Layout | None:
    """Recognise a training set by its index."""
    if not (candidate.is_folder and (candidate.path / INDEX_FILE).is_file()):
        return None
    return Layout("training_set", f"a training set, with {INDEX_FILE}", candidate.path)


def sav(candidate: Candidate) -> Layout | None:
    """Recognise video files with SA-V annotation files beside them."""
    path = candidate.path
    if any(map(has_sav_masklets, candidate.video_files)):
        return Layout("sav", "video files with SA-V masklets beside them", path)
    names = candidate.files(tuple(f"_{kind}.json" for kind in SAV_KINDS))
    if names and not candidate.video_files and not candidate.data_folders:
        video_name = f"{names[0].rpartition('_')[0]}.mp4"
        raise DataError(
            f"{path / names[0]} is an SA-V annotation file, but its video {video_name} is missing",
            hint="copy the video into the same folder",
        )
    return None


def mixed_kinds(candidate: Candidate) -> Layout | None:
    """Reject a directory with several kinds of videos, of which only one would be read."""
    kinds: dict[str, list[str]] = {  # dataset.type that reads it (with its noun) -> names
        "files": [p.relative_to(candidate.path).as_posix() for p in candidate.video_files],
        "images": candidate.files(FRAME_ENDINGS),
        "video": candidate.frame_folders,
    }
    if candidate.find_folder("JPEGImages"):
        kinds["video"] = [f"{candidate.find_folder('JPEGImages').name}"]  # type: ignore[union-attr]
    nouns = {"files": "video file", "images": "image file", "video": "folder"}
    present = {kind: names for kind, names in kinds.items() if names}
    if len(present) < 2:
        return None
    texts = [_examples(names, nouns[kind]) for kind, names in present.items()]
    raise DataError(
        f"{candidate.path} mixes kinds of data: {'; '.join(texts)}",
        key="dataset.type",
        value="auto",
        expected=f"one of {', '.join(present)} to read only that kind",
        hint="or move each kind to a folder of its own",
    )


def coco_folder(candidate: Candidate) -> Layout | None:
    """Recognise a directory with COCO JSON, unless it has video files or folders of masks."""
    path, files = candidate.path, candidate.coco_files
    _, masks = picture_folders(path)
    if not files or candidate.video_files or masks or candidate.find_folder("Annotations"):
        return None
    if len(files) > 1:
        raise DataError(
            f"{path} holds {_examples([f.name for f in files], 'COCO JSON file')}",
            key="dataset.annotation_file",
            value=None,
            expected="the file to read, or a pattern such as labels/*.json",
            hint="give one file as the data path or as dataset.annotation_file",
        )
    root = _image_root(files[0], path)
    return Layout("coco", f"COCO JSON, {files[0].name}", root, annotation_file=files[0])


def _image_root(file: Path, root: Path) -> Path:
    """Return the directory to which the image paths of a COCO JSON file are relative."""
    with file.open("rb") as stream:
        while (block := stream.read(1 << 20)) and b'"file_name' not in block:
            pass
    match = re.search(rb'"file_names?"\s*:\s*\[?\s*"([^"]+)"', block)
    name = match[1].decode(errors="replace") if match else ""
    folders = [file.parent, root, *(root / n for n in ("JPEGImages", "images", "frames"))]
    return next((folder for folder in folders if name and (folder / name).exists()), file.parent)


def video_files(candidate: Candidate) -> Layout | None:
    """Recognise a directory of video files, with masks in ``Annotations`` or one COCO JSON file."""
    if not candidate.video_files:
        return None
    names = [p.relative_to(candidate.path).as_posix() for p in candidate.video_files]
    reason = _examples(names, "video file")
    if (candidate.path / "Annotations").is_dir():
        return Layout("files", f"{reason}, with masks in Annotations", candidate.path)
    if len(candidate.coco_files) == 1:
        file = candidate.coco_files[0]
        return Layout("files", f"{reason}, with masks in {file.name}", candidate.path, file)
    return Layout("files", reason, candidate.path)


def frames_of_one_video(candidate: Candidate) -> Layout | None:
    """Recognise a directory of image files: the frames of one video."""
    names = candidate.files(FRAME_ENDINGS)
    if not names:
        return None
    return Layout("video", f"{_examples(names, 'frame')} of one video", candidate.path)


def still_images(candidate: Candidate) -> Layout | None:
    """Recognise ``images`` beside ``masks``, and image files directly in ``JPEGImages``."""
    folder, masks = picture_folders(candidate.path)
    if folder == candidate.path or not _holds(folder, FRAME_ENDINGS):
        return None
    beside = f" beside {masks.name}" if masks else " without masks"
    return Layout("images", f"single images in {folder.name}{beside}", candidate.path)


def davis(candidate: Candidate) -> Layout | None:
    """Recognise ``JPEGImages`` beside ``Annotations``, as in DAVIS and YouTube-VOS."""
    images, masks = map(candidate.find_folder, ("JPEGImages", "Annotations"))
    if images is None:
        return None
    beside = f" with masks in {masks.name}" if masks else " without masks"
    return Layout("video", f"frames in {images.name}{beside}", candidate.path)


def frame_folders(candidate: Candidate) -> Layout | None:
    """Recognise one directory of frames per video."""
    if not candidate.frame_folders:
        return None
    if names := candidate.files((".json",)):
        logger.info(
            "{}: {} are not read; open one of these files to use it as COCO JSON",
            candidate.path,
            names[:3],
        )
    reason = _examples(candidate.frame_folders, "folder")
    return Layout("video", f"{reason}, with the frames of a video each", candidate.path)


DETECTORS: tuple[Detector, ...] = (
    coco_file,
    video_file,
    training_set,
    # Directories: first those that annotation files identify, then by the kinds of their content.
    sav,
    mixed_kinds,
    coco_folder,
    video_files,
    frames_of_one_video,
    still_images,
    davis,
    frame_folders,
)
