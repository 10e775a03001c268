"""Compile figures, ground, walls, blocks and light into one model and render it."""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np

from .figures import Figure, load_figure, skin_slice, visible_geoms
from .motion import hinges, multiply, rotation, turn
from .simulator import mujoco

GROUND_PIXELS, WALL_PIXELS, COAT_PIXELS, CUBE_PIXELS, SKY_PIXELS = 512, 512, 512, 128, 256
WALLS, BOXES, PILLARS, LUMPS, OCCLUDERS = 4, 6, 4, 4, 2
BLOCK_MATERIALS = 4
GEOM_PARTS = 3  # materials of a figure made of geoms: main part, ends, small parts
MESH_CELLS = 20  # per side of the grid on which the vertices of meshes are merged


@dataclass
class Actor:
    """A figure in a stage, with the addresses of its joints and bodies in the model."""

    figure: Figure
    prefix: str
    size: float
    base: np.ndarray  # quaternion that turns the figure upright
    root_address: int = 0
    addresses: np.ndarray | None = None
    bodies: np.ndarray | None = None
    points: np.ndarray | None = None  # [n,3] in the frames of point_bodies
    point_bodies: np.ndarray | None = None
    radii: np.ndarray | None = None


class Stage:
    """A compiled model with a cast of figures; clips change poses, surfaces, light and camera.

    Args:
        cast: Figure names and sizes (largest extent in the scene's unit).
        size: Rows and columns of the images.
        scale: Images are rendered at this multiple of the size and downscaled.
        shadow: Side length of the shadow map.
    """

    def __init__(
        self,
        cast: list[tuple[str, float]],
        size: tuple[int, int],
        scale: float = 2.0,
        shadow: int = 1024,
    ) -> None:
        self.size = size
        self.rows, self.columns = round(size[0] * scale), round(size[1] * scale)
        spec = mujoco.MjSpec()
        spec.compiler.degree = False
        spec.compiler.boundmass = spec.compiler.boundinertia = 1e-4
        spec.compiler.balanceinertia = True
        spec.compiler.autolimits = True
        spec.visual.global_.offwidth, spec.visual.global_.offheight = self.columns, self.rows
        spec.visual.quality.shadowsize, spec.visual.quality.offsamples = shadow, 0
        spec.stat.extent, spec.stat.center = 6.0, (0, 0, 0.5)
        _add_surroundings(spec)
        self.actors = []
        for k, (name, extent) in enumerate(cast):
            figure = load_figure(name)
            self.actors.append(_add_figure(spec, figure, f"f{k}_", extent))
        self.model = spec.compile()
        # Static objects are moved in each clip; the flag would keep them at their compiled
        # position.
        self.model.geom_sameframe[:] = 0
        self.data = mujoco.MjData(self.model)
        for actor in self.actors:
            _locate(self.model, actor)
        self.owner = self._owners()
        self.option = mujoco.MjvOption()
        self.option.geomgroup[:] = 1
        self.option.sitegroup[:] = 0
        self.camera = mujoco.MjvCamera()
        self.scene = mujoco.MjvScene(self.model, maxgeom=self.model.ngeom + 200)
        self._gl = mujoco.GLContext(self.columns, self.rows)
        self._gl.make_current()
        self._context = mujoco.MjrContext(self.model, mujoco.mjtFontScale.mjFONTSCALE_100)
        mujoco.mjr_setBuffer(mujoco.mjtFramebuffer.mjFB_OFFSCREEN, self._context)
        self._viewport = mujoco.MjrRect(0, 0, self.columns, self.rows)

    def close(self) -> None:
        """Free the graphics memory."""
        self._context.free()
        self._gl.free()

    def __enter__(self) -> Stage:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def paint(self, texture: str, picture: np.ndarray) -> None:
        """Replace a texture; a square image is repeated on the faces of a cube."""
        model = self.model
        i = mujoco.mj_name2id(model, mujoco.mjtObj.mjOBJ_TEXTURE, texture)
        height, width = int(model.tex_height[i]), int(model.tex_width[i])
        if height == 6 * picture.shape[0]:
            picture = np.concatenate([picture] * 6)
        start = int(model.tex_adr[i])
        flat = np.ascontiguousarray(picture, np.uint8).reshape(-1)
        assert flat.size == height * width * 3, (texture, picture.shape, height, width)
        model.tex_data[start : start + flat.size] = flat
        mujoco.mjr_uploadTexture(model, self._context, i)

    def place(self, actor: Actor, point, heading: float, height: float | None, tilt=None) -> None:
        """Set an actor's root; ``height`` None puts its lowest point on the ground."""
        model, data = self.model, self.data
        a = actor.root_address
        data.qpos[a : a + 3] = (point[0], point[1], height or 0.0)
        quats = [turn((0, 0, 1), heading)] + ([tilt] if tilt is not None else []) + [actor.base]
        data.qpos[a + 3 : a + 7] = multiply(*quats)
        if height is None:
            mujoco.mj_kinematics(model, data)
            data.qpos[a + 2] -= self.lowest(actor)

    def lowest(self, actor: Actor) -> float:
        """Return the height of the actor's lowest point."""
        matrices = self.data.xmat[actor.point_bodies].reshape(-1, 3, 3)
        z = (matrices[:, 2] * actor.points).sum(1) + self.data.xpos[actor.point_bodies, 2]
        return float((z - actor.radii).min())

    def update(self) -> None:
        """Compute positions after poses have been set."""
        mujoco.mj_kinematics(self.model, self.data)
        mujoco.mj_comPos(self.model, self.data)
        mujoco.mj_camlight(self.model, self.data)

    def _render(self) -> np.ndarray:
        picture = np.empty((self.rows, self.columns, 3), np.uint8)
        mujoco.mjr_render(self._viewport, self.scene, self._context)
        mujoco.mjr_readPixels(picture, None, self._viewport, self._context)
        return picture[::-1]

    def segment(self) -> np.ndarray:
        """Render actor numbers (1, 2, ..., 0 for none) as ``[rows,columns]`` uint8."""
        self._update_scene()
        self.scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = True
        self.scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = True
        picture = self._render().astype(np.int32)
        self.scene.flags[mujoco.mjtRndFlag.mjRND_SEGMENT] = False
        self.scene.flags[mujoco.mjtRndFlag.mjRND_IDCOLOR] = False
        ids = picture[..., 0] + 256 * picture[..., 1] + 65536 * picture[..., 2]
        table = np.zeros(self.scene.ngeom + 1, np.uint8)
        for i in range(self.scene.ngeom):
            geom = self.scene.geoms[i]
            if 0 <= geom.segid < self.scene.ngeom:
                table[geom.segid + 1] = self.owner.get((geom.objtype, geom.objid), 0)
        return table[np.minimum(ids, self.scene.ngeom)]

    def picture(self) -> np.ndarray:
        """Render the colours as ``[rows,columns,3]`` uint8."""
        self._update_scene()
        return self._render()

    def _update_scene(self) -> None:
        mujoco.mjv_updateScene(
            self.model,
            self.data,
            self.option,
            None,
            self.camera,
            mujoco.mjtCatBit.mjCAT_ALL,
            self.scene,
        )

    def _owners(self) -> dict[tuple[int, int], int]:
        """Return actor numbers by the type and id of geoms and skins."""
        owners = {}
        for number, actor in enumerate(self.actors, 1):
            members = set(actor.bodies.tolist())
            for geom in range(self.model.ngeom):
                if int(self.model.geom_bodyid[geom]) in members:
                    owners[int(mujoco.mjtObj.mjOBJ_GEOM), geom] = number
            for skin in range(self.model.nskin):
                if self.model.skin(skin).name.startswith(actor.prefix):
                    owners[int(mujoco.mjtObj.mjOBJ_SKIN), skin] = number
        return owners


