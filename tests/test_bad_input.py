"""A user's mistake ends with exit code 2 and one line that names it; nothing half-written stays.

Three tables of mistakes: those that options alone betray, those in files, and those that show only
while training.  Each entry holds the arguments and a fragment of the line that must come out.
"""

import json
import os
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from minivisrl.cli import main
from minivisrl.mllm.policy import new_vlm

RUN = ["run", "mllm/rlvr-grpo"]
SMALL = "--steps 2 --task.train-prompts 16 --task.eval-prompts 64 --task.max-tokens 4".split()
SMALL += "--trainer.batch-size 2 --trainer.group-size 2".split()
HEADROOM = 4 << 30  # bytes that a test may take; a folder without config.json once took all

REWARDS = """
import math

def raises(completions, **_):
    raise RuntimeError("boom\\nand more")

def nan(completions, **_):
    return [math.nan] * len(completions)

def infinite(completions, **_):
    return [math.inf] + [0.0] * (len(completions) - 1)

def short(completions, **_):
    return [1.0]

def nothing(completions, **_):
    pass

def strings(completions, **_):
    return ["good"] * len(completions)

def no_columns(completions):
    return [0.0] * len(completions)

def leaves(completions, **_):
    raise SystemExit(3)

calls = 0

def raises_late(completions, **_):
    global calls
    calls += 1
    if calls > 1:
        raise KeyError("late")
    return [0.0] * len(completions)

number = 3
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    new_vlm(0, width=32, layers=1).save(folder)
    return folder


@pytest.fixture(scope="module")
def finished(tmp_path_factory, tiny) -> Path:
    """A run that ended well."""
    out = tmp_path_factory.mktemp("finished") / "run"
    assert main([*RUN, "--checkpoint", str(tiny), *SMALL, "--out", str(out)]) == 0
    return out


@pytest.fixture(autouse=True)
def workplace(tmp_path, monkeypatch) -> Iterator[None]:
    """An empty folder to stand in, limited memory, and no traces of a notebook."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "ipykernel", raising=False)
    now = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    limits = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (now + HEADROOM, limits[1]))
    yield
    resource.setrlimit(resource.RLIMIT_AS, limits)


def tree() -> dict[Path, bytes | None]:
    """Everything below the current folder, with the bytes of the files."""
    return {p: p.read_bytes() if p.is_file() else None for p in sorted(Path().rglob("*"))}


def check_line(code: int, stderr: str, fragment: str) -> None:
    """Exit code 2 and exactly one line, which names the mistake."""
    lines = [line for line in stderr.splitlines() if line.strip()]
    assert code == 2, stderr
    assert len(lines) == 1 and "Traceback" not in stderr, stderr
    assert lines[0].startswith("minivisrl: ") and fragment in lines[0], lines[0]
    assert len(lines[0]) < 500


def refused(args: list[str], fragment: str, capsys) -> None:
    capsys.readouterr()
    code = main(args)
    out, err = capsys.readouterr()
    check_line(code, err, fragment)
    assert out == ""


# ------------------------------------------------------------------------------------------------
# What options alone betray: no folder appears.

