"""Guards the guard: a chapter that nbval would pass without checking anything fails here.

nbval silently skips the comparison of a cell without execution count, ignores a marker with text
after it, and has tags that switch it off; a stripped notebook is green whatever the library does.
Each guard takes a notebook and returns its problems, and `tests/lab/test_guards.py` sees each fail.
"""

import ast
import contextlib
import copy
import importlib
import io
import re
import textwrap
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path

import matplotlib.pyplot as plt
import nbformat
import pytest
from IPython.core.inputtransformer2 import TransformerManager
from nbformat import NotebookNode

from minivisrl.lab.build import NOTEBOOKS, clean, notebook_path, pair_differences, sources

ROOT = NOTEBOOKS.parent
BUILT = sorted(NOTEBOOKS.glob("[0-9][0-9]_*.ipynb"))
MARKER = "# NBVAL_CHECK_OUTPUT"
TAGS = {"setup", "given"}
KINDS = {"predict", "implement", "find the bug", "ablate", "extend"}
SECTIONS = (
    "setup",
    "by hand",
    "experiment|train",
    "what to notice",
    "what can go wrong",
    "exercise",
    "summary",
)
NUMBERED = r"(\d+\.\d+)"
EXERCISE = re.compile(rf"^### Exercise {NUMBERED} \| ([^|]+?) \| [^|]+ \| [^|]+$", re.M)
SOLUTION = re.compile(
    rf"<details><summary>Solution {NUMBERED}</summary>\s*```python\n(.*?)```\s*</details>", re.S
)
MATH = r"\$\$.*?\$\$|\$[^$\n]*\$"
ABSOLUTE = re.compile(r"(?<![\w.-])/(?:home|root|work|tmp|Users)/|\b[A-Z]:\\+[A-Za-z]")
LINK = re.compile(r"\[[^\]]*\]\(([^)\s]+)[^)]*\)|(?:src|href)=[\"']([^\"']+)[\"']")


# What the guards look at


def code_cells(nb: NotebookNode) -> list[NotebookNode]:
    return [cell for cell in nb.cells if cell.cell_type == "code"]


def markdown(nb: NotebookNode) -> list[str]:
    return [cell.source for cell in nb.cells if cell.cell_type == "markdown"]


def prose(nb: NotebookNode) -> str:
    """Markdown without code, mathematics and HTML tags."""
    text = re.sub(r"```.*?```", " ", "\n".join(markdown(nb)), flags=re.S)
    return re.sub(rf"`[^`\n]*`|{MATH}", " x ", text, flags=re.S)


def tags(cell: NotebookNode) -> set[str]:
    return set(cell.metadata.get("tags", ()))


def checked(cell: NotebookNode) -> bool:
    return cell.source.split("\n")[0] == MARKER


def texts(cell: NotebookNode) -> list[str]:
    """Every text stored as output of a cell."""
    found = [output.get("text", "") for output in cell.outputs]
    for output in cell.outputs:
        data = output.get("data", {})
        found += [str(data[mime]) for mime in data if not mime.startswith("image/png")]
    return found


def syntax(cell: NotebookNode) -> ast.Module:
    return ast.parse(TransformerManager().transform_cell(cell.source))


def has_plain_assert(cell: NotebookNode) -> bool:
    """Whether running the cell runs an assert: one inside a function might never be called."""
    todo = list(syntax(cell).body)
    while todo:
        node = todo.pop()
        if isinstance(node, ast.Assert):
            return True
        if not isinstance(node, ast.FunctionDef | ast.ClassDef | ast.AsyncFunctionDef):
            todo += ast.iter_child_nodes(node)
    return False


# The guards: (notebook, chapter number) -> problems


def numbered(nb: NotebookNode, chapter: int) -> list[str]:
    counts = [cell.execution_count for cell in code_cells(nb)]
    return [] if counts == list(range(1, len(counts) + 1)) else [f"execution counts {counts}"]


def markers_exact(nb: NotebookNode, chapter: int) -> list[str]:
    problems = []
    for index, cell in enumerate(code_cells(nb), 1):
        rest = cell.source.removeprefix(f"{MARKER}\n")
        if re.search("nbval|PYTEST_VALIDATE", rest, re.I):
            problems.append(f"[{index}] a marker that is not the whole first line, or another")
        if odd := tags(cell) - TAGS:
            problems.append(f"[{index}] tags {sorted(odd)}, only {sorted(TAGS)} are known")
    return problems


def checked_cells_pure(nb: NotebookNode, chapter: int) -> list[str]:
    problems = []
    for index, cell in enumerate(code_cells(nb), 1):
        kinds = {output.get("name") or "+".join(output.get("data", ())) for output in cell.outputs}
        if checked(cell) and not (kinds and kinds <= {"stdout", "text/plain"}):
            problems.append(f"[{index}] checked cell has output {sorted(kinds)}, not text alone")
    return problems


