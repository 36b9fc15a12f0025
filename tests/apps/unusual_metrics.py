"""For the end of ``counted.py``: metrics that multiprocess mode cannot show, or not wholly."""

from __future__ import annotations

from prometheus_client import Counter, Enum, Gauge, Info

Info("about", "A.").info({"version": "1"})
Enum("state", "S.", states=["on", "off"]).state("on")
Gauge("computed", "C.").set_function(lambda: 42)
Counter("traced", "T.").inc(1, exemplar={"trace_id": "abc"})
