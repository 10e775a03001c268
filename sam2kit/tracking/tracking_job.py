"""Track videos without ground truth and write the results, for ``sam2kit track``."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from itertools import chain, count
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from loguru import logger

import sam2kit
from sam2kit.config.schema import Config
from sam2kit.data.label_writers import LabelRecorder
from sam2kit.data.parallel import ReadAhead, WorkBehind
from sam2kit.data.result_forms import (
    LABEL_IMAGES,
    cvat_file,
    result_form,
    write_cvat_results,
    write_in_form,
)
from sam2kit.data.sources.base import ObjectId
from sam2kit.data.writers import MaskWriter, coco_json
from sam2kit.models.checkpoints import open_checkpoint
from sam2kit.prompts.geometry import rescale_points
from sam2kit.prompts.io import video_prompts
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.inputs import (
    VideoInput,
    digest,
    open_inputs,
    prompts_from_file,
    prompts_from_flags,
)
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.results import (
    MASKS_JSON,
    VIDEOS,
    TrackRecord,
    read_masks,
    read_records,
    write_combined,
)
from sam2kit.tracking.video_tracker import FrameTracks, VideoTracker
from sam2kit.utils.device import pick_device
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.files import write_text
from sam2kit.utils.locks import locked
from sam2kit.utils.paths import file_name, open_run_dir
from sam2kit.utils.progress import log_progress
from sam2kit.utils.text import cell_text, plural, visible_text
from sam2kit.viz.overlays import draw_prompts, overlay
from sam2kit.viz.video_writer import mp4_writer, save_gif

GIF_FRAMES, GIF_WIDTH = 60, 480
MIN_FPS = 1.0  # minimum frame rate of overlays
LOCK_FILE = ".track.lock"
# Upstream also tracks objects before their first prompt, where users do not expect masks.
OPTIONS = TrackerOptions(track_before_prompt=False)


def track_video(
    video: str | Path,
    prompts: str | Path | Sequence[Mapping[str, Any]],
    checkpoint: str | Path,
    output_dir: str | Path | None = None,
    accelerator: str = "auto",
    options: TrackerOptions = OPTIONS,
    *,
    overwrite: bool = False,
    to: str | None = None,
    devices: str = "1",
) -> Path:
    """Track objects through one video or all videos of a directory; see :func:`track_videos`.

    Args:
        video: a video file, a directory of frames, or a directory or dataset with several videos.
        prompts, checkpoint, output_dir, accelerator, options: see :func:`track_videos`.
        overwrite, to, devices: see :func:`track_videos`.

    Returns:
        The output directory.
    """
    return track_videos(
        [video], prompts, checkpoint, output_dir, accelerator, options, overwrite, to, devices
    )


def track_videos(
    videos: Sequence[str | Path],
    prompts: str | Path | Sequence[Mapping[str, Any]],
    checkpoint: str | Path,
    output_dir: str | Path | None = None,
    accelerator: str = "auto",
    options: TrackerOptions = OPTIONS,
    overwrite: bool = False,
    to: str | None = None,
    devices: str = "1",
) -> Path:
    """Track each object from its first prompt to the end of its video.

    Frames are read one at a time. The output directory contains:

    - ``masks/VIDEO/FRAME.png``: palette PNG in the DAVIS layout, or 16-bit PNG for more than 254
      objects,
    - ``masks.json``: the masks in the COCO format,
    - ``objects.csv``: area in pixels, object score (logit) and predicted IoU per object and frame,
    - ``overlay.mp4``, and ``overlay.gif`` with up to 60 evenly spaced frames and a width of up to
        480 pixels,
    - ``track.json``: inputs, options and version,
    - for stacks and volumes, the masks in the format of the data: ``labels/VIDEO_labels.tif``,
        ``VIDEO_RES`` with ``res_track.txt`` (Cell Tracking Challenge), or ``labels/VIDEO.nii.gz``
        with the affine of the volume,
    - for CVAT tasks, or with ``to="cvat"``, ``labels/VIDEO.xml`` ("CVAT for video 1.1").

    With several videos, the table, the overlays and ``track.json`` are in ``videos/VIDEO``. Objects
    have no mask before their first prompt. After an interruption, all files contain the frames
    tracked so far. A later call can add videos to the directory; it skips finished videos and
    tracks unfinished ones again.

    Args:
        videos: video files, directories of frames, or directories or datasets with several videos.
        prompts: a prompt file (see :func:`~sam2kit.prompts.io.load_video_prompts`), or prompts for
            every video (see :func:`~sam2kit.tracking.inputs.prompts_from_flags`). Videos without
            prompts in the file are logged and skipped.
        checkpoint: a checkpoint; see :func:`~sam2kit.models.checkpoints.load_model`.
        output_dir: the output directory. If None (default), a new dated directory in ``outputs``.
        accelerator: ``auto``, ``cpu``, ``gpu`` or ``mps``.
        options: see :class:`~sam2kit.tracking.options.TrackerOptions`.
        overwrite: replace results from other prompts or another model.
        to: ``cvat`` also writes the masks as a CVAT task. If None (default), only videos from CVAT
            get one.
        devices: ``N,`` selects the GPU with index N; ``1`` (default) selects the first GPU.

    Returns:
        The output directory.

    Raises:
        ConfigError: the output directory contains results of the same video from other inputs, is
            in use, or is not writable.
        DataError: a video or the prompt file is invalid.
        CheckpointError: the checkpoint is invalid.
        KeyboardInterrupt: tracking was interrupted; all files are valid.
    """
    opened = open_checkpoint(checkpoint, key="--model-checkpoint")
    config = opened.config
    # Convert stacks and volumes to frames as in training.
    inputs = open_inputs(videos, config.dataset)
    if isinstance(prompts, (str, Path)):
        documents = prompts_from_file(prompts, inputs)
        prompts_name = str(prompts)
    else:
        documents = {video.name: prompts_from_flags(prompts, video) for video in inputs}
        prompts_name = "the command line"
    image_size = config.dataset.image_size
    # Read all prompts before tracking the first video.
    jobs = []
    for video in inputs:
        if video.name in documents:
            log_time_split(config, video.path)
            document, key = documents[video.name]
            # Compare the frames with image_size, in which rows and columns are often swapped.
            size = video.read_frame(0).shape[:2]
            loaded = video_prompts(document, prompts_name, key, video.num_frames, image_size, size)
            jobs.append(_Job(video, prompts_name, document, key, *loaded))
    checkpoint_state, model = _file_state(opened.path), opened.load()
    del opened  # frees a second copy of the weights
    folder = open_run_dir(output_dir, "outputs")
    with locked(folder, LOCK_FILE, ConfigError, key="--output-dir"):
        records = _find_records(folder, jobs)
        made_with = asdict(options)
        del made_with["lookahead"], made_with["resize_on_device"]  # only affect rounding
        inputs_digests = [
            digest(job.entries, _file_state(job.video.path), checkpoint_state, made_with)
            for job in jobs
        ]
        if not overwrite:
            _check_results(records, inputs_digests)
        tracker = VideoTracker(model, options, pick_device(accelerator, devices))
        try:
            for n, (job, record) in enumerate(zip(jobs, records, strict=True)):
                name = visible_text(record.name)
                if record.finished and record.content.get("digest") == inputs_digests[n]:
                    logger.info("Skipping {}: already finished, in {}", name, record.folder)
                    _write_cvat(job.video, record, to, replace=False)
                    continue
                if len(jobs) > 1:
                    logger.info("Video {} of {}: {}", n + 1, len(jobs), name)
                about = {"checkpoint": str(checkpoint), "digest": inputs_digests[n]}
                _track(tracker, job, record, about | {"options": asdict(options)}, image_size, to)
        finally:
            write_combined(folder)
    logger.info("{}: results in {}", plural(len(jobs), "video"), folder)
    return folder


@dataclass(frozen=True)
class _Job:
    """A video with its prompts: the content of a prompt file and the name of the video in it."""

    video: VideoInput
    prompts_name: str
    document: dict[str, Any]
    key: str
    prompts: list[Prompt]
    object_ids: list[ObjectId]

    @property
    def entries(self) -> list[dict[str, Any]]:
        """The video's entries in the prompt file, and the size to which they refer."""
        entries = [e for e in self.document["prompts"] if e.get("video") == self.key]
        sizes = {k: v for k, v in self.document.items() if k.startswith("image_size")}
        return [sizes, *({k: v for k, v in e.items() if k != "video"} for e in entries)]


