"""Variants of RL on denoisers: exact KL, reward gradients, Pareto fronts, thumbs; and their mutants.

The checks that take nothing but `lib` also run against wrong versions of the library.
"""

import csv
import json
import math
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from generation.test_training import redness, trainer_of
from generation.tiny import CAPTIONS, captions, denoisers, seeded, sharp
from mutants.library import namespace
from mutants.variants import changed, must_be_noticed
from torch.distributions import Normal, kl_divergence

from minivisrl import DATA, UserError
from minivisrl.generation import backprop
from minivisrl.generation.diffusion import new_diffusion
from minivisrl.generation.flow import new_flow
from minivisrl.optimization import GRPO, GRPOConfig, dpok
from minivisrl.optimization.kl import kl_exact
from minivisrl.paradigms import pareto, reward_gradient
from minivisrl.paradigms.dpo import DPOConfig
from minivisrl.paradigms.offline import (
    KTO,
    KTOConfig,
    OfflineConfig,
    OfflineTrainer,
    unpaired,
)
from minivisrl.paradigms.online import OnlineConfig, act_and_judge
from minivisrl.policy import Policy, frozen
from minivisrl.recipes import denoising_methods
from minivisrl.recipes.denoising_methods import METHODS, MethodOptions, cell_colors, measure
from minivisrl.recipes.generation import DrawConfig
from minivisrl.rewards.judge import weighted
from minivisrl.rollout import PreferencePairs, Rollout
from minivisrl.worlds.drawings import drawing_prompts
from minivisrl.worlds.scenes import render

MODULES = {m.__name__: m for m in (dpok, backprop, reward_gradient, pareto)}
LIB = namespace(list(MODULES.values()))
STEP = {"max_grad_norm": 1.0, "generator": seeded()}


def gaussians(seed=0):
    """Means and stds (2, 3, 4) of two Gaussians per latent."""
    g = seeded(seed)
    draw = [torch.randn(2, 3, 4, generator=g) for _ in range(4)]
    return draw[0], draw[1].exp(), draw[2], draw[3].exp()


def apart(index, seed=0, reach=0.05):
    """A tiny policy, its reference, which is somewhere else, and an episode of the policy."""
    policy = denoisers()[index]
    other, g = frozen(policy), seeded(seed)
    with torch.no_grad():
        for weight in other.model.parameters():
            weight.add_(reach * torch.randn(weight.shape, generator=g))
    return policy, other, policy.rollout(captions(), 2, seeded(1))


# DPOK: the exact KL of every step.


def test_gaussian_kl_worked_numbers(lib=LIB):
    """Two standard deviations apart: 2 nats.  Half as wide: log 2 + 1/8 - 1/2."""
    at = torch.tensor
    assert lib.gaussian_kl(at(1.0), at(0.5), at(0.0), at(0.5)).item() == pytest.approx(2.0)
    wide = lib.gaussian_kl(at(0.0), at(1.0), at(0.0), at(2.0)).item()
    assert wide == pytest.approx(math.log(2) + 1 / 8 - 1 / 2, abs=1e-6)
    assert lib.gaussian_kl(*[x for x in gaussians()[:2]] * 2).abs().max() == 0


def test_gaussian_kl_is_that_of_torch_and_of_samples(lib=LIB):
    """200,000 draws; the mean log-ratio lies within 5 standard errors of the closed form."""
    mean, std, ref_mean, ref_std = gaussians()
    kl = lib.gaussian_kl(mean, std, ref_mean, ref_std)
    now, near = Normal(mean, std), Normal(ref_mean, ref_std)
    torch.testing.assert_close(kl, kl_divergence(now, near))
    x = mean + std * torch.randn(200_000, *mean.shape, generator=seeded(3))
    ratio = now.log_prob(x) - near.log_prob(x)
    assert ((ratio.mean(0) - kl).abs() < 5 * ratio.std(0) / 200_000**0.5).all()


def test_dpok_loss_adds_the_kl_to_the_policy_loss(lib=LIB):
    """By hand: ratio 1, advantages +1 and -1 on two steps and one, KL 2 and 4 against 3."""
    mask = torch.tensor([[1.0, 1.0], [1.0, 0.0]])
    logprobs = torch.zeros(2, 2, requires_grad=True)
    kl = torch.tensor([[2.0, 4.0], [3.0, 1e9]], requires_grad=True)  # what is masked is not read
    cfg = lib.DPOKConfig(kl_coef=0.5)
    loss, stats = lib.dpok_loss(
        logprobs, torch.zeros(2, 2), kl, mask.new_tensor([1, -1]), mask, cfg
    )
    assert loss.item() == pytest.approx(0.5 * 3.0) and stats["kl_ref"].item() == 3.0
    loss.backward()
    torch.testing.assert_close(logprobs.grad, torch.tensor([[-0.25, -0.25], [0.5, 0.0]]))
    torch.testing.assert_close(kl.grad, torch.tensor([[0.125, 0.125], [0.25, 0.0]]))


