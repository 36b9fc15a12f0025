"""Serves metrics at OpenTelemetry's default port, as its Prometheus exporter is set up in most examples."""

from __future__ import annotations

import os
from typing import Any

from prometheus_client import start_http_server

start_http_server(int(os.environ["METRICS_PORT"]), addr="127.0.0.1")


async def app(scope: Any, receive: Any, send: Any) -> None:
    raise NotImplementedError
