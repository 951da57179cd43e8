# %% [markdown]
# # 2. RLHF: a judge learned from choices
#
# [previous: 1. Visual RL as an MDP](01_visual_rl_as_an_mdp.ipynb) | [contents](00_start_here.ipynb) |
# [next: 3. DPO](03_dpo.ipynb)
#
# **Question.** Can a taste that nobody can write down become a reward, and what happens when the policy learns the
# reward better than the taste?
#
# **Survey:** section 2.2.1, Eqs. (3), (4) (version 3). **Running time:** about a minute on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import json

import matplotlib.pyplot as plt
import torch
from checks import ch02
from checks.ch02 import (
    check_best_of_n,
    check_last_value,
    check_reward_model_loss,
    check_sweet_spot,
    check_what_changes,
    minimise,
)
from ipywidgets import SelectionSlider
from torch.nn.functional import logsigmoid

from minivisrl import DATA, lab
from minivisrl.evaluation.sets import evaluate
from minivisrl.lab import check
from minivisrl.mllm import VLMPolicy
from minivisrl.optimization import GRPO, GRPOConfig
from minivisrl.paradigms.offline import OfflineConfig, shuffled_pairs
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.paradigms.reward_model import bradley_terry_loss
from minivisrl.paradigms.rlhf import (
    LearnedReward,
    RewardModelConfig,
    pair_accuracy,
    pair_scores,
    rlhf_objective,
    train_reward_model,
)
from minivisrl.policy import frozen
from minivisrl.recipes.mllm import DescribeConfig, comparisons, describe_prompts
from minivisrl.recipes.mllm import truth_and_completeness as gold
from minivisrl.rewards import weighted
from minivisrl.worlds.annotators import PreferenceConfig, ceiling, preference, read

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# What makes a good description of a picture? You know one when you see one, but you would not like to write the program
# that scores it. RLHF only asks you to **choose between two**. It has three stages:
#
# 1. **Demonstrations.** A policy learns from examples by imitation. The result is $\pi_{SFT}$; ours is the shipped VLM.
# 2. **Comparisons.** People choose between two outputs of that policy, and a **reward model** $R_\phi$ learns to predict
#    their choice.
# 3. **Reinforcement.** PPO or GRPO raises the reward model's score, while a KL term holds the policy near $\pi_{SFT}$.
#
# Stage 2 rests on a model of choice by Bradley and Terry: A is preferred with probability
# $\sigma(R(p, y_A) - R(p, y_B))$. With a label $y$ = 1 if A was preferred and $y$ = 0 if B was, the loss is a cross-entropy:
#
# $$\mathcal L_{RM} = -\sum_{(p, y_A, y_B)} \big[ y \log \sigma(R_\phi(p, y_A) - R_\phi(p, y_B))
# + (1 - y) \log \sigma(R_\phi(p, y_B) - R_\phi(p, y_A)) \big] \tag{3}$$
#
# Stage 3 maximises the score, minus a price for the distance from where it began, plus a reminder of the pre-training:
#
# $$\max_\theta \; \mathbb E_{(p, y) \sim \pi_\theta}[R_\phi(p, y)]
# - \beta\, \mathbb E_p \mathrm{KL}(\pi_\theta(\cdot \mid p) \Vert \pi_{SFT}(\cdot \mid p))
# + \gamma\, \mathbb E_{x \sim D_{pre}}[\log \pi_\theta(x)] \tag{4}$$

# %% [markdown]
# | symbol | in words | in the code | shape |
# |---|---|---|---|
# | $R_\phi(p, y_A)$, $R_\phi(p, y_B)$ | scores of the two outputs | `chosen_scores`, `rejected_scores` | (B,) |
# | $y$ | the label; our pairs list the preferred one first, so it is 1 | order of `PreferencePairs` | |
# | $R_\phi$ | the reward model, as a reward function | `LearnedReward` | B texts to B numbers |
# | $\pi_{SFT}$ | the policy that training starts from, frozen | `ref_policy` | |
# | $\beta$ | price of a nat of distance | `kl_coef` | number |
# | $\gamma$ | weight of the pre-training term, not a discount | `pretrain_coef` | number |
# | $D_{pre}$ | texts of the pre-training | `draw` of `WithPretraining` | |
#
# **Where our code departs from print**, and why:
#
# 1. The winner comes first, and the sum is a mean.
# 2. A score is the output of a linear head at the *end* of the text, plus `likelihood` times the mean log-prob of the
#    text. The head alone (`likelihood` 0) would have to find out from choices what a picture shows.
# 3. Eq. (3) knows only differences. So scores are shifted and scaled to mean 0 and standard deviation 1 on the compared
#    outputs. Rewards in this chapter are in such standard deviations (sd).
# 4. We run stage 3 with $\gamma$ = 0.

