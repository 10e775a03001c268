"""Compare ``sam2kit plan`` with measurements: ``python -m benchmarks.plan [--quick]``.

Six configurations are measured. Memory excludes weights and optimizer, because only the rest is
estimated. Writes ``plan.{json,md}``. Takes ten minutes on one CPU core.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from benchmarks.measure import (
    MIB,
    RESULTS,
    Options,
    in_turns,
    machine,
    machine_line,
    peak_bytes,
    use_threads,
    write,
)
from benchmarks.steps import EVERYTHING, EXACT, FAST, KitStep, clip_config
from sam2kit.training.optim import build_optimizer
from sam2kit.training.planner import plan_training
from sam2kit.viz.tables import markdown_table

MEMORY, TIME = 0.2, 0.4
"""Maximum relative error of the plan."""
SHIPPED = ["trainer.precision=32-true"]
CHECKPOINTED = [*EXACT, "model.activation_checkpointing=true"]
UNCACHED = [*FAST, "features.cache=off"]
CASES: list[tuple[str, str, int, int, int, list[str]]] = [
    ("fast", "t", 512, 5, 3, FAST),
    ("exact", "t", 512, 8, 1, EXACT),
    ("with dropout", "t", 256, 8, 3, SHIPPED),
    ("activation checkpointing", "t", 256, 12, 2, CHECKPOINTED),
    ("all weights", "nano", 128, 8, 2, [*EXACT, *EVERYTHING]),
    ("no cache", "s", 256, 6, 2, UNCACHED),
]


def run_case(options: Options, objects: int, overrides: Sequence[str]) -> dict[str, Any]:
    with clip_config(options, objects, overrides) as config:
        begin = time.perf_counter()
        plan = plan_training(config)
        planning_seconds = time.perf_counter() - begin
        step = KitStep(config, options.device)
        step()
        memory = peak_bytes(step, options.device)
        optimizer = build_optimizer(step.module.model, config.optimizer)
        optimizer.step()  # creates the optimizer's state
        sides = {"step": step, "optimizer": optimizer.step}
        measured = sum(in_turns(sides, options.repeats, options.device).values())
    return {
        "planned MiB": round(plan.memory.step / MIB, 1),
        "measured MiB": round(memory / MIB, 1),
        "memory": plan.memory.step / memory,
        "planned s": plan.seconds,
        "measured s": measured,
        "time": plan.seconds / measured,
        "planning, s": round(planning_seconds, 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="toy sizes, to check that it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick and arguments.out == RESULTS:
        parser.error("--quick requires --out, so that toy results do not replace real ones")
    use_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name, model, side, frames, objects, overrides in CASES:
        options = Options(model, side, frames, repeats=3, device=device)
        if arguments.quick:
            options = Options.tiny(frames=6, device=device)
        shape = {"model": options.model, "px": options.image_size, "frames": options.frames}
        row = {"case": name, **shape, "objects": objects} | run_case(options, objects, overrides)
        rows.append(row)
        print(row, flush=True)
    within_limits = all(abs(r["memory"] - 1) <= MEMORY and abs(r["time"] - 1) <= TIME for r in rows)
    machine_info = machine()
    table_rows = [
        {k: f"{v:.2f}x" if k in ("memory", "time") else v for k, v in row.items()} for row in rows
    ]
    text = (
        "# Planned and measured steps\n\nThe estimates of `sam2kit plan`, and what was measured. "
        f"Target: an error of at most {MEMORY:.0%} in memory and {TIME:.0%} in time; "
        f"{'reached by all' if within_limits else '**not reached by all**'}. "
        f"`python -m benchmarks.plan`\n\n{markdown_table(table_rows)}\n\n"
        f"{machine_line(machine_info)}\n"
    )
    write(arguments.out / "plan", {"machine": machine_info, "rows": rows}, text)
    print(text)


if __name__ == "__main__":
    main()
