"""The frozen image encoder's features, computed once a frame and kept on disk.

A frame's features are found by the very pixels that the encoder would see, in a folder for the
encoder's very weights. So they cannot be stale: another frame, size, way of resizing or encoder has
another name. The same frame is found again by whoever asks: another epoch, run, sweep, process, a
validation, an evaluation, a widget; a mirrored frame is a frame of its own.

One file holds one frame (safetensors, memory-mapped), written beside and renamed, so that a process
that is killed leaves the whole file or none.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch
from loguru import logger
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from sam2kit.clip import frame_keys
from sam2kit.config import Config
from sam2kit.data.source import VideoSource
from sam2kit.data_config import AugmentationConfig
from sam2kit.model import SAM2Model, module_path
from sam2kit.transforms import normalize

GB = 1e9
FREE_BYTES = int(2e9)
"""The cache leaves so much of the disk to others."""
SHARE_BETWEEN_LOOKS = 8
"""A process looks at the folder's size again after writing this part of what the budget has left,
so that as many processes do not exceed it together."""
_FORM = 1  # of the files; a new form gets new folders
_UNCHANGED = ("reverse", "flip")  # what augmentation does without making new pixels


def find_folder(config: Config) -> Path:
    """``features.folder``, or ``features`` in ``$SAM2KIT_CACHE``, by default ``~/.cache/sam2kit``.

    ``$XDG_CACHE_HOME`` stands for ``~/.cache`` where it is set.
    """
    if config.features.folder is not None:
        return Path(config.features.folder)
    if own := os.environ.get("SAM2KIT_CACHE"):
        return Path(own) / "features"
    return (
        Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "sam2kit" / "features"
    )


def create_cache(config: Config, exact: bool = False) -> FeatureCache | None:
    """The cache that ``config.features`` describes; None where it is off.

    Args:
        exact: keep features as they are computed, whatever ``features.dtype`` says.
    """
    f = config.features
    if f.cache == "off":
        return None
    return FeatureCache(find_folder(config), f.budget_gb, not exact and f.dtype == "bfloat16")


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

    When ``budget_gb`` is reached, folders of encoders that no process has open are deleted, the one
    that was used longest ago first; then nothing more is written, and what is missing is computed
    each time: a training reads its frames in turns, so that deleting some of them for others would
    help nobody. The same where the disk is full or the folder cannot be written to. Either is said
    once.

    A missing frame is encoded by itself, so that its features do not depend on which others were
    missing too, and what is used is what is kept: hit and miss give the same bits.

    Args:
        folder: made when it is first needed.
        budget_gb: gigabytes (1e9 bytes), of all encoders together.
        rounded: keep features in bfloat16.

    Attributes:
        read, encoded: how many frames were found, and how many had to be computed, so far.
    """

    def __init__(self, folder: str | Path, budget_gb: float = 50.0, rounded: bool = False) -> None:
        self.folder, self.budget, self.rounded = Path(folder), int(budget_gb * GB), rounded
        self.read = self.encoded = 0
        self._open: dict[tuple, Path] = {}
        self._locks: list[int] = []  # held as long as this process lives
        self._known: WeakKeyDictionary[SAM2Model, tuple[tuple, str]] = WeakKeyDictionary()
        self._writing = True
        self._left = 0  # bytes to write before the next look at the folder

    def __deepcopy__(self, memo: dict) -> FeatureCache:
        return self  # averaged weights copy the module that holds it

    def __getstate__(self) -> tuple:
        return self.folder, self.budget / GB, self.rounded

    def __setstate__(self, state: tuple) -> None:
        self.__init__(*state)  # type: ignore[misc]

    @torch.no_grad()
    def encode(
        self, model: SAM2Model, images: Tensor, keys: Sequence[str] | None = None
    ) -> dict[str, Any]:
        """What upstream's ``forward_image`` gives, read where it is there.

        Args:
            images: ``[N,3,S,S]`` uint8, on the model's device.
            keys: their :func:`frame_keys`, if they are known.
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
        mixed = torch.is_autocast_enabled(images.device.type)
        arithmetic = (
            str(torch.get_autocast_dtype(images.device.type)) if mixed else "float32",
            images.device.type,
            torch.get_float32_matmul_precision(),
            "bfloat16" if self.rounded else "exact",
        )
        encoder = (self._digest(model), model.image_size, *arithmetic)
        if encoder not in self._open:
            self._open[encoder] = self._enter(encoder)
        return self._open[encoder]

    def _digest(self, model: SAM2Model) -> str:
        """A hash of the encoder's weights, made anew when one of them was written to."""
        tensors = sorted(_encoder_tensors(model))
        state = tuple((n, t.data_ptr(), t._version) for n, t in tensors)
        if model not in self._known or self._known[model][0] != state:
            digest = hashlib.blake2b(digest_size=20)
            for name, tensor in tensors:
                digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
                digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy())
            self._known[model] = state, digest.hexdigest()
        return self._known[model][1]

    def _enter(self, encoder: tuple) -> Path:
        """Open an encoder's folder: from now on nobody deletes it."""
        text = json.dumps({"form": _FORM, "encoder": encoder})
        place = self.folder / hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        try:
            while True:
                place.mkdir(parents=True, exist_ok=True)
                lock = os.open(place / "lock", os.O_RDWR | os.O_CREAT, 0o666)
                fcntl.flock(lock, fcntl.LOCK_SH)
                if _is_file(place / "lock", lock):
                    break
                os.close(lock)  # deleted while this process waited
            self._locks.append(lock)
            os.utime(place / "lock")
            (place / "encoder.json").write_text(text, encoding="utf-8")
            for left in place.glob("*/.*"):  # by a process that was killed
                if time.time() - left.stat().st_mtime > 3600:
                    left.unlink(missing_ok=True)
        except OSError as error:
            self._stop(f"{place} cannot be written to ({error.strerror})")
        return place

    def _keep(self, file: Path, levels: list[Tensor]) -> None:
        if not self._writing:
            return
        size = sum(x.numel() * x.element_size() for x in levels)
        if self._left < size and not self._make_room(size):
            return
        unfinished = ""
        try:
            file.parent.mkdir(exist_ok=True)
            handle, unfinished = tempfile.mkstemp(prefix=".", dir=file.parent)
            os.close(handle)
            save_file({str(k): x.cpu().contiguous() for k, x in enumerate(levels)}, unfinished)
            os.replace(unfinished, file)
            self._left -= size
        except (
            OSError,
            SafetensorError,
        ) as error:  # the latter is how safetensors tells the former
            if unfinished:
                Path(unfinished).unlink(missing_ok=True)
            self._stop(f"{file.parent} cannot be written to ({error})")

    def _make_room(self, size: int) -> bool:
        """Whether so many bytes fit, after deleting what nobody uses."""
        sizes = folder_sizes(self.folder)
        for place in sorted(sizes, key=lambda p: (p / "lock").stat().st_mtime):
            if self._room(sizes) >= size:
                break
            if place not in self._open.values() and _delete(place):
                logger.info("{} deleted: the features of an encoder that nobody uses", place)
                del sizes[place]
        room = self._room(sizes)
        if room < size:
            self._stop(
                f"{self.folder} holds {sum(sizes.values()) / GB:.1f} GB of "
                f"{self.budget / GB:g} (features.budget_gb), and the disk has "
                f"{shutil.disk_usage(self.folder).free / GB:.1f} GB left"
            )
            return False
        self._left = max(size, room // SHARE_BETWEEN_LOOKS)
        return True

    def _room(self, sizes: dict[Path, int]) -> int:
        free = shutil.disk_usage(self.folder).free - FREE_BYTES
        return min(self.budget - sum(sizes.values()), free)

    def _stop(self, why: str) -> None:
        self._writing = False
        logger.warning("{}; features of further frames are computed each time", why)


def folder_sizes(folder: str | Path) -> dict[Path, int]:
    """The bytes of each encoder's folder in a cache; empty where there is no cache."""
    places = (Path(folder).glob("*/lock")) if Path(folder).is_dir() else ()
    return {lock.parent: sum(_sizes(lock.parent)) for lock in places}


def describe(folder: str | Path) -> str:
    """A line for each encoder's folder: its size, and what its encoder is."""
    lines = []
    for place, size in folder_sizes(folder).items():
        digest, side, arithmetic, device, _, kept = json.loads(
            (place / "encoder.json").read_text(encoding="utf-8")
        )["encoder"]
        files = sum(1 for _ in place.glob("??/*"))
        lines.append(
            f"{place}  {size / GB:.3f} GB  {files} frames  {side} px, {arithmetic} on {device}, "
            f"kept {kept}, weights {digest[:8]}"
        )
    return "\n".join(lines) or f"{folder} holds no features"


def clear(folder: str | Path) -> tuple[int, int]:
    """Delete the features of all encoders that no process has open.

    Returns:
        how many folders were deleted, and how many are in use.
    """
    deleted = [_delete(place) for place in folder_sizes(folder)]
    return sum(deleted), len(deleted) - sum(deleted)


def _sizes(place: Path) -> Iterator[int]:
    for entry in os.scandir(place):
        if entry.is_dir(follow_symlinks=False):
            yield from _sizes(Path(entry.path))
        else:
            try:
                yield entry.stat(follow_symlinks=False).st_size
            except FileNotFoundError:  # renamed by another process
                continue


def _delete(place: Path) -> bool:
    """Delete an encoder's folder unless a process has it open."""
    try:
        lock = os.open(place / "lock", os.O_RDWR)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not _is_file(place / "lock", lock):
            return False
        away = place.with_name(f".{place.name}.{os.getpid()}")
        place.rename(away)
        shutil.rmtree(away, ignore_errors=True)
        return True
    except OSError:
        return False
    finally:
        os.close(lock)


def _is_file(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(descriptor))
    except FileNotFoundError:
        return False


def _load(file: Path) -> list[Tensor] | None:
    """The levels of a frame; None where there is no file, or not a whole one."""
    try:
        with safe_open(file, "pt") as content:
            return [content.get_tensor(name) for name in sorted(content.keys())]
    except (OSError, SafetensorError):
        return None


def _encoder_tensors(model: SAM2Model) -> Iterable[tuple[str, Tensor]]:
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if module_path(name)[0] == "image_encoder":
            yield name, tensor
