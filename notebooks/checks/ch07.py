"""Chapter 7, conventional MLLMs: the figure behind the sliders, the checks and their mutants."""

import statistics
from collections.abc import Callable, Sequence
from functools import partial

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from minivisrl.evaluation.verdicts import verdict as compared
from minivisrl.lab.exercises import foretold
from minivisrl.lab.plots import COLORS, STYLE

# The sliders: a policy with two habits, writing its working or answering at once

WRITES, RIGHT_AT_ONCE = 0.25, 0.40  # the base model: share that writes; accuracy of the others


def habit_path(gain: float, steps: int, rate: float = 2.0, start: float = WRITES) -> Tensor:
    """Exact ascent of Eq. (A2): the chance of writing after 0, 1, ... steps; (steps + 1,).

    gain: how much more a completion with working earns than one without.
    """
    logit = torch.tensor(start, dtype=torch.float64).logit()
    path = [logit.sigmoid()]
    for _ in range(steps):
        logit = logit + rate * path[-1] * (1 - path[-1]) * gain
        path.append(logit.sigmoid())
    return torch.stack(path)


@plt.rc_context(STYLE)
def bonus_figure(bonus: float, right_if_writes: float, steps: int = 40) -> Figure:
    """What each habit earns, and the accuracy of the policy on its way, with and without bonus."""
    difference = right_if_writes - RIGHT_AT_ONCE
    figure, (left, right) = plt.subplots(1, 2, width_ratios=(2, 3))
    names = ("answers\nat once", "writes\nfirst")
    left.bar(names, [RIGHT_AT_ONCE, right_if_writes], color=COLORS["policy"], label="accuracy")
    left.bar(names[1], bonus, bottom=right_if_writes, color=COLORS["reward"], label="bonus")
    left.set(ylabel="expected reward", ylim=(0, max(1.2, 1.25 * (right_if_writes + bonus))))
    left.grid(axis="x", visible=False)
    left.legend(loc="upper left", ncols=2, columnspacing=0.8)
    ends = []
    for role, name, line, gain in (
        ("reference", "without bonus", "--", difference),
        ("policy", "with bonus", "-", difference + bonus),
    ):
        accuracy = RIGHT_AT_ONCE + difference * habit_path(gain, steps)
        right.plot(accuracy, line, color=COLORS[role], label=name)
        ends.append(accuracy[-1].item())
    right.set(xlabel="step of exact gradient ascent", ylabel="accuracy", ylim=(0, 1.02))
    right.legend(loc="lower right")
    figure.suptitle(
        f"Bonus {bonus:.1f}, right if it writes {right_if_writes:.2f}: after {steps} steps "
        f"{ends[1]:.0%} right, without bonus {ends[0]:.0%}",
        fontsize=10,
    )
    return figure


# Recorded: the chapter's arms with seeds 0 to 7

