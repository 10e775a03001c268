"""Test that errors of DataLoader workers reach the caller unchanged."""

from __future__ import annotations

import pytest
from torch.utils.data import Dataset

from sam2kit.data.parallel import errors_from_workers, load_items
from sam2kit.utils.errors import ConfigError, DataError

ERRORS = [
    DataError("frame 3 is damaged", key="b.png", hint="replace it"),
    ConfigError(problems=[ConfigError(key="seed", value=-1, expected="at least 0")] * 2),
    FileNotFoundError(2, "No such file or directory", "a.png"),
]


class Failing(Dataset):
    def __init__(self, error: Exception) -> None:
        self.error = error

    def __len__(self) -> int:
        return 2

    def __getitem__(self, i: int) -> int:
        with errors_from_workers():
            if i:
                raise self.error
            return i


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
def test_errors_keep_type_message_and_fields(error, workers):
    items = load_items(Failing(error), workers)
    assert next(items) == 0
    with pytest.raises(type(error)) as caught:
        next(items)
    assert type(caught.value) is type(error) and str(caught.value) == str(error)
    state = {k: v for k, v in vars(error).items() if k != "_problems"}
    assert {k: vars(caught.value)[k] for k in state} == state
    if isinstance(error, ConfigError):
        assert [p.key for p in caught.value.problems] == ["seed", "seed"]
    if isinstance(error, OSError):
        assert caught.value.errno == 2 and caught.value.filename == "a.png"
