"""What ``sam2kit plan`` says against what is measured: ``python -m benchmarks.plan [--quick]``.

Six configurations. Memory is that of a step beyond weights and optimizer, the part that is planned
rather than known. Writes ``plan.{json,md}``. Ten minutes on a CPU core.
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
"""How far off the plan may be."""
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


def case(options: Options, objects: int, overrides: Sequence[str]) -> dict[str, Any]:
    with clip_config(options, objects, overrides) as config:
        begin = time.perf_counter()
        found = plan_training(config)
        took = time.perf_counter() - begin
        step = KitStep(config, options.device)
        step()
        memory = peak_bytes(step, options.device)
        optimizer = build_optimizer(step.module.model, config.optimizer)
        optimizer.step()  # makes its states
        sides = {"step": step, "optimizer": optimizer.step}
        measured = sum(in_turns(sides, options.repeats, options.device).values())
    return {
        "planned MiB": round(found.memory.step / MIB, 1),
        "measured MiB": round(memory / MIB, 1),
        "memory": found.memory.step / memory,
        "planned s": found.seconds,
        "measured s": measured,
        "time": found.seconds / measured,
        "planning, s": round(took, 1),
    }


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--quick", action="store_true", help="toy sizes: whether it runs")
    arguments = parser.parse_args(argv)
    if arguments.quick and arguments.out == RESULTS:
        parser.error("--quick needs --out: toy figures do not belong among the results")
    use_threads(1)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    rows = []
    for name, model, side, frames, objects, overrides in CASES:
        options = Options(model, side, frames, repeats=3, device=device)
        if arguments.quick:
            options = Options.tiny(frames=6, device=device)
        shape = {"model": options.model, "px": options.image_size, "frames": options.frames}
        row = {"case": name, **shape, "objects": objects} | case(options, objects, overrides)
        rows.append(row)
        print(row, flush=True)
    good = all(abs(r["memory"] - 1) <= MEMORY and abs(r["time"] - 1) <= TIME for r in rows)
    where = machine()
    shown = [
        {k: f"{v:.2f}x" if k in ("memory", "time") else v for k, v in row.items()} for row in rows
    ]
    text = (
        "# The plan of a step against the step\n\nWhat `sam2kit plan` says, and what was measured; "
        f"to be off by at most {MEMORY:.0%} in memory and {TIME:.0%} in time: "
        f"{'all are' if good else '**not all are**'}. `python -m benchmarks.plan`\n\n"
        f"{markdown_table(shown)}\n\n{machine_line(where)}\n"
    )
    write(arguments.out / "plan", {"machine": where, "rows": rows}, text)
    print(text)


if __name__ == "__main__":
    main()
