# %% [markdown]
# # 1. Visual RL as an MDP
#
# [previous: 0. Start here](00_start_here.ipynb) | [contents](00_start_here.ipynb) |
# [next: 2. RLHF](02_rlhf.ipynb)
#
# **Question.** What do a word, a denoising step and a move of a robot have in common, so that one algorithm can train
# all of them?
#
# **Survey:** section 2.1, Eqs. (1), (2) (version 3). **Running time:** about a minute on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import copy

import gymnasium
import matplotlib.pyplot as plt
import minigrid  # noqa: F401, registers its environments
import torch
from checks.ch01 import (
    NAMES,
    check_best_baseline,
    check_columns,
    check_gaussian,
    check_mask,
    check_rewards,
    color_codes,
    episode_figure,
    large,
    neighbor_table,
    neighbors,
    paint,
    token_figure,
)
from ipywidgets import Dropdown, IntSlider
from torch.distributions import Categorical, Normal
from torch.nn.utils import clip_grad_norm_

from minivisrl import DATA, lab
from minivisrl.evaluation.sets import evaluate
from minivisrl.lab import check
from minivisrl.mllm import VLMPolicy
from minivisrl.optimization import leave_one_out_advantages, reinforce_loss
from minivisrl.rewards import exact_match, judge
from minivisrl.rollout import Prompts, Rollout
from minivisrl.worlds.questions import Question, as_prompts, question_prompts
from minivisrl.worlds.scenes import Scene, Thing, render, sample_scenes

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# A Markov decision process, **MDP** for short, is a game in turns. You see a state, you choose an action, the game hands you the
# next state, and sometimes a reward. The survey writes the making of a text or a picture as such a game. Its state is simple:
# the prompt, and all that was done since. The **policy** draws the next action given the state.
#
# $$s_t = (p, a_1, \dots, a_{t-1}) \tag{1}$$
#
# $$a_t \sim \pi_\theta(a_t \mid s_t) = \pi_\theta(a_t \mid p, a_1, \dots, a_{t-1}) \tag{2}$$
#
# | symbol | in the code | shape |
# |---|---|---|
# | $p$ | a record of `Prompts`: image, question, answer, ... | B records |
# | $a_t$ | column $t$ of every tensor in `Rollout.actions` | (N, T, ...) |
# | $s_t$ | never stored: the policy rebuilds it from the prompt and the columns before $t$ | |
# | $\pi_\theta$ | `policy`, with weights $\theta$ | |
# | $\log \pi_\theta(a_t \mid s_t)$ | `logprobs[:, t]` | (N, T) |
# | is there an $a_t$? | `mask[:, t]`: 1 on the policy's own actions, else 0 | (N, T) |
# | $y = (a_1, \dots, a_T)$ | one row: a **completion**, or an **episode** | N = B * `group_size` rows |
# | $R(p, y)$ | `rewards` | (N,) |

# %% [markdown]
# What do we want? A large **return** on average: the reward of an episode, in expectation over the prompts and over the
# policy's own draws. Formulas with an A are ours; section 2.1 of the survey stops at Eq. (2).
#
# $$J(\theta) = \mathbb E_p\, \mathbb E_{y \sim \pi_\theta(\cdot \mid p)} [R(p, y)], \qquad
# \log \pi_\theta(y \mid p) = \sum_{t=1}^{T} \log \pi_\theta(a_t \mid s_t) \tag{A1}$$
#
# The reward is a program, or a person, or a simulator. There is no derivative to take through it. But
# $\nabla \pi = \pi \nabla \log \pi$, so
#
# $$\nabla J = \mathbb E\big[R(p, y)\, \nabla \log \pi_\theta(y \mid p)\big]
# = \mathbb E\Big[(R(p, y) - b)\, \sum_t \nabla \log \pi_\theta(a_t \mid s_t)\Big] \tag{A2}$$
#
# This is the **policy gradient**, and the method is called REINFORCE. The **baseline** $b$ is any number that does not depend on
# $y$: it changes nothing on average, because the probabilities always sum to 1, and it can change the noise a lot.
#
# If the world is random, a robot's say, its transitions also enter the probability of an episode. They do not contain
# $\theta$, so they drop out of the gradient. That is why one formula serves all four pillars: **an algorithm needs
# log-probs, a mask and rewards, and nothing else.**
#
# **Where our code departs from print.** The survey writes this MDP for text and for images. For agents it writes none. The
# reading with observations in the state is ours. For diffusion it lists the noise at step $t$ as the action; we take the
# next, less noisy picture, which says the same.

# %% [markdown]
# ## By hand
#
# ### A two-word episode
#
# A policy with two words says `more` with probability 0.8 and `end` with 0.2, whatever came before. It said *more, end*.
# What is the probability of this episode, and its logarithm? The row has three columns, because its neighbor spoke longer.

