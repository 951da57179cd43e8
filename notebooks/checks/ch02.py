"""Chapter 2, RLHF: the label desk, two figures, the checks of the exercises and their mutants."""

import math
import random
import textwrap
from collections.abc import Callable, Mapping, Sequence
from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minivisrl.lab.plots import COLORS, STYLE

# The label desk: pictures with two descriptions and two buttons


@plt.rc_context(STYLE)
def pair_figure(image: Tensor, first: str, second: str, heading: str) -> Figure:
    """One picture (3, H, W), and what two descriptions say of it."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6, 2.2), width_ratios=(1, 2))
    pixels = image / 255 if image.dtype == torch.uint8 else image
    left.imshow(pixels.permute(1, 2, 0).clip(0, 1).numpy(), interpolation="nearest")
    left.set(xticks=[], yticks=[])
    right.axis("off")
    for y, name, text in ((0.95, "first", first), (0.45, "second", second)):
        told = textwrap.fill(text, 44)
        right.text(0, y, f"{name}:", weight="bold", va="top", transform=right.transAxes)
        right.text(0, y - 0.13, told, va="top", transform=right.transAxes)
    figure.suptitle(heading, fontsize=10)
    return figure


class Desk:
    """Shows pair after pair and keeps the reader's choices: 0 first, 1 second, None not labelled.

    Args:
        images: (B, 3, H, W).
        first, second: B descriptions each.
    """

    def __init__(self, images: Tensor, first: Sequence[str], second: Sequence[str]) -> None:
        self.images, self.first, self.second = images, list(first), list(second)
        self.choices: list[int | None] = [None] * len(self.first)

    @property
    def current(self) -> int:
        """The first pair without a choice, or the last pair."""
        return self.choices.index(None) if None in self.choices else len(self.choices) - 1

    @property
    def labelled(self) -> int:
        """How many pairs the reader has labelled."""
        return sum(choice is not None for choice in self.choices)

    def choose(self, side: int) -> Figure:
        """What a click does: note the choice, and show the next pair."""
        if None in self.choices:
            self.choices[self.current] = side
        return self.figure()

    def figure(self) -> Figure:
        """The current pair."""
        i, total = self.current, len(self.choices)
        done = f"all {total} labelled, thank you" if self.labelled == total else "which is better?"
        heading = f"Pair {i + 1} of {total}: {done}"
        return pair_figure(self.images[i], self.first[i], self.second[i], heading)

    def labels(self, script: Sequence[int]) -> list[int]:
        """The reader's choices, and the script's where there are none."""
        pairs = zip(self.choices, script, strict=True)
        return [int(ours) if ours is not None else int(theirs) for ours, theirs in pairs]

    def show(self) -> None:
        """The picture and two buttons; without a reader, the first pair stays."""
        from IPython.display import display
        from ipywidgets import Button, HBox

        buttons = [Button(description=f"the {name} one") for name in ("first", "second")]
        display(HBox(buttons))
        picture = display(self._closed(self.figure()), display_id=True)
        for side, button in enumerate(buttons):
            button.on_click(lambda _, side=side: picture.update(self._closed(self.choose(side))))

    @staticmethod
    def _closed(figure: Figure) -> Figure:
        plt.close(figure)  # otherwise the end of the cell would show it a second time
        return figure


def minimise(loss_of: Callable[[Tensor], Tensor], start: Tensor) -> Tensor:
    """The argument at which `loss_of` is least, by L-BFGS from `start`."""
    x = start.detach().clone().double().requires_grad_()
    options: dict[str, Any] = {"max_iter": 500, "tolerance_grad": 1e-10, "tolerance_change": 1e-14}
    optimizer = torch.optim.LBFGS([x], line_search_fn="strong_wolfe", **options)

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(x)
        loss.backward()
        return loss

    optimizer.step(closure)
    return x.detach()


# The slider: Eq. (4) in closed form, with a reward that has a hole

OUTPUTS = ("nothing", "a circle", "a red circle", "both things", "one thing, five times")
REF = (0.40, 0.27, 0.22, 0.10, 0.01)
GOLD = (0.0, 0.3, 0.5, 1.0, 0.2)  # what the annotators would say
PROXY = (0.0, 0.3, 0.5, 1.0, 1.3)  # what the reward model says: it has not seen the last one


def optimum(kl_coef: float, rewards: Sequence[float] = PROXY) -> list[float]:
    """The policy that maximises Eq. (4) without its third term."""
    top = max(rewards)  # exp of large numbers would overflow; the constant cancels
    weights = [p * math.exp((r - top) / kl_coef) for p, r in zip(REF, rewards, strict=True)]
    return [weight / sum(weights) for weight in weights]


def outcome(kl_coef: float) -> tuple[float, float, float]:
    """Proxy, gold and nats from the reference, of the policy that is best for the proxy."""
    policy = optimum(kl_coef)
    proxy, gold = (sum(p * r for p, r in zip(policy, rs, strict=True)) for rs in (PROXY, GOLD))
    kl = sum(p * math.log(p / q) for p, q in zip(policy, REF, strict=True) if p > 0)
    return proxy, gold, kl


@plt.rc_context(STYLE)
def overoptimisation_figure(kl_coef: float) -> Figure:
    """The best policy at this weight of the KL, and where it lies on the way to too much."""
    figure, (left, right) = plt.subplots(1, 2, figsize=(6, 3))
    places = range(len(OUTPUTS))
    left.barh([y + 0.2 for y in places], REF, 0.4, color=COLORS["reference"], label="reference")
    best = optimum(kl_coef)
    left.barh([y - 0.2 for y in places], best, 0.4, color=COLORS["policy"], label="best policy")
    names = [textwrap.fill(name, 12) for name in OUTPUTS]
    left.set_yticks(places, names)
    left.set(xlabel="probability", xlim=(0, 1))
    left.legend(loc="lower right")
    path = [outcome(2 ** (-step / 10)) for step in range(-40, 91)]
    proxies, golds, kls = zip(*path, strict=True)
    right.plot(kls, proxies, color=COLORS["reward"], label="proxy")
    right.plot(kls, golds, color=COLORS["policy"], label="gold")
    proxy, gold, kl = outcome(kl_coef)
    right.plot([kl, kl], [proxy, gold], "o", color="black", ms=4, label="you are here")
    right.set(xlabel="KL from the reference, nats", ylabel="expected reward", ylim=(0, 1.4))
    right.legend(loc="lower center")
    figure.suptitle(f"beta = {kl_coef:g}: proxy {proxy:.2f}, gold {gold:.2f}", fontsize=10)
    return figure


# Gold and proxy of training runs, against the distance from the start


def distances(rows: Sequence[Mapping[str, float]]) -> Tensor:
    """(steps,): nats per description from the reference, from the log of a run."""
    return torch.tensor([row["kl_ref"] * row["completion_length"] for row in rows])


@plt.rc_context(STYLE)
def against_kl(
    runs: Mapping[str, Sequence[Sequence[Mapping[str, float]]]],
    gold: str,
    title: str,
    width: int = 4,
) -> Figure:
    """Proxy and gold over the KL, one panel per kind of run, thin lines for single seeds.

    A dot is the mean over seeds and over `width` steps.

    Args:
        runs: label -> logs of several seeds, each a list of rows.
        gold: name of the gold metric's column.
    """
    figure, axes = plt.subplots(1, len(runs), squeeze=False, sharex=True, sharey=True)
    for axis, (label, logs) in zip(axes[0], runs.items(), strict=True):
        x = torch.stack([distances(rows) for rows in logs])  # (S, steps)
        x = x.view(len(logs), -1, width).mean(dim=2)  # (S, dots)
        for column, role in (("reward/learned", "reward"), (gold, "policy")):
            y = torch.tensor([[row[column] for row in rows] for rows in logs])  # (S, steps)
            y = y.view(len(logs), -1, width).mean(dim=2)  # (S, dots)
            name = {"reward": "proxy, in sd", "policy": "gold"}[role]
            axis.plot(x.mean(dim=0), y.mean(dim=0), "o-", ms=4, color=COLORS[role], label=name)
            axis.plot(x.T, y.T, lw=0.8, alpha=0.4, color=COLORS[role])
        axis.set(title=label, xlabel="KL from the base, nats", ylim=(0, 1.5))
    axes[0, 0].set_ylabel("mean over descriptions")
    axes[0, 0].legend(loc="lower right")
    figure.suptitle(title, fontsize=10)
    return figure


# 2.1 predict


def _loss(rows: Sequence[tuple[float, float, float]]) -> float:
    """Eq. (3) as a mean, on (score of A, score of B, label)."""
    losses = [
        y * math.log(1 + math.exp(b - a)) + (1 - y) * math.log(1 + math.exp(a - b))
        for a, b, y in rows
    ]
    return sum(losses) / len(losses)


PAIRS = [(1.0, -0.5, 1.0), (0.3, 0.9, 1.0), (2.0, 1.2, 0.0)]
CHANGES: dict[str, tuple[list[tuple[float, float, float]], str]] = {
    "5 is added to every score": (
        [(a + 5, b + 5, y) for a, b, y in PAIRS],
        "only differences of scores enter",
    ),
    "5 is added to both scores of the first picture only": (
        [(a + 5, b + 5, y) if i == 0 else (a, b, y) for i, (a, b, y) in enumerate(PAIRS)],
        "which pictures are compared with each other?",
    ),
    "every score is doubled": (
        [(2 * a, 2 * b, y) for a, b, y in PAIRS],
        "the scale says how sure the choices are",
    ),
    "A and B change places, and every label y becomes 1 - y": (
        [(b, a, 1 - y) for a, b, y in PAIRS],
        "write Eq. (3) down with the names exchanged",
    ),
    "every pair is labelled once more, the other way round": (
        PAIRS + [(a, b, 1 - y) for a, b, y in PAIRS],
        "for a pair with both labels, which difference would be best?",
    ),
}


def check_what_changes(prediction: dict) -> None:
    """Which changes leave the loss of the reward model as it was."""
    assert set(prediction) == set(CHANGES), f"answer for exactly these changes: {list(CHANGES)}"
    for name, (after, hint) in CHANGES.items():
        same = math.isclose(_loss(PAIRS), _loss(after), abs_tol=1e-9)
        assert prediction[name] == same, f"{name!r}: {hint}"


# 2.2 implement


def check_reward_model_loss(reward_model_loss: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
    """Eq. (3) with both of its terms, also where scores are far apart."""

    def loss(rows: Sequence[tuple[float, float, float]]) -> float:
        a, b, y = (torch.tensor(column) for column in zip(*rows, strict=True))
        got = reward_model_loss(a, b, y)
        assert isinstance(got, Tensor) and got.ndim == 0, "return one number: the mean over pairs"
        return float(got)

    for row in PAIRS:
        wins = "A" if row[2] else "B"
        assert math.isclose(loss([row]), _loss([row]), abs_tol=1e-5), (
            f"scores {row[:2]}, {wins} was preferred: the wrong term, or the wrong sign"
        )
    doubt = (1.0, 0.0, 0.7)
    assert math.isclose(loss([doubt]), _loss([doubt]), abs_tol=1e-5), (
        "y may be a share of annotators, such as 0.7: then both terms count"
    )
    assert math.isclose(loss(PAIRS), _loss(PAIRS), abs_tol=1e-5), "a mean over pairs, not a sum"
    far = loss([(500.0, 0.0, 0.0)])
    assert math.isfinite(far), "scores 500 apart give no finite loss: take the log of sigma at once"
    assert math.isclose(far, 500.0, rel_tol=1e-5), "a sure and wrong model pays its whole margin"


# 2.3 find the bug


def check_last_value(last_value: Callable[[Tensor, Tensor], Tensor]) -> None:
    """The value at the end of each text, whatever stands in the padding."""
    values = torch.arange(20.0).view(4, 5)
    lengths = [5, 3, 1, 4]
    mask = torch.tensor([[float(t < n) for t in range(5)] for n in lengths])
    truth = torch.tensor([values[i, n - 1] for i, n in enumerate(lengths)])
    got = last_value(values.clone(), mask)
    assert isinstance(got, Tensor) and got.shape == (4,), "one score per text: (N,)"
    assert got[0] == truth[0], "the longest text fills its row: its score was right already"
    wider = last_value(torch.cat([values, torch.full((4, 2), 99.0)], 1), mask_padded(mask))
    assert torch.equal(wider, got), "two more columns of padding must not change any score"
    assert torch.equal(got, truth), "count the tokens of a row; positions start at 0"


def mask_padded(mask: Tensor) -> Tensor:
    """Two more columns of zeros."""
    return torch.cat([mask, torch.zeros(len(mask), 2)], dim=1)


# 2.4 ablate


def check_sweet_spot(sweet_spot: Callable[[Sequence[float]], tuple[float, float]]) -> None:
    """The weights of the KL at which the proxy, and at which the gold metric, is highest."""
    for grid in ([2.0, 1.0, 0.5, 0.2, 0.1, 0.05], [0.02, 0.12, 0.35, 4.0], [3.0, 2.0]):
        found = sweet_spot(list(grid))
        assert isinstance(found, tuple) and len(found) == 2, "return (for the proxy, for gold)"
        best = [max(grid, key=lambda c, i=i: outcome(c)[i]) for i in (0, 1)]
        assert found[0] == best[0], "the first: where outcome(kl_coef)[0], the proxy, is highest"
        assert found[1] == best[1], "the second: judge the same policies by gold, outcome(...)[1]"


# 2.5 extend


def check_best_of_n(best_of_n: Callable[[Tensor, Tensor, int], Tensor]) -> None:
    """The distribution of the best of n draws, by going through all of them."""
    ref, proxy = torch.tensor([0.4, 0.1, 0.3, 0.2]), torch.tensor([0.5, 2.0, -1.0, 0.7])
    for n in (1, 2, 4):
        truth = [0.0] * 4
        for draws in product(range(4), repeat=n):
            best = max(draws, key=lambda i: proxy[i].item())
            truth[best] += math.prod(ref[i].item() for i in draws)
        got = best_of_n(ref.clone(), proxy.clone(), n)
        assert isinstance(got, Tensor) and got.shape == (4,), "one probability per output: (V,)"
        assert math.isclose(got.sum().item(), 1, abs_tol=1e-5), "the probabilities must sum to 1"
        if n == 1:
            hint = "the best of one draw is that draw: the reference, in its own order"
        else:
            hint = "all n draws are at most this good, minus: all n are worse"
        assert torch.allclose(got, torch.tensor(truth), atol=1e-5), hint
    draw = random.Random(0)  # equal rewards would need a rule; these are all different
    wide = torch.tensor([draw.random() for _ in range(50)])
    got = best_of_n(wide / wide.sum(), torch.arange(50.0), 1000)
    assert got[-1] > 0.99, "with 1000 draws the best output of all is all but certain"


MUTANTS = {
    "2.1": [
        f"prediction = dict(zip({list(CHANGES)}, {answers}))"
        for answers in (
            [False, True, False, True, False],
            [True, False, False, True, False],
            [True, True, True, True, False],
            [True, True, False, False, False],
            [True, True, False, True, True],
        )
    ],
    "2.2": [
        """
        def reward_model_loss(scores_a, scores_b, y):
            return -logsigmoid(scores_a - scores_b).mean()
        """,
        """
        def reward_model_loss(scores_a, scores_b, y):
            gap = scores_a - scores_b
            return -(y * logsigmoid(gap) + (1 - y) * logsigmoid(-gap)).sum()
        """,
        """
        def reward_model_loss(scores_a, scores_b, y):
            gap = scores_a - scores_b
            return -(y * gap.sigmoid().log() + (1 - y) * (1 - gap.sigmoid()).log()).mean()
        """,
        """
        def reward_model_loss(scores_a, scores_b, y):
            gap = scores_a - scores_b
            return -logsigmoid(torch.where(y > 0.5, gap, -gap)).mean()
        """,
    ],
    "2.3": [
        "last_value = buggy_last_value",
        """
        def last_value(values, mask):
            return (values * mask).sum(dim=1) / mask.sum(dim=1)
        """,
        """
        def last_value(values, mask):
            last = mask.sum(dim=1).long().clamp(max=mask.shape[1] - 1)
            return values.gather(1, last[:, None]).squeeze(1)
        """,
    ],
    "2.4": [
        """
        def sweet_spot(kl_coefs):
            return min(kl_coefs), min(kl_coefs)
        """,
        """
        def sweet_spot(kl_coefs):
            gold = max(kl_coefs, key=lambda c: outcome(c)[1])
            return gold, gold
        """,
        """
        def sweet_spot(kl_coefs):
            proxy, gold = (max(kl_coefs, key=lambda c, i=i: outcome(c)[i]) for i in (0, 1))
            return gold, proxy
        """,
    ],
    "2.5": [
        """
        def best_of_n(ref, proxy, n):
            return ref
        """,
        """
        def best_of_n(ref, proxy, n):
            order = proxy.argsort()
            below = ref[order].cumsum(dim=0)
            return below**n - (below - ref[order]) ** n
        """,
        """
        def best_of_n(ref, proxy, n):
            order = proxy.argsort(descending=True)
            below = ref[order].cumsum(dim=0)
            best = torch.empty_like(ref)
            best[order] = below**n - (below - ref[order]) ** n
            return best
        """,
        """
        def best_of_n(ref, proxy, n):
            weights = ref * (proxy * n).exp()
            return weights / weights.sum()
        """,
    ],
}
