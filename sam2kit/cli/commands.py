"""Implement the commands: add flags, parse them, call the library. No logic of their own.

A configuration that cannot work is rejected before torch is imported.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sam2kit.cli.arguments import (
    DOCTOR_FLAGS,
    EVALUATE_FLAGS,
    OVERRIDES_HELP,
    Flag,
    add_checkpoint_flag,
    add_data_flags,
    add_flags,
    add_pipeline_flags,
    add_submit_flags,
    add_train_flags,
    given_overrides,
    named_file,
    paths_and_overrides,
    positive,
    stages,
    train_config,
    train_overrides,
)
from sam2kit.config.validation import check_checkpoint, check_exists, check_new, check_paths
from sam2kit.utils.errors import ConfigError


def train(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument(
        "--create-config",
        nargs="?",
        const="-",
        metavar="FILE",
        help="write the whole configuration, commented, to FILE (a new .yaml) or the screen; stop",
    )
    parser.add_argument("--run-dir", type=Path, metavar="DIR", help="default: a dated folder")
    parser.add_argument(
        "--resume", choices=["auto"], help="go on with the run in --run-dir, or begin it"
    )
    add_train_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    config, _ = train_config(arguments)
    if arguments.create_config is not None:
        from sam2kit.config.loading import create_config

        create_config(arguments.create_config, config)
        return
    check_paths(config)
    folder, resume = arguments.run_dir, arguments.resume is not None
    if resume and folder is None:
        raise ConfigError("continues the run in --run-dir; name that folder too", key="--resume")
    if folder and not resume and config.trainer.resume_from is None:
        check_new(folder)
    with kept_under(folder or config.output_dir):
        log_to_console(config.log_level)
        from sam2kit.training.trainer import fit

        result = fit(config, folder, resume)
    if result.interrupted:
        raise KeyboardInterrupt(f"what was trained so far is kept in {result.run_dir}")


def submit(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    add_submit_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    config, _ = train_config(arguments)
    check_paths(config)
    from sam2kit.training.slurm import submit

    folder, cluster = arguments.run_dir, arguments.cluster
    job = submit(config, folder, arguments.hours, arguments.partition, cluster)
    print(f"job {job.job_id}; its log: {job.paths.stderr}")
    if cluster == "local":
        job.result()


def audit(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    add_train_flags(parser)
    config, _ = train_config(parser.parse_intermixed_args(argv))
    check_paths(config)
    log_to_console(config.log_level)
    from sam2kit.training.gradient_audit import audit_config

    found = audit_config(config)
    print(f"{found.table()}\n{found.memory}")
    found.report(stop=config.trainer.audit == "stop")


def export(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("source", metavar="SOURCE", help="a run's folder, a checkpoint or a name")
    parser.add_argument("out", type=Path, metavar="OUT.pt", help="new; OUT.yaml goes beside it")
    arguments = parser.parse_args(argv)
    check_checkpoint("SOURCE", arguments.source)
    from sam2kit.models.exporter import export

    print(export(arguments.source, arguments.out).summary())


def evaluate(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    group = parser.add_mutually_exclusive_group(required=True)
    add_checkpoint_flag(group)
    group.add_argument(
        "--predictions", type=Path, metavar="DIR", help="masks of any tracker, DIR/VIDEO/FRAME.png"
    )
    parser.add_argument(
        "--compare",
        action="append",
        default=[],
        type=named_file,
        metavar="NAME=FILE",
        help="another checkpoint (or its name) to show beside it; may be repeated",
    )
    parser.add_argument(
        "--config", metavar="FILE", help="a YAML file; default: the checkpoint's own configuration"
    )
    add_flags(parser, EVALUATE_FLAGS)
    parser.add_argument(
        "--output-dir",
        type=Path,
        metavar="DIR",
        help="where the results go; an interrupted evaluation there goes on",
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
            "scores existing masks; --compare, --protocol and --noise-levels need "
            "--model-checkpoint",
            key="--predictions",
        )
    overrides = given_overrides(arguments, EVALUATE_FLAGS)
    if arguments.compare:
        from sam2kit.config.loading import override

        pairs = ", ".join(f"{name}: {override('', file)[1:]}" for name, file in arguments.compare)
        overrides.append(f"evaluation.compare={{{pairs}}}")
    if arguments.config is not None:
        from sam2kit.config.loading import load_config

        load_config(arguments.config, overrides)
    with kept_under(arguments.output_dir or "outputs"):
        log_to_console("INFO")
        from sam2kit.evaluation.evaluate import evaluate_checkpoint, evaluate_predictions

        evaluate = evaluate_checkpoint if arguments.model_checkpoint else evaluate_predictions
        source = arguments.model_checkpoint or arguments.predictions
        evaluate(source, overrides, arguments.output_dir, config_file=arguments.config)


def track(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("video", metavar="VIDEO", help="a video file, or a folder of frames")
    parser.add_argument(
        "--prompts", required=True, metavar="FILE", help="prompts.json, which says what to follow"
    )
    add_checkpoint_flag(parser, required=True)
    parser.add_argument("--output-dir", metavar="DIR", help="new; default: a dated folder")
    add_flags(parser, [Flag("--accelerator", "trainer.accelerator")])
    arguments = parser.parse_args(argv)
    check_exists("VIDEO", arguments.video)
    check_exists("--prompts", arguments.prompts)
    log_to_console("INFO")
    from sam2kit.tracking.tracking_job import track_video

    track_video(
        arguments.video,
        arguments.prompts,
        arguments.model_checkpoint,
        arguments.output_dir,
        arguments.accelerator or "auto",
    )


def run(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument(
        "--run-dir", type=Path, metavar="DIR", help="a run there goes on; default: a dated folder"
    )
    add_pipeline_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    from sam2kit.config.loading import config_dir

    parameters = dict(arguments.parameter)
    config, overrides = train_config(arguments, parameters.get("overrides", []))
    if overrides:
        parameters["overrides"] = overrides
    check_paths(config)
    with kept_under(arguments.run_dir or config.output_dir):
        log_to_console(config.log_level)
        from sam2kit.pipeline.runner import run_stages

        config_file = arguments.config or str(config_dir() / "config.yaml")
        run_stages(config_file, parameters, arguments.stages, arguments.run_dir)


def sweep(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    parser.add_argument(
        "--sweep-dir",
        type=Path,
        metavar="DIR",
        help="a sweep there goes on (alone: as it was begun); default: a dated folder",
    )
    parser.add_argument(
        "--jobs", type=positive, metavar="N", help="trials at once; default: one for each GPU, or 1"
    )
    parser.add_argument("--retry-failed", action="store_true", help="run failed trials again too")
    add_pipeline_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    from sam2kit.pipeline.sweep import plan_trials, run_sweep
    from sam2kit.utils.paths import open_run_dir

    parameters = dict(arguments.parameter)
    overrides = train_overrides(arguments, parameters.pop("overrides", []))
    folder, trials, level = arguments.sweep_dir, None, "INFO"
    given = overrides or parameters or arguments.config or arguments.stages != stages("1-4")
    if folder is None or given:
        trials = plan_trials(arguments.config, overrides)
        level = trials[0].config.log_level
        folder = open_run_dir(folder, trials[0].config.output_dir)
    log_to_console(level)
    chosen, retry = arguments.stages, arguments.retry_failed
    rows = run_sweep(folder, trials, parameters, chosen, arguments.jobs, retry)
    return int(any(row["state"] == "failed" for row in rows))


def doctor(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    add_data_flags(parser, "DATA", "[DATA] [OVERRIDE ...]")
    add_flags(parser, DOCTOR_FLAGS)
    parser.add_argument("--val", metavar="DATA", help="validation data, which may share no video")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all that was found")
    parser.add_argument("--html", type=Path, metavar="FILE", help="write it as one page")
    arguments = parser.parse_intermixed_args(argv)
    paths, arguments.overrides = paths_and_overrides(arguments.words, "DATA")
    for flag in ("json", "html"):
        if path := getattr(arguments, flag):
            check_exists(f"--{flag}", path.parent)
    from sam2kit.config.loading import load_config

    config = load_config(arguments.config, given_overrides(arguments, DOCTOR_FLAGS))
    log_to_console("INFO")
    from sam2kit.data.doctor.report import run_doctor

    source = paths[0] if paths else config
    found = run_doctor(source, config.dataset, arguments.val, arguments.workers)
    for path, make in ((arguments.json, found.to_json), (arguments.html, found.page)):
        if path is not None:
            path.write_text(make(), encoding="utf-8")
    print(found.text())
    return int(found.broken)


def convert(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    add_data_flags(parser, "SRC", "[SRC] DST [OVERRIDE ...]")
    parser.add_argument("--to", required=True, metavar="FORM", help="davis or coco-video")
    arguments = parser.parse_intermixed_args(argv)
    paths, overrides = paths_and_overrides(arguments.words, "SRC", "DST")
    from sam2kit.config.loading import load_config

    config = load_config(arguments.config, overrides)
    log_to_console("INFO")
    from sam2kit.data.conversion import convert

    source = paths[0] if len(paths) == 2 else config
    print(f"wrote {convert(source, paths[-1], arguments.to, arguments.workers)}")


def plan(parser: argparse.ArgumentParser, argv: list[str]) -> int:
    add_train_flags(parser)
    config, _ = train_config(parser.parse_intermixed_args(argv))
    check_paths(config)
    log_to_console(config.log_level)
    from sam2kit.training.planner import report

    text, fits = report(config)
    print(text)
    return int(not fits)


def replay(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("file", metavar="FILE", help="replay.pt of a run that stopped")
    from sam2kit.training.nonfinite_replay import replay

    print(replay(parser.parse_args(argv).file))


def features(parser: argparse.ArgumentParser, argv: list[str]) -> None:
    parser.add_argument("--list", action="store_true", help="the folders, their sizes and encoders")
    parser.add_argument("--clear", action="store_true", help="delete them; nothing else is deleted")
    add_train_flags(parser)
    arguments = parser.parse_intermixed_args(argv)
    config, _ = train_config(arguments)
    looking = arguments.list or arguments.clear
    if not looking:
        check_paths(config)
    log_to_console(config.log_level)
    from sam2kit.models.feature_cache import clear, describe, find_folder

    folder = find_folder(config)
    if arguments.clear:
        deleted, left = clear(folder)
        print(f"{deleted} files deleted", *(f"left: {path}" for path in left), sep="\n")
    if looking:
        print(describe(folder))
        return
    from sam2kit.models.feature_precompute import fill

    with kept_under(folder):
        print(fill(config).report())


def log_to_console(level: str) -> None:
    """Log time and message to the screen; the module is of no use to a person who watches a run."""
    from loguru import logger

    form = "<green>{time:HH:mm:ss}</green> <level>{message}</level>"
    logger.configure(handlers=[{"sink": sys.stderr, "level": level, "format": form}])


@contextmanager
def kept_under(folder: str | Path) -> Iterator[None]:
    """Name ``folder`` in an interruption, also where Lightning turned Ctrl-C into SystemExit."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stop:
        if isinstance(stop, SystemExit) and not isinstance(stop.__context__, KeyboardInterrupt):
            raise
        raise KeyboardInterrupt(f"what was written so far is kept under {folder}") from stop
