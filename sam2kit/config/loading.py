"""Compose a configuration from YAML files and overrides, and write it as YAML.

Hydra composes the configuration; the dataclasses are its schema. Precedence, lowest first: defaults
of the dataclasses, groups in the file's defaults list, the file, overrides. A file without a
defaults list (a run's resolved ``config.yaml``, or a file from ``--create-config``) is composed in
the same way, and a group selected on the command line overrides its keys. This module does not
import torch, and imports Hydra only inside functions.
"""

from __future__ import annotations

import copy
import os
import re
import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from functools import cache
from pathlib import Path
from shlex import quote
from typing import Any

from sam2kit.config.schema import PATH, SIZE_NAMES, Config, get, options, put
from sam2kit.config.validation import check, check_exists, default_hint
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.files import write_text
from sam2kit.utils.paths import missing
from sam2kit.utils.readers import on_one_line
from sam2kit.utils.readers import read_yaml as read_yaml_values
from sam2kit.utils.text import close_names, suggest

SECTIONS = tuple(f.name for f in fields(Config) if "help" not in f.metadata)
GROUPS = (*SECTIONS, "recipe")
"""Config groups; a defaults list or ``group=choice`` selects a YAML file of each group."""
COMMAND_LINE = "command line"
MAX_CAUSE = 400  # maximum number of characters of a Hydra error to show
MAX_INCLUDES = 20  # maximum depth of files that include each other through defaults lists
_TYPE_WORDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}


