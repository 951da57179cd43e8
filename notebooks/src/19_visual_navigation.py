# %% [markdown]
# # 19. Visual navigation: an episode that looks back at you
#
# [previous: 17. Task-specific RL](17_task_specific_rl.ipynb) | [contents](00_start_here.ipynb) |
# [next: back to the contents](00_start_here.ipynb)
#
# **Question.** An agent sees a room, is told what to do and acts, frame by frame. Which of its actions does reinforcement
# learning praise, how does it compare with watching more demonstrations, and what does it do where the room, the words or
# the things are new?
#
# **Survey:** section 3.4.2 (version 3). **Running time:** about a minute and a half on one thread.

# %% [markdown]
# ## Setup

# %% tags=["setup"]
import json
import time
from functools import partial
from random import Random

import matplotlib.pyplot as plt
import torch
from checks import ch19
from checks.ch19 import (
    check_axis,
    check_gae,
    check_nearer,
    check_predictions,
    check_progress,
    films,
    step_figure,
    strip_figure,
)
from ipywidgets import IntSlider

from minivisrl import DATA, lab
from minivisrl.evaluation import evaluate
from minivisrl.evaluation.verdicts import verdict
from minivisrl.lab import check
from minivisrl.optimization import PPO, group_advantages
from minivisrl.optimization.advantages import gae, shape_rewards
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.recipes.vla import fresh_critic
from minivisrl.rewards.timing import decayed_agreement
from minivisrl.vla.levels import SPLITS, UNSEEN_PAIRS, level_of  # noqa: F401, for exercise 19
from minivisrl.vla.navigation import ACTIONS, Episode, Room, navigation_prompts, success
from minivisrl.vla.policy import VLAPolicy
from minivisrl.vla.pretraining import Pupil, cloned, demonstrate

generator = lab.setup(0)

# %% [markdown]
# ## Theory
#
# In the chapters before, a state was a prompt and what had been written so far. Now there is a world. It is in a condition
# $x_t$ that nobody sees whole; the agent gets an observation $o_t$, acts, and the world moves on. That is a **POMDP**, a Markov
# decision process that is only partly observed. In Eqs. (1) and (2) the history takes the place of the text:
#
# $$s_t = (p, o_1, a_1, \dots, a_{t-1}, o_t), \qquad a_t \sim \pi_\theta(a_t \mid s_t), \qquad x_{t+1} = f(x_t, a_t) \tag{A1}$$
#
# At the end of the episode $y$ a program looks at the world and says whether the mission was accomplished:
#
# $$r(p, y) = v(p, y) \in \{0, 1\} \tag{7}$$
#
# | symbol | meaning here | in the code | shape |
# |---|---|---|---|
# | $p$ | the mission in words, and the room | `prompts["prompt"]`, `prompts["level"]` | B |
# | $o_t$ | picture of the room | `rollout.actions["observations"]` | (N, T, 3, 40, 40) |
# | $a_t$ | one of six actions, an action token | `rollout.actions["tokens"]` | (N, T) |
# | $\pi_\theta(a_t \mid s_t)$ | softmax over the action tokens | `rollout.logprobs`, its logarithm | (N, T) |
# | $y$ | all actions of an episode, and how it ended | `rollout.outputs`, each an `Episode` | N |
# | $v$ | was the mission accomplished? | `success` | (N,) |
#
# **Where we depart.** The papers of the section walk through photographed buildings and see what is in front of them, so they
# must remember; VLN-R1 *samples memories*, some frames of the near and some of the far past. Our agent sees its whole room, and what it has
# done can be seen in it. So mission and present view tell all that matters but the time that is left, and the
# POMDP is nearly an MDP: $s_t = (p, o_t)$.

