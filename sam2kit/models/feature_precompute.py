"""Filling the cache of the frozen encoder's features ahead of training."""

from __future__ import annotations

import torch
from loguru import logger
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset

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
    sets: list[Dataset] = [_ClipFrames(validation)]
    if why := obstacle(config, model, training.source):
        logger.info("validation frames alone are kept: {}", why)
    else:
        sets.append(_VideoFrames(training))
    frames = _WithKeys(ConcatDataset(sets))
    parts = load_items(frames, config.dataset.num_workers)
    mixed = config.trainer.precision == "bf16-mixed"
    with torch.autocast(device.type, torch.bfloat16, enabled=mixed):
        for images, keys in log_progress(parts, len(frames), "encoded", "parts"):
            cache.encode(model, images.to(device), keys)
    return cache


class _VideoFrames(Dataset):
    """All frames of the training videos, in parts of a few, mirrored ones behind."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips
        counts = [clips.source.num_frames(i) for i in range(len(clips.source))]
        self.parts = [
            (i, range(t, min(t + FRAMES_AT_ONCE, count)))
            for i, count in enumerate(counts)
            for t in range(0, count, FRAMES_AT_ONCE)
        ]
        own = clips.augmentation
        self.mirrored = clips.config.augment and (own is None or own.flip > 0)

    def __len__(self) -> int:
        return len(self.parts)

    def __getitem__(self, k: int) -> Tensor:
        i, times = self.parts[k]
        side = (self.clips.config.image_size,) * 2
        read = self.clips.source.read_frame
        frames = torch.stack(
            [resize_frames(torch.from_numpy(read(i, t)).permute(2, 0, 1), side) for t in times]
        )
        return torch.cat([frames, frames.flip(-1)]) if self.mirrored else frames


class _ClipFrames(Dataset):
    """The frames of the validation clips, a clip at a time."""

    def __init__(self, clips: ClipDataset) -> None:
        self.clips = clips

    def __len__(self) -> int:
        return len(self.clips)

    def __getitem__(self, k: int) -> Tensor:
        return self.clips[k].frames


class _WithKeys(Dataset):
    """Frames with their keys."""

    def __init__(self, frames: ConcatDataset) -> None:
        self.frames = frames

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, k: int) -> tuple[Tensor, list[str]]:
        with errors_from_workers():
            frames = self.frames[k]
            return frames, frame_keys(frames)
