"""Supervised fine-tuning: learns a mapping, by the schedule, and goes on where it stopped."""

import copy
import math
import sys

import pytest
import torch
from mllm.tiny import seeded

from minivisrl import UserError
from minivisrl.mllm.policy import new_vlm
from minivisrl.optimization.update import descend
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer, sft_loss
from minivisrl.rollout import Prompts

COLOURS = {"red": 0, "green": 1, "blue": 2}


def painted():
    """Six prompts: the first three ask for the colour of the image, the others echo a word."""
    image = torch.zeros(6, 3, 32, 32, dtype=torch.uint8)
    for row, channel in enumerate(COLOURS.values()):
        image[row, channel] = 255
    texts = ["what color is it ?"] * 3 + ["up ?", "down ?", "left ?"]
    answers = [*COLOURS, "1 2 3", "4", "5 6"]
    return Prompts({"image": image, "prompt": texts, "answer": answers})


def trainer_of(seed=0, **options):
    """A tiny policy and demonstrations: four of the six prompts per step, drawn."""
    policy, prompts = new_vlm(seed, width=32, layers=1), painted()
    policy.max_tokens = 5

    def draw(generator, step):
        batch = prompts.sample(4, generator)
        return policy.encode(batch, batch["answer"], generator)

    options = {"learning_rate": 1e-2, "warmup": 5, "total_steps": 80} | options
    return SFTTrainer(policy, draw, SFTConfig(**options), seeded(seed))


def test_it_learns_what_it_is_shown():
    """Image to word and word to words, greedily right at the end; the loss falls from log V."""
    trainer, prompts = trainer_of(total_steps=50), painted()
    assert trainer.policy.predict(prompts) != prompts["answer"]
    history = [trainer.step() for _ in range(50)]
    losses = [stats["loss"] for stats in history]
    assert losses[0] == pytest.approx(math.log(len(trainer.policy.tokenizer)), abs=0.5)
    assert losses[0] > losses[5] + 1 > losses[10] + 2  # 8 seeds: 6.8, 4.9, 2.8, +- .2
    assert losses[-1] < 0.15  # 8 seeds: .04 +- .02
    assert trainer.policy.predict(prompts) == prompts["answer"]
    for stats in history:
        assert stats["token_probability"] == pytest.approx(math.exp(-stats["loss"]))
        assert set(stats) == {"loss", "token_probability", "learning_rate"}


def test_it_does_not_learn_at_a_rate_of_almost_nothing():
    """The control: the same run with a tiny step leaves the loss where it was."""
    trainer = trainer_of(learning_rate=1e-9)
    history = [trainer.step()["loss"] for _ in range(6)]
    assert max(history) - min(history) < 0.5  # 8 seeds: .1, at most .22; learning falls by 2


def test_the_loss_is_a_token_mean_over_the_mask():
    """-(ln .5 + ln .25 + ln .125) / 3 = 2 ln 2, whatever is under the mask; and its gradient."""
    half = math.log(0.5)
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    for junk in (0.0, -1e30):
        logprobs = torch.tensor([[half, 2 * half], [3 * half, junk]], requires_grad=True)
        loss, stats = sft_loss(logprobs, mask)
        assert loss.item() == pytest.approx(2 * math.log(2))
        assert stats["token_probability"].item() == pytest.approx(0.25)
        assert not any(value.requires_grad for value in stats.values())
        loss.backward()
        torch.testing.assert_close(logprobs.grad, -mask / 3)


def test_the_learning_rate_rises_stays_and_falls():
    """Four steps of warm-up, ten in all: quarters, ones, then fifths down to zero."""
    trainer = trainer_of(learning_rate=1.0, warmup=4, total_steps=10)
    rates = []
    for trainer.steps in range(12):
        rates.append(trainer.learning_rate())
    expected = [0.25, 0.5, 0.75, 1.0, 1.0, 1.0, 0.8, 0.6, 0.4, 0.2, 0.0, 0.0]
    assert rates == pytest.approx(expected)
    trainer = trainer_of(learning_rate=0.5, warmup=0, total_steps=4)
    assert trainer.learning_rate() == 0.5


def test_the_optimiser_uses_the_rate_of_the_schedule():
    """With gradients far above the clip, the first step of Adam moves weights by the rate."""
    trainer = trainer_of(learning_rate=4e-3, warmup=4, total_steps=100, weight_decay=0.0)
    before = copy.deepcopy(trainer.policy.state_dict())
    stats = trainer.step()
    assert stats["learning_rate"] == pytest.approx(1e-3)
    after = trainer.policy.state_dict()
    largest = max((after[name] - before[name]).abs().max().item() for name in before)
    assert largest == pytest.approx(1e-3, rel=0.01)


def test_gradients_are_clipped(monkeypatch):
    """The norm over all weights is capped before the optimiser sees it."""
    norms = []
    clip = torch.nn.utils.clip_grad_norm_

    def spy(parameters, norm):
        parameters = list(parameters)
        before = clip(parameters, norm)
        grads = [p.grad.norm() for p in parameters if p.grad is not None]
        norms.append(torch.stack(grads).norm().item())
        return before

    monkeypatch.setattr(sys.modules[descend.__module__], "clip_grad_norm_", spy)
    trainer = trainer_of(max_grad_norm=1e-3)
    for _ in range(3):
        trainer.step()
    assert norms == pytest.approx([1e-3] * 3, rel=1e-3)


def test_divergence_stops_the_run():
    """Story: the loop went on through a loss that was not a number, and shipped the weights."""
    trainer = trainer_of()
    with torch.no_grad():
        trainer.policy.model.lm_head.weight[0, 0] = float("nan")
    before = {name: p.clone() for name, p in trainer.policy.named_parameters()}
    with pytest.raises(UserError, match="training diverged"):
        trainer.step()
    for name, parameter in trainer.policy.named_parameters():
        assert torch.equal(parameter.nan_to_num(), before[name].nan_to_num())


def test_a_resumed_run_is_the_same_run():
    """Weights, optimiser, generator and step count: seven steps in one go, or three and four."""
    whole = trainer_of()
    history = [whole.step() for _ in range(7)]
    first = trainer_of()
    for _ in range(3):
        first.step()
    state = copy.deepcopy(first.state_dict())
    second = trainer_of(seed=5)  # other weights, another generator
    second.load_state_dict(state)
    assert second.steps == 3
    assert [second.step() for _ in range(4)] == history[3:]
    ours, theirs = second.policy.state_dict(), whole.policy.state_dict()
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)


@pytest.mark.parametrize("name", ["learning_rate", "total_steps", "max_grad_norm"])
def test_wrong_settings_are_named(name):
    for value in (0, -1, float("nan")):
        with pytest.raises(ValueError, match=f"{name}={value} must be positive"):
            SFTConfig(**{name: value})
