"""Test whether fine-tuning helps on unseen videos: ``make proof``, ``python -m benchmarks.proof``.

Fine-tunes nano with ``configs/adapt.yaml`` in three folds over nine DAVIS sequences (``--davis``):
six sequences for training, the other three for testing. Every sequence is tested once for each of
three seeds. The last checkpoint is used, so nothing is selected on test videos. Forgetting is
measured on generated clips. ``--recipes`` trains each fold with another recipe of
``benchmarks.recipes``, such as the one that was best within the training videos of the fold.

Writes ``proof.{json,md,png}`` to ``--out``. Finished training runs are stored in ``--work``; repeat
an interrupted command to resume it. Takes about 25 minutes on a CPU core.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.adaptation import (
    AFTER,
    BEFORE,
    BEFORE_ZEROED,
    COPY,
    FOLDS,
    GENERATED_FRAMES,
    GENERATED_SEED,
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
from benchmarks.measure import machine, machine_line, use_threads, write
from benchmarks.recipes import RECIPES, slug
from sam2kit.evaluation.plots import paired_chart
from sam2kit.evaluation.statistics import (
    by_video,
    difference_summary,
    motion_halves,
    power_text,
    seed_summary,
)
from sam2kit.viz.plots import save_figure
from sam2kit.viz.tables import markdown_table

SEEDS = (1, 2, 3)
ADAPT = next(iter(RECIPES))
# In these, the recipe "base", from which most others differ, differs from configs/adapt.yaml.
BASE = ("dataset.replay=0.5", "trainer.max_epochs=3")


def plan(
    davis: Path,
    names: Sequence[str],
    seeds: Sequence[int],
    recipes: Sequence[str] = (ADAPT,) * FOLDS,
) -> list[Job]:
    """Return one job per seed and fold.

    Args:
        davis: directory in DAVIS layout.
        names: its sequences.
        seeds: random seeds.
        recipes: the recipe of each fold, a name in :data:`benchmarks.recipes.RECIPES`.
    """
    parts = blocks(names)
    return [
        Job(
            f"fold{k + 1}-seed{seed}" + ("" if recipe == ADAPT else f"-{slug(recipe)}"),
            davis,
            tuple(name for other in parts if other != test for name in other),
            test,
            seed,
            () if recipe == ADAPT else changes(recipe),
        )
        for seed in seeds
        for k, (test, recipe) in enumerate(zip(parts, recipes, strict=True))
    ]


def changes(recipe: str) -> tuple[str, ...]:
    """Return what a recipe changes in ``configs/adapt.yaml``."""
    share = RECIPES[recipe].start_share or "null"
    base = () if recipe.startswith(ADAPT) else BASE
    return (*base, *RECIPES[recipe].changes, f"trainer.average_with_start={share}")


def summarise(
    results: Mapping[int, Sequence[Mapping[str, Any]]], before: Scores, before_generated: Scores
) -> dict[str, Any]:
    """Summarise the training runs.

    Args:
        results: results of the folds by seed.
        before, before_generated: scores of the starting model and the copied mask.
    """
    everything = [r for of_seed in results.values() for r in of_seed]
    after, zeroed = (averages(everything, "videos", t) for t in (AFTER, ZEROED))
    by_seed = {seed: averages(r, "videos", AFTER) for seed, r in results.items()}
    generated = {
        seed: differences(averages(r, "generated", AFTER), before_generated[BEFORE])
        for seed, r in results.items()
    }
    scores = {AFTER: after, **{t: before[t] for t in (BEFORE, COPY)}, ZEROED: zeroed}
    gains = {s: differences(x, before[BEFORE]) for s, x in by_seed.items()}
    spreads = [difference_summary(by_video(x))["spread"] for x in gains.values()]
    return {
        "gain": seed_summary(gains),
        "spread of one seed": float(np.sqrt(np.mean(np.square(spreads)))),
        "over the copied mask": difference_summary(by_video(differences(after, before[COPY]))),
        "memory after": difference_summary(by_video(differences(after, zeroed))),
        "memory before": difference_summary(
            by_video(differences(before[BEFORE], before[BEFORE_ZEROED]))
        ),
        "generated": seed_summary(generated),
        "motion": motion_halves(scores),
        "videos": {
            video if o == "1" else f"{video}, object {o}": {
                "before": before[BEFORE][video, o],
                "after": [x[video, o] for x in by_seed.values()],
                "after, memory zeroed": zeroed[video, o],
                "first mask copied": before[COPY][video, o],
            }
            for video, o in sorted(after)
        },
    }


def page(
    summary: Mapping[str, Any],
    sizes: Sizes,
    minutes: float,
    recipes: Sequence[str] = (ADAPT,) * FOLDS,
) -> str:
    """Return the results as Markdown."""
    which = "`configs/adapt.yaml`" if set(recipes) == {ADAPT} else f"recipes {'; '.join(recipes)}"
    gain, generated = summary["gain"], summary["generated"]
    seeds = list(gain["seeds"])
    videos = [
        {
            "sequence": video,
            "before": v["before"],
            **{f"seed {s}": x for s, x in zip(seeds, v["after"], strict=True)},
            "gain": f"{sum(v['after']) / len(v['after']) - v['before']:+.3f}",
            "after, memory zeroed": v["after, memory zeroed"],
            "first mask copied": v["first mask copied"],
        }
        for video, v in summary["videos"].items()
    ]
    halves = [
        {
            "objects": half["half"],
            "number": half["objects"],
            **half["scores"],
            "gain": f"{half['differences'][BEFORE]['mean']:+.3f}",
        }
        for half in summary["motion"]
    ]
    spread = gain["seed_spread"]
    return (
        "# Does fine-tuning help on unseen videos?\n\n"
        f"Nano, {which}, three folds over {gain['videos']} sequences of DAVIS: six "
        f"train, the other three test; {len(seeds)} seeds. J&F over up to {sizes.frames} frames, "
        "prompted by the mask on the first frame. Seeds are averaged within each video; 95% "
        "intervals over videos. `make proof`\n\n"
        f"**Gain in J&F: {interval(gain)}**, p = {gain['p']:.3f} (sign-flip test). Gain of each "
        f"seed: {', '.join(f'{x:+.3f}' for x in gain['seeds'].values())}"
        + (f"; standard deviation between seeds {spread:.3f}" if spread is not None else "")
        + f", between videos {gain['spread']:.3f} ({summary['spread of one seed']:.3f} with one "
        "seed). "
        f"{power_text(gain['spread'], gain['videos'])}\n\n"
        f"Change on {generated['videos']} generated clips (`valdataset=synthetic`, seed "
        f"{GENERATED_SEED}, {GENERATED_FRAMES} frames): {interval(generated)}; negative is "
        "forgetting.\n\n"
        "Memory: without its memory the trained model loses "
        f"{summary['memory after']['mean']:.3f}, and the starting model "
        f"{summary['memory before']['mean']:.3f}. Gain over the copied "
        f"first mask: {interval(summary['over the copied mask'])}.\n\n"
        f"![J&F of each sequence before and after](proof.png)\n\n{markdown_table(videos)}\n\n"
        "The half of the objects that the copied mask loses most, and the other half:\n\n"
        f"{markdown_table(halves)}\n\n"
        f"All training runs and scores took {minutes:.0f} minutes.\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argument_parser(__doc__, "outputs/proof/work", Path("outputs/proof"), SEEDS)
    parser.add_argument("--generated", type=int, default=GENERATED_VIDEOS)
    parser.add_argument(
        "--recipes", nargs=FOLDS, choices=RECIPES, default=[ADAPT] * FOLDS, help="one per fold"
    )
    arguments = parser.parse_args(argv)
    use_threads(arguments.threads)
    sizes = Sizes(arguments.steps, arguments.frames, arguments.generated)
    try:
        names = sequences(arguments.davis)
    except MissingDataError as error:
        print(error, file=sys.stderr)
        return 2
    jobs = plan(arguments.davis, names, arguments.seeds, arguments.recipes)
    print(
        f"{len(jobs)} training runs on {arguments.davis}: about {2 * len(jobs)} minutes on an idle "
        f"CPU core. Finished ones are kept in {arguments.work}; repeat the command to resume.",
        file=sys.stderr,
        flush=True,
    )
    begin = time.perf_counter()
    config = job_config(jobs[0], arguments.work, sizes)
    work = weights_folder(config, arguments.work)
    before, before_generated = baselines(arguments.davis, work, sizes, config)
    done = run_jobs(jobs, work, sizes)
    by_seed: dict[int, list[dict[str, Any]]] = {}
    for job in jobs:
        by_seed.setdefault(job.seed, []).append(done[job.name])
    summary = summarise(by_seed, before, before_generated)
    seconds = sum(sum(r["seconds"].values()) for r in done.values())
    minutes = max(seconds, time.perf_counter() - begin) / 60
    stem = arguments.out / "proof"
    arguments.out.mkdir(parents=True, exist_ok=True)
    pairs = {video: (v["before"], v["after"]) for video, v in summary["videos"].items()}
    save_figure(paired_chart(pairs, ("before training", "after training, 3 seeds")), stem)
    about = {"machine": machine(), "minutes": round(minutes, 1), "recipes": arguments.recipes}
    text = (
        page(summary, sizes, minutes, arguments.recipes) + f"\n{machine_line(about['machine'])}\n"
    )
    write(stem, about | summary, text)
    print(f"{text}\nwrote {stem}.md", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
