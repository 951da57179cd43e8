"""Intervals against tables, other tests and simulation; the rule for learning, case by case."""

import math
import random

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from minivisrl.evaluation.statistics import (
    bootstrap_interval,
    equivalent,
    is_learning,
    learned,
    mean_interval,
    paired_difference,
)

FIVE = [1.0, 2.0, 3.0, 4.0, 5.0]  # mean 3, s = sqrt(2.5)
numbers = st.lists(st.floats(-100, 100).map(lambda x: round(x, 3)), min_size=2, max_size=8)


@pytest.mark.parametrize(
    ("confidence", "quantile"), [(0.90, 2.132), (0.95, 2.776), (0.99, 4.604)]
)  # t table, 4 degrees of freedom
def test_mean_interval_by_table(confidence: float, quantile: float) -> None:
    half_width = quantile * math.sqrt(2.5 / 5)
    interval = mean_interval(FIVE, confidence)
    assert interval.mean == 3.0
    assert interval.low == pytest.approx(3 - half_width, abs=1e-3)
    assert interval.high == pytest.approx(3 + half_width, abs=1e-3)


def test_mean_interval_of_two_values_in_closed_form() -> None:
    """One degree of freedom is Cauchy's: quantile tan(pi (p - 1/2)); s / sqrt(2) is 1/2 here."""
    half_width = math.tan(math.pi * 0.475) * 0.5
    assert mean_interval([0.0, 1.0]) == pytest.approx((0.5, 0.5 - half_width, 0.5 + half_width))


def test_mean_interval_covers_the_truth_as_often_as_it_says() -> None:
    """4,000 samples of five normal values; +-0.012 is more than 3 standard errors."""
    draw = random.Random(0)
    samples = [[draw.gauss(2, 3) for _ in range(5)] for _ in range(4000)]
    covered = [low <= 2 <= high for _, low, high in map(mean_interval, samples)]
    assert sum(covered) / 4000 == pytest.approx(0.95, abs=0.012)


def test_equal_values_have_a_width_of_zero() -> None:
    assert mean_interval([0.25] * 5) == (0.25, 0.25, 0.25)


@pytest.mark.parametrize("values", [[], [1.0], [1.0, math.nan], [1.0, math.inf], [[1.0, 2.0]] * 2])
def test_values_without_an_interval_are_refused(values: list) -> None:
    with pytest.raises(ValueError, match="at least 2 finite numbers"):
        mean_interval(values)


def test_bootstrap_agrees_with_the_normal_limit(generator: torch.Generator) -> None:
    """300 ones among 400: the standard error of a share is sqrt(p (1 - p) / n)."""
    low_end = 0.75 - 1.96 * math.sqrt(0.75 * 0.25 / 400)
    interval = bootstrap_interval([1.0] * 300 + [0.0] * 100, generator)
    assert interval.mean == 0.75
    assert interval.low == pytest.approx(low_end, abs=0.005)
    assert interval.high == pytest.approx(1.5 - low_end, abs=0.005)


def test_bootstrap_follows_its_generator() -> None:
    values = torch.linspace(0, 1, 50).exp().tolist()
    first, again, other = (
        bootstrap_interval(values, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )
    assert first == again != other


@pytest.mark.parametrize(
    ("gains", "control_gains", "verdict"),
    [
        ([0.20, 0.22, 0.18, 0.21, 0.19], [0.01, -0.02], True),
        ([0.20, 0.22, 0.18, 0.21, 0.19], [-0.40, 0.00], True),  # a control may lose
        ([0.20, 0.22, 0.18, 0.21, 0.19], [0.00, 0.06], False),  # one control gains over a quarter
        ([0.50, 0.50, 0.50, 0.50, 0.50], [0.125], True),  # exactly a quarter is allowed
        ([0.50, 0.50, 0.50, 0.50, 0.50], [0.126], False),
        ([0.90, -0.10, 0.05, 0.00, 0.10], [0.00], False),  # the interval contains zero
        ([-0.20, -0.22, -0.18, -0.21, -0.19], [-0.90], False),
        ([0.00, 0.00, 0.00, 0.00, 0.00], [0.00], False),
    ],
)
def test_learned(gains: list[float], control_gains: list[float], verdict: bool) -> None:
    assert learned(gains, control_gains) is verdict
    assert is_learning(mean_interval(gains), control_gains) is verdict


def test_learned_needs_a_control() -> None:
    with pytest.raises(ValueError, match="at least 1 finite"):
        learned([0.2, 0.3], [])


def test_paired_difference_by_hand() -> None:
    """Differences 1, 2, 3: mean 2, s = 1, t(2) = 4.303.  Unpaired, the interval would contain 0."""
    interval = paired_difference([11.0, 22.0, 33.0], [10.0, 20.0, 30.0])
    assert interval == pytest.approx((2, 2 - 4.303 / 3**0.5, 2 + 4.303 / 3**0.5), abs=1e-3)
    with pytest.raises(ValueError, match="equal lengths"):
        paired_difference([1.0, 2.0], [1.0, 2.0, 3.0])


@given(numbers, st.floats(0.01, 50))
def test_equivalent_is_two_one_sided_tests(values: list[float], margin: float) -> None:
    """The same verdict from the p values of two separate one-sided tests."""
    if max(values) - min(values) < 1e-2:  # p values of a constant are not defined
        return
    above = stats.ttest_1samp(values, -margin, alternative="greater").pvalue
    below = stats.ttest_1samp(values, margin, alternative="less").pvalue
    if abs(max(above, below) - 0.05) > 1e-9:
        verdict = equivalent(values, [0.0] * len(values), margin=margin)
        assert verdict == (max(above, below) < 0.05)


def test_equivalent_is_not_the_same_as_not_different() -> None:
    """Two noisy seeds differ by no significant amount, and still are not shown to be equal."""
    assert not equivalent([0.1, 0.9], [0.5, 0.5], margin=0.05)
    assert equivalent([0.50, 0.51, 0.49], [0.50, 0.50, 0.50], margin=0.05)
    assert not equivalent([0.60, 0.61, 0.59], [0.50, 0.50, 0.50], margin=0.05)
    with pytest.raises(ValueError, match="margin"):
        equivalent(FIVE, FIVE, margin=0)
