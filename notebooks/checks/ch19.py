"""Chapter 19, visual navigation: films of episodes, the corridor, the checks and their mutants."""

import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from minivisrl import DATA
from minivisrl.lab.exercises import foretold
from minivisrl.lab.plots import COLORS, STYLE, bars
from minivisrl.optimization.advantages import gae, group_advantages, shape_rewards
from minivisrl.rollout import Prompts
from minivisrl.vla.levels import Level, level_of
from minivisrl.vla.navigation import ACTIONS, Episode, success
from minivisrl.vla.policy import VLAPolicy

GAMMA, LAMBDA = 0.98, 0.95  # as in the recipe vla/rlvr-ppo
STUDY = DATA / "results" / "navigation.json"
GRID = DATA / "results" / "grid.json"

# Films: an episode with what the policy thought of every frame


@dataclass(frozen=True)
class Film:
    """One episode, frame by frame.

    Args:
        frames: (S + 1, 3, H, W) uint8, before each of S actions and at the end.
        probs: (S, A) of all actions.
        values, advantages: (S,): of the critic (zeros without one), and by GAE.
        group: the episode's advantage among its siblings, one number for all its actions.
    """

    episode: Episode
    frames: Tensor
    probs: Tensor
    values: Tensor
    advantages: Tensor
    group: float

    @property
    def ending(self) -> str:
        """Whether the mission was accomplished, and in how many actions."""
        return f"{'done' if self.episode.success else 'failed'} in {self.episode.steps}"


@torch.no_grad()
def films(policy: VLAPolicy, prompts: Prompts, group_size: int, generator: Generator) -> list[Film]:
    """`group_size` agents in every level: row i * group_size + j is agent j of level i."""
    rollout, known = policy.rollout(prompts, group_size, generator), policy.value_head is not None
    stats, rewards = (
        policy.evaluate_actions(rollout, values=known),
        torch.tensor(success(rollout.outputs)),
    )
    values = stats.values if known else torch.zeros_like(rollout.mask)  # (N, T)
    paid = shape_rewards(rewards, rollout.logprobs, None, rollout.mask, 0.0)  # (N, T)
    advantages, _ = gae(paid, values, rollout.mask, gamma=GAMMA, gae_lambda=LAMBDA)  # (N, T)
    group = group_advantages(rewards.view(-1, group_size)).flatten().tolist()  # N
    told = zip(rollout.outputs, stats.dist.probs, values, advantages, group, strict=True)
    return [
        Film(episode, episode.frames(), p[:n], v[:n], a[:n], g)
        for episode, p, v, a, g in told
        for n in (episode.steps,)
    ]


@torch.no_grad()
def fit_critic(
    policy: VLAPolicy, prompts: Prompts, group_size: int, generator: Generator, ridge: float = 1.0
) -> float:
    """Set the value head to the least squares fit of the discounted returns of fresh episodes.

    This is where `value_loss` would lead the head if the actor stood still.

    Returns:
        the share of the variance of the returns that the values explain.
    """
    rollout = policy.rollout(prompts, group_size, generator)
    mask, blank = rollout.mask, torch.zeros_like(rollout.mask)
    paid = shape_rewards(torch.tensor(success(rollout.outputs)), blank, None, mask, 0.0)
    _, returns = gae(paid, blank, mask, gamma=GAMMA, gae_lambda=1.0)  # (N, T)
    where = mask != 0
    rows, views = where.nonzero()[:, 0] // group_size, rollout.actions["observations"][where]
    features = policy.distinct_states(rollout.prompts, rows.tolist(), views)  # (M, D)
    middle, target = features.mean(dim=0), returns[where]  # (D,), (M,)
    centred, height = features - middle, target.mean()
    square = centred.T @ centred + ridge * torch.eye(len(middle))  # (D, D)
    weight = torch.linalg.solve(square, centred.T @ (target - height))  # (D,)
    if policy.value_head is None:
        policy.add_value_head(generator)
    bias = (height - middle @ weight)[None]
    policy.value_head.load_state_dict({"weight": weight[None], "bias": bias})
    missed = target - height - centred @ weight
    return 1 - (missed.var() / target.var()).item()


def picture(frame: Tensor) -> Any:
    """(3, H, W) -> (H, W, 3) for imshow."""
    return frame.permute(1, 2, 0).numpy()


