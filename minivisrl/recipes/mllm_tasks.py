"""What the MLLM recipes share: the base policy, two tasks, and how they are measured and shown.

The task of the verifier: questions that need two counts, graded by exact match.  The task of the
annotators: describing a scene, where training sees comparisons or a reward learned from them, and
the gold metric reads the scene graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Generator

from minivisrl.evaluation.sets import Evaluation, evaluate
from minivisrl.evaluation.state import kl_to_start
from minivisrl.mllm.policy import VLMPolicy
from minivisrl.mllm.pretraining import DESCRIBE
from minivisrl.paradigms.online import (
    OnlineConfig,
    OnlineTrainer,
    Optimization,
    act_and_judge,
    shuffled,
)
from minivisrl.paradigms.rlhf import (
    LearnedReward,
    RewardModelConfig,
    pair_accuracy,
    train_reward_model,
)
from minivisrl.policy import Policy, frozen
from minivisrl.recipes.run import Experiment, RunOptions, load_reward
from minivisrl.rewards import exact_match, text_of, weighted
from minivisrl.rollout import PreferencePairs, Prompts
from minivisrl.worlds.annotators import PreferenceConfig, annotate, ceiling, read
from minivisrl.worlds.questions import question_prompts
from minivisrl.worlds.scenes import render, sample_scenes

EVALUATION_SEED = 20_250_808  # the held-out set is the same for every run and every recipe
SPLITS = ("heldout", "appearance", "composition")
Monitor = Callable[[Evaluation], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """Questions that need two counts."""

    kinds: tuple[str, ...] = ("total", "difference")  # kinds of questions, in turn
    train_prompts: int = 4096  # distinct questions to sample from
    eval_prompts: int = 512  # per split
    temperature: float = 1.0  # of sampling and scoring
    max_tokens: int = 14  # longest completion


@dataclass(frozen=True, kw_only=True)
class DescribeConfig:
    """Describing a scene to annotators."""

    train_prompts: int = 4096  # distinct scenes to sample from
    eval_prompts: int = 512  # per split
    temperature: float = 1.0  # of sampling and scoring
    max_tokens: int = 28  # longest description; nine objects and the end take 27
    pairs: int = 2048  # comparisons of descriptions by the base model
    candidates: int = 4  # descriptions that an annotator sees at once; best and worst are kept
    annotator: PreferenceConfig = field(default_factory=PreferenceConfig)


def load_policy(task: TaskConfig | DescribeConfig, options: RunOptions) -> VLMPolicy:
    """The base VLM, on the device of the run, set up for the task."""
    policy = VLMPolicy.load(options.base("vlm")).to(options.torch_device())
    policy.temperature, policy.max_tokens = task.temperature, task.max_tokens
    return policy


def describe_prompts(count: int, split: str, generator: Generator) -> Prompts:
    """`count` scenes to describe: columns image, prompt, scene, and answer, the true caption."""
    scenes = sample_scenes(count, split, generator)
    answers = [scene.caption() for scene in scenes]
    columns = {"prompt": [DESCRIBE] * count, "answer": answers, "scene": scenes}
    return Prompts({"image": render(scenes), **columns})


def truth_and_completeness(completions: Sequence[Any], scene: Sequence, **_: Any) -> list[float]:
    """The gold metric of descriptions: harmonic mean of truth and completeness."""
    return [read(text_of(c), s).gold for c, s in zip(completions, scene, strict=True)]


def experiment(
    trainer: Any,
    make: Callable[[str, Generator], Prompts],
    score_fn: Callable[..., list[float]],
    monitor: Monitor,
) -> Experiment:
    """Measure a trainer on fixed prompts of every split, greedily, and show six of them.

    Args:
        make: prompts of a split from a generator.
        score_fn: the gold metric.
        monitor: more statistics of the held-out evaluation.
    """
    fixed = Generator().manual_seed(EVALUATION_SEED)
    sets = {split: make(split, fixed) for split in SPLITS}
    few, drift = sets["heldout"].rows(range(6)), sets["heldout"].rows(range(64))
    start = frozen(trainer.policy)

    def watch(policy: Policy) -> dict[str, float]:
        heldout = evaluate(policy, sets["heldout"], score_fn)
        moved = kl_to_start(policy, start, drift, Generator().manual_seed(0))
        return {"heldout": heldout.score, **monitor(heldout), **moved}

    def show(policy: Policy) -> tuple[torch.Tensor, list[str]]:
        told = evaluate(policy, few, score_fn)
        asked = zip(few["prompt"], told.outputs, few["answer"], strict=True)
        return few["image"], [f"{q}\n{y}\n(truth: {a})" for q, y, a in asked]

    def measure(policy: Policy) -> dict[str, float]:
        return {split: evaluate(policy, prompts, score_fn).score for split, prompts in sets.items()}

    return Experiment(trainer=trainer, evaluate=measure, show=show, monitor=watch)


def rlvr(
    task: TaskConfig, cfg: OnlineConfig, optimization: Optimization, options: RunOptions
) -> Experiment:
    """Questions that need two counts, against an exact-match verifier."""
    train = question_prompts(task.train_prompts, task.kinds, "train", options.generator(1))
    trainer = OnlineTrainer(
        load_policy(task, options),
        train,
        load_reward(options.reward) if options.reward else exact_match,
        optimization,
        cfg,
        options.generator(2),
        collect=shuffled(act_and_judge) if options.shuffle_rewards else act_and_judge,
    )
    return experiment(
        trainer,
        lambda split, g: question_prompts(task.eval_prompts, task.kinds, split, g),
        exact_match,
        lambda heldout: {"extracted": heldout.extracted},
    )


def comparisons(
    policy: VLMPolicy, task: DescribeConfig, count: int, split: str, generator: Generator
) -> PreferencePairs:
    """Sampled descriptions of `count` scenes: an annotator's favourite and least favourite."""
    prompts, texts = describe_prompts(count, split, generator), []
    for start in range(0, count, 256):
        part = prompts.rows(range(start, min(start + 256, count)))
        told = policy.rollout(part, task.candidates, generator).outputs
        texts += [told[i : i + task.candidates] for i in range(0, len(told), task.candidates)]
    return annotate(prompts, texts, task.annotator, generator)


