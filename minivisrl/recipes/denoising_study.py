"""Two questions about learning to denoise, answered over seeds from one base and one verifier.

    python -m minivisrl.recipes.denoising_study [--seeds 5] [--steps 20] [--out FILE]

Policy gradients against reward-weighted regression, at equal samples: does a baseline matter more
than seeing what is good?  And training on three denoising steps of an episode against training on
all of them, at equal samples and again at equal CPU seconds: what does a trained step buy, and what
does it cost?

Survey: section 3.2.1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from minivisrl import DATA, UserError
from minivisrl.evaluation.statistics import paired_difference
from minivisrl.evaluation.verdicts import verdict
from minivisrl.paradigms.baselines import RWRConfig
from minivisrl.recipes import generation
from minivisrl.recipes.common import online, record
from minivisrl.recipes.denoising_methods import fixed_captions, score
from minivisrl.recipes.run import RunOptions, write_json
from minivisrl.recipes.telling import tell
from minivisrl.rewards.pictures import composition, exact_composition
from minivisrl.rollout import Prompts
from minivisrl.worlds.drawings import drawing_prompts

RESULTS = DATA / "results" / "denoising.json"
FEW, ALL = "policy gradient, 3 steps trained", "policy gradient, all steps trained"
RWR, LONGER = "reward-weighted regression", "3 steps trained, for the seconds of all"
QUESTIONS = {  # question -> first method, second, what of them, and which difference is none
    "policy gradient or weighted regression, equal samples": (FEW, RWR, "after", 0.05),
    "3 steps or all, equal samples": (FEW, ALL, "after", 0.05),
    "3 steps or all, CPU seconds": (FEW, ALL, "seconds", None),
    "3 steps or all, equal CPU seconds": (LONGER, ALL, "after", 0.05),
}


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How long, how often, and where to."""

    steps: int = 20  # optimiser steps of every method, on the same number of samples
    seeds: int = 5  # runs per method, seeds 0, 1, ...
    out: str = str(RESULTS)  # results file, written anew after every seed
    base: generation.RLVRGRPO = generation.RLVRGRPO()  # what all methods have in common

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seeds < 2:
            raise UserError("the study needs steps >= 1 and seeds >= 2")


def methods(base: generation.RLVRGRPO) -> dict[str, Any]:
    """Name -> configuration; the first differs from each other one in a single thing."""
    few, every = (replace(base.task, scored=scored) for scored in (3, None))
    return {
        FEW: replace(base, task=few),
        RWR: replace(base, task=few, optimization=RWRConfig()),
        ALL: replace(base, task=every),
    }


def train(trainer: Any, steps: int, seconds: float = 0.0, least: float = 0.0) -> float:
    """Go on until `steps` steps are done and `least` CPU seconds spent; the seconds in all."""
    while trainer.steps < steps or seconds < least:
        start = time.process_time()
        trainer.step()
        seconds += time.process_time() - start
    return seconds


def one_seed(seed: int, options: StudyOptions, heldout: Prompts) -> list[dict[str, Any]]:
    """Every method once, then the first on, until it has had the seconds of the last."""
    run = RunOptions(seed=seed, device="cpu")
    prompts = drawing_prompts(options.base.task.train_prompts, "train", run.generator(1))
    trainers, rows, before = {}, {}, 0.0

    def row(name: str, seconds: float) -> dict[str, Any]:
        policy, steps = trainers[name].policy, trainers[name].steps
        told = {"after": score(policy, heldout, exact_composition), "seconds": seconds}
        return {"seed": seed, "method": name, "steps": steps, **told} | generation.diversity(
            policy, heldout
        )

    for name, config in methods(options.base).items():
        policy = generation.load_policy(config.task, run, "flow")
        before = score(policy, heldout, exact_composition) if not rows else before
        trainers[name] = online(policy, prompts, composition, config, run)
        rows[name] = row(name, train(trainers[name], options.steps))
    trainers[LONGER], spent = trainers[FEW], rows[FEW]["seconds"]
    longer = train(trainers[FEW], options.steps, spent, rows[ALL]["seconds"])
    rows[LONGER] = row(LONGER, longer)
    return [{"before": before, **told} for told in rows.values()]


def answers(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """To every question the difference of its methods, with its interval, and the verdict."""
    told = {}
    for question, (first, second, what, margin) in QUESTIONS.items():
        one, other = ([r[what] for r in runs if r["method"] == name] for name in (first, second))
        gap = [round(x, 4) for x in paired_difference(one, other)]
        facts = {"first": first, "second": second, "of": what, "margin": margin}
        told[question] = facts | {"difference": gap, "verdict": verdict(one, other, margin)}
    return told


def study(options: StudyOptions) -> dict[str, Any]:
    """Fill the results file; `seconds` are CPU seconds inside the steps."""
    runs: list[dict[str, Any]] = []
    heldout, book = fixed_captions(options.base.task), {}
    command = f"python -m minivisrl.recipes.denoising_study --steps {options.steps}"
    for seed in tqdm(range(options.seeds), disable=None):
        runs += one_seed(seed, options, heldout)
        if seed:
            book = record(options.out, command, runs) | {"answers": answers(runs)}
            write_json(Path(options.out), book)
    return book


if __name__ == "__main__":
    import tyro

    tell(study(tyro.cli(StudyOptions)))
