"""The transfer study: what each method trains on, that every method runs, what was recorded."""

import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from minivisrl import DATA, UserError
from minivisrl.evaluation.statistics import mean_interval
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.recipes import transfer
from minivisrl.recipes.run import RunOptions
from minivisrl.recipes.transfer import METHODS, TransferOptions, study
from minivisrl.recipes.unified import RLVRGRPO, UnifiedConfig
from minivisrl.rollout import Prompts
from minivisrl.unified.policy import new_unified
from minivisrl.unified.pretraining import DESCRIBE

TASK = UnifiedConfig(train_prompts=64, pairs=40)
ABILITIES = ("draw", "describe", "answer")


@pytest.fixture(scope="module")
def cfg() -> TransferOptions:
    return TransferOptions(task=TASK, steps=1, offline_steps=1, seeds=2, others=2)


@pytest.fixture
def policy():
    made = new_unified(0, width=32, layers=1).eval()
    with torch.no_grad():  # at initialisation all prompts look alike
        for weight in made.model.parameters():
            if weight.ndim > 1:
                weight.mul_(0.3 / weight.std())
    return made


def kinds(prompts: Prompts) -> dict[str, float]:
    """Share of every kind of prompt."""
    return {
        kind: prompts["kind"].count(kind) / len(prompts) for kind in sorted(set(prompts["kind"]))
    }


@pytest.mark.parametrize(
    ("name", "shares"),
    [
        ("understanding", {"answer": 0.5, "describe": 0.5}),
        ("generation", {"draw": 1.0}),
        ("both, joint", {"answer": 0.25, "describe": 0.25, "draw": 0.5}),
        ("control", {"answer": 0.25, "describe": 0.25, "draw": 0.5}),
        ("cycle", {"draw": 1.0}),
    ],
)
def test_what_a_method_is_trained_on(name, shares, policy, cfg):
    assert kinds(METHODS[name](policy, cfg, RunOptions()).prompts) == shares


def test_in_turn_is_a_batch_of_drawings_then_one_of_readings(policy, cfg):
    trainer = METHODS["both, in turn"](policy, cfg, RunOptions())
    args = trainer.policy, trainer.prompts, trainer.reward_fn, trainer.cfg, trainer.generator
    seen = [set(kinds(trainer.collect(*args)[0].prompts)) for _ in range(4)]
    assert seen == [{"draw"}, {"answer", "describe"}] * 2


def test_the_frozen_judge_stays_and_the_co_trained_one_moves(policy, cfg):
    fixed, moving = (
        METHODS[name](policy, cfg, RunOptions()).reward_fn
        for name in ("cycle", "cycle, co-trained")
    )
    assert moving.reader is policy and fixed.reader is not policy
    with torch.no_grad():
        policy.model.lm_head.weight.zero_()
    assert fixed.reader.model.lm_head.weight.abs().sum() > 0


def test_own_pairs_are_ranked_without_a_label(policy, cfg, monkeypatch):
    """Drawings by what the model reads in them, descriptions by the caption that was drawn.

    The stand-in draws a constant picture per sibling and reads the caption into the brightest.
    """
    level = {0: 0.0, 1: 0.3, 2: 0.6, 3: 1.0}
    captions: list[str] = []

    def rollout(prompts, size, generator):
        if prompts.columns.get("image", [None])[0] is None:
            captions.extend(prompts["prompt"])
            return SimpleNamespace(
                outputs=[
                    torch.full((3, 16, 16), level[j])
                    for _ in range(len(prompts))
                    for j in range(size)
                ]
            )
        texts = [t for c in captions[: len(prompts)] for t in ("", "red", c, "red circle top left")]
        return SimpleNamespace(outputs=texts)

    def predict(prompts):
        rows = zip(prompts["image"], [c for c in captions for _ in range(4)], strict=True)
        return [caption if image.mean() == 1 else "" for image, caption in rows]

    trainer = SimpleNamespace(policy=policy)
    monkeypatch.setattr(policy, "rollout", rollout)
    monkeypatch.setattr(policy, "predict", predict)
    monkeypatch.setattr(transfer, "offline", lambda p, pairs, *_: setattr(trainer, "pairs", pairs))
    METHODS["own pairs"](policy, cfg, RunOptions())
    pairs = trainer.pairs
    drawn = [i for i, image in enumerate(pairs.prompts["image"]) if image is None]
    told = [i for i in range(len(pairs)) if i not in drawn]
    assert len(drawn) == len(told) == 20
    assert all(pairs.chosen[i].mean() == 1 and pairs.rejected[i].mean() < 1 for i in drawn)
    assert [pairs.chosen[i] for i in told] == captions
    assert {pairs.prompts["prompt"][i] for i in told} == {DESCRIBE}


