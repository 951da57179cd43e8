r"""Pushing and reaching on a MuJoCo table: stepped together, seen whole, replayed from actions.

Survey: sections 2.2.3 and 3.4.3, Eq. (7).
Symbols: s_t -> the image of the table and the mission, a_t -> one of four moves of the hand,
    y -> `Episode`.
Departs: the hand goes from place to place of a lattice, at one height.  Touching a thing that was
    not named ends an episode.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import hypot
from typing import Any, ClassVar

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete, Space, Text
from torch import Generator, Tensor

from minivisrl import UserError
from minivisrl.rollout import Prompts
from minivisrl.vla.manipulation_levels import (
    SIDE,
    Layout,
    Place,
    Point,
    Thing,
    layout_of,
    nearest,
    plan,
)
from minivisrl.vla.manipulation_scene import (
    PIXELS,
    Studio,
    enter,
    hand_of,
    leave,
    things_of,
    touched_of,
)
from minivisrl.vla.world import World

ACTIONS = ("left", "right", "up", "down")  # up: away from the viewer
NAMES = ("hand", "target", "goal", "block", "ball", "ring", "empty")


class Table(gymnasium.Env):
    """One layout as a Gymnasium environment.

    `ended`, `success` and `failed` (by the wrong thing, not by time) tell how it stands.
    """

    metadata: ClassVar[dict[str, Any]] = {"render_modes": ["rgb_array"], "render_fps": 4}
    action_space: Space = Discrete(len(ACTIONS))
    observation_space: Space = Dict(
        {
            "image": Box(0, 255, (PIXELS, PIXELS, 3), np.uint8),
            "mission": Text(64, charset="abcdefghijklmnopqrstuvwxyz "),
        }
    )
    render_mode = "rgb_array"

    def __init__(self, layout: Layout) -> None:
        self.layout, self.mission = layout, layout.mission
        self.studio: Studio | None = enter(self)
        self._begin()

    def _begin(self) -> None:
        self.state = self._studio().start(self.layout)
        self.ended = self.success = self.failed = False
        self.step_count, self.farthest = 0, self.way()

    def _studio(self) -> Studio:
        if self.studio is None:
            raise UserError("this table is closed; make another")
        return self.studio

    def reset(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start anew; a seed changes nothing, for the layout says everything."""
        super().reset(**options)
        self._begin()
        return self.observation(), {}

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Send the hand one place on; an episode that has ended stays ended."""
        self.move(action)
        truncated = self.ended and not (self.success or self.failed)
        told = {"covered": self.covered}
        return self.observation(), float(self.success), self.ended, truncated, told

    def move(self, action: int) -> None:
        """A step without a picture."""
        if not self.ended:
            self.state = self._studio().move(self.layout, self.state, action)
            self.step_count += 1
            self._judge()

    def _judge(self) -> None:
        layout, touched = self.layout, touched_of(self.state)
        others = [when for i, when in enumerate(touched) if i != layout.thing and when]
        if layout.goal is None:
            first = touched[layout.thing]
            done, self.failed = first > 0, any(not first or when < first for when in others)
        else:
            goal = layout.goals[layout.goal]
            done, self.failed = nearest(self.led()) == nearest((goal.x, goal.y)), bool(others)
        self.success = done and not self.failed
        self.ended = done or self.failed or self.step_count >= layout.limit

    def led(self) -> Point:
        """Where that is which is to be led to the goal: the thing, or the hand."""
        if self.layout.thing is None:
            return hand_of(self.state)
        thing = self.things()[self.layout.thing]
        return thing.x, thing.y

    def things(self) -> list[Thing]:
        """The things where they are now."""
        return things_of(self.layout, self.state)

    def way(self) -> float:
        """Places from the hand to the thing, and from there to the goal, as far as each is told."""
        (x, y), (right, away) = self.led(), hand_of(self.state)
        way = hypot(x - right, y - away)
        if self.layout.goal is not None:
            goal = self.layout.goals[self.layout.goal]
            way += hypot(goal.x - x, goal.y - y)
        return way

    @property
    def covered(self) -> float:
        """Share of the way that was covered: 0 where nothing was gained, 1 with success."""
        return 1.0 if self.success else min(max(1 - self.way() / self.farthest, 0.0), 1.0)

    def observation(self) -> dict[str, Any]:
        """The table (60, 60, 3), and the mission."""
        return {"image": self.render(), "mission": self.mission}

    def render(self) -> np.ndarray:
        """(60, 60, 3) uint8."""
        return self._studio().view(self.layout, self.state)

    def close(self) -> None:
        """Let go of the simulator and of OpenGL; they go with the last table that is open."""
        if self.studio is not None:
            leave(self, self.studio)
        self.studio = None

    def names(self) -> list[str]:
        """A word of `NAMES` for every place, in reading order of the image."""
        layout, shown = self.layout, {}
        for i, goal in enumerate(layout.goals):
            shown[nearest((goal.x, goal.y))] = "goal" if i == layout.goal else "ring"
        for i, thing in enumerate(self.things()):
            shown[nearest((thing.x, thing.y))] = "target" if i == layout.thing else thing.kind
        shown[nearest(hand_of(self.state))] = "hand"
        places: list[Place] = [(x, y) for y in reversed(range(SIDE)) for x in range(SIDE)]
        return [shown.get(place, "empty") for place in places]

    def plan(self) -> list[int] | None:
        """The scripted expert: the moves that it would make from here; None if it knows none."""
        where = [(thing.x, thing.y) for thing in self.things()]
        return plan(self.layout, hand_of(self.state), where)


@dataclass(frozen=True)
class Episode:
    """What was done on a table: enough to watch it again, for the physics holds no chance.

    Args:
        actions: numbers of `ACTIONS`; what comes after the end of the episode is ignored.
        success: whether the mission was accomplished.
        covered: share of the way that was covered.
    """

    level: Layout
    actions: tuple[int, ...]
    success: bool = False
    covered: float = 0.0

    start: ClassVar[int] = 0  # a whole episode, never a segment

    @property
    def steps(self) -> int:
        """Moves of the episode."""
        return len(self.actions)

    @property
    def spl(self) -> float:
        """Success weighted by path length: shortest / taken, and 0 without success."""
        return self.success * self.level.shortest / max(self.steps, self.level.shortest)

    def watch(self) -> Iterator[tuple[Table, np.ndarray]]:
        """The table, and its image (60, 60, 3), before every action and at the end.

        Raises:
            UserError: an action that is none of `ACTIONS`.
        """
        if wrong := [a for a in self.actions if a not in range(len(ACTIONS))]:
            raise UserError(f"action {wrong[0]!r} is unknown; give 0 to {len(ACTIONS) - 1}")
        table = Table(self.level)
        image = table.render()
        for action in self.actions:
            if table.ended:
                break
            yield table, image
            image = table.step(action)[0]["image"]
        yield table, image

    def frames(self) -> Tensor:
        """(S + 1, 3, 60, 60) uint8: what was seen before each of S actions, and at the end."""
        return torch.from_numpy(np.stack([image for _, image in self.watch()])).permute(0, 3, 1, 2)


class Tables:
    """The tables of N layouts, stepped together; nothing is reset by itself.

    `images` (N, 60, 60, 3) uint8 are what the agents see now; `running` (N,) says who still acts.
    """

    def __init__(self, layouts: Sequence[Layout]) -> None:
        self.tables = [Table(layout) for layout in layouts]
        self.images = np.stack([table.render() for table in self.tables])
        self.running = np.ones(len(layouts), dtype=bool)

    def observe(self, rows: np.ndarray) -> Tensor:
        """(M, 3, 60, 60) uint8 of some rows."""
        return torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2).contiguous()

    def step(self, rows: np.ndarray, actions: Sequence[int]) -> None:
        """One move for each of some running rows."""
        for row, action in zip(rows, actions, strict=True):
            table = self.tables[row]
            self.images[row] = table.step(action)[0]["image"]
            self.running[row] = not table.ended

    def episodes(self, actions: Sequence[Sequence[int]]) -> list[Episode]:
        """What was done on each table; of a row's actions those after its end are ignored."""
        return [
            Episode(t.layout, tuple(row[: t.step_count]), t.success, t.covered)
            for row, t in zip(actions, self.tables, strict=True)
        ]

    def close(self) -> None:
        """Close every table."""
        for table in self.tables:
            table.close()


def dense(completions: Sequence[Episode], **_: Any) -> list[float]:
    """1 where the mission was accomplished, else half the share of the way that was covered."""
    return [1.0 if e.success else 0.5 * e.covered for e in completions]


def manipulation_prompts(count: int, split: str, generator: Generator) -> Prompts:
    """`count` tables: columns prompt, level, seed, kind (the verb), and image, the first view."""
    seeds = torch.randint(2**40, (count,), generator=generator).tolist()
    layouts = [layout_of(seed, split) for seed in seeds]
    image = Tables(layouts).observe(np.arange(count))  # (B, 3, 60, 60)
    columns = {"prompt": [layout.mission for layout in layouts], "level": layouts, "image": image}
    return Prompts({**columns, "seed": seeds, "kind": [layout.verb for layout in layouts]})


WORLD = World("manipulation", ACTIONS, NAMES, PIXELS, PIXELS // SIDE, Tables)
