"""Questions about a scene, their answers, and the steps that lead there.

Simple kinds read one fact off the scene: `count`, `count_attr`, `color_of`, `shape_of`, `relation`,
`exists`.  Combined kinds put two facts together: `total`, `difference`, `more`.  Every question
carries its working (`steps`), which a careful annotator would write down before the answer.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

import torch
from torch import Generator

from minivisrl import UserError
from minivisrl.rollout import Prompts
from minivisrl.worlds.scenes import COLOUR_NAMES, SHAPES, SIZE_NAMES, Scene, render, sample_scenes


@dataclass(frozen=True)
class Question:
    """What is asked, the true answer (one word), and the working that leads to it."""

    kind: str
    prompt: str
    answer: str
    steps: str
    about: str = ""  # for combined kinds: `color` or `shape`, which both counts are about


def _plural(word: str) -> str:
    """The noun phrase for all objects that carry `word`."""
    if word in SHAPES:
        return "crosses" if word == "cross" else f"{word}s"
    return f"{word} things"


def _pick_balanced(scene: Scene, options: Sequence, count: Callable, random: Random) -> tuple:
    """An option and its count, the counts that occur being equally likely."""
    by_count = defaultdict(list)
    for option in options:
        by_count[count(option)].append(option)
    number = random.choice(list(by_count))
    return random.choice(by_count[number]), number


def _count(scene: Scene, random: Random) -> Question:
    answer = str(len(scene.things))
    return Question("count", "how many things are there ?", answer, f"things {answer}")


def _count_attr(scene: Scene, random: Random) -> Question:
    options = [*COLOUR_NAMES, *SHAPES, *SIZE_NAMES]
    word, number = _pick_balanced(scene, options, scene.count, random)
    prompt = f"how many {_plural(word)} are there ?"
    return Question("count_attr", prompt, str(number), f"{word} {number}")


def _unique(scene: Scene, attributes: tuple[str, ...], random: Random) -> tuple | None:
    """An object that the words `attributes` single out, with the phrase that does so."""
    phrases = defaultdict(list)
    for thing in scene.things:
        words = tuple(getattr(thing, name) for name in attributes)
        phrases[words].append(thing)
    single = [(words, things[0]) for words, things in phrases.items() if len(things) == 1]
    return random.choice(single) if single else None


def _color_of(scene: Scene, random: Random) -> Question | None:
    attributes = random.choice([("shape",), ("size", "shape")])
    if (found := _unique(scene, attributes, random)) is None:
        return None
    words, thing = found
    prompt = f"what color is the {' '.join(words)} ?"
    return Question("color_of", prompt, thing.color, f"a {thing.size} {thing.color} {thing.shape}")


def _shape_of(scene: Scene, random: Random) -> Question | None:
    attributes = random.choice([("color",), ("size", "color")])
    if (found := _unique(scene, attributes, random)) is None:
        return None
    words, thing = found
    prompt = f"what shape is the {' '.join(words)} thing ?"
    return Question("shape_of", prompt, thing.shape, f"a {thing.size} {thing.color} {thing.shape}")


RELATIONS = {
    "left of": lambda a, b: a.x < b.x,
    "right of": lambda a, b: a.x > b.x,
    "above": lambda a, b: a.y < b.y,
    "below": lambda a, b: a.y > b.y,
}


def _relation(scene: Scene, random: Random) -> Question | None:
    things = [t for t in scene.things if scene.count(t.color, t.shape) == 1]
    word = random.choice(list(RELATIONS))
    axis = 0 if word in ("left of", "right of") else 1
    pairs = [(a, b) for a in things for b in things if abs((a.x - b.x, a.y - b.y)[axis]) > 0.2]
    if not pairs:
        return None
    a, b = random.choice(pairs)
    answer = "yes" if RELATIONS[word](a, b) else "no"
    prompt = f"is the {a.color} {a.shape} {word} the {b.color} {b.shape} ?"
    true_word = word if answer == "yes" else _opposite(word)
    return Question("relation", prompt, answer, f"{a.color} {a.shape} {true_word}")


def _opposite(word: str) -> str:
    names = list(RELATIONS)
    return names[names.index(word) ^ 1]


def _exists(scene: Scene, random: Random) -> Question | None:
    pairs = [(color, shape) for color in COLOUR_NAMES for shape in SHAPES]
    wanted = random.random() < 0.5
    pairs = [pair for pair in pairs if (scene.count(*pair) > 0) == wanted]
    color, shape = random.choice(pairs)
    answer = "yes" if wanted else "no"
    steps = f"{color} {shape} {scene.count(color, shape)}"
    return Question("exists", f"is there a {color} {shape} ?", answer, steps)


def _two_counts(scene: Scene, combine: Callable, random: Random) -> tuple:
    """Two words of one family, their counts, and the combined number, balanced over it."""
    family = random.choice([COLOUR_NAMES, SHAPES])
    pairs = [(a, b) for a in family for b in family if a != b]

    def combined(pair: tuple[str, str]) -> int:
        return combine(*map(scene.count, pair))

    (a, b), number = _pick_balanced(scene, [p for p in pairs if combined(p) >= 0], combined, random)
    about = "color" if family is COLOUR_NAMES else "shape"
    return a, b, number, f"{a} {scene.count(a)} {b} {scene.count(b)}", about


def _total(scene: Scene, random: Random) -> Question:
    a, b, number, steps, about = _two_counts(scene, lambda x, y: x + y, random)
    prompt = f"how many {_plural(a)} and {_plural(b)} are there ?"
    return Question("total", prompt, str(number), steps, about)


def _difference(scene: Scene, random: Random) -> Question:
    a, b, number, steps, about = _two_counts(scene, lambda x, y: x - y, random)
    prompt = f"how many more {_plural(a)} than {_plural(b)} are there ?"
    return Question("difference", prompt, str(number), steps, about)


def _more(scene: Scene, random: Random) -> Question:
    a, b, number, steps, about = _two_counts(scene, lambda x, y: int(x > y), random)
    prompt = f"are there more {_plural(a)} than {_plural(b)} ?"
    return Question("more", prompt, "yes" if number else "no", steps, about)


SIMPLE = ("count", "count_attr", "color_of", "shape_of", "relation", "exists")
COMBINED = ("total", "difference", "more")
KINDS: dict[str, Callable[[Scene, Random], Question | None]] = {
    "count": _count,
    "count_attr": _count_attr,
    "color_of": _color_of,
    "shape_of": _shape_of,
    "relation": _relation,
    "exists": _exists,
    "total": _total,
    "difference": _difference,
    "more": _more,
}


def ask(scene: Scene, kind: str, random: Random) -> Question | None:
    """A random question of a kind, or None where the scene has no such question."""
    return KINDS[kind](scene, random)


def question_prompts(
    count: int,
    kinds: Sequence[str],
    split: str,
    generator: Generator,
    *,
    about: Sequence[str] = ("", "color", "shape"),
    pixels: int = 32,
) -> Prompts:
    """`count` questions with images: columns image, prompt, answer, kind, steps, scene.

    Kinds take turns, and within a kind the answers occur equally often as far as the scenes allow,
    so that the commonest answer is worth little.

    Args:
        about: which combined questions to keep (`Question.about`).

    Raises:
        UserError: an unknown kind or split.
    """
    if unknown := [kind for kind in kinds if kind not in KINDS]:
        raise UserError(f"question kinds {unknown} are unknown; choose from {list(KINDS)}")
    if not kinds or count < 1:
        raise UserError(f"{count} questions of kinds {list(kinds)}: give at least one of each")
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    scenes = sample_scenes(4 * count + 60, split, generator)
    pools: dict[str, dict[str, list]] = {kind: defaultdict(list) for kind in kinds}
    for index, scene in enumerate(scenes):
        kind = kinds[index % len(kinds)]
        question = ask(scene, kind, random)
        if question and question.about in about:
            pools[kind][question.answer].append((scene, question))
    chosen = []
    for index, kind in enumerate(kinds):
        wanted = (count + len(kinds) - 1 - index) // len(kinds)
        if sum(map(len, pools[kind].values())) < wanted:
            raise UserError(f"too few {kind!r} questions about {list(about)}: ask for fewer")
        chosen += _round_robin(list(pools[kind].values()), wanted)
    random.shuffle(chosen)
    return as_prompts(chosen, pixels)


def _round_robin(pools: list[list], wanted: int) -> list:
    """Take from each pool in turn until `wanted` items are there."""
    longest = max(map(len, pools))
    turns = [pool[i] for i in range(longest) for pool in pools if i < len(pool)]
    return turns[:wanted]


def as_prompts(pairs: Sequence[tuple[Scene, Question]], pixels: int = 32) -> Prompts:
    """Scenes with their questions as prompts."""
    scenes, questions = zip(*pairs, strict=True)
    columns = {
        name: [getattr(question, name) for question in questions]
        for name in ("prompt", "answer", "kind", "steps")
    }
    return Prompts({"image": render(list(scenes), pixels), **columns, "scene": list(scenes)})