def describing(
    trainer: Any, task: DescribeConfig, facts: dict[str, float], proxy: LearnedReward | None = None
) -> Experiment:
    """Descriptions, measured by truth and completeness; `facts` are logged beside them."""

    def monitor(heldout: Evaluation) -> dict[str, float]:
        scores = [] if proxy is None else evaluate_outputs(proxy, heldout)
        return facts | ({"proxy": sum(scores) / len(scores)} if scores else {})

    def make(split: str, generator: Generator) -> Prompts:
        return describe_prompts(task.eval_prompts, split, generator)

    return experiment(trainer, make, truth_and_completeness, monitor)


def evaluate_outputs(reward_fn: Callable[..., list[float]], told: Evaluation) -> list[float]:
    """What another reward thinks of outputs that were evaluated already."""
    columns = {n: c for n, c in told.prompts.columns.items() if n != "prompt"}
    return reward_fn(completions=told.outputs, prompts=told.prompts["prompt"], **columns)


def rlhf(
    task: DescribeConfig,
    reward: RewardModelConfig,
    cfg: OnlineConfig,
    optimization: Optimization,
    options: RunOptions,
) -> Experiment:
    """Comparisons, a reward model, then PPO or GRPO against it.

    The gold metric is logged at every step with weight 0: training never sees it.
    """
    policy = load_policy(task, options)
    facts, learned = {}, None
    if options.reward:
        reward_fn = load_reward(options.reward)
    else:
        pairs = comparisons(policy, task, task.pairs, "train", options.generator(3))
        learned = train_reward_model(policy, pairs, reward, options.generator(4))
        held_out = comparisons(policy, task, 512, "heldout", options.generator(5))
        facts = {
            "reward_accuracy": pair_accuracy(learned, held_out),
            "annotator_ceiling": ceiling(held_out, task.annotator),
            "gold_accuracy": pair_accuracy(truth_and_completeness, held_out),
        }
        reward_fn = weighted({learned: 1.0, truth_and_completeness: 0.0})
    trainer = OnlineTrainer(
        policy,
        describe_prompts(task.train_prompts, "train", options.generator(1)),
        reward_fn,
        optimization,
        cfg,
        options.generator(2),
        collect=shuffled(act_and_judge) if options.shuffle_rewards else act_and_judge,
    )
    return describing(trainer, task, facts, learned)
