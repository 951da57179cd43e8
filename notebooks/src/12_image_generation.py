# %% [markdown]
# # 12. Image generation: every denoising step is an action
#
# [previous: 7. Conventional MLLMs](07_conventional_mllms.ipynb) | [contents](00_start_here.ipynb) |
# [next: 15. Reward design](15_reward_design.ipynb)
#
# **Question.** A diffusion model writes no tokens. What is its action, how likely was it, and what changes in the
# algorithms of chapters 3 to 6 when that is settled?
#
# **Survey:** section 3.2.1 (version 3). **Running time:** about a minute on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import json
from dataclasses import replace

import matplotlib.pyplot as plt
import torch
from checks.ch12 import (
    SAMPLERS,
    check_ddim,
    check_pair_loss,
    check_statements,
    check_step_kl,
    check_within,
    gaussian_end,
    noise_figure,
)
from ipywidgets import FloatSlider, IntSlider
from torch import nn
from torch.distributions import Normal
from torch.nn.functional import logsigmoid

from minivisrl import DATA, lab
from minivisrl.generation.denoising import DenoisingPolicy
from minivisrl.generation.flow import FlowPolicy
from minivisrl.generation.steps import ddim_step, sde_step, sde_transition
from minivisrl.lab import check
from minivisrl.optimization import GRPO, GRPOConfig, grpo_loss
from minivisrl.paradigms.baselines import RWR, RWRConfig
from minivisrl.paradigms.dpo import DPOConfig, dpo_loss
from minivisrl.paradigms.offline import encode_pairs
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.policy import ActionStats, Policy, frozen
from minivisrl.rewards import weighted
from minivisrl.rewards.pictures import composition
from minivisrl.rollout import PreferencePairs, Prompts, Rollout
from minivisrl.worlds.drawings import drawing_prompts

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# The survey writes an episode as a sequence of actions, each drawn given the prompt and what came before:
#
# $$s_t = (p, a_1, \dots, a_{t-1}) \tag{1}$$
#
# $$a_t \sim \pi_\theta(a_t \mid s_t) \tag{2}$$
#
# An image model starts from pure noise and removes a little of it, again and again. DDPO reads this as an episode: the
# picture so far is the state, the next picture is the action. There is nothing to add to the algorithms.
#
# | piece | denoising | in the code | shape |
# |---|---|---|---|
# | $p$ | the caption | `prompts["prompt"]` | B strings |
# | $s_t$ | the noisy picture $x$, its noise level, $p$ | `actions["x"]`, `actions["level"]` | (N, T, C, H, W), (N, T) |
# | $a_t$ | the picture $x'$ at the next level | `actions["next"]` | (N, T, C, H, W) |
# | $\pi_\theta(a_t \mid s_t)$ | a Gaussian around what the denoiser says | `logprobs` | (N, T) |
# | reward | a number for the finished picture | `rewards` | (N,) |
#
# With K denoising steps there are T = K - 1 actions. The last step adds no noise, so it is no action.
#
# ### Where the Gaussian comes from
#
# Without fresh noise a sampler has nothing to explore and no density. Two families add it. **DDIM**, for diffusion:
#
# $$x' = \sqrt{\bar\alpha'}\, \hat x_0 + \sqrt{1 - \bar\alpha' - s^2}\, \hat\epsilon + s\, z, \qquad
# s = \eta \sqrt{\frac{1 - \bar\alpha'}{1 - \bar\alpha} \Big(1 - \frac{\bar\alpha}{\bar\alpha'}\Big)} \tag{A1}$$
#
# A **flow** follows an ODE, $dx = v\, dt$. Flow-GRPO turns it into an SDE with the same marginals, that is, with the same
# distribution of $x$ at every level:
#
# $$x' = x + \Big(v + \frac{g^2}{2\sigma} \big(x + (1 - \sigma) v\big)\Big) dt + g \sqrt{-dt}\, z, \qquad
# g = a \sqrt{\frac{\sigma}{1 - \sigma}} \tag{A2}$$
#
# | symbol | meaning | in the code |
# |---|---|---|
# | $\hat\epsilon$, $v$ | what the denoiser says: the noise, or noise minus picture | `noise_pred`, `velocity` (N, ...) |
# | $\bar\alpha$, $\bar\alpha'$ | share of the signal's variance, before and after | `alpha_bar`, `alpha_bar_prev` |
# | $\sigma$, $\sigma'$ | noise level from 1 to 0; $dt = \sigma' - \sigma < 0$ | `sigma`, `sigma_next` |
# | $\eta$, $a$ | how much fresh noise | `eta`, `noise_level`; both are `sampler.noise` |
# | $z$ | fresh standard normal noise | from `generator` |
#
# Either way the action is Gaussian, with mean $\mu$ (all but the last term) and standard deviation $s$:
#
# $$\log \pi_\theta(a_t \mid s_t) = \frac 1D \sum_{d=1}^D \log \mathcal N(x'_d;\, \mu_d, s^2) \tag{A3}$$

