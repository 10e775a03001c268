"""Many video files as a source, with masks beside them or without."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.coco import COCODataset
from sam2kit.data.sources.frame_folders import MaskedFrames
from sam2kit.data.sources.listing import (
    VIDEO_ENDINGS,
    in_order,
    list_folder,
    natural_key,
    read_split,
    stem,
    tell_others,
)
from sam2kit.data.sources.mask_files import MaskFiles
from sam2kit.data.sources.video_decoder import VideoFile
from sam2kit.utils.errors import DataError


class FilmedVideos(VideoSource):
    """What sources of video files share: the frames. One file is kept open at a time.

    Args:
        paths: the files by the names of their videos.
    """

    def __init__(self, paths: dict[str, Path]) -> None:
        self.names = list(paths)
        self._paths = list(paths.values())
        self._open: tuple[int, VideoFile] | None = None

    def video(self, i: int) -> VideoFile:
        """The file of video ``i``; the one that was read before is closed."""
        if self._open is None or self._open[0] != i:
            if self._open is not None:
                self._open[1].close()
            self._open = i, self._open_file(i)
        return self._open[1]

    def _open_file(self, i: int) -> VideoFile:
        return VideoFile(self._paths[i])

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return self.video(i).read_frame(0, t)


class VideoFileDataset(FilmedVideos, MaskedFrames):
    """A folder of video files (or one file), read as :class:`VideoFile` does.

    Files lie in the folder or in folders in it, ``ROOT/cam1/a.mp4``, and are videos ``a`` and
    ``cam1/a``. Every file's packets are read once at the start, to number its frames; nothing is
    decoded.

    Masks are in ``ROOT/Annotations``, or where ``masks_path`` says:

    * a folder with one for each video, ``VIDEO/00012.png`` or ``VIDEO/OBJECT/00012.png``, as
      :class:`~sam2kit.data.sources.mask_files.MaskFiles` has them. The number is the frame's, the
      first frame is 0. Frames without a file are not annotated;
    * a COCO JSON whose videos are named as the files are, and ``order_in_video`` the number of the
      frame. Frames that it does not list are not annotated.

    Args:
        root: the folder, or one video file.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.
        masks_path: None takes ``ROOT/Annotations``, where there is one.

    Raises:
        DataError: no videos, two of one name, a file that is no video, a mask beyond the last
            frame, videos without masks among others with; on reading, a damaged frame, a mask whose
            size is not its frame's.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        masks_path: str | Path | None = None,
    ) -> None:
        self.root = Path(root)
        found = find_videos(self.root)
        names = list(found) if split is None else read_split(split, self.root, found)
        super().__init__({name: found[name] for name in names})
        with ThreadPoolExecutor(8) as pool:  # FFmpeg works outside Python's lock
            self._videos = list(pool.map(VideoFile, self._paths))
        beside = self.root / "Annotations"
        masks = Path(masks_path) if masks_path is not None else beside if beside.is_dir() else None
        self.has_masks = masks is not None
        self._masks: list[MaskFiles | _COCOMasks] = []
        if masks is not None and masks.suffix.lower() == ".json":
            content = COCODataset(masks, files=False)
            place = {name: k for k, name in enumerate(content.names)}
            for i, name in enumerate(names):
                count = self.num_frames(i)
                self._masks.append(_COCOMasks(content, masks, place.get(name), name, count))
        elif masks is not None:
            own = [_mask_files(masks / n, self.num_frames(i)) for i, n in enumerate(names)]
            tell_others(masks, [other for files in own for other in files.others])
            self._masks += own

    def _open_file(self, i: int) -> VideoFile:
        return self._videos[i]

    def num_frames(self, i: int) -> int:
        return self._videos[i].num_frames(0)

    def masks_of(self, i: int, t: int) -> tuple[MaskFiles | None, int]:
        masks = self._masks[i] if self.has_masks else None
        return masks if isinstance(masks, MaskFiles) else None, t

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        if not 0 <= t < self.num_frames(i):
            raise IndexError(f"frame {t} of {self._paths[i]}, which has {self.num_frames(i)}")
        if not self.has_masks:
            return None
        return self._masks[i].read(t, f"{t} of {self._paths[i]}", self.video(i).size)


class _COCOMasks:
    """The masks that a COCO JSON has of one video file."""

    def __init__(
        self, content: COCODataset, file: Path, video: int | None, name: str, num_frames: int
    ) -> None:
        if video is None:
            raise DataError(
                f"{file} has no video {name!r}, and the folder has a file of that name; "
                "add it, or leave it out of the split"
            )
        self.content, self.file, self.video = content, file, video
        orders = [content.order(self.video, k) for k in range(content.num_frames(self.video))]
        self.place = {t: k for k, t in enumerate(orders)}
        outside = [t for t in orders if t not in range(num_frames)]
        if outside:
            raise DataError(
                f"{file}: 'order_in_video' {outside[0]:g} of video {name!r}, whose file has "
                f"{num_frames} frames; for a video file it is the number of the frame, from 0"
            )

    def read(self, t: int, frame: str, size: tuple[int, int]) -> dict[ObjectId, np.ndarray] | None:
        if t not in self.place:
            return None
        masks = self.content.read_masks(self.video, self.place[t])
        for who, mask in (masks or {}).items():
            if mask.shape != size:
                raise DataError(
                    f"{self.file}: object {who!r} has a mask of {list(mask.shape)}, its "
                    f"frame {frame} is {list(size)}; masks must have their frame's size"
                )
        return masks


def find_videos(root: Path) -> dict[str, Path]:
    """Video files by name, in order: those in a folder, and those in folders in it.

    Raises:
        DataError: there are none, or two of one name.
    """
    if root.is_file():
        return {root.stem: root}
    here = list_folder(root, VIDEO_ENDINGS)
    found = {stem(name): root / name for name in in_order(here.files, root)}
    for folder in sorted(set(here.folders) - {"Annotations"}, key=natural_key):
        files = in_order(list_folder(root / folder, VIDEO_ENDINGS).files, root / folder)
        found |= {f"{folder}/{stem(name)}": root / folder / name for name in files}
    if not found:
        raise DataError(
            f"{root} holds no video files ({', '.join(VIDEO_ENDINGS)}); name another folder, or "
            "for folders of frames give dataset.type=video"
        )
    tell_others(root, [name for name in here.others if not name.lower().endswith(".json")])
    return found


def _mask_files(folder: Path, num_frames: int) -> MaskFiles:
    """The masks of a video file, by the numbers of its frames."""
    if not folder.is_dir():
        raise DataError(
            f"{folder} is missing, and it is to hold the masks of a video; add it, or leave "
            f"{folder.name!r} out of the split"
        )
    return MaskFiles(
        folder,
        num_frames,
        lambda name: int(name) if name.isdecimal() and int(name) < num_frames else None,
        f"name masks by the number of their frame, 0 to {num_frames - 1}",
    )
