"""Test noisy prompts, and protocols that prompt a tracker from the ground truth."""

from __future__ import annotations

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sam2kit.config.schema import NOISE_KINDS, EvaluationConfig, options
from sam2kit.evaluation.prompt_protocols import PromptProtocol, follow, to_resized
from sam2kit.evaluation.scores import CONVENTIONS
from sam2kit.models.sam2 import build_sam2_model
from sam2kit.prompts.noise import PromptNoise, grow_mask, move_mask
from sam2kit.tracking.options import TrackerOptions
from sam2kit.tracking.video_tracker import FrameTracks, VideoTracker
from sam2kit.utils.errors import ConfigError

SIZE = (24, 40)


@st.composite
def blobs(draw):
    """Draw a rectangle anywhere in the frame, sometimes without its upper left pixel."""
    y0, x0 = draw(st.integers(0, SIZE[0] - 1)), draw(st.integers(0, SIZE[1] - 1))
    y1, x1 = draw(st.integers(y0, SIZE[0] - 1)), draw(st.integers(x0, SIZE[1] - 1))
    mask = np.zeros(SIZE, bool)
    mask[y0 : y1 + 1, x0 : x1 + 1] = True
    if draw(st.booleans()) and mask.sum() > 1:
        mask[y0, x0] = False
    return mask


LEVELS = st.floats(0, 1)
SEEDS = st.integers(0, 2**32 - 1)
KINDS = st.lists(st.sampled_from(NOISE_KINDS), unique=True).map(tuple)
draws = hypothesis.settings(max_examples=60, deadline=None)


@draws
@given(blobs(), LEVELS, KINDS, SEEDS)
def test_noisy_masks_are_not_empty_and_follow_from_the_seed(mask, level, kinds, seed):
    noise = PromptNoise(level, kinds)
    first, second = (noise.mask(mask, np.random.default_rng(seed)) for _ in range(2))
    assert first.dtype == bool and first.shape == SIZE and first.any()
    assert np.array_equal(first, second)
    if level == 0 or not {"shift", "dilate", "erode"} & set(kinds):
        assert np.array_equal(first, mask)


@draws
@given(blobs(), LEVELS, SEEDS)
def test_each_kind_of_mask_noise_has_its_effect(mask, level, seed):
    def drawn(kind):
        return PromptNoise(level, (kind,)).mask(mask, np.random.default_rng(seed))

    assert not (mask & ~drawn("dilate")).any()
    assert not (drawn("erode") & ~mask).any()
    assert drawn("shift").sum() <= mask.sum()


@draws
@given(blobs(), LEVELS, KINDS, SEEDS)
def test_noisy_boxes_and_points_stay_in_the_frame_and_near_the_object(mask, level, kinds, seed):
    noise = PromptNoise(level, kinds)
    y, x = np.nonzero(mask)
    box = np.array([x.min(), y.min(), x.max(), y.max()])
    moved = noise.box(box, SIZE, np.random.default_rng(seed))
    assert moved.dtype == np.float32 and (moved[:2] <= moved[2:] + 1e-4).all()
    sides = np.tile(box[2:] - box[:2], 2)
    assert (abs(moved - box) <= level * 1.5 * sides + 1e-4).all()
    points = np.stack([x, y], 1)[:3]
    clicks = noise.points(points, mask, np.random.default_rng(seed))
    assert (abs(clicks - points) <= level * np.sqrt(mask.sum()) + 1e-4).all()
    for coordinates in (moved.reshape(2, 2), clicks):
        assert (coordinates >= 0).all() and (coordinates <= [SIZE[1] - 1, SIZE[0] - 1]).all()
    if level == 0:
        assert np.array_equal(moved, box) and np.array_equal(clicks, points)


