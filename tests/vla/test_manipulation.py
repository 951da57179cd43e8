"""The table: seen where things are, moved by hand, replayed, planned, split; truths from outside.

Needs MuJoCo and OpenGL; where one of them is missing the file is skipped, but not in CI.
"""

import os
import subprocess
import sys
from itertools import product
from math import hypot
from pathlib import Path
from random import Random
from types import SimpleNamespace

import gymnasium
import numpy as np
import pytest
import torch
from torch import Generator
from vla.tiny import need_table

import minivisrl
from minivisrl import UserError
from minivisrl.vla import manipulation, manipulation_levels, manipulation_scene
from minivisrl.vla.levels import SPLITS
from minivisrl.vla.manipulation import (
    ACTIONS,
    NAMES,
    Episode,
    Table,
    Tables,
    dense,
    manipulation_prompts,
)
from minivisrl.vla.manipulation_levels import (
    COLORS,
    KINDS,
    LONGEST,
    UNSEEN_PAIRS,
    Layout,
    Thing,
    layout_of,
    nearest,
    plan,
)
from minivisrl.vla.manipulation_scene import _OPEN, PIXELS, SHADES, hand_of
from minivisrl.worlds.vocabulary import tokens

need_table()

LEFT, RIGHT, UP, DOWN = range(len(ACTIONS))
# Places, x to the right and y away from the viewer; the hand is at (2, 1).
#   5 . . . . . .
#   4 . . . . . P     P: purple ring (5, 4); G: green ring (2, 4)
#   3 . . G' . . .    y = 4 for G
#   2 . R . . B .     R: red block (1, 2); B: blue ball (4, 2)
#   1 . . H . . .
#   0 . . . . . .
THINGS = (Thing("red", "block", 1, 2), Thing("blue", "ball", 4, 2))
GOALS = (Thing("green", "goal", 2, 4), Thing("purple", "goal", 5, 4))


def layout(thing=None, goal=None, hand=(2, 1), things=THINGS, **options) -> Layout:
    """The table above with a mission."""
    return Layout(things, GOALS, hand, thing, goal, **options)


def played(told: Layout, *actions: int, lib=manipulation) -> Table:
    """The table after some moves."""
    table = lib.Table(told)
    for action in actions:
        table.move(action)
    return table


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


# ------------------------------------------------------------------------------------------------
# What is seen.


def projected(x: float, y: float, height: float) -> tuple[float, float]:
    """Column and row of a point in places and metres: a pinhole 3 m from the table's middle."""
    away = np.deg2rad(22)
    at = np.array([(x - 2.5) * 0.16, (y - 2.5) * 0.16, height])
    at -= 3 * np.array([0, -np.sin(away), np.cos(away)])
    right, up = at[0], at @ [0, np.cos(away), np.sin(away)]
    deep = at @ [0, np.sin(away), -np.cos(away)]
    scale = PIXELS / 2 / np.tan(np.deg2rad(18.6 / 2)) / deep
    return PIXELS / 2 + scale * right, PIXELS / 2 - scale * up


def places_of(image: np.ndarray, color: str) -> np.ndarray:
    """(M, 2): columns and rows, at pixel centres, that have a color's hue, whatever the light."""
    pixels = image.astype(float) / np.maximum(image.max(axis=2, keepdims=True), 1)
    shade = np.array(SHADES[color]) / max(SHADES[color])
    rows, columns = np.nonzero(np.abs(pixels - shade).max(axis=2) < 0.12)
    return np.stack([columns, rows], axis=1) + 0.5


