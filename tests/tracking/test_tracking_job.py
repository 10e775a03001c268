"""``sam2kit track``: the files it writes, several videos, interruptions, and rejected input."""

import csv
import errno
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import make_sav
from PIL import Image

from sam2kit.cli.main import main
from sam2kit.config.schema import DatasetConfig
from sam2kit.data import VideoFileDataset
from sam2kit.data.pictures import read_labels
from sam2kit.data.sources.video_decoder import OneVideo, open_video
from sam2kit.data.writers import davis_palette
from sam2kit.models import checkpoints
from sam2kit.models.checkpoint_io import read_checkpoint
from sam2kit.prompts.io import load_video_prompts
from sam2kit.tracking import track_video
from sam2kit.tracking.inputs import VideoInput, open_inputs
from sam2kit.tracking.results import mask_folder, read_records
from sam2kit.utils import locks
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
    assert f"sam2kit training-set {out} --to SET" in capsys.readouterr().err
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
    times = {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*.*")}
    assert run_track(clip, prompts, out) == 0  # finished: nothing is tracked or written again
    assert {path: path.stat().st_mtime_ns for path in out.rglob("[!.]*.*")} == times
    write_prompts(prompts, LATE)
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
    read = VideoInput.read_frame

    def interrupted(self, t):
        if t == 3:
            raise KeyboardInterrupt
        return read(self, t)

    monkeypatch.setattr(VideoInput, "read_frame", interrupted)
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
    assert "no.mp4 does not exist" in errors and "--prompts" in errors
    assert not (tmp_path / "out").exists()


# --- several videos, and prompts without a file -------------------------------------------------


def films(root, *names, num_frames=4):
    """Write videos on which a square moves to the right."""
    for name in names:
        frames = np.full((num_frames, HEIGHT, WIDTH, 3), 60, dtype=np.uint8)
        for t in range(num_frames):
            frames[t, 8:28, 4 + t : 24 + t] = (200, 40, 40)
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        save_mp4(root / name, frames)
    return [root / name for name in names]


def track(*arguments):
    argv = [*map(str, arguments), "--model-checkpoint", "nano", "--accelerator", "cpu"]
    return main(["track", *argv])


def png_names(folder):
    return sorted(path.name for path in folder.glob("*.png"))


def test_a_folder_of_videos_with_equal_names(tmp_path):
    root, out = tmp_path / "films", tmp_path / "out"
    films(root, "mon/clip.mp4", "tue/clip.mp4", "a.mp4")
    assert track(root, "--box", "4,8,23,27", "--output-dir", out) == 0
    names = {record.name for record in read_records(out)}
    assert names == {"a", "mon/clip", "tue/clip"}
    for name in names:
        assert png_names(out / "masks" / name) == [f"{t:05d}.png" for t in range(4)]
        folder = next(r.folder for r in read_records(out) if r.name == name)
        assert folder.parent == out / "videos"
        assert {"objects.csv", "overlay.mp4", "overlay.gif", "masks.json", "track.json"} <= {
            path.name for path in folder.iterdir()
        }
    images = json.loads((out / "masks.json").read_text())["images"]
    assert sorted({image["video_id"] for image in images}) == sorted(names) and len(images) == 12
    # The masks are a dataset together with the videos.
    source = VideoFileDataset(root, masks_path=out / "masks")
    assert source.read_masks(source.names.index("mon/clip"), 0)[1].any()


def test_names_of_single_files(tmp_path):
    root = tmp_path / "films"
    paths = films(root, "mon/clip.mp4", "tue/clip.mp4", "tue/b.mp4")
    assert [v.name for v in open_inputs(paths)] == ["mon/clip", "tue/clip", "b"]
    assert [v.name for v in open_inputs([root])] == ["mon/clip", "tue/b", "tue/clip"]
    with pytest.raises(DataError):
        open_inputs([paths[0], paths[0]])
    assert open_inputs([make_sav(tmp_path / "sav")])[0].fps == 12  # the rate of its files
    assert mask_folder("mon/clip") == Path("mon/clip")
    hostile = {mask_folder(name) for name in ("../x", "a//b", "a/../b", "/x", "")}
    assert len(hostile) == 5 and not any(".." in path.parts for path in hostile)
    assert not any(path.is_absolute() for path in hostile)


@pytest.mark.parametrize("kind", ["training_set", "video", "coco", "tiff"])
def test_the_type_of_the_training_videos_does_not_matter(tmp_path, kind):
    (path,) = films(tmp_path, "one.mp4")
    settings = DatasetConfig(type=kind, split="2017/train", masks_path="masks")
    assert [v.name for v in open_inputs([path], settings)] == ["one"]
    assert [v.name for v in open_inputs([tmp_path], settings)] == ["one"]


def test_a_second_video_is_added_to_the_same_folder(tmp_path):
    one, two, same_name = films(tmp_path, "one.mp4", "two.mp4", "x/one.mp4")
    out = tmp_path / "out"
    assert track(one, "--box", "4,8,23,27", "--output-dir", out) == 0
    first = {p: p.read_bytes() for p in out.rglob("[!.]*.*") if p.name != "masks.json"}
    for video in (two, same_name):
        assert track(video, "--box", "4,8,23,27", "--output-dir", out) == 0
    assert {path: path.read_bytes() for path in first} == first
    assert {record.name for record in read_records(out)} == {"one", "two", "x/one"}
    content = json.loads((out / "masks.json").read_text())
    assert len({image["id"] for image in content["images"]}) == 12
    assert len({row["id"] for row in content["annotations"]}) == len(content["annotations"])
    assert {image["video_id"] for image in content["images"]} == {"one", "two", "x/one"}


def test_prompts_on_the_command_line(tmp_path):
    (video,), out = films(tmp_path, "clip.mp4"), tmp_path / "out"
    labels = np.zeros((HEIGHT, WIDTH), np.uint16)
    labels[30:40, 40:50], labels[30:40, 52:60] = 3, 500
    Image.fromarray(labels).save(tmp_path / "labels.png")
    Image.fromarray((labels > 0).astype(np.uint8) * 255).save(tmp_path / "one.tif")
    flags = ["--box", "cell@1=4,8,23,27", "--point", "12,14", "--point", "cell@2=14,14,1"]
    flags += ["--mask", f"{tmp_path / 'labels.png'}", "--mask", f"both@2={tmp_path / 'one.tif'}"]
    assert track(video, *flags, "--output-dir", out) == 0
    record = json.loads((out / "track.json").read_text())
    assert record["objects"] == ["cell", 1, 3, 500, "both"] and record["finished"]
    kinds = [(e["object_id"], e["frame_index"], e["kind"]) for e in record["prompted"]]
    assert kinds == [
        *[("cell", 1, "box"), (1, 0, "point"), ("cell", 2, "point")],
        *[(3, 0, "mask"), (500, 0, "mask"), ("both", 2, "mask")],
    ]


@pytest.mark.parametrize(
    "flags",
    [
        *[["--box", "1,2,3"], ["--box", "cell@x=1,2,3,4"], ["--point", "1,2,5"]],
        *[["--point", "nan,2"], ["--mask", "no.png"], ["--box", "=1,2,3,4"]],
        *[[], ["--box", "1,2,300,4"], ["--box", "@9=1,2,3,4"], ["--box", "9,2,3,4"]],
        ["--box", "1,2,3,4", "--prompts", "p.json"],
    ],
)
def test_wrong_prompts_on_the_command_line(tmp_path, flags):
    (video,) = films(tmp_path, "clip.mp4", num_frames=2)
    try:
        assert track(video, *flags, "--output-dir", tmp_path / "out") == 2
    except SystemExit as stop:  # raised by argparse
        assert stop.code == 2
    assert not list(tmp_path.rglob("*.png"))


def test_masks_of_a_folder_prompt_objects_where_they_are_visible_first(tmp_path):
    films(tmp_path / "films", "a.mp4", "b.mp4")
    first, second = np.zeros((2, HEIGHT, WIDTH), np.uint8)
    first[8:28, 4:24] = second[8:28, 6:26] = 1
    second[30:40, 40:50] = 2
    for name, mask in (("a/00000", first), ("a/00002", second), ("b", first)):
        (tmp_path / "masks" / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(mask).save(tmp_path / "masks" / f"{name}.png")
    out = tmp_path / "out"
    assert track(tmp_path / "films", "--mask", tmp_path / "masks", "--output-dir", out) == 0
    prompted = {r.name: r.content["prompted"] for r in read_records(out)}
    assert [(e["object_id"], e["frame_index"]) for e in prompted["a"]] == [(1, 0), (2, 2)]
    assert [(e["object_id"], e["frame_index"]) for e in prompted["b"]] == [(1, 0)]


def test_a_prompt_file_with_several_videos(tmp_path, capsys):
    root, out = tmp_path / "films", tmp_path / "out"
    films(root, "a.mp4", "b.mp4", "c.mp4")
    entries = [BOX | {"video": "a"}, BOX | {"video": "b", "object_id": 5}]
    prompts = write_prompts(tmp_path / "prompts.json", *entries)
    assert track(root, "--prompts", prompts, "--output-dir", out) == 0
    assert {r.name: r.content["objects"] for r in read_records(out)} == {"a": ["first"], "b": [5]}
    assert "1 of 3 videos" in capsys.readouterr().err
    both = films(tmp_path, "x/a.mp4", "y/a.mp4")
    assert track(*both, "--prompts", prompts, "--output-dir", tmp_path / "new") == 2
    assert "x/a or y/a" in capsys.readouterr().err


def test_300_objects(tmp_path):
    (video,), out = films(tmp_path, "clip.mp4", num_frames=2), tmp_path / "out"
    labels = np.arange(HEIGHT * WIDTH).reshape(HEIGHT, WIDTH) // 3
    labels = np.where(labels < 300, labels + 1, 0).astype(np.uint16)
    Image.fromarray(labels).save(tmp_path / "labels.png")
    assert track(video, "--mask", tmp_path / "labels.png", "--output-dir", out) == 0
    with Image.open(out / "masks" / "clip" / "00000.png") as image:
        assert image.mode == "I;16"
    assert read_labels(out / "masks" / "clip" / "00000.png").pixels.max() > 255
    source = VideoFileDataset(video, masks_path=out / "masks")
    assert max(source.read_masks(0, 0)) > 255


def test_a_slow_time_lapse(clip, tmp_path, monkeypatch):
    prompts, out = write_prompts(tmp_path / "prompts.json", BOX), tmp_path / "out"
    monkeypatch.setattr(OneVideo, "fps", 1 / 3600)
    monkeypatch.setattr("sam2kit.tracking.tracking_job.GIF_FRAMES", 1)
    assert run_track(clip, prompts, out) == 0
    assert (out / "masks.json").exists() and (out / "overlay.gif").exists()
    assert open_video(out / "overlay.mp4").num_frames(0) == 5


# --- interruptions ------------------------------------------------------------------------------


def contents(out):
    files = [path for path in out.rglob("[!.]*") if path.is_file()]
    return {path.relative_to(out): path.read_bytes() for path in files}


def start_track(videos, out):
    argv = ["track", *videos, "--box", "4,8,23,27", "--output-dir", out, "--accelerator", "cpu"]
    command = [sys.executable, "-m", "sam2kit", *map(str, argv), "--model-checkpoint", "nano"]
    return subprocess.Popen(command, stderr=subprocess.DEVNULL)


def test_a_killed_track_is_resumed(tmp_path):
    videos = films(tmp_path / "films", "a.mp4", "b.mp4", num_frames=30)
    out, undisturbed = tmp_path / "out", tmp_path / "undisturbed"
    assert track(*videos, "--box", "4,8,23,27", "--output-dir", undisturbed) == 0
    for path in (out / "masks" / "a" / "00003.png", out / "masks" / "b" / "00003.png"):
        process = start_track(videos, out)
        while not path.exists() and process.poll() is None:
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait(60) == -signal.SIGKILL
    assert not {r.name: r.finished for r in read_records(out)}["b"]
    assert track(*videos, "--box", "4,8,23,27", "--output-dir", out) == 0
    assert contents(out) == contents(undisturbed)


def test_a_folder_in_use_is_named(tmp_path, capsys):
    (video,), out = films(tmp_path, "a.mp4"), tmp_path / "out"
    out.mkdir()
    lock = locks.acquire(out / ".track.lock")
    assert track(video, "--box", "4,8,23,27", "--output-dir", out) == 2
    assert f"process {os.getpid()}" in capsys.readouterr().err
    os.close(lock)


def test_a_file_system_without_locks(tmp_path, monkeypatch):
    def flock(file, operation):
        raise OSError(errno.ENOLCK, "No locks available")

    (video,), out = films(tmp_path, "a.mp4"), tmp_path / "out"
    monkeypatch.setattr(locks.fcntl, "flock", flock)
    assert track(video, "--box", "4,8,23,27", "--output-dir", out) == 0


def test_the_checkpoint_is_read_once_and_before_the_folder_is_made(tmp_path, monkeypatch, capsys):
    reads = []

    def read(path, mmap=False):
        reads.append(path)
        return read_checkpoint(path, mmap)

    monkeypatch.setattr(checkpoints, "read_checkpoint", read)
    (video,), out = films(tmp_path, "a.mp4"), tmp_path / "out"
    assert track(video, "--box", "4,8,23,27", "--output-dir", out) == 0
    assert len(reads) == 1
    state = read_checkpoint(reads[0])["model"]
    state["maskmem_tpos_enc"][:] = float("nan")
    torch.save({"model": state}, tmp_path / "nan.pt")
    argv = ["track", str(video), "--box", "4,8,23,27", "--output-dir", str(tmp_path / "other")]
    assert main([*argv, "--model-checkpoint", str(tmp_path / "nan.pt")]) == 2
    assert "nan.pt" in capsys.readouterr().err and not (tmp_path / "other").exists()


def test_masks_of_others_are_not_replaced(tmp_path, capsys):
    (video,), out = films(tmp_path, "a.mp4"), tmp_path / "out"
    (out / "masks" / "a").mkdir(parents=True)
    Image.new("L", (3, 3)).save(out / "masks" / "a" / "00000.png")
    assert track(video, "--box", "4,8,23,27", "--output-dir", out) == 2
    assert "--output-dir" in capsys.readouterr().err


def test_overwrite_replaces_other_objects(tmp_path):
    (video,), out = films(tmp_path, "a.mp4"), tmp_path / "out"
    assert track(video, "--box", "cat=4,8,23,27", "--output-dir", out) == 0
    assert track(video, "--box", "4,8,23,27", "--output-dir", out) == 2
    assert track(video, "--box", "4,8,23,27", "--output-dir", out, "--overwrite") == 0
    assert not (out / "masks" / "a" / "objects.json").exists()
    assert list(VideoFileDataset(video, masks_path=out / "masks").read_masks(0, 0)) == [1]
    prompt = {"object_id": "dog", "frame_index": 0, "kind": "box", "box": [4, 8, 23, 27]}
    track_video(video, [prompt], "nano", out, "cpu", overwrite=True, to="cvat")
    assert list(VideoFileDataset(video, masks_path=out / "masks").read_masks(0, 0)) == ["dog"]
    assert (out / "labels" / "a.xml").is_file()
