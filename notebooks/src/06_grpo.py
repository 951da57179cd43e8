# %% [markdown]
# # 6. GRPO: siblings instead of a critic
#
# [previous: 0. Start here](00_start_here.ipynb) | [contents](00_start_here.ipynb) |
# [next: back to the contents](00_start_here.ipynb)
#
# **Question.** Can the other answers to the same question replace a learned critic, and when do they have
# nothing to say?
#
# **Survey:** section 2.3.2, Eqs. (11), (12), (13) (version 3). **Running time:** about a minute on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import statistics
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from checks.ch06 import (
    check_clip_effect,
    check_collect_live,
    check_edits,
    check_leave_one_out,
    check_objective,
    dead_share,
    group_size_figure,
)
from torch import nn
from torch.distributions import Categorical

from minivisrl import DATA, lab
from minivisrl.evaluation.sets import evaluate
from minivisrl.lab import check
from minivisrl.mllm import VLMPolicy
from minivisrl.optimization import GRPO, KL_ESTIMATORS, Batch, GRPOConfig, group_advantages, grpo_loss, kl_exact
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.policy import ActionStats, Policy
from minivisrl.rewards import exact_match
from minivisrl.rollout import Prompts, Rollout
from minivisrl.worlds.questions import question_prompts

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# A policy gradient pushes up what did better than expected. The word *expected* needs a number, the **baseline**.
# PPO learns it: a second network, the critic, predicts the reward. GRPO measures it: it answers the same question
# G times and compares the answers with each other. The G answers to one prompt are **siblings**, and together
# they are a **group**. This is the beat that we call *Compare*. Act, Judge and Improve stay as they are.
#
# $$\hat A_{i,t} = \tilde r_{i,t} = \frac{r_{i,t} - \mathrm{mean}(r_{\cdot,t})}{\mathrm{std}(r_{\cdot,t})} \tag{11}$$
#
# | symbol | in the code | shape |
# |---|---|---|
# | $r$ | `rewards` | (B, G): one row per prompt, one reward per completion |
# | $G$ | `group_size` | number |
# | $\hat A$, $\tilde r$ | `advantages` | (B, G), then (N,) with N = B * G |
# | mean, std | over `dim=1` | (B, 1) |
#
# The survey writes an index $t$ on the reward and says beside it that a reward belongs to a whole completion. We
# follow the words: one reward and one advantage per completion, and all its tokens share it.

# %% [markdown]
# $$\mathcal L_{GRPO} = \mathbb E_p \frac 1G \sum_{i=1}^G \frac{1}{|a_i|} \sum_t
# \min\big(\rho_{i,t} \hat A_{i,t},\; \mathrm{clip}(\rho_{i,t}, 1-\epsilon, 1+\epsilon)\, \hat A_{i,t}\big)
# - \beta\, \mathbb E_p D_{KL}(\pi_\theta \Vert \pi_{ref}) \tag{12}$$
#
# $$\hat D_{KL}(p) = \frac 1G \sum_i \frac{1}{|a_i|} \sum_t
# \log \frac{\pi_\theta(a_{i,t} \mid s_{i,t})}{\pi_{ref}(a_{i,t} \mid s_{i,t})} \tag{13}$$
#
# | symbol | in the code | shape |
# |---|---|---|
# | $\log \pi_\theta$ | `logprobs`: current weights, with gradient | (N, T) |
# | $\log \pi_{old}$ | `old_logprobs`: the weights that sampled | (N, T) |
# | $\log \pi_{ref}$ | `ref_logprobs`: the frozen starting point | (N, T) |
# | $\rho$ | `ratio` = exp(`logprobs` - `old_logprobs`) | (N, T) |
# | $\lvert a_i \rvert$ | `mask.sum(1)`: tokens up to and including the end token | (N,) |
# | $\epsilon$, $\beta$ | `clip_eps`, `kl_coef` | numbers |
#
# Three policies, then. Only the first one learns.

# %% [markdown]
# **Where our code departs from print**, and why:
#
# 1. Eq. (12) is something to maximise. A loss is minimised, so ours is minus Eq. (12).
# 2. Eq. (11) divides by zero when all siblings earn the same. We add `std_eps` = 0.0001 to the standard deviation,
#    and give such a group the advantage 0.
# 3. `std` is the unbiased one: it divides by G - 1. The survey does not say which one it means.
# 4. Eq. (13) is the mean log-ratio, known as k1. It can be negative on a sample. Our default is k3, which cannot.

