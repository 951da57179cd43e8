"""What else trains an agent: the published variants, each on the shipped base that walks in rooms.

    python -m minivisrl.recipes.navigation_methods NAME [--episodes 5120] [--seed 0]

Prints success before and after, sampled, on held-out and out-of-distribution missions; writes
nothing.  Every method samples as many episodes as it is given, up to a batch.

Survey: sections 3.4.1, 3.4.2 and 3.4.3.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache, partial
from itertools import chain, pairwise
from math import ceil, inf
from random import Random
from types import SimpleNamespace
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor

from minivisrl import UserError
from minivisrl.optimization import GRPO, PPO, RLOO, validate
from minivisrl.optimization.tgrpo import TGRPO, TGRPOConfig
from minivisrl.paradigms.collect import dynamic_sampling
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.paradigms.stages import Shown, Successes, draws, only, warm_critic
from minivisrl.paradigms.success_replay import SuccessReplay
from minivisrl.paradigms.temporal import OrderConfig, learn_order, temporal_feedback
from minivisrl.policy import Policy
from minivisrl.recipes.run import RunOptions
from minivisrl.recipes.vla import RLVRGRPO, NavigateConfig, fresh_critic, load_policy, navigating
from minivisrl.rewards.judge import RewardFn
from minivisrl.rewards.timing import decayed_agreement
from minivisrl.rollout import Prompts
from minivisrl.vla.levels import Level
from minivisrl.vla.navigation import Episode, navigation_prompts, success
from minivisrl.vla.policy import VLAPolicy
from minivisrl.vla.pretraining import DemonstratorConfig, demonstrate, demonstrations

Rows = Iterator[dict[str, float]]  # one per step, which is taken when the row is asked for
Run = tuple[VLAPolicy, Rows]  # what is trained, and its training
PLAIN_GRPO, PLAIN_PPO = GRPO(RLVRGRPO().optimization), PPO(fresh_critic())  # as in the recipes


class Method(NamedTuple):
    """A published method on this base."""

    paper: str | None  # its row of data/papers.csv
    rival: str | None  # the plain method that it is measured against
    make: Callable[[MethodOptions], Run]


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Which method, how long, and from what."""

    name: str  # a key of METHODS
    episodes: int = 5120  # sampled in all
    imitation: int = 60  # supervised steps, where a method has any
    demonstrations: int = 256  # of the base's own demonstrators, where a method wants any
    few: int = 128  # levels where failed groups shall meet their successes again
    seed: int = 0  # of every generator
    checkpoint: str | None = None  # base model; default: the shipped one
    task: NavigateConfig = NavigateConfig(train_prompts=1024)
    trainer: OnlineConfig = RLVRGRPO().trainer
    order: OrderConfig = OrderConfig()  # of rftf

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise UserError(f"unknown method {self.name!r}; choose one of {', '.join(METHODS)}")
        numbers = ("episodes", "imitation", "demonstrations", "few")
        validate(self, dict.fromkeys(numbers, (1, inf)))

    @property
    def run(self) -> RunOptions:
        """Seed, base and device, as recipes want them."""
        return RunOptions(seed=self.seed, device="cpu", checkpoint=self.checkpoint)


def progress_by_step(completions: Sequence[Episode], **_: Any) -> Tensor:
    """(N, T) share of the time limit by which every action shortened the way, and 1 for success.

    Where success is out of reach the way counts as long as the limit.
    """
    rows = torch.zeros(len(completions), max(episode.steps for episode in completions))
    for row, episode in zip(rows, completions, strict=True):
        limit, ways = episode.level.limit, [room.left() for room, _ in episode.watch()]
        told = [limit if way is None else way for way in ways]
        row[: episode.steps] = torch.tensor([a - b for a, b in pairwise(told)]) / limit
        row[episode.steps - 1] += float(episode.success)
    return rows


@cache
def expert_actions(level: Level) -> tuple[int, ...]:
    """What BabyAI's bot does, which plans and does not err."""
    return demonstrate(level, 0.0, Random(0)).actions


def time_decayed(completions: Sequence[Episode], **_: Any) -> list[float]:
    """Agreement with the expert of each level; every next action counts nine tenths of the last."""
    return [decayed_agreement(y.actions, expert_actions(y.level), 0.9) for y in completions]


