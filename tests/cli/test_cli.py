"""The command line: flags, errors, and a training run with every bundled YAML file."""

from __future__ import annotations

import json
import os
import resource
import runpy
import shutil
import subprocess
import sys
import types
from itertools import zip_longest
from pathlib import Path

import numpy as np
import pytest
from data_helpers import make_sav
from PIL import Image
from stack_helpers import make_ctc, make_dicom, make_nifti, make_npz, make_stacks

from sam2kit.cli.main import COMMANDS, main
from sam2kit.config.loading import config_dir, load_config, save_config
from sam2kit.config.schema import Config, get
from sam2kit.data import AcceptedFrame, add_to_training_set, open_source
from sam2kit.models.checkpoint_io import write_checkpoint
from sam2kit.models.checkpoints import CONFIG_KEY, config_to_store
from sam2kit.utils.locks import locked

ROOT = Path(__file__).parents[2]
SYNTHETIC = ["dataset=synthetic"]
NANO = ["--model-checkpoint", "nano"]


class FakeModule(types.ModuleType):
    """A replacement for a module of the library."""


@pytest.fixture
def calls(monkeypatch):
    """Replace functions of the library and record their calls, so that torch is not imported."""
    recorded = []

    def replace(module, name, result=None):
        fake = sys.modules.get(f"sam2kit.{module}")
        if not isinstance(fake, FakeModule):
            fake = FakeModule(f"sam2kit.{module}")
        setattr(fake, name, lambda *a, **k: recorded.append((name, a, k)) or result)
        monkeypatch.setitem(sys.modules, f"sam2kit.{module}", fake)

    result = types.SimpleNamespace(interrupted=False, run_dir=Path("run"))
    replace("training.trainer", "fit", result)
    replace("evaluation.evaluate", "evaluate_checkpoint")
    replace("evaluation.evaluate", "evaluate_predictions")
    replace("pipeline.runner", "run_stages")
    return recorded


def trained(calls, *argv) -> Config:
    assert main(["train", *SYNTHETIC, *argv]) == 0
    return calls[-1][1][0]


def test_train_ends_with_the_next_commands(calls, capsys):
    trained(calls)
    err = capsys.readouterr().err
    assert "sam2kit evaluate --model-checkpoint run" in err and "sam2kit track VIDEO" in err


def error_output(capsys, *argv) -> str:
    """Run a command that must exit with code 2 and print "error: ..."; return what it prints."""
    assert main(list(argv)) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ") and "Traceback" not in err
    return err


@pytest.mark.parametrize(
    ("argv", "key", "value"),
    [
        (["--lr", "1e-5"], "optimizer.lr", 1e-5),
        (["--max-epochs", "3"], "trainer.max_epochs", 3),
        (["--batch-size", "2"], "dataset.batch_size", 2),
        (["--seed", "7"], "seed", 7),
        (["--output-dir", "my runs, all"], "output_dir", "my runs, all"),
        (["--model-checkpoint", "sam2.1_hiera_tiny"], "model.checkpoint", "sam2.1_hiera_tiny"),
        (["--data-path", str(ROOT)], "dataset.data_path", str(ROOT)),
        (["--accelerator", "cpu"], "trainer.accelerator", "cpu"),
        (["--devices", "0,1"], "trainer.devices", "0,1"),
        (["--devices", "-1"], "trainer.devices", "-1"),
        (["--precision", "bf16-mixed"], "trainer.precision", "bf16-mixed"),
        (["--wandb"], "use_wandb", True),
        (["--no-wandb"], "use_wandb", False),
        (["optimizer.lr=1e-5"], "optimizer.lr", 1e-5),
        (["model=nano"], "model.size", "nano"),
        # What people guess.
        (["--epochs", "3"], "trainer.max_epochs", 3),
        (["--learning-rate", "1e-5"], "optimizer.lr", 1e-5),
        (["--image-size", "256"], "dataset.image_size", 256),
        (["--clip-length", "8"], "dataset.video_clip_length", 8),
        (["--num-workers", "0"], "dataset.num_workers", 0),
        (["--model", "small"], "model.size", "s"),
        (["--model-size", "b+"], "model.size", "b+"),
        (["--model", "sam2.1_hiera_large"], "model.size", "l"),
        (["model.size=large"], "model.size", "l"),
        (
            ["--model-checkpoint", "sam2.1_hiera_tiny.pt"],
            "model.checkpoint",
            "sam2.1_hiera_tiny.pt",
        ),
        (
            ["model.trainable_modules=sam_mask_decoder"],
            "model.trainable_modules",
            ["sam_mask_decoder"],
        ),
    ],
)
def test_flag_sets_only_its_key(calls, argv, key, value):
    config, plain = trained(calls, *argv), load_config(None, SYNTHETIC)
    assert get(config, key) == value
    section, _, name = key.rpartition(".")
    setattr(get(plain, section) if section else plain, name, value)
    assert config == plain


