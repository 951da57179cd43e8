"""What a comparison over seeds allows one to say, in a word.

Survey: section 4.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivisrl.evaluation.statistics import equivalent, paired_difference


def verdict(
    first: Sequence[float], second: Sequence[float] | float, margin: float | None = None
) -> str:
    """First against second, seed by seed; a number as second stands for itself at every seed.

    Returns:
        `more` or `less` where the 95 % interval of the difference excludes 0; else `no difference`
        where the difference is surely within the margin (two one-sided tests at 5 %), else
        `inconclusive`.
    """
    others = [float(second)] * len(first) if isinstance(second, int | float) else second
    gap = paired_difference(first, others)
    if gap.low > 0 or gap.high < 0:
        return "more" if gap.low > 0 else "less"
    same = margin is not None and equivalent(first, others, margin=margin)
    return "no difference" if same else "inconclusive"
