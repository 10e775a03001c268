"""Find labels among the stacks, volumes and video files that would be read as videos.

Names are checked first (:mod:`~sam2kit.data.sources.mask_search`); this module checks the values of
videos without labels, because a label file with an unusual name would otherwise become a video.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import av
import numpy as np

from sam2kit.data.sources.ctc import find_sequences
from sam2kit.data.sources.listing import list_folder, sort_files
from sam2kit.data.sources.nifti import NIFTI_ENDINGS, open_nifti
from sam2kit.data.sources.tiff import TIFF_ENDINGS, TiffStack, find_tiffs
from sam2kit.data.sources.video_decoder import open_container
from sam2kit.data.sources.video_files import find_videos
from sam2kit.data.sources.volumes import find_volumes
from sam2kit.utils.errors import DataError

MAX_CHECKED = 8  # videos whose values are checked
MAX_VALUES, MAX_LABELS = 64, 1 << 12  # distinct values of an image of labels
# Share of the pixels whose left neighbour has the same value, in images of few and of many values.
# A noisy image of few values, such as one in low light, has a smaller share.
FEW_FLAT, MANY_FLAT = 0.6, 0.7
VIDEO_STEP = 24  # distance of the checked frames of a video file
MAX_SLICE_BYTES = 1 << 28  # of a compressed volume, which is read from its beginning


def find_label_video(kind: str, root: Path) -> Path | None:
    """Return the first file that would be a video and has the values of labels.

    Two or three images of up to eight videos without labels are decoded. If all videos have labels,
    none is.

    Args:
        kind: ``tiff``, ``ctc``, ``nifti`` or ``files``; other types are not checked.
        root: a directory. Video files are checked only in a directory.

    Raises:
        DataError: as the source of this type, for files that cannot be assigned to videos.
    """
    finders: dict[str, Callable[[Path], Iterator[tuple[Path, Iterator[np.ndarray]]]]] = {
        "tiff": _stacks,
        "ctc": _sequences,
        "nifti": _volumes,
        "files": _video_files,
    }
    if kind not in finders:
        return None
    looks_like = frames_look_like_masks if kind == "files" else images_look_like_labels
    for number, (path, images) in enumerate(finders[kind](root)):
        if number >= MAX_CHECKED:
            break
        try:
            if looks_like(images):
                return path
        except DataError:  # a damaged file is reported by the source
            continue
    return None


def _stacks(root: Path) -> Iterator[tuple[Path, Iterator[np.ndarray]]]:
    for files in find_tiffs(root).values():
        if files.labels is None:
            path = files.stack or files.frames[0]
            yield path, _pages([files.stack] if files.stack else files.frames)


def _sequences(root: Path) -> Iterator[tuple[Path, Iterator[np.ndarray]]]:
    for name in find_sequences(root):
        folder = root / name
        if any((root / f"{name}_{kind}").is_dir() for kind in ("GT", "ST")):
            continue
        if files := sort_files(list_folder(folder, TIFF_ENDINGS).files, folder):
            yield folder / files[0], _pages([folder / file for file in files])


def _pages(paths: list[Path]) -> Iterator[np.ndarray]:
    """Yield the first, the middle and the last image of a stack, or of files of one image each."""
    if len(paths) > 1:
        for path in {paths[0]: 0, paths[len(paths) // 2]: 0, paths[-1]: 0}:
            yield from _pages([path])
        return
    stack = TiffStack(paths[0], num_frames=1)
    try:
        for t in sorted({0, stack.num_frames // 2, stack.num_frames - 1}):
            yield stack.read(t)
    finally:
        stack.close()


def _volumes(root: Path) -> Iterator[tuple[Path, Iterator[np.ndarray]]]:
    for files in find_volumes(root, NIFTI_ENDINGS).values():
        if files.labels is None:
            yield files.volume, _slices(files.volume)


def _slices(path: Path) -> Iterator[np.ndarray]:
    """Yield the slice in the middle and one at a third: the outer ones are often empty."""
    image, shape = open_nifti(path)
    size = int(np.prod(shape)) * image.get_data_dtype().itemsize
    divisor = 2 if size < MAX_SLICE_BYTES or path.suffix == ".nii" else 64
    for k in sorted({shape[2] // divisor, shape[2] // (divisor + 1)}):
        try:
            yield np.asanyarray(image.dataobj[:, :, k]).reshape(shape[:2])
        except Exception as error:  # the library raises many classes for damaged files
            raise DataError(f"{path} cannot be read: {error}", hint="replace the file") from error


def _video_files(root: Path) -> Iterator[tuple[Path, Iterator[np.ndarray]]]:
    if root.is_file() or any((root / name).is_dir() for name in ("Annotations", "masks")):
        return
    for path in find_videos(root).values():
        yield path, _video_frames(path)


def _video_frames(path: Path) -> Iterator[np.ndarray]:
    """Yield one of the first frames and a later one, without an index of the whole file."""
    try:
        with open_container(path) as container:
            for t, frame in enumerate(container.decode(video=0)):
                if t % VIDEO_STEP == 0:
                    yield frame.to_ndarray(format="rgb24")
                if t == VIDEO_STEP:
                    return
    except (av.FFmpegError, IndexError, ValueError) as error:
        raise DataError(f"{path} cannot be decoded: {error}", hint="replace the file") from error


def images_look_like_labels(images: Iterator[np.ndarray]) -> bool:
    """Return whether all non-empty images are labels, and there is at least one.

    Labels are flat areas of whole numbers, with 0 on at least a tenth of the pixels.
    """
    seen = False
    for image in images:
        if image.ndim != 2 or not _is_whole(image):
            return False
        if (image == image.flat[0]).all():
            continue
        background = image == 0
        if image.min() < 0 or 10 * np.count_nonzero(background) < image.size:
            return False
        count = len(np.unique(image))
        equal = (image[:, 1:] == image[:, :-1]) & ~background[:, 1:]
        flat = np.count_nonzero(equal) / max(np.count_nonzero(~background), 1)
        if count > MAX_LABELS or flat < (FEW_FLAT if count <= MAX_VALUES else MANY_FLAT):
            return False
        seen = True
    return seen


def _is_whole(image: np.ndarray) -> bool:
    if image.dtype == bool or np.issubdtype(image.dtype, np.integer):
        return True
    return bool(np.issubdtype(image.dtype, np.floating) and (image == np.rint(image)).all())


def frames_look_like_masks(frames: Iterator[np.ndarray]) -> bool:
    """Return whether all non-empty frames are black with flat bright areas.

    Compression blurs the edges, so up to 2% of the pixels may have values in between.
    """
    seen = False
    for frame in frames:
        brightness = frame.max(axis=2)
        if np.ptp(brightness) < 32:
            continue
        if 10 * np.count_nonzero(brightness < 24) < brightness.size:
            return False
        between = (brightness >= 24) & (brightness < 80)
        colours = (frame >> 5).astype(np.int32) @ np.array([64, 8, 1])
        largest = np.sort(np.bincount(colours.reshape(-1), minlength=512))[::-1][:8].sum()
        if 50 * np.count_nonzero(between) > frame[..., 0].size or largest < 0.98 * colours.size:
            return False
        seen = True
    return seen
