"""Requests that fail while workers come and go, in one run: ours and, where it applies, uvicorn-worker.

    python -m tests.benchmarks.restarts [--reloads 2] [--recycles 6] [--scale-downs 2] [--full] [--ours]

Needs, in the same environment, uvicorn-worker and trustme. The client is strict, it never tries again: a
request that was sent and not answered in full has failed. An idle connection that is closed before anything
was sent on it has not, and is opened anew. ``--full`` makes 100 reloads, 200 recycles and 50 scale downs.
"""

from __future__ import annotations

import argparse
import collections
import itertools
import select
import signal
import socket
import ssl
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import trustme

from tests.benchmarks.common import (
    OURS,
    REQUEST,
    REQUEST_CLOSE,
    UVICORN_WORKER,
    Process,
    gunicorn,
    poll,
    provide,
)

PEER = UVICORN_WORKER
READY = {OURS: r" ready after ", PEER: r"Application startup complete"}
CLIENTS = 8
THINK = 0.002  # seconds between two requests of a client: idle connections are what restarts break
PATIENCE = 10.0  # seconds until a response that has not come has failed


class Server(Process):
    def __init__(self, directory: Path, worker: str, app: str, *options: str) -> None:
        self.worker = worker
        super().__init__(directory, gunicorn(worker, 2, f"hello_world:{app}", *options))

    def starts(self) -> int:
        return self.logged(READY[self.worker])

    def signal_and_wait(self, name: signal.Signals, pattern: str, more: int) -> None:
        wanted = self.logged(pattern) + more
        self.process.send_signal(name)
        poll(lambda: self.logged(pattern) >= wanted)


@contextmanager
def started(directory: Path, worker: str, app: str, *options: str) -> Iterator[Server]:
    server = Server(directory, worker, app, *options)
    try:
        poll(lambda: server.starts() >= 2)
        yield server
    finally:
        server.end()


class FailedError(Exception):
    pass


class Client(threading.Thread):
    """One connection, and one request at a time."""

    def __init__(self, port: int, kept_alive: bool, trusting: ssl.SSLContext | None) -> None:
        super().__init__(daemon=True)
        self.port = port
        self.trusting = trusting
        self.request = REQUEST if kept_alive else REQUEST_CLOSE
        self.connection: socket.socket | None = None
        self.stopped = False
        self.requests = 0
        self.failures: list[tuple[float, str]] = []

    def run(self) -> None:
        while not self.stopped:
            self.requests += 1
            try:
                self.ask()
            except (OSError, FailedError) as exc:
                self.failures.append((time.time(), f"{type(exc).__name__}: {exc}"))
                self.disconnect()
            time.sleep(THINK)
        self.disconnect()

    def ask(self) -> None:
        connection = self.connected()
        connection.sendall(self.request)
        if self.answer(connection):
            self.disconnect()

    def connected(self) -> socket.socket:
        if self.connection is not None and self.was_closed(self.connection):
            self.disconnect()
        if self.connection is None:
            self.connection = socket.create_connection(("127.0.0.1", self.port), PATIENCE)
            if self.trusting is not None:
                self.connection = self.trusting.wrap_socket(self.connection, server_hostname="127.0.0.1")
        return self.connection

    def was_closed(self, connection: socket.socket) -> bool:
        """Nothing is due on an idle connection but its end (and TLS's session tickets)."""
        if not select.select([connection], [], [], 0)[0]:
            return False
        connection.setblocking(False)
        try:
            return not connection.recv(1)
        except (ssl.SSLWantReadError, BlockingIOError):
            return False
        except OSError:
            return True
        finally:
            connection.settimeout(PATIENCE)

    def answer(self, connection: socket.socket) -> bool:
        """Read a response; tell whether it is the connection's last."""
        response = b""
        while not response.endswith(b"\r\n\r\nHello, world!"):
            data = connection.recv(4096)
            if not data:
                raise FailedError(f"closed after {len(response)} bytes of the response")
            response += data
        if not response.startswith(b"HTTP/1.1 200 "):
            raise FailedError(response.splitlines()[0].decode())
        return b"\r\nconnection: close\r\n" in response.lower()

    def disconnect(self) -> None:
        if self.connection is not None:
            self.connection.close()
            self.connection = None


