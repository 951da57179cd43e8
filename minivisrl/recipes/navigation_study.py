"""Two questions about agents in rooms, answered over seeds from one base and one verifier.

    python -m minivisrl.recipes.navigation_study [--seeds 5] [--few 3] [--out FILE]

What does RL4VLA's comparison say here?  PPO from the base, as in the recipe, against supervised
training of the same base on more demonstrations: one of every level that PPO practises in, by an
expert who does not err, for as many CPU seconds as PPO spends in its steps (making demonstrations
costs nothing).  And what does each published variant add to the plain method that it differs from,
at equal episodes?

Survey: sections 3.4.2 and 3.4.3.
"""

from __future__ import annotations

import json
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from minivisrl import DATA, UserError
from minivisrl.evaluation.statistics import paired_difference
from minivisrl.evaluation.verdicts import verdict
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.recipes.common import record
from minivisrl.recipes.navigation_methods import METHODS, MethodOptions, gauge, train
from minivisrl.recipes.run import write_json
from minivisrl.recipes.telling import tell
from minivisrl.recipes.vla import RLVRPPO, load_policy
from minivisrl.vla.policy import VLAPolicy
from minivisrl.vla.pretraining import DemonstratorConfig, Pupil, cloned, demonstrations

RESULTS = DATA / "results" / "navigation.json"
COMMAND = "python -m minivisrl.recipes.navigation_study"
RL, SFT = "PPO from the base", "SFT on more demonstrations"
CLAIMS = {"execution": "more", "semantics": "more", "appearance": "no difference", "heldout": None}
MARGIN = 0.05  # difference in success that counts as none
PROBE = 10  # steps of SFT after which it is known how many there will be


def as_in_recipe() -> MethodOptions:
    """PPO on as many levels and episodes as vla/rlvr-ppo; half as many levels are measured."""
    recipe = RLVRPPO()
    episodes = recipe.steps * recipe.trainer.batch_size * recipe.trainer.group_size
    task = replace(recipe.task, eval_prompts=256)
    return MethodOptions(name="ppo", episodes=episodes, task=task, trainer=recipe.trainer)


@dataclass(frozen=True, kw_only=True)
class StudyOptions:
    """How often, how long, and where to."""

    seeds: int = 5  # runs of PPO and of SFT, seeds 0, 1, ...
    few: int = 3  # runs of every variant
    out: str = str(RESULTS)  # results file, written anew after every run; what it holds is kept
    ppo: MethodOptions = field(default_factory=as_in_recipe)
    demonstrators: DemonstratorConfig = DemonstratorConfig(stumble=0.0, mishear=0.0)
    sft: SFTConfig = SFTConfig(warmup=20, autocast=True)
    variants: MethodOptions = MethodOptions(name="grpo", episodes=2560)  # what all have in common

    def __post_init__(self) -> None:
        if min(self.seeds, self.few) < 2:
            raise UserError("the study needs seeds >= 2 and few >= 2")


def supervised(
    cfg: MethodOptions, options: StudyOptions, seconds: float
) -> tuple[VLAPolicy, dict[str, float]]:
    """The base goes on as it began, on demonstrations in the levels that PPO practises in.

    The learning rate falls to zero as the seconds run out.
    """
    many = replace(options.demonstrators, demonstrations=cfg.task.train_prompts)
    shown = demonstrations(many, "train", cfg.run.generator(1))
    policy = load_policy(cfg.task, cfg.run)
    pupil = Pupil(policy.model, policy.tokenizer, temperature=policy.temperature)
    draw = partial(cloned, pupil, shown, many.batch_size)
    endless = replace(options.sft, total_steps=10**9)
    trainer, spent = SFTTrainer(pupil, draw, endless, cfg.run.generator(2)), 0.0
    while spent < seconds:
        start = time.process_time()
        trainer.step()
        spent += time.process_time() - start
        if trainer.steps == PROBE:
            total = max(PROBE + 1, int(PROBE * seconds / spent))
            trainer.cfg = replace(options.sft, total_steps=total)
    return pupil, {"episodes": len(shown[1]), "seconds": spent}


