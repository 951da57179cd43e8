# %% [markdown]
# # 7. Conventional MLLMs: what to add to a verifier
#
# [previous: 6. GRPO](06_grpo.ipynb) | [contents](00_start_here.ipynb) |
# [next: 12. Image generation](12_image_generation.ipynb)
#
# **Question.** A verifier already teaches a vision-language model. What do a format reward, a consistency reward, a data
# mixture and a free puzzle add to it?
#
# **Survey:** section 3.1.1 (version 3). **Running time:** about a minute and a half on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import re
from math import comb

import matplotlib.pyplot as plt
import torch
from checks.ch07 import (
    SWEEP,
    bonus_figure,
    check_bonus,
    check_gated,
    check_puzzle,
    check_sum_or_difference,
    verdict,
)
from ipywidgets import FloatSlider

from minivisrl import DATA, lab
from minivisrl.evaluation import evaluate, paired_difference
from minivisrl.lab import check
from minivisrl.mllm import VLMPolicy
from minivisrl.optimization import GRPO, GRPOConfig, group_advantages
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.rewards import exact_match, extract_answer, format_reward, judge, weighted
from minivisrl.rollout import Prompts
from minivisrl.worlds.questions import question_prompts
from minivisrl.worlds.scenes import render, sample_scenes

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# The survey calls a method *conventional* if it takes a vision-language model, a task with a checkable answer, and RLVR
# ([chapter 4](04_rlvr.ipynb)), and asks for no long chain of thought. Most of its papers differ in what they add:
#
# | addition | papers of the section | here |
# |---|---|---|
# | a reward for the **format** | R1-Onevision, VLM-R1, Reason-RFT | working between `<think>` tags |
# | a reward for **consistency** of working and answer | GRPO-CARE, Q-Ponder | the answer must follow from the counts |
# | a **data mixture** or a **schedule** | MoDoMoDo, V-Triune, Vision-R1 | two tasks, mixed or one after the other |
# | a **free task**, which needs no labels | Jigsaw-R1 | halves of the picture, perhaps swapped |
#
# All but the last two rows are one formula. The reward is a weighted sum of terms, each of them a program:
#
# $$r(p, y) = v(p, y) + \sum_k w_k\, u_k(p, y) \tag{A1}$$
#
# | symbol | in words | in the code |
# |---|---|---|
# | $v$ | accuracy, Eq. (7) | `exact_match` |
# | $u_k$ | a further term | `shows_working`, `consistent` |
# | $w_k$ | its weight | the values of `weighted({...})` |
#
# The optimiser is GRPO, Eqs. (11) to (13), for every run of this chapter.
#
# **Where we depart from the papers.** They train billions of weights on real photographs, and we train 1.2 million on
# pictures of 32 x 32 pixels. GRPO-CARE does not check consistency with a program, but asks a slowly moving copy of the
# model how likely the answer is after the working. Our working is two counts, so that a program can tell.

# %% [markdown]
# ## By hand
#
# ### Three terms for one completion
#
# *How many more red things than blue things are there?* There are 3 red ones and 1 blue, so the truth is 2. A complete
# answer writes the counts down: `<think> red 3 blue 1 </think> <answer> 2 </answer>`. The two new terms, in a few lines:

# %% tags=["given"]
def working(text):
    """The two counts between the think tags, or None."""
    found = re.search("<think>(.*?)</think>", text)
    numbers = re.findall(r"\b[0-9]{1,2}\b", found[1]) if found else []
    return tuple(map(int, numbers)) if len(numbers) == 2 else None


def shows_working(completions, **_):
    """1 for a well-formed completion that has a think element."""
    return [well * ("<think>" in text) for well, text in zip(format_reward(completions), completions, strict=True)]


def consistent(completions, **_):
    """1 if the answer is the difference of the two counts in the working, true or not."""
    follows = []
    for text in completions:
        counts, answer = working(text), extract_answer(text)
        follows.append(float(counts is not None and answer == str(counts[0] - counts[1])))
    return follows


# %% [markdown]
# **Predict** the table: which terms are 1? Two rows deserve a second look.

