"""Generate the surfaces of a scene: textures, skins and backdrops."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from sam2kit.data.pictures import image_size
from sam2kit.utils.errors import DataError

# Fractional bits of the fixed-point coordinates passed to fillPoly: 1/16 of a pixel.
SHIFT = 4


class Photos:
    """Provide crops of image files as surfaces of lifelike scenes.

    Args:
        folder: folder with JPEG, PNG or WebP files, also in its subfolders.

    Raises:
        DataError: no image in the folder; on reading, an image that cannot be read.
    """

    ENDINGS = (".jpg", ".jpeg", ".png", ".webp")

    def __init__(self, folder: str | Path) -> None:
        folder = Path(folder)
        self.files = sorted(p for p in folder.rglob("*") if p.suffix.lower() in self.ENDINGS)
        if not self.files:
            raise DataError(
                f"{folder} contains no image ({', '.join(self.ENDINGS)})",
                key="dataset.synthetic_photos",
                value=str(folder),
                hint="give a folder with images, or null to generate all surfaces",
            )

    def crop(self, generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
        """Draw a random crop of a random image, mirrored or not: ``[*size,3]`` uint8 RGB."""
        picture = _read_photo(self.files[int(generator.integers(len(self.files)))])
        h, w = picture.shape[:2]
        scale = generator.uniform(0.3, 1.0) * min(h / size[0], w / size[1])
        rows, columns = (max(1, round(scale * n)) for n in size)
        y, x = generator.integers(h - rows + 1), generator.integers(w - columns + 1)
        part = picture[y : y + rows, x : x + columns]
        part = part[:, :: int(generator.choice([-1, 1]))]
        interpolation = cv2.INTER_AREA if rows > size[0] else cv2.INTER_LINEAR
        return cv2.resize(np.ascontiguousarray(part), size[::-1], interpolation=interpolation)


@lru_cache(maxsize=256)
def _read_photo(path: Path) -> np.ndarray:
    """Read an image as RGB, with a shorter side of up to 512 pixels.

    The limit bounds the memory of the cache.
    """
    image_size(path)  # checks the limit of pixels
    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise DataError(f"{path} cannot be read as an image", hint="replace the file or delete it")
    scale = min(1.0, 512 / min(picture.shape[:2]))
    picture = cv2.resize(picture, None, fx=scale, fy=scale, interpolation=cv2.INTER_AREA)
    return cv2.cvtColor(picture, cv2.COLOR_BGR2RGB)


def draw_texture(
    generator: np.random.Generator, size: tuple[int, int], avoid: list[np.ndarray] | None = None
) -> np.ndarray:
    """Draw a texture of two or three colours, mixed by noise and perhaps a pattern.

    Args:
        generator: source of all random values.
        size: rows and columns.
        avoid: mean colours ``[3]``, 0 to 255, from which the mean colour should differ. None
            (default): no such colours.

    Returns:
        ``[*size,3]`` uint8 RGB.
    """
    h, w = size
    # With six attempts, a texture similar to an avoided colour is rare, but not impossible.
    for _ in range(6):
        palette = _palette(generator)
        if all(np.linalg.norm(palette.mean(0) - colour) > 60 for colour in avoid or []):
            break
    mix = _noise(generator, size)
    if generator.random() < 0.6:
        mix = 0.35 * mix + 0.65 * _pattern(generator, size)
    position = np.clip(mix, 0, 1)[..., None] * (len(palette) - 1)
    colours = sum(np.clip(1 - np.abs(position - k), 0, 1) * palette[k] for k in range(len(palette)))
    y, x = np.linspace(-1, 1, h, dtype=np.float32)[:, None], np.linspace(-1, 1, w, dtype=np.float32)
    direction = generator.uniform(0, 2 * np.pi)
    shade = 1 + generator.uniform(0, 0.3) * (np.cos(direction) * x + np.sin(direction) * y)
    return np.clip(np.round(colours * shade[..., None]), 0, 255).astype(np.uint8)


def draw_backdrop(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draw a texture of 1.5 times the frame size with static shapes, as a background."""
    h, w = (round(1.5 * n) for n in size)
    picture = draw_texture(generator, (h, w))
    for _ in range(int(generator.integers(0, 7))):
        angles = np.sort(generator.uniform(0, 2 * np.pi, int(generator.integers(3, 9))))
        r = min(size) * generator.uniform(0.05, 0.3, len(angles))
        center = generator.uniform(0, 1, 2) * (w, h)
        points = center + np.stack([r * np.cos(angles), r * np.sin(angles)], 1)
        colour = picture.mean((0, 1)) + generator.normal(0, 40, 3)
        fixed = np.round(points * (1 << SHIFT)).astype(np.int32)
        cv2.fillPoly(picture, [fixed], np.clip(colour, 0, 255).tolist(), cv2.LINE_AA, SHIFT)
    return picture


