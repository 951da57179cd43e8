"""Checkpoints in parts, each in a subfolder, as diffusers lays them out; loaded strictly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors.torch import save_file

from minivisrl.policy import Policy, load_pretrained, quiet, read_json, readable


def quiet_diffusers() -> None:
    """Silence the warnings and progress bars of diffusers; errors still raise."""
    from diffusers.utils import logging

    quiet()
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_part(cls: Any, folder_or_hub_id: str | Path, part: str) -> Any:
    """A network from a subfolder: safetensors only, and no weight may be missing or misshapen.

    It runs in 32 bits, whatever the file holds.
    """
    quiet_diffusers()
    model, report = load_pretrained(
        cls, folder_or_hub_id, subfolder=part, use_safetensors=True, output_loading_info=True
    )
    with readable(str(folder_or_hub_id)):
        for problem in ("missing_keys", "mismatched_keys"):
            if names := sorted(map(str, report.get(problem) or ())):
                raise ValueError(f"{part}: {problem.replace('_', ' ')}: {', '.join(names)}")
    return model.float()


def save_parts(policy: Policy, folder: str | Path, settings: dict, **parts: Any) -> None:
    """Write parts, settings and, if there is one, the value head of a policy."""
    quiet_diffusers()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for name, part in parts.items():
        part.save_pretrained(folder / name)
    (folder / "policy.json").write_text(json.dumps(settings) + "\n")
    if policy.value_head is not None:
        save_file(policy.value_head.state_dict(), folder / "value_head.safetensors")


def load_settings(policy: Policy, folder_or_hub_id: str | Path, kind: Callable[..., Any]) -> Any:
    """`kind(**settings)` of what `save_parts` wrote, if it did; a value head joins the policy."""
    settings, head = (Path(folder_or_hub_id) / f for f in ("policy.json", "value_head.safetensors"))
    with readable(str(folder_or_hub_id)):
        if head.exists():
            policy.load_value_head(head)
        return kind(**(read_json(settings) if settings.exists() else {}))
