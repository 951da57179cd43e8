"""Digits: every label against scikit-learn's own, by looking the pixels up among its scans."""

from collections import Counter, defaultdict

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from torch import Generator

from minivisrl.worlds.digits import KINDS, ask_digits, digit_prompts

BUNCH = load_digits()
INDEX = defaultdict(list)
for number, scan in enumerate(BUNCH.images.astype(np.uint8)):
    INDEX[scan.tobytes()].append(number)
ALL, SPLITS = (
    ("digit", "digit_sum", "digit_larger"),
    ("train", "heldout", "appearance", "composition"),
)
FIRST_HELD_OUT = 1347  # three quarters of 1797


def drawn(count, split, seed=0, kinds=ALL):
    return digit_prompts(count, kinds, split, Generator().manual_seed(seed))


def scans_of(image, places):
    """Indices of the scans an image shows: double-sized pixels, back to scikit-learn's 0..16."""
    corners = [(8, 8)] if places == 1 else [(8, 0), (8, 16)]
    assert torch.equal(image[0], image[1]) and torch.equal(image[0], image[2])
    grey = image[0].numpy()
    found, rest = [], grey.copy()
    for top, left in corners:
        tile = grey[top : top + 16, left : left + 16]
        assert np.array_equal(tile, tile[::2, ::2].repeat(2, 0).repeat(2, 1))
        found.append(INDEX[np.round(tile[::2, ::2] * (16 / 255)).astype(np.uint8).tobytes()])
        rest[top : top + 16, left : left + 16] = 0
    assert not rest.any()
    return found


def test_every_scan_is_one_of_a_kind():
    """Else an index could not tell the splits apart."""
    assert len(INDEX) == len(BUNCH.images) == 1797
    assert sorted(KINDS) == sorted(ALL)


@pytest.mark.parametrize("split", SPLITS)
def test_pixels_labels_and_answers_agree_with_scikit_learn(split):
    prompts = drawn(600, split)
    names = ("image", "kind", "labels", "prompt", "answer", "steps")
    for image, kind, labels, prompt, answer, steps in zip(
        *map(prompts.__getitem__, names), strict=True
    ):
        image = 255 - image if split == "appearance" else image
        ((scans),) = (scans_of(image, 1 if kind == "digit" else 2),)
        assert all(len(scan) == 1 for scan in scans)
        scans = [scan[0] for scan in scans]
        assert all((scan < FIRST_HELD_OUT) == (split == "train") for scan in scans)
        truth = [int(BUNCH.target[scan]) for scan in scans]
        assert list(labels) == truth and steps == " ".join(map(str, truth))
        expected = {"digit": truth[0], "digit_sum": sum(truth), "digit_larger": sorted(truth)[-1]}
        assert answer == str(expected[kind])
        word = {"digit": "what digit", "digit_sum": "sum", "digit_larger": "larger"}[kind]
        assert word in prompt
        assert kind != "digit_larger" or truth[0] != truth[1]


def test_composition_pairs_are_never_trained_on():
    pairs = {
        split: set(drawn(3000, split, kinds=("digit_sum",), seed=1)["labels"]) for split in SPLITS
    }
    assert pairs["train"] == pairs["heldout"] == pairs["appearance"]
    assert not pairs["train"] & pairs["composition"]
    assert len(pairs["train"]) == 80 and len(pairs["composition"]) == 20
    for place in (0, 1):  # every digit is known in each place, and recombined in each place
        assert {pair[place] for pair in pairs["train"]} == set(range(10))
        assert {pair[place] for pair in pairs["composition"]} == set(range(10))
    larger = drawn(2000, "train", kinds=("digit_larger",), seed=2)["labels"]
    assert not set(larger) & pairs["composition"]


def test_appearance_is_dark_on_light():
    light = drawn(90, "appearance")["image"].float().mean()
    dark = drawn(90, "heldout")["image"].float().mean()
    assert dark < 60 and light > 195


def test_kinds_take_turns_and_the_generator_decides():
    prompts = drawn(90, "train")
    assert Counter(prompts["kind"]) == {kind: 30 for kind in ALL}
    assert prompts["image"].shape == (90, 3, 32, 32) and prompts["image"].dtype == torch.uint8
    assert torch.equal(drawn(9, "train", 3)["image"], drawn(9, "train", 3)["image"])
    assert drawn(90, "train", 3)["labels"] != drawn(90, "train", 4)["labels"]
    digits = Counter(drawn(3000, "train", kinds=("digit",))["answer"])
    assert len(digits) == 10 and max(digits.values()) < 0.14 * 3000


def test_worked_questions():
    assert ask_digits("digit_sum", (9, 8)).answer == "17"
    assert (
        ask_digits("digit_larger", (3, 8)).answer
        == ask_digits("digit_larger", (8, 3)).answer
        == "8"
    )
    assert ask_digits("digit", (0,)).answer == "0"


def test_unknown_kinds_and_splits_are_named():
    with pytest.raises(ValueError, match=r"digit questions \['digit_product'\] are unknown"):
        drawn(2, "train", kinds=("digit", "digit_product"))
    with pytest.raises(ValueError, match="split='test' is unknown"):
        drawn(2, "test")
