"""Tiny policies for tests, and what the plain Hugging Face forward says about their rollouts."""

from __future__ import annotations

import torch
from torch import Generator, Tensor

from minivisrl.mllm.policy import VLMPolicy, new_vlm
from minivisrl.rollout import Prompts

RAGGED = ["red ?", "how many red things are there ?", "", "is there a cyan cross left of it ?"]
EVEN = ["red ?", "blue ?", "cyan ?"]


def seeded(seed: int = 0) -> Generator:
    """A fresh generator."""
    return Generator().manual_seed(seed)


def sharp_vlm(seed: int = 0, *, layers: int = 2, max_tokens: int = 6) -> VLMPolicy:
    """Width 32, weights scaled up: at initialisation all tokens and positions look alike."""
    policy = new_vlm(seed, width=32, layers=layers)
    policy.max_tokens = max_tokens
    with torch.no_grad():
        for parameter in policy.model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(0.25 / parameter.std())
    return policy.eval()


def prompts_of(texts: list[str] = RAGGED, seed: int = 0) -> Prompts:
    """Questions with random images."""
    size = (len(texts), 3, 32, 32)
    image = torch.randint(256, size, generator=seeded(seed), dtype=torch.uint8)
    return Prompts({"image": image, "prompt": texts, "answer": ["1"] * len(texts)})


def full_forward(
    policy: VLMPolicy, prompts: Prompts, tokens: Tensor, group_size: int
) -> tuple[Tensor, Tensor]:
    """Logits (N, T, V) and features (N, T, D) at each completion token, nothing shared or cached.

    Every row is written out (image, question, completion), padded on the right, and goes through
    the model whole.
    """
    words, image_id = policy.tokenizer, policy.model.config.image_token_id
    asked = [[image_id] * 16 + words(text).input_ids for text in prompts["prompt"]]
    asked = [row for row in asked for _ in range(group_size)]
    rows = [ids + told for ids, told in zip(asked, tokens.tolist(), strict=True)]
    longest = max(map(len, rows))
    pixels = (prompts["image"].double() / 127.5 - 1).to(policy.model.dtype)
    output = policy.model(
        input_ids=torch.tensor([row + [0] * (longest - len(row)) for row in rows]),
        attention_mask=torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows]),
        pixel_values=pixels.repeat_interleave(group_size, dim=0),
        output_hidden_states=True,
    )
    columns = range(tokens.shape[1])
    places = torch.tensor([[len(ids) - 1 + t for t in columns] for ids in asked])  # (N, T)
    row = torch.arange(len(rows))[:, None]
    return output.logits[row, places], output.hidden_states[-1][row, places]
