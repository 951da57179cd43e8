r"""What a policy is: sample episodes, score them again, be saved and loaded.

Survey: section 2.1, Eq. (2).
Symbols: pi_theta -> `Policy.model`, V_psi -> `Policy.value_head`, pi_ref -> `frozen(policy)`.
Departs: the critic shares the trunk of the policy, where table 1 lists it as a network of its own.

This is the only module that may use the network, and only when a hub id is asked for.
"""

from __future__ import annotations

import copy
import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Generator, Tensor, nn
from torch.distributions import Distribution

from minivisrl import UserError
from minivisrl.rollout import Prompts, Rollout


@dataclass(frozen=True)
class ActionStats:
    """What one forward pass says about the actions of a rollout; everything is (N, T).

    `values` is None unless asked for; `dist` is the torch distribution over each column's action.
    """

    logprobs: Tensor
    entropy: Tensor
    values: Tensor | None
    dist: Distribution


class Policy(nn.Module):
    """The contract between pillars and algorithms.  A pillar fills in the first four methods."""

    model: nn.Module
    value_head: nn.Linear | None

    def __init__(self) -> None:
        super().__init__()
        self.register_module("value_head", None)  # a class attribute would hide the module

    def rollout(self, prompts: Prompts, group_size: int, generator: Generator) -> Rollout:
        """Sample `group_size` episodes per prompt, with the log-probs of the sampling weights."""
        raise TypeError(f"{type(self).__name__} does not sample")

    def evaluate_actions(self, rollout: Rollout, *, values: bool = False) -> ActionStats:
        """Score the actions of a rollout with gradients, in one forward pass."""
        raise TypeError(f"{type(self).__name__} does not score")

    def encode(self, prompts: Prompts, outputs: list, generator: Generator) -> Rollout:
        """Given outputs as a rollout; its `logprobs` are zeros, for nobody sampled them."""
        raise TypeError(f"{type(self).__name__} does not encode")

    def predict(self, prompts: Prompts) -> list:
        """The deterministic output for each prompt (greedy decoding, or no sampling noise)."""
        raise TypeError(f"{type(self).__name__} does not predict")

    @property
    def hidden_size(self) -> int:
        """Width of the features that the value head reads."""
        raise TypeError(f"{type(self).__name__} has no features")

    @property
    def device(self) -> torch.device:
        """Where the parameters are."""
        return next(self.parameters()).device

    def logprobs(self, rollout: Rollout) -> Tensor:
        """(N, T) log-probabilities of a rollout's actions under the current weights.  Eq. (2)."""
        return self.evaluate_actions(rollout).logprobs

    def add_value_head(self, generator: Generator) -> None:
        """Give the policy a critic: one linear layer on the trunk's features."""
        weight = 0.01 * torch.randn(1, self.hidden_size, generator=generator)
        self.value_head = nn.Linear(self.hidden_size, 1)
        self.value_head.load_state_dict({"weight": weight, "bias": torch.zeros(1)})
        self.value_head.to(self.device)

    def load_value_head(self, path: Path) -> None:
        """Read the critic from a safetensors file; a ValueError names the file."""
        try:
            self.add_value_head(Generator())
            self.value_head.load_state_dict(load_file(path))
        except (SafetensorError, RuntimeError) as error:
            raise ValueError(f"{path.name} does not fit: {error}") from error

    def state_values(self, features: Tensor) -> Tensor:
        """(..., D) -> (...): the critic's values.

        Raises:
            ValueError: the policy has no critic.
        """
        if self.value_head is None:
            raise ValueError("this policy has no critic; call add_value_head(generator) first")
        return self.value_head(features).squeeze(-1)


def frozen(policy: Policy) -> Policy:
    """A copy that no gradient reaches: the reference policy."""
    return copy.deepcopy(policy).requires_grad_(False).eval()


def params_sha256(module: nn.Module) -> str:
    """Hash of all parameters in order of their names: equal weights, equal hash."""
    digest = hashlib.sha256()
    for name, parameter in sorted(module.named_parameters()):
        digest.update(name.encode())
        digest.update(parameter.detach().float().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def quiet() -> None:
    """Silence the libraries' warnings and progress bars; errors still raise."""
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging

    hub_logging.set_verbosity_error()  # its retries would be lines of their own
    logging.set_verbosity_error()
    logging.disable_progress_bar()


def load_pretrained(cls: Any, folder_or_hub_id: str | Path, **options: Any) -> Any:
    """`cls.from_pretrained` on a local folder, or on a hub id if no such folder exists.

    Raises:
        UserError: no such folder, weights that cannot be read, or a hub that cannot be reached.
    """
    quiet()
    name, folder = str(folder_or_hub_id), Path(folder_or_hub_id)
    is_hub_id = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    if not folder.is_dir() and not is_hub_id:
        raise UserError(
            f"checkpoint {name!r} is not a folder; give a folder or a hub id OWNER/NAME"
        )
    with readable(name):
        return cls.from_pretrained(name, local_files_only=folder.is_dir(), **options)


def load_model(cls: Any, folder_or_hub_id: str | Path, **options: Any) -> Any:
    """`load_pretrained` for weights: safetensors only, and none may be missing or misshapen."""
    with readable(str(folder_or_hub_id)):
        _check_class(cls, Path(folder_or_hub_id))
    model, report = load_pretrained(
        cls, folder_or_hub_id, use_safetensors=True, output_loading_info=True, **options
    )
    with readable(str(folder_or_hub_id)):
        for problem in ("missing_keys", "mismatched_keys"):
            if names := sorted(map(str, report.get(problem) or ())):
                raise ValueError(f"{problem.replace('_', ' ')}: {', '.join(names)}")
    return model


def _check_class(cls: Any, folder: Path) -> None:
    """A folder of weights needs a config.json of the right class: defaults would be 7 B wide."""
    if not folder.is_dir():
        return
    if not (folder / "config.json").is_file():
        raise ValueError("config.json is missing")
    found = read_json(folder / "config.json").get("model_type")
    if found != cls.config_class.model_type:
        raise ValueError(f"config.json: model_type {found!r}, not {cls.config_class.model_type!r}")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file; a ValueError names the file."""
    try:
        value = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path.name} is not JSON") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path.name} is not a JSON object")
    return value


@contextmanager
def readable(name: str) -> Iterator[None]:
    """Turn whatever goes wrong while a checkpoint is read into one line that names it."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:  # the libraries raise a dozen types on spoilt files
        reason = " ".join(str(error).split())[:160] or type(error).__name__
        if Path(name).is_dir():
            advice = f"cannot be read ({reason}); use a folder that `save` or `pretrain` wrote"
        else:
            advice = f"is neither a folder nor reachable on the hub ({reason})"
        raise UserError(f"checkpoint {name!r} {advice}") from error
