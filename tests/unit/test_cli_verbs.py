"""The verbs: what they ask of a server, what they print, their exit status."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from multicore_server.cli import listing, progress, verbs
from multicore_server.cli.main import main
from multicore_server.cli.servers import (
    Begun,
    GoneError,
    LeftError,
    NoAnswerError,
    SeveralServersError,
    Trouble,
    UnknownServerError,
)
from multicore_server.cli.waiting import CommandResult
from multicore_server.ipc.report import EventReport, Status
from tests.support.reports import event, process, status, worker
from tests.unit.scripted_server import ScriptedServer

BEFORE = status(worker(0, process(0)), worker(1, process(1)), events=[])
AFTER = status(worker(0, process(0, 2)), worker(1, process(1, 2)), events=[])


def happened(number: int, kind: str, text: str, **who: Any) -> EventReport:
    nobody = {"instance": None, "generation": None, "pid": None}
    return event(text, id=number, kind=kind, **{**nobody, **who})


class Operated:
    """The one server that there is, and the command line."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.server = ScriptedServer(BEFORE)
        self.named: list[str | None] = []
        self.servers = [self.server]
        monkeypatch.setattr(verbs, "choose", self._choose)
        monkeypatch.setattr(verbs, "running", lambda: list(self.servers))
        monkeypatch.setattr(progress, "POLL", 0.0)
        monkeypatch.setattr(listing, "BETWEEN", 0.0)
        monkeypatch.setattr("time.sleep", lambda _: None)

    def _choose(self, wanted: str | None) -> ScriptedServer:
        self.named.append(wanted)
        return self.server

    def says(self, *history: Status | Trouble) -> None:
        self.server.history = list(history)

    def run(self, *arguments: str, status: int = 0) -> Result:
        done = CliRunner().invoke(main, arguments)
        assert done.exit_code == status, done.output
        return done


@pytest.fixture
def operated(monkeypatch: pytest.MonkeyPatch) -> Operated:
    return Operated(monkeypatch)


# --- looking ---


def test_ps(operated: Operated) -> None:
    assert "2 of 2 ready" in operated.run("ps").stdout
    assert operated.named == []
    operated.run("ps", "api")
    assert operated.named == ["api"]
    assert json.loads(operated.run("ps", "--json").stdout) == [BEFORE]


def test_ps_of_no_server_and_of_one_that_is_silent(operated: Operated) -> None:
    operated.says(NoAnswerError("it does not answer"))
    for options in ((), ("--json",)):
        assert operated.run("ps", *options, status=2).stderr == "multicore-server: it does not answer\n"
    operated.servers = []
    assert operated.run("ps").stderr == "no server of this user is running\n"


def test_show(operated: Operated) -> None:
    assert "room for 64" in operated.run("show", "8000").stdout
    assert json.loads(operated.run("show", "--json").stdout) == BEFORE
    assert operated.named == ["8000", None]


def test_metrics(operated: Operated) -> None:
    assert operated.run("metrics").stdout_bytes == b"multicore_workers 2\n"


@pytest.mark.parametrize(("options", "texts"), [((), "abc"), (("--last", "2"), "bc"), (("--last", "0"), "")])
def test_events(operated: Operated, options: tuple[str, ...], texts: str) -> None:
    operated.says(status(events=[happened(number, "ready", text) for number, text in enumerate("abc", 1)]))
    assert "".join(line[-1] for line in operated.run("events", *options).stdout.splitlines()) == texts
    lines = operated.run("events", "--json", *options).stdout.splitlines()
    assert "".join(json.loads(line)["text"] for line in lines) == texts


def test_events_that_are_followed_survive_a_new_monitor_and_come_once(operated: Operated) -> None:
    a, b, c, d = (happened(number, "ready", text) for number, text in enumerate("abcd", 1))
    operated.says(status(events=[a, b]))
    operated.server.streams = [[a, b, c], NoAnswerError("the monitor is replaced"), [b, c, d]]
    done = operated.run("events", "--follow", "--last", "1")
    assert [line[-1] for line in done.stdout.splitlines()] == ["b", "c", "d"]
    assert done.stderr == "the server with pid 4000 has exited\n"


@pytest.mark.parametrize("last", ["x", "-1", "1e3", "1" * 7, "\u0661"])
def test_a_number_of_events_that_is_none(operated: Operated, last: str) -> None:
    assert "--last: " in operated.run("events", "--last", last, status=2).stderr


# --- changing ---


def test_a_reload_is_waited_for(operated: Operated) -> None:
    done = {**AFTER, "events": [happened(1, "reload", "reload done: 2 workers replaced", reason="ok")]}
    operated.says(BEFORE, BEFORE, done)  # type: ignore[arg-type]  # a TypedDict still
    assert operated.run("reload", "api").stdout == "reload done: 2 workers replaced\n"
    assert operated.server.asked == [("reload", {})]


