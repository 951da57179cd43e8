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
