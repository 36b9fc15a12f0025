"""Requests that RFC 9112 allows, forbids or leaves open, and what may become of each: a table.

Outcomes are written as the statuses of the answers, in order, and ``closed`` where the server ends the
connection: ``200``, ``200 200``, ``400 closed``, ``closed``; it is
empty where the server waits for more. Sections are of RFC 9112, where nothing else is said.
"""

from __future__ import annotations

from dataclasses import dataclass

OK = ("200",)
REFUSED = ("400 closed",)
REFUSED_OR_CUT = ("400 closed", "closed")
REFUSED_OR_WAITED_FOR = ("400 closed", "closed", "")
OPEN = ("200", "200 closed", "400 closed")  # the RFC leaves it to the server
LAST = ("200 closed",)


@dataclass(frozen=True, slots=True)
class Known:
    """A difference from the RFC that is the parser's; ``server`` is how the name of the servers begins."""

    server: str
    outcome: str
    app: tuple[str, ...]
    reason: str


@dataclass(frozen=True, slots=True)
class RawRequest:
    """``app`` is what the app may see, in order, as ``METHOD path body``: never more, never anything else.

    ``known`` are outcomes that the RFC does not allow.
    """

    name: str
    section: str
    data: bytes
    outcomes: tuple[str, ...]
    app: tuple[str, ...] = ()
    known: tuple[Known, ...] = ()

    def __str__(self) -> str:
        return self.name


def get(*fields: bytes, path: bytes = b"/", version: bytes = b"HTTP/1.1", method: bytes = b"GET") -> bytes:
    return b"\r\n".join([method + b" " + path + b" " + version, b"Host: a", *fields, b"", b""])


def post(*fields: bytes, body: bytes = b"") -> bytes:
    return get(*fields, method=b"POST") + body


def chunked(body: bytes, *fields: bytes) -> bytes:
    return post(b"Transfer-Encoding: chunked", *fields, body=body)


SEEN = ("GET / ",)
HELLO = ("POST / hello",)
AFTER = get(path=b"/after")
SMUGGLED = b"GET /smuggled HTTP/1.1\r\nHost: a\r\n\r\n"


FRAMING = [
    RawRequest("get", "3", get(), OK, SEEN),
    RawRequest("pipelined", "9.3.2", get() + AFTER, ("200 200",), ("GET / ", "GET /after ")),
    RawRequest("content length", "6.2", post(b"Content-Length: 5", body=b"hello"), OK, HELLO),
    RawRequest(
        "content length, and another request",
        "6.3",
        post(b"Content-Length: 5", body=b"hello") + AFTER,
        ("200 200",),
        (*HELLO, "GET /after "),
    ),
    RawRequest(
        "get with a body",
        "6",
        get(b"Content-Length: 5") + b"hello" + AFTER,
        ("200 200",),
        ("GET / hello", "GET /after "),
    ),
    RawRequest("chunked", "7.1", chunked(b"5\r\nhello\r\n0\r\n\r\n"), OK, HELLO),
    RawRequest(
        "chunked, and another request",
        "7.1",
        chunked(b"5\r\nhello\r\n0\r\n\r\n") + AFTER,
        ("200 200",),
        (*HELLO, "GET /after "),
    ),
    RawRequest("chunks", "7.1", chunked(b"2\r\nhe\r\n003\r\nllo\r\n00\r\n\r\n"), OK, HELLO),
    RawRequest("chunk extensions", "7.1.1", chunked(b'5;a=b;c="d e"\r\nhello\r\n0;x\r\n\r\n'), OK, HELLO),
    RawRequest("trailer fields", "7.1.2", chunked(b"5\r\nhello\r\n0\r\nX-Trailer: 1\r\n\r\n"), OK, HELLO),
    RawRequest(
        "a coding in capitals",
        "7",
        post(b"Transfer-Encoding: CHUNKED", body=b"5\r\nhello\r\n0\r\n\r\n"),
        OK,
        HELLO,
    ),
    RawRequest("connection close", "9.6", get(b"Connection: close") + AFTER, LAST, SEEN),
]

