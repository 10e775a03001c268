"""The staged notebooks follow the rules for notebooks, and a short run of all succeeds."""

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import numpy as np
import pytest
from loguru import logger
from PIL import Image

from sam2kit.pipeline.runner import run_stages
from sam2kit.prompts.annotations import AnnotationStore
from sam2kit.utils.errors import ConfigError
from sam2kit.viz.video_writer import save_mp4

ROOT = Path(__file__).parents[2]
SHARED = ROOT.parent / "shared"
DAVIS, FILM = SHARED / "davis", SHARED / "video" / "juggle.mp4"
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
STAGES = [0, 1, 2, 3, 4, 5]
# Parameters that each notebook must have.
REQUIRED_PARAMETERS = {path.stem: {"run_dir", "overrides"} for path in NOTEBOOKS} | {
    "00_quickstart": {"run_dir", "video", "clicks", "checkpoint"},
    "05_compare_runs": {"run_dir", "runs"},
}
# Overrides for a training run of seconds on a CPU.
QUICK = [
    "trainer.max_epochs=1",
    "trainer.limit_train_batches=2",
    "trainer.limit_val_batches=2",
    "trainer.log_every_n_steps=1",
    "trainer.accelerator=cpu",
    "scheduler.warmup_steps=0",
    "dataset.num_workers=0",
    "dataset.batch_size=2",
]


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def python_of(source):
    """Return source without IPython's magic and shell lines."""
    return "\n".join(line for line in source.splitlines() if not line.startswith(("%", "!")))


def test_every_stage_has_a_notebook():
    assert [path.name[:2] for path in NOTEBOOKS] == [f"{stage:02d}" for stage in STAGES]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
class TestRules:
    def test_first_cell_lists_inputs_outputs_and_duration(self, path):
        first = read(path).cells[0]
        assert first.cell_type == "markdown"
        for word in ("Needs", "Writes to `run_dir`", "Takes"):
            assert f"| {word} |" in first.source

    def test_first_code_cell_assigns_parameters_from_literals(self, path):
        tagged = [c for c in code_cells(path) if "parameters" in c.metadata.get("tags", [])]
        assert tagged == code_cells(path)[:1]
        names = []
        for statement in ast.parse(tagged[0].source).body:
            assert isinstance(statement, ast.Assign), ast.unparse(statement)
            ast.literal_eval(statement.value)
            names += [target.id for target in statement.targets]
        assert REQUIRED_PARAMETERS[path.stem] <= set(names)

    def test_papermill_can_read_the_parameters(self, path, caplog):
        import papermill

        parameters = papermill.inspect_notebook(str(path))
        assert REQUIRED_PARAMETERS[path.stem] <= set(parameters)
        assert "Unable to parse" not in caplog.text

    def test_cells_are_short_and_define_no_functions(self, path):
        for cell in code_cells(path):
            assert 0 < len(cell.source.splitlines()) <= 15, cell.source
            kinds = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)
            for node in ast.walk(ast.parse(python_of(cell.source))):
                assert not isinstance(node, kinds), cell.source

    def test_outputs_are_stripped_and_kernel_is_python3(self, path):
        notebook = read(path)
        nbformat.validate(notebook)
        assert notebook.metadata.kernelspec.name == "python3"
        assert set(notebook.metadata) <= {"kernelspec", "language_info"}
        for cell in code_cells(path):
            assert cell.outputs == [] and cell.execution_count is None
            assert set(cell.metadata) <= {"tags"}

    def test_contains_no_absolute_path(self, path):
        text = path.read_text(encoding="utf-8")
        assert not any(part in text for part in ("/home/", "/root/", "/tmp/", "/Users/", "C:\\\\"))


def a_few_samples(data):
    """Copy sample clips to ``data``; return overrides to train on them for two steps."""
    for kind in ("JPEGImages", "Annotations"):
        for name in ("train_000", "train_001", "train_002", "val_000", "val_001"):
            shutil.copytree(ROOT / "tests" / "blobs" / kind / name, data / kind / name)
    (data / "train.txt").write_text("train_000\ntrain_001\ntrain_002\n")
    (data / "val.txt").write_text("val_000\nval_001\n")
    return [
        *QUICK,
        f"dataset.data_path='{data}'",
        f"valdataset.data_path='{data}'",
        f"dataset.split='{data / 'train.txt'}'",
        f"valdataset.split='{data / 'val.txt'}'",
    ]


