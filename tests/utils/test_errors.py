"""Errors say what is wrong, with which value, what was expected and what to do."""

from __future__ import annotations

import pickle

import pytest

from sam2kit.utils.errors import CheckpointError, ConfigError, DataError, SAM2KitError


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("plain"), "plain"),
        (
            ConfigError(key="dataset.image_size", value=100, expected="a multiple of 32"),
            "dataset.image_size=100 must be a multiple of 32",
        ),
        (
            ConfigError("a.yaml", key="seed", value="x", expected="a number", hint="try 42"),
            "a.yaml: seed='x' must be a number; try 42",
        ),
        (DataError("no such file", key="--prompts"), "--prompts: no such file"),
        (CheckpointError("truncated", hint="fetch it again"), "truncated; fetch it again"),
        (ConfigError(problems=[ConfigError("a"), ConfigError("b")]), "a\nb"),
    ],
)
def test_text_and_fields_survive_pickling(error: SAM2KitError, text):
    again = pickle.loads(pickle.dumps(error))
    assert str(error) == str(again) == text and type(again) is type(error)
    fields = ("key", "value", "expected", "hint")
    assert [getattr(again, f) for f in fields] == [getattr(error, f) for f in fields]


def test_problems_are_the_single_errors():
    both = [ConfigError("a", key="k"), ConfigError("b")]
    assert ConfigError(problems=both).problems == both
    assert pickle.loads(pickle.dumps(ConfigError(problems=both))).problems[0].key == "k"
    assert both[0].problems == [both[0]]