def test_flags_and_overrides_take_precedence_over_debug(calls, tmp_path):
    (tmp_path / "f.yaml").write_text("dataset: {num_workers: 4, type: synthetic}\nlog_level: ERROR")
    file = str(tmp_path / "f.yaml")
    config = trained(calls, "--config", file, "--debug", "trainer.limit_val_batches=1")
    assert config.debug and config.log_level == "DEBUG" and config.dataset.num_workers == 0
    assert config.trainer.max_epochs == 1
    assert (config.trainer.limit_train_batches, config.trainer.limit_val_batches) == (2, 1)


def test_flags_and_overrides_may_be_mixed(calls):
    config = trained(calls, "seed=1", "--lr", "2", "model=nano", "--max-epochs", "3", "loss.iou=0")
    assert (config.seed, config.optimizer.lr, config.trainer.max_epochs) == (1, 2, 3)
    assert (config.model.size, config.loss.iou) == ("nano", 0)


def test_no_wandb_overrides_a_file(calls, tmp_path):
    (tmp_path / "w.yaml").write_text("use_wandb: true\ntrainer: {logger: wandb}\n")
    file = ["--config", str(tmp_path / "w.yaml")]
    assert trained(calls, *file).logger == "wandb"
    assert trained(calls, *file, "--no-wandb").logger == "tensorboard"


def test_a_flag_and_an_override_of_the_same_key_are_rejected(capsys):
    message = error_output(capsys, "train", "--lr", "1", "optimizer.lr=2")
    assert "--lr" in message and "optimizer.lr=2" in message


def test_create_config_loads_back_equal(calls, tmp_path, capsys):
    file = str(tmp_path / "new.yaml")
    changes = ["--lr", "3e-5", "model=large", "dataset=synthetic", "trainer.devices='0,1'"]
    assert main(["train", "--create-config", file, *changes]) == 0 and not calls
    assert "--config" in capsys.readouterr().out
    assert main(["train", "--config", file]) == 0
    assert calls[-1][1][0] == load_config(None, ["optimizer.lr=3e-5", *changes[2:]])
    capsys.readouterr()
    assert file in error_output(capsys, "train", "--create-config", file)


def test_create_config_prints(tmp_path, capsys):
    assert main(["train", "seed=5", "--create-config"]) == 0
    (tmp_path / "printed.yaml").write_text(capsys.readouterr().out)
    assert load_config(tmp_path / "printed.yaml").seed == 5


@pytest.mark.parametrize("file", ["optimizer.lr=1", "no/such/folder/a.yaml"])
def test_create_config_rejects_unusable_file_names(capsys, file):
    assert "--create-config" in error_output(capsys, "train", "--create-config", file)


