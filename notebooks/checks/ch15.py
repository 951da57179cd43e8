"""Chapter 15, reward design: judges, hostile pictures, best-of-n, weak heads, the checks."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from typing import Any

import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Generator, Tensor

from minivisrl.generation.denoising import SamplerConfig
from minivisrl.generation.judge import LEVEL, PictureJudge
from minivisrl.lab.exercises import foretold
from minivisrl.lab.plots import COLORS, STYLE
from minivisrl.mllm import VLMPolicy
from minivisrl.paradigms.reward_model import bradley_terry_loss
from minivisrl.rewards.metrics import frechet_distance, frechet_shares, moments
from minivisrl.rollout import Prompts, Rollout
from minivisrl.worlds.drawings import snapped
from minivisrl.worlds.scenes import BACKGROUND, COLOUR_NAMES, Scene, render

QUICK = SamplerConfig(steps=6, eval_steps=6, noise=0.7, scored=3)  # 5 actions, 3 of them trained


# Judges


def doubled(pictures: Sequence[Tensor] | Tensor) -> Tensor:
    """(N, 3, 32, 32): 16 px pictures for eyes that expect 32 px."""
    images = torch.stack([picture.float() for picture in pictures])
    return images.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3)


def questions(scene: Scene) -> list[tuple[str, str]]:
    """Every object (yes), the first one in a color it has not (no), and how many there are."""
    there = [(thing.color, thing.shape) for thing in scene.things]
    color, shape = there[0]
    start = COLOUR_NAMES.index(color)
    turned = COLOUR_NAMES[start:] + COLOUR_NAMES[:start]
    absent = next(other for other in turned if (other, shape) not in there)
    return [
        *((f"is there a {c} {s} ?", "yes") for c, s in there),
        (f"is there a {absent} {shape} ?", "no"),
        ("how many things are there ?", str(len(there))),
    ]


class Answers:
    """A VLM as a judge: the mean probability of the right answers to questions about a picture."""

    __name__ = "answers"
    batch_size = 256  # questions per forward pass

    def __init__(self, vlm: VLMPolicy) -> None:
        self.vlm = vlm

    @torch.no_grad()
    def probabilities(self, asked: Sequence[tuple[str, str]], images: Tensor) -> Tensor:
        """(M,) probability of each answer to its question about its image (M, 3, 32, 32)."""
        found = []
        for start in range(0, len(asked), self.batch_size):
            part = asked[start : start + self.batch_size]
            shown = images[start : start + self.batch_size]
            prompts = Prompts({"prompt": [question for question, _ in part], "image": shown})
            texts = [f"<answer> {answer} </answer>" for _, answer in part]
            rollout = self.vlm.encode(prompts, texts, Generator())
            found.append(self.vlm.logprobs(rollout)[:, 1])  # column 0 is the opening tag
        return torch.cat(found).exp()

    def __call__(
        self, completions: Sequence[Tensor], scene: Sequence[Scene], **_: Any
    ) -> list[float]:
        asked = [questions(graph) for graph in scene]
        row = torch.tensor([i for i, told in enumerate(asked) for _ in told])  # (M,)
        every = [question for told in asked for question in told]
        right = self.probabilities(every, doubled(completions)[row])  # (M,)
        totals = torch.zeros(len(asked)).index_add(0, row, right)
        return (totals / torch.bincount(row)).tolist()


class Realism:
    """FID with the eyes of our VLM: what a picture adds to its set.  Reads no caption.

    Args:
        vlm: whose vision tower, averaged over patches, sees the pictures.
        truth: pictures of what the world looks like; features keep their main 8 axes, and a unit
            is the root of their total variance.
    """

    __name__ = "realism"

    def __init__(self, vlm: VLMPolicy, truth: Tensor) -> None:
        self.tower, self.axes = vlm.model.model.vision_tower, None
        values, vectors = torch.linalg.eigh(moments(self.features(truth))[1])
        self.axes = vectors[:, -8:] / values.sum().sqrt()  # (D, 8)
        self.reference = moments(self.features(truth))

    @torch.no_grad()
    def features(self, pictures: Sequence[Tensor] | Tensor) -> Tensor:
        """(N, 8) in float64."""
        seen = self.tower(doubled(pictures).sub(0.5).div(0.5)).last_hidden_state.mean(dim=1)
        return seen.double() if self.axes is None else seen.double() @ self.axes

    def distance(self, pictures: Sequence[Tensor] | Tensor) -> float:
        """Of the set from the reference."""
        return frechet_distance(moments(self.features(pictures)), self.reference).item()

    def __call__(self, completions: Sequence[Tensor], **_: Any) -> list[float]:
        shares = frechet_shares(self.features(completions), self.reference)
        return (len(completions) * shares).tolist()


def hostile_pictures(prompts: Prompts, pixels: int = 16) -> dict[str, Tensor]:
    """The right picture of every scene, and wrong ones that should fool somebody."""
    scenes, generator = list(prompts["scene"]), Generator().manual_seed(0)
    turn = dict(zip(COLOUR_NAMES, COLOUR_NAMES[1:] + COLOUR_NAMES[:1], strict=True))

    def drawn(change: Callable[[Any], list[Any]]) -> Tensor:
        changed = [Scene(tuple(t for thing in s.things for t in change(thing))) for s in scenes]
        return render(list(map(snapped, changed)), pixels) / 255

    def moved(thing: Any) -> Any:
        return replace(thing, x=(thing.x + 1 / 3) % 1)

    own = drawn(lambda thing: [thing])
    return {
        "right": own,
        "colors swapped": drawn(lambda thing: [replace(thing, color=turn[thing.color])]),
        "moved": drawn(lambda thing: [moved(thing)]),
        "twice as many": drawn(lambda thing: [thing, moved(thing)]),
        "another's": own.roll(1, dims=0),
        "noise": torch.rand(own.shape, generator=generator),
        "nothing": torch.full_like(own, BACKGROUND),
    }


# The laboratory: best of n, over all choices


def by_all_choices(proxy: Tensor, gold: Tensor, n: int) -> float:
    """Mean gold of the proxy's favourite over all choices of n samples, and over captions."""
    told = [
        gold[b, max(chosen, key=lambda i, b=b: proxy[b, i])].item()
        for b in range(len(proxy))
        for chosen in combinations(range(proxy.shape[1]), n)
    ]
    return sum(told) / len(told)


