"""Test that the doctor reports each planted fault by its file, and nothing in healthy data."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from data_helpers import compressed, save_json, save_palette, save_video, square, training_videos
from PIL import Image

from sam2kit.cli.main import main
from sam2kit.config.loading import load_config
from sam2kit.config.schema import DatasetConfig
from sam2kit.data import (
    ClipDataset,
    SelectedVideos,
    build_datasets,
    open_source,
)
from sam2kit.data.doctor.report import Examination, run_doctor
from sam2kit.data.doctor.video_checks import (
    IdentityChecker,
    VideoRecord,
    has_soft_edges,
    order_problem,
)
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import DataError

SHARED = Path(__file__).parents[3] / "shared"
SIZE = (48, 64)
FRAMES = 6
SETTINGS = DatasetConfig(image_size=64, video_clip_length=4)


def write_frame(path: Path, seed: object, size: tuple[int, int] = SIZE) -> None:
    """Write noise, which is different for each seed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    generator = np.random.default_rng(list(str(seed).encode()))
    Image.fromarray(generator.integers(0, 255, (*size, 3), np.uint8)).save(path)


def ids_of(t: int) -> np.ndarray:
    """The ids on frame t: object 1 moves to the right, object 2 does not move."""
    ids = np.zeros(SIZE, np.uint8)
    ids[square(4, 4 + 4 * t, 14, SIZE)] = 1
    ids[square(28, 40, 12, SIZE)] = 2
    return ids


def healthy(root: Path, videos: str = "abc") -> Path:
    for name in videos:
        for t in range(FRAMES):
            write_frame(root / f"JPEGImages/{name}/{t:05d}.png", f"{root.name}{name}{t}")
            save_palette(root / f"Annotations/{name}/{t:05d}.png", ids_of(t))
    return root


def change_ids(path: Path, change: Callable[[np.ndarray], None]) -> None:
    ids = np.array(Image.open(path))
    change(ids)
    save_palette(path, ids)


def examine(root: Path, **more: object) -> Examination:
    return run_doctor(root, SETTINGS, **more)


def kinds(examination: Examination) -> list[tuple[str, str]]:
    return [(f.severity, f.kind) for f in examination.findings]


# --- planted faults ------------------------------------------------------------------------------
# Each function plants a fault in video b of a healthy dataset, and returns the expected finding.

FRAME, MASK = "JPEGImages/b/00003.png", "Annotations/b/00003.png"
Planted = tuple[str, str, tuple[str, ...]]
"""Severity and kind of the finding, and texts that it contains."""
FAULTS: dict[str, Callable[[Path], Planted]] = {}


def fault(plant: Callable[[Path], Planted]) -> Callable[[Path], Planted]:
    FAULTS[plant.__name__] = plant
    return plant


@fault
def unreadable_frame(root: Path) -> Planted:
    (root / FRAME).write_bytes(b"no picture")
    return "error", "refused", (FRAME, "replace the file")


@fault
def empty_frame_file(root: Path) -> Planted:
    (root / FRAME).write_bytes(b"")
    return "error", "refused", (FRAME, "replace the file")


@fault
def truncated_frame(root: Path) -> Planted:
    (root / FRAME).write_bytes((root / FRAME).read_bytes()[:-3000])
    return "error", "refused", (FRAME, "replace the file")


@fault
def truncated_jpeg(root: Path) -> Planted:
    path = (root / FRAME).with_suffix(".jpg")
    Image.open(root / FRAME).save(path, quality=95)
    (root / FRAME).unlink()
    path.write_bytes(path.read_bytes()[:-2000])
    return "error", "refused", ("JPEGImages/b/00003.jpg", "replace the file")


@fault
def truncated_mask(root: Path) -> Planted:
    (root / MASK).write_bytes((root / MASK).read_bytes()[:-60])
    return "error", "refused", (MASK, "replace the file")


@fault
def mask_of_another_size(root: Path) -> Planted:
    save_palette(root / MASK, ids_of(3)[:40])
    return "error", "refused", (MASK, "40 rows", FRAME, "48")


