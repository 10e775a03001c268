"""What is installed: the lists of packages agree, and a wheel works away from the repository."""

from __future__ import annotations

import ast
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
# Where a distribution is not called as the module it holds.
DISTRIBUTIONS = {
    "cv2": "opencv-python-headless",
    "PIL": "pillow",
    "hydra": "hydra-core",
    "yaml": "PyYAML",
}


def declared(*lists: list[str]) -> dict[str, Requirement]:
    requirements = [Requirement(text) for texts in lists for text in texts]
    return {canonicalize_name(r.name): r for r in requirements}


def pinned() -> dict[str, Version]:
    lines = (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    found = {}
    for line in lines:
        if text := line.partition("#")[0].strip():
            name, equals, version = text.partition("==")
            assert equals and canonicalize_name(name) not in found, f"{text}: pin it, and once"
            found[canonicalize_name(name)] = Version(version)
    return found


def test_requirements_pin_what_the_project_declares():
    ranges = declared(PROJECT["dependencies"], *EXTRAS.values())
    versions = pinned()
    assert set(versions) == set(ranges)
    for name, version in versions.items():
        assert version in ranges[name].specifier, f"{name} {version}: not {ranges[name].specifier}"


def test_extras_are_the_promised_ones():
    assert set(EXTRAS) == {"wandb", "swanlab", "lora", "slurm", "dev"}
    own = declared(PROJECT["dependencies"])
    assert Version("2.13.0") not in own["torch"].specifier
    assert Version("2.5.1") in own["torch"].specifier


def test_environment_refers_to_the_one_list():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text(encoding="utf-8"))
    (pip,) = (item["pip"] for item in environment["dependencies"] if isinstance(item, dict))
    plain = [item for item in environment["dependencies"] if isinstance(item, str)]
    assert pip == ["-r requirements.txt", "-e ."]
    assert [re.split("[=<>]", item)[0] for item in plain] == ["python", "pip"]
    version = Version(plain[0].partition("=")[2])
    assert version in Requirement(f"python{PROJECT['requires-python']}").specifier
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    assert "a second time" in text and "make setup" in text


def test_make_installs_first_what_building_sam2_needs():
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    (names,) = re.findall(r"grep -E '\^\(([a-z|]+)\)=='", makefile)
    assert {"torch", "torchvision", "setuptools", "wheel", "hatchling"} <= set(names.split("|"))
    assert set(names.split("|")) <= set(pinned())
    assert "--no-build-isolation" in makefile and "SAM2_BUILD_CUDA=0" in makefile


def test_every_import_is_declared():
    known = set(declared(PROJECT["dependencies"], *EXTRAS.values()))
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
                    assert canonicalize_name(name) in known, f"{file.name} imports {name}"


@pytest.mark.skipif(shutil.which("make") is None, reason="needs make")
def test_a_second_set_up_does_nothing(tmp_path):
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
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_wheel_holds_the_package_and_its_configs(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    package = {f.relative_to(ROOT).as_posix() for f in files(ROOT / "sam2kit")}
    configs = {f"sam2kit/{f.relative_to(ROOT).as_posix()}" for f in files(ROOT / "configs")}
    assert package | configs <= names
    assert all(name.startswith(("sam2kit/", "sam2kit-")) for name in names)
    assert f"sam2kit-{sam2kit.__version__}-" in wheel.name
    assert any(name.endswith("licenses/LICENSE") for name in names)


def files(folder: Path) -> list[Path]:
    return [f for f in folder.rglob("*") if f.is_file() and "__pycache__" not in f.parts]


def test_installed_wheel_trains_two_steps_elsewhere(wheel, tmp_path):
    target, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    elsewhere.mkdir()
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index"]
    subprocess.run([*pip, "--target", str(target), str(wheel)], check=True)
    environment = {**os.environ, "PYTHONPATH": str(target), "OMP_NUM_THREADS": "1"}

    def python(*argv: str) -> str:
        done = subprocess.run(
            [sys.executable, *argv], cwd=elsewhere, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    where = "from sam2kit.config.loading import config_dir; print(config_dir())"
    assert Path(python("-c", where).strip()) == target / "sam2kit" / "configs"
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
    (run,) = (elsewhere / "outputs").glob("*/*")
    assert (run / "best.ckpt").is_file() and (run / "config.yaml").is_file()
    steps = [line.split(",") for line in (run / "metrics.csv").read_text().splitlines()]
    assert {row[steps[0].index("step")] for row in steps[1:]} >= {"0", "1"}


@pytest.mark.skipif(sys.platform != "linux", reason="who listens is asked of Linux")
def test_lab_answers_on_loopback_alone_and_to_its_token(tmp_path):
    told = subprocess.run(
        ["make", "-n", "lab", f"PYTHON={sys.executable}"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    ).stdout.replace("\\\n", " ")
    (line,) = [line for line in told.splitlines() if "-m jupyterlab" in line]
    arguments = shlex.split(line)[1:]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    process = subprocess.Popen(
        [sys.executable, *arguments, "--no-browser", "--allow-root", f"--ServerApp.port={port}"],
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
            except urllib.error.HTTPError as answer:
                assert answer.code == 403
                break
            except OSError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
            else:
                pytest.fail("files are shown to whoever asks")
        listening = psutil.Process(process.pid).net_connections("tcp")
        found = {c.laddr.ip for c in listening if c.status == psutil.CONN_LISTEN}
        assert found == {"127.0.0.1"}
    finally:
        process.terminate()
        process.wait(30)
