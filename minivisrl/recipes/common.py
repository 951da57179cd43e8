"""What the recipes of every pillar share: trainers from a config, and fixed held-out sets."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Generator

from minivisrl import UserError
from minivisrl.evaluation.sets import Evaluation, evaluate
from minivisrl.evaluation.state import kl_to_start
from minivisrl.evaluation.statistics import mean_interval
from minivisrl.optimization import GRPO, PPO, GRPOConfig, PPOConfig
from minivisrl.paradigms.baselines import RWR, ExpertIteration, ExpertIterationConfig, RWRConfig
from minivisrl.paradigms.dpo import DPOConfig
from minivisrl.paradigms.offline import DPO, OfflineTrainer, shuffled_pairs
from minivisrl.paradigms.online import OnlineTrainer, act_and_judge, shuffled
from minivisrl.paradigms.rlhf import LearnedReward, pair_accuracy
from minivisrl.policy import Policy, frozen
from minivisrl.recipes.run import Experiment, RunOptions, load_reward, write_json
from minivisrl.rewards import weighted
from minivisrl.rewards.judge import RewardFn
from minivisrl.rollout import PreferencePairs, Prompts

EVALUATION_SEED = 20_250_808  # the held-out sets are the same for every run and every recipe
SPLITS = ("heldout", "appearance", "composition")
JOBS = {
    GRPOConfig: GRPO,
    PPOConfig: PPO,
    DPOConfig: DPO,
    RWRConfig: RWR,
    ExpertIterationConfig: ExpertIteration,
}


def online(
    policy: Policy, prompts: Prompts, reward_fn: RewardFn, config: Any, options: RunOptions
) -> OnlineTrainer:
    """The online loop of a config, with the user's reward and the shuffled control if asked for."""
    return OnlineTrainer(
        policy,
        prompts,
        load_reward(options.reward) if options.reward else reward_fn,
        JOBS[type(config.optimization)](config.optimization),
        config.trainer,
        options.generator(2),
        collect=shuffled(act_and_judge) if options.shuffle_rewards else act_and_judge,
    )


def offline(
    policy: Policy, pairs: PreferencePairs, config: Any, options: RunOptions
) -> OfflineTrainer:
    """The offline loop of a config; the control gets its labels from a coin.

    Raises:
        UserError: a reward was given, which learning from comparisons has no use for.
    """
    if options.reward:
        raise UserError("dpo learns from comparisons, not rewards; leave --reward out")
    pairs = shuffled_pairs(pairs, options.generator(4)) if options.shuffle_rewards else pairs
    job = JOBS[type(config.optimization)](config.optimization)
    return OfflineTrainer(policy, pairs, job, config.trainer, options.generator(2))


def learned_reward(
    scorer: Policy,
    pairs: PreferencePairs,
    gold: RewardFn,
    ceiling: Callable[[PreferencePairs], float],
) -> tuple[LearnedReward, RewardFn, dict[str, float]]:
    """A trained reward model as a reward, and how often it is right about held-out pairs.

    Returns:
        the model, standardised on the pairs; a reward that logs `gold` beside it, with weight 0;
        the accuracies of the model, of the truth, and of the annotators without their noise.
    """
    model = LearnedReward(frozen(scorer)).standardised(pairs)
    facts = {
        "reward_accuracy": pair_accuracy(model, pairs),
        "gold_accuracy": pair_accuracy(gold, pairs),
        "annotator_ceiling": ceiling(pairs),
    }
    return model, weighted({model: 1.0, gold: 0.0}), facts


def experiment(
    trainer: Any,
    make: Callable[[str, Generator], Prompts],
    score_fn: RewardFn,
    *,
    show: Callable[[Evaluation], tuple[torch.Tensor, list[str]]],
    monitor: Callable[[Evaluation], dict[str, float]],
    splits: Sequence[str] = SPLITS,
    samples: int = 0,
    others: Callable[[Policy, Prompts], dict[str, float]] | None = None,
) -> Experiment:
    """Measure a trainer's policy on fixed prompts of every split, and show six of them.

    Args:
        make: prompts of a split from a generator.
        score_fn: the gold metric.
        samples: outputs per prompt, from a fixed generator; 0: one greedy output.  With samples,
            the greedy output's score is reported beside it.
        show: images and captions of an evaluation.
        monitor: more statistics of the held-out evaluation.
        others: what else is worth knowing before and after, of a policy on held-out prompts.
    """
    fixed = Generator().manual_seed(EVALUATION_SEED)
    sets = {split: make(split, fixed) for split in splits}
    heldout = sets["heldout"]
    few = heldout.rows(range(min(6, len(heldout))))
    drift = heldout.rows(range(min(64, len(heldout))))
    start = frozen(trainer.policy)

    def score(policy: Policy, prompts: Prompts, samples: int = samples) -> Evaluation:
        dice = Generator().manual_seed(EVALUATION_SEED)
        return evaluate(policy, prompts, score_fn, samples=samples, generator=dice)

    def told_beside(policy: Policy) -> dict[str, float]:
        greedy = {"greedy": score(policy, heldout, 0).score} if samples else {}
        return greedy | (others(policy, heldout) if others else {})

    def watch(policy: Policy) -> dict[str, float]:
        told, moved = score(policy, heldout), kl_to_start(policy, start, drift, Generator())
        return {"heldout": told.score, **monitor(told), **moved}

    return Experiment(
        trainer=trainer,
        evaluate=lambda policy: {split: score(policy, sets[split]).score for split in splits},
        others=told_beside,
        show=lambda policy: show(score(policy, few)),
        monitor=watch,
    )


def record(path: str | Path, command: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Write a study's results file: its runs, and per `method` mean and interval over seeds."""
    table: dict[str, dict[str, list[float]]] = {}
    for method in dict.fromkeys(run["method"] for run in runs):
        mine = [run for run in runs if run["method"] == method]
        table[method] = {
            name: [round(x, 4) for x in mean_interval([run[name] for run in mine])]
            for name in mine[0]
            if name not in ("method", "seed")
        }
    versions = {name: version(name) for name in ("torch", "transformers", "diffusers")}
    book = {"command": command, "versions": versions, "table": table, "runs": runs}
    write_json(Path(path), book)
    return book
