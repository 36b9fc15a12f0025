"""The fleet by histories: whose replacement starts first, and how many old workers of a slot may drain."""

from __future__ import annotations

import pytest

from multicore_server.fleet import events as ev
from tests.unit.simulation import BROKEN, HANGS, Plan, Simulation, hup, lines, over_memory, serving

NEVER_ENDS = Plan(drain=None)


def started(world: Simulation) -> list[str]:
    """Which workers were forked since the last call, in order."""
    return [line.split()[2] for line in world.history() if line.split()[1] in ("fork", "try")]


# --- the oldest wish first, and a reload before the rest ---


def test_the_oldest_wish_comes_first() -> None:
    world = serving(3)
    for instance in (1, 2, 0):
        world.observe(ev.Restart(instances=frozenset({instance})))
        world.run(0.1)
    world.run(9)
    assert started(world) == ["1.2", "2.2", "0.2"]


def test_replacements_that_come_due_faster_than_a_boot_do_not_hold_up_the_others() -> None:
    world = serving(4)
    for instance in (0, 3):
        world.observe(ev.Restart(instances=frozenset({instance})))
    for _ in range(40):
        for name in world.ready():
            if name.partition(".")[0] in "01":
                world.observe(ev.AskedToRetire(world.pid(name), "max_requests"))
        world.run(0.5)
    assert "3.2" in world.ready()


def test_a_reload_comes_before_replacements_that_were_wanted_earlier() -> None:
    world = serving(4)
    for instance in range(4):
        world.observe(ev.Restart(instances=frozenset({instance})))
    hup(world, 4)
    world.run(1.1)  # instance 0 is done
    for _ in range(10):
        for name in world.ready():
            world.observe(ev.AskedToRetire(world.pid(name), "max_requests"))
        world.run(0.5)
    assert world.said("reload") == ["reload done: 4 workers replaced in 5.0 s"]


def test_workers_that_have_the_new_version_wait_until_the_reload_is_through() -> None:
    world = serving(3)
    hup(world, 3)
    world.run(1)
    world.observe(ev.AskedToRetire(world.pid("0.2"), "max_requests"))
    world.run(9)
    assert started(world) == ["0.2", "1.2", "2.2", "0.3"]


def test_a_replacement_that_failed_goes_to_the_end_of_the_queue() -> None:
    world = serving(3)
    world.plans = {f"0.{generation}": BROKEN for generation in range(2, 9)}
    over_memory(world, "0.1")
    for name in ("1.1", "2.1"):
        world.observe(ev.AskedToRetire(world.pid(name), "max_requests"))
    world.run(3)
    assert started(world)[:4] == ["0.2", "1.2", "2.2", "0.3"]


def test_an_instance_that_a_reload_cannot_replace_does_not_hold_up_the_others() -> None:
    world = serving(4)
    world.plans = {f"1.{generation}": BROKEN for generation in range(2, 40)}
    hup(world, 4)
    world.run(5)
    assert started(world)[:5] == ["0.2", "1.2", "2.2", "3.2", "1.3"]


# --- a slot with many old workers that drain ---


def with_draining(old: int, **settings: object) -> Simulation:
    """One slot whose worker serves while ``old`` ones drain for long. Each took two seconds."""
    world = serving(1, graceful_timeout=120.0, **settings)
    world.plan = NEVER_ENDS
    world.plans["0.1"] = NEVER_ENDS
    for _ in range(old):
        world.observe(ev.Restart())
        world.run(2)
    world.history()
    return world


def test_three_old_workers_of_a_slot_drain_side_by_side() -> None:
    world = with_draining(3)
    assert world.ready() == ["0.4"]
    assert not world.said("ended_early")
    world.run(60)
    assert world.history() == []


def test_the_oldest_ends_early_for_a_fourth_replacement() -> None:
    world = with_draining(3)
    world.plans["0.1"] = Plan(drain=None)
    world.observe(ev.Restart())
    world.run(9)
    assert world.said("ended_early") == [
        "ending it early: 3 old workers of this instance drain (draining_limit), its next worker waits"
    ]
    assert world.history() == lines("""
        8 QUIT 0.1
        10 KILL 0.1
        10 end 0.1
        10 fork 0.5
        11 ready 0.5
        11 TERM 0.4
    """)


def test_what_has_drained_for_a_moment_alone_is_left_in_peace() -> None:
    """Five reloads within some seconds: requests of a second or two are answered."""
    world = serving(1, graceful_timeout=120.0)
    world.plan = Plan(boot=0.1, drain=2.5)
    world.plans["0.1"] = Plan(drain=2.5)
    for _ in range(5):
        world.observe(ev.Restart())
        world.run(0.3)
    world.run(10)
    assert not world.said("ended_early")
    assert world.ready() == ["0.5"]  # the fifth came while the fourth waited for room


