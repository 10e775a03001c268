"""Test evaluations of microscopy and of volumes, and results in the form of their data."""

from __future__ import annotations

import json
import weakref
from functools import partial
from pathlib import Path

import numpy as np
import pytest
from cell_tracking_cases import NUM_FRAMES, REFERENCE_TRACKS, reference, result
from data_helpers import make_davis, save_palette
from stack_helpers import labels, make_ctc, make_nifti, make_stacks, save_nifti, save_tiff, stack
from test_cell_tracking import VALUES

from sam2kit.data import open_source
from sam2kit.data.lineage import read_tracks, tracks_from, write_tracks
from sam2kit.data.sources import mask_values
from sam2kit.data.sources.base import FrameRange
from sam2kit.data.sources.mask_values import decide
from sam2kit.evaluation import field_scores as field_score_module
from sam2kit.evaluation.evaluate import AFTER, COPY, evaluate, evaluate_predictions
from sam2kit.evaluation.field_scores import field_scores
from sam2kit.evaluation.label_results import find_label_results, score_label_results
from sam2kit.evaluation.report import write_results
from sam2kit.evaluation.tracker_runs import TrackerRun
from sam2kit.models.sam2 import build_sam2_model
from sam2kit.utils.errors import DataError


def make_divisions(root: Path) -> Path:
    """Write the reference of the cell tracking cases, segmented on even frames."""
    for t, image in enumerate(reference()):
        save_tiff(root / "01" / f"t{t:03d}.tif", image * 1000)
        save_tiff(root / "01_GT" / "TRA" / f"man_track{t:03d}.tif", image)
        if t % 2 == 0:
            save_tiff(root / "01_GT" / "SEG" / f"man_seg{t:03d}.tif", image)
    write_tracks(root / "01_GT" / "TRA" / "man_track.txt", REFERENCE_TRACKS)
    return root


def save_result(root: Path, seed: int) -> Path:
    images, tracks = result(seed)
    for t, image in enumerate(images):
        save_tiff(root / "01_RES" / f"mask{t:03d}.tif", image)
    write_tracks(root / "01_RES" / "res_track.txt", tracks)
    return root


def overrides(kind: str, data: Path) -> list[str]:
    return [f"valdataset.type={kind}", f"valdataset.data_path={data}", f"dataset.type={kind}"]


def test_results_of_the_challenge(tmp_path):
    data = make_divisions(tmp_path / "data")
    evaluation = evaluate_predictions(
        save_result(tmp_path / "res", 1), overrides("ctc", data), tmp_path / "out"
    )
    scores = json.loads((tmp_path / "out" / "metrics.json").read_text())
    for row in (scores["trackers"]["res"], scores["videos"]["01"]):
        assert [row[k] for k in ("SEG", "DET", "TRA")] == pytest.approx(VALUES[1], abs=1e-12)
    assert scores["videos"]["01"]["nodes"] == 25
    # The labels of the result are others than those of the ground truth.
    assert 0.2 < evaluation.scores["res"] < 0.9
    assert "<th>TRA</th>" in (tmp_path / "out" / "report.html").read_text()


def save_perfect_result(root: Path) -> Path:
    for t, image in enumerate(reference()):
        save_tiff(root / "01_RES" / f"mask{t:03d}.tif", image + 6 * (image > 0))
    tracks = {
        n + 6: t._replace(parent=t.parent and t.parent + 6) for n, t in REFERENCE_TRACKS.items()
    }
    write_tracks(root / "01_RES" / "res_track.txt", tracks)
    return root


def test_a_perfect_result_of_the_challenge(tmp_path):
    data, folder = make_divisions(tmp_path / "data"), save_perfect_result(tmp_path / "res")
    evaluation = evaluate_predictions(folder, overrides("ctc", data), tmp_path / "out")
    assert evaluation.scores == {"res": 1.0}
    assert evaluation.metrics["trackers"]["res"]["TRA"] == 1


@pytest.mark.parametrize("kind", ["challenge", "stack"])
def test_tracks_of_a_part_of_a_video(tmp_path, kind):
    part = FrameRange(open_source(make_divisions(tmp_path / "data")), 3, NUM_FRAMES)
    folder = save_perfect_result(tmp_path / "res")
    if kind == "stack":  # it has the frames of the part, and so do its tracks
        tracks = tracks_from(read_tracks(folder / "01_RES" / "res_track.txt"), 3)
        folder = tmp_path / "stack"
        images = reference()[3:]
        save_tiff(folder / "01_labels.tif", images + 6 * (images > 0), axes="TYX")
        tracks = {n: t._replace(begin=max(t.begin, 0)) for n, t in tracks.items()}
        write_tracks(folder / "01_labels.txt", tracks)
    scores = score_label_results(part, find_label_results(part, folder), folder)[1]["01"]
    assert (scores["TRA"], scores["edges"], scores["EA"]) == (1, 15, 0)


