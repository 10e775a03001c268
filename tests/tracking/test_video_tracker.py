"""The tracker gives what upstream's ``SAM2VideoPredictor`` gives, in memory that does not grow."""

from __future__ import annotations

import functools
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
    Found,
    Give,
    Go,
    Scene,
    connected_components,
    difference,
    ours,
    predictor_of,
    pretend_extension,
    prompt,
    read_frame,
    upstream,
    write_video,
)

from sam2kit.models import memory_attention as attention
from sam2kit.models.checkpoints import SHIPPED_CHECKPOINTS, create_sam2_model
from sam2kit.models.sam2 import SAM2Model, build_sam2_model
from sam2kit.prompts.prompt import Prompt
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import TrackingSession, VideoTracker
from sam2kit.utils.errors import DataError

TOLERANCE = 1e-2  # of a logit
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
    """The same weights in both trackers."""

    ours: SAM2Model
    theirs: SAM2VideoPredictor


@functools.cache
def pair(weights: str) -> Pair:
    """``t`` and ``soft``: random and sharpened; ``loud``: with logits as large as trained ones."""
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
    """A scene of so many frames."""

    @functools.cache
    def make(num_frames: int) -> Scene:
        folder = tmp_path_factory.mktemp("video")
        return Scene(folder, write_video(folder, num_frames))

    return make


def prompts(kind: str, objects: tuple[int, ...], t: int = 0) -> Give:
    clicks = {"click": CLICK, "clicks": CLICKS}.get(kind, ())
    return Give("click" if clicks else kind, t, objects, clicks)


# Parity


@pytest.mark.parametrize("objects", [(0,), ALL])
@pytest.mark.parametrize("kind", ["mask", "box", "click"])
def test_twenty_frames(kind, objects, scene):
    models, video = pair("loud"), scene(20)
    script = [prompts(kind, objects), Go()]
    expected = upstream(models.theirs, video, script)
    assert difference(ours(models.ours, video, script), expected) < TOLERANCE
    assert torch.stack([x for _, x in expected]).std() > 0.5, "nothing to compare"


@pytest.mark.parametrize("kind", ["mask", "box", "click"])
def test_twenty_frames_of_the_shipped_model(kind, scene):
    """Object by object, as upstream computes, nothing differs. In a batch rounding adds up over the
    frames: with these weights to 0.025 of a logit at worst, so there the masks are compared."""
    models, video = pair("shipped"), scene(20)
    script = [prompts(kind, ALL), Go()]
    expected = upstream(models.theirs, video, script)
    alone = ours(models.ours, video, script, TrackerOptions(object_chunk=1))
    assert difference(alone, expected) < 1e-5
    batched = ours(models.ours, video, script)
    changed = [((a > 0) != (b > 0)).sum() for (_, a), (_, b) in zip(batched, expected, strict=True)]
    assert sum(changed) <= 1e-3 * sum((x > 0).sum() for _, x in expected)


SCRIPTS = {
    "several prompted frames": [
        *(prompts("mask", (0, 1)), prompts("box", (0,), 5), prompts("click", (1,), 6), Go())
    ],
    "late objects": [
        *(prompts("mask", (0,)), prompts("box", (1,), 4), prompts("mask", (2,), 6), Go())
    ],
    "a late object on the way": [
        *(prompts("mask", (0,)), Go(0, 5), prompts("box", (1,), 5), Go(5, 9))
    ],
    "backward": [prompts("box", ALL, 9), Go(reverse=True)],
    "forward, then backward": [
        *(prompts("mask", (0,), 4), prompts("click", (1,), 6), Go(), Go(reverse=True))
    ],
    "backward, then forward": [prompts("mask", (0, 1), 4), Go(reverse=True), Go()],
    "backward from 0": [prompts("mask", (0,)), Go(reverse=True)],
    "clicks together": [prompts("clicks", ALL), Go(0, 6)],
    "clicks in turn": [
        prompts("click", ALL),
        Give("click", 0, ALL, CLICKS[1:2]),
        Give("click", 0, (0,), CLICKS[2:]),
        Go(0, 6),
    ],
    "a click on a mask prompt": [prompts("mask", ALL), prompts("click", (1,)), Go(0, 6)],
    "a box after clicks": [prompts("clicks", ALL), prompts("box", (1,)), Go(0, 6)],
    "the last frame corrected": [
        *(prompts("mask", (0, 1)), Go(0, 6), prompts("clicks", (0,), 5), prompts("mask", (1,), 5)),
        Go(6),
    ],
    "a prompted frame corrected": [prompts("mask", (0, 1)), Go(), prompts("click", (0,)), Go()],
}


