"""Finds this user's running servers by their command sockets, and sends them requests."""

from __future__ import annotations

import contextlib
import errno
import http.client
import json
import re
import socket
import struct
import threading
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any, NamedTuple, cast

import click
import psutil

from multicore_server.cli.text import plain
from multicore_server.ipc.report import ActionAnswer, EventReport, Status
from multicore_server.monitor.address import SUFFIX, AddressError, command_directory

PATIENCE = 5.0  # seconds for an answer that needs no arbiter
COMMAND_PATIENCE = 12.0  # the monitor waits 11 s for the arbiter, see monitor/commands.py
MOST_OF_OTHERS = 2**22  # bytes of an answer of another user's server
_CREDENTIALS = struct.Struct("3i")  # pid, uid and gid: struct ucred of unix(7)
_PORT = re.compile(r":(\d{1,5})/?$")


class Trouble(click.ClickException):
    """A command cannot do its work: one line on stderr, exit status 2."""

    exit_code = 2

    def __init__(self, text: str) -> None:
        super().__init__(plain(text))

    def show(self, file: IO[Any] | None = None) -> None:
        if self.message:
            click.echo(f"multicore-server: {self.message}", file=file, err=True)


class FailedError(Trouble):
    """The command was started, and its result is not the requested one."""

    exit_code = 1


class LeftError(Trouble):
    """The user has interrupted the wait."""

    exit_code = 130  # as of a process that SIGINT ends


class NoAnswerError(Trouble):
    """The server exists and does not answer."""


class GoneError(Trouble):
    """No process listens on the command socket."""


class SeveralServersError(Trouble):
    """Several servers run, and none is named."""


class UnknownServerError(Trouble):
    """No server that runs has this name, port or pid."""


class Begun(NamedTuple):
    """The server's answer to a command that it has started. ``workers``: the number that it scales to."""

    text: str
    workers: int | None


class _Connection(http.client.HTTPConnection):
    """To a command socket. If it is of ``owner``, who need not be the user: ``timeout`` is for all of it, and
    nothing is said to anybody else."""

    def __init__(self, path: Path, timeout: float, owner: int | None) -> None:
        super().__init__("localhost", timeout=timeout)
        self._path = path
        self._owner = owner
        self._end: threading.Timer | None = None

    def connect(self) -> None:
        self.sock = sock = socket.socket(socket.AF_UNIX)
        sock.settimeout(self.timeout)
        try:
            sock.connect(str(self._path))
            if self._owner is not None:
                self._distrust(sock, self._owner)
        except BaseException:
            self.close()
            raise

    def _distrust(self, sock: socket.socket, owner: int) -> None:
        credentials = sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size)
        if _CREDENTIALS.unpack(credentials)[1] != owner:
            raise PermissionError(errno.EPERM, "another user answers there")
        self._end = threading.Timer(self.timeout or PATIENCE, _shut, [sock])
        self._end.daemon = True
        self._end.start()

    def done(self) -> None:
        if self._end is not None:
            self._end.cancel()
        self.close()


def _shut(sock: socket.socket) -> None:
    with contextlib.suppress(OSError):
        sock.shutdown(socket.SHUT_RDWR)


