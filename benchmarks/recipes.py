"""Compare recipes for adapting a model to a few videos: ``python -m benchmarks.recipes``.

The first recipe is ``configs/adapt.yaml``. Recipes whose names begin with it differ from it in one
choice, and most others in one from ``base``. The nine sequences of DAVIS form three blocks.
A recipe is trained on one block and scored on the other two. For every fold of ``benchmarks.proof``
this is a cross-validation within its six training videos, so that the choice of a recipe need not
use its test videos (``chosen_by_fold``). The same is done on a thermal-like and an endoscopy-like
copy of the videos. Writes ``recipes.{json,md}`` after all jobs; every finished training run is a
file in ``--work``, from which an interrupted call resumes.

A job takes about two minutes on an idle CPU core, so three seeds of all recipes take seven hours
for each dataset: choose a part with ``--recipes``, ``--rounds`` and ``--minutes``. With
``--rounds 1``, every block is trained with another seed; with as many rounds as seeds, with each of
them.
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
LORA = ("model.lora_modules=[image_encoder]", DECODER)
REPLAY = "dataset.replay=0.25"  # as in configs/adapt.yaml
# What a recipe may change is stated here, so that results do not follow configs/adapt.yaml.
COMMON = (
    *("loss=nano", "model.trainable_modules=['*']", "optimizer.lr=1e-3"),
    *("dataset.video_clip_length=4", "dataset.batch_size=3", "dataset.clips_per_video=40"),
    *("dataset.type=video", "dataset.replay=0.5", "dataset.synthetic_lifelike=0.5"),
    *("dataset.augment=true", "dataset.max_gap=0"),
    *("trainer.max_epochs=20", "trainer.max_steps=200", "trainer.ema_decay=null"),
    *("scheduler.min_lr_ratio=0.02", "scheduler.warmup_steps=10"),
    "trainer.average_with_start=null",  # see start_share
)


@dataclass(frozen=True)
class Recipe:
    """What a recipe changes.

    Attributes:
        changes: overrides of :data:`COMMON`.
        start_share: ``trainer.average_with_start``, the share of the starting weights. It is
            applied to the trained weights, so that recipes that only differ in it share a training
            run.
    """

    changes: tuple[str, ...] = ()
    start_share: float = 0.5


RECIPES = {
    "adapt.yaml": Recipe((REPLAY,), 0.6),
    "adapt.yaml, a quarter of the start": Recipe((REPLAY,), 0.25),
    "adapt.yaml, half of the start": Recipe((REPLAY,), 0.5),
    "adapt.yaml, three quarters of the start": Recipe((REPLAY,), 0.75),
    "base": Recipe(),
    "not averaged with the start": Recipe((), 0.0),
    "a quarter of the start": Recipe((), 0.25),
    "three quarters of the start": Recipe((), 0.75),
    "memory and decoder": Recipe((DECODER,)),
    "memory only": Recipe((MEMORY,)),
    "memory, decoder, LoRA in the image encoder": Recipe(LORA),
    "LoRA, a quarter of the start": Recipe(LORA, 0.25),
    "LoRA, not averaged": Recipe(LORA, 0.0),
    "LoRA, a quarter of the start, no augmentation": Recipe((*LORA, "dataset.augment=false"), 0.25),
    "learning rate 3e-4": Recipe(("optimizer.lr=3e-4",)),
    "learning rate 2e-3": Recipe(("optimizer.lr=2e-3",)),
    "no replay": Recipe(("dataset.replay=0",)),
    "replay 0.75": Recipe(("dataset.replay=0.75",)),
    "loss=official": Recipe(("loss=official",)),
    "loss=from_scratch": Recipe(("loss=from_scratch",)),
    "loss=default": Recipe(("loss=default",)),
    "100 steps": Recipe(("trainer.max_steps=100",)),
    "400 steps": Recipe(("trainer.max_steps=400",)),
    "clips of 8 frames": Recipe(("dataset.video_clip_length=8", "dataset.batch_size=2")),
    "up to 3 frames skipped": Recipe(("dataset.max_gap=3",)),
    "no augmentation": Recipe(("dataset.augment=false",)),
    "official augmentation": Recipe(("augmentation=official",)),
    "domain augmentation": Recipe(("augmentation.thermal=0.25", "augmentation.endoscopy=0.25")),
    "mask, box and point prompts": Recipe(("dataset.prompt_types=[mask,box,point]",)),
    "memory and decoder, 3e-4, averaged over the steps only": Recipe(
        (DECODER, "optimizer.lr=3e-4", "trainer.ema_decay=0.98"), 0.0
    ),
}
SEEDS = (1, 2, 3)
MAX_FORGOTTEN = 0.02  # on generated clips, by a recipe that is chosen


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


def points(
    seeds: Sequence[int], recipes: Sequence[str], trained: Sequence[int], rounds: int | None = None
) -> list[Point]:
    """Return the training runs, all recipes of a round before the next round.

    Args:
        seeds: random seeds.
        recipes: names in :data:`RECIPES`.
        trained: indices of the blocks to train on.
        rounds: number of rounds. In a round, each block is trained once, with another seed. None:
            all combinations of blocks and seeds.
    """
    return [
        (seeds[(number + k) % len(seeds)], recipe, k)
        for number in range(len(seeds) if rounds is None else rounds)
        for recipe in recipes
        for k in trained
    ]


def plan(davis: Path, data: str, names: Sequence[str], chosen: Sequence[Point]) -> list[Job]:
    """Return the job of each point: a block trains, and the others test."""
    parts = blocks(names)
    return [
        Job(
            f"{data}-{slug(recipe)}-block{k + 1}-seed{seed}",
            davis,
            parts[k],
            tuple(name for other in parts if other != parts[k] for name in other),
            seed,
            (*COMMON, *RECIPES[recipe].changes),
            RECIPES[recipe].start_share,
        )
        for seed, recipe, k in chosen
    ]


def slug(recipe: str) -> str:
    """Return a recipe's name as part of a file name."""
    return re.sub("[^a-z0-9]+", "-", recipe.lower())


