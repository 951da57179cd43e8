"""The same seed gives the same weights: in fresh processes, and after SIGKILL at random steps.

The reward of the runs is the length of a completion. With exact match an untrained model earns
nothing, nothing is learnt, and every run would end with the weights it began with.
"""

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from minivisrl.mllm.policy import new_vlm
from minivisrl.policy import params_sha256

STEPS = 16
OPTIONS = "--task.train-prompts 128 --task.eval-prompts 64 --task.max-tokens 6 --device cpu".split()
OPTIONS += "--trainer.batch-size 4 --trainer.group-size 4 --optimization.minibatches 2".split()
OPTIONS += ["--steps", str(STEPS), "--checkpoint", "tiny", "--reward", "reward.py:length"]
REWARD = "def length(completions, **_):\n    return [float(len(text)) for text in completions]\n"
LIMIT = 300  # seconds that a run may take on a busy machine


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """A folder with a tiny model and a reward, in which all runs of this module start."""
    place = tmp_path_factory.mktemp("resume")
    new_vlm(0, width=32, layers=1).save(place / "tiny")
    (place / "reward.py").write_text(REWARD)
    return place


def start(place: Path, out: str, *options: str) -> subprocess.Popen:
    """A fresh process; `start_new_session`: what kills it kills nothing else."""
    command = [sys.executable, "-m", "minivisrl.cli", "run", "mllm/rlvr-grpo", *OPTIONS]
    return subprocess.Popen(
        [*command, "--out", out, *options],
        cwd=place,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        start_new_session=True,
        text=True,
    )


def finish(process: subprocess.Popen) -> None:
    stderr = process.communicate(timeout=LIMIT)[1]
    assert process.returncode == 0, stderr


def lines_of(out: Path) -> list[str]:
    """Rows of the metrics that are complete."""
    path = out / "metrics.jsonl"
    return path.read_text().split("\n")[:-1] if path.exists() else []


def kill_after(process: subprocess.Popen, out: Path, row: int) -> None:
    """SIGKILL as soon as the row of that step is there."""
    deadline = time.monotonic() + LIMIT
    steps: list[int] = []
    while not steps or steps[-1] < row:
        assert process.poll() is None, process.communicate()[1]
        assert time.monotonic() < deadline, f"no row {row} in {LIMIT} s"
        steps = [json.loads(line)["step"] for line in lines_of(out)]
        time.sleep(0.002)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert process.returncode == -signal.SIGKILL


def outcome(out: Path) -> tuple[list[str], dict[str, object]]:
    """Rows and result, without what a clock or the size of a process says."""
    result = json.loads((out / "result.json").read_text())
    for name in ("seconds", "total_seconds", "peak_mb"):
        assert result.pop(name) > 0
    return lines_of(out), result


@pytest.fixture(scope="module")
def straight(place) -> tuple[list[str], dict[str, object]]:
    """The run that nobody interrupts."""
    finish(start(place, "straight"))
    return outcome(place / "straight")


def test_the_run_learns_something(straight):
    """Otherwise equal weights at the end would say nothing."""
    rows, result = straight
    assert len(rows) == result["steps"] == STEPS
    start = params_sha256(new_vlm(0, width=32, layers=1))
    assert result["params_sha256"] != start
    rewards = [json.loads(row)["reward"] for row in rows]
    assert len(set(rewards)) > STEPS / 2


def test_killed_at_random_steps_and_resumed(place, straight):
    """Killed before the second checkpoint, killed again after it, and still the same bits."""
    first, second = random.randint(1, 4), random.randint(6, STEPS - 3)
    print(f"killed at steps {first} and {second}")
    out = place / "killed"
    kill_after(start(place, "killed"), out, first)
    assert first <= len(lines_of(out)) < STEPS and not (out / "result.json").exists()
    kill_after(start(place, "killed", "--resume"), out, second)
    assert second <= len(lines_of(out)) < STEPS and not (out / "result.json").exists()
    finish(start(place, "killed", "--resume"))
    assert outcome(out) == straight


def test_a_fresh_process_ends_with_the_same_weights(place, straight):
    finish(start(place, "again"))
    assert outcome(place / "again") == straight
