"""Sampling and scoring with a repeated cache, against the plain forward over whole rows.

The plain forward (`mllm.tiny.full_forward`) writes every row out and shares nothing.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from mllm.tiny import EVEN, RAGGED, full_forward, prompts_of, seeded, sharp_vlm
from scipy import stats
from transformers import DynamicCache

from minivisrl import decoding
from minivisrl.decoding import sample_tokens, score_tokens
from minivisrl.worlds.vocabulary import tokenizer

EOS, PAD, IMAGE = 2, 0, 4
WORDS = len(tokenizer())
RARE = WORDS - 1  # a reserved token: a stop token that stops nothing


def completions(policy, count, columns=5, seed=0):
    """Random tokens (N, T) without the image token, ragged: rows end early and are padded."""
    tokens = torch.randint(5, 700, (count, columns), generator=seeded(seed))
    lengths = torch.randint(1, columns + 1, (count,), generator=seeded(seed + 1))
    lengths[0] = columns
    places = torch.arange(columns)
    tokens[places == lengths[:, None] - 1] = EOS
    tokens[places >= lengths[:, None]] = PAD
    return tokens, (places < lengths[:, None]).float()


def gradients(model, logprobs, weights):
    model.zero_grad()
    (logprobs * weights).sum().backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def check_exact(texts=RAGGED, group_size=2, temperature=1.0, check_gradients=True):
    """Log-probs within 1e-5, gradients of a weighted sum within 1e-5 of their norm."""
    policy, prompts = sharp_vlm(), prompts_of(texts)
    tokens, mask = completions(policy, len(texts) * group_size)
    weights = mask * torch.randn(mask.shape, generator=seeded(5))

    plain, features = full_forward(policy, prompts, tokens, group_size)
    expected = (plain / temperature).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    wanted = gradients(policy.model, expected, weights)

    logits, ours = score_tokens(
        policy.model, policy.inputs(prompts), tokens, group_size, temperature=temperature
    )
    logprobs = logits.log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    keep = mask == 1
    torch.testing.assert_close(logprobs[keep], expected[keep], atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(ours[keep], features[keep], atol=1e-4, rtol=1e-4)
    if not check_gradients:
        return
    got = gradients(policy.model, logprobs, weights)
    assert got.keys() == wanted.keys()
    assert any("vision_tower" in name for name in got)  # through the cache, into the encoder
    total = torch.stack([g.norm() for g in wanted.values()]).norm()
    for name, gradient in wanted.items():
        assert (got[name] - gradient).norm() <= 1e-5 * total, name


# --- scoring -------------------------------------------------------------------------------------


@pytest.mark.parametrize("texts", [RAGGED, EVEN], ids=["ragged", "even"])
@pytest.mark.parametrize("group_size", [1, 2, 5])
def test_scoring_is_exact(texts, group_size):
    check_exact(texts, group_size)


@pytest.mark.parametrize("temperature", [0.5, 2.0])
def test_scoring_is_exact_at_a_temperature(temperature):
    check_exact(temperature=temperature, check_gradients=False)


def test_a_single_column_is_exact():
    policy, prompts = sharp_vlm(), prompts_of()
    tokens = torch.tensor([[7], [25], [125], [EOS]])
    logits, _ = score_tokens(policy.model, policy.inputs(prompts), tokens, 1)
    expected, _ = full_forward(policy, prompts, tokens, 1)
    torch.testing.assert_close(logits, expected, atol=1e-5, rtol=1e-5)


def shifted(change):
    """`_advance` whose prefix is changed first."""
    right = decoding._advance
    return lambda model, prefix, tokens, done: right(model, change(prefix), tokens, done)


def padded_lengths(prefix):
    """The wrong version that counts padding as prompt."""
    return replace(prefix, lengths=torch.full_like(prefix.lengths, prefix.lengths.max()))


def unrepeated(cache, group_size):
    """The wrong version that tiles the prompts, 0 1 0 1, where rows are 0 0 1 1."""
    for layer in cache.layers:
        layer.keys = layer.keys.repeat(group_size, 1, 1, 1)
        layer.values = layer.values.repeat(group_size, 1, 1, 1)


def detached(cache, group_size):
    """The wrong version in which no gradient reaches the prompt through the cache."""
    for layer in cache.layers:
        layer.keys = layer.keys.detach().repeat_interleave(group_size, dim=0)
        layer.values = layer.values.detach().repeat_interleave(group_size, dim=0)


def without(name):
    """`encode_prompts` whose model never gets the argument `name`."""
    right = decoding.encode_prompts

    def wrong(model, inputs, group_size):
        def drop(module, args, kwargs):
            return args, {key: value for key, value in kwargs.items() if key != name}

        handle = model.base_model.register_forward_pre_hook(drop, with_kwargs=True)
        try:
            return right(model, inputs, group_size)
        finally:
            handle.remove()

    return wrong


WRONG = {
    "positions count padding": ("_advance", lambda: shifted(padded_lengths)),
    "positions are one late": (
        "_advance",
        lambda: shifted(lambda prefix: replace(prefix, lengths=prefix.lengths + 1)),
    ),
    "padding is attended to": (
        "_advance",
        lambda: shifted(lambda prefix: replace(prefix, mask=None)),
    ),
    "prompt positions count padding": ("encode_prompts", lambda: without("position_ids")),
    "prompt padding is attended to": ("encode_prompts", lambda: without("attention_mask")),
}


@pytest.mark.parametrize("name", WRONG)
def test_wrong_scoring_would_be_noticed(name, monkeypatch):
    target, make = WRONG[name]
    monkeypatch.setattr(decoding, target, make())
    with pytest.raises(AssertionError, match="Tensor-likes are not close"):
        check_exact()


@pytest.mark.parametrize("wrong", [unrepeated, detached])
def test_a_wrong_cache_would_be_noticed(wrong, monkeypatch):
    monkeypatch.setattr(DynamicCache, "batch_repeat_interleave", wrong)
    with pytest.raises(AssertionError):
        check_exact()


# --- sampling ------------------------------------------------------------------------------------


def sample(policy, prompts, group_size=1, generator=None, **options):
    options = {"max_tokens": 6, "stop_ids": (EOS,), "pad_id": PAD} | options
    return sample_tokens(policy.model, policy.inputs(prompts), group_size, generator, **options)


@pytest.mark.parametrize("texts", [RAGGED, EVEN], ids=["ragged", "even"])
def test_greedy_is_hugging_faces_generate(texts):
    """Also with a stop token that cuts some completions short."""
    policy, prompts = sharp_vlm(), prompts_of(texts)

    def generate(stop):
        inputs = policy.inputs(prompts)
        options = {"do_sample": False, "max_new_tokens": 6, "pad_token_id": PAD}
        rows = policy.model.generate(**inputs, **options, eos_token_id=stop)
        return rows[:, inputs["input_ids"].shape[1] :]

    free = generate(stop=RARE)
    assert len({tuple(row) for row in free.tolist()}) == len(texts)  # images and texts matter
    for stop in (RARE, int(free[0, 2]), int(free[1, 3])):
        tokens, _, _ = sample(policy, prompts, stop_ids=(stop,))
        assert torch.equal(tokens, generate(stop))


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_stored_logprobs_are_those_of_the_plain_forward(temperature):
    policy, prompts = sharp_vlm(), prompts_of()
    tokens, logprobs, mask = sample(policy, prompts, 3, seeded(), temperature=temperature)
    clean = torch.where(tokens == IMAGE, 5, tokens)
    clean = torch.where(mask == 1, clean, PAD)
    assert torch.equal(clean, tokens)  # this seed draws no image token
    logits, _ = full_forward(policy, prompts, tokens, 3)
    expected = (logits / temperature).log_softmax(-1).gather(2, tokens[..., None])[..., 0]
    keep = mask == 1
    torch.testing.assert_close(logprobs[keep], expected[keep], atol=1e-5, rtol=1e-5)
    assert not logprobs.requires_grad


def chi_square(tokens, probabilities, bins=30):
    """p-value of the counts of `tokens` under `probabilities`, in `bins` of like probability."""
    order = probabilities.argsort(descending=True)
    group = torch.empty_like(order)
    mass = probabilities[order].cumsum(0) - probabilities[order] / 2
    group[order] = (mass * bins).long().clamp(max=bins - 1)
    observed = group[tokens].bincount(minlength=bins).double()
    expected = torch.zeros(bins, dtype=torch.double).index_add(0, group, probabilities.double())
    keep = expected > 0
    expected = expected[keep] / expected.sum() * len(tokens)
    return stats.chisquare(observed[keep].numpy(), expected.numpy()).pvalue


@pytest.mark.parametrize("temperature", [1.0, 0.5, 2.0])
def test_first_tokens_follow_the_softmax(temperature):
    """20,000 draws; the distributions of other temperatures are rejected."""
    policy, prompts = sharp_vlm(), prompts_of(["how many ?"])
    tokens, _, _ = sample(policy, prompts, 20_000, seeded(7), max_tokens=1, temperature=temperature)
    with torch.no_grad():
        logits = full_forward(policy, prompts, tokens[:1], 1)[0][0, 0]
    assert chi_square(tokens[:, 0], (logits / temperature).softmax(-1)) > 1e-3
    assert chi_square(tokens[:, 0], (logits / (1.1 * temperature)).softmax(-1)) < 1e-6


def quartile(tokens):
    """Which quarter of the draws a token belongs to, roughly."""
    cuts = tokens.double().quantile(torch.tensor([0.25, 0.5, 0.75], dtype=torch.double))
    return torch.bucketize(tokens.double(), cuts)


def independence(first, second):
    """p-value of independence of two columns of draws."""
    table = np.zeros((4, 4))
    np.add.at(table, (quartile(first).numpy(), quartile(second).numpy()), 1)
    return stats.chi2_contingency(table).pvalue


def siblings():
    """4,000 completions of one prompt, two tokens each: neighbouring rows as (even, odd)."""
    tokens, _, _ = sample(
        sharp_vlm(), prompts_of(["how many ?"]), 4000, seeded(8), max_tokens=2, stop_ids=(RARE,)
    )
    return tokens[::2], tokens[1::2]


def test_siblings_are_independent_from_the_first_token_on():
    even, odd = siblings()
    for column in (0, 1):
        assert independence(even[:, column], odd[:, column]) > 1e-3
        assert (even[:, column] == odd[:, column]).double().mean() < 0.1


def test_siblings_that_share_their_draws_would_be_noticed(monkeypatch):
    """One uniform number for two neighbours: each row alone is still a fair sample."""
    rand = torch.rand
    shared = lambda n, *size, **rest: rand(n // 2, *size, **rest).repeat_interleave(2, dim=0)  # noqa: E731
    monkeypatch.setattr(torch, "rand", shared)
    even, odd = siblings()
    assert independence(even[:, 0], odd[:, 0]) < 1e-6


def test_rows_of_different_prompts_differ_and_follow_their_own_prompt():
    """Group i of the output belongs to prompt i: its first tokens have that prompt's likelihood."""
    policy, prompts = sharp_vlm(), prompts_of(RAGGED)
    tokens, _, _ = sample(policy, prompts, 1000, seeded(9), max_tokens=1)
    with torch.no_grad():
        logits = full_forward(policy, prompts, torch.full((4, 1), 5), 1)[0][:, 0]
    mean = logits.log_softmax(-1)[:, tokens[:, 0]].view(4, 4, 1000).mean(-1)  # (prompt, group)
    assert mean.argmax(dim=0).tolist() == [0, 1, 2, 3]


