"""A worker whose event loop stands still holds up what it has in hand, and nothing else."""

from __future__ import annotations

import os
import random
import re
import signal
import socket
import threading
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from tests.support.addresses import LOCAL
from tests.support.command_line import Operator
from tests.support.server import Server
from tests.support.waiting import wait_for

ASGI = """
import os, time

async def app(scope, receive, send):
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    if scope["path"].startswith("/block/"):
        block(float(scope["path"].removeprefix("/block/")))
    answer = b"%d %s " % (os.getpid(), scope["path"].encode()) + body
    await send({"type": "http.response.start", "status": 200,
                "headers": [(b"content-length", b"%d" % len(answer))]})
    await send({"type": "http.response.body", "body": answer})

def block(seconds):
    time.sleep(seconds)
"""
WSGI = """
import os, time

def app(environ, start_response):
    body = environ["wsgi.input"].read()
    path = environ["PATH_INFO"]
    if path.startswith("/block/"):
        block(float(path.removeprefix("/block/")))
    answer = b"%d %s " % (os.getpid(), path.encode()) + body
    start_response("200 OK", [("Content-Length", str(len(answer)))])
    return [answer]

def block(seconds):
    time.sleep(seconds)
"""
LOCKS = """
def block(seconds):  # one call into C, for more than two seconds
    if seconds:
        sum(range(2 * 10**8))
"""
OF_ITS_OWN = """
import faulthandler, signal

faulthandler.enable()
faulthandler.register(signal.SIGUSR2)
faulthandler.dump_traceback_later(600)
signal.signal(signal.SIGALRM, lambda *_: None)
signal.setitimer(signal.ITIMER_REAL, 0.05, 0.05)

def block(seconds):  # a child is there meanwhile
    child = os.fork() if seconds else 0
    if seconds and not child:
        time.sleep(60)
        os._exit(0)
    time.sleep(seconds)
    if child:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
"""
KINDS = pytest.mark.parametrize("source", [ASGI, WSGI], ids=["asgi", "wsgi"])
LOOPS = pytest.mark.parametrize("loop", ["uvloop", "asyncio"])


OPEN: list[socket.socket] = []  # until the test ends


@pytest.fixture(autouse=True)
def _close() -> Iterator[None]:
    yield
    while OPEN:
        OPEN.pop().close()


class Client:
    """A connection that is kept alive."""

    def __init__(self, server: Server) -> None:
        self.socket = socket.create_connection((LOCAL, server.port), timeout=30)
        OPEN.append(self.socket)
        self.rest = b""
        self.pid = 0

    def send(self, path: str, body: bytes = b"") -> None:
        self.socket.sendall(request(path, body))

    def read(self) -> bytes:
        """The body of the next response."""
        while b"\r\n\r\n" not in self.rest:
            self._more()
        head, _, self.rest = self.rest.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200"), head
        length = int(head.lower().partition(b"content-length: ")[2].split(b"\r\n")[0])
        while len(self.rest) < length:
            self._more()
        body, self.rest = self.rest[:length], self.rest[length:]
        pid, _, said = body.partition(b" ")
        self.pid = int(pid)
        return said

    def ask(self, path: str, body: bytes = b"") -> float:
        """Seconds until the answer, which is the right one."""
        began = time.monotonic()
        self.send(path, body)
        assert self.read() == path.encode() + b" " + body
        return time.monotonic() - began

    def _more(self) -> None:
        data = self.socket.recv(65536)
        assert data, "the connection was closed"
        self.rest += data


def request(path: str, body: bytes) -> bytes:
    return b"POST %s HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%s" % (path.encode(), len(body), body)


def start(
    server: Server, source: str, loop: str = "uvloop", *, workers: int = 4, env: dict[str, str] | None = None
) -> None:
    server.write("app.py", source)
    given = {**(env or {}), "UVICORN_LOOP": loop}
    server.start("-w", str(workers), "--keep-alive", "60", env=given, ready=workers)


@KINDS
def test_an_app_with_a_faulthandler_signals_and_children_of_its_own(
    server: Server, operator: Operator, source: str
) -> None:
    start(server, source + OF_ITS_OWN, env=operator.env)
    clients = [Client(server) for _ in range(16)]
    for client in clients:
        client.ask("/first")
    blocker = clients[0]
    instance = next(number for number in range(4) if server.worker_of(number) == blocker.pid)

    def siblings_have_the_others() -> bool:
        workers = operator.json("show")["workers"]
        theirs: int = sum(it["connections"] for it in workers if it["instance"] != instance)
        return theirs == len(clients) - 1

    blocker.send("/block/6")
    wait_for(siblings_have_the_others, "the idle connections with siblings", 2)
    assert max(client.ask("/second") for client in clients[1:]) < 1
    assert " in block: time.sleep(seconds)" in operator.run("stacks", str(instance)).stdout
    assert blocker.read() == b"/block/6 "
    for client in clients:
        client.ask("/third")


