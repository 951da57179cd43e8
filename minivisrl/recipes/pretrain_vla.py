"""The base agent: it clones a limited number of demonstrations by an expert who errs."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Generator

from minivisrl.evaluation.sets import evaluate
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.policy import Policy
from minivisrl.vla.levels import SPLITS
from minivisrl.vla.navigation import navigation_prompts, spl, success
from minivisrl.vla.policy import new_vla
from minivisrl.vla.pretraining import DemonstratorConfig, Pupil, cloned, demonstrations

LEVELS = 512  # per split


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 1800  # optimiser steps
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(autocast=True))
    demonstrators: DemonstratorConfig = field(default_factory=DemonstratorConfig)


def build(config: Config, seed: int) -> SFTTrainer:
    """A trainer over demonstrations; the learning rate reaches zero at the last step."""
    generator, new = Generator().manual_seed(seed), new_vla(seed)
    policy = Pupil(new.model, new.tokenizer)
    shown = demonstrations(config.demonstrators, "train", generator)
    draw = partial(cloned, policy, shown, config.demonstrators.batch_size)
    return SFTTrainer(policy, draw, replace(config.sft, total_steps=config.steps), generator)


def measure(policy: Policy) -> dict[str, dict[str, dict[str, float]]]:
    """Per split and kind of mission: success sampled and greedy, and SPL of the samples."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for split in SPLITS:
        generator = Generator().manual_seed(0)
        prompts = navigation_prompts(LEVELS, split, generator)
        sampled = evaluate(policy, prompts, success, samples=1, generator=generator)
        paths = replace(sampled, scores=sampled.scores.new_tensor(sampled.scored_by(spl)))
        told = {"sampled": sampled, "spl": paths, "greedy": evaluate(policy, prompts, success)}
        metrics[split] = {"all": {name: round(e.score, 3) for name, e in told.items()}}
        for name, scores in told.items():
            for kind, score in sorted(scores.by("kind").items()):
                metrics[split].setdefault(kind, {})[name] = round(score, 3)
    return metrics


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    rows = [
        f"| {split} | {kind} | {m['sampled']:.2f} | {m['spl']:.2f} | {m['greedy']:.2f} |"
        for split, kinds in facts["metrics"].items()
        for kind, m in kinds.items()
    ]
    who = facts["config"]["demonstrators"]
    return f"""# vla: the base agent

`LlavaForConditionalGeneration` (SigLIP + Llama, 40 px, 25 image tokens, width 64, 1 + 3 layers),
with action tokens, over the shared vocabulary. Made by `{facts["command"]}`:
{facts["steps"]} steps, {facts["minutes"]} minutes inside the steps on {facts["threads"]} thread(s).
sha256 of the parameters: `{facts["params_sha256"]}`.

How it learned. BabyAI's scripted bot shows {who["demonstrations"]} missions in MiniGrid rooms that
the agent sees whole: go to, pick up, open, and two of these in sequence. In {who["mishear"]:.0%} of
the demonstrations it acts on another mission in the same room, and {who["stumble"]:.0%} of its
actions are random moves; all of this is cloned. The demonstrators also say what every tile shows
(floor, wall, ball, key, box, door, the agent and where it looks, and the target), for one action a
view is too little to learn to see by.

Why so. A base model should know but be unsure: it can walk, and it has learned that missions are
not always carried out. Which demonstrator to follow is what reinforcement learning finds out.

Success on {LEVELS} missions per split, sampled at temperature 1 (with success weighted by path
length beside it) and greedy. `appearance`: color-object pairs never seen; `semantics`: "after you",
and boxes to pick up; `execution`: larger rooms with more things.

| split | mission | sampled | SPL | greedy |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""
