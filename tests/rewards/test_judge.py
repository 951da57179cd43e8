"""Judge: columns for every row, terms apart, and a user's broken reward told in one line."""

import math

import pytest
import torch

from minivisrl import UserError
from minivisrl.rewards import exact_match, format_reward, judge, reward_stats, weighted
from minivisrl.rollout import Prompts, Rollout

NAN, INF = float("nan"), float("inf")


def rollout_of(outputs=None, prompts=3, group_size=2, mask=None):
    """Two completions for each of three prompts, four columns."""
    columns = {
        "prompt": [f"p{i}" for i in range(prompts)],
        "answer": [str(i) for i in range(prompts)],
        "image": torch.arange(prompts)[:, None],
    }
    rows = prompts * group_size
    mask = torch.ones(rows, 4) if mask is None else mask
    outputs = outputs or [f"p{i}/{j}" for i in range(prompts) for j in range(group_size)]
    tokens = {"tokens": torch.zeros(mask.shape, dtype=torch.long)}
    return Rollout(Prompts(columns), tokens, torch.zeros(mask.shape), mask, group_size, outputs)


def half(completions, **columns):
    return [0.5] * len(completions)


def number(completions, **columns):
    return [float(n) for n in range(len(completions))]


def test_columns_are_repeated_for_the_group():
    """Row i * G + j gets the columns of prompt i; `prompt` is called `prompts`, as in TRL."""

    def spy(completions, prompts, answer, image):
        assert completions == ["p0/0", "p0/1", "p1/0", "p1/1", "p2/0", "p2/1"]
        assert prompts == ["p0", "p0", "p1", "p1", "p2", "p2"]
        assert answer == ["0", "0", "1", "1", "2", "2"]
        assert image.flatten().tolist() == [0, 0, 1, 1, 2, 2]
        return number(completions)

    rewards, terms = judge(spy, rollout_of())
    assert rewards.tolist() == terms["spy"].tolist() == [0, 1, 2, 3, 4, 5]
    assert rewards.dtype == torch.float32 and rewards.shape == (6,)


def test_weighted_sums_and_logs_unweighted_terms():
    outputs = [f"<answer> {n} </answer>" for n in (0, 9, 1, 1)] + ["2", "x <answer> 2 </answer>"]
    reward = weighted({exact_match: 1.0, format_reward: 0.25, number: -0.5})
    rewards, terms = judge(reward, rollout_of(outputs))
    assert terms["exact_match"].tolist() == [1, 0, 1, 1, 0, 1]
    assert terms["format_reward"].tolist() == [1, 1, 1, 1, 0, 0]
    assert terms["number"].tolist() == [0, 1, 2, 3, 4, 5]
    assert rewards.tolist() == [1.25, -0.25, 0.25, -0.25, -2.0, -1.5]


def test_weighted_is_itself_a_reward_function():
    """TRL calls it with keywords and reads its name; it can be nested."""
    reward = weighted({half: 2.0, number: 1.0})
    scores = reward(completions=["a", "b"], prompts=["p", "p"], answer=["1", "1"])
    assert scores == [1.0, 2.0] and isinstance(scores, list)
    assert reward.__name__ == "half+number"
    rewards, terms = judge(weighted({reward: 3.0, half: 1.0}), rollout_of())
    assert rewards.tolist() == [3 * (1 + n) + 0.5 for n in range(6)]
    assert set(terms) == {"half+number", "half"}


def another_half():
    """A different reward of the same name."""
    twin = lambda completions, **columns: [0.0] * len(completions)  # noqa: E731
    twin.__name__ = "half"
    return twin


@pytest.mark.parametrize("parts", [{}, {half: 1.0, another_half(): 1.0}])
def test_weighted_needs_parts_with_names_of_their_own(parts):
    with pytest.raises(UserError, match="at least one reward and distinct names"):
        weighted(parts)


class Model:
    """A reward that is an object, such as a learned model; its scores carry a gradient."""

    def __init__(self):
        self.weight = torch.ones((), requires_grad=True)

    def __call__(self, completions, **columns):
        return self.weight * torch.arange(len(completions))


def test_a_model_may_judge_and_gets_no_gradient():
    rewards, terms = judge(Model(), rollout_of())
    assert not rewards.requires_grad and list(terms) == ["Model"]
    assert not judge(weighted({Model(): 2.0}), rollout_of())[0].requires_grad


def test_a_reward_may_be_given_per_column():
    rewards, terms = judge(lambda completions, **_: torch.ones(6, 4), rollout_of())
    assert rewards.shape == terms["<lambda>"].shape == (6, 4)


def raises(completions, **columns):
    raise RuntimeError("the server\nis down")


