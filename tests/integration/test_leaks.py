"""Scores of videos that a checkpoint has seen are rejected, however the videos are named."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import make_textured

from sam2kit.config.loading import load_config
from sam2kit.config.schema import Config
from sam2kit.data.splits import read_splits
from sam2kit.evaluation import evaluate as evaluate_module
from sam2kit.evaluation.evaluate import AFTER, evaluate_checkpoint
from sam2kit.evaluation.tracker_runs import TrackerRun
from sam2kit.models.checkpoints import CONFIG_KEY, SPLITS_KEY
from sam2kit.models.run_splits import checkpoint_splits, earlier_splits
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import CheckpointError, DataError

VIDEOS = {f"v{n}": 5 for n in range(6)}
KEY = "evaluation.allow_training_videos"


def small_config(data: Path, **dataset) -> Config:
    overrides = [
        *("model=nano", "model.checkpoint=random", "trainer=cpu", "trainer.max_steps=1"),
        *("dataset.image_size=32", "dataset.video_clip_length=2", "dataset.num_workers=0"),
        *("model.object_score_bias=3", "trainer.audit=off", "trainer.monitor=val_loss"),
        f"dataset.data_path='{data}'",
    ]
    return load_config(None, [*overrides, *(f"dataset.{k}={v}" for k, v in dataset.items())])


@pytest.fixture(scope="module")
def work(tmp_path_factory) -> Path:
    """Run directory ``run`` of a training run that held out videos of ``data``."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("leaks")
    make_textured(folder / "data", VIDEOS)
    config = small_config(folder / "data")
    config.testdataset.fraction = 0.2
    fit(config, folder / "run")
    return folder


@pytest.fixture
def run(work, tmp_path, monkeypatch) -> Path:
    """A copy of the run and its data, which a test may change; evaluations track with no model."""
    monkeypatch.setattr(
        evaluate_module, "checkpoint_runs", lambda *arguments: [TrackerRun(arguments[3], None)]
    )
    shutil.copytree(work / "data", tmp_path / "data")
    shutil.copytree(work / "run", tmp_path / "run")
    config = tmp_path / "run" / "config.yaml"
    config.write_text(config.read_text().replace(str(work), str(tmp_path)))
    return tmp_path / "run"


def names(run: Path, part: str) -> list[str]:
    return [video.name for video in getattr(read_splits(run), part)]


def scored(run: Path, *overrides: str) -> list[str]:
    """Evaluate without images, and return the names of the videos that were scored."""
    out = run.parent / "out"
    evaluation = evaluate_checkpoint(run, ["evaluation.pictures=false", *overrides], out)
    return list(evaluation.metrics["videos"])


def rejected(run: Path, *overrides: str) -> DataError:
    with pytest.raises(DataError) as error:
        scored(run, *overrides)
    return error.value


def test_a_run_stores_its_splits(run):
    splits = read_splits(run)
    assert sorted(sum((names(run, p) for p in ("train", "validation", "test")), [])) == [*VIDEOS]
    assert all(len(video.content) > 1 and video.frames == (0, 5) for video in splits.train)
    assert checkpoint_splits(run) == checkpoint_splits(run / "last.ckpt") == splits
    shutil.copy(run / "last.ckpt", run / "step-00000001.ckpt")
    for name, is_selected in (("best", True), ("last", False), ("step-00000001", False)):
        stored = checkpoint_splits(run / f"{name}.ckpt")
        assert stored is not None and stored.is_selected == is_selected


def test_another_seed_scores_the_same_videos(run):
    assert scored(run) == scored(run, "seed=7") == names(run, "validation")
    metrics = json.loads((run.parent / "out/metrics.json").read_text())
    # The seed of the evaluation is not the one of training.
    assert (metrics["seed"], metrics["training"]["seed"]) == (7, 42)
    assert metrics["training"]["videos"] == read_splits(run).training_checksum()
    contents = {name: values["content"] for name, values in metrics["videos"].items()}
    assert contents == {v.name: list(v.content) for v in read_splits(run).validation}


