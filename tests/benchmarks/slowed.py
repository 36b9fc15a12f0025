"""gunicorn's configuration for servers under callgrind: what is decided by the clock is decided as for users.

The worker decides by its pace whether responses wait for each other, and whether a connection's placement is
worth a choice. On a processor that is so much slower it would decide otherwise.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Any

SLOWER = 100  # callgrind takes 30 to 60 times as long, and the machine may be busy
# Seconds that the worker compares its own pace with, by module.
PACES = {
    "multicore_server.connections.dispatcher": ["WORTHWHILE"],
    "multicore_server.worker.cycle": ["QUICK", "MOST_HELD"],
    "multicore_server.worker.server": ["BRISK"],
}
timeout = 600


def slow_down() -> None:
    """Raises AttributeError where a name is no longer there."""
    for name, constants in PACES.items():
        module = import_module(name)
        for constant in constants:
            setattr(module, constant, _scaled(getattr(module, constant)))


def _scaled(seconds: Any) -> Any:
    return tuple(map(_scaled, seconds)) if isinstance(seconds, tuple) else seconds * SLOWER


def post_fork(server: Any, worker: Any) -> None:
    if type(worker).__module__.startswith("multicore_server"):
        slow_down()


def post_worker_init(worker: Any) -> None:
    """A rare look of the garbage collector at all of a framework costs as much as hundreds of requests: by
    chance some of them had it, and others not."""
    gc.collect()
    gc.freeze()