# %%
# NBVAL_CHECK_OUTPUT
told = [
    "<think> red 3 blue 1 </think> <answer> 2 </answer>",
    "<answer> 2 </answer>",
    "<think> red 3 blue 1 </think> <answer> 1 </answer>",
    "<think> red 4 blue 2 </think> <answer> 2 </answer>",
    "<think> red 0 blue 0 </think> <answer> 0 </answer>",
    "<think> red 3 blue 1 <answer> 2 </answer>",
]
terms = {"accuracy": exact_match, "working": shows_working, "consistent": consistent}
columns = {name: term(completions=told, answer=["2"] * 6) for name, term in terms.items()}
print("accuracy  working  consistent")
for *values, text in zip(*columns.values(), told, strict=True):
    print("{:8.0f} {:8.0f} {:11.0f}   {}".format(*values, text))

# %% [markdown]
# In the fourth row both counts are wrong and everything is paid: accuracy looks at the answer alone. The fifth never
# looked at the picture, and is perfectly consistent. Keep it in mind.
#
# ### A bonus speaks where accuracy is silent
#
# Four siblings. Three weights for the working term: none, a half, two. **Predict** for each group and weight: which sibling
# is pushed up?

# %%
# NBVAL_CHECK_OUTPUT
accuracy = torch.tensor([[1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0]])  # (B, G)
shows = torch.tensor([[0.0, 0.0, 1.0, 0.0], [1.0, 0.0, 0.0, 0.0]])  # (B, G)
for weight in (0.0, 0.5, 2.0):
    groups = group_advantages(accuracy + weight * shows)  # (B, G), Eq. (11)
    told = ["  ".join(f"{a:+.2f}" for a in (row + 0.0).tolist()) for row in groups]
    print(f"weight {weight}: two right {told[0]}   all right {told[1]}")

# %% [markdown]
# In the first group a weight of a half leaves the order alone, and a weight of two makes the one *wrong* answer with working
# the best of the four. In the second group accuracy has nothing to say, so the bonus decides alone, and any weight above 0
# gives the same advantages: Eq. (11) divides the weight out.
#
# ### How large may a bonus be?
#
# Suppose that a policy has two habits and each has a fixed accuracy: writing is right with
# probability $a$, answering at once with 0.40. A bonus $w$ for writing adds to the difference of the two:
#
# $$\frac{d\theta}{dt} = \pi (1 - \pi) \big(a + w - 0.40\big) \tag{A2}$$
#
# with $\pi = \sigma(\theta)$ the chance of writing. The bonus hurries the policy along if the habit is good. If it is bad
# ($a < 0.40$), any bonus above $0.40 - a$ turns the policy round. Move both sliders, and look for the place where more
# bonus means less accuracy.

# %%
sliders = {"bonus": FloatSlider(0.5, min=0, max=2, step=0.1), "right_if_writes": FloatSlider(0.75, min=0, max=1, step=0.05)}
lab.explore(bonus_figure, **sliders)

# %% [markdown]
# ### One reward for two tasks
#
# V-Triune trains one model on many tasks. Every sample says which verifiers are to judge it, and the reward routes it there.
# Suppose that half of the prompts ask for a difference and the others for a yes or a no. Accuracy fits both. Consistency
# fits only the first, and so does its bonus. All columns of the prompts reach a reward function, so it can route by any of
# them; here the prompt itself will do.

# %%
# NBVAL_CHECK_OUTPUT
def routed(completions, prompts, answer, **_):
    """Accuracy for everybody, half a point of consistency where two counts are asked for."""
    rewards = zip(exact_match(completions, answer), consistent(completions), prompts, strict=True)
    return [right + 0.5 * follows * prompt.startswith("how many more") for right, follows, prompt in rewards]


more, order = "how many more red things than blue things are there ?", "is the order of the image correct ?"
good, odd = "<think> red 3 blue 1 </think> <answer> 2 </answer>", "<think> red 3 blue 1 </think> <answer> no </answer>"
for prompt, truth, text in ((more, "2", good), (order, "no", odd), (order, "no", good)):
    print(f"{routed([text], prompts=[prompt], answer=[truth])[0]:.1f}  {prompt:54s} {text}")

# %% [markdown]
# The last row is the one to look at: without routing, consistent nonsense would earn half a point on the wrong task.
#
# ### A puzzle that labels itself
#
# Jigsaw-R1 cuts pictures into pieces, shuffles them and asks for the order. Whoever shuffled knows the answer, so the
# verifier is free. Ours has two pieces: the upper and the lower half, swapped or not. A picture of 4 rows:

