"""Compare recipes for adapting a model to a few videos: ``python -m benchmarks.recipes``.

Each recipe differs from the first one in one choice. The nine sequences of DAVIS form three blocks.
A recipe is trained on one block and scored on the other two. For every fold of ``benchmarks.proof``
this is a cross-validation within its six training videos, so that the choice of a recipe need not
use its test videos (``chosen_by_fold``). The same is done on a thermal-like and an endoscopy-like
copy of the videos. Writes ``recipes.{json,md}`` after all jobs; every finished training run is a
file in ``--work``, from which an interrupted call resumes.

A training run takes about a minute on an idle CPU core, so all recipes, datasets and three seeds
take six hours: choose a part with ``--recipes``, ``--data``, ``--seeds`` and ``--minutes``.
"""

from __future__ import annotations

import re
import sys
from argparse import Namespace
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adaptation import (
    AFTER,
    BEFORE,
    COPY,
    FOLDS,
    GENERATED_VIDEOS,
    ZEROED,
    Job,
    MissingDataError,
    Scores,
    Sizes,
    argument_parser,
    averages,
    baselines,
    blocks,
    differences,
    interval,
    job_config,
    run_jobs,
    sequences,
    weights_folder,
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
LOW, LOWEST = "optimizer.lr=1e-4", "optimizer.lr=3e-5"
NANO = ("loss=nano",)
EMA = ("trainer.ema_decay=0.98", "scheduler.min_lr_ratio=0.02")
LONG = ("dataset.video_clip_length=8", "dataset.batch_size=2")
# Everything that a recipe changes is stated here, so that it does not follow configs/adapt.yaml.
COMMON = (
    *("loss=official", DECODER, "optimizer.lr=3e-4", "dataset.video_clip_length=4"),
    *("dataset.batch_size=3", "dataset.clips_per_video=40", "dataset.augment=true"),
    *("dataset.type=video", "dataset.replay=0", "dataset.synthetic_lifelike=0.5"),
    *("trainer.max_epochs=20", "trainer.max_steps=200", "trainer.ema_decay=null"),
    *("trainer.average_with_start=null", "scheduler.min_lr_ratio=0.1", "scheduler.warmup_steps=10"),
)


@dataclass(frozen=True)
class Recipe:
    """What a recipe changes.

    Attributes:
        changes: overrides of :data:`COMMON`.
        start_share: share of the starting weights in the average with the trained weights.
    """

    changes: tuple[str, ...] = ()
    start_share: float = 0.0


RECIPES = {
    "memory and decoder, 3e-4": Recipe(),
    "averaged with the start": Recipe((), 0.5),
    "three quarters of the start": Recipe((), 0.75),
    "learning rate 1e-4": Recipe((LOW,)),
    "1e-4, averaged with the start": Recipe((LOW,), 0.5),
    "learning rate 3e-5": Recipe((LOWEST,)),
    "learning rate 1e-3": Recipe(("optimizer.lr=1e-3",)),
    "memory only": Recipe((MEMORY,)),
    "memory only, averaged": Recipe((MEMORY,), 0.5),
    "memory only, 1e-4": Recipe((MEMORY, LOW)),
    "replay 0.25": Recipe(("dataset.replay=0.25",)),
    "replay 0.25, averaged": Recipe(("dataset.replay=0.25",), 0.5),
    "replay 0.5": Recipe(("dataset.replay=0.5",)),
    "replay 0.5, averaged": Recipe(("dataset.replay=0.5",), 0.5),
    "replay 0.5, 1e-4": Recipe(("dataset.replay=0.5", LOW)),
    "clips of 8 frames": Recipe(LONG),
    "clips of 8 frames, averaged": Recipe(LONG, 0.5),
    "clips of 8 frames, replay 0.5": Recipe((*LONG, "dataset.replay=0.5")),
    "clips of 8 frames, replay 0.5, averaged": Recipe((*LONG, "dataset.replay=0.5"), 0.5),
    "averaged over the steps": Recipe(EMA),
    "50 steps": Recipe(("trainer.max_steps=50",)),
    "nano's loss": Recipe(NANO),
    "nano's loss, averaged": Recipe(NANO, 0.5),
    "nano's loss, 1e-4": Recipe((*NANO, LOW)),
    "nano's loss, 1e-4, averaged": Recipe((*NANO, LOW), 0.5),
    "nano's loss, replay 0.5": Recipe((*NANO, "dataset.replay=0.5")),
    "nano's loss, replay 0.5, averaged": Recipe((*NANO, "dataset.replay=0.5"), 0.5),
    "nano's loss, clips of 8 frames": Recipe((*NANO, *LONG)),
    "nano's loss, clips of 8 frames, averaged": Recipe((*NANO, *LONG), 0.5),
    "nano's loss, clips of 8 frames, replay 0.5": Recipe((*NANO, *LONG, "dataset.replay=0.5")),
    "nano's loss, replay 0.5, averaged over the steps": Recipe((*NANO, "dataset.replay=0.5", *EMA)),
    "nano's loss, clips of 8 frames, replay 0.5, averaged over the steps": Recipe(
        (*NANO, *LONG, "dataset.replay=0.5", *EMA)
    ),
    "nano's loss, replay 0.75, averaged over the steps": Recipe(
        (*NANO, "dataset.replay=0.75", *EMA)
    ),
    "nano's loss, replay 0.5, 400 steps": Recipe(
        (*NANO, "dataset.replay=0.5", *EMA, "trainer.max_steps=400")
    ),
    "nano's loss, memory only": Recipe((*NANO, MEMORY)),
    "from_scratch loss": Recipe(("loss=from_scratch",)),
    "default loss": Recipe(("loss=default",)),
    "no augmentation": Recipe(("dataset.augment=false",)),
    "official augmentation": Recipe(("augmentation=official",)),
    "domain augmentation": Recipe(("augmentation.thermal=0.25", "augmentation.endoscopy=0.25")),
    "mask, box and point prompts": Recipe(("dataset.prompt_types=[mask,box,point]",)),
    "all modules, 1e-4": Recipe(("model.trainable_modules=['*']", LOW)),
    "LoRA in the image encoder": Recipe(("model.lora_modules=[image_encoder]",)),
}
SEEDS = (1, 2, 3)


def data_set(name: str, davis: Path, work: Path) -> Path:
    """Return the folder of a dataset: DAVIS itself, or a filtered copy, which is made once."""
    if name == "davis":
        return davis
    folder = work / f"davis_{name}"
    if not (folder / "complete").exists():
        print(f"writing {folder}", file=sys.stderr, flush=True)
        write_davis(FilteredVideos(VideoDataset(davis), name), folder, exist_ok=True)
        (folder / "complete").touch()
    return folder


Point = tuple[int, str, int]  # seed, recipe, index of the block


def points(seeds: Sequence[int], recipes: Sequence[str], trained: Sequence[int]) -> list[Point]:
    """Return all combinations, the recipes of a seed before the next seed."""
    return [(seed, recipe, k) for seed in seeds for recipe in recipes for k in trained]


def plan(davis: Path, data: str, names: Sequence[str], chosen: Sequence[Point]) -> list[Job]:
    """Return the job of each point: a block trains, and the others test."""
    parts = blocks(names)
    return [
        Job(
            f"{data}-{_slug(recipe)}-block{k + 1}-seed{seed}",
            davis,
            parts[k],
            tuple(name for other in parts if other != parts[k] for name in other),
            seed,
            (*COMMON, *RECIPES[recipe].changes),
            RECIPES[recipe].start_share,
        )
        for seed, recipe, k in chosen
    ]


def _slug(recipe: str) -> str:
    return re.sub("[^a-z0-9]+", "-", recipe.lower())


def summarise(
    results: Mapping[int, Sequence[Mapping[str, Any]]], before: Scores, before_generated: Scores
) -> dict[str, Any]:
    """Summarise the training runs of a recipe.

    Args:
        results: maps each seed to the results of its training runs.
        before, before_generated: the scores of the starting model and the copied mask.
    """
    everything = [r for of_seed in results.values() for r in of_seed]
    trackers = [t for t in (AFTER, ZEROED) if t in everything[0]["videos"]]
    after = {t: averages(everything, "videos", t) for t in trackers}
    start, copied = before[BEFORE], before[COPY]
    gains = {
        seed: differences(averages(of_seed, "videos", AFTER), start)
        for seed, of_seed in results.items()
    }
    generated = averages(everything, "generated", AFTER)
    scores = {**after, BEFORE: start, COPY: copied}
    memory = by_video(differences(after[AFTER], after.get(ZEROED, {})))
    return {
        "after": after[AFTER],
        "gain": seed_summary(gains),
        "memory": difference_summary(memory) if memory else None,
        "motion": motion_halves(scores),
        "generated": difference_summary(by_video(differences(generated, before_generated[BEFORE]))),
        "seconds": float(np.median([r["seconds"]["training"] for r in everything])),
    }


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
                "through the memory": f"{s['memory']['mean']:+.3f}" if s["memory"] else "–",
                "generated clips": interval(s["generated"]),
                "sum": f"{s['gain']['mean'] + s['generated']['mean']:+.3f}",
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
        results: recipe -> seed -> block -> result of training on that block.
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


def compare(arguments: Namespace) -> tuple[dict[str, Any], str]:
    """Run the jobs of :func:`plan`, and return the results as a document and as Markdown."""
    names = sequences(arguments.davis)
    parts, trained = blocks(names), [number - 1 for number in arguments.blocks]
    chosen = points(arguments.seeds, arguments.recipes, trained)
    sizes = Sizes(arguments.steps, arguments.frames, arguments.generated, arguments.zeroed)
    document: dict[str, Any] = {"machine": machine()}
    text = ""
    for data in arguments.data:
        folder = data_set(data, arguments.davis, arguments.work)
        jobs = plan(folder, data, names, chosen)
        config = job_config(jobs[0], arguments.work, sizes)
        work = weights_folder(config, arguments.work)
        before, before_generated = baselines(folder, work, sizes, config)
        done = run_jobs(jobs, work, sizes, arguments.minutes)
        by_recipe: dict[str, dict[int, dict[int, Any]]] = {}
        for job, (seed, recipe, k) in zip(jobs, chosen, strict=True):
            if job.name in done:
                by_recipe.setdefault(recipe, {}).setdefault(seed, {})[k] = done[job.name]
        # A seed counts once all blocks are done, so that every video is scored equally often.
        complete = {
            recipe: {s: b for s, b in seeds.items() if len(b) == len(trained)}
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
        choices = chosen_by_fold(complete, before, parts) if len(trained) == len(parts) else []
        document[data] = {
            "rows": table,
            "chosen": choices,
            "before": float(np.mean(list(before[BEFORE].values()))),
            "copied": float(np.mean(list(before[COPY].values()))),
        }
        folds = ""
        if choices:
            folds = (
                "Recipe with the largest gain within the training videos of each fold: "
                f"{'; '.join(choices)}.\n\n"
            )
        text += (
            f"## {data}\n\nWeights {work.name.partition('-')[2]}: starting model "
            f"{document[data]['before']:.3f}, copied first mask {document[data]['copied']:.3f}."
            f"\n\n{markdown_table(table)}\n\n{folds}"
        )
    return document, text


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__, "outputs/recipes", RESULTS, SEEDS)
    usable = [r for r in RECIPES if "LoRA" not in r or find_spec("peft")]
    parser.add_argument("--recipes", nargs="+", choices=usable, default=usable)
    parser.add_argument("--data", nargs="+", choices=("davis", *DOMAINS), default=["davis"])
    parser.add_argument("--blocks", type=int, nargs="+", default=list(range(1, FOLDS + 1)))
    parser.add_argument("--minutes", type=float, default=1e9, help="start no job that ends later")
    parser.add_argument("--zeroed", action="store_true", help="also score without memory")
    parser.add_argument("--generated", type=int, default=GENERATED_VIDEOS)
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    try:
        document, text = compare(arguments)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    text = (
        "# Recipes for a few videos\n\nNano at 192 px, three videos per training, 200 steps unless "
        f"the recipe says otherwise. J&F over up to {arguments.frames} frames of the six other "
        "sequences of DAVIS, from the mask on the first frame; 95% intervals over videos, seeds "
        "averaged within each video. *moving* and *slow*: the gain on the half of the objects that "
        "the copied mask loses most, and on the others. *through the memory*: what the trained "
        "model loses without its memory. *generated clips*: what it gains or forgets there; *sum*: "
        "this plus the gain. "
        f"`python -m benchmarks.recipes`\n\n{text}{machine_line(document['machine'])}\n"
    )
    write(arguments.out / "recipes", document, text)
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
