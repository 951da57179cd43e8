"""The command line: fast help, a run and everything it writes, lists, and where runs go.

Mistakes are the subject of `test_bad_input.py`.
"""

import csv
import json
import os
import subprocess
import sys
import time
from importlib.metadata import entry_points
from pathlib import Path
from typing import NamedTuple

import matplotlib.pyplot as plt
import pytest
import torch

import minivisrl.cli as cli
from minivisrl import DATA, __version__
from minivisrl.cli import COMMANDS, main
from minivisrl.fit import load_checkpoint
from minivisrl.mllm.policy import VLMPolicy, new_vlm
from minivisrl.policy import params_sha256
from minivisrl.recipes import RECIPES

RUN = ["run", "mllm/rlvr-grpo"]
SMALL = "--steps 2 --task.train-prompts 16 --task.eval-prompts 64 --task.max-tokens 4".split()
SMALL += "--trainer.batch-size 2 --trainer.group-size 2".split()
HEAVY = ("torch", "transformers", "tyro", "diffusers", "matplotlib", "numpy", "sklearn")


class Run(NamedTuple):
    """A run of the command line: its folder, exit code and what it printed."""

    out: Path
    code: int
    stdout: str
    stderr: str


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("tiny")
    new_vlm(0, width=32, layers=1).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def run(tiny, tmp_path_factory) -> Run:
    """One run with a reward that differs between siblings, in a process of its own."""
    place = tmp_path_factory.mktemp("run")
    (place / "r.py").write_text(
        "def length(completions, **_):\n    return [*map(len, completions)]\n"
    )
    args = [*RUN, "--checkpoint", tiny, *SMALL, "--steps", "3", "--seed", "5", "--out", "here"]
    command = [sys.executable, "-m", "minivisrl.cli", *args, "--reward", "r.py:length"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=place, timeout=300)
    return Run(place / "here", done.returncode, done.stdout, done.stderr)


def call(*args: str) -> int:
    """Exit code of a command that may also leave by SystemExit, as `--help` does."""
    try:
        return main(list(args))
    except SystemExit as stop:
        return int(stop.code or 0)


def fastest(*args: str) -> float:
    """Seconds that a fresh interpreter takes, the best of three."""
    seconds = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([sys.executable, *args], check=True, capture_output=True)
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def test_help_answers_in_under_a_second():
    """Counted from what an interpreter needs to start at all: other machines are slower."""
    assert fastest("-m", "minivisrl.cli", "--help") < fastest("-c", "pass") + 1.0


def test_light_commands_import_nothing_heavy():
    code = "import sys\nfrom minivisrl.cli import main\n"
    code += "for args in ['--help'], ['--version'], [], ['list'], ['papers', 'grpo'], ['frob']:\n"
    code += f"    main(args)\nprint([name for name in {HEAVY} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0 and done.stdout.splitlines()[-1] == "[]", done.stdout + done.stderr


def test_help_names_every_command(capsys):
    for args in ([], ["--help"], ["-h"]):
        assert main(args) == 0
        out, err = capsys.readouterr()
        assert err == "" and all(f"\n  {name} " in out for name in COMMANDS)


@pytest.mark.parametrize("command", [*COMMANDS, "run mllm/rlvr-grpo", "pretrain vlm"])
def test_help_on_a_command(command, capsys):
    """`minivisrl COMMAND --help`, as the help says, without a recipe or a name, too."""
    assert call(*command.split(), "--help") == 0
    out, err = capsys.readouterr()
    assert err == "" and out.startswith("usage: minivisrl " + command.split()[0])
    assert not list(Path().iterdir())


def test_help_on_a_recipe_explains_every_field(capsys):
    call("run", "mllm/rlvr-grpo", "--help")
    out = capsys.readouterr().out
    for option in ("--seed", "--out", "--steps", "--resume", "--device", "--checkpoint"):
        assert option in out
    for option in ("--policy", "--shuffle-rewards", "--optimization.clip-eps", "--task.kinds"):
        assert option in out
    assert "epsilon: half-width" in out  # the comment beside the field


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out.strip() == __version__


def test_console_script():
    (script,) = entry_points(group="console_scripts", name="minivisrl")
    assert script.value == "minivisrl.cli:main" and script.load() is main


