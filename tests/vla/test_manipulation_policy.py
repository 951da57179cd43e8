"""The same agent at the table: exact log-probs, saved with its world; clones; its two recipes."""

import json
from dataclasses import replace
from math import isfinite
from random import Random

import pytest
import torch
from vla.tiny import agent, need_table, seeded

from minivisrl import UserError
from minivisrl.policy import frozen
from minivisrl.recipes import manipulation as recipe
from minivisrl.recipes import pretrain_manipulation
from minivisrl.recipes.manipulation import RLVRGRPO, RLVRPPO, ManipulateConfig, load_policy
from minivisrl.recipes.run import RunOptions
from minivisrl.vla.levels import SPLITS
from minivisrl.vla.manipulation import ACTIONS, NAMES, WORLD, Table, manipulation_prompts
from minivisrl.vla.manipulation_expert import demonstrate, demonstrations, misheard, named
from minivisrl.vla.manipulation_levels import layout_of
from minivisrl.vla.policy import VLAPolicy
from minivisrl.vla.pretraining import DemonstratorConfig, Pupil

need_table()


@pytest.fixture(scope="module")
def policy() -> VLAPolicy:
    return agent(world=WORLD)


@pytest.fixture(scope="module")
def prompts():
    return manipulation_prompts(3, "train", seeded(1))


@pytest.fixture(scope="module")
def rollout(policy, prompts):
    return policy.rollout(prompts, 2, seeded())


