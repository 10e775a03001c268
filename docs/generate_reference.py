"""Generate the reference pages: the Python API, every configuration key, every command and flag.

docs/hooks.py adds the pages to the site. ``python docs/generate_reference.py DIRECTORY`` writes
their Markdown to a directory for inspection.
"""

from __future__ import annotations

import argparse
import ast
import json
import sys
from collections.abc import Callable
from dataclasses import MISSING, Field, fields
from functools import cache, partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "docs")]  # this repository's sam2kit, docstrings.py

from docstrings import replace_roles  # noqa: E402

import sam2kit  # noqa: E402
from sam2kit.cli.main import COMMANDS  # noqa: E402
from sam2kit.config.schema import Config, options  # noqa: E402
from sam2kit.utils.text import markdown_text  # noqa: E402

CONFIG_MODULE = "sam2kit.config.schema"

# Packages in the order in which a newcomer needs them.
PACKAGES = {
    "config": "Configuration",
    "data": "Data",
    "prompts": "Prompts",
    "models": "Models",
    "training": "Training",
    "tracking": "Tracking",
    "evaluation": "Evaluation",
    "pipeline": "Pipeline",
    "widgets": "Widgets",
    "viz": "Plots and overlays",
    "utils": "Errors and tools",
    "cli": "Command line",
}

SECTIONS = [f.name for f in fields(Config) if "help" not in f.metadata]

# Public names and the modules that define them; used when ``sam2kit`` has no ``__all__``.
FALLBACK = {
    CONFIG_MODULE: ["Config", *(type(getattr(Config(), name)).__name__ for name in SECTIONS)],
    "sam2kit.data.build": ["open_source"],
    "sam2kit.data.clip": ["ClipBatch", "VideoClip"],
    "sam2kit.data.clip_dataset": ["ClipDataset"],
    "sam2kit.data.conversion": ["convert"],
    "sam2kit.data.loader": ["create_dataloader"],
    "sam2kit.data.sources.base": ["VideoSource"],
    "sam2kit.data.sources.coco": ["COCODataset"],
    "sam2kit.data.sources.frame_folders": ["VideoDataset"],
    "sam2kit.evaluation.evaluate": ["evaluate_checkpoint", "evaluate_predictions"],
    "sam2kit.models.checkpoints": ["create_sam2_model"],
    "sam2kit.models.exporter": ["export"],
    "sam2kit.models.outputs": ["TrackOutput"],
    "sam2kit.models.sam2": ["SAM2Model"],
    "sam2kit.pipeline.runner": ["run_stages"],
    "sam2kit.prompts.generator": ["PromptGenerator"],
    "sam2kit.prompts.prompt": ["Prompt"],
    "sam2kit.tracking.options": ["TrackerOptions"],
    "sam2kit.tracking.video_tracker": ["VideoTracker"],
    "sam2kit.training.datamodule": ["SAM2LightningDataModule"],
    "sam2kit.training.gradient_audit": ["audit_gradients"],
    "sam2kit.training.losses": ["SAM2TrainingLoss"],
    "sam2kit.training.module": ["SAM2LightningModule"],
    "sam2kit.training.trainer": ["fit"],
    "sam2kit.utils.errors": ["SAM2KitError"],
    "sam2kit.widgets.annotator": ["PromptDebugger"],
    "sam2kit.widgets.clip_browser": ["ClipBrowser"],
}


@cache
def public_names() -> dict[str, str]:
    """Map public names to the paths of their objects, such as ``sam2kit.data.clip.ClipBatch``.

    mkdocstrings needs the module that defines a name. The object is imported to find it, because
    ``sam2kit`` and its packages may re-export a name several times.
    """
    if not hasattr(sam2kit, "__all__"):
        return {name: f"{module}.{name}" for module, names in FALLBACK.items() for name in names}
    paths = {}
    for name in sorted(sam2kit.__all__):
        value = getattr(sam2kit, name)
        if hasattr(value, "__qualname__"):  # not __version__
            paths[name] = f"{value.__module__}.{value.__qualname__}"
    return paths


