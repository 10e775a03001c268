"""What a training step will take, before a run: memory, time, and what to change where it is much.

Small steps are run and the one that is asked for is extrapolated from them. Everything that a step
does grows with one of five numbers (one, frames, objects, object-frames, and pairs of an
object-frame with a memory that it reads), so a few steps of few frames and one or two objects tell
all five shares, of bytes and of floating-point operations. Time is operations times the seconds
that one takes in the last of those steps.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sam2kit.config.loading import override_config, settle_precision
from sam2kit.config.schema import Config
from sam2kit.config.validation import check
from sam2kit.data.build import build_datasets
from sam2kit.data.clip import ClipBatch
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.transforms import normalize
from sam2kit.models.feature_cache import FeatureCache, create_cache, obstacle
from sam2kit.models.sam2 import SAM2Model
from sam2kit.training.memory_profile import (
    StepMemory,
    gradient_bytes,
    peak_bytes,
    step_memory,
)
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.optim import build_optimizer
from sam2kit.utils.device import pick_device

CLIPS_LOOKED_AT = 20
SMALL_FRAMES, SMALL_OBJECTS = (2, 3, 4), 2
"""The frames of the steps that are run, and the most objects of a clip in them."""
REPEATS = 3


@dataclass(frozen=True)
class TrainingPlan:
    """What training takes as it is configured.

    Attributes:
        config: with everything that ``auto`` meant.
        device: such as ``cpu`` or ``cuda:0``.
        objects: the most of a clip; ``mean_objects`` is what time is counted for.
        cached: whether the encoder's features come from the cache.
        memory: at the peak of a step, of the largest clips.
        seconds: of a step, the optimizer's part in it; without loading and validation.
        filling: seconds that the step takes longer while its frames are not in the cache yet.
        steps: of the whole training.
    """

    config: Config
    device: str
    objects: int
    mean_objects: float
    cached: bool
    memory: StepMemory
    seconds: float
    filling: float
    steps: int

    def __str__(self) -> str:
        d = self.config.dataset
        first = f", {self.seconds + self.filling:.3g} s while features are filled in"
        lines = [
            f"a step: {d.batch_size} x {d.video_clip_length} frames of {d.image_size} px, up to "
            f"{self.objects} objects a clip (mean {self.mean_objects:.1f}), "
            f"{self.config.trainer.precision}, encoder "
            f"{'from the cache' if self.cached else 'run in every step'}",
            str(self.memory),
            f"time of a step: about {self.seconds:.3g} s on {self.device}"
            + (first if self.filling else ""),
            f"training: {self.steps:,} steps, about {_time(self.steps * self.seconds)} without "
            "loading and validation",
        ]
        return "\n".join(lines)


def plan_training(config: Config) -> TrainingPlan:
    """Measure what a step of ``config`` takes on the device that would train.

    Nothing is trained, and no checkpoint is read: random weights cost the same. Steps that draw
    their prompts or corrections at random are planned for the largest of a few draws.

    Raises:
        ConfigError, DataError: as :func:`sam2kit.training.trainer.fit`.
    """
    check(config)
    config = settle_precision(config)
    clips, _ = build_datasets(config)
    counts = [len(clips[i].object_ids) for i in range(min(len(clips), CLIPS_LOOKED_AT))]
    return _plan(config, clips, max(counts), statistics.fmean(counts))


def propose(found: TrainingPlan) -> tuple[list[str], TrainingPlan] | None:
    """Overrides with which a step fits, and what it then takes; None: nothing here is enough.

    Those that keep clips as they are come first, then those that make a step smaller. ``[]`` where
    it fits already.
    """
    if not found.memory.tight:
        return [], found
    clips, _ = build_datasets(found.config)
    changes: dict[str, str] = {}
    for key, value in _ladder(found):
        changes[key] = value
        overrides = [f"{k}={v}" for k, v in changes.items()]
        config = override_config(found.config, overrides)
        most = min(found.objects, config.dataset.max_objects or found.objects)
        better = _plan(config, clips, most, min(found.mean_objects, most))
        if not better.memory.tight:
            return overrides, better
    return None


def report(config: Config) -> tuple[str, bool]:
    """The plan as text, with what to change where a step does not fit, and whether it fits."""
    found = plan_training(config)
    better = propose(found)
    if better is None:
        return (
            f"{found}\nit does not fit, and nothing that was tried makes it fit: lower "
            "dataset.image_size, or take a smaller model.size",
            False,
        )
    overrides, then = better
    if not overrides:
        return str(found), True
    return f"{found}\nit does not fit; it would with: {' '.join(overrides)}\n{then}", False


def _ladder(found: TrainingPlan) -> Iterator[tuple[str, str]]:
    model, d = found.config.model, found.config.dataset
    if model.memory_dropout != 0:
        yield "model.memory_dropout", "0"
    if not model.activation_checkpointing:
        yield "model.activation_checkpointing", "true"
    if found.device != "cpu" and found.config.trainer.precision == "32-true":
        yield "trainer.precision", "bf16-mixed"
    together = found.objects * d.batch_size
    for key, now, least in (
        ("model.objects_together", min(model.objects_together or together, together), 1),
        ("dataset.batch_size", d.batch_size, 1),
        ("dataset.max_objects", found.objects, 1),
        ("dataset.video_clip_length", d.video_clip_length, 2),
    ):
        while now > least:
            now = max(now // 2, least)
            yield key, str(now)


@torch.random.fork_rng(devices=[])
def _plan(config: Config, clips: ClipDataset, objects: int, mean_objects: float) -> TrainingPlan:
    overrides = ["model.checkpoint=null", "model.compile=false"]
    if config.model.object_score_bias == 0:  # else random weights withhold masks, without gradient
        overrides.append("model.object_score_bias=5")
    module = SAM2LightningModule(override_config(config, overrides))
    device = pick_device(config.trainer.accelerator)
    module.to(device).train()
    frozen = module.model.encoder_is_frozen
    cached = create_cache(config) is not None and not obstacle(config, module.model, clips.source)
    if frozen:
        module.train_cache = _OneFrame(config.features.dtype == "bfloat16" and cached)
    gradients = gradient_bytes(module.model)
    d = config.dataset
    length, clips_at_once = d.video_clip_length, min(d.batch_size, 2)
    small = _Small(module, clips_at_once, gradients)
    for frames, count in _small_steps(module, objects):
        logger.info("a step of {} frames and {} objects is run", frames, count)
        small.run(frames, count)
    more = d.batch_size / clips_at_once
    step = small.bytes(length, objects) * more + gradients
    seconds = small.seconds(length, mean_objects) * more + small.optimizer_seconds()
    filling = 0.0
    if frozen:
        peak, an_image = _encoder(module, d.batch_size * length)
        if cached:
            filling = an_image * d.batch_size * length
        else:
            step, seconds = max(step, peak), seconds + an_image * d.batch_size * length
    memory = step_memory(module.model, int(step), averaged=config.trainer.ema_decay is not None)
    trainer = config.trainer
    batches = math.ceil(len(clips) / d.batch_size)
    batches = min(batches, trainer.limit_train_batches or batches)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * max(trainer.max_epochs, 1)
    if trainer.max_steps > 0:
        steps = min(steps, trainer.max_steps) if trainer.max_epochs > 0 else trainer.max_steps
    return TrainingPlan(
        config, str(device), objects, mean_objects, cached, memory, seconds, filling, steps
    )


def _small_steps(module: SAM2LightningModule, objects: int) -> list[tuple[int, int]]:
    """(frames, objects) of the steps to run; the largest comes last.

    With activation checkpointing the peak is now in a frame, now in the loss, and no sum of shares;
    but then a step holds little, so that it can be run as it is.
    """
    length, most = module.config.dataset.video_clip_length, min(objects, SMALL_OBJECTS)
    if module.config.model.activation_checkpointing:
        return [(length, objects)]
    few, some, many = SMALL_FRAMES
    if length <= many:
        return [(length, count) for count in range(1 if objects > most else most, most + 1)]
    alone = [(few, 1), (some, 1), (many, 1)]
    return alone if most == 1 else [*alone, (few, most), (many, most)]


class _Small:
    """Small steps, and what they tell of larger ones."""

    def __init__(self, module: SAM2LightningModule, clips: int, gradients: int) -> None:
        self.module, self.clips, self.gradients = module, clips, gradients
        self.reads = module.model.num_maskmem  # most memories that a frame reads
        d = module.config.dataset
        random = len(d.prompt_types) > 1 or d.max_conditioning_frames > 1 or d.correction_clicks
        self.draws = range(REPEATS if random else 1)
        self._sizes: list[tuple[int, int]] = []
        self._bytes: list[float] = []
        self._operations: list[float] = []

    def run(self, frames: int, objects: int) -> None:
        """Measure bytes and operations of a step; :meth:`seconds` then times its last batch."""
        self._batch = _clips(self.clips, frames, objects, self.module)
        peaks, operations = [], []
        for draw in self.draws:
            self._step(draw)  # what is built at a first step is no part of later ones
            peaks.append(peak_bytes(partial(self._step, draw), self.module.device))
            with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
                self._step(draw)
            operations.append(counter.get_total_flops())
        self._sizes.append((frames, objects))
        self._bytes.append(max(max(peaks) - self.gradients, 0))
        self._operations.append(statistics.fmean(operations))

    def bytes(self, frames: int, objects: float) -> float:
        """At the peak of a step, without gradients of parameters."""
        return self._extrapolated(self._bytes, frames, objects)

    def seconds(self, frames: int, objects: float) -> float:
        """Of a step, by its operations and the time that those of the largest step took."""
        took = statistics.fmean(
            _median_seconds(partial(self._step, draw), self.module.device) for draw in self.draws
        )
        wanted = self._extrapolated(self._operations, frames, objects)
        return took * wanted / max(self._operations[-1], 1)

    def optimizer_seconds(self) -> float:
        module = self.module
        optimizer = build_optimizer(module.model, module.config.optimizer)
        for parameter in module.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # makes its states
        return _median_seconds(optimizer.step, module.device)

    def _step(self, draw: int) -> None:
        with _autocast(self.module):
            _, terms = self.module.track_and_score(self._batch, draw)
        if terms["loss"].requires_grad:
            terms["loss"].backward()
        self.module.zero_grad(set_to_none=True)

    def _row(self, frames: int, objects: float) -> list[float]:
        pairs = sum(min(t, self.reads) for t in range(frames))
        return [1, frames, objects, objects * frames, objects * pairs]

    def _extrapolated(self, values: list[float], frames: int, objects: float) -> float:
        rows = np.array([self._row(*size) for size in self._sizes])
        shares, *_ = np.linalg.lstsq(rows, np.array(values), rcond=None)
        return max(float(np.dot(self._row(frames, objects), shares)), 0.0)


class _OneFrame(FeatureCache):
    """A cache that holds every frame; it stands for the real one, or for the frozen encoder."""

    def __init__(self, rounded: bool) -> None:
        super().__init__("", rounded=rounded)
        self._levels: list[Tensor] = []

    def encode(self, model: SAM2Model, images: Tensor, keys: object = None) -> dict:
        if not self._levels:
            levels = _forward(model, images[:1])
            self._levels = [x.bfloat16() if self.rounded else x for x in levels]
        return self._together(model, images, [self._levels] * len(images))


@torch.no_grad()
def _forward(model: SAM2Model, images: Tensor) -> list[Tensor]:
    return model.forward_image(normalize(images))["backbone_fpn"]


def _encoder(module: SAM2LightningModule, images: int) -> tuple[float, float]:
    """Bytes at the peak for so many frames at once, and seconds of one frame."""

    def run(count: int) -> None:
        with _autocast(module):
            _forward(module.model, frames[:count])

    frames = _clips(1, 2, 1, module).frames[0]
    run(1)
    one, two = (peak_bytes(partial(run, count), module.device) for count in (1, 2))
    return one + (two - one) * (images - 1), _median_seconds(partial(run, 2), module.device) / 2


def _clips(clips: int, frames: int, objects: int, module: SAM2LightningModule) -> ClipBatch:
    """Random pictures on which every object is a square, always in view."""
    side, total = module.config.dataset.image_size, clips * objects
    masks = torch.zeros(frames, total, side, side, dtype=torch.bool)
    masks[..., side // 4 : side // 2, side // 4 : side // 2] = True
    return ClipBatch(
        frames=torch.randint(0, 256, (clips, frames, 3, side, side), dtype=torch.uint8),
        masks=masks,
        annotated=torch.ones(frames, total, dtype=torch.bool),
        clip_of_object=torch.arange(clips).repeat_interleave(objects),
        names=["plan"] * clips,
        frame_indices=[list(range(frames))] * clips,
        object_ids=list(range(total)),
        sizes=[(side, side)] * clips,
    ).to(module.device)


def _autocast(module: SAM2LightningModule) -> torch.autocast:
    precision = module.config.trainer.precision
    kind = torch.float16 if precision == "16-mixed" else torch.bfloat16
    return torch.autocast(module.device.type, kind, enabled=precision != "32-true")


def _median_seconds(run: Callable[[], object], device: torch.device) -> float:
    times = []
    for _ in range(REPEATS):
        _wait(device)
        begin = time.perf_counter()
        run()
        _wait(device)
        times.append(time.perf_counter() - begin)
    return statistics.median(times)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _time(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _attention(query: tuple, key: tuple, value: tuple, *args: object, **kwargs: object) -> int:
    """Floating-point operations of q kᵀ and of its product with v; shapes ``[B,H,N,C]``."""
    pairs = math.prod(query[:3]) * key[2]
    return 2 * pairs * (query[3] + value[3])


def _attention_backward(gradient: tuple, *shapes: tuple, **kwargs: object) -> int:
    return 5 * _attention(*shapes[:3]) // 2  # five products of that size for two


_CPU_ATTENTION = {  # which the counter does not know
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
