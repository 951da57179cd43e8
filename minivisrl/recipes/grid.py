"""The grid, measured: recipes over seeds and controls, each run in a process of its own.

Survey: section 3.
"""

from __future__ import annotations

import ast
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from tqdm.auto import tqdm

from minivisrl import DATA, UserError
from minivisrl.evaluation.statistics import Interval, is_learning, mean_interval
from minivisrl.fit import check_writable
from minivisrl.recipes import CELLS, PILLARS, RECIPES
from minivisrl.recipes.run import default_config, find_recipe, write_json

RESULTS = DATA / "results" / "grid.json"


@dataclass(frozen=True, kw_only=True)
class GridOptions:
    """Which cells, how often, and where to."""

    cells: tuple[str, ...] = tuple(RECIPES)  # recipes to measure
    seeds: int = 5  # runs per cell, seeds 0, 1, ...
    controls: int = 2  # runs per cell with shuffled rewards
    jobs: int = 1  # runs at a time, each with its share of the cores
    spot_check: bool = False  # of a stale cell repeat one run and one control; the same bits vouch
    out: str = str(RESULTS)  # results file; runs that are still current are kept

    def __post_init__(self) -> None:
        if min(self.seeds, self.jobs) < 1 or self.controls < 0:
            raise UserError("grid needs seeds >= 1, jobs >= 1 and controls >= 0")


def fingerprint(name: str) -> str:
    """Hash of what a recipe's result depends on: config, base checkpoints, code it imports.

    Comments, docstrings and layout do not count, nor do `__init__` files, which only list names.
    Of the recipe's own module the functions count; its classes are configs, and of these, and of
    the list of recipes, only the values that this recipe is made of count.
    """
    recipe = find_recipe(name)
    made = [asdict(default_config(name)), recipe.module, recipe.build, recipe.metric]
    digest = hashlib.sha256(json.dumps(made, sort_keys=True).encode())
    command = (
        f"import sys, {recipe.module}\n"
        "print('\\n'.join(sorted(m.__file__ for n, m in sys.modules.items()"
        " if n.startswith('minivisrl') and m.__file__)))"
    )
    files = subprocess.run(
        [sys.executable, "-c", command], capture_output=True, text=True, check=True
    ).stdout.split("\n")
    for file in (f for f in files if f and not f.endswith("__init__.py")):
        own = Path(file).stem == recipe.module.rpartition(".")[2]
        digest.update(_code(Path(file).read_text(), without_classes=own).encode())
    for base in recipe.bases:
        for weights in sorted((DATA / "checkpoints" / base).rglob("*.safetensors")):
            digest.update(weights.read_bytes())
    return digest.hexdigest()[:16]


def _code(source: str, without_classes: bool = False) -> str:
    """A module's syntax tree without its docstrings, and without its classes if asked."""
    tree = ast.parse(source)
    if without_classes:
        tree.body = [node for node in tree.body if not isinstance(node, ast.ClassDef)]
    for node in ast.walk(tree):
        body = getattr(node, "body", None)
        if isinstance(body, list) and body and isinstance(body[0], ast.Expr):
            if isinstance(body[0].value, ast.Constant):
                body[0].value = ast.Constant(value=None)
    return ast.dump(tree)


