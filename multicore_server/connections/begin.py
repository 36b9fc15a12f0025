"""Begins a request on httptools: fills its scope, and runs the app in a task."""

from __future__ import annotations

from collections import deque
from typing import Any
from urllib.parse import unquote

from httptools import HttpRequestParser, parse_url

from multicore_server.connections.cycles import make_by_uvicorn

LENIENT = hasattr(HttpRequestParser, "set_dangerous_leniencies")  # httptools 0.6.3


class BeginningHttpTools:
    """Mixed into uvicorn's protocol below what checks a head. It does what uvicorn's ``on_headers_complete``
    does, with what the check has asked the parser for already; where a setting asks for more, that one is
    called."""

    parser: Any
    scope: Any
    url: bytes
    root_path: str
    limit_concurrency: Any
    config: Any
    cycle: Any
    transport: Any
    flow: Any
    logger: Any
    access_logger: Any
    access_log: bool
    server_state: Any
    expect_100_continue: bool
    pipeline: Any
    app: Any
    loop: Any
    tasks: set[Any]
    on_response_complete: Any
    _begin_by_uvicorn: Any
    make_cycle: Any = make_by_uvicorn

    def make_parser(self) -> Any:
        """As uvicorn's constructor makes it."""
        self.parser = parser = HttpRequestParser(self)
        if LENIENT:
            parser.set_dangerous_leniencies(lenient_data_after_close=True)
        return parser

    def begin(self, version: str) -> None:
        if self.asks_for_more:
            self.begin_by_uvicorn(version)
        else:
            self.begin_here(version)

    @property
    def asks_for_more(self) -> bool:
        """Whether a setting asks for more than is done here."""
        return self.limit_concurrency is not None or getattr(self.config, "reset_contextvars", False)

    def begin_by_uvicorn(self, _: str) -> None:
        self._begin_by_uvicorn()
        self.cycle.keep_alive = self.parser.should_keep_alive()  # older ones look for it in the headers

    def begin_here(self, version: str) -> None:
        scope, url = self.scope, parse_url(self.url)
        scope["method"] = self.parser.get_method().decode("ascii")
        if version != "1.1":
            scope["http_version"] = version
        raw_path = url.path
        path = raw_path.decode("ascii")
        if "%" in path:
            path = unquote(path)
        if self.root_path:
            path, raw_path = self.root_path + path, self.root_path.encode("ascii") + raw_path
        scope["path"], scope["raw_path"], scope["query_string"] = path, raw_path, url.query or b""
        before = self.cycle
        self.cycle = cycle = self.make_cycle(self.parser.should_keep_alive())
        if before is None or before.response_complete:
            self._run_app(cycle)
        else:  # it is its turn when those before it are answered
            self.flow.pause_reading()
            self.pipeline = self.pipeline or deque()
            self.pipeline.appendleft((cycle, self.app))

    def _run_app(self, cycle: Any) -> None:
        state = cycle.state = self.server_state
        if state.direct is not None:
            state.direct.begin(cycle, self.app)
            return
        task = self.loop.create_task(cycle.run_asgi(self.app))
        if task.done():  # a loop with eager tasks
            return
        if getattr(cycle, "ends_its_task", False):
            self.tasks.add(task)
            cycle.task = task
        else:
            state.hold(task)