# `train(seed, ...)` of the notebook for seed in range(8), measured by its `habits` ("right" to
# "consistent", sampled) and `tasks` ("questions", "puzzle", greedy).  One thread of an x86-64
# server, torch 2.13 on CPU, about 35 s per seed.
# "hard first" is "easy first" with questions about 4 to 6 things in place of those about 1 to 3.
SWEEP: dict[str, dict[str, tuple[float, ...]]] = {
    "accuracy": {
        "right": (0.604, 0.648, 0.714, 0.695, 0.674, 0.641, 0.659, 0.674),
        "writes": (0.578, 0.576, 0.703, 0.695, 0.714, 0.276, 0.609, 0.698),
        "consistent if it writes": (0.730, 0.692, 0.811, 0.753, 0.755, 0.906, 0.782, 0.746),
        "questions": (0.688, 0.672, 0.807, 0.745, 0.719, 0.693, 0.708, 0.719),
    },
    "+ working": {
        "right": (0.635, 0.615, 0.643, 0.620, 0.669, 0.724, 0.716, 0.659),
        "writes": (0.773, 0.885, 0.893, 0.888, 0.818, 0.880, 0.906, 0.896),
    },
    "+ consistency": {
        "right": (0.651, 0.612, 0.667, 0.659, 0.630, 0.672, 0.693, 0.625),
        "consistent if it writes": (0.813, 0.919, 0.859, 0.831, 0.793, 0.863, 0.911, 0.786),
    },
    "puzzle only": {
        "questions": (0.464, 0.495, 0.536, 0.458, 0.391, 0.417, 0.370, 0.432),
        "puzzle": (0.891, 0.938, 0.844, 0.961, 0.930, 0.922, 0.922, 0.875),
    },
    "mixed": {
        "questions": (0.661, 0.698, 0.698, 0.589, 0.594, 0.682, 0.651, 0.740),
        "puzzle": (0.922, 0.734, 0.922, 0.891, 0.898, 0.914, 0.938, 0.961),
    },
    "puzzle first": {
        "questions": (0.688, 0.656, 0.568, 0.734, 0.667, 0.635, 0.625, 0.661),
        "puzzle": (0.867, 0.891, 0.922, 0.945, 0.883, 0.867, 0.914, 0.906),
    },
    "easy first": {
        "questions": (0.625, 0.807, 0.766, 0.755, 0.661, 0.714, 0.693, 0.677),
    },
    "hard first": {
        "questions": (0.792, 0.797, 0.557, 0.693, 0.656, 0.698, 0.474, 0.734),
    },
    "control": {
        "questions": (0.396, 0.531, 0.339, 0.552, 0.281, 0.339, 0.328, 0.339),
        "puzzle": (0.578, 0.500, 0.500, 0.500, 0.641, 0.500, 0.500, 0.508),
    },
}


verdict = partial(compared, margin=0.05)


# 7.1 predict


def _reward(right: int, works: int, weight: float) -> float:
    return right + weight * works


def _advantages(rewards: Sequence[float]) -> list[float]:
    mean, std = statistics.fmean(rewards), statistics.stdev(rewards)
    return [(reward - mean) / std for reward in rewards]


def _right_above_wrong(weight: float) -> bool:
    right = [_reward(1, works, weight) for works in (0, 1)]
    return min(right) > max(_reward(0, works, weight) for works in (0, 1))


def _one_of_each(weight: float) -> list[float]:
    kinds = ((1, 1), (1, 0), (0, 1), (0, 0))
    return _advantages([_reward(*kind, weight) for kind in kinds])


def _all_right(weight: float) -> list[float]:
    return _advantages([_reward(1, works, weight) for works in (1, 0, 0, 0)])


STATEMENTS: dict[str, tuple[bool, str]] = {
    "weight 0.5: every right answer earns more than every wrong one": (
        _right_above_wrong(0.5),
        "compare the poorest right answer with the richest wrong one",
    ),
    "weight 1.5: every right answer earns more than every wrong one": (
        _right_above_wrong(1.5),
        "compare the poorest right answer with the richest wrong one",
    ),
    "weight 0.5, one of each kind: the wrong answer with working is pushed up": (
        _one_of_each(0.5)[2] > 0,
        "the four earn 1.5, 1, 0.5 and 0: where is the mean?",
    ),
    "weight 1.5, one of each kind: the wrong answer with working is pushed up": (
        _one_of_each(1.5)[2] > 0,
        "the four earn 2.5, 1, 1.5 and 0: where is the mean?",
    ),
    "weight 0.01, all right, one with working: its advantage is above 1": (
        _all_right(0.01)[0] > 1,
        "the deviations are tiny, and so is the spread that Eq. (11) divides them by",
    ),
}


check_bonus = foretold(STATEMENTS)  # what a bonus does to the order inside a group


# 7.2 implement


