"""Convert weights from and to the names of transformers' ``Sam2VideoModel``.

Both models compute the same, so a conversion renames tensors and changes no value. transformers is
needed to write its format, but not to read it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from loguru import logger
from omegaconf import DictConfig
from torch import Tensor

from sam2kit.utils.errors import CheckpointError
from sam2kit.utils.readers import damage_is, read_json

LANDMARK = "vision_encoder.backbone.patch_embed.projection.weight"
"""A tensor that every SAM 2 model of transformers has, and no official one."""

WEIGHTS_FILE = "model.safetensors"
CONFIG_FILE = "config.json"

# Settings with the same name and meaning in upstream's YAML.
_SAME_SETTINGS = (
    "num_maskmem",
    "sigmoid_scale_for_mem_enc",
    "sigmoid_bias_for_mem_enc",
    "multimask_output_in_sam",
    "multimask_min_pt_num",
    "multimask_max_pt_num",
    "multimask_output_for_tracking",
)
# transformers keeps the position embedding twice; in released and trained weights both are equal.
_IMAGE_POSITIONS = "shared_image_embedding.positional_embedding"
_POINT_POSITIONS = "prompt_encoder.shared_embedding.positional_embedding"
_POINT_EMBEDDINGS = "prompt_encoder.point_embed.weight"
_SHARED_EMBEDDING = "sam_prompt_encoder.pe_layer.positional_encoding_gaussian_matrix"
# Rules from transformers' names to the official ones; in each group, the first match applies.
_GROUPS: tuple[tuple[tuple[str, str], ...], ...] = (
    (
        # The perceptrons with three layers, then those with two.
        (r"(mlps\.\d+|head|object_pointer_proj)\.proj_in\.", r"\1.layers.0."),
        (r"(mlps\.\d+|head|object_pointer_proj)\.layers\.0\.", r"\1.layers.1."),
        (r"(mlps\.\d+|head|object_pointer_proj)\.proj_out\.", r"\1.layers.2."),
        (r"\.mlp\.proj_in\.", ".mlp.layers.0."),
        (r"\.mlp\.proj_out\.", ".mlp.layers.1."),
    ),
    (
        (r"^memory_temporal_positional_encoding$", "maskmem_tpos_enc"),
        (r"^no_memory_embedding$", "no_mem_embed"),
        (r"^no_memory_positional_encoding$", "no_mem_pos_enc"),
        (r"^no_object_pointer$", "no_obj_ptr"),
        (r"^occlusion_spatial_embedding_parameter$", "no_obj_embed_spatial"),
        (r"^object_pointer_proj\.", "obj_ptr_proj."),
        (r"^temporal_positional_encoding_projection_layer\.", "obj_ptr_tpos_proj."),
        (r"^(shared_image|prompt_encoder\.shared)_embedding\.\w+$", _SHARED_EMBEDDING),
        (r"^prompt_encoder\.mask_embed\.conv1\.", "sam_prompt_encoder.mask_downscaling.0."),
        (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "sam_prompt_encoder.mask_downscaling.1."),
        (r"^prompt_encoder\.mask_embed\.conv2\.", "sam_prompt_encoder.mask_downscaling.3."),
        (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "sam_prompt_encoder.mask_downscaling.4."),
        (r"^prompt_encoder\.mask_embed\.conv3\.", "sam_prompt_encoder.mask_downscaling.6."),
        (r"^prompt_encoder\.", "sam_prompt_encoder."),
        (r"^mask_decoder\.upscale_conv1\.", "sam_mask_decoder.output_upscaling.0."),
        (r"^mask_decoder\.upscale_layer_norm\.", "sam_mask_decoder.output_upscaling.1."),
        (r"^mask_decoder\.upscale_conv2\.", "sam_mask_decoder.output_upscaling.3."),
        (r"^mask_decoder\.", "sam_mask_decoder."),
        (r"^memory_encoder\.feature_projection\.", "memory_encoder.pix_feat_proj."),
        (r"^memory_encoder\.projection\.", "memory_encoder.out_proj."),
        (r"^memory_encoder\.memory_fuser\.", "memory_encoder.fuser."),
        # Downsampling by 16 in four layers of stride 2.
        (r"(mask_downsampler)\.final_conv\.", r"\1.encoder.12."),
        (r"(mask_downsampler)\.layers\.0\.conv\.", r"\1.encoder.0."),
        (r"(mask_downsampler)\.layers\.0\.layer_norm\.", r"\1.encoder.1."),
        (r"(mask_downsampler)\.layers\.1\.conv\.", r"\1.encoder.3."),
        (r"(mask_downsampler)\.layers\.1\.layer_norm\.", r"\1.encoder.4."),
        (r"(mask_downsampler)\.layers\.2\.conv\.", r"\1.encoder.6."),
        (r"(mask_downsampler)\.layers\.2\.layer_norm\.", r"\1.encoder.7."),
        (r"(mask_downsampler)\.layers\.3\.conv\.", r"\1.encoder.9."),
        (r"(mask_downsampler)\.layers\.3\.layer_norm\.", r"\1.encoder.10."),
        (r"^vision_encoder\.backbone\.patch_embed\.\w+\.", "image_encoder.trunk.patch_embed.proj."),
        (r"^vision_encoder\.backbone\.", "image_encoder.trunk."),
        (r"^vision_encoder\.neck\.convs\.(\d+)\.", r"image_encoder.neck.convs.\1.conv."),
    ),
    (
        (r"\.o_proj\.", ".out_proj."),
        (r"\.layer_norm_final_attn\.", ".norm_final_attn."),
        (r"\.layer_norm(\d?)\.", r".norm\1."),
        (r"(fuser\.layers\.\d+)\.scale$", r"\1.gamma"),
        (r"(fuser\.layers\.\d+)\.depthwise_conv\.", r"\1.dwconv."),
        (r"(fuser\.layers\.\d+)\.pointwise_conv(\d)\.", r"\1.pwconv\2."),
    ),
)


def is_saved_model(folder: Path) -> bool:
    """Check whether a folder contains the files that ``save_pretrained`` writes."""
    return (folder / WEIGHTS_FILE).is_file() and (folder / CONFIG_FILE).is_file()


def official_name(name: str) -> str:
    """Convert the name of a tensor of ``Sam2VideoModel`` to the official one."""
    for group in _GROUPS:
        for pattern, replacement in group:
            name, count = re.subn(pattern, replacement, name)
            if count:
                break
    return name


def from_transformers(state: Mapping[str, Tensor], source: str | Path) -> dict[str, Tensor]:
    """Convert the ``state_dict`` of a ``Sam2VideoModel`` to the official names.

    Args:
        state: not changed.
        source: the file, for log messages.
    """
    official: dict[str, Tensor] = {}
    for name, value in state.items():
        if name == _POINT_EMBEDDINGS:
            for number, row in enumerate(value):
                official[f"sam_prompt_encoder.point_embeddings.{number}.weight"] = row[None]
            continue
        converted = official_name(name)
        if name == _POINT_POSITIONS and _IMAGE_POSITIONS in state:
            if not torch.equal(value, state[_IMAGE_POSITIONS]):
                logger.warning(
                    "{}: {} and {} differ, as in a Sam2VideoModel with random weights; the second "
                    "is used for both, so point and box prompts behave differently",
                    source,
                    _POINT_POSITIONS,
                    _IMAGE_POSITIONS,
                )
            continue
        official[converted] = value
    return official


def to_transformers(state: Mapping[str, Tensor], names: Iterable[str]) -> dict[str, Tensor]:
    """Convert weights in the official format to those of a ``Sam2VideoModel``.

    Args:
        state: not changed.
        names: the names of all tensors of the ``Sam2VideoModel``.

    Raises:
        CheckpointError: a tensor has no counterpart in the other model.
    """
    points = [name for name in state if ".point_embeddings." in name]
    sources = {name: official_name(name) for name in names if name != _POINT_EMBEDDINGS}
    unmatched = {*sources.values()} ^ {*state.keys()}.difference(points)
    if unmatched:
        raise CheckpointError(
            f"{len(unmatched)} tensors are in only one of the two models (first: {min(unmatched)})",
            hint="install the version of transformers in requirements.txt",
        )
    converted = {name: state[source] for name, source in sources.items()}
    return {**converted, _POINT_EMBEDDINGS: torch.cat([state[name] for name in sorted(points)])}


def transformers_config(tree: DictConfig) -> dict[str, Any]:
    """Convert a model's YAML in upstream's format to the settings of a ``Sam2VideoConfig``.

    Args:
        tree: as :func:`~sam2kit.models.sam2.describe_model` returns it.
    """
    size, trunk, neck = tree.image_size, tree.image_encoder.trunk, tree.image_encoder.neck
    layer, encoder = tree.memory_attention.layer, tree.memory_encoder
    # The YAML of b+ omits values that equal the defaults of upstream's Hiera.
    blocks = list(trunk.get("stages", (2, 3, 16, 3)))
    stages, grid = len(blocks), [[size // stride] * 2 for stride in (4, 8, 16)]
    hidden, width = neck.d_model, encoder.fuser.layer.dim
    backbone = {
        "model_type": "sam2_hiera_det_model",
        "hidden_size": trunk.embed_dim,
        "num_attention_heads": trunk.num_heads,
        "image_size": [size, size],
        "blocks_per_stage": blocks,
        "embed_dim_per_stage": [trunk.embed_dim * 2**stage for stage in range(stages)],
        "num_attention_heads_per_stage": [trunk.num_heads * 2**stage for stage in range(stages)],
        "window_size_per_stage": list(trunk.get("window_spec", (8, 4, 14, 7))),
        "global_attention_blocks": list(trunk.get("global_att_blocks", (12, 16, 20))),
        "window_positional_embedding_background_size": list(
            trunk.get("window_pos_embed_bkg_spatial_size", (14, 14))
        ),
    }
    settings = {
        "vision_config": {
            "model_type": "sam2_vision_model",
            "backbone_config": backbone,
            "backbone_channel_list": list(neck.backbone_channel_list),
            "backbone_feature_sizes": grid,
            "fpn_hidden_size": hidden,
            "fpn_top_down_levels": list(neck.fpn_top_down_levels),
        },
        "prompt_encoder_config": {"hidden_size": hidden, "image_size": size},
        "mask_decoder_config": {"hidden_size": hidden},
        "image_size": size,
        "memory_attention_hidden_size": tree.memory_attention.d_model,
        "memory_attention_num_layers": tree.memory_attention.num_layers,
        "memory_attention_num_attention_heads": layer.self_attention.num_heads,
        "memory_attention_downsample_rate": layer.self_attention.downsample_rate,
        "memory_attention_feed_forward_hidden_size": layer.dim_feedforward,
        "memory_attention_feed_forward_hidden_act": layer.activation,
        "memory_attention_dropout": layer.dropout,
        "memory_attention_rope_dropout": layer.self_attention.dropout,
        "memory_attention_rope_feat_sizes": grid[-1],
        "rope_parameters": {"rope_type": "axial", "rope_theta": layer.self_attention.rope_theta},
        "memory_encoder_hidden_size": hidden,
        "memory_encoder_output_channels": encoder.out_dim,
        "mask_downsampler_embed_dim": encoder.mask_downsampler.get("embed_dim", 256),
        "memory_fuser_embed_dim": width,
        "memory_fuser_intermediate_dim": 4 * width,
        "memory_fuser_num_layers": encoder.fuser.num_layers,
        "memory_fuser_layer_scale_init_value": encoder.fuser.layer.layer_scale_init_value,
        "max_object_pointers_in_encoder": tree.get("max_obj_ptrs_in_encoder", 16),
    }
    return {**settings, **{key: tree[key] for key in _SAME_SETTINGS}}


def read_settings(folder: Path, tree: DictConfig) -> int:
    """Read the image size from the ``config.json`` of a saved ``Sam2VideoModel``.

    Args:
        folder: the folder with the file.
        tree: YAML of the model that sam2kit builds for these weights.

    Returns:
        Height and width of the frames in pixels.

    Raises:
        CheckpointError: the file is unreadable, or a setting that changes results differs from
            the one in sam2kit's model.
    """
    path = folder / CONFIG_FILE
    hint = f"save the model again with save_pretrained, or give the path of {WEIGHTS_FILE} alone"
    settings = read_json(path, hint=hint, error=CheckpointError)
    with damage_is(CheckpointError, path, hint):
        size = settings["image_size"]
        size = size if isinstance(size, int) else size[0]
        if not isinstance(size, int):
            raise TypeError("image_size is not a number")
    expected = transformers_config(tree)
    for key in (*_SAME_SETTINGS, "max_object_pointers_in_encoder"):
        value = settings.get(key, expected[key])
        if value != expected[key]:
            raise CheckpointError(
                f"{path}: sam2kit cannot build a model with this setting",
                key=key,
                value=value,
                expected=repr(expected[key]),
                hint="use a model with the settings of the released SAM 2 models",
            )
    return size
