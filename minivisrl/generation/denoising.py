r"""What diffusion and flow share: every denoising step is an action, its noise the exploration.

Survey: sections 2.1 and 3.2.1, Eqs. (1), (2).
Symbols: p -> caption, s_t -> (x, level, caption), a_t -> the next x, y -> the image at the end.
Departs: the last denoising step adds no noise, so it is no action and has no column; there is no
    classifier-free guidance, so sampling and scoring use one and the same distribution.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from math import inf
from zlib import crc32

import torch
from torch import Generator, Tensor, nn
from torch.distributions import Independent, Normal
from transformers import PreTrainedTokenizerFast, T5Config, T5EncoderModel

from minivisrl.generation.steps import Reduce, act, reduced
from minivisrl.optimization.update import validate
from minivisrl.policy import ActionStats, Policy
from minivisrl.rollout import Prompts, Rollout
from minivisrl.tokenizer import images_of, pixels_of

Text = tuple[Tensor, Tensor]  # (B, L, D) features of the words, (B, L) mask


@dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How a denoiser acts."""

    steps: int = 10  # K: denoising steps of a rollout, K - 1 actions and a last step without noise
    eval_steps: int = 20  # denoising steps of `predict`
    noise: float = 1.0  # eta of DDIM, or the noise level of a flow's SDE
    scored: int | None = None  # actions of an episode that count, drawn per prompt; None: all
    shared_noise: bool = False  # siblings start from the same noise
    reduce: Reduce = "mean"  # over latents: log-probs, entropy, squared errors
    caption_tokens: int = 20  # captions are padded or cut to this length
    seed: int = 0  # of the noise that `predict` starts from

    def __post_init__(self) -> None:
        counts = dict.fromkeys(["eval_steps", "scored", "caption_tokens"], (1, inf))
        validate(self, counts | {"steps": (2, inf), "noise": (1e-6, inf)})