def draw_skin(
    generator: np.random.Generator,
    size: tuple[int, int],
    avoid: list[np.ndarray] | None = None,
    photos: Photos | None = None,
) -> np.ndarray:
    """Draw a surface of one to four parts of different colours over a common relief.

    It is lit from one side. The parts are Voronoi cells with irregular borders. With ``photos``,
    two of three surfaces are a crop of an image instead, lit in the same way.

    Args:
        generator, size, avoid: as for :func:`draw_texture`.
        photos: images to crop. None (default): the colours are generated.

    Returns:
        ``[*size,3]`` uint8 RGB.
    """
    h, w = size
    relief = _noise(generator, size)
    mix = relief if generator.random() < 0.5 else 0.5 * relief + 0.5 * _pattern(generator, size)
    parts = int(generator.integers(1, 5))
    tables = [_color_table(generator, avoid or []) for _ in range(parts)]
    index = np.clip(mix * 255, 0, 255).astype(np.uint8)
    colours = np.stack(tables)[_cells(generator, relief, parts), index]
    if photos is not None and generator.random() < 2 / 3:
        colours = photos.crop(generator, size).astype(np.float32)
    y = np.linspace(-1, 1, h, dtype=np.float32)[:, None]
    x = np.linspace(-1, 1, w, dtype=np.float32)
    light = generator.uniform(0, 2 * np.pi)
    c, s = np.float32(np.cos(light)), np.float32(np.sin(light))
    slope = c * cv2.Sobel(relief, -1, 1, 0) + s * cv2.Sobel(relief, -1, 0, 1)
    shade = 1 + np.float32(generator.uniform(0, 0.5)) * np.clip(slope, -1, 1)
    shade *= 1 + np.float32(generator.uniform(0, 0.4)) * (c * x + s * y)
    return cv2.convertScaleAbs(colours * shade[..., None])


def _cells(generator: np.random.Generator, relief: np.ndarray, parts: int) -> np.ndarray:
    """Draw ``[H,W]`` from 0 to ``parts`` - 1: Voronoi cells of as many random points.

    The relief is added to the distances, which makes the borders of the cells irregular.
    """
    h, w = relief.shape
    y, x = np.arange(h, dtype=np.float32)[:, None], np.arange(w, dtype=np.float32)
    roughness = generator.uniform(0, 0.15) * h * w
    nearest = np.full((h, w), np.inf, np.float32)
    cells = np.zeros((h, w), np.uint8)
    for part in range(parts):
        py, px = (generator.uniform(0.15, 0.85, 2) * (h, w)).astype(np.float32)
        distance = (y - py) ** 2 + (x - px) ** 2
        distance += np.float32(roughness * generator.uniform(-1, 1)) * relief
        cells[distance < nearest] = part
        np.minimum(nearest, distance, out=nearest)
    return cells


def _color_table(generator: np.random.Generator, avoid: list[np.ndarray]) -> np.ndarray:
    """Draw ``[256,3]`` float32: a gradient through a palette of mostly muted colours."""
    for _ in range(6):
        palette = _palette(generator)
        grey = palette.mean(1, keepdims=True)
        palette = grey + np.float32(generator.uniform(0.05, 0.9)) * (palette - grey)
        if all(np.linalg.norm(palette.mean(0) - colour) > 25 for colour in avoid):
            break
    return cv2.resize(palette[:, None], (1, 256), interpolation=cv2.INTER_LINEAR)[:, 0]


