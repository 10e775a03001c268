"""SA-V: video files with masklets in JSON beside them."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np

from sam2kit.data.rle import decode
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.sources.listing import read_split
from sam2kit.data.sources.video_decoder import VideoFile
from sam2kit.data.sources.video_files import FilmedVideos, find_videos
from sam2kit.utils.errors import DataError

# SA-V is filmed at 24 frames a second and annotated at 6 (Ravi et al., SAM 2, 2024).
FRAMES_PER_ANNOTATION = 4


class SAVDataset(FilmedVideos):
    """The videos of SA-V: ``NAME.mp4`` with ``NAME_manual.json`` or ``NAME_auto.json`` beside it.

    They lie in the folder or in folders in it, as in the release (``sav_000/sav_000001.mp4``).
    ``masklet[k][n]`` is the mask of object ``masklet_id[n]`` on frame ``4 k``; frames between are
    not annotated. At the start only the head of each JSON is read, for ``video_frame_count``.

    Args:
        root: the folder, or one video file.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`.
        masklets: manual or auto: that JSON, of every video; both: what there is, and the objects
            are called ``manual_0`` and ``auto_0``, because each counts for itself.

    Raises:
        DataError: no videos, a video without its JSON, a JSON of another form; on reading, masklets
            that do not fit the video in number or size.
    """

    def __init__(
        self, root: str | Path, split: str | None = None, masklets: str = "manual"
    ) -> None:
        self.root = Path(root)
        found = {path.stem: path for path in find_videos(self.root).values()}
        names = list(found) if split is None else read_split(split, self.root, found)
        super().__init__({name: found[name] for name in names})
        self.masklets = masklets
        self._counts = [_frame_count(self._files(i)[0]) for i in range(len(names))]
        self._recent: tuple[int, list[dict[str, Any]]] | None = None

    def _files(self, i: int) -> list[Path]:
        """The JSON files of video ``i``."""
        kinds = ("manual", "auto") if self.masklets == "both" else (self.masklets,)
        video = self._paths[i]
        files = [video.with_name(f"{video.stem}_{kind}.json") for kind in kinds]
        there = [path for path in files if path.is_file()]
        if not there:
            other = [p.name for p in video.parent.glob(f"{video.stem}_*.json")]
            raise DataError(
                f"{video} has no {' or '.join(p.name for p in files)} beside it, but "
                f"{other or 'no JSON'}; leave it out of the split, or choose dataset.sav_masklets"
            )
        return there

    def num_frames(self, i: int) -> int:
        return self._counts[i]

    def _open_file(self, i: int) -> VideoFile:
        video = super()._open_file(i)
        if video.num_frames(0) < self._counts[i]:
            raise DataError(
                f"{self._paths[i]} has {video.num_frames(0)} frames, and {self._files(i)[0].name} "
                f"says {self._counts[i]} in 'video_frame_count'; the two are not of one video"
            )
        return video

    def _content(self, i: int) -> list[dict[str, Any]]:
        if self._recent is None or self._recent[0] != i:
            self._recent = i, [self._load(i, path) for path in self._files(i)]
        return self._recent[1]

    def _load(self, i: int, path: Path) -> dict[str, Any]:
        try:
            content = json.loads(path.read_bytes())
            frames, ids = content["masklet"], content["masklet_id"]
            if any(len(frame) != len(ids) for frame in frames):
                raise ValueError("a frame of 'masklet' has not one mask for each 'masklet_id'")
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DataError(
                f"{path} is no annotation of SA-V: {error!r}; fetch it again"
            ) from error
        if len(frames) > -(-self._counts[i] // FRAMES_PER_ANNOTATION):
            raise DataError(
                f"{path} has masklets of {len(frames)} frames, one for every "
                f"{FRAMES_PER_ANNOTATION}th of a video of {self._counts[i]}; fetch it again"
            )
        return {"path": path, "masklet": frames, "masklet_id": ids}

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
            for who, runs in zip(content["masklet_id"], content["masklet"][k], strict=True):
                where = f"{content['path']}: masklet {who} on frame {t}"
                mask = decode(runs, self.video(i).size, where)
                if mask.any():
                    masks[f"{kind}_{who}" if self.masklets == "both" else who] = mask
        return masks


def _frame_count(path: Path) -> int:
    """``video_frame_count``, which stands at the beginning of a file of megabytes."""
    try:
        with path.open("rb") as file:
            head = file.read(4096)
        told = re.search(rb'"video_frame_count":\s*(\d+)', head)
        count = int(told[1]) if told else int(json.loads(path.read_bytes())["video_frame_count"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} is no annotation of SA-V: its 'video_frame_count' cannot be read "
            f"({error!r}); fetch it again"
        ) from error
    if count < 1:
        raise DataError(f"{path}: 'video_frame_count' is {count}; fetch it again")
    return count
