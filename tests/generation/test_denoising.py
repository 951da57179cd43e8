"""Denoising policies: sampling and scoring agree, groups, gaps, noise, encoding, saving."""

import json
import math
from dataclasses import replace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler
from generation.tiny import CAPTIONS, REAL, captions, denoisers, seeded

from minivisrl import UserError
from minivisrl.optimization.kl import kl_exact
from minivisrl.paradigms.dpo import DPOConfig
from minivisrl.paradigms.offline import DPO, OfflineConfig, OfflineTrainer, encode_pairs
from minivisrl.policy import frozen
from minivisrl.rollout import PreferencePairs, Prompts, Rollout


def pictures(count, seed=0):
    """(count, 3, 16, 16), fractions of 1."""
    return torch.rand(count, 3, 16, 16, generator=seeded(seed))


def count_rows(module):
    """A list that grows by the batch size whenever the module is called."""
    sizes = []

    def note(_, args, kwargs):
        sizes.append(len([*args, *kwargs.values()][0]))

    module.register_forward_pre_hook(note, with_kwargs=True)
    return sizes


def rescored(policy, rollout):
    """What the current weights say of a rollout, next to what it stores, under the mask."""
    keep = rollout.mask == 1
    with torch.no_grad():
        return policy.logprobs(rollout)[keep], rollout.logprobs[keep]


def test_a_rollout_is_complete(lib=REAL):
    """K - 1 actions: x runs from pure noise along the levels, each step starting where the last
    one ended, and the last step without noise makes the image."""
    for policy in denoisers(lib):
        rollout = policy.rollout(captions(), 4, seeded())
        assert rollout.mask.shape == (12, 4) and rollout.mask.all() and rollout.group_size == 4
        x, reached = rollout.actions["x"], rollout.actions["next"]
        assert x.shape == (12, 4, 3, 16, 16) and torch.equal(x[:, 1:], reached[:, :-1])
        assert x[:, 0].mean().abs() < 0.05 and x[:, 0].std() == pytest.approx(1, abs=0.05)
        grid = policy.levels(5)
        assert torch.equal(rollout.actions["level"], grid[:4].expand(12, -1))
        assert torch.equal(rollout.actions["level_next"], grid[1:5].expand(12, -1))
        images = torch.stack(rollout.outputs)
        assert images.shape == (12, 3, 16, 16) and not rollout.logprobs.requires_grad
        assert 0 <= images.min() and images.max() <= 1
        row, text = torch.arange(12) // 4, policy.read(captions())
        with torch.no_grad():
            said, _ = policy.denoise(reached[:, -1], grid[4].expand(12), text, row)
        clean, _ = policy.transition(said, reached[:, -1], grid[4], grid[5], 0.0)
        torch.testing.assert_close(images, (clean / 2 + 0.5).clamp(0, 1), atol=1e-5, rtol=0)


def test_scoring_finds_the_stored_logprobs(lib=REAL):
    """Also for shuffled rows, single groups, joined rollouts, and another sampler by then."""
    for reduce, tolerance in (("mean", 1e-5), ("sum", 2e-3)):
        for policy in denoisers(lib, reduce=reduce):
            rollout = policy.rollout(captions(), 4, seeded())
            other = policy.rollout(captions(CAPTIONS[::-1]), 4, seeded(4))
            policy.sampler = replace(policy.sampler, steps=9, scored=2, shared_noise=True)
            parts = rollout, rollout.rows([11, 3, 4]), rollout.groups([2, 0])
            for part in (*parts, Rollout.cat([other, rollout])):
                found, stored = rescored(policy, part)
                torch.testing.assert_close(found, stored, atol=tolerance, rtol=1e-6)
            assert policy.logprobs(rollout).requires_grad
            policy.sampler = replace(policy.sampler, noise=policy.sampler.noise * 0.8)
            found, stored = rescored(policy, rollout)
            assert (found - stored).abs().min() > 1e-3


