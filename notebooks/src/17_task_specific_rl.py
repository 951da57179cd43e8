# %% [markdown]
# # 17. Task-specific RL: reward one head, watch the other
#
# [previous: 16. Unified RL](16_unified_rl.ipynb) | [contents](00_start_here.ipynb) |
# [next: 19. Visual navigation](19_visual_navigation.ipynb)
#
# **Question.** A unified model is rewarded for drawing alone. What becomes of its reading, and how would we notice?
#
# **Survey:** section 3.3.2 (version 3). **Running time:** about a minute and a half on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import json

import matplotlib.pyplot as plt
import torch
from checks.ch17 import (
    check_pairs,
    check_price,
    check_rehearsal,
    check_statements,
    leak_figure,
    verdict,
)
from ipywidgets import FloatSlider

from minivisrl import DATA, lab
from minivisrl.evaluation import evaluate, mean_interval
from minivisrl.evaluation.balance import kl_by_kind
from minivisrl.lab import check
from minivisrl.optimization import GRPO, GRPOConfig
from minivisrl.paradigms.dpo import DPOConfig, dpo_loss
from minivisrl.paradigms.offline import DPO, OfflineConfig, OfflineTrainer, encode_pairs
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.policy import frozen
from minivisrl.recipes.unified import UnifiedConfig, blended, comparisons, prompts_of
from minivisrl.rollout import PreferencePairs, Prompts
from minivisrl.unified.policy import UnifiedPolicy

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# [Chapter 16](16_unified_rl.ipynb) rewarded both abilities of a unified model. **Task-specific RL** applies the reward to one
# of them, and leaves the other to what it learned before. The survey names the trade: unified rewards may transfer, task-specific
# ones keep *the stability of perception*. A reward that never looks at an answer cannot teach a wrong one.
#
# | paper | what is rewarded | what is left alone |
# |---|---|---|
# | Emu3 | drawing, by DPO on pairs that people ranked | reading: supervised only |
# | VARGPT-v1.1 | drawing, by DPO, in turn with fine-tuning | reading: supervised only |
# | X-Omni | drawing, by GRPO against learned and computed rewards | reading: trained before |
#
# For drawings the log-probability of Eqs. (5) and (6) is a sum over picture codes:
#
# $$\log \pi_\theta(y \mid p) = \sum_{t=1}^{17} \log \pi_\theta(a_t \mid p, a_{<t}), \qquad
# a_t \in \{\text{words}\} \cup \{\text{codes}\} \tag{A1}$$
#
# Two numbers tell what such a training did. With $J_k$ the held-out score of ability $k$, trained on $i$, after minus before:
#
# $$\text{forgetting}_j = - \Delta J_j, \qquad \text{price} = \frac{- \Delta J_j}{\Delta J_i} \tag{A2}$$
#
# | symbol | in words | in the code |
# |---|---|---|
# | $a_t$ | word or code, from one vocabulary | `actions["tokens"]`, (N, T) |
# | $y^+$, $y^-$ | the drawing that was preferred, and the other | `chosen`, `rejected` |
# | $\Delta J_i$, $\Delta J_j$ | gain of the trained, of the other ability | differences of `evaluate(...).score` |
# | $D_k$ | drift on prompts of kind $k$, Eq. (17) | `kl_by_kind` |
#
# A price of 0.5 means: each point of drawing cost half a point of reading. A negative price is a gift.

# %% [markdown]
# ## By hand
#
# ### Words and codes share one softmax
#
# At every position the model chooses among words *and* codes. A policy gradient on a code $c$ moves the logits by
# $\mathbb 1_c - \pi$: up for $c$, down for everything else, words included. A vocabulary of two codes and two words, with
# probabilities 0.4, 0.4, 0.1, 0.1. **Predict** the four entries for a push on the first code.

# %%
# NBVAL_CHECK_OUTPUT
names = ("code 1", "code 2", "word 1", "word 2")
logits = torch.tensor([0.4, 0.4, 0.1, 0.1]).log().requires_grad_()
logits.log_softmax(0)[0].backward()
print("by autograd ", "  ".join(f"{n} {g:+.2f}" for n, g in zip(names, logits.grad, strict=True)))
by_hand = [1 - 0.4, -0.4, -0.1, -0.1]
print("by hand     ", "  ".join(f"{n} {g:+.2f}" for n, g in zip(names, by_hand, strict=True)))