def run_on_a_few_samples(data, run_dir):
    """Run all notebooks on a few sample clips, with two training steps."""
    parameters = {
        "overrides": a_few_samples(data),
        "max_videos": 2,
        "shown_videos": 2,
        "max_clips": 2,
    }
    parameters["runs"] = [str(run_dir)]
    return run_stages(ROOT / "configs" / "quickstart.yaml", parameters, STAGES, run_dir)


def check_no_cell_failed(result):
    assert [path.name for path in result.notebooks] == [path.name for path in NOTEBOOKS]
    for path in result.notebooks:
        outputs = [output for cell in code_cells(path) for output in cell.outputs]
        assert outputs and not [o for o in outputs if o.output_type == "error"]
    status = json.loads((result.run_dir / "status.json").read_text())["stages"]
    assert {entry["state"] for entry in status.values()} == {"done"}


def check_clicked_objects_are_tracked(result):
    (folder,) = (result.run_dir / "tracked").glob("*/*")
    truth_folder = ROOT / "data_samples" / "Annotations" / "person_hall"
    names = sorted(path.name for path in truth_folder.glob("*.png"))
    predicted, truth = (
        np.stack([np.array(Image.open(masks / name)) for name in names])
        for masks in (folder / "masks" / "person_hall", truth_folder)
    )
    intersection, union = (f(predicted == 1, truth == 1) for f in (np.logical_and, np.logical_or))
    assert intersection.sum() / union.sum() > 0.45
    with Image.open(folder / "overlay.gif") as gif:
        assert gif.n_frames == len(names) == 24
    assert json.loads((folder / "track.json").read_text())["objects"] == ["person"]


def check_html_export_keeps_animations(result):
    from nbconvert import HTMLExporter

    for name in ("00_quickstart", "04_evaluate"):
        page, _ = HTMLExporter(template_name="basic").from_filename(
            result.run_dir / f"{name}.ipynb"
        )
        assert "data:image/gif;base64," in page, name


def check_data_summary(result):
    summary = json.loads((result.run_dir / "data_summary.json").read_text())
    assert summary["sets"]["train"]["videos"] == 3
    assert summary["sets"]["train"]["videos read"] == 2
    assert summary["sets"]["validation"]["videos"] == 2
    assert 0 < summary["sets"]["validation"]["copied mask"] < 1
    assert [row["video"] for row in summary["videos"]][2:] == ["val_000", "val_001"]


def check_doctor_report(result):
    report = json.loads((result.run_dir / "doctor.json").read_text())
    assert [row["videos"] for row in report["summary"]] == [3, 2]
    assert [row["frames"] for row in report["summary"]] == [24, 16]
    assert not report["broken"] and not report["findings"]
    assert "<html" in (result.run_dir / "doctor.html").read_text()


def check_a_picture_follows_each_widget(result):
    """Check that the cell after a widget shows a PNG, which needs no running kernel."""
    expected = {"00_quickstart": 1, "01_inspect_data": 1, "02_debug_prompts": 1, "04_evaluate": 1}
    widget = "application/vnd.jupyter.widget-view+json"
    counts = dict.fromkeys(expected, 0)
    for path in result.notebooks:
        cells = code_cells(path)
        assert "widgets" not in read(path).metadata
        for cell, next_cell in zip(cells, cells[1:], strict=False):
            if any(widget in output.get("data", {}) for output in cell.outputs):
                assert any("image/png" in output.get("data", {}) for output in next_cell.outputs)
                counts[path.stem] += 1
    assert counts == expected


def check_prompt_debugger(result):
    printed = [
        output.text
        for cell in code_cells(result.run_dir / "02_debug_prompts.ipynb")
        for output in cell.outputs
        if output.output_type == "stream" and "J, frame by frame:" in output.text
    ]
    scores = [float(word) for word in printed[0].partition("J, frame by frame:")[2].split()]
    assert len(scores) == 8 and np.mean(scores) > 0.5
    assert not (result.run_dir / "corrections.jsonl").exists()


def check_prompts(result):
    document = json.loads((result.run_dir / "prompts.json").read_text())
    assert document["image_size"] == [192, 192]
    assert {entry["video"] for entry in document["prompts"]} == {"val_000", "val_001"}
    assert {entry["kind"] for entry in document["prompts"]} == {"mask"}


def check_training(result):
    assert (result.run_dir / "best.ckpt").stat().st_size > 1_000_000
    assert "val_iou" in (result.run_dir / "metrics.csv").read_text().splitlines()[0]


