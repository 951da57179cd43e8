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
from zlib import crc32

import torch
from torch import Generator

from minivisrl.optimization.update import validate
from minivisrl.policy import Policy
from minivisrl.rewards.pictures import Seen, snapped, wanted
from minivisrl.rollout import Prompts, Rollout
from minivisrl.tokenizer import PictureTokenizer, pixels_of
from minivisrl.worlds.scenes import (
    COLOUR_NAMES,
    HELDOUT_SHARE,
    SHAPES,
    UNSEEN_PAIRS,
    Scene,
    render,
    sample_scenes,
)

ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
NUMBERS = {"composition": (4, 4)}  # objects per picture; elsewhere 1 to 3


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """How captioned pictures are made."""

    images: int = 64  # pictures in a batch
    wrong: float = 0.3  # share of the objects whose color, shape, row or column is misnamed

    def __post_init__(self) -> None:
        validate(self, {"images": (1, inf), "wrong": (0, 1)})


def phrase(seen: Seen) -> str:
    """`red circle top left`."""
    return f"{seen.color} {seen.shape} {ROWS[seen.cell // 3]} {COLUMNS[seen.cell % 3]}"


def caption(scene: Scene) -> str:
    """The true and complete caption, in reading order."""
    return ", ".join(map(phrase, wanted(scene)))


def _drawable(scene: Scene, split: str) -> bool:
    """Whether a scene is of the split, and no two neighbours of one color would touch."""
    colors = {seen.cell: seen.color for seen in wanted(scene)}
    across = (colors[c] == colors.get(c + 1) for c in colors if c % 3 < 2)
    down = (colors[c] == colors.get(c + 3) for c in colors)
    heldout = crc32(caption(scene).encode()) % HELDOUT_SHARE == 0
    other = split in ("train", "heldout") and heldout != (split == "heldout")
    return not (other or any(across) or any(down))


def drawing_scenes(count: int, split: str, generator: Generator) -> list[Scene]:
    """Scenes of large objects that can be told apart at 16 px, and of which captions can be told.

    Splits are disjoint: by a hash of the caption for `train` and `heldout`, by unseen colour-shape
    pairs for `appearance`, by the number of objects (four) for `composition`.
    """
    source = "appearance" if split == "appearance" else "train"
    found: list[Scene] = []
    while len(found) < count:
        drawn = sample_scenes(2 * count, source, generator, objects=NUMBERS.get(split, (1, 3)))
        found += [scene for scene in map(snapped, drawn) if _drawable(scene, split)]
    return found[:count]


def drawing_prompts(count: int, split: str, generator: Generator) -> Prompts:
    """`count` captions to draw: columns prompt, scene, and objects, how many there are."""
    scenes = drawing_scenes(count, split, generator)
    objects = [len(scene.things) for scene in scenes]
    return Prompts({"prompt": list(map(caption, scenes)), "scene": scenes, "objects": objects})


def misread(seen: Seen, random: Random) -> Seen:
    """The object with another color, shape, row or column; never a pair that training must miss."""
    row, column = divmod(seen.cell, 3)
    colors = [seen._replace(color=color) for color in COLOUR_NAMES if color != seen.color]
    shapes = [seen._replace(shape=shape) for shape in SHAPES if shape != seen.shape]
    rows = [seen._replace(cell=3 * other + column) for other in range(3) if other != row]
    columns = [seen._replace(cell=3 * row + other) for other in range(3) if other != column]
    kinds = [[new for new in kind if new[:2] not in UNSEEN_PAIRS] for kind in (colors, shapes)]
    return random.choice(random.choice([*kinds, rows, columns]))


def captioned(
    policy: Policy, cfg: CaptionConfig, pixels: int, generator: Generator, step: int
) -> Rollout:
    """The batch of a step: encoded pictures, each with a caption that may be wrong."""
    scenes = drawing_scenes(cfg.images, "train", generator)
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    told = [
        [misread(s, random) if random.random() < cfg.wrong else s for s in wanted(scene)]
        for scene in scenes
    ]
    prompts = Prompts({"prompt": [", ".join(map(phrase, seen)) for seen in told]})
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
