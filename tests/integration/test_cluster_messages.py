"""Messages between real workers: in order, exactly once, with descriptors, through reloads and kills."""

from __future__ import annotations

import json
import os
import signal
import socket
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest

from tests.support.addresses import free_port
from tests.support.apps import source
from tests.support.asking import ask
from tests.support.elsewhere import ELSEWHERE
from tests.support.processes import wait_gone
from tests.support.raw_client import Connect, request
from tests.support.server import MakeServer, Server
from tests.support.waiting import PATIENCE, wait_for

pytestmark = pytest.mark.integration

APP = source("talking")
ASYNCIO = {"UVICORN_LOOP": "asyncio"}
EASILY = {"MULTICORE_EXP_BACKOFF_RESTART_DELAY": "0", "MULTICORE_MIN_UPTIME": "0"}
every_kind = pytest.mark.parametrize(
    ("app", "options", "loop"),
    [
        ("app", (), "uvloop"),
        ("app", (), "asyncio"),
        ("wsgi", (), "uvloop"),
        ("wsgi", ("--threads", "4"), "asyncio"),
    ],
    ids=["asgi-uvloop", "asgi-asyncio", "inline", "threads"],
)


# --- what workers say and hear


def ask_process(directory: Path, pid: int, expression: str) -> Any:
    """At the door of a process."""
    with socket.socket(socket.AF_UNIX) as client:
        client.settimeout(3 * PATIENCE)
        client.connect(str(directory / f"door.{pid}"))
        client.sendall(expression.encode() + b"\n")
        return json.loads(b"".join(iter(lambda: client.recv(65536), b"")))


def tell(server: Server, instance: int, expression: str) -> Any:
    return ask_process(server.directory, server.worker_of(instance), expression)


def notes(directory: Path, name: str, pid: int) -> list[Any]:
    """What a process has noted; the last line may not be there in full yet."""
    path = directory / f"{name}.{pid}"
    text = path.read_text() if path.exists() else ""
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def noted(server: Server, name: str, instance: int) -> list[Any]:
    return notes(server.directory, name, server.worker_of(instance))


def wait_noted(server: Server, name: str, instance: int, *wanted: Any) -> None:
    """Until the last that a worker has noted is this."""
    count = len(wanted)
    wait_for(
        lambda: noted(server, name, instance)[-count:] == list(wanted), f"{wanted} in {name} of {instance}"
    )


def hup(server: Server) -> None:
    done = len(server.logged("reload done"))
    server.signal(signal.SIGHUP)
    server.wait_logged("reload done", done + 1)


class Pipe:
    """For a worker that inherits or opens it by name: a FIFO, whose end shows at its other end."""

    def __init__(self, directory: Path) -> None:
        self.path = directory / "fifo"
        os.mkfifo(self.path)
        self.reader = os.open(self.path, os.O_RDONLY | os.O_NONBLOCK)

    def read(self) -> bytes | None:
        """None where nothing has come, empty where nobody can write any more."""
        try:
            return os.read(self.reader, 100)
        except BlockingIOError:
            return None

    @property
    def has_ended(self) -> bool:
        return self.read() == b""

    def close(self) -> None:
        os.close(self.reader)


@pytest.fixture
def make_pipe(tmp_path: Path) -> Iterator[Callable[[Server], Pipe]]:
    made: list[Pipe] = []

    def make(server: Server) -> Pipe:
        made.append(Pipe(server.directory))
        return made[-1]

    yield make
    for pipe in made:
        pipe.close()


OPEN = "os.open('fifo', os.O_WRONLY)"


def sends_fifo(to: int, do: str) -> str:
    """An expression: send the fifo's writing end to an instance, and close it here."""
    sent = f"cluster.send_sync({to}, {{'do': {do!r}}}, fds=[fd])"
    return f"[[{sent}, os.close(fd)] for fd in [{OPEN}]] and 'sent'"


# --- from each to each


def in_order(server: Server, instance: int, names: str, count: int) -> bool:
    """Whether all of these senders' messages have come, those of each in order."""
    got = noted(server, "got", instance)
    found = {name: [value[1] for _, value in got if value[0] == name] for name in names}
    assert all(numbers == list(range(len(numbers))) for numbers in found.values())
    return all(len(numbers) == count for numbers in found.values())


