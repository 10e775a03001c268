"""Collect photographs for textures: ``python data_samples/collect_photos.py OUT``.

The photographs come from Debian packages, which are downloaded with ``apt-get download`` and
unpacked in a temporary directory; nothing is installed. All have free licences, listed in
docs/model_card.md. The shorter side of the images is scaled to 320 pixels. Requires Debian or
Ubuntu and about 2 GB of temporary disk space.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np

PACKAGES = [
    "supertuxkart-data",
    "mate-backgrounds",
    "gnome-backgrounds",
    "plasma-workspace-wallpapers",
    "ukui-wallpapers",
    "lomiri-wallpapers",
    "lomiri-wallpapers-16.04",
    "lomiri-wallpapers-20.04",
    "opencv-doc",
    "gcompris-qt-data",
]
ENDINGS = (".jpg", ".jpeg", ".png", ".webp")
MIN_BYTES, MAX_BYTES = 20_000, 3_500_000
SIDE = 320  # pixels of the shorter side
MAX_BLANK = 0.15  # maximum fraction of black or of white pixels
MIN_DEVIATION = 12.0  # minimum standard deviation of grey values; flat images are useless
# Shader maps, and images of user interfaces and manuals.
EXCLUDED = re.compile(
    r"/html/|/gui/|/icons/|normal|gloss|mask|_nm|font|logo|screenshot|preview|alpha|matte", re.I
)


def collect(out: Path, packages: list[str], downloads: Path | None = None) -> int:
    """Write the images of the packages to ``out`` and return their number.

    Args:
        out: Directory for the images, created if missing.
        packages: Names of Debian packages.
        downloads: Directory with downloaded .deb files. If None (default), download them.
    """
    out.mkdir(parents=True, exist_ok=True)
    seen: set[str] = set()
    for package in packages:
        with tempfile.TemporaryDirectory() as folder:
            here = Path(folder)
            if downloads is None:
                subprocess.run(["apt-get", "download", package], cwd=here, check=True)
            archive = next((downloads or here).glob(f"{package}_*.deb"))
            subprocess.run(["dpkg-deb", "-x", archive, here / "files"], check=True)
            for content in _images(here / "files"):
                digest = hashlib.sha256(content).hexdigest()[:16]
                picture = _scaled(content)
                if digest not in seen and picture is not None:
                    seen.add(digest)
                    path = out / f"{package}_{digest}.jpg"
                    cv2.imwrite(str(path), picture, [cv2.IMWRITE_JPEG_QUALITY, 92])
    return len(seen)


def _images(folder: Path) -> Iterator[bytes]:
    """Yield the contents of image files, including JPEGs in Qt resource files."""
    for path in sorted(folder.rglob("*")):
        if path.is_symlink() or not path.is_file():
            continue
        if path.suffix.lower() in ENDINGS and not EXCLUDED.search(str(path)):
            yield path.read_bytes()
        elif path.suffix == ".rcc":
            content = path.read_bytes()
            for match in re.finditer(b"\xff\xd8\xff[\xe0\xe1\xdb]", content):
                end = content.find(b"\xff\xd9", match.start())
                if end > 0:
                    yield content[match.start() : end + 2]


def _scaled(content: bytes) -> np.ndarray | None:
    """Decode and scale an image, or return None if it is unsuitable."""
    if not MIN_BYTES <= len(content) <= MAX_BYTES:
        return None
    picture = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_COLOR)
    if picture is None or min(picture.shape[:2]) < SIDE // 2 or picture.std() < MIN_DEVIATION:
        return None
    if (picture < 8).all(-1).mean() > MAX_BLANK or (picture > 247).all(-1).mean() > MAX_BLANK:
        return None  # a cut-out or a drawing
    scale = SIDE / min(picture.shape[:2])
    if scale >= 1:
        return picture
    return cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)


def main() -> None:
    """Parse the command line and collect."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("out", type=Path, help="folder to write to")
    parser.add_argument("--downloads", type=Path, help="folder with the .deb files (download them)")
    a = parser.parse_args()
    print(f"{collect(a.out, PACKAGES, a.downloads)} images in {a.out}")


if __name__ == "__main__":
    main()
