"""Build SAM 2 as a module that tracks batches of clips, based on upstream's ``SAM2Base``.

Parameter names and shapes equal upstream's, so both packages can load each other's checkpoints.
"""

from __future__ import annotations

import fnmatch
import os
import shutil
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib import resources
from typing import Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from sam2.modeling.sam2_base import SAM2Base
from torch import Tensor

from sam2kit.config.schema import SIZES, Config
from sam2kit.data.clip import ClipBatch
from sam2kit.data.transforms import normalize
from sam2kit.models.clip_tracking import FrameFeatures, FrameResult, group_objects, track_group
from sam2kit.models.embeddings import PromptEncoder
from sam2kit.models.outputs import TrackOutput
from sam2kit.prompts.corrections import Corrections
from sam2kit.prompts.prompt import Prompt
from sam2kit.utils.errors import ConfigError

LOOSE_GROUP = "memory_embeddings"
"""Name of the parameters outside every module (``maskmem_tpos_enc``, ``no_mem_embed``,
``no_mem_pos_enc``, ``no_obj_ptr``, ``no_obj_embed_spatial``). Patterns that match
``memory_attention``, which reads all of them, match them too; this name matches only them."""
DECODER_SETTINGS = {
    "dynamic_multimask_via_stability": True,
    "dynamic_multimask_stability_delta": 0.05,
    "dynamic_multimask_stability_thresh": 0.98,
}
"""Attributes that upstream's ``build_sam2_video_predictor`` sets on the mask decoder."""


