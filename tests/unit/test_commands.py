"""What operators command, as the arbiter carries it out: on a real fleet, in a simulated world."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest

from multicore_server.arbiter.commands import COMMANDS, Commands
from multicore_server.fleet import events as ev
from multicore_server.ipc.messages import Answer, Command, ReloadCommand, ScaleCommand
from multicore_server.machine.cpu import usable_cpus
from multicore_server.monitor.commands import COMMANDS as CHECKED
from multicore_server.monitor.commands import parse
from tests.unit.shell import Log
from tests.unit.simulation import Simulation, new

NOW = 1000.0  # by the arbiter's monotonic clock


class Desk:
    """Commands as the monitor passes them on, carried out in a simulated world."""

    def __init__(self, world: Simulation) -> None:
        self.world = world
        self.observed: list[ev.Observation] = []
        self.log = Log()
        system = SimpleNamespace(monotonic=lambda: NOW)
        context: Any = SimpleNamespace(fleet=world.fleet, observe=self._observe, log=self.log, system=system)
        self._commands = Commands(context, self._end)

    def _observe(self, observation: ev.Observation) -> None:
        self.observed.append(observation)
        self.world.observe(observation)

    def _end(self, graceful: bool) -> None:
        self._observe(ev.Stop(graceful))

    def command(self, name: str, body: str = "") -> tuple[bool, str]:
        answer = self.answer(parse(name, body.encode()))
        return answer.ok, answer.text

    def answer(self, command: Command) -> Answer:
        return self._commands.carry_out(command)


@pytest.fixture
def desk() -> Desk:
    world = new(2)
    world.run(2)
    return Desk(world)


def test_every_command_that_is_checked_can_be_carried_out() -> None:
    bodies = {"scale": b'{"workers": 1}'}
    assert COMMANDS.keys() == {type(parse(name, bodies.get(name, b""))) for name in CHECKED}


@pytest.mark.parametrize(
    ("name", "body", "text", "observed"),
    [
        ("reload", "", "reloading", ev.Reload()),
        ("restart", "", "restarting all instances", ev.Restart()),
        ("restart", '{"instances": [1, 0]}', "restarting 0, 1", ev.Restart(instances=frozenset({0, 1}))),
        ("scale", '{"workers": 5}', "scaling from 2 to 5", ev.Scale(5)),
        ("scale", '{"workers": "+2"}', "scaling from 2 to 4", ev.Scale(4)),
        ("scale", '{"workers": "-1"}', "scaling from 2 to 1", ev.Scale(1)),
        ("scale", '{"workers": 8}', "scaling from 2 to 8", ev.Scale(8)),
        ("stop", "", "stopping", ev.Stop(graceful=True)),
        ("stop", '{"graceful": false}', "stopping", ev.Stop(graceful=False)),
        ("reset", "", "the counts of unstable exits start from 0", ev.Reset()),
    ],
)
def test_commands(desk: Desk, name: str, body: str, text: str, observed: ev.Observation) -> None:
    assert desk.command(name, body) == (True, text)
    assert desk.observed == [observed]
    assert desk.log.lines == [f"INFO: Handling command: {text}"]


def test_scale_to_the_cpus(desk: Desk) -> None:
    assert desk.command("scale", '{"workers": "max"}')[0]
    assert desk.observed == [ev.Scale(usable_cpus())]


@pytest.mark.parametrize(
    ("name", "body", "text"),
    [
        ("restart", '{"instances": [0, 7, 9]}', "there is no instance 7; there are 0, 1"),
        ("scale", '{"workers": "-2"}', "0 workers: 1 to 8 are possible without a restart"),
        ("scale", '{"workers": "-5"}', "-3 workers: 1 to 8 are possible without a restart"),
        ("scale", '{"workers": 9}', "9 workers: 1 to 8 are possible without a restart"),
    ],
)
def test_what_is_refused_changes_nothing(desk: Desk, name: str, body: str, text: str) -> None:
    assert desk.command(name, body) == (False, text)
    assert desk.observed == []
    assert desk.log.lines == [f"INFO: Refusing command: {text}"]
    assert desk.world.ready() == ["0.1", "1.1"]


@pytest.mark.parametrize("workers", ["", "+", "4", "-0x1", "+" + "9" * 4300, "+1e9", "+\u0661", "x" * 60_000])
def test_a_monitor_that_checks_nothing_is_refused(desk: Desk, workers: str) -> None:
    """Python raises where a number of more than 4300 digits becomes text."""
    answer = desk.answer(ScaleCommand(1, workers))
    assert answer == Answer(1, False, "workers: give a number, a change such as +2, or max")
    assert desk.observed == []


@pytest.mark.parametrize("name", CHECKED)
def test_a_command_for_which_nobody_waits_any_more_is_not_carried_out(desk: Desk, name: str) -> None:
    bodies = {"scale": b'{"workers": "+1"}'}
    command = replace(parse(name, bodies.get(name, b"")), id=3)
    late = f"{name} comes too late, nobody waits for it any more"
    assert desk.answer(replace(command, deadline=NOW - 0.001)) == Answer(3, False, late)
    assert desk.observed == []
    assert desk.log.lines == [f"INFO: Refusing command: {late}"]
    assert desk.answer(replace(command, deadline=NOW)).ok
    assert len(desk.observed) == 1


def test_an_answer_has_the_number_of_its_command_and_what_a_scaling_leads_to(desk: Desk) -> None:
    assert desk.answer(ScaleCommand(7, "+2")) == Answer(7, True, "scaling from 2 to 4", 4)
    assert desk.answer(ReloadCommand(8)) == Answer(8, True, "reloading", None)


def test_a_change_that_is_no_number_is_refused(desk: Desk) -> None:
    """The monitor has checked it; the arbiter does not rely on that."""
    assert desk.answer(ScaleCommand(1, "explode")).ok is False
    assert desk.observed == []


def test_while_it_stops_it_can_only_be_hurried(desk: Desk) -> None:
    assert desk.command("stop")[0]
    for name, body in (("reload", ""), ("restart", ""), ("scale", '{"workers": 3}'), ("reset", "")):
        assert desk.command(name, body) == (False, "the server is stopping")
    assert desk.command("stop", '{"graceful": false}') == (True, "stopping")
    assert desk.observed == [ev.Stop(graceful=True), ev.Stop(graceful=False)]
