"""Fill the feature cache of a frozen image encoder before training."""

from __future__ import annotations

import torch
from loguru import logger
from torch import Tensor
from torch.utils.data import Dataset

from sam2kit.config.loading import resolve_config_precision
from sam2kit.config.schema import Config
from sam2kit.data.build import resolve_datasets
from sam2kit.data.clip import frame_keys
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.parallel import errors_from_workers, load_items
from sam2kit.data.transforms import resize_frames
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.models.feature_cache import FeatureCache, create_cache, obstacle
from sam2kit.models.initial_weights import resolve_initial_weights
from sam2kit.utils.device import autocast, pick_device
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.progress import log_progress

FRAMES_AT_ONCE = 8


def fill(config: Config) -> FeatureCache:
    """Compute the features of all frames that training and validation may read.

    These are all frames of the training videos, also mirrored if the augmentation flips, and the
    frames of the validation clips. Without this call, training computes features on first use, at
    the same total cost; the call saves time for several runs that start together. Existing features
    are skipped, so an interrupted call can be repeated.

    Returns:
        The cache, which counted the frames.

    Raises:
        ConfigError: the cache is off, the configuration trains the encoder, or no features could be
            stored.
        DataError: a frame cannot be read.
    """
    config = resolve_config_precision(config)
    cache = create_cache(config)
    if cache is None:
        raise ConfigError(
            key="features.cache", value="off", expected="auto or on", hint="set features.cache=auto"
        )
    config, training, validation = resolve_datasets(config)
    config = resolve_initial_weights(config)
    device = pick_device(config.trainer.accelerator, config.trainer.devices)
    model = create_sam2_model(config).to(device).eval()
    if not model.encoder_is_frozen:
        raise ConfigError(
            "the image encoder is trained, so its features cannot be cached",
            key="model.trainable_modules",
            value=config.model.trainable_modules,
            hint="freeze the image encoder and use no LoRA on it, or skip this command",
        )
    # Validation never augments, so its frames can be cached in any case.
    if reason := obstacle(config, model, training.source):
        logger.info("Caching validation frames only: {}", reason)
    frames = _WithKeys(_Frames(validation, None if reason else training))
    parts = load_items(frames, config.dataset.num_workers)
    with autocast(device, config.trainer.precision):
        for images, keys in log_progress(parts, len(frames), "encoded", "parts"):
            cache.encode(model, images.to(device), keys)
    if cache.encoded and not cache.stored:
        raise ConfigError(
            f"none of the {cache.encoded} computed frames could be stored in {cache.folder} (see "
            "warning above)",
            key="features.folder",
            value=str(cache.folder),
            hint="set features.folder to a writable directory with enough space, or raise "
            "features.budget_gb",
        )
    return cache


class _Frames(Dataset):
    """Validation clips, followed by the frames of the training videos in parts.

    Where training flips frames, each part also contains its mirrored frames, after the others.
    """

    def __init__(self, validation: ClipDataset, training: ClipDataset | None) -> None:
        self.validation, self.clips = validation, training or validation
        self.parts: list[tuple[int, range]] = []
        for i in range(0 if training is None else len(training.source)):
            count = self.clips.source.num_frames(i)
            starts = range(0, count, FRAMES_AT_ONCE)
            self.parts += [(i, range(t, min(t + FRAMES_AT_ONCE, count))) for t in starts]
        augmentation = self.clips.augmentation
        self.mirrored = self.clips.config.augment and (
            augmentation is None or augmentation.flip > 0
        )

    def __len__(self) -> int:
        return len(self.validation) + len(self.parts)

    def __getitem__(self, k: int) -> Tensor:
        if k < len(self.validation):
            return self.validation[k].frames
        i, times = self.parts[k - len(self.validation)]
        pixels = [torch.from_numpy(self.clips.source.read_frame(i, t)) for t in times]
        side = (self.clips.config.image_size,) * 2
        frames = torch.stack([resize_frames(x.permute(2, 0, 1), side) for x in pixels])
        return torch.cat([frames, frames.flip(-1)]) if self.mirrored else frames


class _WithKeys(Dataset):
    """Frames with their keys, which are hashed in the DataLoader workers."""

    def __init__(self, frames: _Frames) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, k: int) -> tuple[Tensor, list[str]]:
        with errors_from_workers():
            frames = self.frames[k]
            return frames, frame_keys(frames)
