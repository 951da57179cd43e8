"""mllm/rlvr-grpo: a VLM learns to count by GRPO against an exact-match verifier."""

from __future__ import annotations

from dataclasses import dataclass, field
from math import inf

import torch

from minivisrl.evaluation.sets import evaluate
from minivisrl.evaluation.state import kl_to_start
from minivisrl.mllm.policy import VLMPolicy
from minivisrl.optimization import GRPO, GRPOConfig, validate
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer, act_and_judge, shuffled
from minivisrl.policy import Policy, frozen
from minivisrl.recipes.run import Experiment, RunOptions, load_reward
from minivisrl.rewards import exact_match
from minivisrl.rollout import Prompts
from minivisrl.worlds.questions import question_prompts

EVALUATION_SEED = 20_250_808  # the held-out set is the same for every run and every recipe
SPLITS = ("heldout", "appearance", "composition")


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    kinds: tuple[str, ...] = ("difference",)  # kinds of questions, in turn
    about: tuple[str, ...] = ("color",)  # what both counts of a question are about
    train_prompts: int = 2048  # distinct questions to sample from
    eval_prompts: int = 512  # per split
    temperature: float = 1.0  # of sampling and scoring
    max_tokens: int = 14  # longest completion

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("train_prompts", "eval_prompts", "max_tokens"), (1, inf))
        validate(self, counts | {"temperature": (1e-3, inf)})


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 120  # optimiser steps
    trainer: OnlineConfig = field(default_factory=lambda: OnlineConfig(learning_rate=3e-4))
    optimization: GRPOConfig = field(default_factory=GRPOConfig)
    task: TaskConfig = field(default_factory=TaskConfig)

    def __post_init__(self) -> None:
        validate(self, {"steps": (1, inf)})


def _questions(task: TaskConfig, count: int, split: str, generator: torch.Generator) -> Prompts:
    return question_prompts(count, task.kinds, split, generator, about=task.about)


def build(config: Config, options: RunOptions) -> Experiment:
    """The experiment: questions that need two counts, answered by the shipped VLM."""
    task = config.task
    policy = VLMPolicy.load(options.base("vlm")).to(options.torch_device())
    policy.temperature, policy.max_tokens = task.temperature, task.max_tokens
    reward_fn = load_reward(options.reward) if options.reward else exact_match
    start = frozen(policy)
    trainer = OnlineTrainer(
        policy,
        _questions(task, task.train_prompts, "train", options.generator(1)),
        reward_fn,
        GRPO(config.optimization),
        config.trainer,
        options.generator(2),
        collect=shuffled(act_and_judge) if options.shuffle_rewards else act_and_judge,
    )
    fixed = torch.Generator().manual_seed(EVALUATION_SEED)
    sets = {split: _questions(task, task.eval_prompts, split, fixed) for split in SPLITS}
    few = sets["heldout"].rows(range(min(6, task.eval_prompts)))
    drift = sets["heldout"].rows(range(min(64, task.eval_prompts)))

    def monitor(policy: Policy) -> dict[str, float]:
        heldout = evaluate(policy, sets["heldout"])
        moved = kl_to_start(policy, start, drift, torch.Generator().manual_seed(0))
        return {"heldout": heldout.score, "extracted": heldout.extracted, **moved}

    def show(policy: Policy) -> tuple[torch.Tensor, list[str]]:
        told = evaluate(policy, few)
        asked = zip(few["prompt"], told.outputs, few["answer"], strict=True)
        return few["image"], [f"{q}\n{y}\n(truth: {a})" for q, y, a in asked]

    return Experiment(
        trainer=trainer,
        evaluate=lambda policy: {split: evaluate(policy, sets[split]).score for split in sets},
        show=show,
        monitor=monitor,
    )
