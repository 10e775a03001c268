"""Run the notebooks on the sample data and keep them with what they show: ``make docs-notebooks``.

``docs/notebooks/NAME.md`` holds text, code and outputs, ``NAME_files/`` the pictures. The run goes
to ``outputs/docs``, where a second call continues. What differs from one machine or hour to the
next, such as paths and times, is left out.
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
LARGE = 150_000  # bytes of a PNG; beyond it, small spots of colour are given up
SMALL, WIDEST, GIF_WIDTH = 400, 1000, 600  # pixels
COLORS = 64  # of a GIF
WIDGET = "application/vnd.jupyter.widget-view+json"  # a static picture follows
OF_THIS_MACHINE = {
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
    notebook.cells = [
        cell
        for cell in notebook.cells
        if "injected-parameters" not in cell.metadata.get("tags", [])
    ]
    for cell in (cell for cell in notebook.cells if cell.cell_type == "code"):
        cell.outputs = merged([o for o in cell.outputs if WIDGET not in o.get("data", {})])
        for output in cell.outputs:
            if "data" in output:
                output.data = shown(output.data, pictures)
            else:
                output.text = plain(output.text)
    text, _ = MarkdownExporter().from_notebook_node(notebook)
    source = f"../../notebooks/{executed.name}"
    head = f"*[`{executed.name}`]({source}) on the sample data, with what it shows.*\n\n"
    text = re.sub(r"\n{3,}", "\n\n", re.sub(r"[ \t]+$", "", text, flags=re.M))
    (OUT / f"{executed.stem}.md").write_text(head + text.strip() + "\n", encoding="utf-8")


def merged(outputs: list) -> list:
    """What was printed in a row as one output."""
    result: list = []
    for output in outputs:
        if result and output.output_type == "stream" == result[-1].output_type:
            result[-1].text += output.text
        else:
            result.append(output)
    return result


def shown(data: dict, pictures: Path) -> dict:
    """An output as Markdown alone, its picture written to a file."""
    gif = re.search(r"data:image/gif;base64,([^\"]+)", data.get("text/html", ""))
    number = len(list(pictures.iterdir())) + 1
    if gif:
        path = pictures / f"{number}.gif"
        save_gif(base64.b64decode(gif[1]), path)
    elif "image/png" in data:
        path = pictures / f"{number}.png"
        content = base64.b64decode(data["image/png"])
        image = Image.open(io.BytesIO(content)).convert("RGB")
        if image.width < SMALL:
            scale = -(-SMALL // image.width)
            image = image.resize((scale * image.width, scale * image.height), Image.Resampling.BOX)
        image.thumbnail((WIDEST, 10 * WIDEST))
        if len(content) > LARGE:
            image = image.quantize(256, dither=Image.Dither.NONE)
        image.save(path, optimize=True)
    else:
        texts = {key: plain(text) for key, text in data.items() if isinstance(text, str)}
        if "text/markdown" in texts:  # a table, which reads better so than as HTML
            texts.pop("text/html", None)
        return texts
    return {"text/markdown": f"![]({pictures.name}/{path.name})"}


def save_gif(content: bytes, path: Path) -> None:
    """The animation, at most :data:`GIF_WIDTH` pixels wide."""
    with Image.open(io.BytesIO(content)) as gif:
        scale = min(1, GIF_WIDTH / gif.width)
        size = round(gif.width * scale), round(gif.height * scale)
        pages = []
        for n in range(gif.n_frames):
            gif.seek(n)
            page = gif.convert("RGB").resize(size, Image.Resampling.LANCZOS)
            pages.append(page.quantize(COLORS, dither=Image.Dither.NONE))
        pages[0].save(
            path, save_all=True, append_images=pages[1:], duration=gif.info["duration"], loop=0
        )


def plain(text: str) -> str:
    for pattern, replacement in OF_THIS_MACHINE.items():
        text = re.sub(pattern, replacement, text)
    return text


if __name__ == "__main__":
    done = run_stages(
        ROOT / "configs" / "quickstart.yaml", {"runs": [str(RUN_DIR)]}, STAGES, RUN_DIR
    )
    for notebook in done.notebooks:
        render(notebook)
