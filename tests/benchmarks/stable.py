"""Stable-Baselines3's PPO on our rooms, with our network: what `vla_contest` compares with.

The observation is the room's image and the tokens of the mission; features are computed by our
agent's own `states`, logits by its own head, so that the network is the same to the last weight.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium.spaces import Box, Dict, Discrete
from stable_baselines3 import PPO
from stable_baselines3.common.logger import Logger
from stable_baselines3.common.policies import MultiInputActorCriticPolicy
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from stable_baselines3.common.vec_env import DummyVecEnv
from torch import Tensor, nn

from minivisrl.optimization import PPOConfig
from minivisrl.paradigms.online import OnlineConfig
from minivisrl.rollout import Prompts
from minivisrl.vla.levels import Level
from minivisrl.vla.navigation import ACTIONS, PIXELS, Room
from minivisrl.vla.policy import VLAPolicy


class Walk(gymnasium.Env):
    """One room after another; success is rewarded, and running out of time is an end like others.

    Args:
        levels: an endless supply, and what is told of each.
    """

    def __init__(self, levels: Iterator[tuple[Level, np.ndarray]], words: int) -> None:
        self.levels, self.action_space = levels, Discrete(len(ACTIONS))
        image = Box(0, 255, (3, PIXELS, PIXELS), np.uint8)
        self.observation_space = Dict(image=image, mission=Box(0, 2**16, (words,), np.int64))

    def told(self, image: np.ndarray) -> dict[str, np.ndarray]:
        return {"image": image.transpose(2, 0, 1), "mission": self.mission}

    def reset(self, **options: Any) -> tuple[dict[str, np.ndarray], dict[str, Any]]:
        super().reset(**options)
        level, self.mission = next(self.levels)
        self.room = Room(level)
        return self.told(self.room.reset()[0]["image"]), {}

    def step(self, action: int) -> tuple[dict[str, np.ndarray], float, bool, bool, dict[str, Any]]:
        seen = self.room.step(int(action))[0]["image"]
        return self.told(seen), float(self.room.success), self.room.ended, False, {}


def inputs_of(tokens: Tensor, padding: int) -> dict[str, Tensor]:
    """What our agent's `inputs` makes of missions, from their tokens (B, P)."""
    mask = (tokens != padding).long()
    places = (mask.cumsum(dim=1) - 1).clamp(min=0)
    return {"input_ids": tokens, "attention_mask": mask, "position_ids": places}


class Trunk(BaseFeaturesExtractor):
    """Our agent up to the features that predict an action."""

    def __init__(self, space: Dict, agent: VLAPolicy) -> None:
        super().__init__(space, agent.hidden_size)
        self.agent = agent

    def forward(self, seen: dict[str, Tensor]) -> Tensor:
        tokens = seen["mission"].long()  # (B, P)
        inputs = inputs_of(tokens, self.agent.tokenizer.pad_token_id)
        return self.agent.states(inputs, range(len(tokens)), seen["image"])[:, -1]  # (B, D)


class Head(nn.Module):
    """Our agent's logits; it has no weights of its own."""

    def __init__(self, agent: VLAPolicy) -> None:
        super().__init__()
        self.logits = agent.action_logits

    def forward(self, features: Tensor) -> Tensor:
        return self.logits(features)


class SamePolicy(MultiInputActorCriticPolicy):
    """Features, logits and values as in our agent with its value head."""

    def _build(self, lr_schedule: Any) -> None:
        super()._build(lr_schedule)
        self.action_net = Head(self.features_extractor.agent)
        rate = lr_schedule(1)
        self.optimizer = self.optimizer_class(self.parameters(), lr=rate, **self.optimizer_kwargs)


def stable_ppo(
    agent: VLAPolicy,
    prompts: Prompts,
    environments: int,
    length: int,
    trainer: OnlineConfig,
    optimization: PPOConfig,
) -> PPO:
    """Their PPO with our constants: every step of `learn` is one batch of environments * length."""
    tokens = agent.inputs(prompts)["input_ids"].numpy()
    dice = np.random.default_rng(0)

    def endless() -> Iterator[tuple[Level, np.ndarray]]:
        while True:
            for row in dice.permutation(len(prompts)):
                yield prompts["level"][row], tokens[row]

    levels, cfg, batch = endless(), optimization, environments * length
    made = PPO(
        SamePolicy,
        DummyVecEnv([lambda: Walk(levels, tokens.shape[1])] * environments),
        learning_rate=trainer.learning_rate,
        n_steps=length,
        batch_size=batch // cfg.minibatches,
        n_epochs=cfg.update_epochs,
        gamma=cfg.gamma,
        gae_lambda=cfg.gae_lambda,
        clip_range=cfg.clip_eps,
        clip_range_vf=cfg.value_clip_eps,
        vf_coef=cfg.value_coef / 2,  # our loss of the critic is half a squared error
        ent_coef=cfg.entropy_coef,
        max_grad_norm=trainer.max_grad_norm,
        policy_kwargs={
            "features_extractor_class": Trunk,
            "features_extractor_kwargs": {"agent": agent},
            "net_arch": [],
            "ortho_init": False,
            "normalize_images": False,  # our agent does it
            "optimizer_class": torch.optim.AdamW,
            "optimizer_kwargs": {"weight_decay": trainer.weight_decay},
        },
        seed=0,
        device="cpu",
    )
    made.set_logger(Logger(folder=None, output_formats=[]))
    return made
