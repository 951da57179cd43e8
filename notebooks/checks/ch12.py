"""Chapter 12, image generation: the figure behind the sliders, the checks and their mutants."""

import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.distributions import Normal, kl_divergence

from minivisrl.generation.steps import ddim_transition, sde_transition
from minivisrl.lab.exercises import foretold
from minivisrl.lab.plots import COLORS, STYLE

# The marginals: Gaussian data, for which every step is affine, so that no sampling is needed


def gaussian_end(steps: int, noise_level: float, start: float = 1.0) -> tuple[float, float]:
    """Mean and std where the sampler ends, for data Normal(1.5, .5 ** 2) and the exact velocity.

    It starts from the true marginal at sigma = `start`.
    """
    mean, variance = 1.5 * (1 - start), 0.25 * (1 - start) ** 2 + start**2
    grid = torch.linspace(start, 0, steps + 1, dtype=torch.float64).tolist()
    for now, after in zip(grid[:-1], grid[1:], strict=True):
        x = torch.tensor([[0.0], [1.0]], dtype=torch.float64)
        slope = (now - 0.25 * (1 - now)) / (0.25 * (1 - now) ** 2 + now**2)
        velocity = -1.5 + slope * (x - 1.5 * (1 - now))
        (zero, one), std = sde_transition(velocity, x, now, after, noise_level)
        gain = (one - zero).item()
        mean, variance = gain * mean + zero.item(), gain**2 * variance + std.item() ** 2
    return mean, math.sqrt(variance)


# The sliders: two bumps, of which the best denoiser is known

BUMPS, WIDTH = (-1.0, 1.0), 0.2
SAMPLERS = ["flow SDE", "DDIM"]


def best_guess(x: Tensor, signal: float, spread: float) -> Tensor:
    """(N,): the mean of the data behind x = signal * data + spread * noise, for the two bumps."""
    variance = (signal * WIDTH) ** 2 + spread**2
    bumps = x.new_tensor(BUMPS)
    away = x[:, None] - signal * bumps  # (N, 2)
    weights = (-away.square() / (2 * variance)).softmax(dim=1)  # (N, 2)
    return (weights * (bumps + signal * WIDTH**2 / variance * away)).sum(dim=1)


