"""Draw predicted masks as overlays, animations and error images."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from matplotlib.figure import Figure

from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.evaluation.scores import DataSetScores, VideoScores, summary
from sam2kit.utils.paths import file_name
from sam2kit.utils.sampling import evenly_spaced
from sam2kit.utils.text import label_text
from sam2kit.viz.overlays import WHITE, contact_sheet, error_overlay, overlay
from sam2kit.viz.plots import save_figure
from sam2kit.viz.video_writer import save_gif, save_mp4

ReadMasks = Callable[[str, str, int], Mapping[ObjectId, np.ndarray]]
"""Function of tracker, video and frame number that returns masks, bool ``[H,W]`` by object."""

MAX_PICTURES = 4
MAX_PICTURE_FRAMES = 40
MAX_COLUMNS = 8  # maximum number of columns, so that frames are large enough
PICTURE_WIDTH = 240  # in pixels; only MP4 files show frames at full size


def draw_videos(
    trackers: Sequence[DataSetScores], source: VideoSource, read_masks: ReadMasks, folder: Path
) -> None:
    """Write ``overlays/`` (a PNG and an MP4 per video), ``overlay.png`` and ``overlay.gif``.

    Up to :data:`MAX_PICTURES` videos are drawn, selected because their J&F is closest to the first
    tracker's median, which is more typical than the best or worst. An image has up to
    :data:`MAX_PICTURE_FRAMES` frames. MP4 files show all frames, with the ground truth on the left
    and the first tracker on the right.

    Args:
        trackers: scores on the same videos, first those of the tracker under evaluation.
        source: the videos.
        read_masks: the predicted masks.
        folder: an existing directory.
    """
    (folder / "overlays").mkdir(exist_ok=True)
    animations: list[np.ndarray] = []
    for video in _videos_around_the_median(trackers[0]):
        numbers, frames, truth, masks = _sample_frames(video, trackers, source, read_masks)
        annotated = np.asarray(video.annotated.any(axis=1))[numbers]
        scores = {}
        for tracker in trackers:
            mean = summary([tracker.by_name()[video.name]])["J&F"]
            scores[tracker.tracker] = "no score" if mean is None else f"J&F {mean:.2f}"
        i = source.names.index(video.name)
        labels = [source.frame_number(i, t) for t in numbers]
        figure = tracking_figure(frames, truth, masks, scores, video.name, labels, annotated)
        path = folder / "overlays" / f"{file_name(video.name)}.png"
        save_figure(figure, path)
        save_mp4(path.with_suffix(".mp4"), _side_by_side(video, trackers[0], source, read_masks))
        if not animations:
            save_figure(figure, folder / "overlay.png")
        animations.append(tracking_frames(frames, truth, masks, annotated))
    # All frames of a GIF must have the same size.
    same_size = [a for a in animations if a.shape[1:] == animations[0].shape[1:]]
    save_gif(folder / "overlay.gif", np.concatenate(same_size), fps=4)


def _videos_around_the_median(main: DataSetScores) -> list[VideoScores]:
    means = {v.name: summary([v])["J&F"] for v in main.videos}
    means = {name: mean for name, mean in means.items() if mean is not None}
    middle = float(np.median(list(means.values())))
    names = sorted(means, key=lambda name: abs(means[name] - middle))[:MAX_PICTURES]
    return [main.by_name()[name] for name in names]


def _sample_frames(
    video: VideoScores, trackers: Sequence[DataSetScores], source: VideoSource, read: ReadMasks
) -> tuple[list[int], np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Read evenly spaced frames and masks of a video at a small size.

    If only some frames are annotated, they include as many of them as a figure shows.

    Returns:
        T frame numbers, frames ``[T,h,w,3]`` uint8, ground truth bool ``[T,O,h,w]``, and
        predictions of the same shape by tracker.
    """
    i = source.names.index(video.name)
    annotated = np.flatnonzero(video.annotated.any(1))
    numbers = evenly_spaced(len(video.J), MAX_PICTURE_FRAMES)
    if 0 < len(annotated) < len(video.J):
        shown = annotated[evenly_spaced(len(annotated), MAX_COLUMNS)]
        others = evenly_spaced(len(video.J), MAX_PICTURE_FRAMES - len(shown))
        numbers = sorted({*shown.tolist(), *others})
    height, width = source.read_frame(i, 0).shape[:2]
    size = min(PICTURE_WIDTH, width), max(1, round(height * min(PICTURE_WIDTH / width, 1)))
    frames = (source.read_frame(i, t) for t in numbers)
    small = np.stack([cv2.resize(f, size, interpolation=cv2.INTER_AREA) for f in frames])

    def shrink(masks: Mapping[ObjectId, np.ndarray]) -> np.ndarray:
        whole = _stack(masks, video, (height, width))
        pixels = (mask.astype(np.uint8) for mask in whole)
        return np.stack([cv2.resize(m, size, interpolation=cv2.INTER_NEAREST) > 0 for m in pixels])

    truth = np.stack([shrink(source.read_masks(i, t) or {}) for t in numbers])
    predictions = {
        t.tracker: np.stack([shrink(read(t.tracker, video.name, n)) for n in numbers])
        for t in trackers
    }
    return numbers, small, truth, predictions


