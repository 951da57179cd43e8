"""The acting policy: episodes, masks, exact log-probs, equal states once, save and load."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from vla.tiny import agent, level, prompts_of, seeded

from minivisrl import UserError
from minivisrl.paradigms.offline import encode_pairs
from minivisrl.policy import frozen
from minivisrl.rollout import PreferencePairs, Prompts, Rollout
from minivisrl.vla.navigation import ACTIONS, Episode, Room, navigation_prompts
from minivisrl.vla.policy import VLAPolicy, draw, enlist

NAMES = [f"<act_{i}>" for i in range(len(ACTIONS))]


@pytest.fixture(scope="module")
def policy() -> VLAPolicy:
    return agent()


@pytest.fixture(scope="module")
def prompts() -> Prompts:
    return navigation_prompts(5, "train", seeded(1))


@pytest.fixture(scope="module")
def rollout(policy, prompts) -> Rollout:
    return policy.rollout(prompts, 3, seeded())


def taken(policy: VLAPolicy, rollout: Rollout, row: int) -> list[int]:
    """The actions that a row's masked tokens stand for, read from the vocabulary."""
    ids = rollout.actions["tokens"][row][rollout.mask[row] != 0]
    return [NAMES.index(name) for name in policy.tokenizer.convert_ids_to_tokens(ids.tolist())]