def seen(table: Table) -> int:
    """Everything that has a color of its own is where the state says, to 1.5 of 60 pixels.

    Returns:
        how many things and goals were looked for.
    """
    image = table.render()
    things, goals = table.things(), table.layout.goals
    colors = [thing.color for thing in (*things, *goals)]
    spots = [(thing.x, thing.y) for thing in (*things, *goals)] + [hand_of(table.state)]
    count = 0
    for thing in (*things, *goals):
        near = sum(abs(thing.x - x) < 0.9 and abs(thing.y - y) < 1.5 for x, y in spots)
        if colors.count(thing.color) > 1 or near > 1:
            continue  # another of its color, or something that may hide it
        found = places_of(image, thing.color)
        middle = (found.min(axis=0) + found.max(axis=0)) / 2
        expected = projected(thing.x, thing.y, 0.0 if thing.kind == "goal" else 0.06)
        assert np.abs(middle - expected).max() < 1.5, (thing, middle, expected)
        size = {"block": (40, 90), "ball": (30, 75), "goal": (25, 80)}[thing.kind]
        assert size[0] <= len(found) <= size[1], (thing, len(found))
        count += 1
    return count


def test_things_are_seen_where_they_are():
    assert seen(played(layout(0))) == 4
    pushed = played(layout(1, 0), RIGHT, UP, RIGHT, LEFT)  # the ball goes right
    assert pushed.things()[1].x > 4.6
    assert seen(pushed) == 4


@pytest.mark.parametrize("split", SPLITS)
def test_random_tables_are_seen(split):
    assert sum(seen(Table(layout_of(seed, split))) for seed in range(30)) > 15


def test_the_hand_is_white_with_a_dark_wrist():
    for actions in ((), (RIGHT,), (UP, UP)):
        table = played(layout(0), *actions)
        image = table.render().astype(int)
        white = np.stack(np.nonzero(image.min(axis=2) > 225)[::-1], axis=1) + 0.5
        dark = np.stack(np.nonzero(image.max(axis=2) < 60)[::-1], axis=1) + 0.5
        middle = projected(*hand_of(table.state), 0.1)
        assert len(white) > 15 and np.abs(white.mean(axis=0) - middle).max() < 2
        assert len(dark) >= 4 and np.abs(dark.mean(axis=0) - middle).max() < 4


def test_every_color_is_told_from_every_other():
    for color in COLORS:
        image = Table(layout(0, things=(Thing(color, "block", 0, 5), THINGS[1]))).render()
        for other in set(COLORS) - {color, "blue", "green", "purple"}:
            assert not len(places_of(image, other))
        assert len(places_of(image, color)) > 20


def test_a_table_follows_the_gymnasium_api():
    table = Table(layout(0, 0))
    assert isinstance(table, gymnasium.Env) and table.action_space.n == 4
    shown, _ = table.reset(seed=3)
    assert table.observation_space.contains(shown)
    assert shown["mission"] == "push the red block to the green goal"
    shown, reward, terminated, truncated, told = table.step(UP)
    assert (reward, terminated, truncated) == (0.0, False, False) and 0 <= told["covered"] < 1
    assert table.observation_space.contains(shown)
    assert np.array_equal(shown["image"], table.render())


# ------------------------------------------------------------------------------------------------
# What is told.


def test_missions_by_hand():
    assert layout(1).mission == "reach the blue ball"
    assert layout(goal=1).mission == "reach the purple goal"
    assert layout(0, 1).mission == "push the red block to the purple goal"
    assert layout(0, 1, turned=True).mission == "to the purple goal push the red block"
    assert [layout(*t).verb for t in ((1, None), (None, 1), (0, 1))] == ["reach", "reach", "push"]


@pytest.mark.parametrize(
    ("told", "actions", "success", "failed"),
    [
        (layout(0), [LEFT, UP], True, False),  # from below into the block
        (layout(1), [LEFT, UP], False, True),  # the wrong one
        (layout(goal=0), [UP, UP, UP], True, False),
        (layout(goal=0), [UP, LEFT], False, True),  # the block on the way
        (layout(0, 0), [LEFT, UP, UP, LEFT, UP], False, False),  # in the column next to it
        (layout(0, 0, hand=(0, 2)), [RIGHT, DOWN, RIGHT, UP, UP], True, False),
        (layout(0, 1, hand=(0, 2)), [RIGHT, DOWN, RIGHT, UP, UP], False, False),  # other goal
        (layout(0, 0, hand=(0, 2)), [RIGHT, RIGHT, RIGHT], False, True),  # into the ball
    ],
)
def test_missions_are_judged(told, actions, success, failed):
    before, after = played(told, *actions[:-1]), played(told, *actions)
    assert not before.ended
    assert (after.success, after.failed) == (success, failed)
    assert after.ended == (success or failed)


