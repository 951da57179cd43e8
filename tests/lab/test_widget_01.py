"""The sliders of chapter 1, and the patches and counts behind its image tokens."""

import importlib

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS
from minivisrl.rollout import Prompts, Rollout
from minivisrl.worlds.scenes import Scene, Thing, render

WORDS = ["<pad>", "yes", "no", "end"]
TOKENS = torch.tensor([[1, 3, 0], [2, 1, 3]])
MASK = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 1.0]])
CHANCES = torch.tensor(
    [
        [[0.0, 0.5, 0.25, 0.25], [0.0, 0.0, 0.0, 1.0], [0.7, 0.1, 0.1, 0.1]],
        [[0.0, 0.5, 0.25, 0.25], [0.1, 0.2, 0.3, 0.4], [0.0, 0.0, 0.5, 0.5]],
    ]
)


@pytest.fixture
def ch01(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch01")
    plt.close("all")


def token_figure(ch01, sibling, step, shown=3):
    picture = torch.rand(3, 4, 4, generator=torch.Generator().manual_seed(0))
    return ch01.token_figure(sibling, step, picture, TOKENS, CHANCES, MASK, WORDS, shown)


def test_token_figure_shows_the_likeliest_words_and_the_drawn_one(ch01):
    """Second sibling, second step: 'yes' was drawn with 0.2, and is shown though not on top."""
    figure = token_figure(ch01, 2, 2, shown=2)
    left, right = figure.axes
    assert left.get_xlabel() == "no"
    assert [label.get_text() for label in right.get_yticklabels()] == ["end", "yes"]
    assert [bar.get_width() for bar in right.patches] == pytest.approx([0.4, 0.2])
    colors = [bar.get_facecolor() for bar in right.patches]
    assert colors[0] != colors[1]
    title = figure.get_suptitle()
    assert "draws 'yes', log-prob -1.61" in title  # log 0.2
    assert "entropy 1.28 nats" in title  # -(.1 log .1 + .2 log .2 + .3 log .3 + .4 log .4)


def test_token_figure_at_the_start_and_for_sure(ch01):
    assert token_figure(ch01, 1, 1).axes[0].get_xlabel() == "(no word yet)"
    sure = token_figure(ch01, 1, 2).get_suptitle()
    assert "log-prob 0.00, entropy 0.00 nats" in sure


def test_token_figure_says_that_padding_is_padding(ch01):
    figure = token_figure(ch01, 1, 3)
    assert "padding, mask 0" in figure.get_suptitle()
    assert figure.axes[0].get_xlabel() == "yes end"
    assert len({bar.get_facecolor() for bar in figure.axes[1].patches}) == 1


def story(length=3):
    prompts = Prompts({"prompt": ["a"]})
    logprobs = torch.tensor([[-1.0, 0.0, -2.0]])[:, :length]
    mask = torch.tensor([[1.0, 0.0, 1.0]])[:, :length]
    pictures = torch.linspace(0, 1, length)[:, None, None, None].expand(-1, 3, 2, 2)
    actions = {"tokens": torch.zeros(1, length)}
    return pictures, Rollout(prompts, actions, logprobs, mask, 1, ["y"]), list("xyz")[:length]


@pytest.mark.parametrize(("step", "shown"), [(1, 1), (3, 3), (80, 3)])
def test_episode_figure_stops_at_the_last_step(ch01, step, shown):
    figure = ch01.episode_figure("game", step, {"game": story()})
    left, right = figure.axes
    assert left.get_xlabel() == f"action: {'xyz'[shown - 1]}"
    assert [bar.get_height() for bar in right.patches] == [-1.0, 0.0, -2.0]
    assert figure.get_suptitle().startswith(f"game, step {shown} of 3: log-prob")


def test_episode_figure_shows_the_gap(ch01):
    figure = ch01.episode_figure("game", 2, {"game": story()})
    assert "not the policy's own: mask 0" in figure.get_suptitle()


def test_figures_are_pure_functions(ch01):
    for draw in (
        lambda: token_figure(ch01, 2, 1),
        lambda: ch01.episode_figure("game", 1, {"game": story()}),
    ):
        first, second = draw(), draw()
        assert first is not second
        for one, other in zip(first.axes, second.axes, strict=True):
            bars = [
                [(b.get_width(), b.get_height()) for b in axis.patches] for axis in (one, other)
            ]
            assert bars[0] == bars[1]


def test_patches_are_the_colors_of_the_scene(ch01):
    """A red square in the first cell of the 3 x 3 grid: red at the top left, nothing below."""
    scene = Scene((Thing("square", "red", "large", 0.2, 0.2, depth=0),))
    codes = ch01.color_codes(render([scene]) / 255).view(8, 8)
    names = [[ch01.NAMES[c] for c in row] for row in codes.tolist()]
    assert names[1][1] == "red" and names[7][7] == "background"
    assert {name for row in names for name in row} == {"red", "background"}


def test_table_counts_neighbors(ch01):
    """One picture, all red (0): edges and insides, each count plus 1, by hand."""
    table = ch01.neighbor_table(torch.zeros(1, 64, dtype=torch.long))  # (8, 8, 7)
    torch.testing.assert_close(table.sum(dim=2), torch.ones(8, 8))
    assert table[0, 0, 0].item() == pytest.approx(50 / 56)  # 49 patches with both neighbors red
    assert table[7, 7, 0].item() == pytest.approx(2 / 8)  # the corner
    assert table[7, 0, 0].item() == pytest.approx(8 / 14)  # 7 on the left edge
    assert table[3, 4].tolist() == pytest.approx([1 / 7] * 7)  # never seen


def test_neighbors_by_hand(ch01):
    codes = torch.arange(64)[None] % 7
    left, upper = (x.view(8, 8) for x in ch01.neighbors(codes))
    grid = codes.view(8, 8)
    assert left[:, 0].tolist() == upper[0].tolist() == [7] * 8
    assert torch.equal(left[:, 1:], grid[:, :-1]) and torch.equal(upper[1:], grid[:-1])


def test_paint_fills_row_by_row(ch01):
    codes = torch.tensor([0] * 32 + [2] * 32)
    empty, half, full = ch01.paint(codes, [0, 32, 64])
    assert (empty == 0.5).all() and (half[:, 4:] == 0.5).all()
    red, blue = ch01.PALETTE[0], ch01.PALETTE[2]
    assert torch.equal(half[:, 0, 0], red) and torch.equal(full[:, 7, 7], blue)
    big = ch01.large(full)
    assert big.shape == (3, 32, 32) and torch.equal(big[:, ::4, ::4], full)
