from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from multicore_server import cluster


async def hello(request: Request) -> PlainTextResponse:
    return PlainTextResponse(f"Hello from worker {cluster.instance}\n")


app = Starlette(routes=[Route("/", hello)])
