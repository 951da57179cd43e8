"""Chapter 3, DPO: a table as a policy, the figure behind the slider, the checks, the mutants."""

import math
import random
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor, nn
from torch.distributions import Categorical

from minivisrl.lab.plots import COLORS, STYLE
from minivisrl.paradigms.dpo import DPOConfig, dpo_loss
from minivisrl.policy import ActionStats, Policy
from minivisrl.rollout import Prompts, Rollout

# Two policies small enough to see through


class Table(Policy):
    """Prompt i is the integer i and has a row of logits; an output is one of V integers."""

    def __init__(self, prompts: int, outputs: int) -> None:
        super().__init__()
        self.model = nn.Embedding.from_pretrained(torch.zeros(prompts, outputs), freeze=False)

    def probabilities(self) -> Tensor:
        """(B, V), without gradient."""
        return self.model.weight.detach().softmax(dim=-1)

    def encode(self, prompts: Prompts, outputs: list, generator: Generator) -> Rollout:
        tokens = torch.tensor(outputs)[:, None]  # (N, 1)
        mask, size = torch.ones(tokens.shape), len(outputs) // len(prompts)
        return Rollout(prompts, {"tokens": tokens}, 0 * mask, mask, size, outputs)

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        rows = torch.tensor(rollout.prompts["prompt"]).repeat_interleave(rollout.group_size)  # (N,)
        dist = Categorical(logits=self.model(rows)[:, None])  # (N, 1, V)
        return ActionStats(dist.log_prob(rollout.actions["tokens"]), dist.entropy(), None, dist)


def settle(cfg: DPOConfig, preferred: int = 10, steps: int = 500) -> Tensor:
    """Two outputs, equally likely at first, and 10 labels, `preferred` of them for output A.

    Returns:
        (steps,): the log-ratio Delta after each step of Adam on all ten labels.
    """
    logits, start = torch.zeros(2, requires_grad=True), torch.full((10,), 0.5).log()
    optimizer, deltas = torch.optim.Adam([logits], lr=0.1), []
    winner = (torch.arange(10) >= preferred).long()  # (10,): 0 for A, 1 for B
    for _ in range(steps):
        new = logits.log_softmax(dim=0)
        loss, _ = dpo_loss(new[winner], new[1 - winner], start, start, cfg)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        deltas.append((logits[0] - logits[1]).item())
    return torch.tensor(deltas)


# The slider: Eq. (A2) and the weight of Eq. (A3)

NAMES, REF, REWARDS = ("a thing", "a circle", "a red circle"), (0.5, 0.25, 0.25), (1, 2, 4)


def optimum(dpo_beta: float) -> list[float]:
    """The best policy for rewards log 1, log 2, log 4, by Eq. (A2)."""
    weights = [p * worth ** (1 / dpo_beta) for p, worth in zip(REF, REWARDS, strict=True)]
    return [weight / sum(weights) for weight in weights]


def push(dpo_beta: float, log_ratio: float) -> float:
    """sigma(-beta Delta): how hard a pair pushes, between 0 and 1."""
    x = dpo_beta * log_ratio
    return math.exp(-x) / (1 + math.exp(-x)) if x > 0 else 1 / (1 + math.exp(x))


@plt.rc_context(STYLE)
def optimum_figure(dpo_beta: float) -> Figure:
    """The best policy at this beta, and how hard a pair pushes."""
    figure, (left, right) = plt.subplots(1, 2)
    best, places = optimum(dpo_beta), range(3)
    left.bar([x - 0.2 for x in places], REF, 0.4, color=COLORS["reference"], label="reference")
    left.bar([x + 0.2 for x in places], best, 0.4, color=COLORS["policy"], label="best policy")
    left.set_xticks(places, [f"{name}\nlog {k}" for name, k in zip(NAMES, REWARDS, strict=True)])
    left.set(ylabel="probability", ylim=(0, 1.3), yticks=[0, 0.25, 0.5, 0.75, 1])
    left.legend(loc="upper left", ncols=2, columnspacing=1)
    gaps = [x / 5 for x in range(-50, 76)]
    for value, role in ((1.0, "reference"), (dpo_beta, "policy")):
        weights = [push(value, gap) for gap in gaps]
        right.plot(gaps, weights, color=COLORS[role], label=f"beta = {value:g}")
    balance = math.log(4) / dpo_beta
    right.axvline(balance, color=COLORS["reward"], ls="--", lw=1, label="balance")
    right.set(xlabel="log-ratio Delta, nats", ylabel="weight of a pair", ylim=(0, 1.02))
    right.set(xlim=(-10, 15))
    right.legend()
    figure.suptitle(
        f"beta = {dpo_beta:g}: the best policy says 'a red circle' {best[2]:.0%} of the time,\n"
        f"{balance:.1f} nats further from 'a thing' than the reference",
        fontsize=10,
    )
    return figure


# 3.1 predict


def _loss(pairs: list[tuple[float, float, float, float]], dpo_beta: float) -> float:
    """Eq. (5) on (chosen, rejected, reference of the chosen, of the rejected)."""
    deltas = [(a - ra) - (b - rb) for a, b, ra, rb in pairs]
    return sum(math.log(1 + math.exp(-dpo_beta * delta)) for delta in deltas) / len(deltas)


