"""The exercise check says one of three things, and a wrong answer never passes quietly."""

import pytest

from minivisrl.lab import check
from minivisrl.lab.exercises import foretold


def is_four(attempt):
    assert attempt == 4, "two and two"


def doubles(attempt):
    assert attempt(2) == 4, "you squared"


def stub(x):
    raise NotImplementedError


@pytest.mark.parametrize("attempt", [None, ..., (1, ...), [..., 2], {"a": ..., "b": 1}])
def test_blank_predictions_are_not_attempted(attempt, capsys):
    check("4.1", is_four, attempt)
    assert capsys.readouterr().out == "not attempted\n"


def test_a_stub_is_not_attempted(capsys):
    check("4.1", doubles, stub)
    assert capsys.readouterr().out == "not attempted\n"


@pytest.mark.parametrize("fn, attempt", [(is_four, 4), (doubles, lambda x: 2 * x)])
def test_right(fn, attempt, capsys):
    check("4.1", fn, attempt)
    assert capsys.readouterr().out == "correct\n"


@pytest.mark.parametrize("fn, attempt", [(is_four, 0), (is_four, False), (is_four, [])])
def test_wrong_raises_with_the_hint_even_if_falsy(fn, attempt, capsys):
    with pytest.raises(AssertionError, match="^Exercise 4.1: two and two"):
        check("4.1", fn, attempt)
    assert capsys.readouterr().out == ""


def test_an_operation_torch_lacks_is_an_error_and_not_an_empty_stub():
    def attempt(x):
        raise NotImplementedError("Could not run 'aten::foo' with arguments from the 'CPU' backend")

    with pytest.raises(NotImplementedError, match="aten"):
        check("4.1", doubles, attempt)


def test_a_crash_keeps_its_own_error():
    with pytest.raises(ZeroDivisionError):
        check("4.1", doubles, lambda x: x / 0)


def test_a_check_that_returns_a_verdict_instead_of_raising_is_refused():
    with pytest.raises(TypeError, match="returns None or raises"):
        check("4.1", lambda attempt: attempt == 4, 5)


TRUTHS = {"a": (True, "look at a"), "b": (2, "look at b")}


def test_predictions_are_right_question_by_question():
    foretold(TRUTHS)({"a": True, "b": 2})


@pytest.mark.parametrize(
    ("wrong", "hint"),
    [
        ({"a": False, "b": 2}, "look at a"),
        ({"a": True, "b": 3}, "look at b"),
        ({"a": True}, "answer for exactly these"),
        ({"a": True, "b": 2, "c": 1}, "answer for exactly these"),
    ],
)
def test_a_wrong_prediction_gets_the_hint_of_its_question(wrong, hint):
    with pytest.raises(AssertionError, match=hint):
        foretold(TRUTHS)(wrong)
