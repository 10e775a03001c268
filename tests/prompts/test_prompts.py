"""Test prompts: geometry, properties of the sampling, and the prompt file."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from sam2kit.config.schema import Config, DatasetConfig
from sam2kit.data.clip import VideoClip, collate
from sam2kit.prompts.generator import PromptGenerator
from sam2kit.prompts.geometry import (
    box_to_points,
    mask_center,
    mask_to_box,
    rescale_points,
    sample_negative_points,
    sample_points,
)
from sam2kit.prompts.io import load_prompts, save_prompts
from sam2kit.prompts.prompt import Prompt, group_prompts
from sam2kit.utils.errors import ConfigError, DataError

SIZE = 32


def disc(x, y, radius, size=SIZE):
    rows, columns = np.mgrid[:size, :size]
    return (columns - x) ** 2 + (rows - y) ** 2 <= radius**2


def make_clip(name="video", seed=0, objects=2, frames=3):
    """A clip of moving discs; its frames are frames 4, 5, ... of the video."""
    rng = np.random.default_rng(seed)
    masks = np.zeros((frames, objects, SIZE, SIZE), dtype=bool)
    for o in range(objects):
        x, y, radius = rng.integers(6, 20), rng.integers(6, 26), rng.integers(2, 5)
        for t in range(frames):
            masks[t, o] = disc(x + 2 * t, y, radius)
    return VideoClip(
        frames=torch.zeros(frames, 3, SIZE, SIZE, dtype=torch.uint8),
        masks=torch.from_numpy(masks),
        annotated=torch.ones(frames, objects, dtype=torch.bool),
        name=name,
        frame_indices=list(range(4, 4 + frames)),
        object_ids=list(range(1, objects + 1)),
    )


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def of_object(prompts, position):
    """The prompt of one object as (frame, kind, contents)."""
    for prompt in prompts:
        hits = (prompt.objects == position).nonzero()
        if len(hits):
            contents = prompt.masks if prompt.masks is not None else prompt.points
            return prompt.frame, prompt.kind, contents[hits[0, 0]].tolist()
    return None


# Geometry ---------------------------------------------------------------------------------------


def test_box_is_tight_and_inclusive():
    masks = torch.zeros(2, 8, 10, dtype=torch.bool)
    masks[0, 2:5, 3:9] = True
    masks[1, 7, 0] = True
    assert mask_to_box(masks).tolist() == [[3, 2, 8, 4], [0, 7, 0, 7]]


def test_empty_mask_has_no_box_and_no_centre():
    with pytest.raises(ValueError, match="empty mask"):
        mask_to_box(torch.zeros(1, 4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="empty mask"):
        mask_center(np.zeros((4, 4), dtype=bool))


def test_rescaled_points_keep_their_place_in_the_frame():
    corners = np.array([[0, 0], [7, 3]])
    expected = [[0.5, 0.5], [14.5, 6.5]]  # the centres of 2 x 2 pixels
    assert rescale_points(corners, (4, 8), (8, 16)).tolist() == expected
    assert rescale_points(torch.from_numpy(corners), (4, 8), (8, 16)).tolist() == expected
    assert rescale_points(np.array(expected), (8, 16), (4, 8)).tolist() == corners.tolist()


def test_box_as_points():
    points, labels = box_to_points(torch.tensor([[3, 2, 8, 4]]))
    assert points.tolist() == [[[3, 2], [8, 4]]] and points.dtype == torch.float32
    assert labels.tolist() == [[2, 3]] and labels.dtype == torch.int32


def test_centre_of_a_ring_is_on_the_ring():
    ring = disc(16, 16, 12) & ~disc(16, 16, 6)
    x, y = mask_center(ring)
    assert ring[y, x] and not ring[16, 16]


def test_frame_border_counts_as_background_for_the_centre():
    assert mask_center(np.ones((9, 13), dtype=bool)) in {(x, 4) for x in range(4, 9)}


def test_centre_equals_the_one_of_upstream():
    upstream = pytest.importorskip("sam2.modeling.sam2_utils")
    for mask in (disc(5, 9, 4), disc(0, 0, 7), disc(16, 16, 12) & ~disc(20, 16, 6)):
        truth = torch.from_numpy(mask)[None, None]
        points, labels = upstream.get_next_point(truth, None, "center")
        assert labels.tolist() == [[1]]
        assert points[0, 0].tolist() == list(mask_center(mask))


# Sampling ---------------------------------------------------------------------------------------


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 2**32 - 1),
    count=st.integers(0, 12),
    fill=st.floats(0.01, 0.99),
    height=st.integers(3, 20),
    width=st.integers(3, 20),
)
def test_sampled_points_are_distinct_and_in_their_region(seed, count, fill, height, width):
    mask = np.random.default_rng(seed).random((height, width)) < fill
    mask[0, 0] = True
    inside = sample_points(mask, count, np.random.default_rng(seed))
    outside = sample_negative_points(mask, count, np.random.default_rng(seed))
    assert len(inside) == min(count, mask.sum())
    assert len(outside) == min(count, (~mask).sum())
    assert all(mask[int(y), int(x)] for x, y in inside)
    assert not any(mask[int(y), int(x)] for x, y in outside)
    assert len({tuple(p) for p in inside}) == len(inside)  # without replacement


def test_sampling_is_uniform():
    mask = disc(8, 8, 3, size=16)
    rng = np.random.default_rng(0)
    hits = np.zeros(mask.shape)
    for _ in range(4000):
        x, y = sample_points(mask, 1, rng)[0].astype(int)
        hits[y, x] += 1
    expected = 4000 / mask.sum()
    assert (hits[mask] > 0.5 * expected).all() and (hits[mask] < 1.6 * expected).all()


def test_negative_clicks_are_near_the_object_if_there_is_room():
    mask = np.zeros((64, 64), dtype=bool)
    mask[20:40, 20:28] = True  # longer side 20, so a margin of 5
    points = sample_negative_points(mask, 200, np.random.default_rng(0))
    assert len(points) == 200
    assert points[:, 0].min() >= 15 and points[:, 0].max() <= 32
    assert points[:, 1].min() >= 15 and points[:, 1].max() <= 44


def test_negative_clicks_of_each_kind_are_in_their_region():
    mask, other = disc(10, 16, 6), disc(20, 16, 5)
    free = disc(10, 16, 8.5) & ~mask  # within two pixels
    for kind, region in (("border", free), ("object", other & ~mask), ("anywhere", ~mask)):
        points = [
            sample_negative_points(mask, 3, np.random.default_rng(k), [kind], other)
            for k in range(60)
        ]
        x, y = np.concatenate(points).astype(int).T
        assert region[y, x].all(), kind
        assert len(set(zip(x.tolist(), y.tolist(), strict=True))) > min(60, region.sum() // 2)
    assert other[y, x].any() and not other[y, x].all()


def test_negative_clicks_of_two_kinds_are_mixed_and_distinct():
    mask, other = disc(10, 16, 6), disc(22, 16, 3)
    drawn = []
    for k in range(40):
        points = sample_negative_points(
            mask, 6, np.random.default_rng(k), ["border", "object"], other
        )
        assert len(np.unique(points, axis=0)) == 6
        x, y = points.astype(int).T
        drawn.append(int(other[y, x].sum()))
        assert (other[y, x] | disc(10, 16, 8.5)[y, x]).all() and not mask[y, x].any()
    assert min(drawn) < 3 < max(drawn)


def test_negative_clicks_fall_back_without_other_objects_or_room():
    mask = disc(10, 16, 6)
    near = sample_negative_points(mask, 5, np.random.default_rng(0), ["border"])
    for others in (None, np.zeros_like(mask), mask):
        points = sample_negative_points(mask, 5, np.random.default_rng(0), ["object"], others)
        assert np.array_equal(points, near)
    speck = np.zeros_like(mask)
    speck[0, 31] = True
    points = sample_negative_points(mask, 5, np.random.default_rng(0), ["object"], speck)
    assert len(points) == 5 and len(np.unique(points, axis=0)) == 5


def test_negative_clicks_fall_back_to_the_whole_background():
    mask = np.zeros((40, 8), dtype=bool)
    mask[:20] = True  # the extended box has 5 background rows of 8 pixels
    points = sample_negative_points(mask, 100, np.random.default_rng(0))
    assert len(points) == 100 and points[:, 1].max() > 25


# The generator ----------------------------------------------------------------------------------


@settings(max_examples=30, deadline=None)
@given(
    seed=st.integers(0, 10_000),
    positive=st.integers(1, 5),
    negative=st.integers(0, 5),
    center=st.booleans(),
)
def test_generated_prompts_match_the_masks(seed, positive, negative, center):
    batch = collate([make_clip("a", seed, 1), make_clip("b", seed + 1, 3)])
    generator = PromptGenerator(["point", "box", "mask"], None, positive, negative, center)
    prompts = generator(batch, seeded(seed))
    assert sorted(o for p in prompts for o in p.objects.tolist()) == [0, 1, 2, 3]
    for prompt in prompts:
        truth = batch.masks[prompt.frame, prompt.objects]
        if prompt.kind == "mask":
            assert torch.equal(prompt.masks, truth)
        elif prompt.kind == "box":
            assert torch.equal(prompt.points.flatten(1), mask_to_box(truth).float())
        else:
            assert prompt.labels.tolist() == [[1] * positive + [0] * negative] * len(truth)
            for mask, points in zip(truth, prompt.points.long(), strict=True):
                inside = [bool(mask[y, x]) for x, y in points.tolist()]
                assert inside == [True] * positive + [False] * negative
                if center:
                    assert tuple(points[0].tolist()) == mask_center(mask.numpy())


def test_objects_are_prompted_where_first_visible():
    clip = make_clip(objects=4)
    clip.masks[0, 1] = False  # appears on frame 1
    clip.masks[:, 2] = False  # never visible
    clip.annotated[:2, 3] = False  # unannotated before frame 2
    prompts = PromptGenerator(["mask"])(collate([clip]), seeded())
    assert [(p.frame, p.objects.tolist()) for p in prompts] == [(0, [0]), (1, [1]), (2, [3])]


def test_no_objects_no_prompts():
    clip = make_clip(objects=0)
    assert PromptGenerator(["box"])(collate([clip]), seeded()) == []


def test_same_seed_same_prompts_other_seed_other_prompts():
    batch = collate([make_clip(objects=3)])
    generator = PromptGenerator(["point"], num_positive_points=3, include_center=False)
    assert generator(batch, seeded(1)) == generator(batch, seeded(1))
    assert generator(batch, seeded(1)) != generator(batch, seeded(2))


def test_prompts_of_successive_calls_differ():
    batch, source = collate([make_clip(objects=1)]), seeded()
    generator = PromptGenerator(["point"], num_positive_points=4, include_center=False)
    assert generator(batch, source) != generator(batch, source)


def test_prompt_of_an_object_does_not_depend_on_the_others():
    generator = PromptGenerator(["point", "box", "mask"], None, 3, 2, False)
    a, b = make_clip("a", 1, 2), make_clip("b", 2, 3)
    for seed in range(20):
        together = generator(collate([a, b]), seeded(seed))
        b_alone = generator(collate([b]), seeded(seed))
        last_alone = generator(collate([b.select_objects([2])]), seeded(seed))
        assert of_object(together, 4) == of_object(b_alone, 2) == of_object(last_alone, 0)


def test_types_follow_their_probabilities():
    batch = collate([make_clip(objects=1)])
    generator = PromptGenerator(["mask", "box"], [0.25, 0.75])
    source = seeded()
    kinds = [generator(batch, source)[0].kind for _ in range(400)]
    assert 0.17 < kinds.count("mask") / 400 < 0.33


def test_objects_with_fewer_pixels_than_points_are_grouped_by_their_count():
    clip = make_clip(objects=2)
    clip.masks[0, 1] = False
    clip.masks[0, 1, 5, 5:7] = True  # two pixels
    prompts = PromptGenerator(["point"], num_positive_points=4)(collate([clip]), seeded())
    assert [(p.objects.tolist(), p.points.shape[1]) for p in prompts] == [([1], 2), ([0], 4)]


def test_object_that_fills_the_frame_gets_no_negative_points():
    clip = make_clip(objects=1)
    clip.masks[:] = True
    (prompt,) = PromptGenerator(["point"], num_negative_points=2)(collate([clip]), seeded())
    assert prompt.labels.tolist() == [[1]]


def test_negatives_on_other_objects_of_the_same_clip():
    left, right = make_clip("a", 1, objects=2), make_clip("b", 2, objects=1)
    batch = collate([left, right])
    generator = PromptGenerator(["point"], num_negative_points=2, negative_kinds=["object"])
    clicks = {
        int(o): points[1:].long().tolist()
        for prompt in generator(batch, seeded())
        for o, points in zip(prompt.objects, prompt.points, strict=True)
    }
    for position, other in ((0, 1), (1, 0)):
        assert all(batch.masks[0, other, y, x] for x, y in clicks[position])
    assert not any(batch.masks[0, 2, y, x] for x, y in clicks[2])  # alone in its clip


def test_degraded_masks():
    clip = make_clip(objects=2)
    batch = collate([clip])
    (exact,) = PromptGenerator(["mask"])(batch, seeded())
    assert torch.equal(exact.masks, clip.masks[0])
    overlaps = []
    for seed in range(10):
        (prompt,) = PromptGenerator(["mask"], mask_noise=0.3)(batch, seeded(seed))
        (again,) = PromptGenerator(["mask"], mask_noise=0.3)(batch, seeded(seed))
        assert prompt == again and prompt.masks.flatten(1).any(1).all()
        both, either = prompt.masks & exact.masks, prompt.masks | exact.masks
        overlaps += (both.sum((1, 2)) / either.sum((1, 2))).tolist()
    assert 0.3 < np.mean(overlaps) < 0.95 and torch.equal(batch.masks, clip.masks)
    config = Config(dataset=DatasetConfig(mask_noise=0.3))
    assert PromptGenerator.from_config(config.dataset).noise.level == 0.3
    assert PromptGenerator.from_config(config.validation_dataset()).noise.level == 0


def test_from_config():
    config = DatasetConfig(
        prompt_types=["point", "box"],
        prompt_probabilities=[1.0, 0.0],
        num_positive_points=2,
        num_negative_points=1,
        include_center=False,
    )
    (prompt,) = PromptGenerator.from_config(config)(collate([make_clip()]), seeded())
    assert prompt.labels.tolist() == [[1, 1, 0]] * 2


@pytest.mark.parametrize(
    ("arguments", "key"),
    [
        ({"prompt_types": ["scribble"]}, "prompt_types"),
        ({"prompt_types": []}, "prompt_types"),
        ({"prompt_types": ["box"], "probabilities": [0.5, 0.5]}, "prompt_probabilities"),
        ({"prompt_types": ["box", "mask"], "probabilities": [0.5, 0.4]}, "prompt_probabilities"),
        ({"prompt_types": ["box", "mask"], "probabilities": [1.5, -0.5]}, "prompt_probabilities"),
        ({"prompt_types": ["point"], "num_positive_points": 0}, "num_positive_points"),
        ({"prompt_types": ["point"], "num_negative_points": -1}, "num_negative_points"),
        ({"prompt_types": ["point"], "negative_kinds": ["far"]}, "negative_kinds"),
        ({"prompt_types": ["mask"], "mask_noise": -0.1}, "mask_noise"),
    ],
)
def test_invalid_settings_are_rejected(arguments, key):
    with pytest.raises(ConfigError) as error:
        PromptGenerator(**arguments)
    keys = {str(problem.key).partition("[")[0] for problem in error.value.problems}
    assert keys == {f"dataset.{key}"}


# The dataclass ----------------------------------------------------------------------------------

ONE = torch.tensor([0])
POINTS, LABELS = torch.zeros(1, 2, 2), torch.ones(1, 2, dtype=torch.int32)
MASK = torch.ones(1, 4, 4, dtype=torch.bool)


@pytest.mark.parametrize(
    "arguments",
    [
        {"objects": ONE},
        {"objects": ONE, "masks": MASK, "points": POINTS, "labels": LABELS},
        {"objects": ONE, "points": POINTS},
        {"objects": ONE, "masks": ~MASK},
        {"objects": ONE, "masks": MASK.float()},
        {"objects": torch.tensor([0, 1]), "masks": MASK},
        {"objects": ONE.float(), "masks": MASK},
        {"objects": ONE[:0], "masks": MASK[:0]},
        {"objects": ONE, "points": POINTS[0], "labels": LABELS},
        {"objects": ONE, "points": POINTS, "labels": LABELS[:, :1]},
        {"objects": ONE, "points": POINTS[:, :0], "labels": LABELS[:, :0]},
        {"objects": ONE, "points": POINTS.double(), "labels": LABELS},
    ],
)
def test_malformed_prompts_are_rejected(arguments):
    with pytest.raises(ValueError, match="prompt"):
        Prompt(0, **arguments)


def test_kinds():
    corners = torch.tensor([[2, 3]], dtype=torch.int32)
    assert Prompt(0, ONE, masks=MASK).kind == "mask"
    assert Prompt(0, ONE, points=POINTS, labels=LABELS).kind == "point"
    assert Prompt(0, ONE, points=POINTS, labels=corners).kind == "box"


def test_prompts_are_grouped_by_frame_kind_and_number_of_points():
    corners = torch.tensor([[2, 3]], dtype=torch.int32)
    prompts = [
        Prompt(1, torch.tensor([0]), points=POINTS, labels=LABELS),
        Prompt(0, torch.tensor([1]), points=POINTS, labels=corners),
        Prompt(1, torch.tensor([2]), points=POINTS, labels=LABELS),
        Prompt(1, torch.tensor([3]), points=POINTS, labels=corners),
    ]
    grouped = group_prompts(prompts)
    assert [(p.frame, p.kind, p.objects.tolist()) for p in grouped] == [
        (0, "box", [1]),
        (1, "box", [3]),
        (1, "point", [0, 2]),
    ]


# The file ---------------------------------------------------------------------------------------


@pytest.fixture
def saved(tmp_path):
    a, b = make_clip("a", 1, 2), make_clip("b", 2, 3)
    b.masks[0, 1] = False
    b.object_ids = ["cat", "7", 7]
    batch = collate([a, b])
    source = PromptGenerator(["mask", "box", "point"], None, 2, 1)
    seed = next(s for s in range(50) if len({p.kind for p in source(batch, seeded(s))}) == 3)
    prompts = source(batch, seeded(seed))
    path = tmp_path / "prompts.json"
    save_prompts(path, prompts, batch)
    return path, prompts, batch, (a, b)


def test_round_trip(saved):
    path, prompts, batch, _ = saved
    assert load_prompts(path, batch) == prompts


def test_entries_are_matched_to_the_objects_of_another_batch(saved):
    path, prompts, _, (a, b) = saved
    reordered = load_prompts(path, collate([b, a]))
    assert of_object(reordered, 0) == of_object(prompts, 2)
    assert of_object(reordered, 3) == of_object(prompts, 0)
    one_clip = load_prompts(path, collate([a]))
    assert of_object(one_clip, 1) == of_object(prompts, 1)
    assert of_object(one_clip, 2) is None


def test_file_has_the_image_size_and_frame_numbers_of_the_video(saved):
    path, _, _, _ = saved
    document = json.loads(path.read_text())
    assert document["image_size"] == [SIZE, SIZE]
    entries = [entry for entry in document["prompts"] if entry["object_id"] == "7"]
    assert [entry["frame_index"] for entry in entries] == [5]


def test_batch_with_the_same_object_twice_cannot_be_saved(tmp_path):
    clip = make_clip()
    batch = collate([clip, clip])
    prompts = PromptGenerator(["mask"])(batch, seeded())
    with pytest.raises(ValueError, match="twice"):
        save_prompts(tmp_path / "prompts.json", prompts, batch)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.update(version=0), "'version'"),
        (lambda d: d.update(image_size=[64, 64]), "'image_size'.*dataset.image_size"),
        (lambda d: d.update(image_size=[60_000, 60_000]), "'image_size'.*pixels"),
        (lambda d: d.update(prompts={}), "'prompts'"),
        (lambda d: d["prompts"].append(3), r"prompts\[5\]"),
        (lambda d: d["prompts"][0].pop("video"), r"prompts\[0\].*'video'"),
        (lambda d: d["prompts"][0].pop("frame_index"), r"prompts\[0\].*'frame_index'"),
        (lambda d: d["prompts"][0].update(frame_index=99), "'frame_index' is 99"),
        (lambda d: d["prompts"][0].update(object_id="dog"), "'object_id' is 'dog'"),
        (lambda d: d["prompts"][0].update(object_id=[1]), r"'object_id' is \[1\]"),
        (lambda d: d["prompts"][0].update(kind="text"), "'kind'"),
        (lambda d: d["prompts"][0].update(kind="box", box=[1, 2, 3, 99]), "'box'.*outside"),
        (lambda d: d["prompts"][0].update(kind="box", box=[1, 2, 3]), "'box' cannot be read"),
        (lambda d: d["prompts"][0].update(kind="mask", mask={"size": [4, 4]}), "'mask' cannot"),
        (
            lambda d: d["prompts"][0].update(
                kind="mask", mask={"size": [SIZE, SIZE], "counts": "1"}
            ),
            "'mask' cannot.*its runs must",
        ),
        (lambda d: d["prompts"][0].update(kind="point", points="x", labels=[1]), "'points' cannot"),
        (
            lambda d: d["prompts"][0].update(
                kind="point", points=[[1, 2]] * 200_000, labels=[1] * 200_000
            ),
            "cannot.*the maximum is",
        ),
        (
            lambda d: d["prompts"][0].update(kind="point", points=[[1, 2]], labels=[1, 1]),
            "'labels' cannot",
        ),
    ],
)
def test_error_of_a_damaged_file_names_file_and_field(saved, change, message):
    path, _, batch, _ = saved
    document = json.loads(path.read_text())
    change(document)
    path.write_text(json.dumps(document))
    with pytest.raises(DataError, match=f"prompts.json.*{message}") as error:
        load_prompts(path, batch)
    assert error.value.hint


def test_missing_and_unreadable_files(tmp_path):
    batch = collate([make_clip()])
    with pytest.raises(DataError, match="no such file"):
        load_prompts(tmp_path / "prompts.json", batch)
    (tmp_path / "prompts.json").write_text("{")
    with pytest.raises(DataError, match="not a JSON file"):
        load_prompts(tmp_path / "prompts.json", batch)
