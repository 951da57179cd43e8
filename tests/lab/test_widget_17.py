"""The sliders of chapter 17: one step by autograd on a linear layer, the figure by the step."""

import importlib

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS


@pytest.fixture
def ch17(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch17")
    plt.close("all")


@pytest.mark.parametrize(("push", "cosine"), [(1.0, 0.5), (4.0, -0.7), (2.0, 0.0), (0.0, 0.9)])
def test_the_step_is_a_gradient_step_on_a_linear_layer(ch17, push, cosine):
    """W with logits as given at both features, one step on log pi(code 1) at the drawing one."""
    features = torch.tensor([[1.0, 0.0], [cosine, (1 - cosine**2) ** 0.5]], dtype=torch.float64)
    logits = torch.tensor([ch17.DRAWING, ch17.READING], dtype=torch.float64).log()  # (2, 4)
    weight = torch.linalg.solve(features, logits)  # (2, 4)
    weight.requires_grad_()
    (features[0] @ weight).log_softmax(0)[0].backward()
    moved = (features @ (weight + push * weight.grad)).softmax(-1)
    for found, expected in zip(ch17.pushed(push, cosine), moved, strict=True):
        assert torch.allclose(found, expected.detach(), atol=1e-9)


def test_only_shared_features_leak(ch17):
    words = [ch17.pushed(3.0, cosine)[1][2:].sum().item() for cosine in (-0.5, 0.0, 0.5)]
    assert words[1] == pytest.approx(0.8) and words[0] > words[1] > words[2]
    assert ch17.pushed(3.0, 0.5)[0][0] > 0.7


@pytest.mark.parametrize(("push", "cosine"), [(2.0, 0.5), (6.0, -1.0), (0.0, 0.3)])
def test_figure_shows_both_positions(ch17, push, cosine):
    figure = ch17.leak_figure(push, cosine)
    for axis, before, after in zip(
        figure.axes, (ch17.DRAWING, ch17.READING), ch17.pushed(push, cosine), strict=True
    ):
        heights = [bar.get_height() for bar in axis.patches]
        assert heights == pytest.approx([*before, *after.tolist()])
    words = ch17.pushed(push, cosine)[1][2:].sum().item()
    assert figure.get_suptitle().endswith(f"0.80 to {words:.2f}")


@pytest.mark.parametrize(
    ("gains", "word"),
    [
        ([0.1, 0.12, 0.11], "more"),
        ([-0.1, -0.12, -0.11], "less"),
        ([0.001, -0.001, 0.002], "no difference"),
        ([0.2, -0.2, 0.1], "inconclusive"),
    ],
)
def test_verdicts(ch17, gains, word):
    assert ch17.verdict(gains) == word
