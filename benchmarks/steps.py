"""Training steps of both sides: forward pass, loss and gradients of the very same clip.

The official side is upstream's ``SAM2Train`` with the loss and the model of its fine-tuning; the
kit's is what its trainer runs, with a configuration of plain overrides. Weights are random and the
same, the prompt is each object's mask on the first frame, and the kit computes upstream's loss,
too. The optimizer is left out: it is the same on both sides.
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
from sam2kit.models.sam2 import describe_model, set_trainable
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.module import SAM2LightningModule

EXACT = ["model.memory_dropout=0", "trainer.precision=32-true"]
"""Nothing that changes a gradient but dropout, which is off."""
FAST = ["model.memory_dropout=0", "trainer.precision=bf16-mixed", "features.dtype=bfloat16"]
COMMON = [
    "loss=official",
    "model.object_score_bias=5",  # random weights call objects absent, which cuts gradients off
    "dataset.num_workers=0",
]
EVERYTHING = ['model.trainable_modules=["*"]']


class KitStep:
    """A step as :class:`SAM2LightningModule` takes it."""

    def __init__(self, config: Config, device: str = "cpu") -> None:
        self.config, self.device = config, device
        data = SAM2LightningDataModule(config)
        self.module = SAM2LightningModule(config).to(device)
        self.module.use_features(data)
        self.module.train()
        self.batch: ClipBatch = next(iter(data.train_dataloader())).to(device)

    def __call__(self) -> None:
        self.module.zero_grad(set_to_none=True)
        with autocast(self.device, self.config.trainer.precision == "bf16-mixed"):
            _, terms = self.module.track_and_score(self.batch, 0)
        terms["loss"].backward()

    def on_new_frames(self) -> None:
        """A step on frames that no cache holds."""
        frames = self.batch.frames + 1
        keys = None if self.batch.frame_keys is None else frame_keys(frames)
        self.batch = replace(self.batch, frames=frames, frame_keys=keys)
        self()

    def gradient(self) -> Tensor:
        """Of all trained parameters, in the order of their names."""
        return _gradient(self.module.model)


class OfficialStep:
    """A step of ``SAM2Train`` with the weights, the clip and the trained modules of a kit's step.

    Args:
        dropout: as shipped.
        mixed: under bf16 autocast, as upstream trains on GPUs.
    """

    def __init__(self, kit: KitStep, dropout: bool = True, mixed: bool = False) -> None:
        from training.loss_fns import MultiStepMultiMasksAndIous
        from training.utils.data_utils import BatchedVideoDatapoint, BatchedVideoMetaData

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
        return _gradient(self.model)


def remove_dropout(model: nn.Module) -> None:
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
    """The length of the difference as a share of that of ``b``."""
    return float((a - b).norm() / b.norm())


@contextmanager
def clip_config(options: Options, objects: int, overrides: Sequence[str]) -> Iterator[Config]:
    """A configuration whose only clip shows so many objects on every first frame."""
    with TemporaryDirectory() as folder:
        videos = crowded_videos(1, options.frames, objects)
        yield step_config(write_davis(videos, Path(folder) / "davis"), options, overrides)


def step_config(davis: Path, options: Options, overrides: Sequence[str] = ()) -> Config:
    """A configuration that draws clips from ``davis`` and keeps features beside it."""
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
    """The same clip with other settings."""
    d = config.dataset
    options = Options(config.model.size, d.image_size, d.video_clip_length)
    return step_config(Path(str(d.data_path)), options, overrides)


def frozen_encoder(options: Options, objects: int) -> list[Finding]:
    """Memory modules trained on a frozen encoder: as shipped, and exactly."""
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
    named = f"{objects} object{'s' * (objects > 1)}"
    what, exactly = f"training step, {named}", f"exact training step, {named}"
    official, without = "`SAM2Train` as shipped", "`SAM2Train` without dropout"
    off = difference(gradients["exact"], gradients["plain"])
    bf16 = difference(gradients["fast"], gradients["plain"])
    return [
        ratio(
            what,
            official,
            times["shipped"],
            times["fast"],
            3.5 if objects == 1 else 3.0,
            f"bf16, features from a warm cache, dropout 0; gradients {bf16:.1%} off float32's",
        ),
        share(f"{what}: memory", official, memory["shipped"], memory["fast"], 0.4),
        ratio(
            exactly,
            without,
            times["plain"],
            times["exact"],
            1.8 if objects == 1 else 1.3,
            "float32 and dropout 0 on both sides, features from a warm cache",
        ),
        share(f"{exactly}: memory", without, memory["plain"], memory["exact"]),
        Finding(f"{exactly}: gradients", without, "", "", off, "{:.1e}", 1e-5, at_most=True),
    ]


def full_fine_tuning(options: Options, objects: int) -> list[Finding]:
    """Every weight trained, the encoder's too."""
    with clip_config(options, objects, [*EXACT, *EVERYTHING]) as config:
        exact = KitStep(config, options.device)
        fast = KitStep(changed(config, [*FAST, *EVERYTHING]), options.device)
        sides = {"shipped": OfficialStep(exact), "exact": exact, "fast": fast}
        memory = {name: peak_bytes(side, options.device) for name, side in sides.items()}
        times = in_turns(sides, options.repeats, options.device)
    named = f"{objects} object{'s' * (objects > 1)}"
    what, official = f"full fine-tuning step, {named}", "`SAM2Train` as shipped"
    return [
        ratio(what, official, times["shipped"], times["fast"], 1.1, "bf16 and dropout 0"),
        share(f"{what}: memory", official, memory["shipped"], memory["fast"]),
        ratio(
            f"{what}, float32",
            official,
            times["shipped"],
            times["exact"],
            1.0,
            "dropout 0, nothing else",
        ),
    ]


