"""Render a training set: ``python data_samples/render_training_set.py OUT``.

Its clips show animals, people and machines, and are written in DAVIS layout. A clip is a function
of the seed and its number, so any of them can be rendered alone. A call that was interrupted is
continued by the same call. Needs the extra render and, without a GPU, Mesa's software renderer:
docs/rendering.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # the processes are the parallelism

import argparse  # noqa: E402
import json  # noqa: E402
import multiprocessing  # noqa: E402
import shutil  # noqa: E402
from collections.abc import Iterator  # noqa: E402
from concurrent.futures import ProcessPoolExecutor, as_completed  # noqa: E402
from concurrent.futures.process import BrokenProcessPool  # noqa: E402
from dataclasses import asdict, dataclass  # noqa: E402
from pathlib import Path  # noqa: E402

import cv2  # noqa: E402
import numpy as np  # noqa: E402
from loguru import logger  # noqa: E402
from scenes.writing import PARTIAL, copied_iou, write_clip  # noqa: E402

from sam2kit.utils.errors import DataError, SAM2KitError  # noqa: E402
from sam2kit.utils.files import write_text  # noqa: E402
from sam2kit.utils.progress import log_progress  # noqa: E402

CLIPS_PER_STAGE = 3  # clips with the same figures, in other surroundings; compiling takes time
VALIDATION_EVERY = 40  # every 40th stage is for validation, so that no figure of it is trained on
# Seconds between frames: from a video's rate to every eighth frame of one.
FRAME_SECONDS = 0.05, 0.32
ASPECTS = {1.0: 0.15, 4 / 3: 0.35, 16 / 9: 0.5}
JPEG_QUALITY = 88, 96


@dataclass(frozen=True)
class Options:
    """What a training set is a function of.

    Attributes:
        seed: Seed of all clips.
        size: Rows of the pictures.
        frames: Frames per clip.
        scale: Pictures are rendered at this multiple of their size.
        photos: Folder with photographs for surfaces; None to draw all surfaces.
    """

    seed: int = 21
    size: int = 192
    frames: int = 8
    scale: float = 1.6
    photos: str | None = None


def render(out: Path, clips: int, options: Options, processes: int) -> None:
    """Render the clips that ``out`` does not have yet, and write the lists of the splits.

    Args:
        out: Folder of the data set, created if missing.
        clips: Number of clips in all.
        options: What the clips are a function of; must be those of the clips in ``out``.
        processes: Number of processes.

    Raises:
        DataError: ``out`` has clips of other options, or a package is missing.
    """
    import scenes.simulator  # noqa: F401  reports missing packages before processes start

    _check_options(out, options)
    for name in ("JPEGImages", "Annotations", "ImageSets"):
        (out / name).mkdir(parents=True, exist_ok=True)
    _remove_unfinished(out)
    todo = [n for n in range(clips) if not (out / "Annotations" / clip_name(n)).is_dir()]
    stages = sorted({n // CLIPS_PER_STAGE for n in todo})
    jobs = [(out, options, stage, clips) for stage in stages]
    logger.info("rendering {} of {} clips to {}", len(todo), clips, out)
    copied: list[float] = []
    results = _each(jobs, processes)
    for done, result in enumerate(log_progress(results, len(jobs), "rendered", "stages"), 1):
        copied += result
        if done % 50 == 0:  # what is finished can be used while the rest is rendered
            _write_lists(out, clips)
    train, val = _write_lists(out, clips)
    if copied:
        logger.info("copied first mask: mean IoU {:.3f} in the clips of this call", np.mean(copied))
    logger.info("{} clips for training, {} for validation in {}", train, val, out)


def clip_name(number: int) -> str:
    """Return the name of a clip."""
    return f"render_{number:05d}"


def _each(jobs: list, processes: int) -> Iterator[list[float]]:
    """Render each stage, in this process or in several; yield its copied masks' IoU."""
    if processes <= 1:
        yield from map(_render_stage, jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context)
    try:
        for job in as_completed([pool.submit(_render_stage, job) for job in jobs]):
            yield job.result()
    except BrokenProcessPool:
        raise DataError(
            "a process that rendered clips was killed or has crashed",
            hint="run the command again, which renders what is missing; if it fails again, render "
            "with --processes 1 and look for the cause in the output",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _render_stage(job: tuple[Path, Options, int, int]) -> list[float]:
    """Render the missing clips of one stage; return the copied masks' IoU."""
    out, options, index, clips = job
    cv2.setNumThreads(1)
    copied = []
    first = index * CLIPS_PER_STAGE
    with _open_stage(options, index) as stage:
        for number in range(first, min(first + CLIPS_PER_STAGE, clips)):
            if (out / "Annotations" / clip_name(number)).is_dir():
                continue
            take = _take(stage, options, number)
            quality = int(np.random.default_rng((options.seed, number, 2)).integers(*JPEG_QUALITY))
            write_clip(out, clip_name(number), take.frames, take.ids, quality)
            copied.append(copied_iou(take.ids))
    return copied


def _open_stage(options: Options, index: int):
    from scenes.clip import draw_cast
    from scenes.stage import Stage

    rng = np.random.default_rng((options.seed, index, 0))
    aspect = rng.choice(list(ASPECTS), p=list(ASPECTS.values()))
    columns = int(round(options.size * aspect / 2) * 2)
    return Stage(draw_cast(rng), (options.size, columns), options.scale)


def _take(stage, options: Options, number: int):
    from scenes.clip import make_clip

    rng = np.random.default_rng((options.seed, number, 1))
    pause = np.exp(rng.uniform(*np.log(FRAME_SECONDS)))
    seconds = float(pause * (options.frames - 1))
    return make_clip(stage, (options.seed, number), _surfaces(options), options.frames, seconds)


_cache: dict = {}


def _surfaces(options: Options):
    from scenes.surfaces import Surfaces

    if options.photos not in _cache:
        _cache[options.photos] = Surfaces(Path(options.photos) if options.photos else None)
    return _cache[options.photos]


def _check_options(out: Path, options: Options) -> None:
    """Keep the options beside the clips, and reject a call with others."""
    path = out / "options.json"
    if not path.exists():
        out.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(options), indent=1) + "\n")
        return
    previous = json.loads(path.read_text())
    for key, value in asdict(options).items():
        if previous.get(key) != value:
            raise DataError(
                f"{path}: the clips there were rendered with {key}={previous.get(key)}",
                key=key,
                value=value,
                expected=str(previous.get(key)),
                hint="give the same value, or another folder",
            )


