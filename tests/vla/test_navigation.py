"""Rooms, missions, distances, splits and demonstrations; truths by brute force and by hand."""

import io
from contextlib import redirect_stdout
from random import Random

import gymnasium
import numpy as np
import pytest
import torch
from vla.tiny import ITEMS, brute_force, level, seeded

from minivisrl import UserError
from minivisrl.vla.levels import (
    COLORS,
    KINDS,
    SPLITS,
    UNSEEN_PAIRS,
    actions_needed,
    level_of,
)
from minivisrl.vla.navigation import (
    ACTIONS,
    Episode,
    Room,
    Rooms,
    navigation_prompts,
    spl,
    success,
)
from minivisrl.vla.pretraining import (
    DemonstratorConfig,
    demonstrate,
    demonstrations,
    misheard,
)
from minivisrl.worlds.vocabulary import tokenizer

LEFT, RIGHT, FORWARD, PICKUP, DROP, TOGGLE = range(len(ACTIONS))


def played(told, *actions):
    """The room after some actions."""
    room = Room(told)
    room.reset()
    for action in actions:
        room.step(action)
    return room


# ------------------------------------------------------------------------------------------------
# Rooms and missions.


def test_a_room_follows_the_gymnasium_api():
    room = Room(level(("go", 0)))
    assert isinstance(room, gymnasium.Env) and room.action_space.n == len(ACTIONS)
    seen, _ = room.reset(seed=3)
    assert seen["mission"] == "go to the red key" == room.mission
    assert room.observation_space["image"].contains(seen["image"])
    seen, reward, terminated, truncated, _ = room.step(FORWARD)
    assert (reward, terminated, truncated) == (0, True, False) or reward > 0


def test_what_the_agent_sees():
    """Five tiles of 8 px a side: walls grey, floor dark, things in their colors, agent red."""
    image = Rooms([level(("go", 0))]).images[0]
    tiles = image.reshape(5, 8, 5, 8, 3).swapaxes(1, 2)  # (y, x, 8, 8, 3)
    assert (tiles[4, 0] == 100).all() and (tiles[0, 4] == 100).all()  # walls
    assert tiles[0, 0].max() <= 100 and tiles[0, 0, 4, 4].max() == 0  # floor, with grid lines
    for x, y, channel in ((3, 1, 0), (0, 3, 2), (4, 2, 1), (1, 1, 0)):
        colors = tiles[y, x].reshape(-1, 3).astype(int)
        ink = colors[colors.max(axis=1) > 110]
        assert len(ink) and (ink.argmax(axis=1) == channel).all()