class RunningServer:
    """A running server, by its command socket. All of its methods raise NoAnswerError and GoneError.

    ``owner`` is given where that is another user, perhaps, who is not trusted.
    """

    def __init__(self, path: Path, owner: int | None = None) -> None:
        self.path = path
        self.pid = int(path.stem)
        self.owner = owner
        self._name = ""  # once it has said it
        # Now, while it lives: later the pid may belong to another process.
        self._arbiter = _process(self.pid)

    # --- what it says ---

    def status(self) -> Status:
        """Return what GET /status answers."""
        code, body = self._ask("GET", "/status")
        document = _parsed(body)
        if code != 200:
            raise NoAnswerError(f"{self}: {document.get('error', f'/status answers {code}')}")
        checked = self._checked(document)
        self._name = checked["name"]
        return checked

    def _checked(self, document: dict[str, object]) -> Status:
        """Return the document. Raises NoAnswerError if another version's /status lacks parts."""
        if missing := sorted(Status.__required_keys__ - document.keys()):
            runs = document.get("version", "an unknown version")
            raise NoAnswerError(f"{self} runs multicore_server {runs}: its /status has no {missing[0]!r}")
        return cast("Status", document)

    def metrics(self) -> bytes:
        """Return what GET /metrics answers, in Prometheus' text format."""
        code, body = self._ask("GET", "/metrics")
        if code != 200:
            raise NoAnswerError(f"{self}: /metrics answers {code}")
        return body

    def command(self, name: str, **arguments: object) -> Begun:
        """Send a command. Raises Trouble if it is refused."""
        body = json.dumps(arguments).encode()
        code, answer = self._ask("POST", f"/commands/{name}", body, COMMAND_PATIENCE)
        document = _parsed(answer)
        text = str(document.get("text", f"/commands/{name} answers {code}"))
        if code != 200:
            raise Trouble(f"{name}: {text}")
        workers = document.get("workers")
        return Begun(text, workers if isinstance(workers, int) else None)

    def act(
        self, action: str | None, instances: list[int] | None, arguments: object, timeout: float
    ) -> list[ActionAnswer]:
        """Return each worker's answer to an action. If the action is None, return the names of all. Raises
        Trouble."""
        asked = {"action": action, "instances": instances, "arguments": arguments, "timeout": timeout}
        code, answer = self._ask("POST", "/actions", json.dumps(asked).encode(), timeout + PATIENCE)
        document = _parsed(answer)
        if code != 200:
            raise Trouble(f"trigger: {document.get('text', f'/actions answers {code}')}")
        return cast("list[ActionAnswer]", document.get("workers", []))

    def events(self, last: int) -> Iterator[EventReport]:
        """Yield the last events, then each new one until the connection ends."""
        with self._connected(f"/events?last={last}", timeout=60.0) as response:
            while line := response.readline():
                if line.startswith(b"data: "):
                    yield json.loads(line.removeprefix(b"data: "))

    # --- whether it is there ---

    def listens(self) -> bool:
        """Return whether a process accepts connections at its socket."""
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(PATIENCE)
            return probe.connect_ex(str(self.path)) == 0

    def lives(self) -> bool:
        """Return whether its arbiter still runs."""
        if self.listens():
            return True
        arbiter = self._arbiter
        try:
            return bool(arbiter and arbiter.is_running() and arbiter.status() != psutil.STATUS_ZOMBIE)
        except psutil.Error:
            return False

    @property
    def title(self) -> str:
        return f"{self._name} (pid {self.pid})" if self._name else str(self)

    def __str__(self) -> str:
        return f"the server with pid {self.pid}"

    # --- the way to it ---

    def _ask(
        self, method: str, path: str, body: bytes | None = None, timeout: float = PATIENCE
    ) -> tuple[int, bytes]:
        with self._connected(path, timeout, method, body) as response:
            body = response.read(None if self.owner is None else MOST_OF_OTHERS)
            if self.owner is not None and len(body) == MOST_OF_OTHERS:
                raise NoAnswerError(f"{self} answers too much")
            return response.status, body

    @contextlib.contextmanager
    def _connected(
        self, path: str, timeout: float, method: str = "GET", body: bytes | None = None
    ) -> Iterator[http.client.HTTPResponse]:
        connection = _Connection(self.path, timeout, self.owner)
        try:
            connection.request(method, path, body)
            with connection.getresponse() as response:
                yield response
        except (FileNotFoundError, ConnectionRefusedError):
            raise GoneError(f"{self} has exited; only its command socket is left") from None
        except TimeoutError:
            raise NoAnswerError(f"{self} has not answered within {timeout:g} s") from None
        except (OSError, http.client.HTTPException) as exc:
            reason = getattr(exc, "strerror", None) or type(exc).__name__
            raise NoAnswerError(f"{self} does not answer: {reason}") from None
        finally:
            connection.done()


