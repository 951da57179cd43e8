r"""Demonstrations for the base agent: a scripted expert who errs, and who mishears the mission.

Survey: sections 2.2.1 (first stage: supervised fine-tuning on demonstrations) and 3.4.2.
Symbols: p -> a level, y -> `Episode`, pi_SFT -> the clone of the demonstrators.
Departs: the expert is BabyAI's bot, which plans; every action is cloned, the wrong ones too.

A base model should know but be unsure.  Of the demonstrators some act on another mission than they
were given, and all of them stumble.  Which of the two it should listen to is what reinforcement
learning finds out.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf
from random import Random

import torch
from minigrid.utils.baby_ai_bot import BabyAIBot, DropSubgoal
from torch import Generator, Tensor

from minivisrl.optimization.update import validate
from minivisrl.rollout import Prompts, Rollout
from minivisrl.vla.levels import CANVAS, KINDS, Level
from minivisrl.vla.navigation import ACTIONS, NAMES, Episode, Room, navigation_prompts
from minivisrl.vla.policy import VLAPolicy

MOVES = ("left", "right", "forward")


@dataclass(frozen=True, kw_only=True)
class DemonstratorConfig:
    """Who demonstrates, how much, and how well."""

    demonstrations: int = 12000  # how many there are
    batch_size: int = 32  # demonstrations per optimiser step
    stumble: float = 0.2  # share of actions that are random moves
    mishear: float = 0.4  # share of demonstrations of another mission in the same room

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("demonstrations", "batch_size"), (1, inf))
        validate(self, counts | dict.fromkeys(("stumble", "mishear"), (0, 1)))


def misheard(level: Level, random: Random) -> Level:
    """The level with another item in one of its tasks; the level itself if none would do."""
    taken = {item for _, item in level.tasks}
    choices = [
        replace(level, tasks=(*level.tasks[:place], (verb, number), *level.tasks[place + 1 :]))
        for place, (verb, _) in enumerate(level.tasks)
        for number, item in enumerate(level.items)
        if item.kind in KINDS[verb] and number not in taken
    ]
    choices = [choice for choice in choices if choice.shortest is not None]
    return random.choice(choices) if choices else level


def demonstrate(
    level: Level, stumble: float, random: Random, meant: Level | None = None
) -> Episode:
    """BabyAI's bot in a level, with a share of random moves.

    Args:
        meant: the level with the mission that the bot acts on, if it is not the level's own.  The
            episode is still one of `level`, and ends where that does.
    """
    room = Room(meant or level)
    room.reset()
    bot = BabyAIBot(room)
    bot.vis_mask[:] = True  # it sees the whole room, as the agent does
    bot.stack = [goal for goal in bot.stack if not isinstance(goal, DropSubgoal)]
    actions: list[int] = []
    while not room.ended:
        advice = int(bot.replan(actions[-1] if actions else None))
        stumbles = random.random() < stumble
        actions.append(random.randrange(len(MOVES)) if stumbles else min(advice, len(ACTIONS) - 1))
        room.step(actions[-1])
    return watched(Episode(level, tuple(actions)))


def watched(episode: Episode) -> Episode:
    """The episode cut where it ends, with the success that it had."""
    views = list(episode.watch())
    actions = episode.actions[: len(views) - 1]
    return replace(episode, actions=actions, success=views[-1][0].success)


def demonstrations(
    cfg: DemonstratorConfig, split: str, generator: Generator
) -> tuple[Prompts, list[Episode]]:
    """Levels of a split, and what a demonstrator did in each."""
    prompts = navigation_prompts(cfg.demonstrations, split, generator)
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    episodes = []
    for level in prompts["level"]:
        meant = misheard(level, random) if random.random() < cfg.mishear else level
        episodes.append(demonstrate(level, cfg.stumble, random, meant))
    return prompts, episodes


class Pupil(VLAPolicy):
    """An agent that learns from demonstrators who also point at every tile and say what it shows.

    One action a view is too little to learn to see by.
    """

    def logprobs(self, rollout: Rollout) -> Tensor:
        """(N, T) log-probs of the actions plus the mean log-probs of the tiles' names (N, T, I)."""
        where = rollout.mask != 0  # (N, T)
        rows = (where.nonzero()[:, 0] // rollout.group_size).tolist()
        views, names = (rollout.actions[name][where] for name in ("observations", "names"))
        features = self.states(self.inputs(rollout.prompts), rows, views)  # (M, I + 1, D)
        words = self.tokenizer.convert_tokens_to_ids(list(self.world.names))
        heads = self.model.get_output_embeddings().weight[words]
        told = (features[:, :-1] @ heads.T).float().log_softmax(dim=-1)  # (M, I, words)
        named = told.gather(2, names[..., None])[..., 0].mean(dim=1)  # (M,)
        chosen = self.numbers(rollout.actions["tokens"][where])[:, None]
        acted = self.action_logits(features[:, -1]).log_softmax(dim=1).gather(1, chosen)[:, 0]
        return torch.zeros_like(rollout.mask).masked_scatter(where, named + acted)


def cloned(
    policy: Pupil,
    shown: tuple[Prompts, list[Episode]],
    batch_size: int,
    generator: Generator,
    step: int,
) -> Rollout:
    """The batch of a step: demonstrations, encoded, with the names of all that is in view."""
    prompts, episodes = shown
    index = torch.randint(len(prompts), (batch_size,), generator=generator).tolist()
    chosen = [episodes[i] for i in index]
    rollout = policy.encode(prompts.rows(index), chosen, generator)
    names = torch.zeros(*rollout.mask.shape, CANVAS**2, dtype=torch.long)  # (N, T, I)
    for row, episode in enumerate(chosen):
        told = [list(map(NAMES.index, room.names())) for room, _ in episode.watch()][:-1]
        names[row, : len(told)] = torch.tensor(told)
    return replace(rollout, actions={**rollout.actions, "names": names.to(policy.device)})
