"""The grid: what can be run, in one plain dictionary.  Importing it loads no model library."""

from __future__ import annotations

from dataclasses import dataclass

PILLARS = ("mllm", "generation", "unified", "vla")
CELLS = ("rlhf-ppo", "rlhf-grpo", "dpo", "rlvr-ppo", "rlvr-grpo")


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """One way to train one kind of model; `module` holds its `Config` and `build`.

    `module` is imported when the recipe runs: `Config()` has a default for every field, and
    `build(config, options)` returns a `minivisrl.recipes.run.Experiment`.
    """

    module: str
    base: str  # shipped checkpoint that it starts from
    paper: str
    model: str
    metric: str
    minutes: float
    policies: tuple[str, ...]  # what --policy accepts; the first is the default


RECIPES: dict[str, Recipe] = {
    "mllm/rlvr-grpo": Recipe(
        module="minivisrl.recipes.mllm_rlvr_grpo",
        base="vlm",
        paper="DeepSeekMath (GRPO), Visual-RFT",
        model="vlm: LLaVA, 1.3 M parameters, 32 px",
        metric="exact_match_greedy",
        minutes=2,
        policies=("vlm",),
    ),
}