@every_kind
def test_thousands_from_each_to_each_in_order(
    make_server: MakeServer, app: str, options: tuple[str, ...], loop: str
) -> None:
    server = make_server(APP)
    server.start("-w", "2", *options, app=f"app:{app}", ready=2, env={"UVICORN_LOOP": loop})
    asked = "[by_threads({to}, {names!r}, 700)]"
    for instance, names in ((0, "ab"), (1, "cd")):
        expression = asked.format(to=1 - instance, names=names)
        assert tell(server, instance, f"keep(threading.Thread(target=lambda: {expression}))")
        tell(server, instance, "kept[-1].start()")
    assert tell(server, 0, "[by_threads(0, 'ef', 700)]") == [None]
    if app == "app":
        assert tell(server, 1, "[by_tasks(1, 'gh', 700)]") == [None]
        wait_for(lambda: in_order(server, 1, "gh", 700), "tasks' messages")
    wait_for(lambda: in_order(server, 0, "cdef", 700), "the messages for 0")
    wait_for(lambda: in_order(server, 1, "ab", 700), "the messages for 1")
    senders = {(sender, value[0]) for sender, value in noted(server, "got", 0)}
    assert senders == {(1, "c"), (1, "d"), (0, "e"), (0, "f")}
    # From inside a request.
    assert ask(server, "cluster.send_sync(1 - cluster.instance, 'from a request')") is None
    wait_for(
        lambda: any(noted(server, "got", number)[-1][1] == "from a request" for number in (0, 1)),
        "a message from a request",
    )
    assert server.logged("Traceback|is dropped") == []


def test_what_cannot_be_sent_is_said_and_nothing_is_sent(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "2", ready=2)
    wrong = {
        "cluster.send_sync(1, object())": "TypeError",
        "cluster.send_sync(1, {1})": "TypeError",
        "cluster.send_sync(1, b'x')": "TypeError",
        "cluster.send_sync(1, float('nan'))": "ValueError",
        "cluster.send_sync(1, chr(0xd800))": "UnicodeEncodeError",
        "cluster.send_sync(1, eval('[' * 90 + ']' * 90) * 0 or [[] for _ in range(40000)])": "ValueError",
        "cluster.send_sync(1, 'x' * 65535)": "ValueError",
        "cluster.broadcast_sync('x' * 65535)": "ValueError",
        "cluster.send_sync('1', 1)": "TypeError",
        "cluster.send_sync(None, 1)": "TypeError",
        "cluster.send_sync(True, 1)": "TypeError",
        "cluster.send_sync(1.0, 1)": "TypeError",
        "cluster.send_sync(7, 1)": "NotDelivered: instance 7 is not running",
        "cluster.send_sync(-1, 1)": "NotDelivered: instance -1 is not running",
        "cluster.send_sync(1, 1, fds=[0] * 17)": "ValueError: 17 descriptors",
        "cluster.send_sync(1, 1, fds=['x'])": "TypeError",
        "cluster.send_sync(1, 1, fds=[-1])": "ValueError",
        "cluster.send_sync(1, 1, fds=[0, 19999])": "ValueError: fds: one of [0, 19999] is not open",
        "cluster.send_sync('arbiter', 1, fds=[0])": "ValueError: the arbiter takes no descriptors",
        "in_a_fork('cluster.send_sync(1, 1)')": "NotDelivered: this process was forked by a worker",
        "in_a_fork('cluster.broadcast_sync(1)')": "NotDelivered: this process was forked by a worker",
        "in_a_fork(\"cluster.send_sync('arbiter', 1)\")": "NotDelivered: this process was forked",
    }
    for expression, said in wrong.items():
        answer = tell(server, 0, expression)
        assert isinstance(answer, str), expression
        assert answer.startswith(said), expression
    assert tell(server, 0, "cluster.send_sync(1, 'x' * 65534)") is None
    wait_noted(server, "got", 1, [0, "x" * 65534])
    assert len(noted(server, "got", 1)) == 1


