r"""The end of an episode once more, with gradients: what a change of weights does to the pixels.

Survey: section 3.2.1.
Symbols: a_t = mean(s_t) + std * noise -> the steps of a rollout, y -> the image at the end.
Departs: the survey's methods draw actions and score them; here the noise is kept and the sampler is
    differentiated (ReFL, DRaFT, AlignProp), which needs a reward that pixels can be pushed along.
"""

from __future__ import annotations

import torch
from torch import Tensor

from minivisrl.generation.denoising import DenoisingPolicy
from minivisrl.rollout import Rollout


def differentiable_tail(policy: DenoisingPolicy, rollout: Rollout, last: int) -> Tensor:
    """The images of a rollout (N, 3, H, W), with gradients through its last `last` steps.

    Each step repeats the stored one with its own noise, so under the weights that sampled the
    rollout the images are the same.  The step without noise at the end counts as one.  Pixels
    beyond black and white are cut off, and no gradient passes there.

    Raises:
        ValueError: the episodes do not have `last` steps.
    """
    actions, count = rollout.actions, rollout.mask.shape[1]  # T actions, T + 1 steps
    if not 1 <= last <= count + 1:
        raise ValueError(f"last={last} must be between 1 and the {count + 1} steps of an episode")
    row = torch.arange(len(rollout), device=policy.device) // rollout.group_size  # (N,)
    text, first = policy.read(rollout.prompts), count + 1 - last
    x = actions["x"][:, first] if first < count else actions["next"][:, -1]  # (N, C, H, W)
    for t in range(first, count):
        level, after = actions["level"][:, t], actions["level_next"][:, t]
        said, _ = policy.denoise(x, level, text, row)
        mean, _ = policy.transition(said, x, level, after, policy.sampler.noise)
        drawn = actions["next"][:, t] - mean.detach()  # std * noise, if the weights are the same
        x = mean + drawn
    level, end = actions["level_next"][:, -1], policy.levels(count + 1)[-1]
    said, _ = policy.denoise(x, level, text, row)
    return policy.to_images(policy.transition(said, x, level, end, 0.0)[0])
