"""What is believed of a request's fields, and from whom."""

from __future__ import annotations

import asyncio
import logging
from typing import Any

import pytest

from multicore_server.connections.announcements import AnnouncedClient
from multicore_server.worker.proxied import REFUSED, Peers, Proxied, Rules
from multicore_server.wsgi.bridge import WSGIBridge
from tests.unit.wsgi_client import Client, hello
from tests.unit.wsgi_client import scope as http

SCHEMES = {b"x-forwarded-protocol": b"ssl", b"x-forwarded-proto": b"https", b"x-forwarded-ssl": b"on"}
GUNICORNS = Rules(SCHEMES, frozenset({b"script_name", b"path_info"}))
PROXY, STRANGER = ("127.0.0.1", 5), ("9.9.9.9", 5)
TRUSTED = ["127.0.0.1", "::1"]

Field = tuple[bytes, bytes]


def field(text: str) -> Field:
    name, _, value = text.partition(": ")
    return name.lower().encode(), value.encode("latin-1")


def scope(*fields: str, **changes: Any) -> dict[str, Any]:
    return http(client=PROXY, headers=[(b"host", b"a"), *map(field, fields)], **changes)


def applied(request: dict[str, Any], rules: Rules = GUNICORNS, trusted: Any = TRUSTED) -> Any:
    """The status of a refusal, or the scope."""
    before = {**request, "headers": list(request["headers"])}
    status = Proxied(None, trusted, rules).apply(request)
    assert status is None or request == before | {REFUSED: status}
    return request if status is None else int(status)


# --- the scheme


@pytest.mark.parametrize(
    ("fields", "scheme"),
    [
        ([], "http"),
        (["X-Forwarded-Proto: https"], "https"),
        (["X-Forwarded-Proto: http"], "http"),
        (["X-Forwarded-Ssl: on"], "https"),
        (["X-Forwarded-Ssl: off"], "http"),
        (["X-Forwarded-Protocol: ssl"], "https"),
        (["X-Forwarded-Protocol: https"], "http"),
        (["X-Forwarded-Proto: HTTPS"], "http"),
        (["X-Forwarded-Proto: https, http"], "http"),
        (["X-Forwarded-Proto: https", "X-Forwarded-Ssl: on", "X-Forwarded-Protocol: ssl"], "https"),
        (["X-Forwarded-Proto: https", "X-Forwarded-Proto: https"], "https"),
        (["X-Forwarded-Ssl: on", "X-Forwarded-Proto: http"], 400),
        (["X-Forwarded-Proto: https", "X-Forwarded-Proto: http"], 400),
        (["X_Forwarded_Proto: https"], "http"),
    ],
)
def test_the_scheme_is_that_of_all_the_fields(fields: list[str], scheme: object) -> None:
    found = applied(scope(*fields))
    assert (found if isinstance(found, int) else found["scheme"]) == scheme
    assert applied({**scope(*fields), "client": STRANGER})["scheme"] == "http"


def test_a_proxy_that_says_http_is_believed_over_tls() -> None:
    assert applied(scope("X-Forwarded-Proto: http", scheme="https"))["scheme"] == "http"
    assert applied(scope(scheme="https"))["scheme"] == "https"


@pytest.mark.parametrize(
    ("said", "scheme"), [("https", "wss"), ("wss", "wss"), ("http", "ws"), ("ws", "ws"), ("x", "ws")]
)
def test_the_scheme_of_a_websocket(said: str, scheme: str) -> None:
    request = scope(f"X-Forwarded-Proto: {said}", type="websocket", scheme="ws")
    assert applied(request)["scheme"] == scheme


def test_other_fields_may_say_so() -> None:
    rules = Rules({b"x-tls": b"1"})
    assert applied(scope("X-Tls: 1"), rules)["scheme"] == "https"
    assert applied(scope("X-Forwarded-Proto: https"), rules)["scheme"] == "http"
    assert applied(scope("X-Forwarded-Proto: https"), Rules({}))["scheme"] == "http"