def _file_state(path: Path) -> list[Any]:
    """Return values that change when a file is replaced."""
    state = path.stat()
    return [str(path.resolve()), state.st_size, state.st_mtime_ns if path.is_file() else 0]


def _find_records(folder: Path, jobs: Sequence[_Job]) -> list[TrackRecord]:
    """Find the record of each video in the output directory, or create an unsaved one."""
    known = read_records(folder)
    by_video = {(r.content["video"], r.content.get("video_name", r.name)): r for r in known}
    used = {record.name for record in known}
    records = []
    for job in jobs:
        path, video_name = str(job.video.path.resolve()), job.video.source_name
        # Earlier versions stored the path as typed by the user.
        keys = (path, video_name), (str(job.video.path), video_name)
        record = next((by_video[key] for key in keys if key in by_video), None)
        if record is None:
            name = _free_name(job.video, used)
            used.add(name)
            content = {"name": name, "video": path, "video_name": video_name, "finished": False}
            is_only_one = len(jobs) == 1 and not known
            subfolder = folder if is_only_one else folder / VIDEOS / file_name(name)
            record = TrackRecord(folder, subfolder, content)
            if any(record.masks.glob("*.png")):
                raise ConfigError(
                    f"{record.masks} contains masks that sam2kit track did not write",
                    key="--output-dir",
                    value=str(folder),
                    hint="choose another directory, or move the masks",
                )
        records.append(record)
    return records


