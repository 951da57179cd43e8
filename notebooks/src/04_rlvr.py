# %% [markdown]
# # 4. RLVR: a program as the judge
#
# [previous: 3. DPO](03_dpo.ipynb) | [contents](00_start_here.ipynb) |
# [next: 5. PPO](05_ppo.ipynb)
#
# **Question.** What does a policy learn from a program that checks its answers, and what from one that can be fooled?
#
# **Survey:** section 2.2.3, Eq. (7) (version 3). **Running time:** about a minute on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import re

import matplotlib.pyplot as plt
import torch
from checks.ch04 import (
    acceptance,
    check_number_match,
    check_steps_needed,
    check_strict,
    check_true_accuracy,
    check_verifiers,
    learn,
    verifier_figure,
)
from ipywidgets import FloatSlider

from minivisrl import DATA, UserError, lab
from minivisrl.evaluation.sets import evaluate
from minivisrl.lab import check
from minivisrl.mllm import VLMPolicy
from minivisrl.optimization import GRPO, GRPOConfig, group_advantages
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.rewards import (
    exact_match,
    extract_answer,
    format_reward,
    judge,
    numeric_distance,
    weighted,
)
from minivisrl.worlds.digits import digit_prompts
from minivisrl.worlds.questions import question_prompts

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# RLHF learns its judge from people's choices. Where the truth is known, a program can judge instead. The survey calls
# such a program a **verifier**, and training against it *reinforcement learning with verifiable rewards*:
#
# $$r(p, y) = v(p, y) \in \{0, 1\} \tag{7}$$
#
# | symbol | in words | in the code |
# |---|---|---|
# | $p$ | the prompt, with its truth beside it | a record of `Prompts`: `image`, `prompt`, `answer` |
# | $y$ | a completion, all of its text | `completions[i]`, a string |
# | $v$ | the verifier | `exact_match`, or any reward function |
# | $r$ | the reward | `rewards`, (N,) with N = B * G |
#
# Nothing else changes. Of the four beats, RLVR replaces *Judge* and leaves Act, Compare and Improve alone. The survey
# names more verifiers than ours: unit tests, box overlap above a threshold, format validators. It also allows rewards on
# a scale from 0 to K; `numeric_distance` is ours of that kind.
#
# **Where our code departs from print.** The verifier reads the content of the *last* `<answer>` element, not all of $y$.
# Case and surrounding blanks do not count. A completion without that element earns 0.

# %% [markdown]
# A verifier of text thus has two halves. The **extractor** finds the answer in the text. The **comparison** holds it
# against the truth. Both can be wrong, in two ways:
#
# - a **false positive**: a wrong answer is accepted, with probability $\phi$;
# - a **false negative**: a right answer is rejected, with probability $\nu$.
#
# If these probabilities do not depend on which answer it was, the reward that training sees is on average
#
# $$\mathbb E[\tilde r \mid p, y] = \phi + (1 - \phi - \nu)\, v(p, y) \tag{A1}$$
#
# A constant plus a shorter copy of the truth. Siblings share the constant, so it drops out of their comparison. Only
# the factor remains. Keep the **if** in mind: this chapter will break it.
#
# The **signature** is the one that TRL's trainers accept: `reward(completions, prompts=..., **columns) -> list[float]`.
# Every column of the prompts arrives by name, one entry per completion. A reward that needs only the truth writes
# `def exact_match(completions, answer, **_)`, and the `**_` swallows the rest.

# %% [markdown]
# ## By hand
#
# ### Seven completions, one truth
#
# The truth is 2. **Before you read on:** which of the seven does each reward pay? `exact_match` is Eq. (7).
# `format_reward` asks for one answer element at the end, after nothing or one `<think>` element. `numeric_distance`
# pays 1 minus a third of the distance to the truth.

