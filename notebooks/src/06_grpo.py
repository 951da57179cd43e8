# %% [markdown]
# # 6. GRPO: siblings instead of a critic
#
# [previous: 5. PPO](05_ppo.ipynb) | [contents](00_start_here.ipynb) |
# [next: 7. Conventional MLLMs](07_conventional_mllms.ipynb)
#
# **Question.** Can the other answers to the same question replace a learned critic, and when do they have
# nothing to say?
#
# **Survey:** section 2.3.2, Eqs. (11), (12), (13) (version 3). **Running time:** about a minute on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import statistics

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
from ipywidgets import IntSlider
from torch import nn
from torch.distributions import Categorical

from minivisrl import DATA, lab
from minivisrl.evaluation.sets import evaluate
from minivisrl.lab import check
from minivisrl.mllm import VLMPolicy
from minivisrl.optimization import (
    GRPO,
    KL_ESTIMATORS,
    Batch,
    GRPOConfig,
    group_advantages,
    grpo_loss,
    kl_exact,
)
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.policy import ActionStats, Policy
from minivisrl.rewards import exact_match, weighted
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
#
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
# half of all groups? Below the table, move the slider. On the left is Eq. (A1), with G = 8 in grey. On the right is
# what Eq. (11) gives to a success and to a failure. A larger group wastes fewer groups and pays a lone success more,
# but it costs G completions.

# %%
# NBVAL_CHECK_OUTPUT
print("  p      G = 4   G = 8  G = 16")
for p in (0.05, 0.2, 0.5):
    print(f"{p:4.2f}   " + "   ".join(f"{p**G + (1 - p)**G:5.3f}" for G in (4, 8, 16)))

# %%
lab.explore(group_size_figure, group_size=IntSlider(4, min=2, max=32))

# %% [markdown]
# ## Code: show once, prove equal, import
#
# All of GRPO in a dozen lines. `.view(-1, 1)` turns (B, G) advantages into one column for the N = B * G rows; it
# relies on siblings standing side by side. Below it, the same inputs go through ours and through the library's
# function: two prompts, four siblings each, at most five tokens. The lengths differ, and some ratios lie outside the
# clip. The log-probs come from sines, so that everybody gets the same numbers.

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

# %%
# NBVAL_CHECK_OUTPUT
wave = torch.linspace(0, 30, 40).view(8, 5)  # (N, T)
old_logprobs, ref_logprobs = wave.sin() - 2, wave.cos() - 2  # (N, T)
logprobs = (old_logprobs + 0.4 * (3 * wave).cos()).requires_grad_()  # (N, T)
mask = (torch.arange(5) < torch.tensor([5, 3, 4, 1, 2, 5, 5, 3])[:, None]).float()  # (N, T)
rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])  # (B, G)

ours = grpo(logprobs, old_logprobs, ref_logprobs, rewards, mask)
advantages = group_advantages(rewards).flatten()  # (N,)
theirs, stats = grpo_loss(logprobs, old_logprobs, ref_logprobs, advantages, mask, GRPOConfig())
for name, loss in (("ours", ours), ("library", theirs)):
    gradient = torch.autograd.grad(loss, logprobs)[0] + 0.0  # (N, T)
    print(f"{name:8s} loss {loss:.4f}   gradient of row 1:", " ".join(f"{g:+.4f}" for g in gradient[1]))
print(f"push stopped by the clip: {stats['clip_frac']:.3f} of the tokens")

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

# %% [markdown]
# ## Experiment: does it pay to write the counts down?
#
# Now a real model, though a small one: the shipped VLM reads a picture of 32 x 32 pixels and answers in words. Every
# question needs two counts: *how many more red things than blue things are there ?* The reward is `exact_match`, the
# verifier of Eq. (7): 1 if the content of the `<answer>` element is the truth, else 0.
#
# The model learned from two kinds of annotators. Most answered at once, and were often off by one. A few wrote both
# counts first: `<think> red 2 blue 1 </think> <answer> 1 </answer>`. So it has two habits. The reward speaks of neither.

# %%
KINDS, COLOR = ("total", "difference"), ("color",)  # how many A and B; how many more A than B
train_prompts = question_prompts(1024, KINDS, "train", torch.Generator().manual_seed(1), about=COLOR)
heldout = question_prompts(256, KINDS, "heldout", torch.Generator().manual_seed(2), about=COLOR)


