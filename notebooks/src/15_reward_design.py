# %% [markdown]
# # 15. Reward design: who judges a picture?
#
# [previous: 12. Image generation](12_image_generation.ipynb) | [contents](00_start_here.ipynb) |
# [next: 16. Unified RL](16_unified_rl.ipynb)
#
# **Question.** A model of people's choices, a model that answers questions, a number computed from pixels: what does
# each of them see in a picture, and how hard may one push it?
#
# **Survey:** section 3.2.4, Figure 5 (version 3). **Running time:** about a minute and a half on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import matplotlib.pyplot as plt
import torch
from checks import ch15
from checks.ch15 import (
    check_blind_spots,
    check_frechet_1d,
    check_peak,
    check_without,
    check_worst_of,
)
from ipywidgets import SelectionSlider

from minivisrl import DATA, lab
from minivisrl.generation.flow import FlowPolicy
from minivisrl.generation.judge import PictureJudge
from minivisrl.lab import check
from minivisrl.mllm import VLMPolicy
from minivisrl.optimization import GRPO, GRPOConfig
from minivisrl.paradigms.baselines import best_of_n_kl
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.paradigms.rlhf import LearnedReward
from minivisrl.policy import frozen
from minivisrl.rewards import judge
from minivisrl.rewards.metrics import frechet_distance, frechet_shares, layout_iou, moments
from minivisrl.rewards.pictures import composition
from minivisrl.rewards.taste import TasteConfig, tastes
from minivisrl.worlds.drawings import drawing_prompts
from minivisrl.worlds.scenes import render

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# Figure 5 of the survey sorts rewards for pictures by who does the judging. We build one or two of each kind, and put them on
# the same base, the flow of [chapter 12](12_image_generation.ipynb).
#
# | paradigm | papers | here, and its name in the code | reads the caption? |
# |---|---|---|---|
# | (a) human-centric preference | ImageReward, HPS, DPOK | a network that learned by Eq. (3) what simulated annotators choose: `preference` | yes |
# | (b) multimodal reasoning | LLaVA-Reward, UnifiedReward, PARM | our VLM of chapter 7 answers questions about the picture: `answers` | through its questions |
# | (c) metric-driven | FID, IoU as rewards | overlap of what is painted with the scene: `iou` | through the scene |
# | (c) metric-driven | | what a picture adds to the FID of its set, with the VLM's eyes: `realism` | no |
#
# The **gold** metric is none of them. `composition` reads the pixels back by a program and gives a third of a point for each place,
# color and shape of the caption. No judge has seen it, and outside of a laboratory nobody has it.
#
# **(a)** A reward $R_\phi$ learns from pairs, $y_A$ preferred to $y_B$ for the same caption $p$:
#
# $$\mathcal L(\phi) = -\log \sigma\big(R_\phi(p, y_A) - R_\phi(p, y_B)\big) \tag{3}$$
#
# **(b)** For questions $q$ with known answers, such as *is there a red circle ?*, the mean probability of the right one:
#
# $$R(p, y) = \frac{1}{|Q_p|} \sum_{q \in Q_p} \pi_{VLM}(\text{answer}_q \mid y, q) \tag{A1}$$
#
# **(c)** Painted pixels $A$ of the picture and $B$ of the scene; mean and covariance of features of two sets of pictures:
#
# $$\mathrm{IoU} = \frac{|A \cap B|}{|A \cup B|}, \qquad
# d^2 = |\mu_1 - \mu_2|^2 + \mathrm{tr}\big(\Sigma_1 + \Sigma_2 - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2}\big)
# \tag{A2}$$
#
# FID is a number for a *set* (Eq. (15)), and a policy gradient needs one for each picture. `frechet_shares` asks what a picture adds
# to its set: the distance without it, minus the distance with it.