# %%
# NBVAL_CHECK_OUTPUT
told = [
    "<answer> 2 </answer>",
    "<think> red 3 blue 1 </think> <answer> 3 </answer>",
    "the answer is 2",
    "<answer> 1 </answer> or <answer> 2 </answer>",
    "<answer> two </answer>",
    "<answer> 1 2 3 </answer>",
    "<think> <answer> 2 </answer>",
]
rewards = (exact_match, format_reward, numeric_distance)
scores = [reward(told, answer=["2"] * 7) for reward in rewards]
print("exact  format  distance")
for exact, form, distance, text in zip(*scores, told, strict=True):
    print(f"{exact:5.0f} {form:7.0f} {distance:9.2f}   {text}")

# %% [markdown]
# `two` is right, and rejected: a false negative. Whoever names two answers is held to the last one, so a second guess
# replaces the first and does not add to it. The list `1 2 3` contains the truth and earns nothing; soon we shall meet a
# verifier that pays for it. And a completion can be right without being well formed, or the other way round.
#
# ### Completions are data
#
# A verifier reads text that nobody controls. It must not run it, and it must not fall over. Which of these might hurt a
# careless program? (`eval` runs the first one. `int` refuses the second. `"²".isdigit()` is true, and `int("²")` raises.)

# %%
# NBVAL_CHECK_OUTPUT
hostile = {
    "a program": '<answer> __import__("os").getcwd() </answer>',
    "5000 digits": f"<answer> {'9' * 5000} </answer>",
    "a superscript": "<answer> ² </answer>",
    "infinity": "<answer> 1e999 </answer>",
    "tags turned round": "</answer> 2 <answer>",
    "nothing": "",
}
for name, text in hostile.items():
    found, pays = extract_answer(text), [reward([text], answer=["2"])[0] for reward in rewards]
    print(f"{name:18s} extracted {str(found)[:26]:27s} pays {pays}")

# %% [markdown]
# And the reward function may be at fault. One value that is not a number would spoil every weight of the model. `judge`
# applies a reward to a rollout and refuses what it cannot use, in one line that names the culprit.

# %%
# NBVAL_CHECK_OUTPUT
def broken(completions, **_):
    return [int(text) for text in completions]


def endless(completions, **_):
    return [float("inf") for _ in completions]


def short(completions, **_):
    return [1.0]


policy = VLMPolicy.load(DATA / "checkpoints" / "vlm")
few = question_prompts(2, ["difference"], "heldout", torch.Generator().manual_seed(2), about=["color"])
rollout = policy.rollout(few, 2, generator)  # 4 completions
for reward in (broken, endless, short):
    try:
        judge(reward, rollout)
    except UserError as error:
        print(re.sub(r": .*?;", ": ...;", str(error)))

# %% [markdown]
# ### Partial credit changes the question
#
# Eq. (7) with a scale from 0 to K sounds like a gift: more signal, sooner. But look at what it asks. A policy has seen a
# picture and believes: 0 with probability 0.40, 1 with 0.25, 3 with 0.35. It must give one answer. **Predict** which one
# each reward teaches.

# %%
# NBVAL_CHECK_OUTPUT
belief = {"0": 0.40, "1": 0.25, "3": 0.35}
for reward in (exact_match, numeric_distance):
    pays = {}
    for answer in ("0", "1", "2", "3"):
        text = f"<answer> {answer} </answer>"
        pays[answer] = sum(chance * reward([text], answer=[truth])[0] for truth, chance in belief.items())
    shown = ", ".join(f"{answer}: {value:.3f}" for answer, value in pays.items())
    print(f"{reward.__name__:16s} {shown}; teaches {max(pays, key=pays.get)}")

# %% [markdown]
# Exact match asks for the likeliest answer. Distance asks for the one in the middle, although the policy finds it the
# least likely of the three. Even 2, which it holds impossible, earns more than its second choice. Partial credit pays for
# **hedging**. Whether that is a fault depends on what you want; it is another question than the one you thought you asked.
#
# ### A verifier that errs at random
#
# Now Eq. (A1). Let the verifier turn every verdict round with probability $p$, so that $\phi = \nu = p$ and the factor is
# $1 - 2p$. We need no training: for four siblings and a success rate of 1/5 we go through all 16 patterns of right and
# wrong, times all 16 patterns of flips. For each we ask how far the advantages push the logit of the right answer.
# **Predict** the row for $p$ = 0.5.

