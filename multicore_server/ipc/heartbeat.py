"""How often a worker's heart beats, and when siblings stop counting on it.

Pure. The writers (workers) and the readers (siblings, metrics) must agree on these: a beat is shorter than
the age at which somebody acts on a missing one.
"""

from __future__ import annotations

BEAT = 0.15  # seconds between two heartbeats at the most: less than `STALE`
BEAT_AMONG_SIBLINGS = 0.08  # seconds, where siblings pass over a worker whose heartbeat is older than `STALE`
STALE = 0.2  # seconds without a heartbeat after which siblings place no connection with a worker
UNATTENDED = 0.12  # the same, after which siblings empty its inbox: a false alarm costs next to nothing
