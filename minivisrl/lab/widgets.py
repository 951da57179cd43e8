"""Sliders that redraw a figure, and a library function's source as a notebook output."""

import inspect
import textwrap
from collections.abc import Callable
from typing import Any

from matplotlib.figure import Figure


def explore(callback: Callable[..., Figure], **sliders: Any) -> None:
    """Show `callback(**values)` under one widget per argument; moving a widget redraws it.

    The figure is an output of the cell, updated in place, not a part of a widget: so the stored
    notebook keeps the picture of the initial values, and a live kernel reacts.

    Args:
        callback: a pure function of the values, tested outside the notebook; returns a new figure.
        sliders: a widget, or ipywidgets' short forms: (min, max, step), a list of choices, a bool.
    """
    import ipywidgets
    from IPython.display import display

    widgets = ipywidgets.interactive(lambda **_: None, **sliders).kwargs_widgets
    for widget in widgets:
        if widget.has_trait("continuous_update"):
            widget.continuous_update = False  # redraw when the slider is let go
    display(ipywidgets.VBox([widget for widget in widgets if hasattr(widget, "layout")]))
    picture = display(_draw(callback, widgets), display_id=True)
    for widget in widgets:
        widget.observe(lambda _: picture.update(_draw(callback, widgets)), names="value")


def _draw(callback: Callable[..., Figure], widgets: list[Any]) -> Figure:
    import matplotlib.pyplot as plt

    figure = callback(**{widget._kwarg: widget.value for widget in widgets})
    plt.close(figure)  # otherwise the end of the cell would show it a second time
    return figure


def show_source(fn: Callable[..., Any]) -> None:
    """Display the source of a library function or class as highlighted Python."""
    from IPython.display import Markdown, display

    display(Markdown(f"```python\n{textwrap.dedent(inspect.getsource(fn)).rstrip()}\n```"))
