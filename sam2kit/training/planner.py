"""Estimate memory and time of a training run before it starts, and propose settings that fit.

The planner runs a few small steps and extrapolates the cost of the configured step. The cost, in
bytes and in floating-point operations, is a linear function of five numbers: 1, frames, objects,
object-frames, and pairs of an object-frame and a memory that it reads. A few steps with few frames
and one or two objects determine its five coefficients. The time is the number of operations times
the seconds per operation in the largest of these steps.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
from loguru import logger
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from sam2kit.config.loading import override_config, resolve_config_precision
from sam2kit.config.schema import Config
from sam2kit.config.validation import check
from sam2kit.data.build import build_datasets
from sam2kit.data.clip import ClipBatch
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.transforms import normalize
from sam2kit.models.feature_cache import FeatureCache, create_cache, obstacle
from sam2kit.models.initial_weights import resolve_size
from sam2kit.models.sam2 import SAM2Model
from sam2kit.training.memory_profile import (
    StepMemory,
    gradient_bytes,
    is_out_of_memory,
    peak_bytes,
    step_memory,
)
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.optim import build_optimizer
from sam2kit.utils.device import autocast, pick_device, release_memory
from sam2kit.utils.sampling import evenly_spaced

CLIPS_LOOKED_AT = 20  # number of clips in which objects are counted
SMALL_FRAMES, SMALL_OBJECTS = (2, 3, 4), 2
"""Number of frames in the small steps, and maximum number of objects per clip in them."""
REPEATS = 3  # number of timings, and of random prompt samples


@dataclass(frozen=True)
class TrainingPlan:
    """Estimated memory and time of a training run.

    Attributes:
        config: the configuration, with ``auto`` values resolved.
        device: the training device, such as ``cpu`` or ``cuda:0``.
        objects: maximum number of objects per clip; the basis of the memory estimate.
        mean_objects: mean number of objects per clip; the basis of the time estimate.
        cached: whether the image encoder's features come from the cache.
        memory: peak memory of a step with the largest clips.
        seconds: time per step, including the optimizer but not data loading and validation.
        filling: additional seconds per step while the frames are not in the cache yet.
        steps: number of optimizer steps of the whole run.
        epoch: number of clips per epoch, as text.
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
    epoch: str = ""

    def __str__(self) -> str:
        d = self.config.dataset
        first = f", {self.seconds + self.filling:.3g} s while the feature cache is filled"
        lines = [
            f"step: {d.batch_size} x {d.video_clip_length} frames of {d.image_size} px, up to "
            f"{self.objects} objects per clip (mean {self.mean_objects:.1f}), "
            f"{self.config.trainer.precision}, encoder "
            f"{'features from the cache' if self.cached else 'run in every step'}",
            str(self.memory),
            "time per step: unknown, because even small steps do not fit into memory"
            if math.isnan(self.seconds)
            else f"time per step: about {self.seconds:.3g} s on {self.device}"
            + (first if self.filling else ""),
            *([f"an epoch: {self.epoch}"] if self.epoch else []),
            f"training: {self.steps:,} steps"
            + f", about {_time(self.steps * self.seconds)} without data loading and validation"
            * (not math.isnan(self.seconds)),
        ]
        return "\n".join(lines)


def plan_training(config: Config) -> TrainingPlan:
    """Estimate memory and time of a training run on the device that it would use.

    Nothing is trained. No checkpoint is read, because random weights cost the same. If prompts or
    corrections are random, memory is the largest of a few samples.

    Args:
        config: the configuration of the run.

    Raises:
        ConfigError, DataError: as :func:`sam2kit.training.trainer.fit`.
    """
    check(config)
    config = resolve_size(resolve_config_precision(config))
    clips, _ = build_datasets(config)
    # Evenly spaced, because the generated clips of dataset.replay are the last ones.
    counts = [len(clips[i].object_ids) for i in evenly_spaced(len(clips), CLIPS_LOOKED_AT)]
    return _plan(config, clips, max(counts), statistics.fmean(counts))