def test_mask_ends_with_the_first_stop_token():
    """1 up to and including it; then the pad id and zeros; T is the longest completion."""
    stops = tuple(range(5, 300))
    policy = sharp_vlm()
    for max_tokens, seed in ((12, 0), (3, 1)):
        tokens, logprobs, mask = sample(
            policy, prompts_of(), 8, seeded(seed), stop_ids=stops, max_tokens=max_tokens
        )
        assert tokens.shape == logprobs.shape == mask.shape
        lengths = []
        for row, scores, kept in zip(
            tokens.tolist(), logprobs.tolist(), mask.tolist(), strict=True
        ):
            ends = [t for t, token in enumerate(row) if token in stops]
            length = ends[0] + 1 if ends else len(row)
            assert kept == [1.0] * length + [0.0] * (len(row) - length)
            assert row[length:] == [PAD] * (len(row) - length)
            assert scores[length:] == [0.0] * (len(row) - length) and all(scores[:length])
            lengths.append(length)
        assert tokens.shape[1] == max(lengths) <= max_tokens
        assert len(set(lengths)) > 1
    everything = tuple(range(WORDS))
    assert sample(policy, prompts_of(), 4, seeded(), stop_ids=everything)[0].shape == (16, 1)


def test_padding_is_not_the_end():
    """A sampled pad token is an action like any other: the row goes on."""
    policy = sharp_vlm()
    free, _, _ = sample(policy, prompts_of(), 4, seeded(3), stop_ids=(RARE,))
    pad_id = int(free[0, 1])
    tokens, _, mask = sample(policy, prompts_of(), 4, seeded(3), stop_ids=(RARE,), pad_id=pad_id)
    assert torch.equal(tokens, free) and mask.all()