# %% [markdown]
# ### How hard do we push?
#
# The first half of the laboratory does not train. It draws n pictures of a caption and keeps the one that the judge likes best. How
# far that is from the base is known,
#
# $$\mathrm{KL}(n) = \log n - \frac{n - 1}{n} \tag{A3}$$
#
# and $d = \sqrt{\mathrm{KL}}$ is the axis on which Gao, Schulman and Hilton found a law for best-of-n:
#
# $$\mathrm{gold}(d) = \mathrm{gold}(0) + d\,(\alpha - \beta d) \tag{A4}$$
#
# With $\beta > 0$ gold rises, peaks and falls, while the **proxy**, the score of the judge itself, can only rise.
#
# | symbol | in words | in the code | shape |
# |---|---|---|---|
# | $R$ | a judge as a reward function | `judges[name]` | B captions, N pictures: (B, N) |
# | $\mu, \Sigma$ | mean and covariance of features | `moments` | (D,), (D, D) |
# | $A$, $B$ | painted pixels | `painted` | (N, H, W) |
# | $n$, $d$ | pictures to choose among; distance from the base | `n`, `distance` | numbers |
# | $\alpha$, $\beta$ | how fast gold starts, how fast it bends | `ch15.gao` | numbers |
#
# **Where our code departs from print.** (1) The annotators are programs. (2) Our FID uses 8 axes of a tiny VLM, the original
# 2048 features of a network for photographs. (3) IoU is computed on pixels, against one of many pictures that a caption allows.

# %% [markdown]
# ## By hand
#
# ### A distance of sets
#
# In one dimension the distance of (A2) is $(\mu_1 - \mu_2)^2 + (s_1 - s_2)^2$. One set has mean 1 and spread 2. **Predict** its
# distance from three others.

# %%
# NBVAL_CHECK_OUTPUT
first = torch.tensor([1.0]), torch.tensor([[2.0**2]])
for mean, spread in ((4.0, 5.0), (1.0, 5.0), (4.0, 2.0)):
    second = torch.tensor([mean]), torch.tensor([[spread**2]])
    by_hand = (1 - mean) ** 2 + (2 - spread) ** 2
    print(f"mean {mean:.0f}, spread {spread:.0f}: distance {frechet_distance(first, second):.3f}, by hand {by_hand:.3f}")

# %% [markdown]
# What a picture adds depends on its company. The reference has mean 1 and spread 1. **Predict** who adds most in each set of
# three, and who least.

# %%
# NBVAL_CHECK_OUTPUT
reference = torch.ones(1).double(), torch.ones(1, 1).double()
for values in ([0.0, 0.0, 4.0], [0.0, 1.0, 2.0], [1.0, 1.0, 1.0]):
    shares = frechet_shares(torch.tensor(values)[:, None], reference)
    print(values, "adds", " ".join(f"{share:+.3f}" for share in shares))

# %% [markdown]
# In the first set the odd one hardly helps. The second has the mean and the spread of the reference, and its most typical picture adds
# least: without it the mean is still right. In the third the best picture there is stands three times, and no copy adds anything. A
# reward that depends on the company cannot say which of two pictures is better.
#
# ### The best of n, exactly
#
# Four pictures with these scores. **Predict** what the best of 2 is worth in gold, and the best of 4.
#
# No luck is needed to answer, and no new samples. Sort all N pictures by the judge. Number $i$ (from 1) is the best of
# $\binom{i-1}{n-1}$ of the $\binom{N}{n}$ choices.
#
# ## Code: show once, prove equal, import

# %%
def best_of_n(proxy, scores, n):
    """Mean of `scores` of the picture that `proxy` likes best, over all choices of n of N; (B, N) each."""
    count = proxy.shape[1]
    i = torch.arange(1, count + 1, dtype=torch.float64)  # (N,)
    log_ways = torch.lgamma(i) - torch.lgamma((i - n + 1).clamp(min=1))  # (i - 1)! / (i - n)!
    weights = torch.where(i >= n, log_ways.exp(), 0.0)  # (N,), up to a factor
    ordered = scores.double().gather(1, proxy.argsort(dim=1))  # (B, N)
    return (ordered @ (weights / weights.sum())).mean().item()


