"""The generation row: pictures of captions, for a verifier and for annotators.

The verifier's task: draw everything that a caption says, and nothing else, graded by reading the
pixels back.  The annotators' task: pictures that show the caption and please the eye, where
training sees comparisons or a reward learned from them, and the gold metric reads the scene graph.

Survey: section 3.2.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from typing import Any, ClassVar

import torch
from torch import Generator

from minivisrl import DATA
from minivisrl.evaluation.sets import Evaluation
from minivisrl.generation.autoregressive import TokenPolicy
from minivisrl.generation.diffusion import DiffusionPolicy
from minivisrl.generation.flow import FlowPolicy
from minivisrl.generation.judge import PictureJudge
from minivisrl.optimization import GRPOConfig, PPOConfig, validate
from minivisrl.paradigms.dpo import DPOConfig
from minivisrl.paradigms.offline import OfflineConfig
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.paradigms.rlhf import LearnedReward, pair_accuracy
from minivisrl.policy import Policy
from minivisrl.recipes.common import experiment, learned_reward, offline, online
from minivisrl.recipes.run import Experiment, RunOptions
from minivisrl.rewards import weighted
from minivisrl.rewards.judge import RewardFn
from minivisrl.rewards.pictures import composition, exact_composition
from minivisrl.rewards.taste import TasteConfig, compare_pictures, tastes
from minivisrl.rollout import PreferencePairs, Prompts
from minivisrl.worlds.drawings import drawing_prompts

POLICIES = {  # --policy -> class and shipped checkpoint
    "flow": (FlowPolicy, "flow"),
    "diffusion": (DiffusionPolicy, "diffusion"),
    "autoregressive": (TokenPolicy, "tokens"),
}


@dataclass(frozen=True, kw_only=True)
class DrawConfig:
    """Drawing what a caption says."""

    train_prompts: int = 4096  # captions to sample from
    eval_prompts: int = 512  # per split
    denoising_steps: int = 8  # of a rollout
    eval_steps: int = 10  # denoising steps of `predict`
    scored: int | None = 3  # denoising steps of an episode that are trained on; None: all
    noise: float = 0.7  # eta of DDIM, or the noise level of a flow's SDE
    temperature: float = 1.0  # of picture tokens
    pairs: int = 4096  # comparisons of pictures by the base
    candidates: int = 4  # pictures that an annotator sees at once; best and worst are kept
    taste: TasteConfig = field(default_factory=TasteConfig)

    def __post_init__(self) -> None:
        counts = dict.fromkeys(("train_prompts", "eval_prompts", "pairs", "eval_steps"), (1, inf))
        counts |= dict.fromkeys(("denoising_steps", "candidates"), (2, inf))
        validate(self, counts | {"noise": (1e-6, inf), "temperature": (1e-3, inf)})


def drawn_batches() -> OnlineConfig:
    """Batches of pictures: 128 of 16 captions."""
    rates = {"learning_rate": 1e-4, "critic_learning_rate": 3e-3}
    return OnlineConfig(batch_size=16, group_size=8, **rates)


def fresh_critic() -> PPOConfig:
    """PPO for a critic on a trunk that it must not move.

    The log-probs are means over 768 latents, so the policy's gradient is small: with the critic's
    usual share of the loss the trunk follows the critic, and the pictures fall apart.  The value
    head has a learning rate of its own, which the small share does not slow down.
    """
    free = {"value_clip_eps": None, "gae_lambda": 1.0, "update_epochs": 1}
    return PPOConfig(value_coef=0.005, kl_coef=0.0, **free)


@dataclass(frozen=True, kw_only=True)
class RLVRGRPO:
    """generation/rlvr-grpo: a flow learns to draw captions by GRPO, against a verifier."""

    steps: int = 24  # optimiser steps
    trainer: OnlineConfig = field(default_factory=drawn_batches)
    optimization: GRPOConfig = field(default_factory=lambda: GRPOConfig(kl_coef=0.0))
    task: DrawConfig = field(default_factory=DrawConfig)
    drawn_by: ClassVar[str] = "flow"


@dataclass(frozen=True, kw_only=True)
class RLVRPPO:
    """generation/rlvr-ppo: a flow learns to draw captions by PPO, with a critic."""

    steps: int = 24  # optimiser steps
    trainer: OnlineConfig = field(default_factory=drawn_batches)
    optimization: PPOConfig = field(default_factory=fresh_critic)
    task: DrawConfig = field(default_factory=DrawConfig)
    drawn_by: ClassVar[str] = "flow"


@dataclass(frozen=True, kw_only=True)
class RLHFGRPO:
    """generation/rlhf-grpo: a flow learns to please by GRPO, against a reward from pairs.

    Few steps: after 18 the proxy goes on rising and the gold metric falls.
    """

    steps: int = 14  # optimiser steps
    trainer: OnlineConfig = field(default_factory=drawn_batches)
    optimization: GRPOConfig = field(default_factory=lambda: GRPOConfig(kl_coef=0.0))
    task: DrawConfig = field(default_factory=DrawConfig)
    drawn_by: ClassVar[str] = "flow"


@dataclass(frozen=True, kw_only=True)
class RLHFPPO:
    """generation/rlhf-ppo: a flow learns to please by PPO, against a reward learned from pairs."""

    steps: int = 12  # optimiser steps
    trainer: OnlineConfig = field(default_factory=drawn_batches)
    optimization: PPOConfig = field(default_factory=fresh_critic)
    task: DrawConfig = field(default_factory=lambda: DrawConfig(train_prompts=512))
    drawn_by: ClassVar[str] = "flow"


@dataclass(frozen=True, kw_only=True)
class DirectPreference:
    """generation/dpo: a flow learns to please from comparisons alone (Diffusion-DPO)."""

    steps: int = 120  # optimiser steps
    trainer: OfflineConfig = field(default_factory=OfflineConfig)
    optimization: DPOConfig = field(default_factory=lambda: DPOConfig(dpo_beta=100.0))
    task: DrawConfig = field(default_factory=lambda: DrawConfig(pairs=2048))
    drawn_by: ClassVar[str] = "flow"


def load_policy(task: DrawConfig, options: RunOptions, default: str) -> Policy:
    """The base that draws, on the device of the run, set up for the task."""
    kind, name = POLICIES[options.policy or default]
    policy = kind.load(options.base(name)).to(options.torch_device())
    if isinstance(policy, TokenPolicy):
        policy.temperature = task.temperature
    else:
        steps = {"steps": task.denoising_steps, "eval_steps": task.eval_steps}
        policy.sampler = replace(policy.sampler, noise=task.noise, scored=task.scored, **steps)
    return policy


def shown(told: Evaluation) -> tuple[torch.Tensor, list[str]]:
    """Pictures, each with its caption and its share of points."""
    points = told.scored_by(composition)
    captions = zip(told.prompts["prompt"], points, strict=True)
    return torch.stack(told.outputs), [f"{text}\n({share:.2f} shown)" for text, share in captions]


@torch.no_grad()
def diversity(policy: Policy, prompts: Prompts) -> dict[str, float]:
    """How much four pictures of one caption differ; it falls when a policy collapses.

    Root-mean-square distance, in fractions of the full brightness, mean over pairs and captions.
    """
    few = prompts.rows(range(min(64, len(prompts))))
    outputs = policy.rollout(few, 4, Generator().manual_seed(0)).outputs
    images = torch.stack(outputs).flatten(1).view(len(few), 4, -1)  # (B, G, pixels)
    distance = torch.cdist(images, images) / images.shape[-1] ** 0.5  # (B, G, G)
    return {"diversity": (distance.sum() / (4 * 3 * len(few))).item()}


def drawing(
    trainer: Any,
    task: DrawConfig,
    gold: RewardFn,
    facts: dict[str, float] | None = None,
    proxy: LearnedReward | None = None,
) -> Experiment:
    """Sampled pictures, measured by `gold`; `facts` are logged beside them."""

    def monitor(heldout: Evaluation) -> dict[str, float]:
        scores = heldout.scored_by(proxy) if proxy else []
        return (facts or {}) | ({"proxy": sum(scores) / len(scores)} if scores else {})

    def make(split: str, generator: Generator) -> Prompts:
        return drawing_prompts(task.eval_prompts, split, generator)

    return experiment(trainer, make, gold, show=shown, monitor=monitor, samples=1, others=diversity)


def rlvr(config: RLVRGRPO, options: RunOptions) -> Experiment:
    """The experiment: captions to draw, against the verifier's partial credit."""
    policy = load_policy(config.task, options, config.drawn_by)
    prompts = drawing_prompts(config.task.train_prompts, "train", options.generator(1))
    trainer = online(policy, prompts, composition, config, options)
    return drawing(trainer, config.task, exact_composition)