# --- descriptors


@pytest.mark.parametrize("env", [{}, ELSEWHERE], ids=["linux", "elsewhere"])
def test_descriptors_work_in_the_other_worker_and_are_closed_where_nobody_takes_them(
    make_server: MakeServer, make_pipe: Callable[[Server], Pipe], env: dict[str, str]
) -> None:
    server = make_server(APP).start("-w", "2", env=env, ready=2)
    pipe = make_pipe(server)
    # A handler that leaves it.
    assert tell(server, 0, sends_fifo(1, "os.write(message.fds[0], b'one')")) == "sent"
    assert wait_for(pipe.read, "what the other has written") == b"one"
    wait_for(lambda: pipe.has_ended, "the end of the pipe")
    # One that keeps it: no subprocess gets it.
    assert tell(server, 0, sends_fifo(1, "keep(open(message.fds.pop(), 'w'))")) == "sent"
    wait_noted(server, "did", 1, 3, True)
    assert tell(server, 1, "os.get_inheritable(kept[0].fileno())") is False
    assert pipe.read() is None
    tell(server, 1, "close_kept()")
    wait_for(lambda: pipe.has_ended, "the end of the pipe")
    # Sixteen at once, to all.
    sent = "cluster.broadcast_sync({'do': 'len(message.fds)'}, True, [fd] * 16)"
    sent = f"[[{sent}, os.close(fd)] for fd in [{OPEN}]]"
    assert tell(server, 0, sent) == [[2, None]]
    for instance in (0, 1):
        wait_noted(server, "did", instance, 16)
    wait_for(lambda: pipe.has_ended, "the end of the pipe")


def test_nobody_takes_descriptors_where_there_is_no_handler(
    make_server: MakeServer, make_pipe: Callable[[Server], Pipe]
) -> None:
    app = APP.replace("@cluster.on_message\n", "")
    assert app != APP
    server = make_server(app).start("-w", "2", ready=2)
    pipe = make_pipe(server)
    assert tell(server, 0, sends_fifo(1, "")) == "sent"
    wait_for(lambda: pipe.has_ended, "the end of the pipe")


def test_a_listener_and_a_client_are_answered_by_the_other_worker(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "2", ready=2)
    other = server.worker_of(1)
    # A listening socket, closed in the worker that opened it.
    send = "cluster.send_sync(1, {'do': 'answer_at(message.fds.pop())'}, fds=[it])"
    made = f"[[{send}, it.getsockname()[1], it.close()] for it in [socket.create_server(('127.0.0.1', 0))]]"
    ((_, port, _),) = tell(server, 0, made)
    for _ in range(3):
        assert httpx.get(f"http://127.0.0.1:{port}").text.strip() == str(other)
    # A client that one has accepted.
    port = tell(server, 0, "keep(socket.create_server(('127.0.0.1', 0))) and kept[0].getsockname()[1]")
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE) as client:
        accepted = f"[[{send}, it.close()] for it in [kept[0].accept()[0]]]"
        assert tell(server, 0, accepted) == [[None, None]]
        client.sendall(b"GET / HTTP/1.1\r\n\r\n")
        answer = b"".join(iter(lambda: client.recv(1000), b""))
    assert answer.split()[-1] == str(other).encode()


def test_what_a_process_that_was_killed_has_not_read_is_lost_and_its_descriptors_are_closed(
    make_server: MakeServer, make_pipe: Callable[[Server], Pipe]
) -> None:
    server = make_server(APP).start("-w", "2", ready=2, env=EASILY)
    pipe = make_pipe(server)
    for ready in (3, 6):
        killed = server.worker_of(1)
        os.kill(killed, signal.SIGSTOP)
        for number in range(100):
            assert tell(server, 0, f"cluster.send_sync(1, 'before {number}')") is None
        assert tell(server, 0, sends_fifo(1, "")) == "sent"
        os.kill(killed, signal.SIGKILL)
        server.wait_ready(ready)
        assert server.worker_of(1) != killed
        wait_for(lambda: pipe.has_ended, "the end of the pipe", 5)
        assert tell(server, 0, "cluster.send_sync(1, 'after')") is None
        wait_noted(server, "got", 1, [0, "after"])
        assert len(noted(server, "got", 1)) == 1
        assert notes(server.directory, "got", killed) in ([], [[0, "after"]])
        if ready == 3:
            hup(server)  # from now on its row is another one
            server.wait_logged("exited with code 0 after draining", 2)


