"""The map and the package say the same: equations, `Survey:` lines, chapters, tests, catalogue."""

import ast
import csv
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from minivisrl import DATA, UserError
from minivisrl.survey import (
    CHAPTERS,
    EQUATIONS,
    PLANNED_ROOMS,
    SECTIONS,
    URL,
    Equation,
    equation,
    notebook,
    resolve,
    rooms,
    section,
)

ROOT = DATA.parent
MODULES = {p: ast.parse(p.read_text()) for p in sorted((ROOT / "minivisrl").rglob("*.py"))}
MAPPED_ROOMS = {room for s in SECTIONS for room in s.rooms}
KNOWN = {eq.number: eq for eq in EQUATIONS}
LIST = r"{item}(?:(?:,\s*(?:and\s+)?|\s+and\s+|\s*-\s*){item})*"
SECTION_LIST = re.compile(r"\bsections?\s+(" + LIST.format(item=r"\d+(?:\.\d+)*") + ")", re.I)
EQUATION_LIST = re.compile(r"\bEqs?\.\s+(" + LIST.format(item=r"\(\d+\)") + ")")
SURVEY_LINE = re.compile(r"^Survey:(.*?)(?=\n\s*\n|\n[A-Z]\w*:|\Z)", re.S | re.M)


def equations_in(text: str) -> set[int]:
    """Numbers in "Eq. (3)", "Eqs. (1), (2) and (7)" and the range "Eqs. (8)-(10)"."""
    found: set[int] = set()
    for numbers in EQUATION_LIST.findall(text):
        for first, last in re.findall(r"\((\d+)\)(?:\s*-\s*\((\d+)\))?", numbers):
            found |= set(range(int(first), int(last or first) + 1))
    return found


def survey_line(docstring: str) -> tuple[set[str], set[int]] | None:
    """Sections and equations that a module's `Survey:` line cites; None where there is no line."""
    if not (line := SURVEY_LINE.search(docstring)):
        return None
    cited = re.sub(r"\s*\([^()]*[a-z][^()]*\)", "", line[1])  # without "(first stage: ...)"
    numbers = " ".join(SECTION_LIST.findall(cited))
    return set(re.findall(r"\d+(?:\.\d+)*", numbers)), equations_in(cited)


def room_of(path: Path) -> str:
    return path.relative_to(ROOT / "minivisrl").parts[0].removesuffix(".py")


def related(number: str, other: str) -> bool:
    """Whether one section lies in the other, or is it."""
    return f"{number}.".startswith(f"{other}.") or f"{other}.".startswith(f"{number}.")


def line_problems(room: str, docstring: str, known: dict[int, Equation]) -> list[str]:
    """What is wrong with a `Survey:` line: things that do not exist, or do not belong together."""
    if (cited := survey_line(docstring)) is None:
        return []
    sections, equations = cited
    existing = {s.number for s in SECTIONS}
    problems = [f"section {s} does not exist" for s in sorted(sections - existing)]
    problems += [f"equation {n} does not exist" for n in sorted(equations - known.keys())]
    for n in sorted(equations & known.keys()):
        if not any(related(known[n].section, s) for s in sections):
            problems.append(f"equation {n} is in section {known[n].section}, which is not cited")
    homes = {r for s in sections & existing for r in rooms(s)}
    if room in MAPPED_ROOMS and room not in homes:
        problems.append(f"cites no section of its room {room!r}, only {sorted(sections)}")
    return problems


def docstring_problems(tree: ast.Module, known: dict[int, Equation]) -> list[str]:
    """Equations that a function or class claims, and its module's `Survey:` line does not."""
    cited = survey_line(ast.get_docstring(tree) or "")
    problems = []
    for node in tree.body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for n in sorted(equations_in(ast.get_docstring(node) or "")):
                if cited and n not in cited[1]:
                    problems.append(f"{node.name} names Eq. ({n}), its module's line does not")
                if n in known and known[n].planned:
                    problems.append(f"{node.name} names Eq. ({n}), which the map calls planned")
    return problems


def equation_problems(eq: Equation) -> list[str]:
    """Where an entry of the map and the code, or the tests, disagree."""
    try:
        function = resolve(eq.function)
    except (ImportError, AttributeError) as error:
        return [] if eq.planned else [f"Eq. ({eq.number}): {error}"]
    if eq.planned:
        return [f"Eq. ({eq.number}) is marked planned, but {eq.function} exists"]
    module, _, name = eq.function.partition(":")
    problems = []
    if eq.number not in equations_in(function.__doc__ or ""):
        problems.append(f"the docstring of {eq.function} does not name Eq. ({eq.number})")
    cited = survey_line(resolve(f"{module}:__doc__") or "")
    if not cited or eq.number not in cited[1]:
        problems.append(f"the Survey: line of {module} does not cite Eq. ({eq.number})")
    test = ROOT / eq.test
    if not test.is_file() or not re.search(rf"\b{name}\b", test.read_text()):
        problems.append(f"Eq. ({eq.number}): {eq.test} does not test {name}")
    return problems


def tag_problems(eq: Equation, number: int, source: str) -> list[str]:
    r"""A chapter prints its equations with the survey's number: `\tag{12}`."""
    tagged = rf"\tag{{{eq.number}}}" in source
    return [] if tagged else [f"chapter {number} does not show Eq. ({eq.number}) as \\tag"]


def test_the_map_is_complete() -> None:
    assert URL.endswith("/2508.08189v3")
    assert [eq.number for eq in EQUATIONS] == list(range(1, 18))
    assert [c.number for c in CHAPTERS] == list(range(25))
    numbers = [s.number for s in SECTIONS]
    assert numbers == sorted(set(numbers)), "sections in order, once each"
    for number in numbers:
        assert "." not in number or number.rpartition(".")[0] in numbers


