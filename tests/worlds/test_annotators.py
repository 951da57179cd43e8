"""Simulated annotators: what is read, what is preferred, how often they agree with themselves."""

import math
from random import Random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from minivisrl import UserError
from minivisrl.mllm.pretraining import AnnotatorConfig, describe
from minivisrl.rollout import Prompts
from minivisrl.worlds.annotators import (
    PreferenceConfig,
    annotate,
    ceiling,
    mentions,
    preference,
    read,
    utility,
)
from minivisrl.worlds.scenes import Scene, Thing, sample_scenes


def seeded(seed=0):
    return Generator().manual_seed(seed)


def scene_of(*kinds):
    """A scene of "color shape" objects; where they are does not matter here."""
    words = [kind.split() for kind in kinds]
    return Scene(tuple(Thing(s, c, "large", 0.5, 0.5, i) for i, (c, s) in enumerate(words)))


FOUR = scene_of("red circle", "red circle", "blue square", "green cross")


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("red circle, blue square", ["red circle", "blue square"]),
        ("A large RED circle and 2 green crosses.", ["red circle", "green cross"]),
        ("red small circle", ["red circle"]),
        ("red, circle", []),  # a color and a shape of different objects
        ("the red and the circle", []),
        ("circle red", []),
        ("red blue square", ["blue square"]),
        ("red redcircle reds", []),
        ("<answer> cyan triangle </answer>", ["cyan triangle"]),
        ("red circle square", ["red circle"]),
        ("pink circle, red star", []),  # words that no scene has
        ("", []),
        ("nothing", []),
        ("__import__('os').system('x') red circle", ["red circle"]),
    ],
)
def test_what_a_description_mentions(text, found):
    assert [" ".join(pair) for pair in mentions(text)] == found


@pytest.mark.parametrize(
    ("text", "truth", "completeness", "gold", "words"),
    [
        ("red circle, red circle, blue square, green cross", 1, 1, 1, 8),
        ("green cross", 1, 1 / 4, 2 / 5, 2),
        ("red circle, green square", 1 / 2, 1 / 4, 2 / 6, 4),
        ("blue square, blue square, blue square", 1 / 3, 1 / 4, 2 / 7, 6),  # repeating is inventing
        ("cyan cross", 0, 0, 0, 2),
        ("nothing", 0, 0, 0, 1),
        ("", 0, 0, 0, 0),
    ],
)
def test_reading_by_hand(text, truth, completeness, gold, words):
    assert read(text, FOUR) == pytest.approx((truth, completeness, gold, words))


def test_the_true_caption_is_perfect_and_sloppy_ones_are_not():
    """On 200 scenes: every caption scores 1; forgetting costs completeness, misnaming truth."""
    scenes, random = sample_scenes(200, "train", seeded()), Random(0)
    assert all(read(scene.caption(), scene).gold == 1 for scene in scenes)
    careful = dict.fromkeys(("forget", "misname", "repeat"), 0.0)

    def mean(field, **sloppiness):
        cfg = AnnotatorConfig(**careful | sloppiness)
        texts = [describe(scene, cfg, random) for scene in scenes]
        return sum(getattr(read(t, s), field) for t, s in zip(texts, scenes, strict=True)) / 200

    assert mean("gold") == 1
    assert mean("completeness", forget=0.5) < 0.6
    assert mean("truth", misname=0.5) < 0.7
    assert mean("truth", repeat=0.5) < 0.85 and mean("completeness", repeat=0.5) == 1


def test_utility_by_hand():
    """Half true, a quarter complete, four words: .5 * 2 + .25 * 4 + 4 * (.05 - .1) = 1.8."""
    cfg = PreferenceConfig(truth=2.0, completeness=4.0, brevity=0.1, length_bias=0.05)
    assert utility("red circle, green square", FOUR, cfg) == pytest.approx(1.8)


def test_each_weight_decides_what_it_should():
    """Scored against FOUR, the first text of each row wins because of one weight alone."""
    nothing = {"truth": 0.0, "completeness": 0.0, "brevity": 0.0, "noise": 0.0}
    for weights, better, worse in [
        ({"truth": 1.0}, "green cross", "red circle, red circle, blue square, cyan cross"),
        ({"completeness": 1.0}, "red circle, red circle, cyan cross", "green cross"),
        ({"brevity": 1.0}, "green cross", "a green cross"),
        ({"length_bias": 1.0}, "a green cross", "green cross"),
    ]:
        cfg = PreferenceConfig(**nothing | weights)
        assert preference(better, worse, FOUR, cfg) == 1
        assert preference(worse, better, FOUR, cfg) == 0


