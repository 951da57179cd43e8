"""Set-level metrics of policies whose outputs are known."""

import pytest
import torch
from torch import Generator

from minivisrl.evaluation.sets import accuracy, evaluate
from minivisrl.policy import Policy
from minivisrl.rollout import Prompts, Rollout


class Parrot(Policy):
    """Says what its prompt tells it to; sampled completion j of a prompt ends in j."""

    def __init__(self):
        super().__init__()
        self.batches, self.modes = [], []
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def predict(self, prompts):
        self.batches.append(len(prompts))
        self.modes.append((self.training, torch.is_grad_enabled()))
        return list(prompts["prompt"])

    def rollout(self, prompts, group_size, generator):
        self.batches.append(len(prompts))
        outputs = [f"{text} {j}" for text in prompts["prompt"] for j in range(group_size)]
        draws = torch.rand(len(outputs), 1, generator=generator)
        return Rollout(prompts, {}, draws, torch.ones_like(draws), group_size, outputs)


def said(*answers):
    return [f"<answer> {a} </answer>" if a is not None else "no idea at all" for a in answers]


def seven():
    """Seven prompts: four right, two wrong, one without an answer."""
    prompt = said("1", "2", "3", "4", "9", "9", None)
    answer = ["1", "2", "3", "4", "5", "6", "7"]
    return Prompts({"prompt": prompt, "answer": answer, "kind": list("aabbabc")})


@pytest.mark.parametrize("batch_size", [1, 3, 7, 256])
def test_the_score_is_the_mean_in_batches_of_any_size(batch_size):
    policy, prompts = Parrot(), seven()
    result = evaluate(policy, prompts, batch_size=batch_size)
    assert result.scores.tolist() == [1, 1, 1, 1, 0, 0, 0]
    assert result.score == pytest.approx(4 / 7)
    assert result.outputs == prompts["prompt"] and result.prompts["answer"] == prompts["answer"]
    assert sum(policy.batches) == 7 and max(policy.batches) == min(7, batch_size)
    assert accuracy(Parrot(), prompts, batch_size=batch_size) == pytest.approx(4 / 7)


def test_scores_by_column():
    result = evaluate(Parrot(), seven())
    assert result.by("kind") == pytest.approx({"a": 2 / 3, "b": 2 / 3, "c": 0.0})
    assert list(result.by("kind")) == ["a", "b", "c"]
    assert result.extracted == pytest.approx(6 / 7)
    assert result.lengths() == [3] * 6 + [4]


def test_evaluation_is_greedy_in_eval_mode_and_without_gradient():
    policy = Parrot().train()
    evaluate(policy, seven())
    assert policy.modes == [(False, False)]


def test_samples_are_scored_against_their_own_prompt():
    """Three draws a prompt: rows i * 3 + j, columns repeated alike."""
    prompts = Prompts({"prompt": ["x", "y"], "answer": ["1", "2"], "kind": ["a", "b"]})
    seen = {}

    def ends_with_answer(completions, prompts, answer, kind):
        seen.update(completions=completions, prompts=prompts, answer=answer, kind=kind)
        return [float(text.endswith(a)) for text, a in zip(completions, answer, strict=True)]

    for batch_size in (1, 2):
        generator = Generator().manual_seed(0)
        result = evaluate(
            Parrot(),
            prompts,
            ends_with_answer,
            samples=3,
            generator=generator,
            batch_size=batch_size,
        )
        assert result.outputs == ["x 0", "x 1", "x 2", "y 0", "y 1", "y 2"]
        assert seen["prompts"] == ["x"] * 3 + ["y"] * 3 and seen["kind"] == list("aaabbb")
        assert result.scores.tolist() == [0, 1, 0, 0, 0, 1]
        assert result.by("kind") == pytest.approx({"a": 1 / 3, "b": 1 / 3})
        assert not torch.equal(generator.get_state(), Generator().manual_seed(0).get_state())


def test_draws_need_a_generator():
    """Without one a policy decodes greedily: the draws would all be the same."""
    with pytest.raises(ValueError, match="generator"):
        evaluate(Parrot(), seven(), samples=4)


def test_tensor_columns_and_scores_are_fine():
    prompts = Prompts({"prompt": ["a", "b", "c"], "image": torch.arange(3.0)[:, None]})
    result = evaluate(Parrot(), prompts, lambda completions, image, **_: image[:, 0], batch_size=2)
    assert result.scores.tolist() == [0, 1, 2] and result.score == 1.0
