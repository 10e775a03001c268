"""The feature cache: hits, keys that cannot be stale, concurrency, budget, killed processes."""

from __future__ import annotations

import copy
import errno
import os
import pickle
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from data_helpers import make_davis
from safetensors.torch import load_file
from session_helpers import Clips
from tracker_helpers import BREAK_CONVENTION

from sam2kit.cli.main import main
from sam2kit.config.loading import load_config
from sam2kit.data import SyntheticDataset, open_source
from sam2kit.data.clip import collate, frame_keys
from sam2kit.data.sources.base import SelectedVideos
from sam2kit.data.sources.mixture import MixtureDataset
from sam2kit.models import feature_cache as features
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.models.feature_cache import (
    MARKER,
    FeatureCache,
    clear,
    create_cache,
    describe,
    folder_sizes,
    obstacle,
)
from sam2kit.models.feature_precompute import fill
from sam2kit.tracking.frame_step import FrameModel
from sam2kit.tracking.options import TrackerOptions
from sam2kit.training.datamodule import SAM2LightningDataModule
from sam2kit.training.module import SAM2LightningModule
from sam2kit.training.trainer import fit
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.files import temporary_path

TINY = {"video_clip_length": 3, "image_size": 64, "num_workers": 0}


@pytest.fixture
def model(tiny_config):
    return create_sam2_model(tiny_config).eval()


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")


def images(seed: int = 0, count: int = 2, size: int = 64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (count, 3, size, size), generator=generator).to(torch.uint8)


def files(cache: FeatureCache) -> list[Path]:
    return sorted(cache.folder.glob("*/??/*"))


def counts(cache: FeatureCache) -> tuple[int, int]:
    return cache.read, cache.encoded


def all_tensors(encoded: dict) -> list[torch.Tensor]:
    return [encoded["vision_features"], *encoded["vision_pos_enc"], *encoded["backbone_fpn"]]


def test_cached_features_equal_upstreams(model, cache):
    from sam2kit.data.transforms import normalize

    frames = images()
    with torch.no_grad():
        computed = model.forward_image(normalize(frames))
    miss, hit = cache.encode(model, frames), FeatureCache(cache.folder).encode(model, frames)
    for a, b, c in zip(*map(all_tensors, (computed, miss, hit)), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=1e-5)
        assert torch.equal(b, c) and b.dtype == a.dtype
    assert counts(cache) == (0, 2) and len(files(cache)) == 2


def test_each_frame_is_encoded_alone_and_once(model, cache):
    """Its features do not depend on which others are missing, and a batch may repeat it."""
    frames = images(count=3)
    alone = cache.encode(model, frames[1:2])["backbone_fpn"][0]
    repeated = cache.encode(model, frames[[0, 1, 1, 2, 0]])["backbone_fpn"][0]
    assert counts(cache) == (1, 3)
    assert torch.equal(repeated[1], alone[0]) and torch.equal(repeated[0], repeated[4])


def test_mirrored_frame_has_another_key(model, cache):
    frames = images()
    cache.encode(model, frames)
    flipped = cache.encode(model, frames.flip(-1))["backbone_fpn"][0]
    assert counts(cache) == (0, 4)
    assert torch.equal(cache.encode(model, frames.flip(-1))["backbone_fpn"][0], flipped)
    assert counts(cache) == (2, 4)


def test_keys_depend_on_pixels_only():
    frames = images(count=4).view(2, 2, 3, 64, 64)
    channels_last = frames.permute(0, 1, 3, 4, 2).contiguous().permute(0, 1, 4, 2, 3)
    assert frame_keys(frames) == frame_keys(channels_last) and len(set(frame_keys(frames))) == 4
    assert frame_keys(frames[0, 1]) == frame_keys(frames)[1:2]


