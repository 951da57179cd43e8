"""A learned reward without its constant per caption: what siblings share, PPO must not see."""

from types import SimpleNamespace

import pytest
import torch
from torch import Generator

from minivisrl.optimization.advantages import group_advantages
from minivisrl.recipes.generation import Relative
from minivisrl.rollout import Prompts

OFFSETS = {"red circle top left": 5.0, "blue square bottom right": -3.0}


def model(completions, prompts, **_):
    """Brightness, plus a constant that only the caption decides."""
    return [
        image.mean().item() + OFFSETS[text]
        for image, text in zip(completions, prompts, strict=True)
    ]


def pictures(levels):
    return [torch.full((3, 4, 4), level) for level in levels]


class Painter:
    """Four pictures a caption: brightness 0, 0.2, 0.4, 0.6."""

    def rollout(self, prompts, size, generator):
        assert size == 4
        return SimpleNamespace(outputs=pictures([0.0, 0.2, 0.4, 0.6] * len(prompts)))


def test_the_level_of_a_caption_is_the_mean_of_the_bases_pictures():
    prompts = Prompts({"prompt": list(OFFSETS), "objects": [1, 2]})
    levels = Relative(model).levels(Painter(), prompts, Generator())
    assert levels["usual"] == pytest.approx([5.3, -2.7])
    assert levels["objects"] == [1, 2]


def test_the_constant_is_gone_and_siblings_do_not_notice():
    prompts = Prompts({"prompt": list(OFFSETS)})
    known = Relative(model).levels(Painter(), prompts, Generator()).repeat(2).columns
    drawn = pictures([0.1, 0.5, 0.1, 0.5])
    plain = model(drawn, known["prompt"])
    scores = Relative(model)(drawn, usual=known["usual"], prompts=known["prompt"])
    assert scores == pytest.approx([-0.2, 0.2, -0.2, 0.2], abs=1e-6)
    groups = [group_advantages(torch.tensor(r).view(2, 2)) for r in (plain, scores)]
    torch.testing.assert_close(*groups, atol=1e-3, rtol=1e-3)


def test_many_captions_keep_their_order():
    """More captions than one batch draws at once: each still gets its own level."""
    texts = [list(OFFSETS)[i % 2] for i in range(300)]
    levels = Relative(model).levels(Painter(), Prompts({"prompt": texts}), Generator())
    assert levels["usual"] == pytest.approx([OFFSETS[text] + 0.3 for text in texts])
