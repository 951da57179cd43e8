# %% [markdown]
# # 3. DPO: the policy is its own reward model
#
# [previous: 2. RLHF](02_rlhf.ipynb) | [contents](00_start_here.ipynb) |
# [next: 4. RLVR](04_rlvr.ipynb)
#
# **Question.** Can a policy learn from comparisons without a reward model, and what does that loss not see?
#
# **Survey:** section 2.2.2, Eqs. (5), (6) (version 3). **Running time:** about a minute on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import matplotlib.pyplot as plt
import torch
from checks.ch03 import (
    Table,
    check_implied_rewards,
    check_log_ratio,
    check_positive_loss,
    check_smoothing,
    check_what_changes,
    optimum_figure,
    settle,
)
from ipywidgets import SelectionSlider
from torch.nn.functional import logsigmoid

from minivisrl import DATA, lab
from minivisrl.evaluation.sets import evaluate
from minivisrl.evaluation.state import kl_to_start
from minivisrl.lab import check
from minivisrl.mllm import VLMPolicy
from minivisrl.paradigms.dpo import DPOConfig, dpo_loss, row_scores
from minivisrl.paradigms.offline import (
    DPO,
    KTO,
    KTOConfig,
    OfflineConfig,
    OfflineTrainer,
    encode_pairs,
    shuffled_pairs,
)
from minivisrl.recipes.mllm import (
    DescribeConfig,
    comparisons,
    describe_prompts,
    truth_and_completeness,
)
from minivisrl.rollout import Prompts

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# RLHF goes a long way round. People compare two outputs, a reward model learns to predict their choice, and a policy
# learns to please the reward model, while a KL term holds it back. DPO does all of it in one stage: **a classifier of
# pairs, made of the policy itself**. Let us see why that is allowed. For one prompt $p$, with $\gamma$ = 0 and with the frozen
# start written $\pi_{ref}$ in place of $\pi_{SFT}$, RLHF maximises
#
# $$J(\pi) = \mathbb E_{y \sim \pi}[R(p, y)] - \beta\, \mathrm{KL}(\pi \,\Vert\, \pi_{ref}) \tag{4}$$
#
# Put both terms under one expectation, and pull $\beta$ out. It looks like a KL divergence, from a distribution that
# does not sum to one yet:
#
# $$J(\pi) = -\beta\, \mathbb E_{y \sim \pi}\Big[\log \frac{\pi(y)}{\pi_{ref}(y)\, e^{R(p, y) / \beta}}\Big]
# = \beta \log Z(p) - \beta\, \mathrm{KL}(\pi \,\Vert\, \pi^*) \tag{A1}$$
#
# $$\pi^*(y \mid p) = \frac{1}{Z(p)}\, \pi_{ref}(y \mid p)\, e^{R(p, y) / \beta},
# \qquad Z(p) = \sum_y \pi_{ref}(y \mid p)\, e^{R(p, y) / \beta} \tag{A2}$$
#
# A KL divergence is least, namely 0, where both sides are equal. So $\pi^*$ is the best policy there is, and it earns
# $\beta \log Z$. Nobody can list all outputs of a language model to compute $Z$. The trick is that nobody has to.

# %% [markdown]
# Solve (A2) for the reward: $R(p, y) = \beta \log \frac{\pi^*(y)}{\pi_{ref}(y)} + \beta \log Z(p)$. Every reward belongs to
# an optimal policy, and the policy *is* the reward, up to a number that depends on the prompt alone. Bradley and Terry's
# model of a choice, Eq. (3), asks only for a **difference** of two rewards of the same prompt. $Z$ cancels:
#
# $$\mathcal L_{DPO} = -\mathbb E_{(p, y_A, y_B) \sim D} \log \sigma(\beta\, \Delta_\theta(p, y_A, y_B)) \tag{5}$$
#
# $$\Delta_\theta = \log \frac{\pi_\theta(y_A \mid p)}{\pi_{ref}(y_A \mid p)}
# - \log \frac{\pi_\theta(y_B \mid p)}{\pi_{ref}(y_B \mid p)} \tag{6}$$
#
# | symbol | in words | in the code | shape |
# |---|---|---|---|
# | $y_A$, $y_B$ | the preferred output, and the other one | `chosen`, `rejected` | B texts each |
# | $\log \pi_\theta(y \mid p)$ | sum over the tokens of an output | `row_scores(logprobs, mask)` | (N, T) to (N,) |
# | $\pi_{ref}$ | the policy before training, frozen | `ref_policy` | |
# | $\Delta_\theta$ | how much further we moved to A than to B, in nats | `log_ratio` | (B,) |
# | $\beta$ | inverse temperature of the implicit reward | `dpo_beta` | number |
# | $\beta \log(\pi_\theta / \pi_{ref})$ | the implicit reward | `chosen_reward`, `rejected_reward` | (B,) |
# | $D$ | comparisons, made before training began | `PreferencePairs` | |
#
# Of the four beats, Act and Judge have happened before training, once. What is left is Compare and Improve. There is no
# sampling, no reward model and no critic.
#
# **Where our code departs from print.** Nothing in Eqs. (5) and (6). It adds a share of flipped labels
# (`label_smoothing`), and two relatives which the survey does not have: IPO and KTO.

