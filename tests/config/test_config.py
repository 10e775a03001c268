"""Configurations are composed, validated and written."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import fields

import pytest
import yaml

from sam2kit.config.loading import (
    config_dir,
    load_config,
    override,
    override_config,
    same_value,
    save_config,
    split_overrides,
    to_yaml,
)
from sam2kit.config.schema import Config, ModelConfig, options
from sam2kit.config.validation import LIMITS, check, check_paths
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.paths import missing

CHANGED = [
    "model.size=b+",
    "optimizer.lr=1e-5",
    "trainer.devices='0,1'",
    "dataset.max_objects=null",
]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def load_error(*args) -> ConfigError:
    with pytest.raises(ConfigError) as caught:
        load_config(*args)
    return caught.value


def error_text(*args) -> str:
    return str(load_error(*args))


def test_default_configuration_equals_the_dataclass_defaults():
    config = load_config()
    assert config == Config() and isinstance(config.model, ModelConfig)
    assert config.model.trainable_modules == ["memory_attention", "memory_encoder"]
    assert (config.dataset.video_clip_length, config.dataset.image_size) == (5, 512)
    assert (config.optimizer.lr, config.optimizer.name) == (1e-4, "adamw")
    loss = config.loss
    assert (loss.bce, loss.dice, loss.iou, loss.temporal) == (1, 1, 0.5, 0.1)


def test_precedence_is_dataclass_group_file_override(tmp_path):
    text = "defaults: [config, override loss: from_scratch, _self_]\nloss: {bce: 3, dice: 4}\n"
    config = load_config(write(tmp_path / "mine.yaml", text), ["loss.dice=7"])
    assert (config.loss.object_score, config.loss.bce, config.loss.dice) == (0.5, 3, 7)
    assert config.loss.temporal == 0.1


@pytest.mark.parametrize("to_text", [to_yaml, lambda c: to_yaml(c, comments=False)])
def test_written_configuration_loads_back_equal(tmp_path, to_text):
    config = load_config(None, CHANGED)
    assert load_config(write(tmp_path / "a.yaml", to_text(config))) == config


def test_text_that_looks_like_a_number_survives(tmp_path):
    config = load_config(
        None, [override("output_dir", "1e3"), override("model.checkpoint", "null")]
    )
    save_config(config, tmp_path / "c.yaml")
    assert load_config(tmp_path / "c.yaml") == config
    assert (config.output_dir, config.model.checkpoint) == ("1e3", "null")


def test_a_saved_configuration_holds_in_another_directory(tmp_path, monkeypatch):
    (tmp_path / "here" / "videos").mkdir(parents=True)
    (tmp_path / "here" / "other.ckpt").touch()
    (tmp_path / "there").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    changes = ["dataset.data_path=videos", "valdataset.data_path=missing", "output_dir=videos"]
    changes += ["dataset.annotation_file='videos/*.json'", "valdataset.split=2016/val"]
    changes += ["evaluation.compare={other: other.ckpt}"]
    changes += ["dataset.mixture=[{data_path: videos}]", "model.checkpoint=nano"]
    config = load_config(None, changes)
    save_config(config, tmp_path / "there" / "config.yaml")
    monkeypatch.chdir(tmp_path / "there")
    saved = load_config("config.yaml")
    videos = str(tmp_path / "here" / "videos")
    assert saved.dataset.data_path == videos
    assert saved.dataset.annotation_file == f"{videos}/*.json"
    assert saved.dataset.mixture == [{"data_path": videos}]
    assert saved.evaluation.compare == {"other": str(tmp_path / "here" / "other.ckpt")}
    # Names, missing files, and the parent of new runs stay as they are.
    assert (saved.valdataset.data_path, saved.valdataset.split) == ("missing", "2016/val")
    assert (saved.output_dir, saved.model.checkpoint) == ("videos", "nano")
    assert config.dataset.data_path == "videos"


@pytest.mark.parametrize(
    ("value", "other", "same"),
    [
        ("a/b", "/x/a/b", True),
        ("/x/a/b", "a/b", True),
        ("a/b", "/x/c/b", False),
        ("/a/b", "/x/a/b", False),
        ("a", "b", False),
        (["m"], ["/x/m"], True),
        ({"k": "m", "n": 1}, {"k": "/x/m", "n": 1}, True),
        ({"k": "m"}, {"k": "m", "n": 1}, False),
        (1, 1.0, True),
        (None, "/x", False),
    ],
)
def test_an_absolute_path_equals_its_relative_form(value, other, same):
    assert same_value(value, other) is same


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a.b=1", ["a.b=1"]),
        ("a.b=1 model=nano  +c=[x, y]", ["a.b=1", "model=nano", "+c=[x, y]"]),
        ("a.b='one two'", ["a.b='one two'"]),
        ("", []),
        (["a=1", "b=2"], ["a=1", "b=2"]),
    ],
)
def test_overrides_may_be_one_text(text, expected):
    assert split_overrides(text) == expected


def test_a_text_of_overrides_is_applied():
    config = load_config(None, "seed=7 model.trainable_modules=[memory_attention, memory_encoder]")
    assert config.seed == 7
    assert config.model.trainable_modules == ["memory_attention", "memory_encoder"]


def test_every_key_is_commented_and_every_line_fits():
    lines = to_yaml(Config()).splitlines()
    assert max(map(len, lines)) <= 100
    for key in options():
        name = key.rpartition(".")[2]
        rows = [i for i, line in enumerate(lines) if line.strip().startswith(f"{name}:")]
        assert rows and all(lines[i - 1].strip().startswith("#") for i in rows), key


@pytest.mark.parametrize("value", ["it's", "a, b", "x=y", "back\\", "[1", "a 'b' \"c\"", ""])
def test_override_keeps_text_literally(value):
    assert load_config(None, [override("output_dir", value)]).output_dir == value


@pytest.mark.parametrize("value", ["mine ü/日本", "~/a#b", "a=b", "it's", "2024_10", "1e3", "1.10"])
def test_text_option_keeps_a_path_as_the_shell_passes_it(value):
    config = load_config(None, [f"dataset.data_path={value}", f"output_dir={value}"])
    assert (config.dataset.data_path, config.output_dir) == (value, value)


@pytest.mark.parametrize("value", ["ü,b c", "[ü", "'ü"])
def test_list_or_open_quote_is_not_taken_as_a_path(value):
    assert "dataset.data_path=" in str(load_error(None, [f"dataset.data_path={value}"]))


def test_file_without_a_defaults_list_accepts_group_choices(tmp_path):
    save_config(load_config(None, ["model=large", "seed=7"]), tmp_path / "config.yaml")
    config = load_config(tmp_path / "config.yaml", ["model=nano", "dataset=synthetic", "+seed=8"])
    assert (config.model.size, config.dataset.type, config.seed) == ("nano", "synthetic", 8)


def test_groups_are_searched_beside_the_file_and_then_in_the_package(tmp_path):
    folder = tmp_path / "with space, and 'quote'"
    (folder / "dataset").mkdir(parents=True)
    write(folder / "dataset" / "mine.yaml", "type: synthetic\n")
    write(folder / "base.yaml", "defaults: [config, override dataset: mine]\n")
    file = write(folder / "top.v2.yaml", "defaults: [base, _self_]\nmodel: {size: s}\n")
    config = load_config(
        file, ["scheduler=constant", "dataset=coco", "dataset.annotation_file=a.json"]
    )
    assert (config.model.size, config.dataset.type) == ("s", "coco")
    assert config.scheduler.name == "constant"
    assert load_config(file).dataset.type == "synthetic"


def test_empty_file_is_the_defaults(tmp_path):
    assert load_config(write(tmp_path / "e.yaml", "# nothing\n")) == Config()


def test_interpolation_is_resolved(tmp_path):
    file = write(tmp_path / "i.yaml", "valdataset: {batch_size: '${dataset.batch_size}'}\n")
    assert load_config(file, ["dataset.batch_size=3"]).valdataset.batch_size == 3
    broken = write(tmp_path / "b.yaml", "seed: ${nothing.there}\n")
    assert "nothing.there" in error_text(broken)


def test_override_config_accepts_a_configuration_or_its_dictionary():
    config = load_config(None, CHANGED)
    changed = override_config(config, ["optimizer.lr=3", "model=nano"])
    assert (changed.optimizer.lr, changed.model.size, changed.trainer.devices) == (3, "nano", "0,1")
    assert config.optimizer.lr == 1e-5
    with pytest.raises(ConfigError, match="model.sise: unknown key in run.ckpt"):
        override_config({"model": {"sise": "t"}}, source="run.ckpt")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer: {lrr: 1}", ["bad.yaml", "optimizer.lrr", "optimizer.lr"]),
        ("optimiser: {lr: 1}", ["bad.yaml", "optimiser", "did you mean optimizer"]),
        ("batch_size: 2", ["bad.yaml", "batch_size", "dataset.batch_size"]),
        ("dataset: {batch_size: four}", ["bad.yaml", "dataset.batch_size", "'four'", "whole"]),
        ("model: {trainable_modules: [{a: 1}]}", ["trainable_modules", "list"]),
        ("model: {checkpoint: true}", ["model.checkpoint", "True", "text, or null"]),
        ("seed: null", ["bad.yaml", "seed", "None", "whole number"]),
        ("model: nano", ["bad.yaml", "model", "'nano'", "defaults list"]),
        ("model:", ["bad.yaml", "model", "a section with keys"]),
        ("- a\n- b", ["bad.yaml", "list"]),
        ("a: [", ["bad.yaml", "not a YAML file"]),
        ("seed: 1\nseed: 2", ["bad.yaml", "duplicate key seed"]),
        ("defaults: [config, override model: nanno]", ["bad.yaml", "model/nanno", "nano"]),
        ("defaults: [nothing_here]", ["bad.yaml", "nothing_here"]),
        ("seed: ???", ["bad.yaml", "seed"]),
    ],
)
def test_bad_file_is_named_with_its_key(tmp_path, text, words):
    message = error_text(write(tmp_path / "bad.yaml", text + "\n"))
    assert all(word in message for word in words), message


def test_bad_group_file_is_named_with_its_key(tmp_path):
    (tmp_path / "loss").mkdir()
    write(tmp_path / "loss" / "mine.yaml", "dicee: 1\n")
    message = error_text(write(tmp_path / "a.yaml", "defaults: [config, override loss: mine]\n"))
    assert "loss/mine" in message and "dicee" in message


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("optimizer.lrr=1", ["optimizer.lrr", "optimizer.lr"]),
        ("optimizer.learning_rate=1", ["keys of optimizer are name, lr"]),
        ("lr=1", ["did you mean optimizer.lr?"]),
        ("optimizer.lr=fast", ["optimizer.lr", "'fast'", "a number"]),
        ("trainer.max_epochs=1.5", ["trainer.max_epochs", "1.5", "whole number"]),
        ("model=nanno", ["model", "nanno", "did you mean nano"]),
        ("model={sizes:t}", ["model.sizes", "model.size"]),
        ("trainer.devices=0,1", ["several values", "\"trainer.devices='a,b'\""]),
        ("~seed", ["seed", "null"]),
        ("just words", ["just words", "key=value"]),
        ("hydra.run.dir=x", ["hydra.run.dir"]),
    ],
)
def test_bad_override_is_named(text, words):
    message = error_text(None, [text])
    assert "command line" in message and all(word in message for word in words), message


def test_missing_file_lists_similar_names(tmp_path):
    write(tmp_path / "quickstart.yaml", "")
    error = load_error(tmp_path / "quickstrat.yaml")
    assert (error.key, error.value) == ("--config", str(tmp_path / "quickstrat.yaml"))
    assert "quickstart.yaml" in str(error) and error.hint
    assert "directory" in error_text(tmp_path)


INVALID = [
    "dataset.identity=class",
    "model.size=xl",
    "model.trainable_modules=[]",
    "dataset.type=pictures",
    "dataset.image_size=500",
    "dataset.image_size=0",
    "dataset.video_clip_length=0",
    "dataset.frame_stride=0",
    "dataset.clips_per_video=0",
    "dataset.batch_size=0",
    "dataset.replay=1",
    "dataset.replay=-0.1",
    "dataset.num_workers=-1",
    "dataset.max_objects=0",
    "dataset.min_objects=0",
    "dataset.max_gap=-1",
    "dataset.short_videos=skip",
    "dataset.mask_noise=-0.1",
    "dataset.negative_kinds=[]",
    "dataset.negative_kinds=[far]",
    "augmentation.flip=1.5",
    "augmentation.crop=1",
    "augmentation.shear=90",
    "augmentation.frame_contrast=-0.1",
    "dataset.synthetic_objects=-1",
    "dataset.max_annotation_gap=0",
    "dataset.prompt_types=[]",
    "dataset.prompt_types=[scribble]",
    "dataset.prompt_types=[box,box]",
    "dataset.prompt_probabilities=[0.5,0.5]",
    "dataset.prompt_probabilities=[0.5]",
    "dataset.num_positive_points=0",
    "dataset.num_negative_points=-1",
    "valdataset.type=pictures",
    "valdataset.fraction=0",
    "valdataset.fraction=1",
    "valdataset.video_clip_length=0",
    "valdataset.batch_size=0",
    "valdataset.prompt_types=[lasso]",
    "loss.dice=-1",
    "loss.bce=inf",
    "loss.bce_positive_weight=0.5",
    "optimizer.name=sgd",
    "optimizer.lr=0",
    "optimizer.lr=nan",
    "optimizer.weight_decay=-1",
    "optimizer.betas=[0.9]",
    "optimizer.betas=[0.9,1.5]",
    "scheduler.name=linear",
    "scheduler.warmup_steps=-1",
    "scheduler.min_lr_ratio=2",
    "trainer.max_epochs=0",
    "trainer.max_steps=0",
    "trainer.max_time=20min",
    "trainer.ema_decay=1",
    "trainer.average_with_start=0",
    "trainer.average_with_start=1",
    "dataset.synthetic_motion=-1",
    "dataset.synthetic_lifelike=1.5",
    "trainer.accelerator=tpus",
    "trainer.devices=two",
    "trainer.devices=0",
    "trainer.precision=16",
    "trainer.gradient_clip_val=0",
    "trainer.accumulate_grad_batches=0",
    "trainer.limit_train_batches=0",
    "trainer.early_stopping_patience=0",
    "trainer.logger=mlflow",
    "evaluation.protocol=lasso",
    "evaluation.convention=mine",
    "evaluation.clicks=0",
    "evaluation.clicks=2",
    "evaluation.reprompt_every=0",
    "evaluation.noise=nan",
    "evaluation.noise_kinds=[wind]",
    "evaluation.noise_levels=[0.1,0.1]",
    "evaluation.noise_levels=[1.5]",
    "evaluation.calibration_videos=-1",
    "seed=-1",
    "log_level=LOUD",
]


@pytest.mark.parametrize("text", INVALID)
def test_invalid_value_is_reported_with_a_fix(text):
    key, _, value = text.partition("=")
    (error,) = load_error(None, [text]).problems
    assert error.key is not None and error.key.partition("[")[0] == key
    parsed = yaml.safe_load(value)
    assert str(error.value) == str(parsed) or error.value == parsed or error.value in parsed
    assert (
        error.expected
        and error.hint
        and str(error).startswith(f"{error.key}={error.value!r} must be ")
    )


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["dataset.type=coco"], ["dataset.annotation_file", "coco"]),
        (["valdataset.type=coco"], ["valdataset.annotation_file", "coco"]),
        (["dataset.min_objects=4"], ["dataset.min_objects=4", "at most dataset.max_objects=3"]),
        (
            ["dataset.type=video", "dataset.identity=track"],
            ["dataset.identity", "type=video", "components"],
        ),
        (
            ["dataset.type=synthetic", "dataset.replay=0.5"],
            ["dataset.replay=0.5", "0 with type=synthetic"],
        ),
        (
            ["trainer.average_with_start=0.5", "model.checkpoint=random"],
            ["trainer.average_with_start=0.5", "null with model.checkpoint=random"],
        ),
        (["use_wandb=true", "trainer.logger=swanlab"], ["use_wandb", "swanlab", "--no-wandb"]),
        (["trainer.accelerator=cpu", "trainer.precision=16-mixed"], ["bf16-mixed"]),
        (["loss={bce:0,dice:0,iou:0,temporal:0}"], ["loss", "all of", "above 0"]),
        (
            ["dataset.prompt_types=[box,mask]", "dataset.prompt_probabilities=[0.9,0.3]"],
            ["add up to 1"],
        ),
    ],
)
def test_invalid_combination(overrides, words):
    error = load_error(None, overrides)
    assert all(problem.hint for problem in error.problems)
    assert all(word in str(error) for word in words), error


def test_all_problems_are_reported_at_once_without_duplicates():
    config = Config()
    config.dataset.image_size = 100
    config.optimizer.lr = 0
    config.valdataset.batch_size = 0
    with pytest.raises(ConfigError) as caught:
        check(config)
    keys = ["optimizer.lr", "dataset.image_size", "valdataset.batch_size"]
    assert [problem.key for problem in caught.value.problems] == keys
    assert caught.value.problems[1].hint == "try 96" and len(str(caught.value).splitlines()) == 3


def test_choices_are_suggested_and_the_invalid_entry_is_named():
    error = load_error(None, ["dataset.type=vidoe"])
    assert error.value == "vidoe" and error.hint == "did you mean video?"
    assert load_error(None, ["dataset.type=x"]).hint == 'the default is "auto"'
    assert load_error(None, ["valdataset.synthetic_videos=0"]).hint == "the default is 16"
    error = load_error(None, ["optimizer.module_lr={image_encoder: 0}"])
    assert (error.key, error.expected) == ("optimizer.module_lr.image_encoder", "above 0")
    error = load_error(None, ["optimizer.betas=[0.9,1.5]"])
    assert (error.key, error.expected) == ("optimizer.betas[1]", "at least 0 and below 1")


def test_every_declared_limit_is_supported_and_the_defaults_are_valid():
    for key, field in options().items():
        assert field.metadata["limits"].keys() <= LIMITS.keys(), key
    check(Config())


@pytest.mark.parametrize("devices", ["1", "8", "auto", "-1", "0,", "0,1"])
def test_valid_devices(devices):
    load_config(None, [override("trainer.devices", devices)])


def test_missing_paths_are_reported_with_similar_names(tmp_path):
    (tmp_path / "davis").mkdir()
    write(tmp_path / "tiny.pt", "")
    data = override("dataset.data_path", str(tmp_path / "davis"))
    check_paths(load_config(None, [data]))
    check_paths(load_config(None, [data, "model.checkpoint=sam2.1_hiera_tiny"]))
    check_paths(load_config(None, ["dataset.type=synthetic"]))
    for overrides, words in [
        ([], ["dataset.data_path: not set", "--data-path"]),
        ([override("dataset.data_path", str(tmp_path / "davs"))], ["dataset.data_path", "davis"]),
        ([data, f"valdataset.data_path={tmp_path}/val"], ["valdataset.data_path", "val"]),
        ([data, "dataset.type=coco", "dataset.annotation_file=no.json"], ["annotation_file"]),
        (["dataset.type=synthetic", "dataset.synthetic_photos=no_photos"], ["synthetic_photos"]),
        ([data, f"model.checkpoint={tmp_path}/tinny.pt"], ["model.checkpoint", "tiny.pt"]),
        ([data, "model.checkpoint=best.ckpt"], ["model.checkpoint", "best.ckpt does not exist"]),
        ([data, "trainer.resume_from=last.ckpt"], ["trainer.resume_from", "last.ckpt"]),
    ]:
        with pytest.raises(ConfigError) as caught:
            check_paths(load_config(None, overrides))
        assert all(word in str(caught.value) for word in words), caught.value


def test_missing_names_the_closest_existing_directory(tmp_path):
    assert f"{tmp_path} is empty" in missing(tmp_path / "a" / "b" / "c")


ORDERS = {
    "sam2 first": ["import sam2", "kit()", "upstream()", "kit()", "upstream()"],
    "kit first": ["kit()", "import sam2", "upstream()", "kit()", "upstream()"],
}
HYDRA = """
from hydra.core.global_hydra import GlobalHydra
def kit():
    from sam2kit.config.loading import load_config
    before = GlobalHydra.instance().is_initialized()
    assert load_config(None, ["model=nano"]).model.size == "nano"
    assert GlobalHydra.instance().is_initialized() == before
    from hydra.core.config_store import ConfigStore
    assert not any("sam2kit" in name for name in ConfigStore.instance().repo)
