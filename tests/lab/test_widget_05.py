"""The sliders of chapter 5: the closed forms by the library's functions, the figures by both."""

import importlib

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS
from minivisrl.optimization import PPOConfig, gae, ppo_loss


@pytest.fixture
def ch05(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch05")
    plt.close("all")


@pytest.mark.parametrize("critic", [0.0, 0.4, 1.0])
@pytest.mark.parametrize("gae_lambda", [0.5, 0.95, 1.0])
def test_advantages_are_those_of_gae(ch05, gae_lambda, critic):
    """Rewards 0 .. 0 r under a constant critic, through the library."""
    for length, reward in ((10, 1.0), (4, 0.0), (1, 0.6)):
        rewards = torch.zeros(1, length, dtype=torch.float64)
        rewards[0, -1] = reward
        values = torch.full_like(rewards, critic)
        ones = torch.ones_like(rewards)
        expected, _ = gae(rewards, values, ones, gamma=1.0, gae_lambda=gae_lambda)
        got = ch05.constant_critic_advantages(length, reward, critic, gae_lambda)
        assert got == pytest.approx(expected[0].tolist())


def test_push_on_paper(ch05):
    """At lambda 1 the critic cancels: .6 - .4. At critic 0 the push turns at (2/3) ** (1/6)."""
    for critic in (0.0, 0.5, 1.0):
        assert ch05.expected_push(1.0, critic) == pytest.approx(0.2)
    turn = (2 / 3) ** (1 / 6)
    assert ch05.expected_push(turn, 0.0) == pytest.approx(0.0, abs=1e-12)
    assert ch05.expected_push(turn - 0.01, 0.0) < 0 < ch05.expected_push(turn + 0.01, 0.0)
    assert ch05.expected_push(0.8, 0.5) > 0


@pytest.mark.parametrize(("gae_lambda", "word"), [(0.95, "up"), (0.8, "down")])
def test_lambda_figure_shows_the_closed_forms(ch05, gae_lambda, word):
    figure = ch05.lambda_figure(gae_lambda, 0.0)
    left, right = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("token of a right answer", "advantage")
    assert right.get_xlabel() == "lambda"
    lines = {line.get_label(): line for line in (*left.lines, *right.lines)}
    assert len(lines["10 tokens"].get_xdata()) == 10 and len(lines["4 tokens"].get_xdata()) == 4
    assert lines["10 tokens"].get_ydata()[0] == pytest.approx(gae_lambda**9)
    for critic in (0.0, 0.5):
        grid, pushes = lines[f"critic {critic:.1f}"].get_data()
        assert list(pushes) == pytest.approx([ch05.expected_push(x, critic) for x in grid])
    assert f"goes {word} (" in figure.get_suptitle()


@pytest.mark.parametrize("clip_eps", [0.05, 0.2, 0.8])
def test_clipped_term_is_that_of_the_library(ch05, clip_eps):
    """Value and slope, against minus `ppo_loss` on one token."""
    cfg, one = PPOConfig(clip_eps=clip_eps), torch.ones(1, 1, dtype=torch.float64)
    for ratio in (0.1, 0.75, 1.0, 1.1, 1.9):
        for advantage in (1.0, -1.0):
            logprobs = (ratio * one).log().requires_grad_()
            loss, _ = ppo_loss(logprobs, 0 * one, advantage * one, one, cfg)
            slope = -torch.autograd.grad(loss, logprobs)[0].item() / ratio  # d / d ratio
            term, found = ch05.clipped_term(ratio, advantage, clip_eps)
            assert term == pytest.approx(-loss.item())
            assert found == pytest.approx(slope)


def test_clip_figure_shows_both_signs(ch05):
    figure = ch05.clip_figure(0.2, 1.4)
    up, down = figure.axes
    assert up.get_title() == "advantage +1, slope 0"
    assert down.get_title() == "advantage -1, slope -1"
    for axis, advantage in ((up, 1.0), (down, -1.0)):
        lines = {line.get_label(): line for line in axis.lines}
        ratios, terms = lines["clip 0.20"].get_data()
        expected = [ch05.clipped_term(r, advantage, 0.2)[0] for r in ratios]
        assert list(terms) == pytest.approx(expected)
        assert max(terms) == pytest.approx(1.2 if advantage > 0 else -0.8)


def test_figures_are_pure_functions(ch05):
    for draw in (lambda: ch05.lambda_figure(0.9, 0.3), lambda: ch05.clip_figure(0.3, 0.5)):
        first, second = draw(), draw()
        assert first is not second
        for one, other in zip(first.axes, second.axes, strict=True):
            for a, b in zip(one.lines, other.lines, strict=True):
                assert a.get_xydata().tolist() == b.get_xydata().tolist()
