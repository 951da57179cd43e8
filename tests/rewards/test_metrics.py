"""Metrics as rewards: the Frechet distance against closed forms, IoU by counting pixels."""

from types import ModuleType

import numpy as np
import pytest
import scipy.linalg
import torch
from torch import Generator

from minivisrl import DATA
from minivisrl.rewards import metrics
from minivisrl.worlds.drawings import drawing_scenes
from minivisrl.worlds.scenes import BACKGROUND, COLOURS, Scene, Thing, render

SOURCE = DATA.parent / "minivisrl" / "rewards" / "metrics.py"


def gaussian(seed, size=5):
    """Moments (mean, covariance) of some Gaussian, float64."""
    g = Generator().manual_seed(seed)
    root = torch.randn(size, size, generator=g).double()
    return torch.randn(size, generator=g).double(), root @ root.T


def test_moments_are_those_of_numpy(lib=metrics):
    x = torch.randn(7, 3, generator=Generator().manual_seed(0))
    mean, cov = lib.moments(x)
    np.testing.assert_allclose(mean, x.double().numpy().mean(0))
    np.testing.assert_allclose(cov, np.cov(x.double().numpy(), rowvar=False))
    assert lib.moments(x[:, :1])[1].shape == (1, 1)


def test_frechet_worked_number(lib=metrics):
    """In one dimension (mu_1 - mu_2)^2 + (s_1 - s_2)^2: here 3^2 + (2 - 5)^2 = 18."""
    at = lambda mean, std: (torch.tensor([mean]), torch.tensor([[std**2]]))  # noqa: E731
    assert lib.frechet_distance(at(1.0, 2.0), at(4.0, 5.0)).item() == pytest.approx(18.0, rel=1e-5)


def test_frechet_is_the_closed_form_of_scipy(lib=metrics):
    """trace of sqrtm(S1 S2), which is not symmetric; and on scaled copies (1 - c)^2 tr S."""
    for seed in range(5):
        (mean, cov), (other_mean, other_cov) = gaussian(seed), gaussian(seed + 50)
        root = scipy.linalg.sqrtm((cov @ other_cov).numpy()).real
        expected = (mean - other_mean).square().sum() + torch.trace(cov + other_cov)
        expected = expected.item() - 2 * np.trace(root)
        found = lib.frechet_distance((mean, cov), (other_mean, other_cov)).item()
        assert found == pytest.approx(expected, rel=1e-6)
        scaled = lib.frechet_distance((mean, cov), (mean, 9 * cov)).item()
        assert scaled == pytest.approx(4 * cov.trace().item(), rel=1e-6)


def test_frechet_of_a_flat_set(lib=metrics):
    """Fewer samples than features: the covariance has no inverse, and the distance is finite."""
    x = torch.randn(4, 9, generator=Generator().manual_seed(1))
    assert lib.frechet_distance(lib.moments(x), lib.moments(x)).abs() < 1e-6
    moved = lib.frechet_distance(lib.moments(x), lib.moments(x + 2.0)).item()
    assert moved == pytest.approx(9 * 4.0, rel=1e-5)


def test_shares_by_leaving_out(lib=metrics):
    """An outlier harms, so its share is the least, and below zero; each share is a difference of
    two distances computed with numpy and scipy."""
    g = Generator().manual_seed(2)
    x, reference = torch.randn(12, 3, generator=g), torch.randn(400, 3, generator=g)
    x[4] += 6.0
    shares = lib.frechet_shares(x, lib.moments(reference))
    assert shares.argmin() == 4 and shares[4] < 0

    def distance(a, b):
        a, b = a.double().numpy(), b.double().numpy()
        one, other = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        root = scipy.linalg.sqrtm(one @ other).real
        return ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(one + other - 2 * root)

    for i in (0, 4):
        rest = torch.cat([x[:i], x[i + 1 :]])
        expected = distance(rest, reference) - distance(x, reference)
        assert shares[i].item() == pytest.approx(expected, rel=1e-5)


def square(x, y, color="red"):
    return Scene((Thing("square", color, "large", x, y, 0),))


