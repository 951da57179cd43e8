"""The comparison of what can be done with comparisons: every method is run, from one base."""

import json

import pytest

from minivisrl import UserError
from minivisrl.recipes.compare import CompareOptions, compare
from minivisrl.recipes.mllm import DescribeConfig

METHODS = ["base", "best of 8", "sft", "expert iteration", "dpo", "rlhf, ppo", "rlhf, grpo"]


@pytest.fixture(scope="module")
def book(tmp_path_factory):
    out = tmp_path_factory.mktemp("compare") / "alignment.json"
    task = DescribeConfig(train_prompts=64, eval_prompts=48, pairs=48, candidates=4)
    compare(CompareOptions(seconds=0.01, seeds=2, out=str(out), task=task))
    return json.loads(out.read_text())


def test_every_method_is_there_for_every_seed(book):
    assert list(book["table"]) == METHODS
    assert [(r["seed"], r["method"]) for r in book["runs"]] == [
        (seed, method) for seed in range(2) for method in METHODS
    ]


def test_methods_start_from_the_base_and_leave_it(book):
    """The base is measured alike for both seeds; a step of training moves every policy."""
    for seed in range(2):
        rows = {r["method"]: r for r in book["runs"] if r["seed"] == seed}
        assert rows["base"]["kl_start"] == pytest.approx(0, abs=1e-5)
        assert rows["base"]["sampled"] == book["runs"][0]["sampled"]
        for method in METHODS[2:]:
            assert rows[method]["steps"] >= 1 and rows[method]["kl_start"] > 1e-6


def test_the_table_is_the_mean_over_seeds(book):
    for method, row in book["table"].items():
        sampled = [r["sampled"] for r in book["runs"] if r["method"] == method]
        assert row["sampled"][0] == pytest.approx(sum(sampled) / 2, abs=1e-4)
        assert row["sampled"][1] <= row["sampled"][0] <= row["sampled"][2]


@pytest.mark.parametrize("wrong", [{"seconds": 0}, {"seeds": 1}])
def test_options_out_of_range(wrong):
    with pytest.raises(UserError, match="compare needs"):
        CompareOptions(**wrong)
