"""Verifiers: a table of texts, TRL's message lists, and completions that mean harm."""

import builtins
import os
import subprocess
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from minivisrl.rewards import (
    exact_match,
    extract_answer,
    format_reward,
    numeric_distance,
    text_of,
)


def messages(*contents):
    """A completion as TRL's trainers pass it for conversational data."""
    return [{"role": "assistant", "content": content} for content in contents]


TABLE = [  # text, extracted answer, format reward
    ("<answer> 3 </answer>", "3", 1.0),
    ("<answer>3</answer>", "3", 1.0),
    ("  <answer> left  of\n </answer>  ", "left of", 1.0),
    ("<think> red 2 blue 1 </think> <answer> 3 </answer>", "3", 1.0),
    ("<think></think><answer>yes</answer>", "yes", 1.0),
    ("<answer> </answer>", "", 1.0),
    ("", None, 0.0),
    ("3", None, 0.0),
    ("the answer is 3", None, 0.0),
    ("<answer> 3", None, 0.0),
    ("3 </answer>", None, 0.0),
    ("</answer> 3 <answer>", None, 0.0),
    ("<answer> 1 </answer> <answer> 2 </answer>", "2", 0.0),
    ("<answer> 1 </answer> <answer> 2", "1", 0.0),
    ("<answer> 1 <answer> 2 </answer>", "2", 0.0),
    ("<answer> 3 </answer> </answer>", "3", 0.0),
    ("<answer> 3 </answer> and more", "3", 0.0),
    ("well <answer> 3 </answer>", "3", 0.0),
    ("<think> 1 <answer> 3 </answer>", "3", 0.0),
    ("1 </think> <answer> 3 </answer>", "3", 0.0),
    ("<think> 1 </think> so <answer> 3 </answer>", "3", 0.0),
    ("<think> a </think> <think> b </think> <answer> 3 </answer>", "3", 0.0),
    ("<think> <think> a </think> <answer> 3 </answer>", "3", 0.0),
    ("</think> a <think> <answer> 3 </answer>", "3", 0.0),
    ("<answer> 3 </answer> <think> a </think>", "3", 0.0),
    ("<answer> <think> a </think> 3 </answer>", "<think> a </think> 3", 1.0),
]


@pytest.mark.parametrize(("text", "answer", "form"), TABLE)
def test_the_table(text, answer, form):
    for completion in (text, messages(text), messages([{"type": "text", "text": text}])):
        assert extract_answer(completion) == answer
        assert format_reward([completion]) == [form]
        if answer is not None:
            assert exact_match([completion], [answer]) == [1.0]
        assert exact_match([completion], ["something else"]) == [0.0]


def test_messages_are_joined():
    assert text_of(messages("<answer> 1", "2 </answer>")) == "<answer> 1 2 </answer>"
    parts = [{"type": "text", "text": "a"}, {"type": "image"}, {"type": "text", "text": "b"}]
    assert text_of(messages(parts)).split() == ["a", "b"]
    assert text_of([]) == ""
    assert extract_answer(messages("<answer> 1 </answer>", "<answer> 2 </answer>")) == "2"


@pytest.mark.parametrize(
    "message", [{"role": "assistant", "content": None}, {"role": "assistant", "tool_calls": []}]
)
def test_a_message_without_text_says_nothing(message):
    """What TRL passes for a turn that only calls a tool."""
    assert text_of([message]) == "" and format_reward([[message]]) == [0.0]


def test_a_batch_keeps_its_order():
    texts = ["<answer> 3 </answer>", "<answer> 4 </answer>", "3", "<answer>YES</answer>"]
    assert exact_match(texts, ["3", "3", "3", " Yes "]) == [1.0, 0.0, 0.0, 1.0]
    assert exact_match(completions=texts, answer=[3, 4, 5, 6], kind=list("abcd"))[:2] == [1.0, 1.0]
    assert exact_match([], []) == format_reward([]) == numeric_distance([], []) == []
    with pytest.raises(ValueError):
        exact_match(texts, ["3"])  # a lost column is loud


