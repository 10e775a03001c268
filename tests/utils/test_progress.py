"""Long loops log their progress."""

from __future__ import annotations

from loguru import logger

from sam2kit.utils import progress


def test_each_interval_logs_one_line_with_rate_and_remaining_time(monkeypatch):
    clock, lines = iter([0.0, 4.0, 8.0, 12.0, 16.0]), []
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    sink = logger.add(lambda message: lines.append(message.record["message"]), level="INFO")
    items = list(progress.log_progress("abcd", 4, "read", "videos"))
    logger.remove(sink)
    assert items == list("abcd")
    assert lines == ["read 3 of 4 videos, 0.25 per second, 4 s left"]