def _free_name(video: VideoInput, used: Collection[str]) -> str:
    """Return the name of a video, or a longer one if it is already used."""
    parent = video.path.resolve().parent.name
    numbered = (f"{video.name}-{n}" for n in count(2))
    candidates = chain([video.name, f"{parent}/{video.base_name}"], numbered)
    return next(name for name in candidates if name not in used)


def _check_results(records: Sequence[TrackRecord], digests: Sequence[str]) -> None:
    """Reject existing results of the same videos from other inputs."""
    changed = [
        visible_text(record.name)
        for record, inputs_digest in zip(records, digests, strict=True)
        if record.finished and record.content.get("digest") != inputs_digest
    ]
    if changed:
        folder = records[0].root
        raise ConfigError(
            f"{folder} contains results of {changed[0]!r} from other prompts, another model or "
            f"another version of the video ({plural(len(changed), 'video')})",
            key="--output-dir",
            value=str(folder),
            hint="choose another directory, or add --overwrite (overwrite=True) to replace them",
        )


def _write_cvat(video: VideoInput, record: TrackRecord, to: str | None, replace: bool) -> None:
    """Write the masks of a video as a CVAT task if it comes from CVAT or ``to`` is ``cvat``."""
    path = cvat_file(record.root, file_name(record.name))
    is_wanted = "cvat" in (to, result_form(video.source, video.i))
    if is_wanted and (replace or not path.exists()):
        content = read_masks(record.folder / MASKS_JSON)
        write_cvat_results(content, record.name, video.source, video.i, path)


def _track(
    tracker: VideoTracker,
    job: _Job,
    record: TrackRecord,
    about: dict[str, Any],
    image_size: int,
    to: str | None,
) -> None:
    """Track one video and write its results."""
    video, num_frames = job.video, job.video.num_frames
    names = [video.source.frame_name(video.i, t) for t in range(num_frames)]
    # Write the record first: if this process is killed, the next call can replace the results.
    prompted = [
        {k: e[k] for k in ("object_id", "frame_index", "kind")} for e in job.entries if "kind" in e
    ]
    inputs = {"prompts": job.prompts_name, "prompted": prompted, "objects": job.object_ids}
    version = {"sam2kit_version": sam2kit.__version__, "frames": 0, "finished": False}
    record.save(**about, **inputs, **version)
    record.clear_masks(names)
    masks = MaskWriter(record.masks, record.name, job.object_ids)
    has_labels = result_form(video.source, video.i) in LABEL_IMAGES
    recorder = LabelRecorder(record.name) if has_labels else None
    ahead = tracker.options.lookahead
    with ReadAhead(lambda t: tracker.prepare(video.read_frame(t)), num_frames, ahead) as prepared:
        session = tracker.open(prepared, num_frames, prepared(0).frame.shape[:2])
        for prompt in job.prompts:
            session.add_prompt(prompt)
        results = _FrameResults(job, record.folder, masks, recorder, image_size, names)
        results.write(session.propagate(), lambda t: prepared(t).frame)
    done = results.done
    frame_file = video.source.frame_path(video.i, 0)
    ending = ".jpg" if frame_file is None else frame_file.suffix
    write_text(record.folder / MASKS_JSON, json.dumps(coco_json([masks.sav()], ending)))
    if recorder is not None:
        write_in_form(recorder, video.source, video.i, record.root, file_name(record.name))
    _write_cvat(video, record, to, replace=True)
    record.save(frames=done, finished=done == num_frames)
    if done < num_frames:
        frames = f"masks of frames 0 to {done - 1} of {visible_text(record.name)}"
        raise KeyboardInterrupt(
            f"{frames} are in {record.root}; run the command again to track this video and the "
            "remaining ones"
        )
    objects = plural(len(job.object_ids), "object")
    logger.info("{}: {} frames, {}", visible_text(record.name), done, objects)


def log_time_split(config: Config, video: Path) -> None:
    """Log the training and validation frames of a video that was split by time.

    Args:
        config: the configuration of the model.
        video: the video to track.
    """
    split, data = config.dataset.time_split, config.dataset.data_path
    if split is None or data is None:
        return
    files = [Path(data), *Path(data).glob(f"{video.name}"), *Path(data).glob(f"*/{video.name}")]
    if any(file.resolve() == video.resolve() for file in files):
        logger.info(
            "The model was trained on frames 0 to {} of this video and validated on {} to {}",
            *(split[0] - 1, split[1], split[2] - 1),
        )