OPTIONS = {
    "unknown command": ("frob", "unknown command 'frob'"),
    "option for a command": ("--frob", "unknown command '--frob'"),
    "empty command": (" ", "unknown command"),
    "list with an option": ("list --frob", "--frob"),
    "papers with an option": ("papers --frob", "--frob"),
    "no recipe": ("run", "needs a recipe"),
    "no recipe but an option": ("run --steps 3", "needs a recipe"),
    "unknown recipe": ("run mllm/nope", "unknown recipe 'mllm/nope'"),
    "unknown field": ("RUN --frob 1", "--frob"),
    "field almost right": ("RUN --optimization.clip-ep .1", "--optimization.clip-eps"),
    "field of another level": ("RUN --clip-eps .1", "--clip-eps"),
    "extra argument": ("RUN surplus", "surplus"),
    "value missing": ("RUN --optimization.clip-eps", "clip-eps"),
    "int: a word": ("RUN --seed x", "--seed"),
    "int: a fraction": ("RUN --steps 1.5", "--steps"),
    "int: too large": ("RUN --seed 99999999999999999999999", "seed"),
    "float: a word": ("RUN --trainer.learning-rate fast", "learning-rate"),
    "bool: a word": ("RUN --shuffle-rewards maybe", "maybe"),
    "choice: none of them": ("RUN --optimization.kl-estimator k9", "k9"),
    "steps negative": ("RUN --steps -3", "steps"),
    "clip_eps negative": ("RUN --optimization.clip-eps -1", "clip_eps"),
    "clip_eps nan": ("RUN --optimization.clip-eps nan", "clip_eps"),
    "kl_coef negative": ("RUN --optimization.kl-coef -1", "kl_coef"),
    "update_epochs zero": ("RUN --optimization.update-epochs 0", "update_epochs"),
    "minibatches zero": ("RUN --optimization.minibatches 0", "minibatches"),
    "minibatches too many": ("RUN --optimization.minibatches 99", "minibatches=99"),
    "constant without length": ("RUN --optimization.aggregate constant", "max_length"),
    "scale beside leave_one_out": ("RUN --optimization.baseline leave_one_out", "scale"),
    "learning rate negative": ("RUN --trainer.learning-rate -1", "learning_rate"),
    "learning rate nan": ("RUN --trainer.learning-rate nan", "learning_rate"),
    "weight decay negative": ("RUN --trainer.weight-decay -1", "weight_decay"),
    "batch size zero": ("RUN --trainer.batch-size 0", "batch_size"),
    "batch larger than prompts": ("RUN --trainer.batch-size 100", "batch_size=100"),
    "group size zero": ("RUN --trainer.group-size 0", "group_size"),
    "prompt set empty": ("RUN --task.train-prompts 0", "prompt"),
    "prompt set negative": ("RUN --task.train-prompts -5", "prompt"),
    "evaluation set empty": ("RUN --task.eval-prompts 0", "prompt"),
    "temperature zero": ("RUN --task.temperature 0", "temperature"),
    "temperature negative": ("RUN --task.temperature -1", "temperature"),
    "max_tokens zero": ("RUN --task.max-tokens 0", "max_tokens"),
    "question kind unknown": ("RUN --task.kinds nope", "nope"),
    "question kinds none": ("RUN --task.kinds", "kinds"),
    "device unknown": ("RUN --device tpu", "tpu"),
    "policy unknown": ("RUN --policy x", "policy='x'"),
    "pretrain nothing": ("pretrain", "vlm"),
    "pretrain unknown": ("pretrain nope", "unknown checkpoint 'nope'"),
    "pretrain field": ("pretrain vlm --frob", "--frob"),
    "pretrain steps zero": ("pretrain vlm --steps 0", "steps"),
    "pretrain steps negative": ("pretrain vlm --steps -1", "steps"),
    "pretrain rate negative": ("pretrain vlm --sft.learning-rate -1", "learning_rate"),
    "pretrain images zero": ("pretrain vlm --steps 1 --annotators.images 0", "images"),
    "grid seeds zero": ("grid --seeds 0", "seeds"),
    "grid jobs zero": ("grid --jobs 0", "jobs"),
    "grid controls negative": ("grid --controls -1", "controls"),
    "grid cell unknown": ("grid --cells mllm/nope", "unknown recipe 'mllm/nope'"),
    "grid field": ("grid --frob", "--frob"),
    "grid extra argument": ("grid surplus", "surplus"),
}


def expand(line: str, tiny: Path) -> list[str]:
    """`RUN` stands for a small run of the tiny model; what follows it wins."""
    words = line.split() if line.strip() else [line]
    return [*RUN, "--checkpoint", str(tiny), *SMALL, *words[1:]] if words[0] == "RUN" else words


@pytest.mark.parametrize("case", OPTIONS)
def test_mistakes_in_options(case, tiny, capsys):
    line, fragment = OPTIONS[case]
    refused(expand(line, tiny), fragment, capsys)
    assert tree() == {}


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_cuda_on_a_machine_without(tiny, capsys):
    refused([*RUN, *SMALL, "--checkpoint", str(tiny), "--device", "cuda"], "no CUDA GPU", capsys)
    assert tree() == {}


