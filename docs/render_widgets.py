"""Take the pictures of the widgets in ``docs/images``: ``python docs/render_widgets.py``.

Runs the annotator and the clip browser in JupyterLab on a sample clip, with the light and the dark
theme. Chromium is required.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tests"))
from browser_helpers import Lab, running_lab  # noqa: E402

IMAGES = ROOT / "docs" / "images"
VIDEO = "walking_the_dog"
ANNOTATOR = f"""\
from sam2kit import Annotator
annotator = Annotator("data_samples", model="nano", video="{VIDEO}", run_dir="outputs/{{theme}}")
annotator.go(6)
for k, name in enumerate(["person", "dog"]):
    annotator.select(k)
    annotator.rename(k, name)
    rows, columns = annotator.session.truth(6)[k + 1].nonzero()
    annotator.box(*map(int, (columns.min(), rows.min(), columns.max(), rows.max())))
annotator.propagate(direction="both")
annotator.wait()
annotator.accept([4, 5, 6, 7, 8])
annotator
"""
BROWSER = f"""\
from sam2kit import ClipBrowser
results = {{{{"shipped": "outputs/evaluation"}}}}
browser = ClipBrowser("data_samples", "{VIDEO}", predictions=results)
browser.frame = 6
browser
"""
EVALUATION = f"""\
from pathlib import Path
from sam2kit import evaluate_checkpoint
Path("one.txt").write_text("{VIDEO}\\n")
videos = ["valdataset.data_path=data_samples", "valdataset.split=one.txt"]
evaluate_checkpoint("nano", [*videos, "evaluation.pictures=false"], Path("outputs/evaluation"))
"""


def take(lab: Lab, name: str, style: str, cell: str, dark: bool) -> None:
    """Run a cell that shows a widget, and save a picture of the widget.

    Args:
        lab: JupyterLab.
        name: name of the picture.
        style: CSS class of the widget.
        cell: code, in which the theme is inserted.
        dark: use the dark theme.
    """
    theme = "dark" if dark else "light"
    notebook = lab.open(f"{name}_{theme}", cell.format(theme=theme), dark=dark)
    widget = notebook.wait(f".{style}[data-ready='true']")
    notebook.page.mouse.move(0, 0)
    notebook.page.wait_for_timeout(2000)  # scores are computed in the background
    widget.screenshot(path=str(IMAGES / f"{name}_{theme}.png"))


def main() -> None:
    with tempfile.TemporaryDirectory() as folder, running_lab(Path(folder)) as lab:
        (lab.root / "data_samples").symlink_to(ROOT / "data_samples")
        lab.open("evaluation", EVALUATION)
        for dark in (False, True):
            take(lab, "annotator", "sam2kit-annotator", ANNOTATOR, dark)
            take(lab, "clip_browser", "sam2kit-clip", BROWSER, dark)


if __name__ == "__main__":
    main()