@pytest.mark.parametrize("name", SCRIPTS)
def test_other_ways_through_a_video(name, scene):
    models, video = pair("loud"), scene(10)
    expected = upstream(models.theirs, video, SCRIPTS[name])
    assert difference(ours(models.ours, video, SCRIPTS[name]), expected) < TOLERANCE
    # Apart from adding up in another order, which these loud weights blow up, nothing differs.
    one_by_one = ours(models.ours, video, SCRIPTS[name], TrackerOptions(object_chunk=1))
    assert difference(one_by_one, expected) < TOLERANCE / 1000


def test_a_frame_of_long_ago_corrected(scene):
    """Upstream forgets nothing, and so must the tracker here."""
    models, video = pair("loud"), scene(20)
    script = [prompts("mask", (0, 1)), Go(), prompts("click", (0,), 6), prompts("mask", (1,), 6)]
    script.append(Go(7, 9))
    expected = upstream(models.theirs, video, script)
    found = ours(models.ours, video, script, TrackerOptions(history=None))
    assert difference(found, expected) < TOLERANCE
    assert difference(ours(models.ours, video, script), expected) > 10 * TOLERANCE


def test_size_t(scene):
    models, video = pair("t"), scene(3)
    script = [prompts("mask", (0, 1), 1), Go(), Go(reverse=True)]
    expected = upstream(models.theirs, video, script)
    assert difference(ours(models.ours, video, script), expected) < TOLERANCE


@pytest.mark.slow
@pytest.mark.parametrize("objects", [(0,), ALL])
@pytest.mark.parametrize("kind", ["mask", "box", "click"])
def test_twenty_frames_of_size_t(kind, objects, scene):
    models, video = pair("t"), scene(20)
    script = [prompts(kind, objects), Go()]
    expected = upstream(models.theirs, video, script)
    assert difference(ours(models.ours, video, script), expected) < TOLERANCE


# Conventions: what upstream does, and that doing otherwise would show

