r"""The cycle as a reward: draw a caption, describe the drawing, compare the two texts.

Survey: sections 2.2.3 and 3.3.1, Eq. (7).
Symbols: p -> a caption, y -> a drawing, v(p, y) -> `CycleReward`.
Departs: Eq. (7) asks a program that knows the truth. Here a model reads the drawing and a program
    compares what it says with the caption: no label is needed, and the reader can be fooled.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minivisrl.rewards.pictures import agreement
from minivisrl.rollout import Prompts
from minivisrl.unified.policy import UnifiedPolicy
from minivisrl.unified.pretraining import DESCRIBE


def to_describe(pictures: Sequence[Tensor]) -> Prompts:
    """Prompts that show each picture and ask for a description."""
    return Prompts({"prompt": [DESCRIBE] * len(pictures), "image": list(pictures)})


class CycleReward:
    """Share of a caption that `reader` finds in a drawing of it: a reward without labels.

    Args:
        reader: the model that describes, greedily. A frozen copy stays what it is; the policy that
            is being trained moves along with its own reward.
    """

    __name__ = "cycle"

    def __init__(self, reader: UnifiedPolicy) -> None:
        self.reader = reader

    @torch.no_grad()
    def __call__(
        self, completions: Sequence[Tensor], prompts: Sequence[str], **_: Any
    ) -> list[float]:
        """One score per drawing, a fraction of 1; `prompts` are the captions."""
        return agreement(self.reader.predict(to_describe(completions)), prompts)


def gamed(cycle: Sequence[float], truth: Sequence[float]) -> float:
    """Of the drawings that the cycle holds to be perfect, the share that is not; nan if none is."""
    fooled = [real < 1 for score, real in zip(cycle, truth, strict=True) if score == 1]
    return sum(fooled) / len(fooled) if fooled else float("nan")
