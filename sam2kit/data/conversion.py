"""Data sets from one layout into another, without loss or not at all."""

from __future__ import annotations

import json
import os
import shutil
from collections import Counter
from collections.abc import Iterable
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from loguru import logger
from PIL import Image

from sam2kit.config.schema import Config
from sam2kit.data.build import open_source
from sam2kit.data.parallel import each_video
from sam2kit.data.problems import place
from sam2kit.data.rle import encode_mask
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.frame_folders import image_size
from sam2kit.data.sources.listing import FRAME_ENDINGS, natural_key
from sam2kit.data.sources.mask_files import VOID
from sam2kit.data.writers import (
    COCO_CATEGORIES,
    coco_annotation,
    coco_image,
    write_id_mask,
    write_object_names,
)
from sam2kit.utils.errors import ConfigError, DataError
from sam2kit.utils.paths import file_name

TARGETS = ("davis", "coco-video")
COCO_FILE = "annotations.json"


def convert(
    what: str | Path | Config | VideoSource, out: str | Path, to: str, workers: int = 0
) -> Path:
    """Write the videos of any source in DAVIS layout or as COCO JSON.

    * ``davis``: ``JPEGImages/VIDEO/FRAME.jpg`` and, for annotated frames, a palette PNG
      ``Annotations/VIDEO/FRAME.png``. A pixel holds one object: masks that overlap are refused, and
      more than 254 objects in a video. Ids other than 1 to 254 are numbered from 1, and
      ``objects.json`` beside the masks says which is which, so that they are read as they were.
    * ``coco-video``: ``annotations.json`` with ``video_id``, ``order_in_video``, ``track_id`` and
      compressed run lengths, and ``images/VIDEO/FRAME.jpg``. Any masks; frames that nobody
      annotated say ``"annotated": false``. It has no place for void pixels, which are logged.

    Frames are copied byte for byte where they are files of their own, else written as PNG. They
    keep their names, unless these contradict the order: then they are numbered from 00000, which is
    logged. Categories, scores and empty masks are left behind. ``out`` appears when all is written.

    Args:
        what: as :func:`~sam2kit.data.build.open_source` takes it.
        out: new or empty.
        to: ``davis`` or ``coco-video``.
        workers: processes that write.

    Returns:
        What to name as the data: the folder, or the JSON in it.

    Raises:
        ConfigError: ``to`` is neither, ``out`` is not empty, or it cannot be written.
        DataError: what the source refuses, and what the target cannot hold, by video, frame and
            object: overlaps, too many objects, a video's name that no folder can have.
    """
    out = Path(out)
    if to not in TARGETS:
        raise ConfigError(f"--to {to}: it must be {' or '.join(TARGETS)}")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ConfigError(f"{out} exists and is not an empty folder; name another one")
    source = open_source(what)
    if not source.has_masks:
        logger.info("the source has no masks: frames alone are written")
    # A sibling that is renamed at the end: what is interrupted is never taken for whole.
    part = out.with_name(f"{out.name}.unfinished-{os.getpid()}")
    try:
        part.mkdir(parents=True)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}") from error
    try:
        work = partial(_write_davis if to == "davis" else _write_coco, out=part)
        written = each_video(work, source, workers, "wrote")
        counts = _gather(written, None if to == "davis" else part / COCO_FILE)
        part.replace(out)
    except OSError as error:
        raise ConfigError(f"{out} cannot be written: {error}; nothing was kept") from error
    finally:
        shutil.rmtree(part, ignore_errors=True)
    logger.info("{} videos, {} frames: {}", len(source), counts["frames"], out)
    for change in ("renumbered", "written as PNG", "without their void pixels"):
        if counts[change]:
            logger.warning("{} of the frames were {}", counts[change], change)
    return out if to == "davis" else out / COCO_FILE


class _Written(NamedTuple):
    """Counts of frames of a video, and COCO's rows of its images and annotations."""

    counts: Counter[str]
    images: list[dict[str, Any]]
    annotations: list[dict[str, Any]]


def _gather(videos: Iterable[_Written], path: Path | None) -> Counter[str]:
    """Add up the counts of all videos; write COCO's rows to ``path`` as they come."""
    if path is None:
        return sum((video.counts for video in videos), Counter())
    counts: Counter[str] = Counter()
    images: list[str] = []
    number = 0
    with path.open("w", encoding="utf-8") as file:
        file.write('{"annotations": [\n')
        for video in videos:
            counts += video.counts
            for row in video.annotations:  # numbered within their video
                row |= {"id": row["id"] + number, "image_id": row["image_id"] + len(images)}
                file.write((",\n" if row["id"] > 1 else "") + json.dumps(row))
            number += len(video.annotations)
            first = len(images)
            images += [json.dumps(row | {"id": row["id"] + first}) for row in video.images]
        file.write('],\n"images": [\n' + ",\n".join(images))
        file.write(f'],\n"categories": {json.dumps(COCO_CATEGORIES)}}}\n')
    return counts


