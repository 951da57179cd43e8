"""Chapter 4, RLVR: policies small enough to solve, the figure behind the sliders, the checks."""

import math
from collections.abc import Callable, Sequence

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.distributions import Categorical

from minivisrl.lab.plots import COLORS, STYLE
from minivisrl.optimization import GRPO, GRPOConfig
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer
from minivisrl.policy import ActionStats, Policy
from minivisrl.rollout import Prompts, Rollout

# A verifier, seen from an answer, is a probability: that of being accepted


def acceptance(flips: float, loophole: float = 0.0, answers: int = 8) -> list[float]:
    """Chance that each answer is accepted: 0 is right, 1 is the loophole, the others are wrong.

    Args:
        flips: share of verdicts that are turned round, whatever the answer.
        loophole: chance that wrong answer 1 passes before the flips.
    """
    before = [1.0, loophole] + [0.0] * (answers - 2)
    return [flips + (1 - 2 * flips) * chance for chance in before]


def ascent(accepted: Sequence[float], start: Sequence[float], steps: int, rate: float) -> Tensor:
    """Exact gradient ascent on the expected reward of a softmax; probabilities (steps + 1, V)."""
    rewards = torch.tensor(accepted, dtype=torch.float64)  # (V,)
    logits = torch.tensor(start, dtype=torch.float64).log()  # (V,)
    path = [logits.softmax(dim=0)]
    for _ in range(steps):
        gradient = path[-1] * (rewards - path[-1] @ rewards)  # (V,)
        logits = logits + rate * gradient
        path.append(logits.softmax(dim=0))
    return torch.stack(path)


# Tables of logits, trained by GRPO through the library's own loop


class Learners(Policy):
    """Prompt i is the integer i, and has a row of logits of its own; a completion is one answer."""

    def __init__(self, count: int, start: Sequence[float]) -> None:
        super().__init__()
        rows = torch.tensor(start).log().repeat(count, 1)  # (B, V)
        self.model = nn.Embedding.from_pretrained(rows, freeze=False)

    def _dist(self, prompts: Prompts, group_size: int) -> Categorical:
        rows = torch.tensor(prompts["prompt"]).repeat_interleave(group_size)  # (N,)
        return Categorical(logits=self.model(rows)[:, None])  # (N, 1, V)

    @torch.no_grad()
    def rollout(self, prompts: Prompts, group_size: int, generator: torch.Generator) -> Rollout:
        dist = self._dist(prompts, group_size)
        tokens = torch.multinomial(dist.probs[:, 0], 1, generator=generator)  # (N, 1)
        mask, outputs = torch.ones(tokens.shape), tokens[:, 0].tolist()
        actions = {"tokens": tokens}
        return Rollout(prompts, actions, dist.log_prob(tokens), mask, group_size, outputs)

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        dist = self._dist(rollout.prompts, rollout.group_size)
        return ActionStats(dist.log_prob(rollout.actions["tokens"]), dist.entropy(), None, dist)


EVEN = (0.125,) * 8  # eight answers, equally likely


def learn(
    accepted: Sequence[float],
    start: Sequence[float] = EVEN,
    *,
    group_size: int = 8,
    steps: int = 60,
    seed: int = 0,
) -> Tensor:
    """128 learners under a verifier that accepts answer a with chance accepted[a].

    Returns the chances of every answer after each step: (128, steps, V).
    """
    generator, chances = torch.Generator().manual_seed(seed), torch.tensor(accepted)

    def verifier(completions: list[int], **_: object) -> list[float]:
        luck = torch.rand(len(completions), generator=generator)
        return (luck < chances[completions]).float().tolist()

    policy, prompts = Learners(128, start), Prompts({"prompt": list(range(128))})
    cfg = OnlineConfig(batch_size=128, group_size=group_size, learning_rate=0.1, max_grad_norm=1e9)
    trainer = OnlineTrainer(
        policy, prompts, verifier, GRPO(GRPOConfig(kl_coef=0.0)), cfg, generator
    )
    path = []
    for _ in range(steps):
        trainer.step()
        path.append(policy.model.weight.detach().softmax(dim=-1))  # (128, V)
    return torch.stack(path, dim=1)


