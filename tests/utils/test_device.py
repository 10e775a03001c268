"""Test which device and precision are selected, without having the devices."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from sam2kit.utils import device as device_module
from sam2kit.utils.device import (
    DeferredValues,
    autocast,
    device_count,
    gpu_memory,
    pick_device,
    release_memory,
    resolve_accelerator,
    resolve_precision,
)
from sam2kit.utils.errors import ConfigError


@pytest.fixture
def machine(monkeypatch):
    """Pretend to have a number of CUDA devices, or an Apple GPU."""

    def pretend(cuda: int = 0, mps: bool = False, bfloat16: bool = True) -> None:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda > 0)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: cuda)
        monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: bfloat16)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
        device_module._log_unused_mps.cache_clear()

    return pretend


@pytest.mark.parametrize(
    ("devices", "accelerator", "count"),
    [
        *[("1", "auto", 1), ("3", "gpu", 3), ("0,2", "gpu", 2), ("4,", "gpu", 1)],
        *[("auto", "cpu", 1), ("auto", "auto", 4), ("-1", "gpu", 4)],
    ],
)
def test_number_of_devices(monkeypatch, devices, accelerator, count):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    assert device_count(accelerator, devices) == count


@pytest.mark.parametrize(
    ("accelerator", "devices", "expected"),
    [
        ("auto", "1", "cuda:0"),
        ("auto", "3,", "cuda:3"),
        ("gpu", "2,3", "cuda:2"),
        ("cuda", "4", "cuda:0"),
        ("gpu", "auto", "cuda:0"),
        ("cpu", "3,", "cpu"),
    ],
)
def test_first_of_the_configured_devices(machine, accelerator, devices, expected):
    machine(cuda=4)
    assert pick_device(accelerator, devices) == torch.device(expected)


def test_index_beyond_the_visible_devices(machine):
    machine(cuda=2)
    with pytest.raises(ConfigError) as error:
        pick_device("auto", "3,")
    assert (error.value.key, error.value.value) == ("trainer.devices", "3,")
    assert "CUDA_VISIBLE_DEVICES" in error.value.hint


@pytest.mark.parametrize(
    ("device", "devices", "expected"),
    [(0, "1", 80), (0, "2", 24), (2, "2,", 48), (0, "0,2", 48), (0, "auto", 24)],
)
def test_memory_of_the_smallest_selected_gpu(machine, monkeypatch, device, devices, expected):
    machine(cuda=3)
    properties = [SimpleNamespace(total_memory=size) for size in (80, 24, 48)]
    monkeypatch.setattr(torch.cuda, "get_device_properties", properties.__getitem__)
    assert gpu_memory(torch.device("cuda", device), devices) == expected


@pytest.mark.parametrize("accelerator", ["gpu", "cuda", "mps"])
def test_missing_device(machine, accelerator):
    machine()
    with pytest.raises(ConfigError) as error:
        pick_device(accelerator)
    assert (error.value.key, error.value.value) == ("trainer.accelerator", accelerator)


def test_apple_gpus_are_used_only_on_request(machine, caplog):
    machine(mps=True)
    messages = []
    sink = device_module.logger.add(messages.append, format="{message}")
    try:
        assert resolve_accelerator("auto") == "cpu" and pick_device("auto").type == "cpu"
    finally:
        device_module.logger.remove(sink)
    assert len(messages) == 1 and "trainer.accelerator=mps" in messages[0]
    assert resolve_accelerator("mps") == "mps" and pick_device("mps", "1").type == "mps"
    with pytest.raises(ConfigError) as error:
        resolve_accelerator("gpu")
    assert "mps" in error.value.hint
    assert resolve_precision("auto", "auto") == "32-true"


def test_precision_and_its_autocast(machine):
    machine(cuda=1)
    assert resolve_precision("auto", "auto") == "bf16-mixed"
    assert resolve_precision("auto", "cpu") == "32-true"
    machine(cuda=1, bfloat16=False)
    assert resolve_precision("auto", "gpu") == "32-true"
    for precision, dtype in (("16-mixed", torch.float16), ("bf16-mixed", torch.bfloat16)):
        with autocast(torch.device("cpu"), precision):
            assert torch.get_autocast_dtype("cpu") == dtype and torch.is_autocast_enabled("cpu")
    with autocast(torch.device("cpu"), "32-true"):
        assert not torch.is_autocast_enabled("cpu")


def test_deferred_values_on_a_cpu():
    values = torch.tensor([1.0, 2.0])
    assert DeferredValues(values).read() == [1.0, 2.0]
    release_memory(torch.device("cpu"))
