"""Start a chapter: seeds, threads, quiet libraries and one look for every figure."""

from __future__ import annotations

import importlib
import os
import random
import sys
import warnings
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

# Set by pytest (and so in the kernels that nbval starts), or by whoever wants the same bits again.
ONE_THREAD = ("MINIVISRL_ONE_THREAD", "PYTEST_VERSION", "PYTEST_CURRENT_TEST")
QUIET = {
    "TRANSFORMERS_VERBOSITY": "error",
    "DIFFUSERS_VERBOSITY": "error",
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "PYGAME_HIDE_SUPPORT_PROMPT": "1",
}
LIBRARIES = (
    "torch|transformers|diffusers|huggingface_hub|gymnasium|minigrid|pygame|sklearn|tqdm|jupyter"
)


def setup(seed: int = 0) -> torch.Generator:
    """Fix seeds and threads, silence libraries, set the figure style; prints nothing.

    Returns:
        A generator seeded with `seed`: pass it to everything that samples. The global seeds only
        cover what takes no generator, such as the initial weights of a network.
    """
    import matplotlib.pyplot as plt
    import numpy as np
    import torch

    from minivisrl.lab.plots import STYLE

    quiet_libraries()
    if one_thread():
        torch.set_num_threads(1)
    random.seed(seed)
    np.random.seed(seed)
    torch.manual_seed(seed)
    plt.rcParams.update(STYLE)
    if "IPython" in sys.modules and sys.modules["IPython"].get_ipython() is not None:
        from matplotlib_inline.backend_inline import set_matplotlib_formats

        set_matplotlib_formats("png")
    return torch.Generator().manual_seed(seed)


def one_thread() -> bool:
    """Whether results must not depend on the number of cores: under pytest, nbval or the build."""
    return any(os.environ.get(name, "0") not in ("", "0") for name in ONE_THREAD)


def quiet_libraries() -> None:
    """Silence warnings, log lines and download bars of other people's libraries; ours stay loud."""
    os.environ.update(QUIET)  # for libraries that are imported later
    for name in {"transformers", "diffusers"} & sys.modules.keys():
        logging = importlib.import_module(f"{name}.utils.logging")
        logging.set_verbosity_error()
        logging.disable_progress_bar()
    for category in (DeprecationWarning, PendingDeprecationWarning, FutureWarning):
        warnings.filterwarnings("ignore", category=category)
    warnings.filterwarnings("ignore", module=rf"({LIBRARIES})(\.|$)")