def test_what_has_ended_stays_ended():
    table = played(layout(0), LEFT, UP)
    state = table.state
    assert table.step(DOWN)[1:4] == (1.0, True, False)
    assert table.state is state and table.step_count == 2


def test_time_runs_out():
    told = layout(0)
    assert told.shortest == 2 and told.limit == 8
    table = played(told, *[DOWN] * 7)
    assert not table.ended
    assert table.step(DOWN)[1:4] == (0.0, True, True) and not table.failed


def test_the_thing_that_was_meant_may_be_pushed_into_another():
    """Story: the planner reached a block that touched the next one within the same move."""
    close = (Thing("red", "block", 2, 2), Thing("blue", "ball", 2, 3))
    assert played(layout(0, things=close), UP).success
    wrong = played(layout(1, things=close), UP)
    assert wrong.failed and not wrong.success


def test_the_hand_moves_one_place_and_stays_on_the_table():
    table = played(layout(1), LEFT)
    assert np.allclose(hand_of(table.state), (1, 1), atol=0.03)
    table.move(LEFT)
    table.move(LEFT)
    assert np.allclose(hand_of(table.state), (0, 1), atol=0.03)
    assert np.allclose([(t.x, t.y) for t in table.things()], [(1, 2), (4, 2)])


def test_what_is_pushed_goes_along():
    """Nearly one place: the hand's radius and the block's half are 0.78 places, and it glides."""
    table = played(layout(0, 1, hand=(0, 2)), RIGHT)
    assert table.things()[0].x == pytest.approx(1.85, abs=0.1)
    assert table.things()[0].y == pytest.approx(2, abs=0.02)
    table.move(LEFT)
    assert table.things()[0].x == pytest.approx(1.85, abs=0.1)  # and is not pulled back


def test_names_of_what_is_seen():
    rows = np.array(played(layout(0, 0)).names()).reshape(6, 6)
    found = {name: list(zip(*np.nonzero(rows == name), strict=True)) for name in NAMES}
    assert found["hand"] == [(4, 2)] and found["target"] == [(3, 1)] and found["goal"] == [(1, 2)]
    assert found["ball"] == [(3, 4)] and found["ring"] == [(1, 5)] and not found["block"]
    assert len(found["empty"]) == 31
    over = np.array(played(layout(1, 0), LEFT, UP).names()).reshape(6, 6)
    assert over[4, 1] == "empty" and over[3, 1] == "hand"
    assert set(NAMES) | set(ACTIONS) | set("push reach".split()) <= set(tokens())


# ------------------------------------------------------------------------------------------------
# Rewards.


def test_sparse_and_dense_by_hand():
    """Reach: from (2, 1) to (4, 2). Push: to the block, and from there to the goal."""
    reach = played(layout(1))
    assert reach.way() == pytest.approx(hypot(2, 1)) and reach.covered == 0
    reach.move(RIGHT)
    assert reach.covered == pytest.approx(1 - hypot(1, 1) / hypot(2, 1), abs=0.02)
    push = played(layout(0, 0))
    assert push.way() == pytest.approx(hypot(1, 1) + hypot(1, 2))
    away = played(layout(1), LEFT, DOWN)
    assert away.covered == 0
    done = played(layout(0), LEFT, UP)
    assert done.covered == 1
    told = [Episode(t.layout, (), t.success, t.covered) for t in (reach, away, done)]
    assert dense(told) == pytest.approx([0.5 * reach.covered, 0.0, 1.0])
    assert 0 < dense(told)[0] < 0.5


def test_spl_by_hand():
    told = layout(0)  # two moves away
    episodes = [Episode(told, (LEFT, UP), True), Episode(told, (DOWN, LEFT, UP, UP), True)]
    assert [e.spl for e in (*episodes, Episode(told, (UP,)))] == [1.0, 0.5, 0.0]


