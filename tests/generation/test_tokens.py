"""The policy that draws with tokens, and the tokenizer that it draws through."""

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from generation.tiny import CAPTIONS, REAL, captions, seeded, sharp

from minivisrl import UserError
from minivisrl.generation.pretraining import CaptionConfig, copies
from minivisrl.paradigms.sft import SFTConfig, SFTTrainer
from minivisrl.rollout import Rollout
from minivisrl.tokenizer import new_picture_tokenizer
from minivisrl.worlds.drawings import drawing_scenes
from minivisrl.worlds.scenes import render


def small(lib=REAL):
    """Width 32, one layer, whose weights prefer codes, as a trained policy's would."""
    policy = sharp(lib.new_tokens(width=32, layers=1))
    head = policy.model.get_output_embeddings()
    with torch.no_grad():
        head.weight.mul_(3)
    return policy


def test_a_rollout_is_sixteen_codes(lib=REAL):
    policy = small(lib)
    rollout = policy.rollout(captions(), 4, seeded())
    tokens = rollout.actions["tokens"]
    assert tokens.shape == rollout.mask.shape == (12, 16) and rollout.mask.all()
    assert torch.stack(rollout.outputs).shape == (12, 3, 16, 16)
    assert 0 <= torch.stack(rollout.outputs).min() and torch.stack(rollout.outputs).max() <= 1
    assert not torch.equal(tokens[0], tokens[1])  # siblings are independent
    codes = tokens - policy.first_code
    codes = torch.where((codes >= 0) & (codes < 128), codes, 0)
    expected = policy.pictures.decode(codes)  # a word that is no code is drawn as code 0
    torch.testing.assert_close(torch.stack(rollout.outputs), expected)
    assert policy.tokenizer.convert_tokens_to_ids("<code_5>") == policy.first_code + 5


def test_scoring_finds_the_stored_logprobs(lib=REAL):
    policy = small(lib)
    policy.temperature = 0.7
    rollout = policy.rollout(captions(), 4, seeded())
    for part in (rollout, rollout.rows([11, 3, 4]), rollout.groups([2, 0])):
        logprobs = policy.logprobs(part)
        torch.testing.assert_close(logprobs, part.logprobs, atol=1e-5, rtol=1e-5)
    assert logprobs.requires_grad
    wrong = replace(rollout, prompts=captions([*CAPTIONS[1:], CAPTIONS[0]]))
    assert (policy.logprobs(wrong) - rollout.logprobs).abs().amax(dim=1).min() > 1e-3
    policy.add_value_head(seeded())
    stats = policy.evaluate_actions(rollout, values=True)
    assert stats.values.shape == stats.entropy.shape == (12, 16)


def test_a_prompt_is_the_caption_and_the_mark_where_the_picture_begins(lib=REAL):
    policy = small(lib)
    inputs = policy.inputs(captions())
    begin = policy.tokenizer.convert_tokens_to_ids("<boi>")
    assert inputs["input_ids"][:, -1].tolist() == [begin] * len(CAPTIONS)
    for ids, caption in zip(inputs["input_ids"], CAPTIONS, strict=True):
        words = policy.tokenizer.decode(ids, skip_special_tokens=True)
        assert words.replace(" ,", ",").startswith(caption)


def test_prediction_is_greedy(lib=REAL):
    policy = small(lib)
    images = policy.predict(captions())
    assert torch.equal(images[0], policy.predict(captions())[0])
    policy.temperature = 1e-4
    sampled = policy.rollout(captions(), 1, seeded()).outputs
    assert all(torch.equal(a, b) for a, b in zip(images, sampled, strict=True))


def test_pictures_encode_to_their_codes(lib=REAL):
    """Decoded codes of a sample, encoded: what `decode` draws of them is what it drew before."""
    policy = small(lib)
    images = render(drawing_scenes(6, "train", seeded()), 16)
    generator = seeded()
    rollout = policy.encode(captions(), list(images), generator)
    assert rollout.group_size == 2 and rollout.mask.all() and rollout.mask.shape == (6, 16)
    assert torch.equal(
        rollout.actions["tokens"] - policy.first_code, policy.pictures.encode(images)
    )
    assert torch.equal(generator.get_state(), seeded().get_state())  # draws nothing
    assert policy.logprobs(rollout).isfinite().all()