# %% [markdown]
# ## By hand
#
# ### From counts to scores
#
# Two descriptions are compared ten times. If A wins 8 times, which difference of scores makes Eq. (3) smallest? **On
# paper:** the best $\sigma(d)$ is 8/10, so $d = \log(8/2)$. The loss that is left is the annotators' own doubt.

# %%
# NBVAL_CHECK_OUTPUT
for wins in (5, 8, 9):
    first = torch.tensor([0] * wins + [1] * (10 - wins))  # (10,): who won

    def loss_of(scores, first=first):
        return bradley_terry_loss(scores[first], scores[1 - first])[0]

    scores = minimise(loss_of, torch.zeros(2))  # (2,)
    by_hand = torch.tensor(wins / (10 - wins)).log()
    print(f"A wins {wins} of 10: difference {scores[0] - scores[1]:.4f}, by hand {by_hand:.4f}, "
          f"loss left {loss_of(scores):.4f}")  # fmt: skip

# %% [markdown]
# With 10 of 10 there is no smallest loss: the difference grows forever. And a common shift of both scores changes
# nothing. Keep these two in mind.
#
# Three descriptions now. In the **chain**, A beats B 2 to 1 and B beats C 3 to 1. The model then *must* say that A beats C
# with odds 6 to 1, for odds multiply. In the **cycle**, A beats B, B beats C, and C beats A, all 2 to 1. Tastes may go in
# circles, if each choice looks at something else. **Predict** the scores of the cycle.

# %%
# NBVAL_CHECK_OUTPUT
A, B, C = 0, 1, 2
chain = [(A, B)] * 2 + [(B, A)] + [(B, C)] * 3 + [(C, B)] + [(A, C)] * 6 + [(C, A)]
cycle = ([(A, B)] * 2 + [(B, A)]) + ([(B, C)] * 2 + [(C, B)]) + ([(C, A)] * 2 + [(A, C)])
for name, choices in (("chain", chain), ("cycle", cycle)):
    won, lost = torch.tensor(choices).T
    scores = minimise(lambda s, w=won, b=lost: bradley_terry_loss(s[w], s[b])[0], torch.zeros(3))
    loss, _ = bradley_terry_loss(scores[won], scores[lost])
    print(name, "scores", " ".join(f"{s + 0.0:.3f}" for s in (scores - scores[C]).abs()), f" loss {loss:.4f}")

# %% [markdown]
# The chain gets log 6, log 3 and 0. The cycle gets three equal scores, and a loss of log 2, which is that of a coin. A
# single number per output cannot go in circles. What people prefer against it is lost in stage 2, and no later
# stage brings it back.
#
# ### What Eq. (4) is aiming at
#
# One picture, five descriptions, each with a reward. With $\gamma$ = 0 the best policy is known in closed form, and
# [chapter 3](03_dpo.ipynb) derives it: $\pi^*(y) \propto \pi_{SFT}(y)\, e^{R(y) / \beta}$. We climb the library's
# `rlhf_objective` and compare. In the last row $\gamma$ is 0.1, and the pre-training consists of the first description.
# **Predict:** what does that do to the first column?

# %%
# NBVAL_CHECK_OUTPUT
ref, gold_rewards = torch.tensor(ch02.REF).double(), torch.tensor(ch02.GOLD).double()  # (V,), (V,)


def climb(kl_coef, pretrain_coef=0.0):
    """The policy (V,) that maximises Eq. (4). The factor V turns a mean over outputs into an expectation."""

    def minus(logits):
        p = logits.softmax(dim=0)  # (V,)
        earned, moved = len(p) * p * gold_rewards, len(p) * p * (p / ref).log()  # (V,), (V,)
        return -rlhf_objective(earned, moved, kl_coef, p[:1].log(), pretrain_coef)[0]

    return minimise(minus, ref.log()).softmax(dim=0)


print(" " * 22 + "  ".join(f"{name:>12.12s}" for name in ch02.OUTPUTS))
for kl_coef, pretrain_coef in ((1.0, 0.0), (0.3, 0.0), (0.1, 0.0), (0.1, 0.1)):
    print(f"beta {kl_coef}, gamma {pretrain_coef}:  ", "  ".join(f"{p:12.3f}" for p in climb(kl_coef, pretrain_coef)))
    if pretrain_coef == 0:
        print("   closed form:        ", "  ".join(f"{p:12.3f}" for p in ch02.optimum(kl_coef, ch02.GOLD)))

# %% [markdown]
# Now the reward comes from a model, and the model has a hole: nobody ever compared *one thing, five times*, and it
# happens to score that highest. Move $\beta$ down. The **proxy** is what the reward model says of the best policy, the
# **gold** is what the annotators would say. Where is gold highest?

# %%
betas = [4.0, 2.0, 1.0, 0.5, 0.3, 0.2, 0.15, 0.1, 0.08, 0.05, 0.02]
lab.explore(ch02.overoptimisation_figure, kl_coef=SelectionSlider(options=betas, value=0.1, description="beta"))

