"""Every recipe of the grid: its entry, its configuration, what it builds and measures on."""

import copy
import json
from dataclasses import asdict, fields, is_dataclass, replace
from importlib import import_module
from math import isfinite
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_type_hints

import pytest
import torch
from vla.tiny import agent, need_table

from minivisrl import UserError
from minivisrl.generation.autoregressive import new_tokens
from minivisrl.generation.diffusion import new_diffusion
from minivisrl.generation.flow import new_flow
from minivisrl.mllm.policy import new_vlm
from minivisrl.policy import Policy, params_sha256
from minivisrl.recipes import CELLS, PILLARS, RECIPES
from minivisrl.recipes.pretrain import CHECKPOINTS, config_of
from minivisrl.recipes.run import RunOptions, default_config, find_recipe, run
from minivisrl.rollout import Prompts
from minivisrl.unified.policy import new_unified
from minivisrl.vla.manipulation import WORLD as TABLES
from minivisrl.vla.navigation import Episode
from minivisrl.worlds.scenes import render

every_recipe = pytest.mark.parametrize("name", RECIPES)
# Field name -> value of a small run; a recipe that has no such field is not asked to.
SMALL = {"train_prompts": 16, "eval_prompts": 64, "pairs": 16, "batch_size": 4, "group_size": 2}
SMALL |= {"max_tokens": 4, "steps": 1, "denoising_steps": 3, "eval_steps": 2, "candidates": 2}
SIZES = {"width": 32, "layers": 1}
NEW = {  # kind -> an untrained small policy
    "vlm": lambda: new_vlm(0, **SIZES),
    "flow": lambda: new_flow(0, **SIZES),
    "diffusion": lambda: new_diffusion(0, **SIZES),
    "autoregressive": lambda: new_tokens(0, **SIZES),
    "unified": lambda: new_unified(0, **SIZES),
    "vla": agent,
    "manipulation": lambda: agent(world=TABLES),
}
BESIDE = {"vla/rlvr-ppo-manipulation", "vla/rlvr-grpo-manipulation"}  # beside the twenty cells
SPLITS = {"vla": {"heldout", "appearance", "semantics", "execution"}}
ARBITRARY = """
from zlib import crc32


def arbitrary(completions, **_):
    return [float(crc32(repr(output).encode()) % 7) for output in completions]
"""
BLACK = torch.zeros(3, 16, 16)


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> dict[str, str]:
    """Base -> folder of a small policy of its kind."""
    place = tmp_path_factory.mktemp("tiny")
    for name, new in NEW.items():
        new().save(place / name)
    return {name: str(place / name) for name in NEW}


def shrunk(config: Any, **values: Any) -> Any:
    """A nested configuration with `values` in place of the fields of those names."""
    changes = {}
    for field in fields(config):
        value = getattr(config, field.name)
        if is_dataclass(value):
            changes[field.name] = shrunk(value, **values)
        elif field.name in values:
            changes[field.name] = values[field.name]
    return replace(config, **changes)


def rebuilt(kind: type, values: dict[str, Any]) -> Any:
    """A configuration from its JSON: nested dataclasses by their annotations, lists as tuples."""
    hints = get_type_hints(kind)
    nested = {
        name: rebuilt(hints[name], value) if is_dataclass(hints[name]) else value
        for name, value in values.items()
    }
    return kind(**{n: tuple(v) if isinstance(v, list) else v for n, v in nested.items()})


def build(name: str, tiny: dict[str, str], small: dict[str, int] = SMALL, **options: Any) -> Any:
    if name in BESIDE:
        need_table()
    config, recipe = shrunk(default_config(name), **small), RECIPES[name]
    made = getattr(import_module(recipe.module), recipe.build)
    kind = options.get("policy", recipe.policies[0])
    return made(config, RunOptions(checkpoint=tiny[kind], **options))


def splits_of(name: str) -> set[str]:
    """What a recipe is measured on."""
    return SPLITS.get(name.split("/")[0], {"heldout", "appearance", "composition"})


