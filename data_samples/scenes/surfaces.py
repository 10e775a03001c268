"""Draw the textures of a scene: floors, walls, skies, fur and clothes."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from sam2kit.data.synthetic.textures import Photos

from .figures import package_folder

# Two to four colours per material, from dark to light.
PALETTES = {
    "grass": [(38, 58, 22), (84, 108, 42), (132, 150, 70), (160, 158, 96)],
    "earth": [(58, 42, 30), (112, 86, 60), (158, 130, 98), (186, 166, 134)],
    "sand": [(142, 118, 84), (190, 166, 126), (222, 204, 168)],
    "asphalt": [(52, 52, 54), (84, 84, 86), (122, 122, 122)],
    "snow": [(190, 198, 212), (226, 230, 238), (250, 250, 252)],
    "wood": [(72, 44, 26), (126, 82, 48), (178, 128, 82)],
    "concrete": [(110, 108, 104), (152, 150, 144), (190, 188, 180)],
    "brick": [(96, 44, 34), (142, 70, 52), (176, 108, 84)],
    "paint": [(150, 160, 160), (198, 200, 190), (232, 230, 222)],
    "water": [(16, 50, 66), (36, 92, 108), (92, 152, 160)],
    "leaves": [(24, 44, 18), (54, 84, 32), (104, 128, 54)],
    "cloth": [(48, 54, 88), (92, 84, 112), (172, 150, 140)],
}
COATS = [
    [(40, 28, 20), (92, 62, 40), (140, 100, 66)],  # brown
    [(24, 24, 26), (50, 48, 48), (84, 80, 78)],  # black
    [(120, 88, 52), (184, 144, 92), (222, 194, 150)],  # fawn
    [(92, 92, 96), (142, 142, 146), (196, 196, 198)],  # grey
    [(150, 140, 126), (212, 204, 192), (246, 242, 236)],  # white
    [(96, 44, 18), (160, 82, 36), (206, 132, 74)],  # red
]


def noise(rng: np.random.Generator, size: int, first: int = 3, decay: float = 0.6) -> np.ndarray:
    """Return smooth, tileable noise ``[size,size]`` from 0 to 1 as a sum of octaves."""
    total = np.zeros((size, size), np.float32)
    cells, weight = first, 1.0
    while cells < size // 2:
        grid = rng.random((cells, cells), dtype=np.float32)
        grid = np.pad(grid, ((0, 3), (0, 3)), mode="wrap")
        step = size / cells
        wide = cv2.resize(grid, None, fx=step, fy=step, interpolation=cv2.INTER_CUBIC)
        offset = int(step)
        total += weight * wide[offset : offset + size, offset : offset + size]
        cells, weight = cells * 2, weight * decay
    low, high = np.percentile(total, [2, 98])
    return np.clip((total - low) / (high - low + 1e-6), 0, 1)


def colour_map(values: np.ndarray, colours: list[tuple[int, int, int]]) -> np.ndarray:
    """Map values from 0 to 1 to interpolated colours ``[...,3]`` float32."""
    at = np.linspace(0, 1, len(colours))
    table = np.array(colours, np.float32)
    return np.stack([np.interp(values, at, table[:, c]) for c in range(3)], -1).astype(np.float32)


def _pattern(rng: np.random.Generator, size: int, name: str) -> np.ndarray:
    """Return the relief of bricks, planks or tiles, 0 (joint) to 1, with a tone for each piece."""
    rows = int(rng.choice([4, 8, 16]))
    columns = {"brick": rows // 2, "wood": 2, "tile": rows}[name]
    y = np.arange(size) * rows / size
    row = y.astype(int)
    shift = (row % 2) * 0.5 if name != "tile" else np.zeros(size)
    x = np.arange(size)[None] * columns / size + shift[:, None]
    column = x.astype(int) % columns
    tone = rng.random((rows, columns))[row[:, None], column]
    width = 0.06
    joint = ((y % 1) < width * 1.5)[:, None] | ((x % 1) < width * columns / rows)
    return np.where(joint, 0.0, 0.35 + 0.6 * tone).astype(np.float32)


def draw_ground(rng: np.random.Generator, size: int, indoors: bool) -> np.ndarray:
    """Draw a tileable floor or ground ``[size,size,3]`` uint8."""
    outside = ["grass", "earth", "sand", "asphalt", "snow", "concrete", "grass", "water"]
    inside = ["wood", "tile", "concrete", "cloth", "wood", "paint"]
    name = str(rng.choice(inside if indoors else outside))
    return draw_material(rng, size, name)


def draw_material(rng: np.random.Generator, size: int, name: str) -> np.ndarray:
    """Draw a named material (a key of ``PALETTES``, or ``tile``): ``[size,size,3]`` uint8."""
    colours = PALETTES["paint" if name == "tile" else name]
    fine = noise(rng, size, int(rng.integers(4, 24)), 0.85)
    coarse = noise(rng, size, 2, 0.5)
    if name in ("brick", "wood", "tile"):
        values = 0.65 * _pattern(rng, size, name) + 0.2 * fine + 0.15 * coarse
        if name == "wood":  # the grain runs along the planks
            grain = cv2.blur(noise(rng, size, 32, 0.9), (size // 6, 1))
            values = 0.6 * values + 0.4 * (grain - grain.min()) / (np.ptp(grain) + 1e-6)
    else:
        values = rng.uniform(0.4, 0.8) * fine + rng.uniform(0.2, 0.6) * coarse
    picture = colour_map(np.clip(values, 0, 1), colours)
    picture = picture * rng.uniform(0.75, 1.2) + rng.normal(0, 10, 3)
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_coat(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw fur or skin, with spots, stripes or a pale belly: ``[size,size,3]`` uint8."""
    colours = COATS[int(rng.integers(len(COATS)))]
    hair = noise(rng, size, 48, 0.9)
    picture = colour_map(0.3 + 0.4 * noise(rng, size, 3) + 0.3 * hair - 0.1, colours)
    kind = rng.random()
    if kind < 0.35:  # patches
        other = colour_map(hair, COATS[int(rng.integers(len(COATS)))])
        share = rng.uniform(0.35, 0.65)
        edge = noise(rng, size, int(rng.integers(2, 12)), 0.4)
        mix = np.clip((edge - share) * 12, 0, 1)[..., None]
        picture = picture * (1 - mix) + other * mix
    elif kind < 0.5:  # stripes
        x = np.linspace(0, 2 * np.pi, size)[None]
        bands = np.sin(rng.integers(5, 18) * x + 5 * noise(rng, size, 3))
        picture = picture * (0.6 + 0.4 * np.clip(bands * 3, -1, 1))[..., None]
    elif kind < 0.7:  # pale below, dark on the back
        y = np.linspace(1.35, 0.6, size)[:, None, None]
        picture = picture * y
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_cloth(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw painted, woven or printed material: ``[size,size,3]`` uint8."""
    base = rng.uniform(20, 235, 3)
    if rng.random() < 0.4:
        base = base.mean() + 0.3 * (base - base.mean())
    other = np.clip(base + rng.normal(0, 70, 3), 5, 250)
    kind = rng.random()
    if kind < 0.35:
        mix = 0.3 * noise(rng, size, 4)
    elif kind < 0.6:
        axis = np.linspace(0, 2 * np.pi * rng.integers(2, 14), size)
        mix = np.broadcast_to(
            (np.sin(axis) > rng.uniform(-0.6, 0.6)).astype(np.float32), (size, size)
        )
        mix = mix if rng.random() < 0.5 else mix.T
    elif kind < 0.75:
        axis = np.linspace(0, 2 * np.pi * rng.integers(2, 8), size)
        mix = ((np.sin(axis)[:, None] * np.sin(axis)) > 0).astype(np.float32)
    else:
        mix = (noise(rng, size, int(rng.integers(3, 10)), 0.5) > 0.5).astype(np.float32)
    weave = 0.85 + 0.15 * noise(rng, size, 40, 0.9)
    picture = (base + (other - base) * mix[..., None]) * weave[..., None]
    return np.clip(picture, 0, 255).astype(np.uint8)


def draw_sky(rng: np.random.Generator, size: int) -> np.ndarray:
    """Draw the six faces of a sky, one below the other: ``[6*size,size,3]`` uint8."""
    tops = [(70, 120, 200), (120, 150, 190), (150, 160, 175), (220, 150, 120), (40, 50, 80)]
    top = np.array(tops[int(rng.integers(len(tops)))], np.float32) + rng.normal(0, 12, 3)
    horizon = 0.35 * top + 0.65 * np.array([225, 225, 220]) + rng.normal(0, 10, 3)
    clouds = noise(rng, size, 3, 0.55)
    cover = rng.uniform(0.2, 0.9)
    mix = np.clip((clouds - 1 + cover) * 3, 0, 0.9)[..., None]
    white = np.array([240, 240, 242], np.float32) * rng.uniform(0.7, 1)
    height = np.clip(np.linspace(1.6, -0.2, size), 0, 1)[:, None, None]
    side = horizon + (top - horizon) * height
    side = side + (white - side) * mix * height
    up = top + (white - top) * mix
    down = np.broadcast_to(horizon * 0.6, side.shape)
    # MuJoCo's order of the faces: right, left, up, down, front, back.
    faces = [side, side[:, ::-1], up, down, side[:, ::-1], side]
    return np.clip(np.concatenate(faces), 0, 255).astype(np.uint8)


class Surfaces:
    """Draw textures, or crop them from photographs if there is a directory of photographs."""

    def __init__(self, photos: Path | None) -> None:
        self.photos = Photos(photos) if photos else None

    def photo(self, rng: np.random.Generator, size: int, tiles: bool = False) -> np.ndarray | None:
        """Return a crop of a photograph ``[size,size,3]``, or None without photographs."""
        if self.photos is None:
            return None
        if not tiles:
            return self.photos.crop(rng, (size, size))
        half = self.photos.crop(rng, (size // 2, size // 2))
        return np.concatenate([np.concatenate([half, half[:, ::-1]], 1)] * 2)[
            np.r_[0 : size // 2, size - 1 : size // 2 - 1 : -1]
        ]

    def ground(
        self, rng: np.random.Generator, size: int, indoors: bool, material: str | None = None
    ) -> np.ndarray:
        """Return a tileable floor, of the given material if there is one."""
        if material:
            return draw_material(rng, size, material)
        picture = self.photo(rng, size, tiles=True) if rng.random() < 0.5 else None
        return draw_ground(rng, size, indoors) if picture is None else picture

    def wall(
        self, rng: np.random.Generator, size: int, indoors: bool, material: str | None = None
    ) -> np.ndarray:
        """Return a wall or the background of a scene, of the given material if there is one."""
        if material:
            return draw_material(rng, size, material)
        picture = self.photo(rng, size) if rng.random() < 0.75 else None
        if picture is not None:
            return picture
        inside = ["paint", "brick", "wood", "tile", "cloth", "concrete"]
        name = str(rng.choice(inside if indoors else ["leaves", "concrete", "brick", "earth"]))
        return draw_material(rng, size, name)

    def block(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Return the texture of a static object."""
        picture = self.photo(rng, size) if rng.random() < 0.4 else None
        if picture is not None:
            return picture
        return draw_material(rng, size, str(rng.choice([*PALETTES, "tile"])))

    def coat(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Return fur, cloth or paint of a figure."""
        kind = rng.random()
        picture = self.photo(rng, size) if kind < 0.12 else None
        if picture is not None:
            return picture
        return draw_coat(rng, size) if kind < 0.6 else draw_cloth(rng, size)

    def clothes(self, rng: np.random.Generator, size: int, tone: np.ndarray) -> np.ndarray:
        """Return shirt, trousers and shoes in the layout of the person's texture.

        Args:
            rng: Source of all random values.
            size: Side length of the texture.
            tone: Colour of the skin, for bare legs.
        """
        if rng.random() < 0.25:
            folder = package_folder("dm_control") / "locomotion/soccer/assets/humanoid"
            name = f"{rng.choice(['B', 'R'])}_{rng.integers(1, 12):02d}.png"
            picture = _read(folder / name, size)
            mix = np.eye(3)[rng.permutation(3)]
            return np.clip(30 + picture @ mix * rng.uniform(0.7, 1.3), 0, 255).astype(np.uint8)

        def cloth() -> np.ndarray:
            picture = self.photo(rng, size) if rng.random() < 0.1 else None
            return draw_cloth(rng, size) if picture is None else picture

        picture, trousers = cloth(), cloth()
        legs = trousers if rng.random() < 0.4 else np.clip(tone, 0, 255).astype(np.uint8)
        shoes = rng.uniform(20, 230, 3).astype(np.uint8)
        low, right = round(0.68 * size), round(0.41 * size)
        picture[low:] = trousers[low:]
        picture[round(0.5 * size) : low, right:] = shoes
        boxes = [(0.34, 0.59, 0.41, 0.63), (0.12, 0.38, 0.77, 1.0)]  # lower legs
        for top, bottom, left, end in boxes:
            part = tuple(
                slice(round(a * size), round(b * size)) for a, b in ((top, bottom), (left, end))
            )
            picture[part] = legs[part] if legs.ndim == 3 else legs
        return picture

    def dog(self, rng: np.random.Generator, size: int) -> np.ndarray:
        """Return a dog's coat: the model's own, tinted, or another one with the same shading."""
        texture = _read(package_folder("dm_control") / "suite/dog_assets/skin_texture.png", size)
        light = texture.mean(-1, keepdims=True) / texture.mean()
        if rng.random() < 0.3:
            picture = texture * rng.uniform(0.35, 1.1) * (1 + rng.normal(0, 0.12, 3))
        else:
            picture = self.coat(rng, size) * light
        return np.clip(picture, 0, 255).astype(np.uint8)


@lru_cache(maxsize=32)
def _read(path: Path, size: int) -> np.ndarray:
    picture = cv2.cvtColor(cv2.imread(str(path)), cv2.COLOR_BGR2RGB)
    return cv2.resize(picture, (size, size), interpolation=cv2.INTER_AREA).astype(np.float32)
