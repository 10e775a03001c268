"""Write GIF and MP4 files."""

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
    """Write an endless GIF.

    Args:
        path: file to write.
        frames: images ``[H,W,3]`` uint8.
        fps: frames per second, above 0 and up to 50. GIF files store durations in steps of 10 ms
            up to 655 s, so the actual rate may differ.

    Raises:
        ValueError: there are no frames, or ``fps`` is out of range.
    """
    if not len(frames) or not 0 < fps <= 50:
        raise ValueError(f"a GIF needs frames and fps in (0, 50]; got {len(frames)} and {fps}")
    # Dithering would flicker from frame to frame.
    images = [Image.fromarray(frame).quantize(256, dither=Image.Dither.NONE) for frame in frames]
    duration = min(round(100 / fps), 65535) * 10
    images[0].save(path, save_all=True, append_images=images[1:], duration=duration, loop=0)


def gif_html(path: str | Path, width: int | None = None) -> str:
    """Return an HTML image element that embeds a GIF, for the output of a notebook.

    Outputs of the type ``image/gif`` are lost when a notebook is converted to HTML.

    Args:
        path: the GIF file.
        width: display width in pixels. None (default): the width of the GIF.
    """
    content = base64.b64encode(Path(path).read_bytes()).decode("ascii")
    size = "" if width is None else f' width="{width}"'
    return f'<img alt="{html_text(Path(path).name)}"{size} src="data:image/gif;base64,{content}">'


@contextmanager
def mp4_writer(path: str | Path, fps: float) -> Iterator[Callable[[np.ndarray], None]]:
    """Write an MP4 file that browsers can play (H.264, 4:2:0), one image at a time.

    ``with mp4_writer(path, 25) as write:`` yields a function that takes one image ``[H,W,3]`` uint8
    per call. An odd last row or column is duplicated, because 4:2:0 needs even sizes. The file is
    created when the block ends. There is no file if the block raises an error or writes no image.

    Args:
        path: file to write.
        fps: frames per second.

    Raises:
        ValueError: the images differ in size.
    """
    shape: tuple[int, ...] | None = None
    with atomic_write(path) as temporary:
        # faststart puts the index at the beginning, so that browsers play while they download.
        with av.open(str(temporary), "w", "mp4", options={"movflags": "faststart"}) as container:
            # At least one frame in 1001 seconds: slower rates would become 0.
            rate = max(Fraction(fps).limit_denominator(1001), Fraction(1, 1001))
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
                    raise ValueError(f"images must have one size; got {shape} and {image.shape}")
                padding = [(0, image.shape[0] % 2), (0, image.shape[1] % 2), (0, 0)]
                frame = av.VideoFrame.from_ndarray(np.pad(image, padding, "edge"), format="rgb24")
                container.mux(stream.encode(frame))

            yield write
            if shape is not None:
                container.mux(stream.encode())  # the frames that the encoder still buffers
        if shape is None:
            temporary.unlink(missing_ok=True)


def save_mp4(path: str | Path, frames: Iterable[np.ndarray], fps: float = 10.0) -> None:
    """Write an MP4 file from an iterable of images; see :func:`mp4_writer`.

    Args:
        path: file to write.
        frames: images ``[H,W,3]`` uint8 of one size; a generator keeps memory low.
        fps: frames per second.

    Raises:
        ValueError: see :func:`mp4_writer`.
    """
    with mp4_writer(path, fps) as write:
        for frame in frames:
            write(frame)
