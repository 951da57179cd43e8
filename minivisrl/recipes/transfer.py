"""The transfer study: what training on one ability of a unified model does to the other.

    python -m minivisrl.recipes.transfer [--methods NAME ...] [--seeds 5] [--others 3] [--out FILE]

One base that draws captions and reads pictures (describes them, and answers questions about them).
Unified training rewards both; task-specific training rewards one; self-improvement uses what the
model makes itself. Every run reports both abilities, the drift on both kinds of prompt, and what
the cycle (draw, describe, compare) says of the drawings.

Survey: sections 3.3.1, 3.3.2 and 4.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from torch import Generator
from tqdm.auto import tqdm

from minivisrl import DATA, UserError
from minivisrl.evaluation.balance import imbalance, kl_by_kind
from minivisrl.paradigms.offline import OfflineTrainer
from minivisrl.paradigms.online import Collected, OnlineTrainer, act_and_judge
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.policy import frozen
from minivisrl.recipes import unified
from minivisrl.recipes.common import EVALUATION_SEED, offline, online, record
from minivisrl.recipes.run import RunOptions
from minivisrl.rewards.pictures import agreement, composition
from minivisrl.rollout import PreferencePairs, Prompts, Rollout
from minivisrl.unified.cycle import CycleReward, gamed, to_describe
from minivisrl.unified.policy import UnifiedPolicy
from minivisrl.worlds.annotators import best_and_worst

RESULTS = DATA / "results" / "transfer.json"
READ = ("describe", "answer")
BOTH = ("draw", "draw", *READ)  # half of a joint batch is drawn, half is read


@dataclass(frozen=True, kw_only=True)
class TransferOptions:
    """Which methods, how often, and where to."""

    methods: tuple[str, ...] = ()  # names of METHODS; none: all of them
    seeds: int = 5  # runs per method of the matrix, seeds 0, 1, ...
    others: int = 3  # runs per method beside the matrix
    steps: int = 24  # optimiser steps of 256 completions by GRPO
    offline_steps: int = 100  # optimiser steps on pairs, or on pictures of one's own
    out: str = str(RESULTS)  # results file; methods that are not run keep their rows
    task: unified.UnifiedConfig = field(default_factory=lambda: unified.UnifiedConfig(pairs=2048))

    def __post_init__(self) -> None:
        if unknown := set(self.methods) - set(METHODS):
            raise UserError(f"unknown methods {sorted(unknown)}; choose from {', '.join(METHODS)}")
        if min(self.seeds, self.others) < 2 or min(self.steps, self.offline_steps) < 1:
            raise UserError("the study needs seeds >= 2, others >= 2 and steps >= 1")


class InTurn:
    """Act and Judge on one kind of prompts after the other (CoRL): batch t is of kind t mod 2.

    Args:
        kinds: the prompt sets that take turns; the trainer's own prompts are not used.
    """

    def __init__(self, kinds: Sequence[Prompts]) -> None:
        self.kinds, self.turn = kinds, 0

    def __call__(self, policy: Any, prompts: Prompts, *rest: Any) -> Collected:
        self.turn += 1
        return act_and_judge(policy, self.kinds[(self.turn - 1) % len(self.kinds)], *rest)


def grpo(
    kinds: Sequence[str],
    policy: UnifiedPolicy,
    cfg: TransferOptions,
    options: RunOptions,
    reward: Callable | None = None,
) -> OnlineTrainer:
    """GRPO on batches of these kinds, with the verifiers' reward unless another is given."""
    count, dice = cfg.task.train_prompts, options.generator(1)
    prompts = unified.mixed_prompts(kinds, count, "train", dice)
    return online(policy, prompts, reward or unified.blended, unified.RLVRGRPO(), options)


def in_turn(policy: UnifiedPolicy, cfg: TransferOptions, options: RunOptions) -> OnlineTrainer:
    """GRPO on a batch of drawings, then on a batch of readings, and so on."""
    trainer = grpo(("draw",), policy, cfg, options)
    count, dice = cfg.task.train_prompts, options.generator(5)
    trainer.collect = InTurn([trainer.prompts, unified.mixed_prompts(READ, count, "train", dice)])
    return trainer


