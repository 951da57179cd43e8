"""Scene graphs against pixels, by a reader that shares no code with the renderer; splits; speed."""

import re
import time
from collections import Counter

import numpy as np
import pytest
import torch
from torch import Generator
from worlds.reader import SHAPES, SIZES, apart, read

from minivisrl.worlds.scenes import Scene, Thing, render, sample_scenes

SPLITS = ("train", "heldout", "appearance", "composition")
COLOURS = ("red", "green", "blue", "yellow", "purple", "cyan")


def seeded(seed=0):
    return Generator().manual_seed(seed)


def cell(thing):
    """Which of the nine cells holds the centre; jitter stays inside."""
    return int(3 * thing.y) * 3 + int(3 * thing.x)


def content(scene):
    """What the split is a function of: which kind of object is in which cell."""
    return tuple(sorted((cell(t), t.color, t.shape, t.size) for t in scene.things))


def pairs(scenes):
    return {(thing.color, thing.shape) for scene in scenes for thing in scene.things}


@pytest.mark.parametrize("split", SPLITS)
def test_the_pixels_show_the_graph(split):
    """Number, order, colour, shape, size and centre of every object, read off the image."""
    scenes = [s for s in sample_scenes(400, split, seeded()) if apart(s)]
    assert len(scenes) > 90
    for scene, image in zip(scenes, render(scenes), strict=True):
        seen = read(image)
        told = [(t.color, t.shape, t.size) for t in scene.things]
        assert [(s.color, s.shape, s.size) for s in seen] == told
        for s, t in zip(seen, scene.things, strict=True):
            assert abs(s.x - t.x) < 0.6 / 32  # half a pixel
            assert abs(s.y - t.y) < 1.0 / 32  # the box of a triangle is not quite symmetric


def test_masks_and_boxes_belong_to_their_objects():
    scenes = [s for s in sample_scenes(150, "train", seeded(1)) if apart(s)]
    for scene, image in zip(scenes, render(scenes), strict=True):
        seen, masks = read(image), scene.masks()
        assert np.array_equal(masks, np.stack([s.pixels for s in seen]))
        assert (image.numpy()[:, ~masks.any(axis=0)] < 64).all()  # the rest is dark
        for thing, mask in zip(scene.things, masks, strict=True):
            rows, columns = np.nonzero(mask)
            x0, y0, x1, y1 = thing.box
            assert x0 * 32 <= columns.min() + 0.5 and columns.max() + 0.5 <= x1 * 32
            assert y0 * 32 <= rows.min() + 0.5 and rows.max() + 0.5 <= y1 * 32
            extent = max(np.ptp(rows), np.ptp(columns)) + 1
            assert (x1 - x0) * 32 - extent < 2  # tight: at most a pixel too wide on each side
            assert 0 <= x0 < x1 <= 1 and 0 <= y0 < y1 <= 1


def test_captions_name_every_object_in_reading_order():
    scenes = [s for s in sample_scenes(200, "appearance", seeded(2)) if apart(s)]
    for scene, image in zip(scenes, render(scenes), strict=True):
        words = [f"{s.size} {s.color} {s.shape}" for s in read(image)]
        assert scene.caption() == ", ".join(words)


def test_objects_do_not_overlap_unless_asked():
    def hidden(scene):
        alone = sum(Scene((t,)).masks()[0].sum() for t in scene.things)
        return alone - scene.masks().sum()

    for split in ("train", "composition"):
        assert all(hidden(s) == 0 for s in sample_scenes(150, split, seeded(3)))
    scenes = sample_scenes(150, "composition", seeded(3), overlap=True)
    assert np.mean([hidden(s) > 0 for s in scenes]) > 0.5


