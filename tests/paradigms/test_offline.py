"""The offline loop: pairing, shared draws, the optimum of DPO and IPO, KTO, control, resume."""

import math

import pytest
import torch
from recorded import Recorded, seeded

from minivisrl import UserError
from minivisrl.mllm.policy import new_vlm
from minivisrl.paradigms.dpo import DPOConfig
from minivisrl.paradigms.offline import (
    DPO,
    KTO,
    KTOConfig,
    OfflineConfig,
    OfflineTrainer,
    encode_pairs,
    shuffled_pairs,
    unpaired,
)
from minivisrl.policy import frozen
from minivisrl.rollout import PreferencePairs, Prompts, Rollout


def pairs_of(chosen, rejected, prompts=None):
    prompts = list(range(len(chosen))) if prompts is None else prompts
    return PreferencePairs(Prompts({"prompt": prompts}), chosen, rejected)


def train(policy, pairs, optimization, *, steps=300, lr=0.05, seed=0, **options):
    cfg = OfflineConfig(**{"batch_size": len(pairs), "learning_rate": lr} | options)
    trainer = OfflineTrainer(policy, pairs, optimization, cfg, seeded(seed))
    return [trainer.step() for _ in range(steps)]


def noisy_preferences():
    """Three outputs worth 0, log 3 and log 9: Bradley-Terry odds of 3, 3 and 9 to 1, exactly."""
    wins = [(1, 0, 15), (0, 1, 5), (2, 1, 15), (1, 2, 5), (2, 0, 18), (0, 2, 2)]
    rows = [([a], [b]) for a, b, count in wins for _ in range(count)]
    return pairs_of([a for a, _ in rows], [b for _, b in rows], [0] * len(rows))


def test_pairs_lie_side_by_side_and_share_their_draws():
    """Chosen first; one number per pair, another for the next pair, and the stream moves on."""
    policy, pairs = Recorded(3, 2, 2), pairs_of([[1, 1]] * 3, [[0, 0], [0, 1], [1, 0]])
    generator = seeded()
    rollout = encode_pairs(policy, pairs, generator)
    assert rollout.group_size == 2 and rollout.prompts["prompt"] == [0, 1, 2]
    assert rollout.outputs == [[1, 1], [0, 0], [1, 1], [0, 1], [1, 1], [1, 0]]
    assert rollout.actions["tokens"].tolist() == rollout.outputs
    noise = rollout.actions["noise"].view(3, 2)
    assert torch.equal(noise[:, 0], noise[:, 1]) and len(set(noise[:, 0].tolist())) == 3
    again = encode_pairs(policy, pairs, generator).actions["noise"]
    assert not torch.equal(again, rollout.actions["noise"])


def test_the_first_step_is_log_2_with_a_gradient_of_half_beta():
    """At pi = ref the gradient is -beta / 2 (grad log pi(chosen) - grad log pi(rejected))."""
    policy = Recorded(2, 3, 2, end=2).randomise(0)
    pairs = pairs_of([[1, 0], [2, 0]], [[0, 1], [1, 1]])
    dpo = DPO(DPOConfig(dpo_beta=0.4))
    batch = dpo.compare(policy, frozen(policy), pairs, seeded())
    loss, stats = dpo.loss(policy.evaluate_actions(batch.rollout), batch)
    assert loss.item() == pytest.approx(math.log(2)) and stats["reward_margin"].item() == 0.0
    rows = policy.row_logprobs(batch.rollout)
    expected = -0.2 * (rows[0::2] - rows[1::2]).mean()
    got, wanted = (torch.autograd.grad(x, policy.logits)[0] for x in (loss, expected))
    assert torch.allclose(got, wanted) and wanted.abs().max() > 0.01


