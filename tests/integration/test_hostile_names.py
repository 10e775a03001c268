"""Hostile names in a browser: none of them runs code, and each is displayed as text."""

from __future__ import annotations

import re
from pathlib import Path

import nbformat
import pytest
from hostile import IMAGE, NAMES, SHOWN, write_runs, write_videos
from loguru import logger

from sam2kit.config.loading import to_yaml
from sam2kit.config.schema import Config
from sam2kit.data.doctor.report import run_doctor
from sam2kit.evaluation.evaluate import evaluate
from sam2kit.evaluation.report import write_results
from sam2kit.evaluation.tracker_runs import TrackerRun
from sam2kit.utils.text import label_text, visible_text

NOTEBOOKS = Path(__file__).parents[2] / "notebooks"
TRACK = "evaluation = evaluate_checkpoint(run_dir / checkpoint, overrides, run_dir)"
# Replaces the cell of TRACK, because nothing was trained: every tracker copies the prompted mask.
COPY = """
from sam2kit.config.loading import load_config
from sam2kit.evaluation.evaluate import evaluate
from sam2kit.evaluation.tracker_runs import TrackerRun
import json
names = list(json.loads((run_dir / "metrics.json").read_text())["trackers"])
runs = [TrackerRun(name, None) for name in names]
evaluation = evaluate(load_config(run_dir / "config.yaml"), runs, run_dir)
"""
DEBUGGER = """
from sam2kit.widgets.annotator import PromptDebugger
debugger = PromptDebugger({data!r}, "nano")
for name in evaluation.source.names:
    debugger.add_object(name)
debugger
"""
# The text of cells' outputs, without log lines, which are plain text.
SHOWS = """([start, stop]) => {
    const cells = window.jupyterapp.shell.currentWidget.content.widgets.slice(start, stop);
    const logs = "[data-mime-type*=stdout], [data-mime-type*=stderr]";
    const outputs = (cell) => [...cell.outputArea.node.querySelectorAll(".jp-OutputArea-output")];
    return cells.flatMap(outputs).filter((e) => !e.matches(logs)).map((e) => e.textContent);
}"""
# Traces of code that ran, and of elements made from names.
RAN = """() => ({
    ran: window.ran ?? null,
    made: document.querySelectorAll(
        "img[src='x'], a[href^='javascript'], [onmouseover], [onfocus], mjx-container").length,
})"""
NOTHING = {"ran": None, "made": 0}


def cells(stem: str, **parameters: object) -> list[str]:
    """Return the code cells of a notebook with changed parameters."""
    book = nbformat.read(NOTEBOOKS / f"{stem}.ipynb", as_version=4)
    sources = [cell.source for cell in book.cells if cell.cell_type == "code"]
    sources[0] += "".join(f"\n{name} = {value!r}" for name, value in parameters.items())
    return sources


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    """Videos and their evaluation, both with hostile names."""
    folder = tmp_path_factory.mktemp("hostile")
    data, run, config = write_videos(folder / "data"), folder / "run", Config()
    for part in (config.dataset, config.valdataset):
        part.type, part.annotation_file = "coco", str(data)
    config.dataset.image_size, config.dataset.video_clip_length = 32, 2
    config.dataset.num_workers = 0
    logger.disable("sam2kit")  # a failure would print each long name many times
    evaluation = evaluate(config, [TrackerRun(name, None) for name in NAMES], run)
    write_results(evaluation)
    (run / "config.yaml").write_text(to_yaml(config))
    yield data, run
    logger.enable("sam2kit")


def watch(page) -> list[str]:
    """Collect and dismiss dialogs, which would block the page."""
    dialogs: list[str] = []
    page.on("dialog", lambda dialog: (dialogs.append(dialog.message), dialog.dismiss()))
    return dialogs


def shows(text: str, name: str) -> bool:
    """Return whether the text contains a name, ignoring differences in white space."""
    return re.sub(r"\s+", " ", visible_text(name)) in re.sub(r"\s+", " ", text)


def is_clean(text: str) -> bool:
    """Return whether a text has no control characters and no overlong word."""
    return not re.search("[\u202e\u2066\u200f\x1b]|n{250}", text)


@pytest.mark.browser
def test_notebooks_and_widgets_show_names_as_text(lab, evaluated, tmp_path):
    data, run = evaluated
    config = str(run / "config.yaml")
    inspect = cells("01_inspect_data", run_dir=str(run), config_file=config, shown_videos=7)
    score = cells("04_evaluate", run_dir=str(run))
    score[next(n for n, source in enumerate(score) if source.startswith(TRACK))] = COPY
    runs = write_runs(tmp_path / "others", run)
    compare = cells("05_compare_runs", run_dir=str(tmp_path / "comparison"), runs=runs)
    books = inspect, score, compare
    first, last = "import torch; torch.set_num_threads(1)", DEBUGGER.format(data=str(data))
    book = lab.open("hostile", first, *inspect, *score, *compare, last)
    dialogs = watch(book.page)
    browsers = book.page.locator(".sam2kit-clip[data-ready='true']")
    debugger = book.wait(".sam2kit-annotator[data-ready='true']")
    book.wait(".sam2kit-clip[data-ready='true']")
    book.until("e => e.querySelector('.legend')?.textContent.includes('J 1.00')", browsers.last)
    book.page.wait_for_timeout(300)  # the error event of a broken image comes with a delay
    assert book.page.evaluate(RAN) == NOTHING and not dialogs

    start = 1
    for sources in books:
        stop = start + len(sources)
        text = " ".join(book.page.evaluate(SHOWS, [start, stop]))
        assert all(shows(text, name) for name in SHOWN) and is_clean(text)
        start = stop
    for widget in (browsers.first, browsers.last, debugger):
        text = widget.inner_text() + " ".join(widget.locator("option").all_text_contents())
        assert all(label_text(name) in text for name in (IMAGE, *SHOWN[1:4])), text
        assert is_clean(text)
    message = {"type": "random_prompt", "recipe": IMAGE}
    book.after(debugger, lambda: book.kernel(f"debugger._handle_custom_msg({message!r}, [])"))
    assert shows(debugger.locator(".status").inner_text(), f"recipe={IMAGE!r}")
    assert book.page.evaluate(RAN) == NOTHING and not dialogs

    # Positive control: unescaped HTML does run on the same page.
    book.page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", IMAGE)
    book.page.wait_for_function("window.ran === 'image'")


@pytest.mark.browser
def test_pages_show_names_as_text(lab, evaluated, tmp_path):
    data, run = evaluated
    (run / "doctor.html").write_text(run_doctor(data).page(), encoding="utf-8")
    for name in ("report.html", "doctor.html"):
        page = lab.browser.new_page()
        dialogs = watch(page)
        page.goto((run / name).as_uri())
        page.wait_for_load_state("load")
        page.wait_for_timeout(200)
        assert page.evaluate(RAN) == NOTHING and not dialogs
        text = page.locator("body").text_content()
        assert all(shows(text, video) for video in SHOWN) and is_clean(text)
        assert page.evaluate("[...document.images].every(image => image.naturalWidth > 0)")
        # The content security policy blocks even scripts that are part of the page.
        page.evaluate("html => document.body.insertAdjacentHTML('beforeend', html)", IMAGE)
        page.evaluate(
            "const e = document.createElement('script'); e.textContent = 'window.ran = 1';"
            "document.body.append(e)"
        )
        page.wait_for_timeout(200)
        assert page.evaluate("window.ran ?? null") is None
        page.close()