def gao(distance: Sequence[float], gold: Sequence[float]) -> tuple[float, float]:
    """Least squares for gold = gold at 0 + d (alpha - beta d): (alpha, beta)."""
    d, gain = torch.tensor(distance).double(), torch.tensor(gold).double() - gold[0]
    left = torch.stack([d, -d.square()], dim=1)
    return tuple(torch.linalg.lstsq(left, gain[:, None]).solution[:, 0].tolist())


@plt.rc_context(STYLE)
def pushing_figure(
    distance: Sequence[float], curves: Mapping[str, tuple[Sequence[float], Sequence[float]]]
) -> Figure:
    """Proxy (from 0 at n = 1 to 1) and gold against sqrt(KL), one panel per judge."""
    figure, axes = plt.subplots(1, len(curves), sharey=True)
    for axis, (judge, (proxy, gold)) in zip(axes, curves.items(), strict=True):
        risen = [(value - proxy[0]) / (proxy[-1] - proxy[0]) for value in proxy]
        axis.plot(distance, risen, "o-", ms=3, color=COLORS["reward"], label="proxy, rescaled")
        axis.plot(distance, gold, "o-", ms=3, color=COLORS["policy"], label="gold")
        axis.axhline(gold[0], color=COLORS["reference"], lw=1, ls=":", label="gold of the base")
        axis.set(title=judge, ylim=(-0.03, 1.03))
    axes[0].set_ylabel("score")
    figure.supxlabel("distance from the base, sqrt(KL) with KL in nats", fontsize=9)
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside upper center", ncols=3)
    return figure


# Weak heads


@torch.no_grad()
def features(judge: PictureJudge, rollout: Rollout) -> Tensor:
    """(B, G, D) what the trunk of a reward model sees of every picture; its head is not asked."""
    pixels, text = judge.to_latents(rollout.outputs), judge.read(rollout.prompts)
    level = torch.full((len(pixels),), LEVEL)
    row = torch.arange(len(pixels)) // rollout.group_size
    seen = [
        judge.denoise(pixels[i : i + 256], level[i : i + 256], text, row[i : i + 256])[1]
        for i in range(0, len(pixels), 256)
    ]
    return torch.cat(seen).view(-1, rollout.group_size, seen[0].shape[1])