# %% [markdown]
# Does that make the model forget its words? The logits are $W h$ with a feature vector $h$ for each position. A push at a
# drawing position changes $W$ along $h_D$. At a reading position the logits then move by the same vector times
# $h_D \cdot h_R$. If the model keeps the two kinds of positions apart, $h_D \cdot h_R = 0$, and reading does not notice.
# The sliders show one such step: how hard the push, and the cosine of the two features.

# %%
lab.explore(
    leak_figure,
    push=FloatSlider(2.0, min=0.0, max=6.0, step=0.5),
    cosine=FloatSlider(0.5, min=-1.0, max=1.0, step=0.1),
)

# %% [markdown]
# ### The price of a point
#
# Three models were trained on drawing. **Predict** who paid most for each point of drawing, and who forgot most.

# %%
# NBVAL_CHECK_OUTPUT
print("model  drawing  reading   forgetting   price")
for name, drawing, reading in (("A", 0.20, -0.05), ("B", 0.02, -0.01), ("C", 0.10, 0.02)):
    print(f"{name:5s}  {drawing:+.2f}    {reading:+.2f}     {-reading:+.2f}       {-reading / drawing:+.2f}")

# %% [markdown]
# A forgot most, and B paid most: half a point for every point. Forgetting alone cannot rank methods that were trained for
# different lengths; the price alone hides how little was gained.
#
# ## Code: show once, prove equal, import
#
# DPO on drawings. Eq. (6), with (A1) as the log-probability, and nothing that knows about pictures. We ask an annotator to
# compare drawings by the base (four for each caption, the best against the worst, with some noise), and put the pairs through ours
# and through the library.

# %%
base = UnifiedPolicy.load(DATA / "checkpoints" / "unified")
task = UnifiedConfig(train=("draw",))
pairs = comparisons(base, task, 48, "train", torch.Generator().manual_seed(0))
lab.gallery(
    torch.stack([*pairs.chosen[:6], *pairs.rejected[:6]]),
    list(pairs.prompts["prompt"][:6]) * 2,
    columns=6,
    row_labels=("chosen", "rejected"),
    title="What the annotator compared: drawings of one caption by the base",
)
plt.show()

# %%
def dpo(policy, ref_policy, rollout, dpo_beta):
    """Eq. (6) for a rollout whose rows are chosen, rejected, chosen, rejected, ..."""
    new = (policy.logprobs(rollout) * rollout.mask).sum(dim=1)  # (2B,), (A1)
    ref = (ref_policy.logprobs(rollout) * rollout.mask).sum(dim=1)  # (2B,)
    implicit = dpo_beta * (new - ref).view(-1, 2)  # (B, 2)
    return -torch.nn.functional.logsigmoid(implicit[:, 0] - implicit[:, 1]).mean()


# %%
# NBVAL_CHECK_OUTPUT
rollout = encode_pairs(base, pairs.rows(range(8)), torch.Generator().manual_seed(0))
moved = frozen(base)
with torch.no_grad():
    for weight in moved.model.parameters():
        weight.mul_(1.02)
    scores = [(p.logprobs(rollout) * rollout.mask).sum(dim=1).view(-1, 2) for p in (moved, base)]
    theirs, _ = dpo_loss(scores[0][:, 0], scores[0][:, 1], scores[1][:, 0], scores[1][:, 1], DPOConfig(dpo_beta=0.3))
    print("same loss:", torch.isclose(dpo(moved, base, rollout, 0.3), theirs).item())
    print(f"at the start: {dpo(base, base, rollout, 0.3):.4f}, log 2 = {torch.tensor(2.0).log():.4f}")
print("tokens in a drawing:", int(rollout.mask[0].sum()))