# %% [markdown]
# ## By hand
#
# ### The best policy, by enumeration
#
# Three descriptions of one picture. The reference writes *a thing* half of the time, *a circle* and *a red circle* a
# quarter each. The rewards are 0, log 2 and log 4, and $\beta$ = 1. **On paper:** the factors $e^{R/\beta}$ are 1, 2, 4.
# Multiply, add, divide: what are $Z$, the best policy and its value?
#
# Then we check by brute force. We try every policy whose probabilities are whole percents.

# %%
# NBVAL_CHECK_OUTPUT
ref, rewards = torch.tensor([0.50, 0.25, 0.25]), torch.tensor([1.0, 2.0, 4.0]).log()  # (3,), (3,)
Z = (ref * rewards.exp()).sum()
print(f"on paper:       Z = {Z:.2f}, policy", (ref * rewards.exp() / Z).tolist(), f"value {Z.log():.4f}")
percents = torch.cartesian_prod(torch.arange(101), torch.arange(101))  # (10201, 2)
percents = percents[percents.sum(dim=1) <= 100]  # (5151, 2)
policies = torch.cat([percents, 100 - percents.sum(dim=1, keepdim=True)], dim=1) / 100  # (5151, 3)
kl = (policies * (policies / ref).log()).nan_to_num().sum(dim=1)  # (5151,); 0 log 0 is 0
values = policies @ rewards - kl
best = values.argmax()
print(f"of {len(policies)} policies: best", [round(x, 2) for x in policies[best].tolist()], f"value {values[best]:.4f}")

# %% [markdown]
# ### log 2, and a gradient that is not 0
#
# Before the first step the policy is the reference. So $\Delta$ = 0 for every pair, and the loss is $-\log \sigma(0) =
# \log 2$, whatever $\beta$ and whatever the pairs. The accuracy is 0 as well: nothing is above 0. Is there anything to
# learn from? The derivative of Eq. (5) is
#
# $$\nabla \mathcal L = -\beta\, \sigma(-\beta \Delta)\,
# \big(\nabla \log \pi_\theta(y_A \mid p) - \nabla \log \pi_\theta(y_B \mid p)\big) \tag{A3}$$
#
# At $\Delta$ = 0 the weight $\sigma(-\beta\Delta)$ is 1/2: it is not zero but at half of its range. **Predict** the
# gradient with respect to $\log \pi_\theta(y_A)$ for $\beta$ = 0.1.

# %%
# NBVAL_CHECK_OUTPUT
ref_chosen, ref_rejected = torch.tensor([-3.0]), torch.tensor([-5.0])  # (B,): log-probs under the reference
for dpo_beta in (0.1, 1.0):
    chosen, rejected = ref_chosen.clone().requires_grad_(), ref_rejected.clone().requires_grad_()  # pi = ref
    loss, stats = dpo_loss(chosen, rejected, ref_chosen, ref_rejected, DPOConfig(dpo_beta=dpo_beta))
    up, down = torch.autograd.grad(loss, (chosen, rejected))
    print(f"beta {dpo_beta}: loss {loss:.4f}, gradient {up.item():+.3f} and {down.item():+.3f}, "
          f"accuracy {stats['accuracy']:.0f}")  # fmt: skip

# %% [markdown]
# **log 2 at the first step is the test of a DPO implementation.** Any other number means that policy and reference
# do not see the same thing. Note also that the reference prefers A by 2 nats here, and that it makes no difference: DPO
# asks how far the policy has *moved*, not what it prefers.
#
# Move the slider. On the left is (A2): a small $\beta$ lets the reward win, a large one the reference. On the right is the
# weight of (A3): how hard a pair pushes that is already $\Delta$ nats apart. The dashed line marks where the push for
# *a red circle* against *a thing* is in balance with the choices of annotators who now and then prefer the other.

