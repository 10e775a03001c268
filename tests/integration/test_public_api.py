"""The public API: its names, its signatures, and that importing it loads nothing heavy."""

from __future__ import annotations

import ast
import inspect
import json
import pkgutil
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cached_property
from importlib import import_module
from pathlib import Path

import pytest
from snapshots import check_snapshot

import sam2kit

ROOT = Path(__file__).parents[2]
PACKAGES = [
    "sam2kit",
    *(
        f"sam2kit.{path.parent.relative_to(ROOT / 'sam2kit').as_posix().replace('/', '.')}"
        for path in sorted((ROOT / "sam2kit").glob("*/**/__init__.pyi"))
    ),
]
REQUIRED = """
    Config ModelConfig DatasetConfig AugmentationConfig ValDatasetConfig LossConfig OptimizerConfig
    SchedulerConfig TrainerConfig FeaturesConfig EvaluationConfig load_config SAM2Model
    create_sam2_model load_model VideoDataset COCODataset open_source VideoSource VideoClip
    ClipBatch ClipDataset create_dataloader Prompt PromptGenerator SAM2TrainingLoss
    SAM2LightningModule SAM2LightningDataModule fit audit_gradients plan_training
    evaluate_checkpoint evaluate_predictions VideoTracker TrackerOptions track_video export
    run_doctor convert PromptDebugger Annotator ClipBrowser SAM2KitError ConfigError DataError
    CheckpointError TrainingError
""".split()
HEAVY = ("torch", "numpy", "hydra", "omegaconf", "lightning", "matplotlib", "IPython")


def test_names_that_users_rely_on_are_exported():
    assert set(REQUIRED) <= set(sam2kit.__all__)
    assert sam2kit.Annotator is sam2kit.PromptDebugger


def test_a_name_is_resolved_once():
    config = sam2kit.Config
    assert vars(sam2kit)["Config"] is config is sam2kit.config.Config


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="train_model"):
        sam2kit.train_model  # noqa: B018
    with pytest.raises(ImportError):
        exec("from sam2kit.data import NoSuchDataset")


@pytest.mark.parametrize("package", PACKAGES)
class TestPackages:
    def test_every_exported_name_exists_and_is_listed(self, package):
        module = import_module(package)
        assert set(module.__all__) <= set(dir(module))
        for name in module.__all__:
            assert getattr(module, name) is not None

    def test_no_exported_name_hides_a_submodule(self, package):
        module = import_module(package)
        submodules = {info.name for info in pkgutil.iter_modules(module.__path__)}
        assert not submodules & set(module.__all__)


def test_every_package_has_a_stub_or_exports_nothing():
    for path in (ROOT / "sam2kit").rglob("__init__.py"):
        assert path.with_suffix(".pyi").exists() == ("lazy_loader" in path.read_text()), path


def test_importing_the_packages_loads_nothing_heavy():
    # A process of its own: this one has already imported torch.
    code = (
        f"import json, sys\nfor name in {PACKAGES}: __import__(name)\n"
        "before = sorted(sys.modules)\n"
        "from sam2kit import SAM2KitError\n"
        "print(json.dumps([before, sorted(sys.modules)]))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    before, after = json.loads(result.stdout)
    assert not {*HEAVY} & {*before, *after}
    kit = {name for name in before if name.startswith("sam2kit")}
    assert kit == {*PACKAGES}
    loaded = {*after} - {*before}
    beyond_stdlib = {m for m in loaded if m.split(".")[0] not in sys.stdlib_module_names}
    assert beyond_stdlib == {"sam2kit.utils.errors"}


def _signature(function: object) -> str:
    """Return names, kinds and defaults; annotations as they are written in the code."""
    parts, star = [], False
    for p in inspect.signature(function).parameters.values():  # type: ignore[arg-type]
        if p.kind is p.KEYWORD_ONLY and not star:
            parts.append("*")
        star = star or p.kind in (p.KEYWORD_ONLY, p.VAR_POSITIONAL)
        prefix = {p.VAR_POSITIONAL: "*", p.VAR_KEYWORD: "**"}.get(p.kind, "")
        text = prefix + p.name
        if p.annotation is not p.empty:
            text += f": {p.annotation}"
        if p.default is not p.empty:
            text += f" = {p.default!r}"
        parts.append(text)
    returned = inspect.signature(function).return_annotation  # type: ignore[arg-type]
    ending = "" if returned is inspect.Signature.empty else f" -> {returned}"
    # A default that is an object would show its address, which differs on every run.
    return re.sub(r" at 0x[0-9a-f]+", "", f"({', '.join(parts)}){ending}")


def _lines(name: str, value: object) -> Iterator[str]:
    """Yield the snapshot lines of a public name: alias, function, or class with its members."""
    if getattr(value, "__name__", name) != name and isinstance(value, type):
        yield f"{name} = {value.__name__}"
        return
    if not isinstance(value, type):
        yield f"{name}{_signature(value)}"
        return
    bases = [base.__name__ for base in value.__mro__[1:] if base.__module__.startswith("sam2kit")]
    yield f"class {name}" + (f"({', '.join(bases)})" if bases else "")
    if "__init__" in vars(value):
        yield f"    __init__{_signature(vars(value)['__init__'])}"
    for attribute, member in sorted(vars(value).items()):
        if attribute.startswith(("_", "on_")):  # on_: called by Lightning or by a widget's view
            continue
        function = inspect.unwrap(getattr(member, "__func__", member))
        if isinstance(member, (property, cached_property)):
            yield f"    {attribute}: property"
        elif inspect.isfunction(function):
            yield f"    {attribute}{_signature(function)}"


def test_signatures():
    lines = []
    for name in sam2kit.__all__:
        lines += _lines(name, getattr(sam2kit, name))
    for package in PACKAGES[1:]:
        exported = ", ".join(import_module(package).__all__)
        lines.append(f"{package}: {exported}")
    check_snapshot("public_api.txt", "\n".join(lines) + "\n")


def _imported(code: str) -> Iterator[str]:
    """Yield the modules that the code imports, and check names against the packages' exports."""
    code = "\n".join(line for line in code.splitlines() if not line.startswith(("%", "!")))
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module or ""
            exported = getattr(import_module(node.module), "__all__", ())
            if node.module in PACKAGES:
                assert {a.name for a in node.names} <= set(exported), node.module


def _examples() -> Iterator[tuple[str, str]]:
    """Yield file name and code of every notebook cell and of every Python block in the docs."""
    for path in sorted((ROOT / "notebooks").glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        for cell in cells:
            if cell["cell_type"] == "code":
                yield path.name, "".join(cell["source"])
    for path in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]:
        for block in re.findall(r"```python\n(.*?)```", path.read_text("utf-8"), re.DOTALL):
            yield path.name, block


def test_notebooks_and_docs_import_only_the_public_api():
    modules = {(page, name) for page, code in _examples() for name in _imported(code)}
    kit = {(page, name) for page, name in modules if name.split(".")[0] == "sam2kit"}
    # Sub-packages below sub-packages, such as sam2kit.data.sources, count as inner modules.
    inner = {(page, name) for page, name in kit if name not in PACKAGES or name.count(".") > 1}
    assert not inner
    assert {path.name for path in (ROOT / "notebooks").glob("*.ipynb")} <= {p for p, _ in kit}
