"""Test masks on disk: scores of official results, round trips, and errors."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_helpers import SIZE, make_davis, save_frame, save_palette, square
from PIL import Image

from sam2kit.data.sources.base import DerivedSource
from sam2kit.data.sources.coco import COCODataset
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.data.sources.mask_values import MaskValues
from sam2kit.data.writers import MaskWriter, coco_json, davis_palette
from sam2kit.evaluation.metrics import iou
from sam2kit.evaluation.predictions import score_predictions
from sam2kit.evaluation.report import write_csv
from sam2kit.evaluation.scores import CONVENTIONS
from sam2kit.utils.errors import DataError
from sam2kit.utils.paths import file_name

SHARED = Path(__file__).parents[3] / "shared"
DAVIS2017 = CONVENTIONS["davis2017"]


@pytest.fixture
def truth(tmp_path):
    return VideoDataset(make_davis(tmp_path / "data"))


@pytest.fixture
def results(truth, tmp_path):
    """Write the ground truth as predictions."""
    return write_results(truth, tmp_path / "results")


def write_results(source, folder):
    for i, name in enumerate(source.names):
        writer = MaskWriter(folder / name, name, [1, 2])
        for t in range(source.num_frames(i)):
            writer.add(source.frame_name(i, t), source.read_masks(i, t) or {}, SIZE)
    return folder


@pytest.mark.skipif(not (SHARED / "davis").is_dir(), reason="needs ../shared/davis")
def test_scores_equal_the_official_package_on_every_frame():
    folder = SHARED / "davis"
    reference = json.loads((folder / "osvos_reference.json").read_text())["sequences"]
    scores = score_predictions(VideoDataset(folder), folder / "Predictions" / "osvos")
    assert {v.name for v in scores.videos} == set(reference) and len(reference) == 9
    videos = scores.metrics()["videos"]
    assert scores.metrics()["convention"]["name"] == "davis2016"
    for video in scores.videos:
        official = reference[video.name]
        for score in ("J", "F"):
            ours = getattr(video, score)[:, 0]
            assert len(ours) == len(official[score])
            assert np.abs(ours - official[score]).max() < 5.001e-7
            assert abs(videos[video.name][score] - official[f"{score}_mean"]) < 5.001e-7


def test_the_ground_truth_has_perfect_scores(truth, results):
    scores = score_predictions(truth, results)
    metrics = scores.metrics()
    assert metrics["convention"]["name"] == "davis2017" and metrics["tracker"] == "results"
    assert metrics["videos"]["a"]["J"] == metrics["videos"]["a"]["objects"]["2"]["F"] == 1.0
    assert metrics["videos"]["b"]["frames"] == 2 * 4
    prompted = score_predictions(truth, results, CONVENTIONS["prompted"])
    assert prompted.metrics()["videos"]["b"]["frames"] == 2 * 5


def test_scores_of_a_shifted_object(truth, results):
    ids = np.zeros(SIZE, np.uint8)
    ids[square(12, 16)] = 2
    for t in range(6):
        save_palette(results / "a" / f"{t:05d}.png", ids)
    objects = score_predictions(truth, results).metrics()["videos"]["a"]["objects"]
    assert objects["1"]["J"] == 0 and objects["1"]["false_absence"] == 1
    assert objects["2"]["J"] == iou(square(12, 16), square(12, 20))


def test_predictions_that_cannot_be_scored_are_rejected(truth, results):
    path = results / "a" / "00003.png"
    whole = path.read_bytes()

    def expect(match, convention=DAVIS2017):
        with pytest.raises(DataError, match=match) as error:
            score_predictions(truth, results, convention)
        assert ";" in str(error.value), "the error names no fix"

    path.unlink()
    expect(r"a.00003\.png is missing")
    path.write_bytes(whole[: len(whole) // 2])
    expect(r"00003\.png cannot be read as a mask")
    save_palette(path, np.zeros((24, 16), np.uint8))
    expect(r"00003\.png has 24 rows and 16 columns, .* 24 and 32")
    save_palette(path, np.full(SIZE, 3, np.uint8))
    expect(r"a, frame 3: the prediction has objects \[3\]")
    ignoring = replace(DAVIS2017, extra_ids="ignore")
    assert score_predictions(truth, results, ignoring).metrics()["videos"]["a"]["J"] == 0.75
    (results / "b").rename(results / "c")
    expect(r"no directory for 1 of 2 videos, such as 'b'")
    with pytest.raises(DataError, match="nowhere"):
        score_predictions(truth, results / "nowhere", DAVIS2017)


def test_results_one_level_above_or_below_are_named(truth, results):
    for wrong in (results.parent, results / "a"):
        with pytest.raises(DataError) as error:
            score_predictions(truth, wrong)
        assert error.value.hint == f"give {results}, which has them"


def test_a_folder_per_object(truth, tmp_path):
    """SAM 2's own tool with --per_obj_png_file, and SA-V's layout."""
    for i, name in enumerate(truth.names):
        for t in range(6):
            for object_id, mask in truth.read_masks(i, t).items():
                path = tmp_path / "per_object" / name / f"{object_id:03d}" / f"{t:05d}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(mask * np.uint8(255)).save(path)
    scores = score_predictions(truth, tmp_path / "per_object")
    assert scores.metrics()["videos"]["a"]["J"] == scores.metrics()["videos"]["b"]["F"] == 1
    gone = tmp_path / "per_object" / "a" / "002" / "00003.png"
    gone.unlink()  # the object is absent there
    objects = score_predictions(truth, tmp_path / "per_object").metrics()["videos"]["a"]["objects"]
    assert objects["1"]["J"] == 1 and objects["2"]["J"] == 0.75
    gone.with_name("00003.png").parents[1].joinpath("001", "00003.png").unlink()
    with pytest.raises(DataError, match=r"00003\.png is missing"):
        score_predictions(truth, tmp_path / "per_object")
    (tmp_path / "per_object" / "b" / "2").mkdir()
    with pytest.raises(DataError, match="two directories belong to object 2"):
        score_predictions(truth, tmp_path / "per_object")


def test_videos_in_folders(truth, results):
    """The kit writes the masks of a video cam1/clip to a folder with a checksum in its name."""

    class Named(DerivedSource):
        names = ["cam1/clip", "cam2/clip"]

        def locate(self, i):
            return truth, i

    for name, written in zip(Named.names, "ab", strict=True):
        (results / written).rename(results / file_name(name))
    metrics = score_predictions(Named(), results).metrics()
    assert metrics["videos"]["cam2/clip"]["J"] == 1
    nested = results.with_name("nested")
    nested.mkdir()
    results.rename(nested / "masks")
    assert score_predictions(Named(), nested).metrics()["videos"]["cam1/clip"]["J"] == 1


def test_unannotated_frames_need_no_mask(tmp_path):
    source = VideoDataset(make_davis(tmp_path / "data", annotated=lambda t: t != 2))
    results = write_results(source, tmp_path / "results")
    for name in "ab":
        (results / name / "00002.png").unlink()
    scores = score_predictions(source, results)
    assert scores.videos[0].annotated[:, 0].sum() == 5
    assert np.isnan(scores.videos[0].J[2]).all() and scores.videos[0].scored[:, 0].sum() == 3


def test_masks_of_another_size_are_rejected_on_frames_without_objects(tmp_path):
    root = make_davis(tmp_path / "data")
    save_palette(root / "Annotations" / "a" / "00002.png", np.zeros(SIZE, np.uint8))
    source = VideoDataset(root)
    results = write_results(source, tmp_path / "results")
    save_palette(results / "a" / "00002.png", np.zeros((8, 8), np.uint8))
    with pytest.raises(DataError, match="00002.png has 8 rows"):
        score_predictions(source, results)


def test_videos_without_objects(tmp_path):
    root = make_davis(tmp_path / "data")
    for path in (root / "Annotations" / "a").iterdir():
        save_palette(path, np.zeros(SIZE, np.uint8))
    source = VideoDataset(root)
    results = write_results(source, tmp_path / "results")
    videos = score_predictions(source, results).metrics()["videos"]
    assert videos["a"]["J"] is None and videos["a"]["objects"] == {} and videos["b"]["J"] == 1
    for path in (root / "Annotations" / "b").iterdir():
        save_palette(path, np.zeros(SIZE, np.uint8))
    with pytest.raises(DataError, match="contains no objects"):
        score_predictions(source, results)


def test_the_convention_decides_how_void_pixels_are_scored(tmp_path):
    root = make_davis(tmp_path / "data", {"a": 4})
    ids = np.zeros(SIZE, np.uint8)
    ids[square(0, 0)] = 1
    predicted_ids = ids.copy()
    predicted_ids[square(0, 8)] = 1
    ids[square(0, 8)] = 255
    for t in range(4):
        save_palette(root / "Annotations" / "a" / f"{t:05d}.png", ids)
        save_palette(tmp_path / "results" / "a" / f"{t:05d}.png", predicted_ids)
    source = VideoDataset(root)
    background = score_predictions(source, tmp_path / "results", DAVIS2017).metrics()
    assert background["videos"]["a"]["J"] == 0.5
    assert background["convention"]["void"] == "background"
    ignoring = replace(DAVIS2017, void="ignore")
    ignored = score_predictions(source, tmp_path / "results", ignoring).metrics()
    assert ignored["videos"]["a"]["J"] == ignored["videos"]["a"]["F"] == 1.0


def test_grey_255_is_the_object_and_not_void(tmp_path):
    # DAVIS 2016 has masks of 0 and 255; predictions may have several ids.
    root = make_davis(tmp_path / "data", {"a": 3})
    for t in range(3):
        ids = np.zeros(SIZE, np.uint8)
        ids[square(0, 0)], ids[square(0, 8)] = 1, 2
        grey = Image.fromarray((ids > 0).astype(np.uint8) * 255)
        grey.save(root / "Annotations" / "a" / f"{t:05d}.png")
        save_palette(tmp_path / "results" / "a" / f"{t:05d}.png", ids)
    source = VideoDataset(root)
    assert source.read_void(0, 0) is None
    metrics = score_predictions(source, tmp_path / "results").metrics()
    assert metrics["convention"]["foreground"] and metrics["videos"]["a"]["J"] == 1.0


def test_overlapping_masks_go_to_the_higher_logit(tmp_path):
    low, high = np.full(SIZE, -1.0), np.full(SIZE, -1.0)
    low[square(0, 0)], high[square(0, 4)] = 1.0, 2.0
    writer = MaskWriter(tmp_path / "v", "v", [3, 7])
    writer.add("00000", {7: high, 3: low}, SIZE)
    writer.add("00001", {}, SIZE)
    expected = np.where(square(0, 4), 7, np.where(square(0, 0), 3, 0))
    path = tmp_path / "v" / "00000.png"
    np.testing.assert_array_equal(MaskValues().read(path)[0], expected)
    palette = np.array(Image.open(path).getpalette()).reshape(-1, 3)
    np.testing.assert_array_equal(palette, davis_palette()[: len(palette)])
    assert davis_palette()[:4].tolist() == [[0, 0, 0], [128, 0, 0], [0, 128, 0], [128, 128, 0]]
    assert not MaskValues().read(tmp_path / "v" / "00001.png")[0].any()
    assert not (tmp_path / "v" / "objects.json").exists()


def test_objects_without_a_palette_number_are_named_in_a_file(tmp_path):
    writer = MaskWriter(tmp_path / "v", "v", ["cat", 300])
    writer.add("00000", {"cat": square(0, 0), 300: square(12, 0)}, SIZE)
    assert json.loads((tmp_path / "v" / "objects.json").read_text()) == {"1": "cat", "2": 300}
    assert np.unique(MaskValues().read(tmp_path / "v" / "00000.png")[0]).tolist() == [0, 1, 2]
    with pytest.raises(DataError, match="70000 objects"):
        MaskWriter(tmp_path / "w", "w", list(range(70_000)))
    MaskWriter(None, "w", list(range(300)))


def test_sav_and_coco_preserve_overlapping_masks(tmp_path):
    masks = [{1: square(0, 0), 5: square(4, 4)}, {5: square(4, 6)}]
    writer = MaskWriter(None, "v", [1, 5])
    for t, row in enumerate(masks):
        writer.add(f"{t:05d}", row, SIZE)
        save_frame(tmp_path / "images" / "v" / f"{t:05d}.jpg", 0)
    sav = json.loads(json.dumps(writer.sav()))
    assert sav["masklet_id"] == [1, 5] and sav["masklet_first_appeared_frame"] == [0, 0]
    assert (sav["video_height"], sav["video_width"]) == SIZE and sav["video_frame_count"] == 2
    path = tmp_path / "masks.json"
    path.write_text(json.dumps(coco_json([sav])))
    source = COCODataset(path, tmp_path / "images")
    assert source.names == ["v"]
    for t, row in enumerate(masks):
        read = source.read_masks(0, t)
        assert set(read) == set(row)
        for identity, mask in row.items():
            np.testing.assert_array_equal(read[identity], mask)


@pytest.mark.skipif(not (SHARED / "sav").is_dir(), reason="needs ../shared/sav")
def test_sav_has_the_keys_and_shapes_of_the_published_data():
    published = json.loads(next((SHARED / "sav").glob("*.json")).read_text())
    writer = MaskWriter(None, "v", [1])
    writer.add("00000", {1: square(0, 0)}, SIZE)
    ours = writer.sav()
    assert set(ours) - set(published) == {"frame_names"}
    assert set(ours["masklet"][0][0]) == set(published["masklet"][0][0])
    for key in ("masklet_id", "masklet_frame_count", "masklet_first_appeared_frame"):
        assert len(ours[key]) == 1 and len(published[key]) == published["masklet_num"]


def test_csv_has_one_row_per_object(truth, results, tmp_path):
    scores = replace(score_predictions(truth, results), tracker="=1+1")
    write_csv(tmp_path / "objects.csv", [scores])
    with (tmp_path / "objects.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(r["tracker"], r["video"], r["object"]) for r in rows][:2] == [
        ("'=1+1", "a", "1"),  # text, no formula
        ("'=1+1", "a", "2"),
    ]
    assert rows[0]["J&F"] == "1.0" and rows[0]["absent_recall"] == ""


def test_predictions_with_named_objects_are_scored(tmp_path):
    masks = [{"cat": square(0, t), 300: square(12, t)} for t in range(4)]
    writer = MaskWriter(tmp_path / "results" / "v", "v", ["cat", 300])
    for t, row in enumerate(masks):
        writer.add(f"{t:05d}", row, SIZE)
        save_frame(tmp_path / "images" / "v" / f"{t:05d}.jpg", 0)
    (tmp_path / "truth.json").write_text(json.dumps(coco_json([writer.sav()])))
    source = COCODataset(tmp_path / "truth.json", tmp_path / "images")
    scores = score_predictions(source, tmp_path / "results").metrics()["videos"]["v"]
    assert scores["J"] == 1.0 and set(scores["objects"]) == {"cat", "300"}
    (tmp_path / "results" / "v" / "objects.json").write_text("[1]")
    with pytest.raises(DataError, match=r"objects\.json cannot be read"):
        score_predictions(source, tmp_path / "results")
