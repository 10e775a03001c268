"""The gradient audit: its table, the faults that stop a run, and that it changes nothing."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from loguru import logger

from sam2kit.cli.main import main
from sam2kit.config.schema import Config
from sam2kit.config.validation import check
from sam2kit.data import clip_dataset as clips_module
from sam2kit.training.gradient_audit import Audit, audit_config
from sam2kit.training.memory_profile import StepMemory, peak_bytes, step_memory
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.fixture
def config(tiny_config, tmp_path) -> Config:
    tiny_config.dataset.type = "synthetic"
    tiny_config.dataset.synthetic_videos = 4
    tiny_config.dataset.batch_size = 2
    tiny_config.dataset.video_clip_length = 3
    tiny_config.dataset.image_size = 32
    tiny_config.valdataset.synthetic_videos = 2
    tiny_config.trainer.accelerator = "cpu"
    tiny_config.trainer.max_epochs = 1
    tiny_config.output_dir = str(tmp_path / "outputs")
    return tiny_config


def rows(audit):
    return {row.module: row for row in audit.rows}


def test_the_table(config):
    audit = audit_config(config)
    assert audit.batches == 1 and not audit.faults and not audit.notes
    table = rows(audit)
    for module in ("memory_attention", "memory_encoder"):
        row = table[module]
        assert row.percentage == 100 and row.gradient_norm > 0 and row.zero_tensors == 0
    frozen = table["sam_mask_decoder"]
    assert frozen.trainable == frozen.tensors == 0 and frozen.parameters > 0
    # Visible objects use the temporal encodings only; loose tensors are no faults.
    assert (table["memory_embeddings"].zero_tensors, table["memory_embeddings"].tensors) == (4, 5)
    total = table["total"]
    assert total.trainable == sum(r.trainable for m, r in table.items() if m != "total")
    squares = [r.gradient_norm**2 for m, r in table.items() if m != "total"]
    assert total.gradient_norm == pytest.approx(sum(squares) ** 0.5)
    text = audit.table()
    assert len(text.splitlines()) == len(audit.rows) + 2 and "4 of 5" in text


def test_norms_equal_those_of_the_first_step(config):
    """The same clips, prompts and weights as in training."""
    seen = {}

    class Spy(torch.optim.AdamW):
        def step(self, closure=None):
            result = super().step(closure)
            gradients = [p.grad for g in self.param_groups for p in g["params"]]
            norm = torch.stack([g.norm() for g in gradients if g is not None]).norm()
            seen.setdefault("norm", float(norm))
            return result

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("sam2kit.training.optim.AdamW", Spy)
        config.trainer.gradient_clip_val = None
        fit(config)
    assert rows(audit_config(config))["total"].gradient_norm == pytest.approx(seen["norm"], 1e-4)


@pytest.mark.parametrize(
    ("changes", "named", "reason"),
    [
        (
            {"dataset.video_clip_length": 1, "dataset.prompt_types": ["box"]},
            ["memory_attention", "memory_encoder"],
            "clips of one frame do not use the memory",
        ),
        (
            {"dataset.video_clip_length": 1, "model.trainable_modules": ["sam_mask_decoder"]},
            ["sam_mask_decoder"],
            "the output on a mask-prompted frame is the prompt itself",
        ),
        (
            {"model.trainable_modules": ["sam_mask_decoder.iou_prediction_head"]},
            ["sam_mask_decoder.iou_prediction_head"],
            "loss.iou_head is 0",
        ),
        (
            {"model.trainable_modules": ["memory_encoder", "sam_mask_decoder.pred_obj_score_head"]},
            ["sam_mask_decoder.pred_obj_score_head"],
            "loss.object_score is 0",
        ),
        (
            {"model.trainable_modules": ["*"], "model.detach_memory_every": 1},
            ["mask_downsample", "memory_encoder", "obj_ptr_proj"],
            "model.detach_memory_every=1 stops gradients",
        ),
        (
            {
                "model.trainable_modules": ["mask_downsample", "memory_attention"],
                "dataset.prompt_types": ["point"],
            },
            ["mask_downsample"],
            "only mask prompts use it",
        ),
        (
            {
                "dataset.video_clip_length": 1,
                "dataset.prompt_types": ["box"],
                "model.trainable_modules": ["sam_mask_decoder"],
                "model.lora_modules": ["memory_attention"],
            },
            ["memory_attention"],
            "clips of one frame do not use the memory",
        ),
    ],
)
def test_module_without_gradient_stops_the_run(config, changes, named, reason):
    for key, value in changes.items():
        section, name = key.split(".")
        setattr(getattr(config, section), name, value)
    with pytest.raises(ConfigError, match=f"(?s)no gradient: {reason}.*trainer.audit=warn") as stop:
        fit(config)
    blamed = str(stop.value).splitlines()[1].partition(" get")[0].removeprefix("- ").split(", ")
    assert blamed == named


def test_detaching_every_second_memory_is_sufficient(config):
    config.model.detach_memory_every = 2
    config.model.trainable_modules = ["*"]
    assert not audit_config(config).faults


def test_audit_stops_before_the_first_step_unless_configured(config):
    config.dataset.video_clip_length = 1
    config.dataset.prompt_types = ["box"]
    config.model.trainable_modules = ["*"]
    with pytest.raises(ConfigError, match="memory_encoder"):
        fit(config)
    (log,) = Path(config.output_dir).glob("*/*/train.log")
    assert "gradient norm" in log.read_text() and "step 1" not in log.read_text()
    config.trainer.audit = "warn"
    run = fit(config)
    text = (run.run_dir / "train.log").read_text()
    assert "WARNING" in text and "do not use the memory" in text and "step 2/2" in text
    config.trainer.audit = "off"
    text = (fit(config).run_dir / "train.log").read_text()
    assert "gradient norm" not in text and "parameters" in text and "step 2/2" in text


def test_audit_does_not_change_the_training(config):
    """Weights, optimizer, data and random state, with dropout."""
    config.model.lora_modules, config.model.lora_dropout = ["memory_attention"], 0.5
    config.trainer.max_epochs = 2
    with_audit = fit(config)
    config.trainer.audit = "off"
    without = fit(config)
    assert with_audit.metrics == without.metrics
    first, second = (
        torch.load(r.last_checkpoint, weights_only=True) for r in (with_audit, without)
    )
    assert all(torch.equal(v, second["state_dict"][k]) for k, v in first["state_dict"].items())
    states = [c["optimizer_states"][0]["state"] for c in (first, second)]
    assert all(torch.equal(v["exp_avg"], states[1][k]["exp_avg"]) for k, v in states[0].items())


def test_audit_does_not_change_random_state_or_gradients(config):
    from sam2kit.training.datamodule import SAM2LightningDataModule
    from sam2kit.training.gradient_audit import audit_gradients
    from sam2kit.training.module import SAM2LightningModule

    module = SAM2LightningModule(config).eval()
    before = torch.get_rng_state()
    audit_gradients(module, SAM2LightningDataModule(config).train_clips)
    assert torch.equal(before, torch.get_rng_state())
    assert all(p.grad is None for p in module.parameters())
    assert not module.training and not module.model.training


def test_unused_module_that_only_a_wildcard_matches_is_a_note(config):
    config.model.trainable_modules = ["*"]
    config.dataset.prompt_types = ["point"]
    audit = audit_config(config)
    assert not audit.faults
    assert [n for n in audit.notes if n.startswith("mask_downsample gets no gradient: only mask")]


def test_prompts_that_were_not_drawn_are_a_note(config):
    config.model.trainable_modules = ["mask_downsample"]
    config.dataset.prompt_types = ["box", "mask"]
    config.dataset.prompt_probabilities = [1 - 1e-9, 1e-9]
    audit = audit_config(config)
    assert audit.batches == 2 and not audit.faults  # the epoch has two batches
    assert "no mask prompt was sampled in 2 batches" in audit.notes


def test_batches_without_supervision_are_a_note(config, monkeypatch):
    read = clips_module.ClipDataset.__getitem__

    def unannotated(self, index):
        clip = read(self, index)
        clip.annotated[1:] = False
        return clip.select_objects([])

    monkeypatch.setattr(clips_module.ClipDataset, "__getitem__", unannotated)
    audit = audit_config(config)
    assert audit.batches == 2 and not audit.faults
    assert "no object in 2 batches" in audit.notes[0]


def test_withheld_masks_of_random_weights_are_a_note(config):
    config.model.object_score_bias = -3.0
    audit = audit_config(config)
    assert not audit.faults
    note, reason = audit.notes
    assert "the object is absent in" in note and "set model.object_score_bias=3" in note
    assert reason.startswith("memory_attention, memory_encoder get no gradient: the model predicts")


def test_lora_starts_with_half_its_tensors_at_zero(config):
    config.model.lora_modules = ["memory_attention"]
    config.model.trainable_modules = ["memory_encoder"]
    audit = audit_config(config)
    row = rows(audit)["memory_attention"]
    assert not audit.faults and row.zero_tensors == row.tensors / 2


def test_the_command(capsys):
    argv = ["audit", "--config", "configs/quickstart.yaml", f"--data-path={ROOT / 'data_samples'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(ROOT)
        assert main([*argv, "dataset.image_size=64"]) == 0
        out = capsys.readouterr().out
        assert "gradient norm" in out and "memory_encoder" in out
        assert main([*argv, "dataset.image_size=64", "dataset.video_clip_length=1"]) == 2
        captured = capsys.readouterr()
        assert "gradient norm" in captured.out
        assert captured.err.count("error: the gradient audit") == 1


def test_invalid_value(config):
    config.trainer.audit = "loud"
    with pytest.raises(ConfigError) as error:
        check(config)
    assert (error.value.key, error.value.value) == ("trainer.audit", "loud")


class TestMemory:
    def test_the_parts_are_counted(self, config):
        memory = audit_config(config).memory
        model = SAM2LightningModule(config).model
        trained = sum(p.numel() for p in model.parameters() if p.requires_grad)
        assert memory.weights == 4 * sum(t.numel() for t in [*model.parameters(), *model.buffers()])
        assert memory.optimizer == 8 * trained
        assert memory.total == memory.weights + memory.optimizer + memory.step
        assert memory.available > 1e9 and not memory.tight

    def test_peak_of_a_step_is_measured(self):
        """y = (w x)^2 holds at least w x and the gradients of w x and of w at its peak."""
        model = torch.nn.Linear(300, 500, bias=False)
        x = torch.ones(700, 300)

        def step():
            return torch.autograd.grad(model(x).square().sum(), [model.weight])

        step()
        product, weight = 700 * 500, 300 * 500
        memory = step_memory(model, peak_bytes(step), averaged=True)
        assert 4 * (2 * product + weight) <= memory.step < 4 * (4 * product + weight)
        assert memory.weights == 4 * weight and memory.optimizer == 4 * (2 * weight + weight)

    def test_it_grows_with_the_clip(self, config):
        short = audit_config(config).memory
        config.dataset.video_clip_length *= 2
        longer = audit_config(config).memory
        assert 1.6 < longer.step / short.step < 3.0 and longer.weights == short.weights

    def test_tight_memory_is_warned_about(self):
        memory = StepMemory(weights=500, optimizer=300, step=150, device="cuda:0", available=1000)
        assert memory.tight and "cuda:0" in str(memory)
        lines = []
        sink = logger.add(lines.append, format="{message}")
        Audit([], 1, memory).report(stop=True)
        logger.remove(sink)
        assert "dataset.batch_size" in "".join(lines)