class Listener(Policy):
    """Stands in for a policy when it is measured, and notes on what."""

    def __init__(self) -> None:
        super().__init__()
        self.prompts: list[Prompts] = []

    def predict(self, prompts: Prompts) -> list:
        """An episode in a room, a picture where there is nothing to look at, or an answer."""
        self.prompts.append(prompts)
        if "level" in prompts.columns:
            return [Episode(level, ()) for level in prompts["level"]]
        images = prompts.columns.get("image", [None] * len(prompts))
        return [BLACK if image is None else "<answer> 0 </answer>" for image in images]

    def rollout(self, prompts: Prompts, group_size: int, generator: torch.Generator) -> Any:
        return SimpleNamespace(outputs=self.predict(prompts) * group_size)


def keys(prompts: Prompts) -> list[tuple[str, bytes]]:
    """What tells one prompt from another: text and pixels, drawn or to be drawn."""
    seen = prompts["image"] if "level" in prompts.columns else render(prompts["scene"], 32)
    images = seen.flatten(1).numpy()
    return [(t, i.tobytes()) for t, i in zip(prompts["prompt"], images, strict=True)]


def measured_on(experiment: Any) -> list[tuple[str, bytes]]:
    """The prompts of all splits, in order."""
    listener = Listener()
    experiment.evaluate(listener)
    return [key for prompts in listener.prompts for key in keys(prompts)]


# ------------------------------------------------------------------------------------------------
# The entries.


def test_there_are_recipes_with_known_names():
    assert "mllm/rlvr-grpo" in RECIPES
    table = {f"{pillar}/{cell}" for pillar in PILLARS for cell in CELLS}
    assert set(RECIPES) == table | BESIDE and len(table) == 20


@every_recipe
def test_entry_is_filled(name):
    recipe = find_recipe(name)
    texts = (recipe.module, recipe.paper, recipe.model, recipe.metric)
    assert all(isinstance(text, str) and text.strip() == text != "" for text in texts)
    assert recipe.bases and set(recipe.bases) <= set(CHECKPOINTS)
    assert recipe.metric.endswith(("_greedy", "_sampled"))  # the name says how it was decoded
    assert 0 < recipe.minutes < 60
    assert recipe.policies and len(set(recipe.policies)) == len(recipe.policies)


@every_recipe
def test_module_offers_config_and_build(name):
    recipe = find_recipe(name)
    module = import_module(recipe.module)
    kind = getattr(module, recipe.config)
    assert is_dataclass(kind) and kind.__dataclass_params__.frozen
    assert callable(getattr(module, recipe.build)) and kind.__doc__.startswith(name + ":")


def test_an_unknown_recipe_is_named_with_the_known():
    with pytest.raises(UserError, match="unknown recipe 'mllm/nope'; choose one of mllm/rlhf-ppo"):
        default_config("mllm/nope")


def test_a_policy_kind_that_is_not_offered(tiny):
    with pytest.raises(UserError, match="offers vlm"):
        run("mllm/rlvr-grpo", None, RunOptions(checkpoint=tiny["vlm"], policy="pixels"))


# ------------------------------------------------------------------------------------------------
# Configurations.


@every_recipe
def test_config_survives_json(name):
    config = default_config(name)
    text = json.dumps(asdict(config))
    assert rebuilt(type(config), json.loads(text)) == config
    assert config.steps > 0


@pytest.mark.parametrize("name", CHECKPOINTS)
def test_pretraining_config_survives_json(name):
    config = config_of(name)
    assert rebuilt(type(config), json.loads(json.dumps(asdict(config)))) == config


@every_recipe
def test_default_config_does_not_depend_on_the_folder(name, tmp_path, monkeypatch):
    here = default_config(name)
    (tmp_path / "config.json").write_text('{"steps": 1}')
    monkeypatch.chdir(tmp_path)
    assert default_config(name) == here and default_config(name) is not here


@every_recipe
def test_the_evaluation_set_is_large_enough(name):
    """design.md: a fixed held-out set of at least 512 prompts."""
    assert default_config(name).task.eval_prompts >= 512


def test_the_shipped_base_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert Path(RunOptions().base("vlm")).is_absolute()
    assert RunOptions(checkpoint="mine").base("vlm") == "mine"


