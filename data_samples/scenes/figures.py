"""Load the figures of a scene: animals, people, machines and toys.

Models come with dm_control (Apache-2.0). A figure contains the visible parts of the compiled model
as arrays, so that it can be added to a scene at any size and several times, without its floor,
lights, sensors and actuators.
"""

from __future__ import annotations

import functools
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from .simulator import mujoco

VISIBLE_GROUPS = 3  # geoms in groups 3 to 5 are colliders, bones and muscles


@dataclass(frozen=True)
class Limb:
    """A foot or hand that a gait moves: its body, its phase in the cycle (0 to 1)."""

    body: str
    phase: float
    is_hand: bool = False


@dataclass(frozen=True)
class Figure:
    """A figure that can be added to scenes.

    Attributes:
        name: Name in :data:`FIGURES`.
        model: Compiled model of the figure only.
        root: Body id whose subtree is the figure.
        upright: Quaternion that turns the figure so that z is up and x is ahead.
        limbs: Feet and hands of the gait; empty if the figure does not walk.
        motion: ``walk``, ``swim``, ``crawl``, ``arm``, ``roll`` or ``drive``.
        stride: Length of a step as a fraction of the leg length.
        steps_per_second: Range of the cadence.
        noise: Fraction of the joints' range that poses use.
        quiet: Substrings of the names of joints that hardly move.
        parts: Regular expressions for geom names, each with a material (0 to 2).
        paints: Texture of each of the three materials: ``coat``, ``skin``, ``hair``, ``leather``
            or ``dark``.
        flying: Whether it moves above the ground.
    """

    name: str
    model: object
    root: int
    upright: tuple[float, float, float, float] = (1, 0, 0, 0)
    limbs: tuple[Limb, ...] = ()
    motion: str = "walk"
    stride: float = 0.7
    steps_per_second: tuple[float, float] = (0.8, 2.0)
    noise: float = 0.25
    quiet: tuple[str, ...] = ()
    parts: tuple[tuple[str, int], ...] = (
        ("foot|hand|toe|head|face|fin|ankle|tip|black", 1),
        ("eye|mouth|nose|beak|wheel|window", 2),
    )
    paints: tuple[str, str, str] = ("coat", "coat", "dark")
    flying: bool = False
    bodies: tuple[int, ...] = field(default=())

    @functools.cached_property
    def extent(self) -> np.ndarray:
        """Return length, width and height in the rest pose, in the model's unit."""
        low, high = _corners(self)
        return high - low

    @property
    def height(self) -> float:
        """Return the height in the rest pose, in the model's unit."""
        return float(self.extent[2])

    @property
    def length(self) -> float:
        """Return the largest extent in the rest pose, in the model's unit."""
        return float(self.extent.max())


@functools.lru_cache(maxsize=32)
def load_figure(name: str) -> Figure:
    """Load one of :data:`FIGURES`, once per process; ``NAME#N`` is the N-th form of a toy."""
    return FIGURES[name.split("#")[0]](name)


def package_folder(package: str) -> Path:
    found = importlib.util.find_spec(package)
    assert found and found.origin  # the simulator module has checked that the extra is installed
    return Path(found.origin).parent


def _from_file(name: str, path: str, root: str, **options) -> Figure:
    file = str(package_folder("dm_control") / path)
    return _figure(name, mujoco.MjModel.from_xml_path(file), root, **options)


def _figure(name: str, model, root: str, **options) -> Figure:
    root_id = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_BODY, root)
    bodies = [root_id]
    for body in range(root_id + 1, model.nbody):
        if model.body_parentid[body] in bodies:
            bodies.append(body)
    return Figure(name, model, root_id, bodies=tuple(bodies), **options)


def _dog(name: str) -> Figure:
    limbs = (Limb("toe_L", 0), Limb("toe_R", 0.5), Limb("finger_L", 0.5), Limb("finger_R", 0))
    return _from_file(
        name,
        "suite/dog.xml",
        "torso",
        limbs=limbs,
        stride=0.9,
        noise=0.35,
        parts=(("", 2),),  # eyes and claws; the rest is skin
    )