def base_policy():
    """The shipped model, before any reinforcement learning."""
    policy = VLMPolicy.load(DATA / "checkpoints" / "vlm")
    policy.max_tokens = 14
    return policy


# %% [markdown]
# One group, through Act, Judge and Compare. Picture and question are the same for all eight siblings; they differ because
# the policy samples. Then both habits at length: two sampled answers to each of 256 held-out questions.

# %%
rollout = base_policy().rollout(heldout.rows([0]), 8, generator)
rewards = torch.tensor(exact_match(rollout.outputs, heldout["answer"][:1] * 8))  # (N,)
print(f"{heldout['prompt'][0]}  truth: {heldout['answer'][0]}")
for output, reward, a in zip(rollout.outputs, rewards, group_advantages(rewards[None])[0], strict=True):
    print(f"reward {reward:.0f}  advantage {a:+.2f}  {output}")

# %%
def habits(policy):
    """Accuracy and share of completions that write the counts down; accuracy with and without."""
    drawn = evaluate(policy, heldout, samples=2, generator=torch.Generator().manual_seed(3))  # 512 answers
    writes = torch.tensor(["<think>" in output for output in drawn.outputs])  # (512,)
    return {"right": drawn.score, "writes": writes.float().mean().item(), "extracted": drawn.extracted,
            "right if it writes": drawn.scores[writes].mean().item(),
            "right if not": drawn.scores[~writes].mean().item()}  # fmt: skip


before = habits(base_policy())
print({name: round(value, 2) for name, value in before.items()})

# %% [markdown]
# Whoever writes is right more often, and few write. **Predict:** what will 12 steps of GRPO change?
#
# We train three seeds with 16 questions a step, 8 siblings each, and the KL term of Eq. (12). The **control** is the
# same run with its rewards shuffled over all rows: the same numbers, without meaning.

# %%
def train(seed, reward_fn=exact_match, collect=act_and_judge, steps=12, batch_size=16):
    """GRPO from the base; returns the policy and one row of statistics per step."""
    policy, generator = base_policy(), torch.Generator().manual_seed(seed)
    cfg = OnlineConfig(batch_size=batch_size, group_size=8, learning_rate=3e-4)
    grpo = GRPO(GRPOConfig(kl_coef=0.04))
    trainer = OnlineTrainer(policy, train_prompts, reward_fn, grpo, cfg, generator, collect=collect)
    return policy, [trainer.step() for _ in range(steps)]


def column(runs, name):
    """(S, steps): one statistic of every run."""
    return torch.tensor([[row[name] for row in rows] for _, rows in runs])


runs = [train(seed) for seed in range(3)]
controls = [train(seed, collect=shuffled(act_and_judge)) for seed in range(3)]

# %%
control = "control, shuffled rewards"
shown = {"policy": column(runs, "reward"), control: column(controls, "reward")}
title = "Siblings are critic enough (3 seeds, mean of 4 steps)"
lab.curves(shown, ylabel="share of right answers", control=control, smooth=4, title=title, x=range(1, 13))
plt.show()
dead_log = column(runs, "zero_variance_groups")  # (S, steps)
assert column(runs, "policy_loss").abs().max() < 1e-4  # the loss is 0 at every step of every run
assert dead_log[:, -4:].mean() - dead_log[:, :4].mean() > 0.1  # mean of 3; 8 seeds: +0.37 +- 0.11

# %%
names = {"right": "right", "writes": "writes the counts", "right if it writes": "right if it writes",
         "right if not": "right if not"}  # fmt: skip
every = {"before": [before], "after": [habits(policy) for policy, _ in runs]}
every[control] = [habits(policy) for policy, _ in controls]
bars = {label: {names[n]: [h[n] for h in series] for n in names} for label, series in every.items()}
figure = lab.bars(bars, ylabel="share of sampled answers", title="Held-out: more writing, more right answers")
figure.axes[0].set_ylim(0, 1)  # room for the legend
plt.show()
right, control_right = bars["after"]["right"], bars[control]["right"]
assert min(right) > 0.53  # base 0.49; 8 seeds: 0.64 +- 0.03
assert sum(right) / 3 - sum(control_right) / 3 > 0.02  # control, 8 seeds: 0.41 +- 0.08, the best 0.57
assert min(bars["after"]["writes the counts"]) > 0.36  # base 0.24; 8 seeds: 0.58 +- 0.06; control 0.27 +- 0.11
assert min(bars["after"]["right if not"]) > 0.52  # base 0.42; 8 seeds: 0.60 +- 0.02; control 0.37 +- 0.09