def test_iou_by_counting(lib=metrics):
    """The same square one pixel to the right, of side s: (s^2 - s) / (s^2 + s)."""
    scene, moved = square(5.5 / 16, 5.5 / 16), square(6.5 / 16, 5.5 / 16, "cyan")
    side = int(lib.painted(render([scene], 16)).sum()) ** 0.5
    assert side == int(side) and side > 2
    images = list(render([scene, moved], 16))
    found = lib.layout_iou(images, [scene, scene])
    assert found == pytest.approx([1.0, (side - 1) / (side + 1)])
    fractions = [image / 255 for image in images]
    assert lib.layout_iou(fractions, [scene, scene]) == pytest.approx(found)


def test_iou_of_sets_of_pixels(lib=metrics):
    """Python's sets, on scenes drawn at random and pictures of other scenes."""
    scenes = drawing_scenes(12, "train", Generator().manual_seed(3))
    images = render(scenes[1:] + scenes[:1], 16)

    def pixels(image):
        rows = image.permute(1, 2, 0).reshape(-1, 3).tolist()
        return {i for i, color in enumerate(rows) if color != 3 * [round(255 * BACKGROUND)]}

    expected = []
    for image, scene in zip(images, scenes, strict=True):
        a, b = pixels(image), pixels(render([scene], 16)[0])
        expected.append(len(a & b) / len(a | b))
    assert lib.layout_iou(list(images), scenes) == pytest.approx(expected)
    assert 0 < min(x for x in expected if x) < 1


def test_every_color_is_ink_and_the_background_is_not(lib=metrics):
    for color in COLOURS:
        assert lib.painted(render([square(0.5, 0.5, color)], 16)).any()
    empty = render([Scene(())], 16)
    assert not lib.painted(empty).any() and not lib.painted(empty / 255).any()
    assert lib.layout_iou(list(empty), [Scene(())]) == [1.0]
    assert lib.layout_iou(list(empty), [square(0.5, 0.5)]) == [0.0]


MUTANTS = [
    ("means are not squared", "(mean - other_mean).square().sum()", "(mean - other_mean).abs().sum()"),
    ("means are ignored", "(mean - other_mean).square().sum()", "0 * (mean - other_mean).square().sum()"),
    ("one shared root", "- 2 * shared", "- shared"),
    ("eigenvalues not rooted", "clamp(min=0).sqrt().sum()", "clamp(min=0).sum()"),
    ("no root at all", "root = _root(cov)", "root = cov"),
    ("variances only", "root @ other_cov @ root", "root @ other_cov.diag().diag() @ root"),
    ("shares reversed", "torch.stack(without) - whole", "whole - torch.stack(without)"),
    ("without its neighbour", "for row in keep]", "for row in keep.roll(1, 0)]"),
    ("union is a sum", "shown | truth))", "shown.int() + truth.int()))"),
    ("over the truth alone", "(shown & truth, shown | truth)", "(shown & truth, truth)"),
    ("the background is ink", "> INK", ">= 0"),
    ("bytes are not scaled", "255.0 if images.dtype == torch.uint8 else 1.0", "1.0"),
    ("nothing agrees with nothing", "either.clamp(min=1), 1.0)", "either.clamp(min=1), 0.0)"),
]  # fmt: skip
# ruff: noqa: E501


@pytest.mark.filterwarnings("ignore")  # wrong versions may warn
@pytest.mark.parametrize(("wrong", "old", "new"), MUTANTS)
def test_every_wrong_metric_is_rejected(wrong, old, new):
    """By an assertion; a crash does not count."""
    source, lib = SOURCE.read_text(), ModuleType("metrics")
    assert source.count(old) == 1
    exec(compile(source.replace(old, new), SOURCE.name, "exec"), vars(lib))
    named = [t for name, t in globals().items() if name.startswith("test_")]
    for check in named:
        if check.__defaults__ != (metrics,):
            continue
        try:
            check(lib)
        except (AssertionError, pytest.fail.Exception):
            return
        except Exception:
            continue
    pytest.fail(f"nothing noticed '{wrong}'")
