"""What a study found, in words: printed by every command that records one."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def tell(book: Mapping[str, Any]) -> None:
    """Print the mean and interval of every method, and the answer to every question, if any."""
    for name, row in book["table"].items():
        print(name, *(f"{k} {v[0]:.3f} [{v[1]:.3f}, {v[2]:.3f}]" for k, v in row.items()), sep="  ")
    for question, answer in book.get("answers", {}).items():
        print(f"{question}: {answer}")
