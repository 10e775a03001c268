"""Read a video's masks of the ground truth and of trackers, and measure J."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from sam2kit.data.rle import decode_mask
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.sources.mask_files import SAMPLED_VIDEOS, share_decision
from sam2kit.data.sources.mask_values import MaskDecision
from sam2kit.evaluation.metrics import iou, outside_void
from sam2kit.evaluation.predictions import ResultMasks, result_folder
from sam2kit.evaluation.scores import VideoScores
from sam2kit.prompts.geometry import rescale_points
from sam2kit.prompts.prompt import Prompt
from sam2kit.utils.errors import DataError
from sam2kit.utils.paths import file_name
from sam2kit.utils.readers import MAX_MASKS_BYTES, damage_is, read_json
from sam2kit.utils.sampling import evenly_spaced
from sam2kit.widgets.base import encode_png

TRUTH = "truth"  # name of the layer with the ground truth


@dataclass(frozen=True)
class Results:
    """The masks of one tracker, and its scores if an evaluation stored them.

    Attributes:
        name: the name of the layer.
        folder: directory with ``VIDEO/FRAME.png`` or ``masks/VIDEO/FRAME.png``. If ``scores`` is
            set, it contains ``VIDEO.json`` in SA-V's format, in which masks can overlap.
        scores: directory of an evaluation's scores per video. If None (default), no scores are
            stored.
        videos: names of all videos of the dataset.
    """

    name: str
    folder: Path
    scores: Path | None = None
    videos: Sequence[str] = ()

    @cached_property
    def decision(self) -> MaskDecision:
        """The meaning of the values of PNG masks, which is the same for all videos."""
        names = [self.videos[k] for k in evenly_spaced(len(self.videos), SAMPLED_VIDEOS)]
        folders = [path for name in names if (path := result_folder(self.folder, name))]
        return share_decision([ResultMasks(path) for path in folders], "auto", None, self.folder)

    def mask_path(self, video: str) -> Path:
        """Return the directory or file with the masks of a video.

        Raises:
            DataError: the path does not exist.
        """
        if self.scores is None:
            name = file_name(video)
            path = result_folder(self.folder, video)
        else:
            name = f"{file_name(video)}.json"
            path = self.folder / name if (self.folder / name).is_file() else None
        if path is None:
            raise DataError(
                f"{self.folder} contains no {name}, the masks of the video {video!r}",
                key=f"predictions[{self.name!r}]",
                hint="pass another directory of masks, or choose a video that has masks",
            )
        return path

    def stored_scores(self, video: str) -> VideoScores | None:
        """Return the stored scores of a video, or None if there are none."""
        path = self.scores and self.scores / f"{file_name(video)}.json"
        if path is None or not path.is_file():
            return None
        with damage_is(DataError, path, "evaluate the run again"):
            return VideoScores.from_dict(*_read_json(path, "scores"))


def _read_json(path: Path, *keys: str) -> list[Any]:
    try:
        hint = "evaluate the run again"
        content = read_json(path, hint=hint, max_bytes=MAX_MASKS_BYTES, non_finite=True)
        return [content[key] for key in keys]
    except (OSError, KeyError, TypeError) as error:
        raise DataError(
            f"{path} cannot be read ({error!r})", hint="evaluate the run again"
        ) from error


def open_results(
    predictions: Mapping[str, str | Path], videos: Sequence[str] = ()
) -> list[Results]:
    """Find the masks of trackers in directories.

    Args:
        predictions: maps names to directories in DAVIS layout, or to output directories of
            ``sam2kit evaluate`` or ``sam2kit track``.
        videos: names of all videos of the dataset.

    Returns:
        One entry per tracker. If an evaluation contains several trackers, they are named
        ``NAME, TRACKER``.

    Raises:
        DataError: a directory is missing, or a name is empty, reserved or used twice.
    """
    results: list[Results] = []
    for name, path in predictions.items():
        folder = Path(path)
        if not folder.is_dir():
            raise DataError(
                key=f"predictions[{name!r}]",
                value=str(folder),
                expected="a directory",
                hint="pass a directory that contains masks",
            )
        if not (folder / "sav").is_dir():  # every evaluation writes this directory
            results.append(Results(name, folder, videos=videos))
            continue
        trackers = _trackers(folder)
        for tracker in trackers:
            label = f"{name}, {tracker}" if len(trackers) > 1 else name
            kinds = (folder / kind / file_name(tracker) for kind in ("sav", "scores"))
            results.append(Results(label, *kinds, videos))
    names = [TRUTH, *(entry.name for entry in results)]
    if invalid := [name for name in names if not name or names.count(name) > 1]:
        raise DataError(
            f"the name {invalid[0]!r} is empty, reserved or used twice",
            key="predictions",
            hint="choose another name",
        )
    return results


def _trackers(folder: Path) -> list[str]:
    """Return the names of the trackers of an evaluation.

    ``metrics.json`` is written last. Without it (after an interrupted evaluation), the names of the
    directories are used, in which special characters are replaced.
    """
    path = folder / "metrics.json"
    if not path.is_file():
        return sorted(p.name for p in (folder / "sav").iterdir() if p.is_dir())
    with damage_is(DataError, path, "evaluate the run again"):
        trackers = dict(*_read_json(path, "trackers"))
    return [t for t in trackers if (folder / "sav" / file_name(t)).is_dir()]


class VideoLayers:
    """Read the masks of one video by layer and measure J incrementally.

    J is defined as in :class:`~sam2kit.evaluation.scores.VideoScores`: void pixels are excluded,
    and J is 1 if ground truth and prediction are both empty. Stored scores of an evaluation are
    reused.

    Args:
        source: the videos and their ground truth.
        i: the index of the video.
        results: the trackers.

    Attributes:
        objects: identities in order of first appearance.
        annotated: ``[T]`` bool, valid for the frames before ``done``.
        J: ``[T]`` by tracker and object, NaN where not measured.
        counted: ``[T]`` bool by tracker, true for frames on which J of all objects is known.
        done: number of frames measured so far, from the first.

    Raises:
        DataError: a tracker has no masks of this video, or its scores belong to another video.
    """

    def __init__(self, source: VideoSource, i: int, results: Sequence[Results]) -> None:
        self.source, self.i, video = source, i, source.names[i]
        self.num_frames = source.num_frames(i)
        self.objects: list[ObjectId] = []
        self.annotated: np.ndarray = np.zeros(self.num_frames, bool)
        self.J: dict[str, dict[ObjectId, np.ndarray]] = {}
        self.counted: dict[str, np.ndarray] = {}
        self.done = 0 if source.has_masks else self.num_frames
        self._paths = {r.name: r.mask_path(video) for r in results}
        self._masks, self._encoded = {}, {}
        for r, path in zip(results, self._paths.values(), strict=True):
            if path.is_dir():
                self._masks[r.name] = ResultMasks(path)
                self._masks[r.name].decision = r.decision
            else:
                ids, frames = _read_json(path, "masklet_id", "masklet")
                with damage_is(DataError, path, "evaluate the run again"):
                    self._encoded[r.name] = [dict(zip(ids, frame, strict=True)) for frame in frames]
        self._with_scores: set[str] = set()
        for r in results:
            self.J[r.name], self.counted[r.name] = {}, np.zeros(self.num_frames, bool)
            if source.has_masks and (scores := r.stored_scores(video)) is not None:
                self._use_scores(r, scores)

    def _use_scores(self, results: Results, scores: VideoScores) -> None:
        """Copy J of a tracker from the scores of an evaluation."""
        if len(scores.J) != self.num_frames:
            raise DataError(
                f"the scores in {results.scores} are for {len(scores.J)} frames, but the video "
                f"{scores.name!r} has {self.num_frames}",
                key=f"predictions[{results.name!r}]",
                hint="evaluate the run again",
            )
        self._with_scores.add(results.name)
        self.add_objects(scores.object_ids)
        self.J[results.name] = dict(zip(scores.object_ids, scores.J.T, strict=True))
        self.counted[results.name] = np.asarray(scores.annotated.any(1))
        if len(self._with_scores) == len(self._paths):  # no tracker needs measuring
            self.annotated, self.done = self.counted[results.name].copy(), self.num_frames

    @property
    def names(self) -> list[str]:
        """The names of the layers: the ground truth, if the source has masks, and the trackers."""
        return [TRUTH] * self.source.has_masks + list(self._paths)

    def add_objects(self, objects: Sequence[ObjectId]) -> None:
        """Append objects that are not in the list yet."""
        self.objects += [o for o in dict.fromkeys(objects) if o not in self.objects]

    def masks(self, layer: str, t: int, size: tuple[int, ...]) -> dict[ObjectId, np.ndarray] | None:
        """Return the masks of a layer on frame ``t``.

        Args:
            layer: one of ``names``.
            t: index of the frame.
            size: H and W of the frame.

        Returns:
            bool ``[H,W]`` by object; None if the frame is unannotated or has no mask file.

        Raises:
            DataError: the masks cannot be read, or their size is not ``size``.
        """
        if layer == TRUTH:
            masks = self.source.read_masks(self.i, t)
        elif layer in self._encoded:
            masks = self._decode(layer, t, size)
        else:
            files, frame = self._masks[layer], self.source.frame_name(self.i, t)
            masks = files.read(frame, size) if files.has(frame) else None
        self.add_objects(list(masks or ()))
        return masks

    def _decode(self, layer: str, t: int, size: tuple[int, ...]) -> dict | None:
        if t >= len(self._encoded[layer]):
            return None
        try:
            height, width = size
            return {o: decode_mask(m, (height, width)) for o, m in self._encoded[layer][t].items()}
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(
                f"{self._paths[layer]}: frame {t} cannot be read ({error})",
                hint="evaluate the run again",
            ) from error

    def advance(self, seconds: float) -> None:
        """Measure J on at least one further frame, for about ``seconds``.

        Raises:
            DataError: masks cannot be read, or do not have the size of the frame.
        """
        end_time = time.monotonic() + seconds
        while self.done < self.num_frames:
            self.measure(self.done, self._paths)
            self.done += 1
            if time.monotonic() >= end_time:
                break

    def measure(self, t: int, names: Collection[str]) -> None:
        """Measure J of the given trackers on frame ``t``, if it is annotated and not stored.

        Raises:
            DataError: as in :meth:`advance`.
        """
        truth = self.source.read_masks(self.i, t)
        self.annotated[t] = truth is not None
        if truth is None:
            return
        self.add_objects(list(truth))
        size = next((m.shape for m in truth.values()), None)
        measured = [name for name in self._paths if name in names and name not in self._with_scores]
        void = self.source.read_void(self.i, t) if measured else None
        for name in measured:
            # Without a ground-truth mask, only the frame determines the expected size of masks.
            if size is None:
                size = self.source.read_frame(self.i, t).shape[:2]
            masks = self.masks(name, t, size)
            if masks is None:
                continue
            for o in {**truth, **masks}:
                row = self.J[name].setdefault(o, np.full(self.num_frames, np.nan))
                row[t] = iou(*outside_void(masks.get(o), truth.get(o), void))
            self.counted[name][t] = True

    def curve(self, name: str, o: ObjectId) -> np.ndarray:
        """Return J of an object as ``[T]``, NaN on frames that are not measured."""
        row = self.J[name].get(o, np.full(self.num_frames, np.nan))
        # If a measured frame has no value, the object is in neither mask.
        return np.where(self.counted[name] & np.isnan(row), 1.0, row)


def label_planes(masks: Mapping[int, np.ndarray]) -> list[tuple[int, np.ndarray]]:
    """Pack masks into as few label images as possible without losing overlaps.

    Args:
        masks: ``[H,W]`` bool by position of the object.

    Returns:
        ``(base, labels)`` per image: label ``n`` > 0 of ``labels``, ``[H,W]`` uint8, is the object
        at position ``255 base + n - 1``; 0 is background.
    """
    planes: list[tuple[int, np.ndarray]] = []
    for position, mask in masks.items():
        base, label = divmod(position, 255)
        # Use the first image of this range of positions that is still empty under the mask.
        free = (labels for b, labels in planes if b == base and not labels[mask].any())
        labels = next(free, None)
        if labels is None:
            labels = np.zeros(mask.shape, np.uint8)
            planes.append((base, labels))
        labels[mask] = label + 1
    return planes


def encode_planes(masks: Mapping[int, np.ndarray], size: tuple[int, int]) -> list[dict[str, Any]]:
    """Encode masks as PNG images of labels.

    Args:
        masks: ``[H,W]`` bool by position of the object.
        size: rows and columns of the images.

    Returns:
        ``base`` and ``labels``, the image, of each of the :func:`label_planes`.
    """
    encoded = []
    for base, labels in label_planes(masks):
        if labels.shape != size:
            labels = cv2.resize(labels, size[::-1], interpolation=cv2.INTER_NEAREST)
        encoded.append({"base": base, "labels": encode_png(labels, compress_level=1)})
    return encoded


def prompt_marks(
    prompts: Sequence[Prompt],
    identities: Sequence[ObjectId],
    size: tuple[int, ...],
    space: tuple[int, ...],
) -> list[dict[str, Any]]:
    """Return prompts as marks to draw.

    Args:
        prompts: the prompts.
        identities: identities of the objects, by position.
        size: H and W of the frames whose pixels are the units of the result.
        space: H and W of the frames whose pixels are the units of the prompts' points.

    Returns:
        Per prompt and object a dict with ``frame``, ``object``, and either ``points`` and
        ``labels`` or ``outline``, a list of polygons.
    """
    marks = []
    for prompt in prompts:
        for n, position in enumerate(prompt.objects.tolist()):
            mark: dict[str, Any] = {"frame": prompt.frame, "object": identities[position]}
            if prompt.masks is not None:
                mask = prompt.masks[n].cpu().numpy().astype(np.uint8)
                outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_SIMPLE)
                # Masks have their own size, which may differ from ``space``.
                rings = [rescale_points(ring[:, 0], mask.shape, size) for ring in outlines]
                mark["outline"] = [ring.tolist() for ring in rings]
            elif prompt.points is not None and prompt.labels is not None:
                points = rescale_points(prompt.points[n].cpu().numpy(), space, size)
                mark["points"] = points.tolist()
                mark["labels"] = prompt.labels[n].tolist()
            marks.append(mark)
    return marks
