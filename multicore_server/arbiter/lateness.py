"""Whether the arbiter itself was late: stopped, frozen, or starved of CPU. Pure.

An arbiter that was paused (docker pause, the freezer, SIGSTOP, Ctrl-Z) sees every deadline of its workers in
the past, although they were paused with it or have sent what it has not read yet. So nobody is judged by the
time of a pause.
"""

from __future__ import annotations

TOLERANCE = 1.0  # seconds that a turn of the loop may take longer than expected


class Lateness:
    def __init__(self) -> None:
        self._expected = float("inf")

    def check(self, now: float, wait: float = 0.0) -> float:
        """Seconds that the arbiter is late, 0 within `TOLERANCE`; the next check is due in ``wait`` seconds.

        ``now`` is of the monotonic clock.
        """
        late = now - self._expected
        self._expected = now + wait
        return late if late > TOLERANCE else 0.0
