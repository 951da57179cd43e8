"""The slider of chapter 3: the closed form by brute force, the figure by the closed form."""

import importlib
from itertools import product
from math import exp, log

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS
from minivisrl.paradigms.dpo import DPOConfig, dpo_loss


@pytest.fixture
def ch03(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch03")
    plt.close("all")


def value(policy, ch03, dpo_beta):
    """Eq. (4) of a policy over the three descriptions, without the pre-training term."""
    earned = sum(p * log(worth) for p, worth in zip(policy, ch03.REWARDS, strict=True))
    kl = sum(p * log(p / q) for p, q in zip(policy, ch03.REF, strict=True) if p > 0)
    return earned - dpo_beta * kl


@pytest.mark.parametrize("dpo_beta", [0.1, 0.5, 1.0, 10.0])
def test_no_policy_beats_the_optimum(ch03, dpo_beta):
    best = ch03.optimum(dpo_beta)
    assert sum(best) == pytest.approx(1)
    others = [(a / 50, b / 50, (50 - a - b) / 50) for a, b in product(range(51), repeat=2)]
    others = [other for other in others if min(other) >= 0]
    assert value(best, ch03, dpo_beta) >= max(value(other, ch03, dpo_beta) for other in others)
    partition = sum(
        p * exp(log(worth) / dpo_beta) for p, worth in zip(ch03.REF, ch03.REWARDS, strict=True)
    )
    assert value(best, ch03, dpo_beta) == pytest.approx(dpo_beta * log(partition))


def test_push_is_the_weight_in_the_gradient(ch03):
    """The loss of the library, differentiated; and no overflow far away."""
    for dpo_beta, gap in product((0.1, 1.0, 3.0), (-7.0, 0.0, 2.5)):
        chosen, zero = torch.tensor([gap], dtype=torch.double, requires_grad=True), torch.zeros(1)
        loss, _ = dpo_loss(chosen, zero, zero, zero, DPOConfig(dpo_beta=dpo_beta))
        slope = torch.autograd.grad(loss, chosen)[0].item()
        assert ch03.push(dpo_beta, gap) == pytest.approx(-slope / dpo_beta)
    assert ch03.push(10.0, 1e3) == 0 and ch03.push(10.0, -1e3) == 1


@pytest.mark.parametrize("dpo_beta", [0.1, 0.5, 10.0])
def test_figure_shows_the_closed_forms(ch03, dpo_beta):
    figure = ch03.optimum_figure(dpo_beta)
    left, right = figure.axes
    heights = [bar.get_height() for bar in left.patches]
    assert heights == pytest.approx([*ch03.REF, *ch03.optimum(dpo_beta)])
    lines = {line.get_label(): line for line in right.lines}
    gaps, weights = lines[f"beta = {dpo_beta:g}"].get_data()
    assert list(weights) == pytest.approx([ch03.push(dpo_beta, gap) for gap in gaps])
    balance = lines["balance"].get_xdata()[0]
    # four of five prefer the red circle: the pushes of both camps cancel
    assert 0.8 * ch03.push(dpo_beta, balance) == pytest.approx(0.2 * ch03.push(dpo_beta, -balance))
    assert f"beta = {dpo_beta:g}:" in figure.get_suptitle()


def test_figure_is_a_pure_function(ch03):
    first, second = (ch03.optimum_figure(0.5) for _ in range(2))
    assert first is not second
    for one, other in zip(first.axes, second.axes, strict=True):
        for a, b in zip(one.lines, other.lines, strict=True):
            assert a.get_xydata().tolist() == b.get_xydata().tolist()


@pytest.mark.parametrize(("loss", "end"), [("sigmoid", log(9) / 0.5), ("ipo", 0.8 / (2 * 0.5))])
def test_settle_ends_where_paper_says(ch03, loss, end):
    """Nine of ten labels: the minimum of either loss, worked out by hand."""
    deltas = ch03.settle(DPOConfig(dpo_beta=0.5, loss=loss), preferred=9)
    assert deltas[-1].item() == pytest.approx(end, abs=0.01)


def test_table_starts_uniform_and_scores_what_it_encodes(ch03):
    table = ch03.Table(3, 4)
    assert table.probabilities().tolist() == [[0.25] * 4] * 3
    prompts = ch03.Prompts({"prompt": [2, 0]})
    rollout = table.encode(prompts, [3, 1, 0, 2], torch.Generator())
    assert rollout.group_size == 2
    with torch.no_grad():
        table.model.weight[2] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    assert table.logprobs(rollout).exp()[:, 0].tolist() == pytest.approx([0.4, 0.2, 0.25, 0.25])