def _add_texture(spec, name: str, size: int, kind: str = "2d") -> None:
    types = mujoco.mjtTexture
    texture = spec.add_texture(name=name)
    texture.type = {
        "2d": types.mjTEXTURE_2D,
        "cube": types.mjTEXTURE_CUBE,
        "sky": types.mjTEXTURE_SKYBOX,
    }[kind]
    texture.width, texture.height, texture.nchannel = size, size if kind == "2d" else 6 * size, 3
    texture.data = np.full(texture.width * texture.height * 3, 128, np.uint8).tobytes()


def _add_material(spec, name: str, texture: str | None, **values) -> None:
    material = spec.add_material(name=name, **values)
    if texture:
        material.textures[mujoco.mjtTextureRole.mjTEXROLE_RGB] = texture


def _add_surroundings(spec) -> None:
    types, world = mujoco.mjtGeom, spec.worldbody
    _add_texture(spec, "sky", SKY_PIXELS, "sky")
    _add_texture(spec, "ground", GROUND_PIXELS)
    _add_material(spec, "ground", "ground", texuniform=True, texrepeat=(0.3, 0.3))
    world.add_geom(name="ground", type=types.mjGEOM_PLANE, size=(0, 0, 1), material="ground")
    for i in range(WALLS):
        _add_texture(spec, f"wall{i}", WALL_PIXELS)
        _add_material(spec, f"wall{i}", f"wall{i}", specular=0.0)
        # A box, because the size of a plane is fixed when the context is created.
        world.add_geom(
            name=f"wall{i}", type=types.mjGEOM_BOX, size=(1, 1, 0.01), material=f"wall{i}"
        )
    for i in range(BLOCK_MATERIALS):
        _add_texture(spec, f"block{i}", CUBE_PIXELS, "cube")
        _add_material(spec, f"block{i}", f"block{i}", specular=0.1)
    kinds = [("box", BOXES, types.mjGEOM_BOX), ("pillar", PILLARS, types.mjGEOM_CYLINDER)]
    kinds += [("lump", LUMPS, types.mjGEOM_ELLIPSOID), ("occluder", OCCLUDERS, types.mjGEOM_BOX)]
    for kind, count, shape in kinds:
        for i in range(count):
            shape = types.mjGEOM_CYLINDER if kind == "occluder" and i % 2 else shape
            world.add_geom(
                name=f"{kind}{i}",
                type=shape,
                size=(0.5, 0.5, 0.5),
                material=f"block{i % BLOCK_MATERIALS}",
            )
    for i in range(2):
        world.add_light(
            name=f"light{i}",
            type=mujoco.mjtLightType.mjLIGHT_DIRECTIONAL,
            castshadow=i == 0,
            pos=(0, 0, 8),
            dir=(0, 0, -1),
        )


