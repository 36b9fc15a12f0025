"""Whatever becomes of workers, rows and slots: no counter ever falls, and the sums are exact."""

from __future__ import annotations

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from multicore_server.ipc.scoreboard import BUCKETS, CODES, METHODS, ROWS_PER_SLOT, Item, Scoreboard
from multicore_server.metrics.collection import families
from tests.support.reports import process, report, slot
from tests.unit.rows import cell

NOW = 1000.0  # seconds of CLOCK_MONOTONIC
GAUGES = (
    Item.CONNECTIONS, Item.WEBSOCKETS, Item.UNREAD, Item.LOOP_LAG,
    Item.RESIDENT_MEMORY, Item.UNIQUE_MEMORY, Item.HEARTBEAT,
)  # fmt: skip


class Life(RuleBasedStateMachine):
    """Workers start, count, die and are reaped, rows are used again, slots come and go: no counter falls."""

    def __init__(self) -> None:
        super().__init__()
        self.board = Scoreboard(4)
        self.alive: dict[int, list[int]] = {}  # rows of living processes by instance
        self.last: dict[tuple[str, str, str], float] = {}
        self.counted = 0

    @rule(instance=st.integers(0, 3))
    def start(self, instance: int) -> None:
        used = self.alive.setdefault(instance, [])
        free = [
            row for row in range(instance * ROWS_PER_SLOT, (instance + 1) * ROWS_PER_SLOT) if row not in used
        ]
        if free:
            used.append(free[0])
        self.board.publish(frozenset(rows[-1] for rows in self.alive.values() if rows))

    @rule(
        instance=st.integers(0, 3), method=st.sampled_from(METHODS), code=st.sampled_from(CODES),
        bucket=st.integers(0, len(BUCKETS)),
    )  # fmt: skip
    def count(self, instance: int, method: str, code: str, bucket: int) -> None:
        for number in self.alive.get(instance, ()):
            row = self.board.row(number)
            for item in (
                cell(method, code),
                Item.DURATIONS + bucket,
                Item.ACCEPTED,
                Item.HANDED_OVER,
                Item.MIGRATED,
            ):
                row[item] += 1
            row[Item.CPU_SECONDS] += 0.01
            row[Item.DURATION_SUM] += 0.02
            row[Item.CONNECTIONS] += 1
            self.counted += 1

    @rule(instance=st.integers(0, 3))
    def die(self, instance: int) -> None:
        rows = self.alive.get(instance, [])
        if rows:
            row = self.board.row(rows.pop(0))
            for item in GAUGES:
                row[item] = 0

    @rule(instance=st.integers(0, 3))
    def scale_away(self, instance: int) -> None:
        while self.alive.get(instance):
            self.die(instance)
        self.alive.pop(instance, None)

    @invariant()
    def no_counter_falls_and_sums_are_exact(self) -> None:
        slots = [
            slot(i, "ready", [process(i, row=row - 4 * i) for row in rows])
            for i, rows in sorted(self.alive.items())
        ]
        found = families(self.board, report(slots=slots), NOW)
        counters = {
            (family.name, sample.suffix, sample.labels): sample.value
            for family in found
            if family.kind in ("counter", "histogram")
            for sample in family.samples
        }
        assert all(counters[key] >= value for key, value in self.last.items())
        self.last = counters
        sums = {
            family.name: sum(it.value for it in family.samples)
            for family in found
            if family.kind == "counter"
        }
        assert sums["multicore_http_requests"] == sums["multicore_connections_accepted"] == self.counted
        assert counters["multicore_http_request_duration_seconds", "_count", ""] == self.counted


Life.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
TestLife = Life.TestCase