def control(policy: UnifiedPolicy, cfg: TransferOptions, options: RunOptions) -> OnlineTrainer:
    """Joint batches whose rewards are dealt out to rows at random."""
    return grpo(BOTH, policy, cfg, replace(options, shuffle_rewards=True))


def cycle(policy: UnifiedPolicy, cfg: TransferOptions, options: RunOptions) -> OnlineTrainer:
    """GRPO on drawings; the base, frozen, reads them and is the judge."""
    return grpo(("draw",), policy, cfg, options, CycleReward(frozen(policy)))


def co_trained(policy: UnifiedPolicy, cfg: TransferOptions, options: RunOptions) -> OnlineTrainer:
    """GRPO on drawings; the policy itself reads them, so the judge moves with the painter."""
    return grpo(("draw",), policy, cfg, options, CycleReward(policy))


def drawings(
    policy: UnifiedPolicy, count: int, size: int, generator: Generator
) -> tuple[Prompts, list]:
    """`count` training captions, and `size` drawings of each by the policy, siblings in a row."""
    captions, drawn = unified.prompts_of("draw", count, "train", generator), []
    for start in range(0, count, 256):
        part = captions.rows(range(start, min(start + 256, count)))
        drawn += policy.rollout(part, size, generator).outputs
    return captions, drawn


def by_dpo(policy: UnifiedPolicy, cfg: TransferOptions, options: RunOptions) -> OfflineTrainer:
    """DPO on an annotator's comparisons of drawings (Emu3, VARGPT)."""
    task = replace(cfg.task, train=("draw",))
    pairs = unified.comparisons(policy, task, task.pairs, "train", options.generator(3))
    return offline(policy, pairs, unified.DirectPreference(), options)


def own_pairs(policy: UnifiedPolicy, cfg: TransferOptions, options: RunOptions) -> OfflineTrainer:
    """DPO on pairs of both kinds that the model makes and ranks itself (HermesFlow).

    Of several drawings of a caption the cycle names the best and the worst; of several descriptions
    of its own drawing, the agreement with the caption that it was drawn from does.
    """
    dice, size, half = options.generator(3), cfg.task.candidates, cfg.task.pairs // 2
    captions, drawn = drawings(policy, half, size, dice)
    worth = CycleReward(policy)(drawn, captions.repeat(size)["prompt"])
    parts = [_ranked(captions, drawn, worth, dice)]
    told, shown = [], to_describe(drawn[::size])
    for start in range(0, half, 256):
        part = shown.rows(range(start, min(start + 256, half)))
        told += policy.rollout(part, size, dice).outputs
    worth = agreement(told, captions.repeat(size)["prompt"])
    parts.append(_ranked(shown, told, worth, dice))
    columns = {name: [x for p in parts for x in p.prompts[name]] for name in ("prompt", "image")}
    chosen, rejected = ([y for p in parts for y in getattr(p, s)] for s in ("chosen", "rejected"))
    pairs = PreferencePairs(Prompts(columns), chosen, rejected)
    return offline(policy, pairs, unified.DirectPreference(), options)


def _ranked(
    prompts: Prompts, outputs: list, worth: list[float], generator: Generator
) -> PreferencePairs:
    """Best and worst of every group, where they differ in worth."""
    size = len(outputs) // len(prompts)
    groups = [slice(i * size, (i + 1) * size) for i in range(len(prompts))]
    keep = [i for i, group in enumerate(groups) if max(worth[group]) > min(worth[group])]
    images = prompts.columns.get("image", [None] * len(prompts))
    known = Prompts({"prompt": list(prompts["prompt"]), "image": list(images)}).rows(keep)
    candidates, values = ([x[groups[i]] for i in keep] for x in (outputs, worth))
    return best_and_worst(known, candidates, values, 0.0, generator)