def on_gpu(options: Options, objects: int) -> list[Finding]:
    """Both sides in bf16, as upstream trains on GPUs; the kit's model compiled and not."""
    with clip_config(options, objects, FAST) as config:
        fast = KitStep(config, options.device)
        compiled = KitStep(changed(config, [*FAST, "model.compile=true"]), options.device)
        sides = {"shipped": OfficialStep(fast, mixed=True), "fast": fast, "compiled": compiled}
        for side in sides.values():
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


def filling_the_cache(options: Options, objects: int = 1, videos: int = 1000) -> list[Finding]:
    """What filling costs, and from which step on it has paid for itself."""
    with clip_config(options, objects, FAST) as config:
        cached = KitStep(config, options.device)
        without = KitStep(changed(config, [*FAST, "features.cache=off"]), options.device)
        for side in (cached, without):
            side()
        sides = {"off": without, "warm": cached, "cold": cached.on_new_frames}
        # A cold step changes the frames, so a warm one comes before the next cold one, not after.
        times = in_turns({k: sides[k] for k in ("off", "cold")}, options.repeats, options.device)
        times |= in_turns({"warm": cached}, options.repeats, options.device)
        files = [f for f in Path(str(config.features.folder)).rglob("*") if f.is_file()]
        frames = sum(len(f.name) == 40 for f in files)
        a_frame = sum(f.stat().st_size for f in files) / max(frames, 1)
    count, clip = videos, options.frames
    first = count / clip  # steps until every frame was seen once
    fill = first * max(times["cold"] - times["warm"], 0)
    gain = times["off"] - times["warm"]
    paid = fill / gain if gain > 0 else float("inf")
    note = (
        f"a step takes {seconds(times['off'])} without a cache, {seconds(times['cold'])} while it "
        f"is filled, {seconds(times['warm'])} from then on ({objects} object, bf16); "
        f"{a_frame / 1e6:.1f} MB a frame on disk; the frames are seen once in {first:.0f} steps"
    )
    what = f"feature cache of {count:,} frames: paid for itself"
    ours = f"{seconds(fill)} to fill"
    return [Finding(what, "no cache", "", ours, paid, "after step {:.0f}", note=note)]
