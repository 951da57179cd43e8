r"""Captioned scenes for the base policies: who wrote the captions was not always looking.

Survey: sections 2.2.1 (first stage: supervised fine-tuning on demonstrations) and 3.2.1.
Symbols: p -> "red circle top left, blue square bottom right", y -> the picture.
Departs: nothing.

A base should know but be unsure: in a share of the objects one word of the caption is wrong, so a
base that has learned its captions well draws what was said only some of the time.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from random import Random

import torch
from torch import Generator

from minivisrl.optimization.update import validate
from minivisrl.policy import Policy
from minivisrl.rollout import Prompts, Rollout
from minivisrl.tokenizer import PictureTokenizer, pixels_of
from minivisrl.worlds.drawings import drawing_scenes, misread_captions
from minivisrl.worlds.scenes import render


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """How captioned pictures are made."""

    images: int = 64  # pictures in a batch
    wrong: float = 0.3  # share of the objects whose color, shape, row or column is misnamed

    def __post_init__(self) -> None:
        validate(self, {"images": (1, inf), "wrong": (0, 1)})


def captioned(
    policy: Policy, cfg: CaptionConfig, pixels: int, generator: Generator, step: int
) -> Rollout:
    """The batch of a step: encoded pictures, each with a caption that may be wrong."""
    scenes = drawing_scenes(cfg.images, "train", generator)
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    prompts = Prompts({"prompt": misread_captions(scenes, cfg.wrong, random)})
    return policy.encode(prompts, render(scenes, pixels), generator)


def copies(
    pictures: PictureTokenizer, cfg: CaptionConfig, pixels: int, generator: Generator, step: int
) -> Rollout:
    """The batch of a step that teaches the picture tokenizer to copy pictures.

    Every 25 steps, codes that its pictures do not use are restarted; `step` -1 restarts none.
    """
    images = render(drawing_scenes(cfg.images, "train", generator), pixels)
    shown = pixels_of(images, pictures.device)  # (N, 3, H, W)
    pictures.settle()
    if step >= 0 and step % 25 == 0:
        pictures.restart(shown, generator)
    ones = torch.ones(len(shown), 1, device=shown.device)
    prompts = Prompts({"prompt": [""] * len(shown)})
    return Rollout(prompts, {"pixels": shown}, 0 * ones, ones, 1, images)
