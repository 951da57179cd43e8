"""A policy small enough to enumerate: one row of logits for every prefix of every prompt."""

from __future__ import annotations

from itertools import product

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Categorical

from minivisrl.policy import ActionStats
from minivisrl.rollout import Prompts, Rollout


class TreePolicy(nn.Module):
    """Tokens 0 .. V-1 for at most T columns; `end` stops a row.  float64: tests are strict.

    Prompt i is the integer i. Node n of the prefix tree has the children n * V + token + 1.
    `values` is a free number per node: the critic.
    """

    def __init__(
        self, prompts: int = 1, vocabulary: int = 3, length: int = 3, end: int | None = None
    ) -> None:
        super().__init__()
        nodes = sum(vocabulary**t for t in range(length))
        self.vocabulary, self.length, self.end = vocabulary, length, end
        self.logits = nn.Parameter(torch.zeros(prompts, nodes, vocabulary, dtype=torch.float64))
        self.values = nn.Parameter(torch.zeros(prompts, nodes, dtype=torch.float64))

    def randomise(self, seed: int, scale: float = 1.0) -> TreePolicy:
        """Normal logits and values from a seed."""
        generator = Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.parameters():
                parameter.normal_(0.0, scale, generator=generator)
        return self

    def _nodes(self, rollout: Rollout) -> tuple[Tensor, Tensor]:
        tokens = rollout.actions["tokens"]  # (N, T)
        node, columns = torch.zeros(len(tokens), dtype=torch.long), []
        for t in range(self.length):
            columns.append(node)
            node = node * self.vocabulary + tokens[:, t] + 1
        prompt = torch.tensor(rollout.prompts["prompt"]).repeat_interleave(rollout.group_size)
        return prompt[:, None], torch.stack(columns, dim=1)  # (N, 1), (N, T)

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        index = self._nodes(rollout)
        dist = Categorical(logits=self.logits[index])  # (N, T, V)
        critic = self.values[index] if values else None  # (N, T)
        return ActionStats(dist.log_prob(rollout.actions["tokens"]), dist.entropy(), critic, dist)

    @torch.no_grad()
    def as_rollout(self, prompts: list[int], tokens: Tensor, group_size: int) -> Rollout:
        """(N, T) tokens as a rollout with the log-probs of the current weights."""
        stops = (tokens == self.end).cumsum(dim=1) if self.end is not None else 0 * tokens
        ended = stops - (tokens == self.end).long() if self.end is not None else stops
        draft = Rollout(
            prompts=Prompts({"prompt": prompts}),
            actions={"tokens": tokens},
            logprobs=torch.zeros(tokens.shape, dtype=torch.float64),
            mask=(ended == 0).long(),
            group_size=group_size,
            outputs=tokens.tolist(),
        )
        logprobs = self.evaluate_actions(draft).logprobs
        return Rollout(
            draft.prompts, draft.actions, logprobs, draft.mask, group_size, draft.outputs
        )

    @torch.no_grad()
    def rollout(self, prompts: Prompts, group_size: int, generator: Generator) -> Rollout:
        """Sample; what follows an end token is drawn too, and masked."""
        ids = prompts["prompt"]
        tokens = torch.zeros(len(ids) * group_size, self.length, dtype=torch.long)
        for t in range(self.length):
            drafted = self.as_rollout(ids, tokens, group_size)
            probs = self.evaluate_actions(drafted).dist.probs[:, t]  # (N, V)
            tokens[:, t] = torch.multinomial(probs, 1, generator=generator)[:, 0]
        return self.as_rollout(ids, tokens, group_size)

    def trajectories(self, prompt: int = 0) -> Rollout:
        """Every trajectory of a prompt exactly once (what follows an end token is 0), one group."""
        rows = torch.tensor(list(product(range(self.vocabulary), repeat=self.length)))
        mask = self.as_rollout([prompt], rows, len(rows)).mask
        rows = (rows * mask).unique(dim=0)
        return self.as_rollout([prompt], rows, len(rows))

    def row_logprobs(self, rollout: Rollout) -> Tensor:
        """(N,) log pi(y), with gradient."""
        return (self.evaluate_actions(rollout).logprobs * rollout.mask).sum(dim=1)
