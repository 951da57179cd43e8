"""Reward model and Eq. (4): what is scored, the odds it finds, the optimum, the third term."""

import copy
import math

import pytest
import torch
from recorded import Recorded, seeded

from minivisrl import UserError
from minivisrl.mllm.policy import new_vlm
from minivisrl.optimization import GRPO, PPO, GRPOConfig, PPOConfig
from minivisrl.paradigms.offline import OfflineConfig, OfflineTrainer, shuffled_pairs
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer
from minivisrl.paradigms.rlhf import (
    BradleyTerry,
    LearnedReward,
    RewardModelConfig,
    WithPretraining,
    last_values,
    pair_accuracy,
    pair_scores,
    reward_scores,
    rlhf_objective,
    siblings,
    train_reward_model,
)
from minivisrl.policy import ActionStats, frozen, params_sha256
from minivisrl.rewards import judge, weighted
from minivisrl.rollout import PreferencePairs, Prompts


def colours(count, generator, flip=0.0):
    """Images of one colour each; the annotator prefers its name to another colour's."""
    names, images = ["red", "green", "blue"], torch.zeros(count, 3, 32, 32)
    truth = torch.randint(3, (count,), generator=generator).tolist()
    other = torch.randint(1, 3, (count,), generator=generator).tolist()
    for row, color in enumerate(truth):
        images[row, color] = 1.0
    right = [names[c] for c in truth]
    wrong = [names[(c + d) % 3] for c, d in zip(truth, other, strict=True)]
    prompts = Prompts({"image": images, "prompt": ["what color ?"] * count, "answer": right})
    flipped = torch.rand(count, generator=generator) < flip
    sides = [(b, a) if f else (a, b) for a, b, f in zip(right, wrong, flipped, strict=True)]
    return PreferencePairs(prompts, *map(list, zip(*sides, strict=True)))


def is_right(completions, answer, **_):
    return [float(c == a) for c, a in zip(completions, answer, strict=True)]


def small_config(**changes):
    return RewardModelConfig(
        steps=60, trainer=OfflineConfig(**{"batch_size": 32, "learning_rate": 3e-3} | changes)
    )


@pytest.fixture(scope="module")
def trained():
    """A reward model of 60 steps, and the policy it grew from."""
    policy = new_vlm(0, width=32, layers=1)
    policy.max_tokens = 2
    return policy, train_reward_model(policy, colours(128, seeded()), small_config(), seeded(1))


def test_the_last_masked_column_scores():
    """Gaps and padding: columns 3, 1 and 0; a row that is all mask has its last column."""
    values = torch.arange(16.0).view(4, 4)
    mask = torch.tensor([[1, 0, 0, 1], [1, 1, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1]])
    assert last_values(values, mask).tolist() == [3.0, 5.0, 8.0, 15.0]


def test_the_head_finds_the_odds():
    """Bradley-Terry is exact here: preferences of 3 and 9 to 1 give score gaps log 3 and log 9."""
    wins = [([1], [0], 15), ([0], [1], 5), ([2], [1], 15), ([1], [2], 5), ([2], [0], 18)]
    wins += [([0], [2], 2)]
    rows = [(a, b) for a, b, count in wins for _ in range(count)]
    model = Recorded(1, 3, 2)  # column 1 has read the first token
    outputs = [[[*a, 0] for a, _ in rows], [[*b, 0] for _, b in rows]]
    pairs = PreferencePairs(Prompts({"prompt": [0] * len(rows)}), *outputs)
    cfg = OfflineConfig(batch_size=60, learning_rate=0.05)
    trainer = OfflineTrainer(model, pairs, BradleyTerry(likelihood=0.0), cfg, seeded())
    assert trainer.ref_policy is None
    rows = [trainer.step() for _ in range(300)]
    assert rows[0]["loss"] == pytest.approx(math.log(2))
    reward = LearnedReward(model, likelihood=0.0)
    scores = torch.tensor(reward([[0, 0], [1, 0], [2, 0]], [0, 0, 0]))
    assert (scores - scores[0]).tolist() == pytest.approx([0.0, math.log(3), math.log(9)], abs=1e-3)
    assert model.logits.abs().max() == 0  # the loss reads the head alone


def test_likelihood_joins_the_score_as_a_mean():
    """Columns of log-probs -1 -3 (masked: -9) have mean -2; value 5 at the end."""
    values, logprobs = torch.tensor([[7.0, 5.0, 8.0]]), torch.tensor([[-1.0, -3.0, -9.0]])
    forward, mask = ActionStats(logprobs, None, values, None), torch.tensor([[1, 1, 0]])
    assert reward_scores(forward, mask, 0.0).tolist() == [5.0]
    assert reward_scores(forward, mask, 0.5).tolist() == [4.0]


def test_the_reward_model_agrees_with_held_out_labels(trained):
    """Seeds 0-7: 1.00 each.  (Of labels at random it learns nothing: see the end-to-end test.)"""
    held_out = colours(200, seeded(99))
    assert pair_accuracy(trained[1], held_out) > 0.95
    assert pair_accuracy(is_right, held_out) == 1