# %%
then, now = evaluate(base_policy(), heldout), evaluate(runs[0][0], heldout)  # greedy: the likeliest answers
gained, lost = (((now.scores - then.scores) == sign).nonzero()[:, 0].tolist() for sign in (1, -1))
index = [*gained[:2], lost[0]]  # the first two that were gained, the first that was lost
few = heldout.rows(index)
asked = [f"Q: {question} (truth {truth})" for question, truth in zip(few["prompt"], few["answer"], strict=True)]
told = [f"{q} {then.outputs[i]}" for q, i in zip(asked, index, strict=True)] + [now.outputs[i] for i in index]
title = f"Seed 0 gains {len(gained)} of 256 questions and loses {len(lost)}"
lab.gallery(torch.cat([few["image"]] * 2), told, columns=3, row_labels=("before", "after"), title=title)
plt.show()

# %% [markdown]
# ### What to notice
#
# - The policy's curve rises and the control's does not; all three seeds end above the base on held-out questions. No
#   critic was trained, and the policy part of the loss was 0 at every one of the 36 steps (asserted).
# - Two things changed. The model writes the counts down more often, although no reward asks for it. And its direct answers
#   got better: it had learned to be off by one, and that does not pay. Answers *with* counts did not get better. The bars
#   do not tell how much of the gain each change brought, because the questions answered with and without also changed.
# - The share of dead groups rises (asserted, mean over seeds). As the model improves, more groups agree, and fewer of the
#   128 completions of a step teach anything. The control loses ground: noise in the rewards is noise in the weights.

# %% [markdown]
# ## What can go wrong
#
# Three failures, provoked on purpose. For the first two we need many seeds, so we leave the images and take the
# smallest policy that meets the library's contract: a table. Each of 128 **learners** has one row of logits over 8
# actions, of which action 0 is right. They share a trainer but no weights: 128 seeds in one run.

# %% tags=["given"]
class Learners(Policy):
    """Prompt i is the integer i, and has a row of logits of its own; a completion is one action."""

    def __init__(self, learners, actions, success):
        super().__init__()
        start = torch.full((actions,), (1 - success) / (actions - 1))  # (V,)
        start[0] = success  # action 0 is the right one
        self.model = nn.Embedding.from_pretrained(start.log().repeat(learners, 1), freeze=False)

    def dist(self, prompts, group_size):
        rows = torch.tensor(prompts["prompt"]).repeat_interleave(group_size)  # (N,)
        return Categorical(logits=self.model(rows)[:, None])  # (N, 1, V)

    @torch.no_grad()
    def rollout(self, prompts, group_size, generator):
        dist = self.dist(prompts, group_size)
        tokens = torch.multinomial(dist.probs[:, 0], 1, generator=generator)  # (N, 1)
        mask, logprobs = torch.ones(tokens.shape), dist.log_prob(tokens)  # (N, 1)
        return Rollout(prompts, {"tokens": tokens}, logprobs, mask, group_size, tokens[:, 0].tolist())

    def evaluate_actions(self, rollout, *, values=False):
        dist = self.dist(rollout.prompts, rollout.group_size)
        return ActionStats(dist.log_prob(rollout.actions["tokens"]), dist.entropy(), None, dist)


# %% tags=["given"]
def learn(optimization, *, success=0.125, group_size=4, bonus=0.0, steps=60, seed=0):
    """Train 128 learners; returns their chance of the right action (128, steps), and the log."""

    def reward(completions, **_):
        return [float(action == 0) + bonus for action in completions]

    policy, prompts = Learners(128, 8, success), Prompts({"prompt": list(range(128))})
    cfg = OnlineConfig(batch_size=128, group_size=group_size, learning_rate=0.3, max_grad_norm=1e9)
    trainer = OnlineTrainer(policy, prompts, reward, optimization, cfg, torch.Generator().manual_seed(seed))
    chances, log = [], []
    for _ in range(steps):
        log.append(trainer.step())
        chances.append(policy.model.weight.detach().softmax(dim=-1)[:, 0])
    return torch.stack(chances, dim=1), log


# %% [markdown]
# ### No baseline
#
# Take Eq. (11) away and use the raw reward as the advantage. On average the gradient is the same: whoever adds a
# constant to all rewards adds zero, since $\mathbb E\, \nabla \log \pi_\theta = 0$. The spread is another matter. Take
# two actions with probability 1/2, four siblings, and a bonus paid to everybody. We go through all 16 groups and
# estimate the slope of the expected reward in the logit of the right action. The truth is 0.25.

