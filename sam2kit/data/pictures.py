"""Read image files: frames as colours, masks as stored values.

All sources read images here, so that limits, orientation and errors are the same for all of them.
"""

from __future__ import annotations

import io
import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import av
import numpy as np
import torch
from av.video.codeccontext import VideoCodecContext
from PIL import Image, ImageOps
from torchvision.io import decode_jpeg

from sam2kit.utils.errors import DataError

# Largest image that is decoded: four times 8K video, 400 MB in memory. A damaged or hostile file
# of a few bytes can claim a size that does not fit into any memory.
MAX_IMAGE_PIXELS = 1 << 27
# What Pillow also raises for damaged files, such as a TypeError for a page without a size.
_FAULTS = (TypeError, LookupError, ArithmeticError, struct.error)
MAX_BYTES = 1 << 30  # of a file: 8 bytes per pixel
# Pillow chooses a decoder by the content of a file, and for PostScript it starts an interpreter.
_FORMATS = ("BMP", "DIB", "GIF", "JPEG", "PNG", "PPM", "TIFF", "WEBP")
_ORIENTATION = 0x0112  # the tag of EXIF
_TRANSPOSED = (5, 6, 7, 8)  # orientations that exchange rows and columns
# Pillow warns about images that are within the limit above.
warnings.simplefilter("ignore", Image.DecompressionBombWarning)


class Labels(NamedTuple):
    """The values that a mask file stores.

    Attributes:
        form: ``palette``, ``grey`` (8 bits), ``bits`` (1 bit), ``deep`` (more than 8 bits) or
            ``colour``.
        pixels: ``[H,W]`` uint8 or int32; for ``colour`` int32, red * 65536 + green * 256 + blue,
            and 0 where the pixel is transparent.
    """

    form: str
    pixels: np.ndarray


def read_picture(path: Path) -> np.ndarray:
    """Read an image file upright, as viewers show it: an EXIF orientation is applied.

    Returns:
        ``[H,W,3]`` uint8 RGB; for a file of more than 8 bits per channel its values, ``[H,W]``
        uint16, int32 or float32.

    Raises:
        DataError: the file is missing or damaged, is larger than :data:`MAX_IMAGE_PIXELS`, contains
            several images, or has colours of 16 bits per channel.
    """
    with opened(path, "an image") as image:
        if image.format == "JPEG" and image.mode == "RGB":
            orientation = _orientation(image)
            pixels = _decode_jpeg(path)
            if pixels is not None:
                return pixels if orientation == 1 else _turned(pixels, orientation)
        _require_one_page(path, image)
        # Pillow keeps the upper 8 bits, which are nearly black in an image of 10 or 12 bits.
        tiles = getattr(image, "tile", ())
        if image.mode.startswith("RGB") and any(";16" in str(tile[3]) for tile in tiles):
            raise DataError(
                f"{path} has colours of 16 bits per channel",
                hint="convert the frames to 8 bits per channel, or store them as TIFF stacks",
            )
        upright = ImageOps.exif_transpose(image)
        if upright.mode.startswith(("I", "F")):
            values = np.array(upright)
            return values.astype(values.dtype.newbyteorder("="))
        return np.array(upright.convert("RGB"))


def read_labels(path: Path) -> Labels:
    """Read the values of a mask file, upright as :func:`read_picture`.

    An image of three equal channels is grey, and an alpha channel of a grey image is ignored.

    Raises:
        DataError: the file is missing or damaged, is larger than :data:`MAX_IMAGE_PIXELS`, contains
            several images, or has values that are not whole numbers from 0 to 2^31 - 1.
    """
    with opened(path, "a mask") as image:
        _require_one_page(path, image)
        upright = ImageOps.exif_transpose(image)
        mode = upright.mode
        if mode in ("LA", "PA"):
            upright = upright.getchannel(0)
        elif mode not in ("1", "L", "P", "RGB", "RGBA") and not mode.startswith(("I", "F")):
            upright = upright.convert("RGBA")
        pixels = np.array(upright)
    if pixels.ndim == 3:
        return _colours(pixels)
    if mode == "1":
        return Labels("bits", pixels.astype(np.uint8))
    if pixels.dtype == np.uint8:
        return Labels("palette" if mode.startswith("P") else "grey", pixels)
    whole = pixels.astype(np.int32)
    if (whole != pixels).any() or (whole < 0).any():
        raise DataError(
            f"{path} has values that are not object numbers, such as "
            f"{pixels[(whole != pixels) | (whole < 0)][0]}",
            hint="save the mask with one whole number per object, 0 for the background",
        )
    return Labels("deep", whole)


def image_size(path: Path) -> tuple[int, int]:
    """Read the rows and columns of an upright image from its header.

    Raises:
        DataError: the file is missing or damaged, or larger than :data:`MAX_IMAGE_PIXELS`.
    """
    try:
        changed = path.stat().st_mtime_ns
    except OSError:
        changed = 0  # opening the file raises the error
    return _upright_size(path, changed)