def pages() -> dict[str, str]:
    """Return the Markdown of every generated reference page by its path in the documentation."""
    return api_pages() | {
        "reference/configuration.md": configuration_page(),
        "reference/commands.md": commands_page(),
    }


def api_pages() -> dict[str, str]:
    """Return an overview of the public names, and one page per package with its objects."""
    by_package: dict[str, dict[str, str]] = {package: {} for package in PACKAGES}
    for name, path in public_names().items():
        by_package[path.split(".")[1]][name] = path
    overview = [
        "# Python API",
        "All names are imported from `sam2kit` when they are first used: `import sam2kit` loads "
        "neither torch nor Hydra."
        if hasattr(sam2kit, "__all__")
        else "Import each name from the module that its entry shows.",
    ]
    result = {}
    for package, title in PACKAGES.items():
        names = by_package[package]
        if not names:
            continue
        rows = [
            f"| [`{name}`]({package}.md#sam2kit.{name}) | {_summary(path)} "
            f"| `{path.rpartition('.')[0]}` |"
            for name, path in names.items()
        ]
        head = "| name | summary | module |\n| --- | --- | --- |"
        overview += [f"## {title}", "\n".join([head, *rows])]
        entries = [_api_entry(name, path) for name, path in names.items()]
        result[f"reference/api/{package}.md"] = "\n\n".join([f"# {title}", *entries]) + "\n"
    return {"reference/api/index.md": "\n\n".join(overview) + "\n"} | result


def _api_entry(name: str, path: str) -> str:
    """Return the mkdocstrings block of an object, with the anchor ``sam2kit.NAME``."""
    lines = [f"[](){{#sam2kit.{name}}}", "", f"::: {path}", "    options:"]
    lines += [f"      heading: {name}", f"      toc_label: {name}"]
    section = _section_of(path)
    if section is not None:  # its signature would repeat the configuration page
        lines += ["      show_signature: false", "      members: false"]
        target = f"../configuration.md{f'#{section}' if section else ''}"
        lines += ["", f"Keys, defaults and ranges: [configuration]({target})."]
    return "\n".join(lines)


def _section_of(path: str) -> str | None:
    """Return the configuration section of a class: "" for ``Config``, None for other classes."""
    if not path.startswith(f"{CONFIG_MODULE}."):
        return None
    sections = {type(section).__name__: name for name, section in _sections().items()}
    return sections.get(path.rpartition(".")[2])