@pytest.mark.parametrize("dpo_beta", [0.5, 1.0])
def test_dpo_finds_the_policy_that_rlhf_aims_at(dpo_beta):
    """Eqs. (4) and (5) share their optimum, pi_ref exp(r / beta) / Z; here with 1 : 3 : 9."""
    policy = Recorded(1, 3, 1).randomise(3, scale=0.5)
    start = policy.logits.detach().softmax(-1)[0, 0]
    rows = train(policy, noisy_preferences(), DPO(DPOConfig(dpo_beta=dpo_beta)))
    optimum = start * torch.tensor([1.0, 3.0, 9.0], dtype=torch.float64) ** (1 / dpo_beta)
    found = policy.logits.detach().softmax(-1)[0, 0]
    assert found.tolist() == pytest.approx((optimum / optimum.sum()).tolist(), abs=5e-3)
    assert rows[0]["loss"] == pytest.approx(math.log(2)) and rows[-1]["loss"] < 0.53
    assert rows[-1]["reward_margin"] > 0 and rows[-1]["accuracy"] == pytest.approx(0.8)


def test_ipo_stops_at_its_margin():
    """One pair that is always labelled the same way: DPO runs off, IPO stops at 1 / (2 beta)."""
    pairs, ratios = pairs_of([[1]], [[0]]), {}
    for loss in ("ipo", "sigmoid"):
        policy = Recorded(1, 2, 1)
        train(policy, pairs, DPO(DPOConfig(dpo_beta=0.25, loss=loss)), steps=300)
        ratios[loss] = (policy.logits[0, 0, 1] - policy.logits[0, 0, 0]).item()
    assert ratios["ipo"] == pytest.approx(2.0, abs=0.01) and ratios["sigmoid"] > 5


def test_the_reference_stays_where_it_was():
    policy = Recorded(1, 3, 1)
    cfg = OfflineConfig(batch_size=4, learning_rate=0.1)
    trainer = OfflineTrainer(policy, noisy_preferences(), DPO(DPOConfig()), cfg, seeded())
    for _ in range(3):
        trainer.step()
    assert policy.logits.abs().max() > 0.1 and trainer.ref_policy.logits.abs().max() == 0


def test_labels_at_random_teach_nothing():
    """Share of the best of three outputs: start .333, optimum .890.

    Seeds 0-7: DPO .855 +- .009 (least .835); labels at random .382 +- .133, so their mean +- .047.
    """
    true, control = [], []
    for seed in range(8):
        for shares, shuffle in ((true, False), (control, True)):
            policy, pairs = Recorded(1, 3, 1), noisy_preferences()
            pairs = shuffled_pairs(pairs, seeded(seed)) if shuffle else pairs
            cfg = DPOConfig(dpo_beta=0.5)
            train(policy, pairs, DPO(cfg), steps=60, batch_size=32, seed=seed)
            shares.append(policy.logits.softmax(-1)[0, 0, 2].item())
    assert min(true) > 0.8
    assert sum(control) / 8 < 0.57


def test_shuffled_pairs_swap_outputs_within_a_pair():
    count = 400
    pairs = pairs_of([[i, 1] for i in range(count)], [[i, 0] for i in range(count)])
    mixed = shuffled_pairs(pairs, seeded())
    assert [a[0] for a in mixed.chosen] == [b[0] for b in mixed.rejected] == list(range(count))
    assert all(a[1] + b[1] == 1 for a, b in zip(mixed.chosen, mixed.rejected, strict=True))
    assert 150 < sum(a[1] for a in mixed.chosen) < 250
    images = pairs_of(torch.ones(count, 1), torch.zeros(count, 1))
    mixed = shuffled_pairs(images, seeded())
    assert torch.equal(mixed.chosen + mixed.rejected, torch.ones(count, 1))


def test_unpaired_gives_each_output_its_thumb():
    single = unpaired(pairs_of([[1], [2]], [[3], [4]], [7, 8]))
    assert single["output"] == [[1], [2], [3], [4]] and single["prompt"] == [7, 8, 7, 8]
    assert list(single["desirable"]) == [True, True, False, False]


