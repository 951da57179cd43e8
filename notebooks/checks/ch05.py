"""Chapter 5, PPO: the figures behind the sliders, the checks of the exercises and their mutants."""

import math
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minivisrl.lab.plots import COLORS, STYLE
from minivisrl.mllm.policy import VLMPolicy, new_vlm
from minivisrl.rollout import Prompts

# The first widget: two habits of different length under a critic that says the same everywhere

LONG, SHORT = (10, 0.6), (4, 0.4)  # tokens, success rate


def constant_critic_advantages(length: int, reward: float, critic: float, lam: float) -> list:
    """Eq. (A1) with one reward at the end: all surprises but the last are 0."""
    return [lam ** (length - 1 - t) * (reward - critic) for t in range(length)]


def expected_push(gae_lambda: float, critic: float) -> float:
    """Eq. (A2): mean advantage of the first token of the long habit, less that of the short one."""
    means = [
        constant_critic_advantages(length, success, critic, gae_lambda)[0]
        for length, success in (LONG, SHORT)
    ]
    return means[0] - means[1]


@plt.rc_context(STYLE)
def lambda_figure(gae_lambda: float, critic: float, reference: float = 0.5) -> Figure:
    """Two right answers token by token, and which habit is pushed on average."""
    figure, (left, right) = plt.subplots(1, 2)
    for (length, _), role, name in ((LONG, "policy", "10 tokens"), (SHORT, "reward", "4 tokens")):
        advantages = constant_critic_advantages(length, 1.0, critic, gae_lambda)
        columns = range(1, length + 1)
        left.plot(columns, advantages, "o-", ms=4, color=COLORS[role], label=name)
    left.axhline(0, color="black", lw=0.8)
    left.set(xlabel="token of a right answer", ylabel="advantage", ylim=(-0.05, 1.05))
    left.legend(loc="center right" if critic < 0.3 else "best")
    grid = [0.5 + i / 100 for i in range(51)]
    for value, role in ((reference, "reference"), (critic, "policy")):
        curve = [expected_push(x, value) for x in grid]
        right.plot(grid, curve, color=COLORS[role], label=f"critic {value:.1f}")
    now = expected_push(gae_lambda, critic)
    right.plot([gae_lambda], [now], "o", color=COLORS["policy"])
    right.axhline(0, color="black", lw=0.8)
    right.set(xlabel="lambda", ylabel="push towards the better habit")
    right.legend(loc="upper left")
    verdict = "up" if now > 1e-9 else "down" if now < -1e-9 else "nowhere"
    figure.suptitle(
        f"lambda {gae_lambda:.2f}, critic {critic:.1f}: "
        f"the better habit goes {verdict} ({now:+.3f})",
        fontsize=10,
    )
    return figure


# The second widget: the term of Eq. (10) as a function of the ratio


def clipped_term(ratio: float, advantage: float, clip_eps: float) -> tuple[float, float]:
    """The term inside Eq. (10), and its slope in the ratio."""
    clipped = min(max(ratio, 1 - clip_eps), 1 + clip_eps)
    stopped = clipped * advantage < ratio * advantage
    return min(ratio * advantage, clipped * advantage), 0.0 if stopped else advantage


@plt.rc_context(STYLE)
def clip_figure(clip_eps: float, ratio: float) -> Figure:
    """One panel per sign of the advantage; the dot is the chosen ratio."""
    figure, axes = plt.subplots(1, 2)
    ratios = [i / 100 for i in range(201)]
    slopes = []
    for axis, advantage in zip(axes, (1.0, -1.0), strict=True):
        free = [r * advantage for r in ratios]
        terms = [clipped_term(r, advantage, clip_eps)[0] for r in ratios]
        axis.plot(ratios, free, ":", color=COLORS["reference"], label="no clip")
        axis.plot(ratios, terms, color=COLORS["policy"], label=f"clip {clip_eps:.2f}")
        axis.axvspan(1 - clip_eps, 1 + clip_eps, color=COLORS["reference"], alpha=0.15, lw=0)
        term, slope = clipped_term(ratio, advantage, clip_eps)
        axis.plot([ratio], [term], "o", color=COLORS["policy"])
        slopes.append(f"{slope:+.0f}" if slope else "0")
        axis.set(xlabel="ratio", title=f"advantage {advantage:+.0f}, slope {slopes[-1]}")
    axes[0].set_ylabel("term of Eq. (10)")
    axes[0].legend(loc="upper left")
    figure.suptitle(f"ratio {ratio:.2f}: slopes {slopes[0]} and {slopes[1]}", fontsize=10)
    return figure


# 5.1 predict

NUMBERS = {  # by hand
    "first token, critic 0, lambda 0": (
        0.0,
        "with lambda 0 only the token's own surprise counts: what came at this token?",
    ),
    "first token, critic 0.4 everywhere, lambda 1": (
        0.6,
        "with lambda 1 the surprises add up to the return less the value of this state",
    ),
    "last token but one, critic 0.4 everywhere, lambda 0.5": (
        0.3,
        "its own surprise is 0.4 - 0.4; the next one counts lambda times",
    ),
    "explained variance, critic exactly 0.3 too high everywhere": (
        1.0,
        "what is the variance of a number that is the same everywhere?",
    ),
    "explained variance, critic that says twice the return": (
        0.0,
        "returns - values is minus the return: what is its variance?",
    ),
}


