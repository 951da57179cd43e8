"""Real pixels: scikit-learn's scanned handwritten digits, alone or in pairs, with questions.

Splits are disjoint by construction: `heldout` uses the last quarter of the scans (the first three
quarters train), `appearance` shows held-out scans dark on light, and `composition` pairs digits
(a, b) that `train` and `heldout` never put together.
"""

from __future__ import annotations

from functools import cache
from random import Random

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Generator, Tensor

from minivisrl import UserError
from minivisrl.rollout import Prompts
from minivisrl.worlds.questions import Question

SPLITS = ("train", "heldout", "appearance", "composition")
KINDS = ("digit", "digit_sum", "digit_larger")
TRAIN_SHARE = 0.75


@cache
def _scans() -> tuple[np.ndarray, np.ndarray]:
    """(1797, 8, 8) grey values in [0, 1] and (1797,) labels."""
    bunch = load_digits()
    return (bunch.images / 16).astype(np.float32), bunch.target


def _unseen_pair(a: int, b: int) -> bool:
    """The ordered pairs kept for `composition`: a fifth of all, every digit in each place."""
    return (a - 2 * b) % 5 == 0


def render_digits(digits: list[tuple[np.ndarray, ...]], inverted: bool = False) -> Tensor:
    """(B, 3, 32, 32) uint8: one scan in the middle, or two side by side, each at double size."""
    canvas = np.zeros((len(digits), 32, 32), dtype=np.float32)
    for row, scans in enumerate(digits):
        for place, scan in enumerate(scans):
            left = 8 if len(scans) == 1 else 16 * place
            canvas[row, 8:24, left : left + 16] = scan.repeat(2, axis=0).repeat(2, axis=1)
    canvas = 1 - canvas if inverted else canvas
    grey = torch.from_numpy((255 * canvas).round().astype(np.uint8))
    return grey[:, None].expand(-1, 3, -1, -1).contiguous()


def ask_digits(kind: str, labels: tuple[int, ...]) -> Question:
    """A question about the digits `labels`; of two equal digits either is the larger."""
    if kind == "digit":
        return Question(kind, "what digit is this ?", str(labels[0]), f"{labels[0]}")
    steps = f"{labels[0]} {labels[1]}"
    if kind == "digit_sum":
        return Question(kind, "what is the sum of the digits ?", str(sum(labels)), steps)
    return Question(kind, "which digit is larger ?", str(max(labels)), steps)


def digit_prompts(count: int, kinds: tuple[str, ...], split: str, generator: Generator) -> Prompts:
    """`count` questions about digits: columns image, prompt, answer, kind, steps, labels.

    Kinds take turns.  `digit_larger` never shows two equal digits.

    Raises:
        UserError: an unknown kind or split.
    """
    if split not in SPLITS:
        raise UserError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")
    if unknown := set(kinds) - set(KINDS):
        raise UserError(f"digit questions {sorted(unknown)} are unknown; choose from {KINDS}")
    if not kinds or count < 1:
        raise UserError(f"{count} questions of kinds {list(kinds)}: give at least one of each")
    scans, labels = _scans()
    first = int(TRAIN_SHARE * len(scans))
    pool = range(first) if split == "train" else range(first, len(scans))
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    images, truths, questions = [], [], []
    for index in range(count):
        kind = kinds[index % len(kinds)]
        picked = _pick(kind, split, pool, labels, random)
        truth = tuple(int(labels[i]) for i in picked)
        images.append(tuple(scans[i] for i in picked))
        truths.append(truth)
        questions.append(ask_digits(kind, truth))
    columns = {n: [getattr(q, n) for q in questions] for n in ("prompt", "answer", "kind", "steps")}
    pixels = render_digits(images, inverted=split == "appearance")
    return Prompts({"image": pixels, **columns, "labels": truths})


def _pick(kind: str, split: str, pool: range, labels: np.ndarray, random: Random) -> list[int]:
    """Scan indices for one question of a kind in a split."""
    if kind == "digit":
        return [random.choice(pool)]
    while True:
        a, b = random.choice(pool), random.choice(pool)
        unseen = _unseen_pair(int(labels[a]), int(labels[b]))
        equal = kind == "digit_larger" and labels[a] == labels[b]
        if unseen == (split == "composition") and not equal:
            return [a, b]
