"""Prompts, rollouts and pairs: rows stay with their prompt, groups stay in order."""

from dataclasses import FrozenInstanceError, replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Generator

from minivisrl import UserError
from minivisrl.rollout import PreferencePairs, Prompts, Rollout


def seeded(seed=0):
    return Generator().manual_seed(seed)


def records(count, first=0):
    """Three columns that name their record, as a list, a tensor and a tensor with more axes."""
    ids = list(range(first, first + count))
    image = torch.tensor(ids, dtype=torch.uint8)[:, None, None].expand(-1, 2, 2)
    return Prompts({"prompt": [f"p{i}" for i in ids], "id": torch.tensor(ids), "image": image})


def rollout_of(prompts=3, group_size=2, columns=4, first=0):
    """Every tensor and output spells its row: 100 * prompt + sibling."""
    names = torch.tensor([100 * (first + i) + j for i in range(prompts) for j in range(group_size)])
    ones = torch.ones(len(names), columns)
    mask = (torch.arange(columns) <= names[:, None] % 100).float()
    actions = {
        "tokens": names[:, None] * ones.long(),
        "observations": (names[:, None, None, None] * ones[..., None, None]).expand(-1, -1, 3, 5),
        "seed": names.clone(),
        "noise": names[:, None].expand(-1, 7).float(),
    }
    outputs = [f"y{n}" for n in names.tolist()]
    return Rollout(
        records(prompts, first), actions, -1.0 * names[:, None] * ones, mask, group_size, outputs
    )


def spelled(rollout):
    """The name of every row as each field tells it; they must agree."""
    owner = rollout.prompts["id"].repeat_interleave(rollout.group_size)
    names = rollout.actions["seed"]
    assert torch.equal(names // 100, owner)
    assert rollout.outputs == [f"y{n}" for n in names.tolist()]
    for name in ("tokens", "observations", "noise"):
        assert torch.equal(rollout.actions[name].flatten(1)[:, 0].long(), names)
    assert torch.equal(-rollout.logprobs[:, 0].long(), names)
    assert rollout.prompts["prompt"] == [f"p{i}" for i in rollout.prompts["id"].tolist()]
    return names.tolist()


# --- Prompts -----------------------------------------------------------------------------------


def test_sampling_is_without_replacement_and_anew_at_every_call():
    prompts, generator = records(50), seeded()
    everything = prompts.sample(50, generator)["id"]
    assert sorted(everything.tolist()) == list(range(50)) != everything.tolist()
    first, second = (prompts.sample(20, generator)["id"].tolist() for _ in range(2))
    assert len(set(first)) == len(set(second)) == 20 and first != second
    again = [prompts.sample(20, seeded(3))["id"].tolist() for _ in range(2)]
    assert again[0] == again[1]


def test_every_record_is_drawn_equally_often():
    """2,000 draws of 5 out of 10: 1,000 each, standard deviation 22."""
    prompts, generator = records(10), seeded(1)
    drawn = torch.cat([prompts.sample(5, generator)["id"] for _ in range(2000)])
    counts = drawn.bincount(minlength=10)
    assert counts.sum() == 10_000 and (counts - 1000).abs().max() < 100


def test_columns_stay_in_step():
    for index in ([4, 0, 0, 2], torch.tensor([4, 0, 0, 2]), range(3)):
        rows = records(6).rows(index)
        assert rows["id"].tolist() == list(index)
        assert rows["prompt"] == [f"p{int(i)}" for i in index]
        assert rows["image"][:, 0, 0].tolist() == list(index)


def test_repeat_keeps_siblings_side_by_side():
    assert records(3).repeat(2)["id"].tolist() == [0, 0, 1, 1, 2, 2]
    assert records(3).repeat(2)["prompt"] == ["p0", "p0", "p1", "p1", "p2", "p2"]
    assert records(2).repeat(1)["id"].tolist() == [0, 1]


def test_cat_joins_lists_and_tensors():
    joined = Prompts.cat([records(2), records(3, first=7)])
    assert joined["id"].tolist() == [0, 1, 7, 8, 9] and len(joined) == 5
    assert joined["prompt"] == ["p0", "p1", "p7", "p8", "p9"]


@pytest.mark.parametrize(
    ("mistake", "message"),
    [
        (lambda: Prompts({}), "the prompt set is empty"),
        (lambda: Prompts({"prompt": []}), "the prompt set is empty"),
        (lambda: Prompts({"prompt": ["a", "b"], "answer": ["1"]}), "differ in length"),
        (lambda: records(3).rows([]), "the prompt set is empty"),
        (lambda: records(3)["scene"], "no column 'scene'; they have"),
        (lambda: records(3).sample(4, seeded()), "batch_size=4 exceeds the 3 prompts"),
        (lambda: PreferencePairs(records(2), ["a", "b"], ["c"]), "one chosen and one rejected"),
        (lambda: PreferencePairs(records(2), ["a"], ["b"]), "one chosen and one rejected"),
    ],
)
def test_mistakes_are_the_users_and_one_line(mistake, message):
    with pytest.raises(UserError, match=message) as error:
        mistake()
    assert "\n" not in str(error.value)


# --- Rollout -----------------------------------------------------------------------------------


def test_rows_are_singles_with_their_own_prompt():
    rollout = rollout_of(prompts=3, group_size=2)
    for index in ([5, 0, 3, 3], torch.tensor([5, 0, 3, 3])):
        rows = rollout.rows(index)
        assert rows.group_size == 1 and len(rows) == len(rows.prompts) == 4
        assert spelled(rows) == [201, 0, 101, 101]
    assert torch.equal(rows.mask, rollout.mask[[5, 0, 3, 3]])


def test_groups_are_whole_and_in_order():
    rollout = rollout_of(prompts=4, group_size=3)
    groups = rollout.groups([3, 1])
    assert groups.group_size == 3 and len(groups.prompts) == 2
    assert spelled(groups) == [300, 301, 302, 100, 101, 102]
    assert spelled(rollout.groups(torch.tensor([2]))) == [200, 201, 202]


def test_cat_pads_columns_and_leaves_per_row_actions_alone():
    """Story: a per-row action as wide as one part is long was padded like a column."""

    def part(columns):
        tokens = torch.ones(2, columns)
        actions = {"tokens": tokens, "point": torch.ones(2, 3)}
        return Rollout(records(2), actions, tokens, tokens, 1, ["a", "b"])

    joined = Rollout.cat([part(3), part(5)])
    assert joined.actions["tokens"].shape == (4, 5) and joined.actions["point"].shape == (4, 3)
    assert joined.mask.sum(1).tolist() == [3, 3, 5, 5]


@settings(max_examples=30, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5), st.randoms())
def test_cutting_and_joining_gives_the_rollout_back(prompts, group_size, columns, random):
    rollout = rollout_of(prompts, group_size, columns)
    order = random.sample(range(prompts), prompts)
    joined = Rollout.cat([rollout.groups([i]) for i in order])
    back = joined.groups([order.index(i) for i in range(prompts)])
    assert spelled(back) == spelled(rollout)
    assert torch.equal(back.mask, rollout.mask) and torch.equal(back.logprobs, rollout.logprobs)


