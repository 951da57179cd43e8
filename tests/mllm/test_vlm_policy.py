"""The VLM policy: sampling and scoring agree, entropy and values by other means, encoding."""

import math

import pytest
import torch
from mllm.tiny import full_forward, prompts_of, seeded, sharp_vlm

from minivisrl import UserError
from minivisrl.mllm.policy import new_vlm
from minivisrl.rollout import Prompts, Rollout

EOS, PAD = 2, 0


def drawn(policy, group_size=3, seed=0):
    """A rollout in which some rows end early: the end token is made likely."""
    with torch.no_grad():
        policy.model.get_output_embeddings().weight[EOS] *= 6
    rollout = policy.rollout(prompts_of(), group_size, seeded(seed))
    assert 0 < rollout.mask.mean() < 1
    return rollout


def test_a_rollout_is_complete():
    policy = sharp_vlm(max_tokens=7)
    rollout = drawn(policy)
    assert isinstance(rollout, Rollout) and rollout.group_size == 3 and len(rollout) == 12
    tokens = rollout.actions["tokens"]
    assert tokens.shape == rollout.mask.shape == rollout.logprobs.shape and tokens.shape[1] <= 7
    assert not rollout.logprobs.requires_grad
    words = policy.tokenizer
    for ids, kept, text in zip(tokens, rollout.mask, rollout.outputs, strict=True):
        said = [i for i in ids[kept == 1].tolist() if i > 3]  # special tokens are not said
        assert text == " ".join(words.convert_ids_to_tokens(said))


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_scoring_finds_the_stored_logprobs(temperature):
    """Also for shuffled rows, single groups and joined rollouts."""
    policy = sharp_vlm()
    policy.temperature = temperature
    rollout = drawn(policy)
    other = policy.rollout(prompts_of(seed=3), 3, seeded(4))
    order = torch.randperm(12, generator=seeded(1))
    for part in (
        rollout,
        rollout.rows(order),
        rollout.groups([2, 0]),
        Rollout.cat([other, rollout]),
    ):
        logprobs, keep = policy.logprobs(part), part.mask == 1
        assert logprobs.requires_grad and logprobs.isfinite().all()
        torch.testing.assert_close(logprobs[keep], part.logprobs[keep], atol=1e-5, rtol=1e-5)
    policy.temperature = 2 * temperature
    assert (policy.logprobs(rollout) - rollout.logprobs).abs().max() > 0.1