@pytest.mark.parametrize("prompts", ["1", "5", "63"])
def test_few_evaluation_prompts_are_no_mistake(prompts, tiny, capsys):
    """Story: the drift was measured on the first 64 prompts, whether there were 64 or not."""
    args = [*RUN, "--checkpoint", str(tiny), *SMALL, "--task.eval-prompts", prompts]
    assert main(args) == 0 and capsys.readouterr().err == ""


# ------------------------------------------------------------------------------------------------
# Mistakes in files.


def rewrite_weights(folder: Path, change: Callable[[dict], None]) -> None:
    weights = load_file(folder / "model.safetensors")
    change(weights)
    save_file(weights, folder / "model.safetensors", {"format": "pt"})


def drop_a_tensor(weights: dict[str, torch.Tensor]) -> None:
    del weights[next(name for name in weights if "language_model" in name and "q_proj" in name)]


def other_class(folder: Path) -> None:
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1}
    LlamaForCausalLM(LlamaConfig(**sizes, vocab_size=64)).save_pretrained(folder)


def other_width(folder: Path) -> None:
    new_vlm(0, width=16, layers=1).save(folder / "other")
    shutil.copy(folder / "other" / "model.safetensors", folder)


WEIGHTS, CONFIG, SETTINGS = "model.safetensors", "config.json", "policy.json"
SPOILS: dict[str, tuple[Callable[[Path], object], str]] = {
    "weights truncated": (lambda d: os.truncate(d / WEIGHTS, 9000), "header"),
    "weights short": (lambda d: os.truncate(d / WEIGHTS, 300_000), "deserializing"),
    "weights garbage": (lambda d: (d / WEIGHTS).write_bytes(b"x" * 5000), "header"),
    "weights empty": (lambda d: (d / WEIGHTS).write_bytes(b""), "header"),
    "weights gone": (lambda d: (d / WEIGHTS).unlink(), "model.safetensors"),
    "one tensor missing": (lambda d: rewrite_weights(d, drop_a_tensor), "q_proj"),
    "weights of another width": (other_width, "cannot be read"),
    "config gone": (lambda d: (d / CONFIG).unlink(), "config.json"),
    "config not JSON": (lambda d: (d / CONFIG).write_text("{"), "config.json"),
    "config empty": (lambda d: (d / CONFIG).write_text("{}"), "model_type"),
    "another class": (other_class, "llama"),
    "tokenizer gone": (lambda d: (d / "tokenizer.json").unlink(), "tokenizer"),
    "tokenizer not JSON": (lambda d: (d / "tokenizer.json").write_text("{"), "cannot be read"),
    "settings not JSON": (lambda d: (d / SETTINGS).write_text("{"), "policy.json"),
    "settings unknown": (lambda d: (d / SETTINGS).write_text('{"frob": 1}'), "policy.json"),
    "critic garbage": (lambda d: (d / "value_head.safetensors").write_bytes(b"x"), "value_head"),
    "folder empty": (lambda d: [path.unlink() for path in d.iterdir()], "cannot be read"),
}


@pytest.mark.parametrize("case", SPOILS)
def test_a_checkpoint_that_cannot_be_read(case, tiny, tmp_path, capsys):
    """Without a config, transformers would make its default model: 7 B parameters."""
    spoil, fragment = SPOILS[case]
    folder = shutil.copytree(tiny, tmp_path / "spoilt")
    spoil(folder)
    before = tree()
    refused([*RUN, *SMALL, "--checkpoint", str(folder)], fragment, capsys)
    assert tree() == before


@pytest.mark.parametrize("name", ["missing", "a/b/c", "./missing", "nobody/nothing"])
def test_a_checkpoint_that_is_not_there(name, capsys):
    """The last one reads like a hub id; HF_HUB_OFFLINE is set here."""
    fragment = "hub" if name == "nobody/nothing" else "is not a folder"
    refused([*RUN, *SMALL, "--checkpoint", name], fragment, capsys)
    assert tree() == {}