@pytest.mark.parametrize(
    ("argv", "words"),
    [
        (["train"], ["dataset.data_path: not set"]),
        (["train", "--config", "configs/quickstrat.yaml"], ["--config", "quickstart.yaml"]),
        (["train", "trainable_modules=memory_attention"], ["model.trainable_modules"]),
        (["train", "epochs=3"], ["trainer.max_epochs"]),
        (["train", "optimizer.lrr=1"], ["optimizer.lrr", "optimizer.lr"]),
        (["train", "dataset.batch_size=two"], ["dataset.batch_size", "'two'", "whole number"]),
        (["train", "dataset.image_size=100"], ["dataset.image_size", "100", "32"]),
        (["train", "--data-path", "davs"], ["dataset.data_path", "davs does not exist"]),
        (["train", *SYNTHETIC, "--model-checkpoint", "a/b.pt"], ["model.checkpoint", "a/b.pt"]),
        (
            ["train", "dataset=coco", "dataset.annotation_file=a.json"],
            ["a.json"],
        ),
        (["train", "--wandb", "trainer.logger=swanlab"], ["use_wandb", "swanlab"]),
        (["train", "--accelerator", "abacus"], ["trainer.accelerator", "abacus"]),
        (["train", "--precision", "8"], ["trainer.precision", "'8'"]),
        (["train", "--lr", "-1"], ["optimizer.lr", "-1"]),
        (["evaluate", "--model-checkpoint", "no.ckpt"], ["--model-checkpoint", "no.ckpt"]),
        (["evaluate", "--predictions", "no masks"], ["--predictions", "no masks"]),
        (["evaluate", "--predictions", ".", "--protocol", "box"], ["--predictions", "--protocol"]),
        (["evaluate", "--model-checkpoint", "x", "--compare", "b=no.pt"], ["--compare b", "no.pt"]),
        (["run", "--config", "no.yaml"], ["--config", "no.yaml"]),
        (["trian"], ["'trian'", "train"]),
    ],
)
def test_invalid_input_is_reported_before_torch_is_imported(capsys, monkeypatch, argv, words):
    monkeypatch.chdir(ROOT)
    # None in sys.modules makes an import of the module raise ImportError.
    monkeypatch.setitem(sys.modules, "sam2kit.training.trainer", None)
    monkeypatch.setitem(sys.modules, "sam2kit.evaluation.evaluate", None)
    monkeypatch.setitem(sys.modules, "sam2kit.pipeline.runner", None)
    message = error_output(capsys, *argv)
    assert all(word in message for word in words), message


@pytest.mark.parametrize(
    "argv",
    [
        ["train", "--lr", "fast"],
        ["train", "--model", "outputs/run"],
        ["train", "--max-epoch", "1"],
        ["evaluate"],
        ["evaluate", "--model-checkpoint", "a.ckpt", "--predictions", "masks"],
        ["evaluate", "--model-checkpoint", "a.ckpt", "--compare", "a.pt"],
        ["evaluate", "--model-checkpoint", "a.ckpt", "--noise-levels", "much"],
        ["run", "--config", "a.yaml", "--stages", "one"],
        ["run", "--config", "a.yaml", "--stages", "3-1"],
        ["run", "--config", "a.yaml", "--stages", "1,3-2"],
        ["run", "--config", "a.yaml", "--stages", "1-99999999999"],
        ["doctor", "data", "--workers", "-1"],
        ["convert", "data", "out", "--to", "davis", "--workers", "-1"],
        ["submit", "--run-dir", "run", "--hours", "nan"],
        ["submit", "--run-dir", "run", "--hours", "-2"],
        ["submit", "--run-dir", "run", "--hours", "1e308"],
        ["annotate", "video", "--port", "70000"],
        ["training-set", "run", "--to", "out", "--every", "0"],
        ["run", "--config", "a.yaml", "-p", "novalue"],
    ],
)
def test_malformed_flags_exit_2(argv, capsys):
    with pytest.raises(SystemExit) as stop:
        main(argv)
    assert stop.value.code == 2 and f"sam2kit {argv[0]}" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("argv", "flag"),
    [
        (["train", "--data", "films"], "--data-path?"),
        (["train", "--checkpoint=nano"], "--model-checkpoint?"),
        (["train", "--device", "cpu", "--img-size", "64"], "--accelerator, --image-size?"),
        (["track", "a.mp4", "--model-checkpoint", "nano", "--prompt", "p.json"], "--prompts?"),
        (["doctor", "films", "--masks", "labels"], "dataset.masks_path=FOLDER?"),
    ],
)
def test_unknown_flags_are_answered_with_known_ones(argv, flag, capsys, tmp_path):
    with pytest.raises(SystemExit):
        main(argv)
    assert f"did you mean {flag}" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        main(["train", "--zzzz", "films"])
    assert "did you mean" not in capsys.readouterr().err