# %% [markdown]
# ### Three ways to learn
#
# - **Policy gradient** (DDPO, Flow-GRPO): Eqs. (11) and (12), as in [chapter 6](06_grpo.ipynb). One advantage per picture, shared
#   by its steps, and a ratio $\rho$ per step.
# - **Reward-weighted regression** (RWR), DDPO's rival: imitate your own samples, the good ones more,
#
# $$\mathcal L_{RWR} = -\sum_i w_i \sum_t \log \pi_\theta(a_{i,t} \mid s_{i,t}), \qquad w = \mathrm{softmax}(r / \tau) \tag{A4}$$
#
# - **Diffusion-DPO**, on pairs of pictures, chosen $y_A$ and rejected $y_B$:
#
# $$\mathcal L_{DPO} = -\mathbb E \log \sigma(\beta \Delta_\theta) \tag{5}$$
#
# $$\Delta_\theta = \log \frac{\pi_\theta(y_A \mid p)}{\pi_{ref}(y_A \mid p)} - \log \frac{\pi_\theta(y_B \mid p)}{\pi_{ref}(y_B \mid p)} \tag{6}$$
#
#   Nobody knows the probability of a finished picture. Its place is taken by the denoising loss: add noise to the picture, ask the
#   denoiser what it should say there, and take minus the squared error (`policy.encode`, then `policy.logprobs`):
#
# $$\log \pi_\theta(y \mid p) \;\to\; -\Vert \mathrm{target} - \mathrm{said}_\theta \Vert^2 \tag{A5}$$
#
# **Where our code departs from print.**
#
# 1. The survey lists DDPO among the preference objectives. It maximises a given reward, and so do we.
# 2. DDPO standardises rewards by running statistics of each prompt. Ours come from the siblings of one batch, Eq. (11).
# 3. (A3) is an average over the latents, here the D = 768 numbers of a picture, as in the public code. The sum would be the density.
# 4. At $\sigma = 1$, $g$ would be infinite. We take that of the next level, as Flow-GRPO does.

# %% [markdown]
# ## By hand
#
# ### One number, one step
#
# A picture of one pixel. The denoiser's step has mean 0.2 and standard deviation 0.5, and 0.7 was drawn. That is one
# standard deviation off, so the log-density is $-\tfrac12 - \log 0.5 - 0.919$. Training moves the mean to 0.3.
# **Before you read on:** does the action become likelier, and what is the ratio?
#
# Then 768 pixels, all drawn at 0.7, and a tiny move of all means, by 0.001. The density of the picture is a product, so its ratio
# multiplies 768 times. The average of (A3) does not. **Predict** both.

# %%
# NBVAL_CHECK_OUTPUT
old, new = (Normal(mean, 0.5).log_prob(torch.tensor(0.7)) for mean in (0.2, 0.3))
print(f"old {old:.4f}   by hand {-0.5 + 0.6931 - 0.9189:.4f}")
print(f"new {new:.4f}   ratio {(new - old).exp():.3f}")
each = Normal(0.201, 0.5).log_prob(torch.tensor(0.7)) - Normal(0.2, 0.5).log_prob(torch.tensor(0.7))
print(f"768 pixels, mean over latents: ratio {each.exp():.4f}")
print(f"768 pixels, sum over latents:  ratio {(768 * each).exp():.4f}")

# %% [markdown]
# The mean moved towards the draw, so the ratio is above 1. With the sum, a move that nobody would see leaves the clip of 0.2 at once. With the mean, the ratio hardly leaves 1, and
# a clip of 0.2 never acts; public code sets it to 0.0001 for that reason. Neither is wrong, but a clip range means nothing
# until one says which.
#
# ### How much noise, and where
#
# Take $a = 0.7$ and the step from $\sigma = 0.8$ to 0.6. Then $g = 0.7 \sqrt{0.8 / 0.2} = 1.4$, and the standard deviation
# of the step is $1.4 \sqrt{0.2} = 0.626$. **Which step of an episode gets the most noise?**

# %%
# NBVAL_CHECK_OUTPUT
grid = torch.linspace(1, 0, 6)  # K = 5 steps, 4 of them actions
one = torch.zeros(1, 1)
for sigma, after in zip(grid[:-2], grid[1:-1], strict=True):
    print(f"sigma {sigma:.1f} -> {after:.1f}: std {sde_transition(one, one, sigma, after, 0.7)[1].item():.3f}")

# %% [markdown]
# The first two are equal, because the first borrows the $g$ of the second. Exploration happens early, while the picture is
# undecided.
#
# ### The marginals stay
#
# Can one add noise at every step and end with the same distribution? The drift of (A2) pays for it: it pulls back by as much
# as the noise spreads. For data Normal(1.5, 0.5²) the exact velocity is known and every step is affine, so we can follow mean and
# standard deviation without sampling. **Predict:** with ten times the noise level, is the end ten times as wide?

# %%
# NBVAL_CHECK_OUTPUT
print("noise level   10 steps       40 steps       160 steps")
for level in (0.0, 0.3, 0.7, 3.0):
    ends = [gaussian_end(steps, level) for steps in (10, 40, 160)]
    print(f"{level:11.1f}   " + "   ".join(f"{mean:.2f} +- {std:.3f}" for mean, std in ends))

# %% [markdown]
# All means are exact, and the spread tends to 0.5 as the steps get smaller, whatever the noise level. At 10 steps every sampler
# is a little off, the ODE included: too narrow without noise, too wide with much of it.
#
# Below, data with two bumps and its best possible denoiser. Change the sampler, the noise ($\eta$ or $a$) and the number of
# steps. Without noise the paths do not cross. With noise they change sides, and the histogram stays.

# %%
sliders = {"noise": FloatSlider(0.7, min=0, max=3, step=0.1), "steps": IntSlider(8, min=4, max=40)}
lab.explore(noise_figure, sampler=SAMPLERS, **sliders)