def check_pictures(result):
    for name in (
        "clips_train",
        "clips_validation",
        "areas",
        "prompts_mask",
        "prompts_box",
        "prompts_point",
        "training",
        "overlay",
        "scores",
    ):
        with Image.open(result.run_dir / f"{name}.png") as image:
            assert min(image.size) > 100
            assert len(set(image.convert("L").resize((64, 64)).tobytes())) > 16, name
    with Image.open(result.run_dir / "overlay.gif") as gif:
        assert gif.n_frames > 1


def check_scores_of_the_trackers(result):
    names = ["after training", "before training", "after, memory zeroed", "first mask copied"]
    assert list(result.scores)[:4] == names
    assert all(0 <= score <= 1 for score in result.scores.values())
    summary = json.loads((result.run_dir / "data_summary.json").read_text())
    copied = summary["sets"]["validation"]["copied mask"]
    metrics = json.loads((result.run_dir / "metrics.json").read_text())
    # One was computed at the model's resolution, the other at the video's.
    assert metrics["trackers"]["first mask copied"]["J"] == pytest.approx(copied, abs=0.005)
    results = ["checkpoint", "overlay image", "overlay GIF", "metrics", "report"]
    assert list(result.results) == results


def test_all_notebooks_run_in_sequence(tmp_path):
    # A single test, because parallel workers would each run the notebooks.
    result = run_on_a_few_samples(tmp_path / "data", tmp_path / "run")
    check_no_cell_failed(result)
    check_clicked_objects_are_tracked(result)
    check_html_export_keeps_animations(result)
    check_data_summary(result)
    check_doctor_report(result)
    check_prompts(result)
    check_prompt_debugger(result)
    check_a_picture_follows_each_widget(result)
    check_training(result)
    check_pictures(result)
    check_scores_of_the_trackers(result)


def papermill(notebook, executed, arguments=(), directory=ROOT, **parameters):
    """Run a notebook with the papermill command, and return the outputs of its code cells."""
    command = [sys.executable, "-m", "papermill", str(notebook), str(executed), "--no-progress-bar"]
    command += ["-y", json.dumps(parameters), *arguments]  # JSON is YAML
    environment = os.environ | {"MPLBACKEND": "agg"}
    process = subprocess.run(
        command, cwd=directory, capture_output=True, text=True, env=environment
    )
    assert process.returncode == 0, process.stderr[-3000:]
    return [output for cell in code_cells(executed) for output in cell.outputs]


@pytest.mark.slow  # the default tests run the notebook of training with the command
def test_papermill_command(tmp_path):
    executed = tmp_path / "executed.ipynb"
    outputs = papermill(NOTEBOOKS[0], executed, run_dir=str(tmp_path / "run"))
    assert any("image/png" in output.get("data", {}) for output in outputs)
    (masks,) = (tmp_path / "run" / "tracked").glob("*/*/masks/person_hall")
    assert len(list(masks.glob("*.png"))) == 24


@pytest.mark.slow
def test_papermill_command_runs_all_notebooks(tmp_path):
    run_dir = tmp_path / "run"
    common = {"run_dir": str(run_dir), "overrides": a_few_samples(tmp_path / "data")}
    few = {"max_videos": 2, "shown_videos": 2, "max_clips": 2, "runs": [str(run_dir)]}
    for notebook in NOTEBOOKS:
        # papermill warns of parameters that a notebook does not have.
        cell = code_cells(notebook)[0].source
        parameters = {k: v for k, v in (common | few).items() if f"{k} = " in cell}
        papermill(notebook, tmp_path / notebook.name, **parameters)
    assert {"best.ckpt", "metrics.json", "report.html", "comparison.md"} <= {
        path.name for path in run_dir.iterdir()
    }


def run_cells(notebook, parameters):
    """Run the code cells of a notebook in this process, which starts faster than a kernel."""
    namespace = {}
    for number, cell in enumerate(code_cells(notebook)):
        exec(python_of(cell.source), namespace)
        if number == 0:
            namespace |= parameters


def test_training_notebook_started_in_its_directory(tmp_path, monkeypatch):
    """JupyterLab starts kernels in ``notebooks/``; ``-p`` passes all overrides as one text."""
    changes = [*QUICK, "dataset=synthetic", "valdataset=synthetic", "dataset.image_size=64"]
    changes += ["dataset.synthetic_videos=4", "valdataset.synthetic_videos=2"]
    outputs = papermill(
        NOTEBOOKS[3],
        tmp_path / "executed.ipynb",
        ["-p", "overrides", " ".join(changes)],
        ROOT / "notebooks",
        run_dir=str(tmp_path / "run"),
    )
    names = {"best.ckpt", "training.png", "training.pdf"}
    assert names <= {path.name for path in (tmp_path / "run").iterdir()}
    # Every update replaces the image of the live curves.
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 1
    printed = "".join(o.text for o in outputs if o.output_type == "stream")
    assert "memory per step" in printed and "step 1/" in printed
    # Run again as shipped, with resume = False: a finished training is not overwritten.
    run_dir = tmp_path / "run"
    before = (run_dir / "best.ckpt").read_bytes()
    monkeypatch.chdir(ROOT)
    with pytest.raises(ConfigError, match="a run"):
        run_cells(NOTEBOOKS[3], {"run_dir": str(run_dir), "overrides": changes})
    logger.remove()  # the notebook prints log lines below its cells
    assert (run_dir / "best.ckpt").read_bytes() == before