# %%
# NBVAL_CHECK_OUTPUT
proxy, gold = torch.tensor([[0.3, 0.9, 0.5, 0.1]]), torch.tensor([[1.0, 0.0, 0.8, 0.2]])
for n in (1, 2, 3, 4):
    every = ch15.by_all_choices(proxy, gold, n)
    print(f"best of {n}: proxy {best_of_n(proxy, proxy, n):.3f}  gold {best_of_n(proxy, gold, n):.3f}, by all choices {every:.3f}")

# %% [markdown]
# The judge's favourite is worth nothing. Mild choices avoid it most of the time, hard ones do not: proxy up, gold up, then down.
#
# Now (A2), ours against the library's. The eigenvalues of $\Sigma_1 \Sigma_2$ are those of the matrix under the root.

# %%
def our_frechet(first, second):
    """(N, D), (M, D) features of two sets -> squared distance."""
    (mean, cov), (other_mean, other_cov) = moments(first), moments(second)
    root = torch.linalg.eigvals(cov @ other_cov).real.clamp(min=0).sqrt().sum()
    return (mean - other_mean).square().sum() + (cov + other_cov).trace() - 2 * root


# %%
# NBVAL_CHECK_OUTPUT
dice = torch.Generator().manual_seed(1)
one, two = torch.randn(50, 4, generator=dice), 2 * torch.randn(70, 4, generator=dice) + 1
ours, theirs = our_frechet(one, two), frechet_distance(moments(one), moments(two))
print("same distance:", torch.isclose(ours, theirs, atol=1e-6).item())
print("a set is at 0 from itself:", abs(frechet_distance(moments(one), moments(one)).item()) < 1e-6)

# %% [markdown]
# ## Experiment
#
# ### Four judges, one gallery of traps
#
# For 32 scenes: the right picture, and six wrong ones. `answers` asks, for each object, whether it is there; for one that is not, too; and
# how many there are. **Predict** which judge is fooled by which picture.

# %%
vlm = VLMPolicy.load(DATA / "checkpoints" / "vlm")
trunk = PictureJudge.load(DATA / "checkpoints" / "picture_reward")
truth = render(drawing_prompts(512, "heldout", torch.Generator().manual_seed(3))["scene"], 16) / 255
realism = ch15.Realism(vlm, truth)
judges = {"preference": LearnedReward(trunk, likelihood=0.0), "answers": ch15.Answers(vlm), "iou": layout_iou}

scenes = drawing_prompts(32, "heldout", torch.Generator().manual_seed(1))
hostile = ch15.hostile_pictures(scenes)  # name -> (32, 3, 16, 16)
shown = [pictures[row] for row in (1, 2) for pictures in hostile.values()]
lab.gallery(torch.stack(shown), list(hostile) * 2, columns=7, title="Two scenes: the right picture, and six traps")
plt.show()
for row in (1, 2):
    print(scenes["prompt"][row])

# %%
columns = {"prompts": scenes["prompt"], "scene": scenes["scene"], "objects": scenes["objects"]}
seen = {kind: {name: torch.tensor(fn(list(pictures), **columns)) for name, fn in (judges | {"gold": composition}).items()}
        for kind, pictures in hostile.items()}  # fmt: skip
fooled = {kind: {name: (score >= seen["right"][name] - 1e-6).float().mean().item() for name, score in row.items()}
          for kind, row in seen.items() if kind != "right"}  # fmt: skip
print("share of scenes in which the trap scores as high as the right picture; last: distance of the set from true pictures")
print(" " * 15, *(f"{name:>11s}" for name in (*judges, "gold", "distance")))
for kind, row in fooled.items():
    print(f"{kind:15s}", *(f"{value:11.2f}" for value in row.values()), f"{realism.distance(hostile[kind]):11.2f}")
