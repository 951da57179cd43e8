"""Demonstrations: what is masked, who writes what, and that all of it is as true as it claims."""

from collections import Counter
from random import Random

import pytest
import torch
from mllm.tiny import seeded
from worlds.reader import answer, apart, count, read

from minivisrl.mllm import pretraining
from minivisrl.mllm.policy import new_vlm
from minivisrl.mllm.pretraining import CAPTION, DESCRIBE, AnnotatorConfig, demonstrations, describe
from minivisrl.worlds.scenes import Scene, Thing, sample_scenes

POLICY = new_vlm(width=32, layers=1)
TALLIES = ("count the colors", "count the shapes")


def asked_and_told(rollout):
    """(unmasked text, masked text) of every row, decoded token by token; padding left out."""
    rows = []
    for ids, kept in zip(rollout.actions["tokens"], rollout.mask, strict=True):
        parts = [POLICY.tokenizer.convert_ids_to_tokens(ids[kept == m].tolist()) for m in (0, 1)]
        rows.append(tuple(" ".join(word for word in part if word != "<pad>") for part in parts))
    return rows


def batches(cfg, steps=30, first=0, seed=0):
    generator = seeded(seed)
    return [demonstrations(POLICY, cfg, generator, first + step) for step in range(steps)]


def form_of(asked):
    forms = {CAPTION: "caption", DESCRIBE: "describe"} | dict.fromkeys(TALLIES, "tally")
    return forms.get(asked, "answer")


def test_the_mask_covers_the_answer_and_its_end_token_and_nothing_else():
    """The question is given, not imitated; every row ends with one end token, inside the mask."""
    seen = Counter()
    for rollout in batches(AnnotatorConfig(images=8, alignment=2), steps=25):
        for asked, told in asked_and_told(rollout):
            form = form_of(asked)
            seen[form] += 1
            *words, end = told.split()
            assert end == "<eos>" and "<eos>" not in words and "<eos>" not in asked
            if form == "answer":
                assert asked.endswith("?") and words[-1] == "</answer>"
                assert words[0] in ("<answer>", "<think>") and words.count("<answer>") == 1
            else:
                assert "?" not in words and "<answer>" not in words
        lasts = rollout.mask.shape[1] - 1 - rollout.mask.flip(1).argmax(1)
        firsts = rollout.mask.argmax(1)
        assert torch.equal(rollout.mask.sum(1).long(), lasts - firsts + 1)  # no gaps
        assert rollout.mask.any(1).all() and not rollout.logprobs.any()
    assert {"caption", "tally", "describe", "answer"} <= set(seen)


def test_alignment_comes_first():
    """Only true descriptions of the pixels before batch `alignment`; everything after it."""
    cfg = AnnotatorConfig(images=4, alignment=100)
    early = {form_of(asked) for r in batches(cfg) for asked, _ in asked_and_told(r)}
    assert "caption" in early and early <= {"caption", "tally"}
    late = {form_of(asked) for r in batches(cfg, first=100) for asked, _ in asked_and_told(r)}
    assert late == {"caption", "tally", "describe", "answer"}


@pytest.fixture
def scenes_of(monkeypatch):
    """The scenes behind a batch, as `demonstrations` drew them; read off its pixels if apart."""
    drawn = []

    def spy(*args, **options):
        drawn.append(sample_scenes(*args, **options))
        return drawn[-1]

    monkeypatch.setattr(pretraining, "sample_scenes", spy)

    def objects(number, rollout):
        return [
            read(image) if apart(scene) else scene.things
            for image, scene in zip(rollout.prompts["image"], drawn[number], strict=False)
        ]

    return objects