def test_entropy_and_distribution_by_the_formula():
    policy = sharp_vlm()
    policy.temperature = 1.5
    rollout = drawn(policy)
    tokens = torch.where(rollout.actions["tokens"] == 4, PAD, rollout.actions["tokens"])
    logits, _ = full_forward(policy, rollout.prompts, tokens, 3)
    probs = (logits / 1.5).softmax(-1).double()
    stats = policy.evaluate_actions(rollout)
    keep = rollout.mask == 1
    expected = -(probs * probs.log()).sum(-1).float()
    torch.testing.assert_close(stats.entropy[keep], expected[keep], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(stats.dist.probs[keep], probs[keep].float(), atol=1e-5, rtol=1e-4)
    assert stats.entropy.requires_grad and stats.values is None


def test_values_read_the_features_that_predict_the_token():
    """One value per column: what the critic sees before the action, computed from whole rows."""
    policy = sharp_vlm()
    rollout = drawn(policy)
    tokens = torch.where(rollout.actions["tokens"] == 4, PAD, rollout.actions["tokens"])
    _, features = full_forward(policy, rollout.prompts, tokens, 3)
    policy.add_value_head(seeded(2))
    with torch.no_grad():
        policy.value_head.bias.fill_(0.5)
    stats = policy.evaluate_actions(rollout, values=True)
    expected = features @ policy.value_head.weight[0] + 0.5
    keep = rollout.mask == 1
    assert stats.values.shape == rollout.mask.shape
    torch.testing.assert_close(stats.values[keep], expected[keep], atol=1e-5, rtol=1e-4)
    stats.values.sum().backward()
    assert policy.value_head.weight.grad.abs().sum() > 0


def test_sampling_depends_on_image_question_and_temperature():
    policy = sharp_vlm()
    same, black = prompts_of(), prompts_of()
    black = Prompts(black.columns | {"image": torch.zeros_like(black["image"])})
    scores = [
        p.rollout(x, 1, seeded()).logprobs[:, 0] for p, x in ((policy, same), (policy, black))
    ]
    assert (scores[0] - scores[1]).abs().min() > 1e-4  # every row sees its own image
    policy.temperature = 1e-4
    assert policy.rollout(same, 2, seeded()).outputs[::2] == policy.predict(same)


def test_prediction_is_greedy_and_draws_nothing():
    policy = sharp_vlm()
    before = torch.random.get_rng_state()
    assert policy.predict(prompts_of()) == policy.predict(prompts_of())
    assert torch.equal(before, torch.random.get_rng_state())
    said = [policy.tokenizer(text).input_ids for text in policy.predict(prompts_of())]
    rollout = policy.encode(prompts_of(), policy.predict(prompts_of()), seeded())
    best = policy.evaluate_actions(rollout).dist.logits.argmax(-1)  # (N, T)
    for ids, likeliest in zip(said, best.tolist(), strict=True):
        assert ids == likeliest[: len(ids)]


def test_an_image_token_in_a_question_is_refused():
    """Story: it reached the model, which complained about features and tokens not matching."""
    prompts = Prompts({"image": torch.zeros(1, 3, 32, 32), "prompt": ["<image> how many ?"]})
    with pytest.raises(UserError, match="a prompt contains <image>; images go into the column"):
        new_vlm(width=32, layers=1).rollout(prompts, 1, seeded())


def test_images_of_both_scales_are_the_same_pixels():
    """uint8 and fractions of 1; frames are images in a row, 16 tokens each."""
    policy, prompts = new_vlm(width=32, layers=1), prompts_of()
    inputs = policy.inputs(prompts)
    fractions = Prompts(prompts.columns | {"image": prompts["image"].float() / 255})
    torch.testing.assert_close(policy.inputs(fractions)["pixel_values"], inputs["pixel_values"])
    extremes = torch.tensor([0, 255], dtype=torch.uint8)[:, None, None, None].expand(2, 3, 32, 32)
    pixels = policy.inputs(Prompts({"image": extremes, "prompt": ["", ""]}))["pixel_values"]
    assert pixels[0].unique().tolist() == [-1.0] and pixels[1].unique().tolist() == [1.0]
    assert (inputs["input_ids"] == 4).sum(1).tolist() == [16] * 4
    assert inputs["attention_mask"].sum(1).tolist() == [18, 23, 16, 25]
    film = Prompts({"image": prompts["image"].view(2, 2, 3, 32, 32), "prompt": ["red ?", ""]})
    inputs = policy.inputs(film)
    assert (inputs["input_ids"] == 4).sum(1).tolist() == [32, 32]
    assert inputs["pixel_values"].shape == (4, 3, 32, 32)
    assert len(policy.rollout(film, 2, seeded()).outputs) == 4


def test_encoding_gives_tokens_an_end_and_a_mask():
    policy = sharp_vlm()
    texts = ["<answer> 3 </answer>", "red", "", "how many things"]
    rollout = policy.encode(prompts_of(), texts, seeded())
    assert rollout.group_size == 1 and rollout.outputs == texts
    assert rollout.actions["tokens"].tolist() == [
        [7, 28, 8, EOS],
        [125, EOS, PAD, PAD],
        [EOS, PAD, PAD, PAD],
        [*policy.tokenizer("how many things").input_ids, EOS],
    ]
    lengths = torch.tensor([4, 2, 1, 4])
    assert torch.equal(rollout.mask, (torch.arange(4) < lengths[:, None]).float())
    assert not rollout.logprobs.any() and rollout.logprobs.shape == (4, 4)
    generator = seeded()
    policy.encode(prompts_of(), texts, generator)
    assert torch.equal(generator.get_state(), seeded().get_state())  # draws nothing


def test_encoding_several_answers_per_prompt():
    """Row i * G + j answers prompt i, and is scored as if it stood alone."""
    policy, prompts = sharp_vlm(), prompts_of()
    texts = [f"{word} {number}" for word in ("red", "blue", "cyan", "green") for number in range(2)]
    rollout = policy.encode(prompts, texts, seeded())
    assert rollout.group_size == 2
    together = policy.logprobs(rollout)
    for row, text in enumerate(texts):
        alone = policy.encode(prompts.rows([row // 2]), [text], seeded())
        torch.testing.assert_close(policy.logprobs(alone)[0], together[row], atol=1e-5, rtol=1e-5)


def test_what_was_sampled_encodes_to_itself():
    policy = sharp_vlm()
    rollout = drawn(policy)
    again = policy.encode(rollout.prompts, rollout.outputs, seeded())
    for ids, kept, encoded in zip(
        rollout.actions["tokens"], rollout.mask, again.actions["tokens"], strict=True
    ):
        said = [i for i in ids[kept == 1].tolist() if i > 3]
        assert encoded.tolist()[: len(said) + 1] == [*said, EOS]


def test_a_new_policy_is_its_seed_and_unsure():
    before = torch.random.get_rng_state()
    policy = new_vlm(seed=3, width=32, layers=1)
    assert torch.equal(before, torch.random.get_rng_state())
    twin = new_vlm(seed=3, width=32, layers=1)
    assert all(
        torch.equal(a, b) for a, b in zip(policy.parameters(), twin.parameters(), strict=True)
    )
    rollout = policy.rollout(prompts_of(), 2, seeded())
    entropy = policy.evaluate_actions(rollout).entropy
    assert entropy.min() > 0.98 * math.log(len(policy.tokenizer)) and policy.hidden_size == 32
    assert sum(p.numel() for p in new_vlm().parameters()) == pytest.approx(1.2e6, rel=0.15)