def _side_by_side(
    video: VideoScores, main: DataSetScores, source: VideoSource, read_masks: ReadMasks
) -> Iterator[np.ndarray]:
    """Yield all frames, ``[H,2W,3]`` uint8: ground truth on the left, predictions on the right."""
    i = source.names.index(video.name)
    for t in range(source.num_frames(i)):
        frame = source.read_frame(i, t)
        both = source.read_masks(i, t) or {}, read_masks(main.tracker, video.name, t)
        halves = [overlay(frame, _stack(masks, video, frame.shape[:2])) for masks in both]
        yield np.concatenate(halves, axis=1)


def _stack(
    masks: Mapping[ObjectId, np.ndarray], video: VideoScores, size: tuple[int, ...]
) -> np.ndarray:
    """Stack masks in the order of the video's objects, bool ``[O,H,W]``; fill in empty masks."""
    return np.stack([masks.get(o, np.zeros(size, bool)) for o in video.object_ids])


def tracking_figure(
    frames: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    scores: Mapping[str, str],
    title: str,
    numbers: Sequence[int],
    annotated: np.ndarray | None = None,
    max_columns: int = MAX_COLUMNS,
) -> Figure:
    """Draw a row with the ground truth, and one row of frames per tracker below it.

    Annotated frames are preferred, because the others have no ground truth for comparison.

    Args:
        frames: ``[T,H,W,3]`` uint8.
        truth: bool ``[T,O,H,W]``.
        predictions: bool ``[T,O,H,W]`` by tracker.
        scores: the text beside each tracker's row, by tracker.
        title: the title of the figure.
        numbers: T frame numbers, which label the columns.
        annotated: ``[T]`` bool. If None (default), all frames are annotated.
        max_columns: maximum number of frames, evenly spaced from the first to the last.
    """
    annotated = np.ones(len(frames), bool) if annotated is None else annotated
    candidates = np.flatnonzero(annotated) if annotated.sum() > 1 else np.arange(len(frames))
    steps = candidates[evenly_spaced(len(candidates), max_columns)].tolist()
    rows = {"truth": truth} | {f"{name}\n{scores[name]}": p for name, p in predictions.items()}
    images = [[overlay(frames[t], masks[t]) for t in steps] for masks in rows.values()]
    labels = [f"frame {numbers[t]}" + ("" if annotated[t] else "\nunannotated") for t in steps]
    return contact_sheet(images, list(rows), labels, title)


