"""An untrusted checkpoint defines its model and data layout, but no paths or machine settings."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest
import torch
from data_helpers import make_davis

from sam2kit.cli.main import main
from sam2kit.config.loading import load_config, save_config
from sam2kit.config.schema import MACHINE, PATH, RUN, Config, get, options
from sam2kit.config.stored import (
    MAX_DEPTH,
    MAX_TEXT,
    MAX_VALUES,
    override_allowed,
    read_stored,
)
from sam2kit.evaluation.evaluate import AFTER, BEFORE, COPY, ZEROED, evaluate_checkpoint
from sam2kit.models.checkpoints import (
    CONFIG_KEY,
    config_to_store,
    create_sam2_model,
    load_model,
    load_run,
    load_weights,
    read_run_config,
    save_adapter,
    source_config,
)
from sam2kit.models.sam2 import build_sam2_model
from sam2kit.training.nonfinite_replay import STEP_KEY, replay
from sam2kit.training.trainer import WholeCheckpoints, fit
from sam2kit.utils.errors import CheckpointError, ConfigError

SECRET = "correct-horse-battery-staple"
NAMES_OR_WORDS = {
    "model.size",
    "model.trainable_modules",
    "model.reset_modules",
    "model.lora_modules",
    "dataset.type",
    "dataset.identity",
    "dataset.sav_masklets",
    "dataset.mask_values",
    "dataset.stack_axes",
    "dataset.stack_z",
    "dataset.ctc_truth",
    "dataset.yolo_columns",
    "dataset.short_videos",
    "dataset.prompt_types",
    "dataset.negative_kinds",
    "valdataset.type",
    "valdataset.prompt_types",
    "testdataset.type",
    "loss.type",
    "optimizer.name",
    "optimizer.module_lr",
    "optimizer.module_weight_decay",
    "scheduler.name",
    "trainer.max_time",
    "trainer.audit",
    "trainer.monitor",
    "evaluation.protocol",
    "evaluation.split",
    "evaluation.noise_kinds",
    "evaluation.convention",
    "evaluation.tracker",
    "recipe",
}
"""Text keys of scope RUN: they name neither files nor hardware, so checkpoints may set them."""


def test_every_text_key_has_a_reviewed_scope():
    """A new text key fails here until it is listed above or has the scope PATH or MACHINE."""
    of_text = {k for k, f in options().items() if "str" in f.type or "Any" in f.type}
    scopes = {k: f.metadata["scope"] for k, f in options().items()}
    assert set(scopes.values()) == {RUN, PATH, MACHINE}
    assert {k for k in of_text if scopes[k] == RUN} == NAMES_OR_WORDS
    suspects = ("path", "file", "folder", "dir", "checkpoint", "devices", "workers", "logger")
    named = {k for k in scopes if k.rpartition(".")[2].endswith(suspects)}
    assert not [k for k in named if scopes[k] == RUN]


@pytest.fixture
def data(tmp_path):
    return make_davis(tmp_path / "data")


@pytest.fixture
def hostile(tiny_config, tmp_path, data, monkeypatch) -> Path:
    """A downloaded checkpoint that names directories of its victim, whose files contain "mine"."""
    victim = tmp_path / "victim"
    for name in ("photos/lock", "photos/1.jpg", "code/lock", "code/ab/main.c", "start.pt"):
        (victim / name).parent.mkdir(parents=True, exist_ok=True)
        (victim / name).write_text("mine")
    c = copy.deepcopy(tiny_config)
    c.features.folder, c.features.budget_gb = str(victim), 0.0
    c.output_dir, c.use_wandb, c.trainer.logger = str(victim / "planted"), True, "wandb"
    c.trainer.resume_from = str(victim / "code" / "last.ckpt")
    c.trainer.devices, c.trainer.num_nodes, c.dataset.num_workers = "64", 8, 64
    c.model.checkpoint, c.model.compile = str(victim / "start.pt"), True
    c.dataset.data_path, c.dataset.split = str(data), str(victim / "photos" / "lock")
    c.dataset.masks_path = c.dataset.corrections = str(victim / "photos")
    c.valdataset.data_path = c.valdataset.masks_path = str(victim / "photos")
    c.evaluation.compare = {"theirs": str(victim / "start.pt")}
    (tmp_path / "home").mkdir()
    monkeypatch.chdir(tmp_path / "home")
    monkeypatch.setenv("SECRET", SECRET)
    return write_run(c, tmp_path / "downloads" / "best.ckpt")


def write_run(config: Config, path: Path) -> Path:
    state = build_sam2_model(config).state_dict()
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {"state_dict": {f"model.{k}": v for k, v in state.items()}}
    torch.save(content | {CONFIG_KEY: config_to_store(config)}, path)
    return path


def rewrite(path: Path, key: str, value: object) -> None:
    """Set a value in the configuration of a checkpoint and create missing sections."""
    content = torch.load(path, weights_only=True)
    *sections, name = key.split(".")
    inner = content[CONFIG_KEY]
    for section in sections:
        inner = inner.setdefault(section, {})
    inner[name] = value
    torch.save(content, path)


def files_below(folder: Path) -> dict[Path, bytes]:
    return {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# Reset the keys that would stop an evaluation early if they were applied, so that it would get as
# far as emptying the cache.
BAIT = {
    "model.checkpoint": None,
    "model.compile": False,
    "dataset.num_workers": 0,
    **{f"dataset.{key}": None for key in ("split", "masks_path", "corrections")},
    "valdataset.masks_path": None,
    "evaluation.compare": {},
}


@pytest.mark.parametrize("changes", [{}, BAIT])
def test_evaluate_writes_only_to_its_own_output_directory(hostile, tmp_path, data, changes):
    for key, value in changes.items():
        rewrite(hostile, key, value)
    before = files_below(tmp_path)
    argv = ["evaluate", "--model-checkpoint", str(hostile), "--accelerator", "cpu"]
    assert main([*argv, "--data-path", str(data)]) == 0
    after = files_below(tmp_path)
    assert before.items() <= after.items()
    written = after.keys() - before.keys()
    outputs = tmp_path / "home" / "outputs"
    assert written and all(path.is_relative_to(outputs) for path in written)
    assert not [path for path in written if b"victim" in after[path]]
    (file,) = outputs.rglob("config.yaml")
    config = load_config(file)
    machine_keys = [k for k, f in options().items() if f.metadata["scope"] == MACHINE]
    assert machine_keys and {k: get(config, k) for k in machine_keys} == {
        k: "cpu" if k == "trainer.accelerator" else get(Config(), k) for k in machine_keys
    }
    metrics = json.loads((file.parent / "metrics.json").read_text())
    # The score before training needs the initial weights; only random ones need no path.
    before_training = [BEFORE] if changes else []
    assert list(metrics["trackers"]) == [AFTER, *before_training, ZEROED, COPY]


FIELDS = (
    "output_dir",
    "recipe",
    "model.checkpoint",
    "model.size",
    "dataset.split",
    "dataset.mixture",
    "dataset.prompt_types",
    "features.folder",
    "evaluation.compare",
    "evaluation.tracker",
)


@pytest.mark.parametrize("key", FIELDS)
def test_an_interpolation_is_rejected_and_not_resolved(hostile, tmp_path, data, capsys, key):
    text = "x${oc.env:SECRET}"
    values = {
        "dataset.mixture": [{"data_path": text}],
        "dataset.prompt_types": [text],
        "evaluation.compare": {"a": text},
        "evaluation.tracker": {"a": {"b": [text]}},
    }
    rewrite(hostile, key, values.get(key, text))
    before = files_below(tmp_path)
    argv = ["evaluate", "--model-checkpoint", str(hostile), "--data-path", str(data)]
    assert main(argv) == 2
    output = "".join(capsys.readouterr())
    assert str(hostile) in output and key in output and SECRET not in output
    loaders = [load_run, load_model, read_run_config, source_config]
    for load in loaders:
        with pytest.raises(CheckpointError, match=f"{key}.* interpolation") as error:
            load(hostile)
        assert SECRET not in str(error.value)
    assert files_below(tmp_path) == before


def test_paths_and_machine_settings_of_a_checkpoint_are_ignored(hostile, tmp_path):
    before = files_below(tmp_path)
    for config in (load_run(hostile)[0], load_model(hostile)[0], source_config(hostile)[0]):
        assert config.model.size == "nano" and config.dataset.image_size == 64
        assert config.model.memory_attention_bias == 3.0
        for key, f in options().items():
            if f.metadata["scope"] != RUN:
                assert get(config, key) == get(Config(), key), key
    assert source_config(hostile)[1] == [
        "model.checkpoint",
        *(f"dataset.{k}" for k in ("data_path", "masks_path", "split", "corrections")),
        *(f"valdataset.{k}" for k in ("data_path", "masks_path")),
        "evaluation.compare",
    ]
    assert read_run_config(hostile).output_dir == str(tmp_path / "victim" / "planted")
    assert files_below(tmp_path) == before


def test_adapters_and_replays_with_interpolations_are_rejected(
    tiny_config, hostile, tmp_path, batch
):
    adapter = tmp_path / "downloads" / "adapter.pt"
    save_adapter(tiny_config, build_sam2_model(tiny_config), adapter)
    for file in (adapter, hostile):
        rewrite(file, "model.checkpoint", "${oc.env:SECRET}")
    for load in (load_run, lambda path: load_weights(build_sam2_model(tiny_config), path)):
        with pytest.raises(CheckpointError, match="model.checkpoint is an interpolation"):
            load(adapter)
    content = torch.load(hostile, weights_only=True)
    step = {"batch": vars(batch), "index": 0, "rank": 0, "fault": "the loss is nan"}
    torch.save(content | {STEP_KEY: step}, tmp_path / "replay.pt")
    with pytest.raises(CheckpointError, match="model.checkpoint is an interpolation"):
        replay(tmp_path / "replay.pt")


def test_an_adapter_finds_its_base_weights_by_name_or_in_its_run(tiny_config, tmp_path):
    adapter, start = tmp_path / "run" / "adapter.pt", tmp_path / "start.pt"
    adapter.parent.mkdir()
    torch.save({"model": build_sam2_model(tiny_config).state_dict()}, start)
    trained = create_sam2_model(tiny_config)
    tiny_config.model.checkpoint = "nano"
    save_adapter(tiny_config, trained, adapter)
    assert load_run(adapter)[0].model.checkpoint == "nano"
    tiny_config.model.checkpoint = str(start)
    save_adapter(tiny_config, trained, adapter)
    with pytest.raises(CheckpointError, match="adapter.pt: .*initial weights.*config.yaml"):
        load_run(adapter)
    save_config(tiny_config, tmp_path / "run" / "config.yaml")
    config, model = load_run(adapter)
    assert config.model.checkpoint == str(start)
    expected = torch.load(start, weights_only=True)["model"]
    frozen = {k: v for k, v in model.state_dict().items() if k.startswith("image_encoder.")}
    assert frozen and all(torch.equal(v, expected[k]) for k, v in frozen.items())


def test_a_checkpoint_without_its_run_requires_a_data_path(hostile, tmp_path, data, capsys):
    before = files_below(tmp_path)
    assert main(["evaluate", "--model-checkpoint", str(hostile)]) == 2
    output = capsys.readouterr().err
    for word in (str(hostile), "data_path: not set", "stored in a checkpoint are ignored"):
        assert word in output
    assert "--data-path DIR" in output and "--config FILE" in output and "victim" not in output
    assert files_below(tmp_path) == before


@pytest.mark.parametrize("part", ["valdataset", "testdataset"])
def test_a_checkpoint_without_its_run_needs_only_the_videos_to_score(tmp_path, part):
    overrides = [f"evaluation.split={'test' if part == 'testdataset' else 'validation'}"]
    ignored = ["dataset.data_path", "trainer.resume_from"]
    with pytest.raises(ConfigError) as error:
        override_allowed(Config(), ignored[:1], overrides, "best.ckpt")
    assert "--data-path DIR" in error.value.hint
    overrides.append(f"{part}.data_path={tmp_path}")
    config, _ = override_allowed(Config(), ignored, overrides, "best.ckpt")
    assert get(config, f"{part}.data_path") == str(tmp_path)


@pytest.mark.parametrize("kind", ["coco", "mixture"])
def test_a_checkpoint_without_its_run_requires_the_paths_of_its_data_type(hostile, kind, capsys):
    rewrite(hostile, "dataset.type", kind)
    rewrite(hostile, "dataset.annotation_file", "a.json")
    rewrite(hostile, "dataset.mixture", [{"data_path": "a"}])
    assert main(["evaluate", "--model-checkpoint", str(hostile)]) == 2
    output = capsys.readouterr().err
    assert ("annotation_file=None" if kind == "coco" else "mixture=[]") in output
    assert "stored in a checkpoint are ignored" in output and "--config FILE" in output


def test_config_yaml_beside_a_checkpoint_supplies_its_paths(
    tiny_config, tmp_path, data, monkeypatch
):
    tiny_config.dataset.data_path, tiny_config.trainer.accelerator = str(data), "cpu"
    torch.save({"model": build_sam2_model(tiny_config).state_dict()}, tmp_path / "start.pt")
    tiny_config.model.checkpoint = str(tmp_path / "start.pt")
    tiny_config.output_dir = str(tmp_path / "outputs")
    checkpoint = write_run(tiny_config, tmp_path / "run" / "best.ckpt")
    tiny_config.dataset.num_workers = 1  # changed by hand since
    tiny_config.seed += 1
    save_config(tiny_config, tmp_path / "run" / "config.yaml")
    for source in (checkpoint, checkpoint.parent):
        config, ignored = source_config(source)
        assert not ignored and config.dataset.num_workers == 1
        assert config.seed == tiny_config.seed - 1  # the run's, as the checkpoint says
    evaluation = evaluate_checkpoint(checkpoint.parent)
    assert list(evaluation.scores) == [AFTER, BEFORE, ZEROED, COPY]
    assert evaluation.output_dir.is_relative_to(tmp_path / "outputs")


def test_config_yaml_with_interpolations_is_rejected(tiny_config, hostile, monkeypatch):
    beside = hostile.with_name("config.yaml")
    save_config(tiny_config, beside)
    beside.write_text(beside.read_text().replace("data_path: null", "data_path: ${oc.env:SECRET}"))
    with pytest.raises(CheckpointError, match="config.yaml: dataset.data_path is an interpol"):
        evaluate_checkpoint(hostile)
    with pytest.raises(CheckpointError, match="config.yaml: dataset.data_path is an interpol"):
        load_model(hostile)


@pytest.mark.parametrize("text", ["defaults: [x]\nseed: '${oc.env:SECRET}'\n", "name: other\n"])
def test_config_yaml_of_another_program_is_ignored_and_not_overwritten(hostile, text, tiny_config):
    beside = hostile.with_name("config.yaml")
    beside.write_text(text)
    assert "dataset.data_path" in source_config(hostile)[1]
    with pytest.raises(ConfigError, match="not a run's saved configuration"):
        save_config(tiny_config, beside)
    assert beside.read_text() == text


def test_a_file_name_with_an_interpolation_is_rejected(tiny_config, hostile, tmp_path):
    file = tmp_path / "${oc.env:SECRET}.pt"
    torch.save({"model": build_sam2_model(tiny_config).state_dict()}, file)
    with pytest.raises(CheckpointError, match="model.checkpoint is an interpolation"):
        evaluate_checkpoint(file, ["dataset.type=synthetic"], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def nested(depth: int) -> object:
    return {"a": nested(depth - 1)} if depth else 1


def self_referencing() -> dict:
    content: dict = {}
    content["evaluation"] = {"tracker": content}
    return content


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (None, "is a NoneType"),
        ("model: {size: nano}", "is a str"),
        ([], "is a list"),
        ({"model": {"size": torch.zeros(1)}}, "model.size is a Tensor"),
        ({"evaluation": {"tracker": nested(MAX_DEPTH)}}, "nested too deeply"),
        (self_referencing(), "nested too deeply"),
        ({"model": {"trainable_modules": ["a"] * MAX_VALUES}}, f"maximum of {MAX_VALUES}"),
        ({"recipe": "a" * (MAX_TEXT + 1)}, f"recipe has {MAX_TEXT + 1} characters"),
        ({"model": {torch.zeros(1): 1}}, "model has a key that is not a string"),
        ({"model": {"colour": "red"}}, "does not fit this version"),
        ({"model": 3}, "does not fit this version"),
        ({"seed": "much"}, "does not fit this version"),
        ({"dataset": {"mixture": {"a": 1}}}, "does not fit this version"),
    ],
)
def test_content_that_sam2kit_cannot_have_saved_is_rejected(content, word):
    with pytest.raises(CheckpointError, match=word) as error:
        read_stored(content, "run.ckpt")
    assert str(error.value).startswith("run.ckpt: ") and len(str(error.value)) < 1000
    assert error.value.hint


def test_names_of_splits_and_of_released_models_are_kept(hostile):
    rewrite(hostile, "dataset.split", "2016/train")
    rewrite(hostile, "model.checkpoint", "sam2.1_hiera_tiny")
    config, ignored = source_config(hostile)
    assert config.dataset.split == "2016/train"
    assert config.model.checkpoint == "sam2.1_hiera_tiny"
    assert not {"dataset.split", "model.checkpoint"} & set(ignored)
    for path in ("../train", "/etc/hosts", "train.txt", "a//b", "~/x"):
        rewrite(hostile, "dataset.split", path)
        assert source_config(hostile)[0].dataset.split is None


def test_resuming_does_not_delete_paths_in_the_checkpoint(toy_config, tmp_path):
    """Lightning would delete the path that the state of the checkpoint callback contains."""
    toy_config.dataset.synthetic_videos, toy_config.trainer.max_epochs = 2, 1
    toy_config.scheduler.name = "constant"
    run = fit(toy_config, tmp_path / "run")
    (tmp_path / "thesis").mkdir()
    content = torch.load(run.last_checkpoint, weights_only=True)
    for name, state in content["callbacks"].items():
        if name.startswith("ModelCheckpoint"):
            state["best_model_path"] = str(tmp_path / "run" / ".." / "thesis")
    torch.save(content, run.last_checkpoint)
    toy_config.trainer.max_epochs, toy_config.trainer.resume_from = 2, str(run.last_checkpoint)
    fit(toy_config, tmp_path / "run")
    assert (tmp_path / "thesis").is_dir()
    WholeCheckpoints().remove_checkpoint(tmp_path / "thesis")
    assert (tmp_path / "thesis").is_dir()
