"""The reward model of the MLLM row: stage 2 of RLHF, from comparisons of descriptions."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Generator

from minivisrl.mllm.policy import VLMPolicy
from minivisrl.paradigms.offline import OfflineConfig, OfflineTrainer
from minivisrl.paradigms.rlhf import BradleyTerry, LearnedReward, pair_accuracy
from minivisrl.recipes.common import SPLITS
from minivisrl.recipes.mllm import DescribeConfig, comparisons, load_policy, truth_and_completeness
from minivisrl.recipes.run import RunOptions
from minivisrl.worlds.annotators import ceiling


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 600  # optimiser steps
    trainer: OfflineConfig = field(
        default_factory=lambda: OfflineConfig(learning_rate=3e-4, weight_decay=0.05)
    )
    task: DescribeConfig = field(default_factory=lambda: DescribeConfig(pairs=4096))


def build(config: Config, seed: int) -> OfflineTrainer:
    """A copy of the base VLM with a scalar head, and pairs of descriptions by the base."""
    policy = load_policy(config.task, RunOptions())
    generator = Generator().manual_seed(seed)
    pairs = comparisons(policy, config.task, config.task.pairs, "train", generator)
    policy.add_value_head(generator)
    cfg = replace(config.trainer, decay_steps=config.steps)
    return OfflineTrainer(policy, pairs, BradleyTerry(), cfg, generator)


def measure(policy: VLMPolicy) -> dict[str, dict[str, float]]:
    """Per split, on 512 scenes described by the base: how often who is right about a pair."""
    task, base, metrics = DescribeConfig(), load_policy(DescribeConfig(), RunOptions()), {}
    for split in SPLITS:
        pairs = comparisons(base, task, 512, split, Generator().manual_seed(0))
        metrics[split] = {
            "reward_model": round(pair_accuracy(LearnedReward(policy), pairs), 3),
            "gold": round(pair_accuracy(truth_and_completeness, pairs), 3),
            "ceiling": round(ceiling(pairs, task.annotator), 3),
        }
    return metrics


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    task, taste = facts["config"]["task"], facts["config"]["task"]["annotator"]
    rows = [
        f"| {split} | {m['reward_model']:.2f} | {m['ceiling']:.2f} | {m['gold']:.2f} |"
        for split, m in facts["metrics"].items()
    ]
    return f"""# vlm_reward: what annotators like, learned from comparisons

The `vlm` checkpoint with a scalar head on its trunk, trained whole by the Bradley-Terry loss,
Eq. (3). A score is the head's value at the end of a text plus the text's mean log-prob. Made by
`{facts["command"]}`: {facts["steps"]} steps, {facts["minutes"]} minutes inside the steps on
{facts["threads"]} thread(s). sha256 of the parameters: `{facts["params_sha256"]}`.

How it learned. The base describes {task["pairs"]} training scenes {task["candidates"]} times each.
A simulated annotator names the favourite and the least favourite. What a description is worth to
the annotator: {taste["truth"]:g} x truth + {taste["completeness"]:g} x completeness, less
{taste["brevity"]:g} per word, with Gumbel noise of scale {taste["noise"]:g}.

Share of pairs of a split that each of these calls as the annotator did: the reward model; the
annotator's own utility without noise, which nobody can be expected to beat; and the gold metric
(harmonic mean of truth and completeness), which no training sees.

| split | reward model | ceiling | gold |
| --- | --- | --- | --- |
{chr(10).join(rows)}
"""