def test_kto_measures_drift_on_other_prompts_outputs():
    """z: the mean log-ratio of output i - 1 under prompt i, by hand; the loss moves by sigma(z)."""
    policy, reference = Recorded(3, 2, 1), Recorded(3, 2, 1)
    policy.logits.data[:, 0, 1] = torch.tensor([2.0, 1.0, -3.0])
    records = Prompts({"prompt": [0, 1, 2], "output": [[1], [0], [0]], "desirable": [1, 0, 1]})
    job = KTO(KTOConfig(score=DPOConfig(dpo_beta=1.0)))
    batch = job.compare(policy, reference, records, seeded())
    logs = policy.logits.log_softmax(-1)[:, 0] + math.log(2)
    others = torch.stack([logs[0, 0], logs[1, 1], logs[2, 0]])  # outputs 0, 1, 0
    assert torch.allclose(batch.unrelated, others) and batch.advantages.tolist() == [1, -1, 1]
    policy.logits.data[0, 0, 1] = -2.0  # then z is above zero
    batch = job.compare(policy, reference, records, seeded())
    loss, stats = job.loss(policy.evaluate_actions(batch.rollout), batch)
    logs = policy.logits.log_softmax(-1)[:, 0] + math.log(2)
    z = (logs[0, 0] + logs[1, 1] + logs[2, 0]) / 3
    assert z > 0.3 and stats["kl_ref"].item() == pytest.approx(z.item())
    gains = torch.stack([logs[0, 1] - z, z - logs[1, 0], logs[2, 0] - z])  # up, down, up
    assert loss.item() == pytest.approx((1 - gains.sigmoid()).mean().item())


def test_kto_learns_from_single_outputs():
    """Starts at a loss of 1/2; seeds 0-7 after 150 steps: 1.000 of the good output, start .5.

    Without weight on thumbs down, half of the outputs cost nothing.
    """
    pairs = pairs_of([[1]] * 8, [[0]] * 8)
    policy = Recorded(8, 2, 1)
    rows = train(policy, unpaired(pairs), KTO(KTOConfig()), steps=150, batch_size=8)
    assert rows[0]["loss"] == pytest.approx(0.5) and rows[0]["kl_ref"] == 0.0
    assert policy.logits.softmax(-1)[:, 0, 1].mean().item() > 0.98
    assert rows[-1]["chosen_reward"] > 0 > rows[-1]["rejected_reward"]
    up_only = KTO(KTOConfig(undesirable_weight=0.0))
    batch = up_only.compare(policy, frozen(policy), unpaired(pairs), seeded())
    loss, _ = up_only.loss(policy.evaluate_actions(batch.rollout), batch)
    assert loss.item() == pytest.approx(0.25)


def batch_of_first_step(kind, data, **options):
    """What `compare` of a job of class `kind` hands to its loss."""
    seen = []

    class Watch(type(kind)):
        def compare(self, *args):
            seen.append(super().compare(*args))
            return seen[-1]

    policy = Recorded(6, 2, 1)
    OfflineTrainer(policy, data, Watch(kind.cfg), OfflineConfig(**options), seeded()).step()
    return seen[0]


def test_draws_are_rows_not_columns():
    """More noise per pair: each drawn pair comes `draws` times, with noise of its own."""
    pairs = pairs_of([[1]] * 6, [[0]] * 6)
    rollout = batch_of_first_step(DPO(DPOConfig()), pairs, batch_size=2, draws=3).rollout
    assert len(rollout) == 12 and rollout.mask.shape == (12, 1)
    assert sorted(map(rollout.prompts["prompt"].count, set(rollout.prompts["prompt"]))) == [3, 3]
    assert len(set(rollout.actions["noise"].tolist())) == 6  # pairs share, draws do not


