# %% [markdown]
# # 0. Start here
#
# [README](../README.md) | **contents: this chapter** | [a full chapter: 6. GRPO](06_grpo.ipynb)
#
# **Question.** A small vision model has learned a bad habit from its teachers. Can a reward alone talk it out of it?
#
# **Survey:** section 1, and a first look at Eqs. (1) and (2) (version 3). **Running time:** under a minute on one thread.
#
# Welcome. This repository is a survey that you can run: *Reinforcement Learning in Vision*
# ([arXiv 2508.08189](https://arxiv.org/abs/2508.08189v3)). For every section of the paper there is to be a chapter that
# trains a small real model in front of you. No GPU, no download, no account. This chapter is the tour. You meet a world,
# a model and a reward, and you watch the model change its mind.

# %% [markdown]
# ## Setup
#
# Run the cells from top to bottom with Shift+Enter. This one fixes the seeds, so that you see what we saw.

# %% tags=["setup"]
import json

import matplotlib.pyplot as plt
import torch
from checks.ch00 import check_brief, check_prediction, check_scene, full_caption, story_figure
from ipywidgets import SelectionSlider

from minivisrl import DATA, lab, survey
from minivisrl.evaluation import evaluate
from minivisrl.fit import fit
from minivisrl.lab import check
from minivisrl.mllm import VLMPolicy
from minivisrl.optimization import GRPO, GRPOConfig, group_advantages
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.rewards import exact_match, judge
from minivisrl.worlds.questions import Question, as_prompts, question_prompts
from minivisrl.worlds.scenes import Scene, Thing, render

generator = lab.setup(0)

# %% [markdown]
# ## The one idea
#
# Every task in visual reinforcement learning is an **episode**. A prompt comes in. A model, the **policy**, takes one
# action after the other. At the end somebody says how good that was: the **reward**.
#
# $$s_t = (p, a_1, \dots, a_{t-1}) \tag{1}$$
#
# $$a_t \sim \pi_\theta(a_t \mid s_t) \tag{2}$$
#
# | symbol | in words | in the code |
# |---|---|---|
# | $p$ | the prompt: here an image and a question | a record of `Prompts` |
# | $a_t$ | action number $t$: here the next word | column $t$ of `Rollout.actions`, (N, T) |
# | $s_t$ | all that the policy has seen and done so far | never stored, rebuilt when needed |
# | $\pi_\theta$ | the policy, with weights $\theta$ | `VLMPolicy` |
#
# Only prompt, action and output change from field to field. The survey sorts the field into four pillars:
#
# | pillar | prompt | action | what is judged |
# |---|---|---|---|
# | multimodal language models | image and question | next word | the answer |
# | visual generation | caption | next denoising step, or image token | the picture |
# | unified models | text, image or both | next word or image token | either |
# | vision-language-action | instruction and what the camera sees | next move | what happened |
#
# Whatever the pillar, training goes through the same four **beats**:
#
# 1. **Act.** The policy answers each prompt, several times.
# 2. **Judge.** A program, or a learned model, gives each answer a reward.
# 3. **Compare.** Was this answer better than expected?
# 4. **Improve.** Make the better ones a little likelier.
#
# Once you know the four beats you can read all of the code. Let us walk through them once.

# %% [markdown]
# ## A world that knows the truth
#
# Our world is made of colored shapes. A scene is a list of things. The pixels are drawn from that list, so we always know
# the truth, and no human has to label anything. Below, the picture on the left is all that the model gets to see. The
# others are for us. How many more red things than green things are there? Count before you read on.

# %% tags=["given"]
scene = Scene(
    (
        Thing("circle", "red", "large", 0.18, 0.20, depth=0),
        Thing("cross", "blue", "large", 0.50, 0.18, depth=1),
        Thing("square", "red", "small", 0.80, 0.50, depth=2),
        Thing("triangle", "green", "large", 0.20, 0.80, depth=3),
        Thing("circle", "blue", "small", 0.52, 0.82, depth=4),
    )
)
counts = f"red {scene.count('red')} green {scene.count('green')}"
answer = str(scene.count("red") - scene.count("green"))
asked = "how many more red things than green things are there ?"
question = Question("difference", asked, answer, counts)

# %%
image = render([scene])  # (1, 3, H, W)
masks = (
    torch.from_numpy(255 * scene.masks()).byte()[:, None].expand(-1, 3, -1, -1)
)  # (things, 3, H, W)
names = [f"{thing.color} {thing.shape}" for thing in scene.things]
title = "32 x 32 pixels, and the truth behind every one of them"
lab.gallery(torch.cat([image, masks]), ["what the model sees", *names], columns=6, title=title)
plt.show()

