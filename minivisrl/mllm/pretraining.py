r"""Demonstrations for the base VLM: questions, descriptions and digits, by imperfect annotators.

Survey: sections 2.2.1 (first stage: supervised fine-tuning on demonstrations) and 3.1.
Symbols: p -> image and question, y -> `<answer> 3 </answer>`, with or without working before it.
Departs: every image carries several questions, which share its computation but not its context.

A base model should know but be unsure.  Ours learns from two kinds of annotators.  Most are hasty:
they answer at once.  A few are careful: they write the counts down first.  Descriptions forget,
repeat or misname objects.  What to imitate is thus an open question, and reinforcement learning can
answer it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from math import inf
from random import Random

import torch
from torch import Generator

from minivisrl.mllm.policy import VLMPolicy
from minivisrl.optimization.update import validate
from minivisrl.rollout import Prompts, Rollout
from minivisrl.worlds.digits import ask_digits, digit_prompts
from minivisrl.worlds.questions import COMBINED, SIMPLE, Question, ask
from minivisrl.worlds.scenes import COLOUR_NAMES, SHAPES, Scene, render, sample_scenes

CAPTION, TALLY, DESCRIBE = "caption", "count the {}", "describe the image"


@dataclass(frozen=True, kw_only=True)
class AnnotatorConfig:
    """How demonstrations are written."""

    images: int = 64  # images in a batch
    questions: int = 4  # demonstrations per image
    digits: float = 0.2  # share of images that show digits
    combined: float = 0.4  # share of questions on scenes that need two facts
    alignment: int = 900  # first batches, true captions only: pixels meet words
    caption: float = 0.1  # share of later batches that are true captions
    tally: float = 0.25  # share of later batches that are true counts of colors and shapes
    describe: float = 0.1  # share of later batches that are sloppy descriptions
    careful: float = 0.2  # share of combined questions answered with the working written down
    careful_simple: float = 0.15  # the same for questions about one fact
    hasty_error: float = 0.5  # share of hasty answers that are off by one
    forget: float = 0.2  # share of objects that a description leaves out
    misname: float = 0.15  # share of described objects with a wrong color or shape
    repeat: float = 0.15  # share of described objects that are mentioned twice

    def __post_init__(self) -> None:
        shares = {f.name: (0, 1) for f in fields(self) if f.type == "float"}
        validate(self, shares | {"images": (1, inf), "questions": (1, inf), "alignment": (0, inf)})


def completion(question: Question, careful: bool) -> str:
    """The demonstration in the format that the extractor of answers expects."""
    answer = f"<answer> {question.answer} </answer>"
    return f"<think> {question.steps} </think> {answer}" if careful else answer


def tally(scene: Scene, family: Sequence[str], random: Random) -> tuple[str, str]:
    """(prompt, true counts of every word of a family, in random order)."""
    words = random.sample(list(family), len(family))
    prompt = TALLY.format("colors" if "red" in words else "shapes")
    return prompt, " ".join(f"{word} {scene.count(word)}" for word in words)


def describe(scene: Scene, cfg: AnnotatorConfig, random: Random) -> str:
    """A description by an annotator who forgets, misnames and repeats."""
    phrases = []
    for thing in scene.things:
        if random.random() < cfg.forget:
            continue
        color, shape = thing.color, thing.shape
        if random.random() < cfg.misname:
            color, shape = random.choice(
                [(random.choice(COLOUR_NAMES), shape), (color, random.choice(SHAPES))]
            )
        phrases += [f"{color} {shape}"] * (2 if random.random() < cfg.repeat else 1)
    return ", ".join(phrases) or "nothing"


def _hasty(question: Question, random: Random) -> Question:
    """The question with an answer that is off by one, if its answer is a number."""
    if not question.answer.isdigit():
        return question
    wrong = abs(int(question.answer) + random.choice((-1, 1)))
    return Question(question.kind, question.prompt, str(wrong), question.steps)


def _demonstrate(question: Question, cfg: AnnotatorConfig, random: Random) -> tuple[str, str]:
    """(prompt, demonstration) by a careful or a hasty annotator."""
    combined = question.kind in COMBINED or question.kind in ("digit_sum", "digit_larger")
    careful = random.random() < (cfg.careful if combined else cfg.careful_simple)
    if combined and not careful and random.random() < cfg.hasty_error:
        question = _hasty(question, random)
    return question.prompt, completion(question, careful)


def _about_scene(scene: Scene, cfg: AnnotatorConfig, random: Random) -> tuple[str, str]:
    kinds = COMBINED if random.random() < cfg.combined else SIMPLE
    while True:
        if question := ask(scene, random.choice(kinds), random):
            return _demonstrate(question, cfg, random)


def _about_digits(labels: tuple[int, ...], cfg: AnnotatorConfig, random: Random) -> tuple[str, str]:
    kinds = ("digit",) if len(labels) == 1 else ("digit_sum", "digit_larger")
    return _demonstrate(ask_digits(random.choice(kinds), labels), cfg, random)


def demonstrations(
    policy: VLMPolicy, cfg: AnnotatorConfig, generator: Generator, step: int
) -> Rollout:
    """The batch of a step: the prompt is an image alone; a row is one question and its answer.

    The mask covers the demonstration and its end token, not the question.  A batch holds one form:
    captions, tallies, descriptions or answers.
    """
    random = Random(int(torch.randint(2**62, (), generator=generator)))
    shares = (cfg.caption, cfg.tally, cfg.describe, 1 - cfg.caption - cfg.tally - cfg.describe)
    shares = (1, 0, 0, 0) if step < cfg.alignment else shares
    (form,) = random.choices(("caption", "tally", "describe", "answer"), shares)
    digits = round(cfg.digits * cfg.images) if form == "answer" else 0
    scenes = sample_scenes(cfg.images - digits, "train", generator)
    rows = range({"tally": 2, "answer": cfg.questions}.get(form, 1))
    write = {
        "caption": lambda scene, _: (CAPTION, scene.caption()),
        "tally": lambda scene, row: tally(scene, (COLOUR_NAMES, SHAPES)[row], random),
        "describe": lambda scene, _: (DESCRIBE, describe(scene, cfg, random)),
        "answer": lambda scene, _: _about_scene(scene, cfg, random),
    }[form]
    items = [write(scene, row) for scene in scenes for row in rows]
    image = render(scenes)
    if digits:
        scans = digit_prompts(digits, ("digit", "digit_sum", "digit_sum"), "train", generator)
        items += [_about_digits(labels, cfg, random) for labels in scans["labels"] for _ in rows]
        image = torch.cat([image, scans["image"]])
    prompts = Prompts({"image": image, "prompt": [""] * len(image)})
    rollout = policy.encode(prompts, [f"{asked} {told}" for asked, told in items], generator)
    lengths = [len(ids) for ids in policy.tokenizer([asked for asked, _ in items]).input_ids]
    columns = torch.arange(rollout.mask.shape[1])
    told = (columns >= torch.tensor(lengths)[:, None]).to(rollout.mask)  # (N, T)
    return replace(rollout, mask=rollout.mask * told)
