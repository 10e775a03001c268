"""Read ``metrics.csv``, even while a training run writes it or after the run was killed."""

from __future__ import annotations

import csv
from pathlib import Path

from loguru import logger

from sam2kit.utils.errors import DataError
from sam2kit.utils.readers import read_text
from sam2kit.utils.text import label_text


def read_rows(file: str | Path, live: bool = False) -> list[dict[str, str]]:
    """Return the complete rows; empty if the file is missing.

    Truncated rows, which a killed process may leave, and rows whose values are not numbers are
    ignored with a warning.

    Args:
        file: ``metrics.csv`` of a run.
        live: whether a training run is still writing the file, so its last line may be incomplete.

    Raises:
        DataError: the file is unreadable or not a CSV file.
    """
    hint = "move the file away to start a new one"
    try:
        text = read_text(file, hint=hint, strict=False).replace("\0", "")
        text, _, cut = text.rpartition("\n")
        table = list(csv.reader(text.splitlines()))
    except FileNotFoundError:
        return []
    except csv.Error as error:
        raise DataError(f"{file} is not a CSV file: {error}", hint=hint) from error
    header, lines = (table[0], table[1:]) if table else ([], [])
    if cut and not live:
        logger.warning("{}: ignoring an incomplete row: {}", file, label_text(cut))
    rows = []
    for cells in lines:
        row = dict(zip(header, cells, strict=False))
        try:
            numbers = {key: float(value) for key, value in row.items() if value}
            if len(cells) != len(header) or not numbers["step"].is_integer():
                raise ValueError("truncated row")
        except (ValueError, KeyError):
            logger.warning("{}: ignoring an incomplete row: {}", file, label_text(",".join(cells)))
        else:
            rows.append(row)
    return rows