# %% [markdown]
# Try the flow with a level of 3, with 8 steps and then with 40. At 8 steps it explodes: an Euler step is too coarse for that much
# noise. At 40 the bumps are back. DDIM has no such cliff.
#
# ## Code: show once, prove equal, import
#
# (A2) and (A3) in a dozen lines. Given `next_sample`, the same function scores a step that was taken before: this is all that
# a policy gradient needs.

# %%
def our_sde_step(velocity, x, sigma, sigma_next, noise_level, next_sample=None, generator=None):
    """One step, or the score of one: next x (N, ...), logprob (N,)."""
    dt = sigma_next - sigma  # negative
    g = noise_level * (sigma / (1 - sigma)) ** 0.5
    drift = velocity + g**2 / (2 * sigma) * (x + (1 - sigma) * velocity)
    mean, std = x + drift * dt, g * (-dt) ** 0.5
    if next_sample is None:
        next_sample = mean + std * torch.randn(x.shape, generator=generator)
    logprob = Normal(mean, std).log_prob(next_sample)  # (N, ...)
    return next_sample, logprob.flatten(1).mean(dim=1)

# %%
# NBVAL_CHECK_OUTPUT
x, velocity = torch.linspace(-1, 1, 24).view(2, 3, 2, 2), torch.linspace(0, 6, 24).sin().view(2, 3, 2, 2)
ours = our_sde_step(velocity, x, 0.8, 0.6, 0.7, generator=torch.Generator().manual_seed(0))
theirs = sde_step(velocity, x, 0.8, 0.6, 0.7, generator=torch.Generator().manual_seed(0))
print("same sample:  ", torch.allclose(ours[0], theirs[0], atol=1e-6))
print("same log-prob:", torch.allclose(ours[1], theirs[1], atol=1e-6))
rescored = sde_step(velocity, x, 0.8, 0.6, 0.7, next_sample=theirs[0])[1]
print(f"scored again: {(rescored - theirs[1]).abs().max():.4f} away")

# %% [markdown]
# From here on the library's. Its policies take such steps in `rollout` and score all of them in one forward:

# %%
lab.show_source(DenoisingPolicy.evaluate_actions)

# %% [markdown]
# Now a real model, though a small one. The shipped flow is an `SD3Transformer2DModel` that draws 16 x 16 pixels from captions
# such as *red circle top left*. It learned from pictures of which some captions were wrong, so it draws what was said only
# some of the time. We give it 6 denoising steps, so 5 actions.
#
# The check behind everything that follows: the stored log-probs, taken step by step while sampling, equal those of one
# forward over all steps. So every ratio is 1 before the first update.

# %% tags=["given"]
def base_policy(**sampler):
    """The shipped flow, before any reinforcement learning; 5 actions an episode, 2 of them trained."""
    policy = FlowPolicy.load(DATA / "checkpoints" / "flow")
    settings = {"steps": 6, "eval_steps": 6, "scored": 2, "noise": 0.7} | sampler
    policy.sampler = replace(policy.sampler, **settings)
    return policy


def brightness(completions, **_):
    """Mean of all pixels, between 0 and 1."""
    return [image.mean().item() for image in completions]


# %%
# NBVAL_CHECK_OUTPUT
train_prompts = drawing_prompts(256, "train", torch.Generator().manual_seed(1))
heldout = drawing_prompts(24, "heldout", torch.Generator().manual_seed(2))
policy = base_policy(scored=None)  # all 5 actions count
rollout = policy.rollout(heldout.rows(range(2)), 4, generator)
with torch.no_grad():
    again = policy.logprobs(rollout)  # (N, T)
print(rollout.prompts["prompt"][0])
print("log-probs", tuple(again.shape), "and states", tuple(rollout.actions["x"].shape))
print("equal to 1e-5:", bool((again - rollout.logprobs).abs().max() < 1e-5))

# %% [markdown]
# ## Experiment
#
# ### One trajectory, ratio and advantage on every image
#
# One caption, eight siblings. The reward is as plain as can be: the mean **brightness** of the picture. We compare (Eq. 11), take
# one update, and ask for the ratio of each step again. Above, the brightest sibling; below, the darkest. **Predict** the signs:
# which ratios are above 1?

# %%
rollout = policy.rollout(heldout.rows([0]), 8, torch.Generator().manual_seed(3))
batch = GRPO(GRPOConfig(kl_coef=0.0)).compare(policy, None, rollout, torch.tensor(brightness(rollout.outputs)))
optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4)  # one step of it
options = {"max_grad_norm": 1.0, "generator": generator}
GRPO(GRPOConfig(kl_coef=0.0)).improve(policy, optimizer, batch, **options)
with torch.no_grad():
    log_ratio = policy.logprobs(rollout) - rollout.logprobs  # (N, T)
best, worst = batch.advantages.argmax().item(), batch.advantages.argmin().item()
print(heldout["prompt"][0])

shown, captions = [], []
for row in (best, worst):
    shown += [*policy.to_images(rollout.actions["next"][row]), rollout.outputs[row]]
    captions += [f"σ {level:.2f}\nρ {ratio:.4f}\nA {batch.advantages[row]:+.2f}" for level, ratio
                 in zip(rollout.actions["level_next"][row], log_ratio[row].exp(), strict=True)]  # fmt: skip
    captions += ["finished\nno action"]
