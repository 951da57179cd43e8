r"""A table in MuJoCo, with a hand, blocks, balls and rings; moved and drawn without a display.

Survey: section 3.4.3.
Symbols: s_t -> `Studio.view` of a state, a_t -> `Studio.move`.
Departs: things slide and never turn or tip; a state is positions and speeds, so that one simulator
    serves any number of tables.

MuJoCo and OpenGL are looked for when the first table is set, not when this module is imported.
"""

from __future__ import annotations

import ctypes
import os
import sys
import weakref
from importlib import import_module
from typing import Any

import numpy as np

from minivisrl import UserError
from minivisrl.vla.manipulation_levels import MOVES, SIDE, Layout, Thing, nearest

INSTALL = "pip install mujoco"
SYSTEM = "apt-get install libegl1 libgl1 libgl1-mesa-dri (or libosmesa6)"
LIBRARIES = {"egl": "libEGL.so.1", "osmesa": "libOSMesa.so.8"}
CELL = 0.16  # metres from place to place
THINGS, GOALS = 4, 2  # at most on a table
AXES = 2 * (THINGS + 1)  # x and y of everything that moves; the hand comes last
PIXELS = 60  # a side of a view: ten for every place
RAMP, SETTLE = 12, 8  # steps of 10 ms in which the hand moves, and in which all comes to rest
SHADES = {
    "red": (0.85, 0.12, 0.1),
    "green": (0.1, 0.62, 0.2),
    "blue": (0.15, 0.3, 0.9),
    "yellow": (0.95, 0.8, 0.1),
    "purple": (0.6, 0.2, 0.75),
}
WOOD = "0.87 0.82 0.74 1"

# The camera looks down from the near side, 22 degrees off the vertical.
SCENE = """<mujoco>
<option timestep="0.01" gravity="0 0 0" integrator="implicitfast"/>
<size memory="256K"/>
<default>
  <geom condim="1"/>
  <default class="free"><geom contype="0" conaffinity="0"/></default>
  <default class="thing">
    <joint type="slide" damping="12" range="-0.44 0.44" limited="true"/><geom mass="0.2"/>
  </default>
  <default class="hand"><joint type="slide" damping="110"/></default>
</default>
<visual>
  <headlight ambient="0.45 0.45 0.45" diffuse="0.55 0.55 0.55" specular="0 0 0"/>
  <quality shadowsize="0" offsamples="0" numslices="10" numstacks="6"/>
  <global offwidth="{pixels}" offheight="{pixels}"/>
</visual>
<worldbody>
  <camera name="eye" pos="0 -1.124 2.782" xyaxes="1 0 0 0 0.927 0.375" fovy="18.6"/>
  <geom class="free" type="box" size="0.6 0.6 0.02" pos="0 0 -0.02" rgba="{wood}"/>
  {goals}{things}
  <body name="hand" pos="0 0 0.06">
    <joint name="handx" class="hand" axis="1 0 0"/><joint name="handy" class="hand" axis="0 1 0"/>
    <geom type="cylinder" size="0.07 0.05" mass="1" rgba="1 1 1 1"/>
    <geom class="free" type="capsule" fromto="0 0 0.05 0 0 0.14" size="0.022" mass="0.01"
          rgba="0.1 0.1 0.1 1"/>
  </body>
</worldbody>
<actuator>
  <position joint="handx" kp="4000" forcerange="-200 200"/>
  <position joint="handy" kp="4000" forcerange="-200 200"/>
</actuator>
</mujoco>"""
GOAL = """<geom name="goal{i}" class="free" type="cylinder" size="0.08 0.002" pos="0 0 0.002"/>
<geom name="hole{i}" class="free" type="cylinder" size="0.052 0.002" pos="0 0 0.004" rgba="{wood}"/>
"""
THING = """<body name="thing{i}" pos="0 0 0.06" childclass="thing">
  <joint axis="1 0 0"/><joint axis="0 1 0"/>
  <geom name="block{i}" type="box" size="0.055 0.055 0.055"/>
  <geom name="ball{i}" type="sphere" size="0.06"/>
</body>
"""


def _metres(places: Any) -> np.ndarray:
    return (np.asarray(places, dtype=float) - (SIDE - 1) / 2) * CELL


