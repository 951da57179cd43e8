"""How fast agents learn: our PPO and Stable-Baselines3's; and what a step at the table costs.

Ratios only, all of them within one process on one thread: contestants take turns, the first turn
does not count, and it is the processor's time that is counted.

PPO. Equal: the rooms, what is seen of them, the network with its weights (the shipped base) and
value head, the optimiser, the constants, the rows that act at a time, passes over a batch and
optimiser steps a pass, and, to a step a row, the length of a rollout.  Not equal: our rows are
whole episodes of siblings, so equal states are met and computed once, and rows that have ended
wait; theirs go on in the next room, every state is computed, and the last value is bootstrapped.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from statistics import median
from typing import Any

import torch
from torch import Generator

from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer
from minivisrl.recipes.run import RunOptions
from minivisrl.recipes.vla import RLVRPPO, NavigateConfig, rlvr

ROOMS, STEPS = 1024, 500


def speeds(contestants: dict[str, Callable[[], float]], rounds: int) -> dict[str, float]:
    """Median of steps a second of the processor; a turn returns how many steps it made."""
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for turn in range(rounds + 1):
        for name, play in contestants.items():
            start = time.process_time()
            steps = play()
            if turn:
                found[name].append(steps / (time.process_time() - start))
    return {name: median(rates) for name, rates in found.items()}


def ours(batch_size: int, group_size: int) -> OnlineTrainer:
    """The trainer of vla/rlvr-ppo as the recipe makes it."""
    task = NavigateConfig(train_prompts=ROOMS, eval_prompts=1)
    cfg = OnlineConfig(batch_size=batch_size, group_size=group_size, learning_rate=5e-4)
    return rlvr(RLVRPPO(trainer=cfg, task=task), RunOptions(device="cpu")).trainer


def ours_over_stable(batch_size: int = 32, group_size: int = 8, rounds: int = 3) -> float:
    """Environment steps a second of our PPO, acting and learning, over those of theirs."""
    from .stable import stable_ppo

    trainer, rows = ours(batch_size, group_size), batch_size * group_size

    def our_turn() -> float:
        return rows * trainer.step()["completion_length"]

    length = round(our_turn() / rows)
    agent, prompts = ours(batch_size, group_size).policy, trainer.prompts
    agent.value_head = None  # theirs has one
    theirs = stable_ppo(agent, prompts, rows, length, trainer.cfg, trainer.optimization.cfg)

    def their_turn() -> float:
        theirs.learn(rows * length, reset_num_timesteps=False)
        return rows * length

    found = speeds({"ours": our_turn, "theirs": their_turn}, rounds)
    print(f"environment steps a second, {batch_size} x {group_size} rows: {found}")
    return found["ours"] / found["theirs"]


class Floor:
    """A move in bare MuJoCo: as many steps of the physics, one picture, nothing else."""

    def __init__(self, studio: Any, layout: Any) -> None:
        from minivisrl.vla.manipulation_scene import AXES, PIXELS

        self.studio = studio
        studio.view(layout, state := studio.start(layout))
        studio.data.qpos[:] = state[:AXES]
        self.frame = studio.mujoco.MjrRect(0, 0, PIXELS, PIXELS)
        self.image = torch.empty(PIXELS, PIXELS, 3, dtype=torch.uint8).numpy()

    def move(self) -> None:
        from minivisrl.vla.manipulation_scene import RAMP, SETTLE

        s, mj = self.studio, self.studio.mujoco
        for _ in range(RAMP + SETTLE):
            mj.mj_step(s.model, s.data)
        everything = mj.mjtCatBit.mjCAT_ALL
        mj.mjv_updateScene(s.model, s.data, s.options, None, s.camera, everything, s.scene)
        mj.mjr_render(self.frame, s.scene, s.drawing)
        mj.mjr_readPixels(self.image, None, self.frame, s.drawing)


def table_over_floor(rounds: int = 5) -> float:
    """What a move costs that is judged and drawn, new tables included, counted in floors."""
    from minivisrl.vla.manipulation import Table
    from minivisrl.vla.manipulation_levels import MOVES, layout_of

    layouts = [layout_of(seed, "train") for seed in range(100)]
    tables = [Table(layout) for layout in layouts[:8]]
    generator = Generator().manual_seed(0)

    def play() -> float:
        actions = torch.randint(len(MOVES), (STEPS,), generator=generator).tolist()
        for turn, action in enumerate(actions):
            table = tables[turn % len(tables)]
            if table.ended:
                table.reset()
            table.step(action)
        return STEPS

    floor = Floor(tables[0].studio, layouts[0])

    def bare() -> float:
        for _ in range(STEPS):
            floor.move()
        return STEPS

    found = speeds({"table": play, "floor": bare}, rounds)
    for table in tables:
        table.close()
    print(f"moves with a picture a second: {found}")
    return found["floor"] / found["table"]


CONTESTS: dict[str, Callable[[], float]] = {
    "steps of vla/rlvr-ppo / stable-baselines3": ours_over_stable,
    "the same without siblings": lambda: ours_over_stable(64, 1),
    "move at the table / floor": table_over_floor,
}
BOUNDS = {  # at least, at most
    "steps of vla/rlvr-ppo / stable-baselines3": (1.5, None),
    "the same without siblings": (0.8, None),  # at par: what is left is the siblings' equal states
    "move at the table / floor": (None, 3.0),
}
