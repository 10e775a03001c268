"""Share code between widgets: pictures as bytes, messages handled in turn, a static picture."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Iterator
from contextlib import contextmanager
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

DISPLAY_WIDTH, DISPLAY_HEIGHT = 960, 720


class PictureWidget(anywidget.AnyWidget):
    """A widget that answers messages with pictures and shows its errors itself.

    The view sends ``{"type": NAME, ...}``, and the subclass's method ``on_NAME`` is called with the
    other fields as arguments (and ``buffers``, where there are any), one message at a time.
    JupyterLab delivers messages on threads of its own, so ``inference_mode`` and ``autocast``,
    which belong to a thread, have to be entered by the methods; pyplot must not be touched there.

    Attributes:
        seq: goes up with every answer; a view repaints when it changes, because equal bytes
            send no event.
        error: the message of what went wrong last; empty after a message that was handled.
        views: how many views have been rendered; 0 without a front end.
    """

    seq = traitlets.Int(0).tag(sync=True)
    error = traitlets.Unicode("").tag(sync=True)
    views = traitlets.Int(0)

    def __init__(self, **kwargs: Any) -> None:
        self.lock = threading.RLock()
        super().__init__(**kwargs)
        self.on_msg(self._received)

    @contextmanager
    def answering(self) -> Iterator[None]:
        """Change traits alone, send them together, and show an error instead of losing it."""
        with self.lock, self.hold_sync():
            try:
                self.error = ""
                yield
            except Exception as error:  # a traceback in a callback goes nowhere a user looks
                logger.opt(exception=error).debug("in a widget")
                self.error = error_text(error)
            self.seq += 1

    def _received(self, _: Any, content: dict[str, Any], buffers: list[memoryview]) -> None:
        content = dict(content)
        name = content.pop("type", "")
        with self.answering():
            if buffers:
                content["buffers"] = [bytes(buffer) for buffer in buffers]
            getattr(self, f"on_{name}")(**content)

    def on_ready(self) -> None:
        """A view was rendered; its first message moves all later ones to one thread."""
        self.views += 1

    def snapshot(self) -> bytes:
        """PNG bytes of what is shown now, for where there is no front end."""
        raise NotImplementedError

    def _repr_mimebundle_(self, **kwargs: Any) -> tuple[dict, dict] | None:
        bundle = super()._repr_mimebundle_(**kwargs)
        if bundle is not None:
            bundle[0]["image/png"] = base64.b64encode(self.snapshot()).decode("ascii")
        return bundle


def error_text(error: Exception) -> str:
    """Return the message of an exception, or its type where it has none."""
    return visible_text(error, multiline=True) or type(error).__name__


def display_size(size: tuple[int, int]) -> tuple[int, int]:
    """Rows and columns at which a frame of ``size`` is sent: never more than it has."""
    scale = min(1, DISPLAY_HEIGHT / size[0], DISPLAY_WIDTH / size[1])
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def encode_jpeg(frame: np.ndarray, size: tuple[int, int] | None = None) -> bytes:
    """JPEG of ``[H,W,3]`` uint8 RGB at ``size`` (rows, columns)."""
    if size is not None and size != frame.shape[:2]:
        frame = cv2.resize(frame, size[::-1], interpolation=cv2.INTER_AREA)
    ok, data = cv2.imencode(".jpg", frame[..., ::-1], [cv2.IMWRITE_JPEG_QUALITY, 90])
    if not ok:
        raise ValueError(f"a frame of {frame.shape} cannot be written as JPEG")
    return data.tobytes()


def encode_png(picture: np.ndarray | Image.Image, **options: Any) -> bytes:
    """PNG of an image or of ``[H,W,3]`` uint8."""
    image = Image.fromarray(picture) if isinstance(picture, np.ndarray) else picture
    file = io.BytesIO()
    image.save(file, format="PNG", **options)
    return file.getvalue()


def video_number(source: VideoSource, video: int | str) -> int:
    """Return the number of a video, given by its number or name.

    Raises:
        DataError: no such video.
    """
    names = source.names
    if isinstance(video, str) and video in names:
        return names.index(video)
    if isinstance(video, int) and 0 <= video < len(names):
        return video
    close = close_names(str(video), names) or names[:5]
    raise DataError(
        f"video {video!r} is not among the {len(names)} videos; name one such as {close}, or "
        f"give its number, 0 to {len(names) - 1}"
    )
