"""Parameter groups: each trained parameter once, with the configured learning rate."""

from __future__ import annotations

import pytest
from training.optimizer import layer_decay_param_modifier

from sam2kit.config.schema import OptimizerConfig
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.training.optim import parameter_groups
from sam2kit.utils.errors import ConfigError


def of_parameters(model, groups, key) -> dict[str, float]:
    value = {id(p): group[key] for group in groups for p in group["params"]}
    return {n: value[id(p)] for n, p in model.named_parameters() if p.requires_grad}


@pytest.mark.parametrize("trainable", [["*"], ["memory_attention"], ["image_encoder.trunk"]])
def test_groups_are_disjoint_and_complete(tiny_config, trainable):
    tiny_config.model.trainable_modules = trainable
    model = create_sam2_model(tiny_config)
    config = OptimizerConfig(
        module_lr={"memory_attention": 1e-3, "*norm*": 2e-3},
        module_weight_decay={"memory_encoder": 0.2},
        layer_decay=0.9,
    )
    grouped = [id(p) for group in parameter_groups(model, config) for p in group["params"]]
    trained = [id(p) for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(set(grouped)) and set(grouped) == set(trained)


def test_biases_norms_and_tokens_are_not_decayed(tiny_config):
    tiny_config.model.trainable_modules = ["*"]
    model = create_sam2_model(tiny_config)
    groups = parameter_groups(model, OptimizerConfig(weight_decay=0.1))
    decay = of_parameters(model, groups, "weight_decay")
    for name, parameter in model.named_parameters():
        plain = name.endswith("bias") or parameter.squeeze().ndim < 2
        assert decay[name] == (0 if plain else 0.1)
    assert decay["memory_attention.layers.0.norm1.weight"] == 0


def test_last_matching_pattern_wins(tiny_config):
    model = create_sam2_model(tiny_config)
    config = OptimizerConfig(
        lr=1.0,
        module_lr={"memory_attention": 2.0, "memory_attention.layers.1": 3.0},
        module_weight_decay={"memory_encoder": 0.5},
    )
    groups = parameter_groups(model, config)
    rate = of_parameters(model, groups, "lr")
    assert rate["memory_encoder.pix_feat_proj.weight"] == 1.0
    assert rate["memory_attention.layers.0.linear1.weight"] == 2.0
    assert rate["memory_attention.layers.1.linear1.weight"] == 3.0
    assert rate["maskmem_tpos_enc"] == 2.0  # the loose parameters follow the memory attention
    decay = of_parameters(model, groups, "weight_decay")
    assert decay["memory_encoder.pix_feat_proj.weight"] == 0.5
    assert decay["memory_attention.layers.0.linear1.weight"] == 0.01


def test_learning_rates_are_upstreams(tiny_config):
    tiny_config.model.trainable_modules = ["*"]
    model = create_sam2_model(tiny_config)
    names = {n for n, _ in model.named_parameters()}
    encoder = {n for n in names if n.startswith("image_encoder.")}
    (theirs,) = layer_decay_param_modifier(
        [
            [
                {"option": "lr", "scheduler": lambda: 5e-6, "parameter_names": names - encoder},
                {"option": "lr", "scheduler": lambda: 3e-6, "parameter_names": encoder},
            ]
        ],
        model,
        0.9,
        apply_to="image_encoder.trunk",
        overrides=[{"pattern": "*pos_embed*", "value": 1.0}],
    )
    expected = {n: group["scheduler"]() for group in theirs for n in group["parameter_names"]}
    config = OptimizerConfig(lr=5e-6, module_lr={"image_encoder": 3e-6}, layer_decay=0.9)
    rates = of_parameters(model, parameter_groups(model, config), "lr")
    # These convolutions belong to the encoder here and to the mask decoder upstream.
    for name in [n for n in names if ".conv_s0." in n or ".conv_s1." in n]:
        assert rates.pop(name) == 3e-6 and expected.pop(name) == 5e-6
    assert rates == pytest.approx(expected)


@pytest.mark.parametrize("key", ["module_lr", "module_weight_decay"])
def test_pattern_without_match_is_rejected(tiny_config, key):
    model = create_sam2_model(tiny_config)
    with pytest.raises(ConfigError, match=f"optimizer.{key}.*memory_encodre"):
        parameter_groups(model, OptimizerConfig(**{key: {"memory_encodre": 1.0}}))


def test_nothing_to_train_is_rejected(tiny_config):
    model = create_sam2_model(tiny_config).requires_grad_(False)
    with pytest.raises(ConfigError) as error:
        parameter_groups(model, OptimizerConfig())
    assert error.value.key == "model.trainable_modules"
