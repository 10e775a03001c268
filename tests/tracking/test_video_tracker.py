"""The tracker's masks equal those of upstream's predictor, and its memory does not grow."""

from __future__ import annotations

import functools
import math
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path

import numpy as np
import pytest
import torch
from loguru import logger
from parity_helpers import parity_config, sharpen
from sam2.sam2_video_predictor import SAM2VideoPredictor
from tracker_helpers import (
    BREAK_CONVENTION,
    SIZE,
    AddPrompt,
    Results,
    Scene,
    Track,
    connected_components,
    difference,
    predictor_of,
    pretend_extension,
    prompt,
    read_frame,
    run_tracker,
    run_upstream,
    write_video,
)

from sam2kit.models import memory_attention as attention
from sam2kit.models.checkpoints import SHIPPED_CHECKPOINTS, create_sam2_model
from sam2kit.models.sam2 import SAM2Model, build_sam2_model
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking import frame_step
from sam2kit.tracking.frame_step import FrameModel
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import TrackingSession, VideoTracker
from sam2kit.utils.errors import DataError

TOLERANCE = 1e-2  # maximum difference of logits
ALL = (0, 1, 2)
CLICK = ((0.0, 0.0, 1),)
CLICKS = (*CLICK, (4.0, 3.0, 1), (-20.0, -15.0, 0))
SHIPPED = pytest.param(
    "shipped",
    marks=pytest.mark.skipif(
        not SHIPPED_CHECKPOINTS["nano"].exists(), reason="ships with its weights"
    ),
)


@dataclass
class Pair:
    """A model of sam2kit and upstream's predictor with the same weights."""

    kit: SAM2Model
    upstream: SAM2VideoPredictor


@functools.cache
def load_pair(weights: str) -> Pair:
    """Build both models with shipped weights, or with random weights.

    ``t`` and ``soft`` are sharpened; ``loud`` also has logits as large as those of trained weights.
    """
    config = parity_config("t" if weights == "t" else "nano")
    if weights == "shipped":
        config.model.checkpoint = "nano"
        model = create_sam2_model(config)
    else:
        model = build_sam2_model(config)
        sharpen(model)
    if weights == "loud":
        with torch.no_grad():
            for mlp in model.sam_mask_decoder.output_hypernetworks_mlps:
                mlp.layers[-1].weight *= 100
                mlp.layers[-1].bias *= 100
    with tempfile.TemporaryDirectory() as folder:
        return Pair(model.eval(), predictor_of(model, config, Path(folder)))


@pytest.fixture(scope="module")
def scene(tmp_path_factory):
    """A function that makes a scene with a given number of frames."""

    @functools.cache
    def make(num_frames: int) -> Scene:
        folder = tmp_path_factory.mktemp("video")
        return Scene(folder, write_video(folder, num_frames))

    return make


def prompts(kind: str, objects: tuple[int, ...], t: int = 0) -> AddPrompt:
    clicks = {"click": CLICK, "clicks": CLICKS}.get(kind, ())
    return AddPrompt("click" if clicks else kind, t, objects, clicks)


# Parity


@pytest.mark.parametrize("objects", [(0,), ALL])
@pytest.mark.parametrize("kind", ["mask", "box", "click"])
def test_twenty_frames(kind, objects, scene):
    models, video = load_pair("loud"), scene(20)
    script = [prompts(kind, objects), Track()]
    expected = run_upstream(models.upstream, video, script)
    assert difference(run_tracker(models.kit, video, script), expected) < TOLERANCE
    assert torch.stack([x for _, x in expected]).std() > 0.5, "nothing to compare"


@pytest.mark.parametrize("kind", ["mask", "box", "click"])
def test_twenty_frames_of_the_shipped_model(kind, scene):
    """Logits are equal object by object, as upstream computes; in batches, compare masks.

    In batches, rounding errors accumulate over the frames, with these weights up to 0.025.
    """
    models, video = load_pair("shipped"), scene(20)
    script = [prompts(kind, ALL), Track()]
    expected = run_upstream(models.upstream, video, script)
    alone = run_tracker(models.kit, video, script, TrackerOptions(object_chunk=1))
    assert difference(alone, expected) < 1e-5
    batched = run_tracker(models.kit, video, script)
    changed = [((a > 0) != (b > 0)).sum() for (_, a), (_, b) in zip(batched, expected, strict=True)]
    assert sum(changed) <= 1e-3 * sum((x > 0).sum() for _, x in expected)


