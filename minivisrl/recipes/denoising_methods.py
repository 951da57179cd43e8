"""What else trains a denoiser: the published variants, each on the shipped base that draws.

    python -m minivisrl.recipes.denoising_methods NAME [--steps 20] [--seed 0] [--out FILE]

Prints the gold metric before and after, on held-out captions and sampled pictures; writes nothing
unless a file is named.

Survey: section 3.2.1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
import tyro
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from minivisrl import DATA, UserError
from minivisrl.evaluation.sets import evaluate
from minivisrl.generation.backprop import differentiable_tail
from minivisrl.generation.judge import PictureJudge
from minivisrl.optimization import GRPO, GRPOConfig
from minivisrl.optimization.dpok import DPOK, DPOKConfig
from minivisrl.paradigms.baselines import RWR, RWRConfig
from minivisrl.paradigms.dpo import DPOConfig
from minivisrl.paradigms.offline import KTO, KTOConfig, OfflineConfig, OfflineTrainer, unpaired
from minivisrl.paradigms.online import OnlineTrainer, act_and_judge
from minivisrl.paradigms.pareto import pareto_selection
from minivisrl.paradigms.reward_gradient import RewardGradientTrainer, SmoothReward
from minivisrl.policy import Policy, frozen
from minivisrl.recipes.common import EVALUATION_SEED
from minivisrl.recipes.generation import DrawConfig, comparisons, drawn_batches, load_policy
from minivisrl.recipes.run import RunOptions, write_json
from minivisrl.rewards import weighted
from minivisrl.rewards.judge import RewardFn
from minivisrl.rewards.pictures import composition, exact_composition
from minivisrl.rewards.taste import looks
from minivisrl.rollout import Prompts
from minivisrl.tokenizer import pixels_of
from minivisrl.worlds.drawings import drawing_prompts
from minivisrl.worlds.scenes import render

Make = Callable[[DrawConfig, RunOptions], Any]  # a trainer with the policy that it trains


class Method(NamedTuple):
    """A published method on this base."""

    paper: str | None  # its row of data/papers.csv, if it has one
    gold: RewardFn  # what it is measured by
    make: Make  # its trainer


def online(
    task: DrawConfig,
    options: RunOptions,
    *,
    kind: str = "flow",
    job: Any = None,
    reward: RewardFn = composition,
    collect: Callable[..., Any] = act_and_judge,
    scored: int | None = 3,
) -> OnlineTrainer:
    """The online loop on a base of some kind; GRPO without a KL term unless a job is given."""
    policy = load_policy(replace(task, scored=scored), options, kind)
    prompts = drawing_prompts(task.train_prompts, "train", options.generator(1))
    job = job or GRPO(GRPOConfig(kl_coef=0.0))
    cfg, dice = drawn_batches(), options.generator(2)
    return OnlineTrainer(policy, prompts, reward, job, cfg, dice, collect=collect)


def sharpness(completions: list[Tensor], **_: Any) -> list[float]:
    """Mean step between neighbouring pixels; knows nothing of the caption."""
    return looks(torch.stack(completions))["sharpness"].tolist()


def cell_colors(images: Tensor, prompts: Prompts) -> Tensor:
    """(N,) Minus the squared distance between the mean colors of the 3 x 3 cells of image and
    scene: smooth in the pixels, knows place and color, and is blind to shape."""
    truth = render(list(prompts["scene"]), images.shape[-1]).to(images.device) / 255  # (N, 3, H, W)
    shown, wanted = (adaptive_avg_pool2d(x, 3) for x in (images, truth))  # (N, 3, 3, 3)
    return -(shown - wanted).square().flatten(1).sum(dim=1)


def learned(options: RunOptions) -> SmoothReward:
    """The shipped reward model of pictures, differentiable in the pixels."""
    judge = frozen(PictureJudge.load(DATA / "checkpoints" / "picture_reward"))
    judge.to(options.torch_device())

    def score(images: Tensor, prompts: Prompts) -> Tensor:
        rows = torch.arange(len(images), device=images.device)
        return judge.scores(prompts, pixels_of(images, images.device), rows)

    return score


def reward_gradient(
    task: DrawConfig, options: RunOptions, *, last: int, smooth: Callable[..., SmoothReward]
) -> RewardGradientTrainer:
    """Back-propagation of a smooth reward through the last denoising steps."""
    policy = load_policy(task, options, "flow")
    prompts = drawing_prompts(task.train_prompts, "train", options.generator(1))
    replay = partial(differentiable_tail, last=last)
    cfg, dice = drawn_batches(), options.generator(2)
    return RewardGradientTrainer(policy, prompts, smooth(options), replay, cfg, dice)


def thumbs(task: DrawConfig, options: RunOptions) -> OfflineTrainer:
    """Diffusion-KTO: single pictures of the base with a thumb up or down, one timestep a row."""
    policy = load_policy(task, options, "flow")
    pairs = comparisons(policy, task, min(task.pairs, 512), "train", options.generator(3))
    job = KTO(KTOConfig(score=DPOConfig(dpo_beta=100.0)))
    return OfflineTrainer(policy, unpaired(pairs), job, OfflineConfig(), options.generator(2))


BOTH = {composition: 1.0, sharpness: 1.0}
FRONT = pareto_selection([composition.__name__, sharpness.__name__])
METHODS = {
    "ddpo": Method("ddpo", exact_composition, partial(online, kind="diffusion", scored=None)),
    "few-step": Method("flow-grpo", exact_composition, online),
    "dpok": Method("dpok", exact_composition, partial(online, job=DPOK(DPOKConfig()))),
    "rwr": Method("ddpo", exact_composition, partial(online, job=RWR(RWRConfig()))),
    "pareto": Method("parrot", composition, partial(online, reward=weighted(BOTH), collect=FRONT)),
    "kto": Method("diffusion-kto", composition, thumbs),
    "reward-gradient": Method(None, composition, partial(reward_gradient, last=2, smooth=learned)),
    "reward-gradient-colors": Method(
        None,
        composition,
        partial(reward_gradient, last=2, smooth=lambda _: cell_colors),
    ),
}


@dataclass(frozen=True, kw_only=True)
class MethodOptions:
    """Which method, how long, and from what."""

    name: str  # a key of METHODS
    steps: int = 20  # optimiser steps
    seed: int = 0  # of every generator
    checkpoint: str | None = None  # base model; default: the shipped one
    out: str | None = None  # JSON file to write
    task: DrawConfig = DrawConfig()

    def __post_init__(self) -> None:
        if self.name not in METHODS:
            raise UserError(f"unknown method {self.name!r}; choose one of {', '.join(METHODS)}")
        if self.steps < 1:
            raise UserError(f"steps={self.steps} is not allowed: choose 1 or more")


def fixed_captions(task: DrawConfig) -> Prompts:
    """The held-out captions, the same for every method and seed."""
    generator = torch.Generator().manual_seed(EVALUATION_SEED)
    return drawing_prompts(task.eval_prompts, "heldout", generator)


def score(policy: Policy, heldout: Prompts, gold: RewardFn) -> float:
    """One sampled picture per caption, from fixed noise."""
    dice = torch.Generator().manual_seed(EVALUATION_SEED)
    return evaluate(policy, heldout, gold, samples=1, generator=dice).score


def measure(options: MethodOptions) -> dict[str, Any]:
    """Train by a method; gold metric before and after, and CPU seconds inside the steps."""
    method = METHODS[options.name]
    run = RunOptions(seed=options.seed, device="cpu", checkpoint=options.checkpoint)
    trainer = method.make(options.task, run)
    heldout = fixed_captions(options.task)
    before, start = score(trainer.policy, heldout, method.gold), time.process_time()
    rows = [trainer.step() for _ in range(options.steps)]
    seconds = round(time.process_time() - start, 1)
    result = {"method": options.name, "paper": method.paper, "seed": options.seed}
    result |= {"steps": options.steps, "metric": method.gold.__name__, "before": round(before, 4)}
    result |= {
        "after": round(score(trainer.policy, heldout, method.gold), 4),
        "seconds": seconds,
        "rows": rows,
    }
    if options.out:
        write_json(Path(options.out), result)
    return result


if __name__ == "__main__":
    told = measure(tyro.cli(MethodOptions, config=[tyro.conf.PositionalRequiredArgs]))
    print(*(f"{name} {value}" for name, value in told.items() if name != "rows"), sep="  ")
