"""Makes the CGI part of a WSGI environ from an ASGI scope.

Sources: PEP 3333 "environ Variables" and "URL Reconstruction", and RFC 3875 section 4.1. Where they leave a
choice, this module does what gunicorn does, because its users' apps run here.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple
from urllib.parse import quote, unquote_to_bytes

from starlette.types import Scope

# What each environ has.
ALWAYS = ("REQUEST_METHOD", "SERVER_PROTOCOL", "wsgi.url_scheme", "REMOTE_ADDR", "SCRIPT_NAME", "PATH_INFO",
          "QUERY_STRING", "RAW_URI", "SERVER_NAME", "SERVER_PORT")  # fmt: skip
FORWARDED = "multicore_server.forwarded"  # in a scope: what its proxy has set, a Forwarded
# Real traffic uses a few dozen header names. The limit is for clients that invent new ones.
_KNOWN_NAMES = 512


class Forwarded(NamedTuple):
    """``names`` are those with a ``_``, in small letters, that a trusted proxy may set; ``*`` is any.
    ``script_name``: where it has mounted the app for this request; the path begins with it."""

    names: frozenset[bytes]
    script_name: str | None = None

    def allows(self, name: bytes) -> bool:
        return name in self.names or b"*" in self.names


_NOTHING = Forwarded(frozenset())


class _HeaderKeys(dict[bytes, str]):
    """Maps a header name (lower case, as in ASGI) to its environ key; to "" if the header is dropped."""

    def __init__(self, drop_underscores: bool, forwarded: Forwarded = _NOTHING) -> None:
        super().__init__({b"content-type": "CONTENT_TYPE", b"content-length": "CONTENT_LENGTH"})
        self._drop_underscores = drop_underscores
        self._forwarded = forwarded

    def __missing__(self, name: bytes) -> str:
        # "X-Real_IP" and "X-Real-IP" have the same key, so a client could fake a header that a proxy sets.
        if self._drop_underscores and b"_" in name and not self._forwarded.allows(name):
            return ""
        key = "HTTP_" + name.decode("latin-1").upper().replace("-", "_")
        if len(self) < _KNOWN_NAMES:
            self[name] = key
        return key


_KEYS = {drop: _HeaderKeys(drop) for drop in (True, False)}


def environ(scope: Scope, *, script_name: str = "", drop_underscores: bool = True) -> dict[str, Any]:
    """Return the CGI part of the environ (and ``wsgi.url_scheme``) of an HTTP scope."""
    env: dict[str, Any] = {}
    add_connection(env, scope)
    add_request(env, scope, script_name=script_name, drop_underscores=drop_underscores)
    add_server(env)
    return env


def add_connection(env: dict[str, Any], scope: Scope) -> None:
    """Add what depends on ``client``, ``server``, ``scheme`` and ``http_version`` of the scope alone: most
    requests of a connection have that in common."""
    env["SERVER_PROTOCOL"] = "HTTP/" + scope["http_version"]
    scheme = env["wsgi.url_scheme"] = scope.get("scheme", "http")
    if scheme == "https":
        env["HTTPS"] = "on"  # PEP 3333: the Apache SSL variables, as far as they are known
    client = scope.get("client")
    env["REMOTE_ADDR"] = client[0] if client else ""
    if client and client[1]:  # 0 where a proxy named the client without a port
        env["REMOTE_PORT"] = str(client[1])
        if type(client) is not tuple:
            _add_proxy(env, client)
    server = scope.get("server")
    if server and server[1] is not None:  # no Unix socket
        env["SERVER_NAME"], env["SERVER_PORT"] = server[0], str(server[1])


def add_request(env: dict[str, Any], scope: Scope, *, script_name: str, drop_underscores: bool) -> None:
    """Add what is a request's own: it depends on nothing that `add_connection` adds."""
    env["REQUEST_METHOD"] = scope["method"]
    forwarded = scope.get(FORWARDED)
    if forwarded is None:
        _add_paths(env, scope, scope.get("root_path", ""), script_name)
        _add_headers(env, scope["headers"], _KEYS[drop_underscores])
    else:
        _add_forwarded(env, scope, forwarded, script_name, drop_underscores)


