"""Annotators of segments, and the reward model that learns from them."""

from dataclasses import replace

import pytest
import torch
from vla.tiny import agent, level, prompts_of, seeded

from minivisrl import UserError
from minivisrl.paradigms.offline import OfflineConfig, OfflineTrainer
from minivisrl.paradigms.rlhf import BradleyTerry, LearnedReward, pair_accuracy
from minivisrl.rollout import Prompts
from minivisrl.vla.navigation import Episode, Room, navigation_prompts
from minivisrl.vla.segments import (
    SegmentConfig,
    SegmentJudge,
    compare_segments,
    cut,
    progress,
    worth,
)

TOLD = level(("pick", 0))  # one step and the grasp: FORWARD, PICKUP
WHOLE = Episode(TOLD, (0, 1, 2, 3), True)  # turns away and back first


def judge_of(policy) -> SegmentJudge:
    judge = SegmentJudge(policy.model, policy.tokenizer)
    judge.add_value_head(seeded())
    return judge.eval()


def test_progress_by_hand():
    """Two actions away at first, one more after the turn to the left."""
    segments = [Episode(TOLD, WHOLE.actions[:n], n == 4) for n in range(5)]
    assert progress(segments) == [0, -1, 0, 1, 2]
    assert progress([replace(WHOLE, start=1), replace(WHOLE, start=3)]) == [3, 1]


def test_what_cannot_be_undone_counts_as_the_time_limit():
    told = level(("pick", 1))  # the ball; but the key is picked up
    assert progress([Episode(told, (2, 3))]) == [told.shortest - told.limit]


def test_worth_counts_time():
    assert worth([WHOLE], SegmentConfig(hurry=0.25)) == [2 - 4 * 0.25]
    assert worth([replace(WHOLE, start=2)], SegmentConfig(hurry=0.25)) == [2 - 2 * 0.25]


def test_segments_are_pieces_of_the_episode():
    long = Episode(level(("pick", 1)), (0, 0, 0, 0, 1, 2, 2, 1), False)
    found = {cut(long, 3, seeded(seed)) for seed in range(60)}
    assert {(s.start, s.steps) for s in found} == {(start, start + 3) for start in range(6)}
    whole = long.frames()
    for segment in found:
        assert segment.actions == long.actions[: segment.steps]
        assert torch.equal(segment.frames(), whole[segment.start : segment.steps + 1])
    assert cut(long, None, seeded()) is long and cut(long, 8, seeded()) is long


def test_only_the_last_piece_of_a_success_succeeds():
    found = {cut(WHOLE, 2, seeded(seed)) for seed in range(40)}
    assert {(s.start, s.success) for s in found} == {(0, False), (1, False), (2, True)}


def test_the_annotator_prefers_progress():
    """Without noise always; with much noise about as often as not."""
    lost = Episode(TOLD, (0, 0, 0, 0), False)
    prompts = prompts_of(*[TOLD] * 200)
    for noise, share in ((0.0, 1.0), (1e6, 0.5)):
        cfg = SegmentConfig(length=None, noise=noise)
        pairs = compare_segments(prompts, [lost, WHOLE] * 200, cfg, seeded())
        assert len(pairs) == 200 and pairs.prompts["level"] == prompts["level"]
        right = sum(episode is WHOLE for episode in pairs.chosen) / 200
        assert right == pytest.approx(share, abs=0.1)
        sides = zip(pairs.chosen, pairs.rejected, strict=True)
        assert all({a, b} == {WHOLE, lost} for a, b in sides)


@pytest.mark.parametrize(("field", "value"), [("length", 0), ("hurry", -1.0), ("noise", -0.1)])
def test_settings_are_checked(field, value):
    with pytest.raises(UserError, match=f"SegmentConfig.{field}={value}"):
        SegmentConfig(**{field: value})


def test_a_score_is_a_difference_of_values():
    """Of the view where a segment ends and the one where it begins; so pieces add up."""
    judge = judge_of(agent())
    prompts = prompts_of(*[TOLD] * 3)
    parts = [WHOLE, replace(WHOLE, actions=WHOLE.actions[:2]), replace(WHOLE, start=2)]
    scored = judge.evaluate_actions(judge.encode(prompts, parts, seeded()), values=True)
    whole, first, second = scored.values[:, 0]
    assert whole.item() == pytest.approx((first + second).item(), abs=1e-5) and whole != 0
    assert not scored.logprobs.any() and scored.values.shape == (3, 1)


def test_the_judge_reads_the_mission():
    judge = judge_of(agent())
    missions = level(("go", 1)), level(("go", 2))
    assert torch.equal(*(prompts_of(m)["image"] for m in missions))
    episodes = [Episode(told, (0, 2)) for told in missions]
    rollout = judge.encode(prompts_of(*missions), episodes, seeded())
    one, other = judge.evaluate_actions(rollout, values=True).values[:, 0]
    assert abs(one - other) > 1e-4


def test_scores_do_not_depend_on_the_company():
    """Of siblings, of other prompts, or alone: as a reward function is called by `judge`."""
    model = LearnedReward(judge_of(agent()))
    prompts = navigation_prompts(3, "train", seeded())
    outputs = list(agent().rollout(prompts, 4, seeded()).outputs)
    columns = prompts.repeat(4).columns
    columns = {("prompts" if n == "prompt" else n): column for n, column in columns.items()}
    together = model(completions=outputs, **columns)
    for row in (0, 5, 11):
        alone = Prompts(prompts.rows([row // 4]).columns)
        asked = {("prompts" if n == "prompt" else n): c for n, c in alone.columns.items()}
        assert model(completions=[outputs[row]], **asked) == pytest.approx(
            [together[row]], abs=1e-5
        )


def test_a_judge_learns_to_tell_progress():
    """A turn towards the wall or a step to the key, in one room: learned from 16 labels."""
    policy = agent(width=32)
    judge = judge_of(policy).train()
    told = [level(("go", 0), agent=(1, 2, 0)), level(("go", 0), agent=(1, 2, 0))]
    better, worse = Episode(told[0], (2,)), Episode(told[0], (0,))
    pairs = compare_segments(
        prompts_of(*told * 8), [better, worse] * 16, SegmentConfig(noise=0.0), seeded()
    )
    assert pair_accuracy(progress, pairs) == 1
    cfg = OfflineConfig(batch_size=4, learning_rate=3e-3)
    trainer = OfflineTrainer(judge, pairs, BradleyTerry(likelihood=0.0), cfg, seeded())
    for _ in range(20):
        trainer.step()
    assert pair_accuracy(LearnedReward(judge), pairs) == 1


def test_names_tell_what_is_where():
    """The tiles of the room by hand: a row of floor, the agent, the target, walls."""
    room = Room(TOLD)
    room.reset()
    names = room.names()
    assert names[:5] == ["floor"] * 4 + ["wall"]
    assert names[5:10] == ["floor", "right", "floor", "target", "wall"]
    assert names[14] == "door" and names[15] == "ball" and names[20:] == ["wall"] * 5
    room.step(2)
    room.step(3)
    assert room.success and "target" not in room.names()
    both = Room(level(("pick", 0), ("go", 2)))
    both.reset()
    assert both.names()[8] == "target" and both.names()[14] == "door"
    both.step(2)
    both.step(3)
    assert both.names()[8] == "floor" and both.names()[14] == "target"
