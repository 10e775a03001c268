"""Save and load prompts as JSON, to pass them between notebooks or to edit them by hand.

An entry refers to video, object and frame by name instead of by position in a batch, so that a file
can be used with other batches.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from loguru import logger

from sam2kit.data.clip import ClipBatch
from sam2kit.data.rle import decode_mask, encode_mask
from sam2kit.prompts.geometry import box_to_points, rescale_points
from sam2kit.prompts.prompt import Prompt, group_prompts, video_frame
from sam2kit.utils.errors import DataError
from sam2kit.utils.files import write_text
from sam2kit.utils.readers import MAX_PIXELS, read_json

SCHEMA_VERSION = 1
SCHEMA_VERSION_SIZES = 2  # also image_sizes, for videos of different sizes
MAX_POINTS = 1000  # of one prompt; the attention over points grows with their number
CONTENTS = {"mask": ["mask"], "box": ["box"], "point": ["points", "labels"]}


def save_prompts(path: str | Path, prompts: list[Prompt], batch: ClipBatch) -> None:
    """Write prompts as JSON.

    The file contains ``version``, ``image_size`` (rows and columns of the resized frame, to which
    the coordinates refer) and ``prompts``. Version 2 can also contain ``image_sizes``, which maps
    video names to individual sizes. There is one entry per object with ``video``, ``object_id``,
    ``frame_index`` (in the video, from 0), ``kind`` and either ``points`` and ``labels``, or
    ``box``, or ``mask`` (COCO's compressed run lengths).

    Args:
        path: the file, which is overwritten.
        prompts: prompts of the batch.
        batch: names of the videos and objects, and numbers of the frames.

    Raises:
        ValueError: the batch contains the same object of the same video twice.
    """
    _positions(batch)
    rows, columns = batch.masks.shape[-2:]
    entries = [
        _entry(prompt.to("cpu"), n, batch) for prompt in prompts for n in range(len(prompt.objects))
    ]
    document = {"version": SCHEMA_VERSION, "image_size": [rows, columns], "prompts": entries}
    write_text(path, json.dumps(document, indent=1) + "\n")


def _positions(batch: ClipBatch) -> dict[tuple[str, int | str], int]:
    """Map (video name, object id) to the position in the O axis."""
    positions: dict[tuple[str, int | str], int] = {}
    for position, clip in enumerate(batch.clip_of_object.tolist()):
        key = (batch.names[clip], batch.object_ids[position])
        if key in positions:
            raise ValueError(
                f"object {key[1]!r} of {key[0]!r} occurs twice in the batch; a prompt file cannot "
                "distinguish two clips of one video"
            )
        positions[key] = position
    return positions


def _entry(prompt: Prompt, n: int, batch: ClipBatch) -> dict[str, Any]:
    """Make the JSON entry of the ``n``-th object of a prompt."""
    position = int(prompt.objects[n])
    clip = int(batch.clip_of_object[position])
    entry: dict[str, Any] = {
        "video": batch.names[clip],
        "object_id": batch.object_ids[position],
        "frame_index": video_frame(batch, clip, prompt.frame),
        "kind": prompt.kind,
    }
    if prompt.masks is not None:
        entry["mask"] = encode_mask(prompt.masks[n].numpy())
    elif prompt.points is not None and prompt.labels is not None:
        if prompt.kind == "box":
            entry["box"] = prompt.points[n].flatten().tolist()
        else:
            entry["points"] = prompt.points[n].tolist()
            entry["labels"] = prompt.labels[n].tolist()
    return entry


def load_prompts(path: str | Path, batch: ClipBatch) -> list[Prompt]:
    """Read grouped prompts for the objects of a batch from a file of :func:`save_prompts`.

    Entries of videos that are not in the batch are skipped, so that one file can be used for many
    batches. An entry of a video in the batch must match the batch.

    Raises:
        DataError: the file is missing or unreadable, a field is missing or invalid, or the batch
            does not have the frame, object or frame size of an entry.
    """
    sizes, entries = check_document(read_document(path), str(path), batch.names)
    positions = _positions(batch)
    prompts = []
    for where, entry in entries:
        size = sizes[entry["video"]]
        if size != tuple(batch.masks.shape[-2:]):
            raise DataError(
                f"{path}: field 'image_size' is {list(size)}, but the frames are "
                f"{list(batch.masks.shape[-2:])}",
                hint="create the prompts with the same dataset.image_size",
            )
        position = positions.get((entry["video"], entry["object_id"]))
        if position is None:
            raise DataError(
                f"{where}: field 'object_id' is {entry['object_id']!r}, but the clip of "
                f"{entry['video']!r} has no such object",
                hint="use the id of an object in the clip, or remove the entry",
            )
        clip = int(batch.clip_of_object[position])
        frames = [video_frame(batch, clip, frame) for frame in range(batch.num_frames)]
        if entry["frame_index"] not in frames:
            raise DataError(
                f"{where}: field 'frame_index' is {entry['frame_index']!r}, but the clip of "
                f"{entry['video']!r} has the frames {frames}",
                hint="use one of these frames, or remove the entry",
            )
        frame = frames.index(entry["frame_index"])
        prompts.append(_read_entry(where, entry, frame, position, size))
    return [prompt.to(batch.masks.device) for prompt in group_prompts(prompts)]


def load_video_prompts(
    path: str | Path,
    video: str,
    num_frames: int,
    image_size: int,
    frame_size: tuple[int, ...] | None = None,
) -> tuple[list[Prompt], list[int | str]]:
    """Read the prompts of a whole video, written by :func:`save_prompts` or by hand.

    The ``image_size`` in the file may be the size of the stored frames, or any other size. Points
    and boxes are scaled to frames of ``image_size`` by ``image_size`` pixels, with aligned pixel
    centres.

    Args:
        path: the file.
        video: name of the video, whose entries are read.
        num_frames: number of frames of the video.
        image_size: rows and columns of the resized frames.
        frame_size: rows and columns of the stored frames, against which the ``image_size`` of the
            file is checked. None (default): it is not checked.

    Returns:
        The prompts, grouped, whose ``frame`` is a position in the video and whose ``objects`` are
        positions in the second list; and the object ids in the order of the file.

    Raises:
        DataError: as :func:`load_prompts`, the file has no prompts for ``video``, or its
            ``image_size`` has rows and columns swapped.
    """
    document = read_document(path)
    return video_prompts(document, str(path), video, num_frames, image_size, frame_size)


def video_prompts(
    document: Any,
    where: str,
    video: str,
    num_frames: int,
    image_size: int,
    frame_size: tuple[int, ...] | None = None,
) -> tuple[list[Prompt], list[int | str]]:
    """Read the prompts of a whole video from the content of a prompt file.

    Args:
        document: the content (:func:`read_document`).
        where: name of the file, with which error messages start.
        video, num_frames, image_size, frame_size: see :func:`load_video_prompts`.

    Raises:
        DataError: as :func:`load_video_prompts`.
    """
    sizes, entries = check_document(document, where, [video])
    if not entries:
        raise DataError(
            f"{where}: no prompt with the field 'video' {video!r}",
            hint="set 'video' of the prompts to this name",
        )
    size = sizes[video]
    if frame_size is not None:
        check_image_size(where, size, (frame_size[0], frame_size[1]))
    identities = list(dict.fromkeys(entry["object_id"] for _, entry in entries))
    prompts = []
    for where, entry in entries:
        frame = entry["frame_index"]
        if type(frame) is not int or not 0 <= frame < num_frames:
            raise DataError(
                f"{where}: field 'frame_index' is {frame!r}, but {video!r} has the frames 0 to "
                f"{num_frames - 1}",
                hint="use one of these frames",
            )
        prompt = _read_entry(where, entry, frame, identities.index(entry["object_id"]), size)
        if prompt.points is not None:
            if entry["kind"] == "box" and (prompt.points.diff(dim=1) < 0).any():
                raise DataError(
                    f"{where}: field 'box' is {entry['box']}, with a right or bottom edge before "
                    "the left or top one",
                    hint="write the box as [left, top, right, bottom]",
                )
            points = rescale_points(prompt.points, size, (image_size, image_size))
            prompt = replace(prompt, points=points)
        prompts.append(prompt)
    return group_prompts(prompts), identities


def read_document(path: str | Path) -> Any:
    """Read the content of a prompt file without checking it.

    Raises:
        DataError: the file is missing, unreadable or not JSON.
    """
    path = Path(path)
    try:
        return read_json(path, hint="create it with save_prompts")
    except FileNotFoundError:
        raise DataError(f"{path}: no such file", hint="create it with save_prompts") from None


def check_image_size(where: str, size: tuple[int, int], frame_size: tuple[int, int]) -> None:
    """Check the ``image_size`` of a prompt file against the frames of the video.

    The coordinates may refer to resized frames: square ones, as the model's input, or frames with
    the aspect ratio of the stored ones. For any other shape, a warning is logged.

    Raises:
        DataError: rows and columns are swapped.
    """

    def has_shape(rows: int, columns: int) -> bool:
        # The same aspect ratio, up to a pixel of rounding.
        return abs(size[0] * columns - size[1] * rows) <= max(rows, columns)

    rows, columns = frame_size
    if size[0] == size[1] or has_shape(rows, columns):
        return
    if has_shape(columns, rows):
        raise DataError(
            f"{where}: field 'image_size' is {list(size)}, but the frames have {rows} rows and "
            f"{columns} columns: rows and columns are swapped",
            key="image_size",
            value=list(size),
            hint=f"write it as [rows, columns]: {[size[1], size[0]]}",
        )
    logger.warning(
        "{}: field 'image_size' is {}, but the frames have another aspect ratio, {}; if prompts "
        "are misplaced, write the rows and columns of the frames on which they were made",
        *(where, list(size), [rows, columns]),
    )


def merge_documents(path: str | Path, document: dict[str, Any], video: str) -> dict[str, Any]:
    """Merge the prompts of one video into the content of an existing prompt file.

    Args:
        path: the file, whose prompts of other videos are kept. It may be missing.
        document: the content with only the prompts of ``video``.
        video: name of the video.

    Returns:
        The content to write: version 1 if all videos have the same ``image_size``, otherwise
        version 2.

    Raises:
        DataError: the existing file is not a prompt file.
    """
    if not Path(path).exists():
        return document
    existing = read_document(path)
    entries = existing.get("prompts") if isinstance(existing, dict) else None
    names = [e["video"] for e in entries or () if isinstance(e, dict) and "video" in e]
    names = [name for name in names if isinstance(name, str)]
    sizes, _ = check_document(existing, str(path), names)
    others = [e for e in existing["prompts"] if e.get("video") != video]
    # The file's own entries come first, in their order, and each video keeps its size.
    image_sizes = {n: list(sizes[n]) for n in names if n != video}
    image_sizes[video] = document["image_size"]
    merged = document | {"prompts": [*others, *document["prompts"]]}
    if len(set(map(tuple, image_sizes.values()))) > 1:
        merged |= {"version": SCHEMA_VERSION_SIZES, "image_sizes": image_sizes}
    return merged


def write_document(path: str | Path, document: dict[str, Any]) -> None:
    """Write the content of a prompt file atomically, and create its folder.

    Raises:
        DataError: the file cannot be written.
    """
    try:
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(document, indent=1) + "\n")
    except OSError as error:
        raise DataError(
            f"{path} cannot be written ({error.strerror})", hint="choose another file"
        ) from error


def check_document(
    document: Any, path: str, videos: Collection[str]
) -> tuple[dict[str, tuple[int, int]], list[tuple[str, dict[str, Any]]]]:
    """Check the content of a prompt file, and select the entries of some videos.

    Args:
        document: the content (:func:`read_document`).
        path: name of the file, with which error messages start.
        videos: names of the videos.

    Returns:
        ``image_size`` by video, and the entries, each with its name in error messages.

    Raises:
        DataError: a field is missing or invalid.
    """
    versions = (SCHEMA_VERSION, SCHEMA_VERSION_SIZES)
    if not isinstance(document, dict) or document.get("version") not in versions:
        raise DataError(
            f"{path}: field 'version' must be {SCHEMA_VERSION} or {SCHEMA_VERSION_SIZES}",
            hint="create the file with save_prompts of this version",
        )
    size = _read_size(document.get("image_size"), path, "image_size")
    other_sizes = document.get("image_sizes", {})
    if not isinstance(other_sizes, dict):
        raise DataError(
            f"{path}: field 'image_sizes' must be an object",
            hint="write the name of each video with its [rows, columns]",
        )
    sizes = {
        name: _read_size(other_sizes[name], path, f"image_sizes[{name!r}]")
        if name in other_sizes
        else size
        for name in videos
    }
    if not isinstance(document.get("prompts"), list):
        raise DataError(
            f"{path}: field 'prompts' must be a list", hint="write one entry per object"
        )
    entries = []
    for number, entry in enumerate(document["prompts"]):
        where = f"{path}: prompts[{number}]"
        if not isinstance(entry, dict):
            raise DataError(
                f"{where} must be a JSON object", hint="write the fields of a prompt in {...}"
            )
        if "video" not in entry:
            raise DataError(f"{where}: field 'video' is missing", hint="add the name of the video")
        # Entries of other videos are not checked: they may belong to data that is not available
        # here.
        if entry["video"] in videos:
            entries.append((where, entry))
            _check_fields(where, entry)
    return sizes, entries


def _read_size(size: Any, path: str, field: str) -> tuple[int, int]:
    """Check a size of two numbers above 0."""
    if not (isinstance(size, list) and [type(n) for n in size] == [int, int] and min(size) > 0):
        raise DataError(f"{path}: field '{field}' is {size!r}", hint="write it as [rows, columns]")
    if size[0] * size[1] > MAX_PIXELS:
        raise DataError(
            f"{path}: field '{field}' is {size!r}, more than {MAX_PIXELS} pixels",
            hint="write the size of your frames",
        )
    return size[0], size[1]


def _check_fields(where: str, entry: dict[str, Any]) -> None:
    """Check that an entry has the fields of its kind; values are checked by _read_entry."""
    kind = entry.get("kind")
    if kind not in tuple(CONTENTS):  # a tuple, because a list from the file is not hashable
        raise DataError(
            f"{where}: field 'kind' must be one of {', '.join(CONTENTS)}", hint="change the kind"
        )
    for field in ["object_id", "frame_index", *CONTENTS[kind]]:
        if field not in entry:
            raise DataError(f"{where}: field {field!r} is missing", hint=f"add {field!r}")
    if not isinstance(entry["object_id"], (int, str)):
        raise DataError(
            f"{where}: field 'object_id' is {entry['object_id']!r}",
            hint="write a whole number or a string",
        )


def _read_entry(
    where: str, entry: dict[str, Any], frame: int, position: int, size: tuple[int, int]
) -> Prompt:
    """Convert an entry to a prompt of one object, and check its values.

    Args:
        where: name of the entry in error messages.
        entry: the entry, with the fields of its kind.
        frame: ``frame`` of the prompt.
        position: the only element of ``objects`` of the prompt.
        size: rows and columns of the frame.
    """
    objects, kind = torch.tensor([position]), entry["kind"]
    field, last = CONTENTS[kind][0], torch.tensor([size[1] - 1, size[0] - 1])
    try:
        if kind == "mask":
            masks = torch.from_numpy(decode_mask(entry["mask"], size))[None]
            return Prompt(frame, objects, masks=masks)
        values = torch.tensor([entry[field]], dtype=torch.float32)
        points, labels = box_to_points(values) if kind == "box" else (values, None)
        if not ((points >= 0) & (points <= last)).all():
            outside = points[((points < 0) | (points > last)).any(-1)][0].tolist()
            raise ValueError(
                f"{outside} is outside the frame of {size[1]} by {size[0]} pixels; x comes before y"
            )
        if labels is None:
            field = "labels"
            if len(entry["points"]) > MAX_POINTS:
                raise ValueError(
                    f"it has {len(entry['points'])} points; the maximum is {MAX_POINTS}"
                )
            if any(label not in (0, 1) for label in entry["labels"]):
                raise ValueError("labels must be 1 on the object or 0 off it")
            labels = torch.tensor([entry["labels"]], dtype=torch.int32)
        return Prompt(frame, objects, points=points, labels=labels)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
        raise DataError(
            f"{where}: field {field!r} cannot be read ({error})", hint="correct the field"
        ) from None
