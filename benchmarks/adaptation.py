"""Train on some videos and score on others, for ``benchmarks.proof`` and ``benchmarks.recipes``.

Videos are tracked from the mask on the first frame, up to a maximum number of frames. Forgetting is
measured on generated clips. Training runs and results are stored in files, so that an interrupted
comparison can be resumed. Their directory is named after the content of the starting weights, so
that results of different weights are never mixed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import sys
import time
from argparse import ArgumentParser
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from lightning.pytorch import Callback, LightningModule, Trainer
from loguru import logger

from sam2kit.config.loading import load_config, override
from sam2kit.config.schema import RUN, Config, get, options
from sam2kit.data import SelectedVideos, VideoDataset, VideoSource, build_validation_source
from sam2kit.data.sources.base import FrameRange
from sam2kit.evaluation.evaluate import BEFORE, COPY
from sam2kit.evaluation.prompt_protocols import first_visible_frames
from sam2kit.evaluation.statistics import mean_text
from sam2kit.evaluation.tracker_runs import TrackerRun
from sam2kit.models.checkpoints import create_sam2_model, load_run
from sam2kit.models.sam2 import SAM2Model
from sam2kit.training.callbacks import average_with_start
from sam2kit.training.trainer import fit
from sam2kit.utils.files import write_text

ROOT = Path(__file__).parent.parent
DAVIS = ROOT.parent / "shared" / "davis"
AFTER, ZEROED, BEFORE_ZEROED = "after", "after, memory zeroed", "before, memory zeroed"
FOLDS = 3
GENERATED_SEED, GENERATED_VIDEOS, GENERATED_FRAMES = 7, 40, 8

Key = tuple[str, str]  # video, object
Scores = dict[str, dict[Key, float]]  # J&F by tracker and object


class MissingDataError(Exception):
    """Raised if the videos are missing."""


def argument_parser(doc: str | None, work: str, out: Path, seeds: Sequence[int]) -> ArgumentParser:
    """Return a parser with the arguments that all commands which adapt a model share.

    Args:
        doc: docstring of the command's module, whose first line describes it.
        work, out, seeds: defaults of the arguments.
    """
    parser = ArgumentParser(description=(doc or "").splitlines()[0])
    parser.add_argument("--davis", type=Path, default=DAVIS, help="folder in DAVIS layout")
    parser.add_argument("--work", type=Path, default=Path(work), help="folder of finished jobs")
    parser.add_argument("--out", type=Path, default=out, help="folder of the results")
    parser.add_argument("--seeds", type=int, nargs="+", default=list(seeds))
    parser.add_argument("--steps", type=int, default=0, help="0: those of each recipe")
    parser.add_argument("--frames", type=int, default=50, help="scored frames per video")
    parser.add_argument("--threads", type=int, default=1)
    return parser


@dataclass(frozen=True)
class Sizes:
    """Amount of training and scoring.

    Attributes:
        steps: optimizer steps per training run; 0 uses the configuration's value.
        frames: maximum number of scored frames per video.
        generated: number of generated clips.
        zeroed: whether the model is also scored with its memory zeroed.
    """

    steps: int = 0
    frames: int = 50
    generated: int = GENERATED_VIDEOS
    zeroed: bool = True


@dataclass(frozen=True)
class Job:
    """A training run and the videos on which it is scored.

    Attributes:
        name: file name of the result.
        davis: directory in DAVIS layout.
        train, test: names of disjoint sets of videos.
        seed: random seed of the run.
        overrides: changes to ``configs/adapt.yaml``.
        start_share: weight of the starting weights in the average with the trained weights that is
            scored; 0 scores the trained weights. Jobs that only differ in it share a training run.
    """

    name: str
    davis: Path
    train: tuple[str, ...]
    test: tuple[str, ...]
    seed: int
    overrides: tuple[str, ...] = ()
    start_share: float = 0.0


def sequences(davis: Path) -> list[str]:
    """Return the sorted names of the sequences.

    Raises:
        MissingDataError: there are not enough sequences.
    """
    folder = davis / "JPEGImages" / "480p"
    names = sorted(path.name for path in folder.iterdir()) if folder.is_dir() else []
    if len(names) < 2 * FOLDS:
        raise MissingDataError(
            f"{folder} contains {len(names)} sequences, but at least {2 * FOLDS} are "
            "needed.\nDownload DAVIS 2016 or 2017 (480p) from https://davischallenge.org, and pass "
            "the directory that contains JPEGImages/480p and Annotations/480p: --davis FOLDER"
        )
    return names


def blocks(names: Sequence[str]) -> list[tuple[str, ...]]:
    """Split the sequences into :data:`FOLDS` blocks: every third one, in alphabetical order."""
    return [tuple(names[k::FOLDS]) for k in range(FOLDS)]


def split_file(names: Sequence[str], work: Path) -> Path:
    """Write a list of videos for ``dataset.split``, and return its absolute path."""
    split = work / "splits" / f"{'+'.join(names)}.txt"
    split.parent.mkdir(parents=True, exist_ok=True)
    write_text(split, "".join(f"{name}\n" for name in names))
    return split.resolve()


def job_config(job: Job, work: Path, sizes: Sizes) -> Config:
    """Return the configuration of a training run.

    Training validates on generated clips, so that it never reads test videos, and the last
    checkpoint is used, so that nothing is selected by validation.
    """
    videos = {"data_path": str(job.davis.resolve()), "split": str(split_file(job.train, work))}
    data = [override(f"dataset.{key}", value) for key, value in videos.items()]
    overrides = [
        *job.overrides,
        *data,
        *("valdataset.type=synthetic", "valdataset.split=null", "valdataset.synthetic_videos=4"),
        *(
            "dataset.num_workers=0",
            "trainer.accelerator=cpu",
            "features.cache=off",
            "trainer.audit=off",
        ),
        *("trainer.checkpoint_minutes=null", "log_level=WARNING", f"seed={job.seed}"),
    ]
    if sizes.steps:
        overrides.append(f"trainer.max_steps={sizes.steps}")
    return load_config(ROOT / "configs" / "adapt.yaml", overrides)


def score(run: TrackerRun, source: VideoSource, config: Config, frames: int) -> dict[Key, float]:
    """Return J&F of every object over up to ``frames`` frames of each video."""
    scores = {}
    for i, video in enumerate(source.names):
        length = min(frames, source.num_frames(i))
        part = FrameRange(SelectedVideos(source, [i]), 0, length)
        if objects := list(first_visible_frames(part, 0)[0]):
            for identity, values in run.score(part, 0, objects, config).objects().items():
                if values["J&F"] is not None:
                    scores[video, str(identity)] = values["J&F"]
    return scores


def generated_clips(config: Config, sizes: Sizes) -> VideoSource:
    """Return generated clips with a seed that is not used in training or validation."""
    overrides = [
        *("model=nano", "dataset=synthetic", "dataset.synthetic_lifelike=0.5"),
        *("valdataset=synthetic", f"valdataset.synthetic_videos={sizes.generated}"),
        f"seed={GENERATED_SEED}",
        f"dataset.image_size={config.dataset.image_size}",
        f"valdataset.video_clip_length={GENERATED_FRAMES}",
    ]
    return build_validation_source(load_config(None, overrides))


def weights_folder(config: Config, work: Path) -> Path:
    """Return the folder of the results of the starting weights, named after their content.

    LoRA's weights do not count: they are random, and do not change the starting model.
    """
    digest = hashlib.blake2b(digest_size=4)
    start = replace(config, model=replace(config.model, lora_modules=[]))
    for name, weight in sorted(create_sam2_model(start).state_dict().items()):
        digest.update(name.encode())
        digest.update(weight.contiguous().numpy())
    return work / f"weights-{digest.hexdigest()}"


def baselines(davis: Path, work: Path, sizes: Sizes, config: Config) -> tuple[Scores, Scores]:
    """Score the starting model and the copied mask on all sequences and generated clips."""
    file = work / f"baselines-{davis.resolve().name}.json"
    about = {"sizes": asdict(sizes), "davis": str(davis.resolve())}
    if (saved := _read(file, about)) is None:
        print(f"Scoring the starting model and the copied mask on {davis}", file=sys.stderr)
        model = create_sam2_model(config).eval()
        runs = [TrackerRun(BEFORE, model), TrackerRun(COPY, None)]
        if sizes.zeroed:
            runs.append(TrackerRun(BEFORE_ZEROED, model, zero_memory=True))
        videos, generated = VideoDataset(davis), generated_clips(config, sizes)
        saved = {
            "videos": {r.name: score(r, videos, config, sizes.frames) for r in runs},
            "generated": {r.name: score(r, generated, config, sizes.frames) for r in runs},
        }
        saved = _write(file, about, saved)
    return saved["videos"], saved["generated"]


@cache
def training_key(job: Job, work: Path, sizes: Sizes) -> str:
    """Return a digest of what training for a job depends on, besides the starting weights."""
    config, defaults = job_config(job, work, sizes), Config()
    keys = {k: get(config, k) for k, f in options().items() if f.metadata["scope"] == RUN}
    # Without defaults, so that a new key of a later version does not discard training runs.
    keys = {k: value for k, value in keys.items() if value != get(defaults, k)}
    return _digest(keys | {"davis": str(job.davis.resolve()), "train": job.train})


class KeepEpochs(Callback):
    """Save a checkpoint of each epoch.

    Args:
        folder: where ``epoch=N.ckpt`` is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        trainer.save_checkpoint(self.folder / f"epoch={trainer.current_epoch}.ckpt")