MORE = "how many more red things than blue things are there ?"
AND = "how many red things and blue things are there ?"
FOLLOWS = (  # prompt, completion, verdict, hint
    (MORE, "<think> red 3 blue 1 </think> <answer> 2 </answer>", 1.0, "3 more than 1 is 2"),
    (MORE, "<think> red 3 blue 1 </think> <answer> 4 </answer>", 0.0, "'more' asks for 3 - 1"),
    (AND, "<think> red 3 blue 1 </think> <answer> 4 </answer>", 1.0, "'and' asks for 3 + 1"),
    (AND, "<think> red 3 blue 1 </think> <answer> 2 </answer>", 0.0, "'and' asks for 3 + 1"),
    (MORE, "<answer> 2 </answer>", 0.0, "without working nothing can follow from it"),
    (MORE, "<think> red 3 blue 1 </think>", 0.0, "there is no answer to follow"),
    (AND, "<think> red 0 blue 0 </think> <answer> 0 </answer>", 1.0, "0 and 0 are counts as well"),
    (MORE, "<think> red 1 blue 1 </think> <answer> 0 </answer>", 1.0, "a difference may be 0"),
    (MORE, "", 0.0, "an empty completion must earn 0, not raise"),
)


def check_sum_or_difference(follows: Callable[..., Sequence[float]]) -> None:
    """Both kinds of questions, in one batch and one by one."""
    prompts, told, verdicts, hints = zip(*FOLLOWS, strict=True)
    for prompt, text, verdict, hint in FOLLOWS:
        try:
            got = list(follows([text], prompts=[prompt], answer=["7"]))
        except (TypeError, AttributeError, IndexError) as error:
            shown = f"{text[:30]!r} raised {type(error).__name__}"
            raise AssertionError(f"{shown}: {hint}") from None
        assert len(got) == 1, "return one score for each completion"
        assert float(got[0]) == verdict, f"{hint} (the truth of the answer does not matter)"
    got = list(follows(list(told), prompts=list(prompts), answer=["7"] * len(told)))
    assert got == list(verdicts), f"in a batch: each completion has a prompt of its own; {hints[0]}"


# 7.3 find the bug


def check_puzzle(build: Callable[[Tensor, Tensor], tuple[Tensor, list[str]]]) -> None:
    """The halves are where they should be, the answer is true, and nothing else gives it away."""
    generator = torch.Generator().manual_seed(0)
    image = torch.randint(1, 255, (6, 3, 32, 32), generator=generator, dtype=torch.uint8)
    swapped = torch.tensor([True, False, False, True, True, False])
    got, answer = build(image.clone(), swapped)
    assert got.shape == image.shape, "keep the shape (B, 3, H, W)"
    truth = ["no" if swap else "yes" for swap in swapped.tolist()]
    reverse = ["yes" if swap else "no" for swap in swapped.tolist()]
    assert answer != reverse, "the question is whether the order is correct: a swapped one is not"
    assert answer == truth, "one answer for each picture, in the order of the pictures"
    twins = torch.cat([image[:, :, :16]] * 2, dim=2)  # both halves alike: nothing to see
    plain, turned = (build(twins.clone(), torch.full((6,), flag))[0] for flag in (False, True))
    assert torch.equal(plain, turned), (
        "a picture with two equal halves looks different when they are swapped: something other "
        "than the order gives the answer away"
    )
    seam = slice(15, 17)
    for now, was, swap in zip(got, image, swapped.tolist(), strict=True):
        want = torch.cat([was[:, 16:], was[:, :16]], dim=1) if swap else was
        inside = torch.ones(32, dtype=torch.bool)
        inside[seam] = False  # a seam is allowed, if every picture has it
        assert torch.equal(now[:, inside], want[:, inside]), (
            "a half is not where it should be: lower above upper if swapped, untouched if not"
        )


# 7.4 extend