CLICKED = (prompts("click", (0,)), Go())
MASKED = (prompts("mask", (0,)), Go())
ON_MASK = (prompts("mask", (0,)), prompts("click", (0,)), Go(0, 3))
IN_TURN = (prompts("click", (0,)), Give("click", 0, (0,), CLICKS[1:2]), Go(0, 4))
CORRECTED = (*MASKED[:1], Go(0, 4), prompts("mask", (0,), 3), Go(4))
THERE_AND_BACK = (prompts("mask", (0,), 2), Go(), Go(reverse=True))
LATE = (prompts("mask", (0,)), prompts("mask", (1,), 3), Go())
CONVENTIONS = [  # of BREAK_CONVENTION, or options that break one
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
def by_convention(weights: str, video: Scene, script: tuple, fill: bool) -> tuple[Found, float]:
    """What the tracker gives by upstream's conventions, and how far from upstream it is.

    ``fill``: whether holes are filled, which is a part of the key of the cache.
    """
    found = ours(pair(weights).ours, video, script)
    return found, difference(found, upstream(pair(weights).theirs, video, script))


@pytest.mark.parametrize("weights", ["random", SHIPPED])
@pytest.mark.parametrize(("change", "script"), CONVENTIONS, ids=[str(c[0]) for c in CONVENTIONS])
def test_a_convention_alone_makes_a_difference(change, script, weights, scene, monkeypatch):
    options = change if isinstance(change, dict) else {}
    name = next(iter(options), change)
    if weights == "random":  # loud masks are all stable
        weights = "soft" if name == "choose_by_stability" else "loud"
    elif name == "pointer_positions_by_length":
        pytest.skip("the nano hardly looks at how far a pointer is")
    fill = name.startswith("fill")
    if fill:
        pretend_extension(monkeypatch)
    found, far = by_convention(weights, scene(6), script, fill)
    assert far < TOLERANCE / 10
    if not options:
        BREAK_CONVENTION[name](monkeypatch)
    broken = ours(pair(weights).ours, scene(6), script, TrackerOptions(**options))
    changed = difference(broken, found)
    assert changed > max(4 * far, 1e-3), (changed, far)


def test_each_pixel_to_one_object(scene):
    models, video = pair("loud"), scene(4)
    script = [prompts("box", ALL), Go()]
    models.theirs.non_overlap_masks = True
    try:
        expected = upstream(models.theirs, video, script)
    finally:
        models.theirs.non_overlap_masks = False
    # Upstream's answers to prompts see the objects that were prompted before, and no others; one
    # object a call, because the last bit of a logit decides whose a pixel is.
    options = TrackerOptions(non_overlapping=True, object_chunk=1)
    found = ours(models.ours, video, script, options)[1:]
    assert difference(found, expected[1:]) < TOLERANCE
    assert all(((logits > 0).sum(0) <= 1).all() for _, logits in found)


def test_bfloat16(scene, monkeypatch):
    """With upstream's fused attention what it computes; with ours as near to full precision."""
    models, video = pair("soft"), scene(4)
    with torch.autocast("cpu", torch.bfloat16):
        expected = upstream(models.theirs, video, MASKED)
    exact, mixed = ours(models.ours, video, MASKED), TrackerOptions(autocast=True)
    rounding = difference(expected, exact)
    assert rounding > 1e-4
    assert difference(ours(models.ours, video, MASKED, mixed), exact) < 1.5 * rounding
    fused = torch.nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(attention, "attend", lambda q, k, v, dropout: fused(q, k, v))
    assert difference(ours(models.ours, video, MASKED, mixed), expected) < 1e-4


# Memory


def track_long(num_frames: int, every: int, condition: bool = True) -> list[int]:
    """The state's bytes after each frame of a video that is never in memory as a whole.

    Every so many frames it is prompted again: before the frame is tracked, or to correct it.
    """
    model = pair("loud").ours
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
def test_the_state_does_not_grow(condition):
    """From the eighth prompt on, when ``max_cond_frames`` are kept, or after the first pointers."""
    state = track_long(61, 4, condition)
    assert state[38] == state[58]  # as far from a prompt
    assert max(state[30:]) == max(state[30:40])


@pytest.fixture
def session(scene):
    """A fresh session on ten frames, counting the frames that it reads."""
    read: list[int] = []

    def frame(t: int) -> np.ndarray:
        read.append(t)
        return read_frame(scene(10).folder, t)

    def begin(**options) -> TrackingSession:
        opened = VideoTracker(pair("loud").ours, TrackerOptions(**options)).open(frame, 10, SIZE)
        opened.read = read
        return opened

    return begin


def mask_prompt(scene: Scene, t: int, *objects: int) -> Prompt:
    masks = torch.from_numpy(scene.masks[t, [o % 3 for o in objects]])
    return Prompt(t, torch.tensor(objects), masks=masks)


def test_conditioning_frames_that_are_kept(session, scene):
    opened = session(max_cond_frames=3)
    for t in range(0, 10, 2):  # given ahead they are all there, until they are passed
        opened.add_prompt(mask_prompt(scene(10), t, 0))
    kept = [sorted(opened.banks[0].conditioning) for _ in opened.propagate()]
    assert kept[0] == kept[5] == [0, 2, 4, 6, 8]
    assert kept[6] == [0, 4, 6, 8] and kept[9] == [0, 6, 8]
    free = session(max_cond_frames=None)
    for t in range(10):
        free.add_prompt(mask_prompt(scene(10), t, 0))
        list(free.propagate(t, t + 1))
    assert len(free.banks[0].conditioning) == 10


def test_a_prompt_on_a_forgotten_frame_conditions(session, scene):
    opened = session()
    opened.add_prompt(mask_prompt(scene(10), 0, 0))
    list(opened.propagate())
    opened.add_prompt(mask_prompt(scene(10), 9, 0))
    list(opened.propagate(9))
    assert sorted(opened.banks[0].conditioning) == [0]  # a correction
    opened.banks[0].others.clear()
    opened.add_prompt(mask_prompt(scene(10), 5, 0))
    list(opened.propagate(5))
    assert sorted(opened.banks[0].conditioning) == [0, 5]


# Cost


def test_the_encoder_runs_once_a_frame_and_objects_share_calls(session, scene, monkeypatch):
    model, calls = pair("loud").ours, []
    step = model._track_step
    monkeypatch.setattr(model, "_track_step", lambda t, *a: calls.append(t) or step(t, *a))
    opened = session()
    opened.add_prompt(mask_prompt(scene(10), 0, 0, 1))
    list(opened.propagate(0, 5))
    assert opened.read == [0, 1, 2, 3, 4] and calls == [0, 1, 2, 3, 4]
    opened.add_prompt(mask_prompt(scene(10), 5, 2))
    list(opened.propagate(5, 7))
    assert opened.read == [0, 1, 2, 3, 4, 5, 6]
    assert calls[5:] == [5, 5, 6, 6]  # the late object has other memories than the first two


def test_chunks_of_objects_change_nothing(session, scene):
    found = []
    for options in ({}, {"object_chunk": 2}):
        opened = session(**options)
        opened.add_prompt(mask_prompt(scene(10), 0, *ALL))
        found.append(torch.stack([tracks.mask_logits for tracks in opened.propagate()]))
    assert torch.allclose(*found, atol=TOLERANCE)


# Use


def test_what_a_frame_tells(session, scene):
    opened = session(track_before_prompt=False)
    clicked = prompt(scene(10), prompts("click", (1, 2), 3), 128)
    answer = opened.add_prompt(clicked)
    assert answer.objects == [1, 2] and answer.candidates.shape == (2, 3, 32, 32)
    same = (answer.candidates == answer.mask_logits[:, None]).flatten(2).all(2)
    assert same.any(1).all()
    opened.add_prompt(mask_prompt(scene(10), 5, 7))
    frames = list(opened.propagate())
    assert [f.frame for f in frames] == list(range(3, 10))
    assert [f.objects for f in frames] == [[1, 2]] * 2 + [[1, 2, 7]] * 5
    for tracks in frames:
        count = len(tracks.objects)
        assert tracks.mask_logits.shape == (count, 32, 32) and tracks.iou.shape == (count,)
        assert tracks.object_score.shape == (count,) and tracks.object_score.min() > 0
        assert tracks.masks(SIZE).shape == (count, *SIZE) and tracks.masks(SIZE).dtype == bool
    assert frames[2].iou[2] == 1.0  # a mask prompt's
    empty = next(opened.propagate(0))
    assert empty.objects == [] and empty.masks(SIZE).shape == (0, *SIZE)


def test_an_interrupted_pass_goes_on(session, scene):
    whole, parts = session(), session()
    for opened in (whole, parts):
        opened.add_prompt(mask_prompt(scene(10), 0, 0, 1))
    expected = [t.mask_logits for t in whole.propagate()]
    found = []
    for tracks in parts.propagate():
        found.append(tracks.mask_logits)
        if tracks.frame == 4:
            break
    found += [t.mask_logits for t in parts.propagate(5)]
    assert torch.equal(torch.stack(found), torch.stack(expected))


def test_zeroed_memory_is_not_read(session, scene):
    found = []
    for zero in (False, True):
        opened = session(zero_memory=zero)
        opened.add_prompt(mask_prompt(scene(10), 0, 0))
        found.append([t.mask_logits for t in opened.propagate()])
        kept = list(opened.banks[0].others.values())
        assert all(bool(m.pointer.any()) is not zero for m in kept)
    assert not torch.allclose(found[0][1], found[1][1], atol=TOLERANCE)


def test_the_model_is_left_as_it_was(session, scene):
    model = pair("loud").ours
    before = {k: v for k, v in vars(model.sam_mask_decoder).items() if k.startswith("dynamic")}
    opened = session()
    opened.add_prompt(mask_prompt(scene(10), 0, 0))
    next(opened.propagate())
    after = {k: v for k, v in vars(model.sam_mask_decoder).items() if k.startswith("dynamic")}
    assert before == after and not model.binarize_mask_from_pts_for_mem_enc
    assert not torch.is_inference_mode_enabled()


@pytest.fixture
def warnings():
    told: list[str] = []
    sink = logger.add(lambda message: told.append(message.record["message"]), level="WARNING")
    yield told
    logger.remove(sink)


def test_a_mask_too_small_for_the_model_is_told(session, warnings):
    masks = torch.zeros(1, 720, 1040, dtype=torch.bool)
    masks[0, 5, 5] = True
    answer = session().add_prompt(Prompt(0, torch.tensor([4]), masks=masks))
    assert "object 4 on frame 0 is too small for 128 pixels" in warnings[0]
    assert answer.object_score.item() == -10.0 and not answer.masks(SIZE).any()  # as upstream


def test_a_correction_that_upstream_loses_is_told(session, scene, warnings):
    for options in ({}, {"corrected_frames_condition": True}):
        opened = session(**options)
        opened.add_prompt(mask_prompt(scene(10), 0, 3))
        list(opened.propagate(0, 2))
        opened.add_prompt(mask_prompt(scene(10), 0, 3))
    assert len(warnings) == 1 and "object 3" in warnings[0] and "frame 0" in warnings[0]


def test_what_cannot_be_tracked(session, scene):
    opened = session()
    with pytest.raises(ValueError, match="no object was prompted"):
        opened.propagate()
    with pytest.raises(ValueError, match="prompt on frame 12 of a video of 10 frames"):
        opened.add_prompt(Prompt(12, torch.tensor([0]), masks=torch.ones(1, 8, 8) > 0))
    opened.add_prompt(mask_prompt(scene(10), 0, 0))
    with pytest.raises(ValueError, match="start is 10, but the video has 10 frames"):
        opened.propagate(10)
    with pytest.raises(ValueError, match="object_chunk must be at least 1, got 0"):
        TrackerOptions(object_chunk=0)
    with pytest.raises(ValueError, match="history must be at least 0, got -1"):
        TrackerOptions(history=-1)


def test_former_options_are_read_or_named():
    """Those of older configurations, where they are what the tracker does now."""
    values = {"pil_bicubic": True, "previous_logits_limit": 32, "history": None}
    assert TrackerOptions.from_values(values) == TrackerOptions(history=None)
    with pytest.raises(ValueError, match="read_other_direction=False is not supported any more"):
        TrackerOptions.from_values({"read_other_direction": False})
    with pytest.raises(TypeError, match="colour"):
        TrackerOptions.from_values({"colour": 1})


def test_a_frame_of_another_size(scene):
    def frame(t: int) -> np.ndarray:
        return np.zeros((*SIZE, 3) if t == 0 else (8, 8, 3), dtype=np.uint8)

    opened = VideoTracker(pair("loud").ours).open(frame, 2, SIZE)
    opened.add_prompt(mask_prompt(scene(10), 0, 0))
    with pytest.raises(DataError, match=r"frame 1 is uint8 \(8, 8, 3\), but the video's frames"):
        list(opened.propagate())
    with pytest.raises(DataError, match="frame 1"):
        opened.add_prompt(mask_prompt(scene(10), 1, 5))
    assert opened.objects == [0]


def test_components_are_those_of_the_extension():
    mask = torch.zeros(2, 1, 4, 5, dtype=torch.bool)
    mask[0, 0, 0, 0] = mask[0, 0, 1, 1] = mask[0, 0, 3, 3:] = True
    labels, areas = connected_components(mask)
    assert labels[0, 0, 0, 0] == labels[0, 0, 1, 1] != labels[0, 0, 3, 3] > 0  # across corners
    assert areas[0, 0][mask[0, 0]].tolist() == [2, 2, 2, 2]
    assert not labels[1].any() and not labels[~mask].any()


def test_the_docs_list_every_option():
    text = (Path(__file__).parents[2] / "docs" / "tracking.md").read_text(encoding="utf-8")
    told = [line.split("`")[1] for line in text.splitlines() if line.startswith("| `")]
    assert sorted(told) == sorted(field.name for field in fields(TrackerOptions))
