"""`logs`: the last lines, over rotated files; those that come; whose each line is."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from multicore_server.cli import log_reader, logs, servers
from multicore_server.cli.log_lines import Speakers, instance_of, shown, warning_in
from multicore_server.cli.log_reader import LogReader
from multicore_server.cli.main import main
from multicore_server.cli.servers import UnknownServerError
from multicore_server.ipc.report import Status
from multicore_server.machine.log_files import shift
from multicore_server.machine.process import unit_of
from tests.support.reports import event, process, status, worker
from tests.unit.scripted_server import ScriptedServer

# --- reading


def lines(first: int, last: int) -> bytes:
    return b"".join(b"line %d\n" % number for number in range(first, last + 1))


class Written:
    """A log, rotated as a server rotates it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.keep = 5

    def write(self, text: bytes, number: int = 0) -> None:
        path = self.path if number == 0 else self.path.with_name(f"log.{number}")
        with path.open("ab") as file:
            file.write(text)

    def rotate(self) -> None:
        shift(self.path, self.keep)
        self.path.touch()


@pytest.fixture
def written(tmp_path: Path) -> Written:
    return Written(tmp_path / "log")


@pytest.fixture
def reader(written: Written) -> Iterator[LogReader]:
    written.write(lines(1, 3))
    found = LogReader(written.path)
    yield found
    found.close()


def read(found: LogReader) -> bytes:
    return b"".join(found.new())


@pytest.mark.parametrize("block", [1, 7, 2**16])
@pytest.mark.parametrize("number", [0, 1, 4, 5, 9, 10, 11, 500])
def test_the_last_lines_are_found_over_rotated_files(
    written: Written, number: int, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(log_reader, "BLOCK", block)
    for first, last in ((1, 1), (2, 6), (7, 7), (8, 10)):
        written.write(lines(first, last))
        if last < 10:
            written.rotate()
    found = LogReader(written.path)
    assert b"".join(found.last(number)) == lines(max(1, 11 - number), 10)
    assert b"".join(found.last(number + 1)) == lines(max(1, 10 - number), 10), "it may be asked again"
    assert read(found) == b""
    found.close()


def test_no_log(written: Written) -> None:
    found = LogReader(written.path)
    assert not found.exists
    assert found.last(5) == []
    written.write(lines(1, 2))
    assert read(found) == lines(1, 2)
    found.close()


def test_an_unfinished_line_waits_for_its_end(written: Written, reader: LogReader) -> None:
    written.write(b"half ")
    found = LogReader(written.path)
    assert b"".join(found.last(2)) == lines(2, 3)
    assert read(found) == b""
    written.write(b"of it\nand")
    assert read(found) == b"half of it\n"
    assert b"".join(found.new(unfinished=True)) == b"and"
    found.close()


def test_new_lines_across_rotations(written: Written, reader: LogReader) -> None:
    reader.last(1)
    for number in range(4, 12):
        written.write(lines(number, number))
        if number % 2:
            written.rotate()
        if number % 3 == 0:
            assert read(reader) == lines(number - 2, number), "two rotations between two looks"
    assert read(reader) == lines(10, 11)
    written.write(b"late\n", 2)  # a process that was blocked
    assert read(reader) == b"late\n"


def test_while_a_file_is_renamed_nothing_is_read_twice(written: Written, reader: LogReader) -> None:
    reader.last(3)
    written.path.rename(written.path.with_name("log.1"))
    assert read(reader) == b""
    written.write(lines(4, 4))
    assert read(reader) == lines(4, 4)
    written.write(lines(5, 5), 1)
    assert read(reader) == lines(5, 5)


def test_files_that_were_removed_are_closed(written: Written, reader: LogReader) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    written.keep = 1
    for number in range(4, 14):
        written.write(lines(number, number))
        written.rotate()
        assert read(reader) == lines(number, number)
    assert len(list(Path("/proc/self/fd").iterdir())) == before + 1  # FILE and FILE.1


def test_a_file_that_is_emptied_in_place_begins_anew(written: Written, reader: LogReader) -> None:
    reader.last(3)
    os.truncate(written.path, 0)
    written.write(b"anew\n")
    assert read(reader) == b"anew\n"


def test_a_pipe_is_no_log(written: Written) -> None:
    os.mkfifo(written.path)
    assert not LogReader(written.path).exists


# --- whose a line is

STATUS = status(
    worker(0, process(0)), worker(1, process(1)), events=[event("gone", instance=3, generation=1, pid=3999)]
)


@pytest.mark.parametrize(
    ("line", "instance"),
    [
        ("[2026-11-29 02:12:28 +0000] [4001] [INFO] hello", 0),
        ("[2026-11-29 02:12:28 +0000] [4011] [INFO] hello", 1),
        ("[2026-11-29 02:12:28 +0000] [3999] [INFO] of a worker that there was", 3),
        ("[2026-11-29 02:12:28 +0000] [1] [INFO] of the arbiter", None),
        ("[2026-11-29 02:12:28 +0000] [1] [INFO] instance=1 gen=1 pid=4011 ready after 0.1 s", 1),
        ("[2026-11-29 02:12:28 +0000] [4001] [INFO] instance=1 is what it is about", 1),
        ("instance=2 hello", 2),
        ("[instance=2] hello", 2),
        ('{"message": "hello", "instance": 2, "pid": 4011}', 2),
        ('{"message": "hello", "pid": 4011}', 1),
        ('{"message": "hello", "instance": null, "pid": "4011"}', None),
        ('{"message": "instance=5', None),
        pytest.param('{"a":' * 100_000 + "1" + "}" * 100_000, None, id="nested too deeply"),
        ('127.0.0.1 - - [29/Nov/2026] "GET /?instance=5 HTTP/1.1" 200', None),
        ('127.0.0.1 - - [29/Nov/2026:02:12:28 +0000] [4001] "GET / HTTP/1.1" 200', None),
        ("printed", None),
        ("", None),
    ],
)
def test_a_line_names_its_worker(line: str, instance: int | None) -> None:
    assert Speakers(STATUS).of(line) == instance
    assert instance_of(line, {4001: 0, 4011: 1, 3999: 3}) == instance


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("[2026-11-29 02:12:28 +0000] [1] [WARNING] it is old", "it is old"),
        ("[2026-11-29 02:12:28 +0000] [1] [INFO] hello", ""),
        ('{"level": "WARNING", "message": "it is old"}', "it is old"),
        ('{"level": "INFO", "message": "hello"}', ""),
        ('{"level": "WARNING"', ""),
        pytest.param('{"a":' * 100_000 + "1" + "}" * 100_000, "", id="nested too deeply"),
    ],
)
def test_the_warning_in_a_line(line: str, text: str) -> None:
    assert warning_in(line) == text