def test_rows_of_a_group_are_side_by_side(lib=REAL):
    """Scored under its neighbour's caption, an episode has other log-probs; and siblings differ."""
    for policy in denoisers(lib):
        rollout = policy.rollout(captions(), 2, seeded())
        wrong = replace(rollout, prompts=captions([*CAPTIONS[1:], CAPTIONS[0]]))
        found, stored = rescored(policy, wrong)
        assert (found - stored).abs().view(6, 4).amax(dim=1).min() > 1e-4
        for name in ("x", "next"):
            episodes = rollout.actions[name].flatten(2)  # (N, T, D)
            distance = torch.cdist(episodes.movedim(1, 0), episodes.movedim(1, 0))  # (T, N, N)
            assert (distance + 1e9 * torch.eye(6)).min() > 5  # no noise is used twice


def test_shared_noise_is_shared_at_the_start_only(lib=REAL):
    for policy in denoisers(lib, shared_noise=True):
        rollout = policy.rollout(captions(), 2, seeded())
        start, after = rollout.actions["x"][:, 0], rollout.actions["next"][:, 0]
        assert torch.equal(start[0::2], start[1::2])
        assert all((start[0] - start[i]).abs().max() > 1 for i in (2, 4))
        assert (after[0::2] - after[1::2]).abs().amax(dim=(1, 2, 3)).min() > 0.1


def test_a_subset_of_the_steps(lib=REAL):
    """`scored` columns of each row, the same for siblings, others for other prompts; what lies
    under a zero mask is neither read nor computed, and in one forward pass."""
    for policy in denoisers(lib, steps=9, scored=3):
        policy.add_value_head(seeded())
        rollout = policy.rollout(captions(CAPTIONS * 4), 2, seeded())
        groups = rollout.mask.view(12, 2, 8)
        assert torch.equal(groups[:, 0], groups[:, 1]) and (rollout.mask.sum(dim=1) == 3).all()
        assert len({tuple(row) for row in groups[:, 0].tolist()}) > 6 and groups.any(0).all()
        calls = count_rows(policy.model)
        stats = policy.evaluate_actions(rollout, values=True)
        assert calls == [72]
        hidden = rollout.mask == 0
        assert not stats.logprobs[hidden].any() and not stats.values[hidden].any()
        assert stats.values[~hidden].all() and stats.entropy.isfinite().all()
        spoilt = {
            name: torch.where(hidden.view(24, 8, *[1] * (x.ndim - 2)), 7, x)
            for name, x in rollout.actions.items()
        }
        again = policy.evaluate_actions(replace(rollout, actions=spoilt), values=True)
        assert torch.equal(again.logprobs, stats.logprobs)
        assert torch.equal(again.values, stats.values)


def test_captions_are_encoded_once_per_group(lib=REAL):
    for policy in denoisers(lib):
        read = count_rows(policy.text_encoder)
        policy.evaluate_actions(policy.rollout(captions(), 5, seeded()))
        assert read == [3, 3]


def test_a_caption_means_the_same_in_every_batch(lib=REAL):
    """Captions are padded to one length: a longer neighbour must not change the log-probs."""
    for policy in denoisers(lib):
        rollout = policy.rollout(captions(), 1, seeded())
        for row in range(3):
            found, stored = rescored(policy, rollout.rows([row]))
            torch.testing.assert_close(found, stored, atol=1e-5, rtol=0)