def test_generators_of_a_run_are_all_different():
    """Streams of one seed, and the same stream of neighbouring seeds, share nothing."""
    drawn = {
        tuple(torch.randint(2**62, (2,), generator=RunOptions(seed=s).generator(n)).tolist())
        for s in range(20)
        for n in range(10)
    }
    assert len(drawn) == 200


# ------------------------------------------------------------------------------------------------
# What is built.


@every_recipe
def test_build(name, tiny):
    experiment = build(name, tiny)
    trainer = experiment.trainer
    assert isinstance(trainer.policy, Policy)
    scores = experiment.evaluate(trainer.policy)
    assert set(scores) == splits_of(name)
    assert all(0 <= score <= 1 for score in scores.values())
    images, captions = experiment.show(trainer.policy)
    assert len(images) == len(captions) > 0 and images.shape[1] == 3 and images.ndim == 4
    monitored = experiment.monitor(trainer.policy)
    assert monitored["heldout"] == scores["heldout"]
    assert monitored["kl_start"] == pytest.approx(0.0, abs=1e-6)
    stats = trainer.step()
    assert all(isfinite(value) for value in stats.values())
    assert {"loss"} <= set(stats) and trainer.steps == 1
    assert len(experiment.show(trainer.policy)[0]) == len(images)
    assert set(trainer.state_dict()) >= {"policy", "optimizer", "generator", "steps"}


@every_recipe
def test_the_evaluation_set_is_the_same_for_every_run(name, tiny):
    """Whatever the seed, the control, or the size of the training set; and at every call."""
    experiment = build(name, tiny)
    first = measured_on(experiment)
    assert len(first) == 64 * len(splits_of(name))
    assert len(set(first)) > 0.75 * len(first)  # few captions name a single object
    assert measured_on(experiment) == first
    other = build(name, tiny, SMALL | {"train_prompts": 20}, seed=3, shuffle_rewards=True)
    assert measured_on(other) == first


@every_recipe
def test_measuring_does_not_disturb_training(name, tiny):
    """Story: the bits after a resume depend on it, for then there is one evaluation more."""
    quiet, watched = build(name, tiny), build(name, tiny)
    watched.evaluate(watched.trainer.policy)
    watched.show(watched.trainer.policy)
    watched.monitor(watched.trainer.policy)
    assert quiet.trainer.step() == watched.trainer.step()


def train_prompts(experiment: Any) -> list[tuple[str, bytes]]:
    """Prompts of an online trainer, or of the pairs of an offline one."""
    trainer = experiment.trainer
    return keys(trainer.prompts if hasattr(trainer, "prompts") else trainer.pairs.prompts)


@every_recipe
def test_training_prompts_follow_the_seed(name, tiny):
    first, again, other = (train_prompts(build(name, tiny, seed=s)) for s in (0, 0, 1))
    assert first == again and not set(first) & set(other)


@every_recipe
def test_no_training_image_is_measured_on(name, tiny):
    """Not one image of two seeds' training sets occurs in any split, under any question."""
    large = SMALL | {"train_prompts": 256, "eval_prompts": 256, "pairs": 128}
    experiments = [build(name, tiny, large, seed=seed) for seed in range(2)]
    trained = {image for e in experiments for _, image in train_prompts(e)}
    measured = {image for _, image in measured_on(experiments[0])}
    assert len(trained) > 150 and len(measured) > 550 and not trained & measured


@pytest.mark.parametrize(
    ("name", "kind"), [(name, kind) for name, r in RECIPES.items() for kind in r.policies[1:]]
)
def test_every_other_policy_learns_too(name, kind, tiny):
    """A step moves the weights of the kind that was asked for; untrained it earns nothing else."""
    trainer = build(name, tiny, policy=kind).trainer
    if hasattr(trainer, "reward_fn"):
        trainer.reward_fn = lambda completions, **_: [float(c.mean()) for c in completions]
    before = params_sha256(trainer.policy)
    row = trainer.step()
    assert params_sha256(trainer.policy) != before
    assert type(trainer.policy) is type(NEW[kind]())
    assert all(isfinite(value) for value in row.values())


