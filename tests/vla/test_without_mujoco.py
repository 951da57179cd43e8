"""Without MuJoCo the two recipes at the table say what to install; all else works.

The commands run in processes for which `import mujoco` fails, as it does where it is missing.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from minivisrl.recipes import RECIPES

TABLE = ("vla/rlvr-ppo-manipulation", "vla/rlvr-grpo-manipulation")
ROOM = "vla/rlvr-ppo --steps 1 --task.train-prompts 4 --task.eval-prompts 4 --trainer.batch-size 2"
MISSING = "manipulation needs MuJoCo: pip install mujoco, and apt-get install"


@pytest.fixture
def workplace(tmp_path) -> Path:
    """An empty folder to stand in, beside the module that hides MuJoCo."""
    (tmp_path / "hidden").mkdir()
    (tmp_path / "hidden" / "mujoco.py").write_text("raise ImportError('none here')\n")
    (tmp_path / "here").mkdir()
    return tmp_path / "here"


def python(workplace: Path, *args: str) -> subprocess.CompletedProcess:
    """A process without MuJoCo."""
    hidden = str(workplace.parent / "hidden")
    paths = os.pathsep.join([hidden, *filter(None, [os.environ.get("PYTHONPATH")])])
    variables = {**os.environ, "PYTHONPATH": paths}
    command = [sys.executable, *args]
    return subprocess.run(command, cwd=workplace, env=variables, capture_output=True, text=True)


def minivisrl(workplace: Path, line: str) -> subprocess.CompletedProcess:
    return python(workplace, "-m", "minivisrl.cli", *line.split())


@pytest.mark.parametrize(
    "line", [f"run {TABLE[0]}", f"run {TABLE[1]} --task.train-prompts 16 --out mine"]
)
def test_a_run_says_in_one_line_what_to_install(workplace, line):
    done = minivisrl(workplace, line)
    assert (done.returncode, done.stdout) == (2, "") and not list(workplace.iterdir())
    assert done.stderr.startswith(f"minivisrl: {MISSING}") and done.stderr.count("\n") == 1


def test_the_grid_says_so_too(workplace):
    done = minivisrl(workplace, f"grid --cells {TABLE[0]} --seeds 1 --controls 0 --out g.json")
    told = [line for line in done.stderr.splitlines() if line.startswith("minivisrl: ")]
    assert done.returncode == 2 and len(told) == 1 and "Traceback" not in done.stderr
    assert told[0].startswith(f"minivisrl: {TABLE[0]} seed 0 failed: minivisrl: {MISSING}")
    assert not list(workplace.iterdir())


def test_lists_and_helps_need_nothing(workplace):
    listed = minivisrl(workplace, "list")
    assert listed.returncode == 0 and all(name in listed.stdout for name in RECIPES)
    told = minivisrl(workplace, f"run {TABLE[0]} --help")
    assert told.returncode == 0 and "--task.reward" in told.stdout and not told.stderr


def test_the_other_recipes_run(workplace):
    """All modules of recipes can be imported, and an agent walks."""
    names = sorted({recipe.module for recipe in RECIPES.values()})
    code = "\n".join(f"import {name}" for name in names)
    done = python(workplace, "-c", f"{code}\nimport sys\nassert 'mujoco' not in sys.modules")
    assert (done.returncode, done.stderr) == (0, "")
    walked = minivisrl(workplace, f"run {ROOM} --trainer.group-size 2 --out mine")
    assert (walked.returncode, walked.stderr) == (0, "")
    assert (workplace / "mine" / "result.json").exists()