print(f"{'right':15s}", " " * 47, f"{realism.distance(hostile['right']):11.2f}")
assert fooled["colors swapped"]["iou"] == 1.0  # exact: IoU is blind to color
assert fooled["moved"]["answers"] > 0.15  # 8 seeds: 0.42 +- 0.07; told by a coin: 0.5
assert max(row["gold"] for row in fooled.values()) == 0.0
assert max(row["preference"] for row in fooled.values()) < 0.3  # 8 seeds: 0.10 +- 0.05, twice as many

# %% [markdown]
# Each judge has a hole where its author did not look. `iou` does not know a color. No question of `answers` asks *where*, so for it the
# moved picture is about as good as the right one. To the distance of sets, right pictures, moved ones and **pictures for another
# caption** are the same; it only sees what does not look like this world: twice as many objects, noise, nothing. The preference
# model, which learned from 15,360 comparisons, is fooled by few of these traps. But nobody optimised them against it.
#
# ### The laboratory: the same pictures, four proxies
#
# 24 held-out captions, 32 pictures of each, all by the base. Every judge scores the same pictures. **Predict** for each judge whether
# gold rises, stays, or turns.

# %%
policy = FlowPolicy.load(DATA / "checkpoints" / "flow")
policy.sampler = ch15.QUICK  # 6 denoising steps
captions = drawing_prompts(24, "heldout", torch.Generator().manual_seed(0))
drawn = policy.rollout(captions, 32, torch.Generator().manual_seed(100))
scores = {name: judge(fn, drawn)[0].view(24, 32) for name, fn in (judges | {"realism": realism}).items()}
gold = judge(composition, drawn)[0].view(24, 32)  # (B, N)

ns = [1, 2, 4, 8, 16, 32]
distance = [best_of_n_kl(n) ** 0.5 for n in ns]
curves = {name: [[best_of_n(s, of, n) for n in ns] for of in (s, gold)] for name, s in scores.items()}
ch15.pushing_figure(distance, curves)
plt.show()

# %%
print("judge       gold of best of", *(f"{n:6d}" for n in ns), "   alpha   beta")
for name, (rises, golds) in curves.items():
    alpha, beta = ch15.gao(distance, golds)
    print(f"{name:26s}", *(f"{value:6.3f}" for value in golds), f"  {alpha:6.2f} {beta:6.2f}")
    assert all(a <= b + 1e-9 for a, b in zip(rises, rises[1:], strict=False))  # exact: a proxy never falls
print(f"by gold itself, best of 16: {best_of_n(gold, gold, 16):.3f}")
gain = {name: golds[4] - golds[0] for name, (_, golds) in curves.items()}  # best of 16 minus base
assert gain["preference"] > 0.08  # 8 seeds: 0.20 +- 0.03
assert gain["answers"] > 0.03  # 8 seeds: 0.12 +- 0.02
assert gain["preference"] > gain["iou"] - 0.02  # 8 seeds: 0.11 +- 0.05 more
assert curves["realism"][1][5] < curves["realism"][1][2]  # 8 seeds: 0.07 +- 0.05 less

# %% [markdown]
# Four judges, three fates (mean and spread of the best of 16 over 8 sets of captions and pictures; the base has 0.49 $\pm$ 0.04, and
# choosing by gold itself gives 0.93).
#
# - `preference` brings the most, 0.69 $\pm$ 0.05, and bends: most of the gain is there at n = 8.
# - `answers` (0.60 $\pm$ 0.05) and `iou` (0.57 $\pm$ 0.07) bring half as much, and on average do not turn within 32 pictures. **A null result:**
#   with a judge that reads the caption, choosing among honest pictures of the base is too gentle to turn gold down.
# - `realism` turns. The first choice helps a little, because broken pictures go. After that it looks for whatever drags the
#   mean of the set towards the reference, and the caption pays for it: from n = 4 to 32 gold falls by 0.07 $\pm$ 0.05, to below where it
#   began (0.04 $\pm$ 0.06 below).
#
# ### What a weak reward does, and what helps
#
# The preference model above learned from thousands of comparisons. Now a poor one: keep its trunk, throw its head away, and fit a
# linear head to **24** comparisons of other pictures (Eq. (3), `ch15.fit_head`). Five such heads, each with comparisons of its own: one
# alone (the mean over the five), their mean, the worst of the five. And one head with all 120 comparisons, for the same money.

