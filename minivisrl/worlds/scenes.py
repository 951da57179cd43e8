r"""Scenes of coloured shapes: the truth (a scene graph) and the pixels drawn from it.

Every task of every pillar is a view of a scene, and every verifier reads its graph.  Positions are
fractions of the image side, so the same graph renders at 16 or 32 px.  Objects sit in the cells of
a 3 x 3 grid with jitter; without `overlap` none hides another, with it nearer ones hide farther
ones.

Splits are disjoint by construction: `train` and `heldout` scenes differ in a hash of their content,
`appearance` scenes hold a colour-shape pair that no other split has, and `composition` scenes have
more objects than any other split.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from minivisrl import UserError

SHAPES = ("circle", "square", "triangle", "cross")
COLOURS = {
    "red": (0.90, 0.15, 0.15),
    "green": (0.15, 0.80, 0.20),
    "blue": (0.20, 0.30, 0.95),
    "yellow": (0.95, 0.85, 0.10),
    "purple": (0.80, 0.20, 0.85),
    "cyan": (0.10, 0.85, 0.90),
}
COLOUR_NAMES = tuple(COLOURS)
PALETTE = np.array(list(COLOURS.values()), dtype=np.float32)  # (6, 3)
BACKGROUND = 0.06
SIZES = {"small": 3.2 / 32, "large": 4.8 / 32}  # half-extent as a fraction of the image side
SIZE_NAMES = tuple(SIZES)
UNSEEN_PAIRS = (("yellow", "circle"), ("cyan", "square"), ("purple", "triangle"), ("red", "cross"))
SPLITS = ("train", "heldout", "appearance", "composition")
HELDOUT_SHARE = 8  # one content hash in eight belongs to `heldout`


@dataclass(frozen=True)
class Thing:
    """One object.  x, y: centre in [0, 1], y downwards; depth 0 is nearest; velocity per frame."""

    shape: str
    color: str
    size: str
    x: float
    y: float
    depth: int
    vx: float = 0.0
    vy: float = 0.0

    @property
    def box(self) -> tuple[float, float, float, float]:
        """(x0, y0, x1, y1) as fractions of the image side."""
        half = SIZES[self.size]
        return (self.x - half, self.y - half, self.x + half, self.y + half)

    def has(self, word: str) -> bool:
        """Whether `word` names the shape, color or size of this object ('thing' fits all)."""
        return word in (self.shape, self.color, self.size, "thing")


@dataclass(frozen=True)
class Scene:
    """A scene graph: the objects, in reading order of their cells."""

    things: tuple[Thing, ...]

    def count(self, *words: str) -> int:
        """How many objects carry all of `words`."""
        return sum(all(thing.has(word) for word in words) for thing in self.things)

    def caption(self) -> str:
        """The true and complete description, in reading order."""
        return ", ".join(f"{t.size} {t.color} {t.shape}" for t in self.things)

    def masks(self, pixels: int = 32) -> np.ndarray:
        """(things, H, W) bool: the visible pixels of every object."""
        owner = _owners([self], pixels)[0]  # (H, W)
        return np.stack([owner == i for i in range(len(self.things))])


def _unseen(color: np.ndarray, shape: np.ndarray) -> np.ndarray:
    """Whether (color, shape) indices form a pair held out for `appearance`."""
    table = np.zeros((len(COLOURS), len(SHAPES)), dtype=bool)
    for color_name, shape_name in UNSEEN_PAIRS:
        table[COLOUR_NAMES.index(color_name), SHAPES.index(shape_name)] = True
    return table[color, shape]


def _content_hash(cells: np.ndarray, kinds: np.ndarray, present: np.ndarray) -> np.ndarray:
    """A hash of where each kind of object is, blind to jitter; (count,)."""
    code = np.where(present, 1 + cells * 64 + kinds, 0).astype(np.uint64)  # (count, 9)
    powers = np.cumprod(np.full(code.shape[1], 0x9E3779B97F4A7C15, dtype=np.uint64))
    mixed = (code * powers).sum(axis=1, dtype=np.uint64)
    mixed ^= mixed >> np.uint64(29)
    return (mixed * np.uint64(0xBF58476D1CE4E5B9)) >> np.uint64(40)


def sample_scenes(
    count: int,
    split: str,
    generator: Generator,
    *,
    objects: tuple[int, int] | None = None,
    overlap: bool = False,
) -> list[Scene]:
    """Draw `count` scenes of a split.

    Args:
        objects: inclusive range of the number of objects; 1-6, or 7-9 for `composition`.
        overlap: larger jitter, so that objects may hide each other.

    Raises:
        UserError: an unknown split, or a range that the split cannot have.
    """
    if split not in SPLITS:
        raise UserError(f"split={split!r} is unknown; choose one of {', '.join(SPLITS)}")
    least, most = (7, 9) if split == "composition" else (1, 6)
    low, high = objects or (least, most)
    if not least <= low <= high <= most:
        raise UserError(
            f"objects={objects} must satisfy {least} <= low <= high <= {most} for {split}"
        )
    rng = np.random.default_rng(int(torch.randint(2**62, (), generator=generator)))
    scenes: list[Scene] = []
    while len(scenes) < count:
        scenes += _draw(max(64, 2 * (count - len(scenes))), split, (low, high), overlap, rng)
    return scenes[:count]


def _draw(
    tries: int, split: str, objects: tuple[int, int], overlap: bool, rng: np.random.Generator
) -> list[Scene]:
    """Draw `tries` scenes and keep those that belong to `split`."""
    number = rng.integers(objects[0], objects[1] + 1, tries)
    cells = rng.random((tries, 9)).argsort(axis=1)
    present = np.arange(9) < number[:, None]  # (tries, 9)
    cells = np.where(present, cells, 9 + np.arange(9))
    cells = np.sort(cells, axis=1)  # reading order; absent objects come last
    color = rng.integers(len(COLOURS), size=(tries, 9))
    shape = rng.integers(len(SHAPES), size=(tries, 9))
    size = rng.integers(len(SIZES), size=(tries, 9))
    kinds = (color * len(SHAPES) + shape) * len(SIZES) + size

    unseen = (_unseen(color, shape) & present).any(axis=1)
    if split == "appearance":
        keep = unseen
    elif split == "composition":
        keep = ~unseen
    else:
        hashed = _content_hash(cells, kinds, present) % HELDOUT_SHARE == 0
        keep = ~unseen & (hashed == (split == "heldout"))
    jitter = rng.uniform(-1, 1, (tries, 9, 2)) * (4.5 / 32 if overlap else 0.5 / 32)
    position = (np.stack([cells % 3, cells // 3], axis=-1) + 0.5) / 3 + jitter  # (tries, 9, 2)
    position = position.clip(0.15, 0.85)  # a large object still fits
    depth = np.where(present, rng.random((tries, 9)), 2).argsort(axis=1).argsort(axis=1)
    rows = [
        [
            Thing(SHAPES[s], COLOUR_NAMES[c], SIZE_NAMES[z], x, y, d)
            for s, c, z, (x, y), d, _ in zip(*row, range(n), strict=False)
        ]
        for n, *row in zip(
            number[keep].tolist(),
            shape[keep].tolist(),
            color[keep].tolist(),
            size[keep].tolist(),
            position[keep].round(4).tolist(),
            depth[keep].tolist(),
            strict=True,
        )
    ]
    return [Scene(tuple(row)) for row in rows]


def _covers(shape: np.ndarray, dx: np.ndarray, dy: np.ndarray) -> np.ndarray:
    """Which pixels lie inside the shapes.  dx, dy: (M, H, W) offsets in units of half-extents."""
    ax, ay = np.abs(dx), np.abs(dy)
    inside = np.empty(dx.shape, dtype=bool)
    tests = (
        lambda i: dx[i] ** 2 + dy[i] ** 2 <= 1,
        lambda i: np.maximum(ax[i], ay[i]) <= 0.9,
        lambda i: (ax[i] <= (dy[i] + 1) / 2) & (dy[i] <= 0.9),
        lambda i: (np.minimum(ax[i], ay[i]) <= 0.36) & (np.maximum(ax[i], ay[i]) <= 1),
    )
    for index, test in enumerate(tests):
        rows = shape == index
        inside[rows] = test(rows)
    return inside


def _within(sorted_groups: np.ndarray) -> np.ndarray:
    """Position of every entry inside its run of equal values: 3 3 3 5 5 -> 0 1 2 0 1."""
    starts = np.flatnonzero(np.r_[True, sorted_groups[1:] != sorted_groups[:-1]])
    lengths = np.diff(np.r_[starts, len(sorted_groups)])
    return np.arange(len(sorted_groups)) - np.repeat(starts, lengths)


def _owners(scenes: list[Scene], pixels: int) -> np.ndarray:
    """(B, H, W) int8: index of the visible object at each pixel, -1 for the background."""
    order = [
        (-t.depth, b, i, SHAPES.index(t.shape), t.x, t.y, SIZES[t.size])
        for b, scene in enumerate(scenes)
        for i, t in enumerate(scene.things)
    ]
    table = np.array(sorted(order), dtype=np.float32).reshape(
        -1, 7
    )  # farthest first: nearer ones paint over
    owner = np.full((len(scenes), pixels, pixels), -1, dtype=np.int8)
    grid = (np.arange(pixels, dtype=np.float32) + 0.5) / pixels
    rank = table[:, 1].argsort(kind="stable")  # by scene, farthest first within one
    turn = np.empty(len(table), dtype=int)
    turn[rank] = _within(table[rank, 1])
    for now in range(turn.max(initial=-1) + 1):  # one object of each scene at a time
        _, row, index, shape, x, y, half = table[turn == now].T
        dx = (grid[None, None, :] - x[:, None, None]) / half[:, None, None]  # (M, 1, W)
        dy = (grid[None, :, None] - y[:, None, None]) / half[:, None, None]  # (M, H, 1)
        dx, dy = np.broadcast_arrays(dx, dy)  # (M, H, W)
        inside = _covers(shape.astype(int), dx, dy)
        rows = row.astype(int)
        owner[rows] = np.where(inside, index.astype(np.int8)[:, None, None], owner[rows])
    return owner


def render(scenes: list[Scene], pixels: int = 32) -> Tensor:
    """(B, 3, H, W) uint8 images of a whole batch of scenes."""
    owner = _owners(scenes, pixels)  # (B, H, W)
    colors = np.full((len(scenes), 10, 3), BACKGROUND, dtype=np.float32)
    for b, scene in enumerate(scenes):
        for i, thing in enumerate(scene.things):
            colors[b, i] = COLOURS[thing.color]
    colors = (255 * colors).round().astype(np.uint8)
    image = colors[np.arange(len(scenes))[:, None, None], owner]  # (B, H, W, 3); -1 is background
    return torch.from_numpy(np.ascontiguousarray(image.transpose(0, 3, 1, 2)))
