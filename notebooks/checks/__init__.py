'''What grades the exercises: one module per chapter, `chNN.py`: `from checks.ch04 import ...`.

Notebooks run with `notebooks/` as working directory, so `checks` needs no installation.

A check is a function `check_<what>(attempt) -> None`. It returns None if the attempt is right; if
not, it raises AssertionError with a hint: what is wrong, but not the answer (`assert ok, "you
divided by G, not G - 1"`). It prints nothing, seeds its own generator, is quick, and compares with
an independent value (worked by hand, brute force), not with the library function that the exercise
rebuilds. The stub's bare `raise NotImplementedError` must reach `lab.check`: catch nothing.

Each module has `MUTANTS: dict[str, list[str]]`: exercise number -> sources of wrong answers, at
least one, each the mistake that a hint speaks of. A source binds what the stub binds:

    MUTANTS = {
        "4.1": [
            """
            def leave_one_out(rewards):
                return rewards - rewards.mean(1, keepdim=True)
            """,
        ],
        "4.2": ["prediction = 'b'"],
    }

For every mutant, and for the folded solution, `tests/test_notebooks.py` runs, in one namespace:

1. the code cells tagged `setup`, then those tagged `given` (definitions and data of the chapter
   that answers may rely on; keep them quick);
2. the code cells between the heading `### Exercise 4.1 | kind | size | minutes` and the check cell:
   the stub, and data of this exercise;
3. the answer: a mutant (dedented) or the solution; it replaces what the stub bound;
4. the check cell: `check("4.1", check_leave_one_out, leave_one_out)`.

Step 4 must print `correct` for the solution and raise AssertionError with a hint for every mutant;
another exception, `not attempted` or `correct` is a failure. So answers use only what steps 1 and 2
define, and import the rest. kind is one of: predict, implement, find the bug, ablate, extend. For
"find the bug" the buggy code stands under another name, and the stub asks for the repaired one; for
"predict" the stub is `prediction = ...` (or a tuple or dict with `...` in it).
'''
