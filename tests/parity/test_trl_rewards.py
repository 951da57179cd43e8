"""Our reward functions in TRL's GRPOTrainer, unchanged: called, and logged with the right mean."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from minivisrl.rewards import exact_match, format_reward, numeric_distance, weighted
from minivisrl.worlds.vocabulary import tokenizer

QUESTIONS = [f"how many {word} are there ?" for word in ("circles", "squares", "boxes", "keys")]
ANSWERS = ["1", "2", "3", "4"]


def guesser(folder):
    """A tiny text-only Llama that has learned to answer in tags, but not what: 1, 2, 3 or 4."""
    words = tokenizer()
    config = LlamaConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=1,
        num_attention_heads=4,
        pad_token_id=words.pad_token_id,
        bos_token_id=words.bos_token_id,
        eos_token_id=words.eos_token_id,
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
    texts = [f"{q} <answer> {a} </answer>" for q in QUESTIONS for a in ANSWERS]
    ids = torch.tensor([[*words(text).input_ids, words.eos_token_id] for text in texts])
    labels = ids.clone()
    labels[:, :6] = -100
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-2)
    for _ in range(40):
        loss = model(input_ids=ids, labels=labels).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    words.save_pretrained(folder)


def test_trl_trains_on_our_rewards(tmp_path):
    trl, datasets = pytest.importorskip("trl"), pytest.importorskip("datasets")
    guesser(tmp_path / "model")
    composed = weighted({exact_match: 1.0, format_reward: 0.5})
    calls = []

    def witness(completions, prompts, answer, **columns):
        calls.append((list(completions), list(prompts), list(answer)))
        return [0.0] * len(completions)

    arguments = trl.GRPOConfig(
        output_dir=str(tmp_path / "out"),
        use_cpu=True,
        bf16=False,
        report_to=[],
        save_strategy="no",
        logging_steps=1,
        max_steps=2,
        per_device_train_batch_size=8,
        num_generations=4,
        max_completion_length=5,
        learning_rate=1e-3,
        seed=0,
        disable_tqdm=True,
    )
    records = {"prompt": QUESTIONS * 4, "answer": ANSWERS * 4}
    trainer = trl.GRPOTrainer(
        model=LlamaForCausalLM.from_pretrained(tmp_path / "model"),
        reward_funcs=[exact_match, composed, numeric_distance, witness],
        args=arguments,
        train_dataset=datasets.Dataset.from_dict(records),
        processing_class=PreTrainedTokenizerFast.from_pretrained(tmp_path / "model"),
    )
    before = [parameter.clone() for parameter in trainer.model.parameters()]
    trainer.train()

    logs = [log for log in trainer.state.log_history if "rewards/exact_match/mean" in log]
    assert len(logs) == len(calls) == 2
    for log, (completions, prompts, answers) in zip(logs, calls, strict=True):
        assert len(completions) == 8
        assert all(ANSWERS[QUESTIONS.index(p)] == a for p, a in zip(prompts, answers, strict=True))
        texts = [text.split() for text in completions]
        right = [t == ["<answer>", a, "</answer>"] for t, a in zip(texts, answers, strict=True)]
        tidy = [t[:1] == ["<answer>"] and t[2:] == ["</answer>"] for t in texts]
        gaps = [
            abs(int(t[1]) - int(a)) if ok else 3
            for t, a, ok in zip(texts, answers, tidy, strict=True)
        ]
        mean = {
            "exact_match": sum(right) / 8,
            "exact_match+format_reward": (sum(right) + 0.5 * sum(tidy)) / 8,
            "numeric_distance": sum(1 - gap / 3 for gap in gaps) / 8,
            "witness": 0.0,
        }
        logged = {name: log[f"rewards/{name}/mean"] for name in mean}
        assert logged == pytest.approx(mean)
        assert log["reward"] == pytest.approx(sum(mean.values()))
        assert sum(tidy) >= 4
    assert any(0 < log["rewards/exact_match/mean"] < 1 for log in logs)
    after = list(trainer.model.parameters())
    assert any(not torch.equal(a, b) for a, b in zip(before, after, strict=True))
