"""Read SA-V: video files with masklets in JSON files beside them."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from sam2kit.data.rle import decode
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.listing import read_split
from sam2kit.data.sources.video_decoder import VideoFile
from sam2kit.data.sources.video_files import VideoFileSource, find_videos
from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import MAX_FRAMES, read_json

# SA-V has 24 frames per second and annotations at 6 (Ravi et al., SAM 2, 2024).
FRAMES_PER_ANNOTATION = 4


class SAVDataset(VideoFileSource):
    """Read videos of SA-V: ``NAME.mp4`` with ``NAME_manual.json`` or ``NAME_auto.json`` beside it.

    The files are in the directory or in its subdirectories, as in the release
    (``sav_000/sav_000001.mp4``). ``masklet[k][n]`` is the mask of object ``masklet_id[n]`` on frame
    ``4 k``; the frames between are unannotated. The constructor reads only the head of each JSON
    file, for ``video_frame_count``.

    Args:
        root: the directory, or one video file.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.
        masklets: ``manual`` or ``auto``: every video must have this JSON file. ``both``: the files
            that exist; the objects are then named ``manual_0`` and ``auto_0``, because both files
            count from 0.

    Raises:
        DataError: no videos, a video without its JSON file, an invalid JSON file; on reading,
            masklets that do not match the video in number or size.
    """

    def __init__(
        self, root: str | Path, split: str | None = None, masklets: str = "manual"
    ) -> None:
        self.root = Path(root)
        videos = {path.stem: path for path in find_videos(self.root).values()}
        names = list(videos) if split is None else read_split(split, self.root, videos)
        super().__init__({name: videos[name] for name in names})
        self.masklets = masklets
        self._counts = [_frame_count(self._files(i)[0]) for i in range(len(names))]
        # Frames are usually read video after video, so the masklets of one video are cached.
        self._recent: tuple[int, list[dict[str, Any]]] | None = None

    def _files(self, i: int) -> list[Path]:
        """Return the JSON files of video ``i``."""
        kinds = ("manual", "auto") if self.masklets == "both" else (self.masklets,)
        video = self._paths[i]
        candidates = [video.with_name(f"{video.stem}_{kind}.json") for kind in kinds]
        files = [path for path in candidates if path.is_file()]
        if not files:
            others = [p.name for p in video.parent.glob(f"{video.stem}_*.json")]
            raise DataError(
                f"{video} has no {' or '.join(p.name for p in candidates)} beside it, but "
                f"{', '.join(others) or 'no JSON file'}",
                hint="remove it from the split, or set dataset.sav_masklets",
            )
        return files

    def num_frames(self, i: int) -> int:
        return self._counts[i]

    def _open_file(self, i: int) -> VideoFile:
        video = super()._open_file(i)
        if video.num_frames(0) < self._counts[i]:
            raise DataError(
                f"{self._paths[i]} has {video.num_frames(0)} frames, but 'video_frame_count' in "
                f"{self._files(i)[0].name} is {self._counts[i]}",
                hint="download both files again",
            )
        return video

    def _content(self, i: int) -> list[dict[str, Any]]:
        """Return the content of the JSON files of video ``i``, and cache it."""
        if self._recent is None or self._recent[0] != i:
            self._recent = i, [self._load(i, path) for path in self._files(i)]
        return self._recent[1]

    def _load(self, i: int, path: Path) -> dict[str, Any]:
        try:
            content = read_json(path, hint="download the file again")
            frames, ids = content["masklet"], content["masklet_id"]
            if any(len(frame) != len(ids) for frame in frames):
                raise ValueError("each frame of 'masklet' needs one mask per 'masklet_id'")
            if not all(isinstance(object_id, (int, str)) for object_id in ids):
                raise ValueError("each 'masklet_id' must be a number or a text")
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{path} is not an SA-V annotation: {error!r}", hint="download the file again"
            ) from error
        if len(frames) > -(-self._counts[i] // FRAMES_PER_ANNOTATION):
            raise DataError(
                f"{path} has masklets for {len(frames)} frames, which is more than one in "
                f"{FRAMES_PER_ANNOTATION} of the {self._counts[i]} frames of its video",
                hint="download the file again",
            )
        return {"path": path, "masklet": frames, "masklet_id": ids}

    def annotated_frames(self, i: int) -> Iterator[int]:
        count = max(len(content["masklet"]) for content in self._content(i))
        return iter(range(0, self._counts[i], FRAMES_PER_ANNOTATION)[:count])

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        if not 0 <= t < self._counts[i]:
            raise IndexError(f"frame {t} of {self._paths[i]}, which has {self._counts[i]}")
        masks: dict[ObjectId, np.ndarray] | None = None
        for content in self._content(i):
            k = t // FRAMES_PER_ANNOTATION
            if t % FRAMES_PER_ANNOTATION or k >= len(content["masklet"]):
                continue
            masks = masks or {}
            kind = content["path"].stem.rpartition("_")[2]
            for object_id, runs in zip(content["masklet_id"], content["masklet"][k], strict=True):
                where = f"{content['path']}: masklet {object_id} on frame {t}"
                mask = decode(runs, self.video(i).size, where)
                if mask.any():
                    masks[f"{kind}_{object_id}" if self.masklets == "both" else object_id] = mask
        return masks


def _frame_count(path: Path) -> int:
    """Read ``video_frame_count``, usually without parsing the whole file."""
    try:
        # The files have megabytes, and the key is near the beginning.
        with path.open("rb") as file:
            head = file.read(4096)
        match = re.search(rb'"video_frame_count":\s*(\d+)', head)
        count = int(match[1]) if match else int(read_json(path)["video_frame_count"])
    except (OSError, ValueError, KeyError, TypeError, OverflowError) as error:
        raise DataError(
            f"{path} is not an SA-V annotation: its 'video_frame_count' cannot be read ({error!r})",
            hint="download the file again",
        ) from error
    if not 1 <= count <= MAX_FRAMES:
        raise DataError(
            str(path),
            key="video_frame_count",
            value=count,
            expected=f"from 1 to {MAX_FRAMES}",
            hint="download the file again",
        )
    return count