def test_entropy_and_kl_by_the_formula(lib=REAL):
    """Entropy follows `reduce`; the KL of `dist` is that of all latents: (mean gap / std)^2 / 2."""
    for reduce, latents in (("mean", 1), ("sum", 768)):
        for policy in denoisers(lib, reduce=reduce):
            rollout, start = policy.rollout(captions(), 2, seeded()), frozen(policy)
            with torch.no_grad():
                next(reversed(list(policy.model.parameters()))).add_(0.1)  # the last bias
                stats, before = policy.evaluate_actions(rollout), start.evaluate_actions(rollout)
            (mean, std), old = (stats.dist.base_dist.loc, stats.dist.base_dist.scale), before.dist
            std = std[..., 0, 0, 0]  # (N, T)
            entropy = latents * (0.5 * math.log(2 * math.pi * math.e) + std.log())
            torch.testing.assert_close(stats.entropy, entropy, atol=1e-5, rtol=1e-5)
            gap = (mean - old.base_dist.loc).square().sum(dim=(2, 3, 4))
            kl = kl_exact(stats.dist, old)
            assert kl.shape == (6, 4)
            torch.testing.assert_close(kl, gap / (2 * std**2), atol=1e-5, rtol=1e-4)
            assert kl.min() > 1e-4


def test_the_critic_knows_x_level_and_caption(lib=REAL):
    for policy in denoisers(lib):
        policy.add_value_head(seeded())
        rollout = policy.rollout(captions(), 2, seeded())
        values = policy.evaluate_actions(rollout, values=True).values
        assert values.shape == (6, 4) and len(values.unique()) == 24
        actions = rollout.actions
        level = actions["level"].clone()
        level[:, 1] = actions["level"][:, 0]
        x = actions["x"].clone()
        x[:, 1] = actions["x"][:, 2]
        for changed in (
            replace(rollout, actions=actions | {"level": level}),
            replace(rollout, actions=actions | {"x": x}),
            replace(rollout, prompts=captions(CAPTIONS[::-1])),
        ):
            moved = policy.evaluate_actions(changed, values=True).values[:, 1] - values[:, 1]
            assert (moved.abs() > 1e-6).sum() >= 4
        values.sum().backward()
        assert policy.value_head.weight.grad.abs().sum() > 0
        assert all(p.grad is not None for p in policy.text_encoder.parameters() if p.ndim > 1)


def test_encoding_draws_a_level_and_noise(lib=REAL):
    """The image can be had back from the noisy x; the score is minus the denoiser's error."""
    images = pictures(6)
    for policy in denoisers(lib):
        rollout = policy.encode(captions(), images, seeded())
        assert rollout.mask.shape == (6, 1) and rollout.group_size == 2
        x, target, level = (rollout.actions[name][:, 0] for name in ("x", "target", "level"))
        if isinstance(policy, lib.FlowPolicy):
            clean = x - level.view(-1, 1, 1, 1) * target
            assert 0 < level.min() and level.max() <= 1
        else:
            bar = policy.scheduler.alphas_cumprod[level].view(-1, 1, 1, 1)
            clean = bar.sqrt() * x - (1 - bar).sqrt() * target
            noise = (1 - bar).sqrt() * x + bar.sqrt() * target
            assert noise.std() == pytest.approx(1, abs=0.05) and level.dtype == torch.long
        torch.testing.assert_close(clean, 2 * images - 1, atol=2e-3, rtol=0)
        with torch.no_grad():
            row = torch.arange(6) // 2
            said, _ = policy.denoise(x, level, policy.read(captions()), row)
            error = (said - target).square().mean(dim=(1, 2, 3))
            stats = policy.evaluate_actions(rollout)
            torch.testing.assert_close(stats.logprobs[:, 0], -error, atol=1e-5, rtol=1e-5)
            policy.sampler = replace(policy.sampler, reduce="sum")
            stats = policy.evaluate_actions(rollout)
            torch.testing.assert_close(stats.logprobs[:, 0], -768 * error, atol=1e-2, rtol=1e-5)
            density = stats.dist.log_prob(target[:, None]) - stats.logprobs
            assert density.std() < 1e-2  # equal up to a constant
        again = policy.encode(captions(), (255 * images).byte(), seeded())
        assert torch.equal(again.actions["level"], rollout.actions["level"])
        assert (again.actions["x"] - rollout.actions["x"]).abs().max() < 0.02  # uint8 is coarser


