"""Run all benchmarks and write a table and a figure: ``python -m benchmarks [ROW ...]``.

Writes ``suite.json``, ``suite.md`` and ``suite.png`` to ``--out``. Each row runs in a separate
process and is saved when it is done, so that an interrupted suite can be resumed. The suite takes
about half an hour on an idle core. ``--quick`` uses toy sizes to check within minutes that
everything runs; its results are not meaningful.
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
    """Run the rows without results.

    Returns:
        The exit code: 1 if a row failed, 130 if the suite was interrupted.
    """
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description=(__doc__ or "").splitlines()[0]
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="rows to run (default: all)")
    parser.add_argument("--out", type=Path, help="folder (default: benchmarks/results)")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--repeats", type=int, help="runs per side, of which the median is taken")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument(
        "--quick", action="store_true", help="toy sizes, to check that everything runs"
    )
    parser.add_argument("--again", action="store_true", help="also measure rows that have results")
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)  # the process of one row
    arguments = parser.parse_args(argv)
    changes = {"threads": arguments.threads, "device": arguments.device}
    if arguments.repeats:
        changes["repeats"] = arguments.repeats
    options = Options.tiny(**changes) if arguments.quick else Options(**changes)
    if arguments.into:
        return run_row(arguments.rows[0], options, arguments.into)
    from benchmarks.rows import ROWS

    if unknown := [name for name in arguments.rows if name not in ROWS]:
        parser.error(f"unknown rows {', '.join(unknown)}; choose from {', '.join(ROWS)}")
    if arguments.quick and arguments.out is None:
        parser.error("--quick requires --out, so that toy results do not replace real ones")
    return run_suite(arguments.rows or list(ROWS), list(ROWS), options, arguments)


def run_row(name: str, options: Options, into: Path) -> int:
    """Run one row in this process and write its results to the file ``into``."""
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
    names: Sequence[str], order: Sequence[str], options: Options, arguments: argparse.Namespace
) -> int:
    """Run rows sequentially, each in a separate process; see :func:`main`."""
    stem = (arguments.out or RESULTS) / "suite"
    rows: dict[str, Any] = {}
    if stem.with_suffix(".json").exists():
        rows = json.loads(stem.with_suffix(".json").read_text())["rows"]
    failed = []
    for number, name in enumerate(names, start=1):
        # Results from other options are stale.
        is_measured = rows.get(name, {}).get("options") == asdict(options)
        if is_measured and not arguments.again:
            print(f"[{number}/{len(names)}] {name}: already measured", file=sys.stderr)
            continue
        print(f"[{number}/{len(names)}] {name}", file=sys.stderr, flush=True)
        try:
            rows[name] = _run_in_process(name, options)
        except subprocess.CalledProcessError as error:
            failed.append(name)
            print(f"{name} failed:\n{error.stderr[-3000:]}", file=sys.stderr)
            continue
        except KeyboardInterrupt:
            print("Interrupted; run the same command again to resume", file=sys.stderr)
            return 130
        print(f"    took {rows[name]['took']} s", file=sys.stderr)
        rows = {key: rows[key] for key in order if key in rows}
        save(stem, rows)
    if rows:
        print(save(stem, rows))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


def _run_in_process(name: str, options: Options) -> dict[str, Any]:
    """Run a row in a new process, so that rows do not affect each other's memory and caches."""
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
    """Write the results as JSON, Markdown and a figure, and return the Markdown text."""
    findings = [Finding(**f) for row in rows.values() for f in row["findings"]]
    # One line per machine: rows may have been measured on different ones.
    machines = list(dict.fromkeys(machine_line(_without_load(row)) for row in rows.values()))
    loads = sorted({row["machine"]["load"] for row in rows.values()})
    sizes = next(iter(rows.values()))["options"]
    repeats = " or ".join(map(str, sorted({row["options"]["repeats"] for row in rows.values()})))
    head = (
        f"# The suite\n\nHiera-{sizes['model']} at {sizes['image_size']} px, "
        f"{sizes['frames']} frames, {sizes['device']}, threads: {sizes['threads']}. Both sides in "
        f"one process, alternately; medians of {repeats} runs. Steps: the same random weights on "
        "both sides, mask prompts, without the optimizer. `python -m benchmarks`\n\n"
    )
    foot = "".join(f"\n{line}\n" for line in machines) + (
        f"\nLoad of the machine at the end of each row: {loads[0]} to {loads[-1]}.\n"
    )
    text = head + table(findings) + foot
    write(stem, {"rows": rows}, text)
    if (figure := ratio_chart(findings)) is not None:
        figure.savefig(stem.with_suffix(".png"))
    return text


def _without_load(row: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row["machine"].items() if key != "load"}


if __name__ == "__main__":
    raise SystemExit(main())