def add_server(env: dict[str, Any]) -> None:
    """Add what neither the connection nor the request has said of the server."""
    if not env.get("SERVER_NAME"):
        host = env.get("HTTP_HOST", "")
        env["SERVER_NAME"], env["SERVER_PORT"] = _server_from_host(host, env["wsgi.url_scheme"])


def _add_proxy(env: dict[str, Any], client: Any) -> None:
    """What the PROXY protocol has said, by gunicorn's names."""
    protocol = getattr(client, "protocol", "")
    if protocol:
        env["PROXY_PROTOCOL"] = protocol
        env["PROXY_ADDR"], env["PROXY_PORT"] = client.proxy[0], str(client.proxy[1])


def _add_forwarded(
    env: dict[str, Any], scope: Scope, forwarded: Forwarded, script_name: str, drop_underscores: bool
) -> None:
    """Of a request whose proxy may set more than others. What it has set, a client cannot by another
    spelling: "Remote-User" has the key of "REMOTE_USER"."""
    headers = scope["headers"]
    if forwarded.script_name is None:
        _add_paths(env, scope, scope.get("root_path", ""), script_name)
    else:  # the proxy's path has it in front, as a root path that was set once for all has not
        _add_paths(env, scope, "", forwarded.script_name)
    own = {name for name, _ in headers if b"_" in name and forwarded.allows(name)}
    kept = [field for field in headers if field[0] in own or field[0].replace(b"-", b"_") not in own]
    _add_headers(env, kept, _keys(drop_underscores, forwarded.names))


@functools.cache
def _keys(drop_underscores: bool, names: frozenset[bytes]) -> _HeaderKeys:
    return _HeaderKeys(drop_underscores, Forwarded(names))


def _add_headers(env: dict[str, Any], headers: list[tuple[bytes, bytes]], keys: _HeaderKeys) -> None:
    repeated: dict[str, list[str]] | None = None
    for name, value in headers:
        key = keys[name]
        if not key:
            continue
        if key not in env:
            env[key] = value.decode("latin-1")
            continue
        # Join the values once, at the end. Joining them one by one would copy the growing value each time.
        repeated = {} if repeated is None else repeated
        repeated.setdefault(key, [env[key]]).append(value.decode("latin-1"))
    for key, values in (repeated or {}).items():
        # RFC 6265bis 5.7.3 and RFC 9113 8.2.3: only cookies are joined by "; ".
        env[key] = ("; " if key == "HTTP_COOKIE" else ",").join(values)


def _add_paths(env: dict[str, Any], scope: Scope, root: str, script_name: str) -> None:
    target: bytes = scope.get("raw_path") or quote(scope["path"]).encode("ascii")
    if root:  # uvicorn puts root_path before both path and raw_path; the client did not send it
        target = target.removeprefix(root.encode("utf-8"))
    if target[:1] != b"/":
        target = _origin_form(target)
    # PEP 3333, "Unicode Issues": each byte becomes one latin-1 character, so bytes that are not UTF-8
    # survive.
    path = (unquote_to_bytes(target) if b"%" in target else target).decode("latin-1")
    if script_name:
        mount = script_name.rstrip("/").encode("utf-8").decode("latin-1")
        if path == mount or path.startswith(mount + "/"):
            path = path[len(mount) :]
        env["SCRIPT_NAME"] = root.encode("utf-8").decode("latin-1") + mount
    else:
        env["SCRIPT_NAME"] = root.encode("utf-8").decode("latin-1") if root else ""
    env["PATH_INFO"] = path
    query = env["QUERY_STRING"] = scope["query_string"].decode("latin-1")
    uri = target.decode("latin-1")
    env["RAW_URI"] = f"{uri}?{query}" if query else uri


def _origin_form(target: bytes) -> bytes:
    """Return the path of ``GET http://host/path`` (RFC 9112 3.2.2). With h11, uvicorn keeps the whole URL."""
    _, absolute, rest = target.partition(b"://")
    if not absolute:
        return target  # "*"
    return b"/" + rest.partition(b"/")[2]


def _server_from_host(host: str, scheme: str) -> tuple[str, str]:
    """Return SERVER_NAME and SERVER_PORT, which PEP 3333 never allows to be empty.

    On a Unix socket, the Host header is the only source.
    """
    name, colon, port = host.rpartition(":")
    if not colon or not port.isdecimal():  # no port, or the colons of an IPv6 address
        name, port = host, ""
    return name or "localhost", port or ("443" if scheme == "https" else "80")
