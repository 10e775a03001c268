"""Score trackers on whole videos, for ``sam2kit evaluate`` and ``04_evaluate``.

All trackers get the same prompts on the same videos. The fine-tuned model is compared with four
kinds of baselines: the model before training; the fine-tuned model with zeroed memory, whose score
is the same if the model does not use its memory; the copied first mask, whose score is high if
objects hardly move; and any number of other checkpoints. docs/evaluation.md describes protocols and
scores.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

from loguru import logger

from sam2kit.config.loading import load_config, save_config
from sam2kit.config.schema import Config
from sam2kit.config.stored import override_allowed
from sam2kit.data.build import open_sets
from sam2kit.data.sources.base import SelectedVideos, VideoSource
from sam2kit.data.splits import TEST, VALIDATION, Splits, SplitVideo, describe
from sam2kit.evaluation.field_scores import FIELD_SCORES, field_scores, field_summary
from sam2kit.evaluation.label_results import find_label_results, score_label_results
from sam2kit.evaluation.predictions import open_results, read_prediction, score_results
from sam2kit.evaluation.prompt_protocols import first_visible_frames
from sam2kit.evaluation.report import Evaluation, write_results
from sam2kit.evaluation.scored_split import check_scored_videos, scored_source
from sam2kit.evaluation.scores import (
    AFTER,
    BEFORE,
    CONVENTIONS,
    COPY,
    DataSetScores,
    VideoScores,
    summary,
)
from sam2kit.evaluation.tracker_runs import ResultFiles, TrackerRun, calibrate, tracker_options
from sam2kit.models.checkpoints import (
    create_sam2_model,
    find_checkpoint,
    load_model,
    load_weights,
    source_config,
)
from sam2kit.models.feature_cache import create_cache
from sam2kit.models.run_splits import checkpoint_splits
from sam2kit.utils.device import pick_device
from sam2kit.utils.errors import CheckpointError, ConfigError, DataError
from sam2kit.utils.locks import Owner
from sam2kit.utils.paths import open_run_dir
from sam2kit.utils.sampling import evenly_spaced
from sam2kit.utils.text import visible_text

ZEROED = "after, memory zeroed"
CALIBRATED = "after, calibrated"
# Names of the last two if the evaluated weights do not come from a run and have their own name.
UNTUNED_ZEROED, UNTUNED_CALIBRATED = "memory zeroed", "calibrated"


def evaluate(
    config: Config,
    runs: Sequence[TrackerRun],
    output_dir: Path,
    splits: Splits | None = None,
    compared: Mapping[str, Splits] | None = None,
    training_seed: int | None = None,
) -> Evaluation:
    """Track the validation or test videos of ``config`` with all trackers and score the masks.

    Scores and masks are saved in ``output_dir`` after each video, so that an interrupted evaluation
    can be resumed. :func:`~sam2kit.evaluation.report.write_results` writes the other results.

    Args:
        config: the configuration; only data, ``evaluation`` and ``seed`` are used.
        runs: trackers with unique names, first the tracker under evaluation.
        output_dir: the directory for the results.
        splits, compared: see :func:`sam2kit.evaluation.scored_split.check_scored_videos`.
        training_seed: the seed with which the checkpoint was trained. None (default): unknown.

    Raises:
        ConfigError: an option in ``evaluation`` is invalid.
        DataError: the data cannot be read, only prompted frames are annotated, no frame can be
            scored, or a video was used for training.
    """
    # Check options before loading or tracking anything.
    tracker_options(config)
    source = scored_source(config, splits)
    split = check_scored_videos(config, source, splits, compared)
    check_scored_frames(source, config.evaluation.convention, split.name)
    files = ResultFiles(output_dir, config)
    calibration = None
    if config.evaluation.calibration_videos:
        calibrated, calibration = _calibrated(config, runs[0], split.videos, splits)
        runs = [*runs, calibrated]
    results = {run.name: DataSetScores(run.name) for run in runs}
    # Two baselines have no noise curve: the copied mask is never prompted with noise, and the model
    # with zeroed memory does not track.
    levels = sorted(config.evaluation.noise_levels)
    curves: dict[str, dict[float, list[VideoScores]]] = {
        run.name: {level: [] for level in levels}
        for run in runs
        if levels and run.model is not None and not run.zero_memory
    }
    fields: dict[str, dict[str, Any]] = {run.name: {} for run in runs}
    for i, video in enumerate(source.names):
        objects = list(first_visible_frames(source, i)[0])
        if not objects:
            logger.warning("Skipping {}: no annotated objects", video)
            continue
        for run in runs:
            video_scores = files.scores(run, source, i, objects)
            results[run.name].videos.append(video_scores)
            if field := field_scores(source, i, files.label_masks(run.name, source, i)):
                fields[run.name][video] = field
            mean = summary([video_scores])["J&F"]
            text = "undefined" if mean is None else f"{mean:.3f}"
            logger.info("{} ({} of {}), {}: J&F {}", video, i + 1, len(source), run.name, text)
            for level, videos in curves.get(run.name, {}).items():
                videos.append(files.scores(run, source, i, objects, level))
    robustness = {
        name: {level: summary(videos)["J&F"] for level, videos in curve.items()}
        for name, curve in curves.items()
    }
    training = None
    if splits is not None:
        training = {"seed": training_seed, "videos": splits.training_checksum()}
    return Evaluation(
        config,
        source,
        list(results.values()),
        output_dir,
        files,
        robustness,
        calibration,
        fields,
        split,
        training,
    )


def check_scored_frames(
    source: VideoSource, convention: str | None = None, part: str = VALIDATION
) -> None:
    """Warn about videos in which only the prompted frame is annotated and nothing is scored.

    Args:
        source: the videos to score.
        convention: the value of ``evaluation.convention``; ``all_frames`` scores prompted frames.
        part: ``validation`` or ``test``, for messages.

    Raises:
        DataError: this applies to all videos.
    """
    if convention == "all_frames":
        return
    # Stop at the second annotated frame, so that fully annotated videos are not read twice.
    counts = [len(list(islice(source.annotated_frames(i), 2))) for i in range(len(source))]
    names = [name for name, count in zip(source.names, counts, strict=True) if count < 2]
    if not names:
        return
    videos = f"{len(names)} of {len(source)} {part} videos, such as {visible_text(names[0])!r}"
    problem = f"{videos}: only the prompted frame is annotated, so no frame can be scored"
    if len(names) == len(source):
        raise DataError(
            problem,
            key="testdataset.data_path" if part == TEST else "valdataset.data_path",
            hint=f"annotate more frames of these videos, or use other {part} videos",
        )
    logger.warning("{}", problem)


def _calibrated(
    config: Config, run: TrackerRun, scored: Sequence[SplitVideo], splits: Splits | None
) -> tuple[TrackerRun, dict[str, Any]]:
    """Return the tracker with thresholds tuned on training videos, and their values.

    Args:
        config: the configuration of the evaluation.
        run: the tracker.
        scored: the videos to score.
        splits: the splits of the checkpoint. None: no splits.

    Raises:
        ConfigError: a calibration video is also scored.
    """
    training = open_sets(config, splits).train
    videos = evenly_spaced(len(training), config.evaluation.calibration_videos)
    names = [training.names[i] for i in videos]
    # Tuning thresholds on the scored videos would bias the scores upward.
    calibration = Splits(tuple(describe(SelectedVideos(training, videos))))
    if shared := calibration.trained_on(scored):
        section = "testdataset" if config.evaluation.split == "test" else "valdataset"
        raise ConfigError(
            f"{shared[0][1].name!r} is both a video to calibrate on and, as {shared[0][0].name!r}, "
            "a video to score",
            key="evaluation.calibration_videos",
            value=config.evaluation.calibration_videos,
            hint=f"use different videos in dataset.split and {section}.split",
        )
    logger.info("Tuning thresholds on {}", ", ".join(names))
    mask, present = calibrate(run, training, videos, config)
    chosen = {"mask_threshold": mask, "object_score_threshold": present, "videos": names}
    name = CALIBRATED if run.name == AFTER else UNTUNED_CALIBRATED
    return TrackerRun(name, run.model, False, mask, present), chosen


def evaluate_checkpoint(
    checkpoint: str | Path,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    config_file: str | Path | None = None,
) -> Evaluation:
    """Score a checkpoint and its baselines on validation or test videos and write the results.

    The baselines are listed in :func:`checkpoint_runs`.

    Args:
        checkpoint: a run directory or ``.ckpt``, whose configuration is used (its paths only if the
            run's ``config.yaml`` is beside it); weights in the official format; or a model name
            such as ``nano``.
        overrides: changes to the configuration, such as ``valdataset.data_path=DIR``.
        output_dir: the directory for the results; an interrupted evaluation in it is resumed. If
            None (default), a new dated directory in ``config.output_dir``.
        config_file: the configuration file. If None (default), the configuration in the checkpoint,
            or, for weights without one, the default configuration for their model size.

    Returns:
        The evaluation; its ``scores`` are the mean J&F by tracker.

    Raises:
        ConfigError: a key, value or override is invalid.
        DataError: the data cannot be read, no frame can be scored, or a video was used for
            training.
        CheckpointError: a checkpoint is missing or cannot be loaded.
        PipelineError: another process uses ``output_dir``.
    """
    checkpoint = str(checkpoint)
    with Owner() as owner:
        owner.take(output_dir)
        if config_file is None:
            config, ignored = override_allowed(*source_config(checkpoint), overrides, checkpoint)
        else:
            config, ignored = load_config(config_file, overrides), ["model.checkpoint"]
        # The model before training is a baseline unless the initial weights are unknown or equal to
        # the checkpoint.
        file, start = find_checkpoint(checkpoint), config.model.checkpoint
        unknown = "model.checkpoint" in ignored
        no_start = unknown if start is None else start in (checkpoint, str(file))
        splits = checkpoint_splits(checkpoint)
        seed = None if splits is None else source_config(checkpoint)[0].seed
        compared = {n: checkpoint_splits(c) for n, c in config.evaluation.compare.items()}
        # Weights from outside of sam2kit do not count as fine-tuned.
        name = AFTER if splits is not None else _weights_name(checkpoint)
        runs = checkpoint_runs(config, checkpoint, not no_start, name)
        output_dir = open_run_dir(output_dir, config.output_dir)
        owner.take(output_dir)
        # Results may be written to the run directory, where training's configuration must be kept.
        if output_dir.resolve() != file.parent.resolve():
            save_config(config, output_dir / "config.yaml")
        known = {name: other for name, other in compared.items() if other is not None}
        return _write_and_log(evaluate(config, runs, output_dir, splits, known, seed))


def _weights_name(checkpoint: str) -> str:
    """Return the display name of weights without a run: a released name or the file name."""
    path = Path(checkpoint)
    return visible_text(path.stem if path.is_file() else path.name) or "the model"


def evaluate_predictions(
    folder: str | Path,
    overrides: Sequence[str] = (),
    output_dir: Path | None = None,
    config_file: str | Path | None = None,
) -> Evaluation:
    """Score existing masks of any tracker and write the results.

    Args:
        folder: directory of the masks: either ``FOLDER/VIDEO/FRAME.png`` (see
            :func:`sam2kit.evaluation.predictions.score_predictions`), or label images in the format
            of the data, ``FOLDER/VIDEO_labels.tif``, ``FOLDER/VIDEO_RES/mask000.tif`` or
            ``FOLDER/VIDEO.nii.gz`` (see
            :func:`sam2kit.evaluation.label_results.score_label_results`).
        overrides, output_dir: see :func:`evaluate_checkpoint`.
        config_file: the configuration file. If None (default), the default configuration.

    Returns:
        The evaluation, with one tracker named after the directory.

    Raises:
        ConfigError: a key, value or override is invalid.
        DataError: a mask is missing, unreadable or has another size, or no frame can be scored.
    """
    config = load_config(config_file, overrides)
    folder, source = Path(folder), scored_source(config)
    name = config.evaluation.convention
    convention = CONVENTIONS[name] if name else None
    with Owner() as owner:
        owner.take(output_dir)
        if (labels := find_label_results(source, folder)) is not None:
            scores, fields = score_label_results(source, labels, folder, convention)
        else:
            results = open_results(source, folder)
            scores = score_results(source, results, folder, convention)
            fields = {
                video: field_scores(source, i, partial(read_prediction, source, i, results[i]))
                for i, video in enumerate(source.names)
            }
        output_dir = open_run_dir(output_dir, config.output_dir)
        owner.take(output_dir)
        save_config(config, output_dir / "config.yaml")
        by_tracker = {scores.tracker: {video: field for video, field in fields.items() if field}}
        split = check_scored_videos(config, source, None)
        return _write_and_log(
            Evaluation(config, source, [scores], output_dir, fields=by_tracker, split=split)
        )


def _write_and_log(evaluation: Evaluation) -> Evaluation:
    write_results(evaluation)
    for name, score in evaluation.scores.items():
        others = field_summary(evaluation.fields.get(name, {}).values())
        texts = [
            f", {key.replace('_', ' ')} {others[key]:.3f}{' mm' * (key == 'HD95')}"
            for key in FIELD_SCORES
            if others.get(key) is not None
        ]
        logger.info("{:22} J&F {:.3f}{}", name, score, "".join(texts))
    for sentence in evaluation.verdicts:
        logger.info("{}", sentence)
    for note in (evaluation.absence_note, evaluation.truth_note):
        if note:
            logger.warning("{}", note)
    logger.info("Wrote results to {0}; open {0}/report.html", evaluation.output_dir)
    return evaluation


def checkpoint_runs(
    config: Config, checkpoint: str, has_start: bool, name: str = AFTER
) -> list[TrackerRun]:
    """Return the trackers of an evaluation: the checkpoint first, then its baselines.

    The baselines are the model before training, the checkpoint with zeroed memory, the copied first
    mask and the checkpoints in ``evaluation.compare``. If the initial weights cannot be loaded, a
    warning is logged and that baseline is skipped.

    Args:
        checkpoint: see :func:`evaluate_checkpoint`.
        has_start: whether the configuration contains the initial weights of training.
        name: display name of the checkpoint in the results.

    Raises:
        ConfigError: ``evaluation.compare`` contains the name of another tracker.
        CheckpointError: a checkpoint cannot be loaded.
    """
    device = pick_device(config.trainer.accelerator, config.trainer.devices)
    tuned = create_sam2_model(config, load=False)
    load_weights(tuned, checkpoint)
    tuned.to(device)
    runs = [TrackerRun(name, tuned)]
    if has_start:
        try:
            runs.append(TrackerRun(BEFORE, create_sam2_model(config).to(device)))
        except CheckpointError as error:
            logger.warning("Skipping the model before training: {}", error)
    zeroed = ZEROED if name == AFTER else UNTUNED_ZEROED
    runs += [TrackerRun(zeroed, tuned, zero_memory=True), TrackerRun(COPY, None)]
    for label, other in config.evaluation.compare.items():
        if label in {CALIBRATED, UNTUNED_CALIBRATED, BEFORE, *(run.name for run in runs)}:
            raise ConfigError(
                f"{label!r} is already the name of a tracker",
                key="evaluation.compare",
                value=label,
                hint="choose another name",
            )
        runs.append(TrackerRun(label, load_model(other)[1].to(device)))
    # If the encoder was frozen, it did not change in training, so encode each frame only once.
    if tuned.encoder_is_frozen:
        cache = create_cache(config, exact=True)
        for run in runs:
            if run.model is not None:
                run.model.feature_cache = cache
    return runs
