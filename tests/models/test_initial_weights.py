"""Test from which weights a training run starts by default."""

from __future__ import annotations

import io

import pytest
import torch
from loguru import logger

from sam2kit.cli.main import main
from sam2kit.config.loading import config_dir, load_config
from sam2kit.config.schema import Config
from sam2kit.models import initial_weights
from sam2kit.models.checkpoints import (
    CONFIG_KEY,
    config_to_store,
    create_sam2_model,
    load_model,
)
from sam2kit.models.initial_weights import resolve_initial_weights, resolve_size
from sam2kit.models.sam2 import build_sam2_model
from sam2kit.utils.errors import CheckpointError, ConfigError


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def nothing_downloaded(monkeypatch):
    monkeypatch.setattr(initial_weights, "try_to_load_from_cache", lambda *_: None)


def test_released_weights_are_the_default(monkeypatch):
    monkeypatch.setattr(initial_weights, "try_to_load_from_cache", lambda *_: "/cache/file.pt")
    config = Config()
    assert resolve_initial_weights(config).model.checkpoint == "sam2.1_hiera_tiny"
    assert config.model.checkpoint is None
    config.model.size = "b+"
    assert resolve_initial_weights(config).model.checkpoint == "sam2.1_hiera_base_plus"


def test_the_shipped_model_needs_no_network(nothing_downloaded):
    config = Config()
    config.model.size = "nano"
    assert resolve_initial_weights(config).model.checkpoint == "nano"


def test_the_choices_are_named_without_a_terminal(nothing_downloaded):
    with pytest.raises(ConfigError) as error:
        resolve_initial_weights(Config())
    assert error.value.key == "model.checkpoint"
    for choice in ("sam2.1_hiera_tiny", "nano", "random"):
        assert f"--model-checkpoint {choice}" in error.value.hint


@pytest.mark.parametrize("answer", ["", "y", "n"])
@pytest.mark.parametrize("network", [True, False])
def test_a_download_is_asked_for_at_a_terminal(nothing_downloaded, monkeypatch, answer, network):
    downloads: list[str] = []

    def download(name: str) -> None:
        downloads.append(name)
        if not network:
            raise CheckpointError("no network", hint="connect")

    monkeypatch.setattr(initial_weights, "find_checkpoint", download)
    monkeypatch.setattr("sys.stdin", Terminal(f"{answer}\n"))
    monkeypatch.setattr("sys.stderr", Terminal())
    if answer != "n" and network:
        assert resolve_initial_weights(Config()).model.checkpoint == "sam2.1_hiera_tiny"
    else:
        with pytest.raises(ConfigError, match="--model-checkpoint random"):
            resolve_initial_weights(Config())
    assert downloads == ([] if answer == "n" else ["sam2.1_hiera_tiny"])


@pytest.mark.parametrize(
    ("checkpoint", "size", "expected"),
    [
        ("nano", "t", "nano"),
        ("sam2.1_hiera_large", "t", "l"),
        ("sam2.1_hiera_small.pt", "t", "s"),
        ("nano", "l", "l"),  # a size that was chosen is not replaced
        ("random", "t", "t"),
        ("file.pt", "t", "t"),
    ],
)
def test_a_named_model_sets_the_default_size(checkpoint, size, expected):
    config = Config()
    config.model.checkpoint, config.model.size = checkpoint, size
    assert resolve_size(config).model.size == expected


def test_a_run_or_a_file_sets_the_default_size(tmp_path):
    config = Config()
    for checkpoint in (tmp_path / "run", tmp_path / "plain.pt"):
        stored, model = load_model("nano")
        if checkpoint.suffix:
            torch.save({"model": model.state_dict()}, checkpoint)
        else:
            checkpoint.mkdir()
            stored.model.checkpoint = "nano"
            content = {CONFIG_KEY: config_to_store(stored), "state_dict": model.state_dict()}
            torch.save(content, checkpoint / "best.ckpt")
        config.model.checkpoint = str(checkpoint)
        assert resolve_size(config).model.size == "nano"
    (tmp_path / "plain.pt").write_bytes(b"damaged")  # reported when the weights are loaded
    assert resolve_size(config) is config


def test_another_image_size_is_a_warning(tiny_config):
    lines = []
    sink = logger.add(lines.append, level="WARNING")
    tiny_config.model.checkpoint = "nano"
    for size in (192, 64):
        tiny_config.dataset.image_size = size
        resolve_initial_weights(tiny_config)
    logger.remove(sink)
    assert len(lines) == 1 and "--image-size 192" in lines[0]


def test_random_weights_on_request(tiny_config):
    assert tiny_config.model.checkpoint == "random"
    assert resolve_initial_weights(tiny_config) is tiny_config
    one = create_sam2_model(tiny_config).state_dict()
    other = build_sam2_model(tiny_config).state_dict()
    assert all(one[name].equal(other[name]) for name in one)
    stage = load_config(config_dir() / "nano/1_masks.yaml")
    assert stage.model.checkpoint == "random"


def test_train_names_the_choices(nothing_downloaded, capsys, tmp_path):
    argv = ["train", "dataset=synthetic", "--run-dir", str(tmp_path / "run"), "--num-workers", "0"]
    assert main(argv) == 2
    message = capsys.readouterr().err
    assert "--model-checkpoint nano" in message and "--model-checkpoint random" in message
    assert not (tmp_path / "run").exists()
