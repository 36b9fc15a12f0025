"""Writes the text of systemd units.

Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

MARGIN = 15  # seconds: what the arbiter takes for the end of its workers, beyond their own time
WATCHDOG = 30  # seconds: as in examples/systemd
_STRANGE = re.compile(r"[^A-Za-z0-9:_.-]")  # in the name of a unit
_PLAIN = re.compile(r"[A-Za-z0-9_@%+=:,./-]+")  # a word that needs no quotes


@dataclass(frozen=True)
class Service:
    """A server, as systemd is to run it. ``ends_within`` is the time that it may take to answer what it has
    in hand, in seconds; ``user`` is empty for systemd's own."""

    name: str
    command: Sequence[str]
    directory: Path
    ends_within: float
    env: Mapping[str, str] = field(default_factory=dict)
    user: str = ""

    @property
    def unit(self) -> str:
        """The name of its unit."""
        return f"multicore-{_STRANGE.sub('_', self.name)}.service"

    def text(self, *, system: bool) -> str:
        """The unit. It is of the system, or of a user."""
        reload = [*self.command[:1], "-m", "multicore_server", "reload", "$MAINPID"]
        lines = [
            "[Unit]",
            f"Description={_literal(self.name)} (multicore-server)",
            *(["Wants=network-online.target", "After=network-online.target"] if system else []),
            "",
            "[Service]",
            "# Started when a worker is ready.",
            "Type=notify",
            *([f"User={self.user}"] if self.user else []),
            f"WorkingDirectory={_literal(str(self.directory))}",
            *(f"Environment={_quoted(f'{name}={value}')}" for name, value in self.env.items()),
            f"ExecStart={_line(self.command)}",
            "# Waits for the reload, and fails if it is rolled back.",
            f"ExecReload={_line(reload[:-1])} {reload[-1]}",
            "TimeoutStartSec=5min",
            "# TERM goes to the arbiter, which ends its workers; after TimeoutStopSec, all is killed.",
            "KillMode=mixed",
            "# More than shutdown_delay and graceful_timeout together.",
            f"TimeoutStopSec={self.ends_within + MARGIN:g}",
            "Restart=on-failure",
            "RestartSec=1",
            "# An arbiter that makes no progress for this time is ended, and the service starts again.",
            f"WatchdogSec={WATCHDOG}",
            "# A worker that the kernel kills for its memory is replaced; the service goes on.",
            "OOMPolicy=continue",
            "",
            "[Install]",
            f"WantedBy={'multi-user' if system else 'default'}.target",
        ]
        return "\n".join(lines) + "\n"


def _line(words: Sequence[str]) -> str:
    return " ".join(_quoted(word.replace("$", "$$")) for word in words)


def _quoted(word: str) -> str:
    """systemd.syntax(7), and no specifiers."""
    text = _literal(word)
    if _PLAIN.fullmatch(text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return '"' + re.sub(r"[\x00-\x1f\x7f]", lambda found: f"\\x{ord(found[0]):02x}", escaped) + '"'


def _literal(text: str) -> str:
    return text.replace("%", "%%")
