"""Chapter 6, GRPO: the figure behind the slider, the checks of the exercises and their mutants."""

import math
import random
import statistics
from collections.abc import Callable

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minivisrl import UserError
from minivisrl.lab.plots import COLORS, STYLE
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.rollout import Prompts, Rollout

# The slider: two closed forms and the figure that shows them


def dead_share(success: float, group_size: int) -> float:
    """Probability that all completions of a group earn the same reward, 0 or 1."""
    return success**group_size + (1 - success) ** group_size


def two_advantages(successes: int, group_size: int) -> tuple[float, float]:
    """Eq. (11) for a success and for a failure in a group with this many successes."""
    ratio = (group_size - successes) / successes
    scale = math.sqrt((group_size - 1) / group_size)
    return scale * math.sqrt(ratio), -scale / math.sqrt(ratio)


@plt.rc_context(STYLE)
def group_size_figure(group_size: int, reference: int = 8) -> Figure:
    """What a group of this size sees: how often nothing, and how strongly it pushes."""
    figure, (left, right) = plt.subplots(1, 2)
    chances = [i / 100 for i in range(101)]
    for size, role in ((reference, "reference"), (group_size, "policy")):
        shares = [dead_share(p, size) for p in chances]
        left.plot(chances, shares, color=COLORS[role], label=f"G = {size}")
    left.set(xlabel="success rate p", ylabel="share of dead groups", ylim=(0, 1.02))
    left.legend(loc="upper center")
    counts = range(1, group_size)
    up, down = zip(*(two_advantages(k, group_size) for k in counts), strict=True)
    right.plot(counts, up, "o-", ms=4, color=COLORS["reward"], label="a success")
    right.plot(counts, down, "s-", ms=4, color=COLORS["control"], label="a failure")
    right.axhline(0, color="black", lw=0.8)
    right.set(xlabel=f"successes among {group_size}", ylabel="advantage")
    right.xaxis.get_major_locator().set_params(integer=True)
    right.legend()
    alone, middle = two_advantages(1, group_size)[0], dead_share(0.5, group_size)
    figure.suptitle(
        f"G = {group_size}: a lone success gets {alone:+.2f}; "
        f"at p = 0.5, {middle:.1%} of the groups are dead",
        fontsize=10,
    )
    return figure


# 6.1 predict


def _advantages(rewards: list[float]) -> list[float]:
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(r - mean) / std if std else 0.0 for r in rewards]


EDITS: dict[str, tuple[Callable[[list[list[float]]], list[list[float]]], str]] = {
    "plus 5 for all": (
        lambda groups: [[r + 5 for r in group] for group in groups],
        "the mean of a group moves along with its rewards",
    ),
    "plus 5 for one prompt": (
        lambda groups: [[r + 5 for r in groups[0]], *groups[1:]],
        "a reward meets only the siblings of its own prompt",
    ),
    "times 10": (
        lambda groups: [[10 * r for r in group] for group in groups],
        "look at what the spread of a group does when its rewards are scaled",
    ),
    "times -1": (
        lambda groups: [[-r for r in group] for group in groups],
        "deviations change sign, the spread does not",
    ),
    "0.001 for one of four equal": (
        lambda groups: [*groups[:-1], [groups[-1][0] + 0.001, *groups[-1][1:]]],
        "work out the spread of that group, then divide the tiny deviations by it",
    ),
}


def check_edits(prediction: dict) -> None:
    """Which edits of the rewards leave every advantage as it was."""
    groups = [[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0], [1.0, 1.0, 1.0, 1.0]]
    before = [_advantages(group) for group in groups]
    assert set(prediction) == set(EDITS), f"answer for exactly these edits: {list(EDITS)}"
    for name, (edit, hint) in EDITS.items():
        after = [_advantages(group) for group in edit(groups)]
        pairs = zip(sum(before, []), sum(after, []), strict=True)
        same = all(math.isclose(a, b, abs_tol=1e-6) for a, b in pairs)
        assert prediction[name] == same, f"{name!r}: {hint}"


# 6.2 implement