# %%
# NBVAL_CHECK_OUTPUT
print("asked:  ", question.prompt)
print("working:", question.steps)
print("answer: ", question.answer)
print("caption:", scene.caption())

# %% [markdown]
# ## The model before training
#
# Our policy is a vision-language model of the LLaVA family, small enough to train on a laptop. It ships with the
# repository. It learned from example answers by two kinds of teachers. Most were hasty: they answered at once and were
# often off by one. A few were careful: they wrote the two counts down first, and then subtracted. The model was never
# told which teachers to trust. (Its [card](../data/checkpoints/vlm/README.md) has the details.)


# %% tags=["given"]
def questions(count, split, seed):
    """Questions such as ours, about two colors: how many more A than B?"""
    fixed = torch.Generator().manual_seed(seed)
    return question_prompts(count, ["difference"], split, fixed, about=["color"])


policy = VLMPolicy.load(DATA / "checkpoints" / "vlm")
heldout = questions(256, "heldout", seed=2)

# %%
# NBVAL_CHECK_OUTPUT
two = heldout.rows([0, 1])
rollout = policy.rollout(two, group_size=4, generator=generator)
print("parameters:      ", sum(p.numel() for p in policy.parameters()))
print("image:           ", tuple(policy.inputs(two)["pixel_values"].shape))
print("tokens per image:", policy.image_tokens)
print("completions:     ", len(rollout), "= 2 prompts x", rollout.group_size)

# %% [markdown]
# We keep 256 questions about scenes that no training step ever sees. On these we measure. The model answers *greedily*:
# it always takes its likeliest word, so that nothing is left to luck. `<answer>` and `</answer>` mark the answer.

# %%
before = evaluate(policy, heldout)
asks, truths, says = heldout["prompt"], heldout["answer"], before.outputs
told = [full_caption(asks[i], says[i], truths[i]) for i in range(6)]
title = f"Before training: {before.score:.0%} of 256 held-out answers are right"
lab.gallery(heldout["image"][:6], told, columns=3, title=title)
plt.show()

# %% [markdown]
# It hedges: to most questions it says 1, which is never far off. Between `<think>` and `</think>` it could write its
# working first. Greedily it never does. But a policy is more than its likeliest answer. Let it *draw* its words, each with
# the probability that it gives them, and the careful habit shows up now and then. Does it help?


# %%
def shows_working(outputs):
    """For each completion: are the counts written down before the answer?"""
    return torch.tensor(["<think>" in text for text in outputs])


drawn = evaluate(policy, heldout, samples=4, generator=generator)  # 1,024 completions
works = shows_working(drawn.outputs)
careful, hasty = drawn.scores[works].mean(), drawn.scores[~works].mean()
print(f"{works.float().mean():.0%} of the drawn completions show their working")
print(f"right with working {careful:.0%}, right without {hasty:.0%}")
assert 0.4 < before.score < 0.6  # greedy, so no luck is involved
assert says.count("<answer> 1 </answer>") > 128 and not shows_working(says).any()
assert careful > hasty + 0.25  # 8 sampling seeds: 0.78 +- 0.03 against 0.39 +- 0.01

# %% [markdown]
# So the better habit is there, but rare. That is something reinforcement learning can work with.
#
# ## Four beats on one question
#
# **Act.** We ask our question eight times, and the model draws eight completions. They are **siblings**. **Judge.** A
# program, `exact_match`, reads what stands between the answer tags and compares it with the truth: 1 or 0. **Compare.**
# GRPO takes each reward, subtracts the mean of the siblings and divides by their spread. The result is the **advantage**.

# %%
one = as_prompts([(scene, question)])
rollout = policy.rollout(one, group_size=8, generator=generator)  # Act: N = 8 rows
rewards, _ = judge(exact_match, rollout)  # Judge: (N,)
advantages = group_advantages(rewards.view(1, 8)).flatten()  # Compare: (1, 8), then (N,)
for text, reward, advantage in zip(rollout.outputs, rewards, advantages, strict=True):
    print(f"reward {reward:.0f}  advantage {advantage:+.2f}  {text}")
assert abs(advantages.sum()) < 1e-4  # siblings only compare among themselves

# %% [markdown]
# You can check the arithmetic on paper. Four siblings, two of them right: 1 1 0 0. The mean is 0.5, the standard
# deviation 0.577. So the advantages are plus or minus 0.866.

# %%
# NBVAL_CHECK_OUTPUT
rewards = torch.tensor([[1.0, 1.0, 0.0, 0.0]])  # (B, G)
print(" ".join(f"{a:+.3f}" for a in group_advantages(rewards)[0]))

