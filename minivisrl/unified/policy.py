r"""One causal language model over words and picture codes: it reads pictures and draws them.

Survey: sections 2.1 and 3.3, Eqs. (1), (2).
Symbols: p -> the codes of a picture and a question, or a caption, a_t -> next word or code,
    y -> text or picture.
Departs: both kinds of completion are token rollouts, so sampling and scoring are `decoding`'s. It
    is Emu3's way, one vocabulary and one head; Janus, with an encoder of its own for pictures that
    it reads and a second head for those that it draws, takes four times as long per step here and
    needs its own loops.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Generator, Tensor
from torch.distributions import Categorical
from torch.nn.utils.rnn import pad_sequence
from transformers import JanusVQVAE, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from minivisrl.decoding import sample_tokens, score_tokens
from minivisrl.parts import load_part, load_settings, save_parts
from minivisrl.policy import ActionStats, Policy, load_pretrained
from minivisrl.rollout import Prompts, Rollout
from minivisrl.tokenizer import PictureTokenizer, new_picture_tokenizer
from minivisrl.worlds.vocabulary import CODES, tokenizer

Output = str | Tensor


class UnifiedPolicy(Policy):
    """Reads and draws: a record with an `image` is answered in words, one without gets a picture.

    Args:
        model: Llama, or a model with the same forward.
        tokenizer: left-padding, with the words `<code_0>`, `<code_1>`, ... in a row.
        pictures: turns codes into pixels and back; not trained with the policy.
        max_tokens: longest text; a picture has its own length.
    """

    def __init__(
        self,
        model: LlamaForCausalLM,
        tokenizer: PreTrainedTokenizerFast,
        pictures: PictureTokenizer,
        *,
        temperature: float = 1.0,
        max_tokens: int = 24,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.max_tokens = temperature, max_tokens
        self.pictures = pictures.requires_grad_(False)
        self.first_code = tokenizer.convert_tokens_to_ids(CODES[0])
        self.end_of_text = tokenizer.eos_token_id
        self.end_of_picture = tokenizer.convert_tokens_to_ids("<eoi>")

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.model.config.hidden_size

    @staticmethod
    def reads(prompts: Prompts) -> list[bool]:
        """Which records have an `image` to read; the others are captions to draw."""
        images = prompts.columns.get("image", [None] * len(prompts))
        return [image is not None for image in images]

    def inputs(self, prompts: Prompts) -> dict[str, Tensor]:
        """Model inputs: a picture's codes and what is asked, or a caption and where to draw."""
        reads = self.reads(prompts)
        shown = [image for image in prompts.columns.get("image", []) if image is not None]
        codes = iter(self.pictures.encode(torch.stack(shown)).tolist() if shown else [])
        texts = []
        for read, text in zip(reads, prompts["prompt"], strict=True):
            marks = "".join(CODES[code] for code in next(codes)) if read else ""
            texts.append(f"<boi> {marks} <eoi> {text} <sep>" if read else f"<draw> {text} <boi>")
        batch = self.tokenizer(texts, return_tensors="pt", padding=True).to(self.device)
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    def rollout(self, prompts: Prompts, group_size: int, generator: Generator) -> Rollout:
        """Sample `group_size` completions per prompt; outputs are strings and (3, H, W) images."""
        return self._decode(prompts, group_size, generator)

    def predict(self, prompts: Prompts) -> list[Output]:
        """Greedy completions, one a prompt."""
        return list(self._decode(prompts, 1, None).outputs)

    def _decode(self, prompts: Prompts, group_size: int, generator: Generator | None) -> Rollout:
        reads = self.reads(prompts)
        longest = (self.max_tokens * any(reads), (self.pictures.length + 1) * (not all(reads)))
        how = {"max_tokens": max(longest), "temperature": self.temperature}
        how |= {"stop_ids": (self.end_of_text, self.end_of_picture)}
        how |= {"pad_id": self.tokenizer.pad_token_id}
        inputs = self.inputs(prompts)
        tokens, logprobs, mask = sample_tokens(self.model, inputs, group_size, generator, **how)
        reads = [read for read in reads for _ in range(group_size)]
        return Rollout(
            prompts, {"tokens": tokens}, logprobs, mask, group_size, self._outputs(tokens, reads)
        )

    def _outputs(self, tokens: Tensor, reads: Sequence[bool]) -> list[Output]:
        """Texts and pictures; in a picture a word that is no code is drawn as code 0."""
        drawn = [row for row, read in enumerate(reads) if not read]
        outputs: list[Output] = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        if drawn:
            codes = tokens[drawn, : self.pictures.length] - self.first_code  # (M, at most length)
            codes = torch.where((codes < 0) | (codes >= self.pictures.size), 0, codes)
            short = self.pictures.length - codes.shape[1]
            codes = torch.nn.functional.pad(codes, (0, short))  # (M, length)
            for row, picture in zip(drawn, self.pictures.decode(codes), strict=True):
                outputs[row] = picture
        return outputs

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        """Score the tokens of a rollout: categorical log-probs, entropy and values, (N, T)."""
        tokens, inputs = rollout.actions["tokens"], self.inputs(rollout.prompts)  # (N, T)
        logits, features = score_tokens(
            self.model, inputs, tokens, rollout.group_size, temperature=self.temperature
        )
        dist = Categorical(logits=logits, validate_args=False)
        critic = self.state_values(features) if values else None
        return ActionStats(dist.log_prob(tokens), dist.entropy(), critic, dist)

    def encode(self, prompts: Prompts, outputs: Sequence[Output], generator: Generator) -> Rollout:
        """Given texts and pictures as rollouts: their tokens and an end token.  Draws nothing.

        `outputs` has a multiple of B entries: row i * group_size + j belongs to prompt i.
        """
        drawn = [output for output in outputs if isinstance(output, Tensor)]
        codes = iter(self.first_code + self.pictures.encode(torch.stack(drawn)) if drawn else [])
        rows = []
        for output in outputs:
            if isinstance(output, Tensor):
                ids, end = next(codes).tolist(), self.end_of_picture
            else:
                ids, end = self.tokenizer(output).input_ids, self.end_of_text
            rows.append(torch.tensor([*ids, end], device=self.device))
        pad = self.tokenizer.pad_token_id
        tokens = pad_sequence(rows, batch_first=True, padding_value=pad)  # (N, T)
        ones = [torch.ones(len(row), device=self.device) for row in rows]
        mask, size = pad_sequence(ones, batch_first=True), len(rows) // len(prompts)
        return Rollout(
            prompts, {"tokens": tokens}, torch.zeros_like(mask), mask, size, list(outputs)
        )

    def save(self, folder: str | Path) -> None:
        """Write model, tokenizer, picture tokenizer, settings and, if any, the value head."""
        self.pictures.settle()
        parts = {"model": self.model, "tokenizer": self.tokenizer, "pictures": self.pictures.model}
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        save_parts(self, folder, settings, **parts)

    @classmethod
    def load(cls, folder_or_hub_id: str | Path) -> UnifiedPolicy:
        """Read what `save` wrote.

        Raises:
            UserError: the checkpoint is missing, corrupt or out of reach.
        """
        where, part = str(folder_or_hub_id), {"subfolder": "tokenizer", "padding_side": "left"}
        model = load_part(LlamaForCausalLM, where, "model")
        pictures = PictureTokenizer(load_part(JanusVQVAE, where, "pictures"))
        policy = cls(model, load_pretrained(PreTrainedTokenizerFast, where, **part), pictures)

        def settle(temperature: float = 1.0, max_tokens: int = 24) -> None:
            policy.temperature, policy.max_tokens = temperature, max_tokens

        load_settings(policy, where, settle)
        return policy


def new_unified(
    seed: int = 0,
    *,
    pictures: PictureTokenizer | None = None,
    pixels: int = 16,
    width: int = 128,
    layers: int = 4,
) -> UnifiedPolicy:
    """An untrained small Llama over the shared vocabulary, drawing through `pictures`."""
    words = tokenizer()
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers}
    sizes |= {"num_attention_heads": 4, "vocab_size": len(words), "max_position_embeddings": 256}
    config = LlamaConfig(**sizes, **ids, initializer_range=0.06)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = LlamaForCausalLM(config)
    return UnifiedPolicy(model, words, pictures or new_picture_tokenizer(seed, pixels=pixels))