def summarise(
    results: Mapping[int, Sequence[Mapping[str, Any]]], before: Scores, before_generated: Scores
) -> dict[str, Any]:
    """Summarise the training runs of a recipe.

    Args:
        results: maps each round to the results of its training runs.
        before, before_generated: the scores of the starting model and the copied mask.
    """
    everything = [r for of_round in results.values() for r in of_round]
    trackers = [t for t in (AFTER, ZEROED) if t in everything[0]["videos"]]
    after = {t: averages(everything, "videos", t) for t in trackers}
    start, copied = before[BEFORE], before[COPY]
    gains = {
        number: differences(averages(of_round, "videos", AFTER), start)
        for number, of_round in results.items()
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
        "runs": len(everything),
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
                "runs": s["runs"],
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
    before_generated: Scores,
    parts: Sequence[Sequence[str]],
) -> list[str]:
    """Return the recipe with the largest mean gain within the training videos of each fold.

    Recipes that lose more than :data:`MAX_FORGOTTEN` on generated clips are only chosen if all do.

    Args:
        results: recipe -> round -> block -> result of training on that block.
        before, before_generated: the scores of the starting model.
        parts: the blocks; fold k tests block k and trains on the others.
    """
    best = []
    for k in range(len(parts)):
        means = {}
        for recipe, rounds in results.items():
            trained = [r for of_block in rounds.values() for j, r in of_block.items() if j != k]
            gains = [
                gain
                for result in trained
                for key, gain in differences(result["videos"][AFTER], before[BEFORE]).items()
                if key[0] not in parts[k]
            ]
            generated = averages(trained, "generated", AFTER)
            change = np.mean([*differences(generated, before_generated[BEFORE]).values()])
            means[recipe] = change >= -MAX_FORGOTTEN, np.mean(gains)
        best.append(max(means, key=lambda recipe: means[recipe]))
    return best


def compare(arguments: Namespace) -> tuple[dict[str, Any], str]:
    """Run the jobs of :func:`plan`, and return the results as a document and as Markdown."""
    names = sequences(arguments.davis)
    parts, trained = blocks(names), [number - 1 for number in arguments.blocks]
    seeds = arguments.seeds
    chosen = points(seeds, arguments.recipes, trained, arguments.rounds)
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
                number = (seeds.index(seed) - k) % len(seeds)
                by_recipe.setdefault(recipe, {}).setdefault(number, {})[k] = done[job.name]
        # A round counts once all blocks are done, so that every video is scored equally often.
        complete = {
            recipe: {n: b for n, b in rounds.items() if len(b) == len(trained)}
            for recipe, rounds in by_recipe.items()
        }
        complete = {recipe: rounds for recipe, rounds in complete.items() if rounds}
        if not complete:
            continue
        summaries = {
            recipe: summarise(
                {n: list(b.values()) for n, b in rounds.items()}, before, before_generated
            )
            for recipe, rounds in complete.items()
        }
        table = rows(summaries)
        choices = []
        if len(trained) == len(parts):
            choices = chosen_by_fold(complete, before, before_generated, parts)
        document[data] = {
            "rows": table,
            "chosen": choices,
            "before": float(np.mean(list(before[BEFORE].values()))),
            "copied": float(np.mean(list(before[COPY].values()))),
        }
        folds = ""
        if choices:
            folds = (
                "Recipe with the largest gain within the training videos of each fold, if it loses "
                f"at most {MAX_FORGOTTEN} on generated clips: "
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
    parser.add_argument("--rounds", type=int, help="default: one per seed")
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
