r"""Demonstrations on the table: a planner whose hand slips, and who mishears what is meant.

Survey: sections 2.2.1 (first stage: supervised fine-tuning on demonstrations) and 3.4.3.
Symbols: p -> a layout, y -> `Episode`, pi_SFT -> the clone of the demonstrators.
Departs: the expert plans anew after every move, on the lattice; wrong moves are cloned too.
"""

from __future__ import annotations

from dataclasses import replace
from random import Random

import torch
from torch import Generator

from minivisrl.rollout import Prompts, Rollout
from minivisrl.vla.manipulation import ACTIONS, NAMES, Episode, Table, manipulation_prompts
from minivisrl.vla.manipulation_levels import Layout
from minivisrl.vla.pretraining import DemonstratorConfig, Pupil


def misheard(layout: Layout, random: Random) -> Layout:
    """The layout with another thing or goal in its mission; the layout itself if none would do."""
    others = [replace(layout, thing=i) for i in range(len(layout.things)) if i != layout.thing]
    if layout.goal is not None:
        others += [replace(layout, goal=i) for i in range(len(layout.goals)) if i != layout.goal]
    others = [other for other in others if other.shortest]
    return random.choice(others) if others else layout


def demonstrate(
    layout: Layout, stumble: float, random: Random, meant: Layout | None = None
) -> Episode:
    """The planner on a table, with a share of random moves.

    Args:
        meant: the layout with the mission that the expert acts on, if it is not the table's own.
    """
    table, mind = Table(layout), Table(meant or layout)
    actions: list[int] = []
    while not (table.ended or mind.ended):
        slips = random.random() < stumble
        way = None if slips else mind.plan()
        actions.append(way[0] if way else random.randrange(len(ACTIONS)))
        table.move(actions[-1])
        mind.move(actions[-1])
    return Episode(layout, tuple(actions), table.success, table.covered)


def demonstrations(
    cfg: DemonstratorConfig, split: str, generator: Generator
) -> tuple[Prompts, list[Episode]]:
    """Tables of a split, and what a demonstrator did at each."""
    prompts = manipulation_prompts(cfg.demonstrations, split, generator)
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    episodes = []
    for layout in prompts["level"]:
        meant = misheard(layout, random) if random.random() < cfg.mishear else layout
        episodes.append(demonstrate(layout, cfg.stumble, random, meant))
    return prompts, episodes


def named(policy: Pupil, shown: tuple[Prompts, list[Episode]], generator: Generator) -> Rollout:
    """All demonstrations, encoded once, with the names of what every patch shows (N, T, I)."""
    rollout = policy.encode(*shown, generator)
    names = torch.zeros(*rollout.mask.shape, policy.image_tokens, dtype=torch.long)
    for row, episode in enumerate(shown[1]):
        told = [list(map(NAMES.index, table.names())) for table, _ in episode.watch()][:-1]
        names[row, : len(told)] = torch.tensor(told)
    return replace(rollout, actions={**rollout.actions, "names": names.to(policy.device)})
