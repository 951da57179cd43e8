"""A slider redraws the one stored picture; the callback stays a pure function."""

import importlib

import matplotlib.pyplot as plt
import pytest

from minivisrl.lab import curves, explore, show_source


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


def line(slope, kind):
    return curves({kind: [0, slope]}, ylabel="y")


def test_explore_draws_once_then_on_every_move(shown):
    plt.close("all")  # what other tests left open
    explore(line, slope=(0.0, 2.0, 0.5), kind=["policy", "reward"])
    box, picture = shown
    assert picture.axes[0].lines[0].get_ydata()[1] == 1.0  # the middle of the slider
    slope, kind = box.children
    assert (slope.description, slope.continuous_update) == ("slope", False)
    slope.value = 2.0
    kind.value = "reward"
    assert [figure.axes[0].lines[0].get_ydata()[1] for figure in shown[1:]] == [1.0, 2.0, 2.0]
    assert shown[-1].axes[0].lines[0].get_label() == "reward"
    assert plt.get_fignums() == []  # nothing is left to be shown twice


def test_show_source_is_highlighted_python(shown):
    show_source(explore)
    assert shown[0].data.startswith("```python\ndef explore(callback")
    assert shown[0].data.endswith("\n```")