def test_a_reload_that_is_rolled_back_has_status_1(operated: Operated) -> None:
    told = happened(1, "reload", "reload rolled back: boom", reason="rolled_back")
    operated.says(BEFORE, status(worker(0), events=[told]))
    done = operated.run("reload", status=1)
    assert done.stderr.endswith("multicore-server: reload rolled back: boom\n")
    operated.says(BEFORE, status(worker(0), events=[told]))
    document = json.loads(operated.run("reload", "--json", status=1).stdout)
    assert document == {"ok": False, "text": "reload rolled back: boom", "pid": operated.server.pid}


@pytest.mark.parametrize(
    ("arguments", "server", "instances"),
    [
        ((), None, None),
        (("api",), "api", None),
        (("1",), None, [1]),
        (("api", "0", "1"), "api", [0, 1]),
        (("-s", "8000", "0"), "8000", [0]),
    ],
)
def test_restart(
    operated: Operated, arguments: tuple[str, ...], server: str | None, instances: list[int] | None
) -> None:
    operated.says(BEFORE, AFTER)
    count = len(instances or [0, 1])
    text = operated.run("restart", *arguments).stdout
    assert text == f"restarted: {count} worker{'s' if count > 1 else ''} replaced\n"
    assert operated.named == [server]
    assert operated.server.asked == [("restart", {"instances": instances})]


def test_restart_of_what_is_no_instance(operated: Operated) -> None:
    assert "'x' is not an instance number" in operated.run("restart", "0", "x", status=2).stderr
    assert operated.server.asked == []


@pytest.mark.parametrize("options", [(), ("--no-wait",)])
def test_a_port_is_taken_for_an_instance(operated: Operated, options: tuple[str, ...]) -> None:
    said = operated.run("restart", "0", "8000", *options, status=2).stderr
    assert said == (
        "multicore-server: restart: there is no instance 8000; there are 0, 1; "
        "a number is an instance here, and `-s 8000` names a server by its port or pid\n"
    )
    assert operated.server.asked == []


@pytest.mark.parametrize(("arguments", "hint"), [((), ""), (("8000",), "; a number is an instance here, ")])
def test_a_port_alone_names_none_of_several_servers(
    operated: Operated, monkeypatch: pytest.MonkeyPatch, arguments: tuple[str, ...], hint: str
) -> None:
    def choose(_: str | None) -> ScriptedServer:
        raise SeveralServersError("several servers are running")

    for verb in ("requests", "stacks"):
        monkeypatch.setattr(f"multicore_server.cli.{verb}.choose", choose)
    monkeypatch.setattr(verbs, "choose", choose)
    for verb in ("requests", "stacks", "restart"):
        said = operated.run(verb, *arguments, status=2).stderr
        assert said.startswith(f"multicore-server: several servers are running{hint or chr(10)}")


@pytest.mark.parametrize("verb", ["requests", "stacks"])
def test_an_instance_that_is_not_there(
    operated: Operated, monkeypatch: pytest.MonkeyPatch, verb: str
) -> None:
    monkeypatch.setattr(f"multicore_server.cli.{verb}.choose", lambda _: operated.server)
    said = operated.run(verb, "1", "7", status=2).stderr
    assert said.startswith(f"multicore-server: {verb}: there is no instance 7; there are 0, 1; ")


@pytest.mark.parametrize(("arguments", "wanted"), [(("+1",), "+1"), (("api", "-1"), "-1"), (("MAX",), "MAX")])
def test_scale(operated: Operated, arguments: tuple[str, ...], wanted: str) -> None:
    operated.server.begun = Begun("scaling from 2 to 3", 3)
    three = status(*(worker(it, process(it)) for it in range(3)), events=[])
    operated.says(BEFORE, BEFORE, three)
    assert operated.run("scale", *arguments).stdout == "scaled: 3 workers ready\n"
    assert operated.server.asked == [("scale", {"workers": wanted})]


def test_scale_of_a_server_that_does_not_say_to_what(operated: Operated) -> None:
    operated.server.begun = Begun("scaling", None)
    assert operated.run("scale", "3").stdout == "scaling\n"


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ((), "is not a number of workers"),
        (("many",), "is not a number of workers"),
        (("a", "b", "3"), "give a server and a number of workers"),
        (("-s", "a", "b", "3"), "give a server and a number of workers"),
    ],
)
def test_scale_to_what_is_no_number(operated: Operated, arguments: tuple[str, ...], text: str) -> None:
    assert text in operated.run("scale", *arguments, status=2).stderr
    assert operated.server.asked == []


def test_without_waiting(operated: Operated) -> None:
    for verb in (("reload",), ("restart",), ("scale", "3"), ("stop",)):
        assert operated.run(*verb, "--no-wait").stdout == "begun\n"


def test_stop(operated: Operated) -> None:
    operated.says(BEFORE, GoneError("gone"))
    assert operated.run("stop").stdout == "stopped\n"
    operated.run("stop", "--now", "--json", "--no-wait")
    assert operated.server.asked == [("stop", {"graceful": True}), ("stop", {"graceful": False})]


def test_reset(operated: Operated) -> None:
    assert operated.run("reset").stdout == "begun\n"
    assert operated.server.asked == [("reset", {})]