# %% [markdown]
# ## Experiment
#
# ### Reward for drawing, by comparison and by a verifier
#
# Twelve training captions, their pictures to read, and two ways to reward drawing: DPO on 96 pairs of the base's own
# drawings of these captions (Emu3, VARGPT), and GRPO against the verifier (X-Omni). Reading gets no reward in either. Three seeds
# each, and the control: GRPO with the rewards dealt out at random. **Predict** the reading bars.

# %%
def twelve(kind):
    """The same scenes for every kind: captions to draw, or their pictures to describe."""
    return prompts_of(kind, 12, "train", torch.Generator().manual_seed(0))


draws, reads = twelve("draw"), twelve("describe")


def copy_of_base():
    """A policy to train."""
    policy = frozen(base)
    policy.model.requires_grad_(True)
    return policy


def by_grpo(seed, reward=blended, steps=8, prompts=draws, collect=act_and_judge):
    """GRPO on these prompts."""
    policy, dice = copy_of_base(), torch.Generator().manual_seed(seed)
    cfg = OnlineConfig(batch_size=12, group_size=8, learning_rate=2e-4)
    trainer = OnlineTrainer(policy, prompts, reward, GRPO(GRPOConfig(kl_coef=0.0)), cfg, dice, collect=collect)
    for _ in range(steps):
        trainer.step()
    return policy


# %%
def by_dpo(seed, steps=15):
    """DPO on 96 pairs: eight comparisons of drawings of each caption."""
    policy, dice = copy_of_base(), torch.Generator().manual_seed(seed)
    again = draws.repeat(8)
    drawn = base.rollout(again, 4, dice).outputs
    worth = torch.tensor(blended(drawn, *(again.repeat(4)[c] for c in ("scene", "answer", "kind")))).view(-1, 4)
    rows = torch.arange(len(again)) * 4
    best, worst = (rows + worth.argmax(dim=1)).tolist(), (rows + worth.argmin(dim=1)).tolist()
    ranked = PreferencePairs(again, [drawn[i] for i in best], [drawn[i] for i in worst])
    cfg = OfflineConfig(batch_size=32, learning_rate=1e-4)
    trainer = OfflineTrainer(policy, ranked, DPO(DPOConfig(dpo_beta=0.3)), cfg, dice)
    for _ in range(steps):
        trainer.step()
    return policy


def abilities(policy):
    """Share of the objects right, sampled 16 times: drawing and reading."""
    fixed = torch.Generator().manual_seed(9)
    told = {"draw": draws, "read": reads}
    return {name: evaluate(policy, p, blended, samples=16, generator=fixed).score for name, p in told.items()}


arms = {
    "before": [base],
    "dpo": [by_dpo(seed) for seed in range(3)],
    "grpo": [by_grpo(seed) for seed in range(3)],
    "control": [by_grpo(seed, collect=shuffled(act_and_judge)) for seed in range(3)],
}

# %%
def mean(values):
    """Mean over seeds."""
    return sum(values) / len(values)


rows = {arm: [abilities(p) for p in policies] for arm, policies in arms.items()}
told = {arm: {name: [row[name] for row in seeds] for name in ("draw", "read")} for arm, seeds in rows.items()}
axes = lab.bars(told, ylabel="share of objects right", title="Rewarded for drawing; reading stays where it was (3 seeds)").axes[0]
axes.set_ylim(0, 1.2)
entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
axes.legend(entries.values(), entries.keys(), ncols=4, loc="upper center")
plt.show()
gains = {arm: {n: mean(told[arm][n]) - told["before"][n][0] for n in ("draw", "read")} for arm in arms}
assert gains["grpo"]["draw"] > 0.06  # 8 seeds: 0.112 +- 0.011
assert gains["dpo"]["draw"] > 0.025  # 8 seeds: 0.057 +- 0.008
assert gains["control"]["draw"] < 0.03  # 8 seeds: -0.034 +- 0.026
assert all(abs(gains[arm]["read"]) < 0.04 for arm in ("dpo", "grpo", "control"))  # 8 seeds: none beyond 0.016

# %% [markdown]
# ### Drift, by kind of prompt
#
# Drawing moved, reading did not. Eq. (17), measured on each kind of prompt apart (HermesFlow's state metric), says how much the
# policy changed where nobody looked.

