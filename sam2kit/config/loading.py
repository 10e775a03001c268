"""Compose a :class:`~sam2kit.config.schema.Config` from YAML files and overrides, and write one as
YAML.

Hydra composes; the dataclasses are the schema. Precedence, lowest first: the dataclasses' defaults,
the groups that the file's defaults list names, the file, overrides. A file without a defaults list
(a run's resolved ``config.yaml``, or what ``--create-config`` wrote) is composed in the same way,
and a group chosen on top of it wins over the file's keys. No torch here, and Hydra only inside
functions.
"""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, fields, replace
from pathlib import Path
from typing import Any

from sam2kit.config.schema import Config, options
from sam2kit.config.validation import check, check_exists
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.files import write_text
from sam2kit.utils.paths import missing
from sam2kit.utils.text import close_names, suggest

SECTIONS = tuple(f.name for f in fields(Config) if "help" not in f.metadata)
GROUPS = (*SECTIONS, "recipe")
"""What a file's defaults list and the command line choose files for."""
COMMAND_LINE = "command line"
_WORDS = {"str": "text", "int": "a whole number", "float": "a number", "bool": "true or false"}


def config_dir() -> Path:
    """The folder of the kit's own YAML files: inside an installed wheel, else the repository's."""
    package = Path(__file__).parent.parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def load_config(config_file: str | Path | None = None, overrides: Sequence[str] = ()) -> Config:
    """Compose and check a configuration.

    Args:
        config_file: any YAML file; its own folder and then the kit's are searched for the entries
            of its defaults list. None: the kit's ``config.yaml``.
        overrides: ``key=value`` and ``group=choice``, in Hydra's grammar; the last of a key wins.

    Raises:
        ConfigError: a missing or malformed file, an unknown key or group, a wrong type, or a value
            or combination that cannot work. Whether the data exist is for
            :func:`sam2kit.config.validation.check_paths`.
    """
    path = config_dir() / "config.yaml" if config_file is None else Path(config_file)
    return _assemble(read_yaml(path), str(path), [path.absolute().parent, config_dir()], overrides)


def settle_precision(config: Config) -> Config:
    """The configuration with ``trainer.precision`` ``auto`` replaced by what it means here."""
    from sam2kit.utils.device import resolve_precision  # imports torch

    precision = resolve_precision(config.trainer.precision, config.trainer.accelerator)
    if precision == config.trainer.precision:
        return config
    return replace(config, trainer=replace(config.trainer, precision=precision))


def override_config(
    config: Config | Mapping[str, Any], overrides: Sequence[str] = (), source: str = "config"
) -> Config:
    """Put overrides on a configuration, or on the plain dictionary of one, and check the result.

    Args:
        config: left as it is.
        overrides: as in :func:`load_config`.
        source: where the dictionary comes from, for messages (a checkpoint's path, say).

    Raises:
        ConfigError: as :func:`load_config`.
    """
    content = asdict(config) if isinstance(config, Config) else dict(config)
    return _assemble(content, source, [config_dir()], overrides)


def override(key: str, value: Any) -> str:
    """The override that sets ``key`` to ``value``, text quoted so that Hydra takes it literally."""
    from hydra.core.override_parser.types import Quote, QuotedString

    if isinstance(value, bool):
        return f"{key}={str(value).lower()}"
    if isinstance(value, str):
        return f"{key}={QuotedString(value, Quote.single).with_quotes()}"
    return f"{key}={value}"


def override_key(text: str) -> str:
    """The key that an override such as ``optimizer.lr=1e-3`` sets."""
    return text.partition("=")[0].lstrip("+~")


def save_config(config: Config, path: str | Path) -> None:
    """Write the resolved configuration atomically; :func:`load_config` reads it back equal.

    Raises:
        ConfigError: the file exists, and it is not a saved configuration.
    """
    if Path(path).exists() and not is_saved(read_yaml(Path(path))):
        raise ConfigError(
            f"{path} exists and is not a run's saved configuration",
            hint="name another folder, so that it is not overwritten",
        )
    write_text(path, to_yaml(config, comments=False))


def is_saved(content: Mapping[str, Any]) -> bool:
    """Whether a YAML file holds a whole configuration, as :func:`save_config` writes it."""
    return "defaults" not in content and {"model", "dataset", "trainer"} <= content.keys()


