"""Define the base class of the widgets and encode their images."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import anywidget
import cv2
import numpy as np
import traitlets
from loguru import logger
from PIL import Image

from sam2kit.data.sources.base import VideoSource
from sam2kit.utils.errors import DataError
from sam2kit.utils.text import close_names, visible_text

DISPLAY_WIDTH, DISPLAY_HEIGHT = 960, 720  # maximum size of a frame that is sent, in pixels


def view_files(name: str) -> tuple[str, str]:
    """Return the JavaScript and CSS of a view, with the common files prepended.

    The browser loads a view as a single file, which cannot import ``common.js``.
    """
    folder = Path(__file__).parent
    script, style = (
        "\n".join((folder / f"{part}{ending}").read_text("utf-8") for part in ("common", name))
        for ending in (".js", ".css")
    )
    return script, style


class ImageWidget(anywidget.AnyWidget):
    """Base class of widgets: dispatch messages from the view and show errors in the widget.

    The view sends ``{"type": NAME, ...}``. The widget calls the subclass's method ``on_NAME`` with
    the other fields as arguments (and ``buffers`` if the message has binary data), one message at a
    time. JupyterLab delivers messages on its own threads, so these methods must enter
    ``inference_mode`` and ``autocast``, which are thread-local, and must not use pyplot.

    Attributes:
        seq: counter of answers. Views repaint when it changes, because setting a trait to an equal
            value causes no event.
        error: message of the last error; empty after a message without an error.
        views: number of views rendered so far; 0 without a front end.
    """

    seq = traitlets.Int(0).tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    views = traitlets.Int(0)

    def __init__(self, **kwargs: Any) -> None:
        self.lock = threading.RLock()
        super().__init__(**kwargs)
        self.on_msg(self._dispatch)

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Hold the lock, send changed traits together and show exceptions in ``error``."""
        with self.lock, self.hold_sync():
            try:
                self.error = ""
                yield
            except Exception as error:
                # Jupyter prints tracebacks of callbacks where users do not see them.
                logger.opt(exception=error).debug("error in a widget callback")
                self.error = error_text(error)
            self.seq += 1

    def _dispatch(self, _: Any, content: dict[str, Any], buffers: list[memoryview]) -> None:
        """Call ``on_NAME`` for a message of type NAME."""
        content = dict(content)
        name = content.pop("type", "")
        with self._answering():
            if buffers:
                content["buffers"] = [bytes(buffer) for buffer in buffers]
            getattr(self, f"on_{name}")(**content)

    def on_ready(self) -> None:
        """Count a view; ``ready`` is the first message of every view.

        The message also makes JupyterLab deliver all later messages on the same thread.
        """
        self.views += 1

    def snapshot(self) -> bytes:
        """Return the current display as PNG bytes, for notebooks without a front end."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        # The PNG is shown where the widget is not available, such as in an exported notebook.
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            bundle[0]["image/png"] = base64.b64encode(self.snapshot()).decode("ascii")
        return bundle


def error_text(error: Exception) -> str:
    """Return an exception's message, or its type name if the message is empty."""
    return visible_text(error, multiline=True) or type(error).__name__


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """Return the display size (rows, columns) of a frame of ``size``; frames are not enlarged."""
    scale = min(1, DISPLAY_HEIGHT / size[0], DISPLAY_WIDTH / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def encode_jpeg(frame: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """Return ``[H,W,3]`` uint8 RGB as JPEG bytes.

    Args:
        frame: the image.
        size: rows and columns of the JPEG. If None (default), the frame's size.

    Raises:
        ValueError: OpenCV cannot encode the frame.
    """
    if size is not None and size != frame.shape[:2]:
        frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
    # OpenCV expects BGR.
    ok, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not ok:
        raise ValueError(f"cannot encode a frame of shape {frame.shape} as JPEG")
    return data.tobytes()


def encode_png(image: np.ndarray | Image.Image, **options: Any) -> bytes:
    """Return an image, or ``[H,W,3]`` uint8 RGB, as PNG bytes; ``options`` are Pillow's."""
    image = Image.fromarray(image) if isinstance(image, np.ndarray) else image
    file = io.BytesIO()
    image.save(file, format="PNG", **options)
    return file.getvalue()


def video_number(source: VideoSource, video: int | str) -> int:
    """Return the index of a video given by index or name.

    Raises:
        DataError: the video does not exist.
    """
    names = source.names
    if isinstance(video, str) and video in names:
        return names.index(video)
    if isinstance(video, int) and 0 <= video < len(names):
        return video
    close = close_names(str(video), names) or names[:5]
    raise DataError(
        key="video",
        value=video,
        expected=f"the name of a video or an index from 0 to {len(names) - 1}",
        hint=f"for example {', '.join(close)}",
    )