def upstream():
    import hydra
    assert hydra.compose("configs/sam2.1/sam2.1_hiera_t.yaml").model.image_size == 1024
"""


@pytest.mark.parametrize("order", ORDERS)
def test_composing_and_importing_sam2_work_in_any_order(order):
    code = "\n".join([HYDRA, *ORDERS[order]])
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_hydra_is_restored_after_an_error():
    from hydra.core.global_hydra import GlobalHydra

    before = GlobalHydra.instance().is_initialized()
    load_error(None, ["loss.dice=-1"])
    assert GlobalHydra.instance().is_initialized() == before


def test_importing_the_configuration_loads_no_heavy_packages():
    code = (
        "import sys, sam2kit.config.schema, sam2kit.config.validation, sam2kit.config.loading\n"
        "heavy = {'torch', 'hydra', 'omegaconf', 'lightning', 'numpy'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_every_key_has_help_and_every_section_a_title():
    for key, field in options().items():
        assert field.metadata["help"], key
    for section in fields(Config):
        if section.name not in options():
            assert getattr(Config(), section.name).__doc__, section.name


def test_bundled_files_start_with_their_command_and_hardware():
    files = sorted(config_dir().rglob("*.yaml"))
    assert len(files) > 20
    for file in files:
        head = [line for line in file.read_text().splitlines() if line.startswith("#")]
        text = "\n".join(head)
        assert "# Command: python -m sam2kit" in text and "# Hardware: " in text, file