# %%
kinds = {"draw": draws, "describe": reads}
drift = {arm: [kl_by_kind(p, base, kinds) for p in arms[arm]] for arm in ("dpo", "grpo", "control")}
for arm, seeds in drift.items():
    print(f"{arm:8s} " + "   ".join(f"{k} {mean([row[k] for row in seeds]):.3f} nats" for k in seeds[0]))
moved = {k: mean([row[k] for row in drift["grpo"]]) for k in ("kl_draw", "kl_describe")}
assert moved["kl_draw"] > 5 * moved["kl_describe"]  # 8 seeds: 2.3 +- 1.0 against 0.012 +- 0.004

# %% [markdown]
# ### On captions never trained on (recorded)
#
# The same question at length, on held-out prompts, from the study of chapter 16
# (`python -m minivisrl.recipes.transfer`): 24 steps of GRPO, 100 steps of DPO, and the control.

# %%
book = json.loads((DATA / "results" / "transfer.json").read_text())
start = {name: value[0] for name, value in book["table"]["base"].items()}


def gain(method, ability):
    """Gain over the base of every seed of a recorded method."""
    return [run[ability] - start[ability] for run in book["runs"] if run["method"] == method]


methods = {"GRPO on drawing": "generation", "DPO on drawing": "generation by dpo", "GRPO on reading": "understanding"}
values = {name: {a: gain(m, a) for a in ("draw", "read")} for name, m in methods.items()}
intervals = {name: {a: mean_interval(v)[1:] for a, v in row.items()} for name, row in values.items()}
axes = lab.bars(
    values, ylabel="gain on held-out prompts", title="One reward, one ability (95 % intervals)", intervals=intervals
).axes[0]
axes.axhline(0, color="black", lw=0.8)
axes.set_ylim(-0.06, 0.12)
plt.show()
assert mean_interval(gain("generation", "draw")).low > 0 and mean_interval(gain("generation by dpo", "draw")).low > 0

# %%
# NBVAL_CHECK_OUTPUT
for name, method in methods.items():
    other = "draw" if method == "understanding" else "read"
    print(f"{name:16s} on the other ability: {verdict(gain(method, other))}")

# %% [markdown]
# Emu3's and X-Omni's way both work here, by about the same amount, 0.03 in half a minute of training, and reading does not feel it:
# it moves by a thousandth. The drift says the same, 2 nats per drawing against 0.06 per description. The survey's *stability of
# perception* is what we see. But chapter 16 found the same stability under joint training, where both gradients stood at right
# angles. So it is a fact about these two abilities in this model, and not a merit of rewarding one of them.
#
# For drawing under a reward for reading three decimals and five seeds cannot exclude a small loss; the verdict is about a margin
# of 0.03.

# %% [markdown]
# ### What to notice
#
# - All reading bars have one height. The drawing bars differ, and the control lies below the base: steps on meaningless rewards cost something.
# - The control drifts as far as GRPO, on both kinds of prompts. Drift says *that* a policy moved, not where to.
# - DPO on 96 pairs gains about half of what GRPO gains from fresh samples, here in fewer samples and more steps.

# %% [markdown]
# ## What can go wrong
#
# ### A style reward eats the caption, and reading does not notice
#
# The reward need not look at the caption at all. Suppose that somebody wants *warmer* pictures, and pays for red pixels. Twelve
# steps; beside it the control. **Predict** three numbers: redness, drawing, reading.

# %%
def redness(completions, **_):
    """Share of the pixels that are red."""
    image = torch.stack(list(completions))  # (N, 3, H, W)
    red = (image[:, 0] > 0.55) & (image[:, 1] < 0.45) & (image[:, 2] < 0.45)  # (N, H, W)
    return red.float().mean(dim=(1, 2)).tolist()


def looked_at(policy):
    """Abilities, and redness of sampled drawings in tenths, to fit the axis."""
    drawn = policy.rollout(draws, 16, torch.Generator().manual_seed(5)).outputs
    return abilities(policy) | {"red pixels x 10": 10 * mean(redness(drawn))}