# %% [markdown]
# ### Who was it?
#
# An episode of twenty actions ends with one bit. Which of the actions deserve it? Two answers.
#
# **PPO** has a critic $V_\psi$ that watches the frames. With the reward of Eq. (8), here without its KL term,
#
# $$\hat A_t = \mathrm{GAE}(r_t, V_\psi) = \sum_{l \ge 0} (\gamma \lambda)^l \delta_{t+l}, \qquad \delta_t = r_t + \gamma V_\psi(s_{t+1}) - V_\psi(s_t) \tag{9}$$
#
# An action is good if the next frame looks better than this one did. **GRPO** has no critic. It lets $G$ agents loose in the same room
# and compares their outcomes:
#
# $$\hat A_{i,t} = \frac{r_i - \mathrm{mean}(r)}{\mathrm{std}(r)} \tag{11}$$
#
# The printed equation has an index $t$ on the reward, too; with one reward at the end it is the same for the whole episode.
# Either advantage goes into a clipped step, Eq. (10) or (12), as in chapters [5](05_ppo.ipynb) and [6](06_grpo.ipynb).
#
# ### Rewards on the way
#
# The survey sums the section up as *temporal rewards, memory sampling, environment priors*. Three rewards for this chapter. With $d_t$ the
# fewest actions from frame $t$ to success and $L$ the time limit,
#
# $$r_t = \frac{d_t - d_{t+1}}{L} + v \, [t \text{ is the last}] \qquad \text{(progress)} \tag{A2}$$
#
# $$r = \sum_{k=0}^{n-1} \gamma^k \, [a_k = a^*_k] \Big/ \sum_{k=0}^{n-1} \gamma^k \qquad \text{(time-decayed agreement, VLN-R1)} \tag{A3}$$
#
# where $a^*$ are the $n$ actions of an expert, and as a measure, not a reward, **success weighted by path length**:
#
# $$\mathrm{SPL} = v \cdot n / \max(n, |y|) \tag{A4}$$
#
# | symbol | in words | in the code |
# |---|---|---|
# | $V_\psi$, $\gamma$, $\lambda$ | critic, discount 0.98, mixing 0.95 | `values` (N, T), `gamma`, `gae_lambda` |
# | $\hat A_t$; $\hat A_{i,t}$ | by GAE; among siblings | `gae` (N, T); `group_advantages` (B, G) |
# | $d_t$ | way left | `Room.left()` |
# | $[a_k = a^*_k]$, summed | agreement | `decayed_agreement` |

# %% [markdown]
# ## By hand
#
# ### An episode is its actions
#
# Rooms hold no chance, so a level and a list of actions *are* an episode: anyone can watch it again. BabyAI's bot, which plans, shows how
# one of the training missions is done. **Predict** from the mission: what will be the last action?

# %%
# NBVAL_CHECK_OUTPUT
level = level_of(28, "train")
shown = demonstrate(level, 0.0, Random(0))
print(f"mission: {level.mission}; fewest actions {level.shortest}, limit {level.limit}")
print("the bot:", " ".join(ACTIONS[a] for a in shown.actions))
print(f"success {shown.success}, SPL {shown.spl:.2f}; way left:", [room.left() for room, _ in shown.watch()])

# %% [markdown]
# The way left shrinks by one with each action, to 0: the progress of (A2) would pay 1 for each, divided by the limit.
#
# Is the picture a state? Turn left, then right: the room is as it was. **Predict:** what differs?

# %%
# NBVAL_CHECK_OUTPUT
room = Room(level)
first = room.reset()[0]["image"]
for action in ("left", "right"):
    image = room.step(ACTIONS.index(action))[0]["image"]
print("same picture:", (image == first).all(), "  same way left:", room.left() == level.shortest)
print("actions used:", room.step_count, "of", level.limit)

# %% [markdown]
# The agent cannot see its clock. A policy that knew how little time is left might act differently; ours cannot, and a critic
# that reads the same picture gives the same value in the first minute and in the last.
#
# ### Two ways to share one bit
#
# Three actions, and a critic that grew more hopeful from frame to frame. Below it, an episode that began alike and went wrong. To
# keep the sums simple, $\gamma = 1$ and $\lambda = 1/2$. **Work out** both rows: first the $\delta$s, then from the last one back.

