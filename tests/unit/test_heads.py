"""A head that is remembered is the one that would be made, and no response gets another one's."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from multicore_server.connections.http10 import for_http_1_0
from multicore_server.worker.heads import LONGEST_WHOLE, WHOLE, Heads

DEFAULTS = [(b"server", b"uvicorn")]
HEADERS = st.sampled_from([
    (b"content-type", b"text/plain"), (b"Content-Type", b"text/plain"), (b"content-length", b"5"),
    (b"Content-Length", b"7"), (b"content-length", b"x"), (b"connection", b"close"), (b"set-cookie", b"a=1"),
    (b"x", b"v" * LONGEST_WHOLE), ("a", "b"), (b"a",), [b"a", b"b"],
])  # fmt: skip
CYCLES = st.fixed_dictionaries({
    "status": st.sampled_from([200, 204, 304, 404, 1]),
    "headers": st.lists(HEADERS, max_size=3),
    "keep_alive": st.booleans(),
    "method": st.sampled_from(["GET", "HEAD"]),
    "chunked": st.sampled_from([None, None, False]),
    "defaults": st.sampled_from([0, 0, 0, 1]),
})  # fmt: skip


def cycle(
    method: str = "GET", *, keep_alive: bool = True, chunked: Any = None, defaults: Any = DEFAULTS
) -> Any:
    return SimpleNamespace(
        default_headers=defaults,
        access_log=False,
        keep_alive=keep_alive,
        chunked_encoding=chunked,
        expected_content_length=0,
        scope={"method": method},
    )


@given(st.lists(CYCLES, max_size=20))
def test_heads_that_are_remembered_are_those_that_would_be_made(asked: list[dict[str, Any]]) -> None:
    heads, defaults = Heads(), (DEFAULTS, [(b"server", b"another")])
    for it in asked * 2:
        options = {
            "keep_alive": it["keep_alive"],
            "chunked": it["chunked"],
            "defaults": defaults[it["defaults"]],
        }
        ours, new = cycle(it["method"], **options), cycle(it["method"], **options)
        made = heads.make(ours, it["status"], it["headers"])
        assert made == Heads().make(new, it["status"], it["headers"])
        if made is not None:
            assert vars(ours) == vars(new)


def test_what_can_be_read_once_is_left_to_uvicorn_unread() -> None:
    headers = iter([(b"content-length", b"5"), (b"connection", b"close")])
    assert Heads().make(cycle(), 200, headers) is None
    assert len(list(headers)) == 2


def test_few_heads_are_remembered() -> None:
    heads = Heads()
    for number in range(3 * WHOLE):
        made = heads.make(cycle(), 200, [(b"content-length", b"5"), (b"etag", b"%d" % number)])
        assert made is not None
        assert b"etag: %d\r\n" % number in made
        assert len(heads._whole) <= WHOLE
    heads.make(cycle(defaults=[(b"server", b"another")]), 200, [(b"content-length", b"5")])
    assert len(heads._whole) == 1  # of the second in which the date is another one


def test_an_http_1_0_response_reads_its_headers_once() -> None:
    sent: list[Any] = []

    class Cycle:
        response_started = False
        keep_alive = True
        chunked_encoding = None
        default_headers = DEFAULTS
        scope = {"method": "GET"}  # noqa: RUF012 - of a test

        def send(self, message: Any) -> None:
            sent.append(message)

    headers = iter([(b"content-length", b"5"), (b"connection", b"close")])
    made = for_http_1_0(Cycle)()
    made.send({"type": "http.response.start", "status": 200, "headers": headers})
    assert sent[0]["headers"] == [(b"content-length", b"5"), (b"connection", b"close")]
    assert not made.ends_by_close
    assert not made.keep_alive
