"""``track_video``: the files it writes, and the input it rejects."""

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image

from sam2kit.cli.main import main
from sam2kit.data.sources.video_decoder import FrameFolder, open_video
from sam2kit.data.writers import davis_palette
from sam2kit.prompts.io import load_video_prompts
from sam2kit.utils.errors import DataError
from sam2kit.viz.video_writer import save_mp4

HEIGHT, WIDTH = 48, 64
BOX = {
    "video": "clip",
    "object_id": "first",
    "frame_index": 0,
    "kind": "box",
    "box": [4, 8, 23, 27],
}
LATE = {
    "video": "clip",
    "object_id": 7,
    "frame_index": 2,
    "kind": "point",
    "points": [[50, 30]],
    "labels": [1],
}


@pytest.fixture
def clip(tmp_path):
    folder = tmp_path / "clip"
    folder.mkdir()
    for t in range(5):
        frame = np.full((HEIGHT, WIDTH, 3), 60, dtype=np.uint8)
        frame[8:28, 4 + t : 24 + t] = (200, 40, 40)
        frame[20:40, 44:60] = (40, 40, 200)
        Image.fromarray(frame).save(folder / f"f{t}.png")
    return folder


def write_prompts(path, *entries, size=(HEIGHT, WIDTH)):
    document = {"version": 1, "image_size": list(size), "prompts": list(entries)}
    path.write_text(json.dumps(document))
    return path


def run_track(clip, prompts, out):
    argv = ["--prompts", prompts, "--model-checkpoint", "nano", "--output-dir", out]
    return main(["track", str(clip), *map(str, argv), "--accelerator", "cpu"])


def rows(out):
    with (out / "objects.csv").open() as file:
        return list(csv.DictReader(file))


def test_all_files_are_written(clip, tmp_path, capsys):
    prompts, out = write_prompts(tmp_path / "prompts.json", BOX, LATE), tmp_path / "out"
    assert run_track(clip, prompts, out) == 0
    with Image.open(out / "masks" / "clip" / "f3.png") as mask:
        assert mask.mode == "P" and mask.size == (WIDTH, HEIGHT)
        assert mask.getpalette()[:6] == davis_palette()[:2].flatten().tolist()
        assert set(np.unique(mask)) <= {0, 1, 2}
    assert len(list((out / "masks" / "clip").glob("*.png"))) == 5
    table = rows(out)
    assert [(row["frame"], row["object"]) for row in table] == [
        *[("0", "first"), ("1", "first")],
        *[(str(t), o) for t in (2, 3, 4) for o in ("first", "7")],
    ]
    coco = json.loads((out / "masks.json").read_text())
    areas = {(i["image_id"] - 1, i["track_id"]): i["area"] for i in coco["annotations"]}
    for row in table:
        identity = 7 if row["object"] == "7" else "first"
        assert areas.get((int(row["frame"]), identity), 0) == int(row["area"])
    assert any(areas.values())
    video = open_video(out / "overlay.mp4")
    assert (video.num_frames(0), video.read_frame(0, 0).shape) == (5, (HEIGHT, WIDTH, 3))
    with Image.open(out / "overlay.gif") as gif:
        assert gif.n_frames == 5
    assert json.loads((out / "track.json").read_text())["objects"] == ["first", 7]
    assert run_track(clip, prompts, out) == 2
    assert f"--output-dir: {out}" in capsys.readouterr().err


def test_video_file_and_long_gif(tmp_path):
    save_mp4(tmp_path / "clip.mp4", [np.full((HEIGHT, 500, 3), t, np.uint8) for t in range(130)])
    prompts = write_prompts(tmp_path / "prompts.json", BOX | {"frame_index": 127})
    assert run_track(tmp_path / "clip.mp4", prompts, tmp_path / "out") == 0
    assert [row["frame"] for row in rows(tmp_path / "out")] == ["127", "128", "129"]
    with Image.open(tmp_path / "out" / "overlay.gif") as gif:
        assert gif.width == 480 and 1 < gif.n_frames <= 60


def test_files_are_complete_after_an_interruption(clip, tmp_path, capsys, monkeypatch):
    prompts, out = write_prompts(tmp_path / "prompts.json", BOX), tmp_path / "out"
    read = FrameFolder.read_frame

    def interrupted(self, i, t):
        if t == 3:
            raise KeyboardInterrupt
        return read(self, i, t)

    monkeypatch.setattr(FrameFolder, "read_frame", interrupted)
    assert run_track(clip, prompts, out) == 130
    assert "frames 0 to 2" in capsys.readouterr().err
    assert len(list((out / "masks" / "clip").glob("*.png"))) == 3
    assert open_video(out / "overlay.mp4").num_frames(0) == 3
    assert len(json.loads((out / "masks.json").read_text())["images"]) == 3


def test_coordinates_are_scaled_from_the_size_in_the_file(tmp_path):
    original = write_prompts(tmp_path / "a.json", BOX, LATE)
    (box, click), identities = load_video_prompts(original, "clip", 5, image_size=128)
    assert identities == ["first", 7] and (box.frame, click.frame) == (0, 2)
    assert box.objects.tolist() == [0] and click.objects.tolist() == [1]
    assert torch.allclose(box.points[0], torch.tensor([[8.5, 22 + 1 / 6], [46.5, 72 + 5 / 6]]))
    scaled = LATE | {"points": [[100.5, 80 + 5 / 6]]}
    equivalent = write_prompts(tmp_path / "b.json", scaled, size=(128, 128))
    assert torch.allclose(load_video_prompts(equivalent, "clip", 5, 128)[0][0].points, click.points)


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ({"video": "other"}, "no prompt with the field 'video' 'clip'"),
        ({"frame_index": 5}, "'frame_index' is 5, but 'clip' has the frames 0 to 4"),
        ({"frame_index": True}, "'frame_index' is True"),
        ({"object_id": [1]}, "'object_id'"),
        ({"box": [0, 0, 64, 10]}, "outside the frame of 64 by 48"),
        ({"box": [30, 20, 12, 10]}, "'box'.*left, top, right, bottom"),
        ({"kind": "point", "points": [[1, 2]], "labels": [2]}, "'labels'.*1 on the object"),
        ({"kind": "mask", "mask": {"size": [48, 64], "counts": [0, 9]}}, "'mask' cannot be read"),
        ({"kind": "scribble"}, "'kind' must be one of"),
    ],
)
def test_invalid_prompts_are_rejected(tmp_path, entry, message):
    path = write_prompts(tmp_path / "prompts.json", BOX | entry)
    with pytest.raises(DataError, match=message):
        load_video_prompts(path, "clip", 5, 128)


def test_missing_files_are_reported(clip, tmp_path, capsys):
    prompts = write_prompts(tmp_path / "prompts.json", BOX)
    assert run_track(tmp_path / "no.mp4", prompts, tmp_path / "out") == 2
    assert run_track(clip, tmp_path / "no.json", tmp_path / "out") == 2
    errors = capsys.readouterr().err
    assert "VIDEO" in errors and "--prompts" in errors
    assert not (tmp_path / "out").exists()