def outputs_lasting(nb: NotebookNode, chapter: int) -> list[str]:
    problems = [] if nb == clean(copy.deepcopy(nb)) else ["not as the build leaves it: rebuild"]
    for index, cell in enumerate(code_cells(nb), 1):
        for output in cell.outputs:
            if output.output_type == "error" or output.get("name") == "stderr":
                problems.append(f"[{index}] stored error or stderr")
            if "image/svg+xml" in output.get("data", {}):
                problems.append(f"[{index}] SVG always differs; store PNG")
        if any(re.search(r"\b0x[0-9a-f]{6,}", text) for text in texts(cell)):
            problems.append(f"[{index}] an object address in the output")
    return problems


def no_absolute_paths(nb: NotebookNode, chapter: int) -> list[str]:
    found = [text for cell in code_cells(nb) for text in texts(cell)]
    found += [cell.source for cell in code_cells(nb)]
    found += [re.sub(MATH, " ", text, flags=re.S) for text in markdown(nb)]  # R:\mathcal{S} is none
    return [f"absolute path near {m[0]!r}" for text in found for m in ABSOLUTE.finditer(text)]


def links_resolve(nb: NotebookNode, chapter: int) -> list[str]:
    problems = []
    for pair in LINK.findall(prose(nb)):
        target = "".join(pair).split("#")[0]
        if not target or re.match(r"[a-z]+:", target):
            continue
        path = (NOTEBOOKS / target).resolve()
        if not (path.exists() and path.is_relative_to(ROOT)):
            problems.append(f"link to {target}")
    return problems


def evidence(nb: NotebookNode, chapter: int) -> list[str]:
    checks = sum(checked(cell) for cell in code_cells(nb))
    asserts = sum(has_plain_assert(cell) for cell in code_cells(nb))
    problems = [] if checks >= 3 else [f"{checks} checked cells, at least 3"]
    return problems + ([] if asserts >= 2 else [f"{asserts} cells with a plain assert, at least 2"])


def budget(nb: NotebookNode, chapter: int) -> list[str]:
    words = len(re.findall(r"[A-Za-z][\w'-]*", re.sub(r"<[^>]*>|\]\([^)]*\)", " ", prose(nb))))
    figures = sum("image/png" in o.get("data", {}) for c in code_cells(nb) for o in c.outputs)
    longest = max((cell.source.count("\n") + 1 for cell in code_cells(nb)), default=0)
    kilobytes = len(nbformat.writes(nb).encode()) / 1000
    limits = {
        "cells": (len(nb.cells), 30, 70),
        "words": (words, 600 if chapter == 0 else 1000, 3500),
        "figures": (figures, 0, 8),
        "lines in a code cell": (longest, 1, 40),
        "kB": (round(kilobytes), 0, 400),
    }
    return [f"{n} {what}, not in {a}..{b}" for what, (n, a, b) in limits.items() if not a <= n <= b]


def setup_cell(nb: NotebookNode, chapter: int) -> list[str]:
    first = next(iter(code_cells(nb)), None)
    if first is None or "setup" not in tags(first) or "setup(" not in first.source:
        return ["the first code cell calls lab.setup(seed) and is tagged setup"]
    defined = [n for n in syntax(first).body if isinstance(n, ast.FunctionDef | ast.ClassDef)]
    return ["the setup cell defines something"] if defined else []


def sections(nb: NotebookNode, chapter: int) -> list[str]:
    wanted = [name for name in SECTIONS if chapter != 0 or name != "by hand"]
    heads = re.findall(r"^(?:#+ +|\*\*)(.+)$", prose(nb), re.M)
    rest = iter(heads)  # a subsequence: each search goes on where the last one stopped
    for name in wanted:
        if not any(re.search(name, head, re.I) for head in rest):
            return [f"no section {name!r}, or not in this order"]
    return []


@dataclass
class Exercise:
    kind: str
    stub: list[str] = field(default_factory=list)
    check: str = ""
    check_output: str = ""
    solution: str = ""


def graded(cell: NotebookNode) -> str:
    """Number of the exercise that a cell checks, "" for none."""
    for node in ast.walk(syntax(cell)):
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            name = getattr(node.func, "id", getattr(node.func, "attr", ""))
            if name == "check" and isinstance(node.args[0].value, str):
                return node.args[0].value
    return ""