# The sliders


START = (0.2, 0.3, 0.5)  # right, a common wrong answer, all others
ANSWERS = ("right", "the loophole", "all others")


@plt.rc_context(STYLE)
def verifier_figure(flips: float, loophole: float, steps: int = 150) -> Figure:
    """What a verifier accepts, and where exact gradient ascent on its verdicts goes."""
    accepted = acceptance(flips, loophole, answers=3)
    path = ascent(accepted, START, steps, rate=1.0)  # (steps + 1, 3)
    colors = (COLORS["policy"], COLORS["reward"], COLORS["reference"])
    figure, (left, right) = plt.subplots(1, 2, width_ratios=(2, 3))
    left.bar(ANSWERS, accepted, color=colors)
    left.set(ylabel="chance of being accepted", ylim=(0, 1.02))
    left.grid(axis="x", visible=False)
    left.tick_params(axis="x", labelsize=7)
    for name, color, line, chances in zip(ANSWERS, colors, "-:-", path.T, strict=True):
        width = 2.5 if line == ":" else 1.5
        right.plot(chances, line, color=color, lw=width, label=name)
    right.set(xlabel="step of exact gradient ascent", ylabel="chance of the answer", ylim=(0, 1.02))
    right.legend(loc="center right")
    end = path[-1].tolist()
    figure.suptitle(
        f"Flips {flips:.2f}, loophole {loophole:.2f}: after {steps} steps {end[0]:.0%} are right, "
        f"{end[1]:.0%} take the loophole",
        fontsize=10,
    )
    return figure


# 4.1 predict


VERIFIERS = {  # chance of a yes for the right answer, for a wrong one, for one special wrong one
    "yes to 60% of right, 50% of wrong answers": (0.6, 0.5, 0.5),
    "yes to 20% of right, 10% of wrong answers": (0.2, 0.1, 0.1),
    "yes to 50% of right, 50% of wrong answers": (0.5, 0.5, 0.5),
    "yes to 90% of right, 95% of wrong answers": (0.9, 0.95, 0.95),
    "yes to 95% of right, 1% of wrong answers, but always to '7'": (0.95, 0.01, 1.0),
}


def check_verifiers(prediction: dict) -> None:
    """Whether exact ascent from equal chances ends with the right answer."""
    assert set(prediction) == set(VERIFIERS), f"answer for exactly these: {list(VERIFIERS)}"
    for name, (right, wrong, special) in VERIFIERS.items():
        accepted = [right, special, wrong, wrong]
        end = ascent(accepted, [0.25] * 4, 20_000, rate=2.0)[-1]
        assert prediction[name] == bool(end[0] > 0.9), (
            f"{name!r}: only differences between answers push; which answer is accepted most often?"
        )


# 4.2 implement


FORMS = (  # content of the answer element, truth, verdict, hint
    ("2", "2", 1.0, "a plain number must still pass"),
    ("02", "2", 1.0, "'02' is the number 2"),
    ("2.", "2", 1.0, "'2.' is the number 2 at the end of a sentence"),
    ("+2", "2", 1.0, "'+2' is the number 2"),
    ("0", "0", 1.0, "zero is a number too: do not strip it away"),
    ("000", "0", 1.0, "zero is a number too: do not strip it away"),
    ("12", "2", 0.0, "'12' is not 2: compare numbers, not characters"),
    ("1 2", "2", 0.0, "'1 2' names two numbers, and may not pass as either"),
    ("1 2", "12", 0.0, "'1 2' is not 12"),
    ("2.5", "2", 0.0, "'2.5' is not 2"),
    ("-2", "2", 0.0, "'-2' is not 2"),
    ("", "2", 0.0, "an empty answer is no number"),
    ("two", "2", 0.0, "a word is not a number here"),
    ("1+1", "2", 0.0, "'1+1' is not a number: parse, never evaluate"),
    ("²", "2", 0.0, "'²'.isdigit() is True: ask isascii() first"),
    ("٢", "2", 0.0, "other scripts have digits too: ask isascii() first"),
    ("9" * 5000, "2", 0.0, "5000 digits are no answer: bound the length before int()"),
)