class SAM2Model(SAM2Base):
    """``SAM2Base`` with a forward pass over a :class:`~sam2kit.data.clip.ClipBatch`.

    Use :func:`~sam2kit.models.checkpoints.create_sam2_model` to build one.

    Attributes:
        detach_memory_every: detach an object's memories from the graph every N of its frames. None
            (default): gradients flow from every frame to all earlier frames.
        activation_checkpointing: discard the activations of each frame and recompute them in the
            backward pass. Gradients are the same, with less memory and more time.
        objects_together: maximum number of objects per call. None (default): no limit.
        feature_cache: a :class:`~sam2kit.models.feature_cache.FeatureCache` for the features of a
            frozen encoder. None (default): every frame is encoded.
    """

    detach_memory_every: int | None = None
    activation_checkpointing: bool = False
    objects_together: int | None = None
    feature_cache: Any = None

    def _build_sam_heads(self) -> None:
        super()._build_sam_heads()
        # Upstream names this class in its code, and the others in the YAML file.
        self.sam_prompt_encoder.__class__ = PromptEncoder

    def _forward_sam_heads(
        self, backbone_features: Tensor, point_inputs: dict | None = None, *args: Any, **kwargs: Any
    ) -> tuple:
        if point_inputs is None:
            count, device = len(backbone_features), backbone_features.device
            labels = torch.empty(count, 0, dtype=torch.int32, device=device)
            point_inputs = {
                "point_coords": torch.empty(count, 0, 2, device=device),
                "point_labels": labels,
            }
        return super()._forward_sam_heads(backbone_features, point_inputs, *args, **kwargs)

    def forward(
        self,
        batch: ClipBatch,
        prompts: list[Prompt],
        corrections: Corrections | None = None,
    ) -> TrackOutput:
        """Track every prompted object of a batch from its first prompt to the last frame.

        Args:
            batch: B clips of T frames of ``image_size`` by ``image_size`` pixels. The masks are not
                read: ground truth reaches the model only through ``prompts``.
            prompts: at most one per object and frame. Prompted frames are conditioning frames and
                are processed first, as in upstream's training.
            corrections: clicks to make during tracking. A corrected frame becomes a conditioning
                frame when it is processed. None (default): no clicks.

        Returns:
            Predictions for all T frames and O objects.

        Raises:
            ValueError: the frames have a different size than ``image_size``, an object is prompted
                twice on a frame, or a correction is on a mask prompt or before the first prompt.
        """
        if batch.frames.shape[-2:] != (self.image_size, self.image_size):
            raise ValueError(
                f"the frames have {tuple(batch.frames.shape[-2:])} pixels, but the model needs "
                f"{(self.image_size, self.image_size)}; set dataset.image_size"
            )
        # Decide in main memory which object is tracked when, so that nothing waits for the device.
        device, prompts = batch.frames.device, [prompt.to("cpu") for prompt in prompts]
        prompted = torch.zeros(batch.num_frames, batch.num_objects, dtype=torch.bool)
        for prompt in prompts:
            if prompted[prompt.frame, prompt.objects].any():
                raise ValueError(f"an object has two prompts on frame {prompt.frame}")
            prompted[prompt.frame, prompt.objects] = True
        # An object is tracked from its first prompt on; corrections do not start tracking.
        tracked = prompted.cumsum(0) > 0
        if corrections is not None:
            _check_corrections(corrections, prompts, tracked)
            prompted = prompted | corrections.frames.cpu()
        features = FrameFeatures.from_backbone(
            self, self.encode_frames(batch.frames, batch.frame_keys)
        )
        clip_of_object = (batch.host or batch).clip_of_object.tolist()
        groups = group_objects(prompts, corrections, self.objects_together)
        parts = [
            track_group(
                self,
                group.to(device),
                features,
                [clip_of_object[o] * batch.num_frames for o in group.indices],
                batch.num_frames,
                corrections,
                detach_memory_every=self.detach_memory_every,
                activation_checkpointing=self.activation_checkpointing,
            )
            for group in groups
        ]
        return self._assemble(parts, [g.objects for g in groups], tracked, prompted, device)

    @property
    def encoder_is_frozen(self) -> bool:
        """Whether none of the parameters that the frame features depend on is trained."""
        return not any(
            p.requires_grad
            for n, p in self.named_parameters()
            if module_path(n)[0] == "image_encoder"
        )

    def encode_frames(self, frames: Tensor, keys: list[str] | None = None) -> dict:
        """Compute the features of all frames of all clips with upstream's ``forward_image``.

        Args:
            frames: ``[B,T,3,H,W]``, uint8 or already normalised float32. Only uint8 frames can be
                looked up in the feature cache.
            keys: their :func:`~sam2kit.data.clip.frame_keys`. None (default): computed if needed.

        Returns:
            Upstream's dictionary with B*T images, where frame t of clip b is image b*T + t.
        """
        images = frames.flatten(0, 1)
        if images.dtype == torch.uint8:
            if self.feature_cache is not None and self.encoder_is_frozen:
                return self.feature_cache.encode(self, images, keys)
            images = normalize(images)
        # Without gradients for a frozen encoder, its activations are freed at once.
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.encoder_is_frozen):
            return self.forward_image(images)

    def _assemble(
        self,
        parts: list[dict[int, FrameResult]],
        objects: list[Tensor],
        tracked: Tensor,
        prompted: Tensor,
        device: torch.device,
    ) -> TrackOutput:
        """Combine the results of groups in the batch's order of objects.

        Frames before an object's first prompt are filled with zeros.

        Args:
            parts: the results of each group.
            objects: the objects of each group, in main memory.
            tracked, prompted: ``[T,O]`` bool, in main memory.
            device: the device of the results.
        """
        # The columns are concatenated as untracked objects, then group after group; the inverse
        # permutation puts them in the batch's order.
        untracked = (~tracked.any(0)).nonzero()[:, 0]
        inverse = torch.cat([untracked, *objects]).argsort().to(device, non_blocking=True)

        def assemble(value: Callable[[FrameResult], Tensor], *shape: int) -> Tensor:
            columns = [torch.zeros(len(prompted), len(untracked), *shape, device=device)]
            for part in parts:
                stacked = torch.stack([value(part[t]) for t in sorted(part)]).float()
                before = stacked.new_zeros(min(part), *stacked.shape[1:])
                columns.append(torch.cat([before, stacked]))
            return torch.cat(columns, dim=1)[:, inverse]

        side = self.image_size // 4
        logits = assemble(lambda result: result.mask_logits, side, side)
        ious = assemble(lambda result: result.steps[-1].iou.amax(-1))
        scores = assemble(lambda result: result.steps[-1].object_score)
        steps = [step for part in parts for t in sorted(part) for step in part[t].steps]
        return TrackOutput(
            logits,
            ious,
            scores,
            tracked.to(device, non_blocking=True),
            prompted.to(device, non_blocking=True),
            steps,
            host_tracked=tracked,
        )


def _check_corrections(corrections: Corrections, prompts: list[Prompt], tracked: Tensor) -> None:
    """Reject corrections that upstream cannot process."""
    frames = corrections.frames.cpu()
    if (frames & ~tracked).any():
        raise ValueError("an object is corrected before its first prompt")
    for prompt in prompts:
        if prompt.kind == "mask" and frames[prompt.frame, prompt.objects].any():
            raise ValueError(f"an object's mask prompt on frame {prompt.frame} is corrected")


