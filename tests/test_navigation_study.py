"""The study of agents: two ways to spend the same seconds, variants, claims, and a resumed file."""

import json
from dataclasses import replace

import pytest
from vla.tiny import agent

from minivisrl import UserError
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.recipes import navigation_study
from minivisrl.recipes.navigation_methods import METHODS, PLAIN_PPO, MethodOptions
from minivisrl.recipes.navigation_study import RESULTS, RL, SFT, StudyOptions, answers, study
from minivisrl.recipes.vla import RLVRPPO, NavigateConfig
from minivisrl.vla.pretraining import DemonstratorConfig

SPLITS = ("heldout", "appearance", "semantics", "execution")
TASK = NavigateConfig(train_prompts=6, eval_prompts=3)
FEW = OnlineConfig(batch_size=2, group_size=2)


@pytest.fixture
def tiny(tmp_path, monkeypatch):
    """A study of two methods beside PPO and SFT, on a tiny base."""
    agent().save(tmp_path / "base")
    mine = {name: METHODS[name] for name in ("grpo", "ppo")}
    monkeypatch.setattr(navigation_study, "METHODS", mine)
    common = {"checkpoint": str(tmp_path / "base"), "task": TASK, "trainer": FEW}
    return StudyOptions(
        seeds=2,
        few=2,
        out=str(tmp_path / "navigation.json"),
        ppo=MethodOptions(name="ppo", episodes=8, **common),
        demonstrators=DemonstratorConfig(stumble=0.0, mishear=0.0, batch_size=2),
        variants=MethodOptions(name="grpo", episodes=4, **common),
    )


def test_the_study_fills_its_file_and_goes_on(tiny, monkeypatch):
    """Equal seconds for PPO and SFT, equal episodes for variants; what is there is kept."""
    book = study(tiny)
    assert book == json.loads(open(tiny.out).read())
    done = [(row["seed"], row["method"]) for row in book["runs"]]
    assert done == [(s, m) for s in range(2) for m in (RL, SFT)] + [
        (s, m) for s in range(2) for m in ("grpo", "ppo")
    ]
    assert list(book["base"]) == list(SPLITS) and list(book["table"]) == [RL, SFT, "grpo", "ppo"]
    rows = {(row["seed"], row["method"]): row for row in book["runs"]}
    for seed in range(2):
        assert rows[seed, RL]["episodes"] == 2 * 4 and rows[seed, SFT]["episodes"] == 6
        assert rows[seed, SFT]["seconds"] >= rows[seed, RL]["seconds"]
        assert rows[seed, "grpo"]["episodes"] == rows[seed, "ppo"]["episodes"] == 4
    assert set(book["answers"]) >= {"what RL4VLA reports", "ppo or grpo"}
    assert "grpo or None" not in book["answers"]

    monkeypatch.setattr(navigation_study, "supervised", None)  # must not be called
    again = json.loads(open(tiny.out).read())
    again["runs"] = [row for row in again["runs"] if row["method"] != "ppo"]
    open(tiny.out, "w").write(json.dumps(again))
    told = study(tiny)
    assert len(told["runs"]) == 8
    for row in told["runs"]:
        assert row | {"seconds": 0} == rows[row["seed"], row["method"]] | {"seconds": 0}
    other = replace(tiny, demonstrators=DemonstratorConfig())
    with pytest.raises(UserError, match="other settings"):
        study(other)


def told(gaps, noise=(0.0, 0.01, -0.01)):
    """Runs in which PPO is ahead of SFT by these gaps, give or take, in the order of SPLITS."""
    runs = []
    for seed, error in enumerate(noise):
        ahead = [0.5 + gap + error * (1 + i) for i, gap in enumerate(gaps)]
        for name, scores in ((RL, ahead), (SFT, [0.5] * 4)):
            scores = dict(zip(SPLITS, scores, strict=True))
            runs.append({"seed": seed, "method": name, **scores})
        runs += [{"seed": seed, "method": m, "heldout": 0.5 + error} for m in METHODS]
    return runs


@pytest.mark.parametrize(
    ("gaps", "parts", "whole"),
    [
        ((0.0, 0.0, 0.2, 0.6), ("no difference", "more", "more", "more"), "reproduced"),
        ((0.0, 0.0, 0.6, 0.2), ("no difference", "more", "more", "less"), "not reproduced"),
        ((0.0, 0.3, 0.2, 0.6), ("more", "more", "more", "more"), "not reproduced"),
        ((0.0, 0.0, -0.3, 0.6), ("no difference", "less", "more", "more"), "not reproduced"),
        ((0.0, 0.0, 0.03, 0.6), ("no difference", "inconclusive", "more", "more"), "inconclusive"),
    ],
)
def test_the_claim_is_the_sum_of_its_parts(gaps, parts, whole):
    """Level on appearance, ahead on semantics, on execution, and by more there."""
    found = answers(told(gaps))
    names = [f"PPO or SFT, {s}" for s in ("appearance", "semantics", "execution")]
    names += ["PPO ahead by more on execution than on semantics"]
    assert tuple(found[name]["verdict"] for name in names) == parts
    assert found["what RL4VLA reports"] == {"it is": whole}
    assert "it is" not in found["PPO or SFT, heldout"]
    assert found["PPO or SFT, execution"]["difference"][0] == pytest.approx(gaps[3], abs=1e-6)
    rivals = {f"{name} or {m.rival}" for name, m in METHODS.items() if m.rival}
    assert rivals < set(found) and all(found[r]["verdict"] == "no difference" for r in rivals)


def test_pairs_are_of_one_seed_whatever_the_order_of_the_file():
    runs = told((0.1, 0.0, 0.2, 0.6))
    assert answers(runs[::-1]) == answers(runs)


def test_ppo_is_that_of_the_recipe():
    """From the same base, on as many levels, batches and episodes."""
    recipe, mine = RLVRPPO(), StudyOptions().ppo
    assert mine.episodes == recipe.steps * 32 * 8 and mine.name == "ppo"
    assert PLAIN_PPO.cfg == recipe.optimization
    assert replace(mine.task, eval_prompts=recipe.task.eval_prompts) == recipe.task
    assert mine.trainer == recipe.trainer


def test_the_study_needs_two_seeds():
    with pytest.raises(UserError, match="seeds >= 2"):
        StudyOptions(few=1)


def test_the_recorded_answers_follow_from_the_recorded_runs():
    if not RESULTS.exists():
        pytest.skip("the study has not been recorded yet")
    book = json.loads(RESULTS.read_text())
    assert len({run["seed"] for run in book["runs"] if run["method"] == SFT}) >= 5
    assert book["answers"] == answers(book["runs"])
