"""The network of a tiny agent: LLaVA with one image token per patch of a view.

Survey: section 3.4.
"""

from __future__ import annotations

import torch
from transformers import (
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    PreTrainedTokenizerFast,
    SiglipVisionConfig,
)

from minivisrl.worlds.vocabulary import IMAGE


def tiny_llava(
    words: PreTrainedTokenizerFast,
    seed: int,
    *,
    pixels: int,
    patch: int,
    width: int = 64,
    seeing: int = 1,
    acting: int = 3,
) -> LlavaForConditionalGeneration:
    """An untrained LLaVA over a vocabulary.

    Args:
        pixels, patch: a side of a view, and of its patches.
        seeing, acting: layers of the image encoder and of the language model.
    """
    ids = {f"{name}_token_id": getattr(words, f"{name}_token_id") for name in ("pad", "bos", "eos")}
    sizes = {"hidden_size": width, "intermediate_size": 2 * width, "num_attention_heads": 4}
    vision = {"num_hidden_layers": seeing, "image_size": pixels, "patch_size": patch}
    config = LlavaConfig(
        vision_config=SiglipVisionConfig(**sizes, **vision, vision_use_head=False),
        text_config=LlamaConfig(
            **sizes,
            **ids,
            num_hidden_layers=acting,
            num_key_value_heads=4,
            initializer_range=0.06,
            vocab_size=len(words),
            max_position_embeddings=512,
        ),
        initializer_range=0.06,
        image_token_id=words.convert_tokens_to_ids(IMAGE),
        image_seq_length=(pixels // patch) ** 2,
        vision_feature_select_strategy="full",
        vision_feature_layer=-1,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)  # transformers initialises from the global generator
        return LlavaForConditionalGeneration(config)
