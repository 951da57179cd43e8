r"""The map: section and equation of the survey -> room, function, chapter, test.

Pinned to version 3 of arXiv 2508.08189 (Wu et al., "Reinforcement Learning for Large Model: A
Survey"; versions 1 and 2 were "Reinforcement Learning in Vision: A Survey" and number differently).
Formulas are re-typeset and every gloss is ours.  A test holds the map to the package, in both
directions: `planned` names what is not built yet, and a planned thing that exists is an error.
"""

from __future__ import annotations

import importlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from minivisrl import DATA, UserError

ARXIV_ID, VERSION = "2508.08189", 3
URL = f"https://arxiv.org/abs/{ARXIV_ID}v{VERSION}"


@dataclass(frozen=True)
class Section:
    """A section of the survey and the rooms of the package that hold it; subsections inherit."""

    number: str
    title: str
    rooms: tuple[str, ...] = ()


@dataclass(frozen=True)
class Chapter:
    """A notebook and the sections it teaches."""

    number: int
    title: str
    sections: tuple[str, ...]
    planned: bool = False


@dataclass(frozen=True)
class Equation:
    """A numbered equation: what it says, and where it is computed, taught and tested."""

    number: int
    section: str
    function: str  # "package.module:name", for `resolve`
    test: str  # file that tests the function
    latex: str
    meaning: str
    symbols: dict[str, str]  # survey's symbol -> name in the code
    planned: bool = False

    @property
    def chapters(self) -> tuple[int, ...]:
        """Numbers of the chapters that teach the section of this equation."""
        return tuple(c.number for c in CHAPTERS if self.section in c.sections)


SECTIONS = (
    Section("1", "Introduction"),
    Section("2", "Preliminary: Reinforcement learning in LLM"),
    Section("2.1", "Notation and problem formulation", ("rollout", "policy", "decoding")),
    Section("2.2", "Alignment paradigms", ("paradigms", "rewards")),
    Section("2.2.1", "Reinforcement learning from human feedback"),
    Section("2.2.2", "Direct preference optimization"),
    Section("2.2.3", "Reinforcement learning with verifiable rewards"),
    Section("2.3", "Policy-optimization algorithms", ("optimization", "paradigms")),
    Section("2.3.1", "Proximal policy optimization"),
    Section("2.3.2", "Group relative policy optimization"),
    Section("3", "Reinforcement learning in vision"),
    Section("3.1", "Multi-modal large language models", ("mllm",)),
    Section("3.1.1", "Conventional RL-based MLLMs"),
    Section("3.1.2", "Spatial and 3D perception"),
    Section("3.1.3", "Image reasoning"),
    Section("3.1.4", "Video reasoning"),
    Section("3.2", "Visual generation", ("generation",)),
    Section("3.2.1", "Image generation"),
    Section("3.2.2", "Video generation"),
    Section("3.2.3", "3D generation"),
    Section("3.2.4", "Reward design and preference modeling", ("rewards",)),
    Section("3.3", "Unified model", ("unified",)),
    Section("3.3.1", "Unified RL"),
    Section("3.3.2", "Task-specific RL"),
    Section("3.4", "Vision-language-action models", ("vla",)),
    Section("3.4.1", "GUI automation"),
    Section("3.4.2", "Visual navigation"),
    Section("3.4.3", "Visual manipulation"),
    Section("4", "Metrics and benchmarks", ("evaluation", "rewards")),
    Section("4.1", "Formalizing metric granularity"),
    Section("4.2", "Evaluation of MLLMs"),
    Section("4.3", "Evaluation of visual generation"),
    Section("4.4", "Evaluation of unified models"),
    Section("4.5", "Evaluation of vision-language-action models"),
    Section("4.6", "Benchmarks"),
    Section("5", "Challenges and future works"),
    Section("5.1", "Effective reasoning"),
    Section("5.2", "Long-horizon RL in VLA"),
    Section("5.3", "RL for thinking with vision"),
    Section("5.4", "Reward-model design for visual generation"),
    Section("6", "Conclusion"),
)

PLANNED_ROOMS = ("generation", "unified", "vla")  # folders that are not there yet

