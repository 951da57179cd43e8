"""The base of the unified row: one language model that reads pictures and draws them."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Generator

from minivisrl import DATA
from minivisrl.generation.autoregressive import TokenPolicy
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.recipes.common import SPLITS
from minivisrl.recipes.unified import abilities
from minivisrl.unified.policy import UnifiedPolicy, new_unified
from minivisrl.unified.pretraining import DemonstrationConfig, demonstrations

CAPTIONS = 384  # prompts per split and ability


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 2500  # optimiser steps
    sft: SFTConfig = field(default_factory=SFTConfig)
    shown: DemonstrationConfig = field(default_factory=DemonstrationConfig)


def build(config: Config, seed: int) -> SFTTrainer:
    """A trainer of an untrained Llama, drawing through the tokenizer of the `tokens` checkpoint."""
    pictures = TokenPolicy.load(DATA / "checkpoints" / "tokens").pictures
    policy = new_unified(seed, pictures=pictures)
    draw = partial(demonstrations, policy, config.shown, 16)
    sft = replace(config.sft, total_steps=config.steps)
    return SFTTrainer(policy, draw, sft, Generator().manual_seed(seed))


def measure(policy: UnifiedPolicy) -> dict[str, dict[str, float]]:
    """Per split: the three abilities, greedy and sampled."""
    return {
        split: {n: round(x, 3) for n, x in abilities(policy, split, CAPTIONS).items()}
        for split in SPLITS
    }


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    names = list(facts["metrics"]["heldout"])
    rows = [
        f"| {split} | " + " | ".join(f"{m[name]:.2f}" for name in names) + " |"
        for split, m in facts["metrics"].items()
    ]
    shown = facts["config"]["shown"]
    return f"""# unified: the base that reads and draws

A `LlamaForCausalLM` (4 layers, width 128) over the shared vocabulary of words and picture codes,
and the picture tokenizer of the `tokens` checkpoint. Made by `{facts["command"]}`:
{facts["steps"]} steps, {facts["minutes"]} minutes inside the steps on {facts["threads"]} thread(s).
sha256 of the parameters: `{facts["params_sha256"]}`.

How it learned. Every batch is a third captions to draw, a third pictures to describe, a third
questions about pictures. In {shown["wrong"]:.0%} of the objects of a caption one word is wrong;
{shown["mistaken"]:.0%} of the answers belong to another question of the kind.

Why so. A base model should know but be unsure. What it has learned shows when it decodes greedily;
how unsure it is shows when it samples, and sampling is what reinforcement learning improves.

On {CAPTIONS} prompts per split and ability: share of answers that are right, points for the objects
that a description names (place, color, shape), points for the objects that a drawing shows.

| split | {" | ".join(names)} |
| --- |{" --- |" * len(names)}
{chr(10).join(rows)}
"""
