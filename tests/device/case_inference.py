"""Tracking, evaluation and the other commands on the stand-in.

:mod:`test_device_contract` runs this file in a process of its own.
"""

from __future__ import annotations

import gc

import numpy as np
import pytest
import torch
from conftest import moving_clip
from standin import DEVICE, NAME, Backend, StandIn, StandInTensor

from sam2kit.config.loading import load_config
from sam2kit.data.build import build_validation_source
from sam2kit.evaluation.prompt_protocols import first_visible_frames
from sam2kit.evaluation.tracker_runs import TrackerRun
from sam2kit.models import feature_precompute
from sam2kit.models.checkpoints import create_sam2_model, load_model
from sam2kit.models.feature_cache import create_cache
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.frame_step import FrameModel
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import VideoTracker
from sam2kit.training import gradient_audit, planner
from sam2kit.widgets.prompt_session import PromptSession

SMALL = [
    *("model.size=nano", "model.checkpoint=random", "model.memory_attention_bias=3"),
    *("model.object_score_bias=3", "dataset.image_size=64", "dataset.video_clip_length=3"),
    *("features.cache=off", "dataset.num_workers=0", "trainer.accelerator=cpu"),
    *("dataset.type=synthetic", "dataset.synthetic_videos=2", "valdataset.type=synthetic"),
    *("valdataset.synthetic_videos=1",),
]


@pytest.fixture
def pick_standin(monkeypatch):
    for module in (feature_precompute, gradient_audit, planner):
        monkeypatch.setattr(module, "pick_device", lambda *_: DEVICE)


def make_session(model, device=None, options=None, count=6):
    clip = moving_clip(3, num_frames=count, size=96)
    frames = clip.frames.permute(0, 2, 3, 1).contiguous().numpy()
    session = VideoTracker(model, options, device).open(lambda t: frames[t], count, (96, 96))
    return session, clip


def track(model, device=None, options=None):
    session, clip = make_session(model, device, options)
    session.add_prompt(Prompt(0, torch.arange(2), masks=clip.masks[0, :2]))
    point = torch.tensor([[[40.0, 80.0]]])
    session.add_prompt(Prompt(1, torch.tensor([2]), points=point, labels=torch.ones(1, 1).int()))
    masks = [tracks.masks((96, 96)) for tracks in session.propagate()]
    session.add_prompt(Prompt(3, torch.tensor([2]), points=point, labels=torch.ones(1, 1).int()))
    masks += [tracks.masks((96, 96)) for tracks in session.propagate(3, -1, reverse=True)]
    return np.concatenate(masks)


def test_tracking_equals_the_cpu():
    model = create_sam2_model(load_config(overrides=SMALL))
    options = TrackerOptions(history=None)
    expected = track(model, options=options)
    with StandIn():
        actual = track(model, DEVICE, options)
    assert expected.any() and not expected.all()
    assert (actual == expected).mean() > 0.999


def test_frames_are_encoded_on_a_stream_of_their_own(monkeypatch):
    """While a frame is tracked, the next ones are encoded; the stand-in finds races."""
    model, encoded, encode = create_sam2_model(load_config(overrides=SMALL)), [], FrameModel.encode

    def spy(self, *frames):
        encoded.append((len(frames), len(Backend.streams) > 1))
        return encode(self, *frames)

    monkeypatch.setattr(FrameModel, "encode", spy)
    options, masks = TrackerOptions(lookahead=2, resize_on_device=True), []
    for device in (None, DEVICE):
        encoded.clear()
        with StandIn():
            session, clip = make_session(model, device, options, 5)
            session.add_prompt(Prompt(0, torch.arange(1), masks=clip.masks[0, :1]))
            masks.append(np.stack([tracks.masks((96, 96)) for tracks in session.propagate()]))
        # The prompted frame, the next two, and on a GPU the last two before they are tracked.
        assert encoded == [(1, False), (2, False), (2, device is not None)]
    assert masks[0].any() and (masks[0] == masks[1]).mean() > 0.99  # resized with other rounding