# %%
# NBVAL_CHECK_OUTPUT
logprobs = torch.tensor([[0.8, 0.2, 1.0]]).log()  # (1, 3); the last column is padding
mask = torch.tensor([[1.0, 1.0, 0.0]])  # (1, 3)
total = (logprobs * mask).sum(dim=1)  # (1,): Eq. (A1)
print(f"by hand: 0.8 * 0.2 = {0.8 * 0.2:.3f}")
print(f"in code: log-prob {total.item():.3f}, probability {total.exp().item():.3f}")

# %% [markdown]
# ### One decision, and the right baseline
#
# A policy is right with probability $p = 0.25$. The reward is 1 if it is, else 0, so $J = p$. In the logit of the right
# answer the slope of $J$ is $p(1 - p) = 0.1875$. The slope of $\log \pi$ is $1 - p$ if it was right, and $-p$ if not. Put both into
# Eq. (A2): what do you get for $b = 0$, and for $b = 0.25$? And what if everybody is paid 1 extra?

# %%
# NBVAL_CHECK_OUTPUT
p = 0.25
chances = torch.tensor([p, 1 - p])  # right, wrong
scores = torch.tensor([1 - p, -p])  # slope of log pi in the logit of the right answer
for bonus, baseline in ((0, 0), (0, 0.25), (0, 0.75), (1, 0), (1, 1.25)):
    rewards = torch.tensor([1.0, 0.0]) + bonus
    slopes = (rewards - baseline) * scores  # (2,): what one sample says
    mean = (chances * slopes).sum()
    std = (chances * (slopes - mean).square()).sum().clamp(min=1e-12).sqrt()
    print(f"bonus {bonus}, baseline {baseline:.2f}: mean {mean:.4f}, standard deviation {std:.3f}")

# %% [markdown]
# The mean never moves. The noise does: a bonus for everybody more than doubles it, and the mean reward as a baseline takes
# all of that back. Notice the third line. The mean reward is *not* the best baseline; here 0.75 would leave no noise at all.
# But the mean can be estimated from rewards alone. Exercise 1.4 goes on from here.
#
# ## One scene, four pillars
#
# Here is a scene. It is a list of things, so the truth is known. We show it as an episode of every pillar. Only the first
# policy is a trained network. The others are made by hand, in a few lines each, and say so. What is real about them are the
# states, the actions and the log-probs.

# %% tags=["given"]
scene = Scene(
    (
        Thing("circle", "red", "large", 0.20, 0.20, depth=0),
        Thing("cross", "blue", "large", 0.80, 0.22, depth=1),
        Thing("square", "red", "small", 0.50, 0.50, depth=2),
        Thing("triangle", "green", "large", 0.22, 0.80, depth=3),
        Thing("triangle", "red", "large", 0.80, 0.80, depth=4),
    )
)
asked = "how many more red things than blue things are there ?"
prompt = as_prompts([(scene, Question("difference", asked, "2", "red 3 blue 1"))])
picture = render([scene])[0] / 255  # (3, 32, 32), fractions of 1

# %% [markdown]
# ### Multimodal language model: the next word
#
# The policy is the shipped VLM. It sees the picture and the question and draws words until it says the end token. State:
# the prompt and the words so far. Eight episodes at once, `group_size = 8`: they are **siblings**.

# %%
policy = VLMPolicy.load(DATA / "checkpoints" / "vlm")
policy.max_tokens = 14
spoken = policy.rollout(prompt, 8, generator)  # N = 8 rows
for text, total, length in zip(spoken.outputs, (spoken.logprobs * spoken.mask).sum(dim=1), spoken.mask.sum(dim=1), strict=True):
    print(f"T = {length:2.0f}   log pi(y) = {total:6.2f}   {text}")

# %% [markdown]
# Step through them. The bars are the likeliest next words, the colored one was drawn. **Predict** before you move on: at which
# step is the policy least sure? And what happens after the end token?

# %%
stats = policy.evaluate_actions(spoken)  # one forward pass: log-probs, entropy, distribution
words = policy.tokenizer.convert_ids_to_tokens(range(len(policy.tokenizer)))
reading = {"tokens": spoken.actions["tokens"], "chances": stats.dist.probs.detach(), "mask": spoken.mask, "words": words}
longest = spoken.mask.shape[1]
lab.explore(
    lambda sibling, step: token_figure(sibling, step, picture, **reading),
    sibling=IntSlider(1, min=1, max=8),
    step=IntSlider(1, min=1, max=longest),
)

