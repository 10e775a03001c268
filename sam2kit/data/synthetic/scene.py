"""Render generated scenes of moving, deforming and occluding objects, with their exact masks.

A :class:`Scene` is drawn once from a generator. A frame depends only on the scene and the number of
the frame, so frames can be rendered in any order. Only NumPy and OpenCV are used.
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
    """Parameters of the shadows in a scene; lengths are multiples of the radius of a shape."""

    offset: np.ndarray  # x, y
    strength: float  # 0 to 1
    softness: float  # standard deviation of the blur


class Scene:
    """Render objects and distractors in depth order, with or without a background.

    Args:
        generator: source of all random values.
        num_frames: T.
        size: rows and columns in pixels.
        max_objects: the number of objects is drawn from 1 to this maximum.
        max_distractors: the number of shapes without a mask is drawn from 0 to this maximum.
        motion: mean movement of an object per frame, as a share of its diameter. At 0.14, the masks
            of the first of eight frames copied to the others have a mean IoU of about 0.3.
        background: generate a background. False: pass the background to :meth:`frame`.
        lifelike: resemble filmed video. The camera moves, with motion blur; light changes; shapes
            cast shadows, and some are translucent; surfaces have parts and relief; shapes have
            limbs, turn away, come nearer, leave the frame and return, are fully occluded on some
            frames, and often look similar to each other; sizes and speeds vary widely around
            ``motion``. Masks do not include shadows, and do include translucent parts.
        photos: images for the surfaces of most shapes in a lifelike scene. None (default): all
            surfaces are generated.
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
        # Transform from scene coordinates to the pixels of each frame.
        self.view = np.tile(np.eye(2, 3), (num_frames, 1, 1))
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
            # A look-alike, which only its position distinguishes from the other shape.
            if shapes and generator.random() < 0.15:
                other = shapes[int(generator.integers(len(shapes)))].texture
                shape.texture = cv2.resize(other, shape.texture.shape[:2])
            avoid.append(shape.texture.mean((0, 1)))
            shapes.append(shape)
        return shapes

    def _enliven(
        self, generator: np.random.Generator, num_frames: int, motion: float, moves: bool
    ) -> None:
        """Add the features of lifelike scenes: a cover, camera motion, motion blur and side light.

        Args:
            generator: source of all random values.
            num_frames: T.
            motion: as for the class.
            moves: whether the camera moves, which is not possible with an external background.
        """
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
        """Return the visible part of each object on frame t: ``[H,W]`` bool by object, from 1 on.

        Shapes later in depth order occlude earlier ones. Fully occluded objects are omitted.
        """
        front = np.zeros(self.size, np.uint8)  # number of the front shape, from 1; 0: background
        for k, shape in enumerate(self.shapes):
            rows, columns, alpha = self._coverage(shape, t)
            front[rows, columns][alpha >= 128] = k + 1
        masks = {n: front == k + 1 for k, n in self.object_ids.items()}
        return {n: mask for n, mask in masks.items() if mask.any()}

    def frame(self, t: int, behind: np.ndarray | None = None) -> np.ndarray:
        """Render frame t as ``[H,W,3]`` uint8 RGB.

        Args:
            t: number of the frame, from 0.
            behind: ``[H,W,3]`` uint8, a background to use instead of the generated one. Its light,
                blur and noise are not changed; the shapes are composited onto it.

        Raises:
            ValueError: the scene has no background, and none is given.
        """
        h, w = self.size
        if behind is not None:
            picture = behind.copy()
        else:
            if self.backdrop is None:
                raise ValueError("this scene has no background; pass one as behind")
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
        # From back to front, so that later shapes cover earlier ones as in masks().
        for shape in self.shapes:
            self._composite(picture, shape, t)
        return picture if behind is not None else self._photograph(picture, t)

    def _to_pixels(self, shape: Shape, t: int) -> np.ndarray:
        """Return ``[2,3]``: the transform from units of the shape to pixels of frame t."""
        to_scene = shape.transform(t)
        if not self.lifelike:
            return to_scene
        return self.view[t] @ np.vstack([to_scene, (0, 0, 1)])

    def _blur_kernel(self, position: Callable[[int], np.ndarray], t: int) -> np.ndarray | None:
        """Make a motion blur kernel: a line that sums to 1.

        Args:
            position: x, y in pixels by frame; its movement while the shutter is open is the line.
            t: number of the frame.

        Returns:
            ``[K,K]`` float32 with odd K. None: no blur, because the movement is too short.
        """
        last = len(self.view) - 1
        if not self.shutter or not last:
            return None
        start, end = max(t - 1, 0), min(t + 1, last)
        x, y = (position(end) - position(start)) / (end - start) * self.shutter
        side = int(max(abs(x), abs(y))) // 2 * 2 + 1
        if side < 3:
            return None
        side = min(side, 2 * (min(self.size) // 8) + 1)
        kernel = np.zeros((side, side), np.float32)
        scale = (side // 2) / max(abs(x), abs(y))
        half, center = np.round(scale * np.array([x, y])).astype(int), side // 2
        cv2.line(kernel, (center - half).tolist(), (center + half).tolist(), 1.0)
        return kernel / kernel.sum()

    def _coverage(
        self, shape: Shape, t: int, margin: int = 0, shift: np.ndarray | None = None
    ) -> tuple[slice, slice, np.ndarray]:
        """Compute the coverage of the pixels in the bounding box of a shape.

        Args:
            shape: the shape.
            t: number of the frame.
            margin: pixels to add to the bounding box on each side.
            shift: x, y in pixels, added to the position of the shape. None (default): no shift.

        Returns:
            Rows, columns, and coverage ``[h,w]`` uint8 from 0 to 255; an empty box if the shape is
            outside the frame.
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
        for points in outlines:  # one at a time: fillPoly leaves holes where contours overlap
            fixed = np.round((points - (x0, y0)) * (1 << SHIFT)).astype(np.int32)
            cv2.fillPoly(alpha, [fixed], 255, cv2.LINE_AA, SHIFT)
        return slice(y0, y1), slice(x0, x1), alpha

    def _cast_shadow(self, picture: np.ndarray, shape: Shape, t: int) -> None:
        """Darken the picture where the shape, which is composited next, casts its shadow."""
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

    def _composite(self, picture: np.ndarray, shape: Shape, t: int) -> None:
        """Blend a shape, its motion blur and its shadow into the picture, in place."""
        self._cast_shadow(picture, shape, t)
        kernel = self._blur_kernel(lambda n: self._to_pixels(shape, n)[:, 2], t)
        margin = 0 if kernel is None else len(kernel) // 2
        rows, columns, alpha = self._coverage(shape, t, margin)
        if not alpha.size:
            return
        side = shape.texture.shape[0]
        to_pixels = self._to_pixels(shape, t)
        # The texture spans the square from -1.6 to 1.6 in units of the shape.
        from_texture = np.array([[3.2 / side, 0, -1.6], [0, 3.2 / side, -1.6], [0, 0, 1]])
        texture_to_box = to_pixels @ from_texture
        texture_to_box[:, 2] -= (columns.start, rows.start)
        skin = cv2.warpAffine(
            shape.texture,
            texture_to_box,
            alpha.shape[::-1],
            flags=cv2.INTER_LINEAR,
            borderMode=cv2.BORDER_REFLECT_101,
        )
        if kernel is not None:
            skin = cv2.filter2D(skin, -1, kernel)
            alpha = cv2.filter2D(alpha, -1, kernel, borderType=cv2.BORDER_CONSTANT)
        weight = alpha[..., None].astype(np.float32) * np.float32(shape.opacity / 255)
        below = picture[rows, columns]
        picture[rows, columns] = np.round(below + weight * (skin.astype(np.float32) - below))

    def _photograph(self, picture: np.ndarray, t: int) -> np.ndarray:
        """Apply lens blur, light and sensor noise of frame t."""
        if self.blur:
            picture = cv2.GaussianBlur(picture, (0, 0), self.blur + 0.1)
        # Seeded by the frame, so that the noise does not depend on the order of rendering.
        generator = np.random.default_rng((self.noise_seed, t))
        lit = picture.astype(np.float32) * np.float32(self.light[t])
        if self.shade is not None:
            lit *= self.shade
        lit += np.float32(self.noise) * generator.standard_normal(picture.shape, np.float32)
        return np.clip(np.round(lit), 0, 255).astype(np.uint8)


def _camera_path(
    generator: np.random.Generator, num_frames: int, size: tuple[int, int], motion: float
) -> np.ndarray:
    """Draw ``[T,2,3]``: transforms from frame to backdrop pixels, with drift, zoom and rotation."""
    h, w = size
    drift = generator.normal(0, 0.04 * motion * min(size), 2) * np.arange(num_frames)[:, None]
    zoom = np.exp(0.1 * waves(generator, num_frames))
    turn = 0.1 * waves(generator, num_frames)
    c, s = zoom * np.cos(turn), zoom * np.sin(turn)
    axes = np.stack([np.stack([c, -s], 1), np.stack([s, c], 1)], 1)
    offset = 0.75 * np.array([w, h]) + drift - axes @ (np.array([w, h]) / 2)
    return np.concatenate([axes, offset[..., None]], 2)
