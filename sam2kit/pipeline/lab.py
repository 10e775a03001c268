"""Open the annotator in JupyterLab, for ``sam2kit annotate``."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from urllib.parse import quote

import nbformat
from nbformat import NotebookNode
from papermill.parameterize import parameterize_notebook

from sam2kit.data.detection import detect_layout
from sam2kit.models.checkpoints import find_checkpoint
from sam2kit.pipeline.runner import notebooks_dir
from sam2kit.utils.errors import ConfigError, PipelineError
from sam2kit.utils.files import atomic_write
from sam2kit.utils.paths import file_name
from sam2kit.utils.readers import damage_is, read_json
from sam2kit.utils.text import markdown_text, text_checksum

SOURCE = "02_debug_prompts.ipynb"
LOOPBACK = "127.0.0.1"
PARAMETERS = """\
data = ""  # a video file, a directory of frames, or a directory of videos to annotate
run_dir = ""  # directory for annotations and results
checkpoint = ""  # a run directory, a file, or a name such as "sam2.1_hiera_tiny"
working_dir = "."  # base directory of relative paths, also in the widget
"""
WIDGET = """\
import os

from sam2kit import Annotator

os.chdir(working_dir)
annotator = Annotator(data, checkpoint, run_dir=run_dir)
annotator
"""
NEXT = """\
## Train

*Make training set* in the widget writes the accepted frames to `training_set` in the run directory
and shows the training command. Run it in a terminal. Then compare the result with the model before
training, where `RUN` is the run directory that training prints:

```
sam2kit evaluate --model-checkpoint RUN
```

To continue with the trained model, enter `RUN` as *model* in the widget, track again, correct,
accept, and press *Make training set* again, which adds the new frames.
"""


def prepare_annotator(data: str | Path, checkpoint: str, run_dir: str | Path | None = None) -> Path:
    """Write a notebook that opens the annotator for a video or a directory of videos.

    The notebook is a copy of the widget in ``02_debug_prompts`` with its parameters set. It is
    stored in the run directory and can be reopened at any time. An existing notebook keeps the
    user's changes; only its parameters are updated.

    Args:
        data: the video or videos; see :func:`~sam2kit.data.build.open_source`.
        checkpoint: model of the annotator; it is downloaded if necessary.
        run_dir: the run directory. If None (default), a directory in ``outputs/annotate`` that
            depends only on ``data``.

    Returns:
        The path of the notebook.

    Raises:
        ConfigError: the run directory cannot be written.
        CheckpointError: the checkpoint cannot be found or downloaded.
        DataError: there is no video at ``data``.
        PipelineError: the package is installed without the notebooks.
    """
    data = Path(data).resolve()
    detect_layout(data)
    find_checkpoint(checkpoint, key="--model-checkpoint")
    if run_dir is None:
        # Keep annotations of videos with the same name in different directories apart.
        checksum = f"{text_checksum(str(data)):08x}"
        run_dir = Path("outputs", "annotate", f"{file_name(data.stem)}-{checksum}")
    run_dir = Path(run_dir).resolve()
    target = run_dir / SOURCE
    # Use an absolute path for weights, because the kernel has another working directory.
    model = str(Path(checkpoint).resolve()) if Path(checkpoint).exists() else checkpoint
    values: dict[str, Any] = {"data": str(data), "run_dir": str(run_dir), "checkpoint": model}
    values["working_dir"] = os.getcwd()
    notebook = _read_notebook(target) if target.is_file() else _notebook(data)
    # papermill adds these when it loads a notebook.
    notebook.metadata.setdefault("papermill", NotebookNode())
    for cell in notebook.cells:
        cell.metadata.setdefault("tags", [])
    notebook = parameterize_notebook(notebook, values)
    try:
        run_dir.mkdir(parents=True, exist_ok=True)
        with atomic_write(target) as temporary:
            nbformat.write(notebook, temporary)
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written ({error.strerror})",
            key="--run-dir",
            value=str(run_dir),
            hint="choose another directory",
        ) from error
    return target


def _read_notebook(path: Path) -> NotebookNode:
    """Read a notebook that an earlier call wrote.

    Raises:
        PipelineError: the file is damaged.
    """
    hint = "delete the file to create it again; annotations are stored in other files"
    content = read_json(path, hint=hint, error=PipelineError)
    with damage_is(PipelineError, path, hint):
        try:
            return nbformat.reads(json.dumps(content), 4)
        except (nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
            raise ValueError(str(error)) from None


def _notebook(data: Path) -> NotebookNode:
    """Create the notebook from the parts of ``02_debug_prompts`` that do not need masks."""
    source = nbformat.read(notebooks_dir() / SOURCE, 4)
    help_cells = [
        cell
        for cell in source.cells
        if cell.cell_type == "markdown" and cell.source.startswith("## Prompt by hand")
    ]
    title = f"# Annotate {markdown_text(data.name)}\n\nRun all cells (*Run > Run All Cells*)."
    parameters = nbformat.v4.new_code_cell(PARAMETERS, metadata={"tags": ["parameters"]})
    cells = [nbformat.v4.new_markdown_cell(title), parameters]
    cells.append(nbformat.v4.new_code_cell(WIDGET))
    cells += help_cells
    cells.append(nbformat.v4.new_markdown_cell(NEXT))
    return nbformat.v4.new_notebook(cells=cells, metadata=source.metadata)


def lab_command(notebook: Path, host: str = LOOPBACK, port: int | None = None) -> list[str]:
    """Return the command that opens a notebook in JupyterLab.

    JupyterLab shows the working directory, or the notebook's directory if the notebook is not in
    the working directory.

    Args:
        notebook: an existing notebook.
        host: the address to listen on. The default accepts connections from this machine only.
        port: the port. If None (default), 8888 or the next free port.
    """
    notebook = notebook.resolve()
    root = Path.cwd() if notebook.is_relative_to(Path.cwd()) else notebook.parent
    url = quote(notebook.relative_to(root).as_posix())
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}"]
    command += [f"--ServerApp.ip={host}", f"--LabApp.default_url=/lab/tree/{url}"]
    if port is not None:
        command.append(f"--ServerApp.port={port}")
    # Without this flag Jupyter does not run as root, often the only user in a container.
    if os.geteuid() == 0:
        command.append("--allow-root")
    return command