def train(job: Job, work: Path, sizes: Sizes, keep_epochs: bool = False) -> tuple[Path, float]:
    """Train, or find the training run of an earlier call.

    Args:
        job: the job.
        work: the folder of the results of the starting weights.
        sizes: ``steps`` is read.
        keep_epochs: keep the checkpoint of every epoch, as ``epoch=N.ckpt``.

    Returns:
        The last checkpoint, and the seconds that training took.

    Raises:
        KeyboardInterrupt: training was interrupted; it is repeated by the next call.
    """
    run_dir = work / "trainings" / training_key(job, work, sizes)
    file, checkpoint = run_dir / "training.json", run_dir / "last.ckpt"
    if not file.exists() or (keep_epochs and not (run_dir / "epoch=0.ckpt").exists()):
        shutil.rmtree(run_dir, ignore_errors=True)  # an unfinished run of an interrupted call
        callbacks = [KeepEpochs(run_dir)] if keep_epochs else []
        begin = time.perf_counter()
        result = fit(job_config(job, work, sizes), run_dir, callbacks=callbacks)
        if result.interrupted:  # fit handles Ctrl-C and SIGTERM
            raise KeyboardInterrupt("repeat the command to resume")
        seconds = time.perf_counter() - begin
        write_text(file, json.dumps({"seconds": seconds}) + "\n")
    return checkpoint, float(json.loads(file.read_text(encoding="utf-8"))["seconds"])


