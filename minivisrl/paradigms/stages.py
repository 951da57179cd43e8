r"""Training in stages: a part of the policy at a time, and imitation of one's own successes.

Survey: sections 2.2.1 and 3.4.
Symbols: V_psi -> the value head, pi_theta -> `policy`.
Departs: the survey names the works without a formula: critic warm-up (the first stage of FLaRe,
    arXiv 2409.16578), RL on a light head and then supervision of the whole (iRe-VLA, 2501.16664),
    distillation of RL experts into a generalist (RLDG, 2412.09858).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Generator

from minivisrl import UserError
from minivisrl.paradigms.collect import row_totals
from minivisrl.paradigms.online import Collected, OnlineTrainer, act_and_judge
from minivisrl.policy import Policy
from minivisrl.rollout import Prompts, Rollout

Shown = tuple[Prompts, Sequence[Any]]  # prompts, and an output worth imitating for each


@contextmanager
def only(policy: Policy, *parts: str) -> Iterator[None]:
    """Inside, gradients reach the parameters whose names begin with one of `parts`, and no others.

    An optimiser leaves a parameter without gradient as it is, its momentum included.

    Raises:
        UserError: there is no such parameter.
    """
    named = [(name, p) for name, p in policy.named_parameters() if p.requires_grad]
    others = [p for name, p in named if not name.startswith(parts)]
    if len(others) == len(named):
        raise UserError(f"the policy has no parameter whose name begins with {' or '.join(parts)}")
    for parameter in others:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in others:
            parameter.requires_grad_(True)


def warm_critic(trainer: OnlineTrainer, batches: int) -> Iterator[dict[str, float]]:
    """Steps of PPO that fit the value head and nothing else; the actor stays as it is."""
    for _ in range(batches):
        with only(trainer.policy, "value_head."):
            row = trainer.step()
        yield row


class Successes:
    """Act and Judge for `OnlineTrainer`, which also keeps what earned at least `threshold`."""

    def __init__(
        self, threshold: float = 1.0, collect: Callable[..., Collected] = act_and_judge
    ) -> None:
        self.threshold, self.collect = threshold, collect
        self.prompts: list[Prompts] = []
        self.outputs: list[Any] = []

    def __call__(self, *args: Any) -> Collected:
        rollout, rewards, terms = self.collect(*args)
        won = row_totals(rewards, rollout.mask) >= self.threshold  # (N,)
        if won.any():
            kept = rollout.rows(won.nonzero()[:, 0])
            self.prompts.append(kept.prompts)
            self.outputs += kept.outputs
        return rollout, rewards, terms

    def shown(self) -> Shown:
        """All that was kept.

        Raises:
            UserError: nothing was.
        """
        if not self.outputs:
            raise UserError(f"no output earned {self.threshold}: there is nothing to imitate")
        return Prompts.cat(self.prompts), self.outputs


def draws(policy: Policy, shown: Shown, batch_size: int) -> Callable[[Generator, int], Rollout]:
    """Random batches of `shown`, encoded, for `SFTTrainer` and `learn_order`."""
    prompts, outputs = shown

    def draw(generator: Generator, step: int) -> Rollout:
        index = torch.randint(len(prompts), (batch_size,), generator=generator).tolist()
        return policy.encode(prompts.rows(index), [outputs[i] for i in index], generator)

    return draw
