r"""RLHF: learn a reward from comparisons, then optimise it without straying too far.

Survey: section 2.2.1, Eqs. (3), (4).
Symbols: R_phi -> `LearnedReward`, beta -> kl_coef, gamma -> pretrain_coef, D_pre -> `draw`,
    pi_SFT -> the policy that training starts from.
Departs: R_phi reads the feature that predicts the last masked column (the end of the text), which
    has seen everything before it, and adds the mean log-prob that its own language head gives the
    output: what the trunk has learned about images is in there, and a head of a hundred numbers
    does not find it in some thousand comparisons. Scores are shifted and scaled to mean 0 and
    standard deviation 1 on the compared outputs, which Eq. (3) leaves free and leaves to chance.
    PPO and GRPO maximise the first two terms of Eq. (4) in their own ways; the third is added to
    their gradient here.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from math import gcd, inf
from typing import Any

import torch
from torch import Generator, Tensor

from minivisrl.optimization.update import Batch, Stats, validate
from minivisrl.paradigms.dpo import row_scores
from minivisrl.paradigms.offline import OfflineConfig, OfflineTrainer, encode_pairs
from minivisrl.paradigms.online import Optimization
from minivisrl.paradigms.reward_model import bradley_terry_loss
from minivisrl.policy import ActionStats, Policy, frozen
from minivisrl.rewards.judge import RewardFn
from minivisrl.rollout import PreferencePairs, Prompts, Rollout


@dataclass(frozen=True, kw_only=True)
class RewardModelConfig:
    """Stage 2 of RLHF."""

    steps: int = 150  # optimiser steps
    likelihood: float = 1.0  # weight of the mean log-prob in the score; 0: the value head alone
    trainer: OfflineConfig = field(default_factory=lambda: OfflineConfig(learning_rate=3e-4))

    def __post_init__(self) -> None:
        validate(self, {"steps": (1, inf), "likelihood": (0, inf)})


def last_values(values: Tensor, mask: Tensor) -> Tensor:
    """(N, T) -> (N,): the entry of the last masked column; the first one of an empty row."""
    columns = torch.arange(mask.shape[1], device=mask.device)  # (T,)
    last = ((mask != 0) * columns).argmax(dim=1, keepdim=True)  # (N, 1)
    return values.gather(1, last).squeeze(1)


def reward_scores(forward: ActionStats, mask: Tensor, likelihood: float) -> Tensor:
    """R_phi(p, y) (N,): the value at the end of y, and `likelihood` times its mean log-prob."""
    return last_values(forward.values, mask) + likelihood * row_scores(
        forward.logprobs, mask, average=True
    )


class BradleyTerry:
    """Teaches a policy to score outputs.  Eq. (3), as a job for `OfflineTrainer`."""

    needs_reference = False

    def __init__(self, likelihood: float = 1.0) -> None:
        self.likelihood = likelihood

    def compare(
        self, policy: Policy, ref_policy: None, records: PreferencePairs, generator: Generator
    ) -> Batch:
        """2B encoded rows, +1 for a chosen and -1 for a rejected one."""
        rollout = encode_pairs(policy, records, generator)
        signs = rollout.mask.new_tensor([1.0, -1.0]).repeat(len(records))  # (2B,)
        return Batch(rollout, signs, values=torch.zeros_like(rollout.mask))  # asks for values

    def loss(self, forward: ActionStats, batch: Batch) -> tuple[Tensor, Stats]:
        """The loss of the pairs under the current weights."""
        scores = reward_scores(forward, batch.rollout.mask, self.likelihood).view(-1, 2)  # (B, 2)
        return bradley_terry_loss(scores[:, 0], scores[:, 1])


def siblings(records: Prompts) -> int:
    """The largest G for which rows i * G ... i * G + G - 1 are the same record, for every i.

    Entries of a list are the same if they are one object, as `Prompts.repeat` leaves them.
    """
    same = torch.ones(len(records) - 1, dtype=torch.bool)
    for column in records.columns.values():
        if isinstance(column, Tensor):
            same &= (column[1:] == column[:-1]).unsqueeze(1).flatten(1).all(dim=1).cpu()
        else:
            same &= torch.tensor([a is b for a, b in pairwise(column)], dtype=torch.bool)
    starts = [0, *((~same).nonzero()[:, 0] + 1).tolist(), len(records)]
    return gcd(*(b - a for a, b in pairwise(starts)))


class LearnedReward:
    """R_phi(p, y) as a reward function: (score - shift) / scale, one number per output.

    Args:
        policy: scores, with its value head; `train_reward_model` made it.
        likelihood: as in training.
    """

    batch_size = 256  # rows per forward pass
    __name__ = "learned"

    def __init__(
        self, policy: Policy, shift: float = 0.0, scale: float = 1.0, likelihood: float = 1.0
    ) -> None:
        self.policy, self.shift, self.scale = policy, shift, scale
        self.likelihood = likelihood

    @torch.no_grad()
    def __call__(
        self, completions: Sequence[Any], prompts: Sequence[str], **columns: Any
    ) -> list[float]:
        records = Prompts({**columns, "prompt": prompts})
        outputs = Prompts({"output": completions})
        size = siblings(records)  # a prompt is computed once for all of its outputs
        at_once, scores = size * max(1, self.batch_size // size), []
        for start in range(0, len(records), at_once):
            rows = range(start, min(start + at_once, len(records)))
            asked, told = records.rows(rows[::size]), outputs.rows(rows)["output"]
            rollout = self.policy.encode(asked, told, Generator())
            forward = self.policy.evaluate_actions(rollout, values=True)
            scores.append(reward_scores(forward, rollout.mask, self.likelihood))
        return ((torch.cat(scores) - self.shift) / self.scale).tolist()

    def standardised(self, pairs: PreferencePairs) -> LearnedReward:
        """The same reward with mean 0 and standard deviation 1 on the outputs of the pairs."""
        scores = torch.tensor(pair_scores(self, pairs)) * self.scale + self.shift  # (2, B), raw
        scale = max(scores.std().item(), 1e-6)
        return LearnedReward(self.policy, scores.mean().item(), scale, self.likelihood)


def train_reward_model(
    policy: Policy, pairs: PreferencePairs, cfg: RewardModelConfig, generator: Generator
) -> LearnedReward:
    """Stage 2 of RLHF: a copy of the policy with a scalar head learns to rank.  Eq. (3).

    The copy is trained whole, trunk included; `policy` itself is left alone.
    """
    model = copy.deepcopy(policy)
    model.add_value_head(generator)
    trainer = OfflineTrainer(model, pairs, BradleyTerry(cfg.likelihood), cfg.trainer, generator)
    for _ in range(cfg.steps):
        trainer.step()
    return LearnedReward(frozen(model), likelihood=cfg.likelihood).standardised(pairs)


def pair_scores(reward_fn: RewardFn, pairs: PreferencePairs) -> list[list[float]]:
    """Scores of the B chosen outputs, and those of the B rejected ones, by any reward function."""
    columns = {("prompts" if n == "prompt" else n): c for n, c in pairs.prompts.columns.items()}
    sides = (pairs.chosen, pairs.rejected)
    return [list(reward_fn(completions=list(side), **columns)) for side in sides]


def pair_accuracy(reward_fn: RewardFn, pairs: PreferencePairs) -> float:
    """Share of pairs whose chosen output scores higher; a tie counts a half.

    With a reward model on held-out pairs: its accuracy.  With the truth: how good the labels are.
    """
    chosen, rejected = torch.tensor(pair_scores(reward_fn, pairs))  # (B,), (B,)
    return (0.5 + 0.5 * (chosen - rejected).sign()).mean().item()


def rlhf_objective(
    rewards: Tensor,
    kl: Tensor,
    kl_coef: float,
    pretrain_logprobs: Tensor | None = None,
    pretrain_coef: float = 0.0,
) -> tuple[Tensor, Stats]:
    r"""What RLHF maximises, estimated on samples of the current policy.  Eq. (4).

    .. math:: E[R_\phi(p, y)] - \beta \, \mathrm{KL}(\pi_\theta \Vert \pi_{SFT})
              + \gamma \, E_{x \sim D_{pre}}[\log \pi_\theta(x)]

    Args:
        rewards: (N,), of sampled outputs.
        kl: (N,), nats per output: the exact KL, or log-ratios to the starting policy.
        pretrain_logprobs: (M,), log-likelihood of whole pre-training outputs.

    Returns:
        objective, and stats: `reward`, `kl_ref`, and `pretrain_logprob` if there is the third term.
    """
    objective = rewards.mean() - kl_coef * kl.mean()
    stats = {"reward": rewards.mean().detach(), "kl_ref": kl.mean().detach()}
    if pretrain_logprobs is not None:
        objective = objective + pretrain_coef * pretrain_logprobs.mean()
        stats["pretrain_logprob"] = pretrain_logprobs.mean().detach()
    return objective, stats


class WithPretraining:
    r"""PPO or GRPO whose every step also climbs the third term of Eq. (4).

    Args:
        optimization: `PPO(cfg)` or `GRPO(cfg)`.
        draw: `draw(generator) -> Rollout`, an encoded batch of pre-training outputs.
        pretrain_coef: gamma; its gradient joins before the norm is clipped.
    """

    def __init__(
        self,
        optimization: Optimization,
        draw: Callable[[Generator], Rollout],
        pretrain_coef: float,
    ) -> None:
        self.optimization, self.draw, self.pretrain_coef = optimization, draw, pretrain_coef
        self.cfg, self.needs_critic = optimization.cfg, optimization.needs_critic
        self.compare = optimization.compare

    def improve(
        self, policy: Policy, optimizer: torch.optim.Optimizer, batch: Batch, **options: Any
    ) -> dict[str, float]:
        """The inner optimisation's steps, each starting from the gradient of the third term."""
        mixed = _Mixed(optimizer, lambda: self._likelihood(policy, options["generator"]))
        stats = self.optimization.improve(policy, mixed, batch, **options)
        return stats | {"pretrain_logprob": sum(mixed.likelihoods) / len(mixed.likelihoods)}

    def _likelihood(self, policy: Policy, generator: Generator) -> float:
        """Add minus gamma times the gradient of E[log pi(x)]; returns that expectation."""
        rollout = self.draw(generator)
        likelihood = row_scores(policy.logprobs(rollout), rollout.mask).mean()
        (-self.pretrain_coef * likelihood).backward()
        return likelihood.item()


class _Mixed:
    """An optimiser whose gradients start from what `start()` leaves behind, not from zero."""

    def __init__(self, optimizer: torch.optim.Optimizer, start: Callable[[], float]) -> None:
        self.optimizer, self.start, self.step = optimizer, start, optimizer.step
        self.likelihoods: list[float] = []

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.optimizer.zero_grad(set_to_none)
        self.likelihoods.append(self.start())