def check_numbers(prediction: dict) -> None:
    """Five numbers, to two decimals."""
    assert set(prediction) == set(NUMBERS), f"answer exactly these: {list(NUMBERS)}"
    for name, (truth, hint) in NUMBERS.items():
        assert abs(float(prediction[name]) - truth) < 0.005, f"{name!r}: {hint}"


# 5.2 implement


def check_shaped(shaped_rewards: Callable[..., Tensor]) -> None:
    """Token by token in plain Python, with junk under the mask."""
    lengths, rewards, kl_coef = (4, 2, 1), (1.0, 0.5, -2.0), 0.25
    draw = torch.Generator().manual_seed(0)
    logprobs = -torch.rand(3, 4, generator=draw)  # (N, T)
    ref_logprobs = -torch.rand(3, 4, generator=draw)  # (N, T)
    mask = torch.tensor([[float(t < n) for t in range(4)] for n in lengths])  # (N, T)
    args = (torch.tensor(rewards), logprobs.clone(), ref_logprobs.clone(), mask.clone(), kl_coef)
    got = shaped_rewards(*args)
    assert isinstance(got, Tensor) and got.shape == (3, 4), "return a tensor of shape (N, T)"
    for i, n in enumerate(lengths):
        for t in range(4):
            price = kl_coef * (logprobs[i, t] - ref_logprobs[i, t]).item()
            truth = 0.0 if t >= n else (rewards[i] if t == n - 1 else 0.0) - price
            where, found = f"row {i} of {n} tokens, column {t}", got[i, t].item()
            if math.isclose(found, truth, abs_tol=1e-5):
                continue
            assert t < n, f"{where}: outside the mask the reward is 0"
            flipped = math.isclose(found - truth, 2 * price, abs_tol=1e-5)
            assert not flipped, f"{where}: a token that the policy likes more must cost, not pay"
            assert t < n - 1, f"{where}: the reward of the row belongs here, on its last token"
            raise AssertionError(f"{where}: only the price belongs here, beta times the log-ratio")


# 5.3 find the bug


def check_targets(targets: Callable[..., tuple[Tensor, Tensor]]) -> None:
    """One reward at the end, lambda 1: every return is the reward, whatever the critic says."""
    rewards = torch.tensor([[0.0, 0.0, 1.0], [0.0, 3.0, 0.0], [-1.0, 0.0, 0.0]])  # (N, T)
    mask = torch.tensor([[1.0, 1.0, 1.0], [1.0, 1.0, 0.0], [1.0, 0.0, 0.0]])  # (N, T)
    values = torch.tensor([[0.2, 0.4, 0.3], [1.0, 0.5, 9.0], [0.5, 9.0, 9.0]])  # (N, T)
    truth = torch.tensor([[1.0, 1.0, 1.0], [3.0, 3.0, 0.0], [-1.0, 0.0, 0.0]])  # (N, T)
    advantages, returns = targets(rewards, values, mask, 1.0)
    keep = mask > 0
    assert torch.allclose(returns[keep], truth[keep], atol=1e-5), (
        "with lambda 1 and one reward at the end, every return of a row is that reward; "
        "where do your returns get their scale from?"
    )
    assert torch.equal(returns * (1 - mask), torch.zeros(3, 3)), "outside the mask returns are 0"
    kept = advantages[keep]
    raw = (truth - values)[keep]
    assert not torch.allclose(kept, raw, atol=1e-3), "the policy still wants scaled advantages"
    wanted = (raw - raw.mean()) / raw.std()
    assert torch.allclose(kept, wanted, atol=1e-3), "mean 0 and std 1 over the mask, for the policy"


# 5.4 ablate


def check_critic_effect(critic_effect: Callable[[], dict]) -> None:
    """Only the combination of a small lambda and a critic at zero unlearns the better habit."""
    chances = {tuple(map(float, key)): float(value) for key, value in critic_effect().items()}
    wanted = {(lam, start) for lam in (1.0, 0.8) for start in (0.0, 0.5)}
    assert set(chances) == wanted, f"return a dict with these keys: {sorted(wanted)}"
    assert len(set(chances.values())) == 4, "two of the four runs are the same: vary both"
    for key in wanted - {(0.8, 0.0)}:
        assert chances[key] > 0.35, (
            f"{key}: the long habit is better and should have grown from 0.25: do lambda and the "
            "critic's start arrive where they should?"
        )
        assert chances[key] < 0.6, f"{key}: did you change something else, such as the steps?"
    assert chances[0.8, 0.0] < 0.23, (
        "(0.8, 0.0): see Eq. (A2): here the better habit is pushed down; did the run really "
        "begin with a critic of 0?"
    )


# 5.5 extend


