"""gunicorn's logger: set up anew by a reload, reopened by USR1."""

from __future__ import annotations

import contextlib
import os
from typing import Any


def set_up_log(log: Any, cfg: Any) -> None:
    """Let gunicorn's logger follow this configuration (of itself it keeps that of the start, before 25.1)."""
    log.cfg = cfg
    log.setup(cfg)


def reopen_log(log: Any, cfg: Any) -> None:
    """As gunicorn at its start, and unlike it later, leave files that workers of another user can reopen."""
    log.reopen_files()
    for path in (cfg.errorlog, cfg.accesslog):
        if path and path != "-":
            with contextlib.suppress(OSError):
                os.chown(path, cfg.uid, cfg.gid)