@pytest.mark.parametrize("name", ["image_encoder.trunk.patch_embed.proj.bias", "conv_s1.bias"])
def test_changed_encoder_weight_misses(model, cache, name):
    cache.encode(model, images())
    weights = dict(model.named_parameters())
    with torch.no_grad():
        next(p for n, p in weights.items() if n.endswith(name))[0] += 1e-3
    cache.encode(model, images())
    assert counts(cache) == (0, 4) and len(folder_sizes(cache.folder)) == 2


def test_changed_memory_weight_hits(model, cache):
    cache.encode(model, images())
    with torch.no_grad():
        model.maskmem_tpos_enc += 1
        model.sam_mask_decoder.iou_token.weight += 1
    cache.encode(model, images())
    assert counts(cache) == (2, 2)


def test_other_image_size_or_pixel_misses(tiny_config, model, cache):
    cache.encode(model, images())
    tiny_config.dataset.image_size = 96
    other = create_sam2_model(tiny_config).eval()  # the same weights
    cache.encode(other, images(size=96))
    changed = images()
    changed[0, 0, 0, 0] ^= 1
    cache.encode(model, changed)
    assert counts(cache) == (1, 5)
    assert len(folder_sizes(cache.folder)) == 2


def test_replaced_frame_file_misses(tmp_path, tiny_config):
    """A frame file with new content misses, even with the old name and modification time."""
    source = open_source(make_davis(tmp_path / "data"))
    model = create_sam2_model(tiny_config).eval()
    model.feature_cache = cache = FeatureCache(tmp_path / "cache")
    tracker = FrameModel(model, TrackerOptions())
    with tracker.applied():
        before = tracker.encode(source.read_frame(0, 0)).vision[-1]
        file = source.frame_path(0, 0)
        times = file.stat().st_atime_ns, file.stat().st_mtime_ns
        file.write_bytes(source.frame_path(0, 1).read_bytes())
        os.utime(file, ns=times)
        after = tracker.encode(source.read_frame(0, 0)).vision[-1]
    assert counts(cache) == (0, 2) and not torch.equal(before, after)


def test_other_resize_method_misses(tmp_path, model, monkeypatch):
    """The key depends on the resized pixels, so each resize method has its own entry."""
    model.feature_cache = cache = FeatureCache(tmp_path / "cache")
    frame = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)
    tracker = FrameModel(model, TrackerOptions())
    for bicubic, hits in ((True, 0), (False, 0), (True, 1)):
        with tracker.applied(), monkeypatch.context() as patch:
            if not bicubic:
                BREAK_CONVENTION["pil_bicubic"](patch)
            tracker.encode(frame)
        assert cache.read == hits
    assert cache.encoded == 2


def test_each_precision_has_its_own_entries(tmp_path, model):
    exact = FeatureCache(tmp_path / "cache")
    rounded = FeatureCache(tmp_path / "cache", rounded=True)
    exact.encode(model, images())
    with torch.autocast("cpu", torch.bfloat16):
        mixed = exact.encode(model, images())["backbone_fpn"]
    halved = rounded.encode(model, images())["backbone_fpn"]
    again = FeatureCache(tmp_path / "cache", rounded=True).encode(model, images())["backbone_fpn"]
    assert len(folder_sizes(tmp_path / "cache")) == 3
    assert mixed[0].dtype == torch.bfloat16 and halved[0].dtype == torch.float32
    assert all(map(torch.equal, halved, again))
    sizes = sorted(f.stat().st_size for f in files(exact))
    assert sizes[0] < 0.55 * sizes[-1]


@pytest.mark.parametrize("length", [0, 7, 1000])
def test_incomplete_file_is_replaced(model, cache, length):
    expected = cache.encode(model, images())["backbone_fpn"]
    file = files(cache)[0]
    file.write_bytes(file.read_bytes()[:length])
    again = cache.encode(model, images())["backbone_fpn"]
    assert counts(cache) == (1, 3) and all(map(torch.equal, expected, again))
    cache.encode(model, images())
    assert counts(cache) == (3, 3)


