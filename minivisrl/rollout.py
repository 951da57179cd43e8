r"""The only data that crosses rooms: prompts, rollouts and preference pairs.

Survey: section 2.1, Eqs. (1), (2).
Symbols: p -> a record of `Prompts`, a_t -> column t of `actions`, log pi(a_t | s_t) -> `logprobs`.
Departs: the state s_t of Eq. (1) is never stored: a policy rebuilds it from the prompt and the
    actions before column t.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor
from torch.nn.functional import pad

from minivisrl import UserError


def _take(column: Any, index: list[int]) -> Any:
    """Rows `index` of a tensor or of any sequence."""
    return column[index] if isinstance(column, Tensor) else [column[i] for i in index]


def _as_list(index: Tensor | Sequence[int]) -> list[int]:
    return index.tolist() if isinstance(index, Tensor) else list(index)


@dataclass(frozen=True)
class Prompts:
    """B prompts as a dict of columns (`prompt`, `image`, `answer`, ...), each B long.

    A column is a tensor with first axis B or a list; a reward function receives every column.

    Raises:
        UserError: no column, no record, or columns of different lengths.
    """

    columns: dict[str, Any]

    def __post_init__(self) -> None:
        lengths = {name: len(column) for name, column in self.columns.items()}
        if not lengths or min(lengths.values()) == 0:
            raise UserError("the prompt set is empty: give at least one record")
        if len(set(lengths.values())) > 1:
            raise UserError(f"prompt columns differ in length: {lengths}; make them equal")

    def __len__(self) -> int:
        return len(next(iter(self.columns.values())))

    def __getitem__(self, name: str) -> Any:
        if name not in self.columns:
            raise UserError(f"prompts have no column {name!r}; they have {sorted(self.columns)}")
        return self.columns[name]

    def rows(self, index: Tensor | Sequence[int]) -> Prompts:
        """The records `index`, in that order; repeats are allowed."""
        index = _as_list(index)
        return Prompts({name: _take(column, index) for name, column in self.columns.items()})

    def repeat(self, group_size: int) -> Prompts:
        """(B) -> (B * group_size): row i * group_size + j is prompt i."""
        return self.rows(torch.arange(len(self)).repeat_interleave(group_size))

    def sample(self, batch_size: int, generator: Generator) -> Prompts:
        """`batch_size` records drawn without replacement (anew at every call).

        Raises:
            UserError: fewer records than `batch_size`.
        """
        if batch_size > len(self):
            raise UserError(f"batch_size={batch_size} exceeds the {len(self)} prompts there are")
        return self.rows(torch.randperm(len(self), generator=generator)[:batch_size])

    @staticmethod
    def cat(parts: Sequence[Prompts]) -> Prompts:
        """Concatenate prompt sets that have the same columns."""
        columns = {name: [part[name] for part in parts] for name in parts[0].columns}
        return Prompts({name: _join(column) for name, column in columns.items()})


def _join(parts: list[Any]) -> Any:
    return torch.cat(parts) if isinstance(parts[0], Tensor) else [x for part in parts for x in part]


@dataclass(frozen=True)
class Rollout:
    r"""N = B * group_size episodes: what was done, how likely it was, and what came out.

    The trajectory of Eqs. (1) and (2): column t holds a_t drawn from pi(. | p, a_1 .. a_{t-1}).

    Args:
        prompts: B prompts; row i * group_size + j belongs to prompt i.
        actions: tensors with first axis N: all that re-scoring needs.
        logprobs: (N, T), natural logarithm, of the weights that sampled; no gradient.
        mask: (N, T), 1 on the policy's own actions.  May have gaps.
        group_size: completions per prompt.
        outputs: N things that a reward can judge.
    """

    prompts: Prompts
    actions: dict[str, Tensor]
    logprobs: Tensor
    mask: Tensor
    group_size: int
    outputs: Sequence[Any]

    def __post_init__(self) -> None:
        rows = len(self.prompts) * self.group_size
        lengths = {name: len(action) for name, action in self.actions.items()}
        lengths |= {"logprobs": len(self.logprobs), "mask": len(self.mask)}
        if wrong := {name: n for name, n in lengths.items() if n != rows}:
            raise ValueError(f"expected {rows} rows (prompts * group_size), got {wrong}")
        if self.logprobs.shape != self.mask.shape or len(self.outputs) != rows:
            raise ValueError("logprobs and mask must share one shape, with one output a row")

    def __len__(self) -> int:
        return len(self.logprobs)

    def rows(self, index: Tensor | Sequence[int]) -> Rollout:
        """Any rows, each with its own prompt: the result has group_size 1."""
        index = _as_list(index)
        prompts = self.prompts.rows([i // self.group_size for i in index])
        return self._select(index, prompts, 1)

    def groups(self, index: Tensor | Sequence[int]) -> Rollout:
        """Whole groups, so that the completions of a prompt stay side by side."""
        index, size = _as_list(index), self.group_size
        rows = [i * size + j for i in index for j in range(size)]
        return self._select(rows, self.prompts.rows(index), size)

    def _select(self, rows: list[int], prompts: Prompts, group_size: int) -> Rollout:
        return Rollout(
            prompts=prompts,
            actions={name: action[rows] for name, action in self.actions.items()},
            logprobs=self.logprobs[rows],
            mask=self.mask[rows],
            group_size=group_size,
            outputs=_take(self.outputs, rows),
        )

    def map(self, function: Callable[[Tensor], Tensor]) -> Rollout:
        """Apply `function` to every tensor (`.to(device)`, say); outputs and prompts stay."""
        actions = {name: function(action) for name, action in self.actions.items()}
        return replace(
            self, actions=actions, logprobs=function(self.logprobs), mask=function(self.mask)
        )

    @staticmethod
    def cat(parts: Sequence[Rollout]) -> Rollout:
        """Stack rollouts of one group size; shorter ones are padded with masked columns."""
        if len({part.group_size for part in parts}) != 1:
            raise ValueError("Rollout.cat needs one group_size; call rows() first")
        actions = {
            name: _stack([part.actions[name] for part in parts], parts) for name in parts[0].actions
        }
        return Rollout(
            prompts=Prompts.cat([part.prompts for part in parts]),
            actions=actions,
            logprobs=_stack([part.logprobs for part in parts], parts),
            mask=_stack([part.mask for part in parts], parts),
            group_size=parts[0].group_size,
            outputs=_join([part.outputs for part in parts]),
        )


def _stack(tensors: Sequence[Tensor], parts: Sequence[Rollout]) -> Tensor:
    """Concatenate; where axis 1 is the column axis of every part, pad it to the widest."""
    widths = [part.logprobs.shape[1] for part in parts]
    if all(x.ndim > 1 and x.shape[1] == width for x, width in zip(tensors, widths, strict=True)):
        tensors = [pad(x, [0, 0] * (x.ndim - 2) + [0, max(widths) - x.shape[1]]) for x in tensors]
    return torch.cat(tensors)


@dataclass(frozen=True)
class PreferencePairs:
    """B prompts, each with an output that was preferred and one that was not."""

    prompts: Prompts
    chosen: Sequence[Any]
    rejected: Sequence[Any]

    def __post_init__(self) -> None:
        if not len(self.prompts) == len(self.chosen) == len(self.rejected):
            raise UserError("preference pairs need one chosen and one rejected output per prompt")

    def __len__(self) -> int:
        return len(self.prompts)

    def rows(self, index: Tensor | Sequence[int]) -> PreferencePairs:
        """The pairs `index`, in that order."""
        index = _as_list(index)
        return PreferencePairs(
            self.prompts.rows(index), _take(self.chosen, index), _take(self.rejected, index)
        )
