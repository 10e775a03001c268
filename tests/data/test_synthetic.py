"""Test generated videos: exact masks, motion and determinism."""

import json
import multiprocessing
import pickle
import runpy
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from sam2kit.data.sources.base import VideoSource
from sam2kit.data.synthetic.dataset import CompositedDataset, SyntheticDataset
from sam2kit.data.synthetic.scene import Scene
from sam2kit.data.synthetic.textures import Photos
from sam2kit.utils.errors import DataError


class GreySource(VideoSource):
    """Two uniformly grey videos without masks."""

    has_masks = False

    def __init__(self):
        self.names = ["one", "two"]

    def num_frames(self, i):
        return 5 + i

    def read_frame(self, i, t):
        return np.full((48, 80, 3), 100 + 10 * i + t, np.uint8)

    def read_masks(self, i, t):
        return None


def checksum(source):
    return [int(source.read_frame(i, t).astype(int).sum()) for i in (0, 2) for t in (0, 3)]


def test_shapes_and_identities():
    source = SyntheticDataset(6, 8, (64, 96), max_objects=3, seed=1)
    assert len(source) == 6 and source.num_frames(2) == 8 and len(set(source.names)) == 6
    counts = set()
    for i in range(6):
        frame, masks = source.read_frame(i, 0), source.read_masks(i, 0)
        assert frame.shape == (64, 96, 3) and frame.dtype == np.uint8
        assert all(m.shape == (64, 96) and m.dtype == bool and m.any() for m in masks.values())
        assert set(masks) <= {1, 2, 3}
        # A mask covers only the visible part, so no pixel belongs to two objects.
        assert sum(m.astype(int) for m in masks.values()).max() == 1
        counts.add(len(source.scene(i).object_ids))
    assert len(counts) > 1


def test_same_pixels_in_any_order_and_any_process():
    source = SyntheticDataset(4, 6, 64, seed=3)
    forwards = [source.read_frame(1, t) for t in range(6)]
    copy = pickle.loads(pickle.dumps(source))
    for t in reversed(range(6)):
        copy.read_frame(0, t)
        assert np.array_equal(copy.read_frame(1, t), forwards[t])
    with multiprocessing.get_context("spawn").Pool(1) as pool:
        assert pool.apply(checksum, (source,)) == checksum(source)


def test_seeds_videos_and_epochs_differ():
    source, other = SyntheticDataset(2, 4, 64, seed=0), SyntheticDataset(2, 4, 64, seed=1)
    assert not np.array_equal(source.read_frame(0, 0), source.read_frame(1, 0))
    assert not np.array_equal(source.read_frame(0, 0), other.read_frame(0, 0))
    later = source.index_in_epoch(0, 1)
    assert not np.array_equal(source.read_frame(0, 0), source.read_frame(later, 0))
    assert source.name(later) not in source.names and source.num_frames(later) == 4


def test_masks_cover_the_drawn_objects():
    """On a black background, the pixels of the mask are drawn and the others are not."""
    generator = np.random.default_rng(5)
    scene = Scene(generator, 4, (96, 96), max_objects=1, max_distractors=0, background=False)
    behind = np.zeros((96, 96, 3), np.uint8)
    for t in range(4):
        drawn = scene.frame(t, behind).max(-1) > 0
        mask = scene.masks(t)[1]
        assert (drawn & mask).sum() > 0.95 * mask.sum()
        edge = drawn & ~mask  # less than half covered
        assert edge.sum() < 0.25 * mask.sum()
    assert not behind.any()  # the frame that was passed in is untouched


def test_distractors_and_nearer_objects_occlude():
    hidden = 0
    for seed in range(30):
        scene = Scene(np.random.default_rng(seed), 8, (64, 64), max_objects=3)
        for t in range(8):
            for k, n in scene.object_ids.items():
                rows, columns, alpha = scene._coverage(scene.shapes[k], t)
                whole = np.zeros((64, 64), bool)
                whole[rows, columns] = alpha >= 128
                mask = scene.masks(t).get(n, np.zeros_like(whole))
                assert not (mask & ~whole).any()
                hidden += (whole & ~mask).sum() > 0.2 * whole.sum()
    assert hidden > 30


def shows_all_objects(scene):
    """Return whether every object covers at least a fiftieth of the first frame."""
    masks = scene.masks(0)
    return len(masks) == len(scene.object_ids) and min(m.mean() for m in masks.values()) >= 0.02


def copied_mask_iou(scene, num_frames):
    """Compute the mean IoU of the first masks copied to all later frames."""
    scores = []
    for t in range(1, num_frames):
        later = scene.masks(t)
        for n, mask in scene.masks(0).items():
            truth = later.get(n, np.zeros_like(mask))
            scores.append((mask & truth).sum() / (mask | truth).sum())
    return np.mean(scores)