FOLDERS = {
    "a regular file": ("--out file.txt", "file.txt"),
    "below a regular file": ("--out file.txt/run", "file.txt"),
    "deep below a regular file": ("--out file.txt/a/b", "file.txt"),
    "not empty": ("--out full", "full is not empty"),
    "resume a file": ("--resume --out file.txt", "file.txt"),
    "resume nothing": ("--resume --out nowhere", "no checkpoint in nowhere"),
    "resume an unrelated folder": ("--resume --out full", "no checkpoint in full"),
    "resume the default folder": ("--resume", "no checkpoint in runs"),
    "reward: no such file": ("--reward none.py:f", "none.py"),
    "reward: no function named": ("--reward rewards.py", "FILE.py:FUNCTION"),
    "reward: no such function": ("--reward rewards.py:absent", "absent"),
    "reward: not a function": ("--reward rewards.py:number", "number"),
    "reward: not Python": ("--reward file.txt:f", "file.txt"),
    "reward: syntax error": ("--reward broken.py:f", "SyntaxError"),
    "reward: import error": ("--reward imports.py:f", "ModuleNotFoundError"),
    "reward: leaves": ("--reward leaves.py:f", "SystemExit"),
}


def make_files() -> None:
    Path("file.txt").write_text("precious")
    Path("full").mkdir()
    Path("full", "thesis.txt").write_text("precious")
    Path("rewards.py").write_text(REWARDS)
    Path("broken.py").write_text("def f(:\n")
    Path("imports.py").write_text("import surely_not_installed\n")
    Path("leaves.py").write_text("raise SystemExit(4)\n")


def without_caches(files: dict[Path, bytes | None]) -> dict[Path, bytes | None]:
    return {path: data for path, data in files.items() if "__pycache__" not in path.parts}


@pytest.mark.parametrize("case", FOLDERS)
def test_mistakes_in_files(case, tiny, capsys):
    """What was there stays as it was, and nothing comes to it."""
    line, fragment = FOLDERS[case]
    make_files()
    before = tree()
    refused(expand(f"RUN {line}", tiny), fragment, capsys)
    assert without_caches(tree()) == before


PRETRAIN = {
    "a regular file": ("--out file.txt", "file.txt"),
    "below a regular file": ("--out file.txt/run", "file.txt"),
    "not empty": ("--out full", "full is not empty"),
    "resume nothing": ("--resume --out nowhere", "no checkpoint in nowhere"),
}


@pytest.mark.parametrize("case", PRETRAIN)
def test_mistakes_in_files_of_pretrain(case, capsys):
    line, fragment = PRETRAIN[case]
    make_files()
    before = tree()
    refused(["pretrain", "vlm", "--steps", "1", *line.split()], fragment, capsys)
    assert tree() == before


def test_grid_does_not_overwrite_what_it_cannot_read(capsys):
    make_files()
    Path("other.json").write_text('{"some": "other file"}')
    before = tree()
    for name in ("file.txt", "other.json"):
        refused(["grid", "--out", name], name, capsys)
    assert tree() == before


# ------------------------------------------------------------------------------------------------
# Resuming what cannot be resumed.

STATE = Path("run") / "checkpoint" / "state.safetensors"
RESUMES: dict[str, tuple[Callable[[], object], str, str]] = {
    "other seed": (lambda: None, "--seed 1", "seed"),
    "other field": (lambda: None, "--trainer.learning-rate 1", "trainer"),
    "other control": (lambda: None, "--shuffle-rewards", "shuffle_rewards"),
    "checkpoint gone": (lambda: STATE.unlink(), "", "no checkpoint in run"),
    "checkpoint empty": (lambda: STATE.write_bytes(b""), "", "corrupt"),
    "checkpoint garbage": (lambda: STATE.write_bytes(b"x" * 999), "", "corrupt"),
    "checkpoint truncated": (lambda: os.truncate(STATE, 100_000), "", "corrupt"),
    "not a state": (lambda: save_file({"a": torch.zeros(1)}, STATE), "", "corrupt"),
}


@pytest.mark.parametrize("case", RESUMES)
def test_a_run_that_cannot_be_resumed(case, tiny, finished, tmp_path, capsys):
    shutil.copytree(finished, tmp_path / "run")
    spoil, line, fragment = RESUMES[case]
    spoil()
    before = tree()
    refused(expand(f"RUN --steps 3 --resume --out run {line}", tiny), fragment, capsys)
    assert tree() == before


def test_resume_after_the_base_was_exchanged(tiny, tmp_path, capsys):
    """The same options, but under the same name there is a network of another width by now."""
    folder = shutil.copytree(tiny, tmp_path / "base")
    args = expand("RUN --out run --checkpoint base", tiny)
    assert main(args) == 0
    new_vlm(0, width=16, layers=1).save(folder)
    before = tree()
    refused([*args, "--resume", "--steps", "3"], "run", capsys)
    assert tree() == before