def wants_more(completions, reference):
    return [0.0] * len(completions)


def with_none(completions, **columns):
    return [None] * len(completions)


def texts(completions, **columns):
    return ["good"] * len(completions)


def nothing(completions, **columns):
    return None


BROKEN = [
    (raises, "raised RuntimeError: the server is down"),
    (wants_more, "raised TypeError: .*unexpected keyword argument"),
    (with_none, "raised "),
    (texts, "raised "),
    (nothing, "raised "),
    (lambda completions, **_: [1.0], r"returned shape \(1,\) for 6 completions"),
    (lambda completions, **_: [1.0] * 7, r"returned shape \(7,\) for 6 completions"),
    (lambda completions, **_: [], r"returned shape \(0,\)"),
    (lambda completions, **_: 1.0, r"returned shape \(\)"),
    (lambda completions, **_: torch.ones(6, 1), r"returned shape \(6, 1\)"),
    (lambda completions, **_: torch.ones(6, 4, 1), r"returned shape \(6, 4, 1\)"),
    (lambda completions, **_: torch.ones(4, 6), r"returned shape \(4, 6\)"),
    (lambda completions, **_: [1.0, NAN, 1, 1, 1, 1], "1 non-finite"),
    (lambda completions, **_: [INF, -INF, 1, 1, 1, 1], "2 non-finite"),
]


@pytest.mark.parametrize(("reward", "message"), BROKEN)
def test_a_broken_reward_is_told_in_one_line(reward, message):
    for function in (reward, weighted({half: 1.0, reward: 0.0})):
        with pytest.raises(UserError, match=message) as error:
            judge(function, rollout_of())
        assert "\n" not in str(error.value)
        assert repr(reward.__name__) in str(error.value)


@pytest.mark.parametrize("columns", [4, 6])
def test_row_and_column_rewards_do_not_mix_by_accident(columns):
    """(N,) + (N, T): torch would align N with T, and when N == T nobody would notice."""
    rollout = rollout_of(mask=torch.ones(6, columns))

    def per_column(completions, **_):
        return torch.zeros(6, columns)

    with pytest.raises(UserError) as error:
        judge(weighted({number: 1.0, per_column: 1.0}), rollout)
    assert "\n" not in str(error.value)


def test_statistics_by_hand():
    """Groups (0, 1), (2, 2), (5, 5): two of three teach nothing."""
    mask = (torch.arange(4) < torch.tensor([4, 2, 1, 1, 4, 0])[:, None]).float()
    rollout = rollout_of(mask=mask)
    rewards = torch.tensor([0.0, 1.0, 2.0, 2.0, 5.0, 5.0])
    terms = {"a": rewards * 2, "b": torch.ones(6)}
    stats = reward_stats(rewards, terms, rollout)
    assert stats == pytest.approx(
        {
            "reward": 2.5,
            "reward_std": math.sqrt(21.5 / 6),
            "zero_variance_groups": 2 / 3,
            "completion_length": 2.0,
            "reward/a": 5.0,
            "reward/b": 1.0,
        }
    )
    assert all(isinstance(value, float) for value in stats.values())


def test_statistics_of_column_rewards_never_read_under_the_mask():
    """Row rewards are sums over the mask; a term is logged on the scale of the reward."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0], [1] * 4, [1] * 4])
    rollout, seen = rollout_of(mask=mask.float()), []
    for junk in (0.0, 1e6):
        scores = torch.full((6, 4), 0.5)
        scores[mask == 0] = junk
        seen.append(reward_stats(scores, {"a": scores}, rollout))
        assert seen[-1]["reward"] == pytest.approx((1 + 1 + 0 + 0 + 2 + 2) / 6)
        assert seen[-1]["zero_variance_groups"] == 1.0
    assert seen[0] == seen[1]
    assert seen[0]["reward/a"] == pytest.approx(seen[0]["reward"])


@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float64])
def test_a_mask_may_have_any_type(dtype):
    """Ones are ones: the optimization room takes such masks, so the statistics must too."""
    mask = torch.tensor([[1, 1, 0, 0]] * 3 + [[1, 1, 1, 1]] * 3)
    stats = [
        reward_stats(torch.arange(6.0), {}, rollout_of(mask=m))
        for m in (mask.float(), mask.to(dtype))
    ]
    assert stats[0] == stats[1] and stats[0]["completion_length"] == 3.0


def test_one_completion_per_prompt_has_no_variance():
    stats = reward_stats(torch.tensor([1.0, 0.0]), {}, rollout_of(prompts=2, group_size=1))
    assert stats["zero_variance_groups"] == 1.0 and stats["reward"] == 0.5