def tracking_frames(
    frames: np.ndarray,
    truth: np.ndarray,
    predictions: Mapping[str, np.ndarray],
    annotated: np.ndarray | None = None,
) -> np.ndarray:
    """Draw the frames of an animation with ground truth and trackers side by side.

    The caption of the ground truth marks unannotated frames.

    Args:
        frames, truth, predictions, annotated: see :func:`tracking_figure`.

    Returns:
        ``[T,H',W',3]`` uint8. Each panel is about 192 to 256 pixels wide: wide enough for the
        tracker's name, and small enough for a GIF.
    """
    panels = {"truth": truth, **predictions}
    factor = min(max(1, -(-192 // frames.shape[2])), 256 / frames.shape[2])
    height, width = round(frames.shape[1] * factor), round(frames.shape[2] * factor)
    headers = {
        name: np.concatenate([_caption(text, width) for text in (name, *predictions)], axis=1)
        for name in ("truth", "truth: unannotated")
    }
    pictures = []
    for t, frame in enumerate(frames):
        header = headers["truth" if annotated is None or annotated[t] else "truth: unannotated"]
        images = [overlay(frame, masks[t]) for masks in panels.values()]
        images = [cv2.resize(m, (width, height), interpolation=cv2.INTER_NEAREST) for m in images]
        pictures.append(np.concatenate([header, np.concatenate(images, axis=1)]))
    return np.stack(pictures)


def _caption(text: str, width: int) -> np.ndarray:
    """Return a white strip ``[20,width,3]`` uint8 with a text."""
    strip, font = np.full((20, width, 3), 255, dtype=np.uint8), cv2.FONT_HERSHEY_SIMPLEX
    cv2.putText(strip, label_text(text), (4, 14), font, 0.42, (0, 0, 0), 1, cv2.LINE_AA)
    return strip


@dataclass
class Example:
    """Images of one object on one frame.

    Attributes:
        title: video and object.
        caption: the frame and its scores.
        images: ``[H,W,3]`` uint8 by label, such as ``prediction``.
    """

    title: str
    caption: str
    images: dict[str, np.ndarray]


def show_objects(
    main: DataSetScores,
    objects: Sequence[tuple[VideoScores, int]],
    source: VideoSource,
    read_masks: ReadMasks,
) -> list[Example]:
    """Draw frame, ground truth, prediction and errors of objects on a median and a worst frame.

    Args:
        main: the scores of the tracker.
        objects: pairs of a video and an index into its ``object_ids``.
        source: the videos.
        read_masks: the predicted masks.

    Returns:
        Two examples per object: the frame of median J, then the frame of lowest J.
    """
    examples = []
    for video, o in objects:
        identity, scored = video.object_ids[o], np.flatnonzero(video.scored[:, o])
        i = source.names.index(video.name)
        by_score = scored[video.J[scored, o].argsort(kind="stable")]
        for word, t in (("median", by_score[len(by_score) // 2]), ("worst", by_score[0])):
            frame, truth = _frame_and_truth(source, video.name, int(t), identity)
            masks = read_masks(main.tracker, video.name, int(t))
            prediction = masks.get(identity, np.zeros_like(truth))
            images = {
                "frame": frame,
                "truth": _spotlight(frame, truth),
                "prediction": _spotlight(frame, prediction),
                "error": error_overlay(frame, prediction, truth),
            }
            number = source.frame_number(i, int(t))
            caption = f"{word} frame, {number}: J {video.J[t, o]:.2f}, F {video.F[t, o]:.2f}"
            examples.append(Example(f"{video.name}, object {identity}", caption, images))
    return examples


def compare_errors(
    main: DataSetScores,
    other: DataSetScores,
    rows: Sequence[Mapping[str, Any]],
    source: VideoSource,
    read_masks: ReadMasks,
) -> list[Example]:
    """Draw the errors of two trackers side by side on the frames where they differ most.

    Args:
        main, other: the scores of the two trackers.
        rows: entries of ``differences`` as returned by
            :func:`sam2kit.evaluation.statistics.paired_differences`. Each object is shown on the
            frame where J differs most in the direction of its entry.
        source: the videos.
        read_masks: the predicted masks.
    """
    examples = []
    for row in rows:
        name, identity = row["video"], row["object"]
        main_video, other_video = (scores.by_name()[name] for scores in (main, other))
        o, n = (v.object_ids.index(identity) for v in (main_video, other_video))
        gain = np.where(main_video.scored[:, o], main_video.J[:, o] - other_video.J[:, n], np.nan)
        t = int(np.nanargmax(gain if row["difference"] > 0 else -gain))
        frame, truth = _frame_and_truth(source, name, t, identity)
        images = {"frame": frame, "truth": _spotlight(frame, truth)}
        for tracker in (other.tracker, main.tracker):
            mask = read_masks(tracker, name, t).get(identity, np.zeros_like(truth))
            images[tracker] = error_overlay(frame, mask, truth)
        number = source.frame_number(source.names.index(name), t)
        caption = f"J&F {row['difference']:+.2f}; frame {number}: J {other_video.J[t, n]:.2f} and "
        caption += f"{main_video.J[t, o]:.2f}"
        examples.append(Example(f"{name}, object {identity}", caption, images))
    return examples


def example_sheet(examples: Sequence[Example]) -> Figure:
    """Draw one row per example; all examples must have the same image labels."""
    rows = [list(example.images.values()) for example in examples]
    labels = [f"{e.title}\n" + e.caption.replace(": ", "\n").replace("; ", "\n") for e in examples]
    return contact_sheet(rows, labels, list(examples[0].images), cell_inches=2.2)


def _spotlight(frame: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Darken the frame outside the mask.

    A coloured overlay would be hard to see on a background of the same colour.
    """
    dark = np.where(mask[..., None], frame, frame // 3)
    return overlay(dark, mask[None], np.array([WHITE]), alpha=0)


def _frame_and_truth(
    source: VideoSource, video: str, t: int, identity: ObjectId
) -> tuple[np.ndarray, np.ndarray]:
    i = source.names.index(video)
    frame = source.read_frame(i, t)
    truth = (source.read_masks(i, t) or {}).get(identity, np.zeros(frame.shape[:2], bool))
    return frame, truth
