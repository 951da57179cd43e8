"""Chapter 0, start here: the picture behind the slider, the checks of the exercises, mutants."""

from collections.abc import Callable, Mapping, Sequence
from itertools import combinations
from typing import Any

import torch
from matplotlib.figure import Figure

from minivisrl import UserError
from minivisrl.lab.plots import COLORS, gallery
from minivisrl.rewards import exact_match, extract_answer, judge
from minivisrl.rollout import Prompts, Rollout
from minivisrl.worlds.scenes import COLOUR_NAMES, SHAPES, SIZE_NAMES, Scene, Thing

# The slider: the same few questions, answered by the policy of one training step

SIGNS = {"total": "+", "difference": "-"}


def short_question(kind: str, steps: str) -> str:
    """`red + blue?` for how many red and blue things there are; `-` for how many more."""
    first, _, second, _ = steps.split()
    return f"{first} {SIGNS[kind]} {second}?"


def short_output(text: str) -> str:
    """A completion without its tags: `red 2 blue 1, so 3`, `3`, or `no answer`."""
    answer = extract_answer(text) or "no answer"
    start, end = text.find("<think>"), text.find("</think>")
    working = text[start + len("<think>") : end].strip() if 0 <= start < end else ""
    return f"{working}, so {answer}" if working else answer


def full_caption(question: str, output: str, answer: str) -> str:
    """Question, raw output and verdict; an answer element stays on one line (no-break spaces)."""
    element = output.replace("<answer> ", "<answer>\xa0").replace(" </answer>", "\xa0</answer>")
    verdict = "right" if exact_match([output], [answer])[0] else f"not\xa0{answer}"
    return f"{question.removesuffix(' are there ?')}? {element}\xa0{verdict}"


def story_figure(
    step: int, story: Mapping[int, Sequence[str]], prompts: Prompts, shown: Sequence[int]
) -> Figure:
    """Held-out pictures with the answers of step 0 (top) and of `step` (bottom).

    Args:
        story: step -> greedy completions, one per prompt; has an entry for 0.
        prompts: with columns image, answer, kind and steps.
        shown: which of the prompts to show, one per column.
    """
    few, columns = prompts.rows(shown), len(shown)
    captions, colors, right = [], [], {}
    for row, moment in enumerate((0, step)):
        outputs = [story[moment][i] for i in shown]
        scores = exact_match(outputs, few["answer"])
        right[row] = int(sum(scores))
        for i, (output, score) in enumerate(zip(outputs, scores, strict=True)):
            verdict = "right" if score else f"wrong: {few['answer'][i]}"
            question = short_question(few["kind"][i], few["steps"][i])
            captions.append(f"{question} {short_output(output)} [{verdict}]")
            colors.append(COLORS["policy"] if score else "#B34700")
    title = f"step 0: {right[0]} of {columns} right; step {step}: {right[1]} of {columns} right"
    figure = gallery(
        torch.cat([few["image"], few["image"]]),
        captions,
        columns=columns,
        title=title,
        row_labels=("step 0", f"step {step}"),
    )
    for axis, color in zip(figure.axes, colors, strict=True):
        axis.xaxis.label.set_color(color)
    return figure


# 0.1 predict


def check_prediction(prediction: dict[str, Any]) -> None:
    """Rewards 1 0 1 0 by reading; advantages above zero where the reward is above the mean."""
    letters = set(str(prediction["above zero"]).lower()) & set("abcd")
    assert "b" not in letters, (
        "b says the right number, but the verifier reads only what stands between <answer> and "
        "</answer>"
    )
    assert "d" not in letters, "d counts well and adds badly: which of the two earns the reward?"
    assert letters == {"a", "c"}, (
        "exact match does not ask how an answer was found: list every completion that earns 1"
    )
    assert float(prediction["if all four are right"]) == 0, (
        "an advantage compares a reward with the mean of its siblings: what is that mean here?"
    )


# 0.2 implement

RIGHT, WRONG = "<answer> 3 </answer>", "<answer> 2 </answer>"
LONG = "<think> red 2 blue 1 </think> <answer> 3 </answer>"
BRIEF_CASES = (  # completion, truth, reward worked out by hand, hint
    (RIGHT, "3", 0.97, "a right answer of 3 words earns 1 - 3 * 0.01"),
    (WRONG, "3", -0.03, "a wrong answer earns nothing, and its words still cost"),
    (LONG, "3", 0.91, "count every word, those of the working and the tags too: here 9"),
    ("there are 3", "3", -0.03, "without answer tags there is no answer: let exact_match decide"),
    ("", "3", 0.0, "no words, no cost; no answer, no reward"),
    ("<answer> 12 </answer>", "12", 0.97, "words cost, not letters"),
)


