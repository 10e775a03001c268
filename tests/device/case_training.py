"""Training on the stand-in: equal to the CPU, correct random states, few synchronizations.

:mod:`test_device_contract` runs this file in a process of its own.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace

import pytest
import torch
from conftest import moving_clip
from data_helpers import make_textured
from lightning.pytorch import Trainer
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.strategies import SingleDeviceStrategy
from standin import DEVICE, MixedDevices, StandIn, Stream, StreamError

from sam2kit.config.loading import load_config
from sam2kit.config.schema import Config
from sam2kit.data.clip import collate
from sam2kit.models.checkpoints import create_sam2_model, save_weights
from sam2kit.models.feature_cache import create_cache
from sam2kit.training import trainer as trainer_module
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.nonfinite_replay import replay
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import TrainingError

SMALL = [
    *("model.size=nano", "model.checkpoint=random", "model.memory_attention_bias=3"),
    *("model.object_score_bias=3", "dataset.image_size=64", "dataset.video_clip_length=4"),
    *("features.cache=off", "dataset.num_workers=0", "trainer.precision=32-true"),
    *("model.memory_dropout=0", "model.drop_path_rate=0"),
]


def make_config(*overrides: str) -> Config:
    return load_config(overrides=[*SMALL, *overrides])


def make_batch(objects: int = 3, with_keys: bool = False):
    clips = [moving_clip(1, seed=1, name="a"), moving_clip(objects, seed=2, name="b")]
    return collate(clips, with_keys)


def run_step(config: Config, on_device: bool, number: int = 1):
    """Run forward and backward pass; return the loss and the gradient in main memory."""
    module = SAM2LightningModule(config).train()
    module.train_cache = create_cache(config)
    batch = make_batch(with_keys=module.train_cache is not None)
    if on_device:
        module.to(DEVICE)
        batch = batch.to(DEVICE, non_blocking=True)
    with torch.autocast(
        module.device.type, torch.bfloat16, config.trainer.precision == "bf16-mixed"
    ):
        _, terms = module.track_and_score(batch, number)
    terms["loss"].backward()
    gradients = [p.grad for p in module.model.parameters() if p.grad is not None]
    return terms["loss"].detach().cpu(), torch.cat([g.cpu().flatten().double() for g in gradients])


RECIPES = {
    "mask": ("dataset.prompt_types=[mask]",),
    "box": ("dataset.prompt_types=[box]",),
    "point": ("dataset.prompt_types=[point]", "dataset.max_conditioning_frames=2"),
    "all terms": ("loss.iou_head=1", "loss.object_score=1", "loss.temporal=1"),
    "corrections": (
        *("recipe=official", "trainer=default", "dataset.prompt_types=[point,box]"),
        *("dataset.prompt_probabilities=null", "dataset.correction_clicks=2"),
    ),
    "lora": ("model.lora_modules=[image_encoder]",),
    "chunks": ("model.objects_together=1", "model.activation_checkpointing=true"),
}


@pytest.mark.parametrize("recipe", RECIPES)
def test_step_equals_the_cpu(recipe):
    config = make_config(*RECIPES[recipe])
    expected_loss, expected = run_step(config, on_device=False)
    with StandIn():
        loss, gradient = run_step(config, on_device=True)
    assert expected.norm() > 0
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


def test_step_with_cached_features_equals_the_cpu(tmp_path):
    """Reading features from the disk does not wait for the device."""
    expected_loss, expected = run_step(make_config(), on_device=False)
    config = make_config("features.cache=on", f"features.folder={tmp_path}")
    with StandIn() as gpu:
        run_step(config, on_device=True)  # fills the cache
        gpu.reset()
        loss, gradient = run_step(config, on_device=True)
    # The weights of a new encoder are hashed once, on the host.
    waits = {why for line, why in gpu.waits if "feature_cache" in line}
    assert waits == {"copied to the host"}, gpu.report()
    torch.testing.assert_close(loss, expected_loss, rtol=1e-5, atol=1e-6)
    assert (gradient - expected).norm() < 1e-4 * expected.norm()


@pytest.mark.parametrize("together", ["null", "1"])
def test_recomputed_dropout_is_the_same(together):
    """The device has random states of its own, which recomputation must restore."""
    config = make_config("model.memory_dropout=0.1", f"model.objects_together={together}")
    recomputing = replace(config, model=replace(config.model, activation_checkpointing=True))
    with StandIn():
        expected_loss, expected = run_step(config, on_device=True)
        loss, gradient = run_step(recomputing, on_device=True)
        _, other = run_step(config, on_device=True, number=2)
    torch.testing.assert_close(loss, expected_loss)
    assert (gradient - expected).norm() < 1e-5 * expected.norm()
    assert (other - expected).norm() > 0.01 * expected.norm()  # dropout matters


def test_mixed_precision_step_is_close_to_the_cpu():
    config = make_config("trainer.precision=bf16-mixed")
    expected_loss, expected = run_step(make_config(), on_device=False)
    with StandIn():
        loss, gradient = run_step(config, on_device=True)
    torch.testing.assert_close(loss, expected_loss, rtol=0.05, atol=0.05)
    assert torch.cosine_similarity(gradient, expected, dim=0) > 0.9


def test_standin_rejects_what_cuda_rejects():
    with StandIn() as gpu:
        x = torch.ones(3, device=DEVICE)
        for wrong in (
            lambda: x + torch.ones(3),
            lambda: torch.randn(3, device=DEVICE, generator=torch.Generator()),
            lambda: torch.cat([x, torch.ones(3)]),
        ):
            with pytest.raises(MixedDevices):
                wrong()
        with pytest.raises(TypeError):
            x.numpy()
        assert gpu.waits.total() == 0
        assert (x * 2 + torch.tensor(1.0)).sum().item() == 9 and gpu.waits.total() == 1
        assert x[x > 0].shape == (3,) and gpu.waits.total() == 2
        assert torch.tensor([1.0], device=DEVICE).cpu() == 1 and gpu.waits.total() == 4
        torch.manual_seed(1)
        first = torch.rand(3, device=DEVICE)
        torch.rand(3)  # the CPU's random numbers are separate
        second = torch.rand(3, device=DEVICE)
        torch.manual_seed(1)
        assert torch.equal(torch.rand(6).cpu(), torch.cat([first, second]).cpu())


def test_standin_finds_races_of_streams():
    with StandIn():
        x, backend, other = torch.ones(3, device=DEVICE), torch.get_device_module(DEVICE), Stream()
        with pytest.raises(StreamError, match="wait"), backend.stream(other):
            x + 1
        other.wait_stream(backend.current_stream())
        with backend.stream(other):
            y = x + 1
            done = other.record_event()
        with pytest.raises(StreamError, match="wait"):
            y + 1
        backend.current_stream().wait_event(done)
        with pytest.raises(StreamError, match="record_stream"):
            y + 1
        y.record_stream(backend.current_stream())
        assert (y + 1).sum().item() == 9


class StandInAccelerator(CPUAccelerator):
    """Lets Lightning train on the stand-in."""

    def setup_device(self, device: torch.device) -> None:
        pass


@pytest.fixture
def train_on_standin(monkeypatch):
    def make(**options) -> Trainer:
        strategy = SingleDeviceStrategy(DEVICE, StandInAccelerator())
        options |= {"strategy": strategy, "accelerator": "auto", "devices": 1}
        return Trainer(**options)

    monkeypatch.setattr(trainer_module, "Trainer", make)


TOY = (
    *("dataset.type=synthetic", "dataset.image_size=32", "dataset.video_clip_length=3"),
    *("dataset.clips_per_video=1", "dataset.synthetic_videos=3", "valdataset.type=synthetic"),
    *("valdataset.synthetic_videos=1", "trainer.max_epochs=1", "trainer.log_every_n_steps=1"),
)


def test_fit_equals_the_cpu(tmp_path, train_on_standin, monkeypatch):
    """Audit, clipping, averaged weights, validation and checkpoints run in Lightning's loop.

    Every second clip is a generated one, as in training with replay.
    """
    videos = make_textured(tmp_path / "videos", {"a": 3, "b": 3})
    settings = ["trainer.accelerator=cpu", "trainer.ema_decay=0.5", "dataset.replay=0.5"]
    data = ["dataset.type=video", f"dataset.data_path={videos}"]
    config = make_config(*TOY, *settings, *data)
    with StandIn():
        actual = fit(config, tmp_path / "device")
    with monkeypatch.context() as patch:
        patch.setattr(trainer_module, "Trainer", Trainer)
        expected = fit(config, tmp_path / "cpu")
    assert actual.metrics.keys() == expected.metrics.keys()
    for name, value in expected.metrics.items():
        assert actual.metrics[name] == pytest.approx(value, rel=1e-3, abs=1e-4), name
    states = [
        torch.load(result.last_checkpoint, weights_only=True)["state_dict"]
        for result in (actual, expected)
    ]
    for name, value in states[1].items():
        torch.testing.assert_close(states[0][name], value, rtol=1e-3, atol=1e-4)


class CountSteps(trainer_module.Callback):
    """Count the synchronizations and kernels of each step."""

    def __init__(self, gpu: StandIn) -> None:
        self.gpu, self.reports = gpu, []

    def on_train_batch_start(self, trainer, module, batch, batch_idx) -> None:
        self.gpu.reset()

    def on_train_batch_end(self, trainer, module, outputs, batch, batch_idx) -> None:
        counts = self.gpu.waits.total(), self.gpu.kernels.total()
        self.reports.append((*counts, self.gpu.report()))


@pytest.mark.parametrize(
    ("recipe", "budget"), [("memory", (0, 2080)), ("official", (0, 9800))], ids=str
)
def test_steps_do_not_wait_for_the_device(tmp_path, train_on_standin, recipe, budget):
    """Once constants are on the device, a step that is not logged hardly waits for it."""
    official = RECIPES["corrections"][:-1] if recipe == "official" else ()
    log = ["trainer.log_every_n_steps=1000", "trainer.audit=off", "trainer.accelerator=cpu"]
    config = make_config(*official, *TOY, *log, "trainer.ema_decay=0.5")
    with StandIn() as gpu:
        counter = CountSteps(gpu)
        fit(config, tmp_path, callbacks=[counter])
    waits, kernels, report = counter.reports[-2]  # the last step is logged
    print(f"{recipe}: {report}")
    assert waits <= budget[0] and kernels <= budget[1], report


def test_non_finite_step_is_skipped_and_replayed(tmp_path, train_on_standin, monkeypatch):
    """The saved weights are those from before the step, and the replay on the CPU repeats it."""
    weights, losses, score = [], [], SAM2LightningModule.track_and_score

    def spoil(self, batch, step, *arguments, **options):
        output, terms = score(self, batch, step, *arguments, **options)
        if step == 1:
            weights.append(deepcopy(self.model.state_dict()))
            losses.append(float(terms["loss"].detach()))
            terms["loss"] = terms["loss"] * float("inf")
        return output, terms

    config = make_config(*TOY, "trainer.audit=off", "trainer.accelerator=cpu")
    with monkeypatch.context() as patch:
        patch.setattr(SAM2LightningModule, "track_and_score", spoil)
        with StandIn(), pytest.raises(TrainingError) as error:
            fit(config, tmp_path)
    assert "in step 1" in str(error.value)
    assert replay(tmp_path / "replay.pt").terms["loss"] == pytest.approx(losses[0], rel=1e-4)
    saved = torch.load(tmp_path / "replay.pt", weights_only=True)
    assert saved["step_to_replay"]["index"] == 1
    for name, value in weights[0].items():
        assert torch.equal(saved["state_dict"][f"model.{name}"], value.held)


def test_export_of_a_model_on_the_device(tmp_path):
    """The exported weights, with merged LoRA, are the same whatever device the model was on."""
    model, states = create_sam2_model(make_config(*RECIPES["lora"])), []
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter)
    for device in ("cpu", DEVICE):
        with StandIn():
            save_weights(model.to(device), tmp_path / "weights.pt")
        states.append(torch.load(tmp_path / "weights.pt", weights_only=True)["model"])
    assert states[0].keys() == states[1].keys()
    for name, value in states[0].items():
        assert torch.equal(states[1][name], value), name
