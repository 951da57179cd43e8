"""`python -m tests.benchmarks` writes the measured ratios to `data/results/bench.json`.

With a file as argument, writes there.
"""

import json
import platform
import sys
from importlib.metadata import version
from pathlib import Path

from tests.benchmarks import contest

OUT = Path(__file__).resolve().parents[2] / "data" / "results" / "bench.json"


def main(out: Path) -> None:
    """Measure everything once."""
    record = {
        "command": "python -m tests.benchmarks",
        "versions": {name: version(name) for name in ("torch", "transformers", "trl")},
        "python": platform.python_version(),
        "threads": 1,
        "setting": {
            "model": "vlm",
            "prompts": "8; 32 for group 16 / group 2",
            "group_size": "8 where it is not named",
            "tokens": contest.TOKENS,
        },
        "bounds": {name: list(bound) for name, bound in contest.BOUNDS.items()},
        "ratios": {name: round(contest.measure(name), 2) for name in contest.CONTESTS},
    }
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(record, indent=1) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else OUT)