# %% [markdown]
# ### Generation: the next denoising step
#
# A diffusion model starts from noise and removes it in K steps. State: the noisy picture $x_t$, and how far we are. Action: the
# next picture. With the sampler called DDIM and $\eta = 1$, the action is drawn from a Gaussian:
#
# $$x_{prev} \sim \mathcal N\big(\sqrt{\bar\alpha_{prev}}\, \hat x_0 + \sqrt{1 - \bar\alpha_{prev} - \sigma^2}\, \hat\epsilon,\; \sigma^2\big),
# \qquad \sigma^2 = \frac{1 - \bar\alpha_{prev}}{1 - \bar\alpha} \Big(1 - \frac{\bar\alpha}{\bar\alpha_{prev}}\Big) \tag{A3}$$
#
# $\bar\alpha$ says how much of the picture is left in $x_t$; a network guesses the noise $\hat\epsilon$, and with it the clean picture
# $\hat x_0$. We have no such network yet, so **we cheat and say so**: our guess is computed from the true picture.

# %%
kept = [0.02, 0.2, 0.4, 0.6, 0.8, 0.95, 0.99]  # alpha_bar: from noise to (almost) the picture
clean = 2 * picture - 1  # (3, 32, 32), in [-1, 1]
states = [torch.randn(clean.shape, generator=generator)]
steps = []  # log-density of every action
for now, then in zip(kept[:-1], kept[1:], strict=True):
    guess = (states[-1] - now**0.5 * clean) / (1 - now) ** 0.5  # the noise, known because we know the picture
    std = ((1 - then) / (1 - now) * (1 - now / then)) ** 0.5
    mean = then**0.5 * clean + (1 - then - std**2) ** 0.5 * guess  # Eq. (A3)
    states.append(mean + std * torch.randn(clean.shape, generator=generator))  # the action
    steps.append(Normal(mean, std).log_prob(states[-1]).sum())  # over 3 * 32 * 32 numbers
x, logprobs = torch.stack(states)[None], torch.stack(steps)[None]  # (1, K + 1, 3, 32, 32), (1, K)
captioned = Prompts({"prompt": [scene.caption()]})
denoised = Rollout(captioned, {"x_t": x[:, :-1], "x_next": x[:, 1:]}, logprobs, torch.ones(1, 6), 1, [x[0, -1]])
print("log-density of each step:", [round(value) for value in logprobs[0].tolist()])

# %% [markdown]
# Log-densities are no log-probabilities: they may be positive, and they grow as the Gaussian narrows. Only differences of them
# between two policies mean something. Chapter 12 is to train such a policy.
#
# ### Generation: the next image token
#
# A picture can also be written like a text. We cut it into 8 x 8 patches and call each by the nearest of seven colors. Action:
# the next color, row by row. The policy is a table of counts: how often does a color follow its left and its upper
# neighbor, in 1,024 training scenes? It does not read the caption. We let it *score* the picture of our scene.

# %%
codes = color_codes(picture[None])  # (1, 64), numbers from 0 to 6
table = neighbor_table(color_codes(render(sample_scenes(1024, "train", generator)) / 255))  # (8, 8, 7): left, upper, color
left, upper = neighbors(codes)  # (1, 64), (1, 64); 7 at the edges
logprobs = Categorical(table[left, upper]).log_prob(codes)  # (1, 64)
painted = Rollout(captioned, {"tokens": codes}, logprobs, torch.ones(1, 64), 1, [picture])
print("most surprising patches:", sorted((-logprobs[0]).topk(5).indices.tolist()), f"  log pi(y) = {logprobs.sum():.1f}")

# %% [markdown]
# ### Unified model: both kinds of token, and a gap in the mask
#
# A unified model draws and speaks in one sequence: 64 image tokens, then a question *from the user*, then the answer. We
# have no such model yet. The table and the VLM stand in for it, each with its own log-probs. The user's words stand in the
# sequence too, but nobody should be praised or blamed for them. So the mask has a gap.

# %%
question = torch.tensor([policy.tokenizer(asked).input_ids])  # (1, 11): not the policy's own
answer, said = spoken.actions["tokens"][:1], spoken.mask[:1] > 0  # the first sibling's words
answer, answer_logprobs = answer[said][None], spoken.logprobs[:1][said][None]
parts = [painted.logprobs, torch.zeros(question.shape), answer_logprobs]
mask = torch.cat([torch.ones(1, 64), torch.zeros(question.shape), torch.ones(answer.shape)], dim=1)
tokens = torch.cat([codes, question, answer], dim=1)  # (1, T)
unified = Rollout(captioned, {"tokens": tokens}, torch.cat(parts, dim=1), mask, 1, [spoken.outputs[0]])
print("mask:", "".join(f"{m:.0f}" for m in mask[0]))

# %% [markdown]
# ### Vision-language-action: the next move
#
# A real environment: MiniGrid, a room with two by two free cells, *go to the red box*. State: the instruction and all pictures so far.
# Action: turn left, turn right, go ahead. **The world answers**, and the policy does not know how it works. Our policy is a
# die with three faces. We show an episode in which it happens to arrive, and count how often it does.