@fault
def frame_of_another_size(root: Path) -> Planted:
    write_frame(root / FRAME, "larger", (60, 80))
    save_palette(root / MASK, np.kron(ids_of(3), np.ones((2, 2), int))[:60, :80])
    return "error", "sizes", ("'b'", "(48, 64), (60, 80)")


@fault
def colours(root: Path) -> Planted:
    Image.open(root / MASK).convert("RGB").save(root / MASK)
    return "error", "refused", (MASK, "colours are not object numbers")


@fault
def jpeg_masks(root: Path) -> Planted:
    for path in sorted((root / "Annotations/b").iterdir()):
        Image.open(path).convert("RGB").save(path.with_suffix(".jpg"))
        path.unlink()
    return "error", "refused", ("Annotations/b", "no PNG masks")


@fault
def masks_that_were_jpeg(root: Path) -> Planted:
    for t in range(FRAMES):
        path = root / f"Annotations/b/{t:05d}"
        Image.fromarray(100 * ids_of(t)).save(path.with_suffix(".jpg"), quality=60)
        Image.open(path.with_suffix(".jpg")).save(path.with_suffix(".png"))
        path.with_suffix(".jpg").unlink()
    return "error", "refused", ("Annotations/b/00000.png", "shades")


@fault
def smoothed_palette_masks(root: Path) -> Planted:
    for t in range(FRAMES):
        smooth = Image.fromarray(100 * ids_of(t)).resize((32, 24)).resize((64, 48))
        save_palette(root / f"Annotations/b/{t:05d}.png", np.array(smooth))
    return "warning", "colours", ("Annotations/b/00000.png", "on 6 frames", "seams")


@fault
def swapped_ids(root: Path) -> Planted:
    for t in range(3, FRAMES):
        change_ids(
            root / f"Annotations/b/{t:05d}.png", lambda ids: np.putmask(ids, ids > 0, 3 - ids)
        )
    return "warning", "identity", (MASK, "1 and 2 swap positions", "00002.png")


@fault
def id_for_one_frame(root: Path) -> Planted:
    change_ids(root / MASK, lambda ids: np.putmask(ids, ids == 2, 9))
    return "warning", "identity", (MASK, "object 9 is where object 2 was")


@fault
def mask_missing_on_one_frame(root: Path) -> Planted:
    change_ids(root / MASK, lambda ids: np.putmask(ids, ids == 2, 0))
    return "warning", "identity", (MASK, "object 2 is missing on this frame only")


@fault
def frame_missing(root: Path) -> Planted:
    (root / FRAME).unlink(), (root / MASK).unlink()
    return "warning", "order", ("'b'", "between 00002 and 00004")


@fault
def frame_twice(root: Path) -> Planted:
    shutil.copy(root / FRAME, root / "JPEGImages/b/00004.png")
    return "warning", "duplicates", ("'b'", "00003 and 00004 have the same pixels")


@fault
def video_twice(root: Path) -> Planted:
    for part in ("JPEGImages", "Annotations"):
        shutil.rmtree(root / part / "b")
        shutil.copytree(root / part / "a", root / part / "b")
    return "warning", "duplicates", ("'a'", "'b'", "6 frames with the same pixels")


@fault
def object_never_seen(root: Path) -> Planted:
    shutil.rmtree(root / "Annotations/b")
    for t in range(FRAMES):
        save_palette(root / f"Annotations/b/1/{t:05d}.png", ids_of(t) == 1)
        save_palette(root / f"Annotations/b/spoon/{t:05d}.png", np.zeros(SIZE))
    return "warning", "absent", ("'b'", "'spoon'", "never appears")


@fault
def tiny_object(root: Path) -> Planted:
    for t in range(FRAMES):
        change_ids(root / f"Annotations/b/{t:05d}.png", lambda ids: ids[44:47, 2:5].fill(7))
    return "warning", "tiny", ("'b'", "object 7", "0.8 cells of the 16 x 16")