WRITER = """
import sys, torch
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.config.schema import Config
from sam2kit.models.feature_cache import FeatureCache
torch.set_num_threads(1)
config = Config()
config.model.size, config.dataset.image_size = "nano", 64
config.model.memory_attention_bias = config.model.object_score_bias = 3.0
model = create_sam2_model(config).eval()
cache = FeatureCache(sys.argv[1])
print("ready", flush=True)
sys.stdin.readline()  # wait until the test has started both processes
for seed in range(int(sys.argv[2])):
    generator = torch.Generator().manual_seed(seed)
    frames = torch.randint(0, 256, (2, 3, 64, 64), generator=generator).to(torch.uint8)
    cache.encode(model, frames)
print(cache.encoded)
"""


def start_writer(folder: Path, count: int) -> subprocess.Popen:
    command = [sys.executable, "-c", WRITER, str(folder), str(count)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_two_concurrent_processes_of_which_one_is_killed(model, tmp_path):
    cache = FeatureCache(tmp_path)
    killed, finished = start_writer(tmp_path, 10_000), start_writer(tmp_path, 40)
    with killed, finished:
        assert killed.stdout.readline() == finished.stdout.readline() == "ready\n"
        for process in (killed, finished):
            process.stdin.write("start\n")
            process.stdin.flush()
        deadline = time.monotonic() + 60
        while len(files(cache)) < 20 and time.monotonic() < deadline:
            time.sleep(0.01)
        killed.send_signal(signal.SIGKILL)
        assert 0 < int(finished.communicate(timeout=120)[0]) <= 80
    for seed in range(40):
        frames = images(seed)
        cached = cache.encode(model, frames)
        expected = FeatureCache(tmp_path / "elsewhere").encode(model, frames)
        assert all(map(torch.equal, cached["backbone_fpn"], expected["backbone_fpn"]))
    assert counts(cache) == (80, 0)


def test_old_temporary_files_are_deleted(model, tmp_path):
    first = FeatureCache(tmp_path)
    first.encode(model, images())
    temporary = files(first)[0].parent / f".part-{'0' * 32}"
    temporary.write_bytes(b"half")
    os.utime(temporary, (time.time() - 7200,) * 2)
    FeatureCache(tmp_path).encode(model, images())
    assert not temporary.exists()


@pytest.mark.parametrize("damage", ["flipped bit", "zeroed tail", "no checksum"])
def test_damaged_file_is_computed_again(model, cache, damage, warnings):
    expected = cache.encode(model, images(count=1))["backbone_fpn"]
    (file,) = files(cache)
    content = bytearray(file.read_bytes())
    if damage == "flipped bit":
        content[-100] ^= 4
    elif damage == "zeroed tail":
        content[-500:] = bytes(500)
    else:  # a file of an earlier version
        features.save_file(load_file(file), file)
        content = file.read_bytes()
    file.write_bytes(content)
    again = cache.encode(model, images(count=1))["backbone_fpn"]
    assert all(map(torch.equal, again, expected))
    assert counts(cache) == (0, 2) and cache.damaged == len(warnings)
    assert cache.damaged == (damage != "no checksum")
    cache.encode(model, images(count=1))
    assert counts(cache) == (1, 2)


def test_temporary_file_of_a_killed_process_is_deleted_at_once(model, tmp_path):
    first = FeatureCache(tmp_path)
    first.encode(model, images())
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    folder = files(first)[0].parent
    mine = temporary_path(folder)
    other = mine.with_name(f".part-{dead.pid:08x}{mine.name[14:]}")
    for path in (mine, other, folder.parent / other.name):
        path.write_bytes(b"half")
    assert "frames" in features.describe(tmp_path)
    FeatureCache(tmp_path).encode(model, images())
    assert mine.exists() and not other.exists() and not (folder.parent / other.name).exists()


def test_command_fails_if_nothing_can_be_kept(tiny_config, tmp_path):
    tiny_config.dataset.type = "synthetic"
    tiny_config.dataset.synthetic_videos = 1
    tiny_config.valdataset.synthetic_videos = 1
    tiny_config.features.folder, tiny_config.features.budget_gb = str(tmp_path / "c"), 1e-9
    with pytest.raises(ConfigError, match="could be stored") as error:
        fill(tiny_config)
    assert error.value.key == "features.folder" and "budget_gb" in error.value.hint


def test_encoder_is_listed_and_hashed_once_per_model(model, cache, monkeypatch):
    calls = {"list": 0, "hash": 0}
    named_parameters, blake2b = type(model).named_parameters, features.hashlib.blake2b

    def count_lists(self, *args, **kwargs):
        calls["list"] += 1
        return named_parameters(self, *args, **kwargs)

    def count_hashes(*args, **kwargs):
        calls["hash"] += kwargs.get("digest_size") == 20
        return blake2b(*args, **kwargs)

    monkeypatch.setattr(type(model), "named_parameters", count_lists)
    monkeypatch.setattr(features.hashlib, "blake2b", count_hashes)
    for seed in range(8):
        cache.encode(model, images(seed, count=1))
    assert calls == {"list": 1, "hash": 1}


def test_replaced_parameter_misses(model, cache):
    cache.encode(model, images())
    norm = model.image_encoder.trunk.blocks[0].norm1
    norm.weight = torch.nn.Parameter(norm.weight.detach() + 1e-3)
    cache.encode(model, images())
    assert counts(cache) == (0, 4)


def test_full_disk(model, cache, monkeypatch, warnings):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(features, "save_file", full)
    first = cache.encode(model, images())["backbone_fpn"]
    cache.encode(model, images(1))
    assert all(map(torch.equal, first, cache.encode(model, images())["backbone_fpn"]))
    assert not files(cache) and not list(cache.folder.glob("*/??/.*"))
    assert len(warnings) == 1 and "No space left" in warnings[0]


def test_nothing_is_written_to_a_nearly_full_disk(model, cache, monkeypatch, warnings):
    monkeypatch.setattr(features, "RESERVED_BYTES", 1 << 62)
    cache.encode(model, images())
    assert not files(cache) and "GB left" in warnings[0]
    assert "features of the remaining frames are computed every time" in warnings[0]


def test_directory_that_cannot_be_created(model, tmp_path, warnings):
    (tmp_path / "cache").write_text("a file")
    cache = FeatureCache(tmp_path / "cache")
    cache.encode(model, images())
    cache.encode(model, images())
    assert counts(cache) == (0, 4) and len(warnings) == 1


def frame_bytes(model, folder: Path) -> int:
    cache = FeatureCache(folder)
    cache.encode(model, images(count=1))
    return files(cache)[0].stat().st_size


def test_budget(model, tmp_path, warnings):
    one = frame_bytes(model, tmp_path / "measure")
    cache = FeatureCache(tmp_path / "cache", budget_gb=5.5 * one / 1e9)
    for seed in range(4):
        cache.encode(model, images(seed))
    assert 4 <= len(files(cache)) <= 5  # encoder.json and the marker count too
    expected = "Cache budget reached; features of the remaining frames are computed every time"
    assert expected in warnings[0] and len(warnings) == 1
    assert sum(folder_sizes(cache.folder).values()) <= cache.budget
    cache.encode(model, images(0))
    assert counts(cache) == (2, 8)  # existing entries are still read


def test_entries_of_other_encoders_are_not_evicted(model, tmp_path, warnings):
    one = frame_bytes(model, tmp_path / "measure")
    first = FeatureCache(tmp_path / "cache", budget_gb=3.5 * one / 1e9)
    first.encode(model, images())
    before = files(first)
    other = copy.deepcopy(model)
    with torch.no_grad():
        other.sam_mask_decoder.conv_s0.bias += 1
    second = FeatureCache(tmp_path / "cache", budget_gb=3.5 * one / 1e9)
    for _ in range(2):
        second.encode(other, images(1, count=3))
    assert set(before) < set(files(first)) and len(files(first)) == 3
    assert counts(second) == (1, 5) and len(warnings) == 1


def test_two_caches_together_stay_within_the_budget(model, tmp_path):
    one = frame_bytes(model, tmp_path / "measure")
    caches = [FeatureCache(tmp_path / "cache", budget_gb=6.5 * one / 1e9) for _ in range(2)]
    for seed in range(8):
        caches[seed % 2].encode(model, images(seed, count=1))
    assert len(files(caches[0])) == 6


def make_foreign_folder(root: Path) -> dict[Path, bytes]:
    """Make a directory that resembles an old cache, and return its files."""
    for name in ("photos/lock", "photos/ab/IMG_1.jpg", "0123456789abcdef/lock", "thesis.tex"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)
    return {path: path.read_bytes() for path in root.rglob("*") if path.is_file()}


def test_directory_with_other_content_is_rejected(tiny_config, model, tmp_path, capsys):
    content = make_foreign_folder(tmp_path / "home")
    tiny_config.features.folder = str(tmp_path / "home")
    with pytest.raises(ConfigError, match="contains") as error:
        create_cache(tiny_config)
    assert error.value.key == "features.folder" and error.value.value == str(tmp_path / "home")
    with pytest.raises(ConfigError, match="features.folder"):
        FeatureCache(tmp_path / "home", budget_gb=0).encode(model, images())
    argv = ["features", f"features.folder={tmp_path / 'home'}", "dataset.type=synthetic"]
    for flag in ("--clear", "--list"):
        assert main([*argv, flag]) == 2
        assert "features.folder" in capsys.readouterr().err
    assert content == {p: p.read_bytes() for p in (tmp_path / "home").rglob("*") if p.is_file()}


def test_cache_with_other_content_is_rejected(model, tmp_path):
    FeatureCache(tmp_path).encode(model, images())
    (tmp_path / ".DS_Store").touch()
    assert FeatureCache(tmp_path).encode(model, images()) is not None
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ConfigError, match="contains notes.txt"):
        FeatureCache(tmp_path).encode(model, images())


