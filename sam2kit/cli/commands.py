"""Implement the commands: add flags, parse them and call the library.

Library modules are imported inside the functions: invalid configurations and missing files are
rejected before torch is imported, so that errors appear immediately.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from shlex import quote

from sam2kit.cli.arguments import (
    DOCTOR_FLAGS,
    EVALUATE_FLAGS,
    OVERRIDES_HELP,
    Flag,
    add_checkpoint_flag,
    add_data_flags,
    add_flags,
    add_pipeline_flags,
    add_prompt_flags,
    add_submit_flags,
    add_train_flags,
    flag_overrides,
    named_file,
    paths_and_overrides,
    port,
    positive,
    stages,
    train_config,
    train_overrides,
)
from sam2kit.config.validation import check_checkpoint, check_exists, check_new, check_paths
from sam2kit.utils.errors import CheckpointError, ConfigError
from sam2kit.utils.files import check_writable, write_text
from sam2kit.utils.locks import check_free
from sam2kit.utils.text import log_format


def train(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Train a model; see :func:`sam2kit.training.trainer.fit`."""
    parser.add_argument(
        "--create-config",
        nargs="?",
        const="-",
        metavar="FILE",
        help="do not train, but write the complete configuration with comments to FILE (a new "
        ".yaml file), or print it if FILE is omitted",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="run directory; default: a dated directory in output_dir",
    )
    parser.add_argument(
        "--resume",
        choices=["auto"],
        help="resume the run in --run-dir, or start a new one if there is none",
    )
    add_train_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    config, _ = train_config(arguments)
    if arguments.create_config is not None:
        from sam2kit.config.loading import create_config

        create_config(arguments.create_config, config)
        return
    check_paths(config)
    run_dir, resume = arguments.run_dir, arguments.resume is not None
    if resume and run_dir is None:
        message, hint = "requires --run-dir, which is not set", "add --run-dir DIR"
        raise ConfigError(message, key="--resume", value=arguments.resume, hint=hint)
    if run_dir:
        check_free(run_dir)
        if not resume and config.trainer.resume_from is None:
            check_new(run_dir)
    with report_interruption(run_dir or config.output_dir):
        log_to_console(config.log_level)
        from sam2kit.training.trainer import fit

        scorer, is_resumed = None, resume or config.trainer.resume_from is not None
        if config.trainer.monitor == "val_jf" or is_resumed:  # imports the tracker
            from sam2kit.evaluation.validation_score import jf_scorer

            scorer = jf_scorer(config, run_dir if resume else None)
        result = fit(config, run_dir, resume, scorer=scorer)
    if result.interrupted:
        raise KeyboardInterrupt(f"a checkpoint is saved in {result.run_dir}")
    if os.environ.get("RANK", "0") == "0":  # torchrun starts one process per device
        run = quote(str(result.run_dir))
        show_next("compare with the model before training", f"evaluate --model-checkpoint {run}")
        show_next("track a video", f"track VIDEO --point X,Y --model-checkpoint {run}")


