"""`monit`: shows a server live, and carries out the commands of its keys. Needs rich."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from queue import SimpleQueue

import click
from rich.console import Console
from rich.live import Live

from multicore_server.cli import monit_view
from multicore_server.cli.figures import Reading, take_reading
from multicore_server.cli.keys import Keys
from multicore_server.cli.monit_view import Scene
from multicore_server.cli.servers import Begun, GoneError, RunningServer, Trouble

TICK = 0.1  # seconds that a key, a signal or an update waits at most


def watch(server: RunningServer, interval: float) -> None:
    """Show the server until somebody quits or it exits, with a reading every ``interval`` seconds.

    The terminal is restored at the end. Raises Trouble.
    """
    scene = Scene(now=take_reading(server))  # before the screen is taken: it may fail
    # Without the ways in which rich finds meaning in a text.
    console = Console(markup=False, highlight=False, emoji=False)
    watching = Monit(server, interval, scene)
    with Keys() as keys, Live(console=console, screen=True, auto_refresh=False) as live:
        watching.run(keys, live)
    if watching.gone:
        click.echo(f"{server} has exited", err=True)
    elif keys.ended:
        sys.exit(128 + keys.ended)


class Monit:
    """Requests to the server run in two daemon threads; the main thread draws and reads keys."""

    def __init__(self, server: RunningServer, interval: float, scene: Scene) -> None:
        self.server = server
        self.interval = interval
        self.scene = scene
        self.gone = False
        self._ended = False
        self._updates: SimpleQueue[Reading | Trouble | str] = SimpleQueue()
        self._commands: SimpleQueue[Callable[[], Begun]] = SimpleQueue()

    def run(self, keys: Keys, live: Live) -> None:
        for work in (self._poll, self._carry_out):
            threading.Thread(target=work, daemon=True).start()
        drawn: object = None
        while not (self._ended or self.gone or keys.ended):
            size = _size()
            changed = self._apply_updates()
            if changed or drawn != size:
                live.update(monit_view.draw(self.scene, size), refresh=True)
                drawn = size
            for key in keys.wait(TICK):
                self._press(key)
                drawn = None
        self._ended = True

    # --- keys ---

    def _press(self, key: str) -> None:
        if key in ("q", "Q"):
            self._ended = True
        elif key in ("up", "k"):
            self.scene.select(-1)
        elif key in ("down", "j"):
            self.scene.select(+1)
        elif key == "i":
            self.scene.shows_requests = not self.scene.shows_requests
        elif key in ("r", "+", "-", "R"):
            self._command(key)

    def _command(self, key: str) -> None:
        server, instance = self.server, self.scene.selected
        if key == "R" and instance is None:
            return
        asked: dict[str, Callable[[], Begun]] = {
            "r": lambda: server.command("reload"),
            "R": lambda: server.command("restart", instances=[instance]),
            "+": lambda: server.command("scale", workers="+1"),
            "-": lambda: server.command("scale", workers="-1"),
        }
        self._commands.put(asked[key])

    # --- threads ---

    def _carry_out(self) -> None:
        while True:
            command = self._commands.get()
            try:
                self._updates.put(command().text)
            except Trouble as exc:
                self._updates.put(exc.message)

    def _poll(self) -> None:
        while not self._ended:
            time.sleep(self.interval)
            try:
                self._updates.put(take_reading(self.server))
            except Trouble as exc:
                self._updates.put(exc)

    def _apply_updates(self) -> bool:
        changed = False
        while not self._updates.empty():
            self._apply(self._updates.get())
            changed = True
        return changed

    def _apply(self, update: Reading | Trouble | str) -> None:
        if isinstance(update, Reading):
            self.scene.update(update)
        elif isinstance(update, GoneError):
            self.gone = not self.server.lives()
            self.scene.trouble = update.message
        elif isinstance(update, Trouble):
            self.scene.trouble = update.message
        else:
            self.scene.note = update


def _size() -> os.terminal_size:
    return os.get_terminal_size(sys.stdout.fileno())
