"""What the unified model is asked, what it is told to imitate, and how its outputs are judged."""

from collections import Counter

import pytest
import torch
from torch import Generator

from minivisrl import UserError
from minivisrl.recipes.unified import UnifiedConfig, blended, comparisons, mixed_prompts, prompts_of
from minivisrl.unified.policy import new_unified
from minivisrl.unified.pretraining import DESCRIBE, DemonstrationConfig, demonstrations, said
from minivisrl.worlds.drawings import held_out
from minivisrl.worlds.scenes import render
from minivisrl.worlds.vocabulary import tokenizer


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


def truth(prompts) -> list:
    """What a model that knows everything would put out."""
    drawn = render(prompts["scene"], 16).float() / 255
    told = {
        "draw": list(drawn),
        "describe": prompts["answer"],
        "answer": list(map(said, prompts["answer"])),
    }
    return [told[kind][row] for row, kind in enumerate(prompts["kind"])]


@pytest.mark.parametrize("kind", ["draw", "describe", "answer"])
def test_the_truth_scores_1_and_another_scene_does_not(kind):
    prompts = prompts_of(kind, 60, "heldout", seeded())
    columns = prompts["scene"], prompts["answer"], prompts["kind"]
    assert blended(truth(prompts), *columns) == [1.0] * 60
    wrong = truth(prompts)[1:] + truth(prompts)[:1]
    assert sum(blended(wrong, *columns)) / 60 < 0.6
    nothing = [torch.zeros(3, 16, 16) if kind == "draw" else ""] * 60
    assert blended(nothing, *columns) == [0.0] * 60


def test_joint_batches_are_judged_row_by_row():
    prompts = mixed_prompts(("draw", "answer", "describe"), 31, "train", seeded())
    assert Counter(prompts["kind"]) == {"draw": 10, "answer": 10, "describe": 11}
    order = torch.randperm(31, generator=seeded())
    mixed = prompts.rows(order)
    assert blended(truth(mixed), mixed["scene"], mixed["answer"], mixed["kind"]) == [1.0] * 31
    drawings = [image is None for image in mixed["image"]]
    assert drawings == [kind == "draw" for kind in mixed["kind"]]


def test_partial_credit_for_a_description():
    """Of two objects one has a wrong color: 5 of 6 points.  One more that is not there: 6 of 9."""
    prompts = prompts_of("describe", 200, "heldout", seeded())
    row = prompts["prompt"].index(DESCRIBE) + [a.count(",") for a in prompts["answer"]].index(1)
    scene, right = prompts["scene"][row], prompts["answer"][row]
    color = right.split()[0]
    other = "red" if color != "red" else "blue"
    told = other + right[len(color) :]
    assert blended([told], [scene], [right], ["describe"]) == [pytest.approx(5 / 6)]
    free = next(
        c for c in ("top left", "middle center", "bottom right", "top right") if c not in right
    )
    more = f"{right}, red circle {free}"
    assert blended([more], [scene], [right], ["describe"]) == [pytest.approx(6 / 9)]


def test_splits_and_words():
    words = tokenizer()
    for split in ("train", "heldout", "appearance", "composition"):
        for kind in ("draw", "describe", "answer"):
            prompts = prompts_of(kind, 40, split, seeded())
            for texts in (prompts["prompt"], prompts["answer"]):
                assert all(words.unk_token_id not in ids for ids in words(list(texts)).input_ids)
    drawn = prompts_of("draw", 80, "heldout", seeded())["prompt"]
    assert all(map(held_out, drawn))
    assert not any(map(held_out, prompts_of("draw", 80, "train", seeded())["prompt"]))


def test_demonstrations_are_thirds_with_the_share_of_mistakes_that_was_asked_for():
    policy, seen = new_unified(width=32, layers=1), []
    policy.encode = lambda prompts, outputs, generator: seen.append((prompts, outputs))
    for share in (0.0, 1.0):
        cfg = DemonstrationConfig(images=90, wrong=share, mistaken=share)
        demonstrations(policy, cfg, 16, seeded(), 0)
    (true, shown), (false, also) = seen
    assert [image is None for image in true["image"]] == [True] * 30 + [False] * 60
    assert true["prompt"][30:60] == [DESCRIBE] * 30
    assert all(
        torch.equal(a, b) for a, b in zip(shown[:30], also[:30], strict=True)
    )  # the pictures
    assert sum(a == b for a, b in zip(true["prompt"][:30], false["prompt"][:30], strict=True)) == 0
    assert sum(a == b for a, b in zip(shown[30:60], also[30:60], strict=True)) == 0
    assert (
        sum(a == b for a, b in zip(shown[60:], also[60:], strict=True)) < 20
    )  # some are right by luck


def test_comparisons_prefer_the_truth_and_never_a_text_to_itself():
    policy = new_unified(width=32, layers=1).eval()
    task = UnifiedConfig(train=("describe",), candidates=3, noise=0.0)
    answers = prompts_of("describe", 24, "train", seeded())["answer"]

    def rollout(part, size, generator):
        told = [text for answer in part["answer"] for text in ("red", answer, "red")]
        return type("R", (), {"outputs": told})()

    policy.rollout = rollout
    pairs = comparisons(policy, task, 24, "train", seeded())
    assert list(pairs.chosen) == answers and set(pairs.rejected) == {"red"}


@pytest.mark.parametrize("kinds", [(), ("draw", "sing")])
def test_unknown_abilities_are_named(kinds):
    with pytest.raises(UserError, match="choose from answer, describe, draw"):
        UnifiedConfig(train=kinds)