@pytest.mark.parametrize(("size", "budget"), [("nano", (1, 560)), ("t", (1, 700))], ids=str)
def test_tracked_frame_does_not_wait_for_the_device(size, budget):
    config = load_config(overrides=[*SMALL, f"model.size={size}", "dataset.image_size=128"])
    with StandIn() as gpu:
        session, clip = make_session(
            create_sam2_model(config), DEVICE, TrackerOptions(autocast=True), 5
        )
        session.add_prompt(Prompt(0, torch.arange(3), masks=clip.masks[0]))
        for _ in session.propagate(stop=4):
            gpu.reset()
        (tracks,) = session.propagate(4)
        tracks.masks((96, 96))
        report = gpu.report()
        print(f"{size}: {report}")
        assert gpu.waits.total() <= budget[0] and gpu.kernels.total() <= budget[1], report


@pytest.mark.parametrize("protocol", ["mask", "clicks"])
def test_evaluation_equals_the_cpu(protocol):
    clicks = ["evaluation.clicks=2"] if protocol == "clicks" else []
    config = load_config(overrides=[*SMALL, f"evaluation.protocol={protocol}", *clicks])
    source, model = build_validation_source(config), create_sam2_model(config)
    objects = list(first_visible_frames(source, 0)[0])
    expected = TrackerRun("cpu", model).score(source, 0, objects, config)
    with StandIn():
        actual = TrackerRun("device", model.to(DEVICE)).score(source, 0, objects, config)
    np.testing.assert_allclose(actual.J, expected.J, atol=0.02)


def test_audit_equals_the_cpu_and_leaves_no_memory(pick_standin, monkeypatch):
    config = load_config(overrides=SMALL)
    with StandIn():
        before = Backend.emptied
        actual = gradient_audit.audit_config(config)
        gc.collect()
        held = [x for x in gc.get_objects() if isinstance(x, torch.nn.Parameter)]
        assert not any(isinstance(x, StandInTensor) for x in held)
        assert Backend.emptied > before
    monkeypatch.undo()
    expected = gradient_audit.audit_config(config)
    for row, other in zip(actual.rows, expected.rows, strict=True):
        assert row.zero_tensors == other.zero_tensors
        assert row.gradient_norm == pytest.approx(other.gradient_norm, rel=1e-3)


def test_plan_runs_on_the_device(pick_standin):
    with StandIn():
        short = ["trainer.precision=32-true", "dataset.video_clip_length=2"]
        plan = planner.plan_training(load_config(overrides=[*SMALL, *short]))
    assert plan.device == str(DEVICE) and plan.memory.step > 0 and plan.seconds > 0


@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "32-true"])
def test_features_are_those_that_training_reads(pick_standin, tmp_path, precision):
    overrides = ["features.cache=on", f"features.folder={tmp_path}", "trainer.accelerator=auto"]
    config = load_config(overrides=[*SMALL, *overrides, f"trainer.precision={precision}"])
    dtype = torch.float16 if precision == "16-mixed" else torch.bfloat16
    with StandIn():
        assert feature_precompute.fill(config).stored > 0
        cache = create_cache(config)
        images = torch.from_numpy(build_validation_source(config).read_frame(0, 0))
        images = feature_precompute.resize_frames(images.permute(2, 0, 1)[None], (64, 64))
        model = create_sam2_model(config).to(DEVICE)
        with torch.autocast(NAME, dtype, enabled=precision != "32-true"):
            cache.encode(model, images.to(DEVICE))
        assert (cache.read, cache.encoded) == (1, 0)


def test_annotator_session_equals_the_cpu():
    config = load_config(overrides=SMALL)
    source, masks = build_validation_source(config), []
    for device in (torch.device("cpu"), DEVICE):
        with StandIn():
            session = PromptSession(source, 0, load_model("nano")[1], device)
            o = next(iter(session.objects))
            y, x = (int(v.mean()) for v in session.truth(0)[o].nonzero())
            session.click(o, 0, x, y)
            session.click(o, 0, x, max(y - 2, 0))
            for _ in session.propagate():
                pass
            masks.append(np.stack([session.mask(o, t) for t in range(session.num_frames)]))
    assert masks[0].any() and (masks[0] == masks[1]).mean() > 0.999