def test_clear_deletes_cache_files_and_lists_others(model, tmp_path, capsys):
    folder, elsewhere = tmp_path / "cache", tmp_path / "elsewhere"
    first = FeatureCache(folder)
    first.encode(model, images())
    encoder, key = files(first)[0].parent.parent, "a" * 40
    (files(first)[0].parent / f".part-{'0' * 32}").write_bytes(b"half")
    # The targets of links match the layout, so following a link would delete them.
    linked = [elsewhere / "0123456789abcdef" / "ab" / key, elsewhere / "ab" / key, elsewhere / key]
    for path in linked:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("mine")
    links = {
        folder / "0123456789abcdef": elsewhere / "0123456789abcdef",
        encoder / "ab": elsewhere / "ab",
        files(first)[0].parent / key: elsewhere / key,
    }
    for link, target in links.items():
        link.symlink_to(target)
    foreign = [folder / "photos" / "lock", encoder / "lock", encoder / "cd" / "notes.txt"]
    for path in foreign:
        path.parent.mkdir(exist_ok=True)
        path.write_text("mine")
    argv = ["features", f"features.folder={folder}", "dataset.type=synthetic", "--clear"]
    assert main(argv) == 0
    printed = capsys.readouterr().out
    assert "4 files" in printed  # two frames, a temporary file and encoder.json
    assert all(str(path) in printed for path in (folder / "photos", *foreign[1:], *links))
    assert {p for p in folder.rglob("*") if not p.is_dir() or p.is_symlink()} == {
        folder / MARKER,
        *foreign,
        *links,
    }
    assert all(path.read_text() == "mine" for path in (*linked, *foreign))


