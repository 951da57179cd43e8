# %% [markdown]
# # 16. Unified RL: one reward for reading and drawing
#
# [previous: 15. Reward design](15_reward_design.ipynb) | [contents](00_start_here.ipynb) |
# [next: 17. Task-specific RL](17_task_specific_rl.ipynb)
#
# **Question.** One model reads pictures and draws them. If both abilities are rewarded together, do they help each
# other, hurt each other, or ignore each other?
#
# **Survey:** section 3.3.1 (version 3). **Running time:** about a minute and a half on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import json

import matplotlib.pyplot as plt
import torch
from checks.ch16 import (
    blend_figure,
    check_agreement,
    check_blend,
    check_joint,
    check_predictions,
    transfer_figure,
    verdict,
)
from ipywidgets import FloatSlider

from minivisrl import DATA, lab
from minivisrl.evaluation import evaluate, mean_interval, paired_difference
from minivisrl.evaluation.balance import imbalance
from minivisrl.lab import check
from minivisrl.optimization import GRPO, GRPOConfig, group_advantages
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.policy import frozen
from minivisrl.recipes.unified import blended, prompts_of
from minivisrl.rewards.pictures import agreement, composition
from minivisrl.rollout import Prompts
from minivisrl.unified.cycle import CycleReward, gamed
from minivisrl.unified.policy import UnifiedPolicy

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# A **unified model** is one network for two directions. Given a picture and a question it writes words; given a caption
# it draws. Ours is a small causal language model whose vocabulary has words and 128 *picture codes*. A drawing is a
# sequence of 16 codes, so reading and drawing are the same kind of episode: sample tokens, get a reward at the end. The
# trainer, the loss and the sampling loop are those of [chapter 6](06_grpo.ipynb), unchanged.
#
# The survey calls it **unified RL** when a single policy is optimised by a single reward signal that covers both directions.
#
# | what the papers do | papers of the section | here |
# |---|---|---|
# | one blended reward over questions, captions and drawings | UniRL | joint batches, each row judged by its own verifier |
# | co-understanding and co-generation batches in turn | CoRL | the same prompts, one kind per batch |
# | pairs that the model makes and ranks itself | HermesFlow | DPO on its own drawings and descriptions |
# | its own pictures as training data for reading | UniRL (first stage) | supervised steps on its own drawings |
#
# The claim to test: *cheaper training and cross-modal transfer*. What is learned in one direction should show in the other.

# %% [markdown]
# ### Three formulas
#
# A batch has prompts of several kinds $k(p)$. Each kind has a verifier, and the reward is
#
# $$r(p, y) = w_{k(p)} \, v_{k(p)}(p, y) \tag{A1}$$
#
# Write $g_D$ and $g_R$ for the gradients of the expected reward of drawing and of reading. A small step of size $\eta$
# along a blend of them, with a share $w$ of drawing, changes reading by
#
# $$\Delta J_R = \eta \, \big( w \, g_D + (1 - w) \, g_R \big) \cdot g_R + O(\eta^2) \tag{A2}$$
#
# So everything hangs on one number, the cosine of the two gradients. Above 0 drawing teaches reading: **synergy**.
# Below 0 it does harm: **conflict**. At 0 each ability pays for the other with the share of the batch that it gives away.
#
# At last, how far the two are apart (UniRL's state metric, section 4 of the survey):
#
# $$\text{imbalance} = \lvert \bar r_R - \bar r_D \rvert \tag{A3}$$
#
# | symbol | in words | in the code |
# |---|---|---|
# | $k(p)$ | draw, describe or answer | column `kind` |
# | $v_k$ | verifier of a kind, Eq. (7) with partial credit | `composition`, `caption_truth`, `exact_match` |
# | $r$ | reward of a joint batch, (N,) | `blended` |
# | $g_D$, $g_R$ | gradients over all weights | flattened, one vector each |
# | $\bar r_R$, $\bar r_D$ | mean rewards of the two kinds | arguments of `imbalance` |
#
# The optimiser is GRPO, Eqs. (11) to (13), in every run of this chapter but two recorded ones, which say so.

# %% [markdown]
# ## By hand
#
# ### A joint batch
#
# Three prompts, three verifiers, four completions each. **Predict:** describing earns thirds, drawing earns sixths, an
# answer earns 0 or 1. Does a kind with small differences push less?

