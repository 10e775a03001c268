"""The lists of dependencies agree, and the installed wheel works outside the repository."""

from __future__ import annotations

import ast
import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import sam2kit

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib
import psutil

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
# Distributions whose name differs from their module.
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "hydra": "hydra-core",
    "yaml": "PyYAML",
}


def declared(*lists: list[str]) -> dict[str, Requirement]:
    """Parse lists of requirements into a dictionary by normalized name."""
    requirements = [Requirement(text) for texts in lists for text in texts]
    return {canonicalize_name(r.name): r for r in requirements}


def pinned() -> dict[str, Version]:
    """Read requirements.txt, in which every package is pinned exactly once."""
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    versions: dict[str, Version] = {}
    for line in lines:
        if text := line.partition("#")[0].strip():
            name, equals, version = text.partition(";")[0].partition("==")
            assert equals, f"{text} is not pinned"
            assert canonicalize_name(name) not in versions, f"{name} is listed twice"
            versions[canonicalize_name(name)] = Version(version)
    return versions


def test_requirements_pin_the_declared_packages():
    extras = {name: texts for name, texts in EXTRAS.items() if name != "render"}
    ranges = declared(PROJECT["dependencies"], *extras.values())
    versions = pinned()
    assert set(versions) == set(ranges)
    for name, version in versions.items():
        supported = ranges[name].specifier
        assert version in supported, f"{name} {version} is not {supported}"


def test_extras_and_supported_torch_versions():
    assert set(EXTRAS) == {"wandb", "swanlab", "lora", "slurm", "transformers", "render", "dev"}
    assert all("==" in text for text in EXTRAS["render"])  # it is not in requirements.txt
    torch = declared(PROJECT["dependencies"])["torch"]
    assert Version("2.13.0") not in torch.specifier
    assert Version("2.5.1") in torch.specifier


def test_conda_environment_uses_requirements_txt():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    assert pip == ["-r requirements.txt", "-e ."]
    assert [re.split("[=<>]", item)[0] for item in plain] == ["python", "pip"]
    version = Version(plain[0].partition("=")[2])
    assert version in Requirement(f"python{PROJECT['requires-python']}").specifier
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "a second time" in text and "make setup" in text


def test_make_installs_the_build_dependencies_of_sam2_first():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (names,) = re.findall(r"grep -E '\^\(([a-z|]+)\)=='", makefile)
    assert {"torch", "torchvision", "setuptools", "wheel", "hatchling"} <= set(names.split("|"))
    assert set(names.split("|")) <= set(pinned())
    assert "--no-build-isolation" in makefile and "SAM2_BUILD_CUDA=0" in makefile


def test_every_import_is_declared():
    available = set(declared(PROJECT["dependencies"], *EXTRAS.values()))
    for file in (ROOT / "sam2kit").rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module or ""]
            for name in {name.split(".")[0] for name in names} - {"sam2kit"}:
                if name not in sys.stdlib_module_names:
                    name = DISTRIBUTIONS.get(name, name)
                    assert canonicalize_name(name) in available, f"{file.name} imports {name}"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_second_setup_does_nothing(tmp_path):
    stamp = tmp_path / ".sam2kit-installed"

    def up_to_date() -> bool:
        command = ["make", "--question", "setup", f"VENV={tmp_path}"]
        return subprocess.run(command, cwd=ROOT, capture_output=True).returncode == 0

    assert not up_to_date()
    stamp.touch()
    assert up_to_date()
    os.utime(stamp, (1, 1))  # older than requirements.txt
    assert not up_to_date()


def test_ci_runs_the_tests():
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK) and "make test" in script.read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    build = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert build.returncode == 0, build.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_wheel_contains_the_package_and_its_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {f.relative_to(ROOT).as_posix() for f in files(ROOT / "sam2kit")}
    configs = {f"sam2kit/{f.relative_to(ROOT).as_posix()}" for f in files(ROOT / "configs")}
    assert package | configs <= names
    assert all(name.startswith(("sam2kit/", "sam2kit-")) for name in names)
    assert f"sam2kit-{sam2kit.__version__}-" in wheel.name
    assert any(name.endswith("licenses/LICENSE") for name in names)


