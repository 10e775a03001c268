"""Recipes: their values, how their parts combine, and the settings of the memory."""

from __future__ import annotations

from pathlib import Path

import pytest
import sam2
import torch
from conftest import moving_clip
from omegaconf import OmegaConf

from sam2kit.config.loading import load_config, save_config
from sam2kit.config.schema import Config, LossConfig
from sam2kit.data.clip import collate
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.prompts.corrections import CorrectionGenerator
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.training.losses import SAM2TrainingLoss
from sam2kit.training.memory_profile import peak_bytes
from sam2kit.training.module import SAM2LightningModule
from sam2kit.utils.errors import ConfigError


def test_the_memory_recipe_is_the_defaults():
    assert load_config(None, ["recipe=memory"]) == load_config() == Config()


def test_the_official_recipe():
    config = load_config(None, ["recipe=official"])
    assert config.recipe == "official" and config.model.trainable_modules == ["*"]
    data, loss, optimizer = config.dataset, config.loss, config.optimizer
    assert dict(zip(data.prompt_types, data.prompt_probabilities, strict=True)) == {
        "mask": 0.5,
        "box": 0.25,
        "point": 0.25,
    }
    assert (data.box_noise, data.max_conditioning_frames, data.video_clip_length) == (0.1, 2, 8)
    assert (data.num_positive_points, data.include_center) == (1, False)
    assert (data.correction_clicks, data.max_correction_frames) == (7, 2)
    assert data.correction_from_truth == 0.1
    assert loss == LossConfig(
        type="steps", focal=20, bce=0, dice=1, iou=0, temporal=0, iou_head=1, object_score=1
    )
    assert (optimizer.lr, optimizer.module_lr) == (5e-6, {"image_encoder": 3e-6})
    assert (optimizer.weight_decay, optimizer.layer_decay) == (0.1, 0.9)
    assert (config.scheduler.name, config.scheduler.min_lr_ratio) == ("cosine", 0.1)
    assert config.scheduler.warmup_steps == 0
    assert (config.trainer.gradient_clip_val, config.trainer.precision) == (0.1, "bf16-mixed")
    assert config.model.drop_path_rate == 0.1


def test_official_augmentation_equals_upstream():
    """Compare with upstream's YAML file for fine-tuning SAM 2.1 on MOSE."""
    name = "sam2.1_training/sam2.1_hiera_b+_MOSE_finetune.yaml"
    file = OmegaConf.load(Path(sam2.__file__).parent / "configs" / name)
    (steps,) = file.vos.train_transforms
    steps = [(s["_target_"].rpartition(".")[2], s) for s in steps.transforms]
    assert [name for name, _ in steps][:6] == [
        "RandomHorizontalFlip",
        "RandomAffine",
        "RandomResizeAPI",
        "ColorJitter",
        "RandomGrayscale",
        "ColorJitter",
    ]
    affine, clip, grey, frame = (steps[k][1] for k in (1, 3, 4, 5))
    config = load_config(None, ["recipe=official", "augmentation=official"])
    assert config.dataset.augment and not load_config(None, ["recipe=official"]).dataset.augment
    assert not config.validation_dataset().augment
    ours = config.augmentation
    assert (ours.flip, ours.degrees, ours.shear) == (0.5, affine.degrees, affine.shear)
    assert (ours.brightness, ours.contrast, ours.saturation) == (
        clip.brightness,
        clip.contrast,
        clip.saturation,
    )
    assert (ours.frame_brightness, ours.frame_contrast, ours.frame_saturation) == (
        frame.brightness,
        frame.contrast,
        frame.saturation,
    )
    assert ours.grayscale == grey.p and clip.hue is frame.hue is None
    assert ours.reverse == ours.crop == ours.stretch == ours.scale == ours.translate == 0


def test_validation_is_the_same_under_both():
    memory, official = (
        load_config(),
        load_config(None, ["recipe=official", "dataset.video_clip_length=5"]),
    )
    prompts = [
        PromptGenerator.from_config(c.validation_dataset()).__dict__ for c in (memory, official)
    ]
    same = ("prompt_types", "probabilities", "box_noise", "max_frames")
    assert [prompts[0][k] for k in same] == [prompts[1][k] for k in same]
    assert official.validation_dataset().correction_clicks == 0


