"""The base flow policy: the captions and the report of `pretrain_diffusion`, another denoiser."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from minivisrl.generation.flow import new_flow
from minivisrl.paradigms.sft import SFTTrainer
from minivisrl.recipes import pretrain_diffusion
from minivisrl.recipes.pretrain_diffusion import READING, learn, measure, report

__all__ = ["Config", "build", "card", "measure"]

HALF = True  # stored in 16 bits


@dataclass(frozen=True, kw_only=True)
class Config(pretrain_diffusion.Config):
    steps: int = 2000  # optimiser steps


def build(config: Config, seed: int) -> SFTTrainer:
    """A trainer of an untrained SD3 transformer."""
    return learn(new_flow(seed, pixels=config.pixels), config, seed)


def card(facts: dict[str, Any]) -> str:
    """The model card, in Markdown."""
    about = f"""An `SD3Transformer2DModel` (4 layers, patches of 4 x 4) and a T5 encoder (2 layers),
width 128, over the shared vocabulary; on pixels. It predicts the velocity of a rectified flow.
{READING.format(facts["config"]["reading"])}"""
    return report(facts, "flow: the base that flows from noise to picture", about)
