"""Each guard of the notebooks is seen to fail, on a chapter that is broken in one place."""

import copy
import importlib.util
import sys
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output

from minivisrl.lab.build import WIDGET_VIEW, clean

SPEC = importlib.util.spec_from_file_location(
    "notebook_guards", Path(__file__).parents[1] / "test_notebooks.py"
)
guards = importlib.util.module_from_spec(SPEC)
sys.modules[SPEC.name] = guards  # where dataclasses look for their module
SPEC.loader.exec_module(guards)

GIVEN = """def check_root(attempt):
    assert callable(attempt), ""
    assert abs(attempt(4) - TWO) < 1e-6, "the square of the root is the number"
TWO = 2"""
HEADING = "### Exercise 4.{n} | implement | 1 line | 2 min\nTake the root."
STUB = "def root(x):\n    raise NotImplementedError"
CHECK = '# NBVAL_CHECK_OUTPUT\ncheck("4.{n}", check_root, root)'
SOLUTION = """<details><summary>Solution 4.{n}</summary>

```python
# a comment that is no heading
def root(x):
    return math.sqrt(x)
```

</details>"""
HEADS = (
    "Setup",
    "By hand",
    "Experiment",
    "What to notice",
    "What can go wrong",
    "Exercises",
    "Summary",
)
MUTANTS = {f"4.{n}": ["\n    def root(x):\n        return x * x\n    "] for n in (1, 2, 3)}


def stream(text, name="stdout"):
    return new_output("stream", name=name, text=text)


def data(**mimes):
    return new_output("display_data", data={k.replace("_", "/"): v for k, v in mimes.items()})


def good():
    """A chapter that every guard accepts: the least a chapter can be."""
    text = (
        "word " * 40
        + "$r:\\mathcal{S}$ and `f[i](x)`, see [the text](src/) and [web](https://a.b)."
    )
    cells = [new_markdown_cell("# 4. A chapter"), new_markdown_cell("## Setup")]
    cells.append(new_code_cell("import math\nfrom minivisrl.lab import check  # setup(0)"))
    cells[-1].metadata["tags"] = ["setup"]
    cells.append(new_code_cell(GIVEN, metadata={"tags": ["given"]}))
    for head in HEADS[1:]:
        cells += [new_markdown_cell(f"## {head}"), new_markdown_cell(text), new_markdown_cell(text)]
        cells.append(new_code_cell("assert 1 + 1 == 2"))
        if head == "Exercises":
            for n in (1, 2, 3):
                cells += [new_markdown_cell(HEADING.format(n=n)), new_code_cell(STUB)]
                cells.append(new_code_cell(CHECK.format(n=n), outputs=[stream("not attempted\n")]))
                cells.append(new_markdown_cell(SOLUTION.format(n=n)))
    cells += [new_markdown_cell(text) for _ in range(14)]
    for count, cell in enumerate((c for c in cells if c.cell_type == "code"), 1):
        cell.execution_count = count
    return nbformat.from_dict(clean(new_notebook(cells=cells)))


def find(nb, start):
    return next(cell for cell in nb.cells if cell.source.startswith(start))


def code(nb, index):
    return guards.code_cells(nb)[index]


def change(start, old, new):
    def broken(nb):
        cell = find(nb, start)
        assert old in cell.source
        cell.source = cell.source.replace(old, new)

    return broken


def stored(*outputs):
    """The first check cell with these outputs."""

    def broken(nb):
        find(nb, "# NBVAL").outputs = list(outputs)

    return broken


def says(text):
    def broken(nb):
        nb.cells[-1].source += text

    return broken


def cut(start):
    def broken(nb):
        nb.cells.remove(find(nb, start))

    return broken


def strip_counts(nb):
    for cell in guards.code_cells(nb):
        cell.execution_count, cell.outputs = None, []


