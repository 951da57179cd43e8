"""Chapter 16, unified RL: the sliders, the transfer matrix, the checks and their mutants."""

import math
import random
import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minivisrl.evaluation.verdicts import verdict as compared
from minivisrl.lab.exercises import foretold
from minivisrl.lab.plots import COLORS, STYLE

# The sliders: two abilities whose logits are linear in two weights, at an angle


def ascent(share: float, cosine: float, steps: int = 40, rate: float = 0.5) -> Tensor:
    """Exact ascent of share * drawing + (1 - share) * reading from (0.6, 0.6): (steps + 1, 2).

    An ability is the sigmoid of weights @ direction; the two directions have length 1 and this
    cosine, so that is the cosine of the two gradients wherever both abilities are equally good.
    """
    directions = torch.tensor([[1.0, 0.0], [cosine, math.sqrt(1 - cosine**2)]]).double()  # (2, 2)
    logit = math.log(0.6 / 0.4)
    weights = torch.linalg.solve(directions, torch.full((2,), logit).double())  # (2,)
    blend = torch.tensor([share, 1 - share]).double()  # (2,)
    path = [(directions @ weights).sigmoid()]
    for _ in range(steps):
        now = path[-1]
        weights = weights + rate * (blend * now * (1 - now)) @ directions
        path.append((directions @ weights).sigmoid())
    return torch.stack(path)


@plt.rc_context(STYLE)
def blend_figure(share: float, cosine: float) -> Figure:
    """The path of both abilities for a share of drawing in the batch, and what each has gained."""
    figure, (left, right) = plt.subplots(1, 2)
    for role, name, line, blend in (
        ("reference", "half, half", "--", 0.5),
        ("policy", f"share {share:.2f}", "-", share),
    ):
        path = ascent(blend, cosine)
        left.plot(path[:, 0], path[:, 1], line, color=COLORS[role], label=name)
    left.plot(0.6, 0.6, "o", color="black", ms=4)
    left.set(xlabel="drawing", ylabel="reading", xlim=(0, 1), ylim=(0, 1))
    left.legend(loc="lower left")
    gains = (ascent(share, cosine)[-1] - 0.6).tolist()
    right.bar(("drawing", "reading"), gains, color=COLORS["policy"], width=0.5)
    right.axhline(0, color="black", lw=0.8)
    right.set(ylabel="gain after 40 steps", ylim=(-0.65, 0.45))
    right.grid(axis="x", visible=False)
    figure.suptitle(
        f"{share:.0%} drawing, cosine {cosine:+.1f}: "
        f"drawing {gains[0]:+.2f}, reading {gains[1]:+.2f}",
        fontsize=10,
    )
    return figure


@plt.rc_context(STYLE)
def transfer_figure(matrix: Mapping[str, Mapping[str, tuple[float, float, float]]]) -> Figure:
    """Gains with intervals: rows are what was trained on, columns what was measured."""
    columns = list(next(iter(matrix.values())))
    means = [[cells[name][0] for name in columns] for cells in matrix.values()]
    figure, axes = plt.subplots()
    axes.imshow(means, cmap="RdBu", vmin=-0.12, vmax=0.12, aspect="auto")
    for row, cells in enumerate(matrix.values()):
        for column, name in enumerate(columns):
            mean, low, high = cells[name]
            text = f"{mean:+.3f}\n[{low:+.3f}, {high:+.3f}]"
            ink = "white" if abs(mean) > 0.09 else "black"
            axes.text(column, row, text, ha="center", va="center", fontsize=7, color=ink)
    axes.set_xticks(range(len(columns)), columns)
    axes.set_yticks(range(len(matrix)), list(matrix))
    axes.set(xlabel="measured on held-out prompts", ylabel="trained on")
    axes.set_title("Each ability is lifted by its own reward (gain, 95 % interval)")
    axes.grid(visible=False)
    return figure


verdict = partial(compared, margin=0.02)


# 16.1 predict


def _advantages(rewards: Sequence[float]) -> list[float]:
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(reward - mean) / std for reward in rewards]


def _first_order(share: float, cosine: float) -> float:
    """(A2) with gradients of length 1 and a step of 1: what reading gains."""
    return share * cosine + 1 - share


_ROW = [0.5, 0.0, 1.0, 0.5]
STATEMENTS: dict[str, tuple[bool, str]] = {
    "drawing's reward times 10 makes drawing count more": (
        max(
            abs(a - b)
            for a, b in zip(_advantages([10 * r for r in _ROW]), _advantages(_ROW), strict=True)
        )
        > 1e-9,
        "look at what dividing by the spread of the siblings does to a factor",
    ),
    "twice as many drawing prompts in a batch makes drawing count more": (
        2 / 3 > 1 / 2,
        "the loss is a mean over the rows of the batch",
    ),
    "a positive cosine means that drawing alone improves reading": (
        _first_order(1.0, 0.3) > 0,
        "set w = 1 in (A2)",
    ),
    "with cosine 0, a joint step improves reading as much as a reading step": (
        _first_order(0.5, 0.0) >= _first_order(0.0, 0.0),
        "set w = 1/2 and then w = 0 in (A2)",
    ),
    "an imbalance of 0 means that both abilities are good": (
        abs(0.1 - 0.1) > 0,
        "what is the imbalance of a model that can do neither?",
    ),
}