# %% [markdown]
# There is no training in this figure, and no bad luck. The exact optimum of a slightly wrong reward gets better at first as
# $\beta$ falls, and then worse. This is over-optimisation. Later we meet it in the VLM.

# %% [markdown]
# ## Be the annotator
#
# The shipped VLM looks at pictures of 32 x 32 pixels and describes them, sloppily. Here are twelve of them with two
# descriptions each. Click on the better one. (If nobody clicks, a scripted annotator does the work in the next cell, which
# is how this page was made.)

# %%
TASK = DescribeConfig(candidates=8, max_tokens=20)  # of 8 descriptions, the best and the worst make a pair


def fixed(seed):
    """A generator for what must be the same in every run."""
    return torch.Generator().manual_seed(seed)


def base_policy():
    """The shipped model: stage 1 is done."""
    policy = VLMPolicy.load(DATA / "checkpoints" / "vlm")
    policy.max_tokens = TASK.max_tokens
    return policy


base = base_policy()
scenes = describe_prompts(512, "train", fixed(1))
told = base.rollout(scenes, 2, fixed(2)).outputs  # row 2i and 2i + 1 describe scene i
differ = [i for i in range(512) if told[2 * i] != told[2 * i + 1]]
offered, first, second = scenes.rows(differ), [told[2 * i] for i in differ], [told[2 * i + 1] for i in differ]
desk = ch02.Desk(offered["image"][:12], first[:12], second[:12])
desk.show()

# %% [markdown]
# The **scripted annotator** wants a description to be true (weight 1) and complete (weight 2); a word costs 0.01. Truth is
# the share of the named objects that are there, completeness the share of the objects there that are named. She chooses by
# chance: with a `noise` of 0.5, half a point more makes the odds e to 1. In stage 2 we forget all this, and look at
# her choices only.
#
# Can it be learned back? Take three facts about a description, and let a score be their weighted sum. Eq. (3) on the choices
# gives three weights. They should come out near 1/0.5 = 2, 2/0.5 = 4 and -0.01/0.5 = -0.02: **the unit of a reward is the
# annotator's doubt.** A small penalty keeps the weights finite where ten of ten choices agree. **Predict:** how many choices
# does it take?

# %%
taste = PreferenceConfig(noise=0.5)


def chances(cfg):
    """(N,): probability that the scripted annotator prefers the first description."""
    asked = zip(first, second, offered["scene"], strict=True)
    return torch.tensor([preference(a, b, scene, cfg) for a, b, scene in asked])


def choices_of(cfg, seed):
    """(N,): 0 where she prefers the first description, 1 where she prefers the second."""
    return (torch.rand(len(first), generator=fixed(seed)) > chances(cfg)).long()


def facts(texts):
    """(N, 3): truth, completeness and number of words of each description."""
    readings = [read(text, scene) for text, scene in zip(texts, offered["scene"], strict=True)]
    return torch.tensor([[r.truth, r.completeness, r.words] for r in readings]).double()


gaps = facts(first) - facts(second)  # (N, 3)

# %%
def fit_taste(labels):
    """(3,): the weights that make Eq. (3) smallest on the first len(labels) pairs."""
    won = gaps[: len(labels)] * (1 - 2 * torch.as_tensor(labels))[:, None]  # (n, 3): winner minus loser
    nothing, penalty = torch.zeros(len(won)), 0.02 / len(won)
    return minimise(lambda w: bradley_terry_loss(won @ w, nothing)[0] + penalty * (w @ w), torch.zeros(3))


script = choices_of(taste, seed=0)
mine = desk.labels(script[:12].tolist())
print(f"{desk.labelled} of 12 labels are yours, the script gave the rest")
for labels in (mine, script[:100], script):
    truth, complete, word = fit_taste(labels)
    print(f"{len(labels):3d} labels: truth {truth:+.2f}, completeness {complete:+.2f}, a word {word:+.3f}")
alike = torch.corrcoef(gaps.T)[0, 1]
print(f"truth and completeness go together, correlation {alike:.2f}")
assert alike > 0.7  # no seed: the pairs are the same in every run; 256 and 1024 scenes: 0.86, 0.84
assert truth + complete > 3.5  # 6 is right; 8 seeds: 5.75 +- 0.56
assert abs(word) < 0.5  # -0.02 is right; 8 seeds: -0.04 +- 0.12

# %% [markdown]
# A dozen choices give hardly any idea of the weights: over eight seeds the standard deviation of either is about 2. With all
# of them, some 460, truth comes out at 1.6 $\pm$ 0.7 and completeness at 4.1 $\pm$ 1.0 (8 seeds). Their sum is better known,
# 5.7 $\pm$ 0.6, for a reason that has nothing to do with the annotator: in *these* pairs the truer description is mostly the
# more complete one as well. **What was never set against each other cannot be told apart.** And all this although we handed
# the model the three facts. A reward model for pictures has to find them in pixels.