# %%
# NBVAL_CHECK_OUTPUT
rows = torch.tensor([1, 2, 3, 4])
upper, lower = rows.split(2)
print("as it was:", rows.tolist())
print("swapped:  ", torch.cat([lower, upper]).tolist())

# %% [markdown]
# Can one see it? Our scenes put things into the cells of a 3 x 3 grid. Things in the middle row lie across the cut, and a
# swap tears them apart: a piece at the top edge, a piece at the bottom. If the middle row is empty, both orders look
# fine, and one can only guess. With 5 or 6 things in 9 cells that is rare. **Work it out** before you look.

# %%
# NBVAL_CHECK_OUTPUT
empty = [comb(6, things) / comb(9, things) for things in (5, 6)]  # all things in the six other cells
print(f"empty middle row: {empty[0]:.4f} with 5 things, {empty[1]:.4f} with 6")
print(f"best possible accuracy: {1 - sum(empty) / 2 / 2:.3f}")

# %% [markdown]
# ## Code: show once, prove equal, import
#
# (A1) in two lines, beside the library's `weighted` and `judge`. The library also hands the terms back one by one and
# without their weights, so that a log can show which of them rises.

# %%
# NBVAL_CHECK_OUTPUT
policy = VLMPolicy.load(DATA / "checkpoints" / "vlm")
few = question_prompts(4, ["difference"], "heldout", torch.Generator().manual_seed(2), about=["color"])
rollout = policy.rollout(few, 8, generator)
weights = {exact_match: 1.0, shows_working: 0.5, consistent: 0.25}

truths = [truth for truth in few["answer"] for _ in range(8)]  # (N,)
ours = sum(w * torch.tensor(term(rollout.outputs, answer=truths)) for term, w in weights.items())
theirs, terms = judge(weighted(weights), rollout)
print("same rewards:", torch.allclose(ours, theirs), "for", len(theirs), "completions")
print("terms logged:", ", ".join(terms))

# %% [markdown]
# ## Experiment
#
# ### The two tasks
#
# The **questions** are those of the last chapters: how many more things of one color than of another. The **puzzle** is the
# one above. The base model has never seen its question, although it knows all the words.

# %% tags=["given"]
PUZZLE = "is the order of the image correct ?"


def puzzles(count, split, seed):
    """Scenes whose halves were swapped or not, and the answer that this gives for free."""
    fixed = torch.Generator().manual_seed(seed)
    image = render(sample_scenes(count, split, fixed, objects=(5, 6)))  # (B, 3, H, W)
    swapped = torch.rand(count, generator=fixed) < 0.5  # (B,)
    upper, lower = image.split(16, dim=2)
    image = torch.where(swapped[:, None, None, None], torch.cat([lower, upper], dim=2), image)
    answer = ["no" if swap else "yes" for swap in swapped.tolist()]
    columns = {"prompt": [PUZZLE] * count, "answer": answer, "steps": [""] * count, "things": [0] * count}
    return Prompts({"image": image} | columns)


def questions(count, split, seed):
    """How many more A than B?  The same columns as the puzzles."""
    fixed = torch.Generator().manual_seed(seed)
    drawn = question_prompts(count, ["difference"], split, fixed, about=["color"])
    columns = {name: drawn[name] for name in ("image", "prompt", "answer", "steps")}
    return Prompts(columns | {"things": [len(scene.things) for scene in drawn["scene"]]})


def base_policy():
    """The shipped model, before any reinforcement learning."""
    policy = VLMPolicy.load(DATA / "checkpoints" / "vlm")
    policy.max_tokens = 14
    return policy


# %%
asks, plays = questions(512, "train", 1), puzzles(512, "train", 1)
ask_test, play_test = questions(192, "heldout", 2), puzzles(128, "heldout", 2)
shown = [ask_test.rows(range(3)), play_test.rows([0, 1, 2])]
captions = [f"{q} {y} (truth {a})" for part in shown
            for q, y, a in zip(part["prompt"], base_policy().predict(part), part["answer"], strict=True)]  # fmt: skip
images = torch.cat([part["image"] for part in shown])
lab.gallery(images, captions, columns=3, title="Three questions, three puzzles, and what the base model says")
plt.show()

# %% [markdown]
# Every run below is the same short piece of GRPO: 12 steps of 12 prompts with four siblings each, three seeds. Only the
# reward or the prompts change. The **control** trains on both tasks with rewards shuffled over the rows.