# %%
betas = [0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0]
lab.explore(optimum_figure, dpo_beta=SelectionSlider(options=betas, value=0.5, description="beta"))

# %% [markdown]
# ## Code: show once, prove equal, import
#
# All of DPO. Below it, four pairs whose log-probs come from sines, through ours and through the library.

# %%
def dpo(chosen, rejected, ref_chosen, ref_rejected, dpo_beta):
    """Eq. (5); everything (B,): one log-prob per output, the sum over its tokens."""
    log_ratio = (chosen - ref_chosen) - (rejected - ref_rejected)  # (B,), Eq. (6)
    return -logsigmoid(dpo_beta * log_ratio).mean()


# %%
# NBVAL_CHECK_OUTPUT
wave = torch.linspace(0, 10, 16).view(4, 4)  # (4, B)
scores = (3 * wave.sin() - 8).requires_grad_()
ours, (theirs, stats) = dpo(*scores, 0.5), dpo_loss(*scores, DPOConfig(dpo_beta=0.5))
for name, loss in (("ours", ours), ("library", theirs)):
    gradient = torch.autograd.grad(loss, scores)[0]  # (4, B)
    print(f"{name:8s} loss {loss:.4f}   gradient of the chosen:", " ".join(f"{g:+.4f}" for g in gradient[0]))
print("margin of the implicit rewards", f"{stats['reward_margin']:.4f}, accuracy {stats['accuracy']:.2f}")
print("gradient that reaches the reference", f"{gradient[2:].abs().sum():.1f}  (ours would let it through)")

# %% [markdown]
# One difference: the library detaches the reference. Ours does not, and a caller must not pass log-probs with a gradient.
#
# ### Does the short way end where the long way ends?
#
# The claim of the theory is strong: whoever minimises Eq. (5) on comparisons has maximised Eq. (4), with the reward
# never computed. We can test it exactly. With rewards 0, log 2, log 4, Bradley and Terry's annotators choose with odds 1:2
# between neighbours and 1:4 between the extremes. So 45 comparisons stand for *all* of their choices, without sampling
# error: 10 to 5, 12 to 3, and 10 to 5. We train three free logits on them, starting from the reference, and never mention
# the rewards. **Predict** the policy for $\beta$ = 1.

# %%
won = torch.tensor([1] * 10 + [0] * 5 + [2] * 12 + [0] * 3 + [2] * 10 + [1] * 5)  # (45,)
lost = torch.tensor([0] * 10 + [1] * 5 + [0] * 12 + [2] * 3 + [1] * 10 + [2] * 5)  # (45,)


