r"""A small LLaVA that acts: mission and view in, an action token out, for all rooms at once.

Survey: section 3.4.
Symbols: p -> the mission and the level it is told in, s_t -> the mission, then the image tokens of
    the view, a_t -> an action token `<act_i>`, y -> `Episode`.
Departs: a state is the present view alone, for the whole room is in it; the distribution is over
    the action tokens, not over all words; equal states of a batch are computed once.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor
from torch.distributions import Categorical
from transformers import LlavaForConditionalGeneration, PreTrainedTokenizerFast

from minivisrl import UserError
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
from minivisrl.vla.navigation import WORLD as NAVIGATION
from minivisrl.vla.network import tiny_llava
from minivisrl.vla.world import World, world_named
from minivisrl.worlds.vocabulary import ACTIONS as ACTION_TOKENS
from minivisrl.worlds.vocabulary import IMAGE, tokenizer

ATTENTION = "eager"  # at this size faster than sdpa
CHUNK = 512  # states per forward pass: their activations stay in the processor's cache
KEPT = ("observations", "tokens", "logprobs", "mask")  # of every decision
State = tuple[int, bytes]


class VLAPolicy(Policy):
    """A vision-language model that acts in rooms, or in another world.

    Args:
        model: LLaVA, or a model with the same forward and a `vision_config`.
        tokenizer: left-padding tokenizer with an `<image>` token and action tokens.
        temperature: of sampling and scoring.
        world: what it acts in.
    """

    def __init__(
        self,
        model: LlavaForConditionalGeneration,
        tokenizer: PreTrainedTokenizerFast,
        *,
        temperature: float = 1.0,
        world: World = NAVIGATION,
    ) -> None:
        super().__init__()
        self.model, self.tokenizer, self.temperature = model, tokenizer, temperature
        self.world = world
        vision = model.config.vision_config
        self.image_tokens = (vision.image_size // vision.patch_size) ** 2
        ids = tokenizer.convert_tokens_to_ids(ACTION_TOKENS[: len(world.actions)])
        self.action_ids = torch.tensor(ids)  # (A,)

    @property
    def hidden_size(self) -> int:
        """Width of the language model."""
        return self.model.config.get_text_config().hidden_size

    def inputs(self, prompts: Prompts) -> dict[str, Tensor]:
        """Tokens of the missions, the image's places and `<action>`: (B, P), padded on the left.

        Raises:
            UserError: a mission contains the image token, for which there is no image.
        """
        if any(IMAGE in text for text in prompts["prompt"]):
            raise UserError(f"a mission contains {IMAGE}; what the agent sees is the room's image")
        view = IMAGE * self.image_tokens + "<action>"
        texts = [text + view for text in prompts["prompt"]]
        batch = self.tokenizer(texts, return_tensors="pt", padding=True).to(self.device)
        mask = batch["attention_mask"]
        places = (mask.cumsum(dim=1) - 1).clamp(min=0)
        return {"input_ids": batch["input_ids"], "attention_mask": mask, "position_ids": places}

    def states(self, inputs: dict[str, Tensor], rows: Sequence[int], views: Tensor) -> Tensor:
        """Features (M, I + 1, D) of the image tokens, and of what predicts the action, in M states.

        Args:
            inputs: of the B prompts.
            rows: M numbers of prompts.
            views: (M, 3, H, W), uint8.
        """
        prompt = torch.as_tensor(rows, device=self.device)
        pixels = views.to(self.device).float().div(255.0).sub(0.5).div(0.5)
        parts = [
            self.model.base_model(
                **{name: column[prompt[start : start + CHUNK]] for name, column in inputs.items()},
                pixel_values=pixels[start : start + CHUNK],
                use_cache=False,
            ).last_hidden_state[:, -1 - self.image_tokens :]
            for start in range(0, len(prompt), CHUNK)
        ]
        return torch.cat(parts)

    def distinct_states(self, prompts: Prompts, rows: Sequence[int], views: Tensor) -> Tensor:
        """(M, D) that predict the actions in M states; equal states are computed once."""
        known: dict[State, int] = {}
        states = states_of(rows, views)
        new = enlist(states, known)
        features = self.states(self.inputs(prompts), [rows[i] for i in new], views[new])[:, -1]
        return features[[known[state] for state in states]]

    def action_logits(self, features: Tensor) -> Tensor:
        """(M, D) -> (M, A) in fp32, at the temperature."""
        head = self.model.get_output_embeddings().weight[self.action_ids]  # (A, D)
        return (features @ head.T).float() / self.temperature

    def rollout(self, prompts: Prompts, group_size: int, generator: Generator) -> Rollout:
        """Let `group_size` agents act in every level; outputs are episodes."""
        return self._act(prompts, group_size, generator)

    def predict(self, prompts: Prompts) -> list[Any]:
        """Episodes of always the likeliest action, one a prompt."""
        return list(self._act(prompts, 1, None).outputs)

    @torch.no_grad()
    def _act(self, prompts: Prompts, group_size: int, generator: Generator | None) -> Rollout:
        inputs, levels = self.inputs(prompts), prompts.repeat(group_size)["level"]
        rooms, time = self.world.open(levels), 0
        known: dict[State, int] = {}  # states that were met, by rows of the table of logits
        table = torch.empty(0, len(self.action_ids), device=self.device)
        kept = self._blank(len(levels), max(level.limit for level in levels))
        while len(rows := np.flatnonzero(rooms.running)):
            views = rooms.observe(rows)  # (M, 3, H, W)
            states = states_of((rows // group_size).tolist(), views)
            if new := enlist(states, known):
                features = self.states(inputs, rows[new] // group_size, views[new])[:, -1]
                table = torch.cat([table, self.action_logits(features)])
            logits = table[[known[state] for state in states]]  # (M, A)
            chosen = draw(logits, generator)  # (M,)
            logprobs = logits.log_softmax(dim=1).gather(1, chosen[:, None])[:, 0]
            rooms.step(rows, chosen.tolist())
            told = views, self.action_ids[chosen.cpu()], logprobs.cpu(), torch.ones(len(rows))
            for column, value in zip(kept.values(), told, strict=True):
                column[rows, time] = value
            time += 1
        outputs = rooms.episodes(self.numbers(kept["tokens"]).tolist())
        return self._rollout(prompts, kept, time, outputs)

    def _blank(self, count: int, columns: int) -> dict[str, Tensor]:
        """Observations (N, T, 3, H, W), tokens, log-probs and mask (N, T) of nothing yet."""
        size, side = (count, columns), self.model.config.vision_config.image_size
        views = torch.zeros(*size, 3, side, side, dtype=torch.uint8)
        tokens = torch.full(size, int(self.action_ids[0]))
        return dict(zip(KEPT, (views, tokens, torch.zeros(size), torch.zeros(size)), strict=True))

    def numbers(self, tokens: Tensor) -> Tensor:
        """The actions that tokens (N, T) stand for; 0 for tokens that are none."""
        return (tokens[..., None] == self.action_ids.to(tokens.device)).int().argmax(dim=-1)

    def _rollout(
        self, prompts: Prompts, kept: dict[str, Tensor], columns: int, outputs: list[Any]
    ) -> Rollout:
        views, tokens, logprobs, mask = (kept[k][:, :columns].to(self.device) for k in KEPT)
        actions, size = {"observations": views, "tokens": tokens}, len(outputs) // len(prompts)
        return Rollout(prompts, actions, logprobs, mask, size, outputs)

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        """Score the actions of a rollout: categorical log-probs, entropy and values, (N, T).

        One forward pass over the masked columns; elsewhere the distribution is uniform.
        """
        where = rollout.mask != 0  # (N, T)
        rows = where.nonzero()[:, 0].cpu() // rollout.group_size  # (M,)
        views = rollout.actions["observations"][where]  # (M, 3, H, W)
        features = self.distinct_states(rollout.prompts, rows.tolist(), views)  # (M, D)
        logits = features.new_zeros(
            *where.shape, len(self.action_ids), dtype=torch.float32
        )  # (N, T, A)
        logits[where] = self.action_logits(features)
        dist = Categorical(logits=logits, validate_args=False)
        chosen = self.numbers(rollout.actions["tokens"])  # (N, T)
        critic = None
        if values:
            critic = torch.zeros_like(rollout.mask)  # (N, T)
            critic[where] = self.state_values(features).float()
        return ActionStats(dist.log_prob(chosen), dist.entropy(), critic, dist)

    def encode(self, prompts: Prompts, outputs: Sequence[Any], generator: Generator) -> Rollout:
        """Given episodes as a rollout: they are watched again.  Draws nothing.

        `outputs` has a multiple of B entries: row i * group_size + j belongs to prompt i.
        """
        shown = [episode.frames()[:-1] for episode in outputs]
        columns = max(map(len, shown))
        kept = self._blank(len(outputs), columns)
        for row, (episode, views) in enumerate(zip(outputs, shown, strict=True)):
            actions = torch.tensor(episode.actions[episode.start :][: len(views)], dtype=torch.long)
            kept["observations"][row, : len(views)] = views
            kept["tokens"][row, : len(views)] = self.action_ids[actions]
            kept["mask"][row, : len(views)] = 1.0
        return self._rollout(prompts, kept, columns, list(outputs))

    def save(self, folder: str | Path) -> None:
        """Write model, tokenizer, settings and, if there is one, the value head."""
        quiet()
        folder = Path(folder)
        self.model.save_pretrained(folder)
        self.tokenizer.save_pretrained(folder)
        settings: dict[str, Any] = {"temperature": self.temperature}
        if self.world.name != NAVIGATION.name:
            settings["world"] = self.world.name
        (folder / "policy.json").write_text(json.dumps(settings) + "\n")
        if self.value_head is not None:
            save_file(self.value_head.state_dict(), folder / "value_head.safetensors")

    @classmethod
    def load(cls, folder_or_hub_id: str | Path) -> VLAPolicy:
        """Read what `save` wrote, or any checkpoint of the class (folder or hub id).

        Raises:
            UserError: the checkpoint is missing, corrupt or out of reach.
        """
        where, words = folder_or_hub_id, PreTrainedTokenizerFast
        model = load_model(LlavaForConditionalGeneration, where, attn_implementation=ATTENTION)
        words = load_pretrained(words, where, padding_side="left")
        settings, head = (Path(where) / f for f in ("policy.json", "value_head.safetensors"))
        with readable(str(where)):
            options = read_json(settings) if settings.exists() else {}
            if unknown := set(options) - {"temperature", "world"}:
                raise ValueError(f"policy.json has unknown settings {sorted(unknown)}")
            options["world"] = world_named(options.get("world", NAVIGATION.name))
            policy = cls(model, words, **options)
            if head.exists():
                policy.load_value_head(head)
        return policy


def states_of(rows: Sequence[int], views: Tensor) -> list[State]:
    """What tells M states apart: the number of the prompt, and the pixels."""
    pixels = (view.tobytes() for view in views.cpu().numpy())
    return list(zip(rows, pixels, strict=True))


def enlist(states: Sequence[State], known: dict[State, int]) -> list[int]:
    """Number the states that are not yet known; returns where each is met first."""
    new = []
    for place, state in enumerate(states):
        if state not in known:
            known[state] = len(known)
            new.append(place)
    return new


def draw(logits: Tensor, generator: Generator | None) -> Tensor:
    """(M, A) -> (M,): an action for every state; the likeliest if there is no generator."""
    if generator is None:
        return logits.argmax(dim=1)
    shares = logits.softmax(dim=1).to(generator.device)
    return torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)


def new_vla(seed: int = 0, *, world: World = NAVIGATION, **sizes: int) -> VLAPolicy:
    """An untrained agent over the shared vocabulary; `sizes` are those of `tiny_llava`."""
    words = tokenizer()
    model = tiny_llava(words, seed, pixels=world.pixels, patch=world.patch, **sizes)
    model.set_attn_implementation(ATTENTION)
    return VLAPolicy(model, words, world=world)
