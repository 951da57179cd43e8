"""The reward model of the generation row: stage 2 of RLHF, from comparisons of pictures."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Generator

from minivisrl import DATA
from minivisrl.generation.judge import PictureJudge
from minivisrl.paradigms.offline import OfflineConfig, OfflineTrainer
from minivisrl.paradigms.rlhf import BradleyTerry, LearnedReward, pair_accuracy
from minivisrl.recipes.common import SPLITS
from minivisrl.recipes.generation import POLICIES, DrawConfig, ceiling, comparisons, load_policy
from minivisrl.recipes.run import RunOptions
from minivisrl.rewards.pictures import composition
from minivisrl.rollout import PreferencePairs, Prompts

HALF = True  # stored in 16 bits


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 1800  # optimiser steps
    trainer: OfflineConfig = field(
        default_factory=lambda: OfflineConfig(learning_rate=5e-4, weight_decay=0.05)
    )
    task: DrawConfig = field(default_factory=lambda: DrawConfig(pairs=15360))


def drawn(task: DrawConfig, count: int, split: str, generator: Generator) -> PreferencePairs:
    """Comparisons of pictures, as many by every base that draws, each against its own."""
    parts = []
    for kind in POLICIES:
        policy = load_policy(task, RunOptions(), kind)
        parts.append(comparisons(policy, task, count // len(POLICIES), split, generator))
    chosen, rejected = ([y for p in parts for y in getattr(p, s)] for s in ("chosen", "rejected"))
    return PreferencePairs(Prompts.cat([part.prompts for part in parts]), chosen, rejected)


def build(config: Config, seed: int) -> OfflineTrainer:
    """A copy of the base flow with a scalar head, and pairs of pictures by all bases."""
    generator = Generator().manual_seed(seed)
    pairs = drawn(config.task, config.task.pairs, "train", generator)
    judge = PictureJudge.load(DATA / "checkpoints" / "flow")
    judge.add_value_head(generator)
    cfg = replace(config.trainer, decay_steps=config.steps)
    return OfflineTrainer(judge, pairs, BradleyTerry(likelihood=0.0), cfg, generator)


def measure(policy: PictureJudge) -> dict[str, dict[str, float]]:
    """Per split, on 768 captions drawn by the bases: how often who is right about a pair."""
    task, metrics = DrawConfig(), {}
    for split in SPLITS:
        pairs = drawn(task, 768, split, Generator().manual_seed(0))
        metrics[split] = {
            "reward_model": round(pair_accuracy(LearnedReward(policy), pairs), 3),
            "gold": round(pair_accuracy(composition, pairs), 3),
            "ceiling": round(ceiling(pairs, task.taste), 3),
        }
    return metrics


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    task, taste = facts["config"]["task"], facts["config"]["task"]["taste"]
    rows = [
        f"| {split} | {m['reward_model']:.2f} | {m['ceiling']:.2f} | {m['gold']:.2f} |"
        for split, m in facts["metrics"].items()
    ]
    likes = " + ".join(f"{taste[n]:g} x {n}" for n in taste if n != "noise" and taste[n])
    return f"""# picture_reward: what annotators of pictures like, learned from comparisons

The `flow` checkpoint with a scalar head, trained whole by the Bradley-Terry loss, Eq. (3). It looks
at a finished picture and its caption. Made by `{facts["command"]}`: {facts["steps"]} steps,
{facts["minutes"]} minutes inside the steps on {facts["threads"]} thread(s). sha256 of the
parameters: `{facts["params_sha256"]}`.

How it learned. Every base that draws ({", ".join(POLICIES)}) draws {task["pairs"] // len(POLICIES)}
training captions {task["candidates"]} times each. A simulated annotator names the favourite and the
least favourite. What a picture is worth to the annotator: {likes}, with Gumbel noise of scale
{taste["noise"]:g}.

Share of pairs of a split that each of these calls as the annotator did: the reward model; the
annotator's own taste without noise, which nobody can be expected to beat; and the gold metric
(share of the caption that is shown), which no training sees.

| split | reward model | ceiling | gold |
| --- | --- | --- | --- |
{chr(10).join(rows)}
"""
