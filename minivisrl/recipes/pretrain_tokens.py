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


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 4000  # optimiser steps
    copying: int = 1000  # first steps: the picture tokenizer alone; then it takes every second one
    pixels: int = 16  # side of the pictures
    sft: SFTConfig = field(default_factory=lambda: SFTConfig(autocast=True))
    captions: CaptionConfig = field(default_factory=CaptionConfig)


def build(config: Config, seed: int) -> SFTTrainer:
    """A trainer of both; codes move ever less, as the learning rate reaches zero.

    Unused codes are restarted while the picture tokenizer learns alone.
    """
    policy, cfg = new_tokens(seed, pixels=config.pixels), config.captions
    policy.pictures.requires_grad_(True)

    def draw(generator: Generator, step: int) -> Rollout:
        alone = step < config.copying
        if alone or step % 2:
            return copies(policy.pictures, cfg, config.pixels, generator, step if alone else -1)
        return captioned(policy, cfg, config.pixels, generator, step)

    sft = replace(config.sft, total_steps=config.steps)
    return SFTTrainer(policy, draw, sft, Generator().manual_seed(seed))


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    about = f"""A `JanusVQVAE`, which makes 4 x 4 pixels one of 128 codes, trained to copy pictures
(alone for {facts["config"]["copying"]} steps, then in every second step), and a `LlamaForCausalLM`
(3 layers, width 128) over the shared vocabulary, which writes 16 codes after the caption. `predict`
is greedy."""
    return report(facts, "tokens: the base that draws with codes", about)
