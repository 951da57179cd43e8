r"""The map: section and equation of the survey -> room, function, chapter, test.

Pinned to version 3 of arXiv 2508.08189 (Wu et al., "Reinforcement Learning for Large Model: A
Survey"; versions 1 and 2 were "Reinforcement Learning in Vision: A Survey" and number differently).
The entries are `data/survey.toml`; a test holds them to the package, in both directions.
"""

from __future__ import annotations

import importlib
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivisrl import DATA, UserError

ARXIV_ID, VERSION = "2508.08189", 3
URL = f"https://arxiv.org/abs/{ARXIV_ID}v{VERSION}"


@dataclass(frozen=True)
class Section:
    """A section of the survey and the rooms of the package that hold it; subsections inherit."""

    number: str
    title: str
    rooms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chapter:
    """A notebook and the sections it teaches."""

    number: int
    title: str
    sections: tuple[str, ...]
    planned: bool = False


@dataclass(frozen=True)
class Equation:
    """A numbered equation: what it says, and where it is computed, taught and tested."""

    number: int
    section: str
    function: str  # "package.module:name", for `resolve`
    test: str  # file that tests the function
    latex: str
    meaning: str
    symbols: dict[str, str]  # survey's symbol -> name in the code
    planned: bool = False

    @property
    def chapters(self) -> tuple[int, ...]:
        """Numbers of the chapters that teach the section of this equation."""
        return tuple(c.number for c in CHAPTERS if self.section in c.sections)


def _entries(kind: type, name: str) -> tuple[Any, ...]:
    return tuple(
        kind(**{k: tuple(v) if isinstance(v, list) else v for k, v in entry.items()})
        for entry in _MAP[name]
    )


_MAP = tomllib.loads((DATA / "survey.toml").read_text(encoding="utf-8"))
SECTIONS: tuple[Section, ...] = _entries(Section, "sections")
CHAPTERS: tuple[Chapter, ...] = _entries(Chapter, "chapters")
EQUATIONS: tuple[Equation, ...] = _entries(Equation, "equations")
PLANNED_ROOMS: tuple[str, ...] = tuple(_MAP["planned_rooms"])  # folders that are not there yet


def _pick(entries: tuple[Any, ...], number: Any, what: str) -> Any:
    for entry in entries:
        if entry.number == number:
            return entry
    known = f"{entries[0].number} to {entries[-1].number}"
    raise UserError(f"the survey (v{VERSION}) has no {what} {number}; there are {known}")


def equation(number: int) -> Equation:
    """Equation `number` of the survey."""
    return _pick(EQUATIONS, number, "equation")


def section(number: str) -> Section:
    """Section `number` ("2.3.2") of the survey."""
    return _pick(SECTIONS, number, "section")


def chapter(number: int) -> Chapter:
    """Chapter `number` of the notebooks."""
    return _pick(CHAPTERS, number, "chapter")


def rooms(number: str) -> set[str]:
    """Rooms of section `number`, those of the sections it lies in included."""
    above = [s for s in SECTIONS if f"{section(number).number}.".startswith(f"{s.number}.")]
    return {room for s in above for room in s.rooms}


def notebook(number: int) -> Path | None:
    """The file of chapter `number`, or None where it is not written yet."""
    found = sorted((DATA.parent / "notebooks").glob(f"{chapter(number).number:02d}_*.ipynb"))
    return found[0] if found else None


def resolve(path: str) -> Any:
    """The object behind "package.module:name".

    Raises:
        ImportError: no such module.
        AttributeError: the module has no such name.
    """
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
