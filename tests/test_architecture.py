"""The rooms: who may import whom, how long a module may be, and what importing costs."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
from count_code import PACKAGE, lines_of_code

# A package (data, widgets) stands for all of its modules. "" is sam2kit/__init__.py.
LEVELS = {
    0: (
        "",
        "checks",
        "clip",
        "compose",
        "config",
        "data_config",
        "errors",
        "console",
        "flags",
        "processes",
        "ranges",
        "run_dir",
        "status",
        "text",
        "stored_config",
    ),
    1: (
        "attention",
        "charts",
        "comparison",
        "corrections",
        "losses",
        "memory",
        "metrics",
        "pages",
        "checkpoint_files",
        "plain_sam2",
        "prompts",
        "prompt_files",
        "prompt_noise",
        "prompt_shapes",
        "scores",
        "tables",
        "transforms",
        "video_files",
        "viz",
    ),
    2: (
        "adapters",
        "checkpoints",
        "data",
        "features",
        "frame_model",
        "live",
        "memory_bank",
        "model",
        "optim",
        "predictions",
        "tracking",
    ),
    3: ("audit", "contenders", "engine", "protocols", "ranks", "replay", "resume", "tracker"),
    4: (
        "compare",
        "evaluate",
        "export",
        "fill_features",
        "kernels",
        "pipeline",
        "plan",
        "report",
        "slurm",
        "sweep",
        "track",
        "train",
        "defence",
        "widgets",
    ),
    5: ("__main__", "cli"),
}
LEVEL = {name: level for level, names in LEVELS.items() for name in names}
LONGEST = 400


def modules(package: Path = PACKAGE) -> dict[str, ast.Module]:
    """The trees of all modules by dotted name within the package, ``data.coco`` for one."""
    found = {}
    for file in sorted(package.rglob("*.py")):
        parts = file.relative_to(package).with_suffix("").parts
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        found[name] = ast.parse(file.read_text(encoding="utf-8"), str(file))
    return found


def is_main_guard(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "__name__" in ast.unparse(node.test)


def walk(node: ast.AST):
    """All nodes, functions' bodies too, but not what stands under ``if __name__ == ...``."""
    yield node
    for child in ast.iter_child_nodes(node):
        if not is_main_guard(child):
            yield from walk(child)


def imports(name: str, tree: ast.Module, known: set[str]) -> set[str]:
    """The modules of the package that a module imports, at the top or inside a function."""
    found = set()
    for node in walk(tree):
        if isinstance(node, ast.Import):
            targets = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{name}: write imports in full, from sam2kit.x import y"
            base = node.module or ""
            targets = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for target in targets:
            if target.split(".")[0] != "sam2kit":
                continue
            inner = target.partition(".")[2]
            while inner not in known:  # a name inside a module: what is imported is the module
                inner = inner.rpartition(".")[0]
            found.add(inner)
    return found - {name}


def arrows(package: Path = PACKAGE) -> dict[str, set[str]]:
    trees = modules(package)
    return {name: imports(name, tree, set(trees)) for name, tree in trees.items()}


def room(name: str) -> str:
    return name.split(".")[0]


def upward(graph: dict[str, set[str]]) -> list[str]:
    return [
        f"{name} -> {target}"
        for name, targets in graph.items()
        for target in sorted(targets)
        if LEVEL[room(target)] > LEVEL[room(name)]
    ]


def cycle(graph: dict[str, set[str]]) -> list[str]:
    """The modules left when those that import nothing that is left are taken away in turn."""
    left = dict(graph)
    while True:
        free = [name for name, targets in left.items() if not targets & set(left)]
        if not free:
            return sorted(left)
        for name in free:
            del left[name]


def test_every_module_has_a_room():
    unknown = sorted(name for name in modules() if room(name) not in LEVEL)
    assert not unknown, f"give {unknown} a level in this test and in docs/architecture.md"


def test_no_arrow_runs_up():
    assert not upward(arrows())


def test_no_arrow_runs_round():
    assert not cycle(arrows())


@pytest.mark.parametrize("line", ["import sam2kit.cli.commands", "from sam2kit import cli"])
def test_an_arrow_that_runs_up_or_round_is_found(tmp_path, line):
    (tmp_path / "cli.py").write_text("from sam2kit.models.sam2 import build\n")
    (tmp_path / "model.py").write_text(f"def f():\n    {line}\n")
    (tmp_path / "train.py").write_text(
        "if __name__ == '__main__':\n    import sam2kit.cli.commands\n"
    )
    (tmp_path / "__init__.py").write_text("")
    graph = arrows(tmp_path)
    assert upward(graph) == ["model -> cli"] and cycle(graph) == ["cli", "model"]


def test_no_init_exports_the_name_of_a_submodule():
    trees = modules()
    for name, tree in trees.items():
        inside = {other.rpartition(".")[2] for other in trees if other.rpartition(".")[0] == name}
        names = set()
        for node in tree.body:
            if isinstance(node, (ast.Import, ast.ImportFrom)):
                names |= {(alias.asname or alias.name).split(".")[0] for alias in node.names}
            elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
                names.add(node.name)
        if name == "" or (PACKAGE / name.replace(".", "/")).is_dir():
            assert not (names & inside - {""}), f"{name}/__init__.py hides {names & inside}"


def test_modules_stay_short():
    long = {
        str(file.relative_to(PACKAGE)): lines
        for file in PACKAGE.rglob("*.py")
        if (lines := len(file.read_text(encoding="utf-8").splitlines())) > LONGEST
    }
    assert not long, f"split along a seam that has a name: {long}"


def test_the_package_stays_thin():
    total = sum(lines_of_code(f.read_text(encoding="utf-8")) for f in PACKAGE.rglob("*.py"))
    # The design says "about 6,000" of the whole kit, of which the model, training and evaluation
    # alone take more; sources, doctor and converters are 3,800, the widgets 1,200. A bound, so that
    # whoever adds to it begins by looking for what to delete.
    assert total <= 14_500, f"{total} lines: something is being built again that exists"


def test_importing_the_package_loads_nothing():
    code = (
        "import sys; before = set(sys.modules); import sam2kit\n"
        "new = set(sys.modules) - before\n"
        "assert new == {'sam2kit', '__future__'} or new == {'sam2kit'}, new"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
