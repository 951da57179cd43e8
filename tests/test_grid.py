"""The grid: which runs it makes, when a recorded run is stale, and what the cells say.

The recipes here are two light modules in a temporary folder; a fake command line stands in for
the processes that would train them.
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

import minivisrl.recipes.grid as grid_module
from minivisrl import UserError
from minivisrl.evaluation.statistics import mean_interval
from minivisrl.recipes import RECIPES, Recipe
from minivisrl.recipes.grid import (
    GridOptions,
    cell,
    fingerprint,
    grid,
    readme_table,
    update_readme,
)

RECIPE = '''"""A recipe that nobody runs."""

from dataclasses import asdict, dataclass, field

from minivisrl_helper import half


@dataclass(frozen=True, kw_only=True)
class Inner:
    rate: float = 0.5


@dataclass(frozen=True, kw_only=True)
class Config:
    steps: int = 3  # a comment
    inner: Inner = field(default_factory=Inner)


@dataclass(frozen=True, kw_only=True)
class Other:
    steps: int = 9


def build(config, options):
    """Never called."""
    return half(config.steps)
'''
HELPER = "def half(x):\n    return x / 2\n"
FIRST, SECOND = "mllm/rlvr-grpo", "mllm/dpo"


class CommandLine:
    """Fake processes: `minivisrl run` writes a result, everything else is left to the system.

    A real run gains .2 plus a hundredth of the seed, a control a hundredth; `dies_at` is the
    number of the run that fails.
    """

    def __init__(self, real) -> None:
        self.real, self.made, self.environments = real, [], []
        self.dies_at = 0

    def __call__(self, command: list[str], **options):
        if "minivisrl.cli" not in command:
            return self.real(command, **options)
        assert command[:4] == [sys.executable, "-m", "minivisrl.cli", "run"]
        name, rest = command[4], command[5:]
        values = dict(zip(rest[:4:2], rest[1:4:2], strict=True))
        assert list(values) == ["--seed", "--out"] and rest[4:] in ([], ["--shuffle-rewards"])
        seed, control = int(values["--seed"]), bool(rest[4:])
        self.made.append((name, seed, control))
        self.environments.append(options["env"])
        if len(self.made) == self.dies_at:
            return SimpleNamespace(returncode=2, stderr="minivisrl: out of luck\n", stdout="")
        out = Path(values["--out"])
        assert not out.exists()
        out.mkdir()
        (out / "result.json").write_text(json.dumps(result(name, seed, control)))
        return SimpleNamespace(returncode=0, stderr="", stdout="")


def result(name: str, seed: int, control: bool) -> dict[str, object]:
    """A made-up result.json."""
    gain = 0.01 if control else 0.2 + seed / 100
    return {
        "recipe": name,
        "seed": seed,
        "metric": "exact_match_greedy",
        "before": 0.5,
        "after": 0.5 + gain,
        "ood": {"appearance": {"before": 0.4, "after": 0.4 + gain / 2}},
        "others": {},
        "steps": 3,
        "seconds": 10.0 + seed,
        "total_seconds": 12.0 + seed,
        "peak_mb": 400 + seed,
        "params_sha256": f"{seed}{control}",
    }


def entry(module: str, base: str) -> Recipe:
    texts = {
        "config": "Config",
        "build": "build",
        "paper": "none",
        "model": "none",
        "metric": "exact_match_greedy",
    }
    return Recipe(module=module, bases=(base,), minutes=1, policies=("vlm",), **texts)


@pytest.fixture
def shown(monkeypatch) -> list[int]:
    """Runs that the README would show, at each update; made-up ones never reach the real file."""
    updates: list[int] = []
    monkeypatch.setattr(
        grid_module, "update_readme", lambda book: updates.append(len(book["runs"]))
    )
    return updates


@pytest.fixture
def world(tmp_path, monkeypatch, shown) -> Iterator[Path]:
    """Two recipes in files that a test may edit, with checkpoints; importable here and there.

    Modules named minivisrl... count as source of ours.
    """
    for name in ("one", "two"):
        (tmp_path / f"minivisrl_{name}.py").write_text(RECIPE)
        base = tmp_path / "checkpoints" / name
        base.mkdir(parents=True)
        (base / "model.safetensors").write_bytes(f"weights of {name}".encode())
    (tmp_path / "minivisrl_helper.py").write_text(HELPER)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # edits within a second would not count
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    monkeypatch.setattr(grid_module, "DATA", tmp_path)
    for name in list(RECIPES):
        monkeypatch.delitem(RECIPES, name)
    monkeypatch.setitem(RECIPES, FIRST, entry("minivisrl_one", "one"))
    monkeypatch.setitem(RECIPES, SECOND, entry("minivisrl_two", "two"))
    yield tmp_path
    for name in ("minivisrl_one", "minivisrl_two", "minivisrl_helper"):
        sys.modules.pop(name, None)


@pytest.fixture
def cli(monkeypatch) -> CommandLine:
    fake = CommandLine(subprocess.run)
    monkeypatch.setattr(grid_module.subprocess, "run", fake)
    return fake


def options(world: Path, **changes) -> GridOptions:
    chosen = {"cells": (FIRST, SECOND), "seeds": 2, "controls": 1, "out": str(world / "g.json")}
    return GridOptions(**chosen | changes)


def edit(path: Path, old: str, new: str) -> None:
    """Change a source file; drop what has been imported, as a fresh process would."""
    text = path.read_text()
    assert old in text
    path.write_text(text.replace(old, new))
    sys.modules.pop(path.stem, None)


EVERY = [(name, seed, False) for name in (FIRST, SECOND) for seed in (0, 1)]
EVERY += [(name, 0, True) for name in (FIRST, SECOND)]


# ------------------------------------------------------------------------------------------------
# Fingerprints.


def test_fingerprint_is_short_and_stable(world):
    mark = fingerprint(FIRST)
    assert len(mark) == 16 and set(mark) <= set("0123456789abcdef")
    assert fingerprint(FIRST) == mark


STALE = {
    "a default of the config": ("minivisrl_one.py", "steps: int = 3", "steps: int = 4"),
    "a default of a nested config": ("minivisrl_one.py", "rate: float = 0.5", "rate: float = 0.6"),
    "code of the recipe": ("minivisrl_one.py", "half(config.steps)", "half(config.steps + 1)"),
    "code that it imports": ("minivisrl_helper.py", "x / 2", "x / 3"),
    "a constant": ("minivisrl_helper.py", "def half", "LIMIT = 3\n\n\ndef half"),
}
SAME = {
    "docstring": ("minivisrl_one.py", "Never called.", "Called by the runner."),
    "module docstring": ("minivisrl_one.py", "A recipe that nobody runs.", "A recipe."),
    "comment": ("minivisrl_one.py", "# a comment", "# another comment"),
    "layout": ("minivisrl_helper.py", "return x / 2", "return (\n        x\n        / 2\n    )"),
    "another config beside it": ("minivisrl_one.py", "steps: int = 9", "steps: int = 8"),
    "another recipe": ("minivisrl_two.py", "steps: int = 3", "steps: int = 4"),
}


@pytest.mark.parametrize("case", STALE)
def test_what_makes_a_run_stale(world, case):
    before = fingerprint(FIRST)
    file, old, new = STALE[case]
    edit(world / file, old, new)
    assert fingerprint(FIRST) != before


def test_another_build_makes_a_run_stale_and_another_paper_does_not(world, monkeypatch):
    before = fingerprint(FIRST)
    monkeypatch.setitem(RECIPES, FIRST, replace(RECIPES[FIRST], paper="another", minutes=9))
    assert fingerprint(FIRST) == before
    monkeypatch.setitem(RECIPES, FIRST, replace(RECIPES[FIRST], build="other"))
    assert fingerprint(FIRST) != before


@pytest.mark.parametrize("case", SAME)
def test_what_leaves_a_run_current(world, case):
    before = fingerprint(FIRST)
    file, old, new = SAME[case]
    edit(world / file, old, new)
    assert fingerprint(FIRST) == before


def test_weights_of_its_own_base_make_a_run_stale(world):
    before = {name: fingerprint(name) for name in (FIRST, SECOND)}
    assert len(set(before.values())) == 2  # the same code on another base
    (world / "checkpoints" / "one" / "model.safetensors").write_bytes(b"other weights")
    assert fingerprint(FIRST) != before[FIRST] and fingerprint(SECOND) == before[SECOND]


def test_fingerprint_follows_weights_in_subfolders(world):
    """Story: checkpoints in parts have no weights at the top, and a new base went unnoticed."""
    before = fingerprint(FIRST)
    part = world / "checkpoints" / "one" / "transformer"
    part.mkdir()
    (part / "model.safetensors").write_bytes(b"weights of a part")
    assert fingerprint(FIRST) != before


def test_fingerprint_reads_what_the_real_recipe_imports(monkeypatch):
    """The loss, the world and the policy count; the command line and the plots do not."""
    read, code = [], grid_module._code

    def reading(source: str, **options: bool) -> str:
        read.append(source)
        return code(source, **options)

    monkeypatch.setattr(grid_module, "_code", reading)
    fingerprint(FIRST)
    package = Path(grid_module.__file__).parents[1]

    def counted(name: str) -> bool:
        return (package / name).read_text() in read

    used = ("optimization/grpo", "optimization/update", "worlds/scenes", "worlds/questions")
    used += ("mllm/policy", "decoding", "paradigms/online", "rewards/verifiers", "recipes/run")
    assert [name for name in used if not counted(f"{name}.py")] == []
    assert not counted("cli.py") and not counted("lab/plots.py") and not counted("survey.py")


def test_an_unknown_cell_has_no_fingerprint(world):
    with pytest.raises(UserError, match="unknown recipe"):
        fingerprint("mllm/nope")


# ------------------------------------------------------------------------------------------------
# Which runs are made.


def test_every_run_is_made_once_and_written_down(world, cli, capsys):
    book = grid(options(world))
    assert sorted(cli.made) == sorted(EVERY)
    assert json.loads((world / "g.json").read_text()) == book
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and sum("control" in line for line in lines) == 2
    assert any(line.startswith(FIRST) and "seed 1  gain +0.210" in line for line in lines)


def test_file_format(world, cli):
    grid(options(world))
    book = json.loads((world / "g.json").read_text())
    assert set(book) == {"command", "versions", "runs", "cells"}
    assert book["command"].startswith("minivisrl grid")
    assert {"torch", "transformers"} <= set(book["versions"])
    for run in book["runs"]:
        fields = result(run["recipe"], run["seed"], run["control"])
        assert fields.items() <= run.items()
        assert run["fingerprint"] == fingerprint(run["recipe"])
    assert set(book["cells"]) == {FIRST, SECOND}
    expected = {"metric", "before", "after", "gain", "ci", "control_gains", "ood", "others"}
    expected |= {"seconds"}
    assert all(set(entry) == expected | {"peak_mb"} for entry in book["cells"].values())


def test_nothing_is_run_twice(world, cli):
    grid(options(world))
    cli.made.clear()
    before = (world / "g.json").read_text()
    book = grid(options(world))
    assert cli.made == [] and len(book["runs"]) == 6
    assert json.loads((world / "g.json").read_text())["cells"] == json.loads(before)["cells"]


def test_only_missing_runs_are_made(world, cli):
    grid(options(world, cells=(FIRST,), controls=0))
    cli.made.clear()
    book = grid(options(world, seeds=3))
    have = {(FIRST, 0, False), (FIRST, 1, False)}
    wanted = {*EVERY, (FIRST, 2, False), (SECOND, 2, False)} - have
    assert set(cli.made) == wanted and len(cli.made) == len(wanted)
    assert len(book["runs"]) == 8


def test_only_stale_runs_are_made_again(world, cli):
    grid(options(world))
    old = fingerprint(FIRST)
    edit(world / "minivisrl_one.py", "steps: int = 3", "steps: int = 5")
    cli.made.clear()
    book = grid(options(world))
    assert sorted(cli.made) == sorted(run for run in EVERY if run[0] == FIRST)
    marks = {run["fingerprint"] for run in book["runs"]}
    assert marks == {fingerprint(FIRST), fingerprint(SECOND)} and old not in marks
    assert len(book["runs"]) == 6


def test_a_spot_check_with_the_same_bits_vouches_for_a_cell(world, cli):
    """One run and one control are repeated; the others become current without being made again."""
    grid(options(world))
    edit(world / "minivisrl_one.py", "half(config.steps)", "half(1 * config.steps)")
    cli.made.clear()
    book = grid(options(world, spot_check=True))
    assert cli.made == [(FIRST, 0, False), (FIRST, 0, True)]
    assert sorted((r["recipe"], r["seed"], r["control"]) for r in book["runs"]) == sorted(EVERY)
    assert {r["fingerprint"] for r in book["runs"]} == {fingerprint(FIRST), fingerprint(SECOND)}
    assert json.loads((world / "g.json").read_text()) == book


@pytest.mark.parametrize("control", [False, True])
def test_a_spot_check_with_other_bits_keeps_nothing(world, cli, control):
    grid(options(world))
    file = world / "g.json"
    book = json.loads(file.read_text())
    for run in book["runs"]:
        if (run["recipe"], run["seed"], run["control"]) == (FIRST, 0, control):
            run["params_sha256"] = "other"
    file.write_text(json.dumps(book))
    edit(world / "minivisrl_one.py", "half(config.steps)", "half(1 * config.steps)")
    cli.made.clear()
    book = grid(options(world, spot_check=True))
    assert {run for run in cli.made if run[0] == FIRST} == {run for run in EVERY if run[0] == FIRST}
    assert not [run for run in cli.made if run[0] == SECOND] and len(book["runs"]) == 6


def test_cells_that_were_not_asked_for_stay(world, cli):
    """Stale or not: whoever measures one cell does not lose the others."""
    grid(options(world))
    edit(world / "minivisrl_two.py", "steps: int = 3", "steps: int = 5")
    cli.made.clear()
    book = grid(options(world, cells=(FIRST,)))
    assert cli.made == [] and set(book["cells"]) == {FIRST, SECOND}


def test_an_interrupted_grid_goes_on(world, cli):
    """The third run fails; the two before it are in the file, and are not made again."""
    cli.dies_at = 3
    with pytest.raises(UserError, match="failed: minivisrl: out of luck"):
        grid(options(world))
    kept = json.loads((world / "g.json").read_text())["runs"]
    assert [(run["recipe"], run["seed"], run["control"]) for run in kept] == cli.made[:2]
    cli.dies_at, done = 0, cli.made[:2]
    cli.made.clear()
    book = grid(options(world))
    assert not set(cli.made) & set(done) and len(book["runs"]) == 6
    assert sorted([*cli.made, *done]) == sorted(EVERY)


def test_the_file_is_whole_after_every_run(world, cli, monkeypatch):
    """Written under another name first; each version parses and has one run more."""
    sizes, write = [], grid_module.write_json

    def watching(path, value):
        write(path, value)
        sizes.append(len(json.loads(Path(path).read_text())["runs"]))
        assert [p.name for p in world.glob("g.*")] == ["g.json"]

    monkeypatch.setattr(grid_module, "write_json", watching)
    grid(options(world))
    assert sizes == [1, 2, 3, 4, 5, 6]


def test_a_place_that_cannot_be_written_is_refused_before_any_run(world, cli):
    """Otherwise the first two minutes of work are lost, and the next ones after them."""
    (world / "file").write_text("precious")
    with pytest.raises(UserError, match="file"):
        grid(options(world, out=str(world / "file" / "grid.json")))
    assert cli.made == [] and (world / "file").read_text() == "precious"


def test_jobs_share_the_cores(world, cli, monkeypatch):
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    book = grid(options(world, jobs=4))
    assert sorted(cli.made) == sorted(EVERY) and len(book["runs"]) == 6
    assert {env["OMP_NUM_THREADS"] for env in cli.environments} == {"2"}


def test_only_the_recorded_grid_changes_the_readme(world, cli, shown, monkeypatch):
    """A grid into a file of one's own is an experiment."""
    grid(options(world, seeds=1, controls=0))
    assert shown == []
    monkeypatch.setattr(grid_module, "RESULTS", world / "recorded.json")
    grid(options(world, out=str(world / "recorded.json"), seeds=1, controls=0))
    assert shown and shown[-1] == 2