def test_annotators_tell_the_truth_about_the_image(scenes_of):
    """Row i * G + j belongs to image i: captions, tallies and answers agree with its pixels."""
    cfg = AnnotatorConfig(
        images=16, alignment=0, describe=0.0, digits=0.0, caption=0.2, hasty_error=0.0
    )
    seen = Counter()
    for number, rollout in enumerate(batches(cfg, steps=20)):
        scenes = scenes_of(number, rollout)
        for row, (asked, told) in enumerate(asked_and_told(rollout)):
            things, words = scenes[row // rollout.group_size], told.removesuffix(" <eos>")
            seen[form_of(asked)] += 1
            if form_of(asked) == "caption":
                said = [f"{t.size} {t.color} {t.shape}" for t in things]
                assert words == " , ".join(said)
            elif form_of(asked) == "tally":
                tallied = dict(zip(words.split()[::2], words.split()[1::2], strict=True))
                assert tallied == {word: str(count(things, word)) for word in tallied}
                assert len(tallied) == {TALLIES[0]: 6, TALLIES[1]: 4}[asked]
            else:
                claimed = words.split("<answer> ")[1].removesuffix(" </answer>")
                assert answer(asked, things) == claimed
    assert min(seen[form] for form in ("caption", "tally", "answer")) > 30


def test_shares_are_those_of_the_configuration():
    cfg = AnnotatorConfig(
        images=10,
        questions=2,
        digits=0.3,
        alignment=0,
        caption=0.0,
        tally=0.0,
        describe=0.0,
        combined=0.3,
        careful=1.0,
        careful_simple=0.0,
    )
    rows, digits = [], 0
    for rollout in batches(cfg, steps=40):
        assert len(rollout) == 20 and rollout.group_size == 2
        assert rollout.prompts["prompt"] == [""] * 10
        rows += asked_and_told(rollout)
        digits += sum("digit" in asked for asked, _ in asked_and_told(rollout))
    assert digits / len(rows) == 0.3
    combined = [told for asked, told in rows if "digit" not in asked and is_combined(asked)]
    simple = [told for asked, told in rows if "digit" not in asked and not is_combined(asked)]
    assert len(combined) / (len(combined) + len(simple)) == pytest.approx(0.3, abs=0.08)
    careful = [sum("<think>" in told for told in part) / len(part) for part in (combined, simple)]
    assert careful == [1.0, 0.0]


def is_combined(asked):
    return " and " in asked or " more " in asked


def test_hasty_errors_are_off_by_one_and_only_there(scenes_of):
    cfg = AnnotatorConfig(
        images=12,
        alignment=0,
        caption=0.0,
        tally=0.0,
        describe=0.0,
        digits=0.0,
        combined=1.0,
        careful=0.5,
        hasty_error=1.0,
    )
    gaps = Counter()
    for number, rollout in enumerate(batches(cfg, steps=6, seed=1)):
        scenes = scenes_of(number, rollout)
        for row, (asked, told) in enumerate(asked_and_told(rollout)):
            claimed = told.split("<answer> ")[1].split()[0]
            true = answer(asked, scenes[row // rollout.group_size])
            if claimed.isdigit():
                gaps["<think>" in told, abs(int(claimed) - int(true))] += 1
    hasty = sum(n for (careful, _), n in gaps.items() if not careful)
    careful = sum(n for (careful, _), n in gaps.items() if careful)
    assert gaps[False, 1] == hasty > 50
    assert gaps[True, 0] == careful > 50


def test_sloppy_descriptions_forget_misname_and_repeat():
    scene = Scene(
        (
            Thing("circle", "red", "small", 0.2, 0.2, 0),
            Thing("cross", "blue", "large", 0.8, 0.8, 1),
        )
    )
    none = AnnotatorConfig(forget=0.0, misname=0.0, repeat=0.0)
    assert describe(scene, none, Random(0)) == "red circle, blue cross"
    always = AnnotatorConfig(forget=0.0, misname=0.0, repeat=1.0)
    assert describe(scene, always, Random(0)) == "red circle, red circle, blue cross, blue cross"
    assert describe(scene, AnnotatorConfig(forget=1.0), Random(0)) == "nothing"
    random, cfg = Random(0), AnnotatorConfig(forget=0.5, misname=0.0, repeat=0.0)
    told = Counter(describe(scene, cfg, random) for _ in range(400))
    assert set(told) == {"red circle, blue cross", "red circle", "blue cross", "nothing"}
    assert all(60 < n < 140 for n in told.values())
    misnamed = AnnotatorConfig(forget=0.0, misname=1.0, repeat=0.0)
    told = [describe(scene, misnamed, random).split(", ") for _ in range(300)]
    assert all(t[0].split()[0] == "red" or t[0].split()[1] == "circle" for t in told)
    assert sum(t[0] != "red circle" for t in told) > 200


def test_the_generator_and_the_step_decide():
    cfg = AnnotatorConfig(images=4, alignment=1)
    one, same = (demonstrations(POLICY, cfg, seeded(3), 0) for _ in range(2))
    assert torch.equal(one.actions["tokens"], same.actions["tokens"])
    assert torch.equal(one.prompts["image"], same.prompts["image"])
    other = demonstrations(POLICY, cfg, seeded(4), 0)
    assert not torch.equal(one.prompts["image"], other.prompts["image"])


@pytest.mark.parametrize("digits", [0.0, 0.01, 1.0])
def test_any_share_of_digits_works(digits):
    cfg = AnnotatorConfig(
        images=3, alignment=0, caption=0.0, tally=0.0, describe=0.0, digits=digits
    )
    rollout = demonstrations(POLICY, cfg, seeded(), 0)
    assert len(rollout.prompts) == 3
    about = {"digit" in asked for asked, _ in asked_and_told(rollout)}
    assert about == {digits == 1.0}


def test_demonstrations_show_training_scenes_only():
    """No colour-shape pair of the appearance split, at most six objects."""
    known = {(t.color, t.shape) for s in sample_scenes(1000, "train", seeded(5)) for t in s.things}
    for rollout in batches(AnnotatorConfig(images=16, digits=0.0), steps=10):
        for things in map(read, rollout.prompts["image"]):
            assert {(t.color, t.shape) for t in things} <= known and 1 <= len(things) <= 6
