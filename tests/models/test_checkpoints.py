"""Checkpoints: valid ones are loaded; others are rejected with a reason, the model unchanged."""

from __future__ import annotations

import os
import zipfile
from pathlib import Path

import pytest
import torch
from conftest import moving_clip
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import save_file

import sam2kit.models.checkpoints as checkpoints
from sam2kit.data.clip import collate
from sam2kit.data.transforms import normalize
from sam2kit.models.checkpoint_io import read_checkpoint
from sam2kit.models.checkpoints import (
    create_sam2_model,
    guess_size,
    load_weights,
    save_weights,
    source_config,
)
from sam2kit.models.plain_sam2 import track_steps
from sam2kit.models.run_splits import checkpoint_splits
from sam2kit.models.sam2 import build_sam2_model, module_path
from sam2kit.prompts.prompt import Prompt
from sam2kit.utils.errors import CheckpointError


@pytest.fixture
def official(tiny_config, tmp_path) -> Path:
    """A checkpoint in the official format, with other weights than the model's."""
    tiny_config.seed += 1
    save_weights(build_sam2_model(tiny_config), tmp_path / "nano.pt")
    tiny_config.seed -= 1
    return tmp_path / "nano.pt"


def test_round_trip(tiny_config, official):
    tiny_config.model.checkpoint = str(official)
    state = torch.load(official, weights_only=True)["model"]
    loaded = create_sam2_model(tiny_config).state_dict()
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[k], state[k]) for k in state)


def test_upstream_loads_what_is_saved(tiny_config, tmp_path):
    """Keys and shapes are the official ones: upstream's builder accepts the file."""
    from sam2.build_sam import build_sam2

    tiny_config.model.size, tiny_config.dataset.image_size = "t", 256
    save_weights(build_sam2_model(tiny_config), tmp_path / "t.pt")
    build_sam2("configs/sam2.1/sam2.1_hiera_t.yaml", str(tmp_path / "t.pt"), device="cpu")


def test_reset_modules_keep_initial_values_and_the_rest_is_loaded(tiny_config, official):
    initial = build_sam2_model(tiny_config).state_dict()
    state = torch.load(official, weights_only=True)["model"]
    tiny_config.model.checkpoint = str(official)
    tiny_config.model.reset_modules = ["memory_encoder", "memory_attention.layers.1"]
    for name, value in create_sam2_model(tiny_config).state_dict().items():
        path = module_path(name)
        reset = path[0] == "memory_encoder" or path[:3] == ("memory_attention", "layers", "1")
        assert torch.equal(value, (initial if reset else state)[name]), name