def check_number_match(number_match: Callable[..., Sequence[float]]) -> None:
    """Forms that must pass, forms that must not, and none may raise."""
    for content, truth, verdict, hint in FORMS:
        told = f"<think> red 3 blue 1 </think> <answer> {content} </answer>"
        try:
            got = list(number_match([told], answer=[truth]))
        except NotImplementedError:
            raise
        except Exception as error:
            shown = f"{content[:12]!r} raised {type(error).__name__}"
            raise AssertionError(f"{shown}; {hint}") from None
        assert len(got) == 1, "return one score for each completion"
        assert float(got[0]) == verdict, hint
    got = list(number_match(["2", "<answer> 2 </answer>"], answer=["2", "2"], kind=["", ""]))
    assert got == [0.0, 1.0], "a completion without an answer element earns 0"


# 4.3 find the bug


CASES = (  # completion, truth, verdict, hint
    ("<answer> 2 </answer>", "2", 1.0, "a right answer must still pass"),
    ("<think> red 3 </think> <answer> 2 </answer>", "2", 1.0, "a right answer must still pass"),
    ("<answer> 12 </answer>", "2", 0.0, "'2' in '12' is True: text contains text"),
    ("<answer> 0 1 2 3 </answer>", "2", 0.0, "a list of guesses passes"),
    ("two", "2", 0.0, "a completion without an answer must earn 0"),
    ("", "2", 0.0, "an empty completion must earn 0"),
    (
        "<answer> 2 </answer> <answer> 3 </answer>",
        "2",
        0.0,
        "of several answers the last one counts",
    ),
    (
        "<answer> 3 </answer> <answer> 2 </answer>",
        "2",
        1.0,
        "of several answers the last one counts",
    ),
)


def check_strict(strict: Callable[..., Sequence[float]]) -> None:
    """Every bug of the sloppy verifier has a case."""
    for told, truth, verdict, hint in CASES:
        try:
            got = list(strict([told], answer=[truth]))
        except NotImplementedError:
            raise
        except Exception as error:
            shown = f"{told!r} raised {type(error).__name__}"
            raise AssertionError(f"{shown}: one odd completion ends the whole run") from None
        assert got == [verdict], f"{told!r}: {hint}"


# 4.4 implement


def check_true_accuracy(true_accuracy: Callable[[float, float, float], float]) -> None:
    """Eq. (A1), solved for the accuracy."""
    assert math.isclose(true_accuracy(0.7, 0.0, 0.0), 0.7), "a perfect verifier needs no correction"
    for accuracy in (0.0, 0.3, 1.0):
        for false_positive, false_negative in ((0.1, 0.0), (0.0, 0.2), (0.25, 0.15)):
            right = (1 - false_negative) * accuracy  # right and accepted
            wrong = false_positive * (1 - accuracy)  # wrong and accepted
            got = true_accuracy(right + wrong, false_positive, false_negative)
            swapped = (right + wrong - false_negative) / (1 - false_positive - false_negative)
            assert not (
                math.isclose(got, swapped, abs_tol=1e-9)
                and not math.isclose(swapped, accuracy, abs_tol=1e-9)
            ), "what remains when nothing is right: the false positives, or the false negatives?"
            assert math.isclose(got, accuracy, abs_tol=1e-9), (
                f"accuracy {accuracy}, {false_positive} false positives and {false_negative} false "
                f"negatives look like {right + wrong:.3f}; you turn that into {got:.3f}"
            )