# ------------------------------------------------------------------------------------------------
# Physics without chance.

WALK = (RIGHT, UP, UP, LEFT, LEFT, DOWN)


def test_equal_moves_give_equal_pixels():
    told = layout(0, 1)
    frames = Episode(told, WALK).frames()
    assert frames.shape[1:] == (3, PIXELS, PIXELS) and frames.dtype == torch.uint8
    assert torch.equal(frames, Episode(told, WALK).frames())
    assert len(frames) == 7 and (frames[1:] != frames[:-1]).flatten(1).any(1).all()


def test_a_batch_is_its_tables_one_by_one():
    """To the bit, in any order, with other tables in between."""
    layouts = [layout_of(seed, split) for seed, split in product(range(2), SPLITS)]
    tables, alone = Tables(layouts), [Table(told) for told in layouts]
    random = Random(0)
    for _ in range(5):
        rows = np.flatnonzero(tables.running)
        rows = rows[rows % 2 == 0] if random.random() < 0.5 else rows[::-1]
        actions = [random.randrange(4) for _ in rows]
        tables.step(rows, actions)
        for row, action in reversed(list(zip(rows, actions, strict=True))):
            alone[row].step(action)
    for row, table in enumerate(alone):
        assert np.array_equal(table.state, tables.tables[row].state)
        assert np.array_equal(table.render(), tables.images[row])
        assert tables.running[row] != table.ended
    told = tables.episodes([[0] * 9] * len(layouts))
    assert [e.steps for e in told] == [t.step_count for t in alone]
    assert [(e.success, e.covered) for e in told] == [(t.success, t.covered) for t in alone]
    assert torch.equal(
        tables.observe(np.array([1])), torch.from_numpy(tables.images[1:2]).permute(0, 3, 1, 2)
    )


def test_an_episode_is_cut_where_it_ends():
    assert len(Episode(layout(0), (LEFT, UP, DOWN, DOWN)).frames()) == 3


@pytest.mark.parametrize("action", [4, -1, 2.5, "left", None])
def test_unknown_actions(action):
    with pytest.raises(UserError, match=r"action .* is unknown; give 0 to 3"):
        Episode(layout(0), (0, action)).frames()


# ------------------------------------------------------------------------------------------------
# Plans, levels, splits.


def lattice(told: Layout, moves: list[int]) -> bool:
    """Whether moves carry a mission out on the lattice: an account of its own of the rules."""
    steps = {LEFT: (-1, 0), RIGHT: (1, 0), UP: (0, 1), DOWN: (0, -1)}
    hand, where = told.hand, [(round(t.x), round(t.y)) for t in told.things]
    goals = [(round(g.x), round(g.y)) for g in told.goals]
    for move in moves:
        step = steps[move]
        hand = (hand[0] + step[0], hand[1] + step[1])
        if hand in where:
            if where.index(hand) != told.thing:
                return False
            if told.goal is None:
                return True
            where[told.thing] = ahead = (hand[0] + step[0], hand[1] + step[1])
            beyond = (ahead[0] + step[0], ahead[1] + step[1])
            others = where[: told.thing] + where[told.thing + 1 :]
            if ahead in others or beyond in others or not all(0 <= v <= 5 for v in ahead):
                return False
        if not all(0 <= v <= 5 for v in hand):
            return False
        if told.goal is not None:
            led = hand if told.thing is None else where[told.thing]
            if led == goals[told.goal]:
                return True
    return False


def test_shortest_ways_by_hand():
    found = [layout(*t).shortest for t in ((0,), (1,), (None, 0), (None, 1), (0, 0))]
    # the fifth: below the block, up twice; round it, and once to the right
    assert found[:5] == [2, 3, 3, 6, 6]
    assert layout(0, 0, hand=(0, 2)).shortest == 5  # right, and round the corner, twice up
    walled = [Thing("blue", "ball", x, y) for x, y in ((1, 2), (0, 3))]
    assert layout(0, hand=(0, 0), things=(Thing("red", "block", 0, 2), *walled)).shortest == 2
    cornered = (Thing("red", "block", 0, 0), THINGS[1])
    assert layout(0, 0, things=cornered).shortest is None  # nobody gets behind it