def test_only_the_language_model_is_trained(lib=REAL):
    policy = small(lib)
    rollout = policy.rollout(captions(), 2, seeded())
    policy.logprobs(rollout).sum().backward()
    assert all(p.grad is not None for p in policy.model.parameters())
    assert not any(p.requires_grad or p.grad is not None for p in policy.pictures.parameters())


def test_saved_and_loaded_is_the_same(tmp_path, lib=REAL):
    policy = small(lib)
    policy.temperature = 0.5
    policy.add_value_head(seeded())
    policy.save(tmp_path)
    again = REAL.TokenPolicy.load(tmp_path)
    one, two = policy.state_dict(), again.state_dict()
    assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
    assert again.temperature == 0.5 and again.tokenizer.padding_side == "left"
    rollouts = [p.rollout(captions(), 2, seeded()) for p in (policy, again)]
    assert torch.equal(*(r.logprobs for r in rollouts))
    assert torch.equal(*(torch.stack(r.outputs) for r in rollouts))
    (tmp_path / "policy.json").write_text('{"temprature": 1}')
    with pytest.raises(UserError, match="temprature"):
        REAL.TokenPolicy.load(tmp_path)


def test_codes_live_on_the_sphere_and_the_class_agrees():
    """Janus's own `encode` finds the codes that are nearest in angle, as `decode` reads them."""
    tokenizer = new_picture_tokenizer()
    pixels = torch.rand(5, 3, 16, 16, generator=seeded()) * 2 - 1
    codes = tokenizer.encode(pixels / 2 + 0.5)
    assert torch.allclose(tokenizer.codes.norm(dim=1), torch.ones(128))
    with torch.no_grad():
        latents = tokenizer.model.quant_conv(tokenizer.model.encoder(pixels))  # not normalised
        angle = (
            torch.einsum("ndhw,kd->nhwk", latents, tokenizer.codes) / latents.norm(dim=1)[..., None]
        )
    assert torch.equal(codes, angle.argmax(dim=-1).flatten(1)) and tokenizer.length == 16


def test_idle_codes_are_restarted_where_pictures_are():
    tokenizer = new_picture_tokenizer(codes=256)
    tokenizer.settle()
    shown = render(drawing_scenes(32, "train", seeded()), 16).float() / 127.5 - 1
    before = tokenizer.encode(shown / 2 + 0.5).unique()
    kept = tokenizer.codes.detach()[before].clone()
    assert tokenizer.restart(shown, seeded()) == 256 - len(before) > 0
    assert torch.equal(tokenizer.codes.detach()[before], kept)
    assert len(tokenizer.encode(shown / 2 + 0.5).unique()) > len(before)
    assert torch.allclose(tokenizer.codes.norm(dim=1), torch.ones(256), atol=1e-5)


def test_the_tokenizer_learns_to_copy():
    """After 30 steps of 16 pictures, copies are better than one grey for all (.041)."""
    tokenizer, cfg = new_picture_tokenizer(), CaptionConfig(images=16)
    draw = lambda g, step: copies(tokenizer, cfg, 16, g, step)  # noqa: E731
    options = SFTConfig(learning_rate=3e-3, warmup=5, total_steps=30)
    trainer = SFTTrainer(tokenizer, draw, options, seeded())
    losses = [trainer.step()["loss"] for _ in range(30)]
    assert sum(losses[-5:]) < 0.4 * sum(losses[:5])
    images = render(drawing_scenes(32, "heldout", seeded(1)), 16).float() / 255
    copied = tokenizer.decode(tokenizer.encode(images))
    grey = images.mean(dim=(0, 2, 3), keepdim=True)
    assert (copied - images).square().mean() < (grey - images).square().mean()


def test_the_gradient_reaches_encoder_codes_and_decoder():
    tokenizer = new_picture_tokenizer()
    rollout = copies(tokenizer, CaptionConfig(images=4), 16, seeded(), 0)
    scores = tokenizer.logprobs(rollout)
    assert scores.shape == rollout.mask.shape == (4, 1) and (scores < 0).all()
    scores.sum().backward()
    assert all(
        p.grad.abs().sum() > 0 for p in (tokenizer.codes, *tokenizer.model.quant_conv.parameters())
    )
    assert isinstance(rollout, Rollout) and all(a != b for a, b in pairwise(scores[:, 0].tolist()))
