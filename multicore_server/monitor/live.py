"""The live page: static files of this package. The page gets its data from /status."""

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

_KINDS = {
    "index.html": "text/html; charset=utf-8",
    "page.css": "text/css; charset=utf-8",
    "page.js": "text/javascript; charset=utf-8",
    "figures.js": "text/javascript; charset=utf-8",
    "icon.svg": "image/svg+xml",
}
# Read at import, so that an update of the package does not mix old and new files.
_FILES = {name: (Path(__file__).parent / "page" / name).read_bytes() for name in _KINDS}


def routes() -> list[Route]:
    """The page at ``/`` and its files beside it."""
    return [_route("/", "index.html"), *(_route(f"/{name}", name) for name in _KINDS if name != "index.html")]


def _route(path: str, name: str) -> Route:
    async def endpoint(_: Request) -> Response:
        return Response(_FILES[name], kind=_KINDS[name], headers=HEADERS)

    return Route(path, endpoint)
