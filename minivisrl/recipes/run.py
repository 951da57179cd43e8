"""Run one recipe: evaluate, train, evaluate again, and write down what happened."""

from __future__ import annotations

import importlib.util
import json
import resource
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from minivisrl import DATA, UserError
from minivisrl.fit import fit, load_checkpoint
from minivisrl.policy import Policy, params_sha256, quiet
from minivisrl.recipes import RECIPES, Recipe


@dataclass(frozen=True, kw_only=True)
class RunOptions:
    """What every recipe understands."""

    seed: int = 0  # of every generator of the run
    out: str | None = None  # folder of the run; default runs/PILLAR-CELL-seedS
    resume: bool = False  # go on from the checkpoint in --out
    device: str = "auto"  # auto, cpu or cuda
    checkpoint: str | None = None  # base model: a folder or a hub id; default: the shipped one
    policy: str | None = None  # kind of policy, where a recipe offers several
    reward: str | None = None  # FILE.py:FUNCTION, a reward of your own in place of the recipe's
    shuffle_rewards: bool = False  # the control: rewards permuted over rows

    def __post_init__(self) -> None:
        if not 0 <= self.seed < 2**40:
            raise UserError(f"seed={self.seed} must be between 0 and {2**40 - 1}")
        if self.device not in ("auto", "cpu", "cuda"):
            raise UserError(f"device={self.device!r} is unknown; choose auto, cpu or cuda")
        if self.device == "cuda" and not torch.cuda.is_available():
            raise UserError("device='cuda': this machine has no CUDA GPU; use auto or cpu")

    def torch_device(self) -> torch.device:
        """The device that `auto` stands for."""
        automatic = "cuda" if torch.cuda.is_available() else "cpu"
        return torch.device(automatic if self.device == "auto" else self.device)

    def base(self, name: str) -> str | Path:
        """The base checkpoint: `--checkpoint`, or the shipped one."""
        return self.checkpoint or DATA / "checkpoints" / name

    def generator(self, stream: int) -> torch.Generator:
        """A generator of its own for each use, so that one use never shifts another."""
        return torch.Generator().manual_seed(1000 * self.seed + stream)


@dataclass
class Experiment:
    """What a recipe builds: a trainer, how to measure it, and what to show of it.

    `evaluate(policy)` returns the gold metric on `heldout` and on every out-of-distribution split,
    `others(policy)` whatever else is worth knowing before and after, on held-out prompts;
    `show(policy)` returns images (N, 3, H, W) and one caption each, the same prompts every time.
    """

    trainer: Any
    evaluate: Callable[[Policy], dict[str, float]]
    show: Callable[[Policy], tuple[torch.Tensor, list[str]]]
    monitor: Callable[[Policy], dict[str, float]] | None = None
    others: Callable[[Policy], dict[str, float]] = lambda policy: {}


@dataclass
class RunResult:
    """A finished run: its record, its rows, and what was shown before and after."""

    folder: Path | None
    result: dict[str, Any]
    rows: list[dict[str, Any]]
    shown: dict[str, tuple[torch.Tensor, list[str]]] = field(default_factory=dict)


def find_recipe(name: str) -> Recipe:
    """The recipe of that name.

    Raises:
        UserError: there is none.
    """
    if name not in RECIPES:
        raise UserError(f"unknown recipe {name!r}; choose one of {', '.join(RECIPES)}")
    return RECIPES[name]


def default_config(name: str) -> Any:
    """The recipe's configuration with its defaults."""
    recipe = find_recipe(name)
    return getattr(import_module(recipe.module), recipe.config)()


def load_reward(spec: str) -> Callable:
    """The function FUNCTION of the Python file FILE.py, from `FILE.py:FUNCTION`."""
    path, _, name = spec.rpartition(":")
    if not Path(path).is_file():
        raise UserError(f"reward {spec!r}: no such file; write FILE.py:FUNCTION")
    found = importlib.util.spec_from_file_location(Path(path).stem, path)
    if found is None:
        raise UserError(f"reward {spec!r}: {path} is not a Python file")
    module = importlib.util.module_from_spec(found)
    try:
        found.loader.exec_module(module)
    except (Exception, SystemExit) as error:  # the user's file: whatever it raises becomes one line
        raise UserError(f"reward {spec!r}: {path} fails with {type(error).__name__}") from error
    if not callable(getattr(module, name, None)):
        raise UserError(f"reward {spec!r}: {path} has no function {name!r}")
    return getattr(module, name)