@fault
def object_lost_at_training_size(root: Path) -> Planted:
    for t in range(FRAMES):
        write_frame(root / f"JPEGImages/b/{t:05d}.png", f"large{t}", (192, 256))
        ids = np.kron(ids_of(t), np.ones((4, 4), int))
        ids[185, 2:120] = 7
        save_palette(root / f"Annotations/b/{t:05d}.png", ids)
    return "warning", "tiny", ("'b'", "object 7", "it vanishes at 64 pixels")


@fault
def short_video(root: Path) -> Planted:
    for t in range(3, FRAMES):
        (root / f"JPEGImages/b/{t:05d}.png").unlink()
        (root / f"Annotations/b/{t:05d}.png").unlink()
    return "warning", "short", ("'b'", "3 frames, but a clip spans 4")


@fault
def video_without_an_object(root: Path) -> Planted:
    for t in range(FRAMES):
        save_palette(root / f"Annotations/b/{t:05d}.png", np.zeros(SIZE))
    return "error", "empty", ("'b'", "none of its 6 frames shows an object at 64 pixels")


@fault
def mask_without_a_frame(root: Path) -> Planted:
    (root / FRAME).unlink()
    return "error", "refused", ("Annotations/b", "00003.png")


@fault
def folder_without_masks(root: Path) -> Planted:
    shutil.rmtree(root / "Annotations/b")
    return "warning", "unannotated", ("'b'", "not used for training")


@fault
def folder_without_frames(root: Path) -> Planted:
    shutil.rmtree(root / "JPEGImages/b")
    (root / "JPEGImages/b").mkdir()
    return "error", "refused", ("JPEGImages/b", "contains no frames")


@pytest.mark.parametrize("name", FAULTS)
def test_planted_fault_is_reported(tmp_path, name):
    severity, kind, texts = FAULTS[name](healthy(tmp_path))
    examination = examine(tmp_path)
    assert set(kinds(examination)) == {(severity, kind)}, examination.text()
    report = f"{examination.findings[0].where}: {examination.findings[0].message}"
    assert all(text in report for text in texts), report
    assert examination.broken == (severity == "error")
    assert {"a", "c"} <= {video.name for video in examination.videos}  # the others are read


@pytest.mark.parametrize("name", FAULTS)
def test_training_raises_the_message_of_each_error_that_the_doctor_reports(tmp_path, name):
    severity, *_ = FAULTS[name](healthy(tmp_path))
    settings = replace(SETTINGS, data_path=str(tmp_path), video_clip_length=6)
    messages = {f.message.partition(" (and")[0] for f in examine(tmp_path).findings}
    try:
        clips = ClipDataset(training_videos(settings, 0), settings, training=False, seed=0)
        _ = [clips[n] for n in range(len(clips))]
    except DataError as error:
        assert severity == "error" and any(m in str(error) for m in messages), messages
    else:
        assert severity == "warning"


@pytest.mark.parametrize("name", ["video_without_an_object", "colours"])
def test_training_rejects_data_before_it_creates_the_run_directory(tmp_path, name):
    FAULTS[name](healthy(tmp_path / "data"))
    if name == "colours":  # masks are read up to the first object
        (tmp_path / "data" / MASK).replace(tmp_path / "data/Annotations/b/00000.png")
    keys = [f"dataset.data_path={tmp_path / 'data'}", "dataset.image_size=64", "model=nano"]
    (finding,) = examine(tmp_path / "data").findings
    with pytest.raises(DataError) as error:
        fit(load_config(None, keys), tmp_path / "run")
    assert finding.message in str(error.value) and not (tmp_path / "run").exists()


def test_short_videos_with_short_videos_error(tmp_path):
    short_video(healthy(tmp_path))
    keys = (f"dataset.data_path={tmp_path}", "dataset.image_size=64", "dataset.short_videos=error")
    examination = run_doctor(load_config(None, [*keys, "dataset.video_clip_length=4"]))
    assert kinds(examination) == [("error", "short")] and len(examination.videos) == 3
    assert examination.findings[0].message.startswith("video 'b' has 3 frames, but a clip spans 4")


