"""Render a training set: ``python data_samples/render_training_set.py OUT``.

The clips show animals, people and machines, in DAVIS layout. A clip only depends on the seed and
its number, so any clip can be rendered separately. Repeat an interrupted call to resume it.
Requires the extra render and, without a GPU, Mesa's software renderer; see docs/rendering.md.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")  # parallelism comes from processes

import argparse  # noqa: E402
import json  # noqa: E402
import multiprocessing  # noqa: E402
import shutil  # noqa: E402
import threading  # noqa: E402
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

CLIPS_PER_STAGE = 3  # clips with the same figures in other surroundings, to save compilations
VALIDATION_EVERY = 40  # every 40th stage is for validation, so that splits do not share stages
# Seconds between frames: from a video's rate to every eighth frame of one.
FRAME_SECONDS = 0.05, 0.32
ASPECTS = {1.0: 0.15, 4 / 3: 0.35, 16 / 9: 0.5}
JPEG_QUALITY = 88, 96


@dataclass(frozen=True)
class Options:
    """Settings that determine the content of a training set.

    Attributes:
        seed: Seed of all clips.
        size: Rows of the images.
        frames: Frames per clip.
        scale: Images are rendered at this multiple of their size.
        photos: Directory of photographs for textures, or None to draw all textures.
    """

    seed: int = 21
    size: int = 192
    frames: int = 8
    scale: float = 1.6
    photos: str | None = None


def render(out: Path, clips: int, options: Options, processes: int) -> None:
    """Render the clips that are missing in ``out``, and write the lists of the splits.

    Args:
        out: Directory of the dataset, created if missing.
        clips: Total number of clips.
        options: Settings of the clips; must equal the settings of existing clips in ``out``.
        processes: Number of processes.

    Raises:
        DataError: ``out`` contains clips with other options, or a package is missing.
    """
    import scenes.simulator  # noqa: F401  reports missing packages before processes start

    _check_options(out, options)
    for name in ("JPEGImages", "Annotations", "ImageSets"):
        (out / name).mkdir(parents=True, exist_ok=True)
    _remove_unfinished(out)
    todo = [n for n in range(clips) if not (out / "Annotations" / clip_name(n)).is_dir()]
    stages = sorted({n // CLIPS_PER_STAGE for n in todo})
    jobs = [(out, options, stage, clips) for stage in stages]
    logger.info("Rendering {} of {} clips to {}", len(todo), clips, out)
    copied: list[float] = []
    results = _each(jobs, processes)
    for done, result in enumerate(log_progress(results, len(jobs), "rendered", "stages"), 1):
        copied += result
        if done % 50 == 0:  # finished clips can be used while the others are rendered
            _write_lists(out, clips)
    train, val = _write_lists(out, clips)
    if copied:
        logger.info("Mean IoU of the copied first mask in these clips: {:.3f}", np.mean(copied))
    logger.info("{} clips for training, {} for validation in {}", train, val, out)


def clip_name(number: int) -> str:
    """Return the name of a clip."""
    return f"render_{number:05d}"


def _each(jobs: list, processes: int) -> Iterator[list[float]]:
    """Render stages in one or more processes, and yield the IoU of their copied masks."""
    if processes <= 1:
        yield from map(_render_stage, jobs)
        return
    context = multiprocessing.get_context("spawn")
    pool = ProcessPoolExecutor(processes, mp_context=context, initializer=_end_with_parent)
    try:
        for job in as_completed([pool.submit(_render_stage, job) for job in jobs]):
            yield job.result()
    except BrokenProcessPool:
        raise DataError(
            "a rendering process was killed or crashed",
            hint="run the command again to render the missing clips; if it fails again, use "
            "--processes 1 and look for the cause in the output",
        ) from None
    finally:
        pool.shutdown(cancel_futures=True)


def _end_with_parent() -> None:
    """Exit when the parent process has been killed, instead of waiting for its next job."""

    def watch() -> None:
        multiprocessing.parent_process().join()
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _render_stage(job: tuple[Path, Options, int, int]) -> list[float]:
    """Render the missing clips of one stage, and return the IoU of their copied masks."""
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
    """Store the options beside the clips, and reject calls with other options."""
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
                hint="use the same value, or another directory",
            )


def _remove_unfinished(out: Path) -> None:
    """Remove incomplete clips of an interrupted call."""
    shutil.rmtree(out / PARTIAL, ignore_errors=True)
    for folder in (out / "JPEGImages").iterdir():
        if not (out / "Annotations" / folder.name).is_dir():
            logger.info("Removing the unfinished clip {}", folder.name)
            shutil.rmtree(folder)


def _write_lists(out: Path, clips: int) -> tuple[int, int]:
    """Write the names of finished clips to ``ImageSets``, and return the size of each split."""
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
    parser.add_argument("out", type=Path, help="output directory")
    parser.add_argument("--clips", type=int, default=4000, help="number of clips (4000)")
    parser.add_argument("--size", type=int, default=192, help="rows of the images (192)")
    parser.add_argument("--frames", type=int, default=8, help="frames per clip (8)")
    parser.add_argument("--seed", type=int, default=21, help="seed of all clips (21)")
    parser.add_argument("--photos", help="directory with photographs for textures (none)")
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
