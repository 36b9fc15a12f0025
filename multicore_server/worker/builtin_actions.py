"""The actions that every worker has: what an operator asks a process whose memory grows."""

from __future__ import annotations

import asyncio
import gc
import os
import sys
import tracemalloc
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from multicore_server.machine import memory
from multicore_server.worker import stacks
from multicore_server.worker.stacks import Stacks

MOST = 20  # lines of a list
FRAMES = 1  # that tracemalloc keeps of each allocation: more cost more


async def collect() -> dict[str, Any]:
    """``gc``: a full collection, and how many objects it has found and left; it passes over the frozen ones:
    all that there was when the worker was ready."""
    before = gc.get_count()
    collected = gc.collect()
    return {
        "collected": collected,
        "uncollectable": len(gc.garbage),
        "tracked": len(gc.get_objects()),
        "counts": before,
        "frozen": gc.get_freeze_count(),
    }


async def used_memory() -> dict[str, Any]:
    """``memory``: in bytes, and the types with the largest objects among those that the collector tracks."""
    types = await asyncio.to_thread(_largest_types)
    return {"rss": memory.rss(os.getpid()), "uss": memory.uss(), "types": types}


def _largest_types() -> list[dict[str, Any]]:
    sizes: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    for it in gc.get_objects():
        kind = type(it)
        name = f"{kind.__module__}.{kind.__qualname__}"
        counts[name] += 1
        sizes[name] += sys.getsizeof(it, 0)
    return [{"type": name, "count": counts[name], "bytes": size} for name, size in sizes.most_common(MOST)]


async def trace_memory(do: str = "top") -> dict[str, Any]:
    """``tracemalloc``: ``start``, ``top`` (the lines that hold most) or ``stop``."""
    if do == "start":
        tracemalloc.start(FRAMES)
    elif do == "stop":
        tracemalloc.stop()
    elif do != "top":
        raise ValueError(f"give start, top or stop, not {do!r}")
    elif not tracemalloc.is_tracing():
        raise ValueError("it is not running; start it first")
    else:
        return await asyncio.to_thread(_top)
    return {"tracing": tracemalloc.is_tracing()}


def _top() -> dict[str, Any]:
    traced, peak = tracemalloc.get_traced_memory()
    lines = tracemalloc.take_snapshot().statistics("lineno")[:MOST]
    shown = [{"line": str(it.traceback), "count": it.count, "bytes": it.size} for it in lines]
    return {"bytes": traced, "peak": peak, "top": shown}


async def show_stacks(tasks: bool = False) -> Stacks:
    """``stacks``: of all threads, and of all tasks of the event loop. While that is blocked, the watcher
    answers."""
    return stacks.take(asyncio.get_running_loop(), tasks=tasks)


ALL: Mapping[str, Callable[..., Awaitable[Any]]] = {
    "gc": collect,
    "memory": used_memory,
    "stacks": show_stacks,
    "tracemalloc": trace_memory,
}
