r"""Levels: one room, what is in it, and a mission in BabyAI's language; with splits and distances.

Survey: section 3.4.2.
Symbols: p -> `Level.mission` and the room it starts in.
Departs: rooms are laid out here, from a seed, and not by MiniGrid: a level is a value, so equal
    levels are equal environments, and splits are disjoint by construction.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from functools import cached_property
from random import Random
from zlib import crc32

from minivisrl import UserError

CANVAS = 5  # tiles a side that the agent sees; the outermost walls are cropped
COLORS = ("red", "green", "blue", "purple", "yellow", "grey")
VERBS = {"go": "go to", "pick": "pick up", "open": "open"}
KINDS = {"go": ("ball", "key", "box", "door"), "pick": ("ball", "key"), "open": ("door",)}
UNSEEN_PAIRS = (("red", "ball"), ("green", "key"), ("blue", "box"), ("yellow", "door"))
SPLITS = ("train", "heldout", "appearance", "semantics", "execution")
HELDOUT_SHARE = 8  # one content hash in eight belongs to `heldout`
STEPS = ((1, 0), (0, 1), (-1, 0), (0, -1))  # MiniGrid's directions: right, down, left, up

Cell = tuple[int, int]


@dataclass(frozen=True)
class Item:
    """One object, in grid coordinates: x to the right and y down, 1 to 5."""

    color: str
    kind: str
    x: int
    y: int


@dataclass(frozen=True)
class Level:
    """One room and one mission.

    Args:
        corner, side: first cell and cells a side of the square room on the canvas.
        items: what is there; doors are in the wall next to the room.
        agent: x, y and direction (0 right, 1 down, 2 left, 3 up).
        tasks: what to do in this order, verbs with the numbers of items.
        after: the second task is named first: "... after you ...".
    """

    corner: Cell
    side: int
    items: tuple[Item, ...]
    agent: tuple[int, int, int]
    tasks: tuple[tuple[str, int], ...]
    after: bool = False

    @property
    def mission(self) -> str:
        """The instruction, as BabyAI words it."""
        told = [f"{VERBS[v]} the {self.items[i].color} {self.items[i].kind}" for v, i in self.tasks]
        return " after you ".join(told[::-1]) if self.after else ", then ".join(told)

    @property
    def targets(self) -> list[Item]:
        """The items of the mission, in the order of the tasks."""
        return [self.items[i] for _, i in self.tasks]

    @property
    def room(self) -> set[Cell]:
        """The cells of the floor."""
        (left, top), side = self.corner, range(self.side)
        return {(left + x, top + y) for x in side for y in side}

    @cached_property
    def shortest(self) -> int | None:
        """Fewest actions to success; None if there is no way."""
        free = self.room - {(item.x, item.y) for item in self.items}
        plan = [(verb, (self.items[i].x, self.items[i].y)) for verb, i in self.tasks]
        return actions_needed(free, self.agent, plan)

    @property
    def limit(self) -> int:
        """Actions after which an episode is over: twice the shortest way, and four."""
        return 2 * (self.shortest or 0) + 4


def actions_needed(
    free: Collection[Cell], agent: tuple[int, int, int], plan: Sequence[tuple[str, Cell]]
) -> int | None:
    """Fewest actions that complete a plan, by breadth-first search; None if nothing does.

    Turning, stepping, picking up and opening are one action each; to go to a cell is to face it.
    What was picked up or opened is no longer in the way.

    Args:
        free: cells that can be entered.
        agent: x, y, direction.
        plan: verbs and the cells of their objects, in order.
    """
    edge, count = [(*agent, 0)], 0
    seen = set(edge)
    while edge:
        found = []
        for x, y, way, done in edge:
            ahead = (x + STEPS[way][0], y + STEPS[way][1])
            while done < len(plan) and plan[done] == ("go", ahead):
                done += 1
            if done == len(plan):
                return count
            found += [(x, y, (way + turn) % 4, done) for turn in (1, 3)]
            cleared = [cell for verb, cell in plan[:done] if verb != "go"]
            if ahead in free or ahead in cleared:
                found.append((*ahead, way, done))
            if plan[done][0] != "go" and plan[done][1] == ahead:
                found.append((x, y, way, done + 1))
        edge = [state for state in dict.fromkeys(found) if state not in seen]
        seen.update(edge)
        count += 1
    return None


def _asked(form: str, items: Sequence[Item], boxes: bool) -> list:
    """Tasks of one verb that can be asked for; with `boxes`, boxes to be picked up."""
    kinds = ("box",) if boxes and form == "pick" else KINDS[form]
    return [(form, i) for i, item in enumerate(items) if item.kind in kinds]


def _mission(random: Random, split: str, items: Sequence[Item]) -> tuple[tuple, bool]:
    """Tasks about the items (none if the form that was drawn does not fit them), and `after`."""
    unseen = split == "semantics"
    form = random.choice(("pick", "two") if unseen else ("go", "pick", "open", "two"))
    first = random.choice(("pick", "open")) if form == "two" else form
    tasks = _asked(first, items, boxes=unseen and form == "pick")
    if not tasks or form != "two":
        return tuple(random.sample(tasks, min(1, len(tasks)))), False
    one = random.choice(tasks)  # its effect can be seen, so the next task needs no memory
    seconds = ("go", "open") if first == "pick" else ("go", "pick")
    others = _asked(random.choice(seconds), items, boxes=False)
    others = [(verb, i) for verb, i in others if i != one[1]]
    return ((one, random.choice(others)), unseen) if others else ((), False)


def _draw(random: Random, split: str) -> Level | None:
    """A level of the split, or None where chance made none."""
    large = split == "execution"
    side = CANVAS if large else CANVAS - 1
    left, top = (random.randint(1, 1 + CANVAS - side) for _ in range(2))
    pairs = [(c, k) for k in KINDS["go"] for c in COLORS]
    if split != "appearance":
        pairs = [pair for pair in pairs if pair not in UNSEEN_PAIRS]
    things = random.sample([pair for pair in pairs if pair[1] != "door"], 5 if large else 3)
    floor = random.sample(sorted(Level((left, top), side, (), (0, 0, 0), ()).room), len(things) + 1)
    items = [Item(*pair, *cell) for pair, cell in zip(things, floor[1:], strict=True)]
    if not large:  # the canvas shows one wall beside the room and one above or below it
        wall = {1: CANVAS, 2: 1}
        doors = [
            (wall[left], top + random.randrange(side)),
            (left + random.randrange(side), wall[top]),
        ]
        doors = random.sample(doors, random.randint(1, 2))
        paints = random.sample([pair for pair in pairs if pair[1] == "door"], len(doors))
        items += [Item(*pair, *cell) for pair, cell in zip(paints, doors, strict=True)]
    tasks, after = _mission(random, split, items)
    agent = (*floor[0], random.randrange(4))
    return Level((left, top), side, tuple(items), agent, tasks, after) if tasks else None


def _belongs(level: Level, split: str) -> bool:
    """Whether a level can be solved, does not start in front of an item, and is of the split."""
    x, y, way = level.agent
    ahead = (x + STEPS[way][0], y + STEPS[way][1])
    if ahead in {(item.x, item.y) for item in level.items} or level.shortest is None:
        return False
    if split == "appearance":
        return any((item.color, item.kind) in UNSEEN_PAIRS for item in level.targets)
    heldout = crc32(repr(level).encode()) % HELDOUT_SHARE == 0
    return split not in ("train", "heldout") or heldout == (split == "heldout")


def level_of(seed: int, split: str) -> Level:
    """The level that a seed stands for in a split; the same on every machine.

    Splits are disjoint: by a hash of the content for `train` and `heldout`, by color-object pairs
    that no other level holds for `appearance`, by boxes to pick up and "after you" for
    `semantics`, by larger rooms with more items and no doors for `execution`.

    Raises:
        UserError: an unknown split.
    """
    if split not in SPLITS:
        raise UserError(f"unknown split {split!r}; choose one of {', '.join(SPLITS)}")
    random = Random(f"{split} {seed}")
    while True:
        level = _draw(random, split)
        if level is not None and _belongs(level, split):
            return level
