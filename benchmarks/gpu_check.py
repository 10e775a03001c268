"""Check sam2kit on a GPU in under ten minutes, without network: ``make gpu-check``.

Each check compares the GPU with the CPU, with upstream, or with a prediction, and prints a row. On
a GPU the table is also written to ``benchmarks/results/gpu_NAME.md``, with the card, its driver and
the versions. Without a GPU the same checks run on the CPU at toy sizes, which shows only that they
work. The exit code is 1 if a check fails.
"""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from benchmarks.measure import (
    MIB,
    RESULTS,
    Options,
    crowded_videos,
    in_turns,
    machine,
    machine_line,
    use_threads,
    write_davis,
)
from benchmarks.steps import EXACT, FAST, KitStep, OfficialStep, changed, clip_config, difference
from benchmarks.video_tracking import Track, by_kit, by_predictor
from sam2kit.config.loading import load_config
from sam2kit.config.schema import Config
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.models.sam2 import SAM2Model
from sam2kit.training.memory_profile import peak_bytes
from sam2kit.training.planner import plan_training
from sam2kit.training.trainer import fit
from sam2kit.viz.tables import markdown_table

SAMPLES = Path(__file__).parent.parent / "data_samples"
CPU = "cpu"


@dataclass(frozen=True)
class Row:
    """The result of a check.

    Attributes:
        what: what was checked.
        result: the figures, as text.
        expected: what they must be; empty if the row only reports.
        holds: whether they are.
    """

    what: str
    result: str
    expected: str = ""
    holds: bool = True


@dataclass(frozen=True)
class Setting:
    """The device of the checks, and the sizes that are measured on it."""

    device: str

    @property
    def on_gpu(self) -> bool:
        return self.device != CPU

    @property
    def tiny(self) -> Options:
        return Options.tiny(device=self.device)

    def size(self, model: str, image_size: int, frames: int, video_frames: int = 20) -> Options:
        """Return these sizes on a GPU, and toy sizes on the CPU."""
        if not self.on_gpu:
            return self.tiny
        return Options(model, image_size, frames, video_frames, repeats=3, device=self.device)


Check = Callable[[Setting], Iterator[Row]]


def attention(setting: Setting) -> Iterator[Row]:
    """Check fused attention with one head of 256 channels and queries shared by the objects."""
    generator = torch.Generator().manual_seed(0)
    positions, keys = (1024, 7200) if setting.on_gpu else (64, 500)
    q, k, v = (
        torch.randn(n, 1, count, 256, generator=generator)
        for n, count in ((1, positions), (3, keys), (3, keys))
    )
    exact = F.scaled_dot_product_attention(q.expand(3, -1, -1, -1).double(), k.double(), v.double())
    for dtype, bound in ((torch.float32, 1e-3), (torch.bfloat16, 2e-2)):
        here = [x.to(setting.device, dtype) for x in (q.expand(3, -1, -1, -1), k, v)]
        run = partial(F.scaled_dot_product_attention, *here)
        error = _relative(run().cpu(), exact)
        ms = 1000 * in_turns({"": run}, 5, setting.device)[""]
        what = f"attention, 256 channels, {keys} keys, 3 objects, {str(dtype)[6:]}"
        yield Row(what, f"error {error:.1e}, {ms:.2f} ms", f"at most {bound:.0e}", error <= bound)


def gradients(setting: Setting) -> Iterator[Row]:
    """Compare the gradients of a step with those of the CPU, and of recomputed dropout."""
    options = Options.tiny(device=CPU)
    for name, overrides in {
        "mask prompts": [],
        "point prompts with corrections": [
            *("dataset.prompt_types=[point]", "dataset.correction_clicks=2"),
        ],
    }.items():
        with clip_config(options, 3, [*EXACT, *overrides]) as config:
            sides = [KitStep(config, device) for device in (CPU, setting.device)]
            for side in sides:
                side()
            error = difference(sides[1].gradient().cpu(), sides[0].gradient())
        yield Row(
            f"gradient, {name}, against the CPU", f"{error:.1e}", "at most 1e-3", error < 1e-3
        )
    dropout = ["model.memory_dropout=0.1", "trainer.precision=32-true"]
    with clip_config(options, 3, dropout) as config:
        saved = KitStep(config, setting.device)
        recomputed = KitStep(
            changed(config, [*dropout, "model.activation_checkpointing=true"]), setting.device
        )
        for side in (saved, recomputed):
            side()
        error = difference(recomputed.gradient(), saved.gradient())
    what = "gradient with dropout, activation checkpointing against none"
    yield Row(what, f"{error:.1e}", "at most 1e-4", error < 1e-4)