@LOOPS
@KINDS
def test_idle_connections_of_a_blocked_worker_are_served_by_others(
    server: Server, source: str, loop: str
) -> None:
    start(server, source, loop)
    clients = [Client(server) for _ in range(32)]
    for client in clients:
        client.ask("/first")
    blocked = Counter(client.pid for client in clients)
    blocker = clients[0]
    victim, with_it = blocker.pid, blocked[blocker.pid]
    assert with_it > 1
    time.sleep(1.5)  # the workers rest: nobody looks after anybody often
    blocker.send("/block/4")
    time.sleep(0.05)
    waits = [client.ask("/second") for client in clients[1:]]
    assert max(waits) < 2, "on a machine that is busy; 0.2 s on one that is not"
    assert all(client.pid != victim for client in clients[1:])
    assert blocker.read() == b"/block/4 "
    assert blocker.pid == victim
    for client in clients:
        client.ask("/third")
    if source is ASGI:
        server.wait_logged(rf"pid={victim} the event loop has been blocked for 1.\d s by app.py:19 in block")
        server.wait_logged(
            r"was blocked for [34].\d s by app.py:19 in block \(time.sleep.*POST /block/4; it runs"
        )
    else:
        assert not server.logged("event loop")


@KINDS
def test_with_one_worker_they_stay(server: Server, source: str) -> None:
    start(server, source, workers=1)
    idle, blocker = Client(server), Client(server)
    idle.ask("/first")
    blocker.ask("/first")
    blocker.send("/block/1.5")
    time.sleep(0.05)
    assert idle.ask("/second") > 0.5
    assert blocker.read() == b"/block/1.5 "
    blocker.ask("/third")


def test_a_warning_can_be_left_out_and_comes_early_where_it_is_wanted(server: Server) -> None:
    server.write("gunicorn.conf.py", 'block_warning = "200ms"')
    start(server, ASGI, workers=1)
    client = Client(server)
    client.ask("/block/0.6")
    server.wait_logged(
        r"WARNING.*blocked for 0.\d s by app.py:19 in block \(time.sleep\(seconds\)\); POST /block/0.6$"
    )
    server.write("gunicorn.conf.py", 'block_warning = "none"')
    server.signal(signal.SIGHUP)
    server.wait_logged("reload done")
    seen = len(server.logged("event loop"))
    client.ask("/block/1.5")
    client.ask("/after")
    assert len(server.logged("event loop")) == seen


