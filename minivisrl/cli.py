"""The command line: `minivisrl run | list | grid | pretrain | papers | lab`.

A mistake of the user's ends with exit code 2 and one line on stderr; `--help` imports nothing
heavy.
"""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import re
import subprocess
import sys
from typing import Any

from minivisrl import DATA, UserError, __version__

HELP = f"""minivisrl {__version__}: reinforcement learning in vision, as a survey you can run.

usage: minivisrl COMMAND [options]

  run PILLAR/CELL   train one recipe: figures, metrics, checkpoint and result in one folder
  list              recipes, with paper, model, gold metric, expected gain and minutes
  grid              run recipes over seeds and controls; fills data/results/grid.json
  pretrain NAME     make a base checkpoint anew
  papers            the survey's works and which recipe shows their mechanism
  lab               open JupyterLab at chapter 0

First try:  minivisrl run mllm/rlvr-grpo
Help on a command:  minivisrl COMMAND --help
"""


def parse(program: str, args: list[str], *defaults: Any) -> tuple:
    """Parse options into dataclasses shaped like `defaults`, whose fields share one level.

    Raises:
        UserError: tyro's complaint as one line.
        SystemExit: 0, after printing the help.
    """
    from typing import Annotated

    import tyro

    flat = tyro.conf.arg(name="")
    kind = tuple[tuple(Annotated[type(default), flat] for default in defaults)]
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.cli(kind, default=defaults, args=args, prog=f"minivisrl {program}")
    except SystemExit as stop:
        if not stop.code:
            raise
        raise UserError(
            f"{_one_line(complaint.getvalue())}; see minivisrl {program} --help"
        ) from None


def _one_line(box: str) -> str:
    """The message and the suggestion inside the box that tyro prints."""
    lines = [re.sub(r"[│╭╮╰╯─]+", " ", line).strip() for line in box.splitlines()[1:]]
    text = "\n".join("" if set(line) <= {"-"} else line for line in lines)
    blocks = [" ".join(block.split()) for block in text.split("\n\n")]
    blocks = [b for b in blocks if b and not b.startswith(("Argument helptext", "For full"))]
    message = re.sub(r"^Error parsing \d+(\.[\w.]*)?: ", "", blocks[0])
    hint = re.search(r"Perhaps you meant: (--\S+)", " ".join(blocks))
    return f"{message}; perhaps you meant {hint[1]}" if hint else message


def _run(args: list[str]) -> None:
    """minivisrl run PILLAR/CELL [options]"""
    if args[:1] in (["--help"], ["-h"]):
        print("usage: minivisrl run PILLAR/CELL [options]   options: minivisrl run RECIPE --help")
        return
    if not args or args[0].startswith("-"):
        raise UserError("run needs a recipe, for example: minivisrl run mllm/rlvr-grpo")
    from minivisrl.recipes.run import RunOptions, default_config, find_recipe, run

    name = args[0]
    find_recipe(name)
    options, config = parse(f"run {name}", args[1:], RunOptions(), default_config(name))
    done = run(name, config, options)
    if done.shown:  # a finished run that is resumed is left alone
        draw(done)
    result = done.result
    print(
        f"{result['metric']} on held-out prompts: {result['before']:.3f} -> {result['after']:.3f}"
    )
    for split, score in result["ood"].items():
        print(f"  {split}: {score['before']:.3f} -> {score['after']:.3f}")
    print(f"{result['steps']} steps in {result['seconds']:.0f} s; see {done.folder}/curve.png")


def draw(done: Any) -> None:
    """`curve.png` and `samples.png` of a finished run, in its folder."""
    import matplotlib
    import torch

    matplotlib.use("Agg")

    from minivisrl.lab.plots import curves, gallery

    rows = done.rows
    held = [(row["step"], row["heldout"]) for row in rows if "heldout" in row]
    result = done.result
    title = (
        f"{result['recipe']}: held-out {result['before']:.2f} before, {result['after']:.2f} after"
    )
    figure = curves(
        {"reward": [[row["reward"] for row in rows]]} if rows and "reward" in rows[0] else {},
        ylabel="reward per completion",
        title=title,
        smooth=5,
    )
    ends = {0: result["before"], result["steps"]: result["after"]}
    steps, scores = zip(*sorted((dict(held) | ends).items()), strict=True)
    figure.axes[0].plot(steps, scores, "o-", label="held-out")
    figure.axes[0].legend()
    figure.savefig(done.folder / "curve.png", bbox_inches="tight")
    sides = done.shown["before"], done.shown["after"]  # each with images and captions
    count = len(sides[0][1])
    rows = [range(start, min(start + 3, count)) for start in range(0, count, 3)]
    order = [(index, side) for row in rows for side in sides for index in row]
    figure = gallery(
        torch.stack([images[index] for index, (images, _) in order]),
        [told[index] for index, (_, told) in order],
        columns=3,
        title="the same held-out prompts before and after",
        row_labels=("before", "after") * len(rows),
    )
    figure.savefig(done.folder / "samples.png", bbox_inches="tight")


