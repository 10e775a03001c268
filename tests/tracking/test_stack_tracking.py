"""``sam2kit track`` of stacks and volumes: results in the form of the data."""

from __future__ import annotations

import json
import re
from pathlib import Path

import nibabel
import numpy as np
import pytest
import tifffile
from data_helpers import make_davis, square
from PIL import Image
from stack_helpers import NUM_FRAMES, make_ctc, make_dicom, make_nifti, make_stacks
from tool_helpers import make_cvat

from sam2kit.cli.main import main
from sam2kit.config.schema import DatasetConfig
from sam2kit.data.lineage import read_tracks
from sam2kit.data.pictures import read_labels
from sam2kit.data.rle import decode_mask, encode_mask
from sam2kit.data.sources.cvat import CVATDataset
from sam2kit.tracking.inputs import open_inputs

BOXES = (
    {"object_id": 5, "frame_index": 0, "kind": "box", "box": [20, 12, 27, 19]},
    {"object_id": 9, "frame_index": 2, "kind": "box", "box": [4, 0, 11, 7]},
)
# Two masks that overlap. A frame shows the mask with which it is prompted, whatever the model does.
MASKS = tuple(
    {"object_id": o, "frame_index": t, "kind": "mask", "mask": encode_mask(mask)}
    for o, t, mask in ((5, 0, square(12, 20)), (5, 2, square(12, 20)), (9, 2, square(10, 18)))
)


def track(path: Path, name: str, out: Path, *flags: str, prompts=BOXES) -> int:
    """Track an object from frame 0 on, and another one from frame 2 on."""
    document = {
        "version": 1,
        "image_size": [24, 32],
        "prompts": [{"video": name, **prompt} for prompt in prompts],
    }
    file = out.parent / "prompts.json"
    file.write_text(json.dumps(document))
    argv = ["--prompts", file, "--model-checkpoint", "nano", "--output-dir", out]
    return main(["track", str(path), *map(str, argv), "--accelerator", "cpu", *flags])


def png_masks(out: Path, name: str, frames: list[str]) -> np.ndarray:
    """Read the palette PNG of the same call."""
    masks = np.stack(
        [read_labels(out / "masks" / name / f"{frame}.png").pixels for frame in frames]
    )
    assert Image.open(out / "masks" / name / f"{frames[0]}.png").mode == "P"
    return masks


def assert_same(source: CVATDataset, out: Path, num_frames: int) -> None:
    """Compare a task of CVAT with ``masks.json``, in which masks may overlap."""
    content = json.loads((out / "masks.json").read_text())
    count = 0
    for t in range(num_frames):
        rows = [row for row in content["annotations"] if row["image_id"] == t + 1]
        masks = source.read_masks(0, t) or {}
        assert set(masks) == {row["track_id"] for row in rows}
        for row in rows:
            assert np.array_equal(masks[row["track_id"]], decode_mask(row["segmentation"]))
        count += len(rows)
    assert count >= 3


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


def test_a_task_of_cvat(tmp_path):
    """The XML has the labels and frame numbers of the task, and reads back as the PNG files."""
    root = make_cvat(tmp_path / "data", "a")
    for t in reversed(range(6)):  # a task that begins at frame 3 of its video
        (root / "a/images" / f"frame_{t:06d}.PNG").rename(
            root / "a/images" / f"frame_{t + 3:06d}.PNG"
        )
    file = root / "a" / "annotations.xml"
    text = re.sub(r' frame="(\d+)"', lambda m: f' frame="{int(m[1]) + 3}"', file.read_text())
    file.write_text(text.replace('id="1" label', 'id="5" label'))
    assert track(root, "a", tmp_path / "out", prompts=MASKS) == 0
    written = tmp_path / "out" / "labels" / "a.xml"
    source = CVATDataset(root / "a" / "images", written)
    assert_same(source, tmp_path / "out", 6)
    numbers = set(re.findall(r' frame="(\d+)"', written.read_text()))
    assert numbers and numbers <= set("345678")
    assert source.labels(0) == {5: "cell", 9: "object"}


def test_masks_of_any_video_as_a_task_of_cvat(tmp_path):
    """Also of a video that is finished already."""
    path, out = make_davis(tmp_path / "data", {"a": 4}) / "JPEGImages" / "a", tmp_path / "out"
    assert track(path, "a", out, prompts=MASKS) == 0
    assert not (out / "labels").exists()
    record = json.loads((out / "track.json").read_text())
    assert track(path, "a", out, "--to", "cvat", prompts=MASKS) == 0
    assert json.loads((out / "track.json").read_text()) == record
    source = CVATDataset(path, out / "labels" / "a.xml")
    assert_same(source, out, 4)
    assert json.loads((out / "labels" / "labels.json").read_text())[0]["name"] == "object"


def test_frames_are_scaled_as_in_training(tmp_path):
    path = make_stacks(tmp_path / "data", names=("a",)) / "a.tif"
    settings = DatasetConfig(intensity_window=[0.0, 2550.0])
    assert open_inputs([path], settings)[0].read_frame(3).mean() == 30
    assert open_inputs([path])[0].read_frame(3).mean() == 153
