"""Masks on disk: results of any tracker read and scored, this package's written.

Written are palette PNG in DAVIS layout (one folder per video), one SA-V JSON per video, a COCO JSON
over all videos, and a table of scores per object.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from pycocotools import mask as mask_utils

from sam2kit.data.masks import OBJECTS_FILE, VOID, object_names, read_id_mask, values_in
from sam2kit.data.source import ObjectId, VideoSource
from sam2kit.errors import DataError
from sam2kit.scores import CONVENTIONS, Convention, DataSetScores, VideoScorer, VideoScores


def score_predictions(
    source: VideoSource, folder: str | Path, convention: Convention | None = None
) -> DataSetScores:
    """Score anybody's masks in DAVIS layout, ``FOLDER/VIDEO/FRAME.png``.

    Every annotated frame of every video needs a mask of the frame's name and size. Where the
    convention counts frames after a prompt, an object's first visible frame is taken for it.

    Args:
        source: the truth.
        folder: the masks; its name becomes the tracker's.
        convention: None takes ``davis2016`` where no video of the truth has more than one object
            (then all that a result shows is that object, whatever numbers it has), else
            ``davis2017``.

    Raises:
        DataError: no such folder or file, an unreadable mask, another size, ids that only the
            prediction has (unless the convention ignores them), no object in any video.
    """
    folder = Path(folder)
    missing = [name for name in source.names if not (folder / name).is_dir()]
    if missing:
        raise DataError(
            f"{folder} has no folder for {len(missing)} of {len(source)} videos, such as "
            f"{missing[0]!r}; results lie in {folder.name}/VIDEO/FRAME.png (name the videos to "
            "score in valdataset.split)"
        )
    seen = [first_visible_frames(source, i) for i in range(len(source))]
    objects = [len(first) for first, _ in seen]
    if not any(objects):
        raise DataError("the truth shows no object in any video; there is nothing to score")
    if convention is None:
        convention = CONVENTIONS["davis2017" if max(objects) > 1 else "davis2016"]
    paths = [
        {t: folder / name / f"{source.frame_name(i, t)}.png" for t in seen[i][1]}
        for i, name in enumerate(source.names)
    ]
    absent = [path for files in paths for path in files.values() if not path.is_file()]
    if absent:
        raise DataError(
            f"{absent[0]} is missing, one of {len(absent)}: every annotated frame needs a mask "
            "of its name (an empty one where nothing was found)"
        )
    videos = [
        _score_video(source, i, paths[i], convention, seen[i][0], object_names(folder / name))
        for i, name in enumerate(source.names)
    ]
    return DataSetScores(folder.resolve().name, videos)


def _score_video(
    source: VideoSource,
    i: int,
    files: Mapping[int, Path],
    convention: Convention,
    first_seen: dict[ObjectId, int],
    names: Mapping[int, ObjectId],
) -> VideoScores:
    scorer = VideoScorer(source.names[i], convention, list(first_seen))
    for t in range(source.num_frames(i)):
        truth = source.read_masks(i, t)
        found: dict[ObjectId, np.ndarray] = {}
        if t in files:
            size = next((mask.shape for mask in (truth or {}).values()), None)
            found = read_result(files[t], names, size or source.read_frame(i, t).shape[:2])
        void = source.read_void(i, t) if convention.void == "ignore" else None
        prompted = [o for o, first in first_seen.items() if first == t]
        scorer.add(t, truth, found, void, prompted if convention.after_prompt else ())
    return scorer.result()


def first_visible_frames(source: VideoSource, i: int) -> tuple[dict[ObjectId, int], list[int]]:
    """The frame on which each object of video ``i`` is first seen, and the annotated frames."""
    first: dict[ObjectId, int] = {}
    annotated = []
    for t in range(source.num_frames(i)):
        if (masks := source.read_masks(i, t)) is not None:
            annotated.append(t)
            for identity, mask in masks.items():
                if identity not in first and mask.any():
                    first[identity] = t
    return first, annotated


def read_result(
    path: Path, names: Mapping[int, ObjectId], size: tuple[int, ...]
) -> dict[ObjectId, np.ndarray]:
    """One PNG of a tracker's masks, bool ``[H,W]`` by object.

    Args:
        names: see :func:`object_names`.
        size: H and W of the frame.

    Raises:
        DataError: unreadable, or of another size.
    """
    ids = read_id_mask(path)
    if ids.shape != size:
        raise DataError(
            f"{path} has {ids.shape[0]} rows and {ids.shape[1]} columns, its frame "
            f"{size[0]} and {size[1]}; results must have the frames' size"
        )
    return {names.get(n, n): ids == n for n in values_in(ids) if n}


class MaskWriter:
    """One video's masks as palette PNG while it is tracked, and as SA-V JSON afterwards.

    Objects keep their numbers in the PNG where these are 1 to 254 (255 is void); otherwise they are
    numbered from 1 and ``objects.json`` in the folder says which is which. A PNG has one object per
    pixel: where masks overlap, the one with the highest logit gets it, and of equal ones the first.
    The JSON keeps overlapping masks whole.

    Args:
        folder: of the PNG files, made if need be; None: no PNG.
        video: its name.
        object_ids: the objects in order.

    Raises:
        DataError: more objects than a palette has colours for.
    """

    def __init__(self, folder: Path | None, video: str, object_ids: Sequence[ObjectId]) -> None:
        self.folder, self.video, self.object_ids = folder, video, list(object_ids)
        self._frames: list[str] = []
        self._runs: list[list[dict[str, Any]]] = []
        kept = all(isinstance(i, int) and 0 < i < VOID for i in self.object_ids)
        self._numbers = [int(i) if kept else n + 1 for n, i in enumerate(self.object_ids)]
        if folder is None:
            return
        if len(self.object_ids) >= VOID:
            raise DataError(
                f"{video} has {len(self.object_ids)} objects and a palette PNG holds {VOID - 1}; "
                "leave the PNG files out and use the JSON"
            )
        folder.mkdir(parents=True, exist_ok=True)
        if not kept:
            named = dict(zip(self._numbers, self.object_ids, strict=True))
            (folder / OBJECTS_FILE).write_text(json.dumps(named))

    def add(self, frame_name: str, masks: Mapping[ObjectId, np.ndarray], size: Any) -> None:
        """Write one frame; frames come in order.

        Args:
            frame_name: the frame's name without ending.
            masks: ``[H,W]`` logits by object, above 0 inside, or bool; a missing one is empty.
            size: H and W.
        """
        empty = np.zeros(size, bool)
        stack = np.stack([np.asarray(masks.get(i, empty), np.float32) for i in self.object_ids])
        inside = np.asfortranarray((stack > 0).transpose(1, 2, 0), np.uint8)
        runs = mask_utils.encode(inside)
        self._frames.append(frame_name)
        self._runs.append([{"size": list(r["size"]), "counts": r["counts"].decode()} for r in runs])
        if self.folder is not None:
            ids = np.array(self._numbers, np.uint8)[stack.argmax(0)] * (stack.max(0) > 0)
            image = Image.fromarray(ids.astype(np.uint8))
            image.putpalette(davis_palette().tobytes())
            image.save(self.folder / f"{frame_name}.png")

    def sav(self) -> dict[str, Any]:
        """The video in SA-V's form: ``masklet[t][o]`` are run lengths, ``masklet_id`` the objects.

        ``frame_names`` is an addition: the file names that the T masks belong to.
        """
        areas = np.array([[mask_utils.area(r) for r in row] for row in self._runs])
        height, width = self._runs[0][0]["size"] if areas.size else (0, 0)
        return {
            "video_id": self.video,
            "video_frame_count": len(self._frames),
            "video_height": height,
            "video_width": width,
            "masklet": self._runs,
            "masklet_id": self.object_ids,
            "masklet_num": len(self.object_ids),
            "masklet_frame_count": [len(self._frames)] * len(self.object_ids),
            "masklet_first_appeared_frame": [
                int(np.flatnonzero(a)[0]) if a.any() else None for a in areas.T
            ],
            "masklet_type": ["predicted"] * len(self.object_ids),
            "frame_names": self._frames,
        }


def coco_json(videos: Iterable[Mapping[str, Any]], ending: str = ".jpg") -> dict[str, Any]:
    """Videos in SA-V's form (:meth:`MaskWriter.sav`) as one COCO JSON.

    ``file_name`` is ``VIDEO/FRAME`` with ``ending``; annotations have ``track_id`` and run lengths;
    a frame on which nothing was found has none. ``type=coco`` data sets read it.
    """
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for video in videos:
        for t, (name, row) in enumerate(zip(video["frame_names"], video["masklet"], strict=True)):
            images.append(
                {
                    "id": len(images) + 1,
                    "video_id": video["video_id"],
                    "order_in_video": t,
                    "file_name": f"{video['video_id']}/{name}{ending}",
                    "height": video["video_height"],
                    "width": video["video_width"],
                }
            )
            for identity, runs in zip(video["masklet_id"], row, strict=True):
                if area := int(mask_utils.area(runs)):
                    annotations.append(
                        {
                            "id": len(annotations) + 1,
                            "image_id": len(images),
                            "category_id": 1,
                            "track_id": identity,
                            "segmentation": runs,
                            "area": area,
                            "bbox": mask_utils.toBbox(runs).tolist(),
                            "iscrowd": 0,
                        }
                    )
    categories = [{"id": 1, "name": "object"}]
    return {"images": images, "annotations": annotations, "categories": categories}


def write_csv(path: Path, trackers: Sequence[DataSetScores]) -> None:
    """One row for each tracker, video and object, with the columns of :meth:`VideoScores.objects`.

    A score that nothing is there for is empty.
    """
    rows = [
        {"tracker": t.tracker, "video": video.name, "object": identity, **scores}
        for t in trackers
        for video in t.videos
        for identity, scores in video.objects().items()
    ]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]) if rows else ["tracker", "video", "object"])
        writer.writeheader()
        writer.writerows(rows)


def davis_palette() -> np.ndarray:
    """``[256,3]`` uint8: the colours of DAVIS's PNG files, which are PASCAL VOC's.

    Bits 0, 3 and 6 of a number are the highest bits of its red, 1, 4 and 7 of its green, 2 and 5
    of its blue.
    """
    numbers = np.arange(256)
    channels = [sum(((numbers >> (3 * k + c)) & 1) << (7 - k) for k in range(3)) for c in range(3)]
    return np.stack(channels, axis=1).astype(np.uint8)
