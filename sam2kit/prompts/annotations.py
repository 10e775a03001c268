"""Store the annotations of many videos in a folder: prompts, objects, tracked and accepted masks.

The annotator writes each change immediately. The command line reads the folder without a model::

    annotations/
      annotations.lock            held by the process that writes
      VIDEO-CHECKSUM.json         prompts, objects and accepted frames (:class:`VideoState`)
      VIDEO-CHECKSUM.masks.jsonl  tracked masks, one frame per line; the last line of a frame
      applies

The JSON file is replaced atomically, and lines are only appended, so a killed process loses at most
its last change. Video names are untrusted: a file name consists of an escaped part of the video
name and a checksum, which keeps the names unique. The full name is stored in the file.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

import msgspec
import numpy as np
from loguru import logger

from sam2kit.data.rle import decode_mask
from sam2kit.data.sources.base import ObjectId
from sam2kit.utils import locks
from sam2kit.utils.errors import DataError
from sam2kit.utils.files import atomic_write, end_last_line, open_to_append
from sam2kit.utils.readers import MAX_DATA_BYTES, parse_json, read_json, read_text
from sam2kit.utils.text import close_names, visible_text

if TYPE_CHECKING:
    from sam2kit.data.training_set import AcceptedFrame

VERSION: Literal[1] = 1
# A file of more than MAX_LINES lines is rewritten if it has more than MAX_OUTDATED lines per frame.
MAX_LINES, MAX_OUTDATED = 500, 4
LOCK_FILE = "annotations.lock"
Which = Literal["accepted", "all", "checked"]
ObjectFrame = tuple[ObjectId, int]
"""An object and the index of a frame."""

# Locks by process ID and folder. The ID is needed because a forked child has a copy of this
# dictionary. Widgets of one process share a lock. -1: the file system has no locks.
_locks: dict[tuple[int, Path], int] = {}


class StoredObject(msgspec.Struct, omit_defaults=True):
    """An object of a video.

    Attributes:
        id: its id in masks and prompts.
        name: display name. If None (default), the id is displayed.
        color: red, green and blue, 0 to 255, if the user chose a color. None (default): automatic.
        hidden: whether the annotator hides it.
        deleted: whether it was deleted in the annotator, although the dataset contains it.
    """

    id: int | str
    name: str | None = None
    color: tuple[int, int, int] | None = None
    hidden: bool = False
    deleted: bool = False


class StoredPrompt(msgspec.Struct, omit_defaults=True):
    """The prompt of one object on one frame; masks are COCO's compressed run lengths.

    Attributes:
        object: id of the object.
        frame: index of the frame.
        provenance: how the mask was made, such as ``click``.
        points, labels, box, base, mask: see
            :class:`~sam2kit.widgets.frame_prompts.FramePrompt`.
        result: the mask that the model predicted. None: ``mask`` is the result.
        correction: whether the object had a tracked mask on the frame when it was prompted.
        model: name of the model that predicted the mask. None (default): no model or unknown.
    """

    object: int | str
    frame: int
    provenance: str = "click"
    points: list[tuple[int, int]] = []
    labels: list[int] = []
    box: tuple[int, int, int, int] | None = None
    base: str | None = None
    mask: str | None = None
    result: str | None = None
    correction: bool = False
    model: str | None = None


class VideoState(msgspec.Struct):
    """The annotations of one video, without the tracked masks.

    Attributes:
        video: name of the video.
        size: H and W of its frames.
        num_frames: its length.
        revision: number of times that the state was saved; detects that another widget has saved it
            in the meantime.
        objects: the objects, in display order.
        prompts: the prompts.
        accepted: frames whose masks are accepted.
        checked: accepted frames that a person reviewed one by one.
        stale: whether the prompts have changed since the last tracking.
        path: absolute path of the video file or frame folder; empty if no file contains exactly
            this video.
        thumbnail: grey values of the first frame at a very small size, 0 to 255; detects another
            video with the same name.
        version: version of the format.
    """

    video: str
    size: tuple[int, int]
    num_frames: int
    revision: int = 0
    objects: list[StoredObject] = []
    prompts: list[StoredPrompt] = []
    accepted: list[int] = []
    checked: list[int] = []
    stale: bool = False
    path: str = ""
    thumbnail: list[int] = []
    version: Literal[1] = VERSION


class TrackedMask(msgspec.Struct, array_like=True):
    """A tracked mask as run lengths.

    Attributes:
        counts: COCO's compressed run lengths, at the size of the frames.
        score: the object score, a logit. None (default): unknown.
        model: name of the model. None (default): unknown.
        provenance: ``propagated``, or ``truth`` for an accepted mask of the dataset.
        disagreement: 1 - IoU of forward and backward tracking. None (default): not measured.
        backward: whether it was tracked backward.
        j: J against the ground truth when it was tracked. None (default): not annotated.
    """

    counts: str
    score: float | None = None
    model: str | None = None
    provenance: str = "propagated"
    disagreement: float | None = None
    backward: bool = False
    j: float | None = None


class _Line(msgspec.Struct):
    """A line in the file of tracked masks: all masks of one frame."""

    frame: int
    masks: list[tuple[int | str, TrackedMask]]


class AnnotationStore:
    """Read and write the annotations in a folder.

    Any process may read. The first one to write becomes the owner of the folder until it ends or
    calls :meth:`close`.

    Args:
        folder: need not exist; it is created by the first change.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        # The last known revision of each video, valid until its file changes.
        self._revisions: dict[str, tuple[Any, int]] = {}
        self._lines: dict[Path, int] = {}  # number of lines of a file that is being appended to
        self._max_lines: dict[Path, int] = {}  # number of lines above which frames are counted

    def acquire(self) -> None:
        """Make this process the owner of the folder; the first write does so implicitly.

        Raises:
            DataError: another process is the owner, or the folder cannot be written.
        """
        key = os.getpid(), self.folder.resolve()
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error
        if key not in _locks:
            _locks[key] = locks.take(self.folder, LOCK_FILE, DataError)

    def close(self) -> None:
        """Let other processes write; a later change acquires the folder again."""
        file = _locks.pop((os.getpid(), self.folder.resolve()), -1)
        if file >= 0:
            os.close(file)

    def videos(self) -> list[str]:
        """Return the names of the videos with annotations, sorted.

        Raises:
            DataError: a file is damaged.
        """
        return sorted(_read_state(path).video for path in self._state_files())

    def _state_files(self) -> list[Path]:
        # Match only names made by _path: other JSON files in the folder are not read.
        pattern = re.compile(r"[A-Za-z0-9_.-]*-[0-9a-f]{16}\.json")
        return [path for path in self.folder.glob("*.json") if pattern.fullmatch(path.name)]

    def load(self, video: str) -> VideoState | None:
        """Read the annotations of a video, without tracked masks.

        Returns:
            The state; None if the video has no annotations.

        Raises:
            DataError: the file is damaged or from another version.
        """
        path = self._path(video)
        if not path.exists():
            return None
        signature = _signature(path)
        state = _read_state(path)
        self._revisions[video] = signature, state.revision
        return state

    def save(self, video: str, state: VideoState) -> None:
        """Replace the annotations of a video and increment ``state.revision``.

        Raises:
            DataError: the file cannot be written, another process owns the folder, or the state is
                not based on the last saved one, because the video is open elsewhere.
        """
        self.acquire()
        path = self._path(video)
        if self._revision(video, path) != state.revision:
            raise DataError(
                f"{path}: the annotations of {visible_text(video)!r} were changed by another "
                "widget of this kernel",
                hint="open the video again to continue with the latest state",
            )
        state.revision += 1
        # json escapes characters that UTF-8 cannot encode, such as undecodable bytes in the name of
        # a file.
        text = json.dumps(msgspec.to_builtins(state), separators=(",", ":")) + "\n"
        try:
            with atomic_write(path, fsync=True) as temporary:
                temporary.write_text(text, "utf-8")
        except OSError as error:
            state.revision -= 1
            raise _cannot_write(path, error) from error
        self._revisions[video] = _signature(path), state.revision

    def _revision(self, video: str, path: Path) -> int:
        """Return the revision of the file; 0 if there is none."""
        signature = _signature(path)
        if signature is None:
            return 0
        known = self._revisions.get(video)
        return known[1] if known and known[0] == signature else _read_state(path).revision

    def load_tracked(self, video: str) -> dict[ObjectFrame, TrackedMask]:
        """Read the tracked masks of a video, without decoding them.

        A last line that a killed process left truncated is dropped with a warning.

        Raises:
            DataError: the file is damaged.
        """
        frames = self._read_lines(video)
        return {(o, t): mask for t in sorted(frames) for o, mask in frames[t]}

    def _read_lines(self, video: str) -> dict[int, list[tuple[ObjectId, TrackedMask]]]:
        path = self._path(video, ".masks.jsonl")
        frames: dict[int, list[tuple[ObjectId, TrackedMask]]] = {}
        if not path.exists():
            return frames
        for number, text in enumerate(_complete_lines(path), 1):
            try:
                line = msgspec.convert(parse_json(text, "the line"), _Line)
            except (ValueError, DataError) as error:
                raise _damaged(f"{path}: line {number}", error, "remove the line") from None
            frames[line.frame] = line.masks
        return frames

    def save_tracked(
        self,
        video: str,
        frames: Mapping[int, Iterable[tuple[ObjectId, TrackedMask]]],
        replace: bool = False,
    ) -> None:
        """Append tracked masks, which replace all earlier masks of their frames.

        Args:
            video: its name.
            frames: all tracked objects and masks by frame index; an empty list removes the masks.
            replace: discard all other frames, and write a new file.

        Raises:
            DataError: the file cannot be written, or another process owns the folder.
        """
        self.acquire()
        path = self._path(video, ".masks.jsonl")
        lines = (msgspec.to_builtins(_Line(t, list(masks))) for t, masks in frames.items())
        text = "".join(json.dumps(line, separators=(",", ":")) + "\n" for line in lines)
        try:
            if replace:
                with atomic_write(path, fsync=True) as temporary:
                    temporary.write_text(text, "utf-8")
                self._lines[path] = len(frames)
                return
            if path not in self._lines:  # a killed process may have left half a line
                end_last_line(path, is_complete=lambda line: False)
                self._lines[path] = len(_complete_lines(path)) if path.exists() else 0
            with open_to_append(path) as file:
                file.write(text)
        except OSError as error:
            self._lines.pop(path, None)  # a full disk may have left half a line too
            raise _cannot_write(path, error) from error
        self._lines[path] += len(frames)
        if self._lines[path] > self._max_lines.get(path, MAX_LINES):
            latest = self._read_lines(video)
            # Files do not lose frames, so they need not be counted again, which reads the file,
            # before this number of lines. Otherwise tracking would slow down with every save.
            self._max_lines[path] = max(MAX_LINES, MAX_OUTDATED * len(latest))
            if self._lines[path] > self._max_lines[path]:
                self.save_tracked(video, latest, replace=True)

    def accepted(
        self, video: str, which: Which = "accepted", every: int | None = None
    ) -> Iterator[AcceptedFrame]:
        """Iterate over the frames of a video with masks to train on.

        Args:
            video: its name.
            which: ``accepted``; ``checked``, the accepted frames that a person prompted or accepted
                one by one; or ``all`` frames that have a mask.
            every: use every N-th of these frames. None (default): all of them.

        Raises:
            DataError: the video has no annotations, a file is damaged, or an argument is invalid.
        """
        if which not in get_args(Which):
            raise DataError(
                key="which",
                value=which,
                expected=f"one of {', '.join(get_args(Which))}",
                hint="accepted is the default",
            )
        if every is not None and every < 1:
            raise DataError(
                key="every", value=every, expected="1 or more", hint="omit it to use all frames"
            )
        state = self.load(video)
        if state is None:
            names = ", ".join(map(visible_text, close_names(video, self.videos())))
            raise DataError(
                f"{self.folder} has no annotations of {visible_text(video)!r}",
                key="video",
                value=video,
                hint=f"did you mean {names}?" if names else "annotate the video first",
            )
        return self._accepted(state, which, every or 1)

    def _accepted(self, state: VideoState, which: Which, every: int) -> Iterator[AcceptedFrame]:
        """Decode the masks frame by frame, because not all of them may fit in memory."""
        # Imported here because it loads torch, which reading the folder does not need.
        from sam2kit.data.training_set import AcceptedFrame

        visible = {entry.id for entry in state.objects if not entry.deleted}
        tracked = self._read_lines(state.video)
        prompts: dict[int, list[StoredPrompt]] = {}
        for prompt in state.prompts:
            prompts.setdefault(prompt.frame, []).append(prompt)
        frames = {
            "accepted": state.accepted,
            "checked": state.checked,
            "all": {*prompts, *(t for t, masks in tracked.items() if masks)},
        }[which]
        for t in sorted(frames)[::every]:
            # A prompt replaces the tracked mask of its object.
            runs = {o: (m.counts, m.provenance, m.model) for o, m in tracked.get(t, ())}
            for prompt in prompts.get(t, ()):
                counts = prompt.result if prompt.mask is None else prompt.mask
                if counts is not None:
                    runs[prompt.object] = counts, prompt.provenance, prompt.model
            runs = {o: entry for o, entry in runs.items() if o in visible}
            models = dict.fromkeys(model for _, _, model in runs.values() if model)
            yield AcceptedFrame(
                t,
                {o: self._decode(state, o, t, counts) for o, (counts, _, _) in runs.items()},
                {o: provenance for o, (_, provenance, _) in runs.items()},
                ", ".join(models) or None,
            )

    def _decode(self, state: VideoState, o: ObjectId, t: int, counts: str) -> np.ndarray:
        try:
            return decode_mask({"size": state.size, "counts": counts}, state.size)
        except (ValueError, OverflowError) as error:
            where = f"{self._path(state.video)}: the mask of object {visible_text(o)} on frame {t}"
            raise _damaged(
                where, error, "clear the mask or track the object again in the annotator"
            ) from None

    def _path(self, video: str, ending: str = ".json") -> Path:
        # Use ASCII, because file systems limit bytes, and a checksum, because some ignore case.
        safe = re.sub(r"[^A-Za-z0-9_.-]", "_", video).strip(".")[:60]
        checksum = hashlib.sha256(video.encode("utf-8", "surrogatepass")).hexdigest()[:16]
        return self.folder / f"{safe}-{checksum}{ending}"