# --- who gets it


def test_a_broadcast_is_for_all_and_for_those_that_drain(make_server: MakeServer, connect: Connect) -> None:
    server = make_server(APP).start("-w", "2", "--graceful-timeout", "30", ready=2)
    old = [server.worker_of(0), server.worker_of(1)]
    assert tell(server, 0, "cluster.broadcast_sync('to the others')") == 1
    assert tell(server, 0, "cluster.broadcast_sync('to all', include_self=True)") == 2
    wait_noted(server, "got", 0, [0, "to all"])
    wait_noted(server, "got", 1, [0, "to the others"], [0, "to all"])
    held = [connect(server.port).send(request("/hold?os.getpid()")) for _ in range(4)]
    server.signal(signal.SIGHUP)
    server.wait_ready(4)
    server.wait_logged("reload done")
    holders = wait_for(lambda: [pid for pid in old if pid in server.workers()], "workers that drain")
    count = tell(server, 0, "cluster.broadcast_sync('to all', include_self=True)")
    assert count == 2 + len(holders)
    wait_for(
        lambda: all(notes(server.directory, "got", pid)[-1:] == [[0, "to all"]] for pid in holders),
        "a broadcast in those that drain",
    )
    (server.directory / "release").touch()
    assert {int(it.answer().body) for it in held} <= set(old)
    for pid in old:
        wait_gone(pid)
    wait_for(lambda: tell(server, 0, "cluster.broadcast_sync('late')") == 1, "one other")


LIMITED = """
import os, resource, sys
resource.setrlimit(resource.RLIMIT_NOFILE, (230, 230))
os.execv(sys.argv[1], sys.argv[1:])
"""


def test_where_descriptors_are_short_some_workers_take_no_messages(make_server: MakeServer) -> None:
    server = make_server(APP)
    gunicorn = [sys.executable, "-m", "gunicorn", "-k", "multicore_server.Worker"]
    server.start("-w", "5", command=[sys.executable, "-c", LIMITED, *gunicorn], ready=5)
    server.wait_logged("instance=4 .* takes no messages: no descriptors were left at the start")
    assert tell(server, 0, "cluster.send_sync(3, 1)") is None
    wait_noted(server, "got", 3, [0, 1])
    assert tell(server, 0, "cluster.send_sync(4, 1)") == "NotDelivered: instance 4 is not running"
    assert tell(server, 4, "cluster.send_sync(0, 'it may send')") is None
    wait_noted(server, "got", 0, [4, "it may send"])
    assert tell(server, 4, "cluster.broadcast_sync(2, True)") == 4
    hup(server)
    assert server.get("/?1").json() == 1
    assert server.logged("Traceback") == []


def seconds(call: Callable[[], object], times: int = 20) -> float:
    """How long it takes in the middle."""
    took = []
    for _ in range(times):
        began = time.monotonic()
        call()
        took.append(time.monotonic() - began)
    return statistics.median(took)


def test_a_worker_that_stands_still_costs_the_others_nothing(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "3", "--timeout", "120", ready=3)
    stopped = server.worker_of(2)

    def message() -> None:
        tell(server, 0, "cluster.send_sync(1, 'between')")
        tell(server, 1, "cluster.send_sync(0, 'between')")

    before = seconds(message), seconds(lambda: tell(server, 0, "where()"))
    os.kill(stopped, signal.SIGSTOP)
    try:
        count, said, longest = tell(server, 0, "until_refused(2, 'x' * 100)")
        assert said == "instance 2 has too many messages to read"
        assert count > 500
        assert longest < 2
        # A full mailbox costs a broadcast nothing.
        assert tell(server, 0, "cluster.broadcast_sync('to those that read')") == 1
        assert tell(server, 0, "cluster.send_sync(2, 1)").startswith("NotDelivered")
        assert tell(server, 0, "keep(threading.Thread(target=flood, args=(2, 'late', 100), daemon=True))")
        tell(server, 0, "kept[0].start()")
        assert seconds(message) < 10 * before[0] + 0.05
        assert seconds(lambda: server.get("/?1")) < 1
    finally:
        os.kill(stopped, signal.SIGCONT)
    wait_for(lambda: noted(server, "got", 2)[-1:] == [[0, ["late", 99]]], "what came when there was room")
    held = [value[0] for _, value in noted(server, "got", 2) if isinstance(value[0], int)]
    assert held == list(range(count))
    assert noted(server, "got", 1)[-1][1] == "between"
    wait_for(lambda: server.get("/?1").status_code == 200, "answers")


