"""The runner: rows flushed, checkpoints that survive a kill, resume to the same bits.

The trainer is a random walk, so that nothing here depends on a model.
"""

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Generator, Tensor

import minivisrl.fit as runner
from minivisrl import UserError
from minivisrl.fit import CHECKPOINT, fit, load_checkpoint, save_checkpoint


@pytest.fixture(autouse=True)
def no_notebook(monkeypatch) -> None:
    """nbval loads ipykernel into this process, and in a notebook there is a progress bar."""
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)


class Killed(Exception):
    """What the walk dies of."""


class Walk:
    """A trainer: each step adds a normal number to a position, and may die instead."""

    def __init__(self, *, die_at: int = 0, watch: Callable[[int], None] | None = None) -> None:
        self.position, self.steps = torch.zeros(()), 0
        self.generator = Generator().manual_seed(7)
        self.die_at, self.watch = die_at, watch

    @property
    def policy(self) -> Tensor:
        return self.position

    def step(self) -> dict[str, float]:
        if self.watch:
            self.watch(self.steps + 1)
        if self.steps + 1 == self.die_at:
            raise Killed
        self.position = self.position + torch.randn((), generator=self.generator)
        self.steps += 1
        return {"reward": self.position.item(), "loss": 0.5}

    def state_dict(self) -> dict[str, object]:
        state = {"position": self.position, "steps": self.steps}
        return state | {"generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.position, self.steps = state["position"], state["steps"]
        self.generator.set_state(state["generator"])


def rows_of(out: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def uninterrupted(steps: int, **options: object) -> list[dict[str, object]]:
    return fit(Walk(), steps, **options)


def die(out: Path, at: int, **options: object) -> None:
    with pytest.raises(Killed):
        fit(Walk(die_at=at), 9, out, **options)


def contents(out: Path) -> dict[str, tuple[bytes, int]]:
    """Bytes and modification time of every file."""
    files = (path for path in sorted(out.rglob("*")) if path.is_file())
    return {str(path): (path.read_bytes(), path.stat().st_mtime_ns) for path in files}


def test_rows_are_numbered_returned_and_written(tmp_run):
    walk = Walk()
    rows = fit(walk, 4, tmp_run)
    assert [row["step"] for row in rows] == [1, 2, 3, 4] == list(range(1, walk.steps + 1))
    assert rows_of(tmp_run) == rows
    assert [set(row) for row in rows] == 4 * [{"step", "reward", "loss"}]
    assert rows[-1]["reward"] == walk.position.item()


def test_without_a_folder_nothing_is_written(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert len(fit(Walk(), 3)) == 3
    assert not list(tmp_path.iterdir())
    assert capsys.readouterr() == ("", "")  # no bar in a pipe


def test_a_row_is_on_disk_before_the_next_step(tmp_run):
    """Another process sees every finished step: nothing waits in a buffer."""
    seen = []
    fit(Walk(watch=lambda step: seen.append(len(rows_of(tmp_run)))), 4, tmp_run)
    assert seen == [0, 1, 2, 3]


def test_a_trainer_that_dies_leaves_its_rows_and_the_last_checkpoint(tmp_run):
    die(tmp_run, at=4, checkpoint_every=2)
    assert [row["step"] for row in rows_of(tmp_run)] == [1, 2, 3]
    state, info = load_checkpoint(tmp_run)
    assert info["step"] == state["steps"] == 2


def test_a_trainer_that_dies_in_step_3_leaves_two_rows(tmp_run):
    die(tmp_run, at=3)
    assert [row["step"] for row in rows_of(tmp_run)] == [1, 2]
    assert load_checkpoint(tmp_run)[1]["step"] == 0  # every 5 steps, and before the first


@pytest.mark.parametrize(
    "options, steps, expected",
    [({}, 12, [0, 5, 10, 12]), ({"checkpoint_every": 2}, 4, [0, 2, 4]), ({}, 3, [0, 3])],
)
def test_when_checkpoints_are_written(tmp_run, monkeypatch, options, steps, expected):
    written, save = [], runner.save_checkpoint

    def recording(out, state, info):
        written.append(info["step"])
        save(out, state, info)

    monkeypatch.setattr(runner, "save_checkpoint", recording)
    fit(Walk(), steps, tmp_run, **options)
    assert written == expected


def test_checkpoint_exists_before_the_first_step(tmp_run):
    """A run that is killed in its first step can be resumed."""
    die(tmp_run, at=1)
    assert fit(Walk(), 3, tmp_run, resume=True) == uninterrupted(3) == rows_of(tmp_run)


@pytest.mark.parametrize("broken", ["save_file", "replace"])
def test_a_kill_while_saving_leaves_the_last_checkpoint(tmp_run, monkeypatch, broken):
    """Half a file under the final name would end the run for good."""
    fit(Walk(), 2, tmp_run)
    before = (tmp_run / CHECKPOINT).read_bytes()

    def half(tensors, path, metadata):
        Path(path).write_bytes(b"half a file")
        raise Killed

    def no_replace(source, target):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        if broken == "save_file":
            patch.setattr(runner, "save_file", half)
        else:
            patch.setattr(os, "replace", no_replace)
        save_checkpoint(tmp_run, Walk().state_dict(), {"step": 99})
    assert (tmp_run / CHECKPOINT).read_bytes() == before
    leftovers = {path.name for path in tmp_run.rglob("*") if path.is_file()}
    assert leftovers - {"metrics.jsonl", "state.safetensors"}  # the temporary is still there
    assert fit(Walk(), 4, tmp_run, resume=True) == uninterrupted(4) == rows_of(tmp_run)


def test_garbage_under_the_temporary_names_does_no_harm(tmp_run):
    die(tmp_run, at=4, checkpoint_every=2)
    for name in ("metrics.tmp", "checkpoint/state.tmp", ".write-test"):
        (tmp_run / name).write_bytes(b"\xffgarbage")
    assert fit(Walk(), 6, tmp_run, resume=True) == uninterrupted(6) == rows_of(tmp_run)


@pytest.mark.parametrize("death", [1, 2, 3, 5, 6, 9])
@pytest.mark.parametrize("every", [1, 2, 5])
def test_resume_goes_on_to_the_same_bits(tmp_run, death, every):
    """Rows after the checkpoint are cut and made again, so none is doubled or missing."""
    die(tmp_run, at=death, checkpoint_every=every)
    walk, straight = Walk(), Walk()
    rows = fit(walk, 9, tmp_run, resume=True, checkpoint_every=every)
    assert rows == fit(straight, 9) == rows_of(tmp_run)
    assert walk.position.equal(straight.position)
    assert walk.generator.get_state().equal(straight.generator.get_state())
    assert load_checkpoint(tmp_run)[1]["step"] == 9


def test_resume_twice(tmp_run):
    die(tmp_run, at=4, checkpoint_every=2)
    with pytest.raises(Killed):
        fit(Walk(die_at=7), 9, tmp_run, resume=True, checkpoint_every=2)
    assert fit(Walk(), 9, tmp_run, resume=True) == uninterrupted(9) == rows_of(tmp_run)


@pytest.mark.parametrize("tail", ['{"step": 4, "rew', '{"step"', "{", "\n", '{"step": 4}\n{"st'])
def test_a_torn_last_line_is_cut(tmp_run, tail):
    """What a kill in the middle of a write leaves behind."""
    die(tmp_run, at=4, checkpoint_every=2)
    with (tmp_run / "metrics.jsonl").open("a") as file:
        file.write(tail)
    assert fit(Walk(), 6, tmp_run, resume=True) == uninterrupted(6) == rows_of(tmp_run)


@pytest.mark.parametrize("steps", [5, 3, 0])
def test_a_finished_run_is_left_alone(tmp_run, steps):
    rows = fit(Walk(), 5, tmp_run)
    before = contents(tmp_run)
    walk = Walk()
    assert fit(walk, steps, tmp_run, resume=True) == rows
    assert contents(tmp_run) == before
    assert walk.steps == 5  # the trainer is the finished one: its policy can be evaluated


def test_a_finished_run_can_be_made_longer(tmp_run):
    fit(Walk(), 3, tmp_run)
    assert fit(Walk(), 6, tmp_run, resume=True) == uninterrupted(6) == rows_of(tmp_run)


CONFIG = {"steps": 9, "seed": 0, "task": {"kinds": ("total", "more"), "eps": 0.1}, "out": None}


@pytest.mark.parametrize(
    "change, named",
    [
        ({"seed": 1}, "seed"),
        ({"task": {"kinds": ("total",), "eps": 0.1}}, "task"),
        ({"extra": 1}, "extra"),
        ({"out": "elsewhere"}, "out"),
    ],
)
def test_another_config_is_refused(tmp_run, change, named):
    """Before anything is touched: neither the trainer nor the folder."""
    die(tmp_run, at=3, config=CONFIG)
    before, walk = contents(tmp_run), Walk()
    with pytest.raises(UserError, match=f"another config \\({named} differ"):
        fit(walk, 9, tmp_run, resume=True, config=CONFIG | change)
    assert contents(tmp_run) == before and walk.steps == 0
    with pytest.raises(UserError, match="another config"):
        fit(Walk(), 9, tmp_run, resume=True)  # no config at all is another one, too


def test_steps_are_not_part_of_the_config(tmp_run):
    """Tuples come back from JSON as lists; that is no difference either."""
    die(tmp_run, at=3, config=CONFIG)
    fit(Walk(), 4, tmp_run, resume=True, config=CONFIG | {"steps": 4})
    assert rows_of(tmp_run) == uninterrupted(4)


def spoil(path: Path, how: str) -> None:
    """Turn a good checkpoint into a bad one."""
    data = path.read_bytes()
    state = {"position": torch.zeros(())}
    match how:
        case "garbage":
            path.write_bytes(b"\x93garbage" * 100)
        case "empty":
            path.write_bytes(b"")
        case "no header" | "no tail":
            path.write_bytes(data[:20] if how == "no header" else data[:-3])
        case "no metadata":
            save_file(state, path)
        case "no json":
            save_file(state, path, {"state": "{", "info": "{"})
        case "no info":
            save_file(state, path, {"state": "{}"})
        case "not our json":
            save_file(state, path, {"state": "[1, 2]", "info": "[3]"})
        case "missing tensor":
            skeleton = json.dumps({"__dict__": [["position", {"__tensor__": "nowhere"}]]})
            save_file(state, path, {"state": skeleton, "info": "{}"})
        case "folder":
            path.unlink()
            path.mkdir()
        case "gone":
            path.unlink()


BAD = ["garbage", "empty", "no header", "no tail", "no metadata", "no json", "no info"]
BAD += ["not our json", "missing tensor", "folder", "gone"]


@pytest.mark.parametrize("how", BAD)
def test_a_bad_checkpoint_is_an_error(tmp_run, how):
    die(tmp_run, at=4, checkpoint_every=2)
    spoil(tmp_run / CHECKPOINT, how)
    before, walk = contents(tmp_run), Walk()
    with pytest.raises(UserError, match="no checkpoint" if how in ("folder", "gone") else "corr"):
        fit(walk, 9, tmp_run, resume=True)
    assert contents(tmp_run) == before and walk.steps == 0


def test_a_checkpoint_of_another_trainer_is_an_error(tmp_run):
    """It loads, but does not fit: the network was exchanged under the same options, say."""
    fit(Walk(), 2, tmp_run)
    save_checkpoint(tmp_run, {"other": torch.zeros(2)}, load_checkpoint(tmp_run)[1])
    with pytest.raises(UserError, match="does not fit|corrupt"):
        fit(Walk(), 4, tmp_run, resume=True)


def test_resume_needs_a_folder_with_a_run(tmp_run):
    with pytest.raises(UserError, match="no checkpoint"):
        fit(Walk(), 2, tmp_run, resume=True)
    assert not tmp_run.exists()
    with pytest.raises(UserError, match="resume needs the folder"):
        fit(Walk(), 2, resume=True)


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "file").write_text("a regular file")
    for out in (tmp_path / "file", tmp_path / "file" / "run", tmp_path / "file" / "a" / "b"):
        walk = Walk()
        with pytest.raises(UserError, match="cannot write to"):
            fit(walk, 2, out)
        assert walk.steps == 0
    assert (tmp_path / "file").read_text() == "a regular file"


def test_no_probe_is_left_behind(tmp_run):
    fit(Walk(), 1, tmp_run)
    names = {str(path.relative_to(tmp_run)) for path in tmp_run.rglob("*") if path.is_file()}
    assert names == {"metrics.jsonl", str(CHECKPOINT)}


def nested() -> dict[object, object]:
    """Everything that a state may hold."""
    weights = torch.arange(6.0).view(2, 3)
    return {
        "none": None,
        "true": True,
        "numbers": [0, -3, 2**60, 1.5, 1e-300, float("inf")],
        "text": 'quotes " and \u2028 breaks\n',
        "empty": {"dict": {}, "list": [], "tensor": torch.zeros(0, 3)},
        "state": {0: {"step": torch.tensor(3.0), 7: None}, 1: {"exp_avg": weights.half()}},
        "groups": [{"params": [0, 1], "lr": 1e-3, "fused": None}, {}],
        "views": [weights.t(), weights[:, 1], weights, weights],
        "types": [torch.tensor([True, False]), torch.arange(3), weights.bfloat16()],
        "bytes": Generator().manual_seed(0).get_state(),
        "keys": {"__tensor__": 1, "__dict__": [2], "": 3},
    }


def same(first: object, second: object) -> bool:
    """Equality down to types; tensors compare by dtype, shape and bits."""
    if type(first) is not type(second):
        return False
    if isinstance(first, Tensor):
        return first.dtype == second.dtype and first.equal(second)
    if isinstance(first, dict):
        ordered = list(zip(first.items(), second.items(), strict=True))
        return all(same(a, c) and same(b, d) for (a, b), (c, d) in ordered)
    if isinstance(first, list):
        return len(first) == len(second) and all(map(same, first, second))
    return first == second


def test_nested_state_round_trip(tmp_run):
    """Order, types, integer keys, None and True: `same` would see any of them change."""
    assert not same({0: True}, {"0": True}) and not same([1], [True]) and not same({}, [])
    save_checkpoint(tmp_run, nested(), {"step": 3, "note": None})
    state, info = load_checkpoint(tmp_run)
    assert same(state, nested()) and info == {"step": 3, "note": None}


@pytest.mark.parametrize(
    "state",
    [
        {1: torch.tensor(1), "1": torch.tensor(2)},
        {"a/b": torch.tensor(1), "a": {"b": torch.tensor(2)}},
        {"a": [torch.tensor(1)], "a/0": torch.tensor(2)},
        {"": {"": torch.tensor(1)}, "/": torch.tensor(2)},
    ],
    ids=["int and str", "slash", "list and str", "empty names"],
)
def test_tensors_never_share_a_name(tmp_run, state):
    """Two paths that read alike would overwrite one another without a word."""
    save_checkpoint(tmp_run, state, {})
    assert same(load_checkpoint(tmp_run)[0], state)


def test_optimizer_state_round_trip(tmp_run):
    """AdamW's own state dict, with its integer keys, drives another AdamW to the same bits."""

    def made() -> tuple[torch.nn.Linear, torch.optim.AdamW]:
        layer = torch.nn.Linear(2, 1)
        layer.load_state_dict({"weight": torch.ones(1, 2), "bias": torch.zeros(1)})
        return layer, torch.optim.AdamW(layer.parameters(), lr=0.1, betas=(0.5, 0.9))

    def step(layer, optimizer):
        optimizer.zero_grad()
        layer(torch.tensor([1.0, -2.0])).square().sum().backward()
        optimizer.step()
        return layer.weight.detach().clone()

    layer, optimizer = made()
    step(layer, optimizer)
    save_checkpoint(tmp_run, {"m": layer.state_dict(), "o": optimizer.state_dict()}, {})
    expected = [step(layer, optimizer) for _ in range(2)]
    state, (other, restored) = load_checkpoint(tmp_run)[0], made()
    other.load_state_dict(state["m"])
    restored.load_state_dict(state["o"])
    assert all(step(other, restored).equal(weight) for weight in expected)


def test_a_saved_state_does_not_follow_the_trainer(tmp_run):
    """The file holds the moment of saving, though state_dict() hands out live tensors."""
    weights = torch.zeros(2)
    save_checkpoint(tmp_run, {"w": weights}, {})
    weights += 1
    assert load_checkpoint(tmp_run)[0]["w"].tolist() == [0, 0]


def test_eval_rows(tmp_run):
    """`eval_fn` sees the policy after the step; its keys join that row and no other."""
    seen = []

    def evaluate(policy: Tensor) -> dict[str, float]:
        seen.append(policy.item())
        return {"heldout": 10 * policy.item()}

    rows = fit(Walk(), 7, tmp_run, eval_fn=evaluate, eval_every=3)
    assert [row["step"] for row in rows if "heldout" in row] == [3, 6]
    assert seen == [rows[2]["reward"], rows[5]["reward"]]
    assert rows[5]["heldout"] == 10 * rows[5]["reward"] and rows_of(tmp_run) == rows


def test_eval_rows_after_resume(tmp_run):
    options = {"eval_fn": lambda policy: {"heldout": policy.item()}, "eval_every": 2}
    die(tmp_run, at=8, **options)
    rows = fit(Walk(), 9, tmp_run, resume=True, **options)
    assert rows == uninterrupted(9, **options) == rows_of(tmp_run)


def test_seconds_are_those_inside_steps_summed_over_resumes(tmp_run, monkeypatch):
    """A clock that only we turn: 1 s a step, 100 s an evaluation."""
    clock = [0.0]
    monkeypatch.setattr(runner.time, "perf_counter", lambda: clock[0])

    def tick(step: int) -> None:
        clock[0] += 1

    def evaluate(policy: Tensor) -> dict[str, float]:
        clock[0] += 100
        return {}

    options = {"eval_fn": evaluate, "eval_every": 1}
    fit(Walk(watch=tick), 3, tmp_run, **options)
    assert load_checkpoint(tmp_run)[1]["seconds"] == 3
    fit(Walk(watch=tick), 7, tmp_run, resume=True, **options)
    assert load_checkpoint(tmp_run)[1]["seconds"] == 7


def test_steps_shown_in_a_terminal(tmp_run, monkeypatch, capsys):
    """One bar with reward and ETA on stderr; stdout stays clean, and progress=False is silent."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
    fit(Walk(), 3, tmp_run)
    out, err = capsys.readouterr()
    assert out == "" and "reward=" in err and "/3 [" in err and "<" in err
    fit(Walk(), 3, progress=False)
    assert capsys.readouterr() == ("", "")