def tuned_model(checkpoint: Path, start_share: float, config: Config) -> SAM2Model:
    """Load a trained model, or its average with the starting weights."""
    model = load_run(checkpoint)[1].eval()
    if start_share:
        starting, trained = create_sam2_model(config).state_dict(), model.state_dict()
        model.load_state_dict(trained | average_with_start(trained, starting, start_share))
    return model


def run_job(job: Job, work: Path, sizes: Sizes) -> dict[str, Any]:
    """Train and score, or return the stored result of an earlier call.

    Args:
        job: the job.
        work: the folder of the results of the starting weights.
        sizes: how much is trained and scored.

    Returns:
        ``videos`` and ``generated``, the trained model's scores by tracker, and ``seconds`` for
        training and scoring.
    """
    file, about = _result(job, work, sizes)
    if (saved := _read(file, about)) is not None:
        return saved
    config = job_config(job, work, sizes)
    checkpoint, trained = train(job, work, sizes)
    begin = time.perf_counter()
    model = tuned_model(checkpoint, job.start_share, config)
    videos = VideoDataset(job.davis)
    test = SelectedVideos(videos, [videos.names.index(name) for name in job.test])
    tuned, zeroed = TrackerRun(AFTER, model), TrackerRun(ZEROED, model, zero_memory=True)
    runs = (tuned, zeroed) if sizes.zeroed else (tuned,)
    saved = {
        "videos": {r.name: score(r, test, config, sizes.frames) for r in runs},
        "generated": {AFTER: score(tuned, generated_clips(config, sizes), config, sizes.frames)},
        "seconds": {
            "training": round(trained, 1),
            "scoring": round(time.perf_counter() - begin, 1),
        },
    }
    return _write(file, about, saved)


def _result(job: Job, work: Path, sizes: Sizes) -> tuple[Path, dict[str, Any]]:
    """Return the file of a job's result, and what the result depends on."""
    about = asdict(job) | {"davis": str(job.davis.resolve()), "sizes": asdict(sizes)}
    about["training"] = training_key(job, work, sizes)
    return work / f"{job.name}.json", about


