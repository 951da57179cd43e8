r"""Annotators who watch pieces of episodes, and a reward model that learns what they like.

Survey: sections 2.2.1 and 3.4, Eq. (3).
Symbols: y_A > y_B -> `compare_segments`, R_phi -> `SegmentJudge`.
Departs: the annotator is a program that likes progress, with noise.  A score is the value of where
    a segment ends less the value of where it begins, so the reward model learns a potential.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import inf
from typing import Any

import torch
from torch import Generator
from torch.distributions import Categorical

from minivisrl.optimization.update import validate
from minivisrl.policy import ActionStats
from minivisrl.rollout import PreferencePairs, Prompts, Rollout
from minivisrl.vla.navigation import Episode
from minivisrl.vla.policy import VLAPolicy
from minivisrl.worlds.annotators import best_and_worst


@dataclass(frozen=True, kw_only=True)
class SegmentConfig:
    """What annotators are shown, and what they like."""

    length: int | None = 8  # actions in a segment, at most; None: whole episodes
    hurry: float = 0.1  # what an action saved is worth, in actions of progress
    noise: float = 1.0  # worth at which the odds become e to 1; 0: always the better one

    def __post_init__(self) -> None:
        validate(self, {"length": (1, inf), "hurry": (0, inf), "noise": (0, inf)})


def progress(completions: Sequence[Episode], **_: Any) -> list[float]:
    """Actions by which each segment came nearer to success.

    Where success is out of reach the way left counts as long as the time limit.
    """
    gains = []
    for episode in completions:
        ways = []
        for room, _image in episode.watch():
            ways += [] if ways else [room.left()]
        ways = [episode.level.limit if way is None else way for way in (*ways, room.left())]
        gains.append(float(ways[0] - ways[1]))
    return gains


def cut(episode: Episode, length: int | None, generator: Generator) -> Episode:
    """A piece of an episode, of `length` actions if there are as many, from a random one on."""
    if length is None or episode.steps <= length:
        return episode
    start = int(torch.randint(episode.steps - length + 1, (), generator=generator))
    reaches_end = start + length == episode.steps
    actions = episode.actions[: start + length]
    return replace(episode, actions=actions, start=start, success=episode.success and reaches_end)


def worth(episodes: Sequence[Episode], cfg: SegmentConfig) -> list[float]:
    """What each segment is worth to an annotator, before the noise."""
    pairs = zip(progress(episodes), episodes, strict=True)
    return [gain - cfg.hurry * (episode.steps - episode.start) for gain, episode in pairs]


def compare_segments(
    prompts: Prompts, episodes: Sequence[Episode], cfg: SegmentConfig, g: Generator
) -> PreferencePairs:
    """The annotator's favourite and least favourite among the segments of each level.

    Args:
        episodes: the same number for each of the B prompts, those of a prompt side by side.
    """
    size = len(episodes) // len(prompts)
    pieces = [cut(episode, cfg.length, g) for episode in episodes]
    values, starts = worth(pieces, cfg), range(0, len(pieces), size)
    shown = [pieces[i : i + size] for i in starts]
    return best_and_worst(prompts, shown, [values[i : i + size] for i in starts], cfg.noise, g)


class SegmentJudge(VLAPolicy):
    """Scores segments and never acts: a rollout has one column, whose value is the score."""

    def encode(self, prompts: Prompts, outputs: Sequence[Episode], generator: Generator) -> Rollout:
        """Segments as rollouts of one column: their first and their last view.  Draws nothing."""
        views = [episode.frames()[[0, -1]] for episode in outputs]
        ends = torch.stack(views).to(self.device)  # (N, 2, 3, H, W)
        ones = torch.ones(len(ends), 1, device=self.device)
        size = len(ends) // len(prompts)
        return Rollout(prompts, {"ends": ends}, 0 * ones, ones, size, list(outputs))

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        """The scores as values (N, 1); there is nothing to be likely, so log-probs are 0."""
        rows = (torch.arange(2 * len(rollout)) // (2 * rollout.group_size)).tolist()
        ends = rollout.actions["ends"].flatten(0, 1)  # (2N, 3, H, W)
        potential = self.state_values(self.distinct_states(rollout.prompts, rows, ends))  # (2N,)
        scores = potential.view(-1, 2).diff(dim=1)  # (N, 1)
        none = torch.zeros_like(rollout.mask)
        dist = Categorical(logits=none[..., None])
        return ActionStats(none, none, scores if values else None, dist)