def _folder(name: str, options: RunOptions) -> Path:
    """The run folder; an explicit one must be empty unless the run resumes."""
    if options.out is not None:
        out = Path(options.out)
        if not options.resume and out.is_dir() and any(out.iterdir()):
            raise UserError(f"{out} is not empty; add --resume, or choose another --out")
        return out
    out = Path("runs") / f"{name.replace('/', '-')}-seed{options.seed}"
    if options.resume:
        return out
    numbered = (out.with_name(f"{out.name}-{i}") for i in range(2, 10_000))
    return next(path for path in (out, *numbered) if not path.exists())


def run(
    name: str, config: Any = None, options: RunOptions | None = None, progress: bool = True
) -> RunResult:
    """Run a recipe into a folder: config, metrics, checkpoint and `result.json`.

    Raises:
        UserError: any mistake of the user's; see design.md section 3.
    """
    start = time.perf_counter()
    quiet()
    recipe, options = find_recipe(name), options or RunOptions()
    if options.policy not in (None, *recipe.policies):
        raise UserError(f"policy={options.policy!r}: {name} offers {', '.join(recipe.policies)}")
    config = config if config is not None else default_config(name)
    if config.steps < 1:
        raise UserError(f"steps={config.steps} is not allowed: choose 1 or more")
    folder = _folder(name, options)
    record = {"recipe": name, **_essential(options), **asdict(config)}
    if options.resume and (finished := _finished(folder, record)):
        return RunResult(folder, finished, [])
    experiment = getattr(import_module(recipe.module), recipe.build)(config, options)
    policy = experiment.trainer.policy
    before, others = experiment.evaluate(policy), experiment.others(policy)
    shown = {"before": experiment.show(policy)}
    rows = fit(
        experiment.trainer,
        config.steps,
        folder,
        options.resume,
        progress,
        experiment.monitor,
        config=record,
    )
    write_json(folder / "config.json", record)
    after, shown["after"] = experiment.evaluate(policy), experiment.show(policy)
    moved = {"ood": (before, after), "others": (others, experiment.others(policy))}
    result = {
        "recipe": name,
        "seed": options.seed,
        "metric": recipe.metric,
        "before": before["heldout"],
        "after": after["heldout"],
        **{
            field: {
                name: {"before": old[name], "after": new[name]} for name in new if name != "heldout"
            }
            for field, (old, new) in moved.items()
        },
        "steps": config.steps,
        "seconds": round(_seconds(folder), 2),
        "total_seconds": round(time.perf_counter() - start, 2),
        "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "params_sha256": params_sha256(policy),
    }
    write_json(folder / "result.json", result)
    return RunResult(folder, result, rows, shown)


def _finished(folder: Path, record: dict[str, Any]) -> dict[str, Any] | None:
    """The result of a run of this very config that has ended; it is left alone."""
    paths = folder / "config.json", folder / "result.json"
    if not all(path.exists() for path in paths):
        return None
    old, result = (json.loads(path.read_text()) for path in paths)
    new, enough = json.loads(json.dumps(record)), result["steps"] >= record["steps"]
    return result if enough and old | {"steps": 0} == new | {"steps": 0} else None


def _essential(options: RunOptions) -> dict[str, Any]:
    """The options that a resumed run must share with the run it resumes."""
    return {k: v for k, v in asdict(options).items() if k not in ("out", "resume", "device")}


def _seconds(folder: Path) -> float:
    """Seconds inside `trainer.step()`, from the last checkpoint."""
    return load_checkpoint(folder)[1]["seconds"]


def write_json(path: Path, value: Any) -> None:
    """Write JSON under a temporary name and put it in place."""
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(value, indent=1) + "\n")
    temporary.replace(path)
