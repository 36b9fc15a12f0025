"""gunicorn's configuration for servers under callgrind: what is decided by the clock is decided as for users.

The worker decides by its pace whether responses wait for each other, and whether a connection's placement is
worth a choice. On a processor that is so much slower it would decide otherwise.
"""

from __future__ import annotations

import gc
from importlib import import_module
from typing import Any

NEVER = 10**9  # a worker at rest would beat less often while nothing is asked than it does meanwhile
SLOWER = 100  # callgrind takes 30 to 60 times as long, and the machine may be busy
# Seconds, by module and name: what the worker compares its pace with is as much longer. Its heart beats more
# slowly, so that heartbeats count for less, and often enough for the worker to know its pace.
TIMES = {
    "multicore_server.connections.dispatcher": {"WORTHWHILE": SLOWER},
    "multicore_server.worker.cycle": {"QUICK": SLOWER, "MOST_HELD": SLOWER, "MOST_JOINED": SLOWER},
    "multicore_server.worker.queue_time": {"PACE": SLOWER},
    "multicore_server.worker.heart": {"BRISK": SLOWER, "BEAT": 9, "REST_AFTER": NEVER},
}
timeout = 600


def slow_down() -> None:
    """Raises AttributeError where a name is no longer there."""
    for name, times in TIMES.items():
        module = import_module(name)
        for constant, factor in times.items():
            setattr(module, constant, _scaled(getattr(module, constant), factor))


def _scaled(seconds: Any, factor: int) -> Any:
    if isinstance(seconds, tuple):
        return tuple(each * factor for each in seconds)
    return seconds * factor


def post_fork(server: Any, worker: Any) -> None:
    if type(worker).__module__.startswith("multicore_server"):
        slow_down()


def post_worker_init(worker: Any) -> None:
    """A rare look of the garbage collector at all of a framework costs as much as hundreds of requests: by
    chance some of them had it, and others not."""
    gc.collect()
    gc.freeze()
