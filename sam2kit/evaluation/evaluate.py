"""Score trackers side by side on whole videos, for ``sam2kit evaluate`` and ``04_evaluate``.

Every tracker gets the same prompts on the same videos. The fine-tuned model is compared with the
model before training, with itself under a zeroed memory (a model that does not track loses nothing
by that), with the copied first mask (which loses nothing where objects do not move), and with any
number of other checkpoints. docs/evaluation.md has the protocols and the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from loguru import logger

from sam2kit.config.loading import load_config, save_config
from sam2kit.config.schema import Config
from sam2kit.config.stored import override_allowed
from sam2kit.data.build import build_datasets, build_validation_source
from sam2kit.data.sources.base import VideoSource
from sam2kit.evaluation.predictions import score_predictions
from sam2kit.evaluation.prompt_protocols import first_visible_frames
from sam2kit.evaluation.report import Evaluation, write_results
from sam2kit.evaluation.scores import CONVENTIONS, DataSetScores, VideoScores, summary
from sam2kit.evaluation.tracker_runs import ResultFiles, TrackerRun, calibrate, tracker_options
from sam2kit.models.checkpoints import (
    create_sam2_model,
    find_checkpoint,
    load_model,
    load_weights,
    source_config,
)
from sam2kit.models.feature_cache import create_cache
from sam2kit.utils.device import pick_device
from sam2kit.utils.errors import CheckpointError, ConfigError
from sam2kit.utils.paths import open_run_dir
from sam2kit.viz.overlays import evenly_spaced

COPY = "first mask copied"
BEFORE = "before training"
AFTER = "after training"
ZEROED = "after, memory zeroed"
CALIBRATED = "after, calibrated"


def evaluate(config: Config, runs: Sequence[TrackerRun], output_dir: Path) -> Evaluation:
    """Track the validation videos of ``config`` with every tracker, and score the masks.

    The scores and masks of each video are saved in ``output_dir`` as soon as the video is done, so
    that an interrupted evaluation resumes there. :func:`~sam2kit.evaluation.report.write_results`
    writes the other results.

    Args:
        config: the validation data, ``evaluation`` and ``seed`` are read.
        runs: trackers with different names; the first is the one under evaluation.

    Raises:
        ConfigError, DataError: invalid validation data or ``evaluation``; no object is left to
            score.
    """
    tracker_options(config)
    source = build_validation_source(config)
    files = ResultFiles(output_dir, config)
    calibration = None
    if config.evaluation.calibration_videos:
        calibrated, calibration = _calibrated(config, runs[0], source)
        runs = [*runs, calibrated]
    results = {run.name: DataSetScores(run.name) for run in runs}
    levels = sorted(config.evaluation.noise_levels)
    curves: dict[str, dict[float, list[VideoScores]]] = {
        run.name: {level: [] for level in levels}
        for run in runs
        if levels and run.model is not None and not run.zero_memory
    }
    for i, video in enumerate(source.names):
        objects = list(first_visible_frames(source, i)[0])
        if not objects:
            logger.warning("{} shows no object and is left out", video)
            continue
        for run in runs:
            scores = files.scores(run, source, i, objects)
            results[run.name].videos.append(scores)
            mean = summary([scores])["J&F"]
            text = "of no frame" if mean is None else f"{mean:.3f}"
            logger.info("{} ({} of {}), {}: J&F {}", video, i + 1, len(source), run.name, text)
            for level, videos in curves.get(run.name, {}).items():
                videos.append(files.scores(run, source, i, objects, level))
    robustness = {
        name: {level: summary(videos)["J&F"] for level, videos in curve.items()}
        for name, curve in curves.items()
    }
    return Evaluation(
        config, source, list(results.values()), output_dir, files, robustness, calibration
    )


def _calibrated(
    config: Config, run: TrackerRun, source: VideoSource
) -> tuple[TrackerRun, dict[str, Any]]:
    """Return the tracker with thresholds chosen on training videos, and a record of the choice.

    Raises:
        ConfigError: a training video is also a validation video.
    """
    training = build_datasets(config)[0].source
    videos = evenly_spaced(len(training), config.evaluation.calibration_videos)
    names = [training.names[i] for i in videos]
    if shared := set(names) & set(source.names):
        raise ConfigError(
            f"evaluation.calibration_videos: {sorted(shared)[0]!r} is among the videos to report "
            "on; give dataset.split and valdataset.split different videos"
        )
    logger.info("thresholds are chosen on {}", ", ".join(names))
    mask, present = calibrate(run, training, videos, config)
    chosen = {"mask_threshold": mask, "object_score_threshold": present, "videos": names}
    return TrackerRun(CALIBRATED, run.model, False, mask, present), chosen


def evaluate_checkpoint(
    checkpoint: str | Path,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    config_file: str | Path | None = None,
) -> Evaluation:
    """Score a checkpoint on validation videos, beside the copied mask and the model it came from.

    Args:
        checkpoint: a run directory or ``.ckpt``, which holds its configuration (paths only if
            the run's ``config.yaml`` is beside it); or weights in the official format, or a name.
        overrides: on top of the configuration, such as ``valdataset.data_path=DIR``.
        output_dir: for all results. None: a dated folder under ``config.output_dir``. An
            interrupted evaluation in it is resumed.
        config_file: the configuration to use in place of the checkpoint's (None, for weights
            without a configuration: that of their size).

    Raises:
        ConfigError, DataError, CheckpointError: naming the key or file.
    """
    checkpoint = str(checkpoint)
    if config_file is None:
        config, ignored = override_allowed(*source_config(checkpoint), overrides, checkpoint)
    else:
        config, ignored = load_config(config_file, overrides), ["model.checkpoint"]
    file, start = find_checkpoint(checkpoint), config.model.checkpoint
    no_start = "model.checkpoint" in ignored if start is None else start in (checkpoint, str(file))
    runs = checkpoint_runs(config, checkpoint, not no_start)
    output_dir = open_run_dir(output_dir, config.output_dir)
    if output_dir.resolve() != file.parent.resolve():
        save_config(config, output_dir / "config.yaml")
    return _write_and_log(evaluate(config, runs, output_dir))


def evaluate_predictions(
    folder: str | Path,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    config_file: str | Path | None = None,
) -> Evaluation:
    """Score masks in DAVIS layout, written by any tracker, on the validation videos.

    Args:
        folder: see :func:`sam2kit.evaluation.predictions.score_predictions`.
        overrides, output_dir, config_file: as for :func:`evaluate_checkpoint`.

    Raises:
        ConfigError, DataError: naming the key or file.
    """
    config = load_config(config_file, overrides)
    source = build_validation_source(config)
    convention = config.evaluation.convention
    scores = score_predictions(source, folder, CONVENTIONS[convention] if convention else None)
    output_dir = open_run_dir(output_dir, config.output_dir)
    save_config(config, output_dir / "config.yaml")
    return _write_and_log(Evaluation(config, source, [scores], output_dir))


def _write_and_log(evaluation: Evaluation) -> Evaluation:
    write_results(evaluation)
    for name, score in evaluation.scores.items():
        logger.info("{:22} J&F {:.3f}", name, score)
    logger.info("results in {}", evaluation.output_dir)
    return evaluation


def checkpoint_runs(config: Config, checkpoint: str, has_start: bool) -> list[TrackerRun]:
    """Return the trackers to compare a checkpoint with, the checkpoint's own first.

    The model before training is left out, with a warning, where its file is missing.

    Args:
        has_start: whether the configuration names the weights that the training started from.

    Raises:
        ConfigError: ``evaluation.compare`` uses the name of another tracker.
        CheckpointError: a checkpoint that cannot be loaded.
    """
    device = pick_device(config.trainer.accelerator)
    tuned = create_sam2_model(config, load=False)
    load_weights(tuned, checkpoint)
    tuned.to(device)
    runs = [TrackerRun(AFTER, tuned)]
    if has_start:
        try:
            runs.append(TrackerRun(BEFORE, create_sam2_model(config).to(device)))
        except CheckpointError as error:
            logger.warning("the model before training is left out: {}", error)
    runs += [TrackerRun(ZEROED, tuned, zero_memory=True), TrackerRun(COPY, None)]
    for name, other in config.evaluation.compare.items():
        if name in {CALIBRATED, BEFORE, *(run.name for run in runs)}:
            raise ConfigError(f"evaluation.compare: {name!r} is a tracker's name; take another")
        runs.append(TrackerRun(name, load_model(other)[1].to(device)))
    if tuned.encoder_is_frozen:  # trackers share its features
        cache = create_cache(config, exact=True)
        for run in runs:
            if run.model is not None:
                run.model.feature_cache = cache
    return runs