def test_clear_leaves_an_empty_cache_that_processes_can_still_use(model, cache):
    cache.encode(model, images())
    assert clear(cache.folder) == (3, [])
    assert [p.name for p in cache.folder.iterdir()] == [MARKER]
    cache.encode(model, images())
    assert counts(cache) == (0, 4) and len(files(cache)) == 2
    assert "2 frames  unknown encoder" in describe(cache.folder)
    assert FeatureCache(cache.folder).encode(model, images()) is not None


@pytest.mark.parametrize("text", [None, "", "[]", '{"encoder": [1]}'])
def test_damaged_encoder_files_are_listed(model, cache, text):
    cache.encode(model, images())
    (encoder,) = folder_sizes(cache.folder)
    (encoder / "encoder.json").unlink() if text is None else (encoder / "encoder.json").write_text(
        text
    )
    (cache.folder / "fedcba9876543210").mkdir()
    assert "2 frames  unknown encoder" in describe(cache.folder)


def test_copy_and_pickle(model, cache):
    cache.encode(model, images())
    assert copy.deepcopy(cache) is cache
    assert pickle.loads(pickle.dumps(cache)).encode(model, images()) is not None


def training(tiny_config, tmp_path, **changes):
    config = replace(
        tiny_config, features=replace(tiny_config.features, folder=str(tmp_path / "f"))
    )
    config.dataset.data_path = str(make_davis(tmp_path / "data"))
    for key, value in changes.items():
        section, _, name = key.partition("__")
        setattr(getattr(config, section), name, value)
    return config


