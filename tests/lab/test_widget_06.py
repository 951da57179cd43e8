"""The slider of chapter 6: closed forms by brute force, the figure by the closed forms."""

import importlib
from itertools import product
from math import sqrt

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS
from minivisrl.optimization import group_advantages


@pytest.fixture
def ch06(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch06")
    plt.close("all")


def test_dead_share_by_enumeration(ch06):
    """All 0/1 groups, each with its probability; and numbers that were worked out elsewhere."""
    for p, size in product((0.0, 0.05, 0.3, 1.0), (1, 2, 5)):
        groups = list(product((0, 1), repeat=size))
        dead = [p ** sum(g) * (1 - p) ** (size - sum(g)) for g in groups if len(set(g)) == 1]
        assert ch06.dead_share(p, size) == pytest.approx(sum(dead))
    published = {(0.05, 4): 0.815, (0.05, 8): 0.663, (0.05, 16): 0.440, (0.2, 8): 0.168}
    for (p, size), share in published.items():
        assert ch06.dead_share(p, size) == pytest.approx(share, abs=5e-4)


@pytest.mark.parametrize("size", [2, 4, 8, 16])
def test_two_advantages_are_those_of_the_library(ch06, size):
    for successes in range(1, size):
        rewards = (torch.arange(size) < successes).double()[None]
        got = group_advantages(rewards, std_eps=0.0)[0].tolist()
        assert ch06.two_advantages(successes, size) == pytest.approx((got[0], got[-1]))
    assert ch06.two_advantages(1, size)[0] == pytest.approx((size - 1) / sqrt(size))


@pytest.mark.parametrize("size", [2, 4, 32])
def test_figure_shows_the_closed_forms(ch06, size):
    figure = ch06.group_size_figure(size)
    left, right = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("success rate p", "share of dead groups")
    assert (right.get_xlabel(), right.get_ylabel()) == (f"successes among {size}", "advantage")
    lines = {line.get_label(): line for line in (*left.lines, *right.lines)}
    chances, shares = lines[f"G = {size}"].get_data()
    expected = [ch06.dead_share(p, size) for p in chances]
    assert list(shares) == pytest.approx(expected) and shares[0] == shares[-1] == 1
    for label, sign in (("a success", 1), ("a failure", -1)):
        counts, advantages = lines[label].get_data()
        assert list(counts) == list(range(1, size))
        assert all(sign * a > 0 for a in advantages)
    assert lines["a success"].get_ydata()[0] == pytest.approx((size - 1) / sqrt(size))
    assert f"G = {size}:" in figure.get_suptitle()


def test_figure_is_a_pure_function(ch06):
    first, second = (ch06.group_size_figure(6) for _ in range(2))
    assert first is not second
    for one, other in zip(first.axes, second.axes, strict=True):
        for a, b in zip(one.lines, other.lines, strict=True):
            assert a.get_xydata().tolist() == b.get_xydata().tolist()
