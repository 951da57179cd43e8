"""The base that draws with tokens: a picture tokenizer, and a language model over its codes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from torch import Generator

from minivisrl.generation.autoregressive import new_tokens
from minivisrl.generation.pretraining import CaptionConfig, captioned, copies
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.recipes.pretrain_diffusion import measure, report
from minivisrl.rollout import Rollout

__all__ = ["Config", "build", "card", "measure"]

HALF = True  # stored in 16 bits


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 3600  # optimiser steps
    copying: int = 800  # first steps: the picture tokenizer alone; then it stays as it is
    pixels: int = 16  # side of the pictures
    sft: SFTConfig = field(default_factory=SFTConfig)
    captions: CaptionConfig = field(default_factory=lambda: CaptionConfig(aligned=2800))


def build(config: Config, seed: int) -> SFTTrainer:
    """A trainer of both, one after the other; a language model cannot chase codes that move."""
    policy, cfg = new_tokens(seed, pixels=config.pixels), config.captions
    policy.pictures.requires_grad_(True)

    def draw(generator: Generator, step: int) -> Rollout:
        if step < config.copying:
            return copies(policy.pictures, cfg, config.pixels, generator, step)
        policy.pictures.requires_grad_(False)
        return captioned(policy, cfg, config.pixels, generator, step)

    sft = replace(config.sft, total_steps=config.steps)
    return SFTTrainer(policy, draw, sft, Generator().manual_seed(seed))


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    about = f"""A `JanusVQVAE`, which makes 4 x 4 pixels one of 128 codes, trained to copy pictures
({facts["config"]["copying"]} steps), and then a `LlamaForCausalLM` (3 layers, width 128) over the
shared vocabulary, which writes 16 codes after the caption. `predict`
is greedy."""
    return report(facts, "tokens: the base that draws with codes", about)