def test_nearer_objects_hide_farther_ones():
    """Two large squares by hand, in both orders of the list, then sampled scenes."""
    near = Thing("square", "red", "large", 0.45, 0.5, depth=0)
    far = Thing("square", "blue", "large", 0.55, 0.5, depth=1)
    for things in ((near, far), (far, near)):
        middle = render([Scene(things)])[0, :, 16, 16]
        assert middle[0] > 127 > middle[2]  # red
    for scene in sample_scenes(100, "composition", seeded(4), overlap=True):
        footprints = np.stack([Scene((thing,)).masks()[0] for thing in scene.things])
        depth = np.array([thing.depth for thing in scene.things])[:, None, None]
        assert sorted(depth.ravel()) == list(range(len(scene.things)))
        nearest = np.where(footprints, depth, 99).argmin(axis=0)
        expected = footprints & (np.arange(len(depth))[:, None, None] == nearest)
        assert np.array_equal(scene.masks(), expected)
        image = render([scene])[0].numpy()
        for thing, mask in zip(scene.things, expected, strict=True):
            alone = render([Scene((thing,))])[0].numpy()
            assert np.array_equal(image[:, mask], alone[:, mask])


def test_objects_at_one_depth_are_all_drawn():
    """Hand-made scenes often leave every depth at 0; nothing may vanish."""
    things = [Thing("cross", c, "small", x, 0.5, 0) for c, x in (("red", 0.2), ("blue", 0.8))]
    assert [s.color for s in read(render([Scene(tuple(things))])[0])] == ["red", "blue"]


def test_one_graph_at_two_resolutions():
    """16 px shows the same colours at the same places, and objects a quarter as many pixels big."""
    scenes = sample_scenes(300, "train", seeded(5))
    small, large = render(scenes, 16), render(scenes)
    assert small.shape == (300, 3, 16, 16) and large.shape == (300, 3, 32, 32)
    assert small.dtype == large.dtype == torch.uint8
    for scene, few, many in zip(scenes, small, large, strict=True):
        for thing in scene.things:
            centre = [
                image[:, int(thing.y * n), int(thing.x * n)] for image, n in ((few, 16), (many, 32))
            ]
            assert torch.equal(*centre)
    ratio = (large > 127).any(1).sum() / (small > 127).any(1).sum()
    assert ratio.item() == pytest.approx(4, rel=0.05)
    assert render(scenes[:2], 16).is_contiguous()


def test_a_batch_is_its_scenes_and_faster_than_one_by_one():
    scenes = sample_scenes(400, "composition", seeded(6), overlap=True)
    together = render(scenes)
    one_by_one = torch.cat([render([scene]) for scene in scenes])
    assert torch.equal(together, one_by_one)

    def fastest(function):
        times = []
        for _ in range(3):
            start = time.perf_counter()
            function()
            times.append(time.perf_counter() - start)
        return min(times)

    alone = fastest(lambda: [render([scene]) for scene in scenes[:100]]) / 100
    batched = fastest(lambda: render(scenes)) / 400
    assert batched < alone / 5  # seen: 8 to 12 times


def test_train_and_heldout_share_no_content():
    """All 360 one-object contents turn up, each in one split only; the same for two and three."""
    contents = {}
    for objects in ((1, 1), (2, 2), (3, 3)):
        for split in ("train", "heldout"):
            scenes = sample_scenes(4000, split, seeded(7), objects=objects)
            contents[objects, split] = {content(scene) for scene in scenes}
        assert not contents[objects, "train"] & contents[objects, "heldout"]
    heldout = contents[(1, 1), "heldout"]
    assert len(contents[(1, 1), "train"] | heldout) == 9 * 20 * 2
    assert 0.05 < len(heldout) / 360 < 0.25  # about an eighth


def test_a_split_is_a_matter_of_content_not_of_jitter_or_overlap():
    heldout = {content(s) for s in sample_scenes(3000, "heldout", seeded(8), objects=(1, 1))}
    jittered = sample_scenes(2000, "train", seeded(9), objects=(1, 1), overlap=True)
    assert not heldout & {content(scene) for scene in jittered}


