"""Compare training steps: forward pass, loss and gradients on the same clip.

The official side is upstream's ``SAM2Train`` with the model and loss of its fine-tuning. The other
side is the step of sam2kit's trainer with upstream's loss. Both have the same random weights, and
each object is prompted with its mask on the first frame. The optimizer, which is the same on both
sides, is excluded.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from benchmarks.measure import (
    Finding,
    Options,
    autocast,
    crowded_videos,
    in_turns,
    peak_bytes,
    ratio,
    seconds,
    share,
    write_davis,
)
from sam2kit.config.loading import load_config
from sam2kit.config.schema import Config
from sam2kit.data.clip import ClipBatch, frame_keys
from sam2kit.data.transforms import normalize
from sam2kit.models.sam2 import compile_model, describe_model, set_trainable
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.module import SAM2LightningModule

EXACT = ["model.memory_dropout=0", "trainer.precision=32-true"]
"""Upstream's settings without dropout, with which gradients must equal upstream's."""
FAST = ["model.memory_dropout=0", "trainer.precision=bf16-mixed", "features.dtype=bfloat16"]
COMMON = [
    "loss=official",
    # With random weights, objects would be predicted absent, which stops their gradients.
    "model.object_score_bias=5",
    "dataset.num_workers=0",
]
EVERYTHING = ['model.trainable_modules=["*"]']


class KitStep:
    """A training step of :class:`SAM2LightningModule`."""

    def __init__(self, config: Config, device: str = "cpu") -> None:
        self.config, self.device = config, device
        data = SAM2LightningDataModule(config)
        self.module = SAM2LightningModule(config).to(device)
        self.module.use_features(data)
        self.module.train()
        if config.model.compile:
            compile_model(self.module.model)
        self.batch: ClipBatch = next(iter(data.train_dataloader())).to(device)

    def __call__(self) -> None:
        self.module.zero_grad(set_to_none=True)
        with autocast(self.device, self.config.trainer.precision == "bf16-mixed"):
            _, terms = self.module.track_and_score(self.batch, 0)
        terms["loss"].backward()

    def on_new_frames(self) -> None:
        """Run a step on frames that are not in the feature cache."""
        frames = self.batch.frames + 1
        keys = None if self.batch.frame_keys is None else frame_keys(frames)
        self.batch = replace(self.batch, frames=frames, frame_keys=keys)
        self()

    def gradient(self) -> Tensor:
        """Return the gradients of all trainable parameters, sorted by name."""
        return _gradient(self.module.model)


class OfficialStep:
    """A training step of ``SAM2Train`` with the weights, clip and modules of a sam2kit step.

    Args:
        kit: the sam2kit step.
        dropout: keep upstream's dropout.
        mixed: use bf16 autocast, as upstream does on GPUs.
    """

    def __init__(self, kit: KitStep, dropout: bool = True, mixed: bool = False) -> None:
        from training.loss_fns import MultiStepMultiMasksAndIous
        from training.utils.data_utils import BatchedVideoDatapoint, BatchedVideoMetaData

        # Build the model from upstream's own configuration, but with upstream's training class.
        plain = load_config(None, [f"model.size={kit.config.model.size}"])
        plain.dataset.image_size = kit.config.dataset.image_size
        tree = describe_model(plain)
        tree["_target_"] = "training.model.sam2.SAM2Train"
        self.model = instantiate(tree).to(kit.device)
        self.model.load_state_dict(kit.module.model.state_dict())
        set_trainable(self.model, kit.config.model.trainable_modules)
        if not dropout:
            remove_dropout(self.model)
        self.model.train()
        self.mixed, self.device = mixed, kit.device
        self.loss = MultiStepMultiMasksAndIous(
            {"loss_mask": 20, "loss_dice": 1, "loss_iou": 1, "loss_class": 1},
            supervise_all_iou=True,
            iou_use_l1_loss=True,
            pred_obj_scores=True,
            focal_gamma_obj_score=0.0,
            focal_alpha_obj_score=-1.0,
        )
        batch, (t, o) = kit.batch, kit.batch.masks.shape[:2]
        frame = torch.arange(t, device=kit.device)[:, None].expand(t, o)
        self.clip = BatchedVideoDatapoint(
            img_batch=normalize(batch.frames).transpose(0, 1),
            obj_to_frame_idx=torch.stack([frame, batch.clip_of_object.expand(t, o)], dim=-1),
            masks=batch.masks,
            metadata=BatchedVideoMetaData(
                unique_objects_identifier=torch.zeros(t, o, 3, dtype=torch.long),
                frame_orig_size=torch.zeros(t, o, 2, dtype=torch.long),
                batch_size=[t],
            ),
            dict_key="all",
            batch_size=[t],
        )

    def __call__(self) -> None:
        self.model.zero_grad(set_to_none=True)
        with autocast(self.device, self.mixed):
            outputs = self.model(self.clip)
            loss = self.loss(outputs, self.clip.masks)["core_loss"]
        loss.backward()

    def gradient(self) -> Tensor:
        """Return the gradients of all trainable parameters, sorted by name."""
        return _gradient(self.model)


def remove_dropout(model: nn.Module) -> None:
    """Set all dropout rates to 0, including the numbers stored in attention layers."""
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
        if hasattr(module, "dropout_p"):
            module.dropout_p = 0.0


def _gradient(model: nn.Module) -> Tensor:
    named = sorted((n, p) for n, p in model.named_parameters() if p.requires_grad)
    return torch.cat(
        [(torch.zeros_like(p) if p.grad is None else p.grad).flatten() for _, p in named]
    )


def difference(a: Tensor, b: Tensor) -> float:
    """Return the norm of ``a - b`` relative to the norm of ``b``."""
    return float((a - b).norm() / b.norm())


@contextmanager
def clip_config(options: Options, objects: int, overrides: Sequence[str]) -> Iterator[Config]:
    """Yield a configuration with a single clip that has ``objects`` objects in its first frame."""
    with TemporaryDirectory() as folder:
        videos = crowded_videos(1, options.frames, objects)
        yield step_config(write_davis(videos, Path(folder) / "davis"), options, overrides)


def step_config(davis: Path, options: Options, overrides: Sequence[str] = ()) -> Config:
    """Return a configuration that reads clips from ``davis`` and caches features next to it."""
    return load_config(
        None,
        [
            f"model.size={options.model}",
            f"dataset.image_size={options.image_size}",
            f"dataset.video_clip_length={options.frames}",
            "dataset.max_objects=null",
            f"dataset.data_path={davis}",
            f"valdataset.data_path={davis}",
            f"features.folder={davis.parent / 'features'}",
            *COMMON,
            *overrides,
        ],
    )


def changed(config: Config, overrides: Sequence[str]) -> Config:
    """Return a configuration for the same clip with other settings."""
    dataset = config.dataset
    options = Options(config.model.size, dataset.image_size, dataset.video_clip_length)
    return step_config(Path(str(dataset.data_path)), options, overrides)


def frozen_encoder(options: Options, objects: int) -> list[Finding]:
    """Compare steps that train the memory modules on a frozen encoder."""
    with clip_config(options, objects, EXACT) as config:
        exact = KitStep(config, options.device)
        fast = KitStep(changed(config, FAST), options.device)
        shipped, plain = OfficialStep(exact), OfficialStep(exact, dropout=False)
        sides = {"shipped": shipped, "plain": plain, "exact": exact, "fast": fast}
        for kit in (exact, fast):
            kit()  # fills the cache
        memory = {name: peak_bytes(side, options.device) for name, side in sides.items()}
        gradients = {name: side.gradient() for name, side in sides.items()}
        times = in_turns(sides, options.repeats, options.device)
    object_text = f"{objects} object{'s' * (objects > 1)}"
    fast_step, exact_step = f"training step, {object_text}", f"exact training step, {object_text}"
    official, no_dropout = "`SAM2Train` as shipped", "`SAM2Train` without dropout"
    exact_error = difference(gradients["exact"], gradients["plain"])
    fast_error = difference(gradients["fast"], gradients["plain"])
    return [
        ratio(
            fast_step,
            official,
            times["shipped"],
            times["fast"],
            3.5 if objects == 1 else 3.0,
            "bf16, features from a warm cache, dropout 0; gradients differ from float32 by "
            f"{fast_error:.1%}",
        ),
        share(f"{fast_step}: memory", official, memory["shipped"], memory["fast"], 0.4),
        ratio(
            exact_step,
            no_dropout,
            times["plain"],
            times["exact"],
            1.8 if objects == 1 else 1.3,
            "float32 and dropout 0 on both sides, features from a warm cache",
        ),
        share(f"{exact_step}: memory", no_dropout, memory["plain"], memory["exact"]),
        Finding(
            f"{exact_step}: gradients",
            no_dropout,
            "",
            "",
            exact_error,
            "{:.1e}",
            1e-5,
            at_most=True,
        ),
    ]


def full_fine_tuning(options: Options, objects: int) -> list[Finding]:
    """Compare steps that train all weights, including the encoder."""
    with clip_config(options, objects, [*EXACT, *EVERYTHING]) as config:
        exact = KitStep(config, options.device)
        fast = KitStep(changed(config, [*FAST, *EVERYTHING]), options.device)
        sides = {"shipped": OfficialStep(exact), "exact": exact, "fast": fast}
        memory = {name: peak_bytes(side, options.device) for name, side in sides.items()}
        times = in_turns(sides, options.repeats, options.device)
    object_text = f"{objects} object{'s' * (objects > 1)}"
    what, official = f"full fine-tuning step, {object_text}", "`SAM2Train` as shipped"
    return [
        ratio(what, official, times["shipped"], times["fast"], 1.1, "bf16 and dropout 0"),
        share(f"{what}: memory", official, memory["shipped"], memory["fast"]),
        ratio(
            f"{what}, float32",
            official,
            times["shipped"],
            times["exact"],
            1.0,
            "dropout 0, otherwise equal",
        ),
    ]


def on_gpu(options: Options, objects: int) -> list[Finding]:
    """Compare bf16 steps on a GPU, with and without compiling sam2kit's model."""
    with clip_config(options, objects, FAST) as config:
        fast = KitStep(config, options.device)
        compiled = KitStep(changed(config, [*FAST, "model.compile=true"]), options.device)
        sides = {"shipped": OfficialStep(fast, mixed=True), "fast": fast, "compiled": compiled}
        for side in sides.values():  # warm up: fill the cache and compile
            side()
        memory = {name: peak_bytes(side, options.device) for name, side in sides.items()}
        times = in_turns(sides, options.repeats, options.device)
    official = "`SAM2Train` in bf16"
    what = (
        f"training step on a GPU, {options.model} at {options.image_size}, T={options.frames}, "
        f"{objects} objects"
    )
    return [
        finding
        for name, named in (("fast", what), ("compiled", f"{what}, compiled"))
        for finding in (
            ratio(named, official, times["shipped"], times[name]),
            share(f"{named}: memory", official, memory["shipped"], memory[name]),
        )
    ]