def test_dpok_measures_the_kl_to_the_reference(lib=LIB):
    """As torch.distributions has it, summed over latents or averaged, on masked steps only."""
    for index, (reduce, share) in product((0, 1), (("mean", 1 / 768), ("sum", 1.0))):
        policy, other, rollout = apart(index)
        mask = torch.tensor([[1.0, 0.0, 1.0, 1.0]]).expand(6, -1)
        rollout = replace(rollout, mask=mask)
        with torch.no_grad():
            exact = kl_exact(
                policy.evaluate_actions(rollout).dist, other.evaluate_actions(rollout).dist
            )
        expected = (exact * mask).sum() / mask.sum() * share
        grpo = GRPOConfig(kl_coef=0.0, minibatches=3)
        job = lib.DPOK(lib.DPOKConfig(reduce=reduce, grpo=grpo))
        batch = job.compare(policy, other, rollout, torch.randn(6, generator=seeded()))
        still = torch.optim.SGD(policy.parameters(), lr=1e-12)
        stats = job.improve(policy, still, batch, **STEP)
        assert stats["kl_ref"] == pytest.approx(expected.item(), rel=1e-4) and expected > 1e-6


def test_the_kl_pulls_towards_the_reference(lib=LIB):
    """Without an advantage, steps of DPOK only go back: the KL falls, and not to the side."""
    for index in (0, 1):
        policy, other, rollout = apart(index)
        job = lib.DPOK(lib.DPOKConfig(kl_coef=1.0))
        optimizer = torch.optim.AdamW(policy.parameters(), lr=3e-4, weight_decay=0.0)
        batch = job.compare(policy, other, rollout, torch.ones(6))
        kl = [job.improve(policy, optimizer, batch, **STEP)["kl_ref"] for _ in range(12)]
        assert kl[-1] < 0.7 * kl[0]
        assert batch.advantages.abs().max() == 0


def test_dpok_without_much_kl_is_grpo():
    """One step from one base: the same log-probs up to the size of the coefficient."""
    runs = []
    for job in (GRPO(GRPOConfig(kl_coef=0.0)), LIB.DPOK(LIB.DPOKConfig(kl_coef=1e-9))):
        trainer = trainer_of(denoisers()[1], job)
        stats = trainer.step()
        assert stats["ratio"] == pytest.approx(1, abs=1e-4)
        runs.append(torch.cat([p.flatten() for p in trainer.policy.parameters()]))
    torch.testing.assert_close(*runs, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    "wrong", [{"kl_coef": 0.0}, {"reduce": "max"}, {"grpo": GRPOConfig(kl_coef=0.1)}]
)
def test_dpok_config_out_of_range(wrong):
    with pytest.raises(UserError, match="DPOKConfig"):
        dpok.DPOKConfig(**wrong)


# The differentiable end of an episode.


def test_the_tail_ends_in_the_same_images(lib=LIB):
    for policy in denoisers():
        rollout = policy.rollout(captions(), 2, seeded())
        for last in range(1, 6):
            images = lib.differentiable_tail(policy, rollout, last)
            torch.testing.assert_close(
                images.detach(), torch.stack(rollout.outputs), atol=1e-5, rtol=0
            )
        for last in (0, 6):
            with pytest.raises(ValueError, match="last="):
                lib.differentiable_tail(policy, rollout, last)


def nudged(policy, direction, size, first):
    """A rollout whose weights are moved along a direction before the denoiser's call `first`."""
    calls, original = [], policy.denoise

    def move(by):
        with torch.no_grad():
            for weight, way in zip(policy.model.parameters(), direction, strict=True):
                weight.add_(by * way)

    def denoise(*args):
        calls.append(1)
        if len(calls) == first + 1:
            move(size)
        return original(*args)

    policy.denoise = denoise
    images = torch.stack(policy.rollout(captions(), 2, seeded()).outputs)
    del policy.denoise
    move(-size)
    return images.double()