def damage(path: Path, change) -> None:
    state = torch.load(path, weights_only=True)["model"]
    change(state)
    torch.save({"model": state}, path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("no_mem_embed"), "1 missing .first: no_mem_embed"),
        (lambda s: s.update(extra=torch.zeros(1)), "1 unknown .first: extra"),
        (
            lambda s: s.update(no_mem_embed=torch.zeros(3)),
            r"no_mem_embed is \(3,\), not \(1, 1, 64\)",
        ),
    ],
)
def test_keys_and_shapes_must_match_or_the_model_is_unchanged(
    tiny_config, official, change, message
):
    damage(official, change)
    model = build_sam2_model(tiny_config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(model, str(official))
    assert str(official) in str(error.value)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_error_names_the_size_of_the_weights(tiny_config, official):
    tiny_config.model.size = "t"
    tiny_config.model.checkpoint = str(official)
    with pytest.raises(CheckpointError, match="nano.pt") as error:
        create_sam2_model(tiny_config)
    assert "model.size=nano" in error.value.hint


@pytest.mark.parametrize("size", ["nano", "t", "s", "b+", "l"])
def test_sizes_are_guessed(tiny_config, size):
    tiny_config.model.size = size
    assert guess_size(build_sam2_model(tiny_config).state_dict()) == size


def test_truncated_file(tiny_config, official):
    official.write_bytes(official.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="nano.pt: cannot be read safely.*truncated"):
        load_weights(build_sam2_model(tiny_config), str(official))


class _Payload:
    def __reduce__(self):
        return os.system, ("touch pwned",)


def test_code_in_a_checkpoint_is_not_run(tiny_config, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": _Payload()}, "evil.pt")
    with pytest.raises(CheckpointError, match="evil.pt: cannot be read safely"):
        load_weights(build_sam2_model(tiny_config), "evil.pt")
    assert not Path("pwned").exists()


def test_compressed_tensors_are_not_expanded(official, tmp_path):
    """A megabyte of them could need gigabytes of memory."""
    bomb = tmp_path / "bomb.pt"
    with zipfile.ZipFile(official) as old, zipfile.ZipFile(bomb, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    assert read_checkpoint(official)
    with pytest.raises(CheckpointError, match="compressed"):
        read_checkpoint(bomb)


def test_files_of_pytorch_before_1_6_have_a_configuration(official, tmp_path):
    """They cannot be memory-mapped."""
    content = read_checkpoint(official)
    torch.save(content, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert source_config(tmp_path / "old.pt")[0].model.size == "nano"
    assert checkpoint_splits(tmp_path / "old.pt") is None


def test_files_with_other_content(tiny_config, tmp_path):
    torch.save({"weights": torch.zeros(1)}, tmp_path / "x.pt")
    with pytest.raises(CheckpointError, match="contains no weights.*weights"):
        load_weights(build_sam2_model(tiny_config), str(tmp_path / "x.pt"))
    torch.save([1], tmp_path / "y.pt")
    with pytest.raises(CheckpointError, match="contains a list"):
        load_weights(build_sam2_model(tiny_config), str(tmp_path / "y.pt"))


def test_unknown_name(tiny_config):
    tiny_config.model.checkpoint = "sam2.1_hiera_tinny"
    with pytest.raises(CheckpointError) as error:
        create_sam2_model(tiny_config)
    assert error.value.key == "model.checkpoint" and error.value.value == "sam2.1_hiera_tinny"
    assert "sam2.1_hiera_tiny," in error.value.expected


def test_names_are_downloaded_from_the_hub(tiny_config, official, monkeypatch):
    requests = []

    def download(repo_id, filename):
        requests.append((repo_id, filename))
        return str(official)

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", lambda url, timeout: url)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    load_weights(build_sam2_model(tiny_config), "sam2.1_hiera_tiny")
    assert requests == [("facebook/sam2.1-hiera-tiny", "sam2.1_hiera_tiny.pt")]

    def fail(repo_id, filename):
        raise OSError("no route to host")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(CheckpointError, match="no route to host") as error:
        load_weights(build_sam2_model(tiny_config), "sam2.1_hiera_large")
    assert error.value.value == "sam2.1_hiera_large"
    # A file that is on this machine already needs no network.
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: str(official))
    assert checkpoints.find_checkpoint("sam2.1_hiera_large") == official


def test_without_a_network_the_shipped_model_is_offered_at_once(monkeypatch):
    def unreachable(url, timeout):
        assert timeout <= 5
        raise OSError("no route to host")

    def download(**_):
        raise AssertionError("the download tries again for half a minute")

    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *_: None)
    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", download)
    with pytest.raises(CheckpointError) as error:
        checkpoints.find_checkpoint("sam2.1_hiera_tiny", key="--model-checkpoint")
    assert error.value.key == "--model-checkpoint" and "nano" in error.value.hint


def test_run_configuration_needs_a_run_checkpoint(official):
    with pytest.raises(CheckpointError, match="not a run's checkpoint"):
        checkpoints.read_run_config(official)


@pytest.fixture
def run(tiny_config, tmp_path) -> Path:
    """The checkpoint of a run in its directory, with other weights than the model's."""
    tiny_config.seed += 1
    model = build_sam2_model(tiny_config)
    tiny_config.seed -= 1
    content = {
        "state_dict": {f"model.{k}": v for k, v in model.state_dict().items()},
        checkpoints.CONFIG_KEY: checkpoints.config_to_store(tiny_config),
    }
    (tmp_path / "run").mkdir()
    torch.save(content, tmp_path / "run" / "best.ckpt")
    return tmp_path / "run" / "best.ckpt"


def rewrite(path: Path, change) -> None:
    content = torch.load(path, weights_only=True)
    change(content)
    torch.save(content, path)


def test_run_directory_means_its_best_checkpoint(tiny_config, run):
    model = build_sam2_model(tiny_config)
    load_weights(model, run.parent)
    state = torch.load(run, weights_only=True)["state_dict"]
    assert all(torch.equal(v, state[f"model.{k}"]) for k, v in model.state_dict().items())
    run.rename(run.with_name("last.ckpt"))
    with pytest.raises(CheckpointError, match="no best.ckpt") as error:
        load_weights(model, run.parent)
    assert error.value.key == "model.checkpoint" and error.value.value == str(run.parent)
    assert str(run.with_name("last.ckpt")) in error.value.hint


@pytest.mark.parametrize("folder", ["runs", "runs/first/evaluation"])
def test_a_folder_above_or_below_runs_is_answered_with_them(tmp_path, folder):
    for name in ("first", "second"):
        (tmp_path / "runs" / name / "evaluation").mkdir(parents=True)
        (tmp_path / "runs" / name / "best.ckpt").touch()
    with pytest.raises(CheckpointError) as error:
        checkpoints.find_checkpoint(tmp_path / folder)
    assert str(tmp_path / "runs" / "first") in error.value.hint
    assert (str(tmp_path / "runs" / "second") in error.value.hint) == (folder == "runs")


@pytest.mark.parametrize(
    ("damage_run", "message"),
    [
        (lambda p: p.write_bytes(p.read_bytes()[:-2000]), "cannot be read safely.*truncated"),
        (lambda p: p.write_bytes(b""), "cannot be read safely.*truncated"),
        (lambda p: p.write_text("404: not found"), "cannot be read safely"),
        (
            lambda p: torch.save({"state_dict": _Payload()}, p),
            "cannot be read safely.*contains code",
        ),
        (lambda p: rewrite(p, lambda c: c["state_dict"].popitem()), "tensors 1 missing"),
        (lambda p: rewrite(p, lambda c: c.update(state_dict={})), "contains no weights"),
        (lambda p: rewrite(p, lambda c: c.update(state_dict=[1])), "contains no weights"),
        (lambda p: p.unlink(), "best.ckpt' must be an existing file"),
    ],
)
def test_damaged_run_leaves_the_model_unchanged(tiny_config, run, monkeypatch, damage_run, message):
    monkeypatch.chdir(run.parent)
    damage_run(run)
    model = build_sam2_model(tiny_config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(CheckpointError, match=message) as error:
        load_weights(model, str(run))
    assert str(run) in str(error.value) and not Path("pwned").exists()
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_run_of_another_version_or_size_is_rejected(tiny_config, run):
    rewrite(run, lambda c: c[checkpoints.CONFIG_KEY]["model"].update(colour="red"))
    with pytest.raises(CheckpointError, match="configuration does not fit this version.*colour"):
        checkpoints.load_run(run)
    rewrite(run, lambda c: c[checkpoints.CONFIG_KEY]["model"].pop("colour"))
    assert checkpoints.load_run(run)[0].model.size == "nano"
    tiny_config.model.size, tiny_config.model.checkpoint = "s", str(run.parent)
    with pytest.raises(CheckpointError, match="does not fit") as error:
        create_sam2_model(tiny_config)
    assert "model.size=nano" in error.value.hint


def trainer_checkpoint(state):
    """What the official training code saves; see ``Trainer._save_checkpoint``."""
    optimizer = {"state": {0: {"step": torch.tensor(3.0)}}, "param_groups": [{"lr": 1e-4}]}
    progress = {"epoch": 2, "steps": {"train": 3}, "time_elapsed": 1.5, "best_meter_values": {}}
    return {"model": state, "optimizer": optimizer, "loss": None, **progress}


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


def compiled(state):
    """The names after ``torch.compile`` of the image encoder alone."""
    start = "image_encoder."
    return {name.replace(start, f"{start}_orig_mod.", 1): value for name, value in state.items()}


FORMS = {
    "bare.torch": lambda state: state,
    "ddp.pt": lambda state: {"model": prefixed(state, "module.")},
    "bare_ddp.pt": lambda state: prefixed(state, "module."),
    "compiled.pt": lambda state: prefixed(state, "_orig_mod."),
    "both.pt": lambda state: prefixed(state, "module._orig_mod."),
    "encoder.pt": compiled,
    "lightning.ckpt": lambda state: {"state_dict": prefixed(state, "net.sam2."), "epoch": 3},
    "other.pth": lambda state: {"model_state_dict": state},
    "trainer.pt": trainer_checkpoint,
    "half.pt": lambda state: {name: value.half() for name, value in state.items()},
    "plain.safetensors": lambda state: state,
    "ddp.safetensors": lambda state: prefixed(state, "module."),
    "compiled.safetensors": lambda state: prefixed(state, "_orig_mod."),
}


@pytest.mark.parametrize("name", FORMS)
def test_weights_as_people_save_them(tiny_config, official, tmp_path, name):
    state = torch.load(official, weights_only=True)["model"]
    content, path = FORMS[name](state), tmp_path / name
    save_file(content, path) if path.suffix == ".safetensors" else torch.save(content, path)
    config, model = checkpoints.load_model(path)
    assert config.model.size == "nano"
    for key, value in model.state_dict().items():
        expected = state[key].half().float() if name == "half.pt" else state[key]
        assert torch.equal(value, expected), key


def test_tensors_outside_the_model_are_ignored_and_reported(
    tiny_config, official, tmp_path, messages
):
    state = torch.load(official, weights_only=True)["model"]
    content = {**prefixed(state, "model."), "loss.weight": torch.ones(2)}
    torch.save({"state_dict": content}, tmp_path / "x.pt")
    load_weights(build_sam2_model(tiny_config), tmp_path / "x.pt")
    assert any("loss.weight" in line for line in messages)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_rejected(tiny_config, official, run, value):
    """With them, every mask would be empty."""
    name = "memory_encoder.pix_feat_proj.bias"
    damage(official, lambda state: state[name].__setitem__(3, value))
    rewrite(run, lambda content: content["state_dict"][f"model.{name}"].__setitem__(3, value))
    model = build_sam2_model(tiny_config)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    for file in (official, run):
        with pytest.raises(CheckpointError, match=name) as error:
            load_weights(model, file)
        assert str(file) in str(error.value) and error.value.hint
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())


def test_sam_2_0_tracks_as_upstreams_own_2_0(tmp_path):
    """The parameters that 2.1 added are 0, which equals their absence in upstream's 2.0."""
    from sam2 import build_sam

    tree = OmegaConf.load(Path(build_sam.__file__).parent / "configs/sam2/sam2_hiera_t.yaml").model
    tree.image_size = 64
    for attention in ("self_attention", "cross_attention"):
        tree.memory_attention.layer[attention].feat_sizes = [4, 4]
    torch.manual_seed(0)
    upstream = instantiate(tree, _recursive_=True).eval()
    with torch.no_grad():
        upstream.maskmem_tpos_enc *= 50
        # One object appears and the other does not, where 2.1 uses what 2.0 lacks.
        upstream.sam_mask_decoder.pred_obj_score_head.layers[-1].bias.fill_(-5.0)
    torch.save({"model": upstream.state_dict()}, tmp_path / "sam2_hiera_tiny.pt")
    clip = collate([moving_clip(num_frames=5)])
    model = create_sam2_model(checkpoint=tmp_path / "sam2_hiera_tiny.pt", image_size=64).eval()
    steps = {"images": normalize(clip.frames[0]), "mask": clip.masks[0, 0]}
    assert model.no_obj_embed_spatial.eq(0).all()
    expected = track_steps(upstream, steps)
    assert all(map(torch.equal, track_steps(model, steps), expected))
    with torch.inference_mode():
        output = model(clip, [Prompt(0, torch.tensor([0]), masks=clip.masks[0, :1])])
    assert (expected[1][1:] < 0).all()
    torch.testing.assert_close(output.mask_logits[:, 0], expected[0])
    torch.testing.assert_close(output.object_score[:, 0], expected[1])


def test_weights_without_memory_are_explained(tiny_config, official):
    def image_model_only(state):
        for name in [n for n in state if n.startswith(("memory_", "maskmem", "no_mem", "no_obj"))]:
            del state[name]

    damage(official, image_model_only)
    with pytest.raises(CheckpointError, match="missing") as error:
        load_weights(build_sam2_model(tiny_config), official)
    assert "memory" in error.value.hint


def test_truncated_safetensors(tiny_config, tmp_path):
    path = tmp_path / "nano.safetensors"
    save_weights(build_sam2_model(tiny_config), path)
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(CheckpointError, match="nano.safetensors: cannot be read safely"):
        load_weights(build_sam2_model(tiny_config), path)


def test_weights_without_configuration_get_the_default_of_their_size(official):
    config, model = checkpoints.load_model(official)
    assert (config.model.size, config.dataset.image_size, model.image_size) == ("nano", 192, 192)
