r"""The one offline loop: learn from outputs that were judged before training began.

Survey: section 2.2.2, Eqs. (5), (6).
Symbols: D -> `pairs`, pi_ref -> `ref_policy`, y_A, y_B -> rows 2i and 2i + 1 of an encoded batch.
Departs: a batch is drawn anew at every step, without replacement inside it; `draws` scores every
    pair several times, which matters to policies whose `encode` draws noise. KTO is not in the
    survey.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from math import inf
from types import SimpleNamespace
from typing import Any, Protocol

import torch
from torch import Generator, Tensor

from minivisrl import UserError
from minivisrl.optimization.update import Batch, Stats, update, validate
from minivisrl.paradigms.dpo import DPOConfig, dpo_loss, kto_loss, row_scores
from minivisrl.paradigms.state import restore, snapshot
from minivisrl.policy import ActionStats, Policy, frozen
from minivisrl.rollout import PreferencePairs, Prompts, Rollout

ONE_STEP = SimpleNamespace(update_epochs=1, minibatches=1)  # what `update` asks of a config


@dataclass(frozen=True, kw_only=True)
class OfflineConfig:
    """How recorded outputs are drawn and stepped on."""

    batch_size: int = 32  # B: pairs per step
    draws: int = 1  # rows per output, each encoded with noise of its own
    learning_rate: float = 1e-4  # of AdamW
    decay_steps: int | None = None  # step at which a linear decay reaches zero; None: constant
    weight_decay: float = 0.0  # decoupled
    max_grad_norm: float = 1.0  # gradients are scaled down to this norm

    def __post_init__(self) -> None:
        ranges = dict.fromkeys(["batch_size", "draws", "decay_steps"], (1, inf))
        ranges |= {"weight_decay": (0, inf)}
        validate(self, ranges | dict.fromkeys(["learning_rate", "max_grad_norm"], (1e-12, inf)))


@dataclass(frozen=True, kw_only=True)
class KTOConfig:
    """Learning from thumbs up and down; `score.loss` and `score.label_smoothing` do not apply."""

    score: DPOConfig = field(default_factory=DPOConfig)
    desirable_weight: float = 1.0  # weight of an output with a thumb up
    undesirable_weight: float = 1.0  # weight of an output with a thumb down

    def __post_init__(self) -> None:
        validate(self, dict.fromkeys(["desirable_weight", "undesirable_weight"], (0, inf)))


def encode_pairs(policy: Policy, pairs: PreferencePairs, generator: Generator) -> Rollout:
    """Both outputs of every pair, side by side: groups of two, the chosen one first.

    Chosen and rejected are encoded with generators in the same state, so that a pair shares its
    draws (timestep and noise of a diffusion policy), and only the outputs differ.
    """
    twin = Generator(generator.device)
    twin.set_state(generator.get_state())
    chosen = policy.encode(pairs.prompts, pairs.chosen, generator)
    rejected = policy.encode(pairs.prompts, pairs.rejected, twin)
    order = torch.arange(2 * len(pairs)).view(2, -1).T.flatten()  # (2B,): 0, B, 1, B + 1, ...
    return replace(Rollout.cat([chosen, rejected]).rows(order), prompts=pairs.prompts, group_size=2)


def unpaired(pairs: PreferencePairs) -> Prompts:
    """2B single outputs, columns `output` and `desirable`: what KTO learns from.

    The chosen outputs come first, with a thumb up; the rejected ones follow, with a thumb down.
    """
    sides = zip((pairs.chosen, pairs.rejected), (True, False), strict=True)
    return Prompts.cat(
        [
            Prompts({**pairs.prompts.columns, "output": side, "desirable": [thumb] * len(pairs)})
            for side, thumb in sides
        ]
    )


def shuffled_pairs(pairs: PreferencePairs, generator: Generator) -> PreferencePairs:
    """The control: a coin decides, once, which output of each pair counts as chosen."""
    swap = torch.rand(len(pairs), generator=generator, device=generator.device).cpu() < 0.5  # (B,)
    single, first = unpaired(pairs), torch.arange(len(pairs))
    chosen, rejected = first + len(pairs) * swap, first + len(pairs) * ~swap  # (B,), (B,)
    return PreferencePairs(
        pairs.prompts, single.rows(chosen)["output"], single.rows(rejected)["output"]
    )


class Preference(Protocol):
    """What turns recorded outputs into a loss: `DPO`, `KTO`, or the reward model's objective."""

    needs_reference: bool

    def compare(
        self, policy: Policy, ref_policy: Policy | None, records: Any, generator: Generator
    ) -> Batch: ...

    def loss(self, forward: ActionStats, batch: Batch) -> tuple[Tensor, Stats]: ...