def test_rows_are_episodes_of_the_real_table(policy, prompts, rollout):
    """Observations, success and length are those of a table that is moved here, by hand."""
    ids = policy.tokenizer.convert_tokens_to_ids([f"<act_{i}>" for i in range(len(ACTIONS))])
    assert policy.action_ids.tolist() == ids and policy.image_tokens == 36
    for row, episode in enumerate(rollout.outputs):
        assert episode.level is prompts["level"][row // 2]
        table, shown = Table(episode.level), rollout.mask[row] != 0
        taken = [ids.index(token) for token in rollout.actions["tokens"][row][shown].tolist()]
        assert tuple(taken) == episode.actions and shown.sum() == episode.steps
        for time, action in enumerate(taken):
            assert not table.ended
            view = rollout.actions["observations"][row, time].permute(1, 2, 0)
            assert torch.equal(view, torch.from_numpy(table.render()))
            table.move(action)
        assert table.ended and (table.success, table.covered) == (episode.success, episode.covered)


def test_log_probs_are_exact(policy, prompts, rollout):
    """As sampled, again, and of a state alone through the whole model without padding."""
    again = policy.evaluate_actions(rollout)
    assert torch.allclose(again.logprobs * rollout.mask, rollout.logprobs, atol=1e-5)
    assert again.dist.probs.shape[-1] == len(ACTIONS)
    text = prompts["prompt"][1] + "<image>" * 36 + "<action>"
    view = rollout.actions["observations"][2, 0].float() / 127.5 - 1
    with torch.no_grad():
        tokens = policy.tokenizer([text], return_tensors="pt")
        logits = policy.model(**tokens, pixel_values=view[None]).logits[0, -1, policy.action_ids]
    expected = logits.log_softmax(0)[rollout.outputs[2].actions[0]].item()
    assert rollout.logprobs[2, 0].item() == pytest.approx(expected, abs=1e-5)


def test_encode_is_the_rollout_again(policy, prompts, rollout):
    again = policy.encode(prompts, list(rollout.outputs), seeded())
    shown = rollout.mask != 0
    assert torch.equal(again.mask, rollout.mask)
    for name, column in rollout.actions.items():
        assert torch.equal(again.actions[name][shown], column[shown])


def test_the_world_is_saved_with_the_policy(policy, prompts, tmp_path):
    policy.save(tmp_path)
    again = VLAPolicy.load(tmp_path).eval()
    assert again.world is WORLD and again.predict(prompts) == policy.predict(prompts)
    (tmp_path / "policy.json").write_text(json.dumps({"world": "moon"}))
    with pytest.raises(UserError, match="world 'moon' is unknown; choose one of navigation, mani"):
        VLAPolicy.load(tmp_path)
    walker = agent()
    frozen(walker).save(tmp_path)
    assert "world" not in json.loads((tmp_path / "policy.json").read_text())
    with pytest.raises(UserError, match="acts in navigation, not on tables"):
        load_policy(ManipulateConfig(), RunOptions(checkpoint=str(tmp_path)))


# ------------------------------------------------------------------------------------------------
# Demonstrations.


def test_stumbling_and_mishearing_are_as_asked():
    def share(**options):
        cfg = DemonstratorConfig(demonstrations=40, **options)
        return sum(e.success for e in demonstrations(cfg, "train", seeded())[1]) / 40

    clean, lost = share(stumble=0.0, mishear=0.0), share(stumble=1.0, mishear=0.0)
    assert clean >= 0.95 and lost < 0.4
    assert share(stumble=0.0, mishear=1.0) < 0.3


def test_misheard_missions_are_about_another_thing_or_goal():
    for seed in range(20):
        told = layout_of(seed, "train")
        meant = misheard(told, Random(seed))
        assert (meant.things, meant.goals, meant.verb) == (told.things, told.goals, told.verb)
        assert (meant.thing != told.thing) + (meant.goal != told.goal) == (meant != told)
        assert meant.shortest


def test_demonstrations_are_told_patch_by_patch(prompts):
    """The names of every view are those of the table then; and a pupil can be scored on them."""
    new = agent(world=WORLD)
    pupil = Pupil(new.model, new.tokenizer, world=WORLD)
    shown = [demonstrate(told, 0.3, Random(0)) for told in prompts["level"]]
    told = named(pupil, (prompts, shown), seeded())
    assert told.actions["names"].shape == (*told.mask.shape, 36)
    table = Table(shown[1].level)
    for time, action in enumerate(shown[1].actions):
        assert [NAMES[i] for i in told.actions["names"][1, time].tolist()] == table.names()
        table.move(action)
    assert pupil.logprobs(told).isfinite().all()


def test_pretraining_starts():
    who = DemonstratorConfig(demonstrations=6, batch_size=3)
    config = replace(pretrain_manipulation.Config(), steps=1, demonstrators=who)
    trainer = pretrain_manipulation.build(config, 0)
    assert all(isfinite(value) for value in trainer.step().values())
    count = sum(p.numel() for p in trainer.policy.parameters())
    assert 2 * count < 1.5e6  # bytes, in 16 bits


# ------------------------------------------------------------------------------------------------
# Recipes.


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("base")
    agent(world=WORLD).save(folder)
    return str(folder)


def small(config, **task):
    few = replace(config.trainer, batch_size=4, group_size=2)
    sizes = ManipulateConfig(train_prompts=8, eval_prompts=6, **task)
    return replace(config, steps=1, trainer=few, task=sizes)


@pytest.mark.parametrize(
    ("config", "reward"), [(RLVRGRPO(), "sparse"), (RLVRPPO(), "sparse"), (RLVRPPO(), "dense")]
)
def test_recipes(config, reward, base):
    assert config.task.eval_prompts >= 512 and type(config).__doc__.startswith("vla/rlvr-")
    made = recipe.rlvr(small(config, reward=reward), RunOptions(checkpoint=base))
    scores = made.evaluate(made.trainer.policy)
    assert tuple(scores) == SPLITS[1:] and all(0 <= score <= 1 for score in scores.values())
    stats = made.trainer.step()
    assert all(isfinite(value) for value in stats.values())
    name = {"sparse": "reward/success", "dense": "reward/dense"}[reward]
    assert name in stats
    images, words = made.show(made.trainer.policy)
    assert len(images) == len(words) == 6 * 2  # two episodes of each
    assert images.shape[1:] == (3, 60, 6 * 61 - 1)


def test_a_recipe_without_its_base(monkeypatch, tmp_path):
    monkeypatch.setattr(recipe, "DATA", tmp_path)
    monkeypatch.setattr("minivisrl.recipes.run.DATA", tmp_path)
    with pytest.raises(UserError, match="minivisrl pretrain manipulation --install"):
        recipe.rlvr(small(RLVRGRPO()), RunOptions())


def test_an_unknown_reward():
    with pytest.raises(UserError, match="ManipulateConfig.reward='some' is not allowed"):
        ManipulateConfig(reward="some")