CHAPTERS = (
    Chapter(0, "Start here", ("1",)),
    Chapter(1, "Visual RL as an MDP", ("2.1",), planned=True),
    Chapter(2, "RLHF", ("2.2.1",), planned=True),
    Chapter(3, "DPO", ("2.2.2",), planned=True),
    Chapter(4, "RLVR", ("2.2.3",), planned=True),
    Chapter(5, "PPO", ("2.3.1",), planned=True),
    Chapter(6, "GRPO", ("2.3.2",)),
    Chapter(7, "Conventional MLLMs", ("3.1.1",), planned=True),
    Chapter(8, "2D and 3D perception", ("3.1.2",), planned=True),
    Chapter(9, "Thinking about images", ("3.1.3",), planned=True),
    Chapter(10, "Thinking with images", ("3.1.3",), planned=True),
    Chapter(11, "Video reasoning", ("3.1.4",), planned=True),
    Chapter(12, "Image generation", ("3.2.1",), planned=True),
    Chapter(13, "Video generation", ("3.2.2",), planned=True),
    Chapter(14, "3D generation", ("3.2.3",), planned=True),
    Chapter(15, "Reward design", ("3.2.4",), planned=True),
    Chapter(16, "Unified RL", ("3.3.1",), planned=True),
    Chapter(17, "Task-specific RL", ("3.3.2",), planned=True),
    Chapter(18, "GUI automation", ("3.4.1",), planned=True),
    Chapter(19, "Visual navigation", ("3.4.2",), planned=True),
    Chapter(20, "Visual manipulation", ("3.4.3",), planned=True),
    Chapter(21, "Metrics and benchmarks", ("4", "4.1", "4.6"), planned=True),
    Chapter(22, "Challenges", ("5", "5.1", "5.2", "5.3", "5.4"), planned=True),
    Chapter(23, "Beyond the pillars", (), planned=True),
    Chapter(24, "Scaling up", (), planned=True),
)

