"""Two questions about learning to denoise, answered over seeds from one base and one verifier.

    python -m minivisrl.recipes.denoising_study [--seeds 5] [--steps 20] [--out FILE]

Policy gradients against reward-weighted regression, at equal samples: does a baseline matter more
than seeing what is good?  And training on three denoising steps of an episode against training on
all of them: what does a trained step buy, and what does it cost?

Survey: section 3.2.1.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from typing import Any

from tqdm.auto import tqdm

from minivisrl import DATA, UserError
from minivisrl.paradigms.baselines import RWRConfig
from minivisrl.recipes import generation
from minivisrl.recipes.common import record
from minivisrl.recipes.run import RunOptions

RESULTS = DATA / "results" / "denoising.json"


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How long, how often, and where to."""

    steps: int = 20  # optimiser steps of every method, on the same number of samples
    seeds: int = 5  # runs per method, seeds 0, 1, ...
    out: str = str(RESULTS)  # results file, written anew
    base: generation.RLVRGRPO = generation.RLVRGRPO()  # what all methods have in common

    def __post_init__(self) -> None:
        if self.steps < 1 or self.seeds < 2:
            raise UserError("the study needs steps >= 1 and seeds >= 2")


def methods(base: generation.RLVRGRPO) -> dict[str, Any]:
    """Name -> configuration; the first differs from each other one in a single thing."""
    every = replace(base.task, scored=None)
    return {
        "policy gradient, 3 steps trained": replace(base, task=replace(base.task, scored=3)),
        "reward-weighted regression": replace(
            base, task=replace(base.task, scored=3), optimization=RWRConfig()
        ),
        "policy gradient, all steps trained": replace(base, task=every),
    }


def study(options: StudyOptions) -> dict[str, Any]:
    """Fill the results file; `seconds` are CPU seconds inside the steps."""
    runs: list[dict[str, Any]] = []
    todo = [(seed, name) for seed in range(options.seeds) for name in methods(options.base)]
    for seed, name in tqdm(todo, disable=None):
        config = methods(options.base)[name]
        experiment = generation.rlvr(config, RunOptions(seed=seed, device="cpu"))
        policy, trainer = experiment.trainer.policy, experiment.trainer
        before, start = experiment.evaluate(policy)["heldout"], time.process_time()
        for _ in range(options.steps):
            trainer.step()
        seconds = time.process_time() - start
        row = {"before": before, "after": experiment.evaluate(policy)["heldout"]}
        row |= experiment.others(policy) | {"seconds": seconds}
        runs.append({"seed": seed, "method": name, **row})
    command = f"python -m minivisrl.recipes.denoising_study --steps {options.steps}"
    return record(options.out, command, runs)


if __name__ == "__main__":
    import tyro

    for name, row in study(tyro.cli(StudyOptions))["table"].items():
        print(name, *(f"{k} {v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]" for k, v in row.items()), sep="  ")
