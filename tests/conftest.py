"""One thread, no display, no network; the fixtures that many tests share."""

import os

os.environ |= {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "SDL_VIDEODRIVER": "dummy",
}  # before torch is imported; notebook kernels inherit it

import ipaddress
import socket
from collections.abc import Iterator
from pathlib import Path

import matplotlib
import pytest
import torch

matplotlib.use("Agg")  # not MPLBACKEND: kernels would inherit it, and then draw no figure at all


def is_local(address: object) -> bool:
    """A Unix socket, or a host on the loopback interface."""
    if not isinstance(address, tuple):
        return True
    host = address[0].decode() if isinstance(address[0], bytes) else address[0]
    try:
        return host in (None, "", "localhost") or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True, scope="session")
def no_network() -> Iterator[None]:
    """Connections and name look-ups beyond the loopback interface raise a RuntimeError."""

    def guard(function, address_of):
        def guarded(*args, **kwargs):
            if not is_local(address := address_of(*args, **kwargs)):
                raise RuntimeError(f"tests must not use the network: {address}")
            return function(*args, **kwargs)

        return guarded

    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "connect_ex", "sendto"):
            original = getattr(socket.socket, name)
            patch.setattr(socket.socket, name, guard(original, lambda *arguments: arguments[-1]))
        look_up = guard(socket.getaddrinfo, lambda host, *_, **__: (host,))
        patch.setattr(socket, "getaddrinfo", look_up)
        yield


@pytest.fixture
def generator() -> torch.Generator:
    """A fresh generator with seed 0."""
    return torch.Generator().manual_seed(0)


@pytest.fixture
def tmp_run(tmp_path: Path) -> Path:
    """Where a run may write: a path that does not exist yet."""
    return tmp_path / "run"
