"""Compare recipes for adapting a model to a few videos: ``python -m benchmarks.recipes``.

Each recipe differs from the first one in one choice. The nine sequences of DAVIS form three blocks.
A recipe is trained on one block and scored on the other two. For every fold of ``benchmarks.proof``
this is a cross-validation within its six training videos, so that the choice of a recipe need not
use its test videos (``chosen_by_fold``). The same is done on a thermal-like and an endoscopy-like
copy of the videos. Writes ``recipes.{json,md}`` after all jobs; every finished training is a file
in ``--work``, from which an interrupted call resumes.

A training takes about a minute on an idle CPU core, so all recipes, data sets and three seeds take
six hours: choose a part with ``--recipes``, ``--data``, ``--seeds`` and ``--minutes``.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adaptation import (
    AFTER,
    BEFORE,
    COPY,
    DAVIS,
    ZEROED,
    Job,
    Key,
    MissingDataError,
    Scores,
    Sizes,
    baselines,
    blocks,
    differences,
    job_config,
    run_jobs,
    sequences,
)
from benchmarks.measure import RESULTS, machine, machine_line, use_threads, write, write_davis
from sam2kit.data import FilteredVideos, VideoDataset
from sam2kit.data.domains import DOMAINS
from sam2kit.evaluation.statistics import (
    by_video,
    difference_summary,
    holm,
    motion_halves,
    seed_summary,
)
from sam2kit.viz.tables import markdown_table

MEMORY = "model.trainable_modules=[memory_attention,memory_encoder]"
DECODER = "model.trainable_modules=[memory_attention,memory_encoder,sam_mask_decoder]"
REPLAY = "replay"  # not an override: a third of the clips are generated
STEPS = 200
# Everything that a recipe changes is stated here, so that it does not follow configs/adapt.yaml.
COMMON = (
    *("loss=official", DECODER, "optimizer.lr=3e-4", "dataset.video_clip_length=4"),
    *("dataset.batch_size=3", "dataset.clips_per_video=40", "dataset.augment=true"),
    *("dataset.type=video", "trainer.max_epochs=5"),
)
RECIPES: dict[str, tuple[str, ...]] = {
    "official loss, memory and decoder": (),
    "from_scratch loss": ("loss=from_scratch",),
    "memory only": (MEMORY,),
    "replay of generated clips": (REPLAY,),
    "memory only, replay": (MEMORY, REPLAY),
    "default loss": ("loss=default",),
    "learning rate 1e-4": ("optimizer.lr=1e-4",),
    "learning rate 1e-3": ("optimizer.lr=1e-3",),
    "clips of 8 frames": ("dataset.video_clip_length=8", "dataset.batch_size=2"),
    "no augmentation": ("dataset.augment=false",),
    "official augmentation": ("augmentation=official",),
    "domain augmentation": ("augmentation.thermal=0.25", "augmentation.endoscopy=0.25"),
    "all modules, learning rate 1e-4": ("model.trainable_modules=['*']", "optimizer.lr=1e-4"),
    "LoRA in the image encoder": ("model.lora_modules=[image_encoder]",),
}
REFERENCE = next(iter(RECIPES))
SEEDS = (1, 2, 3)


def data_set(name: str, davis: Path, work: Path) -> Path:
    """Return the folder of a data set: DAVIS itself, or a filtered copy, which is made once."""
    if name == "davis":
        return davis
    folder = work / f"davis_{name}"
    if not (folder / "complete").exists():
        print(f"writing {folder}", file=sys.stderr, flush=True)
        write_davis(FilteredVideos(VideoDataset(davis), name), folder, exist_ok=True)
        (folder / "complete").touch()
    return folder


def plan(
    davis: Path, data: str, recipes: Sequence[str], seeds: Sequence[int], names: Sequence[str]
) -> list[Job]:
    """Return one job per seed, recipe and block: all recipes of a seed before the next seed."""
    parts = blocks(names)
    return [
        Job(
            f"{data}-{list(RECIPES).index(recipe):02d}-block{k + 1}-seed{seed}",
            davis,
            parts[k],
            tuple(name for other in parts if other != parts[k] for name in other),
            seed,
            (*COMMON, *(change for change in RECIPES[recipe] if change != REPLAY)),
            REPLAY in RECIPES[recipe],
        )
        for seed in seeds
        for recipe in recipes
        for k in range(len(parts))
    ]


def averages(results: Sequence[Mapping[str, Any]], part: str, tracker: str) -> dict[Key, float]:
    """Return the mean score of each object over several trainings."""
    values: dict[Key, list[float]] = {}
    for result in results:
        for key, x in result[part][tracker].items():
            values.setdefault(key, []).append(x)
    return {key: float(np.mean(x)) for key, x in values.items()}


def summarise(
    results: Mapping[int, Sequence[Mapping[str, Any]]], before: Scores, before_generated: Scores
) -> dict[str, Any]:
    """Summarise the trainings of a recipe.

    Args:
        results: maps each seed to the results of its trainings.
        before, before_generated: the scores of the starting model and the copied mask.
    """
    everything = [r for of_seed in results.values() for r in of_seed]
    after = {t: averages(everything, "videos", t) for t in (AFTER, ZEROED)}
    start, copied = before[BEFORE], before[COPY]
    gains = {
        seed: differences(averages(of_seed, "videos", AFTER), start)
        for seed, of_seed in results.items()
    }
    generated = averages(everything, "generated", AFTER)
    scores = {AFTER: after[AFTER], BEFORE: start, ZEROED: after[ZEROED], COPY: copied}
    return {
        "after": after[AFTER],
        "gain": seed_summary(gains),
        "memory": difference_summary(by_video(differences(after[AFTER], after[ZEROED]))),
        "motion": motion_halves(scores),
        "generated": difference_summary(by_video(differences(generated, before_generated[BEFORE]))),
        "seconds": float(np.median([r["seconds"]["training"] for r in everything])),
    }


def interval(summary: Mapping[str, Any]) -> str:
    """Return ``+0.050 (+0.010 to +0.090)``, without the interval if there is none."""
    if summary["mean"] is None:
        return "–"
    text = f"{summary['mean']:+.3f}"
    low, high = summary["low"], summary["high"]
    return text if low is None else f"{text} ({low:+.3f} to {high:+.3f})"


def rows(summaries: Mapping[str, Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return one row per recipe, with its paired difference to the first one.

    The p-values are corrected for the number of recipes.
    """
    first = next(iter(summaries))
    compared = {
        name: difference_summary(by_video(differences(s["after"], summaries[first]["after"])))
        for name, s in summaries.items()
        if name != first
    }
    corrected = dict(zip(compared, holm([c["p"] for c in compared.values()]), strict=True))
    result = []
    for name, s in summaries.items():
        halves = {h["half"]: h["differences"][BEFORE]["mean"] for h in s["motion"]}
        result.append(
            {
                "recipe": name,
                "seeds": len(s["gain"]["seeds"]),
                "gain": interval(s["gain"]),
                "against the first": interval(compared[name]) if name in compared else "",
                "p (Holm)": corrected.get(name),
                "moving": f"{halves['moving']:+.3f}",
                "slow": f"{halves['slow']:+.3f}",
                "through the memory": f"{s['memory']['mean']:+.3f}",
                "generated clips": interval(s["generated"]),
                "seconds": round(s["seconds"]),
            }
        )
    return result