# %%
# NBVAL_CHECK_OUTPUT
both = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 8)  # (256, 8)
right, flip = both[:, :4], both[:, 4:]
seen = (right - flip).abs()  # (256, 4): the verdicts
for p in (0.0, 0.1, 0.25, 0.4, 0.5, 0.6):
    chance = (0.2**right * 0.8 ** (1 - right) * p**flip * (1 - p) ** (1 - flip)).prod(dim=1)  # (256,)
    pushes = [chance @ (group_advantages(seen, scale=s) * (right - 0.2)).mean(dim=1) for s in ("none", "std")]
    none, std = (round(push.item(), 4) + 0.0 for push in pushes)
    print(f"p = {p:.2f}: push {none:+.4f} = {none / 0.12:+.2f} x 0.12;  divided by the spread {std:+.4f}")

# %% [markdown]
# Without the division by the spread the factor is $1 - 2p$, exactly as (A1) says. At one half the verifier says nothing,
# and beyond it teaches the opposite. With the division the picture is the same to about two percent. Random errors do not
# change *where* a policy goes, only how fast, as long as right answers are accepted more often than wrong ones.
#
# Errors that are *not* random do change it. Below, three answers: the right one, a common wrong one, and the rest. The
# right half follows the exact gradient of the expected reward; nothing is sampled. Move `flips` up to 0.45: slower, same
# winner. Then set `flips` to 0 and move `loophole`, the chance that the common wrong answer slips through. Where does the
# winner change?

# %%
sliders = {"flips": FloatSlider(0.1, min=0, max=1, step=0.05), "loophole": FloatSlider(1.0, min=0, max=1, step=0.05)}
lab.explore(verifier_figure, **sliders)

# %% [markdown]
# ## Code: show once, prove equal, import
#
# The whole verifier, both halves. `rfind` searches from the end, which is how the last answer comes to count.

# %%
def content(text):
    """The content of the last complete answer element, or None."""
    start = text.rfind("<answer>", 0, max(text.rfind("</answer>"), 0))
    end = text.find("</answer>", start)
    return " ".join(text[start + len("<answer>") : end].split()) if start >= 0 else None


def match(completions, answer, **_):
    """Eq. (7): 1 where the extracted answer is the truth, else 0."""
    return [float((content(c) or "").lower() == t) for c, t in zip(completions, answer, strict=True)]


# %%
# NBVAL_CHECK_OUTPUT
texts = [*told, *hostile.values(), "<answer> <answer> 2 </answer> </answer>", "<ANSWER> 2 </ANSWER>"]
print("same extraction:", [content(text) for text in texts] == [extract_answer(text) for text in texts])
truths = ["2"] * len(texts)
print("same verdicts:  ", match(texts, truths) == exact_match(texts, answer=truths))
print("accepted:       ", int(sum(match(texts, truths))), "of", len(texts))

# %% [markdown]
# From here on we use the library. Its `judge` is what every trainer calls, with a program as with a learned model:

# %%
lab.show_source(judge)

# %% [markdown]
# ## Experiment: two worlds, one verifier
#
# The shipped VLM looks at 32 x 32 pixels and answers in words. In the first world it compares two counts of drawn things.
# In the second it reads real pixels: scans of handwritten digits, and has to name the larger one. One verifier serves
# both. We hold back three kinds of questions: `heldout` (new pictures, same kind), and two out of distribution.
# `appearance` has color-shape pairs that training never shows, and digits printed dark on light. `composition` has 7 to 9
# things instead of at most 6.