# ------------------------------------------------------------------------------------------------
# What shows only while training: a folder may stay, but no result and nothing torn.

WHILE = {
    "raises": ("--reward rewards.py:raises", "'raises' raised RuntimeError: boom and more"),
    "raises late": ("--reward rewards.py:raises_late", "'raises_late' raised KeyError"),
    "returns nan": ("--reward rewards.py:nan", "4 non-finite"),
    "returns infinity": ("--reward rewards.py:infinite", "1 non-finite"),
    "wrong length": ("--reward rewards.py:short", "(1,) for 4 completions"),
    "returns nothing": ("--reward rewards.py:nothing", "'nothing'"),
    "returns strings": ("--reward rewards.py:strings", "'strings'"),
    "takes no columns": ("--reward rewards.py:no_columns", "'no_columns' raised TypeError"),
    "leaves": ("--reward rewards.py:leaves", "'leaves' raised SystemExit"),
    "diverges": ("--trainer.learning-rate inf", "learning rate"),
}


@pytest.mark.parametrize("case", WHILE)
def test_mistakes_that_show_while_training(case, tiny, capsys):
    line, fragment = WHILE[case]
    make_files()
    refused(expand(f"RUN --out run {line}", tiny), fragment, capsys)
    left = {path.name for path in Path("run").rglob("*") if path.is_file()}
    assert left <= {"metrics.jsonl", "state.safetensors", "config.json"}
    rows = [json.loads(line) for line in Path("run", "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == list(range(1, len(rows) + 1))
    assert len(rows) == (case in ("raises late", "diverges"))
    load_file(STATE)


def test_a_mended_reward_goes_on(tiny, capsys):
    """The folder of a run that its reward ended is not lost: mend the file and resume."""
    Path("r.py").write_text("def f(completions, **_):\n    raise ValueError('oops')\n")
    args = expand("RUN --out run --reward r.py:f", tiny)
    refused(args, "oops", capsys)
    Path("r.py").write_text("def f(completions, **_):\n    return [0.0] * len(completions)  # 2\n")
    os.utime("r.py", (0, 0))  # another time than that of the compiled one, if there is one
    assert main([*args, "--resume"]) == 0
    assert json.loads(Path("run", "result.json").read_text())["steps"] == 2


# ------------------------------------------------------------------------------------------------
# The same from outside, where warnings of libraries and the exit of the interpreter count too.


def from_outside(args: list[str], **environment: str) -> subprocess.CompletedProcess:
    command = [sys.executable, "-m", "minivisrl.cli", *args]
    variables = {**os.environ, **environment}
    return subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)


def test_from_outside_corrupt_checkpoint(tiny, tmp_path):
    shutil.copytree(tiny, tmp_path / "spoilt")
    spoil, fragment = SPOILS["weights truncated"]
    spoil(tmp_path / "spoilt")
    before = tree()
    done = from_outside([*RUN, *SMALL, "--checkpoint", "spoilt"])
    check_line(done.returncode, done.stderr, fragment)
    assert done.stdout == "" and tree() == before


def test_from_outside_reward_that_raises(tiny):
    make_files()
    done = from_outside(expand("RUN --out run --reward rewards.py:raises", tiny))
    check_line(done.returncode, done.stderr, "boom")
    assert done.stdout == "" and not Path("run", "result.json").exists()


def test_from_outside_hub_without_network():
    """Nobody listens at the hub's address; the hub's client says so once, not at each retry."""
    code = "import sys, time\ntime.sleep = lambda seconds: None\nfrom minivisrl.cli import main\n"
    code += f"sys.exit(main({[*RUN, '--checkpoint', 'nobody/nothing']}))"
    variables = {k: v for k, v in os.environ.items() if "proxy" not in k.lower()}
    variables |= {"HF_HUB_OFFLINE": "0", "HF_ENDPOINT": "http://127.0.0.1:9", "HF_HOME": "cache"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, timeout=300)
    check_line(done.returncode, done.stderr, "neither a folder nor reachable on the hub")
    assert done.stdout == "" and not Path("runs").exists()
