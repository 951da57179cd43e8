"""Chapter 1, the MDP: patches and counts, the figures behind the sliders, checks and mutants."""

import math
from collections.abc import Callable, Mapping, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.nn.functional import pad

from minivisrl.lab.plots import COLORS, STYLE
from minivisrl.rollout import Rollout
from minivisrl.worlds.scenes import BACKGROUND, COLOURS

# A picture as 64 color tokens, and a table of counts as its policy

NAMES = (*COLOURS, "background")
PALETTE = torch.tensor([*COLOURS.values(), (BACKGROUND,) * 3])  # (7, 3)


def color_codes(pictures: Tensor, side: int = 8) -> Tensor:
    """(N, 3, H, W) in [0, 1] -> (N, side * side): the palette color nearest to a patch's mean."""
    patches = torch.nn.functional.adaptive_avg_pool2d(pictures.float(), side)  # (N, 3, side, side)
    colors = patches.flatten(2).transpose(1, 2)  # (N, side * side, 3)
    return torch.cdist(colors, PALETTE.expand(len(colors), -1, -1)).argmin(dim=2)


def neighbors(codes: Tensor, side: int = 8) -> tuple[Tensor, Tensor]:
    """Left and upper neighbor of every patch, (N, side * side) each; 7 at the edges."""
    grid, edge = codes.view(-1, side, side), len(NAMES)
    left = pad(grid, (1, 0), value=edge)[:, :, :-1]  # (N, side, side)
    upper = pad(grid, (0, 0, 1, 0), value=edge)[:, :-1]  # (N, side, side)
    return left.flatten(1), upper.flatten(1)


def neighbor_table(codes: Tensor) -> Tensor:
    """(8, 8, 7): probability of a color after its left and upper neighbor; counts start at 1."""
    left, upper = neighbors(codes)
    size, colors = len(NAMES) + 1, len(NAMES)
    flat = (left * size + upper) * colors + codes  # (N, T)
    counts = torch.bincount(flat.flatten(), minlength=size * size * colors) + 1.0
    counts = counts.view(size, size, colors)
    return counts / counts.sum(dim=2, keepdim=True)


def paint(codes: Tensor, counts: Sequence[int], side: int = 8) -> Tensor:
    """(64,) codes -> (len(counts), 3, side, side): the picture when so many patches are painted."""
    shown = torch.arange(len(codes)) < torch.tensor(list(counts))[:, None]  # (M, 64)
    colors = PALETTE[codes].expand(len(shown), -1, -1).where(shown[..., None], torch.tensor(0.5))
    return colors.transpose(1, 2).reshape(len(shown), 3, side, side)


def large(picture: Tensor, pixels: int = 32) -> Tensor:
    """(3, h, w) -> (3, pixels, pixels), every pixel repeated."""
    times = pixels // picture.shape[-1]
    return picture.repeat_interleave(times, dim=1).repeat_interleave(times, dim=2)


# The first slider: a completion, word by word