# %%
# NBVAL_CHECK_OUTPUT
groups = torch.cartesian_prod(*[torch.tensor([0.0, 1.0])] * 4)  # (16, 4): which siblings are right
for name, bonus in (("nothing", 0), ("nothing", 1), ("nothing", 5), ("siblings", 0), ("siblings", 5)):
    rewards = groups + bonus  # (16, 4)
    centred = group_advantages(rewards, scale="none") if name == "siblings" else rewards
    slopes = (centred * (groups - 0.5)).mean(dim=1)  # (16,): one estimate per group
    print(f"baseline {name:8s}  bonus {bonus}: mean {slopes.mean():.4f}, std {slopes.std(correction=0):.4f}")

# %% [markdown]
# Siblings do not see the bonus. Their mean is 3/4 of the truth, because a completion's own reward is part of its
# baseline; exercise 6.2 repairs that. Without a baseline, a bonus of 5 makes the noise eleven times what it was.
#
# `NoBaseline` overrides one beat and leaves the others alone. Predict: which of the four runs fails?

# %%
class NoBaseline(GRPO):
    """Compare with nothing: the reward itself is the advantage."""

    def compare(self, policy, ref_policy, rollout, rewards):
        return Batch(rollout, rewards)


plain = GRPOConfig(kl_coef=0.0)
siblings, nothing = ([learn(a, bonus=b)[0] for b in (0.0, 5.0)] for a in (GRPO(plain), NoBaseline(plain)))
shown = {"GRPO, any bonus": siblings[0], "no baseline, bonus 0": nothing[0], "no baseline, bonus 5": nothing[1]}
title = "A bonus for everybody misleads whoever has no baseline"
lab.curves(shown, ylabel="chance of the right action", title=title)
plt.show()
stuck = [(chance[:, -1] < 0.1).float().mean().item() for chance in nothing]
assert torch.equal(siblings[0], siblings[1])  # the same bits, with and without the bonus
assert (siblings[0][:, -1] > 0.9).all()  # 8 seeds of 128 learners: all of them, each time
assert stuck[0] == 0  # 8 seeds of 128 learners: 0.00 each time
assert stuck[1] > 0.4  # 8 seeds of 128 learners: 0.57 +- 0.04

# %% [markdown]
# With a bonus of 5 more than half of the learners give the right action up. Whatever is tried first is rewarded, so it
# becomes likelier, so it is tried again. With bonus 0 nothing breaks, and this null result is worth keeping: a reward of
# 0 for every failure already is a baseline of a kind.
#
# ### Dead groups
#
# Two losses of 0. In the last section the gradient was alive. Here all siblings agree:

# %%
# NBVAL_CHECK_OUTPUT
for rewards in ([1.0, 1.0, 0.0, 0.0], [1.0, 1.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]):
    four = torch.zeros(4, 1, requires_grad=True)  # (N, 1) log-probs of one prompt's siblings
    advantages = group_advantages(torch.tensor([rewards])).flatten()  # (N,)
    loss, _ = grpo_loss(four, four.detach(), None, advantages, torch.ones(4, 1), plain)
    norm = torch.autograd.grad(loss, four)[0].norm()
    print(f"rewards {rewards}: loss {abs(loss):.3f}, gradient norm {norm:.3f}")

# %% [markdown]
# All right and all wrong teach the same: nothing. Now learners for whom the task is hard, with a chance of 1 in 20
# at the start, and three group sizes. Every trainer logs the share of dead groups as `zero_variance_groups`. We
# compare the log with Eq. (A1), applied to the true chances before each step.

# %%
hard = {G: learn(GRPO(plain), success=0.05, group_size=G) for G in (2, 4, 16)}
dead = {f"G = {G}": [row["zero_variance_groups"] for row in log] for G, (_, log) in hard.items()}
lab.curves(dead, ylabel="share of dead groups", title="First too hard, then too easy (mean of 3 steps)",
           smooth=3, x=range(1, 61))  # fmt: skip
plt.show()
for G, (chance, log) in hard.items():
    predicted = [dead_share(p, G).mean().item() for p in chance.T]  # before steps 2, 3, ...
    observed = [row["zero_variance_groups"] for row in log[1:]]
    gap = max(abs(p - o) for p, o in zip(predicted[:-1], observed, strict=True))
    assert gap < 0.18  # 8 seeds: 0.08 +- 0.02

