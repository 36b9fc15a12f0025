"""A request begins, on httptools: its scope is filled, and its cycle runs the app in a task."""

from __future__ import annotations

from typing import Any
from urllib.parse import unquote

from httptools import parse_url
from uvicorn.protocols.http import httptools_impl

from multicore_server.connections.message_event import MessageEvent


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

    def begin(self, version: str) -> None:
        if self.limit_concurrency is not None or getattr(self.config, "reset_contextvars", False):
            self._begin_by_uvicorn()
            self.cycle.keep_alive = self.parser.should_keep_alive()  # older ones look for it in the headers
            return
        self._fill_scope(version)
        before, event = self.cycle, MessageEvent()
        cycle: Any = httptools_impl.RequestResponseCycle(
            scope=self.scope,
            transport=self.transport,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=self.access_log,
            default_headers=self.server_state.default_headers,
            message_event=event,  # type: ignore[arg-type]  # as much of it as is used
            expect_100_continue=self.expect_100_continue,
            keep_alive=self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        self.cycle = cycle
        if before is None or before.response_complete:
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
        else:  # it is its turn when those before it are answered
            self.flow.pause_reading()
            self.pipeline.appendleft((cycle, self.app))

    def _fill_scope(self, version: str) -> None:
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
