"""Read folders of video files, with or without masks beside them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sam2kit.data.sources.base import ObjectId, VideoSource, open_members
from sam2kit.data.sources.coco import COCODataset
from sam2kit.data.sources.dropped import DroppedFiles
from sam2kit.data.sources.frame_folders import MaskedFrames
from sam2kit.data.sources.listing import (
    JPEG_ENDINGS,
    MASK_ENDINGS,
    VIDEO_ENDINGS,
    find_entry,
    first_number,
    list_folder,
    log_ignored,
    natural_key,
    read_split,
    same_form,
    sort_files,
    stem,
)
from sam2kit.data.sources.mask_files import JPEG_KINDS, MaskFiles, share_decision
from sam2kit.data.sources.mask_search import (
    find_mask_folder,
    image_keys,
    is_mask_folder,
    label_base,
)
from sam2kit.data.sources.video_decoder import VideoFile
from sam2kit.utils.errors import DataError


class VideoFileSource(VideoSource):
    """Base class for sources of several video files, which keep one file open at a time.

    Args:
        paths: the files by the names of their videos.
    """

    def __init__(self, paths: dict[str, Path]) -> None:
        self.names = list(paths)
        self._paths = list(paths.values())
        self._open: tuple[int, VideoFile] | None = None

    def video(self, i: int) -> VideoFile:
        """Return the file of video ``i``, and close the file of the video that was read before."""
        if self._open is None or self._open[0] != i:
            if self._open is not None:
                self._open[1].close()
            self._open = i, self._open_file(i)
        return self._open[1]

    def _open_file(self, i: int) -> VideoFile:
        return VideoFile(self._paths[i])

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return self.video(i).read_frame(0, t)

    def frame_rate(self, i: int) -> float:
        return self.video(i).fps

    def video_path(self, i: int) -> Path | None:
        return self._paths[i]


class VideoFileDataset(VideoFileSource, MaskedFrames):
    """Read a folder of video files, or one file, with the decoder of :class:`VideoFile`.

    The files are in the folder or its subfolders: ``ROOT/a.mp4`` and ``ROOT/cam1/a.mp4`` are
    the videos ``a`` and ``cam1/a``. The constructor reads the packets of every file once, to number
    the frames, but decodes none.

    Masks are in ``ROOT/Annotations`` or in ``masks_path``, which is one of:

    * a folder with a subfolder per video, ``VIDEO/00012.png`` or ``VIDEO/OBJECT/00012.png``,
      as in :class:`~sam2kit.data.sources.mask_files.MaskFiles`. The number is the frame index, from
      0; or from 1, as FFmpeg writes frames, if the last frame has a mask of that number and no mask
      is number 0. Frames without a file are unannotated;
    * a COCO JSON file whose videos have the names of the files, and whose ``order_in_video`` is the
      frame index. Frames that it does not list are unannotated.

    Args:
        root: the folder, or one video file.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.
        masks_path: the masks. None (default): ``ROOT/Annotations``, or a folder with another
            usual name (``masks``, ``labels``), if it exists.
        mask_values, mask_colours: as for
            :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.
        strict: raise an error for a file that is not a video. If False, it is left out.

    Raises:
        DataError: no readable videos, two with the same name, a mask beyond the last frame, or no
            masks for any video in the folder of masks; on reading, a damaged frame, or a mask whose
            size differs from its frame.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        masks_path: str | Path | None = None,
        mask_values: str = "auto",
        mask_colours: str | None = None,
        strict: bool = False,
    ) -> None:
        self.root = Path(root)
        paths = find_videos(self.root)
        names = list(paths) if split is None else read_split(split, self.root, paths)
        with ThreadPoolExecutor(8) as pool:  # FFmpeg releases Python's global lock
            opened = dict(
                zip(names, pool.map(_try_open, map(paths.__getitem__, names)), strict=True)
            )
        readable, self._left_out = open_members(opened, _opened, strict, self.root)
        self._videos, names = list(readable.values()), list(readable)
        super().__init__({name: paths[name] for name in names})
        masks = Path(masks_path) if masks_path is not None else None
        if masks is None and self.root.is_dir():
            masks = find_mask_folder(self.root, list_folder(self.root, ()).folders)
        self.has_masks = masks is not None
        dropped = DroppedFiles(self.root, has_masks=self.has_masks)
        if self.root.is_dir():
            others = list_folder(self.root, VIDEO_ENDINGS).others
            dropped.add_data(self.root, [n for n in others if self.root / n != masks])
            dropped.mask_videos += find_mask_videos(self.root)
        self._masks: list[MaskFiles | COCOMasks | None] = []
        if masks is not None and masks.suffix.lower() == ".json":
            content = COCODataset(masks, files=False)
            indices = {name: k for k, name in enumerate(content.names)}
            for i, name in enumerate(names):
                count = self.num_frames(i)
                video = indices.get(name)
                self._masks.append(
                    None if video is None else COCOMasks(content, masks, video, name, count)
                )
        elif masks is not None:
            is_jpeg = mask_values in JPEG_KINDS
            entries = [find_entry(masks, name) for name in names]
            folders = {i: path for i, path in enumerate(entries) if path.is_dir()}
            first = first_number((_mask_numbers(p), self.num_frames(i)) for i, p in folders.items())
            mask_files = [
                _mask_files(folders[i], self.num_frames(i), is_jpeg, first or 0)
                if i in folders
                else None
                for i in range(len(names))
            ]
            dropped.add_numbering(first, *folders.values())
            self._masks += mask_files
            existing = [files for files in mask_files if files is not None]
            for files in existing:
                dropped.add(files.folder, files.others)
                dropped.jpeg_masks += files.dropped
            if masks_path is None:
                known = {same_form(name.split("/")[0]) for name in paths}
                inner = sorted(list_folder(masks, ()).folders)
                dropped.orphans += [masks / n for n in inner if same_form(n) not in known]
            self._decision = share_decision(existing, mask_values, mask_colours, self.root)
        if masks is not None and not any(self._masks):
            raise DataError(
                f"{masks} has no masks for any of the {len(names)} videos, such as {names[0]!r}",
                hint="name folders of masks, or the videos of a COCO JSON file, like the video "
                "files",
            )
        self._remarks = dropped.report()

    def _open_file(self, i: int) -> VideoFile:
        return self._videos[i]

    def num_frames(self, i: int) -> int:
        return self._videos[i].num_frames(0)

    def masks_of(self, i: int, t: int) -> tuple[MaskFiles | None, int]:
        masks = self._masks[i] if self.has_masks else None
        return masks if isinstance(masks, MaskFiles) else None, t

    def annotated_frames(self, i: int) -> Iterator[int]:
        masks = self._masks[i] if self.has_masks else None
        return iter([]) if masks is None else iter(masks.annotated())

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        if not 0 <= t < self.num_frames(i):
            raise IndexError(f"frame {t} of {self._paths[i]}, which has {self.num_frames(i)}")
        masks = self._masks[i] if self.has_masks else None
        if masks is None:
            return None
        return masks.read(t, f"{t} of {self._paths[i]}", self.video(i).size)