def check_leave_one_out(leave_one_out: Callable[[Tensor], Tensor]) -> None:
    """Each reward minus the mean of the others, by brute force."""
    draw = random.Random(0)
    rows = [[draw.random() for _ in range(5)] for _ in range(3)]
    rewards = torch.tensor(rows)  # (3, 5)
    got = leave_one_out(rewards.clone())
    assert isinstance(got, Tensor) and got.shape == (3, 5), "return a tensor of shape (B, G)"

    def against(baseline: Callable[[list[float], int], float]) -> bool:
        """Whether the attempt subtracts this baseline."""
        truth = [[row[j] - baseline(row, j) for j in range(5)] for row in rows]
        return torch.allclose(got, torch.tensor(truth), atol=1e-6)

    def others(row: list[float], j: int) -> list[float]:
        return row[:j] + row[j + 1 :]

    all_five = against(lambda row, j: sum(row) / 5)
    assert not all_five, "that mean still contains the completion's own reward"
    assert not against(lambda row, j: sum(others(row, j)) / 5), "you divided by G, not G - 1"
    centred = rewards - rewards.mean(dim=1, keepdim=True)
    assert not torch.allclose(got, centred * 4 / 5), "the factor is upside down"
    across = rewards - rewards.mean(dim=0, keepdim=True)
    assert not torch.allclose(got, across), "siblings lie along dimension 1, prompts along 0"
    assert against(lambda row, j: sum(others(row, j)) / 4), "compare with the other four only"


# 6.3 find the bug


QUADRANTS = (  # ratio, advantage, objective, its slope in the ratio, hint
    (1.0, 1.0, 1.0, 1.0, "at ratio 1 nothing is clipped"),
    (1.0, -1.0, -1.0, -1.0, "at ratio 1 nothing is clipped"),
    (1.1, 1.0, 1.1, 1.0, "inside the interval nothing is clipped"),
    (1.5, 1.0, 1.2, 0.0, "a good action that is already 1.5 times as likely needs no more push"),
    (0.5, 1.0, 0.5, 1.0, "a good action that became rarer must still be pulled back up"),
    (0.5, -1.0, -0.8, 0.0, "a bad action that is already half as likely needs no more push"),
    (1.5, -1.0, -1.5, -1.0, "a bad action that became likelier must still be pushed down"),
)


def check_objective(objective: Callable[..., Tensor]) -> None:
    """Value and slope in every quadrant, each column by itself."""
    for value, advantage, truth, slope, hint in QUADRANTS:
        ratio = torch.tensor([[value]], requires_grad=True)
        got = objective(ratio, torch.tensor([[advantage]]))
        assert got.shape == (1, 1), "keep the shape (N, T): the means come later"
        found = torch.autograd.grad(got.sum(), ratio)[0].item() if got.requires_grad else 0.0
        where = f"ratio {value}, advantage {advantage:+.0f}"
        assert math.isclose(found, slope, abs_tol=1e-5), f"{where}: {hint}"
        assert math.isclose(got.item(), truth, abs_tol=1e-5), f"{where}: right slope, wrong value"


# 6.4 ablate


def check_clip_effect(clip_effect: Callable[[int], float]) -> None:
    """Nothing with one update a batch, something with four."""
    one = float(clip_effect(1))
    assert one == 0, (
        "with one update per batch every ratio is 1, so no clip can act, yet your two runs differ: "
        "what else did you change?"
    )
    assert float(clip_effect(4)) > 0.01, (
        "with four passes over a batch the ratio leaves 1: does update_epochs reach the config, "
        "and do the two runs have different clips?"
    )


# 6.5 extend


class _Coins:
    """Answers "1" with the probability in the column `p`, else "0"."""

    def rollout(self, prompts: Prompts, group_size: int, generator: torch.Generator) -> Rollout:
        p = torch.tensor(prompts["p"]).repeat_interleave(group_size)  # (N,)
        heads = torch.rand(len(p), generator=generator) < p
        ones = torch.ones(len(p), 1)
        tokens = heads.long()[:, None]  # (N, 1)
        logprobs = torch.where(heads, p, 1 - p).log()[:, None]  # (N, 1)
        outputs = [str(int(h)) for h in heads]
        return Rollout(prompts, {"tokens": tokens}, logprobs, ones, group_size, outputs)


def _heads(completions: list[str], **_: object) -> list[float]:
    return [float(text) for text in completions]


def check_collect_live(collect_live: Callable) -> None:
    """Live groups only, as many as asked for, rewards beside their own completions."""
    p = [0.0, 1.0] * 4 + [0.3, 0.7] * 4
    prompts = Prompts({"prompt": [f"coin {i}" for i in range(16)], "p": p})
    cfg = OnlineConfig(batch_size=6, group_size=4)
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        try:
            rollout, rewards, terms = collect_live(_Coins(), prompts, _heads, cfg, generator)
        except UserError as error:
            raise AssertionError(f"{error}: what if a draw has no live group at all?") from None
        assert rollout.group_size == 4, "keep groups whole: rows() takes them apart"
        groups = rewards.reshape(-1, 4)
        dead = groups.amax(dim=1) == groups.amin(dim=1)
        assert len(rollout) == len(rewards), "one reward for every row of the rollout"
        assert len(rollout) >= 24, "go on drawing until cfg.batch_size groups are there"
        assert len(rollout) == 24, "cut the last draw: exactly cfg.batch_size groups"
        assert rewards.tolist() == _heads(rollout.outputs), "rewards and rows got out of step"
        assert not dead.any(), "a group of equal rewards got through"
        assert isinstance(terms, dict), "return the terms too; an empty dict will do"