@pytest.mark.parametrize("change", [{"seeds": 0}, {"jobs": 0}, {"controls": -1}])
def test_options_out_of_range(world, change):
    with pytest.raises(UserError, match=next(iter(change))):
        options(world, **change)


# ------------------------------------------------------------------------------------------------
# What a cell says.


def made_up() -> list[dict[str, object]]:
    """Three seeds that gain .1, .2 and .3, and two controls that gain 0 and -.05."""
    runs = []
    for seed, gain, control in [(2, 0.3, False), (0, 0.1, False), (1, 0.2, False)]:
        runs.append(result(FIRST, seed, control) | {"after": 0.5 + gain, "control": False})
    for seed, gain in [(1, -0.05), (0, 0.0)]:
        runs.append(result(FIRST, seed, True) | {"after": 0.5 + gain, "control": True})
    stray = result(SECOND, 0, False) | {"after": 1.0, "control": False}
    return [*runs, stray]


def test_cell_by_hand(world):
    """Gains .1 .2 .3: mean .2, s = .1, t(2, 97.5 %) = 4.303, so +-.2484."""
    found = cell(FIRST, made_up())
    assert found == {
        "metric": "exact_match_greedy",
        "before": 0.5,
        "after": 0.7,
        "gain": 0.2,
        "ci": [pytest.approx(-0.0484, abs=1e-4), pytest.approx(0.4484, abs=1e-4)],
        "control_gains": [0.0, -0.05],  # by seed
        "ood": {"appearance": {"before": 0.4, "after": pytest.approx(0.505)}},
        "others": {},
        "seconds": 11.0,
        "peak_mb": 402,
    }
    assert mean_interval([0.1, 0.2, 0.3]).low == pytest.approx(found["ci"][0], abs=1e-4)


