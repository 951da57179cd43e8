"""Would a machine notice?  Every wrong version below is rejected by an ordinary test.

The checks are the tests of the files below that take nothing but `lib`.
"""

from __future__ import annotations

import importlib
import inspect

import pytest
from generation.tiny import REAL, load

DRAWINGS = "worlds/drawings"
PICTURES, STEPS, DENOISING = "rewards/pictures", "generation/steps", "generation/denoising"
DIFFUSION, FLOW, TOKENS = "generation/diffusion", "generation/flow", "generation/autoregressive"
FILES = {
    DRAWINGS: "rewards.test_pictures",
    PICTURES: "rewards.test_pictures",
    STEPS: "generation.test_steps",
    DENOISING: "generation.test_denoising",
    DIFFUSION: "generation.test_denoising",
    FLOW: "generation.test_denoising",
    TOKENS: "generation.test_tokens",
}
MUTANTS = [
    (PICTURES, "every pixel has a color", "TOLERANCE = 0.4", "TOLERANCE = 9.0"),
    (PICTURES, "anything is a shape", "LEAST_OVERLAP = 0.7", "LEAST_OVERLAP = 0.0"),
    (PICTURES, "clutter is ignored", "MOST_CLUTTER = 0.1", "MOST_CLUTTER = 1.0"),
    (PICTURES, "no clutter at all", "MOST_CLUTTER = 0.1", "MOST_CLUTTER = 0.0"),
    (DRAWINGS, "rows and columns swapped", "3 * min(int(3 * y), 2) + min(int(3 * x), 2)", "3 * min(int(3 * x), 2) + min(int(3 * y), 2)"),
    (PICTURES, "templates do not move", "for down in (-1, 0, 1)", "for down in (0,)"),
    (PICTURES, "overlap without union", "(templates.sum(axis=1) + crop.sum() - shared)", "crop.sum()"),
    (PICTURES, "bytes are not scaled", "255.0 if images.dtype == torch.uint8 else 1.0", "1.0"),
    (PICTURES, "NaN passes", ".nan_to_num(9.0, 9.0, -9.0)", ".nan_to_num(0.06, 0.06, 0.06)"),
    (PICTURES, "only objects wanted are counted", "len(truth), len(reading.things), 1", "len(truth), 1"),
    (PICTURES, "only objects seen are counted", "len(truth), len(reading.things), 1", "1, len(reading.things)"),
    (PICTURES, "no points for the color", "1 + (a.color == b.color)", "2 + 0 * (a.color == b.color)"),
    (PICTURES, "no points for the shape", "+ (a.shape == b.shape)", "+ 1"),
    (DRAWINGS, "not snapped", "(int(place * SNAP) + 0.5) / SNAP", "place"),
    (DRAWINGS, "snapped between pixels", "(int(place * SNAP) + 0.5) / SNAP", "int(place * SNAP) / SNAP"),
    (PICTURES, "almost right is exact", "float(score == 1.0)", "float(score > 0.8)"),
    (STEPS, "logprob: no constants", "logprob = Normal(mean, std, validate_args=False).log_prob(given)", "logprob = -((given - mean) / std).square() / 2"),
    (STEPS, "logprob: detached mean", "Normal(mean, std,", "Normal(mean.detach() + 0 * mean, std,"),
    (STEPS, "reduce ignored", 'if reduce == "mean" else x.flatten(1).sum(dim=1)', "if True else x"),
    (STEPS, "zero std passes", "if not bool((std > 0).all()):", "if False:"),
    (STEPS, "noise is not scaled", "mean + std * noise.to(mean)", "mean + noise.to(mean)"),
    (STEPS, "ddim: variance swapped", "(1 - prev) / (1 - now)", "(1 - now) / (1 - prev)"),
    (STEPS, "ddim: eta not squared", "variance = eta**2 *", "variance = eta *"),
    (STEPS, "ddim: direction keeps the variance", "(1 - prev - variance)", "(1 - prev)"),
    (STEPS, "ddim: clean not rescaled", "noise_pred) / now.sqrt()", "noise_pred)"),
    (STEPS, "sde: sign of the correction", "(x + (1 - now) * velocity)", "(x - (1 - now) * velocity)"),
    (STEPS, "sde: correction without half", "variance / (2 * now)", "variance / now"),
    (STEPS, "sde: no correction", "drift = velocity + variance", "drift = velocity + 0 * variance"),
    (STEPS, "sde: std without sqrt(-dt)", "(variance * -dt).sqrt()", "variance.sqrt()"),
    (STEPS, "sde: g inverted", "inner / (1 - inner)", "(1 - inner) / inner"),
    (STEPS, "sde: noise level not squared", "noise_level**2", "noise_level"),
    (STEPS, "sde: infinite at sigma 1", "torch.where(now < 1, now, after)", "now"),
    (STEPS, "sde: backwards passes", "if not bool((dt < 0).all()):", "if False:"),
    (DENOISING, "siblings share all noise", "x = self._randn(count if cfg.shared_noise else len(row), generator)", "x = self._randn(1, generator).expand(len(row), -1, -1, -1)"),
    (DENOISING, "siblings always share the start", "x = x[row] if cfg.shared_noise else x", "x = x[row]"),
    (DENOISING, "shared noise by turns", "x = x[row] if cfg.shared_noise else x", "x = x[torch.arange(len(row)) % count] if cfg.shared_noise else x"),
    (DENOISING, "captions by turns", "row = torch.arange(count, device=self.device).repeat_interleave(group_size)", "row = torch.arange(count).repeat(group_size)"),
    (DENOISING, "captions padded to the longest", '{"padding": "max_length", "padding_side"', '{"padding": True, "padding_side"'),
    (DENOISING, "features without gradient", "seen[0].float().mean(dim=1)", "seen[0].float().mean(dim=1).detach()"),
    (DENOISING, "the last step is noisy", "grid[-1], 0.0)[0])", "grid[-1], 0.0)[0] + 0.3 * torch.randn_like(x))"),
    (DENOISING, "mask drawn per row", "mask.to(row.device)[row]", "mask[torch.randint(count, (len(row),))]"),
    (DENOISING, "always the first columns", "order.argsort(dim=1) <", "torch.arange(order.shape[1]).expand_as(order) <"),
    (DENOISING, "masked steps are scored too", "(rollout.mask != 0).nonzero", "(rollout.mask == rollout.mask).nonzero"),
    (DENOISING, "caption of another group", "prompt = row // rollout.group_size", "prompt = row % len(rollout.prompts)"),
    (DENOISING, "the error is not negative", "logprob = -reduced(", "logprob = reduced("),
    (DENOISING, "one level for all rows", "u = torch.rand(len(clean), generator=generator, device=generator.device)", "u = torch.rand(1, generator=generator).expand(len(clean))"),
    (DENOISING, "noise from elsewhere", "noise = self._randn(len(clean), generator)", "noise = torch.randn_like(clean)"),
    (DENOISING, "prediction depends on the batch", "for seed in seeds])", "for seed in range(len(seeds))])"),
    (DENOISING, "prediction ignores its seed", '{self.sampler.seed} {caption}', '{caption}'),
    (DENOISING, "prediction with the steps of training", "self.levels(self.sampler.eval_steps)", "self.levels(self.sampler.steps)"),
    (DENOISING, "entropy is always a sum", 'dist.event_shape.numel() if reduce == "mean" else 1', "1"),
    (DENOISING, "values are not spread", "spread(self.state_values(features))", "torch.zeros_like(rollout.mask)"),
    (DIFFUSION, "the last level is not clean", "torch.tensor([-1])]", "torch.tensor([0])]"),
    (DIFFUSION, "timesteps of the wrong row", "bar = self.alpha_bars[level]", "bar = self.alpha_bars[level.flip(0)]"),
    (DIFFUSION, "velocity taken for noise", "if not self.says_noise:", "if False:"),
    (DIFFUSION, "captions not masked", '"encoder_attention_mask": text[1]}', '"encoder_attention_mask": None}'),
    (DIFFUSION, "only early timesteps", "(u * (len(self.alpha_bars) - 1)).long()", "(u * 0.5 * (len(self.alpha_bars) - 1)).long()"),
    (FLOW, "velocity reversed", "noise - clean", "clean - noise"),
    (FLOW, "the path reversed", "(1 - sigma) * clean + sigma * noise", "sigma * clean + (1 - sigma) * noise"),
    (FLOW, "the model hears no level", "timestep=1000 * level", "timestep=0 * level"),
    (FLOW, "sampling the wrong way", "torch.linspace(1, 0, steps + 1", "torch.linspace(1, 0.5, steps + 1"),
    (TOKENS, "codes start elsewhere", "codes = tokens - self.first_code", "codes = tokens"),
    (TOKENS, "no mark before the picture", 'f"{caption} <boi>"', 'caption'),
    (TOKENS, "scored at temperature 1", "rollout.group_size, temperature=self.temperature", "rollout.group_size, temperature=1.0"),
    (TOKENS, "prediction is sampled", "self._decode(prompts, 1, None)", "self._decode(prompts, 1, Generator().manual_seed(torch.seed() % 999))"),
    (TOKENS, "pictures are trained", "pictures.requires_grad_(False)", "pictures.requires_grad_(True)"),
]  # fmt: skip
# ruff: noqa: E501


