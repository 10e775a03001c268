"""Render self-contained HTML pages."""

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

IMAGE_WIDTH = 360  # pixels; larger images are scaled down to keep the page small
# Content security policy: the page runs no script and loads nothing, even if its text were not
# escaped. Styles and images are embedded in the page.
POLICY = (
    "default-src 'none'; img-src data:; style-src 'unsafe-inline'; base-uri 'none'; "
    "form-action 'none'"
)


def render(template: str, **values: Any) -> str:
    """Render a template of ``sam2kit/viz/templates`` to HTML.

    Every value passes through :func:`~sam2kit.utils.text.visible_text` and is escaped. Templates
    have four additional filters: ``score`` (three decimals, a dash for None), ``percent`` (of a
    fraction), ``uri`` (data URI of a figure or an RGB image) and ``whole`` (text of any length with
    its line breaks). ``policy`` is the content security policy.

    Args:
        template: file name of the template.
        values: variables of the template.

    Returns:
        The page.
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
    """Make the characters of a template value visible, unless it is trusted markup."""
    return value if isinstance(value, Markup) else visible_text(value)


def _whole(text: str) -> Markup:
    """Escape a text without shortening it."""
    return Markup.escape(visible_text(text, None, multiline=True))


def _score(value: float | None, sign: bool = False) -> str:
    """Format a score with three decimals, optionally with its sign."""
    return "–" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def _percent(fraction: float | None, digits: int = 0) -> str:
    """Format a fraction as a percentage."""
    return "–" if fraction is None else f"{100 * fraction:.{digits}f}%"


def _uri(picture: Figure | np.ndarray) -> Markup:
    """Return the data URI of a figure as SVG, or of an image as JPEG of up to IMAGE_WIDTH."""
    file = io.BytesIO()
    if isinstance(picture, Figure):
        # A fixed salt and no date, so that the same numbers give the same bytes.
        with matplotlib.rc_context({"svg.hashsalt": "sam2kit"}):
            picture.savefig(file, format="svg", metadata={"Date": None})
        kind = "svg+xml"
    else:
        scale = min(1, IMAGE_WIDTH / picture.shape[1])
        small = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
        Image.fromarray(small).save(file, "JPEG", quality=88)
        kind = "jpeg"
    content = base64.b64encode(file.getvalue()).decode("ascii")
    return Markup(f"data:image/{kind};base64,{content}")
