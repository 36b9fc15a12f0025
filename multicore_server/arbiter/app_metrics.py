"""Prepares the app's own metrics in the arbiter: their directory, and prometheus_client's values."""

from __future__ import annotations

import os
from typing import Any

from multicore_server.metrics.app import directory as app_directory
from multicore_server.metrics.app import values as app_values
from multicore_server.settings.table import Settings


def prepare(cfg: Any) -> None:
    """Once, before ``preload_app`` imports the app; and after gunicorn's forks to become a daemon."""
    if app_directory.current() is None:
        named = {app_directory.VARIABLE, app_directory.FORMER_VARIABLE} & cfg.env.keys()
        os.environ.update({name: cfg.env[name] for name in named})  # as gunicorn does a moment later
        app_directory.prepare()
        directory = app_directory.current()
        if directory is not None:
            app_values.install(directory)


def obey(settings: Settings, cfg: Any) -> None:
    """The settings are known: give the directory to the workers' user, or undo `prepare`."""
    directory = app_directory.current()
    if not settings.app_metrics:
        app_directory.disable()
        app_values.uninstall()  # second: prometheus_client chooses by the environment
    elif directory is not None:
        directory.chown(cfg.uid, cfg.gid)


def forget_live(row: int) -> None:
    """The owner of this row of the scoreboard is gone: its gauges of the live modes go too."""
    directory = app_directory.current()
    if directory is not None:
        directory.remove_live(directory.identifier(row))