def test_the_list_of_training_videos_is_rejected(run):
    (run / "train.txt").write_text("\n".join(names(run, "train")))
    error = rejected(run, f"valdataset.split='{run}/train.txt'")
    assert (error.key, error.value) == (KEY, False) and names(run, "train")[0] in str(error)


@pytest.mark.parametrize("where", ["data", "link", "copy"])
def test_another_path_to_the_training_videos_is_rejected(run, where):
    data, folder = run.parent / "data", run.parent / where
    if where == "link":
        folder.symlink_to(data)
    elif where == "copy":
        trained = names(run, "train")[0]
        for kind in ("JPEGImages", "Annotations"):
            shutil.copytree(data / kind / trained, folder / kind / "renamed")
    error = rejected(run, f"valdataset.data_path='{folder}'")
    assert error.key == KEY and ("renamed" in str(error)) == (where == "copy")


def test_training_videos_are_scored_on_request_and_the_title_says_so(run):
    data = run.parent / "data"
    assert scored(run, f"valdataset.data_path='{data}'", f"{KEY}=true") == [*VIDEOS]
    split = json.loads((run.parent / "out/metrics.json").read_text())["split"]
    assert sorted(split["trained_on"]) == sorted(names(run, "train"))
    title = (run.parent / "out/report.html").read_text().split("</title>")[0]
    assert "trained on" in title


def test_the_report_names_the_split_and_warns_of_the_selection(run):
    scored(run)
    split = json.loads((run.parent / "out/metrics.json").read_text())["split"]
    assert split == {
        "name": "validation",
        "recorded": True,
        "trained_on": [],
        "selected_on": names(run, "validation"),
        "resembling": [],
        "monitor": "val_loss",
        "max_frames": None,
        "compared_trained_on": {},
    }
    assert "Warning" in (run.parent / "out/report.html").read_text()
    assert scored(run, "evaluation.split=test") == names(run, "test")
    split = json.loads((run.parent / "out/metrics.json").read_text())["split"]
    assert (split["name"], split["selected_on"], split["monitor"]) == ("test", [], None)
    assert "Warning" not in (run.parent / "out/report.html").read_text()


def test_videos_that_are_added_or_renamed_later_do_not_move_others(run):
    data, held_out = run.parent / "data", names(run, "validation")
    for kind in ("JPEGImages", "Annotations"):
        (data / kind / held_out[0]).rename(data / kind / "renamed")
    make_textured(data, {f"new{n}": 5 for n in range(6)})
    videos = scored(run)
    assert {"renamed", *held_out[1:]} <= set(videos)
    assert not set(videos) & {*names(run, "train"), *names(run, "test")}


def test_a_run_that_starts_from_another_one_inherits_its_videos(run):
    make_textured(run.parent / "other", {"x": 5, "y": 5})
    config = small_config(run.parent / "other")
    config.model.checkpoint = str(run)
    second = run.parent / "second"
    fit(config, second)
    assert names(second, "trained_before") == names(run, "train")
    (run / "train.txt").write_text(names(run, "train")[0])
    data = f"valdataset.data_path='{run.parent}/data'"
    assert rejected(second, data, f"valdataset.split='{run}/train.txt'").key == KEY
    # A training run on the first dataset again keeps its parts.
    config = small_config(run.parent / "data")
    config.model.checkpoint, config.trainer.monitor = str(second), "val_loss"
    config.valdataset.splits = str(run)
    splits = SAM2LightningDataModule(config).splits
    assert [v.name for v in splits.validation] == names(run, "validation")
    assert {v.name for v in splits.trained_before} == {
        *names(run, "train"),
        *names(second, "train"),
    }


def test_a_compared_checkpoint_that_was_trained_on_the_videos_is_rejected(run):
    make_textured(run.parent / "other", {"x": 5, "y": 5})
    fit(small_config(run.parent / "other"), run.parent / "second")
    data = f"valdataset.data_path='{run.parent}/data'"
    compare = f"evaluation.compare={{theirs: '{run}'}}"
    error = rejected(run.parent / "second", data, compare)
    assert error.key == KEY and "evaluation.compare.theirs" in str(error)


