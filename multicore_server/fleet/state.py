"""What the parts of the fleet share: the slots, the clock of the current call, and the actions so far.

Pure.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator

from multicore_server.fleet import events as ev
from multicore_server.fleet.events import Action
from multicore_server.fleet.policy import Options, delay
from multicore_server.fleet.slots import Process, Slot, Slots, State
from multicore_server.ipc.names import EventKind, Level, Reason


class FleetState:
    """``capacity`` is the number of slots that shared memory was made for; ``random`` gives numbers in
    [0, 1)."""

    def __init__(self, options: Options, capacity: int, random: Callable[[], float]) -> None:
        self.options = options
        self.capacity = capacity
        self.random = random
        self.now = 0.0  # seconds of the arbiter's monotonic clock, as of the current call
        self.workers = 0
        self.slots = Slots()
        self.stopping = False
        self.proven = False  # some worker has been ready once: the app can boot
        self.first_words = ""  # the cause of the first failed boot
        self.restarts: Counter[Reason] = Counter()  # of the whole fleet, also of slots that were scaled away
        self._actions: list[Action] = []

    def processes(self) -> Iterator[Process]:
        return self.slots.processes()

    def find(self, pid: int) -> tuple[Slot, Process] | None:
        """The living worker with this pid."""
        return self.slots.find(pid)

    def delay(self, slot: Slot) -> float:
        """Seconds to wait before the slot's next start."""
        return delay(self.options.policy, slot.history, self.random())

    def act(self, action: Action) -> None:
        self._actions.append(action)

    def tell(
        self, kind: EventKind, text: str, process: Process | None = None,
        level: Level = "info", reason: str | None = None, in_hand: str = "", cause: str = "",
    ) -> None:  # fmt: skip
        made = ev.Event(kind, text, level, reason, in_hand=in_hand, cause=cause)
        if process is not None:
            who = process.instance, process.generation, process.pid or None
            made = ev.Event(kind, text, level, reason, *who, in_hand, cause)
        self.act(made)

    def take_actions(self) -> list[Action]:
        """The actions so far; they are the caller's from now on."""
        actions, self._actions = self._actions, []
        return actions

    def count(self, slot: Slot, reason: Reason) -> None:
        slot.endings[reason] += 1
        self.restarts[reason] += 1

    def prove(self) -> None:
        """A worker has been ready: the slots that waited for the proof may try again."""
        self.proven = True
        for slot in self.slots.values():
            if slot.rest is State.BACKOFF and slot.not_before is None:
                slot.not_before = self.now + self.delay(slot)
