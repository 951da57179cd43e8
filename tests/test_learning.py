"""It learns, and the control does not: a tiny VLM finds out by GRPO that answers are in the image.

The base is taught the format of an answer and nothing else: demonstrations name one of four colors
at random.  What the color has to do with the picture, only the reward says.  Sampled accuracy on
256 answers to 128 new pictures, mean +- standard deviation over seeds 0-9:

    base                .245 +- .014
    trained             .955 +- .019     mean - 4 standard deviations: .879
    rewards shuffled    .243 +- .022     mean + 4 standard deviations: .331
"""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import Generator

from minivisrl.evaluation.sets import evaluate
from minivisrl.mllm.policy import VLMPolicy, new_vlm
from minivisrl.optimization import GRPO, GRPOConfig
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.rewards import exact_match
from minivisrl.rollout import Prompts, Rollout

SEED, STEPS = 0, 60
PAINT = {"red": (220, 30, 30), "green": (30, 200, 30), "blue": (30, 30, 220)}
PAINT |= {"yellow": (220, 220, 30)}


def pictures(count: int, generator: Generator) -> Prompts:
    """Noisy pictures of one color each."""
    drawn = torch.randint(len(PAINT), (count,), generator=generator)
    plain = torch.tensor(list(PAINT.values()), dtype=torch.float32)[drawn]
    noise = 40 * torch.randn(count, 3, 32, 32, generator=generator)
    image = (plain[:, :, None, None] + noise).clamp(0, 255).to(torch.uint8)
    answers = [list(PAINT)[i] for i in drawn]
    return Prompts({"image": image, "prompt": ["what color is this ?"] * count, "answer": answers})


class Base(NamedTuple):
    """A policy that knows the format, the pictures, and a generator where the base left it."""

    policy: VLMPolicy
    train: Prompts
    heldout: Prompts
    generator: Generator

    def score(self, policy: VLMPolicy) -> float:
        """Share of right answers among two samples a picture."""
        generator = Generator().manual_seed(1)
        return evaluate(policy, self.heldout, samples=2, generator=generator).score


@pytest.fixture(scope="module")
def base() -> Base:
    """100 steps on demonstrations in which the color is drawn, not seen."""
    generator = Generator().manual_seed(SEED)
    policy = new_vlm(SEED, width=32, layers=1)
    policy.max_tokens = 5
    heldout, train = pictures(128, generator), pictures(256, generator)

    def draw(generator: Generator, step: int) -> Rollout:
        prompts = train.sample(32, generator)
        colors = torch.randint(len(PAINT), (32,), generator=generator)
        told = [f"<answer> {list(PAINT)[i]} </answer>" for i in colors]
        return policy.encode(prompts, told, generator)

    cfg = SFTConfig(learning_rate=5e-3, warmup=5, total_steps=100)
    trainer = SFTTrainer(policy, draw, cfg, generator)
    for _ in range(100):
        trainer.step()
    return Base(policy, train, heldout, generator)


def trained(base: Base, collect=act_and_judge) -> tuple[VLMPolicy, list[dict[str, float]]]:
    """The base after GRPO, and the rows; both runs start from the same bits."""
    policy = copy.deepcopy(base.policy)
    generator = Generator()
    generator.set_state(base.generator.get_state())
    cfg = OnlineConfig(batch_size=12, group_size=12, learning_rate=4e-3)
    algorithm = GRPO(GRPOConfig(kl_coef=0.1))
    trainer = OnlineTrainer(
        policy, base.train, exact_match, algorithm, cfg, generator, collect=collect
    )
    return policy, [trainer.step() for _ in range(STEPS)]


def test_the_base_knows_the_format_and_guesses(base):
    told = evaluate(base.policy, base.heldout, samples=2, generator=Generator().manual_seed(1))
    assert told.extracted > 0.95
    assert 0.15 < told.score < 0.35  # 1 in 4


def test_it_learns(base):
    before = base.score(base.policy)
    policy, rows = trained(base)
    assert base.score(policy) > 0.87
    assert evaluate(policy, base.heldout).score > 0.87  # greedy, too
    first, last = (sum(row["reward"] for row in part) / 10 for part in (rows[:10], rows[-10:]))
    assert last > first + 0.3
    assert rows[-1]["kl_ref"] > rows[1]["kl_ref"] >= 0
    assert base.score(base.policy) == before  # the base itself did not move


def test_the_control_does_not(base):
    policy, rows = trained(base, shuffled(act_and_judge))
    assert 0.15 < base.score(policy) < 0.34
    assert any(row["grad_norm"] > 0 for row in rows)  # it was trained, but taught nothing