def test_split_that_names_a_missing_video(tmp_path):
    healthy(tmp_path)
    (tmp_path / "list.txt").write_text("a\nmissing\n")
    keys = [f"dataset.data_path={tmp_path}", f"dataset.split={tmp_path / 'list.txt'}"]
    examination = run_doctor(load_config(None, keys))
    assert kinds(examination) == [("error", "refused")] and "'missing'" in examination.text()


def test_split_of_a_folder_is_not_replaced_by_all_videos(tmp_path):
    """Folders that cannot be opened as a whole are opened one by one, with the same keys."""
    root, split = str(healthy(tmp_path / "data")), tmp_path / "list.txt"
    examination = run_doctor(root, replace(SETTINGS, split="nope.txt"))
    assert kinds(examination) == [("error", "refused")] and not examination.videos
    assert "split='nope.txt'" in examination.text()
    split.write_text("a\nb\n")
    shutil.rmtree(tmp_path / "data/JPEGImages/b")
    (tmp_path / "data/JPEGImages/b").mkdir()
    examination = run_doctor(root, replace(SETTINGS, split=str(split)))
    assert [video.name for video in examination.videos] == ["a"] and examination.broken


def test_all_faults_are_reported_and_readable_files_are_read(tmp_path):
    healthy(tmp_path, "abcdef")
    shutil.rmtree(tmp_path / "Annotations/b")
    (tmp_path / "JPEGImages/c/00000.png").unlink()
    (tmp_path / "JPEGImages/d/00001.png").write_bytes(b"")
    (tmp_path / "JPEGImages/e/00005.png").write_bytes(b"")
    examination = examine(tmp_path)
    assert [v.name for v in examination.videos] == ["a", "b", "d", "e", "f"]
    assert kinds(examination) == [
        *[("error", "refused")] * 1,
        ("warning", "unannotated"),
        *[("error", "refused")] * 2,
    ]
    assert [Path(f.where).name for f in examination.findings[2:]] == ["00001.png", "00005.png"]


@pytest.mark.parametrize("name", ["nowhere", "labels.json", "video.mp4"])
def test_data_that_cannot_be_opened_are_reported(tmp_path, name):
    if name != "nowhere":
        (tmp_path / name).write_text("{")
    examination = examine(tmp_path / name)
    assert examination.broken and name in examination.text() and not examination.videos
    assert name in examination.page() and json.loads(examination.to_json())["broken"]


def test_frame_names_that_contradict_the_order(tmp_path):
    healthy(tmp_path, "a")
    images = [
        {"id": t, "video_id": "a", "order_in_video": t, "file_name": f"JPEGImages/a/{n:05d}.png"}
        for t, n in enumerate([0, 1, 3, 2, 4, 5])
    ]
    rows = [
        {"id": t, "image_id": t, "track_id": 1, "category_id": 1}
        | {"segmentation": compressed(ids_of(t) == 1)}
        for t in range(FRAMES)
    ]
    content = {"images": images, "annotations": rows, "categories": [{"id": 1, "name": "x"}]}
    (finding,) = examine(save_json(tmp_path / "labels.json", content)).findings
    assert finding.kind == "order" and "00002 comes after 00003" in finding.message


# --- training and validation ---------------------------------------------------------------------


def test_validation_video_with_training_frames_under_another_name(tmp_path):
    train, val = healthy(tmp_path / "train"), healthy(tmp_path / "val", "xy")
    for t in (1, 2):
        shutil.copy(train / f"JPEGImages/c/{t:05d}.png", val / f"JPEGImages/y/{t + 2:05d}.png")
    examination = examine(train, val=val)
    assert kinds(examination) == [("warning", "shared")] and not examination.broken
    (finding,) = examination.findings
    assert finding.where == "training video 'c' and validation video 'y'"
    assert finding.message.startswith("2 frames with the same pixels")


