r"""Demonstrations in both directions: pictures to words, and words to pictures.

Survey: sections 2.2.1 (first stage: supervised fine-tuning on demonstrations) and 3.3.
Symbols: p -> a picture and what is asked, or a caption, y -> words, or a picture.
Departs: nothing.

A base should know but be unsure: in a share of the objects one word of a caption is wrong, whether
it is to be drawn or was written about the picture, and a share of the answers is another scene's.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from random import Random

import torch
from torch import Generator

from minivisrl.optimization.update import validate
from minivisrl.rollout import Prompts, Rollout
from minivisrl.unified.policy import UnifiedPolicy
from minivisrl.worlds.drawings import drawing_scenes, misread_captions
from minivisrl.worlds.questions import Question, ask
from minivisrl.worlds.scenes import Scene, render

DESCRIBE = "describe the picture"
KINDS = ("count", "count_attr", "color_of", "shape_of", "exists", "relation")


@dataclass(frozen=True, kw_only=True)
class DemonstrationConfig:
    """How demonstrations are written."""

    images: int = 96  # scenes in a batch: a third is drawn, described, and asked about
    wrong: float = 0.2  # share of the objects in captions whose color, shape or place is misnamed
    mistaken: float = 0.3  # share of answers that were given to another question of the kind

    def __post_init__(self) -> None:
        validate(self, {"images": (3, inf), "wrong": (0, 1), "mistaken": (0, 1)})


def questions(scenes: list[Scene], random: Random) -> list[Question]:
    """A question about each scene; kinds take turns, as far as the scenes have such questions."""
    asked = []
    for index, scene in enumerate(scenes):
        question = ask(scene, KINDS[index % len(KINDS)], random)
        asked.append(question or ask(scene, "count_attr", random))
    return asked


def said(answer: str) -> str:
    """The answer in the format that the extractor of answers expects."""
    return f"<answer> {answer} </answer>"


def demonstrations(
    policy: UnifiedPolicy, cfg: DemonstrationConfig, pixels: int, generator: Generator, step: int
) -> Rollout:
    """The batch of a step: a third pictures of captions, a third descriptions, a third answers."""
    scenes = drawing_scenes(cfg.images, "train", generator)
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    third = cfg.images // 3
    shown, captions = render(scenes, pixels), misread_captions(scenes, cfg.wrong, random)
    asked = questions(scenes[2 * third :], random)
    kinds: dict[str, list[str]] = {}
    for question in asked:
        kinds.setdefault(question.kind, []).append(question.answer)
    answers = [
        random.choice(kinds[q.kind]) if random.random() < cfg.mistaken else q.answer for q in asked
    ]
    prompts = Prompts(
        {
            "prompt": captions[:third] + [DESCRIBE] * third + [q.prompt for q in asked],
            "image": [None] * third + list(shown[third:]),
        }
    )
    outputs = [*shown[:third], *captions[third : 2 * third], *map(said, answers)]
    return policy.encode(prompts, outputs, generator)
