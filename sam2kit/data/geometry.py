"""Map the frames of a video to the slices of a volume and back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, eq=False)
class VolumeGeometry:
    """Map the frames of a video to the voxels of a volume.

    Frames are the slices along one axis of the volume. The first of the other two axes gives the
    columns of a frame and the second one its rows, as in NIfTI viewers.

    Attributes:
        affine: ``[4,4]``, voxel indices to mm in RAS+ coordinates, as in NIfTI.
        axis: axis of the volume along which frames follow each other, 0 to 2.
        reverse: whether the first frame is the last slice.
    """

    affine: np.ndarray
    axis: int = 2
    reverse: bool = False

    @property
    def spacing(self) -> tuple[float, float, float]:
        """Distances in mm between neighbouring frames, rows and columns."""
        lengths = np.sqrt((np.asarray(self.affine, float)[:3, :3] ** 2).sum(0))
        columns, rows = self._others
        return float(lengths[self.axis]), float(lengths[rows]), float(lengths[columns])

    @property
    def _others(self) -> tuple[int, int]:
        """The axes of the volume that are the columns and the rows of a frame."""
        columns, rows = (axis for axis in range(3) if axis != self.axis)
        return columns, rows

    def num_frames(self, shape: Sequence[int]) -> int:
        """Return the number of frames of a volume of this shape."""
        return int(shape[self.axis])

    def frame_size(self, shape: Sequence[int]) -> tuple[int, int]:
        """Return the rows and columns of the frames of a volume of this shape."""
        columns, rows = self._others
        return int(shape[rows]), int(shape[columns])

    def slice_index(self, t: int, count: int) -> int:
        """Return the index of frame ``t`` along the axis, of ``count`` frames."""
        return count - 1 - t if self.reverse else t

    def frame(self, volume: np.ndarray, t: int) -> np.ndarray:
        """Return frame ``t`` of a volume as ``[H,W]`` or, with a last axis of colours, [H,W,C]."""
        index: list[slice | int] = [slice(None)] * volume.ndim
        index[self.axis] = self.slice_index(t, volume.shape[self.axis])
        return np.swapaxes(volume[tuple(index)], 0, 1)

    def volume(self, frames: np.ndarray) -> np.ndarray:
        """Return the volume of the frames ``[T,H,W]``, in the axis order of the affine."""
        ordered = frames[::-1] if self.reverse else frames
        return np.moveaxis(ordered.transpose(0, 2, 1), 0, self.axis)

    def part(self, start: int, stop: int, count: int) -> VolumeGeometry:
        """Return the geometry of frames ``start`` to ``stop - 1`` of a video of ``count``."""
        affine = np.array(self.affine, float)
        first_slice = count - stop if self.reverse else start
        affine[:3, 3] += first_slice * affine[:3, self.axis]
        return VolumeGeometry(affine, self.axis, self.reverse)

    @classmethod
    def from_spacing(cls, spacing: Sequence[float]) -> VolumeGeometry:
        """Return the geometry of frames whose spacing is known, but not their orientation.

        Args:
            spacing: distances in mm between frames, rows and columns.
        """
        frames, rows, columns = spacing
        return cls(np.diag([columns, rows, frames, 1.0]))
