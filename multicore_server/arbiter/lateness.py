"""Detects that the arbiter itself was late: stopped, frozen, or starved of CPU. Pure.

After a pause (docker pause, the freezer, SIGSTOP, Ctrl-Z), every deadline of the workers is in the past. But
the workers were paused too, or have sent messages that the arbiter has not read yet. So the time of a pause
does not count against them.
"""

from __future__ import annotations

TOLERANCE = 1.0  # seconds that a turn of the loop may take longer than expected


class Lateness:
    def __init__(self) -> None:
        self._expected = float("inf")

    def check(self, now: float, wait: float = 0.0) -> float:
        """Seconds that the arbiter is late, 0 within `TOLERANCE`; the next check is due in ``wait`` seconds.

        ``now`` is a time of the monotonic clock.
        """
        late = now - self._expected
        self._expected = now + wait
        return late if late > TOLERANCE else 0.0
