"""Tracking a video that has no truth: ``sam2kit track``."""

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
# Elsewhere upstream's conventions, under which an object has masks before anybody pointed at it.
OPTIONS = TrackerOptions(track_before_prompt=False)


def track_video(
    video: str | Path,
    prompts: str | Path,
    checkpoint: str | Path,
    output_dir: str | Path | None = None,
    accelerator: str = "auto",
    options: TrackerOptions = OPTIONS,
) -> Path:
    """Follow the objects of a prompt file through a video, from the first prompt to the end.

    The frames are read one by one. Into the folder go ``masks/VIDEO/FRAME.png`` (palette PNG in
    DAVIS layout), ``masks.json`` (COCO), ``objects.csv`` (area in pixels, object score, predicted
    IoU of each object on each frame), ``overlay.mp4``, ``overlay.gif`` (at most 60 frames, evenly
    spread, and 480 pixels wide) and ``track.json`` (how it was made). An object has no mask before
    its first prompt. Interrupted, all files hold what was tracked by then.

    Args:
        video: a video file or a folder of frames.
        prompts: as :func:`~sam2kit.prompts.io.load_video_prompts` reads them.
        checkpoint: as :func:`~sam2kit.models.checkpoints.load_model` takes it.
        output_dir: by default a new dated folder under ``outputs``.

    Returns:
        The folder.

    Raises:
        ConfigError: the folder holds masks already, or nothing can be written there.
        DataError, CheckpointError: about the video, the prompts or the checkpoint.
        KeyboardInterrupt: after the files were finished.
    """
    if output_dir is not None and (Path(output_dir) / "masks").exists():
        raise ConfigError(f"--output-dir: {output_dir} holds masks already; name another folder")
    path = find_checkpoint(checkpoint, key="--model-checkpoint")
    source = open_video(video)
    config, model = load_model(path)
    image_size, name = config.dataset.image_size, source.names[0]
    given, object_ids = load_video_prompts(prompts, name, source.num_frames(0), image_size)
    folder = open_run_dir(output_dir, "outputs")
    size = source.read_frame(0, 0).shape[:2]
    tracker = VideoTracker(model, options, pick_device(accelerator))
    session = tracker.open(lambda t: source.read_frame(0, t), source.num_frames(0), size)
    for prompt in given:
        session.add_prompt(prompt)
    masks = MaskWriter(folder / "masks" / file_name(name), name, object_ids)
    done = _write_frames(session.propagate(), source, folder, masks, given, image_size)
    (folder / "masks.json").write_text(json.dumps(coco_json([masks.sav()])))
    inputs = {"video": str(video), "prompts": str(prompts), "checkpoint": str(checkpoint)}
    results = {"sam2kit_version": sam2kit.__version__, "frames": done, "objects": object_ids}
    content = {**inputs, **results, "options": asdict(options)}
    (folder / "track.json").write_text(json.dumps(content, indent=1))
    if done < source.num_frames(0):
        raise KeyboardInterrupt(f"the masks of frames 0 to {done - 1} are in {folder}")
    logger.info("{} frames, {} objects: results in {}", done, len(object_ids), folder)
    return folder


def _write_frames(
    tracks: Iterator[FrameTracks],
    source: OneVideo,
    folder: Path,
    masks: MaskWriter,
    prompts: list[Prompt],
    image_size: int,
) -> int:
    """Track from the first prompt to the end or an interruption; return the frames written."""
    count, done, ids = source.num_frames(0), 0, masks.object_ids
    first = min(prompt.frame for prompt in prompts)
    pages, every = [], -(-count // GIF_FRAMES)
    with ExitStack() as files:
        write = files.enter_context(mp4_writer(folder / "overlay.mp4", source.fps))
        table = csv.writer(files.enter_context((folder / "objects.csv").open("w", newline="")))
        table.writerow(["frame", "object", "area", "object_score", "predicted_iou"])
        try:
            for t in log_progress(range(count), count, "tracked", "frames"):
                answer = next(tracks) if t >= first else None
                frame = source.read_frame(0, t)
                found = np.full((len(ids), *frame.shape[:2]), -np.inf, dtype=np.float32)
                if answer is not None:
                    found[answer.objects] = answer.logits(frame.shape[:2]).cpu().numpy()
                    scores = answer.object_score.tolist(), answer.iou.tolist()
                    for n, *values in zip(answer.objects, *scores, strict=True):
                        area = np.count_nonzero(found[n] > 0)
                        table.writerow([t, ids[n], area, *(f"{v:.4f}" for v in values)])
                by_object = dict(zip(ids, found, strict=True))
                masks.add(source.frame_name(0, t), by_object, frame.shape[:2])
                done = t + 1
                picture = overlay(frame, found > 0)
                for prompt in prompts:
                    if prompt.frame == t:
                        picture = _draw(picture, prompt, image_size)
                write(picture)
                if t % every == 0:
                    scale = min(1, GIF_WIDTH / picture.shape[1])
                    pages.append(
                        cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
                    )
        except KeyboardInterrupt:
            logger.warning("interrupted: the files are finished with {} frames", done)
    if pages:
        save_gif(folder / "overlay.gif", pages, min(source.fps / every, 50))
    return done


def _draw(picture: np.ndarray, prompt: Prompt, image_size: int) -> np.ndarray:
    """Draw the clicks and boxes of a prompt on the picture of its frame."""
    if prompt.points is None or prompt.labels is None:
        return picture
    scale = np.array(picture.shape[1::-1]) / image_size
    points = (prompt.points.numpy() + 0.5) * scale - 0.5
    for object_points, labels in zip(points, prompt.labels.numpy(), strict=True):
        picture = draw_prompts(picture, object_points, labels)
    return picture
