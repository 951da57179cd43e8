r"""Time-decayed reward: agreement with an expert, where the next actions count most.

Survey: sections 2.2.3 and 3.4.2; the formula is VLN-R1's (arXiv 2506.17221).
Symbols: gamma -> gamma, alpha_{t+k} -> actions, alpha*_{t+k} -> expert.
Departs: divided by its largest value, so that 1 is full agreement; the expert's whole way is
    compared, from the start of the episode, where VLN-R1 predicts six actions from any point.
"""

from __future__ import annotations

from collections.abc import Sequence

from minivisrl import UserError


def decayed_agreement(actions: Sequence[int], expert: Sequence[int], gamma: float) -> float:
    r"""How far an agent acts as the expert did, from 0 to 1.

    .. math:: \sum_{k=0}^{n-1} \gamma^k \, [\alpha_k = \alpha^*_k] \Big/ \sum_{k=0}^{n-1} \gamma^k

    Args:
        actions: of the agent; those after the expert's n are not read, those missing are wrong.
        expert: n actions.
        gamma: 1: all count alike; 0: the first alone.

    Raises:
        UserError: no action of an expert.
    """
    if not expert:
        raise UserError("an expert who does nothing cannot be followed: give at least one action")
    weights = [gamma**k for k in range(len(expert))]
    pairs = zip(weights, actions, expert, strict=False)
    return sum(weight for weight, one, other in pairs if one == other) / sum(weights)