# %%
fixed, COLOR = torch.Generator(), ("color",)
scenes = question_prompts(512, ["difference"], "train", fixed.manual_seed(1), about=COLOR)
digits = digit_prompts(512, ("digit_larger",), "train", fixed.manual_seed(1))
sizes = {"heldout": 256, "appearance": 128, "composition": 128}
scene_tests = {
    split: question_prompts(size, ["difference"], split, fixed.manual_seed(2), about=COLOR) for split, size in sizes.items()
}
digit_tests = {s: digit_prompts(sizes[s], ("digit_larger",), s, fixed.manual_seed(2)) for s in ("heldout", "appearance")}


def base_policy():
    """The shipped model, before any reinforcement learning."""
    policy = VLMPolicy.load(DATA / "checkpoints" / "vlm")
    policy.max_tokens = 14
    return policy


# %%
shown = [tests["heldout"].rows(range(3)) for tests in (scene_tests, digit_tests)]
told = [evaluate(base_policy(), part) for part in shown]
captions = [
    f"{q} {y} {'accepted' if score else 'rejected'}"
    for part, e in zip(shown, told, strict=True)
    for q, y, score in zip(part["prompt"], e.outputs, e.scores, strict=True)
]
images = torch.cat([part["image"] for part in shown])
lab.gallery(images, captions, columns=3, title="Six held-out questions, the base model and the verdict of Eq. (7)")
plt.show()

# %% [markdown]
# The optimiser is GRPO: each question gets eight answers, and those that beat their siblings become likelier
# ([chapter 6](06_grpo.ipynb) has the details). All that matters here is the argument `reward_fn`. Three seeds, 16 steps
# of 8 questions. The **control** shuffles the rewards over the rows: the same numbers, attached to the wrong answers.

# %%
def train(seed, prompts, reward_fn=exact_match, collect=act_and_judge, steps=16, batch_size=8, learning_rate=3e-4):
    """RLVR from the base; returns the policy and one row of statistics per step."""
    policy, generator = base_policy(), torch.Generator().manual_seed(seed)
    cfg = OnlineConfig(batch_size=batch_size, group_size=8, learning_rate=learning_rate)
    grpo = GRPO(GRPOConfig(kl_coef=0.04))
    trainer = OnlineTrainer(policy, prompts, reward_fn, grpo, cfg, generator, collect=collect)
    return policy, [trainer.step() for _ in range(steps)]


def column(runs, name):
    """(S, steps): one statistic of every run."""
    return torch.tensor([[row[name] for row in rows] for _, rows in runs])


runs = [train(seed, scenes) for seed in range(3)]
controls = [train(seed, scenes, collect=shuffled(act_and_judge)) for seed in range(3)]

# %% [markdown]
# The reward of a step is a mean over eight questions, easy or hard as they come, and jumps about. So we look at the three
# test sets, answered greedily. **Predict:** where will the gain be largest, and where smallest?

# %%
def accuracies(policy):
    """Greedy accuracy on each split of the scenes."""
    return {split: evaluate(policy, prompts).score for split, prompts in scene_tests.items()}


before = accuracies(base_policy())
after, after_control = [accuracies(p) for p, _ in runs], [accuracies(p) for p, _ in controls]
control = "control, shuffled rewards"
series = {"before": [before], "after": after, control: after_control}
bars = {label: {split: [row[split] for row in rows] for split in sizes} for label, rows in series.items()}
figure = lab.bars(bars, ylabel="greedy accuracy", title="The gain carries over to new pairs, not to more things (3 seeds)")
figure.axes[0].set_ylim(0, 1)  # room for the legend
plt.show()
mean = {label: {split: sum(row) / len(row) for split, row in series.items()} for label, series in bars.items()}
# below: means of 3 runs; the sweeps have 8 seeds
assert mean["after"]["heldout"] > 0.54  # base 0.50; 8 seeds: 0.66 +- 0.05
assert mean["after"]["heldout"] > mean[control]["heldout"]  # control, 8 seeds: 0.35 +- 0.14
assert mean["after"]["appearance"] > 0.57  # base 0.53; 8 seeds: 0.64 +- 0.03; control 0.34 +- 0.14
assert mean["after"]["composition"] < 0.39  # base 0.30; 8 seeds: 0.27 +- 0.05; control 0.23 +- 0.07