SENDS_WITHOUT_END = '''

def send_without_end():
    """Until the very end of this process, to each instance in turn."""
    number = 0
    while not ended.wait(0.001):
        to = number % 2
        try:
            cluster.send_sync(to, ["n", os.getpid(), to, number])
        except cluster.NotDelivered:
            note("refused", [to, number])
        else:
            note("sent", [to, number])
        number += 1


ended = threading.Event()
sender = threading.Thread(target=send_without_end)


@cluster.on_shutdown
def end_sending():
    time.sleep(0.02)
    ended.set()
    sender.join()


sender.start()
'''


def delivered_once(directory: Path) -> int:
    """Check what all processes have sent and got; how many messages there were."""
    sent: dict[int, list[int]] = {}
    for path in directory.glob("sent.*"):
        pid = int(path.suffix[1:])
        sent[pid] = [number for _, number in notes(directory, "sent", pid)]
    got: dict[int, Counter[int]] = {pid: Counter() for pid in sent}
    for path in directory.glob("got.*"):
        last: dict[int, int] = {}
        for _, value in notes(directory, "got", int(path.suffix[1:])):
            if value[0] != "n":
                continue
            _, pid, _, number = value
            assert last.get(pid, -1) < number, "out of order"
            last[pid] = number
            got[pid][number] += 1
    for pid, numbers in sent.items():
        assert got[pid] == Counter(numbers), f"of {pid}: lost {set(numbers) - got[pid].keys()}"
    return sum(map(len, sent.values()))


@pytest.mark.parametrize("app", ["app", "wsgi"])
def test_through_reloads_each_message_is_delivered_exactly_once(make_server: MakeServer, app: str) -> None:
    """Every process sends to every instance, from its import until its end."""
    server = make_server(APP + SENDS_WITHOUT_END)
    server.start("-w", "2", app=f"app:{app}", ready=2, env=ASYNCIO if app == "wsgi" else {})
    first = [server.worker_of(0), server.worker_of(1)]
    for _ in range(3):
        old = [server.worker_of(0), server.worker_of(1)]
        for pid in old:
            wait_for(lambda pid=pid: len(notes(server.directory, "sent", pid)) > 200, "what it sends")  # type: ignore[misc]
        hup(server)
        for pid in old:
            wait_gone(pid)
    for instance in (0, 1):
        assert tell(server, instance, "ended.set()") is None
        assert tell(server, instance, "sender.join()") is None
    for instance in (0, 1):
        assert tell(server, instance, "flood(cluster.instance, 'the last', 1)") is None
    for instance in (0, 1):  # behind it nothing comes any more
        wait_for(
            lambda instance=instance: noted(server, "got", instance)[-1][1] == ["the last", 0],  # type: ignore[misc]
            "the last message",
        )
    assert delivered_once(server.directory) > 8 * 200
    refused = {int(path.suffix[1:]) for path in server.directory.glob("refused.*")}
    assert refused <= set(first), "in a reload there is always one that takes it"
    assert server.logged("Traceback|is dropped") == []