@pytest.mark.parametrize(
    ("said", "scheme"), [("https", "https"), ("http", "http"), ("wss", "wss"), ("x", "http")]
)
def test_uvicorns_way(said: str, scheme: str) -> None:
    assert applied(scope(f"X-Forwarded-Proto: {said}"), Rules())["scheme"] == scheme
    assert applied(scope("X-Forwarded-Ssl: on"), Rules())["scheme"] == "http"


# --- since when it waits


def starts(request: dict[str, Any], rules: Rules = GUNICORNS, trusted: Any = TRUSTED) -> list[bytes]:
    """What is told of X-Request-Start."""
    found: list[bytes] = []
    proxied = Proxied(None, trusted, rules)
    proxied.on_start = lambda _, value: found.append(value)
    proxied.apply(request)
    return found


@pytest.mark.parametrize("rules", [GUNICORNS, Rules(), Rules(header_map="drop")])
def test_when_a_request_came_to_a_trusted_proxy(rules: Rules) -> None:
    asked = scope("X-Request-Start: t=1.5")
    assert starts(asked, rules) == [b"t=1.5"]
    assert (asked["headers"][1], asked["client"]) == (field("X-Request-Start: t=1.5"), PROXY)
    assert starts(scope("X-Request-Start: t=1", "X-Request-Start: t=2"), rules) == [
        b"t=2"
    ]  # the nearest one's
    assert starts({**scope("X-Request-Start: t=1.5"), "client": STRANGER}, rules) == []
    assert starts(scope("X-Request-Start: t=1.5"), rules, None) == []
    assert starts(scope("X-Request-Start: t=1.5", type="websocket"), rules) == []
    assert starts(scope("X-Forwarded-Proto: https"), rules) == []


def test_of_a_request_that_is_refused_nothing_is_told() -> None:
    refused = scope("X-Request-Start: t=1", "X-Forwarded-Ssl: on", "X-Forwarded-Proto: http")
    assert starts(refused) == []


# --- where the app is mounted


@pytest.mark.parametrize(
    ("name", "raw", "expected"),
    [
        ("/wiki", b"/wiki/a%20b", ("/wiki", "/wiki/a b", b"/wiki/a%20b")),
        ("/wiki/", b"/wiki/a", ("/wiki", "/wiki/a", b"/wiki/a")),
        ("/wiki", b"/wiki", ("/wiki", "/wiki", b"/wiki")),
        ("/wiki", b"/wikis", ("/wiki", "/wikis", b"/wikis")),
        ("/my%20wiki", b"/my%20wiki/a", ("/my wiki", "/my wiki/a", b"/my%20wiki/a")),
        ("/my wiki", b"/my%20wiki/a", ("/my wiki", "/my wiki/a", b"/my%20wiki/a")),
        ("", b"/a", ("", "/a", b"/a")),
        ("/", b"/a", ("", "/a", b"/a")),
        ("/wiki", b"/a", 500),
        ("/wiki", b"//wiki/a", 500),
        ("/wiki,/a", b"/wiki/a", 500),
        ("\xff", b"/a", 500),
    ],
)
def test_the_script_name(name: str, raw: bytes, expected: object) -> None:
    path = raw.decode().replace("%20", " ")
    found = applied(scope(f"SCRIPT_NAME: {name}", path=path, raw_path=raw))
    if isinstance(expected, int):
        assert found == expected
    else:
        assert (found["root_path"], found["path"], found["raw_path"]) == expected


def test_the_path_of_an_absolute_uri() -> None:
    """With h11, uvicorn keeps all of it."""
    uri = "http://a/wiki/b"
    found = applied(scope("SCRIPT_NAME: /wiki", path=uri, raw_path=uri.encode()))
    assert (found["root_path"], found["path"]) == ("/wiki", "/wiki/b")


def test_it_takes_the_place_of_a_root_path_that_was_set_once_for_all() -> None:
    """uvicorn has put that in front of the path."""
    changes = {"root_path": "/set", "path": "/set/wiki/a", "raw_path": b"/set/wiki/a"}
    found = applied(scope("SCRIPT_NAME: /wiki", **changes))
    assert (found["root_path"], found["path"], found["raw_path"]) == ("/wiki", "/wiki/a", b"/wiki/a")


