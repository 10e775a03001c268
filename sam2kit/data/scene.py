"""Generated objects that move, deform and hide one another: the picture and the true masks.

A :class:`Scene` is drawn once from a generator; every frame of it follows from the scene and the
frame's number, so frames can be rendered in any order. NumPy and OpenCV only.
"""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

# Angles at which contours are evaluated: enough that the polygon's corners do not show.
_ANGLES = np.linspace(0, 2 * np.pi, 64, endpoint=False)
# fillPoly takes fixed-point coordinates: four binary digits are a sixteenth of a pixel.
_SHIFT = 4


@dataclass
class Shape:
    """A textured closed contour and its path through the video.

    The contour is a polar Fourier series, ``r(a, t) = 1 + sum_k amplitude_k cos(k a + phase_k +
    rate_k t)``, stretched, turned and placed anew on every frame.

    Attributes:
        texture: ``[S,S,3]`` uint8, moves with the contour.
        radius: mean radius in pixels.
        stretch: ratio of the two axes, as a factor on one and a divisor of the other.
        amplitudes, phases, rates: ``[K]``, for harmonics 2 to K+1; rates in radians a frame.
        centers: ``[T,2]`` x, y in pixels.
        angles: ``[T]`` radians.
        scales: ``[T]`` factors on the radius.
        is_object: False for a distractor, which hides objects but has no mask.
    """

    texture: np.ndarray
    radius: float
    stretch: float
    amplitudes: np.ndarray
    phases: np.ndarray
    rates: np.ndarray
    centers: np.ndarray
    angles: np.ndarray
    scales: np.ndarray
    is_object: bool

    def transform(self, t: int) -> np.ndarray:
        """``[2,3]``: from the shape's own units (radius 1 around 0, 0) to pixels on frame t."""
        c, s = np.cos(self.angles[t]), np.sin(self.angles[t])
        size = self.radius * self.scales[t]
        axes = np.array(
            [[c * self.stretch, -s / self.stretch], [s * self.stretch, c / self.stretch]]
        )
        return np.column_stack([size * axes, self.centers[t]])

    def contour(self, t: int) -> np.ndarray:
        """``[N,2]`` x, y in pixels on frame t."""
        k = np.arange(2, len(self.amplitudes) + 2)[:, None]
        waves = np.cos(k * _ANGLES + (self.phases + self.rates * t)[:, None])
        r = np.maximum(1 + self.amplitudes @ waves, 0.25)
        points = np.stack([r * np.cos(_ANGLES), r * np.sin(_ANGLES), np.ones_like(r)])
        return (self.transform(t) @ points).T