def to_yaml(config: Config, comments: bool = True) -> str:
    """The whole configuration as YAML, every key under the comment that documents it."""
    from omegaconf import OmegaConf

    def entry(name: str, value: Any, help: str) -> str:
        above = textwrap.fill(help, 96, initial_indent="# ", subsequent_indent="# ")
        text = OmegaConf.to_yaml({name: value})
        return f"{above}\n{text}" if comments else text

    parts = []
    for f in fields(config):
        value = getattr(config, f.name)
        if f.name not in SECTIONS:
            parts.append(entry(f.name, value, f.metadata["help"]))
            continue
        inner = "".join(
            entry(g.name, getattr(value, g.name), g.metadata["help"]) for g in fields(value)
        )
        title = f"\n# {(type(value).__doc__ or '').splitlines()[0]}\n" if comments else ""
        parts.append(f"{title}{f.name}:\n{textwrap.indent(inner, '  ')}")
    if comments:
        parts.insert(0, "# Train with it: sam2kit train --config THIS_FILE\n")
        parts.insert(-5, "\n")
    return "".join(parts)


def _assemble(
    content: dict[str, Any], source: str, folders: list[Path], overrides: Sequence[str]
) -> Config:
    """Compose ``content`` (a YAML file's), the groups it names and the overrides."""
    import hydra
    from hydra.core.config_store import ConfigStore
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _check_values(((k, v) for k, v in content.items() if k != "defaults"), source)
    groups = _groups_of(content, folders)
    overrides = [_normalize(text, folders, groups) for text in overrides]
    overrides.append(f"hydra.searchpath=[{override('', f'file://{folders[-1]}')[1:]}]")
    with _own_hydra(folders[0]):
        store = ConfigStore.instance()
        store.store("sam2kit_schema", Config)
        store.store("sam2kit_file", OmegaConf.create(content))
        store.store("sam2kit", {"defaults": ["sam2kit_schema", "sam2kit_file"]})
        try:
            composed = hydra.compose("sam2kit", overrides)
            schema = OmegaConf.structured(Config)
            config = OmegaConf.to_object(OmegaConf.merge(schema, composed))
        except (HydraException, OmegaConfBaseException) as error:
            raise ConfigError(f"{source}: {_on_one_line(error)}") from error
    assert isinstance(config, Config)
    check(config)
    return config


@contextmanager
def _own_hydra(folder: Path) -> Iterator[None]:
    """Hydra searching ``folder``, whatever state it was in; that state is restored afterwards.

    Importing ``sam2`` initialises Hydra, after which a second initialisation raises and without
    which sam2's builders fail; so the kit must neither rely on that state nor leave its own.
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
    """The keys of a YAML file, interpolations as they are written.

    Raises:
        ConfigError: missing, not YAML, or no keys in it.
    """
    import yaml
    from omegaconf import OmegaConf

    if not path.is_file():
        message = f"{path} is a folder, not a file" if path.is_dir() else missing(path)
        raise ConfigError(message, key="--config", value=str(path))
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not a YAML file: {' '.join(str(error).split())}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys such as model: and dataset:, got a list")
    return {str(key): value for key, value in content.items()}


def _groups_of(content: Mapping[str, Any], folders: list[Path]) -> set[str]:
    """The groups that a defaults list chooses from, here or in the files it names."""
    groups = set()
    for item in content.get("defaults") or []:
        if isinstance(item, Mapping):
            groups |= {str(key).split()[-1].lstrip("/") for key in item}
            continue
        for folder in folders:
            file = folder / f"{item}.yaml"
            if file.is_file():
                groups |= _groups_of(read_yaml(file), folders)
                break
    return groups


def _normalize(text: str, folders: list[Path], groups: set[str]) -> str:
    """Check one override and write it so that Hydra takes it: ``+group=choice`` for a new group."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        (parsed,) = OverridesParser.create().parse_overrides([text])
    except HydraException as error:
        hint = f"quote a value with spaces or commas as \"key='a, b'\" ({_on_one_line(error)})"
        raise ConfigError(f"{COMMAND_LINE}: {text!r} is not key=value", hint=hint) from error
    key = parsed.key_or_group
    if parsed.is_delete():
        hint = f"give {key}=null instead"
        raise ConfigError(f"{text!r} on the {COMMAND_LINE} removes it", key=key, hint=hint)
    if parsed.is_sweep_override():
        hint = f"write a list as {key}=[a,b], or one text as \"{key}='a,b'\""
        message = f"{text!r} on the {COMMAND_LINE} gives several values"
        raise ConfigError(message, key=key, hint=hint)
    value = parsed.value()
    if key in GROUPS and isinstance(value, (str, int, float)):
        choices = {file.stem for folder in folders for file in (folder / key).glob("*.yaml")}
        if str(value) not in choices:
            expected, hint = "a group's file name", suggest(str(value), sorted(choices))
            raise ConfigError(COMMAND_LINE, key=key, value=value, expected=expected, hint=hint)
        if key == "recipe" and key not in groups:
            raise ConfigError(
                f"{text!r} on the {COMMAND_LINE} chooses a loss and an optimizer too, and this "
                "file has no defaults list to choose them in",
                key=key,
                hint="give the parts themselves (loss=official optimizer=official, ...), or start "
                "from a file with one, such as configs/config.yaml",
            )
        return text.lstrip("+") if key in groups else f"+{text.lstrip('+')}"
    _check_values([(key, value)], COMMAND_LINE)
    # Names in a dictionary are the user's own, and have to be added to those that are there.
    return f"++{text.lstrip('+')}" if isinstance(value, Mapping) else text.lstrip("+")