SCRIPTS = {
    "several prompted frames": [
        *(prompts("mask", (0, 1)), prompts("box", (0,), 5), prompts("click", (1,), 6), Track())
    ],
    "late objects": [
        *(prompts("mask", (0,)), prompts("box", (1,), 4), prompts("mask", (2,), 6), Track())
    ],
    "a late object during tracking": [
        *(prompts("mask", (0,)), Track(0, 5), prompts("box", (1,), 5), Track(5, 9))
    ],
    "backward": [prompts("box", ALL, 9), Track(reverse=True)],
    "forward, then backward": [
        *(prompts("mask", (0,), 4), prompts("click", (1,), 6), Track(), Track(reverse=True))
    ],
    "backward, then forward": [prompts("mask", (0, 1), 4), Track(reverse=True), Track()],
    "backward from 0": [prompts("mask", (0,)), Track(reverse=True)],
    "clicks together": [prompts("clicks", ALL), Track(0, 6)],
    "clicks in turn": [
        prompts("click", ALL),
        AddPrompt("click", 0, ALL, CLICKS[1:2]),
        AddPrompt("click", 0, (0,), CLICKS[2:]),
        Track(0, 6),
    ],
    "a click on a mask prompt": [prompts("mask", ALL), prompts("click", (1,)), Track(0, 6)],
    "a box after clicks": [prompts("clicks", ALL), prompts("box", (1,)), Track(0, 6)],
    "the last frame corrected": [
        *(
            prompts("mask", (0, 1)),
            Track(0, 6),
            prompts("clicks", (0,), 5),
            prompts("mask", (1,), 5),
        ),
        Track(6),
    ],
    "a prompted frame corrected": [
        prompts("mask", (0, 1)),
        Track(),
        prompts("click", (0,)),
        Track(),
    ],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_other_scripts(name, scene):
    models, video = load_pair("loud"), scene(10)
    expected = run_upstream(models.upstream, video, SCRIPTS[name])
    assert difference(run_tracker(models.kit, video, SCRIPTS[name]), expected) < TOLERANCE
    # The remaining difference is the order of summation, which these weights amplify.
    one_by_one = run_tracker(models.kit, video, SCRIPTS[name], TrackerOptions(object_chunk=1))
    assert difference(one_by_one, expected) < TOLERANCE / 1000


def test_correction_of_a_distant_frame(scene):
    """Upstream evicts nothing, so this is equal only with unlimited history."""
    models, video = load_pair("loud"), scene(20)
    script = [
        prompts("mask", (0, 1)),
        Track(),
        prompts("click", (0,), 6),
        prompts("mask", (1,), 6),
    ]
    script.append(Track(7, 9))
    expected = run_upstream(models.upstream, video, script)
    with_history = run_tracker(models.kit, video, script, TrackerOptions(history=None))
    assert difference(with_history, expected) < TOLERANCE
    assert difference(run_tracker(models.kit, video, script), expected) > 10 * TOLERANCE


@pytest.mark.parametrize(("history", "expected"), [(0, 1), (4, 0), (None, 0)])
def test_correction_with_evicted_memories_is_warned_of(scene, history, expected):
    """Going back 4 frames, the click cannot read what tracking read there, unless it is kept."""
    models, video, warnings = load_pair("loud"), scene(20), []
    script = [
        prompts("mask", (0, 1)),
        Track(),
        prompts("click", (0,), 15),
        prompts("mask", (1,), 15),
    ]
    sink = logger.add(lambda m: warnings.append(m.record["message"]), level="WARNING")
    run_tracker(models.kit, video, script, TrackerOptions(history=history))
    logger.remove(sink)
    assert len(warnings) == expected
    assert all("object 0 on frame 15" in message for message in warnings)


def test_size_t(scene):
    models, video = load_pair("t"), scene(3)
    script = [prompts("mask", (0, 1), 1), Track(), Track(reverse=True)]
    expected = run_upstream(models.upstream, video, script)
    assert difference(run_tracker(models.kit, video, script), expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("objects", [(0,), ALL])
@pytest.mark.parametrize("kind", ["mask", "box", "click"])
def test_twenty_frames_of_size_t(kind, objects, scene):
    models, video = load_pair("t"), scene(20)
    script = [prompts(kind, objects), Track()]
    expected = run_upstream(models.upstream, video, script)
    assert difference(run_tracker(models.kit, video, script), expected) < TOLERANCE


# Conventions of upstream: without any of them, the masks would differ

CLICKED = (prompts("click", (0,)), Track())
MASKED = (prompts("mask", (0,)), Track())
ON_MASK = (prompts("mask", (0,)), prompts("click", (0,)), Track(0, 3))
IN_TURN = (prompts("click", (0,)), AddPrompt("click", 0, (0,), CLICKS[1:2]), Track(0, 4))
CORRECTED = (*MASKED[:1], Track(0, 4), prompts("mask", (0,), 3), Track(4))
THERE_AND_BACK = (prompts("mask", (0,), 2), Track(), Track(reverse=True))
LATE = (prompts("mask", (0,)), prompts("mask", (1,), 3), Track())
CONVENTIONS = [  # a name in BREAK_CONVENTION, or options that break a convention
    ("memory_in_bfloat16", CLICKED),
    ("reencode_prompted", MASKED),
    ("binarize_prompted", CLICKED),
    ("binarize_prompted", MASKED),
    ("choose_by_stability", CLICKED),
    ("pointer_positions_by_length", CLICKED),
    ({"corrected_frames_condition": True}, CORRECTED),
    ("previous_logits", IN_TURN),
    ("previous_logits_limit", ON_MASK),
    ({"fill_hole_area": 0}, CLICKED),
    ("fill_with_extension", CLICKED),
    ("fill_before_prompted_memory", MASKED),
    ("fill_after_tracked_memory", CLICKED),
    ({"track_before_prompt": False}, LATE),
    ("read_other_direction", THERE_AND_BACK),
    ("pil_bicubic", MASKED),
    ("antialias_masks", MASKED),
]


@functools.cache
def track_by_conventions(
    weights: str, video: Scene, script: tuple, fill: bool
) -> tuple[Results, float]:
    """Track with all conventions; return the results and their difference from upstream.

    ``fill`` is whether holes are filled. It is unused, but distinguishes entries of the cache.
    """
    results = run_tracker(load_pair(weights).kit, video, script)
    return results, difference(results, run_upstream(load_pair(weights).upstream, video, script))


@pytest.mark.parametrize("weights", ["random", SHIPPED])
@pytest.mark.parametrize(("change", "script"), CONVENTIONS, ids=[str(c[0]) for c in CONVENTIONS])
def test_breaking_one_convention_changes_the_masks(change, script, weights, scene, monkeypatch):
    options = change if isinstance(change, dict) else {}
    name = next(iter(options), change)
    if weights == "random":  # masks of loud weights are all stable
        weights = "soft" if name == "choose_by_stability" else "loud"
    elif name == "pointer_positions_by_length":
        pytest.skip("nano hardly uses the distance of pointers")
    fill = name.startswith("fill")
    if fill:
        pretend_extension(monkeypatch)
    results, error = track_by_conventions(weights, scene(6), script, fill)
    assert error < TOLERANCE / 10
    if not options:
        BREAK_CONVENTION[name](monkeypatch)
    broken = run_tracker(load_pair(weights).kit, scene(6), script, TrackerOptions(**options))
    change_size = difference(broken, results)
    assert change_size > max(4 * error, 1e-3), (change_size, error)


def test_non_overlapping_masks(scene):
    models, video = load_pair("loud"), scene(4)
    script = [prompts("box", ALL), Track()]
    models.upstream.non_overlap_masks = True
    try:
        expected = run_upstream(models.upstream, video, script)
    finally:
        models.upstream.non_overlap_masks = False
    # Results of prompts are not compared: upstream's consider only the objects prompted before.
    # One object per call, because the last bit of a logit can decide which object gets a pixel.
    options = TrackerOptions(non_overlapping=True, object_chunk=1)
    results = run_tracker(models.kit, video, script, options)[1:]
    assert difference(results, expected[1:]) < TOLERANCE
    assert all(((logits > 0).sum(0) <= 1).all() for _, logits in results)


def test_bfloat16(scene, monkeypatch):
    """With fused attention, results equal upstream's; otherwise rounding is about as small."""
    models, video = load_pair("soft"), scene(4)
    with torch.autocast("cpu", torch.bfloat16):
        expected = run_upstream(models.upstream, video, MASKED)
    exact, mixed = run_tracker(models.kit, video, MASKED), TrackerOptions(autocast=True)
    rounding = difference(expected, exact)
    assert rounding > 1e-4
    assert difference(run_tracker(models.kit, video, MASKED, mixed), exact) < 1.5 * rounding
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention, "attend", lambda q, k, v, dropout: fused(q, k, v))
    assert difference(run_tracker(models.kit, video, MASKED, mixed), expected) < 1e-4


# Memory


def track_long(num_frames: int, every: int, condition: bool = True) -> list[int]:
    """Track a generated video, and return the size of the state in bytes after each frame.

    The objects are prompted again every N frames: before the frame is tracked (``condition``), or
    to correct it.
    """
    model = load_pair("loud").kit
    masks = torch.zeros(2, 32, 32, dtype=torch.bool)
    masks[0, 4:14, 4:14] = masks[1, 16:30, 10:30] = True
    session = VideoTracker(model).open(
        lambda t: np.random.default_rng(t).integers(0, 255, (32, 32, 3), dtype=np.uint8),
        *(num_frames, (32, 32)),
    )
    state = []
    session.add_prompt(Prompt(0, torch.arange(2), masks=masks))
    for tracks in session.propagate():
        t = tracks.frame + condition
        if t % every == 0 and 0 < t < num_frames:
            session.add_prompt(Prompt(t, torch.arange(2), masks=masks))
        state.append(session.state_bytes())
    return state


@pytest.mark.parametrize("condition", [True, False])
def test_state_does_not_grow(condition):
    """The size is constant after eight prompts (``max_cond_frames``) or the first 16 pointers."""
    state = track_long(61, 4, condition)
    assert state[38] == state[58]  # frames at the same distance from a prompt
    assert max(state[30:]) == max(state[30:40])


@pytest.fixture
def session(scene):
    """A function that opens a session on ten frames, which records the frames that it reads."""
    read: list[int] = []

    def frame(t: int) -> np.ndarray:
        read.append(t)
        return read_frame(scene(10).folder, t)

    def begin(**options) -> TrackingSession:
        video_session = VideoTracker(load_pair("loud").kit, TrackerOptions(**options)).open(
            frame, 10, SIZE
        )
        video_session.read = read
        return video_session

    return begin


def mask_prompt(scene: Scene, t: int, *objects: int) -> Prompt:
    masks = torch.from_numpy(scene.masks[t, [o % 3 for o in objects]])
    return Prompt(t, torch.tensor(objects), masks=masks)


def test_maximum_number_of_conditioning_frames(session, scene):
    video_session = session(max_cond_frames=3)
    for t in range(0, 10, 2):  # future conditioning frames are all kept
        video_session.add_prompt(mask_prompt(scene(10), t, 0))
    frames = [sorted(video_session.banks[0].conditioning) for _ in video_session.propagate()]
    assert frames[0] == frames[5] == [0, 2, 4, 6, 8]
    assert frames[6] == [0, 4, 6, 8] and frames[9] == [0, 6, 8]
    unlimited = session(max_cond_frames=None)
    for t in range(10):
        unlimited.add_prompt(mask_prompt(scene(10), t, 0))
        list(unlimited.propagate(t, t + 1))
    assert len(unlimited.banks[0].conditioning) == 10


def test_prompt_on_an_evicted_frame_makes_a_conditioning_frame(session, scene):
    video_session = session()
    video_session.add_prompt(mask_prompt(scene(10), 0, 0))
    list(video_session.propagate())
    video_session.add_prompt(mask_prompt(scene(10), 9, 0))
    list(video_session.propagate(9))
    assert sorted(video_session.banks[0].conditioning) == [0]  # a correction
    video_session.banks[0].others.clear()
    video_session.add_prompt(mask_prompt(scene(10), 5, 0))
    list(video_session.propagate(5))
    assert sorted(video_session.banks[0].conditioning) == [0, 5]


# Cost


def test_encoder_runs_once_per_frame_and_objects_share_calls(session, scene, monkeypatch):
    run, calls = FrameModel.run, []
    monkeypatch.setattr(FrameModel, "run", lambda self, t, *a: calls.append(t) or run(self, t, *a))
    video_session = session()
    video_session.add_prompt(mask_prompt(scene(10), 0, 0, 1))
    list(video_session.propagate(0, 5))
    assert video_session.read == [0, 1, 2, 3, 4] and calls == [0, 1, 2, 3, 4]
    video_session.add_prompt(mask_prompt(scene(10), 5, 2))
    list(video_session.propagate(5, 7))
    assert video_session.read == [0, 1, 2, 3, 4, 5, 6]
    assert calls[5:] == [5, 5, 6, 6]  # the late object reads other frames than the first two


def test_object_chunks_do_not_change_masks(session, scene):
    logits = []
    for options in ({}, {"object_chunk": 2}):
        video_session = session(**options)
        video_session.add_prompt(mask_prompt(scene(10), 0, *ALL))
        logits.append(torch.stack([tracks.mask_logits for tracks in video_session.propagate()]))
    assert torch.allclose(*logits, atol=TOLERANCE)


class OverwritingGraphs:
    """A backend that reuses memory as CUDA graphs do: a call overwrites the outputs of all calls.

    See "CUDAGraph Trees" in torch's documentation: every call of a compiled function starts a new
    iteration, in which tensors of the one before are not valid any more.
    """

    def __init__(self) -> None:
        self._outputs = []

    def __call__(self, graph, inputs):
        def run(*arguments):
            for tensor in self._outputs:
                tensor.fill_(math.nan)
            results = [x.clone() if isinstance(x, torch.Tensor) else x for x in graph(*arguments)]
            self._outputs = [x for x in results if torch.is_tensor(x) and x.is_floating_point()]
            return results

        return run


@pytest.mark.filterwarnings("error:.*lru_cache")  # cached tensors would be computed in the graph
def test_compiled_frame_is_one_graph_for_all_frames(scene):
    """``fullgraph`` raises at a graph break; with a full bank, the shapes do not change.

    No tensor of a compiled call is read after the next one, so that CUDA graphs can replay it.
    """
    torch._dynamo.reset()
    counts = torch._dynamo.utils.counters["stats"]
    trackers, logits, graphs = [VideoTracker(load_pair("loud").kit) for _ in range(2)], [], []
    trackers[1].compile(fullgraph=True, backend=OverwritingGraphs())
    for tracker in trackers:
        video_session = tracker.open(lambda t: read_frame(scene(10).folder, t), 10, SIZE)
        video_session.add_prompt(mask_prompt(scene(10), 0, 0, 1))
        before = counts["unique_graphs"]
        for tracks in video_session.propagate():
            logits.append(tracks.mask_logits)
            graphs.append(counts["unique_graphs"] - before)
    # The encoder, which the prompt has compiled, and from frame 8 on the rest.
    assert graphs[:18] == [0] * 18 and graphs[18:] == [1, 1]
    assert torch.equal(torch.stack(logits[:10]), torch.stack(logits[10:]))


def test_lookahead_encodes_several_frames_at_once(session, scene, monkeypatch):
    encode, batches, logits = FrameModel.encode, [], []
    monkeypatch.setattr(
        FrameModel, "encode", lambda self, *x: batches.append(len(x)) or encode(self, *x)
    )
    for lookahead in (1, 4):
        batches.clear()
        video_session = session(lookahead=lookahead)
        video_session.add_prompt(mask_prompt(scene(10), 0, 0))
        logits.append(torch.stack([x.mask_logits for x in video_session.propagate()]))
    assert batches == [1, 4, 4, 1] and video_session.read[-10:] == list(range(10))
    assert torch.allclose(*logits, atol=TOLERANCE / 10)


def test_prepared_frames_are_not_resized_again(scene, monkeypatch):
    tracker, logits = VideoTracker(load_pair("loud").kit), []
    prepared = [tracker.prepare(read_frame(scene(4).folder, t)) for t in range(4)]
    for frames in ([x.frame for x in prepared], prepared):
        video_session = tracker.open(frames.__getitem__, 4, SIZE)
        video_session.add_prompt(mask_prompt(scene(4), 0, 0))
        logits.append(torch.stack([x.mask_logits for x in video_session.propagate()]))
        monkeypatch.setattr(frame_step, "resize_frame", None)
    assert torch.equal(*logits)


def test_device_can_resize_frames(scene):
    frame = read_frame(scene(4).folder, 0)
    options = TrackerOptions(resize_on_device=True)
    trackers = [VideoTracker(load_pair("loud").kit, x) for x in (options, None)]
    assert trackers[0].prepare(frame).image.shape[-2:] == SIZE
    features = []
    for tracker in trackers:
        with tracker.applied():
            features.append(tracker.encode(frame).vision[-1])
    assert 0 < (features[0] - features[1]).norm() < 0.02 * features[1].norm()


def test_frame_that_cannot_be_read_ahead_is_an_error_when_it_is_tracked(scene):
    def frame(t: int) -> np.ndarray:
        if t == 3:
            raise DataError("frame 3", hint="replace it")
        return read_frame(scene(10).folder, t)

    tracker = VideoTracker(load_pair("loud").kit, TrackerOptions(lookahead=4))
    video_session, tracked = tracker.open(frame, 10, SIZE), []
    video_session.add_prompt(mask_prompt(scene(10), 0, 0))
    with pytest.raises(DataError, match="frame 3"):
        tracked.extend(x.frame for x in video_session.propagate())
    assert tracked == [0, 1, 2] and video_session.state_bytes() > 0


# Use


def test_fields_of_frame_tracks(session, scene):
    video_session = session(track_before_prompt=False)
    clicked = prompt(scene(10), prompts("click", (1, 2), 3), 128)
    prompted = video_session.add_prompt(clicked)
    assert prompted.objects == [1, 2] and prompted.candidates.shape == (2, 3, 32, 32)
    same = (prompted.candidates == prompted.mask_logits[:, None]).flatten(2).all(2)
    assert same.any(1).all()
    video_session.add_prompt(mask_prompt(scene(10), 5, 7))
    frames = list(video_session.propagate())
    assert [f.frame for f in frames] == list(range(3, 10))
    assert [f.objects for f in frames] == [[1, 2]] * 2 + [[1, 2, 7]] * 5
    for tracks in frames:
        count = len(tracks.objects)
        assert tracks.mask_logits.shape == (count, 32, 32) and tracks.iou.shape == (count,)
        assert tracks.object_score.shape == (count,) and tracks.object_score.min() > 0
        assert tracks.masks(SIZE).shape == (count, *SIZE) and tracks.masks(SIZE).dtype == bool
    assert frames[2].iou[2] == 1.0  # a mask prompt's
    empty = next(video_session.propagate(0))
    assert empty.objects == [] and empty.masks(SIZE).shape == (0, *SIZE)


def test_interrupted_pass_can_continue(session, scene):
    uninterrupted, interrupted = session(), session()
    for video_session in (uninterrupted, interrupted):
        video_session.add_prompt(mask_prompt(scene(10), 0, 0, 1))
    expected = [t.mask_logits for t in uninterrupted.propagate()]
    logits = []
    for tracks in interrupted.propagate():
        logits.append(tracks.mask_logits)
        if tracks.frame == 4:
            break
    logits += [t.mask_logits for t in interrupted.propagate(5)]
    assert torch.equal(torch.stack(logits), torch.stack(expected))


def test_zeroed_memory_is_not_read(session, scene):
    logits = []
    for zero in (False, True):
        video_session = session(zero_memory=zero)
        video_session.add_prompt(mask_prompt(scene(10), 0, 0))
        logits.append([t.mask_logits for t in video_session.propagate()])
        memories = list(video_session.banks[0].others.values())
        assert all(bool(m.pointer.any()) is not zero for m in memories)
    assert not torch.allclose(logits[0][1], logits[1][1], atol=TOLERANCE)


def test_settings_of_the_model_are_restored(session, scene):
    model = load_pair("loud").kit
    before = {k: v for k, v in vars(model.sam_mask_decoder).items() if k.startswith("dynamic")}
    video_session = session()
    video_session.add_prompt(mask_prompt(scene(10), 0, 0))
    next(video_session.propagate())
    after = {k: v for k, v in vars(model.sam_mask_decoder).items() if k.startswith("dynamic")}
    assert before == after and not model.binarize_mask_from_pts_for_mem_enc
    assert not torch.is_inference_mode_enabled()


def test_warning_about_a_mask_that_is_too_small(session, warnings):
    masks = torch.zeros(1, 720, 1040, dtype=torch.bool)
    masks[0, 5, 5] = True
    tracks = session().add_prompt(Prompt(0, torch.tensor([4]), masks=masks))
    assert "Object 4 on frame 0" in warnings[0] and "128 pixels" in warnings[0]
    assert tracks.object_score.item() == -10.0 and not tracks.masks(SIZE).any()  # as upstream


def test_warning_about_a_correction_that_upstream_ignores(session, scene, warnings):
    for options in ({}, {"corrected_frames_condition": True}):
        video_session = session(**options)
        video_session.add_prompt(mask_prompt(scene(10), 0, 3))
        list(video_session.propagate(0, 2))
        video_session.add_prompt(mask_prompt(scene(10), 0, 3))
    assert len(warnings) == 1 and "Object 3" in warnings[0] and "frame 0" in warnings[0]


def test_invalid_calls(session, scene):
    video_session = session()
    with pytest.raises(ValueError, match="no object was prompted"):
        video_session.propagate()
    with pytest.raises(ValueError, match="prompt on frame 12 of a video of 10 frames"):
        video_session.add_prompt(Prompt(12, torch.tensor([0]), masks=torch.ones(1, 8, 8) > 0))
    video_session.add_prompt(mask_prompt(scene(10), 0, 0))
    with pytest.raises(ValueError, match="start is 10, but the video has 10 frames"):
        video_session.propagate(10)
    with pytest.raises(ValueError, match="object_chunk must be at least 1, got 0"):
        TrackerOptions(object_chunk=0)
    with pytest.raises(ValueError, match="history must be at least 0, got -1"):
        TrackerOptions(history=-1)


def test_former_options_are_accepted_or_rejected():
    """Options of older configurations are accepted if the tracker still behaves like that."""
    values = {"pil_bicubic": True, "previous_logits_limit": 32, "history": None}
    assert TrackerOptions.from_values(values) == TrackerOptions(history=None)
    with pytest.raises(ValueError, match="read_other_direction=False is no longer supported"):
        TrackerOptions.from_values({"read_other_direction": False})
    with pytest.raises(TypeError, match="colour"):
        TrackerOptions.from_values({"colour": 1})


def test_frame_of_another_size(scene):
    def frame(t: int) -> np.ndarray:
        return np.zeros((*SIZE, 3) if t == 0 else (8, 8, 3), dtype=np.uint8)

    video_session = VideoTracker(load_pair("loud").kit).open(frame, 2, SIZE)
    video_session.add_prompt(mask_prompt(scene(10), 0, 0))
    with pytest.raises(DataError, match=r"frame 1 is uint8 \(8, 8, 3\), but the video's frames"):
        list(video_session.propagate())
    with pytest.raises(DataError, match="frame 1"):
        video_session.add_prompt(mask_prompt(scene(10), 1, 5))
    assert video_session.objects == [0]


def test_connected_components_as_in_the_extension():
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[0, 0, 1, 1] = mask[0, 0, 3, 3:] = True
    labels, areas = connected_components(mask)
    assert labels[0, 0, 0, 0] == labels[0, 0, 1, 1] != labels[0, 0, 3, 3] > 0  # diagonal
    assert areas[0, 0][mask[0, 0]].tolist() == [2, 2, 2, 2]
    assert not labels[1].any() and not labels[~mask].any()


def test_documentation_lists_every_option():
    text = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text(encoding="utf-8")
    documented = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(documented) == sorted(field.name for field in fields(TrackerOptions))