def test_run_succeeds_without_noise(run):
    """No warning of a library, no bar in a pipe."""
    assert run.code == 0 and run.stderr == "", run.stderr


def test_run_writes_these_files(run):
    files = {str(path.relative_to(run.out)) for path in run.out.rglob("*") if path.is_file()}
    assert files == {
        "config.json",
        "metrics.jsonl",
        "samples.png",
        "curve.png",
        "checkpoint/state.safetensors",
        "result.json",
    }


def test_result_has_the_fields_of_the_contract(run):
    result = json.loads((run.out / "result.json").read_text())
    numbers = {"before": float, "after": float, "steps": int, "seconds": float}
    numbers |= {"total_seconds": float, "peak_mb": int, "seed": int}
    assert set(result) == {*numbers, "recipe", "metric", "ood", "others"} | {"params_sha256"}
    assert all(type(result[name]) is kind for name, kind in numbers.items())
    assert (result["recipe"], result["seed"], result["steps"]) == ("mllm/rlvr-grpo", 5, 3)
    assert result["metric"] == RECIPES["mllm/rlvr-grpo"].metric == "exact_match_greedy"
    assert set(result["ood"]) == {"appearance", "composition"}
    for split in (result, *result["ood"].values()):
        assert 0 <= split["before"] <= 1 and 0 <= split["after"] <= 1
    assert all(set(split) == {"before", "after"} for split in result["ood"].values())
    assert 0 < result["seconds"] < result["total_seconds"] < 300
    assert 100 < result["peak_mb"] < 20_000


def test_params_sha256_is_that_of_the_trained_weights(run, tiny):
    result = json.loads((run.out / "result.json").read_text())
    policy = VLMPolicy.load(tiny)
    assert result["params_sha256"] != params_sha256(policy)
    policy.load_state_dict(load_checkpoint(run.out)[0]["policy"])
    assert result["params_sha256"] == params_sha256(policy)


def test_config_says_what_was_run(run, tiny):
    config = json.loads((run.out / "config.json").read_text())
    assert config["recipe"] == "mllm/rlvr-grpo" and config["checkpoint"] == tiny
    assert (config["seed"], config["steps"], config["reward"]) == (5, 3, "r.py:length")
    assert config["task"]["train_prompts"] == 16 and config["trainer"]["batch_size"] == 2
    assert config["optimization"]["clip_eps"] == 0.2 and config["shuffle_rewards"] is False