def chosen_by_fold(
    results: Mapping[str, Mapping[int, Mapping[int, Mapping[str, Any]]]],
    before: Scores,
    parts: Sequence[Sequence[str]],
) -> list[str]:
    """Return the recipe with the largest mean gain within the training videos of each fold.

    Args:
        results: recipe -> seed -> block -> result of the training on that block.
        before: the scores of the starting model.
        parts: the blocks; fold k tests block k and trains on the others.
    """
    best = []
    for k in range(len(parts)):
        means = {}
        for recipe, seeds in results.items():
            gains = [
                gain
                for of_block in seeds.values()
                for j, result in of_block.items()
                if j != k
                for key, gain in differences(result["videos"][AFTER], before[BEFORE]).items()
                if key[0] not in parts[k]
            ]
            means[recipe] = float(np.mean(gains))
        best.append(max(means, key=lambda recipe: means[recipe]))
    return best


def compare(arguments: argparse.Namespace) -> tuple[dict[str, Any], str]:
    """Run the jobs of :func:`plan`, and return the results as a document and as Markdown."""
    names = sequences(arguments.davis)
    parts = blocks(names)
    sizes = Sizes(arguments.steps, arguments.frames, arguments.generated)
    document: dict[str, Any] = {"machine": machine()}
    text = ""
    for data in arguments.data:
        folder = data_set(data, arguments.davis, arguments.work)
        jobs = plan(folder, data, arguments.recipes, arguments.seeds, names)
        config = job_config(jobs[0], arguments.work, sizes)
        before, before_generated = baselines(folder, arguments.work, sizes, config)
        done = run_jobs(jobs, arguments.work, sizes, arguments.minutes)
        by_recipe: dict[str, dict[int, dict[int, Any]]] = {}
        for job, (seed, recipe, k) in zip(jobs, _points(arguments, len(parts)), strict=True):
            if job.name in done:
                by_recipe.setdefault(recipe, {}).setdefault(seed, {})[k] = done[job.name]
        # A seed counts once all blocks are done, so that every video is scored equally often.
        complete = {
            recipe: {s: b for s, b in seeds.items() if len(b) == len(parts)}
            for recipe, seeds in by_recipe.items()
        }
        complete = {recipe: seeds for recipe, seeds in complete.items() if seeds}
        if not complete:
            continue
        summaries = {
            recipe: summarise(
                {s: list(b.values()) for s, b in seeds.items()}, before, before_generated
            )
            for recipe, seeds in complete.items()
        }
        table = rows(summaries)
        choices = chosen_by_fold(complete, before, parts)
        document[data] = {
            "rows": table,
            "chosen": choices,
            "before": float(np.mean(list(before[BEFORE].values()))),
            "copied": float(np.mean(list(before[COPY].values()))),
        }
        text += (
            f"## {data}\n\nStarting model {document[data]['before']:.3f}, copied first mask "
            f"{document[data]['copied']:.3f}.\n\n{markdown_table(table)}\n\nRecipe with the "
            f"largest gain within the training videos of each fold: {'; '.join(choices)}.\n\n"
        )
    return document, text


