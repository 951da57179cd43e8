r"""Drawing as writing: a caption, then one word per patch of the picture.

Survey: sections 2.1 and 3.2.1, Eqs. (1), (2).
Symbols: p -> caption and `<boi>`, a_t -> code of patch t, in reading order, y -> decoded picture.
Departs: the policy chooses among all words of the vocabulary; one that is no code is drawn as code
    0, so a base must have learned that only codes follow `<boi>`.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.distributions import Categorical
from transformers import JanusVQVAE, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from minivisrl.decoding import sample_tokens, score_tokens
from minivisrl.parts import load_part, load_settings, save_parts
from minivisrl.policy import ActionStats, Policy, load_pretrained
from minivisrl.rollout import Prompts, Rollout
from minivisrl.tokenizer import PictureTokenizer, new_picture_tokenizer
from minivisrl.worlds.vocabulary import CODES, tokenizer


class TokenPolicy(Policy):
    """A causal language model over words and picture codes.

    Args:
        model: Llama, or a model with the same forward.
        tokenizer: left-padding, with the words `<code_0>`, `<code_1>`, ... in a row.
        pictures: turns codes into pixels and back; not trained with the policy.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        pictures: PictureTokenizer,
        *,
        temperature: float = 1.0,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        self.pictures = pictures.requires_grad_(False)
        self.first_code = tokenizer.convert_tokens_to_ids(CODES[0])

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.model.config.hidden_size

    def inputs(self, prompts: Prompts) -> dict[str, Tensor]:
        """Model inputs: the caption, then the mark where the picture begins."""
        captions = [f"{caption} <boi>" for caption in prompts["prompt"]]
        batch = self.tokenizer(captions, return_tensors="pt", padding=True).to(self.device)
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def rollout(self, prompts: Prompts, group_size: int, generator: Generator) -> Rollout:
        """Sample `group_size` pictures per prompt; outputs are N images (3, H, W)."""
        return self._decode(prompts, group_size, generator)

    def predict(self, prompts: Prompts) -> list[Tensor]:
        """The greedy picture (3, H, W) of each caption: always the likeliest code."""
        return list(self._decode(prompts, 1, None).outputs)

    def _decode(self, prompts: Prompts, group_size: int, generator: Generator | None) -> Rollout:
        how = {"max_tokens": self.pictures.length, "temperature": self.temperature}
        how |= {"stop_ids": (-1,), "pad_id": 0}  # nothing stops a picture before its end
        inputs = self.inputs(prompts)
        tokens, logprobs, mask = sample_tokens(self.model, inputs, group_size, generator, **how)
        codes = tokens - self.first_code  # (N, T)
        codes = torch.where((codes < 0) | (codes >= self.pictures.size), 0, codes)
        images = list(self.pictures.decode(codes))
        return Rollout(prompts, {"tokens": tokens}, logprobs, mask, group_size, images)

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        """Score the codes of a rollout: categorical log-probs, entropy and values, (N, T)."""
        tokens, inputs = rollout.actions["tokens"], self.inputs(rollout.prompts)  # (N, T)
        logits, features = score_tokens(
            self.model, inputs, tokens, rollout.group_size, temperature=self.temperature
        )
        dist = Categorical(logits=logits, validate_args=False)
        critic = self.state_values(features) if values else None
        return ActionStats(dist.log_prob(tokens), dist.entropy(), critic, dist)

    def encode(
        self, prompts: Prompts, outputs: Sequence[Tensor] | Tensor, generator: Generator
    ) -> Rollout:
        """Given pictures as rollouts: their codes.  Draws nothing.

        `outputs` has a multiple of B entries: row i * group_size + j belongs to prompt i.
        """
        tokens = self.first_code + self.pictures.encode(outputs)  # (N, T)
        mask = torch.ones_like(tokens, dtype=torch.float32)
        size = len(tokens) // len(prompts)
        return Rollout(
            prompts, {"tokens": tokens}, torch.zeros_like(mask), mask, size, list(outputs)
        )

    def logprobs(self, rollout: Rollout) -> Tensor:
        """(N, T) of codes; of pixels, the picture tokenizer's."""
        if "pixels" in rollout.actions:
            return self.pictures.logprobs(rollout)
        return super().logprobs(rollout)

    def save(self, folder: str | Path) -> None:
        """Write model, tokenizer, picture tokenizer, settings and, if any, the value head."""
        self.pictures.settle()
        parts = {"tokenizer": self.tokenizer, "pictures": self.pictures.model}
        save_parts(self, folder, {"temperature": self.temperature}, model=self.model, **parts)

    @classmethod
    def load(cls, folder_or_hub_id: str | Path) -> TokenPolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the checkpoint is missing, corrupt or out of reach.
        """
        where, part = str(folder_or_hub_id), {"subfolder": "tokenizer", "padding_side": "left"}
        model = load_part(LlamaForCausalLM, where, "model")
        pictures = PictureTokenizer(load_part(JanusVQVAE, where, "pictures"))
        policy = cls(model, load_pretrained(PreTrainedTokenizerFast, where, **part), pictures)
        policy.temperature = load_settings(policy, where, lambda temperature=1.0: temperature)
        return policy


def new_tokens(
    seed: int = 0, *, pixels: int = 16, width: int = 128, layers: int = 3
) -> TokenPolicy:
    """An untrained small Llama over the shared vocabulary, and an untrained picture tokenizer."""
    words = tokenizer()
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": 4, "vocab_size": len(words), "max_position_embeddings": 256}
    config = LlamaConfig(**sizes, **ids, initializer_range=0.06)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return TokenPolicy(model, words, new_picture_tokenizer(seed, pixels=pixels))
