"""For the end of ``counted.py``: what an endpoint of the app's own would serve."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, generate_latest, multiprocess


def own() -> str:
    registry = CollectorRegistry()
    multiprocess.MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry).decode()