def _part(figure: Figure, name: str) -> int:
    """Return which of a figure's materials a geom has."""
    return next((part for pattern, part in figure.parts if re.search(pattern, name)), 0)


def _add_figure(spec, figure: Figure, prefix: str, extent: float) -> Actor:
    model = figure.model
    scale = extent / figure.length
    _add_texture(spec, prefix + "coat", COAT_PIXELS)
    _add_material(spec, prefix + "coat", prefix + "coat", specular=0.15, shininess=0.2)
    for part in range(GEOM_PARTS):
        _add_texture(spec, f"{prefix}part{part}", CUBE_PIXELS, "cube")
        _add_material(spec, f"{prefix}part{part}", f"{prefix}part{part}", specular=0.2)
    shown = visible_geoms(figure)
    ids, _ = hinges(figure.name)
    added = {}
    for body in figure.bodies:
        is_root = body == figure.root
        parent = spec.worldbody if is_root else added[int(model.body_parentid[body])]
        position = (0, 0, 0) if is_root else model.body_pos[body] * scale
        quat = (1, 0, 0, 0) if is_root else model.body_quat[body]
        new = parent.add_body(name=f"{prefix}{body}", pos=position, quat=quat)
        added[body] = new
        if is_root:
            new.add_freejoint(name=f"{prefix}root")
        new.add_geom(  # invisible mass, which movable bodies must have
            type=mujoco.mjtGeom.mjGEOM_SPHERE, size=(1e-3, 0, 0), mass=1, rgba=(0, 0, 0, 0)
        )
        for joint in ids[model.jnt_bodyid[ids] == body]:
            new.add_joint(
                name=f"{prefix}{joint}",
                type=mujoco.mjtJoint.mjJNT_HINGE,
                axis=model.jnt_axis[joint],
                pos=model.jnt_pos[joint] * scale,
                ref=model.qpos0[model.jnt_qposadr[joint]],
            )
        for geom in [g for g in shown if model.geom_bodyid[g] == body]:
            part = _part(figure, model.geom(geom).name)
            _add_geom(spec, new, model, geom, scale, f"{prefix}part{part}", prefix)
    for skin in range(model.nskin):
        _add_skin(spec, figure, skin, scale, prefix)
    base = multiply(figure.upright, model.body_quat[figure.root])
    return Actor(figure, prefix, extent, base)


