r"""Set-level metrics: the mean of a sample metric over a fixed set of prompts.

Survey: section 4.1, Eqs. (14), (15).
Symbols: D -> number of prompts, M_samp -> `score_fn`, M_set -> `Evaluation.score`.
Departs: the expectation over y is one greedy output per prompt, or `samples` draws if asked for.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator

from minivisrl.policy import Policy
from minivisrl.rewards.judge import RewardFn, text_of
from minivisrl.rewards.verifiers import exact_match, extract_answer
from minivisrl.rollout import Prompts


@dataclass(frozen=True)
class Evaluation:
    """Scores (D,) of a policy on D prompts, with what it put out."""

    scores: torch.Tensor
    outputs: list[Any]
    prompts: Prompts

    @property
    def score(self) -> float:
        """The set metric."""
        return self.scores.mean().item()

    @property
    def extracted(self) -> float:
        """Share of text outputs from which an answer could be extracted."""
        return sum(extract_answer(y) is not None for y in self.outputs) / len(self.outputs)

    def scored_by(self, score_fn: RewardFn) -> list[float]:
        """What a reward or a metric says of these outputs."""
        columns = {n: c for n, c in self.prompts.columns.items() if n != "prompt"}
        return score_fn(completions=self.outputs, prompts=self.prompts["prompt"], **columns)

    def by(self, column: str) -> dict[str, float]:
        """Mean score for each value of a prompt column (`kind`, say)."""
        values = list(self.prompts[column])
        return {
            value: self.scores[[v == value for v in values]].mean().item()
            for value in dict.fromkeys(values)
        }

    def lengths(self) -> list[int]:
        """Words per text output."""
        return [len(text_of(output).split()) for output in self.outputs]


@torch.no_grad()
def evaluate(
    policy: Policy,
    prompts: Prompts,
    score_fn: RewardFn = exact_match,
    *,
    samples: int = 0,
    generator: Generator | None = None,
    batch_size: int = 256,
) -> Evaluation:
    r"""Score a policy on every prompt.  Eqs. (14), (15): :math:`M_{set} = E[M_{samp}]`.

    Args:
        samples: 0 for one greedy output a prompt, else that many draws from `generator`.
    """
    if samples and generator is None:
        raise ValueError(f"samples={samples} needs a generator to draw from")
    policy.eval()
    parts, outputs = [], []
    for start in range(0, len(prompts), batch_size):
        part = prompts.rows(range(start, min(start + batch_size, len(prompts))))
        if samples:
            outputs += policy.rollout(part, samples, generator).outputs
        else:
            outputs += policy.predict(part)
        parts.append(part.repeat(max(1, samples)))
    told = Evaluation(torch.empty(0), outputs, Prompts.cat(parts))
    return replace(told, scores=torch.as_tensor(told.scored_by(score_fn), dtype=torch.float32))


def accuracy(policy: Policy, prompts: Prompts, **options: Any) -> float:
    """Share of prompts answered exactly right.  Eq. (15) with exact match as M_samp."""
    return evaluate(policy, prompts, exact_match, **options).score
