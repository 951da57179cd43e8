"""TRL's own losses on shared tensors, without a trainer.

`python tests/parity/trl_losses.py` writes golden.json, so that our losses are compared with TRL's
numbers also where TRL is not installed.
"""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import torch

GOLDEN = Path(__file__).with_name("golden.json")
LENGTHS = [5, 3, 1, 4, 2, 5]  # of the six rows of five columns; row 5 also has a gap
GRPO_CASES = {  # name: what TRL's config says
    "grpo": {"loss_type": "grpo"},
    "grpo-kl": {"loss_type": "grpo", "beta": 0.04},
    "grpo-gspo": {"loss_type": "grpo", "importance_sampling_level": "sequence"},
    "bnpo-kl": {"loss_type": "bnpo", "beta": 0.1},
    "dapo": {"loss_type": "dapo", "epsilon_high": 0.28},
    "dapo-entropy": {"loss_type": "dapo", "entropy_coef": 0.01},
    "dr_grpo-kl": {"loss_type": "dr_grpo", "beta": 0.04},
}
DPO_CASES = {
    "dpo-sigmoid": {"loss_types": ["sigmoid"], "beta": 0.1},
    "dpo-ipo": {"loss_types": ["ipo"], "beta": 0.1},
}
KTO_CASES = {"kto": {"beta": 0.1, "desirable_weight": 1.0, "undesirable_weight": 1.5}}


def inputs() -> dict[str, torch.Tensor]:
    """Six rows of five columns, float32; what lies under the mask is drawn too."""
    generator = torch.Generator().manual_seed(0)
    logprobs, old, ref, entropy = torch.randn(4, 6, 5, generator=generator)
    advantages, unrelated = torch.randn(2, 6, generator=generator)
    mask = (torch.arange(5) < torch.tensor(LENGTHS)[:, None]).long()
    mask[5, 2] = 0
    logprobs = -logprobs.abs() - 0.5
    names = {"logprobs": logprobs, "old": logprobs + old / 4, "ref": logprobs + ref / 2}
    names |= {"entropy": entropy.abs(), "mask": mask}
    return names | {"advantages": advantages, "unrelated": unrelated}


def trainer(**fields) -> SimpleNamespace:
    """What the loss functions read from `self`: one process, one accumulation step, training."""
    accelerator = SimpleNamespace(
        gather=lambda x: x,
        gather_for_metrics=lambda x: x,
        reduce=lambda x, reduction: x,
        num_processes=1,
        device=torch.device("cpu"),
    )
    common = {
        "accelerator": accelerator,
        "model": SimpleNamespace(training=True),
        "aux_loss_enabled": False,
        "epsilon_low": 0.2,
        "epsilon_high": 0.2,
        "current_gradient_accumulation_steps": 1,
        "_metrics": defaultdict(lambda: defaultdict(list)),
        "_total_train_tokens": 0,
        "_tp_size": 1,
    }
    return SimpleNamespace(**common | fields)


def grpo(case: dict, tensors: dict[str, torch.Tensor], logprobs: torch.Tensor) -> torch.Tensor:
    from trl import GRPOTrainer

    coefficient = case.get("entropy_coef", 0.0)
    args = {"use_bias_correction_kl": False, "delta": None, "steps_per_generation": 1}
    settings = {
        "beta": 0.0,
        "importance_sampling_level": "token",
        "args": SimpleNamespace(**args),
        "top_entropy_quantile": 1.0,
        "off_policy_mask_threshold": None,
        "use_vllm": False,
        "max_completion_length": 8,
        "_entropy_bonus_enabled": coefficient > 0,
        "use_adaptive_entropy": False,
        "entropy_coef": coefficient,
        "_get_per_token_logps_and_entropies": lambda *a, **k: (logprobs, tensors["entropy"], None),
    }
    me = trainer(**settings | case)
    me.accelerator.sync_gradients = False
    batch = tokens(tensors) | {
        "advantages": tensors["advantages"],
        "old_per_token_logps": tensors["old"],
        "ref_per_token_logps": tensors["ref"],
        "num_items_in_batch": tensors["mask"].sum(),
    }
    return GRPOTrainer._compute_loss(me, None, batch)