def test_kto_never_measures_drift_on_a_records_own_output():
    """With several draws, the next row is another record still; and z carries no gradient."""
    single = unpaired(pairs_of([[0]] * 6, [[1]] * 6)).rows([0, 7])  # outputs 0 and 1
    asked = []

    class Watched(Recorded):
        def encode(self, prompts, outputs, generator):
            asked.append(outputs)
            return super().encode(prompts, outputs, generator)

    cfg = OfflineConfig(batch_size=2, draws=2)
    job = KTO(KTOConfig())
    trainer = OfflineTrainer(Watched(6, 2, 1), single, job, cfg, seeded())
    trainer.step()
    own, others = asked
    assert len(own) == 4 and all(a != b for a, b in zip(own, others, strict=True))
    batch = batch_of_first_step(job, single, batch_size=2)
    assert not batch.unrelated.requires_grad


@pytest.mark.parametrize("kto", [False, True])
def test_resume_goes_on_to_the_same_bits(kto):
    def build():
        pairs = noisy_preferences()
        if kto:
            data, optimization = unpaired(pairs), KTO(KTOConfig())
        else:
            data, optimization = pairs, DPO(DPOConfig())
        cfg = OfflineConfig(batch_size=8, learning_rate=0.05)
        return OfflineTrainer(Recorded(1, 3, 1), data, optimization, cfg, seeded())

    whole, first, second = build(), build(), build()
    rows = [whole.step() for _ in range(6)]
    for _ in range(3):
        first.step()
    second.load_state_dict(first.state_dict())
    assert [second.step() for _ in range(3)] == rows[3:] and second.steps == 6
    assert torch.equal(second.policy.logits, whole.policy.logits)


def described(count=6):
    """Images of one colour each, with a right and a wrong word, the wrong one longer."""
    images = torch.zeros(count, 3, 32, 32)
    for row in range(count):
        images[row, row % 3] = 1.0
    names = ["red", "green", "blue"]
    chosen = [names[row % 3] for row in range(count)]
    rejected = [f"a {names[(row + 1) % 3]} {'circle ' * (row % 2)}" for row in range(count)]
    prompts = Prompts({"image": images, "prompt": ["what color ?"] * count})
    return PreferencePairs(prompts, chosen, rejected)


def test_a_vlm_scores_a_pair_as_it_scores_each_output_alone():
    """Ragged lengths and a prompt computed once for two outputs: the same log-probs."""
    policy, pairs = new_vlm(0, width=32, layers=1), described()
    both = encode_pairs(policy, pairs, seeded())
    together = (policy.logprobs(both) * both.mask).sum(1).view(-1, 2)
    for column, outputs in enumerate((pairs.chosen, pairs.rejected)):
        alone: Rollout = policy.encode(pairs.prompts, outputs, seeded())
        expected = (policy.logprobs(alone) * alone.mask).sum(1)
        assert torch.allclose(together[:, column], expected, atol=1e-4)


def test_a_vlm_learns_its_pairs():
    policy = new_vlm(0, width=32, layers=1)
    rows = train(policy, described(), DPO(DPOConfig()), steps=25, lr=3e-3)
    assert rows[0]["loss"] == pytest.approx(math.log(2), abs=1e-4)
    assert rows[-1]["accuracy"] == 1.0 and rows[-1]["loss"] < 0.3


def test_mistakes_are_named():
    with pytest.raises(UserError, match="batch_size=32 exceeds the 1 pairs"):
        OfflineTrainer(
            Recorded(1, 2, 1), pairs_of([[1]], [[0]]), DPO(DPOConfig()), OfflineConfig(), seeded()
        )
    for wrong in ({"batch_size": 0}, {"draws": 0}, {"learning_rate": 0.0}):
        with pytest.raises(UserError, match=f"OfflineConfig.{next(iter(wrong))}"):
            OfflineConfig(**wrong)
    with pytest.raises(UserError, match="KTOConfig.desirable_weight=-1"):
        KTOConfig(desirable_weight=-1)