def test_validation_video_with_the_name_of_a_training_video(tmp_path):
    train, val = healthy(tmp_path / "train"), healthy(tmp_path / "val", "cd")
    examination = examine(train, val=val)
    assert [(f.kind, f.where) for f in examination.findings] == [("shared", "video 'c'")]
    assert [row["part"] for row in examination.summary()] == ["training", "validation"]


def test_configuration_is_split_as_in_its_run(tmp_path):
    healthy(tmp_path, "abcde")
    keys = ("dataset.image_size=64", "dataset.video_clip_length=4", "valdataset.fraction=0.4")
    config = load_config(None, [f"dataset.data_path={tmp_path}", *keys])
    examination = run_doctor(config)
    assert examination.findings == [] and examination.settings["image_size"] == 64
    train, val = build_datasets(config)
    parts = [(v.name, v.part) for v in examination.videos]
    expected = [(n, "training") for n in train.source.names]
    assert parts == expected + [(n, "validation") for n in val.source.names]
    (tmp_path / "JPEGImages/a/00000.png").unlink()  # a mask without its frame
    examination = run_doctor(config)
    assert [v.name for v in examination.videos] == list("bcde") and examination.broken


def test_generated_clips_of_training_are_noted(tmp_path):
    healthy(tmp_path, "abcde")
    keys = ("dataset.image_size=64", "dataset.video_clip_length=4", "dataset.replay=0.5")
    config = load_config(None, [f"dataset.data_path={tmp_path}", *keys])
    examination = run_doctor(config)
    assert examination.findings == [] and len(examination.videos) == 5
    assert any("8 clips, 4 of them generated" in note for note in examination.notes)


# --- no false alarms -----------------------------------------------------------------------------


def test_healthy_data_have_no_findings_in_any_number_of_processes(tmp_path):
    healthy(tmp_path, "abcdefghij")
    one, other = examine(tmp_path), examine(tmp_path, workers=2)
    assert one.findings == other.findings == []
    assert one.to_json() == other.to_json()
    assert one.verdict() == "no problems found"


def test_samples_are_healthy():
    root = Path(__file__).parents[2] / "data_samples"
    source = open_source(root)
    selected = SelectedVideos(source, list(range(0, len(source), 4)))
    assert run_doctor(selected, DatasetConfig(image_size=128)).findings == []
    assert run_doctor(root / "val.json", DatasetConfig(image_size=128)).findings == []


@pytest.mark.skipif(not (SHARED / "davis").is_dir(), reason="needs ../shared/davis")
@pytest.mark.parametrize(
    "names", [("libby",), pytest.param(None, marks=pytest.mark.slow)], ids=["one", "all"]
)
def test_davis_is_healthy(names):
    source = open_source(SHARED / "davis")
    selected = SelectedVideos(source, [source.names.index(n) for n in names or source.names])
    assert run_doctor(selected).findings == []


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "sav").is_dir(), reason="needs ../shared/sav")
def test_sav_is_healthy(tmp_path):
    """Real masklets on generated frames."""
    file = next((SHARED / "sav").glob("*_manual.json"))
    shutil.copyfile(file, tmp_path / file.name)
    name = file.stem.removesuffix("_manual")
    save_video(tmp_path / f"{name}.mp4", [t % 250 for t in range(483)], size=(848, 480))
    examination = run_doctor(tmp_path)
    assert examination.findings == [] and examination.summary()[0]["objects"] == 5


@pytest.mark.slow
@pytest.mark.skipif(not (SHARED / "video").is_dir(), reason="needs ../shared/video")
def test_filmed_video_is_healthy():
    examination = run_doctor(SHARED / "video" / "juggle.mp4")
    assert examination.findings == [] and examination.videos[0].annotated == 0


def identity_messages(*frames: dict[int, np.ndarray]) -> list[str]:
    record = VideoRecord("a", "training", len(frames))
    checker = IdentityChecker(record, str)
    for t, masks in enumerate(frames):
        checker.check_frame(t, masks)
    return [f.message for f in record.findings]