# %%
room = gymnasium.make("BabyAI-GoToObjS4-v0", render_mode="rgb_array", tile_size=8)


def walk(seed):
    """One episode of a die: instruction, frames, moves, rewards."""
    observation, _ = room.reset(seed=seed)
    frames, moves, paid, over, die = [room.render()], [], [], False, torch.Generator().manual_seed(seed)
    while not over:
        moves.append(torch.randint(3, (1,), generator=die).item())
        _, reward, arrived, late, _ = room.step(moves[-1])
        frames.append(room.render())
        paid.append(float(reward))
        over = arrived or late
    pictures = torch.stack([torch.from_numpy(frame) for frame in frames])  # (S + 1, 32, 32, 3)
    return observation["mission"], pictures.permute(0, 3, 1, 2) / 255, moves, paid


mission, frames, moves, paid = walk(2)
columns = {"moves": torch.tensor([moves]), "observations": frames[None, :-1]}  # (1, S), (1, S, 3, 32, 32)
ones = torch.ones(1, len(moves))
walked = Rollout(Prompts({"prompt": [mission]}), columns, ones * torch.tensor(1 / 3).log(), ones, 1, [sum(paid)])
lucky = sum(sum(walk(seed)[3]) > 0 for seed in range(20))
print(f"{mission}: moves {moves}, rewards {[round(r, 2) for r in paid]}; {lucky} of 20 walks arrive")
# %% [markdown]
# ### Side by side
#
# Choose a pillar and go through its episode. On the left is what the state holds, and below it the action. On the right is
# the log-prob of every action; grey bars lie under a mask of 0.

# %% tags=["given"]
def told(tokens):
    """Words as a state holds them."""
    return policy.tokenizer.convert_ids_to_tokens(tokens.tolist())


# %%
row = int(spoken.mask.sum(dim=1).argmax())  # the first of the longest completions
length = int(spoken.mask[row].sum())
drawn = paint(codes[0], range(64))  # (64, 3, 8, 8): before each patch
spoken_words, all_words = told(spoken.actions["tokens"][row, :length]), told(tokens[0, 64:])
still, whole = picture[None].expand(length, -1, -1, -1), paint(codes[0], [64] * len(all_words))
stories = {
    "words": (still, spoken.rows([row]), spoken_words),
    "denoising": (denoised.actions["x_t"][0] / 2 + 0.5, denoised, ["a less noisy picture"] * 6),
    "image tokens": (drawn, painted, [NAMES[code] for code in codes[0]]),
    "both": (torch.cat([drawn, whole]), unified, [NAMES[code] for code in codes[0]] + all_words),
    "moves": (frames[:-1], walked, [["turn left", "turn right", "go ahead"][move] for move in moves]),
}
pillars = Dropdown(options=list(stories), value="denoising")
lab.explore(lambda pillar, step: episode_figure(pillar, step, stories), pillar=pillars, step=IntSlider(4, min=1, max=80))

# %%
strip = [picture] * 4 + [denoised.actions["x_t"][0, i] / 2 + 0.5 for i in (0, 2, 4, 5)]
strip += [large(drawn[i]) for i in (0, 16, 32, 60)] + [frames[i] for i in (0, 2, 4, 6)]
captions = ["", *(" ".join(spoken_words[:n]) for n in (2, 5, 9))] + [""] * 12
labels = ("words", "denoising", "image tokens", "moves")
lab.gallery(torch.stack(strip), captions, columns=4, row_labels=labels, title="Four games in turns: states, from left to right")
plt.show()

# %% [markdown]
# ### One contract
#
# All five episodes are the same kind of object, a `Rollout`. What follows in this book is written for a `Rollout`, and does not
# ask where it came from.

# %%
five = {"words": spoken, "denoising": denoised, "image tokens": painted, "both": unified, "moves": walked}
for name, episode in five.items():
    shapes = ", ".join(f"{key} {tuple(value.shape)}" for key, value in episode.actions.items())
    total = (episode.logprobs * episode.mask).sum(dim=1).mean()
    print(f"{name:12s} {int(episode.mask[0].sum()):2d} decisions, log pi(y) {total:9.2f}; actions: {shapes}")

# %% [markdown]
# One promise of the contract deserves a test of its own. `rollout.logprobs` was stored while sampling, word by word, with a
# cache. `policy.logprobs(rollout)` scores the finished rows in one pass, with gradients. If nobody has trained in between, the two
# must agree, so that the **ratio** $\pi_\theta / \pi_{old}$ is 1 at every word. This is the first thing to check in any code for RL.

# %%
# NBVAL_CHECK_OUTPUT
heldout = question_prompts(256, ("difference",), "heldout", torch.Generator().manual_seed(2), about=("color",))
rollout = policy.rollout(heldout.rows(range(16)), 4, generator)  # N = 64 rows
keep = rollout.mask > 0  # (N, T)
ratio = (policy.logprobs(rollout) - rollout.logprobs).exp()[keep].detach()
print(f"{len(rollout)} rows of {rollout.group_size} siblings each: ratio from {ratio.min():.3f} to {ratio.max():.3f}")
assert not rollout.logprobs.requires_grad and policy.logprobs(rollout).requires_grad