MARK, LASTING = "whole first line", "rebuild"
BROKEN = [  # guard, what is done to the good chapter, words of the problem it must report
    ("numbered", strip_counts, "None"),
    ("numbered", lambda nb: code(nb, 2).update(execution_count=9), "9"),
    ("numbered", lambda nb: nb.cells.remove(code(nb, 2)), "[1, 2, 4"),
    ("markers_exact", change("# NBVAL", "OUTPUT\n", "OUTPUT  # exact\n"), MARK),
    ("markers_exact", change("# NBVAL", "# NBVAL", "x = 1\n# NBVAL"), MARK),
    ("markers_exact", change("# NBVAL", "# NBVAL", "# nbval"), MARK),
    ("markers_exact", change("assert", "assert", "# NBVAL_SKIP\nassert"), MARK),
    ("markers_exact", change("assert", "assert", "# NBVAL_RAISES_EXCEPTION\nassert"), MARK),
    ("markers_exact", change("# NBVAL", "OUTPUT\n", "OUTPUT\n# NBVAL_IGNORE_OUTPUT\n"), MARK),
    ("markers_exact", lambda nb: code(nb, 2).metadata.update(tags=["nbval-skip"]), "nbval-skip"),
    ("markers_exact", lambda nb: code(nb, 2).metadata.update(tags=["raises-exception"]), "raises"),
    ("markers_exact", lambda nb: code(nb, 2).metadata.update(tags=["skip-execution"]), "skip-exe"),
    ("checked_cells_pure", stored(), "[]"),
    ("checked_cells_pure", stored(stream("1\n"), data(image_png="", text_plain="F")), "image/png"),
    ("checked_cells_pure", stored(data(text_html="<b>1</b>", text_plain="1")), "text/html"),
    ("checked_cells_pure", stored(stream("bar", name="stderr")), "stderr"),
    ("outputs_lasting", stored(stream("a warning", name="stderr")), "stderr"),
    ("outputs_lasting", stored(data(**{"image_svg+xml": "<svg/>"})), "SVG"),
    ("outputs_lasting", stored(data(text_plain="<Generator at 0x7f3a5c0e>")), "address"),
    ("outputs_lasting", stored(new_output("error", ename="E", evalue="", traceback=[])), "error"),
    ("outputs_lasting", stored(data(**{WIDGET_VIEW.replace("/", "_"): {}})), LASTING),
    ("outputs_lasting", lambda nb: code(nb, 1).metadata.update(execution={"t": "now"}), LASTING),
    ("outputs_lasting", lambda nb: nb.metadata.language_info.update(version="3.12.1"), LASTING),
    ("outputs_lasting", lambda nb: nb.metadata.update(widgets={}), LASTING),
    ("outputs_lasting", lambda nb: nb.cells[3].update(id="a1b2c3d4"), LASTING),
    ("no_absolute_paths", stored(stream("saved in /tmp/run\n")), "/tmp"),
    ("no_absolute_paths", stored(data(text_plain="PosixPath('/home/me/x')")), "/home"),
    ("no_absolute_paths", change("assert", "assert", "x = '/root/data'\nassert"), "/root"),
    ("no_absolute_paths", change("assert", "assert", "x = r'C:\\Users\\me'\nassert"), "C:"),
    ("no_absolute_paths", says(" See /work/main for it."), "/work"),
    ("links_resolve", says(" [next](99_missing.ipynb#part)"), "99_missing.ipynb"),
    ("links_resolve", says(' <img src="missing.png">'), "missing.png"),
    ("links_resolve", says(" [out](../../../etc/hostname)"), "hostname"),
    ("evidence", lambda nb: nb.cells.remove(find(nb, "# NBVAL")), "2 checked"),
    ("evidence", lambda nb: [nb.cells.remove(find(nb, "assert")) for _ in range(5)], "1 cells"),
    ("budget", lambda nb: nb.cells.extend(new_markdown_cell("x") for _ in range(30)), "cells"),
    ("budget", lambda nb: nb.cells.__delitem__(slice(29, None)), "29 cells"),
    ("budget", says(" word" * 3000), "words"),
    ("budget", lambda nb: [c.update(source="T") for c in nb.cells if "word" in c.source], "words"),
    ("budget", change("assert", "assert", "x = 1\n" * 40 + "assert"), "41 lines"),
    ("budget", stored(*[data(image_png="")] * 9), "9 figures"),
    ("budget", stored(data(image_png="A" * 400_000)), "kB"),
    ("setup_cell", lambda nb: nb.cells.insert(1, new_code_cell("1")), "first"),
    ("setup_cell", lambda nb: code(nb, 0).metadata.clear(), "tagged"),
    ("setup_cell", change("import math", "setup(0)", ""), "calls"),
    ("setup_cell", change("import math", "import math", "def f():\n    pass"), "defines"),
    *[("sections", cut(f"## {head}"), head.lower()) for head in HEADS if head != "Exercises"],
    ("sections", lambda nb: nb.cells.append(nb.cells.pop(4)), "experiment"),  # By hand comes last
    ("exercises_whole", cut("<details>"), "no folded solution"),
    ("exercises_whole", change("<details>", "```python", "```"), "no folded solution"),
    ("exercises_whole", change("### Exercise", "implement", "ponder"), "kind"),
    ("exercises_whole", change("### Exercise", " | 1 line | 2 min", ""), "kind"),
    ("exercises_whole", lambda nb: nb.cells.remove(find(nb, "# NBVAL")), "4.1: needs a checked"),
    ("exercises_whole", change("# NBVAL", '"4.1"', '"4.7"'), "4.1: needs a checked"),
    ("exercises_whole", change("# NBVAL", '"4.1"', '"5.1"'), "not a number of chapter 4"),
    ("exercises_whole", stored(stream("correct\n")), "4.1: needs a checked"),
]


