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
from torch import Generator, nn
from torch.nn.functional import cross_entropy

from minivisrl.generation.denoising import DenoisingPolicy
from minivisrl.optimization.update import validate
from minivisrl.policy import Policy
from minivisrl.rollout import Prompts, Rollout
from minivisrl.tokenizer import PictureTokenizer, pixels_of
from minivisrl.worlds.drawings import Seen, caption, drawing_scenes, misread_captions, wanted
from minivisrl.worlds.scenes import COLOUR_NAMES, SHAPES, Scene, render


@dataclass(frozen=True, kw_only=True)
class CaptionConfig:
    """How captioned pictures are made."""

    images: int = 64  # pictures in a batch
    aligned: int = 1500  # first batches, true captions only: words meet pixels
    wrong: float = 0.2  # later share of the objects whose color, shape, row or column is misnamed

    def __post_init__(self) -> None:
        validate(self, {"images": (1, inf), "aligned": (0, inf), "wrong": (0, 1)})


def learn_to_read(policy: DenoisingPolicy, generator: Generator, steps: int) -> float:
    """Teach the text encoder, by captions alone, which words are about the same object.

    At every word a linear head names the color, shape and cell of the object that it belongs to.
    Found by the denoiser's own loss this takes most of the training, for two words far apart
    have to meet before any of them is of use.  The head is thrown away.

    Returns:
        the cross-entropy of the last step, in nats per word, of three names together.
    """
    weight = 0.01 * torch.randn(19, policy.text_encoder.config.d_model, generator=generator)
    head = nn.Parameter(weight.to(policy.device))
    optimizer = torch.optim.AdamW([*policy.text_encoder.parameters(), head], lr=1e-3)
    loss = head.new_zeros(())
    for _ in range(steps):
        scenes = drawing_scenes(64, "train", generator)
        features, _ = policy.read(Prompts({"prompt": list(map(caption, scenes))}))  # (B, L, D)
        seen = [(row, place, one) for row, s in enumerate(scenes) for place, one in _words(s)]
        rows, places, objects = zip(*seen, strict=True)
        said = features[list(rows), list(places)] @ head.T  # (M, 19)
        truth = [(COLOUR_NAMES.index(o.color), SHAPES.index(o.shape), o.cell) for o in objects]
        names = torch.tensor(truth, device=said.device).T  # (3, M)
        parts = zip(said.split((6, 4, 9), dim=1), names, strict=True)
        loss = sum(cross_entropy(named, name) for named, name in parts)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return loss.item()


def _words(scene: Scene) -> list[tuple[int, Seen]]:
    """Place in the caption of every word about an object, with the object; commas lie between."""
    return [(5 * i + j, seen) for i, seen in enumerate(wanted(scene)) for j in range(4)]


def captioned(
    policy: Policy, cfg: CaptionConfig, pixels: int, generator: Generator, step: int
) -> Rollout:
    """The batch of a step: encoded pictures, each with a caption that may be wrong."""
    scenes = drawing_scenes(cfg.images, "train", generator)
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    wrong = cfg.wrong if step >= cfg.aligned else 0.0
    prompts = Prompts({"prompt": misread_captions(scenes, wrong, random)})
    return policy.encode(prompts, render(scenes, pixels), generator)


def copies(
    pictures: PictureTokenizer, cfg: CaptionConfig, pixels: int, generator: Generator, step: int
) -> Rollout:
    """The batch of a step that teaches the picture tokenizer to copy pictures.

    Every 25 steps, codes that its pictures do not use are restarted.
    """
    images = render(drawing_scenes(cfg.images, "train", generator), pixels)
    shown = pixels_of(images, pictures.device)  # (N, 3, H, W)
    pictures.settle()
    if step % 25 == 0:
        pictures.restart(shown, generator)
    ones = torch.ones(len(shown), 1, device=shown.device)
    prompts = Prompts({"prompt": [""] * len(shown)})
    return Rollout(prompts, {"pixels": shown}, 0 * ones, ones, 1, images)
