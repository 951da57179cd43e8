r"""MiniGrid rooms with BabyAI missions: stepped together, seen whole, replayed from their actions.

Survey: sections 2.2.3 and 3.4.2, Eq. (7).
Symbols: s_t -> the image of the whole room and the mission, a_t -> one of MiniGrid's actions,
    y -> `Episode`.
Departs: the agent sees the whole room, where MiniGrid shows what is in front of it; what it carries
    is drawn under it.  Picking up or opening the wrong thing ends an episode.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import product
from typing import Any

import numpy as np
import torch
from gymnasium.spaces import Box as Pixels
from gymnasium.spaces import Dict, Discrete
from torch import Generator, Tensor

os.environ.setdefault("SDL_VIDEODRIVER", "dummy")
os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from minigrid.core.grid import Grid  # noqa: E402
from minigrid.core.world_object import Ball, Box, Door, Key, Wall, WorldObj  # noqa: E402
from minigrid.envs.babyai.core.roomgrid_level import RoomGridLevel  # noqa: E402
from minigrid.envs.babyai.core.verifier import (  # noqa: E402
    AfterInstr,
    BeforeInstr,
    GoToInstr,
    ObjDesc,
    OpenInstr,
    PickupInstr,
)

from minivisrl import UserError  # noqa: E402
from minivisrl.rollout import Prompts  # noqa: E402
from minivisrl.vla.levels import CANVAS, Item, Level, actions_needed, level_of  # noqa: E402
from minivisrl.vla.world import World  # noqa: E402

ACTIONS = ("left", "right", "forward", "pickup", "drop", "toggle")  # MiniGrid's, in its order
TILE = 8  # pixels a side
PIXELS = CANVAS * TILE
NAMES = ("right", "down", "left", "up", "target", "floor", "wall", "ball", "key", "box", "door")
THINGS = {"ball": Ball, "key": Key, "box": Box, "door": Door}


@cache
def _tile(code: tuple[int, int, int] | None, agent_dir: int | None) -> np.ndarray:
    """(8, 8, 3) uint8: MiniGrid's picture of an object, with the agent over it if it is there."""
    thing = None if code is None else WorldObj.decode(*code)
    return Grid.render_tile(thing, agent_dir=agent_dir, tile_size=TILE)