# %%
def train(seed, prompts, rewards=None, policy=None, steps=12, learning_rate=3e-4, collect=act_and_judge):
    """GRPO from the base, or from a policy that has been trained already; returns the policy."""
    policy, generator = policy or base_policy(), torch.Generator().manual_seed(seed)
    cfg = OnlineConfig(batch_size=12, group_size=4, learning_rate=learning_rate)
    reward_fn = weighted(rewards or {exact_match: 1.0})
    grpo = GRPO(GRPOConfig(kl_coef=0.04))
    trainer = OnlineTrainer(policy, prompts, reward_fn, grpo, cfg, generator, collect=collect)
    for _ in range(steps):
        trainer.step()
    return policy


def habits(policy):
    """Two sampled answers to each of the held-out questions: what is right, written, consistent, true."""
    drawn = evaluate(policy, ask_test, samples=2, generator=torch.Generator().manual_seed(3))
    told, steps = drawn.outputs, drawn.prompts["steps"]
    writes = torch.tensor([working(text) is not None for text in told])
    follows = torch.tensor(consistent(told))
    true = torch.tensor([float(f"<think> {s} </think>" in text) for text, s in zip(told, steps, strict=True)])
    return {"right": drawn.score, "writes": writes.float().mean().item(),
            "consistent if it writes": follows[writes].mean().item(),
            "true counts if it writes": true[writes].mean().item()}  # fmt: skip


# %% [markdown]
# ### With and without a format reward, with and without consistency
#
# **Predict** for both bonuses: what happens to the thing they pay for, and what happens to accuracy?

# %%
both = Prompts.cat([asks, plays])
accurate = [train(seed, asks) for seed in range(3)]
writers = [train(seed, asks, {exact_match: 1.0, shows_working: 1.0}) for seed in range(3)]
followers = [train(seed, asks, {exact_match: 1.0, consistent: 0.5}) for seed in range(3)]
controls = [train(seed, both, collect=shuffled(act_and_judge)) for seed in range(3)]

# %% tags=["given"]
def series(rows):
    """{arm: [statistics of each seed]} -> {arm: {statistic: [value of each seed]}}, for lab.bars."""
    return {arm: {name: [row[name] for row in seeds] for name in seeds[0]} for arm, seeds in rows.items()}


def mean(values):
    """Mean over seeds."""
    return sum(values) / len(values)


def draw(values, ylabel, title, top):
    """Bars, with room for the legend above them."""
    axes = lab.bars(values, ylabel=ylabel, title=title).axes[0]
    axes.set_ylim(0, top)
    entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))  # one per label
    axes.legend(entries.values(), entries.keys(), ncols=3, loc="upper center")
    plt.show()


# %%
arms = {"before": [base_policy()], "accuracy": accurate, "+ working": writers, "+ consistency": followers}
told = series({arm: [habits(policy) for policy in policies] for arm, policies in (arms | {"control": controls}).items()})
title = "Each bonus buys what it pays for, and no accuracy (3 seeds)"
draw(told, "share of sampled answers", title, top=1.3)
# means of 3 runs; the sweeps have 8 seeds
assert mean(told["accuracy"]["right"]) > 0.58  # base 0.50; 8 seeds: 0.66 +- 0.03; control 0.39 +- 0.03
assert mean(told["+ working"]["writes"]) > 0.75  # base 0.25; 8 seeds: 0.87 +- 0.05; accuracy 0.61 +- 0.15; control 0.22 +- 0.09
follows = mean(told["+ consistency"]["consistent if it writes"])
assert follows > 0.73  # base 0.87; 8 seeds: 0.85 +- 0.05; accuracy 0.77 +- 0.06; control 0.70 +- 0.17

# %% [markdown]
# Both bonuses make the model write its counts down nearly always, and accuracy alone takes it more than half the way there.
# The consistency bonus keeps the answers in line with the working; under accuracy alone they drift apart, which is what
# GRPO-CARE reports of large models. Neither bonus makes more answers right. And the counts themselves get *less* true in
# every arm: now that the model writes for nearly every question, it also writes for the hard ones.

# %% [markdown]
# ### The puzzle, a mixture, a schedule
#
# Now the second task: alone, for 12 steps; mixed with the questions, half and half, for 24 steps; or first the puzzle
# and then the questions, 12 steps each. So both schedules see as much of each task. *Questions only* are the runs from
# above that were paid for accuracy. Each is measured on both tasks. **Predict:** does the puzzle help with the questions?