def files(folder: Path) -> list[Path]:
    return [f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts]


def test_installed_wheel_trains_outside_the_repository(wheel, tmp_path):
    target, work_dir = tmp_path / "site", tmp_path / "work"
    work_dir.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}

    def python(*argv: str) -> str:
        process = subprocess.run(
            [sys.executable, *argv], cwd=work_dir, env=environment, capture_output=True, text=True
        )
        assert process.returncode == 0, process.stderr
        return process.stdout

    code = "from sam2kit.config.loading import config_dir; print(config_dir())"
    assert Path(python("-c", code).strip()) == target / "sam2kit" / "configs"
    assert (target / "bin" / "sam2kit").is_file()
    tiny = [
        "dataset.image_size=64",
        "dataset.video_clip_length=2",
        "dataset.synthetic_videos=2",
        "dataset.num_workers=0",
        "valdataset.synthetic_videos=1",
        "trainer.max_steps=2",
        "trainer.log_every_n_steps=1",
    ]
    python("-m", "sam2kit.train", "model=nano", "dataset=synthetic", "trainer=cpu", *tiny)
    (run,) = (work_dir / "outputs").glob("*/*")
    assert (run / "best.ckpt").is_file() and (run / "config.yaml").is_file()
    header, *rows = (run / "metrics.csv").read_text().splitlines()
    column = header.split(",").index("step")
    assert {row.split(",")[column] for row in rows} >= {"0", "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="lists sockets of a process on Linux")
def test_lab_listens_only_on_loopback_and_needs_a_token(tmp_path):
    # The options of `make lab`, without starting a browser; also as root, if the tests run as root.
    commands = subprocess.run(
        ["make", "-n", "lab", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        env={**os.environ, "HOST": "0.0.0.0"},  # some shells export it: it must have no effect
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("\\\n", " ")
    (line,) = [line for line in commands.splitlines() if "-m jupyterlab" in line]
    arguments = shlex.split(line)[1:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *arguments, "--no-browser", f"--ServerApp.port={port}"],
        cwd=ROOT,
        env={**os.environ, "HOME": str(tmp_path), "JUPYTER_RUNTIME_DIR": str(tmp_path)},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        deadline = time.monotonic() + 120
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/contents", timeout=5)
            except urllib.error.HTTPError as error:
                assert error.code == 403
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            else:
                pytest.fail("the server lists files without a token")
        # With its random token it lists the files of the repository.
        (server,) = tmp_path.glob("jpserver-*.json")
        token = json.loads(server.read_text())["token"]
        assert len(token) >= 32
        url = f"http://127.0.0.1:{port}/api/contents?token={token}"
        names = {row["name"] for row in json.load(urllib.request.urlopen(url))["content"]}
        assert {"docs", "notebooks", "sam2kit"} <= names
        connections = psutil.Process(process.pid).net_connections("tcp")
        addresses = {c.laddr.ip for c in connections if c.status == psutil.CONN_LISTEN}
        assert addresses == {"127.0.0.1"}
    finally:
        process.terminate()
        process.wait(30)


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
@pytest.mark.parametrize("user", [0, 1000])
def test_make_lab_works_as_root_and_listens_on_loopback(tmp_path, user):
    (tmp_path / "id").write_text(f"#!/bin/sh\necho {user}\n")
    (tmp_path / "id").chmod(0o755)
    (tmp_path / ".sam2kit-installed").touch()
    environment = os.environ | {"PATH": f"{tmp_path}:{os.environ['PATH']}", "HOST": "gpu-box"}

    def command(*options: str) -> list[str]:
        words = ["make", "--dry-run", "lab", f"VENV={tmp_path}", *options]
        result = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True)
        assert result.returncode == 0, result.stderr
        return shlex.split(result.stdout.replace("\\\n", " "))

    words = command()
    assert f"--ServerApp.root_dir={ROOT}" in words and "--ServerApp.ip=127.0.0.1" in words
    assert ("--allow-root" in words) == (user == 0)
    assert not any("token" in word for word in words)
    words = command("HOST=0.0.0.0", "PORT=8899")
    assert "--ServerApp.ip=0.0.0.0" in words and "--ServerApp.port=8899" in words
