"""`python -m tests.benchmarks` writes the measured ratios to `data/results/bench.json`.

With a file as argument, writes there.
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks import contest, vla_contest

CONTESTS = contest.CONTESTS | vla_contest.CONTESTS
BOUNDS = contest.BOUNDS | vla_contest.BOUNDS
PACKAGES = ("torch", "transformers", "trl", "stable-baselines3", "minigrid", "mujoco")
OUT = Path(__file__).resolve().parents[2] / "data" / "results" / "bench.json"


def main(out: Path) -> None:
    """Measure everything once."""
    record = {
        "command": "python -m tests.benchmarks",
        "versions": {name: version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "threads": 1,
        "setting": {
            "model": "vlm; vla in rooms",
            "prompts": "8; 32 for group 16 / group 2",
            "group_size": "8 where it is not named",
            "tokens": contest.TOKENS,
            "rooms": "32 with 8 siblings; 64 without",
        },
        "bounds": {name: list(bound) for name, bound in BOUNDS.items()},
        "ratios": {name: round(contest.measure(name, CONTESTS, BOUNDS), 2) for name in CONTESTS},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