def test_the_gradient_is_that_of_sampling_again(lib=LIB):
    """Finite differences over whole rollouts from one generator: the weights are moved just
    before the last k calls of the denoiser, and every pixel is allowed to follow."""
    for policy in denoisers():
        rollout = policy.rollout(captions(), 2, seeded())
        weigh = torch.randn(6, 3, 16, 16, generator=seeded(5))
        weights = list(policy.model.parameters())
        for last in (1, 2, 5):
            loss = (lib.differentiable_tail(policy, rollout, last) * weigh).sum()
            grads = torch.autograd.grad(loss, weights, allow_unused=True)
            grads = [
                torch.zeros_like(w) if g is None else g for g, w in zip(grads, weights, strict=True)
            ]
            norm = torch.cat([g.flatten() for g in grads]).norm()
            way, size = [g / norm for g in grads], 2e-3
            up, down = (nudged(policy, way, s, 5 - last) for s in (size, -size))
            slope = ((up - down) * weigh).sum() / (2 * size)
            assert slope.item() == pytest.approx(norm.item(), rel=0.05), (last, slope, norm)


def test_every_word_and_weight_gets_a_gradient(lib=LIB):
    for policy in denoisers():
        rollout = policy.rollout(captions(), 2, seeded())
        lib.differentiable_tail(policy, rollout, 2).square().sum().backward()
        grads = [w.grad for w in policy.text_encoder.parameters()]
        assert all(g is not None and g.abs().max() > 0 for g in grads)


# Following the gradient of a reward.


class Dial(Policy):
    """Outputs theta * x with one weight per caption: row i * G + j shows what prompt i says."""

    def __init__(self, names):
        super().__init__()
        self.names, self.model = names, torch.nn.Linear(1, len(names), bias=False)
        torch.nn.init.zeros_(self.model.weight)

    def rollout(self, prompts, group_size, generator):
        zeros = torch.zeros(len(prompts) * group_size, 1)
        return Rollout(prompts, {}, zeros, zeros + 1, group_size, [None] * len(zeros))

    def show(self, rollout):
        rows = [self.names.index(p) for p in rollout.prompts.repeat(rollout.group_size)["prompt"]]
        return self.model.weight[rows]  # (N, 1)


def test_a_dial_turns_to_what_its_own_prompt_wants(lib=LIB):
    """Rewards -(output - target)^2, another target for each caption: all three are found."""
    targets = dict(zip(CAPTIONS, (0.5, -0.25, 1.0), strict=True))

    def nearness(outputs, prompts):
        wanted = torch.tensor([targets[p] for p in prompts["prompt"]])
        return -(outputs[:, 0] - wanted).square()

    policy = Dial(CAPTIONS)
    cfg = OnlineConfig(batch_size=3, group_size=2, learning_rate=0.05, max_grad_norm=100.0)
    trainer = lib.RewardGradientTrainer(
        policy, captions(), nearness, lambda p, r: p.show(r), cfg, seeded()
    )
    stats = [trainer.step() for _ in range(150)]
    found = policy.model.weight[:, 0].detach()
    torch.testing.assert_close(found, torch.tensor([*targets.values()]), atol=0.02, rtol=0)
    first = sum(t**2 for t in targets.values()) / 3
    assert stats[0]["reward"] == pytest.approx(-first) and stats[-1]["reward"] > -1e-3


def smooth_redness(images, _):
    """(N,) The reward of `redness`, with a gradient."""
    return images[:, 0].mean(dim=(1, 2)) - images[:, 2].mean(dim=(1, 2))


def coin(images, _):
    """The control: every second sibling is told to be less red, so the gradient teaches nothing."""
    sign = 1 - 2 * (torch.arange(len(images)) % 2)  # (N,)
    return smooth_redness(images, _) * sign


def smooth_trainer(reward, seed=0, lib=LIB):
    policy = new_flow(width=32, layers=1)
    policy.sampler = replace(policy.sampler, steps=5, eval_steps=5, noise=0.7)
    cfg = OnlineConfig(batch_size=3, group_size=8, learning_rate=1e-3)
    replay = lambda p, r: lib.differentiable_tail(p, r, 2)  # noqa: E731
    return lib.RewardGradientTrainer(policy, captions(), reward, replay, cfg, seeded(seed))


def smooth_gain(reward, seed=0, lib=LIB, steps=8):
    """As `gain` of test_training, from the same weights, on a third of the samples."""
    trainer = smooth_trainer(reward, seed, lib)
    before = sum(redness(trainer.policy.predict(captions()))) / 3
    for _ in range(steps):
        trainer.step()
    return sum(redness(trainer.policy.predict(captions()))) / 3 - before


