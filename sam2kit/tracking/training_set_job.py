"""Create a training set from annotations or tracked masks, for ``sam2kit training-set``."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from shlex import quote

from loguru import logger

from sam2kit.config.schema import DatasetConfig
from sam2kit.data.build import open_source
from sam2kit.data.sources.base import ObjectId, VideoSource
from sam2kit.data.training_set import AcceptedFrame, TrainingSetSummary, add_to_training_set
from sam2kit.models.checkpoints import SHIPPED_CHECKPOINTS, source_config
from sam2kit.prompts.annotations import AnnotationStore, Which
from sam2kit.tracking.results import find_video, read_records
from sam2kit.utils.errors import CheckpointError, ConfigError, DataError
from sam2kit.utils.text import plural, visible_text

ANNOTATIONS = "annotations"  # directory of annotations in a run directory
CLIPS_PER_EPOCH = 40  # minimum number of clips per epoch in the suggested command


@dataclass(frozen=True)
class VideoPart:
    """The frames of one video to add.

    Attributes:
        video: its name in the annotations.
        source, i: the source that contains the video, and its index.
        frames: the frames with their masks, read one at a time.
        names: display names of objects.
    """

    video: str
    source: VideoSource
    i: int
    frames: Iterable[AcceptedFrame]
    names: dict[ObjectId, str]

    def add_to(
        self, folder: str | Path, format: str | None = None, copy: bool = False
    ) -> TrainingSetSummary:
        """Call :func:`~sam2kit.data.training_set.add_to_training_set`."""
        return add_to_training_set(
            folder, self.source, self.i, self.frames, names=self.names, format=format, copy=copy
        )


def make_training_set(
    annotations: Sequence[str | Path],
    folder: str | Path,
    which: Which | None = None,
    every: int = 1,
    videos: str | Path | None = None,
    format: str | None = None,
    copy: bool = False,
) -> list[TrainingSetSummary]:
    """Add annotated or tracked frames to a new or existing training set.

    Args:
        annotations: directories of annotations, run directories of the annotator, or output
            directories of :func:`~sam2kit.tracking.tracking_job.track_videos`.
        folder: the training set; see :func:`~sam2kit.data.training_set.add_to_training_set`.
        which: frames to add: ``accepted``, ``checked`` (prompted, or accepted individually) or
            ``all`` frames with masks. For tracked videos, only ``all`` is possible. If None
            (default), ``accepted`` for annotations and ``all`` for tracked videos.
        every: use every N-th of these frames.
        videos: file, directory or dataset of the videos. If None (default), the path at which they
            were annotated.
        format, copy: see :func:`~sam2kit.data.training_set.add_to_training_set`.

    Returns:
        The added frames, one entry per video.

    Raises:
        ConfigError: an argument is invalid, or the directory cannot be written.
        DataError: there is nothing to add, or a video or an annotation cannot be read.
    """
    if every < 1:
        raise ConfigError(
            key="--every", value=every, expected="at least 1", hint="use 1 for all frames"
        )
    source = None if videos is None else open_source(videos)
    parts: list[VideoPart] = []
    for path in map(Path, annotations):
        parts += _parts(path, which, every, source)
    # At this point all videos are open, so missing ones are reported before any work.
    summaries = []
    models: set[str] = set()
    for part in parts:
        part = replace(part, frames=_note_models(part.frames, models))
        summaries.append(part.add_to(folder, format, copy))
    frames = sum(s.written + s.replaced + s.unchanged + s.others for s in summaries)
    if not frames:
        raise DataError(
            "no frame has masks",
            key="annotations",
            value=[str(path) for path in annotations],
            hint="prompt or track objects first",
        )
    model = models.pop() if len(models) == 1 else None
    command = train_command(folder, len(summaries), model, _image_size(model))
    logger.info(
        "{} with {} from {}; train with: {}",
        *(folder, plural(frames, "frame"), plural(len(summaries), "video"), command),
    )
    return summaries


def train_command(
    folder: str | Path, num_videos: int, model: str | None = None, image_size: int | None = None
) -> str:
    """Return the command that trains on a training set.

    Args:
        folder: the training set.
        num_videos: number of its videos, 1 or more.
        model: name or path of the model that made the masks, used as initial weights. If None
            (default), the default weights.
        image_size: image size of the model. If None (default), the default size.
    """
    command = f"sam2kit train --data-path {quote(str(folder))}"
    if model:
        command += f" --model-checkpoint {quote(model)}"
    if image_size not in (None, DatasetConfig().image_size):  # such as nano's 192 pixels
        command += f" --image-size {image_size}"
    if num_videos < CLIPS_PER_EPOCH:  # by default, an epoch has one clip per video
        command += f" dataset.clips_per_video={-(-CLIPS_PER_EPOCH // num_videos)}"
    return command


def _note_models(frames: Iterable[AcceptedFrame], models: set[str]) -> Iterator[AcceptedFrame]:
    """Yield the frames and collect the names of the models that predicted their masks."""
    for frame in frames:
        if frame.model:
            models.add(frame.model)
        yield frame


def _image_size(model: str | None) -> int | None:
    """Return the image size of a model, or None if it is unknown."""
    if model is None or not (model in SHIPPED_CHECKPOINTS or Path(model).exists()):
        return None
    try:
        return source_config(model)[0].dataset.image_size
    except CheckpointError:  # reported when the weights are loaded
        return None


def _parts(
    path: Path, which: Which | None, every: int, videos: VideoSource | None
) -> list[VideoPart]:
    """Find and open the videos of annotations or tracked masks."""
    if records := read_records(path):
        if which not in (None, "all"):
            raise ConfigError(
                f"{path} contains tracked masks, none of which has been accepted",
                key="--frames",
                value=which,
                expected="all",
                hint="omit --frames, or accept frames in the annotator",
            )
        unfinished = [visible_text(record.name) for record in records if not record.finished]
        if unfinished:
            logger.warning("{}: tracking is unfinished for {}", path, ", ".join(unfinished))
        return [
            VideoPart(record.name, *record.open_video(videos), record.frames(every), {})
            for record in records
        ]
    folder = path / ANNOTATIONS if (path / ANNOTATIONS).is_dir() else path
    store = AnnotationStore(folder)
    which = which or "accepted"
    parts, empty = [], []
    for video in store.videos():
        part = annotated_part(store, video, partial(_open, folder, videos), which, every)
        if part is None:
            empty.append(visible_text(video))
        else:
            parts.append(part)
    if empty:
        logger.warning("{}: no {} frames in {}", folder, which, ", ".join(empty))
    if not parts:
        raise DataError(
            f"{path} contains neither {which} frames nor masks from sam2kit track",
            key="annotations",
            value=str(path),
            hint="accept frames in the annotator, add --frames all, or pass its run directory",
        )
    return parts


def annotated_part(
    store: AnnotationStore,
    video: str,
    find: Callable[[str, str], tuple[VideoSource, int]],
    which: Which = "accepted",
    every: int = 1,
) -> VideoPart | None:
    """Open a video of a store and read its annotations.

    Args:
        store: the annotations.
        video: the name of the video, one of ``store.videos()``.
        find: function from this name, and the path at which the video was annotated (or ""), to a
            source and an index.
        which, every: see :func:`make_training_set`.

    Returns:
        The frames to add, or None if there are none; then ``find`` is not called.

    Raises:
        DataError: the video has another length than the annotated one, or an annotation is damaged.
    """
    state = store.load(video)
    assert state is not None  # it is listed
    if not {"accepted": state.accepted, "checked": state.checked}.get(which, True):
        return None
    source, i = find(video, state.path)
    if source.num_frames(i) != state.num_frames:
        raise DataError(
            f"video {visible_text(video)!r} has {source.num_frames(i)} frames, but had "
            f"{state.num_frames} when it was annotated",
            hint="pass the annotated videos with --videos, or open them in the annotator",
        )
    names = {o.id: o.name for o in state.objects if o.name}
    return VideoPart(video, source, i, store.accepted(video, which, every), names)


def _open(
    folder: Path, videos: VideoSource | None, video: str, path: str
) -> tuple[VideoSource, int]:
    """Open an annotated video."""
    if videos is not None:
        return find_video(videos, video)
    if not path or not Path(path).exists():
        where = f"{path}, which does not exist" if path else "a dataset"
        raise DataError(
            f"{folder}: video {visible_text(video)!r} was annotated in {where}",
            key="--videos",
            hint="pass the directory or dataset of the videos with --videos",
        )
    return find_video(open_source(path), video)
