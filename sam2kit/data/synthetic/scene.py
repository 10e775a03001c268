"""Generated objects that move, deform and hide one another: the picture and the true masks.

A :class:`Scene` is drawn once from a generator; every frame of it follows from the scene and the
frame's number, so frames can be rendered in any order. NumPy and OpenCV only.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np

from sam2kit.data.synthetic.shapes import Shape, draw_cover, draw_figure, draw_shape, waves
from sam2kit.data.synthetic.textures import SHIFT, Photos, draw_backdrop, draw_scenery


@dataclass(frozen=True)
class _Shadow:
    """How every shape of a scene darkens what lies behind it; lengths in the shape's radius."""

    offset: np.ndarray  # x, y
    strength: float  # 0 to 1
    softness: float  # deviation of the blur


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
        lifelike: closer to filmed video. The camera pans over everything and blurs what moves,
            light changes, shapes cast shadows and some let the light through, surfaces have parts
            and relief, shapes have limbs, turn away, come nearer, leave the frame and come back,
            are hidden wholly for some frames, and often look alike; sizes and speeds vary widely
            around ``motion``. Shadows are no part of a mask, what shows through an object is.
        photos: the surfaces of most things in a lifelike scene; None: all are generated.
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
        lifelike: bool = False,
        photos: Photos | None = None,
    ) -> None:
        self.size = size
        self.lifelike = lifelike
        self.photos = photos
        self.backdrop = None
        if background and lifelike:
            self.backdrop = draw_scenery(generator, size, photos)
        elif background:
            self.backdrop = draw_backdrop(generator, size)
        if lifelike:
            motion *= np.exp(generator.uniform(np.log(0.2), np.log(2.0)))
        self.camera = _camera_path(generator, num_frames, size, motion)
        self.shapes = self._draw_shapes(generator, num_frames, max_objects, max_distractors, motion)
        self.view = np.tile(np.eye(2, 3), (num_frames, 1, 1))  # from world to pixels of frame t
        self.shutter = 0.0
        self.shade: np.ndarray | None = None
        self.shadow: _Shadow | None = None
        if lifelike:
            self._enliven(generator, num_frames, motion, moves=background)
        self.object_ids = {
            k: n for n, k in enumerate([k for k, s in enumerate(self.shapes) if s.is_object], 1)
        }
        self.light = 1 + (0.25 if lifelike else 0.08) * waves(generator, num_frames)
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
        draw = partial(draw_figure, photos=self.photos) if self.lifelike else draw_shape
        for k in range(len(is_object)):
            shape = draw(generator, num_frames, self.size, motion, avoid, bool(is_object[k]))
            if shapes and generator.random() < 0.15:  # a look-alike: only its place tells it apart
                other = shapes[int(generator.integers(len(shapes)))].texture
                shape.texture = cv2.resize(other, shape.texture.shape[:2])
            avoid.append(shape.texture.mean((0, 1)))
            shapes.append(shape)
        return shapes

    def _enliven(
        self, generator: np.random.Generator, num_frames: int, motion: float, moves: bool
    ) -> None:
        """What only lifelike scenes have: a passing cover, the camera's view, blur, side light."""
        h, w = self.size
        if generator.random() < 0.4:
            objects = [shape for shape in self.shapes if shape.is_object]
            hidden = objects[int(generator.integers(len(objects)))]
            self.shapes.append(draw_cover(generator, num_frames, self.size, hidden, self.photos))
        if moves:
            reach = motion * min(h, w)
            sway = np.stack([waves(generator, num_frames) for _ in range(2)], 1)
            drift = generator.normal(0, 0.25, 2) * np.arange(num_frames)[:, None]
            self.camera[:, :, 2] += reach * (1.4 * (sway - sway[0]) + drift)
            lift = np.array([[1, 0, 0.25 * w], [0, 1, 0.25 * h], [0, 0, 1]])
            self.view = np.stack([cv2.invertAffineTransform(c) @ lift for c in self.camera])
        self.shutter = generator.uniform(0.2, 0.8) if generator.random() < 0.6 else 0.0
        y, x = np.linspace(-1, 1, h)[:, None, None], np.linspace(-1, 1, w)[None, :, None]
        a, slope = generator.uniform(0, 2 * np.pi), generator.uniform(0, 0.35)
        cast = generator.normal(1, 0.07, 3)
        self.shade = ((1 + slope * (np.cos(a) * x + np.sin(a) * y)) * cast).astype(np.float32)
        if generator.random() < 0.6:
            reach = generator.uniform(0.1, 0.6)
            self.shadow = _Shadow(
                offset=-reach * np.array([np.cos(a), np.sin(a)]),
                strength=generator.uniform(0.2, 0.6),
                softness=generator.uniform(0.05, 0.25),
            )

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
        if behind is not None:
            picture = behind.copy()
        else:
            if self.backdrop is None:
                raise ValueError("this scene has no background: give the frame that lies behind")
            picture = cv2.warpAffine(
                self.backdrop,
                self.camera[t],
                (w, h),
                flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
                borderMode=cv2.BORDER_REFLECT_101,
            )
            center = np.array([0.75 * w, 0.75 * h, 1])
            kernel = self._blur_kernel(
                lambda n: cv2.invertAffineTransform(self.camera[n]) @ center, t
            )
            if kernel is not None:
                picture = cv2.filter2D(picture, -1, kernel, borderType=cv2.BORDER_REFLECT_101)
        for shape in self.shapes:
            self._lay(picture, shape, t)
        return picture if behind is not None else self._photograph(picture, t)

    def _to_pixels(self, shape: Shape, t: int) -> np.ndarray:
        """``[2,3]``: from the shape's own units to pixels of frame t."""
        own = shape.transform(t)
        if not self.lifelike:
            return own
        return self.view[t] @ np.vstack([own, (0, 0, 1)])

    def _blur_kernel(self, place: Callable[[int], np.ndarray], t: int) -> np.ndarray | None:
        """A line ``[K,K]`` that adds up to 1: the way of ``place`` while the shutter is open."""
        last = len(self.view) - 1
        if not self.shutter or not last:
            return None
        low, high = max(t - 1, 0), min(t + 1, last)
        x, y = (place(high) - place(low)) / (high - low) * self.shutter
        side = int(max(abs(x), abs(y))) // 2 * 2 + 1
        if side < 3:
            return None
        side = min(side, 2 * (min(self.size) // 8) + 1)
        kernel = np.zeros((side, side), np.float32)
        scale = (side // 2) / max(abs(x), abs(y))
        way, middle = np.round(scale * np.array([x, y])).astype(int), side // 2
        cv2.line(kernel, (middle - way).tolist(), (middle + way).tolist(), 1.0)
        return kernel / kernel.sum()

    def _coverage(
        self, shape: Shape, t: int, margin: int = 0, shift: np.ndarray | None = None
    ) -> tuple[slice, slice, np.ndarray]:
        """The box of a shape within the frame, and how much of each of its pixels it covers.

        Args:
            margin: pixels around the shape that the box holds too.
            shift: x, y in pixels by which the shape is moved first.

        Returns:
            rows, columns, and ``[h,w]`` uint8 from 0 to 255; an empty box if it left the frame.
        """
        to_pixels = self._to_pixels(shape, t)
        if shift is not None:
            to_pixels[:, 2] += shift
        outlines = [points @ to_pixels.T for points in shape.outlines(t)]
        low = np.floor(np.min([p.min(0) for p in outlines], 0)).astype(int) - 1 - margin
        high = np.ceil(np.max([p.max(0) for p in outlines], 0)).astype(int) + 2 + margin
        x0, y0 = np.maximum(low, 0)
        x1, y1 = np.minimum(high, self.size[::-1])
        if x1 <= x0 or y1 <= y0:
            return slice(0, 0), slice(0, 0), np.zeros((0, 0), np.uint8)
        alpha = np.zeros((y1 - y0, x1 - x0), np.uint8)
        for points in outlines:  # one by one, for where two overlap fillPoly would leave a hole
            fixed = np.round((points - (x0, y0)) * (1 << SHIFT)).astype(np.int32)
            cv2.fillPoly(alpha, [fixed], 255, cv2.LINE_AA, SHIFT)
        return slice(y0, y1), slice(x0, x1), alpha

    def _cast_shadow(self, picture: np.ndarray, shape: Shape, t: int) -> None:
        """Darken what is already painted, beside where the shape will be laid."""
        if self.shadow is None:
            return
        size = shape.radius * shape.scales[t]
        blur = max(0.5, self.shadow.softness * size)
        shift = self.shadow.offset * size
        rows, columns, alpha = self._coverage(shape, t, int(2 * blur) + 1, shift)
        if alpha.size:
            alpha = cv2.GaussianBlur(alpha, (0, 0), blur)
            dark = 1 - np.float32(self.shadow.strength / 255) * alpha[..., None]
            picture[rows, columns] = np.round(picture[rows, columns] * dark)

    def _lay(self, picture: np.ndarray, shape: Shape, t: int) -> None:
        self._cast_shadow(picture, shape, t)
        kernel = self._blur_kernel(lambda n: self._to_pixels(shape, n)[:, 2], t)
        margin = 0 if kernel is None else len(kernel) // 2
        rows, columns, alpha = self._coverage(shape, t, margin)
        if not alpha.size:
            return
        side = shape.texture.shape[0]
        to_pixels = self._to_pixels(shape, t)
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
        if kernel is not None:
            skin = cv2.filter2D(skin, -1, kernel)
            alpha = cv2.filter2D(alpha, -1, kernel, borderType=cv2.BORDER_CONSTANT)
        share = alpha[..., None].astype(np.float32) * np.float32(shape.opacity / 255)
        below = picture[rows, columns]
        picture[rows, columns] = np.round(below + share * (skin.astype(np.float32) - below))

    def _photograph(self, picture: np.ndarray, t: int) -> np.ndarray:
        """Light, blur and sensor noise of frame t."""
        if self.blur:
            picture = cv2.GaussianBlur(picture, (0, 0), self.blur + 0.1)
        generator = np.random.default_rng((self.noise_seed, t))
        lit = picture.astype(np.float32) * np.float32(self.light[t])
        if self.shade is not None:
            lit *= self.shade
        lit += np.float32(self.noise) * generator.standard_normal(picture.shape, np.float32)
        return np.clip(np.round(lit), 0, 255).astype(np.uint8)


def _camera_path(
    generator: np.random.Generator, num_frames: int, size: tuple[int, int], motion: float
) -> np.ndarray:
    """``[T,2,3]``: from the frame's pixels to the backdrop's: drift, a little zoom and turn."""
    h, w = size
    drift = generator.normal(0, 0.04 * motion * min(size), 2) * np.arange(num_frames)[:, None]
    zoom = np.exp(0.1 * waves(generator, num_frames))
    turn = 0.1 * waves(generator, num_frames)
    c, s = zoom * np.cos(turn), zoom * np.sin(turn)
    axes = np.stack([np.stack([c, -s], 1), np.stack([s, c], 1)], 1)
    offset = 0.75 * np.array([w, h]) + drift - axes @ (np.array([w, h]) / 2)
    return np.concatenate([axes, offset[..., None]], 2)