def test_levels_cover_the_range(lib=REAL):
    """400 draws, ten bins: every level is trained, in equal shares."""
    for policy, width in zip(denoisers(lib), (100, 0.1), strict=True):
        level = policy.encode(captions(["red"]), pictures(400), seeded()).actions["level"]
        shares = torch.bincount((level.flatten() / width).long().clamp(max=9), minlength=10) / 400
        assert shares.min() > 0.04 and shares.max() < 0.17


def test_pairs_share_their_draws_and_start_at_log_2(lib=REAL):
    """Diffusion-DPO: one level and one noise per pair; at policy = reference the loss is log 2."""
    pairs = PreferencePairs(captions(), pictures(3, 1), list(pictures(3, 2)))
    for policy in denoisers(lib):
        rollout = encode_pairs(policy, pairs, seeded())
        level, x = rollout.actions["level"].view(3, 2), rollout.actions["x"].view(3, 2, -1)
        assert torch.equal(level[:, 0], level[:, 1]) and len(level[:, 0].unique()) == 3
        images = torch.stack([pairs.chosen, torch.stack(pairs.rejected)], dim=1).view(3, 2, -1)
        shrink = (x[:, 0] - x[:, 1]) / (2 * images[:, 0] - 2 * images[:, 1])
        assert shrink.std(dim=1).max() < 1e-2  # the noise has cancelled
        cfg = OfflineConfig(batch_size=3, draws=2, learning_rate=1e-3)
        trainer = OfflineTrainer(policy, pairs, DPO(DPOConfig(dpo_beta=100.0)), cfg, seeded())
        rows = [trainer.step() for _ in range(12)]
        assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
        assert sum(row["accuracy"] for row in rows[-4:]) / 4 > 0.7


def test_several_draws_are_several_rows():
    """A log-sigmoid of a mean is not a mean of log-sigmoids: with noisy draws it is too small."""
    policy = denoisers()[1]
    pairs = PreferencePairs(captions(), pictures(3, 1), pictures(3, 2))
    dpo, ref = DPO(DPOConfig(dpo_beta=50.0)), frozen(policy)
    with torch.no_grad():
        for weight in policy.model.parameters():
            weight.add_(0.05 * torch.randn(weight.shape, generator=seeded()))
        batch = dpo.compare(policy, ref, pairs.rows([0, 1, 2] * 8), seeded())
        loss, stats = dpo.loss(policy.evaluate_actions(batch.rollout), batch)
        new, old = policy.logprobs(batch.rollout), batch.ref_logprobs
        margin = 50.0 * (new - old).view(8, 3, 2).diff(dim=2).squeeze(2).neg()  # (draws, B)
    right = -torch.nn.functional.logsigmoid(margin).mean()
    wrong = -torch.nn.functional.logsigmoid(margin.mean(dim=0)).mean()
    assert loss.item() == pytest.approx(right.item(), rel=1e-4)
    assert right - wrong > 0.05 and len(batch.rollout) == 48


def test_prediction_depends_on_caption_and_seed_alone(lib=REAL):
    for policy in denoisers(lib):
        before = torch.random.get_rng_state()
        images = torch.stack(policy.predict(captions()))
        assert images.shape == (3, 3, 16, 16) and 0 <= images.min() and images.max() <= 1
        again = torch.stack(policy.predict(captions([CAPTIONS[2], CAPTIONS[0]])))
        torch.testing.assert_close(again, images[[2, 0]], atol=1e-5, rtol=0)
        assert torch.equal(before, torch.random.get_rng_state())
        policy.sampler = replace(policy.sampler, seed=1)
        assert (torch.stack(policy.predict(captions())) - images).abs().amax((1, 2, 3)).min() > 0.1
        policy.sampler = replace(policy.sampler, seed=0, steps=9, noise=0.1)
        assert torch.equal(torch.stack(policy.predict(captions())), images)  # only `eval_steps`
        policy.sampler = replace(policy.sampler, eval_steps=8)
        assert not torch.equal(torch.stack(policy.predict(captions())), images)