# %%
others = policy.rollout(drawing_prompts(24, "train", torch.Generator().manual_seed(2)), 8, torch.Generator().manual_seed(3))
taste = TasteConfig()
utility = torch.tensor(tastes(others.outputs, others.prompts.repeat(8)["scene"], taste)).view(24, 8)
known, new = ch15.features(trunk, others), ch15.features(trunk, drawn)  # (B, G, D) each
center, scale = known.mean(dim=(0, 1)), known.std(dim=(0, 1))
known, new = (known - center) / scale, (new - center) / scale


def ensemble(seed, pairs=24, heads=5):
    """(heads, B, N) scores of the new pictures, each head at mean 0 and spread 1."""
    dice = torch.Generator().manual_seed(seed)
    weights = torch.stack([ch15.fit_head(known, utility, pairs, dice, taste.noise) for _ in range(heads)])
    told = torch.einsum("bnd,kd->kbn", new, weights)
    return (told - told.mean(dim=(1, 2), keepdim=True)) / told.std(dim=(1, 2), keepdim=True)


def golds(score):
    """Gold of the best of each n, (6,)."""
    return torch.tensor([best_of_n(score, gold, n) for n in ns])


table = {"one head": [], "mean of five": [], "worst of five": [], "one, all 120": []}
for seed in range(8):
    five = ensemble(seed)
    rows = torch.stack([golds(head) for head in five]).mean(0), golds(five.mean(0)), golds(five.amin(0)), golds(ensemble(seed, 120, 1)[0])
    for name, row in zip(table, rows, strict=True):
        table[name].append(row)
means = {name: torch.stack(rows) for name, rows in table.items()}  # (8, 6)
lab.curves(means, x=distance, xlabel="distance from the base, sqrt(KL)", ylabel="gold of the best of n",
           title="Five weak heads: the mean helps, the worst does not (8 fits)")  # fmt: skip
plt.show()
at = {name: rows.mean(0) for name, rows in means.items()}
assert at["mean of five"][4] > at["one head"][4] + 0.01  # best of 16; 8 seeds: 0.66 +- 0.05 against 0.62 +- 0.04
assert abs(at["worst of five"][4] - at["one head"][4]) < 0.06  # 8 seeds: 0.62 +- 0.04 both

# %% [markdown]
# A head of 24 comparisons climbs at first and then bends over, while its own score goes on rising. The **mean** of five is better all the way.
# But so is one head that got all 120 comparisons: what an ensemble of means buys here is the data, not the vote (over 8 sets of pictures,
# best of 16: 0.66 $\pm$ 0.05 and 0.63 $\pm$ 0.10). The **worst** of five, the cautious vote, buys nothing over a single head (both 0.62).
# Caution helps where heads disagree *because* a picture is strange; our pictures all come from one base, and heads disagree everywhere.
#
# ### A KL penalty is an early stop
#
# The optimum of Eq. (4) weights each picture of the base by $e^{r / \beta}$, so a penalty needs no new pictures either. Move $\beta$ down, for
# the first of the weak heads. **Predict:** at the same distance from the base, is gold higher than that of best-of-n?

