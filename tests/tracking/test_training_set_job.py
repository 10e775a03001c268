"""``sam2kit training-set``: from annotations and tracked masks to a folder that trains."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from sam2kit.cli.main import main
from sam2kit.data import TrainingSet
from sam2kit.data.rle import encode_mask
from sam2kit.data.training_set import read_provenance
from sam2kit.prompts.annotations import (
    AnnotationStore,
    StoredObject,
    StoredPrompt,
    TrackedMask,
    VideoState,
)
from sam2kit.viz.video_writer import save_mp4

SIZE = (48, 64)


def film(path: Path, num_frames: int = 8) -> Path:
    frames = np.full((num_frames, *SIZE, 3), 60, np.uint8)
    for t in range(num_frames):
        frames[t][mask(t)] = (200, 40, 40)
    path.parent.mkdir(parents=True, exist_ok=True)
    save_mp4(path, frames)
    return path


def mask(t: int) -> np.ndarray:
    result = np.zeros(SIZE, bool)
    result[8:28, 4 + t : 24 + t] = True
    return result


def counts(t: int) -> str:
    return encode_mask(mask(t))["counts"]


@pytest.fixture
def run(tmp_path) -> Path:
    """Write a run directory with the annotations of two videos, of which one is accepted."""
    store = AnnotationStore(tmp_path / "run" / "annotations")
    for name in ("a", "b"):
        path = film(tmp_path / "films" / f"{name}.mp4")
        click = StoredPrompt(1, 0, "click", points=[(10, 10)], labels=[1], result=counts(0))
        state = VideoState(name, SIZE, 8, objects=[StoredObject(1, "ball")], prompts=[click])
        state.path = str(path.resolve())
        if name == "a":
            state.accepted, state.checked = [0, 2, 4, 6], [0]
        store.save(name, state)
        tracked = {t: [(1, TrackedMask(counts(t), 1.0, "nano"))] for t in range(8)}
        store.save_tracked(name, tracked)
    store.close()
    return tmp_path / "run"


def annotated(source: TrainingSet, i: int = 0) -> list[int]:
    return list(source.annotated_frames(i))


def test_accepted_frames_of_the_annotator(run, tmp_path, capsys):
    out = tmp_path / "set"
    assert main(["training-set", str(run), "--to", str(out)]) == 0
    assert "no accepted frames in b" in capsys.readouterr().err
    source = TrainingSet(out)
    assert source.names == ["a"] and annotated(source) == [0, 2, 4, 6]
    assert source.objects == [{1: "ball"}]
    assert np.array_equal(source.read_masks(0, 4)[1], mask(4))
    rows = read_provenance(out, "a")
    assert rows[0]["objects"] == [{"id": 1, "made": "click"}]
    assert rows[2]["objects"] == [{"id": 1, "made": "propagated"}] and rows[2]["model"] == "nano"
    # More frames later: only they are added.
    assert main(["training-set", str(run), "--to", str(out), "--frames", "all"]) == 0
    source = TrainingSet(out)
    assert source.names == ["a", "b"] and annotated(source) == list(range(8))
    assert read_provenance(out, "a")[0] == rows[0]


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        (["--frames", "checked"], [0]),
        (["--every", "2"], [0, 4]),
        (["--format", "coco"], [0, 2, 4, 6]),
        (["--copy"], [0, 2, 4, 6]),
    ],
)
def test_choices(run, tmp_path, flags, expected):
    out = tmp_path / "set"
    assert main(["training-set", str(run), "--to", str(out), *flags]) == 0
    if "--copy" in flags:
        shutil.rmtree(tmp_path / "films")
    assert annotated(TrainingSet(out)) == expected
    assert (out / "annotations.json").exists() == ("coco" in flags)


def test_videos_that_were_moved(run, tmp_path, capsys):
    (tmp_path / "films").rename(tmp_path / "moved")
    argv = ["training-set", str(run), "--to", str(tmp_path / "set")]
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert "--videos" in error and "a.mp4" in error
    assert main([*argv, "--videos", str(tmp_path / "moved")]) == 0
    assert TrainingSet(tmp_path / "set").names == ["a"]


def test_nothing_to_add(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    out = tmp_path / "set"
    assert main(["training-set", str(tmp_path / "empty"), "--to", str(out)]) == 2
    assert main(["training-set", str(tmp_path / "no"), "--to", str(out)]) == 2
    first, second = capsys.readouterr().err.splitlines()[-2:]
    assert "annotations" in first and second.startswith(f"error: {tmp_path / 'no'} does not exist")
    assert not out.exists()


def test_tracked_videos_train(tmp_path, capsys):
    """From a folder of videos to a training step with four commands and no file to edit."""
    for name in ("a", "b", "c"):
        film(tmp_path / "films" / f"{name}.mp4")
    out, data = tmp_path / "tracked", tmp_path / "set"
    nano = ["--model-checkpoint", "nano", "--accelerator", "cpu"]
    # A prompt on frame 1: frame 0 was not tracked, so it is unannotated and not empty.
    track = ["track", str(tmp_path / "films"), "--box", "ball@1=5,8,24,27"]
    assert main([*track, *nano, "--output-dir", str(out)]) == 0
    assert main(["training-set", str(out), "--to", str(data), "--frames", "accepted"]) == 2
    assert "--frames" in capsys.readouterr().err
    assert main(["training-set", str(out), "--to", str(data), "--every", "2"]) == 0
    source = TrainingSet(data)
    assert source.names == ["a", "b", "c"] and annotated(source) == [1, 3, 5, 7]
    rows = read_provenance(data, "a")
    assert rows[1]["objects"] == [{"id": "ball", "made": "box"}] and rows[1]["model"] == "nano"
    # The folder is moved together with the videos, and trains with --data-path alone.
    moved = tmp_path / "elsewhere"
    moved.mkdir()
    for folder in (data, tmp_path / "films"):
        folder.rename(moved / folder.name)
    train = ["train", "--data-path", str(moved / "set"), *nano, "--max-epochs", "1", "model=nano"]
    small = ["dataset.image_size=64", "trainer.limit_train_batches=2", "dataset.num_workers=0"]
    small += ["dataset.video_clip_length=4", "trainer.limit_val_batches=1", "dataset.batch_size=1"]
    assert main([*train, *small, "--run-dir", str(tmp_path / "training")]) == 0
    assert (tmp_path / "training" / "best.ckpt").exists()
