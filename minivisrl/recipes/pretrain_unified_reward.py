"""The reward model of the unified row: one judge of drawings and of descriptions, from pairs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Generator

from minivisrl.paradigms.offline import OfflineConfig, OfflineTrainer
from minivisrl.paradigms.rlhf import BradleyTerry, LearnedReward, pair_accuracy
from minivisrl.recipes.common import SPLITS
from minivisrl.recipes.run import RunOptions
from minivisrl.recipes.unified import UnifiedConfig, ceiling, comparisons, load_policy
from minivisrl.unified.policy import UnifiedPolicy

JUDGED = ("draw", "describe")

HALF = True  # stored in 16 bits


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 600  # optimiser steps
    trainer: OfflineConfig = field(
        default_factory=lambda: OfflineConfig(learning_rate=3e-4, weight_decay=0.05)
    )
    task: UnifiedConfig = field(default_factory=lambda: UnifiedConfig(train=JUDGED, pairs=8192))


def build(config: Config, seed: int) -> OfflineTrainer:
    """A copy of the base with a scalar head, and pairs of its own drawings and descriptions."""
    policy = load_policy(config.task, RunOptions())
    generator = Generator().manual_seed(seed)
    pairs = comparisons(policy, config.task, config.task.pairs, "train", generator)
    policy.add_value_head(generator)
    cfg = replace(config.trainer, decay_steps=config.steps)
    return OfflineTrainer(policy, pairs, BradleyTerry(), cfg, generator)


def measure(policy: UnifiedPolicy) -> dict[str, dict[str, float]]:
    """Per split and kind, on 384 prompts: how often who is right about a pair."""
    base, metrics = load_policy(UnifiedConfig(), RunOptions()), {}
    for split in SPLITS:
        for kind in JUDGED:
            task = UnifiedConfig(train=(kind,))
            pairs = comparisons(base, task, 384, split, Generator().manual_seed(0))
            metrics[f"{split}, {kind}"] = {
                "reward_model": round(pair_accuracy(LearnedReward(policy), pairs), 3),
                "ceiling": round(ceiling(pairs), 3),
            }
    return metrics


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    task = facts["config"]["task"]
    rows = [
        f"| {name} | {m['reward_model']:.2f} | {m['ceiling']:.2f} |"
        for name, m in facts["metrics"].items()
    ]
    return f"""# unified_reward: one judge of drawings and descriptions, learned from comparisons

The `unified` checkpoint with a scalar head on its trunk, trained whole by the Bradley-Terry loss,
Eq. (3). A score is the head's value at the end of an output plus the output's mean log-prob. Made
by `{facts["command"]}`: {facts["steps"]} steps, {facts["minutes"]} minutes inside the steps on
{facts["threads"]} thread(s). sha256 of the parameters: `{facts["params_sha256"]}`.

How it learned. The base answers {task["pairs"]} training prompts, half to draw, half to describe,
{task["candidates"]} times each. A simulated annotator names the favourite and the least favourite,
by the share of the objects that are right, with Gumbel noise of scale {task["noise"]:g}.

Share of pairs that each of these calls as the annotator did: the reward model, and the truth, which
is the annotator's taste without noise.

| split, kind | reward model | ceiling |
| --- | --- | --- |
{chr(10).join(rows)}
"""
