"""The documentation site: it builds offline without a warning, and its reference is complete."""

from __future__ import annotations

import ast
import os
import re
import shlex
import subprocess
import sys
from html import unescape
from pathlib import Path

import pytest

from sam2kit.cli.main import COMMANDS
from sam2kit.config.schema import options

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
sys.path.insert(0, str(DOCS))

import check_words  # noqa: E402
import docstrings  # noqa: E402
import generate_reference  # noqa: E402

# Makes every connection fail, as on a machine without a network.
NO_NETWORK = """
import socket
def connect(*_):
    raise OSError("the documentation must not need the network")
socket.socket.connect = socket.getaddrinfo = connect
"""


@pytest.fixture(scope="module")
def site(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("docs")
    (folder / "sitecustomize.py").write_text(NO_NETWORK)
    paths = os.pathsep.join([str(folder), str(ROOT)])
    environment = {**os.environ, "PYTHONPATH": paths, "NO_MKDOCS_2_WARNING": "1"}
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir"]
    result = subprocess.run(
        [*command, str(folder / "site")], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert result.returncode == 0 and "WARNING" not in result.stderr, result.stderr
    return folder / "site"


def test_make_docs_builds_strictly():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert "mkdocs build --strict" in makefile
    assert "/site/" in (ROOT / ".gitignore").read_text(encoding="utf-8").split()


def test_every_public_name_has_an_entry_in_the_reference(site):
    for name, path in generate_reference.public_names().items():
        page = site / "reference" / "api" / f"{path.split('.')[1]}.html"
        ids = re.findall(r'id="([^"]+)"', page.read_text(encoding="utf-8"))
        assert {f"sam2kit.{name}", path} <= set(ids)


def test_every_configuration_key_has_a_row(site):
    page = (site / "reference" / "configuration.html").read_text(encoding="utf-8")
    for key, field in options().items():
        (row,) = re.findall(rf'<tr>\s*<td><a id="{re.escape(key)}">.*?</tr>', page, re.DOTALL)
        text = unescape(re.sub(r"<[^>]+>", "", row))
        assert key in text
        assert " ".join(field.metadata["help"].split()) in " ".join(text.split())


def test_configuration_rows_show_ranges_and_choices():
    allowed = generate_reference._allowed
    assert allowed({"limits": {"ge": 0, "lt": 1}}) == "≥ 0, &lt; 1"
    assert allowed({"choices": ("a|b", None)}) == "<code>a&#124;b</code>, <code>null</code>"
    assert allowed({}) == ""


def test_every_command_has_a_section_with_its_flags(site):
    page = unescape((site / "reference" / "commands.html").read_text(encoding="utf-8"))
    sections = dict(re.findall(r'<h2 id="([^"]+)">(.*?)(?=<h2 |</article>)', page, re.DOTALL))
    assert sections.keys() == COMMANDS.keys()
    for name, section in sections.items():
        for action in generate_reference.command_parser(name)._actions:
            for flag in set(action.option_strings) - {"-h", "--help"}:
                assert f"<code>{flag}" in section


def test_pages_load_nothing_from_the_network(site):
    loads = r'<(?:script|img|iframe|source)[^>]* src="?(https?:)?//|<link[^>]* href="?(https?:)?//'
    for page in site.rglob("*.html"):
        assert not re.search(loads, page.read_text(encoding="utf-8")), page
    assert not re.search(
        r"@import|url\(.?https?:", (site / "stylesheets" / "site.css").read_text(encoding="utf-8")
    )


def test_architecture_picture_shows_the_layers_of_import_linter():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    layers = project["tool"]["importlinter"]["contracts"][0]["layers"]
    packages = re.findall(r"\w+", " ".join(layers[1:]))
    picture = (DOCS / "images" / "packages.svg").read_text(encoding="utf-8")
    assert re.findall(r"<text[^>]*>(\w+)</text>", picture) == packages


def strings_of_the_package() -> str:
    """Return all string constants, one per line; values inserted by f-strings become …."""
    texts = []
    for file in (ROOT / "sam2kit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            if isinstance(node, ast.JoinedStr):
                parts = [v.value if isinstance(v, ast.Constant) else "…" for v in node.values]
                texts.append("".join(map(str, parts)))
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                texts.append(node.value)
    return "\n".join(" ".join(text.split()) for text in texts)


def test_troubleshooting_quotes_messages_that_exist():
    page = (DOCS / "troubleshooting.md").read_text(encoding="utf-8")
    messages = re.findall(r"```text\n(.*?)\n```", page, re.DOTALL)
    assert len(messages) >= 20
    strings = strings_of_the_package()
    unknown = [
        message
        for message in messages
        for part in message.split("…")
        if part.strip() not in strings
    ]
    assert not unknown, f"no such message in the package; update docs/troubleshooting.md: {unknown}"


def prose_sentences(text: str) -> list[str]:
    """Return the sentences of Markdown; without code blocks, tables, headings, images, links."""
    text = re.sub(
        r"^ *```.*?^ *```$|<picture>.*?</picture>", "", text, flags=re.DOTALL | re.MULTILINE
    )
    text = re.sub(r"!\[[^\]]*\]\([^)]*\)", "", text)
    text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", text)
    sentences = []
    for block in re.split(r"\n\s*\n|\n(?=\s*(?:[-*]|\d+\.) )", text):  # paragraphs, list items
        if not block.lstrip().startswith(("|", "#")):
            sentences += re.split(r"(?<=[.!?:])[*)]*\s+", " ".join(block.split()))
    return [sentence for sentence in sentences if len(sentence.split()) > 1]


def mean_words(text: str) -> float:
    sentences = prose_sentences(text)
    return sum(len(sentence.split()) for sentence in sentences) / len(sentences)


@pytest.mark.parametrize(
    "path",
    [
        ROOT / "README.md",
        ROOT / "CONTRIBUTING.md",
        ROOT / "CHANGELOG.md",
        *sorted(DOCS.glob("*.md")),
    ],
    ids=lambda path: path.stem,
)
def test_sentences_are_short(path):
    """Issue 17 allows 25 words per sentence on average; new text should stay well below."""
    assert mean_words(path.read_text(encoding="utf-8")) <= 20


def test_sentences_are_counted_without_code_tables_and_links():
    text = "# Head line\n\n| a b | c d |\n\n```\nx y z\n```\n\n"
    text += "One two [three](four.md). Five six:\n\n- a b c\n"
    assert prose_sentences(text) == ["One two three.", "Five six:", "- a b c"]
    assert mean_words("word " * 40 + ".") > 25


def command_lines() -> list[str]:
    """Return every ``sam2kit`` command in a code block of the documentation or the README."""
    lines = []
    for file in [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]:
        for block in re.findall(r"```\w*\n(.*?)```", file.read_text(encoding="utf-8"), re.DOTALL):
            for line in block.replace("\\\n", " ").splitlines():
                if re.match(r"\s*(\.venv/bin/)?sam2kit [a-z]", line) and "…" not in line:
                    lines.append(line.strip())
    return lines


@pytest.mark.parametrize("line", command_lines())
def test_documented_commands_flags_and_keys_exist(line):
    _, command, *words = shlex.split(line, comments=True)
    parser = generate_reference.command_parser(command)
    flags = {flag for action in parser._actions for flag in action.option_strings}
    groups = {path.name for path in (ROOT / "configs").iterdir() if path.is_dir()}
    for word in words:
        name, equals, _ = word.partition("=")
        if word.startswith("-"):
            assert name in flags
        elif equals and re.fullmatch(r"[a-z_]+(\.\w+)*", name):
            # --compare A=B and -p NAME=VALUE are followed by a user's names, not by keys.
            previous = words[words.index(word) - 1]
            if previous not in ("--compare", "-p", "--parameter"):
                assert name in options() or name in groups


def test_docstring_extension_splits_entries_and_replaces_roles():
    text = "Do.\n\nArgs:\n    a, b: sizes,\n        in pixels.\n    c: see :class:`~sam2kit.x.Y`.\n"
    split = docstrings.split_arguments(text)
    assert split.count("        in pixels.") == 2
    assert "    a: sizes,\n" in split and "    b: sizes,\n" in split and "    c: see" in split
    assert docstrings.split_arguments("x, y: not in a section") == "x, y: not in a section"
    link = '<autoref identifier="sam2kit.x.Y" optional><code>Y</code></autoref>'
    assert link in docstrings.replace_roles(text)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("a.py", 'x = 1\ny = f"it goes "  f"on {x}"\n', [(2, "goes on")]),
        ("a.py", "# it goes\n# on\n", [(1, "goes on")]),
        ("a.py", '"""It was\n\nToldly, and told."""\n', [(3, "told")]),
        ("a.py", 'd["told"], told_once = 1, 2\n', [(1, "told")]),
        ("a.py", 'a = "goes", "on"\n', []),
        ("a.py", "def f(found, *, own=1):\n    place = x.kept = 1\n", None),
        ("a.md", "The run goes\non, and so-called nobody-code.\n", [(1, "goes on")]),
    ],
)
def test_word_check_finds_words_and_names(tmp_path, name, text, expected):
    (tmp_path / name).write_text(text)
    matches = check_words.check_file(tmp_path / name, check_words.read_list())
    pairs = [(match.line, match.word) for match in matches]
    if expected is None:
        expected = [(2, "place"), (1, "found"), (1, "own")]
    assert sorted(pairs) == sorted(expected)


def test_word_check_reads_notebooks(tmp_path):
    source = '{"cells": [\n {"cell_type": "code", "source": [\n  "%matplotlib inline\\n",\n'
    source += '  "found = 1  # goes\\n",\n  "# on"\n ]}\n]}\n'
    (tmp_path / "a.ipynb").write_text(source)
    matches = check_words.check_file(tmp_path / "a.ipynb", check_words.read_list())
    assert {(match.line, match.word) for match in matches} == {(4, "found")}


def test_word_check_prints_matches_and_returns_1(tmp_path, capsys):
    (tmp_path / "a.md").write_text("first line\nwhoever\n")
    assert check_words.main([str(tmp_path)]) == 1
    assert capsys.readouterr().out == f"{tmp_path / 'a.md'}:2: whoever\n"
    (tmp_path / "a.md").write_text("a plain line\n")
    assert check_words.main([str(tmp_path)]) == 0


def test_word_list_exception_needs_a_reason(tmp_path):
    text = "[words]\na\n[identifiers]\nb\n[exceptions]\ndocs/*: a\n"
    (tmp_path / "list.txt").write_text(text)
    with pytest.raises(ValueError, match="REASON"):
        check_words.read_list(tmp_path / "list.txt")
