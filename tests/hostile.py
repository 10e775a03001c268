"""Hostile names and data: they try to run code, crash a renderer or mislead a reader."""

from __future__ import annotations

import json
from pathlib import Path

from data_helpers import make_coco, save_json

# Each of these sets ``window.ran`` if its code runs.
IMAGE = "<img src=x onerror=\"window.ran='image'\">"
LINK = "[x](javascript:window.ran='link') *b* _i_ `c` | # ~~s~~"
SCRIPT = "</script></title></textarea><script>window.ran='script'</script>"
ATTRIBUTE = "\"' onmouseover=\"window.ran='attribute'\" autofocus onfocus='window.ran=1'"
TEX = r"$\frac{1$ and $x^2$, \(y\)"
LONG = "long" + "n" * 10_000
DIRECTION = "abc\u202egpj.exe\u2066\u200f\x1b[2J\nnext"
NAMES = (IMAGE, LINK, SCRIPT, ATTRIBUTE, TEX, LONG, DIRECTION)
SHOWN = (
    IMAGE,
    LINK,
    SCRIPT,
    ATTRIBUTE,
    TEX,
)  # displayed unchanged


def write_videos(root: Path) -> Path:
    """Write a COCO JSON whose videos and objects have hostile names."""
    names = {f"v{n}": name for n, name in enumerate(NAMES)}
    content = make_coco(root, 3, tuple(names))
    for image in content["images"]:
        image["video_id"] = names[image["video_id"]]
    for annotation in content["annotations"]:
        annotation["track_id"] = {3: IMAGE, "cat": TEX}[annotation["track_id"]]
    return save_json(root / "labels.json", content)


def write_runs(root: Path, evaluated: Path) -> list[str]:
    """Write a run on other videos and a sweep; return paths for ``05_compare_runs``."""
    metrics = json.loads((evaluated / "metrics.json").read_text())
    metrics["videos"] = {}
    other = root / IMAGE.replace("/", "")
    save_json(other / "metrics.json", metrics)
    trial = {"rank": None, "J&F": None, "J&F_interval": None, "state": "failed"}
    trials = [trial | {"name": name, "error": name} for name in NAMES]
    save_json(root / "sweep" / "leaderboard.json", {"schema_version": 1, "trials": trials})
    return [str(evaluated), str(root)]
