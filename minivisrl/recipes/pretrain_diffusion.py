"""The base diffusion policy, and what the bases of the generation row share: task and report."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

from torch import Generator

from minivisrl.evaluation.sets import evaluate
from minivisrl.generation.denoising import DenoisingPolicy
from minivisrl.generation.diffusion import new_diffusion
from minivisrl.generation.pretraining import CaptionConfig, captioned, learn_to_read
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.policy import Policy
from minivisrl.recipes.common import SPLITS
from minivisrl.rewards.pictures import composition, exact_composition
from minivisrl.worlds.drawings import drawing_prompts

CAPTIONS = 384  # per split
READING = """Before all of it the text encoder learned, in {} steps on captions alone, which words
belong to the same shape: without that a flow drew 0.00 of captions right after 500 steps, with it
0.25."""
HALF = True  # stored in 16 bits


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 5000  # optimiser steps
    reading: int = 300  # steps before them, in which the text encoder learns from captions alone
    pixels: int = 16  # side of the pictures
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(learning_rate=1e-3))
    captions: CaptionConfig = field(default_factory=CaptionConfig)


def learn(policy: DenoisingPolicy, config: Config, seed: int) -> SFTTrainer:
    """A trainer over captioned scenes; the learning rate reaches zero at the last step."""
    generator = Generator().manual_seed(seed)
    learn_to_read(policy, generator, config.reading)
    draw = partial(captioned, policy, config.captions, config.pixels)
    sft = replace(config.sft, total_steps=config.steps)
    return SFTTrainer(policy, draw, sft, generator)


def build(config: Config, seed: int) -> SFTTrainer:
    """A trainer of an untrained PixArt."""
    return learn(new_diffusion(seed, pixels=config.pixels), config, seed)


def measure(policy: Policy) -> dict[str, dict[str, dict[str, float]]]:
    """Per split and number of objects: share of captions drawn exactly right, and points.

    `predicted` is what `predict` draws, `sampled` one rollout per caption, `points` its partial
    credit.
    """
    metrics: dict[str, dict[str, dict[str, float]]] = {}
    for split in SPLITS:
        generator = Generator().manual_seed(0)
        prompts = drawing_prompts(CAPTIONS, split, generator)
        sampled = evaluate(policy, prompts, exact_composition, samples=1, generator=generator)
        points = replace(sampled, scores=sampled.scores.new_tensor(sampled.scored_by(composition)))
        told = {"predicted": evaluate(policy, prompts, exact_composition), "sampled": sampled}
        metrics[split] = {"all": {}}
        for name, scores in (told | {"points": points}).items():
            metrics[split]["all"][name] = round(scores.score, 3)
            for number, score in sorted(scores.by("objects").items()):
                metrics[split].setdefault(str(number), {})[name] = round(score, 3)
    return metrics


def report(facts: dict[str, Any], title: str, about: str) -> str:
    """The model card, in Markdown, of a base that draws."""
    rows = [
        f"| {split} | {number} | {m['predicted']:.2f} | {m['sampled']:.2f} | {m['points']:.2f} |"
        for split, numbers in facts["metrics"].items()
        for number, m in numbers.items()
    ]
    wrong, aligned = (facts["config"]["captions"][name] for name in ("wrong", "aligned"))
    return f"""# {title}

{about}
Made by `{facts["command"]}`: {facts["steps"]} steps, {facts["minutes"]} minutes inside the steps
on {facts["threads"]} thread(s). sha256 of the parameters: `{facts["params_sha256"]}`.

How it learned. Pictures of one to three shapes, {facts["config"]["pixels"]} px, each with a caption
that names the color, shape and place of every shape. After {aligned} steps with true captions one
word is wrong for {wrong:.0%} of the shapes: the color, the shape, the row or the column. All shapes
are large, and centred on the pixels of a 16 x 16 raster: elsewhere a circle can have the very
pixels of a square at this size.

Why so. A base model should know but be unsure: it can draw what a caption says, and has learned
that captions are not always to be believed. A base that draws everything right leaves nothing to
gain, and one that cannot draw is not rescued by a reward.

Share of {CAPTIONS} captions per split drawn exactly right (color, shape and place of every shape,
and nothing else), as a program reads the picture: by `predict`, and sampled; points are partial
credit for what was sampled. `appearance`: color-shape pairs never seen; `composition`: four shapes.

| split | shapes | predicted | sampled | points |
| --- | --- | --- | --- | --- |
{chr(10).join(rows)}
"""


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    reading = READING.format(facts["config"]["reading"])
    about = f"""A `PixArtSigmaPipeline`: T5 encoder (2 layers), transformer (4 layers, patch 4),
width 128, over the shared vocabulary; on pixels, without a VAE. It predicts velocity (v), at 1000
levels. {reading}"""
    return report(facts, "diffusion: the base that denoises", about)
