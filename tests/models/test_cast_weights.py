"""Copies of weights in bfloat16 give the results of autocast, and the weights stay as they are."""

from __future__ import annotations

import torch
from conftest import moving_clip

from sam2kit.models.cast_weights import CAST_LAYERS, CastWeights
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.models.feature_cache import FeatureCache
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import VideoTracker


def layers(model):
    return [m for m in model.modules() if isinstance(m, CAST_LAYERS)]


def test_copies_are_used_restored_and_renewed(tiny_config):
    model = create_sam2_model(tiny_config)
    cast, originals = CastWeights(model, torch.bfloat16), dict(model.named_parameters())
    layer = layers(model)[0]
    with cast.applied():
        first = layer.weight
        with cast.applied():
            assert layer.weight is first and first.dtype == torch.bfloat16
        with cast.suspended():
            assert layer.weight.dtype == torch.float32
        assert layer.weight is first
        assert all(m.weight.dtype == torch.bfloat16 for m in layers(model))
    assert all(p is originals[n] for n, p in model.named_parameters())
    with torch.no_grad():
        layer.weight.add_(1)
    with cast.applied():
        assert torch.equal(layer.weight, originals_cast(layer, originals, model))


def originals_cast(layer, originals, model):
    name = next(n for n, m in model.named_modules() if m is layer)
    return originals[f"{name}.weight"].bfloat16()


def track(model, autocast):
    clip = moving_clip(2, num_frames=5, size=64)
    frames = clip.frames.permute(0, 2, 3, 1).contiguous().numpy()
    tracker = VideoTracker(model, TrackerOptions(autocast=autocast))
    session = tracker.open(lambda t: frames[t], 5, (64, 64))
    session.add_prompt(Prompt(0, torch.arange(2), masks=clip.masks[0]))
    return torch.stack([tracks.mask_logits for tracks in session.propagate()])


def test_tracking_under_autocast_is_bitwise_the_same(tiny_config, tmp_path, monkeypatch):
    model = create_sam2_model(tiny_config)
    actual = track(model, True)
    names = {n for n, p in model.named_parameters() if p.dtype == torch.float32}
    assert names == {n for n, _ in model.named_parameters()}
    model.feature_cache = cache = FeatureCache(tmp_path)
    assert torch.equal(track(model, True), actual)  # the cache sees the original weights
    torch.testing.assert_close(track(model, True), actual, rtol=0.05, atol=0.05)
    assert (cache.encoded, cache.read) == (5, 5)
    model.feature_cache = None
    monkeypatch.setattr(CastWeights, "_put_copies", lambda self: None)
    assert torch.equal(track(model, True), actual)
    assert not torch.equal(track(model, False), actual)