title = "After one update each step of the bright picture is likelier, of the dark one rarer"
lab.gallery(torch.stack(shown), captions, columns=6, row_labels=("brightest", "darkest"), title=title)
plt.show()
moved = log_ratio.mean(dim=1)  # (N,)
assert moved[best] > 0 > moved[worst]
assert torch.corrcoef(torch.stack([moved, batch.advantages]))[0, 1] > 0.5

# %% [markdown]
# The advantage is the same on every image of a row. Nobody knows which step made the picture bright, and five steps share the
# credit. But the ratios differ: they are furthest from 1 at the end, where a step has little noise, so that the same move of its
# mean counts for more.
#
# ### Policy gradient on a real flow
#
# Six updates, each on 32 pictures of 4 captions, of whose 5 actions 2 are trained. `composition` is logged with weight 0: the
# share of the caption that a program can read back from the pixels. The **control** deals the same rewards out at random.
#
# Why so plain a reward? Every picture has a brightness of its own, so every group of siblings has something to compare. A program's
# verdict takes few values; the recorded runs below give it 24 steps of 16 fresh captions.

# %%
def train(seed, collect=act_and_judge, steps=6):
    """DDPO from the base on brightness; returns the policy and one row of statistics per step."""
    policy, reward = base_policy(), weighted({brightness: 1.0, composition: 0.0})
    cfg = OnlineConfig(batch_size=4, group_size=8, learning_rate=2e-4)
    trainer = OnlineTrainer(policy, train_prompts, reward, GRPO(GRPOConfig(kl_coef=0.0)), cfg,
                            torch.Generator().manual_seed(seed), collect=collect)  # fmt: skip
    return policy, [trainer.step() for _ in range(steps)]


def column(runs, name):
    """(S, steps): one statistic of every run."""
    return torch.tensor([[row[name] for row in rows] for _, rows in runs])


runs = [train(seed) for seed in range(3)]
controls = [train(seed, shuffled(act_and_judge)) for seed in range(3)]

# %%
control = "control, shuffled rewards"
shown = {"policy": column(runs, "reward/brightness"), control: column(controls, "reward/brightness")}
title = "Six updates make the pictures brighter (3 seeds)"
lab.curves(shown, ylabel="mean brightness of 32 pictures", control=control, title=title)
plt.show()


def look(policy):
    """Pictures of the held-out captions without noise on the way, their brightness and composition."""
    with torch.no_grad():
        pictures = policy.predict(heldout)
    means = [sum(f) / len(f) for f in (brightness(pictures), composition(pictures, heldout["scene"]))]
    return pictures, *means


before = look(base_policy())
after, controlled = ([look(policy) for policy, _ in arm] for arm in (runs, controls))
for name, arm in (("before", [before]), ("after", after), (control, controlled)):
    print(f"{name:26s}", "  ".join(f"brightness {b:.3f}, composition {c:.2f}" for _, b, c in arm))
gain = sum(b for _, b, _ in after) / 3 - sum(b for _, b, _ in controlled) / 3
assert gain > 0.02  # 3 seeds: 0.204 +- 0.014, control 0.134 +- 0.012, before 0.139

# %% [markdown]
# ### Learners by the dozen
#
# For comparisons we want more seeds than a real flow affords. So we take the smallest picture there is, one number, or **dot**.
# The data is Normal(0, 0.5²) and its exact velocity is known. Each of 64 learners can subtract a shift from it: one shift for all
# its steps (as a network shares its weights), or one for each step (`own=True`). The reward is highest at 1. Steps, scores,
# losses and the trainer are the library's.

# %% tags=["given"]
class Dots(Policy):
    """Prompt i is learner i; a picture is one number. Contract as in `DenoisingPolicy`."""

    def __init__(self, learners, noise=0.7, scored=7, own=False, shared_noise=False):
        super().__init__()
        self.sigmas = torch.linspace(1, 0, 9)  # K = 8 steps, 7 actions
        self.model = nn.Embedding.from_pretrained(torch.zeros(learners, 7 if own else 1), freeze=False)
        self.noise, self.scored, self.shared_noise = noise, scored, shared_noise

    def transition(self, x, shift, steps, noise):  # mean (T, N) and std (T, 1) of these steps from x (T, N)
        now, after = self.sigmas[steps], self.sigmas[steps + 1]
        s = now[:, None]
        velocity = x * (s - 0.25 * (1 - s)) / (0.25 * (1 - s) ** 2 + s**2) - shift
        return sde_transition(velocity, x, now, after, noise)

    def walk(self, x, shift, fresh):  # from x (1, N) with noise fresh (7, N): states (8, N), dots (N,)
        states = [x]
        for k in range(7):
            mean, std = self.transition(states[-1], shift[k : k + 1], torch.tensor([k]), self.noise)
            states.append(mean + std * fresh[k])
        return torch.cat(states), self.transition(states[-1], 0, torch.tensor([7]), 0.0)[0][0]

    def shifts(self, prompts, group_size):
        return self.model(torch.tensor(prompts["prompt"])).repeat_interleave(group_size, dim=0).T.expand(7, -1)

    @torch.no_grad()
    def rollout(self, prompts, group_size, generator):
        noise = torch.randn(8, len(prompts) * group_size, generator=generator)
        start = noise[:1, ::group_size].repeat_interleave(group_size, dim=1) if self.shared_noise else noise[:1]
        states, dots = self.walk(start, self.shifts(prompts, group_size), noise[1:])
        order = torch.rand(len(prompts), 7, generator=generator).argsort(dim=1)
        mask = (order < self.scored).float().repeat_interleave(group_size, dim=0)  # (N, T)
        blank = Rollout(prompts, {"x": states.T}, 0 * mask, mask, group_size, dots.tolist())
        return replace(blank, logprobs=self.evaluate_actions(blank).logprobs)

    def evaluate_actions(self, rollout, *, values=False):
        x, shift = rollout.actions["x"].T, self.shifts(rollout.prompts, rollout.group_size)
        mean, std = self.transition(x[:-1], shift, torch.arange(7), self.noise)
        dist = Normal(mean.T, std.T.expand_as(mean.T))  # (N, T)
        return ActionStats(dist.log_prob(x[1:].T), dist.entropy(), None, dist)


