"""LoRA: trainable parameters, merging and checkpoints."""

from __future__ import annotations

import sys

import pytest
import torch

from sam2kit.config.loading import resolve_config_precision
from sam2kit.config.schema import Config
from sam2kit.config.validation import check
from sam2kit.models.checkpoints import (
    create_sam2_model,
    load_adapter,
    load_run,
    load_weights,
    save_adapter,
    save_weights,
)
from sam2kit.models.lora import has_lora, merged_state
from sam2kit.models.sam2 import build_sam2_model, parameter_report
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.training.resume import resolve_monitor
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import CheckpointError, ConfigError

pytest.importorskip("peft")


@pytest.fixture
def config(tiny_config, tmp_path) -> Config:
    """LoRA on the trunk's attention, the memory encoder fully trained, the rest frozen."""
    tiny_config.model.lora_modules = ["image_encoder.trunk.*.qkv", "memory_attention"]
    tiny_config.model.trainable_modules = ["memory_encoder"]
    tiny_config.dataset.type = "synthetic"
    tiny_config.dataset.synthetic_videos = 4
    tiny_config.dataset.batch_size = 2
    tiny_config.valdataset.synthetic_videos = 2
    tiny_config.trainer.accelerator = "cpu"
    tiny_config.trainer.max_epochs = 1
    tiny_config.output_dir = str(tmp_path / "outputs")
    return tiny_config