def comparisons(
    policy: Policy, task: DrawConfig, count: int, split: str, generator: Generator
) -> PreferencePairs:
    """Sampled pictures of `count` captions: an annotator's favourite and least favourite."""
    prompts, pictures = drawing_prompts(count, split, generator), []
    with torch.no_grad():
        for start in range(0, count, 128):
            part = prompts.rows(range(start, min(start + 128, count)))
            pictures += policy.rollout(part, task.candidates, generator).outputs
    return compare_pictures(prompts, pictures, task.taste, generator)


def ceiling(pairs: PreferencePairs, taste: TasteConfig) -> float:
    """How often the annotator's taste, without its noise, is right about the labels."""
    return pair_accuracy(lambda completions, **c: tastes(completions, cfg=taste, **c), pairs)


class Relative:
    """A learned reward, less what it says of the base's own pictures of the caption.

    Comparisons are made within captions, so they leave one constant per caption free. Siblings
    share it, and GRPO never sees it; to PPO it is noise that no critic learns in a few steps.
    """

    __name__ = "relative_reward"

    def __init__(self, model: LearnedReward) -> None:
        self.model = model

    def __call__(self, completions: Any, usual: Any, **columns: Any) -> list[float]:
        scores = self.model(completions=completions, **columns)
        return [score - level for score, level in zip(scores, usual, strict=True)]

    @torch.no_grad()
    def levels(self, policy: Policy, prompts: Prompts, generator: Generator) -> Prompts:
        """The prompts with the column `usual`: the mean score of four pictures by the policy."""
        usual: list[float] = []
        for start in range(0, len(prompts), 128):
            part = prompts.rows(range(start, min(start + 128, len(prompts))))
            drawn, columns = policy.rollout(part, 4, generator).outputs, part.repeat(4).columns
            scores = self.model(completions=drawn, prompts=columns["prompt"])
            usual += torch.tensor(scores).view(-1, 4).mean(dim=1).tolist()
        return Prompts(prompts.columns | {"usual": usual})


