"""HTML pages that need nothing beside them."""

from __future__ import annotations

import base64
import io
from typing import Any

import cv2
import matplotlib
import numpy as np
from jinja2 import Environment, PackageLoader
from matplotlib.figure import Figure
from PIL import Image

IMAGE_WIDTH = 360


def render(template: str, **values: Any) -> str:
    """A page from a file of ``sam2kit/templates``.

    Templates have three filters of the kit: ``score`` (three digits, a dash for None), ``percent``
    (of a share) and ``uri`` (a figure or an RGB image as part of the page).
    """
    environment = Environment(
        loader=PackageLoader("sam2kit"), autoescape=True, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters |= {"score": _score, "percent": _percent, "uri": _uri}
    return environment.get_template(template).render(values)


def _score(value: float | None, sign: bool = False) -> str:
    return "–" if value is None else f"{value:+.3f}" if sign else f"{value:.3f}"


def _percent(share: float | None, digits: int = 0) -> str:
    return "–" if share is None else f"{100 * share:.{digits}f}%"


def _uri(picture: Figure | np.ndarray) -> str:
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
    return f"data:image/{kind};base64,{base64.b64encode(file.getvalue()).decode('ascii')}"