def levels(cfg: MethodOptions) -> Prompts:
    """The training levels of the seed."""
    return navigation_prompts(cfg.task.train_prompts, "train", cfg.run.generator(1))


def trainer_of(
    cfg: MethodOptions,
    job: Any = PLAIN_PPO,
    *,
    reward: RewardFn = success,
    collect: Callable[..., Any] = act_and_judge,
    prompts: Prompts | None = None,
) -> OnlineTrainer:
    """The online loop from the base."""
    policy, dice = load_policy(cfg.task, cfg.run), cfg.run.generator(2)
    prompts = prompts or levels(cfg)
    return OnlineTrainer(policy, prompts, reward, job, cfg.trainer, dice, collect=collect)


def until(trainer: OnlineTrainer, episodes: float) -> Rows:
    """Steps until so many episodes have been sampled, those that were thrown away included."""
    spent, batch = 0.0, trainer.cfg.batch_size * trainer.cfg.group_size
    while spent < episodes:
        row = trainer.step()
        sampled = batch * row.get("reward/rounds", 1.0)
        spent += sampled
        yield row | {"episodes": sampled}


def plain(
    cfg: MethodOptions,
    job: Any = PLAIN_GRPO,
    reward: RewardFn = success,
    collect: Callable[[], Any] | None = None,
    few: bool = False,
) -> Run:
    """The online loop from the first episode to the last, with other parts.

    Args:
        collect: makes Act and Judge.
        few: on so few levels that each comes back.
    """
    if few:
        cfg = replace(cfg, task=replace(cfg.task, train_prompts=cfg.few))
    gather = collect() if collect else act_and_judge
    trainer = trainer_of(cfg, job, reward=reward, collect=gather)
    return trainer.policy, until(trainer, cfg.episodes)


def demonstrated(cfg: MethodOptions) -> Shown:
    """Fresh demonstrations by those who taught the base what it knows, errors included."""
    many = DemonstratorConfig(demonstrations=cfg.demonstrations)
    return demonstrations(many, "train", cfg.run.generator(5))


def rftf(cfg: MethodOptions) -> Run:
    """A value model learns the order of frames in successful demonstrations; its gains are paid."""
    prompts, episodes = demonstrated(cfg)
    won = [i for i, episode in enumerate(episodes) if episode.success]
    model = load_policy(cfg.task, cfg.run)
    draw = draws(model, (prompts.rows(won), [episodes[i] for i in won]), cfg.trainer.batch_size)
    ordered = learn_order(model, draw, cfg.order, cfg.run.generator(6))
    trainer = trainer_of(cfg, collect=temporal_feedback(model, cfg.order.weight))
    return trainer.policy, chain(ordered, until(trainer, cfg.episodes))


def flare(cfg: MethodOptions) -> Run:
    """Large batches, each used four times; from the first one the critic alone learns.

    As in RL4VLA the critic is a head on the actor's trunk, with a rate of its own; in FLaRe it is a
    network of its own.
    """
    large = replace(cfg.trainer, batch_size=2 * cfg.trainer.batch_size, critic_learning_rate=3e-3)
    job, size = PPO(replace(fresh_critic(), update_epochs=4)), large.batch_size * large.group_size
    trainer = trainer_of(replace(cfg, trainer=large), job)
    warm = (row | {"episodes": size} for row in warm_critic(trainer, 1))
    return trainer.policy, chain(warm, until(trainer, cfg.episodes - size))


def imitate(cfg: MethodOptions, policy: Policy, shown: Shown, steps: int) -> Rows:
    """Supervised steps at the learning rate of the online loop, which falls to zero."""
    sft = SFTConfig(learning_rate=cfg.trainer.learning_rate, warmup=1, total_steps=steps)
    draw = draws(policy, shown, cfg.trainer.batch_size)
    trainer = SFTTrainer(policy, draw, sft, cfg.run.generator(7))
    return (trainer.step() for _ in range(steps))