def at(column: int, side: int = 10) -> np.ndarray:
    return square(4, column, side, SIZE)


@pytest.mark.parametrize(
    "frames",
    [
        [
            {1: at(0), 2: at(20)},
            {1: at(5), 2: at(15)},
            {1: at(15), 2: at(5)},
        ],  # they pass each other
        [{1: at(0)}, {2: at(30)}],  # one disappears, another appears at another position
        [{1: at(0), 2: at(30)}, {2: at(0)}, {1: at(0), 2: at(30)}],  # 2 occludes 1 on one frame
        [{1: at(0)}, {}, {1: at(20)}],  # disappears, and returns at another position
        [{1: at(0)}, {}, {}, {1: at(0)}],  # missing on two frames
        [{1: at(0), 2: at(0)}, {1: at(2), 2: at(2)}],  # two masks of the same region
        [{1: at(0, 20), 2: at(5)}, {1: at(0, 20)}, {1: at(0, 20), 2: at(5)}],  # part of another
    ],
)
def test_motion_and_occlusion_are_not_reported(frames):
    if len(frames) == 3 and 1 in frames[2] and frames[0].keys() == {1, 2} == frames[1].keys():
        frames = [frames[0], {1: at(10), 2: at(12)}, frames[2]]
    assert not [m for m in identity_messages(*frames) if "swap positions" in m or "missing" in m]


def test_swap_is_reported_once():
    (message,) = identity_messages({1: at(0), 2: at(30)}, {1: at(30), 2: at(1)})
    assert message.startswith("objects 1 and 2 swap positions")


@pytest.mark.parametrize(
    ("names", "problem"),
    [
        (["00000", "00005", "00010", "00015"], None),
        (["00000", "00005", "00010", "00020"], "between 00010 and 00020"),
        (["1", "2", "3"], None),
        (["img_1a", "img_2a", "img_4a", "img_5a"], "between img_2a and img_4a"),
        (["0.13", "0.57", "1.02", "1.31"], None),
        (["a", "b", "d"], None),
        (["1", "2", "3", "5", "6", "8"], "and in 1 more gaps"),
        (["f1", "f2", "f4", "f3", "f5"], "f3 comes after f4"),
        (["x3", "y1", "z2", "x9"], None),
        (["f098", "f099", "f100", "f102"], "between f100 and f102"),
        (["7"], None),
    ],
)
def test_order_of_frame_names(names, problem):
    message = order_problem(names)
    assert message is None if problem is None else problem in (message or "")


def test_many_small_objects_are_not_taken_for_seams():
    cells = [square(4 * r, 4 * c, 3, SIZE) for r in range(8) for c in range(8)]
    assert not has_soft_edges(cells)
    assert has_soft_edges([square(4 * r, 0, 2, SIZE) for r in range(5)] + [at(30)])


# --- the report and the command ------------------------------------------------------------------


def test_numbers_of_the_report(tmp_path):
    healthy(tmp_path, "a")
    for t in (1, 4):
        (tmp_path / f"Annotations/a/{t:05d}.png").unlink()
    change_ids(tmp_path / "Annotations/a/00003.png", lambda ids: np.putmask(ids, ids == 1, 0))
    examination = examine(tmp_path)
    (row,) = examination.rows()
    assert (row["frames"], row["size"], row["objects"]) == (6, "64x48", 2)
    assert row["annotated"] == 4 / 6 and row["visible"] == 7 / 8
    assert row["smallest"] == 144 / (48 * 64) and row["largest"] == 196 / (48 * 64)
    (summary,) = examination.summary()
    assert (summary["videos"], summary["annotated"], summary["masks"]) == (1, 4, 7)
    text = examination.text()
    for part in ("annotated, % of frames", "size, px", "| 67 |", "| 4.69 | 6.38 |"):
        assert part in text
    content = json.loads(examination.to_json())
    (video,) = content["videos"]
    assert video["object_areas"]["1"] == {"visible": 3, "area": [196 / 3072] * 3}
    assert content["findings"] == [] and content["schema_version"] == 1


