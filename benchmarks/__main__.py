"""The whole suite as one table and picture: ``python -m benchmarks [ROW ...]``.

Writes ``suite.json``, ``suite.md`` and ``suite.png`` to ``--out``. Each row runs in a process of
its own, and is written as soon as it is done: a suite that was interrupted goes on where it was.
About half an hour on a core that has nothing else to do; ``--quick`` shows in minutes that
everything runs, on sizes that mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from benchmarks.measure import (
    RESULTS,
    Finding,
    Options,
    as_documents,
    machine,
    machine_line,
    ratio_chart,
    table,
    use_threads,
    write,
)

ROOT = Path(__file__).parent.parent


def main(argv: Sequence[str] | None = None) -> int:
    """Run the rows that are not there yet; 1 if one of them failed."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="which rows; by default all")
    parser.add_argument("--out", type=Path, help="folder; by default benchmarks/results")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, help="runs of each side; the median counts (5)")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="toy sizes")
    parser.add_argument("--again", action="store_true", help="measure rows that are there, too")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # a row's own process
    given = parser.parse_args(argv)
    changes = {"threads": given.threads, "device": given.device}
    if given.repeats:
        changes["repeats"] = given.repeats
    options = Options.tiny(**changes) if given.quick else Options(**changes)
    if given.into:
        return run_row(given.rows[0], options, given.into)
    from benchmarks.rows import ROWS

    if unknown := [name for name in given.rows if name not in ROWS]:
        parser.error(f"no rows {', '.join(unknown)}; there are {', '.join(ROWS)}")
    if given.quick and given.out is None:
        parser.error("--quick needs --out: its figures do not belong among the results")
    return run_suite(given.rows or list(ROWS), list(ROWS), options, given)


def run_row(name: str, options: Options, into: Path) -> int:
    """One row, in this process."""
    from benchmarks.rows import ROWS

    use_threads(options.threads)
    begin = time.perf_counter()
    findings = ROWS[name](options)
    row = {
        "options": asdict(options),
        "machine": machine(),
        "took": round(time.perf_counter() - begin, 1),
        "findings": as_documents(findings),
    }
    into.write_text(json.dumps(row))
    return 0


def run_suite(
    names: Sequence[str], order: Sequence[str], options: Options, given: argparse.Namespace
) -> int:
    stem = (given.out or RESULTS) / "suite"
    rows: dict[str, Any] = {}
    if stem.with_suffix(".json").exists():
        rows = json.loads(stem.with_suffix(".json").read_text())["rows"]
    failed = []
    for number, name in enumerate(names, start=1):
        there = rows.get(name, {}).get("options") == asdict(options)
        if there and not given.again:
            print(f"[{number}/{len(names)}] {name}: there already", file=sys.stderr)
            continue
        print(f"[{number}/{len(names)}] {name}", file=sys.stderr, flush=True)
        try:
            rows[name] = _in_own_process(name, options)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name} failed:\n{error.stderr[-3000:]}", file=sys.stderr)
            continue
        except KeyboardInterrupt:
            print("interrupted; the same command goes on from here", file=sys.stderr)
            return 130
        print(f"    took {rows[name]['took']} s", file=sys.stderr)
        rows = {key: rows[key] for key in order if key in rows}
        save(stem, rows)
    if rows:
        print(save(stem, rows))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _in_own_process(name: str, options: Options) -> dict[str, Any]:
    with TemporaryDirectory() as folder:
        into = Path(folder) / "row.json"
        command = [sys.executable, "-m", "benchmarks", name, "--into", str(into)]
        command += ["--threads", str(options.threads), "--repeats", str(options.repeats)]
        command += ["--device", options.device, *(["--quick"] if options.quick else [])]
        subprocess.run(
            command,
            check=True,
            cwd=ROOT,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            env=os.environ | {"OMP_NUM_THREADS": str(options.threads), "SAM2KIT_CACHE": folder},
        )
        return json.loads(into.read_text())


def save(stem: Path, rows: dict[str, Any]) -> str:
    """Write table, document and picture; the table."""
    findings = [Finding(**f) for row in rows.values() for f in row["findings"]]
    machines = list(dict.fromkeys(machine_line(_still(row)) for row in rows.values()))
    loads = sorted({row["machine"]["load"] for row in rows.values()})
    sizes = next(iter(rows.values()))["options"]
    head = (
        f"# The suite\n\nHiera-{sizes['model']} at {sizes['image_size']} px, "
        f"{sizes['frames']} frames, {sizes['device']}, threads: {sizes['threads']}. Both sides in "
        f"one process, in turns; medians of {sizes['repeats']}. Steps: random weights, the same on "
        "both sides, masks as prompts, the optimizer left out. `python -m benchmarks`\n\n"
    )
    foot = "".join(f"\n{line}\n" for line in machines) + (
        f"\nLoad of the machine at the end of each row: {loads[0]} to {loads[-1]}.\n"
    )
    text = head + table(findings) + foot
    write(stem, {"rows": rows}, text)
    if (figure := ratio_chart(findings)) is not None:
        figure.savefig(stem.with_suffix(".png"))
    return text


def _still(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row["machine"].items() if key != "load"}


if __name__ == "__main__":
    raise SystemExit(main())