class _FrameResults:
    """Write the results of a video frame by frame: masks, table and overlays.

    Attributes:
        done: the number of frames that were written.
    """

    def __init__(
        self,
        job: _Job,
        folder: Path,
        masks: MaskWriter,
        recorder: LabelRecorder | None,
        image_size: int,
        names: list[str],
    ) -> None:
        self.done = 0
        self._job, self._folder, self._masks, self._recorder = job, folder, masks, recorder
        self._image_size, self._names = image_size, names
        self._gif_frames: list[np.ndarray] = []
        self._gif_step = -(-job.video.num_frames // GIF_FRAMES)  # rounded up

    def write(self, tracks: Iterator[FrameTracks], read_frame: Callable[[int], np.ndarray]) -> None:
        """Write until the end or an interruption, a frame while the next one is tracked."""
        video, prompts = self._job.video, self._job.prompts
        first = min(prompt.frame for prompt in prompts)
        # A time lapse with one frame per minute would otherwise play for days.
        if (fps := max(video.fps, MIN_FPS)) > video.fps:
            logger.info(
                "overlay.mp4 has {:g} frames per second, but the video has {:g}", fps, video.fps
            )
        with ExitStack() as files:
            write = files.enter_context(mp4_writer(self._folder / "overlay.mp4", fps))
            file = (self._folder / "objects.csv").open("w", newline="", encoding="utf-8")
            table = csv.writer(files.enter_context(file))
            table.writerow(["frame", "object", "area", "object_score", "predicted_iou"])
            # Entered last: its thread must end before the files are closed.
            behind = files.enter_context(WorkBehind())
            try:
                frames = range(video.num_frames)
                for t in log_progress(frames, len(frames), "tracked", "frames"):
                    output = next(tracks) if t >= first else None
                    frame, values = read_frame(t), None
                    if output is not None:
                        logits = output.logits(frame.shape[:2]).cpu().numpy()
                        scores = output.object_score.tolist(), output.iou.tolist()
                        values = output.objects, logits, scores
                    behind.submit(self._write_frame, t, frame, values, table, write)
                behind.finish()
            except KeyboardInterrupt:
                behind.finish()
                logger.warning(
                    "Interrupted: the output files contain the first {} frames", self.done
                )
        if self._gif_frames:
            gif_fps = min(max(fps / self._gif_step, MIN_FPS), 50)
            save_gif(self._folder / "overlay.gif", self._gif_frames, gif_fps)

    def _write_frame(
        self,
        t: int,
        frame: np.ndarray,
        values: tuple[list[int], np.ndarray, tuple[list[float], list[float]]] | None,
        table: Any,
        write: Callable[[np.ndarray], None],
    ) -> None:
        """Write the results of one frame.

        Args:
            t: the frame number.
            frame: the frame.
            values: the object numbers, their logits ``[O,H,W]``, and their scores and predicted
                IoU. None: no object has been prompted yet.
            table: writes a row of the table.
            write: writes a frame of the video.
        """
        ids, size = self._masks.object_ids, frame.shape[:2]
        visible = np.zeros((len(ids), *size), dtype=bool)
        by_object = {}
        if values is not None:
            objects, logits, scores = values
            visible[objects] = logits > 0
            by_object = {ids[n]: x for n, x in zip(objects, logits, strict=True)}
            for n, *row in zip(objects, *scores, strict=True):
                area = np.count_nonzero(visible[n])
                table.writerow([t, cell_text(ids[n]), area, *(f"{v:.4f}" for v in row)])
        self._masks.add(self._names[t], by_object, size)
        if self._recorder is not None:
            self._recorder.add(by_object, size)
        self.done = t + 1
        picture = overlay(frame, visible)
        for prompt in self._job.prompts:
            if prompt.frame == t:
                picture = _draw(picture, prompt, self._image_size)
        write(picture)
        if t % self._gif_step == 0:
            scale = min(1, GIF_WIDTH / picture.shape[1])
            self._gif_frames.append(
                cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
            )


def _draw(picture: np.ndarray, prompt: Prompt, image_size: int) -> np.ndarray:
    """Draw the clicks and boxes of a prompt on a frame ``[H,W,3]``."""
    if prompt.points is None or prompt.labels is None:
        return picture
    points = rescale_points(prompt.points.numpy(), (image_size, image_size), picture.shape[:2])
    for object_points, labels in zip(points, prompt.labels.numpy(), strict=True):
        picture = draw_prompts(picture, object_points, labels)
    return picture