def run_jobs(
    jobs: Sequence[Job], work: Path, sizes: Sizes, minutes: float = 1e9
) -> dict[str, dict[str, Any]]:
    """Run the jobs in order, print their progress, and stop before ``minutes`` have passed.

    Args:
        jobs: the jobs.
        work: the folder of the results of the starting weights.
        sizes: how much is trained and scored.
        minutes: time after which no job is started.

    Returns:
        The results of the finished jobs, by name.
    """
    logger.disable("sam2kit")  # progress is printed here
    work.mkdir(parents=True, exist_ok=True)
    clock = _Clock(jobs, work, sizes)
    begin, results = time.perf_counter(), {}
    for number, job in enumerate(jobs, 1):
        if time.perf_counter() - begin + clock.expected(job) > 60 * minutes:
            print(f"Stopping after {minutes:.0f} minutes; run again to resume", file=sys.stderr)
            continue
        with clock.measure(job):
            results[job.name] = run_job(job, work, sizes)
        left = sum(map(clock.expected, jobs[number:])) / 60
        progress = f"[{number}/{len(jobs)}] {job.name}: {clock.seconds:.0f} s"
        print(f"{progress}; about {left:.0f} min left", file=sys.stderr, flush=True)
    return results


class _Clock:
    """Estimate the seconds of jobs from those that are done.

    Attributes:
        seconds: the duration of the latest job.
    """

    def __init__(self, jobs: Sequence[Job], work: Path, sizes: Sizes) -> None:
        self._scored = {j.name for j in jobs if _read(*_result(j, work, sizes)) is not None}
        self._training = {j.name: training_key(j, work, sizes) for j in jobs}
        files = (work / "trainings").glob("*/training.json")
        self._trained = {file.parent.name for file in files}
        self._times: dict[bool, list[float]] = {True: [], False: []}
        self.seconds = 0.0

    def expected(self, job: Job) -> float:
        """Return how long a job is expected to take; 0 if nothing is known yet."""
        if job.name in self._scored:
            return 0.0
        times = self._times[self._training[job.name] not in self._trained]
        return sum(times) / len(times) if times else 0.0

    @contextmanager
    def measure(self, job: Job) -> Iterator[None]:
        """Measure a job that is run in the block."""
        begin = time.perf_counter()
        yield
        self.seconds = time.perf_counter() - begin
        if job.name not in self._scored:
            self._times[self._training[job.name] not in self._trained].append(self.seconds)
        self._scored.add(job.name)
        self._trained.add(self._training[job.name])


def _digest(about: Mapping[str, Any]) -> str:
    text = json.dumps(about, sort_keys=True, default=str)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def differences(scores: Mapping[Key, float], others: Mapping[Key, float]) -> dict[Key, float]:
    """Return ``scores`` minus ``others`` for the objects in both."""
    return {key: scores[key] - others[key] for key in scores if key in others}


def _write(file: Path, about: dict[str, Any], content: dict[str, Any]) -> dict[str, Any]:
    """Write a result, and return it with rounded scores, as :func:`_read` does."""

    def plain(scores: Scores) -> dict[str, Any]:
        return {t: [[*key, round(x, 5)] for key, x in s.items()] for t, s in scores.items()}

    parts = {k: plain(v) if k in ("videos", "generated") else v for k, v in content.items()}
    file.parent.mkdir(parents=True, exist_ok=True)
    write_text(file, json.dumps({"about": about, **parts}, indent=1) + "\n")
    result = _read(file, about)
    assert result is not None
    return result


def _read(file: Path, about: dict[str, Any]) -> dict[str, Any] | None:
    """Read a result; return None if there is none or its settings differ."""
    if not file.exists():
        return None
    content = json.loads(file.read_text(encoding="utf-8"))
    # JSON has no tuples, so compare lists.
    if content.pop("about") != json.loads(json.dumps(about)):
        return None
    for part in ("videos", "generated"):
        content[part] = {
            tracker: {(video, identity): x for video, identity, x in rows}
            for tracker, rows in content[part].items()
        }
    return content


def averages(results: Sequence[Mapping[str, Any]], part: str, tracker: str) -> dict[Key, float]:
    """Return the mean score of each object over several training runs."""
    values: dict[Key, list[float]] = {}
    for result in results:
        for key, x in result[part][tracker].items():
            values.setdefault(key, []).append(x)
    return {key: float(np.mean(x)) for key, x in values.items()}


def interval(summary: Mapping[str, Any]) -> str:
    """Return the mean of differences and its interval as a cell of a table."""
    return mean_text(summary) or "–"
