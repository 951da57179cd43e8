r"""A flow as a policy: its ODE becomes an SDE with the same marginals, so that it explores.

Survey: sections 2.1 and 3.2.1, Eq. (2).
Symbols: a_t -> x at the next sigma, s_t -> (x, sigma, caption).
Departs: as `denoising` and `steps` say; a level is a sigma, from 1 to 0 in equal steps.

`rollout` takes `sampler.steps` steps of the SDE and `predict` `sampler.eval_steps` of the ODE.
"""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import torch
from diffusers import SD3Transformer2DModel
from torch import Tensor
from transformers import PreTrainedTokenizerFast, T5EncoderModel

from minivisrl.generation.denoising import DenoisingPolicy, SamplerConfig, Text, new_text_encoder
from minivisrl.generation.steps import sde_transition
from minivisrl.parts import load_part, load_settings, save_parts
from minivisrl.policy import load_pretrained
from minivisrl.worlds.vocabulary import tokenizer


class FlowPolicy(DenoisingPolicy):
    """Draws by a rectified flow; `sampler.noise` is the noise level of its SDE."""

    def levels(self, steps: int) -> Tensor:
        """1, 1 - 1 / steps, ..., 0."""
        return torch.linspace(1, 0, steps + 1, device=self.device)

    def network(self, x: Tensor, level: Tensor, text: Text) -> Tensor:
        """The velocity at x, noise minus image."""
        words, mask = text[0] * text[1][..., None], text[1].sum(dim=1, keepdim=True)
        pooled = words.sum(dim=1) / mask.clamp(min=1)  # (M, D)
        told = {"encoder_hidden_states": words, "pooled_projections": pooled}
        return self.model(x, timestep=1000 * level, **told).sample

    def transition(
        self, said: Tensor, x: Tensor, level: Tensor, after: Tensor, noise: float
    ) -> tuple[Tensor, Tensor]:
        """An Euler step of the SDE, or of the ODE where `noise` is 0."""
        return sde_transition(said, x, level, after, noise)

    def corrupt(self, clean: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A point on the line from image to noise, sigma in (0, 1]; the denoiser says its slope."""
        level = 1 - u
        sigma = level[:, None, None, None]
        return (1 - sigma) * clean + sigma * noise, level, noise - clean

    def save(self, folder: str | Path) -> None:
        """Write networks, tokenizer, settings and, if there is one, the value head."""
        parts = {"text_encoder": self.text_encoder, "tokenizer": self.tokenizer}
        save_parts(self, folder, asdict(self.sampler), transformer=self.model, **parts)

    @classmethod
    def load(cls, folder_or_hub_id: str | Path) -> FlowPolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the checkpoint is missing, corrupt or out of reach.
        """
        where = str(folder_or_hub_id)
        model = load_part(SD3Transformer2DModel, where, "transformer")
        reader = load_part(T5EncoderModel, where, "text_encoder")
        words = load_pretrained(PreTrainedTokenizerFast, where, subfolder="tokenizer")
        policy = cls(model, reader, words)
        policy.sampler = load_settings(policy, where, SamplerConfig)
        return policy


def new_flow(seed: int = 0, *, pixels: int = 16, width: int = 128, layers: int = 4) -> FlowPolicy:
    """An untrained tiny SD3 transformer over the shared vocabulary, in patches of 4 x 4 pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"num_layers": layers, "num_attention_heads": 4, "attention_head_dim": width // 4}
        sizes |= {"sample_size": pixels, "patch_size": 4, "in_channels": 3, "out_channels": 3}
        sizes |= {"joint_attention_dim": width, "caption_projection_dim": width}
        sizes |= {"pooled_projection_dim": width, "pos_embed_max_size": pixels // 4}
        model = SD3Transformer2DModel(**sizes)
        reader = new_text_encoder(tokenizer(), width, min(layers, 2))
    return FlowPolicy(model, reader, tokenizer(), SamplerConfig(noise=0.7))
