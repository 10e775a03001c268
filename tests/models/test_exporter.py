"""Export: written files work with the plain package, and files that would not are not written."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from sam2.build_sam import build_sam2, build_sam2_video_predictor

from sam2kit.cli.main import main
from sam2kit.models import checkpoints, plain_sam2
from sam2kit.models import exporter as export_module
from sam2kit.models.checkpoints import (
    config_to_store,
    create_sam2_model,
    load_run,
    save_adapter,
    save_weights,
)
from sam2kit.models.exporter import export
from sam2kit.models.lora import merged_state
from sam2kit.utils.errors import CheckpointError, ConfigError


@pytest.fixture
def run(tiny_config, tmp_path) -> Path:
    """The directory of a run that trained LoRA and the memory encoder."""
    pytest.importorskip("peft")
    tiny_config.model.lora_modules = ["image_encoder.trunk", "memory_attention"]
    tiny_config.model.trainable_modules = ["memory_encoder"]
    model = create_sam2_model(tiny_config)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)
    folder = tmp_path / "run"
    folder.mkdir()
    state = {f"model.{k}": v for k, v in model.state_dict().items()}
    content = {"state_dict": state, "sam2kit_config": config_to_store(tiny_config)}
    torch.save(content, folder / "best.ckpt")
    save_adapter(tiny_config, model, folder / "adapter.pt")
    return folder


@pytest.fixture
def without_proof(monkeypatch):
    """Skip the proof, which takes several seconds."""
    monkeypatch.setattr(export_module, "prove", lambda *_: (0.0, 0.0))


@pytest.fixture
def in_this_process(monkeypatch):
    """Load exported files in this process, because a new one takes seconds to start."""

    def run(command, **options):
        plain_sam2.main(*command[3:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(export_module, "subprocess", SimpleNamespace(run=run))


def test_run_with_lora_tracks_the_same_in_the_plain_package(run, tmp_path, capsys):
    folder = tmp_path / "my exports"
    folder.mkdir()
    out = folder / "tuned.pt"
    assert main(["export", str(run), str(out)]) == 0
    printed = capsys.readouterr().out
    assert "4 frames" in printed and "tuned.yaml" in printed
    assert {f.name for f in folder.iterdir()} == {"tuned.pt", "tuned.yaml"}
    state = torch.load(out, weights_only=True)["model"]
    expected = merged_state(load_run(run / "best.ckpt")[1])
    assert state.keys() == expected.keys()
    assert all(torch.equal(v, expected[k]) for k, v in state.items())
    # As in the README: upstream's post-processing is on, and all keys must match.
    config = "/" + os.path.abspath(folder / "tuned.yaml")
    predictor = build_sam2_video_predictor(config, str(out), device="cpu")
    assert predictor.image_size == 64
    build_sam2(config, str(out), device="cpu")


def drop(state):
    del state["no_mem_embed"]


def change(state):
    state["memory_encoder.pix_feat_proj.weight"] *= 1.1


@pytest.mark.parametrize(
    ("damage", "message"),
    [(drop, "does not work with the plain sam2 package"), (change, "does not track like")],
)
def test_export_with_wrong_weights_is_not_written(
    run, tmp_path, monkeypatch, damage, message, request
):
    if damage is change:
        request.getfixturevalue("in_this_process")

    def save(model, path):
        state = merged_state(model)
        damage(state)
        torch.save({"model": state}, path)

    monkeypatch.setattr(export_module, "save_weights", save)
    before = set(tmp_path.iterdir())
    with pytest.raises(CheckpointError, match=message):
        export(run, tmp_path / "out.pt")
    assert set(tmp_path.iterdir()) == before


def test_wrong_merge_is_detected_by_comparison_with_the_tuned_model(
    run, tmp_path, monkeypatch, in_this_process
):
    """Both predictors have the same wrong weights, so comparing them is not enough."""

    def unmerged(model):
        state = model.state_dict()
        return {k.replace(".base_layer.", "."): v for k, v in state.items() if ".lora_" not in k}

    monkeypatch.setattr(export_module, "merged_state", unmerged)
    monkeypatch.setattr(checkpoints, "merged_state", unmerged)
    with pytest.raises(CheckpointError, match=r"differ by 0.0e\+00 .video predictor. and [1-9]"):
        export(run, tmp_path / "out.pt")


def test_wrong_yaml_is_detected(run, tmp_path, monkeypatch, in_this_process):
    right = export_module.describe_model
    calls = []

    def wrong(config):
        tree = right(config)
        if not calls:  # change the written tree, not the one that the proof builds
            tree.sigmoid_bias_for_mem_enc = 10.0
        calls.append(tree)
        return tree

    monkeypatch.setattr(export_module, "describe_model", wrong)
    with pytest.raises(CheckpointError, match="does not track like"):
        export(run, tmp_path / "out.pt")


def test_sources(run, tmp_path, tiny_config, without_proof, monkeypatch):
    official = tmp_path / "official.pt"
    save_weights(load_run(run / "best.ckpt")[1], official)
    expected = torch.load(official, weights_only=True)["model"]
    monkeypatch.setitem(checkpoints.SHIPPED_CHECKPOINTS, "nano", official)
    sources = (run, run / "best.ckpt", run / "adapter.pt", official, "nano")
    for number, (source, size) in enumerate(zip(sources, (64, 64, 64, 192, 192), strict=True)):
        out = tmp_path / f"{number}.pt"
        written = export(str(source), out)
        assert (written.size, written.image_size) == ("nano", size)
        assert yaml.safe_load(out.with_suffix(".yaml").read_text())["model"]["image_size"] == size
        state = torch.load(out, weights_only=True)["model"]
        assert all(torch.equal(v, state[k]) for k, v in expected.items())


def test_bad_sources(tmp_path, monkeypatch, capsys):
    (tmp_path / "empty").mkdir()
    torch.save({"model": {"a": torch.zeros(1)}}, tmp_path / "other.pt")
    (tmp_path / "text.pt").write_text("hello")
    monkeypatch.setitem(
        checkpoints.SHIPPED_CHECKPOINTS,
        "nano",
        tmp_path / "nano.safetensors",
    )
    for source, message in {
        str(tmp_path / "gone.ckpt"): "gone.ckpt does not exist",
        str(tmp_path / "empty"): "no best.ckpt",
        str(tmp_path / "other.pt"): "no model size",
        str(tmp_path / "text.pt"): "cannot be read safely",
        "nano": "source: this installation of sam2kit does not include nano.safetensors",
        "sam2.1_hiera_tinny": "source='sam2.1_hiera_tinny' must be",
    }.items():
        assert main(["export", source, str(tmp_path / "out.pt")]) == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.glob("out*"))


def test_bad_targets(run, tmp_path, without_proof):
    for name, message in {
        "out.pth": "a path that ends in .pt",
        "none/out.pt": "none does not exist",
    }.items():
        with pytest.raises(ConfigError, match=message) as error:
            export(run, tmp_path / name)
        assert error.value.key == "out" and error.value.value == str(tmp_path / name)
    (tmp_path / "existing.yaml").write_text("mine")
    with pytest.raises(ConfigError, match="existing.yaml exists already"):
        export(run, tmp_path / "existing.pt")
    assert (tmp_path / "existing.yaml").read_text() == "mine"