def test_metrics_are_those_of_the_steps(run):
    rows = [json.loads(line) for line in (run.out / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    expected = {"reward", "kl_ref", "loss", "entropy", "completion_length", "zero_variance_groups"}
    assert all(expected | {"reward/length", "clip_frac", "grad_norm"} <= set(row) for row in rows)


@pytest.mark.parametrize("name, least", [("curve.png", 300), ("samples.png", 450)])
def test_figures_show_something(run, name, least):
    image = plt.imread(run.out / name)
    assert min(image.shape[:2]) >= 200 and image.shape[1] >= least
    assert image[..., :3].std() > 0.05


def test_what_a_run_prints(run):
    result = json.loads((run.out / "result.json").read_text())
    lines = run.stdout.splitlines()
    assert lines[0].startswith("exact_match_greedy on held-out prompts: ")
    assert f"{result['before']:.3f} -> {result['after']:.3f}" in lines[0]
    assert [line.split(":")[0].strip() for line in lines[1:-1]] == list(result["ood"])
    assert lines[-1].startswith("3 steps in ") and "here" in lines[-1]


def test_a_finished_run_is_left_alone(tiny, capsys):
    """Resuming what is done repeats the summary; not one file changes, not even its time."""
    args = [*RUN, "--checkpoint", tiny, *SMALL, "--out", "here"]

    def files() -> dict[Path, tuple[bytes, int]]:
        found = (path for path in sorted(Path("here").rglob("*")) if path.is_file())
        return {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in found}

    assert main(args) == 0
    first, before = capsys.readouterr().out, files()
    time.sleep(0.02)
    for steps in ("2", "1"):  # fewer steps than were made do not unmake them
        assert main([*args, "--resume", "--steps", steps]) == 0
        assert capsys.readouterr().out.splitlines()[0] == first.splitlines()[0]
        assert files() == before


def test_runs_are_numbered_when_their_folder_is_taken(tiny):
    args = [*RUN, "--checkpoint", tiny, *SMALL, "--steps", "1"]
    assert main([*args, "--seed", "3"]) == 0 and main([*args, "--seed", "3"]) == 0
    assert main([*args, "--seed", "4", "--shuffle-rewards"]) == 0
    names = sorted(path.name for path in Path("runs").iterdir())
    assert names == [f"mllm-rlvr-grpo-seed{end}" for end in ("3", "3-2", "4")]
    configs = [json.loads(Path("runs", name, "config.json").read_text()) for name in names]
    assert [config["shuffle_rewards"] for config in configs] == [False, False, True]
    assert configs[0] == configs[1]


def test_an_empty_folder_may_be_named(tiny):
    Path("empty").mkdir()
    assert main([*RUN, "--checkpoint", tiny, *SMALL, "--steps", "1", "--out", "empty"]) == 0
    assert Path("empty", "result.json").exists()


def test_options_reach_the_trainer(tiny, monkeypatch):
    """The last word on the command line is the first the recipe hears."""
    import minivisrl.recipes.mllm as recipe

    class Reached(Exception):
        pass

    def build(config, options):
        assert config.optimization.clip_eps == 0.1 and config.optimization.clip_eps_high == 0.3
        assert config.task.kinds == ("count", "more") and config.trainer.group_size == 7
        assert options.seed == 9 and options.shuffle_rewards and options.checkpoint == tiny
        assert options.torch_device() == torch.device("cpu")
        raise Reached

    monkeypatch.setattr(recipe, "rlvr", build)
    args = "--optimization.clip-eps .1 --optimization.clip-eps-high .3 --task.kinds count more"
    args += f" --trainer.group-size 7 --seed 9 --shuffle-rewards --device cpu --checkpoint {tiny}"
    with pytest.raises(Reached):
        main([*RUN, *args.split()])


def test_list_shows_every_recipe(monkeypatch, tmp_path, capsys):
    """The gain comes from the recorded grid; without one it says so."""
    monkeypatch.setattr(cli, "DATA", tmp_path)
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    for name, recipe in RECIPES.items():
        for text in (name, recipe.paper, recipe.model, recipe.metric, f"{recipe.minutes:g} min"):
            assert text in out
    assert out.count("not measured yet") == len(RECIPES)
    (tmp_path / "results").mkdir()
    cells = {"mllm/rlvr-grpo": {"gain": 0.234}}
    (tmp_path / "results" / "grid.json").write_text(json.dumps({"cells": cells}))
    assert main(["list"]) == 0
    assert "+23 points" in capsys.readouterr().out


def test_papers(capsys):
    with (DATA / "papers.csv").open(newline="") as file:
        works = list(csv.DictReader(file))
    assert main(["papers"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[-1] == f"{len(works)} works" and len(lines) == len(works) + 1
    assert all(line.startswith(work["id"]) for line, work in zip(lines, works, strict=False))
    assert main(["papers", works[0]["id"].upper()]) == 0
    assert works[0]["id"] in capsys.readouterr().out
    assert main(["papers", "no", "work", "has", "zzzz"]) == 0
    assert capsys.readouterr().out == "0 works\n"


@pytest.mark.parametrize("code", [0, 3])
def test_lab_opens_chapter_0(monkeypatch, code):
    calls = []

    def record(command: list[str]) -> int:
        calls.append(command)
        return code

    monkeypatch.setattr(subprocess, "call", record)
    with pytest.raises(SystemExit) as stop:
        main(["lab", "--no-browser"])
    (command,) = calls
    assert stop.value.code == code and command[:3] == [sys.executable, "-m", "jupyterlab"]
    assert Path(command[3]).name == "00_start_here.ipynb" and command[4:] == ["--no-browser"]


@pytest.mark.parametrize("command", ["list", "papers", "--help"])
def test_a_reader_that_leaves_early_gets_no_traceback(command):
    """`minivisrl papers | head -1`: nobody reads the rest."""
    reader, writer = os.pipe()
    os.close(reader)
    environment = {**os.environ, "PYTHONUNBUFFERED": ""}
    args = [sys.executable, "-m", "minivisrl.cli", command]
    done = subprocess.run(args, stdout=writer, stderr=subprocess.PIPE, env=environment)
    os.close(writer)
    assert done.stderr == b"" and done.returncode in (0, 1, 141)