def _places(metres: np.ndarray) -> np.ndarray:
    return metres / CELL + (SIDE - 1) / 2


def _can_load(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True


def _context(mujoco: Any) -> Any:
    """An OpenGL context without a window: MUJOCO_GL's kind if it is set, else what there is.

    Raises:
        UserError: there is none.
    """
    os.environ.setdefault("LP_NUM_THREADS", "0")  # Mesa's threads cost more than they bring
    asked = os.environ.get("MUJOCO_GL", "").strip().lower()
    found = [name for name, library in LIBRARIES.items() if _can_load(library)]
    kind = asked if asked in LIBRARIES else (found or ["egl"])[0]
    try:
        windowless = import_module(f"mujoco.{kind}") if sys.platform == "linux" else mujoco
        return windowless.GLContext(PIXELS, PIXELS)
    except Exception as error:  # whatever a driver raises
        told = f"manipulation cannot draw without OpenGL ({kind} fails)"
        raise UserError(f"{told}: {SYSTEM}") from error


class Studio:
    """One simulator and one renderer, for any number of tables.

    A state is an array (25,): x and y of the four things and of the hand, in metres; their speeds;
    and the step of a move in which each was first touched, 0 for never.  Equal states and moves
    give equal states.
    """

    def __init__(self) -> None:
        try:
            self.mujoco = mj = import_module("mujoco")
        except ImportError as error:
            raise UserError(f"manipulation needs MuJoCo: {INSTALL}, and {SYSTEM}") from error
        parts = {"goals": GOAL, "things": THING}
        counts = {"goals": GOALS, "things": THINGS}
        filled = {
            name: "".join(part.format(i=i, wood=WOOD) for i in range(counts[name]))
            for name, part in parts.items()
        }
        text = SCENE.format(pixels=PIXELS, wood=WOOD, **filled)
        self.model = mj.MjModel.from_xml_string(text)
        self.data = mj.MjData(self.model)
        names = [f"{kind}{i}" for kind in ("block", "ball", "goal", "hole") for i in range(THINGS)]
        self.ids = {name: mj.mj_name2id(self.model, mj.mjtObj.mjOBJ_GEOM, name) for name in names}
        self.dressed: Layout | None = None
        context = _context(mj)
        context.make_current()
        self.context, self.drawing = context, mj.MjrContext(self.model, mj.mjtFontScale(50))
        mj.mjr_setBuffer(mj.mjtFramebuffer.mjFB_OFFSCREEN, self.drawing)
        self.scene, self.options = mj.MjvScene(self.model, 40), mj.MjvOption()
        self.camera = mj.MjvCamera()
        self.camera.type, self.camera.fixedcamid = mj.mjtCamera.mjCAMERA_FIXED, 0
        before = mj.get_mju_user_warning()
        mj.set_mju_user_warning(lambda text: None)  # else it writes MUJOCO_LOG.TXT; see `move`
        self.users: weakref.WeakSet[Any] = weakref.WeakSet()
        self._finalizer = weakref.finalize(self, _free, mj, context, self.drawing, before)
        self._finalizer.atexit = False  # then all of it goes with the process

    def close(self) -> None:
        """Free what OpenGL holds; closing twice does no harm."""
        self._finalizer()

    def _dress(self, layout: Layout) -> None:
        """Make the model the one of a layout: colors, kinds, and where the goals are."""
        if self.dressed is layout:
            return
        model, self.dressed = self.model, layout
        for i in range(THINGS):
            thing = layout.things[i] if i < len(layout.things) else None
            for kind in ("block", "ball"):
                geom, here = self.ids[f"{kind}{i}"], thing is not None and thing.kind == kind
                model.geom_rgba[geom] = (*SHADES[thing.color], 1.0) if here else 0.0
                model.geom_contype[geom] = model.geom_conaffinity[geom] = here
        for i, goal in enumerate(layout.goals):
            model.geom_rgba[self.ids[f"goal{i}"]] = (*SHADES[goal.color], 1.0)
            for part in ("goal", "hole"):
                model.geom_pos[self.ids[f"{part}{i}"], :2] = _metres((goal.x, goal.y))

    def start(self, layout: Layout) -> np.ndarray:
        """The state in which a layout begins: all at rest."""
        state = np.zeros(2 * AXES + THINGS + 1)
        for i, thing in enumerate(layout.things):
            state[2 * i : 2 * i + 2] = _metres((thing.x, thing.y))
        state[AXES - 2 : AXES] = _metres(layout.hand)
        return state

    def move(self, layout: Layout, state: np.ndarray, action: int) -> np.ndarray:
        """The state after the hand was sent to the next place in one of the four directions.

        Raises:
            RuntimeError: MuJoCo warns (of numbers that explode, say).
        """
        self._dress(layout)
        data, touched = self.data, state[2 * AXES :].copy()
        self.mujoco.mj_resetData(self.model, data)
        data.qpos[:], data.qvel[:] = state[:AXES], state[AXES : 2 * AXES]
        (x, y), (right, away) = nearest(hand_of(state)), MOVES[action]
        here, there = state[AXES - 2 : AXES], _metres(nearest((x + right, y + away)))
        for time in range(RAMP + SETTLE):
            data.ctrl[:] = here + (there - here) * min(1.0, (time + 1) / RAMP)
            self.mujoco.mj_step(self.model, data)
            if data.ncon:
                new = self.model.geom_bodyid[data.contact.geom].ravel() - 1
                touched[new[touched[new] == 0]] = time + 1
        if data.warning.number.any():
            raise RuntimeError("MuJoCo's simulation of the table is unstable")
        return np.concatenate([data.qpos, data.qvel, touched])

    def view(self, layout: Layout, state: np.ndarray) -> np.ndarray:
        """(60, 60, 3) uint8: the table from above and a little from the near side."""
        self._dress(layout)
        mj = self.mujoco
        self.data.qpos[:] = state[:AXES]
        mj.mj_kinematics(self.model, self.data)
        mj.mj_camlight(self.model, self.data)
        self.context.make_current()
        everything = mj.mjtCatBit.mjCAT_ALL
        mj.mjv_updateScene(
            self.model, self.data, self.options, None, self.camera, everything, self.scene
        )
        self.scene.flags[:] = 0  # no shadows, reflections, sky or fog
        image, frame = np.empty((PIXELS, PIXELS, 3), np.uint8), mj.MjrRect(0, 0, PIXELS, PIXELS)
        mj.mjr_render(frame, self.scene, self.drawing)
        mj.mjr_readPixels(image, None, frame, self.drawing)
        return image[::-1].copy()  # OpenGL's first row is the lowest


def things_of(layout: Layout, state: np.ndarray) -> list[Thing]:
    """The things where they are now, in places."""
    where = _places(state[: AXES - 2]).reshape(THINGS, 2).tolist()
    return [Thing(t.color, t.kind, *at) for t, at in zip(layout.things, where, strict=False)]


def touched_of(state: np.ndarray) -> list[float]:
    """The step of a move in which each of the four things was first touched, 0 for never."""
    return state[2 * AXES :][:THINGS].tolist()


def hand_of(state: np.ndarray) -> tuple[float, float]:
    """Where the hand is now, in places."""
    x, y = _places(state[AXES - 2 : AXES]).tolist()
    return x, y


def _free(mujoco: Any, context: Any, drawing: Any, before: Any) -> None:
    """Give back what a studio held."""
    context.make_current()
    drawing.free()
    context.free()
    mujoco.set_mju_user_warning(before)


_OPEN: dict[int, Studio] = {}  # process -> its studio, while somebody uses it


def enter(user: Any) -> Studio:
    """The studio of this process, made if there is none, for `user` until it leaves.

    Raises:
        UserError: MuJoCo or OpenGL is missing; one line says what to install.
    """
    if os.getpid() not in _OPEN:
        _OPEN[os.getpid()] = Studio()
    _OPEN[os.getpid()].users.add(user)
    return _OPEN[os.getpid()]


def leave(user: Any, shared: Studio) -> None:
    """Take a user off the list; with the last one the studio is closed."""
    shared.users.discard(user)
    if not shared.users:
        _OPEN.pop(os.getpid(), None)
        shared.close()