def test_one_old_worker_at_a_time_ends_early() -> None:
    world = with_draining(3)
    for _ in range(5):
        world.observe(ev.Restart())
        world.run(0.2)
    assert len(world.said("ended_early")) == 1


def test_an_old_worker_that_is_killed_already_makes_room_without_another() -> None:
    world = with_draining(3)
    over_memory(world, "0.2", hard=True)
    world.observe(ev.Restart())
    world.run(5)
    assert not world.said("ended_early")
    assert world.ready() == ["0.5"]


def test_a_slot_is_not_without_a_worker_while_old_ones_drain() -> None:
    world = with_draining(3)
    world.plans["0.1"] = Plan(drain=None)
    world.observe(ev.AskedToRetire(world.pid("0.4"), "manual", draining=True))
    world.run(4)
    assert world.ready() == ["0.5"]
    assert world.history() == ["8 QUIT 0.1", "10 KILL 0.1", "10 end 0.1", "10 fork 0.5", "11 ready 0.5"]


@pytest.mark.parametrize(
    ("limit", "text"),
    [(1, "1 old worker of this instance drains"), (2, "2 old workers of this instance drain")],
)
def test_a_lower_limit_holds_from_the_moment_that_it_would_be_exceeded(limit: int, text: str) -> None:
    world = with_draining(limit, draining_limit=limit)
    assert not world.said("ended_early")
    world.observe(ev.Restart())
    world.run(0.9)
    assert not world.said("ended_early")
    world.run(1.2)
    assert world.said("ended_early") == [f"ending it early: more than {text} (draining_limit)"]
    signals = {line.partition(" ")[2] for line in world.history()[2:]}
    assert signals == {f"TERM 0.{limit + 1}", "QUIT 0.1"}


def test_a_reload_waits_for_room_too() -> None:
    world = with_draining(3)
    hup(world, 1, graceful_timeout=120.0)
    world.run(9)
    assert len(world.said("ended_early")) == 1
    assert world.said("reload") == ["reload done: 1 worker replaced in 3.0 s"]


def test_a_shutdown_ends_nobody_early() -> None:
    world = with_draining(3)
    world.observe(ev.Stop(graceful=True))
    world.run(30)
    assert not world.said("ended_early")


# --- a scale while a reload is on trial ---


def test_what_was_scaled_during_the_trial_stays_after_the_next_reload() -> None:
    world = serving(2)
    hup(world, 2)
    world.observe(ev.Scale(3))
    world.run(9)
    hup(world, 2)
    world.run(9)
    assert world.fleet.workers == 3


def test_what_was_scaled_while_the_configuration_loads_stays() -> None:
    world = serving(2)
    world.observe(ev.Reload())
    world.observe(ev.Scale(3))
    world.observe(ev.ReloadPrepared(world.fleet.options, 4))
    world.run(9)
    assert world.fleet.workers == 3


def test_a_scale_during_the_trial_outranks_the_configurations_new_number() -> None:
    world = serving(2)
    hup(world, 4)
    world.observe(ev.Scale(3))
    world.run(9)
    assert world.fleet.workers == 3
    hup(world, 4)
    world.run(9)
    assert world.fleet.workers == 3
    hup(world, 5)
    world.run(9)
    assert world.fleet.workers == 5


def test_a_scale_to_none_during_the_trial_stays() -> None:
    world = serving(2)
    world.plan = Plan(boot=3.0)
    hup(world, 2)
    world.observe(ev.Scale(0))
    world.run(9)
    assert world.fleet.workers == 0


def test_a_scale_that_was_refused_during_the_trial_counts_for_nothing() -> None:
    world = serving(2)
    hup(world, 3)
    world.observe(ev.Scale(99))
    world.run(9)
    assert world.fleet.workers == 3


# --- what a reload that is rolled back counts ---


@pytest.mark.parametrize("plan", [BROKEN, HANGS, Plan(forks=False)], ids=["broken", "hangs", "not forked"])
def test_a_rollback_is_no_restart_of_the_worker_that_goes_on(plan: Plan) -> None:
    world = serving(2)
    world.plan = plan
    hup(world, 2)
    world.run(30)
    assert world.fleet.reload_results == {"rolled_back": 1}
    assert not world.fleet.restarts
    assert not any(slot.endings for slot in world.fleet.slots.values())
