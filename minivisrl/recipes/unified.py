"""The unified row: one model that reads and draws, and reinforcement learning on either side.

Drawing: captions, judged by reading the pixels back.  Describing: pictures, judged by the objects
that the words name.  Answering: questions about pictures, judged by exact match.  Whatever a recipe
trains on, all three are measured before and after.

Survey: section 3.3.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import inf
from random import Random
from typing import Any

import torch
from torch import Generator, Tensor

from minivisrl import DATA, UserError
from minivisrl.evaluation.sets import Evaluation, evaluate
from minivisrl.optimization import GRPOConfig, PPOConfig, validate
from minivisrl.paradigms.dpo import DPOConfig
from minivisrl.paradigms.offline import OfflineConfig
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.paradigms.rlhf import LearnedReward, pair_accuracy
from minivisrl.policy import Policy
from minivisrl.recipes.common import EVALUATION_SEED, experiment, learned_reward, offline, online
from minivisrl.recipes.run import Experiment, RunOptions
from minivisrl.rewards import exact_match
from minivisrl.rewards.pictures import caption_truth, composition
from minivisrl.rollout import PreferencePairs, Prompts
from minivisrl.unified.policy import UnifiedPolicy
from minivisrl.unified.pretraining import DESCRIBE, questions
from minivisrl.worlds.annotators import best_and_worst
from minivisrl.worlds.drawings import caption, drawing_scenes
from minivisrl.worlds.scenes import render

PIXELS = 16
KINDS = ("answer", "describe", "draw")  # abilities, and what a prompt can ask for


@dataclass(frozen=True, kw_only=True)
class UnifiedConfig:
    """What is trained, and on what."""

    train: tuple[str, ...] = ("draw",)  # abilities in a batch, in turn: draw, describe, answer
    train_prompts: int = 4096  # to sample from
    eval_prompts: int = 512  # per split
    temperature: float = 1.0  # of sampling and scoring
    pairs: int = 4096  # comparisons of outputs by the base
    candidates: int = 4  # outputs that an annotator sees at once; best and worst are kept
    noise: float = 0.1  # of the annotator: share of truth at which the odds become e to 1

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("train_prompts", "eval_prompts", "pairs"), (1, inf))
        more = {"candidates": (2, inf), "noise": (0, inf), "temperature": (1e-3, inf)}
        validate(self, counts | more)
        if not self.train or set(self.train) - set(KINDS):
            raise UserError(f"UnifiedConfig.train={self.train}: choose from {', '.join(KINDS)}")


def small_groups() -> OnlineConfig:
    """Batches of 256 completions."""
    return OnlineConfig(batch_size=32, group_size=8, learning_rate=2e-4)


def fresh_critic() -> PPOConfig:
    """PPO for a critic that starts at zero: its values may move as far as a batch tells them."""
    return PPOConfig(value_clip_eps=None, value_coef=1.0)


@dataclass(frozen=True, kw_only=True)
class RLVRGRPO:
    """unified/rlvr-grpo: joint batches of drawing and describing by GRPO, one blended reward."""

    steps: int = 30  # optimiser steps
    trainer: OnlineConfig = field(default_factory=small_groups)
    optimization: GRPOConfig = field(default_factory=GRPOConfig)
    task: UnifiedConfig = field(default_factory=lambda: UnifiedConfig(train=("draw", "describe")))


@dataclass(frozen=True, kw_only=True)
class RLVRPPO:
    """unified/rlvr-ppo: learns to answer questions by PPO, against a verifier."""

    steps: int = 45  # batches of answers, each used for several optimiser steps
    trainer: OnlineConfig = field(default_factory=small_groups)
    optimization: PPOConfig = field(default_factory=fresh_critic)
    task: UnifiedConfig = field(default_factory=lambda: UnifiedConfig(train=("answer",)))


@dataclass(frozen=True, kw_only=True)
class RLHFGRPO:
    """unified/rlhf-grpo: learns to draw by GRPO, against a reward learned from pairs."""

    steps: int = 30  # optimiser steps
    trainer: OnlineConfig = field(default_factory=small_groups)
    optimization: GRPOConfig = field(default_factory=GRPOConfig)
    task: UnifiedConfig = field(default_factory=UnifiedConfig)


@dataclass(frozen=True, kw_only=True)
class RLHFPPO:
    """unified/rlhf-ppo: learns to draw by PPO, against a reward learned from pairs."""

    steps: int = 24  # batches of pictures, each used for several optimiser steps
    trainer: OnlineConfig = field(default_factory=small_groups)
    optimization: PPOConfig = field(default_factory=fresh_critic)
    task: UnifiedConfig = field(default_factory=UnifiedConfig)


@dataclass(frozen=True, kw_only=True)
class DirectPreference:
    """unified/dpo: learns to draw from comparisons alone."""

    steps: int = 150  # optimiser steps
    trainer: OfflineConfig = field(default_factory=OfflineConfig)
    optimization: DPOConfig = field(default_factory=lambda: DPOConfig(dpo_beta=0.3))
    task: UnifiedConfig = field(default_factory=UnifiedConfig)


def prompts_of(kind: str, count: int, split: str, generator: Generator) -> Prompts:
    """`count` prompts to `draw`, to `describe` or to `answer`; all have the same columns."""
    scenes = drawing_scenes(count, split, generator)
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    captions, shown = list(map(caption, scenes)), list(render(scenes, PIXELS))
    asked = questions(scenes, random)
    text = {"draw": captions, "describe": [DESCRIBE] * count, "answer": [q.prompt for q in asked]}
    return Prompts(
        {
            "prompt": text[kind],
            "image": [None] * count if kind == "draw" else shown,
            "scene": scenes,
            "answer": [q.answer for q in asked] if kind == "answer" else captions,
            "kind": [kind] * count,
        }
    )


def blended(
    completions: Sequence[Any],
    scene: Sequence,
    answer: Sequence[str],
    kind: Sequence[str],
    **_: Any,
) -> list[float]:
    """One reward for joint batches: what each prompt's own verifier says, a fraction of 1."""
    scores = [0.0] * len(completions)
    verifiers = {
        "draw": lambda rows: composition(_at(completions, rows), _at(scene, rows)),
        "describe": lambda rows: caption_truth(_at(completions, rows), _at(scene, rows)),
        "answer": lambda rows: exact_match(_at(completions, rows), _at(answer, rows)),
    }
    for name, verifier in verifiers.items():
        rows = [i for i, each in enumerate(kind) if each == name]
        for row, score in zip(rows, verifier(rows) if rows else [], strict=True):
            scores[row] = score
    return scores