# %% [markdown]
# ### Real pixels
#
# The same call with other prompts. Here we measure twice: greedily, and with two sampled answers to each question.

# %%
def both_ways(policy):
    """Greedy and sampled accuracy on held-out digits; greedy on dark digits."""
    sampled = evaluate(policy, digit_tests["heldout"], samples=2, generator=torch.Generator().manual_seed(3))
    greedy = {split: evaluate(policy, prompts).score for split, prompts in digit_tests.items()}
    return {"sampled": sampled.score, "greedy": greedy["heldout"], "greedy, dark on light": greedy["appearance"]}


digit_runs = [train(seed, digits, steps=12) for seed in range(3)]
series = {"before": [both_ways(base_policy())], "after": [both_ways(policy) for policy, _ in digit_runs]}
bars_digits = {label: {n: [row[n] for row in rows] for n in rows[0]} for label, rows in series.items()}

# %%
title = "Scanned digits: the policy makes up its mind, and sees no better"
figure = lab.bars(bars_digits, ylabel="accuracy", title=title)
figure.axes[0].set_ylim(0, 1)
plt.show()
mean = {name: sum(row) / len(row) for name, row in bars_digits["after"].items()}
assert mean["sampled"] > 0.47  # base 0.42; 8 seeds: 0.52 +- 0.02; control 0.29 +- 0.04
assert mean["greedy"] < 0.68  # base 0.64; 8 seeds: 0.60 +- 0.03; control 0.36 +- 0.04
assert mean["greedy, dark on light"] < 0.18  # base 0.10; 8 seeds: 0.13 +- 0.02; control 0.11 +- 0.05

# %% [markdown]
# ### What to notice
#
# - On held-out scenes the policy ends well above the base, and the control below it: noise in the verdicts is noise in
#   the weights. The gain carries over to colors and shapes that training never combined. With 7 to 9 things nothing is
#   gained. Training never showed so many, and a verdict cannot make up for what was never seen.
# - On the digits, sampled answers get better and greedy ones do not. The likeliest answer was as good before; now
#   the policy gives it more often. It made up its mind, and learned nothing new about pixels.
# - Dark digits stay near 0.1, which is what guessing brings. No verdict on light digits says what a dark one looks like.

# %% [markdown]
# ## What can go wrong
#
# ### A lax extractor
#
# Suppose that many answers are lost because the model forgets the tags. Somebody relaxes the extractor: the completion
# passes if the truth stands *anywhere* among its words. Before we train on it, we do what a careful person does. We
# audit it, on 512 answers of the base model, with `exact_match` as the reference.

# %%
def anywhere(completions, answer, **_):
    """1 if the truth is any of the words of the completion."""
    return [float(truth in text.split()) for text, truth in zip(completions, answer, strict=True)]


def audit(policy):
    """What the lax verifier says about held-out answers, and what is true."""
    e = evaluate(policy, scene_tests["heldout"], samples=2, generator=torch.Generator().manual_seed(3))
    lax, wrong = torch.tensor(anywhere(e.outputs, e.prompts["answer"])), e.scores == 0
    return {
        "accepted": lax.mean().item(),
        "right": e.score,
        "false positives": lax[wrong].mean().item(),
        "false negatives": 1 - lax[~wrong].mean().item(),
        "extracted": e.extracted,
    }


base_audit = audit(base_policy())
print({name: round(value, 2) for name, value in base_audit.items()})
assert base_audit["false positives"] < 0.1  # the base: 0.053, of 265 wrong answers
assert base_audit["false negatives"] == 0  # whoever passes exact_match has the truth among its words

# %% [markdown]
# One wrong answer in twenty passes, and no right one is turned away (of course: the answer is among the words). By (A1) the factor is 0.95: a fine verifier, it
# seems. **Predict** what training makes of it.
#
# We train on `anywhere` alone, half as long again and with twice the step size, so that the policy has time to find what
# there is to find. `weighted` takes `exact_match` along with weight 0: it is logged at every step, and pays nothing.