def propose(plan: TrainingPlan) -> tuple[list[str], TrainingPlan] | None:
    """Find configuration overrides with which a step fits into memory.

    Overrides that do not change the clips are tried first, then smaller steps.

    Returns:
        the overrides and the plan with them; the overrides are empty if the step already fits. None
        if no combination fits.
    """
    if not plan.memory.tight:
        return [], plan
    clips, _ = build_datasets(plan.config)
    changes: dict[str, str] = {}
    for key, value in _reductions(plan):
        changes[key] = value
        overrides = [f"{k}={v}" for k, v in changes.items()]
        config = override_config(plan.config, overrides)
        objects = min(plan.objects, config.dataset.max_objects or plan.objects)
        better = _plan(config, clips, objects, min(plan.mean_objects, objects))
        if not better.memory.tight:
            return overrides, better
    return None


def report(config: Config) -> tuple[str, bool]:
    """Return the plan as text, with overrides if a step does not fit, and whether a step fits."""
    plan = plan_training(config)
    proposal = propose(plan)
    if proposal is None:
        return (
            f"{plan}\nA step does not fit into memory, and no smaller settings were found that "
            "fit. Reduce dataset.image_size, or choose a smaller model.size.",
            False,
        )
    overrides, better = proposal
    if not overrides:
        return str(plan), True
    return (
        f"{plan}\nA step does not fit into memory. It fits with: {' '.join(overrides)}\n{better}",
        False,
    )


