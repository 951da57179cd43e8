"""Survey: sections 2.2.3 and 3.2.4.  Anything that scores: programs, models and compositions."""

from minivisrl.rewards.judge import judge, reward_stats, text_of, weighted
from minivisrl.rewards.verifiers import (
    exact_match,
    extract_answer,
    format_reward,
    numeric_distance,
)

__all__ = [
    "exact_match",
    "extract_answer",
    "format_reward",
    "judge",
    "numeric_distance",
    "reward_stats",
    "text_of",
    "weighted",
]