def test_the_reward_gradient_learns_and_a_coin_does_not(lib=LIB):
    """8 steps, 192 pictures.  Seeds 0-7: .189 +- .001; the control -.004 +- .010.

    GRPO needs 25 steps and 600 pictures for .170 +- .028 (test_training).
    """
    assert smooth_gain(smooth_redness, lib=lib) > 0.18
    assert abs(smooth_gain(coin, lib=lib)) < 0.045


def test_the_reward_gradient_goes_on_from_its_state():
    whole, first, second = (smooth_trainer(smooth_redness) for _ in range(3))
    whole.step(), first.step()
    second.load_state_dict(first.state_dict())
    assert whole.step() == second.step()


# Several rewards.


def test_the_front_by_hand(lib=LIB):
    """Of (1, 0), (0, 1), (1, 1), (0, 0) only (1, 1); equal points are all kept."""
    points = torch.tensor([[[1.0, 0], [0, 1], [1, 1], [0, 0]], [[2, 0], [0, 2], [1, 1], [1, 1]]])
    assert lib.non_dominated(points).tolist() == [[False, False, True, False], [True] * 4]


def test_the_front_by_brute_force(lib=LIB):
    """Loops over all pairs, on small integers, so that ties are many."""
    for objectives in (1, 2, 3):
        points = torch.randint(0, 4, (40, 6, objectives), generator=seeded(objectives)).float()
        front = lib.non_dominated(points)
        assert front.any(dim=1).all()
        for group, kept in zip(points.tolist(), front.tolist(), strict=True):
            for a, keep in zip(group, kept, strict=True):
                beaten = any(
                    sum(y < x for x, y in zip(a, b, strict=True)) == 0 and b != a for b in group
                )
                assert keep is not beaten


def greenness(completions, **_):
    """Mean of the green channel minus that of the blue one."""
    return [(image[1].mean() - image[2].mean()).item() for image in completions]


BOTH = weighted({redness: 1.0, greenness: 1.0})


def test_dominated_siblings_are_not_learned_from(lib=LIB):
    """Their mask is empty, so log-probs, gradients and cost are those of the front alone; the
    advantages are those of all siblings."""
    policy = denoisers()[1]
    cfg = OnlineConfig(batch_size=3, group_size=8)
    whole, rewards, _ = act_and_judge(policy, captions(), BOTH, cfg, seeded())
    collect = lib.pareto_selection(["redness", "greenness"])
    rollout, same, terms = collect(policy, captions(), BOTH, cfg, seeded())
    assert torch.equal(rewards, same) and torch.equal(whole.logprobs, rollout.logprobs)
    red, green = (torch.tensor(f(whole.outputs)).view(3, 8) for f in (redness, greenness))
    best = torch.zeros(3, 8, dtype=torch.bool)  # the extremes are always on the front
    best[torch.arange(3), red.argmax(1)] = best[torch.arange(3), green.argmax(1)] = True
    kept = rollout.mask.view(3, 8, -1)
    assert kept[best].all() and not kept[torch.arange(3), (red + green).argmin(1)].any()
    assert torch.equal(kept.amax(2), kept.amin(2)) and torch.equal(
        terms["kept"], kept.amax(2).flatten()
    )
    job = GRPO(GRPOConfig(kl_coef=0.0))
    advantages = [job.compare(policy, None, r, rewards).advantages for r in (whole, rollout)]
    assert torch.equal(*advantages)


def test_rewards_per_column_are_summed_before_the_selection(lib=LIB):
    def per_step(name, scale):
        def reward(completions, **_):
            return torch.arange(1.0, 5).expand(len(completions), 4) * scale

        reward.__name__ = name
        return reward

    both = weighted({per_step("one", 1.0): 1.0, per_step("two", -1.0): 2.0})
    cfg = OnlineConfig(batch_size=3, group_size=2)
    collect = lib.pareto_selection(["one", "two"])
    rollout, rewards, terms = collect(denoisers()[1], captions(), both, cfg, seeded())
    assert rewards.tolist() == [-10.0] * 6 and terms["one"].tolist() == [10.0] * 6
    assert rollout.mask.all()
    with pytest.raises(UserError, match="no reward named"):
        lib.pareto_selection(["three"])(denoisers()[1], captions(), both, cfg, seeded())


# Thumbs on a flow, and the policy gradient on a diffusion.


