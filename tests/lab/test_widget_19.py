"""Chapter 19: films by hand, the step-through figure, and the corridor against slower ways."""

import importlib

import matplotlib.pyplot as plt
import pytest
import torch
from vla.tiny import agent, level, prompts_of, seeded

from minivisrl.lab.build import NOTEBOOKS
from minivisrl.optimization import PPO, PPOConfig
from minivisrl.rewards.timing import decayed_agreement
from minivisrl.vla.navigation import ACTIONS, Episode

LEFT, RIGHT, FORWARD = range(3)


@pytest.fixture
def ch19(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch19")
    plt.close("all")


@pytest.fixture
def film(ch19):
    """Three actions towards the red key, by hand."""
    episode = Episode(level(("go", 0)), (LEFT, RIGHT, FORWARD), success=True)
    probs = torch.tensor([[0.5, 0.1, 0.4, 0, 0, 0], [0, 1.0, 0, 0, 0, 0], [0, 0, 1.0, 0, 0, 0]])
    values, advantages = torch.tensor([0.4, 0.5, 0.8]), torch.tensor([0.3, 0.4, 0.2])
    return ch19.Film(episode, episode.frames(), probs, values, advantages, group=-0.5)


@pytest.mark.parametrize("step", [0, 2])
def test_a_step_shows_its_frame_its_action_and_its_place(ch19, film, step):
    figure = ch19.step_figure([film], 0, step)
    seen, odds, worth = figure.axes
    assert (seen.images[0].get_array() == film.frames[step].permute(1, 2, 0).numpy()).all()
    assert seen.get_title() == f"agent 0, frame {step} of 3"
    assert [bar.get_width() for bar in odds.patches] == pytest.approx(film.probs[step].tolist())
    assert odds.get_title() == f"it does: {ACTIONS[film.episode.actions[step]]}"
    lines = {line.get_label(): line.get_ydata() for line in worth.lines}
    assert list(lines["value"]) == pytest.approx([0.4, 0.5, 0.8])
    assert list(lines["advantage, GAE"]) == pytest.approx([0.3, 0.4, 0.2])
    assert list(lines["advantage, GRPO"]) == [-0.5, -0.5]
    assert list(worth.lines[-1].get_xdata()) == [step, step]
    assert figure.get_suptitle() == "go to the red key: done in 3"


def test_the_chosen_action_stands_out(ch19, film):
    odds = ch19.step_figure([film], 0, 0).axes[1]
    inks = {bar.get_facecolor() for i, bar in enumerate(odds.patches) if i != LEFT}
    assert len(inks) == 1 and odds.patches[LEFT].get_facecolor() not in inks


@pytest.mark.parametrize("step", [3, 99])
def test_behind_the_end_nothing_is_chosen(ch19, film, step):
    seen, odds, _ = ch19.step_figure([film], 0, step).axes
    assert (seen.images[0].get_array() == film.frames[-1].permute(1, 2, 0).numpy()).all()
    assert odds.get_title() == "done in 3" and not any(bar.get_width() for bar in odds.patches)


def test_films_hold_what_ppo_computes(ch19):
    """Values and advantages frame by frame are those of PPO's Compare; GRPO's sum to zero."""
    policy, prompts = agent(), prompts_of(level(("go", 0)), level(("pick", 1)))
    policy.add_value_head(seeded(1))
    told = ch19.films(policy, prompts, 3, seeded(2))
    rollout = policy.rollout(prompts, 3, seeded(2))
    rewards = torch.tensor([float(episode.success) for episode in rollout.outputs])
    cfg = PPOConfig(kl_coef=0.0, gamma=0.98, normalize=False)
    batch = PPO(cfg).compare(policy, None, rollout, rewards)
    for row, film in enumerate(told):
        steps = film.episode.steps
        assert film.episode == rollout.outputs[row] and len(film.frames) == steps + 1
        assert torch.allclose(film.advantages, batch.advantages[row, :steps], atol=1e-5)
        assert torch.allclose(film.values, batch.values[row, :steps], atol=1e-5)
        chosen = film.probs[range(steps), film.episode.actions].log()
        assert torch.allclose(chosen, rollout.logprobs[row, :steps], atol=1e-4)
    for group in (told[:3], told[3:]):
        assert sum(film.group for film in group) == pytest.approx(0, abs=1e-5)


def test_a_strip_is_labelled_frame_by_frame(ch19, film):
    axes = ch19.strip_figure([film, film], ["before", "after"], columns=8).axes
    told = [axis.get_xlabel() for axis in axes[:4]]
    assert told == ["0: left\n0.50", "1: right\n1.00", "2: forward\n1.00", "3: end\ndone"]
    assert [axes[0].get_ylabel(), axes[8].get_ylabel()] == ["before", "after"]
    assert not any(axis.images for axis in axes[4:8])


@pytest.mark.parametrize(("steps", "times"), [(3, [0, 1, 2, 3]), (10, [0, 3, 7, 10])])
def test_a_strip_begins_and_ends_with_the_episode(ch19, steps, times):
    assert ch19.shown_times(steps, 4) == times


def test_chance_is_what_walkers_do(ch19):
    """Exact chance of success against 20,000 sampled walks with other odds in every cell."""
    logits = torch.tensor([[0.3, -0.2, 0.8]])
    exact = ch19.chance(logits, 3, 7).item()
    dice, done = seeded(0), 0
    place, odds = (
        torch.zeros(20_000, dtype=torch.long),
        torch.cat([logits.sigmoid()[0], torch.ones(1)]),
    )
    for _ in range(7):
        on = torch.rand(20_000, generator=dice) < odds[place]
        place = torch.where(place == 3, place, (place + 2 * on.long() - 1).clamp(min=0))
    done = (place == 3).float().mean().item()
    assert exact == pytest.approx(done, abs=4 * (exact * (1 - exact) / 20_000) ** 0.5)


def test_rewards_of_walks_by_hand(ch19):
    """Length 3; straight on, with a detour, and to and fro without end; padding is not read."""
    moves = torch.tensor([[1, 1, 1, 0, 0], [1, 0, 1, 1, 1], [1, 0, 1, 0, 1]])
    mask = torch.tensor([[1.0, 1, 1, 0, 0], [1, 1, 1, 1, 1], [1, 1, 1, 1, 1]])
    told = {kind: ch19.walk_rewards(kind, moves, mask, 3).tolist() for kind in ch19.REWARDS}
    assert told["success"] == [1, 1, 0]
    assert told["progress"] == pytest.approx([2, 2, 1 / 3])
    assert told["each step nearer"] == pytest.approx([2, 1 + 4 / 3, 1])
    agreed = [
        decayed_agreement(m[:n], (1, 1, 1), 0.9)
        for m, n in zip(moves.tolist(), (3, 5, 5), strict=True)
    ]
    assert told["agreement"] == pytest.approx(agreed)


def test_corridor_climbs_its_reward_and_not_by_chance(ch19, monkeypatch):
    """Short runs: an outcome reward is learned; with rewards dealt at random nothing is."""
    curve, logits = ch19.corridor("success", 4, runs=4, updates=30)
    assert curve.shape == (4, 31) and torch.allclose(curve[:, -1], ch19.chance(logits, 4, 12))
    assert curve[0, 0] < 0.5 and curve[:, -1].min() > 0.85
    real, dice = ch19.walk_rewards, seeded(5)

    def dealt(*args):
        rewards = real(*args)
        order = torch.rand(rewards.shape, generator=dice).argsort(dim=1)
        return rewards.gather(1, order)

    monkeypatch.setattr(ch19, "walk_rewards", dealt)
    control, _ = ch19.corridor("success", 4, runs=4, updates=30)
    assert control[:, -1].mean() < 0.7


def test_nothing_recorded_is_none(ch19, tmp_path):
    assert ch19.recorded(tmp_path / "none.json", "cells") is None
    (tmp_path / "book.json").write_text('{"cells": {"a": 1}}')
    assert ch19.recorded(tmp_path / "book.json", "cells") == {"a": 1}
    assert ch19.recorded(tmp_path / "book.json", "runs") is None


def test_axes_show_what_is_recorded(ch19):
    base = {"heldout": 0.5, "semantics": 0.1}
    plain = ch19.axes_figure(base, None).axes[0]
    assert [bar.get_height() for bar in plain.patches] == pytest.approx([0.5, 0.1])
    row = {"heldout": [0.7, 0.6, 0.8], "semantics": [0.2, 0.1, 0.3]}
    book = {"base": base, "table": {"PPO from the base": row, "SFT on more demonstrations": row}}
    shown = ch19.axes_figure(base, book).axes[0]
    heights = [bar.get_height() for bar in shown.patches]
    assert heights == pytest.approx([0.5, 0.1, 0.7, 0.2, 0.7, 0.2])