def test_parts_mix(tmp_path):
    config = load_config(None, ["recipe=official", "loss=default", "trainer=cpu", "model=nano"])
    assert config.loss == LossConfig() and config.trainer.precision == "32-true"
    assert config.model.size == "nano" and config.dataset.correction_clicks == 7
    assert load_config(None, ["loss=official"]).recipe == "memory"
    file = tmp_path / "mine.yaml"
    file.write_text(
        "defaults: [config, override recipe: official, override loss: from_scratch, _self_]\n"
        "model: {trainable_modules: [memory_encoder]}\n"
    )
    config = load_config(file)
    assert (config.recipe, config.loss.bce) == ("official", 5.0)
    assert config.model.trainable_modules == ["memory_encoder"]


def test_module_learning_rates_are_merged_with_the_recipe():
    config = load_config(None, ["recipe=official", "optimizer.module_lr={memory_attention:1e-4}"])
    assert config.optimizer.module_lr == {"image_encoder": 3e-6, "memory_attention": 1e-4}


def test_resolved_file_loads_but_rejects_a_recipe(tmp_path):
    config = load_config(None, ["recipe=official"])
    save_config(config, tmp_path / "run.yaml")
    assert load_config(tmp_path / "run.yaml") == config
    with pytest.raises(ConfigError, match="recipe=memory.*loss=official"):
        load_config(tmp_path / "run.yaml", ["recipe=memory"])


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("recipe=offcial", ["recipe", "offcial", "official"]),
        ("loss.type=step", ["loss.type", "'step'", "steps"]),
        ("loss.focal=-1", ["loss.focal", "-1"]),
        ("model.detach_memory_every=0", ["model.detach_memory_every", "at least 1"]),
        ("model.attention_dropout=1.5", ["model.attention_dropout", "at most 1"]),
        ("model.drop_path_rate=1", ["model.drop_path_rate", "below 1"]),
        ("dataset.box_noise=-0.1", ["dataset.box_noise"]),
        ("dataset.max_conditioning_frames=0", ["dataset.max_conditioning_frames"]),
        ("dataset.correction_clicks=-1", ["dataset.correction_clicks"]),
        ("dataset.max_correction_frames=0", ["dataset.max_correction_frames"]),
        ("dataset.correction_from_truth=2", ["dataset.correction_from_truth", "at most 1"]),
        ("optimizer.module_lr={memory_encoder:0}", ["optimizer.module_lr", "memory_encoder"]),
        ("optimizer.module_lr={memory_encoder:x}", ["optimizer.module_lr", "names to numbers"]),
        ("optimizer.module_lr=1e-4", ["optimizer.module_lr", "names to numbers"]),
        ("optimizer.module_weight_decay={a:-1}", ["optimizer.module_weight_decay", "at least 0"]),
        ("optimizer.layer_decay=0", ["optimizer.layer_decay", "at most 1"]),
    ],
)
def test_invalid_values_are_rejected_with_their_key(override, words):
    with pytest.raises(ConfigError) as caught:
        load_config(None, [override])
    assert all(word in str(caught.value) for word in words), caught.value


def test_the_loss_of_steps_has_no_temporal_term():
    with pytest.raises(ConfigError, match="loss.temporal"):
        load_config(None, ["loss=official", "loss.temporal=0.1"])


def test_settings_of_recipes_reach_the_model(tiny_config):
    tiny_config.model.attention_dropout = 0.3
    tiny_config.model.drop_path_rate = 0.1
    tiny_config.model.detach_memory_every = 2
    tiny_config.model.activation_checkpointing = True
    model = create_sam2_model(tiny_config)
    layer = model.memory_attention.layers[0]
    assert layer.self_attn.dropout_p == layer.cross_attn_image.dropout_p == 0.3
    assert model.image_encoder.trunk.blocks[-1].drop_path.drop_prob == pytest.approx(0.1)
    assert model.detach_memory_every == 2 and model.activation_checkpointing


def clip_of(num_frames: int):
    return collate([moving_clip(2, num_frames=num_frames)])


def backward(model, batch, kind: str = "mask", clicks: int = 0) -> None:
    generator = torch.Generator().manual_seed(0)
    prompts = PromptGenerator([kind])(batch, generator)
    corrections = CorrectionGenerator(clicks, 2)(batch, prompts, generator)
    model.zero_grad()
    SAM2TrainingLoss(LossConfig())(model(batch, prompts, corrections), batch)["loss"].backward()


def gradients(model, prefix: str = "") -> dict[str, torch.Tensor]:
    return {
        n: p.grad.clone()
        for n, p in model.named_parameters()
        if n.startswith(prefix) and p.grad is not None
    }


def test_detaching_every_memory_leaves_the_memory_encoder_without_gradient(tiny_config):
    model = create_sam2_model(tiny_config).train()
    model.detach_memory_every = 1
    backward(model, clip_of(4))
    assert not any(g.any() for g in gradients(model, "memory_encoder").values())
    assert any(g.any() for g in gradients(model, "memory_attention").values())


