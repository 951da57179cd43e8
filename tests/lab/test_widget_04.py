"""The sliders of chapter 4: exact ascent by autograd and by identities, the figure by both."""

import importlib

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS


@pytest.fixture
def ch04(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch04")
    plt.close("all")


def test_acceptance_by_hand(ch04):
    assert ch04.acceptance(0.0, 0.0, 3) == [1.0, 0.0, 0.0]
    assert ch04.acceptance(0.1, 1.0, 3) == pytest.approx([0.9, 0.9, 0.1])
    assert ch04.acceptance(0.25, 0.5, 4) == pytest.approx([0.75, 0.5, 0.25, 0.25])
    assert ch04.acceptance(1.0, 0.2, 3) == pytest.approx([0.0, 0.8, 1.0])  # every verdict turned
    assert len(set(ch04.acceptance(0.5, 0.7))) == 1  # a coin says nothing


def test_ascent_climbs_the_expected_reward(ch04):
    """Each step is the gradient that autograd finds for sum_a pi_a r_a."""
    rewards, start, rate = [0.9, 0.6, 0.2, 0.0], [0.1, 0.4, 0.3, 0.2], 0.7
    path = ch04.ascent(rewards, start, 6, rate)
    logits = torch.tensor(start, dtype=torch.float64).log().requires_grad_()
    for chances in path:
        assert torch.allclose(chances, logits.softmax(0), atol=1e-12)
        value = logits.softmax(0) @ torch.tensor(rewards, dtype=torch.float64)
        (gradient,) = torch.autograd.grad(value, logits)
        logits = (logits + rate * gradient).detach().requires_grad_()
    values = path @ torch.tensor(rewards, dtype=torch.float64)
    assert (values.diff() > 0).all()


@pytest.mark.parametrize("flips", [0.1, 0.25, 0.45, 0.8])
def test_random_flips_only_change_the_speed(ch04, flips):
    """Eq. (A1): the same path as without flips, at 1 - 2 * flips times the rate."""
    noisy = ch04.ascent(ch04.acceptance(flips, 0.4, 3), ch04.START, 40, 1.0)
    clean = ch04.ascent(ch04.acceptance(0.0, 0.4, 3), ch04.START, 40, 1 - 2 * flips)
    assert torch.allclose(noisy, clean, atol=1e-12)


def test_a_loophole_keeps_its_lead_and_a_smaller_one_does_not(ch04):
    full = ch04.ascent(ch04.acceptance(0.0, 1.0, 3), ch04.START, 500, 1.0)
    part = ch04.ascent(ch04.acceptance(0.0, 0.8, 3), ch04.START, 500, 1.0)
    ratio = full[:, 1] / full[:, 0]
    assert (ratio.diff() >= 0).all() and full[-1, 1] > 0.8  # accepted alike: the leader gains
    assert part[-1, 0] > 0.9


@pytest.mark.parametrize(("flips", "loophole"), [(0.0, 0.0), (0.1, 1.0), (0.5, 0.3), (1.0, 0.0)])
def test_figure_shows_them(ch04, flips, loophole):
    figure = ch04.verifier_figure(flips, loophole, steps=30)
    left, right = figure.axes
    assert left.get_ylabel() == "chance of being accepted"
    assert (right.get_xlabel(), right.get_ylabel()) == (
        "step of exact gradient ascent",
        "chance of the answer",
    )
    accepted = ch04.acceptance(flips, loophole, 3)
    assert [bar.get_height() for bar in left.patches] == pytest.approx(accepted)
    path = ch04.ascent(accepted, ch04.START, 30, 1.0)
    lines = {line.get_label(): line for line in right.lines}
    for index, name in enumerate(ch04.ANSWERS):
        assert lines[name].get_ydata().tolist() == pytest.approx(path[:, index].tolist())
    if flips == 0.5:
        assert lines["right"].get_ydata().tolist() == pytest.approx([0.2] * 31)
    assert f"{path[-1, 0]:.0%} are right" in figure.get_suptitle()


def test_figure_is_a_pure_function(ch04):
    first, second = (ch04.verifier_figure(0.2, 0.6) for _ in range(2))
    assert first is not second
    for one, other in zip(first.axes, second.axes, strict=True):
        for a, b in zip(one.lines, other.lines, strict=True):
            assert a.get_xydata().tolist() == b.get_xydata().tolist()
