"""The frozen image encoder's features, computed once per frame and kept on disk.

A frame's features are found by the very pixels that the encoder would see, in a folder for the
encoder's very weights. So they cannot be stale: another frame (a mirrored one too), size, way of
resizing or encoder has another name. Epochs, runs, processes, evaluations and widgets share them.

One file holds one frame (safetensors, memory-mapped), written beside and renamed, so that a process
that is killed leaves the whole file or none. Nothing is evicted: at the budget, writing stops.

A cache is a folder that was empty when the kit put :data:`MARKER` into it. Any other folder is
rejected, and :func:`clear` deletes only regular files whose place and name the kit gives::

    sam2kit-features-2               the marker
    0123456789abcdef/encoder.json    one encoder: its weights' hash, image size and arithmetic
    0123456789abcdef/01/0123...      one frame, named by its key
    0123456789abcdef/01/.part-...    not yet renamed, or left by a process that was killed
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from loguru import logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sam2kit.config.schema import AugmentationConfig, Config
from sam2kit.data.clip import frame_keys
from sam2kit.data.sources.base import VideoSource
from sam2kit.data.transforms import normalize
from sam2kit.models.sam2 import SAM2Model, module_path
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.files import atomic_write

GB = 1e9
FREE_BYTES = int(2e9)
"""The cache leaves so much of the disk to others."""
SHARE_BETWEEN_LOOKS = 8
"""A process measures the folder again after writing this part of what the budget has left, so that
as many processes do not exceed it together."""
MARKER = "sam2kit-features-2"
"""The empty file that makes a folder a feature cache; it ends in the version of the format."""
_LAYOUT = (  # by depth: names of folders, names of files
    (r"[0-9a-f]{16}", re.escape(MARKER)),
    (r"[0-9a-f]{2}", r"encoder\.json"),
    (r"(?!)", r"[0-9a-f]{40}|\.part-[0-9a-f]{32}"),
)
UNFINISHED_SECONDS = 3600  # a file that is older was left by a process that was killed
_UNCHANGED = ("reverse", "flip")  # what augmentation does without making new pixels


def find_folder(config: Config) -> Path:
    """``features.folder``, or ``features`` in ``$SAM2KIT_CACHE``, by default ``~/.cache/sam2kit``.

    ``$XDG_CACHE_HOME`` stands for ``~/.cache`` where it is set.
    """
    if config.features.folder is not None:
        return Path(config.features.folder)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("SAM2KIT_CACHE") or caches / "sam2kit") / "features"


def create_cache(config: Config, exact: bool = False) -> FeatureCache | None:
    """The cache that ``config.features`` describes; None where it is off.

    Args:
        exact: keep features as they are computed, whatever ``features.dtype`` says.

    Raises:
        ConfigError: the folder holds something else than a feature cache.
    """
    f = config.features
    if f.cache == "off":
        return None
    folder = find_folder(config)
    check_folder(folder)
    return FeatureCache(folder, f.budget_gb, not exact and f.dtype == "bfloat16")


def obstacle(config: Config, model: SAM2Model, source: VideoSource) -> str | None:
    """Why training cannot read features from a cache, with the key in the way; None: it can."""
    if not model.encoder_is_frozen:
        return "model.trainable_modules (or LoRA) trains the image encoder"
    if config.model.drop_path_rate > 0:
        return "model.drop_path_rate leaves out layers of the encoder at random"
    if any(source.index_in_epoch(i, 1) >= len(source) for i in range(min(len(source), 100))):
        return "videos are generated anew in every epoch (dataset.type)"
    if config.dataset.augment:
        for f in fields(AugmentationConfig):
            if f.name not in _UNCHANGED and getattr(config.augmentation, f.name) > 0:
                return f"augmentation.{f.name} makes new pixels each time"
    return None


class FeatureCache:
    """Features of single frames in a folder that any number of processes share.

    When ``budget_gb`` is reached, the disk is full or the folder cannot be written to, nothing more
    is written, and what is missing is computed every time; a warning says so once. Nothing is
    evicted: a training reads its frames in turns, so deleting some for others would not help it.

    A missing frame is encoded by itself, so that its features do not depend on which others were
    missing too, and what is used is what is kept: hit and miss give the same bits.

    Args:
        folder: new, empty or a feature cache already; made when it is first needed.
        budget_gb: gigabytes (1e9 bytes), of all encoders together.
        rounded: keep features in bfloat16.

    Attributes:
        read, encoded: how many frames were found, and how many had to be computed, so far.
    """

    def __init__(self, folder: str | Path, budget_gb: float = 50.0, rounded: bool = False) -> None:
        self.folder, self.budget, self.rounded = Path(folder), int(budget_gb * GB), rounded
        self.read = self.encoded = 0
        self._open: dict[tuple, Path] = {}
        self._known: WeakKeyDictionary[SAM2Model, tuple] = WeakKeyDictionary()
        self._writing = True
        self._left = 0  # bytes to write before the next look at the folder

    def __deepcopy__(self, memo: dict) -> FeatureCache:
        return self  # averaged weights copy the module that holds it

    def __reduce__(self) -> tuple:
        return type(self), (self.folder, self.budget / GB, self.rounded)

    @torch.no_grad()
    def encode(
        self, model: SAM2Model, images: Tensor, keys: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """What upstream's ``forward_image`` gives, read where it is there.

        Args:
            images: ``[N,3,S,S]`` uint8, on the model's device.
            keys: their :func:`frame_keys`, if they are known.

        Raises:
            ConfigError: the folder holds something else than a feature cache.
        """
        place = self._place(model, images)
        names = frame_keys(images) if keys is None else list(keys)
        rows: dict[str, list[Tensor]] = {}
        for name, image in zip(names, images, strict=True):
            if name in rows:
                continue
            file = place / name[:2] / name
            found = _load(file)
            if found is None:
                levels = model.forward_image(normalize(image[None]))["backbone_fpn"]
                found = [x.bfloat16() if self.rounded else x for x in levels]
                self._keep(file, found)
                self.encoded += 1
            else:
                self.read += 1
            rows[name] = found
        return self._together(model, images, [rows[name] for name in names])

    def _together(
        self, model: SAM2Model, images: Tensor, frames: Sequence[list[Tensor]]
    ) -> dict[str, Any]:
        """Each frame's levels as upstream's dictionary of all of them."""
        together = [
            torch.cat([x.to(images.device, non_blocking=True) for x in level])
            for level in zip(*frames, strict=True)
        ]
        if self.rounded and not torch.is_autocast_enabled(images.device.type):
            together = [x.float() for x in together]
        position = model.image_encoder.neck.position_encoding
        return {
            "vision_features": together[-1],
            "vision_pos_enc": [position(x).to(x.dtype) for x in together],
            "backbone_fpn": together,
        }

    def report(self) -> str:
        """How many frames were read and how many encoded, for a log line."""
        return f"features of {self.read} frames read, of {self.encoded} computed ({self.folder})"

    def _place(self, model: SAM2Model, images: Tensor) -> Path:
        """The folder of this encoder, in the arithmetic of this moment."""
        device = images.device.type
        mixed = torch.is_autocast_enabled(device)
        encoder = (
            self._digest(model),
            model.image_size,
            str(torch.get_autocast_dtype(device)) if mixed else "float32",
            device,
            torch.get_float32_matmul_precision(),
            "bfloat16" if self.rounded else "exact",
        )
        if encoder not in self._open:
            self._open[encoder] = self._enter(encoder)
        return self._open[encoder]

    def _digest(self, model: SAM2Model) -> str:
        """A hash of the encoder's weights, made again where one was written to or replaced."""
        if model not in self._known:
            names = [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
            names = sorted(n for n in names if module_path(n)[0] == "image_encoder")
            # The modules, not their tensors: one tensor may take the place of another.
            parts = (name.rpartition(".") for name in names)
            self._known[model] = [(model.get_submodule(m), n) for m, _, n in parts], (), ""
        owners, state, digest = self._known[model]
        tensors = [(name, getattr(module, name)) for module, name in owners]
        now = tuple((tensor.data_ptr(), tensor._version) for _, tensor in tensors)
        if now != state:
            hashed = hashlib.blake2b(digest_size=20)
            for name, tensor in tensors:
                hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            digest = hashed.hexdigest()
            self._known[model] = owners, now, digest
        return digest

    def _enter(self, encoder: tuple) -> Path:
        """Open the folder of an encoder, made where there is none."""
        text = json.dumps({"encoder": encoder})
        place = self.folder / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        try:
            check_folder(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / MARKER).touch()
            place.mkdir(exist_ok=True)
            (place / "encoder.json").write_text(text, encoding="utf-8")
            for path, kind in _entries(place, depth=1):
                if kind == "file" and path.name.startswith(".part-"):
                    with suppress(FileNotFoundError):  # renamed by another process
                        if path.lstat().st_mtime < time.time() - UNFINISHED_SECONDS:
                            path.unlink()
        except OSError as error:
            self._stop(f"{place} cannot be written to", str(error.strerror))
        return place

    def _keep(self, file: Path, levels: list[Tensor]) -> None:
        size = sum(x.numel() * x.element_size() for x in levels)
        try:
            if not self._has_room(size):
                return
            file.parent.parent.mkdir(exist_ok=True)  # gone where another process cleared
            file.parent.mkdir(exist_ok=True)
            own_name = file.with_name(f".part-{uuid.uuid4().hex}")  # other processes write it too
            with atomic_write(file, temporary=own_name) as part:
                save_file({str(k): x.cpu().contiguous() for k, x in enumerate(levels)}, part)
            self._left -= size
        except (OSError, SafetensorError) as error:  # safetensors wraps the system's errors
            self._stop(f"{file.parent} cannot be written to", str(error))

    def _has_room(self, size: int) -> bool:
        """Whether ``size`` more bytes may be written; the first time not, with a warning."""
        if not self._writing or self._left >= size:
            return self._writing
        room = self.budget - sum(folder_sizes(self.folder).values())
        free = shutil.disk_usage(self.folder).free
        if room < size:
            self._stop("Cache budget reached", f"features.budget_gb={self.budget / GB:g}")
        elif free - FREE_BYTES < size:
            self._stop("The disk is nearly full", f"{free / GB:.1f} GB left")
        else:
            self._left = max(size, min(room, free - FREE_BYTES) // SHARE_BETWEEN_LOOKS)
        return self._writing

    def _stop(self, why: str, details: str) -> None:
        self._writing = False
        then = "features of the remaining frames are computed every time"
        logger.warning("{}; {} ({}, {})", why, then, details, self.folder)


def check_folder(folder: Path, with_others: bool = False) -> None:
    """Reject a folder that is neither a feature cache of this version nor empty nor missing.

    Args:
        with_others: accept a cache that has other content beside it. Hidden files, which systems
            leave anywhere, are always accepted there.

    Raises:
        ConfigError: names the folder and what to do.
    """
    # Read before the marker: another process may be making the cache.
    entries = [(path.name, kind) for path, kind in _entries(folder) if path.parent == folder]
    marked = os.path.isfile(folder / MARKER)
    others = [n for n, kind in entries if not marked or (kind == "foreign" and n[0] != ".")]
    if others and not (marked and with_others):
        what = "beside a feature cache" if marked else f"and no {MARKER}, so it is no feature cache"
        raise ConfigError(
            f"features.folder: {folder} holds {', '.join(others[:3])} {what}; name a new or empty "
            "folder with features.folder=DIR, or delete this one if it is an older version's cache"
        )


def folder_sizes(folder: str | Path) -> dict[Path, int]:
    """Measure the bytes of each encoder's folder in a cache; empty where there is no cache."""
    sizes: dict[Path, int] = {}
    for path, kind in _entries(Path(folder)):
        if kind == "file" and path.name != MARKER:
            place = Path(folder) / path.relative_to(folder).parts[0]
            with suppress(FileNotFoundError):  # renamed by another process
                sizes[place] = sizes.get(place, 0) + path.lstat().st_size
    return sizes


def describe(folder: str | Path) -> str:
    """A line for each encoder's folder: its size, and what its encoder is.

    Raises:
        ConfigError: the folder is not a feature cache.
    """
    check_folder(Path(folder), with_others=True)
    lines = []
    for place, size in folder_sizes(folder).items():
        count = sum(kind == "file" and p.parent != place for p, kind in _entries(place, depth=1))
        try:
            content = json.loads((place / "encoder.json").read_text(encoding="utf-8"))
            digest, side, arithmetic, device, _, kept = content["encoder"]
            encoder = f"{side} px, {arithmetic} on {device}, kept {kept}, weights {digest[:8]}"
        except (OSError, ValueError, KeyError, TypeError):
            encoder = "unknown encoder (encoder.json is missing or damaged)"
        lines.append(f"{place}  {size / GB:.3f} GB  {count} frames  {encoder}")
    return "\n".join(lines) or f"{folder} holds no features"


def clear(folder: str | Path) -> tuple[int, list[Path]]:
    """Delete the features of all encoders; the marker stays, for processes that write just now.

    Only what has its place in the layout at the top of this module is deleted. Symbolic links are
    neither followed nor deleted.

    Returns:
        how many files were deleted, and the paths that were left because they are not the kit's.

    Raises:
        ConfigError: the folder is not a feature cache; nothing was deleted.
    """
    check_folder(Path(folder), with_others=True)
    deleted, left = 0, []
    for path, kind in _entries(Path(folder)):
        if kind == "foreign":
            left.append(path)
        elif path.name != MARKER:
            with suppress(OSError):  # a folder that something is left in, or no right to delete
                path.rmdir() if kind == "folder" else path.unlink()
                deleted += kind == "file"
    return deleted, left


def _entries(folder: Path, depth: int = 0) -> Iterator[tuple[Path, str]]:
    """What a cache's folder holds at any depth, a folder after its content.

    Args:
        depth: of ``folder``: 0 for the cache, 1 for an encoder's.

    Returns:
        paths, each with ``file`` or ``folder`` where it has its place in the layout, else
        ``foreign``, which is not looked into. A symbolic link is foreign.
    """
    try:
        found = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # never made, cleared by another process, or another user's
    folders, files = _LAYOUT[depth]
    for entry in found:
        path, kind = Path(entry.path), "foreign"
        if entry.is_dir(follow_symlinks=False) and re.fullmatch(folders, entry.name):
            kind = "folder"
            yield from _entries(path, depth + 1)
        elif entry.is_file(follow_symlinks=False) and re.fullmatch(files, entry.name):
            kind = "file"
        yield path, kind


def _load(file: Path) -> list[Tensor] | None:
    """The levels of a frame; None where there is no file, or not a whole one."""
    try:
        with safe_open(file, "pt") as content:
            return [content.get_tensor(name) for name in sorted(content.keys())]
    except (OSError, SafetensorError):
        return None