# %% [markdown]
# ## Code: show once, prove equal, import
#
# A reward model is the policy with one more linear layer. It reads the feature at the end of the text, which has seen
# picture and text, and Eq. (3) pulls the scores of a pair apart.

# %%
def reward_model_score(model, prompts, texts, likelihood=1.0):
    """R_phi(p, y), (N,): the head's value at the end of a text, plus its mean log-prob."""
    rollout = model.encode(prompts, texts, torch.Generator())
    forward = model.evaluate_actions(rollout, values=True)  # values and logprobs: (N, T)
    length = rollout.mask.sum(dim=1)  # (N,): tokens, the end included
    last = forward.values[torch.arange(len(texts)), length.long() - 1]  # (N,)
    return last + likelihood * (forward.logprobs * rollout.mask).sum(dim=1) / length


# %%
# NBVAL_CHECK_OUTPUT
model = VLMPolicy.load(DATA / "checkpoints" / "vlm_reward")  # the shipped reward model
few, texts = offered.rows(range(4)), first[:4]
with torch.no_grad():
    ours = reward_model_score(model, few, texts)  # (4,)
columns = {"image": few["image"], "scene": few["scene"], "answer": few["answer"]}
theirs = torch.tensor(LearnedReward(model)(texts, few["prompt"], **columns))
print("same scores:", torch.allclose(ours, theirs, atol=1e-4))
a, b = torch.tensor([1.0, 0.0, -2.0]), torch.tensor([0.0, 0.0, 3.0])  # scores of winners and of losers
by_hand = -logsigmoid(a - b).mean()
print(f"same loss:   {by_hand:.4f} and {bradley_terry_loss(a, b)[0]:.4f}")

# %% [markdown]
# ## Experiment, stage 2: train a reward model
#
# The annotator now reads eight descriptions of each of 192 scenes and names the best and the worst. Her choices are easier
# to predict than above, and her noise is 0.1. We keep 128 pairs of held-out scenes. Our reward model has seconds of
# computing, so it is small in every respect: 12 steps of 16 pairs, and the head alone (`likelihood` 0), so that
# everything it knows about good and bad comes from the labels. Three seeds. The **control** gets labels by coin.
#
# Beside it stand two judges without any label: one **counts words**, the other takes the mean log-prob under the **base**
# itself. Then the shipped reward model, made of 4,096 pairs and 600 steps by the recipe `pretrain vlm_reward`. **Predict**
# the order of the five.

# %%
pairs = comparisons(base, TASK, 192, "train", fixed(3))
judged = comparisons(base, TASK, 128, "heldout", fixed(4))
small = RewardModelConfig(steps=12, likelihood=0.0, trainer=OfflineConfig(batch_size=16, learning_rate=6e-4))
judges = [train_reward_model(base, pairs, small, fixed(seed)) for seed in range(3)]
coins = [train_reward_model(base, shuffled_pairs(pairs, fixed(seed)), small, fixed(seed)) for seed in range(3)]


# %%
def counts_words(completions, **_):
    """A judge without a model: the more words, the better."""
    return [float(len(text.split())) for text in completions]


shipped = LearnedReward(frozen(model)).standardised(judged)
bare = base_policy()
bare.add_value_head(fixed(0))
bare.value_head.requires_grad_(False).weight.zero_()  # a head that says 0: only the log-prob is left
named = {"control, coin labels": coins, "counts words": [counts_words], "reward, 192 pairs": judges,
         "reference, the base's log-prob": [LearnedReward(bare)], "shipped, 4096 pairs": [shipped]}  # fmt: skip
splits = {"training pairs": pairs, "held-out pairs": judged}
accuracy = {name: {s: [pair_accuracy(r, data) for r in rs] for s, data in splits.items()} for name, rs in named.items()}
accuracy["her own taste"] = {split: ceiling(data, TASK.annotator) for split, data in splits.items()}

# %%
title = "Held-out, 192 pairs teach a head no more than counting words (3 seeds)"
figure = lab.bars(accuracy, ylabel="share of pairs called as she did", title=title)
figure.axes[0].set_ylim(0, 1.75)  # room for the legend
figure.axes[0].set_yticks([0, 0.25, 0.5, 0.75, 1])
plt.show()
heldout_accuracy = {name: sum(a["held-out pairs"]) / len(a["held-out pairs"]) for name, a in accuracy.items() if name != "her own taste"}
print({name: round(value, 2) for name, value in heldout_accuracy.items()})
assert 0.6 < heldout_accuracy["reward, 192 pairs"] < 0.71  # mean of 3; 8 seeds: 0.65 +- 0.02
assert abs(heldout_accuracy["counts words"] - 0.65) < 0.17  # no seed; a share of 128 pairs has a standard error of 0.04
assert heldout_accuracy["control, coin labels"] < 0.7  # mean of 3; control, 8 seeds: 0.51 +- 0.08
assert heldout_accuracy["reference, the base's log-prob"] > 0.7  # no seed; 0.84, standard error 0.03
assert heldout_accuracy["shipped, 4096 pairs"] > 0.82  # no seed; 0.92, standard error 0.02; its card says 0.91


