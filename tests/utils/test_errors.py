"""Errors name the key, the value, what was expected and the fix."""

from __future__ import annotations

import ast
import errno
import itertools
import os
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from IPython.core.interactiveshell import InteractiveShell

import sam2kit
from sam2kit.utils.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    PipelineError,
    SAM2KitError,
    TrainingError,
    from_system,
)

PUBLIC_ERRORS = [ConfigError, DataError, CheckpointError, TrainingError, PipelineError]

RAISES_WITHOUT_FIX = 70
"""Number of user-facing raises in the package that do not say what to do. It may only decrease."""


@pytest.mark.parametrize("error_class", PUBLIC_ERRORS)
def test_every_public_error_renders_all_fields(error_class):
    error = error_class(key="seed", value=-1, expected="at least 0", hint="the default is 42")
    assert str(error) == "seed=-1 must be at least 0; the default is 42"
    assert (error.key, error.value, error.expected) == ("seed", -1, "at least 0")
    assert error.hint == "the default is 42"
    assert str(error_class("unreadable", key="--prompts", hint="export it again")) == (
        "--prompts: unreadable; export it again"
    )


def test_a_notebook_shows_the_message_and_no_traceback(capsys):
    """The traceback of the kit's own code would hide the one line that says what to do."""
    shell = InteractiveShell()
    shell.run_cell(
        "from sam2kit.utils.errors import DataError\nraise DataError('a.png is damaged', hint='b')"
    )
    shown = capsys.readouterr().out
    assert "DataError: a.png is damaged; b" in shown and "Traceback" not in shown
    assert len(shown.strip().splitlines()) == 2
    shell.run_cell("1 / 0")
    assert "Traceback" in capsys.readouterr().out


def test_public_errors_are_complete():
    exported = [getattr(sam2kit, name) for name in sam2kit.__all__ if name.endswith("Error")]
    assert set(exported) == {SAM2KitError, *PUBLIC_ERRORS}


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (ConfigError("plain"), "plain"),
        (
            ConfigError(key="dataset.image_size", value=100, expected="a multiple of 32"),
            "dataset.image_size=100 must be a multiple of 32",
        ),
        (
            ConfigError("a.yaml", key="seed", value="x", expected="a number", hint="try 42"),
            "a.yaml: seed='x' must be a number; try 42",
        ),
        (DataError("no such file", key="--prompts"), "--prompts: no such file"),
        (CheckpointError("truncated", hint="download it again"), "truncated; download it again"),
        (ConfigError(problems=[ConfigError("a"), ConfigError("b")]), "a\nb"),
    ],
)
def test_text_and_fields_survive_pickling(error: SAM2KitError, text):
    restored = pickle.loads(pickle.dumps(error))
    assert str(error) == str(restored) == text and type(restored) is type(error)
    fields = ("key", "value", "expected", "hint")
    assert [getattr(restored, f) for f in fields] == [getattr(error, f) for f in fields]


def test_problems_are_the_combined_errors():
    errors = [ConfigError("a", key="k"), ConfigError("b")]
    assert ConfigError(problems=errors).problems == errors
    assert pickle.loads(pickle.dumps(ConfigError(problems=errors))).problems[0].key == "k"
    assert errors[0].problems == [errors[0]]


# A message that contains its fix: a clause after a semicolon, or an instruction that starts a
# sentence or follows a comma, a colon or a bracket.
FIX = re.compile(
    r";|(?:^|[.,:(] )(?:or )?(?:add|ask|check|choose|copy|correct|create|delete|download|export|"
    r"free|give|install|list|lower|move|name|put|raise|reduce|remove|rename|repair|replace|run|"
    r"save|see|set|start|stop|train|try|use|wait|write)\b",
    re.IGNORECASE,
)


def texts(node: ast.AST, assigned: dict[str, list[ast.AST]]) -> Iterator[str]:
    """Yield the string constants of an expression and of the local variables in it."""
    for part in ast.walk(node):
        if isinstance(part, ast.Constant) and isinstance(part.value, str):
            yield part.value
        elif isinstance(part, ast.Name):
            for value in assigned.get(part.id, []):
                yield from texts(value, {})


def has_fix(call: ast.Call, assigned: dict[str, list[ast.AST]]) -> bool:
    """Return whether an error has a hint, combines errors that do, or has a fix in its message."""
    for keyword in call.keywords:
        if keyword.arg in ("hint", "problems", None):
            return not (isinstance(keyword.value, ast.Constant) and keyword.value.value is None)
    return any(FIX.search(text) for argument in call.args for text in texts(argument, assigned))


