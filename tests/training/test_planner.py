"""The plan estimates memory and time per step from smaller steps, and proposes settings."""

from __future__ import annotations

import json
from types import SimpleNamespace

import pytest
import torch
from conftest import moving_clip

from sam2kit.cli.main import main
from sam2kit.config.loading import override_config
from sam2kit.data.clip import collate
from sam2kit.training import planner as planning
from sam2kit.training.memory_profile import StepMemory, peak_bytes
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.planner import TrainingPlan, plan_training, propose


class Clips(list):
    """Clips of which only the number of objects is read."""

    source = None

    def epoch_text(self):
        return f"{len(self)} clips, 1 of them generated"


class Source:
    def index_in_epoch(self, index, epoch):
        return index

    def __len__(self):
        return 2


@pytest.fixture
def clips(monkeypatch):
    def show(*counts):
        dataset = Clips(SimpleNamespace(object_ids=list(range(n))) for n in counts)
        dataset.source = Source()
        monkeypatch.setattr(planning, "build_datasets", lambda config: (dataset, dataset))

    return show


def measured(config, frames, objects) -> int:
    """Measure the bytes of a step on real clips; features are read from a cache as in the plan."""
    module = SAM2LightningModule(config).train()
    if module.model.encoder_is_frozen:
        module.train_cache = planning._OneFrame(False)
    clips = [
        moving_clip(objects, frames, config.dataset.image_size, seed)
        for seed in range(config.dataset.batch_size)
    ]
    batch = collate(clips)

    def step():
        _, terms = module.track_and_score(batch, 0)
        terms["loss"].backward()
        module.zero_grad(set_to_none=True)

    step()
    return peak_bytes(step)


@pytest.mark.parametrize(
    ("frames", "objects", "overrides"),
    [
        pytest.param(9, 3, [], marks=pytest.mark.slow),
        pytest.param(*(10, 2, ["model.activation_checkpointing=true"]), marks=pytest.mark.slow),
        pytest.param(*(14, 3, ["model.activation_checkpointing=true"]), marks=pytest.mark.slow),
        pytest.param(
            *(6, 4, ["model.activation_checkpointing=true", "model.objects_together=1"]),
            marks=pytest.mark.slow,
        ),
        pytest.param(8, 3, ["model.memory_dropout=0.1"], marks=pytest.mark.slow),
        pytest.param(6, 2, ['model.trainable_modules=["*"]'], marks=pytest.mark.slow),
        pytest.param(6, 2, ["dataset.batch_size=3"], marks=pytest.mark.slow),
        (3, 4, []),
        (1, 1, ['model.trainable_modules=["*"]', "dataset.prompt_types=[box]"]),
    ],
    ids=str,
)
def test_memory_equals_the_measured_step(tiny_config, clips, frames, objects, overrides):
    config = override_config(tiny_config, [f"dataset.video_clip_length={frames}", *overrides])
    clips(objects, 1)
    plan = plan_training(config)
    assert plan.memory.step == pytest.approx(measured(config, frames, objects), rel=0.2)
    assert plan.objects == objects and plan.mean_objects == (objects + 1) / 2


@pytest.mark.slow
def test_memory_follows_the_size_of_a_step(tiny_config, clips, monkeypatch):
    clips(1)
    config = override_config(tiny_config, ["dataset.video_clip_length=6", "features.cache=off"])
    once = plan_training(config)
    assert not once.cached and once.filling == 0 and once.device == "cpu"
    cached = plan_training(override_config(config, ["features.cache=auto"]))
    assert cached.cached and cached.filling > 0
    assert "features from the cache" in str(cached) and "cache is filled" in str(cached)
    longer = plan_training(override_config(config, ["dataset.video_clip_length=12"]))
    assert longer.memory.step > 1.8 * once.memory.step
    assert longer.memory.weights == once.memory.weights
    monkeypatch.setattr(planning, "_cost", lambda *_: (0.0, 1.0, 0.0))  # measures no step
    averaged = plan_training(override_config(config, ["trainer.ema_decay=0.9"]))
    assert averaged.memory.optimizer > once.memory.optimizer


def test_number_of_steps(tiny_config, clips, monkeypatch):
    clips(1, 1, 1)
    monkeypatch.setattr(planning, "_cost", lambda *_: (0.0, 1.0, 0.0))  # measures no step
    assert plan_training(override_config(tiny_config, ["trainer.max_epochs=4"])).steps == 12
    assert (
        plan_training(
            override_config(tiny_config, ["trainer.max_epochs=4", "trainer.max_steps=5"])
        ).steps
        == 5
    )
    half = ["trainer.max_epochs=4", "dataset.batch_size=2"]
    plan = plan_training(override_config(tiny_config, half))
    assert plan.steps == 8 and "an epoch: 3 clips, 1 of them generated" in str(plan)