# %%
weak = ensemble(0)[0]
weak_curve = [[best_of_n(weak, of, n) for n in ns] for of in (weak, gold)]
lab.explore(
    lambda kl_coef: ch15.soft_figure(distance, weak_curve, weak, gold, kl_coef),
    kl_coef=SelectionSlider(options=ch15.BETAS, value=0.5, description="beta"),
)

# %% [markdown]
# It is not. Over 8 sets of pictures the two golds at the same distance differ by less than 0.01 on average ($\pm$ 0.03 at most). A penalty chooses *where* on
# the curve one stops, as n does, and as stopping early does in training; the curve belongs to the judge. To bend the curve itself one has
# to change the judge: more comparisons, or several heads.
#
# ### And with training
#
# GRPO on the flow, paid by layout IoU alone. Eight steps of 32 pictures, three seeds, and the control, the same rewards dealt out at
# random. The metric knows no color. **Predict** IoU and gold.

# %%
def learn(reward, seed, collect=act_and_judge, steps=8):
    """A copy of the base after a short GRPO training on a reward."""
    trained = frozen(policy).requires_grad_(True)
    cfg = OnlineConfig(batch_size=4, group_size=8, learning_rate=2e-4)
    prompts = drawing_prompts(256, "train", torch.Generator().manual_seed(0))
    trainer = OnlineTrainer(trained, prompts, reward, GRPO(GRPOConfig(kl_coef=0.0)), cfg,
                            torch.Generator().manual_seed(seed), collect=collect)  # fmt: skip
    for _ in range(steps):
        trainer.step()
    return trained


arms = {
    "before": [policy],
    "reward, IoU": [learn(layout_iou, seed) for seed in range(3)],
    "control": [learn(layout_iou, seed, shuffled(act_and_judge)) for seed in range(3)],
}

# %%
metrics = {"IoU, the proxy": layout_iou, "gold": composition}
fresh = drawing_prompts(24, "heldout", torch.Generator().manual_seed(77))


def looked_at(trained):
    """Metrics of sampled pictures of held-out captions, four each."""
    rollout = trained.rollout(fresh, 4, torch.Generator().manual_seed(5))
    return {name: judge(fn, rollout)[0].mean().item() for name, fn in metrics.items()}


measured = {arm: [looked_at(p) for p in policies] for arm, policies in arms.items()}
series = {arm: {name: [row[name] for row in rows] for name in metrics} for arm, rows in measured.items()}
axes = lab.bars(series, ylabel="score on held-out captions", title="IoU goes up a little, and gold does not follow (3 seeds)").axes[0]
axes.set_ylim(0, 1)
plt.show()
after = {arm: {name: sum(values) / len(values) for name, values in row.items()} for arm, row in series.items()}
paid, idle, before = (after[arm] for arm in ("reward, IoU", "control", "before"))
assert paid["IoU, the proxy"] > before["IoU, the proxy"] - 0.03  # before 0.68; 8 seeds: 0.70 +- 0.05
assert paid["IoU, the proxy"] > idle["IoU, the proxy"] + 0.05  # 8 seeds: control 0.54 +- 0.06
assert paid["gold"] < before["gold"] + 0.03  # before 0.63; 8 seeds: 0.57 +- 0.08
assert paid["gold"] > idle["gold"] + 0.1  # 8 seeds: control 0.25 +- 0.10

# %%
few = fresh.rows(range(6))
looks = [arms[arm][0].rollout(few, 1, torch.Generator().manual_seed(6)).outputs for arm in arms]
title = "The same captions and dice, before and after eight steps"
pictures = torch.stack([picture for row in looks for picture in row])
lab.gallery(pictures, columns=6, row_labels=("before", "IoU", "control"), title=title)
plt.show()
print(*few["prompt"], sep="\n")