# %%
# NBVAL_CHECK_OUTPUT
rewards = {
    "draw": [0.5, 0.5, 0.5, 4 / 6],
    "describe": [0.0, 1 / 3, 2 / 3, 1.0],
    "answer": [1.0, 0.0, 0.0, 0.0],
}
for kind, row in rewards.items():
    advantages = group_advantages(torch.tensor([row]), std_eps=0.0)[0]
    print(f"{kind:9s} rewards {' '.join(f'{r:.2f}' for r in row)}   advantages {' '.join(f'{a:+.2f}' for a in advantages)}")

# %% [markdown]
# A sixth of a point in the first row pushes as hard as a full point in the third. Eq. (11) divides by the spread of the
# siblings, and siblings have the same prompt. So the weights $w_k$ of (A1) cancel as soon as the advantages are scaled: in GRPO
# **the blend is set by the share of a kind in the batch, not by its weight**. Exercise 16.2 asks what does change it.
#
# ### The cycle
#
# A reward for drawing that needs no label: draw the caption, let a model *describe the drawing*, compare the two texts.
# `agreement` gives a third of a point for each place, color and shape. **Predict** the four numbers, then the last column:
# which drawings would you call gamed?

# %%
# NBVAL_CHECK_OUTPUT
asked = "red circle top left, blue square bottom right"
cases = [  # what the reader says of the drawing, what its pixels show (a share of the caption)
    ("red circle top left, blue square bottom right", 1.0),
    ("red circle top left, blue circle bottom right", 5 / 6),
    ("red circle top left", 0.5),
    ("red circle top left, blue square bottom right", 0.5),
]
scores = agreement([told for told, _ in cases], [asked] * 4)
for (told, truth), score in zip(cases, scores, strict=True):
    print(f"cycle {score:.3f}   pixels {truth:.3f}   {told}")
print(f"gamed: {gamed(scores, [truth for _, truth in cases]):.2f} of the drawings that the cycle holds to be perfect")

# %% [markdown]
# In the last row the reader sees a square that is not there. Perhaps it expected one. The cycle cannot tell, because the
# reader is its only eye.
#
# ### What a step on one ability does to the other
#
# Two gradients in the plane, both of length 1. A step of 0.1 with a share of drawing of 1, of a half, and of 0. By (A2), how
# much does reading gain?

# %%
# NBVAL_CHECK_OUTPUT
print("cosine    draw only   half, half   read only")
for cosine in (0.5, 0.0, -0.5):
    drawing = torch.tensor([1.0, 0.0])
    reading = torch.tensor([cosine, (1 - cosine**2) ** 0.5])
    gains = [0.1 * (w * drawing + (1 - w) * reading) @ reading + 0.0 for w in (1.0, 0.5, 0.0)]
    print(f"{cosine:+.1f}   " + "   ".join(f"{gain:+9.3f}" for gain in gains))

# %% [markdown]
# Only for a positive cosine does the first column gain. And in no row is *half, half* better for reading than *read only*.
# To first order, a joint batch is a compromise whose price depends on the cosine. A synergy that beats training on
# one's own task would have to come from somewhere else: from more diverse data, or from later steps.
#
# The sliders follow exact gradient ascent on such a pair of abilities for 40 steps. On the left is the path of both, on the
# right what each gains. Move the share of drawing, then the cosine below 0.

# %%
lab.explore(
    blend_figure,
    share=FloatSlider(0.5, min=0.0, max=1.0, step=0.05),
    cosine=FloatSlider(0.0, min=-0.9, max=0.9, step=0.1),
)

# %% [markdown]
# ## Code: show once, prove equal, import
#
# The cycle in six lines. `policy.predict` describes greedily; the rest is text. Below it, the same drawings go through
# ours and through the library.

# %%
base = UnifiedPolicy.load(DATA / "checkpoints" / "unified")


def cycle(drawings, captions, reader):
    """Draw, describe, compare: one score per drawing, a fraction of 1."""
    shown = Prompts({"prompt": ["describe the picture"] * len(drawings), "image": list(drawings)})
    with torch.no_grad():
        told = reader.predict(shown)
    return agreement(told, captions)