def check_brief(right_and_brief: Callable[..., Any]) -> None:
    """By hand, one by one and together, and then through `judge` with all the columns it sends."""
    texts, truths, wanted, hints = map(list, zip(*BRIEF_CASES, strict=True))
    try:
        got = right_and_brief(completions=texts, prompts=[""] * len(texts), answer=truths)
    except TypeError as error:
        raise AssertionError(
            f"{error}: the trainer passes completions=, answer= and every other column by name"
        ) from None
    many = hasattr(got, "__len__") and len(got) == len(texts)
    assert many, "return a list: one number per completion"
    for score, target, hint in zip(got, wanted, hints, strict=True):
        assert abs(float(score) - target) < 1e-6, hint
    number = len(texts)
    columns = {"prompt": ["how many ?"] * number, "answer": truths, "kind": ["total"] * number}
    ones = torch.ones(number, 1)
    rollout = Rollout(Prompts(columns), {}, 0 * ones, ones, 1, texts)
    try:
        judge(right_and_brief, rollout)
    except UserError as error:
        raise AssertionError(f"the trainer would refuse it: {error}") from None


# 0.3 extend


def check_scene(scene: Scene) -> None:
    """Counts by hand, over objects that exist, lie inside the picture and do not touch."""
    assert isinstance(scene, Scene), "wrap your things: Scene((Thing(...), Thing(...), ...))"
    things = scene.things
    assert all(isinstance(thing, Thing) for thing in things), "a scene holds a tuple of Things"
    assert 4 <= len(things) <= 6, f"{len(things)} things: the question asks for four to six"
    for t in things:
        known = t.shape in SHAPES and t.color in COLOUR_NAMES and t.size in SIZE_NAMES
        assert known, f"{t.size} {t.color} {t.shape}: the world cannot draw one of these words"
        inside = min(t.box) >= 0 and max(t.box) <= 1
        assert inside, f"the {t.color} {t.shape} leaves the picture: its box is {t.box}"
    for a, b in combinations(things, 2):
        left, right = (a, b) if a.x < b.x else (b, a)
        upper, lower = (a, b) if a.y < b.y else (b, a)
        apart = left.box[2] <= right.box[0] or upper.box[3] <= lower.box[1]
        assert apart, f"the {a.color} {a.shape} and the {b.color} {b.shape} touch: move one"
    names = [thing.color for thing in things]
    extra = names.count("red") - names.count("blue")
    assert extra == 2, f"there are {extra} more red things than blue things, not 2"
    assert "blue" in names, "put at least one blue thing in, or there is nothing to subtract"


MUTANTS = {
    "0.1": [
        'prediction = {"above zero": "abc", "if all four are right": 0}',
        'prediction = {"above zero": "acd", "if all four are right": 0}',
        'prediction = {"above zero": "a", "if all four are right": 0}',
        'prediction = {"above zero": "ac", "if all four are right": 1}',
    ],
    "0.2": [
        "right_and_brief = exact_match",
        """
        def right_and_brief(completions, answer):
            scores = exact_match(completions, answer)
            return [s - 0.01 * len(c.split()) for s, c in zip(scores, completions)]
        """,
        """
        def right_and_brief(completions, answer, **columns):
            scores = exact_match(completions, answer)
            return [s - 0.01 * len(c) for s, c in zip(scores, completions)]
        """,
        """
        def right_and_brief(completions, answer, **columns):
            scores = exact_match(completions, answer)
            return [s * (1 - 0.01 * len(c.split())) for s, c in zip(scores, completions)]
        """,
        """
        def right_and_brief(completions, answer, **columns):
            scores = exact_match(completions, answer)
            return sum(s - 0.01 * len(c.split()) for s, c in zip(scores, completions))
        """,
        """
        def right_and_brief(completions, answer, **columns):
            scores = [float(a in c) for c, a in zip(completions, answer)]
            return [s - 0.01 * len(c.split()) for s, c in zip(scores, completions)]
        """,
    ],
    "0.3": [
        "my_scene = scene",
        "my_scene = Scene(tuple(Thing('circle', 'red', 'small', 0.5, 0.5, i) for i in range(4)))",
        """
        row = [("red", 0.15), ("red", 0.4), ("red", 0.65), ("blue", 0.95)]
        things = [Thing("circle", c, "small", x, 0.5, i) for i, (c, x) in enumerate(row)]
        my_scene = Scene(tuple(things))
        """,
        """
        row = [("red", 0.15), ("red", 0.4), ("green", 0.65), ("green", 0.88)]
        things = [Thing("circle", c, "small", x, 0.5, i) for i, (c, x) in enumerate(row)]
        my_scene = Scene(tuple(things))
        """,
        """
        row = [("red", 0.15), ("red", 0.4), ("red", 0.65), ("blue", 0.88)]
        things = [Thing("box", c, "small", x, 0.5, i) for i, (c, x) in enumerate(row)]
        my_scene = Scene(tuple(things))
        """,
    ],
}
