"""Decides what to do when a worker has exited: restart it now, later, or not at all.

Pure: a table of histories tests all of it. The names are PM2's, but not its bugs: a death by signal is never
an exit code, and only a stable worker clears a history (see ``backoff_reset``).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from enum import Enum
from typing import Literal, NamedTuple

Autorestart = Literal["true", "on-failure", "false"]

BACKOFF_FACTOR = 1.5  # PM2's exp_backoff_restart_delay grows by this factor
MOST_STEPS = 100  # 1.5**100 ms are an age of the universe; without a bound the power overflows
# A delay is shortened by up to this part, so that slots that failed together do not boot together.
JITTER = 0.25


@dataclass(frozen=True, slots=True)
class RestartPolicy:
    """PM2's restart settings; durations are seconds.

    ``min_uptime``: an end before a worker was ready for this long is unstable. ``max_restarts``: so many
    unstable ends make a slot ``errored``. ``backoff_reset``: a worker that was ready for this long clears
    the slot's history; nothing else does.
    """

    autorestart: Autorestart = "true"
    min_uptime: float = 1.0
    max_restarts: int = 16
    restart_delay: float = 0.0
    exp_backoff_restart_delay: float = 0.1
    max_restart_delay: float = 15.0
    backoff_reset: float = 30.0
    stop_exit_codes: frozenset[int] = frozenset()


@dataclass(frozen=True, slots=True)
class History:
    """What a slot remembers of its unplanned ends: how many came early, how many of these were unstable."""

    early: int = 0
    unstable: int = 0


class End(NamedTuple):
    """How a worker ended. ``code`` is None for a death by signal; ``uptime`` is the seconds it was ready,
    None if it never was."""

    code: int | None
    uptime: float | None


class Decision(Enum):
    RESTART = "restart"
    STOP = "stop"
    GIVE_UP = "give up"


class Verdict(NamedTuple):
    """``delay`` seconds until the restart; 0 for the other decisions."""

    decision: Decision
    delay: float
    history: History


def remember(policy: RestartPolicy, history: History, uptime: float | None) -> History:
    """The history after one more unplanned end of a worker that was ready for ``uptime`` seconds."""
    if uptime is not None and uptime >= policy.backoff_reset:
        return History()
    unstable = uptime is None or uptime < policy.min_uptime
    return replace(history, early=history.early + 1, unstable=history.unstable + unstable)


def delay(policy: RestartPolicy, history: History, jitter: float) -> float:
    """Seconds to wait before the next start: none after the first early end, then exponential with a cap.

    ``jitter`` is a random number in [0, 1).
    """
    steps = history.early - 2
    if steps < 0:
        return policy.restart_delay
    grown = policy.exp_backoff_restart_delay * BACKOFF_FACTOR ** min(steps, MOST_STEPS)
    backoff = min(grown, policy.max_restart_delay) * (1 - JITTER * jitter)
    return max(policy.restart_delay, backoff)


def judge(policy: RestartPolicy, history: History, end: End, jitter: float) -> Verdict:
    """Decide what follows an unplanned end."""
    after = remember(policy, history, end.uptime)
    if not _wants_restart(policy, end):
        return Verdict(Decision.STOP, 0.0, after)
    if after.unstable > history.unstable and after.unstable >= policy.max_restarts:
        return Verdict(Decision.GIVE_UP, 0.0, after)
    return Verdict(Decision.RESTART, delay(policy, after, jitter), after)


def _wants_restart(policy: RestartPolicy, end: End) -> bool:
    if end.code in policy.stop_exit_codes:
        return False
    if policy.autorestart == "on-failure":
        return end.code != 0
    return policy.autorestart == "true"


@dataclass(frozen=True, slots=True)
class Options:
    """The rules by which the fleet decides; durations are seconds. ``lifetime`` gives a worker's max_lifetime
    for a random number in [0, 1), None for no limit."""

    policy: RestartPolicy = field(default_factory=RestartPolicy)
    listen_timeout: float = 60.0  # 0: any time
    graceful_timeout: float = 30.0
    shutdown_delay: float = 0.0
    reload_surge: int = 1
    draining_limit: int = 3
    lifetime: Callable[[float], float | None] = lambda _: None

    @property
    def too_late(self) -> str:
        """What a boot that takes longer than `listen_timeout` is called."""
        return f"not ready within {self.listen_timeout:g} s (listen_timeout)"
