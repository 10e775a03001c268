"""Filling the cache of the frozen encoder's features ahead of training."""

from __future__ import annotations

import torch
from loguru import logger
from torch import Tensor
from torch.utils.data import Dataset

from sam2kit.config.loading import settle_precision
from sam2kit.config.schema import Config
from sam2kit.data.build import build_datasets
from sam2kit.data.clip import frame_keys
from sam2kit.data.clip_dataset import ClipDataset
from sam2kit.data.parallel import errors_from_workers, load_items
from sam2kit.data.transforms import resize_frames
from sam2kit.models.checkpoints import create_sam2_model
from sam2kit.models.feature_cache import FeatureCache, create_cache, obstacle
from sam2kit.utils.device import pick_device
from sam2kit.utils.errors import ConfigError
from sam2kit.utils.progress import log_progress

FRAMES_AT_ONCE = 8


def fill(config: Config) -> FeatureCache:
    """Compute the features of all frames that training and its validation may read.

    Of training videos all frames, mirrored ones too where they are asked for; of validation videos
    those of the clips. Training without this computes each when it first needs it, which takes as
    long in all; ahead it is done once for several runs. What is there already is passed over, so a
    call that was interrupted is called again.

    Raises:
        ConfigError: the configuration does not allow a cache; the key in the way is named.
        DataError: a frame that cannot be read.
    """
    config = settle_precision(config)
    cache = create_cache(config)
    if cache is None:
        raise ConfigError("features.cache is off; set it to auto")
    training, validation = build_datasets(config)
    device = pick_device(config.trainer.accelerator)
    model = create_sam2_model(config).to(device).eval()
    if not model.encoder_is_frozen:
        raise ConfigError(f"nothing can be kept: {obstacle(config, model, training.source)}")
    if why := obstacle(config, model, training.source):
        logger.info("validation frames alone are kept: {}", why)
    frames = _WithKeys(_Frames(validation, None if why else training))
    parts = load_items(frames, config.dataset.num_workers)
    mixed = config.trainer.precision == "bf16-mixed"
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        for images, keys in log_progress(parts, len(frames), "encoded", "parts"):
            cache.encode(model, images.to(device), keys)
    return cache


class _Frames(Dataset):
    """Read validation clips, and then the training videos, if any, a few frames at a time.

    Mirrored frames come behind the others where training mirrors.
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
    """Frames with their keys."""

    def __init__(self, frames: _Frames) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, k: int) -> tuple[Tensor, list[str]]:
        with errors_from_workers():
            frames = self.frames[k]
            return frames, frame_keys(frames)