def ire_vla(cfg: MethodOptions, rounds: int = 2) -> Run:
    """By turns: PPO on the two heads; then all weights imitate demonstrations and successes."""
    (prompts, episodes), kept = demonstrated(cfg), Successes()
    trainer = trainer_of(cfg, collect=kept)

    def rows() -> Rows:
        for _ in range(rounds):
            with only(trainer.policy, "model.lm_head.", "value_head."):
                yield from until(trainer, cfg.episodes / rounds)
            mine, done = kept.shown()
            both = Prompts.cat([prompts, mine]), [*episodes, *done]
            yield from imitate(cfg, trainer.policy, both, max(1, cfg.imitation // rounds))

    return trainer.policy, rows()


def rldg(cfg: MethodOptions) -> Run:
    """PPO experts for going, for picking up and for opening; the base imitates their successes.

    An expert learns from three quarters of its batches, and in the others shows what it can.
    """
    student, prompts, kept = load_policy(cfg.task, cfg.run), levels(cfg), Successes()
    kinds = [kind.split()[0] for kind in prompts["kind"]]
    verbs, size = sorted(set(kinds)), cfg.trainer.batch_size * cfg.trainer.group_size

    def rows() -> Rows:
        for place, verb in enumerate(verbs):
            ends = [ceil(cfg.episodes / size) * i // len(verbs) for i in (place, place + 1)]
            showing = max(1, (ends[1] - ends[0]) // 4)
            mine = prompts.rows([i for i, kind in enumerate(kinds) if kind == verb])
            expert = trainer_of(cfg, prompts=mine)
            yield from until(expert, max(1, ends[1] - ends[0] - showing) * size)
            for _ in range(showing):
                kept(expert.policy, mine, success, cfg.trainer, expert.generator)
                yield {"episodes": size}
        yield from imitate(cfg, student, kept.shown(), cfg.imitation)

    return student, rows()


DENSE = partial(plain, reward=progress_by_step)
RIPT = partial(plain, job=GRPO(RLOO), collect=dynamic_sampling)
METHODS = {
    "grpo": Method(None, None, plain),
    "ppo": Method(None, "grpo", partial(plain, job=PLAIN_PPO)),
    "ript-vla": Method("ript-vla", "grpo", RIPT),
    "vln-r1": Method("vln-r1", "grpo", partial(plain, reward=time_decayed)),
    "grpo-progress": Method(None, "grpo", DENSE),
    "tgrpo": Method("tgrpo", "grpo-progress", partial(DENSE, job=TGRPO(TGRPOConfig()))),
    "grpo-few": Method(None, "grpo", partial(plain, few=True)),
    "arpo": Method("arpo", "grpo-few", partial(plain, few=True, collect=SuccessReplay)),
    "rftf": Method("rftf", "ppo", rftf),
    "flare": Method("flare", "ppo", flare),
    "ire-vla": Method("ire-vla", "ppo", ire_vla),
    "rldg": Method("rldg", "ppo", rldg),
}


def gauge(policy: VLAPolicy, task: NavigateConfig) -> Callable[[Policy], dict[str, float]]:
    """Success by split, as the recipes measure it: on the same levels for every policy."""
    return navigating(SimpleNamespace(policy=policy), task).evaluate


def train(options: MethodOptions) -> tuple[VLAPolicy, list[dict[str, float]], float]:
    """Train by a method: the policy, a row per step, and the CPU seconds of all steps."""
    policy, steps = METHODS[options.name].make(options)
    start = time.process_time()
    rows = list(steps)
    return policy, rows, time.process_time() - start


def measure(options: MethodOptions) -> dict[str, Any]:
    """Train by a method, and tell success by split before and after."""
    base = load_policy(options.task, options.run)
    success_of = gauge(base, options.task)
    policy, rows, seconds = train(options)
    result = {"method": options.name, "paper": METHODS[options.name].paper, "seed": options.seed}
    result |= {"episodes": sum(row.get("episodes", 0) for row in rows), "steps": len(rows)}
    told = {"before": success_of(base), "after": success_of(policy)}
    return result | {"seconds": round(seconds, 1)} | told


if __name__ == "__main__":
    told = measure(tyro.cli(MethodOptions, config=[tyro.conf.PositionalRequiredArgs]))
    print(*(f"{name} {value}" for name, value in told.items()), sep="  ")
