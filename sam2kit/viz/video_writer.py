"""Moving pictures as files: GIF, and MP4 written frame by frame."""

from __future__ import annotations

import base64
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from PIL import Image

from sam2kit.utils.files import atomic_write
from sam2kit.utils.text import html_text


def save_gif(path: str | Path, frames: Sequence[np.ndarray] | np.ndarray, fps: float = 5.0) -> None:
    """Write images ``[H,W,3]`` uint8 as an endless GIF, whose clock ticks every 10 ms.

    Raises:
        ValueError: no frames, or ``fps`` outside 0 to 50.
    """
    if not len(frames) or not 0 < fps <= 50:
        raise ValueError(f"a GIF needs frames and fps in (0, 50], got {len(frames)} and {fps}")
    pages = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    duration = round(100 / fps) * 10
    pages[0].save(path, save_all=True, append_images=pages[1:], duration=duration, loop=0)


def gif_html(path: str | Path, width: int | None = None) -> str:
    """A GIF as HTML that holds it, for a notebook's output.

    A display of the type ``image/gif`` is lost where a notebook is converted to HTML.

    Args:
        width: pixels on the screen; None: its own.
    """
    content = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    size = "" if width is None else f' width="{width}"'
    return f'<img alt="{html_text(Path(path).name)}"{size} src="data:image/gif;base64,{content}">'


@contextmanager
def mp4_writer(path: str | Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an MP4 that browsers play (H.264, 4:2:0), one image at a time.

    ``with mp4_writer(path, 25) as write:`` gives a function that takes images ``[H,W,3]`` uint8,
    all of one size; a last odd row or column is doubled, since 4:2:0 needs even sizes. The file
    appears when the block ends, and not at all when it fails or without any image.

    Raises:
        ValueError: an image of another size than the first.
    """
    shape: tuple[int, ...] | None = None
    with atomic_write(path) as unfinished:
        with av.open(str(unfinished), "w", "mp4", options={"movflags": "faststart"}) as container:
            rate = Fraction(fps).limit_denominator(1001)
            # Equal images must give equal files. With its macroblock tree (mbtree), x264 does not
            # guarantee that; without it, CRF 22 has about the size and quality of CRF 20 with it.
            options = {"crf": "22", "x264-params": "mbtree=0"}
            stream = container.add_stream("libx264", rate, options=options)
            stream.pix_fmt = "yuv420p"

            def write(image: np.ndarray) -> None:
                nonlocal shape
                if shape is None:
                    stream.height, stream.width = (n + n % 2 for n in image.shape[:2])
                    shape = image.shape
                if image.shape != shape:
                    raise ValueError(f"images of one size make a video, got {shape}, {image.shape}")
                odd = [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)]
                frame = av.VideoFrame.from_ndarray(np.pad(image, odd, "edge"), format="rgb24")
                container.mux(stream.encode(frame))

            yield write
            if shape is not None:
                container.mux(stream.encode())
        if shape is None:
            unfinished.unlink(missing_ok=True)


def save_mp4(path: str | Path, frames: Iterable[np.ndarray], fps: float = 10.0) -> None:
    """Write images, which may be generated one by one; see :func:`mp4_writer`."""
    with mp4_writer(path, fps) as write:
        for frame in frames:
            write(frame)
