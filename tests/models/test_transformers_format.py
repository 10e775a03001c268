"""transformers' Sam2VideoModel: its weights are loaded, and written so that it tracks the same."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from loguru import logger

pytest.importorskip("transformers")
from safetensors.torch import load_file
from transformers import Sam2VideoConfig, Sam2VideoModel, Sam2VideoProcessor

from sam2kit.cli.main import main
from sam2kit.config.schema import Config
from sam2kit.models import checkpoints, plain_transformers
from sam2kit.models import exporter as export_module
from sam2kit.models.checkpoints import load_model, load_weights
from sam2kit.models.exporter import export
from sam2kit.models.sam2 import build_sam2_model, describe_model
from sam2kit.models.transformers_format import from_transformers, transformers_config
from sam2kit.utils.errors import CheckpointError, ConfigError


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """The folder of a Sam2VideoModel with random weights, of size t at 64 px."""
    config = Config()
    config.model.size, config.dataset.image_size = "t", 64
    settings = transformers_config(describe_model(config))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Sam2VideoModel(Sam2VideoConfig(**settings))
        with torch.no_grad():
            for parameter in model.parameters():  # many are initialised with 0
                parameter += 0.05 * torch.randn_like(parameter)
            # The masks of absent objects are constant, so they would hide differences.
            model.mask_decoder.pred_obj_score_head.proj_out.bias.fill_(50.0)
        positions = model.prompt_encoder.shared_embedding.positional_embedding
        positions.copy_(model.shared_image_embedding.positional_embedding)
    folder = tmp_path_factory.mktemp("transformers") / "saved"
    model.save_pretrained(folder)
    torch.save(model.state_dict(), folder.parent / "state_dict.pt")
    return folder


def test_its_folder_loads_and_the_export_equals_it(saved, tmp_path, capsys):
    """The export is proved in a fresh process, so the conversion of the loaded folder is, too."""
    out = tmp_path / "exported"
    assert main(["export", str(saved), str(out), "--format", "transformers"]) == 0
    assert "4 frames" in capsys.readouterr().out
    before, after = (load_file(folder / "model.safetensors") for folder in (saved, out))
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert Sam2VideoProcessor.from_pretrained(out).target_size == 64
    assert {path.name for path in tmp_path.iterdir()} == {"exported"}


def test_state_dict_file_and_folder_hold_the_same(saved):
    config, model = load_model(saved)
    assert (config.model.size, config.dataset.image_size) == ("t", 64)
    state = torch.load(saved.parent / "state_dict.pt", weights_only=True)
    prefixed = {f"module.{name}": value for name, value in state.items()}
    torch.save({"model": prefixed}, saved.parent / "ddp.pt")
    for name in ("state_dict.pt", "ddp.pt"):
        other = build_sam2_model(config)
        load_weights(other, saved.parent / name)
        expected = model.state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in other.state_dict().items())


def test_two_position_embeddings_are_reported(saved):
    """They differ in a model that was never trained; the official format has one."""
    state = torch.load(saved.parent / "state_dict.pt", weights_only=True)
    expected = from_transformers(state, "x")
    state["prompt_encoder.shared_embedding.positional_embedding"] += 1
    lines: list[str] = []
    sink = logger.add(lines.append, level="WARNING")
    converted = from_transformers(state, "x")
    logger.remove(sink)
    assert len(lines) == 1 and all(torch.equal(v, expected[k]) for k, v in converted.items())


def test_wrong_conversion_is_detected_and_nothing_is_written(saved, tmp_path, monkeypatch):
    right = export_module.to_transformers

    def wrong(state, names):
        converted = right(state, names)
        name = "memory_encoder.projection.weight"  # not in place: the model has the same tensor
        return converted | {name: 1.1 * converted[name]}

    def run(command, **options):  # in this process, because a new one takes seconds to start
        plain_transformers.main(*command[3:])
        return SimpleNamespace(returncode=0)

    monkeypatch.setattr(export_module, "to_transformers", wrong)
    monkeypatch.setattr(export_module, "subprocess", SimpleNamespace(run=run))
    with pytest.raises(CheckpointError, match="does not track like"):
        export(saved, tmp_path / "out", format="transformers")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("text", "key"),
    [
        (json.dumps({"image_size": 64, "num_maskmem": 3}), "num_maskmem"),
        (json.dumps({"image_size": "64"}), None),
        ("[" * 5000, None),
    ],
)
def test_configurations_that_cannot_be_used(saved, tmp_path, text, key):
    (tmp_path / "config.json").write_text(text)
    (tmp_path / "model.safetensors").symlink_to(saved / "model.safetensors")
    with pytest.raises(CheckpointError, match="config.json") as error:
        checkpoints.source_config(tmp_path)
    assert error.value.key == key and error.value.hint


def test_targets_that_cannot_be_written(saved, tmp_path, monkeypatch):
    for arguments, key in {
        ((saved, saved.parent, "transformers"), "out"),
        ((saved, tmp_path / "no" / "out", "transformers"), "out"),
        ((saved, tmp_path / "out", "onnx"), "--format"),
        (("nano", tmp_path / "out", "transformers"), "model.size"),
    }:
        with pytest.raises(ConfigError) as error:
            export(*arguments)
        assert error.value.key == key and error.value.hint
    monkeypatch.setattr(export_module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError) as error:
        export(saved, tmp_path / "out", "transformers")
    assert error.value.key == "--format" and "pip install" in error.value.hint
    assert not list(tmp_path.iterdir())