def _rodent(name: str) -> Figure:
    limbs = (Limb("toe_L", 0), Limb("toe_R", 0.5), Limb("hand_L", 0.5), Limb("hand_R", 0))
    path = "locomotion/walkers/assets/rodent.xml"
    return _from_file(
        name,
        path,
        "torso",
        limbs=limbs,
        steps_per_second=(1.5, 3),
        noise=0.5,
        parts=(("", 2),),
    )


def _person(name: str) -> Figure:
    from dm_control.locomotion.soccer.humanoid import Humanoid

    walker = Humanoid(
        visual=Humanoid.Visual.JERSEY, marker_rgba=(1.0, 0.0, 0.0, 1.0), walker_id=0, name=name
    )
    head = walker.mjcf_model.find("body", "head")
    head.add(
        "geom", name="hair", type="ellipsoid", pos=(0, 0.078, -0.017), size=(0.08, 0.07, 0.083)
    )
    walker.mjcf_model.compiler.angle = "radian"  # the model's unit, which the export leaves out
    xml, assets = walker.mjcf_model.to_xml_string(), walker.mjcf_model.get_assets()
    model = mujoco.MjModel.from_xml_string(xml, assets)
    root = next(
        model.body(b).name for b in range(model.nbody) if model.body(b).name.endswith("root")
    )
    prefix = root.removesuffix("root")
    limbs = (
        Limb(prefix + "lfoot", 0),
        Limb(prefix + "rfoot", 0.5),
        Limb(prefix + "lhand", 0.5, is_hand=True),
        Limb(prefix + "rhand", 0, is_hand=True),
    )
    quiet = ("finger", "thumb", "wrist", "hand", "clavicle", "toes")
    upright = (0.5, 0.5, 0.5, 0.5)
    return _figure(
        name,
        model,
        root,
        upright=upright,
        limbs=limbs,
        stride=0.75,
        noise=0.2,
        quiet=quiet,
        parts=(("foot|toes", 1), ("hair", 2)),
        paints=("skin", "leather", "hair"),
    )


def _humanoid(name: str) -> Figure:
    limbs = (
        Limb("left_foot", 0),
        Limb("right_foot", 0.5),
        Limb("left_hand", 0.5, is_hand=True),
        Limb("right_hand", 0, is_hand=True),
    )
    return _from_file(name, "suite/humanoid.xml", "torso", limbs=limbs, noise=0.2)


def _quadruped(name: str) -> Figure:
    limbs = tuple(
        Limb(f"toe_{end}_{side}", 0.0 if (end == "front") == (side == "left") else 0.5)
        for end in ("front", "back")
        for side in ("left", "right")
    )
    return _from_file(name, "suite/quadruped.xml", "torso", limbs=limbs, stride=0.8)


def _ant(name: str) -> Figure:
    return _from_file(
        name, "locomotion/../third_party/ant/ant.xml", "torso", motion="crawl", noise=0.8
    )


def _fly(name: str) -> Figure:
    limbs = tuple(
        Limb(f"claw_T{pair}_{side}", 0.0 if (pair % 2 == 0) == (side == "left") else 0.5)
        for pair in (1, 2, 3)
        for side in ("left", "right")
    )
    path = "locomotion/walkers/assets/fruitfly_v2/fruitfly.xml"
    return _from_file(
        name, path, "thorax", limbs=limbs, stride=0.6, noise=0.15, steps_per_second=(1.5, 3)
    )


def _fish(name: str) -> Figure:
    # The fish swims along its y axis.
    upright = (0.70710678, 0, 0, -0.70710678)
    return _from_file(
        name,
        "suite/fish.xml",
        "torso",
        upright=upright,
        motion="swim",
        noise=0.7,
        steps_per_second=(0.4, 1.2),
        flying=True,
    )


def _cheetah(name: str) -> Figure:
    limbs = (Limb("bfoot", 0), Limb("ffoot", 0.6))
    return _from_file(name, "suite/cheetah.xml", "torso", limbs=limbs, stride=1.1)


def _arm(name: str) -> Figure:
    folder = package_folder("dm_control") / "third_party/kinova"
    spec = mujoco.MjSpec.from_file(str(folder / "jaco_arm.xml"))
    model = spec.compile()
    root = next(b for b in range(1, model.nbody) if model.body_parentid[b] == 0)
    return _figure(name, model, model.body(root).name, motion="arm", noise=0.9)