# %% [markdown]
# ## By hand
#
# ### Four siblings
#
# Four answers to one question. Two are right: the rewards are 1 1 0 0. **Before you read on**, work out the four
# advantages on paper. The mean is 0.5, so the deviations are +0.5 +0.5 -0.5 -0.5. Their squares add up to 1.
# Divide by G - 1 = 3 and take the root: 0.577. And 0.5 / 0.577 is?

# %%
# NBVAL_CHECK_OUTPUT
rewards = [1, 1, 0, 0]
mean, std = statistics.mean(rewards), statistics.stdev(rewards)  # stdev divides by G - 1
print("paper:  ", " ".join(f"{(r - mean) / std:+.3f}" for r in rewards))
advantages = group_advantages(torch.tensor([rewards]).float())  # (1, 4)
print("library:", " ".join(f"{a:+.3f}" for a in advantages[0]))

# %% [markdown]
# Now only one sibling is right. Its deviation is $(G-1)/G$ and the standard deviation is $1/\sqrt G$, so its
# advantage is $(G-1)/\sqrt G$: **a rare success is worth more in a larger group.** The failures share the bill.

# %%
# NBVAL_CHECK_OUTPUT
for G in (2, 4, 8, 16):
    rewards = torch.eye(G)[:1]  # (1, G): 1 0 0 ... 0
    success, failure = group_advantages(rewards, std_eps=0.0)[0, :2]
    print(f"G = {G:2d}: by hand {(G - 1) / G**0.5:+.3f}, success {success:+.3f}, failure {failure:+.3f}")

# %% [markdown]
# ### Four quadrants of the clip
#
# The ratio says how much likelier the new policy makes an action than the policy that sampled it. Take
# $\epsilon = 0.2$. Cover the next output and fill in: what is the term inside the sums of Eq. (12), and what is its
# slope in the ratio? A slope of 0 means: no more push.
#
# | | ratio 0.5 | ratio 1.5 |
# |---|---|---|
# | advantage +1 | ? | ? |
# | advantage -1 | ? | ? |

# %%
# NBVAL_CHECK_OUTPUT
for value, advantage in ((0.5, 1.0), (1.5, 1.0), (0.5, -1.0), (1.5, -1.0)):
    ratio = torch.tensor(value, requires_grad=True)
    term = torch.minimum(ratio * advantage, ratio.clamp(0.8, 1.2) * advantage)
    slope = torch.autograd.grad(term, ratio)[0] + 0.0
    print(f"ratio {value}, advantage {advantage:+.0f}: term {term:+.1f}, slope {slope:+.0f}")

# %% [markdown]
# The push stops in two quadrants: a good action that is already much likelier, and a bad one that is already much
# rarer. In the other two the policy went the wrong way, and the full push brings it back. The clip is no wall. It
# only stops rewarding a step for going further in the right direction.
#
# ### Three estimators of one KL
#
# The policy takes one of two actions with probabilities 1/2 and 1/2, the reference with 1/4 and 3/4. Write $d =
# \log \pi_{ref} - \log \pi_\theta$. Then k1 $= -d$, k2 $= d^2/2$, k3 $= e^d - d - 1$. For the first action $d =
# -\log 2$, so k1 = 0.693. What are k2 and k3? Which of the three is negative for the second action?

# %%
# NBVAL_CHECK_OUTPUT
pi, ref = torch.tensor([0.5, 0.5]), torch.tensor([0.25, 0.75])
for name, estimator in KL_ESTIMATORS.items():
    first, second = estimator(pi.log(), ref.log())
    print(f"{name}: first {first:+.4f}, second {second:+.4f}, on average {pi[0] * first + pi[1] * second:.4f}")
print(f"exact KL(policy || reference): {kl_exact(Categorical(pi), Categorical(ref)):.4f}")

# %% [markdown]
# k1 and k3 hit the exact value on average, k2 misses it a little. Only k1 goes negative on a sample. That is why a
# log that shows a negative "KL" is no bug, and why our logs show k3.
#
# ### When siblings agree
#
# With rewards 0 or 1 and success rate $p$, all G siblings agree with probability
#
# $$P(\text{no signal}) = p^G + (1-p)^G \tag{A1}$$
#
# We call such a group **dead**: every advantage in it is 0. For $p = 0.05$ and G = 4, is that more or less than
# half of all groups?

# %%
# NBVAL_CHECK_OUTPUT
print("  p      G = 4   G = 8  G = 16")
for p in (0.05, 0.2, 0.5):
    print(f"{p:4.2f}   " + "   ".join(f"{p**G + (1 - p)**G:5.3f}" for G in (4, 8, 16)))

