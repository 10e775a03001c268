"""The model: gradients, independence of clips and objects in a batch, sizes, trainable modules."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from conftest import moving_clip

from sam2kit.config.schema import LossConfig
from sam2kit.data.clip import collate
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.models.sam2 import module_path, parameter_report, set_trainable
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.prompt import Prompt
from sam2kit.training.losses import SAM2TrainingLoss
from sam2kit.utils.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def first_prompts(batch, kind="mask"):
    return PromptGenerator([kind])(batch, generator())


def backward(model, batch, prompts, loss=None):
    model.zero_grad()
    terms = SAM2TrainingLoss(loss or LossConfig())(model(batch, prompts), batch)
    terms["loss"].backward()
    return terms


def zero_gradients(model, module: str) -> set[str]:
    return {
        n
        for n, p in model.named_parameters()
        if module_path(n)[0] == module and (p.grad is None or not p.grad.any())
    }


KEY_BIASES = {
    # Softmax is invariant to a constant that is added to all keys, so the gradient is zero.
    f"sam_mask_decoder.transformer.{name}.k_proj.bias"
    for name in (
        "layers.0.self_attn",
        "layers.0.cross_attn_token_to_image",
        "layers.0.cross_attn_image_to_token",
        "layers.1.self_attn",
        "layers.1.cross_attn_token_to_image",
        "layers.1.cross_attn_image_to_token",
        "final_attn_token_to_image",
    )
}
OTHER_MASKS = tuple(f"output_hypernetworks_mlps.{i}" for i in (1, 2, 3))
HEADS = ("iou_prediction_head", "pred_obj_score_head")


@pytest.mark.parametrize("size", ["nano", "t"])
@pytest.mark.parametrize("kind", ["mask", "box", "point"])
def test_memory_modules_get_gradient_in_every_tensor(tiny_config, size, kind):
    tiny_config.model.size = size
    model = create_sam2_model(tiny_config).train()
    batch = collate([moving_clip(2, num_frames=3)])
    backward(model, batch, first_prompts(batch, kind))
    assert zero_gradients(model, "memory_encoder") == set()
    assert zero_gradients(model, "memory_attention") == set()


@pytest.mark.parametrize(
    ("loss", "unused"),
    [
        # No default loss term uses the heads, and a mask prompt uses one of four masks, so three
        # hypernetworks have no gradient.
        (LossConfig(), OTHER_MASKS + HEADS),
        (LossConfig(iou_head=1.0, object_score=1.0), OTHER_MASKS),
    ],
)
def test_mask_decoder_gets_gradient_except_for_listed_parameters(tiny_config, loss, unused):
    tiny_config.model.trainable_modules = ["sam_mask_decoder"]
    model = create_sam2_model(tiny_config).train()
    batch = collate([moving_clip(2, num_frames=3)])
    backward(model, batch, first_prompts(batch), loss)
    expected = {
        n
        for n, _ in model.named_parameters()
        if n.startswith(tuple(f"sam_mask_decoder.{module}" for module in unused))
    }
    assert zero_gradients(model, "sam_mask_decoder") - KEY_BIASES == expected


def test_all_clips_and_objects_of_a_batch_are_independent(tiny_config):
    """The loss and gradient of a batch are the averages over its clips, by object-frames."""
    tiny_config.model.trainable_modules = ["*"]
    model = create_sam2_model(tiny_config).train()
    clips = [moving_clip(1, seed=1), moving_clip(3, seed=2)]
    parts = []
    for clip in clips:
        batch = collate([clip])
        loss = backward(model, batch, first_prompts(batch))["loss"]
        count = clip.masks.shape[0] * clip.masks.shape[1]
        parts.append((count, loss.detach(), _gradient(model)))
    batch = collate(clips)
    batch_loss = backward(model, batch, first_prompts(batch))["loss"].detach()
    gradient = _gradient(model)
    total = sum(count for count, _, _ in parts)
    expected_loss = sum(count * loss for count, loss, _ in parts) / total
    expected = sum(count * g for count, _, g in parts) / total
    assert torch.allclose(batch_loss, expected_loss, rtol=1e-5)
    assert (gradient - expected).norm() / expected.norm() < 1e-5


def _gradient(model) -> torch.Tensor:
    return torch.cat(
        [torch.zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in model.parameters()]
    )


def test_output_shapes_and_flags(tiny_config, batch):
    model = create_sam2_model(tiny_config).eval()
    with torch.no_grad():
        output = model(batch, first_prompts(batch))
    assert output.mask_logits.shape == (4, 4, 16, 16)
    assert output.iou.shape == output.object_score.shape == (4, 4)
    assert output.tracked.all() and output.prompted[0].all() and not output.prompted[1:].any()
    assert output.masks((64, 64)).shape == (4, 4, 64, 64)


def test_objects_with_different_prompts_and_starts_are_independent(tiny_config):
    """An object has the same result alone and in a batch with other prompts and first frames."""
    model = create_sam2_model(tiny_config).eval()
    clip = moving_clip(3)
    clip.masks[:2, 1] = False  # the second object enters on the third frame
    batch = collate([clip])
    masks = clip.masks
    prompts = [
        Prompt(frame=0, objects=torch.tensor([2]), masks=masks[0, 2:3]),
        Prompt(frame=2, objects=torch.tensor([1]), masks=masks[2, 1:2]),
        Prompt(
            frame=0,
            objects=torch.tensor([0]),
            points=torch.tensor([[[10.0, 8.0], [12.0, 9.0]]]),
            labels=torch.ones(1, 2, dtype=torch.int32),
        ),
        Prompt(frame=2, objects=torch.tensor([2]), masks=masks[2, 2:3]),
    ]
    with torch.no_grad():
        output = model(batch, prompts)
        for i in range(3):
            single = [replace(p, objects=torch.tensor([0])) for p in prompts if int(p.objects) == i]
            alone = model(collate([clip.select_objects([i])]), single)
            assert torch.allclose(output.mask_logits[:, i], alone.mask_logits[:, 0], atol=1e-4)
            assert torch.equal(output.tracked[:, i], alone.tracked[:, 0])
    assert output.tracked.sum(0).tolist() == [4, 2, 4]
    assert not output.mask_logits[:2, 1].any()


def test_objects_without_prompts_are_not_tracked(tiny_config, batch):
    model = create_sam2_model(tiny_config).eval()
    with torch.no_grad():
        output = model(batch, [])
    assert not output.tracked.any() and output.mask_logits.shape == (4, 4, 16, 16)


def test_invalid_calls(tiny_config, batch):
    model = create_sam2_model(tiny_config)
    prompt = first_prompts(batch)[0]
    with pytest.raises(ValueError, match="two prompts"):
        model(batch, [prompt, prompt])
    with pytest.raises(ValueError, match="image_size"):
        model(replace(batch, frames=batch.frames[..., :32, :32]), [prompt])


def test_frozen_encoder_keeps_no_graph(tiny_config, batch):
    model = create_sam2_model(tiny_config).train()
    assert not model.encode_frames(batch.frames)["vision_features"].requires_grad
    set_trainable(model, ["image_encoder.neck"])
    assert model.encode_frames(batch.frames)["vision_features"].requires_grad


@pytest.mark.parametrize("image_size", [96, 160])
@pytest.mark.parametrize("size", ["nano", "t"])
def test_any_multiple_of_32(tiny_config, size, image_size):
    tiny_config.model.size, tiny_config.dataset.image_size = size, image_size
    model = create_sam2_model(tiny_config).eval()
    batch = collate([moving_clip(size=image_size, num_frames=2)])
    with torch.no_grad():
        output = model(batch, first_prompts(batch))
    assert output.mask_logits.shape[-2:] == (image_size // 4, image_size // 4)


def test_other_image_sizes_are_rejected(tiny_config):
    tiny_config.dataset.image_size = 100
    with pytest.raises(ConfigError) as error:
        create_sam2_model(tiny_config)
    assert error.value.key == "dataset.image_size" and error.value.value == 100
    assert error.value.expected == "a multiple of 32" and error.value.hint == "try 96"


@pytest.mark.parametrize(
    ("size", "millions"), [("nano", 1.97), ("t", 38.9), ("s", 46.0), ("b+", 80.8), ("l", 224.4)]
)
def test_sizes(tiny_config, size, millions):
    tiny_config.model.size = size
    model = create_sam2_model(tiny_config)
    assert parameter_report(model)[-1].parameters == pytest.approx(millions * 1e6, rel=0.01)


def test_weights_depend_only_on_the_seed(tiny_config):
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = create_sam2_model(tiny_config).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    again = create_sam2_model(tiny_config).state_dict()
    tiny_config.seed = 1
    other = create_sam2_model(tiny_config).state_dict()
    assert all(torch.equal(first[k], again[k]) for k in first)
    assert not all(torch.equal(first[k], other[k]) for k in first)


def test_trainable_modules(tiny_config):
    model = create_sam2_model(tiny_config)
    shares = {r.module: r.percentage for r in parameter_report(model)}
    assert shares.pop("total") < 50
    # Parameters outside all modules follow the memory attention, which reads them.
    trained = {"memory_attention", "memory_encoder", "memory_embeddings"}
    assert {m for m, share in shares.items() if share == 100} == trained
    assert {m for m, share in shares.items() if share == 0} == set(shares) - trained
    set_trainable(model, ["memory_embeddings"])
    assert {n for n, p in model.named_parameters() if p.requires_grad} == {
        "maskmem_tpos_enc",
        "no_mem_embed",
        "no_mem_pos_enc",
        "no_obj_ptr",
        "no_obj_embed_spatial",
    }
    set_trainable(model, ["memory_attention.layers.*.norm?"])
    assert {n.split(".")[-2] for n, p in model.named_parameters() if p.requires_grad} == {
        "norm1",
        "norm2",
        "norm3",
    }
    set_trainable(model, ["sam_mask_decoder"])
    assert not model.sam_mask_decoder.conv_s0.weight.requires_grad and model.encoder_is_frozen
    set_trainable(model, ["image_encoder"])
    assert model.sam_mask_decoder.conv_s0.weight.requires_grad and not model.encoder_is_frozen
    with pytest.raises(ConfigError) as error:
        set_trainable(model, ["memory_attention", "memory_encodre"])
    assert error.value.key == "model.trainable_modules" and error.value.value == "memory_encodre"
    assert "memory_encoder" in error.value.hint