def test_a_path_in_place_of_a_key_is_answered_with_the_flag(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my films").mkdir()
    assert main(["train", "my films"]) == 2
    assert "--data-path 'my films'" in capsys.readouterr().err


def test_run_without_a_config_uses_the_bundled_one(calls, capsys, tmp_path):
    assert main(["run", *SYNTHETIC]) == 0
    assert calls[-1][1][0] == str(config_dir() / "config.yaml")
    assert "dataset.data_path: not set" in error_output(capsys, "run")


def test_evaluate_calls_the_library(calls, tmp_path):
    file = tmp_path / "best.ckpt"
    file.touch()
    data = ["--data-path", str(tmp_path), "--output-dir", str(tmp_path / "out")]
    assert main(["evaluate", "--model-checkpoint", str(file), *data, "seed=1"]) == 0
    name, args, keywords = calls[-1]
    overrides = [f"valdataset.data_path='{tmp_path}'", "seed=1"]
    assert name == "evaluate_checkpoint"
    assert args == (str(file), overrides, tmp_path / "out") and keywords == {"config_file": None}
    flags = ["--compare", "shipped nano=nano", "--compare", f"mine={file}", "--protocol", "box"]
    argv = ["evaluate", "--model-checkpoint", str(file), *flags, "--noise-levels", "0.1,0.2"]
    assert main(argv) == 0
    evaluation = load_config(None, calls[-1][1][1]).evaluation
    assert evaluation.compare == {"shipped nano": "nano", "mine": str(file)}
    assert evaluation.protocol == "box" and evaluation.noise_levels == [0.1, 0.2]
    assert main(["evaluate", "--predictions", str(tmp_path)]) == 0
    assert calls[-1][0] == "evaluate_predictions" and calls[-1][1][0] == tmp_path


def test_a_resumed_run_gets_the_scorer_of_its_monitor(calls, tmp_path):
    stored = config_to_store(load_config(None, [*SYNTHETIC, "trainer.monitor=val_jf"]))
    write_checkpoint({CONFIG_KEY: stored}, tmp_path / "last.ckpt")
    trained(calls, "--run-dir", str(tmp_path), "--resume", "auto")
    assert calls[-1][2]["scorer"] is not None
    trained(calls, "--run-dir", str(tmp_path / "new"), "--resume", "auto")
    assert calls[-1][2]["scorer"] is None
    trained(calls, f"trainer.resume_from={tmp_path / 'last.ckpt'}")
    assert calls[-1][2]["scorer"] is not None


def test_data_path_names_the_test_videos_if_these_are_scored(calls, tmp_path):
    config = tmp_path / "config.yaml"
    save_config(load_config(None, ["evaluation.split=test"]), config)
    for split, section in (
        (["evaluation.split=test"], "testdataset"),
        (["evaluation.split=validation"], "valdataset"),
        (["--config", str(config)], "testdataset"),
        (["--config", str(config), "evaluation.split=validation"], "valdataset"),
    ):
        for source in (["--model-checkpoint", "nano"], ["--predictions", str(tmp_path)]):
            assert main(["evaluate", *source, "--data-path", str(tmp_path), *split]) == 0
            overrides = calls[-1][1][1]
            assert overrides[0] == f"{section}.data_path='{tmp_path}'"
            assert load_config(None, overrides[:1]).dataset.data_path is None


def test_run_calls_the_library(calls, tmp_path):
    save_config(load_config(None, SYNTHETIC), tmp_path / "c.yaml")
    config = ["run", "--config", str(tmp_path / "c.yaml")]
    assert main(config) == 0
    assert calls[-1][1] == (config[2], {}, [1, 2, 3, 4], None)
    flags = ["-p", "epochs=2", "-p", "lr=1e-3", "-p", "name=a=b", "--stages", "1,3-4"]
    assert main([*config, *flags, "--run-dir", "here"]) == 0
    parameters = {"epochs": 2, "lr": 1e-3, "name": "a=b"}
    assert calls[-1][1] == (config[2], parameters, [1, 3, 4], Path("here"))
    # The notebooks receive the flags of training and the overrides as the parameter "overrides".
    assert main([*config, "--lr", "0.5", "seed=7", "-p", 'overrides=["seed=3"]']) == 0
    assert calls[-1][1][1] == {"overrides": ["seed=3", "optimizer.lr=0.5", "seed=7"]}
    assert main([*config, "--debug", "--wandb"]) == 0
    overrides = calls[-1][1][1]["overrides"]
    assert "debug=true" in overrides and "use_wandb=true" in overrides


@pytest.mark.parametrize("how", ["raised", "lightning", "returned"])
def test_interruption_exits_130_and_names_the_results(monkeypatch, capsys, how):
    def fit(config, run_dir, resume, scorer):
        if how == "returned":
            return types.SimpleNamespace(interrupted=True, run_dir=Path("here"))
        try:
            raise KeyboardInterrupt
        except KeyboardInterrupt:
            if how == "lightning":
                sys.exit(1)  # like Lightning's Trainer
            raise

    fake = types.ModuleType("sam2kit.training.trainer")
    fake.fit = fit
    monkeypatch.setitem(sys.modules, "sam2kit.training.trainer", fake)
    assert main(["train", *SYNTHETIC, "--output-dir", "here"]) == 130
    err = capsys.readouterr().err
    assert "Interrupted" in err and "here" in err


@pytest.mark.parametrize(
    ("module", "name", "command", "flag"),
    [
        ("tracking_job", "track_videos", ["track", ".", "--box", "1,1,9,9", *NANO], "--output-dir"),
        ("training_set_job", "make_training_set", ["training-set", "."], "--to"),
    ],
)
@pytest.mark.parametrize("text", ["", "3 frames are in out"])
def test_interruption_names_results_of_tracking(
    monkeypatch, capsys, module, name, command, flag, text
):
    def interrupted(*arguments, **keywords):
        raise KeyboardInterrupt(*[text] * bool(text))

    fake = types.ModuleType(f"sam2kit.tracking.{module}")
    setattr(fake, name, interrupted)
    monkeypatch.setitem(sys.modules, fake.__name__, fake)
    assert main([*command, flag, "out"]) == 130
    result = text or "any partial results are in out"
    assert capsys.readouterr().err.endswith(f"Interrupted; {result}\n")


def test_internal_errors_are_not_swallowed(monkeypatch):
    fake = types.ModuleType("sam2kit.training.trainer")
    fake.fit = lambda config, run_dir, resume, scorer: 1 / 0
    monkeypatch.setitem(sys.modules, "sam2kit.training.trainer", fake)
    with pytest.raises(ZeroDivisionError):
        main(["train", *SYNTHETIC])


def test_help_is_fast_and_loads_neither_torch_nor_hydra():
    code = (
        "import sys, time; start = time.perf_counter()\n"
        "from sam2kit.cli.main import main\n"
        "assert main(['--help']) == 0\n"
        "assert time.perf_counter() - start < 1\n"
        "assert not {'torch', 'hydra', 'omegaconf', 'lightning'} & set(sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS)


@pytest.mark.parametrize("command", COMMANDS)
def test_help_of_each_command(command, capsys):
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    flags = {"export": "SOURCE", "track": "--prompts", "replay": "FILE"}
    flags |= {"annotate": "--run-dir", "training-set": "--to", "compare": "--output-dir"}
    flag = flags.get(command, "--config")
    assert stop.value.code == 0 and flag in capsys.readouterr().out


def test_without_a_command_all_commands_are_listed(capsys):
    assert main([]) == 2
    assert "train" in capsys.readouterr().err
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.startswith("sam2kit 0.")


# Train with every YAML file under configs/ through the command line, on generated data.

TINY = [
    "dataset.image_size=64",
    "dataset.video_clip_length=2",
    "dataset.batch_size=1",
    "dataset.synthetic_videos=2",
    "valdataset.synthetic_videos=1",
    "trainer.limit_train_batches=1",
    "trainer.limit_val_batches=1",
    "trainer.max_epochs=1",
    "trainer.accelerator=cpu",
]
NAMES = ("a", "b", "c")


@pytest.fixture(scope="module")
def data(tmp_path_factory) -> Path:
    """Three videos of three frames with one object, as frame folders and COCO, with splits."""
    root = tmp_path_factory.mktemp("data")
    splits = {"train": "a\nb\n", "val": "c\n"}
    for name, text in {**splits, **{f"2016/{k}": v for k, v in splits.items()}}.items():
        (root / "ImageSets" / name).parent.mkdir(parents=True, exist_ok=True)
        (root / "ImageSets" / f"{name}.txt").write_text(text)
    images, annotations = [], []
    noise = np.random.default_rng(0)
    for video in NAMES:
        for folder in ("JPEGImages", "Annotations"):
            (root / folder / video).mkdir(parents=True)
        for t in range(3):
            mask = np.zeros((48, 64), np.uint8)
            mask[10:30, 10 + 4 * t : 30 + 4 * t] = 255
            frame = noise.integers(0, 255, (48, 64, 3), np.uint8) // 2 + mask[..., None] // 2
            Image.fromarray(frame).save(root / "JPEGImages" / video / f"{t:05}.jpg")
            Image.fromarray(mask).save(root / "Annotations" / video / f"{t:05}.png")
            size = {"width": 64, "height": 48}
            file = f"JPEGImages/{video}/{t:05}.jpg"
            order = {"video_id": video, "order_in_video": t}
            images.append({"id": f"{video}{t}", "file_name": file, **order, **size})
            left, right = 10 + 4 * t, 30 + 4 * t
            annotations.append(
                {
                    "id": len(annotations) + 1,
                    "image_id": f"{video}{t}",
                    "category_id": 0,
                    "track_id": 1,
                    "iscrowd": 0,
                    "bbox": [left, 10, 20, 20],
                    "area": 400,
                    "segmentation": [[left, 10, right, 10, right, 30, left, 30]],
                }
            )
    coco = {"images": images, "annotations": annotations, "categories": [{"id": 0, "name": "x"}]}
    (root / "annotations.json").write_text(json.dumps(coco))
    return root


def train_tiny(tmp_path: Path, *argv: str) -> None:
    """Train and validate on one batch, and check the run directory."""
    assert main(["train", "--debug", "--output-dir", str(tmp_path), *argv, *TINY]) == 0
    (run,) = tmp_path.glob("*/*")
    assert (run / "best.ckpt").is_file() and load_config(run / "config.yaml").debug
    for file in run.glob("*.ckpt"):  # gigabytes for the large model, and pytest keeps tmp_path
        file.unlink()


EXPERIMENTS = sorted(file.name for file in config_dir().glob("*.yaml"))
# The first and the last stage differ most from each other; the others are in the slow tests.
STAGED = sorted(f"nano/{file.name}" for file in (config_dir() / "nano").glob("*.yaml"))
STAGED[1:-1] = [pytest.param(name, marks=pytest.mark.slow) for name in STAGED[1:-1]]


@pytest.mark.parametrize("name", [*EXPERIMENTS, *STAGED])
def test_every_experiment_trains(tmp_path, data, name):
    argv = ["--config", str(config_dir() / name), "model=nano"]
    if load_config(config_dir() / name).dataset.type == "mixture":
        parts = f"{{weight: 1, type: video, data_path: {data}}}, {{weight: 1, type: synthetic}}"
        argv += [f"dataset.mixture=[{parts}]", f"valdataset.data_path={data}"]
        argv += ["valdataset.split=null"]
    else:
        argv += ["--data-path", str(data)]
    if name in STAGED:  # later stages start from the checkpoint of the previous one
        argv.append("model.checkpoint=random")
    if name == "coco.yaml":
        argv.append(f"dataset.annotation_file={data}/annotations.json")
    train_tiny(tmp_path, *argv)


CHOICES = {
    folder.name: sorted(file.stem for file in folder.glob("*.yaml"))
    for folder in sorted(config_dir().iterdir())
    if folder.is_dir() and folder.name not in ("model", "dataset", "valdataset", "nano")
}
# Each choice is used once: run N uses choice N of every group, or its last one.
RUNS = [
    {group: choice or CHOICES[group][-1] for group, choice in zip(CHOICES, row, strict=True)}
    for row in zip_longest(*CHOICES.values())
]


@pytest.mark.parametrize("run", RUNS, ids=lambda run: "-".join(run.values()))
def test_every_group_trains(tmp_path, run):
    overrides = [f"{group}={choice}" for group, choice in run.items()]
    train_tiny(tmp_path, "model=nano", *SYNTHETIC, *overrides)


STACKS = {
    "tiff": make_stacks,
    "ctc": make_ctc,
    "nifti": make_nifti,
    "dicom": make_dicom,
    "npz": make_npz,
}
DATASETS = {
    "auto": ["valdataset=held_out"],
    "video": ["valdataset=held_out"],
    "samples": ["valdataset=samples"],
    "coco": ["valdataset=synthetic"],
    "synthetic": ["valdataset=synthetic"],
    "files": ["valdataset=synthetic", "dataset.synthetic_objects=2"],
    "images": ["valdataset=synthetic"],
    "mixture": ["valdataset=synthetic"],
    "sav": ["valdataset=synthetic"],
    "training_set": ["valdataset=held_out"],
    **dict.fromkeys(STACKS, ["valdataset=held_out"]),
}
VALDATASETS = {"davis": ["dataset=video", "dataset.split=2016/train"]}


def test_every_data_choice_is_tested():
    stems = {g: {f.stem for f in (config_dir() / g).glob("*.yaml")} for g in CHOICES}
    assert stems.keys() >= {"loss", "optimizer", "scheduler", "trainer"}
    assert {f.stem for f in (config_dir() / "dataset").glob("*.yaml")} == set(DATASETS)
    used = {text[0].partition("=")[2] for text in DATASETS.values()} | set(VALDATASETS)
    assert {f.stem for f in (config_dir() / "valdataset").glob("*.yaml")} == used


@pytest.mark.parametrize(
    "argv",
    [[f"dataset={name}", *rest] for name, rest in DATASETS.items()]
    + [[f"valdataset={name}", *rest] for name, rest in VALDATASETS.items()],
    ids=lambda argv: argv[0],
)
def test_every_data_choice_trains(tmp_path, monkeypatch, data, argv):
    kind = argv[0].removeprefix("dataset=")
    if kind in ("files", "sav"):
        make_sav(tmp_path / kind)
        data = tmp_path / kind
    if kind == "images":
        for folder, source in (("images", "JPEGImages"), ("masks", "Annotations")):
            shutil.copytree(data / source / "a", tmp_path / kind / folder)
        data = tmp_path / kind
    if kind in STACKS:
        data = STACKS[kind](tmp_path / kind)
        assert main(["doctor", str(data), "--workers", "1"]) == 0
    if kind == "training_set":
        source = open_source(data)
        for i in range(len(source)):
            count = source.num_frames(i)
            frames = [AcceptedFrame(t, source.read_masks(i, t)) for t in range(count)]
            add_to_training_set(tmp_path / kind, source, i, frames)
        data = tmp_path / kind
    if kind == "mixture":  # its sources have paths relative to the root of the repository
        monkeypatch.chdir(ROOT)
    else:
        argv = ["--data-path", str(data), *argv]
    if kind == "coco":
        argv.append(f"dataset.annotation_file={data}/annotations.json")
    train_tiny(tmp_path / "runs", "model=nano", *argv)


MODELS = sorted(file.stem for file in (config_dir() / "model").glob("*.yaml"))
LARGE_MODELS = ("base_plus", "large")


@pytest.mark.parametrize("name", LARGE_MODELS)
def test_large_models_are_valid_configurations(name):
    config = load_config(overrides=[f"model={name}", "dataset=synthetic"])
    assert config.model.size == {"base_plus": "b+", "large": "l"}[name]


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=pytest.mark.slow) if n in LARGE_MODELS else n for n in MODELS],
)
def test_every_model_trains(tmp_path, name):
    train_tiny(tmp_path, f"model={name}", "model.checkpoint=random", *SYNTHETIC)


