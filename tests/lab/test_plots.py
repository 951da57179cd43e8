"""Figures say what they were given: lines, bands, dashes, labels; people look at the pixels."""

import json

import numpy as np
import pytest
import torch

from minivisrl.lab import COLORS, bars, curves, gallery, grid_table
from minivisrl.recipes import CELLS, PILLARS
from minivisrl.recipes.grid import cell_status


@pytest.fixture(autouse=True)
def closed():
    yield
    import matplotlib.pyplot as plt

    plt.close("all")


def cell(gain=0.4, low=0.3, control=0.02, **changes):
    base = {"before": 0.4, "after": 0.4 + gain, "gain": gain, "ci": [low, gain + 0.1]}
    return base | {"control_gains": [0.0, control]} | changes


def test_curves_mean_band_and_dashed_control():
    runs = {"policy": np.array([[0.0, 1.0], [1.0, 3.0]]), "shuffled": [[0.0, 0.0], [0.2, 0.2]]}
    axes = curves(runs, ylabel="reward", title="it learns", control=["shuffled"]).axes[0]
    policy, shuffled = axes.lines
    np.testing.assert_allclose(policy.get_ydata(), [0.5, 2.0])
    np.testing.assert_array_equal(policy.get_xdata(), [1, 2])
    assert (policy.get_linestyle(), shuffled.get_linestyle()) == ("-", "--")
    assert (policy.get_color(), shuffled.get_color()) == (COLORS["policy"], COLORS["control"])
    assert (axes.get_ylabel(), axes.get_xlabel()) == ("reward", "step")
    assert axes.get_title() == "it learns"
    band = axes.collections[0].get_paths()[0].vertices
    assert len(axes.collections) == 2 and (band[:, 1].min(), band[:, 1].max()) == (0, 3)
    assert [text.get_text() for text in axes.get_legend().get_texts()] == list(runs)


def test_curves_of_one_run_has_no_band_and_takes_tensors():
    axes = curves({"reward": torch.ones(3, requires_grad=True)}, ylabel="reward").axes[0]
    assert len(axes.lines) == 1 and not axes.collections and axes.get_legend() is None
    assert axes.lines[0].get_color() == COLORS["reward"]


def test_curves_smooths_each_run_and_keeps_positions():
    axes = curves({"a": [[0, 2, 4, 6]]}, ylabel="y", x=[10, 20, 30, 40], smooth=2).axes[0]
    np.testing.assert_allclose(axes.lines[0].get_ydata(), [1, 3, 5])
    np.testing.assert_array_equal(axes.lines[0].get_xdata(), [20, 30, 40])


def test_curves_refuses_runs_of_unequal_length_and_unknown_controls():
    with pytest.raises(ValueError):
        curves({"a": [[1, 2], [1, 2, 3]]}, ylabel="y")
    with pytest.raises(ValueError, match="no run"):
        curves({"a": [1, 2]}, ylabel="y", control="b")


def test_lines_without_a_role_have_colours_of_their_own():
    axes = curves({name: [0, 1] for name in "abcd"}, ylabel="y").axes[0]
    assert len({line.get_color() for line in axes.lines}) == 4


def test_gallery_keeps_the_lines_of_a_caption():
    shown = gallery(np.zeros((3, 3, 4, 4)), ["how many ?\n3\n(truth: 4)"] * 3, columns=3)
    assert shown.axes[0].get_xlabel() == "how many ?\n3\n(truth: 4)"


def test_gallery_wraps_captions_and_blanks_the_last_row():
    images = torch.rand(5, 3, 16, 16) * 3 - 1
    figure = gallery(images, ["a red circle left of a blue square"] * 5, columns=3, title="t")
    shown = [axis for axis in figure.axes if axis.images]
    assert (len(figure.axes), len(shown)) == (6, 5)
    narrow = gallery(images, ["a red circle left of a blue square"] * 5, columns=5)
    assert narrow.axes[0].get_xlabel() == "a red circle left of\na blue square"
    assert shown[0].images[0].get_interpolation() == "nearest"
    assert 0 <= shown[0].images[0].get_array().min() <= shown[0].images[0].get_array().max() <= 1
    assert figure.get_suptitle() == "t" and not figure.axes[5].images