def _points(arguments: argparse.Namespace, count: int) -> list[tuple[int, str, int]]:
    """Return seed, recipe and block of the jobs, in the order of :func:`plan`."""
    return [(s, r, k) for s in arguments.seeds for r in arguments.recipes for k in range(count)]


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    usable = [r for r in RECIPES if "LoRA" not in r or find_spec("peft")]
    parser.add_argument("--davis", type=Path, default=DAVIS, help="folder in DAVIS layout")
    parser.add_argument("--work", type=Path, default=Path("outputs/recipes"), help="finished jobs")
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--recipes", nargs="+", choices=usable, default=usable)
    parser.add_argument("--data", nargs="+", choices=("davis", *DOMAINS), default=["davis"])
    parser.add_argument("--seeds", type=int, nargs="+", default=list(SEEDS))
    parser.add_argument("--minutes", type=float, default=1e9, help="start no job that ends later")
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--generated", type=int, default=40)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    try:
        document, text = compare(arguments)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    text = (
        "# Recipes for a few videos\n\nNano at 128 px, three videos per training, "
        f"{arguments.steps} steps. J&F over up to {arguments.frames} frames of the six other "
        "sequences of DAVIS, from the mask on the first frame; 95% intervals over videos, seeds "
        "averaged within each video. *moving* and *slow*: the gain on the half of the objects that "
        "the copied mask loses most, and on the others. *through the memory*: what the trained "
        "model loses without its memory. *generated clips*: what it gains or forgets there. "
        f"`python -m benchmarks.recipes`\n\n{text}{machine_line(document['machine'])}\n"
    )
    write(arguments.out / "recipes", document, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
