"""Runs gunicorn and uvicorn on every CPU, with supervision like PM2's cluster mode.

The public names load on first use. So an import of a pure module of this package (for example
``multicore_server.fleet.policy``) never imports gunicorn or uvicorn.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from multicore_server.version import __version__ as __version__

if TYPE_CHECKING:
    from multicore_server import cluster as cluster
    from multicore_server.application import run as run
    from multicore_server.cli.prefork import prefork as prefork
    from multicore_server.plugin import Worker as Worker

__all__ = ["Worker", "cluster", "prefork", "run"]

_HOMES = {"Worker": "plugin", "run": "application", "cluster": "cluster", "prefork": "cli.prefork"}

_SERVERS = frozenset({"Worker", "run"})  # what needs the members of gunicorn and uvicorn that hosts.py names


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    if name in _SERVERS:
        from multicore_server import hosts

        hosts.check()
    module = import_module(f"{__name__}.{_HOMES[name]}")
    if name == "cluster":
        return module
    found = getattr(module, name)
    if name in _SERVERS:
        globals()[name] = found  # gunicorn asks for its worker class at each fork
    return found


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
