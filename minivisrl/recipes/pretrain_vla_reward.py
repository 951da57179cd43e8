"""The reward model of the VLA row: stage 2 of RLHF, from comparisons of segments of episodes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Generator

from minivisrl import DATA
from minivisrl.paradigms.offline import OfflineConfig, OfflineTrainer
from minivisrl.paradigms.rlhf import BradleyTerry, LearnedReward, pair_accuracy
from minivisrl.recipes.run import RunOptions
from minivisrl.recipes.vla import NavigateConfig, ceiling, comparisons, load_policy
from minivisrl.vla.levels import SPLITS
from minivisrl.vla.navigation import success
from minivisrl.vla.segments import SegmentJudge


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 900  # optimiser steps
    trainer: OfflineConfig = field(
        default_factory=lambda: OfflineConfig(learning_rate=5e-4, weight_decay=0.05)
    )
    task: NavigateConfig = field(default_factory=lambda: NavigateConfig(pairs=6144))


def build(config: Config, seed: int) -> OfflineTrainer:
    """A copy of the base agent with a scalar head, and pairs of segments of its episodes."""
    generator = Generator().manual_seed(seed)
    base = load_policy(config.task, RunOptions())
    pairs = comparisons(base, config.task, config.task.pairs, "train", generator)
    judge = SegmentJudge.load(DATA / "checkpoints" / "vla")
    judge.add_value_head(generator)
    cfg = replace(config.trainer, decay_steps=config.steps)
    return OfflineTrainer(judge, pairs, BradleyTerry(likelihood=0.0), cfg, generator)


def measure(policy: SegmentJudge) -> dict[str, dict[str, float]]:
    """Per split, on 384 levels: how often who is right about a pair."""
    task, base, metrics = NavigateConfig(), load_policy(NavigateConfig(), RunOptions()), {}
    for split in SPLITS:
        pairs = comparisons(base, task, 384, split, Generator().manual_seed(0))
        metrics[split] = {
            "reward_model": round(pair_accuracy(LearnedReward(policy), pairs), 3),
            "gold": round(pair_accuracy(success, pairs), 3),
            "ceiling": round(ceiling(task)(pairs), 3),
        }
    return metrics


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    task, taste = facts["config"]["task"], facts["config"]["task"]["annotator"]
    rows = [
        f"| {split} | {m['reward_model']:.2f} | {m['ceiling']:.2f} | {m['gold']:.2f} |"
        for split, m in facts["metrics"].items()
    ]
    return f"""# vla_reward: what annotators of episodes like, learned from comparisons

The `vla` checkpoint with a scalar head on its trunk, trained whole by the Bradley-Terry loss,
Eq. (3). The score of a segment is the head's value where it ends less the value where it begins.
Made by `{facts["command"]}`: {facts["steps"]} steps, {facts["minutes"]} minutes inside the steps
on {facts["threads"]} thread(s). sha256 of the parameters: `{facts["params_sha256"]}`.

How it learned. The base acts in {task["pairs"]} training levels, {task["candidates"]} times each. A
simulated annotator watches up to {taste["length"]} actions of every episode, and names the best and
the worst piece. What a piece is worth: the actions by which it came nearer to success, less
{taste["hurry"]:g} per action, with Gumbel noise of scale {taste["noise"]:g}.

Share of pairs of a split that each of these calls as the annotator did: the reward model; the
annotator's own taste without noise, which nobody can be expected to beat; and success, which no
training sees (most pieces end before it).

| split | reward model | ceiling | gold |
| --- | --- | --- | --- |
{chr(10).join(rows)}
"""