# %%
# NBVAL_CHECK_OUTPUT
captions = prompts_of("draw", 6, "train", torch.Generator().manual_seed(3))
drawings = base.predict(captions)
ours = cycle(drawings, captions["prompt"], base)
theirs = CycleReward(base)(completions=drawings, prompts=captions["prompt"])
print("ours   ", " ".join(f"{score:.2f}" for score in ours))
print("library", " ".join(f"{score:.2f}" for score in theirs))
print(f"imbalance of two batches {imbalance([1.0, 0.0, 1.0], [0.5, 0.5]):.4f}, by hand {2 / 3 - 1 / 2:.4f}")

# %% [markdown]
# ## Experiment
#
# ### One model, two directions
#
# Before anything is trained: twelve training captions and the pictures that belong to them. The base draws the captions, and
# describes the pictures. It learned from demonstrations with mistakes in them, so it knows more than it dares to say:
# greedily it is good, and when it samples it is unsure.

# %%
def twelve(kind, count=12):
    """The same scenes for every kind: captions to draw, or their pictures to describe."""
    return prompts_of(kind, count, "train", torch.Generator().manual_seed(0))


draws, reads = twelve("draw"), twelve("describe")
dice = torch.Generator().manual_seed(1)
first = base.rollout(draws.rows(range(6)), 1, dice).outputs
told = base.rollout(reads.rows(range(6)), 1, dice).outputs
pictures = [image.float() / 255 for image in reads["image"][:6]]
lab.gallery(
    torch.stack([*first, *pictures]),
    [*draws["prompt"][:6], *told],
    columns=6,
    row_labels=("drawn", "read"),
    title="The base draws the captions above, and describes the pictures below",
)
plt.show()

# %% [markdown]
# ### Do the two gradients agree?
#
# (A2) says that the cosine decides, so we measure it. For both kinds we take 12 prompts with 32 completions each and
# differentiate the policy-gradient objective with respect to all weights. As a yardstick, the cosine of two gradients of the *same*
# kind, from other completions. Three repetitions.

# %%
def gradient(prompts, seed):
    """The policy gradient of a batch, over all weights, as one vector."""
    policy = frozen(base)
    policy.model.requires_grad_(True)
    rollout = policy.rollout(prompts, 32, torch.Generator().manual_seed(seed))
    columns = {name: prompts.repeat(32)[name] for name in ("scene", "answer", "kind")}
    rewards = torch.tensor(blended(rollout.outputs, **columns)).view(len(prompts), 32)  # (B, G)
    advantages = group_advantages(rewards).flatten()  # (N,)
    logprobs = (policy.logprobs(rollout) * rollout.mask).sum(dim=1)  # (N,)
    (advantages * logprobs).mean().backward()
    return torch.cat([p.grad.flatten() for p in policy.model.parameters() if p.grad is not None])


cosines = {"drawing and reading": [], "drawing, twice": [], "reading, twice": []}
for seed in range(3):
    one, two = ([gradient(p, 10 * seed + k) for p in (draws, reads)] for k in (0, 1))
    pairs = ((one[0], one[1]), (one[0], two[0]), (one[1], two[1]))
    for name, pair in zip(cosines, pairs, strict=True):
        cosines[name].append(torch.cosine_similarity(*pair, dim=0).item())
for name, values in cosines.items():
    print(f"{name:20s} " + "  ".join(f"{value:+.3f}" for value in values))
across = sum(cosines["drawing and reading"]) / 3
within = min(sum(cosines[name]) / 3 for name in ("drawing, twice", "reading, twice"))
assert abs(across) < 0.05  # 8 seeds: 0.00 +- 0.01
assert within > 0.05  # 8 seeds: drawing 0.11 +- 0.03, reading 0.64 +- 0.04

# %% [markdown]
# Two estimates of the reading gradient agree well. Two of the drawing gradient agree little, 384 drawings are a noisy sample of
# 16 decisions each, but they do agree. Drawing and reading do not agree at all: their gradients stand at right angles, to two
# decimals. At this size the two abilities share a set of weights, and little else. So we should expect no synergy in the
# first steps, and no harm.

# %% [markdown]
# ### Train on one, on the other, on both
#
# Six GRPO steps of 96 completions on these twelve prompts, from the same base: drawing alone, reading alone, joint batches
# (both kinds, twelve prompts a step out of 24), and the control, joint batches whose rewards are dealt out at random. We
# measure on the same twelve prompts, so that a small run shows something; held-out prompts come with the recorded runs
# below. **Predict:** where will joint batches end, compared with the two specialists?

