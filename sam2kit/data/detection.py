"""Detect the layout of a dataset from its files, in one place for all commands and widgets.

:data:`DETECTORS` is the table of layouts, in the order in which they are tried. A new format needs
one more function and one more entry. A detector checks names and, if these are ambiguous, the
beginning of a file. A few of the images that would be frames are decoded, because they may be
masks.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote

from loguru import logger

from sam2kit.data.sources.dropped import DroppedFiles
from sam2kit.data.sources.images import picture_folders
from sam2kit.data.sources.label_guard import find_label_video
from sam2kit.data.sources.listing import (
    FRAME_ENDINGS,
    STACK_ENDINGS,
    SYSTEM_FOLDERS,
    VIDEO_ENDINGS,
    Listing,
    list_folder,
)
from sam2kit.data.sources.mask_search import (
    is_frame_folder,
    is_mask_folder,
    label_base,
    sibling_masks,
    split_masks,
)
from sam2kit.data.sources.mask_values import looks_like_mask
from sam2kit.data.sources.tiff import TIFF_ENDINGS, TIFF_ERRORS, open_tiff, tiff_stem
from sam2kit.data.sources.training_set import INDEX_FILE
from sam2kit.data.sources.video_folders import VideoFolders
from sam2kit.utils.errors import DataError
from sam2kit.utils.paths import missing, unpack_hint
from sam2kit.utils.text import plural, visible_text

SAV_KINDS = ("manual", "auto")
# Folders that never contain videos: masks, lists of videos, and leftovers of file servers and
# archivers. Compared in lower case; a suffix such as _6fps is ignored.
OTHER_FOLDERS = ("annotations", "masks", "mask", "labels", "imagesets", *SYSTEM_FOLDERS)
VOLUME_ENDINGS = {"nifti": (".nii", ".nii.gz"), "npz": (".npz",), "dicom": (".dcm",)}
MAX_FOLDERS = 64  # searched per level for volumes
MAX_LEVELS = 3  # searched for data below a folder that has none
ROBOFLOW_FILE = "_annotations.coco.json"
# The beginnings of the files of annotation tools; data/sources cites the formats.
_CVAT = re.compile(rb"<annotations>\s*<version>1\.[01]</version>")
_LABEL_STUDIO = re.compile(rb'^\s*\[\s*\{.*"(annotations|data)"\s*:\s*[\[{]', re.DOTALL)
_LABELME = re.compile(rb'"shapes"\s*:\s*\[(?:\s*\{\s*"label"|.*"imagePath")', re.DOTALL)
_SAV = re.compile(rb'"masklet(_id)?"\s*:')
_YOLO = re.compile(rb"\A\s*\d+(?:[ \t]+-?[\d.]+(?:e-?\d+)?){4,}[ \t]*(?:\r?\n|\Z)")
MAX_TOOL_FOLDERS = 5  # subfolders that are searched for the files of annotation tools
# Where images of a COCO JSON file are; CVAT exports them to images/default.
IMAGE_FOLDERS = ("JPEGImages", "images", "frames", "images/default")
MAX_DECODED = 16  # images that are decoded to find masks among them
HEAD_BYTES = 1 << 16  # read from a JSON file to recognise it
_COCO_KEY = re.compile(rb'"(images|videos|annotations|categories|licenses|info)"\s*:\s*[\[{]')


@dataclass(frozen=True)
class Layout:
    """Describe how a dataset is read.

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
    """List a folder once for all detectors.

    Args:
        path: an existing file or folder.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.is_folder = path.is_dir()

    @cached_property
    def listing(self) -> Listing:
        """The files, folders and other entries of the folder."""
        return list_folder(self.path, ("",)) if self.is_folder else Listing([], [], [])

    def files(self, endings: tuple[str, ...]) -> list[str]:
        """Return the names of the files with one of the extensions, sorted."""
        return sorted(name for name in self.listing.files if name.lower().endswith(endings))

    @cached_property
    def video_files(self) -> list[Path]:
        """The video files in the folder and in the first subfolder that has any."""
        names = self.files(VIDEO_ENDINGS)
        paths = [self.path / name for name in names]
        for folder in self.data_folders:
            if inner := list_folder(self.path / folder, VIDEO_ENDINGS).files:
                return paths + [self.path / folder / name for name in sorted(inner)]
        return paths

    @cached_property
    def data_folders(self) -> list[str]:
        """The names of the subfolders that may contain videos or frames, sorted."""
        return sorted(name for name in self.listing.folders if not is_other_folder(name))

    @cached_property
    def frame_folders(self) -> list[str]:
        """The names of the subfolders that contain image files directly."""
        return [name for name in self.data_folders if _holds(self.path / name, FRAME_ENDINGS)]

    @cached_property
    def coco_files(self) -> list[Path]:
        """The COCO JSON files in the folder or, if it has none, in its ``annotations``."""
        for folder in (self.path, self.path / "annotations"):
            if folder.is_dir():
                names = sorted(list_folder(folder, (".json",)).files)
                if files := [folder / name for name in names if is_coco(folder / name)]:
                    return files
        return []

    def find_folder(self, name: str) -> Path | None:
        """Return the subfolder ``name``, or the first named ``NAME_*``, as in DAVIS and SA-V."""
        matches = [n for n in self.listing.folders if n == name or n.startswith(f"{name}_")]
        return self.path / min(matches) if matches else None


Detector = Callable[[Candidate], Layout | None]


def detect_layout(path: str | Path) -> Layout:
    """Detect the layout of the data at a path.

    The first detector of :data:`DETECTORS` that recognises the path decides. A folder that mixes
    kinds of data is rejected, because otherwise part of it would be ignored.

    Args:
        path: a file or folder.

    Raises:
        DataError: the path does not exist, mixes kinds of data, or is an incomplete dataset.
    """
    path = Path(path)
    if not path.exists():
        raise DataError(
            missing(path), hint="check the path; it is relative to the working directory"
        )
    candidate = Candidate(path)
    layout = _first_layout(candidate)
    if layout is not None:
        _reject_label_videos(layout)
        return layout
    archives = [path / name for name in sorted(candidate.listing.files) if unpack_hint(name)]
    if archives and not candidate.listing.folders:
        raise DataError(
            f"{path} has no data to read, only {_examples([p.name for p in archives], 'archive')}",
            hint=unpack_hint(archives[0]),
        )
    if stacks := candidate.files(STACK_ENDINGS):
        raise DataError(
            f"{path} contains {_examples(stacks, 'file')} in an unsupported format",
            hint="convert microscopy to OME-TIFF, for example with Fiji or bfconvert, and volumes "
            "to NIfTI",
        )
    try:
        VideoFolders(path, None, None, DroppedFiles(path))
    except DataError:
        _name_other_folder(path)
    # The source of this type describes all layouts in its error.
    return Layout("video", "no other layout matches", path)


def _name_other_folder(path: Path) -> None:
    """Raise an error with the right folder if the data is above or below a path without data."""
    others: list[tuple[Path, Layout]] = []
    if is_mask_folder(path.resolve().name) or is_frame_folder(path.resolve().name):
        outer = Path(os.path.normpath(path / ".."))
        layout = _try_layout(outer)
        others = [(outer, layout)] if layout else []
    others = others or _inner_layouts(path)
    if others:
        folder, layout = others[0]
        count = len(others)
        more = f", or another of the {count} folders with data in it" if count > 1 else ""
        raise DataError(
            f"{path} contains no videos itself, but {folder} does ({layout.reason})",
            hint=f"give {folder}{more}",
        )


def _try_layout(folder: Path) -> Layout | None:
    """Return the layout of a folder; None if there is none, or if it is damaged."""
    try:
        return _first_layout(Candidate(folder))
    except DataError:
        return None


def _first_layout(candidate: Candidate) -> Layout | None:
    """Return the layout of the first detector that recognises a path."""
    return next((layout for detect in DETECTORS if (layout := detect(candidate))), None)


def _inner_layouts(root: Path) -> list[tuple[Path, Layout]]:
    """Return the folders with data in a folder that contains none itself.

    The folders of one level are searched before those of the next one.
    """
    folders = [root]
    for _ in range(MAX_LEVELS):
        names = [(f, n) for f in folders for n in sorted(list_folder(f, ()).folders)]
        folders = [f / n for f, n in names if not is_mask_folder(n)][:MAX_FOLDERS]
        layouts = ((folder, _try_layout(folder)) for folder in folders)
        if inner := [(folder, layout) for folder, layout in layouts if layout]:
            return inner
    return []


def _reject_label_videos(layout: Layout) -> None:
    """Raise if a stack, volume or video file that would be read as a video looks like labels."""
    if layout.data_path is None:
        return
    path = find_label_video(layout.type, layout.data_path)
    if path is not None:
        raise DataError(
            f"{path} looks like labels, not like a video: it has flat areas of whole numbers",
            key="dataset.masks_path",
            value=None,
            expected="the folder of the labels",
            hint="name labels like their video (VIDEO_labels or labels/VIDEO), set "
            f"{quote(f'dataset.masks_path={path.parent}')}, or dataset.type={layout.type} if it "
            "is a video",
        )


def is_other_folder(name: str) -> bool:
    """Return whether a folder with this name contains masks or lists instead of videos."""
    lower = name.lower()
    is_named = lower in OTHER_FOLDERS or lower.startswith(tuple(f"{n}_" for n in OTHER_FOLDERS))
    return is_named or is_mask_folder(name)


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
    """Return whether a folder contains a visible file with one of the extensions."""
    try:
        with os.scandir(folder) as entries:  # stops at the first one: folders may be large
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


def stack_file(candidate: Candidate) -> Layout | None:
    """Recognise a file of a stack or a volume by its extension."""
    path = candidate.path
    if candidate.is_folder:
        return None
    if path.name.lower().endswith(TIFF_ENDINGS):
        return Layout("tiff", "a TIFF stack", path)
    return _volume_layout(path, [path.name])


def cell_tracking(candidate: Candidate) -> Layout | None:
    """Recognise the Cell Tracking Challenge: ``01`` beside ``01_GT``, ``01_ST`` or ``01_RES``."""
    folders = set(candidate.listing.folders)
    names = [n for n in sorted(folders) if re.fullmatch(r"\d{2,3}", n)]
    truths = [n for n in names if {f"{n}_GT", f"{n}_ST", f"{n}_RES"} & folders]
    if not truths:
        return None
    return Layout("ctc", f"sequence {truths[0]} of the Cell Tracking Challenge", candidate.path)


def volumes(candidate: Candidate) -> Layout | None:
    """Recognise NIfTI, NPZ and DICOM files in a folder, or up to three levels below it."""
    folders = [""]
    has_frames = candidate.frame_folders or candidate.files(FRAME_ENDINGS)
    is_other = bool(candidate.video_files or has_frames or candidate.find_folder("JPEGImages"))
    for _ in range(1 if is_other else 4):
        inner: list[str] = []
        for folder in folders:
            listing = list_folder(candidate.path / folder, ("",))
            names = [f"{folder}/{n}".strip("/") for n in sorted(listing.files)]
            if layout := _volume_layout(candidate.path, names):
                return layout
            # Labels may be NIfTI beside series of DICOM; imagesTr contains the volumes of nnU-Net.
            inner += [
                f"{folder}/{n}".strip("/")
                for n in sorted(listing.folders)
                if not is_mask_folder(n) and not is_other_folder(n)
            ]
        folders = inner[:MAX_FOLDERS]
    return None


def _volume_layout(path: Path, names: list[str]) -> Layout | None:
    for kind, endings in VOLUME_ENDINGS.items():
        files = [name for name in names if name.lower().endswith(endings)]
        if files:
            return Layout(kind, _examples(files, f"{kind.upper()} file"), path)
    # Scanners and archives often write DICOM files without an extension.
    root = path if path.is_dir() else path.parent
    bare = [name for name in names if not Path(name).suffix or Path(name).suffix[1:].isdecimal()]
    if bare and has_dicom_preamble(root / bare[0]):
        return Layout("dicom", _examples(bare, "DICOM file"), path)
    return None


def has_dicom_preamble(path: Path) -> bool:
    """Return whether a file begins as DICOM files do."""
    try:
        with path.open("rb") as file:
            return file.read(132)[128:] == b"DICM"
    except OSError:
        return False


def tiff_stacks(candidate: Candidate) -> Layout | None:
    """Recognise TIFF files that have several pages, more than 8 bits, or labels beside them."""
    path, names = candidate.path, candidate.files(TIFF_ENDINGS)
    folder = next((n for n in candidate.data_folders if _holds(path / n, TIFF_ENDINGS)), None)
    if candidate.find_folder("JPEGImages") or (not names and folder is None):
        return None
    if names and len(names) < len(candidate.files(FRAME_ENDINGS)):
        return None  # images of several kinds
    inside = names or sorted(list_folder(path / str(folder), TIFF_ENDINGS).files)
    first = path / inside[0] if names else path / str(folder) / inside[0]
    reason = _examples(inside, "TIFF file")
    if any(label_base(tiff_stem(n)) for n in inside):
        return Layout("tiff", f"{reason}, with labels beside them", path)
    label_folders = [n for n in candidate.listing.folders if is_mask_folder(n)]
    if any(_holds(path / n, TIFF_ENDINGS) for n in label_folders):
        return Layout("tiff", f"{reason}, with labels in {label_folders[0]}", path)
    # The first file may be damaged.
    if any(has_pages_or_depth(first.with_name(name)) for name in sorted(inside)[:3]):
        return Layout("tiff", f"{reason}, of several pages or more than 8 bits", path)
    return None


def has_pages_or_depth(path: Path) -> bool:
    """Return whether a TIFF file has several pages or more than 8 bits per value."""
    try:
        with open_tiff(path) as file:
            page = file.pages.first
            return len(file.pages) > 1 or len(file.series) != 1 or page.dtype.itemsize > 1
    except TIFF_ERRORS:
        return False


def archive(candidate: Candidate) -> Layout | None:
    """Reject an archive, and say how to unpack it."""
    if not candidate.is_folder and (hint := unpack_hint(candidate.path)):
        raise DataError(f"{candidate.path} is an archive, which cannot be read", hint=hint)
    return None


def tool_file(candidate: Candidate) -> Layout | None:
    """Recognise an XML file of CVAT, and the JSON export of Label Studio."""
    path = candidate.path
    if candidate.is_folder:
        return None
    if path.suffix.lower() == ".xml" and _head(path, _CVAT):
        return Layout("cvat", "an XML file of CVAT", path)
    if path.suffix.lower() == ".json" and _head(path, _LABEL_STUDIO):
        return Layout("label_studio", "an export of Label Studio", path)
    if path.suffix.lower() == ".json" and _head(path, _LABELME) and not is_coco(path):
        return Layout("labelme", "a JSON file of LabelMe and those beside it", path.parent)
    return None


def tool_folder(candidate: Candidate) -> Layout | None:
    """Recognise the exports of annotation tools by the files that only they write."""
    path = candidate.path
    if not candidate.is_folder:
        return None
    # Each video usually has a folder, and there may be thousands of them.
    inner = sorted(candidate.listing.folders)[:MAX_TOOL_FOLDERS]
    for folder in [path, *(path / name for name in inner)]:
        listing = candidate.listing if folder == path else list_folder(folder, ("",))
        names = sorted(listing.files)
        if xml := [n for n in names if n.lower().endswith(".xml") and _head(folder / n, _CVAT)]:
            return Layout("cvat", f"CVAT's file {xml[0]}", path)
        if layout := _json_of_tools(path, folder, names):
            return layout
    return _yolo(candidate)


def _json_of_tools(path: Path, folder: Path, names: list[str]) -> Layout | None:
    """Recognise exports of Label Studio, LabelMe and Roboflow by a JSON file in a folder."""
    json_names = [n for n in names if n.lower().endswith(".json")]
    for name in json_names[:3]:
        file = folder / name
        if name == ROBOFLOW_FILE and folder != path:
            return Layout(
                "coco", "COCO JSON of Roboflow", annotation_file=path / "*" / ROBOFLOW_FILE
            )
        if _head(file, _LABEL_STUDIO):
            # A project may be exported in several files, which are read together.
            every = folder == path and all(_head(folder / n, _LABEL_STUDIO) for n in json_names)
            where = None if every else file
            return Layout(
                "label_studio", f"Label Studio's file {name}", path, annotation_file=where
            )
        if _head(file, _LABELME) and not is_coco(file):
            return Layout("labelme", f"LabelMe's file {name}", path)
    return None


def _yolo(candidate: Candidate) -> Layout | None:
    """Recognise YOLO by ``labels`` with text files, or by text files named like images."""
    path = candidate.path
    labels = [path / "labels", *(path / name / "labels" for name in candidate.data_folders)]
    for folder in labels[: MAX_TOOL_FOLDERS + 1]:
        if folder.is_dir():
            listing = list_folder(folder, (".txt",))
            if _has_rows([folder / name for name in sorted(listing.files)]):
                return Layout("yolo", "text files in labels", path)
            for name in sorted(listing.folders)[:MAX_TOOL_FOLDERS]:
                texts = sorted(list_folder(folder / name, (".txt",)).files)
                if _has_rows([folder / name / text for text in texts]):
                    return Layout("yolo", "text files in labels", path)
    stems = {name.rpartition(".")[0] for name in candidate.files(FRAME_ENDINGS)}
    texts = [name for name in candidate.files((".txt",)) if name.rpartition(".")[0] in stems]
    if _has_rows([path / name for name in texts]):
        return Layout("yolo", "text files beside images", path)
    return None


def _has_rows(files: list[Path]) -> bool:
    """Return whether one of the first text files begins with a row of YOLO."""
    return any(_head(file, _YOLO) for file in files[:20])


def _head(path: Path, pattern: re.Pattern[bytes]) -> bool:
    """Return whether the beginning of a file matches a pattern."""
    try:
        with path.open("rb") as file:
            return bool(pattern.search(file.read(HEAD_BYTES)))
    except OSError:
        return False


def coco_file(candidate: Candidate) -> Layout | None:
    """Recognise a JSON file: COCO, with image paths relative to its folder."""
    path = candidate.path
    if candidate.is_folder or path.suffix.lower() != ".json":
        return None
    video_name, _, kind = path.stem.rpartition("_")
    if kind in SAV_KINDS and not is_coco(path) and _head(path, _SAV):
        for name in list_folder(path.parent, VIDEO_ENDINGS).files:
            if Path(name).stem == video_name:
                return Layout("sav", "the SA-V masklets of a video", path.parent / name)
        raise _missing_sav_video(path)
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
    if not candidate.is_folder:
        return None
    inside = candidate.path / "training_set"
    if (inside / INDEX_FILE).is_file() and (candidate.path / "annotations").is_dir():
        raise DataError(
            f"{candidate.path} is a run directory of the annotator",
            key="dataset.data_path",
            value=str(candidate.path),
            hint=f"did you mean {inside}?",
        )
    if not (candidate.path / INDEX_FILE).is_file():
        return None
    return Layout("training_set", f"a training set, with {INDEX_FILE}", candidate.path)


def sav(candidate: Candidate) -> Layout | None:
    """Recognise video files with SA-V annotation files beside them."""
    path = candidate.path
    if any(map(has_sav_masklets, candidate.video_files)):
        return Layout("sav", "video files with SA-V masklets beside them", path)
    names = candidate.files(tuple(f"_{kind}.json" for kind in SAV_KINDS))
    if names and not candidate.video_files and not candidate.data_folders:
        raise _missing_sav_video(path / names[0])
    return None


def _missing_sav_video(path: Path) -> DataError:
    video_name = f"{path.name.rpartition('_')[0]}.mp4"
    return DataError(
        f"{path} is an SA-V annotation file, but its video {video_name} is missing",
        hint="copy the video into the same folder",
    )


def mixed_kinds(candidate: Candidate) -> Layout | None:
    """Reject a folder with several kinds of videos, of which only one would be read."""
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
        hint="or move each kind to a separate folder",
    )


def coco_folder(candidate: Candidate) -> Layout | None:
    """Recognise a folder with COCO JSON, unless it has video files or folders of masks."""
    path, files = candidate.path, candidate.coco_files
    _, masks = picture_folders(path)
    if not files or candidate.video_files or masks or candidate.find_folder("Annotations"):
        return None
    if len(files) > 1:
        raise DataError(
            f"{path} contains {_examples([f.name for f in files], 'COCO JSON file')}",
            key="dataset.annotation_file",
            value=None,
            expected="the file to read, or a pattern such as labels/*.json",
            hint="give one file as the data path or as dataset.annotation_file",
        )
    root = _image_root(files[0], path)
    return Layout("coco", f"COCO JSON, {files[0].name}", root, annotation_file=files[0])


def _image_root(file: Path, root: Path) -> Path:
    """Return the folder to which the image paths of a COCO JSON file are relative."""
    with file.open("rb") as stream:
        while (block := stream.read(1 << 20)) and b'"file_name' not in block:
            pass
    match = re.search(rb'"file_names?"\s*:\s*\[?\s*"([^"]+)"', block)
    name = match[1].decode(errors="replace") if match else ""
    folders = [file.parent, root, *(root / n for n in IMAGE_FOLDERS)]
    return next((folder for folder in folders if name and (folder / name).exists()), file.parent)


def video_files(candidate: Candidate) -> Layout | None:
    """Recognise a folder of video files, with masks in ``Annotations`` or one COCO JSON file."""
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
    """Recognise a folder of image files: the frames of one video."""
    names = candidate.files(FRAME_ENDINGS)
    if not names:
        return None
    frames = split_masks(names).frames
    _reject_masks(candidate.path, [candidate.path / name for name in frames])
    return Layout("video", f"{_examples(frames, 'frame')} of one video", candidate.path)


def _reject_masks(root: Path, frames: list[Path]) -> None:
    """Raise if images that would be frames look like masks."""
    picks = frames[:: max(1, len(frames) // MAX_DECODED)][:MAX_DECODED]
    masks = [path for path in picks if looks_like_mask(path)]
    if masks:
        one_folder = {path.parent for path in frames} == {root}
        raise DataError(
            f"{masks[0]} looks like a mask, not like a frame: it has few distinct values",
            key="dataset.masks_path",
            value=None,
            expected="the folder of the masks",
            hint=(
                "move the masks to a separate folder, named masks"
                if one_folder and len(masks) < len(picks)
                else f"set {quote(f'dataset.masks_path={masks[0].parent}')}"
            )
            + ", or dataset.type=video if these are frames",
        )


def still_images(candidate: Candidate) -> Layout | None:
    """Recognise ``images`` beside ``masks``, and image files directly in ``JPEGImages``."""
    folder, masks = picture_folders(candidate.path)
    if folder == candidate.path or not _holds(folder, FRAME_ENDINGS):
        return None
    # A stray image beside folders of frames does not make them single images.
    inner = [n for n in list_folder(folder, ()).folders if not is_other_folder(n)]
    if any(_holds(folder / name, FRAME_ENDINGS) for name in inner):
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
    """Recognise one folder of frames per video."""
    if not candidate.frame_folders:
        return None
    if names := candidate.files((".json",)):
        logger.info(
            "{}: {} are not read; open one of these files to use it as COCO JSON",
            candidate.path,
            names[:3],
        )
    siblings = sibling_masks(candidate.frame_folders).values()
    names = [name for name in candidate.frame_folders if name not in siblings]
    folders = [candidate.path / name for name in names][:MAX_DECODED]
    frames = [sorted(split_masks(list_folder(f, FRAME_ENDINGS).files).frames) for f in folders]
    middle = [f / inner[len(inner) // 2] for f, inner in zip(folders, frames, strict=True) if inner]
    _reject_masks(candidate.path, middle)
    reason = _examples(names, "folder")
    return Layout("video", f"{reason}, each with the frames of one video", candidate.path)


DETECTORS: tuple[Detector, ...] = (
    archive,
    tool_file,
    coco_file,
    stack_file,
    video_file,
    training_set,
    # Folders: first those that annotation files identify, then by the kinds of their content.
    cell_tracking,
    sav,
    tiff_stacks,
    volumes,
    tool_folder,
    mixed_kinds,
    coco_folder,
    video_files,
    frames_of_one_video,
    still_images,
    davis,
    frame_folders,
)