# %% tags=["given"]
def learn(optimization, learners=64, steps=16, **options):
    """Where each learner's mean path ends, (learners, steps); it starts at 0, the reward is best at 1."""

    def near_one(completions, **_):
        return [-((dot - 1) ** 2) for dot in completions]

    policy, prompts, ends = Dots(learners, **options), Prompts({"prompt": list(range(learners))}), []
    cfg = OnlineConfig(batch_size=learners, learning_rate=0.1, max_grad_norm=1e9)
    trainer = OnlineTrainer(policy, prompts, near_one, optimization, cfg, torch.Generator().manual_seed(0))
    for _ in range(steps):
        trainer.step()
        with torch.no_grad():
            ends.append(policy.walk(torch.zeros(1, learners), policy.shifts(prompts, 1), torch.zeros(7, 1))[1])
    return torch.stack(ends, dim=1)


# %% [markdown]
# ### DDPO against reward-weighted regression
#
# Both see the same 8 dots per learner and step. RWR never pushes anything down: the best samples pull, the others pull less. A
# low temperature imitates few samples, a high one imitates all alike. **Predict** which temperature loses.

# %%
ddpo = learn(GRPO(GRPOConfig(kl_coef=0.0)))
rwr = {tau: learn(RWR(RWRConfig(temperature=tau))) for tau in (0.02, 0.2, 5.0)}
shown = {"policy, DDPO": ddpo} | {f"RWR, temperature {tau}": ends for tau, ends in rwr.items()}
bars = {name: {f"after {n} updates": ends[:, n - 1].tolist() for n in (5, 10, 15)} for name, ends in shown.items()}
lab.bars(bars, ylabel="end of the mean path (best: 1)", title="Same samples: DDPO is ahead of RWR (64 learners)")
plt.show()
for name, ends in shown.items():
    print(f"{name:22s} after 10 updates {ends[:, 9].mean():.2f} +- {ends[:, 9].std():.2f}")
assert ddpo[:, 9].mean() - max(ends[:, 9].mean() for ends in rwr.values()) > 0.04  # 64 learners: 0.62 +- 0.02, 0.53 +- 0.06

# %% [markdown]
# ### Training on few steps of an episode
#
# All K steps must be *taken* to see the picture. But a gradient through the denoiser costs several times as much as a forward, and it
# need not run through every step. Draw some of the T actions at random and average over those: Eq. (12) divides by
# $\lvert a_i \rvert$, the number of actions that count. So the expected gradient stays the same. On the flow, with one episode
# batch: the average of the five gradients of single steps, against the gradient of all five.

# %%
# NBVAL_CHECK_OUTPUT
probe = base_policy(scored=None)
rollout = probe.rollout(heldout.rows([0, 1]), 4, torch.Generator().manual_seed(4))
advantages = GRPO(GRPOConfig()).compare(probe, probe, rollout, torch.tensor(brightness(rollout.outputs))).advantages
weight = probe.model.transformer_blocks[0].attn.to_q.weight


def gradient(mask):
    """Of the GRPO loss, in one of the weight matrices, with only these actions counted."""
    part = replace(rollout, mask=mask)
    loss, _ = grpo_loss(probe.logprobs(part), rollout.logprobs, None, advantages, mask, GRPOConfig(kl_coef=0.0))
    return torch.autograd.grad(loss, weight)[0]


ones = torch.ones_like(rollout.mask)
single = torch.stack([gradient(ones * (torch.arange(5) == t)) for t in range(5)])  # (T, ...)
whole = gradient(ones)
print("mean of the single steps is the whole:", torch.allclose(single.mean(dim=0), whole, rtol=1e-3, atol=1e-7))

# %% [markdown]
# Same mean, more noise. Does the noise hurt? The dots again, with 7, 3 and 1 of 7 actions trained. **Predict** for both kinds of
# learners: one shift for all steps, or one per step.

# %%
kinds = {"one shift for all steps": False, "a shift for each step": True}
few = {f"{n} of 7": {kind: learn(GRPO(GRPOConfig(kl_coef=0.0)), scored=n, own=own)[:, 9].tolist()
                     for kind, own in kinds.items()} for n in (7, 3, 1)}  # fmt: skip
title = "Few steps go far where steps share their weights (64 learners)"
lab.bars(few, ylabel="mean path after 10 updates (best: 1)", title=title)
plt.show()
means = {(n, kind): sum(ends) / len(ends) for n, row in few.items() for kind, ends in row.items()}
for kind in kinds:
    shares = [f"{means[n, kind] / means['7 of 7', kind]:.2f}" for n in few]
    print(f"{kind:24s} progress of 7, 3, 1 trained steps, as shares of the first:", " ".join(shares))
