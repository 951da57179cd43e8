"""What one GRPO step costs: ours, TRL's and the floor, on the same LLaVA, prompts and lengths.

Ratios only, and all of them within one process: contestants take turns, the fastest of several
turns counts, and it is the processor's time that is counted, so that a busy machine does not
matter. One thread. The model is untrained and thus hardly ever stops: every row has all its tokens.
"""

from __future__ import annotations

import sys
import time
import warnings
from collections.abc import Callable
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Generator
from transformers import DynamicCache, LlavaForConditionalGeneration

from minivisrl.mllm.policy import VLMPolicy, new_vlm
from minivisrl.optimization import GRPO, GRPOConfig
from minivisrl.paradigms.online import OnlineConfig, OnlineTrainer
from minivisrl.rewards import exact_match
from minivisrl.rollout import Prompts
from minivisrl.worlds.questions import question_prompts

PROMPTS, GROUP_SIZE, TOKENS, LEARNING_RATE = 8, 8, 12, 1e-4


def prompts(count: int = PROMPTS) -> Prompts:
    """Questions on rendered scenes, the same for every contestant."""
    return question_prompts(count, ("total", "difference"), "train", Generator().manual_seed(0))


def ours(group_size: int = GROUP_SIZE, count: int = PROMPTS) -> OnlineTrainer:
    """The library's trainer as the recipe uses it, without the KL that TRL leaves out too."""
    policy = new_vlm(0)
    policy.max_tokens = TOKENS
    cfg = OnlineConfig(batch_size=count, group_size=group_size, learning_rate=LEARNING_RATE)
    optimization, generator = GRPO(GRPOConfig(kl_coef=0.0)), Generator().manual_seed(0)
    return OnlineTrainer(policy, prompts(count), exact_match, optimization, cfg, generator)


class Floor:
    """A step in bare torch: encode each prompt once, decode, one forward and backward, AdamW.

    No text, reward, statistics or clipping of the gradient norm; all rows are as long as allowed.
    """

    def __init__(self) -> None:
        policy = new_vlm(0)
        self.model, self.inputs = policy.model, policy.inputs(prompts())
        if bool(self.inputs["attention_mask"].all()):
            del self.inputs["attention_mask"]
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0
        )
        self.generator = Generator().manual_seed(0)

    def later(self, tokens: torch.Tensor, cache: DynamicCache, done: int) -> torch.Tensor:
        """Features of tokens that follow the prompt and `done` tokens more."""
        inputs = {}
        if (mask := self.inputs.get("attention_mask")) is not None:
            mask = mask.repeat_interleave(GROUP_SIZE, dim=0)  # (N, P)
            ones = mask.new_ones(len(mask), done + tokens.shape[1])
            columns = torch.arange(done, done + tokens.shape[1])
            inputs["attention_mask"] = torch.cat([mask, ones], dim=1)
            inputs["position_ids"] = mask.sum(dim=1, keepdim=True) + columns
        decoder = self.model.model.language_model
        return decoder(tokens, cache=cache, use_cache=True, **inputs).last_hidden_state

    def encode(self) -> tuple[torch.Tensor, DynamicCache]:
        """Last feature (N, D) and cache of the prompts, repeated for the group, with gradients."""
        inputs = dict(self.inputs)
        if (mask := inputs.get("attention_mask")) is not None:
            inputs["position_ids"] = (mask.cumsum(dim=1) - 1).clamp(min=0)
        cache = DynamicCache()
        output = self.model.model(**inputs, cache=cache, use_cache=True)
        cache.batch_repeat_interleave(GROUP_SIZE)
        return output.last_hidden_state[:, -1].repeat_interleave(GROUP_SIZE, dim=0), cache

    @torch.no_grad()
    def decode(self, features: torch.Tensor, prefix: DynamicCache) -> tuple[torch.Tensor, ...]:
        """Tokens and their log-probs, (N, T) each."""
        cache, tokens, logprobs = DynamicCache(), [], []
        for index, layer in enumerate(prefix.layers):
            cache.update(layer.keys.detach(), layer.values.detach(), index)
        for done in range(TOKENS):
            probs = self.model.lm_head(features).softmax(dim=-1)  # (N, V)
            level = torch.rand(len(probs), 1, generator=self.generator)  # multinomial is slower
            token = torch.searchsorted(probs.cumsum(dim=-1), level).clamp(max=probs.shape[1] - 1)
            tokens.append(token)  # (N, 1)
            logprobs.append(probs.gather(1, token).log())
            if done + 1 < TOKENS:
                features = self.later(token, cache, done)[:, -1]
        return torch.cat(tokens, dim=1), torch.cat(logprobs, dim=1)

    def step(self) -> None:
        """Rewards cost nothing here: advantages are drawn."""
        first, cache = self.encode()  # (N, D)
        tokens, old = self.decode(first, cache)
        advantages = torch.randn(len(tokens), 1, generator=self.generator)
        features = torch.cat([first[:, None], self.later(tokens[:, :-1], cache, 0)], dim=1)
        logits = self.model.lm_head(features)  # (N, T, V)
        logprobs = logits.gather(2, tokens[:, :, None]).squeeze(2) - logits.logsumexp(dim=2)
        ratio = (logprobs - old).exp()  # (N, T)
        clipped = ratio.clamp(0.8, 1.2)
        loss = -torch.minimum(ratio * advantages, clipped * advantages).mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()