def waits(setting: Setting) -> Iterator[Row]:
    """Count how often a training step waits for the GPU."""
    corrections = ["dataset.prompt_types=[point]", "dataset.correction_clicks=7"]
    for name, overrides, bound in (("mask prompts", [], 5), ("corrections", corrections, 15)):
        what = f"synchronizations of a forward and backward pass, {name}"
        if not setting.on_gpu:
            yield Row(what, "counted on a GPU only")
            continue
        with clip_config(Options.tiny(device=setting.device), 3, [*FAST, *overrides]) as config:
            step = KitStep(config, setting.device)
            step()
            torch.cuda.set_sync_debug_mode("warn")
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                step()
            torch.cuda.set_sync_debug_mode("default")
        count = sum("synchronizing" in str(w.message) for w in caught)
        yield Row(what, str(count), f"at most {bound}", count <= bound)


def training_steps(setting: Setting) -> Iterator[Row]:
    """Measure steps against ``SAM2Train`` in bf16, the largest at 1024 px with 8 frames."""
    for model, image_size, frames in (("t", 512, 5), ("b+", 1024, 8)):
        options = setting.size(model, image_size, frames)
        with clip_config(options, 3, FAST) as config:
            kit = KitStep(config, options.device)
            official = OfficialStep(kit, mixed=True)
            sides = {"kit": kit, "official": official}
            for side in sides.values():
                side()
            peaks = {name: peak_bytes(side, options.device) for name, side in sides.items()}
            times = in_turns(sides, options.repeats, options.device)
        what = f"training step, {options.model} at {options.image_size}, T={options.frames}, "
        result = ", ".join(
            f"{name} {times[name]:.3g} s and {peaks[name] / MIB:,.0f} MiB" for name in sides
        )
        faster = times["kit"] < times["official"] or not setting.on_gpu
        yield Row(f"{what}3 objects", result, "faster than SAM2Train", faster)
        if not setting.on_gpu:
            return


@dataclass(frozen=True)
class TrackingCase:
    """A model, and a video with three objects."""

    options: Options
    config: Config
    model: SAM2Model
    video: VideoDataset
    folder: Path


@contextmanager
def tracking_case(setting: Setting, video_frames: int = 20) -> Iterator[TrackingCase]:
    """Create a case; ``video_frames`` is the length of the video on a GPU, 10 on the CPU."""
    options = replace(
        setting.size("t", 512, 5), video_frames=video_frames if setting.on_gpu else 10
    )
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        davis = write_davis(crowded_videos(1, options.video_frames, 3), folder / "davis")
        sizes = [f"model.size={options.model}", f"dataset.image_size={options.image_size}"]
        config = load_config(None, [*sizes, "model.object_score_bias=5", "features.cache=off"])
        model = create_sam2_model(config).to(options.device)
        yield TrackingCase(options, config, model, VideoDataset(davis), folder)


def tracking(setting: Setting) -> Iterator[Row]:
    """Compare tracking with ``SAM2VideoPredictor`` in masks and time, also compiled upstream."""
    with tracking_case(setting) as case:
        options, device = case.options, setting.device
        predictor = partial(by_predictor, case.config, case.model, case.video, case.folder, device)
        for mixed, bound in ((False, 0.999), (True, 0.98)):
            runs = {
                "kit": by_kit(case.model, case.video, mixed),
                "predictor": predictor(mixed),
            }
            masks = {name: run() for name, run in runs.items()}
            equal = float((masks["kit"] == masks["predictor"]).mean())
            times = in_turns(runs, options.repeats, device)
            what = f"tracking {options.video_frames} frames, 3 objects, {'bf16' * mixed or 'fp32'}"
            result = f"{equal:.3%} of the pixels equal"
            yield Row(f"{what}, masks", result, f"at least {bound:.1%}", equal >= bound)
            result = ", ".join(f"{name} {value:.3g} s" for name, value in times.items())
            yield Row(f"{what}, time against SAM2VideoPredictor", result)
        what = "tracking, time against the predictor's vos_optimized form"
        if not setting.on_gpu:
            yield Row(what, "measured on a GPU only")
            return
        optimized = predictor(True, True)
        optimized()  # compiles
        seconds = in_turns({"": optimized}, options.repeats, device)[""]
        yield Row(what, f"kit {times['kit']:.3g} s, compiled predictor {seconds:.3g} s")


