"""Plan and render a clip: figures and their motion, surroundings, light and camera."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np

from .figures import FIGURES, load_figure
from .motion import Path, Poses, SmoothNoise, gait, turn
from .stage import BLOCK_MATERIALS, BOXES, LUMPS, OCCLUDERS, PILLARS, WALLS, Actor, Stage
from .surfaces import Surfaces

# Weight of a figure as the first of a cast, and its size (largest extent) in about metres. Small
# animals are enlarged, as if filmed from nearby.
CASTING = {
    "dog": (5.0, 1.2),
    "person": (7.0, 1.75),
    "rodent": (3.0, 1.0),
    "humanoid": (1.0, 1.6),
    "quadruped": (1.0, 1.3),
    "ant": (0.8, 1.2),
    "fly": (1.0, 1.0),
    "fish": (1.2, 1.1),
    "cheetah": (0.8, 1.4),
    "arm": (0.8, 1.2),
    "car": (2.0, 1.9),
    "ball": (0.8, 0.55),
    "parcel": (1.5, 0.7),
    "drone": (0.8, 0.9),
    "bird": (1.5, 1.2),
    "snake": (0.8, 1.6),
}
TOYS = ("car", "parcel", "drone", "bird", "snake")  # have variants: NAME#NUMBER
MIN_FIRST, MIN_SEEN, MAX_SHARE = 0.012, 0.006, 0.6
ATTEMPTS = 40
SKIN_TONES = [(236, 196, 168), (218, 168, 132), (178, 126, 92), (126, 84, 58), (82, 54, 38)]
HAIR = [(30, 24, 20), (66, 44, 28), (120, 84, 48), (190, 160, 110), (140, 138, 136), (110, 48, 26)]


@dataclass
class Take:
    """A rendered clip.

    Attributes:
        frames: ``[T,H,W,3]`` uint8.
        ids: ``[T,H,W]`` uint8; 0 is background.
        names: Figures of objects 1, 2, ...
    """

    frames: np.ndarray
    ids: np.ndarray
    names: list[str]


def draw_cast(rng: np.random.Generator, most: int = 3) -> list[tuple[str, float]]:
    """Sample the figures of a stage and their sizes, often several of the same kind."""
    names, weights = list(CASTING), np.array([weight for weight, _ in CASTING.values()])
    count = int(rng.choice([1, 2, 3], p=[0.3, 0.4, 0.3]))
    cast: list[tuple[str, float]] = []
    for k in range(min(count, most)):
        if k and rng.random() < 0.4:
            name = cast[-1][0]  # same figure as the previous one
        else:
            name = str(rng.choice(names, p=weights / weights.sum()))
            name += f"#{rng.integers(60)}" if name in TOYS else ""
        size = CASTING[name.split("#")[0]][1] * np.exp(rng.normal(0, 0.15))
        cast.append((name, float(size)))
    return cast


class Clip:
    """The plan of a clip on a stage; :meth:`shoot` renders it.

    Args:
        stage: The stage, whose surfaces, light and poses are changed.
        rng: Source of all random values.
        surfaces: Source of textures.
        frames: Number of frames.
        seconds: Time from the first frame to the last.
        style: Fixed choices by name: ``indoors``, ``camera`` (``follow``, ``static`` or ``pan``),
            ``share`` (fraction of the image height of the first actor), ``returns``, ``look_away``,
            ``occluders``, ``still`` (fraction of standing actors), ``alike`` (whether two figures
            of a kind have the same texture), ``elevation`` (degrees), ``walls`` and ``ground``
            (names of materials; no walls if None), ``orbit`` (degrees per second), ``bright``, and
            ``noise`` (maximum deviation of the camera).
    """

    def __init__(
        self,
        stage: Stage,
        rng: np.random.Generator,
        surfaces: Surfaces,
        frames: int,
        seconds: float,
        **style,
    ) -> None:
        self.stage, self.rng, self.surfaces, self.style = stage, rng, surfaces, style
        self.times = np.linspace(0, seconds, frames)
        self.seconds = seconds
        self.indoors = bool(style.get("indoors", rng.random() < 0.3))
        self._plan_camera()
        self._plan_actors()
        self._build()

    def _plan_camera(self) -> None:
        rng, style, model = self.rng, self.style, self.stage.model
        model.vis.global_.fovy = fovy = rng.uniform(30, 58)
        size = self.stage.actors[0].size
        share = style.get("share", np.exp(rng.uniform(np.log(0.2), np.log(0.8))))
        self.distance = size / (2 * np.tan(np.radians(fovy) / 2) * share)
        self.azimuth = rng.uniform(0, 360)
        self.elevation = style.get("elevation", -np.exp(rng.uniform(np.log(4), np.log(38))))
        self.mode = str(
            style.get("camera", rng.choice(["follow", "static", "pan"], p=[0.6, 0.25, 0.15]))
        )
        self.orbit = style.get("orbit", rng.normal(0, 18) if rng.random() < 0.6 else 0.0)
        self.zoom = rng.normal(0, 0.3) if rng.random() < 0.5 else 0.0
        self.shake = SmoothNoise(rng, 5, 0.3, 1.6)
        self.wander = SmoothNoise(rng, 2, 0.1, 0.5)
        self.shaking = rng.uniform(0, 1) ** 2
        self.drift = rng.uniform(0.0, 0.3)
        self.lag = rng.uniform(0, 0.5)
        self.look_away = style.get("look_away", rng.random() < 0.1)
        self.pan_speed = rng.normal(0, 0.5, 2) * self.distance / self.seconds

    def _plan_actors(self) -> None:
        rng, style = self.rng, self.style
        self.paths: list[Path] = []
        self.poses: list[Poses] = []
        self.heights, self.bobs, self.spins = [], [], []
        for k, actor in enumerate(self.stage.actors):
            figure = actor.figure
            cadence = rng.uniform(*figure.steps_per_second)
            still = rng.random() < style.get("still", 0.2)
            walking = 0.0 if still else 1.0
            way = gait(figure.name)[2] or rng.uniform(0.4, 1.6)
            speed = 0.0 if still or figure.motion == "arm" else way * actor.size * cadence
            speed = min(speed, 1.6 * self.distance / self.seconds * rng.uniform(0.4, 1))
            if figure.limbs and speed:
                cadence = speed / (way * actor.size)
            self.poses.append(Poses(rng, figure, cadence, walking, rng.uniform(0.5, 1.4)))
            self.paths.append(self._draw_path(k, speed))
            flying = figure.flying or (figure.name == "fly" and rng.random() < 0.5)
            self.heights.append(actor.size * rng.uniform(0.4, 1.2) if flying else None)
            self.bobs.append(SmoothNoise(rng, 3, 0.2, 0.9))
            self.spins.append(rng.normal(0, 2.5, 3) if figure.motion in ("roll", "toss") else None)

    def _draw_path(self, k: int, speed: float) -> Path:
        rng, actors = self.rng, self.stage.actors
        size = actors[k].size
        for _ in range(12):
            across = self.azimuth + rng.choice([-90, 90]) + rng.normal(0, 40)
            heading = np.radians(across if rng.random() < 0.7 else rng.uniform(0, 360))
            through = np.zeros(2)
            if k:
                angle, far = rng.uniform(0, 2 * np.pi), rng.uniform(0.6, 1.5)
                through = far * np.array([np.cos(angle), np.sin(angle)]) * max(size, actors[0].size)
            returns = bool(self.style.get("returns", rng.random() < 0.25))
            bend = rng.normal(0, 0.5)
            path = Path(rng, self.seconds, speed, through, heading, bend, returns)
            gaps = [
                np.linalg.norm(path(t)[0] - other(t)[0]) / (size + actor.size)
                for other, actor in zip(self.paths, actors, strict=False)
                for t in self.times
            ]
            if not gaps or min(gaps) > 0.3:
                break
        return path

    def _pose(self, t: float) -> None:
        stage = self.stage
        for k, actor in enumerate(stage.actors):
            stage.data.qpos[actor.addresses] = self.poses[k](t)
            point, heading = self.paths[k](t)
            height, bob, motion = self.heights[k], self.bobs[k](t), actor.figure.motion
            tilt = None
            if height is not None:
                height = max(0.25 * actor.size, height + 0.25 * actor.size * bob[0])
                tilt = turn((0, 1, 0), 0.3 * bob[1])
                stage.place(actor, point, heading, height, tilt)
                continue
            if motion == "roll":
                way = float(np.linalg.norm(point - self.paths[k](0)[0]))
                tilt = turn((0, 1, 0), way / (actor.size / 2))
            elif motion == "toss":
                axis = self.spins[k] / (np.linalg.norm(self.spins[k]) + 1e-9)
                tilt = turn(axis, float(np.linalg.norm(self.spins[k])) * t * 0.6)
            stage.place(actor, point, heading, None, tilt)
            if motion in ("roll", "toss") and self.spins[k][0] > 0:  # hops
                hop = abs(np.sin(2.2 * t + self.spins[k][1])) * actor.size * 0.9
                stage.data.qpos[actor.root_address + 2] += hop

    def _view(self, t: float) -> tuple[np.ndarray, float, float, float]:
        """Return look-at point, distance, azimuth and elevation at second ``t``."""
        middle = self.seconds / 2
        actor = self.stage.actors[0]
        level = self.heights[0] if self.heights[0] is not None else 0.45 * actor.figure.height
        if self.heights[0] is None:
            level *= actor.size / actor.figure.length
        point = np.zeros(2)
        if self.mode == "follow":
            point = self.paths[0](t - self.lag)[0]
        elif self.mode == "pan":
            point = self.pan_speed * (t - middle)
        u = (t / self.seconds - 0.5) if self.seconds else 0.0
        distance = self.distance * np.exp(self.zoom * u)
        shake, wander = self.shake(t), self.wander(t)
        frame = distance * np.tan(np.radians(self.stage.model.vis.global_.fovy) / 2)
        side = np.radians(self.azimuth + 90)
        offset = self.drift * frame * wander + 0.06 * self.shaking * frame * shake[:2]
        look = np.array([*point, level + offset[1]])
        look[:2] += offset[0] * np.array([np.cos(side), np.sin(side)])
        azimuth = self.azimuth + self.orbit * (t - middle) / max(self.seconds, 1) * 2
        azimuth += 1.2 * self.shaking * shake[2]
        if self.look_away:
            azimuth += 55 * np.exp(-(((t - middle) / (0.16 * self.seconds)) ** 2))
        elevation = np.clip(self.elevation + 1.0 * self.shaking * shake[3], -75, -3)
        return look, distance, azimuth, elevation

    def _aim(self, t: float) -> np.ndarray:
        """Set the camera and return its position."""
        look, distance, azimuth, elevation = self._view(t)
        if self.look_away:  # turns on the spot
            base = self._camera_at(look, distance, self._view_without_turn(t), elevation)
            turned = np.radians(azimuth)
            flat = distance * np.cos(np.radians(elevation))
            look = np.array(
                [base[0] + flat * np.cos(turned), base[1] + flat * np.sin(turned), look[2]]
            )
        camera = self.stage.camera
        camera.lookat[:] = look
        camera.distance, camera.azimuth, camera.elevation = distance, azimuth, elevation
        return self._camera_at(look, distance, azimuth, elevation)

    def _view_without_turn(self, t: float) -> float:
        self.look_away, saved = False, self.look_away
        azimuth = self._view(t)[2]
        self.look_away = saved
        return azimuth

    @staticmethod
    def _camera_at(look, distance: float, azimuth: float, elevation: float) -> np.ndarray:
        a, e = np.radians(azimuth), np.radians(elevation)
        ahead = np.array([np.cos(e) * np.cos(a), np.cos(e) * np.sin(a), np.sin(e)])
        return look - distance * ahead

    def _build(self) -> None:
        rng, model = self.rng, self.stage.model
        cameras = np.array([self._aim(t) for t in self.times])
        reach = float(np.abs(cameras[:, :2]).max()) + 1.0
        far = reach * (rng.uniform(1.05, 1.4) if self.indoors else rng.uniform(1.3, 3.0)) + 1
        turned = rng.uniform(0, np.pi / 2)
        height = far * (rng.uniform(0.35, 0.8) if self.indoors else rng.uniform(0.1, 0.6))
        shown = self.style.get("walls", "any" if self.indoors or rng.random() < 0.75 else None)
        for i in range(WALLS):
            angle = turned + i * np.pi / 2
            wall = model.geom(f"wall{i}")
            wall.pos[:] = (far * np.cos(angle), far * np.sin(angle), height)
            # The plane's normal points at the centre, and its y axis is up.
            inward = np.array([-np.cos(angle), -np.sin(angle), 0])
            up = np.array([0, 0, 1.0])
            matrix = np.stack([np.cross(up, inward), up, inward], 1)
            quat = np.zeros(4)
            _mat_to_quat(quat, matrix)
            wall.quat[:] = quat
            wall.size[:] = (far, height, 0.01)
            wall.rgba[:] = (1, 1, 1, float(shown is not None))
        self._blocks(cameras, far)
        self._occluders(cameras)
        uniform = rng.uniform(0.15, 0.8)
        model.mat("ground").texrepeat[:] = uniform
        model.mat("ground").reflectance[:] = 0.0
        model.mat("ground").specular[:] = rng.uniform(0, 0.3)

    def _blocks(self, cameras: np.ndarray, far: float) -> None:
        rng, model = self.rng, self.stage.model
        ways = np.array([path(t)[0] for path in self.paths for t in self.times])
        density = rng.uniform(0, 1)
        for kind, count in (("box", BOXES), ("pillar", PILLARS), ("lump", LUMPS)):
            for i in range(count):
                block = model.geom(f"{kind}{i}")
                size = np.exp(rng.uniform(np.log(0.08), np.log(0.7), 3)) * self.distance / 3
                if kind == "pillar":
                    size[1] = rng.uniform(0.3, 0.9) * self.distance
                    size[0] *= 0.4
                angle, radius = rng.uniform(0, 2 * np.pi), far * np.sqrt(rng.uniform(0.01, 0.9))
                place = radius * np.array([np.cos(angle), np.sin(angle)])
                bulk = size[:2].max() if kind != "pillar" else size[0]
                near_way = np.linalg.norm(ways - place, axis=1).min() < bulk + 0.5
                near_camera = np.linalg.norm(cameras[:, :2] - place, axis=1).min() < bulk + 0.8
                hidden = near_way or near_camera or rng.random() > density
                half = {"box": size[2], "pillar": size[1], "lump": size[2] * 0.7}[kind]
                block.size[:] = size
                block.pos[:] = (*place, -90 if hidden else half)
                block.quat[:] = turn((0, 0, 1), rng.uniform(0, 2 * np.pi))
                block.rgba[:] = (1, 1, 1, 0 if hidden else 1)

    def _occluders(self, cameras: np.ndarray) -> None:
        """Place posts and boards between camera and first actor at some time in the clip."""
        rng, model = self.rng, self.stage.model
        wanted = self.style.get("occluders", int(rng.choice([0, 1, 2], p=[0.6, 0.25, 0.15])))
        for i in range(OCCLUDERS):
            block = model.geom(f"occluder{i}")
            moment = rng.uniform(0.25, 0.9) * self.seconds
            index = int(np.argmin(np.abs(self.times - moment)))
            way = rng.uniform(0.35, 0.7)
            target, _ = self.paths[0](moment)
            place = cameras[index, :2] * (1 - way) + target * way
            distances = [
                np.linalg.norm(p(t)[0] - place) / a.size
                for p, a in zip(self.paths, self.stage.actors, strict=True)
                for t in self.times
            ]
            hidden = i >= wanted or min(distances) < 0.6
            hidden |= np.linalg.norm(cameras[:, :2] - place, axis=1).min() < 0.7
            width = self.stage.actors[0].size * rng.uniform(0.04, 0.22) * (1.2 - way)
            height = rng.uniform(0.3, 1.2) * self.stage.actors[0].size
            block.size[:] = (width, height, 0) if i % 2 else (width, 0.06, height)
            block.pos[:] = (*place, -90 if hidden else height)
            block.quat[:] = turn((0, 0, 1), np.radians(self.azimuth + 90) + rng.normal(0, 0.3))
            block.rgba[:] = (1, 1, 1, 0 if hidden else 1)

    def _light(self) -> None:
        rng, model = self.rng, self.stage.model
        ambient, head, direct = rng.uniform((0.25, 0.0, 0.35), (0.55, 0.35, 0.85))
        # Do not overexpose white.
        scale = 1.2 / (ambient + 0.6 * head + 0.9 * direct)
        scale = scale if self.style.get("bright") else min(1.0, scale)
        ambient, head, direct = ambient * scale, head * scale, direct * scale
        warm = np.array([1, 1, 1]) + rng.uniform(-0.12, 0.12) * np.array([1, 0.2, -1])
        model.vis.headlight.ambient[:] = ambient * warm
        model.vis.headlight.diffuse[:] = head
        model.vis.headlight.specular[:] = 0.05
        angle, steep = rng.uniform(0, 2 * np.pi), rng.uniform(0.25, 1.3)
        toward = np.array([np.cos(angle) / steep, np.sin(angle) / steep, -1.0])
        toward /= np.linalg.norm(toward)
        sun = model.light("light0")
        sun.dir[:] = toward
        sun.pos[:] = -8 * toward
        sun.diffuse[:] = direct * warm[::-1]
        sun.specular[:] = rng.uniform(0.0, 0.4)
        model.light_castshadow[0] = rng.random() < 0.85
        fill = model.light("light1")
        fill.dir[:] = (-toward[0], -toward[1], -0.6)
        fill.diffuse[:] = rng.uniform(0, 0.15)
        fill.specular[:] = 0
        # Shadows are only computed within this distance of the light's axis.
        model.stat.extent = max(4.0, 1.5 * self.distance)
        model.vis.map.shadowclip = 1.0

    def _paint(self) -> None:
        from .stage import COAT_PIXELS, CUBE_PIXELS, GROUND_PIXELS, SKY_PIXELS, WALL_PIXELS
        from .surfaces import draw_sky

        rng, stage, surfaces = self.rng, self.stage, self.surfaces
        stage.paint("sky", draw_sky(rng, SKY_PIXELS))
        ground, wall = self.style.get("ground"), self.style.get("walls")
        stage.paint("ground", surfaces.ground(rng, GROUND_PIXELS, self.indoors, ground))
        walls = [surfaces.wall(rng, WALL_PIXELS, self.indoors, wall) for _ in range(2)]
        for i in range(WALLS):
            stage.paint(f"wall{i}", walls[i % 2])
            repeat = rng.choice([1, 1, 2, 3]) if surfaces.photos is None else 1
            stage.model.mat(f"wall{i}").texrepeat[:] = repeat
        for i in range(BLOCK_MATERIALS):
            stage.paint(f"block{i}", surfaces.block(rng, CUBE_PIXELS))
        previous: dict[str, int] = {}
        for actor in stage.actors:
            # Half of the time, two figures of a kind look alike.
            seed = previous.get(actor.figure.name)
            alike = self.style.get("alike", rng.random() < 0.5)
            if seed is None or not alike:
                seed = int(rng.integers(2**31))
            previous[actor.figure.name] = seed
            self._paint_actor(actor, np.random.default_rng(seed), COAT_PIXELS, CUBE_PIXELS)

    def _paint_actor(self, actor: Actor, rng, coat_pixels: int, cube_pixels: int) -> None:
        stage, surfaces = self.stage, self.surfaces
        tone = np.array(SKIN_TONES[int(rng.integers(len(SKIN_TONES)))]) + rng.normal(0, 8, 3)
        if actor.figure.name == "person":
            coat = surfaces.clothes(rng, coat_pixels, tone)
        elif actor.figure.name == "dog":
            coat = surfaces.dog(rng, coat_pixels)
        else:
            coat = surfaces.coat(rng, coat_pixels)
        stage.paint(actor.prefix + "coat", coat)
        first = cv2.resize(coat, (cube_pixels, cube_pixels), interpolation=cv2.INTER_AREA)
        for part, paint in enumerate(actor.figure.paints):
            if paint == "coat":
                picture = first if part == 0 else surfaces.coat(rng, cube_pixels)
            else:
                picture = _plain(rng, cube_pixels, paint, tone)
            stage.paint(f"{actor.prefix}part{part}", picture)
        material = stage.model.mat(actor.prefix + "coat")
        material.specular[:] = rng.uniform(0, 0.3)
        material.shininess[:] = rng.uniform(0.05, 0.5)

    def _stand(self, t: float) -> None:
        """Set poses and camera to second ``t``."""
        self._pose(t)
        self.stage.update()
        self._aim(t)

    def preview(self) -> tuple[np.ndarray, list[str]] | None:
        """Render only the masks: ids ``[T,H,W]`` and figures, or None if too little is visible."""
        stage, (rows, columns) = self.stage, self.stage.size
        ids = []
        for t in self.times:
            self._stand(t)
            ids.append(_reduce_ids(stage.segment(), rows, columns, len(stage.actors)))
        return self._choose(np.stack(ids))

    def shoot(self, ids: np.ndarray, names: list[str]) -> Take:
        """Light and paint the scene, and render the frames of :meth:`preview`'s masks."""
        self._light()
        self._paint()
        rows, columns = self.stage.size
        frames, sensor = [], Sensor(self.rng, self.style)
        for t in self.times:
            self._stand(t)
            picture = cv2.resize(
                self.stage.picture(), (columns, rows), interpolation=cv2.INTER_AREA
            )
            frames.append(sensor(picture))
        return Take(np.stack(frames), ids, names)

    def _choose(self, ids: np.ndarray):
        """Drop objects that are hardly visible, and number the others from 1."""
        count = len(self.stage.actors)
        shares = np.array([(ids == k).mean((1, 2)) for k in range(1, count + 1)])
        seen = [k for k in range(count) if shares[k].max() >= MIN_SEEN]
        if not seen or shares[seen, 0].max() < MIN_FIRST or shares.max() > MAX_SHARE:
            return None
        table = np.zeros(count + 1, np.uint8)
        for number, k in enumerate(seen, 1):
            table[k + 1] = number
        return table[ids], [self.stage.actors[k].figure.name for k in seen]


