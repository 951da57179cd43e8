r"""A small LLaVA as a policy: image and question in, words out.

Survey: section 3.1.
Symbols: p -> image tokens followed by the question, a_t -> next word, y -> decoded completion.
Departs: nothing here is pillar-specific beyond building the prompt; sampling and scoring are
    `decoding`'s, so a larger checkpoint of the same class takes the same path.
"""

from __future__ import annotations

import json
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.distributions import Categorical
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from minivisrl import UserError
from minivisrl.decoding import sample_tokens, score_tokens
from minivisrl.policy import (
    ActionStats,
    Policy,
    load_model,
    load_pretrained,
    quiet,
    read_json,
    readable,
)
from minivisrl.rollout import Prompts, Rollout
from minivisrl.worlds.vocabulary import IMAGE, tokenizer

ATTENTION = "eager"  # at this size a quarter faster than sdpa, whose backward in bf16 is slow


class VLMPolicy(Policy):
    """A vision-language model that answers in text.

    Args:
        model: LLaVA, or a model with the same forward and a `vision_config`.
        tokenizer: left-padding tokenizer with an `<image>` token.
        temperature: of sampling and scoring.
        max_tokens: longest completion.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        *,
        temperature: float = 1.0,
        max_tokens: int = 16,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer = model, tokenizer
        self.temperature, self.max_tokens = temperature, max_tokens
        vision = model.config.vision_config
        self.image_tokens = (vision.image_size // vision.patch_size) ** 2

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.model.config.get_text_config().hidden_size

    def inputs(self, prompts: Prompts) -> dict[str, Tensor]:
        """Model inputs: per record the tokens of its image (or frames), then the question.

        `image` is (B, 3, H, W), or (B, frames, 3, H, W), in uint8 or as fractions of 1.

        Raises:
            UserError: a question contains the image token, for which there is no image.
        """
        if any(IMAGE in text for text in prompts["prompt"]):
            raise UserError(f"a prompt contains {IMAGE}; images go into the column `image`")
        image = torch.as_tensor(prompts["image"]).to(self.device)
        frames = image.shape[1] if image.ndim == 5 else 1
        marks = IMAGE * (self.image_tokens * frames)
        batch = self.tokenizer(
            [marks + text for text in prompts["prompt"]], return_tensors="pt", padding=True
        ).to(self.device)
        scale = 255.0 if image.dtype == torch.uint8 else 1.0
        pixels = image.float().div(scale).sub(0.5).div(0.5)
        return {
            "input_ids": batch["input_ids"],
            "attention_mask": batch["attention_mask"],
            "pixel_values": pixels.flatten(0, 1) if image.ndim == 5 else pixels,
        }

    def rollout(self, prompts: Prompts, group_size: int, generator: Generator) -> Rollout:
        """Sample `group_size` completions per prompt; outputs are strings."""
        return self._decode(prompts, group_size, generator)

    def predict(self, prompts: Prompts) -> list[str]:
        """Greedy completions, one a prompt."""
        return list(self._decode(prompts, 1, None).outputs)

    def _decode(self, prompts: Prompts, group_size: int, generator: Generator | None) -> Rollout:
        tokens, logprobs, mask = sample_tokens(
            self.model,
            self.inputs(prompts),
            group_size,
            generator,
            max_tokens=self.max_tokens,
            stop_ids=(self.tokenizer.eos_token_id,),
            pad_id=self.tokenizer.pad_token_id,
            temperature=self.temperature,
        )
        texts = self.tokenizer.batch_decode(tokens, skip_special_tokens=True)
        return Rollout(prompts, {"tokens": tokens}, logprobs, mask, group_size, texts)

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        """Score the tokens of a rollout: categorical log-probs, entropy and values, (N, T)."""
        tokens = rollout.actions["tokens"]  # (N, T)
        inputs = self.inputs(rollout.prompts)
        logits, features = score_tokens(
            self.model, inputs, tokens, rollout.group_size, temperature=self.temperature
        )
        dist = Categorical(logits=logits, validate_args=False)
        return ActionStats(
            logprobs=dist.log_prob(tokens),
            entropy=dist.entropy(),
            values=self.state_values(features) if values else None,
            dist=dist,
        )

    def encode(self, prompts: Prompts, outputs: list[str], generator: Generator) -> Rollout:
        """Given texts as a rollout: their tokens and an end token.  Draws nothing.

        `outputs` has a multiple of B entries: row i * group_size + j answers prompt i.
        """
        ids = self.tokenizer(list(outputs)).input_ids
        ids = [torch.tensor([*row, self.tokenizer.eos_token_id]) for row in ids]
        pad = torch.nn.utils.rnn.pad_sequence
        tokens = pad(ids, batch_first=True, padding_value=self.tokenizer.pad_token_id)  # (N, T)
        mask = pad([torch.ones(len(row)) for row in ids], batch_first=True)  # (N, T)
        tokens, mask = tokens.to(self.device), mask.to(self.device)
        actions, group_size = {"tokens": tokens}, len(outputs) // len(prompts)
        return Rollout(prompts, actions, torch.zeros_like(mask), mask, group_size, list(outputs))

    def save(self, folder: str | Path) -> None:
        """Write model, tokenizer, settings and, if there is one, the value head."""
        quiet()
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        settings = {"temperature": self.temperature, "max_tokens": self.max_tokens}
        (folder / "policy.json").write_text(json.dumps(settings) + "\n")
        if self.value_head is not None:
            save_file(self.value_head.state_dict(), folder / "value_head.safetensors")

    @classmethod
    def load(cls, folder_or_hub_id: str | Path) -> VLMPolicy:
        """Read what `save` wrote, or any checkpoint of the class (folder or hub id).

        Raises:
            UserError: the checkpoint is missing, corrupt or out of reach.
        """
        model = load_model(
            LlavaForConditionalGeneration, folder_or_hub_id, attn_implementation=ATTENTION
        )
        words = load_pretrained(PreTrainedTokenizerFast, folder_or_hub_id, padding_side="left")
        folder = Path(folder_or_hub_id)
        settings, head = folder / "policy.json", folder / "value_head.safetensors"
        with readable(str(folder_or_hub_id)):
            options = read_json(settings) if settings.exists() else {}
            if unknown := set(options) - {"temperature", "max_tokens"}:
                raise ValueError(f"policy.json has unknown settings {sorted(unknown)}")
            policy = cls(model, words, **options)
            if head.exists():
                policy.add_value_head(torch.Generator())
                policy.load_value_head(head)
        return policy


def new_vlm(seed: int = 0, *, width: int = 128, layers: int = 3) -> VLMPolicy:
    """An untrained tiny LLaVA over the shared vocabulary: 32 px, 16 image tokens."""
    words = tokenizer()
    sizes = {
        "hidden_size": width,
        "intermediate_size": 2 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": 4,
    }
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**sizes, image_size=32, patch_size=8),
        text_config=LlamaConfig(
            **sizes,
            num_key_value_heads=4,
            initializer_range=0.06,  # 1 / sqrt(width) scale: the default is for wide models
            vocab_size=len(words),
            max_position_embeddings=512,
            pad_token_id=words.pad_token_id,
            bos_token_id=words.bos_token_id,
            eos_token_id=words.eos_token_id,
        ),
        initializer_range=0.06,
        image_token_id=words.convert_tokens_to_ids(IMAGE),
        image_seq_length=16,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers initialises from the global generator
        model = LlavaForConditionalGeneration(config)
    model.set_attn_implementation(ATTENTION)
    return VLMPolicy(model, words)
