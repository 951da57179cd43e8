r"""Programs that check a text: exact match, format, numeric distance.

Survey: section 2.2.3, Eq. (7).
Symbols: v(p, y) -> `exact_match`, y -> a completion, parsed and never evaluated.
Departs: the value compared is the content of the last `<answer>` element, not the whole text.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from minivisrl.rewards.judge import text_of

OPEN, CLOSE = "<answer>", "</answer>"


def extract_answer(completion: Any) -> str | None:
    """The content of the last complete `<answer> ... </answer>`, or None where there is none."""
    text = text_of(completion)
    start = text.rfind(OPEN, 0, max(text.rfind(CLOSE), 0))
    end = text.find(CLOSE, start)
    return " ".join(text[start + len(OPEN) : end].split()) if start >= 0 else None


def exact_match(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
    r"""1 where the extracted answer equals the truth, else 0.  Eq. (7): v(p, y) in {0, 1}.

    Case and surrounding blanks do not count.  A completion without an answer scores 0.
    """
    pairs = zip(map(extract_answer, completions), answer, strict=True)
    return [float(a is not None and a.lower() == str(t).strip().lower()) for a, t in pairs]


def format_reward(completions: Sequence[Any], **_: Any) -> list[float]:
    """1 for `<answer> ... </answer>` at the end, after nothing or one `<think> ... </think>`."""
    return [float(_well_formed(text_of(completion).strip())) for completion in completions]


def _well_formed(text: str) -> bool:
    once = all(text.count(tag) == 1 for tag in (OPEN, CLOSE))
    if not once or not text.endswith(CLOSE):
        return False
    before = text[: text.index(OPEN)].strip()
    thinks = (before.count("<think>"), before.count("</think>"))
    wrapped = before.startswith("<think>") and before.endswith("</think>")
    return not before or (thinks == (1, 1) and wrapped)


def numeric_distance(
    completions: Sequence[Any], answer: Sequence[str], scale: float = 3.0, **_: Any
) -> list[float]:
    """Partial credit for numbers: 1 - |answer - truth| / scale, at least 0; 0 if not a number.

    Only plain non-negative decimal integers of at most 6 digits are read.
    """
    return [
        max(0.0, 1.0 - abs(int(a) - int(t)) / scale) if _is_number(a) and _is_number(t) else 0.0
        for a, t in zip(map(extract_answer, completions), map(str, answer), strict=True)
    ]


def _is_number(text: str | None) -> bool:
    return text is not None and text.isascii() and text.isdigit() and len(text) <= 6
