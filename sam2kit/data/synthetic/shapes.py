"""Draw the shapes of a generated scene: contours, limbs and their paths through the video."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from sam2kit.data.synthetic.textures import Photos, draw_skin, draw_texture

# Angles at which contours are evaluated: enough that the corners of the polygon are invisible.
_ANGLES = np.linspace(0, 2 * np.pi, 64, endpoint=False)


@dataclass
class Limb:
    """A thin part of two segments that swings about a point of the body and bends in the middle.

    Lengths and width are in units of the shape, angles in radians, ``rate`` in radians per frame.
    """

    angle: float
    lengths: tuple[float, float]
    width: float
    swing: float
    bend: float
    rate: float
    phase: float

    def segments(self, t: int) -> list[np.ndarray]:
        """Return the two segments on frame t as tapering quadrilaterals ``[4,2]``."""
        first = self.angle + self.swing * np.sin(self.rate * t + self.phase)
        second = first + self.bend * np.sin(self.rate * t + 2 * self.phase)
        start = 0.5 * np.array([np.cos(self.angle), np.sin(self.angle)])
        quads, width = [], self.width
        for angle, length in zip((first, second), self.lengths, strict=True):
            along = np.array([np.cos(angle), np.sin(angle)])
            side = np.array([-along[1], along[0]])
            end = start + length * along
            tip = 0.75 * width
            corners = (-width, start), (-tip, end), (tip, end), (width, start)
            quads.append(np.stack([point + offset * side for offset, point in corners]))
            start, width = end - 0.5 * width * along, tip
        return quads


@dataclass
class Shape:
    """A textured closed contour and its path through the video.

    The contour is a polar Fourier series, ``r(a, t) = 1 + sum_k amplitude_k cos(k a + phase_k +
    rate_k t)``, which is stretched, rotated and translated for each frame.

    Attributes:
        texture: ``[S,S,3]`` uint8; it moves with the contour.
        radius: mean radius in pixels.
        stretches: ``[T]`` factors on one axis; the other axis is divided by them.
        amplitudes, phases, rates: ``[K]``, for harmonics 2 to K+1; rates in radians per frame.
        centers: ``[T,2]`` x, y in pixels.
        angles: ``[T]`` radians.
        scales: ``[T]`` factors on the radius.
        is_object: False for a distractor, which occludes objects but has no mask.
        limbs: thin parts with the same texture, in the same mask.
        opacity: 0 to 1; below 1 the background shows through. It does not change the mask.
    """

    texture: np.ndarray
    radius: float
    stretches: np.ndarray
    amplitudes: np.ndarray
    phases: np.ndarray
    rates: np.ndarray
    centers: np.ndarray
    angles: np.ndarray
    scales: np.ndarray
    is_object: bool
    limbs: list[Limb] = field(default_factory=list)
    opacity: float = 1.0

    def transform(self, t: int) -> np.ndarray:
        """Return the transform ``[2,3]`` from shape units (radius 1) to pixels of frame t."""
        c, s = np.cos(self.angles[t]), np.sin(self.angles[t])
        size = self.radius * self.scales[t]
        stretch = self.stretches[t]
        axes = np.array([[c * stretch, -s / stretch], [s * stretch, c / stretch]])
        return np.column_stack([size * axes, self.centers[t]])

    def outlines(self, t: int) -> list[np.ndarray]:
        """Return the contours of body and limbs on frame t, ``[N,3]`` x, y, 1 in shape units."""
        k = np.arange(2, len(self.amplitudes) + 2)[:, None]
        harmonics = np.cos(k * _ANGLES + (self.phases + self.rates * t)[:, None])
        # A positive minimum radius keeps the contour from crossing itself.
        r = np.maximum(1 + self.amplitudes @ harmonics, 0.25)
        body = np.stack([r * np.cos(_ANGLES), r * np.sin(_ANGLES), np.ones_like(r)]).T
        limbs = [quad for limb in self.limbs for quad in limb.segments(t)]
        return [body, *(np.column_stack([quad, np.ones(len(quad))]) for quad in limbs)]


def draw_shape(
    generator: np.random.Generator,
    num_frames: int,
    size: tuple[int, int],
    motion: float,
    avoid: list[np.ndarray],
    is_object: bool,
) -> Shape:
    """Draw a shape with a radius of 0.1 to 0.2 of the shorter side and a path inside the frame.

    Args:
        generator: source of all random values.
        num_frames: T.
        size: rows and columns of the frame.
        motion: mean movement per frame, as a share of the diameter.
        avoid: mean colours ``[3]``, 0 to 255, from which the colour of the texture should differ.
        is_object: see :class:`Shape`.
    """
    radius = min(size) * generator.uniform(0.10, 0.20)
    harmonics = 5
    smoothness = generator.uniform(1.0, 2.0)  # how fast higher harmonics fade: lobes or ripples
    amplitudes = generator.uniform(0.1, 0.4) / np.arange(1, harmonics + 1) ** smoothness
    turn = generator.normal(0, 0.8 * motion)  # radians per frame
    return Shape(
        texture=draw_texture(generator, (max(16, round(3.2 * radius)),) * 2, avoid),
        radius=radius,
        stretches=np.full(num_frames, np.exp(generator.uniform(-0.3, 0.3))),
        amplitudes=amplitudes,
        phases=generator.uniform(0, 2 * np.pi, harmonics),
        rates=generator.normal(0, 2.0 * motion, harmonics),
        centers=_path(generator, num_frames, size, 2 * radius * motion, margin=0.8 * radius),
        angles=generator.uniform(0, 2 * np.pi)
        + turn * np.arange(num_frames)
        + 0.3 * waves(generator, num_frames),
        scales=np.exp(0.2 * waves(generator, num_frames)),
        is_object=is_object,
    )


def draw_figure(
    generator: np.random.Generator,
    num_frames: int,
    size: tuple[int, int],
    motion: float,
    avoid: list[np.ndarray],
    is_object: bool,
    photos: Photos | None = None,
) -> Shape:
    """Draw a shape of a lifelike scene, with limbs and a skin of several parts.

    Its radius is 0.08 to 0.3 of the shorter side of the frame. Unlike shapes of
    :func:`draw_shape`, it turns away (one axis becomes shorter than the other) and comes nearer or
    moves away. One in three leaves the frame and returns, and one in ten is translucent.

    Args:
        generator, num_frames, size, motion, avoid, is_object: as for :func:`draw_shape`.
        photos: images for its skin. None (default): the skin is generated.
    """
    shape = draw_shape(generator, num_frames, size, motion, avoid, is_object)
    radius = min(size) * np.exp(generator.uniform(np.log(0.08), np.log(0.3)))
    step = 2 * radius * motion
    margin = radius * (generator.uniform(-0.2, 0.8) if generator.random() < 0.67 else -1.6)
    shape.radius = radius
    # An object is prompted where it first appears, so most shapes should start inside the frame.
    for _ in range(10):
        shape.centers = _path(generator, num_frames, size, step, margin)
        if (shape.centers[0] > 0).all() and (shape.centers[0] < size[::-1]).all():
            break
    shape.stretches = shape.stretches * np.exp(
        generator.uniform(0, 0.3) * waves(generator, num_frames)
    )
    approach = generator.normal(0, 0.3 * motion) * np.arange(num_frames)
    shape.scales = np.exp(
        generator.uniform(0.1, 0.35) * waves(generator, num_frames) + np.clip(approach, -0.7, 0.7)
    )
    shape.texture = draw_skin(generator, (max(16, round(3.2 * radius)),) * 2, avoid, photos)
    if generator.random() < 0.1:
        shape.opacity = generator.uniform(0.55, 0.85)
    for _ in range(int(generator.integers(1, 6)) if generator.random() < 0.5 else 0):
        shape.limbs.append(
            Limb(
                angle=generator.uniform(0, 2 * np.pi),
                lengths=(generator.uniform(0.4, 0.9), generator.uniform(0.3, 0.8)),
                width=generator.uniform(0.08, 0.25),
                swing=generator.uniform(0.1, 0.6),
                bend=generator.uniform(0, 0.8),
                rate=generator.uniform(0.5, 5) * motion,
                phase=generator.uniform(0, 2 * np.pi),
            )
        )
    return shape


def draw_cover(
    generator: np.random.Generator,
    num_frames: int,
    size: tuple[int, int],
    hidden: Shape,
    photos: Photos | None = None,
) -> Shape:
    """Draw a shape without a mask that covers ``hidden`` on one or a few frames."""
    cover = draw_shape(generator, num_frames, size, 0.1, [hidden.texture.mean((0, 1))], False)
    cover.radius = hidden.radius * generator.uniform(1.6, 2.2)
    cover.amplitudes = cover.amplitudes / 2
    cover.scales = hidden.scales * np.exp(0.1 * waves(generator, num_frames))
    side = max(16, round(3.2 * cover.radius))
    cover.texture = draw_skin(generator, (side, side), photos=photos)
    heading = generator.uniform(0, 2 * np.pi)
    step = generator.uniform(0.3, 1.2) * cover.radius
    middle = generator.uniform(0.25, 0.9) * num_frames
    # It moves in a straight line relative to the hidden shape, and covers it around this frame.
    distance = step * (np.arange(num_frames) - middle)
    direction = np.array([np.cos(heading), np.sin(heading)])
    cover.centers = hidden.centers + distance[:, None] * direction
    return cover


def waves(generator: np.random.Generator, num_frames: int) -> np.ndarray:
    """Draw ``[T]``, -1 to 1: a sum of two slow sine waves."""
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
    """Draw ``[T,2]`` x, y: a curved path of ``step`` pixels per frame on average.

    It is reflected at ``margin`` pixels from the border of the frame.
    """
    heading = generator.uniform(0, 2 * np.pi) + generator.normal(0, 0.15) * np.arange(num_frames)
    heading = heading + waves(generator, num_frames)
    speed = step * generator.uniform(0.5, 1.5) * (1 + 0.4 * waves(generator, num_frames))
    steps = speed[:, None] * np.stack([np.cos(heading), np.sin(heading)], 1)
    room = np.maximum(np.array(size[::-1]) - 2 * margin, 1.0)
    free = generator.uniform(0, 1, 2) * room + np.cumsum(steps, 0) - steps[0]
    return margin + room - np.abs(free % (2 * room) - room)  # reflect at the borders
