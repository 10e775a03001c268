"""Find the folders of frames in a dataset, and the masks of each."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from loguru import logger

from sam2kit.data.sources.base import IGNORED, NOTE, Remark
from sam2kit.data.sources.dropped import DroppedFiles
from sam2kit.data.sources.listing import (
    FRAME_ENDINGS,
    MASK_ENDINGS,
    OTHER_PICTURES,
    VIDEO_ENDINGS,
    Listing,
    find_entry,
    list_folder,
    same_form,
)
from sam2kit.data.sources.mask_search import (
    find_frame_folder,
    find_mask_folder,
    holds_pictures,
    is_mask_folder,
    sibling_masks,
    split_masks,
)
from sam2kit.utils.errors import DataError

LAYOUTS = (
    "ROOT/JPEGImages/VIDEO/00000.jpg with ROOT/Annotations/VIDEO/00000.png, either with a "
    "resolution such as 480p before VIDEO, or ROOT/VIDEO/00000.jpg"
)

MAX_SEARCHED = 32  # subfolders per folder that are searched for images of other formats


@dataclass(frozen=True)
class VideoFolder:
    """Locate the frames and masks of a video.

    Attributes:
        folder: the folder of the frames.
        frames: names of the frames, in any order.
        masks: the folder of the masks. None: no such folder.
        masks_beside: names of masks in ``folder`` by the stem of their frame.
    """

    folder: Path
    frames: list[str]
    masks: Path | None = None
    masks_beside: dict[str, str] = field(default_factory=dict)

    @property
    def has_masks(self) -> bool:
        """Whether there is a folder of masks, or masks beside the frames."""
        return self.masks is not None or bool(self.masks_beside)


class VideoFolders:
    """Find the videos of a dataset in the layouts of :class:`VideoDataset`.

    Args:
        root: the folder.
        resolution: the resolution to use if there are several. None: 480p, if it exists.
        masks_path: the folder of the masks. None: as in the layouts.
        dropped: receives what is not read.

    Attributes:
        videos: the videos by name.
        masks: the folder that contains the masks of all videos. None: no such folder.
        remarks: how masks were found.

    Raises:
        DataError: no videos, or the choice between folders is ambiguous.
    """

    def __init__(
        self, root: Path, resolution: str | None, masks_path: Path | None, dropped: DroppedFiles
    ) -> None:
        self.root, self._dropped = root, dropped
        self.remarks: list[Remark] = []
        folder, masks = self._find_folders(resolution, masks_path)
        if masks_path is not None:
            masks = masks_path
            if (masks / folder.name).is_dir():  # of this resolution
                masks = masks / folder.name
        here = list_folder(folder, FRAME_ENDINGS)
        listings = {n: list_folder(folder / n, FRAME_ENDINGS) for n in here.folders}
        if masks_path is None and masks is None:
            masks = find_mask_folder(folder, here.folders)
        elif masks is not None and masks_path is None and masks.name != "Annotations":
            self._note(masks)
        self.masks = masks
        # With plain ROOT/VIDEO, lists and masks may be in folders beside the videos.
        no_videos = {"ImageSets"} | ({masks.name} if masks and masks.parent == folder else set())
        if masks is not None and masks.parent == folder:
            no_videos |= {name for name in listings if is_mask_folder(name)}
        listings = {n: listing for n, listing in listings.items() if n not in no_videos}
        if here.files and not any(inner.files for inner in listings.values()):
            self.videos = self._one_video(folder, here, masks)
        else:
            self.videos = self._several_videos(folder, here, listings, masks)
            if masks is not None and masks_path is None:
                self._find_orphans(masks)
        if not any(video.frames for video in self.videos.values()):
            _reject_other_pictures(root)
            if masks is not None and masks_path is None:
                problem = f"{root} has {masks.name} but no JPEGImages"
                raise DataError(problem, hint=self._hint(folder))
            raise DataError(f"{root}: no videos found", hint=self._hint(folder))
        if not any(video.has_masks for video in self.videos.values()):
            dropped.add_masks_beside()
            self._find_other_pictures(folder)
        dropped.add_data(folder, here.others)
        if root != folder:
            dropped.add_data(root, list_folder(root, ()).others)

    def _find_other_pictures(self, folder: Path) -> None:
        """Add a remark about folders beside the frames with images, which may be masks."""
        if folder == self.root:
            return
        for name in sorted(list_folder(self.root, ()).folders):
            path = self.root / name
            if path not in (folder, *folder.parents) and holds_pictures(path):
                text = "its images are not read; if they are masks, set dataset.masks_path"
                self.remarks.append(Remark(IGNORED, str(path), f"{text}={path}"))

    def _one_video(self, folder: Path, here: Listing, masks: Path | None) -> dict[str, VideoFolder]:
        """Read a folder of frames as one video, which may have its masks in it."""
        name = self.root.resolve().name or "video"
        if masks is not None and (masks / name).is_dir():
            masks = masks / name
        rest = [n for n in here.folders if folder / n != masks]
        return {name: self._video(folder, here._replace(folders=rest, others=[]), masks)}

    def _several_videos(
        self, folder: Path, here: Listing, listings: dict[str, Listing], masks: Path | None
    ) -> dict[str, VideoFolder]:
        siblings = {} if masks else sibling_masks(listings)
        if siblings:
            self._note(folder / next(iter(siblings.values())))
        videos = {}
        for name, listing in listings.items():
            if name in siblings.values():
                continue
            mask_folder = find_entry(masks, name) if masks else None
            if masks and len(listings) == 1 and list_folder(masks, MASK_ENDINGS).files:
                mask_folder = masks  # of the only video
            if name in siblings:
                mask_folder = folder / siblings[name]
            # A video without a folder of masks is unannotated, even if others have masks.
            if mask_folder is not None and not mask_folder.is_dir():
                mask_folder = None
            videos[name] = self._video(folder / name, listing, mask_folder)
        self._dropped.loose_frames += [folder / name for name in here.files]
        return videos

    def _video(self, folder: Path, listing: Listing, masks: Path | None) -> VideoFolder:
        """Find the frames of one video, and the masks in its folder if there are no others."""
        inner = None if listing.files else find_frame_folder(folder, listing.folders)
        if masks is None and (masks := find_mask_folder(folder, listing.folders)):
            self._note(masks)
        rest = [folder / n for n in listing.folders if folder / n not in (masks, inner)]
        self._dropped.add(folder, listing.others)
        if inner is not None:
            folder, listing = inner, list_folder(inner, FRAME_ENDINGS)
            rest += [folder / n for n in listing.folders]
            self._dropped.add(folder, listing.others)
        self._dropped.subfolders += [path for path in rest if holds_pictures(path)]
        if masks is not None:
            return VideoFolder(folder, listing.files, masks)
        frames, beside, suffix, others = split_masks(listing.files)
        if beside:
            self._note(folder / f"*{suffix}.*")
        self._dropped.other_masks += [folder / name for name in others]
        return VideoFolder(folder, frames, None, beside)

    def _note(self, masks: Path) -> None:
        """Add a remark about the masks of the first video."""
        if not any(remark.kind == NOTE for remark in self.remarks):
            self.remarks.append(Remark(NOTE, str(self.root), f"masks are read from {masks}"))

    def _find_orphans(self, masks: Path) -> None:
        used = {same_form(video.masks.name) for video in self.videos.values() if video.masks}
        folders = list_folder(masks, ()).folders
        self._dropped.orphans += [masks / n for n in sorted(folders) if same_form(n) not in used]

    def _find_folders(
        self, resolution: str | None, masks_path: Path | None
    ) -> tuple[Path, Path | None]:
        """Return the folder of the videos, and the folder of the masks or None."""
        images, annotations = (_find_folder(self.root, n) for n in ("JPEGImages", "Annotations"))
        if images is None:
            names = list_folder(self.root, ()).folders
            # A given folder needs no search, which may be ambiguous.
            masks = masks_path or find_mask_folder(self.root, names)
            frames = (
                find_frame_folder(self.root, names) if masks and masks.parent == self.root else None
            )
            return (frames, masks) if frames else (self.root, masks or annotations)
        inner = _list_videos(images)
        # Folders of frames are videos; folders of folders only are resolutions.
        names = sorted(
            n
            for n, listing in inner.items()
            if listing.folders
            and not listing.files
            and not find_frame_folder(images / n, listing.folders)
        )
        flat = not names or any(listing.files for listing in inner.values())
        if flat and resolution is None:
            return images, annotations
        if resolution is None and len(names) > 1 and "480p" in names:
            logger.info("{}: using 480p of the resolutions {}", images, names)
            resolution = "480p"
        chosen = resolution or (names[0] if len(names) == 1 else None)
        if chosen not in names:
            raise DataError(
                str(images),
                key="resolution",
                value=chosen,
                expected=f"one of {', '.join(names)}",
                hint="give one of these" if chosen else "there are several: keep one of them",
            )
        if annotations is None:
            return images / chosen, None
        if not (annotations / chosen).is_dir():
            raise DataError(
                f"{images / chosen} has no counterpart {annotations / chosen}",
                hint="put the masks there",
            )
        return images / chosen, annotations / chosen

    def _hint(self, folder: Path) -> str:
        """Describe the content of the folder, and suggest what to use."""
        inner = [p.parent.name for p in self.root.glob("*/JPEGImages*") if p.is_dir()]
        if inner:
            return f"it contains the datasets {', '.join(sorted(set(inner)))}; use one of them"
        if videos := list_folder(self.root, VIDEO_ENDINGS).files:
            return f"it contains video files such as {min(videos)}; set dataset.type=files"
        return f"expected {LAYOUTS}; {folder} contains {_summary(folder)}"


def _reject_other_pictures(root: Path) -> None:
    """Raise if a folder without frames, up to three levels deep, has images to convert."""
    folders = [root]
    for folder in folders:
        listing = list_folder(folder, OTHER_PICTURES)
        if listing.files:
            first = folder / min(listing.files)
            ending = first.suffix
            raise DataError(
                f"{root} has no readable frames, but {len(listing.files)} files such as "
                f"{first}; frames are {', '.join(FRAME_ENDINGS)}",
                hint="convert them, for example with ImageMagick: "
                f"cd {quote(str(first.parent))}; magick mogrify -format png *{ending}",
            )
        if len(folder.relative_to(root).parts) < 3:
            folders += [folder / name for name in sorted(listing.folders)[:MAX_SEARCHED]]


def _find_folder(root: Path, name: str) -> Path | None:
    """Return the folder of this name, or else the only one named ``NAME_*``, or None."""
    if (root / name).is_dir():
        return root / name
    longer = sorted(p for p in root.glob(f"{name}_*") if p.is_dir())
    if len(longer) > 1:
        raise DataError(
            f"{root} has several candidates for {name}: {', '.join(p.name for p in longer)}",
            hint=f"rename the one to use to {name}",
        )
    return longer[0] if longer else None


def _list_videos(folder: Path) -> dict[str, Listing]:
    return {
        name: list_folder(folder / name, FRAME_ENDINGS)
        for name in list_folder(folder, FRAME_ENDINGS).folders
    }


def _summary(folder: Path) -> str:
    names = sorted(p.name + "/" * p.is_dir() for p in folder.iterdir())
    more = f" and {len(names) - 8} more" if len(names) > 8 else ""
    return ", ".join(names[:8]) + more or "nothing"
