"""Make a chapter's notebook from its text: sync the pair, execute in a fresh kernel, clean.

    python -m minivisrl.lab.build [NN ...]          # build these chapters, or all
    python -m minivisrl.lab.build --check [NN ...]  # only compare the pairs

`notebooks/src/NN_name.py` (percent format) is edited; `notebooks/NN_name.ipynb` is its build.
"""

import argparse
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import nbformat
from nbformat import NotebookNode

from minivisrl import DATA, UserError

NOTEBOOKS = DATA.parent / "notebooks"
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"file_extension": ".py", "mimetype": "text/x-python", "name": "python"},
}
KERNEL_ENV = {
    "MINIVISRL_ONE_THREAD": "1",
    "OMP_NUM_THREADS": "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
}
WIDGET_VIEW = "application/vnd.jupyter.widget-view+json"


def notebook_path(src: Path) -> Path:
    """`notebooks/src/NN_name.py` -> `notebooks/NN_name.ipynb`."""
    return src.parent.parent / f"{src.stem}.ipynb"


def sync(src: Path) -> NotebookNode:
    """Read a percent-format text as a notebook without outputs, ids and metadata already stable."""
    try:
        import jupytext
    except ImportError:
        raise UserError('jupytext is missing; run: pip install -e ".[test]"') from None
    return clean(jupytext.read(src, fmt="py:percent"))


def clean(notebook: NotebookNode) -> NotebookNode:
    """Remove, in place, what changes by itself; outputs and execution counts stay.

    Gone: timestamps, interpreter version, stderr, widgets and their state, all metadata but tags.
    A cell's id is its position: a rebuild of an unchanged chapter is the same file.
    """
    notebook.metadata = nbformat.from_dict(METADATA)
    notebook.nbformat, notebook.nbformat_minor = 4, 5
    for index, cell in enumerate(notebook.cells):
        cell.id = f"cell-{index:02d}"
        tags = cell.metadata.get("tags")
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if cell.cell_type == "code":
            cell.outputs = [output for output in cell.outputs if _lasting(output)]
    return notebook


def _lasting(output: NotebookNode) -> bool:
    return output.get("name") != "stderr" and WIDGET_VIEW not in output.get("data", {})


def execute(notebook: NotebookNode, folder: Path, timeout: int = 300) -> NotebookNode:
    """Run every cell in a fresh kernel, one thread, `folder` as working directory; then clean.

    Raises nbclient's CellExecutionError, with the cell and its traceback, if a cell raises.
    """
    from nbclient import NotebookClient

    client = NotebookClient(
        notebook,
        kernel_name="python3",
        timeout=timeout,
        record_timing=False,
        store_widget_state=False,
        coalesce_streams=True,
        extra_arguments=["--IPKernelApp.log_level=40"],
        resources={"metadata": {"path": str(folder)}},
    )
    client.execute(env=os.environ | KERNEL_ENV)
    return clean(notebook)


def build(src: Path) -> str:
    """Sync, execute and write one chapter; returns a line with seconds and kB."""
    target, start = notebook_path(src), time.perf_counter()
    text = nbformat.writes(execute(sync(src), target.parent)) + "\n"
    temporary = target.with_suffix(".tmp")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, target)
    seconds = time.perf_counter() - start
    return f"{target.name}  {seconds:.1f} s  {len(text.encode()) / 1000:.0f} kB"


def pair_differences(src: Path, ipynb: Path) -> list[str]:
    """Where the cells of text and notebook differ in type, tags or source; [] if in step."""
    if not ipynb.exists():
        return [f"{ipynb.name} is not built"]
    text, built = sync(src).cells, nbformat.read(ipynb, as_version=4).cells
    problems = [f"{len(text)} cells in {src.name}, {len(built)} in {ipynb.name}"]
    problems = problems if len(text) != len(built) else []
    for index, (ours, theirs) in enumerate(zip(text, built, strict=False)):
        for field in ("cell_type", "source", "metadata"):
            if ours[field] != theirs[field]:
                problems.append(f"cell {index}: {field} differs")
    return problems


def sources(chapters: Sequence[str], folder: Path) -> list[Path]:
    """The texts of the chapters with these numbers ("6" or "06"), or of all."""
    found = {src.stem[:2]: src for src in sorted((folder / "src").glob("[0-9][0-9]_*.py"))}
    wanted = {chapter.zfill(2) for chapter in chapters} or found.keys()
    if unknown := wanted - found.keys():
        there = ", ".join(found) or "none"
        raise UserError(f"no chapter {', '.join(sorted(unknown))}; there are: {there}")
    return [src for number, src in found.items() if number in wanted]


def main(argv: Sequence[str] | None = None, folder: Path = NOTEBOOKS) -> int:
    """Build or compare; returns 1 if a cell raised or a pair differs, 2 for a user's mistake."""
    from nbclient.exceptions import CellExecutionError

    parser = argparse.ArgumentParser(prog="python -m minivisrl.lab.build")
    parser.add_argument("chapters", nargs="*", metavar="NN", help="chapter numbers; default: all")
    parser.add_argument("--check", action="store_true", help="only compare text and notebook")
    args, failed = parser.parse_args(argv), 0
    try:
        for src in sources(args.chapters, folder):
            if not args.check:
                print(build(src), flush=True)
            elif differences := pair_differences(src, notebook_path(src)):
                print(f"{src.name}: " + "; ".join(differences))
                failed = 1
    except CellExecutionError as error:
        print(f"{src.name}: a cell raised, the notebook is not written\n{error}", file=sys.stderr)
        failed = 1
    except UserError as error:
        print(error, file=sys.stderr)
        failed = 2
    return failed


if __name__ == "__main__":
    sys.exit(main())