def exercises(nb: NotebookNode) -> dict[str, Exercise]:
    """Exercise number -> kind, stub, check cell and folded solution."""
    found, current = {}, None
    for cell in nb.cells:
        if cell.cell_type == "markdown":
            for number, kind in EXERCISE.findall(cell.source):
                current = found[number] = Exercise(kind.strip())
            for number, source in SOLUTION.findall(cell.source):
                found.setdefault(number, Exercise("")).solution = source
        elif number := graded(cell):
            exercise = found.setdefault(number, Exercise(""))
            exercise.check, exercise.check_output = cell.source, "".join(texts(cell))
        elif current is not None and not current.check:
            current.stub.append(cell.source)
    return found


def exercises_whole(nb: NotebookNode, chapter: int) -> list[str]:
    found = exercises(nb)
    low = 1 if chapter == 0 else 3
    problems = [] if low <= len(found) <= 5 else [f"{len(found)} exercises, not in {low}..5"]
    for number, exercise in found.items():
        if exercise.kind not in KINDS:
            problems.append(f"{number}: heading is '### Exercise N.M | kind | size | minutes'")
        if number.split(".")[0] != str(chapter):
            problems.append(f"{number}: not a number of chapter {chapter}")
        if exercise.check_output != "not attempted\n" or not exercise.check.startswith(MARKER):
            problems.append(f"{number}: needs a checked cell that stores 'not attempted'")
        if not exercise.solution:
            problems.append(f"{number}: no folded solution with a python block")
    return problems


# Answers, run against their checks


def shared_namespace(nb: NotebookNode) -> dict:
    scope = {"__name__": "__main__"}
    for tag in ("setup", "given"):
        for cell in code_cells(nb):
            if tag in tags(cell):
                exec(cell.source, scope)
    return scope


def verdict(scope: dict, exercise: Exercise, answer: str) -> str:
    """What the check cell prints once `answer` has replaced the stub; raises what it raises."""
    scope, printed = dict(scope), io.StringIO()
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            for source in (*exercise.stub, textwrap.dedent(answer)):
                exec(source, scope)
        with contextlib.redirect_stdout(printed):
            exec(exercise.check, scope)
    finally:
        plt.close("all")
    return printed.getvalue().strip()


def solutions_correct(nb: NotebookNode) -> list[str]:
    scope, problems = shared_namespace(nb), []
    for number, exercise in exercises(nb).items():
        try:
            said = verdict(scope, exercise, exercise.solution)
        except Exception as error:  # the report goes on with the next one, and fails in the end
            said = repr(error)
        if said != "correct":
            problems.append(f"{number}: the solution gives {said!r}")
    return problems


def mutants_rejected(nb: NotebookNode, mutants: dict[str, list[str]]) -> list[str]:
    scope, problems = shared_namespace(nb), []
    for number, exercise in exercises(nb).items():
        if not mutants.get(number):
            problems.append(f"{number}: no mutant")
        for index, mutant in enumerate(mutants.get(number, ())):
            try:
                said = verdict(scope, exercise, mutant)
            except AssertionError as error:
                said = "" if str(error).removeprefix(f"Exercise {number}: ") else "no hint"
            except Exception as error:
                said = repr(error)
            if said:
                problems.append(f"{number}: mutant {index} gives {said!r}, not a hint")
    return problems + [
        f"{number}: mutant of no exercise" for number in mutants.keys() - exercises(nb)
    ]


# The chapters

GUARDS = (
    numbered,
    markers_exact,
    checked_cells_pure,
    outputs_lasting,
    no_absolute_paths,
    links_resolve,
    evidence,
    budget,
    setup_cell,
    sections,
    exercises_whole,
)
chapters = pytest.mark.parametrize("path", BUILT, ids=lambda path: path.stem)


@lru_cache
def read(path: Path) -> NotebookNode:
    return nbformat.read(path, as_version=4)


@pytest.fixture
def in_notebooks(monkeypatch):
    """The answers run in this process as cells do: `notebooks/` is the working directory."""
    monkeypatch.chdir(NOTEBOOKS)
    monkeypatch.syspath_prepend(NOTEBOOKS)


@chapters
@pytest.mark.parametrize("guard", GUARDS, ids=lambda guard: guard.__name__)
def test_guard(path, guard):
    assert guard(read(path), int(path.stem[:2])) == []


@chapters
def test_solutions_are_correct(path, in_notebooks):
    assert solutions_correct(read(path)) == []


@chapters
def test_checks_reject_mutants(path, in_notebooks):
    checks = importlib.import_module(f"checks.ch{path.stem[:2]}")
    assert mutants_rejected(read(path), checks.MUTANTS) == []


@chapters
def test_every_notebook_has_its_text(path):
    assert (NOTEBOOKS / "src" / f"{path.stem}.py").exists()


@pytest.mark.parametrize("src", sources([], NOTEBOOKS), ids=lambda src: src.stem)
def test_pair_is_in_step(src):
    assert pair_differences(src, notebook_path(src)) == []