def test_train_as_a_module_is_the_same_command(tmp_path, monkeypatch):
    """Run the module like ``python -m sam2kit.train``."""
    argv = ["--debug", "--output-dir", str(tmp_path), "model=nano", *SYNTHETIC, *TINY]
    monkeypatch.setattr(sys, "argv", ["sam2kit.train", *argv])
    monkeypatch.delitem(sys.modules, "sam2kit.train", raising=False)
    with pytest.raises(SystemExit) as stop:
        runpy.run_module("sam2kit.train", run_name="__main__")
    assert stop.value.code == 0 and list(tmp_path.glob("*/*/best.ckpt"))


ONE_VIDEO = ["dataset=synthetic", "dataset.synthetic_videos=1", "dataset.image_size=32"]


@pytest.mark.skipif(not Path("/sys").is_dir(), reason="no folder that not even root may write to")
@pytest.mark.parametrize(
    "argv",
    [
        ["train", *SYNTHETIC, "--create-config", "/sys/sam2kit.yaml"],
        ["doctor", *SYNTHETIC, "--html", "/sys/sam2kit.html"],
        ["doctor", *SYNTHETIC, "--json", "/sys/sam2kit.json"],
        ["submit", *SYNTHETIC, "--run-dir", "/sys/run", "model.checkpoint=random"]
        + ["trainer.devices=1", "--cluster", "local"],
        ["convert", *SYNTHETIC, "/sys/set", "--to", "davis"],
        ["export", "nano", "/sys/nano.pt"],
    ],
    ids=lambda argv: argv[0] + "".join(a[1:] for a in argv if a.startswith("--")),
)
def test_a_read_only_folder_is_one_error_with_the_path(capsys, argv):
    text = error_output(capsys, *argv)
    assert "/sys" in text
    assert len(text.splitlines()) == 1