# %%
# NBVAL_CHECK_OUTPUT
values = torch.tensor([[0.4, 0.5, 0.8], [0.4, 0.5, 0.2]])  # (N, T)
paid = torch.tensor([[0.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
after = torch.cat([values[:, 1:], torch.zeros(2, 1)], dim=1)
delta = paid + after - values
last = delta[:, 2]
middle = delta[:, 1] + 0.5 * last
early = delta[:, 0] + 0.5 * middle
for name, d, a in zip(("success", "failure"), delta, torch.stack([early, middle, last], 1), strict=True):
    print(f"{name}: deltas {' '.join(f'{x:+.2f}' for x in d)}   advantages {' '.join(f'{x:+.2f}' for x in a)}")
siblings = group_advantages(torch.tensor([[1.0, 0.0, 1.0, 0.0]]), std_eps=0.0)[0]
print("GRPO, two of four succeed: ", " ".join(f"{x:+.2f}" for x in siblings))

# %% [markdown]
# In the failure the first action was fine, the critic says, and yet it gets a small minus: a quarter of what follows comes back to it.
# Most of the blame goes to the second action, after which the value fell. GRPO knows one number per episode, so a good
# beginning of a failure is punished like its end. It needs many siblings to find out that the beginning was not to blame.
#
# ### Agreement with an expert
#
# VLN-R1's reward (A3), with $\gamma = 1/2$ so that weights are $1, 1/2, 1/4, 1/8$. The expert turns right twice and goes
# forward twice. **Predict** the order of these four agents, then look for the one that has done nothing wrong.

# %%
# NBVAL_CHECK_OUTPUT
expert = ("right", "right", "forward", "forward")
for told, what in (
    (("right", "right", "forward", "forward"), "as the expert"),
    (("right", "right", "forward", "left"), "wrong at the end"),
    (("left", "right", "forward", "forward"), "wrong at the start"),
    (("left", "left", "forward", "forward"), "turns round the other way"),
):
    print(f"{decayed_agreement(told, expert, 0.5):.3f}  {decayed_agreement(told, expert, 1.0):.2f} without decay   {what}")

# %% [markdown]
# The last agent turns round to the left, stands where the expert stands and earns a fifth, because agreement is with *a*
# way, not with the goal. And the first action counts eight times as much as the fourth: VLN-R1 predicts several actions ahead, and wants
# the next ones to be right above all.

# %% [markdown]
# ## Code: show once, prove equal, import
#
# GAE for episodes of different length. The loop runs from the end to the start; where the mask is 0 nobody acts, and nothing
# from there may reach the last real frame. We compare with the library on episodes of the shipped agent, whose fresh critic knows nothing yet.

# %%
def advantages_of(rewards, values, mask, gamma, lam):
    """(N, T), three times -> (N, T): Eq. (9), zero where nobody acts."""
    result, following, ahead = torch.zeros_like(values), 0.0, 0.0
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + gamma * ahead - values[:, t]  # (N,)
        following = (delta + gamma * lam * following) * mask[:, t]
        ahead = values[:, t] * mask[:, t]
        result[:, t] = following
    return result


# %% tags=["given"]
def base_agent():
    """The shipped agent, before any reinforcement learning."""
    return VLAPolicy.load(DATA / "checkpoints" / "vla")


def dice(seed):
    """A fresh generator."""
    return torch.Generator().manual_seed(seed)


rooms = navigation_prompts(8, "train", dice(1))

# %%
# NBVAL_CHECK_OUTPUT
agent = base_agent()
agent.add_value_head(dice(0))
rollout = agent.rollout(rooms, 2, dice(0))
with torch.no_grad():
    values, mask = agent.evaluate_actions(rollout, values=True).values, rollout.mask
paid = shape_rewards(torch.tensor(success(rollout.outputs)), rollout.logprobs, None, mask, 0.0)  # (N, T)
ours = advantages_of(paid, values, mask, 0.98, 0.95)
theirs, returns = gae(paid, values, mask, gamma=0.98, gae_lambda=0.95)
print("episodes:", len(rollout), "  same advantages:", torch.allclose(ours, theirs, atol=1e-6))
whole, _ = gae(paid, values, mask, gamma=1.0, gae_lambda=1.0)
outcome = torch.tensor(success(rollout.outputs))[:, None]
print("gamma = lambda = 1: advantage + value = outcome:", torch.allclose(whole + values * mask, outcome * mask, atol=1e-5))

# %% [markdown]
# ## Experiment
#
# ### Watch the agent
#
# The agent is a small vision-language model. It cloned demonstrators who stumble (a fifth of their actions are random) and mishear (four
# in ten demonstrations follow another mission in the same room). So it knows how to walk, and has learned that missions are
# not always carried out. Under each frame: its number, the action that was drawn, and how likely it was. Of a long episode eight frames are shown.

# %%
easy = [i for i, told in enumerate(rooms["level"]) if 4 <= told.shortest <= 6]
print("missions:", "; ".join(rooms["prompt"]))
print("fewest actions:", [told.shortest for told in rooms["level"]])
before = films(base_agent(), rooms.rows(easy), 4, dice(3))
strip_figure(before[:3], [f"agent {i}" for i in range(3)], title=f"The base, three times: {rooms['prompt'][easy[0]]}")
plt.show()

# %% [markdown]
# One mission, one first frame, three courses, from the shortest way to twice that. Where the probabilities are low, chance decides, and the
# agents part. This is what both algorithms live on: without different outcomes in the same room there is nothing to compare.

# %% [markdown]
# ### A short training
#
# PPO as in the recipe `minivisrl run vla/rlvr-ppo`, in small: eight rooms, eight agents in each, eight steps, where the recipe
# has 32 fresh rooms of 4,096 in each of its 50. Everything else is the recipe's. With so few rooms a minute shows something, and what it shows
# is *practice*: we also measure 64 rooms that were never trained in. The **control** deals the same rewards out at random.

# %%
def practise(seed, collect=act_and_judge, steps=8):
    """PPO in the eight rooms: the agent, its mean reward by step, and the CPU seconds of the steps."""
    policy = base_agent()
    cfg = OnlineConfig(batch_size=8, group_size=8, learning_rate=5e-4)
    trainer = OnlineTrainer(policy, rooms, success, PPO(fresh_critic()), cfg, dice(seed), collect=collect)
    start = time.process_time()
    rewards = [trainer.step()["reward"] for _ in range(steps)]
    return policy, rewards, time.process_time() - start


# %%
trained, climbs, seconds = zip(*(practise(seed) for seed in range(3)), strict=True)

# %%
controls, drifts, _ = zip(*(practise(seed, shuffled(act_and_judge)) for seed in range(3)), strict=True)

# %%
lab.curves(
    {"policy": list(climbs), "control": list(drifts)},
    control="control",
    ylabel="success in the eight rooms",
    title="Eight steps of PPO, and the same steps with rewards at random (3 seeds)",
)
plt.show()


def ability(policy):
    """Success of sampled episodes: in the eight rooms, 16 times each, and in 64 fresh ones."""
    fresh = navigation_prompts(64, "heldout", dice(2))
    practised = evaluate(policy, rooms, success, samples=16, generator=dice(9)).score
    return {"the eight rooms": practised, "fresh rooms": evaluate(policy, fresh, success, samples=1, generator=dice(9)).score}


def mean(values):
    """Mean over seeds."""
    return sum(values) / len(values)


start = ability(base_agent())
rows = {"PPO": [ability(policy) for policy in trained], "control": [ability(policy) for policy in controls]}
told = {arm: {name: mean([row[name] for row in seeds]) for name in start} for arm, seeds in rows.items()}
print("before", {name: round(value, 2) for name, value in start.items()}, " ", {arm: {n: round(v, 2) for n, v in row.items()} for arm, row in told.items()})
# means of 3 runs; the sweeps have 8 seeds
assert told["PPO"]["the eight rooms"] > 0.65  # base 0.48; 8 seeds: 0.76 +- 0.03
assert told["PPO"]["the eight rooms"] > told["control"]["the eight rooms"] + 0.08  # control, 8 seeds: 0.52 +- 0.06

# %% [markdown]
# ### Before and after
#
# Two of the rooms, before and after, one agent each with the same dice.

# %%
after = films(trained[0], rooms.rows(easy), 4, dice(3))
pairs = [told for i in (0, 1) for told in (before[4 * i], after[4 * i])]
missions = [rooms["prompt"][easy[i]] for i in (0, 1)]
strip_figure(pairs, ["before", "after"] * 2, title=f"{missions[0]}, then {missions[1]}: before and after eight steps")
plt.show()

# %% [markdown]
# ### Frame by frame
#
# Now with the critic. Eight steps are few for it: it is one linear layer that began at zero, and after them its values are hardly in
# order. So for this figure we set the layer to where many more steps of its loss would lead while the actor stands still: the least squares fit of
# the discounted returns of 192 fresh episodes.
#
# Eight agents act in one room, the first in which some succeed and some do not. Step through: what is seen, how likely every action is, what the
# critic thinks of the frame (grey), what GAE makes of the action (blue), and the one number that GRPO would have (orange). Look for frames where
# blue and orange have different signs. And if an agent ran out of time: what did the critic think at the last frame?

# %%
explained = ch19.fit_critic(trained[0], rooms, 24, dice(11))
watched = films(trained[0], rooms, 8, dice(5))
mixed = next(i for i in range(0, 64, 8) if len({film.episode.success for film in watched[i : i + 8]}) == 2)
group = watched[mixed : mixed + 8]
longest = max(film.episode.steps for film in group)
lab.explore(partial(step_figure, group), agent=IntSlider(0, min=0, max=7), step=IntSlider(1, min=0, max=longest))
won = [film for film in group if film.episode.success]
assert 0 < len(won) < 8 and abs(sum(film.group for film in group)) < 1e-4  # siblings: some won, and GRPO sums to zero
signs = torch.cat([film.advantages for film in won]) > 0
print(f"the critic explains {explained:.0%} of the variance of the returns it was fitted to")
print(f"{len(won)} of 8 agents succeed; of what they did GRPO praises all, GAE {signs.float().mean():.0%}")
assert explained > 0.4  # 8 seeds: 0.66 +- 0.06

# %% [markdown]
# ## Cloning more demonstrations
#
# RL4VLA asks what RL adds to supervised fine-tuning. A fair answer grants both the same compute. The rival clones a *faultless* expert,
# who shows each of the eight missions; as in the making of the base, it also learns to say what every tile shows. It may go on for
# as many CPU seconds as PPO spent acting and learning. **Predict:** who wins in the eight rooms, and who in fresh ones?

# %%
def clone(seed, seconds):
    """Supervised steps on one faultless demonstration per room, until the seconds are over."""
    policy = base_agent()
    pupil = Pupil(policy.model, policy.tokenizer)
    lessons = rooms, [demonstrate(told, 0.0, Random(0)) for told in rooms["level"]]
    draw = partial(cloned, pupil, lessons, 32)
    cfg = SFTConfig(learning_rate=5e-4, warmup=1, total_steps=10**9, autocast=True)
    trainer, start = SFTTrainer(pupil, draw, cfg, dice(seed)), time.process_time()
    while time.process_time() - start < seconds:
        trainer.step()
    return policy


rows["cloning"] = [ability(clone(seed, spent)) for seed, spent in enumerate(seconds)]

# %%
arms = {"before": [start]} | {arm: rows[arm] for arm in ("PPO", "cloning", "control")}
axes = lab.bars(
    {arm: {name: [row[name] for row in seeds] for name in start} for arm, seeds in arms.items()},
    ylabel="success, sampled",
    title="As many CPU seconds of PPO and of cloning a faultless expert (3 seeds)",
).axes[0]
axes.set_ylim(0, 1.25)
entries = dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
axes.legend(entries.values(), entries.keys(), ncols=4, loc="upper center")
plt.show()
copied = {name: mean([row[name] for row in rows["cloning"]]) for name in start}
assert copied["the eight rooms"] > 0.88  # 8 seeds: 0.93 +- 0.01; PPO 0.76 +- 0.03
assert copied["the eight rooms"] > told["PPO"]["the eight rooms"] + 0.06
assert max(copied["fresh rooms"], told["PPO"]["fresh rooms"]) < start["fresh rooms"] + 0.1  # 8 seeds: 0.47 +- 0.03, 0.47 +- 0.05; base 0.50

# %% [markdown]
# In the eight rooms the clone is ahead. A faultless demonstration says in every frame what to do, and PPO has to find out from one bit per
# episode. Over eight seeds: PPO 0.76, the clone 0.93, the control 0.52, from 0.48. In fresh rooms neither gains: 0.47 and 0.47 where the base
# has 0.50. Practice in eight rooms stays in the eight rooms, whoever teaches.
#
# Eight rooms can be learned by heart, so this small race says little about RL. The study
# `python -m minivisrl.recipes.navigation_study` runs it at length: PPO in 4,096 rooms, cloning one faultless demonstration of each of
# them, five seeds, equal CPU seconds, and RL4VLA's claims tested one by one. The next cell reads what is recorded.

# %%
book = ch19.study()
if book is None:
    print("not recorded yet: data/results/navigation.json")
else:
    for question, answer in book["answers"].items():
        gap = "{:+.3f} [{:+.3f}, {:+.3f}]".format(*answer["difference"]) if "difference" in answer else ""
        print(f"{question:52s} {gap:26s} {answer.get('verdict', ''):14s} {answer.get('it is', '')}")
    ours, clones = ([r["heldout"] for r in book["runs"] if r["method"] == m] for m in ("PPO from the base", "SFT on more demonstrations"))
    assert verdict(ours, clones, 0.05) == book["answers"]["PPO or SFT, heldout"]["verdict"]

# %% [markdown]
# ## Out of distribution, on three axes
#
# RL4VLA sorts what may be new into three. Here is one level of each, and the one of training. Nothing of this kind is ever trained in:
#
# - **appearance:** a color and a thing that never came together, as in *red ball*;
# - **semantics:** new words (*after you* instead of *then*), or a new use (to pick up a *box*);
# - **execution:** a larger room with more in it, so that ways get longer.

# %%
examples = [level_of(seed, split) for split, seed in zip(SPLITS[1:], (0, 0, 0, 1), strict=True)]
strange = {split: told for split, told in zip(SPLITS[1:], examples, strict=True)}
images = torch.stack([Episode(told, ()).frames()[0] for told in strange.values()])
captions = [f"{split}: {told.mission}" for split, told in strange.items()]
lab.gallery(images, captions, columns=4, title="Held-out, and the three axes")
plt.show()

# %% [markdown]
# How good is the base there? The model card of the shipped base has success on 512 levels of each split (recorded), by kind of mission.
# **Predict:** which axis costs most? If the study is recorded, the figure has PPO and cloning as well.

# %%
card = json.loads((DATA / "checkpoints" / "vla" / "card.json").read_text())["metrics"]
ch19.axes_figure({split: card[split]["all"]["sampled"] for split in SPLITS[1:]}, book)
plt.show()
scores = {split: card[split]["all"]["sampled"] for split in SPLITS[1:]}
assert scores["heldout"] > max(scores[split] for split in SPLITS[2:]) + 0.1
assert min(scores, key=scores.get) == "semantics"
print("picking up: a ball or a key", card["heldout"]["pick"]["sampled"], " a box", card["semantics"]["pick"]["sampled"])
print("one mission in a larger room:", card["execution"]["go"]["sampled"], " two:", card["execution"]["pick go"]["sampled"])

# %% [markdown]
# Why should RL in *training* rooms change any of this? It shows the agent no new pair of color and thing, so there is no reason that
# *appearance* should gain. It removes stumbling and mishearing, which cost the more the longer the way: *execution* has room to gain. In
# *semantics*, "after you" is made of known verbs, and whoever carries missions out more often may hit the right order more often; to pick up a
# box was never shown and never paid, and 0.007 is where it starts. RL4VLA reports of large models that RL is ahead of cloning most on execution,
# then on semantics, and level with it on appearance. The grid's run of the recipe, where it is recorded, puts numbers to it (seeds 0 to 4):

# %%
cell = (ch19.recorded(ch19.GRID, "cells") or {}).get("vla/rlvr-ppo")
if cell is None or cell.get("before") is None:
    print("the grid has no vla/rlvr-ppo yet")
else:
    print(f"recipe vla/rlvr-ppo, held-out: {cell['before']:.2f} -> {cell['after']:.2f}")
    for split, row in cell["ood"].items():
        print(f"{split:12s} {row['before']:.2f} -> {row['after']:.2f}")
    gains = {split: row["after"] - row["before"] for split, row in cell["ood"].items()}
    assert gains["appearance"] < 0.05 < min(gains["execution"], gains["semantics"])

# %% [markdown]
# ## Sparse against dense
#
# A corridor of $n$ cells with a door at its end. The walker starts at the other end, indifferent between forward and back, with the time limit
# of our rooms, $2n + 4$. Its policy has one number per cell, GRPO trains it, and the chance of success can be computed exactly. Only the
# reward differs: success alone; success and progress, (A2) summed over the episode; time-decayed agreement with an expert who walks
# straight on, (A3), $\gamma = 0.9$. **Predict** for 6 and for 16 cells.

# %%
curves = {n: {kind: ch19.corridor(kind, n, updates=160)[0] for kind in ch19.REWARDS[:3]} for n in (6, 16)}
ch19.corridor_figure(curves)
plt.show()
ends = {n: {kind: runs[:, -1] for kind, runs in lines.items()} for n, lines in curves.items()}
short, long = ends[6], ends[16]
print("at the start:", " ".join(f"{n} cells {lines['success'][0, 0]:.4f}" for n, lines in curves.items()))
print("after 160: ", "; ".join(f"{n} cells " + " ".join(f"{k} {r.mean():.2f}" for k, r in e.items()) for n, e in ends.items()))
assert min(runs.min() for runs in short.values()) > 0.97  # all 8 seeds: 0.99 and more
assert long["success"].max() < 0.15 < long["agreement"].min()  # 8 seeds: 0.08 +- 0.02 and 0.21 +- 0.02
assert long["progress"].min() > 0.8  # 8 seeds: 0.855 +- 0.006

# %% [markdown]
# In the short corridor an indifferent walker arrives in one of five attempts, and all three rewards do. Progress changes nothing there;
# agreement is slower at first. In the long one it arrives in 0.012 of its attempts, so two batches of 32 in three contain no success, and the sparse
# reward has nothing to say. **Density pays where success is rare**, and is not needed where it is not.
#
# Why is progress so far ahead of agreement? It sums to how near one came, for the differences cancel, and so compares *failures* with each other. Agreement
# says what to do, but mostly in the first cells: the sixteenth action weighs a fifth of the first. The walker learns the corridor from its
# beginning, and 160 updates do not reach the end. VLN-R1 looks six actions ahead, not sixteen.
#
# In rooms: the lines *vln-r1 or grpo* and *grpo-progress or grpo* of the study above, where it is recorded, at equal episodes.

# %% [markdown]
# ### What to notice
#
# - In the first strip the agents part where the numbers under the frames are low; after training those numbers are high.
# - In the widget orange is one level per agent and blue is not: within one episode, some actions are praised more than others.
# - In the long corridor the blue line stays near the floor: walkers who fail alike have no advantage by Eq. (11).

# %% [markdown]
# ## What can go wrong
#
# ### Paid for every step forward
#
# A colleague finds that progress should not be *deducted* when one steps back: "punishing exploration". So each step nearer is paid
# $1/n$, success is paid 1 as before, and steps back are free. **Predict** where in the corridor the walker hesitates.

# %%
runs, logits = ch19.corridor("each step nearer", 6, updates=240)
fair, fair_logits = ch19.corridor("progress", 6, updates=240)
for name, curve, told_logits in (("each step nearer", runs, logits), ("progress", fair, fair_logits)):
    odds = " ".join(f"{p:.2f}" for p in told_logits.sigmoid().mean(0).tolist())
    print(f"{name:16s} success {curve[:, -1].mean():.2f}; chance to go forward, by cell: {odds}")
assert fair[:, -1].min() > 0.97 and runs[:, -1].max() < 0.92  # 8 seeds: 0.996 +- 0.001 and 0.83 +- 0.02
assert (logits[:, -1] < fair_logits[:, -1]).all()

# %% [markdown]
# It dances before the door: forward, back, forward are paid twice, and the door ends the music. (A2) is safe because it is a **difference of
# potentials**: round trips sum to zero, so only the end of the episode counts. What betrays the dance is a reward that goes on rising
# while success stands still, and SPL, which falls. Log both beside the reward.

# %% [markdown]
# ## Exercises
#
# ### Exercise 19.1 | predict | 5 words | 10 min
# True or false? The third and the second can be computed on paper, with the values 0.4, 0.5, 0.2 of above.

# %%
prediction = {
    "GRPO on success pushes the first and the last action of an episode alike": ...,
    "in a failed episode every GAE advantage is negative": ...,
    "with gamma = lambda = 1, advantage plus value is the outcome, on every frame": ...,
    "a room in which all eight agents fail teaches GRPO that it is hard": ...,
    "a success in twice the fewest actions has an SPL of a quarter": ...,
}

# %%
# NBVAL_CHECK_OUTPUT
check("19.1", check_predictions, prediction)

# %% [markdown]
# <details><summary>Solution 19.1</summary>
#
# ```python
# prediction = {
#     "GRPO on success pushes the first and the last action of an episode alike": True,
#     "in a failed episode every GAE advantage is negative": False,
#     "with gamma = lambda = 1, advantage plus value is the outcome, on every frame": True,
#     "a room in which all eight agents fail teaches GRPO that it is hard": False,
#     "a success in twice the fewest actions has an SPL of a quarter": False,
# }
# ```
#
# </details>

# %% [markdown]
# ### Exercise 19.2 | implement | 2 lines | 10 min
# The progress part of (A2). `left` has the way left at every frame, one entry more than there are actions, and None where success is
# out of reach (the wrong thing was picked up). Count such a way as long as the limit.

# %%
def progress(left, limit):
    """Ways left at S + 1 frames -> S rewards, shares of the limit."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("19.2", check_progress, progress)

# %% [markdown]
# <details><summary>Solution 19.2</summary>
#
# ```python
# def progress(left, limit):
#     ways = [limit if way is None else way for way in left]
#     return [(a - b) / limit for a, b in zip(ways, ways[1:])]
#     # The sum is (first - last) / limit, whatever happened in between: nothing can be earned in circles.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 19.3 | find the bug | 2 lines | 15 min
# A colleague's GAE is right for the longest episode of every batch and wrong for all others. The mean reward climbs all the
# same, only slowly. Find it and repair it ($\gamma = 0.9$, $\lambda = 0.8$).

# %%
def broken(rewards, values, mask):
    """(N, T), three times -> (N, T)."""
    result, following, ahead = torch.zeros_like(values), 0.0, 0.0
    for t in reversed(range(values.shape[1])):
        delta = rewards[:, t] + 0.9 * ahead - values[:, t]
        following = delta + 0.9 * 0.8 * following
        ahead = values[:, t]
        result[:, t] = following
    return result


def repaired(rewards, values, mask):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("19.3", check_gae, repaired)

# %% [markdown]
# <details><summary>Solution 19.3</summary>
#
# ```python
# def repaired(rewards, values, mask):
#     result, following, ahead = torch.zeros_like(values), 0.0, 0.0
#     for t in reversed(range(values.shape[1])):
#         delta = rewards[:, t] + 0.9 * ahead - values[:, t]
#         following = (delta + 0.9 * 0.8 * following) * mask[:, t]
#         ahead = values[:, t] * mask[:, t]
#         result[:, t] = following
#     return result
#     # The critic's values of padding flowed into the last real frames: the episode seemed to go on.
#     # To mask the result alone is not enough. To mask the values and rewards before the loop is another way.
# ```
#
# </details>

# %% [markdown]
# ### Exercise 19.4 | extend | 4 lines | 20 min
# (A3) punishes a second shortest way. Pay instead for every action that shortens the way, still with weights $\gamma^k$, over as many
# actions as the shortest way has (`left[0]`). Actions that are missing count as wrong.

# %%
def nearer(left, gamma):
    """Ways left at S + 1 frames -> a reward from 0 to 1; every shortest way earns 1."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("19.4", check_nearer, nearer)

# %% [markdown]
# <details><summary>Solution 19.4</summary>
#
# ```python
# def nearer(left, gamma):
#     weights = [gamma**k for k in range(left[0])]
#     closer = [b < a for a, b in zip(left, left[1:])]
#     return sum(w for w, good in zip(weights, closer) if good) / sum(weights)
#     # Dense and decayed, but is it safe? A step back is not deducted: compare with "What can go wrong".
# ```
#
# </details>

# %% [markdown]
# ### Exercise 19.5 | implement | 6 lines | 15 min
# Which axis does a level test? Decide from its content alone: `level.mission`, `level.after`, `level.tasks` (pairs of a verb and the number
# of an item), `level.items`, `level.targets` (items with `color` and `kind`), `level.side`; pairs that are never trained are in
# `UNSEEN_PAIRS`. Return `"appearance"`, `"semantics"`, `"execution"` or `"none"`.

# %%
def axis(level):
    """The out-of-distribution axis of a level, or none."""
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("19.5", check_axis, axis)

# %% [markdown]
# <details><summary>Solution 19.5</summary>
#
# ```python
# def axis(level):
#     if level.after or any(verb == "pick" and level.items[i].kind == "box" for verb, i in level.tasks):
#         return "semantics"
#     if any((item.color, item.kind) in UNSEEN_PAIRS for item in level.targets):
#         return "appearance"
#     return "execution" if level.side == 5 else "none"
# ```
#
# </details>

# %% [markdown]
# ## Summary and references
#
# You can now
#
# - write a task in a world as an episode, and say what its picture hides;
# - read advantages frame by frame, from a critic and from siblings, and find the action that is praised or blamed;
# - compare RL with cloning at equal compute, and say on which axis a gain is one;
# - tell a dense reward that helps from one that makes the agent dance.
#
# What the survey says and we did not test here. Agents that see only what is in front of them, and the memories that they
# then need (VLN-R1); thinking before acting (OctoNav-R1); Q-learning on mixed data (MoRE) and inverse RL (RAPID), which are not policy gradients.
# FLaRe, VLN-R1's reward, TGRPO and others run on this base by `python -m minivisrl.recipes.navigation_methods NAME`.
#
# References: the survey, section 3.4.2 (arXiv 2508.08189, version 3). VLN-R1 (2506.17221), OctoNav-R1 (2506.09839), FLaRe (2409.16578),
# MoRE (2503.08007), RAPID (2502.02054); RL4VLA (2505.19789); BabyAI (1810.08272) and MiniGrid (2306.13831). In the library:
# `minivisrl/vla/`, `minivisrl/rewards/timing.py`, `minivisrl/recipes/vla.py`. The grid's cell: `minivisrl run vla/rlvr-ppo`.
