"""Prompts in a JSON file that hands them from one notebook to the next and can be edited by hand.

An entry names its video, object and frame rather than positions in a batch, so a file outlives the
batch that it was made from.
"""

from __future__ import annotations

import json
from collections.abc import Collection
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from sam2kit.data.clip import ClipBatch
from sam2kit.data.rle import decode_mask, encode_mask
from sam2kit.prompts.geometry import box_to_points
from sam2kit.prompts.prompt import Prompt, group_prompts, video_frame
from sam2kit.utils.errors import DataError

SCHEMA_VERSION = 1
CONTENTS = {"mask": ["mask"], "box": ["box"], "point": ["points", "labels"]}


def save_prompts(path: str | Path, prompts: list[Prompt], batch: ClipBatch) -> None:
    """Write prompts as JSON that names videos, objects and frames rather than batch positions.

    The file holds ``version``, ``image_size`` (rows and columns of the resized frame, in whose
    pixels the coordinates are) and ``prompts``, one entry for each object with ``video``,
    ``object_id``, ``frame_index`` (in the video, from 0), ``kind`` and either ``points`` and
    ``labels``, or ``box``, or ``mask`` (COCO's compressed run lengths).

    Raises:
        ValueError: the batch holds the same object of the same video twice.
    """
    _positions(batch)
    rows, columns = batch.masks.shape[-2:]
    entries = [
        _entry(prompt.to("cpu"), n, batch) for prompt in prompts for n in range(len(prompt.objects))
    ]
    document = {"version": SCHEMA_VERSION, "image_size": [rows, columns], "prompts": entries}
    Path(path).write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")


def _positions(batch: ClipBatch) -> dict[tuple[str, int | str], int]:
    """The position in the O axis of each (video name, object identity)."""
    positions: dict[tuple[str, int | str], int] = {}
    for position, clip in enumerate(batch.clip_of_object.tolist()):
        key = (batch.names[clip], batch.object_ids[position])
        if key in positions:
            raise ValueError(
                f"a prompt file cannot tell two clips of one video apart: object {key[1]!r} of "
                f"{key[0]!r} stands twice in the batch"
            )
        positions[key] = position
    return positions


def _entry(prompt: Prompt, n: int, batch: ClipBatch) -> dict[str, Any]:
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
    """Read what :func:`save_prompts` wrote, for the objects of ``batch``, grouped.

    Entries of videos that are not in the batch are left out, so that one file can serve many
    batches; an entry for a video of the batch must fit it.

    Raises:
        DataError: a missing or unreadable file, a field that is missing or of the wrong form, or
            an entry whose frame, object or frame size the batch does not have.
    """
    size, entries = check_document(read_document(path), str(path), batch.names)
    if size != tuple(batch.masks.shape[-2:]):
        raise DataError(
            f"{path}: field 'image_size' is {list(size)}, but the frames are "
            f"{list(batch.masks.shape[-2:])}; make the prompts at this dataset.image_size"
        )
    positions = _positions(batch)
    prompts = []
    for where, entry in entries:
        position = positions.get((entry["video"], entry["object_id"]))
        if position is None:
            raise DataError(
                f"{where}: field 'object_id' is {entry['object_id']!r}, which {entry['video']!r} "
                "lacks"
            )
        clip = int(batch.clip_of_object[position])
        frames = [video_frame(batch, clip, frame) for frame in range(batch.num_frames)]
        if entry["frame_index"] not in frames:
            raise DataError(
                f"{where}: field 'frame_index' is {entry['frame_index']!r}, but the clip of "
                f"{entry['video']!r} holds the frames {frames}"
            )
        frame = frames.index(entry["frame_index"])
        prompts.append(_read_entry(where, entry, frame, position, size))
    return [prompt.to(batch.masks.device) for prompt in group_prompts(prompts)]


def load_video_prompts(
    path: str | Path, video: str, num_frames: int, image_size: int
) -> tuple[list[Prompt], list[int | str]]:
    """Read the prompts of a whole video, written by :func:`save_prompts` or by hand.

    The file's ``image_size`` may be that of the video's own frames (or any other): points and boxes
    are scaled to frames of ``image_size`` by ``image_size``, pixel centres keeping their place.

    Returns:
        The prompts, grouped, with positions in the video for frames and positions in the second
        list for objects; and the objects' identities in the order of the file.

    Raises:
        DataError: as :func:`load_prompts`; or the file has no prompts for ``video``.
    """
    return video_prompts(read_document(path), str(path), video, num_frames, image_size)