LATE = [(-4.0, -7.0, -3.0, -5.0), (-2.0, -6.0, -2.5, -6.0)]  # policy has moved
FIRST = [(-3.0, -5.0, -3.0, -5.0), (-2.5, -6.0, -2.5, -6.0)]  # policy is the reference
CHANGES: dict[str, tuple[list, list, float, str]] = {  # before, after, factor of beta, hint
    "both outputs become 20 times likelier": (
        LATE,
        [(a + 3, b + 3, ra, rb) for a, b, ra, rb in LATE],
        1,
        "look at what Eq. (6) subtracts",
    ),
    "the chosen one becomes 20 times likelier, and so it does under the reference": (
        LATE,
        [(a + 3, b, ra + 3, rb) for a, b, ra, rb in LATE],
        1,
        "the loss knows only how far the policy moved from the reference",
    ),
    "chosen and rejected change places": (
        LATE,
        [(b, a, rb, ra) for a, b, ra, rb in LATE],
        1,
        "Delta changes its sign, and log sigma is not symmetric",
    ),
    "every pair is listed twice": (LATE, LATE * 2, 1, "the loss is a mean over pairs"),
    "beta doubles, before the first step": (FIRST, FIRST, 2, "what is Delta at the start?"),
    "beta doubles, after many steps": (LATE, LATE, 2, "beta multiplies a Delta that is not 0"),
}


def check_what_changes(prediction: dict) -> None:
    """Which changes leave the loss as it was."""
    assert set(prediction) == set(CHANGES), f"answer for exactly these changes: {list(CHANGES)}"
    for name, (before, after, factor, hint) in CHANGES.items():
        same = math.isclose(_loss(before, 0.5), _loss(after, 0.5 * factor), abs_tol=1e-9)
        assert prediction[name] == same, f"{name!r}: {hint}"


# 3.2 implement


def check_implied_rewards(implied_rewards: Callable[[Tensor, Tensor, float], Tensor]) -> None:
    """Rewards, up to a constant, from the policy that is best for them."""
    draw = random.Random(0)
    for dpo_beta in (0.1, 2.0):
        rewards = [draw.uniform(-1, 1) for _ in range(5)]
        ref = [draw.random() + 0.1 for _ in range(5)]
        weights = [p * math.exp(r / dpo_beta) for p, r in zip(ref, rewards, strict=True)]
        policy = torch.tensor([w / sum(weights) for w in weights]).log()
        reference = torch.tensor([p / sum(ref) for p in ref]).log()
        truth = torch.tensor([r - rewards[0] for r in rewards])
        got = implied_rewards(policy.clone(), reference.clone(), dpo_beta)
        assert isinstance(got, Tensor) and got.shape == (5,), "return a tensor of shape (V,)"
        assert got[0].abs() < 1e-5, "shift the rewards, so that the first one is 0"

        def found(guess: Tensor, got: Tensor = got) -> bool:
            return torch.allclose(got, guess - guess[0], atol=1e-4)

        assert not found(truth / dpo_beta), "that is the log-ratio: where is beta?"
        assert not found(dpo_beta * policy), "what the reference does anyway is no reward"
        assert not found(-truth), "the likelier an output has become, the higher its reward"
        assert found(truth), "solve (A2) for the reward, and drop beta log Z"


# 3.3 find the bug


def check_log_ratio(log_ratio: Callable[..., Tensor]) -> None:
    """Eq. (6) on four pairs, and its sign in every argument."""
    rows = [[-3.0, -4.0, -2.0, -9.5], [-5.0, -4.0, -6.0, -1.5], [-3.0, -1.0, -2.5, -9.0]]
    rows.append([-5.0, -2.0, -6.0, -1.0])
    columns = [torch.tensor(row) for row in rows]
    got = log_ratio(*columns)
    assert isinstance(got, Tensor) and got.shape == (4,), "one number per pair: (B,)"
    assert got[0].abs() < 1e-6, "the first pair has not moved: its Delta must be 0, its loss log 2"
    truth = [(a - ra) - (b - rb) for a, b, ra, rb in zip(*rows, strict=True)]
    assert torch.allclose(got, torch.tensor(truth)), (
        "minus what the reference says of the chosen, plus what it says of the rejected"
    )


# 3.4 ablate


def check_smoothing(smoothed: Callable[[float], float]) -> None:
    """Where ten unanimous labels end with a smoothing of 0.1."""
    for dpo_beta in (0.5, 1.0):
        got, truth = float(smoothed(dpo_beta)), math.log(0.9 / 0.1) / dpo_beta
        assert abs(got - float(settle(DPOConfig(dpo_beta=dpo_beta))[-1])) > 0.5, (
            "Delta still grows: does label_smoothing reach the config?"
        )
        assert abs(got - truth) < 0.05, (
            f"for beta {dpo_beta} this is not where sigma(beta Delta) = 0.9: "
            "ten labels for A, smoothing 0.1, the last step"
        )


# 3.5 extend


