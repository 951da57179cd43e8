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


def test_seeds_are_paired():
    """Both vary much, and the first is ahead by the same little at every seed."""
    first = [1.0, 5.0, -3.0, 2.0]
    assert verdict(first, [x - 0.1 - 0.001 * i for i, x in enumerate(first)]) == "more"