def _toy(name: str, build: Callable, **options) -> Figure:
    spec = mujoco.MjSpec()
    spec.compiler.degree = False
    number = int(name.split("#")[1]) if "#" in name else 0
    body = spec.worldbody.add_body(name="toy")
    build(body, np.random.default_rng(number))
    return _figure(name, spec.compile(), "toy", **options)


def _shape(body, kind: str, size, pos=(0, 0, 0), name: str = "", quat=(1, 0, 0, 0)) -> None:
    shape = getattr(mujoco.mjtGeom, f"mjGEOM_{kind.upper()}")
    number = len(body.geoms)
    body.add_geom(name=f"{name}_{body.name}{number}", type=shape, size=size, pos=pos, quat=quat)


def _car(name: str) -> Figure:
    def build(body, rng) -> None:
        length, width, height = rng.uniform((0.9, 0.35, 0.16), (1.3, 0.5, 0.3))
        _shape(body, "box", (length, width, height), (0, 0, 0.25 + height))
        cabin = rng.uniform(0.35, 0.75)
        top = 0.25 + 2 * height
        place = (rng.uniform(-0.3, 0.1) * length, 0, top + 0.18)
        _shape(body, "box", (cabin * length, 0.9 * width, 0.2), place, "window")
        _shape(body, "box", (0.95 * cabin * length, 0.88 * width, 0.03), (place[0], 0, top + 0.4))
        _shape(body, "ellipsoid", (0.3, width, height), (length, 0, 0.25 + height))
        across = (0.70710678, 0.70710678, 0, 0)
        for x in (-0.65 * length, 0.65 * length):
            for y in (-width, width):
                _shape(body, "cylinder", (0.25, 0.07, 0), (x, y, 0.25), "wheel", across)

    return _toy(name, build, motion="drive")


def _ball(name: str) -> Figure:
    return _toy(name, lambda body, rng: _shape(body, "sphere", (0.5, 0, 0)), motion="roll")


def _parcel(name: str) -> Figure:
    def build(body, rng) -> None:
        size = rng.uniform(0.2, 0.6, 3)
        kind = str(rng.choice(["box", "cylinder", "ellipsoid", "capsule"]))
        _shape(body, kind, size)
        if rng.random() < 0.6:
            _shape(body, "box", 0.5 * size, size * rng.choice([-1, 1], 3) * 0.7, "head")
        if rng.random() < 0.4:
            _shape(body, "sphere", (0.35 * size.min(), 0, 0), (0, 0, size[2]), "eye")

    return _toy(name, build, motion="toss")


def _drone(name: str) -> Figure:
    def build(body, rng) -> None:
        _shape(body, "ellipsoid", (0.32, 0.22, rng.uniform(0.08, 0.16)))
        arm = rng.uniform(0.4, 0.6)
        for angle in np.pi * (0.25 + 0.5 * np.arange(4)):
            x, y = arm * np.cos(angle), arm * np.sin(angle)
            _shape(body, "box", (arm / 2, 0.03, 0.02), (x / 2, y / 2, 0), "", _about_z(angle))
            _shape(body, "cylinder", (0.24, 0.012, 0), (x, y, 0.07), "head")
        _shape(body, "sphere", (0.07, 0, 0), (0.3, 0, -0.06), "eye")

    return _toy(name, build, motion="swim", flying=True, steps_per_second=(0.6, 1.8))


def _about_z(angle: float) -> tuple[float, float, float, float]:
    return float(np.cos(angle / 2)), 0.0, 0.0, float(np.sin(angle / 2))