# %%
def train(seed, prompts, reward=blended, steps=6, collect=act_and_judge):
    """A copy of the base, trained by GRPO."""
    policy = frozen(base)
    policy.model.requires_grad_(True)
    cfg = OnlineConfig(batch_size=min(12, len(prompts)), group_size=8, learning_rate=4e-4)
    dice = torch.Generator().manual_seed(seed)
    trainer = OnlineTrainer(policy, prompts, reward, GRPO(GRPOConfig(kl_coef=0.0)), cfg, dice, collect=collect)
    for _ in range(steps):
        trainer.step()
    return policy


both = Prompts.cat([draws, reads])


def abilities(policy):
    """Share of the objects right, sampled 16 times: drawing and reading."""
    fixed = torch.Generator().manual_seed(9)
    told = {"draw": draws, "read": reads}
    return {name: evaluate(policy, p, blended, samples=16, generator=fixed).score for name, p in told.items()}


arms = {
    "drawing": [train(seed, draws) for seed in range(3)],
    "reading": [train(seed, reads) for seed in range(3)],
    "joint": [train(seed, both) for seed in range(3)],
    "control": [train(seed, both, collect=shuffled(act_and_judge)) for seed in range(3)],
}

# %%
def mean(values):
    """Mean over seeds."""
    return sum(values) / len(values)


rows = {"before": [abilities(base)]} | {arm: [abilities(p) for p in policies] for arm, policies in arms.items()}
told = {arm: {name: [row[name] for row in seeds] for name in ("draw", "read")} for arm, seeds in rows.items()}
axes = lab.bars(
    told, ylabel="share of objects right", title="Each reward lifts its own ability (3 seeds, the training prompts)"
).axes[0]
axes.set_ylim(0, 1.25)
entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
axes.legend(entries.values(), entries.keys(), ncols=5, loc="upper center")
plt.show()
gains = {arm: {name: mean(told[arm][name]) - told["before"][name][0] for name in ("draw", "read")} for arm in arms}
assert gains["drawing"]["draw"] > 0.04  # 8 seeds: 0.112 +- 0.020
assert gains["reading"]["read"] > 0.11  # 8 seeds: 0.179 +- 0.017
assert min(gains["joint"].values()) > 0.02  # 8 seeds: draw 0.078 +- 0.020, read 0.105 +- 0.020
assert max(gains["control"].values()) < 0.02  # 8 seeds: draw -0.09 +- 0.05, read -0.14 +- 0.08

# %% [markdown]
# ### After
#
# The same captions and pictures, the same dice, one of the jointly trained policies.

# %%
dice = torch.Generator().manual_seed(1)
after = arms["joint"][0].rollout(draws.rows(range(6)), 1, dice).outputs
lab.gallery(
    torch.stack([*first, *after]),
    [*draws["prompt"][:6]] * 2,
    columns=6,
    row_labels=("before", "after"),
    title="Sampled drawings before and after six joint steps",
)
plt.show()

# %% [markdown]
# ### The transfer matrix (recorded)
#
# Now at length and on captions and pictures that were never trained on: 24 steps of 256 completions, five seeds, by one command,
# `python -m minivisrl.recipes.transfer`. The file holds every run with its seed. Rows are what was rewarded, columns what was
# measured; a cell is the mean gain over the base with its 95 % interval. Reading is the mean of describing and answering.

# %%
book = json.loads((DATA / "results" / "transfer.json").read_text())
start = {name: value[0] for name, value in book["table"]["base"].items()}


def gain(method, ability):
    """Gain over the base of every seed of a recorded method."""
    return [run[ability] - start[ability] for run in book["runs"] if run["method"] == method]


matrix = ("understanding", "generation", "both, joint", "both, in turn", "control")
transfer_figure({m: {a: mean_interval(gain(m, a)) for a in ("read", "draw")} for m in matrix})
plt.show()
assert mean_interval(gain("understanding", "read")).low > 0
assert mean_interval(gain("generation", "draw")).low > 0
assert mean(gain("control", "draw")) < 0.01 and mean(gain("control", "read")) < 0.01

