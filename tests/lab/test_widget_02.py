"""The widgets of chapter 2: labels by clicks, closed forms by brute force, figures by both."""

import importlib
from itertools import product
from math import log

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS
from minivisrl.paradigms.rlhf import rlhf_objective


@pytest.fixture
def ch02(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch02")
    plt.close("all")


# The slider


def value(policy, ch02, kl_coef, rewards):
    """Eq. (4) of a policy over the five outputs, without the pre-training term."""
    earned = sum(p * r for p, r in zip(policy, rewards, strict=True))
    kl = sum(p * log(p / q) for p, q in zip(policy, ch02.REF, strict=True) if p > 0)
    return earned - kl_coef * kl


@pytest.mark.parametrize("kl_coef", [0.1, 0.3, 1.0, 4.0])
def test_no_policy_beats_the_optimum(ch02, kl_coef):
    """All policies in steps of 1/20, under either reward."""
    for rewards in (ch02.PROXY, ch02.GOLD):
        best = ch02.optimum(kl_coef, rewards)
        assert sum(best) == pytest.approx(1)
        grid = (policy for policy in product(range(21), repeat=5) if sum(policy) == 20)
        rival = max(value([n / 20 for n in p], ch02, kl_coef, rewards) for p in grid)
        assert value(best, ch02, kl_coef, rewards) >= rival


@pytest.mark.parametrize("kl_coef", [0.02, 0.2, 4.0])
def test_outcome_is_what_the_library_logs(ch02, kl_coef):
    policy = torch.tensor(ch02.optimum(kl_coef)).double()
    ref = torch.tensor(ch02.REF).double()
    proxy, gold, kl = ch02.outcome(kl_coef)
    moved = (policy * (policy / ref).log()).nan_to_num()
    earned = policy * torch.tensor(ch02.PROXY)
    objective, _ = rlhf_objective(5 * earned, 5 * moved, kl_coef)
    assert proxy - kl_coef * kl == pytest.approx(objective.item(), abs=1e-6)
    assert gold == pytest.approx(float(policy @ torch.tensor(ch02.GOLD).double()), abs=1e-6)


def test_a_wrong_reward_helps_and_then_hurts(ch02):
    """Down the weights of the KL the proxy only rises, and gold rises, peaks and falls."""
    proxies, golds, kls = zip(*(ch02.outcome(2 ** (-i / 10)) for i in range(-40, 91)), strict=True)
    assert all(a < b + 1e-12 for a, b in zip(proxies, proxies[1:], strict=False))
    assert all(a < b + 1e-12 for a, b in zip(kls, kls[1:], strict=False))
    peak = golds.index(max(golds))
    assert all(a < b for a, b in zip(golds[:peak], golds[1 : peak + 1], strict=True))
    assert all(a > b - 1e-12 for a, b in zip(golds[peak:], golds[peak + 1 :], strict=False))
    assert max(golds) > 0.65 and golds[0] < 0.35 and golds[-1] < 0.21


@pytest.mark.parametrize("kl_coef", [0.02, 0.1, 4.0])
def test_figure_shows_the_closed_forms(ch02, kl_coef):
    figure = ch02.overoptimisation_figure(kl_coef)
    left, right = figure.axes
    widths = [bar.get_width() for bar in left.patches]
    assert widths == pytest.approx([*ch02.REF, *ch02.optimum(kl_coef)])
    proxy, gold, kl = ch02.outcome(kl_coef)
    lines = {line.get_label(): line for line in right.lines}
    assert lines["you are here"].get_xydata().tolist() == [[kl, proxy], [kl, gold]]
    for name, index in (("proxy", 0), ("gold", 1)):
        x, y = lines[name].get_data()
        near = min(range(len(x)), key=lambda i: abs(x[i] - kl))
        assert y[near] == pytest.approx((proxy, gold)[index], abs=0.06)  # the dot is on its curve
    assert figure.get_suptitle() == f"beta = {kl_coef:g}: proxy {proxy:.2f}, gold {gold:.2f}"


def test_figure_is_a_pure_function(ch02):
    first, second = (ch02.overoptimisation_figure(0.1) for _ in range(2))
    assert first is not second
    for one, other in zip(first.axes, second.axes, strict=True):
        for a, b in zip(one.lines, other.lines, strict=True):
            assert a.get_xydata().tolist() == b.get_xydata().tolist()


# The label desk


@pytest.fixture
def shown(monkeypatch):
    """What reaches `display`, and what the picture is updated with."""
    shown = []

    class Handle:
        def update(self, figure):
            shown.append(figure)

    def display(thing, display_id=None):
        shown.append(thing)
        return Handle()

    monkeypatch.setattr(importlib.import_module("IPython.display"), "display", display)
    return shown


@pytest.fixture
def desk(ch02):
    images = torch.arange(3 * 3 * 4 * 4).view(3, 3, 4, 4).to(torch.uint8)
    return ch02.Desk(images, ["a", "b", "c"], ["x", "y", "z"])


def texts(figure):
    return [text.get_text() for text in figure.axes[1].texts]


def test_clicks_become_labels(desk, shown):
    """Two buttons; each click notes one choice and shows the next pair, until all are done."""
    desk.show()
    buttons, picture = shown
    first, second = buttons.children
    assert (first.description, second.description) == ("the first one", "the second one")
    assert texts(picture) == ["first:", "a", "second:", "x"]
    assert (desk.labelled, desk.choices) == (0, [None, None, None])
    second.click()
    assert (desk.labelled, desk.choices) == (1, [1, None, None])
    assert texts(shown[-1]) == ["first:", "b", "second:", "y"]
    first.click()
    second.click()
    assert desk.choices == [1, 0, 1] and desk.labels([0, 0, 0]) == [1, 0, 1]
    assert "all 3 labelled" in shown[-1].get_suptitle()
    assert texts(shown[-1]) == ["first:", "c", "second:", "z"]
    assert len(shown) == 2 + 3  # every click redraws the one picture
    assert plt.get_fignums() == []  # nothing is left to be shown twice


def test_clicks_after_the_last_pair_change_nothing(desk, shown):
    desk.show()
    first, second = shown[0].children
    for button in (first, first, first, second, second):
        button.click()
    assert desk.choices == [0, 0, 0] and desk.labelled == 3


def test_the_script_fills_what_the_reader_leaves(desk):
    """In CI nobody clicks: all labels are the script's, and none of them counts as the reader's."""
    assert desk.labels([1, 0, 1]) == [1, 0, 1] and desk.labelled == 0
    desk.choose(0)
    assert desk.labels([1, 1, 1]) == [0, 1, 1] and desk.labelled == 1
    assert desk.labels(torch.tensor([1, 1, 1])) == [0, 1, 1]


def test_the_picture_is_the_scene(desk):
    """Pixels reach the figure as they are, whole numbers as shares of 255."""
    drawn = desk.figure().axes[0].images[0].get_array()
    assert drawn.shape == (4, 4, 3)
    assert drawn[1, 2, 0] == pytest.approx(desk.images[0, 0, 1, 2].item() / 255)


# Helpers of the experiment


def test_minimise_finds_a_minimum_on_paper(ch02):
    target = torch.tensor([3.0, -1.0])
    found = ch02.minimise(
        lambda x: ((x - target) ** 2 * torch.tensor([1.0, 50.0])).sum(), 0 * target
    )
    assert found.tolist() == pytest.approx(target.tolist(), abs=1e-6)


def test_figure_against_kl_plots_the_log(ch02):
    """A dot is the mean of seeds and `width` steps; the distance is nats per token times tokens."""
    rows = [
        {"kl_ref": 0.1 * i, "completion_length": 10.0, "reward/learned": 1.0 * i, "gold": 0.5}
        for i in range(4)
    ]
    more = [row | {"reward/learned": row["reward/learned"] + 1} for row in rows]
    assert ch02.distances(rows).tolist() == pytest.approx([0, 1, 2, 3])
    figure = ch02.against_kl({"one": [rows, more], "two": [rows]}, "gold", "Title", width=2)
    left, right = figure.axes
    assert [len(left.lines), len(right.lines)] == [6, 4]  # the mean and the seeds, twice each
    lines = {line.get_label(): line for line in left.lines}
    assert lines["proxy, in sd"].get_xydata().ravel().tolist() == pytest.approx([0.5, 1, 2.5, 3])
    assert lines["gold"].get_ydata().tolist() == [0.5, 0.5]
    assert (left.get_title(), right.get_title()) == ("one", "two")
