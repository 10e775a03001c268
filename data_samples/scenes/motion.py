"""Animate figures: gaits by inverse kinematics, smooth noise, and paths on the ground."""

from __future__ import annotations

import functools
import re

import numpy as np

from .figures import Figure, load_figure
from .simulator import mujoco

GAIT_STEPS = 16  # phases of the stored cycle
DUTY = 0.6  # fraction of the cycle in which a foot is on the ground
ITERATIONS = 12


def rotation(quat) -> np.ndarray:
    """Return the matrix ``[3,3]`` of a quaternion."""
    matrix = np.zeros(9)
    mujoco.mju_quat2Mat(matrix, np.asarray(quat, float))
    return matrix.reshape(3, 3)


def multiply(*quats) -> np.ndarray:
    """Return the product of quaternions."""
    result = np.array([1.0, 0, 0, 0])
    for quat in quats:
        product = np.zeros(4)
        mujoco.mju_mulQuat(product, result, np.asarray(quat, float))
        result = product
    return result


def turn(axis, angle: float) -> np.ndarray:
    """Return the quaternion of a turn by ``angle`` radians."""
    quat = np.zeros(4)
    mujoco.mju_axisAngle2Quat(quat, np.asarray(axis, float), float(angle))
    return quat


class SmoothNoise:
    """Smooth noise from a few sines, about -1 to 1, in ``count`` channels."""

    def __init__(self, rng: np.random.Generator, count: int, slow: float, fast: float) -> None:
        self.frequency = rng.uniform(slow, fast, (3, count))
        self.phase = rng.uniform(0, 2 * np.pi, (3, count))
        self.weight = np.array([0.55, 0.3, 0.15])[:, None]

    def __call__(self, t: float, delay: np.ndarray | float = 0.0) -> np.ndarray:
        angle = 2 * np.pi * self.frequency * (t - np.asarray(delay)) + self.phase
        return (self.weight * np.sin(angle)).sum(0)