def told(*text: str, status: Status | None = STATUS) -> list[int | None]:
    speakers = Speakers(status)
    return [speakers.of(line) for line in text]


def test_a_traceback_is_of_the_line_before_it() -> None:
    record = "[2026-11-29 02:12:28 +0000] [4011] [ERROR] Exception in ASGI application"
    traceback = [
        "Traceback (most recent call last):",
        '  File "app.py", line 1',
        "    1 / 0",
        "ZeroDivisionError",
    ]
    again = ["", "During handling of the above exception, another exception occurred:", "", *traceback]
    assert told(record, *traceback, "printed") == [1, 1, 1, 1, 1, None]
    assert told(record, *traceback, *again, "printed") == [1] * 5 + [1] * 7 + [None]
    assert told(record, "printed", "  indented") == [1, None, None]


def test_workers_are_learned_from_the_lines() -> None:
    started = "[2026-11-29 02:12:28 +0000] [1] [INFO] instance=5 gen=2 pid=77 started"
    assert told("[x] [77] [INFO] a", started, "[x] [77] [INFO] b", status=None) == [None, 5, 5]


def test_in_a_terminal() -> None:
    assert shown("a\tb\x1b[2J", None) == "a\tb\\x1b[2J"
    assert shown("a", 1) == "\x1b[32ma\x1b[0m"
    assert shown("a", 0) != shown("a", 1)


# --- the verb


