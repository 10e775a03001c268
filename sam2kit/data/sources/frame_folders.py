"""Read folders of frames with masks beside them: DAVIS, YouTube-VOS and similar layouts."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np

from sam2kit.data.intensity import IntensityRule, VideoScaler
from sam2kit.data.pictures import image_size, read_picture
from sam2kit.data.sources.base import NOTE, ObjectId, Remark, VideoSource
from sam2kit.data.sources.dropped import DroppedFiles
from sam2kit.data.sources.listing import (
    FRAME_ENDINGS,
    has_two_orders,
    list_folder,
    natural_key,
    read_split,
    same_form,
    sort_files,
    stem,
    unpacked,
)
from sam2kit.data.sources.mask_files import JPEG_KINDS, MaskFiles, share_decision
from sam2kit.data.sources.mask_search import split_masks
from sam2kit.data.sources.mask_values import MaskDecision
from sam2kit.data.sources.video_folders import LAYOUTS, VideoFolder, VideoFolders
from sam2kit.utils.errors import DataError


class MaskedFrames(VideoSource):
    """Base class for sources whose masks are image files, of which one decision gives the meaning.

    Attributes:
        root: the dataset.
    """

    root: Path
    _decision: MaskDecision | None = None  # None: there are no mask files

    @property
    def remarks(self) -> list[Remark]:
        reason = self._decision.values.reason if self._decision and self.has_masks else ""
        return [*super().remarks, *[Remark(NOTE, str(self.root), reason)] * bool(reason)]

    @abstractmethod
    def masks_of(self, i: int, t: int) -> tuple[MaskFiles | None, int]:
        """Return the mask files of video ``i`` and the index of frame ``t`` in them.

        The mask files are None if the source has no masks.
        """

    def mask_paths(self, i: int, t: int) -> list[Path]:
        files, k = self.masks_of(i, t)
        return [path for _, path in files.paths(k)] if files else []

    def annotated_frames(self, i: int) -> Iterator[int]:
        first_files, k = self.masks_of(i, 0)
        if first_files is None:
            return iter(())
        # Still images share one MaskFiles, in which the frame of an image is its position.
        end = k + self.num_frames(i)
        return iter([t - k for t in first_files.annotated() if k <= t < end])

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        path, (files, k) = self.frame_path(i, t), self.masks_of(i, t)
        if files is None or path is None or next(files.paths(k), None) is None:
            return None
        return files.read(k, str(path), image_size(path))

    def read_void(self, i: int, t: int) -> np.ndarray | None:
        files, k = self.masks_of(i, t)
        return files.read_void(k) if files else None


class VideoDataset(MaskedFrames):
    """Read a folder of videos, each a folder of frames, with masks beside them.

    The layouts are ``ROOT/JPEGImages/[RESOLUTION/]VIDEO/*.jpg`` and masks with the same names in
    ``ROOT/Annotations/[RESOLUTION/]VIDEO/`` (DAVIS, YouTube-VOS, MOSE, LVOS), and plain
    ``ROOT/VIDEO/*.jpg``. If one of the two folders is missing, the only folder with a longer
    name replaces it, such as ``JPEGImages_24fps``. Folders with other usual names (``frames``
    and ``masks``, ``imgs`` and ``labels``) are equivalent. Masks are also found in the folder of
    their video (``VIDEO/ground-truth/00000.png``), beside it (``VIDEO_mask/``) and beside their
    frames (``00000_mask.png``). A folder of frames itself is one video.

    Frames are jpg, jpeg, png, webp, bmp, pgm, ppm, tif or tiff files, in upper or lower case. They
    are sorted by name, with numbers compared by value (``2.jpg`` before ``10.jpg``, ``-1.jpg``
    before ``0.jpg``); names need not be numbers, and numbers may have gaps. ``remarks`` lists what
    may be data and is not read. Hidden files, and files that are neither frames nor masks, are
    ignored and logged.

    Masks are read as described in :class:`~sam2kit.data.sources.mask_files.MaskFiles`: PNG, TIFF or
    BMP files that contain object numbers, or one folder of such files per object. A frame without a
    mask file is unannotated.

    Folders are listed once. Up to 256 masks are read to decide what their values mean; no other
    file is opened. Only one string per video is kept in memory, so a million frames need no more
    than the length of their names.

    Args:
        root: the folder.
        split: the videos and their order: a text file with one name per line, or its name under
            ``ROOT/ImageSets`` without ``.txt``, such as ``2016/train``. Lines in the format of
            DAVIS 2016 (``/JPEGImages/480p/bear/00000.jpg ...``) are supported. None (default): all
            videos.
        resolution: the folder to use if there are several resolutions. None (default): 480p, if
            it exists.
        masks_path: the folder with one subfolder of masks per video, or for a single video
            the folder of its masks. None (default): as in the layouts above.
        refused: called with the error of each unusable video, which is then skipped. None
            (default): the first such error is raised.
        mask_values: ``dataset.mask_values``, the meaning of the values of mask files.
        mask_colours: ``dataset.mask_colours``, a colour table.
        intensity: how frames of more than 8 bits are scaled. None (default): the default rule.

    Raises:
        DataError: no videos, an empty folder, a mask without a frame, two frames with the same
            name, or a video of the split that does not exist; on reading, a file that cannot be
            read, or a mask whose size differs from its frame.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        resolution: str | None = None,
        masks_path: str | Path | None = None,
        refused: Callable[[DataError], None] | None = None,
        mask_values: str = "auto",
        mask_colours: str | None = None,
        intensity: IntensityRule | None = None,
    ) -> None:
        self.root = Path(root)
        if not self.root.is_dir():
            raise DataError(f"{self.root} is not a folder", hint=f"expected {LAYOUTS}")
        self._jpeg_masks = mask_values in JPEG_KINDS
        self._scaler = VideoScaler(intensity or IntensityRule())
        self._dropped = DroppedFiles(self.root)
        masks_folder = None if masks_path is None else Path(masks_path)
        layout = VideoFolders(self.root, resolution, masks_folder, self._dropped)
        folders = layout.videos
        self.names: list[str] = []
        self._folders: list[Path] = []
        self._frames: list[str] = []
        self._masks: list[MaskFiles | None] = []
        videos = sorted(folders, key=natural_key)
        selected = videos if split is None else read_split(split, self.root, videos)
        for name in selected:
            try:
                self._add(name, folders[name])
            except DataError as error:
                if refused is None:
                    raise
                refused(error)
        if not self.names:
            raise DataError(
                f"{self.root}: none of the videos can be used",
                hint="fix the errors of the individual videos",
            )
        self.has_masks = any(files is not None for files in self._masks)
        if layout.masks is not None and not self.has_masks:
            raise DataError(
                f"{layout.masks} has no folder for any of the {len(self.names)} videos, such as "
                f"{self.names[0]!r}",
                hint=f"put the masks of a video into {layout.masks / self.names[0]}",
            )
        self._dropped.has_masks = self.has_masks
        self._remarks = [*layout.remarks, *self._dropped.report()]
        mask_files = [files for files in self._masks if files is not None]
        self._decision = share_decision(mask_files, mask_values, mask_colours, self.root)

    def _add(self, name: str, video: VideoFolder) -> None:
        """Add a video."""
        files = sort_files(video.frames, video.folder)
        if not files:
            raise DataError(
                f"{video.folder} contains no frames ({', '.join(FRAME_ENDINGS)})",
                hint="remove the folder, or list the videos to use in dataset.split",
            )
        # An error of the masks must be raised before the video is added: it may be skipped.
        masks = self._masks_of(video, files) if video.has_masks else None
        self.names.append(name)
        self._folders.append(video.folder)
        self._frames.append("/".join(files))  # file names cannot contain a "/"
        self._masks.append(masks)
        if masks is not None:
            self._dropped.add(masks.folder, masks.others)
            self._dropped.jpeg_masks += masks.dropped
        if has_two_orders([stem(file) for file in files]):
            self._dropped.unclear_orders.append(video.folder)

    def _masks_of(self, video: VideoFolder, files: list[str]) -> MaskFiles:
        """Index the masks of a video with the given frames."""
        indices = {same_form(stem(file)): t for t, file in enumerate(files)}
        hint = f"name masks like their frames (first frame: {files[0]})"
        if video.masks is not None:
            return MaskFiles(video.masks, len(files), indices.get, hint, self._jpeg_masks)
        of_mask = {same_form(stem(m)): frame for frame, m in video.masks_beside.items()}
        return MaskFiles(
            video.folder,
            len(files),
            lambda mask: indices.get(of_mask[mask]),
            hint,
            files=list(video.masks_beside.values()),
        )

    def num_frames(self, i: int) -> int:
        return self._frames[i].count("/") + 1

    def frame_name(self, i: int, t: int) -> str:
        return stem(unpacked(self._frames[i])[t])

    def frame_path(self, i: int, t: int) -> Path:
        """Return the file of frame ``t`` of video ``i``."""
        return self._folders[i] / unpacked(self._frames[i])[t]

    def video_path(self, i: int) -> Path:
        """Return the folder of the frames of video ``i``."""
        return self._folders[i]

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_scaled(self, self._scaler, i, t)

    def masks_of(self, i: int, t: int) -> tuple[MaskFiles | None, int]:
        return self._masks[i], t


def list_frames(folder: Path) -> list[Path]:
    """List the frames of one video in the order of :class:`VideoDataset`, without masks.

    Raises:
        DataError: two files differ only in their extension.
    """
    files = split_masks(list_folder(folder, FRAME_ENDINGS).files).frames
    return [folder / name for name in sort_files(files, folder)]


def read_scaled(source: VideoSource, scaler: VideoScaler, i: int, t: int) -> np.ndarray:
    """Read frame ``t`` of video ``i`` of a source whose frames are image files.

    Frames of more than 8 bits are scaled by the range of their video.

    Returns:
        ``[H,W,3]`` uint8 RGB.

    Raises:
        DataError: as :func:`~sam2kit.data.pictures.read_picture` and
            :meth:`~sam2kit.data.intensity.VideoScaler.scale`.
    """

    def read(k: int) -> np.ndarray:
        path = source.frame_path(i, k)
        assert path is not None
        return read_picture(path)

    pixels = scaler.scale(i, read(t), read, source.num_frames(i), source.name(i))
    return pixels if pixels.ndim == 3 else np.repeat(pixels[..., None], 3, axis=2)
