"""What the notebooks use: setup, figures, widgets, the exercise check and the notebook build."""

from minivisrl.lab.exercises import check
from minivisrl.lab.plots import COLORS, bars, curves, gallery, grid_table
from minivisrl.lab.session import setup
from minivisrl.lab.widgets import explore, show_source

__all__ = [
    "COLORS",
    "bars",
    "check",
    "curves",
    "explore",
    "gallery",
    "grid_table",
    "setup",
    "show_source",
]
