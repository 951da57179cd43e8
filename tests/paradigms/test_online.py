"""The online loop: four beats in order, three policies, and a state that goes on to the same bits.

The policies are a table of logits (`oracle.tabular`) or a one-layer VLM: a step takes milliseconds.
"""

import copy
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch
from oracle.tabular import TreePolicy
from torch import Generator

from minivisrl.mllm.policy import VLMPolicy, new_vlm
from minivisrl.optimization import GRPO, PPO, GRPOConfig, PPOConfig
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.rewards import weighted
from minivisrl.rollout import Prompts, Rollout

PROMPTS = Prompts({"prompt": [0, 1, 2]})
SMALL = OnlineConfig(batch_size=2, group_size=4, learning_rate=0.02)


class Table(TreePolicy):
    """`TreePolicy` with what trainers ask of a `Policy`: a float mask, a device, no critic yet."""

    value_head, device = None, torch.device("cpu")

    def as_rollout(self, prompts: list[int], tokens: torch.Tensor, group_size: int) -> Rollout:
        rollout = super().as_rollout(prompts, tokens, group_size)
        return replace(rollout, mask=rollout.mask.double())

    def logprobs(self, rollout: Rollout) -> torch.Tensor:
        return self.evaluate_actions(rollout).logprobs


def token_sum(completions: list[list[int]], **_: object) -> list[float]:
    """A reward that differs between siblings."""
    return [float(sum(completion)) for completion in completions]


def letters(completions: list[str], **_: object) -> list[float]:
    """A reward of texts that differs between siblings."""
    return [float(len(completion)) for completion in completions]


def tree_trainer(algorithm=None, *, seed=0, cfg=SMALL, collect=act_and_judge) -> OnlineTrainer:
    policy = Table(prompts=3, vocabulary=4, length=2).randomise(0, 0.3)
    algorithm = algorithm or GRPO(GRPOConfig())
    generator = Generator().manual_seed(seed)
    return OnlineTrainer(policy, PROMPTS, token_sum, algorithm, cfg, generator, collect=collect)


def vlm_trainer(algorithm, *, seed=0, **rates: float) -> OnlineTrainer:
    policy = new_vlm(0, width=16, layers=1)
    policy.max_tokens = 3
    image = torch.arange(3 * 3 * 32 * 32).view(3, 3, 32, 32) % 251
    prompts = Prompts({"prompt": ["what is this ?"] * 3, "image": image.to(torch.uint8)})
    cfg = replace(SMALL, **{"learning_rate": 1e-3} | rates)
    return OnlineTrainer(policy, prompts, letters, algorithm, cfg, Generator().manual_seed(seed))


