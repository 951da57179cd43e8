r"""Stage 2 of RLHF: learn a score from comparisons.

Survey: section 2.2.1, Eq. (3).
Symbols: R_phi(p, y_A), R_phi(p, y_B) -> chosen_scores, rejected_scores.
Departs: the winner always comes first (the label y of Eq. 3 is 1), and the sum is a mean.
"""

from __future__ import annotations

from torch import Tensor
from torch.nn.functional import logsigmoid

from minivisrl.optimization.update import Stats


def bradley_terry_loss(chosen_scores: Tensor, rejected_scores: Tensor) -> tuple[Tensor, Stats]:
    r"""Cross-entropy of "the chosen one wins" under the Bradley-Terry model.  Eq. (3).

    .. math:: -\log\sigma\big(R_\phi(p, y_A) - R_\phi(p, y_B)\big)

    Args:
        chosen_scores, rejected_scores: (B,).

    Returns:
        loss (mean over pairs), and stats: `accuracy`, `margin` (mean difference of the scores).
    """
    margin = chosen_scores - rejected_scores  # (B,)
    stats = {"accuracy": (margin > 0).float().mean(), "margin": margin.detach().mean()}
    return -logsigmoid(margin).mean(), stats
