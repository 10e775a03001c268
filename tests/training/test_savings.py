"""Optimizations do not change results: gradients, attention and precision equal upstream's."""

from __future__ import annotations

import shutil
from dataclasses import replace

import pytest
import torch
from parity_helpers import (
    join,
    no_dropout,
    parity_batch,
    parity_config,
    parity_prompts,
    run_upstream,
    sharpen,
    upstream_model,
)
from sam2.modeling.memory_attention import MemoryAttention as UpstreamMemoryAttention
from torch.nn import functional as F

from sam2kit.config.loading import resolve_config_precision
from sam2kit.config.schema import Config
from sam2kit.models.checkpoints import CONFIG_KEY, config_to_store, create_sam2_model, load_run
from sam2kit.models.clip_tracking import FrameFeatures
from sam2kit.models.memory_attention import MemoryAttention, RotaryAttention, attend
from sam2kit.models.outputs import TrackOutput
from sam2kit.models.sam2 import compile_model, describe_model
from sam2kit.training.losses import SAM2TrainingLoss
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import ConfigError


def loss_of_upstream(frames, output: TrackOutput, batch, config):
    """Compute the loss of upstream's outputs with sam2kit."""
    logits = torch.stack([frame["multistep_pred_masks"][:, 0] for frame in frames])
    return SAM2TrainingLoss(config.loss)(replace(output, mask_logits=logits), batch)["loss"]


def gradient(model) -> torch.Tensor:
    flat = [
        (torch.zeros_like(p) if p.grad is None else p.grad).flatten()
        for _, p in sorted(model.named_parameters())
    ]
    return torch.cat(flat).double()


@pytest.mark.parametrize("kind", ["mask", "box", "click"])
@pytest.mark.parametrize("objects", [(1,), (3,), (1, 3)], ids=str)
def test_gradients_equal_upstream(kind, objects):
    """All parameters are trained with the same loss; (1, 3) are two clips in a batch."""
    config = parity_config("nano")
    ours = create_sam2_model(config)
    for parameter in ours.parameters():
        parameter.requires_grad_(True)
    sharpen(ours)
    no_dropout(ours)
    ours.train()
    theirs = upstream_model(ours, config)
    assert type(theirs.memory_attention) is UpstreamMemoryAttention
    assert type(ours.memory_attention) is MemoryAttention
    batch = join([parity_batch(config, n, 5) for n in objects])
    prompts = parity_prompts(batch, kind, (0,))
    output = ours(batch, prompts)
    SAM2TrainingLoss(config.loss)(output, batch)["loss"].backward()
    frames, _ = run_upstream(theirs, batch, prompts, [])
    loss_of_upstream(frames, output, batch, config).backward()
    mine, other = gradient(ours), gradient(theirs)
    assert other.norm() > 0
    assert (mine - other).norm() < 1e-5 * other.norm()


def attentions(**changes):
    config = parity_config("nano")
    for key, value in changes.items():
        setattr(config.model, key, value)
    ours = create_sam2_model(config)
    theirs = upstream_model(ours, config)
    return ours.memory_attention.train(), theirs.memory_attention.train()


def attention_inputs(n: int, side: int = 8, pointers: int = 8):
    """Return features of a frame expanded to n objects, their positions, memories and theirs."""
    generator = torch.Generator().manual_seed(n)
    width = create_sam2_model(parity_config("nano")).hidden_dim

    def draw(*shape):
        return torch.randn(*shape, generator=generator)

    frame, frame_position = draw(side**2, 1, width), draw(side**2, 1, width)
    keys = 2 * side**2 + pointers
    memory, position = draw(keys, n, 64), draw(keys, n, 64)
    return [frame.expand(-1, n, -1)], memory, [frame_position.expand(-1, n, -1)], position, pointers