def _list(args: list[str]) -> None:
    """minivisrl list"""
    _no_options("list", args, "print every recipe with paper, model, metric, gain and minutes")
    from minivisrl.recipes import RECIPES

    path = DATA / "results" / "grid.json"
    cells = json.loads(path.read_text())["cells"] if path.exists() else {}
    for name, recipe in RECIPES.items():
        gain = cells.get(name, {}).get("gain")
        expected = "not measured yet" if gain is None else f"{100 * gain:+.0f} points"
        print(f"{name:26} {recipe.paper}")
        print(f"{'':26} {recipe.model}; {recipe.metric}: {expected}; {recipe.minutes:g} min")


def _papers(args: list[str]) -> None:
    """minivisrl papers [WORD ...]"""
    with (DATA / "papers.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    if args[:1] == ["--help"]:
        print("usage: minivisrl papers [WORD ...]   list the works whose entry has every WORD")
        return
    if options := [word for word in args if word.startswith("-")]:
        raise UserError(f"papers takes words, not options: {' '.join(options)}")
    wanted = [word.lower() for word in args]
    rows = [row for row in rows if all(w in " ".join(row.values()).lower() for w in wanted)]
    for row in rows:
        print(f"{row['id']:24} {row['leaf']:28} {row['mechanism_key']:34} {row['title'][:80]}")
    print(f"{len(rows)} works")


def _pretrain(args: list[str]) -> None:
    """minivisrl pretrain NAME [options]"""
    from minivisrl.recipes.pretrain import CHECKPOINTS, PretrainOptions, config_of, pretrain

    if args[:1] in (["--help"], ["-h"]):
        print(f"usage: minivisrl pretrain NAME [options]   NAME: {', '.join(CHECKPOINTS)}")
        return
    if not args or args[0].startswith("-"):
        raise UserError(f"pretrain needs a checkpoint's name: {', '.join(CHECKPOINTS)}")
    options, config = parse(f"pretrain {args[0]}", args[1:], PretrainOptions(), config_of(args[0]))
    folder, card = pretrain(args[0], config, options)
    print(f"{card}\nwrote {folder}")


def _grid(args: list[str]) -> None:
    """minivisrl grid [options]"""
    from minivisrl.recipes.grid import GridOptions, grid

    (options,) = parse("grid", args, GridOptions())
    grid(options)


def _lab(args: list[str]) -> None:
    """minivisrl lab [jupyter options]"""
    notebook = DATA.parent / "notebooks" / "00_start_here.ipynb"
    if args[:1] == ["--help"]:
        print("usage: minivisrl lab [options of jupyter lab]   open JupyterLab at chapter 0")
        return
    raise SystemExit(subprocess.call([sys.executable, "-m", "jupyterlab", str(notebook), *args]))


def _no_options(name: str, args: list[str], purpose: str) -> None:
    """For commands without options: print help if asked, refuse anything else."""
    if args[:1] in (["--help"], ["-h"]):
        print(f"usage: minivisrl {name}   {purpose}")
        raise SystemExit(0)
    if args:
        raise UserError(f"{name} takes no options, got {' '.join(args)}")


COMMANDS = dict(run=_run, list=_list, grid=_grid, pretrain=_pretrain, papers=_papers, lab=_lab)


def main(argv: list[str] | None = None) -> int:
    """Entry point; returns the exit code."""
    args = sys.argv[1:] if argv is None else argv
    try:
        _dispatch(args)
        sys.stdout.flush()
    except UserError as error:
        print(f"minivisrl: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # `minivisrl list | head`: nobody reads what is left
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def _dispatch(args: list[str]) -> None:
    """Run the command that `args` names."""
    if not args or args[0] in ("--help", "-h"):
        print(HELP, end="")
    elif args[0] == "--version":
        print(__version__)
    elif args[0] not in COMMANDS:
        raise UserError(f"unknown command {args[0]!r}; choose {', '.join(COMMANDS)}")
    else:
        COMMANDS[args[0]](args[1:])


if __name__ == "__main__":
    sys.exit(main())
