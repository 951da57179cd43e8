r"""A diffusion pipeline as a policy: DDIM steps with noise are its actions.

Survey: sections 2.1 and 3.2.1, Eq. (2).
Symbols: a_t -> x at the next timestep, s_t -> (x, timestep, caption).
Departs: as `denoising` and `steps` say; a level is a timestep of the pipeline's scheduler.

The pipeline is PixArt's, with a transformer that denoises pixels: of the small denoisers that read
text it is the fastest, a U-Net takes four times as long. A larger checkpoint, with a VAE, is loaded
in the same way, and then its latents are denoised.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from diffusers import AutoencoderKL, DDIMScheduler, PixArtSigmaPipeline, PixArtTransformer2DModel
from torch import Tensor
from transformers import T5EncoderModel

from minivisrl import UserError
from minivisrl.generation.denoising import DenoisingPolicy, SamplerConfig, Text, new_text_encoder
from minivisrl.generation.steps import ddim_transition
from minivisrl.parts import load_part, load_settings, save_parts
from minivisrl.policy import load_pretrained, read_json, readable
from minivisrl.tokenizer import images_of, pixels_of
from minivisrl.worlds.vocabulary import tokenizer


class DiffusionPolicy(DenoisingPolicy):
    """Draws by DDIM with `sampler.noise` as eta.

    Args:
        scheduler: any with `alphas_cumprod`, of a denoiser that predicts noise or velocity (v).
        vae: None where the transformer denoises pixels; never trained.
    """

    def __init__(
        self,
        model: PixArtTransformer2DModel,
        text_encoder: T5EncoderModel,
        tokenizer: Any,
        scheduler: Any,
        vae: AutoencoderKL | None = None,
        sampler: SamplerConfig | None = None,
    ) -> None:
        super().__init__(model, text_encoder, tokenizer, sampler)
        if (kind := scheduler.config.prediction_type) not in ("epsilon", "v_prediction"):
            raise UserError(f"the pipeline predicts {kind!r}; use 'epsilon' or 'v_prediction'")
        self.says_noise = kind == "epsilon"
        self.scheduler, self.vae = scheduler, vae.requires_grad_(False) if vae else None
        final = getattr(scheduler, "final_alpha_cumprod", torch.tensor(1.0))
        bars = torch.cat([scheduler.alphas_cumprod, final.view(1)])  # level -1 is without noise
        self.register_buffer("alpha_bars", bars, persistent=False)

    @property
    def pipeline(self) -> PixArtSigmaPipeline:
        """The diffusers pipeline around these very weights."""
        parts = {"tokenizer": self.tokenizer, "text_encoder": self.text_encoder, "vae": self.vae}
        return PixArtSigmaPipeline(**parts, transformer=self.model, scheduler=self.scheduler)

    def levels(self, steps: int) -> Tensor:
        """Timesteps of the scheduler, then -1."""
        self.scheduler.set_timesteps(steps)
        return torch.cat([self.scheduler.timesteps, torch.tensor([-1])]).to(self.device)

    def network(self, x: Tensor, level: Tensor, text: Text) -> Tensor:
        """Noise or velocity; a second half of channels, where there is one, is a variance."""
        told = {"encoder_hidden_states": text[0], "encoder_attention_mask": text[1]}
        none = {"resolution": None, "aspect_ratio": None}
        said = self.model(x, timestep=level, added_cond_kwargs=none, **told).sample
        return said[:, : x.shape[1]]

    def transition(
        self, said: Tensor, x: Tensor, level: Tensor, after: Tensor, noise: float
    ) -> tuple[Tensor, Tensor]:
        """A DDIM step with eta = `noise`."""
        now, then = self.alpha_bars[level], self.alpha_bars[after]
        if not self.says_noise:
            rows = now.view(-1, 1, 1, 1)
            said = rows.sqrt() * said + (1 - rows).sqrt() * x
        return ddim_transition(said, x, now, then, noise)

    def corrupt(self, clean: Tensor, noise: Tensor, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Noise at a timestep drawn uniformly; the denoiser should say it, or the velocity."""
        level = (u * (len(self.alpha_bars) - 1)).long()  # (N,)
        bar = self.alpha_bars[level][:, None, None, None]
        signal, spread = bar.sqrt(), (1 - bar).sqrt()
        said = noise if self.says_noise else signal * noise - spread * clean
        return signal * clean + spread * noise, level, said

    def to_latents(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """Pixels in [-1, 1], or the VAE's mean."""
        pixels = pixels_of(images, self.device)
        if self.vae is None:
            return pixels
        return self.vae.encode(pixels).latent_dist.mean * self.vae.config.scaling_factor

    def to_images(self, latents: Tensor) -> Tensor:
        """(N, 3, H, W), fractions of 1."""
        if self.vae is not None:
            latents = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        return images_of(latents)

    def save(self, folder: str | Path) -> None:
        """Write the pipeline, the sampler's settings and, if there is one, the value head."""
        save_parts(self, folder, asdict(self.sampler))
        self.pipeline.save_pretrained(folder)

    @classmethod
    def load(cls, folder_or_hub_id: str | Path) -> DiffusionPolicy:
        """Read what `save` wrote, or any PixArt pipeline (folder or hub id).

        Raises:
            UserError: the checkpoint is missing, corrupt or out of reach.
        """
        where, folder = str(folder_or_hub_id), Path(folder_or_hub_id)
        networks = {"transformer": PixArtTransformer2DModel, "text_encoder": T5EncoderModel}
        parts = {name: load_part(kind, where, name) for name, kind in networks.items()}
        with readable(where):
            listed = read_json(folder / "model_index.json") if folder.is_dir() else {}
        parts |= {"vae": None} if listed.get("vae") == [None, None] else {}
        whole = load_pretrained(PixArtSigmaPipeline, where, use_safetensors=True, **parts)
        named = whole.components
        policy = cls(named.pop("transformer"), **named)
        policy.sampler = load_settings(policy, where, SamplerConfig)
        return policy


def new_diffusion(
    seed: int = 0, *, pixels: int = 16, width: int = 128, layers: int = 4
) -> DiffusionPolicy:
    """An untrained tiny PixArt over the shared vocabulary, on pixels in patches of 4 x 4."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        sizes = {"num_layers": layers, "num_attention_heads": 4, "attention_head_dim": width // 4}
        sizes |= {"sample_size": pixels, "patch_size": 4, "in_channels": 3, "out_channels": 3}
        sizes |= {"cross_attention_dim": width, "caption_channels": width, "norm_num_groups": 1}
        model = PixArtTransformer2DModel(**sizes)
        reader = new_text_encoder(tokenizer(), width, min(layers, 2))
    betas = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}
    kind = {"prediction_type": "v_prediction", "timestep_spacing": "trailing"}
    scheduler = DDIMScheduler(clip_sample=False, **betas, **kind)
    return DiffusionPolicy(model, reader, tokenizer(), scheduler)