def outermost_functions(node: ast.AST) -> Iterator[ast.FunctionDef]:
    """Yield functions and methods, but no function inside another one."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.FunctionDef):
            yield child
        else:
            yield from outermost_functions(child)


def raises_without_fix(source: str) -> Iterator[int]:
    """Yield the line of each user-facing raise that does not say what to do."""
    names = {error.__name__ for error in PUBLIC_ERRORS}
    for scope in outermost_functions(ast.parse(source)):
        assigned: dict[str, list[ast.AST]] = {}
        for node in ast.walk(scope):
            if isinstance(node, ast.Assign) and len(node.targets) == 1:
                target, value = node.targets[0], node.value
                pairs = [(target, value)]
                if isinstance(target, ast.Tuple) and isinstance(value, ast.Tuple):
                    pairs = list(zip(target.elts, value.elts, strict=True))
                for variable, assigned_value in pairs:
                    if isinstance(variable, ast.Name):
                        assigned.setdefault(variable.id, []).append(assigned_value)
        for node in ast.walk(scope):
            if not (isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call)):
                continue
            function = node.exc.func
            is_public = isinstance(function, ast.Name) and function.id in names
            if is_public and not has_fix(node.exc, assigned):
                yield node.lineno


def test_the_search_for_raises_without_a_fix():
    source = """
def f(path):
    message, hint = f"{path} is empty", "choose another file"
    raise DataError(message)
    raise DataError(message, hint=hint)
    raise DataError(f"{path} is empty", hint=None)
    raise DataError(f"{path} is empty; choose another file")
    raise DataError(f"{path} is empty. Choose another file.")
    raise ConfigError(problems=[])
    raise ValueError(message)
"""
    assert list(raises_without_fix(source)) == [4, 6]


def test_errors_that_a_user_can_cause_say_what_to_do():
    package = Path(sam2kit.__file__).parent
    missing = [
        f"{path.relative_to(package.parent)}:{line}"
        for path in sorted(package.rglob("*.py"))
        for line in raises_without_fix(path.read_text(encoding="utf-8"))
    ]
    assert not missing


def test_long_values_are_shortened_and_hidden_characters_are_shown():
    name = "a\x1b[31m\u202e" + "x" * 100_000
    for error in (
        DataError(f"{name} is damaged", hint=f"rename {name}"),
        DataError(f"{'word ' * 100_000}", hint="word " * 100_000),
        ConfigError(key=name, value=name, expected="short", hint=name),
        ConfigError(key="seed", value=10**5000, expected="smaller"),
        ConfigError(problems=[ConfigError(f"{name} {k}") for k in range(100)]),
    ):
        assert 0 < len(str(error)) < 1000
        assert "\x1b" not in str(error) and "\u202e" not in str(error)
    problems = [ConfigError(f"problem {k}", hint="solve it") for k in range(100)]
    shown = str(ConfigError(problems=problems)).splitlines()
    assert shown[0] == "problem 0; solve it" and shown[-1] == f"and {101 - len(shown)} more errors"


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EACCES, errno.EMFILE])
def test_errors_of_the_system_name_path_and_fix(number):
    error = from_system(OSError(number, os.strerror(number), "/data/a.json"))
    assert error is not None and "/data/a.json" in str(error) and error.hint


def test_other_errors_of_the_system_keep_their_traceback():
    assert from_system(BrokenPipeError(errno.EPIPE, "broken pipe")) is None
    assert from_system(OSError("no number")) is None


PATH_OF_COMMAND = re.compile(
    r"(--(run-dir|config|data-path|sweep-dir|output-dir|model-checkpoint) |sam2kit \w+ "
    r"|(dataset|valdataset)\.(masks_path|data_path|corrections)=)$"
)


def unquoted_paths(source: str) -> Iterator[int]:
    """Yield the lines on which a message shows a command with a path that no shell would read."""
    tree = ast.parse(source)
    quoted = {
        name
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith("quote")
        for name in map(id, ast.walk(node))
    }
    safe = {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and id(node.value) in quoted
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    for node in (n for n in ast.walk(tree) if isinstance(n, ast.JoinedStr)):
        for text, value in itertools.pairwise(node.values):
            if not isinstance(value, ast.FormattedValue) or not isinstance(text, ast.Constant):
                continue
            is_safe = id(node) in quoted or ast.unparse(value.value) in {*safe, "name"}
            is_safe |= id(value.value) in quoted
            if PATH_OF_COMMAND.search(str(text.value)) and not is_safe:
                yield value.lineno


def test_commands_in_messages_quote_their_paths():
    """A path with a space or an accent is read back when the command is copied into a shell."""
    assert list(unquoted_paths('f"use --config {path}"\nf"use --config {quote(path)}"')) == [1]
    package = Path(sam2kit.__file__).parent
    unquoted = [
        f"{path.relative_to(package)}:{line}"
        for path in sorted(package.rglob("*.py"))
        for line in unquoted_paths(path.read_text("utf-8"))
    ]
    assert not unquoted