def kto_gain(seed, control=False, steps=20):
    """How much redder a flow paints after KTO on red pictures (up) and blue ones (down)."""
    policy, g = new_flow(width=32, layers=1), seeded(seed)
    policy.sampler = replace(policy.sampler, steps=5, eval_steps=5)
    base = torch.rand(64, 3, 16, 16, generator=g)
    red, blue = base.clone(), base.clone()
    red[:, 2] *= 0.3
    blue[:, 0] *= 0.3
    turn = torch.arange(64)[:, None, None, None] % 2 * control  # the control: half the labels wrong
    chosen, rejected = torch.where(turn == 1, blue, red), torch.where(turn == 1, red, blue)
    pairs = PreferencePairs(captions((CAPTIONS * 22)[:64]), list(chosen), list(rejected))
    job = KTO(KTOConfig(score=DPOConfig(dpo_beta=20.0)))
    cfg = OfflineConfig(batch_size=32, learning_rate=1e-3)
    trainer = OfflineTrainer(policy, unpaired(pairs), job, cfg, g)
    before = sum(redness(policy.predict(captions()))) / 3
    rows = [trainer.step() for _ in range(steps)]
    return sum(redness(policy.predict(captions()))) / 3 - before, rows


def test_kto_on_a_flow_and_its_control():
    """Seeds 0-7: .283 +- .008; half the labels wrong, seeds 0-5: -.014 +- .024."""
    moved, rows = kto_gain(0)
    assert rows[0]["loss"] == pytest.approx(0.5, abs=1e-4)  # policy = reference
    assert moved > 0.25 and rows[-1]["reward_margin"] > 0
    assert abs(kto_gain(0, control=True)[0]) < 0.11


def diffusion_gain(seed, steps=8):
    """As `gain` of test_training, on a diffusion, in fewer steps."""
    policy = new_diffusion(width=32, layers=1)
    policy.sampler = replace(policy.sampler, steps=5, eval_steps=5, noise=1.0)
    before = sum(redness(policy.predict(captions()))) / 3
    job = GRPO(GRPOConfig(kl_coef=0.0))
    trainer = trainer_of(policy, job, batch_size=3, group_size=8, seed=seed)
    for _ in range(steps):
        trainer.step()
    return sum(redness(policy.predict(captions()))) / 3 - before


def test_ddpo_learns_on_a_diffusion():
    """Seeds 0-7: .200 +- .029 (least .162)."""
    assert diffusion_gain(0) > 0.083


# The runnable methods.


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    """Folders of tiny bases, by kind."""
    made = {"flow": new_flow(width=32, layers=1), "diffusion": new_diffusion(width=32, layers=1)}
    folders = {kind: str(tmp_path_factory.mktemp(kind)) for kind in made}
    for kind, policy in made.items():
        sharp(policy).save(folders[kind])
    made["flow"].add_value_head(seeded())
    made["flow"].save(f"{folders['flow']}/checkpoints/picture_reward")
    return folders


@pytest.mark.parametrize("name", METHODS)
def test_every_method_runs(name, bases, tmp_path, monkeypatch):
    """One step; the numbers are told, and nothing is written unless a file is named."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(denoising_methods, "DATA", Path(bases["flow"]))
    task = DrawConfig(train_prompts=16, eval_prompts=8, denoising_steps=4, eval_steps=2, pairs=32)
    base = bases["diffusion" if name == "ddpo" else "flow"]
    options = MethodOptions(name=name, steps=1, checkpoint=base, task=task)
    told = measure(options)
    assert not list(tmp_path.iterdir())
    assert all(0 <= told[when] <= 1 for when in ("before", "after")) and len(told["rows"]) == 1
    out = tmp_path / "told.json"
    again = measure(replace(options, out=str(out)))
    assert json.loads(out.read_text())["rows"] == again["rows"] == told["rows"]


def test_methods_are_in_the_catalogue():
    with open(DATA / "papers.csv", newline="") as file:
        known = {row["id"] for row in csv.DictReader(file)}
    assert {method.paper for method in METHODS.values()} - {None} <= known


@pytest.mark.parametrize("wrong", [{"name": "ppo"}, {"name": "dpok", "steps": 0}])
def test_method_options_out_of_range(wrong):
    with pytest.raises(UserError, match="unknown method|steps=0"):
        MethodOptions(**wrong)


def test_cell_colors_know_place_and_color_and_not_shape():
    """The scene's own picture earns 0; the red and blue channels swapped earn less."""
    prompts = drawing_prompts(16, "train", seeded())
    truth = render(list(prompts["scene"]), 16) / 255
    assert cell_colors(truth, prompts).abs().max() < 1e-10
    assert cell_colors(truth.roll(1, 0), prompts).max() < -0.01
    gradient = torch.zeros_like(truth).requires_grad_()
    cell_colors(gradient, prompts).sum().backward()
    assert (gradient.grad.flatten(1).norm(dim=1) > 0).all()