def config_dir() -> Path:
    """Return the directory of the bundled YAML files, in the wheel or in the repository."""
    package = Path(__file__).parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def load_config(config_file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Compose and validate a configuration.

    Args:
        config_file: path of a YAML file. The entries of its defaults list are searched for in its
            directory and then among the bundled files. If None (default), the bundled
            ``config.yaml`` is used.
        overrides: ``key=value`` and ``group=choice`` in Hydra's grammar; if a key is repeated, the
            last value wins. A single string with all overrides is accepted, too; see
            :func:`split_overrides`.

    Returns:
        The validated configuration. Whether data and checkpoints exist is checked by
        :func:`sam2kit.config.validation.check_paths`.

    Raises:
        ConfigError: the file is missing or malformed, a key or group is unknown, a value has the
            wrong type or is out of range, or a combination of values is invalid.
    """
    path = config_dir() / "config.yaml" if config_file is None else Path(config_file)
    return _assemble(read_yaml(path), str(path), [path.absolute().parent, config_dir()], overrides)


def resolve_config_precision(config: Config) -> Config:
    """Replace ``trainer.precision=auto`` with the precision that this machine supports.

    Returns:
        A changed copy, or the same object if ``trainer.precision`` is not ``auto``.
    """
    from sam2kit.utils.device import resolve_precision  # imports torch

    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    if precision == config.trainer.precision:
        return config
    return replace(config, trainer=replace(config.trainer, precision=precision))


def override_config(
    config: Config | Mapping[str, Any], overrides: Sequence[str] = (), source: str = "config"
) -> Config:
    """Apply overrides to a configuration or its plain dictionary, and validate the result.

    Args:
        config: configuration or dictionary; it is not modified.
        overrides: see :func:`load_config`.
        source: origin of the dictionary for error messages, such as the path of a checkpoint.

    Raises:
        ConfigError: see :func:`load_config`.
    """
    content = asdict(config) if isinstance(config, Config) else dict(config)
    return _assemble(content, source, [config_dir()], overrides)


def split_overrides(overrides: str | Sequence[str]) -> list[str]:
    """Return overrides as a list.

    Args:
        overrides: a list, or a single string, as passed by ``papermill -p overrides "KEY=VALUE"``.
            In a string, a space before the next ``key=`` separates two overrides.
    """
    if not isinstance(overrides, str):
        return list(overrides)
    return [part.strip() for part in re.split(r"\s+(?=[\w.+~@/]+=)", overrides) if part.strip()]


def override(key: str, value: Any) -> str:
    """Return the override that sets ``key`` to ``value``, with strings quoted for Hydra."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if isinstance(value, str):
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    return f"{key}={value}"


def override_key(text: str) -> str:
    """Return the key that an override such as ``optimizer.lr=1e-3`` sets."""
    return text.partition("=")[0].lstrip("+~")


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved configuration atomically, as YAML that :func:`load_config` reads back.

    Paths of existing files and directories are written as absolute paths, so that the file also
    works from another working directory.

    Raises:
        ConfigError: the file exists and is not a saved configuration.
    """
    if Path(path).exists() and not is_saved(read_yaml(Path(path))):
        raise ConfigError(
            f"{path} exists and is not a run's saved configuration",
            hint="choose another directory, so that the file is not overwritten",
        )
    write_text(path, to_yaml(with_absolute_paths(config), comments=False))


def with_absolute_paths(config: Config) -> Config:
    """Return a copy in which the paths of existing files and directories are absolute.

    ``output_dir``, which only new runs use, and names of splits and released models are not
    changed.
    """
    config = copy.deepcopy(config)
    for key, option in options().items():
        if option.metadata["scope"] == PATH and key != "output_dir":
            put(config, key, _absolute(get(config, key)))
    return config


def _absolute(value: Any) -> Any:
    """Make paths absolute in a string, list or dictionary."""
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    if isinstance(value, dict):
        return {name: _absolute(item) for name, item in value.items()}
    # A glob pattern exists if its directory does.
    if not isinstance(value, str) or not value:
        return value
    path = Path(value)
    exists = path.exists() or ("*" in path.name and path.parent.is_dir())
    return str(path.absolute()) if exists else value


def same_value(value: Any, other: Any) -> bool:
    """Return whether two values of a key are equal, or a path and its absolute form.

    The working directory of a relative path is not known, so the absolute path must end with it.
    """
    if isinstance(value, list) and isinstance(other, list):
        return len(value) == len(other) and all(map(same_value, value, other))
    if isinstance(value, dict) and isinstance(other, dict):
        return value.keys() == other.keys() and all(same_value(value[k], other[k]) for k in value)
    if value == other or not isinstance(value, str) or not isinstance(other, str):
        return bool(value == other)
    relative, absolute = sorted((Path(value), Path(other)), key=Path.is_absolute)
    if relative.is_absolute() or not absolute.is_absolute():
        return False
    return absolute.parts[-len(relative.parts) :] == relative.parts


def is_saved(content: Mapping[str, Any]) -> bool:
    """Return whether a YAML file contains a complete configuration from :func:`save_config`."""
    return "defaults" not in content and {"model", "dataset", "trainer"} <= content.keys()


def to_yaml(config: Config, comments: bool = True) -> str:
    """Return the complete configuration as YAML, with a comment above each key."""
    from omegaconf import OmegaConf

    if not comments:
        return OmegaConf.to_yaml(asdict(config))

    def entry(name: str, value: Any, help: str) -> str:
        comment = textwrap.fill(help, 96, initial_indent="# ", subsequent_indent="# ")
        return f"{comment}\n{OmegaConf.to_yaml({name: value})}"

    parts = ["# Train with: sam2kit train --config THIS_FILE\n"]
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name not in SECTIONS:
            parts.append(entry(f.name, value, f.metadata["help"]))
            continue
        inner = "".join(
            entry(g.name, getattr(value, g.name), g.metadata["help"]) for g in fields(value)
        )
        title = f"\n# {(type(value).__doc__ or '').splitlines()[0]}\n"
        parts.append(f"{title}{f.name}:\n{textwrap.indent(inner, '  ')}")
    parts.insert(-5, "\n")
    return "".join(parts)


def _assemble(
    content: dict[str, Any], source: str, folders: list[Path], overrides: Sequence[str]
) -> Config:
    """Compose the content of a YAML file, the groups of its defaults list and the overrides.

    Args:
        content: content of the file, including a ``defaults`` list if it has one.
        source: name of the file for error messages.
        folders: directories to search for groups, in order.
        overrides: see :func:`load_config`.
    """
    import hydra
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    # Check keys and types first, because Hydra's errors name neither the file nor the expected
    # type.
    _check_values(((k, v) for k, v in content.items() if k != "defaults"), source)
    groups = _groups_of(content, folders, source)
    overrides = [_normalize(text, folders, groups) for text in split_overrides(overrides)]
    overrides.append(f"hydra.searchpath=[{override('', f'file://{folders[-1]}')[1:]}]")
    with _isolated_hydra(folders[0]), _translated_errors(source):
        store = ConfigStore.instance()
        store.store("sam2kit_schema", structured_schema())
        store.store("sam2kit_file", OmegaConf.create(content))
        store.store("sam2kit", {"defaults": ["sam2kit_schema", "sam2kit_file"]})
        composed = hydra.compose("sam2kit", overrides)
        config = OmegaConf.to_object(OmegaConf.merge(structured_schema(), composed))
    assert isinstance(config, Config)
    config.model.size = SIZE_NAMES.get(config.model.size, config.model.size)
    check(config)
    return config


@cache
def structured_schema() -> Any:
    """Return the schema as an OmegaConf container, which callers must not modify.

    Creating it takes several times as long as copying it.
    """
    from omegaconf import OmegaConf

    return OmegaConf.structured(Config)


@contextmanager
def _translated_errors(source: str) -> Iterator[None]:
    """Turn the errors of Hydra, OmegaConf and PyYAML into a ConfigError that names ``source``."""
    try:
        yield
    except ConfigError:
        raise
    # For malformed content, Hydra raises any exception: AssertionError, LookupError, TypeError.
    except Exception as error:
        hint = "correct this entry in the file or on the command line"
        raise ConfigError(f"{source}: {_on_one_line(error)}", hint=hint) from error


@contextmanager
def _isolated_hydra(folder: Path) -> Iterator[None]:
    """Initialise Hydra with the search path ``folder`` and restore its previous state on exit.

    Importing ``sam2`` initialises Hydra globally, and sam2's model builders need that state, but a
    second initialisation raises an error. So clear the state and restore it afterwards.
    """
    from hydra import initialize_config_dir
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.singleton import Singleton

    state = Singleton.get_state()
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(str(folder), job_name="sam2kit", version_base="1.3"):
            yield
    finally:
        Singleton.set_state(state)


def read_yaml(path: Path) -> dict[str, Any]:
    """Read a YAML file without resolving interpolations.

    Raises:
        ConfigError: the file is missing, is not YAML, or does not contain a mapping.
    """
    if not path.is_file():
        message = f"{path} is a directory, not a file" if path.is_dir() else missing(path)
        hint = "pass the path of a YAML file"
        raise ConfigError(message, key="--config", value=str(path), hint=hint)
    content = read_yaml_values(path)
    if not isinstance(content, dict):
        hint = "write keys such as model: and dataset: at the top level"
        raise ConfigError(f"{path} contains a list instead of keys", hint=hint)
    return {str(key): value for key, value in content.items()}


def _groups_of(
    content: Mapping[str, Any], folders: list[Path], source: str, depth: int = 0
) -> set[str]:
    """Return the groups that a defaults list selects, including those of included files.

    Hydra reads the files again, but its errors are less clear, so they are checked here first.

    Raises:
        ConfigError: the list is malformed, or files include each other.
    """
    groups: set[str] = set()
    defaults = content.get("defaults") or []
    if not isinstance(defaults, list) or not all(
        isinstance(item, (str, Mapping)) for item in defaults
    ):
        expected = "a list of file names and entries such as dataset: video"
        hint = "see configs/config.yaml for an example"
        raise ConfigError(source, key="defaults", value=defaults, expected=expected, hint=hint)
    if depth > MAX_INCLUDES:
        message = f"{source}: its defaults list includes itself through other files"
        raise ConfigError(message, key="defaults", hint="remove one of the entries")
    for item in defaults:
        if isinstance(item, Mapping):
            names = {str(key).split()[-1].lstrip("/"): value for key, value in item.items() if key}
            groups |= names.keys()
            files = [f"{group}/{value}" for group, value in names.items()]
        else:
            files = [item]
        for name in files:
            file = _config_file(name, folders)
            if file is not None:
                groups |= _groups_of(read_yaml(file), folders, str(file), depth + 1)
    return groups


def _config_file(name: str, folders: list[Path]) -> Path | None:
    """Return the first ``NAME.yaml`` in the given directories, or None."""
    if "\0" in name:
        return None
    return next((f for folder in folders if (f := folder / f"{name}.yaml").is_file()), None)


def parse_override(text: str) -> Any:
    """Return an override as Hydra parses it.

    Raises:
        ConfigError: it does not follow Hydra's grammar.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (parsed,) = OverridesParser.create().parse_overrides([text])
    # Integers of more than 4,300 digits raise ValueError, deep nesting raises RecursionError.
    except (HydraException, ValueError, RecursionError) as error:
        hint = f"quote a value with spaces or commas as \"key='a, b'\" ({_on_one_line(error)})"
        if "=" not in text:
            hint = "write key=value"
            if os.path.exists(text):
                hint = f"to read this path as data, write --data-path {quote(text)}"
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is not key=value", hint=hint) from error
    return parsed


def literal_text(text: str) -> str:
    """Quote the value of a text option if Hydra would reject or change it.

    Hydra's grammar has neither accents nor ``~`` or ``#``, which occur in paths, and reads the
    folder ``2024_10`` as the number 202410. Values with a comma, which may be several, and with an
    opening quote or bracket are returned unchanged; an error says how to write them.
    """
    key, equals, value = text.partition("=")
    name = key.lstrip("+")
    is_text = name in (known := options()) and known[name].type in ("str", "str | None")
    if not (equals and is_text) or "," in value or value.startswith(("'", '"', "[", "{")):
        return text
    try:
        parsed = parse_override(text)
    except ConfigError:
        return override(key, value)
    is_number = not parsed.is_sweep_override() and isinstance(parsed.value(), (bool, int, float))
    return override(key, value) if is_number else text


def _normalize(text: str, folders: list[Path], groups: set[str]) -> str:
    """Validate one override and return it in the form that Hydra expects.

    Args:
        text: the override as the user wrote it.
        folders: directories to search for groups.
        groups: groups that the defaults list selects; for others, Hydra requires ``+group=choice``.
    """
    parsed = parse_override(text := literal_text(text))
    key = parsed.key_or_group
    if parsed.is_delete():
        hint = f"set {key}=null instead"
        message = f"{text!r} on the {COMMAND_LINE} removes the key"
        raise ConfigError(message, key=key, hint=hint)
    if parsed.is_sweep_override():
        hint = f"write a list as {key}=[a,b], or a string as \"{key}='a,b'\""
        message = f"{text!r} on the {COMMAND_LINE} has several values"
        raise ConfigError(message, key=key, hint=hint)
    value = parsed.value()
    if key in GROUPS and isinstance(value, (str, int, float)):
        if (file := _config_file(f"{key}/{value}", folders)) is not None:
            read_yaml(file)  # raises a clear error, whereas Hydra's names neither file nor line
        choices = {file.stem for folder in folders for file in (folder / key).glob("*.yaml")}
        if str(value) not in choices:
            expected, hint = (
                "the name of a file in that group",
                suggest(str(value), sorted(choices)),
            )
            raise ConfigError(COMMAND_LINE, key=key, value=value, expected=expected, hint=hint)
        if key == "recipe" and key not in groups:
            raise ConfigError(
                f"{text!r} on the {COMMAND_LINE} also selects a loss and an optimizer, but this "
                "file has no defaults list in which they could be replaced",
                key=key,
                hint="select the groups individually (loss=official optimizer=official, ...), or "
                "use a file with a defaults list, such as configs/config.yaml",
            )
        return text.lstrip("+") if key in groups else f"+{text.lstrip('+')}"
    if isinstance(value, str) and key in (known := options()):
        if known[key].type.startswith("list[str]"):  # accept a single item as a list
            text, value = f"{key}=[{text.partition('=')[2]}]", [str(value)]
    _check_values([(key, value)], COMMAND_LINE)
    # ++: keys inside a dictionary value are not part of the schema, so Hydra must add them.
    return f"++{text.lstrip('+')}" if isinstance(value, Mapping) else text.lstrip("+")


def _check_values(items: Iterable[tuple[str, Any]], source: str, schema: Any = None) -> None:
    """Reject unknown keys and wrong types.

    Args:
        items: keys and values.
        source: origin of the values for error messages.
        schema: container that takes the values; None (default): a new one.

    Raises:
        ConfigError: a key is unknown or a value has the wrong type.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = options()
    schema = copy.deepcopy(structured_schema()) if schema is None else schema
    for key, value in items:
        if key in SECTIONS:
            if not isinstance(value, Mapping):
                hint = f"to select a group, put '{key}: {value}' in the file's defaults list or "
                hint += f"{key}=... on the command line"
                expected = "a section with keys"
                raise ConfigError(source, key=key, value=value, expected=expected, hint=hint)
            entries = ((f"{key}.{name}", inner) for name, inner in value.items())
            _check_values(entries, source, schema)
            continue
        if key not in known:
            raise ConfigError(f"unknown key in {source}", key=key, hint=_known_keys(key, known))
        try:
            OmegaConf.update(schema, key, value)
            fits = _matches_type(value, known[key].type)
        except OmegaConfBaseException:
            fits = False
        if not fits:
            expected, hint = _describe_type(known[key].type), default_hint(key, known[key])
            raise ConfigError(source, key=key, value=value, expected=expected, hint=hint)


def _matches_type(value: Any, type_name: str) -> bool:
    """Return whether a value that OmegaConf accepted really has the type of its key.

    OmegaConf accepts more: booleans as strings, any items in a list of strings, lists and
    dictionaries in a list of numbers, and ``???`` (a missing value) everywhere.
    """
    if value == "???":
        return False
    if type_name.startswith("str"):
        return not isinstance(value, bool)
    if type_name.startswith("list[str]") and isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    if type_name.startswith("list[float]") and isinstance(value, list):
        return not any(isinstance(item, list | dict) for item in value)
    return True


def _describe_type(type_name: str) -> str:
    """Describe a type annotation in words.

    For example ``list[float] | None`` is "a list, each item a number, or null".
    """
    base, _, optional = type_name.partition(" | ")
    if base.startswith("dict[str, float"):
        return "a mapping of names to numbers, such as {image_encoder: 1e-5}"
    if base.startswith("dict"):
        return "a mapping of names to values, such as {other: other.ckpt}"
    item = _TYPE_WORDS.get(base[5:-1], "a mapping of keys to values")
    words = _TYPE_WORDS.get(base) or f"a list, each item {item}"
    return f"{words}, or null" if optional else words


def _known_keys(key: str, known: Iterable[str]) -> str:
    """Suggest the known key closest to ``key``, preferring keys of the same section."""
    section, _, name = key.rpartition(".")
    anywhere = {k.rpartition(".")[2]: k for k in reversed(list(known))}
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    if not section:
        siblings |= dict(zip(SECTIONS, SECTIONS, strict=True))
    for pool in (siblings, anywhere):
        if close := close_names(name, pool, 1):
            return f"did you mean {pool[close[0]]}?"
    return f"the keys of {section or 'a configuration'} are {', '.join(siblings)}"


def _on_one_line(error: BaseException) -> str:
    """Return an error of Hydra or OmegaConf on one line, with its cause if it adds information."""
    cause = error.__cause__
    text = on_one_line(error) or type(error).__name__
    if cause is not None and str(cause) not in str(error):
        text = f"{text} ({on_one_line(cause)})"
    return text if len(text) <= MAX_CAUSE else f"{text[:MAX_CAUSE]}…"


def create_config(file: str, config: Config) -> None:
    """Write the complete configuration with comments to a new YAML file.

    Args:
        file: path of the new file; ``-`` prints to standard output.
        config: the configuration to write.

    Raises:
        ConfigError: the file exists, its directory does not, or its name does not end in
            ``.yaml`` or ``.yml``.
    """
    if file == "-":
        print(to_yaml(config), end="")
        return
    path, flag = Path(file), "--create-config"
    if path.suffix not in (".yaml", ".yml"):
        expected, hint = "a file name that ends in .yaml", f"try {path.stem}.yaml"
        raise ConfigError(key=flag, value=file, expected=expected, hint=hint)
    if path.exists():
        hint = "choose another name or delete the file"
        raise ConfigError(f"{file} already exists", key=flag, value=file, hint=hint)
    check_exists(flag, path.parent)
    write_text(path, to_yaml(config))
    print(f"Wrote {path}; train with: sam2kit train --config {quote(str(path))}")