def test_frame_attention_is_computed_once_for_all_objects(monkeypatch):
    ours, theirs = attentions()
    rows = []
    forward = RotaryAttention.forward

    def counted(self, q, *arguments, **named):
        rows.append(len(q))
        return forward(self, q, *arguments, **named)

    monkeypatch.setattr(RotaryAttention, "forward", counted)
    inputs = attention_inputs(3)
    torch.testing.assert_close(ours(*inputs), theirs(*inputs), rtol=1e-5, atol=1e-5)
    assert rows[:2] == [1, 1] and rows[-1] == 3
    rows.clear()
    copies = [[x[0].contiguous()] if isinstance(x, list) else x for x in inputs]
    torch.testing.assert_close(ours(*copies), theirs(*inputs), rtol=1e-5, atol=1e-5)
    assert set(rows) == {3}


@pytest.mark.parametrize("key", ["attention_dropout", "memory_dropout"])
def test_dropout_is_drawn_per_object(key):
    """Dropout is drawn separately for each object, in the same order as upstream."""
    ours, theirs = attentions(**{key: 0.2})
    inputs = attention_inputs(3)
    torch.manual_seed(0)
    mine = ours(*inputs)
    torch.manual_seed(0)
    torch.testing.assert_close(mine, theirs(*inputs), rtol=1e-5, atol=1e-5)
    assert not torch.allclose(mine, ours.eval()(*inputs), atol=1e-3)


def test_only_training_needs_a_compiler(toy_config, tmp_path, monkeypatch):
    """A checkpoint of a compiled run is loaded, evaluated and exported without a compiler."""
    toy_config.model.compile = True
    monkeypatch.setattr("shutil.which", lambda *_: None)
    with pytest.raises(ConfigError, match="model.compile: .*compiler"):
        fit(toy_config, tmp_path / "run")
    assert not (tmp_path / "run").exists()
    model = create_sam2_model(toy_config)
    assert model.image_encoder._compiled_call_impl is None
    module = SAM2LightningModule(toy_config, model)
    checkpoint = {"state_dict": module.state_dict(), CONFIG_KEY: config_to_store(toy_config)}
    torch.save(checkpoint, tmp_path / "best.ckpt")
    config, loaded = load_run(tmp_path / "best.ckpt")
    assert loaded.image_encoder._compiled_call_impl is None
    assert all(
        torch.equal(a, b) for a, b in zip(loaded.parameters(), model.parameters(), strict=True)
    )


def test_training_compiles_the_model_once(toy_config, tmp_path, monkeypatch):
    compiled = []
    monkeypatch.setattr("sam2kit.training.module.compile_model", compiled.append)
    monkeypatch.setattr("sam2kit.training.trainer.check_compiler", lambda: None)
    toy_config.model.compile, toy_config.trainer.max_steps = True, 1
    fit(toy_config, tmp_path)
    assert len(compiled) == 1


def test_compiled_modules_are_whole_graphs():
    """``fullgraph`` raises at a graph break; the number of memories changes from frame to frame."""
    config = parity_config("nano")
    plain, compiled = create_sam2_model(config), create_sam2_model(config)
    options = {"fullgraph": True, "backend": "eager"}
    compiled.image_encoder.compile(dynamic=False, **options)
    compiled.memory_attention.compile(dynamic=True, **options)
    batch = parity_batch(config, 2, 4)
    prompts = parity_prompts(batch, "mask", (0,))
    outputs = [model.train()(batch, prompts).mask_logits for model in (plain, compiled)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)
    with torch.no_grad():  # as in tracking
        outputs = [model.eval()(batch, prompts).mask_logits for model in (plain, compiled)]
    torch.testing.assert_close(outputs[1], outputs[0], rtol=1e-4, atol=1e-4)


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a compiler")
def test_compiled_model_equals_the_original():
    config = parity_config("nano")
    plain = create_sam2_model(config)
    compiled = create_sam2_model(config)
    compile_model(compiled)
    assert compiled.state_dict().keys() == plain.state_dict().keys()
    batch = parity_batch(config, 2, 4)
    prompts = parity_prompts(batch, "mask", (0,))
    results = []
    for model in (plain, compiled):
        output = model.train()(batch, prompts)
        output.mask_logits.sum().backward()
        results.append((output.mask_logits.detach(), gradient(model)))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=0, atol=1e-4)
    assert (results[0][1] - results[1][1]).norm() < 1e-4 * results[0][1].norm()


