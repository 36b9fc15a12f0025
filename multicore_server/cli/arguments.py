"""What several verbs read from the command line."""

from __future__ import annotations

from collections.abc import Iterable

from multicore_server.cli.servers import Trouble

LONGEST = 9  # digits of an instance number


def is_number(text: str) -> bool:
    return text.isascii() and text.isdecimal()


def instances_of(verb: str, texts: Iterable[str]) -> list[int] | None:
    """None for all, where none is named. Raises Trouble."""
    named = list(texts)
    for text in named:
        if not is_number(text) or len(text) > LONGEST:
            raise Trouble(f"{verb}: {text!r} is no instance number such as `ps` shows")
    return [int(text) for text in named] or None


def seconds_of(option: str, text: str) -> float:
    """Raises Trouble."""
    from multicore_server.settings.quantities import duration  # few verbs have a time

    try:
        return duration(text)
    except ValueError as exc:
        raise Trouble(f"{option}: {text!r} {exc}") from None