def reinforced(cfg: MethodOptions) -> tuple[VLAPolicy, dict[str, float]]:
    """PPO, or any other method."""
    policy, rows, seconds = train(cfg)
    return policy, {"episodes": sum(row.get("episodes", 0) for row in rows), "seconds": seconds}


def compared(
    first: Sequence[float], second: Sequence[float], claim: str | None = None
) -> dict[str, Any]:
    """The difference over seeds in a word, and whether that is what was claimed."""
    word = verdict(first, second, MARGIN)
    told = {"difference": [round(x, 4) for x in paired_difference(first, second)], "verdict": word}
    if claim is None:
        return told
    held = "reproduced" if word == claim else "not reproduced"
    return told | {"claim": claim, "it is": word if word == "inconclusive" else held}


def answers(runs: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """To every question the difference with its interval, the verdict, and what became of a claim.

    RL4VLA's claim is reproduced if all its parts are, and is not if any part is not.
    """

    def of(method: str, split: str) -> list[float]:
        return [r[split] for r in sorted(runs, key=lambda r: r["seed"]) if r["method"] == method]

    gaps = {s: [a - b for a, b in zip(of(RL, s), of(SFT, s), strict=True)] for s in CLAIMS}
    told = {f"PPO or SFT, {s}": compared(of(RL, s), of(SFT, s), c) for s, c in CLAIMS.items()}
    told["PPO ahead by more on execution than on semantics"] = compared(
        gaps["execution"], gaps["semantics"], "more"
    )
    parts = {answer["it is"] for answer in told.values() if "it is" in answer}
    worst = next(w for w in ("not reproduced", "inconclusive", "reproduced") if w in parts)
    told["what RL4VLA reports"] = {"it is": worst}
    for name, rival in [(n, m.rival) for n, m in METHODS.items() if m.rival]:
        told[f"{name} or {rival}"] = compared(of(name, "heldout"), of(rival, "heldout"))
    return told


def earlier(path: Path, settings: dict[str, Any]) -> list[dict[str, Any]]:
    """The runs that a results file holds.

    Raises:
        UserError: they had other settings.
    """
    book = json.loads(path.read_text()) if path.exists() else {"settings": settings, "runs": []}
    if book["settings"] != json.loads(json.dumps(settings)):
        raise UserError(f"{path} holds runs with other settings; choose another --out")
    return book["runs"]


def study(options: StudyOptions) -> dict[str, Any]:
    """Fill the results file; runs that it holds are not run again."""
    path, base = Path(options.out), load_policy(options.ppo.task, options.ppo.run)
    success_of = gauge(base, options.ppo.task)
    settings = {k: v for k, v in asdict(options).items() if k not in ("seeds", "few", "out")}
    book: dict[str, Any] = {"settings": settings, "runs": earlier(path, settings)}
    book["base"] = success_of(base)
    todo = [(seed, name) for seed in range(options.seeds) for name in (RL, SFT)]
    todo += [(seed, name) for seed in range(options.few) for name in METHODS]
    for seed, name in tqdm(todo, disable=None):
        rows = {(row["seed"], row["method"]): row for row in book["runs"]}
        if (seed, name) in rows:
            continue
        ppo = replace(options.ppo, seed=seed)
        if name == SFT:
            policy, facts = supervised(ppo, options, rows[seed, RL]["seconds"])
        elif name == RL:
            policy, facts = reinforced(ppo)
        else:
            policy, facts = reinforced(replace(options.variants, name=name, seed=seed))
        book["runs"].append({"seed": seed, "method": name, **facts, **success_of(policy)})
        write_json(path, book)
    book |= record(path, COMMAND, book["runs"]) | {"answers": answers(book["runs"])}
    write_json(path, book)
    return book


if __name__ == "__main__":
    import tyro

    tell(study(tyro.cli(StudyOptions)))