@pytest.mark.parametrize("split", SPLITS)
def test_plans_are_shortest_by_brute_force(split):
    """Every plan works on the lattice; where it is short, nothing shorter does."""
    for seed in range(25):
        told = layout_of(seed, split)
        way = plan(told, told.hand, [(t.x, t.y) for t in told.things])
        assert len(way) == told.shortest and lattice(told, way)
        if told.shortest <= 4:
            shorter = product(range(4), repeat=told.shortest - 1)
            assert not any(lattice(told, list(moves)) for moves in shorter)


def test_a_seed_is_a_layout():
    assert layout_of(5, "train") == layout_of(5, "train") != layout_of(6, "train")
    one, same, other = (manipulation_prompts(4, "heldout", seeded(s)) for s in (1, 1, 2))
    assert one["level"] == same["level"] != other["level"]
    assert torch.equal(one["image"], same["image"]) and one["image"].shape == (4, 3, 60, 60)
    assert one["prompt"] == [told.mission for told in one["level"]]
    assert set(one["kind"]) <= {"push", "reach"}


def test_splits_are_disjoint_by_construction():
    layouts = {split: [layout_of(seed, split) for seed in range(80)] for split in SPLITS}
    told = {split: set(map(repr, some)) for split, some in layouts.items()}
    for one in SPLITS:
        assert len(told[one]) > 75
        assert all(not told[one] & told[other] for other in SPLITS if other != one)
    for split, some in layouts.items():
        for one in some:
            pairs = [(t.color, t.kind) for t in one.things]
            named = None if one.thing is None else pairs[one.thing]
            assert (named in UNSEEN_PAIRS) == (split == "appearance")
            assert split == "appearance" or not set(pairs) & set(UNSEEN_PAIRS)
            assert (one.turned or one.thing is None) == (split == "semantics")
            assert len(one.things) == (4 if split == "execution" else 2)
            assert split == "execution" or one.hand[1] < 2
            assert len(set(pairs)) == len(pairs)  # "the" is never ambiguous
            assert len({goal.color for goal in one.goals}) == len(one.goals) == 2
            assert 2 <= one.shortest <= LONGEST
    assert {one.verb for one in layouts["train"]} == {"push", "reach"}
    assert {thing.kind for one in layouts["train"] for thing in one.things} == set(KINDS)


def test_every_word_of_the_missions_is_known_and_trained():
    def words(split):
        return {w for s in range(120) for w in layout_of(s, split).mission.split()}

    assert set().union(*map(words, SPLITS)) <= words("train") <= set(tokens())


def test_an_unknown_split():
    with pytest.raises(UserError, match="unknown split 'test'; choose one of train, heldout"):
        layout_of(0, "test")


def expert(told: Layout) -> Table:
    """The table after the scripted expert has acted on it."""
    table = Table(told)
    while not table.ended and (way := table.plan()):
        table.move(way[0])
    return table


@pytest.mark.parametrize("split", SPLITS)
def test_the_expert_succeeds(split):
    done = [expert(layout_of(seed, split)) for seed in range(60)]
    assert sum(table.success for table in done) >= 57
    ways = [table.layout.shortest / table.step_count for table in done if table.success]
    assert sum(ways) / len(ways) > 0.9


# ------------------------------------------------------------------------------------------------
# What is opened is closed; what is missing is said in one line.


def closed() -> None:
    """Close whatever the tests before this one left open."""
    for shared in list(_OPEN.values()):
        for user in list(shared.users):
            user.close()
    if _OPEN:  # its users are all forgotten
        Table(layout(0)).close()
    assert not _OPEN