def test_gallery_grey_integers_and_row_labels():
    images = np.full((4, 1, 8, 8), 255, dtype=np.uint8)
    figure = gallery(images, columns=2, row_labels=("before", "after"))
    assert figure.axes[0].images[0].get_array().shape == (8, 8)
    assert figure.axes[0].images[0].get_array().max() == 1
    assert [figure.axes[i].get_ylabel() for i in (0, 2)] == ["before", "after"]
    with pytest.raises(ValueError, match="1 or 3"):
        gallery(np.zeros((8, 8, 3)))


def test_bars_mean_whiskers_and_intervals():
    values = {
        "before": {"held-out": 0.4, "composition": 0.3},
        "after": {"held-out": [0.7, 0.9], "composition": [0.5, 0.7]},
    }
    axes = bars(values, ylabel="accuracy", intervals={"before": {"held-out": (0.35, 0.45)}}).axes[0]
    np.testing.assert_allclose([bar.get_height() for bar in axes.patches], [0.4, 0.3, 0.8, 0.6])
    whiskers = sorted(tuple(c.get_segments()[0][:, 1]) for c in axes.collections)
    assert whiskers == [(0.35, 0.45), (0.5, 0.7), (0.7, 0.9)]
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["before", "after"]
    assert [text.get_text() for text in axes.get_xticklabels()] == ["held-out", "composition"]


@pytest.mark.parametrize(
    "given, status",
    [
        (cell(), "learns"),
        (cell(low=-0.01), "failed"),
        (cell(control=0.11), "failed"),  # more than a quarter of 0.4
        (cell(control=0.1), "learns"),
        (cell(control=-0.5), "learns"),  # a control may lose
        (cell(control_gains=[]), "not yet"),  # no control: the rule cannot be met by default
        (cell(ci=None), "not yet"),
        (cell(ci=[None, None]), "not yet"),  # one seed has no interval
        (None, "not yet"),
    ],
)
def test_a_result_counts_as_learning(given, status):
    assert cell_status(given) == status


def test_grid_shows_missing_and_failed_cells(tmp_path):
    one_seed = cell(ci=[None, None])
    grid = {"cells": {"mllm/rlvr-grpo": cell(), "vla/dpo": cell(low=-0.1), "mllm/dpo": one_seed}}
    (tmp_path / "grid.json").write_text(json.dumps(grid))
    for source in (grid, tmp_path / "grid.json", {}):
        axes = grid_table(source, title="20 recipes").axes[0]
        texts = {text.get_position(): text.get_text() for text in axes.texts}
        assert len(texts) == 20
        missing = [text for text in texts.values() if text == "not yet"]
        if source:
            assert "no interval" in texts[CELLS.index("dpo"), PILLARS.index("mllm")]
        assert len(missing) == (17 if source else 20)
        if source:
            learns = texts[CELLS.index("rlvr-grpo"), PILLARS.index("mllm")]
            assert learns.split("\n")[0] == "0.40 → 0.80" and learns.endswith("learns")
            assert texts[CELLS.index("dpo"), PILLARS.index("vla")].endswith("failed")


def test_recipes_beside_the_table_do_not_show_in_it():
    """The grid measures two more; the figure keeps its 20 cells."""
    grid = {"cells": {"vla/rlvr-ppo-manipulation": cell(), "mllm/dpo": cell()}}
    texts = [text.get_text() for text in grid_table(grid).axes[0].texts]
    assert len(texts) == 20 and texts.count("not yet") == 19


def test_a_label_without_a_role_does_not_take_the_color_of_one_that_has_it():
    """Story: "after" and "20 steps" were both blue."""
    figure = bars({"20 steps": {"x": 1}, "after": {"x": 2}, "other": {"x": 3}}, ylabel="y")
    colors = [patch.get_facecolor() for patch in figure.axes[0].patches]
    assert len(set(colors)) == 3