def check_positive_loss(positive_loss: Callable[..., Tensor]) -> None:
    """DPO with a penalty inside the sigmoid for a chosen output that fell."""

    def truth(a: float, b: float, ra: float, rb: float, dpo_beta: float, weight: float) -> float:
        inside = (a - ra) - (b - rb) - weight * max(0.0, ra - a)
        return math.log(1 + math.exp(-dpo_beta * inside))

    def loss(*values: float) -> float:
        return float(positive_loss(*[torch.tensor([x]) for x in values], 0.5, 5.0))

    rose, fell = (-2.0, -6.0, -3.0, -5.0), (-4.0, -8.0, -3.0, -5.0)
    assert math.isclose(loss(*rose), truth(*rose, 0.5, 5.0), abs_tol=1e-5), (
        "where the chosen output is above the reference there is nothing to pay: plain DPO"
    )
    plain = truth(*fell, 0.5, 0.0)
    assert loss(*fell) > plain + 1e-3, "the chosen output fell by 1 nat: that must cost something"
    got, outside = loss(*fell), plain + 5.0
    assert not math.isclose(got, outside, abs_tol=1e-4), "the penalty belongs inside the sigmoid"
    assert math.isclose(got, truth(*fell, 0.5, 5.0), abs_tol=1e-5), (
        "subtract weight times the fall, in nats, from Delta; then multiply by beta"
    )
    four = [torch.tensor([x, y]) for x, y in zip(rose, fell, strict=True)]
    both = float(positive_loss(*four, 0.5, 5.0))
    mean = (truth(*rose, 0.5, 5.0) + truth(*fell, 0.5, 5.0)) / 2
    assert math.isclose(both, mean, abs_tol=1e-5), "every pair pays for its own fall; then the mean"


MUTANTS = {
    "3.1": [
        f"prediction = dict(zip({list(CHANGES)}, {answers}))"
        for answers in (
            [False, True, False, True, True, False],
            [True, False, False, True, True, False],
            [True, True, True, True, True, False],
            [True, True, False, False, True, False],
            [True, True, False, True, False, False],
            [True, True, False, True, True, True],
        )
    ],
    "3.2": [
        """
        def implied_rewards(logprobs, ref_logprobs, dpo_beta):
            rewards = logprobs - ref_logprobs
            return rewards - rewards[0]
        """,
        """
        def implied_rewards(logprobs, ref_logprobs, dpo_beta):
            rewards = dpo_beta * logprobs
            return rewards - rewards[0]
        """,
        """
        def implied_rewards(logprobs, ref_logprobs, dpo_beta):
            return dpo_beta * (logprobs - ref_logprobs)
        """,
        """
        def implied_rewards(logprobs, ref_logprobs, dpo_beta):
            rewards = dpo_beta * (ref_logprobs - logprobs)
            return rewards - rewards[0]
        """,
    ],
    "3.3": [
        "log_ratio = buggy_log_ratio",
        """
        def log_ratio(chosen, rejected, ref_chosen, ref_rejected):
            return (chosen - rejected) + (ref_chosen - ref_rejected)
        """,
        """
        def log_ratio(chosen, rejected, ref_chosen, ref_rejected):
            return (rejected - ref_rejected) - (chosen - ref_chosen)
        """,
        """
        def log_ratio(chosen, rejected, ref_chosen, ref_rejected):
            return (chosen - ref_chosen).mean() - (rejected - ref_rejected).mean()
        """,
    ],
    "3.4": [
        """
        def smoothed(dpo_beta):
            return settle(DPOConfig(dpo_beta=dpo_beta))[-1].item()
        """,
        """
        def smoothed(dpo_beta):
            return settle(DPOConfig(dpo_beta=dpo_beta, label_smoothing=0.1), preferred=9)[-1].item()
        """,
        """
        def smoothed(dpo_beta):
            return settle(DPOConfig(dpo_beta=dpo_beta, label_smoothing=0.1))[0].item()
        """,
    ],
    "3.5": [
        """
        def positive_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta, weight):
            delta = (chosen - ref_chosen) - (rejected - ref_rejected)
            return -logsigmoid(dpo_beta * delta).mean()
        """,
        """
        def positive_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta, weight):
            delta = (chosen - ref_chosen) - (rejected - ref_rejected)
            return -logsigmoid(dpo_beta * (delta - weight * (ref_chosen - chosen))).mean()
        """,
        """
        def positive_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta, weight):
            delta = (chosen - ref_chosen) - (rejected - ref_rejected)
            fall = (ref_chosen - chosen).clamp(min=0)
            return (-logsigmoid(dpo_beta * delta) + weight * fall).mean()
        """,
        """
        def positive_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta, weight):
            delta = (chosen - ref_chosen) - (rejected - ref_rejected)
            fall = (ref_chosen - chosen).clamp(min=0)
            return -logsigmoid(dpo_beta * (delta + weight * fall)).mean()
        """,
        """
        def positive_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta, weight):
            delta = (chosen - ref_chosen) - (rejected - ref_rejected)
            fall = (ref_chosen - chosen).mean().clamp(min=0)
            return -logsigmoid(dpo_beta * (delta - weight * fall)).mean()
        """,
    ],
}