def test_training_a_reward_leaves_the_policy_alone(trained):
    policy, reward = trained
    before = params_sha256(policy)
    again = train_reward_model(policy, colours(128, seeded()), small_config(), seeded(1))
    assert policy.value_head is None and params_sha256(policy) == before
    assert params_sha256(again.policy) == params_sha256(reward.policy)  # and it can be repeated
    assert not any(p.requires_grad for p in reward.policy.parameters())


def test_scores_are_standardised_on_the_pairs(trained):
    _, reward = trained
    scores = torch.tensor(pair_scores(reward, colours(128, seeded())))
    assert scores.mean().item() == pytest.approx(0, abs=1e-4)
    assert scores.std().item() == pytest.approx(1, abs=1e-4)


def test_the_learned_reward_is_a_reward_function(trained):
    """`judge` calls it; batches, siblings and the company of other rows change nothing."""
    policy, reward = trained
    prompts = colours(6, seeded(5)).prompts
    rollout = policy.rollout(prompts, 3, seeded())
    rewards, terms = judge(weighted({reward: 1.0, is_right: 0.0}), rollout)
    assert set(terms) == {"learned", "is_right"} and torch.equal(rewards, terms["learned"])
    rows = prompts.repeat(3)
    one_by_one = [
        reward([text], [rows["prompt"][i]], image=rows["image"][i : i + 1])[0]
        for i, text in enumerate(rollout.outputs)
    ]
    assert rewards.tolist() == pytest.approx(one_by_one, abs=1e-4)
    small = LearnedReward(reward.policy, reward.shift, reward.scale)
    small.batch_size = 4
    assert judge(small, rollout)[0].tolist() == pytest.approx(one_by_one, abs=1e-4)


def test_siblings_are_recognised():
    """Groups of 2 and 4 make 2; equal neighbours in every column count, in one column do not."""
    image = torch.tensor([0, 0, 1, 1, 1, 1]).view(6, 1, 1, 1)
    assert siblings(Prompts({"prompt": ["a"] * 6})) == 6
    assert siblings(Prompts({"prompt": ["a"] * 6, "image": image})) == 2
    assert siblings(Prompts({"prompt": ["a", "a", "b", "b", "b", "b"], "image": image})) == 2
    assert siblings(Prompts({"prompt": list("abbbbb"), "image": image})) == 1
    assert siblings(Prompts({"prompt": ["a"], "level": torch.zeros(1)})) == 1
    numbers = Prompts({"prompt": [0, 1, 2], "level": torch.tensor([1.0, 1.0, 2.0])})
    assert siblings(numbers.repeat(5)) == 5 and siblings(numbers) == 1


def test_the_score_has_read_the_whole_text(trained):
    """Changing the last word changes the score: the head reads the end token's column."""
    _, reward = trained
    image = torch.zeros(2, 3, 32, 32)
    first, second = reward(["it is red", "it is blue"], ["what color ?"] * 2, image=image)
    assert abs(first - second) > 1e-3


def test_pair_accuracy_counts_ties_as_halves():
    prompts = Prompts({"prompt": ["a"] * 4, "score": [0] * 4})
    pairs = PreferencePairs(prompts, ["1", "2", "3", "1"], ["0", "3", "3", "0"])

    def value(completions, prompts, score):
        assert prompts == ["a"] * 4 and score == [0] * 4
        return [float(c) for c in completions]

    assert pair_accuracy(value, pairs) == pytest.approx((1 + 0 + 0.5 + 1) / 4)


def test_rlhf_objective_by_hand():
    """Mean reward 1, two nats at .1 each, log-likelihood -3 at .5: 1 - .2 - 1.5 = -.7."""
    rewards, kl = torch.tensor([0.0, 2.0]), torch.tensor([1.0, 3.0])
    objective, stats = rlhf_objective(rewards, kl, 0.1)
    assert objective.item() == pytest.approx(0.8) and set(stats) == {"reward", "kl_ref"}
    objective, stats = rlhf_objective(rewards, kl, 0.1, torch.tensor([-2.0, -4.0]), 0.5)
    assert objective.item() == pytest.approx(-0.7)
    assert {k: v.item() for k, v in stats.items()} == pytest.approx(
        {"reward": 1.0, "kl_ref": 2.0, "pretrain_logprob": -3.0}
    )


def test_rlhf_objective_is_largest_at_the_closed_form():
    """By enumeration: pi_SFT exp(R / beta) / Z beats 200 random neighbours; it earns beta log Z."""
    start = Recorded(1, 3, 2, end=2).randomise(0)
    everything = start.trajectories()
    base = start.row_logprobs(everything).detach()  # (N,)
    reward, kl_coef = torch.rand(len(base), generator=seeded(), dtype=base.dtype), 0.3

    def objective(logprobs):
        probs = logprobs.exp()  # expectations by weights that sum to one
        scale = len(probs) * probs
        return rlhf_objective(scale * reward, scale * (logprobs - base), kl_coef)[0].item()

    log_z = (base + reward / kl_coef).logsumexp(0)
    best = objective(base + reward / kl_coef - log_z)
    assert best == pytest.approx(kl_coef * log_z.item())
    noise = torch.randn(200, len(base), generator=seeded(1), dtype=base.dtype)
    others = (base + reward / kl_coef + 0.3 * noise).log_softmax(1)
    assert max(map(objective, others)) < best


