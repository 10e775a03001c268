"""Write checkpoint files atomically, read them without running code, and keep verified copies."""

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
    """Write a dictionary of tensors atomically, so that a killed process leaves no partial file.

    The data is written to a temporary file, which is flushed to the disk and read back before it is
    renamed, so the old file also survives a full disk or a machine failure.

    Raises:
        CheckpointError: the file cannot be written; an existing file at ``path`` is unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with atomic_write(path, fsync=True) as part:
            with part.open("wb") as file:
                torch.save(content, file)
            # Read the file back: some file systems report a failed write only here, or never.
            if fault := fault_in(part):
                raise OSError(f"the file differs from what was written: {fault}")
    # torch's writer raises RuntimeError where the operating system raised OSError.
    except (OSError, RuntimeError) as error:
        free = shutil.disk_usage(path.parent).free / 1e9
        previous = "; the previous file is kept" if path.exists() else ""
        raise CheckpointError(
            f"{path}: cannot be written ({' '.join(str(error).split())[:200]}; {free:.1f} GB free)"
            f"{previous}",
            hint="free some disk space and try again; --resume auto continues a training run",
        ) from error


def fault_in(path: Path) -> str | None:
    """Verify the checksums of a file that :func:`write_checkpoint` wrote.

    Returns:
        A description of the damage, or None if the file is intact.
    """
    try:
        with zipfile.ZipFile(path) as file:
            return file.testzip()
    except (zipfile.BadZipFile, OSError, EOFError) as error:
        return str(error)


def keep_copy(path: Path, step: int, max_copies: int) -> None:
    """Copy a checkpoint to ``step-N.ckpt`` beside it, and delete all but the newest copies.

    The copy is a hard link where the file system has them, so it takes no space until ``path`` is
    replaced. Copies of later steps belong to an abandoned run, and are deleted.

    Args:
        path: the checkpoint.
        step: N, the optimizer step of the checkpoint.
        max_copies: maximum number of copies to keep, 1 or more.
    """
    copy = path.with_name(f"step-{step:08d}.ckpt")
    with atomic_write(copy) as part:
        try:
            os.link(path, part)
        except OSError:
            shutil.copyfile(path, part)
    # Zero-padded names sort by step.
    copies = kept_copies(path.parent)
    for old in [*copies[max_copies:], *(p for p in copies[:max_copies] if p.name > copy.name)]:
        old.unlink()


def kept_copies(run_dir: Path) -> list[Path]:
    """List the copies that :func:`keep_copy` made in a run directory, newest first."""
    copies = (p for p in run_dir.glob("step-*.ckpt") if re.fullmatch(r"step-\d{8,}", p.stem))
    return sorted(copies, reverse=True)


def read_checkpoint(path: Path, mmap: bool = False) -> dict[str, Any]:
    """Read a file of tensors onto the CPU without running any code that it contains.

    Args:
        path: a file of :func:`write_checkpoint` or of ``torch.save``, or ``.safetensors``.
        mmap: read tensors only when they are used, which files in the format of before PyTorch 1.6
            and ``.safetensors`` do not allow. The file must not be changed until then.

    Returns:
        The dictionary in the file. For ``.safetensors``, it is ``{"model": tensors}``, in float32.

    Raises:
        CheckpointError: the file is missing, truncated, or contains more than plain tensors.
    """
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file", hint="check the path")
    try:
        if path.suffix == ".safetensors":
            return {"model": {k: v.float() for k, v in load_file(path).items()}}
        mmap = _is_archive(path) and mmap
        # A pickle can run any command when it is loaded; weights_only rejects all but tensors.
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=mmap)
    except Exception as error:  # truncated zips, pickled code and other formats raise many types
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise CheckpointError(
            f"{path}: cannot be read safely as a checkpoint ({reason}); the file is truncated, is "
            "not a checkpoint, or contains code",
            hint="download it again or save it as plain tensors",
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(
            f"{path}: contains a {type(content).__name__}, not a dictionary",
            hint="save the weights as {'model': model.state_dict()}",
        )
    return content


def _is_archive(path: Path) -> bool:
    """Return whether a file is an archive of tensors; PyTorch before 1.6 wrote none.

    Raises:
        ValueError: its tensors are compressed, so PyTorch did not write it. A compressed file of a
            few megabytes could expand to many gigabytes.
    """
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as file:
        if any(entry.compress_type != zipfile.ZIP_STORED for entry in file.infolist()):
            raise ValueError("its tensors are compressed, which PyTorch never does")
    return True
