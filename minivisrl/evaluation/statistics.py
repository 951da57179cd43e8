r"""How sure a result is: intervals over seeds, and the house rule for "it learned".

Survey: section 4.
Departs: the survey compares single numbers; here every comparison is over seeds, and a gain counts
    only beside a control that was trained in the same way on rewards without meaning.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from scipy import stats
from torch import Generator


class Interval(NamedTuple):
    """An estimate and the ends of its confidence interval."""

    mean: float
    low: float
    high: float


def _sample(values: Sequence[float], least: int = 2) -> np.ndarray:
    """One finite value per seed, as float64."""
    sample = np.asarray(values, dtype=np.float64)
    if sample.ndim != 1 or len(sample) < least or not np.isfinite(sample).all():
        raise ValueError(f"expected at least {least} finite numbers, got {sample.tolist()}")
    return sample


def mean_interval(values: Sequence[float], confidence: float = 0.95) -> Interval:
    r"""Student's t interval of the mean of n independent values, one per seed.

    .. math:: \bar x \pm t_{n-1} \, s / \sqrt n

    with s the unbiased standard deviation.
    """
    sample = _sample(values)
    half_width = stats.t.ppf((1 + confidence) / 2, len(sample) - 1) * stats.sem(sample)
    mean = float(sample.mean())
    return Interval(mean, mean - float(half_width), mean + float(half_width))


def bootstrap_interval(
    values: Sequence[float],
    generator: Generator,
    *,
    confidence: float = 0.95,
    resamples: int = 2000,
) -> Interval:
    """Percentile bootstrap interval of the mean: for many values of any shape, such as 0/1 scores.

    Too narrow for a handful of seeds; there `mean_interval` is the right one.
    """
    sample = _sample(values)
    seed = int(torch.randint(2**62, (), generator=generator))
    ends = stats.bootstrap(
        (sample,),
        np.mean,
        confidence_level=confidence,
        n_resamples=resamples,
        method="percentile",
        rng=np.random.default_rng(seed),
    ).confidence_interval
    return Interval(float(sample.mean()), float(ends.low), float(ends.high))


def is_learning(gain: Interval, control_gains: Sequence[float]) -> bool:
    """The house rule, on the 95 % interval of the gain over seeds and the gain of every control.

    True when the interval is above zero and no control run gains more than a quarter of the mean
    gain.  A control may lose.
    """
    largest = float(_sample(control_gains, least=1).max())
    return gain.low > 0 and largest <= gain.mean / 4


def learned(gains: Sequence[float], control_gains: Sequence[float]) -> bool:
    """Whether a result counts as learning: `is_learning` on one gain per seed."""
    return is_learning(mean_interval(gains), control_gains)


def paired_difference(
    first: Sequence[float], second: Sequence[float], confidence: float = 0.95
) -> Interval:
    """t interval of first - second, where entry i of both comes from the same seed."""
    one, other = _sample(first), _sample(second)
    if len(one) != len(other):
        raise ValueError(f"pairs need equal lengths, got {len(one)} and {len(other)}")
    return mean_interval(one - other, confidence)


def equivalent(
    first: Sequence[float], second: Sequence[float], *, margin: float, level: float = 0.05
) -> bool:
    """Two one-sided t tests (TOST) on pairs: is |mean of first - second| surely below `margin`?

    Both tests reject at `level` exactly when the 1 - 2 * level interval of the difference lies
    strictly inside +-margin.  False says "not shown to be equal", not "different".
    """
    if margin <= 0:
        raise ValueError(f"margin must be positive, got {margin}")
    interval = paired_difference(first, second, confidence=1 - 2 * level)
    return -margin < interval.low and interval.high < margin