class Room(RoomGridLevel):
    """One level as a Gymnasium environment; an observation shows the whole room."""

    def __init__(self, level: Level) -> None:
        self.level = level
        super().__init__(
            room_size=CANVAS + 2,
            num_rows=1,
            num_cols=1,
            max_steps=level.limit,
            render_mode="rgb_array",
        )
        self.action_space = Discrete(len(ACTIONS))
        image = Pixels(0, 255, (PIXELS, PIXELS, 3), np.uint8)
        mission = self.observation_space["mission"]
        self.observation_space = Dict({"image": image, "mission": mission})

    def gen_mission(self) -> None:
        """Put everything where the level says, and give the mission."""
        level, cells = self.level, range(1, CANVAS + 1)
        for cell in {(x, y) for x in cells for y in cells} - level.room:
            self.grid.set(*cell, Wall())
        for item in level.items:
            self.put_obj(THINGS[item.kind](item.color), item.x, item.y)
        *place, self.agent_dir = level.agent
        self.agent_pos = tuple(place)
        self.instrs = self._instruction()

    def _instruction(self) -> Any:
        parts = []
        for verb, i in self.level.tasks:
            item = self.level.items[i]
            what = ObjDesc(item.kind, item.color)
            strict = {"pick": PickupInstr, "open": OpenInstr}.get(verb)
            parts.append(strict(what, strict=True) if strict else GoToInstr(what))
        if len(parts) == 1:
            return parts[0]
        return AfterInstr(*parts[::-1]) if self.level.after else BeforeInstr(*parts)

    def gen_obs(self) -> dict[str, Any]:
        """The whole room (40, 40, 3) without its outermost walls, and the mission."""
        image = np.empty((CANVAS, TILE, CANVAS, TILE, 3), dtype=np.uint8)
        place = (int(self.agent_pos[0]), int(self.agent_pos[1]))
        for y in range(CANVAS):
            for x in range(CANVAS):
                thing, way = self.grid.get(x + 1, y + 1), None
                if place == (x + 1, y + 1):
                    thing, way = self.carrying or thing, self.agent_dir
                image[y, :, x] = _tile(thing.encode() if thing else None, way)
        return {"image": image.reshape(PIXELS, PIXELS, 3), "mission": self.mission}

    def reset(self, **options: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        """Start the level anew; a seed changes nothing, for the level says everything."""
        self.ended = self.success = self.failed = False
        return super().reset(**options)

    def step(self, action: int) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """One of the six actions; an episode that has ended stays ended."""
        told = super().step(action)
        self.ended, self.success = bool(told[2] or told[3]), told[1] > 0
        self.failed = bool(told[2]) and not self.success  # by the wrong thing, not by time
        return told

    def names(self) -> list[str]:
        """A word of `NAMES` for every tile in view, in reading order.

        The agent's tile tells where it looks, the next task's item is the target, and all else is
        what it is.
        """
        place = (int(self.agent_pos[0]), int(self.agent_pos[1]))
        goal = next((self.level.items[i] for _, i in self.tasks_left()), None)
        told = []
        for y, x in product(range(1, CANVAS + 1), repeat=2):
            thing = self.grid.get(x, y)
            told.append(thing.type if thing else "floor")
            if thing and goal and _is(thing, goal):
                told[-1] = "target"
            if place == (x, y):
                told[-1] = NAMES[self.agent_dir]
        return told

    def tasks_left(self) -> tuple[tuple[str, int], ...]:
        """The tasks that have not been accomplished yet."""
        tasks = self.level.tasks
        if len(tasks) < 2 or self.success:
            return () if self.success else tasks
        first = self.instrs.b_done if self.level.after else self.instrs.a_done
        return tasks[first == "success" :]

    def left(self) -> int | None:
        """Fewest actions from here to success; None where none is left."""
        if self.success or self.failed:
            return 0 if self.success else None
        tasks = self.tasks_left()
        cells = [(x, y) for x in range(1, CANVAS + 1) for y in range(1, CANVAS + 1)]
        things = {cell: thing for cell in cells if (thing := self.grid.get(*cell))}
        free = set(cells) - {cell for cell, thing in things.items() if not thing.can_overlap()}
        items = [self.level.items[i] for _, i in tasks]
        plan = [(verb, (item.x, item.y)) for (verb, _), item in zip(tasks, items, strict=True)]
        if plan[0][0] == "pick":  # it may have been moved, or hands may be full
            found = [cell for cell, thing in things.items() if _is(thing, items[0])]
            if self.carrying or not found:
                return None
            plan[0] = ("pick", found[0])
        place = (int(self.agent_pos[0]), int(self.agent_pos[1]), int(self.agent_dir))
        return actions_needed(free, place, plan)


def _is(thing: WorldObj, item: Item) -> bool:
    return (thing.color, thing.type) == (item.color, item.kind)


class Rooms:
    """The rooms of N levels, stepped together; nothing is reset by itself.

    `images` (N, 40, 40, 3) uint8 are what the agents see now; `running` (N,) says who still acts.
    """

    def __init__(self, levels: Sequence[Level]) -> None:
        self.rooms = [Room(level) for level in levels]
        self.images = np.stack([room.reset()[0]["image"] for room in self.rooms])
        self.running = np.ones(len(levels), dtype=bool)

    def observe(self, rows: np.ndarray) -> Tensor:
        """(M, 3, 40, 40) uint8 of some rows."""
        return torch.from_numpy(self.images[rows]).permute(0, 3, 1, 2).contiguous()

    def step(self, rows: np.ndarray, actions: Sequence[int]) -> None:
        """One action for each of some running rows."""
        for row, action in zip(rows, actions, strict=True):
            room = self.rooms[row]
            self.images[row] = room.step(action)[0]["image"]
            self.running[row] = not room.ended

    def episodes(self, actions: Sequence[Sequence[int]]) -> list[Episode]:
        """What was done in each room; of a row's actions those after its end are ignored."""
        return [
            Episode(room.level, tuple(row[: room.step_count]), room.success)
            for row, room in zip(actions, self.rooms, strict=True)
        ]


@dataclass(frozen=True)
class Episode:
    """What an agent did in a level: enough to watch it again, for rooms hold no chance.

    Args:
        actions: numbers of `ACTIONS`; what comes after the end of the episode is ignored.
        success: whether the mission was accomplished.
        start: where a segment begins that is shown instead of the whole.
    """

    level: Level
    actions: tuple[int, ...]
    success: bool = False
    start: int = 0

    @property
    def steps(self) -> int:
        """Actions of the episode."""
        return len(self.actions)

    @property
    def spl(self) -> float:
        """Success weighted by path length: shortest / taken, and 0 without success."""
        return self.success * self.level.shortest / max(self.steps, self.level.shortest)

    def watch(self) -> Iterator[tuple[Room, np.ndarray]]:
        """The room, and its image (40, 40, 3), before every action of the segment and at its end.

        Raises:
            UserError: an action that is none of `ACTIONS`.
        """
        if wrong := [a for a in self.actions if a not in range(len(ACTIONS))]:
            raise UserError(f"action {wrong[0]!r} is unknown; give 0 to {len(ACTIONS) - 1}")
        room = Room(self.level)
        image = room.reset()[0]["image"]
        for time, action in enumerate(self.actions):
            if room.ended:
                break
            if time >= self.start:
                yield room, image
            image = room.step(action)[0]["image"]
        yield room, image

    def frames(self) -> Tensor:
        """(S + 1, 3, 40, 40) uint8: what the agent saw before each of S actions, and at the end."""
        return torch.from_numpy(np.stack([image for _, image in self.watch()])).permute(0, 3, 1, 2)


def success(completions: Sequence[Episode], **_: Any) -> list[float]:
    """1 where the mission was accomplished, else 0.  Eq. (7)."""
    return [float(episode.success) for episode in completions]


def spl(completions: Sequence[Episode], **_: Any) -> list[float]:
    """Success weighted by path length."""
    return [episode.spl for episode in completions]


def navigation_prompts(count: int, split: str, generator: Generator) -> Prompts:
    """`count` levels: columns prompt, level, seed, kind (the verbs), and image, the first view."""
    seeds = torch.randint(2**40, (count,), generator=generator).tolist()
    levels = [level_of(seed, split) for seed in seeds]
    kinds = [" ".join(verb for verb, _ in level.tasks) for level in levels]
    image = Rooms(levels).observe(np.arange(count))  # (B, 3, 40, 40)
    columns = {"prompt": [level.mission for level in levels], "level": levels, "image": image}
    return Prompts({**columns, "seed": seeds, "kind": kinds})


WORLD = World("navigation", ACTIONS, NAMES, PIXELS, TILE, Rooms)