def reload(server: Server, times: int) -> None:
    for _ in range(times):
        if server.worker == OURS:
            server.signal_and_wait(signal.SIGHUP, r"reload done", 1)
        else:
            server.signal_and_wait(signal.SIGHUP, READY[PEER], 2)


def recycle(server: Server, times: int) -> None:
    wanted = server.starts() + times
    poll(lambda: server.starts() >= wanted, patience=600.0)


def scale_down(server: Server, times: int) -> None:
    for _ in range(times):
        server.signal_and_wait(signal.SIGTTIN, READY[server.worker], 1)
        server.process.send_signal(signal.SIGTTOU)
        time.sleep(0.3)


Contest = tuple[str, Callable[[Server, int], None], int, list[str]]


def contests(args: argparse.Namespace) -> Iterator[Contest]:
    yield "reloads", reload, args.reloads, []
    recycling = ["--max-requests", "150", "--max-requests-jitter", "50"]
    yield "max_requests recycles", recycle, args.recycles, recycling
    yield "scale downs", scale_down, args.scale_downs, []


def measure(server: Server, contest: Contest, kept_alive: bool, trusting: ssl.SSLContext | None) -> str:
    _, work, times, _ = contest
    clients = [Client(server.port, kept_alive, trusting) for _ in range(CLIENTS)]
    return failed(clients, server.worker, lambda: work(server, times))


def failed(clients: list[Client], server: str, work: Callable[[], None]) -> str:
    """How many requests have failed during the work, of how many."""
    for client in clients:
        client.start()
    work()
    for client in clients:
        client.stopped = True
    for client in clients:
        client.join()
    failures = [failure for client in clients for failure in client.failures]
    for cause, count in collections.Counter(text for _, text in failures).items():
        print(f"  {server}: {count} x {cause}", file=sys.stderr)
    return f"{len(failures)} of {sum(client.requests for client in clients):,}"


def certificates(directory: Path) -> tuple[list[str], ssl.SSLContext]:
    authority = trustme.CA()
    issued = authority.issue_cert("127.0.0.1")
    issued.private_key_pem.write_to_path(directory / "key.pem")
    issued.cert_chain_pems[0].write_to_path(directory / "cert.pem")
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    return ["--keyfile", "key.pem", "--certfile", "cert.pem"], trusting


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--reloads", type=int, default=2)
    parser.add_argument("--recycles", type=int, default=6)
    parser.add_argument("--scale-downs", type=int, default=2)
    parser.add_argument("--full", action="store_true", help="100 reloads, 200 recycles, 50 scale downs")
    parser.add_argument("--ours", action="store_true", help="without the peer")
    parser.add_argument("--only", nargs="*", default=[], help="such as: --only reloads wsgi TLS")
    args = parser.parse_args()
    if args.full:
        args.reloads, args.recycles, args.scale_downs = 100, 200, 50
    print("| failed requests | app | transport | connections | multicore_server | uvicorn-worker |")
    print("| --- | --- | --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        directory = Path(scratch)
        provide(directory, "hello_world")
        tls_options, trusting = certificates(directory)
        for contest, app, tls in itertools.product(contests(args), ("asgi", "wsgi"), (False, True)):
            if not set(args.only) <= {contest[0].split()[0], app, "TLS" if tls else "plain"}:
                continue
            options = [*contest[3], *(tls_options if tls else [])]
            peers = [OURS] if args.ours or app == "wsgi" else [OURS, PEER]  # which has no bridge for WSGI
            results: dict[str, list[str]] = {}
            for worker in peers:
                with started(directory, worker, app, *options) as server:
                    results[worker] = [
                        measure(server, contest, kept_alive, trusting if tls else None)
                        for kept_alive in (True, False)
                    ]
            for number, connections in enumerate(("kept alive", "close")):
                cells = [results[worker][number] if worker in results else "" for worker in (OURS, PEER)]
                what = f"{contest[2]} {contest[0]} | {app.upper()} | {'TLS' if tls else 'plain'}"
                print(f"| {what} | {connections} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