# %%
reward = weighted({anywhere: 1.0, exact_match: 0.0})
gamed = [train(seed, scenes, reward, steps=24, batch_size=6, learning_rate=6e-4) for seed in range(3)]
gamed_audits = [audit(policy) for policy, _ in gamed]
few = scene_tests["heldout"].rows(range(4))
for asked, truth, told in zip(few["prompt"], few["answer"], gamed[0][0].predict(few), strict=True):
    print(f"{asked} (truth {truth})\n    {told}")

# %%
curves = {"reward, truth anywhere": column(gamed, "reward"), "policy, exact match": column(gamed, "reward/exact_match")}
title = "Accepted and right part ways (3 seeds, mean of 6 steps)"
figure = lab.curves(curves, ylabel="share of completions", title=title, smooth=6, x=range(1, 25))
figure.axes[0].set_xticks(range(6, 25, 3))
plt.show()
gap = column(gamed, "reward")[:, -4:].mean() - column(gamed, "reward/exact_match")[:, -4:].mean()
assert gap > 0.01  # mean of 3; 8 seeds: 0.36 +- 0.15, from 0.17 to 0.60

# %%
names = ("accepted", "right", "false positives", "extracted")
series = {"before": [base_audit], "after": gamed_audits}
bars = {label: {name: [row[name] for row in rows] for name in names} for label, rows in series.items()}
figure = lab.bars(bars, ylabel="share", title="The same verifier, audited before and after training on it")
figure.axes[0].set_ylim(0, 1.25)  # room for the legend
plt.show()
mean = {name: sum(row) / len(row) for name, row in bars["after"].items()}
assert mean["false positives"] > 0.34  # base 0.05; 8 seeds: 0.57 +- 0.10
assert mean["accepted"] > 0.57  # base 0.51; 8 seeds: 0.71 +- 0.06
assert mean["accepted"] - mean["right"] > 0.11  # base 0.03; 8 seeds: 0.39 +- 0.12
# right: base 0.48; 8 seeds: 0.33 +- 0.11, below the base each time. The same settings with exact_match: right
# 0.48 +- 0.07, false positives 0.20 +- 0.09

# %% [markdown]
# The base writes working now and then, and a truth among the counts passes as an answer. So working pays; then working
# with more numbers pays more: counts of other colors, or several answers in a row, which cover two or three truths at
# once. Nobody told the policy where the hole is. It only had to be rewarded once.
#
# The error rate of 0.05 was no property of the verifier. It belonged to a verifier *and a policy*, and training changes
# the policy, towards whatever passes. Four ways to notice, and how they did here:
#
# 1. **A metric that is not the reward.** The weight-0 term parts from the reward: by 0.17 or more in each of 8 runs, over the
#    last four steps. At the start the gap is 0.03.
# 2. **Audit again**, on fresh completions of the trained policy. False positives rise from 0.05 to between 0.45 and 0.72.
# 3. **Read samples.** Four lines, above, are enough.
# 4. **The share of extracted answers** falls in some runs only. And `kl_ref` is of little help: with this step size it grows
#    under the honest verifier too, and the two ranges overlap. What betrayed the last failure need not betray the next.

# %% [markdown]
# ### Random errors
#
# Now the harmless kind. For many seeds we leave the images and take the smallest policy there is: a table of logits over
# eight answers, all equally likely at first. We train 128 such **learners** at a time, with the same GRPO. Their verifier
# turns every verdict round with probability $p$. **Predict:** with $p$ = 0.4, two verdicts in five are wrong. Do they learn?

