"""The bounds on what a GRPO step may cost, as ratios measured in one process on one thread."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks import contest, vla_contest

from minivisrl.rollout import Rollout

RECORDED = Path(__file__).resolve().parents[2] / "data" / "results" / "bench.json"


def test_bounds_can_be_broken():
    name = "trl / ours, group 16"
    assert contest.within(name, 3.0) and not contest.within(name, 2.9)
    assert contest.within("ours / floor", 1.5) and not contest.within("ours / floor", 1.6)
    assert not contest.within("group 16 / group 2", 5.1)
    assert set(contest.BOUNDS) == set(contest.CONTESTS)


def test_the_fastest_turn_counts(monkeypatch):
    """The first round warms up; then each contestant has its turn in every round."""
    clock, costs = [0.0], {"a": iter([9.0, 3.0, 2.0, 4.0]), "b": iter([1.0, 5.0, 6.0, 7.0])}
    monkeypatch.setattr(contest.time, "process_time", lambda: clock[0])
    order = []

    def turn(name):
        order.append(name)
        clock[0] += next(costs[name])

    found = contest.fastest({"a": lambda: turn("a"), "b": lambda: turn("b")}, rounds=3)
    assert found == {"a": 2.0, "b": 5.0} and order == ["a", "b"] * 4


def test_the_floor_does_the_same_work():
    """As many tokens as ours, a finite loss, every parameter of the language model moves."""
    floor = contest.Floor()
    before = {name: p.detach().clone() for name, p in floor.model.named_parameters()}
    first, cache = floor.encode()
    tokens, logprobs = floor.decode(first, cache)
    assert tokens.shape == logprobs.shape == (contest.PROMPTS * contest.GROUP_SIZE, contest.TOKENS)
    floor.step()
    still = [n for n, p in floor.model.named_parameters() if p.equal(before[n])]
    assert all("vision" in name for name in still), still
    rows = {"logprobs": logprobs, "mask": torch.ones_like(logprobs), "outputs": [""] * len(tokens)}
    rollout = Rollout(contest.prompts(), {"tokens": tokens}, group_size=contest.GROUP_SIZE, **rows)
    assert contest.new_vlm(0).logprobs(rollout).detach().allclose(logprobs, atol=1e-4)


def test_what_trl_is_given_is_what_we_take():
    """The processor makes the tokens and the pixels that our policy makes."""
    pytest.importorskip("trl")
    policy, chosen = contest.new_vlm(0), contest.prompts()
    processor = contest.processor_of(policy)
    texts = ["<image>" + text for text in chosen["prompt"]]
    images = [image.permute(1, 2, 0).numpy() for image in chosen["image"]]
    theirs = processor(images=images, text=texts, padding=True, return_tensors="pt")
    mine = policy.inputs(chosen)
    assert all(theirs[name].equal(mine[name]) for name in ("input_ids", "attention_mask"))
    assert theirs["pixel_values"].allclose(mine["pixel_values"], atol=1e-5)


@pytest.mark.parametrize("name", contest.CONTESTS)
def test_ratio(name):
    if "trl" in name:
        pytest.importorskip("trl")
        pytest.importorskip("datasets")
    assert torch.get_num_threads() == 1
    ratio = contest.measure(name)
    assert contest.within(name, ratio), f"{name}: {ratio:.2f}, bounds {contest.BOUNDS[name]}"


@pytest.mark.skipif(not RECORDED.exists(), reason="python -m tests.benchmarks was not run yet")
def test_recorded_ratios():
    record = json.loads(RECORDED.read_text())
    packages = {"torch", "transformers", "trl", "stable-baselines3", "minigrid", "mujoco"}
    assert record["threads"] == 1 and set(record["versions"]) == packages
    bounds = contest.BOUNDS | vla_contest.BOUNDS
    assert set(record["ratios"]) == set(bounds)
    assert record["bounds"] == {name: list(bound) for name, bound in bounds.items()}
    assert all(contest.within(name, r, bounds) for name, r in record["ratios"].items())
