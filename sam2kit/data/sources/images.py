"""Single pictures as videos of one frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sam2kit.data.sources.frame_folders import MaskedFrames, read_image
from sam2kit.data.sources.listing import (
    FRAME_ENDINGS,
    in_order,
    list_folder,
    read_split,
    stem,
    tell_others,
)
from sam2kit.data.sources.mask_files import MaskFiles
from sam2kit.utils.errors import DataError


class ImageDataset(MaskedFrames):
    """A folder of pictures, each a video of one frame that is named as its file.

    Understood are ``ROOT/images/a.jpg`` with masks ``ROOT/masks/a.png``, the same in ``JPEGImages``
    and ``Annotations``, and ``ROOT/a.jpg`` without masks. Endings, order and masks are as in
    :class:`~sam2kit.data.sources.frame_folders.VideoDataset`, so objects of one picture may also be
    in ``ROOT/masks/OBJECT/a.png``.

    Args:
        root: the folder.
        split: as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`, of names without
            endings.
        masks_path: the folder of the masks, where it is another.

    Raises:
        DataError: no pictures, two of one name, a mask without a picture; on reading, a file that
            cannot be read, a mask that is none or not of its picture's size.
    """

    def __init__(
        self, root: str | Path, split: str | None = None, masks_path: str | Path | None = None
    ) -> None:
        self.root = Path(root)
        folder, masks = picture_folders(self.root)
        masks = Path(masks_path) if masks_path is not None else masks
        listing = list_folder(folder, FRAME_ENDINGS)
        files = in_order(listing.files, folder)
        if not files:
            raise DataError(
                f"{folder} holds no pictures ({', '.join(FRAME_ENDINGS)}); expected "
                "ROOT/images/a.jpg with ROOT/masks/a.png, or ROOT/a.jpg without masks"
            )
        self._folder = folder
        place = {stem(name): k for k, name in enumerate(files)}
        self.names = list(place) if split is None else read_split(split, self.root, place)
        self._files = [(place[name], files[place[name]]) for name in self.names]
        self._masks = None
        if masks is not None:
            expected = f"name masks as their pictures (the first is {files[0]})"
            self._masks = MaskFiles(masks, len(files), place.get, expected)
        self.has_masks = masks is not None
        tell_others(self.root, listing.others + (self._masks.others if self._masks else []))

    def num_frames(self, i: int) -> int:
        return 1

    def frame_name(self, i: int, t: int) -> str:
        return self.names[i]

    def frame_path(self, i: int, t: int) -> Path:
        """The file of picture ``i``."""
        if t != 0:
            raise IndexError(f"frame {t} of the picture {self.names[i]!r}, which is one frame")
        return self._folder / self._files[i][1]

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_image(self.frame_path(i, t))

    def masks_of(self, i: int, t: int) -> tuple[MaskFiles | None, int]:
        return self._masks, self._files[i][0]


def picture_folders(root: Path) -> tuple[Path, Path | None]:
    """The folder of the pictures and that of their masks, where there are such."""
    for pictures, masks in (("images", "masks"), ("JPEGImages", "Annotations")):
        if (root / pictures).is_dir():
            return root / pictures, root / masks if (root / masks).is_dir() else None
    return root, None