# %%
def likes_words(judge):
    """Correlation of a judge's scores with the number of words, over the held-out descriptions."""
    both = [torch.tensor(pair_scores(r, judged)).flatten() for r in (judge, counts_words)]  # (2B,) each
    return torch.corrcoef(torch.stack(both))[0, 1].item()


lean = {name: [likes_words(judge) for judge in named[name]] for name in ("reward, 192 pairs", "shipped, 4096 pairs", "control, coin labels")}
for name, correlations in lean.items():
    print(f"{name}: correlation with the number of words", " ".join(f"{r:+.2f}" for r in correlations))
assert sum(lean["reward, 192 pairs"]) / 3 > 0.38  # mean of 3; 8 seeds: 0.56 +- 0.07
assert lean["shipped, 4096 pairs"][0] < 0.38  # no seed; 0.16

# %% [markdown]
# **After 192 pairs the head is no better than a word count.** It is right in 0.65 $\pm$ 0.02 of the held-out pairs (8 seeds),
# counting words in 0.64, and its scores go with the number of words (correlation 0.56 $\pm$ 0.07). The annotator is not to
# blame: who names more things is more complete and uses more words, so length is the cheapest thing in her choices. The
# second mark is what the base knows without labels, 0.84; the shipped model begins there and ends at 0.92. The third mark
# is 1.00, the annotator's own consistency.
#
# The control is a lesson of its own. Its heads learned nothing, and 128 tosses would give 0.50 $\pm$ 0.04. But over eight seeds
# they spread twice as far, 0.51 $\pm$ 0.08: whoever judges by a taste, even one thrown together at random,
# is right or wrong in many pairs at once. In the two lucky seeds it was hardly a taste for length, as the correlations show. One
# lucky control proves little, and one lucky run proves as little.

# %% [markdown]
# ## Experiment, stage 3: please the judge
#
# Eq. (4) on the VLM, with the shipped reward model, $\beta$ = 0.04 and GRPO as the optimiser: eight descriptions of each
# picture, and those that score above their siblings become likelier ([chapter 6](06_grpo.ipynb)). `weighted` adds the
# **gold** metric with weight 0: the harmonic mean of truth and completeness, read off the scene graph. It is logged,
# and it never touches the training. Three seeds, 20 steps of 4 pictures. The **control** shuffles the rewards. One more
# rival: the base **cooled** to a temperature of 0.7, without any training. **Predict:** will gold rise as much as the proxy?

# %%
train_prompts, heldout = describe_prompts(512, "train", fixed(5)), describe_prompts(128, "heldout", fixed(6))


def train(seed, judge, kl_coef=0.04, collect=act_and_judge):
    """20 steps of GRPO from the base against a reward model; returns the policy and a row of statistics per step."""
    policy, reward = base_policy(), weighted({judge: 1.0, gold: 0.0})
    cfg = OnlineConfig(batch_size=4, group_size=8, learning_rate=3e-4)
    grpo = GRPO(GRPOConfig(kl_coef=kl_coef))
    trainer = OnlineTrainer(policy, train_prompts, reward, grpo, cfg, fixed(seed), collect=collect)
    return policy, [trainer.step() for _ in range(20)]


runs = [train(seed, shipped) for seed in range(3)]

# %%
controls = [train(seed, shipped, collect=shuffled(act_and_judge)) for seed in range(3)]


# %%
def measure(policy, judge=shipped):
    """Held-out: gold of sampled and of greedy descriptions, and the proxy of the sampled ones."""
    drawn = evaluate(policy, heldout, gold, samples=2, generator=fixed(7))
    proxy = drawn.scored_by(judge)
    return {"gold, sampled": drawn.score, "gold, greedy": evaluate(policy, heldout, gold).score,
            "proxy, in sd": sum(proxy) / len(proxy), "words": sum(drawn.lengths()) / len(proxy)}  # fmt: skip


cooled = base_policy()
cooled.temperature = 0.7
control = "control, shuffled rewards"
series = {"before": [base], "20 steps of GRPO": [p for p, _ in runs], control: [p for p, _ in controls], "base at temperature 0.7": [cooled]}
measured = {name: [measure(policy) for policy in policies] for name, policies in series.items()}
mean = {name: {k: sum(row[k] for row in rows) / len(rows) for k in rows[0]} for name, rows in measured.items()}

