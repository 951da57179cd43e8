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


def _mllm(config: str, build: str, paper: str, metric: str, minutes: float) -> Recipe:
    return Recipe(
        module="minivisrl.recipes.mllm",
        config=config,
        build=build,
        bases=("vlm", "vlm_reward") if build == "rlhf" else ("vlm",),
        paper=paper,
        model="vlm: LLaVA, 1.3 M parameters, 32 px",
        metric=metric,
        minutes=minutes,
        policies=("vlm",),
    )


DESCRIBED = "truth_and_completeness_sampled"
COUNTED = "exact_match_greedy"
RECIPES: dict[str, Recipe] = {
    "mllm/rlhf-ppo": _mllm("RLHFPPO", "rlhf", "InstructGPT, LLaVA-RLHF", DESCRIBED, 2),
    "mllm/rlhf-grpo": _mllm("RLHFGRPO", "rlhf", "Skywork-VL Reward with GRPO", DESCRIBED, 2),
    "mllm/dpo": _mllm("DirectPreference", "dpo", "DPO, RLAIF-V", DESCRIBED, 2),
    "mllm/rlvr-ppo": _mllm("RLVRPPO", "rlvr", "PPO, RL4VLM", COUNTED, 2),
    "mllm/rlvr-grpo": _mllm("RLVRGRPO", "rlvr", "DeepSeekMath (GRPO), Visual-RFT", COUNTED, 2),
}
