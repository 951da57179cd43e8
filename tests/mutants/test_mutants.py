"""Would a machine notice?  Every wrong version in table.py must be rejected by an ordinary test.

The checks are the tests of tests/optimization and tests/paradigms that take `lib`.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable
from functools import cache
from types import SimpleNamespace

import pytest
from mutants.library import REAL, load
from mutants.table import MUTANTS

FILES = {
    "optimization/kl": ["optimization.test_kl"],
    "optimization/advantages": ["optimization.test_advantages", "optimization.test_grpo_loss"],
    "optimization/update": ["optimization.test_update"],
    "optimization/grpo": ["optimization.test_grpo_loss", "optimization.test_update"],
    "optimization/ppo": ["optimization.test_ppo_loss", "optimization.test_update"],
    "optimization/reinforce": ["optimization.test_reinforce"],
    "paradigms/dpo": ["paradigms.test_dpo_loss"],
    "paradigms/reward_model": ["paradigms.test_bradley_terry"],
}


def checks(module: str) -> list[Callable[[SimpleNamespace], None]]:
    """The tests of a module that need nothing but the library."""
    tests = [vars(importlib.import_module(file)).values() for file in FILES[module]]
    return [
        test
        for test in (value for values in tests for value in values if inspect.isfunction(value))
        if test.__name__.startswith("test_") and list(inspect.signature(test).parameters) == ["lib"]
    ]


def rejections(lib: SimpleNamespace, module: str) -> list[str]:
    """Names of the checks of `module` whose assertions fail; a crash does not count."""
    names = []
    for check in checks(module):
        try:
            check(lib)
        except (AssertionError, pytest.fail.Exception):
            names.append(check.__name__)
        except Exception:  # the mutant broke the check before it could judge
            continue
    return names


@pytest.mark.parametrize("module", FILES)
def test_the_real_library_passes_every_check(module):
    assert len(checks(module)) >= 3
    for lib in (REAL, load()):  # load() runs the sources anew, as for a mutant, but unchanged
        for check in checks(module):
            check(lib)


@cache
def rejected_by(module: str, old: str, new: str) -> list[str]:
    return rejections(load(module, old, new), module)


IDS = [f"{module}: {wrong}" for module, wrong, _, _ in MUTANTS]


@pytest.mark.filterwarnings("ignore")  # wrong versions may warn
@pytest.mark.parametrize(("module", "wrong", "old", "new"), MUTANTS, ids=IDS)
def test_every_mutant_is_rejected(module, wrong, old, new):
    assert rejected_by(module, old, new), f"{module}: nothing noticed '{wrong}'"


def test_every_check_rejects_a_mutant():
    """A check nobody has seen fail is not a check."""
    busy = {name for module, _, old, new in MUTANTS for name in rejected_by(module, old, new)}
    idle = {check.__name__ for module in FILES for check in checks(module)} - busy
    assert idle == set()


def test_the_table_is_large_enough():
    assert len(MUTANTS) >= 100 and len(set(IDS)) == len(IDS)
    assert {module for module, *_ in MUTANTS} == set(FILES)