@plt.rc_context(STYLE)
def step_figure(told: Sequence[Film], agent: int, step: int) -> Figure:
    """One frame: what is seen, how likely every action is, value and advantages so far and to come.

    A step beyond the end of the episode shows the end.
    """
    film = told[agent]
    last = film.episode.steps
    step = min(step, last)
    figure, (seen, odds, worth) = plt.subplots(1, 3, width_ratios=(1, 1, 1.5))
    seen.imshow(picture(film.frames[step]), interpolation="nearest")
    seen.set(xticks=[], yticks=[])
    seen.set_title(f"agent {agent}, frame {step} of {last}", fontsize=8)
    if step < last:
        chosen = film.episode.actions[step]
        ink = [COLORS["policy" if i == chosen else "reference"] for i in range(len(ACTIONS))]
        odds.barh(ACTIONS, film.probs[step].tolist(), color=ink)
        odds.set_title(f"it does: {ACTIONS[chosen]}", fontsize=8)
    else:
        odds.barh(ACTIONS, [0.0] * len(ACTIONS))
        odds.set_title(film.ending, fontsize=8)
    odds.invert_yaxis()
    odds.set(xlim=(0, 1), xlabel="probability")
    odds.grid(axis="y", visible=False)
    times = range(last)
    worth.plot(times, film.values, color=COLORS["reference"], label="value")
    worth.plot(times, film.advantages, color=COLORS["policy"], label="advantage, GAE")
    worth.axhline(film.group, color=COLORS["reward"], ls="--", label="advantage, GRPO")
    worth.axhline(0, color="black", lw=0.6)
    worth.axvline(step, color="black", lw=0.8, ls=":")
    worth.set(xlabel="frame", ylim=(-2.6, 2.6), xlim=(-0.3, max(last, 1) + 0.3))
    worth.legend(loc="lower left", fontsize=7)
    figure.suptitle(f"{film.episode.level.mission}: {film.ending}", fontsize=10)
    return figure


def shown_times(steps: int, columns: int) -> list[int]:
    """Frames of a strip: all of them if they fit, else evenly spaced ones, first and last too."""
    if steps < columns:
        return list(range(steps + 1))
    return [round(i * steps / (columns - 1)) for i in range(columns)]


@plt.rc_context(STYLE)
def strip_figure(
    told: Sequence[Film], labels: Sequence[str], *, columns: int = 8, title: str = ""
) -> Figure:
    """Film strips, one under another: every frame with the action to come and its probability."""
    figure, axes = plt.subplots(
        len(told), columns, figsize=(6, 1.02 * len(told) + 0.35), squeeze=False
    )
    for row, film, label in zip(axes, told, labels, strict=True):
        times = shown_times(film.episode.steps, columns)
        for axis in row:
            axis.set(xticks=[], yticks=[])
            axis.spines[:].set_visible(False)
        for axis, time in zip(row, times, strict=False):
            axis.imshow(picture(film.frames[time]), interpolation="nearest")
            if time < film.episode.steps:
                action = film.episode.actions[time]
                text = f"{time}: {ACTIONS[action]}\n{film.probs[time, action]:.2f}"
            else:
                text = f"{time}: end\n{'done' if film.episode.success else 'failed'}"
            axis.set_xlabel(text, fontsize=6.5, labelpad=2)
        row[0].set_ylabel(label, fontsize=7)
    figure.suptitle(title, fontsize=10)
    return figure


# The corridor: the smallest world in which a reward can come too late

REWARDS = ("success", "progress", "agreement", "each step nearer")
DECAY = 0.9  # of the agreement with the expert


def walk_rewards(kind: str, moves: Tensor, mask: Tensor, length: int) -> Tensor:
    """(..., T) moves, 1 forward and 0 back, of walks from cell 0 -> rewards (...,).

    Args:
        kind: of REWARDS; progress and each step nearer are shares of the length.
        mask: (..., T), 1 until the walk ends: at the door, which is cell `length`, or in time.
    """
    place, gained = torch.zeros(moves.shape[:-1]), torch.zeros(moves.shape[:-1])
    for move, keep in zip(moves.unbind(-1), mask.unbind(-1), strict=True):
        after = torch.where(keep > 0, (place + 2 * move - 1).clamp(min=0), place)
        gained += (after - place).clamp(min=0)
        place = after
    reached = (place >= length).float()
    if kind == "agreement":  # the expert walks straight on
        weights = DECAY ** torch.arange(length)
        return (moves * mask)[..., :length] @ weights / weights.sum()
    extra = {"success": 0.0, "progress": place / length, "each step nearer": gained / length}
    return reached + extra[kind]