class Sensor:
    """Simulate the camera's exposure, colours and noise."""

    def __init__(self, rng: np.random.Generator, style: dict) -> None:
        self.rng = rng
        bright, noise = style.get("bright", False), style.get("noise", 6.0)
        self.gamma = np.exp(rng.normal(0, 0.15)) if not bright else 0.85
        self.gain = rng.uniform(0.95 if bright else 0.85, 1.15) * (1 + rng.normal(0, 0.03, 3))
        self.saturation = rng.uniform(0.6, 1.15)
        self.noise = rng.uniform(0, noise) if rng.random() < 0.5 else 0.0
        self.blur = rng.uniform(0.4, 0.9) if rng.random() < 0.25 else 0.0

    def __call__(self, picture: np.ndarray) -> np.ndarray:
        values = (picture / 255.0) ** self.gamma * self.gain
        grey = values.mean(-1, keepdims=True)
        values = grey + (values - grey) * self.saturation
        if self.blur:
            values = cv2.GaussianBlur(values, (0, 0), self.blur)
        values = values * 255 + self.noise * self.rng.standard_normal(picture.shape)
        return np.clip(np.round(values), 0, 255).astype(np.uint8)


def _mat_to_quat(quat: np.ndarray, matrix: np.ndarray) -> None:
    from .simulator import mujoco

    mujoco.mju_mat2Quat(quat, np.ascontiguousarray(matrix).reshape(-1))


