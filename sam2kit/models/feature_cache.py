"""Cache the features of a frozen image encoder on disk, so that each frame is encoded once.

The key of an entry is a hash of the pixels that the encoder sees, in a directory named by a hash of
the encoder's weights. An entry is never stale: a changed (or mirrored) frame, image size, resize
method or encoder has a different key. Epochs, runs, processes, evaluations and widgets share the
cache.

Each file contains one frame (safetensors, memory-mapped) with a checksum. It is flushed to the disk
and then renamed, so a killed process leaves a complete file or none; a damaged file is written
again. Nothing is evicted: writing stops at the budget.

A cache is a directory that was empty when sam2kit created :data:`MARKER` in it. Any other directory
is rejected, and :func:`clear` deletes only regular files whose path matches this layout::

    sam2kit-features-2               the marker
    0123456789abcdef/encoder.json    one encoder: hash of its weights, image size and arithmetic
    0123456789abcdef/01/0123...      one frame, named by its key
    0123456789abcdef/01/.part-...    not yet renamed, or left by a killed process
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import zlib
from collections.abc import Iterator, Mapping, Sequence
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
from sam2kit.data.sources.base import VideoSource, is_new_each_epoch
from sam2kit.data.transforms import normalize
from sam2kit.models.sam2 import SAM2Model, module_path
from sam2kit.utils.device import upload
from sam2kit.utils.errors import ConfigError, DataError
from sam2kit.utils.files import TEMPORARY, atomic_write, remove_abandoned, write_text
from sam2kit.utils.readers import read_json

GB = 1e9
RESERVED_BYTES = int(2e9)
"""Writing stops when less than this is free on the disk."""
REMEASURE_DIVISOR = 8
"""A process measures the cache again after writing 1/8 of the remaining budget, so that up to eight
concurrent processes do not exceed the budget together."""
MARKER = "sam2kit-features-2"
"""The empty file that marks a directory as a feature cache; its name ends in the format version."""
_LAYOUT = (  # for each depth: patterns of directory names and of file names
    (r"[0-9a-f]{16}", re.escape(MARKER)),
    (r"[0-9a-f]{2}", rf"encoder\.json|{TEMPORARY}"),
    (r"(?!)", rf"[0-9a-f]{{40}}|{TEMPORARY}"),
)
CHECKSUM = "crc32"
"""Key of the checksum in the metadata of a file."""
# Augmentations that create no new images: both orientations of a frame can be cached.
_CACHEABLE_AUGMENTATIONS = ("reverse", "flip")


def find_folder(config: Config) -> Path:
    """Return the directory of the feature cache; it need not exist.

    It is ``features.folder`` if that is set, otherwise ``$SAM2KIT_CACHE/features``. The default of
    ``$SAM2KIT_CACHE`` is ``sam2kit`` in ``$XDG_CACHE_HOME``, or in ``~/.cache`` if that is not set.
    """
    if config.features.folder is not None:
        return Path(config.features.folder)
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(os.environ.get("SAM2KIT_CACHE") or caches / "sam2kit") / "features"


def create_cache(config: Config, exact: bool = False) -> FeatureCache | None:
    """Create the cache that ``config.features`` describes.

    Args:
        config: the section ``features`` is read.
        exact: store features without rounding, regardless of ``features.dtype``.

    Returns:
        The cache, or None if ``features.cache`` is off.

    Raises:
        ConfigError: the directory is not empty and not a feature cache.
    """
    f = config.features
    if f.cache == "off":
        return None
    folder = find_folder(config)
    check_folder(folder)
    return FeatureCache(folder, f.budget_gb, not exact and f.dtype == "bfloat16")


def obstacle(config: Config, model: SAM2Model, source: VideoSource) -> str | None:
    """Return the reason why training cannot use cached features.

    Returns:
        A clause that names the responsible configuration key, or None if training can use them.
    """
    if not model.encoder_is_frozen:
        return "model.trainable_modules (or LoRA) trains the image encoder"
    if config.model.drop_path_rate > 0:
        return "model.drop_path_rate skips layers of the encoder at random"
    if any(is_new_each_epoch(source, i) for i in range(len(source))):
        return "new videos are generated in every epoch (dataset.type)"
    if config.dataset.replay:
        return "new clips are generated in every epoch (dataset.replay)"
    if config.dataset.augment:
        for f in fields(AugmentationConfig):
            if f.name not in _CACHEABLE_AUGMENTATIONS and getattr(config.augmentation, f.name) > 0:
                return f"augmentation.{f.name} changes the pixels at random"
    return None


class FeatureCache:
    """Features of single frames in a directory that any number of processes share.

    If the budget is reached, the disk is full or the directory is not writable, the cache stops
    writing, logs one warning, and computes missing features every time. Nothing is evicted:
    training reads all frames in turn, so evicting some for others would not raise the hit rate.

    A missing frame is encoded in its own batch, so that its features do not depend on other missing
    frames, and a miss returns the tensors that are stored. Hits and misses therefore give bitwise
    equal features.

    Args:
        folder: a new or empty directory or an existing feature cache; created on first use.
        budget_gb: maximum size in gigabytes (1e9 bytes), of all encoders together.
        rounded: store features in bfloat16.

    Attributes:
        read, encoded: numbers of frames that were read from the cache and that were computed.
        stored: number of computed frames that were written to the cache.
        damaged: number of files whose checksum was wrong; their frames were computed again.
    """

    def __init__(self, folder: str | Path, budget_gb: float = 50.0, rounded: bool = False) -> None:
        self.folder, self.budget, self.rounded = Path(folder), int(budget_gb * GB), rounded
        self.read = self.encoded = self.stored = self.damaged = 0
        self._encoder_folders: dict[tuple, Path] = {}
        self._digests: WeakKeyDictionary[SAM2Model, tuple] = WeakKeyDictionary()
        self._writing = True
        self._bytes_until_measuring = 0

    def __deepcopy__(self, memo: dict) -> FeatureCache:
        # Weight averaging copies the training module, and both copies should share this cache.
        return self

    def __reduce__(self) -> tuple:
        return type(self), (self.folder, self.budget / GB, self.rounded)

    @torch.no_grad()
    def encode(
        self, model: SAM2Model, images: Tensor, keys: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """Return the output of upstream's ``forward_image``, from the cache where possible.

        Args:
            model: its encoder computes missing features.
            images: ``[N,3,S,S]`` uint8, on the model's device.
            keys: their :func:`~sam2kit.data.clip.frame_keys`. None (default): computed here.

        Returns:
            Upstream's dictionary (``vision_features``, ``vision_pos_enc``, ``backbone_fpn``) with N
            images.

        Raises:
            ConfigError: the directory is not empty and not a feature cache.
        """
        folder = self._encoder_folder(model, images)
        names = frame_keys(images) if keys is None else list(keys)
        rows: dict[str, list[Tensor]] = {}
        for name, image in zip(names, images, strict=True):
            if name in rows:
                continue
            file = folder / name[:2] / name
            levels = self._load(file)
            if levels is None:
                computed = model.forward_image(normalize(image[None]))["backbone_fpn"]
                levels = [x.bfloat16() if self.rounded else x for x in computed]
                self._save(file, levels)
                self.encoded += 1
            else:
                self.read += 1
            rows[name] = levels
        return self._combine(model, images, [rows[name] for name in names])

    def _combine(
        self, model: SAM2Model, images: Tensor, frames: Sequence[list[Tensor]]
    ) -> dict[str, Any]:
        """Combine the feature levels of single frames into upstream's dictionary."""
        combined = [
            torch.cat([upload(x, images.device) for x in level])
            for level in zip(*frames, strict=True)
        ]
        if self.rounded and not torch.is_autocast_enabled(images.device.type):
            combined = [x.float() for x in combined]
        # Positions depend on the shape alone, so they are computed instead of stored.
        position = model.image_encoder.neck.position_encoding
        return {
            "vision_features": combined[-1],
            "vision_pos_enc": [position(x).to(x.dtype) for x in combined],
            "backbone_fpn": combined,
        }

    def report(self) -> str:
        """Describe how many frames were read and how many were computed, for a log line."""
        return f"features of {self.read} frames read, {self.encoded} computed ({self.folder})"

    def _encoder_folder(self, model: SAM2Model, images: Tensor) -> Path:
        """Return the directory for this encoder and the current device and precision."""
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
        if encoder not in self._encoder_folders:
            self._encoder_folders[encoder] = self._open_folder(encoder)
        return self._encoder_folders[encoder]

    def _digest(self, model: SAM2Model) -> str:
        """Hash the encoder's weights; the hash is cached until a weight changes."""
        if model not in self._digests:
            names = [n for n, _ in (*model.named_parameters(), *model.named_buffers())]
            names = sorted(n for n in names if module_path(n)[0] == "image_encoder")
            # Remember modules and names, not tensors: a parameter can be replaced by a new tensor.
            parts = (name.rpartition(".") for name in names)
            self._digests[model] = [(model.get_submodule(m), n) for m, _, n in parts], (), ""
        owners, known_versions, digest = self._digests[model]
        tensors = [(name, getattr(module, name)) for module, name in owners]
        # torch increments a tensor's _version on every in-place write; a new tensor has a new
        # address. Comparing both is much cheaper than hashing the weights for every batch.
        versions = tuple((tensor.data_ptr(), tensor._version) for _, tensor in tensors)
        if versions != known_versions:
            hashed = hashlib.blake2b(digest_size=20)
            for name, tensor in tensors:
                hashed.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                hashed.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            digest = hashed.hexdigest()
            self._digests[model] = owners, versions, digest
        return digest

    def _open_folder(self, encoder: tuple) -> Path:
        """Create the directory of an encoder if necessary, and delete abandoned temporary files."""
        text = json.dumps({"encoder": encoder})
        folder = self.folder / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        try:
            check_folder(self.folder)
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / MARKER).touch()
            folder.mkdir(exist_ok=True)
            write_text(folder / "encoder.json", text)
            for path, kind in _entries(folder, depth=1):
                if kind == "folder":
                    remove_abandoned(path)
            remove_abandoned(folder)
        except OSError as error:
            self._stop_writing(f"{folder} cannot be written to", str(error.strerror))
        return folder

    def _save(self, file: Path, levels: list[Tensor]) -> None:
        """Write the features of a frame, unless writing has stopped or there is no room."""
        size = sum(x.numel() * x.element_size() for x in levels)
        try:
            if not self._has_room(size):
                return
            # Another process may have cleared the cache since _open_folder.
            file.parent.parent.mkdir(exist_ok=True)
            file.parent.mkdir(exist_ok=True)
            with atomic_write(file, fsync=True) as part:
                tensors = {str(k): x.cpu().contiguous() for k, x in enumerate(levels)}
                save_file(tensors, part, {CHECKSUM: _checksum(tensors)})
            self._bytes_until_measuring -= size
            self.stored += 1
        except (OSError, SafetensorError) as error:  # safetensors wraps OSError in its own type
            self._stop_writing(f"{file.parent} cannot be written to", str(error))

    def _load(self, file: Path) -> list[Tensor] | None:
        """Read the feature levels of a frame; None if the file is missing, truncated or damaged."""
        try:
            with safe_open(file, "pt") as content:
                tensors = {name: content.get_tensor(name) for name in content.keys()}
                checksum = (content.metadata() or {}).get(CHECKSUM)
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError):
            checksum, tensors = None, {}
        if tensors and checksum == _checksum(tensors):
            return [tensors[name] for name in sorted(tensors)]
        # Files of earlier versions have no checksum, and are written again.
        if checksum is not None or not tensors:
            self.damaged += 1
            if self.damaged == 1:
                logger.warning("{} is damaged; its features are computed again", file)
        return None

    def _has_room(self, size: int) -> bool:
        """Check whether ``size`` more bytes may be written; the first failure logs a warning."""
        # Measuring reads every directory entry, so it is done rarely.
        if not self._writing or self._bytes_until_measuring >= size:
            return self._writing
        room = self.budget - sum(folder_sizes(self.folder).values())
        free = shutil.disk_usage(self.folder).free
        if room < size:
            self._stop_writing("Cache budget reached", f"features.budget_gb={self.budget / GB:g}")
        elif free - RESERVED_BYTES < size:
            self._stop_writing("The disk is nearly full", f"{free / GB:.1f} GB left")
        else:
            self._bytes_until_measuring = max(
                size, min(room, free - RESERVED_BYTES) // REMEASURE_DIVISOR
            )
        return self._writing

    def _stop_writing(self, reason: str, details: str) -> None:
        """Stop writing and log why; reading continues."""
        self._writing = False
        consequence = "features of the remaining frames are computed every time"
        logger.warning("{}; {} ({}, {})", reason, consequence, details, self.folder)