def _write_davis(source: VideoSource, i: int, out: Path) -> _Written:
    counts, files = _write_frames(source, i, out / "JPEGImages")
    if source.has_masks:
        folder = out / "Annotations" / source.name(i)
        folder.mkdir(parents=True)
        stems = [path.stem for path in files]
        if not _write_palette(source, i, folder, stems, None):
            numbers: dict[ObjectId, int] = {}
            _write_palette(source, i, folder, stems, numbers)
            write_object_names(folder, {n: identity for identity, n in numbers.items()})
        if not any(folder.iterdir()):
            raise DataError(
                f"video {source.name(i)!r} has no annotated frame, which DAVIS layout cannot say "
                "beside videos with masks; leave the video out, or convert to coco-video"
            )
    return _Written(counts, [], [])


def _write_palette(
    source: VideoSource,
    i: int,
    folder: Path,
    stems: list[str],
    numbers: dict[ObjectId, int] | None,
) -> bool:
    """Write the annotated frames of a video; False: there are ids that no pixel can have.

    Args:
        numbers: takes in the objects' numbers from 1 on; None: their ids are their numbers.
    """
    for t, name in enumerate(stems):
        masks = source.read_masks(i, t)
        if masks is None:
            continue
        shown = {who: mask for who, mask in masks.items() if mask.any()}
        if numbers is None:
            if not all(type(who) is int and 0 < who < VOID for who in shown):
                return False
            of = {who: int(who) for who in shown}
        else:
            of = {who: numbers.setdefault(who, len(numbers) + 1) for who in shown}
            if len(numbers) >= VOID:
                raise DataError(
                    f"video {source.name(i)!r} has {VOID} objects or more by {place(source, i, t)} "
                    f"(object {list(numbers)[-1]!r}), and a palette PNG holds {VOID - 1}; convert "
                    "to coco-video"
                )
        void = source.read_void(i, t)
        size = next((m.shape for m in [*shown.values(), void] if m is not None), None)
        ids = np.zeros(size or source.read_frame(i, t).shape[:2], np.uint8)
        for who, mask in shown.items():
            if taken := int(ids[mask].max()):
                other = next(o for o, n in of.items() if n == taken)
                raise DataError(
                    f"{place(source, i, t)}: objects {other!r} and {who!r} overlap, and a palette "
                    "PNG holds one object a pixel; convert to coco-video, which holds both"
                )
            ids[mask] = of[who]
        if void is not None:
            ids[void & (ids == 0)] = VOID
        write_id_mask(folder / f"{name}.png", ids)
    return True


def _write_coco(source: VideoSource, i: int, out: Path) -> _Written:
    counts, files = _write_frames(source, i, out / "images")
    images: list[dict[str, Any]] = []
    annotations: list[dict[str, Any]] = []
    for t, path in enumerate(files):
        masks = source.read_masks(i, t)
        size = next((m.shape for m in (masks or {}).values()), None) or image_size(path)
        image = coco_image(t + 1, source.name(i), t, path.relative_to(out).as_posix(), size)
        images.append(image if masks is not None else image | {"annotated": False})
        void = source.read_void(i, t)
        counts["without their void pixels"] += void is not None and bool(void.any())
        for identity, mask in (masks or {}).items():
            if mask.any():
                runs = encode_mask(mask)
                annotations.append(coco_annotation(len(annotations) + 1, t + 1, identity, runs))
    return _Written(counts, images, annotations)


def _write_frames(source: VideoSource, i: int, out: Path) -> tuple[Counter[str], list[Path]]:
    """The files of the frames, copied or drawn, and how many of which there were."""
    video, count = source.name(i), source.num_frames(i)
    if not video or file_name(video) != video:
        raise DataError(f"video {video!r}: no folder can be called so; rename the video")
    (out / video).mkdir(parents=True)
    names = [source.frame_name(i, t) for t in range(count)]
    ordered = names == sorted(set(names), key=natural_key)
    counts = Counter({"frames": count})
    if not ordered or any(file_name(name) != name for name in names):
        names = [f"{t:05d}" for t in range(count)]
        counts["renumbered"] = count
    files = []
    for t, name in enumerate(names):
        path = source.frame_path(i, t)
        if path is not None and path.suffix.lower() in FRAME_ENDINGS:
            files.append(out / video / f"{name}{path.suffix}")
            shutil.copyfile(path, files[-1])
        else:
            files.append(out / video / f"{name}.png")
            Image.fromarray(source.read_frame(i, t)).save(files[-1])
            counts["written as PNG"] += 1
    return counts, files