assert means["1 of 7", "one shift for all steps"] > 0.5 * means["7 of 7", "one shift for all steps"]  # 64 learners: 0.71
assert means["1 of 7", "a shift for each step"] < 0.45 * means["7 of 7", "a shift for each step"]  # 64 learners: 0.28

# %% [markdown]
# ### Diffusion-DPO
#
# No episode at all: pairs of finished pictures. Add noise of a random level, ask the policy and the reference for it, and compare
# errors. At the start they are the same model, so $\Delta = 0$ and the loss is $\log 2$ on every draw.
#
# The two pictures of a pair get **the same level and the same noise**. Otherwise $\Delta$ compares a hard draw with an easy one. We
# measure it between a brightened policy and the base: 8 draws for each of 4 pairs.

# %%
# NBVAL_CHECK_OUTPUT
base = frozen(base_policy())
drawn = base.rollout(heldout.rows(range(4)), 2, torch.Generator().manual_seed(5))
scores = torch.tensor(brightness(drawn.outputs)).view(-1, 2)  # (B, 2)
order = (scores.argsort(dim=1, descending=True) + 2 * torch.arange(4)[:, None]).tolist()
chosen, rejected = ([drawn.outputs[row[side]] for row in order] for side in (0, 1))
pairs = PreferencePairs(drawn.prompts, chosen, rejected).rows(list(range(4)) * 8)  # 8 draws each
both = encode_pairs(base, pairs, torch.Generator().manual_seed(6))  # rows chosen, rejected, chosen, ...
level = both.actions["level"].view(-1, 2)  # (32, 2)
print("a pair shares its level:", bool((level[:, 0] == level[:, 1]).all()))
with torch.no_grad():
    ref = base.logprobs(both).view(-1, 2)  # (32, 2)
loss, stats = dpo_loss(ref[:, 0], ref[:, 1], ref[:, 0], ref[:, 1], DPOConfig(dpo_beta=100.0))
print(f"policy = reference: loss {loss:.4f}, log 2 = {torch.tensor(2.0).log():.4f}")

# %%
def margins(policy, rollout):
    """Delta of Eq. (6), (8 draws, 4 pairs)."""
    with torch.no_grad():
        gain = policy.logprobs(rollout) - base.logprobs(rollout)  # (2M, 1)
    return gain.view(8, 4, 2).diff(dim=2)[..., 0].neg()


apart = [base.encode(pairs.prompts, side, torch.Generator().manual_seed(seed))
         for seed, side in ((6, pairs.chosen), (7, pairs.rejected))]  # fmt: skip
interleaved = torch.arange(64).view(2, 32).T.flatten()
alone = replace(Rollout.cat(apart).rows(interleaved), prompts=pairs.prompts, group_size=2)
shared_margin, alone_margin = (margins(runs[0][0], rollout) for rollout in (both, alone))
spreads = [margin.std(dim=0).mean().item() for margin in (shared_margin, alone_margin)]
print(f"std of Delta over draws: shared noise {spreads[0]:.4f}, noise of its own {spreads[1]:.4f}")
assert spreads[1] > 2 * spreads[0]  # one batch: 0.018 and 0.082; another policy: 0.053 and 0.204

# %% [markdown]
# With noise of its own a pair needs many times the draws for the same certainty, for nothing.
#
# ### Recorded: the composition verifier at full length
#
# `minivisrl run generation/rlvr-grpo` takes 24 steps of 128 pictures, 16 fresh captions a step, with the program's partial credit as
# reward. It is measured by the share of 512 held-out captions that are drawn *exactly* right, sampled with noise. The two questions
# that we put to the dots, on the real flow: `python -m minivisrl.recipes.denoising_study`, printed here where its record is there.

# %%
grid = json.loads((DATA / "results" / "grid.json").read_text(encoding="utf-8"))["cells"]
names = ("generation/rlvr-grpo", "generation/rlvr-ppo")
recorded = {name: grid[name] for name in names if None not in grid.get(name, {}).get("ci", [None])}
for name, cell in recorded.items():
    low, high = cell["ci"]
    controls_gain = " ".join(f"{gain:+.2f}" for gain in cell["control_gains"])
    print(f"recorded {name}: {cell['before']:.2f} -> {cell['after']:.2f}, gain [{low:.2f}, {high:.2f}], controls {controls_gain}")
assert all(cell["ci"][0] > 0 for cell in recorded.values())
study = DATA / "results" / "denoising.json"
answers = json.loads(study.read_text(encoding="utf-8"))["answers"] if study.exists() else {}
for question, answer in answers.items():
    print(f"recorded {question}: {answer['verdict']}, difference and interval {answer['difference']}")

# %% [markdown]
# ### What to notice
#
# - The policy gets brighter and the control does not (asserted), by the loss of chapter 6 and a Gaussian log-prob. Composition falls
#   in both; more on that below.
# - DDPO and RWR see the same samples. RWR has no baseline and no push down, and depends on its temperature.
# - One trained action of seven brings about two thirds of the progress where all steps share their weights, for a seventh of the
#   gradients. Where each step has its own, a step that is not trained does not learn.
#
# ## What can go wrong
#
# ### No noise, no action
#
# $\eta = 0$ is the usual setting of a DDIM sampler. Its step has standard deviation 0 and no density. What happens on the way
# there? We move the mean by 0.01, in a picture of 768 latents, and shrink the noise.