def submit(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Submit a training job to SLURM; see :func:`sam2kit.training.slurm.submit`."""
    add_submit_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    config, _ = train_config(arguments)
    check_paths(config)
    from sam2kit.models.initial_weights import resolve_initial_weights
    from sam2kit.training.slurm import submit

    run_dir, cluster = arguments.run_dir, arguments.cluster
    if not (run_dir / "last.ckpt").exists():  # ask now, because a job has no terminal
        config = resolve_initial_weights(config)
    with report_interruption(run_dir):
        job = submit(config, run_dir, arguments.hours, arguments.partition, cluster)
        print(f"Submitted job {job.job_id}. Log file: {job.paths.stderr}")
        if cluster == "local":
            job.result()


def audit(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Audit the gradients; see :func:`sam2kit.training.gradient_audit.audit_config`."""
    add_train_flags(parser)
    config, _ = train_config(parser.parse_intermixed_args(argv))
    check_paths(config)
    log_to_console(config.log_level)
    from sam2kit.training.gradient_audit import audit_config

    result = audit_config(config)
    print(f"{result.table()}\n{result.memory}")
    result.report(stop=config.trainer.audit == "stop")


def export(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Export a checkpoint; see :func:`sam2kit.models.exporter.export`."""
    parser.add_argument("source", metavar="SOURCE", help="run directory, checkpoint or model name")
    parser.add_argument(
        "out",
        type=Path,
        metavar="OUT.pt",
        help="new weights file (OUT.yaml is written beside it); for transformers, a new directory",
    )
    parser.add_argument(
        "--format",
        choices=["sam2", "transformers"],
        default="sam2",
        help="sam2 (default), or transformers (Sam2VideoModel)",
    )
    arguments = parser.parse_args(argv)
    check_checkpoint(None, arguments.source)
    if arguments.out.parent.is_dir():
        check_writable(arguments.out)
    from sam2kit.models.exporter import export

    print(export(arguments.source, arguments.out, arguments.format).summary())


def evaluate(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Evaluate a checkpoint or masks; see :mod:`sam2kit.evaluation.evaluate`."""
    group = parser.add_mutually_exclusive_group(required=True)
    add_checkpoint_flag(group)
    group.add_argument(
        "--predictions",
        type=Path,
        metavar="DIR",
        help="directory of masks to score, from any tracker, as DIR/VIDEO/FRAME.png",
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        type=named_file,
        metavar="NAME=FILE",
        help="another checkpoint or model name to compare with; may be repeated",
    )
    parser.add_argument(
        "--config",
        metavar="FILE",
        help="YAML configuration file; default: the configuration of the checkpoint",
    )
    add_flags(parser, EVALUATE_FLAGS)
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="directory for the results; an interrupted evaluation there is resumed",
    )
    parser.add_argument("overrides", nargs="*", metavar="OVERRIDE", help=OVERRIDES_HELP)
    arguments = parser.parse_intermixed_args(argv)
    check_checkpoint("--model-checkpoint", arguments.model_checkpoint)
    check_exists("--predictions", arguments.predictions)
    check_exists("--data-path", arguments.data_path)
    for name, file in arguments.compare:
        check_checkpoint(f"--compare {name}", file)
    if arguments.predictions and (
        arguments.compare or arguments.protocol or arguments.noise_levels
    ):
        raise ConfigError(
            "cannot be combined with --compare, --protocol or --noise-levels, because it scores "
            "existing masks",
            key="--predictions",
            value=str(arguments.predictions),
            hint="use --model-checkpoint instead, or remove these flags",
        )
    flags: tuple[Flag, ...] = EVALUATE_FLAGS
    flag_overrides(arguments, flags)  # reject conflicts before the checkpoint is read
    if arguments.data_path is not None and _scores_test_videos(arguments):
        flags = tuple(
            flag._replace(key="testdataset.data_path") if flag.name == "--data-path" else flag
            for flag in flags
        )
    overrides = flag_overrides(arguments, flags)
    if arguments.compare:
        from sam2kit.config.loading import override

        pairs = ", ".join(f"{name}: {override('', file)[1:]}" for name, file in arguments.compare)
        overrides.append(f"evaluation.compare={{{pairs}}}")
    if arguments.config is not None:
        from sam2kit.config.loading import load_config

        load_config(arguments.config, overrides)  # reject errors before torch is imported
    if arguments.output_dir is not None:
        check_free(arguments.output_dir)
    with report_interruption(arguments.output_dir or "outputs"):
        log_to_console("INFO")
        from sam2kit.evaluation.evaluate import evaluate_checkpoint, evaluate_predictions

        evaluate = evaluate_checkpoint if arguments.model_checkpoint else evaluate_predictions
        source = arguments.model_checkpoint or arguments.predictions
        evaluate(source, overrides, arguments.output_dir, config_file=arguments.config)


def _scores_test_videos(arguments: argparse.Namespace) -> bool:
    """Return whether an evaluation scores test videos (``evaluation.split``)."""
    from sam2kit.config.loading import load_config, override_key

    split = [text for text in arguments.overrides if override_key(text) == "evaluation.split"]
    if split or arguments.config is not None or arguments.predictions is not None:
        return load_config(arguments.config, split).evaluation.split == "test"
    if not Path(arguments.model_checkpoint).expanduser().exists():  # the name of a model
        return False
    from sam2kit.models.checkpoints import source_config

    try:
        return source_config(arguments.model_checkpoint)[0].evaluation.split == "test"
    except CheckpointError:  # reported when the weights are loaded
        return False


def compare(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Compare evaluated runs; see :func:`sam2kit.evaluation.compare_runs.compare_on_videos`."""
    parser.add_argument(
        "runs",
        nargs="+",
        type=Path,
        metavar="RUN",
        help="output directory of sam2kit evaluate, or a parent directory of several",
    )
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="also write comparison.json, comparison.md and figures to this directory",
    )
    arguments = parser.parse_args(argv)
    for path in arguments.runs:
        check_exists("RUN", path)
    from sam2kit.evaluation.compare_runs import (
        check_comparable,
        compare_on_videos,
        find_runs,
        write_comparison,
    )

    comparisons = compare_on_videos(find_runs(arguments.runs))
    check_comparable(comparisons)
    for comparison in comparisons:
        print(comparison.text())
    if arguments.output_dir is not None:
        print(f"Wrote {write_comparison(comparisons, arguments.output_dir)}")


def track(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Track objects; see :func:`sam2kit.tracking.tracking_job.track_videos`."""
    parser.add_argument(
        "videos",
        nargs="+",
        metavar="VIDEO",
        help="video file, directory of frames, or a directory or dataset with several videos",
    )
    add_prompt_flags(parser)
    add_checkpoint_flag(parser, required=True)
    parser.add_argument(
        "--output-dir",
        metavar="DIR",
        help="directory for the results; finished videos in it are skipped, and unfinished ones "
        "are tracked again; default: a dated directory",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="replace results from other prompts or another model",
    )
    parser.add_argument(
        "--to",
        choices=["cvat"],
        help="also write the masks as a CVAT task, labels/VIDEO.xml (always done for videos from "
        "CVAT)",
    )
    devices = [Flag("--accelerator", "trainer.accelerator"), Flag("--devices", "trainer.devices")]
    add_flags(parser, devices)
    arguments = parser.parse_intermixed_args(argv)
    for video in arguments.videos:
        check_exists(None, video)
    check_exists("--prompts", arguments.prompts)
    if (arguments.prompts is None) == (arguments.prompt_flags is None):
        raise ConfigError(
            "no prompts" if arguments.prompts is None else "cannot be combined with other prompts",
            key="--prompts",
            value=arguments.prompts,
            hint="use either --prompts FILE, or any number of --box, --point and --mask",
        )
    log_to_console("INFO")
    from sam2kit.tracking.tracking_job import track_videos

    with report_interruption(arguments.output_dir or "outputs"):
        folder = track_videos(
            arguments.videos,
            arguments.prompts or arguments.prompt_flags,
            arguments.model_checkpoint,
            arguments.output_dir,
            arguments.accelerator or "auto",
            overwrite=arguments.overwrite,
            to=arguments.to,
            devices=arguments.devices or "1",
        )
    results = quote(str(folder))
    show_next("train on these masks", f"training-set {results} --to SET")
    show_next("score them", f"evaluate --predictions {results}/masks --data-path TRUTH")


def annotate(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Open the annotator; see :func:`sam2kit.pipeline.lab.prepare_annotator`.

    Returns:
        The exit code of JupyterLab.
    """
    parser.add_argument(
        "path",
        type=Path,
        metavar="PATH",
        help="video file, directory of frames, or directory of videos to annotate",
    )
    parser.add_argument(
        "--model-checkpoint",
        default="sam2.1_hiera_tiny",
        metavar="FILE",
        help="model for the annotator: a run directory, .ckpt or .pt file, or model name (default: "
        "%(default)s, which is downloaded once; nano needs no download)",
    )
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="directory for the annotations; default: a directory in outputs/annotate that depends "
        "only on PATH",
    )
    parser.add_argument(
        "--host",
        default="127.0.0.1",
        help="address to listen on (default: %(default)s, this machine only; see docs/remote.md)",
    )
    parser.add_argument("--port", type=port, metavar="N", help="port; default: 8888")
    parser.add_argument(
        "--no-browser", action="store_true", help="print the address, but do not open a browser"
    )
    parser.add_argument(
        "--no-lab", action="store_true", help="only write the notebook and print its path"
    )
    arguments = parser.parse_args(argv)
    check_exists(None, arguments.path)
    check_checkpoint("--model-checkpoint", arguments.model_checkpoint)
    log_to_console("INFO")
    from sam2kit.pipeline.lab import lab_command, prepare_annotator

    notebook = prepare_annotator(arguments.path, arguments.model_checkpoint, arguments.run_dir)
    print(notebook, flush=True)
    if arguments.no_lab:
        return 0
    command = lab_command(notebook, arguments.host, arguments.port)
    # JupyterLab replaces this process, so that it receives signals and owns the terminal.
    os.execv(command[0], command + ["--no-browser"] * arguments.no_browser)


def training_set(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Create a training set; see :func:`sam2kit.tracking.training_set_job.make_training_set`."""
    parser.add_argument(
        "annotations",
        nargs="+",
        type=Path,
        metavar="ANNOTATIONS",
        help="run directory of the annotator, or output directory of sam2kit track",
    )
    parser.add_argument(
        "--to",
        type=Path,
        required=True,
        metavar="FOLDER",
        help="directory of the training set, new or existing; train with --data-path FOLDER",
    )
    parser.add_argument(
        "--frames",
        choices=["accepted", "checked", "all"],
        help="frames to include: accepted in the annotator (default), checked (prompted, or "
        "accepted individually), or all frames with masks (default for the output of sam2kit "
        "track)",
    )
    parser.add_argument(
        "--every", type=positive, default=1, metavar="N", help="use every N-th of these frames"
    )
    parser.add_argument(
        "--videos",
        type=Path,
        metavar="DATA",
        help="file, directory or dataset of the videos; default: the path at which they were "
        "annotated",
    )
    parser.add_argument(
        "--format",
        choices=["davis", "coco"],
        help="davis: PNG files (default); coco: one JSON file, in which masks may overlap",
    )
    parser.add_argument(
        "--copy",
        action="store_true",
        help="copy the videos into the training set; default: refer to their paths",
    )
    arguments = parser.parse_args(argv)
    for path in arguments.annotations:
        check_exists(None, path)
    check_exists("--videos", arguments.videos)
    log_to_console("INFO")
    from sam2kit.tracking.training_set_job import make_training_set

    with report_interruption(arguments.to):
        make_training_set(
            arguments.annotations,
            arguments.to,
            arguments.frames,
            arguments.every,
            arguments.videos,
            arguments.format,
            arguments.copy,
        )


def run(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Run the staged notebooks; see :func:`sam2kit.pipeline.runner.run_stages`."""
    parser.add_argument(
        "--run-dir",
        type=Path,
        metavar="DIR",
        help="run directory (an existing run is resumed); default: a dated directory in output_dir",
    )
    add_pipeline_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    from sam2kit.config.loading import config_dir

    parameters = dict(arguments.parameter)
    config, overrides = train_config(arguments, parameters.get("overrides", []))
    if overrides:
        parameters["overrides"] = overrides
    check_paths(config)
    with report_interruption(arguments.run_dir or config.output_dir):
        log_to_console(config.log_level)
        from sam2kit.pipeline.runner import run_stages

        config_file = arguments.config or str(config_dir() / "config.yaml")
        run_stages(config_file, parameters, arguments.stages, arguments.run_dir)


def sweep(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Run a sweep; see :func:`sam2kit.pipeline.sweep.run_sweep`.

    Returns:
        The exit code: 1 if a trial failed.
    """
    parser.add_argument(
        "--sweep-dir",
        type=Path,
        metavar="DIR",
        help="sweep directory; an existing sweep is resumed, with its original settings if there "
        "are no other flags; default: a dated directory in output_dir",
    )
    parser.add_argument(
        "--jobs",
        type=positive,
        metavar="N",
        help="number of trials to run in parallel; default: one per GPU, or 1 without a GPU",
    )
    parser.add_argument("--retry-failed", action="store_true", help="also rerun failed trials")
    add_pipeline_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    from sam2kit.pipeline.sweep import plan_trials, run_sweep
    from sam2kit.utils.paths import open_run_dir

    parameters = dict(arguments.parameter)
    overrides = train_overrides(arguments, parameters.pop("overrides", []))
    folder, trials, level = arguments.sweep_dir, None, "INFO"
    changed = overrides or parameters or arguments.config or arguments.stages != stages("1-4")
    if folder is None or changed:
        trials = plan_trials(arguments.config, overrides)
        level = trials[0].config.log_level
        folder = open_run_dir(folder, trials[0].config.output_dir)
    log_to_console(level)
    stage_numbers, retry = arguments.stages, arguments.retry_failed
    rows = run_sweep(folder, trials, parameters, stage_numbers, arguments.jobs, retry)
    return int(any(row["state"] == "failed" for row in rows))


def doctor(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Check a dataset; see :func:`sam2kit.data.doctor.report.run_doctor`.

    Returns:
        The exit code: 1 if training would fail on the data.
    """
    add_data_flags(parser, "DATA", "[DATA] [OVERRIDE ...]")
    add_flags(parser, DOCTOR_FLAGS)
    parser.add_argument(
        "--val",
        metavar="DATA",
        help="validation data, to check that no video is in both datasets",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the report as JSON")
    parser.add_argument(
        "--html", type=Path, metavar="FILE", help="write the report as a self-contained HTML page"
    )
    arguments = parser.parse_intermixed_args(argv)
    paths, arguments.overrides = paths_and_overrides(arguments.words, "DATA")
    for flag in ("json", "html"):
        if path := getattr(arguments, flag):
            check_exists(f"--{flag}", path.parent)
            check_writable(path)
    from sam2kit.config.loading import load_config

    config = load_config(arguments.config, flag_overrides(arguments, DOCTOR_FLAGS))
    log_to_console("INFO")
    from sam2kit.data.doctor.report import run_doctor

    source = paths[0] if paths else config
    report = run_doctor(source, config.dataset, arguments.val, arguments.workers)
    for path, render in ((arguments.json, report.to_json), (arguments.html, report.page)):
        if path is not None:
            write_text(path, render())
    print(report.text())
    return int(report.broken)


def convert(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Convert a dataset; see :func:`sam2kit.data.conversion.convert`."""
    add_data_flags(parser, "SRC", "[SRC] DST [OVERRIDE ...]")
    parser.add_argument(
        "--to",
        required=True,
        metavar="LAYOUT",
        help="target layout: davis, coco-video, tiff, ctc, nifti or cvat",
    )
    arguments = parser.parse_intermixed_args(argv)
    paths, overrides = paths_and_overrides(arguments.words, "SRC", "DST")
    from sam2kit.config.loading import load_config

    config = load_config(arguments.config, overrides)
    log_to_console("INFO")
    from sam2kit.data.conversion import convert

    source = paths[0] if len(paths) == 2 else config
    print(f"Wrote {convert(source, paths[-1], arguments.to, arguments.workers)}")


def plan(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    """Estimate memory and time; see :func:`sam2kit.training.planner.report`.

    Returns:
        The exit code: 1 if a training step does not fit into memory.
    """
    add_train_flags(parser)
    config, _ = train_config(parser.parse_intermixed_args(argv))
    check_paths(config)
    log_to_console(config.log_level)
    from sam2kit.training.planner import report

    text, fits = report(config)
    print(text)
    from sam2kit.data import build_validation_source
    from sam2kit.evaluation.statistics import planned_power

    print(planned_power(len(build_validation_source(config))))
    return int(not fits)


def replay(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Replay a step; see :func:`sam2kit.training.nonfinite_replay.replay`."""
    parser.add_argument("file", metavar="FILE", help="replay.pt of the failed run")
    from sam2kit.training.nonfinite_replay import replay

    print(replay(parser.parse_args(argv).file))


def features(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    """Precompute features; see :func:`sam2kit.models.feature_precompute.fill`."""
    parser.add_argument(
        "--list",
        action="store_true",
        help="list the cache directories with their sizes and encoders",
    )
    parser.add_argument(
        "--clear", action="store_true", help="delete the cached features, and nothing else"
    )
    add_train_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    config, _ = train_config(arguments)
    list_only = arguments.list or arguments.clear
    if not list_only:
        check_paths(config)
    log_to_console(config.log_level)
    from sam2kit.models.feature_cache import clear, describe, find_folder

    folder = find_folder(config)
    if arguments.clear:
        deleted, skipped = clear(folder)
        print(f"Deleted {deleted} files.", *(f"Not deleted: {path}" for path in skipped), sep="\n")
    if list_only:
        print(describe(folder))
        return
    from sam2kit.models.feature_precompute import fill

    with report_interruption(folder):
        print(fill(config).report())


def show_next(purpose: str, command: str) -> None:
    """Log a command to run next."""
    from loguru import logger

    logger.info("To {}: sam2kit {}", purpose, command)


def log_to_console(level: str) -> None:
    """Log time and message to standard error, without loguru's module and line."""
    from loguru import logger

    line = log_format("<green>{time:HH:mm:ss}</green> <level>{extra[text]}</level>")
    logger.configure(handlers=[{"sink": sys.stderr, "level": level, "format": line}])


@contextmanager
def report_interruption(folder: str | Path) -> Iterator[None]:
    """Add the output directory to the message of a KeyboardInterrupt that does not name it.

    Lightning turns KeyboardInterrupt into SystemExit, which is converted back.
    """
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        if str(folder) in str(stop):
            raise
        raise KeyboardInterrupt(f"any partial results are in {folder}") from stop