# %% [markdown]
# ### A gameable reward
#
# Somebody observes that answers with working are right more often, and pays for the number of words. It sounds harmless:
# at first, the longer answers *are* the better ones. We back to the VLM and train on `words` alone. `weighted` adds
# `exact_match` with weight 0: it is logged at every step and rewards nothing. **Predict** both curves.

# %%
def words(completions, **_):
    """Share of the 14 words that a completion may have."""
    return [len(text.split()) / 14 for text in completions]


reward = weighted({words: 1.0, exact_match: 0.0})
gamed = [train(seed, reward, steps=24, batch_size=4) for seed in range(3)]
gamed_after = habits(gamed[0][0])
print("\n".join(gamed[0][0].predict(heldout.rows(range(2)))))

# %%
shown = {"reward, words": column(gamed, "reward/words"), "policy, exact match": column(gamed, "reward/exact_match")}
title = "Paid by the word: full marks, no answers (3 seeds, mean of 3 steps)"
lab.curves(shown, ylabel="mean over completions", title=title, smooth=3, x=range(1, 25))
plt.show()
last = {name: column(gamed, name)[:, -4:].mean(1) for name in ("reward/words", "reward/exact_match", "kl_ref")}
assert last["reward/words"].min() > 0.9  # 8 seeds: 0.98 +- 0.02
assert last["reward/exact_match"].max() < 0.05  # 8 seeds: 0.01 +- 0.01, from 0.50
assert gamed_after["extracted"] < 0.1  # held-out; 8 seeds: 0.01 +- 0.02
assert last["kl_ref"].mean() > 1.6  # mean of 3; 8 seeds: 3.6 +- 0.8
assert column(runs, "kl_ref")[:, -4:].mean() < 0.4  # the honest runs, mean of 3; 8 seeds: 0.15 +- 0.09

# %% [markdown]
# The reward ends near its maximum, and hardly a completion contains an answer. The reward curve alone is the picture of
# a success. Three statistics betray it: the exact match that nobody optimised, the share of completions from which an
# answer can be extracted, and `kl_ref`, far beyond that of the honest runs. The KL term was on all along, and too weak.
# A rule to keep: log at least one metric that is not the reward.

# %% [markdown]
# ## Exercises
#
# ### Exercise 6.1 | predict | 5 words | 5 min
# Three prompts earn the rewards `1 1 0 0`, `0 0 0 1` and `1 1 1 1`. Somebody edits the rewards before Eq. (11) sees
# them. After which edits are **all** advantages what they were (`True`), and after which not (`False`)? Take the
# constant in the denominator to be 0. The last edit adds 0.001 to the first completion of the third prompt.

