"""One model for both directions: what it is shown, what it may say, how it is scored."""

import pytest
import torch
from torch import Generator

from minivisrl import UserError
from minivisrl.paradigms.offline import encode_pairs
from minivisrl.rollout import PreferencePairs, Prompts, Rollout
from minivisrl.unified.policy import UnifiedPolicy, new_unified
from minivisrl.worlds.drawings import drawing_scenes
from minivisrl.worlds.scenes import render

DRAW = "red circle top left"


def seeded(seed: int = 0) -> Generator:
    return Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def policy() -> UnifiedPolicy:
    """Weights scaled up: at initialisation all prompts look alike."""
    made = new_unified(width=32, layers=1)
    with torch.no_grad():
        for weight in made.model.parameters():
            if weight.ndim > 1:
                weight.mul_(0.3 / weight.std())
    return made.eval()


def shown(count: int = 2) -> list[torch.Tensor]:
    return list(render(drawing_scenes(count, "train", seeded()), 16))


def mixed() -> Prompts:
    """To draw, to read, to draw, to read."""
    first, second = shown()
    texts = [DRAW, "describe the picture", "blue cross middle left", "is there a red circle ?"]
    return Prompts({"prompt": texts, "image": [None, first, None, second]})


def test_what_the_model_is_shown(policy):
    inputs, words = policy.inputs(mixed()), policy.tokenizer
    told = [
        words.decode(ids[mask.bool()])
        for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)
    ]
    assert told[0] == f"<draw> {DRAW} <boi>"
    codes = policy.pictures.encode(torch.stack(shown()))
    for row, index, question in ((1, 0, "describe the picture"), (3, 1, "is there a red circle ?")):
        marks = " ".join(f"<code_{code}>" for code in codes[index].tolist())
        assert told[row] == f"<boi> {marks} <eoi> {question} <sep>"


def test_prompts_without_an_image_column_are_drawn(policy):
    outputs = policy.predict(Prompts({"prompt": [DRAW]}))
    assert isinstance(outputs[0], torch.Tensor) and outputs[0].shape == (3, 16, 16)


def test_joint_batches_bring_texts_and_pictures(policy):
    rollout = policy.rollout(mixed(), 2, seeded())
    kinds = [isinstance(output, str) for output in rollout.outputs]
    assert kinds == [False, False, True, True, False, False, True, True]
    tokens, mask = rollout.actions["tokens"], rollout.mask
    ends = torch.isin(tokens, torch.tensor([policy.end_of_text, policy.end_of_picture]))
    for row in range(8):
        stop = ends[row].nonzero()
        length = int(stop[0]) + 1 if len(stop) else tokens.shape[1]
        assert mask[row].tolist() == [1.0] * length + [0.0] * (tokens.shape[1] - length)


def test_a_drawing_that_ends_early_is_drawn_to_the_end_with_code_0(policy):
    tokens = torch.full((1, 3), policy.first_code + 5)
    tokens[0, 2] = policy.end_of_picture
    (picture,) = policy._outputs(tokens, [False])
    codes = torch.tensor([[5, 5] + [0] * 14])
    torch.testing.assert_close(picture, policy.pictures.decode(codes)[0])


def test_scoring_finds_the_stored_logprobs(policy):
    rollout = policy.rollout(mixed(), 4, seeded())
    for part in (rollout, rollout.rows([11, 3, 4]), rollout.groups([2, 1])):
        found = policy.logprobs(part) * part.mask
        torch.testing.assert_close(found, part.logprobs, atol=1e-5, rtol=1e-5)
    joined = Rollout.cat([policy.rollout(mixed().rows([0]), 4, seeded()), rollout])
    torch.testing.assert_close(
        policy.logprobs(joined) * joined.mask, joined.logprobs, atol=1e-5, rtol=1e-5
    )


def test_a_completion_is_scored_under_its_own_prompt(policy):
    """Another picture, another question or another caption changes the log-probs."""
    prompts = mixed()
    rollout = policy.rollout(prompts, 1, seeded())
    texts = [prompts["prompt"][i] for i in (2, 1, 0, 3)]
    images = [None, prompts["image"][3], None, prompts["image"][1]]
    wrong = Rollout(
        Prompts({"prompt": texts, "image": images}),
        rollout.actions,
        rollout.logprobs,
        rollout.mask,
        1,
        rollout.outputs,
    )
    moved = ((policy.logprobs(wrong) - rollout.logprobs) * rollout.mask).abs().amax(dim=1)
    assert moved.min() > 1e-4


def test_encoded_outputs_are_their_tokens_and_an_end(policy):
    picture = shown(1)[0]
    rollout = policy.encode(mixed().rows([0, 1]), [picture, "red circle top left"], seeded())
    tokens, mask = rollout.actions["tokens"], rollout.mask
    codes = policy.pictures.encode(picture[None])[0] + policy.first_code
    assert tokens[0].tolist() == [*codes.tolist(), policy.end_of_picture]
    words = policy.tokenizer("red circle top left").input_ids
    assert tokens[1, : len(words) + 1].tolist() == [*words, policy.end_of_text]
    assert mask.sum(dim=1).tolist() == [17, 5]


def test_pairs_of_both_kinds_are_encoded_side_by_side(policy):
    chosen, rejected = shown()
    pairs = PreferencePairs(mixed().rows([0, 1]), [chosen, "red circle"], [rejected, "blue"])
    rollout = encode_pairs(policy, pairs, seeded())
    assert (
        rollout.group_size == 2 and rollout.outputs[1] is rejected and rollout.outputs[3] == "blue"
    )


def test_prediction_is_greedy_and_does_not_depend_on_the_batch(policy):
    whole = policy.predict(mixed())
    for i, output in enumerate(whole):
        (alone,) = policy.predict(mixed().rows([i]))
        if isinstance(output, str):
            assert alone == output
        else:
            torch.testing.assert_close(alone, output, atol=1e-5, rtol=0)


def test_only_the_language_model_is_trained(policy):
    assert not any(p.requires_grad for p in policy.pictures.parameters())
    assert all(p.requires_grad for p in policy.model.parameters())


def test_saved_and_loaded_is_the_same(policy, tmp_path):
    policy.temperature, policy.max_tokens = 0.7, 9
    policy.add_value_head(seeded())
    policy.save(tmp_path)
    again = UnifiedPolicy.load(tmp_path)
    assert (again.temperature, again.max_tokens) == (0.7, 9) and again.value_head is not None
    one, two = policy.state_dict(), again.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    policy.temperature, policy.max_tokens = 1.0, 24


def test_spoilt_settings_end_in_one_line(policy, tmp_path):
    policy.save(tmp_path)
    (tmp_path / "policy.json").write_text('{"temprature": 1}')
    with pytest.raises(UserError, match="cannot be read"):
        UnifiedPolicy.load(tmp_path)