def test_early_and_late_sends_never_crash(make_server: MakeServer) -> None:
    app = (
        APP
        + """
note("early", [result(f"cluster.send_sync({to!r}, 'early')") for to in (0, 1, 7, "arbiter")])
note("early", result("cluster.broadcast_sync('early', True)"))


@cluster.on_shutdown
def late():
    note("late", [result(f"cluster.send_sync({to!r}, 'late')") for to in (0, 1, 7, "arbiter")])
    note("late", result("cluster.broadcast_sync('late', True)"))
"""
    )
    server = make_server(app).start("-w", "2", ready=2)
    before = [server.worker_of(0), server.worker_of(1)]
    hup(server)
    for pid in before:
        wait_gone(pid)
        sends, taken = notes(server.directory, "late", pid)
        assert sends == [None, None, "NotDelivered: instance 7 is not running", None]
        assert taken >= 2  # perhaps the other one still drains
    for instance in (0, 1):
        sends, taken = noted(server, "early", instance)
        assert sends == [None, None, "NotDelivered: instance 7 is not running", None]  # those before it run
        assert taken >= 1
    for sends, _ in (notes(server.directory, "early", pid) for pid in before):
        assert all(it is None or it.startswith("NotDelivered: ") for it in sends)
    server.ends_within(20)
    assert server.logged("Traceback") == []


# --- handlers and streams at the end


ENDINGS = """

@cluster.on_message
def fails(message, sender):
    raise ValueError("no luck")


@cluster.on_message
async def never_ends(message, sender):
    if message.value == "begin":
        await asyncio.sleep(3600)


async def read(name):
    async with cluster.messages() as stream:
        note(name, "opened")
        async for message in stream:
            note(name, message.value)
    note(name, "ended")


def in_a_thread():
    asyncio.run(read("thread"))
    note("thread", "left")


started = []


@cluster.on_message
async def start(message, sender):
    if message.value == "begin" and not started:
        started.append(asyncio.create_task(read("stream")))
        started.append(threading.Thread(target=in_a_thread))
        started[-1].start()
"""


def test_streams_end_when_the_worker_has_drained_and_handlers_are_named(make_server: MakeServer) -> None:
    server = make_server(APP + ENDINGS)
    server.start("-w", "2", "--graceful-timeout", "2", ready=2)
    old = server.worker_of(1)
    assert tell(server, 0, "cluster.send_sync(1, 'begin')") is None
    for name in ("stream", "thread"):
        wait_noted(server, name, 1, "opened")
    for number in range(50):
        assert tell(server, 0, f"cluster.send_sync(1, {number})") is None
    wait_noted(server, "got", 1, [0, 49])
    for name in ("stream", "thread"):
        wait_noted(server, name, 1, *range(50))
    assert tell(server, 0, "cluster.send_sync(1, {'later': 0.5})") is None
    hup(server)
    wait_gone(old)
    expected = ["opened", *range(50), {"later": 0.5}, "ended"]
    assert notes(server.directory, "stream", old) == expected
    assert notes(server.directory, "thread", old) == [*expected, "left"]
    assert notes(server.directory, "later", old) == [{"later": 0.5}]
    assert len(server.logged("the message handler fails failed")) == 52
    assert len(server.logged("the message handler never_ends has not ended; it is cancelled")) == 1
    server.wait_logged(f"pid={old} exited with code 0")


# --- WSGI


def test_inline_a_handler_runs_between_requests_and_finds_no_loop(
    make_server: MakeServer, connect: Connect
) -> None:
    server = make_server(APP).start("-w", "2", app="app:wsgi", ready=2)
    stream = connect(server.port).send(request("/stream?os.getpid()"))
    stream.head()
    busy = wait_for(
        lambda: [number for number in (0, 1) if tell(server, number, "streaming")], "a stream in progress"
    )[0]
    sender = 1 - busy
    sent = f"[cluster.send_sync({busy}, {{'do': 'where()'}}) for _ in range(1500)].count(None)"
    assert tell(server, sender, sent) == 1500  # more than may wait in a worker
    assert tell(server, sender, f"cluster.send_sync({busy}, {{'later': 0}})") is None
    assert [stream.chunk() for _ in range(40)] == [b"x"] * 40  # meanwhile it reads as many as it may
    assert noted(server, "did", busy) == []
    (server.directory / "release").touch()
    wait_for(lambda: len(noted(server, "did", busy)) == 1500, "all of them, afterwards", 10)
    assert {tuple(it) for it in noted(server, "did", busy)} == {(False, "MainThread", 0)}
    wait_noted(server, "later", busy, {"later": 0})
    server.ends_within(10)