# fmt: off
EQUATIONS = (
    Equation(1, "2.1", "minivisrl.rollout:Rollout",
        "tests/test_rollout.py",
        r"s_t = (p, a_1, \dots, a_{t-1})",
        "The state is the prompt and everything done since.",
        {"p": "Prompts", "a_t": "Rollout.actions, column t"}),
    Equation(2, "2.1", "minivisrl.rollout:Rollout",
        "tests/test_rollout.py",
        r"a_t \sim \pi_\theta(a_t \mid s_t) = \pi_\theta(a_t \mid p, a_1, \dots, a_{t-1})",
        "The policy draws the next action given the state.",
        {r"\pi_\theta": "Policy", r"\log \pi_\theta(a_t \mid s_t)": "logprobs[:, t]"}),
    Equation(3, "2.2.1", "minivisrl.paradigms.reward_model:bradley_terry_loss",
        "tests/paradigms/test_bradley_terry.py",
        r"\mathcal{L}_{RM} = -\sum_{(p, y_A, y_B)} \big[ y \log \sigma(R_\phi(p, y_A)"
        r" - R_\phi(p, y_B)) + (1 - y) \log \sigma(R_\phi(p, y_B) - R_\phi(p, y_A)) \big]",
        "Bradley-Terry: the reward model learns to put the preferred output on top.",
        {r"R_\phi(p, y_A)": "chosen_scores", r"R_\phi(p, y_B)": "rejected_scores"}),
    Equation(4, "2.2.1", "minivisrl.paradigms.rlhf:rlhf_objective",
        "tests/paradigms/test_rlhf.py",
        r"\max_\theta \; \mathbb{E}_{(p, y) \sim \pi_\theta}[R_\phi(p, y)]"
        r" - \beta \, \mathbb{E}_p \mathrm{KL}(\pi_\theta(\cdot \mid p) \Vert"
        r" \pi_{SFT}(\cdot \mid p)) + \gamma \, \mathbb{E}_{x \sim D_{pre}}[\log \pi_\theta(x)]",
        "Earn reward, stay near the supervised policy, keep pre-training likelihood.",
        {r"\beta": "kl_coef", r"\gamma": "pretrain_coef", r"\pi_{SFT}": "ref_policy"}),
    Equation(5, "2.2.2", "minivisrl.paradigms.dpo:dpo_loss",
        "tests/paradigms/test_dpo_loss.py",
        r"\mathcal{L}_{DPO} = -\mathbb{E}_{(p, y_A, y_B) \sim D}"
        r" \log \sigma(\beta \, \Delta_\theta(p, y_A, y_B))",
        "A logistic loss on pairs; the policy is its own reward model.",
        {r"\beta": "dpo_beta", "y_A": "chosen", "y_B": "rejected"}),
    Equation(6, "2.2.2", "minivisrl.paradigms.dpo:dpo_loss",
        "tests/paradigms/test_dpo_loss.py",
        r"\Delta_\theta = \log \frac{\pi_\theta(y_A \mid p)}{\pi_{ref}(y_A \mid p)}"
        r" - \log \frac{\pi_\theta(y_B \mid p)}{\pi_{ref}(y_B \mid p)}",
        "How much further the policy moved towards the winner than towards the loser.",
        {r"\log \pi_\theta(y_A \mid p)": "chosen_logprobs", r"\pi_{ref}": "ref_policy"}),
    Equation(7, "2.2.3", "minivisrl.rewards.verifiers:exact_match",
        "tests/rewards/test_verifiers.py",
        r"r(p, y) = v(p, y) \in \{0, 1\}",
        "A program decides whether the output is right.",
        {"v": "a reward function", "y": "completions", "r": "rewards"}),
    Equation(8, "2.3.1", "minivisrl.optimization.advantages:shape_rewards",
        "tests/optimization/test_advantages.py",
        r"r_t^{PPO} = r_\phi(s_t, a_t)"
        r" - \beta \log \frac{\pi_\theta(a_t \mid s_t)}{\pi_{ref}(a_t \mid s_t)}",
        "The reward of a step, less the price of leaving the reference there.",
        {r"r_\phi": "rewards", r"\beta": "kl_coef"}),
    Equation(9, "2.3.1", "minivisrl.optimization.advantages:gae",
        "tests/optimization/test_advantages.py",
        r"\hat{A}_t = \mathrm{GAE}(r_t^{PPO}, V_\psi)",
        "Exponentially weighted errors of the critic say how good the action was.",
        {r"\hat{A}_t": "advantages", r"V_\psi": "values"}),
    Equation(10, "2.3.1", "minivisrl.optimization.ppo:ppo_loss",
        "tests/optimization/test_ppo_loss.py",
        r"\mathcal{L}_{PPO} = \mathbb{E}_t \min \big( \rho_t \hat{A}_t,"
        r" \mathrm{clip}(\rho_t, 1 - \epsilon, 1 + \epsilon) \hat{A}_t \big), \quad"
        r" \rho_t = \frac{\pi_\theta(a_t \mid s_t)}{\pi_{old}(a_t \mid s_t)}",
        "Improve on the sampling policy, with nothing to gain from a large step.",
        {r"\rho_t": "ratio", r"\epsilon": "clip_eps", r"\pi_{old}": "old_logprobs"}),
    Equation(11, "2.3.2", "minivisrl.optimization.advantages:group_advantages",
        "tests/optimization/test_advantages.py",
        r"\hat{A}_{i,t} = \tilde{r}_{i,t} = \frac{r_{i,t}"
        r" - \mathrm{mean}(r_{\cdot,t})}{\mathrm{std}(r_{\cdot,t})}",
        "A completion is as good as it is better than its siblings.",
        {"r_i": "rewards[:, i]", r"\hat{A}_i": "advantages", "G": "group_size"}),
    Equation(12, "2.3.2", "minivisrl.optimization.grpo:grpo_loss",
        "tests/optimization/test_grpo_loss.py",
        r"\mathcal{L}_{GRPO} = \mathbb{E}_p \frac{1}{G} \sum_{i=1}^G \frac{1}{\lvert a_i"
        r" \rvert} \sum_t \min \big( \rho_{i,t} \hat{A}_{i,t}, \mathrm{clip}(\rho_{i,t},"
        r" 1 - \epsilon, 1 + \epsilon) \hat{A}_{i,t} \big)"
        r" - \beta \, \mathbb{E}_p D_{KL}(\pi_\theta \Vert \pi_{ref})",
        "PPO's clipped step without a critic; the pull to the reference is its own term.",
        {"G": "group_size", r"\epsilon": "clip_eps", r"\beta": "kl_coef"}),
    Equation(13, "2.3.2", "minivisrl.optimization.kl:kl_k1",
        "tests/optimization/test_kl.py",
        r"\hat{D}_{KL}(p) = \frac{1}{G} \sum_i \frac{1}{\lvert a_i \rvert} \sum_t"
        r" \log \frac{\pi_\theta(a_{i,t} \mid s_{i,t})}{\pi_{ref}(a_{i,t} \mid s_{i,t})}",
        "Distance to the reference: the mean log-ratio on the policy's own samples.",
        {r"\log \pi_\theta": "logprobs", r"\log \pi_{ref}": "ref_logprobs"}),
    Equation(14, "4.1", "minivisrl.evaluation.sets:evaluate",
        "tests/evaluation/test_sets.py",
        r"M_{set} = \frac{1}{D} \sum_{i=1}^D"
        r" \mathbb{E}_{y \sim \pi_\theta(\cdot \mid p_i)} M_{samp}(y_i^{gen}, p_i)",
        "One number for a test set: the mean score of what the policy makes of it.",
        {"D": "number of prompts", "M_{samp}": "score_fn", "M_{set}": "Evaluation.score"}),
    Equation(15, "4.1", "minivisrl.evaluation.sets:accuracy",
        "tests/evaluation/test_sets.py",
        r"M_{set} = \frac{1}{D} \sum_{i=1}^D"
        r" \mathbb{E}_{y \sim \pi_\theta(\cdot \mid p_i)} M_{samp}(y_i^{gen}, y_i^{gt}, p_i)",
        "The same mean, where every output is compared with the truth.",
        {"D": "number of prompts", "M_{samp}": "exact_match", "y^{gt}": "answer column"}),
    Equation(16, "4.1", "minivisrl.rewards.judge:judge",
        "tests/rewards/test_judge.py",
        r"M_{samp} = R_\phi(y_i^{gen}, p_i) \;\text{or}\; R_\phi(y_i^{gen}, y_i^{gt}, p_i)",
        "One number for one output: the reward that training sees.",
        {r"R_\phi": "reward_fn", "M_{samp}": "rewards"}),
    Equation(17, "4.1", "minivisrl.evaluation.state:kl_to_start",
        "tests/evaluation/test_state.py",
        r"M_{state}^t = \mathbb{E}_{p \sim P_{val}}"
        r" D(\pi_{\theta_t}(\cdot \mid p) \Vert \pi_{\theta_0}(\cdot \mid p))",
        "How far training has carried the policy from where it began.",
        {r"\pi_{\theta_t}": "policy", r"\pi_{\theta_0}": "start", "D": "exact KL"}),
)
# fmt: on


