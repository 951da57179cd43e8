"""Tiny policies that draw, and the library under test: the real one, or with one line changed."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import torch
from mutants.library import namespace
from torch import Generator

import minivisrl
from minivisrl.rollout import Prompts

ROOT = Path(minivisrl.__file__).parent
MODULES = [  # in order of import
    "worlds/drawings",
    "rewards/pictures",
    "generation/steps",
    "generation/denoising",
    "generation/diffusion",
    "generation/flow",
    "generation/autoregressive",
]
NAMES = ["minivisrl." + module.replace("/", ".") for module in MODULES]
CAPTIONS = [
    "red circle top left",
    "blue square middle center, green cross bottom left",
    "cyan triangle top right",
]


REAL = namespace([importlib.import_module(name) for name in NAMES])


def load(changed: str = "", old: str = "", new: str = "") -> SimpleNamespace:
    """Run the sources anew, `old` replaced by `new` in module `changed` if any; REAL is untouched.

    Raises:
        ValueError: `old` does not occur exactly once.
    """
    before = {name: sys.modules[name] for name in NAMES}
    try:
        for module, name in zip(MODULES, NAMES, strict=True):
            source = (ROOT / f"{module}.py").read_text()
            if module == changed:
                if source.count(old) != 1:
                    raise ValueError(f"{changed}: {source.count(old)} matches of {old!r}, not 1")
                source = source.replace(old, new)
            sys.modules[name] = ModuleType(name)
            exec(compile(source, f"{module}.py", "exec"), vars(sys.modules[name]))
        return namespace([sys.modules[name] for name in NAMES])
    finally:
        sys.modules |= before


def seeded(seed: int = 0) -> Generator:
    """A fresh generator."""
    return Generator().manual_seed(seed)


def captions(texts: list[str] = CAPTIONS) -> Prompts:
    """Prompts with captions alone."""
    return Prompts({"prompt": texts})


def sharp(policy: torch.nn.Module) -> torch.nn.Module:
    """Weights scaled up: at initialisation all captions and levels look alike."""
    with torch.no_grad():
        for part in (policy.model, getattr(policy, "text_encoder", None)):
            for weight in part.parameters() if part is not None else ():
                if weight.ndim > 1:
                    weight.mul_(0.1 / weight.std())
    return policy.eval()


def denoisers(lib: SimpleNamespace = REAL, **sampler: object) -> list[torch.nn.Module]:
    """A diffusion and a flow policy of width 32, one layer, five steps."""
    policies = [sharp(new(width=32, layers=1)) for new in (lib.new_diffusion, lib.new_flow)]
    for policy, noise in zip(policies, (1.0, 0.7), strict=True):
        policy.sampler = lib.SamplerConfig(
            **{"steps": 5, "eval_steps": 4, "noise": noise} | sampler
        )
    return policies
