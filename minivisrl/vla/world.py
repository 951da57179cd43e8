"""What a policy must know of the world it acts in.

Survey: section 3.4.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

WORLDS = ("navigation", "manipulation")


class Batch(Protocol):
    """The environments of N levels, stepped together; nothing is reset by itself."""

    running: np.ndarray  # (N,) bool: who still acts

    def observe(self, rows: np.ndarray) -> Tensor:
        """(M, 3, H, W) uint8 of some rows."""

    def step(self, rows: np.ndarray, actions: Sequence[int]) -> None:
        """One action for each of some running rows."""

    def episodes(self, actions: Sequence[Sequence[int]]) -> list[Any]:
        """What was done in each; of a row's actions those after its end are ignored."""


class World(NamedTuple):
    """Names, sizes and environments of one kind of world.

    Args:
        name: of its module in `minivisrl.vla`.
        actions: what action token i means.
        names: words for what a patch shows.
        pixels, patch: a side of a view, and of its patches.
        open: the environments of some levels.
    """

    name: str
    actions: tuple[str, ...]
    names: tuple[str, ...]
    pixels: int
    patch: int
    open: Callable[[Sequence[Any]], Batch]


def world_named(name: str) -> World:
    """The world of that name, whose module is imported only now; a ValueError if there is none."""
    if name not in WORLDS:
        raise ValueError(f"world {name!r} is unknown; choose one of {', '.join(WORLDS)}")
    return import_module(f"minivisrl.vla.{name}").WORLD
