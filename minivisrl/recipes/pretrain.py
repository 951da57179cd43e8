"""Base checkpoints: how each shipped model was made, seeded and resumable."""

from __future__ import annotations

import json
import time
from dataclasses import asdict, dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from minivisrl import DATA, UserError
from minivisrl.fit import fit, load_checkpoint
from minivisrl.policy import params_sha256, quiet

# name -> module with Config, build, measure, card; with HALF = True the weights are
# stored in 16 bits, and measured after rounding
CHECKPOINTS = {
    "vlm": "minivisrl.recipes.pretrain_vlm",
    "vlm_reward": "minivisrl.recipes.pretrain_reward",
    "diffusion": "minivisrl.recipes.pretrain_diffusion",
    "flow": "minivisrl.recipes.pretrain_flow",
    "tokens": "minivisrl.recipes.pretrain_tokens",
    "picture_reward": "minivisrl.recipes.pretrain_picture_reward",
    "unified": "minivisrl.recipes.pretrain_unified",
    "unified_reward": "minivisrl.recipes.pretrain_unified_reward",
    "vla": "minivisrl.recipes.pretrain_vla",
    "vla_reward": "minivisrl.recipes.pretrain_vla_reward",
    "manipulation": "minivisrl.recipes.pretrain_manipulation",
}


@dataclass(frozen=True, kw_only=True)
class PretrainOptions:
    """What every base checkpoint understands."""

    seed: int = 0  # of weights and data
    out: str | None = None  # folder for checkpoint and card; default runs/pretrain-NAME
    resume: bool = False  # go on from the checkpoint in --out
    install: bool = False  # also replace the shipped checkpoint in data/checkpoints


def _module(name: str) -> Any:
    if name not in CHECKPOINTS:
        raise UserError(f"unknown checkpoint {name!r}; choose one of {', '.join(CHECKPOINTS)}")
    return import_module(CHECKPOINTS[name])


def config_of(name: str) -> Any:
    """The default configuration of a checkpoint's training."""
    return _module(name).Config()


def pretrain(name: str, config: Any, options: PretrainOptions) -> tuple[Path, str]:
    """Train a base checkpoint; returns its folder and the text of its card.

    Raises:
        UserError: an unknown name, or a folder that cannot be used.
    """
    quiet()
    module, start = _module(name), time.perf_counter()
    if config.steps < 1:
        raise UserError(f"steps={config.steps} is not allowed: choose 1 or more")
    out = Path(options.out or Path("runs") / f"pretrain-{name}")
    if not options.resume and out.is_dir() and any(out.iterdir()):
        raise UserError(f"{out} is not empty; add --resume, or choose another --out")
    trainer = module.build(config, options.seed)
    record = {"pretrain": name, "seed": options.seed, **asdict(config)}
    fit(trainer, config.steps, out, options.resume, checkpoint_every=50, config=record)
    minutes, half = load_checkpoint(out)[1]["seconds"] / 60, getattr(module, "HALF", False)
    if half:
        for parameter in trainer.policy.parameters():
            parameter.data = parameter.data.half().float()
    facts = {
        "command": f"minivisrl pretrain {name} --seed {options.seed}",
        "steps": config.steps,
        "threads": torch.get_num_threads(),
        "minutes": round(minutes, 1),
        "minutes_in_all": round((time.perf_counter() - start) / 60, 1),
        "params_sha256": params_sha256(trainer.policy),
        "metrics": module.measure(trainer.policy),
        "config": record,
    }
    text = module.card(facts)
    folders = [out / name, *([DATA / "checkpoints" / name] if options.install else [])]
    for folder in folders:
        folder.mkdir(parents=True, exist_ok=True)
        trainer.policy.save(folder)
        settle(folder, half)
        (folder / "README.md").write_text(text)
        (folder / "card.json").write_text(json.dumps(facts, indent=1) + "\n")
    return folders[-1], text


def settle(folder: Path, half: bool) -> None:
    """Make saved files fit to be shipped: weights in 16 bits if `half`, no path of this machine."""
    for path in folder.rglob("*.safetensors") if half else ():
        tensors = {
            name: t.half() if t.is_floating_point() else t for name, t in load_file(path).items()
        }
        save_file(tensors, path, metadata={"format": "pt"})
    for path in folder.rglob("*config.json"):
        told = json.loads(path.read_text())
        if told.pop("_name_or_path", None):
            path.write_text(json.dumps(told, indent=2) + "\n")
