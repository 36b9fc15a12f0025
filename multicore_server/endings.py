"""What follows when a worker ends: the verdict on it, carried out and put into words.

Pure, a part of the fleet.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from multicore_server import events as ev
from multicore_server.events import Reason
from multicore_server.policy import Decision, End, Verdict, judge
from multicore_server.slots import Process, Slot, State

if TYPE_CHECKING:
    from multicore_server.fleet import Fleet


class Endings:
    """Judges the ends of workers. ``first_words`` is the cause of the first failed boot."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.proven = False  # some worker has been ready once: the app can boot
        self.first_words = ""

    def ended(self, slot: Slot, process: Process, exited: ev.Exited) -> None:
        if process.state is State.DRAINING:
            self._gone(process, exited)
        elif process.state is State.STARTING:
            self.boot_failed(slot, process, describe(exited), exited.code, exited.words)
        else:
            self._crashed(slot, process, exited)

    def _gone(self, process: Process, exited: ev.Exited) -> None:
        drained = self.fleet.now - process.since
        self.fleet.tell("gone", f"{describe(exited)} after draining for {drained:.1f} s", process)

    def _crashed(self, slot: Slot, process: Process, exited: ev.Exited) -> None:
        reason = process.ending or reason_of(exited)
        slot.endings[reason] += 1
        uptime = process.uptime(self.fleet.now) or 0.0
        verdict = self._judge(slot, End(exited.code, uptime))
        follows = "its replacement is starting" if slot.starting else self._follow(slot, verdict)
        text = f"{describe(exited)} after {uptime:.1f} s; {follows}"
        self.fleet.tell("exited", text, process, "error", reason)

    def boot_failed(self, slot: Slot, process: Process, how: str, code: int | None, words: str) -> None:
        slot.endings["boot"] += 1
        self.first_words = self.first_words or words or how
        cause = f": {words}" if words else ""
        if self.fleet.reloads.on_trial(process):
            self.fleet.tell("boot", f"{how} before it was ready{cause}", process, "error", "boot")
            self.fleet.reloads.roll_back(words or how)
            return
        verdict = self._judge(slot, End(code, None))
        if slot.serving is not None:
            follows = self._keep_old(slot, verdict)
        elif self.proven:
            follows = self._follow(slot, verdict)
        else:
            slot.hold(State.BACKOFF)  # until a sibling proves that the app can boot at all
            follows = "waiting for the other workers' first boot"
        self.fleet.tell("boot", f"{how} before it was ready{cause}; {follows}", process, "error", "boot")

    def prove(self) -> None:
        """A worker is ready: the slots that waited for the proof may try again."""
        if self.proven:
            return
        self.proven = True
        for slot in self.fleet.slots.values():
            if slot.rest is State.BACKOFF and slot.not_before is None:
                slot.not_before = self.fleet.now + self.fleet.delay(slot)

    def _keep_old(self, slot: Slot, verdict: Verdict) -> str:
        """A failed replacement never costs the worker that serves."""
        if slot.retry and verdict.decision is Decision.RESTART:
            slot.not_before = self.fleet.now + verdict.delay
            return f"the old worker goes on, next attempt in {verdict.delay:.1f} s"
        slot.wanted = slot.not_before = None
        self.fleet.reloads.give_up_on(slot.instance)
        return "the old worker goes on"

    def _follow(self, slot: Slot, verdict: Verdict) -> str:
        """Let the slot do what the verdict says, and say so."""
        if self.fleet.shutdown is not None:
            return "the server is stopping"
        if verdict.decision is Decision.RESTART:
            slot.hold(State.BACKOFF, self.fleet.now + verdict.delay)
            return f"restarting in {verdict.delay:.2f} s" if verdict.delay else "restarting at once"
        slot.wanted = None
        self.fleet.reloads.give_up_on(slot.instance)
        if verdict.decision is Decision.STOP:
            slot.hold(State.STOPPED)
            return "stopped (autorestart, stop_exit_codes) and left until HUP or restart"
        slot.hold(State.ERRORED)
        unstable = verdict.history.unstable
        return f"errored after {unstable} unstable exits (max_restarts) and left until HUP, reset or restart"

    def _judge(self, slot: Slot, end: End) -> Verdict:
        verdict = judge(self.fleet.options.policy, slot.history, end, self.fleet.random())
        slot.history = verdict.history
        return verdict


def describe(exited: ev.Exited) -> str:
    if exited.signal is None:
        return f"exited with code {exited.code}"
    return f"was killed by {exited.signal}" + (" (out of memory)" if exited.oom else "")


def reason_of(exited: ev.Exited) -> Reason:
    if exited.oom:
        return "oom"
    return "exit" if exited.signal is None else "signal"