def test_with_threads_a_handler_has_a_thread_that_is_no_requests(make_server: MakeServer) -> None:
    server = make_server(APP).start("-w", "2", "--threads", "4", app="app:wsgi", ready=2)
    assert tell(server, 0, "cluster.send_sync(1, {'do': 'where()'})") is None
    wait_for(lambda: noted(server, "did", 1), "the handler")
    ((runs, thread, _),) = noted(server, "did", 1)
    assert not runs
    assert thread not in ("MainThread", "")
    assert "wsgi" not in thread
    # A slow one does not keep requests from their answers, and nothing is lost behind it.
    tell(server, 0, "cluster.send_sync(1, {'do': 'time.sleep(1)'})")
    sent = "[cluster.send_sync(1, {'do': '1'}) for _ in range(1500)].count(None)"
    assert tell(server, 0, sent) == 1500
    assert server.get("/?1").json() == 1
    wait_for(lambda: len(noted(server, "did", 1)) == 1502, "all of them", 10)


def test_a_handler_that_keeps_its_thread_does_not_keep_its_worker(make_server: MakeServer) -> None:
    server = make_server(APP)
    server.start("-w", "1", "--threads", "4", "--graceful-timeout", "2", app="app:wsgi", ready=1)
    old = server.worker_of(0)
    tell(server, 0, "cluster.send_sync(0, {'do': 'time.sleep(3600)'})")
    tell(server, 0, "time.sleep(0.2)")
    hup(server)
    began = time.monotonic()
    wait_gone(old)
    assert time.monotonic() - began < 10
    assert server.logged("the message handler hear has not ended; it is cancelled")
    server.wait_logged(f"pid={old} exited with code 0")


# --- where there is no server


def test_under_plain_uvicorn_a_process_talks_to_itself(tmp_path: Path) -> None:
    (tmp_path / "app.py").write_text(APP)
    port = free_port()
    command = [sys.executable, "-m", "uvicorn", "app:app", "--port", str(port), "--log-level", "warning"]
    process = subprocess.Popen(command, cwd=tmp_path, stderr=subprocess.PIPE)

    def get(expression: str) -> Any:
        return httpx.get(f"http://127.0.0.1:{port}/?{quote(expression)}").json()

    def answers() -> bool:
        try:
            return bool(get("1"))
        except httpx.TransportError:
            return False

    try:
        wait_for(answers, "an answer")
        assert get("cluster.send(0,'async')") is None
        assert get("cluster.send_sync(0,'sync')") is None
        assert get("cluster.broadcast('nobody')") == 0
        assert get("cluster.broadcast('all',True)") == 1
        assert ask_process(tmp_path, process.pid, "cluster.send_sync(0, 'from a thread')") is None
        assert get("cluster.send_sync('arbiter',1)").startswith("NotDelivered: there is no arbiter")
        assert get("cluster.send_sync(1,1)").startswith("NotDelivered: there is no instance 1")
        expected = [[0, text] for text in ("async", "sync", "all", "from a thread")]
        wait_for(lambda: notes(tmp_path, "got", process.pid) == expected, "the messages")
    finally:
        process.terminate()
        _, said = process.communicate(timeout=20)
    assert b"Traceback" not in said


ALONE = """
import sys
from multicore_server import cluster

heard = []

@cluster.on_message
def hear(message, sender):
    heard.append((message.value, sender))

@cluster.on_message
async def hear_too(message, sender):
    heard.append("later")

cluster.send_sync(0, {"a": 1})
assert heard == [({"a": 1}, 0), "later"], heard
assert "gunicorn" not in sys.modules
assert "uvicorn" not in sys.modules
try:
    cluster.send_sync("arbiter", 1)
except cluster.NotDelivered:
    print("not delivered")
"""


def test_without_any_server_a_process_talks_to_itself() -> None:
    command = [sys.executable, "-W", "error", "-c", ALONE]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "not delivered\n", "")