styled = [by_grpo(seed, redness, steps=12) for seed in range(3)]
noise = [by_grpo(seed, redness, steps=12, collect=shuffled(act_and_judge)) for seed in range(3)]
looks = {"before": [base], "paid for red": styled, "control": noise}
seen = {arm: [looked_at(p) for p in policies] for arm, policies in looks.items()}
series = {arm: {name: [row[name] for row in seeds] for name in seeds[0]} for arm, seeds in seen.items()}
axes = lab.bars(series, ylabel="share", title="Paid for red: drawing forgets its captions, reading does not notice").axes[0]
axes.set_ylim(0, 1.1)
plt.show()
paid, idle = ({n: mean(v) for n, v in series[arm].items()} for arm in ("paid for red", "control"))
assert paid["red pixels x 10"] > 0.26  # base 0.11; 8 seeds: 0.40 +- 0.03; control 0.12 +- 0.02
assert paid["draw"] < idle["draw"] - 0.04  # base 0.64; 8 seeds: 0.47 +- 0.03; control 0.63 +- 0.05
assert abs(paid["read"] - series["before"]["read"][0]) < 0.04  # 8 seeds: 0.644 +- 0.006, before 0.649

# %%
dice = torch.Generator().manual_seed(1)
few = draws.rows(range(6))
before, after = (p.rollout(few, 1, torch.Generator().manual_seed(1)).outputs for p in (base, styled[0]))
lab.gallery(
    torch.stack([*before, *after]),
    list(few["prompt"]) * 2,
    columns=6,
    row_labels=("before", "after"),
    title="Sampled drawings before and after twelve steps for red",
)
plt.show()

# %% [markdown]
# The reward went up by a factor of three and a half, and the share of the captions that the drawings show fell from 0.64 to 0.47; the
# control, which made as many steps, lost a third of that. A color in a caption is the first thing to go. The log of this run shows a rising reward
# and nothing else. What betrays it is a metric that is *not* the reward, here `composition`. Reading would not have told: it is
# where it was, to the second decimal. The head that was not rewarded is no alarm for the head that was.
#
# ### Rehearsal
#
# If one fears for the other head, one can keep paying it: half of each batch reads, with its own verifier, while the drawings are paid
# for red. Same steps, same batch size.

# %%
both = Prompts.cat([draws, reads])


def rehearsing(completions, kind, **columns):
    """Red for drawings, the verifier for descriptions."""
    scores = blended(completions, kind=kind, **columns)
    rows = [i for i, each in enumerate(kind) if each == "draw"]
    for row, score in zip(rows, redness([completions[i] for i in rows]) if rows else [], strict=True):
        scores[row] = score
    return scores


kept = [looked_at(by_grpo(seed, rehearsing, steps=12, prompts=both)) for seed in range(3)]
for name in kept[0]:
    print(f"{name:16s} before {series['before'][name][0]:.2f}   red alone {paid[name]:.2f}   with rehearsal {mean([r[name] for r in kept]):.2f}")
assert mean([row["read"] for row in kept]) > paid["read"] + 0.06  # 8 seeds: 0.80 +- 0.02 against 0.64 +- 0.01

# %% [markdown]
# The reading that is paid for gets better, as it would without any drawing. The drawings become half as red, and keep more of
# their captions: half as many of them were paid for red in each batch. Rehearsal protects the *other* head. Against a reward that is
# wrong for its own head it does nothing; the cure for that is a better reward, or a KL to where one came from.

# %% [markdown]
# ## Exercises
#
# ### Exercise 17.1 | predict | 5 words | 10 min
# True or false?