@pytest.mark.parametrize(
    ("fields", "outcome"),
    [
        (["SCRIPT_NAME: /wiki", "SCRIPT_NAME: /wiki"], "/wiki"),
        (["SCRIPT_NAME: /", "SCRIPT_NAME: /wiki"], 400),
        (["Script-Name: /a"], ""),
        (["Script-Name: /a", "SCRIPT_NAME: /wiki"], "/wiki"),
        (["PATH_INFO: /admin"], ""),
    ],
)
def test_what_a_client_adds_changes_nothing(fields: list[str], outcome: object) -> None:
    found = applied(scope(*fields, path="/wiki/a", raw_path=b"/wiki/a"))
    assert (found if isinstance(found, int) else found["root_path"]) == outcome
    assert isinstance(found, int) or found["path"] == "/wiki/a"


@pytest.mark.parametrize("rules", [Rules(), GUNICORNS._replace(forwarder=frozenset({b"remote_user"}))])
def test_without_being_in_the_list_it_is_a_field_as_any(rules: Rules) -> None:
    found = applied(scope("SCRIPT_NAME: /wiki"), rules)
    assert (found["root_path"], found["headers"][-1]) == ("", (b"script_name", b"/wiki"))


def test_a_stranger_mounts_nothing() -> None:
    found = applied({**scope("SCRIPT_NAME: /wiki"), "client": STRANGER})
    assert (found["root_path"], found["path"]) == ("", "/a")


# --- names with a _


PLAIN, OFF = (STRANGER, TRUSTED), (PROXY, None)


@pytest.mark.parametrize(
    ("how", "forwarder", "sender", "names"),
    [
        ("dangerous", set(), PLAIN, [b"x_user", b"x-user"]),
        ("drop", set(), (PROXY, TRUSTED), [b"x-user"]),
        ("refuse", set(), (PROXY, TRUSTED), 400),
        ("drop", {b"x_user"}, (PROXY, TRUSTED), [b"x_user", b"x-user"]),
        ("drop", {b"x_user"}, PLAIN, [b"x-user"]),
        ("drop", {b"x_user"}, OFF, [b"x-user"]),
        ("refuse", {b"x_user"}, (PROXY, TRUSTED), [b"x_user", b"x-user"]),
        ("refuse", {b"x_user"}, PLAIN, 400),
        ("refuse", {b"x_user"}, OFF, 400),
        ("drop", {b"*"}, (PROXY, TRUSTED), [b"x_user", b"x-user"]),
        ("refuse", {b"*"}, PLAIN, 400),
        ("refuse", {b"script_name"}, (PROXY, TRUSTED), 400),
    ],
)
def test_names_with_an_underscore(
    how: str, forwarder: set[bytes], sender: tuple[Any, Any], names: object
) -> None:
    """Also where proxies are not believed at all."""
    client, trusted = sender
    request = {**scope("X_User: root", "X-User: me"), "client": client}
    found = applied(request, Rules(SCHEMES, frozenset(forwarder), how), trusted)
    if isinstance(found, int):
        assert found == names
    else:
        assert [name for name, _ in found["headers"] if name.endswith(b"user")] == names


def test_where_nobody_is_believed_nothing_else_changes() -> None:
    fields = ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-Proto: https", "SCRIPT_NAME: /a"]
    assert applied(scope(*fields), GUNICORNS, None) == scope(*fields)


# --- who is believed


@pytest.mark.parametrize(
    ("trusted", "host", "is_trusted"),
    [
        (["127.0.0.1", "::1"], "127.0.0.1", True),
        ("127.0.0.1, 10.0.0.0/8", "10.1.2.3", True),
        (["10.0.0.0/8"], "11.1.2.3", False),
        (["fd00::/8"], "fd00:0::1", True),
        (["*"], "9.9.9.9", True),
        (["127.0.0.1", "*"], "9.9.9.9", True),
        ("127.0.0.1,*", "9.9.9.9", True),
        ([], "127.0.0.1", False),
        ("", "", False),
    ],
)
def test_the_list_of_addresses_and_networks(trusted: Any, host: str, is_trusted: bool) -> None:
    assert (host in Peers(trusted)) == is_trusted


FORGED = ["X-Forwarded-For: 6.6.6.6", "X-Forwarded-Ssl: on", "SCRIPT_NAME: /a"]


