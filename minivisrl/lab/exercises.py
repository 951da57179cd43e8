"""Grade an exercise: not attempted, correct, or an error that carries a hint."""

from collections.abc import Callable, Mapping
from typing import Any


def check(number: str, check_fn: Callable[[Any], None], attempt: Any) -> None:
    """Print `not attempted` or `correct`; raise AssertionError with a hint if the answer is wrong.

    Args:
        number: of the exercise, "4.1".
        check_fn: takes the attempt, returns None, raises `AssertionError("hint")` if it is wrong.
        attempt: what the reader wrote. Not attempted: a bare `raise NotImplementedError` inside,
            None, `...`, or a tuple, list or dict in which a `...` is left. With a message,
            NotImplementedError is an error like any other: torch uses it for missing operations.
    """
    if _blank(attempt):
        print("not attempted")
        return
    try:
        verdict = check_fn(attempt)
    except NotImplementedError as error:
        if error.args:
            raise
        print("not attempted")
        return
    except AssertionError as error:
        raise AssertionError(f"Exercise {number}: {error}") from None
    if verdict is not None:
        raise TypeError(f"check of {number} returned {verdict!r}; a check returns None or raises")
    print("correct")


def _blank(attempt: Any) -> bool:
    parts = attempt.values() if isinstance(attempt, dict) else attempt
    if not isinstance(attempt, dict | list | tuple):
        return attempt is None or attempt is ...
    return any(part is ... for part in parts)


def foretold(truths: Mapping[str, tuple[Any, str]]) -> Callable[[dict[str, Any]], None]:
    """The check of an exercise of the kind *predict*.

    Args:
        truths: question -> what is right, and a hint for those who said something else.

    Returns:
        a check of a dict with one answer for each of the questions.
    """

    def check_prediction(prediction: dict[str, Any]) -> None:
        assert set(prediction) == set(truths), f"answer for exactly these: {list(truths)}"
        for question, (truth, hint) in truths.items():
            assert prediction[question] == truth, f"{question!r}: {hint}"

    return check_prediction
