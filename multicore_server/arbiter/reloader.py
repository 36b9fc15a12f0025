"""Carrying out a reload: the candidate is loaded beside what is in force, then committed or dropped.

A part of the arbiter's shell; what to do when is decided in `multicore_server.fleet.rollout`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from multicore_server.arbiter import deployment, listeners, systemd
from multicore_server.arbiter.context import ArbiterContext
from multicore_server.arbiter.deployment import Deployment, DeploymentError, Surroundings
from multicore_server.fleet import events as ev


class Reloader:
    """``candidate`` is the deployment on trial. ``install`` puts a deployment in force in place of another
    one; if that fails, it is called the other way round."""

    def __init__(
        self,
        context: ArbiterContext,
        in_force: Callable[[], Deployment],
        install: Callable[[Deployment, Deployment], None],
    ) -> None:
        self._context = context
        self._in_force = in_force
        self._install = install
        self.candidate: Deployment | None = None

    def prepare(self) -> None:
        """`ReloadPrepared` or `ReloadFailed` is observed."""
        current, log = self._in_force(), self._context.log
        systemd.reloading(log)
        if current.cfg.preload_app or getattr(current.app, "app_uri", "") is None:
            why = "preload_app" if current.cfg.preload_app else "run() got the app as an object"
            text = "the app's code stays as the arbiter has loaded it; USR2 loads new code"
            log.warning("%s: %s", why, text)
        try:
            self.candidate = _load(current, log)
        except DeploymentError as exc:
            self._context.observe(ev.ReloadFailed(str(exc)))
            return
        settings = self.candidate.settings
        options = deployment.fleet_options(settings, self.candidate.cfg)
        self._context.observe(ev.ReloadPrepared(options, settings.workers))

    def commit(self) -> None:
        """The candidate is in force from now on; if that fails, what was in force stays so, and
        `CommitFailed` is observed."""
        new, self.candidate = self.candidate, None
        assert new is not None
        old = self._in_force()
        old = replace(old, surroundings=Surroundings.now(old.cfg))
        try:
            self._install(new, old)
        except Exception as exc:
            self._context.log.exception("the new configuration cannot be put in force; the old one stays")
            self._put_back(old, new)
            self._context.observe(ev.CommitFailed(f"{type(exc).__name__}: {exc}"))
            return
        self._context.observe(ev.Committed())
        listeners.unbind([listener for listener in old.listeners if listener not in new.listeners])
        if old.listeners is not new.listeners:
            self._context.log.info("Listening at: %s", ",".join(map(str, new.listeners)))

    def _put_back(self, old: Deployment, new: Deployment) -> None:
        try:
            self._install(old, new)
        except Exception:
            self._context.log.exception("the old configuration could not be put back in whole")
        self._unbind(new)

    def drop(self) -> None:
        """The candidate is given up; idempotent."""
        dropped, self.candidate = self.candidate, None
        if dropped is not None:
            self._unbind(dropped)

    def _unbind(self, dropped: Deployment) -> None:
        kept = self._in_force().listeners
        listeners.unbind([listener for listener in dropped.listeners if listener not in kept])


def _load(current: Deployment, log: object) -> Deployment:
    """Whatever is wrong with a configuration, it must not end the server. Raises DeploymentError."""
    try:
        return deployment.load_afresh(current, log)
    except DeploymentError:
        raise
    except BaseException as exc:  # a config file may also raise KeyboardInterrupt or SystemExit
        raise DeploymentError(f"{type(exc).__name__}: {exc}".removesuffix(": ")) from exc