def test_every_leaf_of_the_survey_has_a_chapter() -> None:
    numbers = [s.number for s in SECTIONS]
    taught = {number for c in CHAPTERS for number in c.sections}
    assert taught <= set(numbers)
    leaves = [n for n in numbers if not any(m.startswith(f"{n}.") for m in numbers)]
    untaught = [n for n in leaves if not any(related(n, t) for t in taught)]
    assert untaught == ["6"], "the conclusion is the only section without a chapter"
    assert all(eq.chapters for eq in EQUATIONS)


def test_rooms_exist_unless_planned() -> None:
    built = {room_of(path) for path in MODULES}
    assert MAPPED_ROOMS - built == set(PLANNED_ROOMS)


@pytest.mark.parametrize("eq", EQUATIONS, ids=lambda eq: f"equation-{eq.number}")
def test_equations_resolve(eq: Equation) -> None:
    assert section(eq.section) and eq.symbols and eq.meaning
    assert not (problems := equation_problems(eq)), "\n".join(problems)
    assert eq.latex.count("{") == eq.latex.count("}")


def test_survey_lines_match_the_map() -> None:
    problems = []
    for path, tree in MODULES.items():
        found = line_problems(room_of(path), ast.get_docstring(tree) or "", KNOWN)
        found += docstring_problems(tree, KNOWN)
        problems += [f"{path.relative_to(ROOT)}: {problem}" for problem in found]
    assert not problems, "\n".join(problems)


@pytest.mark.parametrize("entry", CHAPTERS, ids=lambda c: f"chapter-{c.number:02d}")
def test_chapters_exist_unless_planned(entry) -> None:
    path = notebook(entry.number)
    assert (path is None) == entry.planned, f"planned={entry.planned}, file: {path}"
    if path:
        cells = json.loads(path.read_text())["cells"]
        source = "\n".join("".join(cell["source"]) for cell in cells)
        mine = [eq for eq in EQUATIONS if entry.number in eq.chapters]
        problems = [p for eq in mine for p in tag_problems(eq, entry.number, source)]
        assert not problems, "\n".join(problems)


def test_unknown_numbers_are_a_users_mistake() -> None:
    with pytest.raises(UserError, match="no equation 18; there are 1 to 17"):
        equation(18)
    with pytest.raises(UserError, match="no section 2.4"):
        rooms("2.4")
    assert equation(12).function.endswith("grpo:grpo_loss")
    assert rooms("2.3.2") == {"optimization", "paradigms"}


def test_the_map_is_cheap_to_import() -> None:
    """The command line reads it, and must answer in under a second."""
    code = "import sys, minivisrl.survey; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT).returncode == 0


def test_the_catalogue_is_whole() -> None:
    rows = list(csv.DictReader((DATA / "papers.csv").open(encoding="utf-8")))
    assert len({row["id"] for row in rows}) == len(rows) == 177
    assert {row["pillar"] for row in rows} == {"mllm", "generation", "unified", "vla", "others"}
    assert {row["confidence"] for row in rows} == {"list", "known", "searched"}
    assert all(row["mechanism"] and row["mechanism_key"] and row["url"] for row in rows)


# The guards are seen to fail.


@pytest.mark.parametrize(
    ("text", "sections", "equations"),
    [
        ("One.\n\nSurvey: section 2.3.2, Eqs. (1), (2), (3).\nSymbols: G.", {"2.3.2"}, (1, 2, 3)),
        ("Survey: sections 2.2.1, 2.2.3 and 2.3, Figures 2 and 3.", {"2.2.1", "2.2.3", "2.3"}, ()),
        ("Survey: section 2.3.1,\n    Eqs. (4)-(6).\n\nEq. (1): not cited.", {"2.3.1"}, (4, 5, 6)),
        ("Survey: sections 2.2.1 (first stage: training)\n    and 3.1.", {"2.2.1", "3.1"}, ()),
        ("Survey: section 4.  Metrics, 3 of them; see section\n4.1.", {"4", "4.1"}, ()),
    ],
)  # fmt: skip
def test_a_survey_line_is_read(text: str, sections: set[str], equations: tuple) -> None:
    assert survey_line(text) == (sections, set(equations))


@pytest.mark.parametrize(
    ("line", "complaint"),
    [
        ("section 2.4", "section 2.4 does not exist"),
        ("section 2.3, Eq. (18)", "equation 18 does not exist"),
        ("section 2.3.2, Eqs. (10), (12)", "equation 10 is in section 2.3.1"),
        ("section 3.1", "cites no section of its room 'optimization'"),
    ],
)
def test_wrong_survey_lines_are_found(line: str, complaint: str) -> None:
    problems = line_problems("optimization", f"Survey: {line}.", KNOWN)
    assert any(complaint in problem for problem in problems), problems


def test_wrong_equations_are_found() -> None:
    missing = replace(equation(12), function="minivisrl.survey:no_such_function")
    assert "has no attribute" in equation_problems(missing)[0]
    assert "marked planned" in equation_problems(replace(equation(12), planned=True))[0]
    assert equation_problems(replace(missing, planned=True)) == []
    elsewhere = replace(equation(12), function="minivisrl.survey:resolve")
    assert [p.split(" ")[1] for p in equation_problems(elsewhere)] == [
        "docstring",
        "Survey:",
        "(12):",
    ]
    named = ast.parse('"""Survey: section 2.2.1."""\ndef f():\n    """Eq. (4)."""')
    planned = KNOWN | {4: replace(equation(4), planned=True)}
    assert len(docstring_problems(named, planned)) == 2
    assert tag_problems(equation(12), 6, r"\tag{1}") and not tag_problems(
        equation(12), 6, r"\tag{12}"
    )