@pytest.mark.parametrize("rules", [Rules(), GUNICORNS])
def test_a_tcp_connection_that_was_reset_is_no_unix_socket(rules: Rules) -> None:
    """Nobody can tell any more whose it is, and its request can still be read."""
    request = {**scope(*FORGED), "client": None}
    assert applied(dict(request), rules) == request
    of_unix = {**request, "server": ("/run/app.sock", None)}
    assert applied(of_unix, rules)["client"] == ("6.6.6.6", 0)


def announced(host: str, peer: Any) -> AnnouncedClient:
    client = AnnouncedClient((host, 1))
    client.peer, client.protocol, client.proxy = peer, "TCP4", ("10.0.0.1", 443)
    return client


@pytest.mark.parametrize("peer", [PROXY, None])
def test_with_the_proxy_protocol_the_proxy_is_the_peer(peer: Any) -> None:
    """Whom it has announced cannot be somebody else by a field of that client's own."""
    request = {**scope(*FORGED), "client": announced("9.9.9.9", peer)}
    found = applied(request)
    assert (found["client"], found["scheme"], found["root_path"]) == (("9.9.9.9", 1), "https", "/a")
    assert type(found["client"]) is AnnouncedClient
    assert (
        applied({**scope("X-Forwarded-Proto: https"), "client": announced("9.9.9.9", peer)}, Rules())[
            "scheme"
        ]
        == "https"
    )


def test_a_proxy_that_was_announced_is_believed_about_its_client() -> None:
    request = {**scope(*FORGED), "client": announced("127.0.0.1", STRANGER)}
    found = applied(request)
    assert (found["client"], found["scheme"], found["root_path"]) == (("6.6.6.6", 0), "http", "")


# --- the refusal


def refused(request: dict[str, Any]) -> list[Any]:
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(Proxied(None, TRUSTED, GUNICORNS)(request, None, send))
    return sent


BAD = ["X-Forwarded-Ssl: on", "X-Forwarded-Proto: http"]


def test_a_refusal_is_the_last_answer_and_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "gunicorn.error")
    start, _ = refused(scope(*BAD))
    assert start["status"] == 400
    assert (b"connection", b"close") in start["headers"]
    assert caplog.messages == [
        "a request from 127.0.0.1 is refused with 400: its proxies' fields name two schemes"
    ]


def test_a_request_that_is_refused_on_the_direct_way_has_one_line(caplog: pytest.LogCaptureFixture) -> None:
    """It takes the usual way then, and is judged once more."""
    caplog.set_level(logging.WARNING, "gunicorn.error")
    proxied, request = Proxied(None, TRUSTED, GUNICORNS), scope(*BAD)
    assert [proxied.apply(request), proxied.apply(request)] == [400, 400]
    assert len(caplog.messages) == 1


@pytest.mark.parametrize(
    ("extensions", "first"),
    [({}, "websocket.close"), ({"websocket.http.response": {}}, "websocket.http.response.start")],
)
def test_a_websocket_is_refused_as_it_can_be(extensions: dict[str, Any], first: str) -> None:
    sent = refused(scope(*BAD, type="websocket", extensions=extensions))
    assert sent[0]["type"] == first
    assert sent[0].get("status", 400) == 400


# --- with the bridge


def environ(request: dict[str, Any], rules: Rules = GUNICORNS, **options: Any) -> dict[str, Any]:
    """What a WSGI app is told; its status where it is not asked."""
    seen: list[dict[str, Any]] = []

    def app(environ: dict[str, Any], start_response: Any) -> Any:
        seen.append(environ)
        return hello(environ, start_response)

    client = Client()
    proxied = Proxied(WSGIBridge(app, **options), TRUSTED, rules._replace(of_bridge=True))

    async def main() -> None:
        await proxied(request, client.receive, client.send)

    asyncio.run(main())
    return seen[0] if seen else {"status": client.status}


def part(env: dict[str, Any], *names: str) -> tuple[Any, ...]:
    return tuple(env.get(name) for name in names)


PATHS = ("SCRIPT_NAME", "PATH_INFO", "RAW_URI", "HTTP_SCRIPT_NAME")


