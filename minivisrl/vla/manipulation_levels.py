r"""Tables: things, goals, a hand and an instruction; with splits, and a planner that knows the way.

Survey: section 3.4.3.
Symbols: p -> `Layout.mission` and where everything starts.
Departs: distances are counted on a lattice of 6 x 6 places, as if things moved from place to place;
    the physics (`manipulation_scene`) does not know the lattice.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from zlib import crc32

from minivisrl import UserError
from minivisrl.vla.levels import HELDOUT_SHARE, SPLITS

SIDE = 6  # places a side
COLORS = ("red", "green", "blue", "purple", "yellow")
KINDS = ("block", "ball")
UNSEEN_PAIRS = (("red", "ball"), ("green", "block"), ("yellow", "ball"))
MOVES = ((-1, 0), (1, 0), (0, 1), (0, -1))  # left, right, away and near
LONGEST = 9  # moves that an instruction may take

Place = tuple[int, int]
Point = tuple[float, float]


@dataclass(frozen=True)
class Thing:
    """A block, a ball or a goal; in places: x from 0 to 5 to the right, y from 0 to 5 away."""

    color: str
    kind: str
    x: float
    y: float


@dataclass(frozen=True)
class Layout:
    """One table and one instruction.

    Args:
        things: blocks and balls, which move.
        goals: rings on the table, which do not.
        hand: where it starts.
        thing, goal: numbers of what is to be moved, and where to; without a goal the thing is to be
            touched, without a thing the hand is to go to the goal.
        turned: the goal is named first.
    """

    things: tuple[Thing, ...]
    goals: tuple[Thing, ...]
    hand: Place
    thing: int | None = None
    goal: int | None = None
    turned: bool = False

    @property
    def verb(self) -> str:
        """What is to be done: push or reach."""
        return "reach" if self.thing is None or self.goal is None else "push"

    @property
    def mission(self) -> str:
        """The instruction: a verb, what is to be moved or reached, and the goal if it is moved."""
        named = [(self.things, self.thing), (self.goals, self.goal)]
        told = [f"the {some[i].color} {some[i].kind}" for some, i in named if i is not None]
        if self.turned:
            return f"to {told[1]} {self.verb} {told[0]}"
        return f"{self.verb} {' to '.join(told)}"

    @cached_property
    def shortest(self) -> int | None:
        """Fewest moves to success on the lattice; None if there is no way."""
        way = plan(self, self.hand, [(thing.x, thing.y) for thing in self.things])
        return None if way is None else len(way)

    @property
    def limit(self) -> int:
        """Moves after which an episode is over: twice the shortest way, and four."""
        return 2 * (self.shortest or 0) + 4


def nearest(point: Point) -> Place:
    """The place of the lattice where something is."""
    x, y = (min(max(round(along), 0), SIDE - 1) for along in point)
    return x, y


def plan(layout: Layout, hand: Point, things: Sequence[Point]) -> list[int] | None:
    """The fewest moves that carry out the mission, by breadth-first search; None if none do.

    Nothing but the thing that is meant may be touched.

    Args:
        hand, things: where they are now.
    """
    where = [nearest(point) for point in things]
    pushed = None if layout.thing is None else where[layout.thing]
    blocked = {place for i, place in enumerate(where) if i != layout.thing}
    goal = None if layout.goal is None else nearest(_at(layout.goals[layout.goal]))
    start = (nearest(hand), pushed)
    edge, came = [start], {start: None}  # state -> the state before it and the move
    while edge:
        following = []
        for state in edge:
            at, thing = state
            if (at if layout.thing is None else thing) == goal and goal is not None:
                return _way(came, state)
            for move, step in enumerate(MOVES):
                ahead, carried = _add(at, step), thing
                if ahead == thing:
                    if goal is None:
                        return [*_way(came, state), move]
                    carried = _add(thing, step)
                    if _add(carried, step) in blocked:
                        continue  # what is pushed goes a little too far
                after = (ahead, carried)
                free = all(p is None or (_on_table(p) and p not in blocked) for p in after)
                if after not in came and free:
                    came[after] = (state, move)
                    following.append(after)
        edge = following
    return None


def _at(thing: Thing) -> Point:
    return thing.x, thing.y


def _add(place: Place, step: Place) -> Place:
    return place[0] + step[0], place[1] + step[1]


def _on_table(place: Place) -> bool:
    return 0 <= place[0] < SIDE and 0 <= place[1] < SIDE


def _way(came: dict, state: tuple) -> list[int]:
    """The moves that led to a state."""
    moves = []
    while came[state] is not None:
        state, move = came[state]
        moves.append(move)
    return moves[::-1]


def _task(random: Random, split: str, things: int, goals: int) -> dict:
    """Who is to be moved, and where; of forms that only `semantics` has, or of those it has not."""
    unseen, reach = split == "semantics", random.random() < 0.3
    thing, goal = random.randrange(things), random.randrange(goals)
    if reach:
        return {"goal": goal} if unseen else {"thing": thing}
    return {"thing": thing, "goal": goal, "turned": unseen}


def _draw(random: Random, split: str) -> Layout:
    """A table of the split, or one that `_belongs` refuses."""
    crowded = split == "execution"
    pairs = [(color, kind) for kind in KINDS for color in COLORS]
    if split != "appearance":
        pairs = [pair for pair in pairs if pair not in UNSEEN_PAIRS]
    chosen = random.sample(pairs, 4 if crowded else 2)
    places = [(x, y) for x in range(SIDE) for y in range(SIDE)]
    starts = [place for place in places if crowded or place[1] < 2]  # else at the near edge
    hand = random.choice(starts)
    places = random.sample([place for place in places if place != hand], len(chosen) + 2)
    shift, things = 0.06 if crowded else 0.03, []  # apart, whatever the shift
    for (color, kind), place in zip(chosen, places[2:], strict=True):
        x, y = (round(along + random.uniform(-shift, shift), 2) for along in place)
        things.append(Thing(color, kind, x, y))
    paints = random.sample(COLORS, 2)
    goals = [Thing(c, "goal", *map(float, p)) for c, p in zip(paints, places[:2], strict=True)]
    task = _task(random, split, len(things), len(goals))
    return Layout(tuple(things), tuple(goals), hand, **task)


def _belongs(layout: Layout, split: str) -> bool:
    """Whether there is a way, of 2 to `LONGEST` moves, and the table is of the split."""
    if layout.shortest is None or not 2 <= layout.shortest <= LONGEST:
        return False
    if split == "appearance":
        named = None if layout.thing is None else layout.things[layout.thing]
        return named is not None and (named.color, named.kind) in UNSEEN_PAIRS
    heldout = crc32(repr(layout).encode()) % HELDOUT_SHARE == 0
    return split not in ("train", "heldout") or heldout == (split == "heldout")


def layout_of(seed: int, split: str) -> Layout:
    """The table that a seed stands for in a split; the same on every machine.

    Splits are disjoint: by a hash of the content for `train` and `heldout`, by color-kind pairs
    that no other table holds for `appearance`, by goals to be reached and goals named first for
    `semantics`, by four things instead of two, further off the lattice, and a hand that starts
    anywhere for `execution`.

    Raises:
        UserError: an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    random = Random(f"table {split} {seed}")
    while True:
        layout = _draw(random, split)
        if _belongs(layout, split):
            return layout
