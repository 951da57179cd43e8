"""The functions under test as one namespace: the real ones, or with one line of source changed.

Ordinary tests take `lib=REAL`; the mutant tests call the same functions with a changed library.
"""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import minivisrl

ROOT = Path(minivisrl.__file__).parent
MODULES = [  # in order of import
    "optimization/kl",
    "optimization/advantages",
    "optimization/update",
    "optimization/grpo",
    "optimization/ppo",
    "optimization/reinforce",
    "paradigms/dpo",
    "paradigms/reward_model",
]
NAMES = ["minivisrl." + module.replace("/", ".") for module in MODULES]


def namespace(modules: list[ModuleType]) -> SimpleNamespace:
    """All names of all modules, the dunders aside."""
    pairs = [pair for module in modules for pair in vars(module).items()]
    return SimpleNamespace(**{name: value for name, value in pairs if not name.startswith("__")})


REAL = namespace([importlib.import_module(name) for name in NAMES])


def load(changed: str = "", old: str = "", new: str = "") -> SimpleNamespace:
    """Run the sources anew, `old` replaced by `new` in module `changed` if any; REAL is untouched.

    Raises:
        ValueError: `old` does not occur exactly once.
    """
    before = {name: sys.modules[name] for name in NAMES}
    try:
        for module, name in zip(MODULES, NAMES, strict=True):
            path = ROOT / f"{module}.py"
            source = path.read_text()
            if module == changed:
                if source.count(old) != 1:
                    raise ValueError(f"{changed}: {source.count(old)} matches of {old!r}, not 1")
                source = source.replace(old, new)
            sys.modules[name] = ModuleType(name)
            exec(compile(source, str(path), "exec"), vars(sys.modules[name]))
        return namespace([sys.modules[name] for name in NAMES])
    finally:
        sys.modules |= before