def test_a_missing_result(tmp_path):
    data = make_divisions(tmp_path / "data")
    save_result(tmp_path / "res", 1)
    (tmp_path / "res" / "01_RES" / f"mask{NUM_FRAMES - 1:03d}.tif").unlink()
    with pytest.raises(DataError) as error:
        evaluate_predictions(tmp_path / "res", overrides("ctc", data), tmp_path / "out")
    assert error.value.hint


def test_stacks_of_labels(tmp_path):
    data = make_stacks(tmp_path / "data")
    for name in "ab":
        save_tiff(tmp_path / "res" / f"{name}_labels.tif", labels(), axes="TYX")
    evaluation = evaluate_predictions(tmp_path / "res", overrides("tiff", data), tmp_path / "out")
    row = evaluation.metrics["trackers"]["res"]
    assert (row["J&F"], row["SEG"], row["DET"], row["TRA"]) == (1, 1, 1, 1)


def test_label_images_of_a_stack_are_not_collected_in_memory(tmp_path, monkeypatch):
    source, images = open_source(make_stacks(tmp_path)), []

    make_image, counts = field_score_module._label_image, []

    def label_image(*args):
        image = make_image(*args)
        images.append(weakref.ref(image))
        counts.append(sum(reference() is not None for reference in images))
        return image

    monkeypatch.setattr(field_score_module, "_label_image", label_image)
    scores = field_scores(source, 0, partial(source.read_masks, 0))
    assert scores["TRA"] == 1 and len(counts) == 2 * source.num_frames(0) and max(counts) < 5


def test_png_masks_are_interpreted_once(tmp_path, monkeypatch):
    data, decisions = make_stacks(tmp_path / "data"), []
    monkeypatch.setattr(
        mask_values, "decide", lambda *args, **keys: decisions.append(keys) or decide(*args, **keys)
    )
    for name in "ab":
        for t, image in enumerate(labels()):
            save_palette(tmp_path / "res" / name / f"{t:05d}.png", image)
    evaluation = evaluate_predictions(tmp_path / "res", overrides("tiff", data), tmp_path / "out")
    row = evaluation.metrics["trackers"]["res"]
    assert (row["J&F"], row["SEG"], row["TRA"]) == (1, 1, 1) and len(decisions) == 1


def test_volumes(tmp_path):
    data = make_nifti(tmp_path / "data")
    shifted = np.roll(labels(), 1, axis=2)
    for name in "ab":
        save_nifti(tmp_path / "res" / f"{name}.nii.gz", shifted)
    evaluation = evaluate_predictions(tmp_path / "res", overrides("nifti", data), tmp_path / "out")
    row, objects = evaluation.metrics["trackers"]["res"], evaluation.metrics["videos"]["a"]
    assert row["HD95"] == 0.5 and row["HD95_undefined"] == 0  # one column
    assert row["volume_dice"] == pytest.approx(7 / 8)
    assert objects["volume_objects"]["2"] == {"dice": pytest.approx(7 / 8), "HD95": 0.5}
    assert "HD95 in mm" in (tmp_path / "out" / "report.html").read_text()


def test_an_object_without_a_voxel_has_no_distance(tmp_path):
    source = open_source(make_nifti(tmp_path / "data", names=("a",)))
    scores = field_scores(source, 0, lambda t: {1: source.read_masks(0, t)[1]})
    assert scores["volume_objects"]["1"] == {"dice": 1, "HD95": 0}
    assert scores["volume_objects"]["2"] == {"dice": 0, "HD95": None}
    assert (scores["volume_dice"], scores["HD95"], scores["HD95_undefined"]) == (0.5, 0, 1)


@pytest.mark.parametrize("kind", ["ctc", "nifti"])
def test_trackers(kind, tiny_config, tmp_path):
    make = make_ctc if kind == "ctc" else make_nifti
    tiny_config.dataset.type = kind
    tiny_config.dataset.data_path = str(make(tmp_path / "data"))
    tiny_config.valdataset.data_path = tiny_config.dataset.data_path
    tiny_config.dataset.intensity_window = None
    runs = [TrackerRun(AFTER, build_sam2_model(tiny_config)), TrackerRun(COPY, None)]
    evaluation = evaluate(tiny_config, runs, tmp_path / "out")
    write_results(evaluation)
    again = evaluate(tiny_config, runs, tmp_path / "out")  # resumed
    for row in evaluation.metrics["trackers"].values():
        values = [row[k] for k in (("SEG", "TRA") if kind == "ctc" else ("volume_dice", "HD95"))]
        assert all(v is not None and v >= 0 for v in values)
    assert again.fields == evaluation.fields
    copied = evaluation.fields[COPY]
    if kind == "ctc":  # the object that does not move is found, the other one only at first
        assert copied["01"]["DET"] < 1 and copied["01"]["FN"] > 0
    else:
        assert copied["a"]["volume_objects"]["2"] == {"dice": 1, "HD95": 0}


def test_other_videos_have_no_such_scores(tmp_path):
    source = open_source(make_davis(tmp_path))
    assert field_scores(source, 0, lambda t: {}) == {}
    assert stack().shape[0] == 6