def tokens(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Ids are never looked at: our stand-in for the model already knows the log-probs."""
    mask = tensors["mask"]
    prompt = torch.ones(len(mask), 1, dtype=torch.long)
    names = {"prompt_ids": prompt, "prompt_mask": prompt}
    return names | {"completion_ids": mask, "completion_mask": mask}


def rloo(case: dict, tensors: dict[str, torch.Tensor], logprobs: torch.Tensor) -> torch.Tensor:
    from trl import RLOOTrainer

    forward = lambda *a, **k: (logprobs, tensors["entropy"], None)  # noqa: E731
    me = trainer(_get_per_token_logps_and_entropies=forward, **case)
    old = (tensors["old"] * tensors["mask"]).sum(1)
    batch = tokens(tensors) | {"advantages": tensors["advantages"], "old_logps": old}
    return RLOOTrainer._compute_loss(me, None, batch)


def model_of(logprobs: torch.Tensor, tensors: dict[str, torch.Tensor]):
    """A stand-in for a model with TRL's fused head: it scores the labels, 0 outside of them."""
    scores = logprobs * tensors["mask"]
    zeros = torch.zeros_like(scores)
    output = SimpleNamespace(
        log_probs=scores, entropy=zeros, mean_logits=zeros, is_top1=zeros.bool()
    )
    return lambda **kwargs: output


def offline_batch(tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    mask = torch.cat([torch.zeros(6, 1, dtype=torch.long), tensors["mask"]], dim=1)  # prompt of 1
    return {"input_ids": mask, "attention_mask": mask, "completion_mask": mask}


def dpo(case: dict, tensors: dict[str, torch.Tensor], logprobs: torch.Tensor) -> torch.Tensor:
    from trl import DPOTrainer

    settings = {
        "ld_alpha": None,
        "precompute_ref_logps": True,
        "f_divergence_type": "reverse_kl",
        "loss_weights": [1.0],
        "label_smoothing": 0.0,
        "use_weighting": False,
    }
    chosen, rejected = (tensors["ref"] * tensors["mask"]).sum(1).chunk(2)
    batch = offline_batch(tensors) | {"ref_chosen_logps": chosen, "ref_rejected_logps": rejected}
    me = trainer(**settings | case)
    return DPOTrainer._compute_loss(me, model_of(logprobs, tensors), batch, False)


def kto(case: dict, tensors: dict[str, torch.Tensor], logprobs: torch.Tensor) -> torch.Tensor:
    from trl import KTOTrainer

    zeros = torch.zeros(6)
    me = trainer(
        precompute_ref_logps=True,
        calculate_KL=True,
        loss_type="kto",
        _compute_kl_logps=lambda model, batch: tensors["unrelated"],
        **case,
    )
    batch = offline_batch(tensors) | {
        "label": torch.tensor([True, True, False, True, False, False]),
        "ref_logps": (tensors["ref"] * tensors["mask"]).sum(1),
        "ref_KL_logps": zeros,
    }
    return KTOTrainer._compute_loss(me, model_of(logprobs, tensors), batch, False)


def run_all() -> dict[str, dict]:
    """name -> TRL's loss and its gradient with respect to the (6, 5) log-probs."""
    families = ((grpo, GRPO_CASES), (rloo, {"rloo": {}}), (dpo, DPO_CASES), (kto, KTO_CASES))
    results, tensors = {}, inputs()
    for family, cases in families:
        for name, case in cases.items():
            logprobs = tensors["logprobs"].clone().requires_grad_()
            loss = family(case, tensors, logprobs)
            slope = torch.autograd.grad(loss, logprobs)[0]
            results[name] = {"loss": loss.item(), "gradient": slope.tolist()}
    return results


if __name__ == "__main__":
    import trl

    record = {
        "command": "python tests/parity/trl_losses.py",
        "versions": {"trl": trl.__version__, "torch": torch.__version__},
        "inputs": {name: tensor.tolist() for name, tensor in inputs().items()},
        "cases": run_all(),
    }
    GOLDEN.write_text(json.dumps(record) + "\n")
