"""The sliders of chapter 16: exact ascent by autograd, the figures by the ascent."""

import importlib

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS


@pytest.fixture
def ch16(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch16")
    plt.close("all")


@pytest.mark.parametrize(("share", "cosine"), [(0.5, 0.0), (1.0, 0.6), (0.2, -0.5)])
def test_ascent_is_the_gradient_of_the_blend(ch16, share, cosine):
    """Each step is what autograd finds for the blended objective over the two weights."""
    directions = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float64)
    start = torch.tensor([0.6, 0.6], dtype=torch.float64).logit()
    weights = torch.linalg.inv(directions) @ start
    for now in ch16.ascent(share, cosine, steps=6, rate=0.7):
        weights = weights.detach().requires_grad_()
        abilities = (directions @ weights).sigmoid()
        assert torch.allclose(now, abilities, atol=1e-6)
        (gradient,) = torch.autograd.grad(
            share * abilities[0] + (1 - share) * abilities[1], weights
        )
        weights = weights + 0.7 * gradient


def test_the_cosine_decides_what_drawing_does_to_reading(ch16):
    reading = [ch16.ascent(1.0, cosine)[-1, 1].item() for cosine in (-0.5, 0.0, 0.5)]
    assert reading[0] < 0.55 and reading[1] == pytest.approx(0.6) and reading[2] > 0.65
    for cosine in (-0.5, 0.0, 0.5):
        assert ch16.ascent(0.0, cosine)[-1, 1] > ch16.ascent(0.5, cosine)[-1, 1]


@pytest.mark.parametrize(("share", "cosine"), [(0.5, 0.0), (0.9, -0.6), (0.0, 0.9)])
def test_figure_shows_the_path_and_its_end(ch16, share, cosine):
    figure = ch16.blend_figure(share, cosine)
    left, right = figure.axes
    path, grey = ch16.ascent(share, cosine), ch16.ascent(0.5, cosine)
    lines = {line.get_label(): line.get_xydata() for line in left.lines}
    assert lines[f"share {share:.2f}"] == pytest.approx(path.numpy())
    assert lines["half, half"] == pytest.approx(grey.numpy())
    gains = (path[-1] - 0.6).tolist()
    assert [bar.get_height() for bar in right.patches] == pytest.approx(gains)
    assert figure.get_suptitle().endswith(f"drawing {gains[0]:+.2f}, reading {gains[1]:+.2f}")
    assert all(-0.65 < gain < 0.45 for gain in gains)  # inside the axis


def test_matrix_prints_what_it_is_given(ch16):
    cells = {"a": {"read": (0.1, 0.05, 0.15), "draw": (-0.01, -0.02, 0.0)}}
    axes = ch16.transfer_figure(cells).axes[0]
    assert [text.get_text() for text in axes.texts] == [
        "+0.100\n[+0.050, +0.150]",
        "-0.010\n[-0.020, +0.000]",
    ]
    assert axes.images[0].get_array().tolist() == [[0.1, -0.01]]


@pytest.mark.parametrize(
    ("first", "word"),
    [
        ([0.1, 0.12, 0.11, 0.1, 0.13], "more"),
        ([-0.1, -0.12, -0.11, -0.1, -0.13], "less"),
        ([0.001, -0.001, 0.002, 0.0, -0.002], "no difference"),
        ([0.2, -0.2, 0.1, -0.15, 0.05], "inconclusive"),
    ],
)
def test_verdicts(ch16, first, word):
    assert ch16.verdict(first, [0.0] * 5) == word
