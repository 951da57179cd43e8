"""The slider of chapter 15, its judges and its laboratory: by hand, by counting, by brute force."""

import importlib
import math

import matplotlib.pyplot as plt
import pytest
import torch
from scipy.optimize import curve_fit

from minivisrl.lab.build import NOTEBOOKS
from minivisrl.rewards.pictures import exact_composition
from minivisrl.worlds.drawings import drawing_prompts, snapped
from minivisrl.worlds.scenes import Scene, Thing


@pytest.fixture
def ch15(monkeypatch):
    monkeypatch.syspath_prepend(NOTEBOOKS)
    yield importlib.import_module("checks.ch15")
    plt.close("all")


def scores(seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(3, 20, generator=generator) for _ in range(2))


@pytest.mark.parametrize("kl_coef", [4.0, 0.5, 0.06])
def test_soft_by_a_plain_sum(ch15, kl_coef):
    """The tilted distribution over the N samples, with ordinary arithmetic."""
    proxy, gold = scores()
    means = [0.0, 0.0, 0.0]
    for told, true in zip(proxy.tolist(), gold.tolist(), strict=True):
        odds = [math.exp(r / kl_coef) for r in told]
        share = [x / sum(odds) for x in odds]
        means[0] += sum(p * r for p, r in zip(share, told, strict=True)) / 3
        means[1] += sum(p * g for p, g in zip(share, true, strict=True)) / 3
        means[2] += sum(p * math.log(20 * p) for p in share if p > 0) / 3
    assert ch15.soft(proxy, gold, kl_coef) == pytest.approx(tuple(means), abs=1e-5)


def test_soft_at_both_ends(ch15):
    proxy, gold = scores()
    loose = ch15.soft(proxy, gold, 1e-4)
    assert loose[0] == pytest.approx(proxy.amax(dim=1).mean().item(), abs=1e-5)
    assert loose[2] == pytest.approx(math.log(20), abs=1e-5)
    tight = ch15.soft(proxy, gold, 1e4)
    assert tight == pytest.approx((proxy.mean().item(), gold.mean().item(), 0), abs=1e-3)


@pytest.mark.parametrize("kl_coef", [2.0, 0.12])
def test_figure_shows_the_chosen_penalty(ch15, kl_coef):
    proxy, gold = scores()
    distance, curve = [0.0, 0.5, 1.0], ([0.0, 0.4, 0.7], [0.1, 0.2, 0.1])
    figure = ch15.soft_figure(distance, curve, proxy, gold, kl_coef)
    told = ch15.soft(proxy, gold, kl_coef)
    for which, axis in enumerate(figure.axes):
        best, path, here = axis.lines
        assert list(best.get_xdata()) == distance
        assert list(best.get_ydata()) == curve[which]
        assert here.get_xydata()[0].tolist() == pytest.approx([told[2] ** 0.5, told[which]])
        row = list(path.get_xydata()[ch15.BETAS.index(kl_coef)])
        assert row == pytest.approx([told[2] ** 0.5, told[which]])
    assert f"beta {kl_coef:g}" in figure.get_suptitle()
    assert figure.get_suptitle().endswith(f"gold {told[1]:.3f}")


def test_panels_show_what_they_are_given(ch15):
    curves = {"a": ([1.0, 2.0, 5.0], [0.5, 0.6, 0.4]), "b": ([0.0, 1.0, 2.0], [0.5, 0.5, 0.7])}
    figure = ch15.pushing_figure([0.0, 0.4, 0.8], curves)
    assert [axis.get_title() for axis in figure.axes] == ["a", "b"]
    proxy, gold, base = figure.axes[0].lines
    assert list(proxy.get_ydata()) == [0.0, 0.25, 1.0]
    assert list(gold.get_ydata()) == [0.5, 0.6, 0.4]
    assert set(base.get_ydata()) == {0.5}


def test_law_is_fitted_as_scipy_does(ch15):
    distance, gold = [0.0, 0.4, 0.8, 1.1, 1.4], [0.5, 0.61, 0.66, 0.7, 0.69]

    def law(d, alpha, beta):
        return 0.5 + d * (alpha - beta * d)

    (alpha, beta), _ = curve_fit(law, torch.tensor(distance).numpy(), gold)
    assert ch15.gao(distance, gold) == pytest.approx((alpha, beta), abs=1e-5)


def test_questions_are_true_of_the_scene(ch15):
    scenes = drawing_prompts(40, "heldout", torch.Generator().manual_seed(0))["scene"]
    for scene in scenes:
        *asked, (count, number) = ch15.questions(scene)
        assert (count, number) == ("how many things are there ?", str(len(scene.things)))
        for question, answer in asked:
            color, shape = question.split()[3:5]
            assert answer == ("yes" if scene.count(color, shape) else "no")
        assert [answer for _, answer in asked].count("no") == 1


def test_traps_are_wrong_and_the_right_picture_is_right(ch15):
    prompts = drawing_prompts(12, "heldout", torch.Generator().manual_seed(0))
    for name, pictures in ch15.hostile_pictures(prompts).items():
        exact = exact_composition(list(pictures), prompts["scene"])
        assert set(exact) == {1.0 if name == "right" else 0.0}


def test_answers_average_over_the_questions_of_each_picture(ch15, monkeypatch):
    one = snapped(Scene((Thing("circle", "red", "large", 0.2, 0.2, 0),)))
    two = snapped(Scene((*one.things, Thing("cross", "blue", "large", 0.8, 0.8, 1))))
    judge = ch15.Answers(vlm=None)

    def told(asked, images):
        assert images.shape == (len(asked), 3, 32, 32)
        return torch.tensor([{"yes": 0.9, "no": 0.6}.get(answer, 0.3) for _, answer in asked])

    monkeypatch.setattr(judge, "probabilities", told)
    found = judge([torch.zeros(3, 16, 16)] * 2, [one, two])
    assert found == pytest.approx([(0.9 + 0.6 + 0.3) / 3, (2 * 0.9 + 0.6 + 0.3) / 4])


def test_a_head_finds_what_the_annotator_likes(ch15):
    """Utility is one of 6 features: the head must lean on it, and not if labels are coin tosses."""
    seen = torch.randn(10, 8, 6, generator=torch.Generator().manual_seed(0))
    for noise, sure in ((0.05, True), (1e6, False)):
        dice = torch.Generator().manual_seed(1)
        weights = ch15.fit_head(seen, seen[..., 2], 200, dice, noise, ridge=0.1)
        cosine = (weights[2] / weights.norm()).item()
        assert (cosine > 0.9) is sure
