"""The slider of chapter 0: what it says of an answer, and the figure it draws from it."""

import importlib
import textwrap

import matplotlib.pyplot as plt
import pytest
import torch

from minivisrl.lab.build import NOTEBOOKS
from minivisrl.rollout import Prompts

THINKS = "<think> red 2 blue 1 </think> <answer> 3 </answer>"


@pytest.fixture
def ch00(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch00")
    plt.close("all")


@pytest.fixture
def prompts():
    return Prompts(
        {
            "image": torch.zeros(3, 3, 32, 32, dtype=torch.uint8),
            "prompt": ["how many ?"] * 3,
            "answer": ["3", "1", "0"],
            "kind": ["total", "difference", "total"],
            "steps": ["red 2 blue 1", "red 2 blue 1", "cross 0 circle 0"],
        }
    )


def test_short_texts(ch00):
    assert ch00.short_question("total", "red 2 blue 1") == "red + blue?"
    assert ch00.short_question("difference", "cross 2 square 0") == "cross - square?"
    assert ch00.short_output(THINKS) == "red 2 blue 1, so 3"
    assert ch00.short_output("<answer> 3 </answer>") == "3"
    assert ch00.short_output("") == "no answer"
    assert ch00.short_output("<think> red 2 blue") == "no answer"
    assert ch00.short_output("</think> <think> <answer> 1 </answer>") == "1"


def test_full_caption_keeps_an_answer_on_one_line(ch00):
    question, output = (
        "how many more red things than blue things are there ?",
        "<answer> 1 </answer>",
    )
    lines = textwrap.wrap(ch00.full_caption(question, output, "0"), 27)
    assert lines[-1].split() == ["<answer>", "1", "</answer>", "not", "0"]
    assert ch00.full_caption(question, output, "1").endswith("</answer>\xa0right")
    assert ch00.full_caption(question, THINKS, "3").startswith("how many more red things than blue")


def captions(figure):
    return [" ".join(axis.get_xlabel().split()) for axis in figure.axes]


def test_rows_are_step_0_and_the_chosen_step(ch00, prompts):
    story = {0: ["<answer> 2 </answer>"] * 3, 7: [THINKS, "<answer> 1 </answer>", ""]}
    figure = ch00.story_figure(7, story, prompts, shown=[0, 1, 2])
    assert figure.get_suptitle() == "step 0: 0 of 3 right; step 7: 2 of 3 right"
    assert captions(figure) == [
        "red + blue? 2 [wrong: 3]",
        "red - blue? 2 [wrong: 1]",
        "cross + circle? 2 [wrong: 0]",
        "red + blue? red 2 blue 1, so 3 [right]",
        "red - blue? 1 [right]",
        "cross + circle? no answer [wrong: 0]",
    ]
    colors = [axis.xaxis.label.get_color() for axis in figure.axes]
    assert len(set(colors[:3])) == 1 and colors[3] == colors[4] != colors[5] == colors[0]
    assert [axis.get_ylabel() for axis in figure.axes[::3]] == ["step 0", "step 7"]


def test_figure_is_a_pure_function(ch00, prompts):
    story = {0: [THINKS] * 3}
    first, second = (ch00.story_figure(0, story, prompts, shown=[2, 0]) for _ in range(2))
    assert first is not second and captions(first) == captions(second)
    assert len(first.axes) == 4 and story == {0: [THINKS] * 3}
    assert [text.split("?")[0] for text in captions(first)] == ["cross + circle", "red + blue"] * 2