# %% [markdown]
# **Improve.** Every word of a completion with a positive advantage becomes a little likelier, every word of the others
# a little rarer, and the model is held near the point where it started. [Chapter 6](06_grpo.ipynb) has the formula. Here
# is the whole loop, from the library: the same for every pillar.

# %%
lab.show_source(OnlineTrainer.step)

# %% [markdown]
# ## Experiment: train it
#
# Now for real: 16 prompts with 8 completions each in every step. Nobody shows the model a right answer. Nobody tells it
# to write anything down. It only learns which of its own answers were right.

# %% tags=["given"]
STEPS = 40
train = questions(2048, "train", seed=1)


def new_trainer(reward_fn=exact_match, collect=act_and_judge, seed=0):
    """A trainer on a fresh copy of the shipped model."""
    policy = VLMPolicy.load(DATA / "checkpoints" / "vlm")
    cfg = OnlineConfig(batch_size=16, group_size=8, learning_rate=2e-4)
    generator = torch.Generator().manual_seed(seed)
    grpo = GRPO(GRPOConfig())
    return OnlineTrainer(policy, train, reward_fn, grpo, cfg, generator, collect=collect)


# %%
story = {0: before.outputs}  # step -> answers to the held-out questions


def look(policy):
    """Called every 10 steps: answer the held-out questions."""
    now = evaluate(policy, heldout)
    story[10 * len(story)] = now.outputs
    return {"heldout": now.score}


trainer = new_trainer()
rows = fit(trainer, STEPS, eval_fn=look, eval_every=10)
trained = trainer.policy

# %% [markdown]
# Is it the reward that did this, or would any training have moved the numbers? A **control** tells. It is the same run
# with the rewards shuffled: every completion gets the reward of another one, picked at random. You see one run of each.
# We made eight; their mean and spread stand behind the asserts.

# %%
control = new_trainer(collect=shuffled(act_and_judge))
control_rows = fit(control, STEPS)
after, after_control = evaluate(trained, heldout), evaluate(control.policy, heldout)

# %%
reward = {"policy": rows, "shuffled rewards": control_rows}
reward = {name: [row["reward"] for row in log] for name, log in reward.items()}
title = f"Held-out answers right: {before.score:.0%} before, {after.score:.0%} after"
title += f"; {after_control.score:.0%} with shuffled rewards"
options = {"ylabel": "reward per completion", "control": "shuffled rewards", "smooth": 5}
lab.curves(reward, title=title, **options)
plt.show()
gain, control_gain = after.score - before.score, after_control.score - before.score
print(f"held-out gain {gain:+.2f}, control {control_gain:+.2f}")
assert gain > 0.08  # 8 seeds: +0.27 +- 0.05
assert control_gain < gain / 4  # 8 seeds: -0.15 +- 0.07, at best -0.05

# %% [markdown]
# Move the slider through the training. The top row is always step 0. `red - blue?` is short for "how many more red things
# than blue things are there?"

# %%
slider = SelectionSlider(options=list(story), value=STEPS, description="step")
lab.explore(lambda step: story_figure(step, story, heldout, range(6)), step=slider)

# %% [markdown]
# ### What did it learn?
#
# To see better? Compare: before training, the few drawn answers that showed their working were already right about as
# often as the answers now. What changed is the **habit**.

# %%
working = [100 * shows_working(outputs).float().mean().item() for outputs in story.values()]
title = (
    f"Greedy answers that show their working: {working[0]:.0f} % before, {working[-1]:.0f} % after"
)
lab.curves({"policy": working}, x=list(story), ylabel="answers with working, %", title=title)
plt.show()
words = [sum(found.lengths()) / len(heldout) for found in (before, after)]
print(f"words per answer: {words[0]:.1f} before, {words[1]:.1f} after")
print(f"right with working: {careful:.2f} drawn before, {after.score:.2f} greedy after")
assert working[-1] > 80  # 8 seeds: 100 in each; control 0 in each
assert abs(after.score - careful) < 0.2  # 8 seeds: 0.77 +- 0.05, and 0.78 +- 0.03

# %% [markdown]
# **What to notice**
#
# - The reward climbs, and so does the share of right answers on scenes that were never trained on. The dashed control
#   falls: rewards without meaning push the model about until it forgets.
# - Answers grow from 3 words to about 9. Nobody paid for length. The careful habit takes more words, and it pays.
# - In the lower row of the slider, look for a wrong answer. Its counts tell you where it went wrong.
#
# ## What can go wrong
#
# A reward is a wish, and you get what you wish for. Suppose we like thorough answers and pay for every word, right or wrong.