def chance(logits: Tensor, length: int, limit: int) -> Tensor:
    """(R, cells) logits of going forward -> (R,): exact probability to reach the door in time."""
    forward = logits.sigmoid()  # (R, cells)
    here, done = torch.zeros_like(forward), forward.new_zeros(len(forward))
    here[:, 0] = 1.0
    for _ in range(limit):
        on, back = here * forward, here * (1 - forward)
        done = done + on[:, -1]
        here = torch.zeros_like(here)
        here[:, 1:] += on[:, :-1]
        here[:, :-1] += back[:, 1:]
        here[:, 0] += back[:, 0]
    return done


def corridor(
    kind: str,
    length: int,
    *,
    runs: int = 8,
    updates: int = 80,
    groups: int = 4,
    group_size: int = 8,
    rate: float = 2.0,
    seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """GRPO on one logit per cell, from an indifferent walker; the limit is that of the rooms.

    Returns:
        (runs, updates + 1), the exact chance of success before every update and at the end, and
        the logits (runs, length) at the end.
    """
    dice, limit, size = Generator().manual_seed(seed), 2 * length + 4, groups * group_size
    logits, curve = torch.zeros(runs, length), []
    for _ in range(updates):
        curve.append(chance(logits, length, limit))
        forward, cells, moves = logits.sigmoid(), [], []
        place, going = torch.zeros(runs, size, dtype=torch.long), torch.ones(runs, size)
        mask = []
        for _ in range(limit):
            cell = place.clamp(max=length - 1)
            move = (torch.rand(runs, size, generator=dice) < forward.gather(1, cell)).long()
            cells, moves, mask = [*cells, cell], [*moves, move], [*mask, going]
            place = torch.where(going > 0, (place + 2 * move - 1).clamp(min=0), place)
            going = going * (place < length)
        cell, move, keep = (torch.stack(x, dim=-1) for x in (cells, moves, mask))  # (R, N, T)
        rewards = walk_rewards(kind, move, keep, length)  # (R, N)
        advantages = group_advantages(rewards.view(-1, group_size)).view(runs, size)
        each = (advantages / keep.sum(dim=-1))[..., None] * keep / size  # (R, N, T), Eq. (12)
        pushes = each * (move - forward.gather(1, cell.flatten(1)).view_as(each))
        logits = logits.scatter_add(1, cell.flatten(1), rate * pushes.flatten(1))
    return torch.stack([*curve, chance(logits, length, limit)], dim=1), logits


@plt.rc_context(STYLE)
def corridor_figure(told: Mapping[int, Mapping[str, Tensor]]) -> Figure:
    """Chance of success by updates: a panel per length, a line and a band per reward."""
    figure, axes = plt.subplots(1, len(told), sharey=True)
    inks = {"success": COLORS["policy"], "progress": "#009E73", "agreement": COLORS["reward"]}
    for axis, (length, lines) in zip(axes, told.items(), strict=True):
        for kind, runs in lines.items():
            times = range(runs.shape[1])
            axis.plot(times, runs.mean(0), color=inks[kind], label=kind)
            low, high = runs.amin(0), runs.amax(0)
            axis.fill_between(times, low, high, color=inks[kind], alpha=0.2, lw=0)
        axis.set(xlabel="update", ylim=(-0.02, 1.02))
        axis.set_title(f"{length} cells", fontsize=9)
    axes[0].set_ylabel("chance of success")
    axes[0].legend(loc="lower right")
    figure.suptitle("A sparse reward is enough where luck finds it (8 seeds)", fontsize=10)
    return figure


# What is recorded elsewhere


def recorded(path: Path, part: str) -> Any:
    """A part of a results file, or None where the file or the part is missing."""
    return json.loads(path.read_text()).get(part) if path.exists() else None


def study() -> dict[str, Any] | None:
    """The recorded study of PPO, cloning and the variants; None where it has not been run."""
    return json.loads(STUDY.read_text()) if STUDY.exists() and recorded(STUDY, "answers") else None


def axes_figure(base: Mapping[str, float], book: Mapping[str, Any] | None) -> Figure:
    """Success on every split: of the base, and after PPO and after cloning if that is recorded."""
    values: dict[str, dict[str, float]] = {"before": dict(base)}
    intervals: dict[str, dict[str, tuple[float, float]]] = {}
    if book:
        values["before"] = {split: book["base"][split] for split in base}
        for label, method in (
            ("after PPO", "PPO from the base"),
            ("cloning", "SFT on more demonstrations"),
        ):
            row = book["table"][method]
            values[label] = {split: row[split][0] for split in base}
            intervals[label] = {split: tuple(row[split][1:]) for split in base}
    title = "The base is worse on every axis, and most where the words are new"
    figure = bars(values, ylabel="success, sampled", title=title, intervals=intervals)
    figure.axes[0].set_ylim(0, 0.9)
    return figure


# 19.1 predict


def _gae(rewards: Sequence[float], values: Sequence[float], lam: float) -> list[float]:
    """Eq. (9) as a sum over the rest of the episode, without a discount."""
    after = [*values[1:], 0.0]
    deltas = [r + n - v for r, n, v in zip(rewards, after, values, strict=True)]
    return [sum(lam**k * delta for k, delta in enumerate(deltas[t:])) for t in range(len(deltas))]


_VALUES = [0.4, 0.5, 0.2]
STATEMENTS: dict[str, tuple[bool, str]] = {
    "GRPO on success pushes the first and the last action of an episode alike": (
        True,
        "Eq. (11) here gives one number per episode",
    ),
    "in a failed episode every GAE advantage is negative": (
        max(_gae([0, 0, 0], _VALUES, 0.5)) < 0 and max(_gae([0, 0, 0], _VALUES, 0.0)) < 0,
        "with lambda = 0, what is the advantage of a step after which the value rose?",
    ),
    "with gamma = lambda = 1, advantage plus value is the outcome, on every frame": (
        all(
            math.isclose(a + v, 1.0)
            for a, v in zip(_gae([0, 0, 1], _VALUES, 1.0), _VALUES, strict=True)
        ),
        "add up the deltas from a frame to the end: what cancels?",
    ),
    "a room in which all eight agents fail teaches GRPO that it is hard": (
        False,
        "look at what Eq. (11) makes of eight equal rewards",
    ),
    "a success in twice the fewest actions has an SPL of a quarter": (
        math.isclose(5 / 10, 0.25),
        "SPL is the ratio of two lengths, not its square",
    ),
}
check_predictions = foretold(STATEMENTS)


# 19.2 implement


def check_progress(progress: Callable[..., list[float]]) -> None:
    """Differences of the way left, over the limit; a lost way counts as the limit."""
    got = progress([5, 4, 4, 3, 2, 1, 0], 14)
    assert len(got) == 6, "one reward per action: 7 frames have 6 actions between them"
    assert not all(r <= 1e-9 for r in got), "that is the wrong sign: a shorter way is progress"
    truth = [1 / 14, 0.0, 1 / 14, 1 / 14, 1 / 14, 1 / 14]
    scale = [r * 14 for r in truth]
    close = [math.isclose(a, b, abs_tol=1e-9) for a, b in zip(got, scale, strict=True)]
    assert not all(close), "divide by the limit, so that episodes of all lengths weigh alike"
    assert all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(got, truth, strict=True)), (
        "the way before an action minus the way after it, as a share of the limit"
    )
    back = progress([3, 4, 3], 10)
    assert min(back) < 0, "a step back must cost what the step forward paid, or dancing pays"
    lost = progress([3, 2, None], 10)
    assert all(math.isclose(a, b, abs_tol=1e-9) for a, b in zip(lost, [0.1, -0.8], strict=True)), (
        "None: no way is left, which counts as long as the limit"
    )


