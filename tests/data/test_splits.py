"""Splits belong to the data: names decide, and videos are recognised by their frames."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from data_helpers import make_davis, make_textured
from PIL import Image

from sam2kit.config.loading import load_config
from sam2kit.config.schema import Config, DatasetConfig
from sam2kit.config.validation import check
from sam2kit.data import (
    COCODataset,
    VideoDataset,
    build_datasets,
    build_test_source,
    build_validation_source,
    fingerprint,
)
from sam2kit.data.build import open_sets, resolve_layouts, split_source
from sam2kit.data.sources.base import FrameRange
from sam2kit.data.splits import (
    PARTS,
    TEST,
    TRAIN,
    VALIDATION,
    Splits,
    SplitVideo,
    assign,
    describe,
    read_splits,
)
from sam2kit.utils.errors import ConfigError, DataError


def config_for(path, **dataset) -> Config:
    config = Config()
    config.dataset = replace(DatasetConfig(), data_path=str(path), num_workers=0, **dataset)
    return config


def parts_of(config, earlier=None) -> dict[str, list[str]]:
    sets = open_sets(config, earlier)
    sources = (sets.train, sets.validation, sets.test)
    return {p: s.names if s else [] for p, s in zip(PARTS, sources, strict=True)}


# --- which videos are held out -----------------------------------------------------------------


def test_the_seed_does_not_change_the_split(tmp_path):
    config = config_for(make_davis(tmp_path, {name: 2 for name in "abcdefghij"}))
    splits = set()
    for config.seed in range(4):
        splits.add(tuple(build_datasets(config)[1].source.names))
    assert len(splits) == 1


def test_added_videos_change_no_earlier_assignment():
    names = [f"video_{n}" for n in range(400)]
    parts = dict(zip(names, assign(names, 0.2, 0.1), strict=True))
    for count in (50, 200):
        fewer = names[:count]
        assert dict(zip(fewer, assign(fewer, 0.2, 0.1), strict=True)).items() <= parts.items()
    assert 60 <= list(parts.values()).count(VALIDATION) <= 100
    assert 25 <= list(parts.values()).count(TEST) <= 55
    # The order of the videos and the share of the test do not matter for validation.
    assert assign(names[::-1], 0.2, 0.1) == list(parts.values())[::-1]
    held_out = [n for n, p in zip(names, assign(names, 0.2, 0), strict=True) if p == VALIDATION]
    assert held_out == [n for n, p in parts.items() if p == VALIDATION]


@pytest.mark.parametrize("test", [0, 0.2])
def test_few_videos_give_every_part_about_its_share(test):
    for count in range(2 + bool(test), 25):
        for trial in range(20):
            parts = assign([f"{trial}-{n}" for n in range(count)], 0.2, test)
            held_out = [(VALIDATION, 0.2), *([(TEST, test)] if test else [])]
            for part, share in held_out:
                expected = share * count
                assert max(1, expected / 2 - 1) <= parts.count(part) <= max(1, 2 * expected + 1)
            assert parts.count(TRAIN) >= 1 and (test or TEST not in parts)


def test_a_large_fraction_leaves_a_video_to_train_on():
    for trial in range(20):
        parts = assign([f"{trial}-{n}" for n in range(4)], 0.45, 0.5)
        assert set(parts) == set(PARTS)


def test_the_draw_of_earlier_versions_is_repeated(tmp_path):
    source = VideoDataset(make_davis(tmp_path, {name: 2 for name in "abcdefghij"}))
    shuffled = np.random.default_rng((7, 0)).permutation(10)
    earlier = Splits(seed=7)
    _, parts = split_source(source, DatasetConfig(), {VALIDATION: 0.2}, earlier=earlier)
    assert parts[VALIDATION].names == sorted("abcdefghij"[k] for k in shuffled[:2])


def test_test_videos_are_neither_trained_on_nor_validated_on(tmp_path):
    config = config_for(make_davis(tmp_path, {f"v{n}": 2 for n in range(12)}))
    with pytest.raises(ConfigError) as error:
        build_test_source(config)
    assert error.value.key == "testdataset.fraction"
    without = parts_of(config)
    config.testdataset.fraction = 0.25
    parts = parts_of(config)
    assert sorted(sum(parts.values(), [])) == sorted(f"v{n}" for n in range(12))
    assert parts[TEST] == build_test_source(config).names and parts[TEST]
    assert parts[VALIDATION] == without[VALIDATION] == build_validation_source(config).names
    assert build_datasets(config)[0].source.names == parts[TRAIN]


def test_test_videos_of_their_own(tmp_path):
    root = make_davis(tmp_path / "data", {name: 2 for name in "abcdef"})
    (tmp_path / "list.txt").write_text("a\nb\n")
    config = config_for(root)
    config.testdataset.data_path = str(make_davis(tmp_path / "other", {"x": 2}))
    assert parts_of(config)[TEST] == build_test_source(config).names == ["x"]
    config.testdataset.data_path, config.testdataset.split = None, str(tmp_path / "list.txt")
    assert build_test_source(config).names == ["a", "b"]
    # Held out, where the validation videos have a folder of their own.
    config.testdataset.split, config.testdataset.fraction = None, 0.2
    config.valdataset.data_path = str(tmp_path / "other")
    parts = parts_of(config)
    assert parts[VALIDATION] == ["x"] and len(parts[TRAIN]) + len(parts[TEST]) == 6


@pytest.mark.parametrize("section", ["valdataset", "testdataset"])
def test_other_videos_are_detected_whatever_the_run_trained_on(tmp_path, section):
    make_davis(tmp_path / "new", {"x": 2})
    make_davis(tmp_path / "data", {"a": 2, "b": 2})
    build = build_validation_source if section == "valdataset" else build_test_source
    generated = config_for("", type="synthetic")
    generated.dataset.data_path = None
    for stored in (generated, resolve_layouts(config_for(tmp_path / "data"))):
        assert stored.dataset.type in ("synthetic", "video")
        getattr(stored, section).data_path = str(tmp_path / "new")
        check(stored)
        assert build(stored).names == ["x"]
        assert getattr(stored, section).type == (None if stored is generated else "auto")
    getattr(stored, section).type = "synthetic"
    with pytest.raises(ConfigError) as error:
        check(stored)
    assert (error.value.key, error.value.value) == (f"{section}.data_path", str(tmp_path / "new"))


def test_generated_test_videos_are_neither_trained_on_nor_validated_on():
    config = config_for("", type="synthetic", synthetic_videos=3, image_size=32)
    config.dataset.data_path = None
    config.testdataset.fraction = 0.2
    with pytest.raises(ConfigError) as error:
        build_test_source(config)
    assert error.value.key == "testdataset.fraction"
    config.testdataset.type = "synthetic"
    parts = parts_of(config)
    assert all(parts.values()) and len(set(sum(parts.values(), []))) == 3 + 16 + 16


@pytest.mark.parametrize("source", ["held out", "a list"])
def test_objects_composited_onto_test_videos_are_new(tmp_path, source):
    root = make_davis(tmp_path, {name: 2 for name in "abcdef"})
    shutil.rmtree(root / "Annotations")
    config = config_for(root, synthetic_objects=2)
    if source == "held out":
        config.testdataset.fraction = 0.2
    else:
        (tmp_path / "list.txt").write_text("a\n")
        config.testdataset.split = str(tmp_path / "list.txt")
    sets = open_sets(config)
    seeds = [part.seed for part in (sets.train, sets.validation, sets.test)]
    assert seeds == [config.seed + offset for offset in (0, 1_000_003, 2_000_006)]


def test_too_few_videos_for_a_test(tmp_path):
    config = config_for(make_davis(tmp_path, {"a": 9, "b": 9}))
    config.testdataset.fraction = 0.2
    with pytest.raises(ConfigError) as error:
        build_datasets(config)
    assert error.value.key == "dataset.data_path"


def test_fractions_that_leave_nothing_to_train_on_are_rejected():
    with pytest.raises(ConfigError) as error:
        load_config(None, ["valdataset.fraction=0.5", "testdataset.fraction=0.5"])
    assert (error.value.key, error.value.value) == ("testdataset.fraction", 0.5)


def test_each_source_of_a_mixture_is_split(tmp_path):
    one = make_davis(tmp_path / "one", {name: 2 for name in "abcd"})
    two = make_davis(tmp_path / "two", {name: 2 for name in "defg"})
    entries = [{"data_path": str(one)}, {"type": "synthetic"}, {"data_path": str(two)}]
    config = config_for("", type="mixture", mixture=entries, synthetic_videos=2)
    config.dataset.data_path = None
    config.testdataset.fraction = 0.2
    parts = parts_of(config)
    for prefix in ("1_", "3_"):
        assert all(any(n.startswith(prefix) for n in names) for names in parts.values())
    assert not any(name.startswith("2_") for name in parts[TEST])  # generated: no test videos


# --- recognising videos ------------------------------------------------------------------------


def splits_of(*sources) -> Splits:
    return Splits(*(tuple(describe(source)) for source in sources))


def test_renamed_and_copied_videos_are_recognised(tmp_path):
    root = make_textured(tmp_path / "data", {"a": 6, "b": 6})
    splits = splits_of(VideoDataset(root))
    copy = make_textured(tmp_path / "copy", {"c": 6})
    for kind in ("JPEGImages", "Annotations"):
        shutil.copytree(root / kind / "a", copy / kind / "another name")
    pairs = splits.trained_on(describe(VideoDataset(copy)))
    assert [(video.name, trained.name) for video, trained in pairs] == [("another name", "a")]
    # A copy that was cut at its end, and another list of the same files.
    (copy / "JPEGImages/another name/00005.png").unlink()
    (copy / "Annotations/another name/00005.png").unlink()
    assert len(splits.trained_on(describe(VideoDataset(copy)))) == 1
    assert len(splits.trained_on(describe(FrameRange(VideoDataset(root), 0, 3)))) == 2
    # Other videos of the same names are not the same.
    other = make_textured(tmp_path / "other", {"b": 6})
    (other / "JPEGImages/b").rename(other / "JPEGImages/a")
    (other / "Annotations/b").rename(other / "Annotations/a")
    splits = splits_of(VideoDataset(make_textured(tmp_path / "one", {"a": 6})))
    assert splits.trained_on(describe(VideoDataset(other))) == []


@pytest.mark.parametrize("length", [60, 20, 10, 1])
def test_cut_copies_of_a_large_dataset_are_recognised(tmp_path, monkeypatch, length):
    """Fewer frames per video are hashed in large datasets, and a short copy lacks some of these."""
    root = make_textured(tmp_path / "data", {"a": 70, "b": 70})
    with monkeypatch.context() as patch:
        patch.setattr(fingerprint, "SAMPLED_FRAMES", 2 * 6)  # as in a dataset of 40 videos
        splits = splits_of(VideoDataset(root))
        assert [len(video.content) for video in splits.train] == [6, 6]
    for folder in (root / "JPEGImages", root / "Annotations"):
        for name in "ab":
            for file in sorted((folder / name).iterdir())[length:]:
                file.unlink()
            (folder / name).rename(folder / f"copy of {name}")
    copies = describe(VideoDataset(root))
    assert [video.frames for video in copies] == [(0, length)] * 2
    assert [known.name for _, known in splits.trained_on(copies)] == ["a", "b"]


def test_hashes_of_earlier_versions_have_no_index(tmp_path):
    root = make_textured(tmp_path, {"a": 70, "b": 70})
    videos = describe(VideoDataset(root))
    contents = [dict(entry.split(":") for entry in video.content) for video in videos]
    hashed = ("0", "16", "4", "64", "1", "32")
    old = [
        SplitVideo(f"old {v.name}", v.frames, tuple(content[t] for t in hashed))
        for v, content in zip(videos, contents, strict=True)
    ]
    splits = Splits(tuple(old))
    assert Splits.from_dict(splits.to_dict(), "splits.json") == splits
    assert [known.name for _, known in splits.trained_on(videos)] == ["old a", "old b"]


def test_videos_that_start_alike_are_not_the_same(tmp_path):
    """Films of a fixed camera without noise: an object appears in frame 5."""
    for name, length in (("cam0", 20), ("cam1", 20), ("cam2", 19), ("cam3", 4)):
        first = make_textured(tmp_path / "start", {"empty": 1}) / "JPEGImages/empty/00000.png"
        pixels = np.array(Image.open(first))
        for t in range(length):
            frame = pixels.copy()
            frame[8:16, 8:16] = int(name[-1]) if t >= 5 else frame[8:16, 8:16]
            path = tmp_path / "data/JPEGImages" / name / f"{t:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(frame).save(path)
    videos = describe(VideoDataset(tmp_path / "data"))
    for video in videos:
        splits = Splits((video,))
        assert [v.name for v, _ in splits.trained_on(videos)] == [video.name]
    # Hashes that an earlier version stored identify nothing if they are all equal.
    content = [entry.split(":")[1] for entry in videos[3].content]
    old = Splits((SplitVideo("cam3", (0, 4), tuple(content)),))
    assert [v.name for v, _ in old.trained_on(videos)] == ["cam3"]
    # A single image is identified by its pixels.
    images = [replace(video, content=video.content[:1], frames=(0, 1)) for video in videos[:2]]
    assert images[0].same_video(images[1])


def test_videos_of_one_colour_are_recognised_by_name(tmp_path):
    source = VideoDataset(make_davis(tmp_path, {"a": 3, "b": 3}))
    assert [video.content for video in describe(source)] == [(), ()]
    pairs = splits_of(source).trained_on([SplitVideo("b", (0, 3)), SplitVideo("c", (0, 3))])
    assert [video.name for video, _ in pairs] == ["b"]


def test_two_parts_of_a_film_do_not_repeat_each_other(tmp_path):
    film = VideoDataset(make_textured(tmp_path, {"film": 20}))
    first, last = FrameRange(film, 0, 14), FrameRange(film, 16, 20)
    splits = splits_of(first, last)
    assert [v.frames for v in (*splits.train, *splits.validation)] == [(0, 14), (16, 20)]
    assert splits.trained_on(describe(last)) == []
    assert len(splits.trained_on(describe(film))) == len(splits.selected_on(describe(film))) == 1
    assert len(splits.trained_on(describe(FrameRange(film, 10, 18)))) == 1


def test_the_split_by_time_is_recorded(tmp_path):
    sets = open_sets(config_for(make_textured(tmp_path, {"film": 20})))
    splits = splits_of(sets.train, sets.validation)
    train_stop, val_start, count = sets.config.dataset.time_split
    assert [v.frames for v in splits.train] == [(0, train_stop)]
    assert [v.frames for v in splits.validation] == [(val_start, count)]


def test_generated_videos_are_not_listed(tmp_path):
    config = config_for("", type="synthetic", synthetic_videos=3, image_size=32)
    assert describe(open_sets(config).train) == []
    # Generated objects on stored frames: these are listed, with the frames as stored.
    root = make_textured(tmp_path, {"a": 3, "b": 3})
    stored = describe(VideoDataset(root))
    shutil.rmtree(root / "Annotations")
    sets = open_sets(config_for(root, synthetic_objects=2))
    videos = [*describe(sets.train), *describe(sets.validation)]
    assert sorted(videos, key=lambda v: v.name) == stored


def test_videos_of_another_layout_are_recognised(tmp_path):
    root = make_textured(tmp_path, {"a": 3, "b": 3})
    images = [
        {"id": f"{v}{t}", "video_id": v, "order_in_video": t, "file_name": f"{v}/{t:05d}.png"}
        for v in "ab"
        for t in range(3)
    ]
    content = {"images": images, "annotations": [], "categories": []}
    (tmp_path / "labels.json").write_text(json.dumps(content))
    source = COCODataset(tmp_path / "labels.json", root / "JPEGImages")
    assert len(splits_of(VideoDataset(root)).trained_on(describe(source))) == 2


# --- earlier splits ----------------------------------------------------------------------------


def test_earlier_assignments_are_kept(tmp_path):
    root = make_textured(tmp_path / "data", {f"v{n}": 2 for n in range(5)})
    config = config_for(root)
    earlier_parts = {"v0": VALIDATION, "v1": TEST, "v2": TRAIN, "v3": VALIDATION}
    videos = {v.name: v for v in describe(VideoDataset(root))}
    grouped = [tuple(videos[n] for n, p in earlier_parts.items() if p == part) for part in PARTS]
    earlier = Splits(*grouped)
    (root / "JPEGImages/v3").rename(root / "JPEGImages/renamed")
    (root / "Annotations/v3").rename(root / "Annotations/renamed")
    parts = parts_of(config, earlier)
    # A test video stays out of the training, even if this run has no test.
    assert {"v0", "renamed"} <= set(parts[VALIDATION]) and parts[TEST] == ["v1"]
    assert "v2" in parts[TRAIN]
    (tmp_path / "splits.json").write_text(json.dumps(earlier.to_dict()))
    config.valdataset.splits = str(tmp_path)
    assert parts_of(config) == parts
    assert read_splits(tmp_path) == earlier


def test_copies_in_one_data_set_keep_their_own_part(tmp_path):
    root = make_textured(tmp_path, {"a": 2, "c": 2})
    for kind in ("JPEGImages", "Annotations"):
        shutil.copytree(root / kind / "a", root / kind / "b")
    videos = describe(VideoDataset(root))
    splits = Splits((videos[0], videos[2]), (videos[1],))
    assert splits.assigned(VideoDataset(root)) == {0: TRAIN, 1: VALIDATION, 2: TRAIN}


def test_nothing_is_left_to_validate_on(tmp_path):
    root = make_textured(tmp_path, {"a": 2, "b": 2})
    earlier = splits_of(VideoDataset(root)).continued()
    assert earlier.trained_before == earlier.train
    with pytest.raises(ConfigError) as error:
        open_sets(config_for(root), earlier)
    assert error.value.key == "dataset.data_path" and "valdataset.split" in error.value.hint
    # The hint names the section of the part that has no videos.
    a, b = earlier.train
    config = config_for(make_textured(tmp_path, {"c": 2}))
    (c,) = (v for v in describe(VideoDataset(root)) if v.name == "c")
    config.testdataset.fraction = 0.3
    with pytest.raises(ConfigError, match="left for test") as error:
        build_test_source(config, Splits((a, b), (c,)))
    assert "testdataset.split" in error.value.hint and "valdataset" not in error.value.hint


@pytest.mark.parametrize(
    "change",
    [
        {"train": None},
        {"test": [{"name": "a", "frames": [0], "content": []}]},
        {"validation": [{"name": 3, "frames": [0, 1], "content": []}]},
        {"schema_version": 2},
    ],
)
def test_damaged_splits_are_rejected(tmp_path, change):
    content = Splits().to_dict() | change
    (tmp_path / "splits.json").write_text(json.dumps(content))
    with pytest.raises(DataError) as error:
        read_splits(tmp_path / "splits.json")
    assert error.value.hint
    with pytest.raises(DataError) as error:
        read_splits(tmp_path / "missing")
    assert error.value.key == "valdataset.splits"