@every_recipe
def test_the_same_seed_and_a_resumed_run_end_in_the_same_bits(name, tiny, tmp_path):
    """Statistics and weights of three steps; the second run starts anew after its first step.

    What is rewarded is arbitrary but differs: an untrained model earns nothing otherwise.
    """
    file, online = tmp_path / "mine.py", RECIPES[name].build != "dpo"
    file.write_text(ARBITRARY)
    told = {"seed": 5, "reward": f"{file}:arbitrary" if online else None}
    straight, first, second = (build(name, tiny, **told) for _ in range(3))

    def steps(experiment: Any, count: int) -> list[dict[str, float]]:
        return [experiment.trainer.step() for _ in range(count)]

    rows = steps(first, 1)
    second.trainer.load_state_dict(copy.deepcopy(first.trainer.state_dict()))
    assert steps(straight, 3) == rows + steps(second, 2)
    ends = {params_sha256(done.trainer.policy) for done in (straight, second)}
    assert len(ends) == 1 and params_sha256(first.trainer.policy) not in ends


def lengths(completions: list[Any], **_: Any) -> list[float]:
    """Words have letters, episodes have actions."""
    return [float(len(getattr(output, "actions", output))) for output in completions]


some_recipes = pytest.mark.parametrize(
    "name", ["mllm/rlvr-grpo", "vla/rlvr-ppo", "vla/rlhf-grpo", "vla/rlvr-grpo-manipulation"]
)


@some_recipes
def test_the_control_permutes_rewards(name, tiny):
    """Same prompts, same completions, same rewards: dealt out to other rows."""
    plain, control = (build(name, tiny, shuffle_rewards=s) for s in (False, True))

    def collected(experiment: Any) -> tuple[list[Any], list[float]]:
        t = experiment.trainer
        rollout, rewards, _ = t.collect(t.policy, t.prompts, lengths, t.cfg, t.generator)
        return list(rollout.outputs), rewards.tolist()

    (outputs, rewards), (same_outputs, dealt) = collected(plain), collected(control)
    assert outputs == same_outputs and rewards == lengths(outputs)
    assert dealt != rewards and sorted(dealt) == sorted(rewards)


def test_the_control_of_pairs_is_a_coin(tiny):
    """The same episodes in the same rooms; in about half of the pairs the sides are swapped."""
    small = SMALL | {"pairs": 64}
    plain, control = (build("vla/dpo", tiny, small, shuffle_rewards=s) for s in (False, True))
    one, other = plain.trainer.pairs, control.trainer.pairs
    sides = zip(one.chosen, one.rejected, other.chosen, other.rejected, strict=True)
    swapped = [(a, b) == (d, c) != (c, d) for a, b, c, d in sides]
    same = [x == y for x, y in zip(one.chosen, other.chosen, strict=True)]
    assert 16 < sum(swapped) < 48 and all(s != k for s, k in zip(swapped, same, strict=True))


@some_recipes
def test_a_reward_of_ones_own(name, tiny, tmp_path):
    """It is trained on, and never measured with."""
    file = tmp_path / "mine.py"
    file.write_text("def ones(completions, **_):\n    return [1.0] * len(completions)\n")
    experiment = build(name, tiny, reward=f"{file}:ones")
    assert experiment.trainer.step()["reward/ones"] == 1.0
    assert experiment.evaluate(experiment.trainer.policy)["heldout"] < 1


def test_run_as_a_function(tiny, tmp_path):
    """What notebooks call: a folder, a result, the rows, and what was shown before and after."""
    config = shrunk(default_config("mllm/rlvr-grpo"), **SMALL)
    options = RunOptions(checkpoint=tiny["vlm"], out=str(tmp_path / "run"))
    done = run("mllm/rlvr-grpo", config, options, progress=False)
    assert done.folder == tmp_path / "run" and len(done.rows) == done.result["steps"] == 1
    assert json.loads((done.folder / "result.json").read_text()) == done.result
    assert set(done.shown) == {"before", "after"}
    assert done.shown["before"][0].equal(done.shown["after"][0])
