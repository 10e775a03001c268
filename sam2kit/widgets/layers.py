"""What lies over the frames of a video: masks of the truth and of trackers, their J, prompts."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sam2kit.data.rle import decode_mask
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.mask_files import object_names
from sam2kit.evaluation.metrics import iou, outside_void
from sam2kit.evaluation.predictions import read_result
from sam2kit.evaluation.scores import VideoScores
from sam2kit.prompts.prompt import Prompt
from sam2kit.utils.errors import DataError
from sam2kit.utils.paths import file_name

TRUTH = "truth"


@dataclass(frozen=True)
class Results:
    """Masks of one tracker.

    Attributes:
        name: under which they are shown.
        folder: ``FOLDER/VIDEO/FRAME.png`` or ``FOLDER/masks/VIDEO/FRAME.png``; with ``scores``
            SA-V's form, ``FOLDER/VIDEO.json``, where masks are whole that overlap others.
        scores: the folder in which an evaluation has kept the videos' scores.
    """

    name: str
    folder: Path
    scores: Path | None = None

    def of_video(self, video: str) -> Path:
        """The folder or file with the masks of a video.

        Raises:
            DataError: there is none.
        """
        names = dict.fromkeys([file_name(video), video])
        places = [base / name for base in (self.folder, self.folder / "masks") for name in names]
        if self.scores is not None:
            places = [self.folder / f"{file_name(video)}.json"]
        found = [p for p in places if p.is_file() == (self.scores is not None) and p.exists()]
        if not found:
            raise DataError(
                f"predictions {self.name!r}: {self.folder} has no masks of the video {video!r}, no "
                f"{places[0].name}; name other masks, or a video that has some"
            )
        return found[0]

    def kept(self, video: str) -> VideoScores | None:
        """What an evaluation has measured on a video; None where nothing is kept."""
        path = self.scores and self.scores / f"{file_name(video)}.json"
        if path is None or not path.is_file():
            return None
        return VideoScores.from_dict(_read_json(path, "scores"))


def _read_json(path: Path, key: str) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))[key]
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} cannot be read ({error!r}); evaluate the run again") from error


def open_results(predictions: Mapping[str, str | Path]) -> list[Results]:
    """Masks by name: a folder in DAVIS layout, or that of ``sam2kit evaluate`` or ``track``.

    Of an evaluation come all trackers, as ``NAME, TRACKER`` where there are several.

    Raises:
        DataError: a folder that is missing, or a name that is taken.
    """
    found: list[Results] = []
    for name, path in predictions.items():
        folder = Path(path)
        if not folder.is_dir():
            raise DataError(f"predictions {name!r}: {folder} is not a folder; name one with masks")
        if not (folder / "sav").is_dir():  # which every evaluation leaves
            found.append(Results(name, folder))
            continue
        trackers = _trackers(folder)
        for tracker in trackers:
            label = f"{name}, {tracker}" if len(trackers) > 1 else name
            kinds = (folder / kind / file_name(tracker) for kind in ("sav", "scores"))
            found.append(Results(label, *kinds))
    names = [TRUTH, *(results.name for results in found)]
    if twice := [name for name in names if not name or names.count(name) > 1]:
        raise DataError(f"predictions: the name {twice[0]!r} is taken or empty; choose another")
    return found


def _trackers(folder: Path) -> list[str]:
    """The trackers of an evaluation; one that was interrupted has said them by folders alone."""
    path = folder / "metrics.json"
    if not path.is_file():
        return sorted(p.name for p in (folder / "sav").iterdir() if p.is_dir())
    return [t for t in _read_json(path, "trackers") if (folder / "sav" / file_name(t)).is_dir()]


class VideoLayers:
    """The masks of one video by layer, and J over its frames, measured a few frames at a time.

    J of a frame is taken over pixels that somebody decided on, and is 1 where truth and prediction
    are empty, as in :class:`~sam2kit.evaluation.scores.VideoScores`; scores that an evaluation has
    kept are used as they are.

    Args:
        source: the truth.
        i: the video.
        results: the trackers.

    Attributes:
        objects: identities in the order in which they were met.
        annotated: ``[T]`` bool, of the frames before ``done``.
        J: by tracker and object ``[T]``, NaN where not measured.
        counted: by tracker ``[T]`` bool: frames on which J is known, of all objects.
        done: frames that have been looked at, from the first on.

    Raises:
        DataError: a tracker without masks of this video, scores of another one.
    """

    def __init__(self, source: VideoSource, i: int, results: Sequence[Results]) -> None:
        self.source, self.i, video = source, i, source.names[i]
        self.num_frames = source.num_frames(i)
        self.objects: list[ObjectId] = []
        self.annotated: np.ndarray = np.zeros(self.num_frames, bool)
        self.J: dict[str, dict[ObjectId, np.ndarray]] = {}
        self.counted: dict[str, np.ndarray] = {}
        self.done = 0 if source.has_masks else self.num_frames
        self._places = {r.name: r.of_video(video) for r in results}
        self._names, self._runs = {}, {}
        for name, place in self._places.items():
            if place.is_dir():
                self._names[name] = object_names(place)
            else:
                ids, runs = (_read_json(place, key) for key in ("masklet_id", "masklet"))
                self._runs[name] = [dict(zip(ids, frame, strict=True)) for frame in runs]
        self._kept: set[str] = set()
        for r in results:
            self.J[r.name], self.counted[r.name] = {}, np.zeros(self.num_frames, bool)
            if source.has_masks and (kept := r.kept(video)) is not None:
                self._keep(r, kept)

    def _keep(self, results: Results, kept: VideoScores) -> None:
        if len(kept.J) != self.num_frames:
            raise DataError(
                f"predictions {results.name!r}: the scores in {results.scores} are of "
                f"{len(kept.J)} frames, {kept.name!r} has {self.num_frames}; evaluate the run again"
            )
        self._kept.add(results.name)
        self.meet(kept.object_ids)
        self.J[results.name] = dict(zip(kept.object_ids, kept.J.T, strict=True))
        self.counted[results.name] = np.asarray(kept.annotated.any(1))
        if len(self._kept) == len(self._places):  # nothing is left to be measured
            self.annotated, self.done = self.counted[results.name].copy(), self.num_frames

    @property
    def names(self) -> list[str]:
        """Of the layers: the truth, where there is one, and the trackers."""
        return [TRUTH] * self.source.has_masks + list(self._places)

    def meet(self, objects: Sequence[ObjectId]) -> None:
        """Put objects that are new into the list."""
        self.objects += [o for o in dict.fromkeys(objects) if o not in self.objects]

    def masks(self, layer: str, t: int, size: tuple[int, ...]) -> dict[ObjectId, np.ndarray] | None:
        """The masks of frame ``t``, bool ``[H,W]`` by object; None: not annotated, or no file.

        Raises:
            DataError: unreadable, or not of ``size``, H and W of the frame.
        """
        if layer == TRUTH:
            found = self.source.read_masks(self.i, t)
        elif layer in self._runs:
            found = self._decode(layer, t, size)
        else:
            path = self._places[layer] / f"{self.source.frame_name(self.i, t)}.png"
            found = read_result(path, self._names[layer], size) if path.is_file() else None
        self.meet(list(found or ()))
        return found

    def _decode(self, layer: str, t: int, size: tuple[int, ...]) -> dict | None:
        if t >= len(self._runs[layer]):
            return None
        try:
            height, width = size
            return {o: decode_mask(m, (height, width)) for o, m in self._runs[layer][t].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{self._places[layer]}: frame {t} cannot be read ({error})") from error

    def advance(self, seconds: float) -> None:
        """Measure J on frames after ``done`` for about so long, on one at least.

        Raises:
            DataError: masks that cannot be read, or not of the frame's size.
        """
        until = time.monotonic() + seconds
        while self.done < self.num_frames:
            self.measure(self.done, self._places)
            self.done += 1
            if time.monotonic() >= until:
                break

    def measure(self, t: int, names: Collection[str]) -> None:
        """Measure J of some trackers on frame ``t``, where there is a truth and nothing is kept.

        Raises:
            DataError: as :meth:`advance`.
        """
        truth = self.source.read_masks(self.i, t)
        self.annotated[t] = truth is not None
        if truth is None:
            return
        self.meet(list(truth))
        size = next((m.shape for m in truth.values()), None)
        measured = [name for name in self._places if name in names and name not in self._kept]
        void = self.source.read_void(self.i, t) if measured else None
        for name in measured:
            if size is None:
                size = self.source.read_frame(self.i, t).shape[:2]
            found = self.masks(name, t, size)
            if found is None:
                continue
            for o in {**truth, **found}:
                row = self.J[name].setdefault(o, np.full(self.num_frames, np.nan))
                row[t] = iou(*outside_void(found.get(o), truth.get(o), void))
            self.counted[name][t] = True

    def curve(self, name: str, o: ObjectId) -> np.ndarray:
        """J of an object over the frames that were looked at, ``[T]``, NaN where there is none."""
        row = self.J[name].get(o, np.full(self.num_frames, np.nan))
        return np.where(self.counted[name] & np.isnan(row), 1.0, row)


def label_planes(masks: Mapping[int, np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """Masks by position in as few pictures of labels as hold them whole, where they overlap too.

    Returns:
        ``(base, labels)``: label ``n`` of ``[H,W]`` uint8 is position ``255 base + n - 1``, 0 none.
    """
    planes: list[tuple[int, np.ndarray]] = []
    for position, mask in masks.items():
        base, label = divmod(position, 255)
        free = (labels for b, labels in planes if b == base and not labels[mask].any())
        labels = next(free, None)
        if labels is None:
            labels = np.zeros(mask.shape, np.uint8)
            planes.append((base, labels))
        labels[mask] = label + 1
    return planes


def prompt_marks(
    prompts: Sequence[Prompt],
    identities: Sequence[ObjectId],
    size: tuple[int, ...],
    space: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Prompts to be drawn: ``frame``, ``object`` and ``points``, ``labels`` or ``outline``.

    Args:
        identities: of the objects by position.
        size: H and W of the frames, in whose pixels the marks are.
        space: H and W of the frames in whose pixels the prompts' points are.
    """
    marks = []
    for prompt in prompts:
        for n, position in enumerate(prompt.objects.tolist()):
            mark: dict[str, Any] = {"frame": prompt.frame, "object": identities[position]}
            if prompt.masks is not None:
                mask = prompt.masks[n].cpu().numpy().astype(np.uint8)
                lines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
                move = _mover(size, mask.shape)
                mark["outline"] = [move(line[:, 0]) for line in lines]
            elif prompt.points is not None and prompt.labels is not None:
                mark["points"] = _mover(size, space)(prompt.points[n].cpu().numpy())
                mark["labels"] = prompt.labels[n].tolist()
            marks.append(mark)
    return marks


def _mover(size: tuple[int, ...], space: tuple[int, ...]) -> Callable[[np.ndarray], list]:
    """Points x, y from frames of ``space`` to those of ``size``, pixel centres keeping place."""
    scale = np.array([size[1] / space[1], size[0] / space[0]])
    return lambda points: ((points + 0.5) * scale - 0.5).tolist()
