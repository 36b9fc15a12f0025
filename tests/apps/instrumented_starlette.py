"""Starlette with starlette-exporter."""

from __future__ import annotations

import os

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route
from starlette_exporter import PrometheusMiddleware, handle_metrics


def who(request: Request) -> JSONResponse:
    return JSONResponse(int(os.environ["MULTICORE_INSTANCE"]))


async def item(request: Request) -> JSONResponse:
    return JSONResponse(int(request.path_params["number"]))


app = Starlette(routes=[Route("/", who), Route("/items/{number}", item), Route("/metrics", handle_metrics)])
app.add_middleware(PrometheusMiddleware, group_paths=True)