SMUGGLING = [
    RawRequest(
        "both lengths, the chunked one shorter",
        "6.1",
        post(b"Content-Length: 44", b"Transfer-Encoding: chunked", body=b"0\r\n\r\n" + SMUGGLED),
        ("400 closed", "200 closed"),
        ("POST / ",),
    ),
    RawRequest(
        "both lengths, the chunked one longer",
        "6.1",
        post(b"Transfer-Encoding: chunked", b"Content-Length: 3", body=b"5\r\nhello\r\n0\r\n\r\n"),
        ("400 closed", "200 closed"),
        HELLO,
    ),
    RawRequest(
        "two lengths that differ",
        "6.3",
        post(b"Content-Length: 5", b"Content-Length: 0", body=b"hello"),
        REFUSED,
    ),
    RawRequest(
        "the same length twice",
        "6.3",
        post(b"Content-Length: 5", b"Content-Length: 5", body=b"hello"),
        OPEN,
        HELLO,
    ),
    RawRequest("a list of the same length", "6.3", post(b"Content-Length: 5, 5", body=b"hello"), OPEN, HELLO),
    RawRequest("a list of lengths", "6.3", post(b"Content-Length: 5, 6", body=b"hello"), REFUSED),
    *(
        RawRequest(f"length {value!r}", "6.3", post(b"Content-Length: " + value, body=b"hello"), REFUSED)
        for value in (b"-5", b"+5", b"0x5", b"5.0", b"five", b"5 0", b"99999999999999999999999")
    ),
    RawRequest("an empty length", "6.3", post(b"Content-Length:", body=b"hello"), REFUSED),
    *(
        RawRequest(
            f"coding {value!r}",
            "6.1",
            post(b"Transfer-Encoding: " + value, body=b"5\r\nhello\r\n0\r\n\r\n"),
            (*REFUSED, "501 closed"),
            ("POST / ",),
        )
        for value in (
            b"xchunked",
            b"identity",
            b"chunked, identity",
            b"chunked, chunked",
            b"\x0bchunked",
            b'"chunked"',
        )
    ),
    RawRequest(
        "two codings in two fields",
        "6.1",
        post(b"Transfer-Encoding: chunked", b"Transfer-Encoding: identity", body=b"0\r\n\r\n" + SMUGGLED),
        (*REFUSED, "501 closed"),
    ),
    RawRequest("a space before the colon", "5.1", post(b"Content-Length : 5", body=b"hello"), REFUSED),
    RawRequest(
        "a tab before the colon", "5.1", post(b"Transfer-Encoding\t: chunked", body=b"0\r\n\r\n"), REFUSED
    ),
    RawRequest("a space before the first field", "2.2", b"GET / HTTP/1.1\r\n Host: a\r\n\r\n", REFUSED),
    RawRequest("a folded field", "5.2", get(b"X-Folded: a", b" b"), OPEN, SEEN),
    RawRequest(
        "a folded coding",
        "5.2",
        post(b"Transfer-Encoding:", b" chunked", body=b"0\r\n\r\n"),
        OPEN,
        ("POST / ",),
    ),
    RawRequest("line feeds alone", "2.2", b"GET / HTTP/1.1\nHost: a\n\n", OPEN, SEEN),
    RawRequest("a carriage return in a value", "2.2", get(b"X-A: b\rX-B: c"), REFUSED),
    RawRequest(
        "a carriage return alone at the end of a field",
        "2.2",
        b"GET / HTTP/1.1\r\nHost: a\rX: y\r\n\r\n",
        REFUSED,
    ),
    *(
        RawRequest(
            f"chunk size {size!r}",
            "7.1",
            chunked(size + b"\r\nhello\r\n0\r\n\r\n"),
            REFUSED_OR_WAITED_FOR if size == b"fffffffffffffffff" else REFUSED_OR_CUT,
            ("POST / ",),
        )
        for size in (b"5g", b"-5", b"+5", b"0x5", b"", b" 5", b"fffffffffffffffff", b"5 5")
    ),
    RawRequest(
        "a chunk longer than its size",
        "7.1",
        chunked(b"3\r\nhello\r\n0\r\n\r\n"),
        REFUSED_OR_CUT,
        ("POST / ",),
    ),
    RawRequest(
        "chunks that end with line feeds",
        "7.1",
        chunked(b"5\nhello\n0\n\n"),
        REFUSED_OR_WAITED_FOR,
        ("POST / ",),
    ),
    *(
        RawRequest(
            f"{byte!r} in a chunk extension",
            "7.1.1",
            chunked(b"5;a" + byte + b"b\r\nhello\r\n0\r\n\r\n"),
            REFUSED_OR_CUT,
            ("POST / ",),
        )
        for byte in (b"\r", b"\0", b"\x0b", b"\x7f", b'="\r"')
    ),
    RawRequest(
        "a carriage return in the extension of the last chunk",
        "7.1.1",
        chunked(b"5\r\nhello\r\n0;a\rb\r\n\r\n" + SMUGGLED),
        REFUSED_OR_CUT,
        ("POST / ",),
    ),
    RawRequest(
        "a carriage return before the end of a chunk header",
        "7.1.1",
        chunked(b"5;a\r\r\nhello\r\n0\r\n\r\n"),
        REFUSED_OR_CUT,
        ("POST / ",),
    ),
    *(
        RawRequest(
            f"the end {end!r}",
            "7.1.2",
            chunked(b"5\r\nhello\r\n" + end + SMUGGLED),
            REFUSED_OR_CUT,
            ("POST / ",),
        )
        for end in (
            b"0\r\n\n",
            b"0\n\r\n",
            b"0\r\nX: y\n\n",
            b"0\r\nX: y\nZ: w\r\n\r\n",
            b"0\r\nX: y\rZ: w\r\n\r\n",
        )
    ),
    RawRequest(
        "a line feed in a chunk extension",
        "7.1.1",
        chunked(b"5;a\nb\r\nhello\r\n0\r\n\r\n"),
        REFUSED_OR_CUT,
        ("POST / ",),
    ),
]