@pytest.mark.parametrize("algorithm", [PPO(PPOConfig(kl_coef=0.0)), GRPO(GRPOConfig(kl_coef=0.0))])
def test_the_third_term_joins_the_gradient(algorithm):
    """One SGD step: the inner step plus rate * gamma * gradient of E[log pi(x)], by enumeration."""
    start = Recorded(2, 3, 2).randomise(0)
    rollout = start.rollout(Prompts({"prompt": [0, 1]}), 4, seeded())
    rewards = torch.rand(8, generator=seeded(2), dtype=torch.float64)
    known = start.as_rollout([0, 1], torch.tensor([[1, 2], [0, 0]]), 1)
    moved = {}
    for gamma in (None, 0.0, 0.7):
        policy = copy.deepcopy(start)
        inner = type(algorithm)(type(algorithm.cfg)(kl_coef=0.0, update_epochs=1))
        job = inner if gamma is None else WithPretraining(inner, lambda generator: known, gamma)
        optimizer = torch.optim.SGD(policy.parameters(), lr=0.1)
        batch = job.compare(policy, None, rollout, rewards)
        policy.logits.grad = torch.ones_like(policy.logits)  # of an earlier step: it must not count
        stats = job.improve(policy, optimizer, batch, max_grad_norm=1e9, generator=seeded())
        moved[gamma] = policy.logits.detach() - start.logits.detach()
    gradient = torch.autograd.grad(start.row_logprobs(known).mean(), start.logits)[0]
    assert torch.allclose(moved[None], moved[0.0])
    assert torch.allclose(moved[0.7] - moved[0.0], 0.1 * 0.7 * gradient)
    assert stats["pretrain_logprob"] == pytest.approx(start.row_logprobs(known).mean().item())


def test_the_third_term_keeps_what_pre_training_knew():
    """A reward for token 1 everywhere erases prompt 1's habit (token 0); gamma keeps it."""

    def reward(completions, prompts):
        return [float(tokens[0] == 1) for tokens in completions]

    kept = {}
    for gamma in (0.0, 1.0):
        policy = Recorded(2, 2, 1)
        policy.logits.data[:, 0, 0] = 1.0
        habit = policy.as_rollout([1], torch.tensor([[0]]), 1)
        job = WithPretraining(GRPO(GRPOConfig(kl_coef=0.0)), lambda generator, h=habit: h, gamma)
        cfg = OnlineConfig(batch_size=2, group_size=8, learning_rate=0.1)
        prompts = Prompts({"prompt": [0, 1]})
        trainer = OnlineTrainer(policy, prompts, reward, job, cfg, seeded())
        for _ in range(60):
            trainer.step()
        kept[gamma] = policy.logits.softmax(-1)[:, 0, 0].tolist()
    assert max(kept[0.0]) < 0.1  # both prompts gave in
    assert kept[1.0][0] < 0.1 and kept[1.0][1] > 0.5


def rlhf(seed, shuffle=False):
    """Comparisons -> reward model -> GRPO; returns the share of right first tokens, start .25."""
    generator, prompts = seeded(seed), list(range(16))
    right = [p % 4 for p in prompts for _ in range(6)]
    wrong = [(r + 1 + i % 3) % 4 for i, r in enumerate(right)]
    outputs = [[t, i % 4] for i, t in enumerate(right)], [[t, i % 4] for i, t in enumerate(wrong)]
    pairs = PreferencePairs(Prompts({"prompt": [p for p in prompts for _ in range(6)]}), *outputs)
    pairs = shuffled_pairs(pairs, generator) if shuffle else pairs
    model = Recorded(16, 4, 2)
    options = OfflineConfig(batch_size=48, learning_rate=0.1)
    trainer = OfflineTrainer(model, pairs, BradleyTerry(), options, generator)
    for _ in range(40):
        trainer.step()
    policy, reward = Recorded(16, 4, 2), LearnedReward(frozen(model)).standardised(pairs)
    cfg = OnlineConfig(batch_size=16, group_size=4, learning_rate=0.1)
    job = GRPO(GRPOConfig(kl_coef=0.01))
    online = OnlineTrainer(policy, Prompts({"prompt": prompts}), reward, job, cfg, generator)
    for _ in range(30):
        online.step()
    return policy.logits.softmax(-1)[prompts, 0, [p % 4 for p in prompts]].mean().item()


def test_rlhf_end_to_end_finds_the_truth_it_never_saw():
    """Right answers, seeds 0-7: .930 +- .007; reward from labels at random: .187 +- .087."""
    assert rlhf(seed=0) > 0.9
    assert rlhf(seed=0, shuffle=True) < 0.54


def test_mistakes_are_named():
    with pytest.raises(UserError, match="RewardModelConfig.steps=0"):
        RewardModelConfig(steps=0)