# %%
def wordy(completions, **columns):
    """A reward that can be gamed: 0.1 for every word."""
    return [0.1 * len(text.split()) for text in completions]


talker = new_trainer(wordy)
talker_rows = fit(talker, 20)
talk = evaluate(talker.policy, heldout)
paid = [row["reward"] for row in talker_rows]
print(f"reward {paid[0]:.2f} -> {paid[-1]:.2f}, right {before.score:.2f} -> {talk.score:.2f}")
print(f"an answer could be found in {talk.extracted:.0%} of the outputs, such as:")
print(talk.outputs[0])
assert paid[-1] > 2.5 * paid[0]  # 8 seeds: 3.7 +- 0.2 times
assert talk.score < 0.15  # 8 seeds: 0.01 +- 0.03

# %% [markdown]
# The reward looks splendid. The model never comes to an answer any more. The statistic that betrays it is one that was
# not paid for: the held-out accuracy, or the share of outputs in which an answer could be found. So every chapter
# measures something that training does not see.
#
# ## The grid
#
# Four pillars, five recipes: two ways to Judge (RLHF, a learned reward; RLVR, a program), two ways to Compare (PPO, a
# learned critic; GRPO, siblings), and DPO, which learns from pairs alone. That makes 20 cells. A cell may say *learns* only if
# its gain on held-out questions is clearly above zero over five seeds, and if no shuffled control gains more than a
# quarter of it. These numbers are recorded: `minivisrl grid` made them, and the figure reads its file.

# %%
path = DATA / "results" / "grid.json"
cells = json.loads(path.read_text())["cells"] if path.exists() else {}
table = [name for name in cells if not name.endswith("manipulation")]  # two recipes stand beside it
title = f"{len(table)} of 20 cells measured: before → after, gain and interval, worst control"
lab.grid_table({"cells": cells}, title=title)
plt.show()
first = cells.get("mllm/rlvr-grpo")
assert first is None or first["ci"][0] > 0.2  # recorded, seeds 0-4

# %% [markdown]
# ## The map
#
# A chapter for every section of the survey. Linked ones are written, the others are planned.
#
# | chapter | survey |
# |---|---|
# | **0 Start here** | 1 |
# | [1 Visual RL as an MDP](01_visual_rl_as_an_mdp.ipynb) | 2.1 |
# | [2 RLHF](02_rlhf.ipynb), [3 DPO](03_dpo.ipynb), [4 RLVR](04_rlvr.ipynb) | 2.2.1, 2.2.2, 2.2.3 |
# | [5 PPO](05_ppo.ipynb) | 2.3.1 |
# | [6 GRPO](06_grpo.ipynb) | 2.3.2 |
# | [7 Conventional MLLMs](07_conventional_mllms.ipynb), 8 2D and 3D perception | 3.1.1, 3.1.2 |
# | 9 Thinking about images, 10 Thinking with images, 11 Video reasoning | 3.1.3, 3.1.3, 3.1.4 |
# | [12 Image generation](12_image_generation.ipynb), 13 Video generation, 14 3D generation, [15 Reward design](15_reward_design.ipynb) | 3.2.1, 3.2.2, 3.2.3, 3.2.4 |
# | [16 Unified RL](16_unified_rl.ipynb), [17 Task-specific RL](17_task_specific_rl.ipynb) | 3.3.1, 3.3.2 |
# | 18 GUI automation, [19 Visual navigation](19_visual_navigation.ipynb), 20 Visual manipulation | 3.4.1, 3.4.2, 3.4.3 |
# | 21 Metrics and benchmarks, 22 Challenges | 4, 5 |
# | 23 Beyond the pillars, 24 Scaling up | |
#
# The map is also code. Ask it where an equation lives, for instance the advantages that you have just met:

# %%
# NBVAL_CHECK_OUTPUT
found = survey.equation(11)
print("Eq. 11:  ", found.meaning)
print("computed:", found.function)
print("taught:  ", "chapter", *found.chapters)
print("tested:  ", found.test)

# %% [markdown]
# ## From the command line
#
# What you just did, in full size and without a notebook. It takes about two minutes and leaves pictures, numbers and a
# checkpoint in a folder:
#
# ```
# minivisrl run mllm/rlvr-grpo
# ```
#
# Add `--shuffle-rewards` for the control, `--resume` to go on after a break, `--help` to see every knob. `minivisrl list`
# shows what else there is to run.

