"""Read a stored configuration, in a checkpoint or beside it, and take only what it may decide.

A checkpoint may be a stranger's file. Its configuration decides what describes the run (scope
``RUN`` of :mod:`sam2kit.config.schema`): model, data layout, prompts, evaluation conventions, seed.
Paths and the use of the machine come from the caller: from ``config.yaml`` beside the checkpoint,
which is the caller's own file as one given with ``--config`` is, else from the defaults and flags.
No reader resolves an interpolation, so none reads the environment.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from loguru import logger
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from sam2kit.config.loading import is_saved, override_config, read_yaml
from sam2kit.config.schema import PATH, RUN, Config, get, options, put
from sam2kit.config.validation import check_data
from sam2kit.utils.errors import CheckpointError, ConfigError

MAX_DEPTH = 8  # the schema needs 4: dataset.mixture[0].data_path
MAX_VALUES = 10_000  # the schema has 160, and a source of a mixture up to 13
MAX_TEXT = 10_000  # characters; a path on Linux has up to 4,096
_PLAIN = (dict, list, tuple, str, int, float, bool, type(None))


def read_stored(content: Any, path: str | Path) -> Config:
    """Turn a stored configuration into a whole :class:`Config`, to compare with, not to obey.

    Args:
        content: as it was read from a file.
        path: the file, for messages.

    Raises:
        CheckpointError: names the key of an interpolation, of anything but plain values, or of what
            is too long, too many or nested too deeply; or it is a configuration of another version.
    """
    _check_plain(content, path)
    try:
        merged = OmegaConf.merge(OmegaConf.structured(Config), content)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: its configuration does not fit this version: {error}"
        ) from error


def read_allowed(
    content: Any, checkpoint: Path, released: Collection[str] = ()
) -> tuple[Config, list[str]]:
    """Take from a checkpoint's configuration what it may decide, and the rest from the caller.

    Args:
        content: as for :func:`read_stored`.
        checkpoint: the file; a run's ``config.yaml`` beside it is the caller's part.
        released: names that ``model.checkpoint`` may have.

    Returns:
        the configuration, and the keys of stored paths that it lacks. With a ``config.yaml``
        beside the checkpoint there are none.

    Raises:
        CheckpointError: see :func:`read_stored`.
        ConfigError: ``config.yaml`` is not YAML.
    """
    config, defaults = read_stored(content, checkpoint), Config()
    callers = _saved_config(checkpoint.with_name("config.yaml"))
    ignored = []
    for key, option in options().items():
        stored = get(config, key)
        if option.metadata["scope"] == RUN:
            continue
        # A list of videos under ImageSets, such as 2016/train, is no path either.
        is_name = key.endswith(".split") and re.fullmatch(r"[\w-]+(/[\w-]+)*", stored or "")
        if callers is None and (is_name or (key == "model.checkpoint" and stored in released)):
            continue
        put(config, key, get(callers or defaults, key))
        if callers is None and option.metadata["scope"] == PATH and stored != get(defaults, key):
            ignored.append(key)
    return config, ignored


def override_allowed(
    config: Config, ignored: list[str], overrides: Sequence[str], source: str
) -> tuple[Config, list[str]]:
    """Put the caller's overrides on what :func:`read_allowed` gave, for an evaluation.

    Returns:
        the checked configuration, and the keys of stored paths that it still lacks.

    Raises:
        CheckpointError: the name of the file itself is an interpolation.
        ConfigError: see :func:`~sam2kit.config.loading.override_config`; or it lacks validation
            videos.
    """
    _check_plain(asdict(config), source)
    try:
        config = override_config(config, overrides, source)
        ignored = [key for key in ignored if get(config, key) == get(Config(), key)]
        if ignored:
            section = "dataset" if config.holds_out_validation else "valdataset"
            check_data(section, config.validation_dataset())
    except ConfigError as error:
        names = {key.rpartition(".")[2] for key in ignored}
        if not any((p.key or "").rpartition(".")[2] in names for p in error.problems):
            raise
        raise ConfigError(
            f"{source}: {error}. Paths stored in a checkpoint are not used (here "
            f"{', '.join(ignored)})",
            hint="give --data-path DIR, the keys themselves, or --config FILE",
        ) from error
    if ignored:
        logger.warning(
            "{}: its stored paths are not used ({}); a run's config.yaml beside it brings them",
            *(source, ", ".join(ignored)),
        )
    return config, ignored


def _saved_config(file: Path) -> Config | None:
    """The configuration that the kit saved as ``file``; None where it is missing or another."""
    if not file.is_file():
        return None
    content = read_yaml(file)
    return read_stored(content, file) if is_saved(content) else None


def _check_plain(content: Any, path: str | Path) -> None:
    """Reject a configuration that the kit cannot have saved."""
    rows: list[tuple[str, Any, int]] = [("the configuration", content, 0)]
    for key, value, depth in rows:  # which grows
        inner: list[tuple[Any, Any]] = []
        if type(value) is dict:
            inner = list(value.items())
        elif type(value) in (list, tuple):
            inner = list(enumerate(value))
        fault = None
        if type(value) not in _PLAIN or (depth == 0 and type(value) is not dict):
            fault = f"is a {type(value).__name__}, expected keys with plain values"
        elif isinstance(value, str) and "${" in value:
            fault = "is an interpolation (${...}), and saved configurations are resolved"
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            fault = f"has {len(value)} characters; the maximum is {MAX_TEXT}"
        elif depth > MAX_DEPTH:
            fault = f"is nested too deeply; the maximum is {MAX_DEPTH} levels"
        elif len(rows) + len(inner) > MAX_VALUES:
            fault = f"and the rest are too many values; the maximum is {MAX_VALUES}"
        elif not all(isinstance(name, str | int) for name, _ in inner):
            fault = "has a key that is no text"
        if fault:
            raise CheckpointError(f"{path}: {key} {fault}")
        prefix = f"{key[:200]}." if depth else ""
        rows += [(f"{prefix}{str(name)[:200]}", item, depth + 1) for name, item in inner]
