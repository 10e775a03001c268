"""Make ``old_run.tar.xz`` and ``old_run.json``: a small run directory and its expected results.

Run as ``python tests/integration/make_old_run.py`` in the root of the repository. The archive
contains a working directory: ``start.pt`` (the nano weights with short mantissas, which compress
well), the lists of videos, and ``run/``, the output of ``fit``. The run was stopped within its
second epoch.
The JSON file contains the checksums of its weights, the scores of its evaluation, and the losses of
the same run without the stop.

With both files, tests check that runs of older versions still resume and evaluate. Make them again
only if a change to the run format ends this compatibility on purpose.
"""

from __future__ import annotations

import csv
import json
import os
import shutil
import socket
import tarfile
import zlib
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from sam2kit.config.loading import load_config
from sam2kit.evaluation.evaluate import evaluate_checkpoint
from sam2kit.models.checkpoints import create_sam2_model, load_run, save_weights
from sam2kit.training.trainer import fit

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
SAMPLES = ROOT / "tests" / "blobs"  # data_samples/ of the version that made the archive
ARCHIVE = HERE / "old_run.tar.xz"
EXPECTED = HERE / "old_run.json"
WORK = Path("/tmp/old_run")  # Lightning stores absolute paths, hence a neutral one
MANTISSA_BITS = 3
STOP, END = 3, 5  # optimizer steps of the archived and of the complete run; an epoch has two
SETTINGS = [
    *("model=nano", "model.checkpoint=start.pt"),
    "model.trainable_modules=[memory_encoder.pix_feat_proj]",
    *(
        "dataset=samples",
        "valdataset=samples",
        "dataset.split=train.txt",
        "valdataset.split=val.txt",
    ),
    *("dataset.image_size=64", "dataset.video_clip_length=3", "valdataset.video_clip_length=4"),
    *("dataset.batch_size=2", "dataset.num_workers=0", "optimizer.lr=1e-3"),
    *("scheduler.name=constant", "trainer=cpu", "trainer.log_every_n_steps=1"),
    "trainer.early_stopping_patience=9",
]
EVALUATION = ["evaluation.noise_levels=[0.1]", "evaluation.calibration_videos=1"]


def rows(run_dir: Path, first_step: int) -> list[dict[str, float]]:
    """Read the rows of ``metrics.csv`` with at least this step, without empty fields."""
    with (run_dir / "metrics.csv").open(newline="") as file:
        values = [{k: float(v) for k, v in row.items() if v} for row in csv.DictReader(file)]
    return [row for row in values if row["step"] >= first_step]


def checksums(checkpoint: Path) -> dict[str, str]:
    """Load a run's checkpoint and compute the CRC-32 of each tensor of its model."""
    state = load_run(checkpoint)[1].state_dict()
    return {name: f"{zlib.crc32(t.numpy().tobytes()):08x}" for name, t in sorted(state.items())}


def shorten(tensor: Tensor) -> Tensor:
    """Round mantissas to :data:`MANTISSA_BITS` bits."""
    mantissa, exponent = torch.frexp(tensor)
    steps = 2.0 ** (MANTISSA_BITS + 1)
    return torch.ldexp(torch.round(mantissa * steps) / steps, exponent)


def make() -> dict[str, Any]:
    """Fill the current directory and return the expected results."""
    Path("data_samples").symlink_to(SAMPLES)
    Path("train.txt").write_text("train_000\ntrain_001\ntrain_002\ntrain_003\n")
    Path("val.txt").write_text("val_000\nval_001\n")
    model = create_sam2_model(load_config(None, ["model=nano", "model.checkpoint=nano"]))
    model.load_state_dict({name: shorten(t) for name, t in model.state_dict().items()})
    save_weights(model, Path("start.pt"))
    fit(load_config(None, [*SETTINGS, f"trainer.max_steps={STOP}"]), Path("run"))
    fit(load_config(None, [*SETTINGS, f"trainer.max_steps={END}"]), Path("whole"))
    # One expected value serves for both checkpoints, so they must have the same weights.
    assert checksums(Path("run", "best.ckpt")) == checksums(Path("run", "last.ckpt"))
    scores = evaluate_checkpoint("run", EVALUATION, Path("evaluation")).scores
    return {
        "stopped_after": STOP,
        "whole_run": rows(Path("whole"), STOP),
        "scores": scores,
        "weights": checksums(Path("run", "last.ckpt")),
    }


def check_private(folder: Path, host: str) -> None:
    """Check that no file contains the host name or a path of this machine except :data:`WORK`."""
    for file in filter(Path.is_file, folder.rglob("*")):
        assert host not in file.name.split("."), f"{file} contains the host name"
        for name in (str(ROOT), str(Path.home())):
            assert name.encode() not in file.read_bytes(), f"{file} contains {name}"


def pack() -> None:
    """Write the archive from the current directory, without user names."""
    with tarfile.open(ARCHIVE, "w:xz", preset=9) as archive:
        for entry in ("start.pt", "train.txt", "val.txt", "run"):
            archive.add(entry, filter=without_user)


def without_user(info: tarfile.TarInfo) -> tarfile.TarInfo:
    """Remove the user from an archive entry."""
    info.uid = info.gid = 0
    info.uname = info.gname = ""
    return info


def main() -> None:
    """Make both files."""
    torch.set_num_threads(1)
    host = socket.gethostname()
    socket.gethostname = lambda: "host"  # TensorBoard writes it into its files and their names
    WORK.mkdir()
    os.chdir(WORK)
    try:
        os.environ["SAM2KIT_CACHE"] = "cache"
        expected = make()
        check_private(WORK / "run", host)
        pack()
    finally:
        shutil.rmtree(WORK)
    EXPECTED.write_text(json.dumps(expected, indent=1) + "\n")
    print(f"{ARCHIVE.name}: {ARCHIVE.stat().st_size / 1e6:.2f} MB; J&F {expected['scores']}")


if __name__ == "__main__":
    main()