def check_detached(kind: type[VLMPolicy]) -> None:
    """The critic's gradient ends at the value head; the policy's own gradient does not."""
    small = new_vlm(0, width=32, layers=1)
    policy = kind(small.model, small.tokenizer, max_tokens=4)
    policy.add_value_head(torch.Generator().manual_seed(0))
    image = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    prompts = Prompts({"prompt": ["how many ?", "what color ?"], "image": image})
    rollout = policy.rollout(prompts, 2, torch.Generator().manual_seed(2))
    stats = policy.evaluate_actions(rollout, values=True)
    assert stats.values.shape == rollout.mask.shape, "values are (N, T): drop the last axis"
    wanted = small.value_head if policy.value_head is None else policy.value_head
    assert stats.values.requires_grad, "the critic cannot learn: its own weights need a gradient"
    stats.values.sum().backward(retain_graph=True)
    trunk = [p for p in policy.model.parameters() if p.grad is not None and p.grad.abs().sum() > 0]
    assert not trunk, f"the critic's loss still moves {len(trunk)} tensors of the trunk"
    assert wanted.weight.grad is not None, "the value head itself must still learn"
    plain = VLMPolicy(small.model, small.tokenizer, max_tokens=4)
    plain.value_head = policy.value_head
    same = plain.evaluate_actions(rollout, values=True).values
    assert torch.allclose(stats.values, same, atol=1e-5), "the values themselves must not change"
    stats.logprobs.sum().backward()
    moved = any(p.grad is not None for p in policy.model.parameters())
    assert moved, "now the policy cannot learn either: detach for the critic only"


MUTANTS = {
    "5.1": [
        """
        prediction = dict(zip(prediction, (1.0, 0.6, 0.3, 1.0, 0.0)))
        """,
        """
        prediction = dict(zip(prediction, (0.0, 1.0, 0.3, 1.0, 0.0)))
        """,
        """
        prediction = dict(zip(prediction, (0.0, 0.6, 0.0, 1.0, 0.0)))
        """,
        """
        prediction = dict(zip(prediction, (0.0, 0.6, 0.3, 0.7, 0.0)))
        """,
        """
        prediction = dict(zip(prediction, (0.0, 0.6, 0.3, 1.0, 1.0)))
        """,
    ],
    "5.2": [
        """
        def shaped_rewards(rewards, logprobs, ref_logprobs, mask, kl_coef):
            shaped = -kl_coef * (logprobs - ref_logprobs)
            shaped[torch.arange(len(rewards)), mask.sum(dim=1).long() - 1] += rewards
            return shaped
        """,
        """
        def shaped_rewards(rewards, logprobs, ref_logprobs, mask, kl_coef):
            shaped = -kl_coef * (logprobs - ref_logprobs) * mask
            shaped[:, -1] += rewards
            return shaped
        """,
        """
        def shaped_rewards(rewards, logprobs, ref_logprobs, mask, kl_coef):
            shaped = kl_coef * (logprobs - ref_logprobs) * mask
            shaped[torch.arange(len(rewards)), mask.sum(dim=1).long() - 1] += rewards
            return shaped
        """,
        """
        def shaped_rewards(rewards, logprobs, ref_logprobs, mask, kl_coef):
            return (rewards[:, None] - kl_coef * (logprobs - ref_logprobs)) * mask
        """,
    ],
    "5.3": [
        "targets = buggy_targets",
        """
        def targets(rewards, values, mask, gae_lambda):
            return gae(rewards, values, mask, gamma=1.0, gae_lambda=gae_lambda)
        """,
        """
        def targets(rewards, values, mask, gae_lambda):
            advantages, returns = gae(rewards, values, mask, gamma=1.0, gae_lambda=gae_lambda)
            return normalize_advantages(advantages, mask), normalize_advantages(returns, mask)
        """,
    ],
    "5.4": [
        """
        def critic_effect():
            cfg = PPOConfig(kl_coef=0.0, update_epochs=1)
            return {
                (x, c): practice(PPO(cfg), critic=c)[0].mean().item()
                for x in (1.0, 0.8)
                for c in (0.0, 0.5)
            }
        """,
        """
        def critic_effect():
            chances = {}
            for x in (1.0, 0.8):
                cfg = PPOConfig(gae_lambda=x, kl_coef=0.0, update_epochs=1)
                for c in (0.0, 0.5):
                    chances[x, c] = practice(PPO(cfg), critic=0.5 - c)[0].mean().item()
            return chances
        """,
        """
        def critic_effect():
            cfgs = {x: PPOConfig(gae_lambda=x, kl_coef=0.0) for x in (1.0, 0.8)}
            return {
                (x, c): practice(PPO(cfgs[x]), critic=c, steps=120)[0].mean().item()
                for x in cfgs
                for c in (0.0, 0.5)
            }
        """,
    ],
    "5.5": [
        """
        class Detached(VLMPolicy):
            pass
        """,
        """
        class Detached(VLMPolicy):
            def state_values(self, features):
                return super().state_values(features).detach()
        """,
        """
        class Detached(VLMPolicy):
            def state_values(self, features):
                return self.value_head(features.detach())
        """,
        """
        class Detached(VLMPolicy):
            def state_values(self, features):
                return super().state_values(0 * features.detach())
        """,
    ],
}
