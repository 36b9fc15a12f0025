"""Reads what trusted proxies say about a request: its client and scheme, since when it waits, where the app
is mounted, names with a ``_``.

A request without any of these fields costs only a look at the names of its fields.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from http import HTTPStatus
from typing import Any, NamedTuple, TypeAlias, cast
from urllib.parse import unquote

from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from multicore_server.connections.announcements import VERSIONS, AnnouncedClient, Announcements
from multicore_server.settings.gunicorn import is_given
from multicore_server.wsgi.bridge import REFUSED_NAME, refuse, say_refused
from multicore_server.wsgi.environ import FORWARDED, Forwarded

FOR, PROTO, SCRIPT_NAME = b"x-forwarded-for", b"x-forwarded-proto", b"script_name"
START = b"x-request-start"
ANY = b"*"
Field: TypeAlias = "tuple[bytes, bytes]"
OF_WEBSOCKETS = {b"wss": b"https", b"ws": b"http"}  # what some proxies say for these
REFUSED = "multicore_server.refused"  # in a scope: the status with which it is refused, and has its line


class Rules(NamedTuple):
    """gunicorn's settings, where they are in force; the names in small letters.

    ``schemes``: the value of each field that says https; None: X-Forwarded-Proto, as uvicorn reads it.
    ``forwarder``: names with a ``_`` that count. ``header_map``: what becomes of other names with a ``_``.
    ``of_bridge``: the app is a WSGI app, whose bridge maps the names.
    """

    schemes: Mapping[bytes, bytes] | None = None
    forwarder: frozenset[bytes] = frozenset()
    header_map: str = "dangerous"
    of_bridge: bool = False

    @classmethod
    def of(cls, cfg: Any, *, wsgi: bool) -> Rules:
        """With uvicorn's command line, uvicorn's way is right unless a setting is given. So it is for ASGI
        apps with header_map: its default is uvicorn's, which lets every name through."""
        is_gunicorns = not hasattr(cfg, "uvicorn_options")
        schemes = forwarder = None
        if is_gunicorns or is_given(cfg, "secure_scheme_headers"):
            found = cfg.settings["secure_scheme_headers"].get()
            schemes = {name.lower().encode(): value.encode("latin-1") for name, value in found.items()}
        if is_gunicorns or is_given(cfg, "forwarder_headers"):
            forwarder = cfg.settings["forwarder_headers"].get()
        mapped = not wsgi and is_given(cfg, "header_map")
        names = frozenset(name.lower().encode() for name in forwarder or ())
        return cls(schemes, names, cfg.settings["header_map"].get() if mapped else "dangerous", wsgi)


class Peers:
    """Who is trusted: a list of addresses and networks, as gunicorn and uvicorn have it."""

    def __init__(self, trusted: Any) -> None:
        names = [name.strip() for name in trusted.split(",")] if isinstance(trusted, str) else list(trusted)
        self._middleware = ProxyHeadersMiddleware(_nothing, trusted)
        self._hosts: Any = self._middleware.trusted_hosts
        self._first_stranger = getattr(self._hosts, "get_trusted_client_address", None)
        self._all = "*" in names
        any_peer: Any = _AnyPeer(self._hosts)  # it is asked for a trusted one alone
        self._middleware.trusted_hosts = any_peer

    def __contains__(self, host: str) -> bool:
        return self._all or host in self._hosts

    def has_sent(self, scope: Any) -> bool:
        """Whether a request's peer is trusted. That of a Unix socket is, as in gunicorn."""
        client = scope["client"]
        if type(client) is AnnouncedClient:
            return client.peer is None or client.peer[0] in self
        if client is None:  # or its TCP connection was reset before anybody asked whose it is
            server = scope.get("server")
            return not server or server[1] is None
        return client[0] in self

    def name_client(self, scope: Any, chain: list[Field]) -> None:
        """By X-Forwarded-For of a trusted peer. Where uvicorn lets us, without its middleware around it."""
        if self._first_stranger is None:
            self.ask_uvicorn(scope, chain)
            return
        found = self._first_stranger(b", ".join([value for _, value in chain]).decode("latin-1"))
        if found[0]:
            scope["client"] = found

    def ask_uvicorn(self, scope: Any, headers: list[Field]) -> None:
        """Write into the scope of a trusted peer's request what uvicorn's middleware does by these fields."""
        before, scope["headers"] = scope["headers"], headers
        changing = self._middleware(scope, _nothing, _nothing)
        try:
            changing.send(None)  # it waits for nothing
        except StopIteration:
            pass
        finally:
            scope["headers"] = before


