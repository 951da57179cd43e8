r"""Token sampling and scoring in which every prompt is computed once per group.

Survey: section 2.1, Eqs. (1), (2).
Symbols: a_t -> `tokens[:, t]`, log pi(a_t | s_t) -> `logprobs[:, t]`.
Departs: probabilities are those at `temperature`, in sampling and in scoring alike.

The B prompts (image encoder included) go through the model once; their key-value cache is repeated
for the G completions of each, and only completion tokens are computed N = B * G times.  Gradients
flow through the repeated cache, so scoring is exact, not an approximation.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Generator, Tensor
from transformers import Cache, DynamicCache, PreTrainedModel


@dataclass
class Prefix:
    """Prompts as the model remembers them, repeated for the group."""

    features: Tensor  # (N, D), last hidden state of the prompt: it predicts the first token
    cache: Cache  # keys and values of the P prompt columns, N rows
    mask: Tensor | None  # (N, P), or None where no prompt is padded
    lengths: Tensor  # (N,), prompt tokens without padding


def encode_prompts(model: PreTrainedModel, inputs: dict[str, Tensor], group_size: int) -> Prefix:
    """Run the prompts through the model once and repeat what it remembers.

    Args:
        model: a causal language model, or a vision-language model around one.
        inputs: `input_ids` (B, P) and `attention_mask` (B, P), padded on the left, and whatever
            else the model's forward takes (`pixel_values`).
    """
    mask = inputs["attention_mask"]  # (B, P)
    lengths = mask.sum(dim=1)
    padded = bool((mask == 0).any())
    inputs = {name: tensor for name, tensor in inputs.items() if name != "attention_mask"}
    if padded:
        inputs["attention_mask"] = mask
        inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)  # (B, P)
    cache = DynamicCache(config=model.config.get_text_config())
    output = model.base_model(**inputs, cache=cache, use_cache=True)
    cache.batch_repeat_interleave(group_size)
    return Prefix(
        features=output.last_hidden_state[:, -1].repeat_interleave(group_size, dim=0),  # (N, D)
        cache=cache,
        mask=mask.repeat_interleave(group_size, dim=0) if padded else None,  # (N, P)
        lengths=lengths.repeat_interleave(group_size),  # (N,)
    )


def _advance(model: PreTrainedModel, prefix: Prefix, tokens: Tensor, done: int) -> Tensor:
    """Features (N, t, D) of `tokens` (N, t), which follow `done` earlier completion tokens."""
    columns = torch.arange(done, done + tokens.shape[1], device=tokens.device)
    inputs = {"position_ids": prefix.lengths[:, None] + columns}  # (N, t)
    if prefix.mask is not None:
        ones = prefix.mask.new_ones(len(tokens), done + tokens.shape[1])
        inputs["attention_mask"] = torch.cat([prefix.mask, ones], dim=1)  # (N, P + done + t)
    decoder = getattr(model.base_model, "language_model", model.base_model)
    output = decoder(tokens, cache=prefix.cache, use_cache=True, **inputs)
    return output.last_hidden_state


def _draw(logits: Tensor, generator: Generator | None) -> Tensor:
    """(N, V) -> (N,): one token a row by inverting the cumulative distribution; greedy if None."""
    if generator is None:
        return logits.argmax(dim=-1)
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)  # (N, V)
    uniform = torch.rand(len(logits), 1, generator=generator, device=generator.device)
    level = uniform.to(logits.device) * cumulative[:, -1:]  # (N, 1)
    tokens = torch.searchsorted(cumulative, level, right=True).squeeze(1)  # (N,)
    return tokens.clamp(max=logits.shape[1] - 1)


@torch.no_grad()
def sample_tokens(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    group_size: int,
    generator: Generator | None,
    *,
    max_tokens: int,
    stop_ids: tuple[int, ...],
    pad_id: int,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Sample completions with a key-value cache; greedy decoding if `generator` is None.

    Returns:
        tokens (N, T), logprobs (N, T), mask (N, T): mask is 1 up to and including the first stop
        token; after it come `pad_id` and zeros.  T is the longest completion, at most `max_tokens`.
    """
    prefix = encode_prompts(model, inputs, group_size)
    head, features = model.get_output_embeddings(), prefix.features
    stops = torch.tensor(stop_ids, device=features.device)
    alive = torch.ones(len(features), dtype=torch.bool, device=features.device)
    columns = []
    for step in range(max_tokens):
        logits = head(features).float() / temperature  # (N, V)
        token = torch.where(alive, _draw(logits, generator), pad_id)  # (N,)
        logprob = logits.log_softmax(dim=-1).gather(1, token[:, None]).squeeze(1)  # (N,)
        columns.append((token, torch.where(alive, logprob, 0.0), alive.float()))
        alive = alive & ~torch.isin(token, stops)
        if step + 1 == max_tokens or not alive.any():
            break
        features = _advance(model, prefix, token[:, None], step)[:, 0]
    tokens, logprobs, mask = (torch.stack(column, dim=1) for column in zip(*columns, strict=True))
    return tokens, logprobs, mask


def score_tokens(
    model: PreTrainedModel,
    inputs: dict[str, Tensor],
    tokens: Tensor,
    group_size: int,
    *,
    temperature: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Score given completions with gradients; padding on the right needs no mask (causality).

    Returns:
        logits (N, T, V) in fp32 at `temperature`, and features (N, T, D) that predict each token.
    """
    prefix = encode_prompts(model, inputs, group_size)
    features = prefix.features[:, None]  # (N, 1, D)
    if tokens.shape[1] > 1:
        later = _advance(model, prefix, tokens[:, :-1], 0)  # (N, T - 1, D)
        features = torch.cat([features, later], dim=1)  # (N, T, D)
    return model.get_output_embeddings()(features).float() / temperature, features