# %% [markdown]
# ## Code: show once, prove equal, import
#
# Eq. (A2) as a loss. Its value means nothing; its gradient is minus the policy gradient. The library's `reinforce_loss` must give
# the same numbers. The log-probs come from sines, the lengths differ.

# %%
def reinforce(logprobs, advantages, mask):
    """Minus Eq. (A2) when differentiated.  logprobs, mask: (N, T); advantages, or plain rewards: (N,)."""
    log_pi = (logprobs * mask).sum(dim=1)  # (N,): log pi(y | p), Eq. (A1)
    return -(advantages * log_pi).mean()


# %%
# NBVAL_CHECK_OUTPUT
wave = torch.linspace(0, 9, 12).view(3, 4).sin() - 2  # (N, T)
logprobs = wave.requires_grad_()
mask = (torch.arange(4) < torch.tensor([4, 2, 3])[:, None]).float()  # (N, T)
advantages = torch.tensor([1.0, -0.5, 0.25])  # (N,)
for name, loss in (("ours", reinforce(logprobs, advantages, mask)), ("library", reinforce_loss(logprobs, advantages, mask)[0])):
    gradient = torch.autograd.grad(loss, logprobs)[0] + 0.0  # (N, T)
    print(f"{name:8s} loss {loss:.4f}, gradient of row 2:", " ".join(f"{g:+.4f}" for g in gradient[1]))

# %% [markdown]
# Every word of a row gets the same push, minus the advantage over N, and padding gets none.
#
# ## Experiment: a first policy gradient
#
# Now on the VLM. The four **beats** stand in the loop, with names that every chapter keeps: Act, Judge, Compare, Improve. The
# reward is 1 for the exact answer to *how many more A than B ?*, else 0. Compare has a switch. With a baseline, each reward is
# compared with the mean of its seven siblings. Without one, the reward itself is the advantage.

# %%
train_prompts = question_prompts(1024, ("difference",), "train", torch.Generator().manual_seed(1), about=("color",))
base = policy


def train(seed, baseline=True, bonus=0.0, shuffle=False, padding=False, steps=20):
    """REINFORCE from the base; returns the policy and one row of statistics per step."""
    policy, generator, log = copy.deepcopy(base), torch.Generator().manual_seed(seed), []
    optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4, weight_decay=0.0)
    for _ in range(steps):
        # Act: 8 completions for each of 4 prompts.
        rollout = policy.rollout(train_prompts.sample(4, generator), 8, generator)  # N = 32 rows
        # Judge: a program.
        rewards, _ = judge(exact_match, rollout)  # (N,)
        log.append({"right": rewards.mean().item()})
        if shuffle:  # the control: the same rewards, dealt out at random
            rewards = rewards[torch.randperm(len(rewards), generator=generator)]
        # Compare: with the siblings, or with nothing.
        advantages = rewards + bonus  # (N,)
        if baseline:
            advantages = leave_one_out_advantages(advantages.view(-1, 8)).flatten()  # (4, 8), then (N,)
        # Improve: one step along the policy gradient.
        mask = torch.ones_like(rollout.mask) if padding else rollout.mask  # a bug to come, switched off
        loss, _ = reinforce_loss(policy.logprobs(rollout), advantages, mask)
        optimizer.zero_grad()
        loss.backward()
        log[-1]["grad_norm"] = clip_grad_norm_(policy.parameters(), 1.0).item()
        optimizer.step()
    return policy, log


# %% [markdown]
# Four kinds of runs, three seeds each. **Predict** the order: with a baseline; without one; without one, and 3 extra for
# everybody; and the control, whose rewards are dealt out at random.

# %%
control, seeds = "control, shuffled rewards", range(3)
runs = {
    "baseline": [train(seed) for seed in seeds],
    "no baseline": [train(seed, baseline=False) for seed in seeds],
    "no baseline, 3 extra": [train(seed, baseline=False, bonus=3.0) for seed in seeds],
    control: [train(seed, shuffle=True) for seed in seeds],
}

# %%
def habits(policy):
    """Held-out: share of sampled answers that are right, and that write the counts down first."""
    drawn = evaluate(policy, heldout, samples=1, generator=torch.Generator().manual_seed(3))
    return {"right": drawn.score, "writes the counts": sum("<think>" in y for y in drawn.outputs) / len(heldout)}


def column(runs, name):
    """(S, steps): one statistic of every run."""
    return torch.tensor([[row[name] for row in log] for _, log in runs])