MUTANTS = {
    "6.1": [
        """
        prediction = {
            "plus 5 for all": False,
            "plus 5 for one prompt": True,
            "times 10": True,
            "times -1": False,
            "0.001 for one of four equal": False,
        }
        """,
        """
        prediction = {
            "plus 5 for all": True,
            "plus 5 for one prompt": False,
            "times 10": True,
            "times -1": False,
            "0.001 for one of four equal": False,
        }
        """,
        """
        prediction = {
            "plus 5 for all": True,
            "plus 5 for one prompt": True,
            "times 10": False,
            "times -1": False,
            "0.001 for one of four equal": False,
        }
        """,
        """
        prediction = {
            "plus 5 for all": True,
            "plus 5 for one prompt": True,
            "times 10": True,
            "times -1": False,
            "0.001 for one of four equal": True,
        }
        """,
    ],
    "6.2": [
        """
        def leave_one_out(rewards):
            return rewards - rewards.mean(dim=1, keepdim=True)
        """,
        """
        def leave_one_out(rewards):
            group_size = rewards.shape[1]
            return (rewards - rewards.mean(dim=1, keepdim=True)) * (group_size - 1) / group_size
        """,
        """
        def leave_one_out(rewards):
            return rewards - (rewards.sum(dim=1, keepdim=True) - rewards) / rewards.shape[1]
        """,
        """
        def leave_one_out(rewards):
            return rewards - rewards.mean(dim=0, keepdim=True)
        """,
    ],
    "6.3": [
        "objective = buggy_objective",
        """
        def objective(ratio, advantages, clip_eps=0.2):
            return ratio.clamp(1 - clip_eps, 1 + clip_eps) * advantages
        """,
        """
        def objective(ratio, advantages, clip_eps=0.2):
            clipped_ratio = ratio.clamp(1 - clip_eps, 1 + clip_eps)
            return torch.maximum(ratio * advantages, clipped_ratio * advantages)
        """,
        """
        def objective(ratio, advantages, clip_eps=0.2):
            return ratio * advantages
        """,
    ],
    "6.4": [
        """
        def clip_effect(update_epochs):
            clipped, _ = learn(GRPO(GRPOConfig(kl_coef=0.0, update_epochs=update_epochs)))
            cfg = GRPOConfig(kl_coef=0.0, update_epochs=update_epochs, clip_eps=10.0)
            free, _ = learn(GRPO(cfg), seed=1)
            return (clipped - free).abs().max().item()
        """,
        """
        def clip_effect(update_epochs):
            clipped, _ = learn(GRPO(GRPOConfig(kl_coef=0.0)))
            free, _ = learn(GRPO(GRPOConfig(kl_coef=0.0, clip_eps=10.0)))
            return (clipped - free).abs().max().item()
        """,
    ],
    "6.5": [
        "collect_live = act_and_judge",
        """
        def collect_live(policy, prompts, reward_fn, cfg, generator):
            rollout, rewards, _ = act_and_judge(policy, prompts, reward_fn, cfg, generator)
            groups = rewards.view(-1, cfg.group_size)
            live = (groups.amax(1) > groups.amin(1)).nonzero()[:, 0]
            return rollout.groups(live), groups[live].flatten(), {}
        """,
        """
        def collect_live(policy, prompts, reward_fn, cfg, generator):
            kept, scores = [], []
            while sum(len(part.prompts) for part in kept) < cfg.batch_size:
                rollout, rewards, _ = act_and_judge(policy, prompts, reward_fn, cfg, generator)
                groups = rewards.view(-1, cfg.group_size)
                live = (groups.amax(1) > groups.amin(1)).nonzero()[:, 0]
                if len(live):
                    kept.append(rollout.groups(live))
                    scores.append(groups[: len(live)])
            rollout = Rollout.cat(kept).groups(range(cfg.batch_size))
            return rollout, torch.cat(scores)[: cfg.batch_size].flatten(), {}
        """,
        """
        def collect_live(policy, prompts, reward_fn, cfg, generator):
            kept, scores = [], []
            while sum(len(part.prompts) for part in kept) < cfg.batch_size:
                rollout, rewards, _ = act_and_judge(policy, prompts, reward_fn, cfg, generator)
                groups = rewards.view(-1, cfg.group_size)
                live = (groups.amax(1) > groups.amin(1)).nonzero()[:, 0]
                if len(live):
                    kept.append(rollout.groups(live))
                    scores.append(groups[live])
            return Rollout.cat(kept), torch.cat(scores).flatten(), {}
        """,
    ],
}
