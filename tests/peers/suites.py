"""Which tests of other people's are run, how, and with what in place of what: a table."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

from tests.peers.services import compliance, frameworks

# The environment that tests find their servers by; a suite's folder and the loop are given.
Services = Callable[[Path, str], AbstractContextManager[dict[str, str]]]


def no_services(folder: Path, loop: str) -> AbstractContextManager[dict[str, str]]:
    return nullcontext({})


@dataclass(frozen=True, slots=True)
class Suite:
    """``paths`` are below ``folder``, which is one of the peer's; ``options`` are pytest's."""

    name: str
    peer: str
    plugins: tuple[str, ...]
    paths: tuple[str, ...]
    folder: str = "."
    options: tuple[str, ...] = ()
    services: Services = no_services
    at_once: bool = True  # or one test after the other
    is_ours: bool = False  # a module of ours, with what the peer's are made of


# uvicorn's, with a whole request in each.
SERVING = (
    "tests/middleware",
    "tests/test_default_headers.py",
    "tests/test_lifespan.py",
    "tests/test_main.py",
    "tests/test_server.py",
    "tests/test_ssl.py",
)
WITHOUT_ASYNCIO = ("-p", "no:asyncio")  # the plugin is for what gunicorn's suites need
SUITES = (
    Suite(
        "uvicorn classes",
        "uvicorn",
        ("uvicorn_classes",),
        (
            "tests/protocols",
            "tests/test_auto_detection.py",
            "tests/test_compat.py",
            "tests/test_config.py",
            *SERVING,
        ),
        options=WITHOUT_ASYNCIO,
    ),
    Suite(
        "uvicorn server",
        "uvicorn",
        ("uvicorn_server",),
        ("tests/protocols/test_websocket.py", *SERVING),
        options=WITHOUT_ASYNCIO,
    ),
    Suite(
        "gunicorn processes",
        "gunicorn",
        ("gunicorn_worker",),
        (
            "tests/test_signal_integration.py",
            "tests/test_control_socket_integration.py",
            "tests/test_gthread_keepalive_shutdown.py",
            "tests/test_asgi_connection_close.py",
            "tests/test_asgi_keepalive_pipeline.py",
            "tests/test_asgi_keepalive_timeout.py",
        ),
    ),
    Suite(
        "gunicorn frameworks",
        "gunicorn",
        ("gunicorn_services",),
        ("tests",),
        folder="tests/docker/asgi_framework_compat",
        options=("--skip-docker-check",),
        services=frameworks,
        at_once=False,
    ),
    Suite(
        "gunicorn compliance",
        "gunicorn",
        ("gunicorn_services",),
        (".",),
        folder="tests/docker/asgi_compliance",
        options=("-o", "asyncio_mode=auto"),
        services=compliance,
        at_once=False,
    ),
    Suite(
        "gunicorn requests",
        "gunicorn",
        (),
        ("tests/peers/raw_requests.py",),
        at_once=False,
        options=WITHOUT_ASYNCIO,
        is_ours=True,
    ),
)