# %%
noise = {f"flips {p:.2f}": p for p in (0.0, 0.1, 0.25, 0.4, 0.5)}
right = {
    name: torch.stack([learn(acceptance(p), seed=seed)[:, :, 0].mean(dim=0) for seed in range(3)])  # (S, steps)
    for name, p in noise.items()
}
title = "Random errors cost time, not the goal (3 seeds, means of 128 learners)"
lab.curves(right, ylabel="chance of the right answer", title=title, control="flips 0.50")
plt.show()
end = {name: chance[:, -1].mean().item() for name, chance in right.items()}
assert min(end["flips 0.00"], end["flips 0.10"], end["flips 0.25"]) > 0.95  # 8 seeds: 0.988, 0.983, 0.961, each +- 0.001
assert 0.55 < end["flips 0.40"] < 0.75  # 8 seeds: 0.65 +- 0.02, and rising
assert 0.09 < end["flips 0.50"] < 0.16  # 8 seeds: 0.13 +- 0.01: the start

# %% [markdown]
# They do. With a quarter of the verdicts wrong the learners need about 36 steps to a chance of 0.8 instead of 22; with two
# in five they are still on their way. At one half the verdicts say nothing, and nothing is learned.
#
# ### One systematic error
#
# Last, a verifier that is right about every answer but one. That answer is wrong and common: the learners start with a
# chance of 0.3 for it, and 0.2 for the right one. Averaged over the first answers, this verifier errs less often than the
# one with flips 0.40.

# %%
start = (0.2, 0.3) + (0.5 / 6,) * 6
goes = {}
for loophole in (0.5, 0.9, 1.0):
    final = torch.stack([learn(acceptance(0.0, loophole), start, seed=seed)[:, -1] for seed in range(3)])  # (S, 128, V)
    goes[loophole] = (final[..., 1] > 0.5).float().mean().item()
    print(f"loophole {loophole}: {goes[loophole]:.0%} of the learners prefer the wrong answer")
assert max(goes[0.5], goes[0.9]) < 0.02  # 8 seeds: 0.000 and 0.001 +- 0.003
assert goes[1.0] > 0.96  # 8 seeds: 0.99 +- 0.01

# %% [markdown]
# A wrong answer that passes nine times in ten still loses in the end. One that always passes wins, because it starts ahead
# and nothing pushes it back. What counts is not how often a verifier errs, but whether some wrong answer is accepted
# as often as the right one. That is the **if** of (A1), broken.

# %% [markdown]
# ## Exercises
#
# ### Exercise 4.1 | predict | 5 words | 5 min
# Four answers, equally likely at the start; one is right. Here are five verifiers, by how often they say yes. With
# which of them does exact gradient ascent on the expected reward end with the right answer (`True`)?