@LOOPS
@KINDS
def test_no_byte_is_lost_or_served_twice_while_workers_block_all_the_time(
    server: Server, operator: Operator, source: str, loop: str
) -> None:
    """Clients that send in pieces, pipeline and block; each answer is compared."""
    start(server, source, loop, env=operator.env)
    failures: list[str] = []
    answered: Counter[str] = Counter()
    end = time.monotonic() + 5

    def work(number: int) -> None:
        dice = random.Random(number)
        client = Client(server)
        try:
            while time.monotonic() < end:
                how = dice.choice(["plain", "plain", "pieces", "pipeline", "block", "idle"])
                act(client, how, dice)
                answered[how] += 1
        except (AssertionError, OSError) as exc:
            failures.append(f"{number}: {exc!r}")

    threads = [threading.Thread(target=work, args=(number,)) for number in range(24)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    metrics = operator.run("metrics").stdout
    assert failures == []
    assert min(answered[how] for how in ("plain", "pieces", "pipeline", "block")) > 5
    assert float(re.findall(r"^multicore_connections_migrated_total (.*)", metrics, re.MULTILINE)[0]) > 0


def act(client: Client, how: str, dice: random.Random) -> None:
    body = os.urandom(dice.choice([0, 10, 5000]))
    path = f"/{dice.getrandbits(32)}"
    if how == "plain":
        client.ask(path, body)
    elif how == "pieces":
        whole = request(path, body)
        cut = dice.randrange(1, len(whole))
        client.socket.sendall(whole[:cut])
        time.sleep(dice.random() * 0.3)
        client.socket.sendall(whole[cut:])
        assert client.read() == path.encode() + b" " + body
    elif how == "pipeline":
        client.socket.sendall(request(path + "/1", body) + request(path + "/2", b""))
        assert client.read() == path.encode() + b"/1 " + body
        assert client.read() == path.encode() + b"/2 "
    elif how == "block":
        client.ask(f"/block/{dice.choice([0.05, 0.3, 0.5])}")
    else:
        time.sleep(dice.random())


def test_code_that_keeps_pythons_lock_is_told_apart_from_a_process_that_was_stopped(server: Server) -> None:
    start(server, ASGI + LOCKS, workers=1)
    client = Client(server)
    client.ask("/block/0")
    os.kill(client.pid, signal.SIGSTOP)
    time.sleep(2)
    os.kill(client.pid, signal.SIGCONT)
    client.ask("/block/0")
    time.sleep(0.5)
    assert not server.logged("event loop")
    client.ask("/block/1")
    server.wait_logged(r"the event loop was blocked for .* s, by C code that holds the GIL")


def test_a_sibling_that_is_stopped_gets_none(server: Server) -> None:
    start(server, ASGI, workers=3)
    clients = [Client(server) for _ in range(24)]
    for client in clients:
        client.ask("/first")
    blocker = clients[0]
    stopped = next(client.pid for client in clients if client.pid != blocker.pid)
    os.kill(stopped, signal.SIGSTOP)
    try:
        time.sleep(0.5)
        mine = [client for client in clients[1:] if client.pid == blocker.pid]
        blocker.send("/block/3")
        time.sleep(0.05)
        for client in mine:
            assert client.ask("/second") < 2
            assert client.pid not in (stopped, blocker.pid)
    finally:
        os.kill(stopped, signal.SIGCONT)
    assert blocker.read() == b"/block/3 "
    wait_for(lambda: all(client.ask("/third") < 5 for client in clients))


@KINDS
def test_the_stacks_of_workers_that_run_and_of_one_that_is_blocked(
    server: Server, operator: Operator, source: str
) -> None:
    start(server, source, workers=2, env=operator.env)
    shown = operator.run("stacks", "--tasks").stdout
    assert {"instance 0, thread MainThread", "instance 1, thread MainThread"} <= set(shown.splitlines())
    assert "instance 0, thread watcher" in shown
    assert "instance 0, task " in shown
    for other in ("arbiter", "monitor"):
        assert f"\n{other}, thread " in f"\n{shown}"
    assert "thread thread" not in shown
    blocker = Client(server)
    blocker.ask("/first")
    instance = next(number for number in (0, 1) if server.worker_of(number) == blocker.pid)
    blocker.send("/block/4")
    time.sleep(0.3)
    began = time.monotonic()
    assert " in block: time.sleep(seconds)" in operator.run("stacks", str(instance), "--tasks").stdout
    assert time.monotonic() - began < 3, "it does not wait for the loop"
    triggered = operator.begin("trigger", "memory", str(instance), "--timeout", "9")
    assert blocker.read() == b"/block/4 "
    assert "rss" in triggered.communicate(timeout=10)[0], "what is the loop's to answer waits for it"


def test_who_asks_for_stacks_and_gets_none(server: Server, operator: Operator) -> None:
    start(server, ASGI, workers=1, env=operator.env)
    assert operator.refused("stacks", "7").startswith("stacks: there is no instance 7; there are 0; ")
    assert "is not between 0 and" in operator.refused("stacks", "--timeout", "0")
    (answer,) = operator.json("stacks", "0")
    assert (answer["ok"], answer["by_signal"], answer["value"]["tasks"]) == (True, False, None)


def test_the_stack_of_a_worker_that_keeps_pythons_lock(server: Server, operator: Operator) -> None:
    start(server, ASGI + LOCKS, workers=1, env=operator.env)
    client = Client(server)
    client.ask("/first")
    client.send("/block/1")
    time.sleep(0.2)
    shown = operator.run("stacks", "0", "--tasks", "--timeout", "0.3")
    assert " in block\n" in shown.stdout
    assert "its tasks are not known" in shown.stderr
    assert client.read() == b"/block/1 ", "it went on"


def test_the_stack_of_an_arbiter_in_a_hook_that_blocks(server: Server, operator: Operator) -> None:
    server.write(
        "gunicorn.conf.py", "import time\ndef nworkers_changed(server, new, old):\n    time.sleep(2)\n"
    )
    start(server, ASGI, workers=2, env=operator.env)
    scaled = operator.begin("scale", "1")
    seen = wait_for(lambda: [it for it in operator.json("stacks") if "nworkers_changed" in str(it["value"])])
    assert [(it["process"], it["by_signal"]) for it in seen] == [("arbiter", True)]
    assert scaled.wait(10) == 0


def test_a_stopped_worker_shows_no_stack_and_is_not_harmed(server: Server, operator: Operator) -> None:
    start(server, ASGI, workers=1, env=operator.env)
    client = Client(server)
    client.ask("/first")
    os.kill(client.pid, signal.SIGSTOP)
    try:
        shown = operator.run("stacks", "0", "--timeout", "0.3", status=1)
    finally:
        os.kill(client.pid, signal.SIGCONT)
    assert "instance 0: it has not answered within 0.3 s; by a signal: it is not running" in shown.stderr
    client.ask("/second")