@pytest.mark.parametrize("script_name", ["", "/set"])
@pytest.mark.parametrize(
    ("raw", "paths"),
    [
        (b"/wiki/caf%C3%A9", ("/wiki", "/caf\xc3\xa9", "/wiki/caf%C3%A9", "/wiki")),
        (b"/wiki", ("/wiki", "", "/wiki", "/wiki")),
        (b"/wikis", ("/wiki", "/wikis", "/wikis", "/wiki")),  # nothing of it is taken off
    ],
)
def test_a_wsgi_app_is_mounted(script_name: str, raw: bytes, paths: tuple[str, ...]) -> None:
    path = raw.decode().replace("%C3%A9", "é")
    env = environ(scope("SCRIPT_NAME: /wiki", path=path, raw_path=raw), script_name=script_name)
    assert part(env, *PATHS) == paths


def test_a_wsgi_apps_path_is_the_paths() -> None:
    """gunicorn has PATH_INFO in its list, and lets the app see it as any other field."""
    env = environ(scope("PATH_INFO: /admin"))
    assert part(env, "PATH_INFO", "HTTP_PATH_INFO") == ("/a", "/admin")


@pytest.mark.parametrize(
    ("fields", "forwarder", "user"),
    [
        (["REMOTE_USER: me"], {b"remote_user"}, "me"),
        (["REMOTE_USER: me"], {b"*"}, "me"),
        (["REMOTE_USER: me"], {b"script_name"}, None),
        (["Remote-User: root", "REMOTE_USER: me"], {b"remote_user"}, "me"),
        (["REMOTE_USER: me", "Remote_User: me", "Remote-User: root"], {b"remote_user"}, "me,me"),
        (["REMOTE_USER: me", "Remote-User: root"], {b"*"}, "me"),
        (["Remote-User: root"], {b"remote_user"}, "root"),
    ],
)
@pytest.mark.parametrize("header_map", ["drop", "dangerous"])
def test_names_that_a_proxy_may_set(
    fields: list[str], forwarder: set[bytes], user: str | None, header_map: Any
) -> None:
    if user is None and header_map == "dangerous":
        user = "me"
    rules = Rules(SCHEMES, frozenset(forwarder))
    assert environ(scope(*fields), rules, header_map=header_map).get("HTTP_REMOTE_USER") == user


@pytest.mark.parametrize("client", [PROXY, STRANGER])
def test_names_are_refused_but_for_those_of_a_proxy(client: tuple[str, int]) -> None:
    env = environ({**scope("SCRIPT_NAME: /a"), "client": client}, header_map="refuse")
    assert env.get("status") == (400 if client == STRANGER else None)
    both = environ({**scope("SCRIPT_NAME: /a", "X_Y: z"), "client": client}, header_map="refuse")
    assert both["status"] == 400


def test_a_refused_name_has_a_line(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.WARNING, "gunicorn.error")
    assert environ(scope("X_Y: z"), header_map="refuse")["status"] == 400
    line = "a request from 127.0.0.1 is refused with 400: a name with a _ (header_map)"
    assert caplog.messages == [line]


def test_a_stranger_tells_the_bridge_nothing() -> None:
    env = environ({**scope(*FORGED), "client": STRANGER})
    assert part(env, *PATHS, "wsgi.url_scheme", "HTTPS") == ("", "/a", "/a", None, "http", None)


def test_an_announced_client_has_gunicorns_variables() -> None:
    env = environ({**scope(), "client": announced("9.9.9.9", PROXY)})
    names = ("REMOTE_ADDR", "REMOTE_PORT", "PROXY_PROTOCOL", "PROXY_ADDR", "PROXY_PORT")
    assert part(env, *names) == ("9.9.9.9", "1", "TCP4", "10.0.0.1", "443")
    assert not environ(scope()).keys() & set(names[2:])


def test_what_was_applied_once_is_not_applied_again() -> None:
    """A request may take the direct way first."""
    proxied = Proxied(None, TRUSTED, GUNICORNS._replace(of_bridge=True))
    request = scope("SCRIPT_NAME: /wiki", path="/wiki/a", raw_path=b"/wiki/a")
    assert proxied.apply(request) is None
    before = dict(request)
    assert proxied.apply(request) is None
    assert request == before
