"""The shipped model nano: training recipe, scores, files and lookup by name."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
from lightning.pytorch import Trainer
from PIL import Image
from sam2.build_sam import build_sam2_video_predictor

from sam2kit.cli.main import main
from sam2kit.config.loading import config_dir, load_config
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.models import checkpoints
from sam2kit.models.checkpoints import (
    NANO_KEY,
    NANO_VERSION,
    create_sam2_model,
    find_checkpoint,
    load_model,
    load_run,
    load_weights,
    save_adapter,
    save_weights,
)
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import CheckpointError

ROOT = Path(__file__).parents[2]
STAGES = (
    *("1_masks", "2_images", "3_images", "4_clips", "5_lifelike", "6_long"),
    *("7_rendered", "8_longer"),
)
RENDERED_STAGES = STAGES[6:]
SCORES = ROOT / "benchmarks" / "nano_scores.py"


@pytest.fixture
def config(tiny_config, tmp_path):
    tiny_config.dataset.type = "synthetic"
    tiny_config.dataset.video_clip_length = 2
    tiny_config.dataset.synthetic_videos = 3
    tiny_config.valdataset.synthetic_videos = 1
    tiny_config.trainer.accelerator = "cpu"
    tiny_config.trainer.max_epochs = 1
    tiny_config.output_dir = str(tmp_path / "outputs")
    return tiny_config


def test_averaged_weights_are_validated_and_saved(config):
    config.trainer.ema_decay = 0.9
    result = fit(config)
    content = torch.load(result.best_checkpoint, weights_only=True)
    average, current = content["state_dict"], content["current_model_state"]
    assert average.keys() == current.keys()
    assert any(not torch.equal(average[k], current[k]) for k in average)
    model = create_sam2_model(config)
    load_weights(model, result.best_checkpoint)
    name = "sam_mask_decoder.iou_token.weight"
    assert torch.equal(model.state_dict()[name], average[f"model.{name}"])


def test_averaging_resumes_where_it_stopped(config, tmp_path):
    config.trainer.ema_decay = 0.9
    config.trainer.max_epochs = 2
    whole = fit(config, tmp_path / "whole")
    config.trainer.max_steps = 4
    first = fit(config, tmp_path / "first")
    config.trainer.max_steps = -1
    config.scheduler.name = "cosine"
    config.trainer.resume_from = str(first.last_checkpoint)
    second = fit(config, tmp_path / "second")
    ends = [torch.load(r.last_checkpoint, weights_only=True) for r in (whole, second)]
    assert ends[0]["global_step"] == ends[1]["global_step"] == 6
    assert ends[0]["averaging_state"] == ends[1]["averaging_state"]
    for key in ("state_dict", "current_model_state"):
        drift = max(float((ends[0][key][k] - ends[1][key][k]).abs().max()) for k in ends[0][key])
        # The first run's cosine schedule has four steps instead of six.
        assert drift < 1e-3


def test_time_limit_ends_a_run_with_checkpoints(config):
    config.trainer.max_time = "00:00:00:01"
    config.trainer.max_epochs = 10000
    result = fit(config)
    content = torch.load(result.last_checkpoint, weights_only=True)
    assert 0 < content["global_step"] < 3000 and result.best_checkpoint.is_file()


@pytest.mark.slow
def test_stages_train_in_sequence(tmp_path):
    """The whole recipe, shortened, through the command line."""
    short = [
        "trainer.max_steps=2",
        "trainer.max_epochs=1",
        "dataset.synthetic_videos=4",
        "dataset.batch_size=2",
        "dataset.image_size=64",
        "dataset.num_workers=0",
        "valdataset.synthetic_videos=2",
    ]
    rendered = tmp_path / "rendered"
    for name, step in (("train_a", 4), ("train_b", 6), ("val_a", 3)):
        write_square_video(rendered, name, step)
    (rendered / "ImageSets").mkdir()
    (rendered / "ImageSets" / "train.txt").write_text("train_a\ntrain_b\n")
    (rendered / "ImageSets" / "val.txt").write_text("val_a\n")
    entries = [f"{{type: video, data_path: {rendered}, split: train}}"]
    entries += ["{type: synthetic, synthetic_videos: 4}"]
    mixture = [f"dataset.mixture=[{','.join(entries)}]", f"valdataset.data_path={rendered}"]
    previous = None
    for stage in STAGES:
        argv = ["train", "--config", str(config_dir() / "nano" / f"{stage}.yaml"), *short]
        argv += mixture if stage in RENDERED_STAGES else []
        argv += ["--run-dir", str(tmp_path / stage)]
        if previous is not None:
            argv += ["--model-checkpoint", str(previous)]
        assert main(argv) == 0
        previous = tmp_path / stage / "best.ckpt"
        assert "current_model_state" in torch.load(previous, weights_only=True)


def test_each_stage_starts_from_the_previous_one():
    configs = [load_config(config_dir() / "nano" / f"{stage}.yaml") for stage in STAGES]
    assert configs[0].model.checkpoint == "random"
    for previous, config in zip(STAGES, configs[1:], strict=False):
        file = Path(config.model.checkpoint or "")
        assert file.parent == Path("outputs/nano") / previous
        assert file.name == ("last.ckpt" if previous in RENDERED_STAGES else "best.ckpt")
    assert configs[0].dataset.prompt_types == ["mask"]
    assert configs[1].dataset.video_clip_length == configs[2].dataset.video_clip_length == 1
    assert all(set(c.dataset.prompt_types) == {"mask", "box", "point"} for c in configs[3:])
    assert [c.dataset.synthetic_lifelike for c in configs[:6]] == [0, 0, 0, 0.3, 0.8, 0.9]
    assert [c.dataset.type for c in configs] == ["synthetic"] * 6 + ["mixture"] * 2
    assert [c.dataset.image_size for c in configs] == [128] * 6 + [192] * 2
    for config in configs[6:]:
        paths = [part.data_path for part in config.dataset.parts()]
        assert paths == [config.valdataset.data_path, None]
    assert all(c.loss.object_score > 0 and c.loss.iou_head > 0 for c in configs)


def test_safetensors_hold_the_model_in_half_precision(tiny_config, tmp_path):
    model = create_sam2_model(tiny_config)
    save_weights(model, tmp_path / "nano.safetensors")
    assert (tmp_path / "nano.safetensors").stat().st_size < 5e6
    other = create_sam2_model(tiny_config)
    load_weights(other, tmp_path / "nano.safetensors")
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value.half().float())


def test_error_names_a_broken_safetensors_file(tiny_config, tmp_path):
    (tmp_path / "bad.safetensors").write_bytes(b"no tensors here")
    with pytest.raises(CheckpointError, match="bad.safetensors"):
        load_weights(create_sam2_model(tiny_config), tmp_path / "bad.safetensors")


def test_name_nano_wins_over_a_directory_of_that_name(tmp_path, monkeypatch):
    (tmp_path / "nano").mkdir()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shipped.safetensors").touch()
    monkeypatch.setitem(checkpoints.SHIPPED_CHECKPOINTS, "nano", tmp_path / "shipped.safetensors")
    assert find_checkpoint("nano") == tmp_path / "shipped.safetensors"
    with pytest.raises(CheckpointError) as error:
        find_checkpoint("nanno")
    assert error.value.key == "model.checkpoint" and error.value.value == "nanno"
    assert "one of nano" in error.value.expected


@pytest.fixture(scope="module")
def scores():
    return runpy.run_path(str(SCORES))


def test_interval_is_over_videos(scores):
    values = [np.array([0.2, 0.4]), np.array([np.nan]), np.array([0.9])]
    row = scores["interval"](values)
    assert row == {"mean": 0.5, "objects": 3, "videos": 2}  # two videos have no interval
    row = scores["interval"](values * 3)
    assert row["low"] < row["mean"] == 0.5 < row["high"] and row["videos"] == 6


def test_scores_command(scores, tiny_config, tmp_path, capsys):
    save_weights(create_sam2_model(tiny_config), tmp_path / "start.safetensors")
    out = tmp_path / "scores.json"
    arguments = [str(tmp_path / "start.safetensors"), "--clips", "6", "--image-size", "64"]
    scores["main"]([*arguments, "--out", str(out)])
    content = json.loads(out.read_text())
    assert len(content["iou"]) == 6 and content["checkpoint"] == "start.safetensors"
    for row in content["iou"].values():
        for tracker in row.values():
            assert 0 <= tracker["low"] <= tracker["mean"] <= tracker["high"] <= 1
    # Random weights track worse than a copied mask.
    mask = content["iou"]["generated, lifelike, 8 frames, mask prompt"]
    assert mask["nano"]["mean"] < mask["first mask copied"]["mean"]
    assert out.with_suffix(".md").read_text() == capsys.readouterr().out


def write_square_video(root: Path, name: str, step: int) -> None:
    """Write 4 frames of 48 x 64 pixels, in which a square moves ``step`` pixels per frame."""
    for t in range(4):
        mask = np.zeros((48, 64), np.uint8)
        mask[16:32, 4 + step * t : 20 + step * t] = 255
        for folder, ending in (("JPEGImages", "jpg"), ("Annotations", "png")):
            path = root / folder / name / f"{t:05d}.{ending}"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(mask).save(path)


def test_scores_command_on_whole_videos(scores, tiny_config, tmp_path, capsys):
    for name, step in (("fast", 8), ("still", 0)):
        write_square_video(tmp_path / "videos", name, step)
    save_weights(create_sam2_model(tiny_config), tmp_path / "start.safetensors")
    arguments = [str(tmp_path / "start.safetensors"), "--clips", "0", "--image-size", "64"]
    arguments += ["--davis", str(tmp_path / "videos"), "--out", str(tmp_path / "scores.json")]
    scores["main"](arguments)
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["iou"] == content["absence"] == {}
    rows = content["videos"]
    name = "DAVIS, 20 frames, mask prompt"
    assert {f"{name}, moving", f"{name}, slow"} <= rows.keys() and len(rows) == 6
    copied = {row: rows[row]["first mask copied"]["J"] for row in rows}
    # Three frames: the square of 16 pixels overlaps with itself by 8, 0 and 0 columns.
    assert copied[f"{name}, moving"]["mean"] == pytest.approx(1 / 9, abs=1e-3)
    assert copied[f"{name}, slow"]["mean"] == 1 and copied[name]["objects"] == 2
    for row in rows.values():
        j, f, both = (row["nano"][key]["mean"] for key in ("J", "F", "J&F"))
        assert both == pytest.approx((j + f) / 2, abs=1e-3)
    assert "nano: F" in capsys.readouterr().out


def test_displacement_is_in_diameters_per_frame(scores, tmp_path):
    write_square_video(tmp_path, "fast", 8)
    assert scores["displacement"](VideoDataset(tmp_path), 0) == {1: pytest.approx(8 / 16)}


def test_curves_are_drawn_from_stored_metrics(scores, tmp_path):
    for number, stage in enumerate(STAGES):
        text = "step,loss,val_iou,val_loss\n24,2.0,,\n49,1.5,,\n49,,0.4,1.8\n"
        (tmp_path / f"nano_{stage}.csv").write_text(text.replace("0.4", "" if number else "0.4"))
    scores["draw_curves"](tmp_path, tmp_path / "curves.png")
    assert (tmp_path / "curves.png").stat().st_size > 1000


def test_shipped_model_tracks_better_than_a_copied_mask(scores):
    file = checkpoints.SHIPPED_CHECKPOINTS["nano"]
    assert file.stat().st_size < 20e6
    overrides = ["model=nano", "model.checkpoint=nano", "dataset=synthetic", "seed=3"]
    overrides += ["dataset.image_size=192", "valdataset.synthetic_videos=12"]
    overrides += ["valdataset.video_clip_length=8", "trainer.accelerator=cpu"]
    config = load_config(None, [*overrides, "dataset.num_workers=0"])
    row = scores["iou_row"](config, create_sam2_model(config))
    assert row["nano"]["mean"] > max(0.62, row["first mask copied"]["mean"] + 0.2)


def test_runs_that_started_from_the_first_nano_find_its_weights(config, tmp_path):
    """Their checkpoints say ``nano`` too, but do not say which."""
    config.model.checkpoint = "nano"
    model = create_sam2_model(config)
    save_adapter(config, model, tmp_path / "new.pt")
    content = torch.load(tmp_path / "new.pt", weights_only=True)
    assert content.pop(NANO_KEY) == NANO_VERSION
    torch.save(content, tmp_path / "old.pt")
    first = load_model("nano-1")[1].state_dict()
    name = "image_encoder.trunk.blocks.0.attn.qkv.weight"
    assert not torch.equal(first[name], model.state_dict()[name])
    for file, start, expected in (("new", "nano", model.state_dict()), ("old", "nano-1", first)):
        run_config, loaded = load_run(tmp_path / f"{file}.pt")
        assert run_config.model.checkpoint == start
        assert torch.equal(loaded.state_dict()[name], expected[name])


def test_first_nano_has_its_own_image_size():
    assert load_model("nano-1")[0].dataset.image_size == 128
    assert load_model("nano")[0].dataset.image_size == 192


@pytest.mark.parametrize("version", [None, NANO_VERSION])
def test_resumed_run_remembers_which_nano_it_started_from(config, version):
    module = SAM2LightningModule(config)
    module.trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    module.on_load_checkpoint({} if version is None else {NANO_KEY: version})
    checkpoint: dict = {}
    module.on_save_checkpoint(checkpoint)
    assert checkpoint[NANO_KEY] == (version or 1)


def test_shipped_model_loads_in_the_plain_package(tmp_path, capsys):
    assert main(["export", "nano", str(tmp_path / "nano.pt")]) == 0
    predictor = build_sam2_video_predictor(
        f"/{tmp_path / 'nano.yaml'}", str(tmp_path / "nano.pt"), "cpu"
    )
    config = load_config(None, ["model=nano", "model.checkpoint=nano", "dataset.image_size=192"])
    ours = create_sam2_model(config).state_dict()
    theirs = predictor.state_dict()
    assert ours.keys() == theirs.keys()
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_model_card_shows_the_committed_scores():
    card = (ROOT / "docs" / "model_card.md").read_text()
    assert (ROOT / "benchmarks" / "results" / "nano.md").read_text().strip() in card
