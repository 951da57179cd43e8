"""What to do with comparisons: one base, one set of pairs, one reward model, one budget.

    python -m minivisrl.recipes.compare [--seconds 40] [--seeds 3] [--out FILE]

Supervised fine-tuning on the chosen outputs, DPO, and three ways to use the reward model: expert
iteration, PPO and GRPO. Each gets the same CPU seconds inside its steps. Best-of-n trains nothing
and pays whenever it answers.

Survey: sections 2.2 and 3.1.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from torch import Generator
from tqdm.auto import tqdm

from minivisrl import DATA, UserError
from minivisrl.evaluation.sets import evaluate
from minivisrl.evaluation.state import kl_to_start
from minivisrl.mllm.policy import VLMPolicy
from minivisrl.paradigms.baselines import ExpertIteration, ExpertIterationConfig, best_of_n
from minivisrl.paradigms.online import OnlineTrainer
from minivisrl.paradigms.rlhf import LearnedReward
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.policy import frozen
from minivisrl.recipes import mllm
from minivisrl.recipes.common import EVALUATION_SEED, offline, online, record
from minivisrl.recipes.run import RunOptions
from minivisrl.recipes.telling import tell
from minivisrl.rollout import PreferencePairs, Prompts, Rollout

RESULTS = DATA / "results" / "alignment.json"
N = 8  # of best-of-n


@dataclass(frozen=True, kw_only=True)
class CompareOptions:
    """How long, how often, and where to."""

    seconds: float = 40.0  # CPU seconds inside the steps of every method
    seeds: int = 3  # runs per method, seeds 0, 1, ...
    out: str = str(RESULTS)  # results file, written anew
    task: mllm.DescribeConfig = field(default_factory=mllm.DescribeConfig)

    def __post_init__(self) -> None:
        if self.seconds <= 0 or self.seeds < 2:
            raise UserError("compare needs seconds > 0 and seeds >= 2")


def trainers(
    policy: VLMPolicy,
    pairs: PreferencePairs,
    prompts: Prompts,
    reward: LearnedReward,
    options: RunOptions,
) -> dict[str, Callable[[], Any]]:
    """How to make each method's trainer for a policy."""

    def chosen(generator: Generator, step: int) -> Rollout:
        batch = pairs.prompts.columns | {"output": pairs.chosen}
        drawn = Prompts(batch).sample(32, generator)
        return policy.encode(drawn, drawn["output"], generator)

    grpo, dice = mllm.RLHFGRPO(), options.generator(2)
    sft = SFTConfig(learning_rate=grpo.trainer.learning_rate, total_steps=10**9)
    imitate = ExpertIteration(ExpertIterationConfig()), grpo.trainer, dice
    return {
        "sft": partial(SFTTrainer, policy, chosen, sft, dice),
        "expert iteration": partial(OnlineTrainer, policy, prompts, reward, *imitate),
        "dpo": partial(offline, policy, pairs, mllm.DirectPreference(), options),
        "rlhf, ppo": partial(online, policy, prompts, reward, mllm.RLHFPPO(), options),
        "rlhf, grpo": partial(online, policy, prompts, reward, grpo, options),
    }


def measure(policy: VLMPolicy, base: VLMPolicy, heldout: Prompts) -> dict[str, float]:
    """Gold metric, sampled and greedy, and the drift from the base."""
    dice = Generator().manual_seed(EVALUATION_SEED)
    gold = mllm.truth_and_completeness
    return {
        "sampled": evaluate(policy, heldout, gold, samples=2, generator=dice).score,
        "greedy": evaluate(policy, heldout, gold).score,
        "kl_start": kl_to_start(policy, base, heldout.rows(range(min(64, len(heldout)))), dice)[
            "kl_start"
        ],
    }


def one_seed(seed: int, cfg: CompareOptions, bar: tqdm) -> list[dict[str, Any]]:
    """Every method once; rows of method, steps and metrics."""
    options, task = RunOptions(seed=seed, device="cpu"), cfg.task
    base = mllm.load_policy(task, options)
    pairs = mllm.comparisons(base, task, task.pairs, "train", options.generator(3))
    scorer = VLMPolicy.load(DATA / "checkpoints" / "vlm_reward")
    reward = LearnedReward(frozen(scorer)).standardised(pairs.rows(range(min(512, len(pairs)))))
    prompts = mllm.describe_prompts(task.train_prompts, "train", options.generator(1))
    fixed = Generator().manual_seed(EVALUATION_SEED)
    heldout = mllm.describe_prompts(task.eval_prompts, "heldout", fixed)

    best = best_of_n(base, heldout, reward, N, options.generator(6))
    gold = mllm.truth_and_completeness(best.outputs, heldout["scene"])
    rows = [
        {"method": "base", "steps": 0, **measure(base, base, heldout)},
        {"method": f"best of {N}", "steps": 0, "sampled": sum(gold) / len(gold)},
    ]
    for method in trainers(base, pairs, prompts, reward, options):
        policy = mllm.load_policy(task, options)
        trainer = trainers(policy, pairs, prompts, reward, options)[method]()
        start, steps = time.process_time(), 0
        while time.process_time() - start < cfg.seconds:
            trainer.step()
            steps += 1
        rows.append({"method": method, "steps": steps, **measure(policy, base, heldout)})
        bar.update()
    return [{"seed": seed, **row} for row in rows]


def compare(options: CompareOptions) -> dict[str, Any]:
    """Fill the results file: all rows, and per method the mean and interval over seeds."""
    runs: list[dict[str, Any]] = []
    with tqdm(total=5 * options.seeds, disable=None) as bar:
        for seed in range(options.seeds):
            runs += one_seed(seed, options, bar)
    command = f"python -m minivisrl.recipes.compare --seconds {options.seconds:g}"
    return record(options.out, command, runs)


if __name__ == "__main__":
    import tyro

    tell(compare(tyro.cli(CompareOptions)))