class Proxied:
    """An ASGI app around another. ``trusted`` are the peers that count; None: nobody does.

    A proxy is trusted by its socket's address, as in gunicorn. For X-Forwarded-For it is the nearest client
    that is known: where the PROXY protocol has announced one, that one has to be trusted too.
    """

    def __init__(self, app: Any, trusted: Any, rules: Rules = Rules()) -> None:  # noqa: B008 - immutable
        self.app = app
        self.on_client: Callable[[str], None] | None = None  # called with a client that was named
        # Called with a scope and X-Request-Start of a trusted peer.
        self.on_start: Callable[[Any, bytes], None] | None = None
        self._rules = rules
        self._peers = None if trusted is None else Peers(trusted)
        self._forwarded = Forwarded(rules.forwarder)
        self._watched, self._watches_names = _watched(rules)

    def __call__(self, scope: Any, receive: Any, send: Any) -> Any:
        status = self.apply(scope)
        if status is not None:
            return _refuse(scope, send, status)
        return self.app(scope, receive, send)

    def apply(self, scope: Any) -> HTTPStatus | None:
        """Write into the scope what is to be believed. A status: nothing of it was written, and the request
        is to be refused with that."""
        watched, headers = self._watched, scope.get("headers", ())
        for name, _ in headers:
            if name in watched:
                return self._judge(scope)
        if self._watches_names and any(b"_" in name for name, _ in headers):
            return self._judge(scope)
        return None

    def _judge(self, scope: Any) -> HTTPStatus | None:
        if FORWARDED in scope or REFUSED in scope:  # it comes here once more
            return cast("HTTPStatus | None", scope.get(REFUSED))
        trusted = self._peers is not None and self._peers.has_sent(scope)
        rules, headers = self._rules, scope["headers"]
        if rules.header_map != "dangerous":
            headers = self._mapped(headers, trusted=trusted)
            if headers is None:
                return _say(scope, HTTPStatus.BAD_REQUEST, REFUSED_NAME)
        watched = self._watched
        told = headers if self._watches_names else [field for field in headers if field[0] in watched]
        if trusted and (rules.schemes or rules.forwarder):
            found = _Found()
            status = found.read(told, scope, rules.schemes or {}, self._forwarded) or found.mount(scope)
            if status is not None:
                return status
            found.write(scope)
            if found.forwarded:  # for whoever makes an environ of it: the bridge, the access log
                scope[FORWARDED] = self._forwarded._replace(script_name=found.mounted)
        self._name_client(told, scope, trusted=trusted)
        if trusted and self.on_start is not None and scope["type"] == "http":
            self._note_start(scope, told)
        scope["headers"] = headers
        return None

    def _mapped(self, headers: Any, *, trusted: bool) -> Any:
        """The fields that are kept; None: they are to be refused."""
        allowed = self._forwarded if trusted else Forwarded(frozenset())
        kept = [field for field in headers if b"_" not in field[0] or allowed.allows(field[0])]
        return None if self._rules.header_map == "refuse" and len(kept) < len(headers) else kept

    def _note_start(self, scope: Any, told: list[Field]) -> None:
        """By the proxy that is next to us: it has added the last one."""
        starts = [value for name, value in told if name == START]
        if starts and self.on_start is not None:
            self.on_start(scope, starts[-1])

    def _name_client(self, told: list[Field], scope: Any, *, trusted: bool) -> None:
        """By X-Forwarded-For; the scheme too, where uvicorn's way is right."""
        if self._peers is None:
            return
        client = scope["client"]
        by_client = client[0] in self._peers if type(client) is AnnouncedClient else trusted
        if trusted and self._rules.schemes is None:
            self._peers.ask_uvicorn(scope, told if by_client else [it for it in told if it[0] != FOR])
        elif by_client and (chain := [field for field in told if field[0] == FOR]):
            self._peers.name_client(scope, chain)
        if self.on_client is not None and scope["client"] is not client:
            self.on_client(scope["client"][0])


def _watched(rules: Rules) -> tuple[frozenset[bytes], bool]:
    """The names that are looked for, and whether all those with a ``_`` are."""
    watched = {FOR, PROTO, START, *(rules.schemes or ())}
    if rules.of_bridge:
        watched |= {name for name in rules.forwarder if b"_" in name}
    if Forwarded(rules.forwarder).allows(SCRIPT_NAME):
        watched.add(SCRIPT_NAME)
    by_name = (rules.of_bridge and ANY in rules.forwarder) or rules.header_map != "dangerous"
    return frozenset(watched), by_name