def test_closed_tables_leave_nothing_open():
    closed()
    one, two = Table(layout(0)), Tables([layout(1)] * 3)
    shared = one.studio
    assert two.tables[0].studio is shared and len(_OPEN) == 1
    one.close()
    assert len(_OPEN) == 1 and shared._finalizer.alive  # three are still open
    two.close()
    two.close()
    assert not _OPEN and not shared._finalizer.alive
    with pytest.raises(UserError, match="this table is closed"):
        one.step(LEFT)
    again = Table(layout(0))
    assert np.array_equal(again.render(), Table(layout(0)).render())


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="no /proc")
def test_no_file_stays_open():
    closed()
    Table(layout(0)).close()
    before = len(os.listdir("/proc/self/fd"))
    for _ in range(3):
        Table(layout(0)).close()
    assert len(os.listdir("/proc/self/fd")) == before


def test_a_warning_of_mujoco_is_loud_and_leaves_no_file(tmp_path, monkeypatch):
    """It writes MUJOCO_LOG.TXT into the working directory otherwise."""
    monkeypatch.chdir(tmp_path)
    table = Table(layout(0))
    table.state = np.where(np.arange(len(table.state)) == 10, 1e30, table.state)
    with pytest.raises(RuntimeError, match="unstable"):
        table.move(LEFT)
    assert not list(tmp_path.iterdir())
    fine = played(layout(0), LEFT, UP)  # and the next table is not disturbed
    assert fine.success


def test_without_mujoco_one_line_says_what_to_install(monkeypatch):
    closed()
    monkeypatch.setitem(sys.modules, "mujoco", None)
    with pytest.raises(UserError, match="needs MuJoCo: pip install mujoco, and apt-get") as told:
        Table(layout(0))
    assert "\n" not in str(told.value) and not _OPEN


def test_without_opengl_one_line_says_what_to_install(monkeypatch):
    """PyOpenGL serves one platform a process: the other one fails as a missing library does."""
    Table(layout(0)).close()
    closed()
    other = {"egl": "osmesa"}.get(os.environ.get("PYOPENGL_PLATFORM", ""), "egl")
    monkeypatch.setenv("MUJOCO_GL", other)
    with pytest.raises(UserError, match="without OpenGL .*: apt-get install libegl1") as told:
        Table(layout(0))
    assert "\n" not in str(told.value) and not _OPEN


def test_importing_starts_nothing():
    """Neither MuJoCo nor a driver is loaded, and no variable is set, before a table is made."""
    code = (
        "import os, sys\nbefore = dict(os.environ)\n"
        "import minivisrl.vla.manipulation\n"
        "assert 'mujoco' not in sys.modules and 'OpenGL' not in sys.modules\n"
        "assert 'transformers' not in sys.modules\n"
        "assert {k for k in os.environ if k[:6] in ('MUJOCO', 'LP_NUM', 'PYOPEN')} <= {*before}\n"
    )
    root = Path(minivisrl.__file__).parents[1]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------
# Wrong versions, each seen to fail a short form of the tests above.


def load(module, old: str, new: str) -> SimpleNamespace:
    """The names of a module, run anew with `old` replaced by `new`.

    Raises:
        ValueError: `old` does not occur exactly once.
    """
    source = Path(module.__file__).read_text()
    if source.count(old) != 1:
        raise ValueError(f"{module.__name__}: {source.count(old)} matches of {old!r}, not 1")
    made = type(module)(module.__name__)
    sys.modules[made.__name__], before = made, sys.modules[made.__name__]
    try:
        exec(compile(source.replace(old, new), module.__file__, "exec"), vars(made))
    finally:
        sys.modules[made.__name__] = before
    return SimpleNamespace(**{**vars(manipulation_levels), **vars(manipulation), **vars(made)})


def judging(lib):
    assert played(layout(0), LEFT, UP, lib=lib).success
    assert played(layout(1), LEFT, UP, lib=lib).failed
    assert played(layout(goal=0), UP, LEFT, lib=lib).failed
    close = (Thing("red", "block", 2, 2), Thing("blue", "ball", 2, 3))
    assert played(layout(0, things=close), UP, lib=lib).success
    assert not played(layout(1, things=close), UP, lib=lib).success
    assert not played(layout(0, 0, hand=(0, 2)), RIGHT, lib=lib).ended
    assert played(layout(0), *[DOWN] * 8, lib=lib).ended
    assert not played(layout(0), *[DOWN] * 7, lib=lib).ended