def test_each_prompt_is_computed_once_per_group():
    """B images and B prompts enter the towers, however many siblings there are."""
    policy, prompts = sharp_vlm(), prompts_of()
    base, seen, prefixes = policy.model.base_model, [], []
    base.vision_tower.register_forward_hook(lambda m, args, out: seen.append(out[0].shape[0]))
    base.language_model.register_forward_hook(
        lambda m, args, out: prefixes.append(tuple(out.last_hidden_state.shape[:2]))
    )
    longest = policy.inputs(prompts)["input_ids"].shape[1]
    for group_size in (1, 5):
        seen.clear(), prefixes.clear()
        tokens, _, _ = sample(policy, prompts, group_size, seeded(), stop_ids=(RARE,))
        assert seen == [4]
        assert prefixes == [(4, longest)] + [(4 * group_size, 1)] * 5  # not after the last token
        seen.clear(), prefixes.clear()
        score_tokens(policy.model, policy.inputs(prompts), tokens, group_size)
        assert seen == [4] and prefixes == [(4, longest), (4 * group_size, 5)]


def test_the_generator_decides_and_nothing_else_does():
    policy, prompts = sharp_vlm(), prompts_of()
    before = torch.random.get_rng_state()
    first = sample(policy, prompts, 3, seeded(1))
    torch.manual_seed(99)
    second, other = sample(policy, prompts, 3, seeded(1)), sample(policy, prompts, 3, seeded(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not torch.equal(first[0], other[0])
    torch.random.set_rng_state(before)
    sample(policy, prompts, 3, seeded(1))
    assert torch.equal(torch.random.get_rng_state(), before)
    generator = seeded(1)
    sample(policy, prompts, 3, generator)
    assert not torch.equal(sample(policy, prompts, 3, generator)[0], first[0])


@pytest.mark.parametrize("level", [0.0, 0.3, 0.999, 1 - 2**-24])
def test_a_token_of_no_probability_is_never_drawn(level, monkeypatch):
    """The largest float below 1 included: the cumulative sum must not be overshot."""
    monkeypatch.setattr(torch, "rand", lambda *size, **_: torch.full(size, level))
    logits = torch.full((64, WORDS), -torch.inf)
    logits[:, 100:300] = 3 * torch.randn(64, 200, generator=seeded(4))
    tokens = decoding._draw(logits, seeded())
    assert ((tokens >= 100) & (tokens < 300)).all()
