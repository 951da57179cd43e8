r"""Improve: epochs of minibatches over one batch of scored rollouts, shared by PPO and GRPO.

Survey: section 2.3, Figure 3.
Symbols: A -> advantages, pi_ref -> ref_logprobs, V_psi -> values.
Departs: epochs, minibatches and the clipping of the gradient norm are not in the survey.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin, get_type_hints

import torch
from torch import Generator, Tensor
from torch.nn.utils import clip_grad_norm_

from minivisrl import UserError

if TYPE_CHECKING:
    from minivisrl.policy import ActionStats, Policy
    from minivisrl.rollout import Rollout

Stats = dict[str, Tensor]


def validate(cfg: Any, ranges: dict[str, tuple[float, float]]) -> None:
    """Check each Literal field of a config, and each (closed) range; None passes.

    Raises:
        UserError: names the field, its value and what is allowed.
    """
    hints = get_type_hints(type(cfg)).items()
    allowed = {name: get_args(hint) for name, hint in hints if get_origin(hint) is Literal}
    for name in [*allowed, *ranges]:
        value = getattr(cfg, name)
        low, high = ranges.get(name, (0, 0))
        if name in allowed and value not in allowed[name]:
            rule = f"one of {', '.join(allowed[name])}"
        elif name in ranges and value is not None and not low <= value <= high:
            rule = f"between {low} and {high}"
        else:
            continue
        raise UserError(f"{type(cfg).__name__}.{name}={value!r} is not allowed: choose {rule}")


@dataclass(frozen=True)
class Batch:
    """A rollout and what Compare made of it: all that Improve reads.

    Args:
        advantages: (N,), one per completion, or (N, T).
        ref_logprobs, returns, values: (N, T); None where the algorithm has none. `values` are
            those of the critic before the update.
    """

    rollout: Rollout
    advantages: Tensor
    ref_logprobs: Tensor | None = None
    returns: Tensor | None = None
    values: Tensor | None = None

    def minibatches(self, count: int, generator: Generator) -> Iterator[Batch]:
        """Split into `count` parts of whole, shuffled groups; with 1, the batch as it is."""
        if count == 1:
            yield self
            return
        group_size = self.rollout.group_size
        groups = len(self.advantages) // group_size
        if count > groups:
            raise UserError(f"minibatches={count} exceeds the {groups} prompts of a batch")
        for index in torch.randperm(groups, generator=generator).tensor_split(count):
            rows = (index[:, None] * group_size + torch.arange(group_size)).flatten()
            columns = self.advantages, self.ref_logprobs, self.returns, self.values
            parts = (None if column is None else column[rows] for column in columns)
            yield Batch(self.rollout.groups(index), *parts)


def descend(
    policy: Policy, optimizer: torch.optim.Optimizer, loss: Tensor, max_grad_norm: float
) -> Tensor:
    """One optimiser step along the clipped gradient; returns its norm before clipping.

    Raises:
        UserError: the loss or its gradient is not finite.  The weights are then untouched.
    """
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    grad_norm = clip_grad_norm_(policy.parameters(), max_grad_norm)
    if not (loss.isfinite() and grad_norm.isfinite()):
        raise UserError(
            f"training diverged (loss {loss.item()}, gradient norm {grad_norm.item()}): "
            "lower the learning rate, or look for extreme rewards"
        )
    optimizer.step()
    return grad_norm


def update(
    policy: Policy,
    optimizer: torch.optim.Optimizer,
    batch: Batch,
    loss_fn: Callable[[ActionStats, Batch], tuple[Tensor, Stats]],
    cfg: Any,
    max_grad_norm: float,
    generator: Generator,
) -> dict[str, float]:
    """Take cfg.update_epochs * cfg.minibatches steps; `loss_fn` sees one forward and its batch.

    Returns:
        The statistics of the loss, with `loss` and `grad_norm` (before clipping), averaged over
        the steps.

    Raises:
        UserError: the loss or its gradient is not finite.  The weights are then untouched.
    """
    history: list[Stats] = []
    for _ in range(cfg.update_epochs):
        for part in batch.minibatches(cfg.minibatches, generator):
            forward = policy.evaluate_actions(part.rollout, values=batch.values is not None)
            loss, stats = loss_fn(forward, part)
            grad_norm = descend(policy, optimizer, loss, max_grad_norm)
            history.append(stats | {"loss": loss.detach(), "grad_norm": grad_norm})
    return {name: torch.stack([h[name] for h in history]).mean().item() for name in history[0]}