# %%
def tasks(policy):
    """Greedy accuracy on both held-out tasks."""
    return {"questions": evaluate(policy, ask_test).score, "puzzle": evaluate(policy, play_test).score}


arms = {"before": [base_policy()], "questions only": accurate}
arms["puzzle only"] = [train(seed, plays) for seed in range(3)]
scores = {arm: [tasks(policy) for policy in policies] for arm, policies in arms.items()}
first = [train(100 + seed, asks, policy=policy) for seed, policy in enumerate(arms["puzzle only"])]  # these train on
mixed = [train(seed, both, steps=24) for seed in range(3)]
for arm, policies in {"mixed": mixed, "puzzle first": first, "control": controls}.items():
    scores[arm] = [tasks(policy) for policy in policies]

# %%
solved = series(scores)
draw(solved, "greedy accuracy", "A puzzle that nobody labeled, learned beside or before the questions", top=1.3)
assert mean(solved["puzzle only"]["puzzle"]) > 0.82  # base 0.52; 8 seeds: 0.91 +- 0.04
assert mean(solved["puzzle first"]["puzzle"]) > 0.83  # 8 seeds: 0.90 +- 0.03
assert mean(solved["mixed"]["puzzle"]) > 0.73  # 8 seeds: 0.90 +- 0.07
assert mean(solved["control"]["puzzle"]) < 0.66  # 8 seeds: 0.53 +- 0.05
assert mean(solved["puzzle only"]["questions"]) < 0.58  # base 0.55; 8 seeds: 0.44 +- 0.05; control 0.39 +- 0.10
assert mean(solved["questions only"]["questions"]) > 0.62  # base 0.55; 8 seeds: 0.72 +- 0.04

# %% [markdown]
# ### A ladder of difficulty
#
# Vision-R1 tightens its thresholds as training goes on, and the survey counts such curricula among the lessons of the section.
# The idea: on easy questions the model succeeds now and then, and learns what carries over to hard ones. Ours are easier
# the fewer things there are to count. *Easy first* is 6 steps on pictures with at most three things, then 6 steps on all.

# %%
at_base = evaluate(base_policy(), ask_test)
is_easy = torch.tensor([things <= 3 for things in ask_test["things"]])
gap = at_base.scores[is_easy].mean() - at_base.scores[~is_easy].mean()
print(f"base, at most 3 things: {at_base.scores[is_easy].mean():.2f}; more: {at_base.scores[~is_easy].mean():.2f}")
easy = asks.rows([index for index, things in enumerate(asks["things"]) if things <= 3])
climbed = [train(100 + seed, asks, policy=train(seed, easy, steps=6), steps=6) for seed in range(3)]
ladder = [evaluate(policy, ask_test).score for policy in climbed]
for name, seeds in (("all at once", solved["questions only"]["questions"]), ("easy first", ladder)):
    print(f"{name}: " + " ".join(f"{score:.2f}" for score in seeds))
assert gap > 0.1  # the base: 0.22
assert mean(ladder) > 0.57  # base 0.55; 8 seeds: 0.71 +- 0.06; all at once 0.72 +- 0.04

# %% [markdown]
# ### What to notice
#
# - The puzzle goes from guessing to about nine in ten (the ceiling is 0.985), from a reward that nobody had to label. The
#   control guesses as before.
# - On the questions, *puzzle only* ends below the base. What it learned does not carry over, and 12 steps on something else
#   cost a little of what was there.
# - Mixed or one after the other: one policy holds both tasks, and the order makes no visible difference. Nor does it help
#   to begin with what is easy. With a base that is right half of the time, no question is hopeless to begin with.

# %% [markdown]
# ### Verdicts
#
# Three seeds show a trend. For a verdict we ran every arm with **eight** and recorded the results (in `checks/ch07.py`).
# Each line compares with and without, seed by seed, in the same way: *more* or *less* if the 95% interval of the difference
# does not contain 0; *no difference* if it surely lies within 0.05; otherwise *inconclusive*.