def test_cell_with_one_seed_has_no_interval(world):
    found = cell(FIRST, [result(FIRST, 0, False) | {"control": False}])
    assert found["ci"] == [None, None] and found["gain"] == pytest.approx(0.2)
    assert found["control_gains"] == []
    json.dumps(found)


def test_controls_alone_are_no_result(world):
    found = cell(FIRST, [result(FIRST, 0, True) | {"control": True}])
    assert found["gain"] is None and found["ci"] == [None, None]
    assert found["control_gains"] == [0.01]


# ------------------------------------------------------------------------------------------------
# What the README shows of it.


def summary(**changes) -> dict[str, object]:
    fields = {"before": 0.5, "after": 0.7, "gain": 0.2, "ci": [0.1, 0.3], "control_gains": [0.01]}
    return fields | changes


@pytest.mark.parametrize(
    "found, text",
    [
        (summary(), "learns: 0.50 -> 0.70, gain [0.10, 0.30], control +0.01"),
        (summary(control_gains=[-0.3, 0.05]), "learns: "),  # a quarter of the gain is allowed
        (summary(control_gains=[-0.3, 0.06]), "**failed**: "),
        (summary(ci=[-0.01, 0.41]), "**failed**: "),
        (summary(ci=[None, None]), "not yet"),
        (summary(control_gains=[]), "not yet"),
        (None, "not yet"),
    ],
)
def test_readme_table(found, text):
    """The house rule for "it learned" in every cell; 4 pillars times 5 cells."""
    table = readme_table({"cells": {} if found is None else {FIRST: found}})
    rows = [line.strip("|").split(" | ") for line in table.splitlines()]
    assert len(rows) == 6 and all(len(row) == 6 for row in rows[2:])
    assert [row[0].strip() for row in rows[2:]] == ["mllm", "generation", "unified", "vla"]
    assert text in rows[2][5] and table.count("not yet") == 20 - (text != "not yet")


def test_recipes_beside_the_table_leave_it_as_it_is():
    """They are measured like the others, and by default; the README's table has 20 cells."""
    beside = {f"vla/rlvr-{cell}-manipulation": summary(gain=0.9) for cell in ("ppo", "grpo")}
    alone = {"cells": {FIRST: summary()}}
    assert readme_table({"cells": alone["cells"] | beside}) == readme_table(alone)
    assert set(beside) < set(GridOptions().cells) == set(RECIPES)


def test_update_readme_replaces_what_is_between_the_marks(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text("above\n<!-- grid -->\nold\n<!-- /grid -->\nbelow\n")
    book = {"cells": {FIRST: summary()}}
    for _ in range(2):
        update_readme(book, readme)
        text = readme.read_text()
        assert text.startswith("above\n<!-- grid -->\n| |") and "old" not in text
        assert text.endswith("|\n<!-- /grid -->\nbelow\n") and readme_table(book) in text


def test_update_readme_leaves_a_readme_without_marks(tmp_path):
    readme = tmp_path / "README.md"
    update_readme({"cells": {}}, readme)
    assert not readme.exists()
    readme.write_text("no table here\n")
    update_readme({"cells": {}}, readme)
    assert readme.read_text() == "no table here\n"