@pytest.fixture(scope="module")
def chapter():
    return good()


@pytest.mark.parametrize("guard", guards.GUARDS, ids=lambda guard: guard.__name__)
def test_the_good_chapter_passes(chapter, guard):
    assert guard(chapter, 4) == []


def test_the_answers_of_the_good_chapter(chapter):
    assert guards.solutions_correct(chapter) == []
    assert guards.mutants_rejected(chapter, MUTANTS) == []


@pytest.mark.parametrize("name, broken, said", BROKEN)
def test_guard_fails(chapter, name, broken, said):
    nb = copy.deepcopy(chapter)
    broken(nb)
    assert nb != chapter
    assert said in "; ".join(getattr(guards, name)(nb, 4))


def test_every_guard_is_seen_to_fail():
    assert {guard.__name__ for guard in guards.GUARDS} == {name for name, _, _ in BROKEN}


def test_chapter_zero_may_be_shorter_and_needs_nothing_by_hand(chapter):
    nb = copy.deepcopy(chapter)
    cut("## By hand")(nb)
    assert guards.sections(nb, 0) == [] != guards.sections(nb, 4)


@pytest.mark.parametrize(
    "old, new, said",
    [
        ("math.sqrt(x)", "x", "the square"),
        ("math.sqrt(x)", "undefined", "NameError"),
        ("return math.sqrt(x)", "raise NotImplementedError", "not attempted"),
    ],
)
def test_a_wrong_solution_is_found(chapter, old, new, said):
    nb = copy.deepcopy(chapter)
    change("<details>", old, new)(nb)
    (problem,) = guards.solutions_correct(nb)
    assert problem.startswith("4.1: ") and said in problem


@pytest.mark.parametrize(
    "mutants, said",
    [
        ([], "no mutant"),
        (["def root(x):\n    return math.sqrt(x)"], "'correct'"),
        (["def root(x):\n    return 1 / 0"], "ZeroDivisionError"),
        (["pass"], "'not attempted'"),
        (["root = 'a string'"], "no hint"),
    ],
)
def test_a_check_that_lets_a_mutant_live_is_found(chapter, mutants, said):
    (problem,) = guards.mutants_rejected(chapter, MUTANTS | {"4.1": mutants})
    assert problem.startswith("4.1: ") and said in problem
    assert guards.mutants_rejected(chapter, MUTANTS | {"4.9": ["x = 1"]}) != []


def test_an_assert_that_may_never_run_does_not_count():
    plain = guards.has_plain_assert
    assert plain(new_code_cell("for x in y:\n    assert x"))
    assert not plain(new_code_cell("def f():\n    assert 1\nclass A:\n    assert 1"))
    assert not plain(new_code_cell("# assert 1"))


def test_no_chapter_yet_is_an_empty_list():
    assert guards.sources([], Path("/nonexistent")) == []
