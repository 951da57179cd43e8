"""Drift from the start: zero where nothing moved, the exact divergence where something did."""

import copy

import pytest
import torch
from mllm.tiny import full_forward, prompts_of, seeded, sharp_vlm
from oracle.tabular import TreePolicy

from minivisrl.evaluation.state import kl_to_start
from minivisrl.policy import frozen
from minivisrl.rollout import Prompts

EOS, IMAGE = 2, 4


def moved(policy, scale=0.05):
    """A copy of a policy with noise on its weights."""
    twin, generator = copy.deepcopy(policy), seeded(9)
    with torch.no_grad():
        for parameter in twin.parameters():
            noise = torch.randn(parameter.shape, generator=generator, dtype=parameter.dtype)
            parameter.add_(scale * parameter.std() * noise)
    return twin


def ending(policy):
    """The same policy with a likely end token: masks differ from row to row."""
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[EOS] *= 6
    return policy


def test_equal_weights_have_not_moved():
    policy = ending(sharp_vlm())
    drift = kl_to_start(policy, frozen(policy), prompts_of(), seeded())
    assert drift["kl_start"] == pytest.approx(0.0, abs=1e-6)


def test_drift_is_the_divergence_of_whole_rows_in_plain_forwards():
    """sum_t sum_v p log(p / q) over masked columns, float64, from logits computed without cache."""
    start = ending(sharp_vlm())
    policy = moved(start)
    drift = kl_to_start(policy, start, prompts_of(), seeded(1), group_size=3)
    rollout = policy.rollout(prompts_of(), 3, seeded(1))
    tokens = rollout.actions["tokens"]
    assert IMAGE not in tokens and 0 < rollout.mask.mean() < 1
    p, q = (
        full_forward(each, rollout.prompts, tokens, 3)[0].detach().double().log_softmax(-1)
        for each in (policy, start)
    )
    forward, backward = ((a.exp() * (a - b)).sum(-1) * rollout.mask for a, b in ((p, q), (q, p)))
    expected = forward.sum(1).mean().item()
    assert drift["kl_start"] == pytest.approx(expected, rel=1e-4)
    assert expected > 1e-3 and abs(backward.sum(1).mean().item() - expected) > 1e-2 * expected
    entropy = -(p.exp() * p).sum(-1) * rollout.mask
    assert drift["entropy"] == pytest.approx(
        entropy.sum().item() / rollout.mask.sum().item(), rel=1e-4
    )
    assert drift["completion_length"] == pytest.approx(rollout.mask.sum(1).mean().item())
    assert kl_to_start(policy, start, prompts_of(), seeded(1), group_size=3) == drift


def test_drift_grows_with_the_distance_and_is_the_divergence_of_trajectories():
    """A tree policy: the mean over many rollouts is KL of trajectory distributions, enumerated."""
    start = TreePolicy(1, vocabulary=3, length=3, end=2).randomise(0)
    kls = []
    for scale in (0.3, 1.0):
        policy = TreePolicy(1, vocabulary=3, length=3, end=2).randomise(0)
        with torch.no_grad():
            policy.logits += scale * torch.randn(
                policy.logits.shape, generator=seeded(3), dtype=torch.float64
            )
        rollout = policy.trajectories()
        p, q = policy.row_logprobs(rollout), start.row_logprobs(rollout)
        expected = (p.exp() * (p - q)).sum().item()
        prompts = Prompts({"prompt": [0]})
        drift = kl_to_start(policy, start, prompts, seeded(4), group_size=20_000)
        assert drift["kl_start"] == pytest.approx(expected, rel=0.03)
        kls.append(expected)
    assert kls[1] > 2 * kls[0]
