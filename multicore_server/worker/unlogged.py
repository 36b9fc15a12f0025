"""`access_log_skip`: leaves requests out of the access log."""

from __future__ import annotations

import logging
from collections.abc import Collection
from urllib.parse import unquote

from starlette.types import Scope


class Unlogged:
    """``paths`` are exact, or, with a ``*`` at their end, what a path begins with; below a root path too."""

    def __init__(self, paths: Collection[str] = ()) -> None:
        self._exact = frozenset(path for path in paths if not path.endswith("*"))
        self._beginnings = tuple(path[:-1] for path in paths if path.endswith("*"))
        self._any = bool(paths)

    def __bool__(self) -> bool:
        return self._any

    def __contains__(self, scope: Scope) -> bool:
        if not self._any:
            return False
        path, root = scope["path"], scope.get("root_path", "")
        return self._has(path) or (bool(root) and self._has(path.removeprefix(root)))

    def _has(self, path: str) -> bool:
        return path in self._exact or path.startswith(self._beginnings)

    def admits(self, record: logging.LogRecord) -> bool:
        """A filter for uvicorn's access logger, where uvicorn itself writes the lines."""
        args = record.args
        target = args[2] if isinstance(args, tuple) and len(args) == 5 else ""
        return not self._has(unquote(str(target).partition("?")[0]))


NOTHING = Unlogged()
