"""Find masks by the usual names of folders and files."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from shlex import quote
from typing import NamedTuple

from sam2kit.data.sources.listing import (
    FRAME_ENDINGS,
    JPEG_ENDINGS,
    MASK_ENDINGS,
    list_folder,
    same_form,
    stem,
)
from sam2kit.utils.errors import DataError

# Names of folders, in lower case and without anything but letters and digits.
_MASK_FOLDERS = frozenset(
    "annotation annotations mask masks label labels gt gts groundtruth groundtruths seg segs "
    "segmentation segmentations segmentationobject segmentationmask segmentationmasks maskimages "
    "gtmask gtmasks objectmasks instancemasks annotationmasks labelimages pixellabels".split()
)
_FRAME_FOLDERS = frozenset(
    "frame frames image images img imgs rgb rgbs picture pictures input inputs color raw "
    "jpegimages originalimages".split()
)
# Endings of the names of masks that are beside their frames, the preferred ones first; "color"
# variants are for display.
_MASK_SUFFIXES = tuple(
    part
    for word in (
        *("mask", "masks", "label", "labels", "labelids", "instanceids", "gtfine_instanceids"),
        *("seg", "segmentation", "gt", "groundtruth", "annotation", "watershed_mask", "color_mask"),
        *("color_label", "gtfine_labelids", "gtfine_color", "labeltrainids"),
    )
    for part in (f"_{word}", f"-{word}", f".{word}")
)
_FRAME_SUFFIXES = (
    *("", "_img", "_image", "_images", "_imgs", "_rgb", "_frame", "_frames", "_raw"),
    "_leftimg8bit",
)
# Labels of stacks and volumes: cell_labels, cell_cp_masks, CT-001.seg, c_manual; mask_cell.
_LABEL = (
    r"(?:cp_)?(?:labels?|lbl|label_?map|masks?|segs?|segmentations?|gt|(?:ground_?)?truth|manual"
    r"|annotations?)"
)
_LABEL_SUFFIX = re.compile(rf"(?:[_\-. ]{_LABEL})+$", re.IGNORECASE)
_LABEL_PREFIX = re.compile(rf"^{_LABEL}[_\-. ]", re.IGNORECASE)
# Parts of the names of images that their labels do not have: volume-0, X_t1, CASE_0000.
_IMAGE_PREFIX = re.compile(r"^(?:volume|vol|images?|imgs?|im|scan|stack|raw)[_\-. ]", re.IGNORECASE)
_IMAGE_SUFFIX = re.compile(
    r"[_\-. ](?:0000|volume|vol|images?|imgs?|im|scan|stack|raw)$", re.IGNORECASE
)
_MODALITY = re.compile(
    r"[_\-. ](?:t1(?:ce|c|n|gd|w)?|t2(?:w|f)?|flair|adc|dwi|pd|ct|pet|mri?)$", re.IGNORECASE
)
_MASK_NAME = re.compile(r"[._-](\w*mask|seg|gt|label|annot|instance|ground|color_)", re.IGNORECASE)


def is_mask_folder(name: str) -> bool:
    """Return whether a folder with this name contains masks: ``ground-truth``, ``labelsTr``."""
    plain = _plain(name)
    return plain in _MASK_FOLDERS or re.sub("^cp|t[rs]$", "", plain) in _MASK_FOLDERS


def label_base(name: str) -> str | None:
    """Return the name of labels without the part that marks labels; None without such a part.

    ``cell_labels``, ``cell_manual_seg`` and ``mask_cell`` are labels of ``cell``.
    """
    base = _LABEL_SUFFIX.sub("", name)
    if base in (name, ""):
        base = _LABEL_PREFIX.sub("", name)
    return base if base not in (name, "") else None


def has_label_suffix(name: str) -> bool:
    """Return whether a name has a label suffix, which is a clearer sign than a prefix."""
    return bool(_LABEL_SUFFIX.search(name)) and label_base(name) is not None


def image_keys(name: str, modalities: bool = False) -> list[str]:
    """Return the base names that the labels of an image may have, best first.

    Args:
        name: name of the image: ``volume-0`` has the keys ``volume-0`` and ``0``.
        modalities: whether endings such as ``_t1`` and ``_flair`` are left out, too.
    """
    keys = [name]
    for pattern in (_IMAGE_SUFFIX, _IMAGE_PREFIX, *[_MODALITY] * modalities):
        if shorter := pattern.sub("", name):
            keys.append(shorter)
    return list(dict.fromkeys(keys))


def is_frame_folder(name: str) -> bool:
    """Return whether a folder with this name contains frames, such as ``imgs``."""
    return _plain(name) in _FRAME_FOLDERS


def is_video_name(name: str) -> bool:
    """Return whether a folder of frames is named like a video, not like single images."""
    return _plain(name).startswith("frame")


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


def holds_pictures(folder: Path) -> bool:
    """Return whether a folder or one of its first subfolders contains image files."""
    listing = list_folder(folder, FRAME_ENDINGS)
    if listing.files:
        return True
    return any(
        inner.files or any(list_folder(folder / f / g, FRAME_ENDINGS).files for g in inner.folders)
        for f in sorted(listing.folders)[:8]
        for inner in [list_folder(folder / f, FRAME_ENDINGS)]
    )


def find_mask_folder(root: Path, names: Iterable[str]) -> Path | None:
    """Return the subfolder that contains masks as images, None if there is none.

    Args:
        root: the folder.
        names: its subfolders.

    Raises:
        DataError: there are several.
    """
    names = list(names)
    if "Annotations" in names:
        return root / "Annotations"
    folders = [n for n in sorted(names) if is_mask_folder(n) and holds_pictures(root / n)]
    if len(folders) > 1:
        raise DataError(
            f"{root} has several folders of masks: {', '.join(folders)}",
            key="dataset.masks_path",
            expected="one of them",
            hint=f"set {quote(f'dataset.masks_path={root / folders[0]}')}, for example",
        )
    return root / folders[0] if folders else None


def find_frame_folder(root: Path, names: Iterable[str]) -> Path | None:
    """Return the only subfolder with a name for frames that contains images, or None."""
    folders = [n for n in names if is_frame_folder(n) and holds_pictures(root / n)]
    return root / folders[0] if len(folders) == 1 else None


class BesideFrames(NamedTuple):
    """Divide the images of one folder into frames and the masks beside them.

    Attributes:
        frames: names of the frames.
        masks: names of the masks by the stem (NFC) of their frame.
        suffix: ending of the stems of the masks, as it is written; "" without masks.
        others: names of further kinds of masks, which are not read.
    """

    frames: list[str]
    masks: dict[str, str]
    suffix: str
    others: list[str]


def split_masks(files: Sequence[str]) -> BesideFrames:
    """Find masks beside their frames, such as ``a_mask.png`` beside ``a.png`` or ``a_img.png``."""
    if not _MASK_NAME.search("\n".join(files)):
        return BesideFrames(list(files), {}, "", [])
    stems = {same_form(stem(name)).lower(): name for name in files}
    groups: dict[str, dict[str, str]] = {}
    for lower, name in stems.items():
        for suffix in _MASK_SUFFIXES:
            frame = _frame_of(lower, suffix, stems) if lower.endswith(suffix) else None
            if frame is not None and name.lower().endswith(MASK_ENDINGS + JPEG_ENDINGS):
                groups.setdefault(suffix, {})[same_form(stem(frame))] = name
                break
    if not groups:
        return BesideFrames(list(files), {}, "", [])
    suffix = min(groups, key=_MASK_SUFFIXES.index)
    masks = groups.pop(suffix)
    others = [name for group in groups.values() for name in group.values()]
    used = {*masks.values(), *others}
    example = stem(next(iter(masks.values())))
    frames = [name for name in files if name not in used]
    return BesideFrames(frames, masks, example[-len(suffix) :], others)


def sibling_masks(videos: Collection[str]) -> dict[str, str]:
    """Find folders of masks beside the folders of their videos: ``a_masks`` beside ``a``.

    Returns:
        The folders of masks by folder of frames.
    """
    names = {name.lower(): name for name in videos}
    siblings: dict[str, str] = {}
    for lower, name in names.items():
        for suffix in _MASK_SUFFIXES:
            frame = _frame_of(lower, suffix, names) if lower.endswith(suffix) else None
            if frame is not None:
                siblings.setdefault(frame, name)
    return siblings


def _frame_of(mask: str, suffix: str, names: Mapping[str, str]) -> str | None:
    """Return the name of the frames of a mask, given in lower case; None: no frames."""
    base = mask.removesuffix(suffix)
    matches = (names.get(base + ending) for ending in _FRAME_SUFFIXES)
    return next((name for name in matches if name is not None), None)