def check_folder(folder: Path, with_others: bool = False) -> None:
    """Reject a directory that is neither missing, empty nor a feature cache of this version.

    Args:
        folder: the directory.
        with_others: accept other files in a feature cache. Hidden files, which file managers create
            anywhere, are always accepted in a cache.

    Raises:
        ConfigError: the directory contains something else.
    """
    # List the entries before looking for the marker: another process may be creating the cache, and
    # in the opposite order its entries could be seen without the marker.
    entries = [(path.name, kind) for path, kind in _entries(folder) if path.parent == folder]
    marked = os.path.isfile(folder / MARKER)
    others = [n for n, kind in entries if not marked or (kind == "foreign" and n[0] != ".")]
    if others and not (marked and with_others):
        reason = (
            "in addition to a feature cache"
            if marked
            else f"but no {MARKER}, so it is not a feature cache"
        )
        raise ConfigError(
            f"{folder} contains {', '.join(others[:3])} {reason}",
            key="features.folder",
            value=str(folder),
            hint="set features.folder to a new or empty directory, or delete this one if it is the "
            "cache of an older version",
        )


def folder_sizes(folder: str | Path) -> dict[Path, int]:
    """Measure the size of each encoder's directory in a cache.

    Returns:
        Maps directories to bytes; empty if there is no cache.
    """
    sizes: dict[Path, int] = {}
    for path, kind in _entries(Path(folder)):
        if kind == "file" and path.name != MARKER:
            encoder_folder = Path(folder) / path.relative_to(folder).parts[0]
            with suppress(FileNotFoundError):  # renamed by another process
                sizes[encoder_folder] = sizes.get(encoder_folder, 0) + path.lstat().st_size
    return sizes


