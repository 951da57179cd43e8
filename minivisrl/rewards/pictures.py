r"""Programs that check a picture: read its pixels back into objects, compare them with the scene.

Survey: sections 2.2.3 and 3.2.4, Eq. (7).
Symbols: v(p, y) -> `exact_composition`, y -> an image, p -> the caption of `scene`.
Departs: Eq. (7) is 0 or 1; `composition` gives partial credit for place, color and shape.

Nothing here is learned. A pixel has the color of the palette that it is nearest to, or none; an
object is a connected component that looks like one of the four shapes; everything else is clutter,
and a picture with too much of it is not read at all. At 16 px only large objects whose centres are
centres of pixels can be told apart: a circle anywhere else may have the very pixels of a square.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy import ndimage
from torch import Tensor

from minivisrl.rewards.judge import text_of
from minivisrl.worlds.drawings import SNAP, Seen, cell_of, read_caption, wanted
from minivisrl.worlds.scenes import BACKGROUND, COLOUR_NAMES, PALETTE, SHAPES, Scene, Thing

TOLERANCE = 0.4  # a pixel further than this from every color of the palette has none
LEAST_OVERLAP = 0.7  # intersection over union with the nearest shape, for an object to be one
MOST_CLUTTER = 0.1  # share of the pixels


class Reading(NamedTuple):
    """The objects of a picture, and the share of its pixels that belong to none of them."""

    things: list[Seen]
    clutter: float


@cache
def _templates(pixels: int) -> tuple[np.ndarray, np.ndarray, int]:
    """Large shapes on a small canvas, moved by up to one pixel: (M, S * S), shape (M,), and S."""
    middle = (SNAP // 2 + 0.5) / SNAP
    masks = [
        Scene((Thing(shape, "red", "large", middle, middle, 0),)).masks(pixels)[0]
        for shape in SHAPES
    ]
    rows, columns = np.nonzero(np.any(masks, axis=0))
    low, high = min(rows.min(), columns.min()) - 1, max(rows.max(), columns.max()) + 2
    moved = [
        (np.roll(mask, (down, right), (0, 1))[low:high, low:high].ravel(), index)
        for index, mask in enumerate(masks)
        for down in (-1, 0, 1)
        for right in (-1, 0, 1)
    ]
    canvases, shapes = zip(*moved, strict=True)
    return np.stack(canvases).astype(np.float32), np.array(shapes), int(high - low)


def _shape(crop: np.ndarray, pixels: int) -> str | None:
    """The shape that a component's bounding box shows, or None if it looks like no shape."""
    templates, shapes, side = _templates(pixels)
    height, width = crop.shape
    if max(height, width) > side:
        return None
    canvas = np.zeros((side, side), dtype=np.float32)
    top, left = (side - height) // 2, (side - width) // 2
    canvas[top : top + height, left : left + width] = crop
    shared = templates @ canvas.ravel()  # (M,)
    overlap = shared / (templates.sum(axis=1) + crop.sum() - shared)  # (M,)
    best = overlap.argmax()
    return SHAPES[shapes[best]] if overlap[best] >= LEAST_OVERLAP else None


def _names(images: Sequence[Tensor] | Tensor) -> np.ndarray:
    """(N, H, W): index of each pixel's color, -1 for the background, -2 for none."""
    images = torch.stack([torch.as_tensor(image).detach().cpu() for image in images])
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    pixels = (images.float() / scale).nan_to_num(9.0, 9.0, -9.0).permute(0, 2, 3, 1)  # (N, H, W, 3)
    colors = np.concatenate([PALETTE, np.full((1, 3), BACKGROUND, dtype=np.float32)])  # (7, 3)
    distance = (pixels[..., None, :] - torch.from_numpy(colors)).square().sum(dim=-1)  # (..., 7)
    nearest, index = distance.min(dim=-1)  # (N, H, W)
    index = torch.where(index == len(PALETTE), -1, index)
    return torch.where(nearest > TOLERANCE**2, -2, index).numpy()


def read_pictures(images: Sequence[Tensor] | Tensor) -> list[Reading]:
    """The objects of every image, (3, H, W) in uint8 or as fractions of 1, in reading order.

    Two objects of one color must not touch: they would be one component, and look like no shape.
    """
    readings = []
    for names in _names(images):
        things, side = [], len(names)
        loose = int((names != -1).sum())  # pixels that are not background, and no object's either
        least = LEAST_OVERLAP * _templates(side)[0].sum(axis=1).min()  # no smaller thing is a shape
        for color in range(len(PALETTE)):
            labels, _ = ndimage.label(names == color)
            boxes, sizes = ndimage.find_objects(labels), np.bincount(labels.ravel())
            for number in 1 + np.flatnonzero(sizes[1:] >= least):
                box = boxes[number - 1]
                crop = labels[box] == number
                if shape := _shape(crop, side):
                    y, x = ((part.start + part.stop) / 2 / side for part in box)
                    things.append(Seen(COLOUR_NAMES[color], shape, cell_of(x, y)))
                    loose -= int(crop.sum())
        readings.append(Reading(sorted(things, key=lambda seen: seen.cell), loose / names.size))
    return readings


def _credit(reading: Reading, truth: list[Seen]) -> float:
    if reading.clutter > MOST_CLUTTER:
        return 0.0
    there = {seen.cell: seen for seen in reading.things}
    found = [(want, there[want.cell]) for want in truth if want.cell in there]
    points = sum(1 + (a.color == b.color) + (a.shape == b.shape) for a, b in found)
    return points / (3 * max(len(truth), len(reading.things), 1))


def composition(completions: Sequence[Tensor], scene: Sequence[Scene], **_: Any) -> list[float]:
    """Share of the caption that a picture shows: place, color and shape, a third each per object.

    The points are divided by the number of objects wanted or seen, whichever is larger, so that
    painting more never pays. Too much clutter scores 0.
    """
    pairs = zip(read_pictures(completions), scene, strict=True)
    return [_credit(reading, wanted(truth)) for reading, truth in pairs]


def exact_composition(
    completions: Sequence[Tensor], scene: Sequence[Scene], **_: Any
) -> list[float]:
    """1 where a picture shows every object of the scene and nothing else, else 0.  Eq. (7)."""
    return [float(score == 1.0) for score in composition(completions, scene)]


def caption_truth(completions: Sequence[Any], scene: Sequence[Scene], **_: Any) -> list[float]:
    """The same credit for a text that describes the scene, by the objects that it names in full."""
    return _told(completions, map(wanted, scene))


def agreement(completions: Sequence[Any], asked: Sequence[str]) -> list[float]:
    """The same credit for a text against a caption, whatever the picture may be: needs no label."""
    return _told(completions, map(read_caption, asked))


def _told(completions: Sequence[Any], truth: Iterable[list[Seen]]) -> list[float]:
    told = [Reading(read_caption(text_of(text)), 0.0) for text in completions]
    return [_credit(reading, want) for reading, want in zip(told, truth, strict=True)]