def test_rows_are_episodes_of_the_real_environment(policy, prompts, rollout):
    """Observations, success and length are those of a room that is stepped here, by hand."""
    assert len(rollout) == 15 and rollout.group_size == 3
    for row, episode in enumerate(rollout.outputs):
        assert episode.level is prompts["level"][row // 3]
        room = Room(episode.level)
        seen = room.reset()[0]["image"]
        actions = taken(policy, rollout, row)
        assert tuple(actions) == episode.actions
        for time, action in enumerate(actions):
            assert not room.ended
            told = rollout.actions["observations"][row, time]
            assert np.array_equal(told.permute(1, 2, 0).numpy(), seen)
            seen = room.step(action)[0]["image"]
        assert room.ended and room.success == episode.success


def test_the_mask_ends_with_the_episode(rollout):
    """One column a decision, up to and including the last; the longest row fills the columns."""
    steps = torch.tensor([episode.steps for episode in rollout.outputs])
    columns = torch.arange(rollout.mask.shape[1])
    assert torch.equal(rollout.mask, (columns < steps[:, None]).float())
    assert rollout.mask.shape[1] == steps.max()
    assert all(e.steps <= e.level.limit for e in rollout.outputs)
    warm = agent()
    warm.temperature = 9.0
    near = warm.rollout(prompts_of(level(("go", 0))), 30, seeded())  # one step away
    assert len(set(near.mask.sum(1).tolist())) > 2
    assert near.mask.sum(1).tolist() == [episode.steps for episode in near.outputs]
    assert all(e.success == (e.steps < e.level.limit) for e in near.outputs if e.steps < 6)


def test_log_probs_are_exact(policy, rollout):
    again = policy.logprobs(rollout)
    assert torch.allclose(again * rollout.mask, rollout.logprobs, atol=1e-5)
    assert (rollout.logprobs[rollout.mask != 0] < 0).all()


def test_log_probs_row_by_row(policy, rollout):
    """Each state alone, through the whole model and without padding, says the same."""
    ids = [policy.tokenizer.convert_tokens_to_ids(name) for name in NAMES]
    for row in (0, 4, 14):
        text = rollout.outputs[row].level.mission + "<image>" * 25 + "<action>"
        tokens = policy.tokenizer([text], return_tensors="pt")
        for time in range(min(3, rollout.outputs[row].steps)):
            view = rollout.actions["observations"][row, time].float() / 127.5 - 1
            with torch.no_grad():
                logits = policy.model(**tokens, pixel_values=view[None]).logits[0, -1, ids]
            action = taken(policy, rollout, row)[time]
            expected = logits.log_softmax(0)[action].item()
            assert rollout.logprobs[row, time].item() == pytest.approx(expected, abs=1e-5)


def test_what_is_under_a_zero_mask_is_never_read(policy, rollout):
    hidden = rollout.mask == 0
    dirty = {name: column.clone() for name, column in rollout.actions.items()}
    dirty["observations"][hidden] = 255
    dirty["tokens"][hidden] = 3
    spoilt = replace(rollout, actions=dirty)
    policy.add_value_head(seeded())
    one, other = (policy.evaluate_actions(r, values=True) for r in (rollout, spoilt))
    for name in ("logprobs", "entropy", "values"):
        a, b = getattr(one, name), getattr(other, name)
        assert torch.equal(a[~hidden], b[~hidden]) and b.isfinite().all()


def test_a_mask_with_gaps(policy, rollout):
    """Columns are states of their own: hiding some does not move the others."""
    mask = rollout.mask.clone()
    mask[:, 1::2] = 0
    some = policy.logprobs(replace(rollout, mask=mask))
    kept = mask != 0
    assert torch.allclose(some[kept], policy.logprobs(rollout)[kept], atol=1e-6)


def test_parts_of_a_rollout_score_the_same(policy, rollout):
    whole = policy.logprobs(rollout)
    for part, rows in ((rollout.groups([3, 1]), [9, 10, 11, 3, 4, 5]), (rollout.rows([7]), [7])):
        assert torch.allclose(policy.logprobs(part), whole[rows], atol=1e-5)


def test_equal_states_are_computed_once(policy, prompts, monkeypatch):
    """Siblings start in one state; the number of states computed is that of distinct ones."""
    computed = []
    states = VLAPolicy.states
    monkeypatch.setattr(
        VLAPolicy,
        "states",
        lambda self, inputs, rows, views: (
            computed.append(len(rows)) or states(self, inputs, rows, views)
        ),
    )
    acted = policy.rollout(prompts, 4, seeded(2))
    rows, times = acted.mask.nonzero(as_tuple=True)
    distinct = {
        (int(row) // 4, acted.actions["observations"][row, time].numpy().tobytes())
        for row, time in zip(rows, times, strict=True)
    }
    assert computed[0] == 5 and sum(computed) == len(distinct) < int(acted.mask.sum())
    computed.clear()
    policy.evaluate_actions(acted)
    assert computed == [len(distinct)]  # one forward


def test_gradients_do_not_depend_on_sharing_states(policy, rollout):
    """Twice the same row: twice its gradient."""

    def gradient(rows):
        learner = frozen(policy).requires_grad_(True)
        part = rollout.rows(rows)
        (learner.logprobs(part) * part.mask).sum().backward()
        return learner.model.get_output_embeddings().weight.grad

    assert torch.allclose(gradient([2, 2]), 2 * gradient([2]), atol=1e-4)


def test_siblings_are_sampled_independently(policy):
    """From the first action on, at the policy's own shares."""
    acted = policy.rollout(prompts_of(level(("go", 0))), 200, seeded())
    first = acted.actions["tokens"][:, 0]
    shares = policy.evaluate_actions(acted.rows([0])).dist.probs[0, 0]
    ids = torch.tensor(policy.tokenizer.convert_tokens_to_ids(NAMES))
    found = (first[:, None] == ids).float().mean(0)
    assert torch.allclose(found, shares, atol=0.1) and (found > 0).sum() > 1


def test_temperature_counts_in_sampling_and_scoring(prompts):
    cold = agent()
    cold.temperature = 1e-4
    assert list(cold.rollout(prompts, 1, seeded()).outputs) == cold.predict(prompts)
    warm = agent()
    warm.temperature = 2.0
    acted = warm.rollout(prompts, 2, seeded())
    assert torch.allclose(warm.logprobs(acted) * acted.mask, acted.logprobs, atol=1e-5)


def test_the_generator_decides(policy, prompts):
    one, same, other = (policy.rollout(prompts, 2, seeded(s)) for s in (3, 3, 4))
    assert list(one.outputs) == list(same.outputs) != list(other.outputs)
    assert torch.equal(one.logprobs, same.logprobs)
    assert policy.predict(prompts) == policy.predict(prompts)


def test_draw():
    logits = torch.tensor([[0.0, 2.0, 1.0], [5.0, 0.0, 0.0]])
    assert draw(logits, None).tolist() == [1, 0]
    many = draw(logits[:1].expand(20_000, 3), seeded())
    assert torch.allclose(many.bincount() / 20_000, logits[0].softmax(0), atol=0.02)
    known = {}
    assert enlist([(0, b"a"), (0, b"b"), (0, b"a")], known) == [0, 1]
    assert enlist([(1, b"a"), (0, b"b")], known) == [0] and len(known) == 3


# ------------------------------------------------------------------------------------------------
# Given episodes.


def test_encode_is_the_rollout_again(policy, prompts, rollout):
    again = policy.encode(prompts, list(rollout.outputs), seeded())
    assert again.group_size == 3 and not again.logprobs.any()
    assert torch.equal(again.mask, rollout.mask)
    shown = rollout.mask != 0
    for name, column in rollout.actions.items():
        assert torch.equal(again.actions[name][shown], column[shown])
    assert torch.equal(policy.logprobs(again)[shown], policy.logprobs(rollout)[shown])


def test_encoded_pairs_share_a_prompt(policy, prompts, rollout):
    sides = [[rollout.outputs[3 * i + j] for i in range(5)] for j in (0, 1)]
    pairs = encode_pairs(policy, PreferencePairs(prompts, *sides), seeded())
    expected = rollout.rows([i * 3 + j for i in range(5) for j in (0, 1)])
    width = pairs.mask.shape[1]
    assert torch.equal(pairs.mask, expected.mask[:, :width])
    assert torch.allclose(policy.logprobs(pairs), policy.logprobs(expected)[:, :width], atol=1e-5)


def test_an_episode_is_cut_where_it_ends(policy):
    """Two steps to the key, and then nonsense."""
    told = level(("go", 0))
    encoded = policy.encode(prompts_of(told), [Episode(told, (2, 0, 0, 5))], seeded())
    assert encoded.mask.tolist() == [[1.0]]


@pytest.mark.parametrize("action", [6, -1, 2.5, "left", None])
def test_unknown_actions(policy, action):
    told = level(("go", 1))
    with pytest.raises(UserError, match=r"action .* is unknown; give 0 to 5"):
        policy.encode(prompts_of(told), [Episode(told, (0, action))], seeded())


def test_an_episode_without_actions(policy):
    told = level(("go", 1))
    some = policy.encode(prompts_of(told), [Episode(told, ()), Episode(told, (0,))], seeded())
    assert some.mask.tolist() == [[0.0], [1.0]]
    assert policy.logprobs(some).isfinite().all()


# ------------------------------------------------------------------------------------------------
# Hostile prompts, files.


@pytest.mark.parametrize(
    "text", ["", " ", "<pad> <pad>", "\x00\U0001f916", "<action> <act_3>", "go " * 90, "<eos>"]
)
def test_hostile_missions(policy, prompts, text):
    """Whatever the agent is told, it acts, and its neighbours' log-probs stay exact."""
    columns = prompts.columns | {"prompt": [text, *prompts["prompt"][1:]]}
    acted = policy.rollout(Prompts(columns), 2, seeded())
    assert torch.allclose(policy.logprobs(acted) * acted.mask, acted.logprobs, atol=1e-5)


def test_a_mission_with_an_image_token(policy, prompts):
    columns = prompts.columns | {"prompt": ["go to <image>"] * 5}
    with pytest.raises(UserError, match="a mission contains <image>"):
        policy.predict(Prompts(columns))


def test_save_and_load(policy, prompts, rollout, tmp_path):
    policy.add_value_head(seeded())
    policy.save(tmp_path)
    again = VLAPolicy.load(tmp_path).eval()
    one, other = (p.evaluate_actions(rollout, values=True) for p in (policy, again))
    assert torch.equal(one.logprobs, other.logprobs) and torch.equal(one.values, other.values)
    assert again.predict(prompts) == policy.predict(prompts)
    (tmp_path / "policy.json").write_text(json.dumps({"temper": 1}))
    with pytest.raises(UserError, match="unknown settings"):
        VLAPolicy.load(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"nonsense")
    with pytest.raises(UserError, match="cannot be read"):
        VLAPolicy.load(tmp_path)
    with pytest.raises(UserError, match="is not a folder"):
        VLAPolicy.load(tmp_path / "nowhere")