@plt.rc_context(STYLE)
def token_figure(
    sibling: int,
    step: int,
    picture: Tensor,
    tokens: Tensor,
    chances: Tensor,
    mask: Tensor,
    words: Sequence[str],
    shown: int = 6,
) -> Figure:
    """The state at one step of one sibling (both from 1), and the likeliest next words.

    Args:
        picture: (3, H, W); tokens, mask: (N, T); chances: (N, T, V); words: V strings.
    """
    row, t = sibling - 1, step - 1
    figure, (left, right) = plt.subplots(1, 2, width_ratios=(2, 3))
    left.imshow(picture.permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
    left.set(xticks=[], yticks=[])
    left.spines[:].set_visible(False)
    over = not mask[row, t]
    past = [words[i] for i in tokens[row, :t][mask[row, :t] > 0].tolist()]
    lines = [" ".join(past[i : i + 4]) for i in range(0, len(past), 4)]
    left.set_xlabel("\n".join(lines) or "(no word yet)", fontsize=8)
    drawn = tokens[row, t].item()
    top = chances[row, t].topk(shown).indices.tolist()
    top = top if drawn in top or over else [*top[:-1], drawn]
    colors = [COLORS["policy"] if i == drawn and not over else COLORS["reference"] for i in top]
    values = chances[row, t, top].tolist()
    right.barh(range(shown), values, color=colors)
    right.set_yticks(range(shown), [words[i] for i in top])
    right.invert_yaxis()
    right.set(xlabel="probability of the next word", xlim=(0, 1))
    logs = chances[row, t].clamp(min=1e-30).log()
    entropy = -(chances[row, t] * logs).sum().item()
    said = f"draws {words[drawn]!r}, log-prob {logs[drawn].item() + 0.0:.2f}"
    said = "the episode is over: padding, mask 0" if over else said
    title = f"sibling {sibling}, step {step}: {said}"
    figure.suptitle(title if over else f"{title}, entropy {entropy + 0.0:.2f} nats", fontsize=10)
    return figure


# The second slider: an episode of every pillar

Story = tuple[Tensor, Rollout, Sequence[str]]


@plt.rc_context(STYLE)
def episode_figure(pillar: str, step: int, stories: Mapping[str, Story]) -> Figure:
    """State and action at one step (from 1; the last one if there are fewer), and all log-probs.

    Args:
        stories: pillar -> pictures of the states (T, 3, H, W), a rollout of one row, T names.
    """
    pictures, rollout, names = stories[pillar]
    total = len(names)
    t = min(step, total) - 1
    figure, (left, right) = plt.subplots(1, 2, width_ratios=(2, 3))
    left.imshow(pictures[t].permute(1, 2, 0).clamp(0, 1), interpolation="nearest")
    left.set(xticks=[], yticks=[], xlabel=f"action: {names[t]}")
    left.spines[:].set_visible(False)
    own = rollout.mask[0, :total] > 0
    colors = [COLORS["policy"] if m else COLORS["reference"] for m in own.tolist()]
    colors[t] = COLORS["reward"] if own[t] else "black"
    values = rollout.logprobs[0, :total].tolist()
    right.bar(range(1, total + 1), values, color=colors)
    right.axhline(0, color="black", lw=0.8)
    right.set(xlabel="step", ylabel="log-prob of the action")
    right.xaxis.get_major_locator().set_params(integer=True)
    said = f"log-prob {values[t]:.2f}" if own[t] else "not the policy's own: mask 0"
    figure.suptitle(f"{pillar}, step {t + 1} of {total}: {said}", fontsize=10)
    return figure


# 1.1 predict

COLUMNS = {  # by hand
    "decisions: a diffusion with 50 denoising steps": (50, "one action per step"),
    "decisions: a picture of 16 x 16 image tokens": (256, "one action per token: 16 times 16"),
    "decisions: 64 image tokens, 11 words of the user, 4 words of the answer": (
        68,
        "the user's words are in the sequence, but the policy did not choose them",
    ),
    "log-prob: a robot that throws a die with 3 faces, 6 moves": (
        -6 * math.log(3),
        "every move has probability 1/3, and what the world does is not the policy's doing; "
        "a logarithm of a probability is not positive",
    ),
    "log-prob: words of probability 0.5, 0.5 and 1, then two columns of padding": (
        -2 * math.log(2),
        "add the logarithms of the words; padding is under a mask of 0",
    ),
}


def check_columns(prediction: dict) -> None:
    """Counts exactly, log-probs to two decimals."""
    assert set(prediction) == set(COLUMNS), f"answer exactly these: {list(COLUMNS)}"
    for name, (truth, hint) in COLUMNS.items():
        assert abs(float(prediction[name]) - truth) < 0.011, f"{name!r}: {hint}"


# 1.2 implement


def check_mask(mask_of: Callable[[Tensor, int], Tensor]) -> None:
    """Row by row in plain Python; the end token may occur again, or never."""
    rows = [[5, 6, 2, 0, 0], [2, 0, 0, 0, 0], [5, 6, 7, 8, 9], [5, 2, 2, 2, 2], [5, 2, 7, 2, 8]]
    got = mask_of(torch.tensor(rows), 2)
    assert isinstance(got, Tensor) and got.shape == (5, 5), "return a tensor of shape (N, T)"
    assert got.is_floating_point(), "the mask holds 0.0 and 1.0, floats"
    for row, found in zip(rows, got.tolist(), strict=True):
        length = row.index(2) + 1 if 2 in row else len(row)
        truth = [float(t < length) for t in range(len(row))]
        if found == truth:
            continue
        hint = "compare column by column"
        if 2 not in row:
            hint = "without an end token the row ran out of space: all of it is the policy's own"
        elif found[length - 1] == 0:
            hint = "the end token is an action too: the policy chose to stop"
        elif sum(found) > length:
            hint = "after the first end token nothing counts, not even another end token"
        raise AssertionError(f"{row}, end 2, gives {[int(x) for x in found]}: {hint}")


# 1.3 find the bug


def check_rewards(grouped_rewards: Callable[..., Tensor]) -> None:
    """Three prompts with different answers, two completions each, worked out by hand."""
    outputs = [f"<answer> {word} </answer>" for word in ("1", "1", "2", "3", "3", "3")]
    got = grouped_rewards(outputs, ["1", "2", "3"], 2)
    assert isinstance(got, Tensor), "return a tensor"
    assert got.shape == (3, 2), f"shape (B, G) is (3, 2), not {tuple(got.shape)}"
    truth = [[1.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    assert got.tolist() == truth, (
        "row i * G + j belongs to prompt i: which answer stands beside the second output?"
    )


# 1.4 ablate


def check_best_baseline(best_baseline: Callable[..., float]) -> None:
    """Against the closed form E[R s^2] / E[s^2]."""
    cases = (
        ([0.25, 0.75], [1.0, 0.0], [0.75, -0.25]),
        ([0.25, 0.75], [2.0, 1.0], [0.75, -0.25]),
        ([0.1, 0.6, 0.3], [1.0, 0.0, 3.0], [0.9, -0.1, -0.1]),
        ([0.5, 0.25, 0.25], [0.0, 1.0, -1.0], [0.5, -0.5, -0.5]),
    )
    for chances, rewards, scores in cases:
        weights = [c * s * s for c, s in zip(chances, scores, strict=True)]
        best = sum(w * r for w, r in zip(weights, rewards, strict=True)) / sum(weights)
        plain = sum(c * r for c, r in zip(chances, rewards, strict=True))
        got = float(best_baseline(*map(torch.tensor, (chances, rewards, scores))))
        if abs(got - best) < 0.011:
            continue
        assert abs(got - plain) > 0.011, (
            "that is the mean reward; compute the noise for every baseline and look"
        )
        assert -2 <= got <= 4, "the baseline comes from torch.linspace(-2, 4, 601)"
        raise AssertionError(
            f"chances {chances}, rewards {rewards}: {got:.2f} is not the quietest; "
            "the variance is the mean of squared deviations, weighted with the chances"
        )


# 1.5 extend


def check_gaussian(step_logprobs: Callable[..., Tensor]) -> None:
    """Number by number in plain Python."""
    draw = torch.Generator().manual_seed(0)
    x, mean = (torch.randn(2, 3, 2, 2, generator=draw) for _ in range(2))  # (N, C, H, W)
    for std in (1.0, 0.1, 2.5):
        got = step_logprobs(x.clone(), mean.clone(), std)
        assert isinstance(got, Tensor) and got.shape == (2,), "one number per row: shape (N,)"
        for row in range(2):
            pairs = zip(x[row].flatten().tolist(), mean[row].flatten().tolist(), strict=True)
            squares = [((a - b) / std) ** 2 for a, b in pairs]
            constant = math.log(std) + 0.5 * math.log(2 * math.pi)
            truth = sum(-0.5 * q - constant for q in squares)
            found = got[row].item()
            if math.isclose(found, truth, rel_tol=1e-4):
                continue
            close = {
                "you averaged over the picture; its log-density is a sum": truth / 12,
                "a density is not a distance: the constant terms are missing": sum(squares) / -2,
                "the sign is turned: what is nearer to the mean is likelier": -truth,
            }
            for hint, wrong in close.items():
                assert not math.isclose(found, wrong, rel_tol=1e-4), hint
            raise AssertionError(
                f"std {std}: {found:.3f}, not {truth:.3f}: is it squared, and its logarithm there?"
            )


MUTANTS = {
    "1.1": [
        "prediction = dict(zip(prediction, (51, 256, 68, -6.59, -1.39)))",
        "prediction = dict(zip(prediction, (50, 16, 68, -6.59, -1.39)))",
        "prediction = dict(zip(prediction, (50, 256, 79, -6.59, -1.39)))",
        "prediction = dict(zip(prediction, (50, 256, 68, 6.59, -1.39)))",
        "prediction = dict(zip(prediction, (50, 256, 68, -6.59, 0.25)))",
    ],
    "1.2": [
        """
        def mask_of(tokens, end):
            return ((tokens == end).cumsum(dim=1) == 0).float()
        """,
        """
        def mask_of(tokens, end):
            return (tokens != end).float()
        """,
        """
        def mask_of(tokens, end):
            return ((tokens == end).cumsum(dim=1) <= 1).float()
        """,
        """
        def mask_of(tokens, end):
            last = (tokens == end).float().argmax(dim=1)
            return (torch.arange(tokens.shape[1]) <= last[:, None]).float()
        """,
    ],
    "1.3": [
        "grouped_rewards = buggy_rewards",
        """
        def grouped_rewards(outputs, answers, group_size):
            return torch.tensor(exact_match(outputs, answers * group_size)).view(group_size, -1).T
        """,
        """
        def grouped_rewards(outputs, answers, group_size):
            everybody = [answer for answer in answers for _ in range(group_size)]
            return torch.tensor(exact_match(outputs, everybody))
        """,
    ],
    "1.4": [
        """
        def best_baseline(chances, rewards, scores):
            return (chances * rewards).sum().item()
        """,
        """
        def best_baseline(chances, rewards, scores):
            baselines = torch.linspace(-2, 4, 601)
            slopes = (rewards - baselines[:, None]) * scores
            return baselines[slopes.var(dim=1).argmin()].item()
        """,
        """
        def best_baseline(chances, rewards, scores):
            baselines = torch.linspace(-2, 4, 601)
            slopes = (rewards - baselines[:, None]) * scores
            return baselines[(chances * slopes).sum(dim=1).argmin()].item()
        """,
    ],
    "1.5": [
        """
        def step_logprobs(x_next, mean, std):
            return torch.distributions.Normal(mean, std).log_prob(x_next).flatten(1).mean(dim=1)
        """,
        """
        def step_logprobs(x_next, mean, std):
            return (-0.5 * ((x_next - mean) / std) ** 2).flatten(1).sum(dim=1)
        """,
        """
        def step_logprobs(x_next, mean, std):
            return -torch.distributions.Normal(mean, std).log_prob(x_next).flatten(1).sum(dim=1)
        """,
        """
        def step_logprobs(x_next, mean, std):
            return torch.distributions.Normal(mean, std**2).log_prob(x_next).flatten(1).sum(dim=1)
        """,
        """
        def step_logprobs(x_next, mean, std):
            return torch.distributions.Normal(mean, std).log_prob(x_next).sum()
        """,
    ],
}
