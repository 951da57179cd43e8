r"""Three sampled estimators of the KL divergence, the exact one, and the masked means.

Survey: section 2.3.2, Eqs. (12), (13).
Symbols: pi_theta -> logprobs, pi_ref -> ref_logprobs, D_KL -> kl_k1, kl_k2, kl_k3, kl_exact.
Departs: Eq. (13) prints k1 only. As a loss, k1 has no gradient on average, k2 has that of
    KL(pi || ref) and k3 that of KL(ref || pi): per column, in the states that were visited. The
    effect of an action on later states is left out, unless a column is a whole completion.
"""

from __future__ import annotations

from torch import Tensor
from torch.distributions import Distribution, kl_divergence


def kl_k1(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    r"""The plain log-ratio of Eq. (13): unbiased, but often negative on a sample.  (N, T)."""
    return logprobs - ref_logprobs


def kl_k2(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    r"""Half the squared log-ratio: biased in value, unbiased in gradient.  (N, T)."""
    return 0.5 * (logprobs - ref_logprobs).square()


def kl_k3(logprobs: Tensor, ref_logprobs: Tensor) -> Tensor:
    r"""Unbiased and never negative: :math:`e^d - d - 1` with d = ref - new.  (N, T)."""
    log_ratio = ref_logprobs - logprobs
    return log_ratio.expm1() - log_ratio  # expm1: exp(d) - 1 loses all digits near d = 0


KL_ESTIMATORS = {"k1": kl_k1, "k2": kl_k2, "k3": kl_k3}


def kl_exact(dist: Distribution, ref_dist: Distribution) -> Tensor:
    r"""KL(dist || ref_dist) in closed form, with the batch shape of the distributions.

    A Categorical over (N, T, V) gives (N, T); a Normal keeps its latent axes: sum them.
    """
    return kl_divergence(dist, ref_dist)


def masked_mean(x: Tensor, mask: Tensor, dim: int | None = None) -> Tensor:
    """Mean of `x` where `mask` is 1; 0 where there is nothing to average.  Reduces `dim` or all."""
    total = x.masked_fill(mask == 0, 0.0).sum(dim)
    return total / (mask != 0).sum(dim).clamp(min=1)


def aggregate(losses: Tensor, mask: Tensor, how: str, max_length: int | None = None) -> Tensor:
    r"""Reduce (N, T) losses to a scalar.  The choice decides how much a long completion weighs.

    Args:
        how: "sequence": mean per row, then over rows (Eq. 12). "token": mean over all masked
            columns. "constant": sum / (N * max_length), which favours no length.
    """
    if how == "sequence":
        return masked_mean(losses, mask, dim=1).mean()
    if how == "token":
        return masked_mean(losses, mask)
    return losses.masked_fill(mask == 0, 0.0).sum() / (len(losses) * max_length)
