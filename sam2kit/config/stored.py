"""Read a stored configuration and apply only the keys that an untrusted file may set.

A checkpoint may come from an untrusted source. Only its keys of scope ``RUN`` (see
:mod:`sam2kit.config.schema`) are applied: model, data layout, prompts, evaluation conventions and
seed. Paths and machine settings come from the ``config.yaml`` beside the checkpoint, which is
trusted like a file passed with ``--config``, or else from defaults and flags. Interpolations are
never resolved, so a stored configuration cannot read environment variables.
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

from sam2kit.config.loading import is_saved, override_config, read_yaml, structured_schema
from sam2kit.config.schema import PATH, RUN, Config, get, options, put
from sam2kit.config.validation import check_data
from sam2kit.utils.errors import CheckpointError, ConfigError

# Limits far above any configuration that sam2kit writes, so that a crafted file is rejected before
# it exhausts memory or the recursion limit.
MAX_DEPTH = 8  # the schema needs 4: dataset.mixture[0].data_path
MAX_VALUES = 10_000  # the schema has 160, and each source of a mixture up to 13
MAX_TEXT = 10_000  # characters; paths on Linux have up to 4,096
_PLAIN_TYPES = (dict, list, tuple, str, int, float, bool, type(None))


def read_stored(content: Any, path: str | Path) -> Config:
    """Convert a stored configuration to a :class:`Config` without trusting it.

    Use the result only for comparison; :func:`read_allowed` selects the keys that may be applied.

    Args:
        content: stored configuration as read from the file.
        path: the file, for error messages.

    Raises:
        CheckpointError: the content has an interpolation or a value that is not plain data, is too
            long, too large or nested too deeply (the error names the key), or does not fit the
            schema of this version.
    """
    _check_plain(content, path)
    try:
        merged = OmegaConf.merge(structured_schema(), content)
        return OmegaConf.to_object(merged)  # type: ignore[return-value]
    except (OmegaConfBaseException, TypeError, ValueError) as error:
        raise CheckpointError(
            f"{path}: the stored configuration does not fit this version of sam2kit: {error}",
            hint="load it with the version that wrote it",
        ) from error


def read_allowed(
    content: Any, checkpoint: Path, released: Collection[str] = ()
) -> tuple[Config, list[str]]:
    """Combine the allowed keys of a checkpoint's configuration with the user's other keys.

    Args:
        content: stored configuration as read from the checkpoint.
        checkpoint: the checkpoint file. A ``config.yaml`` that a run saved in the same directory
            supplies the paths and the machine settings.
        released: names of released models, which ``model.checkpoint`` may keep.

    Returns:
        The configuration, and the keys of stored paths that were not applied (empty if there is a
        ``config.yaml``).

    Raises:
        CheckpointError: see :func:`read_stored`.
        ConfigError: ``config.yaml`` is not valid YAML.
    """
    config, defaults = read_stored(content, checkpoint), Config()
    trusted = _saved_config(checkpoint.with_name("config.yaml"))
    ignored = []
    for key, option in options().items():
        stored = get(config, key)
        if option.metadata["scope"] == RUN:
            continue
        # The name of a split under ImageSets (2016/train) or of a released model is applied: it
        # cannot point outside the dataset or the model registry.
        is_name = key.endswith(".split") and re.fullmatch(r"[\w-]+(/[\w-]+)*", stored or "")
        if trusted is None and (is_name or (key == "model.checkpoint" and stored in released)):
            continue
        put(config, key, get(trusted or defaults, key))
        if trusted is None and option.metadata["scope"] == PATH and stored != get(defaults, key):
            ignored.append(key)
    return config, ignored


def override_allowed(
    config: Config, ignored: list[str], overrides: Sequence[str], source: str
) -> tuple[Config, list[str]]:
    """Apply the user's overrides to the result of :func:`read_allowed` for an evaluation.

    Args:
        config: configuration from :func:`read_allowed`.
        ignored: keys of stored paths that were not applied.
        overrides: see :func:`~sam2kit.config.loading.load_config`.
        source: path of the checkpoint for error messages.

    Returns:
        The validated configuration, and the keys of stored paths that are still not set.

    Raises:
        CheckpointError: the name of the checkpoint file contains an interpolation.
        ConfigError: see :func:`~sam2kit.config.loading.override_config`; or the validation videos
            are not set.
    """
    _check_plain(asdict(config), source)
    try:
        config = override_config(config, overrides, source)
        ignored = [key for key in ignored if get(config, key) == get(Config(), key)]
        if ignored and config.evaluation.split == "test" and config.has_test_data:
            check_data("testdataset", config.test_dataset())
        elif ignored:
            section = "dataset" if config.holds_out_validation else "valdataset"
            check_data(section, config.validation_dataset())
    except ConfigError as error:
        # Explain only errors about paths that the checkpoint stored.
        names = {key.rpartition(".")[2] for key in ignored}
        if not any((p.key or "").rpartition(".")[2] in names for p in error.problems):
            raise
        raise ConfigError(
            f"{source}: {error}. Paths stored in a checkpoint are ignored for safety (here: "
            f"{', '.join(ignored)})",
            hint="pass --data-path DIR with the videos to score, dataset.data_path=DIR if they are "
            "held out of it, KEY=PATH for these keys, or --config FILE",
        ) from error
    if ignored:
        logger.warning(
            "Ignoring the paths stored in {} ({}); to use them, copy the run's config.yaml beside "
            "it",
            *(source, ", ".join(ignored)),
        )
    return config, ignored


def _saved_config(file: Path) -> Config | None:
    """Read a configuration that a run saved, or return None if the file is missing or another."""
    if not file.is_file():
        return None
    content = read_yaml(file)
    return read_stored(content, file) if is_saved(content) else None


def _check_plain(content: Any, path: str | Path) -> None:
    """Reject content that sam2kit never saves as a configuration.

    Raises:
        CheckpointError: the content is invalid; the error names the key.
    """
    rows: list[tuple[str, Any, int]] = [("the configuration", content, 0)]
    # Search breadth-first with a list that grows during iteration: a recursive search could
    # overflow the stack on deeply nested or self-referencing structures.
    for key, value, depth in rows:
        inner: list[tuple[Any, Any]] = []
        if type(value) is dict:
            inner = list(value.items())
        elif type(value) in (list, tuple):
            inner = list(enumerate(value))
        fault = None
        if type(value) not in _PLAIN_TYPES or (depth == 0 and type(value) is not dict):
            fault = f"is a {type(value).__name__}; expected plain keys and values"
        elif isinstance(value, str) and "${" in value:
            fault = "is an interpolation (${...}), which saved configurations never contain"
        elif isinstance(value, str) and len(value) > MAX_TEXT:
            fault = f"has {len(value)} characters; the maximum is {MAX_TEXT}"
        elif depth > MAX_DEPTH:
            fault = f"is nested too deeply; the maximum is {MAX_DEPTH} levels"
        elif len(rows) + len(inner) > MAX_VALUES:
            fault = f"exceeds the maximum of {MAX_VALUES} values"
        elif not all(isinstance(name, str | int) for name, _ in inner):
            fault = "has a key that is not a string"
        if fault:
            hint = "obtain the checkpoint again from a source you trust"
            raise CheckpointError(f"{path}: {key} {fault}", hint=hint)
        prefix = f"{key[:200]}." if depth else ""
        rows += [(f"{prefix}{str(name)[:200]}", item, depth + 1) for name, item in inner]