def train_a_little(model) -> None:
    """Change the trainable parameters: initially LoRA is zero, and merging has no effect."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.05 * torch.randn(parameter.shape, generator=generator)


def logits(model, batch) -> torch.Tensor:
    prompts = PromptGenerator(["mask"])(batch, torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model.eval()(batch, prompts).mask_logits


def test_lora_beside_trained_and_frozen_modules(config):
    model = create_sam2_model(config)
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    lora = {n for n in trained if ".lora_" in n}
    assert trained - lora == {n for n in trained if n.startswith("memory_encoder.")} != set()
    assert not any(".lora_" in n and n.startswith("memory_encoder") for n in trained)
    layers = {n.split(".lora_")[0] for n in lora}
    assert {n for n in layers if n.startswith("image_encoder")} == {
        f"image_encoder.trunk.blocks.{i}.attn.qkv" for i in range(7)
    }
    assert "memory_attention.layers.0.cross_attn_image.q_proj" in layers
    assert all(n.startswith(("image_encoder", "memory_attention")) for n in layers)
    shares = {r.module: r.percentage for r in parameter_report(model)}
    assert shares["memory_encoder"] == 100 and 0 < shares["image_encoder"] < 50
    assert not model.encoder_is_frozen


def test_layer_with_lora_is_frozen_in_a_trained_module(config):
    config.model.trainable_modules = ["memory_attention"]
    model = create_sam2_model(config)
    layer = model.memory_attention.layers[0]
    assert not layer.linear1.base_layer.weight.requires_grad
    assert layer.norm1.weight.requires_grad and model.maskmem_tpos_enc.requires_grad


def test_initial_model_is_unchanged_and_merging_gives_the_same_logits(config, batch):
    plain = build_sam2_model(config)
    model = create_sam2_model(config)
    assert torch.equal(logits(model, batch), logits(plain, batch))
    train_a_little(model)
    tuned = logits(model, batch)
    state = merged_state(model)
    assert state.keys() == plain.state_dict().keys() and has_lora(model)
    plain.load_state_dict(state)
    difference = (logits(plain, batch) - tuned).abs().max()
    assert difference <= 1e-5 * tuned.abs().max()
    assert (tuned - logits(build_sam2_model(config), batch)).abs().max() > 1e-2
    assert torch.equal(logits(model, batch), tuned)  # merging does not change the model


def test_initial_values_depend_only_on_the_seed(config):
    before = torch.get_rng_state()
    first, second = create_sam2_model(config).state_dict(), create_sam2_model(config).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    assert all(torch.equal(first[k], second[k]) for k in first)
    config.seed += 1
    key = "memory_attention.layers.0.linear1.lora_A.default.weight"
    assert not torch.equal(create_sam2_model(config).state_dict()[key], first[key])


def test_official_weights_load_into_a_model_with_lora(config, tmp_path, batch):
    config.seed += 1
    other = build_sam2_model(config)
    config.seed -= 1
    save_weights(other, tmp_path / "other.pt")
    model = create_sam2_model(config)
    lora = {k: v.clone() for k, v in model.state_dict().items() if ".lora_" in k}
    load_weights(model, tmp_path / "other.pt")
    assert torch.equal(logits(model, batch), logits(other, batch))
    assert all(torch.equal(model.state_dict()[k], v) for k, v in lora.items())


def test_run_with_lora(config, tmp_path, batch):
    """The run trains, and both its checkpoint and its adapter file rebuild the model."""
    config.optimizer.lr = 1e-2
    run = fit(config)
    stored, tuned = load_run(run.best_checkpoint)
    assert stored == resolve_monitor(resolve_config_precision(config)) and has_lora(tuned)
    start = create_sam2_model(config).state_dict()
    changed = {k for k, v in tuned.state_dict().items() if not torch.equal(v, start[k])}
    assert changed and all(".lora_" in k or k.startswith("memory_encoder.") for k in changed)
    expected = logits(tuned, batch)
    assert not torch.equal(expected, logits(create_sam2_model(config), batch))

    adapter = run.run_dir / "adapter.pt"
    assert adapter.stat().st_size < 0.3 * run.best_checkpoint.stat().st_size
    assert torch.equal(logits(load_run(adapter)[1], batch), expected)

    plain = Config(dataset=config.dataset, seed=config.seed)
    plain.model.size = "nano"
    for source in (run.best_checkpoint, run.run_dir, adapter):
        plain.model.checkpoint = str(source)
        model = create_sam2_model(plain)
        assert not has_lora(model)
        assert torch.allclose(logits(model, batch), expected, atol=1e-4)


def test_adapter_of_other_modules_is_rejected(config, tmp_path):
    model = create_sam2_model(config)
    save_adapter(config, model, tmp_path / "adapter.pt")
    config.model.lora_modules = ["image_encoder.trunk.*.qkv"]
    other = create_sam2_model(config)
    before = {k: v.clone() for k, v in other.state_dict().items()}
    with pytest.raises(CheckpointError, match="adapter.pt: does not fit") as error:
        load_adapter(other, tmp_path / "adapter.pt")
    assert "model.trainable_modules" in error.value.hint
    assert all(torch.equal(v, before[k]) for k, v in other.state_dict().items())
    save_weights(model, tmp_path / "plain.pt")
    with pytest.raises(CheckpointError, match="plain.pt: contains no adapter"):
        load_adapter(model, tmp_path / "plain.pt")


@pytest.mark.parametrize(
    ("entry", "message"),
    [
        ("image_encodr", "matches no module.*image_encoder"),
        ("memory_encoder.mask_downsampler", "no linear layer"),
        ("memory_attention.norm", "no linear layer"),
    ],
)
def test_entries_without_a_linear_layer(config, entry, message):
    config.model.lora_modules = ["memory_attention", entry]
    with pytest.raises(ConfigError, match=message) as error:
        create_sam2_model(config)
    assert error.value.key == "model.lora_modules" and error.value.value == entry


def test_without_peft(config, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match="peft") as error:
        create_sam2_model(config)
    assert error.value.key == "model.lora_modules"
    assert "pip install 'sam2kit[lora]'" in error.value.hint


@pytest.mark.parametrize(
    ("key", "value"),
    [("lora_rank", 0), ("lora_alpha", 0.0), ("lora_dropout", 1.0), ("lora_dropout", -0.1)],
)
def test_bad_values(config, key, value):
    setattr(config.model, key, value)
    with pytest.raises(ConfigError, match=f"model.{key}={value} must be"):
        check(config)


def test_lora_can_be_the_only_trainable_part(config):
    config.model.trainable_modules = []
    check(config)
    model = create_sam2_model(config)
    assert all(".lora_" in n for n, p in model.named_parameters() if p.requires_grad)