# %% [markdown]
# Move the slider. On the left is Eq. (A1), with G = 8 in grey. On the right is what Eq. (11) gives to a success and
# to a failure. A larger group wastes fewer groups and pays a lone success more, but it costs G completions.

# %%
lab.explore(group_size_figure, group_size=(2, 32, 1))

# %% [markdown]
# ## Code: show once, prove equal, import
#
# All of GRPO in a dozen lines. `.view(-1, 1)` turns (B, G) rewards into one column for the N = B * G rows; it
# relies on siblings standing side by side.

# %%
def grpo(logprobs, old_logprobs, ref_logprobs, rewards, mask, clip_eps=0.2, kl_coef=0.04):
    """Minus Eq. (12). rewards: (B, G); the others: (N, T), siblings side by side."""
    centred = rewards - rewards.mean(dim=1, keepdim=True)  # (B, G)
    advantages = (centred / (rewards.std(dim=1, keepdim=True) + 1e-4)).view(-1, 1)  # (N, 1), Eq. (11)
    ratio = (logprobs - old_logprobs).exp()  # (N, T)
    clipped = ratio.clamp(1 - clip_eps, 1 + clip_eps)  # (N, T)
    surrogate = torch.minimum(ratio * advantages, clipped * advantages)  # (N, T)
    d = ref_logprobs - logprobs  # (N, T)
    kl = d.exp() - d - 1  # (N, T), k3 in place of Eq. (13)
    per_row = ((surrogate - kl_coef * kl) * mask).sum(dim=1) / mask.sum(dim=1)  # (N,)
    return -per_row.mean()

# %% [markdown]
# Two prompts, four siblings each, at most five tokens. The lengths differ, and some ratios lie outside the clip.

# %%
wave = torch.linspace(0, 30, 40).view(8, 5)  # (N, T): something smooth to make numbers from
old_logprobs, ref_logprobs = wave.sin() - 2, wave.cos() - 2  # (N, T)
logprobs = (old_logprobs + 0.4 * (3 * wave).cos()).requires_grad_()  # (N, T)
mask = (torch.arange(5) < torch.tensor([5, 3, 4, 1, 2, 5, 5, 3])[:, None]).float()  # (N, T)
rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])  # (B, G)

# %%
# NBVAL_CHECK_OUTPUT
ours = grpo(logprobs, old_logprobs, ref_logprobs, rewards, mask)
advantages = group_advantages(rewards).flatten()  # (N,)
theirs, stats = grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, GRPOConfig())
for name, loss in (("ours", ours), ("library", theirs)):
    gradient = torch.autograd.grad(loss, logprobs)[0]  # (N, T)
    print(f"{name:8s} loss {loss:.4f}   gradient of row 1:", " ".join(f"{g:+.4f}" for g in gradient[1]))
print(f"outside the clip: {stats['clip_frac']:.3f} of the tokens")

# %% [markdown]
# Same value, same gradient, and 0 where the mask ends. From here on we use the library.
#
# ### The loss is 0 and the gradient is not
#
# Many users of public GRPO code have asked whether their loss of 0 is a bug. It is not. Right after sampling, the
# policy still is the policy that sampled: every ratio is 1, and so the loss is minus the mean of the advantages. Those
# sum to zero by Eq. (11). But $\nabla \rho = \rho \, \nabla \log \pi_\theta$, and at ratio 1
#
# $$\nabla \mathcal L = -\frac 1N \sum_i \hat A_i \frac{1}{|a_i|} \sum_t \nabla \log \pi_\theta(a_{i,t} \mid s_{i,t}) \tag{A2}$$
#
# This is the plain policy gradient. The value of the loss says nothing; read the reward and the gradient norm.

# %%
# NBVAL_CHECK_OUTPUT
loss, _ = grpo_loss(logprobs, logprobs.detach(), None, advantages, mask, GRPOConfig(kl_coef=0.0))
gradient = torch.autograd.grad(loss, logprobs)[0]  # (N, T)
by_hand = -advantages / (8 * mask.sum(dim=1))  # (N,): Eq. (A2), per token
print(f"loss {abs(loss):.4f}")
print("gradient, first token:", " ".join(f"{g:+.4f}" for g in gradient[:, 0]))
print("Eq. (A2):             ", " ".join(f"{g:+.4f}" for g in by_hand))

# %% [markdown]
# The four beats of a step, from the library. `optimization` will be `GRPO(...)`: its `compare` is Eq. (11), its
# `improve` takes clipped steps on Eq. (12).

# %%
lab.show_source(OnlineTrainer.step)