# 4.5 ablate


def _steps_needed(flips: float, group_size: int) -> int:
    chances = learn(acceptance(flips), group_size=group_size, steps=80)[:, :, 0]
    return int((chances.mean(dim=0) <= 0.8).sum()) + 1


def check_steps_needed(steps_needed: Callable[[float, int], int]) -> None:
    """The same seeds give the same count."""
    for flips, group_size in ((0.0, 8), (0.2, 8), (0.2, 16)):
        got, truth = int(steps_needed(flips, group_size)), _steps_needed(flips, group_size)
        assert got != truth - 1, "off by one: entry 0 of the curve stands after the first step"
        assert got == truth, (
            f"flips {flips}, G = {group_size}: {got} steps; do flips and group_size both reach "
            "learn(), is the curve the mean over learners of answer 0, and is it the first step "
            "above 0.8?"
        )


MUTANTS = {
    "4.1": [
        f"prediction = {dict.fromkeys(VERIFIERS, True)!r}",
        "prediction = "
        + repr(dict(zip(VERIFIERS, (True, False, False, False, False), strict=True))),
        "prediction = " + repr(dict(zip(VERIFIERS, (True, True, False, True, False), strict=True))),
        "prediction = " + repr(dict(zip(VERIFIERS, (True, True, False, False, True), strict=True))),
    ],
    "4.2": [
        "number_match = exact_match",
        """
        def number_match(completions, answer, **_):
            texts = [(extract_answer(c) or "").lstrip("+").rstrip(".") for c in completions]
            return [float(x.isdigit() and int(x) == int(t)) for x, t in zip(texts, answer)]
        """,
        """
        def number_match(completions, answer, **_):
            texts = [(extract_answer(c) or "").strip("+0.") for c in completions]
            return [float(x == t) for x, t in zip(texts, answer)]
        """,
        """
        def number_match(completions, answer, **_):
            texts = [extract_answer(c) or "0" for c in completions]
            return [float(eval(x) == int(t)) for x, t in zip(texts, answer)]
        """,
        """
        def number_match(completions, answer, **_):
            return [float(t in (extract_answer(c) or "")) for c, t in zip(completions, answer)]
        """,
    ],
    "4.3": [
        "strict = sloppy",
        """
        def strict(completions, answer, **_):
            found = [re.findall("<answer>(.*?)</answer>", c) for c in completions]
            return [float(f[-1].strip() == t) for f, t in zip(found, answer)]
        """,
        """
        def strict(completions, answer, **_):
            found = [re.findall("<answer>(.*?)</answer>", c) or [""] for c in completions]
            return [float(f[0].strip() == t) for f, t in zip(found, answer)]
        """,
        """
        def strict(completions, answer, **_):
            found = [re.findall("<answer>(.*?)</answer>", c) or [""] for c in completions]
            return [float(t in f[-1].split()) for f, t in zip(found, answer)]
        """,
    ],
    "4.4": [
        """
        def true_accuracy(observed, false_positive, false_negative):
            return observed - false_positive + false_negative
        """,
        """
        def true_accuracy(observed, false_positive, false_negative):
            return (observed - false_negative) / (1 - false_positive - false_negative)
        """,
        """
        def true_accuracy(observed, false_positive, false_negative):
            return (observed - false_positive) / (1 - false_negative)
        """,
    ],
    "4.5": [
        """
        def steps_needed(flips, group_size):
            chances = learn(acceptance(flips), steps=80)[:, :, 0].mean(dim=0)
            return int((chances <= 0.8).sum()) + 1
        """,
        """
        def steps_needed(flips, group_size):
            chances = learn(acceptance(flips), group_size=group_size, steps=80)[:, :, 0]
            return int((chances.mean(dim=0) <= 0.8).sum())
        """,
    ],
}