def fit_head(
    seen: Tensor,
    utility: Tensor,
    pairs: int,
    generator: Generator,
    noise: float,
    ridge: float = 0.01,
) -> Tensor:
    """(D,) weights of a linear reward, by Eq. (3) on noisy comparisons of two random siblings.

    Args:
        seen: (B, G, D) features; utility: (B, G), what each picture is worth to the annotator.
    """
    count, size = utility.shape
    caption = torch.randint(count, (pairs,), generator=generator)
    first = torch.randint(size, (pairs,), generator=generator)
    second = (first + torch.randint(1, size, (pairs,), generator=generator)) % size
    gap = (utility[caption, first] - utility[caption, second]) / noise
    sign = 2 * (torch.rand(pairs, generator=generator) < gap.sigmoid()).float() - 1
    step = sign[:, None] * (seen[caption, first] - seen[caption, second])  # (pairs, D)
    weights = torch.zeros(seen.shape[-1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weights], max_iter=60, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        optimizer.zero_grad()
        fit = bradley_terry_loss(step @ weights, torch.zeros(pairs))[0]
        total = fit + ridge * weights.square().sum()
        total.backward()
        return total

    optimizer.step(loss)
    return weights.detach()


# The slider: a KL penalty


def soft(proxy: Tensor, gold: Tensor, kl_coef: float) -> tuple[float, float, float]:
    """Proxy, gold and KL of the optimum of Eq. (4): each of N samples weighted by exp(r / beta)."""
    log_weights = (proxy.double() / kl_coef).log_softmax(dim=1)  # (B, N)
    weights = log_weights.exp()
    kl = (weights * (log_weights + math.log(proxy.shape[1]))).sum(dim=1).mean()
    means = ((weights * score).sum(dim=1).mean().item() for score in (proxy, gold))
    return (*means, kl.item())


BETAS = (4.0, 2.0, 1.0, 0.5, 0.25, 0.12, 0.06)


@plt.rc_context(STYLE)
def soft_figure(
    distance: Sequence[float],
    curve: tuple[Sequence[float], Sequence[float]],
    proxy: Tensor,
    gold: Tensor,
    kl_coef: float,
) -> Figure:
    """Proxy and gold against sqrt(KL): best of n, all penalties, and the one that was chosen."""
    figure, axes = plt.subplots(1, 2)
    path = [soft(proxy, gold, beta) for beta in BETAS]
    here = soft(proxy, gold, kl_coef)
    for axis, which, name, color in (
        (axes[0], 0, "proxy, in sd", COLORS["reward"]),
        (axes[1], 1, "gold", COLORS["policy"]),
    ):
        axis.plot(distance, curve[which], "--", color=COLORS["reference"], label="best of n")
        steps = [point[2] ** 0.5 for point in path]
        axis.plot(steps, [p[which] for p in path], color=color, label="KL penalty")
        axis.plot(here[2] ** 0.5, here[which], "o", ms=8, color=color, mec="black")
        axis.set(xlabel="sqrt(KL)", ylabel=name, xlim=(0, 2))
    axes[1].legend(loc="lower right")
    figure.suptitle(
        f"beta {kl_coef:g}: sqrt(KL) {here[2] ** 0.5:.2f}, proxy {here[0]:.2f}, gold {here[1]:.3f}",
        fontsize=10,
    )
    return figure


# 15.1 predict

BLIND: dict[str, tuple[bool, str]] = {
    "answers, moved": (True, "does any question ask where something is?"),
    "answers, colors swapped": (False, "the questions name colors"),
    "iou, moved": (False, "the painted pixels are elsewhere now"),
    "iou, colors swapped": (True, "does `painted` know which color a pixel has?"),
    "realism, another's": (True, "does it ever see a caption?"),
    "realism, noise": (False, "no picture of the reference looks like that"),
}
check_blind_spots = foretold(BLIND)


# 15.2 implement


def check_frechet_1d(frechet_1d: Callable[[Tensor, Tensor], Any]) -> None:
    """Against numbers that fit on paper."""
    first, second = torch.tensor([0.0, 2.0, 4.0]), torch.tensor([1.0, 1.0, 4.0, 6.0])
    found = float(frechet_1d(first, first + 3))
    assert math.isclose(found, 9, abs_tol=1e-4), "a shift by 3 costs 3 squared, and nothing else"
    found = float(frechet_1d(first, 2 * first - 2))
    assert math.isclose(found, 4, abs_tol=1e-4), "the same mean, spread 2 and 4: (2 - 4) squared"
    truth = 1 + (2 - 6**0.5) ** 2  # means 2 and 3, variances 4 and 18 / 3
    assert math.isclose(float(frechet_1d(first, second)), truth, abs_tol=1e-4), "divide by N - 1"


# 15.3 find the bug


def check_worst_of(worst_of: Callable[[Tensor], Tensor]) -> None:
    """The lowest score, once the judges speak of one scale."""
    scores = torch.tensor([[1.0, 5.0, 2.0, 4.0], [300.0, 100.0, 500.0, 700.0]])
    found = worst_of(scores)
    assert isinstance(found, Tensor) and found.shape == (4,), "one score per picture: (N,)"
    plain = [[(x - sum(row) / 4) for x in row] for row in scores.tolist()]
    spread = [(sum(x * x for x in row) / 3) ** 0.5 for row in plain]
    scaled = [[x / s for x in row] for row, s in zip(plain, spread, strict=True)]
    truth = torch.tensor([min(column) for column in zip(*scaled, strict=True)])
    hint = "one judge speaks in hundreds and never is the lowest: center and scale each row first"
    assert not torch.allclose(found, scores.amin(dim=0)), hint
    raw = torch.tensor([min(column) for column in zip(*plain, strict=True)])
    assert not torch.allclose(found, raw), "centred, but still on two scales"
    assert torch.allclose(found, truth, atol=1e-4), "for each picture the lowest of its judges"


# 15.4 ablate


def check_without(without: Callable[[list[tuple[str, str]], str], list[tuple[str, str]]]) -> None:
    """Which questions remain when a kind is left out."""
    asked = [
        ("is there a red circle ?", "yes"),
        ("is there a blue cross ?", "yes"),
        ("is there a blue circle ?", "no"),
        ("how many things are there ?", "2"),
    ]
    for kind, kept in (("there", [2, 3]), ("absent", [0, 1, 3]), ("count", [0, 1, 2])):
        found = without(list(asked), kind)
        assert found == [asked[i] for i in kept], (
            f"without {kind!r}: `there` is answered by yes, `absent` by no, `count` by a number; "
            "keep the order of the rest"
        )


# 15.5 extend


def check_peak(peak: Callable[[float, float], int]) -> None:
    """The n up to 1000 with the highest gold by the law, by going through all of them."""

    def law(n: int, alpha: float, beta: float) -> float:
        d = math.sqrt(math.log(n) - (n - 1) / n)
        return d * (alpha - beta * d)

    for alpha, beta in ((0.4, 0.2), (0.3, 0.2), (0.5, 0.17), (0.4, 0.4)):
        truth = max(range(1, 1001), key=lambda n, a=alpha, b=beta: law(n, a, b))
        found = peak(alpha, beta)
        hint = "maximise d (alpha - beta d) over n, with d the *root* of (A3)"
        assert found == truth, f"alpha {alpha}, beta {beta}: {hint}"
    assert peak(-0.2, 0.1) == 1, "if gold falls from the start, the best choice is not to choose"


def _flipped(wrong: str) -> str:
    told = {name: truth != (name == wrong) for name, (truth, _) in BLIND.items()}
    return f"prediction = {told!r}"


MUTANTS = {
    "15.1": [_flipped(wrong) for wrong in BLIND],
    "15.2": [
        """
        def frechet_1d(first, second):
            return (first.mean() - second.mean()) ** 2
        """,
        """
        def frechet_1d(first, second):
            return (first.mean() - second.mean()) ** 2 + (first.var() - second.var()) ** 2
        """,
        """
        def frechet_1d(first, second):
            spread = first.std(correction=0) - second.std(correction=0)
            return (first.mean() - second.mean()) ** 2 + spread**2
        """,
    ],
    "15.3": [
        "worst_of = careless",
        """
        def worst_of(scores):
            return (scores - scores.mean(dim=1, keepdim=True)).amin(dim=0)
        """,
        """
        def worst_of(scores):
            z = (scores - scores.mean(dim=1, keepdim=True)) / scores.std(dim=1, keepdim=True)
            return z.mean(dim=0)
        """,
        """
        def worst_of(scores):
            z = (scores - scores.mean(dim=0)) / scores.std(dim=0)
            return z.amin(dim=0)
        """,
    ],
    "15.4": [
        """
        def without(asked, kind):
            return [pair for pair in asked if pair[1] != "yes"]
        """,
        """
        def without(asked, kind):
            return asked[:-1] if kind == "count" else asked[1:]
        """,
        """
        def without(asked, kind):
            answers = {"there": "yes", "absent": "no"}
            return [pair for pair in asked if pair[1] != answers.get(kind)]
        """,
    ],
    "15.5": [
        """
        def peak(alpha, beta):
            d = alpha / (2 * beta)
            return max(1, round(2.718281828 ** (d * d)))
        """,
        """
        def peak(alpha, beta):
            law = lambda n: best_of_n_kl(n) * (alpha - beta * best_of_n_kl(n))
            return max(range(1, 1001), key=law)
        """,
        """
        def peak(alpha, beta):
            law = lambda n: best_of_n_kl(n) ** 0.5 * (alpha - beta * best_of_n_kl(n) ** 0.5)
            return max(range(2, 1001), key=law)
        """,
    ],
}