def _plain(rng: np.random.Generator, size: int, paint: str, tone: np.ndarray) -> np.ndarray:
    """Draw skin, hair, leather or a dark material in almost one colour."""
    if paint == "skin":
        colour = tone
    elif paint == "hair":
        colour = np.array(HAIR[int(rng.integers(len(HAIR)))], float)
    elif paint == "leather":
        colour = rng.choice([25, 60, 110, 225]) + rng.normal(0, 18, 3)
    else:
        colour = np.array([22.0, 20, 20])
    grain = rng.normal(0, 4, (size, size, 1)) + rng.normal(0, 5, 3)
    return np.clip(colour + grain, 0, 255).astype(np.uint8)


def _reduce_ids(ids: np.ndarray, rows: int, columns: int, count: int) -> np.ndarray:
    """Downscale ids to the image size by majority vote."""
    if ids.shape == (rows, columns):
        return ids
    best, result = None, np.zeros((rows, columns), np.uint8)
    for k in range(count + 1):
        share = cv2.resize(
            (ids == k).astype(np.float32), (columns, rows), interpolation=cv2.INTER_AREA
        )
        if best is None:
            best = share
        else:
            result[share > best] = k
            best = np.maximum(best, share)
    return result


def make_clip(
    stage: Stage,
    seed: tuple[int, ...],
    surfaces: Surfaces,
    frames: int,
    seconds: float,
    **style,
) -> Take:
    """Render a clip, and try further plans if too little is visible.

    Args:
        stage: The stage.
        seed: Numbers that determine the clip.
        surfaces: Source of textures.
        frames: Number of frames.
        seconds: Time from the first frame to the last.
        style: See :class:`Clip`.

    Raises:
        ValueError: No plan was found in which the objects are visible.
    """
    for attempt in range(ATTEMPTS):
        rng = np.random.default_rng((*seed, attempt))
        clip = Clip(stage, rng, surfaces, frames, seconds, **style)
        seen = clip.preview()
        if seen is not None:
            return clip.shoot(*seen)
    raise ValueError(f"no clip with visible {[a.figure.name for a in stage.actors]} was found")


__all__ = ["CASTING", "FIGURES", "Clip", "Take", "draw_cast", "load_figure", "make_clip"]