right = {name: column(series, "right") for name, series in runs.items()}
title = "Two runs rise, two do not (3 seeds, mean of 5 steps)"
lab.curves(right, ylabel="share of right answers", control=control, smooth=5, title=title, x=range(1, 21))
plt.show()

# %%
measured = {"before": [habits(base)]} | {name: [habits(p) for p, _ in series] for name, series in runs.items()}
bars = {name: {k: [h[k] for h in series] for k in series[0]} for name, series in measured.items()}
figure = lab.bars(bars, ylabel="share of sampled answers", title="Held-out: a bonus for everybody undoes the gain")
figure.axes[0].set_ylim(0, 1.5)  # room for the legend
plt.show()
mean = {name: {k: sum(v) / len(v) for k, v in series.items()} for name, series in bars.items()}
print({name: {k: round(v, 2) for k, v in series.items()} for name, series in mean.items()})
gain = {name: series["right"] - mean[control]["right"] for name, series in mean.items()}  # means of 3
assert gain["baseline"] > 0  # 8 seeds: 0.59 +- 0.06, control 0.36 +- 0.06; paired +0.23 +- 0.10
assert gain["no baseline"] > 0.09  # 8 seeds: 0.63 +- 0.04; paired +0.27 +- 0.08
assert mean["no baseline"]["right"] > 0.53  # base 0.52
assert mean["no baseline, 3 extra"]["right"] < 0.62  # 8 seeds: 0.48 +- 0.06
assert mean["baseline"]["writes the counts"] > 0.6  # base 0.25; 8 seeds: 0.75 +- 0.06

# %%
then, now = (evaluate(policy, heldout) for policy in (base, runs["baseline"][0][0]))  # greedy: the likeliest answers
gained, lost = (((now.scores - then.scores) == sign).nonzero()[:, 0].tolist() for sign in (1, -1))
index = [*gained[:2], lost[0]]  # the first two that were gained, the first that was lost
asks = [f"{words[3]} less {words[6]} (truth {heldout['answer'][i]})" for i in index for words in [heldout["prompt"][i].split()]]
captions = [f"{q}: {then.outputs[i]}" for q, i in zip(asks, index, strict=True)] + [now.outputs[i] for i in index]
title = f"Baseline, seed 0, greedy: gains {len(gained)} of 256 questions, loses {len(lost)}"
lab.gallery(torch.cat([heldout["image"][index]] * 2), captions, columns=3, row_labels=("before", "after"), title=title)
plt.show()

# %% [markdown]
# ### What to notice
#
# - A plain policy gradient trains a vision-language model. The reward says nothing about how to answer. Completions that
#   write the counts down are right more often, so writing grows. The control loses: rewards without meaning are noise in
#   the weights.
# - The bonus for everybody undoes the gain. It tells the policy nothing, and pushes up whatever was drawn.
# - With rewards 0 and 1 the baseline makes no difference that we could see: over eight seeds 0.59 ± 0.06 with it, 0.63 ± 0.04
#   without. A reward of 0 for every failure is a baseline of a kind. We keep this null result.
#
# ### The noise, measured
#
# Eq. (A2) says that the bonus changes nothing on average. So let us look at the average. We take the base, draw eight
# batches of 32 completions, and estimate the whole gradient from each batch three times: 1.2 million numbers. *Spread* is
# how far an estimate lies from the mean of the eight.

# %%
def gradients(count, seed):
    """Policy gradients of `count` batches under three baselines: {name: (count, parameters)}."""
    generator, found = torch.Generator().manual_seed(seed), {"siblings": [], "nothing": [], "nothing, 3 extra": []}
    for _ in range(count):
        rollout = base.rollout(train_prompts.sample(4, generator), 8, generator)
        rewards, _ = judge(exact_match, rollout)
        compared = leave_one_out_advantages(rewards.view(-1, 8)).flatten()
        logprobs, weights = base.logprobs(rollout), list(base.parameters())
        for rows, advantages in zip(found.values(), (compared, rewards, rewards + 3), strict=True):
            loss, _ = reinforce_loss(logprobs, advantages, rollout.mask)
            parts = torch.autograd.grad(-loss, weights, retain_graph=True, allow_unused=True)
            rows.append(torch.cat([part.flatten() for part in parts if part is not None]))
    return {name: torch.stack(rows) for name, rows in found.items()}


spread = {}
for name, found in gradients(8, seed=0).items():
    spread[name] = (found - found.mean(dim=0)).square().sum(dim=1).mean().sqrt().item()
    print(f"compared with {name:16s}: length of the mean {found.mean(dim=0).norm():5.2f}, spread {spread[name]:5.2f}")
assert spread["nothing, 3 extra"] > 2 * spread["siblings"]  # 8 seeds: 4.5 +- 0.6 times

# %%
shifted, plain = train(0, bonus=3.0, steps=2)[0], train(0, steps=2)[0]  # both with the baseline
assert all(a.equal(b) for a, b in zip(shifted.parameters(), plain.parameters(), strict=True))  # the same bits

