"""Requests whose whole head has come before, byte for byte: their heads are not parsed again.

Clients that keep their connections alive, proxies and probes send the same heads many times, and to take a
head apart is the largest part of what a small request costs in Python. So a worker remembers some heads of
requests without a body. What the parser and the checks say of a head depends on its bytes alone.
"""

from __future__ import annotations

from typing import Any

from multicore_server.connections.refusal import DEAF

LONGEST = 1024  # bytes of a head that is remembered
KNOWN = 256  # heads that are remembered
EACH = 16  # of so many heads that are not known, one is remembered
TRIAL = 256  # heads that are not known, after which it is judged whether it pays to look for them
WORTH = 1 / 3  # of that: to look for a head in vain costs a third of what is saved where it is found
PAUSE = 1.0  # seconds in which nothing is looked for
END = b"\r\n\r\n"
# What uvicorn's on_message_begin puts into a scope; some of it is each request's own.
OF_REQUEST = ("asgi", "server", "client", "scheme", "headers", "state")
AT_BEGIN = {"type", "http_version", "root_path", *OF_REQUEST}


class Known:
    """A head that has come before."""

    __slots__ = ("asgi", "cgi", "headers", "keep_alive", "scope")

    def __init__(self, scope: dict[str, Any], *, keep_alive: bool) -> None:
        # Nothing stays of the first request: the app may have put into its state whatever it likes.
        self.scope: dict[str, Any] = scope | dict.fromkeys(OF_REQUEST)
        self.asgi: dict[str, Any] = scope["asgi"].copy()
        self.headers: list[tuple[bytes, bytes]] = scope["headers"].copy()
        self.keep_alive = keep_alive
        self.cgi: dict[str, Any] | None = None  # the request's part of a WSGI environ, once it was made


class KnownHeads:
    """The heads that a worker remembers. While few heads are among them, it does not look for them."""

    __slots__ = ("_known", "_loop", "_misses", "get", "hits", "rests")

    def __init__(self, loop: Any) -> None:
        self._loop = loop
        self._known: dict[bytes, Known] = {}
        self.get = self._known.get
        self.hits = 0
        self._misses = 0
        self.rests = False  # no head is looked for

    def is_to_learn(self) -> bool:
        """Whether a head that is not known is to be remembered. Some are: those that come often are soon
        among them."""
        self._misses += 1
        if self._misses % EACH:
            return False
        if self._misses >= TRIAL:
            self.rests = self.hits < TRIAL * WORTH
            self.hits = self._misses = 0
            if self.rests:
                self._loop.call_later(PAUSE, self._go_on)
        return True

    def _go_on(self) -> None:
        self.rests = False

    def learn(self, head: bytes, known: Known) -> None:
        """Remember a head; where there are too many, forget the oldest."""
        if len(self._known) >= KNOWN:
            del self._known[next(iter(self._known))]
        self._known[head] = known


class RecallingHttpTools:
    """Mixed into uvicorn's protocol above what parses requests."""

    heads: KnownHeads
    app_state: dict[str, Any]
    server: Any
    client: Any
    scheme: Any
    scope: Any
    cycle: Any
    parser: Any
    pipeline: Any
    idle: bool
    unfinished: int
    heard: bool
    rests_until: float
    expect_100_continue: bool
    make_cycle: Any
    _run_app: Any
    _on_error: Any
    _parse: Any  # whether the parser has taken all of it

    def recall(self, data: bytes) -> None:
        """What `_parse` does with bytes that have come, without parsing them where they are a known head."""
        heads = self.heads
        if heads.rests or len(data) > LONGEST:
            self._parse(data)
            return
        known = heads.get(data)
        if not self.is_between_requests:
            self._parse(data)
        elif known is not None:
            heads.hits += 1
            self._begin_again(known)
        elif heads.is_to_learn():
            self._parse_and_learn(data)
        else:
            self._parse(data)

    @property
    def is_between_requests(self) -> bool:
        """Whether the parser awaits the first byte of a request, and nobody an earlier response."""
        cycle = self.cycle
        return self.idle and not self.unfinished and (cycle is None or not cycle.more_body)

    def _begin_again(self, known: Known) -> None:
        self.heard = True
        self.rests_until = 0.0
        self.expect_100_continue = False
        self.scope = scope = known.scope.copy()
        scope["asgi"] = known.asgi.copy()
        scope["server"] = self.server
        scope["client"] = self.client
        scope["scheme"] = self.scheme
        scope["headers"] = known.headers.copy()
        scope["state"] = self.app_state.copy()
        self.cycle = cycle = self.make_cycle(known.keep_alive)
        cycle.known = known
        cycle.more_body = False
        if not known.keep_alive:
            self.parser = DEAF
        try:
            self._run_app(cycle)
        except Exception:  # noqa: BLE001 - as in a callback of the parser: of the loop, or no memory
            self._on_error()

    def _parse_and_learn(self, data: bytes) -> None:
        before = self.cycle
        taken = self._parse(data)
        cycle, scope = self.cycle, self.scope
        if (
            taken
            and cycle is not before
            and data.find(END) == len(data) - len(END)  # it is one head
            and not (cycle.more_body or cycle.body or self.pipeline or cycle.waiting_for_100_continue)
            and scope["http_version"] == "1.1"
            and not cycle.began  # an app that has begun may have changed the scope
        ):
            self.heads.learn(data, Known(scope, keep_alive=cycle.keep_alive))
