"""Denoising steps: the DDPM posterior, the schedulers of diffusers, marginals, log-densities."""

import math

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, FlowMatchEulerDiscreteScheduler
from generation.tiny import REAL, seeded
from scipy import stats


def some(seed=0, rows=3, dtype=torch.float64):
    """(rows, 2, 3, 3) of noise."""
    return torch.randn(rows, 2, 3, 3, generator=seeded(seed), dtype=dtype)


def test_ddim_with_eta_1_is_the_ddpm_posterior(lib=REAL):
    """q(x_{t-1} | x_t, x_0) by the formula of Ho et al., for a row at each of three levels."""
    clean, noise = some(0), some(1)
    now, prev = torch.tensor([0.02, 0.4, 0.9]).double(), torch.tensor([0.1, 0.5, 0.99]).double()
    a, b = now[:, None, None, None], prev[:, None, None, None]
    x = a.sqrt() * clean + (1 - a).sqrt() * noise
    alpha = a / b
    mean = b.sqrt() * (1 - alpha) / (1 - a) * clean + alpha.sqrt() * (1 - b) / (1 - a) * x
    std = ((1 - b) / (1 - a) * (1 - alpha)).sqrt()
    _, _, found_mean, found_std = lib.ddim_step(noise, x, now, prev, 1.0, generator=seeded())
    torch.testing.assert_close(found_mean, mean, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(found_std, std, atol=1e-12, rtol=1e-12)


def test_ddim_takes_the_step_of_the_scheduler(lib=REAL):
    """Parity with `DDIMScheduler.step(eta, variance_noise)`, at every eta, first step to last."""
    scheduler = DDIMScheduler(clip_sample=False, timestep_spacing="trailing")
    scheduler.set_timesteps(5)
    bars, x, said, noise = (
        scheduler.alphas_cumprod,
        *(some(i, dtype=torch.float32) for i in (1, 2, 3)),
    )
    for t in scheduler.timesteps:
        for eta in (0.0, 0.3, 1.0):
            theirs = scheduler.step(said, t, x, eta=eta, variance_noise=noise).prev_sample
            prev = bars[t - 200] if t >= 200 else 1.0
            mean, std = lib.ddim_transition(said, x, bars[t], prev, eta)
            torch.testing.assert_close(mean + std * noise, theirs, atol=1e-4, rtol=1e-4)


def test_the_ode_is_the_schedulers_and_the_sde_shares_its_clean_part(lib=REAL):
    """`FlowMatchEulerDiscreteScheduler`, without and with `stochastic_sampling`.

    Theirs redraws all of the noise, ours keeps most of it, so the two agree in the mean where the
    model sees no noise: at x = -(1 - sigma) v.
    """
    x, said = some(1, dtype=torch.float32), some(2, dtype=torch.float32)
    for stochastic in (False, True):
        scheduler = FlowMatchEulerDiscreteScheduler(stochastic_sampling=stochastic)
        scheduler.set_timesteps(sigmas=np.array([0.8, 0.6, 0.4]))
        here = -(1 - 0.8) * said if stochastic else x
        theirs = scheduler.step(said, scheduler.timesteps[0], here, generator=seeded()).prev_sample
        if stochastic:
            theirs = theirs - 0.6 * torch.randn(x.shape, generator=seeded())
        mean, _ = lib.sde_transition(said, here, 0.8, 0.6, 0.7 if stochastic else 0.0)
        torch.testing.assert_close(mean, theirs, atol=1e-5, rtol=1e-5)


def chain(lib, steps, noise_level, start=1.0):
    """Mean and std at sigma = 0 of the sampler on data N(1.5, .5^2), whose velocity is known.

    It starts from the marginal at sigma = `start`.  Every step is affine in x and Gaussian, so both
    follow without sampling.
    """
    grid = torch.linspace(start, 0, steps + 1, dtype=torch.float64)
    mean, variance = 1.5 * (1 - start), (1 - start) ** 2 * 0.25 + start**2
    for now, after in zip(grid[:-1].tolist(), grid[1:].tolist(), strict=True):
        spread = (1 - now) ** 2 * 0.25 + now**2  # of x at this sigma

        def move(x, now=now, after=after, spread=spread):
            slope = (now - (1 - now) * 0.25) / spread  # cov(noise - x0, x) / var(x)
            velocity = -1.5 + slope * (x - (1 - now) * 1.5)
            return lib.sde_transition(velocity, x, now, after, noise_level)

        zero, std = move(torch.zeros(1, 1, dtype=torch.float64))
        one, _ = move(torch.ones(1, 1, dtype=torch.float64))
        gain = (one - zero).item()
        mean, variance = gain * mean + zero.item(), gain**2 * variance + std.item() ** 2
    return mean, variance**0.5


def test_the_sde_keeps_the_marginals(lib=REAL):
    """The error at the end is of order dt: four times the steps, a quarter of the error."""
    for noise_level in (0.0, 0.3, 0.7):
        errors = []
        for steps in (40, 160, 640):
            mean, std = chain(lib, steps, noise_level, start=0.9)
            assert mean == pytest.approx(1.5, abs=1e-9)
            errors.append(abs(std - 0.5))
        assert errors[0] < 0.02
        assert errors[0] / errors[1] == pytest.approx(4, rel=0.1)
        assert errors[1] / errors[2] == pytest.approx(4, rel=0.1)


def test_from_pure_noise_the_error_is_small(lib=REAL):
    """At sigma = 1 g is infinite, and Euler adds a^4 / 4 to the variance there, whatever dt is.

    The noise that follows forgets it, the more steps the better, but not in proportion to dt.
    """
    for noise_level, most in ((0.3, (0.06, 0.014, 0.003)), (0.7, (0.021, 0.003, 0.0011))):
        for steps, bound in zip((10, 40, 160), most, strict=True):
            mean, std = chain(lib, steps, noise_level)
            assert mean == pytest.approx(1.5, abs=1e-6) and abs(std - 0.5) < bound


def test_known_numbers_of_the_sde(lib=REAL):
    """N = 10 steps: std .444 at a = .3 and .480 at a = .7, as recorded in the project's notes."""
    assert chain(lib, 10, 0.3)[1] == pytest.approx(0.444, abs=1.5e-3)
    assert chain(lib, 10, 0.7)[1] == pytest.approx(0.480, abs=1.5e-3)


def test_the_spread_of_a_step_by_hand(lib=REAL):
    """a = .7, sigma .8 -> .6: g = 1.4, std = 1.4 sqrt(.2); at sigma 1, g is that of sigma .8."""
    said, x = some(1), some(2)
    *_, std = lib.sde_step(said, x, torch.tensor([0.8, 1.0, 0.8]), 0.6, 0.7, generator=seeded())
    assert std.flatten().tolist() == pytest.approx(
        [1.4 * 0.2**0.5, 0.7 * 1.5**0.5 * 0.4**0.5, 1.4 * 0.2**0.5], rel=1e-6
    )
    *_, std = lib.sde_step(said, x, 1.0, 0.8, 0.7, generator=seeded())
    assert std.item() == pytest.approx(1.4 * 0.2**0.5)


def test_logprob_is_the_density_of_the_sample(lib=REAL):
    """Summed over latents, against scipy; averaged, divided by their number; one value per row."""
    said, x, given = some(1), some(2), some(3)
    for step, levels, name in (
        (lib.ddim_step, (0.3, 0.5), "prev_sample"),
        (lib.sde_step, (0.8, 0.6), "next_sample"),
    ):
        _, total, mean, std = step(said, x, *levels, 0.9, **{name: given}, reduce="sum")
        expected = stats.norm.logpdf(given.numpy(), mean.numpy(), std.numpy()).sum((1, 2, 3))
        assert total.tolist() == pytest.approx(expected.tolist(), rel=1e-12) and total.shape == (3,)
        same, average, *_ = step(said, x, *levels, 0.9, **{name: given})
        assert torch.equal(same, given)
        assert (18 * average).tolist() == pytest.approx(total.tolist(), rel=1e-12)


def test_draws_have_mean_and_spread(lib=REAL):
    said, x = torch.ones(20_000, 1), torch.zeros(20_000, 1)
    for step, levels in ((lib.ddim_step, (0.3, 0.5)), (lib.sde_step, (0.8, 0.6))):
        drawn, logprob, mean, std = step(said, x, *levels, 0.9, generator=seeded())
        error = (drawn - mean) / std
        assert abs(error.mean().item()) < 0.03 and error.std().item() == pytest.approx(1, abs=0.02)
        entropy = 0.5 * math.log(2 * math.pi * math.e) + std.log().item()
        assert -logprob.mean().item() == pytest.approx(entropy, abs=0.02)


def test_gradients_by_finite_differences(lib=REAL):
    """Of the log-prob with respect to what the network says: nothing is detached."""
    said, x, given = some(1, rows=2).requires_grad_(), some(2, rows=2), some(3, rows=2)
    for step, levels, name in (
        (lib.ddim_step, (0.3, 0.5), "prev_sample"),
        (lib.sde_step, (0.8, 0.6), "next_sample"),
    ):
        (gradient,) = torch.autograd.grad(
            step(said, x, *levels, 0.9, **{name: given})[1].sum(), said
        )
        for place in ((0, 0, 0, 0), (1, 1, 2, 1)):
            nudge = torch.zeros_like(x)
            nudge[place] = 1e-5
            up, down = (
                step(said.detach() + sign * nudge, x, *levels, 0.9, **{name: given})[1].sum()
                for sign in (1, -1)
            )
            assert gradient[place].item() == pytest.approx((up - down).item() / 2e-5, rel=1e-6)
        assert gradient.abs().max() > 1e-3


def test_a_step_without_noise_is_no_action(lib=REAL):
    x = some()
    for step, levels, noise in (
        (lib.ddim_step, (0.3, 0.5), 0.0),
        (lib.ddim_step, (0.3, 1.0), 1.0),
        (lib.sde_step, (0.8, 0.6), 0.0),
        (lib.sde_step, (1.0, 0.0), 0.7),
    ):
        with pytest.raises(ValueError, match="std is 0"):
            step(x, x, *levels, noise, generator=seeded())
    with pytest.raises(ValueError, match="to score, or a generator"):
        lib.sde_step(x, x, 0.8, 0.6, 0.7)
    with pytest.raises(ValueError, match="smaller than sigma"):
        lib.sde_step(x, x, 0.6, 0.8, 0.7, generator=seeded())


def test_levels_by_row_and_in_common(lib=REAL):
    said, x, given = some(1), some(2), some(3)
    for step, (now, after), name in (
        (lib.ddim_step, (0.3, 0.5), "prev_sample"),
        (lib.sde_step, (0.8, 0.6), "next_sample"),
    ):
        rows = torch.full((3,), now), torch.full((3,), after)
        one = step(said, x, now, after, 0.9, **{name: given})[1]
        torch.testing.assert_close(
            step(said, x, *rows, 0.9, **{name: given})[1], one, rtol=1e-6, atol=0
        )


def test_the_gradient_of_a_logprob_moves_the_mean_to_the_sample(lib=REAL):
    """d logprob / d mean = (sample - mean) / variance, and the mean is linear in what is said."""
    said, x, given = some(0), some(1), some(2)
    for step, levels in ((lib.ddim_step, (0.4, 0.6, 1.0)), (lib.sde_step, (0.6, 0.4, 0.7))):
        name = "prev_sample" if step is lib.ddim_step else "next_sample"

        def score(noise, step=step, levels=levels, name=name):
            return step(noise, x, *levels, **{name: given}, reduce="sum")

        leaf = said.clone().requires_grad_()
        _, logprob, mean, std = score(leaf)
        (grad,) = torch.autograd.grad(logprob.sum(), leaf)
        slope = score(said + 1)[2] - mean.detach()  # what one unit more said does to the mean
        torch.testing.assert_close(grad, slope * ((given - mean) / std**2).detach())