def paths(sampler: str, noise: float, steps: int, count: int = 2000) -> Tensor:
    """(count, steps + 1): from pure noise to the data, the last step without noise."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(count, generator=generator)
    grid = torch.linspace(1, 0, steps + 1).tolist()
    bars = [math.cos(0.495 * math.pi * u) ** 2 for u in grid]
    walk = [x]
    for k in range(steps):
        level = noise if k < steps - 1 else 0.0
        if sampler == "DDIM":
            signal, spread = math.sqrt(bars[k]), math.sqrt(1 - bars[k])
            said = (x - signal * best_guess(x, signal, spread)) / spread  # the noise
            mean, std = ddim_transition(said, x, bars[k], bars[k + 1], level)
        else:
            said = (x - best_guess(x, 1 - grid[k], grid[k])) / grid[k]  # the velocity
            mean, std = sde_transition(said, x, grid[k], grid[k + 1], level)
        x = mean + std * torch.randn(count, generator=generator)
        walk.append(x)
    return torch.stack(walk, dim=1)


def distance_to_data(ends: Tensor) -> float:
    """How far a point has to move on average to turn the ends into the two bumps."""
    half = Normal(0.0, WIDTH).icdf((torch.arange(len(ends) // 2) + 0.5) / (len(ends) // 2))
    data = torch.cat([half + bump for bump in BUMPS]).sort().values
    return (ends.sort().values - data).abs().mean().item()


@plt.rc_context(STYLE)
def noise_figure(sampler: str, noise: float, steps: int) -> Figure:
    """Twelve paths, and where two thousand of them end, beside the data."""
    walk = paths(sampler, noise, steps)
    figure, (left, right) = plt.subplots(1, 2, width_ratios=(3, 2))
    left.plot(range(steps + 1), walk[:12].T, color=COLORS["policy"], lw=1)
    left.set(xlabel="denoising step", ylabel="x", ylim=(-3, 3))
    left.xaxis.get_major_locator().set_params(integer=True)
    bins = torch.linspace(-2.5, 2.5, 61)
    right.hist(walk[:, -1].numpy(), bins=bins, density=True, color=COLORS["policy"], label="ends")
    density = sum(Normal(bump, WIDTH).log_prob(bins).exp() for bump in BUMPS) / 2
    right.plot(bins, density, color=COLORS["reference"], lw=2, label="data")
    right.set(xlabel="x at the end", ylabel="density", ylim=(0, 1.5))
    right.legend(loc="upper center")
    none = distance_to_data(paths(sampler, 0.0, steps)[:, -1])
    figure.suptitle(
        f"{sampler}, noise {noise:.1f}, {steps} steps: {distance_to_data(walk[:, -1]):.2f} "
        f"from the data (without noise {none:.2f})",
        fontsize=10,
    )
    return figure


# 12.1 predict


def _ratio(latents: int, reduce: str) -> float:
    """Ratio of a step after the mean of every latent came closer to the sample by .1."""
    x = torch.full((latents,), 0.5)
    moved = Normal(0.1, 1.0).log_prob(x) - Normal(0.0, 1.0).log_prob(x)
    return float((moved.mean() if reduce == "mean" else moved.sum()).exp())


def _kl(std: float) -> float:
    return kl_divergence(Normal(0.1, std), Normal(0.0, std)).item()


STATEMENTS: dict[str, tuple[bool, str]] = {
    "mean over latents: twice as many latents, all moved alike, leave the ratio as it was": (
        math.isclose(_ratio(4, "mean"), _ratio(8, "mean"), rel_tol=1e-5),
        "write the log-ratio of one latent, then the average of equal numbers",
    ),
    "sum over latents: twice as many latents, all moved alike, leave the ratio as it was": (
        math.isclose(_ratio(4, "sum"), _ratio(8, "sum"), rel_tol=1e-5),
        "the log-ratio is a sum over latents: what does a sum of twice as many terms do?",
    ),
    "half the std: the same move of the mean costs four times the KL": (
        math.isclose(_kl(0.25), 4 * _kl(0.5), rel_tol=1e-5),
        "the KL of two Gaussians of equal std is the squared distance over twice the variance",
    ),
    "eta = 0: a step has log-prob 0": (
        False,
        "a density that has no width is not 1 where it sits; look at what the library raises",
    ),
    "3 of 7 actions trained: the sampler takes 3 steps": (
        False,
        "which steps are skipped: those of the sampler, or those of the loss?",
    ),
}


check_statements = foretold(STATEMENTS)  # which statements on log-probs and steps are true


# 12.2 implement


def check_ddim(ddim: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """No noise: the same picture at the next level. eta = 1: Ho et al.'s posterior."""
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(4, 3, generator=generator, dtype=torch.float64) for _ in range(2))
    now, prev = 0.3, 0.5
    x = math.sqrt(now) * clean + math.sqrt(1 - now) * noise
    mean, std = ddim(noise, x, now, prev, 0.0)
    told = "return mean and std; std is one number, or a tensor of one"
    assert mean.shape == x.shape and torch.as_tensor(std).numel() == 1, told
    assert float(std) == 0, "with eta = 0 a step has no noise, so std is 0"
    straight = math.sqrt(prev) * clean + math.sqrt(1 - prev) * noise
    assert torch.allclose(mean, straight), (
        "eta = 0: the step should give the same clean picture and the same noise, mixed for the "
        "next level: which alpha-bar undoes the old mixture, which makes the new one?"
    )
    alpha = now / prev
    truth = math.sqrt((1 - prev) / (1 - now) * (1 - alpha))
    mean, std = ddim(noise, x, now, prev, 1.0)
    assert not math.isclose(float(std), truth**2, rel_tol=1e-6), "that is the variance, not the std"
    assert math.isclose(float(std), truth, rel_tol=1e-6), "eta = 1: not the std of the posterior"
    posterior = (
        math.sqrt(prev) * (1 - alpha) / (1 - now) * clean
        + math.sqrt(alpha) * (1 - prev) / (1 - now) * x
    )
    assert torch.allclose(mean, posterior), (
        "the fresh noise must replace some of the old: take its variance out of 1 - alpha_bar_prev"
    )
    half = float(ddim(noise, x, now, prev, 0.5)[1])
    assert math.isclose(half, truth / 2, rel_tol=1e-6), "half the eta, half the std"


# 12.3 find the bug