# %% [markdown]
# The same completions, but four times the noise. Even the mean of eight batches no longer points where that of the siblings
# points (cosine 0.1 ± 0.3 over eight seeds; for nothing without a bonus 0.9 ± 0.1). Siblings and nothing are equally
# noisy here, which is why both learned. The difference is that siblings cannot be fooled: with them, the weights with and
# without the bonus are the same to the last bit. Nobody has to know where the zero of a reward is.
#
# ## What can go wrong
#
# ### The mask covers the padding
#
# After the end token a row is filled up with padding. Nobody chose it; its stored log-prob is 0. Somebody forgets the mask.
# Nothing crashes: the model has an opinion about padding, as about everything. We train that way, three seeds.

# %%
padded = [train(seed, padding=True) for seed in seeds]
scores = [habits(policy)["right"] for policy, _ in padded]
norms = {name: column(series, "grad_norm").mean().item() for name, series in (("mask", runs["baseline"]), ("no mask", padded))}
print("right, held-out:", [round(score, 2) for score in scores], " gradient norms:", {k: round(v, 1) for k, v in norms.items()})
assert norms["no mask"] > 1.3 * norms["mask"]  # means of 3; 8 seeds: 14.7 +- 2.1 against 5.2 +- 1.0

# %% [markdown]
# **It learns anyhow**, and that is what makes such bugs live long: 0.55 ± 0.06 over eight seeds, where the right mask
# gives 0.59 ± 0.06. The reward curve does not betray it. The gradient norm is suspicious, if one knows what it should be: most of
# the gradient is about padding, and the clip of the norm leaves less for the words. One number tells without any comparison.
#
# ### What the ratio tells
#
# Score a rollout right after it was drawn. The ratio must be 1 at every word. Three bugs that leave the shapes alone: no mask;
# another temperature than the one that sampled; and prompts that are out of step with their rows, because somebody expanded
# them with `repeat` (a b a b) where the rows lie as `repeat_interleave` puts them (a a b b).

# %%
def first_ratios(policy, rollout, mask):
    """Ratio at every masked word, nothing having been trained."""
    with torch.no_grad():
        return (policy.logprobs(rollout) - rollout.logprobs).exp()[mask > 0]


cool = copy.copy(base)
cool.temperature = 0.7
order = torch.arange(len(rollout.prompts)).repeat(rollout.group_size)  # a b c ... a b c ...
shifted = Rollout(rollout.prompts.rows(order), rollout.actions, rollout.logprobs, rollout.mask, 1, rollout.outputs)
ratios = {
    "as it should be": first_ratios(base, rollout, rollout.mask),
    "no mask": first_ratios(base, rollout, torch.ones_like(rollout.mask)),
    "temperature 0.7": first_ratios(cool, rollout, rollout.mask),
    "rows out of step": first_ratios(base, shifted, rollout.mask),
}
for name, ratio in ratios.items():
    print(f"{name:16s}: mean {ratio.mean():.3f}, from {ratio.min():.3f} to {ratio.max():.3f}")
off = {name: (ratio - 1).abs().max() for name, ratio in ratios.items()}
assert off.pop("as it should be") < 1e-3
assert min(off.values()) > 0.2

# %% [markdown]
# The mean alone may deceive. Under the policy that sampled, $\mathbb E[\pi' / \pi] = 1$ for *any* other policy $\pi'$, so a
# wrong temperature leaves it near 1. Look at the ends. Correct code gives 1 at every single word.

# %% [markdown]
# ## Exercises
#
# ### Exercise 1.1 | predict | 5 numbers | 5 min
# How many decisions does the policy take, and what is the log-prob of the episode? (Natural logarithm, two decimals; $\log 2 =
# 0.693$, $\log 3 = 1.099$.)

