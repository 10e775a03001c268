"""Test correction clicks and additional conditioning frames: positions, and what they depend on."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import moving_clip

from sam2kit.data.clip import collate
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.prompts.corrections import (
    CorrectionGenerator,
    Corrections,
    correction_clicks,
)
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.geometry import jitter_box, mask_to_box, sample_points
from sam2kit.prompts.prompt import Prompt
from sam2kit.utils.errors import ConfigError


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def square(size: int = 8, start: int = 2, stop: int = 6) -> np.ndarray:
    mask = np.zeros((size, size), bool)
    mask[start:stop, start:stop] = True
    return mask


def correction_click(
    truth: np.ndarray, predicted: np.ndarray, generator: np.random.Generator
) -> tuple[np.ndarray, int]:
    """Draw a click as :func:`correction_clicks`, for one object in numpy; the reference."""
    region = truth ^ predicted
    if not region.any():
        region = truth if truth.all() else ~truth
    point = sample_points(region, 1, generator)[0]
    return point, int(truth[int(point[1]), int(point[0])])


def test_clicks_are_uniform_on_the_error_and_have_the_label_of_the_truth():
    truth, predicted = square(4, 0, 2), square(4, 1, 3)
    error = truth ^ predicted
    rng = np.random.default_rng(0)
    counts: Counter = Counter()
    for _ in range(3000):
        point, label = correction_click(truth, predicted, rng)
        x, y = map(int, point)
        assert error[y, x] and label == truth[y, x]
        counts[x, y] += 1
    assert len(counts) == error.sum()
    assert max(counts.values()) < 1.3 * 3000 / error.sum()


def test_click_on_a_correct_prediction_is_negative_and_on_the_background():
    rng = np.random.default_rng(0)
    for truth in (square(), np.zeros((8, 8), bool)):
        for _ in range(20):
            point, label = correction_click(truth, truth, rng)
            assert label == 0 and not truth[int(point[1]), int(point[0])]
    everything = np.ones((8, 8), bool)
    assert correction_click(everything, everything, rng)[1] == 1


def test_clicks_have_the_labels_and_regions_of_upstream():
    """For the same masks, upstream's function draws from the same pixels, with the same labels."""
    from sam2.modeling.sam2_utils import sample_random_points_from_errors

    truth, predicted = square(4, 0, 2), square(4, 1, 3)
    rng = np.random.default_rng(0)
    actual = {
        (*map(int, point), label)
        for point, label in (correction_click(truth, predicted, rng) for _ in range(500))
    }
    torch.manual_seed(0)
    masks = [torch.from_numpy(m)[None, None] for m in (truth, predicted)]
    points, labels = sample_random_points_from_errors(*masks, num_pt=500)
    expected = {
        (*map(int, p), int(label)) for p, label in zip(points[0].tolist(), labels[0], strict=True)
    }
    assert actual == expected


def blobs(count: int, seed: int, side: int = 24) -> torch.Tensor:
    """Make random masks; some are empty, some full, and some equal in both calls."""
    random = torch.Generator().manual_seed(seed)
    noise = torch.rand(count, 1, 5, 5, generator=random)
    masks = torch.nn.functional.interpolate(noise, (side, side), mode="bicubic")[:, 0] > 0.5
    masks[::11], masks[1::13], masks[2::7] = False, True, masks[:1]
    return masks


def test_clicks_on_a_device_equal_those_of_the_reference():
    """1,000 pairs of masks; the numbers include some that favour pixels and are drawn again."""
    truth, predicted = blobs(1000, 0), blobs(1000, 1)
    seeds = [(7, i) for i in range(1000)]
    corrections = Corrections(torch.ones(1, 1000).bool(), 2, truth[None], seeds, from_truth=0.3)
    for number in range(2):
        points, labels = corrections.click(0, number, torch.arange(1000), predicted)
        for i in range(1000):
            rng = np.random.default_rng((*seeds[i], 0, number))
            wrong = np.zeros((24, 24), bool) if rng.random() < 0.3 else predicted[i].numpy()
            point, label = correction_click(truth[i].numpy(), wrong, rng)
            assert (points[i, 0].tolist(), int(labels[i])) == (point.tolist(), label)


def test_unfair_numbers_are_drawn_again():
    """Among 3 pixels, the number 0 would favour the first one (2^32 is no multiple of 3)."""
    truth = torch.zeros(1, 1, 4, dtype=torch.bool)
    truth[..., :3] = True
    numbers = [torch.tensor([0]), torch.tensor([2**32 - 1])]
    points, labels = correction_clicks(truth, torch.zeros_like(truth), numbers)
    assert points.tolist() == [[[2, 0]]] and labels.tolist() == [[1]]