# Would a machine notice?

D, B, R, P = MODULES
MUTANTS = [
    (D, "the log-ratio reversed", "- ratio.log()", "+ ratio.log()"),
    (D, "half is missing", "distance.square() - 1) / 2", "distance.square() - 1)"),
    (D, "the distance is not squared", "distance.square()", "distance.abs()"),
    (D, "measured in the wrong std", "(mean - ref_mean) / ref_std", "(mean - ref_mean) / std"),
    (D, "stds swapped", "ratio = std / ref_std", "ratio = ref_std / std"),
    (D, "a penalty that attracts", "loss + cfg.kl_coef", "loss - cfg.kl_coef"),
    (D, "no gradient through the KL", "cfg.kl_coef * penalty,", "cfg.kl_coef * penalty.detach(),"),
    (D, "masked steps count", "aggregate(kl, mask,", "aggregate(kl, mask + 1,"),
    (D, "the policy is its own reference", "near = ref_policy.", "near = policy."),
    (D, "always averaged", 'if self.cfg.reduce == "mean" else', "if True else"),
    (D, "no gradient through the means", "gaussian_kl(now.loc, ", "gaussian_kl(now.loc.detach(), "),
    (B, "the noise is lost", "x = mean + drawn", "x = mean + 0 * drawn"),
    (B, "the noise moves with the weights", "- mean.detach()", "- mean"),
    (B, "steps are cut from one another", "x = mean + drawn", "x = (mean + drawn).detach()"),
    (B, "one step too few", "count + 1 - last", "min(count, count + 2 - last)"),
    (B, "one step too many", "count + 1 - last", "max(0, count - last)"),
    (B, "the last step goes nowhere", "policy.levels(count + 1)[-1]", "policy.levels(count + 1)[-2]"),
    (B, "captions by turns", "// rollout.group_size", "% len(rollout.prompts)"),
    (B, "the caption gets no gradient", "text, first = policy.read(rollout.prompts),", "text, first = tuple(t.detach() for t in policy.read(rollout.prompts)),"),
    (R, "down the gradient", "loss = -rewards.mean()", "loss = rewards.mean()"),
    (R, "captions of other rows", "batch.repeat(self.cfg.group_size)", "type(batch).cat([batch] * self.cfg.group_size)"),
    (R, "the best sample only", "loss = -rewards.mean()", "loss = -rewards.max()"),
    (P, "ties beat one another", "(other > one).any(dim=-1)", "(other >= one).any(dim=-1)"),
    (P, "better in one is enough", "(other >= one).all(dim=-1)", "(other >= one).any(dim=-1)"),
    (P, "better in all or nothing", "(other > one).any(dim=-1)", "(other > one).all(dim=-1)"),
    (P, "the wrong axis", "beaten.any(dim=2)", "beaten.any(dim=1)"),
    (P, "the front is left out", "return ~beaten", "return beaten"),
    (P, "smaller is better", "points[:, :, None], points[:, None]", "points[:, None], points[:, :, None]"),
    (P, "nothing is left out", "rollout.mask * kept[:, None]", "rollout.mask"),
    (P, "columns are not summed", "(row_totals(x, rollout.mask) for", "(x if x.ndim == 1 else x[:, -1] for"),
    (P, "siblings of other groups", "points.view(-1, rollout.group_size, len(objectives))", "points.view(rollout.group_size, -1, len(objectives)).transpose(0, 1).contiguous()"),
]  # fmt: skip
# ruff: noqa: E501


@pytest.mark.filterwarnings("ignore")  # wrong versions may warn
@pytest.mark.parametrize(("module", "wrong", "old", "new"), MUTANTS)
def test_every_wrong_variant_is_rejected(module, wrong, old, new):
    """By a check that concerns its module; a crash does not count."""
    must_be_noticed(changed(MODULES, module, old, new), globals(), PUBLIC[module], wrong)


PUBLIC = {
    D: ("gaussian_kl", "dpok_loss", "DPOK"),
    B: ("differentiable_tail", "smooth_gain"),
    R: ("RewardGradientTrainer", "smooth_gain"),
    P: ("non_dominated", "pareto_selection"),
}
