"""The runner: drives any trainer with a progress bar, a metrics file, checkpoints and resume.

Trainers know nothing of files, bars or plots; this module knows nothing of losses.  A checkpoint is
one file, `checkpoint/state.safetensors`: tensors as tensors, the rest as JSON in its metadata.  It
is written under a temporary name and put in place by `os.replace`, so a kill leaves the last one.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from tqdm.auto import tqdm

from minivisrl import UserError

CHECKPOINT = Path("checkpoint") / "state.safetensors"


def _flatten(value: Any, path: str, tensors: dict[str, Tensor]) -> Any:
    """The JSON skeleton of a nested state; tensors go into `tensors` under their path."""
    if isinstance(value, Tensor):
        name = f"{len(tensors)}:{path}"  # the number keeps names apart, the path says what it is
        tensors[name] = value.detach().contiguous().clone()
        return {"__tensor__": name}
    if isinstance(value, dict):
        pairs = [
            [key, _flatten(item, f"{path}/{key}" if path else str(key), tensors)]
            for key, item in value.items()
        ]
        return {"__dict__": pairs}
    if isinstance(value, (list, tuple)):
        return [_flatten(item, f"{path}/{i}", tensors) for i, item in enumerate(value)]
    return value


def _unflatten(value: Any, tensors: dict[str, Tensor]) -> Any:
    """Inverse of `_flatten`."""
    if isinstance(value, list):
        return [_unflatten(item, tensors) for item in value]
    if isinstance(value, dict):
        if "__tensor__" in value:
            return tensors[value["__tensor__"]]
        return {key: _unflatten(item, tensors) for key, item in value["__dict__"]}
    return value


def save_checkpoint(out: Path, state: dict[str, Any], info: dict[str, Any]) -> None:
    """Write `out/checkpoint/state.safetensors` atomically; `info` is JSON."""
    tensors: dict[str, Tensor] = {}
    skeleton = _flatten(state, "", tensors)
    path = out / CHECKPOINT
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(".tmp")
    save_file(tensors, temporary, {"state": json.dumps(skeleton), "info": json.dumps(info)})
    os.replace(temporary, path)


def load_checkpoint(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, info) of the checkpoint in a run folder.

    Raises:
        UserError: there is none, or it cannot be read.
    """
    path = out / CHECKPOINT
    if not path.is_file():
        raise UserError(f"no checkpoint in {out}; start the run without resume")
    try:
        with safe_open(path, "pt") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            metadata = file.metadata()
        return _unflatten(json.loads(metadata["state"]), tensors), json.loads(metadata["info"])
    except (SafetensorError, OSError, KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"the checkpoint in {out} is corrupt ({type(error).__name__}); start the run anew"
        ) from error


def check_writable(out: Path) -> None:
    """Create the folder and prove that a file can be written there."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / ".write-test"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(
            f"cannot write to {out} ({error.strerror}); choose another folder"
        ) from error


class _Log:
    """`metrics.jsonl`: one row per step, flushed as the step ends."""

    def __init__(self, out: Path | None, keep: int) -> None:
        self.rows: list[dict[str, Any]] = []
        self.file = None
        if out is None:
            return
        path = out / "metrics.jsonl"
        self.rows = _rows(out, keep)
        temporary = path.with_suffix(".tmp")
        temporary.write_text("".join(json.dumps(row) + "\n" for row in self.rows))
        os.replace(temporary, path)
        self.file = path.open("a")

    def write(self, row: dict[str, Any]) -> None:
        self.rows.append(row)
        if self.file:
            self.file.write(json.dumps(row) + "\n")
            self.file.flush()


def _rows(out: Path, keep: int) -> list[dict[str, Any]]:
    """The rows of `metrics.jsonl` up to step `keep`."""
    path = out / "metrics.jsonl"
    lines = path.read_text().splitlines() if keep and path.exists() else []
    return [row for row in map(_parse_row, lines) if row and row["step"] <= keep]


def _bar(steps: int, done: int, progress: bool) -> tqdm:
    """A bar in a terminal or a notebook; none in a pipe, where it would only be noise."""
    visible = "ipykernel" in sys.modules or sys.stderr.isatty()
    return tqdm(total=steps, initial=done, disable=not (progress and visible), leave=False)


def _parse_row(line: str) -> dict[str, Any] | None:
    """A row of the metrics file, or None for the torn last line of a killed run."""
    try:
        return json.loads(line)
    except ValueError:
        return None


def fit(
    trainer: Any,
    steps: int,
    out: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
    eval_fn: Callable[[Any], dict[str, float]] | None = None,
    eval_every: int = 50,
    checkpoint_every: int = 5,
    config: dict[str, Any] | None = None,
) -> list[dict[str, Any]]:
    """Run a trainer up to `steps` steps and return the rows of its metrics.

    Args:
        out: folder for `metrics.jsonl` and `checkpoint/`; None writes nothing.
        resume: go on from the checkpoint in `out`, to the same bits as without a break.  Rows
            after the checkpoint are cut; a finished run is left alone.
        eval_fn: called with the policy every `eval_every` steps; its keys join the row.
        config: JSON that must equal that of the run resumed (`steps` may differ).

    Raises:
        UserError: the folder cannot be written, or has no valid checkpoint of this config.
    """
    folder, done, seconds = Path(out) if out is not None else None, 0, 0.0
    config = json.loads(json.dumps(config or {}))
    if resume:
        if folder is None:
            raise UserError("resume needs the folder of the run; give out=FOLDER")
        done, seconds = _restore(trainer, folder, config)
    elif folder is not None:
        check_writable(folder)
        save_checkpoint(folder, trainer.state_dict(), _info(0, 0.0, config))
    if resume and done >= steps:  # finished: nothing is written
        return _rows(folder, done)
    log = _Log(folder, done)
    bar = _bar(steps, done, progress)
    while done < steps:
        start = time.perf_counter()
        stats = trainer.step()
        seconds += time.perf_counter() - start
        done += 1
        if eval_fn is not None and done % eval_every == 0:
            stats |= eval_fn(trainer.policy)
        log.write({"step": done, **stats})
        shown = ("reward", "kl_ref", "loss")
        bar.set_postfix({name: f"{stats[name]:.3f}" for name in shown if name in stats})
        bar.update()
        if folder is not None and (done % checkpoint_every == 0 or done == steps):
            save_checkpoint(folder, trainer.state_dict(), _info(done, seconds, config))
    bar.close()
    return log.rows


def _info(done: int, seconds: float, config: dict[str, Any]) -> dict[str, Any]:
    return {"step": done, "seconds": seconds, "config": config, "torch": torch.__version__}


def _restore(trainer: Any, folder: Path, config: dict[str, Any]) -> tuple[int, float]:
    """Load the checkpoint into the trainer; returns its step and its seconds."""
    state, info = load_checkpoint(folder)
    check_writable(folder)
    if not (isinstance(info, dict) and {"step", "seconds", "config"} <= set(info)):
        raise UserError(f"the checkpoint in {folder} is corrupt (no run wrote it); start anew")
    old, new = dict(info["config"]), dict(config)
    changed = sorted(k for k in {*old, *new} - {"steps"} if old.get(k) != new.get(k))
    if changed:
        raise UserError(
            f"the run in {folder} has another config ({', '.join(changed)} differ); "
            "resume it with its own options"
        )
    try:
        trainer.load_state_dict(state)
    except (RuntimeError, KeyError, ValueError, TypeError) as error:
        raise UserError(
            f"the checkpoint in {folder} does not fit this model; was the base exchanged?"
        ) from error
    return info["step"], info["seconds"]
