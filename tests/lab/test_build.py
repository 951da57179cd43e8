"""A tiny chapter goes through a real kernel: built twice it is the same file; it fails loudly."""

import shutil
import sys

import nbformat
import pytest

from minivisrl import UserError
from minivisrl.lab import build as builder
from minivisrl.lab.build import build, main, notebook_path, pair_differences, sources, sync

CHAPTER = """# %% [markdown]
# # 7. A tiny chapter

# %% tags=["setup"]
import os
import sys

import matplotlib.pyplot as plt
from checks.ch07 import ANSWER

from minivisrl import lab

generator = lab.setup(0)

# %%
# NBVAL_CHECK_OUTPUT
print(ANSWER, os.environ["OMP_NUM_THREADS"], os.path.basename(os.getcwd()))

# %%
print("a warning", file=sys.stderr)
print("kept")

# %%
lab.curves({"policy": [0, 1]}, ylabel="reward")
plt.show()

# %%
lab.explore(lambda slope: lab.curves({"policy": [0, slope]}, ylabel="y"), slope=(0, 2))

# %%
lab.show_source(lab.check)
"""


def write_chapter(root):
    folder = root / "notebooks"
    for name, text in (("checks/ch07.py", "ANSWER = 42\n"), ("src/07_tiny.py", CHAPTER)):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text(text)
    return folder / "src" / "07_tiny.py"


@pytest.fixture
def src(tmp_path):
    return write_chapter(tmp_path)


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    src = write_chapter(tmp_path_factory.mktemp("book"))
    return src, build(src), notebook_path(src)


def test_builds_and_says_seconds_and_size(built):
    _, line, ipynb = built
    size = f"{ipynb.stat().st_size / 1000:.0f} kB"
    assert line.startswith("07_tiny.ipynb  ") and line.endswith(size) and " s  " in line


def test_keeps_outputs_and_counts_and_nothing_that_changes_by_itself(built):
    notebook = nbformat.read(built[2], as_version=4)
    nbformat.validate(notebook)
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == [1, 2, 3, 4, 5, 6]
    assert [cell.id for cell in notebook.cells[:2]] == ["cell-00", "cell-01"]
    assert code[0].metadata == {"tags": ["setup"]} and not code[0].outputs
    assert code[1].outputs[0].text == "42 1 notebooks\n" and not code[1].metadata
    assert [output.text for output in code[2].outputs] == ["kept\n"]  # stderr is gone
    for cell in code[3:5]:  # one picture each; the slider is gone, its first picture stays
        assert [sorted(output.data) for output in cell.outputs] == [["image/png", "text/plain"]]
    assert code[5].outputs[0].data["text/markdown"].startswith("```python\ndef check(")
    assert "version" not in notebook.metadata.language_info and "widgets" not in notebook.metadata


def test_a_rebuild_is_the_same_file(built):
    src, _, ipynb = built
    before = ipynb.read_bytes()
    build(src)
    assert ipynb.read_bytes() == before


def test_pair_in_step_and_out_of_step(built, src, capsys):
    ipynb, folder = notebook_path(src), src.parent.parent
    shutil.copy(built[2], ipynb)
    assert pair_differences(src, ipynb) == []
    assert main(["--check"], folder) == 0
    src.write_text(CHAPTER.replace('print("kept")', 'print("changed")') + "\n# %%\n1 + 1\n")
    assert pair_differences(src, ipynb) == ["8 cells in 07_tiny.py, 7 in 07_tiny.ipynb"] + [
        "cell 3: source differs"
    ]
    src.write_text(CHAPTER.replace(' tags=["setup"]', ""))
    assert pair_differences(src, ipynb) == ["cell 1: metadata differs"]
    assert main(["--check", "7"], folder) == 1
    assert "07_tiny.py: cell 1: metadata differs" in capsys.readouterr().out


def test_a_cell_that_raises_fails_loudly_and_writes_nothing(src, capsys):
    src.write_text(CHAPTER + "\n# %%\nraise ValueError('broken on purpose')\n")
    assert main([], src.parent.parent) == 1
    assert "broken on purpose" in capsys.readouterr().err
    assert [path.name for path in src.parent.parent.glob("*.*")] == []
    assert pair_differences(src, notebook_path(src)) == ["07_tiny.ipynb is not built"]


def test_chapters_by_number_and_an_unknown_one_in_one_line(src, capsys):
    folder = src.parent.parent
    assert sources(["7"], folder) == sources(["07"], folder) == sources([], folder) == [src]
    assert main(["9"], folder) == 2
    assert capsys.readouterr().err == "no chapter 09; there are: 07\n"


def test_without_jupytext_one_line_says_what_to_install(src, monkeypatch):
    monkeypatch.setitem(sys.modules, "jupytext", None)
    with pytest.raises(UserError, match=r'pip install -e "\.\[test\]"'):
        sync(src)


def test_the_repository_is_where_the_build_looks():
    assert builder.NOTEBOOKS.name == "notebooks" and (builder.NOTEBOOKS / "checks").is_dir()