def video_prompts(
    document: Any, where: str, video: str, num_frames: int, image_size: int
) -> tuple[list[Prompt], list[int | str]]:
    """:func:`load_video_prompts` of what such a file holds; ``where`` opens each error's message.

    Raises:
        DataError: as :func:`load_video_prompts`.
    """
    size, entries = check_document(document, where, [video])
    if not entries:
        raise DataError(f"{where}: no prompt of the field 'video' {video!r}; write that name there")
    identities = list(dict.fromkeys(entry["object_id"] for _, entry in entries))
    scale = torch.tensor([image_size / size[1], image_size / size[0]])
    prompts = []
    for where, entry in entries:
        frame = entry["frame_index"]
        if type(frame) is not int or not 0 <= frame < num_frames:
            raise DataError(
                f"{where}: field 'frame_index' is {frame!r}, but {video!r} has the frames 0 to "
                f"{num_frames - 1}"
            )
        prompt = _read_entry(where, entry, frame, identities.index(entry["object_id"]), size)
        if prompt.points is not None:
            if entry["kind"] == "box" and (prompt.points.diff(dim=1) < 0).any():
                raise DataError(
                    f"{where}: field 'box' is {entry['box']}; it must be [left, top, right, bottom]"
                )
            prompt = replace(prompt, points=(prompt.points + 0.5) * scale - 0.5)
        prompts.append(prompt)
    return group_prompts(prompts), identities


def read_document(path: str | Path) -> Any:
    """What a file of prompts holds, unchecked.

    Raises:
        DataError: a missing or unreadable file.
    """
    path = Path(path)
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file; save_prompts writes it") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: not a JSON file ({error}); write it with save_prompts") from None


def check_document(
    document: Any, path: str, videos: Collection[str]
) -> tuple[tuple[int, int], list[tuple[str, dict[str, Any]]]]:
    """``image_size``, and the entries of some videos with where each stands, for messages.

    Args:
        path: where the document stands, for messages.

    Raises:
        DataError: a field that is missing or of the wrong form.
    """
    if not isinstance(document, dict) or document.get("version") != SCHEMA_VERSION:
        raise DataError(f"{path}: field 'version' must be {SCHEMA_VERSION}; write the file anew")
    size = document.get("image_size")
    if not (isinstance(size, list) and [type(n) for n in size] == [int, int] and min(size) > 0):
        raise DataError(f"{path}: field 'image_size' is {size!r}; it must be [rows, columns]")
    if not isinstance(document.get("prompts"), list):
        raise DataError(f"{path}: field 'prompts' must be a list")
    entries = []
    for number, entry in enumerate(document["prompts"]):
        where = f"{path}: prompts[{number}]"
        if not isinstance(entry, dict):
            raise DataError(f"{where} must be an object with the fields of a prompt")
        if "video" not in entry:
            raise DataError(f"{where}: field 'video' is missing")
        if entry["video"] in videos:
            entries.append((where, entry))
            _check_fields(where, entry)
    return (size[0], size[1]), entries


def _check_fields(where: str, entry: dict[str, Any]) -> None:
    kind = entry.get("kind")
    if kind not in tuple(CONTENTS):  # a list from the file cannot be looked up in a dict
        raise DataError(f"{where}: field 'kind' must be one of {', '.join(CONTENTS)}")
    for field in ["object_id", "frame_index", *CONTENTS[kind]]:
        if field not in entry:
            raise DataError(f"{where}: field {field!r} is missing")
    if not isinstance(entry["object_id"], (int, str)):
        raise DataError(
            f"{where}: field 'object_id' is {entry['object_id']!r}; it must be a number or a name"
        )


def _read_entry(
    where: str, entry: dict[str, Any], frame: int, position: int, size: tuple[int, int]
) -> Prompt:
    objects, kind = torch.tensor([position]), entry["kind"]
    field, last = CONTENTS[kind][0], torch.tensor([size[1] - 1, size[0] - 1])
    try:
        if kind == "mask":
            masks = torch.from_numpy(decode_mask(entry["mask"], size))[None]
            return Prompt(frame, objects, masks=masks)
        values = torch.tensor([entry[field]], dtype=torch.float32)
        points, labels = box_to_points(values) if kind == "box" else (values, None)
        if not ((points >= 0) & (points <= last)).all():
            raise ValueError(f"it holds points outside the frame of {size[1]} by {size[0]} pixels")
        if labels is None:
            field = "labels"
            if any(label not in (0, 1) for label in entry["labels"]):
                raise ValueError("labels are 1 on the object and 0 beside it")
            labels = torch.tensor([entry["labels"]], dtype=torch.int32)
        return Prompt(frame, objects, points=points, labels=labels)
    except (TypeError, ValueError, KeyError, AttributeError, RuntimeError, OverflowError) as error:
        raise DataError(f"{where}: field {field!r} cannot be read ({error})") from None