# %%
shown = ("gold, sampled", "gold, greedy", "proxy, in sd")
bars = {name: {k: [row[k] for row in rows] for k in shown} for name, rows in measured.items()}
title = "The proxy rises; sampled gold hardly, greedy gold falls (3 seeds)"
figure = lab.bars(bars, ylabel="held-out score", title=title)
figure.axes[0].set_ylim(-0.8, 1.4)  # room for the legend
plt.show()
assert mean["20 steps of GRPO"]["proxy, in sd"] > 0.26  # base 0.04; mean of 3; 8 seeds: 0.44 +- 0.08
assert mean["20 steps of GRPO"]["gold, greedy"] < 0.68  # base 0.705; mean of 3; 8 seeds: 0.56 +- 0.05
assert mean["20 steps of GRPO"]["gold, sampled"] > 0.44  # base 0.49; mean of 3; 8 seeds: 0.53 +- 0.04; base at 0.7: 0.59

# %% [markdown]
# This was a short run. The recorded results of the full ones are in the repository: five seeds for each recipe, with
# batches of 32, and 512 held-out scenes.

# %%
recorded = json.loads((DATA / "results" / "grid.json").read_text())["cells"]
for name in ("mllm/rlhf-grpo", "mllm/rlhf-ppo"):
    cell = recorded[name]
    greedy = cell["others"]["greedy"]
    print(f"{name}: gold, sampled {cell['before']:.2f} -> {cell['after']:.2f}, "
          f"greedy {greedy['before']:.2f} -> {greedy['after']:.2f}, control {max(cell['control_gains']):+.2f}")  # fmt: skip
    assert cell["gain"] > 0.1 > max(cell["control_gains"])

# %% [markdown]
# ### What to notice
#
# - **The proxy rises, by 0.4 sd over eight seeds, and sampled gold hardly**: 0.53 $\pm$ 0.04, from 0.49. Greedy descriptions get
#   worse (asserted): 80 pictures at a high learning rate. The control loses ground on all three, here and in the recorded runs.
# - The cooled base reaches 0.59, more than any of our eight seeds, and cost nothing. Before you credit a reward, ask what a
#   change of temperature would have bought.
# - At full length, with batches of 32 and a lower learning rate, both recipes gain 0.21 or more (recorded), beyond what cooling
#   gave here, and greedy descriptions gain a little.

# %% [markdown]
# ## What can go wrong
#
# ### Too much of a weak judge
#
# Now the other reward model: our own, from 192 pairs. Each seed gets the judge of its number. Pictures, optimiser, steps
# and $\beta$ are those of the runs above; **the judge is the only change**. **Predict** proxy and gold.

# %%
weak_runs = [train(seed, judges[seed]) for seed in range(3)]
panels = {"judge of 192 pairs": [rows for _, rows in weak_runs], "shipped judge": [rows for _, rows in runs]}
ch02.against_kl(panels, "reward/truth_and_completeness", "As the weak judge's score rises, gold falls (3 seeds)")
plt.show()

# %%
weak_after = [measure(policy, judge) for (policy, _), judge in zip(weak_runs, judges, strict=True)]
told = evaluate(base, heldout, gold, samples=2, generator=fixed(7))
for judge, end in zip(judges, weak_after, strict=True):
    start = mean["before"] | {"proxy, in sd": sum(told.scored_by(judge)) / len(told.outputs)}
    print(", ".join(f"{name} {start[name]:.2f} -> {end[name]:.2f}" for name in start))
far = {name: sum(ch02.distances(rows)[-4:].mean() for _, rows in some) / 3 for name, some in (("weak", weak_runs), ("shipped", runs))}
print(f"nats from the base: {far['weak']:.1f} with the weak judge, {far['shipped']:.1f} with the shipped one")
weak = {name: sum(row[name] for row in weak_after) / 3 for name in weak_after[0]}
assert weak["proxy, in sd"] > 0.2  # mean of 3; 8 seeds: 0.76 +- 0.24
assert weak["gold, sampled"] < 0.46  # base 0.49; mean of 3; 8 seeds: 0.33 +- 0.06; shipped judge 0.53 +- 0.04
assert weak["gold, greedy"] < 0.49  # base 0.705; mean of 3; 8 seeds: 0.31 +- 0.08; shipped judge 0.56 +- 0.05
assert far["weak"] > far["shipped"]  # 8 seeds: 6.2 +- 2.4 and 2.0 +- 0.4; log of the ratio 1.07 +- 0.44

# %%
scenes = heldout.rows(range(3))
told = [text for policy in (base, runs[1][0], weak_runs[1][0]) for text in policy.predict(scenes)]
title = "Likeliest descriptions, seed 1: the weak judge gets words, not objects"
lab.gallery(torch.cat([scenes["image"]] * 3), told, columns=3, row_labels=("before", "shipped", "192 pairs"), title=title)
plt.show()

