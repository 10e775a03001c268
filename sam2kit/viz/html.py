"""HTML pages that need nothing beside them."""

from __future__ import annotations

import base64
import io
from typing import Any

import cv2
import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from matplotlib.figure import Figure
from PIL import Image

from sam2kit.utils.text import visible_text

IMAGE_WIDTH = 360
# A page runs no script and loads nothing, whatever its text holds. Styles are part of the page.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)


def render(template: str, **values: Any) -> str:
    """A page from a file of ``sam2kit/viz/templates``.

    Every value passes through :func:`~sam2kit.utils.text.visible_text` and is escaped. Templates
    have four filters of the kit: ``score`` (three digits, a dash for None), ``percent`` (of a
    share), ``uri`` (a figure or an RGB image as part of the page) and ``whole`` (a text of any
    length with its line breaks). ``policy`` is the content security policy.
    """
    environment = Environment(
        loader=PackageLoader("sam2kit.viz"),
        autoescape=True,
        finalize=_visible,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"score": _score, "percent": _percent, "uri": _uri, "whole": _whole}
    return environment.get_template(template).render(values, policy=POLICY)


def _visible(value: Any) -> Any:
    return value if isinstance(value, Markup) else visible_text(value)


def _whole(text: str) -> Markup:
    return Markup.escape(visible_text(text, None, multiline=True))


def _score(value: float | None, sign: bool = False) -> str:
    return "–" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def _percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def _uri(picture: Figure | np.ndarray) -> Markup:
    """A figure as SVG, an image as JPEG of at most IMAGE_WIDTH."""
    file = io.BytesIO()
    if isinstance(picture, Figure):
        with matplotlib.rc_context({"svg.hashsalt": "sam2kit"}):  # the same numbers, the same page
            picture.savefig(file, format="svg", metadata={"Date": None})
        kind = "svg+xml"
    else:
        scale = min(1, IMAGE_WIDTH / picture.shape[1])
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        Image.fromarray(small).save(file, "JPEG", quality=88)
        kind = "jpeg"
    content = base64.b64encode(file.getvalue()).decode("ascii")
    return Markup(f"data:image/{kind};base64,{content}")