# %% [markdown]
# Over 8 seeds IoU goes from 0.68 to 0.70 $\pm$ 0.05 and gold from 0.63 to 0.57 $\pm$ 0.08: proxy up or held, gold down, without any
# villain. Look at the pictures. IoU has swept the background, where any paint is too much, and that was the cheap way up, it seems. Whether
# an object has edges, a whole inside and one color, so that it can be read, is nothing to it.
#
# Look at the control before you blame the metric for all of it. Eight steps on *meaningless* rewards cost far more gold than IoU does, and
# IoU too: a small batch at this learning rate wears the drawings down. IoU holds its own quantity against the wear, and part of gold
# with it. What it does not do is improve gold, and its log does not say so.
#
# At length and with fresh captions, the learned reward of paradigm (a) does better: `minivisrl run generation/rlhf-grpo` has its row
# in the [README](../README.md), gold beside it.

# %% [markdown]
# ### What to notice
#
# - In the four panels the orange lines look alike. The blue ones do not, and in a real run only the orange one is plotted.
# - One head and the worst of five lie on each other; so do the mean of five and one head with all comparisons.
# - The two curves behind the slider are one curve: a penalty is a place on it.

# %% [markdown]
# ## What can go wrong
#
# ### The alarm that never rings
#
# In every panel of the laboratory the proxy rises, by construction. No log of a reward can show that it is over-optimised. What can is a
# second judge with other blind spots. We let each judge choose, and look what *the others* think of its best of 32, in standard
# deviations of their own scores above the base.

# %%
scale = {name: (s.mean(), (s - s.mean(1, keepdim=True)).std()) for name, s in (scores | {"gold": gold}).items()}
print("chosen by   ", *(f"{name:>11s}" for name in scale))
cross = {}
for name, proxy in scores.items():
    cross[name] = {other: (best_of_n(proxy, s, 32) - scale[other][0].item()) / scale[other][1].item()
                   for other, s in (scores | {"gold": gold}).items()}  # fmt: skip
    print(f"{name:12s}", *(f"{value:+11.2f}" for value in cross[name].values()))
assert all(row[name] == max(row.values()) for name, row in cross.items())  # everyone thinks most of its own choice
assert cross["realism"]["preference"] < 0.1  # 8 seeds: -0.48 +- 0.26; of its own choice 1.52 +- 0.07

# %% [markdown]
# Read along the rows. What `preference` chooses, all like somewhat, and gold as well. What `realism` chooses only `realism` likes, and `preference`
# dislikes (-0.48 $\pm$ 0.26 over 8 seeds). The agreement of
# judges with different holes is not the truth, but its absence is an alarm, and it needs no label. So: keep one judge out of
# the reward, log it, and look at pictures.

# %% [markdown]
# ## Exercises
#
# ### Exercise 15.1 | predict | 6 answers | 5 min
# True where the judge has **no way** of telling the trap from the right picture, whatever the network behind it.

