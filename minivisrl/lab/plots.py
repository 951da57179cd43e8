"""Figures with one look, from plain data: curves, galleries, bars per split, the recipe grid."""

import json
import math
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from minivisrl.recipes import CELLS, PILLARS

# Okabe and Ito's palette: told apart with any colour vision.
COLORS = {"policy": "#0072B2", "reference": "#7F7F7F", "reward": "#E69F00", "control": "#CC79A7"}
OTHERS = ("#009E73", "#D55E00", "#56B4E9", "#000000")
ROLES = COLORS | {"after": COLORS["policy"], "before": COLORS["reference"]}
STYLE = {
    "figure.figsize": (6, 3),
    "figure.dpi": 100,
    "savefig.dpi": 100,
    "figure.constrained_layout.use": True,
    "axes.prop_cycle": plt.cycler(color=[COLORS["policy"], *OTHERS]),
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.titlesize": 10,
    "grid.alpha": 0.3,
    "font.size": 9,
    "legend.frameon": False,
    "legend.fontsize": 8,
}
STATUS_COLORS = {"not yet": "#F2F2F2", "failed": "#F7D9A8", "learns": "#BFDDF2"}


@plt.rc_context(STYLE)
def curves(
    runs: Mapping[str, Any],
    *,
    ylabel: str,
    title: str = "",
    control: Iterable[str] = (),
    xlabel: str = "step",
    x: Sequence[float] | None = None,
    smooth: int = 1,
) -> Figure:
    """Mean over seeds with a band from min to max; one line per label, controls dashed.

    Args:
        runs: label -> (S, steps) array or tensor, a list of S runs, or one run (steps,). A label
            that starts with a role ("policy", "reward, held-out") has the colour of that role.
        x: position of each step; 1, 2, ... by default.
        smooth: width of a moving average over steps, applied to each run before mean and band.
    """
    figure, axes = plt.subplots()
    dashes = cycle(("--", ":", "-."))
    control = {control} if isinstance(control, str) else set(control)
    if missing := control - runs.keys():
        raise ValueError(f"control names no run: {sorted(missing)}; runs are {list(runs)}")
    for label, color in _colors(runs, control).items():
        values = _smoothed(_runs(runs[label]), smooth)  # (S, steps)
        steps = np.arange(1, values.shape[1] + 1) if x is None else np.asarray(x)[smooth - 1 :]
        line = next(dashes) if label in control else "-"
        axes.plot(steps, values.mean(0), line, color=color, label=label)
        if len(values) > 1:
            axes.fill_between(steps, values.min(0), values.max(0), color=color, alpha=0.2, lw=0)
    axes.set(xlabel=xlabel, ylabel=ylabel, title=title)
    axes.xaxis.get_major_locator().set_params(integer=x is None)
    if len(runs) > 1:
        axes.legend()
    return figure


