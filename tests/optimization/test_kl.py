"""kl.py: values by hand, gradients by enumeration, and what masks and reductions must do."""

import pytest
import torch
from mutants.library import REAL
from torch.distributions import Categorical, Normal

LOG2 = 0.693147


def softmax_pair():
    """Logits of pi (with gradient) and the log-probs of a reference, over five actions."""
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)
    ref = torch.randn(5, generator=generator, dtype=torch.float64).log_softmax(0)
    return logits, ref


def path_gradient(estimator, logits, ref):
    """Gradient of E_pi[estimator], the sampling distribution held fixed: what a loss follows."""
    logprobs = logits.log_softmax(0)
    expected = (logprobs.exp().detach() * estimator(logprobs, ref)).sum()
    return torch.autograd.grad(expected, logits)[0]


def test_values_and_slopes_by_hand(lib=REAL):
    """pi = 1/2, ref = 1/4: k1 log 2, k2 log(2)^2 / 2, k3 log 2 - 1/2; slopes 1, log 2, 1/2."""
    new, ref = torch.tensor(0.5).log().requires_grad_(), torch.tensor(0.25).log()
    by_hand = {"k1": (LOG2, 1.0), "k2": (LOG2**2 / 2, LOG2), "k3": (LOG2 - 0.5, 0.5)}
    for name, (value, slope) in by_hand.items():
        kl = lib.KL_ESTIMATORS[name](new, ref)
        assert kl.item() == pytest.approx(value, abs=1e-6)
        assert torch.autograd.grad(kl, new)[0].item() == pytest.approx(slope, abs=1e-6)


def test_expectations(lib=REAL):
    """Under pi, k1 and k3 average to KL(pi || ref) exactly; k2 does not."""
    logits, ref = softmax_pair()
    logprobs = logits.detach().log_softmax(0)
    mean = {
        name: (logprobs.exp() * k(logprobs, ref)).sum() for name, k in lib.KL_ESTIMATORS.items()
    }
    exact = lib.kl_exact(Categorical(logits=logprobs), Categorical(logits=ref))
    assert mean["k1"].item() == pytest.approx(exact.item(), abs=1e-12)
    assert mean["k3"].item() == pytest.approx(exact.item(), abs=1e-12)
    assert abs(mean["k2"].item() - exact.item()) > 0.05


def test_path_gradients(lib=REAL):
    """As a loss, k1 does nothing, k2 follows KL(pi || ref), k3 follows KL(ref || pi)."""
    logits, ref = softmax_pair()
    logprobs = logits.log_softmax(0)
    reverse = torch.autograd.grad((logprobs.exp() * (logprobs - ref)).sum(), logits)[0]
    forward = torch.autograd.grad(-(ref.exp() * logits.log_softmax(0)).sum(), logits)[0]
    torch.testing.assert_close(path_gradient(lib.kl_k1, logits, ref), torch.zeros_like(logits))
    torch.testing.assert_close(path_gradient(lib.kl_k2, logits, ref), reverse)
    torch.testing.assert_close(path_gradient(lib.kl_k3, logits, ref), forward)


def test_k3_turned_around_is_another_divergence(lib=REAL):
    """exp(new - ref) - (new - ref) - 1 has half the gradient of chi-squared (numerics.md, 2)."""
    logits, ref = softmax_pair()
    turned = path_gradient(lambda new, old: lib.kl_k3(old, new), logits, ref)
    probs = logits.softmax(0)
    chi_squared = torch.autograd.grad((probs.square() / ref.exp()).sum() - 1, logits)[0]
    torch.testing.assert_close(turned, chi_squared / 2)
    assert (turned - path_gradient(lib.kl_k3, logits, ref)).abs().max() > 0.01


def test_k3_survives_rounding(lib=REAL):
    """Near zero k3 = d^2 / 2.  With exp(d) - 1 all digits of a float32 are lost at d = 1e-4."""
    for d in (1e-2, 1e-3, 1e-4, -1e-4):
        value = lib.kl_k3(torch.tensor(0.0), torch.tensor(d)).item()
        assert value == pytest.approx(d * d / 2, rel=0.02)


def test_k3_is_never_negative(lib=REAL):
    new, ref = torch.randn(2, 1000, generator=torch.Generator().manual_seed(0)) * 5
    assert lib.kl_k3(new, ref).min() >= 0
    assert lib.kl_k1(new, ref).min() < 0


def test_exact_of_normals_by_quadrature(lib=REAL):
    """KL(N(1, .5) || N(0, 2)) summed on a fine grid."""
    p, q = Normal(1.0, 0.5), Normal(0.0, 2.0)
    x = torch.linspace(-6, 8, 200_001, dtype=torch.float64)
    grid = (p.log_prob(x).exp() * (p.log_prob(x) - q.log_prob(x))).sum() * (x[1] - x[0])
    assert lib.kl_exact(p, q).item() == pytest.approx(grid.item(), abs=1e-6)


def test_masked_mean(lib=REAL):
    """Rows (1, 3, junk) and (junk, junk, junk): means 2 and 0; over everything 2."""
    x = torch.tensor([[1.0, 3.0, 1e30], [1e30, -1e30, 1e30]])
    mask = torch.tensor([[1, 1, 0], [0, 0, 0]])
    assert lib.masked_mean(x, mask, dim=1).tolist() == [2.0, 0.0]
    assert lib.masked_mean(x, mask).item() == 2.0
    assert lib.masked_mean(x, mask.bool()).item() == 2.0


def test_aggregates_by_hand(lib=REAL):
    """Losses (1, 2, 3) and (4): row means 2 and 4; 10 in all, over 4 columns, or 2 rows of 5."""
    losses = torch.tensor([[1.0, 2.0, 3.0], [4.0, 1e30, -1e30]])
    mask = torch.tensor([[1, 1, 1], [1, 0, 0]])
    assert lib.aggregate(losses, mask, "sequence").item() == pytest.approx(3.0)
    assert lib.aggregate(losses, mask, "token").item() == pytest.approx(2.5)
    assert lib.aggregate(losses, mask, "constant", 5).item() == pytest.approx(1.0)


def test_an_empty_row_contributes_zero(lib=REAL):
    losses, mask = torch.tensor([[2.0], [7.0]]), torch.tensor([[1], [0]])
    for how, expected in (("sequence", 1.0), ("token", 2.0), ("constant", 1.0)):
        assert lib.aggregate(losses, mask, how, 1).item() == expected