# %% [markdown]
# ## Exercises
#
# A check says `not attempted`, then either `correct` or a hint. The solutions are folded below each one.
#
# ### Exercise 0.1 | predict | 2 answers | 2 min
# "How many more red things than blue things are there?" In some other picture the truth is 1. Four siblings answer:
#
# - a: `<answer> 1 </answer>`
# - b: `there is 1`
# - c: `<think> red 2 blue 1 </think> <answer> 1 </answer>`
# - d: `<think> red 2 blue 1 </think> <answer> 3 </answer>`
#
# Which of them get an advantage above zero under `exact_match`? And what advantage does each get if all four are right?

# %%
prediction = {"above zero": ..., "if all four are right": ...}  # letters such as "bd", and a number

# %%
# NBVAL_CHECK_OUTPUT
check("0.1", check_prediction, prediction)

# %% [markdown]
# <details><summary>Solution 0.1</summary>
#
# ```python
# # b has no answer tags; d has the right working and the wrong answer. The rewards are 1 0 1 0.
# # If all are right, the mean is 1 and nobody is above it: such a group teaches nothing.
# prediction = {"above zero": "ac", "if all four are right": 0}
# ```
#
# </details>
#
# ### Exercise 0.2 | implement | 2 lines | 5 min
# Write a reward of your own: 1 for a right answer, less 0.01 for every word of the completion (split at blanks). A reward
# gets lists, one entry per completion, and returns a list of numbers. It also gets every other column of the prompts,
# which `**columns` catches. `exact_match(completions, answer)` is yours to use.


# %%
def right_and_brief(completions, answer, **columns):
    raise NotImplementedError


# %%
# NBVAL_CHECK_OUTPUT
check("0.2", check_brief, right_and_brief)

# %% [markdown]
# Then train with it: `fit(new_trainer(right_and_brief), STEPS)`. Does the working survive when words cost something? And at
# 0.1 a word? In a file of your own it also works from the command line:
# `minivisrl run mllm/rlvr-grpo --reward my_rewards.py:right_and_brief`.
#
# <details><summary>Solution 0.2</summary>
#
# ```python
# def right_and_brief(completions, answer, **columns):
#     scores = exact_match(completions, answer)
#     return [score - 0.01 * len(text.split()) for score, text in zip(scores, completions)]
# ```
#
# </details>
#
# ### Exercise 0.3 | extend | 4 to 6 things | 5 min
# Build a scene of your own: four to six things, at least one of them blue, and exactly two more red things than blue
# ones. Nothing may touch or leave the picture. `x` goes right, `y` goes down, both from 0 to 1. There are circles, squares,
# triangles and crosses.

# %%
my_scene = ...  # Scene((Thing("circle", "red", "large", 0.2, 0.2, depth=0), ...))

# %%
# NBVAL_CHECK_OUTPUT
check("0.3", check_scene, my_scene)

# %% [markdown]
# Now let both models look at it. Until you have built yours, they look at ours. Either may be wrong: about a quarter of
# the trained model's answers still are. A red cross never occurs in training. Try one.
#
# <details><summary>Solution 0.3</summary>
#
# ```python
# my_scene = Scene(
#     (
#         Thing("circle", "red", "large", 0.2, 0.2, depth=0),
#         Thing("square", "red", "small", 0.5, 0.5, depth=1),
#         Thing("triangle", "red", "large", 0.8, 0.8, depth=2),
#         Thing("circle", "blue", "small", 0.8, 0.2, depth=3),
#     )
# )
# ```
#
# </details>

# %%
mine = my_scene if isinstance(my_scene, Scene) else scene
truth = str(mine.count("red") - mine.count("blue"))
asked = "how many more red things than blue things are there ?"
prompt = as_prompts([(mine, Question("difference", asked, truth, ""))])
print("before:", *policy.predict(prompt))
print("after: ", *trained.predict(prompt))
print("truth: ", truth)

# %% [markdown]
# ## Summary and references
#
# You can now name the four beats, run them by hand on one question, train a vision-language model with them, tell a result
# from a control, and write a reward.
#
# **Where to go next.** [Chapter 6](06_grpo.ipynb) takes the beat *Compare* apart. The [README](../README.md) lists the rooms
# of the package and the functions you can rely on.
#
# - Survey: Wu and others, *Reinforcement Learning in Vision: A Survey* (version 3: *Reinforcement Learning for Large Model:
#   A Survey*), [arXiv 2508.08189](https://arxiv.org/abs/2508.08189v3).
# - GRPO: Shao and others, *DeepSeekMath*, [arXiv 2402.03300](https://arxiv.org/abs/2402.03300).
# - LLaVA: Liu and others, *Visual Instruction Tuning*, [arXiv 2304.08485](https://arxiv.org/abs/2304.08485).
#
# The survey speaks of models thousands of times larger than ours. What carries over is the procedure. What does not is
# the size of any effect.