class DenoisingPolicy(Policy):
    """From noise to image by a transformer that reads a caption.

    Args:
        model: denoiser; the critic reads what goes into its `norm_out`.
        text_encoder: trained with it.
        sampler: may be exchanged at any time; a rollout stores the levels it was sampled at.

    A subclass brings
    `levels(steps)`: the (steps + 1,) levels between denoising steps, from pure noise to none;
    `network(x, level, text)`: what the denoiser says of x (M, C, H, W) at levels (M,);
    `transition(said, x, level, after, noise)`: mean and std of the step between two levels;
    `corrupt(clean, noise, u)`: noisy x, its level, and what the denoiser should say, u in [0, 1).
    """

    def __init__(
        self,
        model: nn.Module,
        text_encoder: T5EncoderModel,
        tokenizer: PreTrainedTokenizerFast,
        sampler: SamplerConfig | None = None,
    ) -> None:
        super().__init__()
        self.model, self.text_encoder, self.tokenizer = model, text_encoder, tokenizer
        self.sampler = sampler or SamplerConfig()

    def to_latents(self, images: Sequence[Tensor] | Tensor) -> Tensor:
        """What is denoised: the pixels themselves, in [-1, 1]."""
        return pixels_of(images, self.device)

    def to_images(self, latents: Tensor) -> Tensor:
        """(N, 3, H, W), fractions of 1."""
        return images_of(latents)

    @property
    def hidden_size(self) -> int:
        """Width of the transformer."""
        return self.model.inner_dim

    def read(self, prompts: Prompts) -> Text:
        """Captions, all of one length: what a caption means must not depend on the batch."""
        fixed = {"padding": "max_length", "padding_side": "right", "truncation": True}
        fixed |= {"max_length": self.sampler.caption_tokens, "return_tensors": "pt"}
        batch = self.tokenizer(list(prompts["prompt"]), **fixed).to(self.device)
        ids, mask = batch["input_ids"], batch["attention_mask"]
        return self.text_encoder(input_ids=ids, attention_mask=mask).last_hidden_state, mask

    def denoise(self, x: Tensor, level: Tensor, text: Text, row: Tensor) -> tuple[Tensor, Tensor]:
        """What the denoiser says of x (M, C, H, W), and the features (M, D) it says it by; fp32.

        Args:
            level, row: (M,), noise level and caption of each entry.
        """
        seen: list[Tensor] = []
        listen = self.model.norm_out.register_forward_pre_hook(lambda _, x: seen.append(x[0]))
        try:
            said = self.network(x, level, (text[0][row], text[1][row]))
        finally:
            listen.remove()
        return said.float(), seen[0].float().mean(dim=1)

    def _randn(self, rows: int, generator: Generator) -> Tensor:
        size = self.model.config.sample_size
        shape = (rows, self.model.config.in_channels, size, size)
        return torch.randn(shape, generator=generator, device=generator.device).to(self.device)

    @torch.no_grad()
    def rollout(self, prompts: Prompts, group_size: int, generator: Generator) -> Rollout:
        """Denoise `group_size` images per prompt; outputs are N images (3, H, W)."""
        cfg, text, count = self.sampler, self.read(prompts), len(prompts)
        row = torch.arange(count, device=self.device).repeat_interleave(group_size)  # (N,)
        x = self._randn(count if cfg.shared_noise else len(row), generator)
        x = x[row] if cfg.shared_noise else x  # (N, C, H, W)
        grid, columns = self.levels(cfg.steps), []
        for now, after in pairwise(grid[:-1].expand(len(row), -1).unbind(dim=1)):
            said, _ = self.denoise(x, now, text, row)
            mean, std = self.transition(said, x, now, after, cfg.noise)
            reached, logprob = act(mean, std, None, generator, cfg.reduce)
            columns.append((x, reached, now, after, logprob))
            x = reached
        said, _ = self.denoise(x, after, text, row)
        images = self.to_images(self.transition(said, x, after, grid[-1], 0.0)[0])
        *actions, logprobs = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
        actions = dict(zip(("x", "next", "level", "level_next"), actions, strict=True))
        order = torch.rand(count, cfg.steps - 1, generator=generator, device=generator.device)
        mask = (order.argsort(dim=1) < (cfg.scored or cfg.steps)).float()  # (B, T)
        return Rollout(
            prompts, actions, logprobs, mask.to(row.device)[row], group_size, list(images)
        )

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        """Score all steps under the mask in one forward; elsewhere log-probs and values are 0.

        A sampled step gets its log-density. An encoded image gets minus the squared error of the
        denoiser, with weight 1 at every level: up to constants, a bound on its log-likelihood.
        `dist` covers all latents jointly, so its KL is in nats per step, whatever `reduce` is.
        """
        actions, reduce = rollout.actions, self.sampler.reduce
        row, column = (rollout.mask != 0).nonzero(as_tuple=True)  # (M,), (M,)
        x, level = actions["x"][row, column], actions["level"][row, column]
        prompt = row // rollout.group_size
        said, features = self.denoise(x, level, self.read(rollout.prompts), prompt)
        if "target" in actions:
            mean, std = said, torch.full_like(said[:, :1, :1, :1], 0.5**0.5)
            logprob = -reduced((said - actions["target"][row, column]).square(), reduce)
        else:
            after, given = actions["level_next"][row, column], actions["next"][row, column]
            mean, std = self.transition(said, x, level, after, self.sampler.noise)
            _, logprob = act(mean, std, given, None, reduce)

        def spread(entries: Tensor, fill: float = 0.0) -> Tensor:  # (M, ...) -> (N, T, ...)
            full = entries.new_full((*rollout.mask.shape, *entries.shape[1:]), fill)
            return full.index_put((row, column), entries)

        dist = Independent(Normal(spread(mean), spread(std, 1.0), validate_args=False), 3)
        return ActionStats(
            logprobs=spread(logprob),
            entropy=dist.entropy() / (dist.event_shape.numel() if reduce == "mean" else 1),
            values=spread(self.state_values(features)) if values else None,
            dist=dist,
        )

    @torch.no_grad()
    def encode(
        self, prompts: Prompts, outputs: Sequence[Tensor] | Tensor, generator: Generator
    ) -> Rollout:
        """Given images as rollouts of one column: one level and one noise per row.

        `outputs` has a multiple of B entries: row i * group_size + j belongs to prompt i.
        """
        clean = self.to_latents(outputs)
        u = torch.rand(len(clean), generator=generator, device=generator.device)  # (N,)
        noise = self._randn(len(clean), generator)
        x, level, target = self.corrupt(clean, noise, u.to(self.device))
        actions = {"x": x[:, None], "level": level[:, None], "target": target[:, None]}
        mask = torch.ones(len(clean), 1, device=self.device)
        group_size = len(clean) // len(prompts)
        return Rollout(prompts, actions, torch.zeros_like(mask), mask, group_size, list(outputs))

    @torch.no_grad()
    def predict(self, prompts: Prompts) -> list[Tensor]:
        """One image (3, H, W) per caption, without noise on the way.

        The noise at the start follows from the caption and `sampler.seed`: a caption always gets
        the same image, whatever the batch.
        """
        text, row = self.read(prompts), torch.arange(len(prompts), device=self.device)
        seeds = [crc32(f"{self.sampler.seed} {caption}".encode()) for caption in prompts["prompt"]]
        x = torch.cat([self._randn(1, Generator().manual_seed(seed)) for seed in seeds])
        for now, after in pairwise(self.levels(self.sampler.eval_steps)):
            said, _ = self.denoise(x, now.expand(len(x)), text, row)
            x, _ = self.transition(said, x, now, after, 0.0)
        return list(self.to_images(x))


def new_text_encoder(words: PreTrainedTokenizerFast, width: int, layers: int) -> T5EncoderModel:
    """An untrained reader of captions over a vocabulary."""
    sizes = {"d_model": width, "d_kv": width // 4, "d_ff": 2 * width, "num_layers": layers}
    ids = {"pad_token_id": words.pad_token_id, "eos_token_id": words.eos_token_id}
    config = T5Config(vocab_size=len(words), num_heads=4, dropout_rate=0.0, **sizes, **ids)
    return T5EncoderModel(config)