check_predictions = foretold(STATEMENTS)


# 16.2 implement


def check_blend(weighted_advantages: Callable[[Tensor, Tensor], Tensor]) -> None:
    """Weights scale what Eq. (11) says, prompt by prompt."""
    draw = random.Random(1)
    rows = [[draw.random() for _ in range(4)] for _ in range(3)]
    weights = [0.5, 1.0, 2.0]
    got = weighted_advantages(torch.tensor(rows), torch.tensor(weights))
    assert isinstance(got, Tensor) and got.shape == (3, 4), "return a tensor of shape (B, G)"
    plain = [
        [(r - statistics.fmean(row)) / (statistics.stdev(row) + 1e-4) for r in row] for row in rows
    ]
    truth = torch.tensor([[w * a for a in row] for w, row in zip(weights, plain, strict=True)])
    same = torch.allclose(got, torch.tensor(plain), atol=1e-3)
    assert not same, "the weights have no effect: a factor on the reward cancels in the division"
    biased = truth * math.sqrt(4 / 3)
    assert not torch.allclose(got, biased, atol=1e-3), "that standard deviation divides by G"
    assert torch.allclose(got, truth, atol=1e-4), "weight times the group advantage, row by row"


# 16.3 find the bug


def check_joint(joint: Callable[..., list[float]]) -> None:
    """Each completion gets the score of its own kind's verifier, in the order of the batch."""
    kind = ["read", "draw", "draw", "read", "draw", "read"]
    completions = [f"{k} {i}" for i, k in enumerate(kind)]

    def verifier(name: str, base: float) -> Callable[..., list[float]]:
        def score(texts: list[str], rows: Sequence[int]) -> list[float]:
            assert all(t.startswith(name) for t in texts), "a verifier got another kind's outputs"
            assert [int(t.split()[1]) for t in texts] == list(rows), "rows and outputs differ"
            return [base + row for row in rows]

        return score

    got = joint(completions, kind, {"draw": verifier("draw", 10.0), "read": verifier("read", 0.0)})
    assert len(got) == 6, "one score per completion"
    truth = [i + 10.0 * (k == "draw") for i, k in enumerate(kind)]
    assert sorted(got) == sorted(truth), "some completion was not judged by its own verifier"
    assert list(got) == truth, "right scores, wrong rows: put each back where it belongs"


# 16.4 extend


def check_agreement(consensus: Callable[[list[str]], list[float]]) -> None:
    """Mean agreement with the siblings, oneself excluded."""
    one, two = "red circle top left", "blue square bottom right"
    got = consensus([one, one, two, f"{one}, {two}"])
    assert len(got) == 4, "one score per description"
    # against the other three, by hand: equal 1, different 0, half of two 1/2, two for one 1/2
    truth = [(1 + 0 + 0.5) / 3, (1 + 0 + 0.5) / 3, (0 + 0 + 0.5) / 3, (0.5 + 0.5 + 0.5) / 3]
    with_self = [(t * 3 + 1) / 4 for t in truth]
    own = all(math.isclose(a, b, abs_tol=1e-6) for a, b in zip(got, with_self, strict=True))
    assert not own, "a description always agrees with itself: leave it out"
    for score, right in zip(got, truth, strict=True):
        assert math.isclose(score, right, abs_tol=1e-6), "the mean over the other descriptions"


MUTANTS = {
    "16.1": [
        f"prediction = {dict(zip(STATEMENTS, answers, strict=True))!r}"
        for answers in (
            (True, True, True, False, False),
            (False, False, True, False, False),
            (False, True, False, False, False),
            (False, True, True, True, False),
            (False, True, True, False, True),
        )
    ],
    "16.2": [
        """
        def weighted_advantages(rewards, weights):
            return group_advantages(weights[:, None] * rewards)
        """,
        """
        def weighted_advantages(rewards, weights):
            centred = rewards - rewards.mean(dim=1, keepdim=True)
            biased = rewards.std(dim=1, keepdim=True, correction=0)
            return weights[:, None] * centred / (biased + 1e-4)
        """,
        """
        def weighted_advantages(rewards, weights):
            return weights[:, None] * (rewards - rewards.mean(dim=1, keepdim=True))
        """,
    ],
    "16.3": [
        "joint = broken",
        """
        def joint(completions, kind, verifiers):
            return next(iter(verifiers.values()))(completions, range(len(completions)))
        """,
        """
        def joint(completions, kind, verifiers):
            scores = [0.0] * len(completions)
            for name in verifiers:
                rows = [i for i, each in enumerate(kind) if each == name]
                told = verifiers[name]([completions[i] for i in rows], rows)
                for row, score in zip(rows, reversed(told), strict=True):
                    scores[row] = score
            return scores
        """,
    ],
    "16.4": [
        """
        def consensus(texts):
            scores = []
            for text in texts:
                told = agreement([text] * len(texts), texts)
                scores.append(sum(told) / len(told))
            return scores
        """,
        """
        def consensus(texts):
            return agreement(texts, texts[1:] + texts[:1])
        """,
    ],
}
