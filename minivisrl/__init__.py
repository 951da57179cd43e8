"""minivisrl: reinforcement learning in vision, as a survey you can run."""

from pathlib import Path

__version__ = "0.1.0"
DATA = Path(__file__).resolve().parents[1] / "data"


class UserError(ValueError):
    """A mistake the user can mend; the command line prints it as one line and exits with code 2."""