def describe(folder: str | Path) -> str:
    """Describe a cache in one line per encoder: directory, size, number of frames, properties.

    Raises:
        ConfigError: the directory is not a feature cache.
    """
    check_folder(Path(folder), with_others=True)
    lines = []
    for path, size in folder_sizes(folder).items():
        count = sum(kind == "file" and p.parent != path for p, kind in _entries(path, depth=1))
        try:
            content = read_json(path / "encoder.json")
            digest, side, dtype, device, _, stored_dtype = content["encoder"]
            encoder = f"{side} px, {dtype} on {device}, stored {stored_dtype}, weights {digest[:8]}"
        except (OSError, ValueError, KeyError, TypeError, DataError):
            encoder = "unknown encoder (encoder.json is missing or damaged)"
        lines.append(f"{path}  {size / GB:.3f} GB  {count} frames  {encoder}")
    return "\n".join(lines) or f"{folder} contains no features"


def clear(folder: str | Path) -> tuple[int, list[Path]]:
    """Delete the features of all encoders, but not the marker, because others may be writing.

    Only paths that match the layout in the module's docstring are deleted. Symbolic links
    are neither followed nor deleted.

    Returns:
        The number of deleted files, and the paths that remain because sam2kit did not create them.

    Raises:
        ConfigError: the directory is not a feature cache; nothing was deleted.
    """
    check_folder(Path(folder), with_others=True)
    deleted, foreign = 0, []
    for path, kind in _entries(Path(folder)):
        if kind == "foreign":
            foreign.append(path)
        elif path.name != MARKER:
            with suppress(OSError):  # the directory is not empty, or cannot be deleted
                path.rmdir() if kind == "folder" else path.unlink()
                deleted += kind == "file"
    return deleted, foreign


def _entries(folder: Path, depth: int = 0) -> Iterator[tuple[Path, str]]:
    """Walk a cache recursively, and yield each directory after its content.

    Args:
        folder: a directory of the cache.
        depth: depth of ``folder`` in the layout: 0 for the cache, 1 for an encoder's directory.

    Yields:
        Each path with its kind: ``file`` or ``folder`` if it matches the layout, otherwise
        ``foreign``. Foreign directories are not entered. Symbolic links are foreign.
    """
    try:
        scanned = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return  # never created, cleared by another process, or owned by another user
    folders, files = _LAYOUT[depth]
    for entry in scanned:
        path, kind = Path(entry.path), "foreign"
        if entry.is_dir(follow_symlinks=False) and re.fullmatch(folders, entry.name):
            kind = "folder"
            yield from _entries(path, depth + 1)
        elif entry.is_file(follow_symlinks=False) and re.fullmatch(files, entry.name):
            kind = "file"
        yield path, kind


def _checksum(tensors: Mapping[str, Tensor]) -> str:
    """Return a checksum of tensors on the CPU."""
    digest = 0
    for name in sorted(tensors):
        digest = zlib.crc32(tensors[name].view(-1).view(torch.uint8).numpy().data, digest)
    return f"{digest:08x}"
