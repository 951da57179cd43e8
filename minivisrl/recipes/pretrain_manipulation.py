"""The base agent at the table: it clones a limited number of demonstrations by one who errs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Generator

from minivisrl.evaluation.sets import evaluate
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.policy import Policy
from minivisrl.rollout import Rollout
from minivisrl.vla.levels import SPLITS
from minivisrl.vla.manipulation import WORLD, dense, manipulation_prompts
from minivisrl.vla.manipulation_expert import demonstrations, named
from minivisrl.vla.navigation import spl, success
from minivisrl.vla.policy import new_vla
from minivisrl.vla.pretraining import DemonstratorConfig, Pupil

HALF = True  # weights in 16 bits
TABLES = 512  # per split


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 1800  # optimiser steps
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(autocast=True))
    demonstrators: DemonstratorConfig = field(
        default_factory=lambda: DemonstratorConfig(demonstrations=10000, stumble=0.1)
    )


def build(config: Config, seed: int) -> SFTTrainer:
    """A trainer over demonstrations; the learning rate reaches zero at the last step."""
    generator, new = Generator().manual_seed(seed), new_vla(seed, world=WORLD)
    policy, who = Pupil(new.model, new.tokenizer, world=WORLD), config.demonstrators
    everything = named(policy, demonstrations(who, "train", generator), generator)

    def draw(generator: Generator, step: int) -> Rollout:
        return everything.rows(
            torch.randint(len(everything), (who.batch_size,), generator=generator)
        )

    return SFTTrainer(policy, draw, replace(config.sft, total_steps=config.steps), generator)


def measure(policy: Policy) -> dict[str, dict[str, dict[str, float]]]:
    """Per split and verb: success sampled and greedy; SPL and the dense reward of the samples."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for split in SPLITS:
        generator = Generator().manual_seed(0)
        prompts = manipulation_prompts(TABLES, split, generator)
        sampled = evaluate(policy, prompts, success, samples=1, generator=generator)
        told = {"sampled": sampled, "greedy": evaluate(policy, prompts, success)}
        for name, fn in (("spl", spl), ("dense", dense)):
            told[name] = replace(sampled, scores=sampled.scores.new_tensor(sampled.scored_by(fn)))
        metrics[split] = {"all": {name: round(e.score, 3) for name, e in told.items()}}
        for name, scores in told.items():
            for kind, score in sorted(scores.by("kind").items()):
                metrics[split].setdefault(kind, {})[name] = round(score, 3)
    return metrics


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    rows = [
        f"| {split} | {kind} | {m['sampled']:.2f} | {m['spl']:.2f} | {m['dense']:.2f} | "
        f"{m['greedy']:.2f} |"
        for split, kinds in facts["metrics"].items()
        for kind, m in kinds.items()
    ]
    who = facts["config"]["demonstrators"]
    return f"""# manipulation: the base agent at the table

`LlavaForConditionalGeneration` (SigLIP + Llama, 60 px, 36 image tokens, width 64, 1 + 3 layers),
with action tokens, over the shared vocabulary; weights in 16 bits. Made by `{facts["command"]}`:
{facts["steps"]} steps, {facts["minutes"]} minutes inside the steps on {facts["threads"]} thread(s).
sha256 of the parameters: `{facts["params_sha256"]}`.

How it learned. A planner shows {who["demonstrations"]} times, on MuJoCo tables that the agent sees
from above, how to reach or push what is named. In {who["mishear"]:.0%} of the demonstrations it
acts on another thing or goal of the same table, and {who["stumble"]:.0%} of its moves are random;
all of this is cloned. The demonstrators also say what every patch of the image shows (hand, target,
goal, block, ball, ring, empty), for one action a view is too little to learn to see by.

Why so. A base model should know but be unsure: it can push, and it has learned that instructions
are not always followed. Which demonstrator to follow is what reinforcement learning finds out.

Success on {TABLES} instructions per split, sampled at temperature 1 (with success weighted by path
length and the dense reward beside it) and greedy. `appearance`: color-kind pairs never seen;
`semantics`: goals to be reached, and goals named first; `execution`: four things, not two, and a
hand that starts anywhere.

| split | instruction | sampled | SPL | dense | greedy |
| --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""
