"""How processes meet on loopback: a free port, and what torchrun says to each of them."""

from __future__ import annotations

import random
import socket

__all__ = ["free_port", "torchrun_variables"]


def free_port() -> int:
    """A port on which nobody listens, and below those that the system gives to connections of other tests."""
    while True:
        port = random.randrange(20_000, 32_000)
        with socket.socket() as listener:
            try:
                listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


def torchrun_variables(rank: int, ranks: int, port: int) -> dict[str, str]:
    """What torchrun puts into the environment of a process."""
    return {
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "TORCHELASTIC_RUN_ID": "none",
    }