def _add_geom(spec, body, model, geom: int, scale: float, material: str, prefix: str) -> None:
    kind = mujoco.mjtGeom(int(model.geom_type[geom]))
    new = body.add_geom(
        type=kind,
        pos=model.geom_pos[geom] * scale,
        quat=model.geom_quat[geom],
        material=material,
        contype=0,
        conaffinity=0,
        mass=0,
    )
    if kind == mujoco.mjtGeom.mjGEOM_MESH:
        mesh = int(model.geom_dataid[geom])
        name = f"{prefix}mesh{mesh}"
        if not any(m.name == name for m in spec.meshes):
            vertices, faces = _thin_mesh(model, mesh)
            spec.add_mesh(
                name=name,
                uservert=(vertices * scale).ravel().tolist(),
                userface=faces.ravel().tolist(),
                inertia=mujoco.mjtMeshInertia.mjMESH_INERTIA_SHELL,
            )
        new.meshname = name
    else:
        new.size = model.geom_size[geom] * scale


def _thin_mesh(model, mesh: int) -> tuple[np.ndarray, np.ndarray]:
    """Return vertices and faces of a mesh, simplified by merging vertices in grid cells."""
    start, count = int(model.mesh_vertadr[mesh]), int(model.mesh_vertnum[mesh])
    vertices = model.mesh_vert[start : start + count].astype(np.float64)
    start, number = int(model.mesh_faceadr[mesh]), int(model.mesh_facenum[mesh])
    faces = model.mesh_face[start : start + number]
    if count > 2000:
        low = vertices.min(0)
        cell = np.ptp(vertices, 0).max() / MESH_CELLS + 1e-12
        keys = ((vertices - low) / cell).astype(int) @ np.array([1, 1000, 1000000])
        _, first, member = np.unique(keys, return_index=True, return_inverse=True)
        vertices, faces = vertices[first], member.reshape(-1)[faces]
    ok = (faces[:, 0] != faces[:, 1]) & (faces[:, 1] != faces[:, 2]) & (faces[:, 0] != faces[:, 2])
    return vertices, faces[ok]


