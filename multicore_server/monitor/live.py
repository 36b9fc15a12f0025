"""Serves the live page: static files of this package. The page gets its data from /status and /samples."""

from __future__ import annotations

from pathlib import Path

from multicore_server.monitor.asgi import Request, Response, Route

# The page may load its own files and ask this address, and nothing else; nobody may put it into a frame.
# An app's texts are shown as texts: with trusted types, the browser refuses to take any for HTML.
POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; "
    "require-trusted-types-for 'script'; trusted-types 'none'"
)
HEADERS = ((b"content-security-policy", POLICY.encode()), (b"referrer-policy", b"no-referrer"))

_KINDS = {"html": "text/html", "css": "text/css", "js": "text/javascript", "svg": "image/svg+xml"}
# Read at import, so that an update of the package does not mix old and new files.
_FILES = {
    file.name: file.read_bytes() for file in (Path(__file__).parent / "page").iterdir() if file.is_file()
}


def routes() -> list[Route]:
    """The page at ``/`` and its files beside it."""
    others = sorted(_FILES.keys() - {"index.html"})
    return [_route("/", "index.html"), *(_route(f"/{name}", name) for name in others)]


def _route(path: str, name: str) -> Route:
    kind = f"{_KINDS[name.rpartition('.')[2]]}; charset=utf-8"

    async def endpoint(_: Request) -> Response:
        return Response(_FILES[name], kind=kind, headers=HEADERS)

    return Route(path, endpoint)
