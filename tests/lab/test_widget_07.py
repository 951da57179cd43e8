"""The sliders of chapter 7: exact ascent by autograd, the figure by the ascent."""

import importlib

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS


@pytest.fixture
def ch07(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch07")
    plt.close("all")


@pytest.mark.parametrize("gain", [-0.4, 0.0, 0.35, 2.0])
def test_habit_path_is_the_gradient_of_the_expected_reward(ch07, gain):
    """Each step is what autograd finds for pi * (r + gain) + (1 - pi) * r, whatever r."""
    path = ch07.habit_path(gain, 8, rate=1.5, start=0.3)
    logit = torch.tensor(0.3, dtype=torch.float64).logit().requires_grad_()
    for chance in path:
        assert torch.allclose(chance, logit.sigmoid(), atol=1e-12)
        value = logit.sigmoid() * (0.7 + gain) + (1 - logit.sigmoid()) * 0.7
        (gradient,) = torch.autograd.grad(value, logit)
        logit = (logit + 1.5 * gradient).detach().requires_grad_()


def test_habit_path_goes_where_the_gain_points(ch07):
    assert ch07.habit_path(0.0, 20).tolist() == pytest.approx([ch07.WRITES] * 21)
    assert (ch07.habit_path(0.2, 20).diff() > 0).all()
    assert (ch07.habit_path(-0.2, 20).diff() < 0).all()
    assert ch07.habit_path(2.0, 200)[-1] > 0.99 and ch07.habit_path(-2.0, 200)[-1] < 0.01


def curve(axes, label):
    return next(line for line in axes.lines if line.get_label() == label).get_ydata()


@pytest.mark.parametrize(("bonus", "right"), [(0.0, 0.75), (0.5, 0.75), (1.0, 0.1), (2.0, 0.0)])
def test_figure_shows_both_habits_and_both_paths(ch07, bonus, right):
    figure = ch07.bonus_figure(bonus, right, steps=30)
    left, path = figure.axes
    assert left.get_ylabel() == "expected reward"
    assert (path.get_xlabel(), path.get_ylabel()) == ("step of exact gradient ascent", "accuracy")
    assert [bar.get_height() for bar in left.patches] == pytest.approx([0.4, right, bonus])
    assert left.patches[2].get_y() == pytest.approx(right)  # the bonus stands on the accuracy
    for label, gain in (("without bonus", right - 0.4), ("with bonus", right - 0.4 + bonus)):
        chances = ch07.habit_path(gain, 30)
        expected = 0.4 * (1 - chances) + right * chances
        assert list(curve(path, label)) == pytest.approx(expected.tolist())
    ends = [curve(path, label)[-1] for label in ("with bonus", "without bonus")]
    assert figure.get_suptitle().endswith(f"{ends[0]:.0%} right, without bonus {ends[1]:.0%}")


def test_a_bonus_helps_a_good_habit_and_may_choose_a_bad_one(ch07):
    def ends(bonus, right):
        axes = ch07.bonus_figure(bonus, right).axes[1]
        return curve(axes, "with bonus")[-1], curve(axes, "without bonus")[-1]

    with_bonus, without = ends(0.5, 0.75)
    assert with_bonus > without
    with_bonus, without = ends(0.5, 0.2)  # more than the difference of 0.2: it turns round
    assert with_bonus < without
    assert with_bonus == pytest.approx(0.2, abs=0.02)


def test_figure_is_a_pure_function(ch07):
    first, second = (ch07.bonus_figure(0.3, 0.6) for _ in range(2))
    assert first is not second
    for one, other in zip(first.axes, second.axes, strict=True):
        for a, b in zip(one.lines, other.lines, strict=True):
            assert a.get_xydata().tolist() == b.get_xydata().tolist()