def minimiser(dpo_beta):
    """The policy (3,) at the minimum of Eq. (5) on the 45 comparisons."""
    logits, cfg = ref.log().double().requires_grad_(), DPOConfig(dpo_beta=dpo_beta)
    optimizer = torch.optim.LBFGS([logits], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        new, old = logits.log_softmax(dim=0), ref.log().double()
        loss, _ = dpo_loss(new[won], new[lost], old[won], old[lost], cfg)
        loss.backward()
        return loss

    optimizer.step(closure)
    return logits.detach().softmax(dim=0)


# %%
# NBVAL_CHECK_OUTPUT
print("beta   minimiser of Eq. (5)    maximiser of Eq. (4)    KL from the reference")
for dpo_beta in (0.2, 0.5, 1.0, 2.0, 10.0):
    ours = minimiser(dpo_beta)
    closed = (ref.log() + rewards / dpo_beta).softmax(dim=0)  # (A2)
    row = ["  ".join(f"{x:.3f}" for x in policy) for policy in (ours, closed)]
    print(f"{dpo_beta:4.1f}   {row[0]}     {row[1]}     {(ours * (ours / ref).log()).sum():.3f}")

# %% [markdown]
# Equal to three digits, for every $\beta$. Two conditions went into this, and you should remember them: **every** pair
# of outputs was compared, and the policy could give every output **any** probability. A real policy has neither. What
# happens then is the rest of the chapter.
#
# The library has the beats around the loss. Both outputs of a pair are encoded side by side, the reference scores them,
# and `update` steps on the loss. The reward model of RLHF trains in the same loop, with another loss.

# %%
lab.show_source(OfflineTrainer.step)

# %% [markdown]
# ## Experiment: describe what you see
#
# The shipped VLM can describe a picture, and does it sloppily: it leaves things out and makes things up. We draw eight
# descriptions of each of 256 training scenes. A simulated **annotator** reads them and names the best and the worst. Her
# taste: how many of the named objects are there (truth, weight 1), how many of the objects there are named (completeness,
# weight 2), a small price per word, and some noise.
#
# The **gold** metric is not hers. It reads the scene graph: the harmonic mean of truth and completeness. No training sees it.

# %%
TASK = DescribeConfig(candidates=8)


def fixed(seed):
    """A generator for what must be the same in every run."""
    return torch.Generator().manual_seed(seed)


def base_policy():
    """The shipped model, before any learning from comparisons."""
    policy = VLMPolicy.load(DATA / "checkpoints" / "vlm")
    policy.max_tokens = TASK.max_tokens
    return policy


base = base_policy()
pairs = comparisons(base, TASK, 256, "train", fixed(1))
heldout = describe_prompts(128, "heldout", fixed(2))

# %%
few = pairs.rows([0, 3, 8])
told = [f"preferred: {a}\nnot: {b}" for a, b in zip(few.chosen, few.rejected, strict=True)]
lab.gallery(few.prompts["image"], told, columns=3, title="Three of the 256 comparisons")
plt.show()

# %% [markdown]
# We train for 24 steps of 8 pairs, drawn anew at every step: about half of the pairs are ever seen. That is little, and
# the learning rate is twice that of the recipe `mllm/dpo`, which takes more steps with larger batches. Three seeds. The
# **control** gets the same pairs with labels by coin: a toss decides which description counts as preferred.
#
# We measure the gold metric in two ways, on 128 held-out scenes: on two *sampled* descriptions each, and on the
# *greedy* one, in which every word is the likeliest. **Predict** for both: up, down or unchanged?

# %%
def train(seed, dpo_beta=0.1, coin=False, steps=24):
    """DPO from the base; returns the policy and one row of statistics per step."""
    policy, generator = base_policy(), fixed(seed)
    data = shuffled_pairs(pairs, generator) if coin else pairs
    cfg = OfflineConfig(batch_size=8, learning_rate=2e-4)
    trainer = OfflineTrainer(policy, data, DPO(DPOConfig(dpo_beta=dpo_beta)), cfg, generator)
    return policy, [trainer.step() for _ in range(steps)]


def measure(policy):
    """Gold, sampled and greedy; nats from the base per description, and nats of entropy per word."""
    drawn = evaluate(policy, heldout, truth_and_completeness, samples=2, generator=fixed(3))
    greedy = evaluate(policy, heldout, truth_and_completeness)
    moved = kl_to_start(policy, base, heldout.rows(range(64)), fixed(4), group_size=2)
    return {"sampled": drawn.score, "greedy": greedy.score, "kl": moved["kl_start"], "entropy": moved["entropy"],
            "strange": strange(drawn.outputs)}  # fmt: skip


def strange(outputs):
    """Share of descriptions with a word that no caption has."""
    return sum(not set(text.split()) <= words for text in outputs) / len(outputs)


words = {word for text in pairs.prompts["answer"] for word in text.replace(",", " ,").split()}
runs = {dpo_beta: [train(seed, dpo_beta) for seed in range(3)] for dpo_beta in (0.1, 2.0)}

# %%
coins = [train(seed, coin=True) for seed in range(3)]
after_coin = [measure(policy) for policy, _ in coins]

# %%
before = measure(base)
after = {dpo_beta: [measure(policy) for policy, _ in series] for dpo_beta, series in runs.items()}
cooled = base_policy()
cooled.temperature = 0.6
sampled_cool = evaluate(cooled, heldout, truth_and_completeness, samples=2, generator=fixed(3)).score


def mean(series, name):
    """Mean of one statistic over the seeds."""
    return sum(row[name] for row in series) / len(series)


# %% [markdown]
# There is one more bar in the figure. DPO moves probability to what is likely anyway, and one can have that for nothing: we
# **cool** the base, dividing its logits by 0.6, and do not train it at all. That is a fair rival for sampled descriptions.

# %%
control = "control, coin labels"
series = {"before": [before], "beta 0.1": after[0.1], "beta 2": after[2.0], control: after_coin}
bars = {label: {n: [row[n] for row in rows] for n in ("sampled", "greedy")} for label, rows in series.items()}
bars["base at temperature 0.6"] = {"sampled": sampled_cool}
title = "Sampled descriptions get better, greedy ones do not (3 seeds)"
figure = lab.bars(bars, ylabel="truth and completeness", title=title)
figure.axes[0].set_ylim(0, 1)  # room for the legend
plt.show()
assert mean(after[0.1], "sampled") > 0.49  # base 0.480; mean of 3; 8 seeds: 0.556 +- 0.025
assert mean(after[2.0], "sampled") > 0.52  # mean of 3; 8 seeds: 0.552 +- 0.011
assert mean(after_coin, "sampled") < 0.475  # mean of 3; control, 8 seeds: 0.340 +- 0.058
assert mean(after[0.1], "greedy") < 0.67  # base 0.678; mean of 3; 8 seeds: 0.604 +- 0.027; beta 2: 0.637 +- 0.034
assert abs(mean(after[0.1], "sampled") - sampled_cool) < 0.08  # cooled: 0.565, without any training
assert mean(after[0.1], "kl") - mean(after[2.0], "kl") > 0.2  # mean of 3; 8 seeds: 2.27 +- 0.51 and 0.80 +- 0.15

# %%
scenes = heldout.rows(range(12))
told = [policy.predict(scenes) for policy in (base, runs[0.1][0][0], runs[2.0][0][0])]
changed = [i for i in range(12) if told[0][i] != told[1][i]][:3]
for i in changed:
    print("truth:   ", scenes["answer"][i])
    print("\n".join(f"{name:9s} {texts[i]}" for name, texts in zip(("before:", "beta 0.1:", "beta 2:"), told, strict=True)), "\n")

# %% [markdown]
# Now look inside. `OfflineTrainer` logs the implicit rewards of every batch before it steps on it. Divided by $\beta$,
# they are log-ratios: how many nats a description has gained or lost. Seven of ten draws are pairs that training sees for
# the first time, so most of this is a measurement on fresh pairs. **Predict** the sign of all four curves.

# %%
def log_ratios(series, name, dpo_beta):
    """(S, steps): nats that the chosen or the rejected descriptions of a batch have gained."""
    return torch.tensor([[row[name] / dpo_beta for row in rows] for _, rows in series])


shown = {
    f"{name}, beta {dpo_beta:g}": log_ratios(series, f"{name}_reward", dpo_beta)
    for dpo_beta, series in runs.items()
    for name in ("chosen", "rejected")
}
title = "With a small beta the chosen fall as well (3 seeds, mean of 4 steps)"
lab.curves(shown, ylabel="log-ratio to the base, nats", title=title, smooth=4, x=range(1, 25))
plt.show()
late = {name: curve[:, -8:].mean() for name, curve in shown.items()}
assert late["chosen, beta 0.1"] < 0  # mean of 3; 8 seeds: -0.98 +- 0.41
assert late["rejected, beta 0.1"] < -2.2  # mean of 3; 8 seeds: -4.07 +- 0.74
assert late["chosen, beta 2"] - late["chosen, beta 0.1"] > 0.1  # mean of 3; 8 seeds: 0.78 +- 0.27

# %% [markdown]
# ### What to notice
#
# - **Sampled descriptions get better, in the same way for both $\beta$.** Labels by coin make them worse. So it is the labels
#   that teach, and noise in labels is noise in the weights.
# - **Greedy descriptions do not get better.** With $\beta$ = 0.1 they get worse (asserted), and the policy is about three times
#   as many nats from the base as with $\beta$ = 2. In the texts above, look for objects that are named twice or more. And the
#   base at temperature 0.6 samples as well as the trained policies, without training. In this short run DPO mostly made
#   up the model's mind; it taught no better eyes.
# - The logged accuracy is near 0.8, and the margin grows. The usual log looks fine. But with $\beta$ = 0.1 **the chosen
#   descriptions themselves become rarer**, by about one nat on average over 8 seeds.

# %% [markdown]
# ## What can go wrong
#
# ### The winner falls
#
# The chosen descriptions lost probability, with right labels and a falling loss. This is known as **likelihood
# displacement**. It takes no bug. Eq. (5) asks that A gains *more than* B; whether both rise or both fall, it does not see.
# The smallest example has three descriptions, and one weight: A names 2 objects, B names 1, C names 4. The policy is
# $\pi_\theta(y) \propto e^{\theta n(y)}$, with $\theta$ = 0 at the start. A is preferred to B. C is in no pair. **Before you
# read on:** which way does $\theta$ go, and who wins?

# %%
# NBVAL_CHECK_OUTPUT
named = torch.tensor([2.0, 1.0, 4.0])  # objects that A, B and C name
for theta in (0.0, 0.5, 1.0, 2.0):
    a, b, c = (theta * named).softmax(dim=0).tolist()
    loss = -logsigmoid(torch.tensor(theta))  # beta = 1; Delta = 2 theta - theta
    print(f"theta {theta:.1f}: loss {loss:.3f}   A {a:.3f}   B {b:.3f}   C {c:.3f}")

# %% [markdown]
# The loss falls, the accuracy is 1 from the first step on, and A is losing all the time. B loses more. The winner is C, about
# which nobody said a word: it has more of what distinguishes A from B. A table of free logits cannot do this, a network with
# shared weights can. Did ours? We look for two things: how much of the probability the pairs speak of at all, and
# whether the model says things that no caption contains.

# %%
@torch.no_grad()
def mass(policy, data):
    """Mean probability of the chosen and of the rejected description: (2,)."""
    rollout = encode_pairs(policy, data, generator)
    return row_scores(policy.logprobs(rollout), rollout.mask).exp().view(-1, 2).mean(dim=0)


half = pairs.rows(range(128))
share = {"before": mass(base, half), **{b: mass(series[0][0], half) for b, series in runs.items()}}
for name, (chosen, rejected) in share.items():
    print(f"{'beta ' * (name != 'before')}{name}: chosen {chosen:.3f}, rejected {rejected:.3f}, everything else {1 - chosen - rejected:.3f}")
print("descriptions with a strange word:", f"before {before['strange']:.3f},",
      ", ".join(f"beta {b} {mean(series, 'strange'):.3f}" for b, series in after.items()))  # fmt: skip
assert all(1 - chosen - rejected > 0.7 for chosen, rejected in share.values())  # 8 seeds: 0.81 +- 0.02
assert share[2.0][0] > 0.145  # base 0.126; 8 seeds: 0.174 +- 0.007

# %% [markdown]
# More than four fifths of the probability lie outside the pairs, before and after, and there the loss is blind. The chosen
# descriptions hold *more* probability on average than before, although their mean log-prob fell: the likely, short ones
# became likelier, and the long ones much rarer. A mean of logarithms is ruled by what is rare. The second suspicion was
# wrong. Strange words did not become more frequent with right labels; in 8 seeds their share fell from 0.043 to 0.019 +-
# 0.016. It was the control that began to babble (0.147 +- 0.090). So displacement was mild here. It need not be.
#
# The statistic that betrays displacement is in every log: **`chosen_reward` below 0 while `accuracy` and
# `reward_margin` rise.** A larger $\beta$ helps, because a pair stops pushing once $\beta\Delta$ is large. Exercise 3.5 has
# another remedy.
#
# ### Labels without a doubt
#
# Annotators who sometimes choose the other output put a limit on $\Delta$: at the minimum of Eq. (5), $\sigma(\beta\Delta)$ is
# their share of agreement. If all of them agree, always, there is no limit, and the KL term that $\beta$ stood for is gone.
# **IPO** replaces the logistic loss by a square, $(\Delta - \frac{1}{2\beta})^2$: a target that one can reach and overshoot.
# Two outputs, ten labels. The minimum is at $\log\frac{q}{1 - q} / \beta$ for DPO, where $q$ is the share of labels for A,
# and at $(2q - 1) / 2\beta$ for IPO. With $\beta$ = 0.1 and nine of ten, that is 22 nats, and 4.

# %%
dpo_cfg, ipo_cfg = DPOConfig(dpo_beta=0.1), DPOConfig(dpo_beta=0.1, loss="ipo")
ends = {"DPO, all 10 agree": settle(dpo_cfg, 10), "DPO, 9 of 10": settle(dpo_cfg, 9),
        "IPO, all 10 agree": settle(ipo_cfg, 10), "IPO, 9 of 10": settle(ipo_cfg, 9)}  # fmt: skip
lab.curves(ends, ylabel="log-ratio Delta, nats", title="Unanimous labels have no end for DPO, and one for IPO")
plt.show()
last = {name: curve[-1].item() for name, curve in ends.items()}
assert abs(last["DPO, 9 of 10"] - 21.97) < 0.05 and abs(last["IPO, 9 of 10"] - 4) < 0.01  # by hand
assert abs(last["IPO, all 10 agree"] - 5) < 0.01  # 1 / (2 beta)
unanimous = ends["DPO, all 10 agree"]
assert (unanimous.diff() > 0).all() and unanimous[-1] > 35  # 500 steps, and still growing
assert settle(dpo_cfg, 5).abs().max() < 1e-6 and settle(ipo_cfg, 5).abs().max() < 1e-6  # ties: stay

# %% [markdown]
# Both leave a tie where it is. Look at the numbers again, though: with 9 of 10 labels DPO wants 22 nats, odds of e to the 22.
# That is not overfitting. It is the answer to the question that $\beta$ = 0.1 asks.
#
# ### No pairs
#
# Most feedback does not come in pairs. One output was shown, and somebody put a thumb up or down. Outputs of *different*
# prompts cannot be paired: their $Z$ do not cancel. **KTO** gives every output its own push: up until its log-ratio is
# well above a reference point $z$, down until it is well below. $z$ estimates the KL from the reference, on outputs of
# other prompts.
#
# A table again: 256 prompts, 4 outputs worth 0, 1, 2 and 3. One random output of each prompt was shown; a thumb goes
# up for a worth of at least 2. We train with all thumbs and, as the one change, without the thumbs down
# (`undesirable_weight` 0), which is imitation of what was liked. **On paper:** where does the mean worth end, if thumbs up
# take all probability, and thumbs down lose all of theirs?

# %%
def thumbs(seed, steps=60, coin=False, **weights):
    """(steps,): mean worth of a table's outputs while KTO trains it, from 1.5."""
    generator = fixed(seed)
    shown = torch.randint(4, (256,), generator=generator)
    liked = (shown >= 2)[torch.randperm(256, generator=generator)] if coin else shown >= 2
    records = Prompts({"prompt": list(range(256)), "output": shown.tolist(), "desirable": liked.tolist()})
    cfg = OfflineConfig(batch_size=256, learning_rate=0.1)
    trainer = OfflineTrainer(Table(256, 4), records, KTO(KTOConfig(**weights)), cfg, generator)
    return [(trainer.step(), (trainer.policy.probabilities() @ torch.arange(4.0)).mean().item())[1] for _ in range(steps)]


worth = {"KTO, all thumbs": [thumbs(seed) for seed in range(3)],
         "without thumbs down": [thumbs(seed, undesirable_weight=0.0) for seed in range(3)],
         "control, shuffled thumbs": [thumbs(seed, coin=True) for seed in range(3)]}  # fmt: skip

# %%
title = "A thumb down is worth something (3 seeds)"
lab.curves(worth, ylabel="mean worth of an output", title=title, control="control, shuffled thumbs")
plt.show()
final = {name: torch.tensor(series)[:, -1] for name, series in worth.items()}
assert (final["KTO, all thumbs"] - final["without thumbs down"]).min() > 0.095  # 8 seeds: 0.173 +- 0.018
assert (final["control, shuffled thumbs"] - 1.5).abs().max() < 0.2  # 8 seeds: 1.50 +- 0.05

# %% [markdown]
# On paper: a thumb up leaves an output worth 2 or 3, on average 2.5. A thumb down removes a 0 or a 1, and the mean of the
# other three is 2 or 5/3, on average 1.83. Half and half makes 2.17. Without thumbs down that half stays at 1.5, which makes
# 2.0. The figure agrees. KTO knows no more than that: of an output that nobody was shown, it says nothing.

# %% [markdown]
# ## Exercises
#
# ### Exercise 3.1 | predict | 6 words | 5 min
# Two pairs, trained for a while with $\beta$ = 0.5. After which changes is the **loss** of Eq. (5) what it was (`True`)?

# %%
prediction = {
    "both outputs become 20 times likelier": ...,
    "the chosen one becomes 20 times likelier, and so it does under the reference": ...,
    "chosen and rejected change places": ...,
    "every pair is listed twice": ...,
    "beta doubles, before the first step": ...,
    "beta doubles, after many steps": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("3.1", check_what_changes, prediction)

# %% [markdown]
# <details><summary>Solution 3.1</summary>
#
# ```python
# prediction = {
#     "both outputs become 20 times likelier": True,
#     "the chosen one becomes 20 times likelier, and so it does under the reference": True,
#     "chosen and rejected change places": False,
#     "every pair is listed twice": True,
#     "beta doubles, before the first step": True,
#     "beta doubles, after many steps": False,
# }
# # The first line is the blind spot of this chapter: 20 times likelier or 20 times rarer, the loss cannot tell.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3.2 | implement | 2 lines | 10 min
# A policy is a reward model. Given the log-probs of the best policy and of the reference for all V outputs of a prompt,
# recover the rewards. They are known up to a constant, so let the first output have reward 0.

# %%
def implied_rewards(logprobs, ref_logprobs, dpo_beta):
    """(V,), (V,) -> (V,): the rewards for which the policy is the best one; the first is 0."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("3.2", check_implied_rewards, implied_rewards)

# %% [markdown]
# <details><summary>Solution 3.2</summary>
#
# ```python
# def implied_rewards(logprobs, ref_logprobs, dpo_beta):
#     rewards = dpo_beta * (logprobs - ref_logprobs)  # (V,): all but beta log Z
#     return rewards - rewards[0]
#     # Every policy passes through this, trained by DPO or not: there is always a reward that it is best for.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3.3 | find the bug | 1 line | 5 min
# Eq. (6) can be read as the gap of the policy minus the gap of the reference. Somebody wrote that down, and the loss of the
# first step was 0.474 with $\beta$ = 0.1, on a pair with reference log-probs of -3 and -5. Repair the function.

# %%
def buggy_log_ratio(chosen, rejected, ref_chosen, ref_rejected):
    """Eq. (6); everything (B,)."""
    return chosen - rejected - ref_chosen - ref_rejected


def log_ratio(chosen, rejected, ref_chosen, ref_rejected):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("3.3", check_log_ratio, log_ratio)

# %% [markdown]
# <details><summary>Solution 3.3</summary>
#
# ```python
# def log_ratio(chosen, rejected, ref_chosen, ref_rejected):
#     return (chosen - rejected) - (ref_chosen - ref_rejected)
#     # A lost bracket turned a sign. The gradient at the first step still points the right way, so the loss falls
#     # and the accuracy rises. Only log 2 at the start gives it away.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3.4 | ablate | 2 lines | 10 min
# Another cure for unanimous labels: pretend that a share of them is flipped. Run `settle(cfg)`, ten labels for A, with
# `label_smoothing` 0.1 in the `DPOConfig`, and return the last $\Delta$. Work out first what it should be.

# %%
def smoothed(dpo_beta):
    """The last Delta of ten unanimous labels with a label smoothing of 0.1."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("3.4", check_smoothing, smoothed)

# %% [markdown]
# <details><summary>Solution 3.4</summary>
#
# ```python
# def smoothed(dpo_beta):
#     return settle(DPOConfig(dpo_beta=dpo_beta, label_smoothing=0.1))[-1].item()
#     # log(0.9 / 0.1) / beta: unanimous labels smoothed by 0.1 are the same loss as nine labels of ten.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 3.5 | extend | 4 lines | 15 min
# DPO-Positive (arXiv 2402.13228) forbids the winner to fall. From $\Delta$ it subtracts a penalty, `weight` times the nats
# that the chosen output has lost against the reference, and nothing if it has lost none:
# $-\log \sigma(\beta(\Delta - w \max(0, \log \pi_{ref}(y_A) - \log \pi_\theta(y_A))))$. Write it, mean over pairs.

# %%
def positive_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta, weight):
    """DPO-Positive; the first four are (B,)."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("3.5", check_positive_loss, positive_loss)

# %% [markdown]
# <details><summary>Solution 3.5</summary>
#
# ```python
# def positive_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta, weight):
#     delta = (chosen - ref_chosen) - (rejected - ref_rejected)  # (B,)
#     fall = (ref_chosen - chosen).clamp(min=0)  # (B,)
#     return -logsigmoid(dpo_beta * (delta - weight * fall)).mean()
#     # It is about training pairs. Of outputs outside the pairs it says as little as DPO does.
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - go from Eq. (4) to Eq. (5) on paper, and say where $Z$ went and which two conditions the step needs;
# - test an implementation of DPO with one number, log 2;
# - recognise likelihood displacement in a log, and say what DPO cannot see;
# - choose between DPO, IPO and KTO by the labels that you have.
#
# What we did not test. The survey sets DPO beside RLHF as the simpler pipeline; we ran no RLHF here, so we cannot say
# which describes better. Our annotator is simulated, and knows the scene. IPO and KTO ran on tables only.
#
# References: the survey, section 2.2.2 (arXiv 2508.08189, version 3). DPO: arXiv 2305.18290. IPO: 2310.12036. KTO: 2402.01306.
# Likelihood displacement: 2410.08847. In the library: `minivisrl/paradigms/dpo.py`, `offline.py`. A run at full length:
# `minivisrl run mllm/dpo`.
