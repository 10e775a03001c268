"""Videos and their masks: sources, the clip sampler, the loader.

The names below are imported from their modules when first used, so that importing this package
costs nothing.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_HOMES = {
    "VideoSource": "sources.base",
    "SelectedVideos": "sources.base",
    "VideoDataset": "sources.frame_folders",
    "COCODataset": "sources.coco",
    "VideoFileDataset": "sources.video_files",
    "SAVDataset": "sources.sav",
    "ImageDataset": "sources.images",
    "MixtureDataset": "sources.mixture",
    "ConnectedObjects": "sources.components",
    "SyntheticDataset": "synthetic.dataset",
    "CompositedDataset": "synthetic.dataset",
    "ClipDataset": "clip_dataset",
    "create_dataloader": "loader",
    "build_source": "build",
    "build_datasets": "build",
    "open_source": "build",
}
__all__ = sorted(_HOMES)


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
