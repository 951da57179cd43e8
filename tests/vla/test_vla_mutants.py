"""Wrong versions of the library, each seen to fail a short form of the tests beside this file."""

import importlib
from dataclasses import replace
from random import Random
from types import SimpleNamespace

import pytest
import torch
from vla.tiny import ITEMS, MODULES, load, seeded

from minivisrl.rollout import Prompts

REAL = SimpleNamespace(
    **{
        name: value
        for module in MODULES
        for name, value in vars(importlib.import_module(f"minivisrl.vla.{module}")).items()
        if name[0] != "_"
    }
)


def level(lib, *tasks, agent=(2, 2, 0), **options):
    items = tuple(lib.Item(i.color, i.kind, i.x, i.y) for i in ITEMS)
    return lib.Level((1, 1), 4, items, agent, tasks, **options)


def prompts(lib, *levels):
    image = lib.Rooms(levels).observe(slice(None))
    missions = [told.mission for told in levels]
    return Prompts({"prompt": missions, "level": list(levels), "image": image})


def agent(lib, **settings):
    policy = lib.new_vla(0, width=16, seeing=1, acting=1)
    with torch.no_grad():
        for weight in policy.model.parameters():
            if weight.ndim > 1:
                weight.mul_(0.4 / weight.std())
    for name, value in settings.items():
        setattr(policy, name, value)
    return policy.eval()


def played(lib, told, *actions):
    room = lib.Room(told)
    room.reset()
    for action in actions:
        room.step(action)
    return room


def missions(lib):
    """By hand: what wins, what loses, in which order."""
    assert played(lib, level(lib, ("pick", 1)), 2, 3).ended  # the key is not the ball
    both = level(lib, ("pick", 0), ("go", 2), after=True)
    assert played(lib, both).mission == both.mission
    assert played(lib, both, 2, 3, 1, 2, 0, 2).success
    assert not played(lib, level(lib, ("open", 2), ("pick", 0)), 2, 3).success


def distances(lib):
    """By hand: to the left of the agent, through a cell that was cleared, beside a door."""
    assert level(lib, ("go", 1), agent=(1, 3, 0)).shortest == 1
    assert level(lib, ("go", 1), agent=(1, 3, 2)).shortest == 1
    assert level(lib, ("pick", 0), ("go", 2)).shortest == 6
    narrow = {(1, 1)}
    plan = [("pick", (2, 1)), ("go", (3, 1))]
    assert lib.actions_needed(narrow, (1, 1, 0), plan) == 2
    assert lib.actions_needed(set(), (1, 1, 0), [("go", (5, 5))]) is None
    room = played(lib, level(lib, ("pick", 0), ("go", 2)), 2, 3)
    assert room.left() == 4


def views(lib):
    """What is carried is seen; tiles are where things are."""
    told = level(lib, ("pick", 0), ("go", 2))
    held, free = (played(lib, told, *a).gen_obs()["image"] for a in ((2, 3), (2,)))
    assert (held[8:16, 16:24] != free[8:16, 16:24]).any()
    names = played(lib, told).names()
    assert names[6] == "right" and names[8] == "target" and names[14] == "door"
    assert played(lib, told, 2, 3).names()[14] == "target"


def splits(lib):
    for seed in range(40):
        for split in lib.SPLITS:
            told = lib.level_of(seed, split)
            pairs = {(item.color, item.kind) for item in told.items}
            assert bool(pairs & set(lib.UNSEEN_PAIRS)) == (split == "appearance")
            x, y, way = told.agent
            ahead = (x + lib.STEPS[way][0], y + lib.STEPS[way][1])
            assert ahead not in {(item.x, item.y) for item in told.items}
    one, other = ({repr(lib.level_of(s, n)) for s in range(40)} for n in ("train", "heldout"))
    assert not one & other
    parts = {lib.crc32(r.encode()) % lib.HELDOUT_SHARE == 0 for r in one}
    assert parts == {False}