class COCOMasks:
    """Read the masks of one video file from a COCO JSON file.

    Args:
        content: the JSON file, opened without image files.
        file: its path, for error messages.
        video: index of the video in ``content``.
        name: name of the video.
        num_frames: number of frames of the video file.
    """

    def __init__(
        self, content: COCODataset, file: Path, video: int, name: str, num_frames: int
    ) -> None:
        self.content, self.file, self.video = content, file, video
        orders = [content.order(self.video, k) for k in range(content.num_frames(self.video))]
        # Frame index in the video file -> index among the frames that the JSON file lists.
        self.positions = {t: k for k, t in enumerate(orders)}
        outside = [t for t in orders if t not in range(num_frames)]
        if outside:
            raise DataError(
                f"{file}: video {name!r}",
                key="order_in_video",
                value=outside[0],
                expected=f"a frame index from 0 to {num_frames - 1}",
                hint="for video files, 'order_in_video' counts the frames of the file",
            )

    def annotated(self) -> list[int]:
        """Return the annotated frames, sorted."""
        known = set(self.content.annotated_frames(self.video))
        return sorted(int(t) for t, k in self.positions.items() if k in known)

    def read(self, t: int, frame: str, size: tuple[int, int]) -> dict[ObjectId, np.ndarray] | None:
        if t not in self.positions:
            return None
        masks = self.content.read_masks(self.video, self.positions[t])
        for object_id, mask in (masks or {}).items():
            if mask.shape != size:
                raise DataError(
                    f"{self.file}: the mask of object {object_id!r} has {mask.shape[0]} rows and "
                    f"{mask.shape[1]} columns, but its frame {frame} has {size[0]} and {size[1]}",
                    hint="export masks at the size of their frames",
                )
        return masks


