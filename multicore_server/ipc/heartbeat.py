"""Defines how often a worker's heart beats, and when siblings stop relying on it.

Pure. A worker says when its next heartbeat is due, so a reader sees when it is overdue. A worker that has
nothing to do beats slowly and sleeps until something arrives. A sender of a connection brings the receiver's
next beat forward: if that beat does not come, the worker is blocked.
"""

from __future__ import annotations

BEAT = 0.08  # seconds between two heartbeats
RESTING_BEAT = 5.0  # the same, where there was nothing to do for `REST_AFTER`
DOZING_BEAT = 1.0  # the same, where something is looked after, or may come that does not wake the worker
REST_AFTER = 1.0  # seconds
# Seconds for which a heartbeat is overdue, after which siblings ...
LATE = 0.12  # ... place no connection with a worker
UNATTENDED = 0.04  # ... empty its inbox: a false alarm costs next to nothing