def test_the_pipeline_draws_what_the_policy_predicts():
    """`PixArtSigmaPipeline.__call__` from the same noise, with the policy's own weights."""
    policy = denoisers()[0]
    start = torch.cat([policy._randn(1, seeded(i)) for i in range(3)])
    starts = iter(start.split(1))
    policy._randn = lambda rows, generator: next(starts)
    images = torch.stack(policy.predict(captions()))
    pipeline = policy.pipeline
    pipeline.set_progress_bar_config(disable=True)
    drawn = pipeline(
        CAPTIONS,
        num_inference_steps=4,
        guidance_scale=1.0,
        height=128,
        width=128,
        latents=start,
        max_sequence_length=20,
        clean_caption=False,
        use_resolution_binning=False,
        output_type="latent",
    ).images
    torch.testing.assert_close(images, (drawn / 2 + 0.5).clamp(0, 1), atol=1e-4, rtol=1e-4)


def test_a_pipeline_with_a_vae_and_a_learned_variance(tmp_path):
    """What larger checkpoints of the class have: latents, and twice the channels."""
    small = REAL.new_diffusion(width=32, layers=1)
    config = dict(small.model.config) | {"in_channels": 4, "out_channels": 8, "sample_size": 8}
    blocks = {"down_block_types": ["DownEncoderBlock2D"] * 2}
    blocks |= {"up_block_types": ["UpDecoderBlock2D"] * 2}
    vae = AutoencoderKL(block_out_channels=(8, 8), norm_num_groups=4, **blocks)
    model = type(small.model).from_config({k: v for k, v in config.items() if k[0] != "_"})
    parts = small.text_encoder, small.tokenizer, DDIMScheduler(clip_sample=False), vae
    policy = REAL.DiffusionPolicy(model, *parts)
    rollout = policy.rollout(captions(), 2, seeded())
    assert rollout.actions["x"].shape == (6, 9, 4, 8, 8)
    assert torch.stack(rollout.outputs).shape == (6, 3, 16, 16)
    found, stored = rescored(policy, rollout)
    torch.testing.assert_close(found, stored, atol=1e-5, rtol=0)
    encoded = policy.encode(captions(), pictures(3), seeded())
    assert encoded.actions["x"].shape == (3, 1, 4, 8, 8)
    policy.logprobs(encoded).sum().backward()
    assert all(p.grad is None for p in vae.parameters())
    policy.save(tmp_path)
    again = REAL.DiffusionPolicy.load(tmp_path)
    assert torch.equal(again.predict(captions())[0], policy.predict(captions())[0])


def test_saved_and_loaded_is_the_same(tmp_path, lib=REAL):
    for number, policy in enumerate(denoisers(lib, steps=7, reduce="sum", seed=3)):
        policy.add_value_head(seeded())
        folder = tmp_path / str(number)
        policy.save(folder)
        again = type(policy).load(folder)
        assert again.sampler == policy.sampler and again.hidden_size == 32
        one, two = policy.state_dict(), again.state_dict()
        assert one.keys() == two.keys() and all(torch.equal(one[k], two[k]) for k in one)
        rollout = policy.rollout(captions(), 2, seeded())
        assert torch.equal(again.rollout(captions(), 2, seeded()).logprobs, rollout.logprobs)
        values = [p.evaluate_actions(rollout, values=True).values for p in (policy, again)]
        assert torch.equal(*values)