def check_pair_loss(pair_loss: Callable[..., Tensor]) -> None:
    """The mean over draws of minus log-sigmoid, by plain arithmetic."""
    margins = [[4.0, -2.0], [0.5, 0.5], [-1.0, 3.0]]  # (B, K): beta * Delta of every draw
    beta = 2.0
    chosen = torch.tensor(margins) / beta - 3.0
    ref_chosen = torch.full((3, 2), -2.0)
    rejected, ref_rejected = torch.full((3, 2), -2.5), torch.full((3, 2), -1.5)
    got = pair_loss(chosen, rejected, ref_chosen, ref_rejected, beta)
    assert got.ndim == 0, "return one number: the mean over pairs and draws"

    def cost(margin: float) -> float:
        return math.log1p(math.exp(-margin))

    truth = sum(cost(m) for pair in margins for m in pair) / 6
    averaged = sum(cost(sum(pair) / 2) for pair in margins) / 3
    summed = sum(cost(sum(pair)) for pair in margins) / 3
    flipped = sum(cost(-m) for pair in margins for m in pair) / 6
    assert not math.isclose(got.item(), averaged, rel_tol=1e-5), (
        "still the log-sigmoid of the mean: a draw that is sure of itself hides one that is wrong"
    )
    assert not math.isclose(got.item(), summed, rel_tol=1e-5), (
        "a sum over draws inside the log-sigmoid is no better than a mean"
    )
    assert not math.isclose(got.item(), flipped, rel_tol=1e-5), "chosen and rejected changed places"
    assert math.isclose(got.item(), truth, rel_tol=1e-5), "every draw is a pair of its own, Eq. (5)"


# 12.4 ablate


def dot_spread(noise: float, shared: bool, steps: int = 8) -> float:
    """Exact std of siblings among the dots: the SDE on data Normal(0, .5 ** 2), by recursion."""
    kept, fresh = 1.0, 0.0  # what is left of the first noise; variance of all noise since
    for k in range(steps):
        now, after = 1 - k / steps, 1 - (k + 1) / steps
        inner = now if k else after
        variance = noise**2 * inner / (1 - inner) if k < steps - 1 else 0.0  # g ** 2
        slope = (now - 0.25 * (1 - now)) / (0.25 * (1 - now) ** 2 + now**2)
        gain = 1 - (slope + variance / (2 * now) * (1 + (1 - now) * slope)) / steps
        kept, fresh = gain * kept, gain**2 * fresh + variance / steps
    return math.sqrt(fresh + (0.0 if shared else kept**2))


def check_within(within: Callable[[float, bool], float]) -> None:
    """The std of siblings, with and without a common start."""
    for noise, shared in ((0.7, False), (0.7, True), (0.1, True), (0.1, False)):
        got, truth = float(within(noise, shared)), dot_spread(noise, shared)
        if math.isclose(got, truth, rel_tol=0.06):
            continue
        where = f"noise {noise}, shared_noise {shared}"
        wrong = [dot_spread(noise, not shared), dot_spread(0.7, shared)]
        hints = [
            "shared_noise has no effect, or across prompts: siblings lie along dimension 1",
            "does the noise level reach the policy?",
        ]
        for value, hint in zip(wrong, hints, strict=True):
            assert not math.isclose(got, value, rel_tol=0.06), f"{where}: {hint}"
        raise AssertionError(f"{where}: take the std inside each group, then the mean over groups")


# 12.5 extend


def check_step_kl(step_kl: Callable[..., Tensor]) -> None:
    """Per picture, in nats: against torch's own KL of two Gaussians."""
    generator = torch.Generator().manual_seed(0)
    mean, ref = (torch.randn(4, 3, 5, generator=generator) for _ in range(2))  # (N, T, D)
    g, dt = torch.tensor([1.4, 1.0, 0.6]), torch.tensor([-0.1, -0.2, -0.25])  # (T,)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [0.0, 0.0, 1.0]])
    got = step_kl(mean, ref, g, dt, mask)
    assert isinstance(got, Tensor) and got.shape == (4,), "return one number per picture: (N,)"

    def total(std: Tensor, mask: Tensor = mask) -> Tensor:
        std = std[:, None]  # (T, 1)
        return (kl_divergence(Normal(mean, std), Normal(ref, std)).sum(dim=2) * mask).sum(dim=1)

    std = g * (-dt).sqrt()  # (T,)
    for wrong, hint in (
        (total(g), "the std of a step is g sqrt(-dt): public code once left the dt out, too"),
        (total(std, torch.ones(4, 3)), "steps under a zero mask were not taken: leave them out"),
        (2 * total(std), "twice too much: the variance stands in the denominator with a factor 2"),
        (total(std) / 5, "that is an average over latents; nats add up"),
        (total(std.sqrt()), "divide by the variance, not by the std"),
    ):
        assert not torch.allclose(got, wrong, rtol=1e-4), hint
    assert torch.allclose(got, total(std), rtol=1e-4), (
        "squared distance of the means over twice the variance, summed over latents and steps"
    )


