"""Carries out a reload: loads the candidate beside the deployment in force, then commits or drops it.

A part of the arbiter's shell; `multicore_server.fleet.rollout` decides what happens when.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace

from multicore_server.arbiter import deployment, listeners
from multicore_server.arbiter.context import ArbiterContext
from multicore_server.arbiter.deployment import Deployment, DeploymentError, Surroundings
from multicore_server.arbiter.forked_call import ForkedCall
from multicore_server.arbiter.interruption import Interrupted, Interruption
from multicore_server.arbiter.systemd import service
from multicore_server.arbiter.worker_number import WorkerNumber
from multicore_server.fleet import events as ev

PATIENCE = 5  # times that signals may break off the load of a configuration
TURNS = 2  # of the loop: the signal is read in the next one, and what follows from it done after our `tick`
SLOW = 1.0  # seconds that loading a configuration may keep the arbiter before a line says so


class Reloader:
    """``candidate`` is the deployment on trial. ``install`` puts a deployment in force in place of another
    one; if that fails, it is called the other way round. ``become_helper`` makes a forked child fit to load
    a configuration. ``interruption`` is of the loop in which all of this runs."""

    def __init__(
        self,
        context: ArbiterContext,
        in_force: Callable[[], Deployment],
        install: Callable[[Deployment, Deployment], None],
        become_helper: Callable[[], None],
        interruption: Interruption,
    ) -> None:
        self._context = context
        self._in_force = in_force
        self._install = install
        self._become_helper = become_helper
        self._interruption = interruption
        self._interrupted = 0  # times that the load was broken off
        self._number = 1  # of the last deployment
        self._turns_given = 0  # to what broke it off
        self._check: ForkedCall | None = None
        self._resolved: dict[str, str] | None = None  # of a configuration that is to be loaded now
        self.candidate: Deployment | None = None

    @property
    def due(self) -> float | None:
        """When `tick` must be called next."""
        if self._resolved is not None:
            return 0.0
        return self._check.due if self._check else None

    def tick(self, now: float) -> None:
        """Do what is due."""
        if self._turns_given:
            self._turns_given -= 1
        elif self._resolved is not None:
            self._load_now(self._resolved)
        if self._check is not None:
            self._check.tick(now)

    def prepare(self) -> None:
        """`ReloadPrepared` or `ReloadFailed` is observed, sooner or later: a forked child loads the
        configuration first. What takes long, or ends the process, does so there."""
        current, log = self._in_force(), self._context.log
        service.reloading()
        if current.cfg.preload_app or getattr(current.app, "app_uri", "") is None:
            why = "preload_app" if current.cfg.preload_app else "run() got the app as an object"
            text = "a reload does not load new app code; USR2 does"
            log.warning("%s: %s", why, text)
        self._cancel_check()
        try:
            self._check = ForkedCall(self._context, self._answer, self._checked, self._become_helper)
        except OSError as exc:
            self._context.observe(ev.ReloadFailed(f"the configuration cannot be checked: {exc.strerror}"))

    def _answer(self) -> str:
        """In the child."""
        return json.dumps(deployment.check(self._in_force()))

    def _checked(self, ok: bool, text: str) -> None:
        self._check = None
        if not ok:
            self._context.observe(ev.ReloadFailed(text))
            return
        self._interrupted = 0
        resolved: dict[str, str] = {}
        with contextlib.suppress(ValueError):  # more names than an answer can have
            resolved = dict(json.loads(text))
        self._load_now(resolved)

    def _load_now(self, resolved: dict[str, str]) -> None:
        """Load what has loaded in a child. An urgent signal breaks it off, and the loop comes back to it."""
        self._resolved = None
        try:
            self.candidate = self._load(resolved)
        except DeploymentError as exc:
            self._context.observe(ev.ReloadFailed(str(exc)))
            return
        except Interrupted:
            self._interrupted += 1
            self._resolved, self._turns_given = resolved, TURNS
            return
        settings, cfg = self.candidate.settings, self.candidate.cfg
        options, tries = deployment.fleet_options(settings, cfg), WorkerNumber.of(settings, cfg).tries
        self._context.observe(ev.ReloadPrepared(options, settings.workers, tries))

    def _load(self, resolved: dict[str, str]) -> Deployment:
        """Raises DeploymentError and Interrupted."""
        current, log, clock = self._in_force(), self._context.log, self._context.system.monotonic
        began = clock()
        breakable = self._interruption.allowed if self._interrupted < PATIENCE else contextlib.nullcontext
        loaded = deployment.bind(deployment.load(current, log, breakable), current, log, resolved)
        took = clock() - began
        if took > SLOW:
            text = "the configuration took %.1f s to load; the arbiter handled only signals during this time"
            log.warning(text, took)
        self._number += 1
        return replace(loaded, number=self._number)

    def commit(self) -> None:
        """The candidate is in force from now on; if that fails, what was in force stays so, and
        `CommitFailed` is observed."""
        new, self.candidate = self.candidate, None
        assert new is not None
        old = self._in_force()
        old = replace(old, surroundings=Surroundings.now(old.cfg))
        try:
            self._install(new, old)
        except BaseException as exc:  # also SystemExit: of a user's logger class, say
            self._context.log.error("the new configuration cannot be applied", exc_info=exc)
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
        except BaseException as exc:  # as above
            self._context.log.error("the old configuration could not be restored completely", exc_info=exc)
        self._unbind(new)

    def drop(self) -> None:
        """The candidate is given up; idempotent."""
        self._cancel_check()
        dropped, self.candidate = self.candidate, None
        if dropped is not None:
            self._unbind(dropped)

    def _cancel_check(self) -> None:
        check, self._check, self._resolved = self._check, None, None
        if check is not None:
            check.cancel()

    def _unbind(self, dropped: Deployment) -> None:
        kept = self._in_force().listeners
        listeners.unbind([listener for listener in dropped.listeners if listener not in kept])