@pytest.mark.parametrize(("every", "reached"), [(None, True), (2, False), (3, True)])
def test_gradient_flows_through_memories_until_they_are_detached(tiny_config, every, reached):
    """Only the third frame has a loss; detaching every second memory stops its gradient."""
    model = create_sam2_model(tiny_config).train()
    model.detach_memory_every = every
    batch = clip_of(4)
    batch.annotated[:] = False
    batch.annotated[2] = True
    prompts = PromptGenerator(["mask"])(clip_of(4), torch.Generator().manual_seed(0))
    SAM2TrainingLoss(LossConfig())(model(batch, prompts), batch)["loss"].backward()
    assert any(g.any() for g in gradients(model, "memory_encoder").values()) == reached
    assert any(g.any() for g in gradients(model, "memory_attention").values())


@pytest.mark.parametrize(("kind", "clicks"), [("mask", 0), ("box", 2)])
def test_activation_checkpointing_gives_the_same_gradients(tiny_config, kind, clicks):
    tiny_config.model.attention_dropout = 0.2
    tiny_config.model.trainable_modules = ["*"]
    model = create_sam2_model(tiny_config).train()
    results = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        torch.manual_seed(7)  # dropout is redrawn in the backward pass and must be the same
        backward(model, clip_of(4), kind, clicks)
        results.append(gradients(model))
    assert results[0].keys() == results[1].keys()
    for name, gradient in results[0].items():
        assert torch.allclose(gradient, results[1][name], rtol=1e-5, atol=1e-7), name


@pytest.mark.parametrize("kind", ["mask", "point"])
def test_object_chunks_give_the_same_masks_and_gradients(tiny_config, kind):
    tiny_config.model.trainable_modules = ["*"]
    model = create_sam2_model(tiny_config).train()
    results, calls = [], []
    model.memory_attention.register_forward_hook(lambda *a: calls.append(a[2].shape[1]))
    for together in (None, 2):
        model.objects_together = together
        model.zero_grad()
        batch = collate([moving_clip(3)])
        prompts = PromptGenerator([kind])(batch, torch.Generator().manual_seed(0))
        output = model(batch, prompts)
        SAM2TrainingLoss(LossConfig())(output, batch)["loss"].backward()
        results.append((output.mask_logits.detach(), gradients(model)))
    assert set(calls[:3]) == {3} and sorted(set(calls[3:])) == [1, 2]
    (masks, whole), (chunked_masks, chunked) = results
    torch.testing.assert_close(chunked_masks, masks, rtol=1e-4, atol=1e-4)
    both = [torch.cat([g[n].flatten() for n in whole]) for g in (whole, chunked)]
    assert (both[1] - both[0]).norm() < 1e-5 * both[0].norm()


def test_object_chunks_with_checkpointing_need_less_memory(tiny_config):
    tiny_config.model.activation_checkpointing = True
    model = create_sam2_model(tiny_config).train()
    model.requires_grad_(True)
    model.image_encoder.requires_grad_(False)
    batch = collate([moving_clip(8)])
    prompts = PromptGenerator(["mask"])(batch, torch.Generator().manual_seed(0))

    def step():
        SAM2TrainingLoss(LossConfig())(model(batch, prompts), batch)["loss"].backward()
        model.zero_grad(set_to_none=True)

    peaks = []
    for together in (None, 1):
        model.objects_together = together
        step()
        peaks.append(peak_bytes(step))
    assert peaks[1] < 0.7 * peaks[0]


def test_activation_checkpointing_saves_fewer_tensors(tiny_config):
    model = create_sam2_model(tiny_config).train()
    saved = []
    for checkpointing in (False, True):
        model.activation_checkpointing = checkpointing
        sizes = []

        def pack(tensor: torch.Tensor, sizes: list = sizes) -> torch.Tensor:
            sizes.append(tensor.numel())
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            batch = clip_of(4)
            model(batch, PromptGenerator(["mask"])(batch, torch.Generator().manual_seed(0)))
        saved.append(sum(sizes))
    assert saved[1] < saved[0] / 2


def test_training_step_has_correction_clicks(tiny_config):
    tiny_config.dataset.prompt_types = ["point"]
    tiny_config.dataset.correction_clicks = 2
    module = SAM2LightningModule(tiny_config)
    output, _ = module.track_and_score(clip_of(4), step=0)
    assert len(output.steps) == 4 + 2
    again, _ = module.track_and_score(clip_of(4), step=0)
    assert torch.equal(output.mask_logits, again.mask_logits)
