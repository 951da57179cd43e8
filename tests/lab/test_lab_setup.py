"""A chapter starts the same way every time: seeds, threads, style; and silently."""

import os
import random
import subprocess
import sys

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from minivisrl import lab
from minivisrl.lab import session


@pytest.fixture(autouse=True)
def untouched():
    """Put back what setup changes for the whole process."""
    threads, env = torch.get_num_threads(), dict(os.environ)
    with plt.rc_context():
        yield
    torch.set_num_threads(threads)
    os.environ.clear()
    os.environ.update(env)


def draws(generator):
    return [
        random.random(),
        np.random.rand(),
        torch.rand(1).item(),
        torch.rand(1, generator=generator).item(),
    ]


def test_same_seed_same_draws_other_seed_other_draws():
    first, again, other = draws(lab.setup(3)), draws(lab.setup(3)), draws(lab.setup(4))
    assert first == again
    assert all(a != b for a, b in zip(first, other, strict=True))


def test_prints_nothing_and_sets_the_style(capfd):
    lab.setup(0)
    assert capfd.readouterr() == ("", "")
    assert plt.rcParams["figure.figsize"] == [6, 3] and plt.rcParams["figure.dpi"] == 100


def test_one_thread_under_pytest_or_when_asked(monkeypatch):
    lab.setup(0)
    assert torch.get_num_threads() == 1
    for name in session.ONE_THREAD:
        monkeypatch.delenv(name, raising=False)
    assert not session.one_thread()
    monkeypatch.setenv("MINIVISRL_ONE_THREAD", "0")
    assert not session.one_thread()
    monkeypatch.setenv("MINIVISRL_ONE_THREAD", "1")
    assert session.one_thread()


def test_other_peoples_warnings_are_silent_and_ours_are_loud():
    """In a process of its own: pytest has its own warning filters."""
    code = """if True:
        import warnings
        from minivisrl import lab
        lab.setup(0)
        warnings.warn_explicit("theirs", UserWarning, "a.py", 1, module="transformers.models")
        warnings.warn_explicit("old", FutureWarning, "a.py", 1, module="anything")
        warnings.warn_explicit("ours", UserWarning, "a.py", 1, module="minivisrl.fit")
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "ours" in done.stderr
    assert "theirs" not in done.stderr and "old" not in done.stderr and done.stdout == ""


def test_import_is_light():
    code = (
        "import sys, minivisrl.lab; assert not {'torch', 'jupytext', 'nbclient'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
