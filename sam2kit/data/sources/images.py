"""Read still images as videos of one frame."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from sam2kit.data.intensity import IntensityRule, VideoScaler
from sam2kit.data.sources.dropped import DroppedFiles
from sam2kit.data.sources.frame_folders import MaskedFrames, read_scaled
from sam2kit.data.sources.listing import (
    FRAME_ENDINGS,
    list_folder,
    read_split,
    same_form,
    sort_files,
    stem,
)
from sam2kit.data.sources.mask_files import JPEG_KINDS, MaskFiles, share_decision
from sam2kit.data.sources.mask_search import find_frame_folder, find_mask_folder, is_video_name
from sam2kit.utils.errors import DataError


class ImageDataset(MaskedFrames):
    """Read a folder of images, each as a video of one frame with the name of its file.

    The layouts are ``ROOT/images/a.jpg`` with masks in ``ROOT/masks/a.png``, the same files in
    ``JPEGImages`` and ``Annotations``, and ``ROOT/a.jpg`` without masks. File extensions, order and
    masks are as in :class:`~sam2kit.data.sources.frame_folders.VideoDataset`: the objects of an
    image may also have one folder each, ``ROOT/masks/OBJECT/a.png``.

    Args:
        root: the folder.
        split: names of images without extension, as in
            :class:`~sam2kit.data.sources.frame_folders.VideoDataset`. None (default): all images.
        masks_path: the folder of the masks. None (default): as in the layouts above.
        mask_values, mask_colours, intensity: as for
            :class:`~sam2kit.data.sources.frame_folders.VideoDataset`; each image of more than 8
            bits is scaled separately.

    Raises:
        DataError: no images, two with the same name, a mask without an image; on reading, a file
            that cannot be read, an invalid mask, or a mask whose size differs from its image.
    """

    def __init__(
        self,
        root: str | Path,
        split: str | None = None,
        masks_path: str | Path | None = None,
        mask_values: str = "auto",
        mask_colours: str | None = None,
        intensity: IntensityRule | None = None,
    ) -> None:
        self.root = Path(root)
        folder, masks = picture_folders(self.root)
        masks = Path(masks_path) if masks_path is not None else masks
        listing = list_folder(folder, FRAME_ENDINGS)
        files = sort_files(listing.files, folder)
        if not files:
            raise DataError(
                f"{folder} contains no images ({', '.join(FRAME_ENDINGS)})",
                hint="expected ROOT/images/a.jpg with ROOT/masks/a.png, or ROOT/a.jpg without "
                "masks",
            )
        self._folder = folder
        # All images share one MaskFiles: the position of an image there is its "frame".
        positions = {same_form(stem(name)): k for k, name in enumerate(files)}
        self.names = list(positions) if split is None else read_split(split, self.root, positions)
        self._files = [(positions[name], files[positions[name]]) for name in self.names]
        self._masks = None
        if masks is not None:
            hint = f"name masks like their images (first image: {files[0]})"
            is_jpeg = mask_values in JPEG_KINDS
            self._masks = MaskFiles(masks, len(files), positions.get, hint, is_jpeg)
        self.has_masks = masks is not None
        self._scaler = VideoScaler(intensity or IntensityRule())
        mask_files = [self._masks] if self._masks else []
        self._decision = share_decision(mask_files, mask_values, mask_colours, self.root)
        dropped = DroppedFiles(self.root, has_masks=self.has_masks)
        dropped.add(folder, listing.others)
        for files_of_masks in mask_files:
            dropped.add(files_of_masks.folder, files_of_masks.others)
            dropped.jpeg_masks += files_of_masks.dropped
        self._remarks = dropped.report()

    def num_frames(self, i: int) -> int:
        return 1

    def frame_name(self, i: int, t: int) -> str:
        return self.names[i]

    def frame_path(self, i: int, t: int) -> Path:
        """Return the file of image ``i``.

        Raises:
            IndexError: ``t`` is not 0.
        """
        if t != 0:
            raise IndexError(f"frame {t} of image {self.names[i]!r}, which has one frame")
        return self._folder / self._files[i][1]

    def read_frame(self, i: int, t: int) -> np.ndarray:
        return read_scaled(self, self._scaler, i, t)

    def masks_of(self, i: int, t: int) -> tuple[MaskFiles | None, int]:
        return self._masks, self._files[i][0]


def picture_folders(root: Path) -> tuple[Path, Path | None]:
    """Return the folder of the images and the one of their masks, or None if it is missing.

    Raises:
        DataError: several folders have names of mask folders.
    """
    names = list_folder(root, ()).folders
    for images in ("images", "JPEGImages"):
        if images in names:
            return root / images, find_mask_folder(root, names)
    masks = find_mask_folder(root, names)
    images_folder = find_frame_folder(root, names) if masks else None
    if images_folder is not None and not is_video_name(images_folder.name):
        return images_folder, masks
    return root, None