def _check_values(items: Iterable[tuple[str, Any]], source: str) -> None:
    """Reject unknown keys and wrong types.

    Raises:
        ConfigError: names the source, the key, the value and what was expected.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    known = options()
    schema = OmegaConf.structured(Config)
    for key, value in items:
        if key in SECTIONS:
            if not isinstance(value, Mapping):
                hint = f"to choose a group, put '{key}: {value}' in the file's defaults list or "
                hint += f"{key}=... on the command line"
                expected = "a section with keys"
                raise ConfigError(source, key=key, value=value, expected=expected, hint=hint)
            _check_values(((f"{key}.{name}", inner) for name, inner in value.items()), source)
            continue
        if key not in known:
            raise ConfigError(f"unknown key in {source}", key=key, hint=_known_keys(key, known))
        try:
            OmegaConf.update(schema, key, value)
            fits = _strictly(value, known[key].type)
        except OmegaConfBaseException:
            fits = False
        if not fits:
            expected = _words(known[key].type)
            raise ConfigError(source, key=key, value=value, expected=expected)


def _strictly(value: Any, type_name: str) -> bool:
    """What OmegaConf lets pass: a truth value as text, anything within a list of text, lists
    within a list of numbers, and ???."""
    if value == "???":
        return False
    if type_name.startswith("str"):
        return not isinstance(value, bool)
    if type_name.startswith("list[str]") and isinstance(value, list):
        return all(isinstance(item, str) for item in value)
    if type_name.startswith("list[float]") and isinstance(value, list):
        return not any(isinstance(item, list | dict) for item in value)
    return True


def _words(type_name: str) -> str:
    """A dataclass field's type in words: ``list[float] | None`` is a list of numbers or null."""
    base, _, optional = type_name.partition(" | ")
    if base.startswith("dict[str, float"):
        return "names with a number each, such as {image_encoder: 1e-5}"
    if base.startswith("dict"):
        return "names with a value each, such as {other: other.ckpt}"
    words = _WORDS.get(base) or f"a list, each item {_WORDS.get(base[5:-1], 'keys with values')}"
    return f"{words}, or null" if optional else words


def _known_keys(key: str, known: Iterable[str]) -> str:
    """Name the known key closest to ``key``: within its section, else by its last name anywhere."""
    section, _, name = key.rpartition(".")
    anywhere = {k.rpartition(".")[2]: k for k in reversed(list(known))}
    siblings = {k.rpartition(".")[2]: k for k in known if k.rpartition(".")[0] == section}
    if not section:
        siblings |= dict(zip(SECTIONS, SECTIONS, strict=True))
    for pool in (siblings, anywhere):
        if close := close_names(name, pool, 1):
            return f"did you mean {pool[close[0]]}?"
    return f"{section or 'a configuration'} has {', '.join(siblings)}"


def _on_one_line(error: BaseException) -> str:
    """Return Hydra's or OmegaConf's message, with the cause where that says more."""
    cause = error.__cause__
    text = str(error) if cause is None or str(cause) in str(error) else f"{error} ({cause})"
    return " ".join(text.split())


def create_config(file: str, config: Config) -> None:
    """Write the whole configuration, commented, to a new YAML file, or to the screen for ``-``.

    Raises:
        ConfigError: the file exists, its folder does not, or its name does not end in ``.yaml``.
    """
    if file == "-":
        print(to_yaml(config), end="")
        return
    path, flag = Path(file), "--create-config"
    if path.suffix not in (".yaml", ".yml"):
        raise ConfigError(key=flag, value=file, expected="a file name that ends in .yaml")
    if path.exists():
        hint = "name another file or delete it"
        raise ConfigError(f"{file} exists already", key=flag, value=file, hint=hint)
    check_exists(flag, path.parent)
    path.write_text(to_yaml(config), encoding="utf-8")
    print(f"wrote {path}; train with: sam2kit train --config {path}")