@plt.rc_context(STYLE)
def gallery(
    images: Any,
    captions: Sequence[str] = (),
    *,
    columns: int = 8,
    title: str = "",
    row_labels: Sequence[str] = (),
) -> Figure:
    """Small images side by side, row by row, upscaled without smoothing, captions wrapped below.

    Args:
        images: (N, C, H, W), C = 1 or 3; floats are clipped to [0, 1], integers count to 255.
        row_labels: one word at the left of each row: ("before", "after").
    """
    pictures = _array(images)  # (N, C, H, W)
    if pictures.ndim != 4 or pictures.shape[1] not in (1, 3) or not len(pictures):
        raise ValueError(f"images must be (N >= 1, 1 or 3, H, W), not {pictures.shape}")
    pictures = pictures / 255 if np.issubdtype(pictures.dtype, np.integer) else pictures.clip(0, 1)
    columns = min(columns, len(pictures))
    width, rows = min(6 / columns, 1.5), math.ceil(len(pictures) / columns)  # inches
    room = max(6, int(20 * width - 3))  # letters under a picture
    texts = [
        "\n".join(textwrap.fill(line, room) for line in str(text).splitlines()) for text in captions
    ]
    lines = max((text.count("\n") + 1 for text in texts), default=0)
    height = rows * (width * pictures.shape[2] / pictures.shape[3] + 0.13 * lines + 0.06)
    size = (max(3, width * columns), height + 0.3 * bool(title))
    figure, axes = plt.subplots(rows, columns, figsize=size, squeeze=False)
    for index, axis in enumerate(axes.flat):
        axis.set(xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
        if index < len(pictures):
            picture = pictures[index].transpose(1, 2, 0)  # (H, W, C)
            axis.imshow(picture.squeeze(), cmap="gray", vmin=0, vmax=1, interpolation="nearest")
            axis.set_xlabel(texts[index] if index < len(texts) else "", fontsize=7, labelpad=2)
    for axis, text in zip(axes[:, 0], row_labels, strict=False):
        axis.set_ylabel(text, fontsize=8)
    figure.suptitle(title, fontsize=10)
    return figure


@plt.rc_context(STYLE)
def bars(
    values: Mapping[str, Mapping[str, Any]],
    *,
    ylabel: str,
    title: str = "",
    intervals: Mapping[str, Mapping[str, tuple[float, float]]] | None = None,
) -> Figure:
    """Grouped bars: `bars({"before": {"held-out": .4}, "after": {"held-out": [.8, .9]}}, ...)`.

    Args:
        values: label -> {split: a number, or one number per seed}. A bar is the mean over seeds,
            its whisker goes from the smallest to the largest.
        intervals: label -> {split: (low, high)}: whiskers from elsewhere, such as a 95 % interval.
    """
    splits = list(dict.fromkeys(split for series in values.values() for split in series))
    figure, axes = plt.subplots()
    width = 0.8 / len(values)
    for index, (label, color) in enumerate(_colors(values).items()):
        for split, value in values[label].items():
            seeds = np.atleast_1d(_array(value)).astype(float)
            low, high = (intervals or {}).get(label, {}).get(split, (seeds.min(), seeds.max()))
            x = splits.index(split) + (index - (len(values) - 1) / 2) * width
            hatch = "//" if color == COLORS["control"] else ""
            axes.bar(x, seeds.mean(), width, color=color, label=label, hatch=hatch, ec="white")
            if high > low:
                axes.vlines(x, low, high, color="black", lw=1)
    axes.set(ylabel=ylabel, title=title)
    axes.set_xticks(
        range(len(splits)), [textwrap.fill(split, 48 // len(splits)) for split in splits]
    )
    axes.grid(axis="x", visible=False)
    handles = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one per label
    axes.legend(handles.values(), handles.keys())
    return figure


@plt.rc_context(STYLE)
def grid_table(grid: Mapping[str, Any] | str | Path, title: str = "") -> Figure:
    """Draw the 4 x 5 recipes from `grid.json` or its content; what is missing or failed shows."""
    from minivisrl.recipes.grid import cell_status  # late: it imports torch

    if isinstance(grid, str | Path):
        grid = json.loads(Path(grid).read_text(encoding="utf-8"))
    figure, axes = plt.subplots()
    codes = np.zeros((len(PILLARS), len(CELLS)), dtype=int)
    for row, pillar in enumerate(PILLARS):
        for column, recipe in enumerate(CELLS):
            cell = grid.get("cells", {}).get(f"{pillar}/{recipe}")
            status = cell_status(cell)
            codes[row, column] = list(STATUS_COLORS).index(status)
            text = status if not cell else _cell_text(cell, status)
            axes.text(column, row, text, ha="center", va="center", fontsize=7, linespacing=1.3)
    colors = ListedColormap(STATUS_COLORS.values())
    axes.imshow(codes, cmap=colors, vmin=0, vmax=2, aspect="auto")
    axes.set_xticks(range(len(CELLS)), CELLS)
    axes.set_yticks(range(len(PILLARS)), PILLARS)
    axes.set_xticks(np.arange(0.5, len(CELLS) - 1), minor=True)
    axes.set_yticks(np.arange(0.5, len(PILLARS) - 1), minor=True)
    axes.grid(visible=False)
    axes.grid(which="minor", color="white", lw=3, alpha=1)
    axes.tick_params(which="both", length=0)
    axes.spines[:].set_visible(False)
    axes.set_title(title)
    return figure


def _cell_text(cell: Mapping[str, Any], status: str) -> str:
    known = None not in (cell.get("ci") or [None])
    interval = "[{:.2f}, {:.2f}]".format(*cell["ci"]) if known else "no interval"
    controls = cell.get("control_gains")
    control = f"control {max(controls):+.2f}" if controls else "no control"
    start = f"{cell['before']:.2f} → {cell['after']:.2f}"
    return f"{start}\n{cell['gain']:+.2f} {interval}\n{control}\n{status}"


def _array(values: Any) -> np.ndarray:
    return values.detach().cpu().numpy() if hasattr(values, "detach") else np.asarray(values)


def _runs(values: Any) -> np.ndarray:
    if isinstance(values, list | tuple):
        values = np.stack([_array(value) for value in values])  # unequal lengths raise
    return np.atleast_2d(_array(values)).astype(float)  # (S, steps)


def _smoothed(values: np.ndarray, width: int) -> np.ndarray:
    kernel = np.ones(width) / width
    return np.stack([np.convolve(run, kernel, mode="valid") for run in values])


def _colors(labels: Iterable[str], control: Iterable[str] = ()) -> dict[str, str]:
    labels = list(labels)
    words = [label.split(",")[0].split(" ")[0].lower() for label in labels]
    roles = ["control" if n in control else w for n, w in zip(labels, words, strict=True)]
    taken = {ROLES[role] for role in roles if role in ROLES}  # one bar, one color
    others = cycle([c for c in (COLORS["policy"], *OTHERS) if c not in taken] or OTHERS)
    pairs = zip(labels, roles, strict=True)
    return {label: ROLES[role] if role in ROLES else next(others) for label, role in pairs}