def test_clicks_lie_where_upstream_clicks():
    """On 1,000 pairs of masks: upstream draws from the same region, with the same labels."""
    from sam2.modeling.sam2_utils import sample_random_points_from_errors

    truth, predicted = blobs(1000, 2), blobs(1000, 3)
    keep = ~truth.flatten(1).all(1)  # there upstream clicks on the object as if it were background
    truth, predicted = truth[keep], predicted[keep]
    seeds = [(i,) for i in range(len(truth))]
    corrections = Corrections(torch.ones(1, len(truth)).bool(), 1, truth[None], seeds)
    points, labels = corrections.click(0, 0, torch.arange(len(truth)), predicted)
    torch.manual_seed(0)
    expected, their_labels = sample_random_points_from_errors(truth[:, None], predicted[:, None])
    error = truth ^ predicted
    rows = torch.arange(len(truth))
    for positions, values in ((points, labels), (expected, their_labels)):
        x, y = positions[:, 0].long().unbind(1)
        assert torch.equal(error[rows, y, x], error.flatten(1).any(1))
        assert torch.equal(truth[rows, y, x], values[:, 0].bool())


def prompted(kind: str, batch, max_frames: int = 1, seed: int = 0) -> list[Prompt]:
    return PromptGenerator([kind], max_frames=max_frames)(batch, generator(seed))


@pytest.mark.parametrize("kind", ["box", "point"])
def test_prompted_frames_and_up_to_max_frames_in_total_are_corrected(batch, kind):
    seen = set()
    for seed in range(40):
        prompts = prompted(kind, batch, max_frames=2, seed=seed)
        corrections = CorrectionGenerator(7, 2)(batch, prompts, generator(seed))
        counts = corrections.frames.sum(0)
        for prompt in prompts:
            assert corrections.frames[prompt.frame, prompt.objects].all()
        assert counts.min() >= 1 and counts.max() <= 2 and corrections.clicks == 7
        frames = sum(prompt.objects.eq(0).any() for prompt in prompts)
        seen.add((int(frames), int(counts[0])))
        # Objects of one clip are corrected on the same frames.
        assert (corrections.frames[:, 1:] == corrections.frames[:, 1:2]).all()
    assert seen == {(1, 1), (1, 2), (2, 2)}


def test_mask_prompts_are_not_corrected(batch):
    assert CorrectionGenerator(7, 2)(batch, prompted("mask", batch), generator()) is None
    assert CorrectionGenerator(0)(batch, prompted("box", batch), generator()) is None


def test_unannotated_frames_and_frames_before_the_first_prompt_are_not_corrected():
    clip = moving_clip(1, num_frames=4)
    clip.masks[0] = False
    clip.annotated[2] = False
    batch = collate([clip])
    for seed in range(30):
        frames = CorrectionGenerator(1, 3)(batch, prompted("box", batch), generator(seed)).frames
        assert frames[1, 0] and not frames[0, 0] and not frames[2, 0]


def test_clicks_of_an_object_do_not_depend_on_other_objects():
    clip = moving_clip(3)
    prediction = torch.zeros(64, 64, dtype=torch.bool)

    def clicks(batch, position):
        corrections = CorrectionGenerator(3)(batch, prompted("point", batch), generator(5))
        return [
            corrections.click(0, number, torch.tensor([position]), prediction[None])[0].tolist()
            for number in range(3)
        ]

    clip.object_ids = [1, 2, 3]
    alone, together = collate([clip.select_objects([1])]), collate([clip])
    assert clicks(alone, 0) == clicks(together, 1) != clicks(together, 0)
    assert len({str(c) for c in clicks(alone, 0)}) == 3


def test_clicks_from_the_truth_are_positive(batch):
    frames = torch.ones(4, 4, dtype=torch.bool)
    corrections = Corrections(frames, 1, batch.masks, [(i,) for i in range(4)], from_truth=1.0)
    objects = torch.arange(4)
    points, labels = corrections.click(1, 0, objects, batch.masks[1])  # no error
    assert labels.flatten().tolist() == [1] * 4
    for o, (x, y) in enumerate(points[:, 0].long().tolist()):
        assert batch.masks[1, o, y, x]
    corrections = replace(corrections, from_truth=0.0)
    assert corrections.click(1, 0, objects, batch.masks[1])[1].flatten().tolist() == [0] * 4