def test_out_of_memory_while_measuring_is_an_answer(tiny_config, clips, monkeypatch):
    """The plan says that the step does not fit, and goes through the settings that might."""
    run, calls = planning._SmallSteps.run, []

    def run_or_fail(self, frames, objects):
        calls.append(self.module.config.model.activation_checkpointing)
        if not calls[-1]:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate")
        run(self, frames, objects)

    clips(1, 1, 1)
    monkeypatch.setattr(planning._SmallSteps, "run", run_or_fail)
    plan = plan_training(tiny_config)
    assert plan.memory.tight and "time per step: unknown" in str(plan)
    proposal = propose(plan)
    assert proposal is not None and "model.activation_checkpointing=true" in proposal[0]
    assert not proposal[1].memory.tight and calls[-1]
    monkeypatch.setattr(planning._SmallSteps, "run", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        plan_training(tiny_config)


def test_random_state_is_not_changed(tiny_config, clips):
    clips(1)
    before = torch.get_rng_state()
    plan_training(tiny_config)
    assert torch.equal(before, torch.get_rng_state())


@pytest.fixture
def arithmetic(monkeypatch):
    """Replace plans: about 1 byte per object-frame, 4 with dropout, on a device of given size."""

    def on(available):
        def planned(config, clips, objects, mean_objects):
            d, m = config.dataset, config.model
            share = (4 if m.memory_dropout else 1) * (0.5 if m.activation_checkpointing else 1)
            share *= 0.9 if m.objects_together == 1 else 1
            step = round(share * d.batch_size * d.video_clip_length * objects)
            memory = StepMemory(0, 0, step, "the machine", available)
            return TrainingPlan(config, "cpu", objects, mean_objects, True, memory, 1.0, 0.0, 10)

        monkeypatch.setattr(planning, "_plan", planned)

    return on


EXACT = ["model.memory_dropout=0", "model.activation_checkpointing=true"]
CHUNKS = "model.objects_together=1"
SMALLEST = [
    "dataset.batch_size=1",
    "dataset.max_objects=1",
    "dataset.video_clip_length=2",
]


@pytest.mark.parametrize(
    ("available", "expected"),
    [
        (1000, []),
        (60, EXACT[:1]),
        (30, EXACT),
        (25, [*EXACT, CHUNKS]),
        (20, [*EXACT, CHUNKS, "dataset.batch_size=2"]),
        (5, [*EXACT, CHUNKS, "dataset.batch_size=1", "dataset.max_objects=1"]),
        (2, [*EXACT, CHUNKS, *SMALLEST]),
    ],
)
def test_settings_that_fit_are_proposed(tiny_config, clips, arithmetic, available, expected):
    clips(3, 3)
    arithmetic(available)
    sizes = ["dataset.video_clip_length=4", "dataset.batch_size=4", "model.memory_dropout=0.1"]
    plan = plan_training(override_config(tiny_config, sizes))
    overrides, better = propose(plan)
    assert overrides == expected and not better.memory.tight
    assert better.config == override_config(plan.config, overrides)


def test_no_proposal_if_nothing_fits(tiny_config, clips, arithmetic):
    clips(1)
    arithmetic(0)
    assert propose(plan_training(tiny_config)) is None


COMMAND = ["plan", "--config", "configs/quickstart.yaml", "--accelerator", "cpu"]


def test_the_command(capsys):
    assert main([*COMMAND, "dataset.image_size=64", "dataset.video_clip_length=2"]) == 0
    out = capsys.readouterr().out
    assert "memory per step: about" in out and "time per step: about" in out
    assert "training: " in out
    assert "validation: 6 videos. " in out and "videos are needed" in out


def test_command_proposes_settings(arithmetic, capsys):
    sizes = ["dataset.image_size=64", "dataset.video_clip_length=8", "model.memory_dropout=0.1"]
    arithmetic(20)
    assert main([*COMMAND, *sizes]) == 1
    assert "fits with: model.memory_dropout=0" in capsys.readouterr().out
    arithmetic(0)
    assert main([*COMMAND, *sizes]) == 1
    assert "no smaller settings were found that fit" in capsys.readouterr().out


@pytest.mark.slow
def test_the_benchmark(tmp_path):
    pytest.importorskip("training", reason="upstream's training package is not installed")
    from benchmarks import plan as benchmark

    benchmark.main(["--quick", "--out", str(tmp_path)])
    rows = json.loads((tmp_path / "plan.json").read_text())["rows"]
    assert len(rows) == len(benchmark.CASES)
    assert all(abs(row["memory"] - 1) <= benchmark.MEMORY for row in rows)