# %%
prediction = {
    "decisions: a diffusion with 50 denoising steps": ...,
    "decisions: a picture of 16 x 16 image tokens": ...,
    "decisions: 64 image tokens, 11 words of the user, 4 words of the answer": ...,
    "log-prob: a robot that throws a die with 3 faces, 6 moves": ...,
    "log-prob: words of probability 0.5, 0.5 and 1, then two columns of padding": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("1.1", check_columns, prediction)

# %% [markdown]
# <details><summary>Solution 1.1</summary>
#
# ```python
# prediction = {
#     "decisions: a diffusion with 50 denoising steps": 50,
#     "decisions: a picture of 16 x 16 image tokens": 256,
#     "decisions: 64 image tokens, 11 words of the user, 4 words of the answer": 68,  # the mask has a gap
#     "log-prob: a robot that throws a die with 3 faces, 6 moves": -6.59,  # the world's answers do not count
#     "log-prob: words of probability 0.5, 0.5 and 1, then two columns of padding": -1.39,
# }
# ```
#
# </details>

# %% [markdown]
# ### Exercise 1.2 | implement | 2 lines | 10 min
# Build the mask of a rollout from its tokens: 1 up to **and including** the first end token of each row. A row without an end
# token is all ones: it ran out of space. The end token may be its own padding, so it can occur again.

# %%
def mask_of(tokens, end):
    """tokens (N, T), end: a number -> (N, T) of 0.0 and 1.0."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("1.2", check_mask, mask_of)

# %% [markdown]
# <details><summary>Solution 1.2</summary>
#
# ```python
# def mask_of(tokens, end):
#     ends_before = (tokens == end).cumsum(dim=1) - (tokens == end).long()  # end tokens in earlier columns
#     return (ends_before == 0).float()
# ```
#
# </details>

# %% [markdown]
# ### Exercise 1.3 | find the bug | 1 line | 5 min
# The rewards that come out of this function are mostly nonsense, and training with it behaves like the control. With one prompt
# per batch it is right. Write the repaired function.

# %%
def buggy_rewards(outputs, answers, group_size):
    """N outputs, B answers -> (B, G): exact match."""
    everybody = answers * group_size  # N answers
    return torch.tensor(exact_match(outputs, everybody)).view(-1, group_size)


def grouped_rewards(outputs, answers, group_size):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("1.3", check_rewards, grouped_rewards)

# %% [markdown]
# <details><summary>Solution 1.3</summary>
#
# ```python
# def grouped_rewards(outputs, answers, group_size):
#     everybody = [answer for answer in answers for _ in range(group_size)]  # a a b b, as the rows lie
#     return torch.tensor(exact_match(outputs, everybody)).view(-1, group_size)
#     # A list times 4 is a b a b: what `repeat` does to a tensor. The library expands with Prompts.repeat(G).
# ```
#
# </details>

# %% [markdown]
# ### Exercise 1.4 | ablate | 5 lines | 15 min
# Which constant baseline leaves the least noise? Try many, and return the best one, for any policy that can be listed.
# As in *One decision* above: an answer has the chance `chances[i]`, the reward `rewards[i]` and the slope `scores[i]`.

# %%
def best_baseline(chances, rewards, scores):
    """(V,), (V,), (V,) -> the baseline from torch.linspace(-2, 4, 601) with the smallest variance."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("1.4", check_best_baseline, best_baseline)

# %% [markdown]
# <details><summary>Solution 1.4</summary>
#
# ```python
# def best_baseline(chances, rewards, scores):
#     baselines = torch.linspace(-2, 4, 601)
#     slopes = (rewards - baselines[:, None]) * scores  # (601, V)
#     means = (chances * slopes).sum(dim=1, keepdim=True)  # (601, 1), all the same
#     variances = (chances * (slopes - means).square()).sum(dim=1)  # (601,)
#     return baselines[variances.argmin()].item()
#     # The best one is E[R s^2] / E[s^2]: a mean reward, in which answers with a steep slope count more.
#     # PPO's critic and GRPO's siblings both aim at the plain mean, which is easier to get.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 1.5 | extend | 3 lines | 15 min
# Give the contract another kind of action. Write the log-density of a denoising step, from the formula of the Gaussian:
# $-\frac{(x - m)^2}{2\sigma^2} - \log \sigma - \frac12 \log 2\pi$ for each number of the picture, summed over the picture.

# %%
def step_logprobs(x_next, mean, std):
    """x_next, mean: (N, C, H, W), std: a number -> (N,)."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("1.5", check_gaussian, step_logprobs)

# %% [markdown]
# <details><summary>Solution 1.5</summary>
#
# ```python
# def step_logprobs(x_next, mean, std):
#     z = (x_next - mean) / std  # (N, C, H, W)
#     logprobs = -0.5 * z.square() - torch.tensor(std).log() - 0.5 * torch.tensor(2 * torch.pi).log()
#     return logprobs.flatten(1).sum(dim=1)
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - read a caption, a picture, a walk through a room as an episode, and say what state, action and mask are;
# - check the first thing that breaks in code for reinforcement learning: the ratio before the first update;
# - write REINFORCE, and say what its baseline does and what it does not do.
#
# What we did not test. Only the words come from a trained policy here; denoising, image tokens, both together and moves were
# made by hand to show the contract. The survey gives rewards on single tokens a place in its notation; all of ours came at the end.
#
# References: the survey, section 2.1 (arXiv 2508.08189, version 3). REINFORCE: Williams, *Simple statistical gradient-following
# algorithms for connectionist reinforcement learning*, 1992. Denoising as an MDP: Black and others,
# [arXiv 2305.13301](https://arxiv.org/abs/2305.13301). In the library: `minivisrl/rollout.py`, `policy.py`, `decoding.py`,
# `optimization/reinforce.py`.