@pytest.mark.parametrize(
    ("numbers", "key"),
    [
        ((-1, 1, 0.0), "correction_clicks"),
        ((1, 0, 0.0), "max_correction_frames"),
        ((1, 1, 1.5), "correction_from_truth"),
    ],
)
def test_numbers_out_of_range_are_rejected(numbers, key):
    with pytest.raises(ConfigError) as error:
        CorrectionGenerator(*numbers)
    assert [problem.key for problem in error.value.problems] == [f"dataset.{key}"]


def test_model_rejects_corrections_that_do_not_fit_the_prompts(tiny_config, batch):
    model = create_sam2_model(tiny_config).eval()
    frames = torch.zeros(4, 4, dtype=torch.bool)
    frames[0, 0] = True
    corrections = Corrections(frames, 1, batch.masks, [(i,) for i in range(4)])
    with pytest.raises(ValueError, match="mask prompt on frame 0"):
        model(batch, prompted("mask", batch), corrections)
    late = Prompt(1, torch.tensor([0]), masks=batch.masks[1, :1])
    with pytest.raises(ValueError, match="before its first prompt"):
        model(batch, [late], corrections)


def test_corrections_of_an_object_do_not_change_other_objects(tiny_config):
    """In one batch, objects are corrected on different frames or on none."""
    model = create_sam2_model(tiny_config).eval()
    clip = moving_clip(3)
    batch = collate([clip])
    prompts = prompted("box", batch)
    frames = torch.zeros(4, 3, dtype=torch.bool)
    frames[0, 0] = frames[2, 0] = frames[0, 1] = True
    seeds = [(i,) for i in range(3)]
    with torch.no_grad():
        together = model(batch, prompts, Corrections(frames, 2, batch.masks, seeds))
        for i in range(3):
            one = collate([clip.select_objects([i])])
            boxes = Prompt(
                0,
                torch.tensor([0]),
                points=prompts[0].points[i : i + 1],
                labels=prompts[0].labels[:1],
            )
            corrections = Corrections(frames[:, i : i + 1], 2, one.masks, [seeds[i]])
            alone = model(one, [boxes], corrections)
            assert torch.allclose(together.mask_logits[:, i], alone.mask_logits[:, 0], atol=1e-4)
    assert together.prompted.sum(0).tolist() == [2, 1, 1] and together.tracked.all()
    per_object = Counter(int(o) for step in together.steps for o in step.objects)
    assert per_object == {0: 4 + 4, 1: 4 + 2, 2: 4}


def test_objects_of_a_clip_share_additional_conditioning_frames_where_visible():
    clip = moving_clip(3, num_frames=6)
    clip.masks[3:, 2] = False  # the third object disappears
    batch = collate([clip])
    counts = Counter()
    for seed in range(60):
        frames = {o: [] for o in range(3)}
        for prompt in prompted("mask", batch, max_frames=3, seed=seed):
            for o in prompt.objects.tolist():
                frames[o].append(prompt.frame)
                assert batch.visible[prompt.frame, o]
        assert all(f[0] == 0 and len(f) == len(set(f)) <= 3 for f in frames.values())
        assert frames[0] == frames[1]
        counts[len(frames[0])] += 1
    assert set(counts) == {1, 2, 3} and min(counts.values()) > 8


def test_default_is_one_conditioning_frame(batch):
    assert prompted("point", batch) == prompted("point", batch, max_frames=1)
    assert {p.frame for p in prompted("point", batch)} == {0}


def test_box_noise_is_limited_by_share_pixels_and_frame():
    rng = np.random.default_rng(0)
    box = torch.tensor([10, 20, 49, 219])
    moved = torch.stack([jitter_box(box, 0.2, (256, 256), rng) for _ in range(300)]) - box
    reach = torch.tensor(
        [7.8, 20.0, 7.8, 20.0]
    )  # 20 % of 39 columns; at most 20 pixels of 199 rows
    assert (moved.abs() <= reach + 1e-4).all()
    assert (moved.amax(0) > 0.9 * reach).all() and (moved.amin(0) < -0.9 * reach).all()
    at_the_border = jitter_box(torch.tensor([0, 0, 63, 63]), 0.3, (64, 64), rng)
    assert at_the_border.min() >= 0 and at_the_border.max() <= 63


def test_noisy_box_is_close_to_the_tight_box(batch):
    (prompt,) = PromptGenerator(["box"], box_noise=0.1)(batch, generator())
    tight = mask_to_box(batch.masks[0]).reshape(-1, 2, 2).float()
    assert prompt.kind == "box" and not torch.equal(prompt.points, tight)
    assert (prompt.points - tight).abs().max() < 7
