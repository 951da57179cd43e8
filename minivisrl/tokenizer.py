r"""Pictures as codes and back, for every policy that draws with tokens.

The network is Janus's own VQ model: a policy over codes and a unified Janus model can share its
weights, and a larger one of that class takes the same path.  Its `decode` puts codes on the unit
sphere and its `encode` does not, so codes are kept there: then nearest by distance is nearest by
angle, and the two agree.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Generator, Tensor, nn
from torch.nn.functional import normalize
from transformers import JanusVQVAE, JanusVQVAEConfig

from minivisrl.rollout import Rollout


def pixels_of(images: Sequence[Tensor] | Tensor, device: torch.device) -> Tensor:
    """(N, 3, H, W) in [-1, 1] from images in uint8 or as fractions of 1."""
    images = images if isinstance(images, Tensor) else torch.stack(list(images))
    scale = 255.0 if images.dtype == torch.uint8 else 1.0
    return images.to(device).float().div(scale).mul(2).sub(1)


def images_of(pixels: Tensor) -> Tensor:
    """(N, 3, H, W) as fractions of 1 from values around [-1, 1]."""
    return pixels.float().add(1).div(2).clamp(0, 1)


class PictureTokenizer(nn.Module):
    """A picture as `length` codes out of `size`, in reading order of its patches."""

    def __init__(self, model: JanusVQVAE) -> None:
        super().__init__()
        self.model = model
        self.size, self.length = model.config.num_embeddings, model.config.num_patches**2

    @property
    def codes(self) -> nn.Parameter:
        """(size, D): a place on the unit sphere for every code."""
        return self.model.quantize.embedding.weight

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return self.codes.device

    def _latents(self, pixels: Tensor) -> Tensor:
        """(N, D, h, w) on the unit sphere, where the codes are."""
        return normalize(self.model.quant_conv(self.model.encoder(pixels)), dim=1)

    @torch.no_grad()
    def settle(self) -> None:
        """Put the codes back on the unit sphere; training does so before every step."""
        self.codes.copy_(normalize(self.codes))

    @torch.no_grad()
    def encode(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """(N, length) codes."""
        self.settle()
        pixels = pixels_of(images, self.device)
        return self.model.encode(pixels).image_tokens.view(len(pixels), -1)

    @torch.no_grad()
    def decode(self, codes: Tensor) -> Tensor:
        """(N, length) -> (N, 3, H, W), fractions of 1."""
        return images_of(self.model.decode(codes))

    def logprobs(self, rollout: Rollout) -> Tensor:
        """(N, 1): minus the squared error of the decoded picture and that of its codes.

        Up to scale and constants, a bound on the log-likelihood of `actions["pixels"]`; the
        gradient passes straight through the codes.
        """
        pixels = rollout.actions["pixels"]
        quantized, error, _ = self.model.quantize(self._latents(pixels))
        decoded = self.model.decoder(self.model.post_quant_conv(quantized)).float()
        return -((decoded - pixels).square().flatten(1).mean(dim=1) + error.float())[:, None]

    @torch.no_grad()
    def restart(self, pixels: Tensor, generator: Generator) -> int:
        """Codes that these pixels do not use move to where latents are; returns their number."""
        latents = self._latents(pixels).movedim(1, -1).flatten(0, -2)  # (N * length, D)
        nearest = (latents @ self.codes.T).argmax(dim=1)
        idle = nearest.bincount(minlength=self.size) == 0  # (size,)
        size = (int(idle.sum()),)
        chosen = torch.randint(len(latents), size, generator=generator, device=generator.device)
        self.codes[idle] = latents[chosen.to(latents.device)]
        return len(chosen)


def new_picture_tokenizer(
    seed: int = 0, *, pixels: int = 16, codes: int = 128, width: int = 32
) -> PictureTokenizer:
    """An untrained tokenizer: one code for every 4 x 4 pixels."""
    sizes = {"num_embeddings": codes, "embed_dim": 16, "num_patches": pixels // 4}
    sizes |= {"base_channels": width, "latent_channels": 2 * width, "num_res_blocks": 1}
    config = JanusVQVAEConfig(**sizes, channel_multiplier=[1, 1, 1])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = JanusVQVAE(config)
        nn.init.normal_(model.quantize.embedding.weight)
    return PictureTokenizer(model)
