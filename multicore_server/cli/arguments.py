"""What several verbs read from the command line."""

from __future__ import annotations

from collections.abc import Sequence

from multicore_server.cli.servers import Trouble
from multicore_server.ipc.report import LONGEST_ACTION

LONGEST = 9  # digits of an instance number


def is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def server_and_instances(
    verb: str, arguments: Sequence[str], server: str | None
) -> tuple[str | None, list[int] | None]:
    """What ``[SERVER] [INSTANCE]...`` names; ``server`` is that of --server. Raises Trouble."""
    if server is None and arguments and not is_number(arguments[0]):
        server, *arguments = arguments
    return server, instances_of(verb, arguments)


def instances_of(verb: str, named: Sequence[str]) -> list[int] | None:
    """None for all, where none is named. Raises Trouble."""
    for text in named:
        if not is_number(text) or len(text) > LONGEST:
            raise Trouble(f"{verb}: {text!r} is no instance number such as `ps` shows")
    return [int(text) for text in named] or None


def answer_timeout(text: str) -> float:
    """Seconds that workers have to answer. Raises Trouble."""
    seconds = seconds_of("--timeout", text)
    if not 0 < seconds <= LONGEST_ACTION:
        raise Trouble(f"--timeout: {text!r} is not between 0 and {LONGEST_ACTION:g} seconds")
    return seconds


def seconds_of(option: str, text: str) -> float:
    """Raises Trouble."""
    from multicore_server.settings.quantities import duration  # few verbs have a time

    try:
        return duration(text)
    except ValueError as exc:
        raise Trouble(f"{option}: {text!r} {exc}") from None
