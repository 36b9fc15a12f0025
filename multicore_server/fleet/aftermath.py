"""Decides what follows from the exit of a worker.

Pure, a part of the fleet. The decision is a value (`Aftermath`); one table puts it into words for the log.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import NamedTuple

from multicore_server.fleet import events as ev
from multicore_server.fleet.policy import Decision, End, History, Verdict, judge
from multicore_server.fleet.rollout import Reloads
from multicore_server.fleet.slots import Process, Slot, State
from multicore_server.fleet.state import FleetState
from multicore_server.ipc.names import Reason

# A failed replacement is tried again where the cause persists; the other reasons ask once.
PERSISTENT: frozenset[Reason] = frozenset({"memory", "max_requests", "lifetime"})


class Next(Enum):
    RESTART = auto()
    WAIT_FOR_PROOF = auto()
    STOP = auto()
    GIVE_UP = auto()
    REPLACEMENT_STARTS = auto()
    RELOAD_STARTS_IT = auto()
    SERVER_STOPS = auto()
    OLD_WORKER_STAYS = auto()
    REPLACE_LATER = auto()
    KEEP_OLD_WORKER = auto()


class Aftermath(NamedTuple):
    """``delay``: seconds until the next attempt. ``unstable``: how many unstable exits there were."""

    next: Next
    delay: float = 0.0
    unstable: int = 0

    def __str__(self) -> str:
        if self.next is Next.RESTART and not self.delay:
            return "restarting at once"
        return WORDS[self.next].format(delay=self.delay, unstable=self.unstable)


WORDS = {
    Next.RESTART: "restarting in {delay:.2f} s",
    Next.WAIT_FOR_PROOF: "waiting for the other workers' first boot",
    Next.STOP: "stopped (autorestart, stop_exit_codes) until HUP or restart",
    Next.GIVE_UP: "errored after {unstable} unstable exits (max_restarts) until HUP, reset or restart",
    Next.REPLACEMENT_STARTS: "its replacement is starting",
    Next.RELOAD_STARTS_IT: "the reload in progress starts it again",
    Next.SERVER_STOPS: "the server is stopping",
    Next.OLD_WORKER_STAYS: "the old worker keeps serving",
    Next.REPLACE_LATER: "the old worker keeps serving, next attempt in {delay:.1f} s",
    Next.KEEP_OLD_WORKER: "the old worker keeps serving, its replacement is given up",
}


class Endings:
    """Judges the ends of workers, and lets their slots do what follows."""

    def __init__(self, state: FleetState, reloads: Reloads) -> None:
        self.state = state
        self.reloads = reloads

    def ended(self, slot: Slot, process: Process, exited: ev.Exited) -> None:
        """A process of this slot is gone."""
        if process.state is State.DRAINING:
            self._gone(process, exited)
        elif process.state is State.STARTING:
            late = self.state.options.too_late if process.ending == "boot" else ""
            self.boot_failed(slot, process, describe(exited), exited.code, exited.words or late)
        else:
            self._crashed(slot, process, exited)

    def _gone(self, process: Process, exited: ev.Exited) -> None:
        drained = f"after draining for {self.state.now - process.since:.1f} s"
        when = "while it was starting" if process.ready_at is None else drained
        text = f"{describe(exited)} {when}{left(exited)}"
        self.state.tell("gone", text, process, in_hand=exited.in_hand)

    def _crashed(self, slot: Slot, process: Process, exited: ev.Exited) -> None:
        reason = why_ended(process, exited)
        self.state.count(slot, reason)
        uptime = process.uptime(self.state.now) or 0.0
        verdict = self._judge(slot, End(exited.code, uptime))
        aftermath = (
            Aftermath(Next.REPLACEMENT_STARTS) if slot.starting else self._follow(slot, process, verdict)
        )
        text = f"{describe(exited)} after {uptime:.1f} s{left(exited)}; {aftermath}"
        self.state.tell("exited", text, process, "error", reason, exited.in_hand)

    def boot_failed(self, slot: Slot, process: Process, how: str, code: int | None, words: str) -> None:
        """A process of this slot, gone by now, was never ready."""
        state = self.state
        repeated = bool(words) and not state.proven and words == state.first_words
        state.first_words = state.first_words or words or how
        cause = ", for the same reason" if repeated else f": {words}" if words else ""
        if self.reloads.on_trial(process):
            state.tell("boot", f"{how} before it was ready{cause}", process, "error", "boot", cause=words)
            # It counts as that, and not as a restart as well.
            self.reloads.roll_back(f"{words or how}; the old workers keep serving", words)
            return
        state.count(slot, "boot")
        aftermath = self._after_failed_boot(slot, process, code)
        text = f"{how} before it was ready{cause}; {aftermath}"
        state.tell("boot", text, process, "error", "boot", cause=words)

    def _after_failed_boot(self, slot: Slot, process: Process, code: int | None) -> Aftermath:
        if slot.serving is not None:
            return self._keep_old(slot, slot.serving, process, code)
        return self._follow(slot, process, self._judge(slot, End(code, None)))

    def _keep_old(self, slot: Slot, old: Process, failed: Process, code: int | None) -> Aftermath:
        """A failed replacement never costs the worker that serves."""
        if slot.wanted not in PERSISTENT and not self.reloads.includes(slot):
            slot.wanted = None
            return Aftermath(Next.OLD_WORKER_STAYS)
        verdict = self._judge(slot, End(code, None))
        old.settled = True  # from now on its time says nothing about the ends that are remembered
        if verdict.decision is Decision.RESTART:
            slot.not_before = self.state.now + verdict.delay
            slot.queued_at = self.state.now
            aftermath = Aftermath(Next.REPLACE_LATER, verdict.delay)
        else:
            slot.wanted = slot.not_before = None
            slot.history = History()  # that series of attempts is over
            old.kept = True
            aftermath = Aftermath(Next.KEEP_OLD_WORKER)
        return self._or_reload(aftermath, slot, failed, verdict)

    def _follow(self, slot: Slot, ended: Process, verdict: Verdict) -> Aftermath:
        """Let the slot do what the verdict says."""
        if self.state.stopping:
            return Aftermath(Next.SERVER_STOPS)
        return self._or_reload(self._rest(slot, verdict), slot, ended, verdict)

    def _or_reload(self, aftermath: Aftermath, slot: Slot, ended: Process, verdict: Verdict) -> Aftermath:
        """The same, unless the reload in progress takes the slot over."""
        taken = self.reloads.take_ended(slot, ended, verdict.decision)
        return Aftermath(Next.RELOAD_STARTS_IT) if taken else aftermath

    def _rest(self, slot: Slot, verdict: Verdict) -> Aftermath:
        slot.since = self.state.now
        if verdict.decision is Decision.RESTART:
            if not self.state.proven:  # until a sibling proves that the app can boot at all
                slot.hold(State.BACKOFF)
                return Aftermath(Next.WAIT_FOR_PROOF)
            slot.hold(State.BACKOFF, self.state.now + verdict.delay)
            return Aftermath(Next.RESTART, verdict.delay)
        slot.wanted = None
        if verdict.decision is Decision.STOP:
            slot.hold(State.STOPPED)
            return Aftermath(Next.STOP)
        slot.hold(State.ERRORED)
        return Aftermath(Next.GIVE_UP, unstable=verdict.history.unstable)

    def _judge(self, slot: Slot, end: End) -> Verdict:
        policy = self.state.options.policy
        slot.settle(self.state.now, policy.backoff_reset)
        verdict = judge(policy, slot.history, end, self.state.random())
        slot.history = verdict.history
        return verdict


def describe(exited: ev.Exited) -> str:
    if exited.signal is None:
        return f"exited with code {exited.code}"
    return f"was killed by {exited.signal}" + (" (out of memory)" if exited.oom else "")


def left(exited: ev.Exited) -> str:
    """How many requests it did not answer."""
    if not exited.requests:
        return ""
    return f" with {exited.requests} request{'s' * (exited.requests != 1)} in progress"


def why_ended(process: Process, exited: ev.Exited) -> Reason:
    """What it was ended for, or how it ended by itself."""
    if process.ending is not None:
        return process.ending
    return "boot" if process.ready_at is None else reason_of(exited)


def reason_of(exited: ev.Exited) -> Reason:
    if exited.oom:
        return "oom"
    return "exit" if exited.signal is None else "signal"