# %% [markdown]
# The judge is happier and the annotator is not. The weak judge leaned to words, and it gets them: 11.2 $\pm$ 2.4 words a description
# over eight seeds, from 7.1, where the shipped judge ends at 8.9 $\pm$ 0.8. Gold falls, for sampled and for greedy descriptions.
# Nothing is wrong with the optimiser, and the logged reward is the picture of a success. What betrays it? Gold does, but a
# real run has no gold. The **distance from the base** does, and everybody can log it: three times that of the shipped judge.
# So does a look at the texts. The KL term was on all along, with $\beta$ = 0.04, and did not prevent it.

# %% [markdown]
# ### A biased annotator
#
# A reward model can only be as good as the choices. Suppose that the annotator takes length for effort: a word is worth 0.2
# to her. We fit the three weights to half of her choices and test them on the other half, first on **her** choices, then on
# **gold**. **Predict:** which of the two tests complains?

# %%
better = (torch.tensor(gold(first, offered["scene"])) - torch.tensor(gold(second, offered["scene"]))).sign()  # (N,)
half = len(first) // 2


def tested(cfg, seed):
    """Weight of a word; share of her other choices, and of gold's, that the fitted taste meets."""
    labels = choices_of(cfg, seed)
    weights = fit_taste(labels[:half])
    says, hers, golds = (gaps[half:] @ weights).sign(), 1 - 2 * labels[half:], better[half:]
    met = [(0.5 + 0.5 * says * side)[side != 0].mean().item() for side in (hers, golds)]
    return torch.tensor([weights[2].item(), *met])  # (3,)


biased = PreferenceConfig(noise=0.5, length_bias=0.2)
tests = {name: torch.stack([tested(cfg, seed) for seed in range(8)]).mean(dim=0) for name, cfg in (("honest", taste), ("biased", biased))}
for name, (word, hers, golds) in tests.items():
    print(f"{name}: a word {word:+.2f}, her held-out choices met {hers:.2f}, gold met {golds:.2f}")
assert tests["biased"][0] > 0.2 and tests["honest"][0] < 0.15  # mean of 8; 24 seeds: 0.39 +- 0.14, -0.05 +- 0.12 each
assert tests["biased"][1] > 0.77  # mean of 8; 24 seeds: 0.80 +- 0.02 each; honest 0.78 +- 0.02
assert tests["honest"][2] > 0.94 and tests["biased"][2] < 0.83  # mean of 8; 24 seeds: 0.99 +- 0.03, 0.77 +- 0.04 each

# %% [markdown]
# Her own held-out choices are met as well as the honest annotator's, and **no test on them will ever complain**: the bias is
# in the labels of the test as well. Only gold drops. And the accuracy looks low in both cases for a harmless reason: her
# noise, which nobody can predict.
#
# An **audit** needs no model: how often is the longer description preferred? Half would be no measure of honesty, for
# who names more needs more words. So the honest value has to come from gold, on some pairs at least.

# %%
def audit(chances):
    """Share of pairs in which the longer description is preferred, and gold's choice; ties left out."""
    return [(0.5 + 0.5 * sign * (2 * chances - 1))[sign != 0].mean().item() for sign in (gaps[:, 2].sign(), better)]


judged_by = {"gold": 0.5 + 0.5 * better, "honest": chances(taste), "biased": chances(biased)}
audits = {name: audit(p) for name, p in judged_by.items()}
for name, (longer, agrees) in audits.items():
    print(f"{name}: prefers the longer one {longer:.2f}, agrees with gold {agrees:.2f}")
assert audits["biased"][0] - audits["honest"][0] > 0.12  # no seed; 8 other draws of pairs: 0.146 +- 0.006
assert abs(audits["honest"][0] - audits["gold"][0]) < 0.11  # 8 other draws: 0.03 +- 0.02
assert audits["honest"][1] - audits["biased"][1] < 0.08  # 8 other draws: 0.03 +- 0.01

# %% [markdown]
# The share of longer winners betrays her: 0.74, where gold prefers the longer one in 0.55 and the honest annotator in 0.59.
# Agreement with gold betrays next to nothing, for her noise costs far more of it than her bias. But **noise averages out in
# stage 2, and a bias does not**: the honest labels, noisy as they are, lead to a taste that meets gold in 0.99 of the pairs, and
# the biased ones to 0.80.

# %% [markdown]
# ## Exercises
#
# ### Exercise 2.1 | predict | 5 words | 5 min
# Three pairs of scored descriptions, with labels 1, 1, 0. After which changes is Eq. (3), as a mean over pairs, what it was
# (`True`)?