def fastest(contestants: dict[str, Callable[[], Any]], rounds: int) -> dict[str, float]:
    """Seconds of the fastest turn of each; they take turns, after one round that does not count."""
    seconds = {name: float("inf") for name in contestants}
    for turn in range(rounds + 1):
        for name, step in contestants.items():
            start = time.process_time()
            step()
            if turn:
                seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def ours_over_floor(rounds: int = 10) -> float:
    """How much our step costs, counted in floors."""
    trainer, floor = ours(), Floor()
    seconds = fastest({"ours": trainer.step, "floor": floor.step}, rounds)
    return seconds["ours"] / seconds["floor"]


def group_16_over_2(rounds: int = 3) -> float:
    """Eight times the rows, the same prompts: 32 of them, lest fixed costs hide the rows."""
    large, small = ours(16, 32), ours(2, 32)
    seconds = fastest({"large": large.step, "small": small.step}, rounds)
    return seconds["large"] / seconds["small"]


TEMPLATE = (
    "{% for message in messages %}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>{% else %}{{ part['text'] }}{% endif %}"
    "{% endfor %}{% endfor %}"
)


def processor_of(policy: VLMPolicy) -> Any:
    """Our tokenizer and pictures as they are, in the processor that TRL needs (no torchvision)."""
    from transformers import CLIPImageProcessorPil, LlavaProcessor

    images = CLIPImageProcessorPil(
        do_resize=False, do_center_crop=False, image_mean=[0.5] * 3, image_std=[0.5] * 3
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=policy.tokenizer,
        patch_size=8,
        vision_feature_select_strategy="full",
        num_additional_image_tokens=0,
        image_token="<image>",
        chat_template=TEMPLATE,
    )


def trl_trainer(folder: Path, group_size: int, steps: int, callback: Any) -> Any:
    """TRL's trainer on the same model and prompts: all rows in one forward, one update."""
    warnings.simplefilter("ignore", FutureWarning)
    import trl
    from datasets import Dataset
    from PIL import Image

    policy, chosen = new_vlm(0), prompts()
    processor = processor_of(policy)
    policy.model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    model = LlavaForConditionalGeneration.from_pretrained(
        folder / "model", attn_implementation="eager"
    )
    arguments = trl.GRPOConfig(
        output_dir=str(folder / "out"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        disable_tqdm=True,
        logging_steps=1,
        max_steps=steps,
        per_device_train_batch_size=PROMPTS * group_size,
        num_generations=group_size,
        max_completion_length=TOKENS,
        gradient_checkpointing=False,  # on by default; it would only slow TRL down
        learning_rate=LEARNING_RATE,
        loss_type="grpo",
        beta=0.0,
    )
    rows = {
        "prompt": [[{"role": "user", "content": text}] for text in chosen["prompt"]],
        "image": [Image.fromarray(image.permute(1, 2, 0).numpy()) for image in chosen["image"]],
        "answer": list(chosen["answer"]),
    }
    return trl.GRPOTrainer(
        model=model,
        reward_funcs=exact_match,
        args=arguments,
        train_dataset=Dataset.from_dict(rows),
        processing_class=processor,
        callbacks=[callback],
    )


def trl_over_ours(group_size: int, rounds: int = 4) -> float:
    """How much TRL's step costs, counted in our steps; ours run between TRL's.

    Raises:
        ValueError: the contestants did not generate (nearly) the same number of tokens.
    """
    from transformers import TrainerCallback, logging

    logging.set_verbosity_error()
    logging.disable_progress_bar()
    trainer, times, lengths = ours(group_size), {"trl": [], "ours": []}, []

    class Turns(TrainerCallback):
        """A step of TRL's is over: ours is next."""

        def on_step_begin(self, *_: Any, **__: Any) -> None:
            self.start = time.process_time()

        def on_step_end(self, *_: Any, **__: Any) -> None:
            middle = time.process_time()
            lengths.append(trainer.step()["completion_length"])
            times["trl"].append(middle - self.start)
            times["ours"].append(time.process_time() - middle)

    with TemporaryDirectory() as folder:
        theirs = trl_trainer(Path(folder), group_size, rounds + 1, Turns())
        with redirect_stdout(StringIO()):  # it prints a row per step
            theirs.train()
    logged = [row for row in theirs.state.log_history if "completions/mean_length" in row]
    lengths += [row["completions/mean_length"] for row in logged]
    if len(lengths) != 2 * (rounds + 1) or min(lengths) < 0.95 * TOKENS:
        raise ValueError(f"lengths differ, so the comparison is unfair: {lengths}")
    fast = {name: min(seconds[1:]) for name, seconds in times.items()}
    return fast["trl"] / fast["ours"]


CONTESTS: dict[str, Callable[[], float]] = {
    "trl / ours, group 8": lambda: trl_over_ours(8),
    "trl / ours, group 16": lambda: trl_over_ours(16),
    "ours / floor": ours_over_floor,
    "group 16 / group 2": group_16_over_2,
}
BOUNDS = {  # at least, at most
    "trl / ours, group 8": (2.5, None),
    "trl / ours, group 16": (3.0, None),
    "ours / floor": (None, 1.5),
    "group 16 / group 2": (None, 5.0),
}


def within(name: str, ratio: float, bounds: dict[str, tuple] = BOUNDS) -> bool:
    """Whether a ratio keeps its bound."""
    low, high = bounds[name]
    return (low is None or ratio >= low) and (high is None or ratio <= high)


def measure(
    name: str,
    contests: dict[str, Callable[[], float]] = CONTESTS,
    bounds: dict[str, tuple] = BOUNDS,
) -> float:
    """Run a contest on one thread and print its ratio."""
    torch.set_num_threads(1)
    ratio = contests[name]()
    low, high = bounds[name]
    bound = f"at least {low}" if low else f"at most {high}"
    print(f"{name}: {ratio:.2f} ({bound})", file=sys.stdout, flush=True)
    return ratio