def test_a_command_that_is_refused(operated: Operated) -> None:
    operated.server.begun = Trouble("scale: 99 workers: 1 to 64 are possible")
    assert operated.run("scale", "99", status=2).stderr == (
        "multicore-server: scale: 99 workers: 1 to 64 are possible\n"
    )


# --- several servers ---


@pytest.fixture
def both(operated: Operated, monkeypatch: pytest.MonkeyPatch) -> dict[str, ScriptedServer]:
    """Two servers, by name."""
    found = {name: ScriptedServer(BEFORE, pid=pid) for name, pid in (("shop", 101), ("blog", 102))}
    operated.servers = list(found.values())

    def choose(name: str | None) -> ScriptedServer:
        if name not in found:
            raise UnknownServerError(f"no server {name!r} is running")
        return found[name]

    monkeypatch.setattr(verbs, "choose", choose)
    return found


def asked(both: dict[str, ScriptedServer]) -> list[list[str]]:
    return [[name for name, _ in server.asked] for server in both.values()]


@pytest.mark.parametrize("verb", ["reload", "restart", "stop", "reset"])
@pytest.mark.parametrize(
    ("named", "times"),
    [(["shop"], (1, 0)), (["blog", "shop"], (1, 1)), (["all"], (1, 1)), (["blog", "blog"], (0, 1)),
     (["multicore.toml"], (1, 1))],
)  # fmt: skip
def test_a_verb_for_several(
    operated: Operated, both: dict[str, ScriptedServer], verb: str, named: list[str], times: tuple[int, int],
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    (tmp_path / "multicore.toml").write_text("[shop]\n[blog]\n")
    monkeypatch.chdir(tmp_path)
    wait = [] if verb == "reset" else ["--no-wait"]
    done = operated.run(verb, *named, *wait)
    assert done.stdout == "begun\n" * sum(times)
    assert done.stderr.count("the server with pid") == (sum(times) if sum(times) > 1 else 0)
    assert asked(both) == [[verb] * number for number in times]


def test_one_that_fails_does_not_keep_the_others_from_their_turn(
    operated: Operated, both: dict[str, ScriptedServer]
) -> None:
    both["shop"].begun = Trouble("reset: it does not answer")
    done = operated.run("reset", "all", status=2)
    assert "multicore-server: reset: it does not answer\n" in done.stderr
    assert done.stdout == "begun\n"
    both["shop"].begun = Begun("begun", None)
    both["shop"].history = [NoAnswerError("it hangs")]
    assert operated.run("reload", "shop", "blog", "--no-wait", status=0).stdout == "begun\nbegun\n"


def test_all_are_told_to_stop_before_one_is_waited_for(
    operated: Operated, both: dict[str, ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    waited: list[list[list[str]]] = []

    def wait(*_: Any, **__: Any) -> CommandResult:
        waited.append(asked(both))
        return CommandResult(True, "stopped")

    monkeypatch.setattr(verbs, "wait_for_end", wait)
    assert operated.run("stop", "all").stdout == "stopped\nstopped\n"
    assert waited == [[["stop"], ["stop"]]] * 2


def test_an_interrupted_wait_ends_all(
    operated: Operated, both: dict[str, ScriptedServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    def leave(*_: Any, **__: Any) -> None:
        raise LeftError("no longer watching")

    monkeypatch.setattr(verbs, "wait", leave)
    operated.run("reload", "all", status=130)
    assert asked(both) == [["reload"], []]


def test_instances_are_of_one_server(operated: Operated, both: dict[str, ScriptedServer]) -> None:
    said = operated.run("restart", "shop", "blog", "0", status=2).stderr
    assert "restart: instances are those of one server, and 2 are named" in said
    assert "no server 'shpo' is running" in operated.run("stop", "blog", "shpo", status=2).stderr
    assert asked(both) == [[], []]


def test_a_server_that_can_be_started(
    operated: Operated, both: dict[str, ScriptedServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "multicore.toml").write_text("[mail]\n")
    monkeypatch.chdir(tmp_path)
    said = operated.run("restart", "mail", status=2).stderr
    assert said == "multicore-server: no server 'mail' is running; `start mail` starts it\n"
    assert "no server 'news' is running\n" in operated.run("restart", "news", status=2).stderr


def test_ps_of_some(operated: Operated, both: dict[str, ScriptedServer]) -> None:
    assert operated.run("ps", "shop", "blog").stdout.count("2 of 2 ready") == 2
    assert operated.run("ps", "blog").stdout.count("2 of 2 ready") == 1


# --- watching ---


@pytest.mark.parametrize("interval", ["0", "61", "x", "0.01"])
def test_monit_with_an_interval_that_is_none(operated: Operated, interval: str) -> None:
    assert operated.run("monit", "--interval", interval, status=2).stderr.startswith(
        "multicore-server: --interval:"
    )


def test_monit_without_a_terminal(operated: Operated) -> None:
    assert "monit needs a terminal" in operated.run("monit", status=2).stderr