# %%
# NBVAL_CHECK_OUTPUT
questions = [
    ("reading, by a reward for drawing", "read", "generation", None),
    ("drawing, by a reward for reading", "draw", "understanding", None),
    ("reading, joint against reading alone", "read", "both, joint", "understanding"),
    ("drawing, joint against drawing alone", "draw", "both, joint", "generation"),
    ("reading, in turn against joint", "read", "both, in turn", "both, joint"),
    ("drawing, in turn against joint", "draw", "both, in turn", "both, joint"),
]
for question, ability, one, other in questions:
    pair = gain(one, ability), gain(other, ability) if other else [0.0] * 5
    difference, low, high = paired_difference(*pair)
    print(f"{question:38s} {difference:+.3f} [{low:+.3f}, {high:+.3f}]  {verdict(*pair)}")

# %% [markdown]
# Each reward lifts its own column, and leaves the other where it was. There is **no synergy to be seen**: a reward for drawing
# moves reading by 0.001, to three decimals what the right angle of the gradients promised. Nor is there a conflict.
#
# What joint training buys is time. Half of its batch draws and half of it reads, so each ability got half of what its
# specialist got; it kept nearly all of the reading and about two thirds of the drawing. Two abilities for 24 steps instead of 48: of
# the survey's two claims, *cheaper* holds here, and *transfer* does not. Joint batches and batches in turn cannot be told apart.
#
# One more thing that the averages hide. Training on reading raises what the model *samples*, by 0.026, and lowers what it says
# *greedily*, from 0.60 to 0.58. It learned to be sure, not to see more.

# %% [markdown]
# ### Self-improvement (recorded)
#
# Two ways to do without labels. *Own pairs* (HermesFlow): the model draws each caption four times and ranks the drawings by its
# own cycle; it describes its own drawings four times and ranks the descriptions by the caption; then DPO on these pairs.
# *Own pictures* (UniRL): it draws captions and learns, supervised, to describe the drawings by them. Three seeds each, 100 steps.

# %%
own = {m: {a: mean_interval(gain(m, a)) for a in ("read", "draw")} for m in ("own pairs", "own pictures")}
for method, cells in own.items():
    print(f"{method:13s} " + "   ".join(f"{a} {m:+.3f} [{low:+.3f}, {high:+.3f}]" for a, (m, low, high) in cells.items()))
gaps = {m: mean([run["imbalance"] for run in book["runs"] if run["method"] == m]) for m in ("base", *matrix[:4], *own)}
print("imbalance:    " + "   ".join(f"{m} {value:.3f}" for m, value in gaps.items()))
assert own["own pairs"]["draw"][0] > 0.01 and own["own pairs"]["read"][0] > 0.0
assert own["own pictures"]["draw"][0] < 0.0 and own["own pictures"]["read"][0] < 0.0

# %% [markdown]
# Ranking its own work helps: with no label at all, *own pairs* draws about as well as the model that a verifier had paid, and
# describes a little better, though three seeds leave both intervals open at 0. Imitating its own work does harm. A drawing that was
# sampled is right in 0.59 of its objects, so four in ten of the objects in the "new training data" are mislabeled; UniRL's are
# drawn by a model that draws well. A *choice* between two noisy outputs still carries a signal when each of them is a bad example.
#
# The imbalance (A3) behaves as its formula says and not as its name suggests. It is smallest for *understanding*, which brings
# the weaker ability up, and second smallest where both abilities fell. Read it next to the abilities, never alone.

# %% [markdown]
# ### What to notice
#
# - In the bars, *joint* stands between the specialists in both groups and above the base in both; the control falls in both.
# - The off-diagonal cells of the matrix are pale: their intervals contain 0.
# - In the galleries, what changes is whole objects, and not for every caption: six small steps make a model surer, not perfect.

# %% [markdown]
# ## What can go wrong
#
# ### A drawing that is right only in the eye of its reader
#
# The cycle needs no label, so why use any? We train drawing on it for 18 steps, on six captions, with a frozen copy of the base as
# reader. Beside it, the same steps with the verifier that reads the pixels. **Predict** both scores of both runs.

# %%
six = draws.rows(range(6))


