"""Carrying out a reload: the candidate is loaded beside what is in force, then committed or dropped.

A part of the arbiter's shell; what to do when is decided in `multicore_server.rollout`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from gunicorn import util
from gunicorn.pidfile import Pidfile

from multicore_server.arbiter import deployment, listeners, logs, systemd
from multicore_server.arbiter.deployment import Deployment, DeploymentError
from multicore_server.fleet import events as ev

if TYPE_CHECKING:
    from multicore_server.arbiter.arbiter import Arbiter


class Reloader:
    """``candidate`` is the deployment on trial."""

    def __init__(self, arbiter: Arbiter) -> None:
        self.arbiter = arbiter
        self.candidate: Deployment | None = None

    def prepare(self) -> None:
        arbiter = self.arbiter
        systemd.reloading(arbiter.log)
        if arbiter.cfg.preload_app or getattr(arbiter.app, "app_uri", "") is None:
            why = "preload_app" if arbiter.cfg.preload_app else "run() got the app as an object"
            text = "the app's code stays as the arbiter has loaded it; USR2 loads new code"
            arbiter.log.warning("%s: %s", why, text)
        try:
            self.candidate = self._load()
        except DeploymentError as exc:
            arbiter.observe(ev.ReloadFailed(str(exc)))
            return
        settings = self.candidate.settings
        options = deployment.fleet_options(settings, self.candidate.cfg)
        arbiter.observe(ev.ReloadPrepared(options, settings.workers))

    def _load(self) -> Deployment:
        """Whatever is wrong with a configuration, it must not end the server. Raises DeploymentError."""
        try:
            return deployment.load_afresh(self.arbiter.in_force(), self.arbiter.log)
        except DeploymentError:
            raise
        except Exception as exc:
            raise DeploymentError(f"{type(exc).__name__}: {exc}") from exc

    def commit(self) -> None:
        arbiter = self.arbiter
        new, self.candidate = self.candidate, None
        assert new is not None
        before, arbiter.LISTENERS = arbiter.LISTENERS, new.listeners
        listeners.unbind([listener for listener in before if listener not in new.listeners])
        new.enter()
        old_pidfile = arbiter.cfg.pidfile
        new.cfg.set("workers", arbiter.fleet.workers)  # for gunicorn, which takes it from there
        arbiter.setup(new.app)
        if arbiter.log.cfg is not new.cfg:  # older gunicorns leave the log as it was
            logs.set_up_log(arbiter.log, new.cfg)
        arbiter.settings = new.settings
        arbiter.inspection.configure(new.settings, new.cfg)
        arbiter.monitor_process.configure(new.settings.metrics_bind)
        logs.reopen_log(arbiter.log, new.cfg)
        self._move_pidfile(old_pidfile)
        util._setproctitle(f"master [{arbiter.proc_name}]")
        if before is not arbiter.LISTENERS:
            arbiter.log.info("Listening at: %s", ",".join(map(str, arbiter.LISTENERS)))
        arbiter.cfg.on_reload(arbiter)

    def _move_pidfile(self, old: str | None) -> None:
        arbiter = self.arbiter
        path = arbiter.cfg.pidfile
        if path == old:
            return
        try:
            new = Pidfile(path) if path else None
            if new is not None:
                new.create(arbiter.pid)
        except (OSError, RuntimeError) as exc:
            arbiter.log.error("pidfile %s: %s; keeping %s", path, exc, old)
            return
        if arbiter.pidfile is not None:
            arbiter.pidfile.unlink()
        arbiter.pidfile = new

    def drop(self) -> None:
        dropped, self.candidate = self.candidate, None
        if dropped is not None:
            self._unbind(dropped)

    def _unbind(self, dropped: Deployment) -> None:
        kept = self.arbiter.LISTENERS
        listeners.unbind([listener for listener in dropped.listeners if listener not in kept])
