"""Questions: every answer recounted from the graph and from the pixels; balance; splits."""

from collections import Counter, defaultdict
from random import Random

import pytest
import torch
from torch import Generator
from worlds.reader import HUES, SHAPES, answer, apart, count, only, read

from minivisrl.worlds.questions import KINDS, ask, question_prompts
from minivisrl.worlds.scenes import Scene, Thing

COLOURS = tuple(HUES.values())
SPLITS = ("train", "heldout", "appearance", "composition")
ALL = ("count count_attr color_of shape_of relation exists total difference more").split()


def seeded(seed=0):
    return Generator().manual_seed(seed)


def drawn(count, split, seed=0, kinds=ALL):
    return question_prompts(count, kinds, split, seeded(seed))


def test_the_kinds_are_those_of_the_design():
    assert sorted(KINDS) == sorted(ALL)


@pytest.mark.parametrize("split", SPLITS)
def test_answers_by_recount(split):
    """The graph, all scenes; and the pixels, where a pixel of background parts all objects."""
    prompts = drawn(540, split)
    columns = zip(*(prompts[c] for c in ("prompt", "answer", "scene", "image")), strict=True)
    read_off = 0
    for prompt, told, scene, image in columns:
        assert answer(prompt, scene.things) == told, prompt
        if apart(scene):
            assert answer(prompt, read(image)) == told, prompt
            read_off += 1
    assert read_off > 120


@pytest.mark.parametrize("split", ["train", "composition"])
def test_the_working_is_true_and_leads_to_the_answer(split):
    prompts = drawn(540, split, seed=1)
    columns = zip(
        *(prompts[c] for c in ("prompt", "answer", "scene", "kind", "steps")), strict=True
    )
    for prompt, told, scene, kind, steps in columns:
        words, things = steps.split(), scene.things
        if kind in ("count", "count_attr", "exists"):
            *described, number = words
            assert int(number) == count(things, *described)
            assert told == (number if kind != "exists" else "no" if number == "0" else "yes")
        elif kind in ("color_of", "shape_of"):
            thing = only(
                things,
                *prompt.removesuffix(" thing ?").removesuffix(" ?").split("is the ")[1].split(),
            )
            assert words == ["a", thing.size, thing.color, thing.shape] and told in words
        elif kind == "relation":
            a, b = prompt.removeprefix("is the ").removesuffix(" ?").split(" the ")
            assert answer(f"is the {steps} the {b} ?", things) == "yes" and a.startswith(
                " ".join(words[:2])
            )
            assert (" ".join(words) == a) == (told == "yes")
        else:
            first, m, second, n = words
            assert (count(things, first), count(things, second)) == (int(m), int(n))
            combined = {"total": int(m) + int(n), "difference": int(m) - int(n)}
            assert told == str(combined.get(kind, "yes" if int(m) > int(n) else "no"))
            assert prompt.index(first) < prompt.index(second)


@pytest.mark.parametrize("split", SPLITS)
def test_the_commonest_answer_is_worth_little(split):
    """Exactly even where scenes allow it; counts are capped by what scenes hold."""
    prompts = drawn(9 * 120, split, seed=2)
    answers = defaultdict(Counter)
    for kind, told in zip(prompts["kind"], prompts["answer"], strict=True):
        answers[kind][told] += 1
    numbers = 3 if split == "composition" else 6
    even = {"count": numbers, "color_of": 6, "shape_of": 4, "relation": 2, "exists": 2, "more": 2}
    for kind, ways in even.items():
        assert set(answers[kind].values()) == {120 // ways}, kind
        assert len(answers[kind]) == ways
    for kind, most in {"count_attr": 0.25, "total": 0.22, "difference": 0.33}.items():
        assert answers[kind].most_common(1)[0][1] <= most * 120, kind
        assert {"0", "1", "2", "3"} <= set(answers[kind])


def test_kinds_take_turns_and_columns_stay_together():
    prompts = drawn(100, "train")
    counts = Counter(prompts["kind"])
    assert set(counts) == set(ALL) and set(counts.values()) == {11, 12}
    assert set(prompts.columns) == {"image", "prompt", "answer", "kind", "steps", "scene"}
    assert prompts["image"].shape == (100, 3, 32, 32) and prompts["image"].dtype == torch.uint8
    assert prompts["kind"] != sorted(prompts["kind"])  # shuffled
    small = question_prompts(4, ("count",), "train", seeded(), pixels=16)
    assert small["image"].shape == (4, 3, 16, 16)
    for number in (1, 2, 7):
        for split in SPLITS:
            assert len(drawn(number, split)) == number


@pytest.mark.parametrize(("about", "words"), [("color", COLOURS), ("shape", SHAPES)])
def test_combined_questions_may_be_about_one_family(about, words):
    """All asked for come, and both counts are of that family."""
    for split in ("train", "composition"):
        kinds = ("total", "difference", "more")
        prompts = question_prompts(60, kinds, split, seeded(6), about=(about,))
        assert len(prompts) == 60 and set(prompts["kind"]) == set(kinds)
        assert all(set(steps.split()[::2]) <= set(words) for steps in prompts["steps"])


def test_splits_reach_the_questions():
    def pairs(split):
        scenes = drawn(300, split, seed=3)["scene"]
        return {(t.color, t.shape) for scene in scenes for t in scene.things}

    assert len(pairs("train")) == len(pairs("heldout")) == 20 and len(pairs("appearance")) == 24
    assert min(len(s.things) for s in drawn(100, "composition")["scene"]) > 6


def test_questions_without_an_answer_are_not_asked():
    """No unique red thing, no pair to compare: None, not a guess."""
    twins = Scene(
        tuple(Thing("cross", "red", "small", x, 0.2, i) for i, x in enumerate((0.2, 0.5)))
    )
    for seed in range(20):
        for kind in ("color_of", "shape_of", "relation"):
            assert ask(twins, kind, Random(seed)) is None
        for kind in ("count", "count_attr", "exists", "total", "difference", "more"):
            question = ask(twins, kind, Random(seed))
            assert answer(question.prompt, twins.things) == question.answer


def test_the_generator_decides():
    one, same, other = drawn(60, "train", 4), drawn(60, "train", 4), drawn(60, "train", 5)
    for name in one.columns:
        assert torch.equal(one[name], same[name]) if name == "image" else one[name] == same[name]
    assert one["prompt"] != other["prompt"]


def test_unknown_kinds_and_splits_are_named():
    with pytest.raises(ValueError, match=r"question kinds \['area'\] are unknown"):
        drawn(4, "train", kinds=("count", "area"))
    with pytest.raises(ValueError, match="split='test' is unknown"):
        drawn(4, "test")
