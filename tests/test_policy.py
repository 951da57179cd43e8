"""The policy contract: critic, frozen copies, hashes, save and load, and errors in one line."""

import copy
import json
import shutil
import socket

import pytest
import torch
from mllm.tiny import prompts_of, seeded, sharp_vlm
from safetensors.torch import load_file, save_file

from minivisrl import UserError
from minivisrl.mllm.policy import VLMPolicy, new_vlm
from minivisrl.policy import Policy, frozen, params_sha256


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A saved tiny policy without a critic; tests copy it before they spoil it."""
    folder = tmp_path_factory.mktemp("vlm")
    policy = sharp_vlm()
    policy.temperature, policy.max_tokens = 0.7, 5
    policy.save(folder)
    return folder


# --- critic --------------------------------------------------------------------------------------


def test_the_critic_is_one_linear_layer_from_the_generator():
    heads = []
    for seed in (3, 3, 4):
        policy = new_vlm(width=32, layers=1)
        assert policy.value_head is None
        torch.manual_seed(len(heads))  # must not matter
        policy.add_value_head(seeded(seed))
        heads.append(policy.value_head)
    assert heads[0].weight.shape == (1, 32) and not heads[0].bias.any()
    assert torch.equal(heads[0].weight, heads[1].weight)
    assert not torch.equal(heads[0].weight, heads[2].weight)
    assert 0 < heads[0].weight.abs().max() < 0.05  # values start near 0
    names = dict(policy.named_parameters())
    assert "value_head.weight" in names and "value_head.bias" in names  # the optimiser sees it
    assert "value_head.weight" in policy.state_dict()


def test_values_need_a_critic():
    policy, prompts = sharp_vlm(), prompts_of()
    rollout = policy.rollout(prompts, 2, seeded())
    assert policy.evaluate_actions(rollout).values is None
    with pytest.raises(ValueError, match="no critic; call add_value_head"):
        policy.evaluate_actions(rollout, values=True)


# --- copies and hashes ---------------------------------------------------------------------------


def test_a_frozen_copy_stays_where_it_was():
    """No gradient, eval mode, and no shared memory: training the policy does not move it."""
    policy, prompts = sharp_vlm(), prompts_of()
    policy.train()
    reference = frozen(policy)
    rollout = policy.rollout(prompts, 2, seeded())
    before = reference.logprobs(rollout)
    assert not before.requires_grad and not reference.training
    assert policy.training and all(p.requires_grad for p in policy.parameters())
    policy.logprobs(rollout).sum().backward()
    assert all(p.grad is None for p in reference.parameters())
    with torch.no_grad():
        for parameter in policy.parameters():
            parameter.add_(0.1)
    assert torch.equal(reference.logprobs(rollout), before)
    assert not torch.allclose(policy.logprobs(rollout), before)


def test_the_hash_is_of_all_weights_and_nothing_else():
    policy = new_vlm(seed=1, width=32, layers=1)
    start = params_sha256(policy)
    assert len(start) == 64 and start == params_sha256(new_vlm(seed=1, width=32, layers=1))
    assert start != params_sha256(new_vlm(seed=2, width=32, layers=1))
    assert start == params_sha256(frozen(policy))
    policy.temperature = 3.0
    policy.model.train()
    assert start == params_sha256(policy)
    for name, parameter in policy.named_parameters():  # one number anywhere, by one bit
        value = parameter.data.view(-1)[-1].clone()
        parameter.data.view(-1)[-1] = torch.nextafter(value, torch.tensor(9.0))
        assert params_sha256(policy) != start, name
        parameter.data.view(-1)[-1] = value
    assert params_sha256(policy) == start


def test_the_hash_depends_on_names():
    one, other = torch.nn.Module(), torch.nn.Module()
    one.a, other.b = (torch.nn.Linear(2, 2) for _ in range(2))
    other.b.load_state_dict(one.a.state_dict())
    assert params_sha256(one) != params_sha256(other)
    assert params_sha256(one.a) == params_sha256(other.b)


def test_a_bare_policy_says_what_it_lacks():
    prompts = prompts_of()
    for call in (
        lambda p: p.rollout(prompts, 1, seeded()),
        lambda p: p.logprobs(None),
        lambda p: p.encode(prompts, [], seeded()),
        lambda p: p.predict(prompts),
        lambda p: p.hidden_size,
    ):
        with pytest.raises(TypeError, match="Policy (does not|has no)"):
            call(Policy())


# --- save and load -------------------------------------------------------------------------------


def test_what_was_saved_comes_back(checkpoint):
    policy, loaded = sharp_vlm(), VLMPolicy.load(checkpoint)
    assert params_sha256(loaded) == params_sha256(policy)
    assert (loaded.temperature, loaded.max_tokens) == (0.7, 5) and loaded.value_head is None
    policy.temperature, policy.max_tokens = 0.7, 5
    prompts = prompts_of()
    ours, theirs = (p.rollout(prompts, 3, seeded()) for p in (policy, loaded))
    assert ours.outputs == theirs.outputs
    assert torch.equal(ours.logprobs, theirs.logprobs)
    assert not list(checkpoint.glob("*.bin")) and list(checkpoint.glob("*.safetensors"))


def test_the_critic_is_saved_too(tmp_path):
    policy, prompts = sharp_vlm(), prompts_of()
    policy.add_value_head(seeded(5))
    with torch.no_grad():
        policy.value_head.bias.fill_(2.0)
    policy.save(tmp_path)
    loaded = VLMPolicy.load(tmp_path)
    assert params_sha256(loaded) == params_sha256(policy)
    rollout = policy.rollout(prompts, 2, seeded())
    values = [p.evaluate_actions(rollout, values=True).values for p in (policy, loaded)]
    assert torch.equal(*values)


def spoil_weights(folder):
    (folder / "model.safetensors").write_bytes(b"not weights")


def cut_weights(folder):
    path = folder / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1000])


def lose_weights(folder):
    (folder / "model.safetensors").unlink()


def lose_one_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors.pop(sorted(tensors)[3])
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def reshape_one_tensor(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors[sorted(tensors)[3]] = torch.zeros(7)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def pickle_weights(folder):
    """A pickle in place of safetensors: the house reads no pickle, safe loader or not."""
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    lose_weights(folder)


def spoil_config(folder):
    (folder / "config.json").write_text('{"model_type": "llava", ')


def wrong_config(folder):
    (folder / "config.json").write_text("[]")


def spoil_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{")


def lose_tokenizer(folder):
    (folder / "tokenizer.json").unlink()


def spoil_settings(folder):
    (folder / "policy.json").write_text("{")


def unknown_setting(folder):
    (folder / "policy.json").write_text(json.dumps({"temprature": 1.0}))


def spoil_critic(folder):
    (folder / "value_head.safetensors").write_bytes(b"not weights")


def wrong_critic(folder):
    critic = {"weight": torch.zeros(1, 5), "bias": torch.zeros(1)}
    save_file(critic, folder / "value_head.safetensors")


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_weights,
        cut_weights,
        lose_weights,
        lose_one_tensor,
        reshape_one_tensor,
        pickle_weights,
        spoil_config,
        wrong_config,
        spoil_tokenizer,
        lose_tokenizer,
        spoil_settings,
        unknown_setting,
        spoil_critic,
        wrong_critic,
    ],
)
def test_a_spoilt_checkpoint_is_an_error_in_one_line(checkpoint, tmp_path, spoil):
    """Never random weights in place of missing ones, never a traceback."""
    folder = tmp_path / "spoilt"
    shutil.copytree(checkpoint, folder)
    spoil(folder)
    with pytest.raises(UserError, match="spoilt") as error:
        VLMPolicy.load(folder)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["nowhere", "./owner/name", "/nowhere/at/all", "a/b/c"])
def test_a_missing_folder_is_an_error_in_one_line(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as error:
        VLMPolicy.load(name)
    assert "\n" not in str(error.value) and "is not a folder; give a folder" in str(error.value)


def test_a_hub_id_without_network_is_an_error_and_offline_touches_nothing(monkeypatch):
    """HF_HUB_OFFLINE=1 (conftest.py): no name is looked up, no connection opened."""
    touched = []
    for name in ("connect", "connect_ex", "sendto"):
        monkeypatch.setattr(socket.socket, name, lambda *args: touched.append(args))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **rest: touched.append(args))
    with pytest.raises(UserError, match="'nobody/nothing' is neither a folder nor") as error:
        VLMPolicy.load("nobody/nothing")
    assert "\n" not in str(error.value) and not touched


def test_a_local_folder_is_read_without_the_network(checkpoint, monkeypatch):
    """Even when the hub may be asked."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    touched = []
    monkeypatch.setattr(socket.socket, "connect", lambda *args: touched.append(args))
    monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **rest: touched.append(args))
    VLMPolicy.load(checkpoint)
    assert not touched


def test_copies_of_a_policy_with_a_critic_keep_it():
    policy = sharp_vlm()
    policy.add_value_head(seeded())
    twin = copy.deepcopy(policy)
    assert torch.equal(twin.value_head.weight, policy.value_head.weight)
    assert twin.value_head.weight is not policy.value_head.weight
    assert not any(p.requires_grad for p in frozen(policy).value_head.parameters())
