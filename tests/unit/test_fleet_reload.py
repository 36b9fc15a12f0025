"""The fleet by histories: reloads. `try` is a fork with a configuration that is not yet committed."""

from __future__ import annotations

from dataclasses import replace

import pytest

from multicore_server.fleet import events as ev
from tests.unit.simulation import BROKEN, HANGS, Plan, hup, lines, serving


def test_reload() -> None:
    world = serving(3)
    hup(world, 3)
    world.run(9)
    assert world.history() == lines("""
        2 prepare
        2 try 0.2
        3 ready 0.2
        3 commit
        3 TERM 0.1
        3 fork 1.2
        3.5 end 0.1
        4 ready 1.2
        4 fork 2.2
        4 TERM 1.1
        4.5 end 1.1
        5 ready 2.2
        5 TERM 2.1
        5.5 end 2.1
    """)
    assert world.said("reload") == ["reload done: 3 workers replaced in 3.0 s"]
    assert world.fleet.restarts == {"reload": 3}


def test_reload_by_twos() -> None:
    world = serving(3, reload_surge=2)
    hup(world, 3, reload_surge=2)
    world.run(9)
    assert [line for line in world.history() if line.split()[1] in ("try", "fork", "ready")] == lines("""
        2 try 0.2
        2 try 1.2
        3 ready 0.2
        3 ready 1.2
        3 fork 2.2
        4 ready 2.2
    """)


def test_a_broken_app_is_rolled_back() -> None:
    world = serving(3, reload_surge=2)
    world.plans = {"0.2": BROKEN, "1.2": HANGS}
    hup(world, 3)
    world.run(60)
    assert world.history() == lines("""
        2 prepare
        2 try 0.2
        2 try 1.2
        2.5 end 0.2
        2.5 drop
        2.5 TERM 1.2
        3 end 1.2
    """)
    assert world.ready() == ["0.1", "1.1", "2.1"]
    assert world.said("reload") == ["reload rolled back: no module named app; the old workers keep serving"]


def test_a_reload_whose_app_hangs_is_rolled_back() -> None:
    world = serving(1)
    world.plans = {"0.2": replace(HANGS, abort=None)}
    hup(world, 1)
    world.run(60)
    assert world.history()[2:] == ["12 ABRT 0.2", "14 KILL 0.2", "14 end 0.2", "14 drop"]
    assert world.said("reload")[0].startswith("reload rolled back: not ready within 10 s (listen_timeout); ")


def test_a_reload_that_cannot_fork_is_rolled_back() -> None:
    world = serving(reload_surge=2)
    world.plans = {"0.2": Plan(forks=False)}
    hup(world)
    world.run(9)
    assert world.history() == ["2 prepare", "2 try 0.2", "2 try 1.2", "2 drop", "2 TERM 1.2", "2.5 end 1.2"]


def test_a_configuration_that_does_not_load() -> None:
    world = serving()
    world.prepares = ev.ReloadFailed("gunicorn.conf.py, line 3: invalid syntax")
    world.observe(ev.Reload())
    world.run(9)
    assert world.history() == ["2 prepare"]
    text = "reload failed: gunicorn.conf.py, line 3: invalid syntax; everything stays as it was"
    assert world.said("reload") == [text]


def test_hup_after_a_failed_one_works() -> None:
    world = serving(1)
    world.plans = {"0.2": BROKEN}
    hup(world, 1)
    world.run(9)
    hup(world, 1)
    world.run(9)
    assert world.ready() == ["0.3"]


@pytest.mark.parametrize("times", [1, 5])
def test_hup_during_a_reload_means_one_more(times: int) -> None:
    world = serving(1)
    hup(world, 1)
    world.run(0.5)
    for _ in range(times):
        world.observe(ev.Reload())
    world.run(9)
    assert [line for line in world.history() if "TERM" not in line and "end" not in line] == lines("""
        2 prepare
        2 try 0.2
        3 ready 0.2
        3 commit
        3 prepare
        3 try 0.3
        4 ready 0.3
        4 commit
    """)


def test_hup_during_a_reload_that_fails_means_one_more() -> None:
    world = serving(1)
    world.plans = {"0.2": BROKEN}
    hup(world, 1)
    world.observe(ev.Reload())
    world.run(9)
    assert world.ready() == ["0.3"]


def test_hup_while_the_configuration_loads_means_one_more() -> None:
    world = serving(1)
    world.observe(ev.Reload())
    world.observe(ev.Reload())
    world.observe(ev.ReloadFailed("a typo"))
    world.run(1)
    assert world.history() == ["2 prepare", "2 prepare"]


def test_a_reload_scales() -> None:
    world = serving()
    hup(world, 3)
    world.run(5)
    assert world.ready() == ["0.2", "1.2", "2.1"]
    hup(world, 1)
    world.run(5)
    assert world.ready() == ["0.3"]
    assert not world.fleet.reloading
    world.history()
    hup(world, 99)
    world.run(5)
    assert world.ready() == ["0.4"]


def test_a_reload_brings_its_settings() -> None:
    world = serving(1)
    hup(world, 1, listen_timeout=3.0)
    world.run(2)
    world.plans = {"0.3": HANGS}
    world.history()
    world.observe(ev.Restart())
    world.run(3)
    assert world.history() == ["4 fork 0.3", "7 ABRT 0.3", "7 end 0.3"]


def test_a_reload_of_no_workers() -> None:
    world = serving()
    world.observe(ev.Scale(0))
    world.run(1)
    world.history()
    hup(world, 2)
    world.run(3)
    assert world.history() == lines("""
        3 prepare
        3 commit
        3 scaled 2
        3 fork 0.2
        3 fork 1.2
        4 ready 0.2
        4 ready 1.2
    """)


def test_what_was_scaled_stays_so_unless_the_configuration_has_another_number() -> None:
    world = serving()
    world.observe(ev.Scale(3))
    world.run(2)
    hup(world, 2)
    world.run(9)
    assert (world.fleet.workers, len(world.fleet.slots)) == (3, 3)
    hup(world, 4)
    world.run(9)
    assert (world.fleet.workers, len(world.fleet.slots)) == (4, 4)


def test_a_configuration_that_cannot_be_put_in_force_leaves_the_old_one_in_force() -> None:
    world = serving(2)
    world.commit_fails = "cannot write the pidfile"
    hup(world, 3, graceful_timeout=1.0)
    world.run(5)
    assert world.said("reload") == [
        "reload failed: cannot write the pidfile; the old configuration stays in force"
    ]
    assert world.fleet.reload_results == {"failed": 1}
    assert (world.fleet.workers, world.fleet.options.graceful_timeout) == (2, 5.0)
    assert world.history() == lines("""
        2 prepare
        2 try 0.2
        3 ready 0.2
        3 commit
        3 TERM 0.1
        3 fork 0.3
        3.5 end 0.1
        4 ready 0.3
        4 TERM 0.2
        4.5 end 0.2
    """)


def test_a_reload_that_waited_follows_one_that_could_not_be_put_in_force() -> None:
    world = serving(1)
    world.commit_fails = "cannot write the pidfile"
    hup(world, 1)
    world.observe(ev.Reload())
    world.run(1)
    world.commit_fails = ""
    world.run(9)
    assert world.fleet.reload_results == {"failed": 1, "ok": 1}
    assert not world.fleet.reloading


@pytest.mark.parametrize("answer", [ev.Committed(), ev.CommitFailed("too late")])
def test_an_answer_without_a_reload_changes_nothing(answer: ev.Observation) -> None:
    world = serving(1)
    world.observe(answer)
    assert (world.history(), world.events[-1].kind) == ([], "ready")