class DPO:
    """Learns from `PreferencePairs` by `dpo_loss`, against a frozen reference."""

    needs_reference = True

    def __init__(self, cfg: DPOConfig) -> None:
        self.cfg = cfg

    def compare(
        self, policy: Policy, ref_policy: Policy, records: PreferencePairs, generator: Generator
    ) -> Batch:
        """2B encoded rows, +1 for a chosen and -1 for a rejected one, with the reference's view."""
        rollout = encode_pairs(policy, records, generator)
        signs = rollout.mask.new_tensor([1.0, -1.0]).repeat(len(records))  # (2B,)
        return Batch(rollout, signs, ref_policy.logprobs(rollout))

    def loss(self, forward: ActionStats, batch: Batch) -> tuple[Tensor, Stats]:
        """The loss of the pairs under the current weights."""
        mask, average = batch.rollout.mask, self.cfg.average
        new = row_scores(forward.logprobs, mask, average).view(-1, 2)  # (B, 2)
        ref = row_scores(batch.ref_logprobs, mask, average).view(-1, 2)  # (B, 2)
        return dpo_loss(new[:, 0], new[:, 1], ref[:, 0], ref[:, 1], self.cfg)


@dataclass(frozen=True)
class KTOBatch(Batch):
    """A batch with the log-ratios (B,) of outputs scored under other records' prompts."""

    unrelated: Tensor | None = None


class KTO:
    """Learns from single outputs: `Prompts` with the columns `output` and `desirable`.

    The reference point z comes from outputs that are scored under the next record's prompt, so a
    record's own output never sets its own reference point.
    """

    needs_reference = True

    def __init__(self, cfg: KTOConfig) -> None:
        self.cfg = cfg

    def compare(
        self, policy: Policy, ref_policy: Policy, records: Prompts, generator: Generator
    ) -> KTOBatch:
        """B encoded rows, +1 for a thumb up and -1 for a thumb down."""
        rollout = policy.encode(records, records["output"], generator)
        signs = torch.as_tensor(records["desirable"]).to(rollout.mask) * 2 - 1  # (B,)
        others = records.rows(torch.arange(len(records)).roll(1))["output"]
        strange = policy.encode(records, others, generator)
        new, ref = (
            row_scores(judge.logprobs(strange), strange.mask, self.cfg.score.average)
            for judge in (policy, ref_policy)
        )  # (B,), (B,)
        return KTOBatch(rollout, signs, ref_policy.logprobs(rollout), unrelated=new - ref)

    def loss(self, forward: ActionStats, batch: KTOBatch) -> tuple[Tensor, Stats]:
        """The loss of the single outputs under the current weights."""
        cfg, mask = self.cfg, batch.rollout.mask
        return kto_loss(
            row_scores(forward.logprobs, mask, cfg.score.average),
            row_scores(batch.ref_logprobs, mask, cfg.score.average),
            batch.advantages > 0,
            cfg.score,
            unrelated=batch.unrelated,
            desirable_weight=cfg.desirable_weight,
            undesirable_weight=cfg.undesirable_weight,
        )


class OfflineTrainer:
    r"""Draw judged outputs, compare, improve.  Eqs. (5), (6) with `DPO`.

    Args:
        pairs: `PreferencePairs` for `DPO` and the reward model, `unpaired(pairs)` for `KTO`.
        optimization: `DPO(cfg)`, `KTO(cfg)` or `BradleyTerry()`.

    Raises:
        UserError: fewer pairs than cfg.batch_size.
    """

    def __init__(
        self,
        policy: Policy,
        pairs: PreferencePairs | Prompts,
        optimization: Preference,
        cfg: OfflineConfig,
        generator: Generator,
    ) -> None:
        if cfg.batch_size > len(pairs):
            raise UserError(f"batch_size={cfg.batch_size} exceeds the {len(pairs)} pairs there are")
        self.policy, self.pairs, self.optimization = policy, pairs, optimization
        self.cfg, self.generator = cfg, generator
        self.ref_policy = frozen(policy) if optimization.needs_reference else None
        self.optimizer = torch.optim.AdamW(
            policy.parameters(), lr=cfg.learning_rate, weight_decay=cfg.weight_decay
        )
        self.steps = 0

    def step(self) -> dict[str, float]:
        """Two beats; the other two happened before training."""
        # Act and judge: draw outputs that somebody produced and somebody labelled.
        generator = self.generator
        order = torch.randperm(len(self.pairs), generator=generator, device=generator.device)
        index = order[: self.cfg.batch_size].repeat(self.cfg.draws)
        records = self.pairs.rows(index)

        # Compare: side by side, with what the reference says of them.
        with torch.no_grad():
            batch = self.optimization.compare(self.policy, self.ref_policy, records, generator)

        # Improve: move the scores of the chosen and of the rejected apart.
        left = 1 - self.steps / self.cfg.decay_steps if self.cfg.decay_steps else 1.0
        for group in self.optimizer.param_groups:
            group["lr"] = self.cfg.learning_rate * max(0.0, left)
        loss_fn, norm = self.optimization.loss, self.cfg.max_grad_norm
        stats = update(self.policy, self.optimizer, batch, loss_fn, ONE_STEP, norm, generator)
        self.steps += 1
        return stats

    def state_dict(self) -> dict[str, Any]:
        """Everything that the next step depends on, besides configuration, pairs and reference."""
        return snapshot(self)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict()`."""
        restore(self, state)
