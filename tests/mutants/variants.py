"""Wrong versions of modules that nothing imports before them, and who should notice.

A check is a test of a file that takes nothing but `lib`, the modules' names in one namespace.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from .library import namespace


def changed(modules: dict[str, ModuleType], module: str, old: str, new: str) -> SimpleNamespace:
    """All names with `old` replaced by `new` in one module; the real are untouched."""
    path = Path(modules[module].__file__)
    source = path.read_text()
    assert source.count(old) == 1, f"{module}: {source.count(old)} matches of {old!r}"
    wrong = ModuleType(module)
    exec(compile(source.replace(old, new), path.name, "exec"), vars(wrong))
    return namespace([wrong if name == module else real for name, real in modules.items()])


def checks(tests: dict[str, Any]) -> list[Callable]:
    """Of a file's names the tests that take nothing but `lib`."""
    found = [test for name, test in tests.items() if name.startswith("test_")]
    return [test for test in found if list(inspect.signature(test).parameters) == ["lib"]]


def must_be_noticed(
    lib: SimpleNamespace, tests: dict[str, Any], names: Collection[str], wrong: str
) -> None:
    """Fail unless a check that mentions one of the names rejects `lib`; a crash does not count."""
    for check in checks(tests):
        if not any(name in inspect.getsource(check) for name in names):
            continue
        try:
            check(lib)
        except (AssertionError, pytest.fail.Exception):
            return
        except Exception:
            continue
    pytest.fail(f"nothing noticed '{wrong}'")
