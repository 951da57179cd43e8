"""What a checkpoint of a trainer holds.

Survey: section 2.2.
"""

from __future__ import annotations

from typing import Any


def snapshot(trainer: Any) -> dict[str, Any]:
    """Policy (critic included), optimiser, generator and counter of a trainer."""
    return {
        "policy": trainer.policy.state_dict(),
        "optimizer": trainer.optimizer.state_dict(),
        "generator": trainer.generator.get_state(),
        "steps": trainer.steps,
    }


def restore(trainer: Any, state: dict[str, Any]) -> None:
    """Put a `snapshot` back; the next step is the one that would have followed it."""
    trainer.policy.load_state_dict(state["policy"])
    trainer.optimizer.load_state_dict(state["optimizer"])
    trainer.generator.set_state(state["generator"])
    trainer.steps = state["steps"]