# %%
prediction = {
    "answers, moved": ...,
    "answers, colors swapped": ...,
    "iou, moved": ...,
    "iou, colors swapped": ...,
    "realism, another's": ...,
    "realism, noise": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("15.1", check_blind_spots, prediction)

# %% [markdown]
# <details><summary>Solution 15.1</summary>
#
# ```python
# prediction = {
#     "answers, moved": True,
#     "answers, colors swapped": False,
#     "iou, moved": False,
#     "iou, colors swapped": True,
#     "realism, another's": True,
#     "realism, noise": False,
# }
# ```
#
# </details>

# %% [markdown]
# ### Exercise 15.2 | implement | 3 lines | 10 min
# The distance of (A2) in one dimension, from two lists of numbers (unbiased variances).

# %%
def frechet_1d(first, second):
    """(N,), (M,) -> number."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("15.2", check_frechet_1d, frechet_1d)

# %% [markdown]
# <details><summary>Solution 15.2</summary>
#
# ```python
# def frechet_1d(first, second):
#     shift = first.mean() - second.mean()
#     return shift**2 + (first.std() - second.std()) ** 2
#     # Of spreads, not of variances. In one dimension the matrices of (A2) commute: s1^2 + s2^2 - 2 s1 s2.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 15.3 | find the bug | 2 lines | 10 min
# A colleague lets the most doubtful of K judges decide, and finds that all but one judge are ignored. Scores are (K, N), one row per
# judge. Repair it (unbiased standard deviation).

# %%
def careless(scores):
    """(K, N) -> (N,): what the most doubtful judge says of each picture."""
    return scores.amin(dim=0)


def worst_of(scores):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("15.3", check_worst_of, worst_of)

# %% [markdown]
# <details><summary>Solution 15.3</summary>
#
# ```python
# def worst_of(scores):
#     spread = scores.std(dim=1, keepdim=True)
#     return ((scores - scores.mean(dim=1, keepdim=True)) / spread).amin(dim=0)
#     # Eq. (3) leaves a reward's zero free, and its scale to chance: rewards of two models have no common unit.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 15.4 | ablate | 3 lines | 15 min
# Which question is worth asking? Write `without(asked, kind)`: the (question, answer) pairs of a picture without one of three kinds,
# *there* (answered by yes), *absent* (by no), *count* (by a number). Then run `Answers` with `ch15.questions` replaced, and compare.

# %%
def without(asked, kind):
    """Pairs (question, answer) and "there", "absent" or "count" -> the pairs of the other kinds."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("15.4", check_without, without)

# %% [markdown]
# <details><summary>Solution 15.4</summary>
#
# ```python
# def without(asked, kind):
#     name = {"yes": "there", "no": "absent"}
#     return [(q, answer) for q, answer in asked if name.get(answer, "count") != kind]
#     # Gold of the best of 16 over 8 sets of pictures, 0.60 with all questions: without "there" 0.08 +- 0.04 less,
#     # without "count" 0.02 +- 0.03 less, without "absent" 0.00 +- 0.01. Two of three questions are hardly worth asking.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 15.5 | extend | 3 lines | 10 min
# From $\alpha$ and $\beta$ of (A4), which n up to 1000 has the highest gold? Use `best_of_n_kl`. Try it on the fits of the laboratory.

# %%
def peak(alpha, beta):
    """Two numbers -> the n from 1 to 1000 where (A4) is highest."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("15.5", check_peak, peak)

# %% [markdown]
# <details><summary>Solution 15.5</summary>
#
# ```python
# def peak(alpha, beta):
#     def law(n):
#         d = best_of_n_kl(n) ** 0.5
#         return d * (alpha - beta * d)
#
#     return max(range(1, 1001), key=law)
#     # The peak is at d = alpha / (2 beta), if beta > 0; otherwise take as many as you can afford.
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - build a judge of each kind of Figure 5, and name its blind spot before anybody trains on it;
# - draw proxy and gold against $\sqrt{\mathrm{KL}}$ without any training, exactly, from one set of samples;
# - say what each remedy does: an early stop and a KL penalty choose a place on the curve, data and averaging lift the curve.
#
# What the survey says and we did not test. Its preference models learned from people, its VLM judges reason in sentences and rate
# safety and fidelity; ours says yes, no or a number. FID on 8 axes of a tiny model shares the formula with FID, not its judgement. DPOK
# and DiffPPO train at length against a learned reward: `minivisrl run generation/rlhf-grpo` does, with its result in the
# [README](../README.md). Rewards for video are the subject of another section.
#
# References: the survey, section 3.2.4 (arXiv 2508.08189, version 3). ImageReward (2304.05977), HPS (2303.14420), DPOK (2305.16381),
# LLaVA-Reward (2507.21391), UnifiedReward (2503.05236), PARM (2501.13926). Scaling laws for reward model overoptimization
# (2210.10760), reward model ensembles (2310.02743), FID (1706.08500). In the library: `minivisrl/rewards/metrics.py`,
# `minivisrl/rewards/taste.py`, `minivisrl/generation/judge.py`.