@functools.lru_cache(maxsize=32)
def hinges(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Return ids of the figure's hinge joints (without its root's) and their limits ``[n,2]``."""
    figure = load_figure(name)
    model = figure.model
    ids = [
        j
        for body in figure.bodies
        for j in range(model.body_jntadr[body], model.body_jntadr[body] + model.body_jntnum[body])
        if model.jnt_type[j] == mujoco.mjtJoint.mjJNT_HINGE
        and not (body == figure.root and model.joint(j).name.startswith("root"))
    ]
    limits = model.jnt_range[ids].copy() if ids else np.zeros((0, 2))
    free = ~model.jnt_limited[ids].astype(bool) if ids else np.zeros(0, bool)
    limits[free] = (-1.5, 1.5)
    return np.array(ids, int), limits


def _limb_joints(figure: Figure, body: str) -> list[int]:
    """Return joints from a foot up to the body that also carries another limb."""
    model = figure.model
    ends = [model.body(limb.body).id for limb in figure.limbs]

    def ancestors(b: int) -> list[int]:
        chain = []
        while b != figure.root and b > 0:
            chain.append(b)
            b = int(model.body_parentid[b])
        return chain

    own = ancestors(model.body(body).id)
    others = {b for end in ends if end != own[0] for b in ancestors(end)}
    joints = []
    for b in own:
        if b in others:
            break
        joints += range(model.body_jntadr[b], model.body_jntadr[b] + model.body_jntnum[b])
    return joints


@functools.lru_cache(maxsize=32)
def gait(name: str) -> tuple[np.ndarray, np.ndarray, float]:
    """Compute a walking cycle with planted feet, by damped least squares.

    Returns:
        Angles ``[GAIT_STEPS,n]`` of all hinges, which of them belong to limbs ``[n]`` bool, and
        the distance of one cycle as a fraction of the figure's length.
    """
    figure = load_figure(name)
    model = figure.model
    data = mujoco.MjData(model)
    ids, limits = hinges(name)
    addresses = model.jnt_qposadr[ids]
    if not figure.limbs:
        rest = np.clip(model.qpos0[addresses], limits[:, 0], limits[:, 1])
        return np.repeat(rest[None], GAIT_STEPS, 0), np.zeros(len(ids), bool), 0.0
    matrix = rotation(figure.upright)
    ahead, up = matrix[0], matrix[2]  # rows of the rotation are the axes in the model's frame
    mujoco.mj_kinematics(model, data)
    limbs = []
    for limb in figure.limbs:
        body = model.body(limb.body).id
        joints = _limb_joints(figure, limb.body)
        top = data.xanchor[joints[-1]]
        reach = float((top - data.xpos[body]) @ up)
        rest = data.xpos[body].copy()
        if limb.is_hand:
            arm = np.linalg.norm(data.xpos[body] - top)
            side = data.xpos[body] - top
            side = side - up * (side @ up) - ahead * (side @ ahead)
            rest = top - 0.85 * arm * up + 0.2 * arm * side / (np.linalg.norm(side) + 1e-9)
            reach = arm
        limbs.append((limb, body, model.jnt_dofadr[joints], joints, rest, reach))
    reach = np.mean([entry[5] for entry in limbs if not entry[0].is_hand])
    stride = figure.stride * reach
    table = np.zeros((2 * GAIT_STEPS, len(ids)))
    for step in range(len(table)):  # two cycles, so that the end matches the start
        phase = step / GAIT_STEPS
        for limb, body, dofs, joints, rest, length in limbs:
            target = rest + _foot_offset(limb, phase, stride, length, ahead, up)
            _reach_for(model, data, body, dofs, joints, target)
        table[step] = data.qpos[addresses]
    members = np.isin(ids, [j for entry in limbs for j in entry[3]])
    return table[GAIT_STEPS:], members, stride / DUTY / figure.length


def _foot_offset(limb, phase: float, stride: float, reach: float, ahead, up) -> np.ndarray:
    p = (phase + limb.phase) % 1
    if limb.is_hand:
        swing = np.sin(2 * np.pi * p)
        return 0.28 * reach * swing * ahead + 0.05 * reach * (1 + swing) * up
    crouch = 0.04 * reach
    if p < DUTY:
        return stride * (0.5 - p / DUTY) * ahead + crouch * up
    q = (p - DUTY) / (1 - DUTY)
    lift = 0.16 * reach * np.sin(np.pi * q)
    return stride * (-0.5 + (3 - 2 * q) * q * q) * ahead + (crouch + lift) * up


def _reach_for(model, data, body: int, dofs, joints, target: np.ndarray) -> None:
    """Move the joints of one limb so that its body comes to ``target``."""
    jacobian = np.zeros((3, model.nv))
    addresses = model.jnt_qposadr[joints]
    limits = model.jnt_range[joints]
    limited = model.jnt_limited[joints].astype(bool)
    for _ in range(ITERATIONS):
        mujoco.mj_kinematics(model, data)
        mujoco.mj_comPos(model, data)
        error = target - data.xpos[body]
        mujoco.mj_jacBody(model, data, jacobian, None, body)
        part = jacobian[:, dofs]
        damping = 1e-3 * np.trace(part @ part.T) * np.eye(3) + 1e-12 * np.eye(3)
        change = part.T @ np.linalg.solve(part @ part.T + damping, error)
        angles = data.qpos[addresses] + np.clip(change, -0.4, 0.4)
        clipped = np.clip(angles, limits[:, 0], limits[:, 1])
        data.qpos[addresses] = np.where(limited, clipped, angles)


class Poses:
    """Joint angles of a figure over time."""

    def __init__(
        self,
        rng: np.random.Generator,
        figure: Figure,
        cadence: float,
        walking: float,
        lively: float,
    ) -> None:
        """Sample the motion of one clip.

        Args:
            rng: Source of all random values.
            figure: The figure.
            cadence: Cycles per second.
            walking: 1 for a gait, 0 for standing.
            lively: Multiplier of the noise amplitude.
        """
        self.table, self.members, _ = gait(figure.name)
        ids, self.limits = hinges(figure.name)
        names = [figure.model.joint(int(j)).name.split("/")[-1] for j in ids]
        self.cadence, self.walking = cadence, walking
        self.start = rng.uniform(0, 1)
        self.mode = figure.motion
        # Joints of one chain (a tail, a spine) share a wave that runs along it.
        stems = [re.sub(r"\d+", "", n) for n in names]
        unique = sorted(set(stems))
        self.channel = np.array([unique.index(s) for s in stems], int)
        digits = [re.search(r"\d+", n) for n in names]
        lag = 0.16 if figure.motion == "crawl" else 0.02
        self.delay = np.array([int(d.group()) * lag if d else 0.0 for d in digits])
        speed = 0.9 if figure.motion in ("swim", "crawl") else 0.5
        self.noise = SmoothNoise(rng, max(1, len(unique)), 0.15 * speed, 1.6 * speed)
        half = np.diff(self.limits, axis=1)[:, 0] / 2
        amount = figure.noise * lively * np.minimum(half, 1.2)
        quiet = np.array([any(q in n for q in figure.quiet) for n in names], bool)
        amount = np.where(quiet, 0.1 * amount, amount)
        self.amount = np.where(self.members, 0.25 * amount, amount)

    def __call__(self, t: float) -> np.ndarray:
        """Return the angles ``[n]`` at second ``t``."""
        at = (self.start + self.cadence * t) % 1 * GAIT_STEPS
        low = int(at) % GAIT_STEPS
        walk = self.table[low] + (at - int(at)) * (
            self.table[(low + 1) % GAIT_STEPS] - self.table[low]
        )
        mean = self.table.mean(0)
        base = mean + self.walking * (walk - mean)
        wave = self.noise(t)[self.channel] if len(self.channel) else np.zeros(0)
        if self.delay.any():
            wave = np.array(
                [self.noise(t - d)[c] for d, c in zip(self.delay, self.channel, strict=True)]
            )
        return np.clip(base + self.amount * wave, self.limits[:, 0], self.limits[:, 1])


class Path:
    """A path on the ground that passes a point at a given time."""

    STEP = 0.02

    def __init__(
        self,
        rng: np.random.Generator,
        seconds: float,
        speed: float,
        through: np.ndarray,
        heading: float,
        curvature: float,
        returns: bool,
    ) -> None:
        count = int(seconds / self.STEP) + 2
        times = np.arange(count) * self.STEP
        bend = SmoothNoise(rng, 1, 0.1, 0.5)
        rate = np.array([curvature * bend(t)[0] for t in times])
        if returns:  # turns around in the middle
            middle = np.exp(-(((times - seconds * rng.uniform(0.4, 0.6)) / (0.13 * seconds)) ** 2))
            rate += rng.choice([-1, 1]) * np.pi * middle / (middle.sum() * self.STEP)
        pace = 1 + 0.3 * np.array([SmoothNoise.__call__(bend, t + 7)[0] for t in times])
        self.headings = heading + np.cumsum(rate) * self.STEP
        steps = speed * pace[:, None] * self.STEP
        way = np.cumsum(np.stack([np.cos(self.headings), np.sin(self.headings)], 1) * steps, 0)
        middle = int(count * rng.uniform(0.3, 0.7))
        self.headings += heading - self.headings[middle]
        way = np.cumsum(np.stack([np.cos(self.headings), np.sin(self.headings)], 1) * steps, 0)
        self.points = way - way[middle] + through

    def __call__(self, t: float) -> tuple[np.ndarray, float]:
        """Return position ``[2]`` and heading at second ``t``."""
        at = np.clip(t / self.STEP, 0, len(self.points) - 1.001)
        low, part = int(at), at - int(at)
        point = self.points[low] * (1 - part) + self.points[low + 1] * part
        return point, self.headings[low] * (1 - part) + self.headings[low + 1] * part
