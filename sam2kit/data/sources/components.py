"""Split category masks into connected components, and match the components over time."""

from __future__ import annotations

from collections import OrderedDict

import cv2
import numpy as np

from sam2kit.data.sources.base import ObjectId, SelectedVideos, VideoSource
from sam2kit.utils.errors import DataError

MIN_IOU = 0.1  # minimum IoU at which a component continues an earlier object
_MAX_CACHED_VIDEOS = 256


class ConnectedObjects(SelectedVideos):
    """Split each mask of another source into connected components, one object per component.

    *Components* are 8-connected: pixels that touch at a side or a corner belong together.

    *Identity.* The annotated frames of a video are processed in order. Each component is compared
    with the latest mask of every earlier object of the same category, however long ago that object
    was last visible. Pairs are matched greedily in order of decreasing IoU, down to a minimum of
    ``MIN_IOU``. An unmatched component becomes a new object. So an object that disappears and
    returns elsewhere becomes a new object, and when two objects merge, the one with the larger IoU
    continues.

    *Names* are ``CATEGORY-N`` with N from 1, assigned in order of frames and, within a frame, of
    the first pixel in raster order. They depend on the video only, not on the order of reading: the
    first access to a mask of a video processes all its frames once, and caches the names only.

    Args:
        source: a source whose object ids are categories.

    Raises:
        DataError: on reading, the annotated frames of a video differ in size.
    """

    def __init__(self, source: VideoSource) -> None:
        super().__init__(source, list(range(len(source))))
        # Per video and frame: the object numbers of the components of each category.
        self._numbers: OrderedDict[int, list[dict[ObjectId, list[int]]]] = OrderedDict()

    def index_in_epoch(self, i: int, epoch: int) -> int:
        return self.source.index_in_epoch(i, epoch)

    def read_masks(self, i: int, t: int) -> dict[ObjectId, np.ndarray] | None:
        masks = super().read_masks(i, t)
        if not masks:
            return masks
        if i not in self._numbers:
            self._numbers[i] = self._match_video(i)
            if len(self._numbers) > _MAX_CACHED_VIDEOS:
                self._numbers.popitem(last=False)
        numbers = self._numbers[i][t]
        return {
            f"{category}-{number}": labels == k
            for category, mask in masks.items()
            for labels in (components(mask)[0],)
            for k, number in enumerate(numbers[category], 1)
        }

    def _match_video(self, i: int) -> list[dict[ObjectId, list[int]]]:
        """Return the object numbers of the components of every frame of video ``i``."""
        latest: dict[ObjectId, list[np.ndarray]] = {}
        numbers: list[dict[ObjectId, list[int]]] = []
        size = None
        for t in range(self.num_frames(i)):
            numbers.append({})
            for category, mask in (super().read_masks(i, t) or {}).items():
                # Masks are compared by flat pixel index, so all frames must have one size.
                if mask.shape != (size := size or mask.shape):
                    raise DataError(
                        f"video {self.name(i)!r}: frame {self.frame_name(i, t)!r} has the size "
                        f"{list(mask.shape)}, earlier frames have {list(size)}",
                        hint="make all frames of a video the same size",
                    )
                numbers[t][category] = _match_frame(
                    *components(mask), latest.setdefault(category, [])
                )
        return numbers


def components(mask: np.ndarray) -> tuple[np.ndarray, int]:
    """Label the connected components of a mask in raster order of their first pixels.

    Args:
        mask: ``[H,W]`` bool.

    Returns:
        ``[H,W]`` int32 labels, 0 for the background and 1 to N for the components, and N.
    """
    count, labels = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    # OpenCV does not document the order of its labels: they are renumbered to be reproducible.
    first = np.full(count, labels.size)
    inside = np.flatnonzero(mask)
    first[labels.ravel()[inside][::-1]] = inside[::-1]  # the last write wins: the first pixel
    rank = np.zeros(count, np.int32)
    rank[1 + np.argsort(first[1:])] = np.arange(1, count)
    return rank[labels], count - 1


def _match_frame(labels: np.ndarray, count: int, latest: list[np.ndarray]) -> list[int]:
    """Return the object number of each component of a frame, and update ``latest`` in place.

    Args:
        labels: labels of the components, as :func:`components` returns them.
        count: number of components.
        latest: flat pixel indices of the latest mask of each object; object 1 comes first.
    """
    flat = labels.ravel()
    areas = np.bincount(flat, minlength=count + 1)[1:]
    shared = np.array(
        [np.bincount(flat[pixels], minlength=count + 1)[1:] for pixels in latest]
    ).reshape(len(latest), count)
    pixels = [np.flatnonzero(flat == component + 1) for component in range(count)]
    return _assign(shared, areas, pixels, latest)


def match_masks(masks: list[np.ndarray], latest: list[np.ndarray]) -> list[int]:
    """Return the object number of each mask of a frame, and update ``latest`` in place.

    The rule is the same as in :class:`ConnectedObjects`, but masks may overlap.

    Args:
        masks: ``[H,W]`` bool each.
        latest: flat pixel indices of the latest mask of each object; object 1 comes first.
    """
    pixels = [np.flatnonzero(mask) for mask in masks]
    shared = np.array(
        [[np.count_nonzero(mask.ravel()[old[old < mask.size]]) for mask in masks] for old in latest]
    ).reshape(len(latest), len(masks))
    return _assign(shared, np.array([len(p) for p in pixels], int), pixels, latest)


def _assign(
    shared: np.ndarray, areas: np.ndarray, pixels: list[np.ndarray], latest: list[np.ndarray]
) -> list[int]:
    """Match masks to objects greedily in order of decreasing IoU.

    Args:
        shared: ``[objects, masks]`` numbers of common pixels.
        areas: ``[masks]`` numbers of pixels.
        pixels: flat pixel indices of each mask.
        latest: as for :func:`match_masks`; updated in place.
    """
    count = len(pixels)
    lengths = np.array([len(p) for p in latest], int).reshape(-1, 1)
    iou = shared / np.maximum(areas + lengths - shared, 1)
    numbers = [0] * count
    # Greedy matching; the stable sort resolves ties the same way in every process.
    for pair in np.argsort(-iou, axis=None, kind="stable").tolist():
        number, component = divmod(pair, count)
        if iou[number, component] < MIN_IOU:
            break
        if not numbers[component] and number + 1 not in numbers:
            numbers[component] = number + 1
    for component in range(count):
        if not numbers[component]:
            latest.append(np.empty(0, int))
            numbers[component] = len(latest)
        latest[numbers[component] - 1] = pixels[component]
    return numbers
