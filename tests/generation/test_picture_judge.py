"""The reward model of pictures: it sees picture and caption, learns to rank, and never draws."""

import pytest
import torch
from generation.tiny import CAPTIONS, captions, seeded, sharp

from minivisrl.generation.flow import new_flow
from minivisrl.generation.judge import PictureJudge
from minivisrl.paradigms.offline import OfflineConfig, OfflineTrainer
from minivisrl.paradigms.rlhf import BradleyTerry, LearnedReward, pair_accuracy
from minivisrl.rollout import PreferencePairs, Prompts


@pytest.fixture
def judge(tmp_path) -> PictureJudge:
    sharp(new_flow(width=32, layers=1)).save(tmp_path)
    made = PictureJudge.load(tmp_path)
    made.add_value_head(seeded())
    return made.eval()


def pictures(count, seed=0):
    return list(torch.rand(count, 3, 16, 16, generator=seeded(seed)))


def test_a_score_depends_on_picture_and_caption_alone(judge):
    """Not on the batch, the group or the generator."""
    shown = pictures(6)
    rollout = judge.encode(captions(), shown, seeded())
    values = judge.evaluate_actions(rollout, values=True).values
    assert values.shape == rollout.mask.shape == (6, 1) and rollout.group_size == 2
    for i in range(6):
        one = judge.encode(captions([CAPTIONS[i // 2]]), [shown[i]], seeded(9))
        alone = judge.evaluate_actions(one, values=True).values
        torch.testing.assert_close(alone[0], values[i], atol=1e-5, rtol=1e-4)
    other = judge.encode(captions(CAPTIONS[::-1]), shown, seeded())
    moved = judge.evaluate_actions(other, values=True).values - values
    assert moved[[0, 1, 4, 5]].abs().min() > 1e-6 and moved[2:4].abs().max() < 1e-5
    assert values.std() > 1e-5


def test_the_gradient_reaches_the_pixels(judge):
    pixels = torch.stack(pictures(3)).requires_grad_()
    judge.scores(captions(), pixels, torch.arange(3)).sum().backward()
    assert pixels.grad.flatten(1).norm(dim=1).min() > 0


def test_as_a_reward_it_is_its_value(judge):
    shown = pictures(3)
    reward = LearnedReward(judge, shift=1.0, scale=2.0)
    with torch.no_grad():
        scores = judge.scores(captions(), 2 * torch.stack(shown) - 1, torch.arange(3))
    assert reward(shown, CAPTIONS) == pytest.approx(((scores - 1) / 2).tolist(), abs=1e-5)


def test_it_learns_to_rank(judge):
    """Bright is liked: 40 steps on 64 pairs.  Held-out accuracy, seeds 0-7: 1.00; control .5."""

    def pairs(seed):
        light = torch.rand(64, 1, 1, 1, generator=seeded(seed)).expand(-1, 3, 16, 16)
        prompts = Prompts({"prompt": [CAPTIONS[i % 3] for i in range(64)]})
        return PreferencePairs(prompts, list(0.5 + light / 2), list(light / 2))

    cfg = OfflineConfig(batch_size=16, learning_rate=2e-3)
    trainer = OfflineTrainer(judge, pairs(0), BradleyTerry(likelihood=0.0), cfg, seeded())
    first = trainer.step()["loss"]
    for _ in range(39):
        last = trainer.step()["loss"]
    assert first == pytest.approx(0.69, abs=0.2) and last < 0.2
    assert pair_accuracy(LearnedReward(judge, likelihood=0.0), pairs(1)) > 0.9


def test_saved_and_loaded_is_the_same(judge, tmp_path):
    judge.save(tmp_path / "judge")
    again = PictureJudge.load(tmp_path / "judge")
    assert all(
        torch.equal(a, b) for a, b in zip(again.parameters(), judge.parameters(), strict=True)
    )
    assert again.value_head is not None
