"""The study of what helps a denoiser: every method runs, from one base, on as many samples."""

import json
from dataclasses import replace

import pytest

from minivisrl import UserError
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.recipes.denoising_study import (
    ALL,
    FEW,
    LONGER,
    QUESTIONS,
    RESULTS,
    StudyOptions,
    answers,
    methods,
    study,
    verdict,
)
from minivisrl.recipes.generation import RLVRGRPO, DrawConfig

TASK = DrawConfig(train_prompts=8, eval_prompts=6, denoising_steps=6, eval_steps=2)
BASE = replace(RLVRGRPO(), trainer=OnlineConfig(batch_size=2, group_size=2), task=TASK)


def test_the_methods_differ_in_one_thing_from_the_first():
    first, *others = methods(BASE).values()
    assert first.optimization == others[1].optimization != others[0].optimization
    assert first.task == others[0].task != others[1].task
    assert {config.trainer for config in (first, *others)} == {BASE.trainer}
    assert replace(others[1].task, scored=first.task.scored) == first.task


def test_every_method_is_there_for_every_seed(tmp_path):
    out = tmp_path / "denoising.json"
    study(StudyOptions(steps=1, seeds=2, out=str(out), base=BASE))
    book = json.loads(out.read_text())
    names = [*methods(BASE), LONGER]
    assert list(book["table"]) == names and list(book["answers"]) == list(QUESTIONS)
    assert [(r["seed"], r["method"]) for r in book["runs"]] == [
        (seed, name) for seed in range(2) for name in names
    ]
    assert len({run["before"] for run in book["runs"]}) == 1  # one base, one held-out set
    for name in names:
        seconds = [run["seconds"] for run in book["runs"] if run["method"] == name]
        assert book["table"][name]["seconds"][0] == pytest.approx(sum(seconds) / 2, abs=1e-3)
    for seed in range(2):
        rows = {r["method"]: r for r in book["runs"] if r["seed"] == seed}
        assert all(rows[name]["steps"] == 1 for name in methods(BASE))
        assert rows[LONGER]["seconds"] >= max(rows[FEW]["seconds"], rows[ALL]["seconds"])
        assert rows[LONGER]["steps"] > 1 or rows[LONGER] == rows[FEW] | {"method": LONGER}


STEADY = [0.40, 0.42, 0.38, 0.41, 0.39]


@pytest.mark.parametrize(
    ("gaps", "margin", "word"),
    [
        ([0.10, 0.12, 0.09, 0.11, 0.08], 0.05, "higher"),  # .100 +- .020
        ([-0.10, -0.12, -0.09, -0.11, -0.08], 0.05, "lower"),
        ([0.01, -0.01, 0.02, -0.02, 0.00], 0.05, "equal"),  # 90 %: .000 +- .015
        ([0.01, -0.01, 0.02, -0.02, 0.00], 0.014, "open"),
        ([0.01, -0.01, 0.02, -0.02, 0.00], None, "open"),
        ([0.10, -0.08, 0.06, -0.11, 0.02], 0.05, "open"),  # -.002 +- .11
    ],
)
def test_the_verdict_follows_from_the_intervals(gaps, margin, word):
    """Widths by hand: t = 2.776 (95 %) or 2.132 (90 %) times the standard error of five."""
    first = [x + gap for x, gap in zip(STEADY, gaps, strict=True)]
    assert verdict(first, STEADY, margin) == word
    mirrored = {"higher": "lower", "lower": "higher"}
    assert verdict(STEADY, first, margin) == mirrored.get(word, word)


def test_seeds_are_compared_pair_by_pair():
    """Seeds differ by far more than methods do, and always in the same way."""
    first = [0.1, 0.3, 0.5, 0.7, 0.9]
    assert verdict(first, [x - 0.01 - 0.001 * i for i, x in enumerate(first)]) == "higher"


@pytest.mark.skipif(not RESULTS.exists(), reason="the study has not been recorded")
def test_the_recorded_answers_follow_from_the_recorded_runs():
    book = json.loads(RESULTS.read_text())
    assert len({run["seed"] for run in book["runs"]}) >= 5
    assert book["answers"] == answers(book["runs"])
    few, every = (book["table"][name] for name in (FEW, ALL))
    assert few["steps"] == every["steps"]


@pytest.mark.parametrize("wrong", [{"steps": 0}, {"seeds": 1}])
def test_options_out_of_range(wrong):
    with pytest.raises(UserError, match="the study needs"):
        StudyOptions(**wrong)
