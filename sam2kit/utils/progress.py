"""Log the progress of long loops."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from loguru import logger

T = TypeVar("T")
LOG_SECONDS = 10


def log_progress(items: Iterable[T], total: int, doing: str, unit: str) -> Iterator[T]:
    """Yield ``items`` and log progress and remaining time every :data:`LOG_SECONDS` seconds.

    Args:
        items: items to yield.
        total: number of items.
        doing: first word of each log line, a past participle such as ``read``.
        unit: plural noun for the items, such as ``videos``.
    """
    start_time = last_log_time = time.monotonic()
    for done, item in enumerate(items, 1):
        yield item
        now = time.monotonic()
        if now - last_log_time > LOG_SECONDS:
            last_log_time = now
            rate = done / (now - start_time)
            left = (total - done) / rate
            text = "{} {} of {} {}, {:.3g} per second, {:.0f} s left"
            logger.info(text, doing, done, total, unit, rate, left)