def test_dropout_keys():
    config = Config()
    layer = describe_model(config).memory_attention.layer
    assert (layer.dropout, layer.self_attention.dropout) == (0.1, 0.1)
    config.model.memory_dropout = 0.0
    layer = describe_model(config).memory_attention.layer
    assert layer.dropout == layer.self_attention.dropout == layer.cross_attention.dropout == 0.0
    config.model.attention_dropout = 0.2
    layer = describe_model(config).memory_attention.layer
    assert layer.dropout == 0.0
    assert layer.self_attention.dropout == layer.cross_attention.dropout == 0.2


def test_bfloat16_attention_on_a_cpu():
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(2, 1, n, 64, generator=generator) for n in (50, 90, 90))
    exact = F.scaled_dot_product_attention(q, k, v)
    torch.testing.assert_close(attend(q, k, v), exact)
    rounded = attend(q.bfloat16(), k.bfloat16(), v.bfloat16())
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.05, atol=0.02)


def test_features_of_one_frame_are_views():
    levels = [torch.rand(16, 4, 8), torch.rand(4, 4, 8)]
    features = FrameFeatures(levels, levels[-1:], [(4, 4), (2, 2)])
    same, others = features.select([2, 2, 2]), features.select([2, 3])
    assert all(x.stride(1) == 0 and x.shape[1] == 3 for x in same.vision + same.position)
    assert same.vision[0].data_ptr() == levels[0][:, 2:].data_ptr()
    assert torch.equal(others.vision[1], levels[1][:, [2, 3]])


def test_auto_precision(monkeypatch):
    config = Config()
    assert config.trainer.precision == "auto"
    assert resolve_config_precision(config).trainer.precision == "32-true"  # no GPU here
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    assert resolve_config_precision(config).trainer.precision == "bf16-mixed"
    config.trainer.accelerator = "cpu"
    assert resolve_config_precision(config).trainer.precision == "32-true"
    config.trainer.precision = "16-mixed"
    assert resolve_config_precision(config) is config


def test_mixed_precision_learns(tiny_config, batch):
    """Losses and gradients are close to full precision, and every trained module gets gradient."""
    results = {}
    for mixed in (False, True):
        module = SAM2LightningModule(tiny_config)
        with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
            _, terms = module.track_and_score(batch, 0)
        terms["loss"].backward()
        results[mixed] = terms["loss"].item(), gradient(module.model)
        for name in ("memory_attention", "memory_encoder"):
            parameters = getattr(module.model, name).parameters()
            assert sum(float(p.grad.norm()) for p in parameters if p.grad is not None) > 0
    assert results[True][0] == pytest.approx(results[False][0], rel=0.02)
    similarity = F.cosine_similarity(results[True][1], results[False][1], dim=0)
    assert similarity > 0.95 and torch.isfinite(results[True][1]).all()


def test_bfloat16_trains_like_full_precision(tiny_config, batch):
    losses: dict[bool, list[float]] = {}
    for mixed in (False, True):
        module = SAM2LightningModule(tiny_config)
        optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], 3e-3)
        losses[mixed] = []
        for step in range(15):
            with torch.autocast("cpu", torch.bfloat16, enabled=mixed):
                _, terms = module.track_and_score(batch, step)
            optimizer.zero_grad()
            terms["loss"].backward()
            optimizer.step()
            losses[mixed].append(terms["loss"].item())
    drop = {mixed: values[0] - values[-1] for mixed, values in losses.items()}
    assert drop[False] > 0.05 and drop[True] == pytest.approx(drop[False], rel=0.3)