def test_losses_and_gradients_equal_those_without_cache(tiny_config, tmp_path):
    config = training(tiny_config, tmp_path)
    data = SAM2LightningDataModule(config)
    batch = collate([data.train_clips[0]], with_keys=True)
    results = {}
    for name in ("without", "miss", "hit"):
        module = SAM2LightningModule(config)
        if name != "without":
            module.use_features(data)
        _, terms = module.track_and_score(batch, 0)
        terms["loss"].backward()
        gradients = [p.grad.flatten() for p in module.parameters() if p.grad is not None]
        results[name] = terms["loss"].item(), torch.cat(gradients)
        if name != "without":
            expected = (0, 4) if name == "miss" else (4, 0)
            assert counts(module._cache) == expected
    assert results["miss"][0] == results["hit"][0]
    assert torch.equal(results["miss"][1], results["hit"][1])
    assert results["without"][0] == pytest.approx(results["hit"][0], rel=1e-6)
    error = (results["without"][1] - results["hit"][1]).norm() / results["hit"][1].norm()
    assert error < 1e-5


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({}, None),
        ({"model__trainable_modules": ["*"]}, "model.trainable_modules"),
        ({"model__trainable_modules": ["image_encoder.neck"]}, "model.trainable_modules"),
        ({"model__drop_path_rate": 0.1}, "model.drop_path_rate"),
        ({"dataset__augment": True}, "augmentation.crop"),
        ({"augmentation__grayscale": 0.1}, None),  # dataset.augment is off
    ],
)
def test_when_training_uses_the_cache(tiny_config, tmp_path, changes, key):
    config = training(tiny_config, tmp_path, **changes)
    data = SAM2LightningDataModule(config)
    module = SAM2LightningModule(config)
    reason = obstacle(config, module.model, data.train_clips.source)
    assert (reason is None) == (key is None) and (key or "") in (reason or "")
    config.features.cache = "on"
    if key is None:
        module.use_features(data)
        assert data.with_keys == (True, True)
    else:
        with pytest.raises(ConfigError, match=f"features.cache.*{key}"):
            module.use_features(data)


