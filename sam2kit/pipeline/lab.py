"""Open the annotator in JupyterLab: ``sam2kit annotate``."""

from __future__ import annotations

import json
import os
import sys
import zlib
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
from sam2kit.utils.text import markdown_text

SOURCE = "02_debug_prompts.ipynb"
LOOPBACK = "127.0.0.1"
PARAMETERS = """\
data = ""  # what to annotate: a video file, a folder of frames, or a folder of videos
run_dir = ""  # directory for annotations and results
checkpoint = ""  # a run directory, a file, or a name such as "sam2.1_hiera_tiny"
working_dir = "."  # relative paths, also those typed in the widget, are relative to this directory
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

*Make training set* in the widget writes the accepted frames to the folder `training_set` of the
run directory, and shows the command to train with. Run it in a terminal. This measures the result
beside the model before training, where `RUN` is the run directory that the training prints:

```
sam2kit evaluate --model-checkpoint RUN
```

To continue with the trained model, enter `RUN` as *model* in the widget, track again, correct,
accept, and press *Make training set* again: it adds what is new.
"""


def prepare_annotator(data: str | Path, checkpoint: str, run_dir: str | Path | None = None) -> Path:
    """Write a notebook with the annotator for a video or a folder of videos.

    It is a copy of the widget of ``02_debug_prompts``, with its parameters set, in the run
    directory. The copy opens the same annotations whenever and however it is opened later. A copy
    that exists is kept, with the changes that a user has made; only its parameters are set again.

    Args:
        data: what to annotate, as for :func:`~sam2kit.data.build.open_source`.
        checkpoint: model of the annotator; it is downloaded here if necessary.
        run_dir: None (default): a directory of the video's name in ``outputs/annotate``, which is
            the same for each call.

    Returns:
        The notebook.

    Raises:
        ConfigError: the run directory cannot be written.
        CheckpointError: the checkpoint cannot be found or downloaded.
        DataError: nothing can be annotated at this path.
        PipelineError: the package is installed without the notebooks.
    """
    data = Path(data).resolve()
    detect_layout(data)
    find_checkpoint(checkpoint, key="--model-checkpoint")
    if run_dir is None:
        # Videos of the same name in different folders have their own annotations.
        checksum = f"{zlib.crc32(str(data).encode('utf-8', 'surrogateescape')):08x}"
        run_dir = Path("outputs", "annotate", f"{file_name(data.stem)}-{checksum}")
    run_dir = Path(run_dir).resolve()
    target = run_dir / SOURCE
    # A file of weights is named by an absolute path, because the kernel has another directory.
    model = str(Path(checkpoint).resolve()) if Path(checkpoint).exists() else checkpoint
    values: dict[str, Any] = {"data": str(data), "run_dir": str(run_dir), "checkpoint": model}
    values["working_dir"] = os.getcwd()
    notebook = _read_notebook(target) if target.is_file() else _notebook(data)
    # papermill adds these when it opens a notebook itself.
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
        PipelineError: it is damaged.
    """
    hint = "delete it, and it is written again; the annotations are in other files"
    content = read_json(path, hint=hint, error=PipelineError)
    with damage_is(PipelineError, path, hint):
        try:
            return nbformat.reads(json.dumps(content), 4)
        except (nbformat.ValidationError, nbformat.reader.NotJSONError) as error:
            raise ValueError(str(error)) from None


def _notebook(data: Path) -> NotebookNode:
    """Make the notebook: the parts of ``02_debug_prompts`` that also work without masks."""
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
    """Return the command that opens a notebook in JupyterLab, with its token.

    The files of the working directory are shown, or of the notebook's directory if it is not in the
    working directory.

    Args:
        notebook: an existing notebook.
        host: the address to listen on. The default accepts connections from this machine only.
        port: None (default): 8888, or the next free one.
    """
    notebook = notebook.resolve()
    root = Path.cwd() if notebook.is_relative_to(Path.cwd()) else notebook.parent
    url = quote(notebook.relative_to(root).as_posix())
    command = [sys.executable, "-m", "jupyterlab", f"--ServerApp.root_dir={root}"]
    command += [f"--ServerApp.ip={host}", f"--LabApp.default_url=/lab/tree/{url}"]
    if port is not None:
        command.append(f"--ServerApp.port={port}")
    # Without this option Jupyter stops; containers often have no other user than root.
    if os.geteuid() == 0:
        command.append("--allow-root")
    return command