def test_cat_pads_with_masked_columns():
    """Axis 1 is padded where it is the column axis, and nowhere else; dtypes stay."""
    narrow, wide = rollout_of(2, 2, columns=2), rollout_of(3, 2, columns=4, first=5)
    joined = Rollout.cat([narrow, wide])
    assert spelled(joined) == [0, 1, 100, 101, 500, 501, 600, 601, 700, 701]
    assert joined.mask.shape == joined.logprobs.shape == (10, 4) and joined.group_size == 2
    assert torch.equal(joined.mask[:4, :2], narrow.mask) and not joined.mask[:4, 2:].any()
    assert torch.equal(joined.mask[4:], wide.mask)
    assert not joined.logprobs[:4, 2:].any()
    shapes = {name: tuple(action.shape) for name, action in joined.actions.items()}
    assert shapes == {
        "tokens": (10, 4),
        "observations": (10, 4, 3, 5),
        "seed": (10,),
        "noise": (10, 7),
    }
    assert torch.equal(joined.actions["observations"][:4, :2], narrow.actions["observations"])
    assert not joined.actions["observations"][:4, 2:].any()
    assert joined.actions["tokens"].dtype == torch.long
    assert spelled(Rollout.cat([wide, narrow])) == [500, 501, 600, 601, 700, 701, 0, 1, 100, 101]


def test_cat_needs_one_group_size():
    with pytest.raises(ValueError, match="one group_size"):
        Rollout.cat([rollout_of(group_size=2), rollout_of(group_size=3)])


def test_map_reaches_every_tensor_and_nothing_else():
    rollout = rollout_of()
    doubled = rollout.map(lambda tensor: 2 * tensor)
    for name, action in rollout.actions.items():
        assert torch.equal(doubled.actions[name], 2 * action)
    assert torch.equal(doubled.logprobs, 2 * rollout.logprobs)
    assert torch.equal(doubled.mask, 2 * rollout.mask)
    assert doubled.prompts is rollout.prompts and doubled.outputs is rollout.outputs
    assert doubled.group_size == rollout.group_size


def test_shapes_must_fit():
    rollout = rollout_of(prompts=3, group_size=2)
    with pytest.raises(ValueError, match=r"expected 6 rows .* got \{'seed': 5\}"):
        replace(rollout, actions=rollout.actions | {"seed": torch.zeros(5)})
    with pytest.raises(ValueError, match="expected 9 rows"):
        replace(rollout, group_size=3)
    with pytest.raises(ValueError, match="share one shape"):
        replace(rollout, mask=torch.ones(6, 3))
    with pytest.raises(ValueError, match="one output a row"):
        replace(rollout, outputs=["a"])


def test_what_crosses_rooms_is_frozen():
    for record, field in (
        (records(1), "columns"),
        (rollout_of(), "logprobs"),
        (PreferencePairs(records(1), ["a"], ["b"]), "chosen"),
    ):
        with pytest.raises(FrozenInstanceError):
            setattr(record, field, None)


# --- PreferencePairs ---------------------------------------------------------------------------


def test_pairs_stay_together():
    images = torch.arange(3.0)[:, None]
    pairs = PreferencePairs(records(3), ["a", "b", "c"], images)
    assert len(pairs) == 3
    some = pairs.rows(torch.tensor([2, 0]))
    assert some.prompts["id"].tolist() == [2, 0]
    assert some.chosen == ["c", "a"] and some.rejected.flatten().tolist() == [2.0, 0.0]
