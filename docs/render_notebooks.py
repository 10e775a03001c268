"""Run the notebooks on the sample data and render them as Markdown: ``make docs-notebooks``.

``docs/notebooks/NAME.md`` holds text, code and outputs, ``NAME_files/`` the pictures. The run
directory is ``outputs/docs``; a second call resumes there. Paths, times and other text that differs
between machines or runs is removed.
"""

from __future__ import annotations

import base64
import io
import re
import shutil
from pathlib import Path

import nbformat
from nbconvert import MarkdownExporter
from PIL import Image

from sam2kit.pipeline.runner import run_stages

ROOT = Path(__file__).parent.parent
OUT = ROOT / "docs" / "notebooks"
RUN_DIR = ROOT / "outputs" / "docs"
STAGES = [0, 1, 2, 3, 4, 5]
MAX_PNG_BYTES = 150_000  # a larger PNG is reduced to 256 colours
MIN_WIDTH, MAX_WIDTH, MAX_GIF_WIDTH = 400, 1000, 600  # pixels
GIF_COLORS = 64
MAX_GIF_BYTES = 900_000  # of a larger animation, every second (third, ...) frame is kept
WIDGET = "application/vnd.jupyter.widget-view+json"  # a static picture follows
# Patterns of text that differs between machines or runs, with their replacements.
MACHINE_SPECIFIC = {
    f"{ROOT}/": "",
    r"(?m)^\d\d:\d\d:\d\d ": "",
    r" \d+\.\d+ s/step, \d+ s left": "",
    r"\d{4}-\d\d-\d\d/\d\d-\d\d-\d\d(-\d+)?": "DATE/TIME",
    r", of the \d+ GB of the machine": "",
    r"\x1b\[[0-9;]*m": "",
}


def render(executed: Path) -> None:
    """Write one executed notebook as Markdown."""
    pictures = OUT / f"{executed.stem}_files"
    shutil.rmtree(pictures, ignore_errors=True)
    pictures.mkdir(parents=True)
    notebook = nbformat.read(executed, as_version=4)
    # The cell that papermill injects sets paths of this run; readers see the original parameters.
    notebook.cells = [
        cell
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = merge_streams([o for o in cell.outputs if WIDGET not in o.get("data", {})])
        for output in cell.outputs:
            if "data" in output:
                output.data = markdown_output(output.data, pictures)
            else:
                output.text = remove_machine_specific(output.text)
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    source = f"../../notebooks/{executed.name}"
    head = f"*[`{executed.name}`]({source}) on the sample data, with its outputs.*\n\n"
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.M))
    (OUT / f"{executed.stem}.md").write_text(head + text.strip() + "\n", encoding="utf-8")


def merge_streams(outputs: list) -> list:
    """Merge consecutive printed outputs into one."""
    result: list = []
    for output in outputs:
        if result and output.output_type == "stream" == result[-1].output_type:
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def markdown_output(data: dict, pictures: Path) -> dict:
    """Return an output as Markdown, and write its picture to a file in ``pictures``."""
    gif = re.search(r"data:image/gif;base64,([^\"]+)", data.get("text/html", ""))
    number = len(list(pictures.iterdir())) + 1
    if gif:
        path = pictures / f"{number}.gif"
        save_gif(base64.b64decode(gif[1]), path)
    elif "image/png" in data:
        path = pictures / f"{number}.png"
        content = base64.b64decode(data["image/png"])
        image = Image.open(io.BytesIO(content)).convert("RGB")
        if image.width < MIN_WIDTH:
            scale = -(-MIN_WIDTH // image.width)
            image = image.resize((scale * image.width, scale * image.height), Image.Resampling.BOX)
        image.thumbnail((MAX_WIDTH, 10 * MAX_WIDTH))
        if len(content) > MAX_PNG_BYTES:
            image = image.quantize(256, dither=Image.Dither.NONE)
        image.save(path, optimize=True)
    else:
        texts = {
            key: remove_machine_specific(text)
            for key, text in data.items()
            if isinstance(text, str)
        }
        if "text/markdown" in texts:  # a table; Markdown is easier to read than HTML
            texts.pop("text/html", None)
        return texts
    return {"text/markdown": f"![]({pictures.name}/{path.name})"}


def save_gif(content: bytes, path: Path) -> None:
    """Write the animation, scaled down to the limits above."""
    with Image.open(io.BytesIO(content)) as gif:
        scale = min(1, MAX_GIF_WIDTH / gif.width)
        size = round(gif.width * scale), round(gif.height * scale)
        gif_frames = []
        for n in range(gif.n_frames):
            gif.seek(n)
            image = gif.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            gif_frames.append(image.quantize(GIF_COLORS, dither=Image.Dither.NONE))
        duration = gif.info["duration"]
    for step in range(1, len(gif_frames) + 1):
        first, *others = gif_frames[::step]
        first.save(path, save_all=True, append_images=others, duration=duration * step, loop=0)
        if path.stat().st_size <= MAX_GIF_BYTES:
            return


def remove_machine_specific(text: str) -> str:
    """Remove or replace every match of :data:`MACHINE_SPECIFIC`."""
    for pattern, replacement in MACHINE_SPECIFIC.items():
        text = re.sub(pattern, replacement, text)
    return text


if __name__ == "__main__":
    result = run_stages(
        ROOT / "configs" / "quickstart.yaml", {"runs": [str(RUN_DIR)]}, STAGES, RUN_DIR
    )
    for notebook in result.notebooks:
        render(notebook)