def test_noise_sets_the_odds():
    """A gap of .2 log 3 at noise .2 means 3 to 1; equal worth is a coin toss, with noise or not."""
    cfg = PreferenceConfig(truth=0.0, completeness=0.0, brevity=0.2 * math.log(3), noise=0.2)
    assert preference("one", "one two", FOUR, cfg) == pytest.approx(0.75)
    assert preference("one two", "one", FOUR, cfg) == pytest.approx(0.25)
    for noise in (0.0, 0.2):
        assert preference("a b", "c d", FOUR, PreferenceConfig(noise=noise)) == 0.5
    assert preference("", "x " * 9999, FOUR, PreferenceConfig(noise=1e-6)) == 1


@settings(deadline=None, max_examples=100)
@given(first=st.text(max_size=60), second=st.text(max_size=60), noise=st.floats(0, 10))
def test_any_text_can_be_read(first, second, noise):
    """Whatever a policy puts out: no crash, fractions in [0, 1], and preferences that add up."""
    reading = read(first, FOUR)
    assert all(0 <= x <= 1 for x in reading[:3]) and reading.words <= 60
    cfg = PreferenceConfig(noise=noise)
    both = preference(first, second, FOUR, cfg), preference(second, first, FOUR, cfg)
    assert sum(both) == pytest.approx(1)


def test_labels_follow_the_odds_and_keep_their_prompts():
    """3 to 1 odds over 2000 pairs: the better text is chosen in .75 +- .04 of them."""
    count = 2000
    cfg = PreferenceConfig(truth=0.0, completeness=0.0, brevity=0.2 * math.log(3), noise=0.2)
    prompts = Prompts({"prompt": list(range(count)), "scene": [FOUR] * count})
    for order in (1, -1):
        texts = [[f"w{i}", f"w{i} more"][::order] for i in range(count)]
        pairs = annotate(prompts, texts, cfg, seeded())
        assert pairs.prompts["prompt"] == list(range(count))
        rows = zip(texts, pairs.chosen, pairs.rejected, strict=True)
        assert all({a, b} == set(two) for two, a, b in rows)
        better = sum(" " not in a for a in pairs.chosen) / count
        assert better == pytest.approx(0.75, abs=0.04)
        assert ceiling(pairs, cfg) == pytest.approx(better)  # who errs is the annotator
    assert ceiling(pairs, PreferenceConfig(brevity=0.0)) == 0.5  # no opinion: a coin toss


def test_of_several_the_best_and_the_worst_are_named():
    """Without noise: the extremes.  With it: P(chosen) is proportional to e^(u / noise)."""
    texts = ["one two three", "one", "one two"]
    count = 3000
    prompts = Prompts({"prompt": [""] * count, "scene": [FOUR] * count})
    weights = {"truth": 0.0, "completeness": 0.0, "brevity": 0.1}
    exact = PreferenceConfig(**weights, noise=0.0)
    pairs = annotate(prompts.rows([0]), [texts], exact, seeded())
    assert (pairs.chosen, pairs.rejected) == (["one"], ["one two three"])
    noisy = PreferenceConfig(**weights, noise=0.1 / math.log(2))  # a word halves the odds: 4, 2, 1
    pairs = annotate(prompts, [texts] * count, noisy, seeded())
    for text, share in (("one", 4 / 7), ("one two", 2 / 7), ("one two three", 1 / 7)):
        assert pairs.chosen.count(text) / count == pytest.approx(share, abs=0.04)


def test_equal_texts_are_not_compared():
    prompts = Prompts({"prompt": ["a", "b"], "scene": [FOUR, FOUR]})
    cfg = PreferenceConfig()
    texts = [["same"] * 3, ["green cross", "cyan cross", "green cross"]]
    pairs = annotate(prompts, texts, cfg, seeded())
    assert pairs.prompts["prompt"] == ["b"]
    assert {*pairs.chosen, *pairs.rejected} == {"green cross", "cyan cross"}
    with pytest.raises(UserError, match="nothing to compare"):
        annotate(prompts, [["x", "x"], ["y"]], cfg, seeded())


def test_a_biased_annotator_prefers_long_descriptions():
    """The proxy and the truth part ways: with a large length bias, padding beats being right."""
    honest, biased = PreferenceConfig(noise=0.0), PreferenceConfig(noise=0.0, length_bias=0.2)
    right, padded = "green cross", "cyan cross " + "large " * 10
    assert preference(right, padded, FOUR, honest) == 1
    assert preference(right, padded, FOUR, biased) == 0
    assert read(right, FOUR).gold > read(padded, FOUR).gold


def test_same_seed_same_labels():
    scenes = sample_scenes(50, "train", seeded())
    prompts = Prompts({"prompt": [""] * 50, "scene": scenes})
    texts = [[scene.caption(), "red circle"] for scene in scenes]
    labels = [annotate(prompts, texts, PreferenceConfig(noise=1.0), seeded(s)) for s in (0, 0, 1)]
    assert labels[0].chosen == labels[1].chosen != labels[2].chosen


def test_mistakes_are_named():
    with pytest.raises(UserError, match="PreferenceConfig.noise=-1"):
        PreferenceConfig(noise=-1)
