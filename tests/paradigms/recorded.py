"""A tree policy that also encodes given outputs, as pillars do; shared by the trainers' tests."""

from dataclasses import replace

import torch
from oracle.tabular import TreePolicy
from torch import Generator

from minivisrl.rollout import Prompts


def seeded(seed=0):
    return Generator().manual_seed(seed)


def numbered(count):
    """Prompts 0 .. count - 1."""
    return Prompts({"prompt": list(range(count))})


class Recorded(TreePolicy):
    """Outputs are lists of tokens; `encode` draws one number a row, as a diffusion policy would."""

    value_head = None

    def encode(self, prompts, outputs, generator):
        size = len(outputs) // len(prompts)
        rollout = self.as_rollout(prompts["prompt"], torch.tensor(outputs), size)
        noise = torch.rand(len(rollout), generator=generator)
        return replace(rollout, prompts=prompts, actions={**rollout.actions, "noise": noise})

    def rollout(self, prompts, group_size, generator):
        rollout = super().rollout(prompts, group_size, generator)
        return replace(rollout, prompts=prompts, mask=rollout.mask.double())

    def logprobs(self, rollout):
        return self.evaluate_actions(rollout).logprobs