def lookahead(setting: Setting) -> Iterator[Row]:
    """Check that frames encoded and resized ahead on the GPU have the same masks."""
    forms = {"lookahead=4": {"lookahead": 4}, "resize_on_device": {"resize_on_device": True}}
    with tracking_case(setting) as case:
        runs = {name: by_kit(case.model, case.video, True, **form) for name, form in forms.items()}
        yield from _compare_forms(case, runs)


def graphs(setting: Setting) -> Iterator[Row]:
    """Check that a frame that is replayed as CUDA graphs has the same masks.

    This is the last check: if it damages the state of the GPU, the others are done.
    """
    compiled = {"mode": "reduce-overhead"} if setting.on_gpu else {"backend": "eager"}
    with tracking_case(setting, 60) as case:  # compiled from the 17th frame on
        run = by_kit(case.model, case.video, True, compiled)
        yield from _compare_forms(case, {f"compile({_as_text(compiled)})": run})


def _as_text(arguments: Mapping[str, str]) -> str:
    return ", ".join(f"{name}={value}" for name, value in arguments.items())


def _compare_forms(case: TrackingCase, forms: Mapping[str, Track]) -> Iterator[Row]:
    """Compare the masks and the time of forms of tracking in bf16 with the plain one."""
    plain = by_kit(case.model, case.video, True)
    expected = plain()
    for name, run in forms.items():
        run()  # compiles
        equal = float((run() == expected).mean())
        times = in_turns({"plain": plain, name: run}, case.options.repeats, case.options.device)
        result = f"{equal:.3%} of the pixels equal"
        yield Row(f"tracking in bf16, {name}, masks", result, "at least 98.0%", equal >= 0.98)
        result = ", ".join(f"{side} {value:.3g} s" for side, value in times.items())
        yield Row(f"tracking in bf16, {name}, time", result)


def planning(setting: Setting) -> Iterator[Row]:
    """Compare the planner's estimate of a step with the measured memory."""
    options = setting.size("t", 512, 8)
    overrides = [*FAST, f"trainer.accelerator={'gpu' if setting.on_gpu else 'cpu'}"]
    with clip_config(options, 3, overrides) as config:
        plan = plan_training(config)
        step = KitStep(config, options.device)
        step()
        measured = peak_bytes(step, options.device)
    ratio = plan.memory.step / measured
    result = f"planned {plan.memory.step / MIB:,.0f}, measured {measured / MIB:,.0f} MiB"
    yield Row("memory of a step, sam2kit plan", result, "within 25%", 0.75 < ratio < 1.25)


def short_training(setting: Setting) -> Iterator[Row]:
    """Train the nano briefly on the GPU and on the CPU, and compare the validation scores."""
    steps = 60 if setting.on_gpu else 8
    scores: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as name:
        for accelerator in dict.fromkeys(["cpu", "gpu" if setting.on_gpu else "cpu"]):
            for seed in (0, 1):
                config = load_config(
                    None,
                    [
                        *("model.size=nano", "model.checkpoint=nano", "features.cache=off"),
                        *(f"dataset.data_path={SAMPLES}", f"valdataset.data_path={SAMPLES}"),
                        *("dataset.split=train", "valdataset.split=val"),
                        *("dataset.image_size=192", "dataset.num_workers=0", f"seed={seed}"),
                        *(f"trainer.max_steps={steps}", "trainer.max_epochs=100"),
                        *("model.reset_modules=[memory_attention]", "trainer.audit=off"),
                        *(f"trainer.accelerator={accelerator}", "trainer.limit_val_batches=4"),
                    ],
                )
                result = fit(config, Path(name) / f"{accelerator}{seed}")
                scores.setdefault(accelerator, []).append(result.metrics["val_iou"])
    means = {name: float(np.mean(values)) for name, values in scores.items()}
    spread = max(abs(scores["cpu"][0] - scores["cpu"][1]), 0.02)
    result = ", ".join(f"{name} {value:.3f}" for name, value in means.items())
    distance = abs(means.get("gpu", means["cpu"]) - means["cpu"])
    what = f"IoU after {steps} steps of the nano"
    yield Row(what, result, f"within {2 * spread:.3f}", distance <= 2 * spread)


