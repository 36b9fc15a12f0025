"""The report: every state of a slot in plain data, and the settings as a user would write them."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import get_args

import pytest

from multicore_server.arbiter.event_log import MOST_EVENTS, MOST_TEXT, EventLog
from multicore_server.arbiter.report import fleet_report, shown
from multicore_server.fleet import events as ev
from multicore_server.fleet.slots import State
from multicore_server.ipc.names import Reason
from multicore_server.ipc.report import ProcessReport, SlotReport
from multicore_server.settings.table import TABLE, Settings
from tests.unit.simulation import BROKEN, HANGS, Simulation, new

EPOCH = 1000.0


def slots(world: Simulation) -> list[SlotReport]:
    return fleet_report(world.fleet, EPOCH)["slots"]


def test_starting_and_ready() -> None:
    world = new(1)
    world.run(0.5)
    process: ProcessReport = {
        "generation": 1, "pid": world.pid("0.1"), "row": 0, "state": "starting",
        "started": 1000.0, "ready_at": None,
    }  # fmt: skip
    slot: SlotReport = {
        "instance": 0, "state": "starting", "since": 1000.0, "unstable": 0, "next_restart": None,
        "wanted": None, "restarts": {}, "processes": [process],
    }  # fmt: skip
    assert slots(world) == [slot]
    world.run(1)
    process |= {"state": "ready", "ready_at": 1001.0}
    assert slots(world) == [slot | {"state": "ready", "since": 1001.0, "processes": [process]}]


def test_the_server() -> None:
    world = new(2)
    world.run(2)
    shown_now = fleet_report(world.fleet, EPOCH)
    assert (shown_now["configured"], shown_now["capacity"]) == (2, world.capacity)
    assert (shown_now["stopping"], shown_now["reloading"]) == (False, False)
    assert shown_now["restarts"] == dict.fromkeys(get_args(Reason), 0)
    assert shown_now["reloads"] == {"ok": 0, "rolled_back": 0, "failed": 0}
    world.observe(ev.Reload())
    assert fleet_report(world.fleet, EPOCH)["reloading"] is True
    world.observe(ev.ReloadFailed("no such file"))
    shown_now = fleet_report(world.fleet, EPOCH)
    assert (shown_now["reloading"], shown_now["reloads"]["failed"]) == (False, 1)
    world.observe(ev.Stop(graceful=True))
    assert fleet_report(world.fleet, EPOCH)["stopping"] is True


def test_a_replacement_is_beside_the_one_that_serves() -> None:
    world = new(1)
    world.run(2)
    world.observe(ev.Restart())
    (slot,) = slots(world)
    assert (slot["state"], slot["since"], slot["wanted"]) == ("ready", 1001.0, "manual")
    assert [(it["generation"], it["state"]) for it in slot["processes"]] == [(1, "ready"), (2, "starting")]
    world.run(1.2)
    (slot,) = slots(world)
    assert (slot["state"], slot["since"], slot["wanted"]) == ("ready", 1003.0, None)
    assert [(it["generation"], it["state"]) for it in slot["processes"]] == [(1, "draining"), (2, "ready")]
    assert len({it["row"] for it in slot["processes"]}) == 2


def test_draining() -> None:
    world = new(2)
    world.run(2)
    world.observe(ev.Scale(1))
    world.run(0.2)
    assert [(slot["instance"], slot["state"], slot["since"]) for slot in slots(world)] == [
        (0, "ready", 1001.0),
        (1, "draining", 1002.0),
    ]
    world.run(1)
    assert [slot["instance"] for slot in slots(world)] == [0]


def test_backoff() -> None:
    world = new(2, restart_delay=5.0)
    world.run(2)
    world.end("0.1", "SEGV")
    slot = slots(world)[0]
    assert (slot["state"], slot["since"], slot["next_restart"]) == ("backoff", 1002.0, 1007.0)
    assert (slot["restarts"], slot["processes"]) == ({"signal": 1}, [])
    assert fleet_report(world.fleet, EPOCH)["restarts"]["signal"] == 1


def test_errored() -> None:
    world = new(2, max_restarts=0, min_uptime=60.0)
    world.run(2)
    world.end("1.1", 1)
    slot = slots(world)[1]
    assert (slot["state"], slot["since"], slot["next_restart"]) == ("errored", 1002.0, None)
    assert (slot["unstable"], slot["restarts"]) == (1, {"exit": 1})
    world.observe(ev.Reset())
    slot = slots(world)[1]
    assert (slot["state"], slot["unstable"]) == ("starting", 0)


def test_stopped() -> None:
    world = new(2, stop_exit_codes=frozenset({0}))
    world.run(2)
    world.end("0.1", 0)
    slot = slots(world)[0]
    assert (slot["state"], slot["since"], slot["next_restart"]) == ("stopped", 1002.0, None)


def test_every_state_was_seen() -> None:
    assert {str(state) for state in State} == {
        "starting", "ready", "draining", "backoff", "stopped", "errored",
    }  # fmt: skip


def test_a_fork_that_has_not_happened_is_no_process() -> None:
    world = new(1)
    world.holds_forks = True
    world.settle()
    (slot,) = slots(world)
    assert (slot["state"], slot["processes"]) == ("starting", [])


def test_a_boot_that_fails_beside_a_worker() -> None:
    world = new(1)
    world.run(2)
    world.plan = BROKEN
    world.observe(ev.Restart())
    world.run(1)
    (slot,) = slots(world)
    assert (slot["state"], slot["restarts"], slot["since"]) == ("ready", {"boot": 1}, 1001.0)
    world.plan = HANGS


def test_it_becomes_json() -> None:
    world = new(2, restart_delay=5.0)
    world.run(2)
    world.end("0.1", 1)
    assert json.loads(json.dumps(fleet_report(world.fleet, EPOCH))) == fleet_report(world.fleet, EPOCH)


# --- the event_log


def test_the_event_log_keeps_the_last_events_each_with_a_number() -> None:
    event_log = EventLog()
    for number in range(MOST_EVENTS + 5):
        event_log.record([ev.Event("ready", f"text {number}", instance=number)], float(number))
    assert len(event_log.entries) == MOST_EVENTS
    assert [entry["id"] for entry in event_log.entries] == list(range(6, MOST_EVENTS + 6))
    assert event_log.entries[0] == {
        "kind": "ready", "text": "text 5", "level": "info", "reason": None, "instance": 5,
        "generation": None, "pid": None, "in_hand": "", "public": "text 5", "id": 6, "at": 5.0,
    }  # fmt: skip


def test_long_texts_are_cut() -> None:
    event_log = EventLog()
    event_log.record([ev.Event("boot", "x" * 10_000)], 0.0)
    assert event_log.entries[0]["text"] == event_log.entries[0]["public"] == "x" * MOST_TEXT


def test_what_is_public_is_without_the_cause_wherever_the_text_is_cut() -> None:
    event_log = EventLog()
    cause = "secret " * MOST_TEXT
    event_log.record([ev.Event("boot", f"it failed: {cause}; it is retried", cause=cause)], 0.0)
    assert event_log.entries[0]["public"] == "it failed: the log says why; it is retried"


# --- the settings

DEFAULTS = Settings(workers=4)

# What a user may write, and as what it is shown.
WRITTEN = [
    ("workers", "3", "3"),
    ("autorestart", "on-failure", "on-failure"),
    ("min_uptime", "1500ms", "1.5"),
    ("max_restarts", "0", "0"),
    ("restart_delay", "0", "0"),
    ("max_restart_delay", "0.1", "0.1"),
    ("stop_exit_codes", "143,0", "0,143"),
    ("stop_exit_codes", "none", "none"),
    ("max_memory_restart", "1.5G", str(3 * 2**29)),
    ("max_memory_restart", "80%", "80%"),
    ("max_memory_kill", "12.5%", "12.5%"),
    ("max_memory_kill", "none", "none"),
    ("memory_metric", "rss", "rss"),
    ("max_lifetime", "40d", "3456000"),
    ("max_lifetime", "12345.678", "12345.678"),
    ("max_lifetime", "none", "none"),
    ("max_lifetime_jitter", "10%", "10%"),
    ("max_lifetime_jitter", "30s", "30"),
    ("cron_restart", "0 4 * * *", "0 4 * * *"),
    ("wait_ready", "yes", "true"),
    ("metrics_bind", "none", "none"),
    ("metrics_bind", "unix:/run/m.sock", "unix:/run/m.sock"),
    ("metrics_hosts", "b.example,*.a.example", "*.a.example,b.example"),
    ("metrics_hosts", "none", "none"),
    ("metrics_path", "/metrics", "/metrics"),
    ("app_metrics", "false", "false"),
]


@pytest.mark.parametrize(("name", "written", "expected"), WRITTEN)
def test_settings_are_shown_as_a_user_would_write_them(name: str, written: str, expected: str) -> None:
    settings = replace(DEFAULTS, **{name: TABLE[name].parse(written)})
    assert shown(settings)[name] == expected
    assert TABLE[name].parse(expected) == getattr(settings, name)


def test_every_default_is_shown_so_that_it_can_be_read_back() -> None:
    texts = shown(DEFAULTS)
    assert texts.keys() == TABLE.keys()
    for name, text in texts.items():
        assert TABLE[name].parse(text) == getattr(DEFAULTS, name), name
