r"""Simulated annotators: what they read in a description of a scene, and which one they prefer.

An annotator likes a description that is true, complete and brief, and chooses between two with the
odds of a logistic model (Bradley-Terry), among several with those of Plackett and Luce.  Weights,
noise and a bias towards length are parameters.  The truth that they are measured against is read
off the scene graph alone: how much of what was said is there, and how much of what is there was
said.

Descriptions are data: they are split into words and looked up, never evaluated.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from math import exp, log
from typing import Any, NamedTuple

import torch
from torch import Generator

from minivisrl import UserError
from minivisrl.rollout import PreferencePairs, Prompts
from minivisrl.worlds.scenes import COLOUR_NAMES, SHAPES, Scene

SINGULAR = {shape: shape for shape in SHAPES} | {f"{shape}s": shape for shape in SHAPES}
SINGULAR["crosses"] = "cross"


@dataclass(frozen=True, kw_only=True)
class PreferenceConfig:
    """What an annotator likes, and how reliably."""

    truth: float = 1.0  # weight of the share of mentioned objects that are there
    completeness: float = 2.0  # weight of the share of objects that are mentioned
    brevity: float = 0.01  # price of a word
    length_bias: float = 0.0  # what a word is worth to an annotator who takes length for effort
    noise: float = 0.1  # utility at which the odds become e to 1; 0: always the better one

    def __post_init__(self) -> None:
        for name in ("truth", "completeness", "brevity", "noise"):
            if not getattr(self, name) >= 0:
                raise UserError(f"PreferenceConfig.{name}={getattr(self, name)} must not be < 0")


class Reading(NamedTuple):
    """A description held against its scene; everything is a fraction of 1, except `words`."""

    truth: float  # precision: mentioned objects that are there / mentioned objects
    completeness: float  # recall: objects that are mentioned / objects
    gold: float  # harmonic mean of the two
    words: int


def mentions(text: str) -> list[tuple[str, str]]:
    """(color, shape) of every object that a text mentions, in order.

    An object is a color followed by a shape (singular or plural); size words and unknown words
    between them are skipped, a punctuation mark or "and" separates objects.
    """
    found, color = [], None
    for word in re.findall(r"[a-z]+|[^a-z\s]", text.lower()):
        if word in COLOUR_NAMES:
            color = word
        elif word in SINGULAR:
            found += [(color, SINGULAR[word])] if color else []
            color = None
        elif word == "and" or not word.isalpha():
            color = None
    return found


def read(text: str, scene: Scene) -> Reading:
    """How true and how complete a description is.

    Every object can be matched once, so naming it twice is as untrue as inventing one.  Who
    mentions nothing says nothing true.
    """
    said = Counter(mentions(text))
    there = Counter((thing.color, thing.shape) for thing in scene.things)
    hits, total = (said & there).total(), said.total()
    return Reading(
        truth=hits / total if total else 0.0,
        completeness=hits / len(scene.things),
        gold=2 * hits / (total + len(scene.things)),
        words=len(re.findall(r"[^\W_]+", text)),
    )


def utility(text: str, scene: Scene, cfg: PreferenceConfig) -> float:
    """What a description is worth to an annotator, before the noise."""
    reading = read(text, scene)
    per_word = cfg.length_bias - cfg.brevity
    worth = cfg.truth * reading.truth + cfg.completeness * reading.completeness
    return worth + per_word * reading.words


def preference(first: str, second: str, scene: Scene, cfg: PreferenceConfig) -> float:
    r"""Probability that the first description is preferred: sigma((u_1 - u_2) / noise)."""
    gap = utility(first, scene, cfg) - utility(second, scene, cfg)
    if gap == 0 or cfg.noise == 0:
        return 0.5 + 0.5 * ((gap > 0) - (gap < 0))
    odds = exp(-min(abs(gap) / cfg.noise, 700.0))  # of the worse one
    return 1 / (1 + odds) if gap > 0 else odds / (1 + odds)


def best_and_worst(
    prompts: Prompts,
    candidates: Sequence[Sequence[Any]],
    worth: Sequence[Sequence[float]],
    noise: float,
    g: Generator,
) -> PreferencePairs:
    """What an annotator who sees several outputs per prompt likes best, and what least.

    What each is worth is noisy (Gumbel); of two, the better one wins with the odds of `preference`.
    Where there are not two there is nothing to say, so fewer pairs than prompts may come back.

    Raises:
        UserError: there are never two.
    """
    keep, chosen, rejected = [], [], []
    for i, (outputs, values) in enumerate(zip(candidates, worth, strict=True)):
        exponential = torch.empty(len(outputs), device=g.device).exponential_(generator=g).tolist()
        gumbel = [-noise * log(max(e, 1e-30)) for e in exponential]
        felt = [value + n for value, n in zip(values, gumbel, strict=True)]
        if len(outputs) > 1:
            keep.append(i)
            chosen.append(outputs[felt.index(max(felt))])
            rejected.append(outputs[felt.index(min(felt))])
    if not keep:
        raise UserError("there is nothing to compare: all descriptions of a scene are equal")
    return PreferencePairs(prompts.rows(keep), chosen, rejected)


def annotate(
    prompts: Prompts, candidates: Sequence[Sequence[str]], cfg: PreferenceConfig, g: Generator
) -> PreferencePairs:
    """Let an annotator read several descriptions of each `scene`: favourite and least favourite.

    Equal descriptions of a scene count once; see `best_and_worst`.

    Raises:
        UserError: all descriptions of every scene are equal.
    """
    texts = [list(dict.fromkeys(told)) for told in candidates]
    scenes = zip(texts, prompts["scene"], strict=True)
    worth = [[utility(text, scene, cfg) for text in told] for told, scene in scenes]
    return best_and_worst(prompts, texts, worth, cfg.noise, g)


def ceiling(pairs: PreferencePairs, cfg: PreferenceConfig) -> float:
    """Share of an annotator's labels that their own utility, without noise, would have predicted.

    A tie counts a half.  No reward model can be expected to agree with noisy labels more often.
    """
    rows = zip(pairs.chosen, pairs.rejected, pairs.prompts["scene"], strict=True)
    gaps = torch.tensor([utility(a, s, cfg) - utility(b, s, cfg) for a, b, s in rows])
    return (0.5 + 0.5 * gaps.sign()).mean().item()