class Servers:
    def __init__(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        self.path = tmp_path / "shop.log"
        self.statuses: list[Status] = []
        monkeypatch.setattr(logs, "running", self.running)
        monkeypatch.setattr(logs, "choose", self._choose)
        monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
        monkeypatch.chdir(tmp_path)

    def running(self) -> list[servers.RunningServer]:
        return [ScriptedServer(it, pid=number) for number, it in enumerate(self.statuses, 100)]

    def _choose(self, wanted: str) -> servers.RunningServer:
        for server in self.running():
            if server.status()["name"] == wanted:
                return server
        raise UnknownServerError(f"no server {wanted!r} is running")

    def add(self, name: str, *paths: Path) -> None:
        self.statuses.append({**STATUS, "name": name, "logs": [str(path) for path in paths]})

    def run(self, *arguments: str, code: int = 0) -> Result:
        done = CliRunner().invoke(main, ["logs", *arguments])
        assert done.exit_code == code, done.output
        return done


@pytest.fixture
def known(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Servers:
    return Servers(monkeypatch, tmp_path)


def test_logs_of_the_only_server(known: Servers) -> None:
    known.path.write_bytes(lines(1, 40) + b"unfinished")
    known.add("shop", known.path)
    assert known.run().stdout.encode() == lines(26, 40) + b"unfinished"
    assert known.run("shop", "--lines", "2").stdout.encode() == lines(39, 40) + b"unfinished"
    assert "--lines: 'x' is not a number" in known.run("--lines", "x", code=2).stderr


def test_logs_of_some_instances(known: Servers) -> None:
    every = [f"[x] [{4001 if number % 50 else 4011}] [INFO] {number}\n" for number in range(2000)]
    known.path.write_text("".join(every))
    known.add("shop", known.path)
    expected = [line for line in every if "[4011]" in line]
    assert known.run("shop", "1", "-n", "30").stdout == "".join(expected[-30:])
    assert known.run("1", "-n", "999").stdout == "".join(expected)
    assert known.run("shop", "0", "1", "-n", "3").stdout == "".join(every[-3:])


def test_a_port_is_taken_for_an_instance(known: Servers) -> None:
    known.path.write_text("[x] [4001] [INFO] a\n")
    known.add("shop", known.path)
    assert known.run("63").stdout == ""  # scaling may have removed it
    said = known.run("8000", code=2).stderr
    assert said.startswith(
        "multicore-server: logs: there is no instance 8000; a number is an instance here, "
    )


def test_logs_of_several_servers_say_whose_a_line_is(known: Servers, tmp_path: Path) -> None:
    known.path.write_bytes(b"one")  # unfinished
    access = tmp_path / "access.log"
    access.write_bytes(b"two\n")
    known.add("shop", known.path)
    known.add("blog", tmp_path / "shop.log", access)
    assert known.run().stdout == "shop | one\nblog shop.log | one\nblog access.log | two\n"


def test_logs_of_a_server_that_has_ended(known: Servers, tmp_path: Path) -> None:
    path = tmp_path / "state/multicore/shop.log"
    path.parent.mkdir(parents=True)
    path.write_bytes(lines(1, 2))
    assert known.run("shop").stdout.encode() == lines(1, 2)
    assert "name one of these logs: shop\n" in known.run(code=2).stderr
    (tmp_path / "multicore.toml").write_text('[shop]\napp = "a:b"\nlog = "own.log"\n')
    (tmp_path / "own.log").write_bytes(lines(7, 8))
    assert known.run("shop").stdout.encode() == lines(7, 8)
    said = known.run("blog", code=2).stderr
    assert f"no server 'blog' is running; and there is no log {path.with_name('blog.log')}" in said


def test_a_server_without_a_file(known: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    known.add("shop")
    arbiter = STATUS["arbiter"]["pid"]
    text = f"shop (pid {arbiter}) writes to no file; "
    assert text + "see where it was started" in known.run("shop", code=2).stderr
    monkeypatch.setattr(logs, "unit_of", lambda _: "--user -u multicore-shop.service")
    assert text + "systemd's journal has its output: journalctl --user -u multicore-shop.service" in (
        known.run(code=2).stderr
    )


def test_a_log_that_may_not_be_read(known: Servers, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise PermissionError(13, "Permission denied", str(known.path))

    known.add("shop", known.path)
    monkeypatch.setattr(logs, "LogReader", refuse)
    assert f"{known.path} cannot be read: Permission denied" in known.run("shop", code=2).stderr


@pytest.mark.parametrize(
    ("text", "unit"),
    [
        ("0::/system.slice/multicore-shop.service\n", "-u multicore-shop.service"),
        ("0::/user.slice/user-1.slice/user@1.service/app.slice/shop.service\n", "--user -u shop.service"),
        ("0::/user.slice/user-1.slice/user@1.service\n", ""),
        ("0::/user.slice/user-1.slice/session-3.scope\n", ""),
        ("12:cpu:/\n1:name=systemd:/system.slice/a.service\n0::/\n", "-u a.service"),
        ("0::/\n", ""),
        (None, ""),
    ],
)
def test_the_service_of_a_process(tmp_path: Path, text: str | None, unit: str) -> None:
    (tmp_path / "7").mkdir()
    if text is not None:
        (tmp_path / "7/cgroup").write_text(text)
    assert unit_of(7, tmp_path) == unit
