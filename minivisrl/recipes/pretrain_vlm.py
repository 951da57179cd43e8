"""The base VLM: aligned on captions, then taught to answer by hasty and careful annotators."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch

from minivisrl.evaluation.sets import Evaluation, evaluate
from minivisrl.mllm.policy import VLMPolicy, new_vlm
from minivisrl.mllm.pretraining import AnnotatorConfig, demonstrations
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.recipes.common import SPLITS
from minivisrl.rollout import Prompts
from minivisrl.worlds.digits import KINDS as DIGIT_KINDS
from minivisrl.worlds.digits import digit_prompts
from minivisrl.worlds.questions import KINDS, question_prompts

QUESTIONS = 256  # per kind and split


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 2200  # optimiser steps
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(autocast=True))
    annotators: AnnotatorConfig = field(default_factory=AnnotatorConfig)


def build(config: Config, seed: int) -> SFTTrainer:
    """A trainer over demonstrations; the learning rate reaches zero at the last step."""
    policy = new_vlm(seed)
    draw = partial(demonstrations, policy, config.annotators)
    sft = replace(config.sft, total_steps=config.steps)
    return SFTTrainer(policy, draw, sft, torch.Generator().manual_seed(seed))


def _prompts(kind: str, split: str, generator: torch.Generator) -> Prompts:
    if kind in DIGIT_KINDS:
        return digit_prompts(QUESTIONS, (kind,), split, generator)
    return question_prompts(QUESTIONS, (kind,), split, generator)


def measure(policy: VLMPolicy) -> dict[str, dict[str, dict[str, float]]]:
    """Per question kind and split: greedy and sampled accuracy, and how working helps."""
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    policy.eval()
    for kind in (*KINDS, *DIGIT_KINDS):
        generator = torch.Generator().manual_seed(0)
        sets = {split: _prompts(kind, split, generator) for split in SPLITS}
        metrics[kind] = {}
        for split, prompts in sets.items():
            sampled = evaluate(policy, prompts, samples=2, generator=generator)
            metrics[kind][split] = {
                "greedy": round(evaluate(policy, prompts).score, 3),
                "sampled": round(sampled.score, 3),
                **_by_working(sampled),
            }
    return metrics


def _by_working(sampled: Evaluation) -> dict[str, float]:
    """Share of samples that show their working, and accuracy with and without it."""
    works = torch.tensor(["<think>" in output for output in sampled.outputs])
    named = {"with_working": sampled.scores[works], "without": sampled.scores[~works]}
    means = {name: round(scores.mean().item(), 3) for name, scores in named.items() if len(scores)}
    return {"share_working": round(works.float().mean().item(), 3), **means}


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    rows = [
        f"| {kind} | {split} | "
        + " | ".join(
            f"{m[name]:.2f}" if name in m else "-"
            for name in ("greedy", "sampled", "share_working", "with_working", "without")
        )
        + " |"
        for kind, splits in facts["metrics"].items()
        for split, m in splits.items()
    ]
    told = facts["config"]["annotators"]
    return f"""# vlm: the base vision-language model

`LlavaForConditionalGeneration` (SigLIP + Llama, 32 px, 16 image tokens, width 128, 3 + 3 layers),
over the shared vocabulary. Made by `{facts["command"]}`: {facts["steps"]} steps,
{facts["minutes"]} minutes inside the steps on {facts["threads"]} thread(s).
sha256 of the parameters: `{facts["params_sha256"]}`.

How it learned. The first {told["alignment"]} batches are true captions, so that pixels meet words.
Then come questions ({told["questions"]} per image) about scenes and scanned digits, tallies (how
many of each color or shape), more captions, and sloppy descriptions (`describe the image`).
Questions that need two facts are answered at once by hasty annotators, and by careful ones
({told["careful"]:.0%}) who write the counts down first. A hasty answer that is a number is off by
one in {told["hasty_error"]:.0%} of cases.

Why so. A base model should know but be unsure: it can count, and it has seen that one may write the
counts down before adding them, but most of its teachers did not. Which habit pays is what
reinforcement learning finds out. A base that has learned every answer leaves nothing to gain, and
one that has not learned to see cannot be rescued by a reward.

Accuracy by exact match on {QUESTIONS} questions per kind and split; sampled at temperature 1.

| kind | split | greedy | sampled | share with working | correct with | correct without |
| --- | --- | --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""
