"""Checkpoints as they are shipped: 16 bits on disk, 32 in use, and no trace of who made them."""

import json
from importlib import import_module

import pytest
import torch
from safetensors.torch import load_file

from minivisrl import DATA
from minivisrl.policy import params_sha256
from minivisrl.recipes import pretrain
from minivisrl.unified.policy import UnifiedPolicy, new_unified
from minivisrl.vla.policy import VLAPolicy


@pytest.fixture
def saved(tmp_path):
    policy = new_unified(0, width=32, layers=1)
    policy.save(tmp_path)
    return policy, tmp_path


def kinds(folder) -> set[torch.dtype]:
    return {t.dtype for path in folder.rglob("*.safetensors") for t in load_file(path).values()}


def test_weights_are_halved_on_disk_and_run_in_32_bits(saved):
    """What is loaded is what rounding leaves, to the bit; the hash of a card is of these."""
    policy, folder = saved
    pretrain.settle(folder, half=True)
    assert kinds(folder) == {torch.float16}
    for parameter in policy.parameters():
        parameter.data = parameter.data.half().float()
    again = UnifiedPolicy.load(folder)
    assert {p.dtype for p in again.parameters()} == {torch.float32}
    assert params_sha256(again) == params_sha256(policy)


def test_other_checkpoints_stay_as_they_are(saved):
    policy, folder = saved
    pretrain.settle(folder, half=False)
    assert kinds(folder) == {torch.float32}
    assert params_sha256(UnifiedPolicy.load(folder)) == params_sha256(policy)


def test_the_folder_that_a_network_came_from_is_forgotten(saved):
    _, folder = saved
    path = folder / "model" / "config.json"
    told = json.loads(path.read_text())
    path.write_text(json.dumps(told | {"_name_or_path": "some/folder"}))
    pretrain.settle(folder, half=False)
    assert json.loads(path.read_text()) == told


@pytest.mark.parametrize("name", pretrain.CHECKPOINTS)
def test_every_checkpoint_is_there_as_its_module_says(name):
    """In 16 bits or not, with a card of that command; the table of data/README.md names it."""
    folder = DATA / "checkpoints" / name
    half = getattr(import_module(pretrain.CHECKPOINTS[name]), "HALF", False)
    assert kinds(folder) == {torch.float16 if half else torch.float32}
    card = json.loads((folder / "card.json").read_text())
    assert card["command"] == f"minivisrl pretrain {name} --seed 0"
    assert card["params_sha256"] in (folder / "README.md").read_text()
    table, rest = (DATA / "README.md").read_text().split("## checkpoints")[1].split("All but")
    assert f"`{name}`" in table
    assert (f"`{name}`" in rest.split("are stored in 16 bits")[0]) != half


LOADED = {"unified_reward": UnifiedPolicy, "vla": VLAPolicy, "manipulation": VLAPolicy}


@pytest.mark.parametrize("name", LOADED)
def test_the_cards_hash_is_that_of_the_shipped_weights(name):
    folder = DATA / "checkpoints" / name
    card = json.loads((folder / "card.json").read_text())
    assert params_sha256(LOADED[name].load(folder)) == card["params_sha256"]


def test_an_agent_is_shipped_with_its_world():
    worlds = {n: VLAPolicy.load(DATA / "checkpoints" / n).world.name for n in list(LOADED)[1:]}
    assert worlds == {"vla": "navigation", "manipulation": "manipulation"}