def scoring(lib):
    """Exact log-probs at a temperature, for prompts that differ in their words alone."""
    policy = agent(lib, temperature=1.7)
    told = [level(lib, task) for task in (("go", 1), ("go", 2), ("pick", 1))]
    acted = policy.rollout(prompts(lib, *told), 4, seeded())
    columns = torch.arange(acted.mask.shape[1])
    steps = torch.tensor([episode.steps for episode in acted.outputs])
    assert torch.equal(acted.mask, (columns < steps[:, None]).float())
    assert torch.allclose(policy.logprobs(acted) * acted.mask, acted.logprobs, atol=1e-5)
    for row in (0, 5, 11):
        alone = prompts(lib, told[row // 4])
        single = replace(acted.rows([row]), prompts=alone)
        again = policy.logprobs(single)[0] * acted.mask[row]
        assert torch.allclose(again, acted.logprobs[row], atol=1e-5)
    again = policy.encode(acted.prompts, list(acted.outputs), seeded())
    assert torch.equal(again.actions["tokens"], acted.actions["tokens"])
    first = policy.evaluate_actions(acted.rows([0])).dist.probs[0, 0].exp()
    assert first.std() > 0
    cold = agent(lib, temperature=1e-4)
    assert list(cold.rollout(acted.prompts, 1, seeded()).outputs) == cold.predict(acted.prompts)


def demonstrators(lib):
    cfg = lib.DemonstratorConfig(demonstrations=30, stumble=0.0, mishear=0.0)
    _, shown = lib.demonstrations(cfg, "train", seeded())
    assert all(lib.success(shown)) and not any(4 in episode.actions for episode in shown)
    for seed in range(20):
        told = lib.level_of(seed, "train")
        meant = lib.misheard(told, Random(seed))
        assert sum(a != b for a, b in zip(told.tasks, meant.tasks, strict=True)) <= 1
    told = level(lib, ("go", 0))
    assert lib.watched(lib.Episode(told, (2, 0, 0))) == lib.Episode(told, (2,), True)


def annotators(lib):
    told = level(lib, ("pick", 0))
    whole = lib.Episode(told, (0, 1, 2, 3), True)
    assert lib.progress([whole, replace(whole, start=2)]) == [2, 2]
    assert lib.progress([lib.Episode(level(lib, ("pick", 1)), (2, 3))])[0] < -5
    assert lib.worth([whole], lib.SegmentConfig(hurry=0.25)) == [1.0]
    lost = lib.Episode(told, (0, 0, 0, 0))
    cfg = lib.SegmentConfig(length=None, noise=0.0)
    pairs = lib.compare_segments(prompts(lib, told), [lost, whole], cfg, seeded())
    assert pairs.chosen == [whole] and pairs.rejected == [lost]
    pieces = {lib.cut(whole, 2, seeded(s)) for s in range(20)}
    assert {(p.start, p.steps, p.success) for p in pieces} == {(0, 2, 0), (1, 3, 0), (2, 4, 1)}


CHECKS = (missions, distances, views, splits, scoring, demonstrators, annotators)
WRONG = [
    (missions, "navigation", "strict(what, strict=True)", "strict(what)"),
    (missions, "navigation", "AfterInstr(*parts[::-1])", "AfterInstr(*parts)"),
    (distances, "levels", "for turn in (1, 3)]", "for turn in (1,)]"),
    (distances, "levels", 'if verb != "go"]', 'if verb == "go"]'),
    (distances, "levels", "        count += 1\n", "        count += 2\n"),
    (distances, "navigation", 'tasks[first == "success" :]', "tasks"),
    (views, "navigation", "self.carrying or thing, self", "thing, self"),
    (views, "navigation", "image[y, :, x] =", "image[x, :, y] ="),
    (splits, "levels", 'heldout == (split == "heldout")', 'heldout != (split == "heldout")'),
    (splits, "levels", 'if split != "appearance":', 'if split == "train":'),
    (scoring, "policy", "(zip(rows, pixels, strict=True))", "(zip([0] * len(views), pixels))"),
    (scoring, "policy", ".float() / self.temperature", ".float()"),
    (
        scoring,
        "policy",
        "[:, 0].cpu() // rollout.group_size",
        "[:, 0].cpu() % len(rollout.prompts)",
    ),
    (scoring, "policy", "        time += 1\n", "        time += 1 + (time == 0)\n"),
    (scoring, "policy", "known[state] = len(known)", "known[state] = 0"),
    (demonstrators, "pretraining", "if not isinstance(goal, DropSubgoal)", ""),
    (demonstrators, "pretraining", "success=views[-1][0].success", "success=False"),
    (annotators, "segments", "float(ways[0] - ways[1])", "float(ways[1] - ways[0])"),
    (annotators, "segments", "(episode.steps - episode.start)", "episode.start"),
    (annotators, "segments", "episode.success and reaches_end", "episode.success"),
    (annotators, "navigation", "if time >= self.start:", "if time > self.start:"),
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_library_passes(check):
    check(REAL)


@pytest.mark.parametrize(("check", "module", "old", "new"), WRONG)
def test_a_wrong_version_fails(check, module, old, new):
    wrong = load(module, old, new)
    with pytest.raises((AssertionError, IndexError, RuntimeError)):
        check(wrong)