# %%
prediction = {
    "plus 5 for all": ...,
    "plus 5 for one prompt": ...,
    "times 10": ...,
    "times -1": ...,
    "0.001 for one of four equal": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("6.1", check_edits, prediction)

# %% [markdown]
# <details><summary>Solution 6.1</summary>
#
# ```python
# prediction = {
#     "plus 5 for all": True,
#     "plus 5 for one prompt": True,
#     "times 10": True,
#     "times -1": False,
#     "0.001 for one of four equal": False,
# }
# # The trap is the last one: a deviation of 0.00075 over a spread of 0.0005 is an advantage of 1.5, that of a
# # lone success. A tiny bonus for length or format takes over as soon as the main reward agrees.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 6.2 | implement | 2 lines | 10 min
# A completion's own reward is part of its baseline, which is why the mean slope above was 3/4 of the truth. Compare
# each reward with the mean of the *others*, and do not divide by the spread. (The library has it; do not peek.)

# %%
def leave_one_out(rewards):
    """(B, G) -> (B, G): each reward minus the mean of the other rewards in its row."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("6.2", check_leave_one_out, leave_one_out)

# %% [markdown]
# <details><summary>Solution 6.2</summary>
#
# ```python
# def leave_one_out(rewards):
#     group_size = rewards.shape[1]
#     return (rewards - rewards.mean(dim=1, keepdim=True)) * group_size / (group_size - 1)
#     # GRPOConfig(baseline="leave_one_out", scale="none") does this
# ```
#
# </details>

# %% [markdown]
# ### Exercise 6.3 | find the bug | 1 line | 10 min
# This objective learns. With one update per batch it is even right to the last bit, because every ratio is 1. Find the
# quadrant in which it is wrong, and write the repaired function.

# %%
def buggy_objective(ratio, advantages, clip_eps=0.2):
    """(N, T), (N, 1) -> (N, T): the term inside the sums of Eq. (12)."""
    clipped_ratio = ratio.clamp(1 - clip_eps, 1 + clip_eps)  # (N, T)
    return torch.minimum(ratio, clipped_ratio) * advantages


def objective(ratio, advantages, clip_eps=0.2):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("6.3", check_objective, objective)

# %% [markdown]
# <details><summary>Solution 6.3</summary>
#
# ```python
# def objective(ratio, advantages, clip_eps=0.2):
#     clipped_ratio = ratio.clamp(1 - clip_eps, 1 + clip_eps)  # (N, T)
#     return torch.minimum(ratio * advantages, clipped_ratio * advantages)
#     # The minimum is over the products: a negative advantage turns the order round. The buggy version
#     # pushes a bad action down without limit, and does not push down one that rose.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 6.4 | ablate | 4 lines | 15 min
# When does the clip matter? Train the learners twice with `learn(GRPO(cfg))`, once with `clip_eps` 0.2 and once with
# 10, which clips nothing. Change nothing else. Return the largest difference between the two chances, over all learners
# and steps. Then call it with 1 and with 4 passes over each batch (`update_epochs`).

# %%
def clip_effect(update_epochs):
    """Largest difference in chance that clip_eps makes, with this many updates per batch."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("6.4", check_clip_effect, clip_effect)

# %% [markdown]
# <details><summary>Solution 6.4</summary>
#
# ```python
# def clip_effect(update_epochs):
#     clipped, _ = learn(GRPO(GRPOConfig(kl_coef=0.0, update_epochs=update_epochs)))
#     free, _ = learn(GRPO(GRPOConfig(kl_coef=0.0, update_epochs=update_epochs, clip_eps=10.0)))
#     return (clipped - free).abs().max().item()
#     # One pass: 0 to the last bit, for the ratio is 1 and the clip never acts. Whoever tunes the clip and
#     # takes one update per batch tunes nothing. Four passes: 0.70 to 0.79 over 8 seeds.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 6.5 | extend | 10 lines | 20 min
# Dead groups are thrown-away compute. **Dynamic sampling** (DAPO) draws again until the batch is full of live ones. Write
# it as a `collect`, the function that an `OnlineTrainer` calls for Act and Judge. Build on `act_and_judge`, which has the
# same arguments and returns `(rollout, rewards, terms)`. `rollout.groups(index)` keeps whole groups, `Rollout.cat` joins.

# %%
def collect_live(policy, prompts, reward_fn, cfg, generator):
    """Exactly cfg.batch_size groups whose rewards differ: rollout, rewards (N,), terms ({} will do)."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("6.5", check_collect_live, collect_live)

# %% [markdown]
# <details><summary>Solution 6.5</summary>
#
# ```python
# def collect_live(policy, prompts, reward_fn, cfg, generator):
#     kept, scores = [], []
#     while sum(len(part.prompts) for part in kept) < cfg.batch_size:
#         rollout, rewards, _ = act_and_judge(policy, prompts, reward_fn, cfg, generator)
#         groups = rewards.view(-1, cfg.group_size)  # (B, G)
#         live = (groups.amax(dim=1) > groups.amin(dim=1)).nonzero()[:, 0]
#         if len(live):
#             kept.append(rollout.groups(live))
#             scores.append(groups[live])
#     rollout = Rollout.cat(kept).groups(range(cfg.batch_size))
#     return rollout, torch.cat(scores)[: cfg.batch_size].flatten(), {}
#     # Where every group is dead this never ends: a real one needs a limit. The compute is not saved but
#     # spent on drawing.
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - compute Eq. (11) on paper and say what a group size buys;
# - say why a GRPO loss of 0 is no bug, and which two statistics tell a live zero from a dead one;
# - recognise dead groups, a missing baseline and a gamed reward in the log of a run.
#
# What we did not test. The survey credits GRPO with about half the memory and compute of PPO; we ran no PPO here. It
# keeps the KL as a term of its own in Eq. (12); we kept it on for the VLM, and ran no comparison without it.
#
# References: the survey, section 2.3.2 (arXiv 2508.08189, version 3). In the library: `minivisrl/optimization/grpo.py`,
# `advantages.py`, `kl.py`. Runs at full length: `minivisrl run mllm/rlvr-grpo`.