# %%
prediction = {
    "a push on a code lowers the probability of every word at that position": ...,
    "if the features of drawing and reading are orthogonal, that push changes no answer": ...,
    "a negative price means that the other ability got better": ...,
    "a high reward for drawing shows that the captions are still drawn": ...,
    "the DPO loss of a policy that equals its reference depends on the pairs": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("17.1", check_statements, prediction)

# %% [markdown]
# <details><summary>Solution 17.1</summary>
#
# ```python
# prediction = {
#     "a push on a code lowers the probability of every word at that position": True,
#     "if the features of drawing and reading are orthogonal, that push changes no answer": True,
#     "a negative price means that the other ability got better": True,
#     "a high reward for drawing shows that the captions are still drawn": False,
#     "the DPO loss of a policy that equals its reference depends on the pairs": False,
# }
# # The third supposes that the trained ability gained: with a loss in the denominator the sign turns.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 17.2 | implement | 4 lines | 10 min
# Write (A2) for seeds: from the gains of the trained and of the other ability, one number per seed each, return forgetting
# (a mean) and price (the ratio *of the means*). Where the trained ability gained nothing, the price is `inf`, not a division by zero.

# %%
def price_of(trained, other):
    """Two lists of gains, one per seed -> (forgetting, price)."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("17.2", check_price, price_of)

# %% [markdown]
# <details><summary>Solution 17.2</summary>
#
# ```python
# def price_of(trained, other):
#     gained = sum(trained) / len(trained)
#     forgotten = -sum(other) / len(other)
#     return forgotten, forgotten / gained if gained > 0 else float("inf")
#     # The mean of ratios would be ruled by the seed that gained least.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 17.3 | find the bug | 4 lines | 15 min
# A colleague collects pairs for DPO on drawings: best and worst of four, by score. The loss falls, and drawing does not improve.
# Two bugs. Repair both.

# %%
def careless(outputs, scores, size):
    """Chosen and rejected of every group of `size` siblings."""
    chosen, rejected = [], []
    for start in range(0, len(outputs) - size, size):
        group = scores[start : start + size]
        chosen.append(outputs[group.index(max(group))])
        rejected.append(outputs[group.index(min(group))])
    return chosen, rejected


def collect_pairs(outputs, scores, size):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("17.3", check_pairs, collect_pairs)

# %% [markdown]
# <details><summary>Solution 17.3</summary>
#
# ```python
# def collect_pairs(outputs, scores, size):
#     chosen, rejected = [], []
#     for start in range(0, len(outputs), size):
#         group = scores[start : start + size]
#         chosen.append(outputs[start + group.index(max(group))])
#         rejected.append(outputs[start + group.index(min(group))])
#     return chosen, rejected
#     # The index of a sibling is not the index of a row: every pair was a pair of the first caption's drawings.
#     # And the last group was left out.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 17.4 | extend | 5 lines | 20 min
# Build batches with rehearsal: of every batch of `size` rows, the share `rehearse` (rounded) comes from `others`, the rest from `task`,
# each drawn without replacement from its own prompts. Return a function `draw(generator) -> Prompts`, task first.

# %%
def rehearsal(task, others, size, rehearse):
    """Prompts, Prompts, int, float -> draw(generator) -> Prompts of `size` rows."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("17.4", check_rehearsal, rehearsal)

# %% [markdown]
# <details><summary>Solution 17.4</summary>
#
# ```python
# def rehearsal(task, others, size, rehearse):
#     kept = round(size * rehearse)
#
#     def draw(generator):
#         parts = [(task, size - kept), (others, kept)]
#         return Prompts.cat([p.sample(count, generator) for p, count in parts if count])
#
#     return draw
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - train one head of a unified model by DPO or by GRPO, and say through which weights the other can be touched;
# - report forgetting, price and drift by kind of prompt, next to a control;
# - recognise a reward that pays for style and lets go of the caption.
#
# What the survey says and we did not test. Emu3 and VARGPT-v1.1 rank pictures by people and by learned models; ours are ranked by
# a program with noise ([`unified/rlhf-grpo`](../README.md) learns the reward from pairs). Their concern for perception comes from models whose
# reading is far better than ours, and may have more to lose. We trained a minute; drift that grows with training would not show.
#
# References: the survey, section 3.3.2 (arXiv 2508.08189, version 3). Emu3 (2409.18869), VARGPT-v1.1 (2504.02949), X-Omni
# (2507.22058). In the library: `minivisrl/paradigms/dpo.py`, `minivisrl/recipes/transfer.py`, `minivisrl/evaluation/balance.py`.
# The grid's cell: `minivisrl run unified/dpo`.
