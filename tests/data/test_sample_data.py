"""The sample data agree with each other, and the renderer makes them again."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import render_training_set
from make_samples import FILM, NUM_FRAMES, SCENES, SIZE
from PIL import Image
from render_training_set import Options, clip_name, render
from scenes.writing import add_to_coco, coco_entries, copied_iou, write_clip

from sam2kit.data.build import open_source
from sam2kit.data.sources.coco import COCODataset
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.utils.errors import DataError

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "data_samples"
needs_renderer = pytest.mark.skipif(
    importlib.util.find_spec("dm_control") is None, reason="needs the extra render"
)


def test_both_layouts_agree():
    for split, scenes in SCENES.items():
        folders = VideoDataset(SAMPLES, split)
        labels = COCODataset(SAMPLES / f"{split}.json")
        names = sorted(scene.name for scene in scenes)
        assert sorted(folders.names) == sorted(labels.names) == names
        for name in names:
            i, k = folders.names.index(name), labels.names.index(name)
            assert folders.num_frames(i) == labels.num_frames(k) == NUM_FRAMES
            for t in (0, NUM_FRAMES - 1):
                one, other = folders.read_masks(i, t), labels.read_masks(k, t)
                assert {n for n, m in one.items() if m.any()} == set(other) <= {1, 2, 3}
                assert all(np.array_equal(one[n], other[n]) for n in other)


def test_size_and_length():
    source = open_source(SAMPLES)
    assert len(source) == sum(map(len, SCENES.values()))
    assert source.read_frame(0, 0).shape == (*SIZE, 3) and min(SIZE) >= 256
    assert 24 <= NUM_FRAMES <= 32
    assert sum(p.stat().st_size for p in SAMPLES.rglob("*") if p.is_file()) < 12e6


def test_the_film_has_no_masks():
    source = open_source(SAMPLES / FILM)
    assert not source.has_masks and source.num_frames(0) == NUM_FRAMES


def test_objects_are_visible_at_first_and_move():
    scores = []
    for split in SCENES:
        source = VideoDataset(SAMPLES, split)
        for i in range(len(source)):
            files = sorted((SAMPLES / "Annotations" / source.names[i]).glob("*.png"))
            ids = np.stack([np.array(Image.open(file)) for file in files])
            assert (ids[0] > 0).mean() > 0.01, source.names[i]
            scores.append(copied_iou(ids))
    assert np.mean(scores) < 0.3


def test_readme_lists_all_clips():
    text = (SAMPLES / "README.md").read_text(encoding="utf-8")
    for split, scenes in SCENES.items():
        for scene in scenes:
            assert f"| {scene.name} | {split} |" in text


def test_a_written_clip_is_read_again(tmp_path):
    ids = np.zeros((3, 20, 30), np.uint8)
    for t in range(3):
        ids[t, 2:8, 3 * t : 3 * t + 6] = 1
        ids[t, 12:18, 5:9] = 2
    frames = np.full((3, 20, 30, 3), 90, np.uint8)
    write_clip(tmp_path, "clip", frames, ids, quality=90)
    content = coco_entries()
    add_to_coco(content, "clip", ids)
    (tmp_path / "labels.json").write_text(json.dumps(content))
    for source in (VideoDataset(tmp_path), COCODataset(tmp_path / "labels.json")):
        assert source.names == ["clip"] and source.num_frames(0) == 3
        for t in range(3):
            masks = source.read_masks(0, t)
            assert all(np.array_equal(masks[k], ids[t] == k) for k in (1, 2))
    # The first object moves half its width per frame, the second does not move.
    assert copied_iou(ids) == pytest.approx((1 / 3 + 0 + 1 + 1) / 4)


def test_missing_packages_are_named(tmp_path):
    code = (
        "import sys; sys.modules['mujoco'] = None; sys.argv = ['render', sys.argv[1]]; "
        "import render_training_set; render_training_set.main()"
    )
    path = f"{SAMPLES}:{ROOT}"
    process = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "out")],
        env={"PYTHONPATH": path, "PATH": ""},
        capture_output=True,
        text=True,
    )
    assert process.returncode == 1 and "pip install 'sam2kit[render]'" in process.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@needs_renderer
def test_an_interrupted_training_set_is_completed(tmp_path):
    options = Options(size=64, frames=3, scale=1.0)
    render(tmp_path / "a", 4, options, processes=1)
    source = open_source(tmp_path / "a")
    assert len(source) == 4 and source.num_frames(0) == 3 and source.has_masks
    # One clip is half written and one is missing: both are rendered again, with the same pixels.
    removed = tmp_path / "a" / "Annotations" / clip_name(1)
    before = [(file.name, file.read_bytes()) for file in sorted(removed.iterdir())]
    removed.rename(tmp_path / "moved")
    render(tmp_path / "a", 4, options, processes=2)
    assert [(file.name, file.read_bytes()) for file in sorted(removed.iterdir())] == before
    lists = [(tmp_path / "a" / "ImageSets" / f"{s}.txt").read_text().split() for s in SCENES]
    assert sorted(sum(lists, [])) == [clip_name(n) for n in range(4)]
    with pytest.raises(DataError) as error:
        render(tmp_path / "a", 4, Options(size=96, frames=3, scale=1.0), processes=1)
    assert error.value.key == "size" and error.value.value == 96


def crash(job):
    os._exit(9)


@pytest.mark.slow
@needs_renderer
def test_a_crashed_process_is_an_error(tmp_path, monkeypatch):
    monkeypatch.setattr(render_training_set, "_render_stage", crash)
    with pytest.raises(DataError, match="was killed or has crashed"):
        render(tmp_path, 4, Options(size=64, frames=3), processes=2)


@pytest.mark.slow
@needs_renderer
def test_a_sample_is_rendered_again(tmp_path):
    from make_samples import make_samples

    make_samples(tmp_path, ["dog_park"])
    for t in (0, NUM_FRAMES - 1):
        made, stored = (
            np.array(Image.open(root / "Annotations" / "dog_park" / f"{t:05d}.png"))
            for root in (tmp_path, SAMPLES)
        )
        assert (made != stored).mean() < 0.002  # another build of the renderer may round an edge