def find_videos(root: Path) -> dict[str, Path]:
    """Find the video files in a folder and its direct subfolders.

    Returns:
        The files by the names of their videos, sorted by name. A file ``root`` is the only entry.

    Raises:
        DataError: there are no video files, or two with the same name.
    """
    if root.is_file():
        return {root.stem: root}
    videos: dict[str, Path] = {}
    for folder, prefix in _video_folders(root).items():
        files = sort_files(list_folder(folder, VIDEO_ENDINGS).files, folder)
        masks = _masks_among(files)
        videos |= {f"{prefix}{stem(name)}": folder / name for name in files if name not in masks}
    if not videos:
        raise DataError(
            f"{root} contains no video files ({', '.join(VIDEO_ENDINGS)})",
            hint="give another folder, or set dataset.type=video for folders of frames",
        )
    # JSON files are annotations (SA-V, COCO) and expected beside the videos.
    others = list_folder(root, VIDEO_ENDINGS).others
    others = [name for name in others if not name.lower().endswith(".json")]
    log_ignored(root, others + [path.name for path in find_mask_videos(root)])
    return videos


def find_mask_videos(root: Path) -> list[Path]:
    """Return the video files whose names mark them as masks: ``a_mask.mp4``."""
    return [
        folder / name
        for folder in _video_folders(root)
        for name in sorted(_masks_among(list_folder(folder, VIDEO_ENDINGS).files))
    ]


def _video_folders(root: Path) -> dict[Path, str]:
    """Return the folders that may contain video files, and the prefixes of their video names."""
    names = [name for name in list_folder(root, ()).folders if not is_mask_folder(name)]
    return {root: ""} | {root / name: f"{name}/" for name in sorted(names, key=natural_key)}


def _masks_among(files: Sequence[str]) -> set[str]:
    """Return the names of the files that are masks of another file."""
    stems = {key for name in files for key in image_keys(stem(name))}
    return {name for name in files if label_base(stem(name)) in stems}


def _try_open(path: Path) -> VideoFile | DataError:
    try:
        return VideoFile(path)
    except DataError as error:
        return error


def _opened(video: VideoFile | DataError) -> VideoFile:
    if isinstance(video, DataError):
        raise video
    return video


def _mask_numbers(folder: Path) -> set[int]:
    """Return the frame numbers in the names of the masks of a video."""
    endings = MASK_ENDINGS + JPEG_ENDINGS
    listing = list_folder(folder, endings)
    inner = [name for f in listing.folders for name in list_folder(folder / f, endings).files]
    stems = [stem(name) for name in listing.files or inner]
    return {int(name) for name in stems if name.isdecimal() and len(name) < 10}


def _mask_files(folder: Path, num_frames: int, jpeg: bool, first: int) -> MaskFiles:
    """Index the masks of a video file, which are named by frame number, counted from ``first``."""
    numbered = {t + first: t for t in range(num_frames)}
    return MaskFiles(
        folder,
        num_frames,
        lambda name: numbered.get(int(name)) if name.isdecimal() else None,
        f"name masks by frame index, from {first} to {num_frames - 1 + first}",
        jpeg,
    )
