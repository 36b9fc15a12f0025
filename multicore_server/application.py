"""Starts the server from Python: ``multicore_server.run("app:app", workers="max")``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from gunicorn import config, util
from gunicorn.app import base
from gunicorn.config import make_settings
from gunicorn.errors import ConfigError
from uvicorn.main import main as uvicorn_command

from multicore_server.arbiter.launch import Launch, launch
from multicore_server.settings.gunicorn import DURATIONS, from_environment, log_files, worker_class
from multicore_server.settings.hooks import EVENTS
from multicore_server.settings.quantities import whole_seconds
from multicore_server.settings.table import TABLE, SettingError
from multicore_server.settings.translation import translate
from multicore_server.worker.worker import Worker

WORKER_CLASS = "multicore_server.Worker"
# Not options of run(): gunicorn's other ways to name the app, and options only for uvicorn's command line.
NOT_OURS = frozenset({"wsgi_app", "paste", "app", "version", "app_dir", "env_file"})


def run(app: str | Any, **options: Any) -> None:
    """Serve ``app``, an object or ``"module:name"``, until a signal stops the server. Then the process exits.

    ``options`` are gunicorn's settings, ours and uvicorn's options, by name. If gunicorn and uvicorn share a
    name, gunicorn's meaning applies. Options override ``MULTICORE_*`` variables. The command line is not
    read. A config file is read only if ``config`` names it. HUP loads the config file and a ``"module:name"``
    again. Raises TypeError for an option that does not exist.
    """
    _check_names(options)
    of_uvicorn = {name: value for name, value in options.items() if name not in _gunicorns_and_ours()}
    rest = {name: value for name, value in options.items() if name not in of_uvicorn}
    try:
        translated = translate(of_uvicorn)
    except SettingError as exc:
        sys.exit(f"Error: {exc}")
    Application(app, translated.gunicorn | rest, uvicorn=translated.uvicorn).run()


def _gunicorns_and_ours() -> set[str]:
    return set(make_settings()) | EVENTS.keys() | TABLE.keys()


def _check_names(options: dict[str, Any]) -> None:
    uvicorns = {str(option.name) for option in uvicorn_command.params}
    known = (_gunicorns_and_ours() | uvicorns) - NOT_OURS
    for name in options.keys() - known:
        from difflib import get_close_matches  # here alone: for a mistake, at a start

        nearest = "".join(f"; did you mean {found}?" for found in get_close_matches(name, known, n=1))
        raise TypeError(f"run() got an unknown option {name!r}{nearest}")


def _refuse_logs(cfg: Any) -> None:
    """Refuse log files in one line, and before a daemon's stderr is gone."""
    for name, path in log_files(cfg).items():
        try:
            Path(path).open("a").close()
        except OSError as exc:  # noqa: PERF203 - two files, once
            sys.exit(f"Error: {name}: {path!r} cannot be written: {exc.strerror}")


class DurationError(ConfigError):  # type: ignore[misc]  # gunicorn has no types
    """A value of gunicorn's is no duration. One line with its source."""


class Config(config.Config):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's configuration, with durations in the formats that the other settings accept."""

    source = "in the config file"  # of the next value

    def set(self, name: str, value: object) -> None:
        super().set(name, self._seconds(name, value) if name in DURATIONS else value)

    def _seconds(self, name: str, value: object) -> int:
        try:
            return whole_seconds(value)
        except ValueError as exc:
            text = f"{name}: {value!r} ({self.source}) {exc}; give whole seconds, or 2s, 10m, 24h"
            raise DurationError(text) from None


class Application(base.Application):  # type: ignore[misc]  # gunicorn has no types
    """gunicorn's application, with options in place of a command line.

    A config file can override ``defaults``, which are gunicorn settings. Every worker passes ``uvicorn`` to
    its ``uvicorn.Config``.
    """

    remarks: Sequence[str] = ()  # on options that have no effect

    def __init__(
        self, app: str | Any, options: dict[str, Any], *,
        defaults: dict[str, Any] | None = None, uvicorn: dict[str, Any] | None = None,
    ) -> None:  # fmt: skip
        self.defaults = defaults or {}
        self.uvicorn_options = uvicorn or {}
        self.app = app
        self.app_uri = app if isinstance(app, str) else None
        self.multicore_options = {name: value for name, value in options.items() if name in TABLE}
        self.options = {name: value for name, value in options.items() if name not in TABLE}
        self.directory = util.getcwd()
        self.launch: Launch | None = None  # somebody waits for the server to be ready
        super().__init__()

    def load_default_config(self) -> None:
        self.cfg = Config(self.usage, prog=self.prog)

    def load_config(self) -> None:
        """Apply all sources of settings, the weakest first. Runs again at each HUP."""
        self._set("chdir", self.directory)
        self.chdir()
        self._set("worker_class", WORKER_CLASS)
        self.cfg.uvicorn_options = self.uvicorn_options
        self.cfg.given = frozenset(self.options)
        for name, value in self.defaults.items():
            self._set(name, value)
        if self.app_uri:
            self._set("default_proc_name", self.app_uri)
        variables = from_environment(os.environ)
        file = self.options.get("config") or (variables["config"].value if "config" in variables else None)
        if file:
            self.load_config_from_file(file)
        for name, given in variables.items():
            self._set(name, given.value, given.source)
        for name, value in self.options.items():
            self._set(name, value)
        try:
            ours = issubclass(worker_class(self.cfg), Worker)
        except TypeError as exc:
            raise ConfigError(f"worker_class: {exc}") from None
        if not ours:
            raise ConfigError(f"worker_class: {self.cfg.worker_class_str!r} is not {WORKER_CLASS}")
        self.chdir()

    def _set(self, name: str, value: Any, source: str = "from run's options") -> None:
        try:
            self.cfg.source = source
            self.cfg.set(name, value)
        except DurationError:
            raise
        except Exception as exc:
            raise ConfigError(f"{name}: {value!r} ({source}) cannot be used: {exc}") from exc
        finally:
            self.cfg.source = Config.source

    def run(self) -> None:
        if self.cfg.check_config:
            self._check()
        _refuse_logs(self.cfg)
        if self.cfg.daemon and "GUNICORN_FD" not in os.environ:  # not USR2's
            self.launch = launch()
        try:
            super().run()
        except SystemExit as exc:
            if self.launch is not None:
                self.launch.ended(exc.code)
            raise

    def _check(self) -> NoReturn:
        """Check for ``--check-config`` as gunicorn does: silent if nothing is wrong."""
        from multicore_server.check.findings import find
        from multicore_server.check.unit import stop_timeout

        findings = find(self, running=True, allowed=stop_timeout(None))
        found = [finding for finding in findings if finding.level != "note"]
        for level, text, detail in found:
            print(*filter(None, (detail, f"{level.capitalize()}: {text}")), sep="\n", file=sys.stderr)
        sys.exit(int(any(finding.level == "error" for finding in found)))

    def load(self) -> Any:
        return util.import_app(self.app_uri) if self.app_uri else self.app