# %%
# NBVAL_CHECK_OUTPUT
comparisons = [
    ("working term", "writes", "+ working", "accuracy"),
    ("working term", "right", "+ working", "accuracy"),
    ("consistency term", "consistent if it writes", "+ consistency", "accuracy"),
    ("consistency term", "right", "+ consistency", "accuracy"),
    ("puzzle", "puzzle", "puzzle only", "control"),
    ("puzzle", "questions", "puzzle only", "control"),
    ("mixing the puzzle in", "questions", "mixed", "accuracy"),
    ("easy questions first", "questions", "easy first", "accuracy"),
    ("easy first, not hard", "questions", "easy first", "hard first"),
    ("puzzle first, not mixed", "questions", "puzzle first", "mixed"),
    ("puzzle first, not mixed", "puzzle", "puzzle first", "mixed"),
]
for what, on, with_it, without in comparisons:
    pair = SWEEP[with_it][on], SWEEP[without][on]
    gain, low, high = paired_difference(*pair)
    print(f"{what:24s} {on:24s} {gain:+.3f} [{low:+.3f}, {high:+.3f}]  {verdict(*pair)}")

# %% [markdown]
# Read the table as a reviewer would. Each term moves the thing it measures. None moves accuracy. The puzzle works as a task
# and not as a teacher. Whether mixing it in costs accuracy on the questions is open: the interval barely touches 0 from
# below. *Inconclusive* is not *no difference*: an effect of 0.05 would be welcome, and eight seeds of 12 steps cannot see
# it. Nor can three seeds, which is more than many papers show.
#
# These are verdicts about one small model that could already write, succeeded half of the time and trained for a minute.
# Where a base does not know the format at all, a format reward has more to do; where it hardly ever succeeds, so has a
# ladder.

# %% [markdown]
# ## What can go wrong
#
# ### A story that agrees with itself
#
# Consistency needs no truth: the program compares the answer with the working and never with the picture. So one might
# train on it alone, and save the labels. We give it 16 steps and twice the step size. **Predict** the four statistics.

# %%
storytellers = [train(seed, asks, {consistent: 1.0, exact_match: 0.0}, steps=16, learning_rate=6e-4) for seed in range(3)]
few = ask_test.rows(range(4))
for asked, truth, text in zip(few["prompt"], few["steps"], storytellers[0].predict(few), strict=True):
    print(f"{asked} (truth: {truth})\n    {text}")

# %%
fiction = {arm: told[arm] for arm in ("before", "accuracy")} | series({"consistency alone": [habits(p) for p in storytellers]})
title = "Paid for consistency alone: every answer follows, from counts that are made up"
draw(fiction, "share of sampled answers", title, top=1.2)
alone = {name: mean(values) for name, values in fiction["consistency alone"].items()}
assert alone["writes"] > 0.95  # 8 seeds: 0.98 +- 0.01
assert alone["consistent if it writes"] > 0.79  # base 0.87; 8 seeds: 0.91 +- 0.05
assert alone["true counts if it writes"] < 0.7  # base 0.84; 8 seeds: 0.44 +- 0.11; accuracy 0.74 +- 0.07

# %% [markdown]
# The reward is nearly full, and about half of the written counts are made up: any counts pay as well as the true ones. Now
# look at *right*. It ends about where the base began, since writing is the better habit and makes up for what the fiction
# costs. So neither the reward nor accuracy gives this policy away. The statistic that does compares the **working** with
# the scene. Whoever rewards an explanation has to check the explanation. Exercise 7.4 closes part of the hole.

# %% [markdown]
# ## Exercises
#
# ### Exercise 7.1 | predict | 5 words | 10 min
# The reward is accuracy plus a weight times the working term, as in (A1), and the advantages come from Eq. (11). Which of
# these statements are true?

