"""Chapter 17, task-specific RL: the figure behind the sliders, the checks and their mutants."""

import math
from collections.abc import Callable
from functools import partial

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from minivisrl.evaluation.verdicts import verdict as compared
from minivisrl.lab.exercises import foretold
from minivisrl.lab.plots import COLORS, STYLE
from minivisrl.rollout import Prompts

# The sliders: one push on a code at a drawing position, seen from both kinds of positions

NAMES = ("code 1", "code 2", "word 1", "word 2")
DRAWING = (0.4, 0.4, 0.1, 0.1)  # probabilities before the push, at a drawing position
READING = (0.1, 0.1, 0.4, 0.4)  # and at a reading position


def pushed(push: float, cosine: float) -> tuple[Tensor, Tensor]:
    """Probabilities after one step on code 1 at a drawing position: there, and where one reads.

    The logits are W @ h with features h of length 1. The step is `push` times the gradient of
    log pi(code 1), so W moves by push * (1 - pi) h_D^T, and a reading position, whose feature has
    this cosine with h_D, sees the same change of logits times the cosine.
    """
    drawing, reading = (torch.tensor(p, dtype=torch.float64) for p in (DRAWING, READING))
    change = push * (torch.eye(4, dtype=torch.float64)[0] - drawing)  # (4,)
    return (drawing.log() + change).softmax(0), (reading.log() + cosine * change).softmax(0)


@plt.rc_context(STYLE)
def leak_figure(push: float, cosine: float) -> Figure:
    """Before and after at both kinds of positions."""
    figure, axes = plt.subplots(1, 2, sharey=True)
    places = ("drawing position", "reading position")
    for axis, place, before, after in zip(
        axes, places, (DRAWING, READING), pushed(push, cosine), strict=True
    ):
        x = torch.arange(4)
        axis.bar(x - 0.2, before, 0.4, color=COLORS["reference"], label="before")
        axis.bar(x + 0.2, after, 0.4, color=COLORS["policy"], label="after")
        axis.set_xticks(x, NAMES)
        axis.set(title=place, ylim=(0, 1.15))
        axis.grid(axis="x", visible=False)
    axes[0].set_ylabel("probability")
    axes[0].legend(ncols=2, loc="upper right")
    words = pushed(push, cosine)[1][2:].sum().item()
    figure.suptitle(
        f"Push {push:.1f} on code 1, cosine {cosine:+.1f}: "
        f"words where one reads 0.80 to {words:.2f}",
        fontsize=10,
    )
    return figure


verdict = partial(compared, second=0.0, margin=0.03)  # of gains


# 17.1 predict


def _words_fall() -> bool:
    there, _ = pushed(1.0, 1.0)
    return bool((there[2:] < torch.tensor(DRAWING[2:])).all())


def _orthogonal_is_blind() -> bool:
    return torch.allclose(pushed(3.0, 0.0)[1], torch.tensor(READING, dtype=torch.float64))


def _price(trained: float, other: float) -> float:
    return -other / trained


STATEMENTS: dict[str, tuple[bool, str]] = {
    "a push on a code lowers the probability of every word at that position": (
        _words_fall(),
        "the gradient of a log-softmax is the one-hot vector minus the probabilities",
    ),
    "if the features of drawing and reading are orthogonal, that push changes no answer": (
        _orthogonal_is_blind(),
        "set the cosine slider to 0",
    ),
    "a negative price means that the other ability got better": (
        _price(0.1, 0.02) < 0,
        "put a gain of both abilities into (A2)",
    ),
    "a high reward for drawing shows that the captions are still drawn": (
        False,
        "does redness look at the caption?",
    ),
    "the DPO loss of a policy that equals its reference depends on the pairs": (
        False,
        "all log-ratios are 0: what is minus the log of sigmoid(0)?",
    ),
}


check_statements = foretold(STATEMENTS)


# 17.2 implement


def check_price(price_of: Callable[[list[float], list[float]], tuple[float, float]]) -> None:
    """Forgetting is a mean, the price a ratio of means."""
    forgotten, price = price_of([0.1, 0.3], [-0.02, -0.06])
    assert not math.isclose(forgotten, -0.04), "forgetting is a loss: a fall counts as positive"
    assert math.isclose(forgotten, 0.04), "forgetting: minus the mean gain of the other ability"
    assert math.isclose(price, 0.2), "the price is forgetting per point gained"
    forgotten, price = price_of([0.01, 0.19], [-0.01, -0.01])
    assert not math.isclose(price, (1 + 1 / 19) / 2), "that is the mean of ratios"
    assert math.isclose(price, 0.1), "divide the means, not the seeds"
    assert price_of([0.0, 0.0], [-0.1, -0.1])[1] == math.inf, "nothing gained: the price is inf"
    assert price_of([-0.1, 0.0], [-0.1, -0.1])[1] == math.inf, "a loss buys nothing: inf"