def _remove_unfinished(out: Path) -> None:
    """Remove what an interrupted call left."""
    shutil.rmtree(out / PARTIAL, ignore_errors=True)
    for folder in (out / "JPEGImages").iterdir():
        if not (out / "Annotations" / folder.name).is_dir():
            logger.info("removing the unfinished clip {}", folder.name)
            shutil.rmtree(folder)


def _write_lists(out: Path, clips: int) -> tuple[int, int]:
    """Write the finished clips' names to ``ImageSets``; return how many each split has."""
    splits: dict[str, list[str]] = {"train": [], "val": []}
    for number in range(clips):
        if (out / "Annotations" / clip_name(number)).is_dir():
            validation = number // CLIPS_PER_STAGE % VALIDATION_EVERY == 0
            splits["val" if validation else "train"].append(clip_name(number))
    for split, names in splits.items():
        write_text(out / "ImageSets" / f"{split}.txt", "".join(f"{name}\n" for name in names))
    return len(splits["train"]), len(splits["val"])


def main() -> None:
    """Parse the command line and render."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--clips", type=int, default=4000, help="number of clips (4000)")
    parser.add_argument("--size", type=int, default=192, help="rows of the pictures (192)")
    parser.add_argument("--frames", type=int, default=8, help="frames per clip (8)")
    parser.add_argument("--seed", type=int, default=21, help="seed of all clips (21)")
    parser.add_argument("--photos", help="folder with photographs for surfaces (none)")
    parser.add_argument("--scale", type=float, default=1.6, help="rendered size per pixel (1.6)")
    parser.add_argument("--processes", type=int, default=2, help="number of processes (2)")
    a = parser.parse_args()
    options = Options(a.seed, a.size, a.frames, a.scale, a.photos)
    try:
        render(a.out, a.clips, options, a.processes)
    except SAM2KitError as error:
        raise SystemExit(f"error: {error}") from None


if __name__ == "__main__":
    main()
