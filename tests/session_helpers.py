"""Helpers of the tests of annotation sessions."""

from __future__ import annotations

import io
from copy import copy
from pathlib import Path

import numpy as np
from PIL import Image

from sam2kit.data.sources.base import VideoSource
from sam2kit.data.sources.frame_folders import VideoDataset
from sam2kit.prompts.geometry import mask_center

SAMPLES = Path(__file__).parent / "blobs"
LENGTH = 6


class Clips(VideoSource):
    """The first frames of the sample clips, optionally without their masks."""

    def __init__(self, has_masks: bool = True, count: int = LENGTH) -> None:
        self.source, self.count, self.has_masks = VideoDataset(SAMPLES), count, has_masks
        self.names = self.source.names

    def num_frames(self, i: int) -> int:
        return self.count

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return self.source.read_frame(i, t)

    def read_masks(self, i: int, t: int):
        return self.source.read_masks(i, t) if self.has_masks else None


def truth_center(session, o=1, t=0):
    return mask_center(Clips().read_masks(session.i, t)[o])


def png(labels: np.ndarray) -> bytes:
    file = io.BytesIO()
    Image.fromarray(labels).save(file, "PNG")
    return file.getvalue()


def content(session):
    """Return all that must come back, in comparable form."""
    masks = {
        (o, t): session.mask(o, t).tobytes()
        for o in session.objects
        for t in range(session.num_frames)
        if session.mask(o, t) is not None
    }
    kinds = {key: (session.provenance(*key), session.mask_model(*key)) for key in masks}
    attributes = ("objects", "names", "colors", "hidden", "accepted")
    lists = [copy(getattr(session, name)) for name in attributes]
    prompts = {k: (p.points, p.labels, p.box) for k, p in session.prompts.items()}
    tracks = dict(session.tracked), session.j, session.timeline(), session.stale
    return masks, kinds, *lists, prompts, *tracks