def draw_scenery(
    generator: np.random.Generator, size: tuple[int, int], photos: Photos | None = None
) -> np.ndarray:
    """Draw a surface of 1.5 times the frame size with static shapes of other surfaces.

    It is the background of lifelike scenes.
    """
    h, w = (round(1.5 * n) for n in size)
    picture = draw_skin(generator, (h, w), photos=photos)
    # Two surfaces at half the resolution serve all shapes, because drawing one is slow.
    donors = [draw_skin(generator, (h // 2, w // 2), photos=photos) for _ in range(2)]
    donors = [cv2.resize(donor, (w, h)) for donor in donors]
    for _ in range(int(generator.integers(2, 12))):
        angles = np.sort(generator.uniform(0, 2 * np.pi, int(generator.integers(3, 12))))
        r = min(size) * generator.uniform(0.04, 0.35) * generator.uniform(0.5, 1, len(angles))
        center = generator.uniform(0, 1, 2) * (w, h)
        long = np.exp(generator.uniform(-0.7, 0.7))
        points = center + np.stack([long * r * np.cos(angles), r / long * np.sin(angles)], 1)
        region = np.zeros((h, w), np.uint8)
        cv2.fillPoly(region, [np.round(points).astype(np.int32)], 1)
        donor = donors[int(generator.integers(2))]
        tint = generator.uniform(0.6, 1.4, 3)
        inside = region > 0
        picture[inside] = np.clip(donor[inside] * tint, 0, 255)
    return picture


def _palette(generator: np.random.Generator) -> np.ndarray:
    """Draw ``[K,3]`` float32 RGB, 0 to 255: two or three related colours."""
    count = int(generator.integers(2, 4))
    hue = (generator.uniform(0, 180) + generator.normal(0, 20, count)) % 180
    saturation = generator.uniform(30, 255) + generator.normal(0, 30, count)
    value = generator.uniform(60, 230) + np.linspace(-60, 60, count) * generator.choice([-1, 1])
    hsv = np.stack([hue, np.clip(saturation, 0, 255), np.clip(value, 20, 255)], 1)
    return cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0].astype(np.float32)


def _noise(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draw ``size`` float32, about 0 to 1: octaves of noise, each half as strong as the one before.

    The number of grid cells doubles with each octave.
    """
    h, w = size
    total = np.zeros(size, np.float32)
    cells = int(generator.integers(2, 5))
    octaves = max(3, int(np.log2(min(size) / cells)) - 1)  # down to cells of two to four pixels
    for octave in range(octaves):
        n = cells * 2**octave
        grid = generator.standard_normal((n + 2, n + 2), np.float32)
        total += cv2.resize(grid, (w, h), interpolation=cv2.INTER_CUBIC) * np.float32(0.5**octave)
    return 0.5 + 0.3 * total


def _pattern(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """Draw ``size`` float32, 0 to 1: stripes, checks, dots or a gradient at a random angle."""
    h, w = size
    y, x = np.mgrid[0:h, 0:w].astype(np.float32)
    angle = generator.uniform(0, np.pi)
    waves = 2 * np.pi * generator.uniform(2, 5) / min(size)
    u = waves * (np.cos(angle) * x + np.sin(angle) * y) + np.float32(generator.uniform(0, 6))
    v = waves * (np.cos(angle) * y - np.sin(angle) * x) + np.float32(generator.uniform(0, 6))
    kind = int(generator.integers(4))
    if kind == 0:
        return 0.5 + 0.5 * np.clip(3 * np.sin(u), -1, 1)
    if kind == 1:
        return 0.5 + 0.5 * np.clip(4 * np.sin(u) * np.sin(v), -1, 1)
    if kind == 2:
        return np.clip(1.5 + 2 * np.cos(u) + 2 * np.cos(v), 0, 1)
    return (np.cos(angle) * x / w + np.sin(angle) * y / h + 1) / 2