def judged(policy):
    """What the cycle and what the pixels say of 192 sampled drawings, and how often the cycle is fooled."""
    outputs = policy.rollout(six, 32, torch.Generator().manual_seed(5)).outputs
    again = six.repeat(32)
    says, shows = CycleReward(base)(outputs, again["prompt"]), composition(outputs, again["scene"])
    return {"cycle": mean(says), "pixels": mean(shows)}


climbed = {
    "before": [judged(base)],
    "paid by the cycle": [judged(train(seed, six, CycleReward(base), steps=18)) for seed in range(3)],
    "paid by the pixels": [judged(train(seed, six, steps=18)) for seed in range(3)],
}
shown = {arm: {name: [row[name] for row in seeds] for name in seeds[0]} for arm, seeds in climbed.items()}
axes = lab.bars(shown, ylabel="share of objects right", title="Paid by the cycle, the cycle rises and the picture does not").axes[0]
axes.set_ylim(0, 1.3)
plt.show()
cycled = {name: mean(values) for name, values in shown["paid by the cycle"].items()}
assert cycled["cycle"] > 0.65  # base 0.57; 8 seeds: 0.72 +- 0.02; paid by the pixels 0.64 +- 0.03
assert cycled["cycle"] > cycled["pixels"]  # base: 0.57 and 0.65; 8 seeds: 0.72 +- 0.02 and 0.63 +- 0.05
assert mean(shown["paid by the pixels"]["pixels"]) > cycled["pixels"] + 0.03  # 8 seeds: 0.80 +- 0.03 and 0.63 +- 0.05

# %% [markdown]
# Paid by the cycle, the cycle goes from 0.57 to more than 0.7, and what the pixels show does not get better at all. Paid by the
# pixels, the drawings improve by 0.15, and the cycle follows by half of that: it is a fair *measure* of drawings that were not
# made to please it. As a target it leads the painter to what its reader misreads. That is Goodhart's law between two
# halves of one model.
#
# The recorded study has the same two rewards at length and on fresh captions, 24 steps, three seeds: with a frozen reader, and
# *co-trained*, where the painter itself reads. `gamed` is the share of the drawings that are perfect for the reader and
# wrong for the pixels; `own` is the policy as its own reader.

# %%
for method in ("base", "generation", "cycle", "cycle, co-trained"):
    row = book["table"][method]
    print(f"{method:18s} " + "   ".join(f"{name} {row[name][0]:.3f}" for name in ("draw", "cycle", "cycle_gamed", "own_cycle", "own_cycle_gamed", "read")))
rises = {m: {n: book["table"][m][n][0] - start[n] for n in ("draw", "cycle")} for m in ("generation", "cycle", "cycle, co-trained")}
assert all(rises[m]["cycle"] > 1.5 * rises[m]["draw"] for m in ("cycle", "cycle, co-trained"))
assert rises["generation"]["draw"] > max(rises[m]["draw"] for m in ("cycle", "cycle, co-trained"))

# %% [markdown]
# On fresh captions at every step the cycle is a slow teacher rather than a cheat. Drawing gains 0.017 with the frozen reader and 0.008
# with the co-trained one, where the verifier gives 0.028; the cycle itself gains 0.035 to 0.044, so most of what was climbed is not
# in the pixels. Of the drawings that the cycle holds to be perfect, 37 % are wrong at the base, 39 % after training on it, and 43 % if
# the reader moves along. On six captions, over and over, the same reward was climbed at the expense of the picture. What protects a
# gameable reward is fresh data and few steps; what it needs is a second opinion.

# %% [markdown]
# ## Exercises
#
# ### Exercise 16.1 | predict | 5 words | 10 min
# A joint batch by GRPO with Eq. (11) as printed (the advantages are divided by the standard deviation). Which statements are true?