GATED = (  # completion, reward, hint
    ("<think> red 3 blue 1 </think> <answer> 2 </answer>", 1.5, "right and consistent earns both"),
    ("<answer> 2 </answer>", 1.0, "a right answer without working keeps its 1"),
    ("<think> red 3 blue 0 </think> <answer> 2 </answer>", 1.0, "right by luck earns no bonus"),
    (
        "<think> red 1 blue 0 </think> <answer> 1 </answer>",
        0.0,
        "a wrong answer earns nothing, however well it follows",
    ),
    ("<answer> 3 </answer>", 0.0, "a wrong answer earns nothing"),
    ("", 0.0, "an empty completion earns nothing"),
)


def check_gated(gated: Callable[..., Sequence[float]]) -> None:
    """Case by case, then all at once."""
    for text, reward, hint in GATED:
        got = list(gated([text], answer=["2"], prompts=[MORE]))
        assert len(got) == 1, "return one score for each completion"
        assert float(got[0]) == reward, hint
    told = [text for text, _, _ in GATED]
    got = [float(r) for r in gated(told, answer=["2"] * len(told), prompts=[MORE] * len(told))]
    assert got == [reward for _, reward, _ in GATED], "in a batch the rows get out of step"


def _answers(*values: bool) -> str:
    return "prediction = " + repr(dict(zip(STATEMENTS, values, strict=True)))


MUTANTS = {
    "7.1": [
        _answers(False, False, False, True, True),
        _answers(True, True, False, True, True),
        _answers(True, False, True, True, True),
        _answers(True, False, False, False, True),
        _answers(True, False, False, True, False),
    ],
    "7.2": [
        """
        def follows(completions, prompts, **_):
            return consistent(completions)
        """,
        """
        def follows(completions, prompts, **_):
            paid = []
            for text, prompt in zip(completions, prompts):
                a, b = working(text)
                value = a - b if "more" in prompt else a + b
                paid.append(float(extract_answer(text) == str(value)))
            return paid
        """,
        """
        def follows(completions, prompts, **_):
            paid = []
            for text, prompt in zip(completions, prompts):
                counts, sign = working(text), 1 if "and" in prompt else -1
                total = counts and counts[0] + sign * counts[1]
                paid.append(float(bool(total) and extract_answer(text) == str(total)))
            return paid
        """,
        """
        def follows(completions, prompts, **_):
            paid = []
            for text in completions:
                a, b = working(text) or (0, 0)
                value = a - b if "more" in prompts[0] else a + b
                paid.append(float(extract_answer(text) == str(value)))
            return paid
        """,
    ],
    "7.3": [
        "build = leaky",
        """
        def build(image, swapped):
            upper, lower = image.split(16, dim=2)
            turned = torch.cat([lower, upper], dim=2)
            turned[:, :, 15:17] = 15
            image = torch.where(swapped[:, None, None, None], turned, image)
            return image, ["no" if swap else "yes" for swap in swapped.tolist()]
        """,
        """
        def build(image, swapped):
            upper, lower = image.split(16, dim=2)
            turned = torch.cat([lower, upper], dim=2)
            image = torch.where(swapped[:, None, None, None], turned, image)
            return image, ["yes" if swap else "no" for swap in swapped.tolist()]
        """,
        """
        def build(image, swapped):
            left, right = image.split(16, dim=3)
            turned = torch.cat([right, left], dim=3)
            image = torch.where(swapped[:, None, None, None], turned, image)
            return image, ["no" if swap else "yes" for swap in swapped.tolist()]
        """,
    ],
    "7.4": [
        """
        def gated(completions, answer, **_):
            pairs = zip(exact_match(completions, answer), consistent(completions))
            return [right + 0.5 * follows for right, follows in pairs]
        """,
        """
        def gated(completions, answer, **_):
            pairs = zip(exact_match(completions, answer), consistent(completions))
            return [right * follows for right, follows in pairs]
        """,
        """
        def gated(completions, answer, **_):
            pairs = zip(exact_match(completions, answer), shows_working(completions))
            return [right * (1 + 0.5 * shows) for right, shows in pairs]
        """,
    ],
}