def parameters(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(first[k].equal(second[k]) for k in first)


class Recorder(torch.nn.Module):
    """A policy and an optimization in one that write down who was called with what."""

    needs_critic = False
    cfg = SimpleNamespace(kl_coef=0.0, minibatches=1)

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.value_head = torch.nn.Parameter(torch.zeros(1)), None
        self.calls: list[tuple] = []

    def rollout(self, prompts: Prompts, group_size: int, generator: Generator) -> Rollout:
        rows = len(prompts) * group_size
        self.given = Rollout(
            prompts, {}, torch.zeros(rows, 2), torch.ones(rows, 2), group_size, ["y"] * rows
        )
        self.calls.append(("act", len(prompts), group_size, generator))
        return self.given

    def reward(self, completions: list, prompts: list, **_: object) -> list[float]:
        self.calls.append(("judge", list(completions), list(prompts)))
        return [1.0, 1.0, 0.0, 1.0]

    def compare(self, policy, ref_policy, rollout, rewards) -> str:
        self.calls.append(("compare", policy, ref_policy, rollout, rewards.tolist()))
        return "batch"

    def improve(self, policy, optimizer, batch, *, max_grad_norm, generator) -> dict[str, float]:
        self.calls.append(("improve", policy, optimizer, batch, max_grad_norm, generator))
        return {"loss": 7.0}


def test_the_four_beats_in_order():
    fake, generator = Recorder(), Generator().manual_seed(0)
    cfg = OnlineConfig(batch_size=2, group_size=2, max_grad_norm=0.3)
    trainer = OnlineTrainer(fake, PROMPTS, fake.reward, fake, cfg, generator)
    stats = trainer.step()
    act, judge, compare, improve = fake.calls
    assert act == ("act", 2, 2, generator)
    asked = fake.given.prompts["prompt"]
    assert judge == ("judge", ["y"] * 4, [asked[0]] * 2 + [asked[1]] * 2)
    assert compare == ("compare", fake, None, fake.given, [1.0, 1.0, 0.0, 1.0])
    assert improve == ("improve", fake, trainer.optimizer, "batch", 0.3, generator)
    assert stats["loss"] == 7.0 and stats["reward"] == 0.75 and trainer.steps == 1
    trainer.step()
    assert [call[0] for call in fake.calls] == 2 * ["act", "judge", "compare", "improve"]
    assert trainer.steps == 2


def test_statistics_by_hand():
    """Rewards 1 1 | 0 1: mean .75, population deviation sqrt(.1875), one of two groups is flat."""
    fake = Recorder()

    def half(completions: list, **_: object) -> list[float]:
        return [0.5] * len(completions)

    reward = weighted({fake.reward: 1.0, half: 2.0})  # 2 2 | 1 2
    cfg = OnlineConfig(batch_size=2, group_size=2)
    stats = OnlineTrainer(fake, PROMPTS, reward, fake, cfg, Generator().manual_seed(0)).step()
    assert stats == {
        "reward": 1.75,
        "reward_std": pytest.approx(0.1875**0.5),
        "zero_variance_groups": 0.5,
        "completion_length": 2.0,
        "reward/reward": 0.75,
        "reward/half": 0.5,
        "loss": 7.0,
    }


def test_collect_can_be_swapped():
    given = []

    def collect(*args):
        given.append(args)
        return act_and_judge(*args)

    trainer = tree_trainer(collect=collect)
    trainer.step()
    expected = (trainer.policy, PROMPTS, token_sum, SMALL, trainer.generator)
    assert all(one is two for one, two in zip(given[0], expected, strict=True))


@pytest.mark.parametrize("columns", [0, 3])
def test_shuffled_deals_the_same_rewards_to_other_rows(columns):
    """Across groups, row-wise, from the trainer's generator and nothing else."""
    rewards = torch.arange(8.0) if not columns else torch.arange(24.0).view(8, 3)
    rollout, terms = object(), {"term": torch.arange(8.0)}

    def collect(*args):
        torch.rand(5, generator=args[-1])  # sampling draws from the same generator
        return rollout, rewards, terms

    def dealt(seed: int, noise: int) -> tuple[torch.Tensor, Generator]:
        torch.manual_seed(noise)
        generator = Generator().manual_seed(seed)
        found, shuffled_rewards, found_terms = shuffled(collect)(1, 2, 3, 4, generator)
        assert found is rollout and found_terms is terms
        return shuffled_rewards, generator

    first, after = dealt(0, 0)
    generator = Generator().manual_seed(0)
    torch.rand(5, generator=generator)
    order = torch.randperm(8, generator=generator)
    assert first.equal(rewards[order]) and not first.equal(rewards)
    assert after.get_state().equal(generator.get_state())
    assert first.equal(dealt(0, 1)[0]) and not first.equal(dealt(1, 0)[0])
    groups = torch.arange(8) // 4
    many = torch.stack([dealt(seed, 0)[0].view(8, -1)[:, 0] for seed in range(50)])
    assert many.sort(dim=1).values.eq(rewards.view(8, -1)[:, 0]).all()  # the same multiset
    moved = (many / max(columns, 1)).long() // 4 != groups
    assert 0.35 < moved.float().mean() < 0.65  # 1/2: rewards leave their group


def test_shuffled_control_reaches_the_optimization():
    """Compare sees the permuted rewards, so a row's advantage has nothing to do with its reward."""
    seen = []

    class Watching(GRPO):
        def compare(self, policy, ref_policy, rollout, rewards):
            own = torch.tensor(token_sum(rollout.outputs))
            seen.append((own, rewards))
            return super().compare(policy, ref_policy, rollout, rewards)

    trainer = tree_trainer(Watching(GRPOConfig()), collect=shuffled(act_and_judge))
    for _ in range(5):
        trainer.step()
    assert all(own.sort().values.equal(rewards.sort().values) for own, rewards in seen)
    assert any(not own.equal(rewards) for own, rewards in seen)


@pytest.mark.parametrize("algorithm", [GRPO(GRPOConfig(kl_coef=0.0)), PPO(PPOConfig(kl_coef=0.0))])
def test_no_reference_without_kl(algorithm):
    trainer = vlm_trainer(algorithm)
    assert trainer.ref_policy is None
    assert "kl_ref" not in trainer.step()


@pytest.mark.parametrize("algorithm", [GRPO(GRPOConfig(kl_coef=0.1)), PPO(PPOConfig(kl_coef=0.1))])
def test_reference_is_a_frozen_copy_that_does_not_move(algorithm):
    trainer = vlm_trainer(algorithm)
    start, reference = parameters(trainer.policy), trainer.ref_policy
    held = parameters(reference)
    assert all(start[name].equal(p) for name, p in held.items())
    pointers = {p.data_ptr() for p in trainer.policy.parameters()}
    assert not pointers & {p.data_ptr() for p in reference.parameters()}
    assert not any(p.requires_grad for p in reference.parameters()) and not reference.training
    stats = [trainer.step() for _ in range(2)]
    assert trainer.ref_policy is reference and equal(parameters(reference), held)
    assert all(p.grad is None for p in reference.parameters())
    assert not equal(parameters(trainer.policy), start)
    # PPO measures the KL after its first epoch too; GRPO's first step starts at the reference.
    assert stats[1]["kl_ref"] > 0


def test_current_old_and_reference_policies_are_three_things():
    """Old log-probs are those of the weights that sampled: fixed in an update, other than ref's."""
    seen = []

    class Watching(GRPO):
        def improve(self, policy, optimizer, batch, **options):
            old = batch.rollout.logprobs
            before = policy.logprobs(batch.rollout).detach()
            kept = old.clone()
            stats = super().improve(policy, optimizer, batch, **options)
            now = policy.logprobs(batch.rollout).detach()
            assert not old.requires_grad and not batch.ref_logprobs.requires_grad
            assert not batch.advantages.requires_grad
            assert old.equal(kept)  # the update moves the current policy only
            seen.append((before, old, batch.ref_logprobs, now))
            return stats

    trainer = tree_trainer(Watching(GRPOConfig(update_epochs=2)))
    for _ in range(2):
        trainer.step()
    (before, old, ref, now), (before_2, old_2, ref_2, now_2) = seen
    assert old.allclose(before) and old_2.allclose(before_2)  # sampled by the current weights
    assert ref.allclose(old) and not ref_2.allclose(old_2)  # the same only before the first step
    assert not now.allclose(old) and not now_2.allclose(old_2)


def test_ppo_adds_a_critic_and_grpo_does_not():
    """Story: `value_head = None` on the class hid the layer that `add_value_head` registered."""
    assert vlm_trainer(GRPO(GRPOConfig())).policy.value_head is None
    trainer = vlm_trainer(PPO(PPOConfig()))
    head = trainer.policy.value_head
    assert isinstance(head, torch.nn.Linear) and trainer.ref_policy.value_head is None
    trained = {p for group in trainer.optimizer.param_groups for p in group["params"]}
    assert set(head.parameters()) <= trained
    before = parameters(head)
    trainer.step()
    assert trainer.policy.value_head is head and not equal(parameters(head), before)


def test_a_critic_that_is_there_is_kept():
    policy = new_vlm(0, width=16, layers=1)
    policy.add_value_head(Generator().manual_seed(3))
    head, weights = policy.value_head, parameters(policy)
    algorithm, generator = PPO(PPOConfig()), Generator().manual_seed(0)
    trainer = OnlineTrainer(policy, PROMPTS, letters, algorithm, SMALL, generator)
    assert isinstance(head, torch.nn.Linear) and trainer.policy.value_head is head
    assert equal(parameters(policy), weights)


def test_a_critic_may_have_a_learning_rate_of_its_own():
    """Every parameter is in one group, and AdamW's first step has the length of its rate."""
    trainer = vlm_trainer(
        PPO(PPOConfig(update_epochs=1)), learning_rate=1e-4, critic_learning_rate=0.05
    )
    policy, groups = trainer.policy, trainer.optimizer.param_groups
    assert [group["lr"] for group in groups] == [1e-4, 0.05]
    listed = [p for group in groups for p in group["params"]]
    assert len(listed) == len(set(listed)) and set(listed) == set(policy.parameters())
    before = parameters(policy)
    trainer.step()
    moved = {n: (p - before[n]).abs().max().item() for n, p in parameters(policy).items()}
    assert moved.pop("value_head.weight") == pytest.approx(0.05, rel=1e-3)
    moved.pop("value_head.bias")
    assert 0 < max(moved.values()) < 2e-4


def sft_trainer(*, seed=0) -> SFTTrainer:
    policy = Table(prompts=3, vocabulary=4, length=2).randomise(0, 0.3)

    def draw(generator: Generator, step: int) -> Rollout:
        tokens = torch.randint(4, (3, 2), generator=generator)
        return policy.as_rollout([0, 1, 2], tokens + 0 * step, 1)

    cfg = SFTConfig(learning_rate=0.1, warmup=3, total_steps=8)
    return SFTTrainer(policy, draw, cfg, Generator().manual_seed(seed))


BUILDERS = {
    "grpo": partial(tree_trainer, GRPO(GRPOConfig(update_epochs=2, minibatches=2))),
    "ppo": partial(vlm_trainer, PPO(PPOConfig(minibatches=2))),
    "shuffled": partial(tree_trainer, collect=shuffled(act_and_judge)),
    "sft": sft_trainer,
}


@pytest.fixture(params=BUILDERS)
def build(request) -> Iterator[partial]:
    return BUILDERS[request.param]


def test_state_goes_on_to_the_same_bits(build):
    """Into a fresh trainer, and into one that is somewhere else and has another seed."""
    trainer = build()
    for _ in range(2):
        trainer.step()
    state = copy.deepcopy(trainer.state_dict())
    expected = [trainer.step() for _ in range(3)]
    used = build(seed=1)
    for _ in range(4):
        used.step()
    for other in (build(), used):
        other.load_state_dict(copy.deepcopy(state))
        assert other.steps == 2
        assert [other.step() for _ in range(3)] == expected
        assert equal(parameters(other.policy), parameters(trainer.policy))
        assert other.generator.get_state().equal(trainer.generator.get_state())
        assert other.steps == trainer.steps == 5


def test_state_holds_all_that_moves(build):
    """Leave any entry out, and the next steps differ: what `snapshot` holds, it needs."""
    trainer = build()
    for _ in range(2):
        trainer.step()
    state = copy.deepcopy(trainer.state_dict())
    expected = [trainer.step() for _ in range(2)]
    fresh = build(seed=1).state_dict()
    for name in ("policy", "optimizer", "generator"):
        other = build(seed=1)
        other.load_state_dict(copy.deepcopy(state | {name: fresh[name]}))
        assert [other.step() for _ in range(2)] != expected, name


def test_ppo_state_holds_the_critic():
    names = vlm_trainer(PPO(PPOConfig())).state_dict()["policy"]
    assert {"value_head.weight", "value_head.bias"} <= set(names)


def test_a_step_depends_on_its_generator_only():
    """Two trainers in one process do not disturb each other; nor does the global generator."""
    alone = tree_trainer().step()
    torch.manual_seed(1)
    one, two = tree_trainer(), tree_trainer(seed=1)
    two.step()
    torch.rand(3)
    assert one.step() == alone


@pytest.mark.parametrize(
    "field",
    [
        *("batch_size", "group_size", "learning_rate", "critic_learning_rate"),
        *("max_grad_norm", "weight_decay"),
    ],
)
@pytest.mark.parametrize("value", [-1, float("nan")])
def test_config_names_the_field_it_refuses(field, value):
    with pytest.raises(ValueError, match=field):
        OnlineConfig(**{field: value})


def test_the_loop_knows_no_pillar():
    """A VLM and a table of logits are driven alike."""
    for trainer in (tree_trainer(), vlm_trainer(GRPO(GRPOConfig()))):
        before = parameters(trainer.policy)
        row = trainer.step()
        assert {"reward", "loss", "grad_norm", "kl_ref", "entropy"} <= set(row)
        assert all(isinstance(value, float) for value in row.values())
        assert not equal(parameters(trainer.policy), before)
    assert isinstance(trainer.policy, VLMPolicy)