def _summary(path: str) -> str:
    """Return the first line of an object's docstring, read from the source without importing it."""
    module, _, name = path.rpartition(".")
    file = ROOT / (module.replace(".", "/") + ".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef) and node.name == name:
            paragraph = (ast.get_docstring(node) or "").split("\n\n")[0]
            return replace_roles(" ".join(paragraph.split())).replace("|", "&#124;")
    raise ValueError(f"{file} defines no {name}; public_names() returned a wrong path")


@cache
def _sections() -> dict[str, Any]:
    config = Config()
    return {"": config} | {name: getattr(config, name) for name in SECTIONS}


def configuration_page() -> str:
    """Return a page with one table per section: key, type, default, allowed values, help."""
    parts = [
        "# Configuration",
        "Every key with its type, default and allowed values. Set a key on the command line "
        "(`dataset.image_size=256`) or in a YAML file (`image_size: 256` under `dataset:`). A key "
        "on the command line overrides a file, and a file overrides the defaults below. Groups "
        "such as `recipe=official` or `trainer=gpu` set several keys at once. `sam2kit train "
        "--create-config my.yaml` writes a file with all keys and comments.",
    ]
    known = options()
    for section, value in _sections().items():
        keys = [key for key in known if key.rpartition(".")[0] == section]
        title = f"## {section} {{#{section}}}" if section else "## Top level"
        rows = [_key_row(key, known[key]) for key in keys]
        doc = " ".join((type(value).__doc__ or "").split())
        head = "| key | type | default | allowed | help |\n| --- | --- | --- | --- | --- |"
        parts += [title, replace_roles(doc), "\n".join([head, *rows])]
    return "\n\n".join(parts) + "\n"


def _key_row(key: str, field: Field[Any]) -> str:
    default = field.default if field.default_factory is MISSING else field.default_factory()
    kind = str(field.type).replace("None", "null")
    cells = [
        f'<a id="{key}"></a>{_code(key)}',
        _code(kind),
        _code(json.dumps(default)),
        _allowed(field.metadata),
        markdown_text(field.metadata["help"]),
    ]
    return f"| {' | '.join(cells)} |"


def _allowed(metadata: Any) -> str:
    """Return the choices or the range of a key, or "" if every value of its type is allowed."""
    if metadata.get("choices"):
        return ", ".join(_code("null" if c is None else str(c)) for c in metadata["choices"])
    signs = {"gt": "> ", "ge": "≥ ", "lt": "< ", "le": "≤ ", "multiple_of": "multiple of "}
    limits = metadata.get("limits") or metadata
    texts = [f"{sign}{limits[n]}" for n, sign in signs.items() if limits.get(n) is not None]
    return ", ".join(texts).replace("<", "&lt;").replace(">", "&gt;")


def commands_page() -> str:
    """Return a page with one section per command: usage, arguments and flags."""
    overview = [f"| [`{name}`](#{name}) | {c.help} |" for name, c in COMMANDS.items()]
    parts = [
        "# Command line",
        "`sam2kit COMMAND --help` prints the same in a terminal. `python -m sam2kit` is the same "
        "as `sam2kit`. A flag sets the configuration key that its row links to; every other key is "
        "written as `key=value`. Exit codes: 0 success; 1 problems in the data (`doctor`), a step "
        "that does not fit (`plan`) or failed trials (`sweep`); 2 an error; 130 interrupted.",
        "\n".join(["| command | purpose |", "| --- | --- |", *overview]),
    ]
    for name, command in COMMANDS.items():
        parser = command_parser(name)
        usage = parser.format_usage().rstrip().replace("\n       ", "\n").removeprefix("usage: ")
        rows = [_flag_row(parser, action) for action in parser._actions if action.dest != "help"]
        head = "| argument | help |\n| --- | --- |"
        description = markdown_text(f"{command.help[:1].upper()}{command.help[1:]}.")
        parts += [f"## {name}", description, f"```text\n{usage}\n```", "\n".join([head, *rows])]
    return "\n\n".join(parts) + "\n"


class _Parsed(Exception):
    """Signals that a command has added its flags and is about to parse its arguments."""


class _Recorder(argparse.ArgumentParser):
    """A parser that interrupts the command once all its flags have been added."""

    def _stop(self, *_: Any, **__: Any) -> Any:
        raise _Parsed

    parse_args: Callable[..., Any] = _stop
    parse_intermixed_args: Callable[..., Any] = _stop


def command_parser(name: str) -> argparse.ArgumentParser:
    """Return the parser of a command with all its flags, without running the command."""
    # A fixed width: the page must not depend on the terminal in which it is built.
    formatter = partial(argparse.HelpFormatter, width=88)
    parser = _Recorder(f"sam2kit {name}", formatter_class=formatter, allow_abbrev=False)
    try:
        COMMANDS[name].run(parser, [])
    except _Parsed:
        return parser
    raise RuntimeError(f"command {name} parsed no arguments")


def _flag_row(parser: argparse.ArgumentParser, action: argparse.Action) -> str:
    formatter = parser._get_formatter()
    names = action.option_strings or [str(action.metavar or action.dest)]
    value = ""
    if action.option_strings and action.nargs != 0:
        value = f" {formatter._format_args(action, (action.dest).upper())}"
    text = formatter._expand_help(action) if action.help else ""
    before, _, key = text.rpartition(" (")
    if key.removesuffix(")") in options():  # the help text ends with the key that the flag sets
        key = key.removesuffix(")")
        description = f"{markdown_text(before)} ([{key}](configuration.md#{key}))"
    else:
        description = markdown_text(text)
    required = "required; " if action.required and action.option_strings else ""
    return f"| {', '.join(_code(name + value) for name in names)} | {required}{description} |"


def _code(text: str) -> str:
    return f"<code>{markdown_text(text)}</code>"


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(f"usage: python {sys.argv[0]} DIRECTORY")
    for path, text in pages().items():
        file = Path(sys.argv[1]) / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, encoding="utf-8")
        print(file)