def test_what_is_carried_is_seen_under_the_agent():
    told = level(("pick", 0), ("go", 2))
    room = played(told, FORWARD, PICKUP)
    before, after = played(told, FORWARD).gen_obs()["image"], room.gen_obs()["image"]
    assert room.carrying is not None and not room.ended
    changed = {(x // 8, y // 8) for y, x in zip(*np.nonzero((before != after).any(2)), strict=True)}
    assert changed == {(2, 1), (3, 1)}  # the agent's tile and the key's


@pytest.mark.parametrize(
    ("tasks", "actions", "wins"),
    [
        ([("go", 0)], [FORWARD], True),  # next to it and facing it
        ([("pick", 0)], [FORWARD], False),
        ([("pick", 0)], [FORWARD, PICKUP], True),
        ([("open", 2)], [RIGHT, FORWARD, LEFT, FORWARD, FORWARD, TOGGLE], True),
        ([("pick", 0), ("go", 2)], [FORWARD, PICKUP, RIGHT, FORWARD, LEFT], False),
        ([("pick", 0), ("go", 2)], [FORWARD, PICKUP, RIGHT, FORWARD, LEFT, FORWARD], True),
        ([("open", 2), ("pick", 0)], [FORWARD, PICKUP], False),  # in the wrong order
    ],
)
def test_missions_by_hand(tasks, actions, wins):
    told = level(*tasks)
    room = played(told, *actions)
    assert room.success == wins
    assert not played(told, *actions[:-1]).ended
    episode = Episode(told, tuple(actions), room.success)
    assert success([episode]) == [float(wins)]


def test_the_wrong_thing_ends_an_episode():
    room = played(level(("pick", 1)), FORWARD, PICKUP)  # the key, not the ball
    assert room.ended and not room.success and room.left() is None


def test_after_you_reverses_the_words_and_not_the_order():
    told = level(("pick", 0), ("go", 2), after=True)
    assert told.mission == "go to the green door after you pick up the red key"
    room = Room(told)
    room.reset()
    assert room.mission == told.mission
    for action in (FORWARD, PICKUP, RIGHT, FORWARD, LEFT, FORWARD):
        assert not room.ended
        room.step(action)
    assert room.success


@pytest.mark.parametrize("split", SPLITS)
def test_missions_are_babyais_own_words(split):
    """What the prompt says is what BabyAI's verifier says of the room; every word is known."""
    prompts = navigation_prompts(30, split, seeded())
    words = tokenizer()
    for told, text in zip(prompts["level"], prompts["prompt"], strict=True):
        room = Room(told)
        room.reset()
        assert room.mission == text
        assert words.unk_token_id not in words(text).input_ids
    assert torch.equal(prompts["image"], Rooms(prompts["level"]).observe(slice(None)))


def test_nothing_is_printed():
    """MiniGrid prints "Sampling rejected" when it lays rooms out itself."""
    with redirect_stdout(io.StringIO()) as out:
        demonstrations(DemonstratorConfig(demonstrations=20), "train", seeded())
    assert out.getvalue() == ""


# ------------------------------------------------------------------------------------------------
# Distances.


@pytest.mark.parametrize(
    ("tasks", "shortest"),
    [
        ([("go", 0)], 1),
        ([("pick", 0)], 2),
        ([("pick", 1)], 5),  # right, forward, forward, right: face (1, 4), pick up
        ([("open", 2)], 6),
        ([("pick", 0), ("go", 2)], 6),
    ],
)
def test_shortest_ways_by_hand(tasks, shortest):
    assert level(*tasks).shortest == shortest


@pytest.mark.parametrize("split", SPLITS)
def test_shortest_ways_by_brute_force(split):
    """Copies of the real environment, stepped breadth first, agree."""
    checked = 0
    for seed in range(40):
        told = level_of(seed, split)
        if told.shortest <= 6 and checked < 2:
            assert brute_force(told) == told.shortest
            checked += 1
    assert checked == 2


def test_what_is_left_falls_by_one_on_the_shortest_way():
    """The expert's last steps: the count of actions left reaches 0 with success."""
    for seed in range(30):
        told = level_of(seed, "train")
        episode = demonstrate(told, 0.0, Random(0))
        ways = [room.left() for room, _ in episode.watch()]
        assert ways[0] == told.shortest and ways[-1] == 0
        assert all(after >= before - 1 for before, after in zip(ways, ways[1:], strict=False))
        if episode.steps == told.shortest:
            assert ways == list(range(told.shortest, -1, -1))


def test_no_way():
    walled = {(1, 1)}
    assert actions_needed(walled, (1, 1, 0), [("go", (5, 5))]) is None
    assert actions_needed(walled, (1, 1, 0), [("go", (1, 2))]) == 1


def test_spl_by_hand():
    told = level(("go", 0))  # one step away
    episodes = [Episode(told, (FORWARD,), True), Episode(told, (LEFT, RIGHT, FORWARD), True)]
    assert spl([*episodes, Episode(told, (LEFT,), False)]) == pytest.approx([1.0, 1 / 3, 0.0])


# ------------------------------------------------------------------------------------------------
# Determinism and splits.


def test_a_seed_is_a_level():
    assert level_of(5, "train") == level_of(5, "train") != level_of(6, "train")
    one, same, other = (navigation_prompts(8, "heldout", seeded(s)) for s in (1, 1, 2))
    assert one["level"] == same["level"] != other["level"]
    assert one["seed"] == same["seed"] and torch.equal(one["image"], same["image"])


def test_rooms_hold_no_chance():
    """Equal actions, equal pixels; and one room's steps do not move another's."""
    told, actions = level_of(3, "train"), (2, 0, 2, 1, 2, 2)
    frames = Episode(told, actions).frames()
    assert torch.equal(frames, Episode(told, actions).frames())
    rooms = Rooms([told, told])
    for step, action in enumerate(actions[: len(frames) - 1]):
        rooms.step(np.array([1]), [action])
        assert torch.equal(rooms.observe(np.array([1]))[0], frames[step + 1])
        assert torch.equal(rooms.observe(np.array([0]))[0], frames[0])


def pairs_of(told):
    return {(item.color, item.kind) for item in told.items}


def test_splits_are_disjoint_by_construction():
    levels = {split: [level_of(seed, split) for seed in range(150)] for split in SPLITS}
    told = {split: set(map(repr, some)) for split, some in levels.items()}
    for one in SPLITS:
        assert len(told[one]) > 140
        assert all(not told[one] & told[other] for other in SPLITS if other != one)
    for split, some in levels.items():
        for one in some:
            unseen = pairs_of(one) & set(UNSEEN_PAIRS)
            targets = {(item.color, item.kind) for item in one.targets}
            assert bool(targets & set(UNSEEN_PAIRS)) == (split == "appearance")
            assert split == "appearance" or not unseen
            boxes = any(v == "pick" and one.items[i].kind == "box" for v, i in one.tasks)
            assert (one.after or boxes) == (split == "semantics")
            assert (one.side == 5) == (split == "execution")
            assert len(one.items) == len(pairs_of(one))  # "the" is never ambiguous
    assert {len(one.items) for one in levels["execution"]} == {5}
    assert max(len(one.items) for one in levels["train"]) == 5
    kinds = {" ".join(verb for verb, _ in one.tasks) for one in levels["train"]}
    assert kinds == {"go", "pick", "open", "pick go", "pick open", "open go", "open pick"}


def test_every_word_of_the_missions_is_trained_but_after_you():
    def words(split):
        return {w for s in range(150) for w in level_of(s, split).mission.split()}

    assert words("semantics") - words("train") == {"after", "you"}
    assert words("appearance") | words("execution") <= words("train")


def test_an_unknown_split():
    with pytest.raises(UserError, match="unknown split 'test'; choose one of train, heldout"):
        level_of(0, "test")


# ------------------------------------------------------------------------------------------------
# Demonstrations.


@pytest.mark.parametrize("split", SPLITS)
def test_the_expert_always_succeeds(split):
    cfg = DemonstratorConfig(demonstrations=60, stumble=0.0, mishear=0.0)
    _, episodes = demonstrations(cfg, split, seeded())
    assert sum(success(episodes)) == 60 and sum(spl(episodes)) / 60 > 0.97


def test_stumbling_and_mishearing_are_as_asked():
    def share(**options):
        cfg = DemonstratorConfig(demonstrations=100, **options)
        return sum(success(demonstrations(cfg, "train", seeded())[1])) / 100

    clean, lost = share(stumble=0.0, mishear=0.0), share(stumble=1.0, mishear=0.0)
    half, deaf = share(stumble=0.0, mishear=0.5), share(stumble=0.0, mishear=1.0)
    assert clean == 1 and lost < 0.4 and deaf < 0.4
    assert half == pytest.approx((clean + deaf) / 2, abs=0.12)


def test_the_share_of_random_moves():
    """A third of the random moves are what the expert would have done, so 2/3 show."""
    told = [level_of(seed, "train") for seed in range(100)]
    random = Random(0)
    longer = [demonstrate(one, 0.3, random) for one in told]
    assert all(action in range(len(ACTIONS)) for e in longer for action in e.actions)
    extra = sum(e.steps for e in longer) / sum(one.shortest for one in told)
    assert 1.2 < extra < 2.5


def test_misheard_missions_are_about_another_item():
    for seed in range(60):
        told = level_of(seed, "train")
        meant = misheard(told, Random(seed))
        changed = [a != b for a, b in zip(told.tasks, meant.tasks, strict=True)]
        assert sum(changed) <= 1 and meant.shortest is not None
        assert meant.items == told.items and [v for v, _ in meant.tasks] == [
            v for v, _ in told.tasks
        ]
        assert all(meant.items[i].kind in KINDS[verb] for verb, i in meant.tasks)


@pytest.mark.parametrize("field", ["stumble", "mishear"])
def test_shares_are_checked(field):
    with pytest.raises(UserError, match=f"DemonstratorConfig.{field}=1.5"):
        DemonstratorConfig(**{field: 1.5})


def test_items_are_of_known_colors_and_kinds():
    assert {item.color for item in ITEMS} <= set(COLORS)