def rlhf(config: Any, options: RunOptions) -> Experiment:
    """The experiment: PPO or GRPO against the shipped reward model, whatever the base is.

    The gold metric is logged at every step with weight 0: training never sees it.
    """
    task, policy = config.task, load_policy(config.task, options, config.drawn_by)
    scorer = PictureJudge.load(DATA / "checkpoints" / "picture_reward")
    scorer.to(options.torch_device())
    pairs = comparisons(policy, task, min(512, task.pairs), "heldout", options.generator(3))
    model, reward_fn, facts = learned_reward(
        scorer, pairs, composition, lambda labelled: ceiling(labelled, task.taste)
    )
    prompts = drawing_prompts(task.train_prompts, "train", options.generator(1))
    if isinstance(config.optimization, PPOConfig):
        relative = Relative(model)
        prompts = relative.levels(policy, prompts, options.generator(5))
        reward_fn = weighted({relative: 1.0, composition: 0.0})
    trainer = online(policy, prompts, reward_fn, config, options)
    return drawing(trainer, task, composition, facts, None if options.reward else model)


def dpo(config: Any, options: RunOptions) -> Experiment:
    """The experiment: pictures of each caption by the base, and which was preferred."""
    task, policy = config.task, load_policy(config.task, options, config.drawn_by)
    pairs = comparisons(policy, task, task.pairs, "train", options.generator(3))
    facts = {"annotator_ceiling": ceiling(pairs, task.taste)}
    return drawing(offline(policy, pairs, config, options), task, composition, facts)
