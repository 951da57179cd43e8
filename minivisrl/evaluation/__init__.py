"""Survey: section 4.  What a policy can do, measured: metrics, statistics, diagnosis."""

from minivisrl.evaluation.sets import Evaluation, accuracy, evaluate
from minivisrl.evaluation.state import kl_to_start
from minivisrl.evaluation.statistics import (
    Interval,
    bootstrap_interval,
    equivalent,
    is_learning,
    learned,
    mean_interval,
    paired_difference,
)

__all__ = [
    "Evaluation",
    "Interval",
    "accuracy",
    "bootstrap_interval",
    "equivalent",
    "evaluate",
    "is_learning",
    "kl_to_start",
    "learned",
    "mean_interval",
    "paired_difference",
]
