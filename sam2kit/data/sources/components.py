"""Masks of whole categories taken apart: connected components that keep their identity."""

from __future__ import annotations

from collections import OrderedDict

import cv2
import numpy as np

from sam2kit.data.sources.base import ObjectId, SelectedVideos, VideoSource
from sam2kit.utils.errors import DataError

LEAST_OVERLAP = 0.1  # below, a component is not what an object has become
_VIDEOS_KEPT = 256


class ConnectedObjects(SelectedVideos):
    """Another source, each of whose masks is split into its connected components.

    *Components* touch at sides or corners (8 neighbours). *Identity:* a video's annotated frames
    are gone through in order. Each component is compared with the latest mask of every object that
    its category has had so far, however long ago that was; pairs are made by falling IoU, until it
    is below ``LEAST_OVERLAP``. A component left over is a new object. So an object that is gone for
    a while and comes back elsewhere is a new one, and of two that merge the larger goes on.

    *Names* are ``CATEGORY-N`` with N from 1 on, by frame and, on one frame, by the first pixel from
    the top left. They depend on the video alone, not on what was read before: a video's frames are
    gone through once, when the first of its masks is asked for, and the names alone are kept.

    Raises:
        DataError: on reading, annotated frames of one video that differ in size.
    """

    def __init__(self, source: VideoSource) -> None:
        super().__init__(source, list(range(len(source))))
        # Of each video, of each annotated frame: the numbers of its components by category.
        self._numbers: OrderedDict[int, list[dict[ObjectId, list[int]]]] = OrderedDict()

    def index_in_epoch(self, i: int, epoch: int) -> int:
        return self.source.index_in_epoch(i, epoch)

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        masks = super().read_masks(i, t)
        if not masks:
            return masks
        if i not in self._numbers:
            self._numbers[i] = self._follow(i)
            if len(self._numbers) > _VIDEOS_KEPT:
                self._numbers.popitem(last=False)
        numbers = self._numbers[i][t]
        return {
            f"{category}-{number}": labels == k
            for category, mask in masks.items()
            for labels in (components(mask)[0],)
            for k, number in enumerate(numbers[category], 1)
        }

    def _follow(self, i: int) -> list[dict[ObjectId, list[int]]]:
        """The numbers of the components of every frame of a video."""
        seen: dict[ObjectId, list[np.ndarray]] = {}
        found: list[dict[ObjectId, list[int]]] = []
        size = None
        for t in range(self.num_frames(i)):
            found.append({})
            for category, mask in (super().read_masks(i, t) or {}).items():
                if mask.shape != (size := size or mask.shape):
                    raise DataError(
                        f"video {self.name(i)!r}: frame {self.frame_name(i, t)!r} is {mask.shape}, "
                        f"those before are {size}; make all frames of a video the same size"
                    )
                found[t][category] = _match(*components(mask), seen.setdefault(category, []))
        return found


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """``[H,W]`` int32 and N: the connected components as 1 to N, by their first pixels in rows."""
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    first = np.full(count, labels.size)
    inside = np.flatnonzero(mask)
    first[labels.ravel()[inside][::-1]] = inside[::-1]  # what is written last stays
    rank = np.zeros(count, np.int32)
    rank[1 + np.argsort(first[1:])] = np.arange(1, count)
    return rank[labels], count - 1


def _match(labels: np.ndarray, count: int, seen: list[np.ndarray]) -> list[int]:
    """The number of each component, 1 for the first of ``seen``, which is brought up to date.

    Args:
        labels: as :func:`components` gives them.
        seen: the pixels of each object's latest mask, as places in the flat picture.
    """
    flat = labels.ravel()
    areas = np.bincount(flat, minlength=count + 1)[1:]
    shared = np.array(
        [np.bincount(flat[pixels], minlength=count + 1)[1:] for pixels in seen]
    ).reshape(len(seen), count)
    lengths = np.array([len(pixels) for pixels in seen], int).reshape(-1, 1)
    iou = shared / (areas + lengths - shared)
    numbers = [0] * count
    for place in np.argsort(-iou, axis=None, kind="stable").tolist():
        number, component = divmod(place, count)
        if iou[number, component] < LEAST_OVERLAP:
            break
        if not numbers[component] and number + 1 not in numbers:
            numbers[component] = number + 1
    for component in range(count):
        if not numbers[component]:
            seen.append(np.empty(0, int))
            numbers[component] = len(seen)
        seen[numbers[component] - 1] = np.flatnonzero(flat == component + 1)
    return numbers