# %%
# NBVAL_CHECK_OUTPUT
said, x = torch.zeros(1, 768), torch.zeros(1, 768)
for eta in (1.0, 0.1, 0.01):
    *_, std = ddim_step(said, x, 0.3, 0.5, eta, generator=torch.Generator().manual_seed(0))
    nats = 768 * 0.01**2 / (2 * std.item() ** 2)  # KL of two Gaussians of one std
    print(f"eta {eta:4.2f}: std {std.item():.4f}, KL of the move {nats:7.2f} nats per picture")
try:
    ddim_step(said, x, 0.3, 0.5, 0.0, generator=generator)
except ValueError as error:
    print("eta 0.00:", error)

# %% [markdown]
# The KL of one and the same move grows with $1 / \eta^2$, and so do gradients. Whoever divides by that 0 trains on
# NaN; the library refuses. The statistic that betrays too little noise is a `ratio` far from 1 after a tiny step.
#
# ### Too much noise
#
# The marginals are kept by *small* steps. Training takes few steps, so a large $a$ breaks the pictures before any learning; the
# slider showed the cliff. Same captions, 6 steps, three noise levels. **Predict** which one fails:

# %%
levels, rows, shares = (0.1, 0.7, 1.5), [], []
for level in levels:
    pictures = base_policy(noise=level).rollout(heldout, 1, torch.Generator().manual_seed(7)).outputs
    rows.append(torch.stack(pictures[:5]))
    shares.append(sum(composition(pictures, heldout["scene"])) / len(pictures))
labels = [f"a = {level}" for level in levels]
title = "Composition " + ", ".join(f"{share:.2f}" for share in shares) + ": noise that 6 steps cannot remove"
lab.gallery(torch.cat(rows), columns=5, row_labels=labels, title=title)
plt.show()
assert shares[1] > 0.25 and shares[2] < 0.1  # 24 captions: 0.56, 0.46, 0.00; at a = 3 not even colors are left

# %% [markdown]
# Watch the metric of the *rollouts* at step 0, not only that of the noiseless sampler: the reward of broken pictures teaches little.
#
# ### A reward that asks for brightness alone
#
# The runs above did what they were paid for. Their table has a second number. What became of the captions, in the policy and in the
# control? **Predict** what the pictures look like.

# %%
images = torch.stack(before[0][:6] + after[0][0][:6] + controlled[0][0][:6])
print("\n".join(heldout["prompt"][:6]))
title = f"Composition {before[2]:.2f} before, {after[0][2]:.2f} after, {controlled[0][2]:.2f} in the control (seed 0)"
lab.gallery(images, columns=6, row_labels=("before", "after", "control"), title=title)
plt.show()
assert sum(c for *_, c in after) / 3 < before[2] - 0.05  # before 0.51; 3 seeds: 0.28 +- 0.16, control 0.18 +- 0.02

# %% [markdown]
# The policy paints more, and not what was said. But look at the control: it lost the captions too, with a reward that meant
# nothing. Noise in the rewards is noise in the weights, and in both arms nothing pulled the captions back. So these runs do not
# show that brightness *destroys* captions. They show that a reward protects only what it asks for, and that the brightness
# curve alone looks like a success. Smaller steps, more pictures a step, and a KL term to the base (exercise 12.5) are the cures.
#
# ### The log-sigmoid of the mean
#
# Diffusion-DPO draws several levels per pair to lower its noise. Where do they get averaged? Eq. (5) wants the mean of
# log-sigmoids. Averaging $\Delta$ first looks tidier. Two draws of one pair: on the first the policy is sure and right, on the
# second it is wrong. **Predict** which version cares about the second.

# %%
# NBVAL_CHECK_OUTPUT
for name, loss_of in (("mean of log-sigmoid", lambda d: -logsigmoid(d).mean()), ("log-sigmoid of mean", lambda d: -logsigmoid(d.mean()))):
    delta = torch.tensor([4.0, -2.0], requires_grad=True)  # beta * Delta of two draws
    loss = loss_of(delta)
    push = torch.autograd.grad(loss, delta)[0].neg()  # (2,)
    print(f"{name}: loss {loss:.3f}, push on the right draw {push[0]:.3f}, on the wrong draw {push[1]:.3f}")

# %% [markdown]
# The right version pushes the wrong draw fifty times as hard as the one that needs no help. The mistake pushes both alike, and
# lightly, since on average all is well. Its loss is also lower (Jensen), so it looks better in a log. At policy = reference both
# say $\log 2$: a test of the first step cannot tell them apart. That is why our draws are *rows*, each a pair of its own.

# %% [markdown]
# ## Exercises
#
# ### Exercise 12.1 | predict | 5 words | 10 min
# Which of these statements are true?