def _bird(name: str) -> Figure:
    def build(body, rng) -> None:
        slim = rng.uniform(0.12, 0.2)
        _shape(body, "ellipsoid", (0.42, slim, slim))
        neck = rng.uniform(0.1, 0.4)
        head = (0.4 + 0.5 * neck, 0, neck)
        body.add_geom(
            name="neck",
            type=mujoco.mjtGeom.mjGEOM_CAPSULE,
            fromto=(0.3, 0, 0.03, *head),
            size=(0.05, 0, 0),
        )
        _shape(body, "sphere", (0.09, 0, 0), head, "face")
        _shape(body, "ellipsoid", (0.09, 0.025, 0.025), (head[0] + 0.12, 0, head[2]), "beak")
        _shape(body, "ellipsoid", (0.22, 0.13, 0.02), (-0.5, 0, 0.02), "tip")
        span, chord = rng.uniform(0.25, 0.4), rng.uniform(0.12, 0.22)
        for side in (-1, 1):
            inner = body.add_body(name=f"inner{side}", pos=(0.05, side * 0.1, 0.06))
            inner.add_joint(name=f"wing_in{side}", axis=(side, 0, 0), range=(-0.7, 0.9))
            _shape(inner, "ellipsoid", (chord, span, 0.02), (0, side * span, 0))
            outer = inner.add_body(name=f"outer{side}", pos=(0, side * 1.8 * span, 0))
            outer.add_joint(name=f"wing_out{side}", axis=(side, 0, 0), range=(-0.8, 0.5))
            _shape(outer, "ellipsoid", (0.75 * chord, span, 0.015), (-0.03, side * span, 0), "tip")

    return _toy(name, build, motion="swim", flying=True, steps_per_second=(0.8, 1.6), noise=0.2)


def _snake(name: str) -> Figure:
    def build(body, rng) -> None:
        count, radius = int(rng.integers(9, 15)), rng.uniform(0.05, 0.09)
        _shape(body, "ellipsoid", (1.6 * radius, 1.2 * radius, radius), (radius, 0, 0), "head")
        for k in range(count):
            child = body.add_body(name=f"part{k}", pos=(-0.17 if k else -0.05, 0, 0))
            child.add_joint(name=f"bend{k}", axis=(0, 0, 1), range=(-0.7, 0.7))
            thin = radius * (1 - 0.75 * (k / count) ** 2)
            child.add_geom(
                name=f"skin{k}",
                type=mujoco.mjtGeom.mjGEOM_CAPSULE,
                fromto=(0, 0, 0, -0.17, 0, 0),
                size=(thin, 0, 0),
            )
            body = child

    return _toy(name, build, motion="crawl", noise=0.9, steps_per_second=(0.2, 0.6))


FIGURES: dict[str, Callable[[str], Figure]] = {
    "dog": _dog,
    "rodent": _rodent,
    "person": _person,
    "humanoid": _humanoid,
    "quadruped": _quadruped,
    "ant": _ant,
    "fly": _fly,
    "fish": _fish,
    "cheetah": _cheetah,
    "arm": _arm,
    "car": _car,
    "ball": _ball,
    "parcel": _parcel,
    "drone": _drone,
    "bird": _bird,
    "snake": _snake,
}


def _corners(figure: Figure) -> tuple[np.ndarray, np.ndarray]:
    """Return corners of the upright figure's box in the rest pose."""
    # Use corners of boxes, because bounding spheres are too large for long meshes.
    model = figure.model
    data = mujoco.MjData(model)
    mujoco.mj_kinematics(model, data)
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(figure.upright, float))
    points = []
    for geom in visible_geoms(figure):
        centre, half = model.geom_aabb[geom, :3], model.geom_aabb[geom, 3:]
        signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
        local = centre + signs * half
        points.append(local @ data.geom_xmat[geom].reshape(3, 3).T + data.geom_xpos[geom])
    for skin in range(model.nskin):
        points.append(model.skin_vert[skin_slice(model, skin)])
    points = np.concatenate(points) @ matrix.reshape(3, 3).T
    return points.min(0), points.max(0)


def visible_geoms(figure: Figure) -> list[int]:
    """Return the ids of visible geoms."""
    model = figure.model
    return [
        g
        for g in range(model.ngeom)
        if int(model.geom_bodyid[g]) in figure.bodies
        and model.geom_group[g] < VISIBLE_GROUPS
        and model.geom_rgba[g, 3] > 0.05
        # the rodent's colliders are in a visible group, inside its skin
        and not (figure.name == "rodent" and model.geom_group[g] == 2)
        and (model.geom_matid[g] < 0 or model.mat_rgba[model.geom_matid[g], 3] > 0.05)
    ]


def skin_slice(model, skin: int) -> slice:
    """Return the slice of a skin's vertices."""
    start = int(model.skin_vertadr[skin])
    return slice(start, start + int(model.skin_vertnum[skin]))