class Scene:
    """Objects and distractors in depth order, and possibly a background behind them.

    Args:
        generator: where everything random comes from.
        num_frames: T.
        size: rows and columns in pixels.
        max_objects: the number of objects is drawn from 1 to this.
        max_distractors: the number of shapes without a mask is drawn from 0 to this.
        motion: mean way of an object on one frame as a share of its diameter. At 0.14 the
            mask of the first of eight frames, copied to the others, scores a mean IoU of about 0.3.
        background: generate a background; without one, :meth:`frame` must be given the frame.
    """

    def __init__(
        self,
        generator: np.random.Generator,
        num_frames: int,
        size: tuple[int, int],
        max_objects: int = 3,
        max_distractors: int = 2,
        motion: float = 0.14,
        background: bool = True,
    ) -> None:
        self.size = size
        self.backdrop = draw_backdrop(generator, size) if background else None
        self.camera = _camera_path(generator, num_frames, size, motion)
        self.shapes = self._draw_shapes(generator, num_frames, max_objects, max_distractors, motion)
        self.object_ids = {
            k: n for n, k in enumerate([k for k, s in enumerate(self.shapes) if s.is_object], 1)
        }
        self.light = 1 + 0.08 * _waves(generator, num_frames)
        self.blur = generator.uniform(0, 0.7) if generator.random() < 0.5 else 0.0
        self.noise = generator.uniform(0, 5)
        self.noise_seed = int(generator.integers(2**31))

    def _draw_shapes(
        self,
        generator: np.random.Generator,
        num_frames: int,
        max_objects: int,
        max_distractors: int,
        motion: float,
    ) -> list[Shape]:
        objects = int(generator.integers(1, max_objects + 1))
        distractors = int(generator.integers(0, max_distractors + 1))
        is_object = generator.permutation([True] * objects + [False] * distractors)
        avoid = [] if self.backdrop is None else [self.backdrop.mean((0, 1))]
        shapes: list[Shape] = []
        for k in range(len(is_object)):
            shape = draw_shape(generator, num_frames, self.size, motion, avoid, bool(is_object[k]))
            if shapes and generator.random() < 0.15:  # a look-alike: only its place tells it apart
                other = shapes[int(generator.integers(len(shapes)))].texture
                shape.texture = cv2.resize(other, shape.texture.shape[:2])
            avoid.append(shape.texture.mean((0, 1)))
            shapes.append(shape)
        return shapes

    def masks(self, t: int) -> dict[int, np.ndarray]:
        """The visible part of each object on frame t: ``[H,W]`` bool by object, from 1 up.

        Depth says who hides whom. Objects wholly hidden are left out.
        """
        top = np.zeros(self.size, np.uint8)  # the number of the front shape, counted from 1
        for k, shape in enumerate(self.shapes):
            rows, columns, alpha = self._coverage(shape, t)
            top[rows, columns][alpha >= 128] = k + 1
        found = {n: top == k + 1 for k, n in self.object_ids.items()}
        return {n: mask for n, mask in found.items() if mask.any()}

    def frame(self, t: int, behind: np.ndarray | None = None) -> np.ndarray:
        """Frame t: ``[H,W,3]`` uint8 RGB, in front of ``behind`` if that is given.

        A given frame keeps its own light, blur and noise; only the shapes are laid over it.
        """
        h, w = self.size
        if behind is None:
            if self.backdrop is None:
                raise ValueError("this scene has no background: give the frame that lies behind")
            picture = cv2.warpAffine(
                self.backdrop,
                self.camera[t],
                (w, h),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT_101,
            )
        else:
            picture = behind.copy()
        for shape in self.shapes:
            self._lay(picture, shape, t)
        return picture if behind is not None else self._photograph(picture, t)

    def _coverage(self, shape: Shape, t: int) -> tuple[slice, slice, np.ndarray]:
        """The box of a shape within the frame, and how much of each of its pixels it covers.

        Returns:
            rows, columns, and ``[h,w]`` uint8 from 0 to 255; an empty box if it left the frame.
        """
        points = shape.contour(t)
        low = np.floor(points.min(0)).astype(int) - 1
        high = np.ceil(points.max(0)).astype(int) + 2
        x0, y0 = np.maximum(low, 0)
        x1, y1 = np.minimum(high, self.size[::-1])
        if x1 <= x0 or y1 <= y0:
            return slice(0, 0), slice(0, 0), np.zeros((0, 0), np.uint8)
        alpha = np.zeros((y1 - y0, x1 - x0), np.uint8)
        fixed = np.round((points - (x0, y0)) * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(alpha, [fixed], 255, cv2.LINE_AA, _SHIFT)
        return slice(y0, y1), slice(x0, x1), alpha

    def _lay(self, picture: np.ndarray, shape: Shape, t: int) -> None:
        rows, columns, alpha = self._coverage(shape, t)
        if not alpha.size:
            return
        side = shape.texture.shape[0]
        to_pixels = shape.transform(t)
        # The texture spans the square from -1.6 to 1.6 in the shape's own units.
        from_texture = np.array([[3.2 / side, 0, -1.6], [0, 3.2 / side, -1.6], [0, 0, 1]])
        placed = to_pixels @ from_texture
        placed[:, 2] -= (columns.start, rows.start)
        skin = cv2.warpAffine(
            shape.texture,
            placed,
            alpha.shape[::-1],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        share = alpha[..., None].astype(np.float32) / 255
        below = picture[rows, columns]
        picture[rows, columns] = np.round(below + share * (skin.astype(np.float32) - below))

    def _photograph(self, picture: np.ndarray, t: int) -> np.ndarray:
        """Light, blur and sensor noise of frame t."""
        if self.blur:
            picture = cv2.GaussianBlur(picture, (0, 0), self.blur + 0.1)
        generator = np.random.default_rng((self.noise_seed, t))
        lit = picture.astype(np.float32) * np.float32(self.light[t])
        lit += np.float32(self.noise) * generator.standard_normal(picture.shape, np.float32)
        return np.clip(np.round(lit), 0, 255).astype(np.uint8)


def draw_shape(
    generator: np.random.Generator,
    num_frames: int,
    size: tuple[int, int],
    motion: float,
    avoid: list[np.ndarray],
    is_object: bool,
) -> Shape:
    """A shape whose radius is 0.1 to 0.2 of the frame's shorter side and whose path stays inside.

    ``avoid`` are mean colours (``[3]``, 0 to 255) that its texture keeps away from.
    """
    radius = min(size) * generator.uniform(0.10, 0.20)
    harmonics = 5
    smoothness = generator.uniform(1.0, 2.0)  # how fast higher harmonics fade: lobes or ripples
    amplitudes = generator.uniform(0.1, 0.4) / np.arange(1, harmonics + 1) ** smoothness
    turn = generator.normal(0, 0.8 * motion)  # radians a frame
    return Shape(
        texture=draw_texture(generator, (max(16, round(3.2 * radius)),) * 2, avoid),
        radius=radius,
        stretch=float(np.exp(generator.uniform(-0.3, 0.3))),
        amplitudes=amplitudes,
        phases=generator.uniform(0, 2 * np.pi, harmonics),
        rates=generator.normal(0, 2.0 * motion, harmonics),
        centers=_path(generator, num_frames, size, 2 * radius * motion, margin=0.8 * radius),
        angles=generator.uniform(0, 2 * np.pi)
        + turn * np.arange(num_frames)
        + 0.3 * _waves(generator, num_frames),
        scales=np.exp(0.2 * _waves(generator, num_frames)),
        is_object=is_object,
    )


def draw_texture(
    generator: np.random.Generator, size: tuple[int, int], avoid: list[np.ndarray] | None = None
) -> np.ndarray:
    """``size + [3]`` uint8: two or three colours mixed by noise of several octaves or a pattern."""
    h, w = size
    for _ in range(6):  # enough tries that a texture near an avoided colour is rare, not impossible
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
    """A texture half as large again as the frame, with still shapes painted on it."""
    h, w = (round(1.5 * n) for n in size)
    picture = draw_texture(generator, (h, w))
    for _ in range(int(generator.integers(0, 7))):
        angles = np.sort(generator.uniform(0, 2 * np.pi, int(generator.integers(3, 9))))
        r = min(size) * generator.uniform(0.05, 0.3, len(angles))
        center = generator.uniform(0, 1, 2) * (w, h)
        points = center + np.stack([r * np.cos(angles), r * np.sin(angles)], 1)
        colour = picture.mean((0, 1)) + generator.normal(0, 40, 3)
        fixed = np.round(points * (1 << _SHIFT)).astype(np.int32)
        cv2.fillPoly(picture, [fixed], np.clip(colour, 0, 255).tolist(), cv2.LINE_AA, _SHIFT)
    return picture


def _palette(generator: np.random.Generator) -> np.ndarray:
    """``[K,3]`` RGB, 0 to 255: two or three colours, the later ones varied from the first."""
    count = int(generator.integers(2, 4))
    hue = (generator.uniform(0, 180) + generator.normal(0, 20, count)) % 180
    saturation = generator.uniform(30, 255) + generator.normal(0, 30, count)
    value = generator.uniform(60, 230) + np.linspace(-60, 60, count) * generator.choice([-1, 1])
    hsv = np.stack([hue, np.clip(saturation, 0, 255), np.clip(value, 20, 255)], 1)
    return cv2.cvtColor(hsv[None].astype(np.uint8), cv2.COLOR_HSV2RGB)[0].astype(np.float32)


def _noise(generator: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """``size`` float32, about 0 to 1: random grids of doubling fineness, each half as strong."""
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
    """``size`` float32, 0 to 1: stripes, checks, dots or a gradient, at some angle."""
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


def _waves(generator: np.random.Generator, num_frames: int) -> np.ndarray:
    """``[T]``, -1 to 1: a sum of two slow sines."""
    t = np.arange(num_frames)
    periods, phases = generator.uniform(8, 30, 2), generator.uniform(0, 2 * np.pi, 2)
    return 0.5 * np.sin(2 * np.pi * t[:, None] / periods + phases).sum(1)


def _path(
    generator: np.random.Generator,
    num_frames: int,
    size: tuple[int, int],
    step: float,
    margin: float,
) -> np.ndarray:
    """``[T,2]`` x, y: a curving way, ``step`` pixels a frame on average, folded into the frame."""
    heading = generator.uniform(0, 2 * np.pi) + generator.normal(0, 0.15) * np.arange(num_frames)
    heading = heading + _waves(generator, num_frames)
    speed = step * generator.uniform(0.5, 1.5) * (1 + 0.4 * _waves(generator, num_frames))
    steps = speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1)
    room = np.maximum(np.array(size[::-1]) - 2 * margin, 1.0)
    free = generator.uniform(0, 1, 2) * room + np.cumsum(steps, 0) - steps[0]
    return margin + room - np.abs(free % (2 * room) - room)  # as a ball bounces off the border


def _camera_path(
    generator: np.random.Generator, num_frames: int, size: tuple[int, int], motion: float
) -> np.ndarray:
    """``[T,2,3]``: from the frame's pixels to the backdrop's: drift, a little zoom and turn."""
    h, w = size
    drift = generator.normal(0, 0.04 * motion * min(size), 2) * np.arange(num_frames)[:, None]
    zoom = np.exp(0.1 * _waves(generator, num_frames))
    turn = 0.1 * _waves(generator, num_frames)
    c, s = zoom * np.cos(turn), zoom * np.sin(turn)
    axes = np.stack([np.stack([c, -s], 1), np.stack([s, c], 1)], 1)
    offset = 0.75 * np.array([w, h]) + drift - axes @ (np.array([w, h]) / 2)
    return np.concatenate([axes, offset[..., None]], 2)