def rewarding(lib):
    table = played(layout(0, 0), lib=lib)
    assert table.way() == pytest.approx(hypot(1, 1) + hypot(1, 2))
    assert lib.dense([lib.Episode(table.layout, (), False, 0.5)]) == [0.25]
    table = played(layout(1), RIGHT, lib=lib)
    assert 0 < table.covered < 0.5


def planning(lib):
    for seed in range(30):
        told = layout_of(seed, "execution" if seed % 2 else "train")
        way = lib.plan(told, told.hand, [(t.x, t.y) for t in told.things])
        assert len(way) == told.shortest and lattice(told, way)
    assert lib.nearest((0.6, 7)) == (1, 5)


def splitting(lib):
    for seed in range(30):
        for split in SPLITS:
            one = lib.layout_of(seed, split)
            pairs = {(t.color, t.kind) for t in one.things}
            assert bool(pairs & set(UNSEEN_PAIRS)) == (split == "appearance")
            assert (one.turned or one.thing is None) == (split == "semantics")
    one, other = ({repr(lib.layout_of(s, n)) for s in range(30)} for n in ("train", "heldout"))
    assert not one & other
    assert {lib.crc32(text.encode()) % 8 == 0 for text in one} == {False}


def showing(lib):
    told = lib.Tables([layout(0), layout(1, things=THINGS[::-1])])
    for table, image in zip(told.tables, told.images, strict=True):
        assert np.array_equal(Table(table.layout).render(), image)
        names = np.array(table.names()).reshape(6, 6)
        assert names[4, 2] == "hand" and names[3, 1] != "empty" != names[1, 5]


CHECKS = (judging, rewarding, planning, splitting, showing)
WRONG = [
    (judging, manipulation, "when < first for", "when > first for"),
    (judging, manipulation, "if i != layout.thing and when", "if when"),
    (judging, manipulation, "self.step_count >= layout.limit", "self.step_count > layout.limit"),
    (judging, manipulation, "self.success = done and not self.failed", "self.success = done"),
    (rewarding, manipulation, "way += hypot", "way = hypot"),
    (rewarding, manipulation, "else 0.5 * e.covered", "else e.covered"),
    (rewarding, manipulation, "1 - self.way() / self.farthest", "self.way() / self.farthest"),
    (planning, manipulation_levels, "moves[::-1]", "moves"),
    (planning, manipulation_levels, "p not in blocked)", "True)"),
    (
        planning,
        manipulation_levels,
        "return [*_way(came, state), move]",
        "return _way(came, state)",
    ),
    (splitting, manipulation_levels, 'heldout == (split == "heldout")', "True"),
    (splitting, manipulation_levels, 'if split != "appearance":', 'if split == "train":'),
    (splitting, manipulation_levels, '"turned": unseen', '"turned": not unseen'),
    (showing, manipulation, "in reversed(range(SIDE)) for x", "in range(SIDE) for x"),
]


@pytest.mark.parametrize("check", CHECKS)
def test_the_library_passes(check):
    check(SimpleNamespace(**{**vars(manipulation_levels), **vars(manipulation)}))


@pytest.mark.parametrize(("check", "module", "old", "new"), WRONG)
def test_a_wrong_version_fails(check, module, old, new):
    wrong = load(module, old, new)
    with pytest.raises((AssertionError, TypeError)):
        check(wrong)


def test_a_table_that_remembers_the_last_dress_is_seen():
    """A studio that does not change the model between tables shows the wrong things."""
    wrong = load(manipulation_scene, "if self.dressed is layout:", "if self.dressed:")
    shared = wrong.Studio()
    first, second = layout(0), layout(0, things=(Thing("yellow", "block", 0, 5), THINGS[1]))
    shown = [shared.view(told, shared.start(told)) for told in (first, second)]
    shared.close()
    assert np.array_equal(shown[0], Table(first).render())
    assert not np.array_equal(shown[1], Table(second).render())
    assert nearest((0.2, 4.9)) == (0, 5)
