"""The frames and videos that an evaluation scores, and its images."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from data_helpers import make_davis, make_textured
from PIL import Image

from sam2kit.config.schema import Config
from sam2kit.data import VideoDataset
from sam2kit.data.splits import Splits, describe
from sam2kit.evaluation.evaluate import COPY, evaluate
from sam2kit.evaluation.report import write_results
from sam2kit.evaluation.scored_split import ScoredSplit, check_scored_videos, scored_source
from sam2kit.evaluation.tracker_runs import TrackerRun
from sam2kit.utils.errors import DataError


@pytest.fixture
def config(tmp_path) -> Config:
    config = Config()
    config.dataset.data_path = str(make_davis(tmp_path / "data", {"a": 6, "b": 3}))
    config.valdataset.data_path = config.dataset.data_path
    config.trainer.accelerator = "cpu"
    return config


def test_the_number_of_frames_is_limited(config, tmp_path):
    config.evaluation.max_frames = 4
    source = scored_source(config)
    assert [source.num_frames(i) for i in range(2)] == [4, 3]
    assert list(source.annotated_frames(0)) == [0, 1, 2, 3]
    evaluation = evaluate(config, [TrackerRun(COPY, None)], tmp_path / "out")
    assert [len(video.J) for video in evaluation.trackers[0].videos] == [4, 3]
    assert evaluation.metrics["split"]["max_frames"] == 4
    # Another limit makes the stored scores stale.
    config.evaluation.max_frames = None
    evaluation = evaluate(config, [TrackerRun(COPY, None)], tmp_path / "out")
    assert [len(video.J) for video in evaluation.trackers[0].videos] == [6, 3]


@pytest.mark.parametrize("pictures", [True, False])
def test_pictures_can_be_switched_off(config, tmp_path, pictures):
    config.evaluation.pictures = pictures
    write_results(evaluate(config, [TrackerRun(COPY, None)], tmp_path / "out"))
    names = {path.name for path in (tmp_path / "out").iterdir()}
    assert {"metrics.json", "report.html", "masks", "objects.csv"} <= names
    assert ({"overlays", "overlay.png", "overlay.gif"} <= names) == pictures
    report = (tmp_path / "out/report.html").read_text()
    assert ("Worst objects" in report) == pictures and "Prompts: mask" in report


def test_test_videos_have_their_own_masks(config, tmp_path):
    config.testdataset.data_path = str(make_davis(tmp_path / "test", {"c": 3}))
    config.evaluation.split = "test"
    evaluation = evaluate(config, [TrackerRun(COPY, None)], tmp_path / "out")
    assert list(evaluation.metrics["videos"]) == ["c"]
    assert evaluation.metrics["split"]["name"] == "test"


def test_training_videos_are_named(config):
    source = VideoDataset(config.dataset.data_path)
    a, b = describe(source)
    with pytest.raises(DataError) as error:
        check_scored_videos(config, source, Splits((b,), (a,)))
    assert error.value.key == "evaluation.allow_training_videos" and "'b'" in str(error.value)
    with pytest.raises(DataError, match="evaluation.compare.other"):
        check_scored_videos(config, source, None, {"other": Splits((a,))})
    config.evaluation.allow_training_videos = True
    split = check_scored_videos(config, source, Splits((b,), (a,)), {"other": Splits((a,))})
    assert (split.trained_on, split.selected_on) == (("b",), ("a",))
    assert split.monitor == "val_loss" and split.title_note
    assert json.loads(json.dumps(split.to_dict()))["recorded"] is True
    assert split.to_dict()["compared_trained_on"] == {"other": ["a"]}


def test_a_compared_checkpoint_that_was_trained_on_the_videos_is_named(config):
    config.evaluation.allow_training_videos = True
    source = VideoDataset(config.dataset.data_path)
    split = check_scored_videos(config, source, None, {"<o>": Splits((describe(source)[0],))})
    assert "<o>" in split.title_note
    assert any("<o>" in line and "1 of the 2 videos" in line for line in split.lines(2))


@pytest.mark.parametrize("limit", [None, 2])
def test_videos_of_the_same_name_and_length_may_be_copies(config, tmp_path, warnings, limit):
    root = make_textured(tmp_path / "textured", {"a": 4, "b": 5, "c": 3, "d": 3})
    a, b, c, d = describe(VideoDataset(root))
    splits = Splits((a,), (replace(b, frames=(0, 6)), c), trained_before=(d,))
    for file in root.glob("JPEGImages/*/*.png"):
        with Image.open(file) as image:
            image.convert("RGB").save(file.with_suffix(".jpg"), quality=70)
        file.unlink()
    config.evaluation.max_frames = limit
    config.valdataset.data_path = str(root)
    split = check_scored_videos(config, scored_source(config), splits)
    # With a limit, the lengths of longer videos are equal.
    assert split.resembling == (("a", "b", "c", "d") if limit else ("a", "c", "d"))
    assert split.to_dict()["resembling"] == list(split.resembling) and not split.trained_on
    assert len(warnings) == 1 and f"{len(split.resembling)} of the 4 videos" in warnings[0]
    lines = split.lines(4)
    assert len(lines) == 2 and f"{len(split.resembling)} of the 4 videos" in lines[1]
    # Videos that were recognised are not listed again, and other names do not count.
    others = (replace(a, name="x", content=("0:1",)), a)
    assert splits.resembling(others[:1]) == []
    for name, advice in (("validation", "evaluation.split=test"), ("test", "testdataset that are")):
        split = ScoredSplit(name, True, selected_on=("a",), monitor="val_iou")
        assert len(split.lines(1)) == 2 and advice in split.lines(1)[1]


def test_the_last_checkpoint_is_not_selected(config):
    source = VideoDataset(config.dataset.data_path)
    a, b = describe(source)
    splits = Splits((replace(a, name="x"),), (a, b))
    assert check_scored_videos(config, source, splits).selected_on == ("a", "b")
    last = replace(splits, is_selected=False)
    split = check_scored_videos(config, source, last)
    assert (split.selected_on, split.validated_on, split.monitor) == ((), ("a", "b"), None)
    assert "Warning" not in "".join(split.lines(2)) and "validated" in split.lines(2)[-1]
    config.trainer.early_stopping_patience = 3
    assert check_scored_videos(config, source, last).selected_on == ("a", "b")


def test_the_report_says_what_is_not_known():
    split = ScoredSplit("validation", recorded=False)
    assert not split.title_note and len(split.lines(3)) == 2
    replayed = ScoredSplit("validation", True, replay=0.25)
    assert replayed.lines(3)[-1] == "Of the training clips, 25% were generated."
    trained = ScoredSplit("test", True, trained_on=("<b>",))
    assert trained.title_note and any("<b>" in line for line in trained.lines(1))
