r"""Metrics as rewards: how far one set of pictures is from another, and whether ink is in place.

Survey: sections 3.2.4 and 4.1 (the metric-driven paradigm, reference-based), Eq. (15).
Symbols: M_set -> `frechet_distance`, M_samp -> `layout_iou`, `frechet_shares`.
Departs: FID is defined on the features of a network trained on photographs; here the caller brings
    features (N, D) of our own.  A set has one number, and a policy gradient needs one per sample:
    `frechet_shares` is what a sample adds to its set.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from minivisrl.worlds.scenes import BACKGROUND, Scene, render

INK = 0.15  # a pixel further than this from the background, in its strongest channel, is painted


def moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and unbiased covariance (D, D) of features (N, D), in float64."""
    features = features.double()
    return features.mean(dim=0), torch.cov(features.T).view(features.shape[1], -1)


def _root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a positive semi-definite matrix."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def frechet_distance(first: tuple[Tensor, Tensor], second: tuple[Tensor, Tensor]) -> Tensor:
    r"""Squared distance of the Gaussians with these moments, as FID has it.

    .. math:: |\mu_1 - \mu_2|^2 + \mathrm{tr}\big(\Sigma_1 + \Sigma_2
              - 2 (\Sigma_1^{1/2} \Sigma_2 \Sigma_1^{1/2})^{1/2}\big)

    Args:
        first, second: what `moments` returns.
    """
    (mean, cov), (other_mean, other_cov) = first, second
    root = _root(cov)
    shared = torch.linalg.eigvalsh(root @ other_cov @ root).clamp(min=0).sqrt().sum()
    return (mean - other_mean).square().sum() + cov.trace() + other_cov.trace() - 2 * shared


def frechet_shares(features: Tensor, reference: tuple[Tensor, Tensor]) -> Tensor:
    """(N,) How much further from the reference the set would be without each sample.

    Positive: the sample makes the set look more like the reference.  A sample is judged by its
    company: a perfect picture that is there twice may do harm.

    Args:
        features: (N, D), N of at least 3.
        reference: moments of what the set should look like.
    """
    whole = frechet_distance(moments(features), reference)
    keep = ~torch.eye(len(features), dtype=torch.bool, device=features.device)  # (N, N)
    without = [frechet_distance(moments(features[row]), reference) for row in keep]
    return torch.stack(without) - whole


def painted(images: Tensor) -> Tensor:
    """(N, H, W) bool: pixels of images (N, 3, H, W), uint8 or fractions of 1, that have ink."""
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    return (images.float() / scale - BACKGROUND).abs().amax(dim=1) > INK


def layout_iou(completions: Sequence[Tensor], scene: Sequence[Scene], **_: Any) -> list[float]:
    """Intersection over union of the painted pixels of picture and scene; blind to color.

    A caption names cells, not places within them, so a right picture can score well below 1.  Two
    empty pictures agree: 1.
    """
    shown = painted(torch.stack([torch.as_tensor(image).detach().cpu() for image in completions]))
    truth = painted(render(list(scene), shown.shape[-1]))  # (N, H, W)
    both, either = (x.flatten(1).sum(dim=1) for x in (shown & truth, shown | truth))  # (N,), (N,)
    return torch.where(either > 0, both / either.clamp(min=1), 1.0).tolist()
