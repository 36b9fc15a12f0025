"""A gunicorn.conf.py with every hook that gunicorn has: who is called, where, with what, as under gthread.

docs/switching.md has what differs; it is taken out here, by name.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import sys
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import gunicorn.config
import httpx
import pytest
import trustme

from multicore_server.settings.hooks import EVENTS
from tests.support.apps import PLAIN, source
from tests.support.server import MakeServer, Server
from tests.support.waiting import wait_for

BOOT = ("pre_fork", "post_fork", "post_worker_init")
GOES = ("worker_exit", "child_exit")
START = ("nworkers_changed", "on_starting", "when_ready", *BOOT, *BOOT)
# What is done, and the hooks that it is to call. A worker is the oldest one.
PHASES: dict[str, tuple[str, ...]] = {
    "start": START,
    "requests": ("pre_request", "post_request") * 2,
    "TTIN": ("nworkers_changed", *BOOT),
    "TTOU": ("nworkers_changed", *GOES),
    "KILL worker": ("child_exit", *BOOT),
    "INT worker": ("worker_int", *GOES, *BOOT),
    "QUIT worker": ("worker_int", *GOES, *BOOT),
    "TERM worker": (*GOES, *BOOT),
    "ABRT worker": ("worker_abort", *GOES, *BOOT),
    "HUP": ("on_reload", *BOOT, *BOOT, *GOES, *GOES),
    "USR2": ("pre_exec", *START),
    "TERM": (*GOES, *GOES, "on_exit"),
    "QUIT second": ("worker_int", "worker_int", *GOES, *GOES, "on_exit"),
}
# The replacement comes first, or at once: the order of what the arbiter calls differs.
REPLACED = ("INT worker", "QUIT worker", "TERM worker", "HUP")


@dataclass
class Call:
    hook: str
    pid: int
    arity: int
    seen: dict[str, Any]


@dataclass
class History:
    """What the hooks of a server have noted, by phase."""

    server: Server
    says_ready: bool  # a worker that is told to go while it boots goes at once, without a hook
    phases: dict[str, list[Call]] = field(default_factory=dict)
    taken: int = 0
    ended: set[int] = field(default_factory=set)

    def calls(self) -> list[Call]:
        path = self.server.directory / "hooks.log"
        lines = path.read_text().splitlines(keepends=True) if path.exists() else []
        return [Call(*json.loads(line)) for line in lines if line.endswith("\n")]

    def end_phase(self, name: str) -> None:
        """Wait until all has been called; what is called beside that is the next phase's, and differs."""
        wanted = Counter(PHASES[name])

        def done() -> bool:
            return not wanted - Counter(call.hook for call in self.calls()[self.taken :])

        wait_for(done, f"all hooks of {name}")
        calls = self.calls()
        if self.says_ready:
            self.server.wait_ready(sum(call.hook == "post_worker_init" for call in calls))
        self.phases[name], self.taken = calls[self.taken :], len(calls)

    def oldest(self) -> int:
        calls = self.calls()
        gone = {call.pid for call in calls if call.hook == "worker_exit"} | self.ended
        return next(call.pid for call in calls if call.hook == "post_worker_init" and call.pid not in gone)

    def second(self) -> int:
        return next(call.pid for call in self.phases["USR2"] if call.hook == "on_starting")


def live(make_server: MakeServer, worker_class: str, trusting: ssl.SSLContext, ending: list[int]) -> History:
    server = make_server(PLAIN)
    server.write("conf.py", source("every_hook"))
    command = [sys.executable, "-m", "gunicorn", "-k", worker_class]
    server.start("-c", "conf.py", app="app:wsgi", command=command)
    history = History(server, says_ready=worker_class != "gthread")
    for name in PHASES:
        act(history, name, trusting)
        history.end_phase(name)
        if name == "USR2":
            ending.append(history.second())
    server.wait_exit()
    return history


def act(history: History, name: str, trusting: ssl.SSLContext) -> None:
    if name == "start":
        return
    if name == "requests":
        for path in ("/a?q=1", "/b"):
            url = f"https://localhost:{history.server.port}{path}"
            assert httpx.get(url, verify=trusting, headers={"connection": "close"}).text == "ok"
        return
    number, _, target = name.partition(" ")
    pids = {"": lambda: history.server.pid, "worker": history.oldest, "second": history.second}
    pid = pids[target]()
    if number == "KILL":
        history.ended.add(pid)
    os.kill(pid, getattr(signal, f"SIG{number}"))


# --- the same form for both


def told(history: History, name: str) -> Counter[str]:
    """Each call of a phase: the hook, the number of its arguments, in which process, what it could see."""
    arbiters = {history.server.pid: "arbiter", history.second(): "second"}
    found: Counter[str] = Counter()
    for call in history.phases[name]:
        seen = {key: value for key, value in call.seen.items() if key != "age"}
        if not is_different(name, call):
            found[f"{call.hook}/{call.arity} in {arbiters.get(call.pid, 'a worker')}: {seen}"] += 1
    return found


def is_different(name: str, call: Call) -> bool:
    """By docs/switching.md."""
    unchanged = call.hook == "nworkers_changed" and len(set(call.seen["what"])) == 1
    return call.hook == "ssl_context" or (name == "HUP" and unchanged)


def order(history: History, name: str) -> list[str]:
    """What the arbiter calls."""
    pids = (history.server.pid, history.second())
    return [call.hook for call in history.phases[name] if call.pid in pids and not is_different(name, call)]


def lives(history: History) -> Counter[tuple[str, ...]]:
    """What each worker calls in its life, without the requests that it happened to get."""
    found: dict[int, tuple[str, ...]] = {}
    for call in history.calls():
        beside = call.hook in ("pre_request", "post_request", "ssl_context", "pre_exec")
        if call.pid not in (history.server.pid, history.second()) and not beside:
            found[call.pid] = (*found.get(call.pid, ()), call.hook)
    return Counter(found.values())


def test_every_hook_is_called_as_under_gunicorn(
    make_server: MakeServer, trusting: ssl.SSLContext, ending: list[int]
) -> None:
    theirs = live(make_server, "gthread", trusting, ending)
    ours = live(make_server, "multicore_server.Worker", trusting, ending)
    for name in PHASES:
        assert told(ours, name) == told(theirs, name), name
        if name not in REPLACED:
            assert order(ours, name) == order(theirs, name), name
    assert lives(ours) == lives(theirs)
    contexts = [call for call in ours.calls() if call.hook == "ssl_context"]
    workers = {call.pid for call in ours.calls() if call.hook == "post_worker_init"}
    assert Counter(call.pid for call in contexts) == Counter(workers)  # once in each
    assert {(call.arity, *call.seen["what"]) for call in contexts} == {(2, "../cert.pem", True)}


def test_no_hook_is_left_out() -> None:
    hooks = {
        setting.name for setting in gunicorn.config.KNOWN_SETTINGS
        if setting.section == "Server Hooks" and setting.__module__ == "gunicorn.config"
    }  # fmt: skip
    dirty = {name for name in hooks if "dirty" in name}
    called = {hook for phase in PHASES.values() for hook in phase}
    ours = EVENTS.keys()  # known where this process has made them
    assert hooks - dirty - ours == {*called, "ssl_context"}


@pytest.fixture(autouse=True)
def _certificate(ca: trustme.CA) -> None:
    """Beside the servers' directories."""
