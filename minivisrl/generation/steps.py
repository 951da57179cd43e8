r"""One denoising step as an action: its sample, its log-probability, its mean and its spread.

Survey: sections 2.1 and 3.2.1, Eq. (2).
Symbols: s_t -> (x, level, caption), a_t -> `prev` or `next`, pi(a_t | s_t) -> Normal(mean, std).
Departs: Eq. (2) is written for tokens; here an action is a Gaussian draw (DDIM with eta > 0, or
    the SDE that has the marginals of a flow's ODE). Log-probs are averages over the latents by
    default, which keeps them near 1 but scales ratios and divergences; `reduce="sum"` does not.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Generator, Tensor
from torch.distributions import Normal

Step = tuple[Tensor, Tensor, Tensor, Tensor]
Reduce = Literal["mean", "sum"]


def _rows(value: Tensor | float, x: Tensor) -> Tensor:
    """A scalar or (N,) as a tensor that multiplies x, (N, ...)."""
    return torch.as_tensor(value, dtype=x.dtype, device=x.device).view(-1, *[1] * (x.ndim - 1))


def reduced(x: Tensor, reduce: Reduce) -> Tensor:
    """(N, ...) -> (N,): average or sum over the latents."""
    return x.flatten(1).mean(dim=1) if reduce == "mean" else x.flatten(1).sum(dim=1)


def act(
    mean: Tensor, std: Tensor, given: Tensor | None, generator: Generator | None, reduce: Reduce
) -> tuple[Tensor, Tensor]:
    """Draw from Normal(mean, std), or score a given sample: the sample, and its log-prob (N,)."""
    if not bool((std > 0).all()):
        raise ValueError("std is 0: a step without noise has no log-probability, so is no action")
    if given is None:
        if generator is None:
            raise ValueError("a step needs a sample to score, or a generator to draw one")
        noise = torch.randn(mean.shape, generator=generator, device=generator.device)
        given = mean + std * noise.to(mean)
    logprob = Normal(mean, std, validate_args=False).log_prob(given)
    return given, reduced(logprob, reduce)


def ddim_transition(
    noise_pred: Tensor,
    x: Tensor,
    alpha_bar: Tensor | float,
    alpha_bar_prev: Tensor | float,
    eta: float,
) -> tuple[Tensor, Tensor]:
    r"""Mean (N, ...) and std (N, 1, ...) of a DDIM step; eta = 0 is the deterministic one.

    .. math:: \sigma^2 = \eta^2 \frac{1 - \bar\alpha'}{1 - \bar\alpha}
              \Big(1 - \frac{\bar\alpha}{\bar\alpha'}\Big), \quad
              \mu = \sqrt{\bar\alpha'} \hat x_0 + \sqrt{1 - \bar\alpha' - \sigma^2} \hat\epsilon
    """
    now, prev = _rows(alpha_bar, x), _rows(alpha_bar_prev, x)
    clean = (x - (1 - now).sqrt() * noise_pred) / now.sqrt()
    variance = eta**2 * (1 - prev) / (1 - now) * (1 - now / prev)
    mean = prev.sqrt() * clean + (1 - prev - variance).clamp(min=0).sqrt() * noise_pred
    return mean, variance.sqrt()


def ddim_step(
    noise_pred: Tensor,
    x: Tensor,
    alpha_bar: Tensor | float,
    alpha_bar_prev: Tensor | float,
    eta: float,
    *,
    prev_sample: Tensor | None = None,
    generator: Generator | None = None,
    reduce: Reduce = "mean",
) -> Step:
    r"""Draw x_{t-1}, or score a given one.  Eq. (2); with eta = 1 it is the DDPM posterior.

    Args:
        noise_pred, x, prev_sample: (N, ...).
        alpha_bar, alpha_bar_prev: scalar or (N,), cumulative signal before and after the step.
        reduce: log-density averaged ("mean") or summed ("sum") over latents, constants included.

    Returns:
        prev (N, ...), logprob (N,), mean (N, ...), std (N or 1, 1, ...).

    Raises:
        ValueError: std is 0 (eta = 0, or nothing left to denoise), or nothing to score or draw.
    """
    mean, std = ddim_transition(noise_pred, x, alpha_bar, alpha_bar_prev, eta)
    return *act(mean, std, prev_sample, generator, reduce), mean, std


def sde_transition(
    velocity: Tensor,
    x: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    noise_level: float,
) -> tuple[Tensor, Tensor]:
    r"""Mean (N, ...) and std (N, 1, ...) of an Euler step of the SDE; noise_level = 0 is the ODE.

    .. math:: dx = \Big(v + \frac{g^2}{2\sigma}(x + (1 - \sigma) v)\Big) dt + g \, dW, \quad
              g = a \sqrt{\sigma / (1 - \sigma)}, \quad dt = \sigma' - \sigma < 0

    At sigma = 1, g is that of sigma_next, for it would be infinite.
    """
    now, after = _rows(sigma, x), _rows(sigma_next, x)
    dt = after - now
    if not bool((dt < 0).all()):
        raise ValueError("sigma_next must be smaller than sigma: sampling runs from 1 to 0")
    inner = torch.where(now < 1, now, after)
    variance = noise_level**2 * inner / (1 - inner)  # g^2
    drift = velocity + variance / (2 * now) * (x + (1 - now) * velocity)
    return x + drift * dt, (variance * -dt).sqrt()


def sde_step(
    velocity: Tensor,
    x: Tensor,
    sigma: Tensor | float,
    sigma_next: Tensor | float,
    noise_level: float,
    *,
    next_sample: Tensor | None = None,
    generator: Generator | None = None,
    reduce: Reduce = "mean",
) -> Step:
    r"""Draw x at the next sigma, or score a given one.  Eq. (2).

    Velocity is noise - x0 and x = (1 - sigma) x0 + sigma noise.  The std is that of the transition,
    g sqrt(-dt).  Arguments, result and errors as in `ddim_step`.
    """
    mean, std = sde_transition(velocity, x, sigma, sigma_next, noise_level)
    return *act(mean, std, next_sample, generator, reduce), mean, std