# %%
prediction = {
    "weight 0.5: every right answer earns more than every wrong one": ...,
    "weight 1.5: every right answer earns more than every wrong one": ...,
    "weight 0.5, one of each kind: the wrong answer with working is pushed up": ...,
    "weight 1.5, one of each kind: the wrong answer with working is pushed up": ...,
    "weight 0.01, all right, one with working: its advantage is above 1": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("7.1", check_bonus, prediction)

# %% [markdown]
# <details><summary>Solution 7.1</summary>
#
# ```python
# prediction = {
#     "weight 0.5: every right answer earns more than every wrong one": True,
#     "weight 1.5: every right answer earns more than every wrong one": False,
#     "weight 0.5, one of each kind: the wrong answer with working is pushed up": False,
#     "weight 1.5, one of each kind: the wrong answer with working is pushed up": True,
#     "weight 0.01, all right, one with working: its advantage is above 1": True,
# }
# # The last: deviations of 0.0075 over a spread of 0.005 make 1.5, the advantage of a lone success.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 7.2 | implement | 6 lines | 15 min
# `consistent` knows only differences. Write a version for both kinds of two-count questions: *how many more A than B* asks
# for a difference, *how many A and B* for a sum. The prompts arrive as the column `prompts`, one for each completion.

# %%
def follows(completions, prompts, **_):
    """1 where the answer follows from the two counts in the working, by the operation the prompt asks for."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("7.2", check_sum_or_difference, follows)

# %% [markdown]
# <details><summary>Solution 7.2</summary>
#
# ```python
# def follows(completions, prompts, **_):
#     paid = []
#     for text, prompt in zip(completions, prompts, strict=True):
#         counts, sign = working(text), -1 if " more " in prompt else 1
#         paid.append(float(counts is not None and extract_answer(text) == str(counts[0] + sign * counts[1])))
#     return paid
#     # A policy trained on both kinds with `consistent` would be taught to subtract where it should add.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 7.3 | find the bug | 4 lines | 15 min
# A colleague's puzzle can be solved without looking at a single thing. And whoever has solved it gives the wrong
# answers to ours. Two bugs: one leaks, one lies. Repair both.

# %%
def leaky(image, swapped):
    """(B, 3, H, W), (B,) bool -> pictures with some halves swapped, and the answers."""
    upper, lower = image.split(16, dim=2)
    turned = torch.cat([lower, upper], dim=2)
    turned[:, :, 15:17] = 60  # mark the cut, for debugging
    image = torch.where(swapped[:, None, None, None], turned, image)
    return image, ["yes" if swap else "no" for swap in swapped.tolist()]


def build(image, swapped):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("7.3", check_puzzle, build)

# %% [markdown]
# <details><summary>Solution 7.3</summary>
#
# ```python
# def build(image, swapped):
#     upper, lower = image.split(16, dim=2)
#     image = torch.where(swapped[:, None, None, None], torch.cat([lower, upper], dim=2), image)
#     return image, ["no" if swap else "yes" for swap in swapped.tolist()]
#     # The mark was in swapped pictures only: whoever finds it need not look at the things. Mark the cut of every
#     # picture, or of none. And "is the order correct" asks for a no where the halves are swapped.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 7.4 | extend | 3 lines | 10 min
# Close the hole of consistency alone: pay the bonus only where the answer is right, in the spirit of GRPO-CARE. A right
# answer earns 1, a right and consistent one 1.5, a wrong one 0. Write it as one reward function.

# %%
def gated(completions, answer, **_):
    """Accuracy, with half as much again for right answers that follow from their working."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("7.4", check_gated, gated)

# %% [markdown]
# <details><summary>Solution 7.4</summary>
#
# ```python
# def gated(completions, answer, **_):
#     pairs = zip(exact_match(completions, answer), consistent(completions), strict=True)
#     return [right * (1 + 0.5 * follows) for right, follows in pairs]
#     # Now no story pays without the right answer. A right answer by luck, from false counts that happen to
#     # differ by the truth, still does; whoever can check the counts should.
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - compose a reward from terms, and say on paper when a bonus overrides accuracy;
# - build a task that labels itself, and compute what it allows before you train;
# - turn "with and without" into a verdict, and accept that it may be *no difference* or *inconclusive*.
#
# What the survey says and we did not test. It finds group-relative methods more stable than token-level PPO on mixed tasks;
# we ran no PPO. It says that schedules matter for generalisation; ours made no difference that we could see, at this size
# and length. MoDoMoDo predicts the outcome of a mixture before training it; we tried a single mixture. V-Triune also routes to
# box verifiers, whose thresholds tighten; boxes come in a later chapter.
#
# References: the survey, section 3.1.1 (arXiv 2508.08189, version 3). GRPO-CARE (2506.16141), Q-Ponder (2506.05384), MoDoMoDo
# (2505.24871), V-Triune (2505.18129), Vision-R1 (2503.18013), Jigsaw-R1 (2505.23590), VLM-R1 (2504.07615), R1-Onevision
# (2503.10615), Reason-RFT (2503.20752). In the library: `minivisrl/rewards/judge.py`, `minivisrl/worlds/questions.py`.
