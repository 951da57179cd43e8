"""The grid: what can be run, in one plain dictionary.  Importing it loads no model library."""

from __future__ import annotations

from dataclasses import dataclass

PILLARS = ("mllm", "generation", "unified", "vla")
CELLS = ("rlhf-ppo", "rlhf-grpo", "dpo", "rlvr-ppo", "rlvr-grpo")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train one kind of model.

    `module` is imported when the recipe runs: its class `config` has a default for every field, and
    its function `build(config, options)` returns a `minivisrl.recipes.run.Experiment`.
    """

    module: str
    config: str
    build: str
    bases: tuple[str, ...]  # shipped checkpoints: what it starts from, and a reward model
    paper: str
    model: str
    metric: str
    minutes: float
    policies: tuple[str, ...]  # what --policy accepts; the first is the default


# What the gold metrics are called.
DESCRIBED, COUNTED = "truth_and_completeness_sampled", "exact_match_greedy"
SHOWN, DRAWN = "composition_sampled", "exact_composition_sampled"
TRUTH = "share_of_objects_right_sampled"
DONE = "success_sampled"

MLLM = {
    "module": "minivisrl.recipes.mllm",
    "model": "vlm: LLaVA, 1.3 M parameters, 32 px",
    "policies": ("vlm",),
    "minutes": 2,
}
GENERATION = {
    "module": "minivisrl.recipes.generation",
    "model": "flow: SD3, diffusion: PixArt, autoregressive: Llama; 1-3 M parameters, 16 px",
    "policies": ("flow", "diffusion", "autoregressive"),
    "minutes": 2,
}
UNIFIED = {
    "module": "minivisrl.recipes.unified",
    "model": "unified: Llama over words and picture codes, 1.1 M parameters, 16 px",
    "policies": ("unified",),
    "minutes": 2,
}
VLA = {
    "module": "minivisrl.recipes.vla",
    "model": "vla: LLaVA with action tokens, 0.3 M parameters, 40 px",
    "metric": DONE,
    "policies": ("vla",),
    "minutes": 3,
}
TABLES = VLA | {
    "module": "minivisrl.recipes.manipulation",
    "model": "manipulation: LLaVA with action tokens, 0.3 M parameters, 60 px",
    "bases": ("manipulation",),
    "policies": ("manipulation",),
    "build": "rlvr",
}

RECIPES: dict[str, Recipe] = {
    "mllm/rlhf-ppo": Recipe(
        **MLLM,
        config="RLHFPPO",
        build="rlhf",
        bases=("vlm", "vlm_reward"),
        paper="InstructGPT, LLaVA-RLHF",
        metric=DESCRIBED,
    ),
    "mllm/rlhf-grpo": Recipe(
        **MLLM,
        config="RLHFGRPO",
        build="rlhf",
        bases=("vlm", "vlm_reward"),
        paper="Skywork-VL Reward with GRPO",
        metric=DESCRIBED,
    ),
    "mllm/dpo": Recipe(
        **MLLM,
        config="DirectPreference",
        build="dpo",
        bases=("vlm",),
        paper="DPO, RLAIF-V",
        metric=DESCRIBED,
    ),
    "mllm/rlvr-ppo": Recipe(
        **MLLM,
        config="RLVRPPO",
        build="rlvr",
        bases=("vlm",),
        paper="PPO, RL4VLM",
        metric=COUNTED,
    ),
    "mllm/rlvr-grpo": Recipe(
        **MLLM,
        config="RLVRGRPO",
        build="rlvr",
        bases=("vlm",),
        paper="DeepSeekMath (GRPO), Visual-RFT",
        metric=COUNTED,
    ),
    "generation/rlhf-ppo": Recipe(
        **GENERATION,
        config="RLHFPPO",
        build="rlhf",
        bases=("flow", "picture_reward"),
        paper="ImageReward, with PPO and a critic",
        metric=SHOWN,
    ),
    "generation/rlhf-grpo": Recipe(
        **GENERATION,
        config="RLHFGRPO",
        build="rlhf",
        bases=("flow", "picture_reward"),
        paper="DanceGRPO (learned reward)",
        metric=SHOWN,
    ),
    "generation/dpo": Recipe(
        **GENERATION,
        config="DirectPreference",
        build="dpo",
        bases=("flow",),
        paper="Diffusion-DPO",
        metric=SHOWN,
    ),
    "generation/rlvr-ppo": Recipe(
        **GENERATION,
        config="RLVRPPO",
        build="rlvr",
        bases=("flow",),
        paper="DDPO (with a critic)",
        metric=DRAWN,
    ),
    "generation/rlvr-grpo": Recipe(
        **GENERATION,
        config="RLVRGRPO",
        build="rlvr",
        bases=("flow",),
        paper="Flow-GRPO",
        metric=DRAWN,
    ),
    "unified/rlhf-ppo": Recipe(
        **UNIFIED,
        config="RLHFPPO",
        build="rlhf",
        bases=("unified", "unified_reward"),
        paper="InstructGPT's chain, on image tokens",
        metric=TRUTH,
    ),
    "unified/rlhf-grpo": Recipe(
        **UNIFIED,
        config="RLHFGRPO",
        build="rlhf",
        bases=("unified", "unified_reward"),
        paper="X-Omni",
        metric=TRUTH,
    ),
    "unified/dpo": Recipe(
        **UNIFIED,
        config="DirectPreference",
        build="dpo",
        bases=("unified",),
        paper="Emu3, VARGPT",
        metric=TRUTH,
    ),
    "unified/rlvr-ppo": Recipe(
        **UNIFIED,
        config="RLVRPPO",
        build="rlvr",
        bases=("unified",),
        paper="PPO on answers",
        metric="exact_match_sampled",
    ),
    "unified/rlvr-grpo": Recipe(
        **UNIFIED,
        config="RLVRGRPO",
        build="rlvr",
        bases=("unified",),
        paper="CoRL (co-reinforcement)",
        metric=TRUTH,
    ),
    "vla/rlhf-ppo": Recipe(
        **VLA,
        config="RLHFPPO",
        build="rlhf",
        bases=("vla", "vla_reward"),
        paper="Christiano et al. (segments), with PPO",
    ),
    "vla/rlhf-grpo": Recipe(
        **VLA,
        config="RLHFGRPO",
        build="rlhf",
        bases=("vla", "vla_reward"),
        paper="Christiano et al. (segments), with GRPO",
    ),
    "vla/dpo": Recipe(
        **VLA,
        config="DirectPreference",
        build="dpo",
        bases=("vla",),
        paper="GRAPE (trajectory preferences)",
    ),
    "vla/rlvr-ppo": Recipe(
        **VLA,
        config="RLVRPPO",
        build="rlvr",
        bases=("vla",),
        paper="FLaRe, RL4VLA (PPO)",
    ),
    "vla/rlvr-grpo": Recipe(
        **VLA,
        config="RLVRGRPO",
        build="rlvr",
        bases=("vla",),
        paper="VLN-R1, TGRPO",
    ),
    # Beside the twenty cells: the same two recipes in a second world.
    "vla/rlvr-ppo-manipulation": Recipe(**TABLES, config="RLVRPPO", paper="VLA-RL (PPO)"),
    "vla/rlvr-grpo-manipulation": Recipe(**TABLES, config="RLVRGRPO", paper="RIPT-VLA"),
}
