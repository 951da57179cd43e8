"""Scenes to draw, and their captions: "red circle top left, blue square bottom right".

Objects are large, and sit on the centres of a raster of 16 x 16 pixels: elsewhere a circle can have
the very pixels of a square at this size.  A caption names the color, shape and place of every
object, in reading order of the 3 x 3 cells.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from random import Random
from typing import NamedTuple
from zlib import crc32

from torch import Generator

from minivisrl.rollout import Prompts
from minivisrl.worlds.scenes import (
    COLOUR_NAMES,
    HELDOUT_SHARE,
    SHAPES,
    UNSEEN_PAIRS,
    Scene,
    Thing,
    sample_scenes,
)

SNAP = 16  # objects of drawing tasks sit on the centres of a raster of 16 x 16 pixels
ROWS, COLUMNS = ("top", "middle", "bottom"), ("left", "center", "right")
NUMBERS = {"heldout": (2, 3), "composition": (4, 4)}  # objects per picture; elsewhere 1 to 3


class Seen(NamedTuple):
    """An object as its pixels show it; `cell` counts the 3 x 3 grid in reading order."""

    color: str
    shape: str
    cell: int


def cell_of(x: float, y: float) -> int:
    """The cell, 0 to 8 in reading order, of a place given in fractions of the image side."""
    return 3 * min(int(3 * y), 2) + min(int(3 * x), 2)


def snapped(scene: Scene) -> Scene:
    """The scene with large objects, each moved to the nearest place where 16 px tell shapes apart.

    The same graph renders at any size.
    """

    def snap(place: float) -> float:
        return (int(place * SNAP) + 0.5) / SNAP

    return Scene(
        tuple(Thing(t.shape, t.color, "large", snap(t.x), snap(t.y), t.depth) for t in scene.things)
    )


def wanted(scene: Scene) -> list[Seen]:
    """What a picture of the scene must show, in reading order."""
    return sorted(
        (Seen(t.color, t.shape, cell_of(t.x, t.y)) for t in scene.things),
        key=lambda seen: seen.cell,
    )


def phrase(seen: Seen) -> str:
    """`red circle top left`."""
    return f"{seen.color} {seen.shape} {ROWS[seen.cell // 3]} {COLUMNS[seen.cell % 3]}"


def caption(scene: Scene) -> str:
    """The true and complete caption, in reading order."""
    return ", ".join(map(phrase, wanted(scene)))


PHRASE = re.compile(
    rf"({'|'.join(COLOUR_NAMES)}) ({'|'.join(SHAPES)}) ({'|'.join(ROWS)}) ({'|'.join(COLUMNS)})"
)


def read_caption(text: str) -> list[Seen]:
    """The objects that a caption names in full, in its order; all other words are ignored."""
    told = PHRASE.findall(" ".join(text.lower().split()))
    cells = [3 * ROWS.index(row) + COLUMNS.index(column) for *_, row, column in told]
    return [Seen(color, shape, cell) for (color, shape, *_), cell in zip(told, cells, strict=True)]


def held_out(text: str) -> bool:
    """Whether a caption belongs to `heldout`: one in eight of those that name several objects.

    Captions of one object are too few: without one in eight of them a model learns that what is
    left out does not exist.
    """
    return "," in text and crc32(text.encode()) % HELDOUT_SHARE == 0


def _drawable(scene: Scene, split: str) -> bool:
    """Whether a scene is of the split, and no two neighbours of one color would touch."""
    colors = {seen.cell: seen.color for seen in wanted(scene)}
    across = (colors[c] == colors.get(c + 1) for c in colors if c % 3 < 2)
    down = (colors[c] == colors.get(c + 3) for c in colors)
    wrong_side = held_out(caption(scene)) != (split == "heldout")
    other = split in ("train", "heldout") and wrong_side
    return not (other or any(across) or any(down))


def drawing_scenes(count: int, split: str, generator: Generator) -> list[Scene]:
    """Scenes of large objects that can be told apart at 16 px, and of which captions can be told.

    Splits are disjoint: by a hash of the caption for `train` and `heldout`, by unseen colour-shape
    pairs for `appearance`, by the number of objects (four) for `composition`.
    """
    source = "appearance" if split == "appearance" else "train"
    found: list[Scene] = []
    while len(found) < count:
        drawn = sample_scenes(2 * count, source, generator, objects=NUMBERS.get(split, (1, 3)))
        found += [scene for scene in map(snapped, drawn) if _drawable(scene, split)]
    return found[:count]


def drawing_prompts(count: int, split: str, generator: Generator) -> Prompts:
    """`count` captions to draw: columns prompt, scene, and objects, how many there are."""
    scenes = drawing_scenes(count, split, generator)
    objects = [len(scene.things) for scene in scenes]
    return Prompts({"prompt": list(map(caption, scenes)), "scene": scenes, "objects": objects})


def misread(seen: Seen, random: Random) -> Seen:
    """The object with another color, shape, row or column; never a pair that training must miss."""
    row, column = divmod(seen.cell, 3)
    colors = [seen._replace(color=color) for color in COLOUR_NAMES if color != seen.color]
    shapes = [seen._replace(shape=shape) for shape in SHAPES if shape != seen.shape]
    rows = [seen._replace(cell=3 * other + column) for other in range(3) if other != row]
    columns = [seen._replace(cell=3 * row + other) for other in range(3) if other != column]
    kinds = [[new for new in kind if new[:2] not in UNSEEN_PAIRS] for kind in (colors, shapes)]
    return random.choice(random.choice([*kinds, rows, columns]))


def misread_captions(scenes: Sequence[Scene], wrong: float, random: Random) -> list[str]:
    """Captions in which a share `wrong` of the objects is misnamed, each in one word.

    No caption of `heldout` is written by mistake: it would be learned with a wrong picture.
    """
    captions = []
    for scene in scenes:
        told = caption(scene)
        for _ in range(20):
            seen = [misread(s, random) if random.random() < wrong else s for s in wanted(scene)]
            if not held_out(text := ", ".join(map(phrase, seen))):
                told = text
                break
        captions.append(told)
    return captions
