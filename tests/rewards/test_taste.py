"""Annotators of pictures: what each term of their taste measures, and what they choose."""

import math

import pytest
import torch
from generation.tiny import seeded

from minivisrl import UserError
from minivisrl.rewards.taste import TasteConfig, compare_pictures, looks, tastes
from minivisrl.rollout import Prompts
from minivisrl.worlds.drawings import drawing_prompts
from minivisrl.worlds.scenes import render

NOTHING = dict.fromkeys(("composition", "sharpness", "contrast", "centring", "palette"), 0.0)


def flat(value=0.06):
    return torch.full((3, 16, 16), value)


def spot(row, column, color=(1.0, 1.0, 1.0)):
    image = flat()
    image[:, row : row + 2, column : column + 2] = torch.tensor(color)[:, None, None]
    return image


def test_looks_by_hand():
    """One row of 16 pixels, black and white in turn: every step across is 1, none goes down."""
    stripes = torch.arange(16).remainder(2).expand(3, 16, 16).float()
    told = looks(torch.stack([stripes, flat(), spot(7, 7), spot(0, 0), spot(7, 7, (1, 0, 0))]))
    assert told["sharpness"].tolist()[:2] == [0.5, 0.0]
    assert told["contrast"][0] == pytest.approx(math.sqrt(0.25 * 256 / 255), abs=1e-6)
    assert told["contrast"][1] == pytest.approx(0, abs=1e-6)
    assert told["centring"][2] == pytest.approx(1, abs=1e-3) and told["centring"][3] < 0.05
    assert told["palette"][2] == 0 and told["palette"][4] == pytest.approx(4 / 256, abs=1e-6)


@pytest.mark.parametrize(
    ("term", "better", "worse"),
    [
        ("sharpness", torch.rand(3, 16, 16, generator=seeded()), flat(0.5)),
        ("contrast", spot(4, 4), flat()),
        ("centring", spot(7, 7), spot(0, 13)),
        ("palette", spot(4, 4, (1, 0, 0)), spot(4, 4)),
    ],
)
def test_every_term_is_one_weight(term, better, worse):
    scenes = drawing_prompts(2, "train", seeded())["scene"]
    cfg = TasteConfig(**NOTHING | {term: 1.0})
    first, second = tastes([better, worse], scenes, cfg)
    assert first > second
    assert tastes([better, worse], scenes, TasteConfig(**NOTHING)) == [0, 0]
    doubled = tastes([better, worse], scenes, TasteConfig(**NOTHING | {term: 2.0}))
    assert doubled == pytest.approx([2 * first, 2 * second], rel=1e-5)


def test_composition_is_the_verifiers():
    prompts = drawing_prompts(8, "train", seeded())
    right = list(render(prompts["scene"], 16).float() / 255)
    cfg = TasteConfig(**NOTHING | {"composition": 1.0})
    assert tastes(right, prompts["scene"], cfg) == [1.0] * 8
    assert max(tastes([flat()] * 8, prompts["scene"], cfg)) == 0


def test_the_annotator_takes_the_best_and_leaves_the_worst():
    prompts = drawing_prompts(6, "train", seeded())
    right = render(prompts["scene"], 16).float() / 255
    grey, noise = flat().expand(6, -1, -1, -1), torch.rand(6, 3, 16, 16, generator=seeded())
    shown = torch.stack([grey, right, noise], dim=1).flatten(0, 1)  # three for each caption
    cfg = TasteConfig(**NOTHING | {"composition": 1.0, "contrast": 0.1, "noise": 0.0})
    pairs = compare_pictures(prompts, list(shown), cfg, seeded())
    assert torch.equal(torch.stack(list(pairs.chosen)), right)
    assert torch.equal(torch.stack(list(pairs.rejected)), grey)
    assert list(pairs.prompts["prompt"]) == list(prompts["prompt"])


def test_noise_makes_mistakes_at_the_rate_of_the_logistic_model():
    """A gap of one noise: the better one wins with odds e to 1.  2,000 pairs, sd .01."""
    prompts = Prompts(
        {"prompt": ["x"] * 2000, "scene": drawing_prompts(1, "train", seeded())["scene"] * 2000}
    )
    cfg = TasteConfig(**NOTHING | {"palette": 64.0, "noise": 1.0})  # 4 of 256 pixels are red
    images = [spot(4, 4, (1, 0, 0)), spot(4, 4)] * 2000
    gap = tastes(images[:2], prompts["scene"][:2], cfg)
    assert gap[0] - gap[1] == pytest.approx(1, abs=1e-5)
    pairs = compare_pictures(prompts, images, cfg, seeded())
    right = sum(bool(torch.equal(c, images[0])) for c in pairs.chosen) / 2000
    assert right == pytest.approx(1 / (1 + math.exp(-1)), abs=0.04)


def test_noise_is_not_negative():
    with pytest.raises(UserError, match="noise=-1"):
        TasteConfig(noise=-1)
