"""A word for a comparison over seeds."""

import pytest

from minivisrl.evaluation.verdicts import verdict

SMALL = [0.001, -0.001, 0.002, 0.0, -0.002]
WIDE = [0.2, -0.2, 0.1, -0.15, 0.05]


@pytest.mark.parametrize(
    ("first", "margin", "word"),
    [
        ([0.1, 0.12, 0.11, 0.1, 0.13], 0.02, "more"),
        ([-0.1, -0.12, -0.11, -0.1, -0.13], 0.02, "less"),
        (SMALL, 0.02, "no difference"),
        (SMALL, 0.001, "inconclusive"),  # the margin decides what counts as none
        (SMALL, None, "inconclusive"),  # and without one nothing does
        (WIDE, 0.02, "inconclusive"),
    ],
)
def test_verdicts(first, margin, word):
    assert verdict(first, [0.0] * 5, margin) == verdict(first, 0.0, margin) == word
    moved = [x + 7.0 for x in first]
    assert verdict(moved, 7.0, margin) == verdict(moved, [7.0] * 5, margin) == word


STEADY = [0.40, 0.42, 0.38, 0.41, 0.39]


@pytest.mark.parametrize(
    ("gaps", "margin", "word"),
    [
        ([0.10, 0.12, 0.09, 0.11, 0.08], 0.05, "more"),  # .100 +- .020
        ([-0.10, -0.12, -0.09, -0.11, -0.08], 0.05, "less"),
        ([0.01, -0.01, 0.02, -0.02, 0.00], 0.05, "no difference"),  # 90 %: .000 +- .015
        ([0.01, -0.01, 0.02, -0.02, 0.00], 0.014, "inconclusive"),
        ([0.01, -0.01, 0.02, -0.02, 0.00], None, "inconclusive"),
        ([0.10, -0.08, 0.06, -0.11, 0.02], 0.05, "inconclusive"),  # -.002 +- .11
    ],
)
def test_the_verdict_follows_from_the_intervals(gaps, margin, word):
    """Widths by hand: t = 2.776 (95 %) or 2.132 (90 %) times the standard error of five."""
    first = [x + gap for x, gap in zip(STEADY, gaps, strict=True)]
    assert verdict(first, STEADY, margin) == word
    mirrored = {"more": "less", "less": "more"}
    assert verdict(STEADY, first, margin) == mirrored.get(word, word)


def test_seeds_are_compared_pair_by_pair():
    """Seeds differ by far more than methods do, and always in the same way."""
    first = [0.1, 0.3, 0.5, 0.7, 0.9]
    assert verdict(first, [x - 0.01 - 0.001 * i for i, x in enumerate(first)]) == "more"