def _add_skin(spec, figure: Figure, skin: int, scale: float, prefix: str) -> None:
    model = figure.model
    vertices = model.skin_vert[skin_slice(model, skin)]
    start = int(model.skin_faceadr[skin])
    faces = model.skin_face[start : start + int(model.skin_facenum[skin])]
    address = int(model.skin_texcoordadr[skin])
    if address >= 0:
        coordinates = model.skin_texcoord[address : address + len(vertices)]
    else:  # from the side: along the body and from below to above
        low, size = vertices.min(0), np.ptp(vertices, 0)
        flat = (vertices - low) / size
        coordinates = np.stack([flat[:, 0], 1 - flat[:, 2]], 1)
    first = int(model.skin_boneadr[skin])
    bones = range(first, first + int(model.skin_bonenum[skin]))
    ids, weights = [], []
    for bone in bones:
        start = int(model.skin_bonevertadr[bone])
        part = slice(start, start + int(model.skin_bonevertnum[bone]))
        ids.append(model.skin_bonevertid[part].tolist())
        weights.append(model.skin_bonevertweight[part].tolist())
    new = spec.add_skin(name=f"{prefix}skin{skin}", material=prefix + "coat")
    new.vert = (vertices * scale).ravel().tolist()
    new.texcoord = coordinates.ravel().tolist()
    new.face = faces.ravel().tolist()
    new.bodyname = [f"{prefix}{int(model.skin_bonebodyid[b])}" for b in bones]
    new.bindpos = (model.skin_bonebindpos[bones] * scale).ravel().tolist()
    new.bindquat = model.skin_bonebindquat[bones].ravel().tolist()
    new.vertid, new.vertweight = ids, weights
    new.inflate = float(model.skin_inflate[skin]) * scale


def _locate(model, actor: Actor) -> None:
    """Find an actor's joints and bodies, and the points that may touch the ground."""
    figure, prefix = actor.figure, actor.prefix
    actor.root_address = int(model.joint(prefix + "root").qposadr[0])
    ids, _ = hinges(figure.name)
    actor.addresses = np.array([model.joint(f"{prefix}{j}").qposadr[0] for j in ids], int)
    actor.bodies = np.array([model.body(f"{prefix}{b}").id for b in figure.bodies], int)
    members = set(actor.bodies.tolist())
    points, bodies, radii = [], [], []
    types = mujoco.mjtGeom
    for geom in range(model.ngeom):
        body = int(model.geom_bodyid[geom])
        if body not in members or model.geom_matid[geom] < 0:
            continue
        size, kind = model.geom_size[geom], int(model.geom_type[geom])
        matrix = rotation(model.geom_quat[geom])
        if kind in (types.mjGEOM_SPHERE, types.mjGEOM_CAPSULE):
            half = size[1] if kind == types.mjGEOM_CAPSULE else 0.0
            local, radius = np.array([[0, 0, -half], [0, 0, half]]), size[0]
        elif kind == types.mjGEOM_MESH:
            mesh = int(model.geom_dataid[geom])
            start = int(model.mesh_vertadr[mesh])
            vertices = model.mesh_vert[start : start + int(model.mesh_vertnum[mesh])]
            local, radius = vertices[:: max(1, len(vertices) // 40)], 0.0
        else:
            half = model.geom_aabb[geom, 3:]
            factor = 0.6 if kind == types.mjGEOM_ELLIPSOID else 1.0
            signs = np.array(np.meshgrid(*[[-1, 1]] * 3)).reshape(3, -1).T
            local, radius = factor * signs * half, 0.0
        points.append(local @ matrix.T + model.geom_pos[geom])
        bodies += [body] * len(local)
        radii += [radius] * len(local)
    for skin in range(model.nskin):
        if not model.skin(skin).name.startswith(prefix):
            continue
        vertices = model.skin_vert[skin_slice(model, skin)]
        first = int(model.skin_boneadr[skin])
        for bone in range(first, first + int(model.skin_bonenum[skin])):
            start = int(model.skin_bonevertadr[bone])
            part = slice(start, start + int(model.skin_bonevertnum[bone]))
            own = model.skin_bonevertid[part][model.skin_bonevertweight[part] > 0.5]
            own = own[:: max(1, len(own) // 40)]
            matrix = rotation(model.skin_bonebindquat[bone])
            points.append((vertices[own] - model.skin_bonebindpos[bone]) @ matrix)
            bodies += [int(model.skin_bonebodyid[bone])] * len(own)
            radii += [0.0] * len(own)
    actor.points = np.concatenate(points)
    actor.point_bodies, actor.radii = np.array(bodies, int), np.array(radii)