WITHIN = """
def within(noise, shared_noise):
    policy, prompts = Dots(64, {settings}), Prompts({{"prompt": list(range(64))}})
    rollout = policy.rollout(prompts, 64, torch.Generator().manual_seed(0))
    return torch.tensor(rollout.outputs).view(64, 64).{spread}.mean()
"""


def _flipped(wrong: str) -> str:
    """A prediction that is right but for one statement."""
    told = {name: truth != (name == wrong) for name, (truth, _) in STATEMENTS.items()}
    return f"prediction = {told!r}"


MUTANTS = {
    "12.1": [_flipped(wrong) for wrong in STATEMENTS],
    "12.2": [
        """
        def ddim(noise_pred, x, alpha_bar, alpha_bar_prev, eta):
            clean = (x - (1 - alpha_bar) ** 0.5 * noise_pred) / alpha_bar**0.5
            share = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
            std = eta * share**0.5
            return alpha_bar_prev**0.5 * clean + (1 - alpha_bar_prev) ** 0.5 * noise_pred, std
        """,
        """
        def ddim(noise_pred, x, alpha_bar, alpha_bar_prev, eta):
            clean = (x - (1 - alpha_bar) ** 0.5 * noise_pred) / alpha_bar**0.5
            share = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
            var = eta**2 * share
            mean = alpha_bar_prev**0.5 * clean + (1 - alpha_bar_prev - var) ** 0.5 * noise_pred
            return mean, var
        """,
        """
        def ddim(noise_pred, x, alpha_bar, alpha_bar_prev, eta):
            clean = (x - (1 - alpha_bar_prev) ** 0.5 * noise_pred) / alpha_bar_prev**0.5
            share = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
            var = eta**2 * share
            mean = alpha_bar_prev**0.5 * clean + (1 - alpha_bar_prev - var) ** 0.5 * noise_pred
            return mean, var**0.5
        """,
        """
        def ddim(noise_pred, x, alpha_bar, alpha_bar_prev, eta):
            clean = (x - (1 - alpha_bar) ** 0.5 * noise_pred) / alpha_bar**0.5
            share = (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
            var = eta * share
            mean = alpha_bar_prev**0.5 * clean + (1 - alpha_bar_prev - var) ** 0.5 * noise_pred
            return mean, var**0.5
        """,
    ],
    "12.3": [
        "pair_loss = buggy_pair_loss",
        """
        def pair_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta):
            delta = (chosen - ref_chosen) - (rejected - ref_rejected)
            return -logsigmoid(dpo_beta * delta.sum(dim=1)).mean()
        """,
        """
        def pair_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta):
            delta = (rejected - ref_rejected) - (chosen - ref_chosen)
            return -logsigmoid(dpo_beta * delta).mean()
        """,
        """
        def pair_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta):
            return -logsigmoid(dpo_beta * (chosen - rejected)).mean()
        """,
    ],
    "12.4": [
        WITHIN.format(settings=settings, spread=spread)
        for settings, spread in (
            ("noise=noise", "std(dim=1)"),
            ("shared_noise=shared_noise", "std(dim=1)"),
            ("noise=noise, shared_noise=shared_noise", "std(dim=0)"),
            ("noise=noise, shared_noise=shared_noise", "var(dim=1)"),
        )
    ],
    "12.5": [
        """
        def step_kl(mean, ref_mean, g, dt, mask):
            distance = (mean - ref_mean).square().sum(dim=2)
            return (distance / (2 * g**2) * mask).sum(dim=1)
        """,
        """
        def step_kl(mean, ref_mean, g, dt, mask):
            distance = (mean - ref_mean).square().sum(dim=2)
            return (distance / (2 * g**2 * -dt)).sum(dim=1)
        """,
        """
        def step_kl(mean, ref_mean, g, dt, mask):
            distance = (mean - ref_mean).square().sum(dim=2)
            return (distance / (g**2 * -dt) * mask).sum(dim=1)
        """,
        """
        def step_kl(mean, ref_mean, g, dt, mask):
            distance = (mean - ref_mean).square().mean(dim=2)
            return (distance / (2 * g**2 * -dt) * mask).sum(dim=1)
        """,
        """
        def step_kl(mean, ref_mean, g, dt, mask):
            distance = (mean - ref_mean).square().sum(dim=2)
            return (distance / (2 * g * (-dt) ** 0.5) * mask).sum(dim=1)
        """,
    ],
}