def filling_the_cache(options: Options, objects: int = 1, num_frames: int = 1000) -> list[Finding]:
    """Measure the cost of filling the feature cache, and the step at which it is recovered.

    Args:
        options: sizes and device.
        objects: objects per clip.
        num_frames: number of frames in the dataset.
    """
    with clip_config(options, objects, FAST) as config:
        cached = KitStep(config, options.device)
        without = KitStep(changed(config, [*FAST, "features.cache=off"]), options.device)
        for side in (cached, without):
            side()
        sides = {"off": without, "warm": cached, "cold": cached.on_new_frames}
        # A cold step changes the frames, so run the warm step before the next cold one.
        times = in_turns({k: sides[k] for k in ("off", "cold")}, options.repeats, options.device)
        times |= in_turns({"warm": cached}, options.repeats, options.device)
        files = [f for f in Path(str(config.features.folder)).rglob("*") if f.is_file()]
        frames = sum(len(f.name) == 40 for f in files)  # the file of a frame is named by its hash
        frame_bytes = sum(f.stat().st_size for f in files) / max(frames, 1)
    first_pass_steps = num_frames / options.frames  # steps until every frame has been used once
    fill_seconds = first_pass_steps * max(times["cold"] - times["warm"], 0)
    saved_per_step = times["off"] - times["warm"]
    paid_off_step = fill_seconds / saved_per_step if saved_per_step > 0 else float("inf")
    note = (
        f"a step takes {seconds(times['off'])} without a cache, {seconds(times['cold'])} while it "
        f"is filled, {seconds(times['warm'])} afterwards ({objects} object, bf16); "
        f"{frame_bytes / 1e6:.1f} MB per frame on disk; all frames are used once in "
        f"{first_pass_steps:.0f} steps"
    )
    what = f"feature cache of {num_frames:,} frames: break-even"
    ours = f"{seconds(fill_seconds)} to fill"
    return [Finding(what, "no cache", "", ours, paid_off_step, "after step {:.0f}", note=note)]
