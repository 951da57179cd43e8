"""The sliders of chapter 12: the best denoiser by integration, samplers by where they end."""

import importlib
import math

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS


@pytest.fixture
def ch12(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch12")
    plt.close("all")


def test_gaussian_end_by_known_numbers(ch12):
    """Std at 10 steps: .444 (a = .3), .480 (a = .7), .431 (ODE), from the project's notes."""
    for level, std in ((0.0, 0.431), (0.3, 0.444), (0.7, 0.480)):
        mean, found = ch12.gaussian_end(10, level)
        assert mean == pytest.approx(1.5, abs=1e-6)
        assert found == pytest.approx(std, abs=1.5e-3)
    errors = [abs(ch12.gaussian_end(steps, 0.7, start=0.9)[1] - 0.5) for steps in (40, 160)]
    assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)  # of order dt


@pytest.mark.parametrize(("signal", "spread"), [(0.2, 0.8), (0.5, 0.5), (0.9, 0.1), (0.6, 0.8)])
def test_best_guess_by_integration(ch12, signal, spread):
    """E[data | x] as a sum over a fine grid of data, each with its prior and likelihood."""
    data = torch.linspace(-3, 3, 20_001, dtype=torch.float64)
    prior = sum((-((data - bump) ** 2) / (2 * ch12.WIDTH**2)).exp() for bump in ch12.BUMPS)
    x = torch.tensor([-1.7, -0.3, 0.0, 0.4, 1.1], dtype=torch.float64)
    likelihood = (-((x[:, None] - signal * data) ** 2) / (2 * spread**2)).exp()  # (5, M)
    weights = prior * likelihood
    expected = (weights * data).sum(dim=1) / weights.sum(dim=1)
    torch.testing.assert_close(ch12.best_guess(x, signal, spread), expected, atol=1e-6, rtol=1e-6)


def test_distance_by_hand(ch12):
    half = torch.distributions.Normal(0.0, ch12.WIDTH).icdf((torch.arange(500) + 0.5) / 500)
    data = torch.cat([half - 1, half + 1])
    assert ch12.distance_to_data(data[torch.randperm(1000)]) == pytest.approx(0, abs=1e-6)
    assert ch12.distance_to_data(data + 0.3) == pytest.approx(0.3, abs=1e-5)
    assert ch12.distance_to_data(torch.zeros(1000)) == pytest.approx(data.abs().mean().item())


@pytest.mark.parametrize("sampler", ["flow SDE", "DDIM"])
def test_samplers_end_at_the_data(ch12, sampler):
    """Within .06 at 40 steps, with the usual noise and without; an Euler step may be too coarse."""
    for noise in (0.0, 0.7):
        walk = ch12.paths(sampler, noise, 40)
        assert walk.shape == (2000, 41)
        assert walk[:, 0].std().item() == pytest.approx(1, abs=0.05)
        assert ch12.distance_to_data(walk[:, -1]) < 0.06
    far = ch12.distance_to_data(ch12.paths(sampler, 3.0, 8)[:, -1])
    assert (far > 1) == (sampler == "flow SDE")


def test_without_noise_paths_do_not_cross(ch12):
    """An ODE in one dimension keeps the order of its starts; with noise they mix."""
    for noise, kept in ((0.0, True), (0.7, False)):
        walk = ch12.paths("flow SDE", noise, 40)
        order = walk[walk[:, 0].argsort(), -1]
        assert bool((order.diff() >= -1e-5).all()) is kept


def test_figure_shows_the_paths(ch12):
    figure = ch12.noise_figure("flow SDE", 0.7, 8)
    left, right = figure.axes
    assert (left.get_xlabel(), left.get_ylabel()) == ("denoising step", "x")
    assert (right.get_xlabel(), right.get_ylabel()) == ("x at the end", "density")
    walk = ch12.paths("flow SDE", 0.7, 8)
    assert len(left.lines) == 12
    assert left.lines[3].get_ydata() == pytest.approx(walk[3].numpy())
    heights = [bar.get_height() for bar in right.patches]
    counts, _ = torch.histogram(walk[:, -1], torch.linspace(-2.5, 2.5, 61))
    assert heights == pytest.approx((counts / counts.sum() / (5 / 60)).tolist(), rel=1e-4)
    title = figure.get_suptitle()
    assert "flow SDE, noise 0.7, 8 steps" in title
    assert f"{ch12.distance_to_data(walk[:, -1]):.2f} from the data" in title.replace("\n", " ")


def test_figure_is_a_pure_function(ch12):
    first, second = (ch12.noise_figure("DDIM", 1.0, 6) for _ in range(2))
    assert first is not second
    for a, b in zip(first.axes[0].lines, second.axes[0].lines, strict=True):
        assert a.get_xydata().tolist() == b.get_xydata().tolist()


def test_dot_spread_by_sampling(ch12):
    """The exact std of siblings, with the first noise in common or not, against drawn ones."""
    from minivisrl.generation.steps import sde_transition

    for noise, shared in ((0.7, False), (0.7, True), (0.1, True)):
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(400, 1 if shared else 200, generator=generator).expand(400, 200)
        for k in range(8):
            now, after = 1 - k / 8, 1 - (k + 1) / 8
            slope = (now - 0.25 * (1 - now)) / (0.25 * (1 - now) ** 2 + now**2)
            mean, std = sde_transition(slope * x, x, now, after, noise if k < 7 else 0.0)
            x = mean + std * torch.randn(x.shape, generator=generator)
        assert x.std(dim=1).mean().item() == pytest.approx(ch12.dot_spread(noise, shared), rel=0.02)
    assert math.isclose(ch12.dot_spread(0.0, True), 0.0)