def checks(module):
    """The tests of a module that need nothing but the library."""
    tests = vars(importlib.import_module(FILES[module])).values()
    named = [t for t in tests if inspect.isfunction(t) and t.__name__.startswith("test_")]
    return [test for test in named if list(inspect.signature(test).parameters) == ["lib"]]


def rejected(lib, module):
    """The first check of `module` whose assertion fails; a crash does not count."""
    for check in checks(module):
        try:
            check(lib)
        except (AssertionError, pytest.fail.Exception):
            return check.__name__
        except Exception:  # the mutant broke the check before it could judge
            continue
    return None


@pytest.mark.parametrize("module", FILES)
def test_the_real_library_passes(module):
    assert len(checks(module)) >= 3
    for check in checks(module):
        check(load())


@pytest.mark.filterwarnings("ignore")  # wrong versions may warn
@pytest.mark.parametrize(("module", "wrong", "old", "new"), MUTANTS)
def test_every_mutant_is_rejected(module, wrong, old, new):
    assert rejected(load(module, old, new), module), f"{module}: nothing noticed '{wrong}'"


def test_the_library_under_test_is_left_alone():
    before = REAL.ddim_step
    load(STEPS, "eta**2", "eta")
    from minivisrl.generation.steps import ddim_step

    assert ddim_step is before