def test_own_pictures_are_described_by_the_captions_they_were_drawn_from(policy, cfg):
    trainer = METHODS["own pictures"](policy, cfg, RunOptions())
    rollout = trainer.draw(trainer.generator, 0)
    assert set(rollout.prompts["prompt"]) == {DESCRIBE}
    assert rollout.outputs == list(rollout.prompts["answer"])
    again, drawn = transfer.drawings(policy, TASK.pairs, 1, RunOptions().generator(3))
    of = dict(zip(again["prompt"], drawn, strict=True))
    row = rollout.outputs.index(next(t for t in rollout.outputs if again["prompt"].count(t) == 1))
    assert torch.equal(rollout.prompts["image"][row], of[rollout.outputs[row]])


def test_measuring_knows_both_abilities_and_a_base_has_not_moved(monkeypatch):
    base = transfer.unified.load_policy(TASK, RunOptions())
    told = transfer.measure(base, base, 48)
    assert told["read"] == pytest.approx((told["describe"] + told["answer"]) / 2)
    assert told["imbalance"] == pytest.approx(abs(told["read"] - told["draw"]))
    assert told["cycle"] == told["own_cycle"] and 0 < told["cycle"] < 1
    assert (told["kl_draw"], told["kl_describe"]) == (0.0, 0.0)
    assert all(0 <= told[name] <= 1 for name in ABILITIES)


def test_every_method_runs_and_others_keep_their_rows(tmp_path, monkeypatch):
    """Two small studies into one file: rows of methods that are not run again stay."""

    def moved(policy, base):
        pairs = zip(policy.parameters(), base.parameters(), strict=True)
        return {"draw": sum((a - b).abs().sum().item() for a, b in pairs)}

    small = OnlineConfig(batch_size=8, group_size=4)
    monkeypatch.setattr(transfer.unified, "RLVRGRPO", lambda: replace(RLVRGRPO(), trainer=small))
    monkeypatch.setattr(transfer, "measure", moved)
    path = tmp_path / "transfer.json"
    few = {"seeds": 2, "others": 2, "steps": 1, "offline_steps": 1, "out": str(path), "task": TASK}
    study(TransferOptions(methods=("generation", "control"), **few))
    first = [run for run in json.loads(path.read_text())["runs"] if run["method"] == "generation"]
    study(TransferOptions(methods=tuple(m for m in METHODS if m != "generation"), **few))
    book = json.loads(path.read_text())
    assert list(book["table"]) == ["base", *METHODS]
    assert [run for run in book["runs"] if run["method"] == "generation"] == first
    for name in METHODS:
        rows = [run for run in book["runs"] if run["method"] == name]
        assert [run["seed"] for run in rows] == [0, 1]
        assert all(run["draw"] > 0 for run in rows), name


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"seeds": 1}, "needs seeds"),
        ({"others": 0}, "needs seeds"),
        ({"methods": ("x",)}, "choose from"),
    ],
)
def test_options_out_of_range(wrong, words):
    with pytest.raises(UserError, match=words):
        TransferOptions(**wrong)


# ------------------------------------------------------------------------------------------------
# What was recorded.


def test_the_recorded_study():
    """Every method, with its seeds; the table is the mean over runs; the base is one model."""
    book = json.loads((DATA / "results" / "transfer.json").read_text())
    assert book["command"] == "python -m minivisrl.recipes.transfer"
    assert list(book["table"]) == ["base", *METHODS]
    for name, row in book["table"].items():
        runs = [run for run in book["runs"] if run["method"] == name]
        seeds = 5 if name in ("base", *transfer.MATRIX) else 3
        assert [run["seed"] for run in runs] == list(range(seeds))
        for metric in ("draw", "read", "cycle", "kl_draw"):
            expected = mean_interval([run[metric] for run in runs])
            assert row[metric] == pytest.approx(list(expected), abs=1e-4)
    assert len({run["draw"] for run in book["runs"] if run["method"] == "base"}) == 1
    assert book["table"]["base"]["kl_draw"][0] == pytest.approx(0, abs=1e-6)


def test_what_the_recorded_study_shows():
    """Each ability is lifted by its own reward; what has no meaning lifts neither."""
    book = json.loads((DATA / "results" / "transfer.json").read_text())
    base = book["table"]["base"]

    def gains(method: str, metric: str) -> list[float]:
        return [r[metric] - base[metric][0] for r in book["runs"] if r["method"] == method]

    assert mean_interval(gains("generation", "draw")).low > 0
    assert mean_interval(gains("understanding", "read")).low > 0
    for metric in ("draw", "read"):
        assert mean_interval(gains("control", metric)).mean < 0.01