def test_flips_and_reversal_allow_the_cache(tiny_config, tmp_path):
    config = training(tiny_config, tmp_path, dataset__augment=True)
    for name in vars(config.augmentation):
        setattr(config.augmentation, name, 0.5 if name in ("reverse", "flip") else 0.0)
    data = SAM2LightningDataModule(config)
    assert obstacle(config, SAM2LightningModule(config).model, data.train_clips.source) is None


def test_generated_videos_are_not_cached(tiny_config):
    model = create_sam2_model(tiny_config)
    source = SyntheticDataset(2, 4, 64, seed=0)
    assert "dataset.type" in obstacle(tiny_config, model, source)
    stored = SelectedVideos(Clips(), [0] * 150)
    assert obstacle(tiny_config, model, stored) is None
    mixture = MixtureDataset([stored, source], [150, 2])
    assert "dataset.type" in obstacle(tiny_config, model, mixture)


def test_resumed_run_equals_an_uninterrupted_run(tiny_config, tmp_path):
    """The final weights of a resumed and an uninterrupted run are bitwise equal."""
    config = training(tiny_config, tmp_path)
    config.scheduler.name = "constant"  # other schedules depend on max_steps
    config.trainer = replace(config.trainer, accelerator="cpu", max_epochs=2)
    uninterrupted = fit(config, tmp_path / "uninterrupted")
    log = (tmp_path / "uninterrupted" / "train.log").read_text()
    assert str(tmp_path / "f") in log  # the log names the directory of the cache
    config.features = replace(config.features, folder=str(tmp_path / "g"))
    config.trainer = replace(config.trainer, max_steps=1)
    fit(config, tmp_path / "interrupted")
    config.trainer = replace(config.trainer, max_steps=-1)
    config.trainer.resume_from = str(tmp_path / "interrupted" / "last.ckpt")
    resumed = fit(config, tmp_path / "resumed")
    one, two = (torch.load(r.last_checkpoint)["state_dict"] for r in (uninterrupted, resumed))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_fill_before_training(tiny_config, tmp_path, monkeypatch):
    config = training(tiny_config, tmp_path)
    config.trainer = replace(config.trainer, accelerator="cpu", max_epochs=1)
    cache = fill(config)
    assert cache.encoded and not fill(config).encoded
    encoded: list[int] = []
    monkeypatch.setattr(FeatureCache, "_save", lambda *_: encoded.append(1))
    fit(config, tmp_path / "run")
    assert not encoded


def test_command(tiny_config, tmp_path, capsys):
    data = make_davis(tmp_path / "data")
    argv = ["features", "--data-path", str(data), "model=nano", "dataset.image_size=64"]
    argv += [f"features.folder={tmp_path / 'f'}", "trainer=cpu", "dataset.num_workers=0"]
    assert main(argv) == 0 and "computed" in capsys.readouterr().out
    assert main([*argv, "--list"]) == 0
    assert "64 px, float32 on cpu" in capsys.readouterr().out
    assert main([*argv, "model.trainable_modules=['*']"]) == 2
    assert "model.trainable_modules" in capsys.readouterr().err
    assert main([*argv, "features.cache=off"]) == 2
    (tmp_path / "a file").touch()
    for folder in ("nowhere", "a file"):
        assert "contains no features" in describe(tmp_path / folder)
        assert clear(tmp_path / folder) == (0, [])


@pytest.mark.parametrize(
    "change", ["features.cache=maybe", "features.dtype=int8", "features.budget_gb=-1"]
)
def test_wrong_values(change):
    with pytest.raises(ConfigError, match=change.partition("=")[0]):
        load_config(None, [change])


def test_cache_works_with_averaged_weights(tiny_config, tmp_path):
    config = training(tiny_config, tmp_path)
    config.trainer = replace(
        config.trainer, accelerator="cpu", max_epochs=1, ema_decay=0.9, log_every_n_steps=1
    )
    assert isinstance(fit(config, tmp_path / "run").metrics["val_loss"], float)