def _process(pid: int) -> psutil.Process | None:
    """Return None if there is no such process (any more), as for a pid of another container."""
    try:
        return psutil.Process(pid)
    except psutil.Error:
        return None


def _parsed(body: bytes) -> dict[str, object]:
    try:
        document = json.loads(body)
    except (ValueError, RecursionError):
        return {}
    return document if isinstance(document, dict) else {}


# --- which ones there are ---


def running() -> list[RunningServer]:
    """Return the servers that listen, ordered by pid. Raises Trouble for an unsafe directory."""
    return [server for server in _known() if server.listens()]


def _known() -> list[RunningServer]:
    try:
        servers = [RunningServer(path) for path in command_sockets(command_directory(make=False))]
    except AddressError as exc:
        raise Trouble(str(exc)) from None
    return sorted(servers, key=lambda it: it.pid)


def command_sockets(directory: Path) -> Iterator[Path]:
    """What has the name of one."""
    return (it for it in directory.glob(f"*{SUFFIX}") if it.stem.isascii() and it.stem.isdecimal())


def ask_all(servers: list[RunningServer]) -> dict[RunningServer, Status | Trouble]:
    """Ask all servers at once. Return the status of each, or why it does not answer."""
    if not servers:
        return {}
    with ThreadPoolExecutor(min(8, len(servers))) as pool:
        return dict(zip(servers, pool.map(_status_or_trouble, servers), strict=True))


def _status_or_trouble(server: RunningServer) -> Status | Trouble:
    try:
        return server.status()
    except Trouble as exc:
        return exc


# --- which one is meant ---


def choose(wanted: str | None) -> RunningServer:
    """Return the server with this name, port or pid; without one, the only server. Raises Trouble."""
    answers = ask_all(running())
    if wanted is None:
        return _only(answers)
    found = [server for server, status in answers.items() if _is_meant(server, status, wanted)]
    if len(found) == 1:
        return found[0]
    if found:
        raise Trouble(f"{wanted!r} names several servers; give a pid: {_listed(found, answers)}")
    if any(str(server.pid) == wanted for server in _known()):
        raise Trouble(f"the server with pid {wanted} has exited; only its command socket is left")
    if not answers:
        raise _none()
    raise UnknownServerError(f"no server {wanted!r} is running; there are {_listed(answers, answers)}")


def _none() -> Trouble:
    return UnknownServerError(
        f"no server of this user is running (no command socket in {command_directory(make=False)})"
    )


def _only(answers: dict[RunningServer, Status | Trouble]) -> RunningServer:
    if not answers:
        raise _none()
    if len(answers) > 1:
        raise SeveralServersError(
            f"several servers are running; name one of them: {_listed(answers, answers)}"
        )
    return next(iter(answers))


def _is_meant(server: RunningServer, status: Status | Trouble, wanted: str) -> bool:
    if str(server.pid) == wanted:
        return True
    if isinstance(status, Trouble):
        return False
    return status["name"] == wanted or wanted.removeprefix(":") in ports(status)


def ports(status: Status) -> list[str]:
    """Return the ports on which a server answers requests."""
    found = (_PORT.search(address) for address in status["addresses"])
    return [match[1] for match in found if match]


def _listed(servers: Iterable[RunningServer], answers: dict[RunningServer, Status | Trouble]) -> str:
    return ", ".join(_described(server, answers[server]) for server in servers)


def _described(server: RunningServer, status: Status | Trouble) -> str:
    if isinstance(status, Trouble):
        return f"pid {server.pid} (does not answer)"
    where = "".join(f", port {port}" for port in ports(status))
    return f"{status['name']} (pid {server.pid}{where})"


def names() -> list[str]:
    """Return what shell completion offers: the names of the servers, or their pids if names are not
    unique."""
    try:
        answers = ask_all(running())
    except Trouble:
        return []
    known = {server: it["name"] for server, it in answers.items() if not isinstance(it, Trouble)}
    every = list(known.values())
    return [name if every.count(name) == 1 else str(server.pid) for server, name in known.items()]
