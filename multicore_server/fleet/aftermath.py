"""The ends of workers: how we bring one about, and what follows from one.

Pure, a part of the fleet.
"""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from multicore_server.fleet import events as ev
from multicore_server.fleet.events import Reason
from multicore_server.fleet.policy import Decision, End, History, Verdict, judge
from multicore_server.fleet.slots import Process, Slot, State

if TYPE_CHECKING:
    from multicore_server.fleet.fleet import Fleet


ABORT_GRACE = 2.0  # seconds that a hung worker gets to dump its stacks
DRAIN_MARGIN = 2.0  # seconds beyond graceful_timeout for the app's own shutdown

# A failed replacement is tried again where the cause goes on; the other reasons ask once.
PERSISTENT: frozenset[Reason] = frozenset({"memory", "max_requests", "lifetime"})


class Endings:
    """Ends workers, and judges their ends. ``first_words`` is the cause of the first failed boot."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.proven = False  # some worker has been ready once: the app can boot
        self.first_words = ""
        self.counts: Counter[Reason] = Counter()  # of the whole fleet, also of slots that were scaled away

    def count(self, slot: Slot, reason: Reason) -> None:
        slot.endings[reason] += 1
        self.counts[reason] += 1

    # --- how we end a worker ---

    def retire(self, slot: Slot, process: Process, reason: Reason, why: str = "") -> None:
        """Tell a worker to finish what it has in hand and end. Given ``why``, nothing takes its place."""
        reason = process.ending or reason
        if not why:
            self.count(slot, reason)
        self.fleet.tell("draining", f"draining ({why or reason})", process, reason=None if why else reason)
        self.drain(slot, process, reason)
        process.signals.append("TERM")

    def dismiss(self, slot: Slot, why: str) -> None:
        """Retire all workers of a slot."""
        slot.wanted = slot.not_before = None
        for process in slot.processes:
            if process.state is not State.DRAINING:
                self.retire(slot, process, "manual", why)

    def drain(self, slot: Slot, process: Process, reason: Reason) -> None:
        """A worker finishes what it has in hand; see to it that it ends in time."""
        slot.settle(self.fleet.now, self.fleet.options.policy.backoff_reset)
        process.ending = process.ending or reason
        process.move(State.DRAINING, self.fleet.now)
        if not (process.aborted or process.killed):
            process.deadline = self.fleet.now + self.fleet.options.graceful_timeout + DRAIN_MARGIN

    def abort(self, process: Process, reason: Reason) -> None:
        """SIGABRT: a worker that hangs writes its stacks to the error log and ends."""
        process.ending = process.ending or reason
        process.aborted = True
        process.deadline = self.fleet.now + ABORT_GRACE
        process.signals.append("ABRT")

    def kill(self, process: Process) -> None:
        process.killed = True
        process.deadline = None
        process.signals.append("KILL")

    def escalate(self, process: Process) -> None:
        """A worker has not become ready, or not ended, in time."""
        if process.state is State.STARTING and not process.aborted:
            limit = f"{self.fleet.options.listen_timeout:g} s (listen_timeout)"
            self.fleet.tell("timeout", f"not ready within {limit}; aborting it", process, "error", "boot")
            self.abort(process, "boot")
            return
        self.fleet.tell("killed", "did not end in time; killing it", process, "warning")
        self.kill(process)

    # --- what follows ---

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
        self.count(slot, reason)
        uptime = process.uptime(self.fleet.now) or 0.0
        verdict = self._judge(slot, End(exited.code, uptime))
        follows = "its replacement is starting" if slot.starting else self._follow(slot, process, verdict)
        text = f"{describe(exited)} after {uptime:.1f} s; {follows}"
        self.fleet.tell("exited", text, process, "error", reason)

    def boot_failed(self, slot: Slot, process: Process, how: str, code: int | None, words: str) -> None:
        self.count(slot, "boot")
        repeated = bool(words) and not self.proven and words == self.first_words
        self.first_words = self.first_words or words or how
        cause = ", for the same reason" if repeated else f": {words}" if words else ""
        if self.fleet.reloads.on_trial(process):
            self.fleet.tell("boot", f"{how} before it was ready{cause}", process, "error", "boot")
            self.fleet.reloads.roll_back(words or how)
            return
        if slot.serving is not None:
            follows = self._keep_old(slot, slot.serving, process, code)
        else:
            follows = self._follow(slot, process, self._judge(slot, End(code, None)))
        self.fleet.tell("boot", f"{how} before it was ready{cause}; {follows}", process, "error", "boot")

    def prove(self) -> None:
        """A worker has been ready: the slots that waited for the proof may try again."""
        self.proven = True
        for slot in self.fleet.slots.values():
            if slot.rest is State.BACKOFF and slot.not_before is None:
                slot.not_before = self.fleet.now + self.fleet.delay(slot)

    def _keep_old(self, slot: Slot, old: Process, failed: Process, code: int | None) -> str:
        """A failed replacement never costs the worker that serves."""
        if slot.wanted not in PERSISTENT and not self.fleet.reloads.includes(slot):
            slot.wanted = None
            return "the old worker goes on"
        verdict = self._judge(slot, End(code, None))
        if verdict.decision is Decision.RESTART:
            slot.not_before = self.fleet.now + verdict.delay
            follows = f"the old worker goes on, next attempt in {verdict.delay:.1f} s"
        else:
            slot.wanted = slot.not_before = None
            slot.history = History()  # that series of attempts is over
            old.kept = True
            follows = "the old worker goes on, its replacement is given up"
        return self.fleet.reloads.ended(slot, failed, verdict.decision) or follows

    def _follow(self, slot: Slot, ended: Process, verdict: Verdict) -> str:
        """Let the slot do what the verdict says, and say so."""
        if self.fleet.shutdown is not None:
            return "the server is stopping"
        follows = self._rest(slot, verdict)
        return self.fleet.reloads.ended(slot, ended, verdict.decision) or follows

    def _rest(self, slot: Slot, verdict: Verdict) -> str:
        slot.since = self.fleet.now
        if verdict.decision is Decision.RESTART and not self.proven:
            slot.hold(State.BACKOFF)  # until a sibling proves that the app can boot at all
            return "waiting for the other workers' first boot"
        if verdict.decision is Decision.RESTART:
            slot.hold(State.BACKOFF, self.fleet.now + verdict.delay)
            return f"restarting in {verdict.delay:.2f} s" if verdict.delay else "restarting at once"
        slot.wanted = None
        if verdict.decision is Decision.STOP:
            slot.hold(State.STOPPED)
            return "stopped (autorestart, stop_exit_codes) and left until HUP or restart"
        slot.hold(State.ERRORED)
        unstable = verdict.history.unstable
        return f"errored after {unstable} unstable exits (max_restarts) and left until HUP, reset or restart"

    def _judge(self, slot: Slot, end: End) -> Verdict:
        policy = self.fleet.options.policy
        slot.settle(self.fleet.now, policy.backoff_reset)
        verdict = judge(policy, slot.history, end, self.fleet.random())
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
