r"""Annotators who look at pictures: what they like, and which of several pictures they choose.

Survey: sections 2.2.1 and 3.2.4.
Symbols: y_A > y_B -> `compare_pictures`, the labels that Eq. (3) learns from.
Departs: the annotators are programs. The truth of a picture (`pictures.composition`) is one term of
    their taste; noise, and every bias towards looks, is a parameter.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from minivisrl import UserError
from minivisrl.rewards.pictures import composition
from minivisrl.rollout import PreferencePairs, Prompts
from minivisrl.worlds.annotators import best_and_worst
from minivisrl.worlds.scenes import BACKGROUND, Scene


@dataclass(frozen=True, kw_only=True)
class TasteConfig:
    """What an annotator of pictures likes; every weight is that of a fraction of 1."""

    composition: float = 2.0  # share of the caption that the picture shows
    sharpness: float = 0.5  # mean step between neighbouring pixels
    contrast: float = 0.5  # standard deviation of the brightness
    centring: float = 0.0  # 1: what is painted balances around the middle
    palette: float = 0.0  # mean saturation of the colors
    noise: float = 0.1  # utility at which the odds become e to 1; 0: always the better one

    def __post_init__(self) -> None:
        if not self.noise >= 0:
            raise UserError(f"TasteConfig.noise={self.noise} must not be < 0")


def looks(images: Tensor) -> dict[str, Tensor]:
    """Sharpness, contrast, centring and palette (N,) of images (N, 3, H, W), fractions of 1."""
    grey = images.mean(dim=1)  # (N, H, W)
    across, down = (images.diff(dim=d).abs().mean(dim=(1, 2, 3)) for d in (3, 2))  # (N,), (N,)
    ink = (images.amax(dim=1) - BACKGROUND).clamp(min=0)  # (N, H, W)
    mass = ink.sum(dim=(1, 2)).clamp(min=1e-6)  # (N,)
    place = torch.linspace(-1, 1, images.shape[-1], device=images.device)  # (W,)
    x, y = ((ink * at).sum(dim=(1, 2)) / mass for at in (place, place[:, None]))  # (N,), (N,)
    return {
        "sharpness": (across + down) / 2,
        "contrast": grey.flatten(1).std(dim=1),
        "centring": 1 - (x.square() + y.square()).sqrt().clamp(max=1),
        "palette": (images.amax(dim=1) - images.amin(dim=1)).mean(dim=(1, 2)),
    }


def tastes(
    completions: Sequence[Tensor], scene: Sequence[Scene], cfg: TasteConfig, **_: Any
) -> list[float]:
    """What each picture is worth to an annotator, before the noise."""
    images = torch.stack([torch.as_tensor(image).detach().float().cpu() for image in completions])
    told = looks(images) | {"composition": torch.tensor(composition(completions, scene))}
    weights = {name: weight for name, weight in asdict(cfg).items() if name != "noise"}
    return sum(weight * told[name] for name, weight in weights.items()).tolist()


def compare_pictures(
    prompts: Prompts, images: Sequence[Tensor], cfg: TasteConfig, g: Generator
) -> PreferencePairs:
    """The annotator's favourite and least favourite among the pictures drawn for each caption.

    Args:
        images: the same number for each of the B prompts, those of a prompt side by side.
    """
    size = len(images) // len(prompts)
    worth = tastes(images, prompts.repeat(size)["scene"], cfg)
    starts = range(0, len(images), size)
    candidates = [images[i : i + size] for i in starts]
    return best_and_worst(prompts, candidates, [worth[i : i + size] for i in starts], cfg.noise, g)