def test_motion_lowers_the_score_of_copied_masks():
    def copied(motion):
        source = SyntheticDataset(40, 8, 128, seed=0, motion=motion)
        clips = [i for i in range(40) if shows_all_objects(source.scene(i))]
        return np.mean([copied_mask_iou(source.scene(i), 8) for i in clips])

    still, default, fast = copied(0.0), copied(0.14), copied(0.3)
    assert still > 0.6 and default <= 0.35 and fast < 0.2


def test_objects_move_less_than_their_size_per_frame():
    for seed in range(20):
        scene = Scene(np.random.default_rng(seed), 30, (128, 128))
        for shape in scene.shapes:
            steps = np.linalg.norm(np.diff(shape.centers, axis=0), axis=1)
            assert steps.max() < 2 * shape.radius
            assert (shape.centers > 0).all() and (shape.centers < 128).all()


def test_objects_are_composited_onto_the_frames():
    source = CompositedDataset(GreySource(), max_objects=2, seed=4)
    assert source.has_masks and source.names == ["one", "two"] and source.num_frames(1) == 6
    frame, masks = source.read_frame(0, 2), source.read_masks(0, 2)
    assert masks and frame.shape == (48, 80, 3)
    untouched = (frame == 102).all(-1)
    assert 0.2 < untouched.mean() < 0.99
    for mask in masks.values():
        assert not (untouched & mask).sum() > 0.1 * mask.sum()
    again = source.index_in_epoch(0, 3)
    assert source.name(again) == "one" and source.num_frames(again) == 5
    assert not np.array_equal(source.read_frame(again, 2), frame)


def test_compositing_rejects_frames_that_differ_in_size():
    class Growing(GreySource):
        def read_frame(self, i, t):
            return np.zeros((48 + t, 80, 3), np.uint8)

    source = CompositedDataset(Growing())
    with pytest.raises(DataError, match="'one': frame 00001 has size"):
        source.read_frame(0, 1)


@pytest.mark.parametrize(
    "wrong", [{"num_videos": 0}, {"num_frames": 0}, {"max_objects": 0}, {"seed": -1}, {"size": 8}]
)
def test_numbers_out_of_range_are_rejected(wrong):
    arguments = {"num_videos": 2, "num_frames": 2, "size": 32} | wrong
    with pytest.raises(DataError) as error:
        SyntheticDataset(**arguments)
    assert {error.value.key: error.value.value} == wrong
    if "max_objects" in wrong:
        with pytest.raises(DataError) as error:
            CompositedDataset(GreySource(), max_objects=0)
        assert error.value.key == "max_objects"


def lifelike(count=40, num_frames=8, size=96, **changes):
    return SyntheticDataset(count, num_frames, size, seed=2, lifelike=True, **changes)


def test_lifelike_objects_disappear_and_return():
    source, gone, back, total = lifelike(), 0, 0, 0
    for i in range(len(source)):
        visible = np.array(
            [
                [n in source.read_masks(i, t) for n in source.scene(i).object_ids.values()]
                for t in range(8)
            ]
        )
        assert visible[0].any()  # there is something to prompt on the first frame
        tracked = np.logical_or.accumulate(visible, 0)
        gone += (tracked & ~visible).sum()
        total += tracked.sum()
        back += ((visible[1:] & ~visible[:-1]) & tracked[:-1]).sum()
    assert 0.04 < gone / total < 0.2 and back >= 5


def test_lifelike_frames_depend_on_seed_and_frame_only():
    source = lifelike(3)
    forwards = [source.read_frame(1, t) for t in range(8)]
    copy = pickle.loads(pickle.dumps(source))
    assert all(np.array_equal(copy.read_frame(1, t), forwards[t]) for t in reversed(range(8)))
    assert forwards[0].shape == (96, 96, 3) and forwards[0].dtype == np.uint8


def test_lifelike_camera_moves_everything():
    moved = []
    for seed in range(20):
        scene = Scene(np.random.default_rng(seed), 8, (96, 96), lifelike=True)
        assert np.allclose(scene.view[0] @ [48, 48, 1], [48, 48], atol=3)
        moved.append(np.linalg.norm(scene.view[7] @ [48, 48, 1] - [48, 48]))
    assert np.median(moved) > 3


def test_lifelike_blur_changes_frames_and_not_masks():
    blurred = next(
        scene
        for scene in (
            Scene(np.random.default_rng(seed), 8, (96, 96), motion=0.6, lifelike=True)
            for seed in range(20)
        )
        if scene.shutter and scene.blur == 0
    )
    masks, frame = blurred.masks(4), blurred.frame(4)
    blurred.shutter = 0.0
    assert not np.array_equal(blurred.frame(4), frame)
    assert masks.keys() == blurred.masks(4).keys()
    assert all(np.array_equal(blurred.masks(4)[n], mask) for n, mask in masks.items())


