"""The cycle as a reward: what it says of perfect, wrong and foolable worlds."""

import math

import pytest
import torch
from torch import Generator

from minivisrl.rewards.pictures import agreement
from minivisrl.rollout import Prompts
from minivisrl.unified.cycle import CycleReward, gamed, to_describe
from minivisrl.unified.policy import new_unified
from minivisrl.unified.pretraining import DESCRIBE
from minivisrl.worlds.drawings import caption, drawing_scenes
from minivisrl.worlds.scenes import render

SCENES = drawing_scenes(6, "train", Generator().manual_seed(0))
CAPTIONS, PICTURES = list(map(caption, SCENES)), list(render(SCENES, 16))


class Reader:
    """Describes a picture by looking it up; says `default` of pictures that it does not know."""

    def __init__(self, default: str = "") -> None:
        self.default, self.asked = default, []

    def predict(self, prompts: Prompts) -> list[str]:
        self.asked.append(prompts)
        known = {
            picture.numpy().tobytes(): text
            for picture, text in zip(PICTURES, CAPTIONS, strict=True)
        }
        return [known.get(i.numpy().tobytes(), self.default) for i in prompts["image"]]


def test_a_drawing_that_is_read_as_its_caption_scores_1():
    reader = Reader()
    assert CycleReward(reader)(completions=PICTURES, prompts=CAPTIONS, scene=SCENES) == [1.0] * 6
    assert list(reader.asked[0]["prompt"]) == [DESCRIBE] * 6


def test_another_captions_drawing_scores_less():
    """Shifted by one: each score is what the two captions have in common, by hand."""
    scores = CycleReward(Reader())(completions=PICTURES[1:], prompts=CAPTIONS[:-1])
    for score, told, asked in zip(scores, CAPTIONS[1:], CAPTIONS[:-1], strict=True):
        named = [
            dict((p.split(" ", 2)[2], p.split()[:2]) for p in t.split(", ")) for t in (told, asked)
        ]
        shared = set(named[0]) & set(named[1])
        points = sum(
            1 + sum(a == b for a, b in zip(named[0][c], named[1][c], strict=True)) for c in shared
        )
        assert score == pytest.approx(points / (3 * max(map(len, named)))) and score < 1


def test_a_reader_that_hallucinates_the_caption_is_fooled():
    """Noise instead of a picture: the cycle says 1, the pixels say 0.  That is being gamed."""
    reader = Reader(default=CAPTIONS[0])
    scores = CycleReward(reader)([torch.rand(3, 16, 16)], [CAPTIONS[0]])
    assert scores == [1.0] and gamed(scores, [0.0]) == 1.0


def test_agreement_reads_what_is_named_in_full():
    asked = "red circle top left, blue square bottom right"
    assert agreement([asked, "", "red circle top left"], [asked] * 3) == [1.0, 0.0, 0.5]
    assert agreement(["red square top left"], ["red circle top left"]) == [pytest.approx(2 / 3)]
    swapped = "blue square bottom right, red circle top left"
    assert agreement([swapped], [asked]) == [1.0]
    assert agreement([asked], ["red circle top left"]) == [0.5]  # naming more never pays
    assert agreement(["", asked], ["draw something", "draw something"]) == [0.0, 0.0]


def test_gamed_counts_only_what_the_cycle_holds_to_be_perfect():
    assert gamed([1, 1, 1, 0.5, 0], [1, 0.5, 0, 0, 1]) == pytest.approx(2 / 3)
    assert gamed([1, 1], [1, 1]) == 0.0
    assert math.isnan(gamed([0.5], [0.0]))


def test_the_readers_weights_decide_and_no_gradient_reaches_them():
    policy = new_unified(0, width=32, layers=1).eval()
    shown = to_describe(PICTURES)
    told = policy.predict(shown)
    scores = CycleReward(policy)(PICTURES, CAPTIONS)
    assert scores == agreement(told, CAPTIONS)
    assert all(p.grad is None for p in policy.parameters())