# %%
prediction = {
    "drawing's reward times 10 makes drawing count more": ...,
    "twice as many drawing prompts in a batch makes drawing count more": ...,
    "a positive cosine means that drawing alone improves reading": ...,
    "with cosine 0, a joint step improves reading as much as a reading step": ...,
    "an imbalance of 0 means that both abilities are good": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("16.1", check_predictions, prediction)

# %% [markdown]
# <details><summary>Solution 16.1</summary>
#
# ```python
# prediction = {
#     "drawing's reward times 10 makes drawing count more": False,
#     "twice as many drawing prompts in a batch makes drawing count more": True,
#     "a positive cosine means that drawing alone improves reading": True,
#     "with cosine 0, a joint step improves reading as much as a reading step": False,
#     "an imbalance of 0 means that both abilities are good": False,
# }
# ```
#
# </details>

# %% [markdown]
# ### Exercise 16.2 | implement | 4 lines | 15 min
# Make weights count. Given rewards (B, G) and one weight per prompt (B,), return advantages (B, G) in which a prompt of weight 2
# pushes twice as hard as one of weight 1. Compare siblings as Eq. (11) does, with the unbiased standard deviation and 0.0001
# in the denominator.

# %%
def weighted_advantages(rewards, weights):
    """(B, G), (B,) -> (B, G): group advantages, scaled by the weight of their prompt."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("16.2", check_blend, weighted_advantages)

# %% [markdown]
# <details><summary>Solution 16.2</summary>
#
# ```python
# def weighted_advantages(rewards, weights):
#     centred = rewards - rewards.mean(dim=1, keepdim=True)
#     return weights[:, None] * centred / (rewards.std(dim=1, keepdim=True) + 1e-4)
#     # The weight has to come after the division. Before it, in the reward, it cancels.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 16.3 | find the bug | 5 lines | 15 min
# A colleague judges joint batches kind by kind. Drawing alone trains well, reading alone trains well, and joint batches train
# nothing. Why? Repair it.

# %%
def broken(completions, kind, verifiers):
    """One score per completion, by the verifier of its kind: a function of (completions, rows)."""
    scores = []
    for name in verifiers:
        rows = [i for i, each in enumerate(kind) if each == name]
        scores += verifiers[name]([completions[i] for i in rows], rows)
    return scores


def joint(completions, kind, verifiers):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("16.3", check_joint, joint)

# %% [markdown]
# <details><summary>Solution 16.3</summary>
#
# ```python
# def joint(completions, kind, verifiers):
#     scores = [0.0] * len(completions)
#     for name in verifiers:
#         rows = [i for i, each in enumerate(kind) if each == name]
#         for row, score in zip(rows, verifiers[name]([completions[i] for i in rows], rows), strict=True):
#             scores[row] = score
#     return scores
#     # The scores came back sorted by kind, not in the order of the batch: each row got another row's reward.
#     # The mean reward in the log is the same, and nothing looks wrong. It is the shuffled control.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 16.4 | extend | 6 lines | 20 min
# The cycle compares two texts. Close it the other way round: from a *description* of a picture, without its caption, score how well
# another description of the same picture agrees. Write `consensus`: for each of G descriptions of one picture, the mean
# agreement with its siblings. (It needs no label, and is gamed too: how?)

# %%
def consensus(texts):
    """G descriptions of one picture -> G scores: mean agreement with the other descriptions."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("16.4", check_agreement, consensus)

# %% [markdown]
# <details><summary>Solution 16.4</summary>
#
# ```python
# def consensus(texts):
#     scores = []
#     for i, text in enumerate(texts):
#         others = texts[:i] + texts[i + 1 :]
#         told = agreement([text] * len(others), others)
#         scores.append(sum(told) / len(told))
#     return scores
#     # It is full as soon as all siblings say the same, whatever the picture shows: collapse pays.
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - train one model on two kinds of episodes with one loop, and say what sets the blend;
# - predict the transfer of a step from the cosine of two gradients, and test the prediction with a transfer matrix;
# - build a reward without labels from the model's own reading, and measure how often it is fooled.
#
# What the survey says and we did not test. Its papers start from models of billions of weights, trained on text that ties the two
# directions together; ours saw 16-pixel pictures for some minutes. That no synergy shows here says nothing about models in
# which both directions lean on the same knowledge. UniRL blends CLIP and aesthetic scores into the reward; we have a verifier
# that sees the truth. We trained with a single learning rate and no KL term in the live runs.
#
# References: the survey, section 3.3.1 (arXiv 2508.08189, version 3). UniRL (2505.23380), CoRL (2505.17534), HermesFlow
# (2502.12148), Selftok (2505.07538), UnifiedReward (2503.05236). In the library: `minivisrl/unified/`,
# `minivisrl/evaluation/balance.py`, `minivisrl/recipes/transfer.py`. The grid's cell: `minivisrl run unified/rlvr-grpo`.
