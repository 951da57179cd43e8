r"""State-level metrics of a model with two abilities: how far they are apart, how far each moved.

Survey: sections 3.3 and 4.1, Eq. (17).
Symbols: M_state -> `imbalance`, and `kl_by_kind` with D per kind of prompt.
Departs: nothing; the survey names UniRL for the first and HermesFlow for the second.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Generator

from minivisrl.evaluation.state import kl_to_start
from minivisrl.policy import Policy
from minivisrl.rollout import Prompts


def imbalance(understanding: Sequence[float], generation: Sequence[float]) -> float:
    """Absolute gap of the mean rewards of two batches; 0 if the abilities are level."""
    first, second = (
        torch.as_tensor(rewards, dtype=torch.float64) for rewards in (understanding, generation)
    )
    return (first.mean() - second.mean()).abs().item()


def kl_by_kind(
    policy: Policy, start: Policy, prompts: Mapping[str, Prompts], seed: int = 0
) -> dict[str, float]:
    """Drift from the start on every kind of prompt, in nats per episode: `kl_KIND`.  Eq. (17)."""
    return {
        f"kl_{kind}": kl_to_start(policy, start, asked, Generator().manual_seed(seed), 1)[
            "kl_start"
        ]
        for kind, asked in prompts.items()
    }