def test_appearance_holds_pairs_that_no_other_split_has():
    seen = {split: pairs(sample_scenes(1500, split, seeded(10))) for split in SPLITS}
    everything = {(color, shape) for color in COLOURS for shape in SHAPES}
    unseen = everything - seen["train"]
    assert len(unseen) == 4 and len({c for c, _ in unseen}) == len({s for _, s in unseen}) == 4
    assert seen["heldout"] == seen["composition"] == seen["train"]
    assert seen["appearance"] == everything
    scenes = sample_scenes(1500, "appearance", seeded(11))
    assert all(pairs([scene]) & unseen for scene in scenes)
    # Each colour and each shape on its own is well known.
    assert {c for c, _ in seen["train"]} == set(COLOURS)
    assert {s for _, s in seen["train"]} == set(SHAPES)


def test_composition_has_more_objects_than_any_other_split():
    numbers = {
        split: Counter(len(s.things) for s in sample_scenes(1500, split, seeded(12)))
        for split in SPLITS
    }
    assert set(numbers["composition"]) == {7, 8, 9}
    for split in ("train", "heldout", "appearance"):
        assert set(numbers[split]) == {1, 2, 3, 4, 5, 6}
    assert min(numbers["train"].values()) > 1500 / 12  # no number is rare


def test_objects_and_attributes_are_spread_evenly():
    """No colour, shape, size or cell that gives an answer away: every share within 4 sd."""
    things = [t for s in sample_scenes(3000, "train", seeded(13)) for t in s.things]
    kinds = Counter((t.color, t.shape) for t in things)
    assert max(kinds.values()) / min(kinds.values()) < 1.35
    for size in SIZES:
        assert sum(t.size == size for t in things) / len(things) == pytest.approx(0.5, abs=0.02)
    cells = Counter(map(cell, things))
    assert len(cells) == 9 and max(cells.values()) / min(cells.values()) < 1.25
    assert all(
        len({cell(t) for t in s.things}) == len(s.things)
        for s in sample_scenes(50, "train", seeded())
    )
    assert all((t.vx, t.vy) == (0.0, 0.0) for t in things)


def test_the_generator_decides():
    one, other = sample_scenes(50, "train", seeded(14)), sample_scenes(50, "train", seeded(14))
    assert one == other != sample_scenes(50, "train", seeded(15))
    generator = seeded(14)
    assert sample_scenes(50, "train", generator) != sample_scenes(50, "train", generator)
    assert len(sample_scenes(1, "appearance", generator)) == 1
    assert len({content(scene) for scene in sample_scenes(200, "train", generator)}) > 150


def test_count_reads_all_words():
    scene = Scene(
        (
            Thing("circle", "red", "small", 0.2, 0.2, 0),
            Thing("circle", "red", "large", 0.5, 0.2, 1),
            Thing("cross", "red", "small", 0.8, 0.2, 2),
        )
    )
    words = {(): 3, ("red",): 3, ("circle",): 2, ("red", "small"): 2, ("blue",): 0, ("thing",): 3}
    assert {key: scene.count(*key) for key in words} == words
    assert scene.caption() == "small red circle, large red circle, small red cross"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "test"}, "split='test' is unknown; choose one of train"),
        ({"split": "train", "objects": (0, 3)}, "objects=(0, 3)"),
        ({"split": "train", "objects": (4, 3)}, "objects=(4, 3)"),
        ({"split": "composition", "objects": (7, 10)}, "objects=(7, 10)"),
    ],
)
def test_wrong_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        sample_scenes(1, generator=seeded(), **options)


@pytest.mark.parametrize(("split", "objects"), [("train", (7, 9)), ("composition", (1, 6))])
def test_the_number_of_objects_cannot_cross_splits(split, objects):
    """More than 6 objects belong to `composition` alone, or its scenes are not out of range."""
    with pytest.raises(ValueError, match="objects"):
        sample_scenes(1, split, seeded(), objects=objects)