def test_errors_are_proportional_to_the_level():
    box = np.array([100, 50, 139, 89])
    seeds = range(200)

    def errors(level):
        noise = PromptNoise(level, ("shift",))
        return np.array([noise.box(box, (200, 300), np.random.default_rng(s)) - box for s in seeds])

    assert errors(0.2) == pytest.approx(2 * errors(0.1), abs=1e-4)
    assert 0.95 < abs(errors(0.1)).max() / 3.9 <= 1.0001
    scaled = PromptNoise(0.5, ("scale",)).box(box, (200, 300), np.random.default_rng(0))
    assert scaled.reshape(2, 2).mean(0) == pytest.approx(box.reshape(2, 2).mean(0))
    assert (scaled != box).all()


def test_growing_and_moving_by_hand():
    mask = np.zeros((9, 9), bool)
    mask[3:6, 3:6] = True
    assert grow_mask(mask, 1).sum() == 9 + 12 and grow_mask(mask, -1).sum() == 1
    assert grow_mask(mask, -5).sum() == 1 and grow_mask(mask, 0).sum() == 9
    assert grow_mask(np.ones((5, 5), bool), -2).all()
    moved = move_mask(mask, 2, -1)
    assert moved[2:5, 5:8].all() and moved.sum() == 9
    assert move_mask(mask, 50, 0)[4, 8]  # the centre stays in the frame


def test_invalid_noise_is_rejected():
    with pytest.raises(ConfigError, match="wind"):
        PromptNoise(0.1, ("wind",))
    with pytest.raises(ConfigError, match="at least 0"):
        PromptNoise(-0.1)


def square(row, column, side=6):
    mask = np.zeros(SIZE, bool)
    mask[row : row + side, column : column + side] = True
    return mask


class Recorder:
    """A session that records its prompts and returns given masks.

    Args:
        seen: the mask to return for each object; an empty one for the others.
    """

    num_frames = 6

    def __init__(self, seen=None):
        self.prompts, self.seen, self.objects = [], seen or {}, []

    def add_prompt(self, prompt):
        self.prompts.append(prompt)
        self.objects += [n for n in prompt.objects.tolist() if n not in self.objects]
        return self._answer(prompt.frame, prompt.objects.tolist())

    def propagate(self, start, stop):
        return (self._answer(t, list(self.objects)) for t in range(start, stop))

    def _answer(self, t, objects):
        shown = np.stack([self.seen.get(n, np.zeros(SIZE, bool)) for n in objects])
        logits = torch.from_numpy(np.where(shown, 5.0, -5.0).astype(np.float32))
        return FrameTracks(t, objects, logits, torch.ones(len(objects)), torch.ones(len(objects)))


def run(protocol, truth, session):
    return list(follow(session, truth.get, protocol, "video", 40))


def test_objects_are_prompted_when_first_visible_and_again_when_due():
    empty = np.zeros(SIZE, bool)
    truth = {
        0: {"b": empty},
        1: {"b": square(0, 0), 7: empty},
        2: None,
        3: {"b": empty, 7: square(9, 9)},
        4: {"b": square(1, 1), 7: square(9, 10)},
        5: {"b": square(2, 2), 7: square(9, 11)},
    }
    session = Recorder()
    frames = run(PromptProtocol(reprompt_every=2), truth, session)
    assert [f.prompted for f in frames] == [[], ["b"], [], [7], ["b"], [7]]
    assert [(p.frame, p.objects.tolist()) for p in session.prompts] == [
        (1, [0]),
        (3, [1]),
        (4, [0]),
        (5, [1]),
    ]
    assert all(
        np.array_equal(p.masks[0], truth[p.frame][o])
        for p, o in zip(session.prompts, ["b", 7, "b", 7], strict=True)
    )
    assert frames[0].logits(SIZE) == {} and set(frames[2].logits(SIZE)) == {"b"}
    assert frames[5].object_scores() == {"b": 1.0, 7: 1.0}
    once = Recorder()
    run(PromptProtocol(), truth, once)
    assert [p.frame for p in once.prompts] == [1, 3]