DISTANCES = [  # answer, truth, score at scale 3
    ("3", "3", 1.0),
    ("4", "3", 2 / 3),
    ("2", "3", 2 / 3),
    ("1", "3", 1 / 3),
    ("0", "3", 0.0),
    ("9", "3", 0.0),
    ("007", "7", 1.0),
    ("three", "3", 0.0),
    ("-3", "3", 0.0),
    ("3.0", "3", 0.0),
    ("1e0", "1", 0.0),
    ("1+2", "3", 0.0),
    ("0x3", "3", 0.0),
    ("1_0", "10", 0.0),
    ("", "3", 0.0),
    ("3", "three", 0.0),
    ("\u0663", "3", 0.0),  # a digit, but not an ASCII one
    ("\u00b2", "2", 0.0),  # superscript two: isdigit() is true, int() raises
    ("9" * 5000, "3", 0.0),  # int() refuses more than 4300 digits
    ("999999", "999999", 1.0),
]


@pytest.mark.parametrize(("answer", "truth", "score"), DISTANCES)
def test_numeric_distance(answer, truth, score):
    text = f"<answer> {answer} </answer>"
    assert numeric_distance([text], [truth]) == pytest.approx([score])
    assert numeric_distance([messages(text)], [truth]) == pytest.approx([score])


def test_numeric_distance_has_a_scale():
    text = "<answer> 5 </answer>"
    assert numeric_distance([text], ["3"], scale=4.0) == [0.5]
    assert numeric_distance([text, "5"], [5, 5]) == [1.0, 0.0]


@pytest.mark.parametrize(
    "code",
    [
        "__import__('os').system('true')",
        "1+2",
        "9**9**9",
        "exec('raise SystemExit')",
        "{}.__class__.__mro__",
        "open('x', 'w')",
        "${3}",
        "$(echo 3)",
    ],
)
def test_completions_are_never_evaluated(code, monkeypatch):
    """Anything that could run a completion is rigged; the arithmetic is not done either."""

    def rigged(*args, **options):
        raise AssertionError("a completion was run")

    for module, names in (
        (builtins, ("eval", "exec", "compile", "open")),
        (os, ("system", "popen")),
        (subprocess, ("Popen",)),
    ):
        for name in names:
            monkeypatch.setattr(module, name, rigged)
    texts = [f"<answer> {code} </answer>", messages(f"<answer>{code}</answer>")]
    truth = ["3", "3"]
    scores = (exact_match(texts, truth), numeric_distance(texts, truth))
    monkeypatch.undo()
    assert scores == ([0.0, 0.0], [0.0, 0.0])


TAGS = "<answer> </answer> <think> </think> < > / answer 3 -1 <answer </answer".split()
PIECES = st.sampled_from([*TAGS, "\x00", "\n", "\t", " ", "\ud7ff", "\U0001d7db"])
HOSTILE = st.one_of(st.text(), st.lists(PIECES, max_size=30).map("".join))


@settings(max_examples=200, deadline=None, derandomize=True)
@given(HOSTILE, HOSTILE)
def test_any_text_gets_a_score(text, truth):
    """No text crashes a verifier; scores stay in [0, 1]; what was extracted is in the text."""
    for completion in (text, messages(text)):
        scores = [
            *exact_match([completion], [truth]),
            *format_reward([completion]),
            *numeric_distance([completion], [truth]),
        ]
        assert all(isinstance(score, float) and 0 <= score <= 1 for score in scores)
        answer = extract_answer(completion)
        assert answer is None or "".join(answer.split()) in "".join(text.split())


@settings(max_examples=100, deadline=None, derandomize=True)
@given(HOSTILE)
def test_a_well_formed_text_has_an_answer(text):
    if format_reward([text]) == [1.0]:
        assert extract_answer(text) is not None
        assert format_reward([text + " and more"]) == format_reward([text + text]) == [0.0]


@pytest.mark.parametrize(
    "tag", ["<answer>", "</answer>", "<answer> </answer>", "<think>", "<", " "]
)
def test_long_texts_take_linear_time(tag):
    """Ten times as many tags take about ten times as long, not a hundred."""

    def seconds(count):
        texts, times = [tag * count, "<answer>" + tag * count, tag * count + "</answer>"], []
        for _ in range(3):
            start = time.perf_counter()
            exact_match(texts, ["3"] * 3)
            format_reward(texts)
            numeric_distance(texts, ["3"] * 3)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(10_000) < 35 * seconds(1_000) + 1e-3
