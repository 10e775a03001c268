"""Find modules that would get no gradient, and why, before the first training step.

The audit runs one batch forward and backward. It does not change weights, optimizer, random state
or data order: ``torch.autograd.grad`` does not write to ``.grad``, and the batch comes from a
separate DataLoader.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace
from itertools import islice

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from loguru import logger
from torch import Tensor

from sam2kit.config.loading import resolve_config_precision
from sam2kit.config.schema import Config
from sam2kit.data.clip import ClipBatch
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.loader import create_dataloader
from sam2kit.models.initial_weights import resolve_initial_weights
from sam2kit.models.outputs import TrackOutput
from sam2kit.models.sam2 import (
    LOOSE_GROUP,
    ModuleReport,
    SAM2Model,
    format_report,
    match_parameters,
    module_path,
    parameter_report,
)
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.losses import NO_OBJ_SCORE
from sam2kit.training.memory_profile import StepMemory, peak_bytes, step_memory
from sam2kit.training.module import SAM2LightningModule, step_generator
from sam2kit.utils.device import pick_device, release_memory
from sam2kit.utils.errors import ConfigError

MAX_BATCHES = 8
ENOUGH_BATCHES = 3
"""Number of batches to run if the first one leaves a module without gradient. Up to
:data:`MAX_BATCHES` are run if none has a supervised mask, or if a configured prompt type was not
sampled."""

READ_MEMORY = {"memory_attention", "obj_ptr_tpos_proj"}
WRITE_MEMORY = {"memory_encoder", "mask_downsample", "obj_ptr_proj"}


@dataclass(frozen=True)
class ModuleAudit(ModuleReport):
    """A row of :func:`sam2kit.models.sam2.parameter_report` with gradient statistics.

    Attributes:
        tensors: number of trainable tensors.
        zero_tensors: number of trainable tensors whose gradient is missing or exactly zero.
        gradient_norm: L2 norm over the trainable tensors, as root mean square over the batches.
    """

    tensors: int
    zero_tensors: int
    gradient_norm: float


@dataclass(frozen=True)
class Audit:
    """The result of a gradient audit.

    Attributes:
        rows: one row per module, then the total.
        batches: number of batches that were run.
        faults: one sentence per reason, naming the trainable modules that get no gradient.
        notes: findings that do not prevent training.
        memory: memory that a training step needs.
    """

    rows: list[ModuleAudit]
    batches: int
    memory: StepMemory
    faults: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def table(self) -> str:
        """Return a plain-text table with one line per module."""
        batches = "one batch" if self.batches == 1 else f"{self.batches} batches"
        columns = [("gradient norm", "zero tensors")]
        for row in self.rows:
            gradients = (f"{row.gradient_norm:.3e}", f"{row.zero_tensors} of {row.tensors}")
            columns.append(gradients if row.tensors else ("-", "-"))
        counts = format_report([*self.rows]).splitlines()
        lines = [
            f"{left} {norm:>14} {zero:>13}"
            for left, (norm, zero) in zip(counts, columns, strict=True)
        ]
        return "\n".join([f"gradients of {batches}", *lines])

    def report(self, stop: bool) -> None:
        """Log notes and faults as warnings.

        Args:
            stop: raise an error if there are faults.

        Raises:
            ConfigError: there are faults, and ``stop`` is true.
        """
        for note in self.notes:
            logger.warning("audit: {}", note)
        if self.memory.tight:
            logger.warning(
                "audit: a step may not fit into memory; reduce dataset.batch_size, "
                "dataset.video_clip_length or dataset.image_size"
            )
        if self.faults and stop:
            raise ConfigError(
                "the gradient audit found trainable modules without gradient:\n"
                + "\n".join(f"- {fault}" for fault in self.faults)
                + "\nTheir weights would not change",
                hint="change these settings, remove the modules from model.trainable_modules, or "
                "set trainer.audit=warn to train anyway",
            )
        for fault in self.faults:
            logger.warning("audit: {}", fault)


class AuditBeforeTraining(Callback):
    """Run the audit on the training device, after Lightning has loaded the checkpoint."""

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, SAM2LightningModule)
        clips = trainer.datamodule.train_clips  # type: ignore[attr-defined]
        audit = audit_gradients(module, clips)
        logger.info(audit.table())
        logger.info(audit.memory)
        audit.report(stop=module.config.trainer.audit == "stop")


def audit_config(config: Config) -> Audit:
    """Audit the training run that a configuration describes, as ``sam2kit audit`` does.

    Raises:
        ConfigError, DataError, CheckpointError: as :func:`sam2kit.training.trainer.fit`.
    """
    config = resolve_config_precision(config)
    data = SAM2LightningDataModule(config)
    config = resolve_initial_weights(data.config)
    module = SAM2LightningModule(config)
    device = pick_device(config.trainer.accelerator, config.trainer.devices)
    try:
        return audit_gradients(module.to(device), data.train_clips)
    finally:
        # Free the memory: a notebook kernel keeps running, and training may use other processes.
        module.to("cpu")
        release_memory(device)


def audit_gradients(module: SAM2LightningModule, clips: ClipDataset) -> Audit:
    """Audit a module on its device with the clips of the first training steps.

    Mixed precision is audited in bfloat16, whose range makes loss scaling unnecessary.

    Args:
        module: the module to audit; its weights and gradients do not change.
        clips: the training clips.
    """
    model, config = module.model, module.config
    trained = {n: p for n, p in model.named_parameters() if p.requires_grad}
    squares = dict.fromkeys(trained, 0.0)
    alive: set[str] = set()  # tensors with a nonzero gradient in at least one batch
    seen = _Seen()
    units = list(_units(model, config))
    was_training = module.training
    module.train()
    for batch in islice(_batches(clips, config), MAX_BATCHES):
        gradients = _gradients(module, batch, trained, seen)
        for name, gradient in gradients.items():
            squares[name] += float(gradient.float().square().sum())
            if gradient.any():
                alive.add(name)
        del gradients  # otherwise the next batch's measured memory would include them
        # One tensor with gradient is enough for a unit: some tensors get none by design, such as
        # half of LoRA's at the start.
        if all(unit.names & alive for unit in units):
            break
        if seen.batches >= ENOUGH_BATCHES and seen.answers and not seen.undrawn(config):
            break
    module.train(was_training)
    rows = _rows(model, squares, alive, max(seen.batches, 1))
    dead = [unit for unit in units if not unit.names & alive]
    # If no mask was supervised or a prompt type was not sampled, a missing gradient proves
    # nothing and must not stop training.
    certain = seen.answers and not seen.undrawn(config)
    faults = _explain((u for u in dead if certain and not u.excused), config, seen)
    notes = _explain((u for u in dead if not certain or u.excused), config, seen)
    trainer = config.trainer
    memory = step_memory(model, seen.peak, trainer.ema_decay is not None, trainer.devices)
    return Audit(rows, seen.batches, memory, faults, seen.notes(config) + notes)


def _batches(clips: ClipDataset, config: Config) -> Iterator[ClipBatch]:
    loader = create_dataloader(clips, replace(config.dataset, num_workers=0), True, config.seed)
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws its seed from the global generator
        yield from loader


def _gradients(
    module: SAM2LightningModule, batch: ClipBatch, trained: dict[str, Tensor], seen: _Seen
) -> dict[str, Tensor]:
    """Return gradients by parameter name for the parameters that the loss depends on."""
    device, mixed = module.device, module.config.trainer.precision != "32-true"
    gradients: dict[str, Tensor] = {}

    def run() -> None:
        on_device, step = batch.to(device), seen.batches
        output, terms = module.track_and_score(on_device, step)
        prompts = module.prompts(batch, step_generator(module.config.seed, step))
        seen.add(on_device, output, {prompt.kind for prompt in prompts})
        if terms["loss"].requires_grad:
            values = torch.autograd.grad(terms["loss"], list(trained.values()), allow_unused=True)
            gradients.update((n, g) for n, g in zip(trained, values, strict=True) if g is not None)

    with (
        torch.random.fork_rng(devices=[device] if device.type == "cuda" else []),
        torch.autocast(device.type, torch.bfloat16, enabled=mixed),
    ):
        seen.peak = max(seen.peak, peak_bytes(run, device))
    return gradients


def _rows(
    model: SAM2Model, squares: dict[str, float], alive: set[str], batches: int
) -> list[ModuleAudit]:
    rows = []
    for report in parameter_report(model):
        names = {n for n in squares if report.module in ("total", module_path(n)[0])}
        norm = (sum(squares[n] for n in names) / batches) ** 0.5
        counts = (report.parameters, report.trainable, len(names), len(names - alive))
        rows.append(ModuleAudit(report.module, *counts, norm))
    return rows


@dataclass
class _Seen:
    """Statistics of the audited batches; they decide whether a missing gradient is a fault."""

    batches: int = 0
    longest: int = 0  # frames of the longest clip
    supervised: int = 0  # object-frames that are tracked and annotated
    unprompted: int = 0  # supervised object-frames without a prompt
    withheld: int = 0  # supervised object-frames whose mask the model withheld
    shown: int = 0  # unprompted object-frames with a predicted mask
    kinds: set[str] = field(default_factory=set)  # sampled prompt types
    peak: int = 0  # peak bytes of the largest step

    def add(self, batch: ClipBatch, output: TrackOutput, kinds: set[str]) -> None:
        supervised = output.tracked & batch.annotated
        withheld = (output.mask_logits <= NO_OBJ_SCORE).flatten(2).all(-1)
        self.batches += 1
        self.longest = max(self.longest, batch.num_frames)
        self.supervised += int(supervised.sum())
        self.withheld += int((withheld & supervised).sum())
        unprompted = supervised & ~output.prompted
        self.unprompted += int(unprompted.sum())
        self.shown += int((unprompted & ~withheld).sum())
        self.kinds |= kinds

    @property
    def answers(self) -> bool:
        """Whether the loss contains masks that the model did not withhold."""
        return bool(self.shown if self.unprompted else self.supervised > self.withheld)

    def undrawn(self, config: Config) -> set[str]:
        """Return the prompt types that are configured but were not sampled."""
        types, shares = config.dataset.prompt_types, config.dataset.prompt_probabilities
        kinds = {kind for kind, p in zip(types, shares or [1] * len(types), strict=True) if p > 0}
        return kinds - self.kinds

    def notes(self, config: Config) -> list[str]:
        notes = []
        if not self.supervised:
            notes.append(
                f"gradients cannot be audited, because no object in {self.batches} batches is both "
                "tracked and annotated"
            )
        elif self.withheld:
            notes.append(
                "the model predicts that the object is absent in "
                f"{self.withheld} of {self.supervised} object-frames, whose masks then have no "
                "gradient; with random weights, set model.object_score_bias=3"
            )
        if self.supervised and (undrawn := self.undrawn(config)):
            kinds = " or ".join(sorted(undrawn))
            notes.append(f"no {kinds} prompt was sampled in {self.batches} batches")
        return notes


@dataclass(frozen=True)
class _Unit:
    """The tensors of a module, or of the part of it that ``model.trainable_modules`` names."""

    label: str
    module: str
    names: frozenset[str]
    excused: bool  # matched only by '*', and unused with the configured prompts

    def within(self, *parts: str) -> bool:
        """Return whether all tensors belong to the given parts of the mask decoder."""
        prefixes = tuple(f"sam_mask_decoder.{part}" for part in parts)
        return all(name.startswith(prefixes) for name in self.names)


def _units(model: SAM2Model, config: Config) -> Iterator[_Unit]:
    """Yield the units that the configuration selects for training.

    Parameters outside of any module are skipped, because some of them never get a gradient.
    """
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    labels = set()
    for key in ("trainable_modules", "lora_modules"):
        for entry in getattr(config.model, key):
            hits = trained & match_parameters(model, [entry], f"model.{key}")
            for module in dict.fromkeys(module_path(n)[0] for n in sorted(hits)):
                names = frozenset(n for n in hits if module_path(n)[0] == module)
                part = entry.startswith(f"{module}.") or entry == module
                label = entry if part else module
                if module != LOOSE_GROUP and label not in labels:
                    labels.add(label)
                    masks = "mask" in config.dataset.prompt_types
                    excused = entry == "*" and module == "mask_downsample" and not masks
                    yield _Unit(label, module, names, excused)


def _explain(units: Iterable[_Unit], config: Config, seen: _Seen) -> list[str]:
    """Return one sentence per reason, listing the units that it applies to."""
    labels: dict[str, list[str]] = {}
    for unit in units:
        labels.setdefault(_reason(unit, config, seen), []).append(unit.label)
    return [
        f"{', '.join(names)} {'gets' if len(names) == 1 else 'get'} no gradient: {reason}"
        for reason, names in labels.items()
    ]


def _reason(unit: _Unit, config: Config, seen: _Seen) -> str:
    """Return the reason why a unit gets no gradient, and the fix.

    Reasons are checked in order, because an earlier one makes the later ones irrelevant.
    """
    kinds = " and ".join(sorted(seen.kinds))
    if not seen.supervised:
        return "no object in the audited batches is both tracked and annotated"
    if not seen.answers:
        return "the model predicts that every object is absent, so its masks have no gradient"
    if unit.module in READ_MEMORY | WRITE_MEMORY:
        if seen.longest == 1:
            return (
                "clips of one frame do not use the memory; set dataset.video_clip_length to at "
                "least 2"
            )
        if not seen.unprompted:
            return (
                "every tracked frame is prompted, and prompted frames do not read the memory; "
                "increase dataset.video_clip_length or reduce dataset.max_conditioning_frames"
            )
    if unit.module in WRITE_MEMORY and config.model.detach_memory_every == 1:
        return (
            "model.detach_memory_every=1 stops gradients between frames, so modules that write "
            "memories get none from the frames that read them; set it to null, or to at least 2"
        )
    if unit.module == "mask_downsample" and "mask" not in seen.kinds:
        return (
            f"only mask prompts use it, but all prompts are of type {kinds}; add mask to "
            "dataset.prompt_types"
        )
    if not seen.unprompted and seen.kinds == {"mask"}:
        return (
            "the output on a mask-prompted frame is the prompt itself, and no other frame is "
            "tracked; set dataset.video_clip_length to at least 2, or choose other "
            "dataset.prompt_types"
        )
    if unit.within("iou_prediction_head") and config.loss.iou_head == 0:
        return "loss.iou_head is 0, and no other term uses the predicted IoU"
    if unit.within("pred_obj_score_head", "obj_score_token") and config.loss.object_score == 0:
        return "loss.object_score is 0, and no other term uses the object score"
    if unit.within(*(f"output_hypernetworks_mlps.{i}" for i in (1, 2, 3))):
        return "it predicts candidate masks, but with these prompts only a single mask is scored"
    return (
        f"the loss does not depend on it with {kinds} prompts on clips of {seen.longest} "
        "frames; see the table of gradient paths in docs/audit.md"
    )