def test_limbs_belong_to_the_mask():
    for seed in range(40):
        scene = Scene(
            np.random.default_rng(seed), 4, (96, 96), 1, 0, background=False, lifelike=True
        )
        (shape,) = (scene.shapes[k] for k in scene.object_ids)
        if shape.limbs and len(scene.shapes) == 1 and 1 in scene.masks(0):
            break
    behind = np.zeros((96, 96, 3), np.uint8)
    scene.shutter = 0.0
    whole = scene.masks(0)[1]
    drawn = scene.frame(0, behind).max(-1) > 0
    assert (drawn & whole).sum() > 0.95 * whole.sum()
    shape.limbs = []
    assert scene.masks(0)[1].sum() < whole.sum()


def test_shadows_darken_frames_and_do_not_change_masks():
    scene = next(
        scene
        for scene in (Scene(np.random.default_rng(k), 4, (96, 96), lifelike=True) for k in range(9))
        if scene.shadow
    )
    masks, shaded = scene.masks(2), scene.frame(2).astype(int)
    scene.shadow = None
    plain = scene.frame(2).astype(int)
    assert plain.mean() > shaded.mean() and (shaded <= plain + 1).mean() > 0.999
    assert all(np.array_equal(scene.masks(2)[n], mask) for n, mask in masks.items())


def test_background_shows_through_translucent_objects():
    for seed in range(90):
        scene = Scene(
            np.random.default_rng(seed), 4, (96, 96), 1, 0, background=False, lifelike=True
        )
        shape = scene.shapes[0]
        if shape.opacity < 1 and len(scene.shapes) == 1 and scene.masks(0):
            break
    scene.shutter, scene.shadow = 0.0, None
    mask = scene.masks(0)[1]
    dark, light = (scene.frame(0, np.full((96, 96, 3), c, np.uint8)) for c in (0, 255))
    through = (light.astype(int) - dark)[mask] / 255
    assert np.median(through) == pytest.approx(1 - shape.opacity, abs=0.02)


def test_share_of_lifelike_videos_does_not_change_any_video():
    plain, half, lifelike = (
        SyntheticDataset(60, 2, 48, seed=4, lifelike=share) for share in (0.0, 0.5, 1.0)
    )
    kinds = [half.scene(i).lifelike for i in range(60)]
    assert 20 < sum(kinds) < 40
    for i in range(8):
        same = lifelike if kinds[i] else plain
        assert np.array_equal(half.read_frame(i, 1), same.read_frame(i, 1))


def test_photos_are_the_surfaces_of_lifelike_videos(tmp_path):
    (tmp_path / "deep").mkdir()
    for name, colour in (("a.jpg", (250, 0, 0)), ("deep/b.png", (0, 250, 0))):
        Image.new("RGB", (90, 60), colour).save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    photos = Photos(tmp_path)
    crops = [photos.crop(np.random.default_rng(k), (40, 50)) for k in range(20)]
    means = {tuple((crop.mean((0, 1)) > 125).tolist()) for crop in crops}
    assert means == {(True, False, False), (False, True, False)}
    assert {crop.shape for crop in crops} == {(40, 50, 3)}
    generated, photographed = (
        SyntheticDataset(6, 2, 64, seed=1, lifelike=1.0, photos=folder)
        for folder in (None, tmp_path)
    )
    pairs = [(generated.read_frame(i, 0), photographed.read_frame(i, 0)) for i in range(6)]
    assert not any(np.array_equal(*pair) for pair in pairs)
    frames = [photographed.read_frame(i, 1) for i in range(6)]
    again = pickle.loads(pickle.dumps(photographed))
    assert all(np.array_equal(again.read_frame(i, 1), frames[i]) for i in range(6))


def test_missing_and_damaged_photos_are_rejected(tmp_path):
    with pytest.raises(DataError) as error:
        Photos(tmp_path)
    assert error.value.key == "dataset.synthetic_photos" and error.value.hint
    assert str(tmp_path) in str(error.value)
    (tmp_path / "torn.jpg").write_bytes(b"no picture")
    with pytest.raises(DataError, match="torn.jpg"):
        Photos(tmp_path).crop(np.random.default_rng(0), (8, 8))


@pytest.mark.parametrize("lifelike", [False, True])
def test_videos_of_one_frame_show_an_object(lifelike):
    source = SyntheticDataset(120, 1, 64, max_objects=1, seed=42, lifelike=lifelike)
    assert all(source.read_masks(i, 0) for i in range(len(source)))


def test_generator_benchmark_runs(tmp_path):
    file = Path(__file__).parents[2] / "benchmarks" / "generator.py"
    argv = ["--sizes", "64", "--workers", "0", "--batches", "1", "--repeats", "1"]
    runpy.run_path(str(file))["main"]([*argv, "--out", str(tmp_path / "rates.json")])
    rows = json.loads((tmp_path / "rates.json").read_text())["clips_per_second"]
    assert [row["clips"] for row in rows] == ["plain", "lifelike"]
    assert all(row["0 workers"] > 0 for row in rows)