def _at(column: Sequence[Any], rows: Iterable[int]) -> list[Any]:
    return [column[row] for row in rows]


def mixed_prompts(kinds: Sequence[str], count: int, split: str, generator: Generator) -> Prompts:
    """`count` prompts in all, shared out evenly between `kinds`."""
    shares = [(count + index) // len(kinds) for index in range(len(kinds))]
    pairs = zip(kinds, shares, strict=True)
    return Prompts.cat([prompts_of(kind, share, split, generator) for kind, share in pairs])


def abilities(policy: Policy, split: str = "heldout", count: int = 256) -> dict[str, float]:
    """The three abilities on fixed prompts, sampled and greedy: fractions of 1."""
    scores = {}
    for kind in KINDS:
        prompts = prompts_of(kind, count, split, Generator().manual_seed(EVALUATION_SEED))
        dice = Generator().manual_seed(EVALUATION_SEED)
        scores[kind] = evaluate(policy, prompts, blended, samples=1, generator=dice).score
        scores[f"{kind}, greedy"] = evaluate(policy, prompts, blended).score
    return scores


def load_policy(task: UnifiedConfig, options: RunOptions) -> UnifiedPolicy:
    """The base that reads and draws, on the device of the run, set up for the task."""
    policy = UnifiedPolicy.load(options.base("unified")).to(options.torch_device())
    policy.temperature = task.temperature
    return policy


def shown(told: Evaluation) -> tuple[Tensor, list[str]]:
    """Pictures that were drawn, and pictures with what was said of them."""
    images, captions = [], []
    columns = (told.prompts[name] for name in ("image", "prompt", "answer"))
    for output, image, asked, truth in zip(told.outputs, *columns, strict=True):
        drew = isinstance(output, Tensor)
        images.append(output.cpu() if drew else image.float() / 255)
        captions.append(asked if drew else f"{asked}\n{output}\n(truth: {truth})")
    return torch.stack(images), captions


def measured(
    trainer: Any,
    task: UnifiedConfig,
    facts: dict[str, float] | None = None,
    proxy: LearnedReward | None = None,
) -> Experiment:
    """Sampled outputs of the trained abilities by their verifiers, and all abilities beside it."""

    def monitor(heldout: Evaluation) -> dict[str, float]:
        scores = heldout.scored_by(proxy) if proxy else []
        return (facts or {}) | ({"proxy": sum(scores) / len(scores)} if scores else {})

    def make(split: str, generator: Generator) -> Prompts:
        return mixed_prompts(task.train, task.eval_prompts, split, generator)

    return experiment(
        trainer,
        make,
        blended,
        show=shown,
        monitor=monitor,
        samples=1,
        others=lambda policy, _: abilities(policy),
    )


def rlvr(config: RLVRGRPO | RLVRPPO, options: RunOptions) -> Experiment:
    """The experiment: each kind of prompt against its own verifier."""
    task = config.task
    prompts = mixed_prompts(task.train, task.train_prompts, "train", options.generator(1))
    trainer = online(load_policy(task, options), prompts, blended, config, options)
    return measured(trainer, task)


def comparisons(
    policy: UnifiedPolicy, task: UnifiedConfig, count: int, split: str, generator: Generator
) -> PreferencePairs:
    """Sampled outputs for `count` prompts: an annotator's favourite and least favourite."""
    prompts, drawn = mixed_prompts(task.train, count, split, generator), []
    for start in range(0, count, 256):
        part = prompts.rows(range(start, min(start + 256, count)))
        drawn += policy.rollout(part, task.candidates, generator).outputs
    columns = prompts.repeat(task.candidates).columns
    worth = blended(drawn, columns["scene"], columns["answer"], columns["kind"])
    candidates, values = [], []
    for start in range(0, len(drawn), task.candidates):
        rows = range(start, start + task.candidates)
        rows = {drawn[i] if isinstance(drawn[i], str) else i: i for i in rows}.values()
        candidates.append(_at(drawn, rows))
        values.append(_at(worth, rows))
    return best_and_worst(prompts, candidates, values, task.noise, generator)


def ceiling(pairs: PreferencePairs) -> float:
    """How often the truth, which is the annotator's taste without noise, agrees with the labels."""
    return pair_accuracy(blended, pairs)


def rlhf(config: RLHFGRPO | RLHFPPO, options: RunOptions) -> Experiment:
    """The experiment: PPO or GRPO against the shipped reward model, whatever the base is.

    The gold metric is logged at every step with weight 0: training never sees it.
    """
    task, policy = config.task, load_policy(config.task, options)
    scorer = UnifiedPolicy.load(DATA / "checkpoints" / "unified_reward")
    scorer.to(options.torch_device())
    pairs = comparisons(policy, task, min(512, task.pairs), "heldout", options.generator(3))
    model, reward_fn, facts = learned_reward(scorer, pairs, blended, ceiling)
    prompts = mixed_prompts(task.train, task.train_prompts, "train", options.generator(1))
    trainer = online(policy, prompts, reward_fn, config, options)
    return measured(trainer, task, facts, None if options.reward else model)


def dpo(config: DirectPreference, options: RunOptions) -> Experiment:
    """The experiment: outputs of the base for each prompt, and which was preferred."""
    task, policy = config.task, load_policy(config.task, options)
    pairs = comparisons(policy, task, task.pairs, "train", options.generator(3))
    facts = {"annotator_ceiling": ceiling(pairs)}
    return measured(offline(policy, pairs, config, options), task, facts)