FIELDS = [
    RawRequest(
        "no host",
        "3.2",
        b"GET / HTTP/1.1\r\nX: y\r\n\r\n",
        REFUSED,
    ),
    RawRequest(
        "two hosts",
        "3.2",
        get(b"Host: b"),
        REFUSED,
    ),
    RawRequest(
        "a host that is none",
        "3.2",
        b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        REFUSED,
        known=(Known("", "200", SEEN, "no parser looks into it, nor does uvicorn"),),
    ),
    RawRequest("a null in a value", "RFC 9110 5.5", get(b"X-A: a\0b"), REFUSED),
    RawRequest("a byte that is not ASCII in a value", "RFC 9110 5.5", get(b"X-A: \xff"), OK, SEEN),
    RawRequest("a space in a name", "5.1", get(b"X A: b"), REFUSED),
    RawRequest("a bracket in a name", "5.1", get(b"X(A: b"), REFUSED),
    RawRequest("a name that is not ASCII", "5.1", get(b"X\xc3\xa4: b"), REFUSED),
    RawRequest("no name", "5.1", get(b": b"), REFUSED),
    RawRequest("no colon", "5", get(b"X-A"), REFUSED),
    RawRequest("an empty value", "5", get(b"X-A:"), OK, SEEN),
    RawRequest("spaces around a value", "5.1", get(b"X-A: \t b \t "), OK, SEEN),
    RawRequest(
        "expect",
        "RFC 9110 10.1.1",
        post(b"Content-Length: 5", b"Expect: 100-continue", body=b"hello"),
        ("100 200", "200"),
        HELLO,
    ),
]

