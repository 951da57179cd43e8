"""Reads a scene off its pixels, and answers questions from what it saw.

It knows the words of the world and none of its code: colours are told apart by which channels are
bright, objects are connected components, shapes follow from area, symmetry and one corner.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

import numpy as np
from scipy import ndimage

HUES = {
    (1, 0, 0): "red",
    (0, 1, 0): "green",
    (0, 0, 1): "blue",
    (1, 1, 0): "yellow",
    (1, 0, 1): "purple",
    (0, 1, 1): "cyan",
}
SHAPES = ("circle", "square", "triangle", "cross")
SIZES = ("small", "large")


@dataclass(frozen=True)
class Seen:
    """One object as its pixels show it; x, y: centre of its extent in [0, 1]."""

    color: str
    shape: str
    size: str
    x: float
    y: float
    pixels: np.ndarray


def read(image) -> list[Seen]:
    """The objects of a (3, 32, 32) image, in reading order of the nine cells."""
    bright = np.asarray(image) > 127
    seen = []
    for channels, color in HUES.items():
        where = (bright == np.array(channels, dtype=bool)[:, None, None]).all(axis=0)
        labels, _ = ndimage.label(where)
        for number, (rows, columns) in enumerate(ndimage.find_objects(labels), start=1):
            crop = labels[rows, columns] == number
            height, width = crop.shape
            seen.append(
                Seen(
                    color,
                    shape_of(crop),
                    "large" if max(height, width) > 7 else "small",
                    (columns.start + columns.stop) / 2 / where.shape[1],
                    (rows.start + rows.stop) / 2 / where.shape[0],
                    labels == number,
                )
            )
    return sorted(seen, key=lambda thing: (int(3 * thing.y), int(3 * thing.x)))


def shape_of(crop: np.ndarray) -> str:
    """A full box is a square; bottom-heavy is a triangle; a bare corner region is a cross."""
    height, width = crop.shape
    if crop.mean() > 0.99:
        return "square"
    sinks = ndimage.center_of_mass(crop)[0] - (height - 1) / 2
    if sinks > height / 12:
        return "triangle"
    return "circle" if crop[round(height / 4 - 0.5), round(width / 4 - 0.5)] else "cross"


def apart(scene) -> bool:
    """Whether at least one whole background pixel (of 32) separates any two objects."""
    boxes = [thing.box for thing in scene.things]
    return all(
        max(b[0] - a[2], a[0] - b[2], b[1] - a[3], a[1] - b[3]) > 1 / 32
        for i, a in enumerate(boxes)
        for b in boxes[:i]
    )


def fits(thing, word: str) -> bool:
    """Whether a word, or its plural, describes a thing."""
    word = word.removesuffix(" things")
    singular = {"crosses": "cross"} | {f"{s}s": s for s in SHAPES if s != "cross"}
    word = singular.get(word, word)
    return word == "things" or word in (thing.color, thing.shape, thing.size)


def count(things, *words: str) -> int:
    """How many things all words describe."""
    return len([thing for thing in things if all(fits(thing, word) for word in words)])


def only(things, *words: str):
    """The one thing that the words describe."""
    (found,) = (thing for thing in things if all(fits(thing, word) for word in words))
    return found


def answer(prompt: str, things) -> str:
    """The answer to any question about a scene."""
    noun = r"(\w+(?: things)?)"
    if found := re.fullmatch(rf"how many more {noun} than {noun} are there \?", prompt):
        return str(count(things, found[1]) - count(things, found[2]))
    if found := re.fullmatch(rf"how many {noun} and {noun} are there \?", prompt):
        return str(count(things, found[1]) + count(things, found[2]))
    if found := re.fullmatch(rf"how many {noun} are there \?", prompt):
        return str(count(things, found[1]))
    if found := re.fullmatch(rf"are there more {noun} than {noun} \?", prompt):
        return "yes" if count(things, found[1]) > count(things, found[2]) else "no"
    if found := re.fullmatch(r"is there a (\w+) (\w+) \?", prompt):
        return "yes" if count(things, *found.groups()) else "no"
    if found := re.fullmatch(r"what color is the ([\w ]+) \?", prompt):
        return only(things, *found[1].split()).color
    if found := re.fullmatch(r"what shape is the ([\w ]+) thing \?", prompt):
        return only(things, *found[1].split()).shape
    relation = r"is the (\w+) (\w+) (left of|right of|above|below) the (\w+) (\w+) \?"
    found = re.fullmatch(relation, prompt)
    a, b = only(things, *found.group(1, 2)), only(things, *found.group(4, 5))
    step = a.x - b.x if found[3] in ("left of", "right of") else a.y - b.y
    return "yes" if (step < 0) == (found[3] in ("left of", "above")) else "no"