def _one(name: str, seed: int, control: bool, threads: int, mark: str) -> dict[str, Any]:
    """One run in a fresh process; returns its record."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "run"
        command = [sys.executable, "-m", "minivisrl.cli", "run", name]
        command += ["--seed", str(seed), "--out", str(out)]
        command += ["--shuffle-rewards"] if control else []
        done = subprocess.run(
            command, capture_output=True, text=True, env=_environment(threads), check=False
        )
        if done.returncode:
            raise UserError(f"{name} seed {seed} failed: {done.stderr.strip()[-300:]}")
        result = json.loads((out / "result.json").read_text())
    return {**result, "control": control, "threads": threads, "fingerprint": mark}


def _environment(threads: int) -> dict[str, str]:
    import os

    return {**os.environ, "OMP_NUM_THREADS": str(threads)}


def vouched(
    name: str, runs: list[dict[str, Any]], mark: str, repeat: Callable[..., dict[str, Any]]
) -> list[dict[str, Any]]:
    """The stale runs of a cell, made current by two repeated ones that end in the same bits.

    A run is deterministic, so if a run and a control end with the parameters that they ended with
    before, then what has changed since is not what they compute.  With other bits, none is kept.
    """
    stale = [run for run in runs if run["recipe"] == name and run["fingerprint"] != mark]
    fresh = {}
    for control in (False, True):
        old = next((run for run in stale if run["control"] == control), None)
        if old is None:
            continue
        new = repeat(name, old["seed"], control, old["threads"], mark)
        if new["params_sha256"] != old["params_sha256"]:
            return []
        fresh[old["seed"], control] = new
    return [fresh.get((r["seed"], r["control"]), r) | {"fingerprint": mark} for r in stale]


def grid(options: GridOptions) -> dict[str, Any]:
    """Fill the results file; prints a table row whenever a run ends.

    Only runs that are missing or whose fingerprint is stale are run.  The file is rewritten after
    every run, so an interrupted grid goes on where it stopped.  See `vouched` for `spot_check`.
    """
    import os

    path = Path(options.out)
    book = _read(path)
    check_writable(path.parent)
    marks = {name: fingerprint(name) for name in options.cells}
    kept = [r for r in book["runs"] if r["fingerprint"] == marks.get(r["recipe"], r["fingerprint"])]
    if options.spot_check:
        with ThreadPoolExecutor(options.jobs) as pool:
            for runs in pool.map(lambda n: vouched(n, book["runs"], marks[n], _one), marks):
                kept += runs
    book["runs"] = kept
    have = {(r["recipe"], r["seed"], r["control"]) for r in book["runs"]}
    wanted = [
        (name, seed, control)
        for name in options.cells
        for control, count in ((False, options.seeds), (True, options.controls))
        for seed in range(count)
        if (name, seed, control) not in have
    ]
    threads = max(1, (os.cpu_count() or 1) // options.jobs)
    book["command"] = "minivisrl grid"
    book["versions"] = {name: version(name) for name in ("torch", "transformers", "diffusers")}

    def work(item: tuple[str, int, bool]) -> dict[str, Any]:
        return _one(*item, threads, marks[item[0]])

    def save() -> None:
        book["cells"] = {name: cell(name, book["runs"]) for name in _names(book["runs"])}
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, book)
        if path == RESULTS:
            update_readme(book)

    if options.spot_check:
        save()
    with ThreadPoolExecutor(options.jobs) as pool:
        for record in tqdm(pool.map(work, wanted), total=len(wanted), disable=None):
            book["runs"].append(record)
            save()
            kind = "control" if record["control"] else "run"
            gain = record["after"] - record["before"]
            print(
                f"{record['recipe']:26} {kind:8} seed {record['seed']}  gain {gain:+.3f}",
                flush=True,
            )
    return book


def readme_table(book: dict[str, Any]) -> str:
    """The grid as a Markdown table: before -> after, interval of the gain, worst control."""
    lines = ["| | " + " | ".join(CELLS) + " |", "| --- " * (len(CELLS) + 1) + "|"]
    for pillar in PILLARS:
        cells = [_readme_cell(book["cells"].get(f"{pillar}/{cell}")) for cell in CELLS]
        lines.append(f"| {pillar} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def cell_status(summary: Mapping[str, Any] | None) -> str:
    """learns or failed, by `is_learning`; "not yet" while the interval or controls are missing."""
    if not summary or None in (summary.get("ci") or [None]) or not summary.get("control_gains"):
        return "not yet"
    gain = Interval(summary["gain"], *summary["ci"])
    return "learns" if is_learning(gain, summary["control_gains"]) else "failed"


def _readme_cell(summary: dict[str, Any] | None) -> str:
    if (status := cell_status(summary)) == "not yet":
        return status
    low, high = summary["ci"]
    moved = f"{summary['before']:.2f} -> {summary['after']:.2f}"
    verdict = f"**{status}**" if status == "failed" else status
    worst = max(summary["control_gains"])
    return f"{verdict}: {moved}, gain [{low:.2f}, {high:.2f}], control {worst:+.2f}"


def update_readme(book: dict[str, Any], path: Path = DATA.parent / "README.md") -> None:
    """Put the table between the `<!-- grid -->` marks of a README, if it is there."""
    start, end = "<!-- grid -->\n", "<!-- /grid -->"
    if path.exists() and start in path.read_text():
        before, rest = path.read_text().split(start)
        path.write_text(f"{before}{start}{readme_table(book)}\n{end}{rest.split(end)[1]}")


def _read(path: Path) -> dict[str, Any]:
    """The results so far; a file that is not a results file is never overwritten."""
    if not path.exists():
        return {"runs": [], "cells": {}}
    try:
        book = json.loads(path.read_text())
        fine = isinstance(book["cells"], dict) and all("fingerprint" in r for r in book["runs"])
    except (ValueError, TypeError, KeyError, OSError):
        fine = False
    if not fine:
        raise UserError(f"{path} is not a results file of the grid; move it, or choose another")
    return book


def _names(runs: list[dict[str, Any]]) -> list[str]:
    return [name for name in RECIPES if any(run["recipe"] == name for run in runs)]


def cell(name: str, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """The summary of one recipe's runs: means over seeds and the 95 % interval of the gain."""
    mine = [run for run in runs if run["recipe"] == name]
    real = sorted((r for r in mine if not r["control"]), key=lambda r: r["seed"])
    controls = sorted((r for r in mine if r["control"]), key=lambda r: r["seed"])
    gains = [run["after"] - run["before"] for run in real]

    def mean(values: list[float]) -> float | None:
        return round(sum(values) / len(values), 4) if values else None

    interval = mean_interval(gains)[1:] if len(gains) > 1 else (None, None)
    return {
        "metric": RECIPES[name].metric,
        "before": mean([run["before"] for run in real]),
        "after": mean([run["after"] for run in real]),
        "gain": mean(gains),
        "ci": [None if bound is None else round(bound, 4) for bound in interval],
        "control_gains": [round(run["after"] - run["before"], 4) for run in controls],
        **{
            field: {
                name: {when: mean([run[field][name][when] for run in real]) for when in moved}
                for name, moved in (real[0][field] if real else {}).items()
            }
            for field in ("ood", "others")
        },
        "seconds": mean([run["seconds"] for run in real]),
        "peak_mb": max((run["peak_mb"] for run in real), default=None),
    }