# 19.3 find the bug


def check_gae(repaired: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """GAE of two episodes of different length, by the sum; padding must not matter."""
    draw = random.Random(3)
    lengths, width = (5, 3), 5
    rows = [[draw.random() for _ in range(n)] for n in lengths]
    paid = [[0.0] * (n - 1) + [r] for n, r in zip(lengths, (1.0, 0.0), strict=True)]
    truth = [
        [
            sum(
                (0.9 * 0.8) ** (k - t) * (r[k] + 0.9 * (v[k + 1] if k + 1 < len(v) else 0) - v[k])
                for k in range(t, len(v))
            )
            for t in range(len(v))
        ]
        for v, r in zip(rows, paid, strict=True)
    ]

    def padded(values: Sequence[Sequence[float]], fill: float) -> Tensor:
        return torch.tensor([[*row, *[fill] * (width - len(row))] for row in values])

    mask = padded([[1.0] * n for n in lengths], 0.0)
    for fill in (0.0, 7.0):
        got = repaired(padded(paid, 0.0), padded(rows, fill), mask)
        assert isinstance(got, Tensor) and got.shape == (2, width), "return (N, T)"
        whole = torch.allclose(got[0], torch.tensor(truth[0]), atol=1e-5)
        assert whole, "the longer episode, which has no padding, must stay as it was"
        part = torch.allclose(got[1, :3], torch.tensor(truth[1]), atol=1e-5)
        assert part, (
            "the shorter episode hears what lies behind its end: what does t + 1 mean there?"
        )
        assert got[1, 3:].abs().max() == 0, "behind the end nobody acts: zeros there, too"


# 19.4 extend


def check_nearer(nearer: Callable[[list[int], float], float]) -> None:
    """Time-decayed share of the actions that shorten the way."""
    assert math.isclose(nearer([3, 2, 1, 0], 0.5), 1.0), "any shortest way earns 1"
    assert nearer([3, 4, 5, 6], 0.5) == 0, "nothing is earned by going away"
    late, early = nearer([3, 3, 2, 1, 0], 0.5), nearer([3, 2, 1, 1, 0], 0.5)
    assert late != early, "the first actions count most: the weights are gamma ** k"
    assert early > late, "the first actions count most, not the last"
    truth = [(0 + 0.5 + 0.25) / 1.75, (1 + 0.5 + 0) / 1.75]
    whole = [(0 + 0.5 + 0.25 + 0.125) / 1.875, (1 + 0.5 + 0 + 0.125) / 1.875]
    both = list(zip((late, early), whole, strict=True))
    assert not all(math.isclose(a, b, abs_tol=1e-6) for a, b in both), (
        "that reads all actions: read as many as the shortest way has, which is left[0]"
    )
    for got, right in zip((late, early), truth, strict=True):
        assert math.isclose(got, right, abs_tol=1e-6), "divide by the sum of the weights"
    short = nearer([3, 2], 0.5)
    assert math.isclose(short, 1 / 1.75, abs_tol=1e-6), "actions that are missing are wrong"


# 19.5 implement


def check_axis(axis: Callable[[Level], str]) -> None:
    """From the content of a level alone: what does it test?"""
    names = ("heldout", "appearance", "semantics", "execution")
    told = {"heldout": "none"} | {name: name for name in names[1:]}
    for seed, split in product(range(40), names):
        level = level_of(seed, split)
        said, right = axis(level), told[split]
        assert said in told.values(), "return one of: none, appearance, semantics, execution"
        assert said == right, (
            f"{level.mission!r} in a room of side {level.side} tests {right}, not {said}: "
            "look at words, at the side of the room, at the things that are asked for"
        )


MUTANTS = {
    "19.1": [
        f"prediction = {dict(zip(STATEMENTS, answers, strict=True))!r}"
        for answers in (
            (False, False, True, False, False),
            (True, True, True, False, False),
            (True, False, False, False, False),
            (True, False, True, True, False),
            (True, False, True, False, True),
        )
    ],
    "19.2": [
        """
        def progress(left, limit):
            return [(b - a) / limit for a, b in zip(left, left[1:])]
        """,
        """
        def progress(left, limit):
            return [a - b for a, b in zip(left, left[1:])]
        """,
        """
        def progress(left, limit):
            ways = [limit if way is None else way for way in left]
            return [max(0, a - b) / limit for a, b in zip(ways, ways[1:])]
        """,
        """
        def progress(left, limit):
            ways = [0 if way is None else way for way in left]
            return [(a - b) / limit for a, b in zip(ways, ways[1:])]
        """,
    ],
    "19.3": [
        "repaired = broken",
        """
        def repaired(rewards, values, mask):
            return broken(rewards, values, mask) * mask
        """,
        """
        def repaired(rewards, values, mask):
            result, following, ahead = torch.zeros_like(values), 0.0, 0.0
            for t in reversed(range(values.shape[1])):
                delta = rewards[:, t] + 0.9 * ahead - values[:, t]
                following = delta + 0.9 * 0.8 * following
                ahead = values[:, t] * mask[:, t]
                result[:, t] = following * mask[:, t]
            return result
        """,
    ],
    "19.4": [
        """
        def nearer(left, gamma):
            closer = [b < a for a, b in zip(left, left[1:])]
            return sum(closer) / left[0]
        """,
        """
        def nearer(left, gamma):
            weights = [gamma**k for k in range(len(left) - 1)]
            closer = [b < a for a, b in zip(left, left[1:])]
            return sum(w * c for w, c in zip(weights, closer)) / sum(weights)
        """,
        """
        def nearer(left, gamma):
            weights = [gamma**k for k in range(left[0])]
            closer = [b < a for a, b in zip(left, left[1:])]
            return sum(w * c for w, c in zip(weights, closer))
        """,
    ],
    "19.5": [
        """
        def axis(level):
            return "execution" if level.side == 5 else "semantics" if level.after else "none"
        """,
        """
        def axis(level):
            if level.after or ("pick", "box") in {(v, level.items[i].kind) for v, i in level.tasks}:
                return "semantics"
            return "execution" if level.side == 5 else "none"
        """,
        """
        def axis(level):
            if level.after:
                return "semantics"
            if any((item.color, item.kind) in UNSEEN_PAIRS for item in level.targets):
                return "appearance"
            return "execution" if level.side == 5 else "none"
        """,
    ],
}
