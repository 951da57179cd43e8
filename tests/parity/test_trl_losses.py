"""Our losses against TRL's, values and gradients, on shared float32 tensors with ragged masks.

TRL's numbers are stored in golden.json; where TRL is installed it must still return them.
"""

import json

import numpy as np
import pytest
import torch
from parity.trl_losses import GOLDEN, run_all

from minivisrl.optimization import GRPOConfig, gae, grpo_loss
from minivisrl.paradigms.dpo import DPOConfig, dpo_loss, kto_loss, row_scores

RECORD = json.loads(GOLDEN.read_text())
INPUTS = {name: torch.tensor(values) for name, values in RECORD["inputs"].items()}
MASK, OLD, REF = INPUTS["mask"], INPUTS["old"], INPUTS["ref"]

OUR_GRPO = {
    "grpo": GRPOConfig(kl_coef=0.0),
    "grpo-kl": GRPOConfig(),
    "grpo-gspo": GRPOConfig(kl_coef=0.0, ratio="sequence"),
    "bnpo-kl": GRPOConfig(kl_coef=0.1, aggregate="token"),
    "dapo": GRPOConfig(kl_coef=0.0, aggregate="token", clip_eps_high=0.28),
    "dapo-entropy": GRPOConfig(kl_coef=0.0, aggregate="token", entropy_coef=0.01),
    "dr_grpo-kl": GRPOConfig(aggregate="constant", max_length=8),
}
OUR_DPO = {
    "dpo-sigmoid": DPOConfig(),
    "dpo-ipo": DPOConfig(loss="ipo", average=True),
}


def ours(name, logprobs):
    if name in OUR_GRPO:
        cfg = OUR_GRPO[name]
        return grpo_loss(logprobs, OLD, REF, INPUTS["advantages"], MASK, cfg, INPUTS["entropy"])[0]
    if name == "rloo":  # TRL takes the ratio of whole completions: each row is one column
        new, old = row_scores(logprobs, MASK)[:, None], row_scores(OLD, MASK)[:, None]
        one, cfg = torch.ones(6, 1), GRPOConfig(kl_coef=0.0)
        return grpo_loss(new, old, None, INPUTS["advantages"], one, cfg)[0]
    if name == "kto":
        desirable = torch.tensor([True, True, False, True, False, False])
        scores, ref = row_scores(logprobs, MASK), row_scores(REF, MASK)
        return kto_loss(
            scores,
            ref,
            desirable,
            DPOConfig(),
            unrelated=INPUTS["unrelated"],
            undesirable_weight=1.5,
        )[0]
    cfg = OUR_DPO[name]
    scores = [*row_scores(logprobs, MASK, cfg.average).chunk(2)]
    scores += row_scores(REF, MASK, cfg.average).chunk(2)
    return dpo_loss(*scores, cfg)[0]


@pytest.mark.parametrize("name", RECORD["cases"])
def test_our_loss_is_trls(name):
    logprobs = INPUTS["logprobs"].clone().requires_grad_()
    loss = ours(name, logprobs)
    gradient = torch.autograd.grad(loss, logprobs)[0]
    golden = RECORD["cases"][name]
    assert loss.item() == pytest.approx(golden["loss"], abs=1e-5)
    expected = torch.tensor(golden["gradient"])
    torch.testing.assert_close(gradient, expected, atol=1e-5, rtol=0)
    assert expected.abs().max() > 1e-3


def test_every_case_is_a_different_loss():
    """So that no case passes because a switch is ignored."""
    losses = [case["loss"] for case in RECORD["cases"].values()]
    assert len({round(loss, 4) for loss in losses}) == len(losses) == 11


def test_the_golden_file_is_what_trl_returns():
    pytest.importorskip("trl")
    live = run_all()
    assert live.keys() == RECORD["cases"].keys()
    for name, golden in RECORD["cases"].items():
        assert live[name]["loss"] == pytest.approx(golden["loss"], abs=1e-5)
        live_gradient, gradient = (torch.tensor(x["gradient"]) for x in (live[name], golden))
        torch.testing.assert_close(live_gradient, gradient, atol=1e-5, rtol=0)


def numpy_gae(rewards, values, mask, gamma, gae_lambda):
    """float64, the explicit double sum over pairs of columns: A = C delta, masks as matrices."""
    advantages = np.zeros_like(values)
    for n in range(len(values)):
        columns = np.flatnonzero(mask[n])
        v = np.append(values[n, columns], 0.0)
        delta = rewards[n, columns] + gamma * v[1:] - v[:-1]
        steps = np.arange(len(columns))
        lag = steps[None, :] - steps[:, None]
        weight = np.where(lag >= 0, (gamma * gae_lambda) ** np.maximum(lag, 0.0), 0.0)
        advantages[n, columns] = weight @ delta
    return advantages


@pytest.mark.parametrize(("gamma", "gae_lambda"), [(1.0, 0.95), (0.99, 0.9), (0.9, 1.0)])
def test_gae_is_numpys(gamma, gae_lambda):
    random = np.random.default_rng(0)
    rewards, values = random.normal(size=(2, 64, 12))
    mask = random.random((64, 12)) < 0.6
    expected = numpy_gae(rewards, values, mask, gamma, gae_lambda)
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        tensors = (torch.tensor(x, dtype=dtype) for x in (rewards, values))
        got, _ = gae(*tensors, torch.tensor(mask), gamma=gamma, gae_lambda=gae_lambda)
        np.testing.assert_allclose(got.numpy(), expected, atol=tolerance, rtol=0)
