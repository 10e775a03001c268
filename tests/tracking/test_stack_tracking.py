"""``sam2kit track`` of stacks and volumes: results in the form of the data."""

from __future__ import annotations

import json
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from PIL import Image
from stack_helpers import NUM_FRAMES, make_ctc, make_dicom, make_nifti, make_stacks

from sam2kit.cli.main import main
from sam2kit.config.schema import DatasetConfig
from sam2kit.data.lineage import read_tracks
from sam2kit.data.pictures import read_labels
from sam2kit.tracking.inputs import open_inputs


def track(path: Path, name: str, out: Path) -> int:
    """Track a box around the object that does not move, and another one from frame 2 on."""
    document = {
        "version": 1,
        "image_size": [24, 32],
        "prompts": [
            {
                "video": name,
                "object_id": 5,
                "frame_index": 0,
                "kind": "box",
                "box": [20, 12, 27, 19],
            },
            {"video": name, "object_id": 9, "frame_index": 2, "kind": "box", "box": [4, 0, 11, 7]},
        ],
    }
    prompts = out.parent / "prompts.json"
    prompts.write_text(json.dumps(document))
    argv = ["--prompts", prompts, "--model-checkpoint", "nano", "--output-dir", out]
    return main(["track", str(path), *map(str, argv), "--accelerator", "cpu"])


def png_masks(out: Path, name: str, frames: list[str]) -> np.ndarray:
    """Read the palette PNG of the same call."""
    masks = np.stack(
        [read_labels(out / "masks" / name / f"{frame}.png").pixels for frame in frames]
    )
    assert Image.open(out / "masks" / name / f"{frames[0]}.png").mode == "P"
    return masks


def test_a_stack(tmp_path):
    make_stacks(tmp_path / "data", names=("a",))
    assert track(tmp_path / "data" / "a.tif", "a", tmp_path / "out") == 0
    labels = tifffile.imread(tmp_path / "out" / "labels" / "a_labels.tif")
    expected = png_masks(tmp_path / "out", "a", [f"{t:05d}" for t in range(NUM_FRAMES)])
    assert labels.dtype == np.uint16 and np.array_equal(labels, expected)
    assert not (labels[:2] == 9).any()


def test_the_cell_tracking_challenge(tmp_path):
    make_ctc(tmp_path / "data")
    assert track(tmp_path / "data", "01", tmp_path / "out") == 0
    results = tmp_path / "out" / "01_RES"
    images = [tifffile.imread(results / f"mask{t:03d}.tif") for t in range(NUM_FRAMES)]
    expected = png_masks(tmp_path / "out", "01", [f"t{t:03d}" for t in range(NUM_FRAMES)])
    assert np.array_equal(np.stack(images) > 0, expected > 0)
    tracks = read_tracks(results / "res_track.txt")
    for t, image in enumerate(images):
        present = [n for n, track in tracks.items() if track.begin <= t <= track.end]
        assert np.unique(image)[1:].tolist() == present


@pytest.mark.parametrize("make", [make_nifti, make_dicom])
def test_a_volume(make, tmp_path):
    make(tmp_path / "data", names=("a",))
    assert track(tmp_path / "data", "a", tmp_path / "out") == 0
    image = nibabel.load(tmp_path / "out" / "labels" / "a.nii.gz")
    expected = png_masks(tmp_path / "out", "a", [f"{t:05d}" for t in range(NUM_FRAMES)])
    assert np.array_equal(np.asarray(image.dataobj), expected.transpose(2, 1, 0))
    if make is make_nifti:
        assert np.array_equal(image.affine, nibabel.load(tmp_path / "data" / "a.nii.gz").affine)


def test_frames_are_scaled_as_in_training(tmp_path):
    path = make_stacks(tmp_path / "data", names=("a",)) / "a.tif"
    settings = DatasetConfig(intensity_window=[0.0, 2550.0])
    assert open_inputs([path], settings)[0].read_frame(3).mean() == 30
    assert open_inputs([path])[0].read_frame(3).mean() == 153