def test_spoilt_checkpoints_end_in_one_line(tmp_path):
    for number, policy in enumerate(denoisers()):
        folder = tmp_path / str(number)
        policy.save(folder)
        settings = folder / "policy.json"
        for text in ("{", "[]", json.dumps({"stepps": 3}), json.dumps({"steps": 0})):
            settings.write_text(text)
            with pytest.raises(UserError) as error:
                type(policy).load(folder)
            assert "\n" not in str(error.value)
        settings.unlink()
        assert type(policy).load(folder).sampler == REAL.SamplerConfig()
        (folder / "transformer" / "diffusion_pytorch_model.safetensors").write_bytes(b"no")
        with pytest.raises(UserError) as error:
            type(policy).load(folder)
        assert "\n" not in str(error.value)
        with pytest.raises(UserError, match="is not a folder"):
            type(policy).load(tmp_path / "nowhere")


def test_weights_that_are_missing_are_noticed(tmp_path):
    """diffusers would fill them in at random, and only warn."""
    from safetensors.torch import load_file, save_file

    policy = denoisers()[0]
    policy.save(tmp_path)
    path = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights.pop("proj_out.weight")
    save_file(weights, path)
    with pytest.raises(UserError, match="missing keys: proj_out.weight"):
        REAL.DiffusionPolicy.load(tmp_path)


def test_settings_are_checked():
    for name, value in (("steps", 1), ("scored", 0), ("noise", 0.0), ("reduce", "max")):
        with pytest.raises(UserError, match=f"SamplerConfig.{name}"):
            REAL.SamplerConfig(**{name: value})
    small = REAL.new_diffusion(width=32, layers=1)
    wrong = type(small.scheduler)(prediction_type="sample")
    with pytest.raises(UserError, match="epsilon"):
        REAL.DiffusionPolicy(small.model, small.text_encoder, small.tokenizer, wrong)


def test_a_new_policy_is_its_seed():
    before = torch.random.get_rng_state()
    for new, size in ((REAL.new_diffusion, 1.63e6), (REAL.new_flow, 2.68e6)):
        one, two, other = (new(seed, width=32, layers=1) for seed in (3, 3, 4))
        weights = [torch.cat([p.flatten() for p in x.parameters()]) for x in (one, two, other)]
        assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])
        assert sum(p.numel() for p in new().parameters()) == pytest.approx(size, rel=0.01)
    assert torch.equal(before, torch.random.get_rng_state())


def test_prompts_need_no_other_column():
    policy = denoisers()[1]
    assert len(policy.predict(Prompts({"prompt": ["", "red"], "n": [1, 2]}))) == 2


def test_levels_end_where_nothing_is_left_to_denoise(lib=REAL):
    """Story: a last level of timestep 0 leaves a hundredth of noise in every picture."""
    diffusion, flow = denoisers(lib)
    assert diffusion.levels(5)[-1] == -1 and diffusion.alpha_bars[-1] == 1
    assert flow.levels(4).tolist() == [1, 0.75, 0.5, 0.25, 0]


def test_who_says_the_truth_gets_the_picture_back(lib=REAL):
    """What `corrupt` wants to hear takes a step without noise to the clean picture."""
    clean = 2 * pictures(6) - 1
    noise, u = torch.randn(clean.shape, generator=seeded(1)), torch.linspace(0, 0.9, 6)
    for policy in denoisers(lib):
        x, level, truth = policy.corrupt(clean, noise, u)
        end = policy.levels(5)[-1].expand(6)
        found, _ = policy.transition(truth, x, level, end, 0.0)
        torch.testing.assert_close(found, clean, atol=1e-3, rtol=0)
        assert (x - clean).abs().mean() > 0.1


def test_padding_of_a_caption_says_nothing_to_a_diffusion_model(lib=REAL):
    policy, _ = denoisers(lib)
    x, level, row = torch.randn(3, 3, 16, 16, generator=seeded()), torch.full((3,), 500), [0, 1, 2]
    said = []
    for width in (12, 20):
        policy.sampler = replace(policy.sampler, caption_tokens=width)
        with torch.no_grad():
            said.append(policy.denoise(x, level, policy.read(captions()), torch.tensor(row))[0])
    torch.testing.assert_close(*said, atol=1e-4, rtol=0)
