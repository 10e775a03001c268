"""Track a video without ground truth and write the results: ``sam2kit track``."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

import cv2
import numpy as np
from loguru import logger

import sam2kit
from sam2kit.config.schema import Config
from sam2kit.data.sources.video_decoder import OneVideo, open_video
from sam2kit.data.writers import MaskWriter, coco_json
from sam2kit.models.checkpoints import find_checkpoint, load_model
from sam2kit.prompts.io import load_video_prompts
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import FrameTracks, VideoTracker
from sam2kit.utils.device import pick_device
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.paths import file_name, open_run_dir
from sam2kit.utils.progress import log_progress
from sam2kit.viz.overlays import draw_prompts, overlay
from sam2kit.viz.video_writer import mp4_writer, save_gif

GIF_FRAMES, GIF_WIDTH = 60, 480
# Upstream also tracks an object before its first prompt; users do not expect masks there.
OPTIONS = TrackerOptions(track_before_prompt=False)


def track_video(
    video: str | Path,
    prompts: str | Path,
    checkpoint: str | Path,
    output_dir: str | Path | None = None,
    accelerator: str = "auto",
    options: TrackerOptions = OPTIONS,
) -> Path:
    """Track the objects of a prompt file through a video, from the first prompt to the end.

    Frames are read one by one. The output directory gets:

    - ``masks/VIDEO/FRAME.png``: palette PNG in the DAVIS layout,
    - ``masks.json``: the masks in the COCO format,
    - ``objects.csv``: area in pixels, object score (logit) and predicted IoU per object and frame,
    - ``overlay.mp4``, and ``overlay.gif`` with up to 60 evenly spaced frames and up to 480 pixels
      of width,
    - ``track.json``: inputs, options and version.

    An object has no mask before its first prompt. After an interruption, all files contain the
    frames that were tracked.

    Args:
        video: a video file or a directory of frames.
        prompts: a prompt file, as :func:`~sam2kit.prompts.io.load_video_prompts` reads it.
        checkpoint: a checkpoint, as :func:`~sam2kit.models.checkpoints.load_model` accepts it.
        output_dir: None (default): a new dated directory in ``outputs``.
        accelerator: ``auto``, ``cpu``, ``gpu`` or ``mps``.
        options: see :class:`~sam2kit.tracking.options.TrackerOptions`.

    Returns:
        The output directory.

    Raises:
        ConfigError: the output directory contains masks already, or is not writable.
        DataError: the video or the prompt file cannot be used.
        CheckpointError: the checkpoint cannot be used.
        KeyboardInterrupt: tracking was interrupted; all files are complete.
    """
    if output_dir is not None and (Path(output_dir) / "masks").exists():
        raise ConfigError(
            f"{output_dir} contains masks already",
            key="--output-dir",
            value=str(output_dir),
            hint="choose another directory",
        )
    path = find_checkpoint(checkpoint, key="--model-checkpoint")
    source = open_video(video)
    config, model = load_model(path)
    log_time_split(config, Path(video))
    image_size, name = config.dataset.image_size, source.names[0]
    video_prompts, object_ids = load_video_prompts(prompts, name, source.num_frames(0), image_size)
    folder = open_run_dir(output_dir, "outputs")
    size = source.read_frame(0, 0).shape[:2]
    tracker = VideoTracker(model, options, pick_device(accelerator))
    session = tracker.open(lambda t: source.read_frame(0, t), source.num_frames(0), size)
    for prompt in video_prompts:
        session.add_prompt(prompt)
    masks = MaskWriter(folder / "masks" / file_name(name), name, object_ids)
    done = _write_frames(session.propagate(), source, folder, masks, video_prompts, image_size)
    (folder / "masks.json").write_text(json.dumps(coco_json([masks.sav()])))
    inputs = {"video": str(video), "prompts": str(prompts), "checkpoint": str(checkpoint)}
    results = {"sam2kit_version": sam2kit.__version__, "frames": done, "objects": object_ids}
    content = {**inputs, **results, "options": asdict(options)}
    (folder / "track.json").write_text(json.dumps(content, indent=1))
    if done < source.num_frames(0):
        raise KeyboardInterrupt(f"the masks of frames 0 to {done - 1} are in {folder}")
    logger.info("{} frames, {} objects: results in {}", done, len(object_ids), folder)
    return folder


def log_time_split(config: Config, video: Path) -> None:
    """Log which frames of a video the model was trained and validated on, if it was split by time.

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
            "the model was trained on frames 0 to {} of this video and validated on {} to {}",
            *(split[0] - 1, split[1], split[2] - 1),
        )


def _write_frames(
    tracks: Iterator[FrameTracks],
    source: OneVideo,
    folder: Path,
    masks: MaskWriter,
    prompts: list[Prompt],
    image_size: int,
) -> int:
    """Write masks, table and videos until the end or an interruption.

    Returns:
        The number of frames that were written.
    """
    count, done, ids = source.num_frames(0), 0, masks.object_ids
    first = min(prompt.frame for prompt in prompts)
    gif_frames, gif_step = [], -(-count // GIF_FRAMES)  # rounded up
    with ExitStack() as files:
        write = files.enter_context(mp4_writer(folder / "overlay.mp4", source.fps))
        table = csv.writer(files.enter_context((folder / "objects.csv").open("w", newline="")))
        table.writerow(["frame", "object", "area", "object_score", "predicted_iou"])
        try:
            for t in log_progress(range(count), count, "tracked", "frames"):
                frame_tracks = next(tracks) if t >= first else None
                frame = source.read_frame(0, t)
                logits = np.full((len(ids), *frame.shape[:2]), -np.inf, dtype=np.float32)
                if frame_tracks is not None:
                    logits[frame_tracks.objects] = (
                        frame_tracks.logits(frame.shape[:2]).cpu().numpy()
                    )
                    scores = frame_tracks.object_score.tolist(), frame_tracks.iou.tolist()
                    for n, *values in zip(frame_tracks.objects, *scores, strict=True):
                        area = np.count_nonzero(logits[n] > 0)
                        table.writerow([t, ids[n], area, *(f"{v:.4f}" for v in values)])
                by_object = dict(zip(ids, logits, strict=True))
                masks.add(source.frame_name(0, t), by_object, frame.shape[:2])
                done = t + 1
                picture = overlay(frame, logits > 0)
                for prompt in prompts:
                    if prompt.frame == t:
                        picture = _draw(picture, prompt, image_size)
                write(picture)
                if t % gif_step == 0:
                    scale = min(1, GIF_WIDTH / picture.shape[1])
                    gif_frames.append(
                        cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                    )
        except KeyboardInterrupt:
            logger.warning("Interrupted: the output files contain the first {} frames", done)
    if gif_frames:
        # save_gif accepts up to 50 frames per second.
        save_gif(folder / "overlay.gif", gif_frames, min(source.fps / gif_step, 50))
    return done


def _draw(picture: np.ndarray, prompt: Prompt, image_size: int) -> np.ndarray:
    """Draw the clicks and boxes of a prompt on a frame ``[H,W,3]`` of the video's size."""
    if prompt.points is None or prompt.labels is None:
        return picture
    # Points are pixel indices of the resized square; scale pixel centers, which are at +0.5.
    scale = np.array(picture.shape[1::-1]) / image_size
    points = (prompt.points.numpy() + 0.5) * scale - 0.5
    for object_points, labels in zip(points, prompt.labels.numpy(), strict=True):
        picture = draw_prompts(picture, object_points, labels)
    return picture