CHECKS: dict[str, Check] = {
    "attention": attention,
    "gradients": gradients,
    "waits": waits,
    "tracking": tracking,
    "lookahead": lookahead,
    "steps": training_steps,
    "plan": planning,
    "training": short_training,
    "graphs": graphs,
}


def _relative(value: Tensor, exact: Tensor) -> float:
    return float((value.double() - exact).norm() / exact.norm())


def driver() -> str:
    """Return the version of the GPU's driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True).stdout.splitlines()[0]
    except (OSError, IndexError):
        return "unknown"


def run(names: Sequence[str], setting: Setting) -> list[Row]:
    """Run checks; one that raises an error fails, and the others still run."""
    rows = []
    for name in names:
        begin = time.perf_counter()
        try:
            for row in CHECKS[name](setting):
                rows.append(row)
                print(f"{'ok  ' if row.holds else 'FAIL'} {row.what}: {row.result}", flush=True)
        except Exception as error:
            traceback.print_exc()
            rows.append(Row(name, f"{type(error).__name__}: {error}"[:200], "no error", False))
        rows.append(Row(f"time of {name}", f"{time.perf_counter() - begin:.0f} s"))
    return rows


def document(rows: Sequence[Row], setting: Setting) -> str:
    """Return the table as Markdown."""
    cells = [
        {
            "check": row.what,
            "result": row.result,
            "expected": row.expected or "–",
            "": ("yes" if row.holds else "no") if row.expected else "",
        }
        for row in rows
    ]
    properties = machine()
    if setting.on_gpu:
        free, total = torch.cuda.mem_get_info()
        properties |= {
            "driver": driver(),
            "cuda": torch.version.cuda,
            "memory": f"{total / 2**30:.0f} GiB, {free / 2**30:.0f} free at the end",
        }
    failed = sum(not row.holds for row in rows)
    summary = f"{failed} checks failed" if failed else "All checks passed"
    return (
        f"# Checks on {properties.get('gpu', 'the CPU, at toy sizes')}\n\n{summary}. "
        f"`make gpu-check`\n\n{markdown_table(cells)}\n\n{machine_line(properties)}\n"
    )


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checks", nargs="*", metavar="CHECK", help=f"from {', '.join(CHECKS)}")
    parser.add_argument("--device", choices=["cpu", "cuda"], help="default: cuda if there is one")
    parser.add_argument("--out", type=Path, help="folder (default on a GPU: benchmarks/results)")
    arguments = parser.parse_args(argv)
    if unknown := [name for name in arguments.checks if name not in CHECKS]:
        parser.error(f"unknown checks {', '.join(unknown)}; choose from {', '.join(CHECKS)}")
    setting = Setting(arguments.device or ("cuda" if torch.cuda.is_available() else CPU))
    use_threads(1)
    rows = run(arguments.checks or list(CHECKS), setting)
    text = document(rows, setting)
    print(f"\n{text}")
    out = arguments.out or (RESULTS if setting.on_gpu else None)
    if out is not None:
        name = torch.cuda.get_device_name() if setting.on_gpu else CPU
        file = out / f"gpu_{re.sub(r'[^a-z0-9]+', '_', name.lower()).strip('_')}.md"
        out.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(f"Wrote {file}")
    return int(any(not row.holds for row in rows))


if __name__ == "__main__":
    sys.exit(main())