def _pick(entries: tuple[Any, ...], number: Any, what: str) -> Any:
    for entry in entries:
        if entry.number == number:
            return entry
    known = f"{entries[0].number} to {entries[-1].number}"
    raise UserError(f"the survey (v{VERSION}) has no {what} {number}; there are {known}")


def equation(number: int) -> Equation:
    """Equation `number` of the survey."""
    return _pick(EQUATIONS, number, "equation")


def section(number: str) -> Section:
    """Section `number` ("2.3.2") of the survey."""
    return _pick(SECTIONS, number, "section")


def chapter(number: int) -> Chapter:
    """Chapter `number` of the notebooks."""
    return _pick(CHAPTERS, number, "chapter")


def rooms(number: str) -> set[str]:
    """Rooms of section `number`, those of the sections it lies in included."""
    above = [s for s in SECTIONS if f"{section(number).number}.".startswith(f"{s.number}.")]
    return {room for s in above for room in s.rooms}


def notebook(number: int) -> Path | None:
    """The file of chapter `number`, or None where it is not written yet."""
    found = sorted((DATA.parent / "notebooks").glob(f"{chapter(number).number:02d}_*.ipynb"))
    return found[0] if found else None


def resolve(path: str) -> Any:
    """The object behind "package.module:name".

    Raises:
        ImportError: no such module.
        AttributeError: the module has no such name.
    """
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)