def own_pictures(policy: UnifiedPolicy, cfg: TransferOptions, options: RunOptions) -> SFTTrainer:
    """Learn to describe one's own drawings by the captions that they were drawn from (UniRL)."""
    captions, drawn = drawings(policy, cfg.task.pairs, 1, options.generator(3))
    texts, shown = list(captions["prompt"]), to_describe(drawn)
    known = Prompts(shown.columns | {"answer": texts})

    def draw(generator: Generator, step: int) -> Rollout:
        batch = known.sample(min(64, len(known)), generator)
        return policy.encode(batch, batch["answer"], generator)

    rate = unified.RLVRGRPO().trainer.learning_rate
    sft = SFTConfig(learning_rate=rate, warmup=1, weight_decay=0.0, total_steps=10**9)
    return SFTTrainer(policy, draw, sft, options.generator(2))


MATRIX = ("understanding", "generation", "both, joint", "both, in turn")
METHODS: dict[str, Callable[[UnifiedPolicy, TransferOptions, RunOptions], Any]] = {
    "understanding": partial(grpo, READ),
    "generation": partial(grpo, ("draw",)),
    "both, joint": partial(grpo, BOTH),
    "both, in turn": in_turn,
    "control": control,
    "generation by dpo": by_dpo,
    "own pairs": own_pairs,
    "own pictures": own_pictures,
    "cycle": cycle,
    "cycle, co-trained": co_trained,
}


def measure(policy: UnifiedPolicy, base: UnifiedPolicy, count: int = 512) -> dict[str, float]:
    """Both abilities on held-out prompts, sampled and greedy, drift on both, and the cycle."""
    told = unified.abilities(policy, count=count)
    told |= {f"read{g}": sum(told[k + g] for k in READ) / len(READ) for g in ("", ", greedy")}
    dice = Generator().manual_seed(EVALUATION_SEED)
    asked = {kind: unified.prompts_of(kind, 128, "heldout", dice) for kind in ("draw", "describe")}
    captions = unified.prompts_of("draw", count, "heldout", dice)
    drawn = policy.rollout(captions, 1, dice).outputs
    truth = composition(drawn, captions["scene"])
    for name, reader in (("cycle", base), ("own_cycle", policy)):
        scores = CycleReward(reader)(drawn, captions["prompt"])
        told |= {name: sum(scores) / count, f"{name}_gamed": gamed(scores, truth)}
    told["imbalance"] = imbalance([told["read"]], [told["draw"]])
    return told | kl_by_kind(policy, base, asked)


def study(options: TransferOptions) -> dict[str, Any]:
    """Fill the results file; `seconds` are CPU seconds inside the steps."""
    names, path = options.methods or tuple(METHODS), Path(options.out)
    old = json.loads(path.read_text())["runs"] if path.exists() else []
    runs = [run for run in old if run["method"] not in (*names, "base")]
    start = unified.load_policy(options.task, RunOptions(device="cpu"))
    before = measure(start, start) | {"seconds": 0.0}
    runs = [{"seed": s, "method": "base", **before} for s in range(options.seeds)] + runs
    repeats = {name: options.seeds if name in MATRIX else options.others for name in names}
    todo = [(seed, name) for name in names for seed in range(repeats[name])]
    for seed, name in tqdm(todo, disable=None):
        policy = unified.load_policy(options.task, RunOptions(device="cpu"))
        trainer = METHODS[name](policy, options, RunOptions(seed=seed, device="cpu"))
        clock = time.process_time()
        fresh = isinstance(trainer, OnlineTrainer)  # samples anew at every step
        for _ in range(options.steps if fresh else options.offline_steps):
            trainer.step()
        seconds = time.process_time() - clock
        row = {"seed": seed, "method": name, **measure(policy, start), "seconds": seconds}
        runs.append(row)
        order = ["base", *METHODS]
        runs.sort(key=lambda run: (order.index(run["method"]), run["seed"]))
        book = record(path, "python -m minivisrl.recipes.transfer", _counted(runs))
    return book


def _counted(runs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs of methods that have two seeds or more: an interval needs them."""
    names = [run["method"] for run in runs]
    return [run for run in runs if names.count(run["method"]) > 1]


if __name__ == "__main__":
    import tyro

    for name, row in study(tyro.cli(TransferOptions))["table"].items():
        shown = {key: row[key] for key in ("draw", "read", "cycle", "kl_draw", "kl_describe")}
        print(f"{name:18}", *(f"{k} {v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]" for k, v in shown.items()))
