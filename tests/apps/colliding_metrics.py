"""For the end of ``counted.py``: metrics with names that the server has, or the app has already."""

from __future__ import annotations

from prometheus_client import Counter, Gauge

Gauge("multicore_workers", "Mine.").set(99)
Counter("process_cpu_seconds", "Mine.", registry=None).inc(99)
Gauge("seconds_count", "Mine.", registry=None).set(99)
Counter("multicore_mine", "Mine.").inc(99)