# 17.3 find the bug


def check_pairs(collect_pairs: Callable[..., tuple[list, list]]) -> None:
    """Best and worst of every group, the last one included."""
    outputs = [f"{group}{sibling}" for group in "abc" for sibling in range(4)]
    scores = [0.1, 0.9, 0.5, 0.3, 0.8, 0.2, 0.7, 0.6, 0.0, 0.4, 0.2, 1.0]
    chosen, rejected = collect_pairs(outputs, scores, 4)
    assert len(chosen) == len(rejected), "as many chosen as rejected"
    assert len(chosen) == 3, "three captions make three pairs: which group is missing?"
    first = all(output.startswith("a") for output in chosen + rejected)
    assert not first, "all pairs show the first caption: a sibling's index is not a row's"
    assert list(chosen) == ["a1", "b0", "c3"], "the best of each group"
    assert list(rejected) == ["a0", "b1", "c0"], "the worst of each group"


# 17.4 extend


def check_rehearsal(rehearsal: Callable) -> None:
    """Shares, order, and no row twice."""
    task = Prompts({"prompt": [f"t{i}" for i in range(10)]})
    others = Prompts({"prompt": [f"o{i}" for i in range(10)]})
    for share, kept in ((0.25, 2), (0.0, 0), (0.5, 4), (1.0, 8)):
        draw = rehearsal(task, others, 8, share)
        dice = Generator().manual_seed(0)
        batches = [list(draw(dice)["prompt"]) for _ in range(6)]
        for batch in batches:
            assert len(batch) == 8, "a batch has `size` rows, rehearsal included"
            from_others = [text[0] == "o" for text in batch]
            assert sum(from_others) == kept, f"a share of {share} of 8 rows is {kept}"
            assert from_others == sorted(from_others), "task first, then what is rehearsed"
            assert len(set(batch)) == 8, "a row came twice: sample without replacement"
        assert len({tuple(batch) for batch in batches}) > 1, "every batch is the same: draw anew"


MUTANTS = {
    "17.1": [
        f"prediction = {dict(zip(STATEMENTS, answers, strict=True))!r}"
        for answers in (
            (False, True, True, False, False),
            (True, False, True, False, False),
            (True, True, False, False, False),
            (True, True, True, True, False),
            (True, True, True, False, True),
        )
    ],
    "17.2": [
        """
        def price_of(trained, other):
            ratios = [-b / a if a else float("inf") for a, b in zip(trained, other, strict=True)]
            return -sum(other) / len(other), sum(ratios) / len(ratios)
        """,
        """
        def price_of(trained, other):
            lost = sum(other) / len(other)
            return lost, -lost / (sum(trained) / len(trained))
        """,
        """
        def price_of(trained, other):
            forgotten = -sum(other) / len(other)
            return forgotten, forgotten / abs(sum(trained) / len(trained) + 1e-12)
        """,
    ],
    "17.3": [
        "collect_pairs = careless",
        """
        def collect_pairs(outputs, scores, size):
            chosen, rejected = [], []
            for start in range(0, len(outputs), size):
                group = scores[start : start + size]
                chosen.append(outputs[group.index(max(group))])
                rejected.append(outputs[group.index(min(group))])
            return chosen, rejected
        """,
        """
        def collect_pairs(outputs, scores, size):
            groups = [range(i, i + size) for i in range(0, len(outputs), size)]
            best = [outputs[max(g, key=lambda i: scores[i])] for g in groups]
            return best, best
        """,
    ],
    "17.4": [
        """
        def rehearsal(task, others, size, rehearse):
            kept = round(size * rehearse)

            def draw(generator):
                parts = [(task, size), (others, kept)]
                return Prompts.cat([p.sample(count, generator) for p, count in parts if count])

            return draw
        """,
        """
        def rehearsal(task, others, size, rehearse):
            kept = round(size * rehearse)
            batch = Prompts.cat(
                [p.rows(range(n)) for p, n in ((task, size - kept), (others, kept)) if n]
            )
            return lambda generator: batch
        """,
        """
        def rehearsal(task, others, size, rehearse):
            pool = Prompts.cat([task, others])
            return lambda generator: pool.sample(size, generator)
        """,
    ],
}
