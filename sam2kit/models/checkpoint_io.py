"""Files of tensors: written whole or not at all, read without running code, kept and checked."""

from __future__ import annotations

import os
import re
import shutil
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from sam2kit.utils.errors import CheckpointError
from sam2kit.utils.files import atomic_write


def write_checkpoint(content: dict[str, Any], path: Path) -> None:
    """Write a file of tensors so that whoever is killed leaves the old one or the new one.

    It is written beside, on the disk and read back before it gets its name, so a full disk or a
    machine that goes down leaves the old one too.

    Raises:
        CheckpointError: it cannot be written; what was there is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path, fsync=True) as part:
            with part.open("wb") as file:
                torch.save(content, file)
            if fault := fault_in(part):
                raise OSError(f"what was written reads otherwise: {fault}")
    except (OSError, RuntimeError) as error:  # torch's writer turns the system's errors into those
        free = shutil.disk_usage(path.parent).free / 1e9
        kept = "; the one that was there is kept" if path.exists() else ""
        raise CheckpointError(
            f"{path}: cannot be written ({' '.join(str(error).split())[:200]}; {free:.1f} GB free)"
            f"{kept}. Make room and try again; a training goes on with --resume auto"
        ) from error


def fault_in(path: Path) -> str | None:
    """What is wrong with a file of :func:`write_checkpoint`, each byte held against its checksums.

    None where it is whole.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return str(error)


def keep_copy(path: Path, step: int, most: int) -> None:
    """Keep a checkpoint as ``step-N.ckpt`` beside it, and of these the ``most`` newest.

    It takes no room while ``path`` is the same, where the file system has hard links. Those of
    steps after this one are of a run that was given up, and go.
    """
    copy = path.with_name(f"step-{step:08d}.ckpt")
    with atomic_write(copy) as part:
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)
    older = kept_copies(path.parent)
    for old in [*older[most:], *(p for p in older[:most] if p.name > copy.name)]:
        old.unlink()


def kept_copies(run_dir: Path) -> list[Path]:
    """The ``step-N.ckpt`` of a run that :func:`keep_copy` named, newest first."""
    copies = (p for p in run_dir.glob("step-*.ckpt") if re.fullmatch(r"step-\d{8,}", p.stem))
    return sorted(copies, reverse=True)


def read_checkpoint(path: Path) -> dict[str, Any]:
    """What a file of tensors holds, read without ever running code from it.

    Raises:
        CheckpointError: missing, truncated, or something else than plain tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            return {"model": {k: v.float() for k, v in load_file(path).items()}}
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # truncated zips, pickles of code and foreign formats all differ
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read safely as a checkpoint ({reason}). The file is truncated, no "
            "checkpoint, or holds code; fetch it anew or have it saved as plain tensors"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a dictionary")
    return content
