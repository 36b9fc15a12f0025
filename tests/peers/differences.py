"""Where this server differs from uvicorn and gunicorn on purpose or by its parsers, by their own tests.

A pattern of a suite (its name and the loop), patterns of tests in it, in which ``*`` is any text, and why.
What fails and is a fault of this server's has no place here.
"""

from __future__ import annotations

from collections.abc import Iterator

from tests.peers.verdict import Difference

RAW = "tests/peers/raw_requests.py::test_"
HTTP = "tests/protocols/test_http.py::"
HTTP2 = "tests/protocols/test_http2.py::"

TABLE: tuple[tuple[str, tuple[str, ...], str], ...] = (
    # --- uvicorn: connections and requests ---
    (
        "uvicorn classes *",
        (
            f"{HTTP}test_invalid_http_request[httptools-*",
            f"{HTTP}test_invalid_http_request[h11-*",
            f"{HTTP}test_invalid_http_request[zttp-*",
        ),
        "a refusal says the status in words; uvicorn's 400 has a text of its own",
    ),
    (
        "uvicorn classes *",
        (f"{HTTP2}test_eof_received_is_a_no_op",),
        "false and not none: the loop closes the transport for both",
    ),
    (
        "uvicorn classes *",
        (f"{HTTP2}test_negotiator_times_out_silent_connection",),
        "a client that says nothing has header_timeout, with every protocol",
    ),
    (
        "uvicorn classes *",
        (f"{HTTP}test_huge_headers_h11protocol_failure*",),
        "a head that is too large is answered with 431 and not with 400",
    ),
    (
        "uvicorn classes *",
        (f"{HTTP}test_huge_headers_httptools*", f"{HTTP}test_huge_headers_h11_max_incomplete"),
        "a head of more than 64 KiB is refused, whichever parser reads it",
    ),
    (
        "uvicorn classes *",
        (f"{HTTP}test_httptools_http10_keep_alive_disabled",),
        "a client of HTTP/1.0 that asks for it is kept alive",
    ),
    (
        "uvicorn * uvloop",
        ("tests/protocols/test_websocket.py::test_server_keepalive_ping_timeout[*",),
        "the test puts a function into the client's transport, which uvloop's does not allow",
    ),
    # --- uvicorn: the server ---
    (
        "uvicorn server *",
        ("tests/test_server.py::test_server_interrupt[capture_signal_async-*",),
        "a handler that the loop had before the server is replaced: a worker's loop has none yet",
    ),
    (
        "uvicorn server *",
        (
            "tests/test_server.py::test_request_than_limit_max_requests_warn_log[*",
            "tests/test_server.py::test_limit_max_requests_jitter[*",
        ),
        "max_requests is the worker's, which is replaced and loses no request",
    ),
    (
        "uvicorn server *",
        (
            "tests/middleware/test_logging.py::test_default_logging[*",
            "tests/middleware/test_logging.py::test_running_log_using_fd",
            "tests/middleware/test_logging.py::test_server_start_with_port_zero",
        ),
        "the arbiter binds the addresses and says where it listens; a worker's server has none of its own",
    ),
    # --- gunicorn: processes ---
    (
        "gunicorn processes *",
        (
            "tests/test_asgi_connection_close.py::test_client_connection_close_is_announced",
            "tests/test_asgi_connection_close.py::test_keepalive_disabled_is_announced",
        ),
        "the name of the field is written in small letters; names of fields have no case",
    ),
    (
        "gunicorn processes *",
        (
            "tests/test_asgi_connection_close.py::test_max_requests_recycle_is_announced",
            "tests/test_gthread_keepalive_shutdown.py::*",
        ),
        "max_requests ends no connection: the replacement is there first, and takes the idle ones over",
    ),
    # --- gunicorn: HTTP/2 ---
    (
        "gunicorn compliance *",
        ("test*::TestHTTP2DirectToGunicorn::*",),
        "HTTP/2 is uvicorn's, with UVICORN_HTTP=zttp; gunicorn's own is not used",
    ),
    # --- gunicorn: requests that are right ---
    (
        "gunicorn requests *",
        (f"{RAW}valid[*-099]",),
        "its body is shorter than its Content-Length: gunicorn's parser is told of the end, a server waits",
    ),
    (
        "gunicorn requests *",
        (
            f"{RAW}valid[*-028]",
            f"{RAW}valid[httptools-031*]",
            f"{RAW}valid[h11-031compat]",
            f"{RAW}valid[httptools-compat_obs_fold*]",
        ),
        "it needs a setting of gunicorn's parser, for requests that the RFC forbids or leaves open",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}valid[*-040]",),
        "an ASGI app is given names with a _ too, where header_map is not set: they cannot be mistaken there",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}valid[httptools-013]",),
        "llhttp allows no space before a chunk's extension",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}valid[httptools-rfc9112_target_authority_*",),
        "CONNECT is refused: this is no proxy",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}valid[h11-rfc9112_target_absolute_*", f"{RAW}valid[h11-rfc9112_target_authority_connect_01]"),
        "uvicorn takes the target of h11 for the path, whatever its form",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}valid[h11-005]",),
        "h11 leaves the fragment, which no client sends, in the target",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}valid[h11-022]",),
        "uvicorn does not keep clients of HTTP/1.0 alive with h11",
    ),
    (
        "gunicorn requests *",
        (
            f"{RAW}valid[h11-025*]",
            f"{RAW}valid[h11-029]",
            f"{RAW}valid[h11-030]",
            f"{RAW}valid[h11-rfc9112_smuggle_*",
        ),
        "h11 knows one transfer coding, chunked",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}valid[h11-rfc9112_leading_crlf_01]",),
        "h11 refuses an empty line before a request, which it should ignore",
    ),
    # --- gunicorn: requests that are wrong ---
    (
        "gunicorn requests *",
        (f"{RAW}invalid[*-041]",),
        "a second Content-Type is given to the app, which can refuse it; the RFC leaves it open",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}invalid[*-chunked_05]",),
        "HTTP/1.0 with chunks is answered, and the connection closed, as the RFC has it",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}invalid[*-limit_header_default_01]",),
        "limit_request_field_size = 0 is no limit, as gunicorn's documentation says",
    ),
    (
        "gunicorn requests *",
        (
            f"{RAW}invalid[*-rfc9110_trailer_forbidden_host_01]",
            f"{RAW}invalid[h11-rfc9110_trailer_forbidden_cl_01]",
            f"{RAW}invalid[h11-rfc9110_trailer_forbidden_te_01]",
        ),
        "trailers are thrown away, whatever their names are, and mean nothing",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}invalid[httptools-rfc9112_leading_crlf_02]",),
        "llhttp ignores any number of empty lines before a request; the RFC says at least one",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}invalid[h11-003c]",),
        "a method that begins with - is a token, and as good as any; only gunicorn has rules of its own",
    ),
    (
        "gunicorn requests *",
        (f"{RAW}invalid[h11-013]", f"{RAW}invalid[h11-obs_fold_01]"),
        "h11 makes one line of a folded one, as the RFC allows",
    ),
    (
        "gunicorn requests *",
        (
            f"{RAW}invalid[h11-rfc9110_field_value_ctl_*",
            f"{RAW}invalid[h11-rfc9112_bare_lf_01]",
            f"{RAW}invalid[h11-rfc9112_smuggle_cl_list_form_01]",
            f"{RAW}invalid[h11-chunked_09]",
        ),
        "h11 is lenient: control characters in values, line feeds alone, a length twice, a space at a size",
    ),
)


# Where a quiet machine may see no difference.
SOMETIMES: tuple[tuple[str, tuple[str, ...], str], ...] = (
    (
        "gunicorn processes *",
        ("tests/test_control_socket_integration.py::TestControlSocketReloadLeak::*",),
        "old workers serve until the new ones are ready: on a busy machine longer than the test waits",
    ),
)


def differences() -> Iterator[Difference]:
    for suite, tests, reason in TABLE:
        for test in tests:
            yield Difference(suite, test, reason)
    for suite, tests, reason in SOMETIMES:
        for test in tests:
            yield Difference(suite, test, reason, always=False)


DIFFERENCES = tuple(differences())
