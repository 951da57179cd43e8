"""Tiny agents, levels by hand, and truths about rooms that do not come from the library."""

from __future__ import annotations

import copy
import os
import sys
from itertools import product
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Generator

import minivisrl
from minivisrl import UserError
from minivisrl.rollout import Prompts
from minivisrl.vla.levels import Item, Level
from minivisrl.vla.manipulation_scene import enter, leave
from minivisrl.vla.navigation import Room, Rooms
from minivisrl.vla.policy import VLAPolicy, new_vla

# A 4 x 4 room in the upper left of the canvas; the agent in its middle looks to the right.
#   . . . .
#   . > . R     R: red key (4, 2); B: blue ball (1, 4); D: green door (5, 3), in the wall
#   . . . . D
#   B . . .
ITEMS = (Item("red", "key", 4, 2), Item("blue", "ball", 1, 4), Item("green", "door", 5, 3))


def level(*tasks: tuple[str, int], agent: tuple[int, int, int] = (2, 2, 0), **options) -> Level:
    """The room above with a mission about its items."""
    return Level((1, 1), 4, ITEMS, agent, tasks, **options)


def prompts_of(*levels: Level) -> Prompts:
    """Prompts of levels given by hand, with the columns that policies read."""
    image = Rooms(levels).observe(slice(None))
    missions = [told.mission for told in levels]
    return Prompts({"prompt": missions, "level": list(levels), "image": image})


def brute_force(told: Level, horizon: int = 24) -> int | None:
    """Fewest actions to success, by stepping copies of the real environment breadth first."""
    room = Room(told)
    room.max_steps = 10**6
    room.reset()
    edge, seen = [room], set()
    for count in range(1, horizon + 1):
        following = []
        for before, action in product(edge, (0, 1, 2, 3, 5)):
            after = copy.deepcopy(before)
            after.step(action)
            if after.success:
                return count
            stage = [getattr(after.instrs, name, None) for name in ("a_done", "b_done")]
            state = str((after.grid.encode().tolist(), tuple(after.agent_pos), after.agent_dir))
            state += str((stage, after.carrying and after.carrying.encode()))
            if not after.ended and state not in seen:
                seen.add(state)
                following.append(after)
        edge = following
    return None


def need_table() -> None:
    """Skip the test, or the module, where MuJoCo or OpenGL is missing; but not in CI."""
    try:
        leave(SimpleNamespace, enter(SimpleNamespace))
    except UserError as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error), allow_module_level=True)


def agent(seed: int = 0, **sizes: Any) -> VLAPolicy:
    """An agent of width 16 whose weights are scaled up, so that it is not indifferent."""
    policy = new_vla(seed, **{"width": 16, "seeing": 1, "acting": 1} | sizes)
    with torch.no_grad():
        for weight in policy.model.parameters():
            if weight.ndim > 1:
                weight.mul_(0.4 / weight.std())
    return policy.eval()


def seeded(seed: int = 0) -> Generator:
    """A fresh generator."""
    return Generator().manual_seed(seed)


ROOT = Path(minivisrl.__file__).parent / "vla"
MODULES = ("levels", "navigation", "policy", "pretraining", "segments")  # in order of import


def load(changed: str, old: str, new: str) -> SimpleNamespace:
    """All names of the library's modules, run anew with `old` replaced by `new` in one of them.

    Raises:
        ValueError: `old` does not occur exactly once.
    """
    names = [f"minivisrl.vla.{module}" for module in MODULES]
    before = {name: sys.modules[name] for name in names}
    try:
        for module, name in zip(MODULES, names, strict=True):
            source = (ROOT / f"{module}.py").read_text()
            if module == changed:
                if source.count(old) != 1:
                    raise ValueError(f"{changed}: {source.count(old)} matches of {old!r}, not 1")
                source = source.replace(old, new)
            sys.modules[name] = ModuleType(name)
            exec(compile(source, f"{module}.py", "exec"), vars(sys.modules[name]))
        made = [sys.modules[name] for name in names]
        return SimpleNamespace(**{n: v for m in made for n, v in vars(m).items() if n[0] != "_"})
    finally:
        sys.modules |= before