class _Found:
    """What a trusted proxy has said by gunicorn's fields."""

    secure: bool | None = None
    forwarded = False  # a name with a _ that is let through
    script_name: bytes | None = None
    mounted: str | None = None  # the script's name, as the app is told it
    path = ""  # as the client has sent it

    def read(
        self, told: list[Field], scope: Any, schemes: Mapping[bytes, bytes], forwarded: Forwarded
    ) -> HTTPStatus | None:
        """A status where two fields contradict each other."""
        of_websocket = scope["type"] == "websocket"
        for name, value in told:
            if name in schemes:
                said = OF_WEBSOCKETS.get(value, value) if of_websocket else value
                secure = said == schemes[name]
                if self.secure not in (None, secure):
                    return _say(scope, HTTPStatus.BAD_REQUEST, "its proxies' fields name two schemes")
                self.secure = secure
            elif b"_" in name and forwarded.allows(name):
                self.forwarded = True
                if name == SCRIPT_NAME:
                    if self.script_name not in (None, value):
                        return _say(scope, HTTPStatus.BAD_REQUEST, "two values of SCRIPT_NAME")
                    self.script_name = value
        return None

    def mount(self, scope: Any) -> HTTPStatus | None:
        """A status where the path is not below the script's name."""
        if self.script_name is None:
            return None
        self.mounted = unquote(self.script_name.decode("utf-8", "replace")).rstrip("/")
        self.path = _origin(scope["path"].removeprefix(scope.get("root_path", "")))
        if self.path.startswith(self.mounted):
            return None
        why = f"its path {self.path!r} does not begin with the SCRIPT_NAME {self.mounted!r} of its proxy"
        return _say(scope, HTTPStatus.INTERNAL_SERVER_ERROR, why)

    def write(self, scope: Any) -> None:
        if self.secure is not None:
            plain = "ws" if scope["type"] == "websocket" else "http"
            scope["scheme"] = plain + "s" if self.secure else plain
        if self.mounted is not None:  # in place of a root path that was set once for all
            before = scope.get("root_path", "").encode()
            scope["root_path"], scope["path"] = self.mounted, self.path
            scope["raw_path"] = (scope.get("raw_path") or b"").removeprefix(before)


def _origin(path: str) -> str:
    """Of an absolute URI its path: with h11, uvicorn keeps all of it."""
    _, absolute, rest = path.partition("://") if path[:1] != "/" else ("", "", "")
    return "/" + rest.partition("/")[2] if absolute else path


def _say(scope: Any, status: HTTPStatus, why: str) -> HTTPStatus:
    say_refused(scope, status, why)
    scope[REFUSED] = status
    return status


async def _refuse(scope: Any, send: Any, status: HTTPStatus) -> None:
    if scope["type"] != "websocket":
        await refuse(send, status)
    elif "websocket.http.response" not in scope.get("extensions", {}):
        await send({"type": "websocket.close", "code": 1000})  # before accept: the client gets a 403
    else:
        headers = [(b"content-length", b"0"), (b"connection", b"close")]
        start = {"type": "websocket.http.response.start", "status": status.value, "headers": headers}
        await send(start)
        await send({"type": "websocket.http.response.body", "body": b""})


class _AnyPeer:
    """uvicorn's list of trusted hosts, for the middleware's question about its peer: any is trusted."""

    def __init__(self, hosts: Any) -> None:
        self._hosts = hosts

    def __contains__(self, host: object) -> bool:
        return True

    def __getattr__(self, name: str) -> Any:
        return getattr(self._hosts, name)  # what walks the chain asks the list itself


async def _nothing(*_: object) -> Any:
    """In place of an app."""


# --- the PROXY protocol


def announcements(cfg: Any, timeout: float) -> Announcements | None:
    """In a running loop; None where gunicorn's proxy_protocol is off. ``timeout`` is for a header's arrival,
    in seconds."""
    versions = VERSIONS.get(cfg.settings["proxy_protocol"].get())
    if versions is None:
        return None
    peers = Peers(cfg.settings["proxy_allow_ips"].get())
    return Announcements(versions, peers.__contains__, timeout, secure=bool(cfg.is_ssl))