def test_a_resumed_run_keeps_its_splits(run):
    config = load_config(run / "config.yaml", ["trainer.max_steps=2", "valdataset.fraction=0.5"])
    before = read_splits(run)
    fit(config, run, resume=True)
    assert read_splits(run) == checkpoint_splits(run / "last.ckpt") == before


def test_validating_on_training_videos_is_logged_and_testing_on_them_is_rejected(run, messages):
    (run / "list.txt").write_text("v0\nv1\n")
    config = small_config(run.parent / "data")
    config.valdataset.split = str(run / "list.txt")
    SAM2LightningDataModule(config).check_videos()
    assert any("2 of 2 validation videos are trained on" in m for m in messages)
    config.testdataset.split = str(run / "list.txt")
    with pytest.raises(DataError) as error:
        SAM2LightningDataModule(config).check_videos()
    assert error.value.key == "testdataset"


def test_test_videos_that_select_the_checkpoint_are_rejected(work, tmp_path):
    for name, videos in (("train", "v0 v1"), ("validation", "v2 v3"), ("test", "v4 v3")):
        (tmp_path / f"{name}.txt").write_text(videos.replace(" ", "\n"))
    config = Config()
    config.dataset.data_path, config.dataset.num_workers = str(work / "data"), 0
    config.dataset.split = str(tmp_path / "train.txt")
    config.valdataset.split = str(tmp_path / "validation.txt")
    config.testdataset.split = str(tmp_path / "test.txt")
    data = SAM2LightningDataModule(config)
    with pytest.raises(DataError, match="1 of 2 test videos are also validation.*'v3'") as error:
        data.check_videos()
    assert error.value.key == "testdataset" and "valdataset.split" in error.value.hint
    (tmp_path / "test.txt").write_text("v4\nv5\n")
    SAM2LightningDataModule(config).check_videos()


def test_the_draw_of_an_earlier_version_is_repeated_with_a_warning(run, messages):
    for name in ("best.ckpt", "last.ckpt"):
        content = torch.load(run / name, weights_only=True)
        del content[SPLITS_KEY], content[CONFIG_KEY]["testdataset"]
        torch.save(content, run / name)
    shuffled = np.random.default_rng((42, 0)).permutation(6)
    held_out = [sorted(VIDEOS)[shuffled[0]]]
    assert scored(run, "seed=7") == held_out
    assert any("its seed 42" in m and "5 videos" in m for m in messages)
    (run / "train.txt").write_text(sorted(VIDEOS)[shuffled[1]])
    assert rejected(run, f"valdataset.split='{run}/train.txt'").key == KEY
    # Without its data, it can still be evaluated on other videos.
    make_textured(run.parent / "other", {"x": 5, "y": 5})
    shutil.rmtree(run.parent / "data")
    assert scored(run, f"valdataset.data_path='{run.parent}/other'") == ["x", "y"]
    assert any("unknown" in m for m in messages)


def test_damaged_splits_in_a_checkpoint_are_an_error(run):
    content = torch.load(run / "best.ckpt", weights_only=True)
    content[SPLITS_KEY]["train"] = [{"name": "a"}]
    torch.save(content, run / "best.ckpt")
    with pytest.raises(CheckpointError):
        checkpoint_splits(run)
    assert checkpoint_splits("nano") is None
    assert earlier_splits(small_config(run.parent / "data")) is None


def test_weights_without_a_run_have_their_own_name(work, tmp_path):
    data = f"valdataset.data_path='{work}/data'"
    overrides = [data, "dataset.image_size=32", "evaluation.pictures=false"]
    overrides += ["trainer.accelerator=cpu", "evaluation.max_frames=2"]
    evaluation = evaluate_checkpoint("nano", overrides, tmp_path)
    assert list(evaluation.scores) == ["nano", "memory zeroed", "first mask copied"]
    assert evaluation.split is not None and not evaluation.split.recorded
    assert AFTER not in (tmp_path / "report.html").read_text()
    assert not (tmp_path / "overlay.png").exists() and not (tmp_path / "overlays").exists()