def test_clicks_start_at_the_centre_and_correct_the_largest_error():
    truth = {t: {1: square(4, 10, 7), 2: square(14, 30, 5)} for t in range(6)}
    seen = {0: square(4, 10, 7), 1: square(0, 0, 9)}  # the first is correct, the second is not
    session = Recorder(seen)
    run(PromptProtocol("clicks", clicks=3), truth, session)
    first, *corrections = session.prompts
    expected = to_resized(np.array([[[13, 7]], [[32, 16]]]), SIZE, 40)
    assert torch.equal(first.points, expected) and first.labels.tolist() == [[1], [1]]
    assert [p.objects.tolist() for p in corrections] == [[1], [1]]
    wrong = to_resized(np.array([[[4, 4]]]), SIZE, 40)  # deeper than the missed region
    assert torch.equal(corrections[0].points, wrong) and corrections[0].labels.tolist() == [[0]]


def test_boxes_are_tight_and_pixel_centres_map_to_pixel_centres():
    session = Recorder()
    run(PromptProtocol("box"), {0: {1: square(4, 10, 7)}}, session)
    assert session.prompts[0].kind == "box"
    corners = to_resized(np.array([[10, 4], [16, 10]]), SIZE, 40)
    assert torch.equal(session.prompts[0].points[0], corners)
    assert to_resized(np.array([0, 0]), (40, 40), 40).tolist() == [0, 0]
    assert to_resized(np.array([39, 23]), SIZE, 80).tolist() == pytest.approx([78.5, 77.8333], 1e-4)


def test_prompts_depend_on_the_seed_and_not_on_other_objects():
    noise = PromptNoise(0.3)
    one = {0: {1: square(4, 10)}}
    two = {0: {2: square(12, 30), 1: square(4, 10)}}

    def prompts(truth, seed=0):
        session = Recorder()
        run(PromptProtocol("box", noise=noise, seed=seed), truth, session)
        return session.prompts[0].points

    assert torch.equal(prompts(one)[0], prompts(two)[1])
    assert not torch.equal(prompts(one), prompts(one, seed=1))


@pytest.mark.parametrize("kind", ["mask", "box", "clicks"])
def test_a_protocol_prompts_a_real_tracker(tiny_config, kind):
    model = build_sam2_model(tiny_config)
    rng = np.random.default_rng(0)
    frames = rng.integers(0, 255, (6, *SIZE, 3), np.uint8)
    truth = {
        t: {"a": square(4, 2 * t), **({"b": square(14, 20)} if t > 2 else {})} for t in range(6)
    }
    session = VideoTracker(model, TrackerOptions()).open(frames.__getitem__, 6, SIZE)
    protocol = PromptProtocol(kind, clicks=2 if kind == "clicks" else 1, reprompt_every=2)
    tracked = list(follow(session, truth.get, protocol, "video", 64))
    assert [sorted(f.logits(SIZE)) for f in tracked] == [["a"]] * 3 + [["a", "b"]] * 3
    assert [f.prompted for f in tracked] == [["a"], [], ["a"], ["b"], ["a"], ["b"]]
    if kind == "mask":  # the result is the prompted mask, at the resolution of the small model
        mask = tracked[0].logits(SIZE)["a"] > 0
        assert (mask & truth[0]["a"]).sum() / (mask | truth[0]["a"]).sum() > 0.6


def test_the_configuration_lists_all_conventions():
    choices = options()["evaluation.convention"].metadata["choices"]
    assert choices == tuple(CONVENTIONS)


def test_the_protocol_follows_from_the_configuration():
    settings = EvaluationConfig(protocol="clicks", clicks=3, reprompt_every=5, noise=0.1)
    protocol = PromptProtocol.from_config(settings, seed=3)
    assert (protocol.kind, protocol.clicks, protocol.reprompt_every) == ("clicks", 3, 5)
    assert protocol.noise == PromptNoise(0.1) and protocol.seed == 3
    assert PromptProtocol.from_config(settings, 3, noise=0.0).noise.level == 0