# %%
prediction = {
    "mean over latents: twice as many latents, all moved alike, leave the ratio as it was": ...,
    "sum over latents: twice as many latents, all moved alike, leave the ratio as it was": ...,
    "half the std: the same move of the mean costs four times the KL": ...,
    "eta = 0: a step has log-prob 0": ...,
    "3 of 7 actions trained: the sampler takes 3 steps": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("12.1", check_statements, prediction)

# %% [markdown]
# <details><summary>Solution 12.1</summary>
#
# ```python
# prediction = {
#     "mean over latents: twice as many latents, all moved alike, leave the ratio as it was": True,
#     "sum over latents: twice as many latents, all moved alike, leave the ratio as it was": False,
#     "half the std: the same move of the mean costs four times the KL": True,
#     "eta = 0: a step has log-prob 0": False,
#     "3 of 7 actions trained: the sampler takes 3 steps": False,
# }
# # The last: the reward needs a finished picture, so all steps are taken. Only the loss skips.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 12.2 | implement | 5 lines | 15 min
# The other sampler: (A1). Return mean and standard deviation of a DDIM step. The numbers `alpha_bar` are plain floats.

# %%
def ddim(noise_pred, x, alpha_bar, alpha_bar_prev, eta):
    """(N, ...), (N, ...), three numbers -> mean (N, ...), std."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("12.2", check_ddim, ddim)

# %% [markdown]
# <details><summary>Solution 12.2</summary>
#
# ```python
# def ddim(noise_pred, x, alpha_bar, alpha_bar_prev, eta):
#     clean = (x - (1 - alpha_bar) ** 0.5 * noise_pred) / alpha_bar**0.5
#     variance = eta**2 * (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)
#     mean = alpha_bar_prev**0.5 * clean + (1 - alpha_bar_prev - variance) ** 0.5 * noise_pred
#     return mean, variance**0.5
#     # eta = 1 is the posterior of DDPM; the library's own test of (A1) uses that, too.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 12.3 | find the bug | 1 line | 5 min
# This is Diffusion-DPO with K draws for each of B pairs. It has the mistake from above. Write the repaired function.

# %%
def buggy_pair_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta):
    """(B, K) scores of K draws per pair -> the loss, one number."""
    delta = (chosen - ref_chosen) - (rejected - ref_rejected)  # (B, K)
    return -logsigmoid(dpo_beta * delta.mean(dim=1)).mean()


def pair_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("12.3", check_pair_loss, pair_loss)

# %% [markdown]
# <details><summary>Solution 12.3</summary>
#
# ```python
# def pair_loss(chosen, rejected, ref_chosen, ref_rejected, dpo_beta):
#     delta = (chosen - ref_chosen) - (rejected - ref_rejected)  # (B, K)
#     return -logsigmoid(dpo_beta * delta).mean()
# ```
#
# </details>

# %% [markdown]
# ### Exercise 12.4 | ablate | 3 lines | 15 min
# Siblings can start from the same noise (`shared_noise=True`, as some public code does). What is then left to compare? Draw 64
# siblings for each of 64 `Dots` learners, without training, and return the mean over groups of the standard deviation inside
# a group. Try both starts with noise 0.7 and 0.1.

# %%
def within(noise, shared_noise):
    """How much siblings differ."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("12.4", check_within, within)

# %% [markdown]
# <details><summary>Solution 12.4</summary>
#
# ```python
# def within(noise, shared_noise):
#     policy = Dots(64, noise=noise, shared_noise=shared_noise)
#     prompts = Prompts({"prompt": list(range(64))})
#     rollout = policy.rollout(prompts, 64, torch.Generator().manual_seed(0))
#     return torch.tensor(rollout.outputs).view(64, 64).std(dim=1).mean()
#     # With own starts siblings differ whatever the noise is, but little of that is the policy's doing. With a
#     # common start and noise 0.1 they are nearly one picture, and the advantage of Eq. (11) amplifies nothing.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 12.5 | extend | 3 lines | 15 min
# DPOK keeps a policy near its reference **step by step**. Two Gaussians with one standard deviation $s = g\sqrt{-dt}$ have the KL
# $\Vert \mu - \mu_{ref} \Vert^2 / (2 s^2)$, no sampling needed. Write it for whole episodes: nats per picture, summed over latents
# and over the steps under the mask.

# %%
def step_kl(mean, ref_mean, g, dt, mask):
    """(N, T, D), (N, T, D), (T,), (T,) negative, (N, T) -> (N,)."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("12.5", check_step_kl, step_kl)

# %% [markdown]
# <details><summary>Solution 12.5</summary>
#
# ```python
# def step_kl(mean, ref_mean, g, dt, mask):
#     distance = (mean - ref_mean).square().sum(dim=2)  # (N, T)
#     return (distance / (2 * g**2 * -dt) * mask).sum(dim=1)
#     # Flow-GRPO's public code leaves the dt out, so its KL is |dt| times this one, whatever the step size.
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - read any sampler with fresh noise as a policy, and compute the log-prob of its steps;
# - train it with the losses of chapters 3 to 6, unchanged, on all steps of an episode or on a few;
# - name three ways to break it that leave the reward curve looking fine.
#
# What the survey says and we did not test. It lists reward models of people's taste (ImageReward, DPOK) and several objectives at
# once (Parrot); the chapter on reward design takes them up. Reasoning before drawing (ReasonGen-R1, GoT-R1) and personal styles
# need models that we do not ship. DDPO and RWR met on dots here, not on photographs, and our Diffusion-DPO was not trained.
#
# References: the survey, section 3.2.1 (arXiv 2508.08189, version 3). DDPO (2305.13301), DPOK (2305.16381), Diffusion-DPO (2311.12908),
# Flow-GRPO (2505.05470). In the library: `minivisrl/generation/steps.py`, `denoising.py`, `flow.py`. At full length: `minivisrl run
# generation/rlvr-grpo` and `minivisrl run generation/dpo`.
