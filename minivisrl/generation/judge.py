r"""A reward model of pictures: a denoiser's trunk that looks at a finished picture and its caption.

Survey: sections 2.2.1 and 3.2.4, Eq. (3).
Symbols: R_phi -> `PictureJudge`, p -> caption, y -> a picture.
Departs: the trunk starts from the base flow, which has learned what captions mean; it reads a
    picture as a state next to the end of denoising. Its score is that of its value head alone.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor
from torch.distributions import Categorical

from minivisrl.generation.flow import FlowPolicy
from minivisrl.policy import ActionStats
from minivisrl.rollout import Prompts, Rollout

LEVEL = 0.02  # sigma that the trunk is told


class PictureJudge(FlowPolicy):
    """Scores pictures and never draws: a rollout has one column, whose value is the score."""

    def scores(self, prompts: Prompts, pixels: Tensor, row: Tensor) -> Tensor:
        """(M,) scores of pixels (M, 3, H, W) in [-1, 1]; `row` (M,) is each one's caption.

        The gradient reaches the pixels.
        """
        level = torch.full((len(pixels),), LEVEL, device=pixels.device)
        return self.state_values(self.denoise(pixels, level, self.read(prompts), row)[1])

    def encode(
        self, prompts: Prompts, outputs: Sequence[Tensor] | Tensor, generator: Generator
    ) -> Rollout:
        """Pictures as rollouts of one column.  Draws nothing."""
        pixels = self.to_latents(outputs)
        ones = torch.ones(len(pixels), 1, device=self.device)
        size = len(pixels) // len(prompts)
        return Rollout(prompts, {"x": pixels}, 0 * ones, ones, size, list(outputs))

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        """The scores as values (N, 1); there is nothing to be likely, so log-probs are 0."""
        rows = torch.arange(len(rollout), device=self.device)
        scores = self.scores(rollout.prompts, rollout.actions["x"], rows // rollout.group_size)
        none = torch.zeros_like(rollout.mask)
        return ActionStats(none, none, scores[:, None], Categorical(logits=none[..., None]))