def _signature(path: Path) -> tuple[int, ...] | None:
    """Return properties that change when a file is replaced; None if there is no file."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size


def _read_state(path: Path) -> VideoState:
    hint = "restore the file from a backup, or move it away to annotate the video from scratch"
    try:
        state = msgspec.convert(read_json(path, hint=hint), VideoState)
        _check_values(state)
        return state
    except (FileNotFoundError, ValueError) as error:
        raise _damaged(str(path), error, hint) from None


def _check_values(state: VideoState) -> None:
    """Check constraints that types cannot express.

    Raises:
        ValueError: a value is out of range, or an object is missing or listed twice.
    """
    height, width = state.size
    if min(height, width, state.num_frames) < 1:
        raise ValueError("size and num_frames must be 1 or more")
    identities = [entry.id for entry in state.objects]
    if len(set(identities)) < len(identities):
        raise ValueError("an object is listed twice")
    if not {prompt.object for prompt in state.prompts} <= set(identities):
        raise ValueError("an object with a prompt is not listed")
    frames = [*state.accepted, *state.checked, *(prompt.frame for prompt in state.prompts)]
    if not all(0 <= t < state.num_frames for t in frames):
        raise ValueError(f"a frame is not from 0 to {state.num_frames - 1}")
    if any(not 0 <= value <= 255 for entry in state.objects for value in entry.color or ()):
        raise ValueError("a color is not from 0 to 255")
    for prompt in state.prompts:
        box = prompt.box or (0, 0, 0, 0)
        points = [*prompt.points, box[:2], box[2:]]
        if not all(0 <= x < width and 0 <= y < height for x, y in points):
            raise ValueError(f"a point is outside the frame of {width} x {height} pixels")
        if len(prompt.labels) != len(prompt.points) or not {*prompt.labels} <= {0, 1}:
            raise ValueError("each point needs the label 0 or 1")


def _complete_lines(path: Path) -> list[str]:
    """Return the lines of a file without a truncated last line."""
    text = read_text(path, hint="check its permissions", max_bytes=MAX_DATA_BYTES, strict=False)
    lines = text.split("\n")
    if lines.pop():
        logger.warning("{}: ignoring the truncated line {}", path, len(lines) + 1)
    return lines


def _damaged(where: str, error: Exception, hint: str) -> DataError:
    return DataError(f"{where} is not an annotation of version {VERSION} ({error})", hint=hint)


def _cannot_write(path: Path, error: OSError) -> DataError:
    return DataError(
        f"{path} cannot be written ({error.strerror})",
        hint="free some disk space, or choose another folder for the annotations",
    )