# %%
prediction = {
    "5 is added to every score": ...,
    "5 is added to both scores of the first picture only": ...,
    "every score is doubled": ...,
    "A and B change places, and every label y becomes 1 - y": ...,
    "every pair is labelled once more, the other way round": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("2.1", check_what_changes, prediction)

# %% [markdown]
# <details><summary>Solution 2.1</summary>
#
# ```python
# prediction = {
#     "5 is added to every score": True,
#     "5 is added to both scores of the first picture only": True,
#     "every score is doubled": False,
#     "A and B change places, and every label y becomes 1 - y": True,
#     "every pair is labelled once more, the other way round": False,
# }
# # The second line matters: a reward model says nothing about which *picture* is easier to describe. GRPO does not
# # ask either, for it compares siblings. A critic would have to learn it.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2.2 | implement | 2 lines | 10 min
# Write Eq. (3) as printed, with the label, and as a mean. A label may be a share, such as 0.7 of the annotators. The loss must stay
# finite where scores are 500 apart (`logsigmoid` is imported).

# %%
def reward_model_loss(scores_a, scores_b, y):
    """Eq. (3) as a mean; everything (B,)."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("2.2", check_reward_model_loss, reward_model_loss)

# %% [markdown]
# <details><summary>Solution 2.2</summary>
#
# ```python
# def reward_model_loss(scores_a, scores_b, y):
#     gap = scores_a - scores_b  # (B,)
#     return -(y * logsigmoid(gap) + (1 - y) * logsigmoid(-gap)).mean()
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2.3 | find the bug | 2 lines | 10 min
# A reward model scored every description right when it was alone, and wrong when longer ones were in the same batch. Shorter
# rows are padded at the end, and `mask` is 1 on a text's own tokens. Repair the function.

# %%
def buggy_last_value(values, mask):
    """(N, T), (N, T) -> (N,): the head's value at the end of each text."""
    return values[:, -1]


def last_value(values, mask):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("2.3", check_last_value, last_value)

# %% [markdown]
# <details><summary>Solution 2.3</summary>
#
# ```python
# def last_value(values, mask):
#     last = mask.sum(dim=1).long() - 1  # (N,)
#     return values.gather(1, last[:, None]).squeeze(1)
#     # In training every batch has its own padding, so the bug looks like noise: the loss still falls.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2.4 | ablate | 3 lines | 10 min
# Back to the five descriptions and the reward with a hole. `outcome(kl_coef)` returns proxy, gold and KL of the best policy.
# From a list of weights, return the one that is best for the proxy and the one that is best for gold. Then try a list of
# your own: how much of the proxy do you have to leave on the table?

# %%
outcome = ch02.outcome  # kl_coef -> proxy, gold, nats from the reference


def sweet_spot(kl_coefs):
    """(the weight with the highest proxy, the weight with the highest gold)."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("2.4", check_sweet_spot, sweet_spot)

# %% [markdown]
# <details><summary>Solution 2.4</summary>
#
# ```python
# def sweet_spot(kl_coefs):
#     proxy, gold = (max(kl_coefs, key=lambda c, i=i: outcome(c)[i]) for i in (0, 1))
#     return proxy, gold
#     # The proxy always wants the smallest weight. Gold peaks near 0.2, at 0.69, where the proxy is 0.98 of 1.30.
#     # Without gold nobody can see that peak, which is why someone has to keep labelling.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 2.5 | extend | 4 lines | 20 min
# RLHF without training: draw n outputs and keep the one that the proxy likes best. For a list of outputs with probabilities
# `ref` and different rewards `proxy`, compute the distribution of the winner exactly. Hint: the best of n is at most as good
# as y if all n are.

# %%
def best_of_n(ref, proxy, n):
    """(V,), (V,) -> (V,): probability that an output is the best of n independent draws."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("2.5", check_best_of_n, best_of_n)

# %% [markdown]
# <details><summary>Solution 2.5</summary>
#
# ```python
# def best_of_n(ref, proxy, n):
#     order = proxy.argsort()  # from the worst to the best
#     at_most = ref[order].cumsum(dim=0)  # (V,)
#     best = torch.empty_like(ref)
#     best[order] = at_most**n - (at_most - ref[order]) ** n
#     return best
#     # It over-optimises as well, but slowly: its KL is at most log n - (n - 1) / n, about 1.8 nats for n = 16.
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - turn counts into scores with Bradley and Terry, and say what a score cannot express;
# - read an accuracy of a reward model between marks: what is known without labels, what a word count knows, and the
#   annotator's own consistency;
# - say what Eq. (4) aims at, and why the aim itself is wrong when the reward is;
# - recognise over-optimisation: proxy up, gold down, and a large distance from the start.
#
# What we did not test. The survey's stage 3 is PPO; we used GRPO here, and the recorded run of `mllm/rlhf-ppo` is the same
# with PPO. We did not train with the third term of Eq. (4); `WithPretraining` has it. No person labelled anything in
# the stored version of this page: all annotators were programs, and they know the scene.
#
# References: the survey, section 2.2.1 (arXiv 2508.08189, version 3). Over-optimisation against the KL: arXiv 2210.10760. In
# the library: `minivisrl/paradigms/reward_model.py`, `rlhf.py`, `worlds/annotators.py`. Runs at full length:
# `minivisrl run mllm/rlhf-grpo`.