REQUEST_LINES = [
    RawRequest(
        "an empty line before it",
        "2.2",
        b"\r\n" + get(),
        OK,
        SEEN,
        known=(
            Known("h11", "400 closed", (), "h11 refuses what it should ignore"),
            Known("zttp", "400 closed", (), "as h11"),
        ),
    ),
    RawRequest("a space in the target", "3.2", get(path=b"/a b"), REFUSED),
    RawRequest("two spaces", "3", b"GET  / HTTP/1.1\r\nHost: a\r\n\r\n", OPEN, SEEN),
    RawRequest("tabs", "3", b"GET\t/\tHTTP/1.1\r\nHost: a\r\n\r\n", OPEN, SEEN),
    RawRequest(
        "absolute form",
        "3.2.2",
        get(path=b"http://a/absolute"),
        OK,
        ("GET /absolute ",),
        known=(
            Known("h11 app:app", "200", ("GET http://a/absolute ",), "uvicorn takes the target for the path"),
            Known("zttp app:app", "200", ("GET http://a/absolute ",), "as h11"),
        ),
    ),
    RawRequest("asterisk form", "3.2.4", get(path=b"*", method=b"OPTIONS"), OPEN, ("OPTIONS * ",)),
    RawRequest("asterisk form for GET", "3.2.4", get(path=b"*"), REFUSED),
    RawRequest("authority form for GET", "3.2.3", get(path=b"a:443"), REFUSED),
    RawRequest("a target that is relative", "3.2", get(path=b"foo/bar"), REFUSED),
    RawRequest(
        "authority form",
        "3.2.3",
        get(path=b"a:443", method=b"CONNECT"),
        ("400 closed", "405", "501 closed"),
        known=(
            Known("h11", "200 closed", ("CONNECT a:443 ",), "the app is asked: it may be a proxy"),
            Known("zttp", "200 closed", ("CONNECT a:443 ",), "as h11"),
        ),
    ),
    RawRequest(
        "a method of its own",
        "RFC 9110 9.1",
        get(method=b"BREW"),
        ("200", "501 closed"),
        ("BREW / ",),
        known=(Known("httptools", "400 closed", (), "llhttp knows a list of methods"),),
    ),
    RawRequest(
        "a method in small letters",
        "RFC 9110 9.1",
        get(method=b"get"),
        ("200", "400 closed", "501 closed"),
        ("get / ",),
    ),
    RawRequest("a method that is no token", "3.1", get(method=b"GE(T"), REFUSED),
    RawRequest(
        "HTTP/0.9",
        "2.3",
        b"GET /\r\n\r\n",
        ("505 closed", *REFUSED_OR_CUT),
    ),
    RawRequest("HTTP/1.0", "9.3", get(version=b"HTTP/1.0"), LAST, SEEN),
    RawRequest("HTTP/1.0 without a host", "3.2", b"GET / HTTP/1.0\r\n\r\n", LAST, SEEN),
    RawRequest(
        "HTTP/1.0 kept alive",
        "9.3",
        get(b"Connection: keep-alive", version=b"HTTP/1.0"),
        ("200", "200 closed"),
        SEEN,
    ),
    RawRequest(
        "HTTP/1.0 with a coding",
        "6.1",
        chunked(b"0\r\n\r\n").replace(b"HTTP/1.1", b"HTTP/1.0"),
        ("400 closed", "200 closed"),
        ("POST / ",),
    ),
    RawRequest(
        "HTTP/1.2",
        "2.5",
        get(version=b"HTTP/1.2"),
        ("200", "505 closed"),
        SEEN,
        known=(Known("httptools", "400 closed", (), "llhttp knows a list of versions"),),
    ),
    RawRequest(
        "HTTP/2.0",
        "2.3",
        get(version=b"HTTP/2.0"),
        ("505 closed", *REFUSED_OR_CUT),
    ),
    RawRequest("a version in small letters", "2.3", get(version=b"http/1.1"), REFUSED),
    RawRequest("a version that is too long", "2.3", get(version=b"HTTP/1.10"), REFUSED),
    RawRequest("a null in the target", "3.2", get(path=b"/\0"), REFUSED),
    RawRequest("bytes of TLS", "3", b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", REFUSED_OR_WAITED_FOR),
]

RAW_REQUESTS = [*FRAMING, *SMUGGLING, *FIELDS, *REQUEST_LINES]