def test_a_full_disk_is_one_error_with_the_path(capsys, tmp_path):
    page = tmp_path / "doctor.html"
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, limit[1]))  # files of up to 1,000 bytes
    try:
        text = error_output(capsys, "doctor", *ONE_VIDEO, "--html", str(page))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)
    assert str(page) in text and not list(tmp_path.iterdir())


def test_an_unknown_home_directory_is_one_error(capsys, monkeypatch):
    def no_entry(*_):
        raise KeyError("uid not found")

    monkeypatch.delenv("HOME")
    monkeypatch.setattr("pwd.getpwuid", no_entry)
    assert "HOME" in error_output(capsys, "features", "--list")
    monkeypatch.setenv("HOME", "/tmp")
    for name in ("LOGNAME", "USER", "LNAME", "USERNAME"):
        monkeypatch.delenv(name, raising=False)
    assert main(["features", "--list"]) == 0
    assert os.environ["USER"] == f"user{os.getuid()}"
    monkeypatch.delenv("USER")


@pytest.mark.parametrize(
    "command",
    [
        ["train", "dataset.type=synthetic", "--run-dir"],
        ["train", "dataset.type=synthetic", "--resume", "auto", "--run-dir"],
        ["evaluate", "--model-checkpoint", "nano", "--output-dir"],
    ],
    ids=" ".join,
)
def test_directory_in_use_is_rejected_and_its_process_named(tmp_path, capsys, command):
    with locked(tmp_path):
        assert main([*command, str(tmp_path)]) == 2
    assert f"in use by process {os.getpid()} on " in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["run.lock"]