def read_model_yaml(size: str) -> DictConfig:
    """Read the YAML file of a model size, from sam2kit for nano and from upstream for the others.

    Raises:
        ConfigError: the size is unknown.
    """
    if size not in SIZES:
        raise ConfigError(
            key="model.size",
            value=size,
            expected=f"one of {', '.join(SIZES)}",
            hint="t is the smallest size with official weights",
        )
    if size == "nano":
        file = resources.files("sam2kit") / "pretrained" / "nano.yaml"
    else:
        file = resources.files("sam2") / "configs" / "sam2.1" / f"sam2.1_hiera_{size}.yaml"
    return DictConfig(OmegaConf.create(file.read_text()))


def describe_model(config: Config) -> DictConfig:
    """Make the YAML tree, in upstream's format, that builds the model of a configuration.

    Args:
        config: ``model`` and ``dataset.image_size`` are read.

    Raises:
        ConfigError: the size is unknown, or the image size is not a multiple of 32.
    """
    image_size = config.dataset.image_size
    # 32 is the stride of the trunk's last stage.
    if image_size <= 0 or image_size % 32:
        raise ConfigError(
            key="dataset.image_size",
            value=image_size,
            expected="a multiple of 32",
            hint=f"try {max(32, round(image_size / 32) * 32)}",
        )
    tree = read_model_yaml(config.model.size).model
    tree["image_size"] = image_size
    layer, m = tree.memory_attention.layer, config.model
    if m.memory_dropout is not None:
        layer.dropout = m.memory_dropout
    for attention in (layer.self_attention, layer.cross_attention):
        # Memory attention runs on features of stride 16.
        attention.feat_sizes = [image_size // 16] * 2
        dropout = m.memory_dropout if m.attention_dropout is None else m.attention_dropout
        if dropout is not None:
            attention.dropout = dropout
    tree.image_encoder.trunk.drop_path_rate = config.model.drop_path_rate
    return tree


def build_sam2_model(config: Config) -> SAM2Model:
    """Build a model with random weights and without LoRA.

    The weights depend only on ``config.seed``; the global random state is restored.

    Args:
        config: ``model``, ``dataset.image_size`` and ``seed`` are read.

    Raises:
        ConfigError: as :func:`describe_model`.
    """
    tree = describe_model(config)
    tree["_target_"] = "sam2kit.models.sam2.SAM2Model"
    tree.memory_attention["_target_"] = "sam2kit.models.memory_attention.MemoryAttention"
    for attention in ("self_attention", "cross_attention"):
        tree.memory_attention.layer[attention]["_target_"] = (
            "sam2kit.models.memory_attention.RotaryAttention"
        )
    for owner in (tree.memory_encoder, tree.image_encoder.neck):
        owner.position_encoding["_target_"] = "sam2kit.models.embeddings.PositionEncoding"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        model = instantiate(tree, _recursive_=True)
    model.detach_memory_every = config.model.detach_memory_every
    model.activation_checkpointing = config.model.activation_checkpointing
    model.objects_together = config.model.objects_together
    _set_initial_values(model, config)
    return model


def check_compiler() -> None:
    """Check that this machine can compile a model.

    Raises:
        ConfigError: there is no C++ compiler, and no GPU, which needs none.
    """
    compilers = (os.environ.get("CXX"), "c++", "g++", "clang++")
    if not torch.cuda.is_available() and not any(shutil.which(c) for c in compilers if c):
        raise ConfigError(
            "no C++ compiler found",
            key="model.compile",
            value=True,
            hint="install g++ or set model.compile=false",
        )


def compile_model(model: SAM2Model) -> None:
    """Compile the two largest modules in place, on their first call; parameter names do not change.

    Only training calls this: compiling takes minutes in each process, so a checkpoint that was
    trained with ``model.compile`` is exported, evaluated and tracked without it.

    Raises:
        ConfigError: as :func:`check_compiler`.
    """
    check_compiler()
    model.memory_attention.place_rotations(model.device)
    model.image_encoder.compile(dynamic=False)
    # The number of memories changes from frame to frame; dynamic shapes avoid recompilation.
    model.memory_attention.compile(dynamic=True)


@torch.no_grad()
def _set_initial_values(model: SAM2Model, config: Config) -> None:
    """Set the initial biases that training from random weights may need to start.

    With ``memory_attention_bias`` b, the queries and keys of the memory cross-attention start with
    the bias (b, 0, b, 0, ...), that is (b, 0) in every rotary pair. After rotation, the product of
    a query and a key is largest if both have the same position in the frame, so attention starts
    there.
    """
    if bias := config.model.memory_attention_bias:
        for layer in model.memory_attention.layers:
            for projection in (layer.cross_attn_image.q_proj, layer.cross_attn_image.k_proj):
                projection.bias.zero_()
                projection.bias[0::2] = bias
    if config.model.object_score_bias:
        head = model.sam_mask_decoder.pred_obj_score_head
        last = head.layers[-1] if hasattr(head, "layers") else head
        last.bias.fill_(config.model.object_score_bias)


def module_path(parameter: str) -> tuple[str, ...]:
    """Split a parameter name into the modules that contain it, outermost first, and its own name.

    This is the path in the model with two exceptions. ``conv_s0`` and ``conv_s1`` belong to the
    mask decoder, but they are the last step of the image encoder (they run once per frame, and are
    frozen and cached with it), so they count as ``image_encoder``. Parameters outside every module
    count as :data:`LOOSE_GROUP`.
    """
    parts = tuple(parameter.split("."))
    if parts[0] == "sam_mask_decoder" and parts[1] in ("conv_s0", "conv_s1"):
        return ("image_encoder", *parts[1:])
    return parts if len(parts) > 1 else (LOOSE_GROUP, *parts)


def _names(parameter: str) -> set[str]:
    """List all names that a pattern can match: its own and those of the modules that contain it."""
    parameter = parameter.replace(".base_layer.", ".")  # inserted where LoRA wraps a layer
    path = module_path(parameter)
    names = {".".join(path[:depth]) for depth in range(1, len(path) + 1)} | {parameter}
    return names | {"memory_attention"} if path[0] == LOOSE_GROUP else names


def match_parameters(model: torch.nn.Module, patterns: Iterable[str], key: str) -> set[str]:
    """Find the parameters that match any of the patterns.

    Args:
        model: the model.
        patterns: module names, parameter names or globs.
        key: the configuration key of the patterns, for error messages.

    Returns:
        The parameter names.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    names = {n: _names(n) for n, _ in model.named_parameters()}
    chosen: set[str] = set()
    for pattern in patterns:
        matches = {n for n, aliases in names.items() if fnmatch.filter(aliases, pattern)}
        if not matches:
            modules = sorted({module_path(n)[0] for n in names})
            raise ConfigError(
                f"{pattern!r} matches no module",
                key=key,
                value=pattern,
                hint=f"this model has {', '.join(modules)} "
                "(and their submodules, such as memory_attention.layers.0)",
            )
        chosen |= matches
    return chosen


def set_trainable(model: torch.nn.Module, patterns: Iterable[str]) -> None:
    """Make the parameters that match ``patterns`` trainable, and freeze all others.

    Raises:
        ConfigError: a pattern matches nothing.
    """
    chosen = match_parameters(model, patterns, "model.trainable_modules")
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)


@dataclass(frozen=True)
class ModuleReport:
    """The numbers of parameters and of trainable parameters of a module."""

    module: str
    parameters: int
    trainable: int

    @property
    def percentage(self) -> float:
        """Trainable share in percent, 0 to 100."""
        return 100.0 * self.trainable / max(self.parameters, 1)


def parameter_report(model: torch.nn.Module) -> list[ModuleReport]:
    """Count parameters, with one row per module in the model's order and ``total`` last."""
    counts: dict[str, list[int]] = {}
    for name, parameter in model.named_parameters():
        row = counts.setdefault(module_path(name)[0], [0, 0])
        row[0] += parameter.numel()
        row[1] += parameter.numel() * parameter.requires_grad
    rows = [ModuleReport(module, *row) for module, row in counts.items()]
    total = ModuleReport("total", sum(r.parameters for r in rows), sum(r.trainable for r in rows))
    return [*rows, total]


def format_report(rows: list[ModuleReport]) -> str:
    """Format a report as a plain-text table."""
    width = max(len(r.module) for r in rows)
    lines = [f"{'module':{width}} {'parameters':>12} {'trainable':>12} {'%':>6}"]
    lines += [
        f"{r.module:{width}} {r.parameters:12,} {r.trainable:12,} {r.percentage:6.1f}" for r in rows
    ]
    return "\n".join(lines)