# %%
prediction = {
    "yes to 60% of right, 50% of wrong answers": ...,
    "yes to 20% of right, 10% of wrong answers": ...,
    "yes to 50% of right, 50% of wrong answers": ...,
    "yes to 90% of right, 95% of wrong answers": ...,
    "yes to 95% of right, 1% of wrong answers, but always to '7'": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("4.1", check_verifiers, prediction)

# %% [markdown]
# <details><summary>Solution 4.1</summary>
#
# ```python
# prediction = {
#     "yes to 60% of right, 50% of wrong answers": True,
#     "yes to 20% of right, 10% of wrong answers": True,
#     "yes to 50% of right, 50% of wrong answers": False,
#     "yes to 90% of right, 95% of wrong answers": False,
#     "yes to 95% of right, 1% of wrong answers, but always to '7'": False,
# }
# # The second rejects four right answers in five and still teaches the right thing, slowly. The last is the most
# # accurate of all on most policies, and the one to fear.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4.2 | implement | 5 lines | 15 min
# `exact_match` rejects `02`, `2.` and `+2`, although all of them are 2. Write a verifier without these false negatives: the
# extracted answer may have one leading `+`, leading zeros and one full stop at the end. Give it no false positives in
# exchange (`12`, `1 2`, `2.5` and `two` stay wrong), and let nothing make it raise or run.

# %%
def number_match(completions, answer, **_):
    """1 where the extracted answer is the same number as the truth, else 0."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("4.2", check_number_match, number_match)

# %% [markdown]
# <details><summary>Solution 4.2</summary>
#
# ```python
# def number_match(completions, answer, **_):
#     def normal(text):
#         found = re.fullmatch(r"[+]?0*([0-9]{1,6})[.]?", text or "")
#         return found and int(found[1])
#
#     pairs = zip(map(extract_answer, completions), answer, strict=True)
#     return [float(normal(a) is not None and normal(a) == int(t)) for a, t in pairs]
#     # [0-9] and not \d, which accepts the digits of every script; {1,6} keeps int() small.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4.3 | find the bug | 3 lines | 10 min
# This verifier passes every right answer of the base model. It has three bugs: one pays for lists of guesses, one
# counts the wrong one of two answers, and one ends a night's training on the first odd completion. Repair it without
# `extract_answer`.

# %%
def sloppy(completions, answer, **_):
    """(completions, truths) -> one reward each."""
    found = [re.findall("<answer>(.*?)</answer>", text)[0] for text in completions]
    return [float(truth in content) for content, truth in zip(found, answer, strict=True)]


def strict(completions, answer, **_):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("4.3", check_strict, strict)

# %% [markdown]
# <details><summary>Solution 4.3</summary>
#
# ```python
# def strict(completions, answer, **_):
#     found = [re.findall("<answer>(.*?)</answer>", text) or [""] for text in completions]
#     return [float(contents[-1].strip() == truth) for contents, truth in zip(found, answer, strict=True)]
#     # `in` asks whether one text contains another, [0] takes the first answer, and a completion without an
#     # answer has no [0] at all.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4.4 | implement | 1 line | 10 min
# You know from an audit how often a verifier accepts wrong answers and rejects right ones. It accepts the share
# `observed` of a policy's answers. What share is right? Solve (A1). (And remember *which* policy has to be audited.)

# %%
def true_accuracy(observed, false_positive, false_negative):
    """The share of right answers behind an observed mean reward."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("4.4", check_true_accuracy, true_accuracy)

# %% [markdown]
# <details><summary>Solution 4.4</summary>
#
# ```python
# def true_accuracy(observed, false_positive, false_negative):
#     return (observed - false_positive) / (1 - false_positive - false_negative)
#     # With the base's audit (0.05 and 0), an acceptance of 0.71 after training would stand for 0.69 right. The
#     # audit of the trained policies says 0.57 and 0, and so 0.33.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 4.5 | ablate | 3 lines | 15 min
# Noise costs steps. Do more siblings buy them back? Use `learn(acceptance(flips), group_size=..., steps=80)`, which returns
# the chances of every answer, (learners, steps, answers). Return the number of the first step after which the mean chance
# of answer 0 is above 0.8. Call it for flips 0 and 0.2, and for groups of 4, 8 and 16.

# %%
def steps_needed(flips, group_size):
    """Steps until the learners' mean chance of the right answer is above 0.8."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("4.5", check_steps_needed, steps_needed)

# %% [markdown]
# <details><summary>Solution 4.5</summary>
#
# ```python
# def steps_needed(flips, group_size):
#     chances = learn(acceptance(flips), group_size=group_size, steps=80)[:, :, 0].mean(dim=0)  # (steps,)
#     return int((chances <= 0.8).sum()) + 1
#     # Without flips 22 steps for G = 8. With flips of 0.2: 42, 31 and 26 for G = 4, 8 and 16. Siblings buy time back,
#     # at a price: 16 of them for 26 steps are more completions than 8 for 31.
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - write a verifier with the signature that trainers expect, and say what its two halves can get wrong;
# - tell errors that only slow learning down from errors that redirect it, with (A1) and its *if*;
# - audit a verifier, and know that the audit expires as soon as the policy moves.
#
# What we did not test. The survey lists unit tests, box overlap and similarity thresholds as verifiers; the boxes get
# a chapter of their own. It mentions mixing in a few supervised updates; we mixed in none. And our runs are short: at full
# length (`minivisrl run mllm/rlvr-grpo`) the held-out gain is larger.
#
# References: the survey, section 2.2.3 (arXiv 2508.08189, version 3). In the library: `minivisrl/rewards/verifiers.py`,
# `minivisrl/rewards/judge.py`, `minivisrl/worlds/digits.py`.