class TestOtherData:
    """`01_inspect_data` on the data at a path, and all stages on real videos."""

    def inspect(self, data, run_dir):
        parameters = {"data": str(data), "max_videos": 2, "shown_videos": 2}
        return run_stages(ROOT / "configs" / "quickstart.yaml", parameters, [1], run_dir)

    def summary(self, run_dir):
        return json.loads((run_dir / "data_summary.json").read_text())["sets"]["data"]

    def test_video_without_masks(self, tmp_path):
        """Stages 1 and 2 show the video as it is; generated objects appear only in training."""
        frames = [np.full((48, 64, 3), 20 * t, dtype=np.uint8) for t in range(8)]
        (tmp_path / "films").mkdir()
        save_mp4(tmp_path / "films" / "film.mp4", frames)
        config = ROOT / "configs" / "config.yaml"
        film = f"dataset.data_path='{tmp_path / 'films'}'"
        overrides = [film, "dataset.synthetic_objects=3", "dataset.image_size=64"]
        parameters = {"data": str(tmp_path / "films"), "overrides": overrides, "shown_videos": 1}
        result = run_stages(config, parameters, [1, 2], tmp_path / "run")
        summary = self.summary(result.run_dir)
        assert summary["videos"] == 1 and summary["objects"] == 0
        (row,) = json.loads((result.run_dir / "doctor.json").read_text())["summary"]
        assert (row["frames"], row["masks"], row["sizes"]) == (8, 0, "64x48")
        assert summary["copied mask"] is None
        written = {path.name for path in result.run_dir.rglob("*")}
        assert not written & {"prompts_mask.png", "prompts.json", "corrections.jsonl"}
        store = AnnotationStore(result.run_dir / "by_hand" / "annotations")
        assert all(not store.load(video).objects for video in store.videos())
        assert {path.name for path in (tmp_path / "films").iterdir()} == {"film.mp4"}

    @pytest.mark.slow
    @pytest.mark.skipif(not FILM.exists(), reason=f"{FILM} does not exist")
    def test_real_video(self, tmp_path):
        summary = self.summary(self.inspect(FILM, tmp_path / "run").run_dir)
        assert summary["videos"] == 1 and 0 < summary["copied mask"] < 1

    @pytest.mark.slow
    @pytest.mark.skipif(not DAVIS.exists(), reason=f"{DAVIS} does not exist")
    def test_davis(self, tmp_path):
        overrides = [
            *QUICK,
            f"dataset.data_path='{DAVIS}'",
            "dataset.split=2016/train",
            "valdataset.split=2016/val",
            "model=nano",
            "model.checkpoint=nano",
            "dataset.image_size=128",
            "dataset.batch_size=1",
        ]
        parameters = {"overrides": overrides, "max_videos": 3, "runs": [str(tmp_path / "run")]}
        config = ROOT / "configs" / "davis.yaml"
        result = run_stages(config, parameters, STAGES, tmp_path / "run")
        check_no_cell_failed(result)
        check_training(result)
        check_pictures(result)
        assert not json.loads((result.run_dir / "doctor.json").read_text())["broken"]
        assert result.scores["after training"] > result.scores["first mask copied"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_rendered_page_is_current_and_small(path):
    """`make docs-notebooks` writes the page with all cells and their images."""
    folder = ROOT / "docs" / "notebooks"
    page = (folder / f"{path.stem}.md").read_text(encoding="utf-8")
    for cell in read(path).cells:
        assert cell.source.strip() in page, f"run make docs-notebooks: {path.stem} has changed"
    pictures = re.findall(r"!\[\]\((.+?)\)", page)
    assert pictures and all((folder / picture).stat().st_size < 1_000_000 for picture in pictures)
    assert not re.search(r"/(home|root|tmp|Users)/|\d\d:\d\d:\d\d ", page)
    assert f"docs/notebooks/{path.stem}.md" in (ROOT / "README.md").read_text(encoding="utf-8")