def _reductions(plan: TrainingPlan) -> Iterator[tuple[str, str]]:
    """Yield keys and values that reduce memory, in the order in which to try them."""
    # First settings that leave the clips unchanged, then smaller steps, halved each time.
    model, d = plan.config.model, plan.config.dataset
    if model.memory_dropout != 0:
        yield "model.memory_dropout", "0"
    if not model.activation_checkpointing:
        yield "model.activation_checkpointing", "true"
    if plan.device != "cpu" and plan.config.trainer.precision == "32-true":
        yield "trainer.precision", "bf16-mixed"
    objects = plan.objects * d.batch_size
    for key, value, minimum in (
        ("model.objects_together", min(model.objects_together or objects, objects), 1),
        ("dataset.batch_size", d.batch_size, 1),
        ("dataset.max_objects", plan.objects, 1),
        ("dataset.video_clip_length", d.video_clip_length, 2),
    ):
        while value > minimum:
            value = max(value // 2, minimum)
            yield key, str(value)


@torch.random.fork_rng(devices=[])
def _plan(config: Config, clips: ClipDataset, objects: int, mean_objects: float) -> TrainingPlan:
    """Plan a run with up to ``objects`` objects per clip, ``mean_objects`` on average."""
    overrides = ["model.checkpoint=null", "model.compile=false"]
    # With random weights, objects may be predicted to be absent. Their masks would have no
    # gradient, and the measured cost would be too low.
    if config.model.object_score_bias == 0:
        overrides.append("model.object_score_bias=5")
    module = SAM2LightningModule(override_config(config, overrides))
    device = pick_device(config.trainer.accelerator, config.trainer.devices)
    module.to(device).train()
    frozen = module.model.encoder_is_frozen
    cached = create_cache(config) is not None and not obstacle(config, module.model, clips.source)
    # Measure a frozen encoder separately; the small steps only run the rest of the model.
    if frozen:
        module.train_cache = _OneFrame(config.features.dtype == "bfloat16" and cached)
    d = config.dataset
    try:
        step, seconds, filling = _cost(module, objects, mean_objects, frozen, cached)
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        # The configured step does not fit either, so return a plan that says so.
        logger.warning(
            "Not enough memory for the planner's small steps: {}", str(error).partition("\n")[0]
        )
        step, seconds, filling = math.inf, math.nan, 0.0
        module.zero_grad(set_to_none=True)
        release_memory(device)
    trainer = config.trainer
    memory = step_memory(module.model, 0, trainer.ema_decay is not None, trainer.devices)
    memory = replace(memory, step=int(min(step, memory.available)))
    batches = math.ceil(len(clips) / d.batch_size)
    batches = min(batches, trainer.limit_train_batches or batches)
    steps = math.ceil(batches / trainer.accumulate_grad_batches) * max(trainer.max_epochs, 1)
    if trainer.max_steps > 0:
        steps = min(steps, trainer.max_steps) if trainer.max_epochs > 0 else trainer.max_steps
    return TrainingPlan(
        config,
        str(device),
        objects,
        mean_objects,
        cached,
        memory,
        seconds,
        filling,
        steps,
        clips.epoch_text(),
    )


def _cost(
    module: SAM2LightningModule, objects: int, mean_objects: float, frozen: bool, cached: bool
) -> tuple[float, float, float]:
    """Return the bytes, the seconds and the cache-filling seconds of a step.

    Args:
        module: the module on the training device.
        objects: maximum number of objects per clip.
        mean_objects: mean number of objects per clip.
        frozen: whether the encoder is frozen.
        cached: whether the encoder's features come from the cache.
    """
    gradients, d = gradient_bytes(module.model), module.config.dataset
    # The cost is proportional to the number of clips, so two clips are enough.
    length, clips_at_once = d.video_clip_length, min(d.batch_size, 2)
    small = _SmallSteps(module, clips_at_once, gradients)
    for frames, count in _small_steps(module, objects):
        logger.info("Running a step of {} frames and {} objects", frames, count)
        small.run(frames, count)
    factor = d.batch_size / clips_at_once
    step = small.bytes(length, objects) * factor + gradients
    seconds = small.seconds(length, mean_objects) * factor + small.optimizer_seconds()
    filling = 0.0
    if frozen:
        peak, frame_seconds = _encoder(module, d.batch_size * length)
        if cached:
            filling = frame_seconds * d.batch_size * length
        else:
            # Take the maximum: the encoder's activations are freed before the rest of the step.
            step, seconds = max(step, peak), seconds + frame_seconds * d.batch_size * length
    return step, seconds, filling


def _small_steps(module: SAM2LightningModule, objects: int) -> list[tuple[int, int]]:
    """Return the (frames, objects) of each small step, the largest step last.

    With activation checkpointing, the peak may occur within a frame or in the loss, so memory is
    not linear in the five numbers. Such a step needs little memory, so the configured step itself
    is run.
    """
    length, max_objects = module.config.dataset.video_clip_length, min(objects, SMALL_OBJECTS)
    if module.config.model.activation_checkpointing:
        return [(length, objects)]
    few, some, many = SMALL_FRAMES
    if length <= many:
        return [
            (length, count)
            for count in range(1 if objects > max_objects else max_objects, max_objects + 1)
        ]
    single = [(few, 1), (some, 1), (many, 1)]
    return single if max_objects == 1 else [*single, (few, max_objects), (many, max_objects)]


class _SmallSteps:
    """Measure small steps and extrapolate the cost of larger ones.

    Args:
        module: the module on the training device.
        clips: number of clips in each step.
        gradients: bytes of the parameters' gradients, which do not depend on the step size.
    """

    def __init__(self, module: SAM2LightningModule, clips: int, gradients: int) -> None:
        self.module, self.clips, self.gradients = module, clips, gradients
        # Maximum number of memories that a frame reads.
        self.max_memories = module.model.num_maskmem
        d = module.config.dataset
        random = len(d.prompt_types) > 1 or d.max_conditioning_frames > 1 or d.correction_clicks
        self.draws = range(REPEATS if random else 1)
        self._sizes: list[tuple[int, int]] = []
        self._bytes: list[float] = []
        self._operations: list[float] = []

    def run(self, frames: int, objects: int) -> None:
        """Measure bytes and operations of a step; :meth:`seconds` times the last one."""
        self._batch = _clips(self.clips, frames, objects, self.module)
        peaks, operations = [], []
        for draw in self.draws:
            self._step(draw)  # warm up: only the first step allocates some buffers
            peaks.append(peak_bytes(partial(self._step, draw), self.module.device))
            with FlopCounterMode(display=False, custom_mapping=_CPU_ATTENTION) as counter:
                self._step(draw)
            operations.append(counter.get_total_flops())
        self._sizes.append((frames, objects))
        self._bytes.append(max(max(peaks) - self.gradients, 0))
        self._operations.append(statistics.fmean(operations))

    def bytes(self, frames: int, objects: float) -> float:
        """Estimate the peak bytes of a step, without the parameters' gradients."""
        return self._extrapolate(self._bytes, frames, objects)

    def seconds(self, frames: int, objects: float) -> float:
        """Estimate the time per step from its operations and the speed of the last small step."""
        last_seconds = statistics.fmean(
            _median_seconds(partial(self._step, draw), self.module.device) for draw in self.draws
        )
        operations = self._extrapolate(self._operations, frames, objects)
        return last_seconds * operations / max(self._operations[-1], 1)

    def optimizer_seconds(self) -> float:
        """Measure the time of an optimizer step."""
        module = self.module
        optimizer = build_optimizer(module.model, module.config.optimizer)
        for parameter in module.model.parameters():
            if parameter.requires_grad:
                parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # warm up: the first step allocates the optimizer's state
        return _median_seconds(optimizer.step, module.device)

    def _step(self, draw: int) -> None:
        with autocast(self.module.device, self.module.config.trainer.precision):
            _, terms = self.module.track_and_score(self._batch, draw)
        if terms["loss"].requires_grad:
            terms["loss"].backward()
        self.module.zero_grad(set_to_none=True)

    def _terms(self, frames: int, objects: float) -> list[float]:
        # Frame t reads all earlier memories, up to the maximum.
        pairs = sum(min(t, self.max_memories) for t in range(frames))
        return [1, frames, objects, objects * frames, objects * pairs]

    def _extrapolate(self, values: list[float], frames: int, objects: float) -> float:
        rows = np.array([self._terms(*size) for size in self._sizes])
        # With fewer steps than terms, lstsq returns the minimum-norm solution. It is still exact in
        # the number of objects, because all these steps have the configured number of frames.
        coefficients, *_ = np.linalg.lstsq(rows, np.array(values), rcond=None)
        return max(float(np.dot(self._terms(frames, objects), coefficients)), 0.0)


class _OneFrame(FeatureCache):
    """Feature cache that returns the same features for every frame."""

    def __init__(self, rounded: bool) -> None:
        super().__init__("", rounded=rounded)
        self._levels: list[Tensor] = []

    def encode(self, model: SAM2Model, images: Tensor, keys: object = None) -> dict:
        if not self._levels:
            levels = _forward(model, images[:1])
            self._levels = [x.bfloat16() if self.rounded else x for x in levels]
        return self._combine(model, images, [self._levels] * len(images))


@torch.no_grad()
def _forward(model: SAM2Model, images: Tensor) -> list[Tensor]:
    return model.forward_image(normalize(images))["backbone_fpn"]


def _encoder(module: SAM2LightningModule, images: int) -> tuple[float, float]:
    """Return the peak bytes of encoding ``images`` frames at once, and the seconds per frame."""

    def run(count: int) -> None:
        with autocast(module.device, module.config.trainer.precision):
            _forward(module.model, frames[:count])

    frames = _clips(1, 2, 1, module).frames[0]
    run(1)
    one, two = (peak_bytes(partial(run, count), module.device) for count in (1, 2))
    return one + (two - one) * (images - 1), _median_seconds(partial(run, 2), module.device) / 2


def _clips(clips: int, frames: int, objects: int, module: SAM2LightningModule) -> ClipBatch:
    """Create clips of random frames in which every object is a square that is always visible."""
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
    """Return the floating-point operations of softmax(q kᵀ) v for shapes ``[B,H,N,C]``."""
    pairs = math.prod(query[:3]) * key[2]
    return 2 * pairs * (query[3] + value[3])


def _attention_backward(gradient: tuple, *shapes: tuple, **kwargs: object) -> int:
    return 5 * _attention(*shapes[:3]) // 2  # five matrix products instead of two


# torch's FLOP counter does not support the CPU kernels of flash attention.
_CPU_ATTENTION = {
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: _attention,
    torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
}