# A clip's masks are compared with their frames in every epoch. Opening a JPEG takes 0.5 ms.
@lru_cache(maxsize=1 << 14)
def _upright_size(path: Path, changed: int) -> tuple[int, int]:
    with opened(path, "an image") as image:
        # Pillow gives the size of an upright TIFF already.
        turned = image.format != "TIFF" and _orientation(image) in _TRANSPOSED
        return (image.width, image.height) if turned else (image.height, image.width)


def is_partly_damaged(path: Path) -> bool:
    """Return whether a JPEG file is damaged, although decoders return an image for it.

    Decoders for viewers replace damaged parts by grey or by shifted blocks. FFmpeg has an option
    to stop at damage. It takes several times longer, so the doctor checks, and training does not.
    """
    if path.suffix.lower() not in (".jpg", ".jpeg"):
        return False
    data = path.read_bytes()
    # If FFmpeg cannot decode this kind of JPEG at all, damage cannot be detected.
    return _ffmpeg_decodes(data, {}) and not _ffmpeg_decodes(data, {"err_detect": "explode"})


def _ffmpeg_decodes(data: bytes, options: dict[str, str]) -> bool:
    decoder = av.CodecContext.create("mjpeg", "r")
    assert isinstance(decoder, VideoCodecContext)
    decoder.thread_count = 1
    decoder.options = options
    try:
        return bool(decoder.decode(av.Packet(data)) + decoder.decode(None))
    except (av.FFmpegError, ValueError):
        return False


@contextmanager
def opened(
    file: str | Path | bytes, kind: str = "an image", where: object = None
) -> Iterator[Image.Image]:
    """Open an image with Pillow, check its size, and turn errors of the block into a DataError.

    Args:
        file: an image file, or its bytes.
        kind: what is expected, for errors.
        where: name of the file, for errors. None (default): ``file``.

    Raises:
        DataError: the file is missing or damaged, or larger than :data:`MAX_IMAGE_PIXELS`.
    """
    where = file if where is None else where
    try:
        stream = io.BytesIO(file) if isinstance(file, bytes) else file
        size = len(file) if isinstance(file, bytes) else os.stat(file).st_size
        if size > MAX_BYTES:
            raise DataError(f"{where} has more than {MAX_BYTES} bytes", hint="replace the file")
        with Image.open(stream, formats=_FORMATS) as image:
            if image.width * image.height > MAX_IMAGE_PIXELS:
                raise _too_large(where, f"{image.width} x {image.height}")
            yield image
    except Image.DecompressionBombError as error:
        raise _too_large(where, "more than twice as many") from error
    except (*_FAULTS, OSError, SyntaxError, ValueError, EOFError, MemoryError) as error:
        raise DataError(
            f"{where} cannot be read as {kind}: {error or type(error).__name__}",
            hint="replace the file",
        ) from error


def _too_large(where: object, size: str) -> DataError:
    return DataError(
        f"{where} is too large",
        key="pixels",
        value=size,
        expected=f"up to {MAX_IMAGE_PIXELS}",
        hint="replace the file, or make the image smaller",
    )


def _require_one_page(path: Path, image: Image.Image) -> None:
    pages = getattr(image, "n_frames", 1)
    if image.format in ("TIFF", "WEBP") and pages > 1:
        raise DataError(f"{path} contains {pages} images", hint="save each in a separate file")


def _orientation(image: Image.Image) -> int:
    # A file without EXIF is not searched for it: that would read the whole file.
    if image.format not in ("TIFF", "PNG", "MPO") and "exif" not in image.info:
        return 1
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _decode_jpeg(path: Path) -> np.ndarray | None:
    """Decode a JPEG of three channels to the pixels of Pillow, in a fifth of the time.

    Returns None for all other files, which Pillow must read.
    """
    try:
        decoded = decode_jpeg(torch.from_numpy(np.fromfile(path, np.uint8)))
    except (RuntimeError, ValueError):  # Pillow then reports whether it is damaged
        return None
    return decoded.permute(1, 2, 0).contiguous().numpy() if len(decoded) == 3 else None


def _turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Turn ``[H,W,3]`` upright, as Pillow's ``exif_transpose`` does."""
    if orientation in _TRANSPOSED:
        pixels = pixels.transpose(1, 0, 2)
    # Each orientation is a transposition, and then mirrored columns, rows, or both.
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return np.ascontiguousarray(pixels)


def _colours(pixels: np.ndarray) -> Labels:
    """Pack ``[H,W,3]`` or ``[H,W,4]`` uint8 into one number per pixel."""
    red, green, blue = (pixels[..., c] for c in range(3))
    visible = pixels[..., 3] > 0 if pixels.shape[-1] == 4 else None
    if np.array_equal(red, green) and np.array_equal(red, blue):
        return Labels("grey", red.copy() if visible is None else np.where(visible, red, 0))
    packed = (red.astype(np.int32) << 16) | (green.astype(np.int32) << 8) | blue
    return Labels("colour", packed if visible is None else np.where(visible, packed, 0))