def test_command_writes_text_json_and_html(tmp_path, capsys):
    healthy(tmp_path / "data", "ab")
    assert main(["doctor", str(tmp_path / "data"), "--image-size", "64", "--workers", "0"]) == 0
    assert capsys.readouterr().out.endswith("no problems found\n")
    (tmp_path / "data" / FRAME).write_bytes(b"")
    (tmp_path / "data/JPEGImages/<i>x").mkdir()
    argv = ["doctor", str(tmp_path / "data"), "dataset.image_size=64", "--clip-length", "9"]
    files = ["--json", str(tmp_path / "out.json"), "--html", str(tmp_path / "out.html")]
    assert main([*argv, *files, "--workers", "0"]) == 1
    text = capsys.readouterr().out
    assert FRAME in text and "4 problems; 2 of them would stop training" in text
    content = json.loads((tmp_path / "out.json").read_text())
    assert content["broken"] and content["settings"]["video_clip_length"] == 9
    page = (tmp_path / "out.html").read_text()
    assert FRAME in page and "&lt;i&gt;x" in page and "<i>x" not in page
    assert page.count('<li class="error">') == 2 and 'src="data:image/svg' in page
    assert "://" not in page.replace("http://www.w3.org", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["a", "b"], "one DATA"),
        ([], "dataset.data_path: not set"),
        (["a", "--image-size", "50"], "dataset.image_size"),
        (["a", "--json", "nowhere/out.json"], "--json"),
        (["a", "dataset.nothing=1"], "dataset.nothing"),
    ],
)
def test_command_rejects_invalid_arguments(argv, message, capsys):
    assert main(["doctor", *argv]) == 2
    assert message in capsys.readouterr().err


def test_tracked_frames_with_truth_are_counted(tmp_path):
    healthy(tmp_path, "ab")
    for t in (1, 2, 4, 5):
        (tmp_path / f"Annotations/b/{t:05d}.png").unlink()
    examination = examine(tmp_path)
    assert not examination.broken
    assert [row["tracked truth"] for row in examination.rows()] == [3, 1]
    settings = json.loads(examination.to_json())["settings"]
    assert settings["max_annotation_gap"] == SETTINGS.max_annotation_gap


def test_videos_without_a_tracked_truth_are_errors(tmp_path):
    healthy(tmp_path, "abc")
    for t in range(FRAMES):
        if t != 2:
            (tmp_path / f"Annotations/b/{t:05d}.png").unlink()
        if t not in (0, 5):
            (tmp_path / f"Annotations/c/{t:05d}.png").unlink()
    settings = replace(SETTINGS, max_annotation_gap=4)
    findings = run_doctor(tmp_path, settings).findings
    assert [(f.severity, f.kind, f.where) for f in findings] == [
        ("error", "supervision", "video 'b'"),
        ("error", "supervision", "video 'c'"),
    ]
    assert "only frame 2" in findings[0].message
    assert "max_annotation_gap=5" in findings[1].message


def test_ids_that_change_on_every_annotated_frame(tmp_path):
    healthy(tmp_path, "ab")
    for t in range(FRAMES):
        file = tmp_path / f"Annotations/b/{t:05d}.png"
        file.unlink()
        if t < 4:
            save_palette(file, (t + 1) * square(4, 4 + 12 * t, 10, SIZE))
    (finding,) = (f for f in examine(tmp_path).findings if f.kind == "supervision")
    assert finding.severity == "error" and "1, 2, 3, 4" in finding.message


def test_data_without_masks_need_generated_objects(tmp_path):
    healthy(tmp_path, "ab")
    shutil.rmtree(tmp_path / "Annotations")
    (finding,) = examine(tmp_path).findings
    assert (finding.severity, finding.kind) == ("error", "unannotated")
    assert "dataset.synthetic_objects" in finding.message
    assert not run_doctor(tmp_path, replace(SETTINGS, synthetic_objects=3)).findings
